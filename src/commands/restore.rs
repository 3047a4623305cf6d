//! `walhalla restore PGDATA`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use indicatif::HumanBytes;

use super::{Context, Outcome};
use crate::cli::{Restore, WalMode};
use crate::error::Error;
use crate::output;
use crate::restore::existing::Existing;
use crate::restore::only::Only;
use crate::restore::outside::{Outside, of_replay};
use crate::restore::plan::{Plan, plan};
use crate::restore::recovery::{Role, Settings, WalSource};
use crate::restore::run::{Destination, restore};
use crate::restore::{self, stage};

pub(super) fn run(context: &Context, arguments: Restore) -> Result<Outcome, Error> {
    let pgdata = super::absolute(&arguments.pgdata)?;
    let repository = context.repository(&arguments.plan.cluster)?;
    let on_demand = (arguments.standby || arguments.wal == WalMode::OnDemand)
        .then(|| on_demand(context))
        .transpose()?;
    let program = std::env::current_exe().map_err(|source| Error::System {
        doing: "find this program's path",
        source,
    })?;
    let plan = plan(
        &repository,
        &arguments.plan.target(),
        arguments.plan.backup.as_deref(),
        context.reading(),
    )?;
    plan.warn();
    let only = arguments.only_databases;
    let only = (!only.is_empty())
        .then(|| Only::of(&repository, &plan.backup, &only))
        .transpose()?;
    let map: BTreeMap<_, _> = arguments.tablespaces.map.into_iter().collect();
    let of_replay = of_replay(&plan, &map);
    let outside = Outside::check(&plan, &pgdata, &map)?;
    let tablespaces = map
        .into_iter()
        .filter(|(oid, _)| !of_replay.contains_key(oid));
    let destination = Destination {
        pgdata,
        tablespaces: tablespaces.collect(),
        existing: existing(arguments.delta),
        only,
        threads: context.settings.download_concurrency,
        show: context.show(),
    };
    let spool = context
        .settings
        .spool_dir
        .as_deref()
        .map(super::absolute)
        .transpose()?;
    let stage = match on_demand {
        None => Some(stage::directory(&destination.pgdata, spool.as_deref())),
        Some(_) => None,
    };
    let settings = |sealed: Option<PathBuf>| Settings {
        program,
        wal: sealed
            .map(WalSource::Staged)
            .or(on_demand)
            .unwrap_or(WalSource::Staged(PathBuf::new())),
        archive_mode: arguments.archive_mode,
        role: if arguments.standby {
            Role::Standby
        } else {
            Role::Primary
        },
        has_empty_files: destination.only.is_some(),
    };
    let kept_bytes = restore(&repository, &plan, &destination, stage.as_deref(), settings)?;
    outside.prepare()?;
    report(context, &plan, &destination, kept_bytes, stage.is_none())
}

/// What `--delta` says of files that are there.
pub(super) fn existing(delta: bool) -> Existing {
    if delta {
        Existing::Update
    } else {
        Existing::Refuse
    }
}

/// The store, for a server that asks it itself.
fn on_demand(context: &Context) -> Result<WalSource, Error> {
    let file = context
        .settings
        .file
        .as_deref()
        .ok_or(restore::Error::NeedsConfig)?;
    if context.settings.identity_beside_file() {
        return Err(restore::Error::IdentityBesideFile.into());
    }
    let config = super::absolute(file)?;
    Ok(WalSource::OnDemand {
        config,
        store: context.settings.store_beside_file(),
    })
}

fn report(
    context: &Context,
    plan: &Plan,
    destination: &Destination,
    kept_bytes: u64,
    is_open_ended: bool,
) -> Result<Outcome, Error> {
    if context.global.json {
        output::json(&plan.report())?;
        return Ok(Outcome::Done);
    }
    let pgdata = destination.pgdata.display();
    output::line(&format!(
        "{pgdata} is restored from backup {}; it will recover to {}",
        plan.backup.id, plan.target.point
    ))?;
    if destination.existing == Existing::Update {
        output::line(&format!(
            "{} of its files were there already",
            HumanBytes(kept_bytes)
        ))?;
    }
    for tablespace in &plan.new_tablespaces {
        output::line(&format!("replay makes {tablespace}"))?;
    }
    if is_open_ended {
        output::line(
            "tablespaces that are created later are made at the original's paths too, which must be empty here and \
             owned by the server's user",
        )?;
    }
    if destination.only.is_some() {
        output::line(
            "the databases that were not asked for are empty: drop them once the server is up, then \
             ALTER SYSTEM RESET ignore_invalid_pages, and restart it",
        )?;
    }
    output::line(&format!("start it with: pg_ctl -D {pgdata} start"))?;
    Ok(Outcome::Done)
}

/// `recovery_end_command`: the staged WAL has been replayed.
pub(super) fn end(plan: &Path) -> Result<Outcome, Error> {
    if let Some(stage) = plan.parent().filter(|_| plan.exists()) {
        stage::clear(stage)?;
    }
    Ok(Outcome::Done)
}
