//! What is archived of a cluster, as the names of objects and the histories tell it. Nothing here asks the store.
//!
//! ```text
//! histories, segments, summaries ─▶ runs along a history ─▶ route of a recovery │ holes
//! ```

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use smallvec::SmallVec;
use walhalla_postgres::{
    History, Lsn, SegmentName, SegmentNo, SegmentSize, TimelineId, WalFileName,
};

use crate::repository::gaps::RecordedGap;
use crate::repository::tails::Tail;
use crate::repository::{ArchivedFile, BackupEntry, Forms, WalListing};

/// What is known of timelines.
#[derive(Clone, Debug, Default)]
pub struct Histories {
    /// Of all timelines that the archive or a backup knows.
    pub known: BTreeMap<TimelineId, History>,
    /// Timelines in the archive of which nothing tells where they come from.
    pub unknown: Vec<TimelineId>,
}

/// An archived segment, by its number on the way of a recovery.
#[derive(Clone, Debug)]
pub struct Needed {
    /// Its number.
    pub number: SegmentNo,
    /// Its name.
    pub name: SegmentName,
    /// Where it is.
    pub archived: ArchivedFile,
}

/// Numbers of segments that follow one another: from `first` to before `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first one.
    pub first: SegmentNo,
    /// The one after the last.
    pub end: SegmentNo,
}

/// Runs in ascending order. Two of them touch only where the first one ends in a tail: nothing goes on behind that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    all: Vec<Run>,
    /// Whether the last one ends although another may follow.
    has_ended: bool,
}

/// What is listed of one timeline's folder, from a segment on.
#[derive(Debug)]
pub struct Listed<T> {
    /// The first segment that was asked for; without one, the listing is whole.
    pub from: Option<SegmentName>,
    /// What there is.
    pub found: Arc<T>,
}

/// A timeline's WAL files.
#[derive(Debug, Default)]
pub struct WalFiles {
    /// Whole segments, in order.
    pub segments: BTreeMap<SegmentName, ArchivedFile>,
    /// Everything else.
    pub others: Vec<(WalFileName, ArchivedFile)>,
    /// Segments in which backups begin, as backup history files tell.
    pub begins_of_backups: BTreeSet<SegmentName>,
    runs: OnceLock<(SegmentSize, Runs)>,
}

/// A timeline's summaries, each in every form in which it is stored.
pub type Summaries = BTreeMap<SegmentName, Forms>;

/// What is archived of a cluster, as far as it was listed. Copies share what they hold.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// Where timelines come from.
    pub histories: Arc<Histories>,
    /// Timelines and positions at which backups ended, so that the segment before was archived once.
    backup_ends: Arc<BTreeMap<TimelineId, BTreeSet<Lsn>>>,
    /// Segments that were dropped.
    pub gaps: Arc<Vec<RecordedGap>>,
    /// WAL files by timeline.
    pub wal: BTreeMap<TimelineId, Listed<WalFiles>>,
    /// Summaries by timeline.
    pub summaries: BTreeMap<TimelineId, Listed<Summaries>>,
}

/// Archived segments that follow one another along a history.
#[derive(Clone, Debug)]
pub struct Stretch {
    inventory: Inventory,
    history: History,
    size: SegmentSize,
    run: Run,
}

impl<T> Clone for Listed<T> {
    fn clone(&self) -> Self {
        Self {
            from: self.from,
            found: Arc::clone(&self.found),
        }
    }
}

impl<T> Listed<T> {
    /// All that there is.
    pub fn whole(found: T) -> Self {
        Self {
            from: None,
            found: Arc::new(found),
        }
    }

    /// What there is from a segment on.
    pub fn since(from: SegmentName, found: T) -> Self {
        Self {
            from: Some(from),
            found: Arc::new(found),
        }
    }

    /// Whether it tells of everything from `from` on.
    pub fn reaches_back_to(&self, from: Option<SegmentName>) -> bool {
        self.from <= from
    }
}

