//! What every store must do. Each function takes an empty store or one that it shares with the
//! others: every check has a prefix of its own.
//!
//! [`conformance_tests!`](crate::conformance_tests) makes a test of each.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{Call, Fault, FaultyStore};
use crate::transfer::{Options, RetryPolicy, Store, Upload};
use crate::{ErrorKind, ListRequest, ObjectKey, ObjectStore, PartAt, PutMode, PutToken};

type AnyStore = Arc<dyn ObjectStore>;

/// A `#[tokio::test]` for each check; `$open`, in async code, gives the store and what must outlive it.
/// With `on one server but [names of checks];` before it, one test makes all checks but those, for servers that take
/// seconds to start, with `each on a server but …` on a new server each, for those that get slow; say there why a
/// check is left out.
#[macro_export]
macro_rules! conformance_tests {
    (on one server but $left_out:expr; $open:expr) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn the_conformance_suite() {
            let left_out: &[&str] = &$left_out;
            let (store, _guard): (std::sync::Arc<dyn $crate::ObjectStore>, _) = $open;
            $crate::conformance_tests!(@checks one_by_one, (store, left_out));
        }
    };
    (each on a server but $left_out:expr; $open:expr) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn the_conformance_suite() {
            let left_out: &[&str] = &$left_out;
            $crate::conformance_tests!(@checks each_anew, left_out => $open);
        }
    };
    (@checks $then:ident, $($argument:tt)+) => {
        $crate::conformance_tests!(@$then ($($argument)+);
            create_stores_once,
            an_upload_creates_once,
            one_of_sixteen_racing_creates_wins,
            one_of_racing_uploads_wins,
            overwrite_replaces,
            bodies_of_every_size_come_back,
            a_long_body_of_unknown_length_comes_back,
            ranges_at_the_edges_come_back,
            a_read_resumes_after_a_cut,
            absent_keys_are_not_found,
            listings_are_complete_and_in_order,
            listings_of_folders_start_anywhere,
            listings_fold_folders,
            listings_show_each_change_at_once,
            pages_neither_lose_nor_repeat_keys,
            prefixes_that_share_a_stem_stay_apart,
            odd_characters_in_keys_survive,
            backslashes_in_keys_survive,
            deletes_are_idempotent,
            empty_folders_vanish,
            batches_are_deleted,
            a_batch_with_a_refused_key_deletes_the_others,
            nothing_is_visible_during_an_upload,
            an_aborted_upload_leaves_nothing,
            an_upload_that_was_given_up_is_found_and_dropped,
            a_cancelled_upload_leaves_nothing_visible,
        );
    };
    (@one_by_one ($argument:expr); $($name:ident),+ $(,)?) => {
        let (store, left_out) = $argument;
        $(
            if !left_out.contains(&stringify!($name)) {
                println!("{}", stringify!($name));
                $crate::testing::conformance::$name(std::sync::Arc::clone(&store)).await;
            }
        )+
    };
    (@each_anew ($left_out:ident => $open:expr); $($name:ident),+ $(,)?) => {
        $(
            if !$left_out.contains(&stringify!($name)) {
                println!("{}", stringify!($name));
                let (store, _guard) = $open;
                $crate::testing::conformance::$name(store).await;
            }
        )+
    };
    (@a_test_each ($open:expr); $($name:ident),+ $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let (store, _guard) = $open;
                $crate::testing::conformance::$name(store).await;
            }
        )+
    };
    ($open:expr) => {
        $crate::conformance_tests!(@checks a_test_each, $open);
    };
}

/// Options whose retries take milliseconds.
pub fn quick_options() -> Options {
    let retry = RetryPolicy {
        first_delay: Duration::from_millis(1),
        max_delay: Duration::from_millis(20),
        deadline: Duration::from_mins(1),
        attempt_timeout: Duration::from_secs(20),
    };
    Options {
        retry,
        ..Options::default()
    }
}

fn key(text: &str) -> ObjectKey {
    ObjectKey::new(text).unwrap()
}

/// Bytes in which every position differs from its neighbours.
pub(super) fn pattern(length: usize) -> Bytes {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64 ^ length as u64;
    let mut body = Vec::with_capacity(length + 8);
    while body.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        body.extend_from_slice(&state.to_le_bytes());
    }
    body.truncate(length);
    Bytes::from(body)
}

