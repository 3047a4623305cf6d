//! The daemon: what it does for `wal-push` and `wal-fetch`, and that they need it for nothing.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{
    Area, Cluster, Key, Segments, Shape, Store, Walhalla, eventually, fill, host,
    random_moment_within,
};

const PATIENCE: Duration = Duration::from_mins(1);

/// A daemon that is killed when it is dropped.
struct Daemon {
    child: Child,
    socket: PathBuf,
}

impl Daemon {
    fn start(walhalla: &Walhalla, socket: PathBuf, args: &[&str]) -> Self {
        let daemon = Self::spawn(walhalla, socket, args);
        eventually("the daemon to listen", PATIENCE, || {
            std::os::unix::net::UnixStream::connect(&daemon.socket).is_ok()
        });
        daemon
    }

    fn spawn(walhalla: &Walhalla, socket: PathBuf, args: &[&str]) -> Self {
        let mut command = walhalla.command(&["-v", "daemon"]);
        command.args(args).env("WALHALLA_SOCKET", &socket);
        command.stdout(Stdio::null()).stderr(Stdio::inherit());
        let child = command.spawn().unwrap();
        Self { child, socket }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap();
    }

    /// Ends it in order; the socket goes with it.
    fn end(mut self) {
        self.signal(Signal::TERM);
        assert!(self.child.wait().unwrap().success());
        assert!(!self.socket.exists());
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Segments, a store, and a client that looks for the daemon on a socket of its own.
struct Site {
    segments: Segments,
    walhalla: Walhalla,
    store: Store,
    area: Area,
}

impl Site {
    fn make(count: usize) -> Self {
        Self::before(count, Store::directory)
    }

    fn before(count: usize, make: fn(&Area) -> Store) -> Self {
        let area = Area::new();
        let store = make(&area);
        let socket = area.path("socket");
        let walhalla = Walhalla::new(&area, &store);
        let walhalla = walhalla.with_env("WALHALLA_SOCKET", socket.to_str().unwrap());
        let segments = Segments::make(&area, count);
        Self {
            segments,
            walhalla,
            store,
            area,
        }
    }

    fn start(&self, args: &[&str]) -> Daemon {
        Daemon::start(&self.walhalla, self.area.path("socket"), args)
    }

    fn push(&self, name: &str) -> String {
        let path = format!("pg_wal/{name}");
        let push = ["-v", "wal-push", &path];
        { self.walhalla.run_in(&self.segments.data, &push) }
            .succeeds()
            .stderr
    }
}

#[test]
fn a_gap_is_recorded_after_a_push_of_the_daemon_too() {
    let site = Site::make(2);
    let hasty = { site.walhalla.with_env("WALHALLA_MAX_BACKLOG", "16MiB") }
        .with_env("WALHALLA_RETRY_TIMEOUT", "2s");
    let names = &site.segments.names;
    for name in names {
        site.segments.mark_ready(name);
    }
    let away = site.area.path("away");
    std::fs::rename(site.store.path(), &away).unwrap();
    // Of a file no directory can be made.
    std::fs::write(site.store.path(), "").unwrap();
    let dropped = site.segments.push(&hasty, &names[0]).succeeds();
    dropped.says(&["NOT archived"]);
    site.segments.mark_done(&names[0]);
    std::fs::remove_file(site.store.path()).unwrap();
    std::fs::rename(&away, site.store.path()).unwrap();
    let _daemon = site.start(&[]);
    let said = site.push(&names[1]);
    assert!(said.contains("archived by the daemon"), "{said}");
    assert!(said.contains("is recorded in the store"), "{said}");
}

#[test]
fn the_daemon_archives_what_is_asked_for_and_what_is_ready() {
    let site = Site::make(5);
    for name in &site.segments.names {
        site.segments.mark_ready(name);
    }
    let daemon = site.start(&[]);
    let mode = std::fs::metadata(&daemon.socket).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    let [first, others @ ..] = site.segments.names.as_slice() else {
        panic!("five segments");
    };
    assert!(site.push(first).contains("archived by the daemon"));
    site.segments.mark_done(first);
    for name in others {
        eventually("the others to go up", PATIENCE, || {
            !site.store.objects_named(&format!("{name}.lz4")).is_empty()
        });
        let said = site.push(name);
        assert!(
            said.contains("pushed ahead") || said.contains("by the daemon"),
            "{said}"
        );
        site.segments.mark_done(name);
    }
    for name in &site.segments.names {
        site.segments.assert_archived(&site.walhalla, name);
    }
    daemon.end();
    // It is gone, and nothing is missed.
    site.segments.mark_ready(first);
    site.push(first);
}

#[test]
fn what_the_daemon_cannot_archive_is_told_as_the_command_tells_it() {
    let site = Site::make(2);
    let name = &site.segments.names[0];
    let whole = site.segments.original(name);
    site.segments.put(name, &whole[..whole.len() / 2]);
    let alone = site.segments.push(&site.walhalla, name).exits_with(1);
    let daemon = site.start(&[]);
    let with_daemon = site.segments.push(&site.walhalla, name).exits_with(1);
    let told = |stderr: &str| {
        let lines = stderr.lines().filter(|line| line.starts_with(['e', 'h']));
        lines.map(str::to_owned).collect::<Vec<_>>().join(" ")
    };
    for word in ["hint:", name] {
        assert!(told(&with_daemon.stderr).contains(word), "{with_daemon}");
        assert!(told(&alone.stderr).contains(word), "{alone}");
    }
    daemon.end();
}

#[test]
fn a_daemon_with_other_settings_or_another_version_is_not_used() {
    let site = Site::make(2);
    let other = Store::Directory(site.area.make_dir("other"));
    let others = Walhalla::on_host(&site.area, "other-host", &other, "");
    let daemon = Daemon::start(&others, site.area.path("socket"), &[]);
    let name = &site.segments.names[0];
    assert!(site.push(name).contains("the daemon has other settings"));
    site.segments.assert_archived(&site.walhalla, name);
    assert_eq!(other.objects_named(name), Vec::<PathBuf>::new());
    daemon.end();
}

/// What listens there says that all is done, or cuts the connection, and does nothing.
#[test]
fn a_false_daemon_is_not_believed() {
    for answer in ["\"done\"\n", "\"do", "", "{\"unfit\":\"no\"}\n", "\u{1}\n"] {
        let site = Site::make(1);
        let socket = site.area.path("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        host().give_to_user(&socket);
        let false_daemon = std::thread::spawn(move || {
            let (mut connection, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let _ = connection.read(&mut request);
            // Whoever asked may have gone.
            let _ = connection.write_all(answer.as_bytes());
        });
        let name = &site.segments.names[0];
        site.push(name);
        drop(std::os::unix::net::UnixStream::connect(&socket));
        false_daemon.join().unwrap();
        site.segments.assert_archived(&site.walhalla, name);
    }
}

/// It answers nothing, and the server waits for the call when it shuts down.
#[test]
fn a_daemon_that_hangs_is_not_waited_for_at_a_shutdown() {
    let site = Site::make(1);
    let daemon = site.start(&[]);
    daemon.signal(Signal::STOP);
    let pid_file = "7\n/d\n1\n5432\n/tmp\n\n 1 2\nstopping\n";
    std::fs::write(site.segments.data.join("postmaster.pid"), pid_file).unwrap();
    let said = site.push(&site.segments.names[0]);
    assert!(said.contains("did not answer in time"), "{said}");
    site.segments
        .assert_archived(&site.walhalla, &site.segments.names[0]);
    daemon.kill();
}

#[test]
fn a_daemon_that_is_killed_in_mid_call_costs_nothing() {
    let site = Site::before(8, Store::s3);
    for name in &site.segments.names {
        site.segments.mark_ready(name);
    }
    for name in &site.segments.names {
        let daemon = site.start(&[]);
        let moment = random_moment_within(Duration::from_millis(300));
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(moment);
                daemon.kill();
            });
            site.push(name);
        });
        site.segments.mark_done(name);
        site.segments.assert_archived(&site.walhalla, name);
    }
}

