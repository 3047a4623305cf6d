//! Settings: where they come from, and what is said about wrong ones.

use std::process::Command;

use crate::support::{Area, host, run};

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
