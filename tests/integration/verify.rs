//! Verifying what is stored: the whole of it, only what is new, and what is missing.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use walhalla::pipeline::Packing;

use crate::support::{
    Area, Cluster, Ending, Shape, Store, Walhalla, fill, host, make_history, make_read_only,
    random_moment_within, run,
};

const SHAPE: Shape = Shape {
    version: 17,
    segment_mb: 1,
};

struct Site {
    store: Store,
    walhalla: Walhalla,
    cluster: Cluster,
    area: Area,
}

impl Site {
    fn make(shape: Shape) -> Self {
        Self::make_with(shape, "")
    }

    fn make_with(shape: Shape, settings: &str) -> Self {
        let area = Area::new();
        let store = Store::directory(&area);
        let walhalla = Walhalla::with_settings(&area, &store, settings);
        let mut cluster = Cluster::create(&area, "primary", shape);
        walhalla.archive_from(&mut cluster);
        fill(&cluster);
        walhalla.back_up(&cluster);
        for name in ["first", "second", "third"] {
            make_history(&cluster, name);
            cluster.archive_everything();
        }
        Self {
            store,
            walhalla,
            cluster,
            area,
        }
    }

    #[track_caller]
    fn report(&self, args: &[&str], code: i32) -> Value {
        let all = [args, &["--json"]].concat();
        let report = self.walhalla.run(&all).exits_with(code).json();
        assert_eq!(report["ok"], code == 0, "{report:#}");
        report
    }

    fn remove(&self, name: &str) {
        let objects = self.store.objects_named(name);
        assert!(!objects.is_empty(), "no object {name}");
        for object in objects {
            std::fs::remove_file(object).unwrap();
        }
    }

    fn segments(&self) -> Vec<String> {
        let objects = self.store.objects_named("00000001");
        let names = objects
            .iter()
            .map(|object| object.file_name().unwrap().to_str().unwrap());
        let mut names: Vec<String> = names
            .map(|name| Packing::split(name).0.to_owned())
            .filter(|name| name.len() == 24)
            .collect();
        names.sort();
        names
    }
}

macro_rules! sound_on_versions {
    ($($name:ident = $version:literal;)*) => {$(
        #[test]
        fn $name() {
            let site = Site::make(Shape::of($version));
            let report = site.report(&["verify"], 0);
            for counter in ["files", "pages", "segments_read", "bytes"] {
                assert!(report[counter].as_u64() > Some(0), "{counter}: {report:#}");
            }
            let report = site.report(&["wal-verify", "--deep"], 0);
            assert!(report["segments_read"].as_u64() >= Some(2), "{report:#}");
        }
    )*};
}

sound_on_versions! {
    what_postgres_13_wrote_is_sound = 13;
    what_postgres_15_wrote_is_sound = 15;
    what_postgres_17_wrote_is_sound = 17;
    what_postgres_18_wrote_is_sound = 18;
}

#[test]
fn a_segment_that_is_missing_is_named_with_the_backups_that_need_it() {
    let site = Site::make(SHAPE);
    let segments = site.segments();
    site.walhalla.run(&["wal-verify"]).succeeds();
    // The newest may be missing: the archive ends there.
    site.remove(segments.last().unwrap());
    for summary in site.store.summaries_named(segments.last().unwrap()) {
        std::fs::remove_file(summary).unwrap();
    }
    site.walhalla.run(&["wal-verify"]).succeeds();
    let gap = &segments[segments.len() - 3];
    site.remove(gap);
    let report = site.report(&["wal-verify"], 3);
    let problem = &report["problems"][0];
    assert!(
        problem["object"].as_str().unwrap().ends_with(gap),
        "{report:#}"
    );
    let backup = site.walhalla.newest_backup();
    assert!(
        problem["what"].as_str().unwrap().contains(&backup),
        "{report:#}"
    );
}

