//! What a backup tells of relations that are known by their file numbers: names from its catalogs, sizes from its manifest.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Mutex;

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::backup::contents::{self, Contents, Failure, FileHeader, Sink, Sum};
use crate::backup::relations;
use crate::output;
use crate::postgres::catalogs::{Catalogs, Names, is_map};
use crate::postgres::{History, Lsn, Version};
use crate::repository::{BackupEntry, BackupId, Repository};
use crate::threads::lock;
use crate::wal::record::RelationFiles;

/// Longest catalog file that is read for names.
const CATALOG_LIMIT_BYTES: u64 = 256 << 20;
/// `DEFAULTTABLESPACE_OID` and `GLOBALTABLESPACE_OID` (pg_tablespace.dat).
const DEFAULT_TABLESPACE: u32 = 1663;
const GLOBAL_TABLESPACE: u32 = 1664;

/// A relation, as far as it is known.
#[derive(Clone, Debug, Serialize)]
pub struct Relation {
    /// Tablespace, database and file number.
    pub files: RelationFiles,
    /// The database's name.
    pub database: Option<String>,
    /// The schema's.
    pub schema: Option<String>,
    /// The relation's.
    pub name: Option<String>,
    /// What it is.
    pub kind: Option<&'static str>,
    /// Length of its main fork in the backup.
    pub size_bytes: Option<u64>,
}

/// Relations of the backups, which are read when they are asked for.
pub struct Relations<'a> {
    repository: &'a Repository,
    backups: &'a [BackupEntry],
    read: RefCell<HashMap<BackupId, Rc<Known>>>,
}

/// What a backup tells.
#[derive(Default)]
struct Known {
    names: Names,
    sizes: HashMap<PathBuf, u64>,
}

impl<'a> Relations<'a> {
    /// What `backups` tell.
    pub fn new(repository: &'a Repository, backups: &'a [BackupEntry]) -> Self {
        Self {
            repository,
            backups,
            read: RefCell::default(),
        }
    }

    /// The last backup before `lsn` on the way of `history`.
    pub fn backup_before(&self, history: &History, lsn: Lsn) -> Option<&'a BackupEntry> {
        let is_before = |backup: &&BackupEntry| backup.stop_lsn <= lsn && backup.leads_to(history);
        let backups = self.backups.iter().filter(is_before);
        backups.max_by_key(|backup| backup.stop_lsn)
    }

    /// The relation with these files as it was before `lsn`.
    pub fn relation(&self, files: RelationFiles, history: &History, lsn: Lsn) -> Relation {
        let known = self
            .backup_before(history, lsn)
            .map(|backup| (backup, self.known(backup)));
        let Some((backup, known)) = known else {
            return Relation::unknown(files);
        };
        let named = known.names.relation(files.database, files.number);
        let (name, schema, kind) = match named {
            Some(named) => (Some(named.name), named.schema, Some(named.kind)),
            None => (None, None, None),
        };
        Relation {
            database: self.database(files.database, history, lsn),
            schema,
            name,
            kind,
            size_bytes: known.size_bytes(files, backup.postgres_version),
            files,
        }
    }

    /// A database's name before `lsn`.
    pub fn database(&self, database: u32, history: &History, lsn: Lsn) -> Option<String> {
        let known = self.known(self.backup_before(history, lsn)?);
        known.names.databases.get(&database).cloned()
    }

    fn known(&self, backup: &BackupEntry) -> Rc<Known> {
        if let Some(known) = self.read.borrow().get(&backup.id) {
            return Rc::clone(known);
        }
        let known = Known::read(self.repository, backup).unwrap_or_else(|error| {
            let reason = output::chain(&error);
            tracing::warn!("names and sizes of relations are not known: {reason}");
            Known::default()
        });
        let known = Rc::new(known);
        let mut read = self.read.borrow_mut();
        read.insert(backup.id.clone(), Rc::clone(&known));
        known
    }
}

impl Known {
    fn read(repository: &Repository, backup: &BackupEntry) -> Result<Self, contents::Error> {
        let contents = Contents::open(repository, backup)?;
        // A delta's manifest tells how much it holds of a file, not how long the file is.
        let sizes = match relations::Relations::read(repository, backup)? {
            Some(relations) => relations.sizes(),
            None => contents.sizes(),
        };
        let mut known = Self {
            sizes,
            ..Self::default()
        };
        let named = backup.catalogs.as_ref();
        let part = named.and_then(|named| backup.parts.iter().find(|part| part.name == *named));
        if let Some(part) = part {
            let files = Files::default();
            contents.part(part, &files)?;
            known.names = files.names(backup);
        }
        Ok(known)
    }

    fn size_bytes(&self, files: RelationFiles, version: Version) -> Option<u64> {
        let first = path_of(files, version);
        let later = (1..).map_while(|number| {
            let mut path = first.clone().into_os_string();
            path.push(format!(".{number}"));
            self.sizes.get(Path::new(&path))
        });
        let first = self.sizes.get(&first)?;
        Some(first + later.sum::<u64>())
    }
}

/// The first file of a relation's main fork (relpath.c, `GetRelationPath`).
fn path_of(files: RelationFiles, version: Version) -> PathBuf {
    let RelationFiles {
        tablespace,
        database,
        number,
    } = files;
    match tablespace {
        GLOBAL_TABLESPACE => format!("global/{number}"),
        DEFAULT_TABLESPACE => format!("base/{database}/{number}"),
        _ => {
            let folder = version.tablespace_folder();
            format!("pg_tblspc/{tablespace}/{folder}/{database}/{number}")
        }
    }
    .into()
}

impl Relation {
    fn unknown(files: RelationFiles) -> Self {
        Self {
            files,
            database: None,
            schema: None,
            name: None,
            kind: None,
            size_bytes: None,
        }
    }

    /// Whether it is what people call a table.
    pub fn is_table(&self) -> bool {
        matches!(self.kind, Some("table" | "materialized view"))
    }
}

/// The catalogs' files.
#[derive(Default)]
struct Files(Mutex<Vec<(PathBuf, Vec<u8>)>>);

impl Files {
    fn names(self, backup: &BackupEntry) -> Names {
        let files = self.0.into_inner().unwrap_or_default();
        let mut catalogs = Catalogs::default();
        for (path, bytes) in files.iter().filter(|(path, _)| is_map(path)) {
            catalogs.map(path, bytes);
        }
        let mut names = Names::default();
        for (path, bytes) in &files {
            if let Some(catalog) = catalogs.of(path) {
                names.read(catalog, bytes, backup.postgres_version);
            }
        }
        names
    }
}

impl Sink for Files {
    type Error = contents::Error;

    fn directory(&self, _: &Path, _: u32) -> Result<(), Self::Error> {
        Ok(())
    }

    fn file(
        &self,
        path: &Path,
        _: FileHeader,
        content: &mut dyn Read,
    ) -> Result<Option<Sum>, Failure<Self::Error>> {
        let mut bytes = Vec::new();
        let read = content.take(CATALOG_LIMIT_BYTES).read_to_end(&mut bytes);
        read.map_err(Failure::Read)?;
        let facts = (bytes.len() as u64, Sha256::digest(&bytes).into());
        lock(&self.0).push((path.to_owned(), bytes));
        Ok(Some(facts))
    }

    fn problem(&self, error: contents::Error) -> Result<(), Self::Error> {
        Err(error)
    }
}
