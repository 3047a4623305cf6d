//! Segments that go up while the server waits for another one, and what their own calls hear.

use std::path::Path;

use crate::support::{
    Area, Cluster, Ending, Key, Outcome, Segments, Shape, Store, Walhalla, eventually, fill, host,
    random_moment_within, run, with_a_record_changed,
};

/// Segments that are all marked ready but the last one, and where they go.
struct Backlog {
    segments: Segments,
    walhalla: Walhalla,
    store: Store,
    area: Area,
}

impl Backlog {
    fn make(count: usize) -> Self {
        Self::before(count, Store::directory)
    }

    fn before(count: usize, make: fn(&Area) -> Store) -> Self {
        let area = Area::new();
        let store = make(&area);
        let walhalla = Walhalla::new(&area, &store);
        let segments = Segments::make(&area, count + 1);
        for name in &segments.names[..count] {
            segments.mark_ready(name);
        }
        Self {
            segments,
            walhalla,
            store,
            area,
        }
    }

    fn ready(&self) -> &[String] {
        let names = &self.segments.names;
        &names[..names.len() - 1]
    }

    fn push(&self, name: &str) -> Outcome {
        self.segments.push(&self.walhalla, name)
    }

    /// A call while the store is away: only a receipt can answer it.
    #[track_caller]
    fn assert_has_a_receipt(&self, name: &str) {
        let away = self.area.path("away");
        std::fs::rename(self.store.path(), &away).unwrap();
        self.push(name).succeeds();
        std::fs::rename(away, self.store.path()).unwrap();
    }

    fn spool(&self) -> std::path::PathBuf {
        let name = self.segments.data.file_name().unwrap().to_str().unwrap();
        self.segments
            .data
            .with_file_name(format!("{name}.walhalla-spool"))
    }
}

#[test]
fn one_call_archives_what_is_ready_and_the_later_calls_need_no_store() {
    let backlog = Backlog::make(4);
    let before = names_below(&backlog.segments.data);
    let [first, others @ ..] = backlog.ready() else {
        panic!("four segments");
    };
    backlog.push(first).succeeds();
    for name in backlog.ready() {
        backlog.segments.assert_archived(&backlog.walhalla, name);
    }
    // The server has not marked it ready.
    let last = backlog.segments.names.last().unwrap();
    backlog
        .segments
        .assert_not_archived(&backlog.walhalla, last);
    backlog.segments.mark_done(first);
    for name in others {
        backlog.assert_has_a_receipt(name);
        backlog.segments.mark_done(name);
    }
    assert_eq!(
        names_below(&backlog.segments.data).len(),
        before.len(),
        "files in the data directory"
    );

    // The next batch removes receipts that nobody will ask for.
    backlog.segments.mark_ready(last);
    backlog.push(last).succeeds();
    let left = names_below(&backlog.spool().join("pushed"));
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn the_spool_may_be_elsewhere() {
    let backlog = Backlog::make(2);
    let spool = backlog.area.make_dir("spool");
    let walhalla = backlog
        .walhalla
        .with_env("WALHALLA_SPOOL_DIR", spool.to_str().unwrap());
    backlog
        .segments
        .push(&walhalla, &backlog.ready()[0])
        .succeeds();
    assert!(!backlog.spool().exists());
    let kept = names_below(&spool);
    assert!(
        kept.iter().any(|name| name.ends_with(&backlog.ready()[1])),
        "{kept:?}"
    );
}

#[test]
fn another_content_under_a_name_with_a_receipt_is_refused() {
    let backlog = Backlog::make(2);
    let [first, second] = backlog.ready() else {
        panic!("two segments");
    };
    backlog.push(first).succeeds();
    assert!(backlog.spool().join("pushed").join(second).exists());
    let path = backlog.segments.data.join("pg_wal").join(second);
    let times = std::fs::metadata(&path).unwrap().modified().unwrap();
    let changed = with_a_record_changed(&backlog.segments.original(second));
    backlog.segments.put(second, &changed);
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(times).unwrap();
    backlog.push(second).exits_with(1).says(&[second]);
    backlog.segments.assert_archived(&backlog.walhalla, second);
}

/// Somebody may bring back what was lost in the store by marking it ready again.
#[test]
fn a_receipt_serves_once() {
    let backlog = Backlog::make(2);
    let [first, second] = backlog.ready() else {
        panic!("two segments");
    };
    backlog.push(first).succeeds();
    backlog.assert_has_a_receipt(second);
    backlog.segments.mark_done(second);
    std::fs::remove_file(backlog.store.object_of(second)).unwrap();
    backlog.segments.mark_ready(second);
    backlog.push(second).succeeds();
    backlog.segments.assert_archived(&backlog.walhalla, second);
}

#[test]
fn without_a_spool_that_can_be_written_only_what_is_asked_for_is_pushed() {
    let backlog = Backlog::make(3);
    let [first, second, _] = backlog.ready() else {
        panic!("three segments");
    };
    std::fs::write(backlog.spool(), "a file").unwrap();
    backlog
        .push(first)
        .succeeds()
        .says(&["nothing is pushed ahead"]);
    backlog.segments.assert_archived(&backlog.walhalla, first);
    backlog
        .segments
        .assert_not_archived(&backlog.walhalla, second);
}

#[test]
fn a_receipt_for_one_store_is_none_for_another() {
    let backlog = Backlog::make(2);
    let [first, second] = backlog.ready() else {
        panic!("two segments");
    };
    backlog.push(first).succeeds();
    let other = Store::Directory(backlog.area.make_dir("other"));
    let walhalla = Walhalla::on_host(&backlog.area, "other-host", &other, "");
    backlog.segments.push(&walhalla, second).succeeds();
    backlog.segments.assert_archived(&walhalla, second);
}

#[test]
fn a_spool_that_others_may_write_to_answers_nothing() {
    use std::os::unix::fs::PermissionsExt as _;
    let backlog = Backlog::make(2);
    let [first, second] = backlog.ready() else {
        panic!("two segments");
    };
    backlog.push(first).succeeds();
    let folder = backlog.spool().join("pushed");
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777)).unwrap();
    backlog.push(second).succeeds().says(&[
        "the spool is not used",
        "others may write to it",
        "archived before",
    ]);
}

