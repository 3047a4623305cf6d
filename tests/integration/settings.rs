//! Settings: where they come from, and what is said about wrong ones.

use std::process::Command;

use serde_json::Value;

use crate::support::{Area, Segments, Store, Walhalla, host, run};

fn walhalla(args: &[&str]) -> Command {
    let mut command = host().command(&host().program);
    command.args(args);
    command
}

#[test]
fn an_unknown_key_is_refused_and_the_nearest_known_one_named() {
    let area = Area::new();
    let config = area.write(
        "walhalla.toml",
        "store = \"file:///nowhere\"\ncompresion = \"zstd\"\n",
    );
    let outcome = run(&mut walhalla(&[
        "--config",
        config.to_str().unwrap(),
        "config",
    ]))
    .exits_with(2);
    outcome.says(&["compresion", "compression", config.to_str().unwrap()]);
}

#[test]
fn a_variable_wins_over_the_file_and_a_flag_over_both() {
    let area = Area::new();
    let config = area.write("walhalla.toml", "store = \"file:///from/file\"\n");
    let config = config.to_str().unwrap();

    let from_file = run(&mut walhalla(&["--config", config, "config"])).succeeds();
    assert!(
        from_file.stdout.contains("file:///from/file") && from_file.stdout.contains(config),
        "{from_file}"
    );

    let mut command = walhalla(&["config"]);
    command
        .env("WALHALLA_CONFIG", config)
        .env("WALHALLA_STORE", "file:///from/variable");
    let from_variable = run(&mut command).succeeds();
    assert!(
        from_variable.stdout.contains("file:///from/variable"),
        "{from_variable}"
    );
    assert!(
        from_variable.stdout.contains("WALHALLA_STORE"),
        "{from_variable}"
    );
    assert!(
        !from_variable.stdout.contains("file:///from/file"),
        "{from_variable}"
    );

    let mut command = walhalla(&["--config", config, "--store", "file:///from/flag", "config"]);
    let from_flag = run(command.env("WALHALLA_STORE", "file:///from/variable")).succeeds();
    assert!(
        from_flag.stdout.contains("file:///from/flag"),
        "{from_flag}"
    );
    assert!(
        !from_flag.stdout.contains("file:///from/variable"),
        "{from_flag}"
    );
}

#[test]
fn the_length_of_a_chain_is_shown_and_what_is_no_number_refused() {
    let shown = |variable: Option<&str>| {
        let mut command = walhalla(&["config", "--json"]);
        let variable = variable.map(|text| ("WALHALLA_DELTA_MAX_CHAIN", text));
        let rows = run(command.envs(variable)).succeeds().json();
        let mut rows = rows.as_array().unwrap().iter();
        let row = rows.find(|row| row["key"] == "delta_max_chain").unwrap();
        (row["value"].clone(), row["origin"].clone())
    };
    assert_eq!(shown(None), ("6".into(), "default".into()));
    let origin = "WALHALLA_DELTA_MAX_CHAIN";
    assert_eq!(shown(Some("0")), ("0".into(), origin.into()));
    run(walhalla(&["config"]).env(origin, "-1"))
        .exits_with(2)
        .says(&["delta_max_chain", origin, "-1"]);
}

/// The rows of `config --json`.
fn rows(command: &mut Command) -> Vec<Value> {
    let document = run(command).succeeds().json();
    document.as_array().unwrap().clone()
}

/// Of a key's row, these fields.
fn fields(rows: &[Value], key: &str, names: &[&str]) -> Vec<Value> {
    let row = rows.iter().find(|row| row["key"] == key).unwrap();
    names.iter().map(|name| row[name].clone()).collect()
}

