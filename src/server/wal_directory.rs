//! The server's WAL directory, and what it has marked ready in it for its archiver (`pg_wal/archive_status/NAME.ready`; xlogarchive.c, `XLogArchiveNotify`).

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use walhalla_postgres::SegmentName;

/// Names of the WAL directory, below the data directory: before PostgreSQL 10 it was the second.
const WAL_DIRECTORIES: [&str; 2] = ["pg_wal", "pg_xlog"];
const STATUS_DIRECTORY: &str = "archive_status";
const READY: &str = ".ready";

/// The WAL directory of a data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalDirectory(PathBuf);

impl WalDirectory {
    /// That of `pgdata`; `None` where it has none.
    pub fn of(pgdata: &Path) -> Option<Self> {
        let paths = WAL_DIRECTORIES.iter().map(|name| pgdata.join(name));
        { paths.into_iter() }.find(|path| path.is_dir()).map(Self)
    }

    /// Whether the file at `path` stands in it. One that stands elsewhere was handed over in place of the server's own, which
    /// may be ciphertext then.
    pub fn has(&self, path: &Path) -> bool {
        let identity = |path: &Path| {
            let found = fs::metadata(path).ok()?;
            Some((found.dev(), found.ino()))
        };
        let folder = path.parent().and_then(identity);
        folder.is_some() && folder == identity(&self.0)
    }

    /// The file of a segment in it.
    pub fn path(&self, segment: SegmentName) -> PathBuf {
        self.0.join(segment.to_string())
    }

    /// The whole segments that are marked ready, in the order in which the server archives them.
    ///
    /// # Errors
    /// The system's.
    pub fn ready_segments(&self) -> io::Result<Vec<SegmentName>> {
        let mut ready = Vec::new();
        for entry in fs::read_dir(self.0.join(STATUS_DIRECTORY))? {
            let name = entry?.file_name();
            let name = name.to_str().and_then(|name| name.strip_suffix(READY));
            ready.extend(name.and_then(|name| name.parse::<SegmentName>().ok()));
        }
        ready.sort_unstable();
        Ok(ready)
    }

    /// Whether `segment` is still marked ready.
    pub fn is_ready(&self, segment: SegmentName) -> bool {
        let status = self.0.join(STATUS_DIRECTORY);
        status.join(format!("{segment}{READY}")).exists()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_segments_that_are_marked_ready_are_listed_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let status = dir.path().join("pg_wal/archive_status");
        fs::create_dir_all(&status).unwrap();
        for name in [
            "000000020000000000000003.ready",
            "000000010000000000000005.ready",
            "000000010000000000000004.done",
            "000000010000000000000006",
            "000000010000000000000007.partial.ready",
            "000000010000000000000008.00000028.backup.ready",
            "00000002.history.ready",
        ] {
            fs::write(status.join(name), "").unwrap();
        }
        let directory = WalDirectory::of(dir.path()).unwrap();
        let ready = directory.ready_segments().unwrap();
        let names: Vec<String> = ready.iter().map(ToString::to_string).collect();
        assert_eq!(
            names,
            ["000000010000000000000005", "000000020000000000000003"]
        );
        assert!(directory.is_ready(ready[0]));
        assert!(!directory.is_ready("000000010000000000000004".parse().unwrap()));
    }

    #[test]
    fn a_file_elsewhere_is_not_in_the_wal_directory_whatever_its_path_looks_like() {
        let dir = tempfile::tempdir().unwrap();
        let pgdata = dir.path().join("data");
        let real = dir.path().join("wal");
        let other = dir.path().join("other/pg_wal");
        for folder in [&pgdata, &real, &other] {
            fs::create_dir_all(folder).unwrap();
        }
        assert_eq!(WalDirectory::of(&pgdata), None);
        std::os::unix::fs::symlink(&real, pgdata.join("pg_wal")).unwrap();
        let directory = WalDirectory::of(&pgdata).unwrap();
        assert!(directory.has(&pgdata.join("pg_wal/segment")));
        assert!(directory.has(&real.join("segment")));
        assert!(!directory.has(&other.join("segment")));
        assert!(!directory.has(Path::new("segment")));
    }
}
