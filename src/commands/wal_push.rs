//! `walhalla wal-push PATH`

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use walhalla_postgres::{ControlFile, SegmentName, WalFileName};

use super::waiting_server::{PATIENCE, times};
use super::wal_fetch::{self, RecoveryMode};
use super::{Context, Outcome};
use crate::archiving::acknowledgement::{Acknowledgements, StoreIdentity};
use crate::archiving::ahead::Ahead;
use crate::archiving::ready::WalDirectory;
use crate::cli::WalPush;
use crate::error::Error;
use crate::output;
use crate::server::{self, control_file, postmaster};
use crate::spool::Spool;
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
    let acknowledgements = acknowledgements(context, &pgdata, &control);
    if let (Some(known), WalFileName::Segment(segment)) = (&acknowledgements, file)
        && is_acknowledged(known, segment, path)
    {
        tracing::debug!("{file} is archived, it was pushed ahead");
        return answer(context, file, IsNew::No);
    }
    let most = context.settings.retry_timeout.min(PATIENCE);
    let repository = context.hasty_repository_of(&control, &times(&pgdata, most))?;
    let pipeline = context.segment_pipeline(&repository)?;
    let archiver = Archiver {
        repository: &repository,
        pipeline: &pipeline,
        control: &control,
        in_recovery: wal_fetch::mode_of(&pgdata) != RecoveryMode::None,
    };
    let pushed = match &acknowledgements {
        Some(acknowledgements) => {
            let most = context.settings.upload_concurrency;
            push_with_others(&archiver, acknowledgements, &pgdata, most, path, file)?
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
    acknowledgements: &Acknowledgements,
    pgdata: &Path,
    most: usize,
    path: &Path,
    file: WalFileName,
) -> Result<Pushed, Error> {
    let Some(wal_directory) = WalDirectory::of(pgdata) else {
        return Ok(archiver.push(path, file)?);
    };
    let ahead = Ahead {
        wal_directory: &wal_directory,
        acknowledgements,
        most,
        is_stopping: &|| postmaster::is_stopping(pgdata),
    };
    if wal_directory.has(path) {
        return Ok(ahead.push(archiver, path, file)?);
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

/// What earlier batches acknowledged. Only the server's own user keeps it: PostgreSQL runs as the owner of its data directory.
fn acknowledgements(
    context: &Context,
    pgdata: &Path,
    control: &ControlFile,
) -> Option<Acknowledgements> {
    let is_own = |found: Metadata| found.uid() == rustix::process::geteuid().as_raw();
    if !pgdata.metadata().is_ok_and(is_own) {
        return None;
    }
    let spool = Spool::of(pgdata, context.settings.spool_dir.as_deref());
    let spool = spool.inspect_err(not_used).ok()?;
    let store = StoreIdentity(context.settings.store_identity());
    Some(Acknowledgements::new(
        spool,
        control.system_identifier,
        store,
    ))
}

/// Whatever hinders reading an acknowledgement, the segment is pushed then.
fn is_acknowledged(known: &Acknowledgements, segment: SegmentName, path: &Path) -> bool {
    let has = known.has(segment, path);
    has.inspect_err(not_used).unwrap_or(false)
}

fn not_used(error: &std::io::Error) {
    tracing::warn!("the spool is not used: {error}");
}
