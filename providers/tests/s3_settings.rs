//! What S3's settings put on requests, servers that lack what is relied on, and credentials that expire.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "../examples/s3_server/server.rs"]
mod server;
mod support;

use std::path::Path;
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use bytes::Bytes;
use support::{answer, canned, recorded, shown};
use walhalla_providers::s3::S3Store;
use walhalla_providers::testing::conformance::quick_options;
use walhalla_providers::transfer::{
    ConditionalWrites, ObjectLock, S3Settings, Store, StoreSettings, open,
};
use walhalla_providers::{
    Error, ErrorKind, ListRequest, Location, ObjectKey, ObjectStore, PartAt, PutMode, PutToken,
    UploadId,
};

fn store_at(endpoint: &str, settings: S3Settings) -> S3Store {
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .endpoint_url(endpoint)
        .credentials_provider(Credentials::new("key", "secret", None, None, "test"))
        .force_path_style(true)
        .retry_config(RetryConfig::disabled());
    let settings = StoreSettings {
        s3: settings,
        ..StoreSettings::default()
    };
    let location = Location::new("s3", "bucket", "some/prefix");
    S3Store::with_client(Client::from_conf(config.build()), location, &settings).unwrap()
}

fn conditional(writes: ConditionalWrites) -> S3Settings {
    S3Settings {
        conditional_writes: Some(writes),
        ..S3Settings::default()
    }
}

fn key() -> ObjectKey {
    ObjectKey::new("object").unwrap()
}

async fn create(store: &S3Store) -> Result<(), Error> {
    let body = Bytes::from_static(b"body");
    store
        .put(&key(), body, PutMode::Create, &PutToken::random())
        .await
}

fn done() -> String {
    answer("200 OK", "ETag: \"e\"\r\n", "")
}

fn refused(status: &str, code: &str) -> String {
    let body = format!("<Error><Code>{code}</Code><Message>why</Message></Error>");
    answer(status, "", &body)
}

fn taken() -> String {
    refused("412 Precondition Failed", "PreconditionFailed")
}

#[tokio::test]
async fn a_server_that_overwrites_in_silence_is_found_out_before_the_first_create() {
    let (url, requests) = recorded(vec![done(), done(), done()]).await;
    let store = store_at(&url, conditional(ConditionalWrites::Probe));
    let error = create(&store).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported);
    assert!(shown(&error).contains("s3_conditional_writes"), "{error}");
    let requests = requests.lock().unwrap();
    assert_eq!(requests.len(), 2, "nothing else was stored");
    for request in requests.iter() {
        assert!(request.starts_with("put /bucket/some/prefix/.walhalla-probe"));
        assert!(request.contains("if-none-match: *"));
    }
}

#[tokio::test]
async fn a_server_that_keeps_the_condition_is_asked_once() {
    for probed in [vec![taken()], vec![done(), taken()]] {
        let asked = probed.len();
        let (url, requests) = recorded([probed, vec![done(), done()]].concat()).await;
        let store = store_at(&url, conditional(ConditionalWrites::Probe));
        create(&store).await.unwrap();
        create(&store).await.unwrap();
        let requests = requests.lock().unwrap();
        assert_eq!(requests.len(), asked + 2);
        assert!(requests[asked].starts_with("put /bucket/some/prefix/object"));
    }
}

#[tokio::test]
async fn a_probe_that_fails_for_another_reason_says_so_and_is_made_again() {
    let unavailable = refused("500 Internal Server Error", "InternalError");
    let url = canned(vec![unavailable, taken(), done()]).await;
    let store = store_at(&url, conditional(ConditionalWrites::Probe));
    let error = create(&store).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    create(&store).await.unwrap();

    let denied = || refused("403 Forbidden", "AccessDenied");
    let url = canned(vec![denied(), denied(), denied()]).await;
    let store = store_at(&url, conditional(ConditionalWrites::Probe));
    let error = create(&store).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::PermissionDenied);
}

