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
use crate::repository::{BackupEntry, BackupId};
use crate::wal;
use crate::wal::archive::{Archive, Needed, Route};
use crate::wal::proof::Proof;

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
    /// The last transaction; `None` where its time cannot be read here.
    pub to: Option<Timestamp>,
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
                span.missing = window.missing;
            }
            None => spans.push(Span {
                timeline: window.timeline,
                from: window.from,
                to: window.to,
                missing: window.missing,
            }),
        }
    }
    spans
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
    let examined = archive.examine(history, &route.segments)?;
    let mut last = None;
    for (needed, facts) in route.segments.iter().zip(&examined.facts) {
        facts.show(&mut proof);
        last = Some(needed.number);
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
    let consistent = size.segment_before(backup.stop_lsn);
    let is_whole = route
        .segments
        .last()
        .is_some_and(|last| last.number >= consistent);
    let next = route.segments.last().map(|last| last.number.next());
    let next = next.unwrap_or(size.segment_of(backup.start_lsn));
    Ok(Window {
        backup: backup.id.clone(),
        timeline: history.timeline.number(),
        from: backup.data_end(),
        to: if is_whole {
            ends.of(history, &route)?
        } else {
            None
        },
        last_segment: route
            .segments
            .last()
            .map(|last| last.name)
            .filter(|_| is_whole),
        missing: (route.gap || !is_whole).then(|| history.segment_name(next, size)),
    })
}

/// Segments that are read backwards, from the end of a route, for a transaction. An idle server with an `archive_timeout` of
/// a minute archives as many in 16 hours.
const MOST_READ: usize = 1000;
/// Of those, segments that cannot be read.
const MOST_UNREADABLE: usize = 16;

/// When the last transactions of routes ended.
struct Ends<'a> {
    archive: &'a Archive<'a>,
    known: RefCell<HashMap<SegmentName, LastEnd>>,
}

/// The last transaction that ended in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LastEnd {
    At(Timestamp),
    /// None ended in it.
    Idle,
    /// It is damaged, or no identity opens it.
    Unreadable,
}

impl Ends<'_> {
    fn of(&self, history: &History, route: &Route) -> Result<Option<Timestamp>, Error> {
        let mut unreadable = 0;
        for needed in route.segments.iter().rev().take(MOST_READ) {
            match self.segment(history, needed)? {
                LastEnd::At(time) => return Ok(Some(time)),
                LastEnd::Idle => {}
                LastEnd::Unreadable => unreadable += 1,
            }
            if unreadable == MOST_UNREADABLE {
                break;
            }
        }
        Ok(None)
    }

    fn segment(&self, history: &History, needed: &Needed) -> Result<LastEnd, Error> {
        if let Some(known) = self.known.borrow().get(&needed.name) {
            return Ok(*known);
        }
        let mut end = LastEnd::Unreadable;
        let walked = self
            .archive
            .walk(history, std::slice::from_ref(needed), |_, resolved| {
                let last = resolved.summary.times.map(|(_, last)| last);
                end = last.map_or(LastEnd::Idle, LastEnd::At);
                Ok::<_, wal::Error>(false)
            });
        match walked {
            Err(error) if error.is_locked() => {}
            Err(error) if error.is_damage() => tracing::warn!("{error}"),
            walked => walked?,
        }
        self.known.borrow_mut().insert(needed.name, end);
        Ok(end)
    }
}
