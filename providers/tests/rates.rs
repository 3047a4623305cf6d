//! Rates of a process over stores that fail and hang when told to. Time is paused: a wait takes none, and is counted.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout};
use walhalla_providers::testing::{Call, Fault, FaultyStore, MemoryStore};
use walhalla_providers::transfer::{Options, Patience, Rate, Rates, RetryPolicy, Store};
use walhalla_providers::{ErrorKind, ObjectKey, PutMode};

const KIB: usize = 1 << 10;
/// The rate of all tests here.
const RATE: usize = 10 * KIB;
const PART: usize = 20 * KIB;

struct Bench {
    faulty: FaultyStore,
    store: Store,
    begun: Instant,
}

impl Bench {
    fn new(options: Options) -> Self {
        let faulty = FaultyStore::new(Arc::new(MemoryStore::new(PART)));
        Self {
            store: Store::new(Arc::new(faulty.clone()), options),
            faulty,
            begun: Instant::now(),
        }
    }

    fn uploading() -> Self {
        Self::new(options(Rates::new(rate(), None)))
    }

    /// With an object that was stored without a limit.
    async fn downloading(bytes: usize) -> Self {
        let bench = Self::new(options(Rates::new(None, rate())));
        bench.put("object", bytes).await.unwrap();
        bench
    }

    async fn put(&self, name: &str, bytes: usize) -> walhalla_providers::Result<()> {
        put(&self.store, name, bytes).await
    }

    fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }
}

fn rate() -> Option<Rate> {
    Rate::new(RATE as u64)
}

/// Requests fail after 6 s, and an attempt at each after 2.
fn options(rates: Rates) -> Options {
    let retry = RetryPolicy {
        deadline: Duration::from_secs(6),
        ..RetryPolicy::default()
    };
    Options {
        retry,
        rates,
        ..Options::default()
    }
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new(name).unwrap()
}

async fn put(store: &Store, name: &str, bytes: usize) -> walhalla_providers::Result<()> {
    let body = Bytes::from(vec![7; bytes]);
    store.put(&key(name), body, PutMode::Create).await
}

/// What so many bytes take at the rate.
fn least(bytes: usize) -> Duration {
    Duration::from_secs(1) * u32::try_from(bytes).unwrap() / u32::try_from(RATE).unwrap()
}