impl From<WalListing> for WalFiles {
    fn from(listing: WalListing) -> Self {
        let begins = listing.others.iter().filter_map(|(file, _)| match file {
            WalFileName::BackupHistory(segment, _) => Some(*segment),
            WalFileName::Segment(_) | WalFileName::Partial(..) | WalFileName::History(_) => None,
        });
        Self {
            begins_of_backups: begins.collect(),
            segments: listing.segments,
            others: listing.others,
            runs: OnceLock::new(),
        }
    }
}

impl WalFiles {
    /// The runs of segments. A tail ends its run.
    fn runs(&self, size: SegmentSize) -> Cow<'_, Runs> {
        let runs = || {
            let mut runs = Runs::default();
            for (name, file) in &self.segments {
                if let Some(number) = name.number(size) {
                    runs.push(Run::through(number, number));
                }
                if file.tail().is_some() {
                    runs.end_here();
                }
            }
            runs
        };
        let (known, kept) = self.runs.get_or_init(|| (size, runs()));
        if *known == size {
            Cow::Borrowed(kept)
        } else {
            // The size was changed (`pg_resetwal --wal-segsize`) between two backups.
            Cow::Owned(runs())
        }
    }

    fn is_tail(&self, segment: SegmentName) -> bool {
        let file = self.segments.get(&segment);
        file.is_some_and(|file| file.tail().is_some())
    }

    /// Every file: segments and the others.
    pub fn all(&self) -> impl Iterator<Item = &ArchivedFile> {
        let others = self.others.iter().map(|(_, file)| file);
        self.segments.values().chain(others)
    }
}

impl Inventory {
    /// An inventory in which nothing is listed yet.
    pub fn new(histories: Histories, backups: &[BackupEntry]) -> Self {
        let mut ends: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for backup in backups {
            let of_timeline = ends.entry(backup.timeline).or_default();
            of_timeline.insert(backup.stop_lsn);
        }
        Self {
            histories: Arc::new(histories),
            backup_ends: Arc::new(ends),
            ..Self::default()
        }
    }

    /// The archived runs along a history from `first` on.
    pub fn runs_along(&self, history: &History, size: SegmentSize, first: SegmentNo) -> Runs {
        let mut along = Runs::default();
        for (timeline, span) in spans(history, size, first) {
            if let Some(listed) = self.wal.get(&timeline) {
                for run in listed.found.runs(size).within(span) {
                    along.push(run);
                    if listed.found.is_tail(run.last().on(timeline, size)) {
                        along.end_here();
                    }
                }
            }
        }
        along
    }

    /// The stretch along a history that begins with `first`; empty where that is not archived.
    pub fn stretch(&self, history: &History, size: SegmentSize, first: SegmentNo) -> Stretch {
        let runs = self.runs_along(history, size, first);
        let run = runs.iter().next().filter(|run| run.first == first);
        self.stretch_of(history, size, run.unwrap_or(Run::empty(first)))
    }

    /// Segments from `first` on that follow one another, on a timeline's own part of its history. A record may run into the
    /// timeline from the segment before it, with which the first stretch therefore begins where that is archived.
    pub fn stretches(
        &self,
        history: &History,
        size: SegmentSize,
        first: SegmentNo,
    ) -> Vec<Stretch> {
        let begin = own_begin(history, size);
        let runs = self.runs_along(history, size, begin.max(first));
        let mut runs: Vec<Run> = runs.iter().collect();
        if let Some(first) = runs.first_mut().filter(|_| first <= begin)
            && let Some(before) = first.first.0.checked_sub(1).map(SegmentNo)
            && self.segment(history.segment_name(before, size)).is_some()
        {
            first.first = before;
        }
        { runs.into_iter() }
            .map(|run| self.stretch_of(history, size, run))
            .collect()
    }

    fn stretch_of(&self, history: &History, size: SegmentSize, run: Run) -> Stretch {
        Stretch {
            inventory: self.clone(),
            history: history.clone(),
            size,
            run,
        }
    }

