//! What a tired person does wrong, and what is said then: what happened, on which object, why, and what to do.
//!
//! A mistake that cannot pass by waiting is answered at once, whatever `retry_timeout` says.

use std::time::{Duration, Instant};

use crate::support::{
    Area, Cluster, Key, Moment, Outcome, Segments, Shape, Store, Walhalla, fill, host,
    make_history, make_read_only, run, s3_env, write_private,
};

const SMALL: Shape = Shape {
    version: 17,
    segment_mb: 1,
};

/// No variable of Walhalla, but nearly.
const MISSPELT: &str = concat!("WALHALLA_", "COMPRESION");

/// What takes longer than this was tried again.
const AT_ONCE: Duration = Duration::from_secs(45);

/// Runs a command that has to fail at once, and to say all of `words`.
#[track_caller]
fn refused(walhalla: &Walhalla, args: &[&str], code: i32, words: &[&str]) -> Outcome {
    let began = Instant::now();
    let outcome = walhalla.run(args).exits_with(code).says(words);
    let took = began.elapsed();
    assert!(took < AT_ONCE, "{took:?}: {outcome}");
    outcome
}

/// A store with an old gap in the WAL and a backup after it.
///
/// ```text
/// first backup ──●early── lost ──●between── second backup ──●late, end
/// ```
struct Gapped {
    walhalla: Walhalla,
    first: String,
    second: String,
    lost: String,
    late: Moment,
    primary: Cluster,
    store: Store,
    area: Area,
}

impl Gapped {
    fn make() -> Self {
        let area = Area::new();
        let store = Store::directory(&area);
        let walhalla = Walhalla::new(&area, &store);
        let mut primary = Cluster::create(&area, "primary", SMALL);
        walhalla.archive_from(&mut primary);
        fill(&primary);
        let first = walhalla.back_up(&primary);
        make_history(&primary, "early");
        primary.switch_segment();
        primary.sql("insert into ledger values ('lost', '')");
        let lost = primary.switch_segment();
        make_history(&primary, "between");
        let second = walhalla.back_up(&primary);
        let late = make_history(&primary, "late_release");
        primary.archive_everything();
        std::fs::remove_file(store.object_of(&lost)).unwrap();
        Self {
            walhalla,
            first,
            second,
            lost,
            late,
            primary,
            store,
            area,
        }
    }

    /// What `plan --json` says of a target that cannot be reached: reason and nearest.
    #[track_caller]
    fn unreachable(&self, target: &[&str]) -> (String, String) {
        let plan = self.walhalla.run(&[&["plan", "--json"], target].concat());
        let json = plan.exits_with(4).json();
        let text = |name: &str| json[name].as_str().unwrap_or_default().to_owned();
        let (reason, nearest) = (text("reason"), text("nearest"));
        if nearest.starts_with("--") {
            let words: Vec<&str> = nearest.split(' ').collect();
            let there = self.walhalla.run(&[&["plan"], &words[..]].concat());
            there.succeeds();
        }
        (reason, nearest)
    }
}

#[test]
fn an_old_gap_is_not_blamed_for_a_target_that_it_does_not_hide() {
    let gapped = Gapped::make();
    let end = "no --target option, which restores everything that is archived";
    let late_xid = gapped.late.xid.as_str();

    let (reason, nearest) = gapped.unreachable(&["--target-time", "2099-01-01 00:00:00+00"]);
    assert!(
        reason.contains("is after the end of the archive"),
        "{reason}"
    );
    assert!(
        reason.contains(late_xid) && reason.contains("committed at"),
        "{reason}"
    );
    assert!(!reason.contains(&gapped.lost), "{reason}");
    assert_eq!(nearest, end);

    let (reason, nearest) = gapped.unreachable(&["--target-xid", "99999999"]);
    assert!(
        reason.contains("was not found in the archived WAL"),
        "{reason}"
    );
    assert!(reason.contains(late_xid), "{reason}");
    assert!(!reason.contains(&gapped.lost), "{reason}");
    assert_eq!(nearest, end);

    let (reason, nearest) = gapped.unreachable(&["--target-lsn", "FF/0"]);
    assert!(
        reason.contains("is after the end of the archive"),
        "{reason}"
    );
    assert!(!reason.contains(&gapped.lost), "{reason}");
    assert_eq!(nearest, end);

    let (reason, nearest) = gapped.unreachable(&["--target-name", "late_relaese"]);
    assert!(
        reason.contains("similar names: \"late_release\""),
        "{reason}"
    );
    assert!(!reason.contains(&gapped.lost), "{reason}");
    assert_eq!(nearest, "--target-name late_release");

    // Nothing is like this one. It may have been in the gap, which is therefore named.
    let (reason, nearest) = gapped.unreachable(&["--target-name", "nothing_of_the_kind"]);
    assert!(
        reason.contains("the newest restore points there: \"late_release\""),
        "{reason}"
    );
    assert!(reason.contains(&gapped.lost), "{reason}");
    assert_eq!(nearest, end);

    // This one is in the archive, where the gap cuts it off.
    let (reason, nearest) = gapped.unreachable(&["--target-name", "between"]);
    assert!(
        reason.contains("cannot be reached") && reason.contains(&gapped.lost),
        "{reason}"
    );
    assert!(nearest.starts_with("--target-xid "), "{nearest}");
}

