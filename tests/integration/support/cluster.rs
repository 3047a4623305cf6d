//! A PostgreSQL server of a test's own.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::{Area, host, run};

/// What kind of cluster: version and segment size.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub version: u32,
    pub segment_mb: u32,
}

impl Shape {
    /// An ordinary cluster of this version.
    pub const fn of(version: u32) -> Self {
        Self {
            version,
            segment_mb: 16,
        }
    }

    /// A cluster of this version with the smallest segments that it can have.
    pub const fn small(version: u32) -> Self {
        Self {
            version,
            segment_mb: if version < 11 { 16 } else { 1 },
        }
    }
}

/// A cluster, running or not; it listens on a Unix socket only. Dropping it stops the server.
pub struct Cluster {
    pub version: u32,
    pub data: PathBuf,
    sockets: PathBuf,
    log: PathBuf,
    env: Vec<(String, String)>,
    tcp_port: Option<u16>,
    server: Option<Child>,
}

/// Durability of the server's own files is not what is tested, and nothing may change a cluster that a test holds still.
const TEST_SETTINGS: &str = "\
    fsync = off\n\
    autovacuum = off\n\
    shared_buffers = 16MB\n\
    max_connections = 20\n\
    max_wal_senders = 4\n\
    wal_level = replica\n\
    wal_log_hints = on\n\
    timezone = 'UTC'\n\
    log_line_prefix = '%m [%p] %b '\n\
    log_checkpoints = on\n";

/// What later versions have by default.
const OF_9_6: &str = "hot_standby = on\nmax_replication_slots = 10\n";

/// What 10 renamed or added, and what does on 9.6: hash indexes were not in the WAL before 10.
const NAMES_OF_9_6: [(&str, &str); 9] = [
    ("using hash", "using btree"),
    (
        "pg_current_wal_insert_lsn",
        "pg_current_xlog_insert_location",
    ),
    ("pg_current_wal_lsn", "pg_current_xlog_location"),
    ("pg_switch_wal", "pg_switch_xlog"),
    ("pg_walfile_name", "pg_xlogfile_name"),
    ("pg_is_wal_replay_paused", "pg_is_xlog_replay_paused"),
    ("redo_lsn", "redo_location"),
    ("pg_stop_backup(false, false)", "pg_stop_backup(false)"),
    (
        "backend_type in ('client backend', 'walsender')",
        "backend_start is not null",
    ),
];

const START_LIMIT: Duration = Duration::from_mins(1);
const ARCHIVE_LIMIT: Duration = Duration::from_secs(90);
const RECOVERY_LIMIT: Duration = Duration::from_mins(2);

impl Cluster {
    /// A new cluster with data checksums, not started: a copy of one that was made once, so that all of one shape
    /// have the same system identifier.
    pub fn create(area: &Area, name: &str, shape: Shape) -> Self {
        let cluster = Self::adopt(area, shape.version, area.path(name));
        copy_tree(&template(shape), &cluster.data);
        cluster.configure(TEST_SETTINGS);
        if shape.version < 10 {
            cluster.configure(OF_9_6);
        }
        cluster
    }

    /// The same without data checksums.
    pub fn create_without_checksums(area: &Area, name: &str, shape: Shape) -> Self {
        let cluster = Self::adopt(area, shape.version, area.path(name));
        copy_tree(&template_with(shape, Checksums::Off), &cluster.data);
        cluster.configure(TEST_SETTINGS);
        if shape.version < 10 {
            cluster.configure(OF_9_6);
        }
        cluster
    }

    /// A new cluster with a system identifier of its own.
    pub fn create_unrelated(area: &Area, name: &str, shape: Shape) -> Self {
        let cluster = Self::adopt(area, shape.version, area.path(name));
        initdb(shape, Checksums::On, &cluster.data);
        cluster.configure(TEST_SETTINGS);
        cluster
    }

    /// The cluster in a data directory that is there, or will be.
    pub fn adopt(area: &Area, version: u32, data: PathBuf) -> Self {
        let name = data.file_name().unwrap().to_string_lossy().into_owned();
        Self {
            version,
            sockets: area.make_dir(&format!("{name}.s")),
            log: area.path(&format!("{name}.log")),
            data,
            env: Vec::new(),
            tcp_port: None,
            server: None,
        }
    }

    /// Adds lines to `postgresql.conf`; a running server is told.
    pub fn configure(&self, lines: &str) {
        let mut file = OpenOptions::new()
            .append(true)
            .open(self.data.join("postgresql.conf"))
            .unwrap();
        writeln!(file, "{lines}").unwrap();
        if self.server.is_some() {
            self.sql("select pg_reload_conf()");
        }
    }