    /// The last segment along a history, not before `first`, of which something tells that there was one: it is archived, or
    /// its summary is, or a backup history file, a backup or the ledger of gaps tells of it.
    pub fn last_trace(
        &self,
        history: &History,
        size: SegmentSize,
        first: SegmentNo,
    ) -> Option<SegmentNo> {
        let of_span = |(timeline, span): (TimelineId, Run)| {
            let names = span.first.on(timeline, size)..span.end.on(timeline, size);
            let number = |name: &SegmentName| name.number(size);
            let files = self.wal.get(&timeline).map(|listed| &*listed.found);
            let archived = files.and_then(|files| files.runs(size).within(span).last());
            let begins = files.and_then(|files| {
                let mut begins = files.begins_of_backups.range(names.clone()).rev();
                begins.find_map(number)
            });
            let summaries = self.summaries.get(&timeline).and_then(|listed| {
                let mut summaries = listed.found.range(names.clone()).rev();
                summaries.find_map(|(name, _)| number(name))
            });
            let stops = self.backup_ends.get(&timeline).and_then(|stops| {
                let stop = stops.range(..=span.end.start(size)).next_back()?;
                Some(size.segment_before(*stop)).filter(|number| span.contains(*number))
            });
            let dropped = self.gaps.iter().map(|gap| gap.dropped.last);
            let dropped = dropped
                .filter(|last| names.contains(last))
                .filter_map(|last| number(&last));
            [
                archived.map(Run::last),
                begins,
                summaries,
                stops,
                dropped.max(),
            ]
            .into_iter()
            .flatten()
            .max()
        };
        spans(history, size, first).filter_map(of_span).max()
    }

    /// What the ledger of gaps says of a segment that is not archived.
    pub fn why_missing(&self, segment: SegmentName) -> Option<RecordedGap> {
        { self.gaps.iter() }
            .find(|gap| gap.dropped.has(segment))
            .copied()
    }

    /// The segments of a timeline in which backups ended, ascending.
    pub fn backup_ends(&self, timeline: TimelineId, size: SegmentSize) -> Vec<SegmentName> {
        let ends = self.backup_ends.get(&timeline).into_iter().flatten();
        ends.map(|end| size.segment_before(*end).on(timeline, size))
            .collect()
    }

    /// Where a segment is.
    pub fn segment(&self, name: SegmentName) -> Option<&ArchivedFile> {
        self.wal.get(&name.timeline)?.found.segments.get(&name)
    }

    /// The stored forms of a segment's summary.
    pub fn summary(&self, name: SegmentName) -> &[ArchivedFile] {
        let listed = self.summaries.get(&name.timeline);
        let forms = listed.and_then(|listed| listed.found.get(&name));
        forms.map(SmallVec::as_slice).unwrap_or_default()
    }
}

/// Length of a stored summary, of whatever form; 0 where there is none.
pub(super) fn longest(forms: &[ArchivedFile]) -> u64 {
    let lengths = forms.iter().map(|form| form.stored_bytes);
    lengths.max().unwrap_or(0)
}

/// The segment in which a timeline begins.
pub(super) fn own_begin(history: &History, size: SegmentSize) -> SegmentNo {
    let parent = history.ancestors.last();
    parent.map_or(SegmentNo(0), |parent| size.segment_of(parent.switch_lsn))
}

/// The parts of a history from `first` on, oldest first: each with the timeline on which recovery reads its segments.
pub fn spans(
    history: &History,
    size: SegmentSize,
    first: SegmentNo,
) -> impl Iterator<Item = (TimelineId, Run)> {
    let spans = history.segments(size).map(move |(timeline, begin, end)| {
        let run = Run {
            first: begin.max(first),
            end: end.unwrap_or(SegmentNo(u64::MAX)),
        };
        (timeline, run)
    });
    spans.filter(|(_, run)| !run.is_empty())
}

impl Run {
    /// No segment, before `at`.
    pub fn empty(at: SegmentNo) -> Self {
        Self { first: at, end: at }
    }

    /// From `first` to `last`, both included.
    pub fn through(first: SegmentNo, last: SegmentNo) -> Self {
        let end = last.next();
        Self { first, end }
    }

    /// How many there are.
    pub fn len(self) -> u64 {
        self.end.0.saturating_sub(self.first.0)
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.end <= self.first
    }

    /// Its last segment.
    pub fn last(self) -> SegmentNo {
        SegmentNo(self.end.0.saturating_sub(1))
    }

    /// Whether a segment is one of it.
    pub fn contains(self, number: SegmentNo) -> bool {
        self.first <= number && number < self.end
    }

