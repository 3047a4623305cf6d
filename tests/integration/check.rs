//! `walhalla check`: every right that is missing is named, and nothing is left behind.

use crate::support::{Area, Outcome, Store, Walhalla, give_rights_back, make_read_only};

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
        assert!(!outcome.stdout.contains("PROBLEM"), "{outcome}");
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
            plain.stdout.contains(right) && plain.stdout.contains("PROBLEM"),
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
