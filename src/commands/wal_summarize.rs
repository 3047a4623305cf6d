//! `walhalla wal-summarize`

use indicatif::{HumanBytes, HumanCount};

use super::{Context, Outcome};
use crate::archive::backfill::{Scope, backfill};
use crate::cli::WalSummarize;
use crate::error::Error;
use crate::output;

pub(super) fn run(context: &Context, arguments: &WalSummarize) -> Result<Outcome, Error> {
    let repository = context.repository(&arguments.cluster)?;
    repository.must_be_known()?;
    let pipeline = context.pipeline(&repository)?;
    let scope = if arguments.check {
        Scope::Wrong
    } else {
        Scope::Missing
    };
    let threads = context.settings.download_concurrency;
    let report = backfill(&repository, &pipeline, scope, threads, context.show())?;
    if context.global.json {
        output::json(&report)?;
    } else {
        output::line(&format!(
            "{} segments, {} summaries made ({} of {} WAL)",
            HumanCount(report.segments),
            HumanCount(report.made),
            HumanBytes(report.summary_bytes),
            HumanBytes(report.segment_bytes),
        ))?;
    }
    for problem in &report.problems {
        tracing::error!("{} has no summary: {}", problem.object, problem.what);
    }
    Ok(if report.problems.is_empty() {
        Outcome::Done
    } else {
        Outcome::ProblemFound
    })
}
