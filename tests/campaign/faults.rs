//! What goes wrong in a life: processes that are killed, stores that are away, cut off or full.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::client::Client;
use crate::depot::{PATIENCE, SmallDisk, with_file_limit};
use crate::judge::{Effort, Goal};
use crate::life::Life;
use crate::support::{Cluster, Ending, Walhalla, eventually, host, run};

/// Longer than most commands on a small cluster, so that a kill finds them anywhere.
const SPAN: Duration = Duration::from_millis(250);
/// Processes of the server are looked for this long, and killed each at a moment of its own.
const HUNT: Duration = Duration::from_millis(600);

impl Life {
    /// kill -9 of the server while clients write.
    pub fn kill_server(&mut self) {
        let moment = self.moment_within(Duration::from_millis(120));
        self.note(&format!("kill -9 of the server {moment:?} after a commit"));
        let pid = self.primary.pid();
        self.meanwhile(3, |_| {
            // Any moment will do: there is nothing to wait for.
            std::thread::sleep(moment);
            kill_process(pid, Signal::KILL).unwrap();
        });
        self.primary.was_killed();
        self.score.fault("kill -9 of the server");
        self.primary.start();
        self.settle();
    }

    /// The server is gone at any moment, and its disk with it: what there is comes out of the store.
    pub fn lose_server(&mut self) {
        // Without one there is nothing in the store that is not archived.
        if self.chance(60) && !self.beside.is_synchronous() {
            self.receive(true);
        }
        let moment = self.moment_within(SPAN);
        self.note(&format!("the server is lost {moment:?} after a commit"));
        if self.chance(50) {
            self.burst();
        }
        let pid = self.primary.pid();
        let promised = self.meanwhile(3, |life| {
            std::thread::sleep(moment);
            let promised = life.promised();
            kill_process(pid, Signal::KILL).unwrap();
            for push in processes(life.area.root(), "wal-push") {
                // It may have ended by itself.
                let _ = kill_process(push, Signal::KILL);
            }
            promised
        });
        self.primary.was_killed();
        std::fs::remove_dir_all(&self.primary.data).unwrap();
        self.score.fault(if self.beside.is_synchronous() {
            "loss of a server with a synchronous receiver"
        } else if self.beside.has_receiver() {
            "loss of a server with a receiver"
        } else {
            "loss of a server"
        });
        self.part_from_receiver();
        self.model.archived(self.timeline, promised);
        self.live_after_loss();
    }

    /// A server at the end of what the store has takes the lost one's place.
    fn live_after_loss(&mut self) {
        let end = Goal::end(self);
        let plan = self.depot.walhalla.run(&["plan", "--json"]);
        let nearest = plan.json()["nearest"].as_str().map(str::to_owned);
        let mut args = vec!["--target-action", "promote"];
        if let Some(nearest) = &nearest {
            // Push ahead keeps no order: what its last batch had not yet stored is a hole before what it had.
            self.note(&format!("{plan}"));
            self.score.fault("a hole that push ahead left");
            self.has_hole = true;
            args.extend(nearest.split(' '));
        } else {
            assert!(self.plan(&end), "the end can be reached");
        }
        let name = self.new_name("server");
        let mut server = self.restore_to(&name, &args);
        server.start();
        server.wait_until_promoted();
        self.compare(&end, &server);
        let old = self.take_over(server);
        self.score.restores += 1;
        self.forget(old);
        self.work(8);
    }

    /// kill -9 of the archive command, again and again.
    pub fn kill_wal_pushes(&mut self) {
        self.note("kill -9 of wal-push");
        let seed = self.rng.u64(..);
        let killed = self.meanwhile(2, |life| {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut client = life.client();
            let (begun, mut killed) = (Instant::now(), 0);
            while begun.elapsed() < HUNT {
                client.ask("select pg_switch_wal()::text");
                killed += life.hunt("wal-push", &mut rng, Duration::from_millis(100));
            }
            killed
        });
        for _ in 0..killed {
            self.score.fault("kill -9 of wal-push");
        }
        self.work(3);
    }

    /// Kills processes of this life's program that run this command, each at a random moment; returns how many.
    fn hunt(&self, command: &str, rng: &mut fastrand::Rng, span: Duration) -> usize {
        let begun = Instant::now();
        let mut killed = 0;
        while begun.elapsed() < span {
            for pid in processes(self.area.root(), command) {
                std::thread::sleep(Duration::from_micros(rng.u64(..25_000)));
                // It may have ended by itself.
                killed += usize::from(kill_process(pid, Signal::KILL).is_ok());
            }
        }
        killed
    }

