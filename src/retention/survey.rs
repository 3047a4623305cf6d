//! What a deletion looks at before it decides: every object of the cluster, by its name, and the entries of its backups.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::{SignedDuration, Timestamp};
use walhalla_postgres::{History, SegmentName, TimelineId, WalFileName};
use walhalla_providers::{ObjectInfo, ObjectKey, UnfinishedUpload};

use super::Error;
use super::decide::{ArchivedTimeline, Candidate, Facts, WalThatGoes};
use crate::archive::Histories;
use crate::repository::deletions::Recorded;
use crate::repository::entry::Place;
use crate::repository::layout::{BackupObject, Key, RunId};
use crate::repository::leases::{Leases, Needs};
use crate::repository::ranges::Ranges;
use crate::repository::reports::{KEPT_OF_A_KIND, ReportId, ReportKind};
use crate::repository::{BackupEntry, BackupId, Catalog, Layout, Repository};

/// How long nothing was added to a backup that was never finished, for it to count as given up, if its lease has ended.
const GIVEN_UP_AFTER_LEASE: SignedDuration = SignedDuration::from_mins(15);
/// The same where no lease tells, as older programs took none; and where only the entry is missing, which may have been lost.
const GIVEN_UP_AFTER: SignedDuration = SignedDuration::from_hours(24);

/// An object of a timeline's WAL, or of a segment's summary. There may be a million of them in memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct ListedWal {
    /// The segment that it is, belongs to, or tells of.
    pub(super) segment: SegmentName,
    pub(super) kind: WalKind,
    pub(super) stored_bytes: u64,
    pub(super) modified: Timestamp,
}

/// What an object of WAL is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WalKind {
    /// A whole segment.
    Segment,
    /// What goes with a segment: a backup history file, a partial segment, a piece of one that was being received.
    Companion,
    /// A segment's summary.
    Summary,
}

/// By which clock things are old.
#[derive(Clone, Copy, Debug)]
pub(super) enum Clock {
    /// The store's, as it is for the lease of a deletion.
    Store(Timestamp, RunId),
    /// This host's, to show what would go.
    Host(Timestamp),
    /// This host's, which may be wrong. What the store received last bounds it.
    HostBounded(Timestamp),
}

/// Everything of a cluster.
pub(super) struct Survey {
    pub(super) catalog: Catalog,
    /// The objects in the folder of each backup, by their names below it, with their lengths.
    pub(super) folders: BTreeMap<BackupId, Folder>,
    /// In order.
    pub(super) wal: Vec<ListedWal>,
    pub(super) summaries: Vec<ListedWal>,
    /// The segments that are archived, in order.
    pub(super) archived: Vec<SegmentName>,
    histories: Histories,
    /// Marks, claims, gaps and reports.
    pub(super) small: Vec<(Key, ObjectInfo)>,
    /// Of processes that died, for all that is known.
    pub(super) uploads: Vec<UnfinishedUpload>,
    pub(super) leases: Leases,
    pub(super) deletions: Vec<Recorded>,
    /// History files of timelines: their lengths, and when the store received them.
    pub(super) history_files: Vec<(TimelineId, u64, Timestamp)>,
    /// Backups without an entry of which the lease has ended.
    without_lease: BTreeSet<BackupId>,
    /// When it was made, by the store's clock.
    pub(super) now: Timestamp,
}

/// What is in a backup's folder.
#[derive(Debug, Default)]
pub(super) struct Folder {
    pub(super) lengths: HashMap<String, u64>,
    newest: Option<Timestamp>,
}

impl Folder {
    pub(super) fn stored_bytes(&self) -> u64 {
        self.lengths.values().sum()
    }
}

impl Survey {
    /// Looks at all of a cluster.
    ///
    /// # Errors
    /// [`Error::Unreadable`] for a backup whose entry cannot be read; what is wrong with a lease or a history; the store's.
    pub(super) fn read(repository: &Repository, clock: Clock) -> Result<Self, Error> {
        match Self::look(repository, clock) {
            // It may have been written after the catalog was read.
            Err(Error::EntryLost(_)) => Self::look(repository, clock),
            looked => looked,
        }
    }

