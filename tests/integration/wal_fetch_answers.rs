//! What `wal-fetch` answers, on which PostgreSQL bases whether recovery goes on, stops or ends.

use std::path::Path;

use crate::support::{
    Area, Cluster, Segments, Shape, Store, Walhalla, fill, give_rights_back, host, make_history,
    make_unreadable, s3_env, with_a_byte_changed,
};

/// One archived segment.
struct Archive {
    segments: Segments,
    walhalla: Walhalla,
    store: Store,
    area: Area,
}

impl Archive {
    fn make() -> Self {
        let area = Area::new();
        let store = Store::directory(&area);
        let walhalla = Walhalla::new(&area, &store);
        let segments = Segments::make(&area, 1);
        segments.push(&walhalla, &segments.names[0]).succeeds();
        Self {
            segments,
            walhalla,
            store,
            area,
        }
    }

    fn name(&self) -> &str {
        &self.segments.names[0]
    }

    /// With a store that does not answer, recovery has to stop and a standby has to go on asking; neither may hear
    /// that the segment does not exist.
    #[track_caller]
    fn assert_cannot_tell(&self, walhalla: &Walhalla) {
        for name in [self.name(), "00000002.history", "0000000100000000000000FE"] {
            self.segments.signal("recovery.signal");
            let (outcome, fetched) = self.segments.fetch(walhalla, name);
            outcome.exits_with(200).says(&["error:", "hint:"]);
            assert!(fetched.is_none());

            self.segments.signal("standby.signal");
            let (outcome, fetched) = self.segments.fetch(walhalla, name);
            let outcome = outcome.exits_within(1..=125);
            assert_ne!(outcome.code, Some(74), "said to be absent: {outcome}");
            assert!(fetched.is_none());
        }
    }
}

#[test]
fn wal_fetch_brings_back_what_was_pushed() {
    let archive = Archive::make();
    for signal in ["recovery.signal", "standby.signal"] {
        archive.segments.signal(signal);
        archive
            .segments
            .assert_archived(&archive.walhalla, archive.name());
    }
}

#[test]
fn wal_fetch_answers_74_for_what_is_proven_absent_and_writes_nothing() {
    let archive = Archive::make();
    for signal in ["recovery.signal", "standby.signal"] {
        archive.segments.signal(signal);
        for absent in [
            "0000000100000000000000FE",
            "000000020000000000000001",
            "00000002.history",
        ] {
            archive
                .segments
                .assert_not_archived(&archive.walhalla, absent);
        }
    }
}

#[test]
fn wal_fetch_cannot_tell_from_a_store_that_it_may_not_read() {
    let archive = Archive::make();
    make_unreadable(archive.store.path());
    archive.assert_cannot_tell(&archive.walhalla);
    give_rights_back(archive.store.path());
    archive
        .segments
        .assert_archived(&archive.walhalla, archive.name());
}

#[test]
fn wal_fetch_cannot_tell_from_a_store_directory_that_is_not_mounted() {
    let archive = Archive::make();
    std::fs::rename(archive.store.path(), archive.area.path("unmounted")).unwrap();
    archive.assert_cannot_tell(&archive.walhalla);
}

#[test]
fn wal_fetch_cannot_tell_from_an_empty_mount_point() {
    let archive = Archive::make();
    let empty = Store::Directory(archive.area.make_dir("mount"));
    let walhalla = Walhalla::new(&archive.area, &empty);
    archive.segments.signal("recovery.signal");
    let (outcome, fetched) = archive.segments.fetch(&walhalla, archive.name());
    outcome
        .exits_with(200)
        .says(&["holds nothing of cluster", "hint:"]);
    assert!(fetched.is_none());
}

#[test]
fn wal_fetch_cannot_tell_from_a_server_that_is_down() {
    let archive = Archive::make();
    // A port that was free a moment ago: nothing listens.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let area = Area::new();
    let mut down = Walhalla::new(&area, &Store::Directory("/".into()))
        .with_env("WALHALLA_STORE", "s3://bucket/prefix")
        .with_env("WALHALLA_RETRY_TIMEOUT", "3s");
    for (key, value) in s3_env(&format!("http://127.0.0.1:{port}")) {
        down = down.with_env(&key, &value);
    }
    archive.segments.signal("recovery.signal");
    let (outcome, fetched) = archive.segments.fetch(&down, archive.name());
    outcome
        .exits_with(200)
        .says(&[archive.name(), "s3://bucket/prefix"]);
    assert!(fetched.is_none());
    archive.segments.signal("standby.signal");
    let (outcome, _) = archive.segments.fetch(&down, archive.name());
    assert_ne!(outcome.exits_within(1..=125).code, Some(74));
}

