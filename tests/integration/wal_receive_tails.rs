//! Tails that are damaged, torn, superseded or another server's.

use std::path::PathBuf;

use crate::support::{Area, Cluster, Receiver, Shape, Store, Walhalla};

const ARGS: [&str; 4] = ["--slot", "walhalla", "--create-slot", "--synchronous"];

/// A server with a backup whose WAL comes by `wal-receive` only from then on.
fn received(area: &Area, walhalla: &Walhalla) -> (Cluster, Receiver) {
    let mut cluster = Cluster::create(area, "pg", Shape::small(17));
    walhalla.archive_from(&mut cluster);
    walhalla.back_up(&cluster);
    cluster.sql("create table t(i bigint)");
    cluster.configure("archive_command = 'true'");
    let receiver = Receiver::start(area, walhalla, &cluster, &ARGS);
    (cluster, receiver)
}

/// The objects of tails, by name.
fn objects(store: &Store) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![store.path().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path
                .components()
                .any(|part| part.as_os_str().to_string_lossy().ends_with(".tail"))
                && !path.file_name().unwrap().to_string_lossy().starts_with('.')
            {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn rows(area: &Area, walhalla: &Walhalla, name: &str) -> u64 {
    let mut copy = walhalla.restore(area, 17, name, &["--target-action", "promote"]);
    copy.start();
    copy.wait_until_promoted();
    copy.sql("select count(*) from t").parse().unwrap()
}

#[test]
fn a_log_is_used_up_to_what_is_damaged_in_it_and_what_is_torn_at_its_end_is_nobodys() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let (mut cluster, mut receiver) = received(&area, &walhalla);
    for _ in 0..10 {
        cluster.sql("insert into t values (1)");
        receiver.catches_up_with(&cluster);
    }
    cluster.kill();
    receiver.kill();
    let log = objects(&store).pop().unwrap();
    let whole = std::fs::read(&log).unwrap();
    let length = whole.iter().rposition(|byte| *byte != 0).unwrap() + 1;

    // A writer that died in the middle of an entry.
    std::fs::write(&log, &whole[..length - 5]).unwrap();
    assert_eq!(rows(&area, &walhalla, "torn"), 9);
    walhalla.run(&["wal-verify", "--deep"]).succeeds();
    let mut zeros = whole[..length - 5].to_vec();
    zeros.resize(whole.len(), 0);
    std::fs::write(&log, &zeros).unwrap();
    assert_eq!(rows(&area, &walhalla, "zeros"), 9);

    // The entry in the middle of ten: those before it count, and the damage is told.
    let begins: Vec<usize> = whole
        .windows(8)
        .enumerate()
        .filter_map(|(at, window)| (window == b"wal-tail").then_some(at))
        .collect();
    let mut damaged = whole.clone();
    damaged[begins[begins.len() - 5] + 40] ^= 1;
    std::fs::write(&log, &damaged).unwrap();
    walhalla.run(&["plan"]).succeeds().says(&["is not whole"]);
    assert!(rows(&area, &walhalla, "damaged") < 9);
    let verified = walhalla.run(&["wal-verify", "--deep"]);
    verified.exits_with(3);

    // Of an empty one nothing is used, and nothing fails.
    std::fs::write(&log, []).unwrap();
    walhalla.run(&["plan"]).succeeds();
}

#[test]
fn pieces_are_used_up_to_one_that_is_damaged() {
    let area = Area::new();
    let store = Store::s3(&area);
    let walhalla = Walhalla::new(&area, &store);
    let (mut cluster, mut receiver) = received(&area, &walhalla);
    for _ in 0..10 {
        cluster.sql("insert into t values (1)");
        receiver.catches_up_with(&cluster);
    }
    cluster.kill();
    receiver.kill();
    let pieces = objects(&store);
    assert!(pieces.len() > 5, "{pieces:?}");
    assert_eq!(rows(&area, &walhalla, "whole"), 10);
    let damaged = &pieces[pieces.len() - 3];
    let mut bytes = std::fs::read(damaged).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(damaged, bytes).unwrap();
    let left = rows(&area, &walhalla, "damaged");
    assert!((1..10).contains(&left), "{left}");
    walhalla.run(&["wal-verify", "--deep"]).exits_with(3);
    std::fs::remove_file(damaged).unwrap();
    assert_eq!(rows(&area, &walhalla, "gone"), left);
}

#[test]
fn a_tail_goes_when_its_segment_is_archived_and_in_a_hole_it_leads_to_its_last_commit() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let (mut cluster, mut receiver) = received(&area, &walhalla);
    cluster.sql("insert into t values (1)");
    receiver.catches_up_with(&cluster);
    let xid = cluster.sql("select xmin from t where i = 1");
    let first = objects(&store);
    assert_eq!(first.len(), 1);
    let kept = std::fs::read(&first[0]).unwrap();
    let segment = cluster.switch_segment();
    cluster.sql("insert into t values (2)");
    receiver.catches_up_with(&cluster);
    crate::support::eventually("the tail to go", std::time::Duration::from_secs(20), || {
        !first[0].exists()
    });
    assert!(receiver.stop());
    cluster.stop();
    // The segment is lost, its tail came back from somewhere, and there is WAL after it.
    let object = store.object_of(&segment);
    std::fs::create_dir_all(first[0].parent().unwrap()).unwrap();
    std::fs::write(&first[0], kept).unwrap();
    for path in [first[0].parent().unwrap(), first[0].as_path()] {
        crate::support::host().give_to_user(path);
    }
    std::fs::remove_file(object).unwrap();
    let hint = format!("--target-xid {xid}");
    let refused = walhalla.run(&["plan"]).exits_with(4);
    refused.says(&[&segment, "only the begin", &hint]);
    let shown = walhalla.run(&["wal-show", "--json"]).succeeds().json();
    let timeline = &shown["timelines"][0];
    assert_eq!(timeline["gaps"][0]["first"], segment, "{shown}");
    assert_eq!(timeline["gaps"][0]["segments"], 1, "{shown}");
    assert_eq!(shown["reachable"][0]["missing"], segment, "{shown}");
    let on_demand = area.path("on-demand");
    let on_demand = ["restore", on_demand.to_str().unwrap(), "--wal", "on-demand"];
    let refused = walhalla.run(&[&on_demand[..], &["--target-xid", &xid]].concat());
    refused.exits_with(2).says(&["later WAL", "--wal staged"]);
    let args = ["--target-xid", &xid, "--target-action", "promote"];
    let mut copy = walhalla.restore(&area, 17, "copy", &args);
    copy.start();
    copy.wait_until_promoted();
    assert_eq!(copy.sql("select i from t"), "1");
}
