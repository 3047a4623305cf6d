//! A restore touches what it was told to, and nothing else.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::{
    Area, Cluster, Ending, Outcome, Shape, Store, Walhalla, copy_tree, give_rights_back, host,
    make_unreadable, random_moment_within, run,
};

/// A cluster with a table in a tablespace, and a backup of it.
struct Spaced {
    area: Area,
    walhalla: Walhalla,
    cluster: Cluster,
    oid: String,
}

const VERSION: u32 = 17;

impl Spaced {
    fn make() -> Self {
        let area = Area::new();
        let store = Store::directory(&area);
        let walhalla = Walhalla::new(&area, &store);
        let mut cluster = Cluster::create(&area, "primary", Shape::small(VERSION));
        walhalla.archive_from(&mut cluster);
        let place = area.make_dir("space");
        cluster.sql(&format!(
            "create tablespace far location '{}'",
            place.display()
        ));
        cluster.sql("create table t tablespace far as select g, repeat('x', 200) from generate_series(1, 5000) g");
        walhalla.back_up(&cluster);
        cluster.sql("update t set g = g + 100000");
        cluster.sql("create table later tablespace far as select 1 as i");
        let oid = cluster.sql("select oid from pg_tablespace where spcname = 'far'");
        cluster.archive_everything();
        Self {
            area,
            walhalla,
            cluster,
            oid,
        }
    }

    fn over(&self, path: &Path, args: &[&str]) -> Outcome {
        let mut all = vec![
            "restore",
            path.to_str().unwrap(),
            "--delta",
            "--archive-mode",
            "off",
        ];
        all.extend_from_slice(args);
        self.walhalla.run(&all)
    }

    fn map(&self, place: &Path) -> String {
        format!("{}={}", self.oid, place.display())
    }
}

/// Every file below a directory: its length, its time of change, and whose it is.
fn facts(folder: &Path) -> BTreeMap<PathBuf, (u64, i64, i64, u32)> {
    let mut facts = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let metadata = entry.path().symlink_metadata().unwrap();
        let of = (
            metadata.len(),
            metadata.mtime(),
            metadata.mtime_nsec(),
            metadata.uid(),
        );
        facts.insert(entry.path(), of);
        if metadata.is_dir() {
            facts.extend(self::facts(&entry.path()));
        }
    }
    facts
}

fn copy(from: &Path, to: &Path, how: &str) {
    run(host().command("cp").arg(how).arg(from).arg(to)).succeeds();
    let _ = std::fs::remove_file(to.join("postmaster.pid"));
}

#[test]
fn a_restore_over_a_copy_leaves_the_originals_tablespace_alone() {
    let mut spaced = Spaced::make();
    let (original, place) = (spaced.cluster.data.clone(), spaced.area.path("space"));
    spaced.cluster.stop();
    let before = facts(&place);
    for how in ["-a", "-al"] {
        let there = spaced.area.path(&format!("copy{how}"));
        copy(&original, &there, how);
        let refused = spaced.over(&there, &[]).exits_with(1);
        refused.says(&[
            "a link to them does not show",
            &spaced.map(&place),
            "--tablespace-map",
        ]);
        assert_eq!(facts(&place), before, "cp {how}");
        assert!(there.join("global/pg_control").exists());
        // A place of its own is what helps.
        let own = spaced.area.path(&format!("space{how}"));
        spaced
            .over(&there, &["--tablespace-map", &spaced.map(&own)])
            .succeeds();
        assert_eq!(facts(&place), before, "cp {how}");
    }
    // Named by mistake while the original runs.
    spaced.cluster.start();
    let third = spaced.area.path("third");
    copy(&original, &third, "-a");
    let refused = spaced
        .over(&third, &["--tablespace-map", &spaced.map(&place)])
        .exits_with(1);
    refused.says(&["is used by the server in", original.to_str().unwrap()]);
    assert_eq!(spaced.cluster.sql("select count(*) from later"), "1");
    // Over the original itself it takes the word of who says so, and says what goes.
    spaced.cluster.stop();
    spaced.over(&original, &[]).exits_with(1);
    let restored = spaced
        .over(&original, &["--tablespace-map", &spaced.map(&place)])
        .succeeds();
    restored.says(&["is removed from", place.to_str().unwrap()]);
    spaced.cluster.start();
    spaced.cluster.wait_until_promoted();
    assert_eq!(
        spaced.cluster.sql("select count(*), min(g) from t"),
        "5000|100001"
    );
    assert_eq!(spaced.cluster.sql("select count(*) from later"), "1");
    spaced.cluster.sql("drop table t, later");
    spaced.cluster.sql("drop tablespace far");
    spaced.cluster.stop();
}

