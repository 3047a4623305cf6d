//! Restoring chains, over directories that are there, and single databases.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use crate::support::{
    Area, Cluster, Ending, Shape, Store, Walhalla, fill, host, make_history, random_moment_within,
    run, with_a_byte_changed,
};

struct Chain {
    area: Area,
    store: Store,
    walhalla: Walhalla,
    cluster: Cluster,
}

impl Chain {
    /// A full backup and a delta of pgbench's tables.
    fn make(version: u32) -> Self {
        let area = Area::new();
        let store = Store::directory(&area);
        let walhalla = Walhalla::new(&area, &store);
        let mut cluster = Cluster::create(&area, "primary", Shape::of(version));
        walhalla.archive_from(&mut cluster);
        fill(&cluster);
        walhalla.back_up(&cluster);
        make_history(&cluster, "between");
        let data = cluster.data.to_str().unwrap();
        walhalla
            .run_with(&cluster, &["backup-push", data, "--delta"])
            .succeeds();
        Self {
            area,
            store,
            walhalla,
            cluster,
        }
    }

    fn fetch(&self, name: &str, args: &[&str]) -> crate::support::Outcome {
        let path = self.area.path(name);
        let mut all = vec!["backup-fetch", path.to_str().unwrap(), "LATEST"];
        all.extend_from_slice(args);
        self.walhalla.run(&all)
    }

    fn assert_same(&self, one: &str, other: &str) {
        let mut diff = host().command("diff");
        diff.arg("-r");
        run(diff.arg(self.area.path(one)).arg(self.area.path(other))).succeeds();
    }
}

fn largest_file(folder: &Path) -> std::path::PathBuf {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    files.sort_by_key(|path| path.metadata().unwrap().len());
    files.pop().unwrap()
}

#[test]
fn a_restore_over_a_directory_writes_what_differs_and_removes_what_is_too_much() {
    let mut chain = Chain::make(17);
    chain.cluster.stop();
    chain.fetch("wanted", &[]).succeeds();
    chain.fetch("there", &[]).succeeds();
    let there = chain.area.path("there");
    let sizes = chain
        .fetch("there", &["--delta", "--json"])
        .succeeds()
        .json();
    let all = sizes["kept_bytes"].as_u64().unwrap();
    chain.assert_same("there", "wanted");

    let database = largest_database(&there);
    let largest = largest_file(&database);
    let mut bytes = std::fs::read(&largest).unwrap();
    bytes[5_000_000] ^= 1;
    std::fs::write(&largest, &bytes).unwrap();
    let second = largest_file(&there.join("global"));
    std::fs::write(&second, b"cut").unwrap();
    std::fs::remove_file(there.join("PG_VERSION")).unwrap();
    chain.area.write("there/junk", "x");
    chain.area.make_dir("there/base/99999");
    chain.area.write("there/base/99999/1", "x");
    chain
        .area
        .write("there/pg_wal/000000010000000000000001", "old WAL");
    // A file that its owner may not write, and one that has another name too.
    let read_only = there.join("pg_hba.conf");
    std::fs::write(&read_only, "# other\n").unwrap();
    std::fs::set_permissions(&read_only, Permissions::from_mode(0o400)).unwrap();
    let (linked, copy) = (there.join("pg_ident.conf"), chain.area.path("copy"));
    std::fs::write(&linked, "# changed\n").unwrap();
    std::fs::hard_link(&linked, &copy).unwrap();
    let again = chain
        .fetch("there", &["--delta", "--json"])
        .succeeds()
        .json();
    chain.assert_same("there", "wanted");
    assert_eq!(std::fs::read(&copy).unwrap(), b"# changed\n");
    let kept = again["kept_bytes"].as_u64().unwrap();
    let replaced = std::fs::metadata(&second).unwrap().len();
    let small = ["PG_VERSION", "pg_hba.conf", "pg_ident.conf"];
    let small = small.map(|name| there.join(name).metadata().unwrap().len());
    // One chunk of the comparison around the changed byte, and the files that were cut.
    assert!(
        all - kept <= (256 << 10) + replaced + small.iter().sum::<u64>(),
        "{} bytes were written",
        all - kept
    );
}

fn largest_database(data: &Path) -> std::path::PathBuf {
    let size = |path: &Path| -> u64 {
        let files = std::fs::read_dir(path).unwrap().flatten();
        files.map(|file| file.metadata().unwrap().len()).sum()
    };
    let folders = std::fs::read_dir(data.join("base")).unwrap().flatten();
    folders
        .map(|entry| entry.path())
        .max_by_key(|path| size(path))
        .unwrap()
}

