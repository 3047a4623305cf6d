//! The walk-throughs of the book, done as they are written: how people do point-in-time recovery, from beginning to end.
//!
//! The pages' blocks are what runs here, all of them and in their order; what they print is compared with the blocks behind
//! them. The tests add what a page does not show: that rows came during the backup, which objects were read, what is left.

use std::time::{Duration, Instant};

use serde_json::Value;
use walhalla_providers::testing::proxy::{Proxy, Requests, Side};

use crate::support::{Store, Walk, eventually};

/// Set where there are to be as many rows as the page has, and not a thousandth of them.
const FULL_SIZE: &str = "WALHALLA_TEST_FULL_SIZE";

/// As somebody at a terminal takes a backup.
const ON_A_TERMINAL: &str =
    "TERM=xterm script -qec 'stty columns 100; walhalla backup-push primary' /dev/null";

#[test]
fn a_base_backup_while_rows_are_written_becomes_a_second_server() {
    let mut walk = Walk::through("walkthroughs/base-backup.md", 17);
    let [set_up] = printed(walk.section("## 1. A server that archives"));
    assert!(
        set_up.contains("a segment arrives in the store"),
        "{set_up}"
    );
    walk.section("## 2. Rows arrive all the time");
    let rows = "psql -Atc 'SELECT count(*) FROM visits'";
    walk.wait_for(&format!("[ $({rows}) -ge 3 ] && echo enough"), "enough");
    let [listed] = printed(walk.section("## 3. The base backup"));
    assert!(listed.contains("-F"), "{listed}");
    let backup: Value =
        serde_json::from_str(&walk.ask("walhalla backup-show --json LATEST")).unwrap();
    assert_eq!(backup["label"], "before the move", "{backup}");
    let bytes = |field: &str| backup[field].as_u64().unwrap();
    assert!(bytes("stored_bytes") < bytes("size_bytes") / 4, "{backup}");
    let shown = walk.ask(ON_A_TERMINAL);
    assert!(
        shown.contains("backing up") && shown.contains("iB/s"),
        "{shown}"
    );
    // A fast machine takes a backup between two rows.
    let limit = Duration::from_mins(1);
    eventually("a row to be written during a backup", limit, || {
        let is_written = rows_during_the_newest_backup(&walk) != "0";
        if !is_written {
            walk.ask("walhalla backup-push primary");
        }
        is_written
    });
    let during: u64 = walk.ask(rows).parse().unwrap();
    // It writes still.
    walk.wait_for(&format!("[ $({rows}) -gt {during} ] && echo more"), "more");
    walk.section("## 4. New rows");
    let others =
        "psql -Atc \"SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'\"";
    walk.wait_for(others, "1");
    let all: u64 = walk.ask(rows).parse().unwrap();
    assert!(all > during + 1000, "{all} rows");
    walk.section("## 5. A second server");
    assert_eq!(walk.ask("wc -l <second.rows"), all.to_string());
    walk.ask("psql -p 5433 -c \"INSERT INTO visits DEFAULT VALUES\"");
    walk.section("## Clean up");
    walk.is_at_its_end();
}

fn rows_during_the_newest_backup(walk: &Walk) -> String {
    let backup: Value =
        serde_json::from_str(&walk.ask("walhalla backup-show --json LATEST")).unwrap();
    let [from, to] = ["start_time", "stop_time"].map(|field| backup[field].as_str().unwrap());
    walk.ask(&format!(
        "psql -Atc \"SELECT count(*) FROM visits WHERE at BETWEEN '{from}' AND '{to}'\""
    ))
}

macro_rules! wrong_rows_of_versions {
    ($($name:ident = $version:literal;)*) => {$(
        #[test]
        fn $name() {
            wrong_rows($version);
        }
    )*};
}

wrong_rows_of_versions! {
    twenty_million_rows_come_back_without_the_wrong_ones_on_9_6 = 9;
    twenty_million_rows_come_back_without_the_wrong_ones_on_19 = 19;
}

