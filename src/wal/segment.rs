//! Reading a segment record by record, from the archive or from `pg_wal`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use walhalla_postgres::wal::cluster::Cluster;
use walhalla_postgres::wal::reader::Record;
use walhalla_postgres::wal::segment_reader::{Extent, KnownCluster, ReadSegment, SegmentReader};
use walhalla_postgres::{History, Lsn, SegmentName, WalFileName};

use super::{Error, Mismatch};
use crate::pipeline::streams::read_full;
use crate::repository::{ArchivedFile, ObjectError, Repository};

/// Bytes that are read at a time.
const CHUNK_BYTES: usize = 1 << 18;

/// An archived segment and what it must be.
pub struct ArchivedSegment<'a> {
    /// The archive.
    pub repository: &'a Repository,
    /// Where and how it is stored.
    pub archived: &'a ArchivedFile,
    /// Its name.
    pub name: SegmentName,
    /// As what it is stored: as a whole segment, or as a partial one.
    pub file: WalFileName,
    /// The way of recovery on which it is read.
    pub history: &'a History,
    /// The cluster that it must belong to, if more is known of it than its identity.
    pub cluster: Option<Cluster>,
}

impl ArchivedSegment<'_> {
    /// A reader of it, as the one after `last` if that is given.
    ///
    /// # Errors
    /// As [`SegmentReader::begin`].
    pub fn reader(&self, last: Option<ReadSegment>) -> Result<SegmentReader, Error> {
        let identity = self.repository.layout().system_identifier();
        let known = self
            .cluster
            .map_or(KnownCluster::Identity(identity), KnownCluster::Whole);
        let extent = match self.file {
            WalFileName::Partial(..) => Extent::Partial,
            _ => Extent::Whole,
        };
        SegmentReader::begin(known, self.history, self.name, extent, last)
            .map_err(|wrong| self.mismatch(wrong))
    }

    /// Feeds all of its content to `reader`. `show` sees each record, and `keep` the bytes, each after they were checked.
    ///
    /// # Errors
    /// The repository's, what is wrong with the segment, and those of `keep`.
    pub fn feed(
        &self,
        mut reader: SegmentReader,
        content: &mut impl Read,
        mut show: impl FnMut(&Cluster, &Record),
        mut keep: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<ReadSegment, Error> {
        let key = &self.archived.object().key;
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let chunk = read_full(content, &mut buffer)
                .map_err(|source| self.repository.damaged(key, source))?;
            if chunk.is_empty() {
                return reader.finish().map_err(|wrong| self.mismatch(wrong));
            }
            reader
                .feed(chunk, &mut show)
                .map_err(|wrong| self.mismatch(wrong))?;
            keep(chunk)?;
        }
    }

    /// The error that something is wrong with it.
    pub fn mismatch(&self, mismatch: Mismatch) -> Error {
        let object = self.repository.url(&self.archived.object().key);
        let file = self.file;
        let wrong = ObjectError::WalMismatch {
            object,
            file,
            mismatch,
        };
        wrong.into()
    }
}

/// Reads an archived segment on the way that `history` tells, as the one after `last` if that is given; checks it, and
/// shows the records that end in it.
///
/// # Errors
/// The repository's, and what is wrong with the segment.
pub fn read(
    repository: &Repository,
    segment: SegmentName,
    archived: &ArchivedFile,
    history: &History,
    last: Option<ReadSegment>,
    show: impl FnMut(&Cluster, &Record),
) -> Result<ReadSegment, Error> {
    let segment = ArchivedSegment {
        repository,
        archived,
        name: segment,
        file: WalFileName::Segment(segment),
        history,
        cluster: None,
    };
    let mut content = repository.open_archived(archived)?;
    let reader = segment.reader(last)?.hashing();
    segment.feed(reader, &mut content, show, |_| Ok(()))
}

/// Reads a segment in `pg_wal` up to `until`, or to its end; the server may be writing it. Shows the records that end in
/// it, those from `until` on perhaps too.
///
/// # Errors
/// [`Error::Local`], and what is wrong with the segment before `until`: also that it ends before.
pub fn read_local(
    path: &Path,
    cluster: Cluster,
    segment: SegmentName,
    history: &History,
    last: Option<ReadSegment>,
    until: Option<Lsn>,
    mut show: impl FnMut(&Record),
) -> Result<ReadSegment, Error> {
    let mismatch = |mismatch| Error::Mismatch {
        path: path.to_owned(),
        file: WalFileName::Segment(segment),
        mismatch,
    };
    let mut file = File::open(path).map_err(Error::local("open", path))?;
    let metadata = file.metadata().map_err(Error::local("look at", path))?;
    cluster.must_have_length(metadata.len()).map_err(mismatch)?;
    let known = KnownCluster::Whole(cluster);
    let reader = SegmentReader::begin(known, history, segment, Extent::Whole, last);
    let mut reader = reader.map_err(mismatch)?.hashing();
    // A page at a time, as what comes after `until` may be torn, or a recycled segment's.
    let mut page = vec![0; usize::try_from(cluster.page_size_bytes).unwrap_or(8192)];
    loop {
        let bytes = read_full(&mut file, &mut page).map_err(Error::local("read", path))?;
        if bytes.is_empty() {
            return match until {
                None => reader.finish().map_err(mismatch),
                Some(until) => Err(mismatch(Mismatch::Hole { at: until })),
            };
        }
        let mut is_reached = false;
        let fed = reader.feed(bytes, |_, record| {
            is_reached |= until.is_some_and(|until| record.start >= until);
            show(record);
        });
        if is_reached {
            return reader.leave().map_err(mismatch);
        }
        fed.map_err(mismatch)?;
    }
}
