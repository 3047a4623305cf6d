//! Which blocks the WAL between two positions changed.
//!
//! ```text
//! for each segment: its stored summary │ pg_wal │ the archived segment ─▶ walk ─▶ Changes
//! ```
//!
//! What the server has not archived yet is in its own `pg_wal`, the segment that it is writing too.

use std::collections::BTreeMap;
use std::path::Path;

use smallvec::SmallVec;
use walhalla_postgres::summary::{Changes, Rift, SegmentDigest, Summarizer, Summary};
use walhalla_postgres::wal::event::Event;
use walhalla_postgres::wal::page_header::LONG_HEADER_BYTES;
use walhalla_postgres::wal::reader::Record;
use walhalla_postgres::wal::record;
use walhalla_postgres::wal::{cluster::Cluster, segment_reader::ReadSegment};
use walhalla_postgres::{History, Lsn, SegmentName, WalFileName};

use super::inventory::{self, Run};
use super::proof::Proof;
use super::walk::{Reading, Summaries, Way, walk};
use crate::failure::Failure as _;
use crate::output;
use crate::pipeline::streams;
use crate::repository::{self, ArchivedFile, Repository};
use crate::wal::stored_summary::{self, Proven};
use crate::wal::{Error, segment};

/// An interval of WAL along a history, and where it may be found.
pub struct Interval<'a> {
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
    /// How summaries are read.
    pub reading: Reading,
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

/// Why a walk over the server's own and the archived WAL ended.
enum WalkError {
    Gap(Gap),
    Error(Error),
}

impl From<Error> for WalkError {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// The summaries of an interval's segments, whichever place has them.
struct OwnOrArchived<'a> {
    interval: &'a Interval<'a>,
    stored: inventory::Summaries,
}

impl Interval<'_> {
    /// Each block that records from `from` to before `to` changed, and perhaps some that later records did.
    ///
    /// # Errors
    /// The archive's and those of reading `pg_wal`; what is wrong with the WAL is a [`Gap`].
    pub fn changes(&self) -> Result<Result<Changes, Gap>, Error> {
        let way = Way {
            history: self.history,
            size: self.cluster.segment_size,
            run: self.run(),
        };
        let summaries = OwnOrArchived {
            interval: self,
            stored: self.stored_summaries(way)?,
        };
        let mut changes = Changes::default();
        let mut proof = self.parent.clone();
        let walked = walk(&summaries, way, self.reading, |_, resolved| {
            let summary = resolved.summary;
            if let Some(lsn) = self.minimal(&summary) {
                return Err(WalkError::Gap(Gap::Minimal(lsn)));
            }
            for note in &summary.notes {
                proof.see(note);
            }
            for end in &summary.transactions {
                proof.see_transaction(end.lsn, end.time);
            }
            changes.extend(summary.changes);
            Ok(true)
        });
        match walked {
            Err(WalkError::Error(error)) => Err(error),
            Err(WalkError::Gap(gap)) => Ok(Err(gap)),
            Ok(()) if proof.holds() => Ok(Ok(changes)),
            Ok(()) => Ok(Err(Gap::Foreign(self.from))),
        }
    }

    /// The segments with records of the interval.
    fn run(&self) -> Run {
        let size = self.cluster.segment_size;
        // The first record of a segment begins after a header.
        let headers = Lsn(self.to.0.saturating_sub(LONG_HEADER_BYTES as u64));
        Run::through(size.segment_of(self.from), size.segment_before(headers))
    }

    fn stored_summaries(&self, way: Way) -> Result<inventory::Summaries, Error> {
        let mut stored = BTreeMap::new();
        for (timeline, span) in inventory::spans(way.history, way.size, way.run.first) {
            if span.first < way.run.end {
                let first = span.first.on(timeline, way.size);
                stored.extend(self.repository.list_summaries(timeline, Some(first), &[])?);
            }
        }
        Ok(stored)
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
            let summary = stored_summary::read(repository, name, &form.object())?;
            let is_it = match summary.segment_digest() {
                Some(SegmentDigest::Blake3(known)) => streams::blake3(&mut own).ok() == Some(known),
                Some(SegmentDigest::Sha256(known)) => streams::sha256(&mut own).ok() == Some(known),
                None => false,
            };
            return Ok(is_it.then_some(summary));
        }
        match repository.find_wal(WalFileName::Segment(name))? {
            Some(archived) => {
                let read = self
                    .proven
                    .read(repository, name, &form.object(), &archived);
                read.map(Some)
            }
            None => Ok(None),
        }
    }

    /// Reads a segment from `pg_wal`, else from the archive, and shows its records to what `begin` makes for each.
    fn read<T>(
        &self,
        name: SegmentName,
        last: Option<ReadSegment>,
        begin: impl Fn() -> T,
        mut show: impl FnMut(&mut T, &Record),
    ) -> Result<(T, ReadSegment), WalkError> {
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
            Ok(check) => return Ok((taken, check)),
            Err(error) => error,
        };
        let archived = self.repository.find_wal(WalFileName::Segment(name));
        let Some(archived) = archived.map_err(Error::from)? else {
            return Err(WalkError::Gap(if path.exists() {
                damaged(name, &local)
            } else {
                Gap::Missing(name)
            }));
        };
        let mut taken = begin();
        let show_archived = |_: &Cluster, record: &Record| show(&mut taken, record);
        let (repository, history) = (self.repository, self.history);
        match segment::read(repository, name, &archived, history, last, show_archived) {
            Ok(check) => Ok((taken, check)),
            Err(error) if error.is_locked() => Err(WalkError::Gap(Gap::Locked(name))),
            Err(error) if error.is_of_the_object() => Err(WalkError::Gap(damaged(name, &error))),
            Err(error) => Err(WalkError::Error(error)),
        }
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

