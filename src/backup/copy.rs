//! Copying a data directory into tar parts, several at a time.

use std::mem::take;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use walhalla_postgres::Lsn;
use walhalla_postgres::catalogs::{Catalogs, is_map};

use super::Error;
use super::begin::Begun;
use super::extent::{Base, Item, Since};
use super::newest::Newest;
use super::pack::{Packed, Packer, PageRules};
use super::parts::{self, Part};
use super::reading::{Pass, ReadPace, Reading};
use super::request::Backup;
use crate::contents::Owner;
use crate::contents::relations::Relations;
use crate::progress::Progress;
use crate::repository::entry::CorruptBlock;
use crate::server::data_directory::{self, Files, Listing};
use crate::threads::{lock, on_threads};

/// What was seen of the pages.
#[derive(Default)]
pub(super) struct Copied {
    /// Blocks that are damaged.
    pub(super) corrupt_blocks: Vec<CorruptBlock>,
    /// The pages that were changed last, which may turn out to be damaged.
    pub(super) newest: Newest,
    /// Which files of the listing are in the backup; others vanished before they were read.
    stored: Vec<bool>,
}

impl Backup<'_> {
    /// Packs all parts but the last. The first error stops every worker.
    pub(super) fn copy(
        &self,
        begun: &Begun,
        listing: &Listing,
        relations: &Relations,
    ) -> Result<Copied, Error> {
        let delta = begun.delta.as_ref();
        let base = delta.map(|(delta, changed)| Base::new(&delta.parent, relations, changed));
        let since = self.since(begun);
        let parts = self.parts(&listing.files, base.as_ref());
        let total = parts.iter().map(|part| part.size_bytes).sum();
        let progress = Progress::new(self.options.show, "backing up", total);
        let pace = ReadPace::new(self.options.read_rate);
        let reading = Reading {
            progress: &progress,
            pace: &pace,
            pass: Pass::First,
        };
        let (next, copied) = (AtomicUsize::new(0), Mutex::new(Copied::of(&listing.files)));
        let owner = owner_of(self.pgdata)?;
        let rules = PageRules::new(self.control, begun.start_lsn);
        let worker = || -> Result<(), Error> {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(Part { files, .. }) = parts.get(index) else {
                    return Ok(());
                };
                let part = begun.assembly.begin_part(index + 1, owner)?;
                let mut packer = Packer::new(part, rules, since);
                if index == 0 {
                    let mut directories = listing.directories.iter();
                    directories.try_for_each(|directory| packer.part.directory(directory))?;
                }
                // What gives names is always whole.
                let base = base.as_ref().filter(|_| index > 0);
                let mut held = Vec::new();
                for position in files {
                    let Some(file) = listing.files.get(*position as usize) else {
                        continue;
                    };
                    let item = Item::of(file, base);
                    if packer.item(self.pgdata, &item, reading)? == Packed::Stored {
                        held.push(*position);
                    }
                }
                lock(&copied).add(&mut packer, &held);
                if next.load(Ordering::Relaxed) < parts.len() {
                    begun.assembly.end_part(packer.part, index + 1)?;
                } else {
                    // What is left of it in memory takes the place of no other part.
                    begun.assembly.close_part(packer.part, index + 1)?;
                }
            }
        };
        let outcome = on_threads(self.options.threads, &progress, &worker);
        progress.finish();
        outcome?;
        let copied = take(&mut *lock(&copied));
        Ok(copied)
    }

    /// Which pages a delta takes for the parent's.
    fn since(&self, begun: &Begun) -> Since {
        let parent = begun.delta.as_ref().map(|(delta, _)| &delta.parent.entry);
        Since {
            lsn: parent.map_or(Lsn::ZERO, |parent| parent.start_lsn),
            // `pg_checksums` switches them off and on again only while no server runs. 19 can do it while one runs, and
            // gives each page a new LSN when it switches them on.
            checksums: self.control.data_checksums
                && parent.is_none_or(|parent| begun.facts.started < parent.start_time),
        }
    }

    /// Divides files among parts. The first has the directories, and the catalogs that name relations, always whole.
    fn parts(&self, files: &Files, base: Option<&Base>) -> Vec<Part> {
        let mut catalogs = Catalogs::default();
        for file in files.iter().filter(|file| is_map(&file.path)) {
            if let Ok(bytes) = std::fs::read(self.pgdata.join(&file.path)) {
                catalogs.map(&file.path, &bytes);
            }
        }
        let gives_names =
            |file: &data_directory::Entry| is_map(&file.path) || catalogs.of(&file.path).is_some();
        let mut first = Part::default();
        let shares = (0..).zip(files.iter()).filter_map(|(position, file)| {
            let gives_names = gives_names(&file);
            let base = base.filter(|_| !gives_names);
            let share = Item::of(file, base).share(position);
            if gives_names {
                first.add(share);
            }
            (!gives_names).then_some(share)
        });
        let others = parts::divide(shares);
        [first].into_iter().chain(others).collect()
    }
}

impl Copied {
    fn of(files: &Files) -> Self {
        Self {
            stored: vec![false; files.len()],
            ..Self::default()
        }
    }

    fn add(&mut self, packer: &mut Packer, held: &[u32]) {
        self.corrupt_blocks.append(&mut packer.corrupt_blocks);
        self.newest.append(take(&mut packer.newest));
        for position in held {
            if let Some(stored) = self.stored.get_mut(*position as usize) {
                *stored = true;
            }
        }
    }

    /// Whether the file at this position of the listing is in the backup.
    pub(super) fn holds(&self, position: usize) -> bool {
        self.stored.get(position).copied().unwrap_or_default()
    }
}

/// The owner of the data directory.
pub(super) fn owner_of(pgdata: &Path) -> Result<Owner, Error> {
    let metadata = std::fs::metadata(pgdata).map_err(|source| Error::Read {
        path: pgdata.to_owned(),
        source,
    })?;
    Ok(Owner {
        user: metadata.uid(),
        group: metadata.gid(),
    })
}
