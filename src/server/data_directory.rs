//! What of a data directory belongs in a base backup.
//!
//! The exclusions are basebackup.c's: `excludeDirContents`, `excludeFiles`, temporary files and
//! relations, and the forks of unlogged relations other than their init fork.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::{DirEntry, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use walhalla_postgres::relation::{digits, parse_name};
use walhalla_postgres::{Fork, RelationFile, Version, control};

use super::Error;
use crate::paths::PathList;

/// Directories that are kept empty (basebackup.c, `excludeDirContents`).
const EMPTIED: [&str; 7] = [
    "pg_dynshmem",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat_tmp",
    "pg_subtrans",
];
/// Files that are left out by their whole name (basebackup.c, `excludeFiles`).
const EXCLUDED: [&str; 8] = [
    "postgresql.auto.conf.tmp",
    "current_logfiles.tmp",
    "backup_label",
    "tablespace_map",
    "backup_manifest",
    "postmaster.pid",
    "postmaster.opts",
    // What a restore that was broken off at its end may leave.
    "walhalla_restore",
];
/// What of the data directory holds data, and not settings or logs.
const DATA: [&str; 9] = [
    "PG_VERSION",
    "base",
    "global",
    "pg_commit_ts",
    "pg_logical",
    "pg_multixact",
    "pg_tblspc",
    "pg_twophase",
    "pg_xact",
];
/// A tablespace that is being dropped is looked at so often, with so long a pause.
const DROP_LOOKS: u32 = 20;
const DROP_PAUSE: Duration = Duration::from_millis(50);
/// Names that begin so are left out: relation caches (`RELCACHE_INIT_FILENAME`) and sort files (`PG_TEMP_FILE_PREFIX`).
const EXCLUDED_PREFIXES: [&str; 2] = ["pg_internal.init", "pgsql_tmp"];

/// A data directory as it was when it was walked. `global/pg_control` is in none of the lists.
#[derive(Debug, Default)]
pub struct Listing {
    /// Every directory, parents before children; the data directory itself is not among them.
    pub directories: Vec<Entry>,
    /// Every file that goes into a backup.
    pub files: Files,
    /// The tablespaces that are elsewhere; their files' paths begin with `pg_tblspc/OID/`.
    pub tablespaces: Vec<Tablespace>,
    /// What is neither file nor directory and was left out, as PostgreSQL does.
    pub left_out: Vec<PathBuf>,
}

/// One file or directory.
#[derive(Debug)]
pub struct Entry {
    /// Below the data directory.
    pub path: PathBuf,
    /// Length when it was walked; it may have changed since.
    pub size_bytes: u64,
    /// Permission bits.
    pub mode: u32,
    /// Modification time, seconds since 1970.
    pub modified: i64,
    /// For a file of a relation, which one it is.
    pub relation: Option<RelationFile>,
}

/// Files in the order in which they were found.
#[derive(Debug, Default)]
pub struct Files(PathList<Stat>);

/// What an [`Entry`] tells besides its path.
#[derive(Clone, Copy, Debug)]
struct Stat {
    size_bytes: u64,
    modified: i64,
    mode: u32,
}