fn wrong_rows(version: u32) {
    let mut walk = Walk::through("walkthroughs/wrong-rows.md", version);
    let is_full_size = std::env::var_os(FULL_SIZE).is_some();
    if !is_full_size {
        // Of millions.
        walk.replace("000000", "000");
    }
    let mut times = Vec::new();
    for heading in [
        "## 1. Ten million rows",
        "## 2. A base backup",
        "## 3. Ten million more, and the time",
        "## 4. Five million wrong rows",
        "## 5. The noted time, on a second server",
    ] {
        let begun = Instant::now();
        walk.section(heading);
        times.push(format!("{heading}: {:.1} s", begun.elapsed().as_secs_f32()));
    }
    println!(
        "PostgreSQL {version}, full size: {is_full_size}\n{}",
        times.join("\n")
    );
    // No row twice, and none missing.
    let sum = if is_full_size {
        "200000010000000"
    } else {
        "200010000"
    };
    let asked =
        "psql -p 5433 -Atc 'SELECT sum(number), count(DISTINCT number) = count(*) FROM numbers'";
    assert_eq!(walk.ask(asked), format!("{sum}|t"));
    let settings = if version < 12 {
        "recovery.done"
    } else {
        "postgresql.auto.conf"
    };
    let recovery = walk.ask(&format!("cat second/{settings}"));
    assert!(recovery.contains("recovery_target_time"), "{recovery}");
    walk.ask("psql -p 5433 -c 'DELETE FROM numbers'");

    let [found] = printed(walk.section("## If nobody noted the time"));
    same_end(&walk, &found);
    walk.section("## Clean up");
    walk.is_at_its_end();
}

/// The first command that `find` prints leads where the noted time leads.
fn same_end(walk: &Walk, found: &str) {
    let commands = found
        .lines()
        .filter_map(|line| line.split_once("before it: "));
    let command = commands.map(|(_, command)| command).next();
    let command = command.unwrap_or_else(|| panic!("{found}"));
    let by_find = command.replace("walhalla restore", "walhalla plan");
    let by_time = "walhalla plan --target-time \"$noted\"";
    let end = |plan: &str| walk.ask(&format!("{plan} | grep '^ends at .* the last commit'"));
    assert_eq!(end(&by_find), end(by_time));
}

#[test]
fn another_machine_gets_one_backup_and_only_the_wal_that_it_needs_from_s3() {
    let mut walk = Walk::through("walkthroughs/another-machine.md", 18);
    let store = Store::s3(walk.area());
    walk.set_env(store.env());
    walk.replace("s3://acme-backups/orders", &store.url());
    walk.section("## 1. The first machine");
    walk.section("## 2. Backups while it is written to");
    let backups: Value = serde_json::from_str(&walk.ask("walhalla backup-list --json")).unwrap();
    let [_, second, third] = <[Value; 3]>::try_from(backups.as_array().unwrap().clone()).unwrap();
    let within = format!(
        "WHERE at > '{}' AND at < '{}'",
        third["start_time"].as_str().unwrap(),
        third["stop_time"].as_str().unwrap()
    );
    // As PostgreSQL prints it, with the offset of the server's time zone.
    let middle = format!(
        "psql -At -F ' ' -c \"SELECT id, at FROM visits {within} ORDER BY id OFFSET (SELECT count(*) / 2 FROM visits {within}) LIMIT 1\""
    );
    let middle = walk.ask(&middle);
    let (id, time) = middle
        .split_once(' ')
        .unwrap_or_else(|| panic!("no row during {third}"));
    assert!(time.contains('.') && time.ends_with("-03:30"), "{time}");
    let (id, time) = (id.parse::<u64>().unwrap(), time.to_owned());
    walk.section("## 3. The first machine is gone");

    walk.go_to("elsewhere");
    let proxy = Proxy::start(store.address());
    let mut env = store.env();
    env.retain(|(key, _)| key != "AWS_ENDPOINT_URL_S3");
    env.push(("AWS_ENDPOINT_URL_S3".to_owned(), proxy.endpoint()));
    walk.set_env(env);
    walk.replace("2026-11-21 10:14:51.123456-03:30", &time);
    walk.section("## 4. The other machine: what is there?");
    let [planned] = printed(walk.section("## 5. A moment within a backup"));
    let chosen = second["id"].as_str().unwrap();
    assert!(planned.contains(chosen), "{planned}");
    let plan = format!("walhalla plan --json --target-time '{time}'");
    let plan: Value = serde_json::from_str(&walk.ask(&plan)).unwrap();
    let needed: Vec<&str> = { plan["segments"].as_array().unwrap().iter() }
        .map(|segment| segment.as_str().unwrap())
        .collect();
    assert_eq!(plan["segments_to_target"], needed.len(), "{plan}");
    assert_eq!(plan["reachable"], true, "{plan}");

    let before = proxy.passed_bytes(Side::Answer);
    let [shown] = printed(walk.section("## 6. The restore"));
    // Of the rest only heads and ends are read, summaries and entries: the two other backups alone are ten times as much.
    let passed = proxy.passed_bytes(Side::Answer) - before;
    let download = plan["download_bytes"].as_u64().unwrap();
    assert!(
        passed < download + 512 * 1024,
        "{passed} bytes instead of {download}"
    );
    // Slashes in the parameters of a listing are encoded: these are objects.
    let is_read = |path: String| proxy.count(&Requests::naming(path).and_method("GET")) > 0;
    for backup in backups.as_array().unwrap() {
        let id = backup["id"].as_str().unwrap();
        let is_chosen = id == chosen;
        assert_eq!(is_read(format!("/backups/{id}/base/")), is_chosen, "{id}");
    }
    let staged = walk.ask("ls restored.walhalla-wal | grep -E '^[0-9A-F]{24}$'");
    assert_eq!(staged.lines().collect::<Vec<_>>(), needed);
    let archived = store.objects_named("00000001").len();
    assert!(archived > needed.len() + 3, "{archived} objects of WAL");
    let count = format!("{} |", id - 1);
    assert!(shown.contains(&count), "row {id} at {time}: {shown}");
    let rows = "psql -Atc \"SELECT count(*), min(id), max(id) FROM visits WHERE at < '{time}'\"";
    let rows = walk.ask(&rows.replace("{time}", &time));
    assert_eq!(rows, format!("{0}|1|{0}", id - 1));
    walk.section("## 7. Open it");
    walk.section("## Clean up");
    walk.is_at_its_end();
}