#[test]
fn a_segment_that_a_backup_is_not_consistent_without_is_missed_by_verify_too() {
    let site = Site::make(SHAPE);
    let backup = site.walhalla.newest_backup();
    let plan = site
        .walhalla
        .run(&["plan", "--json", "--target-immediate"])
        .succeeds()
        .json();
    let first = plan["segments"][0].as_str().unwrap();
    site.remove(&format!("{first}.lz4"));
    for args in [
        &["verify"][..],
        &["verify", &backup],
        &["verify", "--all"],
        &["wal-verify"],
    ] {
        let report = site.report(args, 3);
        let problem = &report["problems"][0];
        assert!(
            problem["object"].as_str().unwrap().ends_with(first),
            "{report:#}"
        );
    }
}

#[test]
fn a_part_that_is_missing_and_one_too_many_are_named() {
    let site = Site::make(SHAPE);
    let part = site.store.objects_named("00001.tar").remove(0);
    let extra = part.with_file_name("00009.tar.lz4");
    std::fs::rename(&part, &extra).unwrap();
    let report = site.report(&["verify"], 3);
    let problems = report["problems"].to_string();
    for (name, what) in [
        ("00001.tar.lz4", "missing"),
        ("00009.tar.lz4", "backup.json"),
    ] {
        assert!(
            problems.contains(name) && problems.contains(what),
            "{report:#}"
        );
    }
}

#[test]
fn a_backup_of_corrupt_pages_is_no_sound_backup() {
    let site = Site::make(SHAPE);
    let path = site
        .cluster
        .sql("select pg_relation_filepath('pgbench_accounts')");
    site.cluster.sql("checkpoint");
    let file = site.cluster.data.join(path.trim());
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[8192 * 3 + 5000] ^= 0x10;
    std::fs::write(&file, bytes).unwrap();
    let data = site.cluster.data.to_str().unwrap();
    site.walhalla
        .run_with(&site.cluster, &["backup-push", data])
        .exits_with(3);
    let report = site.report(&["verify"], 3);
    let what = report["problems"][0]["what"].as_str().unwrap();
    assert!(
        what.contains("block 3") && what.contains(path.trim()),
        "{report:#}"
    );
    assert!(what.contains("when the backup was taken"), "{report:#}");
}

#[test]
fn receipts_leave_only_what_is_new_to_read() {
    let site = Site::make(SHAPE);
    let receipts = site.area.path("receipts");
    let receipts = receipts.to_str().unwrap();
    let deep = ["wal-verify", "--deep", "--receipts", receipts];
    let all = ["verify", "--all", "--receipts", receipts];
    let first = site.report(&deep, 0);
    assert!(first["segments_read"].as_u64() > Some(1), "{first:#}");
    assert_eq!(site.report(&deep, 0)["segments_read"], 0);
    site.report(&all, 0);
    assert!(site.report(&all, 0)["objects_with_receipt"].as_u64() > Some(0));

    make_history(&site.cluster, "more");
    site.cluster.archive_everything();
    let more = site.report(&deep, 0);
    let read = more["segments_read"].as_u64();
    assert!(
        read > Some(0) && read < first["segments_read"].as_u64(),
        "{more:#}"
    );

    // What changed meanwhile is read again, and so is everything when no receipt counts.
    let damaged = site.store.objects_named(&site.segments()[1]).remove(0);
    let mut bytes = std::fs::read(&damaged).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::remove_file(&damaged).unwrap();
    std::fs::write(&damaged, bytes).unwrap();
    for _ in 0..2 {
        // It and the one after it, as a record may run from one into the other.
        let report = site.report(&deep, 3);
        assert_eq!(report["segments_read"], 2, "{report:#}");
    }
    let again = [&deep[..], &["--recheck-days", "0"]].concat();
    assert!(site.report(&again, 3)["segments_read"].as_u64() > read);
}

fn work(cluster: &Cluster, transactions: &str) {
    for _ in 0..3 {
        cluster.pgbench(&["-t", transactions]);
        cluster.archive_everything();
    }
}

