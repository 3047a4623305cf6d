//! `docs/recover-without-walhalla.md`, run as it stands: the way back if this program is lost.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{
    Area, Cluster, Dump, Key, Moment, Outcome, PATH, Shape, Store, Walhalla, fill, host,
    make_history, run, with_a_byte_changed,
};

/// The page's shell blocks in one script, as the page itself says how to get them.
fn script_of_the_page() -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/recover-without-walhalla.md");
    let text = std::fs::read_to_string(&page).unwrap();
    let sed = text
        .lines()
        .find_map(|line| line.strip_prefix("$ sed -n '")?.split('\'').next())
        .expect("the line with which a reader makes a script of the page");
    let outcome = run(Command::new("sed").args(["-n", sed]).arg(&page)).succeeds();
    assert!(outcome.stdout.contains("fetch-wal.sh"), "{outcome}");
    outcome.stdout
}

/// A cluster of which only the store is left, and what it held.
struct Lost {
    store: Store,
    key: Key,
    version: u32,
    tablespace: Option<String>,
    backup: String,
    middle: Moment,
    end: Dump,
    area: Area,
}

#[derive(Clone, Copy)]
enum Tablespace {
    None,
    One,
}

impl Lost {
    fn make(version: u32, settings: impl Fn(&Key) -> String, tablespace: Tablespace) -> Self {
        let area = Area::new();
        let store = Store::directory(&area);
        let key = Key::generate(&area, "walhalla.key");
        let walhalla = Walhalla::with_settings(&area, &store, &settings(&key));
        let mut primary = Cluster::create(&area, "primary", Shape::of(version));
        walhalla.archive_from(&mut primary);
        fill(&primary);
        let tablespace = match tablespace {
            Tablespace::None => None,
            Tablespace::One => Some(make_tablespace(&area, &primary)),
        };
        let backup = walhalla.back_up(&primary);
        let middle = make_history(&primary, "middle");
        let end = make_history(&primary, "end").dump;
        primary.archive_everything();
        primary.stop();
        Self {
            store,
            key,
            version,
            tablespace,
            backup,
            middle,
            end,
            area,
        }
    }

    /// Runs the page with its variables set; nothing of Walhalla is in the environment.
    fn recover(&self, name: &str, variables: &[(&str, &str)]) -> (PathBuf, Outcome) {
        let data = self.area.path(name);
        let own = [
            ("STORE", self.store.path().to_str().unwrap()),
            ("IDENTITY", self.key.identity.to_str().unwrap()),
            ("PGDATA", data.to_str().unwrap()),
        ];
        let mut script = script_of_the_page();
        for (variable, value) in own.iter().chain(variables) {
            script = with_variable(&script, variable, value);
        }
        let script = self.area.write(&format!("{name}.sh"), script);
        let programs = host().client_program(self.version, "pg_verifybackup");
        let programs = programs.parent().unwrap().display();
        let mut bash = host().command("bash");
        bash.args(["-eu", "-o", "pipefail"])
            .arg(script)
            .env("PATH", format!("{programs}:{PATH}"));
        (data, run(&mut bash))
    }

    fn recovered(&self, name: &str, variables: &[(&str, &str)]) -> Cluster {
        let (data, outcome) = self.recover(name, variables);
        let outcome = outcome.succeeds();
        assert!(
            outcome.stdout.contains("backup successfully verified"),
            "{outcome}"
        );
        Cluster::adopt(&self.area, self.version, data)
    }
}

fn make_tablespace(area: &Area, primary: &Cluster) -> String {
    let location = area.make_dir("space").display().to_string();
    primary.sql(&format!("create tablespace outside location '{location}'"));
    primary.sql(
        "create table far tablespace outside as select g as id from generate_series(1, 3000) g",
    );
    primary.sql("select oid from pg_tablespace where spcname = 'outside'")
}

/// The script with another value on the line that sets the variable.
fn with_variable(script: &str, variable: &str, value: &str) -> String {
    let begin = format!("{variable}=");
    assert!(!value.contains('\''));
    let mut lines: Vec<String> = script.lines().map(str::to_owned).collect();
    let line = lines.iter_mut().find(|line| line.starts_with(&begin));
    *line.unwrap_or_else(|| panic!("the page sets no {variable}")) = format!("{begin}'{value}'");
    lines.join("\n") + "\n"
}

fn encrypted_lz4(key: &Key) -> String {
    format!("age_recipients = [\"{}\"]", key.recipient)
}

fn assert_holds(recovered: &Cluster, expected: &Dump, what: &str) {
    recovered.dump().assert_same_as(expected, what);
    recovered.amcheck();
    recovered.assert_books_balance();
}

#[test]
fn the_page_brings_an_encrypted_store_back_with_its_tablespace_elsewhere() {
    let lost = Lost::make(17, encrypted_lz4, Tablespace::One);
    let elsewhere = lost.area.path("elsewhere").display().to_string();
    let oid = lost.tablespace.as_ref().unwrap();
    let map = format!("{oid}={elsewhere}");
    let mut recovered = lost.recovered("recovered", &[("TABLESPACES", &map)]);
    recovered.start();
    recovered.wait_until_promoted();
    let location = recovered.sql(&format!("select pg_tablespace_location({oid})"));
    assert_eq!(location, elsewhere);
    let before = lost.area.path("space").display().to_string();
    let expected = lost.end.replacing(&before, &elsewhere);
    assert_holds(&recovered, &expected, "the end of the archive");
}

