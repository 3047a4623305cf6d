//! Who uses a directory: what is in it, and which server of this host runs with it.

use std::collections::BTreeSet;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use walhalla_postgres::{SystemIdentifier, Version};

use super::existing;
use crate::server::control_file;

/// A directory that is not empty, and what can be told of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Occupant {
    /// The cluster whose data directory it is, by its `pg_control`.
    pub cluster: Option<(SystemIdentifier, Version)>,
    /// The cluster of a restore that was broken off in it.
    pub unfinished: Option<SystemIdentifier>,
    /// Folders of tablespaces in it, each named for a version.
    pub tablespace_folders: Vec<String>,
    /// The server that runs with it.
    pub server: Option<RunningServer>,
    /// A `postmaster.pid` in it that names no process seen from here, and why that shows nothing.
    pub pid_file: Option<existing::Unproven>,
    /// The tablespace whose place it was to be.
    pub tablespace: Option<u32>,
    /// The cluster that is to be restored into it.
    pub restored: Option<SystemIdentifier>,
}

/// A server that runs on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningServer {
    /// Its process.
    pub process: i32,
    /// Its data directory.
    pub data: PathBuf,
}

impl Occupant {
    /// What can be told of the directory at `path`, which is to be the place of `tablespace` or the data directory.
    pub(super) fn of(path: &Path, tablespace: Option<u32>, restored: SystemIdentifier) -> Self {
        let control = control_file::read(path).ok();
        let names = std::fs::read_dir(path).into_iter().flatten().flatten();
        let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut tablespace_folders: Vec<String> =
            names.filter(|name| name.starts_with("PG_")).collect();
        tablespace_folders.sort();
        if control.is_some() {
            tablespace_folders.clear();
        }
        let (process, pid_file) = match existing::in_use(path) {
            Some(existing::Unproven::Running(process)) => (Some(process), None),
            in_use => (None, in_use),
        };
        let by_pid_file = process.map(|process| RunningServer {
            process,
            data: path.to_owned(),
        });
        let server = running_in(path).or(by_pid_file);
        Self {
            cluster: control.map(|control| (control.system_identifier, control.version)),
            unfinished: existing::broken_off(path),
            tablespace_folders,
            server,
            pid_file,
            tablespace,
            restored: Some(restored),
        }
    }

    /// Whether it is known to be another cluster's.
    fn is_anothers(&self) -> bool {
        let own = { self.cluster.map(|(cluster, _)| cluster) }.or(self.unfinished);
        own.is_some_and(|own| self.restored.is_some_and(|restored| own != restored))
    }

    /// What helps.
    pub(crate) fn hint(&self) -> String {
        let elsewhere = match self.tablespace {
            Some(oid) => {
                format!("--tablespace-map {oid}=DIR puts the tablespace into another directory")
            }
            None if self.server.is_some() || self.pid_file.is_some() => {
                "name another directory, or stop the server and move its directory away (mv)"
                    .to_owned()
            }
            None => "name another directory, or move this one away (mv)".to_owned(),
        };
        let over = match (&self.server, self.tablespace) {
            (None, Some(oid)) if !self.tablespace_folders.is_empty() => format!(
                "; over a data directory whose link leads here, --delta with --tablespace-map {oid}=DIR for this same \
                 directory replaces what is in it"
            ),
            (None, None)
                if !self.is_anothers() && (self.cluster.is_some() || self.unfinished.is_some()) =>
            {
                "; if nothing in it is needed any more, --delta restores over it, and removes everything else in it".to_owned()
            }
            (Some(_) | None, _) => String::new(),
        };
        format!("{elsewhere}{over}; nothing was written")
    }
}

impl fmt::Display for Occupant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.cluster, &self.unfinished) {
            (Some((cluster, version)), _) if self.is_anothers() => write!(
                f,
                "it is a data directory of another cluster than the one to restore ({cluster}, PostgreSQL {version})"
            )?,
            (Some((cluster, version)), _) => write!(
                f,
                "it is a data directory of cluster {cluster}, PostgreSQL {version}"
            )?,
            (None, Some(cluster)) => {
                write!(f, "a restore of cluster {cluster} was broken off in it")?;
            }
            (None, None) if !self.tablespace_folders.is_empty() => write!(
                f,
                "it holds a tablespace ({})",
                self.tablespace_folders.join(", ")
            )?,
            (None, None) => f.write_str("nothing in it tells whose it is")?,
        }
        match (&self.server, &self.pid_file) {
            (Some(server), _) => write!(
                f,
                ", and the server in {} uses it (process {})",
                server.data.display(),
                server.process
            ),
            (None, Some(reason)) => write!(f, ", and {reason}"),
            (None, None) => f.write_str(", and no server of this host is seen to use it"),
        }
    }
}

/// The server of this host that uses the directory at `path`: as its data directory, for its WAL, or for a tablespace.
///
/// Servers that this process may not look at, in other containers or of other users, are not seen.
pub(super) fn running_in(path: &Path) -> Option<RunningServer> {
    let wanted = identity(path)?;
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    numbers
        .filter_map(server_of)
        .find(|server| uses(server.process, wanted))
}

/// A directory, whatever it is called: its device and its number there.
type Identity = (u64, u64);

fn identity(path: &Path) -> Option<Identity> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// The server whose postmaster this process is. A postmaster works in its data directory, and writes its number there.
fn server_of(process: i32) -> Option<RunningServer> {
    let data = PathBuf::from(format!("/proc/{process}/cwd"));
    let pid_file = std::fs::read_to_string(data.join("postmaster.pid")).ok()?;
    let named: i32 = pid_file.lines().next()?.trim().parse().ok()?;
    let own = numbers_of(process);
    own.contains(&named.abs()).then(|| RunningServer {
        process,
        data: std::fs::read_link(&data).unwrap_or(data),
    })
}

/// The numbers that a process has, here and in its container.
fn numbers_of(process: i32) -> BTreeSet<i32> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let names = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let inside = names.unwrap_or_default().split_whitespace();
    let mut numbers: BTreeSet<i32> = inside.filter_map(|number| number.parse().ok()).collect();
    numbers.insert(process);
    numbers
}

fn uses(process: i32, wanted: Identity) -> bool {
    let data = PathBuf::from(format!("/proc/{process}/cwd"));
    let places = std::fs::read_dir(data.join("pg_tblspc"));
    let places = places
        .into_iter()
        .flatten()
        .flatten()
        .map(|link| link.path());
    let own = [data.clone(), data.join("pg_wal"), data.join("pg_xlog")];
    own.into_iter()
        .chain(places)
        .any(|place| identity(&place) == Some(wanted))
}
