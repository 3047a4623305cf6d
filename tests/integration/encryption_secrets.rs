//! Secret keys in wrong places, and words that must not be said aloud.

use std::os::unix::fs::PermissionsExt as _;

use crate::support::{Area, Key, Outcome, Segments, Store, Walhalla, host, run, write_private};

/// Fails if any part of the secret that is long enough to matter was said, in whatever case.
#[track_caller]
fn assert_unsaid(outcome: &Outcome, secret: &str) {
    let said = format!("{}\n{}", outcome.stdout, outcome.stderr).to_uppercase();
    // Behind `AGE-SECRET-KEY-1`, which messages may well name.
    let secret = secret.strip_prefix("AGE-SECRET-KEY-1").unwrap_or(secret);
    let secret = secret.to_uppercase();
    for at in 0..secret.len() - 12 {
        assert!(
            !said.contains(&secret[at..at + 12]),
            "a secret key was shown by {outcome}"
        );
    }
}

#[test]
fn a_secret_key_in_a_wrong_place_is_refused_and_never_shown() {
    let area = Area::new();
    let store = Store::directory(&area);
    let segments = Segments::make(&area, 1);
    let key = Key::generate(&area, "walhalla.key");
    let secret = key.secret();
    let quoted = format!("\"{secret}\"");
    let beside = format!("\"{} {secret}\"", key.recipient);
    let lowercase = format!("\"{}\"", secret.to_lowercase());
    let file = write_private(&area, "recipients.txt", &format!("{secret}\n"));
    let file = format!("\"{}\"", file.display());
    let identity_file = format!("\"{}\"", key.identity.display());
    for (setting, value) in [
        ("age_recipients", &quoted),
        ("age_recipients", &beside),
        ("age_recipients", &lowercase),
        ("age_recipients", &format!("[{quoted}]")),
        ("age_recipients_file", &file),
        // The identity's file itself.
        ("age_recipients_file", &identity_file),
        ("age_identity_file", &quoted),
        ("age_identity_file", &lowercase),
        // Its value in the place of a file of recipients.
        ("age_recipients_file", &quoted),
        // Without quotes it is no TOML, and the parser likes to show the line.
        ("age_recipients", &secret),
        ("age_identity_file", &secret),
        ("age_identity_file", &format!("\"{secret}")),
    ] {
        let walhalla = Walhalla::on_host(&area, "wrong", &store, &format!("{setting} = {value}\n"));
        for args in [
            vec!["config"],
            vec!["config", "--json"],
            vec!["-vv", "backup-list"],
            vec!["--log-format", "json", "backup-list"],
        ] {
            let outcome = walhalla.run(&args);
            assert_unsaid(&outcome, &secret);
            // Who reads does not look at recipients.
            if args.contains(&"config") {
                outcome.exits_with(2);
            }
        }
        let outcome = segments.push(&walhalla, &segments.names[0]);
        assert_unsaid(&outcome, &secret);
        outcome.exits_with(2);
        assert!(store.objects_named("").is_empty(), "{setting} = {value}");
    }
    for variable in [
        "WALHALLA_AGE_RECIPIENTS",
        "WALHALLA_AGE_RECIPIENTS_FILE",
        "WALHALLA_AGE_IDENTITY_FILE",
    ] {
        let walhalla = Walhalla::new(&area, &store).with_env(variable, &secret);
        let outcome = walhalla.run(&["config"]);
        assert_unsaid(&outcome, &secret);
        outcome.exits_with(2).says(&[variable]);
    }
}

#[test]
fn no_log_shows_a_secret_key() {
    let area = Area::new();
    let store = Store::directory(&area);
    let segments = Segments::make(&area, 1);
    let name = &segments.names[0];
    let key = Key::generate(&area, "walhalla.key");
    let walhalla = Walhalla::new(&area, &store)
        .encrypting_to(&[&key.recipient])
        .opening_with(&key.identity);
    let push = walhalla.run_in(
        &segments.data,
        &["-vv", "wal-push", &format!("pg_wal/{name}")],
    );
    let fetch = walhalla.run_in(&segments.data, &["-vv", "wal-fetch", name, "pg_wal/X"]);
    let verify = walhalla.run(&["-vv", "wal-verify", "--deep"]);
    let config = walhalla.run(&["-vv", "config"]);
    for outcome in [push, fetch, verify, config] {
        assert_unsaid(&outcome, &key.secret());
        outcome.succeeds();
    }
}