#[test]
fn the_page_brings_an_encrypted_store_back_to_a_target_time() {
    let lost = Lost::make(17, encrypted_lz4, Tablespace::None);
    let target = [
        ("TARGET_TIME", lost.middle.time.as_str()),
        ("BACKUP", &lost.backup),
    ];
    let mut recovered = lost.recovered("recovered", &target);
    recovered.start();
    recovered.wait_until_paused();
    assert_holds(&recovered, &lost.middle.dump, "the target time");
    recovered.sql("select pg_wal_replay_resume()");
    recovered.wait_until_promoted();
}

#[test]
fn the_page_brings_an_unencrypted_zstd_store_back_with_its_tablespace_where_it_was() {
    let zstd = |_: &Key| "compression = \"zstd\"".to_owned();
    let lost = Lost::make(13, zstd, Tablespace::One);
    let (_, outcome) = lost.recover("refused", &[]);
    assert_ne!(outcome.code, Some(0), "over the original's: {outcome}");
    assert!(outcome.stdout.contains("space is not empty"), "{outcome}");

    std::fs::remove_dir_all(lost.area.path("space")).unwrap();
    lost.area.make_dir("space");
    let mut recovered = lost.recovered("recovered", &[("IDENTITY", "")]);
    recovered.start();
    recovered.wait_until_promoted();
    assert_holds(&recovered, &lost.end, "the end of the archive");
}

#[test]
fn the_page_stops_at_damage_and_at_what_is_there_already() {
    let lost = Lost::make(17, encrypted_lz4, Tablespace::None);
    lost.area.make_dir("taken");
    lost.area.write("taken/mine", "precious");
    let (_, outcome) = lost.recover("taken", &[]);
    assert_ne!(outcome.code, Some(0), "{outcome}");
    assert!(outcome.stdout.contains("taken is not empty"), "{outcome}");

    let other = Key::generate(&lost.area, "other.key");
    let (data, outcome) = lost.recover("locked", &[("IDENTITY", other.identity.to_str().unwrap())]);
    assert_ne!(outcome.code, Some(0), "{outcome}");
    assert!(!data.join("global/pg_control").exists());

    for (object, says) in [
        ("backup.json", "backup.json is damaged"),
        ("00001.tar", "FAILED"),
        ("backup_manifest", "FAILED"),
    ] {
        let path = lost.store.objects_named(object).remove(0);
        let stored = std::fs::read(&path).unwrap();
        std::fs::write(&path, with_a_byte_changed(&stored)).unwrap();
        let (data, outcome) = lost.recover("damaged", &[]);
        assert_ne!(outcome.code, Some(0), "{outcome}");
        assert!(outcome.to_string().contains(says), "{outcome}");
        assert!(!data.exists());
        std::fs::write(&path, &stored).unwrap();
    }
}

#[test]
fn the_pages_restore_command_fails_closed_and_recovery_goes_on_once_it_can() {
    let lost = Lost::make(17, encrypted_lz4, Tablespace::None);
    let mut recovered = lost.recovered("recovered", &[]);
    let backup_json = lost.store.objects_named("backup.json").remove(0);
    let wal = backup_json.ancestors().nth(3).unwrap().join("wal");
    let mut segments = lost.store.objects_named("00000001000000000000");
    segments.sort();
    let object = segments.pop().unwrap();
    let name = object.file_name().unwrap().to_str().unwrap();
    let name = name.strip_suffix(".lz4.age").unwrap();
    let fetched = lost.area.path("fetched");
    let script = recovered.data.join("fetch-wal.sh");
    let fetch = |name: &str| {
        let mut fetch = host().command(&script);
        let outcome = run(fetch.arg(name).arg(&fetched));
        let is_there = fetched.exists();
        let _ = std::fs::remove_file(&fetched);
        assert!(!lost.area.path("fetched.part").exists(), "{outcome}");
        (outcome.code.unwrap(), is_there)
    };
    assert_eq!(fetch(name), (0, true));
    for absent in ["0000000100000000000000FE", "00000002.history"] {
        assert_eq!(fetch(absent), (1, false), "{absent}");
    }

    let stored = std::fs::read(&object).unwrap();
    for (what, damaged) in [
        ("a byte changed", with_a_byte_changed(&stored)),
        ("cut off", stored[..stored.len() / 2].to_vec()),
        ("cut off by a byte", stored[..stored.len() - 1].to_vec()),
        ("nothing left", Vec::new()),
    ] {
        std::fs::write(&object, damaged).unwrap();
        assert_eq!(fetch(name), (200, false), "{what}");
    }
    // The server stops rather than takes the rest of the archive for absent.
    let log = recovered.start_and_fail();
    assert!(!log.contains("selected new timeline"), "{log}");
    for line in [
        "cannot be unpacked",
        "from archive: child process exited with exit code 200",
    ] {
        assert!(log.contains(line), "{line:?} is not in\n{log}");
    }
    std::fs::write(&object, &stored).unwrap();

    let unmounted = lost.area.path("unmounted");
    std::fs::rename(&wal, &unmounted).unwrap();
    assert_eq!(fetch(name), (200, false), "not mounted");
    std::fs::rename(&unmounted, &wal).unwrap();
    let timeline = wal.join("00000001");
    crate::support::make_unreadable(&timeline);
    assert_eq!(fetch(name), (200, false), "without rights");
    crate::support::give_rights_back(&timeline);

    recovered.start();
    recovered.wait_until_promoted();
    assert_holds(&recovered, &lost.end, "once the object was back");
}