fn transfer(store: AnyStore) -> Store {
    Store::new(store, quick_options())
}

async fn keys(store: &Store, prefix: &str, start_after: Option<&str>) -> Vec<String> {
    let objects = store.list(prefix, start_after).await.unwrap();
    objects
        .into_iter()
        .map(|object| object.key.as_str().to_owned())
        .collect()
}

/// An upload's result; a store may refuse it at any step.
async fn upload_all(mut upload: Upload, body: Bytes) -> crate::Result<()> {
    upload.write(body).await?;
    upload.finish().await.map(drop)
}

/// All bytes that a body gives.
async fn read(store: &Store, key: &ObjectKey, offset: u64, length: Option<u64>) -> Vec<u8> {
    let mut reader = store.read(key, offset, length).await.unwrap();
    let mut body = Vec::new();
    while let Some(chunk) = reader.next().await.unwrap() {
        assert!(!chunk.is_empty());
        body.extend_from_slice(&chunk);
    }
    body
}

/// A create of a key that is taken fails and changes nothing.
pub async fn create_stores_once(store: AnyStore) {
    let store = transfer(store);
    let key = key("create/once");
    let put = |body| store.put(&key, Bytes::from_static(body), PutMode::Create);
    put(b"first").await.unwrap();
    let again = put(b"second").await;
    assert_eq!(again.unwrap_err().kind, ErrorKind::AlreadyExists);
    assert_eq!(store.get(&key, 100).await.unwrap(), "first");
}

/// An upload in parts to a key that is taken fails and changes nothing.
pub async fn an_upload_creates_once(store: AnyStore) {
    let parts = store.limits().part_size_bytes;
    let store = transfer(store);
    let key = key("create/once-in-parts");
    let first = Bytes::from_static(b"first");
    store.put(&key, first, PutMode::Create).await.unwrap();
    let upload = store.upload(key.clone(), PutMode::Create);
    let again = upload_all(upload, pattern(parts + 1)).await;
    assert_eq!(again.unwrap_err().kind, ErrorKind::AlreadyExists);
    assert_eq!(store.get(&key, 100).await.unwrap(), "first");
}

/// Sixteen creates of one key at once: one succeeds, and its body is the object.
pub async fn one_of_sixteen_racing_creates_wins(store: AnyStore) {
    let options = Options {
        upload_concurrency: 16,
        ..quick_options()
    };
    let store = Store::new(store, options);
    for round in 0..5 {
        let key = key(&format!("race/{round}/object"));
        let writers: Vec<_> = (0..16_u8)
            .map(|writer| {
                let (store, key) = (store.clone(), key.clone());
                tokio::spawn(async move {
                    let put = store
                        .put(&key, Bytes::from(vec![writer; 100_000]), PutMode::Create)
                        .await;
                    (writer, put)
                })
            })
            .collect();
        assert_one_winner(&store, &key, writers).await;
    }
}

/// Four uploads in parts to one key at once: one succeeds, and its body is the object.
pub async fn one_of_racing_uploads_wins(store: AnyStore) {
    let length = store.limits().part_size_bytes + 1;
    let store = transfer(store);
    let key = key("race/upload");
    let writers: Vec<_> = (0..4_u8)
        .map(|writer| {
            let upload = store.upload(key.clone(), PutMode::Create);
            let body = Bytes::from(vec![writer; length]);
            tokio::spawn(async move { (writer, upload_all(upload, body).await) })
        })
        .collect();
    assert_one_winner(&store, &key, writers).await;
}

async fn assert_one_winner(
    store: &Store,
    key: &ObjectKey,
    writers: Vec<tokio::task::JoinHandle<(u8, crate::Result<()>)>>,
) {
    let mut winners = Vec::new();
    for writer in writers {
        match writer.await.unwrap() {
            (writer, Ok(())) => winners.push(writer),
            (_, Err(error)) => assert_eq!(error.kind, ErrorKind::AlreadyExists, "{error}"),
        }
    }
    assert_eq!(winners.len(), 1, "exactly one writer wins");
    let body = read(store, key, 0, None).await;
    assert!(
        body.iter().all(|byte| *byte == winners[0]),
        "the object is the winner's"
    );
}

