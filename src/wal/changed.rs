//! Which blocks the WAL between two positions changed.
//!
//! ```text
//! for each segment: its stored summary │ pg_wal │ the archived segment ─▶ Joiner ─▶ Changes
//! ```
//!
//! What the server has not archived yet is in its own `pg_wal`, the segment that it is writing too.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;

use walhalla_postgres::summary::{Changes, Joiner, Rift, Summarizer, Summary};
use walhalla_postgres::wal::event::Event;
use walhalla_postgres::wal::page_header::LONG_HEADER_BYTES;
use walhalla_postgres::wal::reader::Record;
use walhalla_postgres::wal::segment_check::{Cluster, SegmentCheck};
use walhalla_postgres::{History, Lsn, SegmentName, SegmentNo, WalFileName};

use super::archive::{at_once, longest};
use super::proof::Proof;
use super::segment;
use super::{Error, record};
use crate::output;
use crate::pipeline::streams;
use crate::progress::{Progress, Show};
use crate::repository::{self, ArchivedFile, Repository};
use crate::threads::{lock, on_threads};
use crate::wal::stored_summary;
use crate::wal::stored_summary::Proven;

/// A stretch of WAL along a history, and where it may be found.
pub struct Stretch<'a> {
    /// The archive.
    pub repository: &'a Repository,
    /// The server's own WAL.
    pub wal_folder: &'a Path,
    /// What its segments have in common.
    pub cluster: Cluster,
    /// The way.
    pub history: &'a History,
    /// The parent, whose server's WAL it must be.
    pub parent: Proof,
    /// Start of the first record.
    pub from: Lsn,
    /// Start of the first record that is not part of it.
    pub to: Lsn,
    /// Segments that are read at a time.
    pub threads: usize,
    /// How progress is shown.
    pub show: Show,
    /// What was shown of archived segments.
    pub proven: Proven,
}

/// Why the WAL does not tell what changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Gap {
    /// A segment is nowhere.
    #[error("WAL segment {0} is neither archived nor in pg_wal")]
    Missing(SegmentName),
    /// It is archived, and no identity opens it.
    #[error("WAL segment {0} is encrypted and cannot be opened here")]
    Locked(SegmentName),
    /// It is damaged.
    #[error("WAL segment {segment} cannot be read: {reason}")]
    Damaged {
        /// The segment.
        segment: SegmentName,
        /// Why.
        reason: String,
    },
    /// It is not the WAL of the server whose backup the parent is.
    #[error(
        "no record in the WAL from {0} on names the parent: it is another server's, or the parent is"
    )]
    Foreign(Lsn),
    /// Not every change is in the WAL.
    #[error("the server ran with wal_level = minimal from {0} on")]
    Minimal(Lsn),
}

type Summarized = Result<Summary, Gap>;
/// How taking in a record ended; where it begins and why it is not understood.
type Prepended = Result<(), (Lsn, record::Damage)>;

