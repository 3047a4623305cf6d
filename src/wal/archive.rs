//! The archive as recovery goes through it: timelines, the segments along a history, and their summaries.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use jiff::Timestamp;
use walhalla_postgres::summary::{Joiner, Note, Rift, Summary};
use walhalla_postgres::wal::event::Event;
use walhalla_postgres::wal::reader::Record;
use walhalla_postgres::{
    History, Lsn, SegmentName, SegmentNo, SegmentSize, TimelineId, WalFileName,
};

use super::proof::Proof;
use super::{Error, reader};
use crate::output;
use crate::progress::{Progress, Show};
use crate::repository::{self, ArchivedFile, BackupEntry, Repository, WalListing};
use crate::threads::{lock, on_threads};
use crate::wal::stored_summary;
use crate::wal::stored_summary::Proven;

/// Most summaries that are in memory at a time, and how many bytes of them as they are stored: in memory they are up to
/// twenty times as long.
const BATCH: usize = 16;
const BATCH_BYTES: u64 = 16 << 20;

/// How many of the next summaries are read at once, of which these are the stored lengths: fewer where they are long.
pub(super) fn at_once(lengths: impl IntoIterator<Item = u64>) -> usize {
    let sums = lengths.into_iter().take(BATCH).scan(0_u64, |sum, length| {
        *sum = sum.saturating_add(length);
        Some(*sum)
    });
    sums.take_while(|sum| *sum <= BATCH_BYTES).count().max(1)
}

/// Length of a stored summary, of whatever form; 0 where there is none.
pub(super) fn longest(forms: Option<&Vec<ArchivedFile>>) -> u64 {
    let lengths = forms.into_iter().flatten().map(|form| form.stored_bytes);
    lengths.max().unwrap_or(0)
}

/// What is known of timelines.
#[derive(Clone, Debug)]
pub struct Histories {
    /// Of all timelines that the archive or a backup knows.
    pub known: BTreeMap<TimelineId, History>,
    /// Timelines in the archive of which nothing tells where they come from.
    pub unknown: Vec<TimelineId>,
}

/// How summaries are read.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// How many at a time.
    pub threads: usize,
    /// How progress is shown.
    pub show: Show,
}

/// A segment on recovery's way.
#[derive(Clone, Debug)]
pub struct Needed {
    /// Its number.
    pub number: SegmentNo,
    /// Its name.
    pub name: SegmentName,
    /// Where it is.
    pub archived: ArchivedFile,
}

/// Segments along a history, without a hole.
#[derive(Clone, Debug, Default)]
pub struct Route {
    /// The segments.
    pub segments: Vec<Needed>,
    /// Whether there are more after a hole.
    pub gap: bool,
}

/// A segment's summary, with the record that ran into it from the one before.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// What the segment holds, and what ended in it.
    pub summary: Summary,
    /// Start and end of the record that began before the segment and ended in it.
    pub border: Option<(Lsn, Lsn)>,
}

/// What a plan asks every segment that it names.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Ends of backups, checkpoints, other settings, and tablespaces that were created or dropped.
    pub notes: Vec<Note>,
    /// Ends of transactions by which standbys' backups are known.
    pub ends: Vec<(Lsn, Timestamp)>,
    /// Where its WAL ends although the segment goes on.
    pub cut: Option<Lsn>,
}

impl Facts {
    /// Shows a proof what it may look for.
    pub fn show(&self, proof: &mut Proof) {
        self.notes.iter().for_each(|note| proof.see(note));
        for (lsn, time) in &self.ends {
            proof.see_transaction(*lsn, *time);
        }
    }
}

/// What is known of segments that follow one another, and where no more of them can be used.
#[derive(Debug, Default)]
pub struct Examined {
    /// Of each segment, in order.
    pub facts: Vec<Rc<Facts>>,
    /// Why the one after these cannot be used: it is damaged, or does not go on with what is before it.
    pub damage: Option<Error>,
}

