//! How a cluster's archive stands: what can be restored, how old it is, what is missing.
//!
//! ```text
//! store ─▶ catalog, archive ─▶ windows, timelines ─┐
//!       ─▶ reports, debts ─────────────────────────┼─▶ Status ─▶ judge ─▶ drawing, JSON, metrics, Nagios' line, page
//! host  ─▶ segments that wait ─────────────────────┘
//! ```

pub mod drawing;
pub mod judge;
pub mod metrics;
pub mod nagios;
pub mod page;
pub mod timelines;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use walhalla_postgres::{Lsn, SegmentName, SystemIdentifier, Version};

use crate::archive::{Archive, Reading, Tails};
use crate::repository::debts::RecordedDebt;
use crate::repository::owed::Owed;
use crate::repository::reports::{KEPT_OF_A_KIND, Report, ReportKind, ReportResult};
use crate::repository::{BackupEntry, BackupId, BackupKind, Catalog, Repository};
use crate::restore;
use crate::restore::window::{Span, Window, spans, windows};
use crate::server::conditions::Archiver;
use judge::{Problem, Severity};
use timelines::{Timeline, timelines};

/// How the archive of one cluster stands.
#[derive(Debug, Serialize)]
pub struct Status {
    /// The cluster.
    pub system_identifier: SystemIdentifier,
    /// Its version, as the newest backup says.
    pub postgres_version: Option<Version>,
    /// The worst of the problems.
    pub state: State,
    /// What needs a look, the worst first.
    pub problems: Vec<Problem>,
    /// When each moment can be reached, oldest first.
    pub reachable: Vec<Span>,
    /// The backups, oldest first.
    pub backups: Vec<Backup>,
    /// The newest backup that can be restored.
    pub newest_backup: Option<Newest>,
    /// The newest full one of these.
    pub newest_full_backup: Option<Newest>,
    /// How many backups a restore of the longest chain takes.
    pub longest_chain: usize,
    /// What is archived of each timeline.
    pub timelines: Vec<Timeline>,
    /// How far archiving is.
    pub archiving: Archiving,
    /// Bytes in the store.
    pub store_bytes: StoreBytes,
    /// How the last verification ended: one that found something before one that did not.
    pub last_verify: Option<LastReport>,
    /// How the last drill ended.
    pub last_drill: Option<LastDrill>,
    /// The newest reports by what ran and how it ended.
    #[serde(skip)]
    pub reports: Vec<Report>,
    /// What a second store is owed.
    pub mirror: Option<OwedToMirror>,
}

/// How something ended that looked for problems.
#[derive(Clone, Debug, Serialize)]
pub struct LastReport {
    /// When it began.
    pub time: Timestamp,
    /// How it ended.
    pub result: ReportResult,
    /// What ran.
    pub kind: ReportKind,
    /// How many problems it found.
    pub problems: u64,
}

/// How a drill ended.
#[derive(Clone, Debug, Serialize)]
pub struct LastDrill {
    /// When it began, how it ended.
    #[serde(flatten)]
    pub report: LastReport,
    /// How long a restore took, in seconds.
    pub rto_seconds: Option<f64>,
    /// How much was lost, in seconds.
    pub rpo_seconds: Option<f64>,
    /// The backup.
    pub backup: Option<BackupId>,
}

/// How things stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Nothing needs a look.
    Ok,
    /// Something needs a look.
    Warning,
    /// Something cannot be restored, or is too old.
    Critical,
}

/// A backup.
#[derive(Debug, Serialize)]
pub struct Backup {
    /// Its id.
    pub id: BackupId,
    /// Full or delta.
    pub kind: BackupKind,
    /// What it stands on.
    pub parent: Option<BackupId>,
    /// Its timeline.
    pub timeline: u32,
    /// When it began.
    pub start_time: Timestamp,
    /// When it ended.
    pub stop_time: Timestamp,
    /// Where its WAL begins.
    pub start_lsn: Lsn,
    /// Where its own WAL ends.
    pub stop_lsn: Lsn,
    /// What a restore writes.
    pub size_bytes: u64,
    /// What it takes in the store.
    pub stored_bytes: u64,
    /// Whether retention rules keep it whatever they say.
    pub permanent: bool,
    /// The text to know it by.
    pub label: Option<String>,
    /// What a restore takes, the full one first.
    pub chain: Option<Vec<BackupId>>,
    /// Why it cannot be restored.
    pub chain_problem: Option<String>,
    /// The first moment that can be reached from it.
    pub reachable_from: Timestamp,
    /// The last one.
    pub reachable_to: Option<Timestamp>,
    /// Blocks with wrong checksums in it.
    pub corrupt_blocks: usize,
    /// Whether its own WAL is archived, so that it can be restored.
    #[serde(rename = "consistent")]
    pub is_consistent: bool,
}