#[test]
fn mistakes_about_targets_and_backups() {
    let gapped = Gapped::make();
    let walhalla = &gapped.walhalla;
    let cases: [(&[&str], i32, &[&str]); 9] = [
        (
            &["plan", "--target-time", "2026-11-21 04:30:00"],
            2,
            &[
                "the time has no UTC offset",
                "hint: write '2026-11-21 04:30:00+00:00'",
            ],
        ),
        (
            &["plan", "--target-time", "yesterday"],
            2,
            &["yesterday", "write it like '2026-11-21 04:30:00+00'"],
        ),
        (
            &["plan", "--target-time", "2001-01-01 00:00:00+00"],
            4,
            &[
                &gapped.first,
                "no older backup leads there",
                "nothing was written",
            ],
        ),
        (
            &["plan", "--target-timeline", "7"],
            4,
            &["the archive has no timeline 7"],
        ),
        (
            &["plan", "--target-timeline", "newest"],
            2,
            &["newest", "latest, current"],
        ),
        (
            &["plan", "--target-immediate", "--target-xid", "7"],
            2,
            &["cannot be used with"],
        ),
        (
            &["backup-show", "20010101T000000Z-F"],
            1,
            &[
                "there is no backup \"20010101T000000Z-F\" of cluster",
                "hint: `walhalla backup-list`",
            ],
        ),
        (&["delete", "retain", "zwei"], 2, &["zwei", "hint:"]),
        (&["delete", "retian", "2"], 2, &["retian", "retain"]),
    ];
    for (args, code, words) in cases {
        refused(walhalla, args, code, words);
    }
    // One letter of an id is wrong.
    let id = gapped.second.replace("-F", "-D");
    let hint = format!("did you mean {}?", gapped.second);
    refused(walhalla, &["backup-show", &id], 1, &[&id, &hint]);
    refused(walhalla, &["plan", "--backup", &id], 1, &[&id, &hint]);
    // A deletion without --confirm shows what would go, and says so.
    let shown = walhalla
        .run(&["delete", "backup", &gapped.first])
        .succeeds();
    let said = format!("{}{}", shown.stdout, shown.stderr);
    assert!(said.contains("--confirm"), "{shown}");
    assert_eq!(walhalla.backup_ids().len(), 2);
    walhalla
        .run(&["backup-mark", &gapped.first, "--permanent"])
        .succeeds();
    let words = [gapped.first.as_str(), "permanent", "hint:", "--impermanent"];
    refused(
        walhalla,
        &["delete", "backup", &gapped.first, "--confirm"],
        1,
        &words,
    );
}

