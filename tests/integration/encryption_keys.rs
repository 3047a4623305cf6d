//! Keys: their making, and every kind of them.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use crate::support::{
    Area, Cluster, Key, PLUGIN, Segments, Shape, Store, Walhalla, fill, host, make_history, run,
    with_plugin, write_private,
};

#[test]
fn each_of_several_recipients_opens_by_itself_what_was_encrypted_to_all() {
    let area = Area::new();
    let store = Store::directory(&area);
    let segments = Segments::make(&area, 2);
    let x25519 = Key::generate(&area, "one.key");
    let in_file = Key::generate(&area, "two.key");
    let [ed25519, rsa] = ["ed25519", "rsa"].map(|kind| Key::ssh(&area, kind, ""));
    let file = area.write(
        "recipients.txt",
        format!(
            "# who restores\n\n{}\n{}\n",
            in_file.recipient, rsa.recipient
        ),
    );
    let pushing = Walhalla::on_host(
        &area,
        "primary-host",
        &store,
        &format!(
            "age_recipients = [\"{}\", \"{}\"]\nage_recipients_file = \"{}\"",
            x25519.recipient,
            ed25519.recipient,
            file.display()
        ),
    );
    let variables = Walhalla::new(&area, &store)
        .with_env(
            "WALHALLA_AGE_RECIPIENTS",
            &format!("{}, {}", ed25519.recipient, x25519.recipient),
        )
        .with_env("WALHALLA_AGE_RECIPIENTS_FILE", file.to_str().unwrap());
    segments.push(&pushing, &segments.names[0]).succeeds();
    segments.push(&variables, &segments.names[1]).succeeds();
    let plain = Walhalla::new(&area, &store);
    for key in [&x25519, &in_file, &ed25519, &rsa] {
        for name in &segments.names {
            segments.assert_archived(&plain.opening_with(&key.identity), name);
        }
    }
    let stranger = Key::ssh(&area, "ed25519", "stranger");
    segments
        .fetch(&plain.opening_with(&stranger.identity), &segments.names[0])
        .0
        .exits_with(1);
}

#[test]
fn an_ssh_key_with_a_passphrase_is_refused_and_the_passphrase_named_as_the_reason() {
    let area = Area::new();
    let store = Store::directory(&area);
    let segments = Segments::make(&area, 1);
    let name = &segments.names[0];
    let plain = Walhalla::new(&area, &store);
    for kind in ["ed25519", "rsa"] {
        let key = Key::ssh(&area, kind, "sesame");
        // Its public key is as good as any.
        segments
            .push(&plain.encrypting_to(&[&key.recipient]), name)
            .succeeds();
        let (outcome, fetched) = segments.fetch(&plain.opening_with(&key.identity), name);
        outcome.exits_with(1).says(&[
            key.identity.to_str().unwrap(),
            "protected by a passphrase",
            "hint:",
        ]);
        assert!(fetched.is_none());
        std::fs::remove_file(store.object_of(name)).unwrap();
    }
}

#[test]
fn a_plugin_encrypts_and_decrypts_as_a_hardware_key_or_a_kms_would() {
    let area = Area::new();
    let store = Store::directory(&area);
    let key = Key::of_plugin(&area);
    let pushing = with_plugin(
        &area,
        &Walhalla::new(&area, &store).encrypting_to(&[&key.recipient]),
    );
    let mut primary = Cluster::create(&area, "primary", Shape::of(17));
    pushing.archive_from(&mut primary);
    fill(&primary);
    pushing.back_up(&primary);
    let end = make_history(&primary, "end").dump;
    let segment = primary.archive_everything();
    // The host can only encrypt; the digest in the header tells it of its own push.
    primary.sql("select pg_switch_wal()");
    pushing
        .run_in(&primary.data, &["wal-push", &format!("pg_wal/{segment}")])
        .succeeds()
        .says(&["was archived before"]);
    primary.stop();

    let opening = with_plugin(
        &area,
        &Walhalla::new(&area, &store).opening_with(&key.identity),
    );
    let mut restored = opening.restore(&area, 17, "restored", &[]);
    restored.start();
    restored.wait_until_promoted();
    restored.dump().assert_same_as(&end, "opened by a plugin");
    opening.run(&["verify"]).succeeds();
}