#[tokio::test(start_paused = true)]
async fn every_form_of_a_store_shares_the_rate() {
    let rates = Rates::new(rate(), None);
    let one = Bench::new(options(rates.clone()));
    let other = Bench::new(options(rates));
    let forms = [
        one.store.clone(),
        one.store.within(Duration::from_secs(3)),
        one.store.patient(&Patience::new(Duration::from_secs(1))),
        one.store.for_derived(),
        one.store.urgent(),
        other.store.clone(),
    ];
    let puts = forms.iter().enumerate().map(async |(number, store)| {
        let name = format!("of/{number}");
        put(store, &name, 50 * KIB).await.unwrap();
    });
    futures_util::future::join_all(puts).await;
    assert!(one.elapsed() >= least(300 * KIB), "{:?}", one.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_upload_in_parts_takes_as_long_as_its_bytes() {
    let bench = Bench::uploading();
    let mut upload = bench.store.upload(key("object"), PutMode::Create);
    for _ in 0..100 {
        let chunk = Bytes::from(vec![1; 3 * KIB]);
        upload.write(chunk).await.unwrap();
    }
    assert_eq!(upload.finish().await.unwrap(), 300 << 10);
    assert!(bench.elapsed() >= least(300 * KIB));
}

#[tokio::test(start_paused = true)]
async fn the_rate_uses_up_no_deadline_and_each_attempt_pays_anew() {
    let bench = Bench::uploading();
    // Of an attempt, and of all attempts together, far longer than they may take.
    let fault = Fault::Fail(ErrorKind::Unavailable);
    for attempt in 1..=3 {
        bench.faulty.on(Call::Put, attempt, fault);
    }
    bench.put("object", 600 * KIB).await.unwrap();
    assert_eq!(bench.faulty.calls(Call::Put), 4);
    assert!(
        bench.elapsed() >= least(2400 * KIB),
        "{:?}",
        bench.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_is_given_up_all_the_same() {
    let bench = Bench::uploading();
    let fault = Fault::Fail(ErrorKind::Unavailable);
    bench.faulty.always(Call::Put, fault);
    let error = bench.put("object", 100 * KIB).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::DeadlineExceeded);
}

#[tokio::test(start_paused = true)]
async fn the_rate_uses_up_no_patience() {
    let bench = Bench::uploading();
    let store = bench.store.patient(&Patience::new(Duration::from_secs(2)));
    let fault = Fault::Fail(ErrorKind::Unavailable);
    for attempt in [1, 2] {
        bench.faulty.on(Call::Put, attempt, fault);
    }
    let both = [
        put(&store, "one", 100 * KIB),
        put(&store, "other", 100 * KIB),
    ];
    for put in futures_util::future::join_all(both).await {
        put.unwrap();
    }
    assert!(bench.elapsed() >= least(400 * KIB), "{:?}", bench.elapsed());

    bench.faulty.always(Call::Put, fault);
    let error = put(&store, "third", KIB).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::DeadlineExceeded);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_the_rate_when_the_server_shuts_down_gives_up() {
    let bench = Bench::uploading();
    let patience = Patience::new(Duration::from_mins(1));
    let store = bench.store.patient(&patience);
    let put = put(&store, "object", 6000 * KIB);
    let end = async {
        sleep(Duration::from_secs(30)).await;
        patience.end_within(Duration::from_secs(5));
    };
    let (put, ()) = tokio::join!(put, end);
    let error = put.unwrap_err();
    assert_eq!(error.kind, ErrorKind::DeadlineExceeded);
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("rate"), "{cause}");
    assert!(bench.elapsed() < Duration::from_secs(36));
    assert_eq!(bench.faulty.calls(Call::Put), 0);
    // What it had paid is not lost, and a second of it was saved.
    bench.put("next", RATE).await.unwrap();
    assert!(bench.elapsed() < Duration::from_secs(36));
}

#[tokio::test(start_paused = true)]
async fn urgent_bodies_go_first_and_find_a_permit() {
    let options = Options {
        upload_concurrency: 1,
        ..options(Rates::new(rate(), None))
    };
    let bench = Bench::new(options);
    let order = std::sync::Mutex::new(Vec::new());
    let send = async |store: &Store, name: &'static str, after: u64| {
        sleep(Duration::from_secs(after)).await;
        put(store, name, 100 * KIB).await.unwrap();
        order.lock().unwrap().push(name);
    };
    let (store, urgent) = (&bench.store, bench.store.urgent());
    tokio::join!(
        send(store, "first part", 0),
        send(store, "second part", 0),
        send(store, "third part", 0),
        send(&urgent, "segment", 5),
        send(&urgent, "history", 6),
    );
    let order = order.into_inner().unwrap();
    assert_eq!(
        order,
        [
            "segment",
            "history",
            "first part",
            "second part",
            "third part"
        ]
    );
    assert!(!bench.store.is_held_back());
}

#[tokio::test(start_paused = true)]
async fn what_is_held_back_is_known() {
    let bench = Bench::uploading();
    let waits = timeout(Duration::from_secs(1), bench.put("object", 100 * KIB));
    let look = async {
        tokio::task::yield_now().await;
        (
            bench.store.is_held_back(),
            bench.store.urgent().is_held_back(),
        )
    };
    let (waited, seen) = tokio::join!(waits, look);
    waited.unwrap_err();
    assert_eq!(seen, (true, false));
    assert!(!bench.store.is_held_back());
}

#[tokio::test(start_paused = true)]
async fn a_read_takes_as_long_as_its_bytes_and_is_not_too_slow() {
    // At 10 KiB a second twenty times longer than a request may take.
    let bench = Bench::downloading(1200 * KIB).await;
    let body = bench.store.get(&key("object"), 10 << 20).await.unwrap();
    assert_eq!(body.len(), 1200 * KIB);
    assert!(
        bench.elapsed() >= least(1200 * KIB),
        "{:?}",
        bench.elapsed()
    );

    let begun = Instant::now();
    let pieces = (0..10).map(async |number| {
        let (key, offset) = (key("object"), number * 100_000);
        let mut reader = bench
            .store
            .read_piece(&key, offset, Some(50_000))
            .await
            .unwrap();
        while reader.next().await.unwrap().is_some() {}
    });
    futures_util::future::join_all(pieces).await;
    // A second may have been saved.
    assert!(begun.elapsed() + Duration::from_secs(1) >= least(500_000));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_drops_under_the_rate_is_made_again() {
    let bench = Bench::downloading(300 * KIB).await;
    let fault = Fault::DropConnection {
        after_bytes: 50_000,
    };
    for request in 1..=5 {
        bench.faulty.on(Call::Get, request, fault);
    }
    let body = bench.store.get(&key("object"), 10 << 20).await.unwrap();
    assert!(body == vec![7; 300 * KIB]);
    assert_eq!(bench.faulty.calls(Call::Get), 6);
    assert!(bench.elapsed() >= least(300 * KIB));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_while_it_waits_loses_no_bytes() {
    let bench = Bench::downloading(30 * KIB).await;
    let mut reader = bench.store.read(&key("object"), 0, None).await.unwrap();
    let (mut read, mut dropped) = (0, 0);
    loop {
        match timeout(Duration::from_millis(30), reader.next()).await {
            Err(_) => dropped += 1,
            Ok(chunk) => match chunk.unwrap() {
                Some(chunk) => read += chunk.len(),
                None => break,
            },
        }
    }
    assert_eq!(read, 30 * KIB);
    assert!(dropped > 10, "{dropped}");
    assert!(bench.elapsed() >= least(30 * KIB));
}

#[tokio::test(start_paused = true)]
async fn readers_that_are_dropped_are_paid_by_the_next_ones() {
    let bench = Bench::downloading(30 * KIB).await;
    for _ in 0..200 {
        let mut reader = bench.store.read(&key("object"), 0, None).await.unwrap();
        reader.next().await.unwrap();
    }
    assert_eq!(bench.elapsed(), Duration::ZERO);
    bench.store.get(&key("object"), 1 << 20).await.unwrap();
    // The store's chunks have 1,000 bytes.
    assert!(bench.elapsed() >= least(200_000), "{:?}", bench.elapsed());
}
