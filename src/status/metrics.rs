//! A status as Prometheus reads it. Names are those that the daemon has, too.

use std::fmt;
use std::sync::atomic::AtomicU64;

use jiff::Timestamp;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::timelines::Reason;
use super::{Backup, Newest, Status};
use crate::repository::BackupKind;
use crate::repository::reports::{ReportKind, ReportResult};

/// What each name begins with.
pub const PREFIX: &str = "walhalla";

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

/// A registry with the version that runs and whether the store answered.
pub fn registry(store_up: &Gauge) -> Registry {
    let mut registry = Registry::with_prefix(PREFIX);
    let build = Family::<Build, Gauge>::default();
    let version = crate::LONG_VERSION;
    build.get_or_create(&Build { version }).set(1);
    // A gauge, as the text format of the textfile collector knows no info.
    registry.register("build_info", "The version that runs", build);
    let help = "Whether the store answered the last request";
    registry.register("store_up", help, store_up.clone());
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
    let mut registry = registry(&up);
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
    registry.register(
        "wal_ready_segments",
        "Segments that wait for the archive",
        ready,
    );
    registry.register(
        "wal_last_archived_timestamp_seconds",
        "When a segment was archived last",
        last_archived,
    );
    registry.register(
        "wal_archive_failures",
        "Segments that the server asked for and that were not archived",
        failures,
    );
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
    registry.register("backups", "Backups in the store", backups);
    registry.register(
        "backup_last_completion_timestamp_seconds",
        "When the newest backup ended that can be restored",
        completion,
    );
    let mut newest = |name: &str, help: &str, family| registry.register(name, help, family);
    newest(
        "backup_last_size_bytes",
        "What a restore of the newest backup writes",
        size,
    );
    newest(
        "backup_last_stored_bytes",
        "What the newest backup takes in the store",
        stored,
    );
    newest(
        "backup_chain_length",
        "Backups that a restore of the longest chain takes",
        chain,
    );
    registry.register(
        "backup_last_duration_seconds",
        "How long the newest backup took",
        duration,
    );
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
        if let Some(end) = ends.map(|span| span.to.unwrap_or(span.from)).max() {
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
    registry.register(
        "first_recoverability_timestamp_seconds",
        "The first moment that can be restored",
        first,
    );
    registry.register(
        "last_recoverability_timestamp_seconds",
        "The last moment that can be restored",
        last,
    );
    registry.register(
        "wal_gaps",
        "Gaps in the archived WAL that no deletion made",
        gaps,
    );
    registry.register("store_bytes", "Bytes in the store", stored);
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
    registry.register(
        "verify_last_timestamp_seconds",
        "When the last verification of each result began",
        verified,
    );
    registry.register(
        "drill_last_timestamp_seconds",
        "When the last drill of each result began",
        drilled,
    );
    registry.register(
        "drill_rto_seconds",
        "How long the restore of the last drill took",
        rto,
    );
    registry.register("drill_rpo_seconds", "How much the last drill lost", rpo);
}

/// Gaps that were not made on purpose.
fn gaps_of(status: &Status) -> u64 {
    let gaps = { status.timelines.iter() }.flat_map(|timeline| &timeline.gaps);
    gaps.filter(|gap| gap.reason != Some(Reason::Deleted))
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
