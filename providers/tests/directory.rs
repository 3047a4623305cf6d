//! The conformance suite over the directory store, and what only a directory does.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use tempfile::TempDir;
use walhalla_providers::fs::FsStore;
use walhalla_providers::testing::conformance::quick_options;
use walhalla_providers::testing::{Call, Fault, FaultyStore};
use walhalla_providers::transfer::{Store, StoreSettings, open};
use walhalla_providers::{
    ErrorKind, ListRequest, ObjectKey, ObjectStore, PartAt, PutMode, PutToken, conformance_tests,
};

fn directory() -> (Arc<dyn ObjectStore>, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let store = FsStore::with_page_keys(directory.path(), 1_000).unwrap();
    (Arc::new(store), directory)
}

conformance_tests!(directory());

#[tokio::test]
async fn the_past_of_a_directory_is_refused() {
    let (store, _directory) = directory();
    walhalla_providers::testing::past::the_past_is_refused(store).await;
}

fn key(text: &str) -> ObjectKey {
    ObjectKey::new(text).unwrap()
}

fn store_in(root: &Path) -> Store {
    Store::new(Arc::new(FsStore::open(root).unwrap()), quick_options())
}

async fn put(store: &Store, name: &str) {
    store
        .put(&key(name), Bytes::from_static(b"x"), PutMode::Create)
        .await
        .unwrap();
}

fn names(root: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn an_archive_that_is_not_mounted_is_missing_and_not_empty() {
    let parent = tempfile::tempdir().unwrap();
    assert_eq!(
        FsStore::open(parent.path().join("archive"))
            .unwrap_err()
            .kind,
        ErrorKind::StoreMissing,
        "what is made below an empty mount point is hidden by the mount"
    );
    fs::write(parent.path().join("mounted"), "").unwrap();
    let root = parent.path().join("archive");
    let store = store_in(&root);
    let absent = key("wal/segment");
    assert_eq!(
        store.head(&absent).await.unwrap_err().kind,
        ErrorKind::StoreMissing
    );
    assert_eq!(
        store.get(&absent, 1).await.unwrap_err().kind,
        ErrorKind::StoreMissing
    );
    assert_eq!(
        store.list("", None).await.unwrap_err().kind,
        ErrorKind::StoreMissing
    );
    assert_eq!(
        store
            .delete(std::slice::from_ref(&absent))
            .await
            .unwrap_err()
            .kind,
        ErrorKind::StoreMissing
    );
    assert!(!root.exists(), "reads create nothing");
    put(&store, "wal/other").await;
    assert!(store.head(&absent).await.unwrap_err().is_not_found());
    fs::rename(&root, parent.path().join("away")).unwrap();
    assert_eq!(
        store.head(&absent).await.unwrap_err().kind,
        ErrorKind::StoreMissing
    );
    fs::remove_dir_all(parent.path()).unwrap();
    let put = store.put(&absent, Bytes::new(), PutMode::Create).await;
    assert_eq!(put.unwrap_err().kind, ErrorKind::StoreMissing);
    assert_eq!(
        FsStore::open(&root).unwrap_err().kind,
        ErrorKind::StoreMissing
    );
}

#[tokio::test]
async fn files_and_directories_are_the_owners_only_and_no_temporary_file_stays() {
    let parent = tempfile::tempdir().unwrap();
    fs::write(parent.path().join("mounted"), "").unwrap();
    let root = parent.path().join("archive");
    let store = store_in(&root);
    put(&store, "a/b/c").await;
    let refused = store
        .put(&key("a/b/c"), Bytes::new(), PutMode::Create)
        .await;
    assert_eq!(refused.unwrap_err().kind, ErrorKind::AlreadyExists);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&root), 0o700);
    assert_eq!(mode(&root.join("a/b")), 0o700);
    assert_eq!(mode(&root.join("a/b/c")), 0o600);
    assert_eq!(names(&root.join("a/b")), ["c"]);
}

#[tokio::test]
async fn a_dropped_upload_leaves_no_file() {
    let root = tempfile::tempdir().unwrap();
    let store = store_in(root.path());
    let mut upload = store.upload(key("object"), PutMode::Create);
    upload.write(Bytes::from(vec![0; 9 << 20])).await.unwrap();
    assert_eq!(names(root.path()).len(), 1);
    drop(upload);
    while !names(root.path()).is_empty() {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_key_below_an_object_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let store = store_in(root.path());
    put(&store, "a").await;
    put(&store, "b/c").await;
    for (taken, mode) in [
        ("a/below", PutMode::Create),
        ("b", PutMode::Create),
        ("b", PutMode::Overwrite),
    ] {
        let refused = store
            .put(&key(taken), Bytes::new(), mode)
            .await
            .unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Invalid, "{refused}");
    }
    assert_eq!(names(root.path()), ["a", "b"]);
}

