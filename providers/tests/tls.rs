//! Servers whose certificates are signed by an authority of one's own.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use support::shown;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use walhalla_providers::transfer::{Options, Store, StoreSettings, open};
use walhalla_providers::{Distrust, ErrorKind, ObjectKey, PutMode, PutToken};

/// A store's URL and the variables that point it at an endpoint.
fn clouds(endpoint: &str) -> Vec<(&'static str, Vec<(&'static str, String)>)> {
    let keys = |name| (name, "c2VjcmV0".to_owned());
    let connection = format!("AccountName=name;AccountKey=c2VjcmV0;BlobEndpoint={endpoint}/name");
    vec![
        (
            "s3://bucket/prefix",
            vec![
                keys("AWS_ACCESS_KEY_ID"),
                keys("AWS_SECRET_ACCESS_KEY"),
                ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
                ("AWS_ENDPOINT_URL_S3", endpoint.to_owned()),
            ],
        ),
        (
            "gs://bucket/prefix",
            vec![("STORAGE_EMULATOR_HOST", endpoint.to_owned())],
        ),
        (
            "az://container/prefix",
            vec![("AZURE_STORAGE_CONNECTION_STRING", connection)],
        ),
    ]
}

/// When a certificate is valid.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Validity {
    Now,
    Expired,
}

/// An HTTPS server that refuses everything, and counts.
struct Server {
    endpoint: String,
    requests: Arc<AtomicU32>,
}

/// Serves with a certificate for `localhost` that the authority in the returned file has signed.
async fn serve(dir: &Path, validity: Validity) -> (Server, PathBuf) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate().unwrap();
    let ca = params.self_signed(&ca_key).unwrap();
    let ca_file = dir.join("ca.pem");
    std::fs::write(&ca_file, ca.pem()).unwrap();

    let key = KeyPair::generate().unwrap();
    let mut own = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    if validity == Validity::Expired {
        (own.not_before, own.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(2002, 1, 1));
    }
    let own = own.signed_by(&key, &Issuer::new(params, ca_key)).unwrap();
    let private = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![own.der().clone()], private)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!(
        "https://localhost:{}",
        listener.local_addr().unwrap().port()
    );
    let requests = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&requests);
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let (acceptor, count) = (acceptor.clone(), Arc::clone(&count));
            tokio::spawn(async move {
                // A client that does not know the authority hangs up here.
                let Ok(mut socket) = acceptor.accept(socket).await else {
                    return;
                };
                let mut request = vec![0; 1 << 16];
                let _read = socket.read(&mut request).await;
                count.fetch_add(1, Ordering::Relaxed);
                let refusal = support::answer("403 Forbidden", "", "");
                let _written = socket.write_all(refusal.as_bytes()).await;
                let _closed = socket.shutdown().await;
            });
        }
    });
    (Server { endpoint, requests }, ca_file)
}

