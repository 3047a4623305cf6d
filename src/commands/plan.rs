//! `walhalla plan`

use jiff::Timestamp;
use serde::Serialize;

use super::restore::{planned, prepare};
use super::{Context, Outcome};
use crate::cli::{PlanRestore, RestoreOptions, WalMode};
use crate::durability::Durability;
use crate::error::Error;
use crate::output;
use crate::output::look::{self, bytes, counted, duration};
use crate::repository::Repository;
use crate::restore;
use crate::restore::commits::{Commits, commits};
use crate::restore::foresee::{Amount, Foreseen, foresee};
use crate::restore::plan::{Plan, PlanReport};
use crate::restore::recovery::ArchiveMode;
use crate::restore::target::{Action, Point};

/// Columns of the names of what is shown.
const NAMES: usize = 15;

/// `plan --json`
#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    plan: PlanReport,
    commits: Commits,
    /// What the restore would do to this host, where a directory is named.
    #[serde(flatten)]
    host: Option<&'a Foreseen>,
    archive_mode: &'static str,
    /// Whether the restore would be on the disk when it ends.
    durable: bool,
}

pub(super) fn run(context: &Context, arguments: PlanRestore) -> Result<Outcome, Error> {
    let PlanRestore { pgdata, options } = arguments;
    let repository = context.repository(&options.plan.cluster)?;
    let Some(pgdata) = pgdata else {
        let plan = reported(context, &options, planned(context, &repository, &options))?;
        plan.warn();
        return show(context, &repository, &options, (&plan, None));
    };
    let prepared = prepare(context, &repository, &pgdata, &options);
    let prepared = reported(context, &options, prepared)?;
    let host = foresee(
        &repository,
        &prepared.plan,
        &prepared.destination,
        prepared.stage.as_deref(),
        &prepared.outside,
    );
    if host.is_err() && !context.global.json {
        output::line("here it cannot be restored as things are; the reason stands below")?;
    }
    show(
        context,
        &repository,
        &options,
        (&prepared.plan, host.as_ref().ok()),
    )?;
    // What would be refused is the plan's answer, too.
    host?;
    Ok(Outcome::Done)
}

/// Prints the JSON of a target that cannot be reached, if that is what failed.
fn reported<T, E: Into<Error>>(
    context: &Context,
    options: &RestoreOptions,
    result: Result<T, E>,
) -> Result<T, Error> {
    let result = result.map_err(Into::into);
    if let Err(Error::Restore(restore::Error::Unreachable(unreachable))) = &result
        && context.global.json
    {
        output::json(&PlanReport::unreachable(
            &options.plan.target(),
            unreachable,
        ))?;
    }
    result
}

fn show(
    context: &Context,
    repository: &Repository,
    options: &RestoreOptions,
    (plan, host): (&Plan, Option<&Foreseen>),
) -> Result<Outcome, Error> {
    let commits = commits(repository, plan, context.reading())?;
    if context.global.json {
        output::json(&Report {
            plan: plan.report(),
            commits,
            host,
            archive_mode: match options.archive_mode {
                ArchiveMode::Off => "off",
                ArchiveMode::Preserve => "preserve",
            },
            durable: options.disk.durability() == Durability::Durable,
        })?;
        return Ok(Outcome::Done);
    }
    let mut rows = of_archive(plan, commits);
    rows.extend(host.into_iter().flat_map(of_host));
    rows.extend(tablespaces(plan, options));
    rows.extend(afterwards(plan, options));
    if options.archive_mode == ArchiveMode::Preserve && !store_is_in_a_file(context) {
        let text = "it calls walhalla without your flags and variables: name the store in the settings file first";
        rows.push(("", text.to_owned()));
    }
    let caution = options.disk.durability().caution();
    rows.extend(caution.map(|caution| ("not durable", caution.to_owned())));
    for (name, text) in rows {
        output::line(&format!("{name:<NAMES$}{text}"))?;
    }
    Ok(Outcome::Done)
}

/// Whether the settings file names the store: `archive_command` of the restored server has neither flags nor variables.
fn store_is_in_a_file(context: &Context) -> bool {
    let mut values = context.settings.values.iter();
    let store = values.find(|value| value.key == "store");
    store.is_some_and(|store| store.origin.kind() == "file")
}

