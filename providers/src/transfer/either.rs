//! Two stores that hold the same, read as one: what either of them has is there.
//!
//! ```text
//! get, head ─▶ first ─▶ second, where the first has not the object or does not answer
//! list      ─▶ both, merged by key
//! put       ─▶ both; one is enough
//! ```
//!
//! The first store is the one that has everything: its word that an object is absent is enough where the second cannot be
//! asked. While the first does not answer, the second alone is seen, and [`ObjectStore::left_out`] says so: what is absent then
//! may be there.

use std::cmp::Ordering;
use std::collections::VecDeque;
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

/// How long the first store is waited for before the second is asked for an object.
const ANSWER_TIME: Duration = Duration::from_secs(5);
/// The same for a page of a listing, which a store may have to read a folder for.
const PAGE_TIME: Duration = Duration::from_secs(20);
/// How long the first store must have failed, to be left out of a listing.
const DOWN_AFTER: Duration = Duration::from_secs(5);
/// How often it is asked again then.
const ASKED_EACH: Duration = Duration::from_secs(10);

/// Two stores, read as one.
#[derive(Debug)]
pub struct EitherStore {
    first: Arc<dyn ObjectStore>,
    second: Arc<dyn ObjectStore>,
    health: Mutex<Health>,
}

/// What is known of the first store.
#[derive(Debug, Default)]
struct Health {
    /// Since when it has answered nothing.
    failing_since: Option<Instant>,
    /// When it failed last.
    failed: Option<Instant>,
    /// Whether an answer was given that it had no part in.
    was_left_out: bool,
    /// What was said to the user already.
    told: Vec<Told>,
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

impl Health {
    /// Whether something is said for the first time.
    fn is_news(&mut self, told: Told) -> bool {
        let is_news = !self.told.contains(&told);
        self.told.extend(is_news.then_some(told));
        is_news
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
            first,
            second,
            health: Mutex::default(),
        }
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_down(&self) -> bool {
        let since = self.health().failing_since;
        since.is_some_and(|since| since.elapsed() >= DOWN_AFTER)
    }

    /// What the first store answers, which is not asked each time while it is down.
    async fn of_first<T>(
        &self,
        (operation, object): (Operation, &str),
        most: Duration,
        request: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let failure = |kind| Error::new(operation, format!("{}/{object}", self.url()), kind);
        let failed = self.health().failed;
        if self.is_down() && failed.is_some_and(|failed| failed.elapsed() < ASKED_EACH) {
            return Err(failure(ErrorKind::Unavailable).with_source(Down));
        }
        let answer = timeout(most, request).await;
        let answer = answer.unwrap_or_else(|_| Err(failure(ErrorKind::TimedOut)));
        let mut health = self.health();
        match &answer {
            Err(error) if !is_answer(error) => {
                let now = Instant::now();
                health.failing_since.get_or_insert(now);
                health.failed = Some(now);
            }
            Ok(_) | Err(_) => health.failing_since = None,
        }
        drop(health);
        answer
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
        let error = match self.of_first(asked, ANSWER_TIME, first).await {
            Err(error) if error.kind != ErrorKind::Invalid => error,
            answer => return answer,
        };
        match second.await {
            Ok(answer) => {
                self.tell(key, &error);
                Ok(answer)
            }
            // Whoever must know whether it is proven asks whether a store was left out.
            Err(absent) if absent.is_not_found() && self.is_left_out(&error) => {
                self.leave_out(&error);
                Err(absent)
            }
            Err(second) => {
                tracing::debug!("{}", in_words(&second));
                Err(error)
            }
        }
    }

    /// Whether the first store does not answer, and is not going to soon.
    fn is_left_out(&self, error: &Error) -> bool {
        !is_answer(error) && (!error.is_retryable() || self.is_down())
    }

    /// Notes that an answer is given that the first store has no part in.
    fn leave_out(&self, error: &Error) {
        let mut health = self.health();
        health.was_left_out = true;
        let is_news = health.is_news(Told::FirstIsDown);
        drop(health);
        if is_news {
            let second = self.second.url();
            tracing::warn!(
                "{}; only what {second} has is seen, which may lack the newest",
                in_words(error)
            );
        }
    }

    /// Says where an object comes from, each reason once.
    fn tell(&self, key: &ObjectKey, error: &Error) {
        let (first, second) = (self.first.url(), self.second.url());
        let is_lack = error.is_not_found();
        let told = if is_lack {
            Told::FirstLacks
        } else {
            Told::FirstIsDown
        };
        if !self.health().is_news(told) {
            tracing::debug!("{key} is read from {second}");
        } else if is_lack {
            tracing::warn!(
                "{first} lacks {key}, which is read from {second}; -v tells what else it lacks"
            );
        } else {
            tracing::warn!("{}; it is read from {second}", in_words(error));
        }
    }

