//! `walhalla check`: every right that is missing is named, and nothing is left behind.

use crate::support::{
    Area, Cluster, Outcome, Shape, Store, Walhalla, fill, give_rights_back, host, make_read_only,
};

/// A server that archives, and a check of it.
struct Site {
    area: Area,
    store: Store,
    walhalla: Walhalla,
    cluster: Cluster,
}

impl Site {
    fn make() -> Self {
        let area = Area::new();
        let store = Store::directory(&area);
        let walhalla = Walhalla::new(&area, &store);
        let mut cluster = Cluster::create(&area, "primary", Shape::small(17));
        walhalla.archive_from(&mut cluster);
        Self {
            area,
            store,
            walhalla,
            cluster,
        }
    }

    fn check(&self, walhalla: &Walhalla, options: &[&str]) -> Outcome {
        let data = self.cluster.data.to_str().unwrap();
        let words = [&["check", data, "--json"][..], options].concat();
        walhalla.run_with(&self.cluster, &words)
    }

    /// Changes a setting of the server that needs no restart.
    fn set(&self, name: &str, value: &str) {
        self.cluster
            .sql(&format!("ALTER SYSTEM SET {name} = '{value}'"));
        self.cluster.sql("SELECT pg_reload_conf(), pg_sleep(1)");
    }
}

/// What is said of a check, whatever came out.
fn said(outcome: &Outcome, check: &str) -> serde_json::Value {
    let report = outcome.json();
    let groups = report["groups"].as_array().unwrap().iter();
    let mut all = groups.flat_map(|group| group["checks"].as_array().unwrap());
    all.find(|finding| finding["check"] == check)
        .unwrap_or_else(|| panic!("{check} in {outcome}"))
        .clone()
}

#[test]
fn a_server_that_archives_is_checked_to_the_end() {
    let site = Site::make();
    let data = site.cluster.data.to_str().unwrap();
    let outcome = site.check(&site.walhalla, &[]).succeeds();
    for check in [
        "archive_mode",
        "archive_command",
        "wal_level",
        "right to take a backup",
        "a segment arrives in the store",
        "it comes back as it was",
        "files in the spool",
        "room in the spool",
    ] {
        let found = said(&outcome, check);
        assert_eq!(found["state"], "ok", "{check}: {outcome}");
    }
    // The test's server has no timeout.
    let warnings = outcome.json()["warnings"].to_string();
    assert!(warnings.contains("archive_timeout = 60"), "{warnings}");
    let plain = site.walhalla.run_with(&site.cluster, &["check", data]);
    let plain = plain.succeeds();
    assert!(plain.stdout.contains("nothing failed; "), "{plain}");
}

#[test]
fn a_server_that_does_not_archive_here_is_found_out() {
    let site = Site::make();
    site.set("archive_command", "cp %p /dev/null");
    let outcome = site
        .check(&site.walhalla, &["--timeout", "3"])
        .exits_with(3);
    let command = said(&outcome, "archive_command");
    assert_eq!(command["state"], "failed");
    let what = command["problem"].as_str().unwrap();
    assert!(what.contains("does not call walhalla wal-push"), "{what}");
    let arrival = said(&outcome, "a segment arrives in the store");
    let what = arrival["problem"].as_str().unwrap();
    assert!(what.contains("it is not in this store"), "{what}");

    // The right program with the settings of another store.
    let elsewhere = Area::new();
    let other = Walhalla::new(&elsewhere, &Store::directory(&elsewhere));
    let outcome = site.check(&other, &["--no-switch"]);
    assert_eq!(said(&outcome, "archive_command")["state"], "failed");

    site.set("archive_command", "false");
    let outcome = site
        .check(&site.walhalla, &["--timeout", "3"])
        .exits_with(3);
    let arrival = said(&outcome, "a segment arrives in the store");
    let what = arrival["problem"].as_str().unwrap();
    assert!(what.contains("has not archived it"), "{what}");
}

