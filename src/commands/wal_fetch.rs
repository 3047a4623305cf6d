//! `walhalla wal-fetch NAME PATH`

use std::path::Path;

use super::{Context, Outcome};
use crate::cli::WalFetch;
use crate::error::{Error, FAILED, STOP_RECOVERY, USAGE};
use crate::output;
use crate::postgres::{ControlFile, WalFileName, control};
use crate::restore::stage;
use crate::wal::pages::Cluster;
use crate::wal::{self, fetcher::Fetcher};

/// What the server that asks is doing, which decides what it makes of an exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecoveryMode {
    /// Archive recovery: at 1 to 125 it ends recovery and promotes, above that it stops.
    Archive,
    /// A standby: at 1 to 125 it tries again.
    Standby,
    /// No server in recovery asks.
    None,
}

pub(super) fn run(context: &Context, arguments: &WalFetch) -> Result<Outcome, Error> {
    let file: WalFileName = arguments.name.parse()?;
    let pgdata = control::find_data_directory(arguments.pgdata.as_deref(), &arguments.path);
    let control = pgdata.and_then(|pgdata| ControlFile::read(&pgdata));
    let (repository, cluster) = match (arguments.cluster.system_identifier, control) {
        (None, Ok(control)) => (
            context.repository_of(&control)?,
            Some(Cluster::from(&control)),
        ),
        // Without a data directory, the store's only cluster is meant.
        (None, Err(crate::postgres::Error::NotADataDirectory { .. }))
            if arguments.pgdata.is_none() =>
        {
            (context.repository(&arguments.cluster)?, None)
        }
        (None, Err(error)) => return Err(error.into()),
        (Some(_), _) => (context.repository(&arguments.cluster)?, None),
    };
    let fetched = Fetcher {
        repository: &repository,
        cluster,
    }
    .fetch(file, &arguments.path);
    if let Err(wal::Error::NotArchived { .. }) = fetched
        && recovery_mode(arguments) == RecoveryMode::Archive
    {
        // Of an absent file recovery makes the end of the archive, and of a store with nothing in
        // it, perhaps one that is not mounted, the end of the cluster.
        repository.must_be_known()?;
    }
    fetched?;
    if context.global.json {
        output::json(&serde_json::json!({ "file": arguments.name, "path": arguments.path }))?;
    }
    Ok(Outcome::Done)
}

/// Answers from a sealed plan: no settings, no store.
pub(super) fn from_plan(arguments: &WalFetch) -> Result<Outcome, Error> {
    if let Some(plan) = &arguments.plan {
        stage::serve(plan, &arguments.name, &arguments.path)?;
    }
    Ok(Outcome::Done)
}

/// What the server whose `restore_command` this is is doing.
pub(super) fn recovery_mode(arguments: &WalFetch) -> RecoveryMode {
    let pgdata = control::find_data_directory(arguments.pgdata.as_deref(), &arguments.path);
    pgdata.map_or(RecoveryMode::None, |pgdata| mode_of(&pgdata))
}

fn mode_of(pgdata: &Path) -> RecoveryMode {
    let recovery_conf = std::fs::read_to_string(pgdata.join("recovery.conf"));
    let standby_mode = |text: &String| {
        let mut lines = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("standby_mode"));
        lines.any(|value| value.contains("on") || value.contains("true"))
    };
    if pgdata.join("standby.signal").exists() || recovery_conf.as_ref().is_ok_and(standby_mode) {
        RecoveryMode::Standby
    } else if pgdata.join("recovery.signal").exists() || recovery_conf.is_ok() {
        RecoveryMode::Archive
    } else {
        RecoveryMode::None
    }
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