    /// The segments that are in both.
    #[must_use]
    pub fn within(self, other: Self) -> Self {
        Self {
            first: self.first.max(other.first),
            end: self.end.min(other.end),
        }
    }

    /// Its numbers, ascending.
    pub fn numbers(self) -> impl DoubleEndedIterator<Item = SegmentNo> + use<> {
        (self.first.0..self.end.0).map(SegmentNo)
    }
}

impl Runs {
    /// The runs, ascending.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Run> {
        self.all.iter().copied()
    }

    /// The parts of these runs that lie within `span`.
    pub fn within(&self, span: Run) -> impl DoubleEndedIterator<Item = Run> {
        let begin = self.all.partition_point(|run| run.end <= span.first);
        let end = self.all.partition_point(|run| run.first < span.end);
        let touched = self.all.get(begin..end).unwrap_or_default();
        touched.iter().map(move |run| run.within(span))
    }

    /// The run that holds a segment.
    pub fn containing(&self, number: SegmentNo) -> Option<Run> {
        let at = self.all.partition_point(|run| run.end <= number);
        let run = self.all.get(at).copied();
        run.filter(|run| run.contains(number))
    }

    /// Adds a run that begins where the last one ends or later.
    fn push(&mut self, run: Run) {
        let has_ended = std::mem::take(&mut self.has_ended);
        match self.all.last_mut().filter(|_| !has_ended) {
            Some(last) if last.end >= run.first => last.end = last.end.max(run.end),
            _ => self.all.push(run),
        }
    }

    /// Ends the last run: what is added next is another one, even where it touches.
    fn end_here(&mut self) {
        self.has_ended = true;
    }

    /// Adds a segment, wherever it is.
    pub fn insert(&mut self, number: SegmentNo) {
        let at = self.all.partition_point(|run| run.end < number);
        let touched = self.all.get_mut(at);
        match touched.filter(|run| run.first <= number.next()) {
            Some(run) if run.contains(number) => {}
            Some(run) if number < run.first => run.first = number,
            Some(run) => {
                run.end = number.next();
                let end = run.end;
                let joins = |next: &Run| next.first == end;
                if let Some(next) = self.all.get(at + 1).copied().filter(joins) {
                    self.all.remove(at + 1);
                    if let Some(run) = self.all.get_mut(at) {
                        run.end = next.end;
                    }
                }
            }
            None => self.all.insert(at, Run::through(number, number)),
        }
    }

    /// From the first to the last segment.
    pub fn whole(&self) -> Run {
        let first = self.all.first().map_or(SegmentNo(0), |run| run.first);
        let end = self.all.last().map_or(first, |run| run.end);
        Run { first, end }
    }

    /// The parts of `span` that are in none of these runs.
    pub fn holes(&self, span: Run) -> Vec<Run> {
        let mut holes = Vec::new();
        let mut next = span.first;
        for run in self.within(span) {
            let hole = Run {
                first: next,
                end: run.first,
            };
            holes.extend(Some(hole).filter(|hole| !hole.is_empty()));
            next = run.end;
        }
        let rest = Run {
            first: next,
            end: span.end,
        };
        holes.extend(Some(rest).filter(|hole| !hole.is_empty()));
        holes
    }
}

impl FromIterator<SegmentNo> for Runs {
    /// From numbers in ascending order.
    fn from_iter<I: IntoIterator<Item = SegmentNo>>(numbers: I) -> Self {
        let mut runs = Self::default();
        for number in numbers {
            runs.push(Run::through(number, number));
        }
        runs
    }
}

impl Stretch {
    /// The history along which it goes.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Length of its segments.
    pub fn segment_size(&self) -> SegmentSize {
        self.size
    }

    /// The numbers of its segments.
    pub fn run(&self) -> Run {
        self.run
    }

    /// Its part from `first` on.
    #[must_use]
    pub fn since(&self, first: SegmentNo) -> Self {
        let mut part = self.clone();
        part.run.first = first.clamp(self.run.first, self.run.end);
        part
    }

    /// Its part before `end`.
    #[must_use]
    pub fn before(&self, end: SegmentNo) -> Self {
        let mut part = self.clone();
        part.run.end = end.clamp(self.run.first, self.run.end);
        part
    }

