//! The conformance suite over S3, spoken over HTTP, and what only S3 does.
#![allow(clippy::unwrap_used)]

#[path = "../examples/s3_server/server.rs"]
mod server;
mod support;

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use bytes::Bytes;
use support::{all_kinds, answer, shown};
use tempfile::TempDir;
use tokio::net::TcpListener;
use walhalla_providers::s3::S3Store;
use walhalla_providers::testing::conformance::quick_options;
use walhalla_providers::testing::{Call, Fault, FaultyStore};
use walhalla_providers::transfer::{S3Settings, Store, StoreSettings, open};
use walhalla_providers::{
    Error, ErrorKind, ListRequest, Location, ObjectKey, ObjectStore, PutMode, PutToken,
    conformance_tests,
};

conformance_tests!(s3().await);

const ACCESS_KEY: &str = "walhalla";
const SECRET_KEY: &str = "not-a-secret";
/// An upload that nobody began.
const UPLOAD: &str = "5a4fd8a1-0000-4000-8000-000000000000";

async fn s3() -> (Arc<dyn ObjectStore>, Server) {
    let server = Server::start().await;
    (Arc::new(server.store("bucket", SECRET_KEY)), server)
}

struct Server {
    root: TempDir,
    endpoint: String,
    _serving: tokio::task::JoinHandle<()>,
}

impl Server {
    async fn start() -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("bucket")).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let path = root.path().to_owned();
        let serving = tokio::spawn(async move {
            server::serve(listener, &path, ACCESS_KEY, SECRET_KEY, &[])
                .await
                .unwrap();
        });
        Self {
            root,
            endpoint,
            _serving: serving,
        }
    }

    fn store(&self, bucket: &str, secret_key: &str) -> S3Store {
        store_at(&self.endpoint, bucket, secret_key)
    }
}

fn store_at(endpoint: &str, bucket: &str, secret_key: &str) -> S3Store {
    let client = client(endpoint, secret_key);
    let location = Location::new("s3", bucket, "some/prefix");
    S3Store::with_client(client, location, &StoreSettings::default()).unwrap()
}

fn store_in(location: Location, part_size_bytes: Option<usize>) -> Result<S3Store, Error> {
    let settings = StoreSettings {
        s3: S3Settings {
            part_size_bytes,
            ..S3Settings::default()
        },
        ..StoreSettings::default()
    };
    S3Store::with_client(
        client("http://127.0.0.1:1", SECRET_KEY),
        location,
        &settings,
    )
}

fn client(endpoint: &str, secret_key: &str) -> Client {
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .endpoint_url(endpoint)
        .credentials_provider(Credentials::new(ACCESS_KEY, secret_key, None, None, "test"))
        .force_path_style(true)
        .retry_config(RetryConfig::disabled());
    Client::from_conf(config.build())
}

fn key(text: &str) -> ObjectKey {
    ObjectKey::new(text).unwrap()
}

