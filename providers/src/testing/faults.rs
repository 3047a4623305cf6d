//! What every store must do on a line that fails, and before a server that does.
//!
//! Each check has a [`Proxy`] and keys of its own. Faults that pass are survived, with the right
//! bytes; faults that last end before the deadline, with the right [`ErrorKind`]. No time decides
//! here but that nothing waits for [`PATIENCE`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::task::JoinError;

use super::conformance::pattern;
use super::proxy::{Answer, Ending, Fault, Proxy, Requests, Side, When};
use crate::transfer::{Options, RetryPolicy, Store};
use crate::{Error, ErrorKind, ObjectKey, ObjectStore, PutMode, Result};

/// Makes a store that finds its server at an endpoint, `http://127.0.0.1:PORT`.
pub type MakeStore = Arc<dyn Fn(&str) -> Arc<dyn ObjectStore> + Send + Sync>;

/// Nothing that is to fail waits so long, however loaded the machine.
const PATIENCE: Duration = Duration::from_secs(40);

/// Longer than every offset of a fault.
const SMALL_BYTES: usize = 300_000;

/// Every check, at the same time.
///
/// # Panics
/// When one failed, with the names of those that did and what each met.
pub async fn faults_suite(
    make_store: impl Fn(&str) -> Arc<dyn ObjectStore> + Send + Sync + 'static,
    server: SocketAddr,
) {
    let make_store: MakeStore = Arc::new(make_store);
    macro_rules! start {
        ($($check:ident),+ $(,)?) => {
            [$((
                stringify!($check),
                tokio::spawn($check(Line::new(&make_store, server, stringify!($check)))),
            )),+]
        };
    }
    let checks = start![
        a_slow_line_is_only_slow,
        failures_that_pass_are_survived,
        a_connection_that_falls_silent_is_made_again,
        a_broken_line_is_survived_at_every_third_request,
        a_server_that_comes_back_is_found_again,
        failures_that_last_end_at_the_deadline,
        a_dead_server_is_told_at_the_deadline,
        refusals_are_told_at_once,
        a_page_of_a_proxy_is_never_taken_for_an_answer,
        a_create_whose_answer_was_lost_is_a_success,
        anothers_object_stays_a_conflict,
        the_time_that_the_server_asks_for_is_given,
        a_wait_past_the_deadline_is_not_begun,
        a_byte_that_turned_on_the_way_up_is_never_stored,
        a_byte_that_turns_again_and_again_is_told,
        a_byte_that_turned_on_the_way_down_is_not_handed_over,
        a_body_that_trickles_is_given_up,
        an_upload_that_makes_no_progress_is_given_up,
        an_upload_that_fails_leaves_nothing_visible,
    ];
    let mut failed = Vec::new();
    for (name, check) in checks {
        if let Err(error) = check.await {
            failed.push((name, panic_message(error)));
        }
    }
    assert!(failed.is_empty(), "failed: {failed:#?}");
}

fn panic_message(error: JoinError) -> String {
    let panic = error.into_panic();
    let message = panic.downcast_ref::<String>().cloned();
    let word = || panic.downcast_ref::<&str>().map(ToString::to_string);
    message.or_else(word).unwrap_or_default()
}

/// A store behind a proxy, and the same store without.
struct Line {
    proxy: Proxy,
    behind: Arc<dyn ObjectStore>,
    direct: Store,
    name: &'static str,
    part_size_bytes: usize,
}

/// A thing that is done with a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Put,
    Upload,
    Read,
    ReadRange,
    Head,
    List,
    Delete,
}

const DEEDS: [Deed; 7] = [
    Deed::Put,
    Deed::Upload,
    Deed::Read,
    Deed::ReadRange,
    Deed::Head,
    Deed::List,
    Deed::Delete,
];

