//! Reading `global/pg_control`, and finding the data directory that it makes one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use walhalla_postgres::ControlFile;
use walhalla_postgres::control::{ControlFileDamage, PATH};

use super::Error;

/// Reads the control file of a data directory; tries again for a moment, as the server may be writing it.
///
/// # Errors
/// [`Error::NotADataDirectory`] where there is none, [`Error::Control`] for a damaged one.
pub fn read(pgdata: &Path) -> Result<ControlFile, Error> {
    read_bytes(pgdata).map(|(control, _)| control)
}

/// As [`read`], with the bytes that were checked.
pub fn read_bytes(pgdata: &Path) -> Result<(ControlFile, Vec<u8>), Error> {
    let path = pgdata.join(PATH);
    for _ in 0..20 {
        let bytes = content(&path, pgdata)?;
        match ControlFile::parse(&bytes) {
            Err(ControlFileDamage::Crc) => std::thread::sleep(Duration::from_millis(10)),
            Err(reason) => return Err(Error::Control { path, reason }),
            Ok(control) => return Ok((control, bytes)),
        }
    }
    Err(Error::Control {
        path,
        reason: ControlFileDamage::Crc,
    })
}

/// The data directory that a WAL file handed over by PostgreSQL belongs to.
///
/// PostgreSQL runs `archive_command` and `restore_command` in the data directory and gives `pg_wal/NAME`,
/// so: `given` if there is one, else the directory above `wal_path`'s, else the working directory, else `PGDATA`.
pub fn find_data_directory(given: Option<&Path>, wal_path: &Path) -> Result<PathBuf, Error> {
    if let Some(pgdata) = given {
        return check_data_directory(pgdata.to_owned());
    }
    let beside = wal_path
        .parent()
        .and_then(Path::parent)
        .filter(|above| above.is_absolute())
        .map(Path::to_owned);
    let candidates = [
        beside,
        Some(PathBuf::from(".")),
        std::env::var_os("PGDATA").map(PathBuf::from),
    ];
    let found = candidates
        .into_iter()
        .flatten()
        .find(|dir| dir.join(PATH).exists());
    found.ok_or_else(|| Error::NotADataDirectory {
        path: std::env::current_dir().unwrap_or_default(),
    })
}

fn check_data_directory(path: PathBuf) -> Result<PathBuf, Error> {
    if path.join(PATH).exists() {
        Ok(path)
    } else {
        Err(Error::NotADataDirectory { path })
    }
}

fn content(path: &Path, pgdata: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => Error::NotADataDirectory {
            path: pgdata.to_owned(),
        },
        _ => Error::read(path, source),
    })
}
