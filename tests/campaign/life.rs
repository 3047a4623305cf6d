//! The life of a cluster: one server that counts, its archive, and what is known of both.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;
use walhalla_postgres::Lsn;

use crate::beside::Beside;
use crate::client::{Client, Crowd};
use crate::depot::{Depot, PATIENCE, archive_settings};
use crate::model::{Backup, Model, Moment, RestorePoint, Stop};
use crate::report::{Journal, Score};
use crate::support::{Area, Cluster, Outcome, Shape, eventually, run};

/// A cluster that lives, and all that is known of it.
pub struct Life {
    pub version: u32,
    pub rng: Rng,
    /// The server that counts.
    pub primary: Cluster,
    pub timeline: u32,
    pub depot: Depot,
    pub beside: Beside,
    pub model: Model,
    pub journal: Journal,
    pub score: Score,
    /// The tablespace in which something of the cluster lies, if it has one.
    pub tablespace: Option<u32>,
    /// Whether a lost server left a hole in the archive: what the judge knows does not hold of such a one.
    pub has_hole: bool,
    ids: AtomicI64,
    serial: u32,
    pub area: Area,
}

/// More than this are only taken when a deed asks for it: from each one there is a restore in each round.
const ENOUGH_BACKUPS: usize = 4;

/// Beside the settings of every test: what is archived is what the campaign says, and standbys ask often. A receiver may be
/// waited for, by clients that say so.
const SETTINGS: &str = "\
    checkpoint_timeout = 1h\n\
    wal_retrieve_retry_interval = 50ms\n\
    wal_keep_size = 64MB\n\
    synchronous_standby_names = 'walhalla'\n\
    synchronous_commit = local\n";

/// What commands say of segments that were archived or fetched in another way than by themselves.
const TRACES: [(&str, &str); 3] = [
    ("it was pushed ahead", "segments pushed ahead"),
    (
        "is archived by the daemon",
        "segments archived by the daemon",
    ),
    ("was fetched ahead", "segments fetched ahead"),
];

impl Life {
    pub fn begin(version: u32, title: String, mut rng: Rng) -> Self {
        let area = Area::new();
        let depot = Depot::draw(&area, &mut rng);
        let mut journal = Journal::new(title);
        journal.note(&format!(
            "PostgreSQL {version}, {} in {}",
            depot.describe(),
            area.root().display()
        ));
        let mut primary = Cluster::create(&area, "server1", Shape::small(version));
        primary.configure(SETTINGS);
        primary.configure(&archive_settings(&depot.walhalla));
        depot.walhalla.give_env(&mut primary);
        primary.start();
        let beside = Beside::new(&area, &mut rng);
        let mut life = Self {
            version,
            rng,
            primary,
            timeline: 1,
            depot,
            beside,
            model: Model::default(),
            journal,
            score: Score::default(),
            tablespace: None,
            has_hole: false,
            ids: AtomicI64::new(1),
            serial: 1,
            area,
        };
        life.model.begin(1, Vec::new());
        life.furnish();
        life
    }

    /// Databases that nobody uses would only make each restore longer.
    fn furnish(&mut self) {
        let mut client = self.client();
        client.ask("update pg_database set datistemplate = false where datname <> 'postgres'");
        client.ask("drop database template0");
        client.ask("drop database template1");
        client.prepare();
        drop(client);
        if self.chance(25) {
            self.make_tablespace();
        }
        self.work(10);
        self.back_up(&[]);
    }

    /// Each directory that is restored has a place of its own for it, beside the data directory.
    fn make_tablespace(&mut self) {
        let place = self.area.make_dir("server1.space");
        let place = place.display();
        let mut client = self.client();
        client.ask(&format!("create tablespace side location '{place}'"));
        client.ask("alter table tally set tablespace side");
        client.ask("create index on ledger (length(body)) tablespace side");
        let oid = client.ask("select oid::text from pg_tablespace where spcname = 'side'");
        self.tablespace = Some(oid.unwrap().parse().unwrap());
        self.note("with a tablespace");
    }

    pub fn note(&mut self, text: &str) {
        self.journal.note(text);
    }

    pub fn chance(&mut self, percent: u32) -> bool {
        self.rng.u32(..100) < percent
    }

    pub fn new_name(&mut self, kind: &str) -> String {
        self.serial += 1;
        format!("{kind}{}", self.serial)
    }

    pub fn client(&self) -> Client {
        Client::connect(&self.primary).expect("the primary runs")
    }

    pub fn look(&self) -> Moment {
        self.client().look().expect("the primary runs")
    }

    /// Commits so many rows, one after the other.
    pub fn work(&mut self, commits: usize) {
        let mut client = self.client();
        if self.waits_for_store() {
            client = client.wait_for_store().expect("the primary runs");
        }
        for _ in 0..commits {
            let id = self.ids.fetch_add(1, Ordering::Relaxed);
            let commit = client.commit(id, self.timeline);
            self.model.add(commit.expect("the primary runs"));
        }
    }

