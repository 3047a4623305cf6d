//! Folders that are there for as long as one process lives.
//!
//! ```text
//! walhalla-backup-5d0c…/     0700
//!   walhalla.lock            locked while the process that made the folder lives; removed last
//! ```
//!
//! A process that is killed leaves its folder. The next one of the same kind removes it: a folder with a name of that kind,
//! of the same user, which is empty or has a lock file that nobody holds. No name alone is a reason to remove what is in a
//! folder.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};

const LOCK: &str = "walhalla.lock";
/// Hexadecimal digits at the end of a name.
const DIGITS: usize = 16;
/// How many names are tried. One is lost only if another process takes the new folder for one that was left.
const MOST_ATTEMPTS: u32 = 10;

/// A folder of this process, removed with all that is in it when this is dropped.
#[derive(Debug)]
pub struct TemporaryFolder {
    path: PathBuf,
    /// Held as long as this lives.
    _lock: File,
}

impl TemporaryFolder {
    /// Makes a new folder of this kind in `within`, and removes those that processes which are gone left there.
    ///
    /// # Errors
    /// The system's, of the new folder. What cannot be removed is told only.
    pub fn make(within: &Path, kind: &str) -> io::Result<Self> {
        remove_left(within, kind);
        let mut attempt = 0;
        loop {
            attempt += 1;
            let path = within.join(format!("{kind}-{:016x}", fastrand::u64(..)));
            DirBuilder::new().mode(0o700).create(&path)?;
            match own(&path) {
                Ok(Some(lock)) => return Ok(Self { path, _lock: lock }),
                Ok(None) if attempt < MOST_ATTEMPTS => {}
                Ok(None) => return Err(ErrorKind::ResourceBusy.into()),
                Err(error) => {
                    // This error counts. A folder that stays is removed by the next process.
                    let _ = fs::remove_dir_all(&path);
                    return Err(error);
                }
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            tell(&self.path, &error);
        }
    }
}

/// Makes a new folder's lock file; `None` where another process has taken the folder for one that was left, before it was
/// locked.
fn own(path: &Path) -> io::Result<Option<File>> {
    let mut new = File::options();
    new.write(true).create_new(true).mode(0o600);
    let lock = match new.open(path.join(LOCK)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        lock => lock?,
    };
    let is_own = is_locked(&lock)? && lock.metadata()?.nlink() > 0;
    Ok(is_own.then_some(lock))
}

/// Locks a file, unless another process has locked it.
fn is_locked(file: &File) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        locked => locked.map(|()| true).map_err(io::Error::from),
    }
}

/// Removes the folders of this kind of processes that are gone.
fn remove_left(within: &Path, kind: &str) {
    let Ok(entries) = fs::read_dir(within) else {
        return;
    };
    for entry in entries.flatten() {
        if !is_of_kind(&entry.file_name(), kind) {
            continue;
        }
        let path = entry.path();
        match remove_if_left(&path) {
            Ok(true) => tracing::info!(
                "removed {}, which a process that was killed left",
                path.display()
            ),
            Ok(false) => {}
            // Another process was faster.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => tell(&path, &error),
        }
    }
}

fn is_of_kind(name: &OsStr, kind: &str) -> bool {
    let name = name.to_str().and_then(|name| name.strip_prefix(kind));
    let digits = name.and_then(|name| name.strip_prefix('-'));
    digits.is_some_and(|digits| {
        digits.len() == DIGITS && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

/// Removes a folder of this user's that nobody uses; returns whether it did.
fn remove_if_left(path: &Path) -> io::Result<bool> {
    let metadata = fs::symlink_metadata(path)?;
    if !metadata.is_dir() || metadata.uid() != rustix::process::geteuid().as_raw() {
        return Ok(false);
    }
    let mut lock = File::options();
    lock.write(true)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
    let lock = match lock.open(path.join(LOCK)) {
        Ok(lock) => lock,
        // It was left before it was locked, or after its lock was removed. Whatever is in it is nothing of this program's.
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return match fs::remove_dir(path) {
                Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => Ok(false),
                removed => removed.map(|()| true),
            };
        }
        Err(error) => return Err(error),
    };
    if !is_locked(&lock)? {
        return Ok(false);
    }
    remove(path).map(|()| true)
}

/// Removes a folder, its lock file last: what a process that is killed now leaves is found again.
fn remove(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_name() == LOCK {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    fs::remove_file(path.join(LOCK))?;
    fs::remove_dir(path)
}

fn tell(path: &Path, error: &io::Error) {
    tracing::warn!(
        "could not remove {}: {error}; remove it by hand, as it may hold WAL that is not encrypted",
        path.display()
    );
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const KIND: &str = "walhalla-backup";

    /// What a process that is killed leaves of a folder.
    fn left(within: &Path, number: u64) -> PathBuf {
        let path = within.join(format!("{KIND}-{number:016x}"));
        fs::create_dir_all(path.join("pg_wal")).unwrap();
        fs::write(path.join("pg_wal/00000002.history"), "1").unwrap();
        fs::write(path.join(LOCK), "").unwrap();
        path
    }

    fn count(within: &Path) -> usize {
        fs::read_dir(within).unwrap().count()
    }

    #[test]
    fn a_folder_is_private_and_goes_with_its_process() {
        let dir = tempfile::tempdir().unwrap();
        let folder = TemporaryFolder::make(dir.path(), KIND).unwrap();
        let mode = fs::metadata(folder.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o700);
        fs::write(folder.path().join("wal"), "x").unwrap();
        drop(folder);
        assert_eq!(count(dir.path()), 0);
    }

    #[test]
    fn what_a_killed_process_left_goes_and_what_a_living_one_uses_stays() {
        let dir = tempfile::tempdir().unwrap();
        let killed = left(dir.path(), 6);
        let before_it_was_locked = dir.path().join(format!("{KIND}-{:016x}", 7));
        fs::create_dir(&before_it_was_locked).unwrap();
        let first = TemporaryFolder::make(dir.path(), KIND).unwrap();
        assert!(!killed.exists());
        assert!(!before_it_was_locked.exists());
        let second = TemporaryFolder::make(dir.path(), KIND).unwrap();
        assert!(first.path().exists() && second.path().exists());
    }

    #[test]
    fn what_is_not_proven_to_be_of_this_program_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let no_lock = path(&format!("{KIND}-{:016x}", 1));
        let longer = path(&format!("{KIND}-{:017x}", 1));
        let elsewhere = path("elsewhere");
        fs::rename(left(dir.path(), 3), &elsewhere).unwrap();
        let link = path(&format!("{KIND}-{:016x}", 2));
        std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
        for folder in [&no_lock, &longer] {
            fs::create_dir(folder).unwrap();
            fs::write(folder.join("precious"), "x").unwrap();
        }
        fs::write(longer.join(LOCK), "").unwrap();
        drop(TemporaryFolder::make(dir.path(), KIND).unwrap());
        assert!(no_lock.join("precious").exists());
        assert!(longer.join("precious").exists());
        assert!(link.exists() && elsewhere.join("pg_wal").exists());
    }
}
