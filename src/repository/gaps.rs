//! The ledger of gaps: segments that `wal-push` dropped, as the setting `max_backlog` allows, so that no disk fills up.
//!
//! The ledger explains a gap and makes none. Where a segment is archived, it counts for nothing that it was also dropped.

use jiff::Timestamp;
use serde::Serialize;
use walhalla_postgres::SegmentName;
use walhalla_providers::{Error as StoreError, ErrorKind, ObjectInfo, PutMode};

use super::Repository;
use super::layout::{DroppedSegments, Key};

/// The format of a gap's content.
const FORMAT: u32 = 1;

/// When and why segments were dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Circumstances {
    /// How many there are.
    pub segments: u64,
    /// When the first one was dropped.
    pub from: Timestamp,
    /// When the last one was dropped.
    pub to: Timestamp,
    /// The setting, in bytes.
    pub max_backlog_bytes: u64,
}

/// A gap that the store tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordedGap {
    /// The segments.
    pub dropped: DroppedSegments,
    /// When the store received the record, by the store's clock.
    pub recorded: Timestamp,
}

/// What a gap's object holds, for people; whoever reads gaps goes by the key.
#[derive(Serialize)]
struct Content {
    format: u32,
    first_segment: SegmentName,
    last_segment: SegmentName,
    segments: u64,
    first_dropped: Timestamp,
    last_dropped: Timestamp,
    max_backlog_bytes: u64,
    walhalla_version: &'static str,
}

impl std::fmt::Display for RecordedGap {
    /// Why the segments are missing.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let DroppedSegments { first, last } = self.dropped;
        let recorded = crate::output::look::time(self.recorded);
        write!(
            f,
            "wal-push dropped {first} to {last}, because more WAL waited than max_backlog allows (recorded at {recorded})"
        )
    }
}

impl Repository {
    /// Records that segments were dropped. After `Ok` the record is durable. A deletion removes it when nothing that is kept needs the segments.
    ///
    /// # Errors
    /// The store's.
    pub fn record_gap(
        &self,
        dropped: DroppedSegments,
        circumstances: &Circumstances,
    ) -> Result<(), StoreError> {
        let content = Content {
            format: FORMAT,
            first_segment: dropped.first,
            last_segment: dropped.last,
            segments: circumstances.segments,
            first_dropped: circumstances.from,
            last_dropped: circumstances.to,
            max_backlog_bytes: circumstances.max_backlog_bytes,
            walhalla_version: crate::VERSION,
        };
        let json = serde_json::to_string(&content).expect("names, times and numbers are JSON");
        let key = self.layout.key(&Key::Gap(dropped));
        match self
            .session
            .put(&key, format!("{json}\n").into(), PutMode::Create)
        {
            // It was recorded by a process that was killed before it could forget it.
            Err(error) if error.kind == ErrorKind::AlreadyExists => Ok(()),
            put => put,
        }
    }

    /// The recorded gaps of all timelines, by one listing.
    ///
    /// # Errors
    /// The store's.
    pub fn recorded_gaps(&self) -> Result<Vec<RecordedGap>, StoreError> {
        self.gaps_below(&self.layout.gap_folders())
    }

    /// Why `missing`, a segment that is not archived, is not there; `None` where the ledger does not say.
    ///
    /// # Errors
    /// The store's.
    pub fn why_missing(&self, missing: SegmentName) -> Result<Option<RecordedGap>, StoreError> {
        let gaps = self.gaps_below(&self.layout.gap_folder(missing.timeline))?;
        Ok(gaps.into_iter().find(|gap| gap.dropped.has(missing)))
    }

    /// Copies a record to `copy`, the same cluster in another store, unless it is there.
    ///
    /// # Errors
    /// Of either store.
    pub fn copy_gap(&self, dropped: DroppedSegments, copy: &Self) -> Result<(), StoreError> {
        let key = self.layout.key(&Key::Gap(dropped));
        let content = self.read_small(&key)?;
        match copy.session.put(&key, content, PutMode::Create) {
            Err(error) if error.kind == ErrorKind::AlreadyExists => Ok(()),
            put => put,
        }
    }

    fn gaps_below(&self, folder: &str) -> Result<Vec<RecordedGap>, StoreError> {
        let found = self.session.list(folder, None)?;
        let gap = |info: &ObjectInfo| match self.layout.parse(&info.key) {
            Key::Gap(dropped) => Some(RecordedGap {
                dropped,
                recorded: info.modified,
            }),
            _ => None,
        };
        Ok(found.iter().filter_map(gap).collect())
    }
}