    /// Variables for the server, and thus for its archive and restore commands.
    pub fn set_env(&mut self, variables: &[(String, String)]) {
        self.env = variables.to_vec();
    }

    /// Makes the server's sockets be in this directory instead, as `unix_socket_directories` names it.
    pub fn listen_in(&mut self, directory: &str) {
        self.sockets = directory.into();
    }

    /// Makes the server listen on TCP too, and returns the port.
    pub fn listen_on_tcp(&mut self) -> u16 {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        self.tcp_port = Some(port);
        port
    }

    /// Starts the server and waits until it takes connections.
    pub fn start(&mut self) {
        let takes_connections = self.starts();
        assert!(
            takes_connections,
            "the server ended before it took connections:\n{}",
            self.log_tail()
        );
    }

    /// Starts the server and waits until it takes connections, or has ended; returns whether it does.
    pub fn starts(&mut self) -> bool {
        self.launch();
        let start = Instant::now();
        while !self.is_ready() {
            if self.has_ended() {
                return false;
            }
            assert!(
                start.elapsed() < START_LIMIT,
                "no connections after {START_LIMIT:?}:\n{}",
                self.log_tail()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        true
    }

    /// Whether the server is not running, or no more.
    pub fn has_ended(&mut self) -> bool {
        let ended = self
            .server
            .as_mut()
            .is_none_or(|server| server.try_wait().unwrap().is_some());
        if ended {
            self.server = None;
        }
        ended
    }

    /// Starts a server that is to refuse; returns what it logged.
    pub fn start_and_fail(&mut self) -> String {
        self.launch();
        let start = Instant::now();
        loop {
            if self.server.as_mut().unwrap().try_wait().unwrap().is_some() {
                self.server = None;
                return self.log_text();
            }
            assert!(
                !self.is_ready(),
                "the server started, and was to refuse:\n{}",
                self.log_tail()
            );
            assert!(
                start.elapsed() < START_LIMIT,
                "neither up nor down:\n{}",
                self.log_tail()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts a server that is to end by itself; returns what it logged.
    pub fn run_to_its_end(&mut self) -> String {
        self.launch();
        let start = Instant::now();
        while self.server.as_mut().unwrap().try_wait().unwrap().is_none() {
            assert!(
                start.elapsed() < RECOVERY_LIMIT,
                "the server did not end:\n{}",
                self.log_tail()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        self.server = None;
        self.log_text()
    }

    fn launch(&mut self) {
        assert!(
            self.server.is_none(),
            "{} runs already",
            self.data.display()
        );
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .unwrap();
        let mut command = host().command(host().server_program(self.version, "postgres"));
        command
            .arg("-D")
            .arg(&self.data)
            .arg("-k")
            .arg(&self.sockets)
            .args(["-p", &self.port()]);
        command.args([
            "-h",
            if self.tcp_port.is_some() {
                "127.0.0.1"
            } else {
                ""
            },
        ]);
        command
            .envs(self.env.iter().cloned())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.server = Some(command.spawn().unwrap());
    }

    fn port(&self) -> String {
        self.tcp_port.unwrap_or(5432).to_string()
    }

    /// Whether the server takes connections, or as a standby that is not a hot one waits for the end of recovery.
    fn is_ready(&self) -> bool {
        matches!(self.state().as_deref(), Some("ready" | "standby"))
    }

    /// The state that the postmaster writes for `pg_ctl`. That of 9.6 writes none, and is asked whether it takes connections.
    fn state(&self) -> Option<String> {
        if self.version < 10 {
            let asked = run(self
                .client("psql")
                .args(["-X", "-A", "-t", "-c", "select 1"]));
            return (asked.stdout.trim() == "1").then(|| "ready".to_owned());
        }
        // The data directory's path in it may be any bytes.
        let bytes = std::fs::read(self.data.join("postmaster.pid")).ok()?;
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let own_pid = self.server.as_ref().map(|child| child.id().to_string());
        let is_own = lines.first().map(|pid| (*pid).to_owned()) == own_pid;
        let state = lines.get(7).filter(|_| is_own);
        state.map(|state| (*state).to_owned())
    }

    fn assert_running(&mut self, when: &str) {
        if let Some(status) = self
            .server
            .as_mut()
            .and_then(|child| child.try_wait().unwrap())
        {
            self.server = None;
            panic!("the server ended ({status}) {when}:\n{}", self.log_tail());
        }
    }

    pub fn stop(&mut self) {
        self.end_by(Signal::INT);
    }

    /// Stops the server as a crash would: nothing more is written.
    pub fn crash(&mut self) {
        self.end_by(Signal::QUIT);
    }

    /// `pg_ctl` sends the same signals (postmaster.c, `process_pm_shutdown_request`), and looks every tenth of a second.
    fn end_by(&mut self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
        self.server.take().unwrap().wait().unwrap();
    }

    /// Starts the stopped cluster as a standby of nobody, and promotes it to the next timeline.
    pub fn promote(&mut self) {
        let (file, content) = if self.version < 12 {
            ("recovery.conf", "standby_mode = on\n")
        } else {
            ("standby.signal", "")
        };
        let path = self.data.join(file);
        std::fs::write(&path, content).unwrap();
        host().give_to_user(&path);
        self.start();
        let pg_ctl = host().server_program(self.version, "pg_ctl");
        run(host()
            .command(pg_ctl)
            .args(["promote", "-w", "-D"])
            .arg(&self.data))
        .succeeds();
        self.wait_until_promoted();
    }

    /// The postmaster of a server that runs.
    pub fn pid(&self) -> Pid {
        Pid::from_child(self.server.as_ref().unwrap())
    }

    /// Ends the postmaster with SIGKILL and waits until its processes are gone.
    pub fn kill(&mut self) {
        self.server.as_mut().unwrap().kill().unwrap();
        self.was_killed();
    }

    /// Waits until the processes of a killed postmaster are gone.
    pub fn was_killed(&mut self) {
        self.server.take().unwrap().wait().unwrap();
        // Its processes notice by themselves; the next start refuses as long as one is left.
        super::eventually("the killed server's processes to end", START_LIMIT, || {
            !self.has_processes()
        });
        std::fs::remove_file(self.data.join("postmaster.pid")).unwrap();
    }

    fn has_processes(&self) -> bool {
        std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
            std::fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == self.data)
        })
    }

    /// A client program that connects to this server.
    pub fn client(&self, program: &str) -> Command {
        let mut command = host().command(host().client_program(self.version, program));
        command.envs(self.connection());
        command
    }

    /// libpq's variables for this server.
    pub fn connection(&self) -> Vec<(String, String)> {
        let pairs = [
            ("PGHOST", self.sockets.to_string_lossy().into_owned()),
            ("PGPORT", self.port()),
            ("PGUSER", "postgres".to_owned()),
            ("PGDATABASE", "postgres".to_owned()),
        ];
        pairs.map(|(key, value)| (key.to_owned(), value)).to_vec()
    }

    /// A connection string for this server.
    pub fn conninfo(&self) -> String {
        let (host, port) = (self.sockets.display(), self.port());
        format!("host={host} port={port} user=postgres dbname=postgres")
    }

    /// The line with which a standby streams from this server.
    pub fn standby_settings(&self) -> String {
        format!("primary_conninfo = '{}'", self.conninfo())
    }

    /// Runs SQL; returns the rows without decoration.
    #[track_caller]
    pub fn sql(&self, sql: &str) -> String {
        let mut command = self.client("psql");
        let sql = &self.spelled(sql);
        let outcome =
            run(command.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-c", sql]))
                .succeeds();
        outcome.stdout.trim().to_owned()
    }

    /// SQL with the names that 9.6 has for what 10 renamed.
    pub fn spelled(&self, sql: &str) -> String {
        let mut sql = sql.to_owned();
        if self.version < 10 {
            for (name, old) in NAMES_OF_9_6 {
                sql = sql.replace(name, old);
            }
        }
        sql
    }

    #[track_caller]
    pub fn pgbench(&self, args: &[&str]) {
        run(self.client("pgbench").arg("-n").args(args)).succeeds();
    }

    /// Everything in the cluster as `pg_dumpall` writes it.
    pub fn dump(&self) -> Dump {
        self.dump_with(&[])
    }

    /// As `pg_dumpall` writes it with these options.
    pub fn dump_with(&self, options: &[&str]) -> Dump {
        Dump::of(
            &run(self.client("pg_dumpall").args(options))
                .succeeds()
                .stdout,
        )
    }

    /// Checks heap and indexes; wants the extension `amcheck` in database postgres. Works on a hot standby too.
    ///
    /// The amcheck of 13 has no heap check (`verify_heapam` came with 14) and `pg_amcheck` wants it, so that 13 is
    /// checked by its indexes against its heaps here; its heap pages by their checksums whenever it is dumped.
    #[track_caller]
    pub fn amcheck(&self) {
        if self.version < 10 {
            // There is no amcheck: a unique index that is made anew finds rows twice, if they are there twice.
            if self.sql("select pg_is_in_recovery()") == "f" {
                self.sql("reindex database postgres");
            }
        } else if self.version < 14 {
            // Before 11 amcheck looks at the index only.
            let heap_too = if self.version < 11 { "" } else { ", true" };
            self.sql(&format!(
                "select bt_index_check(i.indexrelid{heap_too}) from pg_index i join pg_class c on c.oid = i.indexrelid \
                 join pg_am a on a.oid = c.relam where a.amname = 'btree' and c.relpersistence = 'p' and i.indisvalid"
            ));
        } else {
            run(self.client("pg_amcheck").args([
                "--heapallindexed",
                "--no-dependent-toast",
                "postgres",
            ]))
            .succeeds();
        }
    }

    /// The position where the next record goes.
    pub fn insert_lsn(&self) -> String {
        self.sql("select pg_current_wal_insert_lsn()")
    }

    /// Ends the current segment; returns the name of the one that holds everything up to now.
    pub fn switch_segment(&self) -> String {
        // Without a record in it a segment is not switched from, and the name would be of one still to be filled.
        self.sql("select pg_logical_emit_message(false, 'test', 'the last of its segment')");
        self.sql("select pg_walfile_name(pg_switch_wal())")
    }

    /// Ends the current segment and waits until the archive command answered 0 for it.
    #[track_caller]
    pub fn archive_everything(&self) -> String {
        let segment = self.switch_segment();
        self.wait_until_archived(&segment);
        segment
    }

    #[track_caller]
    pub fn wait_until_archived(&self, segment: &str) {
        let sql = format!(
            "select coalesce(left(last_archived_wal, 24), '') >= '{segment}' from pg_stat_archiver"
        );
        // A long backlog is no standstill: the limit is for each segment.
        let (mut since, mut archived) = (Instant::now(), String::new());
        while self.sql(&sql) != "t" {
            let now = self.sql("select archived_count from pg_stat_archiver");
            if now != archived {
                (since, archived) = (Instant::now(), now);
            }
            let state =
                "select last_archived_wal, failed_count, last_failed_wal from pg_stat_archiver";
            assert!(
                since.elapsed() < ARCHIVE_LIMIT,
                "{segment} not archived, and nothing else for {ARCHIVE_LIMIT:?}: {}\n{}",
                self.sql(state),
                self.log_tail()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until recovery paused at its target.
    #[track_caller]
    pub fn wait_until_paused(&mut self) {
        let sql = if self.version < 14 {
            "select pg_is_wal_replay_paused()"
        } else {
            "select pg_get_wal_replay_pause_state() = 'paused'"
        };
        self.wait_for_recovery("to pause", sql);
    }

    /// Waits until recovery ended and the server takes writes.
    #[track_caller]
    pub fn wait_until_promoted(&mut self) {
        self.wait_for_recovery("to end", "select not pg_is_in_recovery()");
    }

    #[track_caller]
    fn wait_for_recovery(&mut self, what: &str, sql: &str) {
        let start = Instant::now();
        // The server may end while it is asked, so that its answer is not demanded.
        let sql = &self.spelled(sql);
        while run(self.client("psql").args(["-X", "-A", "-t", "-c", sql]))
            .stdout
            .trim()
            != "t"
        {
            self.assert_running("during recovery");
            let tail = self.log_tail();
            assert!(
                start.elapsed() < RECOVERY_LIMIT,
                "waited {RECOVERY_LIMIT:?} for recovery {what}:\n{tail}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the server takes connections although it is no hot standby, without asking it anything.
    #[track_caller]
    pub fn wait_until_ready(&mut self) {
        let start = Instant::now();
        while self.state().as_deref() != Some("ready") {
            self.assert_running("during recovery");
            assert!(
                start.elapsed() < RECOVERY_LIMIT,
                "waited {RECOVERY_LIMIT:?} for recovery to end:\n{}",
                self.log_tail()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until no client but the asking one is connected.
    pub fn wait_until_quiet(&self) {
        let sql = "select count(*) from pg_stat_activity where backend_type in ('client backend', 'walsender') \
                   and pid <> pg_backend_pid()";
        super::eventually("all clients to be gone", START_LIMIT, || {
            self.sql(sql) == "0"
        });
    }

    pub fn system_identifier(&self) -> String {
        self.sql("select system_identifier from pg_control_system()")
    }

    /// Where the server has its WAL.
    pub fn wal_folder(&self) -> PathBuf {
        self.data.join(if self.version < 10 {
            "pg_xlog"
        } else {
            "pg_wal"
        })
    }

    /// The path of a segment, relative to the data directory as the server gives it for `%p`.
    pub fn segment_path(&self, segment: &str) -> PathBuf {
        self.wal_folder().join(segment)
    }

    pub fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn log_tail(&self) -> String {
        let text = self.log_text();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("--- the end of {}\n{}", self.log.display(), self.log_tail());
        }
        if self
            .server
            .as_mut()
            .is_some_and(|server| server.try_wait().is_ok_and(|status| status.is_none()))
        {
            let pg_ctl = host().server_program(self.version, "pg_ctl");
            run(host()
                .command(pg_ctl)
                .arg("stop")
                .args(["-w", "-m", "immediate", "-D"])
                .arg(&self.data));
            if let Some(mut server) = self.server.take() {
                // After pg_ctl this is the reaping of what ended; if pg_ctl failed, the last resort.
                let _ = server.kill();
                let _ = server.wait();
            }
        }
    }
}

/// Whether pages have checksums.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Checksums {
    On,
    Off,
}

/// Threads of one process would make a template in the same place.
static MAKING: Mutex<()> = Mutex::new(());

/// A cluster of this shape that was made once and never started.
fn template(shape: Shape) -> PathBuf {
    template_with(shape, Checksums::On)
}

fn template_with(shape: Shape, checksums: Checksums) -> PathBuf {
    let Shape {
        version,
        segment_mb,
    } = shape;
    let bare = if checksums == Checksums::On {
        ""
    } else {
        "-bare"
    };
    let name = format!("{version}-{segment_mb}MB{bare}");
    let path = host().templates.join(&name);
    let _making = MAKING.lock();
    if !path.exists() {
        let made = host()
            .templates
            .join(format!("{name}.{}", std::process::id()));
        initdb(shape, checksums, &made);
        // Another test may have been faster: then its template is the one.
        if std::fs::rename(&made, &path).is_err() {
            std::fs::remove_dir_all(&made).unwrap();
        }
    }
    path
}

fn initdb(shape: Shape, checksums: Checksums, data: &Path) {
    let mut command = host().command(host().server_program(shape.version, "initdb"));
    command.args([
        "-U",
        "postgres",
        "-A",
        "trust",
        "-E",
        "UTF8",
        "--locale=C",
        "-N",
    ]);
    // From 18 on they are on unless they are turned off.
    if checksums == Checksums::On {
        command.arg("-k");
    } else if shape.version >= 18 {
        command.arg("--no-data-checksums");
    }
    // 10 has no choice: segments of 16 MiB.
    if shape.version >= 11 {
        command.arg(format!("--wal-segsize={}", shape.segment_mb));
    }
    run(command.arg("-D").arg(data)).succeeds();
}

/// Copies a directory as it is.
pub fn copy_tree(from: &Path, to: &Path) {
    run(host().command("cp").arg("-a").arg(from).arg(to)).succeeds();
}

/// What `pg_dumpall` wrote, without what differs from run to run.
#[derive(Clone, PartialEq, Eq)]
pub struct Dump(String);

impl Dump {
    fn of(text: &str) -> Self {
        // `\restrict` and `\unrestrict` carry a random word (the answer of 2025 to CVE-2025-8714).
        let is_random =
            |line: &&str| line.starts_with("\\restrict ") || line.starts_with("\\unrestrict ");
        let mut kept = String::with_capacity(text.len());
        for line in text.lines().filter(|line| !is_random(line)) {
            kept.push_str(line);
            kept.push('\n');
        }
        Self(kept)
    }

    /// The same dump with one text put for another, for what has to differ.
    pub fn replacing(&self, from: &str, to: &str) -> Self {
        Self(self.0.replace(from, to))
    }

    /// Asserts that both are the same; shows the first lines that differ, not the whole.
    #[track_caller]
    pub fn assert_same_as(&self, expected: &Self, what: &str) {
        if self == expected {
            return;
        }
        let mut shown = String::new();
        let pairs = self.0.lines().map(Some).chain(std::iter::repeat(None));
        let pairs = pairs.zip(expected.0.lines().map(Some).chain(std::iter::repeat(None)));
        let differing = pairs
            .take_while(|pair| *pair != (None, None))
            .filter(|(found, wanted)| found != wanted);
        for (found, wanted) in differing.take(8) {
            let _ = writeln!(shown, "  found:    {}", found.unwrap_or("(the end)"));
            let _ = writeln!(shown, "  expected: {}", wanted.unwrap_or("(the end)"));
        }
        let (found, wanted) = (self.0.lines().count(), expected.0.lines().count());
        panic!(
            "{what}: the dumps differ ({found} lines found, {wanted} expected), first in\n{shown}"
        );
    }
}
