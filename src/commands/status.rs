//! `walhalla status`

use std::io::Write as _;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::Value;

use super::{Context, Outcome, find};
use crate::archive::{Archive, Tails};
use crate::cli::{Cluster, Status as Arguments};
use crate::error::Error;
use crate::find::Query;
use crate::output::look::{begin, bytes, counted, duration, time};
use crate::output::{self, Shade};
use crate::repository::Repository;
use crate::repository::reports::ReportResult;
use crate::restore::window::{Span, joined};
use crate::server::conditions::Archiver;
use crate::server::session::Server;
use crate::server::wal_directory::WalDirectory;
use crate::server::{control_file, postmaster};
use crate::status::judge::{Limits, Problem, Severity};
use crate::status::{
    LastDrill, LastReport, Newest, OwedToMirror, State, Status, Surroundings, drawing, look,
    metrics, nagios, page,
};

/// The newest events that a page has.
const MOST_EVENTS: usize = 1000;
/// Windows that a line each says of.
const MOST_SPANS: usize = 3;
/// Columns of the names of what is shown.
const NAMES: usize = 11;

/// `status --json`
#[derive(Serialize)]
struct Report<'a> {
    walhalla_version: &'static str,
    time: Timestamp,
    store: &'a str,
    /// Whether no cluster is in a critical state.
    ok: bool,
    clusters: Vec<Value>,
}

pub(super) fn run(context: &Context, arguments: &Arguments) -> Result<Outcome, Error> {
    if !arguments.nagios {
        return shown(context, arguments).map(|(outcome, _)| outcome);
    }
    match shown(context, arguments) {
        Ok((_, worst)) => Ok(Outcome::Exit(nagios::exit_code(worst))),
        Err(error) => {
            // Nagios reads standard output, and knows a code for this.
            output::line(&nagios::unknown(&output::chain(&error)))?;
            Ok(Outcome::Exit(nagios::UNKNOWN))
        }
    }
}

fn shown(context: &Context, arguments: &Arguments) -> Result<(Outcome, State), Error> {
    let repositories = repositories(context, arguments)?;
    let limits = limits(arguments);
    let statuses = { repositories.iter() }
        .map(|repository| {
            let around = surroundings(context, repository, arguments.data_directory())?;
            Ok(look(repository, around, &limits, context.reading())?)
        })
        .collect::<Result<Vec<Status>, Error>>()?;
    let worst = { statuses.iter() }.map(|status| status.state).max();
    let worst = worst.unwrap_or(State::Critical);
    let outcome = if worst == State::Critical {
        Outcome::ProblemFound
    } else {
        Outcome::Done
    };
    let outcome = if arguments.nagios {
        output::line(&nagios::line(&statuses, worst, &limits))?;
        outcome
    } else if let Some(file) = &arguments.prometheus {
        write_metrics(file, &metrics::page(&statuses))?;
        Outcome::Done
    } else if let Some(file) = &arguments.html {
        let both = repositories.iter().zip(&statuses);
        let clusters = both
            .map(|(repository, status)| of_page(context, repository, status))
            .collect::<Result<Vec<_>, Error>>()?;
        let report = report(context, worst, clusters)?;
        let json = serde_json::to_string(&report).expect("texts and numbers are JSON");
        write_whole(file, page::html(&json).as_bytes())?;
        output::line(&format!("{} is written", file.display()))?;
        Outcome::Done
    } else if context.global.json {
        let clusters = { statuses.iter() }.map(value).collect();
        output::json(&report(context, worst, clusters)?)?;
        outcome
    } else {
        print(&statuses)?;
        if !statuses.is_empty() {
            print_what_was_not_seen(arguments.data_directory())?;
        }
        outcome
    };
    Ok((outcome, worst))
}

/// The cluster of a data directory, the one that was chosen, or all.
fn repositories(context: &Context, arguments: &Arguments) -> Result<Vec<Repository>, Error> {
    match arguments.data_directory() {
        Some(pgdata) => {
            let control = control_file::read(pgdata)?;
            Ok(vec![context.repository_of(pgdata, &control)?])
        }
        None => context.repositories(&arguments.cluster),
    }
}

