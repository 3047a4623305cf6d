//! What `wal-push` accepts, and what it refuses.

use crate::support::{
    Area, Cluster, Segments, Shape, Store, Walhalla, eventually, fill, give_rights_back,
    make_read_only, run, with_a_byte_changed, with_a_record_changed,
};

/// Two segments to push, and where to.
struct Archive {
    // Declared last is dropped last: the directories go after everything in them.
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
        Self {
            segments: Segments::make(&area, 2),
            walhalla,
            store,
            area,
        }
    }

    /// Puts this content under the name of a segment; `wal-push` refuses it, saying so, and archives nothing.
    #[track_caller]
    fn refuses(&self, name: &str, content: &[u8], says: &[&str]) {
        self.segments.put(name, content);
        self.segments
            .push(&self.walhalla, name)
            .exits_with(1)
            .says(&[name, "hint:"])
            .says(says);
        self.segments.assert_not_archived(&self.walhalla, name);
        let left: [std::path::PathBuf; 0] = [];
        assert_eq!(self.store.objects_named("."), left);
    }
}

#[test]
fn wal_push_refuses_the_segment_of_another_cluster() {
    let archive = Archive::make();
    let unrelated = Segments::make_unrelated(&archive.area, 1);
    let name = &unrelated.names[0];
    let identifiers = [
        archive.segments.system_identifier.as_str(),
        &unrelated.system_identifier,
    ];
    assert_ne!(identifiers[0], identifiers[1]);
    archive.refuses(name, &unrelated.original(name), &identifiers);
}

#[test]
fn wal_push_refuses_a_truncated_segment() {
    let archive = Archive::make();
    let name = &archive.segments.names[0];
    let whole = archive.segments.original(name);
    archive.refuses(name, &whole[..whole.len() / 2], &[]);
    archive.refuses(name, &whole[..whole.len() - 1], &[]);
    archive.refuses(name, &[], &[]);
}

#[test]
fn wal_push_refuses_a_segment_of_the_wrong_timeline() {
    let archive = Archive::make();
    let name = &archive.segments.names[0];
    let other = name.replacen("00000001", "00000002", 1);
    archive.refuses(&other, &archive.segments.original(name), &["timeline"]);
}

#[test]
fn wal_push_refuses_a_segment_under_the_name_of_another() {
    let archive = Archive::make();
    let [first, second] = [&archive.segments.names[0], &archive.segments.names[1]];
    archive.refuses(second, &archive.segments.original(first), &[]);
}

#[test]
fn wal_push_refuses_a_file_of_zeros() {
    let archive = Archive::make();
    let name = &archive.segments.names[0];
    archive.refuses(name, &vec![0; 16 * 1024 * 1024], &[]);
}

#[test]
fn wal_push_refuses_other_content_for_the_same_segment() {
    let archive = Archive::make();
    let name = &archive.segments.names[0];
    archive.segments.push(&archive.walhalla, name).succeeds();
    archive.segments.put(
        name,
        &with_a_record_changed(&archive.segments.original(name)),
    );
    archive
        .segments
        .push(&archive.walhalla, name)
        .exits_with(1)
        .says(&[name, "hint:"]);
    archive.segments.assert_archived(&archive.walhalla, name);
}

#[test]
fn wal_push_accepts_the_same_content_again() {
    let archive = Archive::make();
    for _ in 0..3 {
        for name in &archive.segments.names {
            archive.segments.push(&archive.walhalla, name).succeeds();
        }
    }
    for name in &archive.segments.names {
        archive.segments.assert_archived(&archive.walhalla, name);
    }
}

#[test]
fn wal_push_names_a_split_brain_when_two_copies_of_a_cluster_archive() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut one = Cluster::create(&area, "one", Shape::of(17));
    one.start();
    fill(&one);
    one.stop();
    let mut other = Cluster::adopt(&area, 17, area.path("other"));
    run(crate::support::host()
        .command("cp")
        .arg("-a")
        .arg(&one.data)
        .arg(&other.data))
    .succeeds();

    walhalla.archive_from(&mut one);
    one.sql("insert into ledger values ('one', 'the first server')");
    let segment = one.archive_everything();
    let archived = std::fs::read(one.segment_path(&segment)).unwrap();

    walhalla.archive_from(&mut other);
    other.sql("insert into ledger values ('other', 'the second server')");
    assert_eq!(other.switch_segment(), segment);
    eventually(
        "the second server's segment to be refused",
        std::time::Duration::from_secs(30),
        || other.sql("select failed_count > 0 from pg_stat_archiver") == "t",
    );
    let log = other.log_text();
    assert!(
        log.contains("is already archived with other content") && log.contains(&segment),
        "{log}"
    );

    let fetched = area.path("fetched");
    walhalla
        .run_in(
            &one.data,
            &["wal-fetch", &segment, fetched.to_str().unwrap()],
        )
        .succeeds();
    assert!(
        std::fs::read(fetched).unwrap() == archived,
        "the first server's segment was replaced"
    );
}

#[test]
fn wal_push_fails_on_a_store_without_rights_and_succeeds_once_they_are_given() {
    let archive = Archive::make();
    let [first, second] = [&archive.segments.names[0], &archive.segments.names[1]];
    archive.segments.push(&archive.walhalla, first).succeeds();

    make_read_only(archive.store.path());
    let store = archive.store.path().display().to_string();
    archive
        .segments
        .push(&archive.walhalla, second)
        .exits_with(1)
        .says(&[&store, "ermission denied", "hint:"]);
    give_rights_back(archive.store.path());
    archive
        .segments
        .assert_not_archived(&archive.walhalla, second);
    archive.segments.push(&archive.walhalla, second).succeeds();
    archive.segments.assert_archived(&archive.walhalla, second);
}