#[test]
fn a_plugin_that_is_not_in_path_is_named_and_nothing_is_written() {
    let area = Area::new();
    let store = Store::directory(&area);
    let segments = Segments::make(&area, 2);
    let [first, second] = [&segments.names[0], &segments.names[1]];
    let key = Key::of_plugin(&area);
    let plain = Walhalla::new(&area, &store);
    let without = plain.encrypting_to(&[&key.recipient]);
    segments
        .push(&with_plugin(&area, &without), first)
        .succeeds();

    segments
        .push(&without, second)
        .exits_with(2)
        .says(&[PLUGIN, "PATH"]);
    assert!(store.objects_named(second).is_empty());

    let (outcome, fetched) = segments.fetch(&plain.opening_with(&key.identity), first);
    outcome
        .exits_with(1)
        .says(&[PLUGIN, "is not in PATH", "hint:", "the server too"]);
    assert!(fetched.is_none());
    let other = Key::of_plugin(&area);
    let (outcome, fetched) = segments.fetch(
        &with_plugin(&area, &plain.opening_with(&other.identity)),
        first,
    );
    let outcome = outcome
        .exits_with(1)
        .says(&[other.identity.to_str().unwrap(), "hint:"]);
    // age puts marks of bidirectional text around names, which a terminal may show as rubbish.
    assert!(
        !outcome.stderr.contains(['\u{2068}', '\u{2069}']),
        "{outcome}"
    );
    assert!(fetched.is_none());
}

#[test]
fn a_plugin_that_fails_is_told_of_and_nothing_is_written() {
    let area = Area::new();
    let store = Store::directory(&area);
    let segments = Segments::make(&area, 2);
    let [first, second] = [&segments.names[0], &segments.names[1]];
    let key = Key::of_plugin(&area);
    let plain = Walhalla::new(&area, &store);
    let [pushing, opening] = [
        plain.encrypting_to(&[&key.recipient]),
        plain.opening_with(&key.identity),
    ]
    .map(|walhalla| with_plugin(&area, &walhalla));
    segments.push(&pushing, first).succeeds();

    // As if the hardware key were pulled out: the program dies, or ends without an answer.
    let program = area.path("plugins").join(PLUGIN);
    for script in ["#!/bin/sh\nkill -9 $$\n", "#!/bin/sh\nexit 0\n"] {
        std::fs::remove_file(&program).unwrap();
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        segments
            .push(&pushing, second)
            .exits_with(1)
            .says(&[second, PLUGIN, "hint:"]);
        assert!(store.objects_named(second).is_empty());
        segments.signal("recovery.signal");
        let (outcome, fetched) = segments.fetch(&opening, first);
        outcome
            .exits_with(200)
            .says(&[
                first,
                "the plugin of an identity",
                key.identity.to_str().unwrap(),
            ])
            .says(&["hint:", "age-plugin-NAME"]);
        assert!(fetched.is_none());
        // What cannot be opened today is not damaged.
        let outcome = opening.run(&["wal-verify", "--deep"]).exits_with(1);
        assert!(!outcome.to_string().contains("damaged"), "{outcome}");
    }
}

#[test]
fn keygen_makes_a_private_file_and_never_overwrites_one() {
    let area = Area::new();
    let key = Key::generate(&area, "walhalla.key");
    let metadata = std::fs::metadata(&key.identity).unwrap();
    assert_eq!(metadata.mode() & 0o7777, 0o600);
    let before = std::fs::read(&key.identity).unwrap();
    let path = key.identity.to_str().unwrap();
    let outcome = keygen(&["-o", path]).exits_with(1).says(&[path]);
    assert!(outcome.stdout.is_empty(), "{outcome}");
    assert_eq!(std::fs::read(&key.identity).unwrap(), before);
    keygen(&["-o", "/nonexistent/walhalla.key"]).exits_with(1);
}

