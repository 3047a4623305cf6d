//! Fetching ahead for a server in recovery: what `wal-fetch` finds in the spool, and the process that brings it there.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use walhalla_postgres::wal::cluster::Cluster;
use walhalla_postgres::{ControlFile, WalFileName};

use super::{Context, Outcome};
use crate::cli::WalFetch;
use crate::daemon::protocol::Work;
use crate::error::Error;
use crate::prefetch::background::Background;
use crate::prefetch::spooled::Spooled;
use crate::server::recovery_mode::{RecoveryMode, mode_of};
use crate::server::wal_directory::WalDirectory;
use crate::server::{control_file, postmaster};
use crate::wal::fetcher::NewFile;

/// After standard input, output and error.
const FIRST_FREE_DESCRIPTOR: i32 = 3;
/// The name under which a server's startup process asks for a segment (xlogarchive.c, `RestoreArchivedFile`, called by
/// xlogrecovery.c, `XLogFileRead`). `pg_rewind` asks for them under their own names, backwards.
const ASKED_FOR: &str = "RECOVERYXLOG";

/// Hands the segment over from the spool, if it is there, and sees to it that the next ones come; else gives `target` back.
pub(super) fn take(
    context: &Context,
    arguments: &WalFetch,
    file: WalFileName,
    (pgdata, control): (&Path, &ControlFile),
    target: NewFile,
) -> Result<Option<NewFile>, Error> {
    let WalFileName::Segment(segment) = file else {
        return Ok(Some(target));
    };
    let is_wanted = context.settings.prefetch_segments > 0
        && arguments.cluster.system_identifier.is_none()
        && arguments
            .path
            .file_name()
            .is_some_and(|name| name == ASKED_FOR)
        && is_recovering(pgdata);
    if !is_wanted {
        return Ok(Some(target));
    }
    let Some(spooled) = context.spooled(pgdata, control) else {
        return Ok(Some(target));
    };
    let is_there = spooled.want(segment).and_then(|()| spooled.has(segment));
    let started = is_there.and_then(|is_there| {
        // Whoever brought it brings the next ones, too.
        if is_there || super::ask_daemon(context, pgdata, segment, Work::Fetch).is_some() {
            return Ok(());
        }
        start(&spooled)
    });
    if let Err(error) = started {
        super::spool_not_used(&error);
        return Ok(Some(target));
    }
    Ok(spooled.take(segment, target)?)
}

/// Whether a server in recovery runs in `pgdata`.
fn is_recovering(pgdata: &Path) -> bool {
    postmaster::is_running(pgdata) && mode_of(pgdata) != RecoveryMode::None
}

/// Starts the process that fetches ahead, unless one runs. It gets this process's command line, and outlives it.
fn start(spooled: &Spooled) -> std::io::Result<()> {
    if spooled.lock()?.is_none() {
        return Ok(());
    }
    let mut is_named = false;
    let arguments = std::env::args_os().skip(1).map(|argument| {
        if !is_named && argument == "wal-fetch" {
            is_named = true;
            return "wal-prefetch".into();
        }
        argument
    });
    let mut command = Command::new(std::env::current_exe()?);
    command.args(arguments.collect::<Vec<_>>());
    // The server waits for whoever has its standard error, and signals the group of its own command.
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(Stdio::null()).process_group(0);
    // Up to PostgreSQL 15 the startup process hands its open files on, and the room of a relation that is dropped meanwhile
    // would not become free.
    close_fds::set_fds_cloexec_threadsafe(FIRST_FREE_DESCRIPTOR, &[]);
    command.spawn().map(drop)
}

/// Fetches ahead until the server asks for nothing more.
pub(super) fn run(context: &Context, arguments: &WalFetch) -> Result<Outcome, Error> {
    let pgdata = control_file::find_data_directory(arguments.pgdata.as_deref(), &arguments.path)?;
    let control = control_file::read(&pgdata)?;
    let wal_directory = WalDirectory::of(&pgdata);
    let (Some(spooled), Some(wal_directory)) = (context.spooled(&pgdata, &control), wal_directory)
    else {
        return Ok(Outcome::Done);
    };
    let background = Background {
        repository: context.repository_of(&pgdata, &control)?,
        cluster: Cluster::from(&control),
        spooled,
        wal_directory,
        threads: context.settings.download_concurrency,
        most: context.settings.prefetch_segments,
    };
    background.run(|| is_recovering(&pgdata))?;
    Ok(Outcome::Done)
}
