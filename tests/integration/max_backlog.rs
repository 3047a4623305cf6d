//! `max_backlog`: what is dropped when the archive does not keep up, and who gets to know.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::{
    Area, Cluster, Outcome, Segments, Shape, Store, Walhalla, eventually, fill, host, make_history,
};

const SETTINGS: &str = "max_backlog = \"16MiB\"\nretry_timeout = \"2s\"";
const PATIENCE: Duration = Duration::from_mins(2);
/// Of 1 MiB each.
const MOST_READY: usize = 16;

/// Segments of which some wait, and a store that may be away.
struct Waiting {
    segments: Segments,
    walhalla: Walhalla,
    store: Store,
    area: Area,
}

impl Waiting {
    fn make(settings: &str) -> Self {
        let area = Area::new();
        let store = Store::directory(&area);
        let segments = Segments::make(&area, 4);
        Self {
            walhalla: Walhalla::with_settings(&area, &store, settings),
            segments,
            store,
            area,
        }
    }

    fn name(&self, at: usize) -> &str {
        &self.segments.names[at]
    }

    fn push(&self, at: usize) -> Outcome {
        self.segments.push(&self.walhalla, self.name(at))
    }

    fn take_store_away(&self) {
        take_away(&self.store, &self.area.path("away"));
    }

    fn bring_store_back(&self) {
        bring_back(&self.store, &self.area.path("away"));
    }

    fn notes(&self) -> PathBuf {
        self.area.path("pushing.walhalla-spool/dropped")
    }

    fn recorded_gaps(&self) -> Vec<String> {
        recorded_gaps(&self.store, &self.segments.system_identifier)
    }
}

/// In the store's place stands what no directory can be made of.
fn take_away(store: &Store, away: &Path) {
    std::fs::rename(store.path(), away).unwrap();
    std::fs::write(store.path(), "").unwrap();
}

fn bring_back(store: &Store, away: &Path) {
    std::fs::remove_file(store.path()).unwrap();
    std::fs::rename(away, store.path()).unwrap();
}

