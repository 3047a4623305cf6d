//! Where a restored cluster's files go: the data directory, and what its links lead to.
//!
//! ```text
//! path in the backup ─▶ pg_tblspc/OID/PG_…/… ─▶ version folder of the tablespace's place
//!                       pg_wal/…             ─▶ the WAL's own directory, if one is named
//!                       anything else        ─▶ data directory
//! ```
//!
//! Nothing is written anywhere else, whatever a backup says: the link to a tablespace's place is for PostgreSQL, never for
//! the restore.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Component, Path, PathBuf};

use super::Error;
use super::folder::{Folder, Kind};
use crate::durability::Durability;
use crate::repository::BackupEntry;

/// Names the cluster whose data directory is being made, until it is whole; in a tablespace's folder, the data directory too.
pub(super) const PROOF: &str = "walhalla_restore";
/// Where links to tablespaces are.
pub(super) const LINKS: &str = "pg_tblspc";

/// What a directory is to the restored cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The data directory.
    Data,
    /// The place of a tablespace, by its OID.
    Tablespace(u32),
    /// The directory of the WAL, where it is not in the data directory.
    Wal,
}

/// Whether the user named a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Naming {
    /// On the command line.
    ByUser,
    /// It is where the backup says that it was.
    ByBackup,
}

/// A directory that is to hold files of the restored cluster.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) role: Role,
    pub(super) path: PathBuf,
    pub(super) naming: Naming,
}

impl Place {
    /// The tablespace whose place it is, if it is one's.
    pub(super) fn tablespace(&self) -> Option<u32> {
        match self.role {
            Role::Tablespace(oid) => Some(oid),
            Role::Data | Role::Wal => None,
        }
    }
}

/// The directories of a cluster that is being restored, open and locked.
#[derive(Debug)]
pub(super) struct Places {
    pub(super) data: Folder,
    wal_folder: &'static str,
    wal: Option<(PathBuf, Folder)>,
    version_folder: PathBuf,
    tablespaces: BTreeMap<u32, (PathBuf, Folder)>,
}

/// The tablespace whose files lie at this path of a backup.
pub(super) fn tablespace_of(path: &Path) -> Option<u32> {
    let mut parts = path.strip_prefix(LINKS).ok()?.iter();
    parts.next()?.to_str()?.parse().ok()
}

impl Places {
    /// The places, which are locked.
    pub(super) fn new(
        backup: &BackupEntry,
        data: Folder,
        wal: Option<(PathBuf, Folder)>,
        tablespaces: BTreeMap<u32, (PathBuf, Folder)>,
    ) -> Self {
        Self {
            data,
            wal_folder: backup.postgres_version.wal_folder(),
            wal,
            version_folder: backup.postgres_version.tablespace_folder().into(),
            tablespaces,
        }
    }

    /// The same places. What is written in them from here on is as durable as this says.
    pub(super) fn with(self, durability: Durability) -> Self {
        let of = |(path, folder): (PathBuf, Folder)| (path, folder.with(durability));
        let tablespaces = self.tablespaces.into_iter();
        Self {
            data: self.data.with(durability),
            wal: self.wal.map(of),
            tablespaces: tablespaces.map(|(oid, place)| (oid, of(place))).collect(),
            ..self
        }
    }

    /// Whether what is written in them is durable.
    pub(super) fn durability(&self) -> Durability {
        self.data.durability()
    }

