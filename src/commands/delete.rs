//! `walhalla delete`

use jiff::Timestamp;
use serde::Serialize;
use walhalla_providers::{Retained, Versioning};

use super::{Context, Outcome};
use crate::cli::{Delete, WhatGoes};
use crate::config;
use crate::config::policy::Policy;
use crate::error::Error;
use crate::output;
use crate::output::look::{bytes, count, counted, time};
use crate::output::table::{Table, number, text};
use crate::repository::{BackupId, LATEST, Repository};
use crate::restore::target;
use crate::retention::amounts::{Both, Totals};
use crate::retention::decide::{Extent, Fate, Refusal, Request};
use crate::retention::plan::{Plan, PlannedBackup};
use crate::retention::sweep::Swept;
use crate::retention::{self, delete, plan};

/// `delete --json`
#[derive(Serialize)]
struct Report<'a> {
    request: String,
    time: Timestamp,
    confirmed: bool,
    backups: &'a [PlannedBackup],
    leftovers: &'a [BackupId],
    totals: &'a Totals,
    /// From when on every moment can be reached: now, and afterwards.
    reachable_from: (Option<Timestamp>, Option<Timestamp>),
    /// Whether it is known that what is deleted is only hidden, as the store keeps versions.
    #[serde(rename = "hidden")]
    is_hidden: bool,
    /// Until when the newest backup that goes is locked.
    locked_until: Option<Timestamp>,
    deleted_objects: Option<u64>,
    spared: Vec<&'a BackupId>,
    refused: Vec<Refused<'a>>,
    /// The same in the second store.
    #[serde(skip_serializing_if = "Option::is_none")]
    mirror: Option<Box<Self>>,
}

/// What a deletion takes from a store, and took.
struct Deletion {
    store: String,
    plan: Plan,
    swept: Option<Swept>,
}

#[derive(Serialize)]
struct Refused<'a> {
    object: &'a str,
    what: String,
}

pub(super) fn run(context: &Context, arguments: &Delete) -> Result<Outcome, Error> {
    let repository = context.repository(&arguments.cluster())?;
    let mirror = context.mirror_of(&repository, None)?;
    let second = mirror.as_ref().map(|mirror| &mirror.second);
    // What LATEST is, the first store says.
    let request = request(context, &repository, arguments)?;
    let (mut deletions, mut failure, mut unknown) = (Vec::new(), None, None);
    for store in [Some(&repository), second].into_iter().flatten() {
        match delete_in(context, store, request.clone(), arguments) {
            Ok(deletion) => deletions.push(deletion),
            // The other store may have what this one lost before, or never got.
            Err(error @ Error::Retention(retention::Error::Refused(Refusal::Unknown(_)))) => {
                tracing::info!("in {}: {error}", store.store_url());
                unknown.get_or_insert(error);
            }
            Err(error) if deletions.is_empty() => return Err(error),
            Err(error) => failure = Some(error),
        }
    }
    if let (Some(error), []) = (unknown, deletions.as_slice()) {
        return Err(error);
    }
    show(context, &deletions)?;
    let refused = deletions.iter().filter_map(|it| it.swept.as_ref());
    match (failure, refused.map(|swept| swept.refused.len()).sum()) {
        (Some(error), _) => Err(error),
        (None, 0) => Ok(Outcome::Done),
        (None, refused) => Err(retention::Error::Kept(refused).into()),
    }
}

fn delete_in(
    context: &Context,
    repository: &Repository,
    request: Request,
    arguments: &Delete,
) -> Result<Deletion, Error> {
    let store = repository.store_url().to_owned();
    if !arguments.confirm {
        let plan = plan(repository, request)?;
        let swept = None;
        return Ok(Deletion { store, plan, swept });
    }
    let threads = context.settings.upload_concurrency;
    let (plan, swept) = delete(repository, request, threads, context.show())?;
    for (id, why) in &swept.spared {
        tracing::warn!("backup {id} is left as it is: {why}");
    }
    for (object, error) in &swept.refused {
        tracing::error!("{object} was not deleted: {}", output::chain(error));
    }
    let swept = Some(swept);
    Ok(Deletion { store, plan, swept })
}

fn request(
    context: &Context,
    repository: &Repository,
    arguments: &Delete,
) -> Result<Request, Error> {
    let text = match &arguments.what {
        None => String::new(),
        Some(WhatGoes::Retain(retain)) => retain.text(),
        Some(WhatGoes::Before { bound }) => return before(repository, bound),
        Some(WhatGoes::Backup { ids }) => {
            let ids = ids.iter().map(|id| backup_id(repository, id));
            return Ok(Request::Backups(ids.collect::<Result<_, _>>()?));
        }
        Some(WhatGoes::Garbage) => return Ok(Request::Garbage),
        Some(WhatGoes::Everything) => return Ok(Request::Everything),
    };
    let policy = if text.is_empty() {
        context
            .settings
            .retention
            .ok_or(config::Error::NoRetention)?
    } else {
        text.parse::<Policy>().map_err(config::Error::Retention)?
    };
    Ok(Request::Retain(policy))
}

fn before(repository: &Repository, bound: &str) -> Result<Request, Error> {
    if bound == LATEST || bound.parse::<BackupId>().is_ok() {
        return Ok(Request::BeforeBackup(backup_id(repository, bound)?));
    }
    let time = target::parse_time(bound).map_err(|problem| {
        let problem = format!("{bound:?} is neither a backup's id nor a time: {problem}");
        config::Error::Retention(problem)
    });
    Ok(Request::BeforeTime(time?))
}

/// The id that was written, whether there is such a backup or not: the plan tells. Of what is no id, there is none.
fn backup_id(repository: &Repository, id: &str) -> Result<BackupId, Error> {
    match id.parse() {
        Ok(id) => Ok(id),
        Err(_) => Ok(repository.backup(id)?.id),
    }
}