/// Two servers that began as copies of each other write the same segments with other content. Each is sound.
#[test]
fn a_segment_of_a_twin_does_not_fit_the_one_before_it() {
    let mut site = Site::make(SHAPE);
    site.cluster.stop();
    let twin_data = site.area.path("twin");
    let mut copy = host().command("cp");
    run(copy.arg("-a").arg(&site.cluster.data).arg(&twin_data)).succeeds();
    let before = site.segments().len();
    site.cluster.start();
    work(&site.cluster, "700");
    site.cluster.stop();

    let other = Store::Directory(site.area.make_dir("twin-store"));
    let mut twin = Cluster::adopt(&site.area, SHAPE.version, twin_data);
    Walhalla::with_settings(&site.area, &other, "").archive_from(&mut twin);
    work(&twin, "900");
    twin.stop();

    let name = site.segments()[before + 2].clone();
    let own = site.store.objects_named(&name).remove(0);
    let foreign = std::fs::read(other.objects_named(&name).remove(0)).unwrap();
    assert!(foreign != std::fs::read(&own).unwrap());
    std::fs::remove_file(&own).unwrap();
    std::fs::write(&own, foreign).unwrap();
    host().give_to_user(&own);
    let walhalla = Walhalla::with_settings(&site.area, &site.store, "");
    let outcome = walhalla.run(&["wal-verify", "--deep", "--json"]);
    let outcome = outcome.exits_with(3);
    let problems = outcome.json()["problems"].to_string();
    assert!(problems.contains(name.as_str()), "{outcome}");
    let data = site.area.path("restored");
    walhalla
        .run(&["restore", data.to_str().unwrap()])
        .exits_with(4)
        .says(&["error:", &name, "does not continue", "hint:"]);
    assert!(!data.exists());
    // Alone it is what its name says.
    let fetched = site.area.path(&name);
    let fetch = ["wal-fetch", &name, fetched.to_str().unwrap()];
    walhalla.run_in(&site.cluster.data, &fetch).succeeds();
}

#[test]
fn a_verification_that_was_killed_goes_on_where_it_was() {
    let site = Site::make(SHAPE);
    let receipts = site.area.path("receipts");
    let deep = [
        "wal-verify",
        "--deep",
        "--receipts",
        receipts.to_str().unwrap(),
    ];
    let whole = site.report(&["wal-verify", "--deep"], 0)["segments_read"].as_u64();
    for _ in 0..200 {
        let delay = random_moment_within(Duration::from_millis(100));
        let ending = Walhalla::kill_after(&mut site.walhalla.command(&deep), delay);
        let lines = std::fs::read_to_string(&receipts).map_or(0, |text| text.lines().count());
        // One of them may be cut, one may be empty.
        if matches!(ending, Ending::Killed) && lines > 3 {
            let report = site.report(&deep, 0);
            assert!(report["segments_read"].as_u64() < whole, "{report:#}");
            return;
        }
        let _ = std::fs::remove_file(&receipts);
    }
    panic!("no run was killed in its middle");
}

#[test]
fn a_store_that_can_only_be_read_is_verified() {
    let site = Site::make(SHAPE);
    make_read_only(site.store.path());
    site.report(&["verify", "--all"], 0);
    site.report(&["wal-verify", "--deep"], 0);
    crate::support::give_rights_back(site.store.path());
}

#[test]
fn a_verification_that_cannot_reach_the_store_tells_nothing_of_the_backups() {
    let area = Area::new();
    let store = Store::s3(&area);
    let walhalla = Walhalla::with_settings(&area, &store, "retry_timeout = \"2s\"")
        .with_env("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9");
    for command in ["verify", "wal-verify"] {
        let outcome = walhalla.run(&[command, "--json"]).exits_with(1);
        assert!(outcome.stdout.is_empty(), "{outcome}");
    }
}

