//! Segments that come into the spool before the server asks for them.

use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::{
    Area, Cluster, Segments, Shape, Store, Walhalla, eventually, fill, host, with_a_record_changed,
};

const PATIENCE: Duration = Duration::from_mins(1);

/// Archived segments, and a data directory that looks like that of a server in recovery.
struct Standby {
    segments: Segments,
    walhalla: Walhalla,
    area: Area,
}

impl Standby {
    fn make(count: usize) -> Self {
        let area = Area::new();
        let store = Store::directory(&area);
        let walhalla = Walhalla::new(&area, &store);
        let segments = Segments::make(&area, count);
        for name in &segments.names {
            segments.push(&walhalla, name).succeeds();
        }
        segments.signal("standby.signal");
        segments.signal_running(true);
        Self {
            segments,
            walhalla: walhalla.with_env("WALHALLA_PREFETCH_SEGMENTS", "3"),
            area,
        }
    }

    fn spool(&self) -> PathBuf {
        spool_of(&self.segments.data)
    }

    fn spooled(&self, name: &str) -> PathBuf {
        self.spool().join("wal").join(name)
    }

    fn wait_for(&self, name: &str) {
        let receipt = self.spool().join("fetched").join(name);
        eventually("the next segment in the spool", PATIENCE, || {
            receipt.exists()
        });
    }

    /// Fetches as a server does; what came is what the server wrote.
    #[track_caller]
    fn fetch(&self, name: &str) -> String {
        let walhalla = &self.walhalla;
        let (outcome, fetched) = self.segments.fetch_verbosely(walhalla, name);
        let outcome = outcome.succeeds();
        assert!(fetched.unwrap() == self.segments.original(name), "{name}");
        outcome.stderr
    }

    /// The server has ended; what fetches ahead notices it.
    fn end(&self) {
        self.segments.signal_running(false);
        eventually("an empty spool", PATIENCE, || !self.spool().exists());
    }
}

fn spool_of(data: &Path) -> PathBuf {
    let name = data.file_name().unwrap().to_str().unwrap();
    data.with_file_name(format!("{name}.walhalla-spool"))
}

#[test]
fn the_next_segments_are_handed_over_from_the_spool_and_nothing_is_left() {
    let standby = Standby::make(6);
    let names = &standby.segments.names;
    assert!(!standby.fetch(&names[0]).contains("fetched ahead"));
    for name in &names[1..] {
        standby.wait_for(name);
        assert!(standby.fetch(name).contains("fetched ahead"), "{name}");
        assert!(!standby.spooled(name).exists(), "{name}");
    }
    standby.end();
}

#[test]
fn the_spool_holds_no_more_than_the_window() {
    let standby = Standby::make(6);
    let names = &standby.segments.names;
    standby.fetch(&names[0]);
    standby.wait_for(&names[1]);
    standby.wait_for(&names[2]);
    // A jump: what was fetched for the old place goes.
    standby.fetch(&names[4]);
    standby.wait_for(&names[5]);
    for behind in &names[1..4] {
        eventually("the window to move", PATIENCE, || {
            !standby.spooled(behind).exists()
        });
    }
    standby.end();
}

#[test]
fn what_does_not_prove_to_be_the_segment_is_never_handed_over() {
    let standby = Standby::make(4);
    let names = &standby.segments.names;
    standby.fetch(&names[0]);
    standby.wait_for(&names[1]);
    standby.wait_for(&names[2]);
    // Another content in the very file, and another file of the same length.
    std::fs::write(
        standby.spooled(&names[1]),
        with_a_record_changed(&standby.segments.original(&names[1])),
    )
    .unwrap();
    std::fs::remove_file(standby.spooled(&names[2])).unwrap();
    std::fs::write(
        standby.spooled(&names[2]),
        standby.segments.original(&names[0]),
    )
    .unwrap();
    for name in &names[1..3] {
        assert!(!standby.fetch(name).contains("fetched ahead"), "{name}");
    }
    standby.end();
}

