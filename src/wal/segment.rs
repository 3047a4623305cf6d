//! Reading a segment record by record, from the archive or from `pg_wal`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use walhalla_postgres::wal::reader::Record;
use walhalla_postgres::wal::segment_check::{Cluster, Extent, SegmentCheck};
use walhalla_postgres::{History, Lsn, SegmentName, WalFileName};

use super::{Error, Mismatch};
use crate::pipeline::streams::read_full;
use crate::repository::{ArchivedFile, ObjectError, Repository};

/// Bytes that are read at a time: whole WAL pages of any size.
const CHUNK_BYTES: usize = 1 << 18;

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
    mut last: Option<SegmentCheck>,
    mut show: impl FnMut(&Cluster, &Record),
) -> Result<SegmentCheck, Error> {
    let object = &archived.object;
    let mismatch = |mismatch| ObjectError::WalMismatch {
        object: repository.url(&object.key),
        file: WalFileName::Segment(segment),
        mismatch,
    };
    let history = history.of(segment.timeline);
    let system_identifier = repository.layout.system_identifier();
    let begin = |last: Option<SegmentCheck>, page: &[u8]| {
        let cluster = Cluster::of_first_page(page, system_identifier).ok_or(Mismatch::Text)?;
        let check = if let Some(last) = last {
            last.followed_by(history.clone(), segment)
        } else {
            let size_bytes = cluster.segment_size.bytes();
            SegmentCheck::new(cluster, history.clone(), segment, size_bytes, Extent::Whole)
        };
        check.map(SegmentCheck::hashing)
    };
    let mut content = repository.open(object)?;
    let mut buffer = vec![0; CHUNK_BYTES];
    let (mut check, mut size_bytes): (Option<SegmentCheck>, u64) = (None, 0);
    loop {
        let chunk = read_full(&mut content, &mut buffer)
            .map_err(|source| repository.damaged(&object.key, source))?;
        let check = match &mut check {
            Some(check) => check,
            none => none.insert(begin(last.take(), chunk).map_err(mismatch)?),
        };
        if chunk.is_empty() {
            break;
        }
        size_bytes += chunk.len() as u64;
        let cluster = check.cluster();
        let mut show = |record: &Record| show(&cluster, record);
        check.pages_showing(chunk, &mut show).map_err(mismatch)?;
    }
    let check = check.ok_or_else(|| mismatch(Mismatch::Text))?;
    match check.wrong_length(size_bytes) {
        Some(wrong) => Err(mismatch(wrong).into()),
        None => Ok(check),
    }
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
    last: Option<SegmentCheck>,
    until: Option<Lsn>,
    mut show: impl FnMut(&Record),
) -> Result<SegmentCheck, Error> {
    let mismatch = |mismatch| Error::Mismatch {
        path: path.to_owned(),
        file: WalFileName::Segment(segment),
        mismatch,
    };
    let history = history.of(segment.timeline);
    let mut file = File::open(path).map_err(Error::local("open", path))?;
    let size_bytes = file
        .metadata()
        .map_err(Error::local("look at", path))?
        .len();
    let check = match last {
        Some(last) => last.followed_by(history, segment),
        None => SegmentCheck::new(cluster, history, segment, size_bytes, Extent::Whole),
    };
    let mut check = check.map_err(mismatch)?.hashing();
    let mut page = vec![0; usize::try_from(cluster.page_size_bytes).unwrap_or(8192)];
    loop {
        let read = file.read_exact(&mut page);
        if let Err(error) = read {
            let is_end = error.kind() == std::io::ErrorKind::UnexpectedEof;
            return match (is_end, until) {
                (true, None) => Ok(check),
                (true, Some(until)) => Err(mismatch(Mismatch::Hole { at: until })),
                (false, _) => Err(Error::local("read", path)(error)),
            };
        }
        let mut is_reached = false;
        let checked = check.pages_showing(&page, &mut |record: &Record| {
            is_reached |= until.is_some_and(|until| record.start >= until);
            show(record);
        });
        // What comes after may be torn, or a recycled segment's.
        if is_reached {
            return Ok(check);
        }
        checked.map_err(mismatch)?;
    }
}
