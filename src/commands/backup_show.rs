//! `walhalla backup-show ID`

use serde::Serialize;

use super::backup_list::Standing;
use super::{Context, Outcome};
use crate::cli::BackupShow;
use crate::error::Error;
use crate::output::look::{bytes, counted, duration, time};
use crate::output::{self, Shade};
use crate::repository::BackupEntry;

/// Columns of the names of what is shown.
const NAMES: usize = 16;

/// A backup as it is shown.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    backup: &'a BackupEntry,
    #[serde(flatten)]
    standing: Standing<'a>,
}

pub(super) fn run(context: &Context, arguments: &BackupShow) -> Result<Outcome, Error> {
    let repository = context.repository(&arguments.cluster)?;
    let catalog = repository.catalog()?;
    let backup = repository.named_backup(&catalog, &arguments.id)?;
    let shown = Shown {
        standing: Standing::of(backup, &catalog),
        backup: &BackupEntry {
            permanent: catalog.is_permanent(&backup.id),
            ..backup.clone()
        },
    };
    if context.global.json {
        output::json(&shown)?;
    } else {
        print(&shown)?;
    }
    Ok(match shown.standing.problem() {
        None => Outcome::Done,
        Some(problem) => {
            tracing::error!("{problem}");
            Outcome::ProblemFound
        }
    })
}

/// A page about a backup: what it is, how long it took, what it takes, what it stands on.
fn print(shown: &Shown) -> Result<(), output::Error> {
    output::pieces(&[(Shade::Strong, &format!("backup {}", shown.backup.id))])?;
    for (name, text) in rows(shown) {
        output::pieces(&[
            (Shade::Faint, &format!("  {name:<NAMES$}")),
            (Shade::Plain, &text),
        ])?;
    }
    Ok(())
}

fn rows(shown: &Shown) -> Vec<(&'static str, String)> {
    let mut rows = whose(shown.backup);
    rows.extend(history(shown));
    rows.extend(contents(shown.backup));
    rows.extend(remarks(shown.backup));
    rows
}

/// Whose backup it is, and how it is known.
fn whose(backup: &BackupEntry) -> Vec<(&'static str, String)> {
    let standby = match backup.of_standby {
        Some(true) => ", taken from a standby",
        Some(false) | None => "",
    };
    let mut rows = vec![
        ("cluster", backup.system_identifier.to_string()),
        (
            "server",
            format!("PostgreSQL {}{standby}", backup.server_version),
        ),
    ];
    rows.extend(backup.label.clone().map(|label| ("label", label)));
    for (key, value) in &backup.annotations {
        rows.push(("annotation", format!("{key} = {value}")));
    }
    rows.push(("permanent", yes_or_no(backup.permanent)));
    rows
}

/// When it was taken, and what it stands on.
fn history(shown: &Shown) -> Vec<(&'static str, String)> {
    let backup = shown.backup;
    let took = duration(backup.stop_time.duration_since(backup.start_time));
    let mut rows = vec![
        ("began", time(backup.start_time)),
        ("ended", format!("{}, after {took}", time(backup.stop_time))),
        (
            "WAL",
            format!(
                "{} to {} on timeline {}",
                backup.start_lsn,
                backup.stop_lsn,
                backup.timeline.number()
            ),
        ),
    ];
    rows.extend(backup.replayed_time.map(|at| ("its data is of", time(at))));
    rows.extend(
        backup
            .parent
            .as_ref()
            .map(|parent| ("parent", parent.to_string())),
    );
    let (chain, dependents) = shown.standing.ids();
    match chain {
        Some(chain) if chain.len() > 1 => rows.extend(listed("a restore takes", chain)),
        Some(_) => {}
        None => rows.push((
            "a restore takes",
            "what is missing: it cannot be restored".to_owned(),
        )),
    }
    rows.extend(listed("deltas on it", dependents));
    let merged = backup.merged_from.as_ref();
    rows.extend(merged.map(|leaf| ("merged from", leaf.to_string())));
    rows
}

/// What it holds, and what that takes.
fn contents(backup: &BackupEntry) -> Vec<(&'static str, String)> {
    let encrypted = if backup.encrypted_to.is_empty() {
        "no".to_owned()
    } else {
        format!("to {}", backup.encrypted_to.join(", "))
    };
    let mut rows = vec![
        (
            "size",
            format!(
                "{} in {} when restored",
                bytes(backup.size_bytes),
                counted(backup.files, "file")
            ),
        ),
        (
            "stored",
            format!(
                "{} in {}",
                bytes(backup.stored_bytes),
                counted(backup.parts.len() as u64, "part")
            ),
        ),
        ("encrypted", encrypted),
    ];
    if let Some(changed) = &backup.changed_blocks {
        let reason = changed.reason.as_ref();
        let reason = reason.map_or_else(String::new, |reason| format!(" ({reason})"));
        rows.push((
            "changed blocks",
            format!("determined from {}{reason}", changed.source),
        ));
    }
    for tablespace in &backup.tablespaces {
        rows.push((
            "tablespace",
            format!("{} at {}", tablespace.oid, tablespace.location.display()),
        ));
    }
    rows
}

/// What one must know before it is restored.
fn remarks(backup: &BackupEntry) -> Vec<(&'static str, String)> {
    let checksums = if backup.data_checksums {
        "on"
    } else {
        "off: Walhalla cannot recognise damaged pages"
    };
    let mut rows = vec![("checksums", checksums.to_owned())];
    for corrupt in &backup.corrupt_blocks {
        let text = format!("block {} of {}", corrupt.block, corrupt.file);
        rows.push(("damaged", text));
    }
    for left_out in &backup.left_out {
        rows.push(("not in it", left_out.to_string()));
    }
    if let Some(limits) = &backup.limits {
        let named = limits
            .named()
            .map(|(name, value)| format!("{name} = {value}"));
        rows.extend(listed("needs at least", named.to_vec()));
    }
    rows.push((
        "written by",
        format!("Walhalla {}", backup.walhalla_version),
    ));
    rows
}

/// One row for each of some texts, of which the first has the name.
fn listed(name: &'static str, texts: Vec<String>) -> impl Iterator<Item = (&'static str, String)> {
    std::iter::once(name)
        .chain(std::iter::repeat(""))
        .zip(texts)
}

fn yes_or_no(it: bool) -> String {
    if it { "yes" } else { "no" }.to_owned()
}
