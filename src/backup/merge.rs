//! Making a full backup out of a chain, in the store.
//!
//! ```text
//! chain's parts ─▶ each file of the result ─▶ parts of the new backup     one part at a time and thread, nothing on disk
//! ```
//!
//! The new backup is what a restore of the leaf would put in place: it begins and ends where the leaf does. The chain stays.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Error;
use crate::contents::assembly::{Assembly, Facts};
use crate::contents::chain::{Access, Chain, Task};
use crate::contents::relations::Relations;
use crate::contents::tar_part::PartWriter;
use crate::contents::{self, FileError, FileHeader, Owner, Sink, Summed, Taken};
use crate::pipeline::Pipeline;
use crate::progress::{Progress, Show};
use crate::repository::layout::RunId;
use crate::repository::leases::{NeededWal, Needs};
use crate::repository::marks::Permanence;
use crate::repository::owed::Owed;
use crate::repository::{BackupEntry, BackupId, BackupKind, Repository};
use crate::server::data_directory::Tablespace;
use crate::threads::{lock, on_threads};
use crate::wal::mirror::Mirror;

/// How a chain is merged.
pub struct Merge<'a> {
    /// Where the chain is and the new backup goes.
    pub repository: &'a Repository,
    /// Compresses and encrypts the new backup.
    pub pipeline: &'a Pipeline,
    /// The second store, which is owed it when it is made.
    pub mirror: Option<&'a Mirror>,
    /// Whether retention rules keep the new backup, as they keep the last of the chain.
    pub permanence: Permanence,
    /// Parts that are made at a time.
    pub threads: usize,
    /// How progress is shown.
    pub show: Show,
}

impl Merge<'_> {
    /// Makes a full backup of what the last of `chain` stands for. After `Ok` it is in the catalog.
    ///
    /// # Errors
    /// [`Error::NothingToMerge`] for a full backup, [`Error::WouldBeOpen`] for an encrypted chain without recipients, and those of reading the chain and writing the backup; the catalog does
    /// not show one then.
    pub fn run(&self, chain: &[BackupEntry]) -> Result<BackupEntry, Error> {
        let leaf = match chain {
            [] | [_] => return Err(Error::NothingToMerge),
            [.., leaf] => leaf,
        };
        let is_encrypted = |backup: &&BackupEntry| !backup.encrypted_to.is_empty();
        if self.pipeline.recipients().is_empty()
            && let Some(encrypted) = chain.iter().find(is_encrypted)
        {
            return Err(Error::WouldBeOpen(encrypted.id.clone()));
        }
        let size = leaf.wal_segment_size;
        let wal = NeededWal {
            first: size.segment_of(leaf.start_lsn).on(leaf.timeline, size),
            last: None,
        };
        let ids = chain.iter().map(|backup| backup.id.clone()).collect();
        let run = RunId::random();
        let second = self.repository.claim_second_of(leaf.start_time, run)?;
        let id = BackupId::of(&second, BackupKind::Full);
        let needs = Needs {
            makes: Some(id.clone()),
            ..Needs::of("backup-merge", ids, vec![wal])
        };
        let lease = self.repository.guard_as(run, &needs)?.lease;
        let files = Chain::open(self.repository, chain, Access::Stream, &|_| true)?;
        let assembly = Assembly::new(self.repository, self.pipeline, id);
        self.pack(&assembly, &files)?;
        pack_last(&assembly, &files, leaf)?;
        if let Some(missing) = files.missing() {
            return Err(missing.into());
        }
        let relations = Relations::read(self.repository, leaf)?.unwrap_or_default();
        let entry = assembly.finish(Facts::merged_from(leaf, self.permanence), &relations)?;
        if lease.as_ref().is_some_and(|lease| !lease.has_held()) {
            return Err(Error::LeaseLost);
        }
        if let Some(mirror) = self.mirror {
            mirror.owe(self.repository, &Owed::Backup(entry.id.clone()))?;
        }
        self.repository.commit_backup(&entry)?;
        Ok(entry)
    }

    /// Makes all parts but the last, several at a time; the first has the directories and the catalogs, as the leaf's has.
    fn pack(&self, assembly: &Assembly, files: &Chain) -> Result<(), Error> {
        let progress = Progress::new(self.show, "merging", files.size_bytes());
        let first = files.first_task();
        let others = files.tasks().into_iter();
        let others = others.filter(|task| !first.is_some_and(|first| first.is(task)));
        let tasks: Vec<Task> = first.into_iter().chain(others).collect();
        let next = AtomicUsize::new(0);
        let outcome = on_threads(self.threads, &progress, &|| {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(task) = tasks.get(index) else {
                    return Ok::<(), Error>(());
                };
                let part = part(assembly, files, *task, index + 1, &progress)?;
                assembly.end_part(part, index + 1)?;
            }
        });
        progress.finish();
        outcome
    }
}

/// Makes a part out of one of the chain's.
fn part(
    assembly: &Assembly,
    files: &Chain,
    task: Task,
    number: usize,
    progress: &Progress,
) -> Result<PartWriter, Error> {
    let copy = Copy {
        part: Mutex::new(assembly.begin_part(number, Owner::default())?),
        progress,
    };
    files.read(task, &copy)?;
    let part = copy.part.into_inner();
    Ok(part.unwrap_or_else(std::sync::PoisonError::into_inner))
}

/// Makes the last part: the label and `pg_control`.
fn pack_last(assembly: &Assembly, files: &Chain, leaf: &BackupEntry) -> Result<(), Error> {
    let Some(task) = files.last_task() else {
        return Ok(());
    };
    let number = assembly.next_number();
    let silent = Progress::new(Show::Never, "", 0);
    let mut last = part(assembly, files, task, number, &silent)?;
    let map: String = leaf.tablespaces.iter().map(map_line).collect();
    if !map.is_empty() {
        let modified = leaf.stop_time.as_second();
        last.unlisted("tablespace_map", map.as_bytes(), modified)?;
    }
    Ok(assembly.end_part(last, number)?)
}

/// A line of `tablespace_map` (xlog.c, `do_pg_backup_start`).
fn map_line(tablespace: &Tablespace) -> String {
    let location = tablespace.location.to_string_lossy();
    let escaped = location
        .replace('\\', "\\\\")
        .replace('\n', "\\\n")
        .replace('\r', "\\\r");
    format!("{} {escaped}\n", tablespace.oid)
}

/// Takes a part's files over.
struct Copy<'a> {
    part: Mutex<PartWriter>,
    progress: &'a Progress,
}

impl Sink for Copy<'_> {
    type Error = Error;

    fn directory(&self, path: &Path, header: FileHeader) -> Result<(), Error> {
        let mut part = lock(&self.part);
        part.owner = header.owner;
        Ok(part.folder(path, header.mode, header.modified)?)
    }

    fn file(
        &self,
        path: &Path,
        header: FileHeader,
        content: &mut Summed,
    ) -> Result<Taken, FileError<Error>> {
        let mut part = lock(&self.part);
        part.owner = header.owner;
        part.stream(path, header, content)
            .map_err(FileError::into_other)?;
        if self.progress.add(header.size_bytes) {
            Ok(Taken::Content)
        } else {
            Err(FileError::Sink(Error::BrokenOff))
        }
    }

    fn problem(&self, error: contents::Error) -> Result<(), Error> {
        Err(error.into())
    }
}