    /// A page of the first store; `None` where it is left out of the listing.
    async fn page_of_first(&self, request: &ListRequest) -> Result<Option<ListPage>> {
        let listed = self.first.list(request);
        let asked = (Operation::List, request.prefix.as_str());
        match self.of_first(asked, PAGE_TIME, listed).await {
            Ok(page) => Ok(Some(page)),
            Err(error) if !self.is_left_out(&error) => Err(error),
            Err(error) => {
                self.leave_out(&error);
                Ok(None)
            }
        }
    }

    /// The same of the second store.
    async fn page_of_second(&self, request: &ListRequest) -> Result<ListPage> {
        let page = timeout(PAGE_TIME, self.second.list(request)).await;
        let url = || format!("{}/{}", self.second.url(), request.prefix);
        page.unwrap_or_else(|_| Err(Error::new(Operation::List, url(), ErrorKind::TimedOut)))
    }
}

/// Whether the store did answer.
fn is_answer(error: &Error) -> bool {
    matches!(
        error.kind,
        ErrorKind::NotFound | ErrorKind::AlreadyExists | ErrorKind::Invalid
    )
}

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
        self.first.url()
    }

    fn right(&self, right: Right) -> &'static str {
        self.first.right(right)
    }

    fn limits(&self) -> Limits {
        let (first, second) = (self.first.limits(), self.second.limits());
        Limits {
            listings: first.listings.min(second.listings),
            ..first
        }
    }

    fn left_out(&self) -> Option<&str> {
        let was_left_out = self.health().was_left_out;
        was_left_out.then(|| self.first.url())
    }

    async fn put(
        &self,
        key: &ObjectKey,
        body: Bytes,
        mode: PutMode,
        token: &PutToken,
    ) -> Result<()> {
        let first = self.first.put(key, body.clone(), mode, token);
        let first = self.of_first((Operation::Put, key.as_str()), ANSWER_TIME, first);
        match join(first, self.second.put(key, body, mode, token)).await {
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
        self.first.start_upload(key, mode, token).await
    }

    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        at: PartAt,
        body: Bytes,
    ) -> Result<PartReceipt> {
        self.first.put_part(key, upload, at, body).await
    }

    async fn complete_upload(
        &self,
        key: &ObjectKey,
        upload: &UploadId,
        parts: &[PartReceipt],
        mode: PutMode,
    ) -> Result<()> {
        self.first.complete_upload(key, upload, parts, mode).await
    }

    async fn abort_upload(&self, key: &ObjectKey, upload: &UploadId) -> Result<()> {
        self.first.abort_upload(key, upload).await
    }

    async fn get(&self, key: &ObjectKey, offset: u64, length: Option<u64>) -> Result<Download> {
        let (first, second) = (
            self.first.get(key, offset, length),
            self.second.get(key, offset, length),
        );
        let download = self.of_either(Operation::Get, key, first, second).await?;
        Ok(of_any_store(download))
    }

    async fn head(&self, key: &ObjectKey) -> Result<ObjectInfo> {
        let (first, second) = (self.first.head(key), self.second.head(key));
        self.of_either(Operation::Head, key, first, second).await
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage> {
        let known = request.page.as_ref().and_then(PageToken::read::<Cursors>);
        let mut cursors = known.map_or_else(Cursors::default, |known| Cursors::clone(&known));
        let of_first = async {
            let wanted = cursors.first.wants_a_page();
            let request = wanted.then(|| cursors.first.request(request))?;
            Some(self.page_of_first(&request).await)
        };
        let of_second = async {
            let wanted = cursors.second.wants_a_page();
            let request = wanted.then(|| cursors.second.request(request))?;
            Some(self.page_of_second(&request).await)
        };
        let (of_first, of_second) = join(of_first, of_second).await;
        match of_first.transpose()? {
            Some(Some(page)) => cursors.first.take(page),
            Some(None) => cursors.first.next = Next::LeftOut,
            None => {}
        }
        match of_second {
            Some(Ok(page)) => cursors.second.take(page),
            Some(Err(error)) if matches!(cursors.first.next, Next::LeftOut) => return Err(error),
            Some(Err(error)) => {
                cursors.second.next = Next::LeftOut;
                if self.health().is_news(Told::SecondIsDown) {
                    let first = self.first.url();
                    tracing::warn!("{}; only what {first} has is seen", in_words(&error));
                }
            }
            None => {}
        }
        Ok(cursors.page())
    }

    async fn delete(&self, keys: &[ObjectKey]) -> Result<Vec<(ObjectKey, Error)>> {
        let first = self.first.delete(keys);
        let first = self.of_first((Operation::Delete, ""), PAGE_TIME, first);
        match join(first, self.second.delete(keys)).await {
            (Err(_), Ok(refused)) => Ok(refused),
            (first, _) => first,
        }
    }

    async fn retained(&self, key: &ObjectKey) -> Result<Retained> {
        self.first.retained(key).await
    }

    async fn settle(&self, key: &ObjectKey) -> Result<()> {
        self.first.settle(key).await
    }
}
