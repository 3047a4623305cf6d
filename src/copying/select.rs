//! What is copied, as the catalog and the histories tell it. Nothing here asks a store.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use walhalla_postgres::{SegmentNo, TimelineId};

use crate::archive::Histories;
use crate::archive::inventory::spans;
use crate::repository::leases::NeededWal;
use crate::repository::ranges::{Range, Ranges};
use crate::repository::{BackupEntry, BackupId, Catalog, ChainError};

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// Every backup that can be restored.
    All,
    /// What it takes to reach every moment from then on.
    Since(Timestamp),
    /// These backups.
    Backups(Vec<BackupId>, Extent),
}

/// How much WAL goes with a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// What makes it consistent.
    Consistency,
    /// All from its start on.
    Onward,
}

/// What is copied.
#[derive(Debug, Default)]
pub struct Selection {
    /// Backups, each after the one that it stands on.
    pub backups: Vec<BackupEntry>,
    /// WAL.
    pub wal: Ranges,
    /// Timelines of which the history goes with it.
    pub timelines: BTreeSet<TimelineId>,
}

/// Selects from `catalog`. `newest` tells when the store received the newest segment of each timeline.
///
/// # Errors
/// Of a backup that was named and that cannot be restored.
pub fn select(
    catalog: &Catalog,
    histories: &Histories,
    newest: &BTreeMap<TimelineId, Timestamp>,
    which: &Which,
) -> Result<Selection, ChainError> {
    let mut selection = Selection::default();
    match which {
        Which::Backups(ids, extent) => {
            for id in ids {
                selection.add(catalog, histories, id, *extent)?;
            }
        }
        Which::All => {
            for backup in catalog.usable() {
                selection.add(catalog, histories, &backup.id, Extent::Onward)?;
            }
        }
        Which::Since(time) => {
            let usable = catalog.usable();
            for backup in since(*time, &usable, histories, newest) {
                selection.add(catalog, histories, &backup.id, Extent::Onward)?;
            }
        }
    }
    Ok(selection)
}

/// The backups that end at `time` or later, and of each timeline that went on after it the newest one before; in any case the
/// newest.
fn since<'a>(
    time: Timestamp,
    usable: &'a [BackupEntry],
    histories: &Histories,
    newest: &BTreeMap<TimelineId, Timestamp>,
) -> Vec<&'a BackupEntry> {
    let (before, mut chosen): (Vec<_>, Vec<_>) =
        usable.iter().partition(|backup| backup.data_end() < time);
    let age = |backup: &&BackupEntry| (backup.data_end(), backup.id.clone());
    let went_on = newest.iter().filter(|(_, newest)| **newest >= time);
    for (timeline, _) in went_on {
        let leads = |backup: &&&BackupEntry| match histories.known.get(timeline) {
            Some(history) => backup.leads_to(history),
            // It may come from any lower one.
            None => backup.timeline <= *timeline,
        };
        let leading = before.iter().copied().filter(|backup| leads(&backup));
        chosen.extend(leading.max_by_key(age));
    }
    chosen.extend(usable.iter().max_by_key(age));
    chosen.sort_by(|one, other| one.id.cmp(&other.id));
    chosen.dedup_by(|one, other| one.id == other.id);
    chosen
}

impl Selection {
    /// The WAL, as a lease tells it.
    pub fn needed_wal(&self) -> Vec<NeededWal> {
        let ranges = self.wal.iter();
        ranges
            .filter_map(|(_, range)| {
                let (first, last) = (range.first()?, range.last());
                Some(NeededWal { first, last })
            })
            .collect()
    }

    /// Adds a backup with what it stands on.
    fn add(
        &mut self,
        catalog: &Catalog,
        histories: &Histories,
        id: &BackupId,
        extent: Extent,
    ) -> Result<(), ChainError> {
        for backup in catalog.chain(id)? {
            let extent = if backup.id == *id {
                extent
            } else {
                Extent::Consistency
            };
            self.add_wal(backup, histories, extent);
            if !self.backups.iter().any(|known| known.id == backup.id) {
                self.backups.push(backup.clone());
            }
        }
        Ok(())
    }

    fn add_wal(&mut self, backup: &BackupEntry, histories: &Histories, extent: Extent) {
        let size = backup.wal_segment_size;
        let first = size.segment_of(backup.start_lsn);
        let own = backup.timeline;
        self.timelines.insert(own);
        let ancestors = backup.history.iter().map(|ancestor| ancestor.timeline);
        self.timelines.extend(ancestors);
        let mut need = |timeline: TimelineId, first: SegmentNo, last: Option<SegmentNo>| {
            let first = first.on(timeline, size);
            let last = last.map(|last| last.on(timeline, size));
            self.wal.add(timeline, Range::of(first, last));
            self.timelines.insert(timeline);
        };
        if extent == Extent::Consistency {
            need(own, first, Some(size.segment_before(backup.stop_lsn)));
            return;
        }
        need(own, first, None);
        let led_to = { histories.known.values() }.filter(|history| backup.leads_to(history));
        for (timeline, run) in led_to.flat_map(|history| spans(history, size, first)) {
            let is_open = run.end == SegmentNo(u64::MAX);
            need(timeline, run.first, (!is_open).then(|| run.last()));
        }
        // Where one comes from that nothing tells of, it may be this backup.
        for timeline in histories.unknown.iter().filter(|timeline| **timeline > own) {
            need(*timeline, SegmentNo(0), None);
        }
    }
}