/// An overwrite replaces a longer and a shorter object, and creates a missing one.
pub async fn overwrite_replaces(store: AnyStore) {
    let store = transfer(store);
    let key = key("overwrite/object");
    for body in ["first", "a longer second", "3"] {
        store
            .put(
                &key,
                Bytes::from_static(body.as_bytes()),
                PutMode::Overwrite,
            )
            .await
            .unwrap();
        assert_eq!(store.get(&key, 100).await.unwrap(), body);
    }
    assert_eq!(
        store.get(&key, 0).await.unwrap_err().kind,
        ErrorKind::Invalid,
        "the limit holds"
    );
}

/// Bodies around the part's size and several parts long come back, whether put or uploaded in odd chunks.
pub async fn bodies_of_every_size_come_back(store: AnyStore) {
    let part = store.limits().part_size_bytes;
    let store = transfer(store);
    let five = 5 << 20;
    let around_parts = [part - 1, part, part + 1, 3 * part, 3 * part + 7];
    let lengths = [0, 1, five - 1, five, five + 1].into_iter();
    for length in lengths.chain(around_parts) {
        let body = pattern(length);
        let uploaded = key(&format!("sizes/uploaded-{length}"));
        let mut upload = store.upload(uploaded.clone(), PutMode::Overwrite);
        for chunk in body.chunks(part / 3 + 1) {
            upload.write(body.slice_ref(chunk)).await.unwrap();
        }
        assert_eq!(upload.finish().await.unwrap(), length as u64);
        assert!(
            read(&store, &uploaded, 0, None).await == body,
            "{length} bytes, uploaded"
        );
        assert_eq!(
            store.head(&uploaded).await.unwrap().size_bytes,
            length as u64
        );
        if length <= part + 1 {
            let put = key(&format!("sizes/put-{length}"));
            store
                .put(&put, body.clone(), PutMode::Overwrite)
                .await
                .unwrap();
            assert!(
                store.get(&put, u64::MAX).await.unwrap() == body,
                "{length} bytes, put"
            );
        }
    }
}

/// 200 MB whose length nobody knew before come back, and are held in memory by neither side.
pub async fn a_long_body_of_unknown_length_comes_back(store: AnyStore) {
    const CHUNKS: usize = 200;
    let store = transfer(store);
    let key = key("sizes/long");
    let chunk = |number: usize| pattern(1_000_000 + number % 7);
    let mut upload = store.upload(key.clone(), PutMode::Create);
    let mut written = 0;
    for number in 0..CHUNKS {
        written += chunk(number).len() as u64;
        upload.write(chunk(number)).await.unwrap();
    }
    assert_eq!(upload.finish().await.unwrap(), written);
    let mut reader = store.read(&key, 0, None).await.unwrap();
    assert_eq!(reader.size_bytes(), written);
    let mut left = Bytes::new();
    for number in 0..CHUNKS {
        let mut expected = chunk(number);
        while !expected.is_empty() {
            if left.is_empty() {
                left = reader.next().await.unwrap().expect("more bytes");
            }
            let length = expected.len().min(left.len());
            assert!(
                left.split_to(length) == expected.split_to(length),
                "in megabyte {number}"
            );
        }
    }
    assert!(left.is_empty() && reader.next().await.unwrap().is_none());
}