#[tokio::test]
async fn a_server_without_conditions_or_checksums_is_told_by_the_setting_that_helps() {
    let unknown = || refused("501 Not Implemented", "NotImplemented");
    let bad = || refused("400 Bad Request", "InvalidArgument");
    for (answers, setting) in [
        (
            vec![unknown(), done()],
            "s3_conditional_writes = \\\"off\\\"",
        ),
        (vec![bad(), bad(), done()], "s3_checksums = false"),
    ] {
        let url = canned(answers).await;
        let store = store_at(&url, conditional(ConditionalWrites::Probe));
        let error = create(&store).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unsupported);
        let shown = shown(&error).replace('"', "\\\"").replace("\\\\", "\\");
        assert!(shown.contains(setting), "{shown}");
    }
}

#[tokio::test]
async fn an_answer_that_passes_says_nothing_of_what_the_server_lacks() {
    for (status, code) in [
        ("409 Conflict", "ConditionalRequestConflict"),
        ("429 Too Many Requests", "TooManyRequests"),
        ("408 Request Timeout", "RequestTimeout"),
        ("400 Bad Request", "ExpiredToken"),
    ] {
        let (url, requests) = recorded(vec![refused(status, code), done(), done()]).await;
        let store = store_at(&url, conditional(ConditionalWrites::Probe));
        let error = create(&store).await.unwrap_err();
        assert_ne!(
            error.kind,
            ErrorKind::Unsupported,
            "{code}: {}",
            shown(&error)
        );
        assert_eq!(
            requests.lock().unwrap().len(),
            1,
            "{code}: no other put was tried"
        );
    }
}

