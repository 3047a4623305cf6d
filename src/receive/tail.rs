//! Storing the tail: what came of a segment that is not full.
//!
//! ```text
//! a directory: one log that grows                      entry │ entry │ entry
//! other stores: pieces; a thousand of them become one  ───┤──┤─┤──┤ ─▶ ──────────┤
//! ```

use std::thread::JoinHandle;

use walhalla_postgres::SegmentName;
use walhalla_providers::{GrowingObject, ObjectKey, PutMode};

use super::Error;
use super::segment::SegmentFile;
use crate::failure::Failure as _;
use crate::output;
use crate::pipeline::Pipeline;
use crate::repository::Repository;
use crate::repository::layout::{Object, RunId, TailObject, TailPart};
use crate::repository::tails::{PIECE_BYTES, entry_header};
use crate::wal;

/// Pieces that become one. So many of each length stay at most, and as many while they are made one.
const MERGED_PIECES: usize = 1000;
/// Bytes in pieces that become one before there are so many of them. What is longer is not copied again.
const MERGED_BYTES: u32 = PIECE_BYTES;

/// Stores one segment's tail, as one run.
pub(super) struct TailWriter {
    store: TailStore,
    medium: Medium,
    /// Up to where it is in the store.
    pub(super) stored: u32,
}

/// Where a run's objects go.
#[derive(Clone)]
struct TailStore {
    repository: Repository,
    pipeline: Pipeline,
    segment: SegmentName,
    run: RunId,
}

enum Medium {
    Log(Box<dyn GrowingObject>),
    Pieces(Pieces),
}

/// Pieces in the store that may become fewer.
#[derive(Default)]
struct Pieces {
    /// As they were stored, then those that were made out of a thousand, and so on. Those of a level follow one another.
    levels: Vec<Vec<(u32, u32)>>,
    merging: Option<(usize, Merge)>,
    /// After a failure nothing is merged any more: without the right to delete it would only store more.
    has_failed: bool,
}

/// A piece that is being made out of many, or why it was not.
type Merge = JoinHandle<Result<(u32, u32), String>>;

impl TailWriter {
    /// The run of a segment of which nothing is stored yet.
    ///
    /// # Errors
    /// The store's.
    pub(super) fn begin(
        repository: &Repository,
        pipeline: &Pipeline,
        segment: SegmentName,
        run: RunId,
    ) -> Result<Self, Error> {
        let store = TailStore {
            repository: repository.clone(),
            pipeline: pipeline.framed(),
            segment,
            run,
        };
        let log = store.object(TailPart::Log);
        let session = store.repository.session();
        let growing = session.grow(&log.key).map_err(wal::Error::from)?;
        Ok(Self {
            medium: growing.map_or_else(|| Medium::Pieces(Pieces::default()), Medium::Log),
            store,
            stored: 0,
        })
    }

    /// Whether storing takes no longer than a write to a disk.
    pub(super) fn is_local(&self) -> bool {
        matches!(self.medium, Medium::Log(_))
    }

    /// Stores what has come up to `end` and is not stored. After `Ok` it survives a crash.
    ///
    /// # Errors
    /// The store's; nothing more can be stored by this run then.
    pub(super) fn store(&mut self, file: &SegmentFile, end: u32) -> Result<(), Error> {
        while self.stored < end {
            let to = end.min(self.stored.saturating_add(PIECE_BYTES));
            let from = self.stored;
            let bytes = file.bytes(from, to)?;
            match &mut self.medium {
                Medium::Log(log) => {
                    let (_, packed) = self.store.packed(from, to, &bytes)?;
                    let header = entry_header(from, to, &packed);
                    let entry = [&header[..], &packed].concat();
                    log.append(&entry).map_err(wal::Error::from)?;
                }
                Medium::Pieces(pieces) => {
                    self.store.put(from, to, &bytes)?;
                    pieces.add(from, to);
                }
            }
            self.stored = to;
        }
        Ok(())
    }

    /// Makes many pieces fewer, beside everything else.
    pub(super) fn tidy(&mut self, file: impl FnOnce() -> Result<SegmentFile, wal::Error>) {
        if let Medium::Pieces(pieces) = &mut self.medium {
            pieces.end_merge(Waiting::IfDone);
            pieces.begin_merge(&self.store, file);
        }
    }

    /// Ends the run. What it stored stays.
    pub(super) fn finish(self) {
        match self.medium {
            Medium::Log(log) => log.finish(),
            Medium::Pieces(mut pieces) => pieces.end_merge(Waiting::ForIt),
        }
    }
}

impl TailStore {
    fn object(&self, part: TailPart) -> Object {
        let what = TailObject {
            segment: self.segment,
            run: self.run,
            part,
        };
        let layout = self.repository.layout();
        layout.tail(what, self.pipeline.packing())
    }

    fn packed(&self, from: u32, to: u32, bytes: &[u8]) -> Result<(ObjectKey, Vec<u8>), Error> {
        let object = self.object(TailPart::Piece(from, to));
        let packed = self.pipeline.packed(&object.key, object.name(), bytes)?;
        Ok((object.key, packed))
    }

    fn put(&self, from: u32, to: u32, bytes: &[u8]) -> Result<(), Error> {
        let (key, packed) = self.packed(from, to, bytes)?;
        let session = self.repository.session();
        let put = session.put(&key, packed.into(), PutMode::Create);
        Ok(put.map_err(wal::Error::from)?)
    }

