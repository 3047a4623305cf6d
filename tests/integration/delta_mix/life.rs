//! The life of a cluster: work, backups, restarts, and branches of its history.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Instant;

use fastrand::Rng;

use super::load::{self, Load, Shared};
use super::model::{COLUMNS, LOCATIONS, Model, chance, one_of};
use super::sessions::run_session;
use super::state::{State, settle_sequences};
use super::workload::{Deck, Script, VALUES, beginning};
use crate::support::{Area, Cluster, Outcome, Shape, Store, Walhalla, host, run};

/// A cluster that lives, and all that is known of it.
pub struct Life {
    pub version: u32,
    pub rng: Rng,
    pub walhalla: Walhalla,
    pub cluster: Cluster,
    pub backups: Vec<Backup>,
    pub moments: Vec<Moment>,
    /// The branch of its history that it left, if it did.
    pub left: Option<Left>,
    pub journal: Journal,
    model: Model,
    deck: Deck,
    settings: Settings,
    /// Counts what can be restored to or from.
    clock: u32,
    pub area: Area,
}

struct Settings {
    has_checksums: bool,
    summarizes: bool,
}

#[derive(Clone)]
pub struct Backup {
    pub id: String,
    pub taken: u32,
    pub is_delta: bool,
    pub has_checksums: bool,
}

/// A moment at which nothing ran, and what it can be named by.
#[derive(Clone)]
pub struct Moment {
    pub taken: u32,
    pub state: State,
    pub name: String,
    pub lsn: String,
    pub time: String,
    model: Model,
}

/// A branch that ended when the cluster was restored to a moment and went on from there.
pub struct Left {
    pub timeline: String,
    /// The moment at which the history forks.
    pub fork: u32,
    /// When it was left.
    pub until: u32,
    pub end: State,
}

/// All that was done, shown when something fails.
pub struct Journal {
    begun: Instant,
    text: String,
}

impl Life {
    pub fn begin(version: u32, title: String, seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let area = Area::new();
        for at in 0..LOCATIONS {
            area.make_dir(&format!("space{at}"));
        }
        let store = Store::directory(&area);
        let walhalla = Walhalla::new(&area, &store);
        let mut journal = Journal::new(title);
        let (mut cluster, settings) = create(&area, version, &mut rng, &mut journal);
        walhalla.archive_from(&mut cluster);
        let mut life = Self {
            version,
            walhalla,
            cluster,
            backups: Vec::new(),
            moments: Vec::new(),
            left: None,
            journal,
            model: Model::new(version, area.root().to_owned()),
            deck: Deck::new(),
            settings,
            clock: 0,
            rng,
            area,
        };
        life.prepare_databases();
        for script in beginning(&mut life.model, &mut life.rng) {
            life.run(&script);
        }
        life
    }

    /// `template0` goes, as every restore would copy it.
    fn prepare_databases(&self) {
        let statements = [
            "update pg_database set datistemplate = false where datname = 'template0'",
            "drop database template0",
        ];
        run_session(&self.cluster, "postgres", &statements.map(str::to_owned));
        if self.version >= 10 {
            let statement = "create extension amcheck".to_owned();
            for database in ["postgres", "template1"] {
                run_session(&self.cluster, database, std::slice::from_ref(&statement));
            }
        }
    }

    fn run(&mut self, script: &Script) {
        self.journal.note(&format!(
            "in {}: {}",
            script.database,
            script.statements.join("; ")
        ));
        run_session(&self.cluster, &script.database, &script.statements);
    }

    /// Some pieces of work.
    pub fn work(&mut self) {
        for _ in 0..self.rng.u32(4..9) {
            let script = self.deck.deal(&mut self.model, &mut self.rng);
            self.run(&script);
        }
    }

