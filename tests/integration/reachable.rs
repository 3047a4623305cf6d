//! From when to when a cluster can be brought back: `wal-show` and `backup-list`.

use serde_json::{Value, json};

use crate::support::{Area, Cluster, Shape, Store, Walhalla, fill, make_history};

const SMALL: Shape = Shape {
    version: 17,
    segment_mb: 1,
};

fn wal_show(walhalla: &Walhalla) -> Value {
    walhalla.run(&["wal-show", "--json"]).succeeds().json()
}

#[test]
fn windows_end_at_a_missing_segment_and_go_on_from_the_next_backup() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut primary = Cluster::create(&area, "primary", SMALL);
    walhalla.archive_from(&mut primary);
    fill(&primary);
    walhalla.back_up(&primary);
    let early = make_history(&primary, "early");
    primary.switch_segment();
    primary.sql("insert into ledger values ('lost', '')");
    let lost = primary.switch_segment();
    make_history(&primary, "between");
    walhalla.back_up(&primary);
    let late = make_history(&primary, "late");
    primary.archive_everything();
    primary.stop();

    let whole = wal_show(&walhalla);
    assert_eq!(whole["timelines"][0]["gaps"], json!([]));
    assert_eq!(whole["reachable"].as_array().unwrap().len(), 1, "{whole:#}");
    std::fs::remove_file(store.object_of(&lost)).unwrap();
    let holed = wal_show(&walhalla);
    let [gap] = holed["timelines"][0]["gaps"].as_array().unwrap().as_slice() else {
        panic!("{holed:#}");
    };
    assert_eq!((&gap["first"], &gap["last"]), (&json!(lost), &json!(lost)));
    assert_eq!(gap["segments"], 1);
    // The commits around it.
    assert!(gap["after"].as_str() < gap["before"].as_str(), "{gap:#}");
    assert_eq!(gap["is_before_a_backup"], true);
    let spans = holed["reachable"].as_array().unwrap();
    assert_eq!(spans.len(), 2, "{holed:#}");
    assert_eq!(spans[0]["missing"], json!(lost));
    let text = walhalla.run(&["wal-show"]).succeeds().stdout;
    assert!(
        text.contains(&format!("then WAL segment {lost} is missing")),
        "{text}"
    );
    let backups = walhalla.run(&["backup-list", "--json"]);
    let backups = backups.succeeds().json();
    assert_eq!(backups[0]["missing_segment"], json!(lost));
    assert_eq!(backups[1]["missing_segment"], Value::Null);
    let text = walhalla.run(&["backup-list"]).succeeds().stdout;
    assert!(
        text.contains("any moment from") && text.contains(&lost),
        "{text}"
    );

    // What a window promises can be planned, what it does not is refused with the nearest point.
    for target in [&early, &late] {
        walhalla
            .run(&["plan", "--target-xid", &target.xid])
            .succeeds();
    }
    let between = ["plan", "--json", "--target-name", "between"];
    let refused = walhalla.run(&between).exits_with(4).json();
    assert!(
        refused["reason"].as_str().unwrap().contains(&lost),
        "{refused:#}"
    );
    let nearest = refused["nearest"].as_str().unwrap();
    let nearest: Vec<&str> = nearest.split(' ').collect();
    walhalla.run(&[&["plan"], &nearest[..]].concat()).succeeds();
}

