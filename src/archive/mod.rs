//! The archived WAL of a cluster as a whole: what there is, and what its summaries tell along the way of a recovery.
//!
//! ```text
//! store ─▶ inventory: histories, segments, summaries ─▶ stretches along a history, holes     inventory
//!                                                          │
//! plan, find, wal-show, backup-list ◀── events, times ◀────┤ one walk over the summaries      walk, facts, proof
//! backup-push --delta ◀──── changed blocks ◀───────────────┘                                  changed
//! wal-summarize: summaries that are missing                                                   backfill
//! ```

pub mod backfill;
pub mod changed;
mod facts;
pub mod inventory;
pub mod proof;
pub mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use smallvec::SmallVec;
use walhalla_postgres::summary::{Rift, Summary};
use walhalla_postgres::wal::reader::Record;
use walhalla_postgres::wal::segment_reader::ReadSegment;
use walhalla_postgres::wal::{Mismatch, reader, record};
use walhalla_postgres::{
    History, Lsn, SegmentName, SegmentNo, SegmentSize, TimelineId, WalFileName,
};

use walhalla_providers::{Error as StoreError, ErrorKind, Operation};

pub use facts::{Examined, Facts};
pub use inventory::{Histories, Needed, Run, Stretch};
pub use walk::{Reading, Resolved};

use crate::failure::Failure as _;
use crate::output;
use crate::repository::gaps::RecordedGap;
use crate::repository::{self, BackupEntry, ObjectError, Repository, WalListing};
use crate::threads::lock;
use crate::wal::stored_summary::{self, Proven};
use crate::wal::{Error, segment, tail};
use inventory::{Inventory, Listed, WalFiles};
use walk::{Summaries, Way, walk};

/// Segments that are read one by one for what the last or first of them tells. An idle server with an `archive_timeout` of a
/// minute archives as many in 16 hours.
pub const MOST_READ: usize = 1000;
/// Of those, segments that cannot be read.
const MOST_UNREADABLE: usize = 16;

/// The archive of a cluster. What was listed once is not listed again.
pub struct Archive<'a> {
    /// Where it is.
    pub repository: &'a Repository,
    /// Its timelines.
    pub histories: Arc<Histories>,
    reading: Reading,
    inventory: Mutex<Inventory>,
    size: Mutex<Option<SegmentSize>>,
    /// Where the last transactions of standbys' backups ended.
    ends: BTreeSet<Lsn>,
    proven: Proven,
    facts: Mutex<BTreeMap<SegmentName, Arc<Facts>>>,
    /// Whether the begins of segments that were received count as segments.
    tails: Tails,
    /// Whether segments that no listing showed were there when they were asked for.
    arrived: Mutex<BTreeMap<SegmentName, bool>>,
}

/// Whether the begin of a segment that was received counts, where the segment is not archived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tails {
    /// It counts as the segment: recovery ends in it.
    Used,
    /// Segments are whole.
    #[default]
    Left,
}

/// The way of a recovery: archived segments without a hole. The last one may be a tail.
#[derive(Clone, Debug)]
pub struct Route {
    /// The segments.
    pub stretch: Stretch,
    /// Whether there are more after a hole, or were.
    pub gap: bool,
}

/// What looking into segments one by one came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sought<T> {
    /// The first of them that told it.
    Found(T),
    /// None of them does.
    Nowhere,
    /// It is not known: one could not be read, or too many did not tell it.
    GivenUp,
}

impl<T> Sought<T> {
    /// What was found.
    pub fn found(self) -> Option<T> {
        match self {
            Self::Found(found) => Some(found),
            Self::Nowhere | Self::GivenUp => None,
        }
    }
}

/// Why a segment is not archived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhyMissing {
    /// `wal-push` gave it up.
    Dropped(RecordedGap),
    /// A deletion took it, or a copy left it out.
    Deleted,
}

impl std::fmt::Display for WhyMissing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dropped(gap) => gap.fmt(f),
            Self::Deleted => {
                f.write_str("a deletion took it, or it was left out of this copy, on purpose")
            }
        }
    }
}

