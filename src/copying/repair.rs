//! What one of two stores has and the other lacks, and filling such holes.
//!
//! ```text
//! names of both ─▶ what either lacks ─▶ read whole, with all checks ─▶ sent as it is ─▶ read back
//! ```
//!
//! What a deletion took from either store is not lacking.

use std::collections::BTreeSet;

use serde::Serialize;
use walhalla_postgres::wal::Mismatch;
use walhalla_postgres::{History, WalFileName};

use super::archives::{Archives, Files, segment_of};
use super::mirror::Following;
use super::order::Place;
use super::select::{Extent, Which};
use super::sending::{Sending, Sent};
use super::{Error, REQUEST};
use crate::failure::Failure as _;
use crate::output;
use crate::pipeline::StoredHash;
use crate::progress::Progress;
use crate::repository::owed::Owed;
use crate::repository::ranges::Ranges;
use crate::repository::{ArchivedFile, BackupEntry, BackupId, Catalog, Repository};
use crate::wal::segment::ArchivedSegment;
use crate::{repository, wal};

/// Of so many files it is asked once more whether they are lacking: more than a server pushes during a listing.
const MOST_ASKED_AGAIN: usize = 1000;

/// What each of two stores lacks of the other.
#[derive(Debug, Default, Serialize)]
pub struct Difference {
    /// What the second store is owed: files of WAL and ids of backups.
    pub owed: Vec<String>,
    /// What the first store lacks.
    pub first_lacks: Vec<String>,
    /// What the second store lacks and is not owed.
    pub second_lacks: Vec<String>,
}

/// What was filled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Repaired {
    /// Files of WAL.
    pub wal: u64,
    /// Backups.
    pub backups: u64,
    /// Not sent, as they are damaged where they are, or cannot be checked here.
    pub left_out: u64,
}

/// Both stores, as they were listed.
struct Both {
    archives: Archives,
    catalogs: [Catalog; 2],
    /// WAL that deletions took from either.
    deleted: Ranges,
    /// Backups that the deletions took which are recorded.
    deleted_backups: BTreeSet<BackupId>,
}

impl Difference {
    /// Whether both stores have the same, but for what is owed.
    pub fn is_none(&self) -> bool {
        self.first_lacks.is_empty() && self.second_lacks.is_empty()
    }
}

impl Both {
    fn read(first: &Repository, second: &Repository) -> Result<Self, Error> {
        let (mut deleted, mut deleted_backups) = (Ranges::default(), BTreeSet::new());
        let archives = Archives::list(first, second)?;
        let catalogs = [first.catalog()?, second.catalog()?];
        // Read last: what goes while the others are read is not lacking.
        let records = first.deletions()?.into_iter().chain(second.deletions()?);
        // What a copy left out is no deletion.
        for recorded in records.filter(|it| it.record.request != REQUEST) {
            deleted.extend(&recorded.record.wal);
            deleted_backups.extend(recorded.record.backups);
        }
        Ok(Self {
            archives,
            catalogs,
            deleted,
            deleted_backups,
        })
    }

    /// The files of WAL that `one` has and `other` lacks: histories first, then segments in order.
    fn wal<'a>(&self, one: &'a Files, other: &Files) -> Vec<(WalFileName, &'a ArchivedFile)> {
        let is_lacking = |file: WalFileName| {
            let is_deleted = segment_of(file).is_some_and(|segment| self.deleted.has(segment));
            !is_deleted && other.get(file).is_none()
        };
        let mut lacking: Vec<_> = one.named().filter(|(file, _)| is_lacking(*file)).collect();
        lacking.sort_by_key(|(file, _)| segment_of(*file));
        lacking
    }

    /// The usable backups of `one` that `other` lacks, oldest first.
    fn backups(&self, one: &Catalog, other: &Catalog) -> Vec<BackupId> {
        let is_deleted = |backup: &BackupEntry| {
            let size = backup.wal_segment_size;
            let first = size.segment_of(backup.start_lsn).on(backup.timeline, size);
            self.deleted_backups.contains(&backup.id) || self.deleted.has(first)
        };
        let usable = one.usable().into_iter();
        let lacking = usable.filter(|it| other.get(&it.id).is_none() && !is_deleted(it));
        lacking.map(|backup| backup.id).collect()
    }
}