fn limits(arguments: &Arguments) -> Limits {
    Limits {
        max_age: arguments.max_age,
        max_full_age: arguments.max_full_age,
        max_wal_age: arguments.max_wal_age,
    }
}

fn surroundings(
    context: &Context,
    repository: &Repository,
    pgdata: Option<&Path>,
) -> Result<Surroundings, Error> {
    let ready = pgdata.and_then(WalDirectory::of).map(|wal| {
        wal.ready_segments().map_err(|source| Error::System {
            doing: "list the segments that wait for the archive",
            source,
        })
    });
    // What the mirror is owed, the first store tells; debts are named by the mirror's URL as it is opened.
    let mirror = match context.mirror_of(repository, None) {
        Ok(Some(mirror)) => {
            let url = mirror.second.store_url().to_owned();
            Some((url, repository.debts(mirror.id())?))
        }
        Ok(None) => None,
        Err(error) => {
            let why = output::chain(&error);
            tracing::warn!("what the mirror is owed is not known: {why}");
            None
        }
    };
    Ok(Surroundings {
        ready_segments: ready.transpose()?.map(|ready| ready.len() as u64),
        archiver: pgdata.and_then(|pgdata| archiver(repository, pgdata)),
        mirror,
    })
}

/// What the server's archiver did; `None` where the server does not answer.
fn archiver(repository: &Repository, pgdata: &Path) -> Option<Archiver> {
    if !postmaster::is_running(pgdata) {
        return None;
    }
    let asked = repository.session().wait(async {
        let mut server = Server::connect(pgdata).await?;
        let archiver = server.archiver().await;
        server.close().await;
        archiver
    });
    let asked = asked.inspect_err(|error: &crate::server::Error| {
        tracing::info!(
            "failures of archive_command are not known: {}",
            output::chain(error)
        );
    });
    asked.ok()
}

fn report(context: &Context, worst: State, clusters: Vec<Value>) -> Result<Report<'_>, Error> {
    Ok(Report {
        walhalla_version: crate::LONG_VERSION,
        time: Timestamp::now(),
        store: context.settings.store()?,
        ok: worst != State::Critical,
        clusters,
    })
}

fn value(status: &Status) -> Value {
    serde_json::to_value(status).expect("texts, times and numbers are JSON")
}

/// A cluster as the page shows it: with what happened, and the command that restores it.
fn of_page(context: &Context, repository: &Repository, status: &Status) -> Result<Value, Error> {
    let cluster = Cluster {
        system_identifier: Some(status.system_identifier),
    };
    let query = Query {
        dropped: true,
        truncated: true,
        restore_points: true,
        ..Query::default()
    };
    let printed = find::Printed {
        into: Path::new(find::INTO),
        cluster: &cluster,
    };
    let backups = repository.usable_backups()?;
    let archive = Archive::new(repository, &backups, context.reading())?.with_tails(Tails::Used);
    let mut events = find::rows(context, &archive, &backups, &query, printed)?;
    events.drain(..events.len().saturating_sub(MOST_EVENTS));
    let mut value = value(status);
    if let Some(fields) = value.as_object_mut() {
        let events = serde_json::to_value(events).expect("texts and numbers are JSON");
        fields.insert("events".to_owned(), events);
        let newest = backups.last();
        let beside = find::beside(printed.into)?;
        let tablespaces = newest.map(|newest| find::tablespaces(newest, &beside));
        let front = find::front(context, printed);
        let command = format!("{front}{}", tablespaces.unwrap_or_default());
        fields.insert("restore_command".to_owned(), command.into());
    }
    Ok(value)
}

/// Writes the metrics to a file that the collector never sees in part, or to standard output.
fn write_metrics(file: &Path, text: &str) -> Result<(), Error> {
    if file == Path::new("-") {
        return Ok(output::block(text.trim_end())?);
    }
    write_whole(file, text.as_bytes())
}

