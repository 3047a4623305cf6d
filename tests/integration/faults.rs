//! A store on a line that fails: everything comes through, or fails in time and says so; nothing wrong ever lands.
//!
//! ```text
//! walhalla ─▶ Proxy (fails when told to) ─▶ S3 server
//! ```

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use walhalla_providers::testing::proxy::{Answer, Ending, Fault, Proxy, Requests, Side, When};

use crate::support::{
    Area, Cluster, Outcome, PgbenchLoad, Segments, Shape, Store, Walhalla, eventually, fill,
    make_history,
};

/// Far more than the two seconds that the tests let Walhalla try, for a loaded machine.
const PATIENCE: Duration = Duration::from_mins(1);

const HASTY: &str = "retry_timeout = \"2s\"";

/// Segments to archive, and a store that may fail.
struct Site {
    segments: Segments,
    /// Through the proxy.
    walhalla: Walhalla,
    /// Past it.
    direct: Walhalla,
    proxy: Proxy,
    store: Store,
    _area: Area,
}

impl Site {
    fn make(segments: usize, settings: &str) -> Self {
        let area = Area::new();
        let store = Store::s3(&area);
        let direct = Walhalla::with_settings(&area, &store, settings);
        let proxy = Proxy::start(store.address());
        Self {
            segments: Segments::make(&area, segments),
            walhalla: through(&proxy, &direct),
            direct,
            proxy,
            store,
            _area: area,
        }
    }

    /// The store's objects of a WAL file.
    fn objects(&self, name: &str) -> usize {
        // Without an object the server has no directory for them.
        let has_any = self.store.path().exists();
        if has_any {
            self.store.objects_named(name).len()
        } else {
            0
        }
    }

    /// A push fails in time with a message that says enough, and archives nothing.
    #[track_caller]
    fn push_fails(&self, name: &str, says: &[&str]) -> Outcome {
        let started = Instant::now();
        let outcome = self.segments.push(&self.walhalla, name);
        let took = started.elapsed();
        assert!(took < PATIENCE, "after {took:?}: {outcome}");
        let outcome = outcome
            .exits_within(1..=125)
            .says(&["error:", "hint:", name]);
        let outcome = outcome.says(says);
        assert_eq!(self.objects(name), 0, "archived all the same: {outcome}");
        outcome
    }

    /// Recovery is stopped, a standby goes on asking, and neither hears that the file is not there.
    #[track_caller]
    fn fetch_cannot_tell(&self, name: &str) {
        for (signal, code) in [("recovery.signal", 200), ("standby.signal", 1)] {
            self.segments.signal(signal);
            let started = Instant::now();
            let (outcome, fetched) = self.segments.fetch(&self.walhalla, name);
            let took = started.elapsed();
            assert!(took < PATIENCE, "after {took:?}: {outcome}");
            outcome.exits_with(code).says(&["error:", name]);
            assert!(fetched.is_none(), "{name} was handed over");
        }
    }
}

fn through(proxy: &Proxy, walhalla: &Walhalla) -> Walhalla {
    walhalla.with_env("AWS_ENDPOINT_URL_S3", &proxy.endpoint())
}

fn silence() -> Fault {
    Fault::Break {
        side: Side::Request,
        after_bytes: 0,
        ending: Ending::Silence,
    }
}

fn refusal(status: u16, code: &str) -> Answer {
    let body = format!("<Error><Code>{code}</Code><Message>why</Message></Error>");
    Answer::status(status).body(&body)
}

/// A cut, a reset, a lost answer or a 503 every few requests, and latency.
fn make_flaky(proxy: &Proxy) {
    proxy.delay(Duration::from_millis(3));
    let slow_down = Fault::Answer(refusal(503, "SlowDown"));
    let cut = |side, ending| Fault::Break {
        side,
        after_bytes: 30_000,
        ending,
    };
    let get = || Requests::with_method("GET");
    proxy.on(Requests::all(), When::Every(5), slow_down);
    proxy.on(get(), When::Every(2), cut(Side::Answer, Ending::Reset));
    proxy.on(
        Requests::with_method("PUT"),
        When::Every(3),
        cut(Side::Request, Ending::Reset),
    );
    proxy.on(
        Requests::all(),
        When::Every(7),
        Fault::LoseAnswer(Ending::Close),
    );
}