impl Histories {
    /// What the archive and `backups` tell of timelines.
    ///
    /// # Errors
    /// The repository's.
    pub fn read(repository: &Repository, backups: &[BackupEntry]) -> Result<Self, Error> {
        let mut known: BTreeMap<_, _> = backups
            .iter()
            .map(|backup| (backup.timeline, backup.timeline_history()))
            .collect();
        let mut unknown = Vec::new();
        for timeline in repository.timelines()? {
            let history = match repository.history(timeline) {
                // A host without the identity lists all the same, by what backups tell.
                Err(locked) if locked.is_locked() => {
                    if known.contains_key(&timeline) {
                        tracing::debug!("{}", output::chain(&locked));
                    } else {
                        tracing::warn!("{}", output::chain(&locked));
                    }
                    None
                }
                history => history?,
            };
            match history {
                Some(history) => _ = known.insert(timeline, history),
                None if timeline == TimelineId::FIRST => {
                    known.insert(timeline, History::root(timeline));
                }
                None if known.contains_key(&timeline) => {}
                None => unknown.push(timeline),
            }
        }
        Ok(Self { known, unknown })
    }
}

impl<'a> Archive<'a> {
    /// The archive in `repository`, of which `backups` are.
    ///
    /// # Errors
    /// The repository's.
    pub fn new(
        repository: &'a Repository,
        backups: &[BackupEntry],
        reading: Reading,
    ) -> Result<Self, Error> {
        let size = backups.first().map(|backup| backup.wal_segment_size);
        let mut inventory = Inventory::new(Histories::read(repository, backups)?, backups);
        inventory.gaps = Arc::new(repository.recorded_gaps()?);
        let ends = backups.iter().filter_map(|backup| backup.replayed_lsn);
        Ok(Self {
            repository,
            histories: Arc::clone(&inventory.histories),
            reading,
            inventory: Mutex::new(inventory),
            size: Mutex::new(size),
            ends: ends.collect(),
            proven: Proven::default(),
            facts: Mutex::default(),
            tails: Tails::Left,
            arrived: Mutex::default(),
        })
    }

    /// The same archive, of which begins of segments that were received count or not.
    #[must_use]
    pub fn with_tails(self, tails: Tails) -> Self {
        Self { tails, ..self }
    }

    /// What is archived of a timeline, at least from `from` on.
    ///
    /// # Errors
    /// The repository's.
    pub fn files(
        &self,
        timeline: TimelineId,
        from: Option<SegmentName>,
    ) -> Result<Arc<WalFiles>, Error> {
        let known = lock(&self.inventory).wal.get(&timeline).cloned();
        let from = match known {
            Some(listed) if listed.reaches_back_to(from) => return Ok(listed.found),
            // A caller that asks for earlier segments will ask for still earlier ones: the second listing is a whole one.
            Some(_) => None,
            None => from,
        };
        let mut wal = self
            .repository
            .list_wal(timeline, from, &self.borders(timeline, from))?;
        for double in std::mem::take(&mut wal.doubles) {
            match double {
                repository::Error::Object(ObjectError::TwoContents { .. }) => {
                    return Err(double.into());
                }
                damaged => tracing::warn!("{damaged}; its other form is used"),
            }
        }
        if self.tails == Tails::Used {
            self.add_tails(timeline, from, &mut wal)?;
        }
        let found = Arc::new(WalFiles::from(wal));
        let listed = Listed {
            from,
            found: Arc::clone(&found),
        };
        lock(&self.inventory).wal.insert(timeline, listed);
        Ok(found)
    }

    /// Adds what was received of a segment that is not archived, where the one before it is: after the last one, and where the
    /// archive has a hole. Recovery ends in it, and may come to commits that their clients were told of.
    fn add_tails(
        &self,
        timeline: TimelineId,
        from: Option<SegmentName>,
        wal: &mut WalListing,
    ) -> Result<(), Error> {
        let root = History::root(timeline);
        let history = self.histories.known.get(&timeline).unwrap_or(&root);
        let size = *lock(&self.size);
        let before = |segment: SegmentName| {
            let size = size?;
            let number = segment.number(size)?.0.checked_sub(1)?;
            let name = SegmentNo(number).on(timeline, size);
            Some((name, wal.segments.get(&name)?))
        };
        let last = wal.segments.last_key_value().map(|(name, _)| *name);
        let is_wanted = |segment: SegmentName| {
            let is_in_a_hole = !wal.segments.contains_key(&segment) && before(segment).is_some();
            Some(segment) >= from && (Some(segment) > last || is_in_a_hole)
        };
        let read_before = |segment: SegmentName| {
            let (name, archived) = before(segment)?;
            segment::read(self.repository, name, archived, history, None, |_, _| {}).ok()
        };
        let mut listed = std::mem::take(&mut wal.tails);
        listed.retain(|segment, _| is_wanted(*segment));
        let tails = tail::of_segments(self.repository, history, listed, read_before)?;
        wal.segments.extend(tails);
        Ok(())
    }

