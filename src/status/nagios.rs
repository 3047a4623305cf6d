//! A status as Nagios reads it: one line, figures after a bar, and the state as the exit code
//! (Monitoring Plugins Development Guidelines, "Plugin Output for Nagios").

use super::judge::Limits;
use super::{State, Status};
use crate::output::look::{bytes, duration};
use jiff::SignedDuration;

/// The exit code when it is not known how things stand.
pub const UNKNOWN: u8 = 3;

/// The exit code for the worst of some clusters.
pub fn exit_code(state: State) -> u8 {
    match state {
        State::Ok => 0,
        State::Warning => 1,
        State::Critical => 2,
    }
}

/// The line for some clusters, of which `worst` is the worst state.
pub fn line(statuses: &[Status], worst: State, limits: &Limits) -> String {
    let word = match worst {
        State::Ok => "OK",
        State::Warning => "WARNING",
        State::Critical => "CRITICAL",
    };
    let problems: Vec<String> = { statuses.iter() }
        .flat_map(|status| &status.problems)
        .map(|problem| plain(&problem.what))
        .collect();
    let text = if problems.is_empty() {
        summary(statuses)
    } else {
        problems.join("; ")
    };
    let figures: Vec<String> = { statuses.iter() }
        .flat_map(|status| figures(status, statuses.len(), limits))
        .collect();
    format!("WALHALLA {word} - {text} | {}", figures.join(" "))
}

/// A line for what kept the status from being known.
pub fn unknown(why: &str) -> String {
    format!("WALHALLA UNKNOWN - {}", plain(why))
}

fn summary(statuses: &[Status]) -> String {
    let age = |seconds: i64| duration(SignedDuration::from_secs(seconds));
    let each = statuses.iter().map(|status| {
        let backup = status.newest_backup.as_ref().map_or_else(
            || "no backup".to_owned(),
            |newest| format!("newest backup {} ago", age(newest.age_seconds)),
        );
        let wal = status.archiving.age_seconds.map_or_else(
            || "no WAL".to_owned(),
            |seconds| format!("newest WAL {} ago", age(seconds)),
        );
        let stored = status.store_bytes;
        let stored = bytes(stored.backups + stored.wal + stored.summaries);
        format!("{backup}, {wal}, {stored} stored")
    });
    each.collect::<Vec<_>>().join("; ")
}

/// `'label'=value[unit];[warn];[crit];[min]` for each figure.
fn figures(status: &Status, clusters: usize, limits: &Limits) -> Vec<String> {
    let of_cluster = if clusters > 1 {
        format!("{}_", status.system_identifier)
    } else {
        String::new()
    };
    let seconds = |name: &str, value: Option<i64>, most: Option<SignedDuration>| {
        let value = value?;
        let most = most.map_or_else(String::new, |most| most.as_secs().to_string());
        Some(format!("'{of_cluster}{name}'={value}s;;{most};0"))
    };
    let newest = status.newest_backup.as_ref().map(|it| it.age_seconds);
    let full = status.newest_full_backup.as_ref().map(|it| it.age_seconds);
    let ready = status.archiving.ready_segments;
    let stored = status.store_bytes;
    let all = [
        seconds("backup_age", newest, limits.max_age),
        seconds("full_backup_age", full, limits.max_full_age),
        seconds("wal_age", status.archiving.age_seconds, limits.max_wal_age),
        ready.map(|ready| format!("'{of_cluster}wal_ready'={ready};;;0")),
        Some(format!(
            "'{of_cluster}store'={}B;;;0",
            stored.backups + stored.wal + stored.summaries
        )),
    ];
    all.into_iter().flatten().collect()
}

/// A text without the bar, which ends it, and in one line.
fn plain(text: &str) -> String {
    text.replace('|', "/").replace('\n', " ")
}