impl Line {
    fn new(make_store: &MakeStore, server: SocketAddr, name: &'static str) -> Self {
        let proxy = Proxy::start(server);
        let behind = make_store(&proxy.endpoint());
        Self {
            part_size_bytes: behind.limits().part_size_bytes,
            direct: Store::new(make_store(&format!("http://{server}")), patient()),
            proxy,
            behind,
            name,
        }
    }

    fn key(&self, text: &str) -> ObjectKey {
        ObjectKey::new(format!("faults/{}/{text}", self.name)).unwrap()
    }

    fn store(&self, options: Options) -> Store {
        Store::new(Arc::clone(&self.behind), options)
    }

    fn large(&self) -> Bytes {
        pattern(self.part_size_bytes * 2 + 1)
    }

    /// Makes what the deed needs, on the healthy line.
    async fn prepare(&self, deed: Deed, key: &ObjectKey) {
        if !matches!(deed, Deed::Put | Deed::Upload) {
            put(&self.direct, key, pattern(SMALL_BYTES)).await.unwrap();
        }
    }

    /// Does it, and checks what comes of it where it succeeds.
    async fn does(&self, deed: Deed, store: &Store, key: &ObjectKey) -> Result<()> {
        match deed {
            Deed::Put => {
                put(store, key, pattern(SMALL_BYTES)).await?;
                self.assert_stored(key, &pattern(SMALL_BYTES)).await;
            }
            Deed::Upload => {
                upload(store, key, self.large()).await?;
                self.assert_stored(key, &self.large()).await;
            }
            Deed::Read => {
                let read = store.get(key, SMALL_BYTES as u64).await?;
                assert!(read == pattern(SMALL_BYTES), "other bytes came");
            }
            Deed::ReadRange => {
                let read = read_range(store, key, 1_000, 200_000).await?;
                let whole = pattern(SMALL_BYTES);
                assert!(read == whole.slice(1_000..201_000), "other bytes came");
            }
            Deed::Head => assert_eq!(store.head(key).await?.size_bytes, SMALL_BYTES as u64),
            Deed::List => assert_eq!(store.list(key.as_str(), None).await?.len(), 1),
            Deed::Delete => {
                // One request a batch or one a key: the refusal comes either way.
                let mut refused = store.delete(std::slice::from_ref(key)).await?;
                if let Some((_, error)) = refused.pop() {
                    return Err(error);
                }
                self.assert_absent(key).await;
            }
        }
        Ok(())
    }

    /// What comes of `deed` when the n-th request that names `key` meets `fault`: some request must.
    async fn with_fault<T>(
        &self,
        key: &ObjectKey,
        nth: u32,
        fault: Fault,
        deed: impl Future<Output = T>,
    ) -> T {
        let before = self.proxy.faults_met();
        let rule = Requests::naming(last(key));
        self.proxy.on(rule, When::Nth(nth), fault.clone());
        let outcome = deed.await;
        let met = self.proxy.faults_met() - before;
        assert_eq!(met, 1, "request {nth} of {key} is to meet {fault:?}");
        self.proxy.heal();
        outcome
    }

    /// How many requests a whole upload takes, which differs by store.
    async fn requests_of_an_upload(&self) -> u32 {
        let key = self.key("healthy");
        upload(&self.store(patient()), &key, self.large())
            .await
            .unwrap();
        let count = self.proxy.count(&Requests::naming(last(&key)));
        u32::try_from(count).unwrap()
    }

    async fn assert_stored(&self, key: &ObjectKey, body: &Bytes) {
        let stored = self.direct.get(key, body.len() as u64).await.unwrap();
        assert!(stored == body, "other bytes are stored under {key}");
    }

    async fn assert_absent(&self, key: &ObjectKey) {
        let head = self.direct.head(key).await;
        let is_absent = head.as_ref().is_err_and(Error::is_not_found);
        assert!(is_absent, "{key} is not absent: {head:?}");
    }
}

/// Retries soon and has all the time that a loaded machine takes.
fn patient() -> Options {
    with_deadline(Duration::from_mins(2), Duration::from_secs(20))
}

