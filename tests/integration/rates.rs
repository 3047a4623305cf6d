//! Rates: how long commands take at least that may not send, fetch or read as fast as they can. How long they take at most
//! decides nothing here.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Area, Cluster, Outcome, Segments, Shape, Store, Walhalla, run};

/// An uncompressed segment of 16 MiB takes two seconds.
const RATE: &str = "8MiB";
const RATE_BYTES: u64 = 8 << 20;

/// What so many bytes take at the rate.
fn least(bytes: u64) -> Duration {
    Duration::from_secs(1) * u32::try_from(bytes).unwrap() / u32::try_from(RATE_BYTES).unwrap()
}

#[track_caller]
fn assert_takes<T>(bytes: u64, work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let done = work();
    let elapsed = begun.elapsed();
    assert!(bytes > RATE_BYTES, "{bytes} bytes show no limit");
    assert!(elapsed >= least(bytes), "{bytes} bytes took {elapsed:?}");
    done
}

fn a_segment_goes_and_comes_at_its_rate(make: fn(&Area) -> Store) {
    let area = Area::new();
    let store = make(&area);
    let lines = "compression = \"none\"";
    let unlimited = Walhalla::with_settings(&area, &store, lines);
    let walhalla = unlimited
        .with_env("WALHALLA_UPLOAD_RATE", RATE)
        .with_env("WALHALLA_DOWNLOAD_RATE", RATE);
    let segments = Segments::make(&area, 1);
    let name = &segments.names[0];
    let bytes = segments.original(name).len() as u64;
    assert_takes(bytes, || segments.push(&walhalla, name).succeeds());
    let (outcome, fetched) = assert_takes(bytes, || segments.fetch(&walhalla, name));
    outcome.succeeds();
    assert!(fetched.unwrap() == segments.original(name));
    assert!(
        !store.summaries_named(name).is_empty(),
        "the summary was stored, too"
    );
}

#[test]
fn a_segment_goes_to_a_directory_and_comes_back_at_its_rate() {
    a_segment_goes_and_comes_at_its_rate(Store::directory);
}

#[test]
fn a_segment_goes_to_s3_and_comes_back_at_its_rate() {
    a_segment_goes_and_comes_at_its_rate(Store::s3);
}

/// Far longer than a failing request may be tried: no limit of time counts the wait for the rate.
#[test]
fn a_segment_that_waits_longer_than_retry_timeout_is_archived() {
    let area = Area::new();
    let store = Store::s3(&area);
    let lines = "compression = \"none\"\nretry_timeout = \"8s\"";
    let walhalla = Walhalla::with_settings(&area, &store, lines);
    let segments = Segments::make(&area, 1);
    let name = &segments.names[0];
    // 16 seconds: twice as long. A server on a busy machine needs its share of a limit, too.
    let limited = walhalla.with_env("WALHALLA_UPLOAD_RATE", "1MiB");
    let bytes = segments.original(name).len() as u64;
    assert_takes(8 * bytes, || segments.push(&limited, name).succeeds());
    segments.assert_archived(&walhalla, name);
}

/// What the server has marked ready goes up beside the segment that it asked for, at the same rate.
#[test]
fn segments_that_are_pushed_ahead_share_the_rate() {
    let area = Area::new();
    let store = Store::directory(&area);
    let lines = "compression = \"none\"";
    let walhalla = Walhalla::with_settings(&area, &store, lines);
    let limited = walhalla.with_env("WALHALLA_UPLOAD_RATE", "16MiB");
    let segments = Segments::make(&area, 3);
    segments
        .names
        .iter()
        .for_each(|name| segments.mark_ready(name));
    let bytes = { segments.names.iter() }
        .map(|name| segments.original(name).len() as u64)
        .sum::<u64>();
    // At twice the rate.
    let pushed = assert_takes(bytes / 2, || segments.push(&limited, &segments.names[0]));
    let pushed = pushed.succeeds();
    assert!(!pushed.stderr.contains("summary"), "{pushed}");
    for name in &segments.names {
        segments.assert_archived(&walhalla, name);
        assert!(!store.summaries_named(name).is_empty(), "{name}");
    }
}

/// A number of what `backup-push --json` or `backup-show --json` says.
fn number(backup: &Value, field: &str) -> u64 {
    backup[field].as_u64().unwrap()
}

fn back_up(walhalla: &Walhalla, cluster: &Cluster, flags: &[&str]) -> Outcome {
    let data = cluster.data.to_str().unwrap();
    let words = [&["--json", "backup-push", data], flags].concat();
    walhalla.run_with(cluster, &words).succeeds()
}

