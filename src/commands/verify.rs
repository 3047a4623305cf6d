//! `walhalla verify` and `walhalla wal-verify`

use indicatif::{HumanBytes, HumanCount};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use walhalla_postgres::WalFileName;

use super::{Context, Outcome, check};
use crate::cli::{self, Verify, WalVerify};
use crate::config;
use crate::copying::repair::{Difference, Repaired};
use crate::error::Error;
use crate::output;
use crate::repository::Repository;
use crate::repository::owed::Owed;
use crate::repository::ranges::{Range, Ranges};
use crate::repository::reports::{Report, ReportKind};
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
    let begun = Timestamp::now();
    let verified = backups::verify(&repository, &catalog, options);
    if let Some(report) = verified.stored_report(ReportKind::Verify, begun) {
        let backups = catalog.backups().iter().map(|backup| backup.id.clone());
        let backups = backups.collect();
        context.record(&repository, &Report { backups, ..report });
    }
    report(context, verified)
}

pub(super) fn archive(context: &Context, arguments: &WalVerify) -> Result<Outcome, Error> {
    let repository = context.repository(&arguments.cluster)?;
    repository.must_be_known()?;
    let begun = Timestamp::now();
    let mirror = context.mirror_of(&repository, None)?;
    let Some(following) = context.following(&repository, mirror.as_ref()) else {
        if arguments.repair {
            return Err(config::Error::Flag {
                flag: "--repair",
                value: String::new(),
                problem: "it fills what one of two stores lacks, and the setting mirror names no second one".to_owned(),
            }
            .into());
        }
        let verified = archive_of(context, &repository, arguments, Ranges::default())?;
        if let Some(report) = verified.stored_report(ReportKind::WalVerify, begun) {
            context.record(&repository, &report);
        }
        return report(context, verified);
    };
    let repaired = arguments.repair.then(|| following.repair()).transpose()?;
    let first = archive_of(context, &repository, arguments, Ranges::default())?;
    let debts = repository.debts(following.mirror.id())?;
    if !context.global.json {
        output::line(&format!("store {}", repository.store_url()))?;
        print(&first.report)?;
        let second = following.mirror.second.store_url();
        output::line(&format!("mirror {second}"))?;
        output::line(&format!("{:<24}{}", "owed", check::in_words(&debts)))?;
    }
    first.outcome?;
    let mut owed = Ranges::default();
    for debt in &debts {
        if let Owed::Wal(WalFileName::Segment(name)) = debt.owed {
            owed.add(name.timeline, Range::through(name, name));
        }
    }
    let second = archive_of(context, &following.mirror.second, arguments, owed)?;
    let mut both = BothReport {
        first: first.report,
        mirror: MirrorReport {
            store: following.mirror.second.store_url().to_owned(),
            report: second.report,
            difference: following.difference()?,
            repaired,
        },
    };
    both.first.ok = both.is_sound();
    let problems = both.problems();
    if second.outcome.is_ok() || problems > 0 {
        let report = Report::new(ReportKind::WalVerify, begun, problems);
        context.record(&repository, &report);
    }
    both.show(context)?;
    second.outcome?;
    Ok(if both.first.ok {
        Outcome::Done
    } else {
        Outcome::ProblemFound
    })
}

/// `wal-verify --json` of two stores
#[derive(Serialize)]
struct BothReport {
    /// Its `ok` is that of both.
    #[serde(flatten)]
    first: VerifyReport,
    mirror: MirrorReport,
}

#[derive(Serialize)]
struct MirrorReport {
    store: String,
    #[serde(flatten)]
    report: VerifyReport,
    #[serde(flatten)]
    difference: Difference,
    repaired: Option<Repaired>,
}

impl BothReport {
    /// How many problems both stores have; at least one where something is wrong.
    fn problems(&self) -> u64 {
        let lists = [&self.first.problems, &self.mirror.report.problems];
        let in_stores: usize = lists.iter().map(|problems| problems.len()).sum();
        let Difference {
            first_lacks,
            second_lacks,
            ..
        } = &self.mirror.difference;
        let lacks = [first_lacks, second_lacks].map(|lacks| usize::from(!lacks.is_empty()));
        let problems = in_stores + lacks.iter().sum::<usize>();
        problems.max(usize::from(!self.first.ok)) as u64
    }

    fn is_sound(&self) -> bool {
        let left_out = self.mirror.repaired.map_or(0, |repaired| repaired.left_out);
        let is_ok = self.first.ok && self.mirror.report.ok;
        is_ok && self.mirror.difference.is_none() && left_out == 0
    }

    fn show(&self, context: &Context) -> Result<(), output::Error> {
        if context.global.json {
            return output::json(self);
        }
        print(&self.mirror.report)?;
        let Difference {
            first_lacks,
            second_lacks,
            ..
        } = &self.mirror.difference;
        for (store, lacks) in [("the store", first_lacks), ("the mirror", second_lacks)] {
            if let (Some(first), Some(last)) = (lacks.first(), lacks.last()) {
                output::line(&format!(
                    "PROBLEM  {store} lacks {} WAL files and backups that the other has, from {first} to {last}",
                    HumanCount(lacks.len() as u64)
                ))?;
                output::line("         `walhalla wal-verify --repair` sends them")?;
            }
        }
        if let Some(Repaired {
            wal,
            backups,
            left_out,
        }) = self.mirror.repaired
        {
            output::line(&format!(
                "{:<24}{wal} WAL files and debts, {backups} backups; {left_out} left out",
                "repaired"
            ))?;
        }
        Ok(())
    }
}

fn archive_of(
    context: &Context,
    repository: &Repository,
    arguments: &WalVerify,
    owed: Ranges,
) -> Result<Verified, Error> {
    let catalog = repository.catalog()?;
    let reading = if arguments.deep {
        Reading::Content
    } else {
        Reading::Names
    };
    let options = Options {
        owed,
        ..options(context, &arguments.receipts)?
    };
    Ok(archive::verify(repository, &catalog, reading, options))
}

fn options(context: &Context, receipts: &cli::Receipts) -> Result<Options, Error> {
    let max_age = SignedDuration::from_hours(24 * i64::from(receipts.recheck_days));
    let file = receipts.receipts.as_deref();
    let receipts = file.map(|path| Receipts::open(path, max_age)).transpose();
    Ok(Options {
        threads: context.settings.download_concurrency,
        show: context.show(),
        receipts: receipts.map_err(verify::Error::from)?,
        owed: Ranges::default(),
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