#[test]
fn keygen_tells_the_recipient_that_age_keygen_tells() {
    let area = Area::new();
    let key = Key::generate(&area, "walhalla.key");
    let path = key.identity.to_str().unwrap();
    assert_eq!(
        keygen(&["-y", path]).succeeds().stdout.trim(),
        key.recipient
    );
    let by_age = run(host().command("age-keygen").args(["-y", path])).succeeds();
    assert_eq!(by_age.stdout.trim(), key.recipient);
    assert!(key.secret().starts_with("AGE-SECRET-KEY-1"));

    // And the other way: a key of age's own making.
    let made = area.path("age.key");
    run(host().command("age-keygen").arg("-o").arg(&made)).succeeds();
    let by_age = run(host().command("age-keygen").arg("-y").arg(&made)).succeeds();
    let by_walhalla = keygen(&["-y", made.to_str().unwrap()]).succeeds();
    assert_eq!(by_walhalla.stdout, by_age.stdout);

    let both = [key.secret(), Key::generate(&area, "second").secret()].join("\n");
    let both = write_private(&area, "both.key", &both);
    let json = keygen(&["-y", both.to_str().unwrap(), "--json"]).succeeds();
    assert_eq!(json.json()["recipients"].as_array().unwrap().len(), 2);

    let ssh = Key::ssh(&area, "ed25519", "");
    let told = keygen(&["-y", ssh.identity.to_str().unwrap()]).succeeds();
    let words: Vec<&str> = ssh.recipient.split(' ').take(2).collect();
    assert_eq!(told.stdout.trim(), words.join(" "));
}

#[test]
fn keygen_prints_json_with_the_recipient_and_where_the_identity_is() {
    let area = Area::new();
    let path = area.path("walhalla.key");
    let json = keygen(&["-o", path.to_str().unwrap(), "--json"])
        .succeeds()
        .json();
    assert_eq!(json["identity_file"], path.to_str().unwrap());
    assert!(json["recipient"].as_str().unwrap().starts_with("age1"));
    assert!(json.get("identity").is_none(), "{json}");
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let json = keygen(&["--json"]).succeeds().json();
    let identity = json["identity"].as_str().unwrap();
    let file = write_private(&area, "printed.key", identity);
    let told = keygen(&["-y", file.to_str().unwrap()]).succeeds();
    assert_eq!(told.stdout.trim(), json["recipient"].as_str().unwrap());
}

fn keygen(args: &[&str]) -> crate::support::Outcome {
    run(host().command(&host().program).arg("keygen").args(args))
}

/// Keys were changed between a full backup and its delta: whoever has the new one only can restore neither.
#[test]
fn a_plan_tells_that_a_chain_is_under_another_key() {
    let area = Area::new();
    let store = Store::directory(&area);
    let (old, new) = (
        Key::generate(&area, "old.key"),
        Key::generate(&area, "new.key"),
    );
    let plain = Walhalla::new(&area, &store);
    let both = plain.encrypting_to(&[&old.recipient, &new.recipient]);
    let mut primary = Cluster::create(&area, "primary", Shape::small(17));
    both.archive_from(&mut primary);
    plain.encrypting_to(&[&old.recipient]).back_up(&primary);
    primary.sql("create table t as select 1 as i");
    let data = primary.data.to_str().unwrap().to_owned();
    plain
        .encrypting_to(&[&new.recipient])
        .run_with(&primary, &["backup-push", &data, "--delta"])
        .succeeds();
    assert!(plain.newest_backup().ends_with("-D"));
    primary.archive_everything();
    primary.stop();
    let copy = area.path("copy");
    let opening = plain.opening_with(&new.identity);
    for args in [&["plan"][..], &["restore", copy.to_str().unwrap()]] {
        opening.run(args).exits_with(1).says(&["identity"]);
    }
    assert!(!copy.exists());
    let keys = Key::together(&area, "both.key", &[&old, &new]);
    plain.opening_with(&keys).run(&["plan"]).succeeds();
}