#[test]
fn a_cluster_comes_back_over_a_flaky_line() {
    let area = Area::new();
    let store = Store::s3(&area);
    let proxy = Proxy::start(store.address());
    let direct = Walhalla::with_settings(&area, &store, "s3_part_size = \"5MiB\"");
    let walhalla = through(&proxy, &direct);
    make_flaky(&proxy);

    let mut primary = Cluster::create(&area, "primary", Shape::of(17));
    walhalla.archive_from(&mut primary);
    fill(&primary);
    let load = PgbenchLoad::start(&primary);
    let backup = walhalla.back_up(&primary);
    load.stop(&primary);
    let end = make_history(&primary, "end");
    primary.archive_everything();
    primary.stop();

    let mut restored = walhalla.restore(&area, 17, "restored", &[]);
    restored.start();
    restored.wait_until_promoted();
    restored
        .dump()
        .assert_same_as(&end.dump, "restored over a flaky line");
    restored.amcheck();
    restored.stop();

    // By hand: the files of the backup, and each segment when recovery asks for it.
    let data = area.path("recovered");
    walhalla
        .run(&["backup-fetch", data.to_str().unwrap(), &backup])
        .succeeds();
    area.write("recovered/recovery.signal", "");
    let mut recovered = Cluster::adopt(&area, 17, data);
    walhalla.recover(&mut recovered);
    recovered.start();
    recovered.wait_until_promoted();
    recovered
        .dump()
        .assert_same_as(&end.dump, "recovered over a flaky line");
    assert!(proxy.count(&Requests::all()) > 50, "the line was used");
}

#[test]
fn a_store_that_falls_silent_is_told_in_time_and_acknowledges_nothing() {
    let site = Site::make(1, HASTY);
    let name = &site.segments.names[0];
    let deadline = [
        "the deadline passed",
        "did not answer in time",
        "retry_timeout",
    ];
    site.proxy.always(silence());
    site.push_fails(name, &deadline);
    site.proxy.heal();
    // It may also take what it is asked for the segment, and the segment never.
    site.proxy
        .on(Requests::with_method("PUT"), When::Always, silence());
    site.push_fails(name, &deadline);
    site.proxy.heal();

    site.segments.push(&site.walhalla, name).succeeds();
    site.proxy.always(silence());
    site.fetch_cannot_tell(name);
    site.fetch_cannot_tell("0000000100000000000000FE");
    site.fetch_cannot_tell("00000002.history");
    site.proxy.heal();
    site.segments.assert_archived(&site.walhalla, name);
}

#[test]
fn a_dead_or_failing_server_is_told_in_time_and_acknowledges_nothing() {
    let site = Site::make(1, HASTY);
    let name = &site.segments.names[0];
    site.proxy.refuse();
    site.push_fails(
        name,
        &["the deadline passed", "could not be reached", "refused"],
    );
    site.fetch_cannot_tell(name);
    site.proxy.accept();

    let lasting = [
        (refusal(500, "InternalError"), "the deadline passed"),
        (refusal(503, "SlowDown"), "HTTP 503"),
        (
            refusal(503, "SlowDown").header("Retry-After", "3600"),
            "asked to slow down and to wait 3600 s",
        ),
        (refusal(400, "ExpiredToken"), "ExpiredToken"),
        (refusal(403, "AccessDenied"), "AccessDenied"),
        (Answer::status(401), "HTTP 401"),
        (Answer::status(404), "HTTP 404"),
        (Answer::status(502).body("<html>"), "the deadline passed"),
    ];
    for (answer, says) in lasting {
        site.proxy.always(Fault::Answer(answer));
        let started = Instant::now();
        let outcome = site.segments.push(&site.walhalla, name);
        assert!(started.elapsed() < PATIENCE, "{outcome}");
        outcome.exits_within(1..=125).says(&["error:", name, says]);
        assert_eq!(site.objects(name), 0);
        site.fetch_cannot_tell(name);
        site.proxy.heal();
    }
    site.segments.push(&site.walhalla, name).succeeds();
    site.segments.assert_archived(&site.walhalla, name);
}