    /// A moment to restore to: nothing runs, and no open transaction began in the segment in which it lies. A hot
    /// standby reads open prepared transactions from `pg_wal` by the segment's name on the timeline that it is on
    /// (xlogutils.c, `wal_segment_open`), which after a fork within the segment is another.
    pub fn hold_still(&mut self) {
        settle_sequences(&self.cluster);
        self.cluster.switch_segment();
        let taken = self.tick();
        let name = format!("moment_{taken}");
        let state = State::of(&self.cluster);
        let lsn = self.cluster.insert_lsn();
        let time = self.cluster.sql("select clock_timestamp()");
        self.cluster
            .sql(&format!("select pg_create_restore_point('{name}')"));
        mark_time(&self.cluster);
        self.journal.note(&format!("{name} at {lsn}, {time}"));
        self.moments.push(Moment {
            taken,
            state,
            name,
            lsn,
            time,
            model: self.model.clone(),
        });
    }

    fn tick(&mut self) -> u32 {
        self.clock += 1;
        self.clock
    }

    /// A rollback is not flushed, and servers before 17 do not start after a crash that lost that of a new file of an
    /// unlogged relation (docs/troubleshooting.md, "File exists"); a commit that removes files takes it along.
    fn flush(&self) {
        self.cluster
            .sql("create table flushed (); drop table flushed");
    }

    /// Stops the server in some way and starts it again; sometimes page checksums are turned on or off between.
    pub fn restart(&mut self) {
        match self.rng.u32(..4) {
            0 => {
                self.journal.note("crash");
                self.flush();
                self.cluster.crash();
            }
            1 => {
                self.journal.note("kill");
                self.flush();
                self.cluster.kill();
            }
            _ => {
                self.journal.note("stop");
                self.cluster.stop();
                self.switch_checksums();
            }
        }
        self.cluster.start();
    }

    fn switch_checksums(&mut self) {
        if !knows_checksums(self.version, &self.cluster.data) || chance(&mut self.rng, 30) {
            return;
        }
        let has = !self.settings.has_checksums;
        let how = if has { "--enable" } else { "--disable" };
        self.journal.note(&format!("pg_checksums {how}"));
        run_pg_checksums(self.version, &self.cluster.data, how);
        self.settings.has_checksums = has;
    }

    pub fn promote(&mut self) {
        self.journal.note("stop, and promote to the next timeline");
        self.cluster.archive_everything();
        self.cluster.stop();
        self.cluster.promote();
    }

    /// Goes on from an earlier moment, restored from the archive, after a last look at what is left.
    pub fn go_back(&mut self) {
        let Some(moment) = one_of(&mut self.rng, &self.moments) else {
            return;
        };
        let Some(backup) = self.backup_before(moment.taken) else {
            return;
        };
        self.journal.note(&format!(
            "back to {} from {}, and on from there",
            moment.name, backup.id
        ));
        let until = self.tick();
        self.left = Some(Left {
            timeline: self.timeline(),
            fork: moment.taken,
            until,
            end: self.end(),
        });
        self.restore_to_go_on(&moment, &backup.id);
        self.model = moment.model;
        // As its control file tells.
        self.settings.has_checksums = backup.has_checksums;
    }

    fn restore_to_go_on(&mut self, moment: &Moment, backup: &str) {
        std::fs::remove_dir_all(&self.cluster.data).unwrap();
        self.empty_tablespaces();
        let args = ["--backup", backup, "--target-name", &moment.name];
        let args = [&args[..], &["--target-action", "promote"]].concat();
        let name = format!("life{}", self.clock);
        let mut cluster = self
            .walhalla
            .restore_archiving(&self.area, self.version, &name, &args);
        cluster.start();
        cluster.wait_until_promoted();
        mark_time(&cluster);
        State::of(&cluster).assert_same_as(&moment.state, &moment.name);
        self.cluster = cluster;
    }

    /// A backup that was taken before.
    fn backup_before(&mut self, taken: u32) -> Option<Backup> {
        let before = self.backups.iter().filter(|backup| backup.taken < taken);
        let before: Vec<Backup> = before.cloned().collect();
        one_of(&mut self.rng, &before)
    }

    fn timeline(&self) -> String {
        self.cluster.sql(
            "select ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int",
        )
    }

