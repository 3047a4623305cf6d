//! From when to when a cluster can be brought back.
//!
//! A backup reaches every moment from its end to the last transaction before its WAL ends or has a hole. Where the
//! windows of several backups touch, they are one.

use std::cell::RefCell;
use std::collections::HashMap;

use jiff::Timestamp;
use serde::Serialize;
use walhalla_postgres::{History, SegmentName, SegmentNo};

use super::Error;
use super::branches::followed;
use super::target::TargetTimeline;
use crate::archive::proof::Proof;
use crate::archive::{Archive, Sought, Stretch};
use crate::repository::{BackupEntry, BackupId};
use crate::wal;

/// What one backup reaches.
#[derive(Clone, Debug, Serialize)]
pub struct Window {
    /// The backup.
    pub backup: BackupId,
    /// The timeline that is followed.
    pub timeline: u32,
    /// Its end, the first moment that can be reached.
    pub from: Timestamp,
    /// The last transaction; `None` where there is none after the backup, or its time cannot be read here.
    pub to: Option<Timestamp>,
    /// Whether the time of the last transaction cannot be read here.
    #[serde(skip)]
    pub is_end_unknown: bool,
    /// The last segment; `None` when the backup's own WAL is not whole.
    pub last_segment: Option<SegmentName>,
    /// The segment that is missing where later ones are there.
    pub missing: Option<SegmentName>,
}

/// A time within which every moment can be reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Span {
    /// The timeline.
    pub timeline: u32,
    /// Its begin.
    pub from: Timestamp,
    /// The last transaction; `None` where there is none after the begin, or its time cannot be read here.
    pub to: Option<Timestamp>,
    /// Whether the time of the last transaction cannot be read here.
    #[serde(skip)]
    pub is_end_unknown: bool,
    /// The missing segment that ends it; `None` at the end of the archive.
    pub missing: Option<SegmentName>,
}

/// The windows of backups, oldest first.
///
/// # Errors
/// The repository's.
pub fn windows(archive: &Archive, backups: &[BackupEntry]) -> Result<Vec<Window>, Error> {
    let ends = Ends {
        archive,
        known: RefCell::default(),
    };
    let windows = backups.iter().map(|backup| window(&ends, backup));
    windows.collect()
}

/// What windows come to in all, oldest first.
pub fn spans(windows: &[Window]) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for window in windows
        .iter()
        .filter(|window| window.last_segment.is_some())
    {
        let joins = |span: &&mut Span| {
            span.timeline == window.timeline
                && span.missing.is_none()
                && span.to.is_none_or(|to| window.from <= to)
        };
        match spans.last_mut().filter(joins) {
            Some(span) => {
                span.to = span.to.max(window.to);
                span.is_end_unknown = window.is_end_unknown;
                span.missing = window.missing;
            }
            None => spans.push(Span {
                timeline: window.timeline,
                from: window.from,
                to: window.to,
                is_end_unknown: window.is_end_unknown,
                missing: window.missing,
            }),
        }
    }
    spans
}

/// Spans as one where no WAL is missing between them: nothing was committed there, so each moment is like the one before.
pub fn joined(spans: &[Span]) -> Vec<Span> {
    let mut joined: Vec<Span> = Vec::new();
    for span in spans {
        let end = span.to.unwrap_or(span.from);
        match joined.last_mut() {
            Some(last) if last.timeline == span.timeline && last.missing.is_none() => {
                last.to = last.to.max(Some(end));
                last.is_end_unknown = span.is_end_unknown;
                last.missing = span.missing;
            }
            _ => joined.push(span.clone()),
        }
    }
    joined
}

/// The last segment that recovery from `backup` along `history` comes to; `None` when the archived WAL is not the backup's or
/// not whole.
///
/// # Errors
/// Those of reading summaries; what is wrong with a segment ends the way.
pub fn usable_end(
    archive: &Archive,
    backup: &BackupEntry,
    history: &History,
) -> Result<Option<SegmentNo>, wal::Error> {
    let (size, mut proof) = (backup.wal_segment_size, Proof::of(backup));
    let route = archive.route(history, size, size.segment_of(backup.start_lsn))?;
    let examined = archive.examine(&route.stretch)?;
    let mut last = None;
    for (number, facts) in route.stretch.run().numbers().zip(&examined.facts) {
        facts.show(&mut proof);
        last = Some(number);
        if facts.cut.is_some() {
            break;
        }
    }
    let consistent = size.segment_before(backup.stop_lsn);
    Ok(last.filter(|last| proof.holds() && *last >= consistent))
}

fn window(ends: &Ends, backup: &BackupEntry) -> Result<Window, Error> {
    let size = backup.wal_segment_size;
    let own = backup.timeline_history();
    let history = match followed(ends.archive, backup, TargetTimeline::Latest) {
        // Nothing tells whether another timeline leads on; the backup's own does.
        Err(Error::Unreachable(_)) => &own,
        followed => followed?.unwrap_or(&own),
    };
    let route = ends
        .archive
        .route(history, size, size.segment_of(backup.start_lsn))?;
    let run = route.stretch.run();
    let is_whole = run.contains(size.segment_before(backup.stop_lsn));
    let end = if is_whole {
        ends.of(&route.stretch)?
    } else {
        Sought::Nowhere
    };
    let from = backup.data_end();
    Ok(Window {
        backup: backup.id.clone(),
        timeline: history.timeline.number(),
        from,
        // A transaction that ended while the backup ran is part of it.
        to: end.found().filter(|to| *to >= from),
        is_end_unknown: end == Sought::GivenUp,
        last_segment: route.stretch.last_name().filter(|_| is_whole),
        missing: (route.gap || !is_whole).then(|| route.stretch.missing()),
    })
}

/// When the last transactions of stretches ended. Many backups have the same last segment, so the answer is kept by it.
struct Ends<'a> {
    archive: &'a Archive<'a>,
    known: RefCell<HashMap<SegmentName, LastEnd>>,
}

/// What is known of the stretches that end with a segment.
#[derive(Clone, Copy)]
struct LastEnd {
    /// The earliest segment that the search could have read.
    first: SegmentNo,
    /// The segment with the last transaction, and when that ended.
    found: Sought<(SegmentNo, Timestamp)>,
}

impl LastEnd {
    /// What it says of a stretch that begins with `first`; `None` where that was not looked at.
    fn since(self, first: SegmentNo) -> Option<Sought<Timestamp>> {
        match self.found {
            Sought::Found((number, time)) if first <= number => Some(Sought::Found(time)),
            Sought::Found(_) => Some(Sought::Nowhere),
            Sought::GivenUp => Some(Sought::GivenUp),
            Sought::Nowhere => (self.first <= first).then_some(Sought::Nowhere),
        }
    }
}

impl Ends<'_> {
    fn of(&self, stretch: &Stretch) -> Result<Sought<Timestamp>, Error> {
        let first = stretch.run().first;
        let Some(last) = stretch.last_name() else {
            return Ok(Sought::Nowhere);
        };
        let known = self.known.borrow().get(&last).copied();
        if let Some(known) = known.and_then(|known| known.since(first)) {
            return Ok(known);
        }
        let found = self
            .archive
            .seek(stretch.each().rev(), |number, resolved| {
                let times = resolved.summary.times;
                times.map(|(_, last)| (number, last))
            })?;
        self.known
            .borrow_mut()
            .insert(last, LastEnd { first, found });
        Ok(match found {
            Sought::Found((_, time)) => Sought::Found(time),
            Sought::Nowhere => Sought::Nowhere,
            Sought::GivenUp => Sought::GivenUp,
        })
    }
}
