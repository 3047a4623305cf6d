//! `walhalla backup-list`

use comfy_table::{Table, presets};
use indicatif::HumanBytes;
use jiff::Timestamp;
use serde::Serialize;

use super::wal_show::print_spans;
use super::{Context, Outcome};
use crate::cli::Cluster;
use crate::error::Error;
use crate::output;
use crate::postgres::{Lsn, SegmentName, SystemIdentifier, Version};
use crate::repository::{BackupEntry, BackupId, BackupKind};
use crate::restore::window::{Window, spans, windows};
use crate::wal::archive::Archive;

/// A backup as `backup-list --json` shows it.
#[derive(Debug, Serialize)]
pub(super) struct Row<'a> {
    id: &'a BackupId,
    kind: BackupKind,
    parent: Option<&'a BackupId>,
    system_identifier: SystemIdentifier,
    timeline: u32,
    start_lsn: Lsn,
    stop_lsn: Lsn,
    start_time: Timestamp,
    stop_time: Timestamp,
    postgres_version: Version,
    size_bytes: u64,
    stored_bytes: u64,
    permanent: bool,
    label: Option<&'a str>,
    corrupt_blocks: usize,
    /// What can be reached from it; `backup-show` does not look at the WAL.
    #[serde(flatten)]
    reaches: Option<Reaches>,
}

/// What can be reached from a backup.
#[derive(Debug, Serialize)]
struct Reaches {
    reachable_from: Timestamp,
    reachable_to: Option<Timestamp>,
    reachable_segment: Option<SegmentName>,
    missing_segment: Option<SegmentName>,
}

impl<'a> From<&'a BackupEntry> for Row<'a> {
    fn from(entry: &'a BackupEntry) -> Self {
        Self {
            id: &entry.id,
            kind: entry.kind,
            parent: entry.parent.as_ref(),
            system_identifier: entry.system_identifier,
            timeline: entry.timeline.number(),
            start_lsn: entry.start_lsn,
            stop_lsn: entry.stop_lsn,
            start_time: entry.start_time,
            stop_time: entry.stop_time,
            postgres_version: entry.postgres_version,
            size_bytes: entry.size_bytes,
            stored_bytes: entry.stored_bytes,
            permanent: entry.permanent,
            label: entry.label.as_deref(),
            corrupt_blocks: entry.corrupt_blocks.len(),
            reaches: None,
        }
    }
}

pub(super) fn run(context: &Context, cluster: &Cluster) -> Result<Outcome, Error> {
    let repository = match context.repository(cluster) {
        // A store without a cluster has no backups, which is an answer and no failure.
        Err(Error::Repository(crate::repository::Error::NoCluster { .. })) => None,
        found => Some(found?),
    };
    let Some(repository) = repository else {
        return none(context);
    };
    let catalog = repository.catalog()?;
    let (backups, damaged) = (catalog.backups, catalog.damaged);
    if backups.is_empty() && damaged.is_empty() {
        return none(context);
    }
    let archive = Archive::new(&repository, &backups, context.reading())?;
    let windows = windows(&archive, &backups)?;
    if context.global.json {
        let rows = backups.iter().zip(&windows).map(|(backup, window)| Row {
            reaches: Some(Reaches::from(window)),
            ..Row::from(backup)
        });
        output::json(&rows.collect::<Vec<_>>())?;
    } else {
        output::line(&table(&backups, &windows).to_string())?;
        print_spans(&spans(&windows))?;
    }
    for problem in &damaged {
        tracing::error!("{problem}");
    }
    Ok(if damaged.is_empty() {
        Outcome::Done
    } else {
        Outcome::ProblemFound
    })
}

fn none(context: &Context) -> Result<Outcome, Error> {
    if context.global.json {
        output::json(&[(); 0])?;
    } else {
        output::line("no backups yet; take one with: walhalla backup-push PGDATA")?;
    }
    Ok(Outcome::Done)
}

impl From<&Window> for Reaches {
    fn from(window: &Window) -> Self {
        Self {
            reachable_from: window.from,
            reachable_to: window.to,
            reachable_segment: window.last_segment,
            missing_segment: window.missing,
        }
    }
}

fn table(backups: &[BackupEntry], windows: &[Window]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "ID",
        "KIND",
        "TLI",
        "START LSN",
        "STOP LSN",
        "STOPPED",
        "SIZE",
        "STORED",
        "PG",
        "REACHES",
        "LABEL",
    ]);
    for (backup, window) in backups.iter().zip(windows) {
        let damaged = if backup.corrupt_blocks.is_empty() {
            ""
        } else {
            " (has corrupt blocks)"
        };
        table.add_row([
            backup.id.to_string(),
            format!("{:?}", backup.kind).to_lowercase(),
            backup.timeline.number().to_string(),
            backup.start_lsn.to_string(),
            backup.stop_lsn.to_string(),
            backup
                .stop_time
                .strftime("%Y-%m-%d %H:%M:%S%:z")
                .to_string(),
            HumanBytes(backup.size_bytes).to_string(),
            HumanBytes(backup.stored_bytes).to_string(),
            backup.postgres_version.to_string(),
            reaches(window),
            format!("{}{damaged}", backup.label.as_deref().unwrap_or_default()),
        ]);
    }
    table
}

/// Up to when a backup's WAL goes.
fn reaches(window: &Window) -> String {
    let end = match (window.last_segment, window.to) {
        (None, _) => "nothing, its WAL is not whole".to_owned(),
        (Some(_), Some(to)) => to.strftime("%Y-%m-%d %H:%M:%S%:z").to_string(),
        (Some(segment), None) => format!("its end; WAL to {segment}"),
    };
    match window.missing {
        Some(missing) if window.last_segment.is_some() => format!("{end}, {missing} is missing"),
        _ => end,
    }
}