#[test]
fn a_link_for_the_wal_folder_is_no_proof() {
    let mut spaced = Spaced::make();
    spaced.cluster.sql("drop table later");
    spaced.cluster.stop();
    let (original, place) = (spaced.cluster.data.clone(), spaced.area.path("space"));
    let wal = spaced.area.path("wal");
    std::fs::rename(original.join("pg_wal"), &wal).unwrap();
    symlink(&wal, original.join("pg_wal")).unwrap();
    let there = spaced.area.path("copy");
    copy(&original, &there, "-a");
    let before = facts(&wal);
    let own_place = spaced.map(&spaced.area.path("own"));
    let map = ["--tablespace-map", own_place.as_str()];
    spaced.over(&there, &map).exits_with(1).says(&[
        "is a link to",
        "--waldir",
        wal.to_str().unwrap(),
    ]);
    assert_eq!(facts(&wal), before);
    let other = spaced.area.path("other-wal");
    let args = [
        "--tablespace-map",
        map[1],
        "--waldir",
        other.to_str().unwrap(),
    ];
    spaced.over(&there, &args).succeeds();
    assert_eq!(facts(&wal), before);
    let mut restored = Cluster::adopt(&spaced.area, VERSION, there.clone());
    restored.start();
    restored.wait_until_promoted();
    assert_eq!(std::fs::read_link(there.join("pg_wal")).unwrap(), other);
    restored.stop();
    // The original's own, named.
    let map = spaced.map(&place);
    let args = ["--tablespace-map", &map, "--waldir", wal.to_str().unwrap()];
    spaced.over(&original, &args).succeeds();
    spaced.cluster.start();
    spaced.cluster.wait_until_promoted();
    spaced.cluster.stop();
    // From inside of the data directory to outside of it.
    let moved = spaced.area.path("moved-wal");
    std::fs::remove_file(original.join("pg_wal")).unwrap();
    std::fs::rename(&wal, original.join("pg_wal")).unwrap();
    let args = [
        "--tablespace-map",
        &map,
        "--waldir",
        moved.to_str().unwrap(),
    ];
    let restored = spaced.over(&original, &args).succeeds();
    restored.says(&["were moved to", "moved-wal.walhalla-old-wal.1"]);
    spaced.cluster.start();
    spaced.cluster.wait_until_promoted();
    assert_eq!(std::fs::read_link(original.join("pg_wal")).unwrap(), moved);
    spaced.cluster.stop();
    // A new directory, too.
    let (new, new_wal) = (spaced.area.path("new"), spaced.area.path("new-wal"));
    let new_place = spaced.map(&spaced.area.path("new-space"));
    let restored = spaced.walhalla.run(&[
        "backup-fetch",
        new.to_str().unwrap(),
        "LATEST",
        "--tablespace-map",
        &new_place,
        "--waldir",
        new_wal.to_str().unwrap(),
    ]);
    restored.succeeds();
    assert!(new_wal.join("archive_status").is_dir());
}

