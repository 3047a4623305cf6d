//! A listing, page by page: nothing of it is in memory but one page.

use super::{MAX_LISTED_KEYS, Store};
use crate::{ErrorKind, ListPage, ListRequest, Result};

/// Stores may give pages without keys where others were deleted, but not for ever.
const MAX_EMPTY_PAGES: u32 = 10_000;

/// The pages of a listing, from the first to the last. Keys ascend from page to page and on each of them, except on a
/// SeaweedFS (4.48), which sorts folders among files by their names without the slash.
///
/// It tells of every object that was there before the first page was asked for, and is there after the last one. A page that
/// failed is asked for again, as every request is.
#[derive(Debug)]
pub struct Listing {
    store: Store,
    request: ListRequest,
    is_over: bool,
    /// How many in a row.
    empty_pages: u32,
    /// Keys and folders until now.
    shown: usize,
}

impl Listing {
    pub(super) fn of_objects(store: Store, prefix: &str, start_after: Option<&str>) -> Self {
        let request = ListRequest {
            prefix: prefix.to_owned(),
            start_after: start_after.map(str::to_owned),
            ..ListRequest::default()
        };
        Self::new(store, request)
    }

    pub(super) fn of_folders(store: Store, prefix: &str) -> Self {
        let request = ListRequest {
            prefix: prefix.to_owned(),
            fold: true,
            ..ListRequest::default()
        };
        Self::new(store, request)
    }

    /// The same listing, of which the first keys are all that is wanted.
    #[must_use]
    pub fn of_first(mut self, most_keys: u16) -> Self {
        self.request.most_keys = Some(most_keys);
        self
    }

    /// Goes on after `key`, which is greater than all that was shown, unless the listing is over. That costs nothing only where
    /// the store's listings can begin anywhere.
    pub fn skip_to(&mut self, key: String) {
        self.request.start_after = Some(key);
        self.request.page = None;
        self.request.most_keys = None;
    }

    fn new(store: Store, request: ListRequest) -> Self {
        Self {
            store,
            request,
            is_over: false,
            empty_pages: 0,
            shown: 0,
        }
    }

    /// The next page, which may be empty; `None` after the last one.
    ///
    /// # Errors
    /// The store's, after which the same page can be asked for again; [`ErrorKind::Other`] when the store does not come to an
    /// end, and [`ErrorKind::Invalid`] after [`MAX_LISTED_KEYS`] keys.
    pub async fn next_page(&mut self) -> Result<Option<ListPage>> {
        if self.is_over {
            return Ok(None);
        }
        let mut page = self.store.page(&self.request).await?;
        self.shown += page.objects.len() + page.folders.len();
        if self.shown > MAX_LISTED_KEYS {
            let too_many = self.store.list_error(ErrorKind::Invalid);
            return Err(too_many.with_source(TooManyKeys));
        }
        let Some(next) = page.next.take() else {
            self.is_over = true;
            return Ok(Some(page));
        };
        let is_empty = page.objects.is_empty() && page.folders.is_empty();
        self.empty_pages = if is_empty { self.empty_pages + 1 } else { 0 };
        if Some(&next) == self.request.page.as_ref() || self.empty_pages > MAX_EMPTY_PAGES {
            let endless = self.store.list_error(ErrorKind::Other);
            return Err(endless.with_source(EndlessListing));
        }
        self.request.page = Some(next);
        Ok(Some(page))
    }
}

/// More keys than any archive has: a store that shows them again and again, perhaps.
#[derive(Debug, thiserror::Error)]
#[error("more than {MAX_LISTED_KEYS} keys; list a longer prefix")]
struct TooManyKeys;

/// A store answered with the same page twice, or with page after page of nothing.
#[derive(Debug, thiserror::Error)]
#[error("the store does not come to the end of the listing: the next page is this one")]
struct EndlessListing;