impl Files {
    /// Adds one at the end.
    pub fn push(&mut self, file: &Entry) {
        let Entry {
            size_bytes,
            modified,
            mode,
            ..
        } = *file;
        self.0.push(
            &file.path,
            Stat {
                size_bytes,
                modified,
                mode,
            },
        );
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The file at `position`, from 0.
    pub fn get(&self, position: usize) -> Option<Entry> {
        let (path, stat) = (self.0.path(position)?, self.0.value(position)?);
        Some(Entry {
            relation: RelationFile::of_path(&path),
            path,
            size_bytes: stat.size_bytes,
            mode: stat.mode,
            modified: stat.modified,
        })
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = Entry> {
        (0..self.len()).filter_map(|position| self.get(position))
    }
}

/// A tablespace and where it is.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Tablespace {
    /// Its OID: the name of its link in `pg_tblspc`.
    pub oid: u32,
    /// The directory that the link names.
    pub location: PathBuf,
}

/// Walks `pgdata` and its tablespaces.
///
/// # Errors
/// [`Error::Read`] for whatever cannot be read; what vanishes meanwhile is passed over.
pub fn walk(pgdata: &Path, version: Version) -> Result<Listing, Error> {
    let mut walk = Walk {
        pgdata,
        version,
        listing: Listing::default(),
    };
    for entry in sorted_entries(pgdata)? {
        walk.top(&entry)?;
    }
    Ok(walk.listing)
}

/// Refuses tablespaces whose place has no spelling in `backup.json`, as [`walk`] does.
///
/// # Errors
/// [`Error::NotUtf8`], and [`Error::Read`] for a folder `pg_tblspc` that cannot be read.
pub fn check_tablespaces(pgdata: &Path) -> Result<(), Error> {
    for entry in sorted_entries(&pgdata.join("pg_tblspc"))? {
        if let Ok(location) = std::fs::read_link(entry.path()) {
            check_utf8("a tablespace", &location)?;
        }
    }
    Ok(())
}

/// Refuses a path that must be written down as text and cannot be.
///
/// # Errors
/// [`Error::NotUtf8`].
pub fn check_utf8(what: &'static str, path: &Path) -> Result<(), Error> {
    match path.to_str() {
        Some(_) => Ok(()),
        None => Err(Error::NotUtf8 {
            what,
            path: path.to_owned(),
        }),
    }
}

struct Walk<'a> {
    pgdata: &'a Path,
    version: Version,
    listing: Listing,
}