#[test]
fn a_restore_with_a_tablespace_that_was_killed_is_taken_up_and_its_copy_is_not() {
    let mut spaced = Spaced::make();
    spaced.cluster.stop();
    let place = spaced.area.path("space");
    let empty_place = || {
        let _ = std::fs::remove_dir_all(&place);
        spaced.area.make_dir("space");
    };
    empty_place();
    let there = spaced.area.path("there");
    let args = ["restore", there.to_str().unwrap(), "--archive-mode", "off"];
    let mut limit = Duration::from_millis(800);
    loop {
        let mut command = spaced.walhalla.command(&args);
        match Walhalla::kill_after(&mut command, random_moment_within(limit)) {
            Ending::Killed if is_begun(&place) => break,
            Ending::Killed => {}
            Ending::Finished(outcome) => {
                outcome.succeeds();
                limit /= 2;
            }
        }
        for name in ["there", "there.walhalla-wal"] {
            let _ = std::fs::remove_dir_all(spaced.area.path(name));
        }
        empty_place();
    }
    assert!(!there.join("global/pg_control").exists());
    let copied = spaced.area.path("copied");
    copy(&there, &copied, "-a");
    let before = facts(&place);
    spaced
        .over(&copied, &[])
        .exits_with(1)
        .says(&[place.to_str().unwrap()]);
    assert_eq!(facts(&place), before);
    spaced.over(&there, &[]).succeeds();
    assert!(!is_begun(&place));
    let mut restored = Cluster::adopt(&spaced.area, VERSION, there);
    restored.start();
    restored.wait_until_promoted();
    assert_eq!(restored.sql("select count(*) from later"), "1");
    restored.stop();
}

/// Whether a restore has made the tablespace's folder, and has not ended.
fn is_begun(place: &Path) -> bool {
    let entries = std::fs::read_dir(place).into_iter().flatten().flatten();
    { entries }.any(|entry| entry.path().join("walhalla_restore").exists())
}

#[test]
fn a_directory_that_is_in_the_way_is_told_apart() {
    let mut spaced = Spaced::make();
    let original = spaced.cluster.data.clone();
    let plain = ["restore", original.to_str().unwrap()];
    let refused = spaced.walhalla.run(&plain).exits_with(1);
    let refused = refused.says(&[
        "is not empty",
        "a data directory of cluster",
        "uses it (process",
        "name another directory",
    ]);
    assert!(!refused.stderr.contains("empty this"), "{refused}");
    let there = spaced.area.path("there");
    let refused = spaced
        .walhalla
        .run(&["restore", there.to_str().unwrap()])
        .exits_with(1);
    refused.says(&[
        "space",
        "it holds a tablespace (PG_17",
        "uses it (process",
        "--tablespace-map",
    ]);
    assert!(!there.exists());
    spaced.cluster.stop();
    let refused = spaced.walhalla.run(&plain).exits_with(1);
    refused.says(&["no server of this host is seen to use it", "--delta"]);
    spaced.area.make_dir("other");
    spaced.area.write("other/x", "");
    let other = spaced.area.path("other");
    let refused = spaced
        .walhalla
        .run(&["restore", other.to_str().unwrap()])
        .exits_with(1);
    let refused = refused.says(&["nothing in it tells whose it is"]);
    assert!(!refused.stderr.contains("--delta"), "{refused}");
}

#[test]
fn one_restore_at_a_time_works_in_a_directory_a_tablespace_and_a_stage() {
    let mut spaced = Spaced::make();
    spaced.cluster.stop();
    let there = spaced.area.path("there");
    let place = spaced.area.path("place");
    let map = spaced.map(&place);
    spaced.over(&there, &["--tablespace-map", &map]).succeeds();
    let folder = std::fs::read_dir(&place)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let stage = spaced.area.path("there.walhalla-wal");
    for busy in [&there, &folder, &stage] {
        // Another process holds what a restore holds as long as it works.
        let lock = std::fs::File::open(busy).unwrap();
        lock.try_lock().unwrap();
        let before = facts(&there);
        let refused = spaced
            .over(&there, &["--tablespace-map", &map])
            .exits_with(1);
        refused.says(&["another restore is at work in", busy.to_str().unwrap()]);
        assert_eq!(facts(&there), before);
        drop(lock);
    }
    spaced.over(&there, &["--tablespace-map", &map]).succeeds();
    // What recovery ends with leaves the stage of a restore alone.
    let lock = std::fs::File::open(&stage).unwrap();
    lock.try_lock().unwrap();
    let plan = stage.join("plan.json");
    let sum = run(host().command("sha256sum").arg(&plan))
        .succeeds()
        .stdout;
    let seal = sum.split_once(' ').unwrap().0;
    let end = ["restore-end", plan.to_str().unwrap(), "--seal", seal];
    spaced.walhalla.run(&end).succeeds();
    assert!(plan.exists());
    drop(lock);
    spaced.walhalla.run(&end).succeeds();
    assert!(!stage.exists());
}

