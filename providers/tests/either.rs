//! Two stores that are read as one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use walhalla_providers::fs::FsStore;
use walhalla_providers::testing::{Call, Fault, FaultyStore, MemoryStore};
use walhalla_providers::transfer::{EitherStore, Options, RetryPolicy, Store};
use walhalla_providers::{ErrorKind, ObjectKey, ObjectStore, PutMode};

/// Both stores, to make them fail, and what reads them as one.
struct Both {
    first: FaultyStore,
    second: FaultyStore,
    either: Store,
}

impl Both {
    fn of(first: Arc<dyn ObjectStore>, second: Arc<dyn ObjectStore>) -> Self {
        let (first, second) = (FaultyStore::new(first), FaultyStore::new(second));
        let either = EitherStore::new(Arc::new(first.clone()), Arc::new(second.clone()));
        let options = Options {
            retry: RetryPolicy {
                deadline: Duration::from_mins(1),
                ..RetryPolicy::default()
            },
            upload_concurrency: 4,
            download_concurrency: 4,
            ..Options::default()
        };
        Self {
            first,
            second,
            either: Store::new(Arc::new(either), options),
        }
    }

    fn in_memory() -> Self {
        let store = || Arc::new(MemoryStore::default());
        Self::of(store(), store())
    }

    fn down(store: &FaultyStore) {
        for call in [Call::Put, Call::Get, Call::Head, Call::List, Call::Delete] {
            store.always(call, Fault::Fail(ErrorKind::Unavailable));
        }
    }
}

fn key(text: &str) -> ObjectKey {
    ObjectKey::new(text).expect("a valid key")
}

async fn put(store: &FaultyStore, text: &str, body: &'static str) {
    let store: Arc<dyn ObjectStore> = Arc::new(store.clone());
    let store = Store::new(store, Options::default());
    let put = store.put(&key(text), body.into(), PutMode::Create).await;
    put.expect("a store that was given no fault");
}