    /// The directory that a path of the backup belongs in, and the path there.
    ///
    /// # Errors
    /// [`Error::StrangePath`] for one that lies in no place of the restored cluster, or that is not the backup's to write.
    pub(super) fn locate<'p>(&self, path: &'p Path) -> Result<(&Folder, &'p Path), Error> {
        let strange = || Error::StrangePath(path.to_owned());
        let is_inside = path
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        if !is_inside || is_own_file(path) {
            return Err(strange());
        }
        if let (Some((_, wal)), Ok(rest)) = (&self.wal, path.strip_prefix(self.wal_folder)) {
            return Ok((wal, rest));
        }
        let Ok(below) = path.strip_prefix(LINKS) else {
            return Ok((&self.data, path));
        };
        let mut parts = below.components();
        let oid = parts
            .next()
            .and_then(|part| part.as_os_str().to_str()?.parse::<u32>().ok());
        match oid.and_then(|oid| self.tablespaces.get(&oid)) {
            None => Ok((&self.data, path)),
            Some((_, folder)) => {
                let rest = parts.as_path().strip_prefix(&self.version_folder);
                rest.map(|rest| (folder, rest)).map_err(|_| strange())
            }
        }
    }

    /// Name of the WAL folder.
    pub(super) fn wal_folder(&self) -> &'static str {
        self.wal_folder
    }

    /// Name of the folder that a tablespace has for this version.
    pub(super) fn version_folder(&self) -> &Path {
        &self.version_folder
    }

    /// The folders of tablespaces for this version, by their OIDs.
    pub(super) fn tablespaces(&self) -> impl Iterator<Item = (u32, &Path, &Folder)> {
        let places = self.tablespaces.iter();
        places.map(|(oid, (path, folder))| (*oid, path.as_path(), folder))
    }

    /// The directory of the WAL, where it is not in the data directory.
    pub(super) fn wal(&self) -> Option<(&Path, &Folder)> {
        let wal = self.wal.as_ref();
        wal.map(|(path, folder)| (path.as_path(), folder))
    }

    /// Makes the links to what is elsewhere, where they are not as they must be.
    pub(super) fn link(&self) -> Result<(), Error> {
        let wal = self
            .wal()
            .map(|(path, _)| (PathBuf::from(self.wal_folder), path));
        let tablespaces = self
            .tablespaces()
            .map(|(oid, path, _)| (Path::new(LINKS).join(oid.to_string()), path));
        for (link, path) in tablespaces.chain(wal) {
            if self.data.read_link(&link)?.as_deref() == Some(path) {
                continue;
            }
            if self.data.kind(&link)? == Some(Kind::Link) {
                self.data.remove(&link)?;
            }
            self.data.link(path, &link)?;
        }
        Ok(())
    }

    pub(super) fn create(&self, path: &Path, mode: u32) -> Result<File, Error> {
        let (folder, path) = self.locate(path)?;
        folder.create(path, mode)
    }

    pub(super) fn open_or_create(&self, path: &Path, mode: u32) -> Result<File, Error> {
        let (folder, path) = self.locate(path)?;
        folder.open_or_create(path, mode)
    }

    pub(super) fn make_directory(&self, path: &Path) -> Result<(), Error> {
        let (folder, path) = self.locate(path)?;
        folder.make_directory(path)
    }

    pub(super) fn sync_file(&self, path: &Path) -> Result<(), Error> {
        let (folder, path) = self.locate(path)?;
        folder.sync_file(path)
    }

    /// Makes all files durable at once, where all file systems tell of files that they could not write; whether it did.
    pub(super) fn sync_all_files(&self) -> Result<bool, Error> {
        let tablespaces = self.tablespaces.values().map(|(_, folder)| folder);
        let wal = self.wal.iter().map(|(_, folder)| folder);
        let mut file_systems = BTreeMap::new();
        for folder in [&self.data].into_iter().chain(wal).chain(tablespaces) {
            if !folder.can_sync_file_system()? {
                return Ok(false);
            }
            file_systems.insert(folder.stat()?.st_dev, folder);
        }
        { file_systems.values() }.try_for_each(|folder| folder.sync_file_system())?;
        Ok(true)
    }

    /// Gives a directory its mode, and makes what it holds durable.
    pub(super) fn finish_directory(&self, path: &Path, mode: u32) -> Result<(), Error> {
        let (folder, path) = self.locate(path)?;
        folder.set_directory_mode(path, mode)?;
        folder.sync(path)
    }

    /// The same for the data directory and for the directories that stand for a folder of it.
    pub(super) fn finish_outer_directories(&self, mode: u32) -> Result<(), Error> {
        let outer = Path::new("");
        for (_, _, folder) in self.tablespaces() {
            folder.sync(outer)?;
        }
        self.data.set_directory_mode(outer, mode)?;
        self.data.sync(outer)
    }
}

/// Whether a path is that of a file that a restore keeps for itself.
pub(super) fn is_own_file(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == PROOF)
}