/// Ranges at the beginning, the end and past it, of an object with bytes and of one without.
pub async fn ranges_at_the_edges_come_back(store: AnyStore) {
    let store = transfer(store);
    let (full, empty) = (key("ranges/full"), key("ranges/empty"));
    let body = pattern(10_000);
    store
        .put(&full, body.clone(), PutMode::Create)
        .await
        .unwrap();
    store
        .put(&empty, Bytes::new(), PutMode::Create)
        .await
        .unwrap();
    let ranges = [
        (0, None, 0..10_000),
        (0, Some(0), 0..0),
        (5, Some(0), 5..5),
        (0, Some(1), 0..1),
        (0, Some(10_000), 0..10_000),
        (0, Some(u64::MAX), 0..10_000),
        (1, None, 1..10_000),
        (9_999, None, 9_999..10_000),
        (9_999, Some(1), 9_999..10_000),
        (9_999, Some(2), 9_999..10_000),
        (4_000, Some(2_000), 4_000..6_000),
    ];
    for (offset, length, expected) in ranges {
        let got = read(&store, &full, offset, length).await;
        assert!(got == body[expected], "from {offset}, {length:?} bytes");
    }
    assert_eq!(
        store
            .read(&full, 4_000, Some(1))
            .await
            .unwrap()
            .size_bytes(),
        10_000
    );
    for length in [None, Some(0), Some(1)] {
        assert!(read(&store, &empty, 0, length).await.is_empty());
    }
    for (key, offset) in [(&full, 10_000), (&full, 10_001), (&empty, 1)] {
        assert_eq!(
            store.read(key, offset, None).await.unwrap_err().kind,
            ErrorKind::Invalid
        );
    }
}

/// A body whose connection drops, or which ends early, is read on from where it was.
pub async fn a_read_resumes_after_a_cut(store: AnyStore) {
    let faulty = FaultyStore::new(store);
    let store = transfer(Arc::new(faulty.clone()));
    let key = key("resume/object");
    let body = pattern(3_000_000);
    store
        .put(&key, body.clone(), PutMode::Create)
        .await
        .unwrap();
    faulty.on(
        Call::Get,
        1,
        Fault::DropConnection {
            after_bytes: 1_500_000,
        },
    );
    faulty.on(Call::Get, 2, Fault::DropConnection { after_bytes: 0 });
    faulty.on(Call::Get, 3, Fault::EndBody { after_bytes: 1 });
    faulty.on(Call::Get, 4, Fault::Fail(ErrorKind::Unavailable));
    assert!(read(&store, &key, 0, None).await == body);
    assert_eq!(faulty.calls(Call::Get), 5);
    faulty.on(Call::Get, 6, Fault::DropConnection { after_bytes: 10 });
    assert!(read(&store, &key, 100, Some(50)).await == body[100..150]);
}

/// Reads of an absent key are "not found", also beside and below keys that are there.
pub async fn absent_keys_are_not_found(store: AnyStore) {
    let store = transfer(store);
    store
        .put(&key("absent/there/object"), Bytes::new(), PutMode::Create)
        .await
        .unwrap();
    for absent in [
        "absent/no",
        "absent/there",
        "absent/there/objec",
        "absent/there/object/below",
        "gone/x/y",
    ] {
        let absent = key(absent);
        assert!(
            store.head(&absent).await.unwrap_err().is_not_found(),
            "{absent}"
        );
        assert!(
            store
                .read(&absent, 0, None)
                .await
                .unwrap_err()
                .is_not_found(),
            "{absent}"
        );
        assert!(
            store.get(&absent, 10).await.unwrap_err().is_not_found(),
            "{absent}"
        );
    }
    assert!(keys(&store, "absent/no", None).await.is_empty());
    assert!(keys(&store, "gone/x/", None).await.is_empty());
    assert!(keys(&store, "absent/there/object/", None).await.is_empty());
}

/// 2,500 keys come in byte order, over several pages, and those of a folder without folders from any start.
pub async fn listings_are_complete_and_in_order(store: AnyStore) {
    let store = transfer(store);
    let mut expected = many(&store, "many").await;
    expected.sort_unstable();
    assert!(keys(&store, "many/", None).await == expected);
    assert!(keys(&store, "many/", Some("many0")).await.is_empty());
    assert!(
        keys(&store, "many/", Some("a")).await == expected,
        "a start before the prefix"
    );
    assert_eq!(store.list("many/", None).await.unwrap()[0].size_bytes, 3);

    let flat: Vec<_> = (0..1_200)
        .map(|number| format!("flat/{number:04}"))
        .collect();
    put_all(&store, &flat).await;
    for start in [0, 1, 998, 999, 1_000, 1_198, 1_199] {
        let listed = keys(&store, "flat/", Some(&flat[start])).await;
        assert!(listed == flat[start + 1..], "after {}", flat[start]);
    }
    let listed = keys(&store, "flat/", Some("flat/05")).await;
    assert!(listed == flat[500..], "after a text that is no key");
}

