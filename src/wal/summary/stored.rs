//! Summaries in the store: writing them, reading them, and making anew what is missing.

use std::io::Read;

use walhalla_providers::ErrorKind;

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

/// Stores a summary beside its segment, unless there is one.
///
/// # Errors
/// The pipeline's.
pub fn write(
    repository: &Repository,
    pipeline: &Pipeline,
    summary: &Summary,
) -> Result<Stored, pipeline::Error> {
    let pipeline = pipeline.framed();
    let object = repository
        .layout
        .summary(summary.segment, pipeline.packing());
    let mut writer = pipeline.create_whole(&object.key, object.name(), None)?;
    let written = writer.append(&summary.to_json());
    match written.and_then(|()| writer.finish()) {
        Ok(stored) => Ok(Stored::Now(stored.stored_bytes)),
        Err(pipeline::Error::Store(error)) if error.kind == ErrorKind::AlreadyExists => {
            Ok(Stored::Before)
        }
        Err(error) => Err(error),
    }
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
    let content = repository.open(object)?;
    content
        .take(SUMMARY_LIMIT_BYTES)
        .read_to_end(&mut json)
        .map_err(|source| repository.damaged(&object.key, source))?;
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
