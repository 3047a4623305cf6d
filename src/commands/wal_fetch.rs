//! `walhalla wal-fetch NAME PATH`

use std::path::Path;
use std::time::Duration;

use walhalla_postgres::WalFileName;
use walhalla_postgres::wal::cluster::Cluster;

use super::{Context, Outcome, wal_prefetch};
use crate::cli::WalFetch;
use crate::error::{Error, FAILED, STOP_RECOVERY, USAGE};
use crate::output;
use crate::restore::stage::{self, Seal};
use crate::server::recovery_mode::{RecoveryMode, mode_of};
use crate::server::waiting_server::{PATIENCE, times};
use crate::server::{self, control_file};
use crate::wal::fetcher::{Fetcher, NewFile};

pub(super) fn run(context: &Context, arguments: &WalFetch) -> Result<Outcome, Error> {
    let file: WalFileName = arguments.name.parse().map_err(server::Error::from)?;
    // Before anything that can take long: whoever comes later takes the place over.
    let target = NewFile::create(&arguments.path)?;
    let pgdata = control_file::find_data_directory(arguments.pgdata.as_deref(), &arguments.path);
    let mode = recovery_mode(arguments);
    let control = pgdata.and_then(|pgdata| Ok((control_file::read(&pgdata)?, pgdata)));
    let target = match &control {
        Ok((control, pgdata)) => {
            match wal_prefetch::take(context, arguments, file, (pgdata, control), target)? {
                Some(target) => target,
                None => return answer(context, arguments),
            }
        }
        Err(_) => target,
    };
    let (repository, cluster) = match (arguments.cluster.system_identifier, control) {
        (None, Ok((control, pgdata))) => {
            let most = patience(mode, context.settings.retry_timeout);
            (
                context.hasty_repository_of(&pgdata, &control, &times(&pgdata, most))?,
                Some(Cluster::from(&control)),
            )
        }
        // Without a data directory, the store's only cluster is meant.
        (None, Err(crate::server::Error::NotADataDirectory { .. }))
            if arguments.pgdata.is_none() =>
        {
            (context.repository(&arguments.cluster)?, None)
        }
        (None, Err(error)) => return Err(error.into()),
        (Some(_), _) => (context.repository(&arguments.cluster)?, None),
    };
    Fetcher {
        repository: &repository,
        cluster,
        ends_recovery: mode == RecoveryMode::Archive,
    }
    .fetch(file, target)?;
    answer(context, arguments)
}

fn answer(context: &Context, arguments: &WalFetch) -> Result<Outcome, Error> {
    if context.global.json {
        output::json(&serde_json::json!({ "file": arguments.name, "path": arguments.path }))?;
    }
    Ok(Outcome::Done)
}

/// How long requests may go on failing. A standby tries again by itself, and may be promoted meanwhile; in archive recovery
/// a failure stops the server.
fn patience(mode: RecoveryMode, retry_timeout: Duration) -> Duration {
    match mode {
        RecoveryMode::Standby => retry_timeout.min(PATIENCE),
        RecoveryMode::Archive | RecoveryMode::None => retry_timeout,
    }
}

/// Answers from a sealed plan: no settings, no store.
pub(super) fn from_plan(arguments: &WalFetch) -> Result<Outcome, Error> {
    if let (Some(plan), Some(seal)) = (&arguments.plan, &arguments.seal) {
        let seal = Seal {
            plan: plan.clone(),
            sha256: seal.clone(),
        };
        stage::serve(&seal, &arguments.name, &arguments.path)?;
    }
    Ok(Outcome::Done)
}

/// What the server whose `restore_command` this is is doing.
pub(super) fn recovery_mode(arguments: &WalFetch) -> RecoveryMode {
    let pgdata = control_file::find_data_directory(arguments.pgdata.as_deref(), &arguments.path);
    pgdata.map_or(RecoveryMode::None, |pgdata| mode_of(&pgdata))
}

/// The exit code that makes the server do the right thing when a file could not be fetched and may be there.
pub(super) fn exit_code(mode: RecoveryMode, error: &Error) -> u8 {
    match mode {
        RecoveryMode::Archive => STOP_RECOVERY,
        RecoveryMode::Standby => FAILED,
        RecoveryMode::None => error.exit_code(),
    }
}

/// The exit code for a `wal-fetch` that cannot be understood.
pub(super) fn usage_exit_code() -> u8 {
    match mode_of(Path::new(".")) {
        RecoveryMode::Archive => STOP_RECOVERY,
        RecoveryMode::Standby | RecoveryMode::None => USAGE,
    }
}
