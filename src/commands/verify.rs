//! `walhalla verify` and `walhalla wal-verify`

use indicatif::{HumanBytes, HumanCount};
use jiff::SignedDuration;

use super::{Context, Outcome};
use crate::cli::{self, Verify, WalVerify};
use crate::error::Error;
use crate::output;
use crate::verify::archive::{self, Reading};
use crate::verify::receipts::Receipts;
use crate::verify::{self, Options, Verified, VerifyReport, backups};

pub(super) fn backups(context: &Context, arguments: &Verify) -> Result<Outcome, Error> {
    let repository = context.repository(&arguments.cluster)?;
    repository.must_be_known()?;
    let catalog = if arguments.all {
        repository.catalog()?
    } else {
        repository.catalog_of(&arguments.ids)?
    };
    if catalog.is_empty() {
        tracing::warn!("there is no backup to verify");
    }
    let options = options(context, &arguments.receipts)?;
    report(context, backups::verify(&repository, &catalog, options))
}

pub(super) fn archive(context: &Context, arguments: &WalVerify) -> Result<Outcome, Error> {
    let repository = context.repository(&arguments.cluster)?;
    repository.must_be_known()?;
    let catalog = repository.catalog()?;
    let reading = if arguments.deep {
        Reading::Content
    } else {
        Reading::Names
    };
    let options = options(context, &arguments.receipts)?;
    report(
        context,
        archive::verify(&repository, &catalog, reading, options),
    )
}

fn options(context: &Context, receipts: &cli::Receipts) -> Result<Options, Error> {
    let max_age = SignedDuration::from_hours(24 * i64::from(receipts.recheck_days));
    let file = receipts.receipts.as_deref();
    let receipts = file.map(|path| Receipts::open(path, max_age)).transpose();
    Ok(Options {
        threads: context.settings.download_concurrency,
        show: context.show(),
        receipts: receipts.map_err(verify::Error::from)?,
    })
}

fn report(context: &Context, verified: Verified) -> Result<Outcome, Error> {
    let report = &verified.report;
    if context.global.json {
        output::json(report)?;
    } else {
        print(report)?;
    }
    verified.outcome?;
    Ok(if report.ok {
        Outcome::Done
    } else {
        Outcome::ProblemFound
    })
}

fn print(report: &VerifyReport) -> Result<(), output::Error> {
    let rows = [
        ("backups", report.backups),
        ("objects read", report.objects),
        ("objects with a receipt", report.objects_with_receipt),
        ("objects not opened", report.objects_unopened),
        ("files", report.files),
        ("data pages", report.pages),
        ("WAL segments", report.segments),
        ("WAL segments read", report.segments_read),
    ];
    for (name, number) in rows.into_iter().filter(|(_, number)| *number > 0) {
        output::line(&format!("{name:<24}{}", HumanCount(number)))?;
    }
    let (bytes, seconds) = (HumanBytes(report.bytes), report.seconds);
    output::line(&format!(
        "{:<24}{bytes} in {seconds:.1} s",
        "stored bytes read"
    ))?;
    for problem in &report.problems {
        output::line(&format!("PROBLEM  {}", problem.object))?;
        output::line(&format!("         {}", problem.what))?;
    }
    for note in &report.notes {
        output::line(&format!("NOTE     {note}"))?;
    }
    output::line(&match report.problems.len() {
        0 if !report.complete => "no problem found until it ended".to_owned(),
        0 if !report.notes.is_empty() => "no problem found in what was looked at".to_owned(),
        0 => "no problem found".to_owned(),
        1 => "1 problem found".to_owned(),
        more => format!("{more} problems found"),
    })
}
