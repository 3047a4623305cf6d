//! `walhalla drill`

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::HumanBytes;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use tokio::signal::unix::SignalKind;
use walhalla_postgres::Lsn;

use super::{Context, Outcome};
use crate::cli::Drill;
use crate::config;
use crate::drill::account::Account;
use crate::drill::binaries::Binaries;
use crate::drill::check::{self, Check, Checks, Verdict};
use crate::drill::configuration::{self, TurnedOff};
use crate::drill::queries::{self, Session};
use crate::drill::scratch::{Afterwards, Scratch};
use crate::drill::server::{Server, Waited};
use crate::drill::{self, commits, junit, moment, tools};
use crate::durability::Durability;
use crate::error::Error;
use crate::failure::{Class, Failure as _};
use crate::output::{self, look};
use crate::progress;
use crate::repository::Repository;
use crate::repository::reports::{DrillReport, Report, ReportKind};
use crate::restore;
use crate::restore::choose;
use crate::restore::existing::Existing;
use crate::restore::guard::{Kind, guard, leave_guarded};
use crate::restore::outside::Outside;
use crate::restore::plan::{Plan, Unreachable};
use crate::restore::recovery::{ArchiveMode, Role, Settings, WalSource};
use crate::restore::run::{Destination, restore};
use crate::restore::stage;
use crate::restore::target::{Action, Point, Target, TargetTimeline};
use crate::server::control_file;
use crate::verify::Problem;

/// `drill --json`
#[derive(Debug, Default, Serialize)]
struct Findings {
    ok: bool,
    problems: Vec<Problem>,
    checks: Vec<Check>,
    backup: Option<String>,
    backup_chain: Vec<String>,
    timeline: Option<u32>,
    target: Option<String>,
    /// What repeats this drill.
    repeat: Option<String>,
    reached_time: Option<Timestamp>,
    reached_lsn: Option<Lsn>,
    rto_seconds: Option<f64>,
    rpo_seconds: Option<f64>,
    newest_commit_time: Option<Timestamp>,
    newest_commit_age_seconds: Option<f64>,
    segments: u64,
    /// What was fetched from the store.
    bytes: u64,
    restored_bytes: u64,
    turned_off: Vec<TurnedOff>,
    /// The directory, if it was kept.
    kept: Option<PathBuf>,
    seconds: f64,
}

/// A drill as it goes on.
struct Course<'a> {
    context: &'a Context,
    arguments: &'a Drill,
    repository: &'a Repository,
    /// The files of `--sql`, and what is in them.
    sql: Vec<(&'a Path, String)>,
    begun: (Timestamp, Instant),
    checks: Checks,
    found: Findings,
    plan: Option<Plan>,
}

pub(super) fn run(context: &Context, arguments: &Drill) -> Result<Outcome, Error> {
    let begun = (Timestamp::now(), Instant::now());
    let sql = read_files(arguments)?;
    if let Some(path) = &arguments.junit {
        // The result of an earlier drill must not be taken for this one's.
        std::fs::write(path, "").map_err(drill::Error::local("write", path))?;
    }
    listen(context)?;
    let repository = context.repository(&arguments.plan.cluster)?;
    repository.must_be_known()?;
    repository.session().prepare_creates();
    let mut course = Course {
        context,
        arguments,
        repository: &repository,
        sql,
        begun,
        checks: Checks::default(),
        found: Findings::default(),
        plan: None,
    };
    let ended = course.run();
    course.conclude(ended)
}

/// The hidden command that becomes the server: it ends when the drill does, by whatever.
pub(super) fn become_server(command: &[std::ffi::OsString]) -> Result<Outcome, Error> {
    let Some((program, options)) = command.split_first() else {
        return Ok(Outcome::Done);
    };
    let failed = |source| Error::System {
        doing: "become the server of a drill",
        source,
    };
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::QUIT))
        .map_err(|error| failed(error.into()))?;
    Err(failed(
        std::process::Command::new(program).args(options).exec(),
    ))
}

fn read_files(arguments: &Drill) -> Result<Vec<(&Path, String)>, config::Error> {
    let read = |path: &'_ PathBuf| {
        std::fs::read_to_string(path).map_err(|error| config::Error::Flag {
            flag: "--sql",
            value: path.display().to_string(),
            problem: error.to_string(),
        })
    };
    let files = arguments.sql.iter();
    files
        .map(|path| Ok((path.as_path(), read(path)?)))
        .collect()
}

