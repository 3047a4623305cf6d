//! What a store must show of its past.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use jiff::Timestamp;

use crate::transfer::AsOfStore;
use crate::{
    ErrorKind, ListRequest, ObjectKey, ObjectStore, PutMode, PutToken, Result, Retained,
    Versioning, VersionsRequest,
};

/// Servers tell times in seconds.
const APART: Duration = Duration::from_millis(1100);
/// More keys than a page has.
const KEYS: u32 = 23;
const PAGE: u16 = 5;

fn key(text: &str) -> ObjectKey {
    ObjectKey::new(text).unwrap()
}

async fn put(store: &dyn ObjectStore, at: &str, body: &str) {
    let body = Bytes::copy_from_slice(body.as_bytes());
    let (key, token) = (key(at), PutToken::random());
    let put = store.put(&key, body, PutMode::Overwrite, &token);
    put.await.unwrap();
}

/// A time that is apart from everything before and after it.
async fn moment() -> Timestamp {
    tokio::time::sleep(APART).await;
    let now = Timestamp::now();
    tokio::time::sleep(APART).await;
    now
}

async fn content(store: &dyn ObjectStore, at: &str) -> Result<String> {
    let download = store.get(&key(at), 0, None).await?;
    let body: Vec<Bytes> = download.body.try_collect().await?;
    Ok(String::from_utf8(body.concat()).unwrap())
}

/// Keys with lengths, and folders, of all pages.
async fn listed(store: &dyn ObjectStore, request: ListRequest) -> (Vec<String>, Vec<String>) {
    let (mut keys, mut folders) = (Vec::new(), Vec::new());
    let mut request = request;
    loop {
        let page = store.list(&request).await.unwrap();
        let objects = page.objects.iter();
        keys.extend(objects.map(|info| format!("{} {}", info.key, info.size_bytes)));
        folders.extend(page.folders);
        request.page = page.next;
        if request.page.is_none() {
            return (keys, folders);
        }
    }
}

/// What was deleted and replaced is there as of a time before, and what came later is not; nothing can be changed.
///
/// # Panics
/// When it is not so.
pub async fn the_past_is_shown(store: Arc<dyn ObjectStore>) {
    put(&*store, "a/deleted", "one").await;
    put(&*store, "a/replaced", "one").await;
    put(&*store, "b/kept", "").await;
    for number in 0..KEYS {
        put(&*store, &format!("many/{number:03}"), "old").await;
    }
    let before = moment().await;
    store.delete(&[key("a/deleted")]).await.unwrap();
    put(&*store, "a/replaced", "another").await;
    put(&*store, "c/new", "three").await;
    for number in 0..KEYS {
        let at = format!("many/{number:03}");
        match number % 3 {
            0 => put(&*store, &at, "newer").await,
            1 => _ = store.delete(&[key(&at)]).await.unwrap(),
            _ => {}
        }
        put(&*store, &format!("many/{number:03}-later"), "x").await;
    }
    let after = moment().await;
    put(&*store, "a/deleted", "again").await;

    let retained = store.retained(&key("b/kept")).await.unwrap();
    assert_eq!(retained.versioning, Versioning::Kept);
    let past = AsOfStore::new(Arc::clone(&store), before);
    assert_eq!(content(&past, "a/deleted").await.unwrap(), "one");
    assert_eq!(content(&past, "a/replaced").await.unwrap(), "one");
    assert_eq!(content(&past, "b/kept").await.unwrap(), "");
    let absent = content(&past, "c/new").await.unwrap_err();
    assert_eq!(absent.kind, ErrorKind::NotFound);
    assert_eq!(past.head(&key("a/replaced")).await.unwrap().size_bytes, 3);
    let begun = past.get(&key("a/replaced"), 1, Some(1)).await.unwrap();
    let begun: Vec<Bytes> = begun.body.try_collect().await.unwrap();
    assert_eq!(begun.concat(), b"n");

    let all = |keys: &[&str]| keys.iter().map(ToString::to_string).collect::<Vec<_>>();
    let of_a = |fold| ListRequest {
        prefix: if fold { "" } else { "a/" }.to_owned(),
        fold,
        ..ListRequest::default()
    };
    assert_eq!(
        listed(&past, of_a(false)).await.0,
        ["a/deleted 3", "a/replaced 3"]
    );
    assert_eq!(
        listed(&past, of_a(true)).await.1,
        all(&["a/", "b/", "many/"])
    );
    for most_keys in [None, Some(PAGE)] {
        let many = ListRequest {
            prefix: "many/".to_owned(),
            start_after: Some("many/004".to_owned()),
            most_keys,
            ..ListRequest::default()
        };
        let old = (5..KEYS).map(|number| format!("many/{number:03} 3"));
        assert_eq!(listed(&past, many).await.0, old.collect::<Vec<_>>());
    }
    let changed = past.delete(&[key("b/kept")]).await.unwrap_err();
    assert_eq!(changed.kind, ErrorKind::PermissionDenied);
    let body = Bytes::new();
    let token = PutToken::random();
    let changed = past.put(&key("d"), body, PutMode::Create, &token).await;
    assert_eq!(changed.unwrap_err().kind, ErrorKind::PermissionDenied);

    let later = AsOfStore::new(Arc::clone(&store), after);
    assert_eq!(listed(&later, of_a(false)).await.0, ["a/replaced 7"]);
    assert_eq!(content(&later, "c/new").await.unwrap(), "three");
    let gone = content(&later, "a/deleted").await.unwrap_err();
    assert_eq!(gone.kind, ErrorKind::NotFound);
    let nothing = AsOfStore::new(store, before - Duration::from_hours(1));
    assert_eq!(listed(&nothing, of_a(true)).await, (vec![], vec![]));
}

/// A store that keeps no versions says so, and shows nothing.
///
/// # Panics
/// When it shows something.
pub async fn the_past_is_refused(store: Arc<dyn ObjectStore>) {
    put(&*store, "a", "one").await;
    let retained = store.retained(&key("a")).await.unwrap();
    let nothing = Retained {
        versioning: Versioning::Never,
        until: None,
    };
    assert_eq!(retained, nothing);
    let past = AsOfStore::new(Arc::clone(&store), Timestamp::now());
    for refused in [
        past.list(&ListRequest::default()).await.map(drop),
        past.head(&key("a")).await.map(drop),
        content(&past, "a").await.map(drop),
    ] {
        let refused = refused.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Unsupported, "{refused}");
        let chain = format!("{refused:?}");
        assert!(
            chain.contains("versions") || chain.contains("NoVersions"),
            "{chain}"
        );
    }
    drop(store.versions(&VersionsRequest::default()).await);
}