#[tokio::test]
async fn without_conditions_a_create_looks_first() {
    let absent = || "HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\n".to_owned();
    let no_key = refused("404 Not Found", "NoSuchKey");
    let (url, requests) = recorded(vec![absent(), no_key, done()]).await;
    let store = store_at(&url, conditional(ConditionalWrites::Off));
    create(&store).await.unwrap();
    let requests = requests.lock().unwrap().clone();
    assert!(requests[0].starts_with("head "));
    assert!(requests[2].starts_with("put ") && !requests[2].contains("if-none-match"));

    let there = answer(
        "200 OK",
        "Last-Modified: Sat, 21 Nov 2026 04:30:00 GMT\r\n",
        "",
    );
    let (url, requests) = recorded(vec![there]).await;
    let store = store_at(&url, conditional(ConditionalWrites::Off));
    let error = create(&store).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::AlreadyExists);
    assert_eq!(requests.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn what_a_server_only_pretends_to_do_is_a_shortcoming() {
    // Keeps the condition, but takes a body with a checksum that is not its own.
    let url = canned(vec![taken(), done()]).await;
    let store = store_at(&url, conditional(ConditionalWrites::Probe));
    let found = store.shortcomings().await.unwrap();
    assert_eq!(found.len(), 1);
    assert!(found[0].contains("checksum"), "{found:?}");

    let bad_digest = refused("400 Bad Request", "BadDigest");
    let url = canned(vec![done(), done(), bad_digest.clone()]).await;
    let store = store_at(&url, conditional(ConditionalWrites::Probe));
    let found = store.shortcomings().await.unwrap();
    assert_eq!(found.len(), 1);
    assert!(found[0].contains("If-None-Match"), "{found:?}");

    let url = canned(vec![taken(), bad_digest]).await;
    let store = store_at(&url, conditional(ConditionalWrites::Trust));
    assert!(store.shortcomings().await.unwrap().is_empty());
}

#[tokio::test]
async fn encryption_class_lock_and_payer_are_on_every_new_object() {
    let settings = S3Settings {
        encryption: Some("aws:kms".to_owned()),
        kms_key_id: Some("arn:aws:kms:eu-central-1:1:key/2".to_owned()),
        storage_class: Some("STANDARD_IA".to_owned()),
        object_lock: Some(ObjectLock {
            mode: "COMPLIANCE".to_owned(),
            days: 30,
        }),
        requester_pays: true,
        ..S3Settings::default()
    };
    let begun =
        "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>";
    let answers = vec![done(), answer("200 OK", "", begun)];
    let (url, requests) = recorded(answers).await;
    let store = store_at(&url, settings);
    create(&store).await.unwrap();
    store
        .start_upload(&key(), PutMode::Create, &PutToken::random())
        .await
        .unwrap();
    for request in requests.lock().unwrap().iter() {
        for header in [
            "x-amz-server-side-encryption: aws:kms",
            "x-amz-server-side-encryption-aws-kms-key-id: arn:aws:kms:eu-central-1:1:key/2",
            "x-amz-storage-class: standard_ia",
            "x-amz-object-lock-mode: compliance",
            "x-amz-request-payer: requester",
        ] {
            assert!(request.contains(header), "{header} in {request}");
        }
        let until = request
            .lines()
            .find_map(|line| line.strip_prefix("x-amz-object-lock-retain-until-date: "))
            .unwrap();
        let until: jiff::Timestamp = until.to_uppercase().parse().unwrap();
        let days = until.duration_since(jiff::Timestamp::now()).as_hours();
        assert!((30 * 24 - 2..=30 * 24).contains(&days), "{until}");
    }
}

#[tokio::test]
async fn the_requester_pays_for_every_request() {
    let settings = S3Settings {
        requester_pays: true,
        ..S3Settings::default()
    };
    let (url, requests) = recorded(vec![taken(); 8]).await;
    let (store, key) = (store_at(&url, settings), key());
    let upload = walhalla_providers::UploadId("u".to_owned());
    let _ = store
        .put_part(&key, &upload, PartAt::FIRST, Bytes::new())
        .await;
    let _ = store
        .complete_upload(&key, &upload, &[], PutMode::Overwrite)
        .await;
    let _ = store.abort_upload(&key, &upload).await;
    let _ = store.get(&key, 0, None).await;
    let _ = store.head(&key).await; // asks a second time, by GET
    let _ = store.list(&ListRequest::default()).await;
    let _ = store.delete(std::slice::from_ref(&key)).await;
    let requests = requests.lock().unwrap();
    assert_eq!(requests.len(), 8);
    for request in requests.iter() {
        assert!(
            request.contains("x-amz-request-payer: requester"),
            "{request}"
        );
    }
}

/// The settings of the environment belong to a process, so these tests run themselves as another one.
fn run_child(test: &str, variables: &[(&str, &str)]) -> std::process::Output {
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", test, "--nocapture"]).env_clear();
    child.envs([
        ("WALHALLA_TEST_CHILD", "1"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ]);
    child.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    child.envs(variables.iter().copied());
    child.output().unwrap()
}

/// A script that gives credentials which the server takes for two seconds, and says that they last an hour.
fn credential_process(dir: &Path) -> std::path::PathBuf {
    let config = dir.join("config");
    let script = dir.join("credentials.sh");
    let text = r#"now=$(date +%s)
echo "{\"Version\": 1, \"AccessKeyId\": \"key-until-$((now + 2))\", \"SecretAccessKey\": \"secret\",
  \"SessionToken\": \"token\", \"Expiration\": \"$(date -u -d @$((now + 3600)) +%FT%TZ)\"}"
"#;
    std::fs::write(&script, text).unwrap();
    let profile = format!("[default]\ncredential_process = sh {}\n", script.display());
    std::fs::write(&config, profile).unwrap();
    config
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_that_expire_in_the_middle_of_an_upload_are_loaded_anew() {
    if std::env::var_os("WALHALLA_TEST_CHILD").is_some() {
        return upload_slowly().await;
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("bucket")).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let root = dir.path().to_owned();
    tokio::spawn(async move { server::serve(listener, &root, "key", "secret", &[]).await });
    let config = credential_process(dir.path());
    let child = tokio::task::spawn_blocking(move || {
        let name = "credentials_that_expire_in_the_middle_of_an_upload_are_loaded_anew";
        let config = config.to_str().unwrap();
        run_child(
            name,
            &[
                ("AWS_CONFIG_FILE", config),
                ("AWS_ENDPOINT_URL_S3", &endpoint),
            ],
        )
    });
    let output = child.await.unwrap();
    assert!(output.status.success(), "{output:?}");
    let stored = std::fs::metadata(dir.path().join("bucket/prefix/object")).unwrap();
    assert_eq!(stored.len(), 3 * (9 << 20));
}

async fn upload_slowly() {
    let store = open("s3://bucket/prefix", &StoreSettings::default())
        .await
        .unwrap();
    let store = Store::new(store, quick_options());
    let mut upload = store.upload(key(), PutMode::Create);
    for number in 0..3 {
        upload
            .write(Bytes::from(vec![number; 9 << 20]))
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(2_500)).await;
    }
    upload.finish().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_that_stay_expired_are_refused_soon() {
    if std::env::var_os("WALHALLA_TEST_CHILD").is_some() {
        let store = open("s3://bucket/prefix", &StoreSettings::default())
            .await
            .unwrap();
        let store = Store::new(store, quick_options());
        let error = store.head(&key()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unauthenticated, "{}", shown(&error));
        assert!(shown(&error).contains("ExpiredToken"));
        assert!(!shown(&error).contains("secret"));
        return;
    }
    let expired = || refused("400 Bad Request", "ExpiredToken");
    let endpoint = canned(vec![expired(); 50]).await;
    let child = tokio::task::spawn_blocking(move || {
        run_child(
            "credentials_that_stay_expired_are_refused_soon",
            &[
                ("AWS_ACCESS_KEY_ID", "key"),
                ("AWS_SECRET_ACCESS_KEY", "secret"),
                ("AWS_SESSION_TOKEN", "token"),
                ("AWS_ENDPOINT_URL_S3", &endpoint),
            ],
        )
    });
    let output = child.await.unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test]
async fn an_endpoint_without_a_protocol_is_refused() {
    if std::env::var_os("WALHALLA_TEST_CHILD").is_some() {
        let error = open("s3://bucket/prefix", &StoreSettings::default())
            .await
            .unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert!(shown(&error).contains("http://"), "{}", shown(&error));
        return;
    }
    let name = "an_endpoint_without_a_protocol_is_refused";
    let output = run_child(name, &[("AWS_ENDPOINT_URL_S3", "127.0.0.1:9000")]);
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test]
async fn a_body_that_is_not_signed_has_a_signed_checksum() {
    for (sign_bodies, is_signed) in [(None, true), (Some(true), true), (Some(false), false)] {
        let (url, requests) = recorded(vec![done(), done()]).await;
        let settings = S3Settings {
            sign_bodies,
            ..conditional(ConditionalWrites::Trust)
        };
        let store = store_at(&url, settings);
        create(&store).await.unwrap();
        let (key, upload) = (ObjectKey::new("object").unwrap(), UploadId("upload".into()));
        let body = Bytes::from_static(b"a part");
        let part = store.put_part(&key, &upload, PartAt::FIRST, body).await;
        part.unwrap();
        let requests = requests.lock().unwrap().clone();
        assert_eq!(requests.len(), 2);
        for request in requests {
            let is_unsigned = request.contains("x-amz-content-sha256: unsigned-payload");
            assert_eq!(is_unsigned, !is_signed, "{request}");
            let mut lines = request.lines();
            let signature = lines.find(|line| line.starts_with("authorization:"));
            assert!(
                signature.unwrap().contains("x-amz-checksum-crc32"),
                "{request}"
            );
        }
    }
}
