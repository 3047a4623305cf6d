//! The shell blocks of the quick start and of the restore runbook, run as they stand.
//!
//! Only what belongs to a Debian host has a stand-in: its paths become paths of the test's own directory, `sudo` runs the
//! command as it is, and the test starts and stops the servers where a page says so.

use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use crate::support::{
    Area, Cluster, Outcome, PATH, Page, Shape, Store, Walhalla, eventually, fill, host,
    make_history, run,
};

const VERSION: u32 = 17;

/// A host on which the pages' commands run: a directory of the test's own in the place of `/`.
struct OwnHost {
    area: Area,
}

impl OwnHost {
    fn new() -> Self {
        let area = Area::new();
        for directory in ["bin", "etc", "srv", "stand-ins"] {
            area.make_dir(directory);
        }
        let own = Self { area };
        own.stand_in(
            "sudo",
            "while [ \"$1\" = -u ]; do shift 2; done\nexec \"$@\"",
        );
        own.stand_in("cargo", "exit 0");
        // The server is the test's to stop and start.
        own.stand_in("pg_ctlcluster", "exit 0");
        own.stand_in(
            "install",
            "for word; do shift; [ \"$word\" = -o ] || [ \"$word\" = postgres ] || set -- \"$@\" \"$word\"; done\n\
             exec /usr/bin/install \"$@\"",
        );
        own
    }

    fn stand_in(&self, name: &str, script: &str) {
        let path = self.area.write(
            &format!("stand-ins/{name}"),
            format!("#!/bin/sh\n{script}\n"),
        );
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(path, mode).unwrap();
    }

    /// The block with the paths of this host.
    fn here(&self, block: &str) -> String {
        let programs = programs();
        let program = host().program.display().to_string();
        let root = self.area.root().display();
        [
            ("target/release/walhalla", program),
            ("/usr/lib/postgresql/17/bin", programs.display().to_string()),
            ("/etc/postgresql/17/main", format!("{root}/main")),
            ("/var/lib/postgresql/17", root.to_string()),
            ("/usr/local/bin", format!("{root}/bin")),
            ("/etc/walhalla", format!("{root}/etc")),
            ("/srv", format!("{root}/srv")),
        ]
        .iter()
        .fold(block.to_owned(), |text, (from, to)| text.replace(from, to))
    }

    fn shell(&self, block: &str) -> Command {
        let root = self.area.root().display().to_string();
        let mut bash = host().command("bash");
        bash.args(["-eu", "-o", "pipefail", "-c", &self.here(block)])
            .current_dir(&root)
            .env(
                "PATH",
                format!(
                    "{root}/stand-ins:{root}/bin:{}:{PATH}",
                    programs().display()
                ),
            )
            .env("WALHALLA_CONFIG", format!("{root}/etc/walhalla.toml"))
            .env("PGHOST", format!("{root}/main.s"))
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres");
        bash
    }

    fn run(&self, block: &str) -> Outcome {
        run(&mut self.shell(block))
    }
}

/// Where the server's and the client's programs are.
fn programs() -> PathBuf {
    let psql = host().client_program(VERSION, "psql");
    psql.parent().unwrap().to_owned()
}

/// The text with another one in the place of a part that must be there.
#[track_caller]
fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "{from:?} is not in\n{text}");
    text.replace(from, to)
}

/// A server that a block started; it ends with the test.
struct Foreground {
    server: Child,
    log: PathBuf,
}

impl Drop for Foreground {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            println!("--- the log of the copy\n{log}");
        }
    }
}