#[test]
fn config_says_of_each_setting_whether_file_variable_flag_or_default_gave_it() {
    let area = Area::new();
    let config = area.write("walhalla.toml", "compression = \"zstd:3\"\n");
    let config = config.to_str().unwrap();
    let flags = [
        "--config",
        config,
        "--store",
        "file:///srv",
        "--set",
        "s3_part_size=16MiB",
    ];
    let with = |last: &[&str]| {
        let mut command = walhalla(&[&flags[..], last].concat());
        command.env("WALHALLA_RETRY_TIMEOUT", "77s");
        command
    };
    let rows = rows(&mut with(&["config", "--json"]));
    let names = ["value", "source", "origin", "default"];
    let retry = "WALHALLA_RETRY_TIMEOUT";
    for (key, expected) in [
        ("store", ["file:///srv", "flag", "flag", "none"]),
        ("s3_part_size", ["16MiB", "flag", "flag", "8MiB"]),
        ("retry_timeout", ["77s", "variable", retry, "5min"]),
        ("compression", ["zstd:3", "file", config, "lz4"]),
        ("archive_timeout", ["60s", "default", "default", "60s"]),
    ] {
        assert_eq!(fields(&rows, key, &names), expected, "{key}");
    }
    // What the store decides has no value, and a default in words.
    assert_eq!(
        fields(&rows, "s3_sse", &names),
        [
            Value::Null,
            "default".into(),
            "default".into(),
            "the bucket's".into()
        ]
    );
    let settings = rows.iter().filter(|row| row["kind"] == "setting");
    for row in settings {
        for name in ["variable", "default", "documentation"] {
            assert!(
                row[name].as_str().is_some_and(|text| !text.is_empty()),
                "{row}"
            );
        }
    }

    let shown = run(&mut with(&["config"])).succeeds();
    for words in [
        vec!["s3_sse", "the bucket's", "default"],
        vec!["store", "file:///srv", "flag"],
        vec!["no_such_setting"],
    ] {
        let has = |line: &str| words.iter().all(|word| line.contains(word));
        let is_there = shown.stdout.lines().any(has);
        assert_eq!(is_there, words.len() > 1, "{words:?} in {shown}");
    }
}

#[test]
fn config_says_which_settings_file_was_looked_for() {
    let area = Area::new();
    let config = area.write("walhalla.toml", "");
    let config = config.to_str().unwrap();
    let names = ["value", "source", "is_found"];
    let sought = |command: &mut Command| fields(&rows(command), "settings_file", &names);

    let usual = "/etc/walhalla/walhalla.toml";
    assert!(
        !std::path::Path::new(usual).exists(),
        "{usual} would decide this test"
    );
    let expected = |path: &str, source: &str, is_found: bool| {
        [path.into(), source.into(), is_found.into()] as [Value; 3]
    };
    let mut nowhere = walhalla(&["config", "--json"]);
    assert_eq!(sought(&mut nowhere), expected(usual, "default", false));
    // An empty variable names no file.
    nowhere.env("WALHALLA_CONFIG", "");
    assert_eq!(sought(&mut nowhere), expected(usual, "default", false));
    nowhere.env("WALHALLA_CONFIG", config);
    assert_eq!(sought(&mut nowhere), expected(config, "variable", true));
    let mut flag = walhalla(&["--config", config, "config", "--json"]);
    assert_eq!(sought(&mut flag), expected(config, "flag", true));

    let shown = run(&mut walhalla(&["config"])).succeeds();
    let line = format!("settings file: {usual} (from default; not found)");
    assert!(shown.stdout.contains(&line), "{shown}");
}

#[test]
fn config_says_where_the_stores_credentials_would_come_from_and_shows_none() {
    let secrets = [
        ("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE"),
        ("AWS_SECRET_ACCESS_KEY", "verysecret-aws"),
        ("AWS_SESSION_TOKEN", "verysecret-token"),
        ("AZURE_STORAGE_SAS_TOKEN", "sv=1&sig=verysecret-sas"),
        ("AZURE_CLIENT_SECRET", "verysecret-client"),
        // A key where the path of its file is wanted.
        (
            "GOOGLE_APPLICATION_CREDENTIALS",
            "{\"private_key\": \"verysecret-google\"}",
        ),
    ];
    for (url, used, after) in [
        ("s3://bucket", "environment variables", "instance role"),
        ("gs://bucket", "file of a variable", "metadata server"),
        (
            "az://container",
            "shared access signature",
            "Entra managed identity",
        ),
    ] {
        let mut json = walhalla(&["--store", url, "config", "--json"]);
        let outcome = run(json.envs(secrets)).succeeds();
        let text = run(walhalla(&["--store", url, "config"]).envs(secrets)).succeeds();
        for outcome in [&outcome, &text] {
            assert!(
                !format!("{outcome}")
                    .split("exit status")
                    .nth(1)
                    .unwrap()
                    .contains("verysecret"),
                "{outcome}"
            );
        }
        let rows = outcome.json().as_array().unwrap().clone();
        let [value, sources] = &fields(&rows, "credentials", &["value", "sources"])[..] else {
            panic!("{outcome}");
        };
        assert_eq!(value, used, "{outcome}");
        let state = |name: &str| {
            let mut sources = sources.as_array().unwrap().iter();
            let source = sources.find(|source| source["name"] == name).unwrap();
            source["state"].clone()
        };
        assert_eq!(
            [state(used), state(after)],
            ["set, used", "not asked"],
            "{outcome}"
        );
        assert!(text.stdout.contains(used), "{text}");
    }
    let none = run(&mut walhalla(&["--store", "file:///srv", "config"])).succeeds();
    assert!(none.stdout.contains("a directory needs none"), "{none}");
}