#[tokio::test(start_paused = true)]
async fn what_either_has_is_read() {
    let both = Both::in_memory();
    put(&both.first, "a", "of the first").await;
    put(&both.second, "a", "of the second").await;
    put(&both.second, "b", "only here").await;
    let get = async |name| both.either.get(&key(name), 100).await;
    assert_eq!(get("a").await.unwrap(), "of the first");
    assert_eq!(get("b").await.unwrap(), "only here");
    assert_eq!(both.either.head(&key("b")).await.unwrap().size_bytes, 9);
    assert_eq!(get("c").await.unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(both.either.left_out(), None);

    // The first one's word is enough, where the second cannot be asked.
    Both::down(&both.second);
    assert_eq!(get("c").await.unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(get("a").await.unwrap(), "of the first");
    both.second.heal();

    // The second one's is not, as it may be owed what is asked for: it is taken once the first has failed for some seconds,
    // and whoever must know is told.
    Both::down(&both.first);
    assert_eq!(get("a").await.unwrap(), "of the second");
    assert_eq!(both.either.left_out(), None);
    assert_eq!(get("c").await.unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(both.either.left_out(), Some("memory:"));
}

/// An empty first store is the wrong one, or one that is not mounted.
#[tokio::test(start_paused = true)]
async fn a_first_store_with_nothing_of_a_folder_proves_nothing_about_it() {
    let both = Both::in_memory();
    put(&both.second, "cluster/a", "x").await;
    put(&both.first, "other/b", "x").await;
    let get = async |name| both.either.get(&key(name), 100).await;
    assert_eq!(get("cluster/a").await.unwrap(), "x");
    assert_eq!(get("other/c").await.unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(both.either.left_out(), None);
    assert_eq!(both.either.list("cluster/", None).await.unwrap().len(), 1);
    assert_eq!(both.either.left_out(), Some("memory:"));

    let both = Both::in_memory();
    put(&both.second, "cluster/a", "x").await;
    let absent = both.either.head(&key("cluster/b")).await.unwrap_err();
    assert_eq!(absent.kind, ErrorKind::NotFound);
    assert_eq!(both.either.left_out(), Some("memory:"));
}

/// A second store that fails once may have what the first lacks.
#[tokio::test(start_paused = true)]
async fn a_short_failure_of_the_second_store_is_waited_for() {
    let both = Both::in_memory();
    put(&both.second, "a", "x").await;
    let once = || Fault::Fail(ErrorKind::Unavailable);
    both.second.on(Call::Get, 1, once());
    both.second.on(Call::List, 1, once());
    let body = both.either.get(&key("a"), 100).await.unwrap();
    assert_eq!(body, "x");
    assert_eq!(both.either.list("", None).await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_first_store_that_hangs_does_not_keep_the_second_back() {
    let both = Both::in_memory();
    put(&both.second, "a", "there").await;
    for call in [Call::Get, Call::List] {
        both.first.always(call, Fault::Hang);
    }
    let body = both.either.get(&key("a"), 100).await.unwrap();
    assert_eq!(body, "there");
    let listed = both.either.list("", None).await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(both.either.left_out(), Some("memory:"));
}

#[tokio::test(start_paused = true)]
async fn a_listing_without_the_first_store_says_so_and_a_short_failure_is_waited_for() {
    let both = Both::in_memory();
    put(&both.first, "new", "x").await;
    both.first
        .on(Call::List, 1, Fault::Fail(ErrorKind::Unavailable));
    assert_eq!(both.either.list("", None).await.unwrap().len(), 1);
    assert_eq!(both.either.left_out(), None);
    Both::down(&both.first);
    assert!(both.either.list("", None).await.unwrap().is_empty());
    assert!(both.either.left_out().is_some());

    // Neither: nothing is known.
    Both::down(&both.second);
    assert!(both.either.list("", None).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn small_objects_are_put_into_both_and_one_is_enough() {
    let both = Both::in_memory();
    let put = async |name: &str| {
        let key = key(name);
        let put = both.either.put(&key, "x".into(), PutMode::Create);
        put.await.map_err(|error| error.kind)
    };
    put("both").await.unwrap();
    Both::down(&both.first);
    put("second").await.unwrap();
    both.first.heal();
    Both::down(&both.second);
    put("first").await.unwrap();
    assert_eq!(put("both").await, Err(ErrorKind::AlreadyExists));
    both.second.heal();
    let heads = async |store: &FaultyStore| {
        let mut found = Vec::new();
        for name in ["both", "first", "second"] {
            found.push(store.head(&key(name)).await.is_ok());
        }
        found
    };
    assert_eq!(heads(&both.first).await, [true, true, false]);
    assert_eq!(heads(&both.second).await, [true, false, true]);
    let refused = both.either.delete(&[key("both"), key("second")]).await;
    assert!(refused.unwrap().is_empty());
    assert_eq!(heads(&both.first).await, [false, true, false]);
    assert_eq!(heads(&both.second).await, [false; 3]);
}

#[tokio::test]
async fn a_listing_shows_each_key_of_either_once_and_in_order() {
    for _ in 0..60 {
        let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let [first, second] = [0, 1].map(|at| {
            let store = FsStore::with_page_keys(dirs[at].path(), fastrand::usize(1..7));
            Arc::new(store.unwrap())
        });
        let both = Both::of(first, second);
        let mut keys = BTreeSet::new();
        for _ in 0..fastrand::usize(0..40) {
            let folder = fastrand::choice(["", "a/", "b/", "b/c/", "d/"]).unwrap();
            let name = format!("{folder}{}", fastrand::u8(..30));
            let (is_in_first, is_in_second) =
                fastrand::choice([(true, true), (true, false), (false, true)]).unwrap();
            if keys.insert(name.clone()) {
                if is_in_first {
                    put(&both.first, &name, "x").await;
                }
                if is_in_second {
                    put(&both.second, &name, "x").await;
                }
            }
        }
        for (prefix, after) in [
            ("", None),
            ("a/", None),
            ("b/", Some("b/15")),
            ("", Some("a/2")),
        ] {
            let mut pages = both.either.pages(prefix, after);
            let mut listed = Vec::new();
            while let Some(page) = pages.next_page().await.unwrap() {
                listed.extend(page.objects.into_iter().map(|info| info.key.to_string()));
            }
            let is_wanted = |key: &&String| {
                key.starts_with(prefix) && after.is_none_or(|after| key.as_str() > after)
            };
            let wanted: Vec<String> = keys.iter().filter(is_wanted).cloned().collect();
            assert_eq!(listed, wanted, "{prefix} {after:?}");
        }
        let folders: BTreeSet<String> = { keys.iter() }
            .filter_map(|key| Some(key.split_once('/')?.0.to_owned()))
            .collect();
        let listed = both.either.folders("").await.unwrap();
        assert_eq!(listed, folders.into_iter().collect::<Vec<_>>());
    }
}
