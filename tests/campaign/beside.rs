//! What runs beside the server, and comes and goes at any moment of a life: the daemon, `wal-receive`, and work ahead.
//!
//! ```text
//! Life::stir, between deeds: on, off, SIGHUP ─▶ Companion ◀─ Unrest, at any moment: SIGKILL, SIGTERM, SIGHUP, and on again
//!            └─▶ settings: upload_concurrency, prefetch_segments
//! ```
//!
//! A commit whose client waits for a receiver with `--synchronous` is in the store when it is acknowledged. Only clients
//! wait, by a setting of their session: a copy that is restored waits for nobody.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use fastrand::Rng;
use walhalla_postgres::Lsn;

use crate::companion::{Companion, DAEMON, RECEIVER};
use crate::depot::PATIENCE;
use crate::life::Life;
use crate::model::SEGMENT_BYTES;
use crate::support::{Area, eventually};

/// How long nothing happens to what runs beside the server.
const LULL: Duration = Duration::from_millis(2500);
/// A thread that panics leaves its lock poisoned.
const TOLD: &str = "what went wrong beside the server is told above";

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
}

impl Life {
    /// Switches what runs beside the server, and work ahead, on and off.
    pub fn stir(&mut self) {
        self.stir_settings();
        self.stir_daemon();
        self.stir_receiver();
        self.count_blows();
    }

    /// Counts what happened to the companions since this was done last. None of them ended by itself.
    pub fn count_blows(&mut self) {
        for mut companion in [self.beside.daemon(), self.beside.receiver()] {
            companion.must_run();
            for (fault, count) in std::mem::take(&mut companion.counts) {
                *self.score.faults.entry(fault).or_default() += count;
            }
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
        self.write_settings();
    }

    fn write_settings(&mut self) {
        for (key, value) in [
            ("upload_concurrency", self.beside.upload_concurrency),
            ("prefetch_segments", self.beside.prefetch_segments),
        ] {
            self.journal.note(&format!("{key} = {value}"));
            self.depot.set(key, &value.to_string());
        }
    }

    /// From here on `wal-fetch` starts processes that fetch ahead: only without a daemon does it need them.
    pub fn fetch_ahead(&mut self) {
        self.part_from_daemon();
        self.beside.prefetch_segments = 16;
        self.write_settings();
    }

    fn stir_daemon(&mut self) {
        let mut daemon = self.beside.daemon();
        daemon.must_run();
        match (daemon.is_on(), self.rng.u32(..10)) {
            (true, 0..3) => {
                drop(daemon);
                self.part_from_daemon();
            }
            (true, 3..6) => daemon.reload(),
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
