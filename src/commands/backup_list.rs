//! `walhalla backup-list`

use comfy_table::{Table, presets};
use indicatif::HumanBytes;
use jiff::Timestamp;
use serde::Serialize;

use super::{Context, Outcome};
use crate::cli::Cluster;
use crate::error::Error;
use crate::output;
use crate::postgres::{Lsn, SystemIdentifier, Version};
use crate::repository::{BackupEntry, BackupId, BackupKind};

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
        }
    }
}

pub(super) fn run(context: &Context, cluster: &Cluster) -> Result<Outcome, Error> {
    let repository = match context.repository(cluster) {
        // A store without a cluster has no backups, which is an answer and no failure.
        Err(Error::Repository(crate::repository::Error::NoCluster { .. })) => None,
        found => Some(found?),
    };
    let catalog = repository
        .map(|repository| repository.catalog())
        .transpose()?
        .unwrap_or_default();
    let (backups, damaged) = (catalog.backups, catalog.damaged);
    if context.global.json {
        output::json(&backups.iter().map(Row::from).collect::<Vec<_>>())?;
    } else if backups.is_empty() {
        output::line("no backups yet; take one with: walhalla backup-push PGDATA")?;
    } else {
        output::line(&table(&backups).to_string())?;
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

fn table(backups: &[BackupEntry]) -> Table {
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
        "LABEL",
    ]);
    for backup in backups {
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
            format!("{}{damaged}", backup.label.as_deref().unwrap_or_default()),
        ]);
    }
    table
}
