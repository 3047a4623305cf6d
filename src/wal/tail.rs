//! How far a segment was received: choosing among runs, and checking that what they stored is WAL.

use std::collections::BTreeMap;
use std::io::Read;

use walhalla_postgres::wal::segment_reader::{Extent, KnownCluster, ReadSegment, SegmentReader};
use walhalla_postgres::{History, Lsn, SegmentName, TimelineId};

use super::Error;
use crate::failure::{Class, Failure as _};
use crate::output;
use crate::pipeline::streams::read_full;
use crate::repository::tails::{Tail, TailFile, TailFiles, by_run};
use crate::repository::{self, ArchivedFile, ObjectError, Repository};

/// Bytes that are compared at a time.
const COMPARED_BYTES: usize = 1 << 18;
/// How often what is stored is listed anew because it changed while it was read.
const MOST_CHANGES: usize = 3;

/// The tails of a timeline's segments after `after`, each as an archived file; `before` reads the segment before one, where it
/// is archived. A segment of which nothing can be used has none.
///
/// # Errors
/// The repository's; [`ObjectError::TwoContents`] where two runs stored different WAL.
pub fn of_timeline(
    repository: &Repository,
    history: &History,
    timeline: TimelineId,
    after: Option<SegmentName>,
    before: impl Fn(SegmentName) -> Option<ReadSegment>,
) -> Result<BTreeMap<SegmentName, ArchivedFile>, Error> {
    let mut changes = 0;
    loop {
        let listed = repository.list_tails(timeline, after)?;
        match all_of(repository, history, &listed, &before) {
            // Its pieces were made one, or its segment was archived.
            Err(error) if error.class() == Class::Inaccessible && changes < MOST_CHANGES => {
                changes += 1;
            }
            tails => return tails,
        }
    }
}

fn all_of(
    repository: &Repository,
    history: &History,
    listed: &TailFiles,
    before: impl Fn(SegmentName) -> Option<ReadSegment>,
) -> Result<BTreeMap<SegmentName, ArchivedFile>, Error> {
    let mut tails = BTreeMap::new();
    for (segment, files) in listed {
        if let Some(tail) = of_segment(repository, history, *segment, files, &before)? {
            let system_identifier = repository.layout().system_identifier();
            tails.insert(*segment, ArchivedFile::of_tail(system_identifier, tail));
        }
    }
    Ok(tails)
}

/// The tail of one segment: of the runs that stored WAL of it, the one that leads furthest on.
fn of_segment(
    repository: &Repository,
    history: &History,
    segment: SegmentName,
    files: &[TailFile],
    before: impl Fn(SegmentName) -> Option<ReadSegment>,
) -> Result<Option<Tail>, Error> {
    let runs = by_run(files);
    // A run that does not go on with the segment before is of another server. Where there is one run only, whoever reads it
    // after that segment finds that out.
    let last = (runs.len() > 1).then(|| before(segment)).flatten();
    let mut tails: Vec<Tail> = Vec::new();
    for files in runs.into_values() {
        let surveyed = survey(repository, history, segment, files, last.clone())?;
        tails.extend(surveyed);
    }
    tails.sort_by_key(|tail| tail.valid_bytes);
    let Some(furthest) = tails.pop() else {
        return Ok(None);
    };
    for shorter in &tails {
        must_agree(repository, &furthest, shorter)?;
    }
    Ok(Some(furthest))
}

/// How far a run holds WAL of a segment; `None` where it holds none that can be used.
///
/// # Errors
/// The repository's.
pub fn survey(
    repository: &Repository,
    history: &History,
    segment: SegmentName,
    files: Vec<TailFile>,
    last: Option<ReadSegment>,
) -> Result<Option<Tail>, Error> {
    let mut run = repository.read_run(&files);
    let Some(read) = read_run(repository, history, segment, &mut run, last)? else {
        return Ok(None);
    };
    let (size, valid_until) = (read.cluster().segment_size, read.valid_until());
    let begin = segment.number(size).map(|number| number.start(size));
    let valid_bytes = valid_until.0.saturating_sub(begin.unwrap_or(valid_until).0);
    Ok((valid_bytes > 0).then_some(Tail {
        segment,
        size,
        files,
        valid_until,
        valid_bytes,
    }))
}

/// Reads a run to its end and as if zeros followed; `None` where it does not begin as the segment must.
fn read_run(
    repository: &Repository,
    history: &History,
    segment: SegmentName,
    run: &mut repository::tails::RunReader,
    last: Option<ReadSegment>,
) -> Result<Option<ReadSegment>, Error> {
    let identity = KnownCluster::Identity(repository.layout().system_identifier());
    let begun = SegmentReader::begin(identity, history, segment, Extent::Partial, last);
    let Ok(mut reader) = begun else {
        return Ok(None);
    };
    let mut length = 0;
    loop {
        let chunk = match run.next_chunk() {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break,
            // A host without the identity goes by what is whole.
            Err(locked) if locked.is_locked() => {
                tracing::warn!(
                    "how far {segment} was received cannot be told here: {}",
                    output::chain(&locked)
                );
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        length += chunk.len() as u64;
        if let Err(mismatch) = reader.feed(&chunk, |_, _| {}) {
            tracing::warn!("what was received of {segment} is not used: {mismatch}");
            return Ok(None);
        }
    }
    if let Some(damage) = run.damage() {
        tracing::warn!("{}; what is before it is used", output::chain(&damage));
    }
    Ok(padded(reader, length))
}

/// The segment, with zeros after what was fed.
fn padded(mut reader: SegmentReader, length: u64) -> Option<ReadSegment> {
    let size = reader.cluster()?.segment_size;
    let mut left = size.bytes().saturating_sub(length);
    let zeros = vec![0; COMPARED_BYTES];
    while left > 0 {
        let count = zeros.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        reader.feed(zeros.get(..count)?, |_, _| {}).ok()?;
        left -= count as u64;
    }
    reader.finish().ok()
}

/// That two runs stored the same, as far as both go.
fn must_agree(repository: &Repository, first: &Tail, second: &Tail) -> Result<(), Error> {
    let valid_bytes = first.valid_bytes.min(second.valid_bytes);
    let open = |tail: &Tail| {
        Ok::<_, Error>(
            repository
                .open_tail(&tail.clone().into())?
                .take(valid_bytes),
        )
    };
    let (mut ours, mut theirs) = (open(first)?, open(second)?);
    let (mut own, mut other) = (vec![0; COMPARED_BYTES], vec![0; COMPARED_BYTES]);
    let url = |tail: &Tail| {
        let object = tail.object().map(|object| repository.url(&object.key));
        object.unwrap_or_default()
    };
    let damaged = |tail: &Tail, source| match tail.object() {
        Some(object) => Error::from(repository.damaged(&object.key, source)),
        None => Error::local("read", tail.segment.to_string())(source),
    };
    loop {
        let own = read_full(&mut ours, &mut own).map_err(|source| damaged(first, source))?;
        let other = read_full(&mut theirs, &mut other).map_err(|source| damaged(second, source))?;
        if own != other {
            let two = ObjectError::TwoContents {
                first: url(first),
                second: url(second),
            };
            return Err(two.into());
        }
        if own.is_empty() {
            return Ok(());
        }
    }
}

/// Where the WAL of an archived file ends, if it is the begin of a segment that was received.
pub fn end_of(archived: &ArchivedFile) -> Option<Lsn> {
    archived.tail().map(|tail| tail.valid_until)
}
