//! Tokens of Entra ID: how they are come by, renewed and refused.
//!
//! ```text
//! token server (here) ◀── child: this test binary again, with an environment of its own ──▶ Azurite, or a server here
//! ```
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout)]

mod support;

use std::fs;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::Output;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use support::{answer, shown};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use walhalla_providers::testing::emulators::Azurite;
use walhalla_providers::transfer::{StoreSettings, open};
use walhalla_providers::{ErrorKind, ObjectKey, PutMode, PutToken};

/// A certificate for 127.0.0.1, and a directory for it and all else.
struct Ground {
    dir: TempDir,
    certificate: PathBuf,
    key: PathBuf,
    acceptor: TlsAcceptor,
}

impl Ground {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let (certificate, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        fs::write(&certificate, made.cert.pem()).unwrap();
        fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        let der = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], PrivateKeyDer::Pkcs8(der))
            .unwrap();
        Self {
            dir,
            certificate,
            key,
            acceptor: TlsAcceptor::from(Arc::new(config)),
        }
    }

    fn azurite(&self) -> Azurite {
        Azurite::start_https(self.dir.path(), &self.certificate, &self.key)
    }

    /// A server over TLS; `respond` gets the number of the request and its text.
    async fn https(&self, respond: impl Fn(usize, &str) -> String + Send + 'static) -> Server {
        let acceptor = self.acceptor.clone();
        Server::start("https", respond, move |socket| {
            let acceptor = acceptor.clone();
            Box::pin(async move {
                let socket = acceptor.accept(socket).await.ok()?;
                Some(Box::new(socket) as Box<dyn Socket>)
            })
        })
        .await
    }
}

trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

type Accepting = Pin<Box<dyn Future<Output = Option<Box<dyn Socket>>> + Send>>;

struct Server {
    url: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    async fn http(respond: impl Fn(usize, &str) -> String + Send + 'static) -> Self {
        Self::start("http", respond, |socket| {
            Box::pin(async move { Some(Box::new(socket) as Box<dyn Socket>) })
        })
        .await
    }

    async fn start(
        scheme: &str,
        respond: impl Fn(usize, &str) -> String + Send + 'static,
        accept: impl Fn(TcpStream) -> Accepting + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let Some(mut socket) = accept(socket).await else {
                    continue;
                };
                let request = read_request(&mut socket).await;
                let number = {
                    let mut seen = seen.lock().unwrap();
                    seen.push(request.clone());
                    seen.len()
                };
                let answer = respond(number, &request);
                socket.write_all(answer.as_bytes()).await.unwrap();
                let _closed = socket.shutdown().await;
            }
        });
        Self { url, requests }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

/// A request with its body.
async fn read_request(socket: &mut dyn Socket) -> String {
    let mut text = Vec::new();
    let mut chunk = vec![0; 1 << 16];
    loop {
        let length = socket.read(&mut chunk).await.unwrap_or(0);
        text.extend_from_slice(&chunk[..length]);
        let request = String::from_utf8_lossy(&text).into_owned();
        let Some((head, body)) = request.split_once("\r\n\r\n") else {
            assert!(length > 0, "the request is cut off: {request}");
            continue;
        };
        let wanted = head.lines().find_map(|line| {
            let line = line.to_lowercase();
            line.strip_prefix("content-length: ")?.parse().ok()
        });
        if length == 0 || body.len() >= wanted.unwrap_or(0) {
            return request;
        }
    }
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.as_secs()
}

