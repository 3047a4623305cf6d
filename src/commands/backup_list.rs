//! `walhalla backup-list`

use jiff::Timestamp;
use serde::Serialize;
use walhalla_postgres::{Lsn, SegmentName, SystemIdentifier, Version};

use super::wal_show::print_spans;
use super::{Context, Outcome};
use crate::archive::Archive;
use crate::cli;
use crate::error::Error;
use crate::output;
use crate::output::look::{bytes, count, time};
use crate::output::table::{Table, number, text};
use crate::repository::{BackupEntry, BackupId, BackupKind, Catalog, FoundCluster, Repository};
use crate::restore::window::{Window, spans, windows};

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
    /// `backup-push` does not look at the other backups.
    #[serde(flatten)]
    standing: Option<&'a Standing<'a>>,
    /// What can be reached from it; `backup-show` does not look at the WAL.
    #[serde(flatten)]
    reaches: Option<Reaches>,
}

/// What a backup stands on, and what stands on it.
#[derive(Debug, Serialize)]
pub(super) struct Standing<'a> {
    /// The full backup first, the backup itself last; `None` when something of it is missing.
    chain: Option<Vec<&'a BackupId>>,
    /// What is.
    chain_problem: Option<String>,
    /// Its deltas and theirs, oldest first.
    dependents: Vec<&'a BackupId>,
}

impl<'a> Standing<'a> {
    /// The standing of a backup among the others of the catalog.
    pub(super) fn of(backup: &BackupEntry, catalog: &'a Catalog) -> Self {
        let ids = |backups: Vec<&'a BackupEntry>| backups.into_iter().map(|it| &it.id).collect();
        let (chain, chain_problem) = match catalog.chain(&backup.id) {
            Ok(chain) => (Some(ids(chain)), None),
            Err(broken) => (None, Some(broken.to_string())),
        };
        Self {
            chain,
            chain_problem,
            dependents: ids(catalog.dependents(&backup.id)),
        }
    }

    /// The ids of what a restore takes, and of what stands on the backup.
    pub(super) fn ids(&self) -> (Option<Vec<String>>, Vec<String>) {
        let text = |ids: &[&BackupId]| ids.iter().map(ToString::to_string).collect();
        (self.chain.as_deref().map(text), text(&self.dependents))
    }

    /// Why the backup cannot be restored, if something of its chain is missing.
    pub(super) fn problem(&self) -> Option<&str> {
        self.chain_problem.as_deref()
    }
}

/// A backup of the list.
struct Listed<'a> {
    backup: &'a BackupEntry,
    is_permanent: bool,
    standing: Standing<'a>,
    window: Window,
}

impl<'a> Listed<'a> {
    fn new(backup: &'a BackupEntry, mut window: Window, catalog: &'a Catalog) -> Self {
        let standing = Standing::of(backup, catalog);
        if standing.chain.is_none() {
            // Nothing is reached from a backup that cannot be restored, whatever WAL there is.
            (window.to, window.last_segment) = (None, None);
        }
        Self {
            backup,
            is_permanent: catalog.is_permanent(&backup.id),
            standing,
            window,
        }
    }

    fn row(&self) -> Row<'_> {
        Row {
            permanent: self.is_permanent,
            standing: Some(&self.standing),
            reaches: Some(Reaches::from(&self.window)),
            ..Row::from(self.backup)
        }
    }
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
            standing: None,
            reaches: None,
        }
    }
}

pub(super) fn run(context: &Context, arguments: &cli::BackupList) -> Result<Outcome, Error> {
    let repositories = context.repositories(&arguments.cluster)?;
    let mut shown = Shown::default();
    for repository in &repositories {
        let catalog = repository.catalog()?;
        if repositories.len() > 1 && !context.global.json {
            output::line(&format!(
                "cluster {}",
                FoundCluster::of(repository, &catalog)
            ))?;
        }
        show(context, repository, &catalog, &mut shown)?;
    }
    if context.global.json {
        output::json(&shown.rows)?;
    } else if !shown.has_any {
        output::line("no backups yet; take one with: walhalla backup-push PGDATA")?;
    }
    Ok(if shown.has_problem {
        Outcome::ProblemFound
    } else {
        Outcome::Done
    })
}

