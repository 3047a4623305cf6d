//! What the server has marked ready for its archiver (`pg_wal/archive_status/NAME.ready`; xlogarchive.c, `XLogArchiveNotify`).

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use walhalla_postgres::SegmentName;

/// Names of the WAL directory, below the data directory: before PostgreSQL 10 it was the second.
const WAL_DIRECTORIES: [&str; 2] = ["pg_wal", "pg_xlog"];
const STATUS_DIRECTORY: &str = "archive_status";
const READY: &str = ".ready";

/// The directory of the file at `path`, if it is the WAL directory of `pgdata` itself. A file that stands elsewhere is one
/// that was handed over in place of the server's own, which may be ciphertext then.
pub fn own_wal_directory(pgdata: &Path, path: &Path) -> Option<PathBuf> {
    let folder = path.parent()?;
    let identity = |path: &Path| {
        let found = fs::metadata(path).ok()?;
        Some((found.dev(), found.ino()))
    };
    let here = identity(folder)?;
    let is_own = WAL_DIRECTORIES
        .iter()
        .any(|name| identity(&pgdata.join(name)) == Some(here));
    is_own.then(|| folder.to_owned())
}

/// The whole segments in `wal_directory` that are marked ready, in the order in which the server archives them.
///
/// # Errors
/// The system's.
pub fn segments(wal_directory: &Path) -> io::Result<Vec<SegmentName>> {
    let mut ready = Vec::new();
    for entry in fs::read_dir(wal_directory.join(STATUS_DIRECTORY))? {
        let name = entry?.file_name();
        let name = name.to_str().and_then(|name| name.strip_suffix(READY));
        ready.extend(name.and_then(|name| name.parse::<SegmentName>().ok()));
    }
    ready.sort_unstable();
    Ok(ready)
}

/// Whether `segment` is still marked ready.
pub fn is_ready(wal_directory: &Path, segment: SegmentName) -> bool {
    let status = wal_directory.join(STATUS_DIRECTORY);
    status.join(format!("{segment}{READY}")).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_segments_that_are_marked_ready_are_listed_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let status = dir.path().join("archive_status");
        fs::create_dir(&status).unwrap();
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
        let names: Vec<String> = { segments(dir.path()).unwrap() }
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            names,
            ["000000010000000000000005", "000000020000000000000003"]
        );
        assert!(is_ready(
            dir.path(),
            "000000010000000000000005".parse().unwrap()
        ));
        assert!(!is_ready(
            dir.path(),
            "000000010000000000000004".parse().unwrap()
        ));
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
        std::os::unix::fs::symlink(&real, pgdata.join("pg_wal")).unwrap();
        let of = |folder: &Path| own_wal_directory(&pgdata, &folder.join("segment"));
        assert_eq!(of(&pgdata.join("pg_wal")), Some(pgdata.join("pg_wal")));
        assert_eq!(of(&real), Some(real.clone()));
        assert_eq!(of(&other), None);
    }
}
