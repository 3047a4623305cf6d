//! What a deletion takes, sealed: decided once, and then carried out as it is.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::Timestamp;
use serde::Serialize;
use walhalla_postgres::{SegmentName, TimelineId};
use walhalla_providers::{ObjectInfo, ObjectKey, Retained, UnfinishedUpload};

use super::amounts::{Both, Totals};
use super::decide::{Decision, Extent, Fate, Request};
use super::survey::{ListedWal, Survey, WalKind, wal_of};
use crate::repository::layout::{DroppedSegments, Key};
use crate::repository::ranges::{Range, Ranges};
use crate::repository::{BackupEntry, BackupId, BackupKind};

/// A deletion that can be carried out.
#[derive(Debug)]
pub struct Plan {
    /// What was asked for.
    pub request: Request,
    /// When it was made, by the store's clock. What came later stays.
    pub time: Timestamp,
    /// Every backup, oldest first.
    pub backups: Vec<PlannedBackup>,
    /// Folders of backups that are none: never finished, or left by a deletion that was killed.
    pub leftovers: Vec<BackupId>,
    /// The WAL that stays,
    pub(super) kept: Ranges,
    /// but for this.
    condemned: Ranges,
    /// The WAL that goes, as far as it is there.
    pub(super) wal: Ranges,
    /// Of each timeline the last segment that was seen. What comes later stays.
    last_seen: BTreeMap<TimelineId, SegmentName>,
    /// Summaries of segments that are not archived.
    pub(super) orphans: BTreeSet<SegmentName>,
    /// Marks, claims, gaps, leases and reports that go.
    pub(super) small: Vec<ObjectKey>,
    /// Uploads that were begun and given up.
    pub(super) uploads: Vec<UnfinishedUpload>,
    /// How much goes and stays.
    pub totals: Totals,
    /// What the store keeps of what goes, where it can be known.
    pub retained: Option<Retained>,
    /// From when on every moment can be reached, where the archive has no hole: before and afterwards.
    pub window: (Option<Timestamp>, Option<Timestamp>),
}

/// A backup of a plan.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedBackup {
    /// The backup.
    pub id: BackupId,
    /// Full or delta.
    pub kind: BackupKind,
    /// What it stands on.
    pub parent: Option<BackupId>,
    /// The timeline.
    pub timeline: u32,
    /// The first moment that it reaches.
    pub reaches_from: Timestamp,
    /// Length of its objects.
    pub stored_bytes: u64,
    /// The first and the last segment of the WAL that makes it consistent.
    #[serde(skip)]
    pub(super) own_wal: (SegmentName, SegmentName),
    /// What happens to it.
    pub fate: Fate,
}

impl Plan {
    /// The plan of a decision.
    pub(super) fn new(request: Request, survey: &Survey, decision: Decision) -> Self {
        let backups: Vec<PlannedBackup> = { survey.catalog.backups().iter().zip(decision.fates) }
            .map(|(entry, fate)| PlannedBackup::new(entry, survey, fate))
            .collect();
        let mut plan = Self {
            time: survey.now,
            leftovers: match request {
                Request::Everything => survey.without_entry().cloned().collect(),
                _ => survey.leftovers(),
            },
            kept: decision.wal,
            condemned: decision.condemned,
            wal: Ranges::default(),
            last_seen: survey.last_seen(),
            orphans: BTreeSet::new(),
            small: Vec::new(),
            uploads: survey.uploads.clone(),
            totals: Totals::default(),
            retained: None,
            window: window(survey, &backups),
            request,
            backups,
        };
        plan.totals.uploads = plan.uploads.len() as u64;
        plan.count_backups(survey);
        plan.find_wal(survey);
        plan.find_summaries(survey);
        plan.find_small(survey);
        plan
    }

    /// The backups that go, those first on which none stands that goes: when some of them are gone, what is left is whole.
    pub fn levels(&self) -> Vec<Vec<BackupId>> {
        let mut left: BTreeMap<&BackupId, Option<&BackupId>> = { self.backups.iter() }
            .filter(|backup| backup.fate.goes())
            .map(|backup| (&backup.id, backup.parent.as_ref()))
            .collect();
        let mut levels = Vec::new();
        while !left.is_empty() {
            let parents: BTreeSet<&BackupId> = left.values().copied().flatten().collect();
            let mut level: Vec<BackupId> = { left.keys() }
                .filter(|id| !parents.contains(*id))
                .map(|id| (*id).clone())
                .collect();
            if level.is_empty() {
                // They stand on each other, and none can be restored.
                level = left.keys().map(|id| (*id).clone()).collect();
            }
            left.retain(|id, _| !level.contains(id));
            levels.push(level);
        }
        levels
    }

