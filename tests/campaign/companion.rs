//! A process that runs beside the server, and what happens to it.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fastrand::Rng;
use rustix::process::{Pid, Signal, kill_process};

use crate::depot::PATIENCE;
use crate::support::eventually;

/// How long something that was ended stays away before it is started again.
const ABSENCE: Duration = Duration::from_millis(300);

/// What happens to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blow {
    Kill,
    Terminate,
    Reload,
}

/// A process that runs beside the server, or is not wanted now.
pub struct Companion {
    log: PathBuf,
    /// What can happen to it, and under which name that is counted.
    blows: &'static [(Blow, &'static str)],
    running: Option<Running>,
    /// Whether it is also ended and started again while other things happen.
    pub is_restless: bool,
    pub counts: BTreeMap<&'static str, usize>,
}

struct Running {
    command: Command,
    child: Child,
}

/// A daemon's.
pub const DAEMON: &[(Blow, &str)] = &[
    (Blow::Kill, "kill -9 of the daemon"),
    (Blow::Terminate, "SIGTERM of the daemon"),
    (Blow::Reload, "SIGHUP of the daemon"),
];
/// A receiver's. The first two of each end it.
pub const RECEIVER: &[(Blow, &str)] = &[
    (Blow::Kill, "kill -9 of wal-receive"),
    (Blow::Terminate, "SIGTERM of wal-receive"),
];

impl Companion {
    pub fn new(log: PathBuf, blows: &'static [(Blow, &'static str)]) -> Self {
        Self {
            log,
            blows,
            running: None,
            is_restless: false,
            counts: BTreeMap::new(),
        }
    }

    pub fn is_on(&self) -> bool {
        self.running.is_some()
    }

    pub fn start(&mut self, mut command: Command) {
        let log = File::options().create(true).append(true).open(&self.log);
        command.stdout(Stdio::null()).stderr(log.unwrap());
        let child = command.spawn().unwrap();
        self.running = Some(Running { command, child });
    }

    /// It does not end by itself.
    pub fn must_run(&mut self) {
        let Some(running) = &mut self.running else {
            return;
        };
        let ended = running.child.try_wait().unwrap();
        assert!(ended.is_none(), "ended by itself: {}", self.last_words());
    }

    fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Does this to it. What was told to end says that all is well.
    fn strike(&mut self, (blow, name): (Blow, &'static str)) {
        let running = self.running.as_mut().unwrap();
        let pid = Pid::from_child(&running.child);
        let signal = match blow {
            Blow::Kill => Signal::KILL,
            Blow::Terminate => Signal::TERM,
            Blow::Reload => Signal::HUP,
        };
        // One that has only just begun dies of any signal, as every program does.
        if blow != Blow::Kill {
            eventually("a handler of signals", PATIENCE, || {
                catches(pid, signal) || running.child.try_wait().unwrap().is_some()
            });
        }
        kill_process(pid, signal).unwrap();
        *self.counts.entry(name).or_default() += 1;
        if blow == Blow::Reload {
            return;
        }
        let begun = Instant::now();
        let ended = loop {
            if let Some(ended) = running.child.try_wait().unwrap() {
                break ended;
            }
            assert!(begun.elapsed() < PATIENCE, "{name}: it does not end");
            std::thread::sleep(Duration::from_millis(5));
        };
        let is_well = blow == Blow::Kill || ended.success();
        assert!(is_well, "{name}: {ended}\n{}", self.last_words());
    }

    /// Tells it to read its settings again.
    pub fn reload(&mut self) {
        let mut blows = self.blows.iter();
        let reload = blows.find(|(blow, _)| *blow == Blow::Reload);
        self.strike(*reload.expect("it has settings to read"));
    }

    /// Ends it in one of the ways in which it can end.
    pub fn end(&mut self, rng: &mut Rng) {
        let ends = &self.blows[..2];
        if self.is_on() {
            self.strike(*rng.choice(ends).unwrap());
            self.running = None;
        }
    }

    /// What may happen at any moment; if it ends by that it is started again.
    pub fn suffer(&mut self, rng: &mut Rng) {
        let blow = *rng.choice(self.blows).unwrap();
        self.strike(blow);
        if blow.0 != Blow::Reload {
            std::thread::sleep(ABSENCE.mul_f64(rng.f64()));
            let running = self.running.take().unwrap();
            self.start(running.command);
        }
    }
}

/// Whether a process has a handler for a signal.
fn catches(pid: Pid, signal: Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_pid())).unwrap();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = u64::from_str_radix(caught.unwrap().trim(), 16).unwrap();
    caught & (1 << (signal.as_raw() - 1)) != 0
}

impl Drop for Companion {
    fn drop(&mut self) {
        if let Some(running) = &mut self.running {
            let _ = running.child.kill();
            let _ = running.child.wait();
        }
    }
}
