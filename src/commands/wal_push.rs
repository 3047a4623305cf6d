//! `walhalla wal-push PATH`

use std::path::Path;

use walhalla_postgres::WalFileName;

use super::{Context, Outcome};
use crate::archiving::ahead::{Ahead, Site};
use crate::cli::WalPush;
use crate::daemon::protocol::{Answer, Work};
use crate::error::Error;
use crate::output;
use crate::server::recovery_mode::{RecoveryMode, mode_of};
use crate::server::waiting_server::{PATIENCE, times};
use crate::server::wal_directory::WalDirectory;
use crate::server::{self, control_file, postmaster};
use crate::spool::receipts::{Kind, Receipts};
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
        return answer(context, file, IsNew::No);
    }
    if let (Some(receipts), WalFileName::Segment(segment)) = (&receipts, file)
        && WalDirectory::of(&pgdata).is_some_and(|directory| directory.has(path))
    {
        match super::ask_daemon(context, &pgdata, segment, Work::Push) {
            // It may lack what this process has; if not, this process says the same.
            Some(Answer::Failed(failed)) => {
                tracing::info!("the daemon did not archive {file}: {}", failed.message);
            }
            // The receipt says it, not the daemon.
            Some(Answer::Done) if super::take_receipt(receipts, segment, path) => {
                tracing::debug!("{file} is archived by the daemon");
                return answer(context, file, IsNew::Yes);
            }
            Some(Answer::Done | Answer::Unfit(_)) | None => {}
        }
    }
    let most = context.settings.retry_timeout.min(PATIENCE);
    let repository = context.hasty_repository_of(&control, &times(&pgdata, most))?;
    let pipeline = context.segment_pipeline(&repository)?;
    let archiver = Archiver {
        repository: &repository,
        pipeline: &pipeline,
        origin: (&control).into(),
        in_recovery,
    };
    let pushed = match &receipts {
        Some(receipts) => {
            let most = context.settings.upload_concurrency;
            push_with_others(&archiver, receipts, &pgdata, most, path, file)?
        }
        None => archiver.push(path, file)?,
    };
    match pushed {
        Pushed::Stored { object, .. } => {
            tracing::debug!("{file} is archived, {} bytes", object.stored_bytes);
            answer(context, file, IsNew::Yes)
        }
        Pushed::AlreadyThere => {
            tracing::info!("{file} was archived before, with the same content");
            answer(context, file, IsNew::No)
        }
    }
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

/// Whether this call stored the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IsNew {
    Yes,
    No,
}

fn answer(context: &Context, file: WalFileName, is_new: IsNew) -> Result<Outcome, Error> {
    if context.global.json {
        let was_there = is_new == IsNew::No;
        output::json(&serde_json::json!({ "file": file.to_string(), "already_there": was_there }))?;
    }
    Ok(Outcome::Done)
}