#[test]
fn wal_push_makes_no_store_where_a_mount_may_be_missing() {
    let archive = Archive::make();
    let mount_point = archive.area.make_dir("mount");
    let store = Store::Directory(mount_point.join("store"));
    let unmounted = Walhalla::new(&archive.area, &store);
    // Else a forgotten mount would fill the disk below the mount point, and the archive would be two halves.
    archive
        .segments
        .push(&unmounted, &archive.segments.names[0])
        .exits_with(1)
        .says(&[mount_point.to_str().unwrap(), "hint:"]);
    assert!(!store.path().exists());
}

#[test]
fn wal_push_refuses_a_segment_with_a_damaged_record() {
    let archive = Archive::make();
    let name = &archive.segments.names[0];
    // Behind the first page's header, so that no page header is hit: the checkpoint record of a new segment.
    let mut damaged = archive.segments.original(name);
    let at = damaged[4096..8192]
        .iter()
        .position(|byte| *byte != 0)
        .unwrap();
    damaged[4096 + at] ^= 0x01;
    archive.refuses(name, &damaged, &["record at"]);
}

#[test]
fn wal_push_takes_history_and_backup_files_in_any_encoding() {
    let archive = Archive::make();
    let segment = &archive.segments.names[0];
    let files = [
        (
            "00000002.history".to_owned(),
            b"1\t0/3000148\tat restore point \"zur\xFCck\"\n".to_vec(),
        ),
        (
            format!("{segment}.00000028.backup"),
            format!("START WAL LOCATION: 0/2000028 (file {segment})\nLABEL: ")
                .into_bytes()
                .into_iter()
                .chain(*b"zur\xFCck\n")
                .collect(),
        ),
    ];
    for (name, content) in &files {
        archive.segments.put(name, content);
        archive.segments.push(&archive.walhalla, name).succeeds();
        let (outcome, fetched) = archive.segments.fetch(&archive.walhalla, name);
        outcome.succeeds();
        assert!(
            fetched.as_ref() == Some(content),
            "{name} came back with other content"
        );
    }
}

#[test]
fn wal_push_takes_history_and_backup_files_and_guards_them_too() {
    let archive = Archive::make();
    let segment = &archive.segments.names[0];
    let history = b"1\t0/3000148\tno recovery target specified\n".to_vec();
    let label = b"START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n".to_vec();
    let files = [
        ("00000002.history".to_owned(), history),
        (format!("{segment}.00000028.backup"), label),
    ];
    for (name, content) in &files {
        archive.segments.put(name, content);
        archive.segments.push(&archive.walhalla, name).succeeds();
        archive.segments.push(&archive.walhalla, name).succeeds();
        let (outcome, fetched) = archive.segments.fetch(&archive.walhalla, name);
        outcome.succeeds();
        assert!(
            fetched.as_ref() == Some(content),
            "{name} came back with other content"
        );

        archive.segments.put(name, &with_a_byte_changed(content));
        archive
            .segments
            .push(&archive.walhalla, name)
            .exits_with(1)
            .says(&[name]);
        let (_, fetched) = archive.segments.fetch(&archive.walhalla, name);
        assert!(fetched.as_ref() == Some(content), "{name} was replaced");
    }
}

#[test]
fn a_segment_is_archived_although_its_summary_cannot_be_stored() {
    let archive = Archive::make();
    let [first, second] = &archive.segments.names[..] else {
        panic!("two segments");
    };
    archive.segments.push(&archive.walhalla, first).succeeds();
    let stored = archive.store.summaries_named(first);
    let summaries = stored[0].ancestors().nth(2).unwrap();
    std::fs::remove_dir_all(summaries).unwrap();
    std::fs::write(summaries, "in the way").unwrap();
    archive
        .segments
        .push(&archive.walhalla, second)
        .succeeds()
        .says(&[second, "its summary is not", "wal-summarize"]);
    archive.store.object_of(second);

    std::fs::remove_file(summaries).unwrap();
    let made = archive.walhalla.run(&["wal-summarize", "--json"]);
    assert_eq!(made.succeeds().json()["made"], 2);
    assert_eq!(archive.store.summaries_named("").len(), 2);
    // What is pushed again gets its summary too.
    std::fs::remove_file(&archive.store.summaries_named(first)[0]).unwrap();
    archive.segments.push(&archive.walhalla, first).succeeds();
    assert_eq!(archive.store.summaries_named(first).len(), 1);
}

#[test]
fn a_summary_of_what_is_not_archived_any_more_is_replaced() {
    let archive = Archive::make();
    let name = &archive.segments.names[0];
    archive.segments.push(&archive.walhalla, name).succeeds();
    let summary = archive.store.summaries_named(name).remove(0);
    let own = std::fs::read(&summary).unwrap();
    let other = archive.store.summaries_named("").len();
    archive
        .segments
        .push(&archive.walhalla, &archive.segments.names[1])
        .succeeds();
    assert_eq!(archive.store.summaries_named("").len(), other + 1);
    let foreign = archive
        .store
        .summaries_named(&archive.segments.names[1])
        .remove(0);

    // Another segment of the name was archived once, and is gone.
    std::fs::remove_file(archive.store.object_of(name)).unwrap();
    std::fs::copy(&foreign, &summary).unwrap();
    archive.segments.push(&archive.walhalla, name).succeeds();
    assert!(
        std::fs::read(&summary).unwrap() == own,
        "the summary is not the segment's"
    );
    std::fs::copy(&foreign, &summary).unwrap();
    let checked = archive
        .walhalla
        .run(&["wal-summarize", "--check", "--json"]);
    assert_eq!(checked.succeeds().json()["made"], 1);
    assert!(
        std::fs::read(&summary).unwrap() == own,
        "the summary is not the segment's"
    );
}
