//! Retries, uploads and reads over a store that fails when told to.
#![allow(clippy::unwrap_used)]

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use walhalla_providers::testing::conformance::quick_options;
use walhalla_providers::testing::{Call, Fault, FaultyStore, MemoryStore};
use walhalla_providers::transfer::{Options, RetryPolicy, Store};
use walhalla_providers::{ErrorKind, ObjectKey, PutMode};

const PART: usize = 1000;

struct Bench {
    memory: Arc<MemoryStore>,
    faulty: FaultyStore,
    store: Store,
}

impl Bench {
    fn new() -> Self {
        Self::with_options(Options::default())
    }

    fn with_options(options: Options) -> Self {
        let memory = Arc::new(MemoryStore::new(PART));
        let faulty = FaultyStore::new(memory.clone());
        let store = Store::new(Arc::new(faulty.clone()), options);
        Self {
            memory,
            faulty,
            store,
        }
    }

    async fn put(&self, body: &'static str) -> Result<(), walhalla_providers::Error> {
        self.store
            .put(&key(), Bytes::from_static(body.as_bytes()), PutMode::Create)
            .await
    }

    async fn holds(&self, body: &str) -> bool {
        self.store.get(&key(), 1 << 20).await.unwrap() == body
    }
}

fn key() -> ObjectKey {
    ObjectKey::new("wal/segment").unwrap()
}

fn bytes(length: usize) -> Bytes {
    Bytes::from(
        (0..length)
            .map(|n| u8::try_from(n % 251).unwrap())
            .collect::<Vec<_>>(),
    )
}

