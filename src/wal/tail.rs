//! How far a segment was received: choosing among runs, and checking that what they stored is WAL.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use walhalla_postgres::wal::Mismatch;
use walhalla_postgres::wal::cluster::Cluster;
use walhalla_postgres::wal::segment_reader::{Extent, KnownCluster, ReadSegment, SegmentReader};
use walhalla_postgres::{History, SegmentName, WalFileName};

use super::Error;
use crate::failure::{Class, Failure as _};
use crate::output;
use crate::pipeline::streams::read_full;
use crate::repository::tails::{RunDamage, RunReader, Tail, TailFile, TailFiles, by_run};
use crate::repository::{ArchivedFile, ObjectError, Repository};

/// Bytes that are compared at a time.
const COMPARED_BYTES: usize = 1 << 18;
/// How often what is stored is listed anew because it changed while it was read.
const MOST_CHANGES: usize = 3;

/// The tails of segments of a timeline of which something is `listed`, each as an archived file; `before` reads the segment
/// before one, where it is archived. A segment of which nothing can be used has none.
///
/// # Errors
/// The repository's; [`ObjectError::TwoContents`] where two runs stored different WAL.
pub fn of_segments(
    repository: &Repository,
    history: &History,
    mut listed: TailFiles,
    before: impl Fn(SegmentName) -> Option<ReadSegment>,
) -> Result<BTreeMap<SegmentName, ArchivedFile>, Error> {
    let mut changes = 0;
    loop {
        match all_of(repository, history, &listed, &before) {
            // Its pieces were made one, or its segment was archived.
            Err(error) if error.class() == Class::Inaccessible && changes < MOST_CHANGES => {
                changes += 1;
                for (segment, files) in &mut listed {
                    *files = repository.tail_files(*segment)?;
                }
            }
            tails => return tails,
        }
    }
}

/// What is stored in `files` of one segment that is not archived, for a server that asks for it at `path`; `None` where that is nothing, or
/// no more than the server has itself: the file beside `path` would be replaced.
///
/// # Errors
/// As [`of_segments`].
pub fn for_server(
    repository: &Repository,
    cluster: Cluster,
    history: &History,
    segment: SegmentName,
    files: Vec<TailFile>,
    path: &Path,
) -> Result<Option<ArchivedFile>, Error> {
    let listed = TailFiles::from([(segment, files)]);
    let mut tails = of_segments(repository, history, listed, |_| None)?;
    let Some(archived) = tails.remove(&segment) else {
        return Ok(None);
    };
    let local = path.with_file_name(segment.to_string());
    let is_of_use = match archived.tail() {
        Some(tail) => adds_to(repository, tail, &local, cluster, history)?,
        None => false,
    };
    Ok(is_of_use.then_some(archived))
}

/// The segment of a tail that is not any more what it was: archived meanwhile, or received further.
///
/// # Errors
/// As [`of_segments`].
pub fn by_now(
    repository: &Repository,
    history: &History,
    segment: SegmentName,
) -> Result<Option<ArchivedFile>, Error> {
    let whole = repository.find_one_wal(WalFileName::Segment(segment))?;
    if whole.is_some() {
        return Ok(whole);
    }
    let listed = TailFiles::from([(segment, repository.tail_files(segment)?)]);
    let mut tails = all_of(repository, history, &listed, |_| None)?;
    Ok(tails.remove(&segment))
}

/// Whether a tail begins with what is valid in a local segment's file, and goes on after that.
fn adds_to(
    repository: &Repository,
    tail: &Arc<Tail>,
    local: &Path,
    cluster: Cluster,
    history: &History,
) -> Result<bool, Error> {
    let Some(known_bytes) = valid_bytes_of(local, tail, cluster, history) else {
        return Ok(true);
    };
    if known_bytes >= tail.valid_bytes {
        return Ok(false);
    }
    let mut own = File::open(local).map_err(Error::local("open", local))?;
    let mut stored = repository.open_tail(tail)?.take(known_bytes);
    let mut own = own.by_ref().take(known_bytes);
    let is_same = same(&mut own, &mut stored).map_err(Error::local("compare", local))?;
    if !is_same {
        tracing::warn!(
            "{} holds other WAL than what wal-receive stored of it, and stays",
            local.display()
        );
    }
    Ok(is_same)
}

/// How much of a segment's local file is WAL of it; `None` where there is none.
fn valid_bytes_of(local: &Path, tail: &Tail, cluster: Cluster, history: &History) -> Option<u64> {
    let mut file = File::open(local).ok()?;
    let known = KnownCluster::Whole(cluster);
    let reader = SegmentReader::begin(known, history, tail.segment, Extent::Partial, None);
    let mut reader = reader.ok()?;
    let mut buffer = vec![0; COMPARED_BYTES];
    loop {
        let bytes = read_full(&mut file, &mut buffer).ok()?;
        if bytes.is_empty() {
            break;
        }
        // What was recycled does not begin as the segment does.
        reader.feed(bytes, |_, _| {}).ok()?;
    }
    let valid_until = reader.finish().ok()?.valid_until();
    let begin = tail.valid_until.0.saturating_sub(tail.valid_bytes);
    Some(valid_until.0.saturating_sub(begin)).filter(|bytes| *bytes > 0)
}