#[test]
fn mistakes_about_directories() {
    let gapped = Gapped::make();
    let (walhalla, area) = (&gapped.walhalla, &gapped.area);
    let occupied = area.make_dir("occupied");
    area.write("occupied/letter.txt", "dear mother");
    let occupied = occupied.to_str().unwrap();
    let running = gapped.primary.data.to_str().unwrap();
    let other = Cluster::create_unrelated(area, "other", SMALL);
    let other = other.data.to_str().unwrap();
    let cluster = format!("cluster {}", gapped.primary.system_identifier());
    let cases: [(&[&str], i32, &[&str]); 6] = [
        (
            &["restore", occupied],
            1,
            &[occupied, "is not empty", "hint:"],
        ),
        (
            &["restore", running],
            1,
            &[running, "is not empty", &cluster, "nothing was written"],
        ),
        (
            &["restore", running, "--delta"],
            1,
            &[
                running,
                "a server runs in it",
                "hint:",
                "nothing was written",
            ],
        ),
        (
            &["restore", other, "--delta"],
            1,
            &[other, "it belongs to cluster", "hint:"],
        ),
        (
            &["backup-push", "/nonexistent/data"],
            1,
            &[
                "/nonexistent/data",
                "is not a PostgreSQL data directory",
                "PGDATA",
            ],
        ),
        (
            &["restore", "/proc/nothing", "--archive-mode", "off"],
            1,
            &["/proc", "hint:"],
        ),
    ];
    for (args, code, words) in cases {
        refused(walhalla, args, code, words);
    }
    let letter = area.path("occupied/letter.txt");
    assert_eq!(std::fs::read_to_string(letter).unwrap(), "dear mother");
    // As archive_command = 'walhalla wal-push %f' does it: a name for a path.
    let name = gapped.lost.as_str();
    let pushed = walhalla.run_in(&gapped.primary.data, &["wal-push", name]);
    pushed
        .exits_with(1)
        .says(&[name, "No such file", "gives the path of the file"]);
    // By hand, for a segment that is not there.
    let absent = [
        "wal-fetch",
        "0000000100000000000000FE",
        "/dev/null",
        "--pgdata",
        other,
    ];
    walhalla
        .run(&absent)
        .exits_within(1..=200)
        .says(&["0000000100000000000000FE"]);
    let to = area.path("RECOVERYXLOG");
    let absent = [
        "wal-fetch",
        "0000000100000000000000FE",
        to.to_str().unwrap(),
        "--pgdata",
        running,
    ];
    let words = ["0000000100000000000000FE", "is not in the archive"];
    refused(walhalla, &absent, 74, &words);
}

#[test]
fn what_restore_prints_says_how_the_server_is_started_and_goes_on() {
    let gapped = Gapped::make();
    let copy = gapped.area.path("copy");
    let args = [
        "restore",
        copy.to_str().unwrap(),
        "--target-xid",
        &gapped.late.xid,
        "--archive-mode",
        "off",
    ];
    let restored = gapped.walhalla.run(&args).succeeds();
    for words in [
        "at the target the server waits",
        "psql -c 'select pg_wal_replay_resume()'",
        "start it with: ",
    ] {
        assert!(restored.stdout.contains(words), "{words}: {restored}");
    }
    drop(gapped.store);
}

#[test]
fn what_find_prints_works_on_a_cluster_with_tablespaces() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut primary = Cluster::create(&area, "primary", SMALL);
    walhalla.archive_from(&mut primary);
    let place = area.make_dir("a space outside");
    let quoted = place.to_str().unwrap().replace('\'', "''");
    primary.sql(&format!("create tablespace outside location '{quoted}'"));
    primary.sql("create table far (id int) tablespace outside");
    primary.sql("insert into far values (7)");
    walhalla.back_up(&primary);
    primary.sql("drop table far");
    primary.archive_everything();
    // The original goes on: its tablespace is in use.
    let copy = area.path("a copy");
    let args = ["find", "--dropped", "--into", copy.to_str().unwrap()];
    let found = walhalla.run(&args).succeeds().stdout;
    let mut lines = found.lines().skip_while(|line| !line.contains("far"));
    let (_, command) = lines.nth(1).unwrap().split_once("before it: ").unwrap();
    assert!(command.contains("--tablespace-map"), "{command}");
    run(host().command("bash").args(["-c", command])).succeeds();
    let mut copy = Cluster::adopt(&area, 17, copy);
    copy.start();
    copy.wait_until_promoted();
    assert_eq!(copy.sql("select id from far"), "7");
}