#[test]
fn what_is_not_wal_in_the_clear_is_left_to_its_own_call() {
    let backlog = Backlog::make(3);
    let [first, second, _] = backlog.ready() else {
        panic!("three segments");
    };
    let noise: Vec<u8> = (0..16 << 20).map(|_| fastrand::u8(..)).collect();
    backlog.segments.put(second, &noise);
    backlog
        .push(first)
        .succeeds()
        .says(&[second, "not pushed ahead", "not WAL in the clear"]);
    backlog.segments.assert_archived(&backlog.walhalla, first);
    backlog
        .segments
        .assert_not_archived(&backlog.walhalla, second);
    backlog.push(second).exits_with(1).says(&[second, "hint:"]);
}

/// As `pg_tde` does, which keeps ciphertext in `pg_wal` and hands over a copy in the clear.
#[test]
fn beside_a_copy_that_was_handed_over_nothing_goes_up() {
    let backlog = Backlog::make(3);
    let [first, second, _] = backlog.ready() else {
        panic!("three segments");
    };
    let copies = backlog.area.make_dir("copies");
    let copy = copies.join(first);
    std::fs::write(&copy, backlog.segments.original(first)).unwrap();
    host().give_to_user(&copy);
    let copy = copy.to_str().unwrap();
    let push = ["wal-push", copy];
    backlog
        .walhalla
        .run_in(&backlog.segments.data, &push)
        .succeeds()
        .says(&["is not in the server's own directory", "not pushed ahead"]);
    backlog.segments.assert_archived(&backlog.walhalla, first);
    backlog
        .segments
        .assert_not_archived(&backlog.walhalla, second);
}

#[test]
fn a_segment_that_cannot_be_archived_does_not_keep_the_others_from_being_asked_for() {
    let backlog = Backlog::make(3);
    let [first, second, third] = backlog.ready() else {
        panic!("three segments");
    };
    let whole = backlog.segments.original(first);
    backlog.segments.put(first, &whole[..whole.len() / 2]);
    backlog.push(first).exits_with(1).says(&[first]);
    backlog.push(second).succeeds();
    backlog.push(third).succeeds();
    for name in [second, third] {
        backlog.segments.assert_archived(&backlog.walhalla, name);
    }
}

#[test]
fn whatever_a_kill_leaves_of_a_batch_every_segment_is_archived_in_the_end() {
    let backlog = Backlog::before(6, Store::directory);
    let reader = backlog.walhalla.clone();
    killed_batches(&backlog, &reader);
}

#[test]
fn whatever_a_kill_leaves_of_an_encrypted_batch_to_s3_every_segment_is_archived_in_the_end() {
    let mut backlog = Backlog::before(6, Store::s3);
    let key = Key::generate(&backlog.area, "key");
    backlog.walhalla = backlog.walhalla.encrypting_to(&[&key.recipient]);
    let reader = backlog.walhalla.opening_with(&key.identity);
    killed_batches(&backlog, &reader);
}

fn killed_batches(backlog: &Backlog, reader: &Walhalla) {
    let mut kills = 0;
    let span = std::time::Duration::from_millis(400);
    for name in backlog.ready() {
        let path = format!("pg_wal/{name}");
        let mut push = backlog.walhalla.command(&["wal-push", &path]);
        let push = push.current_dir(&backlog.segments.data);
        if let Ending::Killed = Walhalla::kill_after(push, random_moment_within(span)) {
            kills += 1;
        }
        backlog.push(name).succeeds();
        backlog.segments.assert_archived(reader, name);
        backlog.segments.mark_done(name);
    }
    println!("{kills} kills");
    for name in backlog.ready() {
        backlog.segments.assert_archived(reader, name);
    }
}

#[test]
fn a_server_drains_its_backlog_on_10() {
    drain_a_backlog(10);
}

#[test]
fn a_server_drains_its_backlog_on_18() {
    drain_a_backlog(18);
}

fn drain_a_backlog(version: u32) {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut primary = Cluster::create(&area, "primary", Shape::of(version));
    primary.configure("archive_mode = on\narchive_command = 'false'");
    primary.start();
    fill(&primary);
    let backlog: Vec<String> = (0..12).map(|_| primary.switch_segment()).collect();
    primary.configure(&walhalla.archive_settings());
    primary.sql("select pg_reload_conf()");
    eventually(
        "the backlog is archived",
        std::time::Duration::from_mins(2),
        || {
            primary.sql("select last_archived_wal from pg_stat_archiver")
                >= *backlog.last().unwrap()
        },
    );
    walhalla.back_up(&primary);
    primary.archive_everything();
    walhalla.run(&["wal-verify", "--deep"]).succeeds();
    let shown = walhalla.run(&["wal-show", "--json"]).succeeds().json();
    assert_eq!(shown["timelines"][0]["gaps"].as_array().unwrap().len(), 0);
    primary.stop();
}

/// The names of all files and directories below `root`.
fn names_below(root: &Path) -> Vec<String> {
    let mut find = host().command("find");
    let found = run(find.arg(root).args(["-mindepth", "1"])).succeeds();
    found.stdout.lines().map(str::to_owned).collect()
}