impl Walk<'_> {
    /// An entry of the data directory itself.
    fn top(&mut self, entry: &DirEntry) -> Result<(), Error> {
        let name = entry.file_name();
        match name.to_str() {
            Some(folder) if folder == self.version.wal_folder() => self.wal_folder(entry),
            Some(folder) if EMPTIED.contains(&folder) => self.keep_empty(Path::new(folder), entry),
            Some("pg_tblspc") => self.tablespaces(entry),
            _ => self.entry(PathBuf::from(name), entry, &HashSet::new()),
        }
    }

    /// The WAL comes from the archive: only the folders, wherever the WAL folder's link may lead.
    fn wal_folder(&mut self, entry: &DirEntry) -> Result<(), Error> {
        let folder = PathBuf::from(entry.file_name());
        let metadata =
            std::fs::metadata(entry.path()).map_err(|source| Error::read(entry.path(), source))?;
        let mut within = vec![folder.clone(), folder.join("archive_status")];
        if self.version.has_wal_summaries() {
            within.push(folder.join("summaries"));
        }
        self.listing
            .directories
            .extend(within.into_iter().map(|path| Entry::new(path, &metadata)));
        Ok(())
    }

    fn keep_empty(&mut self, path: &Path, entry: &DirEntry) -> Result<(), Error> {
        if let Some(metadata) = present(std::fs::metadata(entry.path()), entry)? {
            self.listing
                .directories
                .push(Entry::new(path.to_owned(), &metadata));
        }
        Ok(())
    }

    /// `pg_tblspc`: links lead to tablespaces; a directory is a tablespace in place.
    fn tablespaces(&mut self, folder: &DirEntry) -> Result<(), Error> {
        self.keep_empty(Path::new("pg_tblspc"), folder)?;
        for entry in sorted_entries(&folder.path())? {
            let name = entry.file_name();
            let path = Path::new("pg_tblspc").join(&name);
            let oid = name.to_str().and_then(|name| name.parse().ok());
            let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
            match oid {
                Some(oid) if is_link => self.tablespace(oid, &path, &entry)?,
                _ => self.entry(path, &entry, &HashSet::new())?,
            }
        }
        Ok(())
    }

    fn tablespace(&mut self, oid: u32, path: &Path, entry: &DirEntry) -> Result<(), Error> {
        let location =
            std::fs::read_link(entry.path()).map_err(|source| Error::read(entry.path(), source))?;
        check_utf8("a tablespace", &location)?;
        // Not a directory of the backup: `tar` would put one in the place of a link that was made for it.
        self.listing.tablespaces.push(Tablespace { oid, location });
        if !self.tablespace_files(path)? {
            self.must_be_dropped(oid, path, entry)?;
        }
        Ok(())
    }

    /// The files of the tablespace at `path`; `false` where there are none.
    fn tablespace_files(&mut self, path: &Path) -> Result<bool, Error> {
        let path = path.join(self.version.tablespace_folder());
        let found = std::fs::metadata(self.pgdata.join(&path));
        let found = found.map_err(|source| Error::read(self.pgdata.join(&path), source));
        let Some(metadata) = vanished_is_none(found)? else {
            return Ok(false);
        };
        let folder = Entry::new(path.clone(), &metadata);
        self.listing.directories.push(folder);
        self.children(&path)?;
        Ok(true)
    }

    /// `DROP TABLESPACE` removes a tablespace's folder just before its link (tablespace.c,
    /// `destroy_tablespace_directories`). Where the link stays, the files are gone, or their file system is not mounted.
    fn must_be_dropped(&mut self, oid: u32, path: &Path, entry: &DirEntry) -> Result<(), Error> {
        let link = entry.path();
        for _ in 0..DROP_LOOKS {
            std::thread::sleep(DROP_PAUSE);
            let link = std::fs::symlink_metadata(&link);
            if vanished_is_none(link.map_err(|source| Error::read(entry.path(), source)))?.is_none()
            {
                self.listing.tablespaces.retain(|known| known.oid != oid);
                return Ok(());
            }
            if self.tablespace_files(path)? {
                return Ok(());
            }
        }
        let location = std::fs::read_link(&link).unwrap_or_default();
        if let Some(folder) = self.folder_of_unknown_catalog(&location) {
            return Err(Error::UnknownCatalog { folder });
        }
        Err(Error::NoTablespace {
            oid,
            link,
            location,
        })
    }

    /// The folder of this version in a tablespace whose catalog number is none that is known.
    fn folder_of_unknown_catalog(&self, location: &Path) -> Option<PathBuf> {
        let prefix = self.version.tablespace_folder_prefix();
        let entries = std::fs::read_dir(self.pgdata.join(location))
            .ok()?
            .flatten();
        let mut paths = entries.filter(|entry| {
            let name = entry.file_name();
            name.as_encoded_bytes().starts_with(prefix.as_bytes())
        });
        paths.next().map(|entry| entry.path())
    }

    fn children(&mut self, folder: &Path) -> Result<(), Error> {
        let Some(entries) = vanished_is_none(sorted_entries(&self.pgdata.join(folder)))? else {
            return Ok(());
        };
        let unlogged = unlogged_relations(&entries);
        for entry in entries {
            self.entry(folder.join(entry.file_name()), &entry, &unlogged)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        path: PathBuf,
        entry: &DirEntry,
        unlogged: &HashSet<u32>,
    ) -> Result<(), Error> {
        if is_excluded(&path, &entry.file_name(), unlogged) {
            return Ok(());
        }
        let Some(metadata) = present(entry.metadata(), entry)? else {
            return Ok(());
        };
        let kind = metadata.file_type();
        if kind.is_dir() {
            self.listing
                .directories
                .push(Entry::new(path.clone(), &metadata));
            return self.children(&path);
        }
        if kind.is_file() {
            self.listing.files.push(&Entry::new(path, &metadata));
        } else if kind.is_symlink() && is_data(&path) {
            let (path, target) = (entry.path(), std::fs::read_link(entry.path()));
            let target = target.unwrap_or_default();
            return Err(Error::LinkedData { path, target });
        } else if !kind.is_socket() {
            self.listing.left_out.push(path);
        }
        Ok(())
    }
}

impl Entry {
    fn new(path: PathBuf, metadata: &Metadata) -> Self {
        let relation = RelationFile::of_path(&path);
        Self {
            path,
            size_bytes: metadata.len(),
            mode: metadata.mode() & 0o7777,
            modified: metadata.mtime(),
            relation,
        }
    }
}