#[test]
fn of_two_restores_at_once_the_one_that_says_so_has_made_it() {
    let mut spaced = Spaced::make();
    spaced.cluster.stop();
    let there = spaced.area.path("there");
    let map = spaced.map(&spaced.area.path("place"));
    for pause in [0, 30, 90, 200, 400] {
        for name in ["there", "place", "there.walhalla-wal"] {
            let _ = std::fs::remove_dir_all(spaced.area.path(name));
        }
        let args = [
            "restore",
            there.to_str().unwrap(),
            "--archive-mode",
            "off",
            "--tablespace-map",
            &map,
        ];
        let mut first = spaced.walhalla.command(&args).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(pause));
        let second = spaced.over(&there, &["--tablespace-map", &map]);
        let first = first.wait().unwrap();
        assert!(first.success() || second.code == Some(0), "{second}");
        let mut check = host().command(host().client_program(VERSION, "pg_verifybackup"));
        check.args(["-n", "-i", "postgresql.auto.conf", "-i", "recovery.signal"]);
        run(check.arg(&there)).succeeds();
    }
}

/// A stopped cluster with three archived segments in its `pg_wal`, and their names.
fn with_archived_segments() -> (Spaced, Vec<String>) {
    let mut spaced = Spaced::make();
    spaced.cluster.sql("drop table t, later");
    spaced.cluster.sql("drop tablespace far");
    spaced.cluster.configure("wal_keep_size = '100MB'");
    spaced.walhalla.back_up(&spaced.cluster);
    let mut names = Vec::new();
    for number in 0..3 {
        spaced.cluster.sql(&format!(
            "create table n{number} as select generate_series(1, 100) as i"
        ));
        names.push(spaced.cluster.archive_everything());
    }
    spaced.cluster.stop();
    (spaced, names)
}

#[test]
fn wal_that_is_nowhere_else_is_moved_aside_and_named() {
    let (spaced, names) = with_archived_segments();
    let data = spaced.cluster.data.clone();
    let wal = |name: &str| data.join("pg_wal").join(name);
    // Other content under an archived name, and a segment that the server had not archived for all it knows.
    let mut other = std::fs::read(wal(&names[0])).unwrap();
    let end = other.len() - 1;
    other[end] ^= 1;
    std::fs::write(wal(&names[0]), &other).unwrap();
    let status = |suffix: &str| {
        data.join("pg_wal/archive_status")
            .join(format!("{}.{suffix}", names[1]))
    };
    let _ = std::fs::remove_file(status("done"));
    std::fs::write(status("ready"), "").unwrap();
    host().give_to_user(&status("ready"));
    // Not even where its first sector cannot be read.
    let mut ready = std::fs::read(wal(&names[1])).unwrap();
    ready[..512].fill(0);
    std::fs::write(wal(&names[1]), &ready).unwrap();
    // Of a cluster whose segments had another size.
    let odd = "0000000100000000000000AA";
    std::fs::write(wal(odd), vec![1; ready.len() * 2]).unwrap();
    host().give_to_user(&wal(odd));
    std::fs::write(wal("00000007.history"), "1\t0/5000000\tmade up\n").unwrap();
    host().give_to_user(&wal("00000007.history"));
    let restored = spaced.over(&data, &[]).succeeds();
    restored.says(&[
        &names[0],
        &names[1],
        "00000007.history",
        "walhalla-old-wal.1",
    ]);
    let aside = spaced.area.path("primary.walhalla-old-wal.1");
    assert_eq!(std::fs::read(aside.join(&names[0])).unwrap(), other);
    assert_eq!(std::fs::read(aside.join(&names[1])).unwrap(), ready);
    assert!(aside.join("00000007.history").exists());
    assert!(aside.join(odd).exists());
    assert!(
        !aside.join(&names[2]).exists(),
        "it is in the archive as it is here"
    );
}