    /// Whether an object of WAL, or a summary, goes.
    pub(super) fn takes_wal(
        &self,
        segment: SegmentName,
        kind: WalKind,
        modified: Timestamp,
    ) -> bool {
        let is_orphan = kind == WalKind::Summary && self.orphans.contains(&segment);
        let is_seen = self
            .last_seen
            .get(&segment.timeline)
            .is_some_and(|last| segment <= *last);
        is_seen && modified <= self.time && (is_orphan || !self.keeps(segment))
    }

    fn keeps(&self, segment: SegmentName) -> bool {
        self.kept.has(segment) && !self.condemned.has(segment)
    }

    fn takes_everything(&self) -> bool {
        self.request == Request::Everything
    }

    /// As [`Plan::takes_wal`], by an object's key.
    pub(super) fn takes(&self, key: &Key, info: &ObjectInfo) -> bool {
        wal_of(key).is_some_and(|(segment, kind)| self.takes_wal(segment, kind, info.modified))
    }

    /// Whether no segment goes.
    pub(super) fn takes_no_wal(&self) -> bool {
        self.wal.iter().next().is_none()
    }

    /// The WAL that goes, and that earlier deletions took. What they said and did not take, and stays now, is not among it.
    /// Ranges between which nothing is to stay are one.
    pub(super) fn deleted_wal(&self, survey: &Survey) -> Ranges {
        let earlier = survey.condemned();
        let stays = |segment: &SegmentName| self.keeps(*segment);
        let stays: Vec<SegmentName> = survey.archived.iter().copied().filter(stays).collect();
        let mut deleted = match survey.catalog.backups().first() {
            Some(backup) => earlier.without(&stays, backup.wal_segment_size),
            None => earlier,
        };
        deleted.extend(&self.wal);
        deleted.joined(|first, last| !self.kept.meets(first, Some(last)))
    }

    fn goes(&self) -> BTreeSet<&BackupId> {
        let going = self.backups.iter().filter(|backup| backup.fate.goes());
        going.map(|backup| &backup.id).collect()
    }

    fn count_backups(&mut self, survey: &Survey) {
        let (mut backups, mut leftovers) = (Both::default(), Both::default());
        let goes = self.goes();
        for (id, folder) in &survey.folders {
            let is_backup = survey.catalog.get(id).is_some();
            let total = if is_backup {
                &mut backups
            } else {
                &mut leftovers
            };
            let goes = goes.contains(id) || self.leftovers.contains(id);
            folder
                .lengths
                .values()
                .for_each(|bytes| total.add(goes, *bytes));
        }
        (self.totals.backups, self.totals.leftovers) = (backups, leftovers);
    }

    fn find_wal(&mut self, survey: &Survey) {
        let mut run: Option<(SegmentName, SegmentName)> = None;
        for listed in &survey.wal {
            let goes = self.takes_listed(listed);
            self.totals.wal.add(goes, listed.stored_bytes);
            if listed.kind != WalKind::Segment {
                continue;
            }
            let of_run = run.filter(|(first, last)| {
                let is_next = first.timeline == listed.segment.timeline;
                goes && is_next && !self.kept.meets(*last, Some(listed.segment))
            });
            if let (None, Some((first, last))) = (of_run, run) {
                self.wal.add(first.timeline, Range::through(first, last));
            }
            let first = of_run.map_or(listed.segment, |(first, _)| first);
            run = goes.then_some((first, listed.segment));
        }
        if let Some((first, last)) = run {
            self.wal.add(first.timeline, Range::through(first, last));
        }
        for (_, bytes, _) in &survey.history_files {
            self.totals.wal.add(self.takes_everything(), *bytes);
        }
    }