#[test]
fn settings_are_read_again_and_wrong_ones_change_nothing() {
    let site = Site::make(3);
    let daemon = site.start(&[]);
    let config = site.area.path("walhalla.toml");
    let settings = std::fs::read_to_string(&config).unwrap();
    let [first, second, third] = &site.segments.names[..] else {
        panic!("three segments");
    };
    std::fs::write(&config, "stoer = 7").unwrap();
    daemon.signal(Signal::HUP);
    std::thread::sleep(Duration::from_millis(200));
    std::fs::write(&config, &settings).unwrap();
    // A daemon that is busy answers too late, and the command archives by itself.
    eventually("the daemon to archive", PATIENCE, || {
        site.push(first).contains("archived by the daemon")
    });
    std::fs::write(&config, format!("{settings}\ncompression = \"zstd\"\n")).unwrap();
    assert!(site.push(second).contains("other settings"));
    daemon.signal(Signal::HUP);
    eventually("the settings to be read", PATIENCE, || {
        // A segment that is archived is pushed again, and found to be there.
        site.push(third).contains("archived by the daemon")
    });
    daemon.end();
}

#[test]
fn a_signal_in_the_first_moment_is_heard() {
    let site = Site::make(1);
    for _ in 0..5 {
        let daemon = Daemon::spawn(&site.walhalla, site.area.path("socket"), &[]);
        let begun = Instant::now();
        while !daemon.socket.exists() {
            assert!(begun.elapsed() < PATIENCE, "no socket");
        }
        daemon.end();
    }
}

