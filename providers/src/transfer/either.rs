//! Two stores that hold the same, read as one: what either of them has is there.
//!
//! ```text
//! get, head ─▶ first ─▶ second, where the first has not the object or does not answer
//! list      ─▶ both, merged by key
//! put       ─▶ both; one is enough
//! ```
//!
//! The first store is the one that has everything: its word that an object is absent is enough where the second cannot be
//! asked, unless it has nothing at all of the object's top folder. While the first does not answer, the second alone is seen,
//! and [`ObjectStore::left_out`] says so: what is absent then may be there.

use std::cmp::Ordering;
use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{self, AtomicBool};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join;
use tokio::time::{Instant, timeout};

use super::in_words;
use crate::{
    Download, Error, ErrorKind, Limits, ListPage, ListRequest, ObjectInfo, ObjectKey, ObjectStore,
    Operation, PageToken, PartAt, PartReceipt, PutMode, PutToken, Result, Retained, Right,
    UploadId,
};

/// How long a store is waited for before the other one's answer counts alone.
const ANSWER_TIME: Duration = Duration::from_secs(3);
/// The same for a page of a listing, which a store may have to read a folder for.
const PAGE_TIME: Duration = Duration::from_secs(10);
/// How long a store must have failed to be left out.
const DOWN_AFTER: Duration = Duration::from_secs(5);
/// How long a question must have waited, to count as failed when it is given up.
const SOME_TIME: Duration = Duration::from_secs(1);
/// How often it is asked again then.
const ASKED_EACH: Duration = Duration::from_secs(10);

/// Two stores, read as one.
#[derive(Debug)]
pub struct EitherStore {
    first: Side,
    second: Side,
    /// Whether an answer was given that the first store had no part in.
    was_left_out: AtomicBool,
    /// What was said to the user already.
    told: Mutex<Vec<Told>>,
    /// Top folders of which the first store has something.
    known: Mutex<HashSet<String>>,
}

/// One of the two.
#[derive(Debug)]
struct Side {
    store: Arc<dyn ObjectStore>,
    failing: Mutex<Option<Failing>>,
}

/// A store that has answered nothing since some time.
#[derive(Clone, Copy, Debug)]
struct Failing {
    since: Instant,
    last: Instant,
}

/// A question that counts as failed if it is given up after a while.
struct Asking<'a>(Option<&'a Side>, Instant);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if let Some(side) = self.0
            && self.1.elapsed() >= SOME_TIME
        {
            side.failed_since(self.1);
        }
    }
}

/// What is said once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// That the first store does not answer.
    FirstIsDown,
    /// That the first store lacks an object.
    FirstLacks,
    /// That the second store does not answer.
    SecondIsDown,
}

impl Side {
    fn new(store: Arc<dyn ObjectStore>) -> Self {
        let failing = Mutex::default();
        Self { store, failing }
    }

    fn failing(&self) -> MutexGuard<'_, Option<Failing>> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A question was not answered that was asked at `begun`.
    fn failed_since(&self, begun: Instant) {
        let last = Instant::now();
        let mut failing = self.failing();
        let since = failing.map_or(begun, |failing| failing.since);
        *failing = Some(Failing { since, last });
    }

    fn is_down(&self) -> bool {
        let failing = *self.failing();
        let time = failing.map(|failing| failing.last.duration_since(failing.since));
        time.is_some_and(|time| time >= DOWN_AFTER)
    }

    /// Whether it does not answer, and is not going to soon.
    fn is_left_out_after(&self, error: &Error) -> bool {
        !is_answer(error) && (!error.is_retryable() || self.is_down())
    }

    /// What the store answers, which is not asked each time while it is down.
    async fn ask<T>(
        &self,
        (operation, object): (Operation, &str),
        most: Duration,
        request: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let url = || format!("{}/{object}", self.store.url());
        let failing = *self.failing();
        if self.is_down() && failing.is_some_and(|failing| failing.last.elapsed() < ASKED_EACH) {
            return Err(Error::new(operation, url(), ErrorKind::Unavailable).with_source(Down));
        }
        let begun = Instant::now();
        let mut asking = Asking(Some(self), begun);
        let answer = timeout(most, request).await;
        let answer =
            answer.unwrap_or_else(|_| Err(Error::new(operation, url(), ErrorKind::TimedOut)));
        let answer = answer.map_err(|error| error.at(self.store.place().as_ref()));
        asking.0 = None;
        match &answer {
            Err(error) if !is_answer(error) => self.failed_since(begun),
            Ok(_) | Err(_) => *self.failing() = None,
        }
        answer
    }
}