    fn look(repository: &Repository, clock: Clock) -> Result<Self, Error> {
        let deletions = repository.deletions()?;
        let catalog = repository.catalog()?;
        if let Some(damaged) = catalog.damaged.first() {
            let id = damaged.id.clone();
            let source = std::sync::Arc::clone(&damaged.error);
            return Err(Error::Unreadable { id, source });
        }
        let histories = Histories::read(repository, catalog.backups())?;
        let folders = folders(repository, &catalog)?;
        let small = small(repository)?;
        let mut survey = Self {
            catalog,
            folders,
            wal: Vec::new(),
            summaries: Vec::new(),
            archived: Vec::new(),
            histories,
            small,
            uploads: uploads(repository),
            leases: Leases::default(),
            deletions,
            history_files: Vec::new(),
            without_lease: BTreeSet::new(),
            now: Timestamp::MIN,
        };
        survey.list_wal(repository)?;
        survey.at(repository, clock)
    }

    fn list_wal(&mut self, repository: &Repository) -> Result<(), Error> {
        let layout = repository.layout();
        for timeline in timelines(repository, &self.histories)? {
            let borders = repository.borders(ends_of_backups(self.catalog.backups(), timeline));
            // A summary is made of a segment that is archived: listed before, it has its segment among those that are listed after.
            let folder = layout.summary_folder(timeline);
            let summaries = &mut self.summaries;
            repository.read_keys(&folder, &borders, listed_wal, |found| summaries.push(found))?;
            let folder = layout.wal_folder(timeline);
            let (wal, history_files) = (&mut self.wal, &mut self.history_files);
            repository.read_keys(&folder, &borders, in_wal_folder, |found| match found {
                InWalFolder::OfSegment(listed) => wal.push(listed),
                InWalFolder::History(file) => history_files.push(file),
            })?;
        }
        let is_segment =
            |listed: &&ListedWal| listed.kind == WalKind::Segment && listed.stored_bytes > 0;
        let segments = self.wal.iter().filter(is_segment);
        self.archived = segments.map(|listed| listed.segment).collect();
        self.archived.sort_unstable();
        self.archived.dedup();
        Ok(())
    }

    /// When the store received the newest of all objects.
    fn newest(&self) -> Timestamp {
        let of_wal = self.wal.iter().chain(&self.summaries);
        let of_wal = of_wal.map(|listed| listed.modified);
        let of_folders = self.folders.values().filter_map(|folder| folder.newest);
        let of_small = self.small.iter().map(|(_, info)| info.modified);
        let all = of_wal.chain(of_folders).chain(of_small);
        all.fold(Timestamp::MIN, Timestamp::max)
    }

    /// The same with what depends on the time.
    fn at(mut self, repository: &Repository, clock: Clock) -> Result<Self, Error> {
        let (now, own) = match clock {
            Clock::Store(now, own) => (now, Some(own)),
            Clock::Host(now) => (now, None),
            Clock::HostBounded(now) => (now.min(self.newest()), None),
        };
        self.now = now;
        self.leases = repository.leases(now)?;
        self.leases.held.retain(|lease| Some(lease.run) != own);
        self.uploads.retain(|upload| {
            let is_old = now.duration_since(upload.modified) > GIVEN_UP_AFTER;
            is_old && is_nobodys(repository, upload, &self.leases)
        });
        let mut without_lease = BTreeSet::new();
        for id in self.without_entry() {
            let lease = repository.lease_of_claim(&id.second())?;
            let is_held = |run| self.leases.held.iter().any(|lease| lease.run == run);
            if lease.is_some_and(|run| !is_held(run)) {
                without_lease.insert(id.clone());
            }
        }
        self.without_lease = without_lease;
        Ok(self)
    }