/// The newest backup of a kind.
#[derive(Clone, Debug, Serialize)]
pub struct Newest {
    /// Its id.
    pub id: BackupId,
    /// Full or delta.
    pub kind: BackupKind,
    /// When it began.
    pub start_time: Timestamp,
    /// When it ended.
    pub stop_time: Timestamp,
    /// How long ago that is.
    pub age_seconds: i64,
    /// What a restore writes.
    pub size_bytes: u64,
    /// What it takes in the store.
    pub stored_bytes: u64,
}

/// How far archiving is.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Archiving {
    /// Segments that the server of this host has marked ready and that are not archived yet; none where no data directory was
    /// named.
    pub ready_segments: Option<u64>,
    /// Failures that the server counted (`pg_stat_archiver`), where it could be asked.
    pub failures: Option<i64>,
    /// The file on which `archive_command` failed last, if it has not succeeded since.
    pub failing: Option<String>,
    /// The newest segment in the store.
    pub last_segment: Option<SegmentName>,
    /// When the store received it, by the store's clock.
    pub last_archived_time: Option<Timestamp>,
    /// How long ago that is.
    pub age_seconds: Option<i64>,
}

/// Bytes in the store.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct StoreBytes {
    /// Backups.
    pub backups: u64,
    /// WAL files.
    pub wal: u64,
    /// Summaries of WAL.
    pub summaries: u64,
}

/// What a second store is owed.
#[derive(Clone, Debug, Serialize)]
pub struct OwedToMirror {
    /// Its URL.
    pub store: String,
    /// WAL files.
    pub owed_wal: usize,
    /// Backups.
    pub owed_backups: usize,
    /// Since when.
    pub since: Option<Timestamp>,
}

/// What is known besides the store.
#[derive(Debug, Default)]
pub struct Surroundings {
    /// Segments that wait on this host.
    pub ready_segments: Option<u64>,
    /// What the server's archiver did.
    pub archiver: Option<Archiver>,
    /// The second store, and what it is owed.
    pub mirror: Option<(String, Vec<RecordedDebt>)>,
}

/// Looks at the archive of a cluster; how it is judged is for `limits`.
///
/// # Errors
/// The repository's; what is wrong with an object is part of the answer.
pub fn look(
    repository: &Repository,
    around: Surroundings,
    limits: &judge::Limits,
    reading: Reading,
) -> Result<Status, restore::Error> {
    let now = Timestamp::now();
    let catalog = repository.catalog()?;
    let archive = Archive::new(repository, catalog.backups(), reading)?.with_tails(Tails::Used);
    let windows = windows(&archive, catalog.backups())?;
    let backups: Vec<Backup> = { catalog.backups().iter().zip(&windows) }
        .map(|(entry, window)| backup(&catalog, entry, window))
        .collect();
    let usable: Vec<Window> = { windows.into_iter().zip(&backups) }
        .filter(|(_, backup)| backup.chain.is_some())
        .map(|(window, _)| window)
        .collect();
    let timelines = timelines(&archive, catalog.backups())?;
    let reports = reports(repository)?;
    let mut status = Status {
        system_identifier: repository.layout().system_identifier(),
        postgres_version: catalog.backups().last().map(|it| it.postgres_version),
        state: State::Ok,
        problems: Vec::new(),
        reachable: spans(&usable),
        newest_backup: newest(&backups, now, |_| true),
        newest_full_backup: newest(&backups, now, |kind| kind == BackupKind::Full),
        longest_chain: { backups.iter() }
            .filter_map(|backup| Some(backup.chain.as_ref()?.len()))
            .max()
            .unwrap_or(0),
        archiving: archiving(&timelines, &around, now),
        store_bytes: StoreBytes {
            backups: backups.iter().map(|backup| backup.stored_bytes).sum(),
            wal: timelines.iter().map(|timeline| timeline.stored_bytes).sum(),
            summaries: archive.summary_bytes()?,
        },
        last_verify: last_verify(&reports),
        last_drill: last_drill(&reports),
        reports,
        mirror: around.mirror.map(|(store, debts)| owed(store, &debts)),
        backups,
        timelines,
    };
    status.problems = judge::problems(&status, &catalog, limits);
    status.state = match status.problems.first().map(|problem| problem.severity) {
        None => State::Ok,
        Some(Severity::Warning) => State::Warning,
        Some(Severity::Critical) => State::Critical,
    };
    Ok(status)
}