    /// Its part up to `last`, included.
    #[must_use]
    pub fn to(&self, last: SegmentNo) -> Self {
        self.before(last.next())
    }

    /// Its segments, each as a stretch of its own.
    pub fn each(&self) -> impl DoubleEndedIterator<Item = Self> {
        self.run
            .numbers()
            .map(|number| self.since(number).to(number))
    }

    /// The name of a segment along the history, whether it is one of the stretch or not.
    pub fn name(&self, number: SegmentNo) -> SegmentName {
        self.history.segment_name(number, self.size)
    }

    /// The segments, in order.
    pub fn segments(&self) -> impl DoubleEndedIterator<Item = Needed> {
        self.run.numbers().filter_map(|number| {
            let name = self.name(number);
            let archived = self.inventory.segment(name)?.clone();
            Some(Needed {
                number,
                name,
                archived,
            })
        })
    }

    /// The last segment, where it is not archived and was received in part.
    pub fn tail(&self) -> Option<&Arc<Tail>> {
        self.inventory.segment(self.last_name()?)?.tail()
    }

    /// Whether its last segment is not whole, and was received so far.
    pub fn ends_in_a_tail(&self) -> bool {
        self.tail().is_some()
    }

    /// The segment that ends it: the one after the last, or a tail, which is its last one and not whole.
    pub fn missing(&self) -> SegmentName {
        let end = if self.ends_in_a_tail() {
            self.run.last()
        } else {
            self.run.end
        };
        self.name(end)
    }

