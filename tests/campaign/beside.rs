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
use walhalla_postgres::Lsn;

use crate::depot::PATIENCE;
use crate::life::Life;
use crate::model::SEGMENT_BYTES;
use crate::support::{Area, eventually};

/// How long nothing happens to what runs beside the server.
const LULL: Duration = Duration::from_millis(2500);
/// How long something that was ended stays away before it is started again.
const ABSENCE: Duration = Duration::from_millis(300);

/// A thread that panics leaves its lock poisoned.
const TOLD: &str = "what went wrong beside the server is told above";

/// What happens to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blow {
    Kill,
    Terminate,
    Reload,
}

/// A process that runs beside the server, or is not wanted now.
struct Companion {
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

    fn is_on(&self) -> bool {
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

    /// Ends it in one of the ways in which it can end.
    fn end(&mut self, rng: &mut Rng) {
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

/// The companions of a life, and how its program works ahead.
pub struct Beside {
    _unrest: Unrest,
    daemon: Arc<Mutex<Companion>>,
    receiver: Arc<Mutex<Companion>>,
    /// Whether the receiver, while it is on, has each piece stored before it says that it has it.
    receives_at_once: bool,
    /// The data directory of the server that has the receiver's slot.
    slot_on: Option<PathBuf>,
    has_ever_received: bool,
    upload_concurrency: usize,
    prefetch_segments: usize,
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
            receiver,
            receives_at_once: false,
            slot_on: None,
            has_ever_received: false,
            upload_concurrency: 2,
            prefetch_segments: 16,
        }
    }

    fn daemon(&self) -> MutexGuard<'_, Companion> {
        self.daemon.lock().expect(TOLD)
    }

    fn receiver(&self) -> MutexGuard<'_, Companion> {
        self.receiver.lock().expect(TOLD)
    }

    pub fn has_daemon(&self) -> bool {
        self.daemon().is_on()
    }

    pub fn has_receiver(&self) -> bool {
        self.receiver().is_on()
    }

    /// Whether there may be tails in the store.
    pub fn has_received(&self) -> bool {
        self.has_ever_received
    }

    /// Whether there is a receiver that stores at once what it gets.
    pub fn is_synchronous(&self) -> bool {
        self.receives_at_once && self.has_receiver()
    }

    /// What is on now.
    pub fn parts(&self) -> Vec<&'static str> {
        let parts = [
            (self.has_daemon(), "with the daemon"),
            (self.upload_concurrency > 1, "with push ahead"),
            (self.prefetch_segments > 0, "with prefetch"),
            (self.has_receiver(), "with wal-receive"),
            (self.is_synchronous(), "with wal-receive --synchronous"),
        ];
        let on = parts.into_iter().filter(|(is_on, _)| *is_on);
        on.map(|(_, name)| name).collect()
    }

    /// What happened to them since this was asked last.
    pub fn take_counts(&self) -> Vec<(&'static str, usize)> {
        let mut counts = Vec::new();
        for companion in [&self.daemon, &self.receiver] {
            counts.extend(std::mem::take(&mut companion.lock().expect(TOLD).counts));
        }
        counts
    }
}

impl Life {
    /// Switches what runs beside the server, and work ahead, on and off.
    pub fn stir(&mut self) {
        self.stir_settings();
        self.stir_daemon();
        self.stir_receiver();
        for (fault, count) in self.beside.take_counts() {
            *self.score.faults.entry(fault).or_default() += count;
        }
    }

    /// A running daemon hears of it with its next SIGHUP; until then the commands work without it.
    fn stir_settings(&mut self) {
        if self.chance(60) {
            return;
        }
        let (pushes, fetches) = (self.rng.usize(2..9), self.rng.usize(1..17));
        let beside = &mut self.beside;
        beside.upload_concurrency = if self.rng.bool() { pushes } else { 1 };
        beside.prefetch_segments = if self.rng.bool() { fetches } else { 0 };
        for (key, value) in [
            ("upload_concurrency", beside.upload_concurrency),
            ("prefetch_segments", beside.prefetch_segments),
        ] {
            self.journal.note(&format!("{key} = {value}"));
            self.depot.set(key, &value.to_string());
        }
    }