#[tokio::test(start_paused = true)]
async fn failures_that_pass_are_retried_and_no_others() {
    use ErrorKind::{
        AlreadyExists, Conflict, Invalid, NoSpace, NotFound, Other, PermissionDenied, StoreMissing,
        Throttled, TimedOut, Unauthenticated, Unavailable,
    };
    for passing in [Throttled(None), Unavailable, TimedOut, Conflict] {
        let bench = Bench::new();
        bench.faulty.on(Call::Put, 1, Fault::Fail(passing));
        bench.faulty.on(Call::Put, 2, Fault::Fail(passing));
        bench.put("x").await.unwrap();
        assert_eq!(bench.faulty.calls(Call::Put), 3);
    }
    let lasting = [
        AlreadyExists,
        NotFound,
        StoreMissing,
        PermissionDenied,
        Unauthenticated,
        NoSpace,
        Invalid,
        Other,
    ];
    for lasting in lasting {
        let bench = Bench::new();
        bench.faulty.on(Call::Put, 1, Fault::Fail(lasting));
        assert_eq!(bench.put("x").await.unwrap_err().kind, lasting);
        assert_eq!(bench.faulty.calls(Call::Put), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_arrives_damaged_is_sent_three_times() {
    let damaged = Fault::Fail(ErrorKind::Corrupted);
    let bench = Bench::new();
    bench.faulty.on(Call::Put, 1, damaged);
    bench.faulty.on(Call::Put, 2, damaged);
    bench.put("x").await.unwrap();
    assert!(bench.holds("x").await);

    let bench = Bench::new();
    bench.faulty.always(Call::Put, damaged);
    bench.faulty.always(Call::PutPart, damaged);
    bench.faulty.always(Call::Head, damaged);
    let error = bench.put("x").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Corrupted);
    assert_eq!(bench.faulty.calls(Call::Put), 3);
    let mut upload = bench.store.upload(key(), PutMode::Create);
    upload.write(bytes(PART + 1)).await.unwrap();
    assert_eq!(
        upload.finish().await.unwrap_err().kind,
        ErrorKind::Corrupted
    );
    assert_eq!(bench.memory.open_uploads(), 0);
    let error = bench.store.head(&key()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Corrupted);
    assert_eq!(bench.faulty.calls(Call::Head), 1, "nothing was sent");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_fell_silent_leaves_time_for_others() {
    let retry = RetryPolicy {
        deadline: Duration::from_secs(30),
        ..RetryPolicy::default()
    };
    let bench = Bench::with_options(Options {
        retry,
        ..Options::default()
    });
    bench.faulty.on(Call::Put, 1, Fault::Hang);
    bench.faulty.on(Call::Put, 2, Fault::Hang);
    bench.put("x").await.unwrap();
    for call in [Call::StartUpload, Call::AbortUpload] {
        bench.faulty.on(call, 1, Fault::Hang);
        bench.faulty.on(call, 2, Fault::Hang);
    }
    let mut upload = bench.store.upload(key(), PutMode::Overwrite);
    upload.write(bytes(PART + 1)).await.unwrap();
    assert_eq!(bench.memory.open_uploads(), 1);
    upload.abort().await;
    assert_eq!(bench.memory.open_uploads(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_failure_of_an_upload_does_not_wait_for_its_parts_to_be_deleted() {
    let bench = Bench::new();
    let mut upload = bench.store.upload(key(), PutMode::Create);
    upload.write(bytes(PART + 1)).await.unwrap();
    for call in [Call::PutPart, Call::AbortUpload, Call::CompleteUpload] {
        bench
            .faulty
            .always(call, Fault::Fail(ErrorKind::Unavailable));
    }
    let started = Instant::now();
    let error = upload.finish().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::DeadlineExceeded);
    let took = started.elapsed();
    assert!(took < Duration::from_secs(5 * 60 + 31), "{took:?}");
}

/// A large part on a slow line takes longer than a request without an answer may.
#[tokio::test(start_paused = true)]
async fn a_part_has_the_time_that_its_bytes_take() {
    const LARGE: usize = 8 << 20;
    let memory = Arc::new(MemoryStore::new(LARGE));
    let faulty = FaultyStore::new(memory.clone());
    let store = Store::new(Arc::new(faulty.clone()), Options::default());
    faulty.always(Call::PutPart, Fault::Delay(Duration::from_secs(150)));
    let mut upload = store.upload(key(), PutMode::Create);
    upload.write(bytes(LARGE)).await.unwrap();
    upload.write(bytes(LARGE)).await.unwrap();
    upload.finish().await.unwrap();
    assert_eq!(faulty.calls(Call::PutPart), 2);
}

#[tokio::test(start_paused = true)]
async fn an_object_that_arrives_damaged_is_read_three_times() {
    let bench = Bench::new();
    bench.put("the bytes").await.unwrap();
    bench.faulty.on(Call::Get, 1, Fault::FailAtEnd);
    bench.faulty.on(Call::Get, 2, Fault::FailAtEnd);
    assert!(bench.holds("the bytes").await);
    bench.faulty.always(Call::Get, Fault::FailAtEnd);
    let error = bench.store.get(&key(), 100).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Corrupted);
    assert_eq!(bench.faulty.calls(Call::Get), 6);
}

#[tokio::test(start_paused = true)]
async fn after_the_deadline_the_last_failure_is_the_source() {
    let bench = Bench::new();
    for call in [Call::Put, Call::Get, Call::Head, Call::List, Call::Delete] {
        bench
            .faulty
            .always(call, Fault::Fail(ErrorKind::Unavailable));
    }
    let started = Instant::now();
    let error = bench.put("x").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::DeadlineExceeded);
    assert!(
        error
            .source()
            .unwrap()
            .to_string()
            .contains("could not be reached"),
        "{error:?}"
    );
    assert!(started.elapsed() <= Duration::from_mins(5));
    assert!(
        started.elapsed() >= Duration::from_mins(4),
        "waits never exceed ten seconds"
    );
    assert!(bench.faulty.calls(Call::Put) > 30);
    for error in [
        bench.store.read(&key(), 0, None).await.unwrap_err(),
        bench.store.head(&key()).await.unwrap_err(),
        bench.store.list("", None).await.unwrap_err(),
        bench.store.folders("").await.unwrap_err(),
        bench.store.delete(&[key()]).await.unwrap_err(),
    ] {
        assert_eq!(error.kind, ErrorKind::DeadlineExceeded);
    }
}

#[tokio::test(start_paused = true)]
async fn the_store_is_given_the_time_it_asks_for() {
    let bench = Bench::new();
    bench.faulty.on(
        Call::Put,
        1,
        Fault::Fail(ErrorKind::Throttled(Some(Duration::from_secs(42)))),
    );
    let started = Instant::now();
    bench.put("x").await.unwrap();
    assert!((42..44).contains(&started.elapsed().as_secs()));
}

#[tokio::test(start_paused = true)]
async fn a_request_without_an_answer_is_given_up_and_sent_again() {
    let bench = Bench::new();
    for call in [Call::Put, Call::Get, Call::Head, Call::List, Call::Delete] {
        bench.faulty.on(call, 1, Fault::Hang);
    }
    bench.put("x").await.unwrap();
    assert!(bench.holds("x").await);
    bench.store.head(&key()).await.unwrap();
    assert_eq!(bench.store.list("", None).await.unwrap().len(), 1);
    bench.store.delete(&[key()]).await.unwrap();
    assert!(bench.store.head(&key()).await.unwrap_err().is_not_found());
}

#[tokio::test(start_paused = true)]
async fn a_create_whose_answer_was_lost_is_a_success() {
    let bench = Bench::new();
    bench.faulty.on(Call::Put, 1, Fault::LoseAnswer);
    bench
        .faulty
        .on(Call::Put, 2, Fault::Fail(ErrorKind::Unavailable));
    bench
        .faulty
        .on(Call::Head, 1, Fault::Fail(ErrorKind::Unavailable));
    bench.put("mine").await.unwrap();
    assert_eq!(bench.faulty.calls(Call::Put), 3);
}

#[tokio::test(start_paused = true)]
async fn a_create_never_takes_anothers_object_for_its_own() {
    let bench = Bench::new();
    bench.put("theirs").await.unwrap();
    bench
        .faulty
        .on(Call::Put, 2, Fault::Fail(ErrorKind::Unavailable));
    assert_eq!(
        bench.put("mine").await.unwrap_err().kind,
        ErrorKind::AlreadyExists
    );
    assert_eq!(
        bench.put("theirs").await.unwrap_err().kind,
        ErrorKind::AlreadyExists
    );
    assert!(bench.holds("theirs").await);
    bench
        .faulty
        .on(Call::Put, 5, Fault::Fail(ErrorKind::Unavailable));
    bench
        .faulty
        .always(Call::Head, Fault::Fail(ErrorKind::Unavailable));
    let unknown = bench.put("mine").await.unwrap_err();
    assert_eq!(
        unknown.kind,
        ErrorKind::DeadlineExceeded,
        "whose it is could not be learned"
    );
}

#[tokio::test(start_paused = true)]
async fn an_own_object_behind_a_refusal_is_known_all_the_same() {
    let bench = Bench::new();
    bench.faulty.on(Call::Put, 1, Fault::LoseAnswer);
    let refused = Fault::Fail(ErrorKind::PermissionDenied);
    bench.faulty.on(Call::Put, 2, refused);
    let put = bench.store.put(&key(), bytes(100), PutMode::Create).await;
    put.unwrap();
    // Without an earlier attempt, or an object of one, a refusal is one.
    bench.faulty.on(Call::Put, 3, refused);
    let put = bench.store.put(&key(), bytes(100), PutMode::Create).await;
    assert_eq!(put.unwrap_err().kind, ErrorKind::PermissionDenied);
    let unavailable = Fault::Fail(ErrorKind::Unavailable);
    bench.faulty.on(Call::Put, 4, unavailable);
    bench.faulty.on(Call::Put, 5, refused);
    let put = bench
        .store
        .put(&key(), bytes(100), PutMode::Overwrite)
        .await;
    assert_eq!(put.unwrap_err().kind, ErrorKind::PermissionDenied);
}

#[tokio::test(start_paused = true)]
async fn an_own_object_of_another_length_is_no_success() {
    let bench = Bench::new();
    bench.faulty.on(Call::Put, 1, Fault::LoseAnswer);
    bench.memory.cut_bodies();
    let put = bench.store.put(&key(), bytes(100), PutMode::Create).await;
    let error = put.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Other);
    assert!(
        error
            .source()
            .unwrap()
            .to_string()
            .contains("99 bytes of the 100")
    );
}

#[tokio::test(start_paused = true)]
async fn a_completion_whose_answer_was_lost_is_a_success() {
    for mode in [PutMode::Create, PutMode::Overwrite] {
        let bench = Bench::new();
        bench.faulty.on(Call::CompleteUpload, 1, Fault::LoseAnswer);
        let mut upload = bench.store.upload(key(), mode);
        upload.write(bytes(PART * 2 + 1)).await.unwrap();
        assert_eq!(upload.finish().await.unwrap(), PART as u64 * 2 + 1);
        assert!(bench.store.get(&key(), 1 << 20).await.unwrap() == bytes(PART * 2 + 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_fits_one_part_is_one_put() {
    for length in [0, 1, PART - 1, PART] {
        let bench = Bench::new();
        let mut upload = bench.store.upload(key(), PutMode::Create);
        for chunk in bytes(length).chunks(300) {
            upload.write(Bytes::copy_from_slice(chunk)).await.unwrap();
        }
        assert_eq!(
            bench.faulty.calls(Call::Put),
            0,
            "no request before it is needed"
        );
        assert_eq!(upload.finish().await.unwrap(), length as u64);
        assert_eq!(bench.faulty.calls(Call::Put), 1);
        assert_eq!(bench.faulty.calls(Call::StartUpload), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_shall_be_whole_is_one_put_and_a_longer_one_comes_in_parts() {
    for (length, puts) in [
        (PART * 3 + 1, 1),
        (PART * 5, 1),
        (PART * 5 + 1, 0),
        (PART * 7, 0),
    ] {
        let bench = Bench::new();
        let mut upload = bench
            .store
            .upload(key(), PutMode::Create)
            .whole_up_to(PART * 5);
        for chunk in bytes(length).chunks(300) {
            upload.write(Bytes::copy_from_slice(chunk)).await.unwrap();
        }
        assert_eq!(upload.finish().await.unwrap(), length as u64);
        assert_eq!(bench.faulty.calls(Call::Put), puts, "{length}");
        assert_eq!(bench.faulty.calls(Call::StartUpload), 1 - puts, "{length}");
        assert!(bench.store.get(&key(), 1 << 20).await.unwrap() == bytes(length));
    }
}

#[tokio::test(start_paused = true)]
async fn every_request_of_an_upload_is_retried() {
    let bench = Bench::new();
    for call in [Call::StartUpload, Call::CompleteUpload] {
        bench
            .faulty
            .on(call, 1, Fault::Fail(ErrorKind::Unavailable));
        bench.faulty.on(call, 2, Fault::Hang);
    }
    for (nth, fault) in [
        (1, Fault::Hang),
        (3, Fault::LoseAnswer),
        (5, Fault::Fail(ErrorKind::Throttled(None))),
    ] {
        bench.faulty.on(Call::PutPart, nth, fault);
    }
    let mut upload = bench.store.upload(key(), PutMode::Create);
    for chunk in bytes(PART * 9 + 5).chunks(777) {
        upload.write(Bytes::copy_from_slice(chunk)).await.unwrap();
    }
    assert_eq!(upload.finish().await.unwrap(), PART as u64 * 9 + 5);
    assert!(bench.store.get(&key(), 1 << 20).await.unwrap() == bytes(PART * 9 + 5));
    assert_eq!(bench.memory.open_uploads(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_fails_is_aborted_and_takes_no_more() {
    let bench = Bench::new();
    bench
        .faulty
        .always(Call::PutPart, Fault::Fail(ErrorKind::PermissionDenied));
    bench
        .faulty
        .on(Call::AbortUpload, 1, Fault::Fail(ErrorKind::Unavailable));
    let mut upload = bench.store.upload(key(), PutMode::Create);
    let mut failure = None;
    for _ in 0..10 {
        if let Err(error) = upload.write(bytes(PART)).await {
            failure = Some(error);
            break;
        }
    }
    assert_eq!(failure.unwrap().kind, ErrorKind::PermissionDenied);
    assert_eq!(bench.memory.open_uploads(), 0);
    assert_eq!(
        upload.write(bytes(1)).await.unwrap_err().kind,
        ErrorKind::Invalid
    );
    assert_eq!(upload.finish().await.unwrap_err().kind, ErrorKind::Invalid);
    assert!(bench.store.head(&key()).await.unwrap_err().is_not_found());
}

#[tokio::test(start_paused = true)]
async fn a_refused_completion_and_a_drop_delete_the_parts() {
    let bench = Bench::new();
    bench.put("theirs").await.unwrap();
    let mut upload = bench.store.upload(key(), PutMode::Create);
    upload.write(bytes(PART * 3)).await.unwrap();
    assert_eq!(
        upload.finish().await.unwrap_err().kind,
        ErrorKind::AlreadyExists
    );
    assert_eq!(bench.memory.open_uploads(), 0);

    let mut upload = bench.store.upload(key(), PutMode::Create);
    upload.write(bytes(PART * 3)).await.unwrap();
    assert_eq!(bench.memory.open_uploads(), 1);
    drop(upload);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(bench.memory.open_uploads(), 0);
    assert!(bench.holds("theirs").await);
}

#[tokio::test(start_paused = true)]
async fn a_write_given_up_halfway_leaves_no_hole_in_an_object() {
    for parts_before in [0, 2] {
        let bench = Bench::new();
        let mut upload = bench.store.upload(key(), PutMode::Create);
        upload.write(bytes(PART * parts_before)).await.unwrap();
        bench.faulty.always(Call::StartUpload, Fault::Hang);
        bench.faulty.always(Call::PutPart, Fault::Hang);
        let write = upload.write(bytes(PART * 10));
        tokio::time::timeout(Duration::from_secs(1), write)
            .await
            .unwrap_err();
        bench.faulty.heal();
        assert_eq!(
            upload.finish().await.unwrap_err().kind,
            ErrorKind::Corrupted
        );
        assert!(bench.store.head(&key()).await.unwrap_err().is_not_found());
    }
}

#[tokio::test(start_paused = true)]
async fn an_object_longer_than_the_store_takes_is_refused() {
    let bench = Bench::new();
    let mut upload = bench.store.upload(key(), PutMode::Create);
    upload.write(bytes(PART * 10_000)).await.unwrap();
    let error = match upload.write(bytes(PART * 2)).await {
        Err(error) => error,
        Ok(()) => upload.finish().await.unwrap_err(),
    };
    assert_eq!(error.kind, ErrorKind::Invalid);
    assert!(
        error.source().unwrap().to_string().contains("part size"),
        "{error:?}"
    );
    assert_eq!(bench.memory.open_uploads(), 0);
}

#[tokio::test(start_paused = true)]
async fn parts_in_flight_are_bounded_by_the_upload_and_by_the_store() {
    for (upload_concurrency, in_flight) in [(1, 1), (3, 3), (100, 4)] {
        let bench = Bench::with_options(Options {
            upload_concurrency,
            ..Options::default()
        });
        bench.faulty.always(Call::PutPart, Fault::Hang);
        let mut upload = bench.store.upload(key(), PutMode::Create);
        let write = tokio::time::timeout(Duration::from_secs(1), upload.write(bytes(PART * 20)));
        assert!(write.await.is_err(), "the write waits");
        assert_eq!(bench.faulty.calls(Call::PutPart), in_flight);
    }
    let bench = Bench::with_options(Options {
        upload_concurrency: 5,
        ..Options::default()
    });
    bench.faulty.always(Call::PutPart, Fault::Hang);
    bench.faulty.always(Call::Put, Fault::Hang);
    let mut uploads: Vec<_> = (0..3)
        .map(|_| bench.store.upload(key(), PutMode::Create))
        .collect();
    for upload in &mut uploads {
        let write = tokio::time::timeout(Duration::from_secs(1), upload.write(bytes(PART * 20)));
        assert!(write.await.is_err());
    }
    tokio::time::timeout(Duration::from_secs(1), bench.put("x"))
        .await
        .unwrap_err();
    assert_eq!(
        bench.faulty.calls(Call::PutPart) + bench.faulty.calls(Call::Put),
        5
    );
}

#[tokio::test(start_paused = true)]
async fn readers_are_bounded_and_give_their_permits_back() {
    let bench = Bench::with_options(Options {
        download_concurrency: 2,
        ..Options::default()
    });
    bench
        .store
        .put(&key(), bytes(5_000), PutMode::Create)
        .await
        .unwrap();
    let mut first = bench.store.read(&key(), 0, None).await.unwrap();
    let second = bench.store.read(&key(), 0, None).await.unwrap();
    let key = key();
    let third = tokio::time::timeout(Duration::from_secs(1), bench.store.read(&key, 0, None));
    assert!(third.await.is_err());
    while first.next().await.unwrap().is_some() {}
    let _third = bench.store.read(&key, 0, None).await.unwrap();
    drop(second);
    assert_eq!(bench.store.get(&key, 5_000).await.unwrap().len(), 5_000);
    assert!(
        first.next().await.unwrap().is_none(),
        "the end stays the end"
    );
}

#[tokio::test(start_paused = true)]
async fn short_objects_do_not_wait_for_one_another() {
    let bench = Bench::with_options(Options {
        download_concurrency: 1,
        ..Options::default()
    });
    let key = key();
    let put = bench.store.put(&key, bytes(5_000), PutMode::Create);
    put.await.unwrap();
    let answer = Duration::from_secs(1);
    bench.faulty.always(Call::Get, Fault::Delay(answer));
    let begun = tokio::time::Instant::now();
    let gets = (0..20).map(|_| bench.store.get(&key, 5_000));
    let all = futures_util::future::try_join_all(gets).await;
    assert_eq!(all.unwrap().len(), 20);
    assert_eq!(begun.elapsed(), answer, "one after the other");
}

#[tokio::test(start_paused = true)]
async fn a_read_never_goes_on_in_another_object() {
    let bench = Bench::new();
    bench
        .store
        .put(&key(), bytes(5_000), PutMode::Create)
        .await
        .unwrap();
    bench
        .faulty
        .on(Call::Get, 1, Fault::DropConnection { after_bytes: 2_000 });
    let mut reader = bench.store.read(&key(), 0, None).await.unwrap();
    assert_eq!(reader.next().await.unwrap().unwrap().len(), 1_000);
    bench
        .store
        .put(&key(), bytes(5_000), PutMode::Overwrite)
        .await
        .unwrap();
    assert_eq!(reader.next().await.unwrap().unwrap().len(), 1_000);
    assert_eq!(reader.next().await.unwrap_err().kind, ErrorKind::Conflict);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_always_ends_early_is_corrupted() {
    let bench = Bench::with_options(quick_options());
    bench
        .store
        .put(&key(), bytes(5_000), PutMode::Create)
        .await
        .unwrap();
    bench
        .faulty
        .always(Call::Get, Fault::EndBody { after_bytes: 0 });
    let mut reader = bench.store.read(&key(), 0, None).await.unwrap();
    assert_eq!(reader.next().await.unwrap_err().kind, ErrorKind::Corrupted);
}

#[tokio::test(start_paused = true)]
async fn the_deadline_of_a_read_counts_from_its_last_byte() {
    let retry = RetryPolicy {
        deadline: Duration::from_secs(10),
        ..RetryPolicy::default()
    };
    let bench = Bench::with_options(Options {
        retry,
        ..Options::default()
    });
    bench
        .store
        .put(&key(), bytes(20_000), PutMode::Create)
        .await
        .unwrap();
    bench
        .faulty
        .always(Call::Get, Fault::DropConnection { after_bytes: 1_000 });
    let mut reader = bench.store.read(&key(), 0, None).await.unwrap();
    let mut read = Vec::new();
    while read.len() < 19_000 {
        read.extend_from_slice(&reader.next().await.unwrap().unwrap());
        tokio::time::sleep(Duration::from_secs(20)).await;
    }
    bench
        .faulty
        .always(Call::Get, Fault::Fail(ErrorKind::Unavailable));
    assert_eq!(
        reader.next().await.unwrap_err().kind,
        ErrorKind::DeadlineExceeded
    );
    bench.faulty.heal();
    read.extend_from_slice(&reader.next().await.unwrap().unwrap());
    assert!(reader.next().await.unwrap().is_none());
    assert!(bytes(20_000) == read);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_trickles_is_asked_for_again_and_given_up_at_the_deadline() {
    let bench = Bench::new();
    bench
        .store
        .put(&key(), bytes(100_000), PutMode::Create)
        .await
        .unwrap();
    // Chunks of 1000 bytes: one in ten seconds is no progress, one in a second nearly enough.
    let trickle = |seconds| Fault::DelayChunks(Duration::from_secs(seconds));
    bench.faulty.on(Call::Get, 1, trickle(10));
    let started = Instant::now();
    assert!(bench.store.get(&key(), 100_000).await.unwrap() == bytes(100_000));
    assert_eq!(bench.faulty.calls(Call::Get), 2);
    assert!(started.elapsed() < Duration::from_mins(2));

    bench.faulty.always(Call::Get, trickle(10));
    let started = Instant::now();
    let error = bench.store.get(&key(), 100_000).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::DeadlineExceeded);
    let cause = error.source().unwrap().to_string();
    assert!(cause.contains("1 KiB a second"), "{cause}");
    let took = started.elapsed();
    assert!(took < Duration::from_mins(7), "{took:?}");

    bench.faulty.always(Call::Get, trickle(1));
    assert!(bench.store.get(&key(), 100_000).await.unwrap() == bytes(100_000));
}

#[tokio::test(start_paused = true)]
async fn an_absent_object_is_known_at_once() {
    let bench = Bench::new();
    let started = Instant::now();
    assert!(bench.store.get(&key(), 1).await.unwrap_err().is_not_found());
    assert!(started.elapsed() < Duration::from_millis(1));
    assert_eq!(bench.faulty.calls(Call::Get), 1);
}
