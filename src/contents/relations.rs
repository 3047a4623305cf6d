//! `relations.json`: which files of relations a backup holds, and how long each is.
//!
//! It is what a delta must know of its parent, and says no more than sizes: it is stored without encryption, so that a
//! host that cannot read the past takes deltas.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use walhalla_postgres::{ControlFile, Fork, RelationFile};

use super::delta_file::delta_name;
use super::manifest::Manifest;
use super::reader;
use crate::repository::{BackupEntry, BackupKind, ObjectError, Repository};
use crate::server::data_directory::Listing;

/// The files of relations, main and init forks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relations {
    /// Length of a block, in bytes.
    pub block_size: u32,
    /// Most blocks that a file has (`RELSEG_SIZE`).
    pub blocks_per_file: u32,
    /// When the `PG_VERSION` of each database's folder was written, seconds since 1970: once, when the folder was made.
    pub databases: BTreeMap<String, i64>,
    /// Whole blocks of each file, by its folder and name.
    pub folders: BTreeMap<String, BTreeMap<String, u32>>,
}

impl Relations {
    /// The relation files of a data directory as it was walked.
    pub fn of(listing: &Listing, control: &ControlFile) -> Self {
        let block_size = control.block_size_bytes;
        let mut relations = Self {
            block_size,
            blocks_per_file: control.blocks_per_file,
            ..Self::default()
        };
        for file in &listing.files {
            let Some((folder, name)) = split(&file.path) else {
                continue;
            };
            if name == "PG_VERSION" {
                relations.databases.insert(folder.to_owned(), file.modified);
            } else if file.relation.is_some_and(is_kept) {
                let blocks = file.size_bytes / u64::from(block_size.max(1));
                let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
                let files = relations.folders.entry(folder.to_owned()).or_default();
                files.insert(name.to_owned(), blocks);
            }
        }
        relations
    }

    /// Leaves out files that the backup does not hold after all: they vanished before they were read.
    pub fn retain_files_of(&mut self, manifest: &Manifest, kind: BackupKind) {
        for (folder, files) in &mut self.folders {
            files.retain(|name, _| {
                let path = Path::new(folder).join(name);
                manifest.files.contains_key(&path)
                    || kind == BackupKind::Delta && manifest.files.contains_key(&delta_name(&path))
            });
        }
    }

    /// As it is stored.
    pub fn to_json(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec(self).expect("names and numbers make a JSON document");
        json.push(b'\n');
        json
    }

    /// What is stored of a backup; `None` where an older program stored nothing.
    ///
    /// # Errors
    /// The repository's, and that the object is damaged.
    pub fn read(
        repository: &Repository,
        backup: &BackupEntry,
    ) -> Result<Option<Self>, reader::Error> {
        let Some(stored) = &backup.relations else {
            return Ok(None);
        };
        let (object, json) = reader::read_whole(repository, backup, stored)?;
        let relations = serde_json::from_slice(&json);
        relations
            .map(Some)
            .map_err(|reason| ObjectError::damaged(repository.url(&object.key), reason).into())
    }

    /// Length in blocks of the file at `path`; `None` for one that the backup does not hold.
    pub fn blocks(&self, path: &Path) -> Option<u32> {
        let (folder, name) = split(path)?;
        self.folders.get(folder)?.get(name).copied()
    }

    /// Length of each file.
    pub fn sizes(&self) -> HashMap<PathBuf, u64> {
        let block_size = u64::from(self.block_size);
        let files = self.folders.iter().flat_map(|(folder, files)| {
            let size = move |(name, blocks): (&String, &u32)| {
                (
                    Path::new(folder).join(name),
                    u64::from(*blocks) * block_size,
                )
            };
            files.iter().map(size)
        });
        files.collect()
    }

    /// When the database's folder of a file was made, as far as is known.
    pub fn made(&self, path: &Path) -> Option<i64> {
        let (folder, _) = split(path)?;
        self.databases.get(folder).copied()
    }
}

/// Whether a delta may leave out blocks of a file. The other forks are short, and not all that changes them is in the WAL.
pub fn is_kept(file: RelationFile) -> bool {
    match file.fork {
        Fork::Main | Fork::Init => true,
        Fork::FreeSpaceMap | Fork::VisibilityMap => false,
    }
}

fn split(path: &Path) -> Option<(&str, &str)> {
    Some((path.parent()?.to_str()?, path.file_name()?.to_str()?))
}