    /// As if the host had been lost: nothing is where tablespaces were.
    pub fn empty_tablespaces(&self) {
        for at in 0..LOCATIONS {
            let name = format!("space{at}");
            self.area.remove(&name);
            self.area.make_dir(&name);
        }
    }

    /// Stops the server with everything archived; returns what it held.
    pub fn end(&mut self) -> State {
        settle_sequences(&self.cluster);
        let state = State::of(&self.cluster);
        self.cluster.archive_everything();
        // When the server stops it archives the last segment, so that nothing comes after the archive's end
        // (xlog.c, `ShutdownXLOG`).
        self.cluster.stop();
        state
    }

    /// A full backup, with nothing else running.
    pub fn back_up_fully(&mut self) {
        self.back_up(&[], &[]);
    }

    /// A backup of some kind, and sometimes clients at work meanwhile.
    pub fn back_up_somehow(&mut self) {
        let args = self.draw_backup();
        let mut kinds = Vec::new();
        if chance(&mut self.rng, 60) {
            kinds = load::draw(&mut self.rng);
        }
        self.back_up(&args, &kinds);
    }

    fn back_up(&mut self, args: &[String], kinds: &[usize]) {
        self.journal.note(&format!("backup {}", args.join(" ")));
        if !kinds.is_empty() {
            self.journal
                .note(&format!("meanwhile: {}", load::describe(kinds)));
        }
        let shared = Shared::new(&self.cluster);
        let outcome = std::thread::scope(|scope| {
            let load = Load::start(scope, &shared, kinds);
            let outcome = self.push(args);
            load.stop();
            outcome
        });
        let outcome = outcome.succeeds();
        self.enter(args, &outcome.stderr);
    }

    fn push(&self, args: &[String]) -> Outcome {
        let mut all = vec!["backup-push", self.cluster.data.to_str().unwrap()];
        all.extend(args.iter().map(String::as_str));
        self.walhalla.run_with(&self.cluster, &all)
    }

    /// Full now and then; else a delta, mostly of the newest backup.
    fn draw_backup(&mut self) -> Vec<String> {
        if chance(&mut self.rng, 12) {
            return Vec::new();
        }
        let mut args = vec!["--delta".to_owned()];
        let parents = self.possible_parents();
        let parent = one_of(&mut self.rng, &parents);
        if let Some(parent) = parent.filter(|_| chance(&mut self.rng, 25)) {
            args.extend(["--parent".to_owned(), parent]);
        }
        let mut sources = vec!["auto", "wal", "wal", "pages"];
        if self.settings.summarizes && self.left.is_none() {
            sources.extend(["server", "server"]);
        }
        if let Some(source) = one_of(&mut self.rng, &sources).filter(|_| chance(&mut self.rng, 75))
        {
            args.extend(["--changed-blocks".to_owned(), source.to_owned()]);
        }
        args
    }

    /// The backups that are in this history, and taken with page checksums as they are now.
    fn possible_parents(&self) -> Vec<String> {
        let past = self.past();
        let fitting = past.filter(|backup| backup.has_checksums == self.settings.has_checksums);
        fitting.map(|backup| backup.id.clone()).collect()
    }

    /// The backups that are in this history.
    fn past(&self) -> impl DoubleEndedIterator<Item = &Backup> {
        let backups = self.backups.iter();
        backups.filter(|backup| !self.is_left(backup.taken))
    }

    /// Whether a delta is to come of these options: the newest backup, if none is named, was taken with page checksums as
    /// they are now.
    fn expects_delta(&self, args: &[String]) -> bool {
        let newest = self.past().next_back().unwrap();
        let fits = newest.has_checksums == self.settings.has_checksums;
        !args.is_empty() && (fits || args.contains(&"--parent".to_owned()))
    }

    /// Whether what was then is on the branch that was left.
    pub fn is_left(&self, taken: u32) -> bool {
        let left = self.left.as_ref();
        left.is_some_and(|left| left.fork < taken && taken < left.until)
    }

