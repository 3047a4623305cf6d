//! `wal-receive`: what was acknowledged comes back, whatever is killed.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::{
    Area, Cluster, Key, Receiver, Shape, Store, Walhalla, eventually, random_moment_within, run,
};

const SLOT: [&str; 3] = ["--slot", "walhalla", "--create-slot"];
const LIMIT: Duration = Duration::from_mins(1);

/// With further arguments.
fn with_slot<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [&SLOT[..], args].concat()
}

/// A server that archives, and has a backup and a table.
fn archiving(area: &Area, walhalla: &Walhalla, shape: Shape) -> Cluster {
    let mut cluster = Cluster::create(area, "pg", shape);
    cluster.configure("max_replication_slots = 4");
    walhalla.archive_from(&mut cluster);
    walhalla.back_up(&cluster);
    cluster.sql("create table t(i bigint)");
    cluster
}

/// The rows of a copy that recovers to the end of the archive.
fn restored_rows(area: &Area, walhalla: &Walhalla, version: u32, name: &str) -> String {
    let mut copy = walhalla.restore(area, version, name, &["--target-action", "promote"]);
    copy.configure("synchronous_standby_names = ''");
    copy.start();
    copy.wait_until_promoted();
    let rows = copy.sql("select count(*) || ' ' || coalesce(sum(i), 0) from t");
    copy.stop();
    rows
}