    /// What the decision is made from.
    pub(super) fn facts(&self, wal: WalThatGoes) -> Facts<'_> {
        let candidate = |entry| Candidate {
            entry,
            is_usable: self.is_usable(entry),
            is_permanent: self.catalog.is_permanent(&entry.id),
        };
        let mut timelines: BTreeMap<TimelineId, ArchivedTimeline> = BTreeMap::new();
        let of_wal = self
            .wal
            .iter()
            .map(|listed| (listed.segment.timeline, listed.modified));
        // A server that was just promoted has archived no more than its history.
        let of_histories = self
            .history_files
            .iter()
            .map(|(id, _, received)| (*id, *received));
        for (id, received) in of_wal.chain(of_histories) {
            let timeline = timelines.entry(id).or_insert_with(|| ArchivedTimeline {
                history: self.history(id),
                newest: received,
            });
            timeline.newest = timeline.newest.max(received);
        }
        // Where all WAL of a timeline is lost, its summaries still tell of the loss. Nothing went on there.
        for listed in &self.summaries {
            let id = listed.segment.timeline;
            timelines.entry(id).or_insert_with(|| ArchivedTimeline {
                history: self.history(id),
                newest: Timestamp::MIN,
            });
        }
        Facts {
            backups: self.catalog.backups().iter().map(candidate).collect(),
            timelines,
            in_use: self.in_use().cloned().collect(),
            condemned: self.condemned(),
            now: self.now,
            wal,
        }
    }

    /// WAL that earlier deletions said they take.
    pub(super) fn condemned(&self) -> Ranges {
        let mut condemned = Ranges::default();
        for deletion in &self.deletions {
            condemned.extend(&deletion.record.wal);
        }
        condemned
    }

    /// What runs now.
    pub(super) fn in_use(&self) -> impl Iterator<Item = &Needs> {
        self.leases.held.iter().map(|lease| &lease.needs)
    }

    fn history(&self, timeline: TimelineId) -> Option<History> {
        self.histories.known.get(&timeline).cloned()
    }

    /// Whether a segment is archived.
    pub(super) fn is_archived(&self, segment: SegmentName) -> bool {
        self.archived.binary_search(&segment).is_ok()
    }

    /// Whether a backup can be restored, as far as names and lengths tell.
    pub(super) fn is_usable(&self, backup: &BackupEntry) -> bool {
        let size = backup.wal_segment_size;
        let numbers = size.segment_of(backup.start_lsn).0..=size.segment_before(backup.stop_lsn).0;
        let mut own =
            numbers.map(|number| walhalla_postgres::SegmentNo(number).on(backup.timeline, size));
        let chain = self.catalog.chain(&backup.id);
        chain.is_ok_and(|chain| {
            let place = if chain.len() == 1 {
                Place::Alone
            } else {
                Place::InChain
            };
            chain.iter().all(|member| self.is_whole(member, place))
        }) && own.all(|segment| self.is_archived(segment))
    }

    /// Whether every object is there that a restore of the backup takes.
    fn is_whole(&self, backup: &BackupEntry, place: Place) -> bool {
        let Some(folder) = self.folders.get(&backup.id) else {
            return false;
        };
        let mut objects = backup.needed(place);
        objects.all(|object| folder.lengths.get(&object.name) == Some(&object.stored_bytes))
    }

    /// Folders of backups that have no entry.
    pub(super) fn without_entry(&self) -> impl Iterator<Item = &BackupId> {
        self.folders
            .keys()
            .filter(|id| self.catalog.get(id).is_none())
    }

    /// Folders of backups that were never finished, or of which a deletion has left something.
    pub(super) fn leftovers(&self) -> Vec<BackupId> {
        let is_left = |(id, folder): &(&BackupId, &Folder)| {
            let is_taken = self
                .taken(id)
                .is_some_and(|taken| folder.newest <= Some(taken));
            // Nothing but its entry is missing: that may have been lost.
            let is_nearly_whole = folder
                .lengths
                .keys()
                .any(|name| name.starts_with("backup_manifest"));
            let patience = if self.without_lease.contains(id) && !is_nearly_whole {
                GIVEN_UP_AFTER_LEASE
            } else {
                GIVEN_UP_AFTER
            };
            let is_old = folder
                .newest
                .is_some_and(|newest| self.now.duration_since(newest) > patience);
            self.catalog.get(id).is_none() && !self.leases.makes(id) && (is_taken || is_old)
        };
        // What lost its entries may be mended by them.
        let mut backups = self.catalog.backups().iter();
        if !backups.any(|backup| self.is_usable(backup)) {
            return Vec::new();
        }
        { self.folders.iter() }
            .filter(is_left)
            .map(|(id, _)| id.clone())
            .collect()
    }

    /// The reports of each kind that are older than the newest [`KEPT_OF_A_KIND`].
    pub(super) fn old_reports(&self) -> BTreeSet<(ReportKind, ReportId)> {
        let mut of_kind: BTreeMap<ReportKind, Vec<ReportId>> = BTreeMap::new();
        for (key, _) in &self.small {
            if let Key::Report(kind, id) = key {
                of_kind.entry(*kind).or_default().push(*id);
            }
        }
        let old = |(kind, mut ids): (ReportKind, Vec<ReportId>)| {
            ids.sort_unstable_by_key(|id| std::cmp::Reverse(*id));
            ids.into_iter()
                .skip(KEPT_OF_A_KIND)
                .map(move |id| (kind, id))
        };
        of_kind.into_iter().flat_map(old).collect()
    }

    /// Of each timeline the last segment of which there is anything.
    pub(super) fn last_seen(&self) -> BTreeMap<TimelineId, SegmentName> {
        let mut last: BTreeMap<TimelineId, SegmentName> = BTreeMap::new();
        for listed in self.wal.iter().chain(&self.summaries) {
            let known = last
                .entry(listed.segment.timeline)
                .or_insert(listed.segment);
            *known = listed.segment.max(*known);
        }
        last
    }

    /// When a deletion said that it takes a backup, if one did.
    fn taken(&self, id: &BackupId) -> Option<Timestamp> {
        let took =
            |it: &&Recorded| it.record.backups.contains(id) || it.record.unfinished.contains(id);
        self.deletions
            .iter()
            .filter(took)
            .map(|it| it.received)
            .max()
    }

    /// Whether a deletion took the backup and nothing is left of its folder.
    pub(super) fn was_taken(&self, id: &BackupId) -> bool {
        !self.folders.contains_key(id) && self.taken(id).is_some()
    }

    /// Removes the records of earlier deletions, whose words the plan's own record has taken over.
    pub(super) fn forget_earlier(&self, repository: &Repository) -> Result<(), Error> {
        let layout = repository.layout();
        let goes_on = |it: &&Recorded| self.leases.held.iter().any(|lease| lease.run == it.run);
        let ended = self.deletions.iter().filter(|it| !goes_on(it));
        let keys: Vec<_> = ended
            .map(|deletion| layout.key(&Key::Deletion(deletion.run)))
            .collect();
        Ok(repository.remove(&keys)?)
    }

    /// Whether what was made then was given up if it is not finished.
    pub(super) fn is_old(&self, modified: Timestamp) -> bool {
        self.now.duration_since(modified) > GIVEN_UP_AFTER
    }
}

