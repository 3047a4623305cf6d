//! Segments that were fetched before the server asked for them.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use walhalla_postgres::SegmentName;

use crate::server::postmaster;
use crate::spool::receipts::{BeforeRead, Kind, Receipts};
use crate::spool::{Lock, Part, Spool};
use crate::wal::Error;
use crate::wal::fetcher::{NewFile, of_temporary};

/// The part of the spool with the segments.
const PART: &str = "wal";
/// The file in it that names the segment which the server asked for last.
const WANTED: &str = "wanted";
/// How long a call waits for a segment that is on its way. It is fetched once more then.
const MOST_WAITING: Duration = Duration::from_secs(10);
const WAITING_INTERVAL: Duration = Duration::from_millis(2);
/// More than a segment's name has.
const NAME_BYTES: u64 = 64;

/// The segments in the spool of one data directory.
#[derive(Clone, Debug)]
pub struct Spooled {
    spool: Spool,
    receipts: Receipts,
    /// Seconds since 1970. What was fetched before was fetched for a server that is gone.
    since: i64,
}

impl Spooled {
    /// Those in `spool` that were fetched for the server which runs in `pgdata`. `receipts` are of [`Kind::Fetched`].
    pub fn new(spool: Spool, receipts: Receipts, pgdata: &Path) -> Self {
        Self {
            spool,
            receipts,
            since: postmaster::started(pgdata).unwrap_or(0),
        }
    }

    /// Says which segment the server asks for.
    ///
    /// # Errors
    /// The system's.
    pub fn want(&self, segment: SegmentName) -> io::Result<()> {
        self.part()?.write(WANTED, segment.to_string().as_bytes())
    }

    /// The segment that the server asked for last, and when it did.
    ///
    /// # Errors
    /// The system's.
    pub fn wanted(&self) -> io::Result<Option<(SegmentName, SystemTime)>> {
        let Some(part) = self.spool.part(PART)? else {
            return Ok(None);
        };
        let Some((name, modified)) = part.read_with_time(WANTED, NAME_BYTES)? else {
            return Ok(None);
        };
        let name = String::from_utf8_lossy(&name).parse().ok();
        Ok(name.map(|name| (name, modified)))
    }

    /// The directory of the spool.
    pub fn path_of_all(&self) -> &Path {
        self.spool.path()
    }

    /// That this process alone fetches ahead; `None` while another one does.
    ///
    /// # Errors
    /// The system's.
    pub fn lock(&self) -> io::Result<Option<Lock>> {
        self.part()?.lock()
    }

    /// Hands the segment over as `target`, if it is in the spool, or comes in soon; else gives `target` back.
    ///
    /// # Errors
    /// Those of [`NewFile::hand_over`].
    pub fn take(&self, segment: SegmentName, target: NewFile) -> Result<Option<NewFile>, Error> {
        let path = self.path(segment);
        let is_there = self.wait_for(segment).and_then(|()| self.has(segment));
        match is_there {
            Ok(true) => {
                tracing::debug!("{segment} was fetched ahead");
                target.hand_over(&path)
            }
            Ok(false) => Ok(Some(target)),
            Err(error) => {
                tracing::warn!("the spool is not used: {error}");
                Ok(Some(target))
            }
        }
    }

    /// Waits while the segment is on its way.
    fn wait_for(&self, segment: SegmentName) -> io::Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < MOST_WAITING {
            let Some(part) = self.spool.part(PART)? else {
                return Ok(());
            };
            // Before the file is looked for: it has its name before the temporary one is gone.
            let is_coming = is_coming(&part, segment)?;
            if self.has(segment)? || !is_coming || part.lock()?.is_some() {
                return Ok(());
            }
            thread::sleep(WAITING_INTERVAL);
        }
        Ok(())
    }

    /// Whether the segment is in the spool, with its receipt.
    ///
    /// # Errors
    /// The system's.
    pub fn has(&self, segment: SegmentName) -> io::Result<bool> {
        let path = self.path(segment);
        match path.metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
            Ok(found) if found.ctime() < self.since => Ok(false),
            Ok(_) => self.receipts.has(segment, &path),
        }
    }

    /// Where the segment stands once it was fetched.
    pub fn path(&self, segment: SegmentName) -> PathBuf {
        self.spool.path().join(PART).join(segment.to_string())
    }

    /// Keeps the receipt for a segment that was just fetched to its path, whole and checked.
    ///
    /// # Errors
    /// The system's.
    pub fn keep(&self, segment: SegmentName) -> Result<(), Error> {
        let path = self.path(segment);
        let kept = BeforeRead::look(&path)
            .and_then(|before| self.receipts.keep(segment, &path, before, None));
        kept.map_err(Error::local("keep a receipt for", &path))
    }

    /// Removes every segment but those for which `is_kept` holds.
    ///
    /// # Errors
    /// The system's.
    pub fn retain(&self, is_kept: impl Fn(SegmentName) -> bool) -> io::Result<()> {
        let part = self.part()?;
        for name in part.names()? {
            let segment = of_temporary(&name).unwrap_or(&name).parse::<SegmentName>();
            if segment.is_ok_and(|segment| !is_kept(segment)) {
                part.remove(&name)?;
            }
        }
        // Not only for the names above: a segment may have come since they were read.
        self.receipts.retain(is_kept)
    }

    /// Removes all that fetching ahead left.
    ///
    /// # Errors
    /// The system's.
    pub fn clear(&self) -> io::Result<()> {
        self.spool.clear(&[PART, Kind::Fetched.part()])
    }

    /// Removes what a process that was killed left, unless another one fetches ahead.
    ///
    /// # Errors
    /// The system's.
    pub fn clear_what_is_left(&self) -> io::Result<()> {
        let Some(part) = self.spool.part(PART)? else {
            return Ok(());
        };
        let lock = part.lock()?;
        if lock.is_some() { self.clear() } else { Ok(()) }
    }

    fn part(&self) -> io::Result<Part> {
        self.spool.make_part(PART)
    }
}

/// Whether a process has begun to fetch the segment.
fn is_coming(part: &Part, segment: SegmentName) -> io::Result<bool> {
    let (name, files) = (segment.to_string(), part.names()?);
    Ok({ files.iter() }.any(|file| of_temporary(file) == Some(&name)))
}
