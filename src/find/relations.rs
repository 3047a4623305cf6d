//! What a backup tells of relations that are known by their file numbers: names from its catalogs, sizes from its manifest.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde::Serialize;
use walhalla_postgres::catalogs::Names;
use walhalla_postgres::relation::{DEFAULT_TABLESPACE, GLOBAL_TABLESPACE};
use walhalla_postgres::wal::record::RelationFiles;
use walhalla_postgres::{History, Lsn, Version};

use crate::contents::manifest::FileFacts;
use crate::contents::names;
use crate::contents::relations;
use crate::contents::{self, Contents};
use crate::output;
use crate::paths::PathMap;
use crate::repository::{BackupEntry, BackupId, Repository};

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
    sizes: Sizes,
}

/// What tells how long files are.
enum Sizes {
    Relations(relations::Relations),
    /// Of a backup of an earlier version, which is a full one.
    Manifest(PathMap<FileFacts>),
}

impl Default for Sizes {
    fn default() -> Self {
        Self::Manifest(PathMap::default())
    }
}

impl Sizes {
    fn of(&self, path: &Path) -> Option<u64> {
        match self {
            Self::Relations(relations) => relations.size_bytes(path),
            Self::Manifest(files) => files.get(path).map(|file| file.size_bytes),
        }
    }
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
            Some(relations) => Sizes::Relations(relations),
            None => Sizes::Manifest(contents.files().clone()),
        };
        Ok(Self {
            names: names::read(&contents)?,
            sizes,
        })
    }

    fn size_bytes(&self, files: RelationFiles, version: Version) -> Option<u64> {
        let first = path_of(files, version);
        let later = (1..).map_while(|number| {
            let mut path = first.clone().into_os_string();
            path.push(format!(".{number}"));
            self.sizes.of(Path::new(&path))
        });
        let first = self.sizes.of(&first)?;
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