#[tokio::test]
async fn a_delete_takes_empty_directories_along_but_never_the_root() {
    let root = tempfile::tempdir().unwrap();
    let store = store_in(root.path());
    put(&store, "a/b/c/d").await;
    put(&store, "a/x").await;
    store.delete(&[key("a/b/c/d")]).await.unwrap();
    assert_eq!(names(&root.path().join("a")), ["x"]);
    store.delete(&[key("a/x")]).await.unwrap();
    assert_eq!(names(root.path()), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn puts_survive_deletes_that_take_their_directory_away() {
    let root = tempfile::tempdir().unwrap();
    let store = store_in(root.path());
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..4 {
        let store = store.clone();
        tasks.spawn(async move {
            for _ in 0..50 {
                let key = key(&format!("a/b/{writer}"));
                store
                    .put(&key, Bytes::new(), PutMode::Create)
                    .await
                    .unwrap();
                store.delete(&[key]).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
}

#[tokio::test]
async fn a_prefix_does_not_lead_out_of_the_store() {
    let parent = tempfile::tempdir().unwrap();
    fs::create_dir(parent.path().join("root")).unwrap();
    fs::write(parent.path().join("secret"), "x").unwrap();
    let store = store_in(&parent.path().join("root"));
    put(&store, "a/b").await;
    for prefix in ["../", "a/../../", "/", "a//", "./", "a/./"] {
        assert!(
            store.list(prefix, None).await.unwrap().is_empty(),
            "{prefix}"
        );
    }
}

#[tokio::test]
async fn a_listing_reads_only_the_directories_of_its_prefix() {
    let root = tempfile::tempdir().unwrap();
    let store = store_in(root.path());
    put(&store, "wal/1/a").await;
    // A link to its own directory fails every walk that enters it.
    std::os::unix::fs::symlink(".", root.path().join("backups")).unwrap();
    assert_eq!(store.list("wal/1/", None).await.unwrap().len(), 1);
    assert_eq!(store.folders("wal/").await.unwrap(), ["1"]);
}

#[tokio::test]
async fn pages_of_any_length_give_the_same_listing() {
    let root = tempfile::tempdir().unwrap();
    let store = store_in(root.path());
    for name in [
        "a-b", "a/1", "a/2/x", "a/2/y", "a/3", "a0", "b/1/2/3", "b/2", "c",
    ] {
        put(&store, name).await;
    }
    fs::create_dir_all(root.path().join("a/empty/folder")).unwrap();
    for fold in [false, true] {
        let whole = all_pages(root.path(), 100, fold).await;
        assert_eq!(whole.len(), if fold { 5 } else { 9 });
        for page_keys in 1..12 {
            assert_eq!(
                all_pages(root.path(), page_keys, fold).await,
                whole,
                "{page_keys} a page"
            );
        }
    }
}

async fn all_pages(root: &Path, page_keys: usize, fold: bool) -> Vec<String> {
    let store = FsStore::with_page_keys(root, page_keys).unwrap();
    let mut request = ListRequest {
        fold,
        ..ListRequest::default()
    };
    let mut items = Vec::new();
    loop {
        let page = store.list(&request).await.unwrap();
        assert!(page.objects.len() + page.folders.len() <= page_keys);
        let mut on_page: Vec<_> = page
            .objects
            .iter()
            .map(|object| object.key.to_string())
            .collect();
        on_page.extend(page.folders);
        on_page.sort_unstable();
        items.extend(on_page);
        match page.next {
            Some(next) => request.page = Some(next),
            None => return items,
        }
    }
}

/// Chunks shorter and longer than what is sent as it comes; in every other round a part fails.
#[tokio::test]
async fn parts_of_any_length_make_the_whole_object_or_nothing() {
    for round in 0..20 {
        let root = tempfile::tempdir().unwrap();
        let faulty = FaultyStore::new(Arc::new(FsStore::open(root.path()).unwrap()));
        let fails = round % 2 == 1;
        if fails {
            let part = fastrand::u32(1..8);
            faulty.on(Call::PutPart, part, Fault::Fail(ErrorKind::NoSpace));
        }
        let store = Store::new(Arc::new(faulty), quick_options());
        let body: Vec<u8> = (0..3_000_000).map(|_| fastrand::u8(..)).collect();
        let mut upload = store.upload(key("object"), PutMode::Create);
        let mut rest = body.as_slice();
        let mut written = Ok(());
        while !rest.is_empty() && written.is_ok() {
            let (chunk, later) = rest.split_at(fastrand::usize(1..140_000).min(rest.len()));
            written = upload.write(Bytes::copy_from_slice(chunk)).await;
            rest = later;
        }
        let stored = match written {
            Ok(()) => upload.finish().await,
            Err(error) => Err(error),
        };
        assert_eq!(stored.is_err(), fails, "{stored:?}");
        if fails {
            assert_eq!(names(root.path()), [""; 0]);
        } else {
            assert!(store.get(&key("object"), 1 << 22).await.unwrap() == body);
        }
    }
}

#[tokio::test]
async fn an_upload_id_is_no_path() {
    let root = tempfile::tempdir().unwrap();
    let store = FsStore::open(root.path()).unwrap();
    put(&store_in(root.path()), "other").await;
    for id in ["../x", "other", ".x.tmp", ".."] {
        let id = walhalla_providers::UploadId(id.to_owned());
        let object = key("object");
        store.abort_upload(&object, &id).await.unwrap();
        let part = store.put_part(&object, &id, PartAt::FIRST, Bytes::from_static(b"x"));
        assert!(part.await.unwrap_err().is_not_found());
        let complete = store.complete_upload(&object, &id, &[], PutMode::Create);
        assert!(complete.await.unwrap_err().is_not_found());
    }
    assert_eq!(names(root.path()), ["other"]);
    let upload = store
        .start_upload(&key("object"), PutMode::Create, &PutToken::random())
        .await
        .unwrap();
    store.abort_upload(&key("object"), &upload).await.unwrap();
    assert_eq!(names(root.path()), ["other"]);
}

#[tokio::test]
async fn a_url_names_a_directory_or_says_what_is_wrong() {
    let root = tempfile::tempdir().unwrap();
    let spaced = root.path().join("a b");
    fs::create_dir(&spaced).unwrap();
    let url = format!("file://{}/a%20b/", root.path().display());
    let store = open(&url, &StoreSettings::default()).await.unwrap();
    assert_eq!(store.url(), url.trim_end_matches('/'));
    put(&Store::new(store, quick_options()), "object").await;
    assert_eq!(names(&spaced), ["object"]);
    for wrong in [
        "",
        "x",
        "/tmp",
        "file://host/tmp",
        "file:///tmp?x",
        "https://example.org",
    ] {
        let error = open(wrong, &StoreSettings::default()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid, "{wrong}");
        assert!(error.source.is_some(), "{wrong}");
    }
}

#[tokio::test]
async fn credentials_in_a_url_are_refused_and_not_shown() {
    for url in [
        "s3://AKIA:hidden@bucket/x",
        "s3://AKIA:hid/den@bucket",
        "file://u:hidden@/tmp",
    ] {
        let error = open(url, &StoreSettings::default()).await.unwrap_err();
        let shown = format!("{error} {error:?}");
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert!(!shown.contains("hid") && !shown.contains("AKIA"), "{shown}");
    }
}

#[tokio::test]
async fn what_is_no_file_is_neither_waited_for_nor_absent() {
    let root = tempfile::tempdir().unwrap();
    let store = store_in(root.path());
    put(&store, "folder/object").await;
    let pipe = root.path().join("folder/pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    for error in [
        store.head(&key("folder/pipe")).await.unwrap_err(),
        store.get(&key("folder/pipe"), 10).await.unwrap_err(),
    ] {
        assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
    }
    let error = store.head(&key("folder")).await.unwrap_err();
    assert!(error.is_not_found(), "{error}");
}

#[tokio::test]
async fn what_lies_behind_a_link_to_a_disk_that_is_away_is_not_proven_absent() {
    let root = tempfile::tempdir().unwrap();
    let store = store_in(root.path());
    put(&store, "wal/1/object").await;
    let (folder, disk) = (root.path().join("wal/1"), root.path().join("disk"));
    fs::rename(&folder, &disk).unwrap();
    std::os::unix::fs::symlink(&disk, &folder).unwrap();
    store.head(&key("wal/1/object")).await.unwrap();
    let absent = store.head(&key("wal/1/other")).await.unwrap_err();
    assert!(absent.is_not_found(), "{absent}");
    fs::rename(&disk, root.path().join("away")).unwrap();
    for name in ["wal/1/object", "wal/1/other"] {
        let error = store.head(&key(name)).await.unwrap_err();
        assert!(!error.is_not_found(), "{error}");
    }
}

#[tokio::test]
async fn an_object_that_is_there_can_be_settled() {
    let root = tempfile::tempdir().unwrap();
    let store = store_in(root.path());
    put(&store, "folder/object").await;
    store.settle(&key("folder/object")).await.unwrap();
    fs::remove_dir_all(root.path().join("folder")).unwrap();
    let gone = store.settle(&key("folder/object")).await.unwrap_err();
    assert!(gone.is_not_found(), "{gone}");
}