impl OwnOrArchived<'_> {
    fn forms(&self, segment: SegmentName) -> &[ArchivedFile] {
        let forms = self.stored.get(&segment);
        forms.map(SmallVec::as_slice).unwrap_or_default()
    }
}

impl Summaries for OwnOrArchived<'_> {
    type Error = WalkError;

    fn stored_bytes(&self, segment: SegmentName) -> u64 {
        inventory::longest(self.forms(segment))
    }

    fn summary(&self, name: SegmentName) -> Result<Summary, WalkError> {
        for form in self.forms(name) {
            match self.interval.stored(name, form) {
                Ok(Some(summary)) => return Ok(summary),
                Ok(None) => {}
                Err(error) if error.is_locked() => {}
                Err(error) if error.is_of_the_object() => stored_summary::warn_passed_over(&error),
                Err(error) => return Err(WalkError::Error(error.into())),
            }
        }
        let version = self.interval.cluster.version;
        let (summarizer, check) = self.interval.read(
            name,
            None,
            || Summarizer::new(name),
            |summarizer, record| summarizer.record(record, version),
        )?;
        let summary = summarizer.finish(&check);
        summary.map_err(|(lsn, damage)| self.not_understood(name, lsn, damage))
    }

    fn records(
        &self,
        segment: SegmentName,
        last: Option<ReadSegment>,
        show: &mut dyn FnMut(&Record),
    ) -> Result<ReadSegment, WalkError> {
        let read = self
            .interval
            .read(segment, last, || (), |(), record| show(record));
        read.map(|((), check)| check)
    }

    fn apart(&self, segment: SegmentName, rift: Rift) -> WalkError {
        WalkError::Gap(damaged(segment, &rift))
    }

    fn not_understood(
        &self,
        segment: SegmentName,
        lsn: Lsn,
        damage: record::RecordNotUnderstood,
    ) -> WalkError {
        WalkError::Gap(not_understood(segment, lsn, damage))
    }
}

fn damaged(segment: SegmentName, error: &dyn std::error::Error) -> Gap {
    Gap::Damaged {
        segment,
        reason: output::chain(error),
    }
}

fn not_understood(segment: SegmentName, lsn: Lsn, damage: record::RecordNotUnderstood) -> Gap {
    Gap::Damaged {
        segment,
        reason: format!("the record at {lsn} cannot be understood: {damage}"),
    }
}