/// An object is listed as soon as it is created, and no longer once it is deleted, by a listing of any length of its prefix.
pub async fn listings_show_each_change_at_once(store: AnyStore) {
    let store = Store::new(store, quick_options());
    for round in 0..20 {
        let name = key(&format!("changes/{round:02}.lz4"));
        let prefixes = ["changes/".to_owned(), format!("changes/{round:02}")];
        let body = Bytes::from_static(b"x");
        store.put(&name, body, PutMode::Create).await.unwrap();
        for prefix in &prefixes {
            assert_eq!(keys(&store, prefix, None).await, [name.as_str()]);
        }
        let refused = store.delete(std::slice::from_ref(&name)).await.unwrap();
        assert!(refused.is_empty());
        for prefix in &prefixes {
            assert_eq!(keys(&store, prefix, None).await, [""; 0]);
        }
    }
}

/// Over the border of pages each key that stays is listed once, in order, whatever is created and deleted meanwhile.
pub async fn pages_neither_lose_nor_repeat_keys(store: AnyStore) {
    let store = Store::new(store, quick_options());
    let mut expected: Vec<String> = (0..1_100).map(|n| format!("pages/{n:04}")).collect();
    put_all(&store, &expected).await;
    let mut pages = store.pages("pages/", None);
    let first = pages.next_page().await.unwrap().unwrap();
    let mut listed: Vec<String> = first
        .objects
        .into_iter()
        .map(|info| info.key.to_string())
        .collect();
    // The last key of the page, at which the next one may begin; and one that is still to come.
    let gone = [listed.last().unwrap().clone(), expected.pop().unwrap()];
    let gone = gone.map(|name| key(&name));
    assert!(store.delete(&gone).await.unwrap().is_empty());
    put_all(&store, &["pages/0000-new".to_owned()]).await;
    while let Some(page) = pages.next_page().await.unwrap() {
        listed.extend(page.objects.into_iter().map(|info| info.key.to_string()));
    }
    // A store may have read ahead what is gone meanwhile.
    listed.retain(|name| *name != gone[1].as_str() && name != "pages/0000-new");
    assert!(
        listed == expected,
        "{} and {} keys",
        listed.len(),
        expected.len()
    );
    assert!(pages.next_page().await.unwrap().is_none());
}

/// A listing over folders and files of mixed names goes on from any start.
pub async fn listings_of_folders_start_anywhere(store: AnyStore) {
    let store = transfer(store);
    let mut expected = many(&store, "starts").await;
    expected.sort_unstable();
    for start in [0, 1, 999, 1_000, 1_250, 2_498, 2_499] {
        let listed = keys(&store, "starts/", Some(&expected[start])).await;
        assert!(listed == expected[start + 1..], "after {}", expected[start]);
    }
    let listed = keys(&store, "starts/", Some("starts/b")).await;
    let after: Vec<_> = expected
        .iter()
        .filter(|key| key.as_str() > "starts/b")
        .cloned()
        .collect();
    assert!(listed == after, "after a text that is no key");
}

/// 2,500 keys in a folder and its folders, among them names around `/` in byte order.
async fn many(store: &Store, prefix: &str) -> Vec<String> {
    let names: Vec<_> = (0..2_500)
        .map(|number| match number % 5 {
            0 => format!("{prefix}/{number:05}"),
            1 => format!("{prefix}/a/{number:05}"),
            2 => format!("{prefix}/a-{number:05}"),
            3 => format!("{prefix}/a0{number:05}"),
            _ => format!("{prefix}/b/c/{number:05}"),
        })
        .collect();
    put_all(store, &names).await;
    names
}

async fn put_all(store: &Store, names: &[String]) {
    let mut puts = tokio::task::JoinSet::new();
    for name in names {
        let (store, key) = (store.clone(), key(name));
        puts.spawn(async move {
            let body = Bytes::from_static(b"abc");
            store.put(&key, body, PutMode::Create).await.unwrap();
        });
    }
    puts.join_all().await;
}