/// The archive of a cluster. What was listed once is not listed again.
pub struct Archive<'a> {
    /// Where it is.
    pub repository: &'a Repository,
    /// Its timelines.
    pub histories: Histories,
    /// How summaries are read.
    pub reading: Reading,
    size: Cell<Option<SegmentSize>>,
    /// Timelines and ends of backups.
    stops: Vec<(TimelineId, Lsn)>,
    /// Where the last transactions of standbys' backups ended.
    ends: BTreeSet<Lsn>,
    listings: RefCell<BTreeMap<TimelineId, Listed>>,
    proven: Proven,
    facts: RefCell<BTreeMap<SegmentName, Rc<Facts>>>,
}

/// What was listed of a timeline, from a segment on.
#[derive(Clone)]
struct Listed {
    from: Option<SegmentName>,
    wal: Rc<WalListing>,
    summaries: Rc<BTreeMap<SegmentName, Vec<ArchivedFile>>>,
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
                Err(locked @ repository::Error::Locked { .. }) => {
                    tracing::warn!("{}", output::chain(&locked));
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
        Ok(Self {
            repository,
            histories: Histories::read(repository, backups)?,
            reading,
            size: Cell::new(size),
            stops: backups
                .iter()
                .map(|backup| (backup.timeline, backup.stop_lsn))
                .collect(),
            ends: backups
                .iter()
                .filter_map(|backup| backup.replayed_lsn)
                .collect(),
            listings: RefCell::default(),
            proven: Proven::default(),
            facts: RefCell::default(),
        })
    }

    /// What is archived of a timeline, at least from `from` on.
    ///
    /// # Errors
    /// The repository's.
    pub fn listing(
        &self,
        timeline: TimelineId,
        from: Option<SegmentName>,
    ) -> Result<Rc<WalListing>, Error> {
        Ok(self.listed(timeline, from)?.wal)
    }

    fn listed(&self, timeline: TimelineId, from: Option<SegmentName>) -> Result<Listed, Error> {
        let known = self.listings.borrow().get(&timeline).cloned();
        // Who asks for earlier segments goes from backup to backup: the second listing is a whole one.
        let from = match known {
            Some(listed) if listed.from <= from => return Ok(listed),
            Some(_) => None,
            None => from,
        };
        let mut wal = self.repository.list_wal(timeline, from)?;
        for double in std::mem::take(&mut wal.doubles) {
            match double {
                repository::Error::TwoContents { .. } => return Err(double.into()),
                damaged => tracing::warn!("{damaged}; its other form is used"),
            }
        }
        let listed = Listed {
            from,
            wal: Rc::new(wal),
            summaries: Rc::new(self.repository.list_summaries(timeline, from)?),
        };
        self.listings.borrow_mut().insert(timeline, listed.clone());
        Ok(listed)
    }

    /// Segments along `history` from `first` to the first one that is missing.
    ///
    /// # Errors
    /// The repository's.
    pub fn route(
        &self,
        history: &History,
        size: SegmentSize,
        first: SegmentNo,
    ) -> Result<Route, Error> {
        let mut found: BTreeMap<SegmentNo, (SegmentName, ArchivedFile)> = BTreeMap::new();
        for (timeline, begin, end) in history.segments(size) {
            let from = begin.max(first);
            if end.is_some_and(|end| end <= from) {
                continue;
            }
            let listing = self.listing(timeline, Some(from.on(timeline, size)))?;
            for (name, archived) in &listing.segments {
                let Some(number) = name.number(size) else {
                    continue;
                };
                if number >= from && end.is_none_or(|end| number < end) {
                    found.insert(number, (*name, archived.clone()));
                }
            }
        }
        let mut route = Route::default();
        let mut next = first;
        let traces = self.traces(history, size, first)?;
        while let Some((name, archived)) = found.remove(&next) {
            route.segments.push(Needed {
                number: next,
                name,
                archived,
            });
            next = next.next();
        }
        route.gap =
            found.keys().any(|number| *number > next) || traces.range(next..).next().is_some();
        Ok(route)
    }