#[test]
fn an_archive_without_a_backup_is_read_across_its_borders_too() {
    let site = Site::make(SHAPE);
    let folder = site.store.objects_named("backup.json").remove(0);
    std::fs::remove_dir_all(folder.parent().unwrap()).unwrap();
    let report = site.report(&["wal-verify", "--deep"], 0);
    let segments = site.segments().len();
    assert_eq!(report["segments_read"].as_u64(), Some(segments as u64));
    assert_eq!(report["backups"], 0);
}

/// Changes the plain content of a segment, for archives without compression.
fn flip(object: &Path, at: usize, bit: u8) {
    let mut bytes = std::fs::read(object).unwrap();
    bytes[at] ^= 1 << bit;
    std::fs::remove_file(object).unwrap();
    std::fs::write(object, bytes).unwrap();
    host().give_to_user(object);
}

/// What a changed byte does to what is unpacked says nothing of the backup, and would only lead astray.
#[test]
fn a_changed_byte_of_a_part_is_one_problem_and_no_restore_believes_it() {
    for compression in ["lz4", "zstd", "none"] {
        let settings = format!("compression = \"{compression}\"");
        let site = Site::make_with(SHAPE, &settings);
        let parts = site.store.objects_named("00001.tar");
        let part = parts.first().unwrap();
        let name = part.file_name().unwrap().to_str().unwrap();
        let length = usize::try_from(part.metadata().unwrap().len()).unwrap();
        for number in 0..40 {
            // The first bytes are those of headers: of the frame, of the tar file.
            let at = if number < 10 {
                number * 7
            } else {
                fastrand::usize(..length)
            };
            let bit = fastrand::u8(..8);
            flip(part, at, bit);
            let report = site.report(&["verify", "--all"], 3);
            let problems = report["problems"].as_array().unwrap();
            let object = problems[0]["object"].as_str().unwrap();
            let place = format!("{compression}, bit {bit} of byte {at}: {report:#}");
            assert!(problems.len() == 1 && object.ends_with(name), "{place}");
            if number % 4 == 0 {
                let data = site.area.path(&format!("restored-{number}"));
                let newest = site.walhalla.newest_backup();
                let fetch = ["backup-fetch", data.to_str().unwrap(), &newest];
                let outcome = site.walhalla.run(&fetch);
                assert_eq!(outcome.code, Some(1), "{place}: {outcome}");
                assert!(!data.join("global/pg_control").exists(), "{place}");
            }
            flip(part, at, bit);
        }
        site.report(&["verify", "--all"], 0);
    }
}

/// What PostgreSQL looks at in a page header, so that it never finds an end of the archive where none is.
#[test]
fn every_bit_of_a_page_header_that_postgres_refuses_is_refused() {
    let site = Site::make_with(SHAPE, "compression = \"none\"");
    let names = site.segments();
    let object = site.store.objects_named(&names[names.len() - 2]).remove(0);
    let original = std::fs::read(&object).unwrap();
    let page = 8192 * 3;
    assert!(original[page..page + 2] != [0, 0], "no third page");
    // xlp_magic, xlp_info, xlp_tli, xlp_pageaddr, xlp_rem_len; behind them is padding.
    for byte in 0..20 {
        for bit in 0..8 {
            // XLP_LONG_HEADER, with the record for its fields, and XLP_BKP_REMOVABLE, which says nothing of the page.
            if byte == 2 && (bit == 2 || bit == 3) {
                continue;
            }
            flip(&object, page + byte, bit);
            let outcome = site.walhalla.run(&["wal-verify", "--deep"]);
            assert_eq!(outcome.code, Some(3), "bit {bit} of byte {byte}: {outcome}");
            flip(&object, page + byte, bit);
        }
    }
    assert!(std::fs::read(&object).unwrap() == original);
    site.report(&["wal-verify", "--deep"], 0);
}