/// How far a listing of both has come.
#[derive(Clone, Debug, Default)]
struct Cursors {
    first: Cursor,
    second: Cursor,
    pages: u64,
}

/// How far a listing of one store has come.
#[derive(Clone, Debug, Default)]
struct Cursor {
    /// What was read and not shown yet, in order.
    read: VecDeque<Entry>,
    next: Next,
}

#[derive(Clone, Debug, Default)]
enum Next {
    #[default]
    Begin,
    After(PageToken),
    /// There is no more.
    End,
    /// The store is left out.
    LeftOut,
}

#[derive(Clone, Debug)]
enum Entry {
    Object(ObjectInfo),
    Folder(String),
}

impl Entry {
    fn text(&self) -> &str {
        match self {
            Self::Object(info) => info.key.as_str(),
            Self::Folder(folder) => folder,
        }
    }
}

impl Cursor {
    fn wants_a_page(&self) -> bool {
        self.read.is_empty() && matches!(self.next, Next::Begin | Next::After(_))
    }

    /// The request for the next page.
    fn request(&self, request: &ListRequest) -> ListRequest {
        let page = match &self.next {
            Next::After(token) => Some(token.clone()),
            Next::Begin | Next::End | Next::LeftOut => None,
        };
        ListRequest {
            page,
            ..request.clone()
        }
    }

    fn take(&mut self, page: ListPage) {
        let objects = page.objects.into_iter().map(Entry::Object);
        let mut entries: Vec<Entry> = objects
            .chain(page.folders.into_iter().map(Entry::Folder))
            .collect();
        entries.sort_by(|one, other| one.text().cmp(other.text()));
        self.read = entries.into();
        self.next = page.next.map_or(Next::End, Next::After);
    }
}

impl Cursors {
    /// The page up to where both stores were read.
    fn page(mut self) -> ListPage {
        let mut page = ListPage::default();
        while !self.first.wants_a_page() && !self.second.wants_a_page() {
            let (first, second) = (self.first.read.front(), self.second.read.front());
            let order = match (first, second) {
                (Some(first), Some(second)) => first.text().cmp(second.text()),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => return page,
            };
            let second = (order != Ordering::Less).then(|| self.second.read.pop_front());
            let first = (order != Ordering::Greater).then(|| self.first.read.pop_front());
            match first.or(second).flatten() {
                Some(Entry::Object(info)) => page.objects.push(info),
                Some(Entry::Folder(folder)) => page.folders.push(folder),
                None => {}
            }
        }
        self.pages += 1;
        page.next = Some(PageToken::with_read(self.pages.to_string(), Arc::new(self)));
        page
    }
}

impl EitherStore {
    /// `first`, which has everything, and `second`, which may lack what is new.
    pub fn new(first: Arc<dyn ObjectStore>, second: Arc<dyn ObjectStore>) -> Self {
        Self {
            first: Side::new(first),
            second: Side::new(second),
            was_left_out: AtomicBool::new(false),
            told: Mutex::default(),
            known: Mutex::default(),
        }
    }

    /// Whether something is said for the first time.
    fn is_news(&self, told: Told) -> bool {
        let mut all = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = !all.contains(&told);
        all.extend(is_news.then_some(told));
        is_news
    }

    /// What one of both answers about an object.
    async fn of_either<T>(
        &self,
        operation: Operation,
        key: &ObjectKey,
        first: impl Future<Output = Result<T>> + Send,
        second: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let asked = (operation, key.as_str());
        let mut error = match self.first.ask(asked, ANSWER_TIME, first).await {
            Err(error) if error.kind != ErrorKind::Invalid => error,
            answer => return answer,
        };
        if error.is_not_found() && !self.first_knows(key.as_str()).await? {
            error = self.nothing_there(operation, key.as_str());
        }
        match self.second.ask(asked, ANSWER_TIME, second).await {
            Ok(answer) => {
                self.tell(key, &error);
                Ok(answer)
            }
            // Whoever must know whether it is proven asks whether a store was left out.
            Err(absent) if absent.is_not_found() && self.first.is_left_out_after(&error) => {
                self.leave_out(&error);
                Err(absent)
            }
            // It may have what the first lacks, and is going to answer.
            Err(second)
                if error.is_not_found()
                    && !second.is_not_found()
                    && !self.second.is_left_out_after(&second) =>
            {
                Err(second)
            }
            Err(second) => {
                if !is_answer(&second) && self.is_news(Told::SecondIsDown) {
                    let first = self.first.store.url();
                    tracing::warn!("{}; only what {first} has is seen", in_words(&second));
                }
                Err(error)
            }
        }
    }

