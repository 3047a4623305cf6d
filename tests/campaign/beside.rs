//! What runs beside the server, and comes and goes at any moment of a life: the daemon, `wal-receive`, and work ahead.
//!
//! ```text
//! Life::stir, between deeds: on, off, SIGHUP ─▶ Companion ◀─ Unrest, at any moment: SIGKILL, SIGTERM, SIGHUP, and on again
//!            └─▶ settings: upload_concurrency, prefetch_segments
//! ```
//!
//! A commit whose client waits for a receiver with `--synchronous` is in the store when it is acknowledged. Only clients
//! wait, by a setting of their session: a copy that is restored waits for nobody.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rustix::process::{Pid, Signal, kill_process};

use crate::depot::PATIENCE;
use crate::life::Life;
use crate::support::Area;

/// How long nothing happens to what runs beside the server.
const LULL: Duration = Duration::from_millis(2500);
/// How long something that was ended stays away before it is started again.
const ABSENCE: Duration = Duration::from_millis(300);

/// What happens to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blow {
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
    is_restless: bool,
    counts: BTreeMap<&'static str, usize>,
}

struct Running {
    command: Command,
    child: Child,
}

const DAEMON: &[(Blow, &str)] = &[
    (Blow::Kill, "kill -9 of the daemon"),
    (Blow::Terminate, "SIGTERM of the daemon"),
    (Blow::Reload, "SIGHUP of the daemon"),
];
const RECEIVER: &[(Blow, &str)] = &[
    (Blow::Kill, "kill -9 of wal-receive"),
    (Blow::Terminate, "SIGTERM of wal-receive"),
];

impl Companion {
    fn new(log: PathBuf, blows: &'static [(Blow, &'static str)]) -> Self {
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

    fn start(&mut self, mut command: Command) {
        let log = File::options().create(true).append(true).open(&self.log);
        command.stdout(Stdio::null()).stderr(log.unwrap());
        let child = command.spawn().unwrap();
        self.running = Some(Running { command, child });
    }

    /// It does not end by itself.
    fn must_run(&mut self) {
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

    /// Ends it in one of the ways in which it can end.
    pub fn end(&mut self, rng: &mut Rng) {
        let ends = &self.blows[..2];
        if self.is_on() {
            self.strike(*rng.choice(ends).unwrap());
            self.running = None;
        }
    }

    /// What may happen at any moment; if it ends by that it is started again.
    fn suffer(&mut self, rng: &mut Rng) {
        let blow = *rng.choice(self.blows).unwrap();
        self.strike(blow);
        if blow.0 != Blow::Reload {
            std::thread::sleep(ABSENCE.mul_f64(rng.f64()));
            let running = self.running.take().unwrap();
            self.start(running.command);
        }
    }
}

impl Drop for Companion {
    fn drop(&mut self) {
        if let Some(running) = &mut self.running {
            let _ = running.child.kill();
            let _ = running.child.wait();
        }
    }
}

/// Something happens to what runs beside the server, whatever else goes on; until it is dropped.
struct Unrest {
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Unrest {
    fn begin(companions: [Arc<Mutex<Companion>>; 2], mut rng: Rng) -> Self {
        let (end, ended) = channel();
        let thread = std::thread::spawn(move || disturb(&companions, &mut rng, &ended));
        Self {
            end: Some(end),
            thread: Some(thread),
        }
    }
}

fn disturb(companions: &[Arc<Mutex<Companion>>; 2], rng: &mut Rng, ended: &Receiver<()>) {
    while ended.recv_timeout(LULL.mul_f64(rng.f64())) == Err(RecvTimeoutError::Timeout) {
        let mut companion = companions[rng.usize(..companions.len())].lock().unwrap();
        if companion.is_on() && companion.is_restless {
            companion.must_run();
            companion.suffer(rng);
        }
    }
}

impl Drop for Unrest {
    fn drop(&mut self) {
        drop(self.end.take());
        // What it found wrong is known by the lock that it left poisoned.
        let _ = self.thread.take().unwrap().join();
    }
}

/// The companions of a life.
pub struct Beside {
    _unrest: Unrest,
    daemon: Arc<Mutex<Companion>>,
}

impl Beside {
    pub fn new(area: &Area, rng: &mut Rng) -> Self {
        let companion = |name: &str, blows| {
            let log = area.path(&format!("{name}.log"));
            Arc::new(Mutex::new(Companion::new(log, blows)))
        };
        let daemon = companion("daemon", DAEMON);
        let receiver = companion("receiver", RECEIVER);
        let both = [Arc::clone(&daemon), Arc::clone(&receiver)];
        Self {
            _unrest: Unrest::begin(both, rng.fork()),
            daemon,
        }
    }

    pub fn daemon(&self) -> MutexGuard<'_, Companion> {
        self.daemon
            .lock()
            .expect("what happened to the daemon is told above")
    }

    /// What happened to them since this was asked last.
    pub fn take_counts(&self) -> BTreeMap<&'static str, usize> {
        std::mem::take(&mut self.daemon().counts)
    }
}

impl Life {
    /// Switches what runs beside the server on, off, or to something else.
    pub fn stir(&mut self) {
        self.stir_daemon();
        for (fault, count) in self.beside.take_counts() {
            *self.score.faults.entry(fault).or_default() += count;
        }
    }

    fn stir_daemon(&mut self) {
        let mut daemon = self.beside.daemon();
        daemon.must_run();
        match (daemon.is_on(), self.rng.u32(..10)) {
            (true, 0..3) => {
                self.journal.note("the daemon ends");
                daemon.end(&mut self.rng);
            }
            (true, 3..6) => daemon.strike(DAEMON[2]),
            (false, 0..5) => {
                self.journal.note("the daemon starts");
                daemon.start(self.depot.walhalla.command(&["daemon"]));
                daemon.is_restless = self.rng.bool();
            }
            _ => {}
        }
    }
}