    /// The summaries of a timeline's segments, at least from `from` on.
    fn summaries(
        &self,
        timeline: TimelineId,
        from: Option<SegmentName>,
    ) -> Result<Arc<inventory::Summaries>, Error> {
        let known = lock(&self.inventory).summaries.get(&timeline).cloned();
        let from = match known {
            Some(listed) if listed.reaches_back_to(from) => return Ok(listed.found),
            Some(_) => None,
            None => from,
        };
        let found = Arc::new(self.repository.list_summaries(
            timeline,
            from,
            &self.borders(timeline, from),
        )?);
        let listed = Listed {
            from,
            found: Arc::clone(&found),
        };
        lock(&self.inventory).summaries.insert(timeline, listed);
        Ok(found)
    }

    /// Names that divide a timeline's listing from `from` on into parts of about the same length: where backups ended.
    fn borders(&self, timeline: TimelineId, from: Option<SegmentName>) -> Vec<SegmentName> {
        let size = *lock(&self.size);
        let ends = size.map(|size| lock(&self.inventory).backup_ends(timeline, size));
        let mut names: Vec<SegmentName> = { ends.unwrap_or_default().into_iter() }
            .filter(|name| from.is_none_or(|from| from < *name))
            .collect();
        names.dedup();
        self.repository.borders(names)
    }

    /// The segments along `history` from `first` to the first one that is missing.
    ///
    /// # Errors
    /// The repository's.
    pub fn route(
        &self,
        history: &History,
        size: SegmentSize,
        first: SegmentNo,
    ) -> Result<Route, Error> {
        let spans = || inventory::spans(history, size, first);
        for (timeline, span) in spans() {
            self.files(timeline, Some(span.first.on(timeline, size)))?;
        }
        let known = lock(&self.inventory).clone();
        let stretch = known.stretch(history, size, first);
        let missing = stretch.run().end;
        let is_last = |inventory: Inventory| {
            let last = inventory.last_trace(history, size, missing);
            last.is_none()
        };
        if !is_last(known) {
            return Ok(Route { stretch, gap: true });
        }
        // Those before the end will be asked for, to see when the last transaction ended.
        let first_read = SegmentNo(missing.0.saturating_sub(MOST_READ as u64)).max(first);
        for (timeline, span) in spans().filter(|(_, span)| span.end > missing) {
            self.summaries(
                timeline,
                Some(span.first.max(first_read).on(timeline, size)),
            )?;
        }
        // Between the two listings more may have come.
        let goes_on = !is_last(lock(&self.inventory).clone());
        let gap = goes_on && (stretch.ends_in_a_tail() || !self.is_there_by_now(&stretch)?);
        Ok(Route { stretch, gap })
    }

    /// Why a segment is not archived, as far as anything tells.
    pub fn why_missing(&self, segment: SegmentName) -> Option<WhyMissing> {
        if let Some(gap) = lock(&self.inventory).why_missing(segment) {
            return Some(WhyMissing::Dropped(gap));
        }
        let deleted = self.repository.deleted_wal();
        let deleted = deleted.inspect_err(|error| tracing::debug!("{}", output::chain(error)));
        let is_deleted = deleted.is_ok_and(|deleted| deleted.has(segment));
        is_deleted.then_some(WhyMissing::Deleted)
    }

    /// The segments that were dropped, as the ledger of gaps says.
    pub fn recorded_gaps(&self) -> Arc<Vec<RecordedGap>> {
        Arc::clone(&lock(&self.inventory).gaps)
    }

    /// Whether the segment after a stretch has been archived since it was listed.
    fn is_there_by_now(&self, stretch: &Stretch) -> Result<bool, Error> {
        // Many backups come to the same end.
        let next = stretch.name(stretch.run().end);
        if let Some(known) = lock(&self.arrived).get(&next) {
            return Ok(*known);
        }
        let found = self.repository.find_wal(WalFileName::Segment(next))?;
        lock(&self.arrived).insert(next, found.is_some());
        Ok(found.is_some())
    }

    /// Segments of a timeline from `first` on that follow one another. Where the timeline begins later than that, the first
    /// stretch begins with the segment before the timeline, of which a record may run into it.
    ///
    /// # Errors
    /// The repository's.
    pub fn stretches(&self, history: &History, first: SegmentNo) -> Result<Vec<Stretch>, Error> {
        let Some(size) = self.segment_size(history)? else {
            return Ok(Vec::new());
        };
        let begin = inventory::own_begin(history, size).max(first);
        let before = SegmentNo(begin.0.saturating_sub(1));
        for (timeline, span) in inventory::spans(history, size, before) {
            self.files(timeline, Some(span.first.on(timeline, size)))?;
        }
        Ok(lock(&self.inventory).stretches(history, size, first))
    }