#[test]
fn only_a_directory_that_is_proven_to_be_the_clusters_is_restored_over() {
    let mut chain = Chain::make(15);
    let data = chain.cluster.data.to_str().unwrap().to_owned();
    let over = |path: &str| {
        chain
            .walhalla
            .run(&["backup-fetch", path, "LATEST", "--delta"])
    };
    over(&data)
        .exits_with(1)
        .says(&["a server runs in it", "stop the server"]);
    chain.area.make_dir("other");
    let file = chain.area.write("other/precious", "x");
    let other = chain.area.path("other");
    over(other.to_str().unwrap())
        .exits_with(1)
        .says(&["is not proven", "nothing was written"]);
    assert_eq!(std::fs::read(&file).unwrap(), b"x");
    let foreign = Cluster::create_unrelated(&chain.area, "foreign", Shape::of(15));
    let before = std::fs::read_dir(&foreign.data).unwrap().count();
    over(foreign.data.to_str().unwrap())
        .exits_with(1)
        .says(&["it belongs to cluster"]);
    assert_eq!(std::fs::read_dir(&foreign.data).unwrap().count(), before);
    // A server in single-user mode, and one of which nothing is known.
    let pid_file = foreign.data.join("postmaster.pid");
    let own_pid = std::process::id();
    for (text, wanted) in [
        (format!("-{own_pid}\n"), "a server runs in it"),
        (String::new(), "postmaster.pid cannot be read"),
    ] {
        std::fs::write(&pid_file, text).unwrap();
        host().give_to_user(&pid_file);
        let refused = over(foreign.data.to_str().unwrap()).exits_with(1);
        refused.says(&[wanted]);
    }
    // Without --delta nothing that is there is touched at all.
    let plain = ["backup-fetch", other.to_str().unwrap(), "LATEST"];
    chain
        .walhalla
        .run(&plain)
        .exits_with(1)
        .says(&["is not empty", "nothing in it tells whose it is"]);
    chain.cluster.stop();
}

#[test]
fn a_stopped_cluster_is_restored_over_and_recovers() {
    let mut chain = Chain::make(13);
    let end = make_history(&chain.cluster, "end");
    chain.cluster.archive_everything();
    // What happens after this is lost, and its WAL is in pg_wal only.
    chain.cluster.sql("create table lost (i int)");
    chain.cluster.crash();
    let data = chain.cluster.data.clone();
    let args = [
        "restore",
        data.to_str().unwrap(),
        "--delta",
        "--archive-mode",
        "off",
    ];
    let restored = chain.walhalla.run(&args).succeeds();
    assert!(restored.stdout.contains("were there already"), "{restored}");
    restored.says(&["not in the archive were moved to"]);
    let aside = chain.area.path("primary.walhalla-old-wal.1");
    assert!(aside.read_dir().unwrap().count() > 0);
    chain.cluster.start();
    chain.cluster.wait_until_promoted();
    chain
        .cluster
        .dump()
        .assert_same_as(&end.dump, "restored over");
    chain.cluster.amcheck();
    chain.cluster.stop();
}

#[test]
fn a_restore_that_was_killed_is_taken_up_and_cannot_be_started_before() {
    let mut chain = Chain::make(16);
    chain.cluster.stop();
    chain.fetch("wanted", &[]).succeeds();
    let path = chain.area.path("there");
    let (mut killed, mut limit) = (0, Duration::from_millis(400));
    for attempt in 0..12 {
        let mut args = vec!["backup-fetch", path.to_str().unwrap(), "LATEST"];
        if attempt > 0 {
            args.push("--delta");
        }
        let mut command = chain.walhalla.command(&args);
        match Walhalla::kill_after(&mut command, random_moment_within(limit)) {
            Ending::Killed => {
                killed += 1;
                if path.join("global/pg_control").exists() {
                    chain.assert_same("there", "wanted");
                }
            }
            Ending::Finished(outcome) => {
                outcome.succeeds();
                limit /= 2;
            }
        }
    }
    assert!(killed > 0, "no restore was killed");
    chain.fetch("there", &["--delta"]).succeeds();
    chain.assert_same("there", "wanted");
}

