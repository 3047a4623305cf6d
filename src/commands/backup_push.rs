//! `walhalla backup-push [PGDATA]`

use std::path::Path;

use indicatif::HumanBytes;

use super::{Context, Outcome, backup_list, cores, malloc};
use crate::backup;
use crate::backup::request::{Backup, DeltaOptions, Options};
use crate::backup::streamed::ReplicatedServer;
use crate::cli::BackupPush;
use crate::error::Error;
use crate::output;
use crate::repository::{BackupEntry, Repository};
use crate::server::control_file;

/// Parts that are packed at a time at most: each takes memory for its upload.
const MOST_PARTS: usize = 4;

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
    followed(context, &backup, |backup| backup.push())
}

fn streamed(context: &Context, options: Options) -> Result<Outcome, Error> {
    let session = context.session()?;
    let server = ReplicatedServer::connect(&session, context.settings.cluster)?;
    let control = server.control.clone();
    let identities = context.settings.identities.clone();
    let repository = Repository::new(session, identities, control.system_identifier);
    let mirror = context.mirror_of(&repository, None)?;
    let pipeline = context.pipeline(&repository)?;
    let folder = tempfile::tempdir().map_err(|source| Error::System {
        doing: "make a temporary directory",
        source,
    })?;
    let backup = Backup {
        mirror: mirror.as_ref(),
        pgdata: folder.path(),
        control: &control,
        repository: &repository,
        pipeline: &pipeline,
        options,
    };
    followed(context, &backup, |backup| backup.push_streamed(server))
}

fn options(context: &Context, arguments: BackupPush) -> Options {
    Options {
        label: arguments.label,
        annotations: arguments.annotations.into_iter().collect(),
        permanent: arguments.permanent,
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
    take: impl FnOnce(&Backup) -> Result<BackupEntry, backup::Error>,
) -> Result<Outcome, Error> {
    let following = context.following(backup.repository, backup.mirror);
    if let Some(following) = &following {
        following.prepare()?;
    }
    let entry = take(backup)?;
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
