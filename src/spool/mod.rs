//! The spool: a directory on the host in which Walhalla keeps what one call of the server leaves for a later one.
//!
//! Losing it loses no data. What stands in it is believed only where it proves to be what it says, and only in a directory
//! that nobody else can write to.

pub mod receipts;

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open, openat};
use sha2::{Digest, Sha256};

/// Rights of the spool's directories: their owner's only.
const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
/// Rights to write that nobody but the owner may have.
const OTHERS_MAY_WRITE: u32 = 0o022;

/// A directory of the host for `pgdata`, an absolute path: beside it, or in `spool_dir` under a name that is not another
/// data directory's. `suffix` says what it is for.
pub fn place(pgdata: &Path, spool_dir: Option<&Path>, suffix: &str) -> PathBuf {
    let name = pgdata.file_name().unwrap_or_default().to_string_lossy();
    let Some(spool_dir) = spool_dir else {
        return pgdata.with_file_name(format!("{name}.{suffix}"));
    };
    let digest = hex::encode(Sha256::digest(pgdata.as_os_str().as_bytes()));
    spool_dir.join(format!("{name}-{digest:.12}.{suffix}"))
}

/// The spool of one data directory. It is made when something is first kept in it.
#[derive(Clone, Debug)]
pub struct Spool {
    folder: PathBuf,
}