impl Following<'_> {
    /// What each store lacks of the other, by names.
    ///
    /// # Errors
    /// Of either store.
    pub fn difference(&self) -> Result<Difference, Error> {
        let (first, second) = (self.first, &self.mirror.second);
        let both = Both::read(first, second)?;
        let [of_first, of_second] = &both.catalogs;
        let names = |wal: Vec<(WalFileName, &ArchivedFile)>, backups: Vec<BackupId>| {
            let wal = wal.into_iter().map(|(file, _)| Owed::Wal(file));
            let backups = backups.into_iter().map(Owed::Backup);
            wal.chain(backups).collect::<Vec<_>>()
        };
        let Archives { source, copy } = &both.archives;
        let first_lacks = names(both.wal(copy, source), both.backups(of_second, of_first));
        let second_lacks = names(both.wal(source, copy), both.backups(of_first, of_second));
        // Others push all the while.
        let first_lacks = still_lacking(first, first_lacks)?;
        let second_lacks = still_lacking(second, second_lacks)?;
        let debts: Vec<Owed> = { first.debts(self.mirror.id())?.into_iter() }
            .map(|debt| debt.owed)
            .collect();
        let (owed, second_lacks): (Vec<_>, Vec<_>) =
            { second_lacks.into_iter() }.partition(|owed| debts.contains(owed));
        let texts = |owed: Vec<Owed>| owed.iter().map(ToString::to_string).collect();
        Ok(Difference {
            owed: texts(owed),
            first_lacks: texts(first_lacks),
            second_lacks: texts(second_lacks),
        })
    }

    /// Pays what is owed, and gives each store what it lacks of the other, after it was checked.
    ///
    /// # Errors
    /// Of either store. What is damaged is told and left out.
    pub fn repair(&self) -> Result<Repaired, Error> {
        let mut repaired = Repaired::default();
        match self.pay_all() {
            Ok(paid) => repaired.wal = paid,
            Err(error) if error.is_of_a_store() => return Err(error),
            Err(error) => {
                tracing::error!("{}", output::chain(&error));
                repaired.left_out += 1;
            }
        }
        let (first, second) = (self.first, &self.mirror.second);
        let both = Both::read(first, second)?;
        let Archives { source, copy } = &both.archives;
        self.fill(first, second, &both.wal(source, copy), &mut repaired)?;
        self.fill(second, first, &both.wal(copy, source), &mut repaired)?;
        let [of_first, of_second] = &both.catalogs;
        self.fill_backups(
            first,
            second,
            both.backups(of_first, of_second),
            &mut repaired,
        )?;
        self.fill_backups(
            second,
            first,
            both.backups(of_second, of_first),
            &mut repaired,
        )?;
        Ok(repaired)
    }

    fn fill(
        &self,
        from: &Repository,
        to: &Repository,
        lacking: &[(WalFileName, &ArchivedFile)],
        repaired: &mut Repaired,
    ) -> Result<(), Error> {
        let bytes = lacking.iter().map(|(_, archived)| archived.stored_bytes);
        let progress = Progress::new(self.show, "repairing", bytes.sum());
        let sending = Sending {
            source: from,
            copy: to,
            progress: &progress,
            pipeline: None,
        };
        for (file, archived) in lacking {
            let filled = must_be_sound(from, *file, archived).map_err(Error::from);
            match filled.and_then(|()| fill_one(&sending, archived)) {
                Ok(()) => {
                    tracing::info!("{file} was lacking in {}", to.store_url());
                    repaired.wal += 1;
                }
                Err(error) if error.is_of_the_object() || error.is_locked() => {
                    tracing::error!("{file} is not sent: {}", output::chain(&error));
                    repaired.left_out += 1;
                }
                Err(error) => return Err(error),
            }
        }
        progress.finish();
        Ok(())
    }

    fn fill_backups(
        &self,
        from: &Repository,
        to: &Repository,
        lacking: Vec<BackupId>,
        repaired: &mut Repaired,
    ) -> Result<(), Error> {
        if lacking.is_empty() {
            return Ok(());
        }
        let which = Which::Backups(lacking, Extent::Consistency);
        let copied = self.copy(from, to).run(&which)?;
        repaired.backups += copied.backups.copied;
        repaired.left_out += copied.backups.left_out + copied.wal.left_out;
        Ok(())
    }
}

/// Of what a listing did not show, what is still not there.
fn still_lacking(store: &Repository, lacking: Vec<Owed>) -> Result<Vec<Owed>, Error> {
    if lacking.len() > MOST_ASKED_AGAIN {
        return Ok(lacking);
    }
    let mut still = Vec::new();
    for owed in lacking {
        let is_there = match &owed {
            Owed::Wal(file) => store.find_wal(*file)?.is_some(),
            Owed::Backup(id) => store.backup_if_there(id)?.is_some(),
        };
        still.extend((!is_there).then_some(owed));
    }
    Ok(still)
}

fn fill_one(sending: &Sending, archived: &ArchivedFile) -> Result<(), Error> {
    let object = archived.object();
    match sending.as_it_is(&object, StoredHash::default(), &Place::free())? {
        Sent::Now { digest, .. } => sending.read_back(&object, digest),
        Sent::Before => sending.must_be_like(&object, &object),
        Sent::Stopped => Err(Error::BrokenOff),
    }
}

/// That a file of WAL is what its name says, to its last byte.
fn must_be_sound(
    from: &Repository,
    file: WalFileName,
    archived: &ArchivedFile,
) -> Result<(), wal::Error> {
    let name = match file {
        WalFileName::Segment(name) | WalFileName::Partial(name, _) => name,
        WalFileName::History(_) | WalFileName::BackupHistory(..) => {
            let object = archived.object();
            let text = from.read_text(&object)?;
            if walhalla_postgres::wal::reads_as(file, &text) {
                return Ok(());
            }
            let mismatch = Mismatch::Text;
            let object = from.url(&object.key);
            return Err(repository::ObjectError::WalMismatch {
                object,
                file,
                mismatch,
            }
            .into());
        }
    };
    let root = || History::root(name.timeline);
    let history = from.history(name.timeline)?.unwrap_or_else(root);
    let segment = ArchivedSegment {
        repository: from,
        archived,
        name,
        file,
        history: &history,
        cluster: None,
    };
    let mut content = from.open_archived(archived)?;
    let reader = segment.reader(None)?;
    let read = segment.feed(reader, &mut content, |_, _| {}, |_| Ok(()))?;
    match read.unfinished() {
        Some(unfinished) if file == WalFileName::Segment(name) => Err(segment.mismatch(unfinished)),
        Some(_) | None => Ok(()),
    }
}
