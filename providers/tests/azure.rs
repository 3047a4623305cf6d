//! The conformance suite over Azurite, and what only Azure does.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use support::shown;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use walhalla_providers::azure::AzureStore;
use walhalla_providers::testing::conformance::quick_options;
use walhalla_providers::testing::emulators::Azurite;
use walhalla_providers::testing::{Call, Fault, FaultyStore};
use walhalla_providers::transfer::{AzureSettings, Store, StoreSettings};
use walhalla_providers::{
    Error, ErrorKind, ListRequest, Location, ObjectKey, ObjectStore, PartAt, PutMode, PutToken,
    conformance_tests,
};

conformance_tests!(azure());

/// Azurite keeps no versions; how Azure lists them is tested where they are read.
#[tokio::test]
async fn the_past_is_refused_without_versions() {
    let (store, _server) = azure();
    walhalla_providers::testing::past::the_past_is_refused(store).await;
}

const CONNECTION_STRING: &str = "AZURE_STORAGE_CONNECTION_STRING";

fn azure() -> (Arc<dyn ObjectStore>, Server) {
    let server = Server::start();
    (Arc::new(server.store(Azurite::CONTAINER)), server)
}

struct Server {
    azurite: Azurite,
    _dir: TempDir,
}

impl Server {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            azurite: Azurite::start(dir.path()),
            _dir: dir,
        }
    }

    fn store(&self, container: &str) -> AzureStore {
        let string = self.azurite.connection_string();
        let location = Location::new("az", container, "some/prefix");
        store_with(location, &[(CONNECTION_STRING, &string)])
    }

    /// The store through another server in between.
    fn store_through(&self, proxy: &str) -> AzureStore {
        let string = self.azurite.connection_string();
        let string = string.replace(&self.host(), proxy.trim_start_matches("http://"));
        let location = Location::new("az", Azurite::CONTAINER, "some/prefix");
        store_with(location, &[(CONNECTION_STRING, &string)])
    }

    fn store_by_sas(&self, permissions: &str) -> AzureStore {
        let sas = self.azurite.sas(Azurite::CONTAINER, permissions);
        store_with(
            location(),
            &[
                ("AZURE_STORAGE_SAS_TOKEN", &format!("?{sas}")),
                ("AZURE_STORAGE_SERVICE_ENDPOINT", self.azurite.endpoint()),
            ],
        )
    }

    fn host(&self) -> String {
        let url = self.azurite.endpoint().trim_start_matches("http://");
        url.split('/').next().unwrap().to_owned()
    }

    /// A request that the store itself never makes.
    async fn raw(
        &self,
        method: reqwest::Method,
        key: &str,
        query: &str,
        headers: &[(&str, &str)],
    ) -> reqwest::Response {
        let sas = self.azurite.sas(Azurite::CONTAINER, "rcwdl");
        let (endpoint, container) = (self.azurite.endpoint(), Azurite::CONTAINER);
        let url = format!("{endpoint}/{container}/some/prefix/{key}?{query}{sas}");
        let mut request = reqwest::Client::new().request(method, url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap().error_for_status().unwrap()
    }
}

fn location() -> Location {
    Location::new("az", Azurite::CONTAINER, "some/prefix")
}

fn store_with(location: Location, variables: &[(&str, &str)]) -> AzureStore {
    opened(location, &StoreSettings::default(), variables).unwrap()
}

fn opened(
    location: Location,
    settings: &StoreSettings,
    variables: &[(&str, &str)],
) -> Result<AzureStore, Error> {
    AzureStore::with_variables(location, settings, |name| {
        let found = variables.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| (*value).to_owned())
    })
}

/// A store at an address where somebody else answers; its key is `secret`, its SAS too.
fn store_at(endpoint: &str) -> AzureStore {
    let string = format!("AccountName=account;AccountKey=c2VjcmV0;BlobEndpoint={endpoint}/account");
    store_with(location(), &[(CONNECTION_STRING, &string)])
}

fn tiered(tier: &str) -> StoreSettings {
    StoreSettings {
        azure: AzureSettings {
            access_tier: Some(tier.to_owned()),
        },
        ..StoreSettings::default()
    }
}

fn key(text: &str) -> ObjectKey {
    ObjectKey::new(text).unwrap()
}

