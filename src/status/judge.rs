//! What of a status needs a look, and how much.

use jiff::SignedDuration;
use serde::Serialize;

use super::timelines::Reason;
use super::{Newest, Status};
use crate::output;
use crate::output::look::{counted, duration, time};
use crate::repository::Catalog;
use crate::repository::reports::ReportResult;

/// Segments that may wait before somebody should look.
pub const MOST_WAITING: u64 = 10;

/// How old things may be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// The newest backup.
    pub max_age: Option<SignedDuration>,
    /// The newest full backup.
    pub max_full_age: Option<SignedDuration>,
    /// The newest WAL in the store.
    pub max_wal_age: Option<SignedDuration>,
}

/// Something that needs a look.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// How much.
    pub severity: Severity,
    /// What it is.
    pub what: String,
    /// What to do.
    pub hint: Option<String>,
}

/// How much something needs a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Soon.
    Warning,
    /// Now.
    Critical,
}

/// The problems, the worst first.
pub(super) fn problems(status: &Status, catalog: &Catalog, limits: &Limits) -> Vec<Problem> {
    let mut problems = Vec::new();
    ages(status, limits, &mut problems);
    backups(status, catalog, &mut problems);
    gaps(status, &mut problems);
    reports(status, &mut problems);
    archiving(status, &mut problems);
    if let Some(mirror) = &status.mirror
        && let Some(since) = mirror.since
    {
        problems.push(warning(
            format!(
                "the mirror {} is owed {} and {} since {}",
                mirror.store,
                counted(mirror.owed_wal as u64, "WAL file"),
                counted(mirror.owed_backups as u64, "backup"),
                time(since)
            ),
            "`walhalla wal-verify --repair` sends them, and so does the next wal-push or backup-push once the mirror answers",
        ));
    }
    problems.sort_by_key(|problem| std::cmp::Reverse(problem.severity));
    problems
}

fn ages(status: &Status, limits: &Limits, problems: &mut Vec<Problem>) {
    let take = "take one: `walhalla backup-push PGDATA`";
    match (&status.newest_backup, limits.max_age) {
        (None, _) => problems.push(critical("no backup can be restored".to_owned(), take)),
        (Some(newest), Some(max)) => too_old("backup", newest, max, problems),
        (Some(_), None) => {}
    }
    match (&status.newest_full_backup, limits.max_full_age) {
        (None, Some(_)) if status.newest_backup.is_some() => {
            problems.push(critical("no full backup can be restored".to_owned(), take));
        }
        (Some(newest), Some(max)) => too_old("full backup", newest, max, problems),
        (_, _) => {}
    }
    if let Some(max) = limits.max_wal_age {
        let age = status.archiving.age_seconds.map(SignedDuration::from_secs);
        let what = match age {
            Some(age) if age <= max => return,
            Some(age) => format!(
                "the newest WAL in the store arrived {} ago; {} is allowed",
                duration(age),
                duration(max)
            ),
            None => "no WAL is archived".to_owned(),
        };
        problems.push(critical(
            what,
            "see `select * from pg_stat_archiver` and the server's log; an idle server archives only with archive_timeout",
        ));
    }
}

fn too_old(what: &str, newest: &Newest, max: SignedDuration, problems: &mut Vec<Problem>) {
    let age = SignedDuration::from_secs(newest.age_seconds);
    if age > max {
        problems.push(critical(
            format!(
                "the newest {what} {} ended {} ago; {} is allowed",
                newest.id,
                duration(age),
                duration(max)
            ),
            "look why no later one was taken",
        ));
    }
}

fn backups(status: &Status, catalog: &Catalog, problems: &mut Vec<Problem>) {
    for damaged in &catalog.damaged {
        problems.push(critical(
            output::chain(&*damaged.error),
            "`walhalla verify --all` looks at every backup",
        ));
    }
    let newest = status.newest_backup.as_ref().map(|newest| newest.stop_time);
    for backup in &status.backups {
        let what = match &backup.chain_problem {
            Some(problem) => problem.clone(),
            None if backup.is_consistent => continue,
            None => format!(
                "backup {} cannot be restored: WAL that it needs is not in the archive",
                backup.id
            ),
        };
        // An older one that was replaced by a sound one is less of a worry.
        let problem = if newest < Some(backup.stop_time) {
            critical
        } else {
            warning
        };
        problems.push(problem(
            what,
            "take a new backup, and delete this one when nothing else stands on it",
        ));
    }
    let corrupt = status.backups.iter().filter(|it| it.corrupt_blocks > 0);
    for backup in corrupt {
        problems.push(warning(
            format!(
                "backup {} holds {} with a wrong checksum",
                backup.id,
                counted(backup.corrupt_blocks as u64, "block")
            ),
            "the server's disk or memory may be failing: `walhalla backup-show` names the blocks",
        ));
    }
}

fn archiving(status: &Status, problems: &mut Vec<Problem>) {
    let archiving = &status.archiving;
    if let Some(file) = &archiving.failing {
        problems.push(critical(
            format!("archive_command fails on {file}"),
            "the server's log has its message; `walhalla check PGDATA` looks for the cause",
        ));
    }
    let waiting = archiving.ready_segments.unwrap_or(0);
    if waiting > MOST_WAITING {
        problems.push(warning(
            format!("{} wait to be archived", counted(waiting, "segment")),
            "archiving does not keep up, or has just begun: look again, and at the server's log",
        ));
    }
}

fn reports(status: &Status, problems: &mut Vec<Problem>) {
    let drill = status.last_drill.as_ref().map(|drill| &drill.report);
    let failed = [status.last_verify.as_ref(), drill].into_iter().flatten();
    for report in failed.filter(|report| report.result == ReportResult::Failed) {
        problems.push(critical(
            format!(
                "the last {} ({}) found {}",
                report.kind,
                time(report.time),
                counted(report.problems, "problem")
            ),
            "run it again to see them",
        ));
    }
}

fn gaps(status: &Status, problems: &mut Vec<Problem>) {
    for timeline in &status.timelines {
        let lost =
            { timeline.gaps.iter() }.filter(|gap| !gap.reason.is_some_and(Reason::is_harmless));
        for gap in lost {
            let why = match gap.reason {
                Some(Reason::Dropped) => ", because wal-push dropped them (max_backlog)",
                Some(Reason::Deleted | Reason::Earlier) | None => "",
            };
            let what = format!(
                "{} of timeline {} missing{why}: {} to {}",
                if gap.segments == 1 {
                    "1 WAL segment".to_owned()
                } else {
                    counted(gap.segments, "WAL segment")
                },
                timeline.timeline,
                gap.first,
                gap.last
            );
            problems.push(if gap.is_before_a_backup {
                warning(what, "moments in the gap cannot be reached; a backup begins after it")
            } else {
                critical(
                    what,
                    "nothing after the gap can be reached: take a backup now, `walhalla backup-push PGDATA`",
                )
            });
        }
    }
}

fn critical(what: String, hint: &str) -> Problem {
    Problem {
        severity: Severity::Critical,
        what,
        hint: Some(hint.to_owned()),
    }
}

fn warning(what: String, hint: &str) -> Problem {
    Problem {
        severity: Severity::Warning,
        ..critical(what, hint)
    }
}