/// What comes from the archive, and where it ends.
fn of_archive(plan: &Plan, commits: Commits) -> Vec<(&'static str, String)> {
    let (report, backup) = (plan.report(), &plan.backup);
    let age = duration(Timestamp::now().duration_since(backup.stop_time));
    let mut rows = vec![
        ("target", plan.target.point.in_words()),
        ("backup", format!("{}, ended {age} ago", backup.id)),
        (
            "",
            format!("its WAL: {} to {}", backup.start_lsn, backup.stop_lsn),
        ),
    ];
    if plan.chain.len() > 1 {
        let mut earlier: Vec<String> = report.backup_chain;
        earlier.pop();
        rows.push(("stands on", earlier.join(", ")));
    }
    let timelines: Vec<String> = report.timelines.iter().map(ToString::to_string).collect();
    rows.push(("timelines", timelines.join(", ")));
    if let (Some(first), Some(last)) = (report.segments.first(), report.segments.last()) {
        let number = counted(report.segments_to_target as u64, "segment");
        rows.push(("WAL", format!("{number}, {first} to {last}")));
        let consistency = report.segments_to_consistency;
        rows.push((
            "",
            format!("{consistency} needed to make the backup consistent"),
        ));
    }
    if let Some(end) = report.tail_end {
        rows.push((
            "",
            format!("the last one is not finished: wal-receive stored its WAL up to {end}"),
        ));
    }
    if let (Some(first), Some(last)) = (commits.first, commits.last) {
        let (first, last) = (look::time(first), look::time(last));
        rows.push(("", format!("commits from {first} to {last}")));
    }
    let end = match commits.last {
        Some(last) => format!(
            "{}, the last commit that is restored",
            look::precise_time(last)
        ),
        None if commits.has_none => "the end of the backup: no commit comes after it".to_owned(),
        None => "a moment that cannot be told: the last commits could not be read".to_owned(),
    };
    rows.push(("ends at", end));
    rows.push(("download", bytes(report.download_bytes)));
    rows
}

/// What this host has to do with it.
fn of_host(host: &Foreseen) -> Vec<(&'static str, String)> {
    let staged = match host.staged_bytes {
        0 => String::new(),
        staged => format!(
            ", and {} of WAL beside it until recovery has ended",
            bytes(staged)
        ),
    };
    let amount = |amount: Amount| {
        let files = counted(amount.files, "file");
        format!("{files}, {}", bytes(amount.bytes))
    };
    let into = host.pgdata.display();
    let mut rows = vec![(
        "into",
        if host.pgdata.exists() {
            into.to_string()
        } else {
            format!("{into}, which does not exist and is created")
        },
    )];
    match host.update {
        None => rows.push((
            "write",
            format!(
                "{} in {}{staged}",
                bytes(host.write_bytes),
                counted(host.files, "file")
            ),
        )),
        Some(update) => rows.extend([
            (
                "compare",
                format!(
                    "{}: only blocks that differ are written",
                    amount(update.compared)
                ),
            ),
            ("write", format!("{}{staged}", amount(update.written))),
            ("remove", amount(update.removed)),
        ]),
    }
    for room in &host.room {
        let (needed, free) = (bytes(room.needed_bytes), bytes(room.free_bytes));
        let path = room.path.display();
        rows.push(("room", format!("{needed} needed, {free} free for {path}")));
    }
    for path in &host.moved_aside {
        let path = path.display();
        rows.push(("move away", format!("{path}, which is nowhere else")));
    }
    rows
}

/// Where tablespaces go.
fn tablespaces(plan: &Plan, options: &RestoreOptions) -> Vec<(&'static str, String)> {
    let mut rows: Vec<_> = { plan.backup.tablespaces.iter() }
        .map(|tablespace| {
            let (oid, location) = (tablespace.oid, tablespace.location.display());
            let mut map = options.tablespaces.map.iter();
            let place = map.find(|(mapped, _)| *mapped == oid);
            let text = match place {
                Some((_, place)) => format!("{oid}: {location} goes to {}", place.display()),
                None => format!("{oid}: {location}, as on the original host"),
            };
            ("tablespace", text)
        })
        .collect();
    for tablespace in &plan.new_tablespaces {
        rows.push(("replay creates", tablespace.to_string()));
    }
    if let Some(needed) = plan.limits {
        let named = needed
            .named()
            .map(|(name, value)| format!("{name} {value}"));
        rows.push(("replay needs", named.join(", ")));
    }
    rows
}

/// What the server does at the target, and then.
fn afterwards(plan: &Plan, options: &RestoreOptions) -> [(&'static str, String); 3] {
    let wal = match options.wal {
        _ if options.standby => "fetched by the standby as it goes on",
        WalMode::Staged => "staged beside the data directory",
        WalMode::OnDemand => "fetched by the server as it asks",
    };
    let pauses = format!(
        "the server pauses there, open for reading; select {} opens it for writing",
        plan.backup.postgres_version.replay_resume()
    );
    let then = match plan.target.action {
        _ if options.standby => "the server stays a standby",
        _ if plan.target.point == Point::End => "the server opens for writing, on a new timeline",
        Action::Pause => &pauses,
        Action::Promote => "the server opens for writing, on a new timeline",
        Action::Shutdown => "the server shuts down there",
    };
    let archives = match options.archive_mode {
        ArchiveMode::Off => "off: the restored server archives nothing",
        ArchiveMode::Preserve => {
            "as the original: once it is open for writing, the restored server archives too; add --archive-mode off to stop that"
        }
    };
    [("WAL is", wal), ("then", then), ("archiving", archives)]
        .map(|(name, text)| (name, text.to_owned()))
}
