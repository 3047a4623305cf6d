//! Restoring over a data directory that is there.
//!
//! ```text
//! proven to be this cluster's? ─▶ pg_control away ─▶ what the backup does not have away ─▶ what differs is written
//! ```
//!
//! From the first step on the directory cannot be started, and says whose it is until it can again, so that a restore that
//! was broken off is taken up.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::process::Pid;
use walhalla_postgres::wal::page_header::{LONG_HEADER_BYTES, PageHeader};
use walhalla_postgres::{SegmentName, SystemIdentifier, TimelineId, WalFileName, control};

use super::Error;
use super::folder::{Folder, Kind};
use super::places::{LINKS, PROOF, Places};
use super::target::shell_bytes;
use crate::contents::chain::Chain;
use crate::pipeline::streams;
use crate::repository::{BackupEntry, Repository, WalListing};
use crate::server::control_file;

/// What a server leaves in its data directory for as long as it runs (miscinit.c, `CreateDataDirLockFile`).
const PID_FILE: &str = "postmaster.pid";
/// Folders of WAL that was moved out of the way, after which it is time to look at them.
const MOST_FOLDERS: u32 = 1000;
/// WAL files that are named one by one when they are moved out of the way.
const MOST_NAMED: usize = 20;

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
    #[error("it belongs to cluster {0}")]
    Other(SystemIdentifier),
    /// A server runs in it.
    #[error("a server runs in it (process {0}, by its postmaster.pid)")]
    Running(i32),
    /// A server may run in it, where this process cannot see it.
    #[error(
        "its postmaster.pid names process {0}, which is not seen from here: a server in another container or on another host \
         looks like this, and so does one that crashed"
    )]
    NotSeen(i32),
    /// A server may run in it.
    #[error("its postmaster.pid cannot be read, or names no process: a server may be starting")]
    PidFile,
}

impl Unproven {
    /// What can be done about it for the directory `pgdata`.
    pub fn hint(&self, pgdata: &Path) -> String {
        let pid_file = pgdata.join(PID_FILE);
        let pid_file = shell_bytes(pid_file.as_os_str().as_bytes());
        let text = match self {
            Self::Nothing | Self::Other(_) => "name another directory".to_owned(),
            Self::Running(process) => format!(
                "stop the server; if process {process} is no PostgreSQL, and no server in another container or on another \
                 host has this directory, remove what one that crashed left there (rm {pid_file}) and restore again"
            ),
            Self::NotSeen(_) | Self::PidFile => format!(
                "if a server runs there, in whatever container or on whatever host has this directory, stop it; only if none \
                 does, remove what one that crashed left there (rm {pid_file}) and restore again"
            ),
        };
        format!("{text}; nothing was written")
    }
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
    let told = control_file::read(pgdata)
        .map(|control| control.system_identifier)
        .ok()
        .or_else(|| broken_off(pgdata));
    match told {
        Some(own) if own == backup.system_identifier => Ok(()),
        Some(other) => Err(refuse(Unproven::Other(other))),
        None => Err(refuse(Unproven::Nothing)),
    }
}

/// The cluster of a restore that was broken off in `pgdata`.
pub(super) fn broken_off(pgdata: &Path) -> Option<SystemIdentifier> {
    let text = std::fs::read_to_string(pgdata.join(PROOF)).ok()?;
    text.lines().next()?.trim().parse().ok()
}