    /// Summaries of segments that are not archived go where something else tells of the loss: a later segment of the timeline.
    fn find_summaries(&mut self, survey: &Survey) {
        if self.request == Request::Garbage {
            let last: HashMap<TimelineId, SegmentName> = { survey.archived.iter() }
                .map(|segment| (segment.timeline, *segment))
                .collect();
            let is_plain = |segment: &SegmentName| {
                let last = last.get(&segment.timeline);
                !survey.is_archived(*segment) && last.is_some_and(|last| segment < last)
            };
            let segments = survey.summaries.iter().map(|listed| listed.segment);
            self.orphans = segments.filter(is_plain).collect();
        }
        for listed in &survey.summaries {
            let goes = self.takes_listed(listed);
            self.totals.summaries.add(goes, listed.stored_bytes);
            // Of a segment that is lost, and would not be kept.
            let segment = listed.segment;
            if goes && !self.keeps(segment) && !self.wal.has(segment) {
                self.wal
                    .add(segment.timeline, Range::through(segment, segment));
            }
        }
    }

    fn takes_listed(&self, listed: &ListedWal) -> bool {
        self.takes_wal(listed.segment, listed.kind, listed.modified)
    }

    fn find_small(&mut self, survey: &Survey) {
        let old_reports = survey.old_reports();
        for (key, info) in &survey.small {
            let goes = self.takes_everything()
                || match key {
                    Key::Report(kind, id) => old_reports.contains(&(*kind, *id)),
                    _ => self.takes_small(key, info, survey),
                };
            self.totals.small.add(goes, info.size_bytes);
            self.small.extend(goes.then(|| info.key.clone()));
        }
        for key in &survey.leases.spent {
            self.totals.small.add(true, 0);
            self.small.push(key.clone());
        }
    }

    /// Whether a mark, a claim or a gap goes.
    fn takes_small(&self, key: &Key, info: &ObjectInfo, survey: &Survey) -> bool {
        match key {
            Key::Mark(id, _) => self.leaves_nothing_of(std::slice::from_ref(id), info, survey),
            Key::Claim(second) => {
                let ids =
                    [BackupKind::Full, BackupKind::Delta].map(|kind| BackupId::of(second, kind));
                let is_made = ids.iter().any(|id| survey.leases.makes(id));
                !is_made && self.leaves_nothing_of(&ids, info, survey)
            }
            Key::Gap(DroppedSegments { first, last }) => {
                info.modified <= self.time && !self.kept.meets(*first, Some(*last))
            }
            _ => false,
        }
    }

    /// Whether nothing is left of the backup that a mark or a claim is about, whichever of these ids it has.
    fn leaves_nothing_of(&self, ids: &[BackupId], info: &ObjectInfo, survey: &Survey) -> bool {
        let goes = |id: &BackupId| {
            let mut backups = self.backups.iter();
            self.leftovers.contains(id)
                || backups.any(|backup| backup.id == *id && backup.fate.goes())
        };
        let mut with_folder = ids
            .iter()
            .filter(|id| survey.folders.contains_key(id))
            .peekable();
        if with_folder.peek().is_some() {
            return with_folder.all(goes);
        }
        // A deletion was killed after it took the folder.
        ids.iter().any(|id| survey.was_taken(id)) || survey.is_old(info.modified)
    }
}

impl PlannedBackup {
    fn new(entry: &BackupEntry, survey: &Survey, fate: Fate) -> Self {
        let folder = survey.folders.get(&entry.id);
        Self {
            id: entry.id.clone(),
            kind: entry.kind,
            parent: entry.parent.clone(),
            timeline: entry.timeline.number(),
            reaches_from: entry.data_end(),
            stored_bytes: folder.map_or(entry.stored_bytes, super::survey::Folder::stored_bytes),
            own_wal: super::decide::own_wal(entry),
            fate,
        }
    }
}

/// Whether all WAL from the backup on stays.
fn reaches_on(fate: &Fate) -> bool {
    matches!(fate, Fate::Stays(stay) if stay.wal == Extent::Everything)
}

/// From when on every moment can be reached, before the plan and after it.
fn window(survey: &Survey, backups: &[PlannedBackup]) -> (Option<Timestamp>, Option<Timestamp>) {
    let deleted = survey.condemned();
    let entries = survey.catalog.backups().iter();
    let reaches = entries.zip(backups).filter(|(entry, backup)| {
        survey.is_usable(entry) && !deleted.meets(backup.own_wal.0, None)
    });
    let reaches: Vec<&PlannedBackup> = reaches.map(|(_, backup)| backup).collect();
    let before = reaches.iter().map(|backup| backup.reaches_from).min();
    let staying = reaches.iter().filter(|backup| reaches_on(&backup.fate));
    (before, staying.map(|backup| backup.reaches_from).min())
}