    /// The last segment's name.
    pub fn last_name(&self) -> Option<SegmentName> {
        (!self.run.is_empty()).then(|| self.name(self.run.last()))
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use walhalla_postgres::SystemIdentifier;
    use walhalla_providers::ObjectInfo;

    use super::*;
    use crate::pipeline::Packing;
    use crate::repository::Layout;
    use crate::repository::layout::DroppedSegments;

    const SIZE: SegmentSize = SegmentSize::DEFAULT;

    fn timeline(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    fn numbers(list: &[u64]) -> Runs {
        list.iter().copied().map(SegmentNo).collect()
    }

    fn pairs(runs: impl IntoIterator<Item = Run>) -> Vec<(u64, u64)> {
        let pair = |run: Run| (run.first.0, run.last().0);
        runs.into_iter().map(pair).collect()
    }

    fn span(first: u64, last: u64) -> Run {
        Run::through(SegmentNo(first), SegmentNo(last))
    }

    /// Timeline 1 has 3 to 6, timeline 2, which left it in segment 5, has 5 to 7 and 9.
    fn two_timelines() -> (Inventory, History) {
        let identifier = "7710533931497189584".parse::<SystemIdentifier>().unwrap();
        let layout = Layout::new(identifier);
        let files = |of: u32, list: &[u64]| {
            let names = { list.iter() }.map(|number| SegmentNo(*number).on(timeline(of), SIZE));
            let archived = |name| {
                let info = ObjectInfo {
                    key: layout.wal(WalFileName::Segment(name), Packing::NONE).key,
                    size_bytes: 1,
                    modified: Timestamp::UNIX_EPOCH,
                    token: None,
                };
                ArchivedFile::of(&layout, &info).unwrap()
            };
            Listed::whole(WalFiles {
                segments: names.map(|name| (name, archived(name))).collect(),
                ..WalFiles::default()
            })
        };
        let text = format!("1\t{}\tno recovery target\n", Lsn(SIZE.bytes() * 5 + 9000));
        let history = History::parse(timeline(2), text.as_bytes()).unwrap();
        let wal = [
            (timeline(1), files(1, &[3, 4, 5, 6])),
            (timeline(2), files(2, &[5, 6, 7, 9])),
        ];
        let inventory = Inventory {
            wal: wal.into(),
            ..Inventory::default()
        };
        (inventory, history)
    }

    #[test]
    fn holes_are_found_at_the_beginning_between_and_at_the_end() {
        let holes = |list: &[u64]| pairs(numbers(list).holes(span(3, 9)));
        assert_eq!(holes(&[3, 4, 5, 6, 7, 8, 9]), []);
        assert_eq!(holes(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 12]), []);
        assert_eq!(holes(&[4, 5, 8]), [(3, 3), (6, 7), (9, 9)]);
        assert_eq!(holes(&[]), [(3, 9)]);
    }

    #[test]
    fn numbers_become_runs_in_whatever_order_they_come() {
        let mut runs = Runs::default();
        for (number, expected) in [
            (5, vec![(5, 5)]),
            (3, vec![(3, 3), (5, 5)]),
            (9, vec![(3, 3), (5, 5), (9, 9)]),
            (4, vec![(3, 5), (9, 9)]),
            (4, vec![(3, 5), (9, 9)]),
            (8, vec![(3, 5), (8, 9)]),
            (2, vec![(2, 5), (8, 9)]),
            (6, vec![(2, 6), (8, 9)]),
            (7, vec![(2, 9)]),
        ] {
            runs.insert(SegmentNo(number));
            assert_eq!(pairs(runs.iter()), expected, "after {number}");
        }
        assert_eq!(runs.containing(SegmentNo(9)), Some(span(2, 9)));
        assert_eq!(runs.containing(SegmentNo(10)), None);
        assert_eq!(pairs(runs.within(span(4, 5))), [(4, 5)]);
    }

    #[test]
    fn a_stretch_goes_over_timelines_to_the_first_hole() {
        let (inventory, history) = two_timelines();
        let stretch = inventory.stretch(&history, SIZE, SegmentNo(3));
        let names: Vec<String> = { stretch.segments() }
            .map(|segment| segment.name.to_string())
            .collect();
        let expected = [
            "000000010000000000000003",
            "000000010000000000000004",
            "000000020000000000000005",
            "000000020000000000000006",
            "000000020000000000000007",
        ];
        assert_eq!(names, expected);
        // Segment 9 was archived after the hole, 6 of timeline 1 is not on the way.
        let last = |first| inventory.last_trace(&history, SIZE, SegmentNo(first));
        assert_eq!(last(8), Some(SegmentNo(9)));
        assert_eq!(last(10), None);
        assert!(
            inventory
                .stretch(&history, SIZE, SegmentNo(8))
                .run()
                .is_empty()
        );
    }

    #[test]
    fn stretches_of_a_timeline_begin_with_the_segment_before_it() {
        let (inventory, history) = two_timelines();
        let stretches = |first| {
            let all = inventory.stretches(&history, SIZE, SegmentNo(first));
            pairs(all.iter().map(Stretch::run))
        };
        assert_eq!(stretches(0), [(4, 7), (9, 9)]);
        assert_eq!(stretches(6), [(6, 7), (9, 9)]);
        assert_eq!(stretches(10), []);
    }

    #[test]
    fn what_a_backup_or_a_summary_tells_of_was_archived_once() {
        let (mut inventory, history) = two_timelines();
        let last = |inventory: &Inventory| inventory.last_trace(&history, SIZE, SegmentNo(10));
        let ends = |of: u32, segment: u64| (timeline(of), [Lsn(SIZE.bytes() * segment)].into());
        inventory.backup_ends = Arc::new([ends(1, 50), ends(2, 12)].into());
        assert_eq!(last(&inventory), Some(SegmentNo(11)));
        let summary = SegmentNo(14).on(timeline(2), SIZE);
        let listed = Listed::whole(Summaries::from([(summary, Forms::new())]));
        inventory.summaries.insert(timeline(2), listed);
        assert_eq!(last(&inventory), Some(SegmentNo(14)));
        let segment = |of, number| SegmentNo(number).on(timeline(of), SIZE);
        let gap = |of, from, to| RecordedGap {
            dropped: DroppedSegments::new(segment(of, from), segment(of, to)).unwrap(),
            recorded: jiff::Timestamp::UNIX_EPOCH,
        };
        inventory.gaps = Arc::new(vec![gap(1, 60, 70), gap(2, 15, 16), gap(2, 8, 8)]);
        assert_eq!(last(&inventory), Some(SegmentNo(16)));
        assert!(inventory.why_missing(segment(2, 15)).is_some());
        assert!(inventory.why_missing(segment(2, 14)).is_none());
    }
}