fn show(context: &Context, deletions: &[Deletion]) -> Result<(), Error> {
    if context.global.json {
        let mut reports = deletions.iter().map(report);
        if let Some(first) = reports.next() {
            let mirror = reports.next().map(Box::new);
            output::json(&Report { mirror, ..first })?;
        }
        return Ok(());
    }
    for deletion in deletions {
        if deletions.len() > 1 {
            output::line(&format!("in {}", deletion.store))?;
        }
        print(&deletion.plan, deletion.swept.as_ref())?;
    }
    Ok(())
}

fn report(Deletion { plan, swept, .. }: &Deletion) -> Report<'_> {
    let refused = swept.iter().flat_map(|swept| &swept.refused);
    Report {
        request: plan.request.to_string(),
        time: plan.time,
        confirmed: swept.is_some(),
        backups: &plan.backups,
        leftovers: &plan.leftovers,
        totals: &plan.totals,
        reachable_from: plan.window,
        is_hidden: plan
            .retained
            .is_some_and(|retained| retained.versioning == Versioning::Kept),
        locked_until: plan.retained.and_then(locked_until),
        deleted_objects: swept.as_ref().map(|swept| swept.deleted.objects),
        spared: { swept.iter() }
            .flat_map(|swept| &swept.spared)
            .map(|(id, _)| id)
            .collect(),
        refused: refused
            .map(|(object, error)| Refused {
                object,
                what: output::chain(error),
            })
            .collect(),
        mirror: None,
    }
}

fn print(plan: &Plan, swept: Option<&Swept>) -> Result<(), Error> {
    if !plan.backups.is_empty() {
        backups(&plan.backups).print()?;
        output::line("")?;
    }
    amounts(&plan.totals).print()?;
    output::line(&window(plan))?;
    for line in plan.retained.iter().flat_map(retained) {
        output::line(&line)?;
    }
    output::line(&match swept {
        None if plan.totals.goes().objects == 0 => "nothing is to be deleted".to_owned(),
        None => "nothing was deleted; the same command with --confirm deletes what goes".to_owned(),
        Some(swept) => format!(
            "deleted: {}, {}",
            counted(swept.deleted.objects, "object"),
            bytes(swept.deleted.bytes)
        ),
    })?;
    Ok(())
}

fn backups(backups: &[PlannedBackup]) -> Table {
    let mut table = Table::new(&[
        text("BACKUP", 0),
        text("", 0),
        text("PARENT", 5),
        number("TLI", 6),
        text("REACHES FROM", 3),
        number("STORED", 1),
        text("WHY", 0),
        text("WAL THAT STAYS", 2),
    ]);
    for backup in backups {
        let (fate, why, wal) = match &backup.fate {
            Fate::Goes => ("goes", String::new(), "-"),
            Fate::Stays(stay) => {
                let reasons: Vec<String> = stay.reasons.iter().map(ToString::to_string).collect();
                let wal = match stay.wal {
                    Extent::Everything => "all from it on",
                    Extent::Consistency => "its own",
                };
                ("stays", reasons.join(", "), wal)
            }
        };
        let parent = backup.parent.as_ref().map(ToString::to_string);
        table.row([
            backup.id.to_string(),
            fate.to_owned(),
            parent.unwrap_or_else(|| "-".to_owned()),
            backup.timeline.to_string(),
            time(backup.reaches_from),
            bytes(backup.stored_bytes),
            why,
            wal.to_owned(),
        ]);
    }
    table
}

fn amounts(totals: &Totals) -> Table {
    let mut table = Table::new(&[
        text("OBJECTS", 0),
        number("GO", 0),
        number("BYTES", 0),
        number("STAY", 0),
        number("BYTES", 0),
    ]);
    let mut row = |name: &str, both: Both| {
        table.row([
            name.to_owned(),
            count(both.goes.objects),
            bytes(both.goes.bytes),
            count(both.stays.objects),
            bytes(both.stays.bytes),
        ]);
    };
    row("backups", totals.backups);
    row("unfinished backups", totals.leftovers);
    row("WAL", totals.wal);
    row("summaries of WAL", totals.summaries);
    row("marks, claims, gaps, leases", totals.small);
    if totals.uploads > 0 {
        let uploads = count(totals.uploads);
        table.row(["unfinished uploads", &uploads, "-", "-", "-"].map(str::to_owned));
    }
    table
}

/// Until when what goes is locked, if it is locked now.
fn locked_until(retained: Retained) -> Option<Timestamp> {
    retained.until.filter(|until| *until > Timestamp::now())
}

/// What the store keeps of what is deleted.
fn retained(retained: &Retained) -> Vec<String> {
    let hides = (retained.versioning == Versioning::Kept).then(|| {
        "the store keeps versions: what is deleted is only hidden, and paid for, until the store's own rules end it".to_owned()
    });
    let locks = locked_until(*retained).map(|until| {
        let until = time(until);
        format!("the newest backup that goes is locked until {until}, says the store; until then it is kept")
    });
    hides.into_iter().chain(locks).collect()
}

/// What becomes of the time that can be reached.
fn window(plan: &Plan) -> String {
    match plan.window {
        (None, _) => "there is no backup: nothing can be reached".to_owned(),
        (Some(_), None) => "afterwards nothing can be reached".to_owned(),
        (Some(before), Some(after)) if before == after => {
            format!(
                "moments from {} on can be reached, now and afterwards",
                time(before)
            )
        }
        (Some(before), Some(after)) => format!(
            "moments from {} on can be reached now, and from {} on afterwards",
            time(before),
            time(after)
        ),
    }
}