/// Folders are folded, each once, also over pages and with a start.
pub async fn listings_fold_folders(store: AnyStore) {
    let any = Arc::clone(&store);
    let store = transfer(store);
    for name in [
        "fold/a/1",
        "fold/a/2",
        "fold/a-b",
        "fold/b/c/d",
        "fold/c",
        "fold/c0/x",
    ] {
        store
            .put(&key(name), Bytes::new(), PutMode::Create)
            .await
            .unwrap();
    }
    assert_eq!(store.folders("fold/").await.unwrap(), ["a", "b", "c0"]);
    assert_eq!(store.folders("fold/b/").await.unwrap(), ["c"]);
    assert_eq!(store.folders("fold/a/").await.unwrap(), [""; 0]);
    assert!(
        store
            .folders("")
            .await
            .unwrap()
            .contains(&"fold".to_owned())
    );
    let request = ListRequest {
        prefix: "fold/a".to_owned(),
        fold: true,
        ..ListRequest::default()
    };
    let page = any.list(&request).await.unwrap();
    assert_eq!(page.folders, ["fold/a/"]);
    assert_eq!(page.objects.len(), 1);

    let mut puts = tokio::task::JoinSet::new();
    for number in 0..1_200 {
        let store = store.clone();
        puts.spawn(async move {
            let key = key(&format!("folders/{number:04}/object"));
            store
                .put(&key, Bytes::new(), PutMode::Create)
                .await
                .unwrap();
        });
    }
    puts.join_all().await;
    let folders = store.folders("folders/").await.unwrap();
    assert!(
        folders
            == (0..1_200)
                .map(|number| format!("{number:04}"))
                .collect::<Vec<_>>()
    );
}

/// A prefix is text, not a folder: it takes what begins with it, and nothing else.
pub async fn prefixes_that_share_a_stem_stay_apart(store: AnyStore) {
    let store = transfer(store);
    for name in [
        "stem/00000001/x",
        "stem/00000001.history",
        "stem/000000010/x",
        "stem/00000002/x",
        "stem2/x",
    ] {
        store
            .put(&key(name), Bytes::new(), PutMode::Create)
            .await
            .unwrap();
    }
    assert_eq!(
        keys(&store, "stem/00000001/", None).await,
        ["stem/00000001/x"]
    );
    assert_eq!(
        keys(&store, "stem/00000001", None).await,
        [
            "stem/00000001.history",
            "stem/00000001/x",
            "stem/000000010/x"
        ]
    );
    assert_eq!(keys(&store, "stem2", None).await, ["stem2/x"]);
    assert_eq!(keys(&store, "stem", None).await.len(), 5);
    assert_eq!(keys(&store, "stem/00000003", None).await, [""; 0]);
}

/// Keys with characters that URLs, XML and shells treat specially.
pub async fn odd_characters_in_keys_survive(store: AnyStore) {
    let store = transfer(store);
    let names = [
        "odd/a b",
        "odd/a+b",
        "odd/a%20b",
        "odd/a%2Fb",
        "odd/ä ö/ü",
        "odd/日本",
        "odd/\"quoted\"",
        "odd/it's",
        "odd/a&b<c>",
        "odd/a?b#c",
        "odd/a=b;c",
        "odd/*",
        "odd/~",
        "odd/[x]{y}",
        "odd/a:b@c",
        "odd/😀",
    ];
    for (number, name) in names.iter().enumerate() {
        let body = Bytes::from(number.to_string());
        store
            .put(&key(name), body.clone(), PutMode::Create)
            .await
            .unwrap();
        assert_eq!(store.get(&key(name), 10).await.unwrap(), body, "{name}");
        assert_eq!(keys(&store, name, None).await, [*name]);
    }
    let mut sorted = names.to_vec();
    sorted.sort_unstable();
    assert_eq!(keys(&store, "odd/", None).await, sorted);
    assert_eq!(store.folders("odd/").await.unwrap(), ["ä ö"]);
    let all: Vec<_> = names.iter().map(|name| key(name)).collect();
    assert!(store.delete(&all).await.unwrap().is_empty());
    assert_eq!(keys(&store, "odd/", None).await, [""; 0]);
}