    /// kill -9 of backup-push, and then one that comes through.
    pub fn kill_backup_push(&mut self) {
        for _ in 0..2 {
            let moment = self.moment_within(SPAN * 2);
            let args = if self.chance(50) {
                &["--delta"][..]
            } else {
                &[]
            };
            self.note(&format!("kill -9 of backup-push {args:?} after {moment:?}"));
            let ending = self.meanwhile(2, |life| {
                let mut command = life.depot.walhalla.command(&life.push_args(args));
                Walhalla::kill_after(command.envs(life.primary.connection()), moment)
            });
            match ending {
                Ending::Killed => self.score.fault("kill -9 of backup-push"),
                Ending::Finished(outcome) => _ = outcome.succeeds(),
            }
            // Between the commit point and the exit a kill leaves a whole backup.
            assert!(self.list_backups() <= 1, "more than one new backup");
        }
        if !self.has_enough_backups() {
            self.back_up(&[]);
        }
    }

    /// kill -9 of restore: what it leaves does not start, unless all of it is there.
    pub fn kill_restore(&mut self) {
        self.archive();
        let name = self.new_name("half");
        let data = self.area.path(&name);
        let moment = self.moment_within(SPAN);
        self.note(&format!("kill -9 of restore after {moment:?}"));
        let mut command = self.restore_command(&name, &["--archive-mode", "off"]);
        match Walhalla::kill_after(&mut command, moment) {
            Ending::Killed => self.score.fault("kill -9 of restore"),
            Ending::Finished(outcome) => _ = outcome.succeeds(),
        }
        if data.join("global/pg_control").exists() {
            let mut whole = self.server_in(&name);
            whole.start();
            whole.wait_until_promoted();
            let end = Goal::end(self);
            self.compare(&end, &whole);
            whole.stop();
        } else if data.join("PG_VERSION").exists() {
            self.server_in(&name).start_and_fail();
        }
        self.remove(&name);
    }

    /// kill -9 of commands that only read, or make what can be made again.
    pub fn kill_readers(&mut self) {
        self.archive();
        for _ in 0..5 {
            let commands: [&[&str]; 7] = [
                &["verify", "--all"],
                &["wal-verify", "--deep"],
                &["plan"],
                &["backup-list"],
                &["wal-show"],
                &["wal-summarize"],
                &["wal-summarize", "--check"],
            ];
            let args = self.rng.choice(commands).unwrap();
            let moment = self.moment_within(Duration::from_millis(60));
            let mut command = self.depot.walhalla.command(args);
            match Walhalla::kill_after(&mut command, moment) {
                Ending::Killed => self.score.fault("kill -9 of verify, plan and their like"),
                Ending::Finished(outcome) => _ = outcome.succeeds(),
            }
        }
    }

    /// kill -9 of restore_command, and of what fetches ahead for it: recovery stops, and never ends early.
    pub fn kill_wal_fetches(&mut self) {
        self.archive();
        let name = self.new_name("fetching");
        self.note("kill -9 of wal-fetch in a recovery");
        if self.chance(50) {
            self.fetch_ahead();
        }
        let args = ["--wal", "on-demand", "--archive-mode", "off"];
        let mut server = self.restore_to(&name, &args);
        let seed = self.rng.u64(..);
        let is_over = AtomicBool::new(false);
        let (fetches, ahead) = std::thread::scope(|scope| {
            let hunter = scope.spawn(|| {
                let mut rng = fastrand::Rng::with_seed(seed);
                let (mut fetches, mut ahead) = (0, 0);
                while fetches < 3 && !is_over.load(Ordering::Relaxed) {
                    ahead += self.hunt("wal-prefetch", &mut rng, Duration::from_millis(20));
                    fetches += self.hunt("wal-fetch", &mut rng, Duration::from_millis(20));
                }
                (fetches, ahead)
            });
            // A killed restore_command ends the server (xlogarchive.c, `RestoreArchivedFile`).
            let is_up = (0..20).any(|_| server.starts_to_the_end());
            is_over.store(true, Ordering::Relaxed);
            assert!(is_up, "recovery did not end:\n{}", server.log_text());
            hunter.join().unwrap()
        });
        for _ in 0..fetches {
            self.score.fault("kill -9 of wal-fetch");
        }
        for _ in 0..ahead {
            self.score.fault("kill -9 of wal-prefetch");
        }
        let end = Goal::end(self);
        self.compare(&end, &server);
        server.stop();
        self.score.restores += 1;
        self.forget(server);
    }

