//! Paths that are not UTF-8.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use crate::support::{Area, Cluster, Shape, Store, Walhalla, fill, host, run};

fn odd(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

/// The cluster moved to a directory with such a name.
fn moved(area: &Area, cluster: Cluster, name: &[u8]) -> Cluster {
    let (version, data) = (cluster.version, area.root().join(odd(name)));
    std::fs::rename(&cluster.data, &data).unwrap();
    drop(cluster);
    Cluster::adopt(area, version, data)
}

/// Runs a command on the cluster's directory, whose name no text holds.
fn push(walhalla: &Walhalla, cluster: &Cluster, more: &[&str]) -> crate::support::Outcome {
    let mut command = walhalla.command(&["backup-push"]);
    command.arg(&cluster.data).args(more);
    run(command.envs(cluster.connection()))
}

fn names_of_any_bytes_come_back(version: u32) {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let primary = Cluster::create(&area, "primary", Shape::of(version));
    let mut primary = moved(&area, primary, b"pr\xfcmary");
    walhalla.archive_from(&mut primary);
    fill(&primary);
    let database = primary.sql("select oid from pg_database where datname = 'postgres'");
    let folder = PathBuf::from(odd(b"folder \xff"));
    let long = OsString::from_vec([&b"long \xfe"[..], &[b'x'; 180]].concat());
    let names = [
        PathBuf::from(odd(b"caf\xe9")),
        folder.join(odd(b"\xc3\x28 in it")),
        folder.join(long),
        Path::new("base").join(&database).join(odd(b"16384\xe9")),
        Path::new("global").join(odd(b"INCREMENTAL.\xe9")),
    ];
    let made = primary.data.join(&folder);
    std::fs::create_dir(&made).unwrap();
    host().give_to_user(&made);
    let write = |names: &[PathBuf], what: &str| {
        for (number, name) in names.iter().enumerate() {
            let path = primary.data.join(name);
            std::fs::write(&path, format!("{what} {number}")).unwrap();
            host().give_to_user(&path);
        }
    };
    let holds = |data: &Path, names: &[PathBuf], what: &str| {
        for (number, name) in names.iter().enumerate() {
            let content = std::fs::read_to_string(data.join(name)).unwrap();
            assert_eq!(content, format!("{what} {number}"), "{name:?}");
        }
    };
    write(&names, "full");
    let temporary = primary.data.join(odd(b"pgsql_tmp\xff"));
    std::fs::write(&temporary, "left out").unwrap();
    host().give_to_user(&temporary);
    push(&walhalla, &primary, &[]).succeeds();
    let full = walhalla.newest_backup();
    walhalla.run(&["verify"]).succeeds();
    let restored = walhalla.restore(&area, version, "restored", &[]);
    holds(&restored.data, &names, "full");
    assert!(!restored.data.join(odd(b"pgsql_tmp\xff")).exists());

    std::fs::remove_file(primary.data.join(&names[4])).unwrap();
    let names = &names[..4];
    write(names, "delta");
    push(&walhalla, &primary, &["--delta", "--parent", &full]).succeeds();
    let delta = walhalla.newest_backup();
    walhalla.run(&["verify", "--all"]).succeeds();
    let fetched = area.path("fetched");
    let fetch = ["backup-fetch", fetched.to_str().unwrap(), &delta];
    walhalla.run(&fetch).succeeds();
    holds(&fetched, names, "delta");
    let again = walhalla.run(&["restore", "--delta", restored.data.to_str().unwrap()]);
    again.succeeds();
    holds(&restored.data, names, "delta");
    assert!(
        !restored
            .data
            .join("global")
            .join(odd(b"INCREMENTAL.\xe9"))
            .exists()
    );
    walhalla.run(&["backup-merge", &delta]).succeeds();
    walhalla.run(&["verify"]).succeeds();
    primary.archive_everything();
    let expected = primary.dump();
    primary.stop();
    let mut merged = walhalla.restore(&area, version, "merged", &[]);
    holds(&merged.data, names, "delta");
    merged.start();
    merged.wait_until_promoted();
    merged.dump().assert_same_as(&expected, "merged");
}

#[test]
fn names_of_any_bytes_come_back_on_15() {
    names_of_any_bytes_come_back(15);
}

#[test]
fn names_of_any_bytes_come_back_on_17() {
    names_of_any_bytes_come_back(17);
}

#[test]
fn what_must_be_written_as_text_is_refused_before_anything_happens() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut primary = Cluster::create(&area, "primary", Shape::of(15));
    walhalla.archive_from(&mut primary);
    fill(&primary);
    walhalla.back_up(&primary);
    primary.archive_everything();

    // A restore's settings name the data directory.
    let target = area.root().join(odd(b"r\xffstored"));
    let mut restore = walhalla.command(&["restore"]);
    let refused = run(restore.arg(&target)).exits_with(1);
    refused.says(&["not UTF-8", "r\\xFFstored", "hint:"]);
    assert!(!target.exists());

    // A variable that is no text is not as if it were not set.
    let mut config = walhalla.command(&["config"]);
    config.env("WALHALLA_SPOOL_DIR", odd(b"/sp\xfeol"));
    run(&mut config).exits_with(2).says(&["sp\\xfeol"]);

    // A tablespace's place goes into backup.json.
    let place = area.make_dir("place");
    let create = format!("create tablespace aside location '{}'", place.display());
    primary.sql(&create);
    let oid = primary.sql("select oid from pg_tablespace where spcname = 'aside'");
    primary.stop();
    let renamed = area.root().join(odd(b"pl\xe4ce"));
    std::fs::rename(&place, &renamed).unwrap();
    let link = primary.data.join("pg_tblspc").join(&oid);
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(&renamed, &link).unwrap();
    primary.start();
    let before = walhalla.backup_ids();
    let checkpoint = "select checkpoint_lsn from pg_control_checkpoint()";
    let begun = primary.sql(checkpoint);
    let pushed = push(&walhalla, &primary, &[]).exits_with(1);
    pushed.says(&["not UTF-8", "pl\\xE4ce", "hint:"]);
    assert_eq!(primary.sql(checkpoint), begun, "the backup had begun");
    assert_eq!(walhalla.backup_ids(), before);
}