/// The folders of backups.
fn folders(
    repository: &Repository,
    catalog: &Catalog,
) -> Result<BTreeMap<BackupId, Folder>, Error> {
    let mut folders: BTreeMap<BackupId, Folder> = BTreeMap::new();
    let prefix = repository.layout().backups();
    repository.read_keys(&prefix, &[], in_backup, |(id, name, info)| {
        let folder = folders.entry(id).or_default();
        folder.newest = folder.newest.max(Some(info.modified));
        folder.lengths.insert(name, info.size_bytes);
    })?;
    let entry = BackupObject::Entry.to_string();
    let is_lost = |(id, folder): &(&BackupId, &Folder)| {
        folder.lengths.contains_key(&entry) && catalog.get(id).is_none()
    };
    match folders.iter().find(is_lost) {
        Some((id, _)) => Err(Error::EntryLost(id.clone())),
        None => Ok(folders),
    }
}

/// Marks, claims, gaps and reports.
fn small(repository: &Repository) -> Result<Vec<(Key, ObjectInfo)>, Error> {
    let layout = repository.layout();
    let mut small = Vec::new();
    let prefixes = [
        layout.marks(),
        layout.claims(),
        layout.gap_folders(),
        layout.reports(),
    ];
    for prefix in prefixes {
        for info in repository.session().list(&prefix, None)? {
            let key = layout.parse(&info.key);
            if matches!(key, Key::Foreign(_)) && prefix == layout.marks() {
                let reason = "its name is none of this version's";
                return Err(repository.unknown(&info.key, "mark", reason).into());
            }
            small.push((key, info));
        }
    }
    Ok(small)
}

