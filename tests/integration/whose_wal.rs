//! WAL and summaries under the right names, of another server: a copy that went its own way has the same system identifier,
//! timeline and segment names.

use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::Digest as _;

use crate::support::{Area, Cluster, Shape, Store, Walhalla, copy_tree, host, run};

/// Two copies of one cluster that went on apart, each with an archive and a backup of its own.
struct Parted {
    one: Side,
    other: Side,
    area: Area,
    /// Where the other's archive is.
    _elsewhere: Area,
}

struct Side {
    cluster: Cluster,
    walhalla: Walhalla,
    store: Store,
    backup: String,
}

impl Parted {
    fn make(version: u32) -> Self {
        let (area, elsewhere) = (Area::new(), Area::new());
        let store = Store::directory(&area);
        let mut cluster = Cluster::create(&area, "one", Shape::small(version));
        cluster.start();
        cluster.sql("create table t (who text)");
        cluster.stop();
        let copy = area.path("other");
        copy_tree(&cluster.data, &copy);
        let other_store = Store::directory(&elsewhere);
        let other = Cluster::adopt(&area, version, copy);
        let one = Side::run(cluster, Walhalla::new(&area, &store), store, "one");
        // Both do the same: their backups are at the same positions, and minutes or months apart.
        std::thread::sleep(std::time::Duration::from_secs(8));
        let walhalla = Walhalla::on_host(&area, "elsewhere", &other_store, "");
        let other = Side::run(other, walhalla, other_store, "the other");
        Self {
            one,
            other,
            area,
            _elsewhere: elsewhere,
        }
    }
}

impl Side {
    fn run(mut cluster: Cluster, walhalla: Walhalla, store: Store, who: &str) -> Self {
        walhalla.archive_from(&mut cluster);
        cluster.sql(&format!(
            "insert into t select '{who}' from generate_series(1, 100)"
        ));
        cluster.archive_everything();
        let backup = walhalla.back_up(&cluster);
        for _ in 0..3 {
            cluster.sql(&format!("insert into t values ('{who}, later')"));
            cluster.archive_everything();
        }
        Self {
            cluster,
            walhalla,
            store,
            backup,
        }
    }

    /// Its objects below this folder, by their path there.
    fn folder(&self, name: &str) -> PathBuf {
        self.store.path().join(self.cluster_id()).join(name)
    }

    fn cluster_id(&self) -> String {
        self.cluster.system_identifier()
    }
}

/// Puts what is in the one folder over what is in the other.
fn put_over(from: &Path, to: &Path) {
    run(host()
        .command("cp")
        .args(["-a", "-f"])
        .arg(from)
        .arg(to.parent().unwrap()))
    .succeeds();
}

fn a_backup_is_not_taken_with_anothers_wal(version: u32) {
    let mut parted = Parted::make(version);
    // The other's backup, in an archive of the segments of the one.
    put_over(
        &parted.other.folder("backups"),
        &parted.one.folder("backups"),
    );
    let (one, foreign) = (&parted.one, &parted.other.backup);
    let verified = one
        .walhalla
        .run(&["verify", foreign, "--json"])
        .exits_with(3)
        .json();
    let problems = verified["problems"].to_string();
    assert!(problems.contains("names backup"), "{problems}");
    one.walhalla.run(&["verify", &one.backup]).succeeds();
    one.walhalla
        .run(&["plan", "--backup", foreign])
        .exits_with(4)
        .says(&["is not that of backup"]);
    let copy = parted.area.path("restored");
    one.walhalla
        .run(&["restore", copy.to_str().unwrap(), "--backup", foreign])
        .exits_with(4);
    assert!(!copy.exists());
    // The plan that may choose takes the backup that the WAL is of.
    let plan = one.walhalla.run(&["plan", "--json"]).succeeds().json();
    assert_eq!(plan["backup_chain"], serde_json::json!([one.backup]));
    parted.one.cluster.stop();
}

#[test]
fn a_backup_is_not_taken_with_the_wal_of_a_copy_that_went_its_own_way_on_13() {
    a_backup_is_not_taken_with_anothers_wal(13);
}

#[test]
fn a_backup_is_not_taken_with_the_wal_of_a_copy_that_went_its_own_way_on_17() {
    a_backup_is_not_taken_with_anothers_wal(17);
}

