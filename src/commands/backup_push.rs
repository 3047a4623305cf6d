//! `walhalla backup-push [PGDATA]`

use std::panic::resume_unwind;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use indicatif::HumanBytes;
use tokio::sync::watch;

use super::{Context, Outcome, backup_list, cores, malloc};
use crate::backup;
use crate::backup::request::{Backup, DeltaOptions, Options};
use crate::backup::streamed::ReplicatedServer;
use crate::cli::BackupPush;
use crate::error::Error;
use crate::output;
use crate::pipeline::QUEUED_BLOCKS;
use crate::receive::{self, OnFailure, Receiver, SlotCreation, Storing};
use crate::repository::{BackupEntry, Repository};
use crate::server::control_file;
use crate::temporary_folder::TemporaryFolder;

/// Parts that are packed at a time at most: each takes memory for its upload.
const MOST_PARTS: usize = 4;
/// How often the open segment's WAL is stored while a backup is taken with its WAL.
const TAIL_INTERVAL: Duration = Duration::from_secs(10);

pub(super) fn run(context: &Context, arguments: BackupPush) -> Result<Outcome, Error> {
    malloc::start_anew_with(malloc::FOR_BACKUPS);
    let pgdata = arguments.pgdata.clone();
    let options = options(context, arguments);
    match pgdata {
        Some(pgdata) => of_directory(context, &pgdata, options),
        None => streamed(context, options),
    }
}

fn of_directory(context: &Context, pgdata: &Path, options: Options) -> Result<Outcome, Error> {
    let control = control_file::read(pgdata)?;
    let repository = context.repository_of(pgdata, &control)?;
    repository.session().prepare_creates();
    let mirror = context.mirror_of(&repository, context.spool_of(pgdata))?;
    let pipeline = context.pipeline(&repository)?;
    let backup = Backup {
        mirror: mirror.as_ref(),
        pgdata,
        control: &control,
        repository: &repository,
        pipeline: &pipeline,
        options,
    };
    followed(context, &backup, || backup.push())
}

fn streamed(context: &Context, options: Options) -> Result<Outcome, Error> {
    let session = context.session()?;
    session.prepare_creates();
    let server = ReplicatedServer::connect(&session, context.settings.cluster)?;
    let control = server.control.clone();
    let identities = context.settings.identities.clone();
    let repository = Repository::new(session, identities, control.system_identifier);
    let mirror = context.mirror_of(&repository, None)?;
    let pipeline = context.pipeline(&repository)?;
    let folder = temporary_folder()?;
    let backup = Backup {
        mirror: mirror.as_ref(),
        pgdata: folder.path(),
        control: &control,
        repository: &repository,
        pipeline: &pipeline,
        options,
    };
    followed(context, &backup, || backup.push_streamed(server))
}

fn options(context: &Context, arguments: BackupPush) -> Options {
    Options {
        label: arguments.label,
        annotations: arguments.annotations.into_iter().collect(),
        permanent: arguments.permanent,
        with_wal: arguments.with_wal,
        delta: arguments.delta.then(|| DeltaOptions {
            parent: arguments.parent,
            source: arguments.changed_blocks.source(),
            max_chain: context.settings.delta_max_chain,
        }),
        archive_timeout: context.settings.archive_timeout,
        threads: threads(context),
        read_rate: context.settings.read_rate,
        show: context.show(),
    }
}

/// Takes a backup, and lets the second store follow.
fn followed(
    context: &Context,
    backup: &Backup,
    take: impl FnOnce() -> Result<BackupEntry, backup::Error>,
) -> Result<Outcome, Error> {
    let following = context.following(backup.repository, backup.mirror);
    if let Some(following) = &following {
        following.prepare()?;
    }
    let entry = if backup.options.with_wal {
        beside_wal(context, backup.repository, take)?
    } else {
        take()?
    };
    report(context, &entry)?;
    if let Some(following) = &following {
        following.backup(&entry.id)?;
    }
    if entry.corrupt_blocks.is_empty() {
        return Ok(Outcome::Done);
    }
    for corrupt in &entry.corrupt_blocks {
        tracing::error!("block {} of {} is damaged", corrupt.block, corrupt.file);
    }
    tracing::error!(
        "backup {} is kept and holds these blocks as they are: find the cause before it is the only backup",
        entry.id
    );
    Ok(Outcome::ProblemFound)
}

/// Receives the server's WAL while a backup is taken, which waits for what it needs of it to be in the archive.
fn beside_wal(
    context: &Context,
    repository: &Repository,
    take: impl FnOnce() -> Result<BackupEntry, backup::Error>,
) -> Result<BackupEntry, Error> {
    let session = repository.session();
    let spool = temporary_folder()?;
    let options = receive::Options {
        slot: None,
        slot_creation: SlotCreation::ForABackup,
        storing: Storing::Every(TAIL_INTERVAL),
        on_failure: OnFailure::End,
        spool: spool.path().to_owned(),
        system_identifier: Some(repository.layout().system_identifier()),
    };
    let (stop, stopped) = watch::channel(false);
    let (begun, has_begun) = mpsc::channel();
    let receiver = Receiver::new(
        session.clone(),
        context.settings.identities.clone(),
        context.pipeline_into(session, cores().min(QUEUED_BLOCKS))?,
        context.second(context.settings.retry_timeout, 1)?,
        options,
        stopped,
    );
    let receiver = receiver.telling(begun);
    thread::scope(|scope| {
        let receiving = scope.spawn(|| receiver.run());
        // It has failed if it is gone before; what it says then is the reason.
        let taken = has_begun.recv().map(|()| take());
        stop.send_replace(true);
        let outcome = receiving.join();
        outcome.unwrap_or_else(|panic| resume_unwind(panic))?;
        Ok(taken.unwrap_or(Err(backup::Error::BrokenOff))?)
    })
}

/// A folder for what is brought from the server. It holds WAL in the clear.
fn temporary_folder() -> Result<TemporaryFolder, Error> {
    TemporaryFolder::make(&std::env::temp_dir(), "walhalla-backup").map_err(|source| {
        Error::System {
            doing: "make a temporary directory",
            source,
        }
    })
}

/// Parts that are packed at a time.
pub(super) fn threads(context: &Context) -> usize {
    cores()
        .min(context.settings.upload_concurrency)
        .min(MOST_PARTS)
}

pub(super) fn report(context: &Context, entry: &BackupEntry) -> Result<(), output::Error> {
    if context.global.json {
        return output::json(&backup_list::Row::from(entry));
    }
    let (size, stored) = (HumanBytes(entry.size_bytes), HumanBytes(entry.stored_bytes));
    output::line(&format!(
        "{}  {size} in {} files, {stored} stored, WAL {} to {}",
        entry.id, entry.files, entry.start_lsn, entry.stop_lsn
    ))
}