#[test]
fn prometheus_reads_what_the_daemon_counts() {
    let site = Site::make(2);
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = port.local_addr().unwrap().to_string();
    drop(port);
    let daemon = site.start(&["--metrics", &address]);
    site.push(&site.segments.names[0]);
    let page = |path: &str| {
        let mut connection = std::net::TcpStream::connect(&address).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        connection.write_all(request.as_bytes()).unwrap();
        let mut page = String::new();
        connection.read_to_string(&mut page).unwrap();
        page
    };
    let metrics = page("/metrics");
    let id = &site.segments.system_identifier;
    let line = format!("walhalla_wal_archived_segments_total{{system_id=\"{id}\"}} 1");
    assert!(metrics.contains(&line), "{metrics}");
    assert!(metrics.contains("walhalla_store_up 1"), "{metrics}");
    assert!(page("/").starts_with("HTTP/1.1 404"));
    daemon.end();
}

#[test]
fn a_server_archives_and_recovers_with_an_encrypting_daemon() {
    let area = Area::new();
    let store = Store::s3(&area);
    let key = Key::generate(&area, "key");
    let socket = area.path("socket");
    let identity = format!("age_identity_file = \"{}\"", key.identity.display());
    let walhalla = Walhalla::with_settings(&area, &store, &identity)
        .encrypting_to(&[&key.recipient])
        .with_env("WALHALLA_SOCKET", socket.to_str().unwrap());
    let daemon = Daemon::start(&walhalla, socket.clone(), &[]);
    let mut primary = Cluster::create(&area, "primary", Shape::of(17));
    walhalla.archive_from(&mut primary);
    fill(&primary);
    walhalla.back_up(&primary);
    for round in 0..12 {
        primary.sql(&format!(
            "create table t{round} as select generate_series(1, 20000) n"
        ));
        primary.switch_segment();
    }
    primary.archive_everything();
    let expected = primary.dump();
    primary.stop();
    daemon.end();

    let daemon = Daemon::start(&walhalla, socket, &[]);
    let mut copy = walhalla.restore(&area, 17, "copy", &["--wal", "on-demand"]);
    walhalla.give_env(&mut copy);
    copy.start();
    copy.wait_until_promoted();
    copy.dump().assert_same_as(&expected, "the copy");
    copy.stop();
    let spool = area.path("copy.walhalla-spool");
    eventually("an empty spool", PATIENCE, || !spool.exists());
    daemon.end();
}