    /// Stores one piece for all of `pieces`, and then removes them.
    fn merge(&self, file: &SegmentFile, pieces: &[(u32, u32)]) -> Result<(u32, u32), String> {
        let (Some((from, _)), Some((_, to))) = (pieces.first(), pieces.last()) else {
            return Err("there are none".to_owned());
        };
        let bytes = file
            .bytes(*from, *to)
            .map_err(|error| output::chain(&error))?;
        self.put(*from, *to, &bytes)
            .map_err(|error| output::chain(&error))?;
        let keys = pieces.iter();
        let keys: Vec<ObjectKey> = keys
            .map(|(from, to)| self.object(TailPart::Piece(*from, *to)).key)
            .collect();
        let removed = self.repository.remove(&keys);
        removed.map_err(|error| output::chain(&error))?;
        Ok((*from, *to))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    ForIt,
    IfDone,
}

impl Pieces {
    fn add(&mut self, from: u32, to: u32) {
        self.add_to(0, (from, to));
    }

    fn add_to(&mut self, level: usize, piece: (u32, u32)) {
        if self.levels.len() <= level {
            self.levels.resize(level + 1, Vec::new());
        }
        // A longer one is a border: what is before it and after it does not become one piece.
        if let Some(pieces) = self.levels.get_mut(level)
            && piece.1 - piece.0 < MERGED_BYTES / 2
        {
            pieces.push(piece);
        }
    }

    fn begin_merge(
        &mut self,
        store: &TailStore,
        file: impl FnOnce() -> Result<SegmentFile, wal::Error>,
    ) {
        if self.merging.is_some() || self.has_failed {
            return;
        }
        let full = self.levels.iter().position(|pieces| is_full(pieces));
        let Some((level, pieces)) = full.and_then(|level| {
            let pieces = self.levels.get_mut(level)?;
            Some((level, first_that_follow(pieces)))
        }) else {
            return;
        };
        if pieces.len() < 2 {
            return;
        }
        let Ok(file) = file() else { return };
        let store = store.clone();
        let merge = std::thread::spawn(move || store.merge(&file, &pieces));
        self.merging = Some((level, merge));
    }

    fn end_merge(&mut self, waiting: Waiting) {
        let is_done =
            |(_, merge): &mut (_, JoinHandle<_>)| waiting == Waiting::ForIt || merge.is_finished();
        let Some((level, merge)) = self.merging.take_if(is_done) else {
            return;
        };
        match merge.join() {
            Ok(Ok(piece)) => self.add_to(level + 1, piece),
            Ok(Err(reason)) => {
                tracing::warn!(
                    "pieces of the tail stay as they are, as they could not be made fewer: {reason}"
                );
                self.has_failed = true;
            }
            Err(_) => self.has_failed = true,
        }
    }
}

fn is_full(pieces: &[(u32, u32)]) -> bool {
    let bytes: u32 = pieces.iter().map(|(from, to)| to - from).sum();
    pieces.len() >= MERGED_PIECES || bytes >= MERGED_BYTES
}

/// Takes the first pieces that follow one another out, as many as one piece may hold.
fn first_that_follow(pieces: &mut Vec<(u32, u32)>) -> Vec<(u32, u32)> {
    let begin = pieces.first().map_or(0, |(from, _)| *from);
    let mut end = begin;
    let follows = |(from, to): &&(u32, u32)| {
        let fits = *from == end && to - begin <= PIECE_BYTES;
        end = *to;
        fits
    };
    let count = pieces.iter().take_while(follows).count();
    pieces.drain(..count.max(1).min(pieces.len())).collect()
}

/// Takes away what runs stored of a segment that is archived; whatever hinders it, it is only superseded.
pub(super) fn sweep(repository: &Repository, segment: SegmentName, runs: &[RunId]) {
    let files = match repository.tail_files(segment) {
        Ok(files) => files,
        Err(error) => {
            tracing::debug!("pieces of {segment} stay: {}", output::chain(&error));
            return;
        }
    };
    let own = files
        .into_iter()
        .filter(|file| runs.contains(&file.what.run));
    let keys: Vec<ObjectKey> = own.map(|file| file.object.key).collect();
    if let Err(error) = repository.remove(&keys) {
        let hint = error.hint().unwrap_or_default();
        tracing::debug!(
            "pieces of {segment} stay: {}; {hint}",
            output::chain(&error)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_that_follow_one_another_become_one_of_bounded_length() {
        let mut pieces = vec![(0, 5), (5, 9), (9, 20), (30, 40), (40, 41)];
        assert_eq!(first_that_follow(&mut pieces), [(0, 5), (5, 9), (9, 20)]);
        assert_eq!(first_that_follow(&mut pieces), [(30, 40), (40, 41)]);
        assert!(first_that_follow(&mut pieces).is_empty());
        let third = PIECE_BYTES / 3;
        let mut pieces: Vec<_> = (0..5).map(|at| (at * third, (at + 1) * third)).collect();
        assert_eq!(first_that_follow(&mut pieces).len(), 3);
        assert_eq!(pieces.len(), 2);
    }

    #[test]
    fn a_level_is_full_by_number_or_by_length() {
        let small: Vec<_> = (0..1000).map(|at| (at, at + 1)).collect();
        assert!(is_full(&small));
        assert!(!is_full(&small[1..]));
        assert!(is_full(&[
            (0, MERGED_BYTES - 1),
            (MERGED_BYTES - 1, MERGED_BYTES)
        ]));
    }
}