#[test]
fn the_quick_start_works_as_it_is_written() {
    let page = Page::of("quick-start.md");
    let own = OwnHost::new();
    let mut primary = Cluster::create(&own.area, "main", Shape::of(VERSION));
    let sockets = own.area.path("main.s").display().to_string();
    // The copy listens where its settings say, and no other test may do so on the same port.
    primary.configure(&format!(
        "unix_socket_directories = '{sockets}'\nlisten_addresses = ''"
    ));
    primary.configure("wal_level = replica");
    let config = own.area.path("etc/walhalla.toml").display().to_string();
    primary.set_env(&[("WALHALLA_CONFIG".to_owned(), config)]);
    primary.start();

    let [build, install, look]: [String; 3] =
        page.section("## 1. Install", "sh").try_into().unwrap();
    own.run(&build).succeeds();
    own.run(&install).succeeds();
    own.run(&look).succeeds();

    let [archive, look]: [String; 2] = page.section("## 2. Archive", "sh").try_into().unwrap();
    own.run(&replaced(&archive, "sudo systemctl restart postgresql", ""))
        .succeeds();
    primary.stop();
    primary.start();
    let arrived = own.run(&look).succeeds().stdout;
    assert!(
        arrived.contains("a segment arrives in the store"),
        "{arrived}"
    );

    let [backup]: [String; 1] = page.section("## 3. Back up", "sh").try_into().unwrap();
    let listed = own.run(&backup).succeeds().stdout;
    assert!(listed.contains("-F"), "{listed}");

    let [moment, restore, start, look]: [String; 4] =
        { page.section("## 4. Restore a copy", "sh") }
            .try_into()
            .unwrap();
    let said = own.run(&moment).succeeds().stdout;
    // As psql prints it: the line below the dashes.
    let mut lines = said.lines().skip_while(|line| !line.starts_with("----"));
    let time = lines.nth(1).unwrap().trim();
    own.run(&replaced(&restore, "2026-11-21 08:15:00.123456+00", time))
        .succeeds();
    let log = own.area.path("copy.log");
    let output = std::fs::File::create(&log).unwrap();
    let server = own
        .shell(&start)
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        .spawn()
        .unwrap();
    let _server = Foreground { server, log };
    eventually(
        "the copy to be at the target",
        Duration::from_mins(2),
        || {
            let paused =
                "sudo -u postgres psql -p 5433 -Atc 'select pg_get_wal_replay_pause_state()'";
            own.run(paused).stdout.trim() == "paused"
        },
    );
    let tables = own.run(&look).succeeds().stdout;
    assert!(tables.contains("made_before"), "{tables}");
    assert!(!tables.contains("made_after"), "{tables}");
    primary.stop();
}

#[test]
fn a_dropped_table_comes_back_whole_as_it_is_written() {
    let page = Page::of("finding-the-moment.md");
    let own = OwnHost::new();
    let store = Store::directory(&own.area);
    let walhalla = Walhalla::new(&own.area, &store);
    own.area.write(
        "etc/walhalla.toml",
        format!("store = \"{}\"\n", store.url()),
    );
    std::os::unix::fs::symlink(&host().program, own.area.path("bin/walhalla")).unwrap();
    let mut primary = Cluster::create(&own.area, "main", Shape::of(VERSION));
    let sockets = own.area.path("main.s").display().to_string();
    // The copy listens where its settings say, and no other test may do so on the same port.
    primary.configure(&format!(
        "unix_socket_directories = '{sockets}'\nlisten_addresses = ''"
    ));
    walhalla.archive_from(&mut primary);
    own.run("psql -c 'create database shop'").succeeds();
    own.run("psql -c 'create table orders as select generate_series(1, 1000) as id' shop")
        .succeeds();
    walhalla.back_up(&primary);
    // So that the copy answers queries for a while before it has them all.
    for _ in 0..20 {
        own.run("psql -c 'insert into orders select generate_series(1, 20000)' shop")
            .succeeds();
    }
    own.run("psql -c 'drop table orders' shop").succeeds();
    primary.archive_everything();

    let found = own.run("walhalla find --dropped").succeeds().stdout;
    let restore = found
        .lines()
        .find_map(|line| line.trim().strip_prefix("before it: "));
    own.run(restore.unwrap_or_else(|| panic!("{found}")))
        .succeeds();
    let [_, start, wait, dump, compare]: [String; 5] = { page.section("## A table is gone", "sh") }
        .try_into()
        .unwrap();
    own.run(&start).succeeds();
    own.run(&wait).succeeds();
    own.run(&dump).succeeds();
    own.run(&compare).succeeds();
    let count = own.run("psql -Atc 'select count(*) from orders' shop");
    assert_eq!(count.succeeds().stdout.trim(), "401000");
    let [clear]: [String; 1] = page.section("### Clean up", "sh").try_into().unwrap();
    own.run(&clear).succeeds();
    assert!(!own.area.path("restored").exists());
    primary.stop();
}