#[test]
fn mistakes_about_the_store() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let nowhere = format!("file://{}/no/such/directory", area.root().display());
    let misspelt = format!("file://{}", area.make_dir("stroe").display());
    let cases: [(&[&str], i32, &[&str]); 9] = [
        (
            &["backup-list", "--store", "s4://bucket/prefix"],
            2,
            &["no store is known for `s4:`"],
        ),
        (
            &["backup-list", "--store", "/srv/backup"],
            2,
            &["/srv/backup", "file:///path"],
        ),
        (
            &["backup-list", "--store", "file://srv/backup"],
            2,
            &["three slashes"],
        ),
        (
            &["backup-list", "--store", "s3:///prefix"],
            2,
            &["names no bucket"],
        ),
        (
            &["plan", "--store", &nowhere],
            1,
            &["no/such/directory", "does not exist", "hint:"],
        ),
        (
            &["plan", "--store", &misspelt],
            1,
            &["stroe", "holds no cluster", "spelt right"],
        ),
        (
            &["backup-show", "LATEST"],
            1,
            &["holds no cluster", "hint:"],
        ),
        (
            &["backup-list", "--system-identifier", "7443178563127885315"],
            1,
            &[
                "holds nothing of cluster 7443178563127885315",
                "it holds no cluster at all",
                "hint:",
            ],
        ),
        (
            &["backup-list", "--system-identifier", "main"],
            2,
            &["main"],
        ),
    ];
    for (args, code, words) in cases {
        refused(&walhalla, args, code, words);
    }
    let config = area.write("wrong.toml", "stroe = \"file:///srv\"\n");
    let wrong = ["--config", config.to_str().unwrap(), "backup-list"];
    let mut program = host().command(&host().program);
    run(program.args(wrong))
        .exits_with(2)
        .says(&["unknown key \"stroe\"", "hint: did you mean `store`?"]);
    let variable = walhalla.with_env(MISSPELT, "lz4");
    refused(
        &variable,
        &["config"],
        2,
        &[MISSPELT, "WALHALLA_COMPRESSION"],
    );
    let codec = walhalla.with_env("WALHALLA_COMPRESSION", "gzip");
    refused(
        &codec,
        &["config"],
        2,
        &["compression", "WALHALLA_COMPRESSION", "gzip"],
    );
}

#[test]
fn mistakes_about_files_of_wal() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let segments = Segments::make(&area, 2);
    let name = segments.names[0].clone();
    let whole = segments.original(&name);

    // It is this cluster's file, with damage in it, and no other server's.
    let mut changed = whole.clone();
    changed[0x11000] ^= 0x40;
    segments.put(&name, &changed);
    let damaged = segments.push(&walhalla, &name).exits_with(1);
    let damaged = damaged.says(&[
        &name,
        "is damaged",
        "wrong CRC",
        "It is this cluster's file",
        "full backup",
    ]);
    assert!(
        !damaged.stderr.contains("which server wrote it"),
        "{damaged}"
    );
    // No WAL at all, under the name of a segment.
    segments.put(&name, &vec![7; whole.len()]);
    let text = segments.push(&walhalla, &name).exits_with(1);
    text.says(&["is not WAL file", "no WAL file of this server", "%p"]);
    segments.put("notes.txt", b"buy milk");
    segments
        .push(&walhalla, "notes.txt")
        .exits_within(1..=2)
        .says(&["notes.txt"]);
    // Another cluster's.
    let others = Segments::make_unrelated(&area, 1);
    segments.put(&name, &others.original(&others.names[0]));
    let other = segments.push(&walhalla, &name).exits_with(1);
    other.says(&[
        "it belongs to cluster",
        "and this is cluster",
        "another cluster's",
    ]);
    // A store that this user may not write to.
    segments.put(&name, &whole);
    make_read_only(store.path());
    let denied = segments.push(&walhalla, &name).exits_with(1);
    denied.says(&["permission denied", store.path().to_str().unwrap(), "hint:"]);
    crate::support::give_rights_back(store.path());
    segments.push(&walhalla, &name).succeeds();
    // Two clusters in one store.
    others.push(&walhalla, &others.names[0]).succeeds();
    refused(
        &walhalla,
        &["wal-show"],
        1,
        &[
            "holds several clusters: cluster ",
            "; cluster ",
            "hint:",
            "--system-identifier",
        ],
    );
}