/// Puts a file in place in one step, readable for all.
fn write_whole(file: &Path, bytes: &[u8]) -> Result<(), Error> {
    let folder = file.parent().filter(|it| !it.as_os_str().is_empty());
    let folder = folder.map_or_else(|| PathBuf::from("."), Path::to_owned);
    let written = || {
        let mut new = tempfile::Builder::new();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        let mut new = new
            .prefix(".walhalla-")
            .permissions(mode)
            .tempfile_in(&folder)?;
        new.write_all(bytes)?;
        new.as_file().sync_all()?;
        new.persist(file).map_err(|error| error.error)
    };
    written().map(drop).map_err(|error| Error::File {
        path: file.to_owned(),
        // Without the name of the temporary file.
        source: error.kind().into(),
    })
}

fn print(statuses: &[Status]) -> Result<(), output::Error> {
    if statuses.is_empty() {
        return output::line("no backups yet; take one with: walhalla backup-push PGDATA");
    }
    for (position, status) in statuses.iter().enumerate() {
        if position > 0 {
            output::line("")?;
        }
        print_status(status)?;
    }
    Ok(())
}

/// What the state above does not take into account.
fn print_what_was_not_seen(pgdata: Option<&Path>) -> Result<(), output::Error> {
    let text = match pgdata {
        None => {
            "this is what the store says; `walhalla status PGDATA` also looks at the server there, and whether it archives".to_owned()
        }
        Some(pgdata) if !postmaster::is_running(pgdata) => format!(
            "no server runs in {}: whether archive_command works is not known",
            pgdata.display()
        ),
        Some(_) => return Ok(()),
    };
    output::line("")?;
    output::line(&text)
}

fn print_status(status: &Status) -> Result<(), output::Error> {
    let version = status.postgres_version.as_ref();
    let version = version.map_or_else(String::new, |version| format!(", PostgreSQL {version}"));
    let (shade, state) = state_in_words(status.state);
    output::pieces(&[
        (
            Shade::Strong,
            &format!("cluster {}{version}: ", status.system_identifier),
        ),
        (shade, state),
    ])?;
    for problem in &status.problems {
        print_problem(problem)?;
    }
    for (name, text) in rows(status) {
        output::pieces(&[
            (Shade::Faint, &format!("{name:<NAMES$}")),
            (Shade::Plain, &text),
        ])?;
    }
    let lines = drawing::lines(status);
    if lines.is_empty() {
        return Ok(());
    }
    output::line("")?;
    for line in lines {
        output::line(&line)?;
    }
    output::pieces(&[(Shade::Faint, drawing::LEGEND)])
}

fn state_in_words(state: State) -> (Shade, &'static str) {
    match state {
        State::Ok => (Shade::Good, "ok"),
        State::Warning => (Shade::Warning, "warning"),
        State::Critical => (Shade::Bad, "critical"),
    }
}

fn print_problem(problem: &Problem) -> Result<(), output::Error> {
    let (shade, word) = match problem.severity {
        Severity::Warning => (Shade::Warning, "warning"),
        Severity::Critical => (Shade::Bad, "critical"),
    };
    output::pieces(&[
        (shade, &format!("{word:<NAMES$}")),
        (Shade::Plain, &problem.what),
    ])?;
    match &problem.hint {
        Some(hint) => output::line(&format!("{:NAMES$}{hint}", "")),
        None => Ok(()),
    }
}