#[test]
fn wal_is_moved_into_the_spool_where_nothing_can_be_made_beside_the_directory() {
    let (spaced, names) = with_archived_segments();
    let closed = spaced.area.make_dir("closed");
    let data = closed.join("data");
    std::fs::rename(&spaced.cluster.data, &data).unwrap();
    let segment = data.join("pg_wal").join(&names[0]);
    let mut other = std::fs::read(&segment).unwrap();
    let end = other.len() - 1;
    other[end] ^= 1;
    std::fs::write(&segment, &other).unwrap();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o500)).unwrap();
    let refused = spaced.over(&data, &["--wal", "on-demand"]).exits_with(1);
    refused.says(&["nothing can be created in", closed.to_str().unwrap()]);
    assert!(data.join("global/pg_control").exists());
    let spool = spaced.area.make_dir("spool");
    let walhalla = spaced
        .walhalla
        .with_env("WALHALLA_SPOOL_DIR", spool.to_str().unwrap());
    let args = [
        "restore",
        data.to_str().unwrap(),
        "--delta",
        "--archive-mode",
        "off",
    ];
    walhalla
        .run(&args)
        .succeeds()
        .says(&[&names[0], spool.to_str().unwrap()]);
    assert_eq!(
        std::fs::read(spool.join("data.walhalla-old-wal.1").join(&names[0])).unwrap(),
        other
    );
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o700)).unwrap();
}

/// Runs a script in a mount namespace of its own, in which it is root.
fn with_mounts(spaced: &Spaced, script: &str, args: &[&str]) -> Outcome {
    let program = spaced.walhalla.command(args);
    let mut command = Command::new("unshare");
    command.arg(if host().is_root { "-m" } else { "-rm" });
    command.args(["sh", "-ec", &format!("{script}\nexec \"$@\""), "sh"]);
    command.arg(program.get_program()).args(program.get_args());
    run(&mut command)
}

#[test]
fn a_mount_inside_is_refused_before_anything_is_changed() {
    let mut spaced = Spaced::make();
    spaced.cluster.stop();
    let data = spaced.cluster.data.clone();
    let place = spaced.area.path("space");
    let folder = std::fs::read_dir(&place)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let database = std::fs::read_dir(&folder)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let elsewhere = spaced.area.make_dir("elsewhere");
    std::fs::write(elsewhere.join("precious"), "x").unwrap();
    let map = spaced.map(&place);
    let args = [
        "restore",
        data.to_str().unwrap(),
        "--delta",
        "--archive-mode",
        "off",
        "--tablespace-map",
        &map,
    ];
    let (data, elsewhere) = (data.display(), elsewhere.display());
    let scripts = [
        format!("mount -t tmpfs none {data}/pg_wal"),
        format!("mount --bind {elsewhere} {data}/base"),
        format!("mount --bind {elsewhere}/precious {data}/postgresql.conf"),
        format!("mkdir -p {data}/log; mount --bind {elsewhere} {data}/log"),
        format!("mount --bind {elsewhere} {}", database.display()),
    ];
    let before = facts(&place);
    for script in scripts {
        let refused = with_mounts(&spaced, &script, &args).exits_with(1);
        refused.says(&["is mounted there"]);
        assert!(
            spaced.cluster.data.join("global/pg_control").exists(),
            "{script}"
        );
        assert!(spaced.area.path("elsewhere/precious").exists(), "{script}");
        assert_eq!(facts(&place), before, "{script}");
    }
}