impl Stretch<'_> {
    /// Each block that records from `from` to before `to` changed, and perhaps some that later records did.
    ///
    /// # Errors
    /// The archive's and those of reading `pg_wal`; what is wrong with the WAL is a [`Gap`].
    pub fn changes(&self) -> Result<Result<Changes, Gap>, Error> {
        let segments = self.segments();
        let stored = self.stored_summaries(&segments)?;
        let progress = Progress::of_items(self.show, "reading summaries", segments.len() as u64);
        let (mut changes, mut joiner) = (Changes::default(), Joiner::default());
        let mut rest = segments.as_slice();
        let mut proof = self.parent.clone();
        while !rest.is_empty() {
            let count = at_once(rest.iter().map(|name| longest(stored.get(name))));
            let (batch, later) = rest.split_at(count);
            rest = later;
            let summaries = self.batch(batch, &stored)?;
            for (name, summary) in batch.iter().zip(summaries) {
                let mut summary = match summary {
                    Ok(summary) => summary,
                    Err(gap) => return Ok(Err(gap)),
                };
                if let Err(gap) = self.join(&mut joiner, *name, &mut summary)? {
                    return Ok(Err(gap));
                }
                if let Some(lsn) = self.minimal(&summary) {
                    return Ok(Err(Gap::Minimal(lsn)));
                }
                for note in &summary.notes {
                    proof.see(note);
                }
                for end in &summary.transactions {
                    proof.see_transaction(end.lsn, end.time);
                }
                changes.extend(summary.changes);
                progress.add(1);
            }
        }
        progress.finish();
        Ok(if proof.holds() {
            Ok(changes)
        } else {
            Err(Gap::Foreign(self.from))
        })
    }

    /// The segments with records of the stretch.
    fn segments(&self) -> Vec<SegmentName> {
        let size = self.cluster.segment_size;
        let first = size.segment_of(self.from);
        // The first record of a segment begins after a header.
        let headers = Lsn(self.to.0.saturating_sub(LONG_HEADER_BYTES as u64));
        let last = size.segment_before(headers);
        let numbers = (first.0..=last.0).map(SegmentNo);
        numbers
            .map(|number| self.history.segment_name(number, size))
            .collect()
    }

    fn stored_summaries(
        &self,
        segments: &[SegmentName],
    ) -> Result<BTreeMap<SegmentName, Vec<ArchivedFile>>, Error> {
        let mut stored = BTreeMap::new();
        for of_timeline in segments.chunk_by(|one, other| one.timeline == other.timeline) {
            if let Some(first) = of_timeline.first() {
                let listed = self
                    .repository
                    .list_summaries(first.timeline, Some(*first))?;
                stored.extend(listed);
            }
        }
        Ok(stored)
    }

    /// The summaries of a few segments, read at once.
    fn batch(
        &self,
        segments: &[SegmentName],
        stored: &BTreeMap<SegmentName, Vec<ArchivedFile>>,
    ) -> Result<Vec<Summarized>, Error> {
        let next = Mutex::new(segments.iter().enumerate());
        let found: Mutex<BTreeMap<usize, Summarized>> = Mutex::default();
        let silent = Progress::new(Show::Never, "", 0);
        on_threads(self.threads.min(segments.len()), &silent, &|| {
            loop {
                let Some((index, name)) = lock(&next).next() else {
                    return Ok::<(), Error>(());
                };
                let forms = stored.get(name).map(Vec::as_slice).unwrap_or_default();
                let summary = self.summary(*name, forms)?;
                lock(&found).insert(index, summary);
            }
        })?;
        let found = std::mem::take(&mut *lock(&found));
        Ok(found.into_values().collect())
    }

    fn summary(&self, name: SegmentName, forms: &[ArchivedFile]) -> Result<Summarized, Error> {
        for form in forms {
            match self.stored(name, form) {
                Ok(Some(summary)) => return Ok(Ok(summary)),
                Ok(None) | Err(repository::Error::Locked { .. }) => {}
                Err(error) if error.is_of_the_object() => stored_summary::warn_passed_over(&error),
                Err(error) => return Err(error.into()),
            }
        }
        let version = self.cluster.version;
        let read = self.read(
            name,
            None,
            || Summarizer::new(name),
            |summarizer, record| summarizer.record(record, version),
        )?;
        Ok(read.and_then(|(summarizer, check)| {
            let summary = summarizer.finish(&check);
            summary.map_err(|(lsn, damage)| not_understood(name, lsn, damage))
        }))
    }

    /// A stored summary, if it is shown to be that of the server's own segment; where that is gone from `pg_wal`, of the
    /// archived one.
    fn stored(
        &self,
        name: SegmentName,
        form: &ArchivedFile,
    ) -> Result<Option<Summary>, repository::Error> {
        let repository = self.repository;
        if let Ok(mut own) = std::fs::File::open(self.wal_folder.join(name.to_string())) {
            let summary = stored_summary::read(repository, name, &form.object)?;
            let sha256 = streams::sha256(&mut own).ok();
            let is_it = sha256.is_some() && sha256 == summary.segment_sha256.map(|sum| sum.0);
            return Ok(is_it.then_some(summary));
        }
        match repository.find_wal(WalFileName::Segment(name))? {
            Some(archived) => {
                let read = self.proven.read(repository, name, &form.object, &archived);
                read.map(Some)
            }
            None => Ok(None),
        }
    }

    /// Reads a segment from `pg_wal`, else from the archive, and shows its records to what `begin` makes for each.
    fn read<T>(
        &self,
        name: SegmentName,
        last: Option<SegmentCheck>,
        begin: impl Fn() -> T,
        show: impl Fn(&mut T, &Record),
    ) -> Result<Result<(T, SegmentCheck), Gap>, Error> {
        let size = self.cluster.segment_size;
        let holds_end = name.number(size) == Some(size.segment_of(self.to));
        let until = holds_end.then_some(self.to);
        // In this order: a segment leaves pg_wal when it has come into the archive.
        let path = self.wal_folder.join(name.to_string());
        let mut taken = begin();
        let show_own = |record: &Record| show(&mut taken, record);
        let (own, cluster) = (last.clone(), self.cluster);
        let local = segment::read_local(&path, cluster, name, self.history, own, until, show_own);
        let local = match local {
            Ok(check) => return Ok(Ok((taken, check))),
            Err(error) => error,
        };
        let Some(archived) = self.repository.find_wal(WalFileName::Segment(name))? else {
            let is_there = path.exists();
            return Ok(Err(if is_there {
                damaged(name, &local)
            } else {
                Gap::Missing(name)
            }));
        };
        let mut taken = begin();
        let show_archived = |_: &Cluster, record: &Record| show(&mut taken, record);
        let (repository, history) = (self.repository, self.history);
        match segment::read(repository, name, &archived, history, last, show_archived) {
            Ok(check) => Ok(Ok((taken, check))),
            Err(error) if error.is_locked() => Ok(Err(Gap::Locked(name))),
            Err(error) if error.is_damage() => Ok(Err(damaged(name, &error))),
            Err(error) => Err(error),
        }
    }

    /// Joins what ran into the segment from the one before.
    fn join(
        &self,
        joiner: &mut Joiner,
        name: SegmentName,
        summary: &mut Summary,
    ) -> Result<Result<(), Gap>, Error> {
        let taken = match joiner.next(summary) {
            Ok(None) => return Ok(Ok(())),
            Ok(Some(whole)) => summary
                .prepend(&whole.record())
                .map_err(|damage| (whole.start, damage)),
            Err(Rift::Cut(lsn)) => match self.read_across(lsn, name, summary)? {
                Ok((whole, taken)) => {
                    *summary = whole;
                    taken
                }
                Err(gap) => return Ok(Err(gap)),
            },
            Err(apart @ Rift::Apart(_)) => return Ok(Err(damaged(name, &apart))),
        };
        Ok(taken.map_err(|(lsn, damage)| not_understood(name, lsn, damage)))
    }

    /// The summary of `last` with the record at `lsn`, which ends in it, from the segments themselves.
    fn read_across(
        &self,
        lsn: Lsn,
        last: SegmentName,
        summary: &Summary,
    ) -> Result<Result<(Summary, Prepended), Gap>, Error> {
        let size = self.cluster.segment_size;
        let first = size.segment_of(lsn);
        let end = last.number(size).unwrap_or(first);
        let (mut found, mut check) = ((summary.clone(), Ok(())), None);
        for number in (first.0..=end.0).map(SegmentNo) {
            let name = self.history.segment_name(number, size);
            let read = self.read(
                name,
                check.take(),
                || (summary.clone(), Ok(())),
                |(summary, taken), record| {
                    if record.start == lsn {
                        *taken = summary.prepend(record).map_err(|damage| (lsn, damage));
                    }
                },
            )?;
            match read {
                Ok((read, after)) => (found, check) = (read, Some(after)),
                Err(gap) => return Ok(Err(gap)),
            }
        }
        Ok(Ok(found))
    }

    /// Where the server began to leave changes out of the WAL, if it did.
    fn minimal(&self, summary: &Summary) -> Option<Lsn> {
        let within = summary
            .notes
            .iter()
            .filter(|note| (self.from..self.to).contains(&note.lsn));
        let mut minimal =
            within.filter(|note| matches!(note.event, Event::ParameterChange { wal_level: 0, .. }));
        minimal.next().map(|note| note.lsn)
    }
}

fn damaged(segment: SegmentName, error: &dyn std::error::Error) -> Gap {
    Gap::Damaged {
        segment,
        reason: output::chain(error),
    }
}

fn not_understood(segment: SegmentName, lsn: Lsn, damage: record::Damage) -> Gap {
    Gap::Damaged {
        segment,
        reason: format!("the record at {lsn} cannot be understood: {damage}"),
    }
}