impl Spool {
    /// The spool of `pgdata`: beside it, or in the directory of the setting `spool_dir`.
    ///
    /// # Errors
    /// The data directory or `spool_dir` cannot be looked at.
    pub fn of(pgdata: &Path, spool_dir: Option<&Path>) -> io::Result<Self> {
        let pgdata = fs::canonicalize(pgdata)?;
        let spool_dir = spool_dir.map(fs::canonicalize).transpose()?;
        let folder = place(&pgdata, spool_dir.as_deref(), "walhalla-spool");
        Ok(Self { folder })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// Removes the parts of these names with their files, and the spool itself where nothing else is in it.
    ///
    /// # Errors
    /// The system's.
    pub fn clear(&self, parts: &[&str]) -> io::Result<()> {
        for name in parts {
            let Some(part) = self.part(name)? else {
                continue;
            };
            for file in part.names()? {
                part.remove(&file)?;
            }
            remove_if_empty(&part.path)?;
        }
        remove_if_empty(&self.folder)
    }

    /// Removes the part, and the spool itself, where nothing is in them. What another process puts there meanwhile stays.
    ///
    /// # Errors
    /// The system's.
    pub fn remove_if_empty(&self, name: &str) -> io::Result<()> {
        remove_if_empty(&self.folder.join(name))?;
        remove_if_empty(&self.folder)
    }

    /// Opens the part `name` of the spool; `None` where there is none.
    ///
    /// # Errors
    /// [`io::ErrorKind::PermissionDenied`] where another user owns it or could write to it.
    pub fn part(&self, name: &str) -> io::Result<Option<Part>> {
        let found = open_own(&self.folder);
        let opened = found.and_then(|_| open_own(&self.folder.join(name)));
        match opened {
            Ok(directory) => Ok(Some(Part {
                path: self.folder.join(name),
                directory,
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The same, and makes it where there is none.
    ///
    /// # Errors
    /// As [`Spool::part`].
    pub fn make_part(&self, name: &str) -> io::Result<Part> {
        make_directory(&self.folder)?;
        open_own(&self.folder)?;
        let path = self.folder.join(name);
        make_directory(&path)?;
        let directory = open_own(&path)?;
        Ok(Part { path, directory })
    }
}

/// Opens a directory that must be this user's and nobody else's to write to.
fn open_own(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = File::from(open(path, flags, Mode::empty())?);
    let found = directory.metadata()?;
    let is_own = found.uid() == rustix::process::geteuid().as_raw();
    if is_own && found.mode() & OTHERS_MAY_WRITE == 0 {
        return Ok(directory);
    }
    let problem = format!(
        "{} belongs to another user, or others may write to it",
        path.display()
    );
    Err(io::Error::new(io::ErrorKind::PermissionDenied, problem))
}

fn remove_if_empty(directory: &Path) -> io::Result<()> {
    use io::ErrorKind::{DirectoryNotEmpty, NotFound};
    match fs::remove_dir(directory) {
        Err(error) if !matches!(error.kind(), DirectoryNotEmpty | NotFound) => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn make_directory(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(DIRECTORY_MODE).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// A directory in the spool, and the files in it. It is reached through its descriptor, whatever its path leads to later.
#[derive(Debug)]
pub struct Part {
    path: PathBuf,
    directory: File,
}

/// That this process alone works on a part. The system takes it back when the process ends.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "open as long as the lock is to be held")] File);

impl Part {
    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Locks it for this process, until the returned lock is dropped; `None` while another one has it.
    ///
    /// # Errors
    /// The system's.
    pub fn lock(&self) -> io::Result<Option<Lock>> {
        // A lock belongs to an opening: this one's own, not that of `self`.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = File::from(openat(&self.directory, ".", flags, Mode::empty())?);
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Lock(directory))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The file `name`, at most `limit_bytes` of it; `None` where there is none.
    ///
    /// # Errors
    /// The system's. A link is not followed.
    pub fn read(&self, name: &str, limit_bytes: u64) -> io::Result<Option<Vec<u8>>> {
        let read = self.read_with_time(name, limit_bytes)?;
        Ok(read.map(|(bytes, _)| bytes))
    }

    /// The same, and when the file was written.
    ///
    /// # Errors
    /// As [`Part::read`].
    pub fn read_with_time(
        &self,
        name: &str,
        limit_bytes: u64,
    ) -> io::Result<Option<(Vec<u8>, SystemTime)>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match openat(&self.directory, name, flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            opened => File::from(opened?),
        };
        let modified = file.metadata()?.modified()?;
        let mut bytes = Vec::new();
        file.take(limit_bytes).read_to_end(&mut bytes)?;
        Ok(Some((bytes, modified)))
    }

    /// Puts `bytes` under `name`, over what is there. After a crash of the machine the file may be missing or damaged.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.put(name, bytes, |_| Ok(()))
    }

    /// The same. After `Ok` the file survives a crash of the machine.
    ///
    /// # Errors
    /// The system's.
    pub fn write_durably(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.put(name, bytes, File::sync_all)?;
        self.directory.sync_all()?;
        // The part and the spool may be as new as the file.
        let folders = self.path.ancestors().skip(1).take(2);
        { folders }.try_for_each(|folder| File::open(folder)?.sync_all())
    }

    fn put(
        &self,
        name: &str,
        bytes: &[u8],
        sync: impl FnOnce(&File) -> io::Result<()>,
    ) -> io::Result<()> {
        let temporary = format!(".{:032x}.tmp", fastrand::u128(..));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::from(FILE_MODE);
        let mut file = File::from(openat(&self.directory, &*temporary, flags, mode)?);
        let written = file.write_all(bytes).and_then(|()| sync(&file));
        let written = written.and_then(|()| {
            let renamed = rustix::fs::renameat(&self.directory, &*temporary, &self.directory, name);
            Ok(renamed?)
        });
        if written.is_err() {
            // The error that led here is the one to report.
            drop(self.remove(&temporary));
        }
        written
    }

    /// Removes the file `name`, if it is there.
    ///
    /// # Errors
    /// The system's.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.directory, name, rustix::fs::AtFlags::empty()) {
            Err(rustix::io::Errno::NOENT) | Ok(()) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The names of its files, in no order.
    ///
    /// # Errors
    /// The system's.
    pub fn names(&self) -> io::Result<Vec<String>> {
        let entries = rustix::fs::Dir::read_from(&self.directory)?;
        let mut names = Vec::new();
        for entry in entries {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn spool(dir: &Path) -> Spool {
        fs::create_dir(dir.join("data")).unwrap();
        Spool::of(&dir.join("data"), None).unwrap()
    }

    #[test]
    fn a_part_keeps_files_beside_the_data_directory() {
        let dir = tempfile::tempdir().unwrap();
        let spool = spool(dir.path());
        assert!(spool.part("pushed").unwrap().is_none());
        let part = spool.make_part("pushed").unwrap();
        part.write("a", b"one").unwrap();
        part.write_durably("a", b"two").unwrap();
        let found = spool.part("pushed").unwrap().unwrap();
        assert_eq!(found.read("a", 100).unwrap().unwrap(), b"two");
        assert_eq!(found.read("a", 1).unwrap().unwrap(), b"t");
        assert_eq!(found.names().unwrap(), ["a"]);
        found.remove("a").unwrap();
        found.remove("a").unwrap();
        assert_eq!(found.read("a", 100).unwrap(), None);
        let path = fs::canonicalize(dir.path()).unwrap();
        assert_eq!(spool.path(), path.join("data.walhalla-spool"));
        let mode = fs::metadata(spool.path()).unwrap().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn one_process_has_the_lock_and_clearing_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let spool = spool(dir.path());
        let part = spool.make_part("wal").unwrap();
        let lock = part.lock().unwrap();
        assert!(lock.is_some());
        assert!(part.lock().unwrap().is_none());
        drop(lock);
        assert!(part.lock().unwrap().is_some());
        part.write("a", b"a").unwrap();
        let other = spool.make_part("pushed").unwrap();
        other.write("b", b"b").unwrap();
        spool.clear(&["wal", "nothing"]).unwrap();
        assert!(!part.path().exists() && other.path().join("b").exists());
        spool.clear(&["pushed"]).unwrap();
        assert!(!spool.path().exists());
    }

    #[test]
    fn two_names_of_a_data_directory_have_one_spool_and_two_directories_have_two() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/data")).unwrap();
        fs::create_dir_all(dir.path().join("b/data")).unwrap();
        fs::create_dir(dir.path().join("spool")).unwrap();
        symlink(dir.path().join("a/data"), dir.path().join("link")).unwrap();
        let of = |name: &str| {
            let spool_dir = dir.path().join("spool");
            let spool = Spool::of(&dir.path().join(name), Some(&spool_dir));
            spool.unwrap().path().to_owned()
        };
        assert_eq!(of("a/data"), of("link"));
        assert_ne!(of("a/data"), of("b/data"));
    }

    #[test]
    fn what_others_may_write_to_is_not_believed_and_no_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let spool = spool(dir.path());
        let part = spool.make_part("pushed").unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        symlink(dir.path().join("secret"), part.path().join("a")).unwrap();
        assert!(part.read("a", 100).is_err());
        fs::set_permissions(part.path(), fs::Permissions::from_mode(0o770)).unwrap();
        let refused = spool.part("pushed").unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        fs::set_permissions(part.path(), fs::Permissions::from_mode(0o700)).unwrap();
        fs::rename(spool.path(), dir.path().join("elsewhere")).unwrap();
        symlink(dir.path().join("elsewhere"), spool.path()).unwrap();
        assert!(spool.part("pushed").is_err());
        assert!(spool.make_part("pushed").is_err());
    }
}