    /// Whether the first store has anything of the top folder of a key. One that has nothing is not the one that is meant,
    /// or not mounted.
    async fn first_knows(&self, key: &str) -> Result<bool> {
        let Some((folder, _)) = key.split_once('/') else {
            return Ok(true);
        };
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known().contains(folder) {
            return Ok(true);
        }
        let request = ListRequest {
            prefix: format!("{folder}/"),
            most_keys: Some(1),
            ..ListRequest::default()
        };
        let listed = self.first.store.list(&request);
        let asked = (Operation::List, request.prefix.as_str());
        let page = self.first.ask(asked, PAGE_TIME, listed).await?;
        let is_known = !page.objects.is_empty() || page.next.is_some();
        if is_known {
            known().insert(folder.to_owned());
        }
        Ok(is_known)
    }

    fn nothing_there(&self, operation: Operation, object: &str) -> Error {
        let object = format!("{}/{object}", self.first.store.url());
        Error::new(operation, object, ErrorKind::StoreMissing).with_source(NothingThere)
    }

    /// Notes that an answer is given that the first store has no part in.
    fn leave_out(&self, error: &Error) {
        self.was_left_out.store(true, atomic::Ordering::Relaxed);
        if self.is_news(Told::FirstIsDown) {
            let second = self.second.store.url();
            tracing::warn!(
                "{}; only what {second} has is seen, which may lack the newest",
                in_words(error)
            );
        }
    }

    /// Says where an object comes from, each reason once.
    fn tell(&self, key: &ObjectKey, error: &Error) {
        let (first, second) = (self.first.store.url(), self.second.store.url());
        let is_lack = error.is_not_found();
        let told = if is_lack {
            Told::FirstLacks
        } else {
            Told::FirstIsDown
        };
        if !self.is_news(told) {
            tracing::debug!("{key} is read from {second}");
        } else if is_lack {
            tracing::warn!(
                "{first} lacks {key}, which is read from {second}; -v tells what else it lacks"
            );
        } else {
            tracing::warn!("{}; it is read from {second}", in_words(error));
        }
    }

    /// The next page of one store, if its listing wants one; what is wrong where the store is left out.
    async fn page(side: &Side, cursor: &Cursor, request: &ListRequest) -> Option<Result<ListPage>> {
        let request = cursor.wants_a_page().then(|| cursor.request(request))?;
        let asked = (Operation::List, request.prefix.as_str());
        let listed = side.store.list(&request);
        Some(side.ask(asked, PAGE_TIME, listed).await)
    }

    /// Goes on in a listing.
    async fn read_on(&self, cursors: &mut Cursors, request: &ListRequest) -> Result<()> {
        let of_first = Self::page(&self.first, &cursors.first, request);
        let of_second = Self::page(&self.second, &cursors.second, request);
        let (of_first, of_second) = join(of_first, of_second).await;
        match of_first {
            Some(Ok(page)) => cursors.first.take(page),
            Some(Err(error)) if !self.first.is_left_out_after(&error) => return Err(error),
            Some(Err(error)) => {
                cursors.first.next = Next::LeftOut;
                self.leave_out(&error);
            }
            None => {}
        }
        let is_alone = matches!(cursors.first.next, Next::LeftOut);
        match of_second {
            Some(Ok(page)) => cursors.second.take(page),
            Some(Err(error)) if is_alone || !self.second.is_left_out_after(&error) => {
                return Err(error);
            }
            Some(Err(error)) => {
                cursors.second.next = Next::LeftOut;
                if self.is_news(Told::SecondIsDown) {
                    let first = self.first.store.url();
                    tracing::warn!("{}; only what {first} has is seen", in_words(&error));
                }
            }
            None => {}
        }
        let is_empty = cursors.pages == 0
            && cursors.first.read.is_empty()
            && matches!(cursors.first.next, Next::End);
        if is_empty && !cursors.second.read.is_empty() && !self.first_knows(&request.prefix).await?
        {
            self.leave_out(&self.nothing_there(Operation::List, &request.prefix));
        }
        Ok(())
    }
}