#[test]
fn room_and_files_are_summed_up_on_each_file_system() {
    let mut spaced = Spaced::make();
    spaced.cluster.stop();
    let disk = spaced.area.make_dir("disk");
    let data = disk.join("data");
    let map = spaced.map(&disk.join("place"));
    let args = [
        "restore",
        data.to_str().unwrap(),
        "--archive-mode",
        "off",
        "--tablespace-map",
        &map,
    ];
    let mount = |options: &str| {
        let owner = format!("{}:{}", host().uid, host().gid);
        let give = if host().is_root {
            format!("chown {owner} {}", disk.display())
        } else {
            String::new()
        };
        format!(
            "mount -t tmpfs -o {options} none {}\n{give}",
            disk.display()
        )
    };
    with_mounts(&spaced, &mount("size=400m,nr_inodes=300"), &args)
        .exits_with(1)
        .says(&["more files"]);
    with_mounts(&spaced, &mount("size=85m"), &args)
        .exits_with(1)
        .says(&[" free, the restore needs "]);
    with_mounts(
        &spaced,
        &format!(
            "{}\nmount -o remount,ro {}",
            mount("size=400m"),
            disk.display()
        ),
        &args,
    )
    .exits_with(1)
    .says(&["Read-only file system"]);
    with_mounts(&spaced, &mount("size=400m"), &args).succeeds();
}

#[test]
fn what_may_not_be_written_is_refused_before_anything_is() {
    let mut spaced = Spaced::make();
    spaced.cluster.stop();
    let closed = spaced.area.make_dir("closed");
    let data = spaced.area.make_dir("closed/data");
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o500)).unwrap();
    let map = spaced.map(&spaced.area.path("place"));
    let args = [
        "restore",
        data.to_str().unwrap(),
        "--archive-mode",
        "off",
        "--tablespace-map",
        &map,
    ];
    spaced
        .walhalla
        .run(&args)
        .exits_with(1)
        .says(&["data.walhalla-wal", "spool_dir"]);
    assert_eq!(data.read_dir().unwrap().count(), 0);
    assert!(!spaced.area.path("place").exists());
    let nowhere = spaced
        .walhalla
        .with_env("WALHALLA_SPOOL_DIR", "/nowhere/at/all");
    nowhere.run(&args).exits_with(1).says(&["spool_dir"]);
    let in_closed = spaced.map(&closed.join("place"));
    let new = spaced.area.path("new");
    let args = [
        "restore",
        new.to_str().unwrap(),
        "--tablespace-map",
        &in_closed,
    ];
    spaced
        .walhalla
        .run(&args)
        .exits_with(1)
        .says(&["nothing can be created in", closed.to_str().unwrap()]);
    assert!(!new.exists());
    let spool = spaced.area.make_dir("spool");
    let walhalla = spaced
        .walhalla
        .with_env("WALHALLA_SPOOL_DIR", spool.to_str().unwrap());
    let args = [
        "restore",
        data.to_str().unwrap(),
        "--archive-mode",
        "off",
        "--tablespace-map",
        &map,
    ];
    walhalla.run(&args).succeeds();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o700)).unwrap();
    if host().is_root {
        let other = spaced.area.path("roots");
        std::fs::create_dir(&other).unwrap();
        std::fs::set_permissions(&other, std::fs::Permissions::from_mode(0o777)).unwrap();
        let map = spaced.map(&spaced.area.path("another-place"));
        let args = [
            "restore",
            other.to_str().unwrap(),
            "--archive-mode",
            "off",
            "--tablespace-map",
            &map,
        ];
        spaced
            .walhalla
            .run(&args)
            .exits_with(1)
            .says(&["belongs to the user with uid 0"]);
    }
}

/// The same command, run by root.
fn as_root(walhalla: &Walhalla, args: &[&str]) -> Command {
    let command = walhalla.command(args);
    let mut root = Command::new(command.get_program());
    root.args(command.get_args());
    root
}