#[test]
fn one_database_is_restored_and_the_others_come_up_empty() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut cluster = Cluster::create(&area, "primary", Shape::of(16));
    walhalla.archive_from(&mut cluster);
    fill(&cluster);
    for name in ["wanted", "other"] {
        cluster.sql(&format!("create database {name}"));
        sql_in(
            &cluster,
            name,
            "create table t as select g, repeat('x', 300) as p from generate_series(1, 20000) g",
        );
        sql_in(&cluster, name, "create index on t (g)");
    }
    walhalla.back_up(&cluster);
    for name in ["wanted", "other"] {
        sql_in(
            &cluster,
            name,
            "update t set p = 'changed' where g % 100 = 0",
        );
    }
    let data = cluster.data.to_str().unwrap().to_owned();
    walhalla
        .run_with(&cluster, &["backup-push", &data, "--delta"])
        .succeeds();
    // WAL of all databases is replayed.
    for name in ["wanted", "other"] {
        sql_in(&cluster, name, "update t set p = 'later' where g % 100 = 1");
        sql_in(&cluster, name, "delete from t where g % 100 = 2");
        sql_in(&cluster, name, "vacuum t");
    }
    let question = "select count(*), sum(g), sum(length(p)) from t";
    let expected = sql_in(&cluster, "wanted", question);
    cluster.archive_everything();
    cluster.stop();
    let path = area.path("refused");
    let args = [
        "restore",
        path.to_str().unwrap(),
        "--only-database",
        "wantd",
    ];
    walhalla
        .run(&args)
        .exits_with(2)
        .says(&["no database \"wantd\"", "wanted"]);
    let mut restored = walhalla.restore(&area, 16, "restored", &["--only-database", "wanted"]);
    restored.start();
    restored.wait_until_promoted();
    assert_eq!(sql_in(&restored, "wanted", question), expected);
    let mut psql = restored.client("psql");
    let refused = run(psql.args(["-X", "-d", "other", "-c", "select 1"]));
    assert_ne!(refused.code, Some(0));
    // The server lives on.
    restored.sql("drop database other");
    assert_eq!(
        sql_in(
            &restored,
            "wanted",
            "select count(*) from t where p = 'later'"
        ),
        "200"
    );
    restored.dump();
    restored.stop();
}

#[track_caller]
fn sql_in(cluster: &Cluster, database: &str, sql: &str) -> String {
    let mut psql = cluster.client("psql");
    psql.args([
        "-X",
        "-A",
        "-t",
        "-q",
        "-v",
        "ON_ERROR_STOP=1",
        "-d",
        database,
        "-c",
        sql,
    ]);
    run(&mut psql).succeeds().stdout.trim().to_owned()
}

#[test]
fn a_damaged_or_missing_layer_is_found_and_named() {
    let mut chain = Chain::make(14);
    chain.cluster.archive_everything();
    chain.cluster.stop();
    chain.walhalla.run(&["verify", "--all"]).succeeds();
    let ids = chain.walhalla.backup_ids();
    let parts = |id: &str| -> Vec<_> {
        let mut objects = chain.store.objects_named("");
        objects.retain(|path| {
            let path = path.to_string_lossy();
            path.contains(id) && path.ends_with(".tar.lz4")
        });
        objects
    };
    for part in parts(&ids[1]) {
        let sound = std::fs::read(&part).unwrap();
        std::fs::write(&part, with_a_byte_changed(&sound)).unwrap();
        let name = part.file_name().unwrap().to_str().unwrap();
        chain.walhalla.run(&["verify"]).exits_with(3).says(&[name]);
        let _ = std::fs::remove_dir_all(chain.area.path("there"));
        chain
            .fetch("there", &[])
            .exits_with(1)
            .says(&[name, "damaged"]);
        assert!(!chain.area.path("there/global/pg_control").exists());
        std::fs::write(&part, sound).unwrap();
    }
    let entry = parts(&ids[0])[0]
        .ancestors()
        .nth(2)
        .unwrap()
        .join("backup.json");
    std::fs::rename(&entry, entry.with_extension("away")).unwrap();
    let _ = std::fs::remove_dir_all(chain.area.path("there"));
    chain.fetch("there", &[]).exits_with(1).says(&[&ids[0]]);
    chain
        .walhalla
        .run(&[
            "restore",
            chain.area.path("there").to_str().unwrap(),
            "--backup",
            &ids[1],
        ])
        .exits_with(1)
        .says(&[&ids[0], "missing"]);
}