#[test]
fn summaries_of_another_servers_segments_change_no_plan_and_are_made_anew() {
    let parted = Parted::make(17);
    let plans = |walhalla: &Walhalla| -> Vec<Value> {
        let targets: [&[&str]; 2] = [&[], &["--target-immediate"]];
        let plan = |args: &&[&str]| walhalla.run(&[&["plan", "--json"], *args].concat()).json();
        let found = walhalla.run(&["find", "--from", "2000-01-01 00:00:00+00", "--json"]);
        targets.iter().map(plan).chain([found.json()]).collect()
    };
    let one = &parted.one;
    let before = plans(&one.walhalla);
    put_over(&parted.other.folder("summary"), &one.folder("summary"));
    assert_eq!(plans(&one.walhalla), before);
    one.walhalla
        .run(&["plan"])
        .succeeds()
        .says(&["summary of another segment of that name"]);
    let report = one
        .walhalla
        .run(&["wal-summarize", "--check", "--json"])
        .succeeds()
        .json();
    assert!(report["made"].as_u64() > Some(0), "{report}");
    let after = one.walhalla.run(&["plan"]).succeeds();
    assert!(!after.stderr.contains("another segment"), "{after}");
}

#[test]
fn a_delta_does_not_go_by_summaries_of_another_servers_segments() {
    let mut parted = Parted::make(17);
    let expected = parted
        .one
        .cluster
        .sql("select who, count(*) from t group by 1 order by 1");
    put_over(
        &parted.other.folder("summary"),
        &parted.one.folder("summary"),
    );
    let data = parted.one.cluster.data.to_str().unwrap().to_owned();
    let delta = ["backup-push", &data, "--delta", "--changed-blocks", "wal"];
    parted
        .one
        .walhalla
        .run_with(&parted.one.cluster, &delta)
        .succeeds();
    parted.one.cluster.stop();
    let mut restored = parted
        .one
        .walhalla
        .restore(&parted.area, 17, "restored", &[]);
    restored.start();
    restored.wait_until_promoted();
    assert_eq!(
        restored.sql("select who, count(*) from t group by 1 order by 1"),
        expected
    );
}

#[test]
fn a_delta_does_not_stand_on_another_servers_backup() {
    let parted = Parted::make(17);
    let one = &parted.one;
    put_over(&parted.other.folder("backups"), &one.folder("backups"));
    let data = one.cluster.data.to_str().unwrap();
    let delta = [
        "backup-push",
        data,
        "--delta",
        "--parent",
        &parted.other.backup,
    ];
    one.walhalla
        .run_with(&one.cluster, &delta)
        .exits_with(1)
        .says(&["names the parent"]);
}

#[test]
fn an_old_summary_is_made_anew_and_until_then_the_segment_is_read() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut primary = Cluster::create(&area, "primary", Shape::small(17));
    walhalla.archive_from(&mut primary);
    walhalla.back_up(&primary);
    let place = area.make_dir("space");
    primary.sql(&format!(
        "create tablespace t location '{}'",
        place.display()
    ));
    let segment = primary.archive_everything();
    primary.stop();
    let before = walhalla.run(&["plan", "--json"]).succeeds().json();
    assert_eq!(
        before["new_tablespaces"][0]["location"],
        place.to_str().unwrap()
    );

    // As 0.1.0 wrote them: without tablespaces.
    let older = |json: &str| {
        let mut summary: Value = serde_json::from_str(json).unwrap();
        summary["format"] = 1.into();
        let notes = summary["notes"].as_array_mut().unwrap();
        notes.retain(|note| note["kind"] != "tablespace_created");
        summary.to_string()
    };
    rewrite_summary(&store, &segment, older);
    let plan = walhalla
        .run(&["plan", "--json"])
        .succeeds()
        .says(&["older format"]);
    assert_eq!(plan.json(), before);
    walhalla.run(&["wal-summarize"]).succeeds();
    let plan = walhalla.run(&["plan", "--json"]).succeeds();
    assert!(!plan.stderr.contains("older format"), "{plan}");
    assert_eq!(plan.json(), before);

    // Format 2 named the segment by its SHA-256, and is read as it is.
    let content = area.path("content");
    run(host()
        .command("lz4")
        .args(["-dq"])
        .arg(store.object_of(&segment))
        .arg(&content))
    .succeeds();
    let sha256 = hex::encode(sha2::Sha256::digest(std::fs::read(content).unwrap()));
    let of_format_2 = |sha256: &str, json: &str| {
        let mut summary: Value = serde_json::from_str(json).unwrap();
        summary["format"] = 2.into();
        let members = summary.as_object_mut().unwrap();
        members.remove("segment_blake3");
        members.remove("segment_trailer");
        members.insert("segment_sha256".to_owned(), sha256.into());
        summary.to_string()
    };
    rewrite_summary(&store, &segment, |json| of_format_2(&sha256, json));
    let stored = || std::fs::read(&store.summaries_named(&segment)[0]).unwrap();
    let kept = stored();
    for command in [&["plan", "--json"][..], &["wal-summarize", "--check"]] {
        let read = walhalla.run(command).succeeds();
        assert!(!read.stderr.contains(&segment), "{read}");
    }
    assert_eq!(walhalla.run(&["plan", "--json"]).succeeds().json(), before);
    assert!(stored() == kept);
    rewrite_summary(&store, &segment, |json| of_format_2(&"0".repeat(64), json));
    walhalla
        .run(&["plan", "--json"])
        .succeeds()
        .says(&["another segment of that name"]);
    walhalla
        .run(&["wal-summarize", "--check"])
        .succeeds()
        .says(&[&segment, "made anew"]);
    assert!(stored() != kept);
}