/// Gives up soon.
fn hasty() -> Options {
    with_deadline(Duration::from_millis(1500), Duration::from_millis(300))
}

fn with_deadline(deadline: Duration, attempt_timeout: Duration) -> Options {
    let retry = RetryPolicy {
        first_delay: Duration::from_millis(10),
        max_delay: Duration::from_millis(100),
        deadline,
        attempt_timeout,
    };
    Options {
        retry,
        ..Options::default()
    }
}

async fn put(store: &Store, key: &ObjectKey, body: Bytes) -> Result<()> {
    store.put(key, body, PutMode::Create).await
}

async fn upload(store: &Store, key: &ObjectKey, body: Bytes) -> Result<()> {
    let mut upload = store.upload(key.clone(), PutMode::Create);
    upload.write(body).await?;
    upload.finish().await.map(drop)
}

async fn read_range(store: &Store, key: &ObjectKey, offset: u64, length: u64) -> Result<Vec<u8>> {
    let mut reader = store.read(key, offset, Some(length)).await?;
    let mut body = Vec::new();
    while let Some(chunk) = reader.next().await? {
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The error of something that is to fail soon.
async fn fails<T>(deed: impl Future<Output = Result<T>>, what: &str) -> Error {
    let started = Instant::now();
    let outcome = tokio::time::timeout(PATIENCE, deed).await;
    let took = started.elapsed();
    let outcome = outcome.unwrap_or_else(|_| panic!("{what}: nothing after {took:?}"));
    outcome.err().unwrap_or_else(|| panic!("{what}: a success"))
}

fn broken(side: Side, after_bytes: u64, ending: Ending) -> Fault {
    Fault::Break {
        side,
        after_bytes,
        ending,
    }
}

/// A page of a proxy on the way, which speaks no store's language.
fn page(status: u16) -> Fault {
    let page = Answer::status(status).header("Content-Type", "text/html");
    Fault::Answer(page.body("<html><body><h1>Gateway</h1></body></html>"))
}

async fn a_slow_line_is_only_slow(line: Line) {
    line.proxy.delay(Duration::from_millis(40));
    let slow = |side| Fault::Slow {
        side,
        bytes: 16 << 10,
        every: Duration::from_millis(1),
    };
    line.proxy
        .on(Requests::all(), When::Every(2), slow(Side::Request));
    line.proxy
        .on(Requests::all(), When::Always, slow(Side::Answer));
    let store = line.store(patient());
    for deed in DEEDS {
        let key = line.key(&format!("{deed:?}"));
        line.prepare(deed, &key).await;
        line.does(deed, &store, &key).await.unwrap();
    }
}

async fn failures_that_pass_are_survived(line: Line) {
    let faults = [
        Fault::Answer(Answer::status(500)),
        Fault::Answer(Answer::status(503)),
        Fault::Answer(Answer::status(503).header("Retry-After", "0")),
        Fault::Answer(Answer::status(429)),
        page(502),
        page(504),
        broken(Side::Request, 0, Ending::Close),
        broken(Side::Request, 0, Ending::Reset),
        broken(Side::Request, 70_000, Ending::Close),
        broken(Side::Request, 70_000, Ending::Reset),
        broken(Side::Answer, 0, Ending::Close),
        broken(Side::Answer, 100, Ending::Reset),
        broken(Side::Answer, 70_000, Ending::Close),
        broken(Side::Answer, 70_000, Ending::Reset),
        Fault::LoseAnswer(Ending::Close),
        Fault::LoseAnswer(Ending::Reset),
    ];
    let store = line.store(patient());
    for (number, fault) in faults.into_iter().enumerate() {
        for deed in DEEDS {
            let key = line.key(&format!("{number}/{deed:?}"));
            line.prepare(deed, &key).await;
            line.proxy.next(fault.clone());
            let outcome = line.does(deed, &store, &key).await;
            assert!(outcome.is_ok(), "{deed:?} after {fault:?}: {outcome:?}");
        }
    }
}

async fn a_connection_that_falls_silent_is_made_again(line: Line) {
    // Long enough for what a request really takes, short enough to wait for.
    let store = line.store(with_deadline(
        Duration::from_mins(2),
        Duration::from_millis(1500),
    ));
    let faults = [
        broken(Side::Request, 0, Ending::Silence),
        Fault::LoseAnswer(Ending::Silence),
        broken(Side::Answer, 50_000, Ending::Silence),
    ];
    for (number, fault) in faults.into_iter().enumerate() {
        // A put waits for the seconds that its body takes on a slow line, too.
        for deed in DEEDS.into_iter().filter(|deed| *deed != Deed::Upload) {
            let key = line.key(&format!("{number}/{deed:?}"));
            line.prepare(deed, &key).await;
            line.proxy.next(fault.clone());
            let outcome = line.does(deed, &store, &key).await;
            assert!(outcome.is_ok(), "{deed:?} after {fault:?}: {outcome:?}");
        }
    }
}

async fn a_broken_line_is_survived_at_every_third_request(line: Line) {
    let store = line.store(patient());
    let faults = [
        Fault::Answer(Answer::status(503)),
        broken(Side::Request, 1 << 20, Ending::Reset),
        broken(Side::Answer, 50_000, Ending::Close),
        Fault::LoseAnswer(Ending::Close),
    ];
    for (number, fault) in faults.into_iter().enumerate() {
        line.proxy.heal();
        line.proxy.on(Requests::all(), When::Every(3), fault);
        for deed in DEEDS {
            let key = line.key(&format!("{number}/{deed:?}"));
            line.prepare(deed, &key).await;
            for _ in 0..2 {
                if matches!(deed, Deed::Put | Deed::Upload) {
                    line.direct
                        .delete(std::slice::from_ref(&key))
                        .await
                        .unwrap();
                }
                line.does(deed, &store, &key).await.unwrap();
            }
        }
    }
}

async fn a_server_that_comes_back_is_found_again(line: Line) {
    let store = line.store(patient());
    let key = line.key("object");
    // A connection is open, and will be dead.
    assert!(store.head(&key).await.unwrap_err().is_not_found());
    line.proxy.refuse();
    let writing = tokio::spawn({
        let (store, key) = (store.clone(), key.clone());
        async move { put(&store, &key, pattern(SMALL_BYTES)).await }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!writing.is_finished(), "a put without a server");
    line.proxy.accept();
    writing.await.unwrap().unwrap();
    line.assert_stored(&key, &pattern(SMALL_BYTES)).await;
}

async fn failures_that_last_end_at_the_deadline(line: Line) {
    let faults = [
        Fault::Answer(Answer::status(500)),
        Fault::Answer(Answer::status(503)),
        Fault::Answer(Answer::status(429).header("Retry-After", "0")),
        page(502),
        broken(Side::Request, 0, Ending::Close),
        broken(Side::Request, 0, Ending::Reset),
        broken(Side::Request, 0, Ending::Silence),
    ];
    for (number, fault) in faults.into_iter().enumerate() {
        let deeds = DEEDS.map(|deed| {
            let key = line.key(&format!("{number}/{deed:?}"));
            (deed, key)
        });
        for (deed, key) in &deeds {
            line.prepare(*deed, key).await;
        }
        line.proxy.always(fault.clone());
        let store = line.store(hasty());
        let all = deeds.iter().map(|(deed, key)| {
            let (line, store, fault) = (&line, &store, &fault);
            async move {
                let what = format!("{deed:?} under {fault:?}");
                let error = fails(line.does(*deed, store, key), &what).await;
                assert_eq!(error.kind, ErrorKind::DeadlineExceeded, "{what}: {error:?}");
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                assert!(cause.is_some(), "{what}: no cause");
            }
        });
        futures_util::future::join_all(all).await;
        line.proxy.heal();
        line.assert_absent(&line.key(&format!("{number}/{:?}", Deed::Put)))
            .await;
        line.assert_absent(&line.key(&format!("{number}/{:?}", Deed::Upload)))
            .await;
    }
}

async fn a_dead_server_is_told_at_the_deadline(line: Line) {
    line.proxy.refuse();
    let (store, key) = (line.store(hasty()), line.key("object"));
    for deed in DEEDS {
        let error = fails(line.does(deed, &store, &key), "a dead server").await;
        assert_eq!(
            error.kind,
            ErrorKind::DeadlineExceeded,
            "{deed:?}: {error:?}"
        );
    }
    line.proxy.accept();
    line.does(Deed::Put, &line.store(patient()), &key)
        .await
        .unwrap();
}

async fn refusals_are_told_at_once(line: Line) {
    let store = line.store(with_deadline(
        PATIENCE.saturating_mul(10),
        Duration::from_secs(20),
    ));
    let refusals = [
        (401, ErrorKind::Unauthenticated),
        (403, ErrorKind::PermissionDenied),
    ];
    for (status, kind) in refusals {
        line.proxy.always(Fault::Answer(Answer::status(status)));
        for deed in DEEDS {
            let key = line.key(&format!("{status}/{deed:?}"));
            let before = line.proxy.count(&Requests::all());
            let what = format!("{deed:?} with {status}");
            let error = fails(line.does(deed, &store, &key), &what).await;
            assert_eq!(error.kind, kind, "{what}: {error:?}");
            // A look may be asked in another way, and with other credentials, but nothing waits.
            let requests = line.proxy.count(&Requests::all()) - before;
            assert!(requests <= 4, "{what}: {requests} requests");
            let is_of_object = !matches!(deed, Deed::List | Deed::Delete);
            let object = if is_of_object {
                key.as_str()
            } else {
                store.url()
            };
            assert!(error.to_string().contains(object), "{error}");
        }
        line.proxy.heal();
    }
}

async fn a_page_of_a_proxy_is_never_taken_for_an_answer(line: Line) {
    let store = line.store(hasty());
    for status in [200, 201, 204, 404] {
        // A 204 has no body by which a page could be told from the answer to a delete.
        let deeds = DEEDS
            .into_iter()
            .filter(|deed| status != 204 || *deed != Deed::Delete)
            .map(|deed| (deed, line.key(&format!("{status}/{deed:?}"))))
            .collect::<Vec<_>>();
        for (deed, key) in &deeds {
            line.prepare(*deed, key).await;
        }
        line.proxy.always(page(status));
        for (deed, key) in &deeds {
            let what = format!("{deed:?} with a page of {status}");
            let error = fails(line.does(*deed, &store, key), &what).await;
            assert!(!error.is_not_found(), "{what}: {error:?}");
        }
        line.proxy.heal();
    }
}

async fn a_create_whose_answer_was_lost_is_a_success(line: Line) {
    let store = line.store(patient());
    for ending in [Ending::Close, Ending::Reset] {
        let key = line.key(&format!("{ending:?}"));
        let put = put(&store, &key, pattern(SMALL_BYTES));
        let put = line.with_fault(&key, 1, Fault::LoseAnswer(ending), put);
        put.await.unwrap();
        line.assert_stored(&key, &pattern(SMALL_BYTES)).await;
        let listed = line.direct.list(key.as_str(), None).await.unwrap();
        assert_eq!(listed.len(), 1, "stored once");
    }
    // Whichever request of an upload it is: the beginning, a part or the completion.
    for nth in 1..=line.requests_of_an_upload().await {
        let key = line.key(&format!("upload-{nth}"));
        let upload = upload(&store, &key, line.large());
        let upload = line.with_fault(&key, nth, Fault::LoseAnswer(Ending::Close), upload);
        upload.await.unwrap();
        line.assert_stored(&key, &line.large()).await;
    }
}

async fn anothers_object_stays_a_conflict(line: Line) {
    let store = line.store(patient());
    let key = line.key("taken");
    put(&line.direct, &key, pattern(1_000)).await.unwrap();
    let both_are_refused = || async {
        let refused = put(&store, &key, pattern(2_000)).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::AlreadyExists, "{refused:?}");
        let refused = upload(&store, &key, line.large()).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::AlreadyExists, "{refused:?}");
    };
    both_are_refused().await;
    for lost in 1..=4 {
        let fault = Fault::LoseAnswer(Ending::Close);
        line.with_fault(&key, lost, fault, both_are_refused()).await;
    }
    line.assert_stored(&key, &pattern(1_000)).await;
}

async fn the_time_that_the_server_asks_for_is_given(line: Line) {
    let store = line.store(patient());
    for status in [429, 503] {
        let key = line.key(&status.to_string());
        let answer = Answer::status(status).header("Retry-After", "2");
        line.proxy.next(Fault::Answer(answer));
        let started = Instant::now();
        put(&store, &key, pattern(SMALL_BYTES)).await.unwrap();
        let took = started.elapsed();
        assert!(took >= Duration::from_secs(2), "sent again after {took:?}");
    }
}

async fn a_wait_past_the_deadline_is_not_begun(line: Line) {
    let answer = Answer::status(503).header("Retry-After", "3600");
    line.proxy.always(Fault::Answer(answer));
    let store = line.store(with_deadline(
        PATIENCE.saturating_mul(10),
        Duration::from_secs(20),
    ));
    let error = fails(
        put(&store, &line.key("object"), pattern(10)),
        "asked to wait for an hour",
    )
    .await;
    assert_eq!(error.kind, ErrorKind::DeadlineExceeded);
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("to wait 3600 s"), "{cause}");
}