/// Asks for an object of the store that the child's environment names.
async fn child(url: &str) {
    let settings = StoreSettings {
        ca_file: std::env::var_os("WALHALLA_CA_FILE").map(PathBuf::from),
        ..StoreSettings::default()
    };
    let store = open(url, &settings).await.unwrap();
    let key = ObjectKey::new("object").unwrap();
    let error = store.head(&key).await.unwrap_err();
    if settings.ca_file.is_some() {
        assert_eq!(error.kind, ErrorKind::PermissionDenied, "{}", shown(&error));
    } else {
        let authority = ErrorKind::Untrusted(Distrust::Authority);
        assert_eq!(error.kind, authority, "{}", shown(&error));
        let said = shown(&error);
        for word in [
            "TLS",
            "certificate",
            "signed by an authority that is unknown here",
        ] {
            assert!(said.contains(word), "{word}: {said}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_trusted_when_the_ca_file_says_so_and_only_then() {
    if let Ok(url) = std::env::var("WALHALLA_TEST_CHILD") {
        return child(&url).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let (server, ca_file) = serve(dir.path(), Validity::Now).await;
    for (url, variables) in clouds(&server.endpoint) {
        for ca_file in [None, Some(&ca_file)] {
            let before = server.requests.load(Ordering::Relaxed);
            let mut child = std::process::Command::new(std::env::current_exe().unwrap());
            child.args([
                "--exact",
                "a_certificate_is_trusted_when_the_ca_file_says_so_and_only_then",
            ]);
            child
                .env_clear()
                .env("WALHALLA_TEST_CHILD", url)
                .envs(variables.clone());
            if let Some(path) = ca_file {
                child.env("WALHALLA_CA_FILE", path);
            }
            let output = tokio::task::spawn_blocking(move || child.output().unwrap());
            let output = output.await.unwrap();
            assert!(output.status.success(), "{url}, {ca_file:?}: {output:?}");
            let reached = server.requests.load(Ordering::Relaxed) > before;
            assert_eq!(reached, ca_file.is_some(), "{url}");
        }
    }
}

/// Asks a server whose authority is trusted and whose certificate is not this host's, or not any more; nothing is repeated.
async fn refused_child(url: &str) {
    let settings = StoreSettings {
        ca_file: std::env::var_os("WALHALLA_CA_FILE").map(PathBuf::from),
        ..StoreSettings::default()
    };
    let store = open(url, &settings).await.unwrap();
    let store = Store::new(store, Options::default());
    let began = std::time::Instant::now();
    let error = store
        .head(&ObjectKey::new("object").unwrap())
        .await
        .unwrap_err();
    assert!(
        began.elapsed().as_secs() < 20,
        "it was tried again: {}",
        shown(&error)
    );
    let said = shown(&error);
    let (distrust, words) = match std::env::var("WALHALLA_TEST_FAULT").unwrap().as_str() {
        "name" => (Distrust::Name, "it is for localhost"),
        _ => (Distrust::Time, "expired at 2002-01-01T00:00:00Z"),
    };
    assert_eq!(error.kind, ErrorKind::Untrusted(distrust), "{said}");
    assert!(
        said.contains(words) && said.contains("endpoint https://"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_another_host_or_time_is_refused_at_once_and_why_is_said() {
    if let Ok(url) = std::env::var("WALHALLA_TEST_CHILD") {
        return refused_child(&url).await;
    }
    let dir = tempfile::tempdir().unwrap();
    for (fault, validity) in [("name", Validity::Now), ("time", Validity::Expired)] {
        let (server, ca_file) = serve(dir.path(), validity).await;
        let endpoint = match fault {
            "name" => server.endpoint.replace("localhost", "127.0.0.1"),
            _ => server.endpoint.clone(),
        };
        for (url, variables) in clouds(&endpoint) {
            let mut child = std::process::Command::new(std::env::current_exe().unwrap());
            child.args([
                "--exact",
                "a_certificate_of_another_host_or_time_is_refused_at_once_and_why_is_said",
            ]);
            child
                .env_clear()
                .env("WALHALLA_TEST_CHILD", url)
                .env("WALHALLA_TEST_FAULT", fault)
                .env("WALHALLA_CA_FILE", &ca_file)
                .envs(variables);
            let output = tokio::task::spawn_blocking(move || child.output().unwrap());
            let output = output.await.unwrap();
            assert!(output.status.success(), "{url}, {fault}: {output:?}");
        }
    }
}

/// Stores an object in Google's store, whose crate writes bodies with a client of its own.
async fn put_body() {
    let settings = StoreSettings {
        ca_file: std::env::var_os("WALHALLA_CA_FILE").map(PathBuf::from),
        ..StoreSettings::default()
    };
    let store = open("gs://bucket/prefix", &settings).await.unwrap();
    let (key, token) = (ObjectKey::new("object").unwrap(), PutToken::random());
    let put = store.put(&key, Bytes::new(), PutMode::Create, &token).await;
    let put = put.unwrap_err();
    if settings.ca_file.is_none() {
        let head = store.head(&key).await.unwrap_err();
        let kinds = [put.kind, head.kind];
        assert_eq!(kinds, [ErrorKind::PermissionDenied; 2], "{}", shown(&put));
    } else {
        let authority = ErrorKind::Untrusted(Distrust::Authority);
        assert_eq!(put.kind, authority, "{}", shown(&put));
        assert!(shown(&put).contains("SSL_CERT_FILE"), "{}", shown(&put));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_of_googles_store_trust_the_certificates_that_ssl_cert_file_names() {
    if std::env::var_os("WALHALLA_TEST_CHILD").is_some() {
        return put_body().await;
    }
    let dir = tempfile::tempdir().unwrap();
    let (server, ca_file) = serve(dir.path(), Validity::Now).await;
    for variable in ["SSL_CERT_FILE", "WALHALLA_CA_FILE"] {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args([
            "--exact",
            "bodies_of_googles_store_trust_the_certificates_that_ssl_cert_file_names",
        ]);
        child
            .env_clear()
            .env("WALHALLA_TEST_CHILD", "1")
            .env("STORAGE_EMULATOR_HOST", &server.endpoint)
            .env(variable, &ca_file);
        let output = tokio::task::spawn_blocking(move || child.output().unwrap());
        let output = output.await.unwrap();
        assert!(output.status.success(), "{variable}: {output:?}");
    }
}

#[tokio::test]
async fn a_ca_file_that_holds_no_sound_certificate_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let mark =
        |text: &str| format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n");
    for path in [
        dir.path().join("missing"),
        write("empty", ""),
        write("other", "no certificate"),
        write("damaged", &mark("!!!!")),
        write("garbage", &mark("AAAA")),
    ] {
        // Azure's store looks for an account first, and has these looked at by the same function.
        for url in ["s3://bucket/prefix", "gs://bucket/prefix"] {
            let settings = StoreSettings {
                ca_file: Some(path.clone()),
                ..StoreSettings::default()
            };
            let error = open(url, &settings).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Invalid, "{}", shown(&error));
            assert!(shown(&error).contains("ca_file"), "{}", shown(&error));
        }
    }
}