#[test]
fn named_restore_points_are_reached_and_the_server_pauses_there() {
    let mut walk = Walk::through("walkthroughs/restore-points.md", 18);
    for heading in [
        "## 1. Settings from the environment",
        "## 2. Three names",
        "## 3. Restore to each name",
        "## 4. The server pauses",
        "## 5. A transaction, with it and without it",
        "## 6. A time, with it and without it",
        "## 7. All WAL",
        "## Clean up",
    ] {
        walk.section(heading);
    }
    walk.is_at_its_end();
}

/// As many texts as are expected.
#[track_caller]
fn printed<const N: usize>(texts: Vec<String>) -> [String; N] {
    texts
        .try_into()
        .unwrap_or_else(|texts| panic!("other blocks: {texts:?}"))
}

#[test]
fn an_archiver_host_restores_to_seconds_before_an_incident() {
    let mut walk = Walk::through("walkthroughs/archiver-host.md", 18);
    let [port, other] = free_ports();
    walk.replace("5432", &port);
    walk.replace("5433", &other);
    walk.go_to("primary");
    walk.section("## 1. The primary");
    walk.go_to("archiver");
    walk.section("## 2. The archiver host: WAL");
    let [listed] = printed(walk.section("## 3. The archiver host: a base backup"));
    assert!(listed.contains("-F"), "{listed}");
    // The role can do nothing else.
    let refused = walk.run("psql -d postgres -c 'SELECT 1'").stderr;
    assert!(refused.contains("no pg_hba.conf entry"), "{refused}");
    walk.go_to("primary");
    walk.section("## 4. The primary: an incident");

    walk.go_to("archiver");
    let backups: Value = serde_json::from_str(&walk.ask("walhalla backup-list --json")).unwrap();
    let end = backups[0]["stop_time"].as_str().unwrap();
    walk.replace("2026-11-21 08:00:00+00", end);
    let rows = format!("walhalla find --from '{end}' | grep -c 'before it'");
    walk.wait_for(&rows, "3");
    let [found] = printed(walk.section("## 5. The archiver host: what happened, and when?"));
    let last_good = found.split("  ").next().unwrap();
    walk.replace("2026-11-21 08:15:05+00", last_good);
    let [planned, _] = printed(walk.section("## 6. The archiver host: restore to seconds before"));
    assert!(
        planned.contains("the last one is not finished"),
        "{planned}"
    );
    walk.section("## 7. The archiver host: automate it");
    walk.section("## 8. The archiver host: monitor it");
    walk.section("## 9. The archiver host: test it");
    walk.section("## Clean up: the archiver host");
    walk.go_to("primary");
    walk.section("## Clean up: the primary");
    walk.is_at_its_end();
}

/// Ports that nobody uses.
fn free_ports() -> [String; 2] {
    // Both at once, so that they differ.
    let listeners = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port().to_string())
}