#[test]
fn a_record_that_is_damaged_beyond_a_segments_end_is_found_by_restore_and_despite_receipts() {
    let site = Site::make_with(SHAPE, "compression = \"none\"");
    // A record that is longer than a segment.
    site.cluster
        .sql("select pg_logical_emit_message(false, 'long', repeat('x', 3000000))");
    site.cluster.archive_everything();
    let receipts = site.area.path("receipts");
    let deep = [
        "wal-verify",
        "--deep",
        "--receipts",
        receipts.to_str().unwrap(),
    ];
    site.report(&deep, 0);
    let names = site.segments();
    let object = site.store.objects_named(&names[names.len() - 3]).remove(0);
    flip(&object, 500_000, 3);
    site.report(&deep, 3);
    let data = site.area.path("restored");
    for threads in ["1", "2", "9"] {
        let walhalla = site
            .walhalla
            .with_env("WALHALLA_DOWNLOAD_CONCURRENCY", threads);
        let outcome = walhalla.run(&["restore", data.to_str().unwrap()]);
        outcome.exits_with(4).says(&["does not continue"]);
        assert!(!data.exists());
    }
}

#[test]
fn a_wrong_cluster_and_a_backup_whose_entry_is_damaged_are_not_passed_over() {
    let site = Site::make(SHAPE);
    for command in [
        &["verify", "--all"][..],
        &["verify"],
        &["wal-verify"],
        &["backup-list"],
        &["plan"],
        &["wal-show"],
    ] {
        let all = [command, &["--system-identifier", "999"]].concat();
        let outcome = site.walhalla.run(&all).exits_with(1);
        outcome.says(&["holds nothing of cluster 999"]);
    }
    site.walhalla.back_up(&site.cluster);
    let newest = site.walhalla.newest_backup();
    let entries = site.store.objects_named("backup.json");
    let entry = entries
        .iter()
        .find(|path| path.to_str().unwrap().contains(&newest))
        .unwrap();
    flip(entry, 100, 0);
    for command in [&["verify", "--all"][..], &["verify"], &["wal-verify"]] {
        let report = site.report(command, 3);
        assert!(
            report["problems"].to_string().contains(&newest),
            "{report:#}"
        );
    }
}

#[test]
fn a_file_that_lost_its_trailer_or_never_had_one_and_a_damaged_second_form_are_named() {
    let site = Site::make(SHAPE);
    let name = site.segments()[2].clone();
    let object = site.store.objects_named(&name).remove(0);
    let bytes = std::fs::read(&object).unwrap();
    std::fs::remove_file(&object).unwrap();
    std::fs::write(&object, &bytes[..bytes.len() - 56]).unwrap();
    host().give_to_user(&object);
    let report = site.report(&["wal-verify", "--deep"], 3);
    let problems = report["problems"].to_string();
    assert!(
        problems.contains("it was cut") && problems.contains(&name),
        "{report:#}"
    );
    // What stands between the first frame and the trailer is what stock tools write.
    std::fs::write(&object, &bytes[24..bytes.len() - 56]).unwrap();
    host().give_to_user(&object);
    let report = site.report(&["wal-verify", "--deep"], 0);
    let notes = report["notes"].to_string();
    assert!(
        notes.contains("trailer") && notes.contains(&name),
        "{report:#}"
    );
    std::fs::remove_file(&object).unwrap();
    std::fs::write(&object, &bytes).unwrap();
    host().give_to_user(&object);

    let second = object.with_extension("zst");
    std::fs::write(&second, "").unwrap();
    host().give_to_user(&second);
    let report = site.report(&["wal-verify", "--deep"], 3);
    let problems = report["problems"].as_array().unwrap();
    assert_eq!(problems.len(), 1, "{report:#}");
    let named = problems[0]["object"].as_str().unwrap();
    assert_eq!(
        Packing::split(named).1,
        Packing::split("x.zst").1,
        "{report:#}"
    );
    site.walhalla.run(&["plan"]).succeeds();
}