fn all_of(
    repository: &Repository,
    history: &History,
    listed: &TailFiles,
    before: impl Fn(SegmentName) -> Option<ReadSegment>,
) -> Result<BTreeMap<SegmentName, ArchivedFile>, Error> {
    let mut tails = BTreeMap::new();
    for (segment, files) in listed {
        let tail = of_segment(repository, history, *segment, files, &before)?;
        // What does not come to the timeline's own WAL is the ancestor's, of which more may be known there.
        let switch = history.ancestors.last().map(|parent| parent.switch_lsn);
        if let Some(tail) = tail.filter(|tail| switch < Some(tail.valid_until)) {
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
        tails.extend(usable(repository, history, segment, files, last.clone())?);
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

/// What was found when a run was read.
#[derive(Debug)]
pub struct Surveyed {
    /// How far it holds WAL of the segment; `None` where it holds none that can be used.
    pub tail: Option<Tail>,
    /// Why it is not used, where what it holds is no WAL of the segment.
    pub unfit: Option<Mismatch>,
    /// What is wrong with the object that ends it.
    pub damage: Option<RunDamage>,
}

/// How far a run holds WAL of a segment.
///
/// # Errors
/// The repository's; [`ObjectError::Locked`] where it cannot be opened here.
pub fn survey(
    repository: &Repository,
    history: &History,
    segment: SegmentName,
    files: Vec<TailFile>,
    last: Option<ReadSegment>,
) -> Result<Surveyed, Error> {
    let mut run = repository.read_run(&files);
    let read = read_run(repository, history, segment, &mut run, last)?;
    let damage = run.damage();
    let (read, unfit) = match read {
        Ok(read) => (read, None),
        Err(mismatch) => (None, Some(mismatch)),
    };
    let tail = read.and_then(|read| {
        let (size, valid_until) = (read.cluster().segment_size, read.valid_until());
        let begin = segment.number(size)?.start(size);
        let valid_bytes = valid_until.0.saturating_sub(begin.0);
        (valid_bytes > 0).then_some(Tail {
            segment,
            size,
            files,
            valid_until,
            valid_bytes,
        })
    });
    Ok(Surveyed {
        tail,
        unfit,
        damage,
    })
}

/// As [`survey`], for who uses the tail: says what is wrong.
fn usable(
    repository: &Repository,
    history: &History,
    segment: SegmentName,
    files: Vec<TailFile>,
    last: Option<ReadSegment>,
) -> Result<Option<Tail>, Error> {
    let surveyed = match survey(repository, history, segment, files, last) {
        // A host without the identity goes by what is whole.
        Err(locked) if locked.is_locked() => {
            let reason = output::chain(&locked);
            tracing::warn!("how far {segment} was received cannot be told here: {reason}");
            return Ok(None);
        }
        surveyed => surveyed?,
    };
    if let Some(mismatch) = surveyed.unfit {
        tracing::warn!("what was received of {segment} is not used: {mismatch}");
    }
    if let Some(damage) = surveyed.damage {
        let error = output::chain(damage.error());
        match damage {
            RunDamage::Torn(_) => tracing::info!("{error}; what is before it is used"),
            RunDamage::Damaged(_) => tracing::warn!("{error}; what is before it is used"),
        }
    }
    Ok(surveyed.tail)
}

/// Reads a run to its end and as if zeros followed; `None` where nothing of it is whole.
fn read_run(
    repository: &Repository,
    history: &History,
    segment: SegmentName,
    run: &mut RunReader,
    last: Option<ReadSegment>,
) -> Result<Result<Option<ReadSegment>, Mismatch>, Error> {
    let identity = KnownCluster::Identity(repository.layout().system_identifier());
    let begun = SegmentReader::begin(identity, history, segment, Extent::Partial, last);
    let mut reader = match begun {
        Ok(reader) => reader,
        Err(mismatch) => return Ok(Err(mismatch)),
    };
    let mut length = 0;
    while let Some(chunk) = run.next_chunk()? {
        length += chunk.len() as u64;
        if let Err(mismatch) = reader.feed(&chunk, |_, _| {}) {
            return Ok(Err(mismatch));
        }
    }
    Ok(Ok(padded(reader, length)))
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
    let url = |tail: &Tail| {
        let object = tail.object().map(|object| repository.url(&object.key));
        object.unwrap_or_default()
    };
    let damaged = |tail: &Tail, source| match tail.object() {
        Some(object) => Error::from(repository.damaged(&object.key, source)),
        None => Error::local("read", tail.segment.to_string())(source),
    };
    if same(&mut ours, &mut theirs).map_err(|source| damaged(first, source))? {
        return Ok(());
    }
    let two = ObjectError::TwoContents {
        first: url(first),
        second: url(second),
    };
    Err(two.into())
}

/// Whether two readers give the same bytes.
fn same(ours: &mut impl Read, theirs: &mut impl Read) -> std::io::Result<bool> {
    let (mut own, mut other) = (vec![0; COMPARED_BYTES], vec![0; COMPARED_BYTES]);
    loop {
        let own = read_full(ours, &mut own)?;
        let other = read_full(theirs, &mut other)?;
        if own != other || own.is_empty() {
            return Ok(own == other);
        }
    }
}