    fn enter(&mut self, args: &[String], messages: &str) {
        let list = self.walhalla.run(&["backup-list", "--json"]).succeeds();
        let shown = list.json().as_array().unwrap().last().unwrap().clone();
        let is_delta = shown["kind"] == "delta";
        self.journal.note(&format!(
            "  {} on {} of {}, {} bytes: {}",
            shown["id"],
            shown["timeline"],
            shown["parent"],
            shown["stored_bytes"],
            messages.replace('\n', " | ")
        ));
        if !self.backups.is_empty() {
            assert_eq!(is_delta, self.expects_delta(args), "is it a delta: {shown}");
        }
        let taken = self.tick();
        self.backups.push(Backup {
            id: shown["id"].as_str().unwrap().to_owned(),
            taken,
            is_delta,
            has_checksums: self.settings.has_checksums,
        });
    }

    /// A backup of the branch that was left is nobody's parent.
    pub fn refuse_parents_left_behind(&self) {
        let left = self
            .backups
            .iter()
            .filter(|backup| self.is_left(backup.taken));
        for backup in left {
            let args = ["--delta", "--parent", &backup.id].map(str::to_owned);
            self.push(&args).exits_within(1..=4).says(&[&backup.id]);
        }
    }
}

impl Journal {
    fn new(title: String) -> Self {
        Self {
            begun: Instant::now(),
            text: title,
        }
    }

    pub fn note(&mut self, text: &str) {
        let seconds = self.begun.elapsed().as_secs_f32();
        let short = text.replace(VALUES, "…").replace(COLUMNS, "…");
        let cut: String = short.chars().take(1000).collect();
        let _ = write!(self.text, "\n{seconds:5.1} {cut}");
    }
}

impl Drop for Journal {
    /// What was done, when it ended badly.
    fn drop(&mut self) {
        if std::thread::panicking() || std::env::var_os("WALHALLA_TEST_JOURNAL").is_some() {
            println!("--- {}", self.text);
        }
    }
}

fn create(area: &Area, version: u32, rng: &mut Rng, journal: &mut Journal) -> (Cluster, Settings) {
    let has_checksums = chance(rng, 50);
    // Small enough to end often, large enough that a restore asks for few.
    let segment_mb = if version < 11 { 16 } else { 4 };
    let shape = Shape {
        version,
        segment_mb,
    };
    let cluster = if has_checksums {
        Cluster::create(area, "life", shape)
    } else {
        Cluster::create_without_checksums(area, "life", shape)
    };
    let mut drawn = |name: &str, percent: u32| {
        let value = if chance(rng, percent) { "on" } else { "off" };
        format!("{name} = {value}\n")
    };
    let mut lines = drawn("wal_log_hints", 50) + &drawn("wal_compression", 50);
    lines += "full_page_writes = on\nmax_prepared_transactions = 10\n";
    if version >= 17 {
        lines += &drawn("summarize_wal", 80);
    }
    cluster.configure(&lines);
    journal.note(&format!(
        "checksums: {has_checksums}, {}",
        lines.replace('\n', ", ")
    ));
    let settings = Settings {
        has_checksums,
        summarizes: lines.contains("summarize_wal = on"),
    };
    (cluster, settings)
}

/// Recovery to a time ends at the first commit that is later; much else is replayed until there (a `DROP DATABASE` that did
/// not commit, a `PREPARE`), so a moment, and a timeline that begins at one, is followed by a commit.
fn mark_time(cluster: &Cluster) {
    cluster.sql("select txid_current()");
}

/// Whether there is a `pg_checksums` for a cluster: that of 15 does for 13, whose control file has the same version,
/// where it need not look into tablespaces. There was none before 12.
pub fn knows_checksums(version: u32, data: &Path) -> bool {
    let mut tablespaces = std::fs::read_dir(data.join("pg_tblspc")).unwrap();
    version >= 15 || version == 13 && tablespaces.next().is_none()
}

/// Runs `pg_checksums` on a stopped cluster.
pub fn run_pg_checksums(version: u32, data: &Path, how: &str) {
    let program = host().server_program(version.max(15), "pg_checksums");
    run(host().command(program).arg(how).arg("-D").arg(data)).succeeds();
}