    /// Segments along `history` from `first` on that were there once, as their summaries, backup history files and backups say.
    ///
    /// # Errors
    /// The repository's.
    pub fn traces(
        &self,
        history: &History,
        size: SegmentSize,
        first: SegmentNo,
    ) -> Result<BTreeSet<SegmentNo>, Error> {
        let mut traces = BTreeSet::new();
        for (timeline, begin, end) in history.segments(size) {
            let from = begin.max(first);
            if end.is_some_and(|end| end <= from) {
                continue;
            }
            let listed = self.listed(timeline, Some(from.on(timeline, size)))?;
            let of_backups = listed.wal.others.iter().filter_map(|(file, _)| match file {
                WalFileName::BackupHistory(segment, _) => segment.number(size),
                WalFileName::Segment(_) | WalFileName::Partial(..) | WalFileName::History(_) => {
                    None
                }
            });
            let of_summaries = listed.summaries.keys().filter_map(|name| name.number(size));
            let stops = self.stops.iter().filter(|(of, _)| *of == timeline);
            let stops = stops.map(|(_, stop)| size.segment_before(*stop));
            let all = of_backups.chain(of_summaries).chain(stops);
            traces.extend(
                all.filter(|number| *number >= from && end.is_none_or(|end| *number < end)),
            );
        }
        Ok(traces)
    }

    /// Segments of a timeline that follow one another; the first run begins with the segment before the timeline, of which
    /// a record may run into it.
    ///
    /// # Errors
    /// The repository's.
    pub fn runs(&self, history: &History) -> Result<Vec<Vec<Needed>>, Error> {
        let listing = self.listing(history.timeline, None)?;
        let mut runs: Vec<Vec<Needed>> = Vec::new();
        let Some(size) = self.segment_size(history)? else {
            return Ok(runs);
        };
        for (name, archived) in &listing.segments {
            let Some(number) = name.number(size) else {
                continue;
            };
            let needed = Needed {
                number,
                name: *name,
                archived: archived.clone(),
            };
            match runs.last_mut() {
                Some(run) if run.last().is_some_and(|last| last.number.next() == number) => {
                    run.push(needed);
                }
                _ => runs.push(vec![needed]),
            }
        }
        if let Some(run) = runs.first_mut()
            && let Some(before) = self.before(history, size, run)?
        {
            run.insert(0, before);
        }
        Ok(runs)
    }

    /// Length of the segments of a timeline, which each one's summary tells; `None` where there is none.
    ///
    /// # Errors
    /// Those of reading a summary or, where it is missing, its segment.
    pub fn segment_size(&self, history: &History) -> Result<Option<SegmentSize>, Error> {
        if let Some(known) = self.size.get() {
            return Ok(Some(known));
        }
        let listing = self.listing(history.timeline, None)?;
        let Some((name, archived)) = listing.segments.first_key_value() else {
            return Ok(None);
        };
        let needed = Needed {
            number: SegmentNo(0),
            name: *name,
            archived: archived.clone(),
        };
        let summary = self.summaries(history, &[needed])?.pop().transpose()?;
        self.size.set(summary.map(|summary| summary.segment_size));
        Ok(self.size.get())
    }

    /// How many of a timeline's segments have no summary.
    ///
    /// # Errors
    /// The repository's.
    pub fn without_summary(&self, timeline: TimelineId) -> Result<u64, Error> {
        let listed = self.listed(timeline, None)?;
        let names = listed.wal.segments.keys();
        Ok(names
            .filter(|name| !listed.summaries.contains_key(name))
            .count() as u64)
    }

    fn before(
        &self,
        history: &History,
        size: SegmentSize,
        run: &[Needed],
    ) -> Result<Option<Needed>, Error> {
        let number = run.first().and_then(|first| first.number.0.checked_sub(1));
        let Some(number) = number.map(SegmentNo) else {
            return Ok(None);
        };
        let name = history.segment_name(number, size);
        if name.timeline == history.timeline {
            return Ok(None);
        }
        let listing = self.listing(name.timeline, None)?;
        Ok(listing.segments.get(&name).map(|archived| Needed {
            number,
            name,
            archived: archived.clone(),
        }))
    }