/// Commits one row after the other, and notes each that was acknowledged.
struct Client {
    psql: Child,
    acknowledged: Arc<AtomicU64>,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Client {
    fn start(cluster: &Cluster, from: u64) -> Self {
        let mut psql = cluster
            .client("psql")
            .args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut input = psql.stdin.take().unwrap();
        let output = BufReader::new(psql.stdout.take().unwrap());
        let acknowledged = Arc::new(AtomicU64::new(from));
        let noted = Arc::clone(&acknowledged);
        let reader = std::thread::spawn(move || {
            let mut lines = output.lines();
            for row in from + 1.. {
                let sent = writeln!(input, "insert into t values ({row}) returning i;");
                // psql prints the row when the transaction has ended.
                let line = lines.next().and_then(Result::ok);
                if sent.is_err() || line != Some(row.to_string()) {
                    return;
                }
                noted.store(row, Ordering::SeqCst);
            }
        });
        Self {
            psql,
            acknowledged,
            reader: Some(reader),
        }
    }

    fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    /// After the server is gone.
    fn ends(mut self) -> u64 {
        let _ = self.psql.kill();
        self.psql.wait().unwrap();
        self.reader.take().unwrap().join().unwrap();
        self.acknowledged()
    }
}

fn be_synchronous(cluster: &Cluster) {
    cluster.configure("synchronous_standby_names = 'walhalla'");
    eventually("the receiver to be the synchronous standby", LIMIT, || {
        cluster.sql("select count(*) from pg_stat_replication where sync_state = 'sync'") == "1"
    });
}

#[test]
fn a_commit_that_is_only_in_the_tail_comes_back() {
    for version in [10, 15, 18] {
        let area = Area::new();
        let walhalla = Walhalla::new(&area, &Store::directory(&area));
        let mut cluster = archiving(&area, &walhalla, Shape::of(version));
        let mut receiver =
            Receiver::start(&area, &walhalla, &cluster, &with_slot(&["--interval", "1"]));
        cluster.sql("insert into t select generate_series(1, 100)");
        receiver.catches_up_with(&cluster);
        cluster.sql("insert into t values (101)");
        receiver.catches_up_with(&cluster);
        let segment = cluster.sql("select pg_walfile_name(pg_current_wal_flush_lsn())");
        cluster.kill();
        receiver.kill();
        std::fs::remove_dir_all(&cluster.data).unwrap();

        let plan = walhalla.run(&["plan", "--json"]).succeeds().json();
        assert_eq!(
            plan["segments"].as_array().unwrap().last().unwrap(),
            &segment
        );
        assert!(plan["tail_end"].is_string(), "{plan}");
        walhalla.run(&["plan"]).succeeds();
        let shown = walhalla.run(&["wal-show", "--json"]).succeeds().json();
        assert_eq!(shown["timelines"][0]["tail_segment"], segment.as_str());
        assert_ne!(shown["timelines"][0]["last_segment"], segment.as_str());
        walhalla.run(&["wal-verify", "--deep"]).succeeds();
        assert_eq!(restored_rows(&area, &walhalla, version, "copy"), "101 5151");
    }
}

#[test]
fn no_acknowledged_commit_is_lost_whenever_receiver_and_server_are_killed() {
    acknowledged_commits(Store::directory, 17, 8);
}

#[test]
fn no_acknowledged_commit_is_lost_with_a_store_that_takes_pieces() {
    acknowledged_commits(Store::s3, 15, 4);
}

fn acknowledged_commits(store: fn(&Area) -> Store, version: u32, kills: u32) {
    let area = Area::new();
    let store = store(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut cluster = archiving(&area, &walhalla, Shape::small(version));
    let args = with_slot(&["--synchronous"]);
    let receiver = Mutex::new(Receiver::start(&area, &walhalla, &cluster, &args));
    be_synchronous(&cluster);
    let client = Client::start(&cluster, 0);
    for _ in 0..kills {
        std::thread::sleep(random_moment_within(Duration::from_millis(1500)));
        let mut receiver = receiver.lock().unwrap();
        receiver.kill();
        *receiver = Receiver::start(&area, &walhalla, &cluster, &args);
        let before = client.acknowledged();
        eventually("commits to go on", LIMIT, || client.acknowledged() > before);
    }
    std::thread::sleep(random_moment_within(Duration::from_millis(1500)));
    cluster.kill();
    receiver.lock().unwrap().kill();
    let acknowledged = client.ends();
    std::fs::remove_dir_all(&cluster.data).unwrap();

    assert!(acknowledged > u64::from(kills));
    let mut copy = walhalla.restore(&area, version, "copy", &["--target-action", "promote"]);
    copy.configure("synchronous_standby_names = ''");
    copy.start();
    copy.wait_until_promoted();
    let rows = format!("select count(*) from t where i <= {acknowledged}");
    assert_eq!(copy.sql(&rows), acknowledged.to_string());
    // One more may have been on its way.
    let more = copy.sql("select max(i) from t");
    assert!(more.parse::<u64>().unwrap() <= acknowledged + 1);
}

#[test]
fn wal_push_and_wal_receive_archive_the_same_segments_without_a_quarrel() {
    let area = Area::new();
    let key = Key::generate(&area, "key");
    let host = Walhalla::new(&area, &Store::directory(&area)).encrypting_to(&[&key.recipient]);
    let mut cluster = archiving(&area, &host, Shape::small(17));
    let mut receiver = Receiver::start(&area, &host, &cluster, &with_slot(&["--interval", "1"]));
    for round in 0..8 {
        cluster.sql(&format!(
            "insert into t select {round} from generate_series(1, 20000)"
        ));
    }
    let last = cluster.archive_everything();
    receiver.catches_up_with(&cluster);
    let failed = "select failed_count from pg_stat_archiver";
    assert_eq!(cluster.sql(failed), "0", "{}", cluster.log_text());
    cluster.sql("insert into t values (1000000)");
    receiver.catches_up_with(&cluster);
    assert!(receiver.stop(), "{}", receiver.log());
    cluster.kill();
    let safe = host.opening_with(&key.identity);
    let shown = safe.run(&["wal-show", "--json"]).succeeds().json();
    assert_eq!(shown["timelines"][0]["gaps"], serde_json::json!([]));
    assert_eq!(shown["timelines"][0]["last_segment"], last.as_str());
    assert_eq!(restored_rows(&area, &safe, 17, "copy"), "160001 1560000");
    // A host without the identity says what it cannot tell, and does not fail.
    host.run(&["wal-show"]).succeeds();
}

#[test]
fn a_slot_keeps_wal_while_the_receiver_is_away() {
    let area = Area::new();
    let walhalla = Walhalla::new(&area, &Store::directory(&area));
    let mut cluster = archiving(&area, &walhalla, Shape::small(14));
    cluster.configure("archive_command = 'true'");
    let args = with_slot(&["--interval", "1"]);
    let mut receiver = Receiver::start(&area, &walhalla, &cluster, &args);
    receiver.catches_up_with(&cluster);
    assert!(receiver.stop());
    for round in 0..6 {
        cluster.sql(&format!(
            "insert into t select {round} from generate_series(1, 20000)"
        ));
        cluster.switch_segment();
        cluster.sql("checkpoint");
    }
    let mut receiver = Receiver::start(&area, &walhalla, &cluster, &args);
    receiver.catches_up_with(&cluster);
    cluster.kill();
    assert_eq!(restored_rows(&area, &walhalla, 14, "copy"), "120000 300000");
}

#[test]
fn the_timeline_of_a_standby_that_is_promoted_is_followed() {
    let area = Area::new();
    let walhalla = Walhalla::new(&area, &Store::directory(&area));
    let mut primary = archiving(&area, &walhalla, Shape::small(17));
    let mut standby = walhalla.restore(&area, 17, "standby", &["--standby"]);
    standby.configure(&primary.standby_settings());
    standby.configure("hot_standby = on");
    standby.start();
    primary.sql("insert into t select generate_series(1, 100)");
    let rows = "select count(*) from t";
    let exists = "select count(*) from pg_class where relname = 't'";
    eventually("the standby to follow", LIMIT, || {
        standby.sql(exists) == "1" && standby.sql(rows) == "100"
    });
    let mut receiver = Receiver::start(&area, &walhalla, &standby, &with_slot(&["--synchronous"]));
    eventually("the receiver to follow the standby", LIMIT, || {
        standby.sql("select count(*) from pg_stat_replication where state = 'streaming'") == "1"
    });
    primary.kill();
    standby.sql("select pg_promote()");
    standby.wait_until_promoted();
    standby.sql("insert into t values (101)");
    receiver.catches_up_with(&standby);
    standby.kill();
    receiver.kill();
    assert!(
        receiver.log().contains("timeline 2 follows"),
        "{}",
        receiver.log()
    );
    let plan = walhalla.run(&["plan", "--json"]).succeeds().json();
    assert_eq!(plan["timelines"], serde_json::json!([1, 2]));
    assert_eq!(restored_rows(&area, &walhalla, 17, "copy"), "101 5151");
}

/// As in a failover: for a while there is only a standby, and what it refuses without encryption is no reason to give up.
#[test]
fn a_primary_that_is_still_to_come_is_waited_for() {
    let area = Area::new();
    let walhalla = Walhalla::new(&area, &Store::directory(&area));
    let primary = archiving(&area, &walhalla, Shape::small(17));
    let mut standby = walhalla.restore(&area, 17, "standby", &["--standby"]);
    let ports = format!("1,{}", standby.listen_on_tcp());
    standby.configure("hot_standby = on");
    standby.start();
    drop(primary);
    let variables = [
        ("PGHOST", "127.0.0.1,127.0.0.1"),
        ("PGPORT", ports.as_str()),
        ("PGUSER", "postgres"),
        ("PGTARGETSESSIONATTRS", "primary"),
    ];
    let variables = variables.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let mut receiver = Receiver::start_with(&area, &walhalla, &variables, &SLOT);
    eventually("the receiver to try again", LIMIT, || {
        receiver.log().contains("trying again")
    });
    standby.sql("select pg_promote()");
    standby.wait_until_promoted();
    receiver.catches_up_with(&standby);
}

#[test]
fn a_server_that_comes_back_on_a_new_timeline_is_gone_on_with() {
    let area = Area::new();
    let walhalla = Walhalla::new(&area, &Store::directory(&area));
    let mut cluster = archiving(&area, &walhalla, Shape::small(15));
    let mut receiver = Receiver::start(&area, &walhalla, &cluster, &with_slot(&["--synchronous"]));
    cluster.sql("insert into t select generate_series(1, 100)");
    receiver.catches_up_with(&cluster);
    cluster.stop();
    cluster.promote();
    cluster.sql("insert into t values (101)");
    receiver.catches_up_with(&cluster);
    cluster.kill();
    receiver.kill();
    assert_eq!(restored_rows(&area, &walhalla, 15, "copy"), "101 5151");
}

#[test]
fn a_server_recovers_on_demand_to_the_end_of_the_tail() {
    let area = Area::new();
    let walhalla = Walhalla::new(&area, &Store::directory(&area));
    let mut cluster = archiving(&area, &walhalla, Shape::small(17));
    let mut receiver = Receiver::start(&area, &walhalla, &cluster, &with_slot(&["--synchronous"]));
    cluster.sql("insert into t select generate_series(1, 100)");
    receiver.catches_up_with(&cluster);
    let standby = &["--standby"];
    let mut standby = walhalla.restore(&area, 17, "standby", standby);
    standby.configure("hot_standby = on\nwal_retrieve_retry_interval = '200ms'");
    standby.start();
    let rows = |cluster: &Cluster| cluster.sql("select count(*) from t");
    eventually("the standby to have the tail", LIMIT, || {
        rows(&standby) == "100"
    });
    cluster.sql("insert into t values (101)");
    receiver.catches_up_with(&cluster);
    // What it fetched before is no reason not to fetch what came since.
    eventually("the standby to follow the tail", LIMIT, || {
        rows(&standby) == "101"
    });
    standby.stop();
    cluster.kill();
    receiver.kill();
    let on_demand = &["--wal", "on-demand", "--target-action", "promote"];
    let mut copy = walhalla.restore(&area, 17, "copy", on_demand);
    copy.start();
    copy.wait_until_promoted();
    assert_eq!(rows(&copy), "101");
}

#[test]
fn passwords_are_scrams_and_connections_may_be_encrypted() {
    let area = Area::new();
    let walhalla = Walhalla::new(&area, &Store::directory(&area));
    let mut cluster = Cluster::create(&area, "pg", Shape::small(17));
    let (certificate, key) = (area.path("server.crt"), area.path("server.key"));
    let mut openssl = crate::support::host().command("openssl");
    openssl.args([
        "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
    ]);
    // One that may sign others is no server's for rustls.
    openssl.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
    openssl.args([
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost",
    ]);
    openssl
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate);
    run(&mut openssl).succeeds();
    let port = cluster.listen_on_tcp();
    let settings = format!(
        "ssl = on\nssl_cert_file = '{}'\nssl_key_file = '{}'\nmax_replication_slots = 4",
        certificate.display(),
        key.display()
    );
    cluster.configure(&settings);
    walhalla.archive_from(&mut cluster);
    cluster.sql("set password_encryption = 'scram-sha-256'; create role r replication login password 'a word'");
    let hba = cluster.data.join("pg_hba.conf");
    let text = std::fs::read_to_string(&hba).unwrap();
    let rule = "hostssl replication r 127.0.0.1/32 scram-sha-256\nhost all r all reject\nhost replication r all reject\n";
    std::fs::write(&hba, format!("{rule}{text}")).unwrap();
    cluster.sql("select pg_reload_conf()");
    let variables = |more: &[(&str, &str)]| {
        let own = [
            ("PGHOST", "localhost"),
            ("PGUSER", "r"),
            ("PGSSLMODE", "verify-full"),
        ];
        let all = own.iter().chain(more);
        let mut all: Vec<_> = all
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        all.push(("PGPORT".to_owned(), port.to_string()));
        all
    };
    let root = certificate.to_str().unwrap();
    let refused = |more: &[(&str, &str)], says: &str| {
        let mut command = walhalla.command(&["wal-receive", "--no-loop", "--slot", "s"]);
        command.env("WALHALLA_SPOOL_DIR", area.make_dir("spool"));
        run(command.envs(variables(more)))
            .exits_with(1)
            .says(&[says]);
    };
    refused(&[("PGSSLROOTCERT", root)], "asks for a password");
    refused(
        &[("PGSSLROOTCERT", root), ("PGPASSWORD", "another")],
        "password",
    );
    refused(
        &[
            ("PGSSLROOTCERT", root),
            ("PGPASSWORD", "a word"),
            ("PGHOST", "127.0.0.1"),
        ],
        "encrypted",
    );
    refused(
        &[("PGSSLROOTCERT", root), ("PGPASSWORD", "a word")],
        "does not exist",
    );
    let passwords = crate::support::write_private(&area, "pgpass", "*:*:replication:r:a word\n");
    let connection = variables(&[
        ("PGSSLROOTCERT", root),
        ("PGPASSFILE", passwords.to_str().unwrap()),
    ]);
    let mut receiver = Receiver::start_with(&area, &walhalla, &connection, &SLOT);
    eventually("an encrypted connection", LIMIT, || {
        cluster.sql("select count(*) from pg_stat_ssl join pg_stat_replication using (pid) where ssl and state = 'streaming'") == "1"
    });
    assert!(receiver.stop(), "{}", receiver.log());
}

#[test]
fn what_cannot_go_on_is_refused_with_a_hint() {
    let area = Area::new();
    let walhalla = Walhalla::new(&area, &Store::directory(&area));
    let mut cluster = Cluster::create(&area, "pg", Shape::small(17));
    walhalla.archive_from(&mut cluster);
    cluster.sql("create role plain login");
    let connection = cluster.connection();
    let receive = |args: &[&str]| {
        let mut command = walhalla.command(&["wal-receive", "--no-loop"]);
        command.args(args).envs(connection.iter().cloned());
        command.env("WALHALLA_SPOOL_DIR", area.make_dir("spool"));
        command
    };
    let mut without = walhalla.command(&["wal-receive"]);
    run(without.envs(cluster.connection()))
        .exits_with(2)
        .says(&["spool_dir"]);
    run(&mut receive(&["--slot", "none"]))
        .exits_with(1)
        .says(&["does not exist", "--create-slot"]);
    run(receive(&SLOT).env("PGUSER", "plain"))
        .exits_with(1)
        .says(&["REPLICATION"]);
    run(&mut receive(&[
        "--system-identifier",
        "7710533931497189584",
    ]))
    .exits_with(1)
    .says(&["is of cluster"]);
    run(&mut receive(&["--slot", "No"])).exits_with(2);
    let mut receiver = Receiver::start(&area, &walhalla, &cluster, &SLOT);
    receiver.catches_up_with(&cluster);
    run(&mut receive(&SLOT))
        .exits_with(1)
        .says(&["another wal-receive"]);
    let mut other = receive(&SLOT);
    other.env("WALHALLA_SPOOL_DIR", area.make_dir("another"));
    run(&mut other).exits_with(1).says(&["is active", "slot"]);
    cluster.configure(
        "wal_level = minimal\nmax_wal_senders = 0\narchive_mode = off\nmax_replication_slots = 0",
    );
    assert!(receiver.stop());
    cluster.sql("select pg_drop_replication_slot('walhalla')");
    cluster.stop();
    cluster.start();
    run(&mut receive(&SLOT)).exits_with(1).says(&["hint"]);
}
