//! Debian's settings of a cluster, which are not in its data directory but in `/etc/postgresql/VERSION/NAME`
//! (postgresql-common, `pg_ctlcluster(1)`).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use walhalla_postgres::Version;

use super::site::real_path;
use crate::server::conf::Configuration;

/// Where Debian has the settings of its clusters.
pub const FOLDER: &str = "/etc/postgresql";
/// The file with them.
pub const SETTINGS: &str = "postgresql.conf";
const AUTO_CONF: &str = "postgresql.auto.conf";

/// Settings that Debian has for a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The file.
    pub file: PathBuf,
    /// The name of the cluster that has the data directory; `None` where they are another cluster's.
    pub own_name: Option<String>,
}

/// The settings below `folder` with which a server in `pgdata` can be started: its own, or else the first of its version. `None`
/// where the data directory has settings itself, or there are none.
pub fn settings(folder: &Path, pgdata: &Path, version: Version) -> Option<Found> {
    if pgdata.join(SETTINGS).exists() {
        return None;
    }
    let clusters = std::fs::read_dir(folder.join(version.to_string())).ok()?;
    let mut files: Vec<PathBuf> = { clusters.flatten() }
        .map(|entry| entry.path().join(SETTINGS))
        .filter(|file| file.exists())
        .collect();
    files.sort();
    let own = files.iter().find(|file| names(file, pgdata));
    let file = own.or_else(|| files.first())?.clone();
    let name = |file: &PathBuf| {
        let name = file.parent()?.file_name()?;
        Some(name.to_string_lossy().into_owned())
    };
    let own_name = own.and_then(name);
    Some(Found { file, own_name })
}

/// What a server in `pgdata` reads when it is started on this host.
pub fn configuration(pgdata: &Path, version: Version) -> Configuration {
    match settings(Path::new(FOLDER), pgdata, version) {
        Some(found) => Configuration::of_files(&[found.file, pgdata.join(AUTO_CONF)]),
        None => Configuration::of_cluster(pgdata),
    }
}

/// Whether the settings are those of `pgdata`.
fn names(file: &Path, pgdata: &Path) -> bool {
    let named = Configuration::read(file).ok();
    let named = named.and_then(|settings| Some(settings.get("data_directory")?.to_owned()));
    named.is_some_and(|named| real_path(Path::new(OsStr::from_bytes(&named))) == real_path(pgdata))
}
