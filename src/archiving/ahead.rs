//! Pushing ahead: while the server waits for one segment, the next ones that it has marked ready go up beside it.
//!
//! The process stays until its batch is done, and then answers for its own segment. The calls for the others find a
//! receipt. What goes wrong with one of the others changes nothing about the answer: its own call says it.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use walhalla_postgres::{SegmentName, WalFileName};

use super::workers;
use crate::output;
use crate::pipeline::streams;
use crate::server::wal_directory::WalDirectory;
use crate::spool::receipts::{BeforeRead, Receipts};
use crate::threads::lock;
use crate::wal::Error;
use crate::wal::archiver::{Archiver, Pushed};

/// How long a batch takes further segments on: the server hears nothing of its own segment meanwhile.
const MOST_TIME: Duration = Duration::from_secs(30);

/// Where segments stand, where they go, and what is kept of that.
#[derive(Clone, Copy)]
pub struct Site<'a> {
    /// Stores them.
    pub archiver: &'a Archiver<'a>,
    /// The server's WAL directory.
    pub wal_directory: &'a WalDirectory,
    /// Of [`Kind::Pushed`](crate::spool::receipts::Kind::Pushed).
    pub receipts: &'a Receipts,
}

/// What may go up beside the segment that the server asks for.
pub struct Ahead<'a> {
    /// Where and how.
    pub site: Site<'a>,
    /// The setting `upload_concurrency`.
    pub most: usize,
    /// Whether the server is shutting down, and so waits for nothing but its own segment.
    pub is_stopping: &'a (dyn Fn() -> bool + Sync),
}

/// The segments of a batch that nobody has taken yet.
struct Batch<'a> {
    ahead: &'a Ahead<'a>,
    site: Site<'a>,
    left: Mutex<VecDeque<SegmentName>>,
    has_ended: AtomicBool,
    begun: Instant,
}

impl Site<'_> {
    /// Pushes a segment for which the server's call is still to come, and keeps a receipt; `false` where there is nothing to do.
    ///
    /// # Errors
    /// As [`Archiver::push_ahead`], and where its file cannot be read.
    pub fn push_ahead(&self, segment: SegmentName) -> Result<bool, Error> {
        let path = self.wal_directory.path(segment);
        let has = self.receipts.has(segment, &path);
        if has.map_err(Error::local("read", &path))? {
            return Ok(false);
        }
        let before = BeforeRead::look(&path).map_err(Error::local("look at", &path))?;
        // Another call may have archived it since it was listed, and the server given its file another name.
        if !self.wal_directory.is_ready(segment) {
            return Ok(false);
        }
        let pushed = self.archiver.push_ahead(&path, segment)?;
        let kept = self.keep(segment, &path, before, &pushed);
        kept.map_err(Error::local("keep a receipt for", &path))?;
        tracing::debug!("{segment} was pushed ahead");
        Ok(true)
    }

    /// Pushes the segment for which the server waits, and keeps a receipt.
    ///
    /// # Errors
    /// As [`Archiver::push`], and where its file cannot be read.
    pub fn push_asked(&self, segment: SegmentName) -> Result<(), Error> {
        let path = self.wal_directory.path(segment);
        let before = BeforeRead::look(&path).map_err(Error::local("look at", &path))?;
        let file = WalFileName::Segment(segment);
        let pushed = self.archiver.push(&path, file)?;
        if let Err(error) = self.keep(segment, &path, before, &pushed) {
            tracing::warn!("{segment} is archived, and no receipt for it can be kept: {error}");
        }
        Ok(())
    }

    /// Keeps a receipt. Without one the segment's own call compares it with what is archived.
    fn keep(
        &self,
        segment: SegmentName,
        path: &Path,
        before: BeforeRead,
        pushed: &Pushed,
    ) -> io::Result<()> {
        let known = match pushed {
            Pushed::Stored { content_blake3, .. } => *content_blake3,
            Pushed::AlreadyThere => None,
        };
        let read = || File::open(path).and_then(|mut file| streams::blake3(&mut file));
        let digest = known.map_or_else(read, Ok)?;
        self.receipts.keep(segment, path, before, Some(digest))
    }
}

impl Ahead<'_> {
    /// Pushes `path` as `file`, and beside it what the server has marked ready. Returns what became of `file`.
    ///
    /// # Errors
    /// As [`Archiver::push`], of `file` alone.
    pub fn push(&self, path: &Path, file: WalFileName) -> Result<Pushed, Error> {
        let ready = self.ready_beside(file);
        // What is not ready any more was asked for.
        let to_come: BTreeSet<SegmentName> = ready.iter().copied().collect();
        let is_kept = |segment| to_come.contains(&segment);
        if let Err(error) = self.site.receipts.retain(is_kept) {
            tracing::debug!("earlier receipts were not removed: {error}");
        }
        let threads = workers(self.most).min(ready.len() + 1);
        if threads < 2 || !self.can_keep_receipts() {
            return self.site.archiver.push(path, file);
        }
        let pipeline = self.site.archiver.pipeline.compressing_in_place();
        let archiver = Archiver {
            pipeline: &pipeline,
            ..self.site.archiver.clone()
        };
        let site = Site {
            archiver: &archiver,
            ..self.site
        };
        let batch = Batch {
            ahead: self,
            site,
            left: Mutex::new(ready),
            has_ended: AtomicBool::new(false),
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

    /// Whether the calls for other segments can be told that they are done: else it would all be done once more.
    fn can_keep_receipts(&self) -> bool {
        let kept = self.site.receipts.try_out();
        if let Err(error) = &kept {
            tracing::warn!(
                "nothing is pushed ahead, as receipts cannot be kept in the spool: {error}"
            );
        }
        kept.is_ok()
    }

    /// Whether the server has marked other segments ready.
    pub fn has_others(&self, file: WalFileName) -> bool {
        !self.ready_beside(file).is_empty()
    }

    /// The segments that are ready, without `file`.
    fn ready_beside(&self, file: WalFileName) -> VecDeque<SegmentName> {
        let ready = self.site.wal_directory.ready_segments();
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
            if let Err(error) = self.site.push_ahead(segment) {
                tell_left(segment, &error);
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
}

/// Says why a segment is not pushed ahead.
pub fn tell_left(segment: SegmentName, error: &Error) {
    let found = if matches!(error, Error::Mismatch { .. }) {
        "; in pg_wal it is not WAL in the clear, or not whole"
    } else {
        ""
    };
    let reason = output::chain(error);
    tracing::info!("{segment} is left to its own call and not pushed ahead{found}: {reason}");
}