#[test]
fn a_standby_is_asked_how_it_archives_if_it_does() {
    let site = Site::make();
    site.walhalla.back_up(&site.cluster);
    let mut standby = site
        .walhalla
        .restore_archiving(&site.area, 17, "standby", &["--standby"]);
    standby.configure("hot_standby = on");
    standby.start();
    let check = |standby: &Cluster| {
        let data = standby.data.to_str().unwrap();
        site.walhalla.run_with(standby, &["check", data, "--json"])
    };
    let outcome = check(&standby).succeeds();
    assert_eq!(said(&outcome, "archive")["state"], "ok", "{outcome}");
    standby.configure("archive_mode = always\narchive_command = 'true'");
    standby.stop();
    standby.start();
    let outcome = check(&standby).exits_with(3);
    let found = said(&outcome, "archive_command");
    assert_eq!(found["state"], "failed", "{outcome}");
}

#[test]
fn a_role_without_rights_is_told_what_to_grant() {
    let site = Site::make();
    site.cluster.sql("CREATE ROLE limited LOGIN");
    let connection = site.cluster.connection().into_iter();
    let owner = connection.fold(site.walhalla.without_env(&[]), |walhalla, (name, value)| {
        walhalla.with_env(&name, &value)
    });
    let limited = owner.with_env("PGUSER", "limited");
    let data = site.cluster.data.to_str().unwrap();
    let outcome = limited.run(&["check", data, "--json"]).exits_with(3);
    let right = said(&outcome, "right to take a backup");
    let what = right["problem"].as_str().unwrap();
    assert!(
        what.contains("GRANT EXECUTE ON FUNCTION pg_backup_start"),
        "{what}"
    );
    assert_eq!(
        said(&outcome, "right to switch segments")["state"],
        "warning"
    );
}

#[test]
fn what_a_command_of_another_user_left_behind_is_named() {
    assert!(host().is_root, "to make files of another user takes root");
    let site = Site::make();
    std::fs::write(site.store.path().join("left"), "").unwrap();
    let outcome = site.check(&site.walhalla, &["--no-switch"]).exits_with(3);
    let found = said(&outcome, "files in the store");
    let what = found["problem"].as_str().unwrap();
    assert!(what.contains("left") && what.contains("chown"), "{what}");
}

#[test]
fn a_host_that_only_restores_needs_no_right_to_write() {
    let area = Area::new();
    let store = Store::s3(&area);
    let writer = Walhalla::new(&area, &store);
    let mut cluster = Cluster::create(&area, "primary", Shape::small(17));
    writer.archive_from(&mut cluster);
    let empty = writer.run(&["check", "--read-only", "--json"]).succeeds();
    let what = said(&empty, "read the newest backup");
    assert!(
        what["problem"]
            .as_str()
            .unwrap()
            .contains("the store holds no cluster"),
        "{what}"
    );
    fill(&cluster);
    let id = writer.back_up(&cluster);
    // The history file of the backup comes after it.
    cluster.archive_everything();
    let before = store.objects_named("");
    let outcome = writer.run(&["check", "--read-only", "--json"]).succeeds();
    let found = said(&outcome, "read the newest backup");
    assert_eq!(
        (&found["state"], &found["note"]),
        (&"ok".into(), &id.clone().into())
    );
    assert_eq!(store.objects_named(""), before);
    // Objects that cannot be opened here are a problem of this host.
    let key = crate::support::Key::generate(&area, "key");
    let sealed = writer.encrypting_to(&[&key.recipient]);
    sealed.back_up(&cluster);
    let outcome = sealed
        .run(&["check", "--read-only", "--json"])
        .exits_with(3);
    let found = said(&outcome, "read the newest backup");
    assert!(
        found["problem"].as_str().unwrap().contains("encrypted"),
        "{found}"
    );
}

/// The problems of a check, as its JSON names them.
fn problems(outcome: &Outcome) -> Vec<(String, String)> {
    let found = outcome.json();
    assert_eq!(
        found["ok"].as_bool(),
        Some(found["problems"].as_array().unwrap().is_empty())
    );
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let problems = found["problems"].as_array().unwrap().iter();
    problems
        .map(|problem| (text(&problem["check"]), text(&problem["what"])))
        .collect()
}

