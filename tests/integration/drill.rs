//! `drill`: a restore that is carried out, checked and removed again.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use quick_junit::{Report, TestCaseStatus};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::{Area, Cluster, Outcome, Shape, Store, Walhalla, eventually, host};

struct Site {
    walhalla: Walhalla,
    store: Store,
    cluster: Cluster,
    area: Area,
}

impl Site {
    fn make(version: u32) -> Self {
        Self::configured(version, "")
    }

    /// A cluster with some commits after its one backup, all archived.
    fn configured(version: u32, lines: &str) -> Self {
        let area = Area::new();
        let store = Store::directory(&area);
        let walhalla = Walhalla::new(&area, &store);
        let mut cluster = Cluster::create(&area, "primary", Shape::small(version));
        cluster.configure(lines);
        walhalla.archive_from(&mut cluster);
        cluster.sql("create table accounts (id int primary key, amount int)");
        cluster.sql("insert into accounts select i, 100 from generate_series(1, 500) i");
        area.make_dir("scratch");
        Self {
            walhalla,
            store,
            cluster,
            area,
        }
    }

    fn back_up(&self) {
        self.walhalla.back_up(&self.cluster);
        for number in 0..3 {
            self.cluster.sql(&format!(
                "update accounts set amount = amount + 1 where id % 3 = {number}"
            ));
        }
        self.cluster.archive_everything();
    }

    fn sound(version: u32) -> Self {
        let site = Self::make(version);
        site.back_up();
        site
    }

    fn scratch(&self) -> PathBuf {
        self.area.path("scratch")
    }

    fn words(&self, options: &[&str]) -> Vec<String> {
        let postgres = host().server_program(self.cluster.version, "postgres");
        let scratch = self.scratch();
        let words = [
            "drill",
            "--pgbin",
            postgres.parent().unwrap().to_str().unwrap(),
            "--scratch",
            scratch.to_str().unwrap(),
        ];
        words
            .iter()
            .chain(options)
            .map(ToString::to_string)
            .collect()
    }

    #[track_caller]
    fn drill(&self, options: &[&str]) -> Outcome {
        let words = self.words(options);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let outcome = self.walhalla.run(&words);
        assert_eq!(
            names_in(&self.scratch()),
            Vec::<String>::new(),
            "something is left"
        );
        outcome
    }

