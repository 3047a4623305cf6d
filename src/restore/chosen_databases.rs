//! Restoring some of a cluster's databases.
//!
//! The others' files come up with their length and nothing in it, so that recovery can go through their WAL: they cannot be
//! connected to, and are to be dropped.

use std::collections::HashSet;
use std::path::Path;

use walhalla_postgres::RelationFile;
use walhalla_postgres::catalogs::database_of_map;

use super::Error;
use crate::contents::Contents;
use crate::contents::names;
use crate::repository::{BackupEntry, Repository};

/// Databases without which a cluster is none.
const ALWAYS: [&str; 3] = ["template0", "template1", "postgres"];

/// The databases that are restored.
#[derive(Clone, Debug)]
pub struct ChosenDatabases {
    databases: HashSet<u32>,
}

impl ChosenDatabases {
    /// The databases called `wanted`, as `backup` knows them, and those that every cluster has.
    ///
    /// # Errors
    /// [`Error::NoSuchDatabase`] and those of reading the backup's catalogs.
    pub fn of(
        repository: &Repository,
        backup: &BackupEntry,
        wanted: &[String],
    ) -> Result<Self, Error> {
        let contents = Contents::open(repository, backup);
        let names = contents.and_then(|contents| names::read(&contents));
        let known = names.map_err(Error::UnusableBackup)?.databases;
        if let Some(name) = wanted
            .iter()
            .find(|name| !known.values().any(|known| known == *name))
        {
            let mut known: Vec<String> = known.into_values().collect();
            known.sort();
            return Err(Error::NoSuchDatabase {
                name: name.clone(),
                known,
            });
        }
        let is_kept = |name: &String| wanted.contains(name) || ALWAYS.contains(&name.as_str());
        let kept = known.into_iter().filter(|(_, name)| is_kept(name));
        Ok(Self {
            databases: kept.map(|(database, _)| database).collect(),
        })
    }

    /// Whether a file is restored with its content: all are but those of other databases' relations, and the maps that
    /// name them. Without its map a server refuses to connect to a database; without relations that the map names it
    /// panics (relcache.c, `load_critical_index`).
    pub fn has(&self, path: &Path) -> bool {
        let database = RelationFile::of_path(path).map(|file| file.files.database);
        let database = database.or_else(|| database_of_map(path)).unwrap_or(0);
        database == 0 || self.databases.contains(&database)
    }
}