/// A token that Azurite takes for so long.
fn token(seconds: u64) -> String {
    let (begins, ends) = (now() - 60, now() + seconds);
    let claims = format!(
        r#"{{"aud":"https://storage.azure.com","iss":"https://sts.windows.net/tenant/","iat":{begins},"nbf":{begins},"exp":{ends}}}"#
    );
    let parts = [r#"{"alg":"none","typ":"JWT"}"#, &claims, "signature"];
    parts.map(|part| URL_SAFE_NO_PAD.encode(part)).join(".")
}

fn json(body: &str) -> String {
    answer("200 OK", "Content-Type: application/json\r\n", body)
}

/// As a managed identity's endpoint answers.
fn managed(token: &str, valid_seconds: u64) -> String {
    let expires = now() + valid_seconds;
    json(&format!(
        r#"{{"access_token":"{token}","expires_on":"{expires}","resource":"https://storage.azure.com","token_type":"Bearer"}}"#
    ))
}

/// As Entra answers.
fn entra(token: &str) -> String {
    json(&format!(
        r#"{{"token_type":"Bearer","expires_in":3600,"ext_expires_in":3600,"access_token":"{token}"}}"#
    ))
}

/// Runs the test `name` once more, as a child that makes `puts` puts, and gives what became of each.
async fn puts(
    ground: &Ground,
    name: &'static str,
    endpoint: &str,
    puts: &str,
    variables: &[(&str, &str)],
) -> Vec<String> {
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", name, "--nocapture"]).env_clear();
    child.env("WALHALLA_TEST_CHILD", puts);
    child.env("WALHALLA_TEST_CA", &ground.certificate);
    child.env("AZURE_STORAGE_SERVICE_ENDPOINT", endpoint);
    child.envs(variables.iter().copied());
    let output: Output = tokio::task::spawn_blocking(move || child.output().unwrap())
        .await
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!text.contains("hidden"), "{text}");
    let results = text.lines().filter_map(|line| line.strip_prefix("put: "));
    results.map(str::to_owned).collect()
}