#[test]
fn an_unknown_variable_is_refused_and_the_nearest_known_one_named() {
    let misspelt = "WALHALLA_AGE_RECIPENTS";
    let mut command = walhalla(&["config"]);
    run(command.env(misspelt, "age1recipient"))
        .exits_with(2)
        .says(&[misspelt, "hint:", "WALHALLA_AGE_RECIPIENTS"]);
    run(command.env(misspelt, "")).succeeds();
    run(command
        .env(misspelt, "age1recipient")
        .arg("--no-environment"))
    .succeeds();
    // The tests' own variables are in the shell of whoever develops this.
    run(walhalla(&["config"]).env("WALHALLA_TEST_KEEP", "1")).succeeds();
}

#[test]
fn an_unknown_variable_stops_archiving_and_is_no_end_of_the_archive() {
    let area = Area::new();
    let store = Store::directory(&area);
    let segments = Segments::make(&area, 1);
    let name = &segments.names[0];
    let plain = Walhalla::new(&area, &store);
    let misspelt = plain.with_env("WALHALLA_AGE_RECIPENTS", "age1recipient");
    segments
        .push(&misspelt, name)
        .exits_with(2)
        .says(&["WALHALLA_AGE_RECIPIENTS"]);
    assert!(store.objects_named("").is_empty());
    segments.push(&plain, name).succeeds();

    for (signal, code) in [
        (None, 2),
        (Some("recovery.signal"), 200),
        (Some("standby.signal"), 1),
    ] {
        if let Some(signal) = signal {
            std::fs::write(segments.data.join(signal), "").unwrap();
        }
        let (outcome, fetched) = segments.fetch(&misspelt, name);
        outcome
            .exits_with(code)
            .says(&[name, "WALHALLA_AGE_RECIPIENTS"]);
        assert!(fetched.is_none());
    }
}

#[test]
fn an_empty_variable_counts_as_not_set() {
    let area = Area::new();
    let config = area.write("walhalla.toml", "compression = \"zstd:3\"\n");
    let mut command = walhalla(&["--config", config.to_str().unwrap(), "config", "--json"]);
    command
        .env("WALHALLA_COMPRESSION", "")
        .env("WALHALLA_RETRY_TIMEOUT", "");
    let rows = rows(&mut command);
    let names = ["value", "source"];
    assert_eq!(fields(&rows, "compression", &names), ["zstd:3", "file"]);
    assert_eq!(fields(&rows, "retry_timeout", &names), ["5min", "default"]);
}

#[test]
fn wrong_usage_and_wrong_settings_exit_with_2() {
    let area = Area::new();
    let broken = area.write("broken.toml", "store = file\n");
    let number = area.write(
        "number.toml",
        "store = \"file:///x\"\nupload_concurrency = \"many\"\n",
    );
    let scheme = area.write("scheme.toml", "store = \"ftp://host/path\"\n");
    let codec = area.write(
        "codec.toml",
        "store = \"file:///x\"\ncompression = \"lzma\"\n",
    );
    for args in [
        vec!["no-such-command"],
        vec!["wal-push"],
        vec!["backup-list"],
        vec!["--config", "/nonexistent/walhalla.toml", "backup-list"],
        vec!["--config", broken.to_str().unwrap(), "backup-list"],
        vec!["--config", number.to_str().unwrap(), "backup-list"],
        vec!["--config", scheme.to_str().unwrap(), "backup-list"],
        vec!["--config", codec.to_str().unwrap(), "backup-list"],
    ] {
        let outcome = run(&mut walhalla(&args)).exits_with(2);
        assert!(!outcome.stderr.is_empty(), "no word about it: {outcome}");
        assert!(
            outcome.stdout.is_empty(),
            "an error on standard output: {outcome}"
        );
    }
}

#[test]
fn version_names_the_commit() {
    let outcome = run(&mut walhalla(&["--version"])).succeeds();
    assert!(outcome.stdout.starts_with("walhalla "), "{outcome}");
    let commit = run(Command::new("git").args(["rev-parse", "--short=7", "HEAD"])).succeeds();
    assert!(
        outcome.stdout.contains(commit.stdout.trim()),
        "no {} in {outcome}",
        commit.stdout.trim()
    );
}
