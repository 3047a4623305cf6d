//! When something happened: `find`, and the restore command that it prints.

use std::collections::HashSet;
use std::path::PathBuf;

use serde_json::Value;
use walhalla_postgres::Lsn;

use crate::support::{Area, Cluster, Key, Shape, Store, Walhalla, eventually, fill, host, run};

const SMALL: Shape = Shape {
    version: 17,
    segment_mb: 1,
};

/// Rows of `find --json`.
fn find(walhalla: &Walhalla, args: &[&str]) -> Vec<Value> {
    let found = walhalla.run(&[&["find", "--json"], args].concat());
    let rows = found.succeeds().json();
    rows.as_array().unwrap().clone()
}

/// Clients whose every transaction leaves its number in the table `written`.
fn write_numbers(area: &Area, cluster: &Cluster, transactions: &str) {
    let script = area.write(
        "numbers.sql",
        "insert into written select pg_current_xact_id()::text::bigint;\n",
    );
    let script = script.to_str().unwrap();
    cluster.pgbench(&["-c", "4", "-t", transactions, "-f", script]);
}

/// Transactions that committed before `lsn`, as `pg_waldump` shows them.
fn committed_before(store: &Store, lsn: &str) -> HashSet<u64> {
    let limit: Lsn = lsn.parse().unwrap();
    let mut segments = store.objects_named("00000001");
    segments.retain(|path| path.file_name().unwrap().len() == 24);
    segments.sort();
    let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    let mut command = host().command(host().server_program(17, "pg_waldump"));
    command.args(["--rmgr", "Transaction", "-p"]);
    command.arg(segments[0].parent().unwrap());
    let output = command
        .args([name(&segments[0]), name(segments.last().unwrap())])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let after = |line: &str, mark: &str| {
        let rest = line.split_once(mark).unwrap().1;
        rest.trim_start().split(',').next().unwrap().to_owned()
    };
    let commits = text.lines().filter(|line| line.contains("desc: COMMIT"));
    let early = commits.filter(|line| after(line, " lsn: ").parse::<Lsn>().unwrap() < limit);
    early
        .map(|line| after(line, " tx:").parse().unwrap())
        .collect()
}

#[test]
fn a_dropped_table_comes_back_by_the_command_that_find_prints() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::with_settings(&area, &store, "compression = \"none\"\n");
    let mut primary = Cluster::create(&area, "primary", SMALL);
    walhalla.archive_from(&mut primary);
    fill(&primary);
    primary.sql("create table written (xid bigint)");
    primary.sql("create schema shop");
    primary.sql(
        "create table shop.orders as select g as id, md5(g::text) as item from generate_series(1, 3000) g",
    );
    primary.sql("alter table shop.orders add primary key (id)");
    let orders =
        "select count(*), sum(id), md5(string_agg(item, ',' order by id)) from shop.orders";
    walhalla.back_up(&primary);
    primary.sql("update shop.orders set item = 'late ' || item where id % 7 = 0");
    let expected = primary.sql(orders);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| write_numbers(&area, &primary, "4000"));
        eventually("numbers", std::time::Duration::from_mins(1), || {
            primary.sql("select count(*) > 300 from written") == "t"
        });
        primary.sql("drop table shop.orders");
        load.join().unwrap();
    });
    // What follows the accident: segments full of it.
    for _ in 0..8 {
        primary.pgbench(&["-t", "100"]);
        primary.switch_segment();
    }
    primary.archive_everything();
    primary.stop();

    let rows = find(&walhalla, &["--dropped"]);
    let is_orders = |row: &&Value| {
        row["detail"]
            .as_str()
            .unwrap()
            .contains("table shop.orders")
    };
    let row = rows
        .iter()
        .find(is_orders)
        .unwrap_or_else(|| panic!("no orders in {rows:#?}"));
    assert_eq!(row["kind"], "drop");
    let orders_row = &row["relations"][0];
    assert_eq!(orders_row["name"], "orders", "{row:#}");
    assert_eq!(orders_row["database"], "postgres", "{row:#}");
    assert!(
        orders_row["size_bytes"].as_u64().unwrap() >= 8192,
        "{row:#}"
    );

    let printed = walhalla.run(&["find", "--dropped"]).succeeds().stdout;
    let lines: Vec<&str> = printed.lines().collect();
    let at = lines
        .iter()
        .position(|line| line.contains("table shop.orders"))
        .unwrap();
    let (_, line) = lines[at + 1].split_once("before it: ").unwrap();
    assert_eq!(Some(line), row["restore_before"].as_str());
    let workplace = area.make_dir("workplace");
    run(host()
        .command("sh")
        .args(["-c", line])
        .current_dir(&workplace))
    .succeeds();
    let mut restored = Cluster::adopt(&area, 17, workplace.join("restored"));
    restored.start();
    restored.wait_until_promoted();

    assert_eq!(
        restored.sql(orders),
        expected,
        "the table before the accident"
    );
    let written: HashSet<u64> = {
        let numbers = restored.sql("select xid from written");
        numbers.lines().map(|line| line.parse().unwrap()).collect()
    };
    let before = committed_before(&store, row["lsn"].as_str().unwrap());
    let missing: Vec<_> = written.iter().filter(|xid| !before.contains(xid)).collect();
    assert!(
        missing.is_empty(),
        "committed after the accident: {missing:?}"
    );
    restored.stop();
    // Of the transactions before the accident those that are not in the table are none of the numbers'.
    primary.start();
    let all = primary.sql("select xid from written order by 1");
    let lost: Vec<u64> = all
        .lines()
        .map(|line| line.parse().unwrap())
        .filter(|xid| before.contains(xid) && !written.contains(xid))
        .collect();
    assert!(
        lost.is_empty(),
        "committed before the accident and lost: {lost:?}"
    );
    assert!(written.len() > 300 && written.len() < all.lines().count());
    primary.stop();
}