#[test]
fn a_store_with_every_right_passes_and_is_left_as_it_was() {
    let area = Area::new();
    for store in [Store::directory(&area), Store::s3(&area)] {
        let walhalla = Walhalla::new(&area, &store);
        let outcome = walhalla.run(&["check"]).succeeds();
        for check in [
            "create an object",
            "refuse to create it again",
            "list objects",
            "delete them",
        ] {
            assert!(
                outcome.stdout.contains(&format!("ok       {check}")),
                "{outcome}"
            );
        }
        assert!(!outcome.stdout.contains("failed"), "{outcome}");
        let outcome = walhalla.run(&["check", "--json"]).succeeds();
        assert!(problems(&outcome).is_empty());
        let left = store.objects_named("");
        assert!(
            left.iter().all(|path| path.ends_with(".walhalla-probe")),
            "{left:?}"
        );
    }
}

#[test]
fn a_store_that_forgets_the_condition_of_uploads_in_parts_is_found_out() {
    let area = Area::new();
    let azure = Store::azure(&area);
    let walhalla = Walhalla::new(&area, &azure);
    walhalla.run(&["check"]).succeeds();

    // fake-gcs-server keeps the condition of a single put alone.
    let gcs = Store::gcs(&area);
    let walhalla = Walhalla::new(&area, &gcs);
    let outcome = walhalla.run(&["check", "--json"]).exits_with(3);
    let found = problems(&outcome);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].0, "refuse to create it again in parts");
}

#[test]
fn each_missing_right_is_named() {
    for (right, check) in [
        ("s3:PutObject", "create an object"),
        ("s3:GetObject", "read it back"),
        ("s3:ListBucket", "list objects"),
        ("s3:DeleteObject", "delete them"),
        (
            "s3:AbortMultipartUpload",
            "drop an upload that is not finished",
        ),
    ] {
        let area = Area::new();
        let store = Store::s3_denying(&area, &[right]);
        let walhalla = Walhalla::new(&area, &store);
        let outcome = walhalla.run(&["check", "--json"]).exits_with(3);
        let found = problems(&outcome);
        let of_check = found.iter().find(|(name, _)| name == check);
        let (_, what) = of_check.unwrap_or_else(|| panic!("{right}: {found:?}"));
        assert!(
            what.contains(&format!("the right {right} is missing")),
            "{what}"
        );
        let plain = walhalla.run(&["check"]).exits_with(3);
        assert!(
            plain.stdout.contains(right) && plain.stdout.contains("failed"),
            "{plain}"
        );
    }
}

#[test]
fn credentials_that_shall_not_delete_are_held_to_it() {
    let area = Area::new();
    let store = Store::s3_denying(&area, &["s3:DeleteObject"]);
    let walhalla = Walhalla::new(&area, &store);
    walhalla.run(&["check", "--append-only"]).succeeds();

    let area = Area::new();
    let walhalla = Walhalla::new(&area, &Store::directory(&area));
    let outcome = walhalla
        .run(&["check", "--append-only", "--json"])
        .exits_with(3);
    let found = problems(&outcome);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].1.contains("take"), "{found:?}");
}

#[test]
fn a_directory_that_cannot_be_written_is_a_problem() {
    let area = Area::new();
    let store = Store::directory(&area);
    let walhalla = Walhalla::new(&area, &store);
    make_read_only(store.path());
    let outcome = walhalla.run(&["check", "--json"]).exits_with(3);
    give_rights_back(store.path());
    let found = problems(&outcome);
    assert!(
        found[0].1.contains("write permission on the directory"),
        "{found:?}"
    );
}

#[test]
fn where_nothing_can_be_told_the_check_fails_with_the_reason() {
    let area = Area::new();
    let store = Store::s3(&area);
    let walhalla = Walhalla::new(&area, &store);
    let wrong = walhalla.with_env("AWS_SECRET_ACCESS_KEY", "wrong");
    let outcome = wrong.run(&["check"]).exits_with(1);
    outcome.says(&["the store does not accept the credentials"]);
    let other = walhalla
        .run(&["check", "--store", "s3://no-such-bucket"])
        .exits_with(1);
    other.says(&[
        "the bucket, container or directory does not exist",
        "no-such-bucket",
    ]);
    let plain = walhalla.with_env("AWS_ENDPOINT_URL_S3", "localhost:9000");
    let outcome = plain.run(&["check"]).exits_with(2);
    outcome.says(&["AWS_ENDPOINT_URL_S3", "https://"]);
}