    /// Nobody reaches the store; nothing is acknowledged, nothing taken for absent.
    pub fn outage(&mut self) {
        self.archive();
        let kind = self.depot.cut_off(&mut self.rng);
        self.note(kind);
        self.work(6);
        self.fail_to_archive();
        let plan = self.depot.walhalla.run(&["plan", "--json"]);
        assert_eq!(plan.code, Some(1), "without a store: {plan}");
        let push = self.push_args(&[]);
        let push = self.depot.walhalla.run_with(&self.primary, &push);
        push.exits_with(1).says(&["error:", "hint:"]);
        if self.chance(60) {
            self.burst();
        }
        self.work(3);
        self.depot.heal(&self.primary);
        self.score.fault(kind);
    }

    /// Every few requests something happens to one, while all the rest goes on.
    pub fn flaky_line(&mut self) {
        if !self.depot.is_behind_line() {
            return self.outage();
        }
        self.note("a flaky line");
        let before = self.depot.faults_met();
        self.depot.make_flaky(&mut self.rng);
        self.work(10);
        if !self.has_enough_backups() {
            self.back_up(&[]);
        }
        self.archive();
        let end = Goal::end(self);
        self.reach(&end, Effort::Rows);
        self.depot.heal(&self.primary);
        for _ in before..self.depot.faults_met() {
            self.score.fault("a request that was cut, lost or refused");
        }
    }

    /// The store has no room.
    pub fn full_store(&mut self) {
        self.archive();
        if !self.depot.tells_that_it_is_full() {
            // They would archive what the limited command cannot.
            self.part_from_daemon();
            self.part_from_receiver();
        }
        let kind = self.depot.fill(&self.primary);
        self.note(kind);
        // Before the archive command fails, behind which no backup would begin.
        let mut push = self.depot.walhalla.command(&self.push_args(&[]));
        push.envs(self.primary.connection());
        let outcome = run(&mut self.depot.limited(&push));
        let outcome = outcome.exits_with(1).says(&["error:"]);
        if self.depot.tells_that_it_is_full() {
            outcome.says(&["no space left", "hint:"]);
        }
        self.work(6);
        self.fail_to_archive();
        self.depot.heal(&self.primary);
        assert_eq!(self.list_backups(), 0, "backups that a full store took");
        self.score.fault(kind);
        self.work(3);
    }

    /// A segment is full, and the archive command fails on it.
    fn fail_to_archive(&mut self) {
        let mut client = self.client();
        let mut failed = || -> u64 {
            let count = client.ask("select failed_count::text from pg_stat_archiver");
            count.unwrap().parse().unwrap()
        };
        let before = failed();
        self.primary.switch_segment();
        eventually("the archive command to fail", PATIENCE, || {
            failed() > before
        });
    }

    /// There is no room where a restore is to go.
    pub fn full_target(&mut self) {
        self.archive();
        let name = self.new_name("narrow");
        let around = self.area.make_dir(&name);
        let inner = format!("{name}/data");
        let disk = host().is_root.then(|| SmallDisk::mount(around, 6));
        let mut command = self.restore_command(&inner, &["--archive-mode", "off"]);
        let (kind, outcome) = if disk.is_some() {
            let kind = "full data directory: no space left on the device";
            (kind, run(&mut command))
        } else {
            let kind = "full data directory: a limit on the length of files";
            (kind, run(&mut with_file_limit(&command)))
        };
        assert!(!self.area.path(&inner).join("global/pg_control").exists());
        drop(disk);
        outcome.exits_within(1..=4).says(&["error:"]);
        self.note(kind);
        self.score.fault(kind);
        self.remove(&name);
    }
}

impl Cluster {
    /// Starts the server and waits until its recovery has ended; no when the server ended before.
    fn starts_to_the_end(&mut self) -> bool {
        if !self.starts() {
            return false;
        }
        let begun = Instant::now();
        loop {
            if self.has_ended() {
                return false;
            }
            let is_up = Client::connect(self).is_ok_and(|mut client| {
                client.ask_quietly("select pg_is_in_recovery()::text") == Some("false".to_owned())
            });
            if is_up {
                return true;
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "recovery hangs:\n{}",
                self.log_text()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The processes of a life's program that run this command: its settings are in the life's own directory.
fn processes(area: &Path, command: &str) -> Vec<Pid> {
    let area = area.to_string_lossy();
    let is_one = |pid: &i32| {
        let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else {
            return false;
        };
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        let is_program = words
            .first()
            .is_some_and(|word| word.ends_with(b"walhalla"));
        let has_settings = words
            .iter()
            .any(|word| String::from_utf8_lossy(word).starts_with(&*area));
        is_program && has_settings && words.contains(&command.as_bytes())
    };
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let pids = pids.filter(is_one);
    pids.filter_map(Pid::from_raw).collect()
}