#[test]
fn the_runbook_brings_a_lost_server_back_as_it_is_written() {
    let page = Page::of("restore-runbook.md");
    let own = OwnHost::new();
    let store = Store::directory(&own.area);
    let walhalla = Walhalla::new(&own.area, &store);
    own.area.write(
        "etc/walhalla.toml",
        format!("store = \"{}\"\n", store.url()),
    );
    std::os::unix::fs::symlink(&host().program, own.area.path("bin/walhalla")).unwrap();
    let mut primary = Cluster::create(&own.area, "main", Shape::of(VERSION));
    walhalla.archive_from(&mut primary);
    fill(&primary);
    walhalla.back_up(&primary);
    primary.archive_everything();
    // From here on the store does not take anything, and the server is lost with segments that wait.
    primary.configure("archive_command = 'false'");
    let middle = make_history(&primary, "middle");
    let end = make_history(&primary, "end");
    // Recovery stops at a time only where it meets a later transaction.
    primary.sql("create table later as select 1 as id");
    primary.switch_segment();
    primary.sql("checkpoint");
    primary.crash();

    let [settings]: [String; 1] = page.section("## 2. Settings", "sh").try_into().unwrap();
    own.run(&settings).succeeds();
    let restore = page.section("## 4. Restore", "sh").remove(0);
    let (aside, restore) = restore.split_once('\n').unwrap();
    own.run(aside).succeeds();
    let [push]: [String; 1] =
        { page.section("## The last segments of a server that is gone", "sh") }
            .try_into()
            .unwrap();
    own.run(&push).succeeds();
    let restore = replaced(restore, "2026-11-21 04:29:59+00", &end.time);
    own.run(&restore).succeeds();

    let mut restored = Cluster::adopt(&own.area, VERSION, own.area.path("main"));
    restored.start();
    let look = page.section("## 5. Look", "sql").remove(0);
    let paused = look.split(';').next().unwrap();
    eventually(
        "the server to pause at the target",
        Duration::from_mins(2),
        || restored.sql(paused).starts_with("paused"),
    );
    restored.dump().assert_same_as(&end.dump, "the end");

    // Not what was wanted: over what is there, to another moment.
    restored.stop();
    let [over]: [String; 1] = page
        .section("### Over what is there", "sh")
        .try_into()
        .unwrap();
    own.run(&replaced(&over, "2026-11-21 04:29:59+00", &middle.time))
        .succeeds();
    restored.start();
    eventually(
        "the server to pause at the other target",
        Duration::from_mins(2),
        || restored.sql(paused).starts_with("paused"),
    );
    restored.dump().assert_same_as(&middle.dump, "the middle");

    let open = page.section("## 6. Open it", "sql").remove(0);
    restored.sql(open.lines().next().unwrap());
    restored.wait_until_promoted();
    let [clear]: [String; 1] = page.section("## 7. Afterwards", "sql").try_into().unwrap();
    for statement in clear
        .split(';')
        .filter(|statement| !statement.trim().is_empty())
    {
        restored.sql(statement);
    }
    let left = std::fs::read_to_string(restored.data.join("postgresql.auto.conf")).unwrap();
    assert!(!left.contains("recovery_"), "{left}");
    restored.amcheck();
    restored.stop();
}