/// A server in whose WAL everything happened that `find` looks for.
fn eventful(area: &Area, walhalla: &Walhalla) -> Cluster {
    let mut primary = Cluster::create(area, "primary", SMALL);
    walhalla.archive_from(&mut primary);
    fill(&primary);
    for table in ["dropped", "truncated", "rewritten", "replaced"] {
        primary.sql(&format!(
            "create table {table} as select g as id from generate_series(1, 1000) g"
        ));
    }
    primary.sql("create database other");
    walhalla.back_up(&primary);
    primary
}

#[test]
fn find_tells_drops_truncations_and_rewrites_apart() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut primary = eventful(&area, &walhalla);
    primary.sql("create unlogged table unlogged as select 1 as id");
    primary.sql("drop table dropped");
    primary.sql("truncate truncated");
    primary.sql("truncate unlogged");
    primary.sql("vacuum full rewritten");
    primary.sql("begin; drop table replaced; create table replacement (id int); commit");
    primary.sql("begin; drop table rewritten; rollback");
    primary.sql("drop database other");
    primary.sql("create table late as select 1 as id");
    primary.sql("drop table late");
    primary.archive_everything();
    primary.stop();

    let details = |kind: &str, args: &[&str]| -> Vec<String> {
        let rows = find(&walhalla, args);
        let of_kind = rows.iter().filter(|row| row["kind"] == kind);
        of_kind
            .map(|row| row["detail"].as_str().unwrap().to_owned())
            .collect()
    };
    let holds = |details: &[String], part: &str| {
        let found = details
            .iter()
            .filter(|detail| detail.contains(part))
            .count();
        assert_eq!(found, 1, "{part:?} once in {details:#?}");
    };
    let drops = details("drop", &["--dropped"]);
    holds(&drops, "table public.dropped in postgres (1663/");
    // A table that no backup knows has its files' numbers only.
    assert!(
        drops
            .iter()
            .filter(|detail| detail
                .starts_with("dropped a relation without a known name in postgres (1663/"))
            .count()
            == 1,
        "{drops:#?}"
    );
    holds(
        &details("drop_database", &["--dropped"]),
        "dropped database other",
    );
    // The database comes back too, with the statement that the row tells.
    let rows = find(&walhalla, &["--dropped"]);
    let row = rows.iter().find(|row| row["kind"] == "drop_database");
    let row = row.unwrap();
    let lsn = row["lsn"].as_str().unwrap();
    let target = ["--target-lsn", lsn, "--target-exclusive"];
    let target = [&target[..], &["--target-action", "promote"]].concat();
    let mut restored = walhalla.restore(&area, 17, "restored", &target);
    restored.start();
    restored.wait_until_promoted();
    let detail = row["detail"].as_str().unwrap();
    restored.sql(detail.split_once("in the copy: ").unwrap().1);
    let mut other = restored.client("psql");
    run(other.args(["-X", "-d", "other", "-c", "select 1"])).succeeds();
    restored.stop();
    let rewrites = details("rewrite", &["--dropped"]);
    holds(&rewrites, "table public.replaced");
    holds(&rewrites, "table public.rewritten");
    holds(
        &details("truncate", &["--truncated"]),
        "table public.truncated",
    );
    assert!(
        !drops.iter().any(|detail| detail.contains("truncated")),
        "{drops:#?}"
    );
}

