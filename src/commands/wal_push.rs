//! `walhalla wal-push PATH`

use std::path::Path;

use indicatif::HumanBytes;
use walhalla_postgres::{ControlFile, SegmentName, WalFileName};

use super::{Context, Outcome};
use crate::archiving::ahead::{Ahead, Site};
use crate::archiving::backlog::{Backlog, Decision, Notes};
use crate::cli::WalPush;
use crate::daemon::protocol::{Answer, Work};
use crate::error::Error;
use crate::failure::Failure as _;
use crate::output;
use crate::repository::layout::DroppedSegments;
use crate::repository::owed::Owed;
use crate::server::recovery_mode::{RecoveryMode, mode_of};
use crate::server::waiting_server::{PATIENCE, times};
use crate::server::wal_directory::WalDirectory;
use crate::server::{self, control_file, postmaster};
use crate::spool::receipts::{Kind, Receipts};
use crate::wal;
use crate::wal::archiver::{Archiver, Pushed};

pub(super) fn run(context: &Context, arguments: &WalPush) -> Result<Outcome, Error> {
    let path = &arguments.path;
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let file: WalFileName = name.parse().map_err(server::Error::from)?;
    let pgdata = control_file::find_data_directory(arguments.pgdata.as_deref(), path)?;
    let control = control_file::read(&pgdata)?;
    let receipts = context.receipts(Kind::Pushed, &pgdata, &control);
    let in_recovery = mode_of(&pgdata) != RecoveryMode::None;
    if !in_recovery && let Some(spooled) = context.spooled(&pgdata, &control) {
        // The server was promoted, and fetches nothing any more.
        let cleared = spooled.clear_what_is_left();
        drop(cleared.inspect_err(super::spool_not_used));
    }
    if let (Some(receipts), WalFileName::Segment(segment)) = (&receipts, file)
        && super::take_receipt(receipts, segment, path)
    {
        tracing::debug!("{file} is archived, it was pushed ahead");
        return answer(context, file, Fate::AlreadyThere);
    }
    let backlog = backlog(context, &pgdata, &control, file);
    if let Some((backlog, segment)) = &backlog
        && backlog
            .decide()
            .is_ok_and(|decision| decision == Decision::Drop)
    {
        drop_segment(backlog, *segment, None)?;
        return answer(context, file, Fate::Dropped);
    }
    let server = Server {
        pgdata: &pgdata,
        control: &control,
        in_recovery,
    };
    let is_over = || {
        let backlog = backlog.as_ref();
        backlog.is_some_and(|(backlog, _)| backlog.is_over().is_ok_and(|is_over| is_over))
    };
    match push(context, &server, receipts.as_ref(), (path, file), is_over) {
        Ok(fate) => {
            record_gaps(context, &server);
            answer(context, file, fate)
        }
        Err(error) => {
            let Some((backlog, segment)) = backlog.filter(|_| is_of_the_store(&error)) else {
                return Err(error);
            };
            drop(backlog.note_trouble().inspect_err(super::spool_not_used));
            // A server that has begun to shut down cut the push short.
            let is_stopping = postmaster::is_stopping(&pgdata);
            if is_stopping || !backlog.is_over().is_ok_and(|is_over| is_over) {
                return Err(error);
            }
            drop_segment(&backlog, segment, Some(error))?;
            answer(context, file, Fate::Dropped)
        }
    }
}

/// The server whose file it is.
struct Server<'a> {
    pgdata: &'a Path,
    control: &'a ControlFile,
    in_recovery: bool,
}

/// The backlog and the segment that may be dropped from it; `None` where none may be. A server that shuts down keeps what it
/// has, and its archiver goes on after the next start.
fn backlog(
    context: &Context,
    pgdata: &Path,
    control: &ControlFile,
    file: WalFileName,
) -> Option<(Backlog, SegmentName)> {
    let max_bytes = context.settings.max_backlog_bytes?;
    let WalFileName::Segment(segment) = file else {
        return None;
    };
    if postmaster::is_stopping(pgdata) {
        return None;
    }
    let Some(spool) = context.spool_of(pgdata) else {
        tracing::warn!(
            "max_backlog has no effect: what is dropped cannot be noted in the spool of another user"
        );
        return None;
    };
    let backlog = Backlog {
        wal_directory: WalDirectory::of(pgdata)?,
        segment_size: control.segment_size,
        max_bytes,
        notes: Notes::new(spool, control.system_identifier),
    };
    Some((backlog, segment))
}

/// Drops a segment that the store did not take: `failure` says why, or it was not tried.
///
/// # Errors
/// `failure`, or that the drop could not be noted. The server keeps the segment then.
fn drop_segment(
    backlog: &Backlog,
    segment: SegmentName,
    failure: Option<Error>,
) -> Result<(), Error> {
    let backlog_bytes = backlog.bytes().unwrap_or(0);
    if let Err(source) = backlog.drop(segment) {
        let doing = "note that a segment is dropped";
        return Err(failure.unwrap_or(Error::System { doing, source }));
    }
    let reason = failure.map_or_else(
        || "the archive has not kept up for a while".to_owned(),
        |failure| output::chain(&failure),
    );
    tracing::warn!(
        "WAL segment {segment} is dropped and NOT archived: {} wait for the archive, and max_backlog is {}. Recovery cannot go \
         past {segment}: take a new base backup as soon as the store takes WAL again. Why it was not archived: {reason}",
        HumanBytes(backlog_bytes),
        HumanBytes(backlog.max_bytes),
    );
    Ok(())
}