    /// Shows the summaries of segments that follow one another along `history`, in order, until `visit` says no.
    ///
    /// # Errors
    /// Those of reading summaries and, where one is missing, its segment; what is wrong with a segment after the last one
    /// visited is no error.
    pub fn walk<E: From<Error>>(
        &self,
        history: &History,
        segments: &[Needed],
        mut visit: impl FnMut(&Needed, Resolved) -> Result<bool, E>,
    ) -> Result<(), E> {
        let progress = Progress::of_items(
            self.reading.show,
            "reading summaries",
            segments.len() as u64,
        );
        let mut joiner = Joiner::default();
        let mut walked = 0;
        // A few at first: many questions are answered by the first segment.
        let mut batch = self.reading.threads.clamp(1, BATCH / 4);
        while let Some(rest) = segments.get(walked..).filter(|rest| !rest.is_empty()) {
            let now = rest.get(..self.batch(rest, batch)?).unwrap_or(rest);
            for (needed, summary) in now.iter().zip(self.summaries(history, now)?) {
                let before = segments.get(..walked).unwrap_or_default();
                let resolved = self.resolve(history, &mut joiner, before, needed, summary?)?;
                if walked > 0 || resolved.summary.head.is_none() {
                    self.keep_facts(needed, &resolved);
                }
                walked += 1;
                progress.add(1);
                if !visit(needed, resolved)? {
                    progress.finish();
                    return Ok(());
                }
            }
            batch = (batch * 2).min(BATCH);
        }
        progress.finish();
        Ok(())
    }

    /// What is known of `segments`, which follow one another along `history`.
    ///
    /// # Errors
    /// The repository's; what is wrong with a segment is part of the answer.
    pub fn examine(&self, history: &History, segments: &[Needed]) -> Result<Examined, Error> {
        let mut examined = Examined::default();
        while let Some(needed) = segments.get(examined.facts.len()) {
            if let Some(known) = self.facts.borrow().get(&needed.name).cloned() {
                examined.facts.push(known);
                continue;
            }
            // The one before tells what runs into it.
            let at = examined.facts.len();
            let begin = at.saturating_sub(1);
            let mut next = begin;
            let known = |needed: &Needed| self.facts.borrow().contains_key(&needed.name);
            let unknown = segments.iter().skip(at).position(known);
            let end = unknown.map_or(segments.len(), |unknown| at + unknown);
            let run = segments.get(begin..end).unwrap_or_default();
            let walked = self.walk(history, run, |_, resolved| {
                if next >= at {
                    examined.facts.push(Rc::new(self.facts_of(&resolved)));
                }
                next += 1;
                Ok::<_, Error>(true)
            });
            match walked {
                // Another key's objects are not damaged.
                Err(error) if error.is_damage() && !error.is_locked() => {
                    examined.damage = Some(error);
                    break;
                }
                walked => walked?,
            }
        }
        Ok(examined)
    }

    fn keep_facts(&self, needed: &Needed, resolved: &Resolved) {
        let facts = Rc::new(self.facts_of(resolved));
        self.facts.borrow_mut().insert(needed.name, facts);
    }

    fn facts_of(&self, resolved: &Resolved) -> Facts {
        let ends = resolved.summary.transactions.iter();
        let ends = ends.filter(|end| self.ends.contains(&end.lsn));
        Facts {
            ends: ends.map(|end| (end.lsn, end.time)).collect(),
            ..Facts::of(resolved)
        }
    }

    /// How many of the next segments' summaries are read at once: at most `most`, fewer where they are long.
    fn batch(&self, segments: &[Needed], most: usize) -> Result<usize, Error> {
        let mut lengths = Vec::new();
        for needed in segments.iter().take(most) {
            let listed = self.listed(needed.name.timeline, Some(needed.name))?;
            lengths.push(longest(listed.summaries.get(&needed.name)));
        }
        Ok(at_once(lengths))
    }