    fn spawn(&self, options: &[&str]) -> Child {
        let words = self.words(options);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.walhalla
            .command(&words)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// Where `--junit` writes.
    fn junit(&self) -> String {
        self.area.path("drill.xml").to_str().unwrap().to_owned()
    }

    /// The test cases, and the message of each that failed.
    fn cases(&self) -> Vec<(String, Option<String>)> {
        let text = std::fs::read_to_string(self.junit()).unwrap();
        let report = Report::deserialize_from_str(&text).unwrap();
        let cases = report
            .test_suites
            .iter()
            .flat_map(|suite| &suite.test_cases);
        let failure = |status: &TestCaseStatus| match status {
            TestCaseStatus::NonSuccess { message, .. } => {
                Some(message.as_deref().unwrap_or_default().to_owned())
            }
            TestCaseStatus::Success { .. } | TestCaseStatus::Skipped { .. } => None,
        };
        cases
            .map(|case| (case.name.to_string(), failure(&case.status)))
            .collect()
    }

    fn reports(&self) -> Vec<Value> {
        let cluster = self.store.path().join(self.cluster.system_identifier());
        let Ok(found) = cluster.join("reports/drill").read_dir() else {
            return Vec::new();
        };
        let mut paths: Vec<PathBuf> = found.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        let read = |path: &PathBuf| serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        paths.iter().map(read).collect()
    }
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = directory.read_dir().unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[track_caller]
fn names_of_checks(report: &Value) -> Vec<String> {
    let checks = report["checks"].as_array().unwrap().iter();
    checks
        .map(|check| {
            format!(
                "{} {}",
                check["name"].as_str().unwrap(),
                check["result"].as_str().unwrap()
            )
        })
        .collect()
}

#[test]
fn a_sound_store_passes_and_the_drill_says_how_long_it_took_and_what_was_lost() {
    let site = Site::sound(17);
    let sql = site.area.write("sums.sql", "select count(*) = 500 as all_there from accounts; select sum(amount) = 50500 from accounts");
    let sql = sql.to_str().unwrap();
    let junit = site.junit();
    let report = site
        .drill(&["--json", "--sql", sql, "--junit", &junit])
        .succeeds()
        .json();
    let file = format!("sql {sql}");
    let names = [
        "restore",
        "start",
        "consistency",
        "connection",
        "amcheck",
        &file,
        "checksums",
    ];
    let passed: Vec<String> = names.iter().map(|name| format!("{name} passed")).collect();
    assert_eq!(names_of_checks(&report), passed, "{report:#}");
    assert_eq!(report["ok"], true);
    assert_eq!(report["problems"], serde_json::json!([]));
    assert_eq!(report["rpo_seconds"], 0.0, "{report:#}");
    assert!(report["rto_seconds"].as_f64().unwrap() > 0.0, "{report:#}");
    assert!(report["bytes"].as_u64().unwrap() > 0, "{report:#}");
    assert!(
        report["newest_commit_age_seconds"].as_f64().unwrap() >= 0.0,
        "{report:#}"
    );
    let cases: Vec<_> = names
        .iter()
        .map(|name| ((*name).to_owned(), None))
        .collect();
    assert_eq!(site.cases(), cases);
    let stored = site.reports().pop().unwrap();
    assert_eq!(stored["result"], "ok");
    assert_eq!(stored["drill"]["rto_seconds"], report["rto_seconds"]);
    assert_eq!(stored["drill"]["backup"], report["backup"]);
    let shown = site.drill(&["--no-amcheck"]).succeeds().stdout;
    assert!(shown.contains("time to restore (RTO)"), "{shown}");
    assert!(
        shown.ends_with(
            "the drill passed
"
        ),
        "{shown}"
    );
    site.drill(&["--target-immediate", "--no-amcheck"])
        .succeeds();
}

#[test]
fn a_random_target_is_reached_and_can_be_repeated() {
    let site = Site::sound(17);
    let report = site
        .drill(&["--json", "--random-target", "--no-amcheck"])
        .succeeds()
        .json();
    let repeat = report["repeat"].as_str().unwrap();
    let (_, rest) = repeat.split_once("--target-time '").unwrap();
    let (time, rest) = rest.split_once('\'').unwrap();
    assert_eq!(rest, " --target-timeline 1");
    let options = [
        "--json",
        "--no-amcheck",
        "--target-time",
        time,
        "--target-timeline",
        "1",
    ];
    let again = site.drill(&options).succeeds().json();
    for field in ["backup", "target", "reached_time", "reached_lsn"] {
        assert_eq!(again[field], report[field], "{field}");
    }
    assert_eq!(again["rpo_seconds"], Value::Null);
}

#[test]
fn servers_of_old_and_new_versions_start() {
    for version in [9, 10, 11, 12, 13, 15, 18, 19] {
        let site = Site::sound(version);
        let report = site.drill(&["--json"]).succeeds().json();
        let names = names_of_checks(&report);
        assert!(
            names.contains(&"consistency passed".to_owned()),
            "{version}: {names:?}"
        );
        let amcheck = if version < 14 {
            "amcheck skipped"
        } else {
            "amcheck passed"
        };
        assert!(names.contains(&amcheck.to_owned()), "{version}: {names:?}");
        // Not every build comes with it.
        let program = host().server_program(version, "postgres");
        let has_checksums = program.with_file_name("pg_checksums").exists();
        let checksums = if has_checksums {
            "checksums passed"
        } else {
            "checksums skipped"
        };
        assert!(
            names.contains(&checksums.to_owned()),
            "{version}: {names:?}"
        );
    }
}

#[test]
fn a_damaged_part_is_found() {
    let site = Site::sound(17);
    let part = site.store.objects_named("00001.tar").pop().unwrap();
    let mut bytes = std::fs::read(&part).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&part, bytes).unwrap();
    let junit = site.junit();
    let report = site
        .drill(&["--json", "--junit", &junit])
        .exits_with(3)
        .json();
    assert_eq!(report["ok"], false);
    assert_eq!(names_of_checks(&report), ["restore failed"]);
    assert!(
        report["problems"][0]["what"]
            .as_str()
            .unwrap()
            .contains("00001.tar"),
        "{report:#}"
    );
    let cases = site.cases();
    assert!(
        matches!(&cases[..], [(name, Some(message))] if name == "restore" && message.contains("00001.tar")),
        "{cases:?}"
    );
    assert_eq!(site.reports().pop().unwrap()["result"], "failed");
}

#[test]
fn wal_that_is_missing_makes_the_target_unreachable() {
    let site = Site::sound(17);
    let id = site.walhalla.newest_backup();
    let shown = site
        .walhalla
        .run(&["backup-show", &id, "--json"])
        .succeeds()
        .json();
    let junit = site.junit();
    let plan = site.walhalla.run(&["plan", "--json"]).succeeds().json();
    let first = plan["segments"][0].as_str().unwrap();
    std::fs::remove_file(site.store.object_of(first)).unwrap();
    site.drill(&["--junit", &junit])
        .exits_with(4)
        .says(&[first]);
    let cases = site.cases();
    assert!(
        matches!(&cases[..], [(name, Some(message))] if name == "restore" && message.contains(first)),
        "{cases:?} {shown:#}"
    );
    assert_eq!(site.reports().pop().unwrap()["result"], "failed");
    site.drill(&["--target-time", "2200-01-01 00:00:00+00"])
        .exits_with(4);
}

#[test]
fn a_file_of_sql_fails_for_an_error_and_for_false() {
    let site = Site::sound(17);
    let write = |name: &str, text: &str| site.area.write(name, text).to_str().unwrap().to_owned();
    let wrong = write(
        "wrong.sql",
        "select 1; select id, amount > 101 as is_paid from accounts where id < 4 order by id",
    );
    let broken = write("broken.sql", "select * from missing_table");
    let null = write(
        "null.sql",
        "select bool_and(amount > 0) from accounts where false",
    );
    let junit = site.junit();
    let options = [
        "--json",
        "--no-amcheck",
        "--sql",
        &wrong,
        "--sql",
        &broken,
        "--sql",
        &null,
        "--junit",
        &junit,
    ];
    let report = site.drill(&options).exits_with(3).json();
    assert_eq!(
        names_of_checks(&report)[4..],
        [
            format!("sql {wrong} failed"),
            format!("sql {broken} failed"),
            format!("sql {null} passed"),
            "checksums passed".to_owned()
        ]
    );
    let failed: Vec<_> = site
        .cases()
        .into_iter()
        .filter_map(|(name, message)| Some((name, message?)))
        .collect();
    assert_eq!(failed[0].0, format!("sql {wrong}"));
    assert!(
        failed[0].1.contains("query 2, row 1: is_paid is false"),
        "{failed:?}"
    );
    assert_eq!(failed[1].0, format!("sql {broken}"));
    assert!(failed[1].1.contains("missing_table"), "{failed:?}");
    assert_eq!(report["problems"].as_array().unwrap().len(), 2);
    site.drill(&["--sql", "/nowhere.sql"])
        .exits_with(2)
        .says(&["/nowhere.sql"]);
}

#[test]
fn the_copy_reaches_nothing_outside() {
    let site = Site::configured(17, "max_logical_replication_workers = 0\n");
    let (area, cluster) = (&site.area, &site.cluster);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let tablespace = area.make_dir("tablespace");
    let logs = area.make_dir("logs");
    let (touched, pid) = (area.path("touched"), area.path("pid"));
    cluster.sql(&format!(
        "create tablespace elsewhere location '{}'",
        tablespace.display()
    ));
    cluster.sql("create table far_away tablespace elsewhere as select generate_series(1, 1000) i");
    cluster.sql(&format!(
        "create subscription other connection 'host=127.0.0.1 port={port}' publication p with (connect = false, slot_name = 'other')"
    ));
    cluster.sql("alter subscription other enable");
    cluster.sql("alter database template1 set session_preload_libraries = 'not_here'");
    site.back_up_with(&format!(
        "archive_library = ''\n\
         primary_conninfo = 'host=127.0.0.1 port={port}'\n\
         shared_preload_libraries = 'pg_cron, not_installed, pg_stat_statements'\n\
         logging_collector = on\n\
         log_directory = '{}'\n\
         external_pid_file = '{}'\n\
         listen_addresses = '*'\n\
         synchronous_standby_names = 'nobody'\n\
         recovery_end_command = 'touch {}'\n\
         archive_cleanup_command = 'touch {2}'\n",
        logs.display(),
        pid.display(),
        touched.display(),
    ));
    let before = names_in(&tablespace);
    let written = |path: &Path| path.metadata().unwrap().modified().unwrap();
    let time_before = written(&tablespace.join(&before[0]));
    let objects = site.store.objects_named("0000").len();
    let report = site.drill(&["--json"]).succeeds().json();
    assert_eq!(names_in(&logs), Vec::<String>::new());
    assert!(!touched.exists() && !pid.exists());
    assert_eq!(names_in(&tablespace), before);
    assert_eq!(written(&tablespace.join(&before[0])), time_before);
    assert_eq!(site.store.objects_named("0000").len(), objects);
    listener.set_nonblocking(true).unwrap();
    let accepted = listener.accept().map(|(_, from)| from);
    assert_eq!(accepted.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    let off: Vec<&str> = { report["turned_off"].as_array().unwrap().iter() }
        .map(|off| off["what"].as_str().unwrap())
        .collect();
    for expected in [
        "the setting archive_command",
        "the setting primary_conninfo",
        "the setting listen_addresses",
        "the setting external_pid_file",
        "the setting log_directory",
        "the setting synchronous_standby_names",
        "the library pg_cron of",
        "the library not_installed of",
        "tablespace ",
        "subscription other of database postgres",
    ] {
        assert!(
            off.iter().any(|off| off.starts_with(expected)),
            "{expected}: {off:#?}"
        );
    }
    assert!(
        !off.iter().any(|off| off.contains("pg_stat_statements")),
        "{off:#?}"
    );
}

impl Site {
    /// Takes a backup that has settings which the running server does not have.
    fn back_up_with(&self, lines: &str) {
        let conf = self.cluster.data.join("postgresql.conf");
        let text = std::fs::read_to_string(&conf).unwrap();
        std::fs::write(&conf, format!("{text}\n{lines}")).unwrap();
        self.walhalla.back_up(&self.cluster);
        std::fs::write(&conf, text).unwrap();
        self.cluster.archive_everything();
    }
}

#[test]
fn a_tablespace_that_replay_would_make_elsewhere_is_refused() {
    let site = Site::make(17);
    site.walhalla.back_up(&site.cluster);
    let place = site.area.make_dir("tablespace");
    site.cluster.sql(&format!(
        "create tablespace late location '{}'",
        place.display()
    ));
    site.cluster.archive_everything();
    site.cluster.sql("drop tablespace late");
    site.drill(&[])
        .exits_with(1)
        .says(&[place.to_str().unwrap(), "take a new backup"]);
    site.walhalla.back_up(&site.cluster);
    site.cluster.archive_everything();
    site.drill(&["--no-amcheck"]).succeeds();
    assert_eq!(names_in(&place), Vec::<String>::new());
}

#[test]
fn nothing_is_left_after_a_signal() {
    let site = Site::sound(17);
    let sql = site.area.write("sleep.sql", "select pg_sleep(600)");
    let sql = sql.to_str().unwrap();
    let options = ["--no-amcheck", "--sql", sql];
    let log_of = |name: &String| site.scratch().join(name).join("server.log");
    let is_up = || {
        names_in(&site.scratch()).iter().any(|name| {
            let log = std::fs::read_to_string(log_of(name)).unwrap_or_default();
            log.contains("ready to accept connections")
        })
    };
    for signal in [Signal::INT, Signal::TERM] {
        let mut child = site.spawn(&options);
        eventually("the copy is up", Duration::from_mins(1), is_up);
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(1));
        assert_eq!(names_in(&site.scratch()), Vec::<String>::new());
    }
    // Before the server is there, too.
    let mut child = site.spawn(&options);
    eventually("there is a directory", Duration::from_mins(1), || {
        !names_in(&site.scratch()).is_empty()
    });
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert_eq!(names_in(&site.scratch()), Vec::<String>::new());
    // A drill that is killed takes its server with it.
    let mut child = site.spawn(&options);
    eventually("the copy is up", Duration::from_mins(1), is_up);
    child.kill().unwrap();
    child.wait().unwrap();
    let name = names_in(&site.scratch()).pop().unwrap();
    let pid_file = site.scratch().join(name).join("data/postmaster.pid");
    eventually("the server ended", Duration::from_mins(1), || {
        !pid_file.exists()
    });
    assert_eq!(site.reports(), Vec::<Value>::new());
}

#[test]
fn what_was_asked_to_be_kept_is_kept_and_no_server_runs_in_it() {
    let site = Site::sound(17);
    let words = site.words(&["--json", "--keep", "--no-amcheck"]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let report = site.walhalla.run(&words).succeeds().json();
    let kept = PathBuf::from(report["kept"].as_str().unwrap());
    assert!(kept.join("data/PG_VERSION").exists());
    assert!(!kept.join("data/postmaster.pid").exists());
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&kept.metadata().unwrap().permissions()) & 0o777,
        0o700
    );
}
