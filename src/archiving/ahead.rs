//! Pushing ahead: while the server waits for one segment, the next ones that it has marked ready go up beside it.
//!
//! The process stays until its batch is done, and then answers for its own segment. The calls for the others find a
//! receipt. What goes wrong with one of the others changes nothing about the answer: its own call says it.

use std::collections::VecDeque;
use std::fs::File;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use walhalla_postgres::{SegmentName, WalFileName};

use crate::output;
use crate::pipeline::streams;
use crate::server::wal_directory::WalDirectory;
use crate::spool::receipts::{BeforeRead, Receipts};
use crate::threads::lock;
use crate::wal::Error;
use crate::wal::archiver::{Archiver, Pushed};

/// How long a batch takes further segments on: the server hears nothing of its own segment meanwhile.
const MOST_TIME: Duration = Duration::from_secs(30);

/// What may go up beside the segment that the server asks for.
pub struct Ahead<'a> {
    /// The server's WAL directory.
    pub wal_directory: &'a WalDirectory,
    /// What is known of earlier batches.
    pub receipts: &'a Receipts,
    /// How many segments go up at a time, with the one that was asked for.
    pub most: usize,
    /// Whether the server is shutting down, and so waits for nothing but its own segment.
    pub is_stopping: &'a (dyn Fn() -> bool + Sync),
}

/// The segments of a batch that nobody has taken yet.
struct Batch<'a> {
    archiver: &'a Archiver<'a>,
    ahead: &'a Ahead<'a>,
    left: Mutex<VecDeque<SegmentName>>,
    has_ended: AtomicBool,
    begun: Instant,
}

impl Ahead<'_> {
    /// Pushes `path` as `file`, and beside it what the server has marked ready. Returns what became of `file`.
    ///
    /// # Errors
    /// As [`Archiver::push`], of `file` alone.
    pub fn push(
        &self,
        archiver: &Archiver,
        path: &Path,
        file: WalFileName,
    ) -> Result<Pushed, Error> {
        let ready = self.ready_beside(file);
        // What is not ready any more was asked for.
        if let Err(error) = self.receipts.retain(ready.iter().copied()) {
            tracing::debug!("earlier receipts were not removed: {error}");
        }
        let threads = self.most.min(ready.len() + 1);
        let batch = Batch {
            archiver,
            ahead: self,
            left: Mutex::new(ready),
            has_ended: AtomicBool::new(threads < 2),
            begun: Instant::now(),
        };
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(|| batch.work());
            }
            let pushed = archiver.push(path, file);
            match &pushed {
                Ok(_) => batch.work(),
                Err(_) => batch.end(),
            }
            pushed
        })
    }

    /// Whether the server has marked other segments ready.
    pub fn has_others(&self, file: WalFileName) -> bool {
        !self.ready_beside(file).is_empty()
    }

    /// The segments that are ready, without `file`.
    fn ready_beside(&self, file: WalFileName) -> VecDeque<SegmentName> {
        let ready = self.wal_directory.ready_segments();
        let ready =
            ready.inspect_err(|error| tracing::debug!("what else is ready is not known: {error}"));
        let others = { ready.unwrap_or_default() }.into_iter();
        others
            .filter(|segment| WalFileName::Segment(*segment) != file)
            .collect()
    }
}

impl Batch<'_> {
    /// Pushes one segment after the other until none is left or the batch ends.
    fn work(&self) {
        while let Some(segment) = self.next() {
            if let Err(error) = self.push(segment) {
                let reason = output::chain(&error);
                let found = if matches!(error, Error::Mismatch { .. }) {
                    "; in pg_wal it is not WAL in the clear, or not whole"
                } else {
                    ""
                };
                tracing::info!(
                    "{segment} is left to its own call and not pushed ahead{found}: {reason}"
                );
                self.end();
            }
        }
    }

    fn end(&self) {
        self.has_ended.store(true, Ordering::Relaxed);
    }

    fn next(&self) -> Option<SegmentName> {
        let is_over = || {
            self.has_ended.load(Ordering::Relaxed)
                || self.begun.elapsed() > MOST_TIME
                || (self.ahead.is_stopping)()
        };
        if is_over() {
            return None;
        }
        lock(&self.left).pop_front()
    }

    fn push(&self, segment: SegmentName) -> Result<(), Error> {
        let path = self.ahead.wal_directory.path(segment);
        let receipts = self.ahead.receipts;
        let unreadable = |error| Error::local("read", &path)(error);
        if receipts.has(segment, &path).map_err(unreadable)? {
            return Ok(());
        }
        let before = BeforeRead::look(&path).map_err(unreadable)?;
        // Between the listing and now another call may have archived it, and the server given its file another name.
        if !self.ahead.wal_directory.is_ready(segment) {
            return Ok(());
        }
        let digest = match self.archiver.push_ahead(&path, segment)? {
            Pushed::Stored {
                content_blake3: Some(digest),
                ..
            } => digest,
            Pushed::Stored { .. } | Pushed::AlreadyThere => {
                let file = File::open(&path);
                { file.and_then(|mut file| streams::blake3(&mut file)) }.map_err(unreadable)?
            }
        };
        let kept = receipts.keep(segment, &path, before, digest);
        kept.map_err(Error::local("write", &path))?;
        tracing::debug!("{segment} was pushed ahead");
        Ok(())
    }
}