#[test]
fn recovery_stops_rather_than_promotes_without_its_store_and_goes_on_with_it() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut primary = Cluster::create(&area, "primary", Shape::of(17));
    walhalla.archive_from(&mut primary);
    fill(&primary);
    let backup = walhalla.back_up(&primary);
    let end = make_history(&primary, "end");
    primary.archive_everything();
    primary.stop();

    // As one recovers by hand: the files of a backup, and a restore_command that asks the store.
    let data = area.path("recovered");
    walhalla
        .run(&["backup-fetch", data.to_str().unwrap(), &backup])
        .succeeds();
    area.write("recovered/recovery.signal", "");
    let mut recovered = Cluster::adopt(&area, 17, data);
    recovered.configure(&walhalla.restore_settings());
    recovered.configure("archive_mode = off");

    let unmounted = area.path("unmounted");
    std::fs::rename(store.path(), &unmounted).unwrap();
    let log = recovered.start_and_fail();
    assert!(log.contains("hint: create it, mount it"), "{log}");
    assert!(
        !log.contains("selected new timeline"),
        "promoted without its WAL: {log}"
    );

    std::fs::rename(&unmounted, store.path()).unwrap();
    recovered.start();
    recovered.wait_until_promoted();
    recovered
        .dump()
        .assert_same_as(&end.dump, "once the store was back");
}

#[test]
fn wal_fetch_hands_over_no_damaged_object() {
    let archive = Archive::make();
    let object = archive.the_object();
    let stored = std::fs::read(&object).unwrap();
    archive.segments.signal("recovery.signal");
    for (what, damaged) in [
        ("a byte changed", with_a_byte_changed(&stored)),
        ("cut off", stored[..stored.len() / 2].to_vec()),
        ("cut off by a byte", stored[..stored.len() - 1].to_vec()),
        ("nothing left", Vec::new()),
    ] {
        replace(&object, &damaged);
        let (outcome, fetched) = archive.segments.fetch(&archive.walhalla, archive.name());
        let outcome = outcome.exits_with(200).says(&[archive.name()]);
        assert!(
            fetched.is_none(),
            "{what}: handed over all the same: {outcome}"
        );
    }
    replace(&object, &stored);
    archive
        .segments
        .assert_archived(&archive.walhalla, archive.name());
}

impl Archive {
    fn the_object(&self) -> std::path::PathBuf {
        let objects = self.store.objects_named(&format!("{}.", self.name()));
        assert_eq!(objects.len(), 1, "one object for the segment: {objects:?}");
        objects[0].clone()
    }
}

/// Replaces a stored object as no client of the store would.
fn replace(object: &Path, content: &[u8]) {
    std::fs::remove_file(object).unwrap();
    std::fs::write(object, content).unwrap();
    crate::support::host().give_to_user(object);
}

/// Recovery would end on the timeline before, and give this one's number to another.
#[test]
fn a_history_that_is_gone_is_not_the_end_of_timelines() {
    let archive = Archive::make();
    let object = archive.store.object_of(archive.name());
    let second = object.parent().unwrap().with_file_name("00000002");
    std::fs::create_dir(&second).unwrap();
    let name = archive.name().replacen("00000001", "00000002", 1);
    let file = object.file_name().unwrap().to_str().unwrap();
    std::fs::copy(
        &object,
        second.join(file.replacen("00000001", "00000002", 1)),
    )
    .unwrap();
    host().give_to_user(&second);
    let next = "0000000100000000000000FE";
    for (asked, later) in [
        ("00000002.history", "WAL of timeline 2 is there"),
        (next, "no history that tells where it began"),
    ] {
        archive.segments.signal("recovery.signal");
        let (outcome, fetched) = archive.segments.fetch(&archive.walhalla, asked);
        outcome.exits_with(200).says(&[asked, later]);
        assert!(fetched.is_none());
        archive.segments.signal("standby.signal");
        archive
            .segments
            .assert_not_archived(&archive.walhalla, asked);
    }
    assert!(archive.store.objects_named(&name).len() == 1);
    archive.segments.signal("recovery.signal");
    archive
        .segments
        .assert_not_archived(&archive.walhalla, "00000003.history");
}

/// A part of the store is away: what is asked for is not proven absent.
#[test]
fn a_timeline_without_any_of_its_wal_is_not_at_its_end() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut cluster = Cluster::create(&area, "primary", Shape::small(17));
    walhalla.archive_from(&mut cluster);
    walhalla.back_up(&cluster);
    let first = cluster.archive_everything();
    cluster.stop();
    let folder = store.object_of(&first).parent().unwrap().to_owned();
    let away = area.path("away");
    std::fs::rename(&folder, &away).unwrap();
    host()
        .give_to_user(&area.make_dir(folder.strip_prefix(area.root()).unwrap().to_str().unwrap()));
    let fetch = |signal: &str| {
        let path = cluster.data.join(signal);
        std::fs::write(&path, "").unwrap();
        host().give_to_user(&path);
        let outcome = walhalla.run_in(&cluster.data, &["wal-fetch", &first, "pg_wal/RECOVERYXLOG"]);
        std::fs::remove_file(path).unwrap();
        outcome
    };
    fetch("recovery.signal")
        .exits_with(200)
        .says(&["none of its WAL", "see whether all of the store is there"]);
    fetch("standby.signal").exits_with(74);
    std::fs::remove_dir(&folder).unwrap();
    std::os::unix::fs::symlink(area.path("elsewhere"), &folder).unwrap();
    fetch("recovery.signal")
        .exits_with(200)
        .says(&["leads nowhere"]);
    fetch("standby.signal")
        .exits_with(1)
        .says(&["leads nowhere"]);
}