/// Why a `postmaster.pid` says that the directory is in use, if there is one (miscinit.c, `CreateLockFile`). A server in
/// single-user mode has its number there with a minus.
///
/// A number that no process here has shows nothing: the server may run in another container or on another host. Nor does a
/// `pg_control` that says "shut down": a server that starts has not changed it yet, and one that stops still archives.
pub(super) fn in_use(pgdata: &Path) -> Option<Unproven> {
    let text = match std::fs::read_to_string(pgdata.join(PID_FILE)) {
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
    let number = process.as_raw_nonzero().get();
    Some(match rustix::process::test_kill_process(process) {
        Err(rustix::io::Errno::SRCH) => Unproven::NotSeen(number),
        Ok(()) | Err(_) => Unproven::Running(number),
    })
}

/// Says whose the directory and the tablespaces' folders will be, durably.
pub(super) fn leave_proof(places: &Places, backup: &BackupEntry) -> Result<(), Error> {
    let text = format!("{}\n", backup.system_identifier);
    places.data.write(PROOF.as_ref(), text.as_bytes(), 0o600)?;
    let of_tablespace = proof_of_tablespace(&places.data, backup)?;
    for (_, _, folder) in places.tablespaces() {
        folder.write(PROOF.as_ref(), &of_tablespace, 0o600)?;
    }
    Ok(())
}

/// What stands in the folder of a tablespace whose files are being restored. It names the data directory by its path and
/// its number in the file system: a copy of that directory, whose links lead to the same place, has others.
fn proof_of_tablespace(data: &Folder, backup: &BackupEntry) -> Result<Vec<u8>, Error> {
    let path = std::fs::canonicalize(data.path()).map_err(Error::local("look at", data.path()))?;
    let number = data.stat()?.st_ino;
    let mut text = format!("{}\n{number}\n", backup.system_identifier).into_bytes();
    text.extend_from_slice(path.as_os_str().as_bytes());
    text.push(b'\n');
    Ok(text)
}

/// Whether a restore of `data` was broken off that had made this folder of a tablespace, and nobody else has used it since.
pub(super) fn is_proven_tablespace(
    folder: &Folder,
    data: &Folder,
    backup: &BackupEntry,
) -> Result<bool, Error> {
    let found = folder.read(PROOF.as_ref())?;
    Ok(found.is_some_and(|found| proof_of_tablespace(data, backup).is_ok_and(|own| own == found)))
}

/// Takes the word of the tablespaces back, durably: what is in their folders is for PostgreSQL alone.
pub(super) fn take_tablespaces_proof_away(places: &Places) -> Result<(), Error> {
    for (_, _, folder) in places.tablespaces() {
        folder.remove(PROOF.as_ref())?;
        folder.sync("".as_ref())?;
    }
    Ok(())
}

/// Takes the word back: the directory is whole.
pub(super) fn take_proof_away(places: &Places) -> Result<(), Error> {
    places.data.remove(PROOF.as_ref())?;
    places.data.sync("".as_ref())
}

/// Makes the directory one that cannot be started, durably.
pub(super) fn disable(data: &Folder) -> Result<(), Error> {
    let path = Path::new(control::PATH);
    data.remove(path)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    if data.kind(folder)? == Some(Kind::Directory) {
        data.sync(folder)?;
    }
    Ok(())
}

/// Where WAL that is moved out of the way goes.
pub(super) struct Aside {
    /// The folder in which a new one is made.
    pub(super) within: PathBuf,
    /// Its name begins so.
    pub(super) name: String,
}

impl Aside {
    /// The folder of this number.
    pub(super) fn folder(&self, number: u32) -> PathBuf {
        self.within
            .join(format!("{}.walhalla-old-wal.{number}", self.name))
    }
}

/// Moves WAL files of `wal` into a new folder, and names them: they may be nowhere else.
///
/// After [`disable`]: no server ever starts on a directory whose newest WAL was taken away.
pub(super) fn move_aside(
    wal: &Folder,
    names: &[PathBuf],
    aside: &Aside,
) -> Result<Option<PathBuf>, Error> {
    if names.is_empty() {
        return Ok(None);
    }
    let folder = free_folder(wal, aside)?;
    for name in names {
        move_file(wal, name, &folder)?;
    }
    folder.sync("".as_ref())?;
    let mut shown: Vec<String> = names
        .iter()
        .map(|name| name.display().to_string())
        .collect();
    let more = shown.len().saturating_sub(MOST_NAMED);
    shown.truncate(MOST_NAMED);
    if more > 0 {
        shown.push(format!("and {more} more"));
    }
    tracing::warn!(
        "{} WAL files that are not in the archive were moved to {} ({}): what was committed last may be in them; if it is \
         not wanted, remove them",
        names.len(),
        folder.path().display(),
        shown.join(", ")
    );
    Ok(Some(folder.path().to_owned()))
}

/// Renames a file into another folder, or copies it there, durably, where that is another file system.
fn move_file(from: &Folder, name: &Path, to: &Folder) -> Result<(), Error> {
    match from.rename_to(name, to, name) {
        Err(Error::Local { source, .. }) if source.kind() == io::ErrorKind::CrossesDevices => {}
        renamed => return renamed,
    }
    let Some(mut content) = from.open_file(name)? else {
        return Ok(());
    };
    let mut copy = to.create(name, 0o600)?;
    let copied = io::copy(&mut content, &mut copy).and_then(|_| copy.sync_all());
    copied.map_err(Error::local("copy", from.path().join(name)))?;
    from.remove(name)
}

/// A new folder for WAL.
fn free_folder(wal: &Folder, aside: &Aside) -> Result<Folder, Error> {
    let within = Folder::open(&aside.within, wal.owner())?;
    for number in 1..MOST_FOLDERS {
        let folder = aside.folder(number);
        let name = Path::new(folder.file_name().unwrap_or_default());
        if within.kind(name)?.is_none() {
            return within.make_inside(name);
        }
    }
    Err(Error::NoRoomAside(aside.within.join(&aside.name)))
}

/// Removes what is in a proven data directory and its tablespaces and not among the files of `kept`.
///
/// Of a tablespace's place only the folder of this version is looked at. No link is followed: what a link leads to is gone
/// over only where it is one of the `places`.
pub(super) fn remove_others(places: &Places, kept: &Chain) -> Result<u64, Error> {
    let mut folders: HashSet<PathBuf> = HashSet::new();
    for path in kept.paths() {
        for folder in path.ancestors().skip(1) {
            // With a folder, all above it are known.
            if folders.contains(folder) {
                break;
            }
            folders.insert(folder.to_owned());
        }
    }
    let mut sweep = Sweep {
        kept,
        folders,
        removed: 0,
    };
    for name in places.data.names("".as_ref())? {
        let path = PathBuf::from(&name);
        let is_wal_link = places.wal().is_some()
            && name == places.wal_folder()
            && places.data.kind(&path)? == Some(Kind::Link);
        if name == LINKS {
            sweep.links(places)?;
        } else if name != PROOF && !is_wal_link {
            sweep.entry(&places.data, &path, &path)?;
        }
    }
    if let Some((_, folder)) = places.wal() {
        sweep.children(folder, "".as_ref(), Path::new(places.wal_folder()))?;
    }
    for (oid, _, folder) in places.tablespaces() {
        let path = Path::new(LINKS).join(oid.to_string());
        sweep.children(folder, "".as_ref(), &path.join(places.version_folder()))?;
    }
    Ok(sweep.removed)
}

/// WAL files in the WAL folder that exist nowhere else, as far as can be told: the server has not archived them, or the
/// archive does not have them, or has others under their names.
pub(super) fn only_here(
    wal: &Folder,
    backup: &BackupEntry,
    repository: &Repository,
) -> Result<Vec<PathBuf>, Error> {
    let mut only_here = Vec::new();
    let mut archived: HashMap<TimelineId, WalListing> = HashMap::new();
    for name in wal.names("".as_ref())? {
        let path = PathBuf::from(&name);
        let file = name.to_str().map(str::parse::<WalFileName>);
        let Some(Ok(file)) = file else { continue };
        if wal.kind(&path)? != Some(Kind::File) {
            continue;
        }
        let waits = {
            let mut ready = name.clone();
            ready.push(".ready");
            wal.kind(&Path::new("archive_status").join(ready))?
                .is_some()
        };
        let listing = match archived.entry(file.timeline()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(repository.list_wal(file.timeline(), None, &[])?),
        };
        let is_meant = match file {
            // A file that waits to be used again has the name of a segment to come, and an old one's content.
            WalFileName::Segment(segment) => holds_wal_of(wal, &path, segment, backup)?,
            WalFileName::History(_) | WalFileName::Partial(..) | WalFileName::BackupHistory(..) => {
                true
            }
        };
        if waits || is_meant && !is_archived(wal, &path, file, listing, repository)? {
            only_here.push(path);
        }
    }
    Ok(only_here)
}

/// Whether the archive has this very file.
fn is_archived(
    wal: &Folder,
    path: &Path,
    file: WalFileName,
    listing: &WalListing,
    repository: &Repository,
) -> Result<bool, Error> {
    let is_listed = match file {
        WalFileName::Segment(segment) => listing.segments.contains_key(&segment),
        _ => listing.others.iter().any(|(other, _)| *other == file),
    };
    let found = if is_listed {
        repository.find_wal(file)?
    } else {
        None
    };
    let (Some(archived), Some(mut here)) = (found, wal.open_file(path)?) else {
        return Ok(false);
    };
    let own = streams::sha256(&mut here).map_err(Error::local("read", wal.path().join(path)))?;
    match repository.content_sha256(&archived.object()) {
        Ok(sha256) => Ok(sha256 == own),
        Err(error) => {
            tracing::debug!(
                "{} cannot be compared with the archive's: {error}",
                path.display()
            );
            Ok(false)
        }
    }
}

/// Whether a segment's file may hold the WAL of its name: it begins so, or is of a cluster with other segments.
fn holds_wal_of(
    wal: &Folder,
    path: &Path,
    segment: SegmentName,
    backup: &BackupEntry,
) -> Result<bool, Error> {
    let Some(mut file) = wal.open_file(path)? else {
        return Ok(false);
    };
    let size = backup.wal_segment_size;
    if file.metadata().is_ok_and(|it| it.len() != size.bytes()) {
        return Ok(true);
    }
    let mut page = [0; LONG_HEADER_BYTES];
    let is_read = file.read_exact(&mut page).is_ok();
    let header = PageHeader::read(&page).filter(|_| is_read);
    let begin = segment.number(size).map(|number| number.start(size));
    Ok(header.is_some_and(|header| {
        header.magic == backup.postgres_version.wal_page_magic() && Some(header.address) == begin
    }))
}

struct Sweep<'a> {
    kept: &'a Chain<'a>,
    folders: HashSet<PathBuf>,
    removed: u64,
}