#[test]
fn a_full_backup_is_restored_without_its_lists_and_no_delta_stands_on_it() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut cluster = Cluster::create(&area, "primary", Shape::of(17));
    walhalla.archive_from(&mut cluster);
    fill(&cluster);
    walhalla.back_up(&cluster);
    for name in ["index.json", "relations.json"] {
        std::fs::remove_file(&store.objects_named(name)[0]).unwrap();
    }
    let data = cluster.data.to_str().unwrap().to_owned();
    let taken = walhalla.run_with(&cluster, &["backup-push", &data, "--delta"]);
    taken
        .succeeds()
        .says(&["index.json", "is missing", "a full backup is taken"]);
    let ids = walhalla.backup_ids();
    let end = make_history(&cluster, "end");
    cluster.archive_everything();
    cluster.stop();
    let mut restored = walhalla.restore(&area, 17, "restored", &["--backup", &ids[0]]);
    restored.start();
    restored.wait_until_promoted();
    restored.dump().assert_same_as(&end.dump, "without lists");
    restored.stop();
}

#[test]
fn a_running_server_is_not_restored_over_from_another_pid_namespace() {
    let mut chain = Chain::make(17);
    let data = chain.cluster.data.to_str().unwrap().to_owned();
    let over = ["restore", &data, "--delta", "--archive-mode", "off"];
    let program = chain.walhalla.command(&over);
    let mut elsewhere = std::process::Command::new("unshare");
    elsewhere.args(["--pid", "--fork", "--mount-proc"]);
    if !host().is_root {
        elsewhere.arg("-r");
    }
    elsewhere
        .arg(program.get_program())
        .args(program.get_args());
    let pid_file = chain.cluster.data.join("postmaster.pid");
    run(&mut elsewhere).exits_with(1).says(&[
        "postmaster.pid names process",
        "another container",
        &format!("rm {}", pid_file.display()),
        "nothing was written",
    ]);
    // It is as it was: the server goes on, and starts again.
    chain.cluster.sql("create table after_all as select 1 as i");
    chain.cluster.sql("checkpoint");
    chain.cluster.stop();
    chain.cluster.start();
    assert_eq!(chain.cluster.sql("select count(*) from after_all"), "1");
    chain.cluster.stop();
}

#[test]
fn a_crashed_cluster_is_restored_over_once_its_pid_file_is_removed() {
    let mut chain = Chain::make(16);
    let end = make_history(&chain.cluster, "end");
    chain.cluster.archive_everything();
    let data = chain.cluster.data.clone();
    let pid_file = data.join("postmaster.pid");
    let left = std::fs::read(&pid_file).unwrap();
    chain.cluster.kill();
    std::fs::write(&pid_file, &left).unwrap();
    host().give_to_user(&pid_file);
    let text = data.to_str().unwrap();
    let over = ["restore", text, "--delta", "--archive-mode", "off"];
    let fetch = ["backup-fetch", text, "LATEST", "--delta"];
    let plain = ["restore", text, "--archive-mode", "off"];
    for args in [&over[..], &fetch[..], &plain[..]] {
        let refused = chain.walhalla.run(args).exits_with(1);
        refused.says(&["is not seen from here", "nothing was written"]);
        assert!(data.join("global/pg_control").exists());
    }
    let refused = chain.walhalla.run(&over).exits_with(1);
    let hint = refused
        .stderr
        .lines()
        .find(|line| line.starts_with("hint:"));
    let (_, command) = hint.unwrap().split_once('(').unwrap();
    let command = command.split_once(')').unwrap().0;
    run(host().command("sh").args(["-c", command])).succeeds();
    chain.walhalla.run(&over).succeeds();
    chain.cluster.start();
    chain.cluster.wait_until_promoted();
    chain
        .cluster
        .dump()
        .assert_same_as(&end.dump, "after a crash");
    chain.cluster.stop();
}

#[test]
fn a_pid_file_beside_a_clean_pg_control_is_believed() {
    // A server that starts has not changed pg_control yet, and one that stops still archives when it has.
    let mut chain = Chain::make(15);
    chain.cluster.stop();
    // A number that no process has: beyond pid_max.
    let pid_file = chain.cluster.data.join("postmaster.pid");
    std::fs::write(&pid_file, "2000000000\n").unwrap();
    host().give_to_user(&pid_file);
    let data = chain.cluster.data.to_str().unwrap();
    let over = ["restore", data, "--delta", "--archive-mode", "off"];
    chain
        .walhalla
        .run(&over)
        .exits_with(1)
        .says(&["names process 2000000000", "postmaster.pid"]);
    assert!(chain.cluster.data.join("global/pg_control").exists());
}