#[test]
fn find_knows_transactions_their_sizes_and_restore_points() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    let mut primary = eventful(&area, &walhalla);
    primary.sql("select pg_create_restore_point('before the release')");
    let from = primary.sql("select clock_timestamp()");
    // Over several segments, with a subtransaction.
    let big = primary.sql(
        "begin; insert into ledger values ('big', ''); savepoint s; \
         insert into ledger select 'row ' || g, md5(g::text) from generate_series(1, 30000) g; release s; \
         select pg_current_xact_id(); commit",
    );
    let aborted = primary
        .sql("begin; insert into ledger values ('no', ''); select pg_current_xact_id(); rollback");
    let to = primary.sql("select clock_timestamp()");
    primary.sql("insert into ledger values ('later', '')");
    primary.archive_everything();
    primary.stop();

    let points = find(&walhalla, &["--restore-points"]);
    assert!(
        points
            .iter()
            .any(|row| row["detail"] == "restore point before the release")
    );
    let rows = find(&walhalla, &["--xid", &big]);
    assert_eq!(rows.len(), 1, "{rows:#?}");
    assert_eq!(rows[0]["kind"], "commit");
    // 30,000 rows of about 90 bytes, over several segments.
    assert!(
        rows[0]["wal_bytes"].as_u64().unwrap() > 2 << 20,
        "{rows:#?}"
    );
    assert_eq!(find(&walhalla, &["--xid", &aborted])[0]["kind"], "abort");
    let range = find(&walhalla, &["--from", &from, "--to", &to]);
    let xids: Vec<String> = range.iter().map(|row| row["xid"].to_string()).collect();
    assert!(xids.contains(&big) && xids.contains(&aborted), "{xids:?}");
    assert_eq!(
        range
            .iter()
            .filter(|row| row["xid"].as_u64() > aborted.parse().ok())
            .count(),
        0
    );
    let command = rows[0]["restore_before"].as_str().unwrap();
    assert!(command.contains("--target-exclusive"), "{command}");
    let target = command.split_once(" restored ").unwrap().1;
    let target = target.split(" --archive-mode").next().unwrap();
    let target: Vec<&str> = target.split(' ').collect();
    let plan = walhalla
        .run(&[&["plan", "--json"], &target[..]].concat())
        .succeeds()
        .json();
    assert_eq!(plan["reachable"], true);
    walhalla.run(&["find"]).exits_with(2);
}

#[test]
fn a_host_without_the_identity_makes_summaries_and_cannot_read_them() {
    let area = Area::new();
    let store = Store::directory(&area);
    let key = Key::generate(&area, "walhalla.key");
    let lines = format!("age_recipients = [\"{}\"]\n", key.recipient);
    let walhalla = Walhalla::on_host(&area, "primary-host", &store, &lines);
    let mut primary = eventful(&area, &walhalla);
    primary.sql("drop table dropped");
    primary.archive_everything();
    primary.stop();
    let segments: Vec<_> = store.objects_named("00000001");
    let segments = segments
        .iter()
        .filter(|path| !path.to_string_lossy().contains("backup"));
    assert_eq!(store.summaries_named("00000001").len(), segments.count());

    walhalla
        .run(&["find", "--dropped"])
        .exits_with(1)
        .says(&["age_identity_file"]);
    walhalla.run(&["backup-list"]).succeeds();
    let shown = walhalla.run(&["wal-show", "--json"]).succeeds().json();
    assert_eq!(shown["timelines"][0]["timeline"], 1);
    assert_eq!(shown["timelines"][0]["last_commit_time"], Value::Null);

    // After a failover the history cannot be read either; what lists goes on.
    primary.start();
    primary.configure("archive_command = 'false'");
    let history = area.write("00000002.history", "1\t0/1500000\tno reason\n");
    let pgdata = primary.data.to_str().unwrap();
    walhalla
        .run(&["wal-push", history.to_str().unwrap(), "--pgdata", pgdata])
        .succeeds();
    primary.stop();
    walhalla.run(&["backup-list"]).succeeds();
    walhalla
        .run(&["wal-show"])
        .succeeds()
        .says(&["00000002.history"]);

    let lines = format!("age_identity_file = \"{}\"", key.identity.display());
    let opening = Walhalla::on_host(&area, "restoring-host", &store, &lines);
    let rows = find(&opening, &["--dropped"]);
    assert!(
        rows[0]["detail"]
            .as_str()
            .unwrap()
            .contains("public.dropped"),
        "{rows:#?}"
    );
}
