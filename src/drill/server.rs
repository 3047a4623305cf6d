//! The server of a drill.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::process::{Pid, Signal, kill_process};

use super::Error;
use super::account::Account;
use super::binaries::Binaries;
use super::configuration::Prepared;
use super::scratch::Scratch;
use crate::progress::is_interrupted;
use crate::server::postmaster;

/// How often something is looked at that is waited for.
const PAUSE: Duration = Duration::from_millis(50);
/// How long a server that is thrown away may take to end.
const LAST_LIMIT: Duration = Duration::from_secs(20);
/// The hidden command that becomes the server.
pub const COMMAND: &str = "drill-server";
/// The server's log in the scratch directory.
pub const LOG: &str = "server.log";
/// How much of a log is read.
const LOG_BYTES: usize = 1 << 20;
/// How many lines of a log are told.
const TOLD_LINES: usize = 5;

/// A server that runs, or ran.
#[derive(Debug)]
pub struct Server {
    child: Child,
    data: PathBuf,
    log: PathBuf,
    is_over: bool,
}

/// How waiting for a server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// It accepts connections that write.
    Ready,
    /// It ended.
    Ended(ExitStatus),
    /// It did neither in time.
    TimedOut,
}

impl Server {
    /// Starts the server. It ends when this process does, however that ends.
    ///
    /// # Errors
    /// [`Error::Local`].
    pub fn start(
        program: &Path,
        binaries: &Binaries,
        prepared: &Prepared,
        scratch: &Scratch,
        account: &Account,
    ) -> Result<Self, Error> {
        let (log, output) = scratch.create(LOG, account)?;
        let errors = output.try_clone().map_err(Error::local("open", &log))?;
        let mut command = account.command(program);
        command.args([COMMAND, "--"]).arg(binaries.server());
        command.args(&prepared.options);
        let child = { without_surroundings(&mut command) }
            .current_dir(scratch.path())
            // A signal of the terminal is for the drill, which ends the server in order.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .map_err(Error::local("start", program))?;
        Ok(Self {
            child,
            data: scratch.data(),
            log,
            is_over: false,
        })
    }

    /// Waits until the server has recovered and accepts writes, or has ended.
    ///
    /// # Errors
    /// [`Error::Interrupted`]; [`Error::Local`].
    pub fn wait_until_ready(&mut self, limit: Duration) -> Result<Waited, Error> {
        let begun = Instant::now();
        loop {
            if is_interrupted() {
                return Err(Error::Interrupted);
            }
            if let Some(status) = self.ended()? {
                return Ok(Waited::Ended(status));
            }
            if postmaster::is_ready(&self.data) || self.says_that_it_is_ready() {
                return Ok(Waited::Ready);
            }
            if begun.elapsed() > limit {
                return Ok(Waited::TimedOut);
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Stops the server with a checkpoint; returns whether it ended as it should.
    ///
    /// # Errors
    /// [`Error::Interrupted`]; [`Error::Local`].
    pub fn stop(&mut self, limit: Duration) -> Result<bool, Error> {
        self.signal(Signal::INT);
        let begun = Instant::now();
        while begun.elapsed() < limit {
            if is_interrupted() {
                return Err(Error::Interrupted);
            }
            if let Some(status) = self.ended()? {
                return Ok(status.success());
            }
            std::thread::sleep(PAUSE);
        }
        Ok(false)
    }

    /// In the log: 9.6 has no status in `postmaster.pid`.
    fn says_that_it_is_ready(&self) -> bool {
        self.log_text()
            .contains("database system is ready to accept connections")
    }

    /// Whether recovery began: before that, the server did not really start.
    pub fn began_to_recover(&self) -> bool {
        self.log_text().contains("database system was ")
    }

    /// Whether recovery stopped at its target, and not because WAL ended.
    pub fn stopped_at_target(&self) -> bool {
        self.log_text().contains("recovery stopping ")
    }

    /// What the server's log says of its end: its first fatal error with what follows, or else its last lines.
    pub fn last_words(&self) -> String {
        let log = self.log_text();
        let lines: Vec<&str> = log.lines().collect();
        let is_fatal = |line: &str| line.contains("FATAL:") || line.contains("PANIC:");
        let first = lines.iter().position(|line| is_fatal(line));
        let first = first.unwrap_or(lines.len().saturating_sub(TOLD_LINES));
        let told = lines.into_iter().skip(first).take(TOLD_LINES);
        told.collect::<Vec<_>>().join("\n")
    }

    fn log_text(&self) -> String {
        tail(&self.log)
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>, Error> {
        let ended = self.child.try_wait();
        let ended = ended.map_err(Error::local("wait for the server of", &self.data))?;
        self.is_over |= ended.is_some();
        Ok(ended)
    }

    fn signal(&self, signal: Signal) {
        // A process that has ended and was not waited for takes a signal, too.
        if let Err(error) = kill_process(Pid::from_child(&self.child), signal) {
            tracing::debug!("the drill's server took no signal: {error}");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        self.signal(Signal::QUIT);
        let begun = Instant::now();
        while begun.elapsed() < LAST_LIMIT {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(PAUSE);
        }
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Leaves the program no more of this process's environment than where programs and libraries are: no credentials of the
/// store, and none of libpq's variables.
pub(super) fn without_surroundings(command: &mut Command) -> &mut Command {
    let kept = ["PATH", "LD_LIBRARY_PATH", "TMPDIR"];
    let kept = kept.map(|name| (name, std::env::var_os(name)));
    command.env_clear().env("LC_ALL", "C");
    for (name, value) in kept {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    command
}

/// The end of a log, which is no link: what it holds is shown to who runs the drill.
pub(super) fn tail(path: &Path) -> String {
    let no_link = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or_default();
    let mut bytes = Vec::new();
    let opened = File::options().read(true).custom_flags(no_link).open(path);
    if let Err(error) = opened.and_then(|mut log| log.read_to_end(&mut bytes)) {
        tracing::debug!("{} cannot be read: {error}", path.display());
    }
    let from = bytes.len().saturating_sub(LOG_BYTES);
    String::from_utf8_lossy(bytes.get(from..).unwrap_or_default()).into_owned()
}