/// The child: puts with a pause of three seconds in between.
async fn is_child() -> bool {
    let Ok(count) = std::env::var("WALHALLA_TEST_CHILD") else {
        return false;
    };
    let settings = StoreSettings {
        ca_file: std::env::var_os("WALHALLA_TEST_CA").map(PathBuf::from),
        ..StoreSettings::default()
    };
    let store = open("az://container/prefix", &settings).await.unwrap();
    for number in 0..count.parse().unwrap() {
        if number > 0 {
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
        let key = ObjectKey::new(format!("object-{number}")).unwrap();
        let body = Bytes::from_static(b"body");
        let put = store
            .put(&key, body, PutMode::Create, &PutToken::random())
            .await;
        match put {
            Ok(()) => println!("put: Ok"),
            Err(error) => println!("put: {:?}\n{}", error.kind, shown(&error)),
        }
    }
    true
}

fn kinds(kinds: &[ErrorKind]) -> Vec<String> {
    kinds.iter().map(|kind| format!("{kind:?}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_managed_identity_is_renewed_in_the_middle_of_its_use() {
    if is_child().await {
        return;
    }
    let ground = Ground::new();
    let azurite = ground.azurite();
    // The first token is expired by the second put; that it is good for five minutes and two
    // seconds makes the SDK renew it then.
    let tokens = Server::http(|number, _| match number {
        1 => managed(&token(2), 302),
        _ => managed(&token(3600), 3600),
    })
    .await;
    let name = "a_managed_identity_is_renewed_in_the_middle_of_its_use";
    let variables = [
        ("IDENTITY_ENDPOINT", tokens.url.as_str()),
        ("IDENTITY_HEADER", "header-hidden"),
        ("AZURE_CLIENT_ID", "the-client"),
    ];
    let results = puts(&ground, name, azurite.endpoint(), "2", &variables).await;
    assert_eq!(results, ["Ok", "Ok"]);
    let requests = tokens.requests();
    assert_eq!(requests.len(), 2);
    assert!(requests[0].contains("client_id=the-client"), "{requests:?}");
    assert!(requests[0].contains("header-hidden"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workload_identity_gives_the_clusters_token_for_one_of_entra() {
    if is_child().await {
        return;
    }
    let ground = Ground::new();
    let azurite = ground.azurite();
    let tokens = ground.https(|_, _| entra(&token(3600))).await;
    let file = ground.dir.path().join("token");
    fs::write(&file, "of-the-cluster").unwrap();
    let name = "a_workload_identity_gives_the_clusters_token_for_one_of_entra";
    let variables = [
        ("AZURE_AUTHORITY_HOST", tokens.url.as_str()),
        ("AZURE_FEDERATED_TOKEN_FILE", file.to_str().unwrap()),
        ("AZURE_CLIENT_ID", "the-client"),
        ("AZURE_TENANT_ID", "the-tenant"),
    ];
    let results = puts(&ground, name, azurite.endpoint(), "1", &variables).await;
    assert_eq!(results, ["Ok"]);
    let requests = tokens.requests();
    assert!(requests[0].starts_with("POST /the-tenant/oauth2/v2.0/token"));
    assert!(requests[0].contains("client_assertion=of-the-cluster"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_secret_is_not_tried_again_and_an_entra_that_is_away_is() {
    if is_child().await {
        return;
    }
    let ground = Ground::new();
    let refusal = r#"{"error":"invalid_client","error_codes":[7000215],"error_description":"no"}"#;
    let tokens = ground
        .https(move |number, _| match number {
            1 => answer("401 Unauthorized", "", refusal),
            2 => answer("503 Service Unavailable", "", "<html>"),
            _ => answer("429 Too Many Requests", "", ""),
        })
        .await;
    let name = "a_refused_secret_is_not_tried_again_and_an_entra_that_is_away_is";
    let variables = [
        ("AZURE_AUTHORITY_HOST", tokens.url.as_str()),
        ("AZURE_CLIENT_SECRET", "the-hidden"),
        ("AZURE_CLIENT_ID", "the-client"),
        ("AZURE_TENANT_ID", "the-tenant"),
    ];
    let endpoint = "https://127.0.0.1:1/account";
    let results = puts(&ground, name, endpoint, "3", &variables).await;
    let expected = [
        ErrorKind::Unauthenticated,
        ErrorKind::Unavailable,
        ErrorKind::Throttled(None),
    ];
    assert_eq!(results, kinds(&expected));
    assert!(tokens.requests()[0].contains("client_secret=the-hidden"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_the_store_no_longer_takes_is_renewed_once() {
    if is_child().await {
        return;
    }
    let ground = Ground::new();
    let tokens = Server::http(|number, _| managed(&format!("token-{number}"), 3600)).await;
    let store = ground
        .https(|number, request| {
            let is_stale = request.contains("Bearer token-1") || number > 2;
            let code = "x-ms-error-code: InvalidAuthenticationInfo\r\n";
            if is_stale {
                answer("401 Unauthorized", code, "")
            } else {
                answer("201 Created", "ETag: \"v\"\r\nx-ms-request-id: 1\r\n", "")
            }
        })
        .await;
    let name = "a_token_that_the_store_no_longer_takes_is_renewed_once";
    let variables = [
        ("IDENTITY_ENDPOINT", tokens.url.as_str()),
        ("IDENTITY_HEADER", "header-hidden"),
    ];
    let endpoint = format!("{}/account", store.url);
    let results = puts(&ground, name, &endpoint, "3", &variables).await;
    let refused = kinds(&[ErrorKind::Unavailable, ErrorKind::Unauthenticated]);
    assert_eq!(results, [refused[0].as_str(), "Ok", refused[1].as_str()]);
    assert_eq!(tokens.requests().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_url_opens_with_the_settings_of_the_environment() {
    if is_child().await {
        return;
    }
    let ground = Ground::new();
    let azurite = ground.azurite();
    let name = "a_url_opens_with_the_settings_of_the_environment";
    let sas = azurite.sas(Azurite::CONTAINER, "c");
    let with_sas = [("AZURE_STORAGE_SAS_TOKEN", sas.as_str())];
    let string = azurite.connection_string();
    let connected = [("AZURE_STORAGE_CONNECTION_STRING", string.as_str())];
    for (variables, result) in [(with_sas, "Ok"), (connected, "AlreadyExists")] {
        let results = puts(&ground, name, azurite.endpoint(), "1", &variables).await;
        assert_eq!(results, [result]);
    }
}
