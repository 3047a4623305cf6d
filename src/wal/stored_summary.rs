//! Summaries in the store: writing them, reading them, and making anew what is missing.

use std::collections::HashMap;
use std::io::Read;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest, Sha256};
use walhalla_postgres::summary::{Digest as Sum, SegmentDigest, Summarizer, Summary, Unusable};
use walhalla_postgres::{History, SegmentName};
use walhalla_providers::{ErrorKind, ObjectKey};

use crate::failure::Failure as _;
use crate::output;
use crate::pipeline::encryption::ContentDigest;
use crate::pipeline::{self, Pipeline, StoredHash, StoredObject};
use crate::repository::layout::Object;
use crate::repository::{self, ArchivedFile, ObjectError, Repository};
use crate::threads::lock;
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

/// Stores a summary beside its segment; the header of an encrypted one tells its digest under `key` if there is one. One of
/// other content is replaced: it was another segment's of that name, which is gone from the archive.
///
/// # Errors
/// The pipeline's and the repository's.
pub fn write(
    repository: &Repository,
    pipeline: &Pipeline,
    summary: &Summary,
    key: Option<&[u8; 32]>,
) -> Result<Stored, Error> {
    if let Some(bytes) = write_new(repository, pipeline, summary, key)? {
        return Ok(Stored::Now(bytes));
    }
    let pipeline = pipeline.framed();
    let object = repository
        .layout()
        .summary(summary.segment, pipeline.packing());
    let json = summary.to_json();
    let sha256 = ContentDigest::Sha256(Sha256::digest(&json).into());
    let keyed = key.map(|key| ContentDigest::Keyed(keyed_digest(&json, key)));
    match repository.content_digest(&object) {
        Ok(known) if known == sha256 || Some(known) == keyed => return Ok(Stored::Before),
        Err(error) if !error.is_of_the_object() => return Err(error.into()),
        Ok(_) | Err(_) => {}
    }
    remove(repository, std::slice::from_ref(&object.key))?;
    Ok(Stored::Now(create(&pipeline, &object, &json, key)?))
}

/// As [`write()`], unless there is a summary of this name: its stored length, if it was stored.
///
/// # Errors
/// The pipeline's.
pub fn write_new(
    repository: &Repository,
    pipeline: &Pipeline,
    summary: &Summary,
    key: Option<&[u8; 32]>,
) -> Result<Option<u64>, pipeline::Error> {
    let pipeline = pipeline.framed();
    let object = repository
        .layout()
        .summary(summary.segment, pipeline.packing());
    match create(&pipeline, &object, &summary.to_json(), key) {
        Err(pipeline::Error::Store(error)) if error.kind == ErrorKind::AlreadyExists => Ok(None),
        created => created.map(Some),
    }
}

/// Takes summaries away, which are derived; nothing else in a store is ever taken away to make room.
///
/// # Errors
/// The store's.
pub fn remove(repository: &Repository, keys: &[ObjectKey]) -> Result<(), Error> {
    Ok(repository.remove(keys)?)
}

/// Creates the object; its stored length. Its header tells a keyed digest, by which the host knows it without reading it.
fn create(
    pipeline: &Pipeline,
    object: &Object,
    json: &[u8],
    key: Option<&[u8; 32]>,
) -> Result<u64, pipeline::Error> {
    let digest = key.map(|key| keyed_digest(json, key));
    let mut writer = pipeline.create_whole(&object.key, object.name(), digest)?;
    writer.append(json)?;
    Ok(writer.finish()?.stored_bytes)
}

fn keyed_digest(json: &[u8], key: &[u8; 32]) -> [u8; 32] {
    *blake3::keyed_hash(key, json).as_bytes()
}

/// Reads the stored summary of `segment`.
///
/// # Errors
/// [`ObjectError::Damaged`] when it is none.
pub fn read(
    repository: &Repository,
    segment: SegmentName,
    object: &Object,
) -> Result<Summary, repository::Error> {
    let mut json = Vec::new();
    let watched = repository.open_watched(object, StoredHash::default())?;
    watched
        .content
        .take(SUMMARY_LIMIT_BYTES)
        .read_to_end(&mut json)
        .map_err(|source| repository.damaged(&object.key, source))?;
    if !watched.has_trailer.load(Ordering::Relaxed) {
        let reason = "it was cut, or something else wrote it";
        return Err(repository.unfit(&object.key, "it has no checksum", reason));
    }
    let system_identifier = repository.layout().system_identifier();
    Summary::parse(&json, segment, system_identifier).map_err(|source| {
        repository.unfit(&object.key, "it is no summary that can be used", source)
    })
}

/// Archived segments of which it was shown what they hold, by their keys.
#[derive(Debug, Default)]
pub struct Proven(Mutex<HashMap<ObjectKey, SegmentDigest>>);

impl Proven {
    /// Reads the summary in `object`, if it is the one of the segment that is archived.
    ///
    /// # Errors
    /// As [`read`]; [`ObjectError::Damaged`] too when it was made from another segment of that name.
    pub fn read(
        &self,
        repository: &Repository,
        segment: SegmentName,
        object: &Object,
        archived: &ArchivedFile,
    ) -> Result<Summary, repository::Error> {
        let summary = read(repository, segment, object)?;
        if self.is_of(repository, &summary, archived)? {
            return Ok(summary);
        }
        let finding = "it is the summary of another segment of that name";
        let reason = "the digest of its segment is not that of the archived one";
        Err(repository.unfit(&object.key, finding, reason))
    }

    fn is_of(
        &self,
        repository: &Repository,
        summary: &Summary,
        archived: &ArchivedFile,
    ) -> Result<bool, repository::Error> {
        let Some(digest) = summary.segment_digest() else {
            return Ok(false);
        };
        let key = &archived.object().key;
        if lock(&self.0).get(key) == Some(&digest) {
            return Ok(true);
        }
        let trailer = summary.segment_trailer.map(|sum| sum.0);
        let is_it = repository.has_content(archived, digest, trailer)?;
        if is_it {
            lock(&self.0).insert(key.clone(), digest);
        }
        Ok(is_it)
    }
}

/// `summary`, of the segment that was just stored.
#[must_use]
pub fn of_stored(summary: Summary, stored: &StoredObject) -> Summary {
    of_trailer(summary, stored.trailer)
}

/// `summary`, of a segment that is stored with this trailer.
#[must_use]
pub fn of_trailer(summary: Summary, trailer: Option<[u8; 32]>) -> Summary {
    Summary {
        segment_trailer: trailer.map(Sum),
        ..summary
    }
}

/// Says why a summary is not used. That summaries are of an older format is said once.
pub fn warn_passed_over(error: &repository::Error) {
    static SAID: AtomicBool = AtomicBool::new(false);
    if is_older(error) && SAID.swap(true, Ordering::Relaxed) {
        tracing::debug!("{}; the segment is read instead", output::chain(error));
    } else {
        tracing::warn!("{}; the segment is read instead", output::chain(error));
    }
}

/// Whether a summary is one that an older program wrote.
pub fn is_older(error: &repository::Error) -> bool {
    matches!(error, repository::Error::Object(ObjectError::Damaged(damaged))
        if matches!(damaged.reason(), Some(Unusable::Older(_))))
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
    let summary =
        summarizer
            .finish(&check)
            .map_err(|(lsn, damage)| ObjectError::UnknownRecord {
                object: repository.url(&archived.object().key),
                lsn,
                damage,
            })?;
    Ok(Summary {
        segment_trailer: repository.trailer(archived)?.map(Sum),
        ..summary
    })
}
