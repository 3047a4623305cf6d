//! The process, or the daemon's thread, that fetches ahead.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use walhalla_postgres::wal::cluster::Cluster;
use walhalla_postgres::{SegmentName, WalFileName};

use super::spooled::Spooled;
use super::window::Window;
use crate::output;
use crate::repository::Repository;
use crate::server::wal_directory::WalDirectory;
use crate::threads::lock;
use crate::wal::fetcher::{Fetcher, NewFile};
use crate::wal::{Error, history_beside};

/// Disk that the segments in the spool take at most, unless one is longer.
const MOST_BYTES: u64 = 1 << 30;
/// How long nothing is asked for until fetching ahead ends: replay may be delayed, and what was fetched is removed then.
const IDLE: Duration = Duration::from_mins(10);
/// How often is looked what the server asks for. Each look costs the processor, which replay needs; the window is ahead of it by more.
const INTERVAL: Duration = Duration::from_millis(20);
/// How often the server is looked at.
const SERVER_INTERVAL: Duration = Duration::from_millis(250);
/// Another call may look for a moment whether somebody has the lock.
const LOCK_ATTEMPTS: u32 = 5;
const LOCK_INTERVAL: Duration = Duration::from_millis(5);

/// What is fetched, and how.
#[derive(Clone, Debug)]
pub struct Background {
    /// The archive.
    pub repository: Repository,
    /// The cluster that recovers.
    pub cluster: Cluster,
    /// Where segments go.
    pub spooled: Spooled,
    /// The server's WAL directory, in which histories of timelines may stand.
    pub wal_directory: WalDirectory,
    /// How many segments are fetched at a time.
    pub threads: usize,
    /// How many segments are fetched ahead at most.
    pub most: usize,
}

/// What the threads share.
struct Shared {
    work: Background,
    window: Mutex<Window>,
    /// That the window moved, or all ends.
    moved: Condvar,
    has_ended: AtomicBool,
}

impl Background {
    /// Fetches ahead as long as the server asks for segments and `is_needed` holds. Returns at once where another process
    /// does so. In the end the spool holds nothing of it.
    ///
    /// # Errors
    /// The spool cannot be used.
    pub fn run(self, is_needed: impl Fn() -> bool) -> Result<(), Error> {
        let spool = self.spooled.clone();
        let unusable = |error| Error::local("use", spool.path_of_all())(error);
        let Some(_lock) = self.lock().map_err(unusable)? else {
            return Ok(());
        };
        // What an earlier one left for a server that is gone.
        let left = spool.retain(|segment| spool.has(segment).unwrap_or(false));
        left.map_err(unusable)?;
        let shared = Arc::new(Shared::new(self));
        let threads: Vec<JoinHandle<()>> = (0..shared.work.threads.max(1))
            .map(|_| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || shared.work())
            })
            .collect();
        let followed = shared.follow(is_needed);
        shared.end();
        let cleared = spool.clear();
        // A download that hangs is not waited for: without its temporary file it comes to nothing.
        drop(threads);
        followed.and(cleared).map_err(unusable)
    }

    /// Brings a segment into the spool; `false` where there is none yet, or where it is not whole and so is for the server's
    /// own call to judge.
    ///
    /// # Errors
    /// The archive's, and the spool's.
    pub fn bring(&self, segment: SegmentName) -> Result<bool, Error> {
        let file = WalFileName::Segment(segment);
        let Some(archived) = self.repository.find_one_wal(file)? else {
            return Ok(false);
        };
        let beside = self.wal_directory.path(segment);
        let history = history_beside(&self.repository, &beside, segment.timeline)?;
        let fetcher = Fetcher {
            repository: &self.repository,
            cluster: Some(self.cluster),
            ends_recovery: false,
        };
        let path = self.spooled.path(segment);
        let target = NewFile::create(&path)?;
        let read = fetcher.fetch_archived(file, &archived, &history, None, target)?;
        if read.is_none_or(|read| read.unfinished().is_some()) {
            std::fs::remove_file(&path).map_err(Error::local("remove", &path))?;
            return Ok(false);
        }
        self.spooled.keep(segment)?;
        Ok(true)
    }

    fn lock(&self) -> std::io::Result<Option<crate::spool::Lock>> {
        for _ in 1..LOCK_ATTEMPTS {
            if let Some(lock) = self.spooled.lock()? {
                return Ok(Some(lock));
            }
            thread::sleep(LOCK_INTERVAL);
        }
        self.spooled.lock()
    }
}

impl Shared {
    fn new(work: Background) -> Self {
        let size = work.cluster.segment_size;
        let fits = usize::try_from(MOST_BYTES / size.bytes()).unwrap_or(1);
        let window = Window::new(size, work.threads, work.most.min(fits).max(1));
        Self {
            work,
            window: Mutex::new(window),
            moved: Condvar::new(),
            has_ended: AtomicBool::new(false),
        }
    }

    /// Moves the window to what the server asks for, until it asks for nothing more.
    fn follow(&self, is_needed: impl Fn() -> bool) -> std::io::Result<()> {
        let (mut last, mut asked, mut looked) = (None, Instant::now(), Instant::now());
        while asked.elapsed() < IDLE && !self.has_ended.load(Ordering::Relaxed) {
            if looked.elapsed() > SERVER_INTERVAL {
                looked = Instant::now();
                if !is_needed() {
                    return Ok(());
                }
            }
            let wanted = self.work.spooled.wanted()?;
            if wanted.is_some() && wanted != last {
                (last, asked) = (wanted, Instant::now());
                if let Some((segment, _)) = wanted {
                    lock(&self.window).want(segment);
                    self.moved.notify_all();
                    self.remove_what_is_behind()?;
                }
            }
            thread::sleep(INTERVAL);
        }
        Ok(())
    }

    fn remove_what_is_behind(&self) -> std::io::Result<()> {
        let window = lock(&self.window);
        self.work.spooled.retain(|segment| window.holds(segment))
    }

    /// Wakes the threads, so that they end.
    fn end(&self) {
        let _window = lock(&self.window);
        self.has_ended.store(true, Ordering::Relaxed);
        self.moved.notify_all();
    }

    /// The segment to fetch next, once there is one; `None` when all ends.
    fn next(&self) -> Option<SegmentName> {
        let mut window = lock(&self.window);
        loop {
            if self.has_ended.load(Ordering::Relaxed) {
                return None;
            }
            if let Some(segment) = window.take_next() {
                return Some(segment);
            }
            let waited = self.moved.wait(window);
            window = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Fetches one segment after the other until all ends.
    fn work(&self) {
        while let Some(segment) = self.next() {
            let fetched = self.work.bring(segment);
            if self.has_ended.load(Ordering::Relaxed) {
                // Nothing may be left.
                drop(self.work.spooled.clear());
                return;
            }
            let mut window = lock(&self.window);
            match fetched {
                Ok(true) => window.came(segment),
                Ok(false) => window.failed(segment),
                Err(error) => {
                    // The server's own call meets the same, and tells it.
                    tracing::debug!("{segment} is not fetched ahead: {}", output::chain(&error));
                    window.failed(segment);
                }
            }
        }
    }
}
