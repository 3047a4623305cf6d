//! A status as Prometheus reads it. Names are those that the daemon has, too.

use std::fmt;
use std::sync::atomic::AtomicU64;

use jiff::Timestamp;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{self, Registry};

use super::timelines::Reason;
use super::{Backup, Newest, Status};
use crate::repository::BackupKind;
use crate::repository::reports::{ReportKind, ReportResult};

/// What each name begins with.
pub const PREFIX: &str = "walhalla";

/// A metric, as Prometheus' help and the book describe it.
#[derive(Debug)]
pub struct Metric {
    /// Its name after the [`PREFIX`] and an underscore.
    pub name: &'static str,
    /// Its labels, and the values of each that are known beforehand.
    pub labels: &'static [(&'static str, &'static [&'static str])],
    /// Who shows it.
    pub shown_by: ShownBy,
    /// What it says, without a full stop.
    pub help: &'static str,
}

/// Who shows a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShownBy {
    /// `walhalla status` and the daemon.
    Both,
    /// The daemon, and `walhalla status` with `--pgdata`.
    Host,
    /// The daemon, and `walhalla status` with `--pgdata` while the server answers.
    Server,
    /// The daemon.
    Daemon,
}

impl Metric {
    /// Adds the metric to the page.
    pub fn register(&self, registry: &mut Registry, values: impl registry::Metric) {
        // The library adds the ending of counters itself.
        let name = self.name.strip_suffix("_total").unwrap_or(self.name);
        registry.register(name, self.help, values);
    }
}

macro_rules! metrics {
    ($($id:ident = $name:literal, [$($label:literal $(: $value:literal)*),*], $shown_by:ident, $help:literal;)+) => {
        $(pub(crate) const $id: Metric = Metric {
            name: $name,
            labels: &[$(($label, &[$($value),*])),*],
            shown_by: ShownBy::$shown_by,
            help: $help,
        };)+

        /// Every metric, in the order in which the book lists them.
        pub static METRICS: &[Metric] = &[$($id),+];
    };
}

metrics! {
    BUILD_INFO = "build_info", ["version"], Both,
        "Always 1. The label says which version runs";
    STORE_UP = "store_up", [], Both,
        "1 if the store answered the last request, else 0";
    WAL_READY_SEGMENTS = "wal_ready_segments", ["system_id"], Host,
        "How many segments wait for the archive";
    WAL_LAST_ARCHIVED = "wal_last_archived_timestamp_seconds", ["system_id"], Both,
        "When a segment was last archived";
    WAL_ARCHIVE_FAILURES = "wal_archive_failures_total", ["system_id"], Server,
        "How often archiving failed: the daemon counts its own failures, status shows failed_count of pg_stat_archiver";
    WAL_ARCHIVED_SEGMENTS = "wal_archived_segments_total", ["system_id"], Daemon,
        "How many segments the daemon stored";
    WAL_FETCHED_SEGMENTS = "wal_fetched_segments_total", ["system_id"], Daemon,
        "How many segments the daemon fetched because a call waited for them";
    BACKUPS = "backups", ["system_id", "type": "full": "delta"], Both,
        "How many backups the store has";
    BACKUP_LAST_COMPLETION = "backup_last_completion_timestamp_seconds", ["system_id", "type": "full": "delta"], Both,
        "When the newest backup ended that can be restored";
    BACKUP_LAST_SIZE = "backup_last_size_bytes", ["system_id"], Both,
        "How much a restore of the newest backup writes";
    BACKUP_LAST_STORED = "backup_last_stored_bytes", ["system_id"], Both,
        "How much the newest backup alone takes in the store";
    BACKUP_CHAIN_LENGTH = "backup_chain_length", ["system_id"], Both,
        "How many backups the longest chain has";
    BACKUP_LAST_DURATION = "backup_last_duration_seconds", ["system_id"], Both,
        "How long the newest backup took";
    FIRST_RECOVERABILITY = "first_recoverability_timestamp_seconds", ["system_id"], Both,
        "The first moment that can be restored";
    LAST_RECOVERABILITY = "last_recoverability_timestamp_seconds", ["system_id"], Both,
        "The last moment that can be restored, where this host can read the WAL";
    WAL_GAPS = "wal_gaps", ["system_id"], Both,
        "How many gaps the archived WAL has, without those that a deletion made and those before the first backup";
    STORE_BYTES = "store_bytes", ["system_id", "kind": "backups": "wal": "summaries"], Both,
        "How many bytes the store holds";
    VERIFY_LAST = "verify_last_timestamp_seconds", ["system_id", "result": "ok": "failed"], Both,
        "When the last verification with this result began";
    DRILL_LAST = "drill_last_timestamp_seconds", ["system_id", "result": "ok": "failed"], Both,
        "When the last drill with this result began";
    DRILL_RTO = "drill_rto_seconds", ["system_id"], Both,
        "How long the restore of the last drill took";
    DRILL_RPO = "drill_rpo_seconds", ["system_id"], Both,
        "How much the last drill lost, as a time";
}