#[test]
fn a_push_whose_answer_was_lost_is_a_success_and_archived_once() {
    for settings in ["", "compression = \"none\""] {
        let site = Site::make(2, settings);
        let endings = [Ending::Close, Ending::Reset];
        for (name, ending) in site.segments.names.iter().zip(endings) {
            let put = Requests::naming(format!("/wal/00000001/{name}")).and_method("PUT");
            site.proxy
                .on(put.clone(), When::Nth(1), Fault::LoseAnswer(ending));
            let before = site.proxy.count(&put);
            site.segments.push(&site.walhalla, name).succeeds();
            assert_eq!(site.proxy.count(&put) - before, 2, "sent again");
            assert_eq!(site.objects(name), 1, "archived once");
            site.segments.assert_archived(&site.direct, name);
            site.segments.push(&site.walhalla, name).succeeds();
            site.proxy.heal();
        }
    }
}

#[test]
fn no_wrong_byte_is_archived_or_handed_over() {
    for settings in ["", "compression = \"none\""] {
        let site = Site::make(1, settings);
        let name = &site.segments.names[0];
        let flip = |side| Fault::Flip { side, at: 20_000 };
        let puts = || Requests::with_method("PUT");
        site.proxy.on(puts(), When::Always, flip(Side::Request));
        site.push_fails(name, &["the bytes are damaged", "BadDigest", "memory"]);
        site.proxy.heal();
        site.proxy.on(puts(), When::Nth(1), flip(Side::Request));
        site.segments.push(&site.walhalla, name).succeeds();
        site.segments.assert_archived(&site.direct, name);

        site.proxy.always(flip(Side::Answer));
        site.fetch_cannot_tell(name);
        site.proxy.heal();
        let gets = || Requests::with_method("GET").and_naming(name.as_str());
        site.proxy.on(gets(), When::Nth(1), flip(Side::Answer));
        site.segments.assert_archived(&site.walhalla, name);
        site.proxy.heal();
        // Of a download that was cut and read on the store's checksum says nothing: the segment's own have to.
        let cut = Fault::Break {
            side: Side::Answer,
            after_bytes: 10_000,
            ending: Ending::Reset,
        };
        site.proxy.on(gets(), When::Nth(1), cut);
        site.proxy.on(gets(), When::Always, flip(Side::Answer));
        site.fetch_cannot_tell(name);
        site.proxy.heal();
        site.segments.assert_archived(&site.walhalla, name);
    }
}

#[test]
fn a_download_that_trickles_is_given_up() {
    let site = Site::make(1, HASTY);
    let name = &site.segments.names[0];
    site.segments.push(&site.walhalla, name).succeeds();
    let trickle = Fault::Slow {
        side: Side::Answer,
        bytes: 1,
        every: Duration::from_millis(200),
    };
    site.proxy.always(trickle);
    site.fetch_cannot_tell(name);
    site.proxy.heal();
    site.segments.assert_archived(&site.walhalla, name);
}

#[test]
fn a_push_killed_in_the_middle_of_an_upload_leaves_nothing_visible() {
    let site = Site::make(1, "compression = \"none\"");
    let name = &site.segments.names[0];
    let put = Requests::naming(name.as_str()).and_method("PUT");
    let stall = Fault::Break {
        side: Side::Request,
        after_bytes: 1 << 20,
        ending: Ending::Silence,
    };
    site.proxy.on(put, When::Always, stall);
    let mut push = site
        .walhalla
        .command(&["wal-push", &format!("pg_wal/{name}")]);
    let push = push
        .current_dir(&site.segments.data)
        .stderr(Stdio::null())
        .spawn();
    let mut push = push.unwrap();
    eventually("the beginning of the segment", PATIENCE, || {
        site.proxy.passed_bytes(Side::Request) >= 1 << 20
    });
    push.kill().unwrap();
    push.wait().unwrap();
    assert_eq!(site.objects(name), 0);
    site.segments.assert_not_archived(&site.direct, name);

    site.proxy.heal();
    site.segments.push(&site.walhalla, name).succeeds();
    site.segments.assert_archived(&site.walhalla, name);
}

