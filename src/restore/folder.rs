//! Writing below a directory without following any link.
//!
//! ```text
//! path that the user named ─▶ handle, opened once ─▶ each part of a path below: openat, O_NOFOLLOW ─▶ file or directory
//! ```
//!
//! What is below belongs to PostgreSQL's user, who may replace any name by a link while root restores. The handle stays
//! with the directory that was opened; a link below it is an error, and what is created is given to its owner by its own
//! handle, before anything is in it.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, FlockOperation, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;
use walhalla_postgres::control;

use super::Error;
use crate::durability::Durability;

/// Permissions of directories until something says otherwise.
const PRIVATE: u32 = 0o700;
/// Permissions of files until they are whole.
const UNFINISHED: u32 = 0o600;
/// Names that are tried for a temporary file.
const MOST_TRIES: u32 = 100;
/// What the names of temporary files end in.
const TEMPORARY: &str = ".walhalla.tmp";
/// Links that are followed in a path.
const MOST_LINKS: u32 = 40;
/// Longest file that is read whole: settings, a control file, a proof.
const MOST_READ_BYTES: u64 = 16 << 20;

/// Whom what is created is given to when root restores: PostgreSQL does not run as root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) user: u32,
    pub(super) group: u32,
}

/// A directory, by its handle, and whose what is created in it becomes.
#[derive(Debug)]
pub(super) struct Folder {
    handle: OwnedFd,
    path: PathBuf,
    owner: Option<Owner>,
    durability: Durability,
}

/// What a name in a directory stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A socket, a pipe, a device.
    Other,
}

/// What is done with directories of a path that are not there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    /// Created; durable once the directory around it is.
    Create,
    /// Created, durably.
    CreateDurably,
    /// An error.
    Fail,
}

/// The first Linux whose `syncfs` tells errors of writing (syncfs(2)).
const TELLING_LINUX: (u32, u32) = (5, 8);

/// File systems that write all that they hold when they are told to, and say what they could not write: others pass neither on
/// (overlayfs, most of FUSE, SMB). Their numbers are in linux/magic.h; that of tmpfs, which writes nothing, is among them.
const TELLING_FILE_SYSTEMS: [u64; 5] = [
    0xEF53,      // ext4
    0x5846_5342, // XFS
    0x9123_683E, // Btrfs
    0xF2F5_2010, // F2FS
    0x0102_1994, // tmpfs
];

/// Whether this Linux tells of files that a whole file system could not write.
fn is_telling_linux() -> bool {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let mut numbers = release.split(['.', '-', '+']).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= TELLING_LINUX,
        _ => false,
    }
}

