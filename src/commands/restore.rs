//! `walhalla restore PGDATA`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use indicatif::HumanBytes;
use serde::Serialize;

use super::{Context, Outcome};
use crate::cli::{Restore, RestoreOptions, WalMode};
use crate::durability::Durability;
use crate::error::Error;
use crate::output;
use crate::repository::Repository;
use crate::restore;
use crate::restore::choose::plan;
use crate::restore::chosen_databases::ChosenDatabases;
use crate::restore::existing::Existing;
use crate::restore::guard::{Kind, guard, leave_guarded};
use crate::restore::outside::{Outside, of_replay};
use crate::restore::plan::{Plan, PlanReport};
use crate::restore::recovery::{ArchiveMode, OnDemand, Role, Settings, WalSource};
use crate::restore::run::{Destination, restore};
use crate::restore::stage::{self, Seal};
use crate::restore::start;
use crate::restore::target::Point;
use crate::restore::{archives, debian, leading_out};
use crate::server::conf::Configuration;
use crate::server::data_directory::check_utf8;

/// `restore --json`
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    plan: PlanReport,
    durable: bool,
}

/// A restore that was planned and not begun.
pub(super) struct Prepared {
    pub(super) plan: Plan,
    pub(super) destination: Destination,
    /// Places of tablespaces that replay will make.
    pub(super) outside: Outside,
    /// Where WAL is staged, if it is.
    pub(super) stage: Option<PathBuf>,
    on_demand: Option<WalSource>,
    program: PathBuf,
}

pub(super) fn run(context: &Context, arguments: Restore) -> Result<Outcome, Error> {
    let Restore { pgdata, options } = arguments;
    let repository = context.repository(&options.plan.cluster)?;
    repository.session().prepare_creates();
    let prepared = prepare(context, &repository, &pgdata, &options)?;
    let planned = || planned(context, &repository, &options);
    let Prepared {
        plan,
        destination,
        outside,
        stage,
        on_demand,
        program,
    } = prepared;
    let settings = |sealed: Option<Seal>| Settings {
        program,
        wal: sealed
            .map(WalSource::Staged)
            .or(on_demand)
            .unwrap_or(WalSource::Staged(Seal::default())),
        archive_mode: options.archive_mode,
        role: if options.standby {
            Role::Standby
        } else {
            Role::Primary
        },
        has_empty_files: destination.only.is_some(),
    };
    let kind = stage.as_ref().map_or(Kind::OnDemand, |_| Kind::Staged);
    let guard = || guard(&repository, &plan, kind, planned);
    let (files, guarded) = destination.open_guarded(&repository, &plan.chain, guard)?;
    let kept_bytes = restore(
        &repository,
        &plan,
        files,
        &destination,
        stage.as_deref(),
        &outside,
        settings,
    )?;
    leave_guarded(&repository, &plan, kind);
    drop(guarded);
    if let Some(caution) = destination.durability.caution() {
        tracing::warn!("{caution}");
    }
    report(
        context,
        &plan,
        &destination,
        options.archive_mode,
        kept_bytes,
        stage.is_none(),
    )
}

/// What the archive has for a command line.
pub(super) fn planned(
    context: &Context,
    repository: &Repository,
    options: &RestoreOptions,
) -> Result<Plan, restore::Error> {
    let (target, chosen) = (options.plan.target(), options.plan.backup.as_deref());
    plan(repository, &target, chosen, context.reading())
}

/// Plans a restore, and refuses what cannot end well by the command line alone.
pub(super) fn prepare(
    context: &Context,
    repository: &Repository,
    pgdata: &Path,
    options: &RestoreOptions,
) -> Result<Prepared, Error> {
    let pgdata = super::absolute(pgdata)?;
    // Recovery's settings name what is beside it.
    check_utf8("the data directory", &pgdata)?;
    let on_demand = (options.standby || options.wal == WalMode::OnDemand)
        .then(|| on_demand(context))
        .transpose()?;
    let program = program()?;
    let plan = planned(context, repository, options)?;
    plan.warn();
    warn_of_the_past(context, options.archive_mode);
    if let Some(WalSource::OnDemand(on_demand)) = &on_demand {
        on_demand.must_fit(&program, plan.backup.postgres_version)?;
        if plan.tail.is_some() && !plan.tail_is_the_end && !options.standby {
            return Err(restore::Error::TailOnDemand.into());
        }
    }
    let only = &options.only_databases;
    let only = (!only.is_empty())
        .then(|| ChosenDatabases::of(repository, &plan.backup, only))
        .transpose()?;
    let map: BTreeMap<_, _> = options.tablespaces.map.iter().cloned().collect();
    let of_replay = of_replay(&plan, &map);
    let outside = Outside::check(&plan, &pgdata, &map)?;
    let tablespaces = map
        .into_iter()
        .filter(|(oid, _)| !of_replay.contains_key(oid));
    let spool = super::spool(&context.settings)?;
    let destination = Destination {
        pgdata,
        tablespaces: tablespaces.collect(),
        wal: options.tablespaces.waldir.clone(),
        spool: spool.clone(),
        existing: existing(options.delta),
        durability: options.disk.durability(),
        only,
        needed: super::needed(context)?,
        threads: context.settings.download_concurrency,
        show: context.show(),
    };
    let stage =
        { on_demand.is_none() }.then(|| stage::directory(&destination.pgdata, spool.as_deref()));
    Ok(Prepared {
        plan,
        destination,
        outside,
        stage,
        on_demand,
        program,
    })
}

/// Tells what becomes of the archiving of a server that is restored from a store as it was.
fn warn_of_the_past(context: &Context, archive_mode: ArchiveMode) {
    if context.settings.stores.as_of.is_some() && archive_mode == ArchiveMode::Preserve {
        tracing::warn!(
            "the restored server archives to the store as it is now, where its next timeline may have been given out since then: \
             give it a store of its own, or --archive-mode off"
        );
    }
}