#[test]
fn mistakes_about_the_identity() {
    let area = Area::new();
    let store = Store::directory(&area);
    let key = Key::generate(&area, "right.key");
    let other = Key::generate(&area, "other.key");
    let walhalla = Walhalla::new(&area, &store).encrypting_to(&[&key.recipient]);
    let mut primary = Cluster::create(&area, "primary", SMALL);
    walhalla.archive_from(&mut primary);
    walhalla.back_up(&primary);
    let plan = ["plan", "--target-xid", "99999"];
    refused(
        &walhalla,
        &plan,
        1,
        &["is encrypted", "no identity is set", "age_identity_file"],
    );
    let wrong = walhalla.opening_with(&other.identity);
    refused(
        &wrong,
        &plan,
        1,
        &["no identity in", "other.key", "opens it", "hint:"],
    );
    let missing = walhalla.opening_with(&area.path("gone.key"));
    let said = refused(
        &missing,
        &plan,
        1,
        &["gone.key", "No such file", "from where you keep it"],
    );
    assert!(!said.stderr.contains("AGE-SECRET-KEY"), "{said}");
    let recipient = write_private(&area, "recipient.key", &key.recipient);
    let swapped = walhalla.opening_with(&recipient);
    refused(&swapped, &plan, 1, &["recipient.key", "AGE-SECRET-KEY"]);
    let secret = walhalla.encrypting_to(&[&key.secret()]);
    let said = refused(
        &secret,
        &["config"],
        2,
        &["a secret key (identity) stands where recipients"],
    );
    assert!(!said.stderr.contains(&key.secret()), "{said}");
    // One that everybody can read is used, and a warning says so.
    let open = area.write("open.key", std::fs::read(&key.identity).unwrap());
    let modes = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(&open, modes).unwrap();
    let readable = walhalla.opening_with(&open);
    readable
        .run(&["plan"])
        .succeeds()
        .says(&["open.key can be read by others", "chmod 600"]);
    // What was made once is not made again.
    let output = ["keygen", "--output", open.to_str().unwrap()];
    refused(&walhalla, &output, 1, &["open.key", "exists", "hint:"]);
}

#[test]
fn mistakes_about_the_connection() {
    let area = Area::new();
    let walhalla = Walhalla::new(&area, &Store::directory(&area));
    let mut cluster = Cluster::create(&area, "pg", SMALL);
    cluster.listen_on_tcp();
    walhalla.archive_from(&mut cluster);
    let data = cluster.data.to_str().unwrap();
    let push = |variables: &[(&str, &str)], words: &[&str]| {
        let mut all = cluster.connection();
        all.retain(|(key, _)| !variables.iter().any(|(other, _)| key == other));
        let mut command = walhalla.command(&["backup-push", data]);
        command.envs(all).envs(variables.iter().copied());
        run(&mut command).exits_with(1).says(words)
    };
    let role = ["as role \"postgres\", database \"postgres\"", "hint:"];
    push(
        &[("PGPORT", "1")],
        &[
            ".s.PGSQL.1",
            role[0],
            "no server listens at this socket",
            "PGPORT",
        ],
    );
    push(
        &[("PGHOST", "127.0.0.1"), ("PGPORT", "1")],
        &["127.0.0.1 port 1", role[0], "no server listens there"],
    );
    push(
        &[("PGUSER", "nobody_here")],
        &["role \"nobody_here\"", "PGUSER names the role"],
    );
    push(
        &[("PGDATABASE", "shop")],
        &["database \"shop\"", "PGDATABASE names the database"],
    );
    push(
        &[("PGHOST", "no.such.host.invalid")],
        &["no.such.host.invalid port", role[0]],
    );
    cluster.sql("create role guarded superuser login password 'right'");
    let hba = cluster.data.join("pg_hba.conf");
    std::fs::write(
        &hba,
        "local all guarded scram-sha-256\nlocal all all trust\n",
    )
    .unwrap();
    cluster.sql("select pg_reload_conf()");
    let guarded = ("PGUSER", "guarded");
    push(
        &[guarded, ("PGPASSWORD", "wrong")],
        &["role \"guarded\"", "the password is wrong", "PGPASSFILE"],
    );
    cluster.sql("create role humble login");
    push(
        &[("PGUSER", "humble")],
        &["permission denied", "GRANT EXECUTE", "superuser"],
    );
}