impl Sweep<'_> {
    /// Clears what is at `path` of `folder`, which the backup calls `name`.
    fn entry(&mut self, folder: &Folder, path: &Path, name: &Path) -> Result<(), Error> {
        match folder.kind(path)? {
            Some(Kind::Directory) => {
                self.children(folder, path, name)?;
                if self.folders.contains(name) {
                    return Ok(());
                }
                return folder.remove_directory(path);
            }
            Some(Kind::File) if self.kept.holds(name) => return Ok(()),
            Some(Kind::Link) => tracing::warn!(
                "the link {} is removed; what it leads to stays",
                folder.path().join(path).display()
            ),
            Some(Kind::File | Kind::Other) | None => {}
        }
        self.removed += 1;
        folder.remove(path)
    }

    fn children(&mut self, folder: &Folder, path: &Path, name: &Path) -> Result<(), Error> {
        // One that its owner may not write to would keep what is in it.
        folder.make_directory(path)?;
        for child in folder.names(path)? {
            if !(path.as_os_str().is_empty() && child == PROOF) {
                self.entry(folder, &path.join(&child), &name.join(&child))?;
            }
        }
        Ok(())
    }

    fn links(&mut self, places: &Places) -> Result<(), Error> {
        let links = Path::new(LINKS);
        if places.data.kind(links)? != Some(Kind::Directory) {
            return self.entry(&places.data, links, links);
        }
        for name in places.data.names(links)? {
            let path = links.join(&name);
            let Some(target) = places.data.read_link(&path)? else {
                self.entry(&places.data, &path, &path)?;
                continue;
            };
            let oid = name.to_str().and_then(|oid| oid.parse::<u32>().ok());
            if places
                .tablespaces()
                .any(|(own, place, _)| Some(own) == oid && place == target)
            {
                continue;
            }
            tracing::warn!(
                "{} is not a place of the restored cluster; its files are left there",
                target.display()
            );
            places.data.remove(&path)?;
        }
        Ok(())
    }
}

/// Whether the data directory has a link of this tablespace to `place` already.
pub(super) fn leads_to(pgdata: &Path, oid: u32, place: &Path) -> bool {
    let link = pgdata.join(LINKS).join(oid.to_string());
    std::fs::read_link(link).is_ok_and(|target| target == place)
}