/// A backslash is a character like any other, or is refused, as by Azure, which would take it for a slash.
pub async fn backslashes_in_keys_survive(store: AnyStore) {
    let store = transfer(store);
    let (back, forward) = (key("slash/a\\b"), key("slash/a/b"));
    let put = |key: ObjectKey| {
        let (store, body) = (store.clone(), Bytes::from(key.as_str().to_owned()));
        async move { store.put(&key, body, PutMode::Create).await }
    };
    put(forward.clone()).await.unwrap();
    if let Err(error) = put(back.clone()).await {
        assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
        return;
    }
    for key in [&back, &forward] {
        assert_eq!(store.get(key, 100).await.unwrap(), key.as_str());
    }
    let listed = keys(&store, "slash/", None).await;
    assert_eq!(listed, [forward.as_str(), back.as_str()]);
}

/// A key that is not there counts as deleted; a deleted key is gone and can be created again.
pub async fn deletes_are_idempotent(store: AnyStore) {
    let store = transfer(store);
    let keys = [
        key("delete/a"),
        key("delete/missing"),
        key("delete/none/below"),
    ];
    for _ in 0..2 {
        store
            .put(&keys[0], Bytes::new(), PutMode::Create)
            .await
            .unwrap();
        assert!(store.delete(&keys).await.unwrap().is_empty());
        assert!(store.head(&keys[0]).await.unwrap_err().is_not_found());
        assert!(store.delete(&keys).await.unwrap().is_empty());
    }
    assert!(store.delete(&[]).await.unwrap().is_empty());
}

/// A folder whose last key is deleted is not listed.
pub async fn empty_folders_vanish(store: AnyStore) {
    let store = transfer(store);
    let object = key("emptied/folder/object");
    let put = store.put(&object, Bytes::new(), PutMode::Create);
    put.await.unwrap();
    assert_eq!(store.folders("emptied/").await.unwrap(), ["folder"]);
    assert!(store.delete(&[object]).await.unwrap().is_empty());
    assert_eq!(store.folders("emptied/").await.unwrap(), [""; 0]);
}

/// More keys than one request takes are deleted, and only those.
pub async fn batches_are_deleted(store: AnyStore) {
    let store = transfer(store);
    let names = many(&store, "batch").await;
    store
        .put(&key("batch2"), Bytes::new(), PutMode::Create)
        .await
        .unwrap();
    let all: Vec<_> = names.iter().map(|name| key(name)).collect();
    assert!(store.delete(&all).await.unwrap().is_empty());
    assert_eq!(keys(&store, "batch", None).await, ["batch2"]);
}

/// A key that the store refuses to delete is named, and the others of its batch are gone.
pub async fn a_batch_with_a_refused_key_deletes_the_others(store: AnyStore) {
    let faulty = FaultyStore::new(store);
    let store = transfer(Arc::new(faulty.clone()));
    let names = ["refused/a", "refused/locked", "refused/z"];
    for name in names {
        store
            .put(&key(name), Bytes::new(), PutMode::Create)
            .await
            .unwrap();
    }
    faulty.keep(&key("refused/locked"));
    let refused = store.delete(&names.map(key)).await.unwrap();
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].0, key("refused/locked"));
    assert_eq!(refused[0].1.kind, ErrorKind::PermissionDenied);
    assert_eq!(keys(&store, "refused/", None).await, ["refused/locked"]);
}

/// Before an upload is completed its key is not found and not listed.
pub async fn nothing_is_visible_during_an_upload(store: AnyStore) {
    let any = Arc::clone(&store);
    let store = transfer(store);
    let key = key("partial/folder/object");
    let upload = any
        .start_upload(&key, PutMode::Create, &PutToken::random())
        .await
        .unwrap();
    let body = pattern(any.limits().part_size_bytes);
    let first = any
        .put_part(&key, &upload, PartAt::FIRST, body.clone())
        .await
        .unwrap();
    let second = PartAt {
        number: 2,
        offset: body.len() as u64,
    };
    let second = any
        .put_part(&key, &upload, second, Bytes::from_static(b"end"))
        .await
        .unwrap();
    assert!(store.head(&key).await.unwrap_err().is_not_found());
    assert!(store.read(&key, 0, None).await.unwrap_err().is_not_found());
    assert_eq!(keys(&store, "partial", None).await, [""; 0]);
    assert_eq!(store.folders("partial/").await.unwrap(), [""; 0]);
    any.complete_upload(&key, &upload, &[first, second], PutMode::Create)
        .await
        .unwrap();
    assert_eq!(keys(&store, "partial", None).await, [key.as_str()]);
    let read = read(&store, &key, 0, None).await;
    assert!(read[..body.len()] == body && read[body.len()..] == *b"end");
}