/// Whether a base backup leaves out what a server sends at `path`: servers before 11 send more than later ones, and all send
/// what is made anew (`pg_control` and the label are told apart before).
pub fn is_left_out(path: &Path, version: Version) -> bool {
    let name = path.file_name().unwrap_or_default();
    let first = path.iter().next().and_then(|first| first.to_str());
    let depth = path.components().count();
    let is_below = |folder: &str| depth > 1 && first == Some(folder);
    let is_wal_folders = depth == 2
        && ["archive_status", "summaries"]
            .map(OsStr::new)
            .contains(&name);
    is_excluded(path, &name.to_owned(), &HashSet::new())
        || EMPTIED.iter().any(|folder| is_below(folder))
        || is_below(version.wal_folder()) && !is_wal_folders
}

fn is_excluded(path: &Path, name: &OsString, unlogged: &HashSet<u32>) -> bool {
    let begins = |prefix: &&str| name.as_encoded_bytes().starts_with(prefix.as_bytes());
    if EXCLUDED_PREFIXES.iter().any(begins) {
        return true;
    }
    let Some(name) = name.to_str() else {
        return false;
    };
    EXCLUDED.contains(&name)
        || path == Path::new(control::PATH)
        || (holds_relations(path) && is_temporary_relation(name))
        || RelationFile::of_path(path)
            .is_some_and(|file| file.fork != Fork::Init && unlogged.contains(&file.files.number))
}

/// Whether a path is one of the cluster's data, without which a server starts and answers wrongly, or not at all.
pub fn is_data(path: &Path) -> bool {
    let first = path.iter().next().and_then(|name| name.to_str());
    first.is_some_and(|first| DATA.contains(&first))
}

/// Relations of a folder that have an init fork: only that fork is backed up.
fn unlogged_relations(entries: &[DirEntry]) -> HashSet<u32> {
    let names = entries
        .iter()
        .filter_map(|entry| entry.file_name().to_str().and_then(parse_name));
    names
        .filter(|(_, fork, _)| *fork == Fork::Init)
        .map(|(number, ..)| number)
        .collect()
}

/// Whether the file's folder is one of a database's (`base/OID`, `pg_tblspc/OID/PG_…/OID`) or `global`.
fn holds_relations(path: &Path) -> bool {
    let parts: Vec<&[u8]> = path.iter().map(OsStrExt::as_bytes).collect();
    matches!(
        parts.as_slice(),
        [b"global", _] | [b"base", _, _] | [b"pg_tblspc", _, _, _, _]
    )
}

/// `t3_16384` and its forks and segments (fd.c, `looks_like_temp_rel_name`).
fn is_temporary_relation(name: &str) -> bool {
    let rest = name.strip_prefix('t').and_then(|rest| rest.split_once('_'));
    rest.is_some_and(|(backend, file)| digits(backend).is_some() && parse_name(file).is_some())
}

fn sorted_entries(folder: &Path) -> Result<Vec<DirEntry>, Error> {
    let entries = std::fs::read_dir(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let mut entries = entries.map_err(|source| Error::read(folder, source))?;
    entries.sort_by_key(DirEntry::file_name);
    // One that is renamed meanwhile may be shown twice (readdir(3)).
    entries.dedup_by_key(|entry| entry.file_name());
    Ok(entries)
}

fn vanished_is_none<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Err(Error::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Ok(None)
        }
        other => other.map(Some),
    }
}

fn present(
    metadata: std::io::Result<Metadata>,
    entry: &DirEntry,
) -> Result<Option<Metadata>, Error> {
    vanished_is_none(metadata.map_err(|source| Error::read(entry.path(), source)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_relations_are_told_by_their_names() {
        assert!(is_temporary_relation("t3_16384.1"));
        assert!(!is_temporary_relation("table_1"));
    }

    #[test]
    fn only_folders_of_databases_hold_relations() {
        assert!(holds_relations(Path::new("base/5/16384")));
        assert!(holds_relations(Path::new("global/1262")));
        assert!(holds_relations(Path::new(
            "pg_tblspc/16400/PG_17_202406281/5/16384"
        )));
        assert!(!holds_relations(Path::new("pg_xact/0000")));
        assert!(!holds_relations(Path::new("base/5/x/16384")));
    }
}
