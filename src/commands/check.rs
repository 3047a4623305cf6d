//! `walhalla check`

use std::time::Duration;

use serde_json::json;

use super::{Context, Outcome};
use crate::check::{Deletes, Finding, check_store};
use crate::cli::Check;
use crate::error::Error;
use crate::output;

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
    let findings = session.with_store(async |store| check_store(store, deletes).await)?;
    if context.global.json {
        print_json(session.url(), &findings)?;
    } else {
        print(session.url(), &findings)?;
    }
    Ok(
        if findings.iter().all(|finding| finding.problem.is_none()) {
            Outcome::Done
        } else {
            Outcome::ProblemFound
        },
    )
}

fn print_json(store: &str, findings: &[Finding]) -> Result<(), output::Error> {
    let problems: Vec<_> = findings
        .iter()
        .filter_map(|finding| {
            let what = finding.problem.as_deref()?;
            Some(json!({ "object": finding.object, "what": what, "check": finding.check }))
        })
        .collect();
    output::json(&json!({
        "ok": problems.is_empty(), "store": store, "problems": problems, "checks": findings,
    }))
}

fn print(store: &str, findings: &[Finding]) -> Result<(), output::Error> {
    output::line(&format!("store {store}"))?;
    for finding in findings {
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