/// Whether the store did answer.
fn is_answer(error: &Error) -> bool {
    matches!(
        error.kind,
        ErrorKind::NotFound | ErrorKind::AlreadyExists | ErrorKind::Invalid
    )
}

/// The store was asked for something in a folder of which it has nothing.
#[derive(Debug, thiserror::Error)]
#[error(
    "it holds nothing of all that the other store has there: is it the right one, and mounted?"
)]
struct NothingThere;

/// The store answered nothing for some time.
#[derive(Debug, thiserror::Error)]
#[error("it has answered nothing for some seconds")]
struct Down;

/// Another store may have sent what came before: the same bytes, as checksums in them show.
fn of_any_store(download: Download) -> Download {
    Download {
        version: None,
        ..download
    }
}

#[async_trait]
impl ObjectStore for EitherStore {
    fn url(&self) -> &str {
        self.first.store.url()
    }

    fn right(&self, right: Right) -> &'static str {
        self.first.store.right(right)
    }

    fn limits(&self) -> Limits {
        let (first, second) = (self.first.store.limits(), self.second.store.limits());
        Limits {
            listings: first.listings.min(second.listings),
            ..first
        }
    }

    fn left_out(&self) -> Option<&str> {
        let was_left_out = self.was_left_out.load(atomic::Ordering::Relaxed);
        was_left_out.then(|| self.first.store.url())
    }

    async fn put(
        &self,
        key: &ObjectKey,
        body: Bytes,
        mode: PutMode,
        token: &PutToken,
    ) -> Result<()> {
        let asked = (Operation::Put, key.as_str());
        let first = self.first.store.put(key, body.clone(), mode, token);
        let second = self.second.store.put(key, body, mode, token);
        let first = self.first.ask(asked, ANSWER_TIME, first);
        match join(first, self.second.ask(asked, ANSWER_TIME, second)).await {
            (Err(error), Ok(())) if !is_answer(&error) => {
                tracing::debug!("{}", in_words(&error));
                Ok(())
            }
            (Ok(()), Err(error)) => {
                tracing::debug!("{}", in_words(&error));
                Ok(())
            }
            (first, _) => first,
        }
    }

    async fn start_upload(
        &self,
        key: &ObjectKey,
        mode: PutMode,
        token: &PutToken,
    ) -> Result<UploadId> {
        self.first.store.start_upload(key, mode, token).await
    }

    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        at: PartAt,
        body: Bytes,
    ) -> Result<PartReceipt> {
        self.first.store.put_part(key, upload, at, body).await
    }

    async fn complete_upload(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[PartReceipt],
        mode: PutMode,
    ) -> Result<()> {
        self.first
            .store
            .complete_upload(key, upload, parts, mode)
            .await
    }

    async fn abort_upload(&self, key: &ObjectKey, upload: &UploadId) -> Result<()> {
        self.first.store.abort_upload(key, upload).await
    }

    async fn get(&self, key: &ObjectKey, offset: u64, length: Option<u64>) -> Result<Download> {
        let (first, second) = (
            self.first.store.get(key, offset, length),
            self.second.store.get(key, offset, length),
        );
        let download = self.of_either(Operation::Get, key, first, second).await?;
        Ok(of_any_store(download))
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectInfo> {
        let (first, second) = (self.first.store.head(key), self.second.store.head(key));
        self.of_either(Operation::Head, key, first, second).await
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage> {
        let known = request.page.as_ref().and_then(PageToken::read::<Cursors>);
        let mut cursors = known.map_or_else(Cursors::default, |known| Cursors::clone(&known));
        self.read_on(&mut cursors, request).await?;
        Ok(cursors.page())
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<Vec<(ObjectKey, Error)>> {
        let asked = (Operation::Delete, "");
        let first = self
            .first
            .ask(asked, PAGE_TIME, self.first.store.delete(keys));
        let second = self
            .second
            .ask(asked, PAGE_TIME, self.second.store.delete(keys));
        match join(first, second).await {
            (Err(_), Ok(refused)) => Ok(refused),
            (first, _) => first,
        }
    }

    async fn retained(&self, key: &ObjectKey) -> Result<Retained> {
        self.first.store.retained(key).await
    }

    async fn settle(&self, key: &ObjectKey) -> Result<()> {
        self.first.store.settle(key).await
    }
}
