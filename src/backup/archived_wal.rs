//! Waiting for the WAL without which a backup is not consistent.

use std::time::{Duration, Instant};

use walhalla_postgres::{SegmentName, SegmentNo, WalFileName};

use super::Error;
use super::request::Backup;
use crate::contents::manifest::WalRange;
use crate::server::session::ArchiverState;

/// How soon the archive is asked again whether a segment is there: an eighth of what was waited for it, within these.
const SHORTEST_POLL: Duration = Duration::from_millis(10);
const LONGEST_POLL: Duration = Duration::from_secs(1);

/// How often a backup that waits says that the archiver fails.
const WARNED_AGAIN: Duration = Duration::from_mins(1);

/// What is known of the archiver while a backup waits for it.
struct Wait {
    /// When it archived something last.
    arrived: Instant,
    /// How many files it has archived.
    archived: i64,
    /// When the user was warned last.
    warned: Option<Instant>,
}

impl Backup<'_> {
    /// Waits until every segment that makes the backup consistent is in the archive, or the backup `has_failed`. `ask` tells
    /// of the server's archiver.
    ///
    /// # Errors
    /// [`Error::WalMissing`] when the archiver archives nothing for as long as the user allows.
    pub(super) fn wait_for_wal(
        &self,
        ask: &mut dyn FnMut() -> Result<ArchiverState, Error>,
        range: WalRange,
        has_failed: &dyn Fn() -> bool,
    ) -> Result<(), Error> {
        let size = self.control.segment_size;
        let (first, last) = (size.segment_of(range.start), size.segment_before(range.end));
        let mut wait = Wait {
            arrived: Instant::now(),
            archived: 0,
            warned: None,
        };
        for number in first.0..=last.0 {
            let segment = SegmentNo(number).on(range.timeline, size);
            self.wait_for_segment(ask, segment, &mut wait, has_failed)?;
            wait.arrived = Instant::now();
        }
        Ok(())
    }

    fn wait_for_segment(
        &self,
        ask: &mut dyn FnMut() -> Result<ArchiverState, Error>,
        segment: SegmentName,
        wait: &mut Wait,
        has_failed: &dyn Fn() -> bool,
    ) -> Result<(), Error> {
        let file = WalFileName::Segment(segment);
        let limit = self.options.archive_timeout;
        let mut begun = None;
        while !has_failed() && self.repository.find_wal(file)?.is_none() {
            let begun = begun.get_or_insert_with(|| {
                tracing::info!("waiting for WAL segment {segment} to arrive in the archive");
                Instant::now()
            });
            let state = ask()?;
            // A long backlog is no standstill: whatever the archiver archives counts.
            if state.archived != wait.archived {
                (wait.archived, wait.arrived) = (state.archived, Instant::now());
            }
            wait.warn(&state, limit);
            if wait.arrived.elapsed() > limit {
                return Err(Error::WalMissing {
                    segment,
                    seconds: limit.as_secs(),
                    failing: state.failing,
                });
            }
            std::thread::sleep((begun.elapsed() / 8).clamp(SHORTEST_POLL, LONGEST_POLL));
        }
        Ok(())
    }
}

impl Wait {
    /// Warns of an archiver that fails, now and then.
    fn warn(&mut self, state: &ArchiverState, limit: Duration) {
        let is_recent = |warned: Instant| warned.elapsed() < WARNED_AGAIN;
        let Some(file) = state
            .failing
            .as_ref()
            .filter(|_| !self.warned.is_some_and(is_recent))
        else {
            return;
        };
        self.warned = Some(Instant::now());
        tracing::warn!(
            "the server's archiver fails on {file}, and last tried it at {}; the server's log has the reason. \
             The backup is copied, and waits for its WAL for {} s more",
            state.failed_at.as_deref().unwrap_or_default(),
            limit.saturating_sub(self.arrived.elapsed()).as_secs()
        );
    }
}