    /// Whether clients wait until what they commit is in the store: they would for ever where nobody brings it there.
    pub fn waits_for_store(&self) -> bool {
        self.beside.is_synchronous() && self.depot.takes_objects()
    }

    /// Segments become ready faster than one call after the other archives them.
    pub fn burst(&mut self) {
        for _ in 0..self.rng.usize(3..9) {
            self.work(1);
            self.client().ask("select pg_switch_wal()::text");
        }
    }

    /// The same on a server that no longer counts, on its timeline.
    pub fn work_on(&mut self, cluster: &Cluster, timeline: u32, commits: usize) {
        let mut client = Client::connect(cluster).expect("the server runs");
        for _ in 0..commits {
            let id = self.ids.fetch_add(1, Ordering::Relaxed);
            let commit = client.commit(id, timeline);
            self.model.add(commit.expect("the server runs"));
        }
    }

    /// Does something while clients commit, from when the first of them has; they stop by themselves when the server
    /// goes.
    pub fn meanwhile<T>(&mut self, clients: usize, work: impl FnOnce(&Self) -> T) -> T {
        let mut crowd = Crowd::new(&self.primary, self.timeline, &self.ids);
        crowd.waits_for_store = self.waits_for_store();
        let result = std::thread::scope(|scope| {
            crowd.enter(scope, clients);
            // A panic here would leave the clients at their work.
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                eventually("a commit", PATIENCE, || crowd.count() > 0);
                work(self)
            }));
            crowd.leave();
            result
        });
        let commits = crowd.commits();
        for commit in commits {
            self.model.add(commit);
        }
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Settles what was in doubt when the primary went, now that it runs again.
    pub fn settle(&mut self) {
        let mut client = self.client();
        let rows = client.rows();
        let now = client.look().expect("the primary runs");
        self.model.settle(self.timeline, &rows, now);
    }

    pub fn restore_point(&mut self) {
        let name = self.new_name("point");
        let (from, to) = self.client().restore_point(&name);
        let timeline = self.timeline;
        self.model.points.push(RestorePoint {
            name,
            timeline,
            from,
            to,
        });
    }

    /// Waits until all that was committed so far is in the archive.
    pub fn archive(&mut self) {
        let begun = Instant::now();
        let lsn = self.look().lsn;
        self.primary.archive_everything();
        self.model.archived(self.timeline, lsn);
        self.score.took("archiving", begun);
    }

    /// Another server's.
    pub fn archive_of(&mut self, cluster: &Cluster, timeline: u32) {
        let client = Client::connect(cluster);
        let lsn = client
            .expect("the server runs")
            .look()
            .expect("it runs")
            .lsn;
        cluster.archive_everything();
        self.model.archived(timeline, lsn);
    }

    pub fn has_enough_backups(&self) -> bool {
        self.model.backups.len() >= ENOUGH_BACKUPS
    }

    pub fn push_args<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        let mut all = vec!["backup-push", self.primary.data.to_str().unwrap()];
        all.extend_from_slice(args);
        all
    }

    /// Takes a backup that has to succeed, while clients write.
    pub fn back_up(&mut self, args: &[&str]) {
        let begun = Instant::now();
        self.note(&format!("backup-push {}", args.join(" ")));
        let outcome = self.meanwhile(2, |life| {
            let all = life.push_args(args);
            life.depot.walhalla.run_with(&life.primary, &all)
        });
        outcome.succeeds();
        self.score.took("backups", begun);
        assert_eq!(self.list_backups(), 1, "new backups in the list");
    }

    /// Reads the list of backups; returns how many are new. Those that were there must be there.
    pub fn list_backups(&mut self) -> usize {
        let list = self.depot.walhalla.run(&["backup-list", "--json"]);
        let list = list.succeeds().json();
        let listed: Vec<Backup> = list.as_array().unwrap().iter().map(backup).collect();
        let ids: BTreeSet<&String> = listed.iter().map(|backup| &backup.id).collect();
        for known in &self.model.backups {
            assert!(
                ids.contains(&known.id),
                "{known:?} is no longer in the list"
            );
        }
        let new = listed.len() - self.model.backups.len();
        self.score.backups += new;
        let newest: Vec<String> = listed
            .iter()
            .filter(|backup| self.model.backups.iter().all(|known| known.id != backup.id))
            .map(|backup| format!("  {backup:?}"))
            .collect();
        for line in newest {
            self.note(&line);
        }
        let of_standbys: Vec<String> = self
            .model
            .backups
            .iter()
            .filter(|backup| backup.is_of_standby)
            .map(|backup| backup.id.clone())
            .collect();
        self.model.backups = listed;
        for backup in &mut self.model.backups {
            backup.is_of_standby = of_standbys.contains(&backup.id);
        }
        new
    }

    /// A promotion has made this server, on a new timeline, the one that counts.
    pub fn take_over(&mut self, cluster: Cluster) -> Cluster {
        self.part_from_receiver();
        let old = std::mem::replace(&mut self.primary, cluster);
        let timeline = self.client().ask(
            "select ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int::text",
        );
        self.timeline = timeline.unwrap().parse().unwrap();
        let ancestors = history(&self.primary.data, self.timeline);
        self.note(&format!(
            "timeline {} with ancestors {ancestors:?} counts now",
            self.timeline
        ));
        self.model.begin(self.timeline, ancestors);
        old
    }

    /// The primary holds what the model says of a path that ends at `stop`.
    pub fn check_primary(&mut self, stop: Stop, what: &str) {
        let rows = self.client().rows();
        match self.model.compare(&rows, self.timeline, stop) {
            Ok(checked) => self.score.checks += checked,
            Err(difference) => panic!("{what}: {difference}"),
        }
    }

    /// Runs a command that has to succeed.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> Outcome {
        self.depot.walhalla.run(args).succeeds()
    }

    /// The command that restores into the directory of this name.
    pub fn restore_command(&self, name: &str, args: &[&str]) -> Command {
        let data = self.area.path(name);
        let mut command = self
            .depot
            .walhalla
            .command(&["restore", data.to_str().unwrap()]);
        command.args(args);
        if let Some(oid) = self.tablespace {
            let place = self.area.make_dir(&format!("{name}.space"));
            command.args(["--tablespace-map", &format!("{oid}={}", place.display())]);
        }
        command
    }

    /// Restores into a directory of this name; does not start it.
    #[track_caller]
    pub fn restore_to(&self, name: &str, args: &[&str]) -> Cluster {
        run(&mut self.restore_command(name, args)).succeeds();
        self.server_in(name)
    }

    /// The cluster in the directory of this name.
    pub fn server_in(&self, name: &str) -> Cluster {
        let mut server = Cluster::adopt(&self.area, self.version, self.area.path(name));
        // What was fetched ahead is to be counted.
        let settings = format!("{name}/postgresql.auto.conf");
        if let Ok(text) = std::fs::read_to_string(self.area.path(&settings)) {
            let text = text.replace(" wal-fetch ", " -v wal-fetch ");
            self.area.write(&settings, text);
        }
        self.depot.walhalla.give_env(&mut server);
        server
    }

    /// Removes a data directory, and what lies beside it under its name.
    pub fn remove(&mut self, name: &str) {
        self.read_log(&self.area.path(&format!("{name}.log")));
        for entry in std::fs::read_dir(self.area.root()).unwrap() {
            let entry = entry.unwrap();
            let file = entry.file_name().to_string_lossy().into_owned();
            let rest = file.trim_start_matches('.').strip_prefix(name);
            if !rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.')) {
                continue;
            }
            let removed = if entry.path().is_dir() {
                std::fs::remove_dir_all(entry.path())
            } else {
                std::fs::remove_file(entry.path())
            };
            // What fetches ahead removes its spool itself when the server has ended.
            let is_gone = removed.or_else(|error| match error.kind() {
                std::io::ErrorKind::NotFound => Ok(()),
                _ => Err(error),
            });
            is_gone.unwrap();
        }
    }

    /// Counts what was done ahead or by the daemon, as a server's log tells it.
    pub fn read_log(&mut self, path: &Path) {
        let text = std::fs::read(path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        for (words, what) in TRACES {
            *self.score.parts.entry(what).or_default() += text.matches(words).count();
        }
    }

    /// A moment within a span, by the seed; what happens at that moment the seed does not say.
    pub fn moment_within(&mut self, span: Duration) -> Duration {
        span.mul_f64(self.rng.f64())
    }
}

fn backup(shown: &serde_json::Value) -> Backup {
    let text = |field: &str| shown[field].as_str().unwrap().to_owned();
    Backup {
        id: text("id"),
        is_delta: text("kind") == "delta",
        is_of_standby: false,
        timeline: shown["timeline"].as_u64().unwrap().try_into().unwrap(),
        stop_lsn: text("stop_lsn").parse().unwrap(),
        stop_time: text("stop_time").parse().unwrap(),
    }
}

/// The ancestors of a timeline, from the server's own history file.
fn history(data: &Path, timeline: u32) -> Vec<(u32, Lsn)> {
    let path = data.join(format!("pg_wal/{timeline:08X}.history"));
    let text = std::fs::read_to_string(&path).unwrap();
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    lines
        .map(|line| {
            let mut fields = line.split('\t');
            let mut next = || fields.next().unwrap();
            (next().parse().unwrap(), next().parse().unwrap())
        })
        .collect()
}