/// Whether it was the store that did not take the file. Nothing is dropped for another reason.
fn is_of_the_store(error: &Error) -> bool {
    match error {
        Error::Store(_) | Error::Repository(_) => !error.is_of_an_objects_content(),
        Error::Wal(wal::Error::NotMirrored { .. }) => false,
        Error::Wal(error) => error.is_of_the_store(),
        _ => false,
    }
}

/// After a push that succeeded: records in the store what was dropped before. Whatever hinders that, the push has succeeded,
/// and the next one tries again.
fn record_gaps(context: &Context, server: &Server) {
    let Some(spool) = context.spool_of(server.pgdata) else {
        return;
    };
    let notes = Notes::new(spool, server.control.system_identifier);
    let record = || -> Result<(), Error> {
        let note = |source| Error::System {
            doing: "record in the store that segments were dropped",
            source,
        };
        if !notes.end_trouble().map_err(note)? {
            return Ok(());
        }
        let most = context.settings.retry_timeout.min(PATIENCE);
        let times = times(server.pgdata, most);
        let repository = context.hasty_repository_of(server.pgdata, server.control, &times)?;
        let recorded = notes.record(&repository, server.control.segment_size);
        for DroppedSegments { first, last } in recorded.map_err(note)? {
            tracing::warn!(
                "the gap from {first} to {last}, which were dropped, is recorded in the store: take a new base backup now"
            );
        }
        Ok(())
    };
    if let Err(error) = record() {
        tracing::warn!("{}", output::chain(&error));
    }
}

/// Has the daemon push the file, or pushes it.
fn push(
    context: &Context,
    server: &Server,
    receipts: Option<&Receipts>,
    (path, file): (&Path, WalFileName),
    is_over: impl Fn() -> bool,
) -> Result<Fate, Error> {
    let Server {
        pgdata,
        control,
        in_recovery,
    } = *server;
    if let (Some(receipts), WalFileName::Segment(segment)) = (receipts, file)
        && WalDirectory::of(pgdata).is_some_and(|directory| directory.has(path))
    {
        match super::ask_daemon(context, pgdata, segment, Work::Push) {
            // It may lack what this process has; if not, this process says the same.
            Some(Answer::Failed(failed)) => {
                tracing::info!("the daemon did not archive {file}: {}", failed.message);
            }
            // The receipt says it, not the daemon.
            Some(Answer::Done) if super::take_receipt(receipts, segment, path) => {
                tracing::debug!("{file} is archived by the daemon");
                return Ok(Fate::Stored);
            }
            Some(Answer::Done | Answer::Unfit(_)) | None => {}
        }
    }
    let most = context.settings.retry_timeout.min(PATIENCE);
    let times = times(pgdata, most);
    let repository = context.hasty_repository_of(pgdata, control, &times)?;
    let pipeline = context.segment_pipeline(&repository)?;
    let second = context.second(times.request, 1)?;
    let second = second.map(|second| second.patient(times.request, &times.patience));
    let mirror = second.map(|second| second.of(&repository, context.spool_of(pgdata)));
    let archiver = Archiver {
        repository: &repository,
        pipeline: &pipeline,
        origin: control.into(),
        in_recovery,
        mirror: mirror.as_ref(),
    };
    let pushed = match receipts {
        Some(receipts) => {
            let most = context.settings.upload_concurrency;
            push_with_others(&archiver, receipts, pgdata, most, path, file)
        }
        None => archiver.push(path, file).map_err(Error::from),
    };
    let pushed = match (pushed, &mirror) {
        // The first store has it: no disk is to fill up for the mirror's sake, and nothing is dropped either.
        (Err(error @ Error::Wal(wal::Error::NotMirrored { .. })), Some(mirror)) if is_over() => {
            mirror.owe(&repository, &Owed::Wal(file))?;
            tracing::warn!(
                "{}; as more WAL waits than max_backlog allows, it is owed",
                output::chain(&error)
            );
            return Ok(Fate::Stored);
        }
        (pushed, _) => pushed?,
    };
    if let Some(Err(error)) = mirror.as_ref().map(|mirror| mirror.pay_some(&repository)) {
        tracing::debug!("{}", output::chain(&error));
    }
    Ok(match pushed {
        Pushed::Stored { object, .. } => {
            tracing::debug!("{file} is archived, {} bytes", object.stored_bytes);
            Fate::Stored
        }
        Pushed::AlreadyThere => {
            tracing::info!("{file} was archived before, with the same content");
            Fate::AlreadyThere
        }
    })
}

/// Pushes the file, and beside it what the server has marked ready.
fn push_with_others(
    archiver: &Archiver,
    receipts: &Receipts,
    pgdata: &Path,
    most: usize,
    path: &Path,
    file: WalFileName,
) -> Result<Pushed, Error> {
    let Some(wal_directory) = WalDirectory::of(pgdata) else {
        return Ok(archiver.push(path, file)?);
    };
    let ahead = Ahead {
        site: Site {
            archiver,
            wal_directory: &wal_directory,
            receipts,
        },
        most,
        is_stopping: &|| postmaster::is_stopping(pgdata),
    };
    if wal_directory.has(path) {
        return Ok(ahead.push(path, file)?);
    }
    if ahead.has_others(file) {
        tracing::info!(
            "{} is not in the server's own directory of WAL, which may hold ciphertext: what else is ready there is not pushed \
             ahead",
            path.display()
        );
    }
    Ok(archiver.push(path, file)?)
}

/// What became of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Stored,
    AlreadyThere,
    Dropped,
}

fn answer(context: &Context, file: WalFileName, fate: Fate) -> Result<Outcome, Error> {
    if context.global.json {
        output::json(&serde_json::json!({
            "file": file.to_string(),
            "already_there": fate == Fate::AlreadyThere,
            "dropped": fate == Fate::Dropped,
        }))?;
    }
    Ok(Outcome::Done)
}
