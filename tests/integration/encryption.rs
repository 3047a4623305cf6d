//! Encrypted archives and backups: who can read them, what a host can do that cannot, and stores in which settings
//! changed.

use std::path::Path;

use crate::support::{
    Area, Cluster, Dump, Key, Moment, Outcome, Segments, Shape, Store, Walhalla, fill, host,
    make_history, run, with_a_byte_changed, with_a_record_changed,
};

/// A text that nobody but the owner of the identity may read.
const SECRET_ROW: &str = "the treasure lies under the third oak";

/// An encrypted store with a backup and the WAL after it, whose server is stopped.
struct Encrypted {
    store: Store,
    key: Key,
    /// Without an identity, as the primary.
    primary_side: Walhalla,
    backup: String,
    middle: Moment,
    end: Dump,
    /// Declared last is dropped last.
    area: Area,
}

impl Encrypted {
    fn make(settings: &str) -> Self {
        let area = Area::new();
        let store = Store::directory(&area);
        let key = Key::generate(&area, "walhalla.key");
        let lines = format!("age_recipients = [\"{}\"]\n{settings}", key.recipient);
        let primary_side = Walhalla::on_host(&area, "primary-host", &store, &lines);
        let mut primary = Cluster::create(&area, "primary", Shape::of(17));
        primary_side.archive_from(&mut primary);
        fill(&primary);
        primary.sql(&format!(
            "insert into ledger select 'row ' || g, '{SECRET_ROW}' from generate_series(1, 50) g"
        ));
        let backup = primary_side.back_up(&primary);
        let middle = make_history(&primary, "middle");
        primary.sql(&format!(
            "update ledger set body = body || ', {SECRET_ROW}'"
        ));
        let end = make_history(&primary, "end").dump;
        let segment = primary.archive_everything();
        let segments = std::fs::read_dir(primary.data.join("pg_wal")).unwrap();
        let segments = segments.flatten().filter(|entry| entry.path().is_file());
        assert!(
            segments
                .into_iter()
                .any(|entry| holds_secret(&entry.path())),
            "the row is in no segment up to {segment}, so that nothing is proven"
        );
        primary.stop();
        Self {
            store,
            key,
            primary_side,
            backup,
            middle,
            end,
            area,
        }
    }

    fn opened_with(&self, key: &Key) -> Walhalla {
        let lines = format!("age_identity_file = \"{}\"", key.identity.display());
        Walhalla::on_host(&self.area, "restoring-host", &self.store, &lines)
    }
}

fn holds_secret(path: &Path) -> bool {
    // By `grep`: this binary is not optimised.
    let mut grep = host().command("grep");
    let outcome = run(grep.args(["-q", "-a", "-F", SECRET_ROW]).arg(path)).exits_within(0..=1);
    outcome.code == Some(0)
}

fn assert_restored(walhalla: &Walhalla, area: &Area, target: &[&str], expected: &Dump) {
    let mut restored = walhalla.restore(area, 17, "restored", target);
    restored.start();
    restored.wait_until_promoted();
    restored.dump().assert_same_as(expected, &target.join(" "));
    restored.amcheck();
    restored.assert_books_balance();
    restored.stop();
    std::fs::remove_dir_all(&restored.data).unwrap();
}

#[test]
fn an_encrypted_cluster_comes_back_with_the_identity_and_shows_nothing_without() {
    // Uncompressed, so that encryption alone hides what is in the objects.
    let encrypted = Encrypted::make("compression = \"none\"");
    let objects = encrypted.store.objects_named("").into_iter();
    for object in objects.chain(encrypted.store.summaries_named("")) {
        let is_encrypted = object.extension().is_some_and(|suffix| suffix == "age");
        // File numbers and lengths, which a delta's host has to read.
        let is_open = ["backup.json", "relations.json.lz4"]
            .contains(&object.file_name().unwrap().to_str().unwrap());
        assert!(
            is_encrypted || is_open,
            "{} is not encrypted",
            object.display()
        );
        assert!(!holds_secret(&object), "{} shows it", object.display());
    }
    let shown = encrypted
        .primary_side
        .run(&["backup-show", "LATEST", "--json"])
        .succeeds()
        .json();
    assert_eq!(shown["encrypted_to"][0], encrypted.key.recipient.as_str());

    let restoring = encrypted.opened_with(&encrypted.key);
    let target = ["--target-name", "middle", "--target-action", "promote"];
    assert_restored(&restoring, &encrypted.area, &target, &encrypted.middle.dump);
    // The server itself asks for each file, with the settings of the file that its restore_command names.
    let target = ["--wal", "on-demand"];
    assert_restored(&restoring, &encrypted.area, &target, &encrypted.end);
    restoring.run(&["verify", "--all"]).succeeds();
    restoring.run(&["wal-verify", "--deep"]).succeeds();

    // A variable of this shell's is none of the server's, whose recovery would stop at the first file.
    let beside = encrypted.primary_side.opening_with(&encrypted.key.identity);
    let target = encrypted.area.path("refused");
    beside
        .run(&["restore", target.to_str().unwrap(), "--wal", "on-demand"])
        .exits_with(2)
        .says(&["age_identity_file", "hint:"]);
    assert!(!target.exists());
}

