//! Restoring over a data directory that is there.
//!
//! ```text
//! proven to be this cluster's? ─▶ pg_control away ─▶ what the backup does not have away ─▶ what differs is written
//! ```
//!
//! From the first step on the directory cannot be started, and says whose it is until it can again, so that a restore that
//! was broken off is taken up.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::Error;
use super::unpack::sync_directory;
use crate::postgres::{ControlFile, SegmentName, SystemIdentifier, control};
use crate::repository::BackupEntry;

/// Names the cluster whose data directory is being made, until it is whole.
const PROOF: &str = "walhalla_restore";
/// Where links to tablespaces are.
const LINKS: &str = "pg_tblspc";

/// What a restore does with files that are there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Existing {
    /// It refuses.
    #[default]
    Refuse,
    /// It keeps what is as in the backup and replaces the rest, in a directory of the same cluster.
    Update,
}

/// Why a directory is not proven to be the cluster's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unproven {
    /// Nothing tells.
    #[error(
        "it has neither a sound global/pg_control nor {PROOF} of a restore that was broken off"
    )]
    Nothing,
    /// It is another's.
    #[error("it belongs to the cluster {0}")]
    Other(SystemIdentifier),
    /// A server runs in it.
    #[error("a server runs in it (process {0})")]
    Running(i32),
}

/// Makes sure that a directory with files in it belongs to the cluster of `backup`, and that nobody uses it.
///
/// # Errors
/// [`Error::NotThisCluster`].
pub(super) fn prove(pgdata: &Path, backup: &BackupEntry) -> Result<(), Error> {
    let refuse = |reason| Error::NotThisCluster {
        path: pgdata.to_owned(),
        reason,
    };
    if let Some(pid) = running(pgdata) {
        return Err(refuse(Unproven::Running(pid)));
    }
    let told = ControlFile::read(pgdata)
        .map(|control| control.system_identifier)
        .ok()
        .or_else(|| {
            std::fs::read_to_string(pgdata.join(PROOF))
                .ok()?
                .trim()
                .parse()
                .ok()
        });
    match told {
        Some(own) if own == backup.system_identifier => Ok(()),
        Some(other) => Err(refuse(Unproven::Other(other))),
        None => Err(refuse(Unproven::Nothing)),
    }
}

/// The process that a `postmaster.pid` names, if it lives.
fn running(pgdata: &Path) -> Option<i32> {
    let text = std::fs::read_to_string(pgdata.join("postmaster.pid")).ok()?;
    let pid: i32 = text.lines().next()?.trim().parse().ok()?;
    let process = rustix::process::Pid::from_raw(pid)?;
    match rustix::process::test_kill_process(process) {
        Err(rustix::io::Errno::SRCH) => None,
        Ok(()) | Err(_) => Some(pid),
    }
}

/// Says whose the directory will be, durably.
pub(super) fn leave_proof(pgdata: &Path, backup: &BackupEntry) -> Result<(), Error> {
    let path = pgdata.join(PROOF);
    let written = File::create(&path).and_then(|mut file| {
        writeln!(file, "{}", backup.system_identifier)?;
        file.sync_all()
    });
    written.map_err(Error::local("write", &path))?;
    sync_directory(pgdata)
}

/// Takes the word back: the directory is whole.
pub(super) fn take_proof_away(pgdata: &Path) -> Result<(), Error> {
    remove(&pgdata.join(PROOF))?;
    sync_directory(pgdata)
}

/// Makes the directory one that cannot be started, durably.
pub(super) fn disable(pgdata: &Path) -> Result<(), Error> {
    let path = pgdata.join(control::PATH);
    remove(&path)?;
    match path.parent().filter(|folder| folder.is_dir()) {
        Some(folder) => sync_directory(folder),
        None => Ok(()),
    }
}