    /// Length of the segments of a timeline, which each one's summary tells; `None` where there is none.
    ///
    /// # Errors
    /// Those of reading a summary or, where it is missing, its segment.
    pub fn segment_size(&self, history: &History) -> Result<Option<SegmentSize>, Error> {
        if let Some(known) = *lock(&self.size) {
            return Ok(Some(known));
        }
        let files = self.files(history.timeline, None)?;
        let Some(name) = files.segments.keys().next() else {
            return Ok(None);
        };
        self.summaries(history.timeline, None)?;
        let summary = self.source(history).summary(*name)?;
        *lock(&self.size) = Some(summary.segment_size);
        Ok(Some(summary.segment_size))
    }

    /// How many of a timeline's segments have no summary.
    ///
    /// # Errors
    /// The repository's.
    pub fn without_summary(&self, timeline: TimelineId) -> Result<u64, Error> {
        let (files, summaries) = (self.files(timeline, None)?, self.summaries(timeline, None)?);
        let whole = files.segments.iter();
        let whole = whole.filter(|(_, file)| file.tail().is_none());
        let names = whole.map(|(name, _)| name);
        // An empty one was stored just before the machine failed.
        let has_none = |name: &&SegmentName| {
            let forms = summaries.get(*name).map(SmallVec::as_slice);
            inventory::longest(forms.unwrap_or_default()) == 0
        };
        Ok(names.filter(has_none).count() as u64)
    }

    /// Bytes that all summaries take in the store.
    ///
    /// # Errors
    /// The repository's.
    pub fn summary_bytes(&self) -> Result<u64, Error> {
        let known = self.histories.known.keys();
        let timelines = known.chain(&self.histories.unknown);
        let mut bytes = 0;
        for timeline in timelines {
            let summaries = self.summaries(*timeline, None)?;
            let forms = summaries.values().flatten();
            bytes += forms.map(|form| form.stored_bytes).sum::<u64>();
        }
        Ok(bytes)
    }

    /// Shows the summaries of segments that follow one another, in order, until `visit` says no.
    ///
    /// # Errors
    /// Those of reading summaries and, where one is missing, its segment; what is wrong with a segment after the last one
    /// visited is no error.
    pub fn walk<E: From<Error>>(
        &self,
        stretch: &Stretch,
        mut visit: impl FnMut(SegmentNo, Resolved) -> Result<bool, E>,
    ) -> Result<(), E> {
        let (history, size) = (stretch.history(), stretch.segment_size());
        let run = stretch.run();
        for (timeline, span) in inventory::spans(history, size, run.first) {
            if span.first < run.end {
                self.summaries(timeline, Some(span.first.on(timeline, size)))?;
            }
        }
        let source = self.source(history);
        let way = Way { history, size, run };
        walk(&source, way, self.reading, |number, resolved| {
            if number > run.first || resolved.summary.head.is_none() {
                self.keep_facts(stretch.name(number), &resolved);
            }
            visit(number, resolved)
        })
    }

    /// Looks into segments, of which each is a stretch of its own, until `tell` finds something in one. Those that cannot be
    /// read are passed over.
    ///
    /// # Errors
    /// The repository's; what is wrong with a segment is a warning.
    pub fn seek<T>(
        &self,
        segments: impl Iterator<Item = Stretch>,
        mut tell: impl FnMut(SegmentNo, Resolved) -> Option<T>,
    ) -> Result<Sought<T>, Error> {
        let (mut read, mut unreadable) = (0, 0);
        for segment in segments {
            if read == MOST_READ || unreadable == MOST_UNREADABLE {
                return Ok(Sought::GivenUp);
            }
            read += 1;
            let mut told = None;
            let walked = self.walk(&segment, |number, resolved| {
                told = tell(number, resolved);
                Ok::<_, Error>(false)
            });
            match walked {
                Ok(()) => {}
                Err(error) if error.is_locked() => unreadable += 1,
                Err(error) if error.is_of_the_object() => {
                    tracing::warn!("{error}");
                    unreadable += 1;
                }
                Err(error) => return Err(error),
            }
            if let Some(told) = told {
                return Ok(Sought::Found(told));
            }
        }
        Ok(if unreadable == 0 {
            Sought::Nowhere
        } else {
            Sought::GivenUp
        })
    }