#[test]
fn what_root_restores_belongs_to_the_owner_also_through_links() {
    if !host().is_root {
        println!("only root can restore for another user: nothing was tested");
        return;
    }
    let mut spaced = Spaced::make();
    spaced.cluster.stop();
    for name in ["disk-data", "disk-space", "disk-wal"] {
        spaced.area.make_dir(name);
    }
    for (link, target) in [
        ("data", "disk-data"),
        ("place", "disk-space"),
        ("waldir", "disk-wal"),
    ] {
        run(host()
            .command("ln")
            .arg("-s")
            .arg(spaced.area.path(target))
            .arg(spaced.area.path(link)))
        .succeeds();
    }
    let data = spaced.area.path("data");
    let (map, waldir) = (
        spaced.map(&spaced.area.path("place")),
        spaced.area.path("waldir"),
    );
    let args = [
        "restore",
        data.to_str().unwrap(),
        "--archive-mode",
        "off",
        "--tablespace-map",
        &map,
        "--waldir",
        waldir.to_str().unwrap(),
    ];
    run(&mut as_root(&spaced.walhalla, &args)).succeeds();
    for name in ["disk-data", "disk-space", "disk-wal", "data.walhalla-wal"] {
        let path = spaced.area.path(name);
        let strangers: Vec<_> = facts(&path)
            .into_iter()
            .filter(|(_, of)| of.3 != host().uid)
            .collect();
        assert!(strangers.is_empty(), "{strangers:?}");
        assert_eq!(path.metadata().unwrap().uid(), host().uid, "{name}");
    }
    let mut restored = Cluster::adopt(&spaced.area, VERSION, data);
    restored.start();
    restored.wait_until_promoted();
    assert_eq!(restored.sql("select count(*) from later"), "1");
    restored.stop();
}

#[test]
fn root_follows_no_link_to_where_its_owner_may_not_write() {
    if !host().is_root {
        println!("only root can restore for another user: nothing was tested");
        return;
    }
    let mut spaced = Spaced::make();
    spaced.cluster.stop();
    let victim = tempfile::tempdir().unwrap();
    let link = spaced.area.path("data");
    run(host().command("ln").arg("-s").arg(victim.path()).arg(&link)).succeeds();
    let map = spaced.map(&spaced.area.path("place"));
    let args = [
        "restore",
        link.to_str().unwrap(),
        "--archive-mode",
        "off",
        "--tablespace-map",
        &map,
    ];
    run(&mut as_root(&spaced.walhalla, &args))
        .exits_with(1)
        .says(&["belongs to another user"]);
    // A place that only the backup names, and that is root's.
    std::fs::remove_file(&link).unwrap();
    let space = spaced.area.path("space");
    std::fs::remove_dir_all(&space).unwrap();
    std::fs::create_dir(&space).unwrap();
    let args = ["restore", link.to_str().unwrap(), "--archive-mode", "off"];
    run(&mut as_root(&spaced.walhalla, &args))
        .exits_with(1)
        .says(&[
            "is not a directory of the server's user",
            "--tablespace-map",
        ]);
    // Nor where what is restored would be root's own, too.
    let roots = spaced.area.path("roots");
    std::fs::create_dir(&roots).unwrap();
    let copy = roots.join("data");
    let args = ["restore", copy.to_str().unwrap(), "--archive-mode", "off"];
    run(&mut as_root(&spaced.walhalla, &args))
        .exits_with(1)
        .says(&["is not a directory of the server's user"]);
    assert_eq!(
        victim.path().read_dir().unwrap().count() + space.read_dir().unwrap().count(),
        0
    );
}

#[test]
fn links_that_are_put_in_the_way_of_a_restore_lead_nowhere() {
    let mut spaced = Spaced::make();
    spaced.cluster.stop();
    let victim = tempfile::tempdir().unwrap();
    std::fs::set_permissions(victim.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    std::fs::write(victim.path().join("key"), "secret").unwrap();
    let (there, place) = (spaced.area.path("there"), spaced.area.path("place"));
    let map = spaced.map(&place);
    let args = [
        "restore",
        there.to_str().unwrap(),
        "--archive-mode",
        "off",
        "--tablespace-map",
        &map,
    ];
    for round in 0..6 {
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let names = [
                    "there/base",
                    "there/global",
                    "there/pg_xact",
                    "there/base/1",
                    "place",
                    "there.walhalla-wal",
                    "there",
                ];
                while !is_done.load(Ordering::Relaxed) {
                    let name = spaced.area.path(names[fastrand::usize(..names.len())]);
                    let away = spaced.area.path("away");
                    if std::fs::rename(&name, &away).is_ok() {
                        let _ = symlink(victim.path(), &name);
                        std::thread::sleep(Duration::from_micros(fastrand::u64(..2000)));
                        let _ = std::fs::remove_file(&name);
                        let _ = std::fs::rename(&away, &name);
                    }
                }
            });
            let mut command = if host().is_root && round % 2 == 0 {
                as_root(&spaced.walhalla, &args)
            } else {
                spaced.walhalla.command(&args)
            };
            let _ = run(&mut command);
            is_done.store(true, Ordering::Relaxed);
        });
        let found: Vec<_> = facts(victim.path()).into_iter().collect();
        assert_eq!(found.len(), 1, "{found:?}");
        let own = std::fs::metadata("/proc/self").unwrap().uid();
        assert_eq!(found[0].1.3, own, "{found:?}");
        for name in ["there", "place", "there.walhalla-wal", "away"] {
            let path = spaced.area.path(name);
            let _ = std::fs::remove_file(&path);
            let _ = std::fs::remove_dir_all(&path);
        }
    }
}

