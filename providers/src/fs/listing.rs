//! Listings in byte order of the keys, reading only the directories that the prefix needs.
//!
//! A directory sorts as its name with `/`, so that walking entries in order gives keys in order:
//! `a-b` < `a/` < `a0`.

use std::fs::{self, DirEntry, File, Metadata};
use std::io;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use rustix::fs::{AtFlags, FileType, Stat, statat};
use rustix::io::Errno;

use super::names::Names;
use super::publish;
use crate::{ListPage, ListRequest, ObjectInfo, ObjectKey, PageToken, UnfinishedUpload, UploadId};

/// One page of at most `page_keys` objects and folders; empty where the prefix leads nowhere.
///
/// The token of the next page holds the names of each directory on the way down, so that a listing reads a directory once
/// and shows what was in it then. Memory: those names, and `page_keys` objects.
pub(super) fn page(root: &Path, request: &ListRequest, page_keys: usize) -> io::Result<ListPage> {
    let (base, stem) = match request.prefix.rfind('/') {
        Some(slash) => request.prefix.split_at(slash + 1),
        None => ("", request.prefix.as_str()),
    };
    let mut walk = Walk {
        fold: request.fold,
        lower: lower_bound(request),
        page_keys,
        read: request.page.as_ref().and_then(PageToken::read),
        way: Vec::new(),
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

/// The temporary files in the directories that begin with `prefix`, which is empty or ends in `/`.
pub(super) fn temporary(root: &Path, prefix: &str) -> io::Result<Vec<UnfinishedUpload>> {
    let mut found = Vec::new();
    let mut directories = vec![prefix.to_owned()];
    while let Some(base) = directories.pop() {
        let entries = match fs::read_dir(root.join(&base)) {
            Err(error) if super::is_absence(&error) => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
                continue;
            };
            // A link is not followed.
            if entry.file_type()?.is_dir() {
                directories.push(format!("{base}{name}/"));
            } else if publish::is_temporary(&name) {
                found.extend(unfinished(&entry, format!("{base}{name}"))?);
            }
        }
    }
    Ok(found)
}

/// A temporary file; `None` of one that has just gone.
fn unfinished(entry: &DirEntry, key: String) -> io::Result<Option<UnfinishedUpload>> {
    let metadata = match entry.metadata() {
        Err(error) if super::is_absence(&error) => return Ok(None),
        metadata => metadata?,
    };
    let modified = Timestamp::try_from(metadata.modified()?).map_err(io::Error::other)?;
    Ok(Some(UnfinishedUpload {
        id: UploadId(key.clone()),
        key,
        modified,
    }))
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
    /// What the pages before have read.
    read: Option<Arc<Way>>,
    way: Way,
    page: ListPage,
}

/// The directories from the prefix down to where the walk is.
type Way = Vec<Arc<Names>>;

/// Whether the walk goes on.
#[derive(PartialEq, Eq)]
enum Step {
    Continue,
    PageFull,
}

impl Walk {
    /// Adds what `path` holds: the keys that begin with `base` and then `stem`.
    fn directory(&mut self, path: &Path, base: &str, stem: &str) -> io::Result<Step> {
        let names = self.names(path, base, stem)?;
        let folder = match File::open(path) {
            Err(error) if super::is_absence(&error) => return Ok(Step::Continue),
            folder => folder?,
        };
        self.way.push(Arc::clone(&names));
        let mut last = None;
        for name in names
            .iter()
            .skip(names.position(|name| !self.may_follow(base, name)))
        {
            if self.emitted() >= self.page_keys {
                self.page.next = last.map(|name: &str| self.token(format!("{base}{name}")));
                return Ok(Step::PageFull);
            }
            if self.item(path, &folder, base, name)? == Step::PageFull {
                return Ok(Step::PageFull);
            }
            last = Some(name);
        }
        self.way.pop();
        Ok(Step::Continue)
    }

    fn item(&mut self, path: &Path, folder: &File, base: &str, name: &str) -> io::Result<Step> {
        let item = || format!("{base}{name}");
        if !name.ends_with('/') {
            self.object(folder, name, item())?;
        } else if !self.fold {
            return self.directory(&path.join(name), &item(), "");
        } else if self.holds_object(&path.join(name), &item())? {
            self.page.folders.push(item());
        }
        Ok(Step::Continue)
    }

    fn object(&mut self, folder: &File, name: &str, key: String) -> io::Result<()> {
        let stat = match statat(folder, name, AtFlags::empty()) {
            Err(Errno::NOENT) => return Ok(()),
            stat => stat?,
        };
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        if let (true, Ok(key)) = (is_file, ObjectKey::new(key)) {
            self.page.objects.push(listed(key, &stat)?);
        }
        Ok(())
    }

    /// The names in a directory, as this page or one before has read them.
    fn names(&self, path: &Path, base: &str, stem: &str) -> io::Result<Arc<Names>> {
        let read = self.read.as_ref().and_then(|read| read.get(self.way.len()));
        if let Some(names) = read.filter(|names| names.base() == base) {
            return Ok(Arc::clone(names));
        }
        let mut names = Names::new(base);
        for entry in entries(path)? {
            if let Some(name) = name_of(&entry?, stem)?
                && self.may_follow(base, &name)
            {
                names.add(&name)?;
            }
        }
        Ok(Arc::new(names.sorted()))
    }

    fn token(&self, last: String) -> PageToken {
        PageToken::with_read(last, Arc::new(self.way.clone()))
    }

    /// Whether the key, or a key in the folder, lies past the lower bound.
    fn may_follow(&self, base: &str, name: &str) -> bool {
        let (Bound::Included(lower) | Bound::Excluded(lower)) = &self.lower else {
            return true;
        };
        let Some(lower) = lower.strip_prefix(base) else {
            return base > lower.as_str();
        };
        match (&self.lower, name.strip_suffix('/').map(after_folder)) {
            (_, Some(end)) => lower < end.as_str(),
            (Bound::Excluded(_), None) => name > lower,
            (Bound::Included(_) | Bound::Unbounded, None) => name >= lower,
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
            let Some(name) = name_of(&entry?, "")? else {
                continue;
            };
            if !self.may_follow(base, &name) {
                continue;
            }
            if !name.ends_with('/')
                || self.holds_object(&path.join(&name), &format!("{base}{name}"))?
            {
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
    let page = request.page.as_ref().map(PageToken::as_str);
    match (page, &request.start_after) {
        (Some(item), _) => match item.strip_suffix('/') {
            Some(folder) => Bound::Included(after_folder(folder)),
            None => Bound::Excluded(item.to_owned()),
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

/// The entry's name, of a folder with a trailing `/`; `None` where no key can look like it.
fn name_of(entry: &DirEntry, stem: &str) -> io::Result<Option<String>> {
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
        "{name}{}",
        if is_directory { "/" } else { "" }
    )))
}

fn listed(key: ObjectKey, stat: &Stat) -> io::Result<ObjectInfo> {
    let nanoseconds = i32::try_from(stat.st_mtime_nsec).map_err(io::Error::other)?;
    Ok(ObjectInfo {
        key,
        size_bytes: u64::try_from(stat.st_size).map_err(io::Error::other)?,
        modified: Timestamp::new(stat.st_mtime, nanoseconds).map_err(io::Error::other)?,
        token: None,
    })
}