    /// The summaries of a few segments, read at once.
    fn summaries(
        &self,
        history: &History,
        segments: &[Needed],
    ) -> Result<Vec<Result<Summary, Error>>, Error> {
        let mut stored = Vec::new();
        for needed in segments {
            let listed = self.listed(needed.name.timeline, Some(needed.name))?;
            let forms = listed.summaries.get(&needed.name).cloned();
            stored.push((needed, forms.unwrap_or_default()));
        }
        let (repository, proven) = (self.repository, &self.proven);
        let next = std::sync::Mutex::new(0..stored.len());
        let read: Vec<_> = stored.iter().map(|_| std::sync::Mutex::new(None)).collect();
        let silent = Progress::new(Show::Never, "", 0);
        on_threads(self.reading.threads.min(stored.len()), &silent, &|| {
            while let Some(index) = lock(&next).next() {
                let (Some((needed, forms)), Some(place)) = (stored.get(index), read.get(index))
                else {
                    break;
                };
                *lock(place) = Some(summary(repository, proven, history, needed, forms));
            }
            Ok::<(), Error>(())
        })?;
        let read = read.into_iter().filter_map(|place| {
            place
                .into_inner()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
        });
        Ok(read.collect())
    }

    /// Joins what ran into the segment from the one before.
    fn resolve(
        &self,
        history: &History,
        joiner: &mut Joiner,
        before: &[Needed],
        needed: &Needed,
        mut summary: Summary,
    ) -> Result<Resolved, Error> {
        let object = self.repository.url(&needed.archived.object.key);
        let size = summary.segment_size;
        let rift = joiner.next(&summary);
        let mut border = None;
        let mut take = |record: &Record| {
            border = Some((record.start, record.end));
            summary.prepend(record)
        };
        let taken = match rift {
            Ok(None) => Ok(()),
            Ok(Some(record)) => take(&record.record()),
            Err(Rift::Cut(lsn)) => {
                let mut taken = Ok(());
                self.read_across(history, size, lsn, before, needed, &mut |record| {
                    taken = take(record);
                })?;
                taken
            }
            Err(Rift::Apart(lsn)) => {
                return Err(Error::Records {
                    object,
                    file: WalFileName::Segment(needed.name),
                    damage: reader::Damage::Continuation(lsn),
                });
            }
        };
        match taken {
            Ok(()) => Ok(Resolved { summary, border }),
            Err(damage) => Err(Error::Content {
                object,
                lsn: border.map_or(Lsn::ZERO, |(start, _)| start),
                damage,
            }),
        }
    }

    /// Reads the record at `lsn`, which ends in `last`, from the segments themselves.
    fn read_across(
        &self,
        history: &History,
        size: SegmentSize,
        lsn: Lsn,
        before: &[Needed],
        last: &Needed,
        show: &mut dyn FnMut(&Record),
    ) -> Result<(), Error> {
        let holds = |needed: &&Needed| needed.number.start(size) <= lsn;
        let begin = before
            .iter()
            .rposition(|needed| holds(&needed))
            .unwrap_or(0);
        let way = before.get(begin..).unwrap_or_default().iter();
        let mut check = None;
        for needed in way.chain(std::iter::once(last)) {
            let mut show = |record: &Record| {
                if record.start == lsn {
                    show(record);
                }
            };
            let Needed { name, archived, .. } = needed;
            let show = |_: &_, record: &Record| show(record);
            let read = super::segment::read(
                self.repository,
                *name,
                archived,
                history,
                check.take(),
                show,
            )?;
            check = Some(read);
        }
        Ok(())
    }
}

impl Facts {
    fn of(resolved: &Resolved) -> Self {
        let is_kept = |note: &&Note| {
            matches!(
                note.event,
                Event::BackupEnd { .. }
                    | Event::Checkpoint(_)
                    | Event::ParameterChange { .. }
                    | Event::TablespaceCreated { .. }
                    | Event::TablespaceDropped { .. }
            )
        };
        let summary = &resolved.summary;
        Self {
            notes: summary.notes.iter().filter(is_kept).cloned().collect(),
            ends: Vec::new(),
            cut: summary.cut,
        }
    }
}

/// A segment's summary: the stored one, or one made from the segment.
fn summary(
    repository: &Repository,
    proven: &Proven,
    history: &History,
    needed: &Needed,
    forms: &[ArchivedFile],
) -> Result<Summary, Error> {
    for form in forms {
        match proven.read(repository, needed.name, &form.object, &needed.archived) {
            Ok(summary) => return Ok(summary),
            Err(error) if error.is_of_the_object() => stored_summary::warn_passed_over(&error),
            Err(error) => return Err(error.into()),
        }
    }
    stored_summary::make(repository, needed.name, &needed.archived, history)
}