fn body(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_bucket_is_not_an_empty_one() {
    let server = Server::start().await;
    let mut kinds = all_kinds(&server.store("no-such-bucket", SECRET_KEY), UPLOAD).await;
    assert_eq!(
        kinds.pop(),
        Some(ErrorKind::NotFound),
        "an upload that nobody began"
    );
    assert_eq!(kinds, [ErrorKind::StoreMissing; 7]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_secret_is_unauthenticated_and_no_secret_is_shown() {
    let server = Server::start().await;
    let store = server.store("bucket", "another-secret");
    assert_eq!(
        all_kinds(&store, UPLOAD).await,
        [ErrorKind::Unauthenticated; 8]
    );
    assert!(!format!("{store:?}").contains("secret"));
}

#[tokio::test]
async fn a_server_that_is_away_is_unavailable() {
    let closed = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let store = store_at(&format!("http://{closed}"), "bucket", SECRET_KEY);
    assert_eq!(all_kinds(&store, UPLOAD).await, [ErrorKind::Unavailable; 8]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_changed_in_the_store_are_corrupted() {
    let server = Server::start().await;
    let store = Store::new(
        Arc::new(server.store("bucket", SECRET_KEY)),
        quick_options(),
    );
    store
        .put(
            &key("object"),
            body("the bytes as they were"),
            PutMode::Create,
        )
        .await
        .unwrap();
    let file = server.root.path().join("bucket/some/prefix/object");
    std::fs::write(file, "the bytes as they are.").unwrap();
    let error = store.get(&key("object"), 100).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Corrupted, "{}", shown(&error));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_create_knows_its_own_object_after_a_lost_answer() {
    let server = Server::start().await;
    let faulty = FaultyStore::new(Arc::new(server.store("bucket", SECRET_KEY)));
    let store = Store::new(Arc::new(faulty.clone()), quick_options());
    faulty.on(Call::Put, 1, Fault::LoseAnswer);
    store
        .put(&key("put"), body("mine"), PutMode::Create)
        .await
        .unwrap();
    assert_eq!(faulty.calls(Call::Put), 2);

    faulty.on(Call::CompleteUpload, 1, Fault::LoseAnswer);
    let mut upload = store.upload(key("upload"), PutMode::Create);
    upload.write(Bytes::from(vec![1; 9 << 20])).await.unwrap();
    assert_eq!(upload.finish().await.unwrap(), 9 << 20);
    assert_eq!(faulty.calls(Call::CompleteUpload), 2);

    faulty.on(Call::Put, 3, Fault::Fail(ErrorKind::Unavailable));
    let refused = store
        .put(&key("put"), body("another's"), PutMode::Create)
        .await;
    assert_eq!(refused.unwrap_err().kind, ErrorKind::AlreadyExists);
    assert_eq!(store.get(&key("put"), 10).await.unwrap(), "mine");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_sees_only_what_lies_below_its_prefix() {
    let server = Server::start().await;
    let beside = server.root.path().join("bucket/some");
    std::fs::create_dir_all(beside.join("prefix2/x")).unwrap();
    std::fs::write(beside.join("prefix2/x/y"), "").unwrap();
    std::fs::write(beside.join("other"), "").unwrap();
    let store = Store::new(
        Arc::new(server.store("bucket", SECRET_KEY)),
        quick_options(),
    );
    store
        .put(&key("a/b"), body("x"), PutMode::Create)
        .await
        .unwrap();
    assert_eq!(store.list("", None).await.unwrap().len(), 1);
    assert_eq!(store.folders("").await.unwrap(), ["a"]);
    assert_eq!(store.url(), "s3://bucket/some/prefix");
    assert_eq!(store.object_url(&key("a/b")), "s3://bucket/some/prefix/a/b");
    assert!(server.root.path().join("bucket/some/prefix/a/b").is_file());
}

/// A store whose server gives these answers.
async fn canned(answers: Vec<String>) -> S3Store {
    store_at(&support::canned(answers).await, "bucket", SECRET_KEY)
}

fn refusal(status: &str, code: &str) -> String {
    answer(
        status,
        "",
        &format!("<Error><Code>{code}</Code><Message>why</Message></Error>"),
    )
}

#[tokio::test]
async fn an_absence_is_proven_only_by_an_answer_that_names_the_key() {
    let html = answer(
        "404 Not Found",
        "Content-Type: text/html\r\n",
        "<html><body>no such page</body></html>",
    );
    let bare = "HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\n".to_owned();
    for (after_head, kind) in [
        (refusal("404 Not Found", "NoSuchKey"), ErrorKind::NotFound),
        (
            refusal("404 Not Found", "NoSuchBucket"),
            ErrorKind::StoreMissing,
        ),
        (
            refusal("403 Forbidden", "AccessDenied"),
            ErrorKind::PermissionDenied,
        ),
        (html.clone(), ErrorKind::Other),
        (bare.clone(), ErrorKind::Other),
    ] {
        let store = canned(vec![bare.clone(), after_head.clone(), after_head]).await;
        let head = store.head(&key("x")).await.unwrap_err();
        assert_eq!(head.kind, kind, "{}", shown(&head));
        let get = store.get(&key("x"), 0, None).await.err().unwrap();
        assert_eq!(get.kind, kind, "{}", shown(&get));
    }
}

#[tokio::test]
async fn an_object_created_between_head_and_get_is_found() {
    let headers =
        "Last-Modified: Sat, 21 Nov 2026 04:30:00 GMT\r\nx-amz-meta-walhalla-token: abc\r\n";
    let bare = "HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\n".to_owned();
    let store = canned(vec![bare, answer("200 OK", headers, "body")]).await;
    let info = store.head(&key("x")).await.unwrap();
    assert_eq!(info.size_bytes, 4);
    assert_eq!(info.modified.to_string(), "2026-11-21T04:30:00Z");
    assert_eq!(info.token.unwrap().as_str(), "abc");
}

#[tokio::test]
async fn answers_to_a_create_have_their_kinds() {
    let throttled = answer(
        "503 Slow Down",
        "Retry-After: 7\r\n",
        "<Error><Code>SlowDown</Code></Error>",
    );
    let cases = [
        (
            refusal("412 Precondition Failed", "PreconditionFailed"),
            ErrorKind::AlreadyExists,
        ),
        (
            refusal("409 Conflict", "ConditionalRequestConflict"),
            ErrorKind::Conflict,
        ),
        (
            refusal("500 Internal Server Error", "InternalError"),
            ErrorKind::Unavailable,
        ),
        (
            refusal("400 Bad Request", "ExpiredToken"),
            ErrorKind::Unauthenticated,
        ),
        (
            refusal("400 Bad Request", "BadDigest"),
            ErrorKind::Corrupted,
        ),
        (
            refusal("501 Not Implemented", "NotImplemented"),
            ErrorKind::Unsupported,
        ),
        (
            throttled,
            ErrorKind::Throttled(Some(Duration::from_secs(7))),
        ),
        (
            answer("502 Bad Gateway", "", "<html>"),
            ErrorKind::Unavailable,
        ),
        (
            answer("429 Too Many Requests", "", ""),
            ErrorKind::Throttled(None),
        ),
        (String::new(), ErrorKind::Unavailable),
    ];
    for (canned_answer, kind) in cases {
        let store = canned(vec![canned_answer.clone()]).await;
        let put = store
            .put(&key("x"), body("x"), PutMode::Create, &PutToken::random())
            .await;
        let error = put.unwrap_err();
        assert_eq!(error.kind, kind, "{canned_answer}: {}", shown(&error));
    }
}

#[tokio::test]
async fn a_body_cut_by_the_connection_is_read_on() {
    let head = "HTTP/1.1 200 OK\r\nETag: \"v\"\r\nContent-Length: 10\r\n\r\n0123";
    let rest = "Content-Range: bytes 4-9/10\r\nETag: \"v\"\r\n";
    let store = canned(vec![
        head.to_owned(),
        answer("206 Partial Content", rest, "456789"),
    ])
    .await;
    let store = Store::new(Arc::new(store), quick_options());
    assert_eq!(store.get(&key("x"), 10).await.unwrap(), "0123456789");
}

#[tokio::test]
async fn a_server_that_ignores_ranges_is_found_out() {
    let store = canned(vec![answer("200 OK", "", "0123456789")]).await;
    assert_eq!(
        store.get(&key("x"), 5, Some(1)).await.err().unwrap().kind,
        ErrorKind::Other
    );
}

#[tokio::test]
async fn a_truncated_listing_without_a_continuation_is_no_listing() {
    let page = "<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>";
    let store = canned(vec![answer("200 OK", "", page)]).await;
    assert_eq!(
        store.list(&ListRequest::default()).await.unwrap_err().kind,
        ErrorKind::Other
    );
}

#[tokio::test]
async fn a_listing_with_something_missing_is_no_listing() {
    let object = |fields: &str| {
        format!(
            "<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>some/prefix/a</Key>{fields}</Contents></ListBucketResult>"
        )
    };
    for page in [
        "<ListBucketResult></ListBucketResult>".to_owned(),
        object(""),
        object("<Size>3</Size>"),
        object("<LastModified>2026-11-21T04:30:00Z</LastModified>"),
    ] {
        let store = canned(vec![answer("200 OK", "", &page)]).await;
        let error = store.list(&ListRequest::default()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Other, "{page}");
    }
    let whole = object("<Size>3</Size><LastModified>2026-11-21T04:30:00Z</LastModified>");
    let store = canned(vec![answer("200 OK", "", &whole)]).await;
    let page = store.list(&ListRequest::default()).await.unwrap();
    assert_eq!(page.objects.len(), 1);
}

#[tokio::test]
async fn a_refusal_without_its_key_fails_the_batch() {
    let answered = "<DeleteResult><Error><Code>AccessDenied</Code></Error></DeleteResult>";
    let store = canned(vec![answer("200 OK", "", answered)]).await;
    let error = store.delete(&[key("a")]).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::PermissionDenied);
}

#[tokio::test]
async fn a_range_that_begins_elsewhere_is_not_taken() {
    let headers = "Content-Range: bytes 0-4/10\r\nETag: \"v\"\r\n";
    let store = canned(vec![answer("206 Partial Content", headers, "01234")]).await;
    let got = store.get(&key("x"), 5, Some(5)).await;
    assert_eq!(got.err().unwrap().kind, ErrorKind::Other);
}

#[tokio::test]
async fn keys_that_a_batch_delete_refused_come_back() {
    let answered = "<DeleteResult>\
        <Error><Key>some/prefix/a</Key><Code>AccessDenied</Code><Message>why</Message></Error>\
        <Error><Key>some/prefix/b</Key><Code>SlowDown</Code></Error></DeleteResult>";
    let store = canned(vec![answer("200 OK", "", answered)]).await;
    let refused = store.delete(&[key("a"), key("b"), key("c")]).await.unwrap();
    let kinds: Vec<_> = refused
        .iter()
        .map(|(key, error)| (key.as_str(), error.kind))
        .collect();
    assert_eq!(
        kinds,
        [
            ("a", ErrorKind::PermissionDenied),
            ("b", ErrorKind::Throttled(None))
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_is_aborted_cancelled_or_fails_leaves_no_multipart_upload() {
    let server = Server::start().await;
    let faulty = FaultyStore::new(Arc::new(server.store("bucket", SECRET_KEY)));
    let store = Store::new(Arc::new(faulty.clone()), quick_options());
    let part = Bytes::from(vec![1; (8 << 20) + 1]);
    let begin = async |name| {
        let mut upload = store.upload(key(name), PutMode::Create);
        upload.write(part.clone()).await.unwrap();
        upload
    };
    let remains = || {
        let entries = std::fs::read_dir(server.root.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with(".upload")).count()
    };
    let aborted = begin("aborted").await;
    assert!(remains() > 0);
    aborted.abort().await;
    drop(begin("cancelled").await);
    faulty.always(Call::PutPart, Fault::Fail(ErrorKind::PermissionDenied));
    let mut failing = store.upload(key("failing"), PutMode::Create);
    let written = failing.write(part.clone()).await;
    assert!(written.is_err() || failing.finish().await.is_err());

    for _ in 0..200 {
        if remains() == 0 {
            return;
        }
        // The parts of a dropped upload are deleted in the background.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("uploads are left");
}

/// The settings of the environment belong to a process, so this test runs itself as another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_url_opens_with_the_settings_of_the_environment() {
    if std::env::var_os("WALHALLA_TEST_CHILD").is_some() {
        return child().await;
    }
    let server = Server::start().await;
    let name = "a_url_opens_with_the_settings_of_the_environment";
    let run = |region: &'static str| {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", name, "--nocapture"]).env_clear();
        child.envs([
            ("WALHALLA_TEST_CHILD", "1"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ]);
        child.envs([
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
        ]);
        child.env("AWS_ENDPOINT_URL_S3", &server.endpoint);
        if !region.is_empty() {
            child.env("AWS_REGION", region);
        }
        tokio::task::spawn_blocking(move || child.output().unwrap())
    };
    for region in ["", "eu-central-1"] {
        let output = run(region).await.unwrap();
        assert!(output.status.success(), "{output:?}");
        let stored = server.root.path().join("bucket/a b/object");
        assert_eq!(std::fs::read(&stored).unwrap(), b"body");
        std::fs::remove_file(stored).unwrap();
    }
}

async fn child() {
    let store = open("s3://bucket/a%20b/", &StoreSettings::default())
        .await
        .unwrap();
    assert_eq!(store.url(), "s3://bucket/a b");
    let store = Store::new(store, quick_options());
    store
        .put(&key("object"), body("body"), PutMode::Create)
        .await
        .unwrap();
}

#[tokio::test]
async fn wrong_s3_urls_and_settings_are_refused() {
    for url in [
        "s3:",
        "s3://",
        "s3:///prefix",
        "s3://bucket/a//b",
        "s3://bucket/.hidden",
        "s3://bucket?x",
        "s3://bucket:9000/prefix",
    ] {
        let error = open(url, &StoreSettings::default()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid, "{url}");
    }
    let location = || Location::new("s3", "bucket", "");
    assert_eq!(
        store_in(location(), Some(5 << 20)).unwrap().url(),
        "s3://bucket"
    );
    for size in [0, (5 << 20) - 1, (5 << 30) + 1] {
        assert_eq!(
            store_in(location(), Some(size)).unwrap_err().kind,
            ErrorKind::Invalid
        );
    }
}
