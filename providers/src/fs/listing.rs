//! Listings in byte order of the keys, reading only the directories that the prefix needs.
//!
//! A directory sorts as its name with `/`, so that walking entries in order gives keys in order:
//! `a-b` < `a/` < `a0`.

use std::collections::BinaryHeap;
use std::fs::{self, DirEntry, Metadata};
use std::io;
use std::ops::Bound;
use std::path::Path;

use jiff::Timestamp;

use crate::{ListPage, ListRequest, ObjectInfo, ObjectKey};

/// One page of at most `page_keys` objects and folders; empty where the prefix leads nowhere.
///
/// Memory: `page_keys` names for each directory on the way down, whatever the directories hold.
pub(super) fn page(root: &Path, request: &ListRequest, page_keys: usize) -> io::Result<ListPage> {
    let (base, stem) = match request.prefix.rfind('/') {
        Some(slash) => request.prefix.split_at(slash + 1),
        None => ("", request.prefix.as_str()),
    };
    let mut walk = Walk {
        fold: request.fold,
        lower: lower_bound(request),
        page_keys,
        page: ListPage::default(),
    };
    // A base that no key can have must not become a path (`../`).
    if base.is_empty()
        || ObjectKey::new(base.trim_end_matches('/'))
            .is_ok_and(|key| key.as_str().len() + 1 == base.len())
    {
        walk.directory(&root.join(base), base, stem)?;
    }
    Ok(walk.page)
}

pub(super) fn object_info(key: ObjectKey, metadata: &Metadata) -> io::Result<ObjectInfo> {
    let modified = Timestamp::try_from(metadata.modified()?).map_err(io::Error::other)?;
    Ok(ObjectInfo {
        key,
        size_bytes: metadata.len(),
        modified,
        token: None,
    })
}

struct Walk {
    fold: bool,
    lower: Bound<String>,
    page_keys: usize,
    page: ListPage,
}

/// Whether the walk goes on.
#[derive(PartialEq, Eq)]
enum Step {
    Continue,
    PageFull,
}

impl Walk {
    /// Adds what `path` holds: the keys that begin with `base` and then `stem`.
    fn directory(&mut self, path: &Path, base: &str, stem: &str) -> io::Result<Step> {
        let (items, cut) = self.smallest_items(path, base, stem)?;
        let mut last = None;
        for item in items {
            if self.emitted() >= self.page_keys {
                self.page.next = last;
                return Ok(Step::PageFull);
            }
            let child = path.join(item.get(base.len()..).unwrap_or_default());
            if self.item(&child, &item)? == Step::PageFull {
                return Ok(Step::PageFull);
            }
            last = Some(item);
        }
        if cut {
            self.page.next = last;
            return Ok(Step::PageFull);
        }
        Ok(Step::Continue)
    }

    fn item(&mut self, path: &Path, item: &str) -> io::Result<Step> {
        if !item.ends_with('/') {
            self.object(path, item)?;
        } else if !self.fold {
            return self.directory(path, item, "");
        } else if self.holds_object(path, item)? {
            self.page.folders.push(item.to_owned());
        }
        Ok(Step::Continue)
    }

    fn object(&mut self, path: &Path, key: &str) -> io::Result<()> {
        let metadata = match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            metadata => metadata?,
        };
        if let (true, Ok(key)) = (metadata.is_file(), ObjectKey::new(key)) {
            self.page.objects.push(object_info(key, &metadata)?);
        }
        Ok(())
    }

    /// The first items of a directory in order, and whether there are more.
    fn smallest_items(
        &self,
        path: &Path,
        base: &str,
        stem: &str,
    ) -> io::Result<(Vec<String>, bool)> {
        let mut smallest = BinaryHeap::new();
        let mut cut = false;
        for entry in entries(path)? {
            let Some(item) = item_of(&entry?, base, stem)? else {
                continue;
            };
            if !self.may_follow(&item) {
                continue;
            }
            smallest.push(item);
            if smallest.len() > self.page_keys + 1 {
                smallest.pop();
                cut = true;
            }
        }
        Ok((smallest.into_sorted_vec(), cut))
    }

    /// Whether the key, or a key in the folder, lies past the lower bound.
    fn may_follow(&self, item: &str) -> bool {
        let folder_end = item.strip_suffix('/').map(after_folder);
        match (&self.lower, folder_end) {
            (Bound::Unbounded, _) => true,
            (Bound::Included(lower) | Bound::Excluded(lower), Some(end)) => *lower < end,
            (Bound::Included(lower), None) => item >= lower.as_str(),
            (Bound::Excluded(lower), None) => item > lower.as_str(),
        }
    }

    /// Whether any key lies below the folder: directories whose objects are gone or not yet complete are no folders.
    fn holds_object(&self, path: &Path, base: &str) -> io::Result<bool> {
        let entries = match entries(path) {
            // Not ours to read, such as `lost+found`; shown, as hiding it would claim to know.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(true),
            entries => entries?,
        };
        for entry in entries {
            let Some(item) = item_of(&entry?, base, "")? else {
                continue;
            };
            if !self.may_follow(&item) {
                continue;
            }
            let child = path.join(item.get(base.len()..).unwrap_or_default());
            if !item.ends_with('/') || self.holds_object(&child, &item)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn emitted(&self) -> usize {
        self.page.objects.len() + self.page.folders.len()
    }
}

/// The end of the keys below a folder: `0` is the byte after `/`.
fn after_folder(folder: &str) -> String {
    format!("{folder}0")
}

fn lower_bound(request: &ListRequest) -> Bound<String> {
    match (&request.page, &request.start_after) {
        (Some(item), _) => match item.strip_suffix('/') {
            Some(folder) => Bound::Included(after_folder(folder)),
            None => Bound::Excluded(item.clone()),
        },
        (None, Some(key)) => Bound::Excluded(key.clone()),
        (None, None) => Bound::Unbounded,
    }
}

/// The entries of a directory; none where it is not there (any more).
fn entries(path: &Path) -> io::Result<impl Iterator<Item = io::Result<DirEntry>>> {
    match fs::read_dir(path) {
        Err(error) if super::is_absence(&error) => Ok(None.into_iter().flatten()),
        entries => Ok(Some(entries?).into_iter().flatten()),
    }
}

/// The entry as a key, or with a trailing `/` as a folder; `None` where no key can look like it.
fn item_of(entry: &DirEntry, base: &str, stem: &str) -> io::Result<Option<String>> {
    let name = entry.file_name();
    let Some(name) = name
        .to_str()
        .filter(|name| !name.starts_with('.') && name.starts_with(stem))
    else {
        return Ok(None);
    };
    let kind = entry.file_type()?;
    let is_directory = kind.is_dir() || kind.is_symlink() && entry.path().is_dir();
    Ok(Some(format!(
        "{base}{name}{}",
        if is_directory { "/" } else { "" }
    )))
}