    /// What is known of segments that follow one another.
    ///
    /// # Errors
    /// The repository's; what is wrong with a segment is part of the answer.
    pub fn examine(&self, stretch: &Stretch) -> Result<Examined, Error> {
        let mut examined = Examined::default();
        let run = stretch.run();
        let mut at = run.first;
        while at < run.end {
            if let Some(known) = lock(&self.facts).get(&stretch.name(at)).cloned() {
                examined.facts.push(known);
                at = at.next();
                continue;
            }
            let is_known = |number: &SegmentNo| {
                let name = stretch.name(*number);
                lock(&self.facts).contains_key(&name)
            };
            let unknown = stretch.since(at).run();
            let end = unknown.numbers().find(is_known).unwrap_or(run.end);
            // The one before tells what runs into it.
            let before = SegmentNo(at.0.saturating_sub(1));
            let walked = self.walk(&stretch.since(before).before(end), |number, resolved| {
                if number >= at {
                    let facts = Facts::of(&resolved, &self.ends);
                    examined.facts.push(Arc::new(facts));
                }
                Ok::<_, Error>(true)
            });
            match walked {
                // Another key's objects are not damaged.
                Err(error) if error.is_of_the_object() && !error.is_locked() => {
                    examined.damage = Some(error);
                    break;
                }
                walked => walked?,
            }
            at = end;
        }
        Ok(examined)
    }

    fn keep_facts(&self, name: SegmentName, resolved: &Resolved) {
        let facts = Arc::new(Facts::of(resolved, &self.ends));
        lock(&self.facts).insert(name, facts);
    }

    fn source<'s>(&'s self, history: &'s History) -> Archived<'s> {
        Archived {
            repository: self.repository,
            proven: &self.proven,
            inventory: lock(&self.inventory).clone(),
            history,
        }
    }
}

/// Summaries of archived segments: the stored ones, or else made from the segments.
struct Archived<'a> {
    repository: &'a Repository,
    proven: &'a Proven,
    inventory: Inventory,
    history: &'a History,
}

impl Archived<'_> {
    /// The segment's object, or that it is missing.
    fn segment(&self, name: SegmentName) -> Result<&repository::ArchivedFile, Error> {
        self.inventory.segment(name).ok_or_else(|| {
            let object = format!("{}/{name}", self.repository.store_url());
            StoreError::new(Operation::Get, object, ErrorKind::NotFound).into()
        })
    }

    fn url(&self, name: SegmentName) -> String {
        let archived = self.inventory.segment(name);
        archived.map_or_else(
            || name.to_string(),
            |archived| self.repository.url(&archived.object().key),
        )
    }
}

impl Summaries for Archived<'_> {
    type Error = Error;

    fn stored_bytes(&self, segment: SegmentName) -> u64 {
        inventory::longest(self.inventory.summary(segment))
    }

    fn summary(&self, segment: SegmentName) -> Result<Summary, Error> {
        let archived = self.segment(segment)?;
        for form in self.inventory.summary(segment) {
            let read = self
                .proven
                .read(self.repository, segment, &form.object(), archived);
            match read {
                Ok(summary) => return Ok(summary),
                Err(error) if error.is_of_the_object() => stored_summary::warn_passed_over(&error),
                Err(error) => return Err(error.into()),
            }
        }
        stored_summary::make(self.repository, segment, archived, self.history)
    }

    fn records(
        &self,
        segment: SegmentName,
        last: Option<ReadSegment>,
        show: &mut dyn FnMut(&Record),
    ) -> Result<ReadSegment, Error> {
        let archived = self.segment(segment)?;
        let show = |_: &_, record: &Record| show(record);
        segment::read(self.repository, segment, archived, self.history, last, show)
    }

    fn apart(&self, segment: SegmentName, rift: Rift) -> Error {
        let (Rift::Apart(lsn) | Rift::Cut(lsn)) = rift;
        let mismatch = ObjectError::WalMismatch {
            object: self.url(segment),
            file: WalFileName::Segment(segment),
            mismatch: Mismatch::Record(reader::BrokenRecord::Continuation(lsn)),
        };
        mismatch.into()
    }

    fn not_understood(
        &self,
        segment: SegmentName,
        lsn: Lsn,
        damage: record::RecordNotUnderstood,
    ) -> Error {
        let unknown = ObjectError::UnknownRecord {
            object: self.url(segment),
            lsn,
            damage,
        };
        unknown.into()
    }
}