/// After an abort, twice, the key is free and the upload gone.
pub async fn an_aborted_upload_leaves_nothing(store: AnyStore) {
    let any = Arc::clone(&store);
    let part = any.limits().part_size_bytes;
    let store = transfer(store);
    let key = key("aborted/object");
    let mut upload = store.upload(key.clone(), PutMode::Create);
    upload.write(pattern(part + 1)).await.unwrap();
    upload.abort().await;
    let upload = any
        .start_upload(&key, PutMode::Create, &PutToken::random())
        .await
        .unwrap();
    let receipt = any
        .put_part(&key, &upload, PartAt::FIRST, Bytes::from_static(b"x"))
        .await
        .unwrap();
    any.abort_upload(&key, &upload).await.unwrap();
    any.abort_upload(&key, &upload).await.unwrap();
    let complete = any
        .complete_upload(&key, &upload, &[receipt], PutMode::Create)
        .await;
    assert_eq!(complete.unwrap_err().kind, ErrorKind::NotFound);
    assert!(store.head(&key).await.unwrap_err().is_not_found());
    assert_eq!(keys(&store, "aborted", None).await, [""; 0]);
    store
        .put(&key, Bytes::new(), PutMode::Create)
        .await
        .unwrap();
}

/// What a process leaves that dies during an upload is listed and can be dropped, where the store does not do so by itself.
pub async fn an_upload_that_was_given_up_is_found_and_dropped(store: AnyStore) {
    let any = Arc::clone(&store);
    let store = transfer(store);
    for name in ["given-up/object", "given-up-not/object"] {
        let key = key(name);
        let upload = any
            .start_upload(&key, PutMode::Create, &PutToken::random())
            .await
            .unwrap();
        let part = Bytes::from_static(b"x");
        any.put_part(&key, &upload, PartAt::FIRST, part)
            .await
            .unwrap();
    }
    let found = store.unfinished_uploads("given-up/").await.unwrap();
    let keeps_them = ["s3:", "file:"]
        .iter()
        .any(|scheme| any.url().starts_with(scheme));
    assert_eq!(found.len(), usize::from(keeps_them), "{found:?}");
    for upload in &found {
        assert!(upload.key.starts_with("given-up/"), "{upload:?}");
        let age = jiff::Timestamp::now().duration_since(upload.modified);
        assert!(age.abs() < jiff::SignedDuration::from_mins(5), "{upload:?}");
        store.drop_unfinished(upload).await.unwrap();
        store.drop_unfinished(upload).await.unwrap();
    }
    let found = store.unfinished_uploads("given-up/").await.unwrap();
    assert_eq!(found, []);
}

/// An upload whose task is ended leaves its key free, and a later upload to it is complete.
pub async fn a_cancelled_upload_leaves_nothing_visible(store: AnyStore) {
    let part = store.limits().part_size_bytes;
    let watched = FaultyStore::new(store);
    let store = transfer(Arc::new(watched.clone()));
    let key = key("cancelled/object");
    let uploading = tokio::spawn({
        let mut upload = store.upload(key.clone(), PutMode::Create);
        async move {
            upload.write(pattern(2 * part + 1)).await.unwrap();
            std::future::pending::<()>().await;
        }
    });
    while watched.calls(Call::PutPart) == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    uploading.abort();
    assert!(uploading.await.unwrap_err().is_cancelled());
    assert!(store.head(&key).await.unwrap_err().is_not_found());
    assert_eq!(keys(&store, "cancelled", None).await, [""; 0]);
    let mut upload = store.upload(key.clone(), PutMode::Create);
    upload.write(pattern(part + 1)).await.unwrap();
    upload.finish().await.unwrap();
    assert!(read(&store, &key, 0, None).await == pattern(part + 1));
}