fn backup(catalog: &Catalog, entry: &BackupEntry, window: &Window) -> Backup {
    let (chain, chain_problem) = match catalog.chain(&entry.id) {
        Ok(chain) => (
            Some(chain.into_iter().map(|it| it.id.clone()).collect()),
            None,
        ),
        Err(broken) => (None, Some(broken.to_string())),
    };
    let is_consistent = chain.is_some() && window.last_segment.is_some();
    Backup {
        id: entry.id.clone(),
        kind: entry.kind,
        parent: entry.parent.clone(),
        timeline: entry.timeline.number(),
        start_time: entry.start_time,
        stop_time: entry.stop_time,
        start_lsn: entry.start_lsn,
        stop_lsn: entry.stop_lsn,
        size_bytes: entry.size_bytes,
        stored_bytes: entry.stored_bytes,
        permanent: catalog.is_permanent(&entry.id),
        label: entry.label.clone(),
        chain,
        chain_problem,
        reachable_from: window.from,
        reachable_to: window.to.filter(|_| is_consistent),
        corrupt_blocks: entry.corrupt_blocks.len(),
        is_consistent,
    }
}

/// The newest backup of some kind that can be restored.
fn newest(
    backups: &[Backup],
    now: Timestamp,
    is_wanted: impl Fn(BackupKind) -> bool,
) -> Option<Newest> {
    let usable = { backups.iter() }.filter(|it| it.is_consistent && is_wanted(it.kind));
    let backup = usable.max_by_key(|backup| backup.stop_time)?;
    Some(Newest {
        id: backup.id.clone(),
        kind: backup.kind,
        start_time: backup.start_time,
        stop_time: backup.stop_time,
        age_seconds: seconds_since(backup.stop_time, now),
        size_bytes: backup.size_bytes,
        stored_bytes: backup.stored_bytes,
    })
}

fn archiving(timelines: &[Timeline], around: &Surroundings, now: Timestamp) -> Archiving {
    let newest = { timelines.iter() }.max_by_key(|timeline| timeline.newest);
    let last = newest.and_then(|timeline| timeline.newest);
    Archiving {
        ready_segments: around.ready_segments,
        failures: around.archiver.as_ref().map(|archiver| archiver.failures),
        failing: { around.archiver.as_ref() }.and_then(|archiver| archiver.failing.clone()),
        last_segment: newest.and_then(|timeline| timeline.last_segment),
        last_archived_time: last,
        age_seconds: last.map(|last| seconds_since(last, now)),
    }
}

/// The newest reports of each kind: the last one, and the last one with the other result if it is not far back.
fn reports(repository: &Repository) -> Result<Vec<Report>, restore::Error> {
    let mut newest: Vec<Report> = Vec::new();
    for kind in ReportKind::ALL {
        let of_kind = repository
            .reports(kind, KEPT_OF_A_KIND)
            .map_err(crate::repository::Error::from)?;
        for result in [ReportResult::Ok, ReportResult::Failed] {
            let last = of_kind.iter().find(|report| report.result == result);
            newest.extend(last.cloned());
        }
    }
    newest.sort_by_key(|report| std::cmp::Reverse(report.time));
    Ok(newest)
}

/// The last report of a kind.
fn last(reports: &[Report], kind: ReportKind) -> Option<&Report> {
    reports.iter().find(|report| report.kind == kind)
}

fn last_verify(reports: &[Report]) -> Option<LastReport> {
    let of_both = [ReportKind::Verify, ReportKind::WalVerify].map(|kind| last(reports, kind));
    let worst = of_both.into_iter().flatten().max_by_key(|report| {
        let is_failed = report.result == ReportResult::Failed;
        (is_failed, report.time)
    });
    worst.map(LastReport::from)
}

fn last_drill(reports: &[Report]) -> Option<LastDrill> {
    let report = last(reports, ReportKind::Drill)?;
    let measured = report.drill.as_ref();
    Some(LastDrill {
        report: report.into(),
        rto_seconds: measured.and_then(|drill| drill.rto_seconds),
        rpo_seconds: measured.and_then(|drill| drill.rpo_seconds),
        backup: measured.map(|drill| drill.backup.clone()),
    })
}

impl From<&Report> for LastReport {
    fn from(report: &Report) -> Self {
        Self {
            time: report.time,
            result: report.result,
            kind: report.kind,
            problems: report.problems,
        }
    }
}

fn owed(store: String, debts: &[RecordedDebt]) -> OwedToMirror {
    let is_backup = |debt: &&RecordedDebt| matches!(debt.owed, Owed::Backup(_));
    let owed_backups = debts.iter().filter(is_backup).count();
    OwedToMirror {
        store,
        owed_wal: debts.len() - owed_backups,
        owed_backups,
        since: debts.iter().map(|debt| debt.since).min(),
    }
}

/// Seconds from `then` to `now`; 0 where clocks differ.
fn seconds_since(then: Timestamp, now: Timestamp) -> i64 {
    now.duration_since(then).max(SignedDuration::ZERO).as_secs()
}