/// ```text
/// timeline 1 ──first backup──●fork──second backup──●left behind
///                            └─ timeline 2, after that: ──●end
/// ```
#[test]
fn latest_does_not_begin_with_a_backup_of_the_branch_that_was_left() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut old = Cluster::create(&area, "old", SMALL);
    walhalla.archive_from(&mut old);
    fill(&old);
    let first_backup = walhalla.back_up(&old);
    make_history(&old, "fork");
    let second_backup = walhalla.back_up(&old);
    make_history(&old, "left_behind");
    old.archive_everything();
    let target = ["--target-name", "fork", "--target-action", "promote"];
    let mut new = walhalla.restore_archiving(&area, 17, "new", &target);
    new.start();
    new.wait_until_promoted();
    // The old server wrote something after the new one began, before somebody stopped it.
    let left_behind = make_history(&old, "left_behind_later");
    old.archive_everything();
    old.stop();
    let end = make_history(&new, "end");
    new.archive_everything();
    new.stop();

    let plan = |args: &[&str]| {
        let plan = walhalla.run(&[&["plan", "--json"], args].concat());
        plan.succeeds().json()
    };
    let latest = plan(&[]);
    assert_eq!(latest["backup_chain"], json!([first_backup]), "{latest:#}");
    assert_eq!(latest["timelines"], json!([1, 2]), "{latest:#}");
    let left = plan(&["--target-timeline", "1"]);
    assert_eq!(left["backup_chain"], json!([second_backup]), "{left:#}");
    assert_eq!(plan(&["--backup", &second_backup])["timelines"], json!([1]));
    // What is on the other branch only is said to be there.
    let name = ["plan", "--json", "--target-name", &left_behind.name];
    let refused = walhalla.run(&name).exits_with(4).json();
    let nearest = refused["nearest"].as_str().unwrap();
    assert_eq!(
        nearest,
        format!("--target-name {} --target-timeline 1", left_behind.name)
    );
    plan(&nearest.split(' ').collect::<Vec<_>>());
    for (args, expected) in [
        (&[][..], &end.dump),
        (&["--target-timeline", "1"][..], &left_behind.dump),
    ] {
        let mut restored = walhalla.restore(&area, 17, "restored", args);
        restored.start();
        restored.wait_until_promoted();
        restored.dump().assert_same_as(expected, &args.join(" "));
        restored.stop();
        std::fs::remove_dir_all(&restored.data).unwrap();
    }
    // Without a backup that leads to where life went on, nothing is restored by mistake.
    let folder = store.path().join(primary_folder(&walhalla)).join("backups");
    std::fs::remove_dir_all(folder.join(&first_backup)).unwrap();
    let refused = walhalla.run(&["plan", "--json"]).exits_with(4).json();
    assert_eq!(refused["nearest"], "--target-timeline 1", "{refused:#}");
}

/// The cluster's folder in the store.
fn primary_folder(walhalla: &Walhalla) -> String {
    let list = walhalla.run(&["backup-list", "--json"]).succeeds().json();
    list[0]["system_identifier"].as_str().unwrap().to_owned()
}

/// A listing gives up on an archive whose end cannot be read, and does not go back through all of it.
#[test]
fn segments_that_cannot_be_read_are_not_read_backwards_without_bound() {
    const SPOILT: usize = 20;
    const READ: usize = 16;

    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut primary = Cluster::create(&area, "primary", SMALL);
    walhalla.archive_from(&mut primary);
    fill(&primary);
    walhalla.back_up(&primary);
    let segments: Vec<String> = (0..SPOILT)
        .map(|number| {
            primary.sql(&format!("insert into ledger values ('{number}', '')"));
            primary.switch_segment()
        })
        .collect();
    primary.archive_everything();
    primary.stop();
    let last = segments.last().unwrap();
    let mut spoilt = 0;
    for object in store
        .objects_named("00000001")
        .into_iter()
        .chain(store.summaries_named("0000"))
    {
        let name = object.file_name().unwrap().to_str().unwrap();
        if name >= segments[0].as_str() && !name.contains("backup") {
            std::fs::write(&object, "nothing that can be read").unwrap();
            spoilt += 1;
        }
    }
    assert!(spoilt >= 2 * SPOILT, "{spoilt} of {segments:?}");

    let listed = walhalla.run(&["backup-list", "--json"]).succeeds();
    let named = |segment: &&String| listed.stderr.contains(segment.as_str());
    let named = segments.iter().filter(named).count();
    assert!((1..=READ).contains(&named), "{named} are named: {listed}");
    assert!(!listed.stderr.contains(&segments[0]), "{listed}");
    assert!(listed.stderr.contains(last), "{listed}");
    assert_eq!(listed.json()[0]["reachable_to"], Value::Null);
}