    fn stir_daemon(&mut self) {
        let mut daemon = self.beside.daemon();
        daemon.must_run();
        match (daemon.is_on(), self.rng.u32(..10)) {
            (true, 0..3) => {
                drop(daemon);
                self.part_from_daemon();
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

    fn stir_receiver(&mut self) {
        let is_on = {
            let mut receiver = self.beside.receiver();
            receiver.must_run();
            receiver.is_on()
        };
        match (is_on, self.rng.u32(..10)) {
            (true, 0..3) => self.part_from_receiver(),
            (false, 0..5) => {
                let at_once = self.rng.bool();
                self.receive(at_once);
            }
            _ => {}
        }
    }

    /// A receiver begins to follow the primary, in place of the one that may be there.
    pub fn receive(&mut self, at_once: bool) {
        self.part_from_receiver();
        let storing: &[&str] = if at_once {
            &["--synchronous"]
        } else {
            &["--interval", "1"]
        };
        self.note(&format!("wal-receive {} starts", storing.join(" ")));
        let arguments = ["wal-receive", "--slot", "walhalla", "--create-slot"];
        let mut command = self.depot.walhalla.command(&arguments);
        command
            .args(storing)
            .envs(self.primary.connection())
            .env("WALHALLA_SPOOL_DIR", self.area.make_dir("spool"));
        self.beside.receiver().start(command);
        if self.beside.slot_on.as_ref() != Some(&self.primary.data) {
            self.begin_slot();
        }
        self.beside.receives_at_once = at_once;
        self.beside.has_ever_received = true;
        self.beside.receiver().is_restless = self.rng.bool();
    }

    /// What was written before there was a slot is not received, and a tail behind a hole is of no use.
    fn begin_slot(&mut self) {
        let mut client = self.client();
        eventually("the receiver's slot", PATIENCE, || {
            self.beside.receiver().must_run();
            let slots = "select count(restart_lsn)::text from pg_replication_slots";
            client.ask(slots) != Some("0".to_owned())
        });
        self.archive();
        self.beside.slot_on = Some(self.primary.data.clone());
    }

    pub fn part_from_daemon(&mut self) {
        let mut daemon = self.beside.daemon();
        if daemon.is_on() {
            self.journal.note("the daemon ends");
            daemon.end(&mut self.rng);
        }
    }

    pub fn part_from_receiver(&mut self) {
        let mut receiver = self.beside.receiver();
        if receiver.is_on() {
            self.journal.note("wal-receive ends");
            receiver.end(&mut self.rng);
            receiver.is_restless = false;
        }
    }

    /// Up to here the store has all WAL of the primary: so it was told by `archive_command` and by the receiver.
    pub fn promised(&self) -> Lsn {
        let mut client = self.client();
        let received = client.ask(
            "select coalesce(max(flush_lsn), '0/0')::text from pg_stat_replication where application_name = 'walhalla'",
        );
        let archived = client.ask("select coalesce(last_archived_wal, '') from pg_stat_archiver");
        let received: Lsn = received.unwrap().parse().unwrap();
        received.max(self.end_of(&archived.unwrap()))
    }

    /// Where a segment of the timeline that counts ends. Of other files in the archive nothing is known.
    fn end_of(&self, file: &str) -> Lsn {
        let number = file.strip_prefix(&format!("{:08X}", self.timeline));
        let number = number.and_then(|number| u64::from_str_radix(number, 16).ok());
        // Sixteen digits: those of 4 GiB, and of the segment in them.
        number.map_or(Lsn::ZERO, |number| {
            let segments = (number >> 32) * ((1 << 32) / SEGMENT_BYTES) + (number & 0xFFFF_FFFF);
            Lsn((segments + 1) * SEGMENT_BYTES)
        })
    }
}
