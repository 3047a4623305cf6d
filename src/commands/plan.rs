//! `walhalla plan`

use indicatif::HumanBytes;

use super::{Context, Outcome};
use crate::cli;
use crate::error::Error;
use crate::output;
use crate::restore;
use crate::restore::choose::plan;
use crate::restore::plan::{Plan, PlanReport};

pub(super) fn run(context: &Context, arguments: &cli::Plan) -> Result<Outcome, Error> {
    let repository = context.repository(&arguments.cluster)?;
    let target = arguments.target();
    let reading = context.reading();
    let planned = plan(&repository, &target, arguments.backup.as_deref(), reading);
    if context.global.json {
        match &planned {
            Ok(plan) => output::json(&plan.report())?,
            Err(restore::Error::Unreachable(unreachable)) => {
                output::json(&PlanReport::unreachable(&target, unreachable))?;
            }
            Err(_) => {}
        }
    }
    let plan = planned?;
    plan.warn();
    if !context.global.json {
        print(&plan)?;
    }
    Ok(Outcome::Done)
}

fn print(plan: &Plan) -> Result<(), output::Error> {
    let report = plan.report();
    let timelines: Vec<String> = report.timelines.iter().map(ToString::to_string).collect();
    let (first, last) = (
        report.segments.first().cloned(),
        report.segments.last().cloned(),
    );
    output::line(&format!("target       {}", report.target))?;
    output::line(&format!(
        "backup       {} (WAL {} to {})",
        plan.backup.id, plan.backup.start_lsn, plan.backup.stop_lsn
    ))?;
    output::line(&format!("timelines    {}", timelines.join(", ")))?;
    output::line(&format!(
        "segments     {} to {}",
        first.unwrap_or_default(),
        last.unwrap_or_default()
    ))?;
    output::line(&format!(
        "             {} to consistency, {} to the target",
        report.segments_to_consistency, report.segments_to_target
    ))?;
    if let Some(end) = report.tail_end {
        output::line(&format!(
            "             the last one is not finished: wal-receive stored its WAL up to {end}"
        ))?;
    }
    for tablespace in &report.new_tablespaces {
        output::line(&format!("replay makes {tablespace}"))?;
    }
    if let Some(needed) = report.needed_settings {
        let named = needed
            .named()
            .map(|(name, value)| format!("{name} {value}"));
        output::line(&format!("replay needs {}", named.join(", ")))?;
    }
    output::line(&format!(
        "download     {}",
        HumanBytes(report.download_bytes)
    ))
}