/// Whose a figure is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfCluster {
    /// The cluster's system identifier.
    pub system_id: String,
}

/// Of which backups a figure is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfType {
    system_id: String,
    r#type: &'static str,
}

/// Of what in the store a figure is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    system_id: String,
    kind: &'static str,
}

/// Of reports of which result a figure is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfResult {
    system_id: String,
    result: &'static str,
}

/// Which program runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    version: &'static str,
}

/// A time in seconds since 1970, or a length of time.
pub type Seconds = Gauge<f64, AtomicU64>;

/// A registry with the version that runs and whether the store answered; `None` where it was not asked yet.
pub fn registry(store_up: Option<&Gauge>) -> Registry {
    let mut registry = Registry::with_prefix(PREFIX);
    let build = Family::<Build, Gauge>::default();
    let version = crate::LONG_VERSION;
    build.get_or_create(&Build { version }).set(1);
    // A gauge, as the text format of the textfile collector knows no info.
    BUILD_INFO.register(&mut registry, build);
    if let Some(store_up) = store_up {
        STORE_UP.register(&mut registry, store_up.clone());
    }
    registry
}

/// The text of a registry, which is both OpenMetrics and what the textfile collector reads.
pub fn text_of(registry: &Registry) -> String {
    let mut page = String::new();
    match text::encode(&mut page, registry) {
        Ok(()) => page,
        Err(fmt::Error) => String::new(),
    }
}

/// The page of some clusters, of which nothing else counts.
pub fn page(statuses: &[Status]) -> String {
    let up = Gauge::default();
    up.set(1);
    let mut registry = registry(Some(&up));
    let ready: Family<OfCluster, Gauge> = Family::default();
    let archived: Family<OfCluster, Seconds> = Family::default();
    let failures: Family<OfCluster, Counter> = Family::default();
    for status in statuses {
        let of = of(status);
        let archiving = &status.archiving;
        if let Some(segments) = archiving.ready_segments {
            let segments = i64::try_from(segments).unwrap_or(i64::MAX);
            ready.get_or_create(&of).set(segments);
        }
        if let Some(last) = archiving.last_archived_time {
            archived.get_or_create(&of).set(seconds(last));
        }
        if let Some(number) = archiving.failures.and_then(|it| u64::try_from(it).ok()) {
            failures.get_or_create(&of).inc_by(number);
        }
    }
    register_archiving(&mut registry, ready, archived, failures);
    register(&mut registry, statuses);
    with_whole_names(&text_of(&registry))
}

/// The same page as the textfile collector reads it: there the help and the type of a counter stand at its whole name, and in
/// OpenMetrics at the name without `_total`.
fn with_whole_names(page: &str) -> String {
    let counters: Vec<&str> = { page.lines() }
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
        .collect();
    let lines = page.lines().map(|line| {
        let is_of = |name: &&&str| {
            let words: Vec<&str> = line.splitn(4, ' ').collect();
            words.first() == Some(&"#") && words.get(2) == Some(*name)
        };
        let counter = counters.iter().find(is_of);
        let line = counter.map_or_else(
            || line.to_owned(),
            |name| line.replacen(name, &format!("{name}_total"), 1),
        );
        format!("{line}\n")
    });
    lines.collect()
}

/// Registers what is known of archiving: by the daemon, or by a status.
pub fn register_archiving(
    registry: &mut Registry,
    ready: Family<OfCluster, Gauge>,
    last_archived: Family<OfCluster, Seconds>,
    failures: Family<OfCluster, Counter>,
) {
    WAL_READY_SEGMENTS.register(registry, ready);
    WAL_LAST_ARCHIVED.register(registry, last_archived);
    WAL_ARCHIVE_FAILURES.register(registry, failures);
}

/// Registers what the store tells of some clusters.
pub fn register(registry: &mut Registry, statuses: &[Status]) {
    register_backups(registry, statuses);
    register_window(registry, statuses);
    register_reports(registry, statuses);
}

fn register_backups(registry: &mut Registry, statuses: &[Status]) {
    let backups: Family<OfType, Gauge> = Family::default();
    let completion: Family<OfType, Seconds> = Family::default();
    let duration: Family<OfCluster, Seconds> = Family::default();
    let size: Family<OfCluster, Gauge> = Family::default();
    let stored: Family<OfCluster, Gauge> = Family::default();
    let chain: Family<OfCluster, Gauge> = Family::default();
    for status in statuses {
        let of = of(status);
        for kind in [BackupKind::Full, BackupKind::Delta] {
            let own: Vec<&Backup> = { status.backups.iter() }
                .filter(|backup| backup.kind == kind)
                .collect();
            let label = OfType {
                system_id: of.system_id.clone(),
                r#type: word(kind),
            };
            backups.get_or_create(&label).set(integer(own.len() as u64));
            let usable = own.iter().filter(|backup| backup.is_consistent);
            if let Some(last) = usable.map(|backup| backup.stop_time).max() {
                completion.get_or_create(&label).set(seconds(last));
            }
        }
        if let Some(newest) = &status.newest_backup {
            duration.get_or_create(&of).set(length(newest));
            size.get_or_create(&of).set(integer(newest.size_bytes));
            stored.get_or_create(&of).set(integer(newest.stored_bytes));
        }
        chain
            .get_or_create(&of)
            .set(integer(status.longest_chain as u64));
    }
    BACKUPS.register(registry, backups);
    BACKUP_LAST_COMPLETION.register(registry, completion);
    BACKUP_LAST_SIZE.register(registry, size);
    BACKUP_LAST_STORED.register(registry, stored);
    BACKUP_CHAIN_LENGTH.register(registry, chain);
    BACKUP_LAST_DURATION.register(registry, duration);
}

