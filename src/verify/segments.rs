//! Reading archived segments that follow one another.

use std::io::Read;
use std::sync::atomic::Ordering;

use walhalla_postgres::wal::Mismatch;
use walhalla_postgres::wal::cluster::Cluster;
use walhalla_postgres::wal::page_header::{LONG_HEADER_BYTES, lies_within_a_record};
use walhalla_postgres::wal::segment_reader::ReadSegment;
use walhalla_postgres::{History, SegmentName, WalFileName};

use super::receipts::{Depth, Receipts};
use super::{Error, Findings, Sound, count};
use crate::pipeline::{Codec, StoredDigest, StoredHash};
use crate::repository::layout::Object;
use crate::repository::{ArchivedFile, HISTORY_LIMIT_BYTES, ObjectError, Repository, Watched};
use crate::threads::lock;
use crate::wal::segment::ArchivedSegment;

/// Segments that recovery reads one after the other.
pub(super) struct Followed {
    /// The way of recovery.
    pub(super) history: History,
    /// What is archived before them, from where the record begins that may run into the first.
    pub(super) before: Vec<(SegmentName, ArchivedFile)>,
    /// What is to be verified.
    pub(super) segments: Vec<(SegmentName, ArchivedFile)>,
    /// What is archived after them, to where their last record ends.
    pub(super) after: Vec<(SegmentName, ArchivedFile)>,
}

impl Followed {
    /// Every segment that is read, in order.
    pub(super) fn all(&self) -> impl Iterator<Item = &(SegmentName, ArchivedFile)> {
        self.before.iter().chain(&self.segments).chain(&self.after)
    }
}

/// The first of `segments` and those that follow it as long as no record begins in them.
pub(super) fn to_a_record(
    repository: &Repository,
    segments: impl Iterator<Item = (SegmentName, ArchivedFile)>,
) -> Vec<(SegmentName, ArchivedFile)> {
    let mut found = Vec::new();
    for segment in segments {
        let mut page = [0; LONG_HEADER_BYTES];
        let content = repository.open(&segment.1.object());
        let is_read = content.is_ok_and(|mut content| content.read_exact(&mut page).is_ok());
        found.push(segment);
        if !is_read || !lies_within_a_record(&page) {
            break;
        }
    }
    found
}

/// Who reads, and what every segment must look like.
pub(super) struct RunReader<'a> {
    pub(super) repository: &'a Repository,
    pub(super) cluster: Option<Cluster>,
    pub(super) findings: &'a Findings,
    /// Where it is noted that a segment is sound, also where it meets the one before it.
    pub(super) receipts: Option<&'a Receipts>,
}

impl RunReader<'_> {
    /// Reads a run; `progress` is told of stored bytes and answers whether to go on.
    pub(super) fn run(&self, run: &Followed, progress: &dyn Fn(u64) -> bool) -> Result<(), Error> {
        let before = run.before.iter().map(|segment| (segment, false));
        let wanted = run.segments.iter().chain(&run.after);
        let wanted = wanted.map(|segment| (segment, true));
        let mut last = None;
        for ((name, archived), is_wanted) in before.chain(wanted) {
            let url = self.repository.url(&archived.object().key);
            let outcome = self.segment(
                *name,
                WalFileName::Segment(*name),
                archived,
                &run.history,
                last.take(),
            );
            count(&self.findings.bytes, archived.stored_bytes);
            if is_wanted {
                count(&self.findings.segments_read, 1);
                last = self.judge(&url, archived, outcome)?;
            } else {
                // What is wrong with it is said by the run that it is wanted in.
                last = outcome.ok().map(|(check, _)| check);
            }
            if !progress(archived.stored_bytes) {
                return Err(Error::BrokenOff);
            }
        }
        Ok(())
    }

    fn judge<T>(
        &self,
        url: &str,
        archived: &ArchivedFile,
        outcome: Result<(T, StoredDigest), Error>,
    ) -> Result<Option<T>, Error> {
        count(&self.findings.objects, 1);
        let Some((value, digest)) = self.findings.judge(url, outcome)? else {
            return Ok(None);
        };
        let sound = Sound {
            url,
            stored_bytes: archived.stored_bytes,
            modified: archived.modified,
            depth: Depth::Content,
            files: 0,
        };
        self.findings.sound(self.receipts, &sound, digest)?;
        Ok(Some(value))
    }

    /// Reads a segment, as the one after `last` if that was sound; returns what was read and the digest of its stored bytes.
    fn segment(
        &self,
        name: SegmentName,
        file: WalFileName,
        archived: &ArchivedFile,
        history: &History,
        last: Option<ReadSegment>,
    ) -> Result<(ReadSegment, StoredDigest), Error> {
        let segment = ArchivedSegment {
            repository: self.repository,
            archived,
            name,
            file,
            history,
            cluster: self.cluster,
        };
        let object = &archived.object();
        let mut watched = self
            .repository
            .open_watched(object, StoredHash::default())?;
        let reader = segment.reader(last)?;
        let read = segment.feed(reader, &mut watched.content, |_, _| {}, |_| Ok(()))?;
        let is_whole = file == WalFileName::Segment(name);
        // What is wrong with it must not be said of the one after it.
        match read.unfinished().filter(|_| is_whole) {
            Some(cut) => Err(segment.mismatch(cut).into()),
            None => Ok((read, self.ended(object, &watched))),
        }
    }

    /// Reads a file of the archive that is no whole segment.
    pub(super) fn other(
        &self,
        file: WalFileName,
        archived: &ArchivedFile,
        history: &History,
    ) -> Result<(), Error> {
        let url = self.repository.url(&archived.object().key);
        let outcome = match file {
            WalFileName::Segment(name) | WalFileName::Partial(name, _) => self
                .segment(name, file, archived, history, None)
                .map(|(_, digest)| ((), digest)),
            WalFileName::History(_) | WalFileName::BackupHistory(..) => {
                self.text(file, archived).map(|digest| ((), digest))
            }
        };
        count(&self.findings.bytes, archived.stored_bytes);
        self.judge(&url, archived, outcome).map(drop)
    }

    fn text(&self, file: WalFileName, archived: &ArchivedFile) -> Result<StoredDigest, Error> {
        let object = &archived.object();
        let mut watched = self
            .repository
            .open_watched(object, StoredHash::default())?;
        let mut text = Vec::new();
        watched
            .content
            .by_ref()
            .take(HISTORY_LIMIT_BYTES)
            .read_to_end(&mut text)
            .map_err(|source| self.repository.damaged(&object.key, source))?;
        if walhalla_postgres::wal::reads_as(file, &text) {
            return Ok(self.ended(object, &watched));
        }
        let mismatch = ObjectError::WalMismatch {
            object: self.repository.url(&object.key),
            file,
            mismatch: Mismatch::Text,
        };
        Err(mismatch.into())
    }

    /// The digest of an object's stored bytes, of which all were read.
    fn ended(&self, object: &Object, watched: &Watched) -> StoredDigest {
        let wants_trailer = object.packing.codec != Codec::None;
        if wants_trailer && !watched.has_trailer.load(Ordering::Relaxed) {
            let url = self.repository.url(&object.key);
            lock(&self.findings.without_trailer).insert(url);
        }
        watched.hash.digest()
    }
}