#[test]
fn a_host_without_the_identity_lists_and_compares_but_restores_nothing() {
    let encrypted = Encrypted::make("");
    let walhalla = &encrypted.primary_side;
    assert_eq!(walhalla.newest_backup(), encrypted.backup);
    let shown = walhalla.run(&["backup-show", &encrypted.backup]).succeeds();
    assert!(shown.stdout.contains(&encrypted.key.recipient), "{shown}");

    let verified = walhalla.run(&["verify", "--json"]).succeeds();
    let report = verified.json();
    assert_eq!(report["ok"], true, "{report:#}");
    assert!(
        report["notes"].to_string().contains("stored bytes alone"),
        "{report:#}"
    );
    assert!(report["objects_unopened"].as_u64() > Some(0), "{report:#}");
    assert_eq!(report["files"], 0, "{report:#}");
    walhalla.run(&["wal-verify"]).succeeds();

    let target = encrypted.area.path("restored");
    let dir = target.to_str().unwrap();
    for args in [
        vec!["restore", dir],
        vec!["restore", dir, "--target-name", "middle"],
        vec!["backup-fetch", dir, &encrypted.backup],
        vec!["plan", "--target-time", &encrypted.middle.time],
        vec!["wal-verify", "--deep"],
    ] {
        let outcome = walhalla.run(&args).exits_with(1);
        outcome.says(&["is encrypted", "hint:", "age_identity_file"]);
        assert!(
            !target.exists() || std::fs::read_dir(&target).unwrap().next().is_none(),
            "{args:?} wrote into {dir}"
        );
    }
}

#[test]
fn stored_bytes_that_changed_are_noticed_without_the_identity() {
    let encrypted = Encrypted::make("");
    let part = encrypted.store.objects_named("00001.tar").remove(0);
    let stored = std::fs::read(&part).unwrap();
    std::fs::write(&part, with_a_byte_changed(&stored)).unwrap();
    let outcome = encrypted.primary_side.run(&["verify"]).exits_with(3);
    assert!(outcome.stdout.contains("00001.tar"), "{outcome}");
}

#[test]
fn the_wrong_identity_opens_nothing_and_is_named() {
    let encrypted = Encrypted::make("");
    let other = Key::generate(&encrypted.area, "other.key");
    let walhalla = encrypted.opened_with(&other);
    let target = encrypted.area.path("restored");
    let file = other.identity.to_str().unwrap();
    for args in [
        vec!["restore", target.to_str().unwrap()],
        vec!["backup-fetch", target.to_str().unwrap(), "LATEST"],
    ] {
        walhalla
            .run(&args)
            .exits_with(1)
            .says(&["is encrypted", file, "hint:"]);
        assert!(!target.join("global/pg_control").exists());
    }
    // A flipped bit in a header makes an object another recipient's: verify cannot tell that from damage.
    let outcome = walhalla.run(&["verify"]).exits_with(3);
    assert!(outcome.stdout.contains(file), "{outcome}");
    walhalla.run(&["wal-verify", "--deep"]).exits_with(3);
}

/// Two segments, a key, and a host that pushes without its identity.
struct Pushing {
    segments: Segments,
    plain: Walhalla,
    store: Store,
    key: Key,
    area: Area,
}

impl Pushing {
    fn make() -> Self {
        let area = Area::new();
        let store = Store::directory(&area);
        Self {
            segments: Segments::make(&area, 2),
            plain: Walhalla::new(&area, &store),
            store,
            key: Key::generate(&area, "walhalla.key"),
            area,
        }
    }