/// The running binary, which recovery is to run.
fn program() -> Result<PathBuf, Error> {
    let program = std::env::current_exe().map_err(|source| Error::System {
        doing: "find this program's path",
        source,
    })?;
    check_utf8("this program", &program)?;
    Ok(program)
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
    check_utf8("the settings file", &config)?;
    let store = context.settings.store()?.to_owned();
    let mirror = context.settings.mirror.clone();
    Ok(WalSource::OnDemand(Box::new(OnDemand {
        config,
        set: context.settings.beside_the_file(),
        variables: {
            let mirror = mirror.as_deref().map(variables);
            let mut all = variables(&store);
            all.extend(mirror.unwrap_or_default());
            all.sort();
            all.dedup();
            all
        },
        mirror,
        as_of: context.settings.stores.as_of,
        store,
    })))
}

/// The variables that say which store a URL means; those that hold secrets are left to the server's own environment.
fn variables(store: &str) -> Vec<(&'static str, Option<String>)> {
    let scheme = store.split_once("://").map_or("", |(scheme, _)| scheme);
    let (pinned, where_set): (&[&str], &[&str]) = match scheme {
        "s3" => (
            &[
                "AWS_ENDPOINT_URL_S3",
                "AWS_ENDPOINT_URL",
                "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
                "AWS_REGION",
                "AWS_DEFAULT_REGION",
            ],
            &["AWS_PROFILE"],
        ),
        "gs" => (&["STORAGE_EMULATOR_HOST"], &[]),
        "az" => (
            &["AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_SERVICE_ENDPOINT"],
            &[],
        ),
        _ => (&[], &[]),
    };
    let value = |name: &'static str| {
        let value = std::env::var(name).ok();
        (name, value.filter(|value| !value.is_empty()))
    };
    let mut variables: Vec<_> = pinned.iter().map(|name| value(name)).collect();
    variables.extend(
        where_set
            .iter()
            .map(|name| value(name))
            .filter(|(_, value)| value.is_some()),
    );
    if scheme == "az" && value("AZURE_STORAGE_CONNECTION_STRING").1.is_none() {
        variables.push(("AZURE_STORAGE_CONNECTION_STRING", None));
    }
    // A URL may hold a password.
    variables.retain(|(_, value)| value.as_ref().is_none_or(|value| !value.contains('@')));
    variables
}

fn report(
    context: &Context,
    plan: &Plan,
    destination: &Destination,
    archive_mode: ArchiveMode,
    kept_bytes: u64,
    is_open_ended: bool,
) -> Result<Outcome, Error> {
    let mut notes = notes(plan, destination, archive_mode);
    if plan.target.point != Point::End || !is_open_ended {
        notes.push(start::at_the_target(
            &Configuration::of_cluster(&destination.pgdata),
            &destination.pgdata,
            plan.backup.postgres_version,
            &plan.target,
        ));
    }
    if context.global.json {
        for note in &notes {
            tracing::info!("{note}");
        }
        output::json(&Report {
            plan: plan.report(),
            durable: destination.durability == Durability::Durable,
        })?;
        return Ok(Outcome::Done);
    }
    let pgdata = destination.pgdata.display();
    output::line(&format!(
        "{pgdata} is restored from backup {}; it will recover to {}",
        plan.backup.id,
        plan.target.point.in_words()
    ))?;
    if destination.existing == Existing::Update {
        output::line(&format!(
            "{} of its files were there already",
            HumanBytes(kept_bytes)
        ))?;
    }
    for tablespace in &plan.new_tablespaces {
        output::line(&format!("replay creates {tablespace}"))?;
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
    notes.iter().try_for_each(|note| output::line(note))?;
    let (settings, version) = (
        Configuration::of_cluster(&destination.pgdata),
        plan.backup.postgres_version,
    );
    let start = start::start_command(&settings, &destination.pgdata, version);
    output::line(&format!("start it with: {start}"))?;
    Ok(Outcome::Done)
}

/// What one must know before the server is started.
fn notes(plan: &Plan, destination: &Destination, archive_mode: ArchiveMode) -> Vec<String> {
    let left_out = plan.backup.left_out.iter();
    let mut notes: Vec<String> = left_out
        .map(|left_out| format!("not in the backup: {left_out}"))
        .collect();
    if !notes.is_empty() {
        notes.push("put what the server needs of that in place before you start it".to_owned());
    }
    let settings = Configuration::of_cluster(&destination.pgdata);
    notes.extend(settings.unread().iter().map(|path| {
        format!(
            "the restored settings include {}, which cannot be read here: put it in place, or the server will not start",
            path.display()
        )
    }));
    notes.extend(leading_out::notes(&settings, &destination.pgdata));
    let version = plan.backup.postgres_version;
    notes.extend(start::notes(&settings, &destination.pgdata, version));
    if archive_mode == ArchiveMode::Preserve {
        let settings = debian::configuration(&destination.pgdata, version);
        notes.extend(archives::notes(&settings));
    }
    notes
}

/// `recovery_end_command`: the staged WAL has been replayed.
pub(super) fn end(seal: &Seal) -> Result<Outcome, Error> {
    if !seal.plan.exists() {
        return Ok(Outcome::Done);
    }
    match stage::clear(seal) {
        // What is in it by now is not this recovery's.
        Err(error @ (restore::Error::Restoring(_) | restore::Error::OtherSeal(_))) => {
            tracing::info!("the stage is left as it is: {error}");
        }
        cleared => cleared?,
    }
    Ok(Outcome::Done)
}