/// Takes the first signal to end for the wish to end in order, and the second one for the wish to end at once.
fn listen(context: &Context) -> Result<(), Error> {
    let signals = [
        (SignalKind::interrupt(), ()),
        (SignalKind::terminate(), ()),
        (SignalKind::hangup(), ()),
    ];
    context.on_signals(&signals, |()| {
        if progress::interrupt() {
            std::process::exit(i32::from(crate::error::FAILED));
        }
    })
}

impl Course<'_> {
    /// Restores and checks. What is wrong with the backup is a failed check, and ends the drill early where nothing more can be
    /// checked.
    fn run(&mut self) -> Result<(), drill::Error> {
        let account = Account::choose(self.arguments.user.as_deref())?;
        let mut checks = std::mem::take(&mut self.checks);
        let mut restored = None;
        let outcome = checks.run("restore", || match self.restore(&account) {
            Ok(ready) => {
                restored = Some(ready);
                Ok(Verdict::Passed)
            }
            Err(error) if is_finding(&error) => Ok(Verdict::Failed(output::chain(&error))),
            Err(error) => Err(error),
        });
        self.checks = checks;
        outcome?;
        match restored {
            Some((scratch, binaries)) => self.check(&scratch, &binaries, &account),
            None => Ok(()),
        }
    }

    /// Restores into a directory of its own.
    fn restore(&mut self, account: &Account) -> Result<(Scratch, Binaries), drill::Error> {
        let target = self.target()?;
        let (repository, reading) = (self.repository, self.context.reading());
        let chosen = self.arguments.plan.backup.as_deref();
        let planned = || choose::plan(repository, &target, chosen, reading);
        let plan = planned()?;
        plan.warn();
        self.note(&plan, &target)?;
        self.plan = Some(plan.clone());
        must_stay_inside(&plan)?;
        let version = plan.backup.postgres_version;
        let binaries = Binaries::find(version, self.arguments.pgbin.as_deref())?;
        let within = self.arguments.scratch.clone();
        let within = within.unwrap_or_else(std::env::temp_dir);
        let afterwards = if self.arguments.keep {
            Afterwards::Keep
        } else {
            Afterwards::Remove
        };
        let scratch = Scratch::make(&within, account, afterwards)?;
        self.found.kept = self.arguments.keep.then(|| scratch.path().to_owned());
        let destination = self.destination(&plan, &scratch);
        let stage = stage::directory(&destination.pgdata, None);
        let program = program()?;
        let settings = |sealed: Option<stage::Seal>| Settings {
            program,
            wal: WalSource::Staged(sealed.unwrap_or_default()),
            archive_mode: ArchiveMode::Off,
            role: Role::Primary,
            has_empty_files: false,
        };
        let guard = || guard(repository, &plan, Kind::Staged, planned);
        let (files, guarded) = destination.open_guarded(repository, &plan.chain, guard)?;
        let outside = Outside::default();
        let restored = restore(
            repository,
            &plan,
            files,
            &destination,
            Some(&stage),
            &outside,
            settings,
        );
        if progress::is_interrupted() {
            return Err(drill::Error::Interrupted);
        }
        restored?;
        leave_guarded(repository, &plan, Kind::Staged);
        drop(guarded);
        Ok((scratch, binaries))
    }

    /// The target that was asked for, or a random moment.
    fn target(&mut self) -> Result<Target, drill::Error> {
        let mut target = self.arguments.plan.target();
        target.action = Action::Promote;
        if !self.arguments.random_target {
            return Ok(target);
        }
        let chosen = self.arguments.plan.backup.as_deref();
        let moment = moment::random(self.repository, chosen, self.context.reading())?;
        let moment = moment.ok_or_else(|| {
            restore::Error::Unreachable(Unreachable {
                reason: "no backup reaches a moment whose time is known".to_owned(),
                nearest: None,
            })
        })?;
        (target.point, target.timeline) = (
            Point::Time(moment.time),
            TargetTimeline::Id(moment.timeline),
        );
        let time = moment.time.strftime("%Y-%m-%d %H:%M:%S%.6f+00");
        let timeline = moment.timeline.number();
        let backup = chosen.map(|id| format!(" --backup {id}"));
        let repeat = format!(
            "walhalla drill --target-time '{time}' --target-timeline {timeline}{}",
            backup.unwrap_or_default()
        );
        tracing::info!("the random target is {time} on timeline {timeline}");
        self.found.repeat = Some(repeat);
        Ok(target)
    }

    /// What is known before anything is written.
    fn note(&mut self, plan: &Plan, target: &Target) -> Result<(), drill::Error> {
        let newest = commits::newest(self.repository, &plan.history, self.context.reading())?;
        let found = &mut self.found;
        found.backup = Some(plan.backup.id.to_string());
        found.backup_chain = plan
            .chain
            .iter()
            .map(|backup| backup.id.to_string())
            .collect();
        found.timeline = Some(plan.history.timeline.number());
        found.target = Some(target.point.to_string());
        found.segments = plan.segments.len() as u64;
        found.bytes = plan.download_bytes();
        found.restored_bytes = plan.backup.size_bytes;
        found.newest_commit_time = newest;
        found.newest_commit_age_seconds =
            newest.map(|newest| self.begun.0.duration_since(newest).as_secs_f64().max(0.0));
        Ok(())
    }

    fn destination(&self, plan: &Plan, scratch: &Scratch) -> Destination {
        let tablespaces = plan.backup.tablespaces.iter();
        let needed = super::needed(self.context);
        Destination {
            pgdata: scratch.data(),
            tablespaces: tablespaces
                .map(|tablespace| (tablespace.oid, scratch.tablespace(tablespace.oid)))
                .collect(),
            wal: None,
            spool: None,
            existing: Existing::Refuse,
            // The time to restore that it measures is that of a restore which is kept.
            durability: Durability::Durable,
            only: None,
            // All is made in a new directory, so that nothing can be in its way.
            needed: needed.unwrap_or_default(),
            threads: self.context.settings.download_concurrency,
            show: self.context.show(),
        }
    }

    /// Starts the server on what was restored, and checks it.
    fn check(
        &mut self,
        scratch: &Scratch,
        binaries: &Binaries,
        account: &Account,
    ) -> Result<(), drill::Error> {
        let Some(plan) = self.plan.clone() else {
            return Ok(());
        };
        let prepared = configuration::prepare(&plan, scratch, binaries, account)?;
        self.found.turned_off.clone_from(&prepared.turned_off);
        let program = program()?;
        let mut server = Server::start(&program, binaries, &prepared, scratch, account)?;
        let limit = Duration::from_secs(self.arguments.timeout);
        let begun = Instant::now();
        let waited = server.wait_until_ready(limit);
        if !self.came_up(&mut server, &plan, waited?, begun)? {
            return Ok(());
        }
        let role = self.arguments.role.as_deref();
        let version = plan.backup.postgres_version;
        let mut session = None;
        self.checks.run("connection", || {
            let opened = queries::open(scratch, account, role, version);
            match self.repository.session().wait(opened) {
                Ok(opened) => session = Some(opened),
                Err(error @ drill::Error::Query { .. }) => {
                    return Ok(Verdict::Failed(output::chain(&error)));
                }
                Err(error) => return Err(error),
            }
            Ok(Verdict::Passed)
        })?;
        let Some(session) = session else {
            return Ok(());
        };
        self.measure(&plan, &session);
        self.amcheck(binaries, account, scratch, &session)?;
        for (path, text) in &self.sql {
            let database = &self.arguments.dbname;
            let file = queries::run_file(scratch, &session.role, database, text);
            let name = format!("sql {}", path.display());
            self.checks
                .run(&name, || self.repository.session().wait(file))?;
        }
        self.checksums(&mut server, scratch, binaries, account)
    }

    /// Notes whether the server started and reached its target.
    fn came_up(
        &mut self,
        server: &mut Server,
        plan: &Plan,
        waited: Waited,
        begun: Instant,
    ) -> Result<bool, drill::Error> {
        let started = match waited {
            Waited::Ended(status) if !server.began_to_recover() => Verdict::Failed(format!(
                "PostgreSQL did not start ({status}): {}",
                server.last_words()
            )),
            _ => Verdict::Passed,
        };
        if !self
            .checks
            .run("start", || Ok::<_, drill::Error>(started))?
        {
            return Ok(false);
        }
        let reached = match waited {
            Waited::Ended(status) => Verdict::Failed(format!(
                "recovery failed ({status}): {}",
                server.last_words()
            )),
            Waited::TimedOut => Verdict::Failed(format!(
                "recovery did not end within {} s: {}",
                begun.elapsed().as_secs(),
                server.last_words()
            )),
            Waited::Ready if plan.target.point != Point::End && !server.stopped_at_target() => {
                Verdict::Failed("WAL ended before the target was reached".to_owned())
            }
            Waited::Ready => Verdict::Passed,
        };
        self.checks.run_since(begun, "consistency", || Ok(reached))
    }

    /// Notes what was reached, and how long that took.
    fn measure(&mut self, plan: &Plan, session: &Session) {
        let found = &mut self.found;
        found.rto_seconds = Some(self.begun.1.elapsed().as_secs_f64());
        found.reached_time = session.reached_time;
        found.reached_lsn = session.reached_lsn;
        if plan.target.point == Point::End {
            // What was committed before the backup's end is in its files.
            let reached = session.reached_time.max(Some(plan.backup.data_end()));
            let lost = |newest: Timestamp| {
                let lost = newest.duration_since(reached.unwrap_or(newest));
                lost.as_secs_f64().max(0.0)
            };
            found.rpo_seconds = found.newest_commit_time.map(lost);
        }
        found
            .turned_off
            .extend(session.subscriptions.iter().map(|name| {
                TurnedOff::new(
                    format!("subscription {name}"),
                    "nothing is replicated to the copy",
                )
            }));
    }

    fn amcheck(
        &mut self,
        binaries: &Binaries,
        account: &Account,
        scratch: &Scratch,
        session: &Session,
    ) -> Result<(), drill::Error> {
        let wanted = self.arguments.amcheck;
        if wanted.without {
            return Ok(());
        }
        self.checks.run("amcheck", || {
            let verdict = tools::amcheck(binaries, account, scratch, session)?;
            Ok::<_, drill::Error>(match verdict {
                Verdict::Skipped(why) if wanted.wanted => Verdict::Failed(why),
                verdict => verdict,
            })
        })?;
        Ok(())
    }

    /// Stops the server, and checks the pages of a cluster that has checksums.
    fn checksums(
        &mut self,
        server: &mut Server,
        scratch: &Scratch,
        binaries: &Binaries,
        account: &Account,
    ) -> Result<(), drill::Error> {
        let limit = Duration::from_secs(self.arguments.timeout);
        self.checks.run("checksums", || {
            if !server.stop(limit)? {
                let words = server.last_words();
                return Ok(Verdict::Failed(format!(
                    "PostgreSQL did not stop as it should: {words}"
                )));
            }
            let control = control_file::read(&scratch.data())?;
            if !control.data_checksums {
                return Ok(Verdict::Skipped(
                    "the cluster has no data checksums".to_owned(),
                ));
            }
            tools::checksums(binaries, account, scratch)
        })?;
        Ok(())
    }

    /// Tells the result, wherever it is wanted.
    fn conclude(mut self, ended: Result<(), drill::Error>) -> Result<Outcome, Error> {
        if progress::is_interrupted() {
            tracing::info!(
                "the drill ended in order: its server is stopped, and its directory is removed unless --keep was given"
            );
            return Err(drill::Error::Interrupted.into());
        }
        let problems = self.checks.failed().map(|check| Problem {
            object: check.name.clone(),
            what: check.detail.clone().unwrap_or_default(),
        });
        self.found.problems = problems.collect();
        if let (Err(error), true) = (&ended, self.found.problems.is_empty()) {
            self.found.problems.push(Problem {
                object: "drill".to_owned(),
                what: output::chain(error),
            });
        }
        self.found.ok = self.found.problems.is_empty();
        self.found.seconds = self.begun.1.elapsed().as_secs_f64();
        self.found.checks = self.checks.all().to_vec();
        self.write_junit()?;
        let is_told = ended
            .as_ref()
            .err()
            .is_none_or(|error| error.class() == Class::Unreachable);
        if is_told {
            self.record();
        }
        if is_told && (ended.is_ok() || self.context.global.json) {
            self.show()?;
        }
        ended?;
        Ok(if self.found.ok {
            Outcome::Done
        } else {
            Outcome::ProblemFound
        })
    }

    fn write_junit(&self) -> Result<(), Error> {
        let Some(path) = &self.arguments.junit else {
            return Ok(());
        };
        let xml = junit::xml(&self.found.checks).map_err(std::io::Error::other);
        let written = xml.and_then(|xml| std::fs::write(path, xml));
        Ok(written.map_err(drill::Error::local("write", path))?)
    }

    /// Stores a report.
    fn record(&self) {
        let problems = self.found.problems.len() as u64;
        let report = Report::new(ReportKind::Drill, self.begun.0, problems);
        let chain = self.plan.iter().flat_map(|plan| &plan.chain);
        let report = Report {
            backups: chain.map(|backup| backup.id.clone()).collect(),
            drill: self.plan.as_ref().map(|plan| DrillReport {
                rto_seconds: self.found.rto_seconds,
                rpo_seconds: self.found.rpo_seconds,
                backup: plan.backup.id.clone(),
                target: plan.target.point.to_string(),
                reached_time: self.found.reached_time,
            }),
            ..report
        };
        self.context.record(self.repository, &report);
    }

    fn show(&self) -> Result<(), output::Error> {
        if self.context.global.json {
            return output::json(&self.found);
        }
        self.show_what_was_reached()?;
        for off in &self.found.turned_off {
            row("off in the copy", &format!("{}: {}", off.what, off.why))?;
        }
        for check in &self.found.checks {
            let result = match check.result {
                check::Result::Passed => "passed",
                check::Result::Failed => "FAILED",
                check::Result::Skipped => "skipped",
            };
            row(result, &format!("{}, {:.1} s", check.name, check.seconds))?;
            for line in check.detail.iter().flat_map(|detail| detail.lines()) {
                row("", line)?;
            }
        }
        if let Some(kept) = &self.found.kept {
            row("kept", &kept.display().to_string())?;
        }
        output::line(&match self.found.problems.len() {
            0 => "the drill passed".to_owned(),
            1 => "the drill failed: 1 problem found".to_owned(),
            more => format!("the drill failed: {more} problems found"),
        })
    }

    fn show_what_was_reached(&self) -> Result<(), output::Error> {
        let found = &self.found;
        row("backup", &found.backup_chain.join(", "))?;
        row("target", found.target.as_deref().unwrap_or_default())?;
        if let Some(repeat) = &found.repeat {
            row("repeat it with", repeat)?;
        }
        let (bytes, segments) = (HumanBytes(found.bytes), found.segments);
        row(
            "to fetch",
            &format!("{bytes}, with {segments} WAL segments"),
        )?;
        row(
            "size of the cluster",
            &HumanBytes(found.restored_bytes).to_string(),
        )?;
        if let Some(seconds) = found.rto_seconds {
            row("time to restore (RTO)", &lasted(seconds))?;
        }
        if let Some(seconds) = found.rpo_seconds {
            row("data loss (RPO)", &lasted(seconds))?;
        }
        if let Some(time) = found.reached_time {
            row("last transaction", &look::time(time))?;
        }
        if let (Some(time), Some(age)) = (found.newest_commit_time, found.newest_commit_age_seconds)
        {
            row(
                "newest archived commit",
                &format!("{}, {} old", look::time(time), lasted(age)),
            )?;
        }
        Ok(())
    }
}

