//! Summaries in the store: writing them, reading them, and making anew what is missing.

use std::io::Read;
use std::sync::atomic::Ordering;

use sha2::{Digest, Sha256};
use walhalla_providers::{ErrorKind, ObjectKey};

use super::{Summarizer, Summary};
use crate::pipeline::{self, Pipeline};
use crate::postgres::{History, SegmentName};
use crate::repository::layout::Object;
use crate::repository::{self, ArchivedFile, Repository};
use crate::wal::{self, Error};

/// Longest summary that is read; one of 1 GiB of the smallest records is shorter.
const SUMMARY_LIMIT_BYTES: u64 = 256 << 20;

/// What became of a summary that was to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// It is in the store now, with this many bytes.
    Now(u64),
    /// There was one.
    Before,
}

/// Stores a summary beside its segment. One of other content is replaced: it was another segment's of that name, which
/// is gone from the archive.
///
/// # Errors
/// The pipeline's and the repository's.
pub fn write(
    repository: &Repository,
    pipeline: &Pipeline,
    summary: &Summary,
) -> Result<Stored, Error> {
    let pipeline = pipeline.framed();
    let object = repository
        .layout
        .summary(summary.segment, pipeline.packing());
    let json = summary.to_json();
    match create(&pipeline, &object, &json) {
        Err(pipeline::Error::Store(error)) if error.kind == ErrorKind::AlreadyExists => {}
        created => return Ok(Stored::Now(created?)),
    }
    let sha256: [u8; 32] = Sha256::digest(&json).into();
    match repository.content_sha256(&object) {
        Ok(known) if known == sha256 => return Ok(Stored::Before),
        Err(error) if !error.is_of_the_object() => return Err(error.into()),
        Ok(_) | Err(_) => {}
    }
    remove(repository, std::slice::from_ref(&object.key))?;
    Ok(Stored::Now(create(&pipeline, &object, &json)?))
}

/// Takes summaries away, which are derived; nothing else in a store is ever taken away to make room.
///
/// # Errors
/// The store's.
pub(super) fn remove(repository: &Repository, keys: &[ObjectKey]) -> Result<(), Error> {
    let failed = repository.runtime.block_on(repository.store.delete(keys))?;
    match failed.into_iter().next() {
        Some((_, error)) => Err(error.into()),
        None => Ok(()),
    }
}

/// Creates the object; its stored length. Its header tells the SHA-256 to hosts that cannot read it.
fn create(pipeline: &Pipeline, object: &Object, json: &[u8]) -> Result<u64, pipeline::Error> {
    let sha256 = Sha256::digest(json).into();
    let mut writer = pipeline.create_whole(&object.key, object.name(), Some(sha256))?;
    writer.append(json)?;
    Ok(writer.finish()?.stored_bytes)
}

/// Reads the stored summary of `segment`.
///
/// # Errors
/// [`repository::Error::Damaged`] when it is none.
pub fn read(
    repository: &Repository,
    segment: SegmentName,
    object: &Object,
) -> Result<Summary, repository::Error> {
    let mut json = Vec::new();
    let watched = repository.open_watched(object)?;
    watched
        .content
        .take(SUMMARY_LIMIT_BYTES)
        .read_to_end(&mut json)
        .map_err(|source| repository.damaged(&object.key, source))?;
    if !watched.has_trailer.load(Ordering::Relaxed) {
        return Err(repository::Error::Damaged {
            object: repository.url(&object.key),
            what: "it has no checksum",
            source: "it was cut, or something else wrote it".into(),
        });
    }
    let system_identifier = repository.layout.system_identifier();
    Summary::parse(&json, segment, system_identifier).map_err(|source| repository::Error::Damaged {
        object: repository.url(&object.key),
        what: "it is no summary that can be used",
        source: source.into(),
    })
}

/// Makes the summary of an archived segment from the segment itself, which is checked on the way that `history` tells.
///
/// # Errors
/// The repository's, and what is wrong with the segment.
pub fn make(
    repository: &Repository,
    segment: SegmentName,
    archived: &ArchivedFile,
    history: &History,
) -> Result<Summary, Error> {
    let mut summarizer = Summarizer::new(segment);
    let check = wal::segment::read(
        repository,
        segment,
        archived,
        history,
        None,
        |cluster, record| summarizer.record(record, cluster.version),
    )?;
    summarizer
        .finish(&check)
        .map_err(|(lsn, damage)| Error::Content {
            object: repository.url(&archived.object.key),
            lsn,
            damage,
        })
}
