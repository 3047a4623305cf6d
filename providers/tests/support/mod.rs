//! What the tests of the cloud stores share.
#![allow(dead_code)] // each test binary uses its part

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use walhalla_providers::{
    Error, ErrorKind, ListRequest, ObjectKey, ObjectStore, PartAt, PutMode, PutToken, UploadId,
};

/// An error with all its causes, as a user and as a log would show them.
pub(crate) fn shown(error: &Error) -> String {
    let mut text = format!("{error} {error:?}");
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error} {error:?}");
        cause = error.source();
    }
    text
}

/// The kinds of what all requests answer.
pub(crate) async fn all_kinds(store: &dyn ObjectStore, upload: &str) -> Vec<ErrorKind> {
    let (key, token) = (ObjectKey::new("some/key").unwrap(), PutToken::random());
    let upload = UploadId(upload.to_owned());
    let errors = [
        store
            .put(&key, Bytes::from_static(b"x"), PutMode::Create, &token)
            .await
            .err(),
        store
            .start_upload(&key, PutMode::Create, &token)
            .await
            .err(),
        store.get(&key, 0, None).await.err(),
        store.get(&key, 5, Some(5)).await.err(),
        store.head(&key).await.err(),
        store.list(&ListRequest::default()).await.err(),
        first_refused(store.delete(std::slice::from_ref(&key)).await),
        store
            .put_part(&key, &upload, PartAt::FIRST, Bytes::from_static(b"x"))
            .await
            .err(),
    ];
    for error in errors.iter().flatten() {
        assert!(!shown(error).contains("secret"), "{}", shown(error));
    }
    errors
        .into_iter()
        .map(|error| error.unwrap().kind)
        .collect()
}

/// Why a delete of one key failed: as a whole, or of this key.
fn first_refused(deleted: Result<Vec<(ObjectKey, Error)>, Error>) -> Option<Error> {
    deleted.map_or_else(Some, |refused| {
        refused.into_iter().next().map(|(_, error)| error)
    })
}

/// The URL of a server that gives each connection the next of the answers.
pub(crate) async fn canned(answers: Vec<String>) -> String {
    recorded(answers).await.0
}

/// The same, with what it was asked: the requests' heads, in lower case.
pub(crate) async fn recorded(answers: Vec<String>) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let requests = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&requests);
    tokio::spawn(async move {
        for answer in answers {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 1 << 16];
            let length = socket.read(&mut request).await.unwrap();
            request.truncate(length);
            let text = String::from_utf8_lossy(&request).to_lowercase();
            let head = text.split("\r\n\r\n").next().unwrap_or_default();
            record.lock().unwrap().push(head.to_owned());
            socket.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    (url, requests)
}

/// An HTTP answer after which the connection ends.
pub(crate) fn answer(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n{body}"
    )
}
