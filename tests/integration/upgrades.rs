//! After `pg_upgrade` a cluster has a new identity: it begins beside the old one in the same store.

use crate::support::{
    Area, Cluster, Moment, Shape, Store, Walhalla, fill, host, make_history, run,
};

const OLD: u32 = 17;
const NEW: u32 = 18;

/// What the moment was, restored from the cluster that `walhalla` is pinned to.
fn restores(area: &Area, walhalla: &Walhalla, version: u32, moment: &Moment) {
    let name = format!("restored-{}", moment.name);
    let words = ["--target-name", &moment.name, "--target-action", "promote"];
    let mut copy = walhalla.restore(area, version, &name, &words);
    copy.start();
    copy.wait_until_promoted();
    copy.dump().assert_same_as(&moment.dump, &moment.name);
    copy.stop();
}

fn upgrade(area: &Area, old: &Cluster, new: &Cluster) {
    let programs = |version| {
        let server = host().server_program(version, "postgres");
        server.parent().unwrap().to_path_buf()
    };
    let mut upgrade = host().command(host().server_program(NEW, "pg_upgrade"));
    upgrade
        .arg("-b")
        .arg(programs(OLD))
        .arg("-B")
        .arg(programs(NEW))
        .arg("-d")
        .arg(&old.data)
        .arg("-D")
        .arg(&new.data)
        .args(["-U", "postgres", "-s"])
        .arg(area.root())
        .current_dir(area.make_dir("upgrading"));
    run(&mut upgrade).succeeds();
}

#[test]
fn an_upgraded_cluster_begins_beside_the_old_one() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut old = Cluster::create(&area, "old", Shape::small(OLD));
    walhalla.archive_from(&mut old);
    fill(&old);
    let id_before = walhalla.back_up(&old);
    let before = make_history(&old, "before");
    old.archive_everything();
    let old_identity = old.system_identifier();
    old.stop();

    let mut new = Cluster::create_unrelated(&area, "new", Shape::small(NEW));
    upgrade(&area, &old, &new);
    walhalla.archive_from(&mut new);
    let new_identity = new.system_identifier();
    assert_ne!(old_identity, new_identity);
    let data = new.data.to_str().unwrap();
    walhalla.run_with(&new, &["backup-push", data]).succeeds();
    let after = make_history(&new, "after");
    new.archive_everything();

    // A delta does not stand on a backup of the old cluster.
    let [of_old, of_new] = [&old_identity, &new_identity]
        .map(|identity| walhalla.with_env("WALHALLA_CLUSTER", identity));
    let id_after = of_new.newest_backup();
    let listed = walhalla.run(&["backup-list"]).succeeds().stdout;
    for shown in [
        format!("cluster {old_identity} (PostgreSQL 17"),
        format!("cluster {new_identity} (PostgreSQL 18"),
        format!("newest backup {id_before})"),
        format!("newest backup {id_after})"),
    ] {
        assert!(listed.contains(&shown), "{shown} in {listed}");
    }
    let rows = walhalla.run(&["backup-list", "--json"]).succeeds().json();
    let rows = rows.as_array().unwrap().iter();
    let mut clusters: Vec<&str> = rows
        .map(|row| row["system_identifier"].as_str().unwrap())
        .collect();
    clusters.sort_unstable();
    let mut expected = [&*old_identity, &*new_identity];
    expected.sort_unstable();
    assert_eq!(clusters, expected);
    walhalla.run(&["wal-show"]).exits_with(1).says(&[
        &old_identity,
        &new_identity,
        "PostgreSQL 17",
        &id_after,
    ]);

    // Neither's age counts against the other.
    for pinned in [&of_old, &of_new] {
        pinned
            .run(&["delete", "retain", "1", "--confirm"])
            .succeeds();
        pinned.run(&["verify", "--all"]).succeeds();
        pinned.run(&["wal-verify", "--deep"]).succeeds();
    }
    restores(&area, &of_old, OLD, &before);
    restores(&area, &of_new, NEW, &after);
    let everything = ["delete", "everything", "--confirm", "--system-identifier"];
    walhalla
        .run(&[&everything[..], &[&old_identity]].concat())
        .succeeds();
    assert_eq!(walhalla.backup_ids(), [id_after]);
}
