//! What root leaves in a directory store, and what another user may not read.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Area, Cluster, Outcome, Shape, Store, Walhalla, fill, host, run};

/// The program with these arguments, run by root under an odd umask.
fn by_root(walhalla: &Walhalla, cluster: &Cluster, args: &[&str]) -> Outcome {
    assert!(
        host().is_root,
        "this test compares what root does with what a user may: run it as root"
    );
    let ordinary = walhalla.command(args);
    let mut command = Command::new("sh");
    command
        .args(["-c", "umask 0277; exec \"$0\" \"$@\""])
        .arg(ordinary.get_program())
        .args(ordinary.get_args())
        .env_clear()
        .current_dir("/");
    for (key, value) in ordinary.get_envs() {
        command.env(key, value.unwrap_or_default());
    }
    run(command.envs(cluster.connection()))
}

fn all_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![folder.to_owned()];
    let mut at = 0;
    while let Some(path) = found.get(at).cloned() {
        if path.is_dir() {
            let entries = std::fs::read_dir(&path).unwrap();
            found.extend(entries.map(|entry| entry.unwrap().path()));
        }
        at += 1;
    }
    found
}

#[test]
fn what_root_stores_belongs_to_the_user_whose_store_it_is() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut primary = Cluster::create(&area, "primary", Shape::of(17));
    area.make_dir("store");
    area.write("store/.keep", "");
    walhalla.archive_from(&mut primary);
    fill(&primary);
    let data = primary.data.to_str().unwrap();
    by_root(&walhalla, &primary, &["backup-push", data]).succeeds();
    primary.sql("insert into ledger values ('a', 'b')");
    by_root(&walhalla, &primary, &["backup-push", data, "--delta"]).succeeds();
    let delta = walhalla.newest_backup();
    by_root(&walhalla, &primary, &["backup-mark", &delta, "--permanent"]).succeeds();
    by_root(&walhalla, &primary, &["backup-merge", &delta]).succeeds();

    for path in all_below(store.path()) {
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        let path = path.display();
        assert_eq!(
            (metadata.uid(), metadata.gid()),
            (host().uid, host().gid),
            "{path}"
        );
        let mode = if metadata.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(metadata.mode() & mode, mode, "{path}");
    }
    walhalla
        .run_with(&primary, &["backup-push", data, "--delta"])
        .succeeds();
    primary.archive_everything();
    walhalla.run(&["verify", "--all"]).succeeds();
    let mut restored = walhalla.restore(&area, 17, "restored", &[]);
    restored.start();
    restored.wait_until_promoted();
}

#[test]
fn what_root_stores_by_way_of_a_link_belongs_to_whom_the_folder_there_belongs() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut primary = Cluster::create(&area, "primary", Shape::of(15));
    walhalla.archive_from(&mut primary);
    primary.archive_everything();
    let elsewhere = area.make_dir("elsewhere");
    std::os::unix::fs::chown(&elsewhere, Some(0), Some(0)).unwrap();
    let folder = store.path().join(primary.system_identifier());
    std::os::unix::fs::symlink(&elsewhere, folder.join("backups")).unwrap();
    let data = primary.data.to_str().unwrap();
    by_root(&walhalla, &primary, &["backup-push", data]).succeeds();
    let found = all_below(&elsewhere);
    assert!(found.len() > 4, "{found:?}");
    for path in found {
        assert_eq!(std::fs::metadata(&path).unwrap().uid(), 0, "{path:?}");
    }
}

#[test]
fn a_backup_whose_entry_may_not_be_read_is_passed_over_by_name_of_its_owner() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut primary = Cluster::create(&area, "primary", Shape::of(15));
    walhalla.archive_from(&mut primary);
    fill(&primary);
    let older = walhalla.back_up(&primary);
    let newer = walhalla.back_up(&primary);
    primary.archive_everything();
    let data = primary.data.to_str().unwrap();
    for denied in ["backup.json", ""] {
        // The entry itself, then its folder.
        let folder = store.path().join(primary.system_identifier());
        let denied = folder.join("backups").join(&newer).join(denied);
        let mode = std::fs::metadata(&denied).unwrap().permissions();
        std::fs::set_permissions(&denied, PermissionsExt::from_mode(0o000)).unwrap();
        let owner = format!("user id {}", host().uid);
        let reason = [&*newer, "permission denied", "belongs to", "(mode 0000)"];
        let tells = |outcome: &Outcome| {
            for part in reason {
                assert!(outcome.stderr.contains(part), "{part}: {outcome}");
            }
            let times = outcome.stderr.matches(&owner).count();
            assert!(times >= 2, "owner and user: {outcome}");
        };
        tells(&walhalla.run(&["backup-list"]).exits_with(3));
        let plan = walhalla.run(&["plan", "--json"]).succeeds();
        tells(&plan);
        assert!(plan.stderr.contains("passed over"), "{plan}");
        assert_eq!(plan.json()["backup_chain"][0], *older);
        let asked = walhalla.run(&["plan", "--backup", &newer]).exits_with(1);
        asked.says(&["permission denied", "belongs to", "hint:"]);
        walhalla.run(&["verify", "--all"]).exits_with(3);
        let pushed = walhalla.run_with(&primary, &["backup-push", data, "--delta"]);
        pushed.succeeds().says(&["passed over"]);
        std::fs::set_permissions(&denied, mode).unwrap();
    }
    let restored = walhalla.restore(&area, 15, "restored", &[]);
    assert!(restored.data.join("global/pg_control").exists());
}