impl Folder {
    /// The directory at `path`, which the user named: links in it are followed, once.
    ///
    /// # Errors
    /// [`Error::ForeignLink`] when root would follow a link that leads its owner to where only somebody else may go.
    pub(super) fn open(path: &Path, owner: Option<Owner>) -> Result<Self, Error> {
        let opened = if rustix::process::geteuid().is_root() {
            open_as_root(path)
        } else {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, Mode::empty()).map(Some)
        };
        let opened = opened.map_err(|errno| Error::local("open", path)(errno.into()))?;
        Ok(Self {
            handle: opened.ok_or_else(|| Error::ForeignLink(path.to_owned()))?,
            path: path.to_owned(),
            owner,
            durability: Durability::Durable,
        })
    }

    /// The same directory. What is written and synced in it from here on is as durable as this says; directories that are made
    /// by [`Folder::make_inside`] are durable all the same.
    pub(super) fn with(self, durability: Durability) -> Self {
        Self { durability, ..self }
    }

    /// Whether what is written in it is durable.
    pub(super) fn durability(&self) -> Durability {
        self.durability
    }

    /// The same directory; it stays locked until both are dropped.
    pub(super) fn again(&self) -> Result<Self, Error> {
        let handle = rustix::io::fcntl_dupfd_cloexec(&self.handle, 0);
        Ok(Self {
            handle: handle.map_err(|errno| self.failed("open", Path::new(""), errno))?,
            path: self.path.clone(),
            owner: self.owner,
            durability: self.durability,
        })
    }

    /// The directory at `path`; what is missing of it is created, durably, and given to `owner`.
    pub(super) fn make(path: &Path, owner: Option<Owner>) -> Result<Self, Error> {
        let existing = existing(path);
        let above = Self::open(&existing, owner)?;
        let below = path.strip_prefix(&existing).unwrap_or(Path::new(""));
        let handle = above.walk(below, Missing::CreateDurably)?;
        Ok(Self {
            handle,
            path: path.to_owned(),
            owner,
            durability: Durability::Durable,
        })
    }

    /// The directory `name` in this one, which is created if it is not there.
    pub(super) fn make_inside(&self, name: &Path) -> Result<Self, Error> {
        Ok(Self {
            handle: self.walk(name, Missing::CreateDurably)?,
            path: self.path.join(name),
            owner: self.owner,
            durability: self.durability,
        })
    }

    /// The directory `name` in this one, if it is there.
    pub(super) fn inside(&self, name: &Path) -> Result<Option<Self>, Error> {
        if self.kind(name)? != Some(Kind::Directory) {
            return Ok(None);
        }
        Ok(Some(Self {
            handle: self.walk(name, Missing::Fail)?,
            path: self.path.join(name),
            owner: self.owner,
            durability: self.durability,
        }))
    }

    /// Its path, for messages.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whose what is created becomes; nobody's but the process's where none is named.
    pub(super) fn owner(&self) -> Option<Owner> {
        self.owner
    }

    /// Keeps every other restore out of this directory, for as long as this is not dropped: a process that ends, however it
    /// does, leaves no lock.
    ///
    /// # Errors
    /// [`Error::Restoring`] while another restore has it.
    pub(super) fn lock(&self) -> Result<(), Error> {
        match rustix::fs::flock(&self.handle, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(()),
            Err(Errno::WOULDBLOCK) => Err(Error::Restoring(self.path.clone())),
            Err(errno) => {
                // NFS locks only what is open for writing, which no directory can be.
                tracing::warn!(
                    "the file system of {} cannot lock a directory ({}): see to it that no other restore runs there",
                    self.path.display(),
                    io::Error::from(errno)
                );
                Ok(())
            }
        }
    }

    /// Facts of the directory itself.
    pub(super) fn stat(&self) -> Result<Stat, Error> {
        rustix::fs::fstat(&self.handle).map_err(|errno| self.failed("look at", "".as_ref(), errno))
    }

    /// What `path` is, without following a link; `None` where nothing is.
    pub(super) fn kind(&self, path: &Path) -> Result<Option<Kind>, Error> {
        Ok(self.stat_of(path)?.map(|stat| kind_of(&stat)))
    }

    /// Permission bits of what is at `path`, if anything is.
    pub(super) fn mode(&self, path: &Path) -> Result<Option<u32>, Error> {
        Ok(self.stat_of(path)?.map(|stat| stat.st_mode & 0o7777))
    }

    /// A path by which this very directory is reached, wherever its name leads by now.
    pub(super) fn own_path(&self) -> PathBuf {
        let by_handle = format!("/proc/self/fd/{}", self.handle.as_raw_fd());
        match std::fs::metadata(&by_handle) {
            // For who is not root, a path that somebody changes leads nowhere that they could not write themselves.
            Ok(_) if self.owner.is_some() => by_handle.into(),
            _ => self.path.clone(),
        }
    }

    /// Gives the directory itself to this user and group, and closes it to all others.
    pub(super) fn take_for(&self, owner: Owner) -> Result<(), Error> {
        let failed = |errno| self.failed("change the owner of", Path::new(""), errno);
        let (user, group) = owner.ids();
        rustix::fs::fchmod(&self.handle, Mode::from_raw_mode(PRIVATE)).map_err(failed)?;
        rustix::fs::fchown(&self.handle, user, group).map_err(failed)
    }

    /// Gives a file that was created here to this user and group.
    pub(super) fn give_file_to(&self, path: &Path, owner: Owner) -> Result<(), Error> {
        let Some(file) = self.open_file(path)? else {
            return Ok(());
        };
        let (user, group) = owner.ids();
        rustix::fs::fchown(&file, user, group)
            .map_err(|errno| self.failed("change the owner of", path, errno))
    }

    fn stat_of(&self, path: &Path) -> Result<Option<Stat>, Error> {
        let Some((above, name)) = self.above(path, Missing::Fail)? else {
            return Ok(None);
        };
        match rustix::fs::statat(&above, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(None),
            found => found
                .map(Some)
                .map_err(|errno| self.failed("look at", path, errno)),
        }
    }

    /// Names in the directory at `path`, which may be empty for this one.
    pub(super) fn names(&self, path: &Path) -> Result<Vec<OsString>, Error> {
        let failed = |errno| self.failed("read", path, errno);
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.walk(path, Missing::Fail)?).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Makes the directory at `path` and those above it; their modes are for later.
    pub(super) fn make_directory(&self, path: &Path) -> Result<(), Error> {
        self.walk(path, Missing::Create).map(drop)
    }

    /// Sets the mode of a directory.
    pub(super) fn set_directory_mode(&self, path: &Path, mode: u32) -> Result<(), Error> {
        let handle = self.walk(path, Missing::Fail)?;
        rustix::fs::fchmod(&handle, Mode::from_raw_mode(mode))
            .map_err(|errno| self.failed("set the mode of", path, errno))
    }

    /// Creates the file at `path`, which must not be there, with this mode whatever the umask.
    pub(super) fn create(&self, path: &Path, mode: u32) -> Result<File, Error> {
        let (above, name) = self.must_be_below(path, Missing::Create)?;
        self.create_in(&above, name, path, mode)
    }

    fn create_in(
        &self,
        above: &OwnedFd,
        name: &OsStr,
        path: &Path,
        mode: u32,
    ) -> Result<File, Error> {
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle = rustix::fs::openat(above, name, flags, Mode::from_raw_mode(UNFINISHED))
            .map_err(|errno| self.failed("create", path, errno))?;
        self.give(&handle, path)?;
        rustix::fs::fchmod(&handle, Mode::from_raw_mode(mode))
            .map_err(|errno| self.failed("set the mode of", path, errno))?;
        Ok(handle.into())
    }

    /// Opens the file at `path` to be changed in place, or creates it. A file that has other names too, or another owner than
    /// what is created, is replaced by one of the same content or none: what else knows it stays what it is.
    pub(super) fn open_or_create(&self, path: &Path, mode: u32) -> Result<File, Error> {
        let (above, name) = self.must_be_below(path, Missing::Create)?;
        let found = match rustix::fs::statat(&above, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return self.create_in(&above, name, path, mode),
            found => found.map_err(|errno| self.failed("look at", path, errno))?,
        };
        if kind_of(&found) != Kind::File
            || self.owner.is_some_and(|owner| found.st_uid != owner.user)
        {
            rustix::fs::unlinkat(&above, name, AtFlags::empty())
                .map_err(|errno| self.failed("remove", path, errno))?;
            return self.create_in(&above, name, path, mode);
        }
        if found.st_mode & UNFINISHED != UNFINISHED && self.owner.is_none() {
            // Not root, so that whatever this changes is the process's own.
            rustix::fs::chmodat(
                &above,
                name,
                Mode::from_raw_mode(UNFINISHED),
                AtFlags::empty(),
            )
            .map_err(|errno| self.failed("set the mode of", path, errno))?;
        }
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&above, name, flags, Mode::empty());
        let opened = opened.map_err(|errno| self.failed("open", path, errno))?;
        let stat = rustix::fs::fstat(&opened);
        let stat = stat.map_err(|errno| self.failed("look at", path, errno))?;
        if (stat.st_dev, stat.st_ino) != (found.st_dev, found.st_ino) {
            return Err(self.failed("open", path, Errno::STALE));
        }
        let opened = File::from(opened);
        if stat.st_nlink > 1 {
            return self.copy_of(opened, path, mode);
        }
        rustix::fs::fchmod(&opened, Mode::from_raw_mode(mode))
            .map_err(|errno| self.failed("set the mode of", path, errno))?;
        Ok(opened)
    }

    /// Puts a file with this content in the place of `path`.
    fn copy_of(&self, mut content: File, path: &Path, mode: u32) -> Result<File, Error> {
        let full = self.path.join(path);
        let (mut copy, temporary) = self.create_temporary(path, mode)?;
        io::copy(&mut content, &mut copy).map_err(Error::local("copy", &full))?;
        self.rename(&temporary, path)?;
        Ok(copy)
    }

    /// Creates a file beside `path` under a name that no other process has.
    fn create_temporary(&self, path: &Path, mode: u32) -> Result<(File, PathBuf), Error> {
        let name = path.file_name().unwrap_or_default();
        for _ in 0..MOST_TRIES {
            let mut unique = name.to_owned();
            unique.push(format!(".{:08x}{TEMPORARY}", fastrand::u32(..)));
            let temporary = path.with_file_name(unique);
            match self.create(&temporary, mode) {
                Err(Error::Local { source, .. })
                    if source.kind() == io::ErrorKind::AlreadyExists => {}
                created => return created.map(|file| (file, temporary)),
            }
        }
        Err(self.failed("create a temporary file for", path, Errno::EXIST))
    }

    /// Puts a file with this content at `path`: it appears whole, or not at all. It is durable if the folder is.
    pub(super) fn write(&self, path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
        self.write_with(path, mode, |file| file.write_all(content))
    }

    /// The same with what `write` writes.
    pub(super) fn write_with(
        &self,
        path: &Path,
        mode: u32,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), Error> {
        let full = self.path.join(path);
        let (file, temporary) = self.create_temporary(path, mode)?;
        let mut buffered = BufWriter::new(&file);
        let written = write(&mut buffered).and_then(|()| buffered.flush());
        let written = written.and_then(|()| self.durability.sync(&file));
        written.map_err(Error::local("write", &full))?;
        self.rename(&temporary, path)?;
        self.sync(path.parent().unwrap_or(Path::new("")))
    }

    /// The file at `path`, opened for reading; `None` where there is no such file.
    pub(super) fn open_file(&self, path: &Path) -> Result<Option<File>, Error> {
        let Some((above, name)) = self.above(path, Missing::Fail)? else {
            return Ok(None);
        };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match rustix::fs::openat(&above, name, flags, Mode::empty()) {
            Err(Errno::NOENT) => Ok(None),
            opened => opened
                .map(|handle| Some(File::from(handle)))
                .map_err(|errno| self.failed("open", path, errno)),
        }
    }

    /// What the file at `path` holds; `None` where there is no such file.
    pub(super) fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, Error> {
        let Some(file) = self.open_file(path)? else {
            return Ok(None);
        };
        let mut content = Vec::new();
        let read = file.take(MOST_READ_BYTES).read_to_end(&mut content);
        read.map_err(Error::local("read", self.path.join(path)))?;
        Ok(Some(content))
    }

    /// Where the link at `path` leads, if it is one.
    pub(super) fn read_link(&self, path: &Path) -> Result<Option<PathBuf>, Error> {
        let Some((above, name)) = self.above(path, Missing::Fail)? else {
            return Ok(None);
        };
        let target = rustix::fs::readlinkat(&above, name, Vec::new()).ok();
        Ok(target.map(|target| PathBuf::from(OsStr::from_bytes(target.as_bytes()))))
    }

    /// Makes a link to `target` at `path`; it is durable if the folder is.
    pub(super) fn link(&self, target: &Path, path: &Path) -> Result<(), Error> {
        let (above, name) = self.must_be_below(path, Missing::Create)?;
        rustix::fs::symlinkat(target, &above, name)
            .map_err(|errno| self.failed("create the link", path, errno))?;
        if let Some(owner) = self.owner {
            let (user, group) = owner.ids();
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::chownat(&above, name, user, group, flags)
                .map_err(|errno| self.failed("change the owner of", path, errno))?;
        }
        self.sync_directory(above, path)
    }

    /// Renames what is here.
    pub(super) fn rename(&self, from: &Path, to: &Path) -> Result<(), Error> {
        self.rename_to(from, self, to)
    }

    /// Moves what is here into another directory of the same file system.
    pub(super) fn rename_to(&self, from: &Path, other: &Self, to: &Path) -> Result<(), Error> {
        let (above, name) = self.must_be_below(from, Missing::Fail)?;
        let (to_above, to_name) = other.must_be_below(to, Missing::Fail)?;
        rustix::fs::renameat(&above, name, &to_above, to_name)
            .map_err(|errno| self.failed("rename", from, errno))
    }

    /// Removes a file or a link; that nothing is there is no error.
    pub(super) fn remove(&self, path: &Path) -> Result<(), Error> {
        self.unlink(path, AtFlags::empty())
    }

    /// Removes an empty directory.
    pub(super) fn remove_directory(&self, path: &Path) -> Result<(), Error> {
        self.unlink(path, AtFlags::REMOVEDIR)
    }

    fn unlink(&self, path: &Path, flags: AtFlags) -> Result<(), Error> {
        let Some((above, name)) = self.above(path, Missing::Fail)? else {
            return Ok(());
        };
        match rustix::fs::unlinkat(&above, name, flags) {
            Err(Errno::NOENT) => Ok(()),
            removed => removed.map_err(|errno| self.failed("remove", path, errno)),
        }
    }

    /// Makes the entries of a directory durable, if the folder is.
    pub(super) fn sync(&self, path: &Path) -> Result<(), Error> {
        self.sync_directory(self.walk(path, Missing::Fail)?, path)
    }

    fn sync_directory(&self, handle: OwnedFd, path: &Path) -> Result<(), Error> {
        let synced = self.durability.sync(&handle.into());
        synced.map_err(Error::local("fsync", self.path.join(path)))
    }

    /// Makes a file durable, if the folder is.
    pub(super) fn sync_file(&self, path: &Path) -> Result<(), Error> {
        let synced = match self.open_file(path)? {
            Some(file) => self.durability.sync(&file),
            None => Err(io::ErrorKind::NotFound.into()),
        };
        synced.map_err(Error::local("fsync", self.path.join(path)))
    }

    /// Whether [`Folder::sync_file_system`] fails where a file could not be written.
    pub(super) fn can_sync_file_system(&self) -> Result<bool, Error> {
        let system = rustix::fs::fstatfs(&self.handle)
            .map_err(|errno| self.failed("look at the file system of", "".as_ref(), errno))?;
        let kind = u64::try_from(system.f_type).unwrap_or_default();
        Ok(is_telling_linux() && TELLING_FILE_SYSTEMS.contains(&kind))
    }

    /// Makes everything on the directory's file system durable that was written since the directory was opened.
    pub(super) fn sync_file_system(&self) -> Result<(), Error> {
        rustix::fs::syncfs(&self.handle)
            .map_err(|errno| self.failed("sync the file system of", "".as_ref(), errno))
    }

    /// The user to whom what is here must belong.
    fn user(&self) -> u32 {
        let own = || rustix::process::geteuid().as_raw();
        self.owner.map_or_else(own, |owner| owner.user)
    }

    /// Refuses a directory with a mount inside: what is there is another file system's, or another directory's. And one with
    /// a directory in it that only somebody else can change, or another cluster.
    ///
    /// # Errors
    /// [`Error::MountInside`], [`Error::NestedCluster`] and [`Error::OtherOwner`].
    pub(super) fn must_be_of_one_piece(&self) -> Result<(), Error> {
        let device = self.stat()?.st_dev;
        self.is_of_one_piece(Path::new(""), device)
    }

    fn is_of_one_piece(&self, path: &Path, device: u64) -> Result<(), Error> {
        let handle = self.walk(path, Missing::Fail)?;
        for name in self.names(path)? {
            let full = path.join(&name);
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            let stat = rustix::fs::statat(&handle, &name, flags)
                .map_err(|errno| self.failed("look at", &full, errno))?;
            // A directory that is mounted a second time has the device of what is around it.
            let is_mount = stat.st_dev != device || is_mount_root(&handle, &name);
            if is_mount {
                return Err(Error::MountInside(self.path.join(full)));
            }
            if full.ends_with(control::PATH) && full != Path::new(control::PATH) {
                let nested = full.ancestors().nth(2).unwrap_or(path);
                return Err(Error::NestedCluster(self.path.join(nested)));
            }
            if kind_of(&stat) == Kind::Directory {
                if self.owner.is_none() && stat.st_uid != self.user() {
                    return Err(Error::OtherOwner {
                        path: self.path.join(full),
                        user: stat.st_uid,
                        wanted: self.user(),
                    });
                }
                self.is_of_one_piece(&full, device)?;
            }
        }
        Ok(())
    }

    /// The directory that `path` lies in, and its last part; `None` where that directory is not there.
    fn above<'p>(
        &self,
        path: &'p Path,
        missing: Missing,
    ) -> Result<Option<(OwnedFd, &'p OsStr)>, Error> {
        let Some(name) = path.file_name() else {
            return Err(self.failed("go to", path, Errno::INVAL));
        };
        match self.walk(path.parent().unwrap_or(Path::new("")), missing) {
            Ok(above) => Ok(Some((above, name))),
            Err(Error::Local { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn must_be_below<'p>(
        &self,
        path: &'p Path,
        missing: Missing,
    ) -> Result<(OwnedFd, &'p OsStr), Error> {
        self.above(path, missing)?
            .ok_or_else(|| self.failed("open", path, Errno::NOENT))
    }

    /// The directory at `path`: no part of it may be a link, or lead up.
    fn walk(&self, path: &Path, missing: Missing) -> Result<OwnedFd, Error> {
        let failed = |doing, errno| self.failed(doing, path, errno);
        let mut at = rustix::io::fcntl_dupfd_cloexec(&self.handle, 0)
            .map_err(|errno| failed("open", errno))?;
        for part in path.components() {
            let Component::Normal(name) = part else {
                return Err(failed("go to", Errno::INVAL));
            };
            at = match open_directory(&at, name) {
                Err(Errno::NOENT) if missing != Missing::Fail => {
                    let created = self.create_directory(&at, name, path)?;
                    if missing == Missing::CreateDurably {
                        sync_handle(&at, &self.path.join(path))?;
                    }
                    created
                }
                Err(Errno::ACCESS) if missing != Missing::Fail && self.owner.is_none() => {
                    // Its owner may not read it; not root, so that whatever this changes is the process's own.
                    let mode = Mode::from_raw_mode(PRIVATE);
                    rustix::fs::chmodat(&at, name, mode, AtFlags::empty())
                        .and_then(|()| open_directory(&at, name))
                        .map_err(|errno| failed("open", errno))?
                }
                opened => opened.map_err(|errno| failed("open", errno))?,
            };
            if missing == Missing::Create {
                self.make_writable(&at, path)?;
            }
        }
        Ok(at)
    }

    fn create_directory(
        &self,
        above: &OwnedFd,
        name: &OsStr,
        path: &Path,
    ) -> Result<OwnedFd, Error> {
        match rustix::fs::mkdirat(above, name, Mode::from_raw_mode(PRIVATE)) {
            // Another thread was faster.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(self.failed("create the directory", path, errno)),
        }
        let created = open_directory(above, name);
        let created = created.map_err(|errno| self.failed("open", path, errno))?;
        self.give(&created, path)?;
        Ok(created)
    }

    /// Takes a directory that an earlier restore left half made, or whose mode forbids its owner to write, as one to write in.
    fn make_writable(&self, handle: &OwnedFd, path: &Path) -> Result<(), Error> {
        let stat = rustix::fs::fstat(handle);
        let stat = stat.map_err(|errno| self.failed("look at", path, errno))?;
        let is_own = stat.st_uid == rustix::process::geteuid().as_raw();
        if is_own && self.owner.is_some_and(|owner| owner.user != stat.st_uid) {
            self.give(handle, path)?;
        }
        if is_own && stat.st_mode & PRIVATE != PRIVATE {
            let mode = Mode::from_raw_mode(stat.st_mode & 0o7777 | PRIVATE);
            rustix::fs::fchmod(handle, mode)
                .map_err(|errno| self.failed("set the mode of", path, errno))?;
        }
        Ok(())
    }

    /// Gives what was created to its owner.
    fn give(&self, handle: impl AsFd, path: &Path) -> Result<(), Error> {
        let Some(owner) = self.owner else {
            return Ok(());
        };
        let (user, group) = owner.ids();
        rustix::fs::fchown(handle, user, group)
            .map_err(|errno| self.failed("change the owner of", path, errno))
    }

    fn failed(&self, doing: &'static str, path: &Path, errno: Errno) -> Error {
        Error::local(doing, self.path.join(path))(errno.into())
    }
}

impl Owner {
    fn ids(self) -> (Option<Uid>, Option<Gid>) {
        (
            Some(Uid::from_raw(self.user)),
            Some(Gid::from_raw(self.group)),
        )
    }
}

/// The nearest directory of `path` that is there, links followed.
pub(super) fn existing(path: &Path) -> PathBuf {
    let above = path.ancestors().find(|above| above.exists());
    match above {
        Some(above) if !above.as_os_str().is_empty() => above.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Whether a name is a temporary file's, of this program.
pub(super) fn is_temporary(name: &OsStr) -> bool {
    name.as_bytes().ends_with(TEMPORARY.as_bytes())
}

/// The directory at `path`, reached part by part. `None` when a link on the way is neither root's nor of the user whose
/// directory it leads to: somebody could lead root to where they may not go themselves.
fn open_as_root(path: &Path) -> Result<Option<OwnedFd>, Errno> {
    let (mut at, mut links, mut link_owners) = (open_directory(CWD, ".".as_ref())?, 0, Vec::new());
    let mut parts: VecDeque<OsString> = parts_of(path);
    while let Some(part) = parts.pop_front() {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = rustix::fs::openat(&at, &part, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&found)?;
        if kind_of(&stat) != Kind::Link {
            at = open_directory(&at, &part)?;
            if rustix::fs::fstat(&at)?.st_ino != stat.st_ino {
                return Err(Errno::STALE);
            }
            continue;
        }
        links += 1;
        if links > MOST_LINKS {
            return Err(Errno::LOOP);
        }
        link_owners.push(stat.st_uid);
        let target = rustix::fs::readlinkat(&found, "", Vec::new())?;
        for part in parts_of(Path::new(OsStr::from_bytes(target.as_bytes())))
            .into_iter()
            .rev()
        {
            parts.push_front(part);
        }
    }
    let user = rustix::fs::fstat(&at)?.st_uid;
    let is_trusted = link_owners.iter().all(|owner| [0, user].contains(owner));
    Ok(is_trusted.then_some(at))
}

/// The parts of a path, of which the root is one.
fn parts_of(path: &Path) -> VecDeque<OsString> {
    path.components()
        .map(|part| part.as_os_str().to_owned())
        .collect()
}

fn open_directory(above: impl AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(above, name, flags, Mode::empty())
}

fn sync_handle(handle: &OwnedFd, path: &Path) -> Result<(), Error> {
    rustix::fs::fsync(handle).map_err(|errno| Error::local("fsync", path)(errno.into()))
}

fn kind_of(stat: &Stat) -> Kind {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Link,
        _ => Kind::Other,
    }
}

/// Whether something is mounted at this name, as far as the system tells.
#[cfg(target_os = "linux")]
fn is_mount_root(above: &OwnedFd, name: &OsStr) -> bool {
    use rustix::fs::{StatxAttributes, StatxFlags, statx};
    let facts = statx(above, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty());
    facts.is_ok_and(|facts| facts.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

#[cfg(not(target_os = "linux"))]
fn is_mount_root(_: &OwnedFd, _: &OsStr) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use super::*;

    fn folder() -> (tempfile::TempDir, Folder) {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path(), None).unwrap();
        (dir, folder)
    }

    #[test]
    fn no_link_below_is_followed() {
        let (dir, folder) = folder();
        let victim = tempfile::tempdir().unwrap();
        std::fs::write(victim.path().join("key"), "secret").unwrap();
        symlink(victim.path(), dir.path().join("base")).unwrap();
        symlink(victim.path().join("key"), dir.path().join("file")).unwrap();
        for path in ["base/new", "base/key", "base/deeper/new"] {
            let path = Path::new(path);
            folder.create(path, 0o600).unwrap_err();
            folder.open_or_create(path, 0o600).unwrap_err();
            folder.write(path, b"x", 0o600).unwrap_err();
            folder.set_directory_mode(path, 0o777).unwrap_err();
        }
        folder.make_directory("base/new".as_ref()).unwrap_err();
        folder.remove("base/key".as_ref()).unwrap_err();
        folder.read("base/key".as_ref()).unwrap_err();
        folder.read("file".as_ref()).unwrap_err();
        folder.create("file".as_ref(), 0o600).unwrap_err();
        // A link in the place of a file gives way to a file.
        folder
            .open_or_create("file".as_ref(), 0o600)
            .unwrap()
            .write_all(b"own")
            .unwrap();
        assert_eq!(std::fs::read(dir.path().join("file")).unwrap(), b"own");
        assert_eq!(std::fs::read(victim.path().join("key")).unwrap(), b"secret");
        assert_eq!(victim.path().read_dir().unwrap().count(), 1);
    }

    #[test]
    fn no_path_leads_up_or_elsewhere() {
        let (_dir, folder) = folder();
        for path in ["../x", "a/../../x", "/tmp/x", "..", "a/..", ""] {
            folder.create(path.as_ref(), 0o600).unwrap_err();
        }
    }

    #[test]
    fn the_directory_stays_the_one_that_was_opened() {
        let above = tempfile::tempdir().unwrap();
        let (here, away) = (above.path().join("here"), above.path().join("away"));
        let folder = Folder::make(&here, None).unwrap();
        std::fs::rename(&here, &away).unwrap();
        let victim = tempfile::tempdir().unwrap();
        symlink(victim.path(), &here).unwrap();
        folder.make_directory("a".as_ref()).unwrap();
        folder.write("a/b".as_ref(), b"x", 0o600).unwrap();
        assert_eq!(std::fs::read(away.join("a/b")).unwrap(), b"x");
        assert_eq!(victim.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn what_has_another_name_or_is_no_file_is_replaced() {
        let (dir, folder) = folder();
        let (own, other) = (dir.path().join("own"), dir.path().join("other"));
        std::fs::write(&own, "content").unwrap();
        std::fs::hard_link(&own, &other).unwrap();
        let mut file = folder.open_or_create("own".as_ref(), 0o640).unwrap();
        file.write_all(b"CON").unwrap();
        assert_eq!(std::fs::read(&other).unwrap(), b"content");
        assert_ne!(
            own.metadata().unwrap().ino(),
            other.metadata().unwrap().ino()
        );
        assert_eq!(own.metadata().unwrap().permissions().mode() & 0o777, 0o640);
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        folder.open_or_create("pipe".as_ref(), 0o600).unwrap();
        assert!(pipe.metadata().unwrap().is_file());
    }

    /// In procfs nothing can be synced, so that whatever asks for it fails.
    #[cfg(target_os = "linux")]
    #[test]
    fn an_unsynced_folder_asks_for_no_sync() {
        let path = Path::new("/proc/self");
        let durable = Folder::open(path, None).unwrap();
        durable.sync("".as_ref()).unwrap_err();
        durable.sync_file("status".as_ref()).unwrap_err();
        let unsynced = durable.with(Durability::Unsynced);
        for folder in [unsynced.again().unwrap(), unsynced] {
            folder.sync("".as_ref()).unwrap();
            folder.sync_file("status".as_ref()).unwrap();
        }
    }

    #[test]
    fn a_lock_ends_with_who_holds_it() {
        let (dir, folder) = folder();
        folder.lock().unwrap();
        let again = folder.again().unwrap();
        let other = Folder::open(dir.path(), None).unwrap();
        assert!(matches!(other.lock().unwrap_err(), Error::Restoring(_)));
        drop(folder);
        assert!(matches!(other.lock().unwrap_err(), Error::Restoring(_)));
        drop(again);
        other.lock().unwrap();
    }
}