/// What was shown of all clusters.
#[derive(Default)]
struct Shown {
    rows: Vec<serde_json::Value>,
    has_any: bool,
    has_problem: bool,
}

/// Shows the backups of a cluster.
fn show(
    context: &Context,
    repository: &Repository,
    catalog: &Catalog,
    shown: &mut Shown,
) -> Result<(), Error> {
    if catalog.is_empty() {
        return Ok(());
    }
    shown.has_any = true;
    let archive = Archive::new(repository, catalog.backups(), context.reading())?;
    let windows = windows(&archive, catalog.backups())?;
    let backups: Vec<Listed> = catalog
        .backups()
        .iter()
        .zip(windows)
        .map(|(backup, window)| Listed::new(backup, window, catalog))
        .collect();
    if context.global.json {
        let row = |listed: &Listed| {
            serde_json::to_value(listed.row()).expect("ids, times and numbers are JSON")
        };
        shown.rows.extend(backups.iter().map(row));
    } else {
        let windows: Vec<Window> = backups.iter().map(|it| it.window.clone()).collect();
        table(&backups).print()?;
        print_spans(&spans(&windows))?;
    }
    shown.has_problem |= problems(catalog, &backups) == Outcome::ProblemFound;
    Ok(())
}

/// Tells of the backups that cannot be restored.
fn problems(catalog: &Catalog, backups: &[Listed]) -> Outcome {
    for damaged in &catalog.damaged {
        tracing::error!("{}", output::chain(&damaged.error));
    }
    let broken = backups.iter().filter_map(|it| it.standing.problem());
    let broken = broken.inspect(|problem| tracing::error!("{problem}"));
    if catalog.damaged.len() + broken.count() == 0 {
        Outcome::Done
    } else {
        Outcome::ProblemFound
    }
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

fn table(backups: &[Listed]) -> Table {
    let mut table = Table::new(&[
        text("ID", 0),
        text("KIND", 4),
        text("PARENT", 6),
        number("TLI", 7),
        text("START LSN", 9),
        text("STOP LSN", 9),
        text("STOPPED", 5),
        number("SIZE", 1),
        number("STORED", 2),
        text("PG", 8),
        text("REACHES", 0),
        text("MISSING SEGMENT", 3),
        text("PERMANENT", 3),
        text("LABEL", 3),
        number("CORRUPT BLOCKS", 2),
    ]);
    for listed in backups {
        let backup = listed.backup;
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let missing = listed
            .window
            .missing
            .filter(|_| listed.standing.chain.is_some());
        let corrupt = backup.corrupt_blocks.len() as u64;
        table.row([
            backup.id.to_string(),
            format!("{:?}", backup.kind).to_lowercase(),
            or_dash(backup.parent.as_ref().map(ToString::to_string)),
            backup.timeline.number().to_string(),
            backup.start_lsn.to_string(),
            backup.stop_lsn.to_string(),
            time(backup.stop_time),
            bytes(backup.size_bytes),
            bytes(backup.stored_bytes),
            backup.postgres_version.to_string(),
            reaches(listed),
            or_dash(missing.map(|name| name.to_string())),
            if listed.is_permanent { "yes" } else { "-" }.to_owned(),
            backup.label.clone().unwrap_or_default(),
            if corrupt == 0 {
                "-".to_owned()
            } else {
                count(corrupt)
            },
        ]);
    }
    table
}

/// The last moment that can be reached from a backup.
fn reaches(listed: &Listed) -> String {
    let window = &listed.window;
    match (window.last_segment, window.to) {
        _ if listed.standing.chain.is_none() => "nothing: broken chain".to_owned(),
        (None, _) => "nothing: WAL is missing".to_owned(),
        (Some(_), Some(to)) => time(to),
        (Some(segment), None) if window.is_end_unknown => format!("WAL to {segment}"),
        (Some(_), None) => "its own end".to_owned(),
    }
}