/// What is said of a cluster, line by line.
fn rows(status: &Status) -> Vec<(&'static str, String)> {
    let spans = joined(&status.reachable);
    let mut rows: Vec<(&'static str, String)> = { spans.iter() }
        .rev()
        .take(MOST_SPANS)
        .map(|span| ("restorable", restorable(span)))
        .collect();
    if rows.is_empty() {
        rows.push(("restorable", "nothing".to_owned()));
    }
    let left_out = spans.len().saturating_sub(MOST_SPANS) as u64;
    if left_out > 0 {
        let more = format!(
            "{} more: wal-show has all",
            counted(left_out, "earlier window")
        );
        rows.push(("", more));
    }
    rows.extend(backups(status));
    rows.push(("archive", archive(status)));
    let stored = status.store_bytes;
    rows.push((
        "store",
        format!(
            "backups {}, WAL {}, summaries {}",
            bytes(stored.backups),
            bytes(stored.wal),
            bytes(stored.summaries)
        ),
    ));
    rows.extend(status.last_verify.as_ref().map(|report| {
        let what = format!("{}: {}", report.kind, ended(report));
        ("verified", what)
    }));
    let drill = status.last_drill.as_ref();
    rows.extend(drill.map(|drill| ("drill", drilled(drill))));
    if let Some(mirror) = &status.mirror {
        rows.push(("mirror", mirror.store.clone()));
        rows.push(("", owed(mirror)));
    }
    rows
}

/// From when to when.
fn restorable(span: &Span) -> String {
    let timeline = span.timeline;
    let (from, to) = (begin(span.from), span.to);
    let more = if span.is_end_unknown {
        "; what comes later is not known here, as not all WAL can be read"
    } else {
        ""
    };
    match to {
        Some(to) if from <= to => {
            format!("{} to {}, timeline {timeline}{more}", time(from), time(to))
        }
        Some(_) | None => format!("{}, timeline {timeline}{more}", time(span.from)),
    }
}

fn owed(mirror: &OwedToMirror) -> String {
    match mirror.since {
        None => "owed nothing".to_owned(),
        Some(since) => format!(
            "owed {} and {} since {}",
            counted(mirror.owed_wal as u64, "WAL file"),
            counted(mirror.owed_backups as u64, "backup"),
            time(since)
        ),
    }
}

fn backups(status: &Status) -> Vec<(&'static str, String)> {
    let ago = |newest: &Newest| {
        let age = duration(SignedDuration::from_secs(newest.age_seconds));
        format!("{}, {age} ago", newest.id)
    };
    let Some(newest) = &status.newest_backup else {
        return vec![("backup", "none".to_owned())];
    };
    let mut rows = vec![("backup", ago(newest))];
    let full = status.newest_full_backup.as_ref();
    let full = full.filter(|full| full.id != newest.id);
    rows.extend(full.map(|full| ("full", ago(full))));
    let all = counted(status.backups.len() as u64, "backup");
    rows.push(("", format!("{all}, longest chain {}", status.longest_chain)));
    rows
}

fn archive(status: &Status) -> String {
    let archiving = &status.archiving;
    let last = match (archiving.last_segment, archiving.age_seconds) {
        (Some(segment), Some(age)) => {
            let age = duration(SignedDuration::from_secs(age));
            format!("{segment} arrived {age} ago")
        }
        (_, Some(age)) => {
            let age = duration(SignedDuration::from_secs(age));
            format!("newest WAL arrived {age} ago")
        }
        (_, None) => "no WAL".to_owned(),
    };
    match archiving.ready_segments {
        Some(ready) => format!("{last}; {} on this host", waiting(ready)),
        None => last,
    }
}

/// How something ended, and how long ago.
fn ended(report: &LastReport) -> String {
    let ago = duration(Timestamp::now().duration_since(report.time));
    match report.result {
        ReportResult::Ok => format!("ok, {ago} ago"),
        ReportResult::Failed => {
            format!("{}, {ago} ago", counted(report.problems, "problem"))
        }
    }
}

fn drilled(drill: &LastDrill) -> String {
    let seconds =
        |seconds: f64| duration(SignedDuration::try_from_secs_f64(seconds).unwrap_or_default());
    let restored = drill
        .rto_seconds
        .map(|rto| format!("; restored in {}", seconds(rto)));
    let lost = drill
        .rpo_seconds
        .map(|rpo| format!(", {} of commits lost", seconds(rpo)));
    format!(
        "{}{}{}",
        ended(&drill.report),
        restored.unwrap_or_default(),
        lost.unwrap_or_default()
    )
}

fn waiting(ready: u64) -> String {
    match ready {
        0 => "no segment waits".to_owned(),
        1 => "1 segment waits".to_owned(),
        more => format!("{} wait", counted(more, "segment")),
    }
}