/// Stores another summary of the segment, with the checksum that belongs to it.
fn rewrite_summary(store: &Store, segment: &str, change: impl Fn(&str) -> String) {
    let summaries = store.summaries_named(segment);
    let [path] = &summaries[..] else {
        panic!("{summaries:?}");
    };
    let json = run(host().command("lz4").args(["-dc"]).arg(path))
        .succeeds()
        .stdout;
    let plain = path.with_extension("");
    std::fs::write(&plain, change(&json)).unwrap();
    std::fs::remove_file(path).unwrap();
    run(host()
        .command("lz4")
        .args(["-q", "--no-frame-crc", "--rm"])
        .arg(&plain)
        .arg(path))
    .succeeds();
    let frames = std::fs::read(path).unwrap();
    let name = plain.strip_prefix(store.path()).unwrap().to_str().unwrap();
    let sum = sha2::Sha256::new()
        .chain_update(name)
        .chain_update("\n")
        .chain_update(&frames)
        .finalize();
    let trailer = [
        &0x184D_2A5E_u32.to_le_bytes()[..],
        &48_u32.to_le_bytes(),
        b"walhalla-sha256\n",
        &sum,
    ]
    .concat();
    std::fs::write(path, [frames, trailer].concat()).unwrap();
    host().give_to_user(path);
}

/// Two copies archive into one store, and the first one's segments have the names: a backup of the second one, whose
/// archiver pretends to succeed, is not taken.
fn a_backup_is_refused_behind_anothers_segments(version: u32) {
    let area = Area::new();
    let walhalla = Walhalla::new(&area, &Store::directory(&area));
    let mut one = Cluster::create(&area, "one", Shape::small(version));
    one.start();
    one.sql("create table t (who text)");
    one.stop();
    let copy = area.path("other");
    copy_tree(&one.data, &copy);
    let mut other = Cluster::adopt(&area, version, copy);
    walhalla.archive_from(&mut one);
    one.sql("insert into t select 'one' from generate_series(1, 100)");
    walhalla.back_up(&one);
    for _ in 0..4 {
        one.sql("insert into t values ('one, later')");
        one.archive_everything();
    }
    other.configure("archive_mode = on\narchive_command = 'true'");
    other.start();
    other.sql("insert into t select 'the other' from generate_series(1, 100)");
    let data = other.data.to_str().unwrap().to_owned();
    walhalla
        .run_with(&other, &["backup-push", &data])
        .exits_with(1)
        .says(&["is already archived with other content", "two servers"]);
    assert_eq!(walhalla.backup_ids().len(), 1);
}

#[test]
fn a_backup_is_refused_behind_the_segments_of_a_copy_on_13() {
    a_backup_is_refused_behind_anothers_segments(13);
}

#[test]
fn a_backup_is_refused_behind_the_segments_of_a_copy_on_17() {
    a_backup_is_refused_behind_anothers_segments(17);
}
