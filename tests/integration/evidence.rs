//! What tells of WAL that is gone, and segments whose end is.

use std::path::PathBuf;

use crate::support::{Area, Cluster, Outcome, Shape, Store, Walhalla, fill, host, run};

/// A backup, and segments after it; the primary is stopped.
struct Archived {
    walhalla: Walhalla,
    store: Store,
    /// Segments after the backup, oldest first.
    segments: Vec<String>,
    primary: Cluster,
    area: Area,
}

impl Archived {
    fn make() -> Self {
        let area = Area::new();
        let store = Store::directory(&area);
        let walhalla = Walhalla::new(&area, &store);
        let mut primary = Cluster::create(&area, "primary", Shape::small(17));
        walhalla.archive_from(&mut primary);
        fill(&primary);
        walhalla.back_up(&primary);
        let mut segments = Vec::new();
        for _ in 0..3 {
            primary.sql("create table if not exists more (body text)");
            primary.sql("insert into more select repeat('x', 700) from generate_series(1, 900)");
            segments.push(primary.archive_everything());
        }
        Self {
            walhalla,
            store,
            segments,
            primary,
            area,
        }
    }

    fn remove(&self, segment: &str) {
        std::fs::remove_file(self.store.object_of(segment)).unwrap();
    }

    fn remove_summary(&self, segment: &str) {
        for summary in self.store.summaries_named(segment) {
            std::fs::remove_file(summary).unwrap();
        }
    }

    fn misses(&self, args: &[&str], segment: &str, why: &str) {
        let verified = self.walhalla.run(args).exits_with(3);
        let problems = verified.json()["problems"].clone();
        let problem = problems
            .as_array()
            .unwrap()
            .iter()
            .find(|problem| problem["object"].as_str().unwrap().contains(segment));
        let what = problem.unwrap_or_else(|| panic!("{segment}: {verified}"))["what"].to_string();
        assert!(what.contains("missing") && what.contains(why), "{what}");
    }

    fn plan(&self, args: &[&str]) -> Outcome {
        self.walhalla.run(&[&["plan", "--json"], args].concat())
    }
}

#[test]
fn a_last_segment_whose_summary_is_there_is_missed() {
    let archived = Archived::make();
    let last = archived.segments.last().unwrap();
    archived.plan(&[]).succeeds();
    archived.remove(last);
    archived.misses(&["wal-verify", "--json"], last, "its summary is there");
    let plan = archived.plan(&[]).exits_with(4);
    let hint = plan.json()["nearest"].as_str().unwrap().to_owned();
    assert!(
        plan.json()["reason"]
            .as_str()
            .unwrap()
            .contains(last.as_str()),
        "{plan}"
    );
    // What is offered instead is true.
    let words: Vec<&str> = hint.split(' ').collect();
    archived.plan(&words).succeeds();

    // Nothing tells of it any more.
    archived.remove_summary(last);
    archived.walhalla.run(&["wal-verify"]).succeeds();
    archived.plan(&[]).succeeds();
}

#[test]
fn a_last_segment_of_which_a_receipt_tells_is_missed() {
    let archived = Archived::make();
    let last = archived.segments.last().unwrap();
    let receipts = archived.area.path("receipts");
    let deep = [
        "wal-verify",
        "--deep",
        "--json",
        "--receipts",
        receipts.to_str().unwrap(),
    ];
    archived.walhalla.run(&deep).succeeds();
    archived.remove(last);
    archived.remove_summary(last);
    for _ in 0..2 {
        archived.misses(&deep, last, "a receipt says");
    }
}

#[test]
fn a_last_segment_in_which_a_backup_began_is_missed() {
    let archived = Archived::make();
    let second = archived.walhalla.back_up(&archived.primary);
    archived.primary.archive_everything();
    let backup = archived
        .walhalla
        .run(&["backup-show", &second, "--json"])
        .succeeds()
        .json();
    let start = backup["start_lsn"].as_str().unwrap();
    let begin = archived
        .primary
        .sql(&format!("select pg_walfile_name('{start}')"));
    for number in 0..4 {
        let hex = u64::from_str_radix(&begin[8..], 16).unwrap() + number;
        let segment = format!("{}{hex:016X}", &begin[..8]);
        for object in archived.store.objects_named(&format!("{segment}.lz4")) {
            std::fs::remove_file(object).unwrap();
        }
        archived.remove_summary(&segment);
    }
    // Its `backup.json` tells of the last one.
    archived.plan(&[]).exits_with(4);
    let entries = archived.store.objects_named("backup.json");
    let folder = entries
        .iter()
        .find(|path| path.to_string_lossy().contains(&second))
        .unwrap();
    std::fs::remove_dir_all(folder.parent().unwrap()).unwrap();
    archived.misses(
        &["wal-verify", "--json"],
        &begin,
        "history file of a backup",
    );
    archived.plan(&[]).exits_with(4);
}

/// Zeros from this page of a segment on, as stock tools would store it.
fn cut(archived: &Archived, segment: &str, page: usize) -> PathBuf {
    let object = archived.store.object_of(segment);
    let plain = object.with_extension("");
    run(host()
        .command("lz4")
        .args(["-q", "-d"])
        .arg(&object)
        .arg(&plain))
    .succeeds();
    std::fs::remove_file(&object).unwrap();
    let mut content = std::fs::read(&plain).unwrap();
    content[page * 8192..].fill(0);
    std::fs::write(&plain, content).unwrap();
    plain
}

#[test]
fn a_segment_that_lost_its_end_is_a_gap_and_is_named_itself() {
    for page in [1, 37, 64] {
        let archived = Archived::make();
        let [first, second, _] = &archived.segments[..] else {
            panic!("{:?}", archived.segments);
        };
        // The first of the three is followed by others whose beginning hangs on it.
        let object = cut(&archived, first, page);
        let plan = archived.plan(&[]).exits_with(4);
        let reason = plan.json()["reason"].as_str().unwrap().to_owned();
        assert!(
            reason.contains(first.as_str()) && reason.contains("was cut"),
            "{reason}"
        );
        let verified = archived
            .walhalla
            .run(&["wal-verify", "--deep", "--json"])
            .exits_with(3);
        let problems = verified.json()["problems"].clone();
        let blamed: Vec<&str> = problems
            .as_array()
            .unwrap()
            .iter()
            .map(|problem| problem["object"].as_str().unwrap())
            .collect();
        assert!(
            blamed.len() == 1 && blamed[0].ends_with(object.file_name().unwrap().to_str().unwrap()),
            "{blamed:?}"
        );
        let restored = archived.area.path("restored");
        archived
            .walhalla
            .run(&["restore", restored.to_str().unwrap()])
            .exits_with(4);
        assert!(!restored.exists());
        assert!(!reason.contains(second.as_str()));
    }
}

#[test]
fn a_last_segment_that_lost_its_end_is_a_gap_too() {
    let archived = Archived::make();
    let last = archived.segments.last().unwrap();
    cut(&archived, last, 5);
    let plan = archived.plan(&[]).exits_with(4);
    assert!(
        plan.json()["reason"].as_str().unwrap().contains("was cut"),
        "{plan}"
    );
    let hint = plan.json()["nearest"].as_str().unwrap().to_owned();
    let words: Vec<&str> = hint.split(' ').collect();
    archived.plan(&words).succeeds();
}