/// Uploads that were neither completed nor dropped. To list them is a right of its own in most stores, and nothing but room
/// depends on it.
fn uploads(repository: &Repository) -> Vec<UnfinishedUpload> {
    let prefix = repository.layout().cluster();
    let found = repository.session().unfinished_uploads(&prefix);
    found.unwrap_or_else(|error| {
        tracing::info!("whether uploads were begun and given up cannot be seen: {error}");
        Vec::new()
    })
}

/// What an object in a backup's folder is.
fn in_backup(layout: &Layout, info: &ObjectInfo) -> Option<(BackupId, String, ObjectInfo)> {
    let (id, name) = layout.in_backup_folder(&info.key)?;
    Some((id, name.to_owned(), info.clone()))
}

/// What an object in a timeline's folder is.
enum InWalFolder {
    OfSegment(ListedWal),
    /// The timeline of a history, its length, and when the store received it.
    History((TimelineId, u64, Timestamp)),
}

fn in_wal_folder(layout: &Layout, info: &ObjectInfo) -> Option<InWalFolder> {
    match layout.parse(&info.key) {
        Key::Wal(WalFileName::History(timeline), _) => Some(InWalFolder::History((
            timeline,
            info.size_bytes,
            info.modified,
        ))),
        _ => listed_wal(layout, info).map(InWalFolder::OfSegment),
    }
}

/// What an object in a folder of WAL or summaries is.
pub(super) fn listed_wal(layout: &Layout, info: &ObjectInfo) -> Option<ListedWal> {
    let (segment, kind) = wal_of(&layout.parse(&info.key))?;
    Some(ListedWal {
        segment,
        kind,
        stored_bytes: info.size_bytes,
        modified: info.modified,
    })
}

/// The segment to which an object belongs that goes with it.
pub(super) fn wal_of(key: &Key) -> Option<(SegmentName, WalKind)> {
    match key {
        Key::Wal(WalFileName::Segment(segment), _) => Some((*segment, WalKind::Segment)),
        Key::Wal(WalFileName::Partial(segment, _) | WalFileName::BackupHistory(segment, _), _) => {
            Some((*segment, WalKind::Companion))
        }
        Key::Tail(tail, _) => Some((tail.segment, WalKind::Companion)),
        Key::Summary(segment, _) => Some((*segment, WalKind::Summary)),
        // A history is small, and tells of timelines that others come from.
        Key::Wal(WalFileName::History(_), _)
        | Key::Backup(..)
        | Key::Claim(_)
        | Key::Mark(..)
        | Key::Gap(_)
        | Key::Lease(..)
        | Key::Deletion(_)
        | Key::Owed(..)
        | Key::Report(..)
        | Key::Foreign(_) => None,
    }
}

/// Whether an upload is Walhalla's own, and of no backup that is being made.
fn is_nobodys(repository: &Repository, upload: &UnfinishedUpload, leases: &Leases) -> bool {
    let Ok(key) = ObjectKey::new(&*upload.key) else {
        // A directory's temporary files have names that are no keys.
        return repository.store_url().starts_with("file:");
    };
    let layout = repository.layout();
    let of_backup = layout.in_backup_folder(&key);
    let is_made = of_backup.is_some_and(|(id, _)| leases.makes(&id));
    !is_made && !matches!(layout.parse(&key), Key::Foreign(_))
}

/// Names that divide the listing of a timeline.
fn ends_of_backups(backups: &[BackupEntry], timeline: TimelineId) -> Vec<SegmentName> {
    let own = backups.iter().filter(|backup| backup.timeline == timeline);
    let ends = own.map(|backup| {
        let size = backup.wal_segment_size;
        size.segment_before(backup.stop_lsn).on(timeline, size)
    });
    let ends: BTreeSet<SegmentName> = ends.collect();
    ends.into_iter().collect()
}

/// Every timeline of which there may be WAL or summaries.
fn timelines(
    repository: &Repository,
    histories: &Histories,
) -> Result<BTreeSet<TimelineId>, Error> {
    let with_summaries = repository
        .session()
        .folders(&repository.layout().summary_folders())?;
    let with_summaries = { with_summaries.iter() }.filter_map(|name| name.parse().ok());
    let known = histories.known.keys().chain(&histories.unknown).copied();
    Ok(known.chain(with_summaries).collect())
}