/// The names of the ledger's objects, in order.
fn recorded_gaps(store: &Store, system_identifier: &str) -> Vec<String> {
    let folder = format!("{system_identifier}/gaps/00000001");
    let Ok(entries) = std::fs::read_dir(store.path().join(folder)) else {
        return Vec::new();
    };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[test]
fn a_server_that_writes_on_without_its_store_keeps_room_and_every_report_tells_the_gap() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::with_settings(&area, &store, SETTINGS);
    let mut primary = Cluster::create(&area, "primary", Shape::small(17));
    walhalla.archive_from(&mut primary);
    fill(&primary);
    walhalla.back_up(&primary);
    let early = make_history(&primary, "early");
    primary.sql("insert into ledger values ('after early', '')");
    primary.archive_everything();

    let away = area.path("away");
    take_away(&store, &away);
    for _ in 0..MOST_READY + 8 {
        primary.switch_segment();
    }
    let ready = || {
        let status = primary.data.join("pg_wal/archive_status");
        let names = std::fs::read_dir(status).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.contains(".ready")).count()
    };
    eventually("segments are dropped", PATIENCE, || ready() <= MOST_READY);
    let log = primary.log_text();
    assert!(log.contains("is dropped and NOT archived"), "{log}");
    assert!(log.contains("max_backlog is 16.00 MiB"), "{log}");

    bring_back(&store, &away);
    let late = make_history(&primary, "late");
    primary.archive_everything();
    let gaps = recorded_gaps(&store, &primary.system_identifier());
    let [gap] = &gaps[..] else {
        panic!("one gap: {gaps:?}");
    };
    let (first, last) = gap.trim_end_matches(".json").split_once('-').unwrap();
    assert!(primary.log_text().contains("take a new base backup now"));

    let shown = walhalla.run(&["wal-show", "--json"]).succeeds().json();
    let told = &shown["timelines"][0]["gaps"][0];
    assert_eq!(told["first"], first, "{told}");
    assert_eq!(told["last"], last, "{told}");
    assert_eq!(told["dropped"][0]["first"], first, "{told}");
    assert_eq!(told["dropped"][0]["is_before_a_backup"], false, "{told}");
    assert_eq!(shown["reachable"][0]["missing"], first, "{shown}");
    let shown = walhalla.run(&["wal-show"]).succeeds().stdout;
    assert!(shown.contains("wal-push dropped"), "{shown}");
    assert!(shown.contains("no backup begins after it"), "{shown}");
    let verified = walhalla.run(&["wal-verify"]).exits_with(3);
    let verified = verified.stdout + &verified.stderr;
    for part in [first, last, "wal-push dropped"] {
        assert!(verified.contains(part), "{part}: {verified}");
    }
    let plan = |target: &str| walhalla.run(&["plan", "--target-time", target]);
    plan(&late.time)
        .exits_with(4)
        .says(&[first, "wal-push dropped"]);
    walhalla
        .run(&["plan"])
        .exits_with(4)
        .says(&[first, "wal-push dropped"]);
    plan(&early.time).succeeds();
    let recovering = area.make_dir("recovering");
    area.make_dir("recovering/global");
    for file in ["PG_VERSION", "global/pg_control"] {
        let content = std::fs::read(primary.data.join(file)).unwrap();
        area.write(&format!("recovering/{file}"), content);
    }
    area.write("recovering/recovery.signal", "");
    let fetched = walhalla.run_in(&recovering, &["wal-fetch", first, "fetched"]);
    fetched.exits_with(200).says(&["wal-push dropped"]);

    walhalla.back_up(&primary);
    let end = make_history(&primary, "end");
    primary.sql("insert into ledger values ('after end', '')");
    primary.archive_everything();
    let shown = walhalla.run(&["wal-show", "--json"]).succeeds().json();
    let told = &shown["timelines"][0]["gaps"][0]["dropped"][0];
    assert_eq!(told["is_before_a_backup"], true, "{told}");
    for (name, moment) in [("before", &early), ("after", &end)] {
        let args = ["--target-time", &moment.time, "--target-action", "promote"];
        let mut restored = walhalla.restore(&area, 17, name, &args);
        restored.start();
        restored.wait_until_promoted();
        restored.dump().assert_same_as(&moment.dump, name);
        restored.stop();
    }
}

#[test]
fn without_the_setting_or_within_it_nothing_is_dropped() {
    let waiting = Waiting::make("retry_timeout = \"2s\"");
    waiting.take_store_away();
    for at in 0..4 {
        waiting.segments.mark_ready(waiting.name(at));
    }
    waiting.push(0).exits_within(1..=2);
    let area = &waiting.area;
    let within = Walhalla::on_host(
        area,
        "within",
        &waiting.store,
        "max_backlog = \"64MiB\"\nretry_timeout = \"2s\"",
    );
    waiting
        .segments
        .push(&within, waiting.name(0))
        .exits_within(1..=2);
    assert!(!waiting.notes().join(waiting.name(0)).exists());
}