fn body(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

/// The kinds of what all requests answer. That an upload begins is no request.
async fn all_kinds(store: &AzureStore) -> Vec<ErrorKind> {
    let (key, token) = (key("some/key"), PutToken::random());
    let upload = store
        .start_upload(&key, PutMode::Create, &token)
        .await
        .unwrap();
    let mode = PutMode::Create;
    // A key's own refusal does not fail the batch.
    let deleted = store.delete(std::slice::from_ref(&key)).await;
    let deleted = deleted.map(|mut refused| refused.pop().map(|(_, error)| error));
    let errors = [
        store.put(&key, body("x"), mode, &token).await.err(),
        store.get(&key, 0, None).await.err(),
        store.get(&key, 5, Some(5)).await.err(),
        store.head(&key).await.err(),
        store.list(&ListRequest::default()).await.err(),
        deleted.unwrap_or_else(Some),
        store
            .put_part(&key, &upload, PartAt::FIRST, body("x"))
            .await
            .err(),
        store.complete_upload(&key, &upload, &[], mode).await.err(),
    ];
    let kind = |error: Option<Error>| {
        let error = error.unwrap();
        let shown = shown(&error);
        assert!(
            !shown.contains("c2VjcmV0") && !shown.contains("secret"),
            "{shown}"
        );
        error.kind
    };
    errors.into_iter().map(kind).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_container_is_not_an_empty_one() {
    let server = Server::start();
    assert_eq!(
        all_kinds(&server.store("no-such-container")).await,
        [ErrorKind::StoreMissing; 8]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_key_is_refused_and_no_secret_is_shown() {
    let server = Server::start();
    let (right, wrong) = ("AccountKey=E", "AccountKey=F");
    let string = server.azurite.connection_string().replace(right, wrong);
    let store = store_with(location(), &[(CONNECTION_STRING, &string)]);
    // Azurite says `AuthorizationFailure` of a wrong signature, where Azure says `AuthenticationFailed`.
    assert_eq!(all_kinds(&store).await, [ErrorKind::PermissionDenied; 8]);
    assert!(!format!("{store:?}").contains("AccountKey"));

    let failed = refusal("403 Forbidden", "AuthenticationFailed");
    let store = store_at(&support::canned(vec![failed; 8]).await);
    assert_eq!(all_kinds(&store).await, [ErrorKind::Unauthenticated; 8]);
}

#[tokio::test]
async fn a_server_that_is_away_is_unavailable_and_no_signature_is_shown() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", closed.local_addr().unwrap());
    drop(closed);
    assert_eq!(
        all_kinds(&store_at(&endpoint)).await,
        [ErrorKind::Unavailable; 8]
    );
    let string = format!("BlobEndpoint={endpoint};SharedAccessSignature=sp=r&sig=secret");
    let store = store_with(location(), &[(CONNECTION_STRING, &string)]);
    assert_eq!(all_kinds(&store).await, [ErrorKind::Unavailable; 8]);
    assert!(!format!("{store:?}").contains("secret"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signature_with_too_few_rights_is_permission_denied() {
    let server = Server::start();
    let (key, token) = (key("object"), PutToken::random());
    let writer = server.store_by_sas("cw");
    writer
        .put(&key, body("x"), PutMode::Create, &token)
        .await
        .unwrap();
    let denied = writer.get(&key, 0, None).await.err().unwrap();
    assert_eq!(
        denied.kind,
        ErrorKind::PermissionDenied,
        "{}",
        shown(&denied)
    );
    let denied = writer.list(&ListRequest::default()).await.unwrap_err();
    assert_eq!(denied.kind, ErrorKind::PermissionDenied);
    let refused = writer.delete(std::slice::from_ref(&key)).await.unwrap();
    assert_eq!(refused[0].1.kind, ErrorKind::PermissionDenied);

    let reader = server.store_by_sas("rl");
    let absent = reader.head(&ObjectKey::new("absent").unwrap()).await;
    assert!(absent.unwrap_err().is_not_found());
    let denied = reader.put(&key, body("y"), PutMode::Create, &token).await;
    assert_eq!(denied.unwrap_err().kind, ErrorKind::PermissionDenied);
    let reader = Store::new(Arc::new(reader), quick_options());
    assert_eq!(reader.get(&key, 10).await.unwrap(), "x");
    assert_eq!(reader.list("", None).await.unwrap().len(), 1);
}

/// A server in between that changes bytes.
async fn tampering(server: String, from: &'static str, to: &'static str) -> String {
    assert_eq!(from.len(), to.len());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let server = TcpStream::connect(&server).await.unwrap();
            let (client, server) = (client.into_split(), server.into_split());
            tokio::spawn(copy_changed(client.0, server.1, from, to));
            tokio::spawn(copy_changed(server.0, client.1, from, to));
        }
    });
    url
}

async fn copy_changed(
    mut reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
    from: &str,
    to: &str,
) {
    let mut chunk = vec![0; 1 << 16];
    while let Ok(length) = reader.read(&mut chunk).await {
        if length == 0 {
            return;
        }
        let mut bytes = chunk[..length].to_vec();
        let found = bytes
            .windows(from.len())
            .position(|window| window == from.as_bytes());
        if let Some(at) = found {
            bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        }
        if writer.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_changed_on_the_way_are_corrupted_both_ways() {
    let server = Server::start();
    let proxy = tampering(server.host(), "as they were", "as they are.").await;
    let through = server.store_through(&proxy);
    let (object, token) = (key("object"), PutToken::random());
    let text = body("the bytes as they were");
    let put = through
        .put(&object, text.clone(), PutMode::Create, &token)
        .await;
    let error = put.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Corrupted, "{}", shown(&error));
    let upload = through
        .start_upload(&object, PutMode::Create, &token)
        .await
        .unwrap();
    let part = through
        .put_part(&object, &upload, PartAt::FIRST, text.clone())
        .await;
    assert_eq!(part.unwrap_err().kind, ErrorKind::Corrupted);

    let direct = server.store(Azurite::CONTAINER);
    direct
        .put(&object, text.clone(), PutMode::Create, &token)
        .await
        .unwrap();
    let parts = key("parts");
    let upload = direct
        .start_upload(&parts, PutMode::Create, &token)
        .await
        .unwrap();
    let mut receipts = Vec::new();
    let second = PartAt {
        number: 2,
        offset: 11,
    };
    for (at, part) in [(PartAt::FIRST, body("the first; ")), (second, text)] {
        let part = direct.put_part(&parts, &upload, at, part).await;
        receipts.push(part.unwrap());
    }
    direct
        .complete_upload(&parts, &upload, &receipts, PutMode::Create)
        .await
        .unwrap();
    let (through, direct) = [through, direct]
        .map(|store| Store::new(Arc::new(store), quick_options()))
        .into();
    for object in [object, parts] {
        assert!(direct.get(&object, 100).await.is_ok());
        let error = through.get(&object, 100).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Corrupted, "{}", shown(&error));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_create_knows_its_own_object_after_a_lost_answer() {
    let server = Server::start();
    let faulty = FaultyStore::new(Arc::new(server.store(Azurite::CONTAINER)));
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

/// A commit, or a put, drops all blocks of the key that it does not name. (Azurite keeps them.)
#[tokio::test]
async fn an_upload_whose_blocks_another_writer_dropped_knows_who_won() {
    let there = answer(
        "200 OK",
        "Last-Modified: Sat, 21 Nov 2026 04:30:00 GMT\r\n",
        "",
    );
    let gone = head_refusal("404 Not Found", "BlobNotFound");
    let away = head_refusal("500 Internal Server Error", "InternalError");
    for (mode, head, kind) in [
        (PutMode::Create, &there, ErrorKind::AlreadyExists),
        (PutMode::Create, &gone, ErrorKind::NotFound),
        (PutMode::Create, &away, ErrorKind::Unavailable),
        (PutMode::Overwrite, &there, ErrorKind::NotFound),
    ] {
        let dropped = refusal("400 Bad Request", "InvalidBlockList");
        let store = canned(vec![dropped, head.clone()]).await;
        let key = key("x");
        let upload = store
            .start_upload(&key, PutMode::Create, &PutToken::random())
            .await
            .unwrap();
        let lost = store.complete_upload(&key, &upload, &[], mode).await;
        assert_eq!(lost.unwrap_err().kind, kind);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_sees_only_what_lies_below_its_prefix() {
    let server = Server::start();
    let string = server.azurite.connection_string();
    let whole = store_with(
        Location::new("az", Azurite::CONTAINER, ""),
        &[(CONNECTION_STRING, &string)],
    );
    let whole = Store::new(Arc::new(whole), quick_options());
    for beside in ["some/prefix2/x/y", "some/other"] {
        whole
            .put(&key(beside), body(""), PutMode::Create)
            .await
            .unwrap();
    }
    let store = Store::new(Arc::new(server.store(Azurite::CONTAINER)), quick_options());
    store
        .put(&key("a/b"), body("x"), PutMode::Create)
        .await
        .unwrap();
    assert_eq!(store.list("", None).await.unwrap().len(), 1);
    assert_eq!(store.folders("").await.unwrap(), ["a"]);
    assert_eq!(store.url(), "az://container/some/prefix");
    assert_eq!(whole.get(&key("some/prefix/a/b"), 1).await.unwrap(), "x");
    assert_eq!(whole.url(), "az://container");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leased_blob_is_refused_and_the_rest_of_the_batch_deleted() {
    let server = Server::start();
    let store = Store::new(Arc::new(server.store(Azurite::CONTAINER)), quick_options());
    let keys = ["a", "b", "c"].map(key);
    for key in &keys {
        store.put(key, body("x"), PutMode::Create).await.unwrap();
    }
    let lease = [
        ("x-ms-lease-action", "acquire"),
        ("x-ms-lease-duration", "-1"),
        ("x-ms-version", "2022-11-02"),
        ("content-length", "0"),
    ];
    server
        .raw(reqwest::Method::PUT, "b", "comp=lease&", &lease)
        .await;
    let refused = store.delete(&keys).await.unwrap();
    assert_eq!(refused.len(), 1);
    let (key, error) = &refused[0];
    assert_eq!(key.as_str(), "b");
    assert_eq!(error.kind, ErrorKind::PermissionDenied, "{}", shown(error));
    assert!(shown(error).contains("break the lease"));
    let left = store.list("", None).await.unwrap();
    assert_eq!(left.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_blobs_have_the_access_tier_that_is_set() {
    let server = Server::start();
    let string = server.azurite.connection_string();
    let store = |tier| opened(location(), &tiered(tier), &[(CONNECTION_STRING, &string)]);
    let cool = Store::new(Arc::new(store("cool").unwrap()), quick_options());
    cool.put(&key("put"), body("x"), PutMode::Create)
        .await
        .unwrap();
    let mut upload = cool.upload(key("upload"), PutMode::Create);
    upload.write(Bytes::from(vec![1; 9 << 20])).await.unwrap();
    upload.finish().await.unwrap();
    for key in ["put", "upload"] {
        let head = server.raw(reqwest::Method::HEAD, key, "", &[]).await;
        assert_eq!(head.headers()["x-ms-access-tier"], "Cool", "{key}");
    }
    for tier in ["Archive", "Premium", ""] {
        let error = store(tier).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid, "{tier}");
        assert!(shown(&error).contains("Cold"), "{}", shown(&error));
    }
}

/// A store whose server gives these answers.
async fn canned(answers: Vec<String>) -> AzureStore {
    store_at(&support::canned(answers).await)
}

/// An HTTP answer of a blob service, after which the connection ends.
fn answer(status: &str, headers: &str, body: &str) -> String {
    let headers = format!("x-ms-request-id: 1-2-3\r\n{headers}");
    support::answer(status, &headers, body)
}

fn refusal(status: &str, code: &str) -> String {
    let xml = format!(
        "\u{FEFF}<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>why\nTime:x</Message></Error>"
    );
    let header = format!("x-ms-error-code: {code}\r\n");
    answer(status, &header, &xml)
}

/// As to a HEAD: without a body.
fn head_refusal(status: &str, code: &str) -> String {
    let header = match code {
        "" => String::new(),
        code => format!("x-ms-error-code: {code}\r\n"),
    };
    answer(status, &header, "")
}

#[tokio::test]
async fn an_absence_is_proven_only_by_an_answer_that_names_the_blob() {
    for (status, code, kind) in [
        ("404 Not Found", "BlobNotFound", ErrorKind::NotFound),
        (
            "404 Not Found",
            "ContainerNotFound",
            ErrorKind::StoreMissing,
        ),
        ("404 Not Found", "ResourceNotFound", ErrorKind::Other),
        ("404 Not Found", "", ErrorKind::Other),
        (
            "403 Forbidden",
            "AuthorizationFailure",
            ErrorKind::PermissionDenied,
        ),
    ] {
        let refused = head_refusal(status, code);
        let store = canned(vec![refused.clone(), refused]).await;
        let head = store.head(&key("x")).await.unwrap_err();
        assert_eq!(head.kind, kind, "{}", shown(&head));
        let get = store.get(&key("x"), 0, None).await.err().unwrap();
        assert_eq!(get.kind, kind, "{}", shown(&get));
    }
    let html = "<html><body>no such page</body></html>";
    let store = canned(vec![answer("404 Not Found", "", html)]).await;
    let get = store.get(&key("x"), 0, None).await.err().unwrap();
    assert_eq!(get.kind, ErrorKind::Other, "{}", shown(&get));
}

#[tokio::test]
async fn answers_to_a_create_have_their_kinds() {
    let busy = answer(
        "503 Server Busy",
        "Retry-After: 7\r\nx-ms-error-code: ServerBusy\r\n",
        "",
    );
    let cases = [
        (
            refusal("400 Bad Request", "Crc64Mismatch"),
            ErrorKind::Corrupted,
        ),
        (
            refusal("401 Unauthorized", "InvalidAuthenticationInfo"),
            ErrorKind::Unauthenticated,
        ),
        (
            refusal("403 Forbidden", "AuthorizationPermissionMismatch"),
            ErrorKind::PermissionDenied,
        ),
        (
            refusal("409 Conflict", "ContainerBeingDeleted"),
            ErrorKind::StoreMissing,
        ),
        (
            refusal("409 Conflict", "BlobImmutableDueToPolicy"),
            ErrorKind::PermissionDenied,
        ),
        (
            refusal("500 Internal Server Error", "OperationTimedOut"),
            ErrorKind::TimedOut,
        ),
        (
            refusal("500 Internal Server Error", "InternalError"),
            ErrorKind::Unavailable,
        ),
        (busy, ErrorKind::Throttled(Some(Duration::from_secs(7)))),
        (
            answer("502 Bad Gateway", "", "<html>"),
            ErrorKind::Unavailable,
        ),
        (
            answer("501 Not Implemented", "", "<html>"),
            ErrorKind::Unsupported,
        ),
        (
            answer("413 Payload Too Large", "", "<html>"),
            ErrorKind::Invalid,
        ),
        (
            answer("429 Too Many Requests", "", ""),
            ErrorKind::Throttled(None),
        ),
        (
            answer("302 Found", "Location: http://127.0.0.1:1/\r\n", ""),
            ErrorKind::Invalid,
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
async fn a_create_that_meets_an_object_is_told_so() {
    let there = "Last-Modified: Sat, 21 Nov 2026 04:30:00 GMT\r\nx-ms-meta-walhalla_token: abc\r\n";
    for (status, code) in [
        ("409 Conflict", "BlobAlreadyExists"),
        ("412 Precondition Failed", "ConditionNotMet"),
        ("403 Forbidden", "UnauthorizedBlobOverwrite"),
    ] {
        let head = answer("200 OK", there, "");
        let store = canned(vec![refusal(status, code), head.clone(), head]).await;
        let put = store
            .put(&key("x"), body("x"), PutMode::Create, &PutToken::random())
            .await;
        let error = put.unwrap_err();
        assert_eq!(error.kind, ErrorKind::AlreadyExists, "{}", shown(&error));
        assert!(shown(&error).contains("request 1-2-3"), "{}", shown(&error));
        let info = store.head(&key("x")).await.unwrap();
        assert_eq!(info.modified.to_string(), "2026-11-21T04:30:00Z");
        assert_eq!(info.token.unwrap().as_str(), "abc");
    }
}

#[tokio::test]
async fn a_body_cut_by_the_connection_is_read_on() {
    let head = "HTTP/1.1 200 OK\r\nx-ms-request-id: 1-2-3\r\nETag: \"v\"\r\nContent-Length: 10\r\n\r\n0123";
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
async fn a_body_of_another_version_does_not_continue_the_first() {
    let head = "HTTP/1.1 200 OK\r\nx-ms-request-id: 1-2-3\r\nETag: \"v\"\r\nContent-Length: 10\r\n\r\n0123";
    let other = "Content-Range: bytes 4-9/10\r\nETag: \"w\"\r\n";
    let store = canned(vec![
        head.to_owned(),
        answer("206 Partial Content", other, "456789"),
    ])
    .await;
    let store = Store::new(Arc::new(store), quick_options());
    let error = store.get(&key("x"), 10).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Conflict);
}

#[tokio::test]
async fn bodies_other_than_asked_for_are_found_out() {
    let tag = "ETag: \"v\"\r\n";
    let elsewhere = format!("Content-Range: bytes 4-4/10\r\n{tag}");
    let untagged = "Content-Range: bytes 5-5/10\r\n";
    for (given, offset, length) in [
        (answer("200 OK", tag, "0123456789"), 5, Some(1)),
        (answer("206 Partial Content", &elsewhere, "4"), 5, Some(1)),
        (answer("206 Partial Content", &elsewhere, "4"), 0, Some(1)),
        (answer("206 Partial Content", untagged, "5"), 5, Some(1)),
        (answer("200 OK", "", "0123456789"), 0, None),
    ] {
        let store = canned(vec![given.clone()]).await;
        let error = store.get(&key("x"), offset, length).await.err().unwrap();
        assert_eq!(error.kind, ErrorKind::Other, "{given}");
    }
}

#[tokio::test]
async fn a_checksum_that_is_none_is_damage_and_not_no_checksum() {
    for (checksum, kind) in [("", None), ("no digits", Some(ErrorKind::Corrupted))] {
        let checksum = match checksum {
            "" => String::new(),
            text => format!("x-ms-meta-walhalla_crc64: {text}\r\n"),
        };
        let headers = format!("ETag: \"v\"\r\n{checksum}");
        let store = canned(vec![answer("200 OK", &headers, "0123456789")]).await;
        let error = store.get(&key("x"), 0, None).await.err();
        assert_eq!(error.map(|error| error.kind), kind, "{headers}");
    }
}

/// The failures of the three requests that write, a put, a part and a completion, when this is the answer.
async fn failed_writes(given: &str) -> [Option<Error>; 3] {
    let (object, token, mode) = (key("x"), PutToken::random(), PutMode::Create);
    let of_canned = async || {
        let store = store_at(&support::canned(vec![given.to_owned()]).await);
        let upload = store.start_upload(&object, mode, &token).await.unwrap();
        (store, upload)
    };
    let (store, upload) = of_canned().await;
    let part = store
        .put_part(&object, &upload, PartAt::FIRST, body("x"))
        .await
        .err();
    let (store, upload) = of_canned().await;
    let committed = store.complete_upload(&object, &upload, &[], mode).await;
    let (store, _) = of_canned().await;
    let put = store.put(&object, body("x"), mode, &token).await;
    [put.err(), part, committed.err()]
}

#[tokio::test]
async fn only_what_a_blob_service_answers_is_stored() {
    let kinds = async |given: &str| {
        let errors = failed_writes(given).await;
        errors.map(|error| error.map(|error| error.kind))
    };
    let tag = "ETag: \"v\"\r\n";
    assert_eq!(kinds(&answer("201 Created", tag, "")).await, [None; 3]);
    // A block has no tag.
    let untagged = answer("201 Created", "", "");
    let other = Some(ErrorKind::Other);
    assert_eq!(kinds(&untagged).await, [other, None, other]);
    let page = support::answer("201 Created", tag, "<html>please log in</html>");
    assert_eq!(kinds(&page).await, [Some(ErrorKind::Unavailable); 3]);
}

#[tokio::test]
async fn bytes_other_than_were_sent_are_told_and_never_a_success() {
    let other = "ETag: \"v\"\r\nx-ms-content-crc64: AAAAAAAAAAE=\r\n";
    for error in failed_writes(&answer("201 Created", other, "")).await {
        let error = error.unwrap();
        assert_eq!(error.kind, ErrorKind::Other, "{}", shown(&error));
        assert!(shown(&error).contains("hint: delete the object"));
    }
    // Nor is it sent again: the second answer is never asked for.
    let answers = vec![answer("201 Created", other, ""); 2];
    let (url, requests) = support::recorded(answers).await;
    let store = Store::new(Arc::new(store_at(&url)), quick_options());
    let put = store.put(&key("x"), body("x"), PutMode::Create).await;
    assert_eq!(put.unwrap_err().kind, ErrorKind::Other);
    assert_eq!(requests.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_page_of_a_proxy_is_no_object() {
    let page = "ETag: \"v\"\r\nLast-Modified: Sat, 21 Nov 2026 04:30:00 GMT\r\n";
    let page = support::answer("200 OK", page, "<html>please log in</html>");
    let store = canned(vec![page.clone(), page]).await;
    let get = store.get(&key("x"), 0, None).await.err().unwrap();
    assert_eq!(get.kind, ErrorKind::Unavailable, "{}", shown(&get));
    let head = store.head(&key("x")).await.unwrap_err();
    assert_eq!(head.kind, ErrorKind::Unavailable, "{}", shown(&head));
}

#[tokio::test]
async fn answers_without_end_are_not_read_to_it() {
    let long = "x".repeat(33 << 20);
    let store = canned(vec![answer("200 OK", "", &long)]).await;
    let list = store.list(&ListRequest::default()).await.unwrap_err();
    assert_eq!(list.kind, ErrorKind::Other, "{}", shown(&list));
    assert!(shown(&list).contains("longer than"), "{}", shown(&list));
    let store = canned(vec![answer("403 Forbidden", "", &long)]).await;
    let list = store.list(&ListRequest::default()).await.unwrap_err();
    assert_eq!(list.kind, ErrorKind::PermissionDenied, "{}", shown(&list));
}

#[tokio::test]
async fn a_page_without_its_end_is_no_listing() {
    for page in [
        "<EnumerationResults><Blobs><Blob><Name>a</Name>",
        "<EnumerationResults><Blobs></Blobs></EnumerationResults>",
        "<html><body>please log in</body></html>",
    ] {
        let store = canned(vec![answer("200 OK", "", page)]).await;
        let list = store.list(&ListRequest::default()).await;
        assert_eq!(list.unwrap_err().kind, ErrorKind::Unavailable, "{page}");
    }
    let last = "<EnumerationResults><Blobs /><NextMarker /></EnumerationResults>";
    let store = canned(vec![answer("200 OK", "", last)]).await;
    let page = store.list(&ListRequest::default()).await.unwrap();
    assert!(page.objects.is_empty() && page.next.is_none());
}

#[tokio::test]
async fn an_expired_signature_is_told_and_a_wrong_one_is_not_repeated() {
    for (detail, is_told) in [
        (
            "Signature not valid in the specified time frame: Expiry [x]",
            true,
        ),
        ("The MAC signature found in the HTTP request is not", false),
    ] {
        let xml = format!(
            "<Error><Code>AuthenticationFailed</Code><Message>why</Message>\
             <AuthenticationErrorDetail>{detail}</AuthenticationErrorDetail></Error>"
        );
        let store = canned(vec![answer("403 Forbidden", "", &xml)]).await;
        let error = store.get(&key("x"), 0, None).await.err().unwrap();
        assert_eq!(error.kind, ErrorKind::Unauthenticated);
        assert_eq!(shown(&error).contains(detail), is_told, "{}", shown(&error));
    }
}

#[tokio::test]
async fn names_that_azure_would_change_are_refused() {
    let store = store_at("http://127.0.0.1:1");
    for name in ["a\\b", "a./b", "a.", "a\tb"] {
        let key = key(name);
        let token = PutToken::random();
        let put = store.put(&key, body("x"), PutMode::Create, &token).await;
        assert_eq!(put.unwrap_err().kind, ErrorKind::Invalid, "{name}");
        let get = store.get(&key, 0, None).await.err().unwrap();
        assert_eq!(get.kind, ErrorKind::Invalid, "{name}");
        assert_eq!(store.head(&key).await.unwrap_err().kind, ErrorKind::Invalid);
        let start = store.start_upload(&key, PutMode::Create, &token).await;
        assert_eq!(start.unwrap_err().kind, ErrorKind::Invalid);
        let refused = store.delete(&[key]).await.unwrap();
        assert_eq!(refused[0].1.kind, ErrorKind::Invalid);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azure_comes_through_every_fault_or_tells_it_in_time() {
    let server = Arc::new(Server::start());
    let address = server.host().parse().unwrap();
    let through = Arc::clone(&server);
    let open =
        move |endpoint: &str| -> Arc<dyn ObjectStore> { Arc::new(through.store_through(endpoint)) };
    walhalla_providers::testing::faults::faults_suite(open, address).await;
}