#[test]
fn a_restore_does_not_remove_what_it_needs_itself() {
    let mut spaced = Spaced::make();
    spaced.cluster.stop();
    let data = spaced.cluster.data.clone();
    let store = data.join("store");
    copy_tree(&spaced.area.path("store"), &store);
    let url = format!("file://{}", store.display());
    let map = spaced.map(&spaced.area.path("space"));
    let args = [
        "--store",
        &url,
        "restore",
        data.to_str().unwrap(),
        "--delta",
        "--tablespace-map",
        &map,
    ];
    spaced.walhalla.run(&args).exits_with(1).says(&[
        store.to_str().unwrap(),
        "lies in",
        "nothing was written",
    ]);
    assert!(store.is_dir() && data.join("global/pg_control").exists());
}

#[test]
fn a_cluster_within_the_directory_is_not_swept() {
    let mut spaced = Spaced::make();
    spaced.cluster.stop();
    let data = spaced.cluster.data.clone();
    let nested = data.join("standbys/one");
    host().give_to_user(&spaced.area.make_dir("primary/standbys"));
    copy_tree(&data.join("global"), &spaced.area.path("global"));
    std::fs::create_dir(&nested).unwrap();
    host().give_to_user(&nested);
    std::fs::rename(spaced.area.path("global"), nested.join("global")).unwrap();
    let map = spaced.map(&spaced.area.path("space"));
    spaced
        .over(&data, &["--tablespace-map", &map])
        .exits_with(1)
        .says(&[nested.to_str().unwrap(), "data directory of its own"]);
    assert!(data.join("global/pg_control").exists());
}

/// Whoever follows a hint that came before the first write loses nothing.
#[test]
fn what_fails_before_the_first_write_does_not_offer_to_take_it_up() {
    let mut spaced = Spaced::make();
    spaced.cluster.stop();
    let data = spaced.cluster.data.clone();
    let closed = spaced.area.make_dir("closed");
    make_unreadable(&closed);
    let map = spaced.map(&closed);
    let args = ["restore", data.to_str().unwrap(), "--tablespace-map", &map];
    let outcome = spaced.walhalla.run(&args).exits_with(1);
    assert!(!outcome.stderr.contains("takes it up"), "{outcome}");
    give_rights_back(&closed);
}

/// In a directory that all may write to, another user may have made the stage before.
#[test]
fn a_stage_that_somebody_else_made_is_not_taken() {
    if !host().is_root {
        println!("only root can be another user here: nothing was tested");
        return;
    }
    let mut spaced = Spaced::make();
    spaced.cluster.stop();
    let stage = spaced.area.path("copy.walhalla-wal");
    std::fs::create_dir(&stage).unwrap();
    std::fs::set_permissions(&stage, std::fs::Permissions::from_mode(0o777)).unwrap();
    let copy = spaced.area.path("copy");
    let map = spaced.map(&spaced.area.path("copys-space"));
    let args = ["restore", copy.to_str().unwrap(), "--tablespace-map", &map];
    spaced
        .walhalla
        .run(&args)
        .exits_with(1)
        .says(&[stage.to_str().unwrap()]);
    assert!(!copy.exists());
}