#[test]
fn a_broken_identity_file_is_named_and_its_text_is_not_shown() {
    let area = Area::new();
    let store = Store::directory(&area);
    let segments = Segments::make(&area, 1);
    let name = &segments.names[0];
    let key = Key::generate(&area, "walhalla.key");
    let plain = Walhalla::new(&area, &store);
    segments
        .push(&plain.encrypting_to(&[&key.recipient]), name)
        .succeeds();
    let secret = key.secret();
    for (what, text) in [
        ("cut off", secret[..secret.len() - 4].to_owned()),
        ("a letter changed", secret.replacen('Q', "P", 1) + "Q"),
        ("two in a line", format!("{secret} {secret}")),
        ("nothing but a comment", format!("# {}\n", key.recipient)),
        ("the recipient", key.recipient.clone()),
        ("not text", "\u{0}\u{fffd}".repeat(40)),
    ] {
        let file = write_private(&area, "broken.key", &text);
        let (outcome, fetched) = segments.fetch(&plain.opening_with(&file), name);
        assert_unsaid(&outcome, &secret);
        outcome
            .exits_with(1)
            .says(&[file.to_str().unwrap(), "hint:"]);
        assert!(fetched.is_none(), "{what}");
    }
}

#[test]
fn an_encrypted_identity_is_refused_and_the_passphrase_named_as_the_reason() {
    let area = Area::new();
    let store = Store::directory(&area);
    let segments = Segments::make(&area, 1);
    let name = &segments.names[0];
    let key = Key::generate(&area, "walhalla.key");
    let plain = Walhalla::new(&area, &store);
    segments
        .push(&plain.encrypting_to(&[&key.recipient]), name)
        .succeeds();
    // `age --passphrase` wants a terminal; a file for a recipient looks the same from outside.
    for armor in ["--armor", "--encrypt"] {
        let closed = area.path(&format!("closed{armor}"));
        let mut age = host().command("age");
        age.args([armor, "-r", &key.recipient, "-o"]).arg(&closed);
        run(age.arg(&key.identity)).succeeds();
        let (outcome, fetched) = segments.fetch(&plain.opening_with(&closed), name);
        outcome
            .exits_with(1)
            .says(&[closed.to_str().unwrap(), "protected by a passphrase"]);
        assert!(fetched.is_none());
        let mut keygen = host().command(&host().program);
        run(keygen.args(["keygen", "-y"]).arg(&closed))
            .exits_with(1)
            .says(&[closed.to_str().unwrap(), "protected by a passphrase"]);
    }
}