    fn encrypting(&self) -> Walhalla {
        self.plain.encrypting_to(&[&self.key.recipient])
    }

    #[track_caller]
    fn pushed_before(&self, walhalla: &Walhalla, name: &str) {
        self.segments
            .push(walhalla, name)
            .succeeds()
            .says(&["was archived before"]);
        // There is still one object, the first.
        self.store.object_of(name);
    }

    #[track_caller]
    fn refuses_other_content(&self, walhalla: &Walhalla, name: &str) {
        let original = self.segments.original(name);
        self.segments.put(name, &with_a_record_changed(&original));
        self.segments
            .push(walhalla, name)
            .exits_with(1)
            .says(&["already archived with other content", "two servers"]);
        self.segments.put(name, &original);
        self.store.object_of(name);
    }
}

#[test]
fn a_host_without_the_identity_knows_its_own_push_and_refuses_anothers() {
    let pushing = Pushing::make();
    let walhalla = pushing.encrypting();
    let name = &pushing.segments.names[0];
    pushing.segments.push(&walhalla, name).succeeds();
    pushing.pushed_before(&walhalla, name);
    pushing.refuses_other_content(&walhalla, name);
    // Other kinds of files have the digest too.
    let history = b"1\t0/3000148\tno recovery target specified\n";
    let file = "00000002.history";
    pushing.segments.put(file, history);
    pushing.segments.push(&walhalla, file).succeeds();
    pushing.pushed_before(&walhalla, file);
}

#[test]
fn wal_fetch_without_or_with_the_wrong_identity_stops_recovery_and_lets_a_standby_ask_again() {
    let pushing = Pushing::make();
    let name = &pushing.segments.names[0];
    pushing
        .segments
        .push(&pushing.encrypting(), name)
        .succeeds();
    let other = Key::generate(&pushing.area, "other.key");
    let file = other.identity.to_str().unwrap();
    for (walhalla, says) in [
        (pushing.plain.clone(), "age_identity_file"),
        (pushing.plain.opening_with(&other.identity), file),
        (
            pushing.plain.opening_with(Path::new("/nonexistent/key")),
            "/nonexistent/key",
        ),
    ] {
        for (signal, code) in [("recovery.signal", 200), ("standby.signal", 1)] {
            pushing.segments.signal(signal);
            let (outcome, fetched) = pushing.segments.fetch(&walhalla, name);
            outcome.exits_with(code).says(&[name, "hint:", says]);
            assert!(fetched.is_none(), "{signal}: something was written");
        }
    }
    pushing.segments.signal("recovery.signal");
    let opening = pushing.plain.opening_with(&pushing.key.identity);
    pushing.segments.assert_archived(&opening, name);
}

#[test]
fn a_segment_is_known_as_the_same_under_other_settings() {
    let pushing = Pushing::make();
    let [first, second] = [&pushing.segments.names[0], &pushing.segments.names[1]];
    let encrypting = pushing.encrypting();
    let zstd = encrypting.with_env("WALHALLA_COMPRESSION", "zstd");

    pushing.segments.push(&pushing.plain, first).succeeds();
    for walhalla in [&encrypting, &zstd] {
        pushing.pushed_before(walhalla, first);
        pushing.refuses_other_content(walhalla, first);
    }
    assert!(pushing.store.object_of(first).extension().unwrap() == "lz4");

    pushing.segments.push(&encrypting, second).succeeds();
    for walhalla in [&pushing.plain, &zstd] {
        pushing.pushed_before(walhalla, second);
        pushing.refuses_other_content(walhalla, second);
    }
    assert!(pushing.store.object_of(second).extension().unwrap() == "age");
}

#[test]
fn every_changed_byte_of_an_encrypted_segment_is_noticed() {
    let pushing = Pushing::make();
    let name = &pushing.segments.names[0];
    pushing
        .segments
        .push(&pushing.encrypting(), name)
        .succeeds();
    let opening = pushing.plain.opening_with(&pushing.key.identity);
    let object = pushing.store.object_of(name);
    let stored = std::fs::read(&object).unwrap();
    pushing.segments.signal("recovery.signal");
    let header = stored.windows(4).position(|at| at == b"\n---").unwrap();
    // The version, a stanza, the header's end, the first and last byte of the payload, and the middle.
    for at in [
        3,
        40,
        header + 8,
        header + 70,
        stored.len() / 2,
        stored.len() - 1,
    ] {
        let mut damaged = stored.clone();
        damaged[at] ^= 0x01;
        std::fs::write(&object, &damaged).unwrap();
        let (outcome, fetched) = pushing.segments.fetch(&opening, name);
        outcome.exits_with(200).says(&[name]);
        assert!(fetched.is_none(), "byte {at}");
    }
    std::fs::write(&object, &stored[..stored.len() - 1]).unwrap();
    pushing.segments.fetch(&opening, name).0.exits_with(200);
    std::fs::write(&object, &stored).unwrap();
    pushing.segments.assert_archived(&opening, name);
}