/// Seconds with a digit, or from a minute on in larger units.
fn lasted(seconds: f64) -> String {
    if seconds < 60.0 {
        format!("{seconds:.1} s")
    } else {
        look::duration(SignedDuration::try_from_secs_f64(seconds).unwrap_or_default())
    }
}

fn row(name: &str, value: &str) -> Result<(), output::Error> {
    output::line(&format!("{name:<24}{value}"))
}

/// Whether an error says that something stored is damaged or missing: that is what a drill looks for.
fn is_finding(error: &drill::Error) -> bool {
    matches!(
        error.class(),
        Class::Damaged | Class::Inaccessible | Class::Absent
    )
}

/// Refuses a plan whose replay would write elsewhere.
fn must_stay_inside(plan: &Plan) -> Result<(), drill::Error> {
    let outside =
        |tablespace: &&restore::plan::NewTablespace| !tablespace.location.as_bytes().is_empty();
    match plan.new_tablespaces.iter().find(outside) {
        Some(tablespace) => Err(drill::Error::TablespaceOutside(Box::new(
            tablespace.clone(),
        ))),
        None => Ok(()),
    }
}

/// This program, which the server is to run.
fn program() -> Result<PathBuf, drill::Error> {
    std::env::current_exe().map_err(drill::Error::local("find", "this program"))
}
