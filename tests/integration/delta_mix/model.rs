//! What the cluster holds, as far as the workload has to know it to go on.

use std::path::PathBuf;

use fastrand::Rng;

/// How many directories there are for tablespaces, and how many databases there may be beside `postgres`.
pub const LOCATIONS: usize = 3;
const DATABASES: usize = 2;

/// The columns of every table here but those made from queries.
pub const COLUMNS: &str =
    "id int, n int, body text, list int[], span int4range, place point, big text";

/// What the cluster holds. A copy of it is what a restore to that moment brings back.
#[derive(Clone)]
pub struct Model {
    pub version: u32,
    /// The directories for tablespaces, and those for files of `COPY`.
    pub area: PathBuf,
    pub tables: Vec<Table>,
    pub databases: Vec<Database>,
    pub tablespaces: Vec<Tablespace>,
    pub prepared: Vec<String>,
    pub sequences: Vec<String>,
    pub views: Vec<String>,
    pub roles: Vec<String>,
    /// Names are never used twice, but for what is made again on purpose.
    serial: u32,
}

#[derive(Clone)]
pub struct Table {
    pub name: String,
    pub database: String,
    pub is_unlogged: bool,
    pub tablespace: Option<String>,
    /// The id of the next row.
    pub next: u32,
}

#[derive(Clone)]
pub struct Database {
    pub name: String,
    /// What is asked for from 15 on, so that one that is made again has files of the same names.
    pub oid: usize,
    pub tablespace: Option<String>,
}

#[derive(Clone)]
pub struct Tablespace {
    pub name: String,
    pub location: usize,
}

impl Model {
    /// Of a cluster that has the database `postgres` and nothing in it.
    pub fn new(version: u32, area: PathBuf) -> Self {
        Self {
            version,
            area,
            tables: Vec::new(),
            databases: Vec::new(),
            tablespaces: Vec::new(),
            prepared: Vec::new(),
            sequences: Vec::new(),
            views: Vec::new(),
            roles: Vec::new(),
            serial: 0,
        }
    }

    pub fn new_name(&mut self, kind: &str) -> String {
        self.serial += 1;
        format!("{kind}_{}", self.serial)
    }

    /// Any table.
    pub fn any_table(&self, rng: &mut Rng) -> Option<usize> {
        self.table_where(rng, |_| true)
    }

    pub fn table_where(&self, rng: &mut Rng, fits: impl Fn(&Table) -> bool) -> Option<usize> {
        let fitting = (0..self.tables.len()).filter(|at| fits(&self.tables[*at]));
        one_of(rng, &fitting.collect::<Vec<_>>())
    }

    /// `postgres`, or sometimes another one.
    pub fn any_database(&self, rng: &mut Rng) -> String {
        let other = one_of(rng, &self.databases).filter(|_| chance(rng, 30));
        other.map_or_else(|| "postgres".to_owned(), |database| database.name)
    }

    /// The OID for a new database, when there may be one more.
    pub fn free_oid(&self) -> Option<usize> {
        let is_free = |oid: &usize| self.databases.iter().all(|one| one.oid != *oid);
        (900_000..900_000 + DATABASES).find(is_free)
    }

    /// A directory that no tablespace has.
    pub fn free_location(&self) -> Option<usize> {
        let is_free = |at: &usize| self.tablespaces.iter().all(|space| space.location != *at);
        (0..LOCATIONS).find(is_free)
    }

    /// A tablespace that can be dropped.
    pub fn empty_tablespace(&self) -> Option<usize> {
        let tables = self.tables.iter().map(|table| &table.tablespace);
        let databases = self.databases.iter().map(|database| &database.tablespace);
        let used: Vec<&String> = tables.chain(databases).flatten().collect();
        let mut spaces = self.tablespaces.iter();
        spaces.position(|space| !used.contains(&&space.name))
    }

    /// A tablespace, as an option that some have.
    pub fn any_tablespace(&self, rng: &mut Rng) -> Option<String> {
        one_of(rng, &self.tablespaces).map(|space| space.name)
    }

    pub fn location(&self, at: usize) -> PathBuf {
        self.area.join(format!("space{at}"))
    }
}

pub fn chance(rng: &mut Rng, percent: u32) -> bool {
    rng.u32(..100) < percent
}

pub fn one_of<T: Clone>(rng: &mut Rng, list: &[T]) -> Option<T> {
    rng.choice(list).cloned()
}
