//! What a restore would do to this host, found out by the restore's own checks. Nothing is written.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Error;
use super::folder::existing;
use super::outside::Outside;
use super::plan::Plan;
use super::run::Destination;
use super::site::Need;
use super::stage;
use crate::contents::chain::Chain;
use crate::repository::Repository;

/// What a restore would do to this host.
#[derive(Clone, Debug, Serialize)]
pub struct Foreseen {
    /// The data directory.
    pub pgdata: PathBuf,
    /// Files of the backup.
    pub files: u64,
    /// Their length.
    pub write_bytes: u64,
    /// Room that staged WAL takes beside them.
    pub staged_bytes: u64,
    /// Room that is needed and there, on each file system.
    pub room: Vec<Room>,
    /// What becomes of a data directory that is there.
    pub update: Option<Update>,
    /// WAL files that exist nowhere else, which would be moved out of the way.
    pub moved_aside: Vec<PathBuf>,
}

/// Room on a file system.
#[derive(Clone, Debug, Serialize)]
pub struct Room {
    /// A directory on it.
    pub path: PathBuf,
    /// Bytes that are needed.
    pub needed_bytes: u64,
    /// Bytes that are free.
    pub free_bytes: u64,
}

/// What becomes of a data directory that is there.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Update {
    /// Files that are there with the right length: they are read, and blocks that differ are written.
    pub compared: Amount,
    /// Files that are missing or have another length.
    pub written: Amount,
    /// Files that the backup does not have.
    pub removed: Amount,
}

/// A number of files, and their length.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Amount {
    /// How many.
    pub files: u64,
    /// How long they are in all.
    pub bytes: u64,
}

impl Amount {
    fn add(&mut self, bytes: u64) {
        self.files += 1;
        self.bytes += bytes;
    }
}

/// Does what [`restore`](super::run::restore) does before it writes.
///
/// # Errors
/// Those with which the restore would refuse.
pub fn foresee(
    repository: &Repository,
    plan: &Plan,
    to: &Destination,
    stage: Option<&Path>,
    outside: &Outside,
) -> Result<Foreseen, Error> {
    let backup = &plan.backup;
    let files = to.open(repository, &plan.chain)?;
    let stage = stage.map(|wanted| stage::choose(wanted, &to.pgdata, backup));
    let staged = stage.transpose()?.map(|stage| Need {
        path: stage.path,
        bytes: plan.stage_bytes(),
        files: plan.staged_files(),
    });
    let staged_bytes = staged.as_ref().map_or(0, |need| need.bytes);
    let ready = to.check(repository, backup, &files, staged.clone(), outside);
    let ready = ready.map_err(Error::before_writing)?;
    let update = ready.site.is_update().then(|| update(&to.pgdata, &files));
    let needs = match &update {
        Some(_) => Vec::new(),
        None => to.needs(&to.places(backup)?, &files),
    };
    Ok(Foreseen {
        pgdata: to.pgdata.clone(),
        files: files.sizes().count() as u64,
        write_bytes: files.size_bytes(),
        staged_bytes,
        room: { needs.into_iter().chain(staged) }
            .filter_map(room)
            .collect(),
        update,
        moved_aside: ready.only_here,
    })
}

fn room(need: Need) -> Option<Room> {
    let facts = rustix::fs::statvfs(existing(&need.path)).ok()?;
    Some(Room {
        path: need.path,
        needed_bytes: need.bytes,
        free_bytes: facts.f_bavail.saturating_mul(facts.f_frsize),
    })
}

/// Compares lengths and names of what is there with the backup's files.
fn update(pgdata: &Path, files: &Chain) -> Update {
    let mut update = Update::default();
    let mut wanted = HashSet::new();
    for (path, size_bytes) in files.sizes() {
        let there = fs::symlink_metadata(pgdata.join(&path)).ok();
        match there.filter(|there| there.is_file() && there.len() == size_bytes) {
            Some(_) => update.compared.add(size_bytes),
            None => update.written.add(size_bytes),
        }
        wanted.insert(path);
    }
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(pgdata.join(&folder)) else {
            continue;
        };
        for entry in entries.filter_map(Result::ok) {
            let path = folder.join(entry.file_name());
            let Ok(there) = entry.metadata() else {
                continue;
            };
            if there.is_dir() {
                folders.push(path);
            } else if there.is_file() && !wanted.contains(&path) {
                update.removed.add(there.size());
            }
        }
    }
    update
}