#[test]
fn a_server_whose_store_is_away_keeps_its_wal_and_archives_it_afterwards() {
    let area = Area::new();
    let store = Store::s3(&area);
    let proxy = Proxy::start(store.address());
    let walhalla = through(&proxy, &Walhalla::with_settings(&area, &store, HASTY));
    let mut primary = Cluster::create(&area, "primary", Shape::of(17));
    walhalla.archive_from(&mut primary);
    fill(&primary);
    let backup = walhalla.back_up(&primary);

    proxy.refuse();
    primary.sql("insert into ledger values ('away', 'written while the store was away')");
    let segment = primary.switch_segment();
    eventually("the archiver to fail", PATIENCE, || {
        primary.sql("select failed_count > 0 from pg_stat_archiver") == "t"
    });
    assert!(primary.segment_path(&segment).exists());
    assert_eq!(store.objects_named(&segment).len(), 0);
    let push = ["backup-push", primary.data.to_str().unwrap()];
    let failed = walhalla.run_with(&primary, &push);
    failed.exits_with(1).says(&["error:", "hint:"]);
    proxy.accept();

    assert_eq!(walhalla.backup_ids(), [backup]);
    let end = make_history(&primary, "end");
    // Its archiver sleeps after three failures, until there is something new.
    primary.archive_everything();
    primary.stop();
    let mut restored = walhalla.restore(&area, 17, "restored", &[]);
    restored.start();
    restored.wait_until_promoted();
    restored
        .dump()
        .assert_same_as(&end.dump, "after the store was away");
}

/// A profile whose credentials the server takes for two seconds, while it says that they last an hour; each time that
/// they are asked for, the other file gets a line.
fn short_lived_credentials(area: &Area) -> (PathBuf, PathBuf) {
    let asked = area.write("asked", "");
    let script = format!(
        r#"now=$(date +%s)
echo asked >>{asked}
echo "{{\"Version\": 1, \"AccessKeyId\": \"walhalla-test-key-until-$((now + 2))\",
  \"SecretAccessKey\": \"walhalla-test-secret\", \"SessionToken\": \"token\",
  \"Expiration\": \"$(date -u -d @$((now + 3600)) +%FT%TZ)\"}}"
"#,
        asked = asked.display()
    );
    let script = area.write("credentials.sh", script);
    let profile = format!("[default]\ncredential_process = sh {}\n", script.display());
    (area.write("aws-config", profile), asked)
}

#[test]
fn credentials_that_expire_in_the_middle_of_a_backup_are_loaded_anew() {
    let area = Area::new();
    let store = Store::s3(&area);
    let direct = Walhalla::with_settings(&area, &store, "upload_concurrency = 1");
    let mut primary = Cluster::create(&area, "primary", Shape::of(17));
    direct.archive_from(&mut primary);
    fill(&primary);

    let proxy = Proxy::start(store.address());
    proxy.delay(Duration::from_millis(700));
    let (profile, asked) = short_lived_credentials(&area);
    let hasty = through(&proxy, &direct)
        .without_env(&["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
        .with_env("AWS_CONFIG_FILE", profile.to_str().unwrap());
    hasty
        .run_with(&primary, &["backup-push", primary.data.to_str().unwrap()])
        .succeeds();
    let asked = std::fs::read_to_string(asked).unwrap().lines().count();
    assert!(
        asked >= 2,
        "the credentials did not expire while the backup ran"
    );

    primary.archive_everything();
    let end = primary.dump();
    let mut restored = direct.restore(&area, 17, "restored", &[]);
    restored.start();
    restored.wait_until_promoted();
    restored.dump().assert_same_as(&end, "after the renewal");
}