async fn a_byte_that_turned_on_the_way_up_is_never_stored(line: Line) {
    let store = line.store(patient());
    let flip = |at| Fault::Flip {
        side: Side::Request,
        at,
    };
    for at in [0, 1_000, SMALL_BYTES as u64 - 1] {
        let key = line.key(&format!("put-{at}"));
        line.proxy.next(flip(at));
        put(&store, &key, pattern(SMALL_BYTES)).await.unwrap();
        line.assert_stored(&key, &pattern(SMALL_BYTES)).await;
    }
    // A store that takes parts in order only compares the whole, at the end, when no part can be sent again.
    let compares_parts = line.behind.limits().parallel_parts;
    for nth in 1..=line.requests_of_an_upload().await {
        let key = line.key(&format!("part-{nth}"));
        let upload = upload(&store, &key, line.large());
        let upload = line.with_fault(&key, nth, flip(200_000), upload);
        match upload.await {
            Ok(()) => line.assert_stored(&key, &line.large()).await,
            Err(error) if compares_parts => panic!("request {nth}: {error:?}"),
            Err(_) => line.assert_absent(&key).await,
        }
    }
}

async fn a_byte_that_turns_again_and_again_is_told(line: Line) {
    let flip = Fault::Flip {
        side: Side::Request,
        at: 1_000,
    };
    line.proxy.always(flip);
    let store = line.store(with_deadline(
        PATIENCE.saturating_mul(10),
        Duration::from_secs(20),
    ));
    let (put_key, upload_key) = (line.key("put"), line.key("upload"));
    let error = fails(put(&store, &put_key, pattern(SMALL_BYTES)), "flips").await;
    assert_eq!(error.kind, ErrorKind::Corrupted, "{error:?}");
    let error = fails(upload(&store, &upload_key, line.large()), "flips").await;
    assert_eq!(error.kind, ErrorKind::Corrupted, "{error:?}");
    line.assert_absent(&put_key).await;
    line.assert_absent(&upload_key).await;
}

