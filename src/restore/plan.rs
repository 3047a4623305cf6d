//! What a restore takes, known before anything is written.
//!
//! The plan names the backup, the timelines, every WAL segment that recovery will ask for, and how
//! far it must get. If something is missing the plan says what, and nothing is restored.

use jiff::Timestamp;
use serde::Serialize;
use walhalla_postgres::wal::text::ServerText;
use walhalla_postgres::{History, Limits, Lsn, SegmentName, TimelineId};

use super::target::Target;
use crate::repository::{ArchivedFile, BackupEntry};

/// A restore that can be carried out.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What was asked for.
    pub target: Target,
    /// The backup to begin with.
    pub backup: BackupEntry,
    /// What it takes to restore that: the full backup first, `backup` itself last.
    pub chain: Vec<BackupEntry>,
    /// The timeline that recovery follows.
    pub history: History,
    /// Every segment that recovery will ask for, in the order of replay.
    pub segments: Vec<(SegmentName, ArchivedFile)>,
    /// Where the WAL of the last one ends, if that is not archived whole and was received so far.
    pub tail: Option<Lsn>,
    /// Whether no WAL comes after that one, on its timeline or on one that left it before: else `wal-fetch` does not hand it over.
    pub tail_is_the_end: bool,
    /// How many of them make the backup consistent.
    pub segments_to_consistency: usize,
    /// History files that the server will ask for.
    pub histories: Vec<(TimelineId, ArchivedFile)>,
    /// Timelines that lead on from the backup too and are not followed.
    pub other_timelines: Vec<u32>,
    /// Tablespaces that replay makes.
    pub new_tablespaces: Vec<NewTablespace>,
    /// What the server that replays must not be below, where the WAL tells of other settings than the backup's.
    pub limits: Option<Limits>,
}

/// A tablespace that was created after the backup began. Replay makes it at the place where it was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NewTablespace {
    /// Its OID.
    pub oid: u32,
    /// The place; empty when it is inside the data directory.
    pub location: ServerText,
    /// Where the record of its creation begins.
    pub lsn: Lsn,
    /// Whether it is dropped again before the target.
    pub is_dropped: bool,
}

/// `plan --json`.
#[derive(Clone, Debug, Serialize)]
pub struct PlanReport {
    /// Whether the target can be reached.
    pub reachable: bool,
    /// Why not.
    pub reason: Option<String>,
    /// Options that reach the nearest point, of a target that cannot be reached.
    pub nearest: Option<String>,
    /// Backups to restore, the full one first.
    pub backup_chain: Vec<String>,
    /// Timelines to follow, oldest first.
    pub timelines: Vec<u32>,
    /// Timelines that lead on from the backup too and are not followed.
    pub other_timelines: Vec<u32>,
    /// Tablespaces that replay makes, at the places where they were made.
    pub new_tablespaces: Vec<NewTablespace>,
    /// Settings that replay needs at least, where the server was started with others after the backup began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub needed_settings: Option<Limits>,
    /// Segments to replay, in order.
    pub segments: Vec<String>,
    /// Where the WAL of the last one ends, if that is not archived whole and was received so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tail_end: Option<Lsn>,
    /// How many of them make the backup consistent.
    pub segments_to_consistency: usize,
    /// How many of them reach the target.
    pub segments_to_target: usize,
    /// What will be downloaded.
    pub download_bytes: u64,
    /// The target, in words.
    pub target: String,
    /// When the backup ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup_time: Option<Timestamp>,
}

/// Why a target cannot be reached, and what can be instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreachable {
    /// Why.
    pub reason: String,
    /// Options of `restore` that reach the nearest point.
    pub nearest: Option<String>,
}

impl std::fmt::Display for NewTablespace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "tablespace {}", self.oid)?;
        if self.location.as_bytes().is_empty() {
            f.write_str(" in the data directory")?;
        } else {
            write!(f, " at {}", self.location)?;
        }
        if self.is_dropped {
            f.write_str(", and drops it again")?;
        }
        Ok(())
    }
}

impl Plan {
    /// Tells of timelines that the plan leaves aside.
    pub fn warn(&self) {
        if !self.other_timelines.is_empty() {
            let (followed, others) = (self.history.timeline.number(), &self.other_timelines);
            tracing::warn!(
                "the plan follows timeline {followed}; timelines {others:?} are in the archive too \
                 and are left aside: --target-timeline chooses"
            );
        }
    }

    /// What will be downloaded.
    pub fn download_bytes(&self) -> u64 {
        let wal: u64 = self
            .segments
            .iter()
            .map(|(_, archived)| archived.stored_bytes)
            .sum();
        let histories: u64 = self
            .histories
            .iter()
            .map(|(_, archived)| archived.stored_bytes)
            .sum();
        let backups: u64 = self.chain.iter().map(|backup| backup.stored_bytes).sum();
        backups + wal + histories
    }

    /// Room that the staged WAL takes.
    pub fn stage_bytes(&self) -> u64 {
        self.backup
            .wal_segment_size
            .bytes()
            .saturating_mul(self.segments.len() as u64)
    }

    /// Files that the staged WAL takes: segments, histories and the list of them.
    pub fn staged_files(&self) -> u64 {
        (self.segments.len() + self.histories.len()) as u64 + 1
    }

    /// The plan as `plan --json` shows it.
    pub fn report(&self) -> PlanReport {
        PlanReport {
            reachable: true,
            reason: None,
            nearest: None,
            backup_chain: self
                .chain
                .iter()
                .map(|backup| backup.id.to_string())
                .collect(),
            timelines: self.timelines(),
            other_timelines: self.other_timelines.clone(),
            new_tablespaces: self.new_tablespaces.clone(),
            needed_settings: self.limits,
            segments: self
                .segments
                .iter()
                .map(|(name, _)| name.to_string())
                .collect(),
            tail_end: self.tail,
            segments_to_consistency: self.segments_to_consistency,
            segments_to_target: self.segments.len(),
            download_bytes: self.download_bytes(),
            target: self.target.point.to_string(),
            backup_time: Some(self.backup.stop_time),
        }
    }

    fn timelines(&self) -> Vec<u32> {
        let mut timelines: Vec<u32> = self
            .segments
            .iter()
            .map(|(name, _)| name.timeline.number())
            .collect();
        timelines.push(self.history.timeline.number());
        timelines.dedup();
        timelines
    }
}

impl Unreachable {
    /// It cannot be reached for this reason; nothing nearer is known.
    pub(super) fn because(reason: String) -> Self {
        Self {
            reason,
            nearest: None,
        }
    }
}

impl PlanReport {
    /// The report of a target that cannot be reached.
    pub fn unreachable(target: &Target, unreachable: &Unreachable) -> Self {
        Self {
            reachable: false,
            reason: Some(unreachable.reason.clone()),
            nearest: unreachable.nearest.clone(),
            backup_chain: Vec::new(),
            timelines: Vec::new(),
            other_timelines: Vec::new(),
            new_tablespaces: Vec::new(),
            needed_settings: None,
            segments: Vec::new(),
            tail_end: None,
            segments_to_consistency: 0,
            segments_to_target: 0,
            download_bytes: 0,
            target: target.point.to_string(),
            backup_time: None,
        }
    }
}