#[test]
fn half_a_segment_that_a_dead_process_left_is_not_waited_for() {
    let standby = Standby::make(2);
    let names = &standby.segments.names;
    let folder = standby.spool().join("wal");
    std::fs::create_dir_all(&folder).unwrap();
    let half = folder.join(format!("{}.0123456789abcdef.walhalla.tmp", names[0]));
    std::fs::write(&half, "half").unwrap();
    for path in [standby.spool(), folder] {
        host().give_to_user(&path);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    }
    standby.fetch(&names[0]);
    eventually("what is left to go", PATIENCE, || !half.exists());
    standby.end();
}

#[test]
fn what_a_killed_process_left_goes_with_the_first_push_after_the_promotion() {
    let standby = Standby::make(4);
    let names = &standby.segments.names;
    standby.fetch(&names[0]);
    standby.wait_for(&names[1]);
    kill_what_fetches_ahead(&standby.area.path("walhalla.toml"));
    assert!(standby.spool().exists());
    std::fs::remove_file(standby.segments.data.join("standby.signal")).unwrap();
    eventually("the first push to clear the spool", PATIENCE, || {
        standby.segments.push(&standby.walhalla, &names[0]);
        !standby.spool().exists()
    });
}

#[test]
fn without_a_server_in_recovery_or_under_another_name_nothing_is_fetched_ahead() {
    let standby = Standby::make(2);
    let name = &standby.segments.names[0];
    // pg_rewind
    let path = format!("pg_wal/{name}");
    let fetch = ["wal-fetch", name, &path];
    standby
        .walhalla
        .run_in(&standby.segments.data, &fetch)
        .succeeds();
    standby.segments.signal_running(false);
    standby.fetch(name);
    standby.segments.signal_running(true);
    std::fs::remove_file(standby.segments.data.join("standby.signal")).unwrap();
    standby.fetch(name);
    let off = standby.walhalla.with_env("WALHALLA_PREFETCH_SEGMENTS", "0");
    standby.segments.signal("standby.signal");
    standby.segments.fetch(&off, name).0.succeeds();
    assert!(!standby.spool().exists());
}

#[test]
fn a_server_recovers_with_what_was_fetched_ahead_on_11() {
    recover(11, Store::directory);
}

#[test]
fn a_server_recovers_with_what_was_fetched_ahead_from_s3_on_17() {
    recover(17, Store::s3);
}

/// Recovers on demand, while the process that fetches ahead is killed again and again.
fn recover(version: u32, store: fn(&Area) -> Store) {
    let area = Area::new();
    let store = store(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut primary = Cluster::create(&area, "primary", Shape::of(version));
    walhalla.archive_from(&mut primary);
    fill(&primary);
    walhalla.back_up(&primary);
    for round in 0..20 {
        primary.sql(&format!(
            "create table t{round} as select generate_series(1, 20000) n"
        ));
        primary.switch_segment();
    }
    primary.archive_everything();
    let expected = primary.dump();
    primary.stop();

    let mut copy = walhalla.restore(&area, version, "copy", &["--wal", "on-demand"]);
    walhalla.give_env(&mut copy);
    let config = area.path("walhalla.toml");
    let killer = std::thread::spawn(move || {
        for _ in 0..10 {
            std::thread::sleep(Duration::from_millis(150));
            kill_what_fetches_ahead(&config);
        }
    });
    copy.start();
    copy.wait_until_promoted();
    killer.join().unwrap();
    copy.dump().assert_same_as(&expected, "the copy");
    let log = copy.log_text();
    assert!(!log.contains("the spool is not used"), "{log}");
    copy.stop();
    let spool = spool_of(&copy.data);
    eventually("an empty spool", PATIENCE, || !spool.exists());
}

/// Kills the process that fetches ahead with these settings, if there is one.
fn kill_what_fetches_ahead(config: &Path) {
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        let is_ours = words.contains(&config.as_os_str().as_bytes());
        if is_ours && words.contains(&b"wal-prefetch".as_slice()) {
            let pid = entry.file_name().to_str().unwrap().parse().unwrap();
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}