#[test]
fn an_identity_that_others_can_read_is_used_and_warned_of() {
    let area = Area::new();
    let store = Store::directory(&area);
    let segments = Segments::make(&area, 1);
    let name = &segments.names[0];
    let key = Key::generate(&area, "walhalla.key");
    let walhalla = Walhalla::new(&area, &store)
        .encrypting_to(&[&key.recipient])
        .opening_with(&key.identity);
    segments.push(&walhalla, name).succeeds();
    let path = key.identity.to_str().unwrap();

    let (outcome, _) = segments.fetch(&walhalla, name);
    assert!(
        !outcome.succeeds().stderr.contains(path),
        "warned for nothing"
    );
    std::fs::set_permissions(&key.identity, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (outcome, fetched) = segments.fetch(&walhalla, name);
    outcome.succeeds().says(&[path, "0644", "chmod 600"]);
    assert!(fetched.is_some());
}

#[test]
fn a_missing_identity_file_does_not_keep_wal_from_being_archived() {
    let area = Area::new();
    let store = Store::directory(&area);
    let segments = Segments::make(&area, 1);
    let name = &segments.names[0];
    let key = Key::generate(&area, "walhalla.key");
    let walhalla = Walhalla::new(&area, &store)
        .encrypting_to(&[&key.recipient])
        .opening_with(&area.path("not-there.key"));
    segments.push(&walhalla, name).succeeds();
    segments
        .push(&walhalla, name)
        .succeeds()
        .says(&["was archived before"]);
    segments.assert_archived(&walhalla.opening_with(&key.identity), name);
}

#[test]
fn a_file_of_recipients_without_any_or_that_is_missing_lets_nothing_be_stored_unencrypted() {
    let area = Area::new();
    let store = Store::directory(&area);
    let segments = Segments::make(&area, 1);
    let plain = Walhalla::new(&area, &store);
    let empty = area.write("empty.txt", "");
    let comments = area.write("comments.txt", "# nobody yet\n\n   \n");
    let other = area.write("other.txt", "age1thisisnorecipient\n");
    for path in [empty, comments, other, area.path("missing.txt")] {
        let path = path.to_str().unwrap();
        let walhalla = plain.with_env("WALHALLA_AGE_RECIPIENTS_FILE", path);
        segments
            .push(&walhalla, &segments.names[0])
            .exits_with(2)
            .says(&["age_recipients_file", "hint:"]);
        assert!(store.objects_named("").is_empty(), "{path}");
    }
    // `$(cat recipients)` of a file that is not there.
    let walhalla = plain.with_env("WALHALLA_AGE_RECIPIENTS", "");
    segments
        .push(&walhalla, &segments.names[0])
        .exits_with(2)
        .says(&["age_recipients", "no recipient"]);
    assert!(store.objects_named("").is_empty());
}

#[test]
fn a_missing_file_of_recipients_keeps_nobody_from_reading() {
    let area = Area::new();
    let store = Store::directory(&area);
    let segments = Segments::make(&area, 1);
    let plain = Walhalla::new(&area, &store);
    segments.push(&plain, &segments.names[0]).succeeds();
    let missing = area.path("missing.txt");
    let walhalla = plain.with_env("WALHALLA_AGE_RECIPIENTS_FILE", missing.to_str().unwrap());
    segments.assert_archived(&walhalla, &segments.names[0]);
    walhalla.run(&["backup-list"]).succeeds();
    walhalla.run(&["config"]).exits_with(2);
}

/// The SHA-256 of a history that has few forms, or of a segment that is nearly empty, would confirm every guess.
#[test]
fn the_header_of_an_encrypted_wal_file_tells_nobody_what_it_holds() {
    let area = Area::new();
    let store = Store::directory(&area);
    let segments = Segments::make(&area, 1);
    let key = Key::generate(&area, "walhalla.key");
    let walhalla = Walhalla::new(&area, &store).encrypting_to(&[&key.recipient]);
    let history = b"1\t0/3000148\tno recovery target specified\n";
    segments.put("00000002.history", history);
    let segment = segments.names[0].as_str();
    segments.put(&format!("{segment}.partial"), &segments.original(segment));
    for name in ["00000002.history", segment, &format!("{segment}.partial")] {
        segments.push(&walhalla, name).succeeds();
        // Known again without the identity, as it is under a key that only the cluster's servers have.
        segments.push(&walhalla, name).succeeds();
        let object = std::fs::read(store.object_of(name)).unwrap();
        let header = String::from_utf8_lossy(&object[..object.len().min(600)]).into_owned();
        let content = std::fs::read(segments.data.join("pg_wal").join(name)).unwrap();
        let sha256 = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&content));
        let blake3 = blake3::hash(&content).to_hex();
        assert!(header.contains("-> walhalla-keyed-blake3 "), "{header}");
        assert!(
            !header.contains(&sha256) && !header.contains(blake3.as_str()),
            "{header}"
        );
    }
    let other = b"1\t0/3000150\tno recovery target specified\n";
    segments.put("00000002.history", other);
    segments
        .push(&walhalla, "00000002.history")
        .exits_with(1)
        .says(&["already archived with other content"]);
}