async fn a_byte_that_turned_on_the_way_down_is_not_handed_over(line: Line) {
    let store = line.store(patient());
    let key = line.key("object");
    put(&line.direct, &key, pattern(SMALL_BYTES)).await.unwrap();
    let flip = || Fault::Flip {
        side: Side::Answer,
        at: 1_000,
    };
    line.proxy.next(flip());
    let read = store.get(&key, SMALL_BYTES as u64).await.unwrap();
    assert!(read == pattern(SMALL_BYTES), "other bytes came");

    line.proxy.always(flip());
    let error = fails(store.get(&key, SMALL_BYTES as u64), "flips").await;
    assert_eq!(error.kind, ErrorKind::Corrupted, "{error:?}");
    let error = fails(read_range(&store, &key, 0, u64::MAX), "flips").await;
    assert_eq!(error.kind, ErrorKind::Corrupted, "{error:?}");
}

async fn a_body_that_trickles_is_given_up(line: Line) {
    let key = line.key("object");
    put(&line.direct, &key, pattern(SMALL_BYTES)).await.unwrap();
    let trickle = || Fault::Slow {
        side: Side::Answer,
        bytes: 1,
        every: Duration::from_millis(100),
    };
    // One connection that trickles is left for another.
    line.proxy.next(trickle());
    let store = line.store(with_deadline(PATIENCE, Duration::from_secs(5)));
    let read = tokio::time::timeout(PATIENCE, store.get(&key, SMALL_BYTES as u64));
    let read = read.await.expect("it went on forever").unwrap();
    assert!(read == pattern(SMALL_BYTES), "other bytes came");

    line.proxy.always(trickle());
    let error = fails(
        line.store(hasty()).get(&key, SMALL_BYTES as u64),
        "a byte now and then",
    )
    .await;
    assert_eq!(error.kind, ErrorKind::DeadlineExceeded, "{error:?}");
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("1 KiB a second"), "{cause}");
}

