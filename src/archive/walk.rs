//! Going through the summaries of segments that follow one another, in the order of recovery.
//!
//! ```text
//! Summaries ─▶ a few at once, on threads ─▶ Joiner: records that run over borders ─▶ visit
//!     ▲                                        │ too little is kept of one
//!     └──────── the segments themselves ◀──────┘
//! ```
//! Where summaries come from, and what it means that one is missing, is for the caller to say: [`Summaries`].

use std::sync::Mutex;

use walhalla_postgres::summary::{Joined, Joiner, Rift, Summary};
use walhalla_postgres::wal::reader::Record;
use walhalla_postgres::wal::record;
use walhalla_postgres::wal::segment_reader::ReadSegment;
use walhalla_postgres::{History, Lsn, SegmentName, SegmentNo, SegmentSize};

use super::inventory::Run;
use crate::progress::{Progress, Show};
use crate::threads::{lock, on_threads};

/// Most summaries that are in memory at a time, and how many bytes of them as they are stored: in memory they are up to
/// twenty times as long.
const BATCH: usize = 16;
const BATCH_BYTES: u64 = 16 << 20;

/// How summaries are read.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// How many at a time.
    pub threads: usize,
    /// How progress is shown.
    pub show: Show,
}

/// Where the summaries of segments come from, or else the segments.
pub trait Summaries: Sync {
    /// Why something is not told of a segment.
    type Error: Send;

    /// Length of a segment's stored summary in bytes; 0 where there is none.
    fn stored_bytes(&self, segment: SegmentName) -> u64;

    /// A segment's summary.
    ///
    /// # Errors
    /// What it means that there is none and none can be made.
    fn summary(&self, segment: SegmentName) -> Result<Summary, Self::Error>;

    /// Shows the records that end in a segment, which is checked as the one after `last` if that is given. When it is read
    /// from a second place because the first one failed, records are shown again.
    ///
    /// # Errors
    /// What it means that it cannot be read.
    fn records(
        &self,
        segment: SegmentName,
        last: Option<ReadSegment>,
        show: &mut dyn FnMut(&Record),
    ) -> Result<ReadSegment, Self::Error>;

    /// What it means that a segment is not the one that goes on after those before it.
    fn apart(&self, segment: SegmentName, rift: Rift) -> Self::Error;

    /// What it means that the record at a position, which ends in a segment, is not understood.
    fn not_understood(
        &self,
        segment: SegmentName,
        at: Lsn,
        damage: record::RecordNotUnderstood,
    ) -> Self::Error;
}

/// A segment's summary, with the record that ran into it from the one before.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// What the segment holds, and what ended in it.
    pub summary: Summary,
    /// Start and end of the record that began before the segment and ended in it.
    pub border: Option<(Lsn, Lsn)>,
}

/// Segments that follow one another along a history.
#[derive(Clone, Copy, Debug)]
pub struct Way<'a> {
    /// The history.
    pub history: &'a History,
    /// Length of its segments.
    pub size: SegmentSize,
    /// Their numbers.
    pub run: Run,
}

impl Way<'_> {
    fn name(&self, number: SegmentNo) -> SegmentName {
        self.history.segment_name(number, self.size)
    }
}

/// Shows the summaries of segments in order, until `visit` says no.
///
/// # Errors
/// Those of `summaries` and of `visit`; what is wrong with a segment after the last one visited is no error.
pub fn walk<S: Summaries, E: From<S::Error>>(
    summaries: &S,
    way: Way,
    reading: Reading,
    mut visit: impl FnMut(SegmentNo, Resolved) -> Result<bool, E>,
) -> Result<(), E> {
    let progress = Progress::of_items(reading.show, "reading summaries", way.run.len());
    let mut joiner = Joiner::default();
    let mut rest = way.run;
    // A few at first: many questions are answered by the first segment.
    let mut most = reading.threads.clamp(1, BATCH / 4);
    while !rest.is_empty() {
        for (name, read) in at_once(summaries, way, rest, most, reading.threads) {
            let resolved = resolve(summaries, way, &mut joiner, rest.first, name, read?)?;
            let number = rest.first;
            rest.first = number.next();
            progress.add(1);
            if !visit(number, resolved)? {
                progress.finish();
                return Ok(());
            }
        }
        most = (most * 2).min(BATCH);
    }
    progress.finish();
    Ok(())
}

type Read<E> = (SegmentName, Result<Summary, E>);

/// The next few summaries: at most `most`, fewer where they are long.
fn at_once<S: Summaries>(
    summaries: &S,
    way: Way,
    rest: Run,
    most: usize,
    threads: usize,
) -> Vec<Read<S::Error>> {
    let mut bytes = 0_u64;
    let names = rest.numbers().take(most).map(|number| way.name(number));
    let names: Vec<SegmentName> = names
        .enumerate()
        .take_while(|(index, name)| {
            bytes = bytes.saturating_add(summaries.stored_bytes(*name));
            *index == 0 || bytes <= BATCH_BYTES
        })
        .map(|(_, name)| name)
        .collect();
    if let [name] = names.as_slice() {
        return vec![(*name, summaries.summary(*name))];
    }
    let next = Mutex::new(0..names.len());
    let read: Vec<_> = names.iter().map(|_| Mutex::new(None)).collect();
    let silent = Progress::new(Show::Never, "", 0);
    let done: Result<(), std::convert::Infallible> =
        on_threads(threads.min(names.len()), &silent, &|| {
            while let Some(index) = lock(&next).next() {
                if let (Some(name), Some(place)) = (names.get(index), read.get(index)) {
                    *lock(place) = Some(summaries.summary(*name));
                }
            }
            Ok(())
        });
    let Ok(()) = done;
    let read = read.iter().filter_map(|place| lock(place).take());
    names.into_iter().zip(read.collect::<Vec<_>>()).collect()
}

/// Joins what ran into the segment from the one before.
fn resolve<S: Summaries>(
    summaries: &S,
    way: Way,
    joiner: &mut Joiner,
    number: SegmentNo,
    name: SegmentName,
    mut summary: Summary,
) -> Result<Resolved, S::Error> {
    let crossing = match joiner.next(&summary) {
        Ok(crossing) => crossing,
        Err(Rift::Cut(lsn)) => read_across(summaries, way, lsn, number)?,
        Err(apart @ Rift::Apart(_)) => return Err(summaries.apart(name, apart)),
    };
    let border = crossing.as_ref().map(|record| (record.start, record.end));
    if let Some(crossing) = crossing {
        summary
            .prepend(&crossing.record())
            .map_err(|damage| summaries.not_understood(name, crossing.start, damage))?;
    }
    Ok(Resolved { summary, border })
}

/// The record at `lsn`, which ends in segment `last`, from the segments themselves.
fn read_across<S: Summaries>(
    summaries: &S,
    way: Way,
    lsn: Lsn,
    last: SegmentNo,
) -> Result<Option<Joined>, S::Error> {
    let first = way.size.segment_of(lsn).max(way.run.first);
    let (mut found, mut check) = (None, None);
    for number in Run::through(first, last).numbers() {
        let read = summaries.records(way.name(number), check.take(), &mut |record| {
            if record.start == lsn {
                found = Some(Joined::from(record));
            }
        });
        check = Some(read?);
    }
    Ok(found)
}