fn register_window(registry: &mut Registry, statuses: &[Status]) {
    let first: Family<OfCluster, Seconds> = Family::default();
    let last: Family<OfCluster, Seconds> = Family::default();
    let gaps: Family<OfCluster, Gauge> = Family::default();
    let stored: Family<OfKind, Gauge> = Family::default();
    for status in statuses {
        let of = of(status);
        if let Some(span) = status.reachable.first() {
            first.get_or_create(&of).set(seconds(span.from));
        }
        let ends = status.reachable.iter();
        let is_known = !status.reachable.iter().any(|span| span.is_end_unknown);
        if is_known && let Some(end) = ends.map(|span| span.to.unwrap_or(span.from)).max() {
            last.get_or_create(&of).set(seconds(end));
        }
        gaps.get_or_create(&of).set(integer(gaps_of(status)));
        let bytes = status.store_bytes;
        for (kind, bytes) in [
            ("backups", bytes.backups),
            ("wal", bytes.wal),
            ("summaries", bytes.summaries),
        ] {
            let system_id = of.system_id.clone();
            stored
                .get_or_create(&OfKind { system_id, kind })
                .set(integer(bytes));
        }
    }
    FIRST_RECOVERABILITY.register(registry, first);
    LAST_RECOVERABILITY.register(registry, last);
    WAL_GAPS.register(registry, gaps);
    STORE_BYTES.register(registry, stored);
}

fn register_reports(registry: &mut Registry, statuses: &[Status]) {
    let verified: Family<OfResult, Seconds> = Family::default();
    let drilled: Family<OfResult, Seconds> = Family::default();
    let rto: Family<OfCluster, Seconds> = Family::default();
    let rpo: Family<OfCluster, Seconds> = Family::default();
    for status in statuses {
        let of = of(status);
        // The newest one comes last, and stays.
        for report in status.reports.iter().rev() {
            let family = match report.kind {
                ReportKind::Verify | ReportKind::WalVerify => &verified,
                ReportKind::Drill => &drilled,
            };
            let label = OfResult {
                system_id: of.system_id.clone(),
                result: match report.result {
                    ReportResult::Ok => "ok",
                    ReportResult::Failed => "failed",
                },
            };
            family.get_or_create(&label).set(seconds(report.time));
        }
        let drill = status.last_drill.as_ref();
        for (family, measured) in [
            (&rto, drill.and_then(|drill| drill.rto_seconds)),
            (&rpo, drill.and_then(|drill| drill.rpo_seconds)),
        ] {
            if let Some(measured) = measured {
                family.get_or_create(&of).set(measured);
            }
        }
    }
    VERIFY_LAST.register(registry, verified);
    DRILL_LAST.register(registry, drilled);
    DRILL_RTO.register(registry, rto);
    DRILL_RPO.register(registry, rpo);
}

/// Gaps that were not made on purpose.
fn gaps_of(status: &Status) -> u64 {
    let gaps = { status.timelines.iter() }.flat_map(|timeline| &timeline.gaps);
    gaps.filter(|gap| !gap.reason.is_some_and(Reason::is_harmless))
        .count() as u64
}

fn of(status: &Status) -> OfCluster {
    OfCluster {
        system_id: status.system_identifier.to_string(),
    }
}

fn word(kind: BackupKind) -> &'static str {
    match kind {
        BackupKind::Full => "full",
        BackupKind::Delta => "delta",
    }
}

fn seconds(time: Timestamp) -> f64 {
    time.as_duration().as_secs_f64()
}

fn length(newest: &Newest) -> f64 {
    newest
        .stop_time
        .duration_since(newest.start_time)
        .as_secs_f64()
}

fn integer(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_has_its_help_where_the_textfile_collector_looks() {
        let page =
            "# HELP a_b Of a b.\n# TYPE a_b counter\na_b_total 1\n# TYPE a_bc gauge\na_bc 2\n";
        let expected = "# HELP a_b_total Of a b.\n# TYPE a_b_total counter\na_b_total 1\n# TYPE a_bc gauge\na_bc 2\n";
        assert_eq!(with_whole_names(page), expected);
    }
}
