//! Restoring over a data directory that is there.
//!
//! ```text
//! proven to be this cluster's? ─▶ pg_control away ─▶ what the backup does not have away ─▶ what differs is written
//! ```
//!
//! From the first step on the directory cannot be started, and says whose it is until it can again, so that a restore that
//! was broken off is taken up.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{DirBuilder, File};
use std::io::{Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::process::Pid;

use super::Error;
use super::unpack::sync_directory;
use crate::postgres::{
    ControlFile, SegmentName, SystemIdentifier, TimelineId, WalFileName, control,
};
use crate::repository::{BackupEntry, Repository, WalListing};
use crate::wal::pages::{LONG_HEADER_BYTES, PageHeader};

/// Names the cluster whose data directory is being made, until it is whole.
const PROOF: &str = "walhalla_restore";
/// Where links to tablespaces are.
const LINKS: &str = "pg_tblspc";
/// Folders of WAL that was moved out of the way, after which it is time to look at them.
const MOST_FOLDERS: u32 = 1000;

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
    #[error("a server runs in it (process {0}, by its postmaster.pid)")]
    Running(i32),
    /// A server may run in it.
    #[error("its postmaster.pid cannot be read")]
    PidFile,
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
    if let Some(reason) = in_use(pgdata) {
        return Err(refuse(reason));
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

/// Why a `postmaster.pid` says that the directory is in use, if it does (miscinit.c, `CreateLockFile`). A server in
/// single-user mode has its number there with a minus.
fn in_use(pgdata: &Path) -> Option<Unproven> {
    let text = match std::fs::read_to_string(pgdata.join("postmaster.pid")) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(_) => return Some(Unproven::PidFile),
    };
    let pid = text
        .lines()
        .next()
        .and_then(|line| line.trim().parse::<i32>().ok());
    let process = pid.and_then(i32::checked_abs).and_then(Pid::from_raw);
    let Some(process) = process else {
        return Some(Unproven::PidFile);
    };
    match rustix::process::test_kill_process(process) {
        Err(rustix::io::Errno::SRCH) => None,
        Ok(()) | Err(_) => Some(Unproven::Running(process.as_raw_nonzero().get())),
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

/// Makes the directory one that cannot be started, durably; then moves the server's own WAL that the archive does not have out
/// of the way and tells where it is: after a crash it may be nowhere else. Returns the folder that it is in, if there is any.
///
/// In this order: no server ever starts on a directory whose newest WAL was taken away.
pub(super) fn disable(
    pgdata: &Path,
    backup: &BackupEntry,
    repository: &Repository,
) -> Result<Option<PathBuf>, Error> {
    let folder = pgdata.join(backup.postgres_version.wal_folder());
    let only_here = only_here(&folder, backup, repository)?;
    let path = pgdata.join(control::PATH);
    remove(&path)?;
    if let Some(folder) = path.parent().filter(|folder| folder.is_dir()) {
        sync_directory(folder)?;
    }
    if only_here.is_empty() {
        return Ok(None);
    }
    let aside = free_folder(&folder, pgdata)?;
    for path in &only_here {
        let to = aside.join(path.file_name().unwrap_or_default());
        std::fs::rename(path, &to).map_err(Error::local("move", path))?;
    }
    sync_directory(&aside)?;
    sync_directory(aside.parent().unwrap_or(pgdata))?;
    tracing::warn!(
        "{} WAL files that are not in the archive were moved to {}: what was committed last may be in them; if it is not \
         wanted, remove them",
        only_here.len(),
        aside.display()
    );
    Ok(Some(aside))
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
        if name == LINKS {
            sweep.links(backup, places)?;
        } else if name != PROOF {
            let is_link = pgdata.join(&path).is_symlink();
            sweep.entry(&path, is_wal && is_link)?;
        }
    }
    Ok(sweep.removed)
}

/// Segments and histories in the WAL folder that the archive does not have.
fn only_here(
    folder: &Path,
    backup: &BackupEntry,
    repository: &Repository,
) -> Result<Vec<PathBuf>, Error> {
    let mut only_here = Vec::new();
    if !folder.is_dir() {
        return Ok(only_here);
    }
    let mut archived: HashMap<TimelineId, WalListing> = HashMap::new();
    for name in names(folder)? {
        let file = name.to_str().map(str::parse::<WalFileName>);
        let Some(Ok(file)) = file else { continue };
        let listing = match archived.entry(file.timeline()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(repository.list_wal(file.timeline(), None)?),
        };
        let path = folder.join(&name);
        let is_only_here = match file {
            WalFileName::Segment(segment) => {
                !listing.segments.contains_key(&segment) && holds_wal_of(&path, segment, backup)
            }
            WalFileName::History(_) | WalFileName::Partial(_) | WalFileName::BackupHistory(..) => {
                !listing.others.iter().any(|(other, _)| *other == file)
            }
        };
        if is_only_here {
            only_here.push(path);
        }
    }
    Ok(only_here)
}

/// Whether a segment's file begins with the WAL of its name: one that waits to be used again has another's.
fn holds_wal_of(path: &Path, segment: SegmentName, backup: &BackupEntry) -> bool {
    let mut page = [0; LONG_HEADER_BYTES];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut page));
    let header = read.ok().and_then(|()| PageHeader::read(&page));
    let size = backup.wal_segment_size;
    let begin = segment.number(size).map(|number| number.start(size));
    header.is_some_and(|header| {
        header.magic == backup.postgres_version.wal_page_magic() && Some(header.address) == begin
    })
}

/// A new folder for WAL, on the file system where that is: beside the data directory, or where the WAL folder's link leads.
fn free_folder(folder: &Path, pgdata: &Path) -> Result<PathBuf, Error> {
    let beside = if folder.is_symlink() {
        std::fs::canonicalize(folder).map_err(Error::local("look at", folder))?
    } else {
        pgdata.to_owned()
    };
    let name = beside
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    for number in 1..MOST_FOLDERS {
        let aside = beside.with_file_name(format!("{name}.walhalla-old-wal.{number}"));
        match DirBuilder::new().mode(0o700).create(&aside) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            created => {
                return created
                    .map(|()| aside.clone())
                    .map_err(Error::local("create the directory", aside));
            }
        }
    }
    Err(Error::NotEmpty(beside))
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
            if full.is_symlink() {
                tracing::warn!(
                    "the link {} is removed; what it leads to stays",
                    full.display()
                );
            }
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
