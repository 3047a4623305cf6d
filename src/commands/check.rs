//! `walhalla check`

use std::time::Duration;

use serde_json::{Value, json};

use super::{Context, Outcome};
use crate::check::{Deletes, Finding, check_store};
use crate::cli::Check;
use crate::error::Error;
use crate::failure::Failure as _;
use crate::output;
use crate::repository::Repository;
use crate::repository::debts::RecordedDebt;
use crate::repository::owed::{MirrorId, Owed};
use crate::session::StoreSession;

/// Somebody waits for the answer, and a store that fails for so long has a problem to tell of.
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) fn run(context: &Context, arguments: &Check) -> Result<Outcome, Error> {
    context.settings.recipients()?;
    let deadline = context.settings.retry_timeout.min(PATIENCE);
    let session = context.session_within(deadline)?;
    let deletes = if arguments.append_only {
        Deletes::Refused
    } else {
        Deletes::Expected
    };
    let check = |session: &StoreSession| -> Result<Checked, Error> {
        let findings = session.with_store(async |store| check_store(store, deletes).await)?;
        let store = session.url().to_owned();
        Ok(Checked { store, findings })
    };
    let first = check(&session)?;
    let second = context.second(deadline, 1)?;
    let mirror = match &second {
        Some(second) => {
            // What it is owed is told also while it is away.
            let checked = check(&second.session);
            let checked = checked.unwrap_or_else(|error| Checked::away(&second.session, &error));
            let id = MirrorId::of(second.session.url());
            Some((checked, debts(context, &session, id)?))
        }
        None => None,
    };
    if context.global.json {
        print_json(&first, mirror.as_ref())?;
    } else {
        first.print("store")?;
        if let Some((second, debts)) = &mirror {
            second.print("mirror")?;
            output::line(&format!("  owed     {}", in_words(debts)))?;
        }
    }
    let is_sound = |checked: &Checked| checked.problems().next().is_none();
    Ok(
        if is_sound(&first) && mirror.iter().all(|(second, _)| is_sound(second)) {
            Outcome::Done
        } else {
            Outcome::ProblemFound
        },
    )
}

/// What a store was found to do.
struct Checked {
    store: String,
    findings: Vec<Finding>,
}

impl Checked {
    /// What is told of a store that does not answer.
    fn away(session: &StoreSession, error: &Error) -> Self {
        let hint = error.hint().map(|hint| format!("\n{hint}"));
        let what = format!("{}{}", output::chain(error), hint.unwrap_or_default());
        let store = session.url().to_owned();
        let away = Finding {
            check: "the store answers",
            object: store.clone(),
            problem: Some(what),
        };
        Self {
            store,
            findings: vec![away],
        }
    }

    fn problems(&self) -> impl Iterator<Item = Value> {
        self.findings.iter().filter_map(|finding| {
            let what = finding.problem.as_deref()?;
            Some(json!({ "object": finding.object, "what": what, "check": finding.check }))
        })
    }

    fn print(&self, what: &str) -> Result<(), output::Error> {
        output::line(&format!("{what} {}", self.store))?;
        for finding in &self.findings {
            match &finding.problem {
                None => output::line(&format!("  ok       {}", finding.check))?,
                Some(problem) => {
                    output::line(&format!("  PROBLEM  {}", finding.check))?;
                    for line in problem.lines() {
                        output::line(&format!("           {line}"))?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// What the second store is owed, of all clusters.
fn debts(
    context: &Context,
    session: &StoreSession,
    id: MirrorId,
) -> Result<Vec<RecordedDebt>, Error> {
    let mut debts = Vec::new();
    for repository in Repository::all(session, &context.settings.identities)? {
        debts.extend(repository.debts(id)?);
    }
    Ok(debts)
}

/// How much a second store is owed, and since when.
pub(super) fn in_words(debts: &[RecordedDebt]) -> String {
    let Some(since) = debts.iter().map(|debt| debt.since).min() else {
        return "nothing".to_owned();
    };
    let is_backup = |debt: &&RecordedDebt| matches!(debt.owed, Owed::Backup(_));
    let backups = debts.iter().filter(is_backup).count();
    let files = debts.len() - backups;
    format!(
        "{files} WAL {} and {backups} {}, since {}",
        if files == 1 { "file" } else { "files" },
        if backups == 1 { "backup" } else { "backups" },
        since.strftime("%Y-%m-%d %H:%M:%SZ")
    )
}

fn print_json(
    first: &Checked,
    mirror: Option<&(Checked, Vec<RecordedDebt>)>,
) -> Result<(), output::Error> {
    let (second, debts) =
        mirror.map_or((None, None), |(second, debts)| (Some(second), Some(debts)));
    let problems: Vec<Value> = { [Some(first), second].into_iter().flatten() }
        .flat_map(Checked::problems)
        .collect();
    let mut report = json!({
        "ok": problems.is_empty(), "store": first.store, "problems": problems, "checks": first.findings,
    });
    if let (Some(second), Some(debts)) = (second, debts) {
        let owed: Vec<String> = debts.iter().map(|debt| debt.owed.to_string()).collect();
        let mirror = json!({ "store": second.store, "checks": second.findings, "owed": owed });
        if let Some(report) = report.as_object_mut() {
            report.insert("mirror".to_owned(), mirror);
        }
    }
    output::json(&report)
}
