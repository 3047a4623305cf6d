//! `--store-as-of`: what was deleted is restored.

use std::thread::sleep;
use std::time::Duration;

use crate::support::{Area, Cluster, Shape, Store, Walhalla, fill, make_history};

const VERSION: u32 = 17;
/// Stores tell times in seconds.
const APART: Duration = Duration::from_millis(1500);

#[test]
fn a_cluster_that_was_deleted_from_its_store_is_restored() {
    let area = Area::new();
    let store = Store::gcs_with_versions(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut cluster = Cluster::create(&area, "primary", Shape::small(VERSION));
    walhalla.archive_from(&mut cluster);
    fill(&cluster);
    let id = walhalla.back_up(&cluster);
    let moment = make_history(&cluster, "moment");
    cluster.archive_everything();
    sleep(APART);
    let before = jiff::Timestamp::now().to_string();
    sleep(APART);
    let deleted = walhalla
        .run(&["delete", "everything", "--confirm", "--json"])
        .succeeds()
        .json();
    assert_eq!(deleted["hidden"], true, "{deleted}");
    assert_eq!(deleted["locked_until"], serde_json::Value::Null);
    let listed = walhalla.run(&["backup-list", "--json"]).succeeds().json();
    assert_eq!(listed.as_array().unwrap().len(), 0);

    let past = ["--store-as-of", &before];
    let run = |words: &[&str]| walhalla.run(&[words, &past].concat());
    let listed = run(&["backup-list", "--json"]).succeeds().json();
    assert_eq!(listed[0]["id"], *id);
    run(&["verify", "--all"]).succeeds();
    run(&["wal-verify", "--deep"]).succeeds();
    for wal in ["staged", "on-demand"] {
        let name = format!("restored-{wal}");
        let words = ["--wal", wal, "--target-name", &moment.name];
        let words = [&words[..], &["--target-action", "promote"], &past].concat();
        let mut copy = walhalla.restore(&area, VERSION, &name, &words);
        walhalla.give_env(&mut copy);
        copy.start();
        copy.wait_until_promoted();
        copy.dump().assert_same_as(&moment.dump, wal);
        copy.amcheck();
        copy.stop();
    }
    let copy = format!("file://{}", area.make_dir("copy").display());
    run(&["copy", "--to", &copy]).succeeds();
    walhalla
        .run(&["verify", "--all", "--store", &copy])
        .succeeds();

    for changing in [
        &["delete", "everything", "--confirm"][..],
        &["backup-mark", &id, "--permanent"],
        &["wal-summarize"],
        &["backup-push", "/nowhere"],
    ] {
        run(changing)
            .exits_with(2)
            .says(&["--store-as-of", "this one changes the store"]);
    }
    for (time, says) in [("2999-01-01T00:00:00Z", "lies ahead"), ("soon", "soon")] {
        walhalla
            .run(&["backup-list", "--store-as-of", time])
            .exits_with(2)
            .says(&["--store-as-of", says]);
    }
}