/// Removes what is in a proven data directory and its tablespaces and not among `kept`, paths below the data directory.
///
/// Links to the tablespaces that `places` names stay where they lead there; of a tablespace's place only the folder of
/// this version is looked at. A link for the WAL folder stays, and the WAL does not.
pub(super) fn remove_others(
    pgdata: &Path,
    backup: &BackupEntry,
    kept: &HashSet<PathBuf>,
    places: &BTreeMap<u32, PathBuf>,
) -> Result<u64, Error> {
    let mut folders: HashSet<&Path> = HashSet::new();
    for path in kept {
        folders.extend(path.ancestors().skip(1));
    }
    let mut sweep = Sweep {
        pgdata,
        kept,
        folders,
        removed: 0,
    };
    for name in names(pgdata)? {
        let path = PathBuf::from(&name);
        let is_wal = name == backup.postgres_version.wal_folder();
        if is_wal {
            warn_of_wal(&pgdata.join(&path))?;
        }
        if name == LINKS {
            sweep.links(backup, places)?;
        } else if name != PROOF {
            let is_link = pgdata.join(&path).is_symlink();
            sweep.entry(&path, is_wal && is_link)?;
        }
    }
    Ok(sweep.removed)
}

/// The server's own WAL may be more than was archived.
fn warn_of_wal(folder: &Path) -> Result<(), Error> {
    let names = names(folder)?;
    let segments = names.iter().filter_map(|name| name.to_str());
    let newest = segments
        .filter(|name| name.parse::<SegmentName>().is_ok())
        .max();
    if let Some(newest) = newest {
        tracing::warn!(
            "the WAL in {} is removed, up to {newest}: what of it was not archived is lost",
            folder.display()
        );
    }
    Ok(())
}

struct Sweep<'a> {
    pgdata: &'a Path,
    kept: &'a HashSet<PathBuf>,
    folders: HashSet<&'a Path>,
    removed: u64,
}

impl Sweep<'_> {
    /// Clears a file or a folder; a link is followed only when the folder that it leads to is the data directory's own.
    fn entry(&mut self, path: &Path, is_own_link: bool) -> Result<(), Error> {
        let full = self.pgdata.join(path);
        let is_folder = full.is_dir() && (is_own_link || !full.is_symlink());
        if !is_folder {
            if self.kept.contains(path) && !full.is_symlink() {
                return Ok(());
            }
            self.removed += 1;
            return remove(&full);
        }
        for name in names(&full)? {
            self.entry(&path.join(name), false)?;
        }
        if self.folders.contains(path) || is_own_link {
            return Ok(());
        }
        std::fs::remove_dir(&full).map_err(Error::local("remove", full))
    }

    fn links(
        &mut self,
        backup: &BackupEntry,
        places: &BTreeMap<u32, PathBuf>,
    ) -> Result<(), Error> {
        let links = Path::new(LINKS);
        for name in names(&self.pgdata.join(links))? {
            let path = links.join(&name);
            let full = self.pgdata.join(&path);
            let place = name.to_str().and_then(|oid| places.get(&oid.parse().ok()?));
            let target = std::fs::read_link(&full).ok();
            let folder = path.join(backup.postgres_version.tablespace_folder());
            match target {
                None => self.entry(&path, false)?,
                Some(target) if Some(&target) == place => {
                    if self.pgdata.join(&folder).is_dir() {
                        self.entry(&folder, true)?;
                    }
                }
                Some(target) => {
                    tracing::warn!(
                        "{} is not a place of the restored cluster; its files are left there",
                        target.display()
                    );
                    remove(&full)?;
                }
            }
        }
        Ok(())
    }
}

/// Whether the data directory has a link of this tablespace to `place` already.
pub(super) fn leads_to(pgdata: &Path, oid: u32, place: &Path) -> bool {
    let link = pgdata.join(LINKS).join(oid.to_string());
    std::fs::read_link(link).is_ok_and(|target| target == place)
}

fn names(folder: &Path) -> Result<Vec<std::ffi::OsString>, Error> {
    let entries = std::fs::read_dir(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let entries = entries.map_err(Error::local("read", folder))?;
    Ok(entries.iter().map(std::fs::DirEntry::file_name).collect())
}

fn remove(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(Error::local("remove", path)),
    }
}