async fn an_upload_that_makes_no_progress_is_given_up(line: Line) {
    let trickle = Fault::Slow {
        side: Side::Request,
        bytes: 1,
        every: Duration::from_secs(1),
    };
    line.proxy.always(trickle);
    let (put_key, upload_key) = (line.key("put"), line.key("upload"));
    let store = line.store(hasty());
    let error = fails(put(&store, &put_key, line.large()), "1 byte a second").await;
    assert_eq!(error.kind, ErrorKind::DeadlineExceeded, "{error:?}");
    let error = fails(upload(&store, &upload_key, line.large()), "1 byte a second").await;
    assert_eq!(error.kind, ErrorKind::DeadlineExceeded, "{error:?}");
    line.assert_absent(&put_key).await;
    line.assert_absent(&upload_key).await;
}

async fn an_upload_that_fails_leaves_nothing_visible(line: Line) {
    // Time for what goes over the healthy line first.
    let store = line.store(with_deadline(
        Duration::from_secs(8),
        Duration::from_secs(2),
    ));
    for after_bytes in [0, 1 << 20] {
        let key = line.key(&format!("after-{after_bytes}"));
        let mut upload = store.upload(key.clone(), PutMode::Create);
        upload.write(line.large()).await.unwrap();
        line.proxy
            .always(broken(Side::Request, after_bytes, Ending::Reset));
        line.proxy.always(Fault::Answer(Answer::status(500)));
        fails(
            async {
                upload.write(line.large()).await?;
                upload.finish().await
            },
            "a line that broke in the middle",
        )
        .await;
        line.proxy.heal();
        line.assert_absent(&key).await;
        assert!(
            line.direct
                .list(key.as_str(), None)
                .await
                .unwrap()
                .is_empty()
        );
    }
}

/// The end of a key, which stores spell as it is in the target of a request.
fn last(key: &ObjectKey) -> String {
    let last = key.as_str().rsplit('/').next();
    last.unwrap_or_default().to_owned()
}