#[test]
fn a_backup_is_read_sent_and_fetched_at_its_rates() {
    let area = Area::new();
    let walhalla = Walhalla::new(&area, &Store::directory(&area));
    let mut cluster = Cluster::create(&area, "pg", Shape::small(17));
    walhalla.archive_from(&mut cluster);
    let full = back_up(&walhalla, &cluster, &[]).json();
    // What is made for the backup is not read from the directory, and files may become shorter.
    let read_bytes = number(&full, "size_bytes") / 10 * 9;
    assert_takes(read_bytes, || {
        back_up(&walhalla, &cluster, &["--read-rate", RATE])
    });
    let delta = ["--delta", "--changed-blocks", "pages", "--read-rate", RATE];
    assert_takes(read_bytes, || back_up(&walhalla, &cluster, &delta));

    let plain = walhalla.with_env("WALHALLA_COMPRESSION", "none");
    let flags = ["--upload-rate", RATE];
    let begun = Instant::now();
    let sent = back_up(&plain, &cluster, &flags).json();
    let elapsed = begun.elapsed();
    let stored_bytes = number(&sent, "stored_bytes");
    assert!(stored_bytes > RATE_BYTES);
    assert!(
        elapsed >= least(stored_bytes),
        "{stored_bytes}: {elapsed:?}"
    );

    let target = area.path("fetched");
    let flags = ["--download-rate", RATE, "backup-fetch"];
    let words = [target.to_str().unwrap(), "LATEST"];
    assert_takes(stored_bytes, || {
        walhalla.run(&[&flags[..], &words].concat()).succeeds()
    });
}

/// The row of a setting in `config --json`: its value, and what gave it.
fn shown(walhalla: &Walhalla, flags: &[&str], key: &str) -> (Value, Value) {
    let words = [&["config", "--json"], flags].concat();
    let rows = walhalla.run(&words).succeeds().json();
    let mut rows = rows.as_array().unwrap().iter();
    let row = rows.find(|row| row["key"] == key).unwrap();
    (row["value"].clone(), row["source"].clone())
}

#[test]
fn a_flag_wins_over_the_variable_and_that_over_the_file() {
    let area = Area::new();
    let store = Store::directory(&area);
    let lines = "upload_rate = \"1MiB\"\ndownload_rate = 2097152\nread_rate = \"3MiB\"";
    let file = Walhalla::with_settings(&area, &store, lines);
    let pair = |value: &str, source: &str| (Value::from(value), Value::from(source));
    for (key, value) in [
        ("upload_rate", "1MiB"),
        ("download_rate", "2097152"),
        ("read_rate", "3MiB"),
    ] {
        assert_eq!(shown(&file, &[], key), pair(value, "file"));
        let variable = format!("WALHALLA_{}", key.to_uppercase());
        let variable = file.with_env(&variable, "5MiB");
        assert_eq!(shown(&variable, &[], key), pair("5MiB", "variable"));
        if key != "read_rate" {
            let flag = format!("--{}", key.replace('_', "-"));
            let flags = [flag.as_str(), "6MiB"];
            assert_eq!(shown(&variable, &flags, key), pair("6MiB", "flag"));
        }
    }
    let none = Walhalla::on_host(&area, "other", &store, "");
    let nothing = (Value::Null, Value::from("default"));
    assert_eq!(shown(&none, &[], "upload_rate"), nothing);
}

#[test]
fn the_flag_wins_where_it_decides() {
    let area = Area::new();
    let store = Store::directory(&area);
    let lines = "compression = \"none\"\nupload_rate = \"1KiB\"";
    let walhalla = Walhalla::with_settings(&area, &store, lines);
    let walhalla = walhalla.with_env("WALHALLA_UPLOAD_RATE", "2KiB");
    let segments = Segments::make(&area, 1);
    let name = &segments.names[0];
    let path = format!("pg_wal/{name}");
    let words = ["wal-push", path.as_str(), "--upload-rate", RATE];
    // At the other rates it would take hours, and this test its time.
    let bytes = segments.original(name).len() as u64;
    assert_takes(bytes, || walhalla.run_in(&segments.data, &words).succeeds());
}

#[test]
fn what_is_no_rate_is_refused() {
    let area = Area::new();
    let walhalla = Walhalla::new(&area, &Store::directory(&area));
    for wrong in ["0", "0MiB", "-5", "fast", "1000", "2TiB", "10MiB/s"] {
        for key in ["upload_rate", "download_rate", "read_rate"] {
            let variable = format!("WALHALLA_{}", key.to_uppercase());
            let refused = walhalla.with_env(&variable, wrong);
            let refused = refused.run(&["backup-list"]).exits_with(2);
            refused.says(&[key, &variable]);
        }
        for flag in ["--upload-rate", "--download-rate"] {
            let flag = format!("{flag}={wrong}");
            walhalla.run(&["backup-list", &flag]).exits_with(2);
        }
        let flag = format!("--read-rate={wrong}");
        let refused = walhalla.run(&["backup-push", "/nowhere", &flag]);
        refused.exits_with(2).says(&["read_rate", "flag"]);
    }
    let refused = walhalla.with_env("WALHALLA_UPLOAD_RATE", "0");
    let refused = refused.run(&["backup-list"]).exits_with(2);
    refused.says(&["without the setting there is no limit"]);
    // A data directory is read by one command only.
    let other = walhalla.run(&["backup-list", "--read-rate", "1MiB"]);
    other.exits_with(2);
    run(&mut walhalla.command(&["backup-list", "--upload-rate"])).exits_with(2);
}