#[test]
fn recipients_come_and_go_and_objects_stay_with_those_they_were_made_for() {
    let area = Area::new();
    let store = Store::directory(&area);
    let segments = Segments::make(&area, 3);
    let plain = Walhalla::new(&area, &store);
    let [old, new] = ["old.key", "new.key"].map(|name| Key::generate(&area, name));
    let steps = [
        (vec![&old], [true, false]),
        (vec![&old, &new], [true, true]),
        (vec![&new], [false, true]),
    ];
    for (name, (keys, _)) in segments.names.iter().zip(&steps) {
        let recipients: Vec<&str> = keys.iter().map(|key| key.recipient.as_str()).collect();
        segments
            .push(&plain.encrypting_to(&recipients), name)
            .succeeds();
    }
    for (which, key) in [&old, &new].into_iter().enumerate() {
        let walhalla = plain.opening_with(&key.identity);
        for (name, (_, opened)) in segments.names.iter().zip(&steps) {
            if opened[which] {
                segments.assert_archived(&walhalla, name);
            } else {
                let (outcome, fetched) = segments.fetch(&walhalla, name);
                outcome
                    .exits_with(1)
                    .says(&[key.identity.to_str().unwrap(), "hint:"]);
                assert!(fetched.is_none());
            }
        }
    }
    let both = plain.opening_with(&Key::together(&area, "both.key", &[&old, &new]));
    for name in &segments.names {
        segments.assert_archived(&both, name);
    }
}

#[test]
fn a_store_in_which_compression_and_recipients_changed_stays_readable_from_end_to_end() {
    let area = Area::new();
    let store = Store::directory(&area);
    let [one, two] = ["one.key", "two.key"].map(|name| Key::generate(&area, name));
    let to = |key: &Key| format!("age_recipients = [\"{}\"]\n", key.recipient);
    let settings = [
        "compression = \"lz4\"".to_owned(),
        "compression = \"zstd\"".to_owned(),
        to(&one) + "compression = \"lz4\"",
        to(&one) + "compression = \"none\"",
        to(&two) + "compression = \"zstd\"",
    ];
    // Written anew in place: the running server's archive_command goes on with what is set now.
    let set = |lines: &str| Walhalla::on_host(&area, "primary-host", &store, lines);
    let mut primary = Cluster::create(&area, "primary", Shape::of(17));
    set(&settings[0]).archive_from(&mut primary);
    fill(&primary);
    let mut backups = Vec::new();
    let mut end = None;
    for (step, lines) in settings.iter().enumerate() {
        let walhalla = set(lines);
        if step % 2 == 0 {
            backups.push(walhalla.back_up(&primary));
        }
        end = Some(make_history(&primary, &format!("step_{step}")).dump);
        primary.archive_everything();
    }
    primary.stop();
    let end = end.unwrap();

    for suffix in [".lz4", ".zst", ".lz4.age", ".age", ".zst.age"] {
        let segments = store.objects_named("00000001000000000000");
        let is_packed_so = |path: &std::path::PathBuf| path.to_string_lossy()[..].ends_with(suffix);
        assert!(segments.iter().any(is_packed_so), "no segment is {suffix}");
    }
    let restoring = Walhalla::on_host(&area, "restoring-host", &store, "")
        .opening_with(&Key::together(&area, "both.key", &[&one, &two]));
    restoring.run(&["verify", "--all"]).succeeds();
    restoring.run(&["wal-verify", "--deep"]).succeeds();
    for backup in &backups {
        assert_restored(&restoring, &area, &["--backup", backup], &end);
    }
    let half: Outcome = restoring
        .opening_with(&two.identity)
        .run(&["verify", "--all"]);
    half.exits_with(3).says(&[two.identity.to_str().unwrap()]);
}