#[test]
fn mistakes_about_s3() {
    let area = Area::new();
    let store = Store::s3(&area);
    let walhalla = Walhalla::new(&area, &store);
    let endpoint = format!("http://{}", store.address());
    let list = ["backup-list"];
    let place = format!("endpoint {endpoint}, region us-east-1");

    let bucket = ["backup-list", "--store", "s3://no-such-bucket/prefix"];
    refused(
        &walhalla,
        &bucket,
        1,
        &[
            "s3://no-such-bucket/prefix",
            "does not exist",
            &place,
            "hint:",
        ],
    );
    let prefix = ["plan", "--store", "s3://walhalla-test/some/perfix"];
    refused(
        &walhalla,
        &prefix,
        1,
        &["some/perfix", "holds no cluster", "spelt right"],
    );
    let secret = walhalla.with_env("AWS_SECRET_ACCESS_KEY", "a wrong one");
    refused(
        &secret,
        &list,
        1,
        &["does not accept the credentials", &place, "hint:"],
    );
    let keys = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
    let profile = walhalla
        .without_env(&keys)
        .with_env("AWS_PROFILE", "backpus");
    refused(
        &profile,
        &list,
        2,
        &["no file of AWS profiles has", "backpus", "hint:"],
    );
    let setting = walhalla
        .without_env(&keys)
        .with_env("WALHALLA_S3_PROFILE", "backpus");
    refused(
        &setting,
        &list,
        2,
        &["no file of AWS profiles has", "backpus", "hint:"],
    );
    let none = walhalla
        .without_env(&keys)
        .with_env("AWS_EC2_METADATA_DISABLED", "true");
    refused(
        &none,
        &list,
        1,
        &["no credentials were found", &place, "walhalla config"],
    );
    let unsaid = walhalla.with_env("AWS_ENDPOINT_URL_S3", "127.0.0.1:9000");
    refused(&unsaid, &list, 2, &["AWS_ENDPOINT_URL_S3", "https://"]);
    let nameless = walhalla.with_env("AWS_ENDPOINT_URL_S3", "http://no.such.host.invalid:9000");
    let said = refused(&nameless, &list, 1, &["no.such.host.invalid", "hint:"]);
    assert!(!said.stderr.contains("ConnectorError"), "{said}");

    // What may pass is tried again, for as long as was said, and then the place is named.
    let away = walhalla
        .with_env("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
        .with_env("WALHALLA_RETRY_TIMEOUT", "2")
        .with_env("NO_PROXY", "127.0.0.1");
    let said = refused(
        &away,
        &list,
        1,
        &[
            "the deadline passed",
            "endpoint http://127.0.0.1:1",
            "region us-east-1",
            "Connection refused",
            "hint:",
        ],
    );
    for debug in ["DispatchFailure", "ConnectorError", "Some("] {
        assert!(!said.stderr.contains(debug), "{debug}: {said}");
    }
    assert!(!s3_env(&endpoint).is_empty());

    // A proxy is named where the request would go through it.
    let proxied = away.with_env("HTTP_PROXY", "http://127.0.0.1:2");
    let said = refused(&proxied, &list, 1, &["endpoint http://127.0.0.1:1"]);
    assert!(!said.stderr.contains("proxy"), "{said}");
    let proxied = proxied.with_env("NO_PROXY", "example.org");
    let through = "proxy http://127.0.0.1:2 (HTTP_PROXY)";
    refused(
        &proxied,
        &list,
        1,
        &["endpoint http://127.0.0.1:1", through],
    );
}

#[test]
fn mistakes_about_commands() {
    let area = Area::new();
    let walhalla = Walhalla::new(&area, &Store::directory(&area));
    let cases: [(&[&str], &[&str]); 7] = [
        (
            &["wal-psh"],
            &[
                "has no command \"wal-psh\"",
                "did you mean `walhalla wal-push`?",
            ],
        ),
        (&["backup"], &["`walhalla backup-push PGDATA`"]),
        (&["archive-push"], &["`walhalla wal-push %p`"]),
        (
            &["info"],
            &["`walhalla backup-list`", "`walhalla wal-show`"],
        ),
        (&["expire"], &["`walhalla delete retain`", "--confirm"]),
        (
            &["frobnicate"],
            &["has no command \"frobnicate\"", "`walhalla --help`"],
        ),
        (&["plan", "--target-tmie", "x"], &["--target-time"]),
    ];
    for (args, words) in cases {
        refused(&walhalla, args, 2, words);
    }
}