#[test]
fn what_was_dropped_is_recorded_with_the_next_success_and_what_waits_within_the_bound_is_kept() {
    let waiting = Waiting::make(SETTINGS);
    for at in 0..3 {
        waiting.segments.mark_ready(waiting.name(at));
    }
    waiting.take_store_away();
    let dropped = waiting.push(0).succeeds();
    dropped.says(&[
        waiting.name(0),
        "NOT archived",
        "take a new base backup",
        "Why it was not archived",
    ]);
    waiting.segments.mark_done(waiting.name(0));
    // The store has just failed: it is not tried for this one.
    waiting.push(1).succeeds().says(&["has not kept up"]);
    waiting.segments.mark_done(waiting.name(1));
    assert!(waiting.notes().join(waiting.name(1)).exists());
    // One segment is as much as may wait.
    waiting.push(2).exits_within(1..=2);

    let noted = std::fs::read(waiting.notes().join(waiting.name(0))).unwrap();
    waiting.bring_store_back();
    waiting
        .push(2)
        .succeeds()
        .says(&["is recorded in the store"]);
    let gap = format!("{}-{}.json", waiting.name(0), waiting.name(1));
    assert_eq!(waiting.recorded_gaps(), std::slice::from_ref(&gap));
    assert!(!waiting.notes().join(waiting.name(0)).exists());
    let object = waiting.store.path().join(format!(
        "{}/gaps/00000001/{gap}",
        waiting.segments.system_identifier
    ));
    let content: serde_json::Value =
        serde_json::from_slice(&std::fs::read(object).unwrap()).unwrap();
    assert_eq!(content["segments"], 2, "{content}");
    assert_eq!(content["max_backlog_bytes"], 16 << 20, "{content}");
    // As a process left it that was killed between the record and the removal of the notes; it is told once more, and done.
    put_note(&waiting, 0, &noted);
    put_note(&waiting, 1, &noted);
    waiting.push(2).succeeds();
    // The next success has nothing to tell, and leaves nothing.
    waiting.segments.mark_done(waiting.name(2));
    waiting.push(3).succeeds();
    assert!(!waiting.notes().exists());
    assert_eq!(waiting.recorded_gaps(), [gap]);
}

/// A note of the server's own user.
fn put_note(waiting: &Waiting, at: usize, content: &[u8]) {
    std::fs::create_dir_all(waiting.notes()).unwrap();
    let path = waiting.notes().join(waiting.name(at));
    std::fs::write(&path, content).unwrap();
    host().give_to_user(&path);
    host().give_to_user(&waiting.notes());
}

#[test]
fn a_drop_that_cannot_be_noted_does_not_happen() {
    let waiting = Waiting::make(SETTINGS);
    for at in 0..3 {
        waiting.segments.mark_ready(waiting.name(at));
    }
    waiting.take_store_away();
    // A file where the spool would be.
    waiting.area.write("pushing.walhalla-spool", "");
    waiting.push(0).exits_within(1..=2);
}

#[test]
fn a_segment_that_is_wrong_or_archived_with_other_content_is_kept() {
    let waiting = Waiting::make(SETTINGS);
    for at in 0..3 {
        waiting.segments.mark_ready(waiting.name(at));
    }
    let unlike = waiting.segments.original(waiting.name(1));
    waiting.segments.put(waiting.name(0), &unlike);
    waiting.push(0).exits_within(1..=2);
    let original = waiting.segments.original(waiting.name(0));
    waiting.segments.put(waiting.name(0), &original);
    waiting.push(0).succeeds();
    let mut changed = original.clone();
    let end = changed.len() - 100;
    changed.truncate(end);
    waiting.segments.put(waiting.name(0), &changed);
    waiting.push(0).exits_within(1..=2);
    assert!(waiting.recorded_gaps().is_empty());
    assert!(!waiting.notes().join(waiting.name(0)).exists());
}

#[test]
fn a_server_that_stops_keeps_what_it_has_and_history_files_are_never_dropped() {
    let waiting = Waiting::make(SETTINGS);
    for at in 0..3 {
        waiting.segments.mark_ready(waiting.name(at));
    }
    waiting.take_store_away();
    waiting.push(0).succeeds();
    waiting.segments.put(
        "00000002.history",
        b"1\t0/3000000\tno recovery target specified\n",
    );
    let history = waiting.segments.push(&waiting.walhalla, "00000002.history");
    history.exits_within(1..=2);
    let stopping = "1\n/data\n1\n5432\n/tmp\n\n 1 2\nstopping\n";
    waiting.area.write("pushing/postmaster.pid", stopping);
    waiting.push(1).exits_within(1..=2);
}
