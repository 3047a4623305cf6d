//! Standbys that follow the archive, and backups taken from them.

use std::time::Duration;

use crate::support::{Area, Cluster, Shape, Store, Walhalla, eventually, fill, make_history};

fn follows_the_archive_and_can_be_backed_up(version: u32) {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut primary = Cluster::create(&area, "primary", Shape::of(version));
    walhalla.archive_from(&mut primary);
    fill(&primary);
    walhalla.back_up(&primary);

    let mut standby = walhalla.restore(&area, version, "standby", &["--standby"]);
    standby.start();
    primary.sql("create table seen_by_standby (n int)");
    primary.archive_everything();
    eventually(
        "the standby replays what was archived",
        Duration::from_mins(1),
        || standby.sql("select to_regclass('seen_by_standby') is not null") == "t",
    );
    assert_eq!(standby.sql("select pg_is_in_recovery()"), "t");

    let from_standby = walhalla.back_up(&standby);
    standby.stop();
    // PostgreSQL stops at the next record, which may not be archived yet. A plan that says yes is true.
    let immediate = ["--target-immediate", "--backup", &from_standby];
    let plan = walhalla.run(&[&["plan"], &immediate[..]].concat());
    match plan.code {
        Some(0) => reaches_its_end(&area, &walhalla, version, &immediate, "at once"),
        _ => _ = plan.exits_with(4).says(&["at which PostgreSQL stops"]),
    }
    primary.archive_everything();
    reaches_its_end(&area, &walhalla, version, &immediate, "later");
    let end = make_history(&primary, "end");
    primary.archive_everything();
    primary.stop();

    let plan = walhalla.run(&["plan", "--json"]).succeeds().json();
    assert_eq!(plan["backup_chain"], serde_json::json!([from_standby]));
    let mut restored = walhalla.restore(&area, version, "restored", &["--wal", "on-demand"]);
    restored.start();
    restored.wait_until_promoted();
    restored
        .dump()
        .assert_same_as(&end.dump, "from the standby's backup");
    restored.stop();
}

fn reaches_its_end(area: &Area, walhalla: &Walhalla, version: u32, target: &[&str], name: &str) {
    let args = [target, &["--target-action", "promote"]].concat();
    let mut restored = walhalla.restore(area, version, name, &args);
    restored.start();
    restored.wait_until_promoted();
    assert_eq!(
        restored.sql("select to_regclass('seen_by_standby') is not null"),
        "t"
    );
    restored.stop();
}

#[test]
fn a_standby_follows_the_archive_and_its_backup_restores_on_13() {
    follows_the_archive_and_can_be_backed_up(13);
}

#[test]
fn a_standby_follows_the_archive_and_its_backup_restores_on_17() {
    follows_the_archive_and_can_be_backed_up(17);
}
