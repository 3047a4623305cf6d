//! Making up for summaries that are missing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;

use serde::Serialize;
use walhalla_postgres::summary::{Digest, SegmentDigest, Summary};
use walhalla_postgres::{History, SegmentName};

use super::Histories;
use crate::failure::Failure as _;
use crate::output;
use crate::pipeline::Pipeline;
use crate::progress::{Progress, Show};
use crate::repository::{ArchivedFile, Forms, Repository};
use crate::threads::{lock, on_threads};
use crate::wal::Error;
use crate::wal::stored_summary::{self, Stored};

/// Which summaries are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Those that are missing, or of an older format.
    Missing,
    /// Those, and in the place of stored ones that cannot be read or do not tell what is in their segment.
    Wrong,
}

/// What was done, as `wal-summarize --json` shows it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SummarizeReport {
    /// Segments in the archive.
    pub segments: u64,
    /// Summaries that were made.
    pub made: u64,
    /// Bytes of the segments that were read, as they are stored.
    pub segment_bytes: u64,
    /// Bytes of the summaries that were made, as they are stored.
    pub summary_bytes: u64,
    /// What is wrong with segments that have none.
    pub problems: Vec<Problem>,
}

/// A segment that could not be summarized.
#[derive(Clone, Debug, Serialize)]
pub struct Problem {
    /// The segment.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
}

/// A segment, and its summary in every form in which it is stored.
struct Work {
    history: History,
    name: SegmentName,
    archived: ArchivedFile,
    stored: Forms,
    scope: Scope,
}

/// Makes the summaries of archived segments that have none.
///
/// # Errors
/// The store's and the pipeline's; segments that are damaged are part of the report.
pub fn backfill(
    repository: &Repository,
    pipeline: &Pipeline,
    scope: Scope,
    threads: usize,
    show: Show,
) -> Result<SummarizeReport, Error> {
    let backups = repository.usable_backups()?;
    let histories = Histories::read(repository, &backups)?;
    let mut segments = 0;
    let mut work = VecDeque::new();
    for timeline in repository.timelines()? {
        let history = histories.known.get(&timeline).cloned();
        let history = history.unwrap_or_else(|| History::root(timeline));
        let listing = repository.list_wal(timeline, None, &[])?;
        let mut summaries: BTreeMap<_, _> = repository.list_summaries(timeline, None, &[])?;
        segments += listing.segments.len() as u64;
        for (name, archived) in listing.segments {
            let stored = summaries.remove(&name).unwrap_or_default();
            work.push_back(Work {
                history: history.clone(),
                name,
                archived,
                stored,
                scope,
            });
        }
    }
    let progress = Progress::of_items(show, "summarizing WAL", work.len() as u64);
    let report = Mutex::new(SummarizeReport {
        segments,
        ..SummarizeReport::default()
    });
    let queue = Mutex::new(work);
    on_threads(threads, &progress, &|| {
        loop {
            let Some(work) = lock(&queue).pop_front() else {
                return Ok(());
            };
            match work.run(repository, pipeline) {
                Ok(None) => {}
                Ok(Some(bytes)) => {
                    let mut report = lock(&report);
                    report.made += 1;
                    report.summary_bytes += bytes;
                    report.segment_bytes += work.archived.stored_bytes;
                }
                Err(error) if error.is_of_the_object() => lock(&report).problems.push(Problem {
                    object: repository.url(&work.archived.object().key),
                    what: output::chain(&error),
                }),
                Err(error) => return Err(error),
            }
            if !progress.add(1) {
                return Ok(());
            }
        }
    })?;
    progress.finish();
    Ok(lock(&report).clone())
}

impl Work {
    /// Whether there is a summary that is not of an older format.
    fn is_there(&self, repository: &Repository) -> Result<bool, Error> {
        // An empty one was stored just before the machine failed.
        for form in self.stored.iter().filter(|form| form.stored_bytes > 0) {
            match stored_summary::read(repository, self.name, &form.object()) {
                Err(error) if stored_summary::is_older(&error) => {}
                Err(error) if !error.is_of_the_object() && !error.is_locked() => {
                    return Err(error.into());
                }
                // What else is wrong with it is for [`Scope::Wrong`].
                Ok(_) | Err(_) => return Ok(true),
            }
        }
        Ok(false)
    }

    /// Whether a stored summary says of this segment what was just `made` of it, in whatever format that is read.
    fn is_right(
        &self,
        repository: &Repository,
        known: &Summary,
        made: &Summary,
    ) -> Result<bool, Error> {
        let known_trailer = known.segment_trailer.map(|sum| sum.0);
        let names_it = match known.segment_digest() {
            Some(SegmentDigest::Blake3(blake3)) => made.segment_blake3 == Some(Digest(blake3)),
            Some(sha256) => repository.has_content(&self.archived, sha256, known_trailer)?,
            None => false,
        };
        // A push that only made up for a missing summary has no trailer to name.
        let fits = known_trailer.is_none() || known.segment_trailer == made.segment_trailer;
        let as_made = Summary {
            format: made.format,
            segment_blake3: made.segment_blake3,
            segment_sha256: made.segment_sha256,
            segment_trailer: made.segment_trailer,
            ..known.clone()
        };
        Ok(names_it && fits && as_made == *made)
    }

    /// Stores the summary; its stored length, unless there is one that is right.
    fn run(&self, repository: &Repository, pipeline: &Pipeline) -> Result<Option<u64>, Error> {
        if self.scope == Scope::Missing && self.is_there(repository)? {
            return Ok(None);
        }
        let summary = stored_summary::make(repository, self.name, &self.archived, &self.history)?;
        for form in &self.stored {
            match stored_summary::read(repository, self.name, &form.object()) {
                Ok(known) if self.is_right(repository, &known, &summary)? => return Ok(None),
                Ok(_) => {
                    let url = repository.url(&form.object().key);
                    tracing::warn!("{url} is not the segment's; it is made anew");
                }
                Err(error) if stored_summary::is_older(&error) => {}
                Err(error) if error.is_of_the_object() => {
                    tracing::warn!("{}; it is made anew", output::chain(&error));
                }
                Err(error) => return Err(error.into()),
            }
        }
        let keys: Vec<_> = self
            .stored
            .iter()
            .map(|form| form.object().key.clone())
            .collect();
        stored_summary::remove(repository, &keys)?;
        match stored_summary::write(repository, pipeline, &summary, None)? {
            Stored::Now(bytes) => Ok(Some(bytes)),
            Stored::Before => Ok(None),
        }
    }
}
