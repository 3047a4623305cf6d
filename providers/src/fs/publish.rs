//! How a file appears: complete, durable, and over nothing that exists.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, RenameFlags, mkdirat, openat, renameat_with};

use super::grouped::GroupedSyncs;
use crate::PutMode;

const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;
const TEMP_SUFFIX: &str = ".tmp";

/// How often a write begins anew because a delete removed its empty directory just then.
const PRUNE_RACES: u32 = 16;

/// The directories below (and including) the root.
#[derive(Clone, Debug)]
pub(super) struct Directories {
    root: PathBuf,
    syncs: GroupedSyncs,
}

/// When an object survives a crash of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Durability {
    /// From the moment when it has its name.
    Full,
    /// Some seconds later, when the system has written it to the disk.
    Later,
}

/// A file that no listing shows; removed when dropped, unless it was published.
#[derive(Debug)]
pub(super) struct TempFile {
    path: PathBuf,
    file: File,
    remove_on_drop: bool,
}

impl Directories {
    pub(super) fn new(root: PathBuf) -> Self {
        let syncs = GroupedSyncs::default();
        Self { root, syncs }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Makes the names in the directory of `path` durable, together with other writers.
    fn sync_parent(&self, path: &Path) -> io::Result<()> {
        let directory = path.parent();
        directory.map_or(Ok(()), |directory| {
            self.syncs.sync(directory, sync_directory)
        })
    }

    /// A new temporary file in `directory`, which is created where it is missing.
    pub(super) fn temp_file(&self, directory: &Path) -> io::Result<TempFile> {
        for _ in 0..PRUNE_RACES {
            match TempFile::create(directory) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => self.create(directory)?,
                created => return created,
            }
        }
        TempFile::create(directory)
    }

    /// Creates the empty file `target`, whose name is durable.
    pub(super) fn create_file(&self, target: &Path) -> io::Result<File> {
        let (Some(directory), Some(name)) = (target.parent(), target.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let create = || {
            let folder = open_directory(directory)?;
            let file = File::from(openat(&folder, name, flags, Mode::from(FILE_MODE))?);
            hand_over(&file, &folder, FILE_MODE)?;
            file.sync_all()?;
            folder.sync_all()?;
            Ok(file)
        };
        for _ in 0..PRUNE_RACES {
            match create() {
                Err(error) if io::Error::kind(&error) == io::ErrorKind::NotFound => {
                    self.create(directory)?;
                }
                created => return created,
            }
        }
        create()
    }

    /// Creates `directory` and what is missing of its parents, down from the root, each made
    /// durable before the next.
    ///
    /// A directory that is found has been made durable by whoever created it, or is so with the
    /// object's own directory fsync: ext4, XFS and Btrfs write new ancestors with it.
    fn create(&self, directory: &Path) -> io::Result<()> {
        match make_directory(directory) {
            Ok(()) => directory.parent().map_or(Ok(()), sync_directory),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound && directory != self.root => {
                self.create(directory.parent().unwrap_or(&self.root))?;
                self.create_below_existing(directory)
            }
            Err(error) => Err(error),
        }
    }

    /// Leaves a directory that was pruned meanwhile to the caller's next round.
    fn create_below_existing(&self, directory: &Path) -> io::Result<()> {
        match make_directory(directory) {
            Ok(()) => sync_directory(directory.parent().unwrap_or(&self.root)),
            Err(error) if is_race(error.kind()) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Makes deletes in `directory` durable and removes it and its parents as far as they are empty.
    pub(super) fn prune(&self, directory: &Path) -> io::Result<()> {
        let mut directory = directory;
        while directory != self.root && fs::remove_dir(directory).is_ok() {
            directory = directory.parent().unwrap_or(&self.root);
        }
        match sync_directory(directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// Whether a file's name is one that [`TempFile`] gives.
pub(super) fn is_temporary(name: &str) -> bool {
    let number = name
        .strip_prefix('.')
        .and_then(|name| name.strip_suffix(TEMP_SUFFIX));
    number.is_some_and(|number| {
        number.len() == 32 && number.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

impl TempFile {
    fn create(directory: &Path) -> io::Result<Self> {
        let name = format!(".{:032x}{TEMP_SUFFIX}", fastrand::u128(..));
        let folder = open_directory(directory)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = File::from(openat(&folder, &*name, flags, Mode::from(FILE_MODE))?);
        let temp = Self {
            path: directory.join(name),
            file,
            remove_on_drop: true,
        };
        hand_over(&temp.file, &folder, FILE_MODE)?;
        Ok(temp)
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// The file's name, which no other file ever has.
    pub(super) fn name(&self) -> String {
        let name = self.path.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// Removes the file, if it is still there.
    pub(super) fn remove(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Makes the file durable, if it is to be, and gives it the name `target`.
    pub(super) fn publish(
        mut self,
        target: &Path,
        mode: PutMode,
        durability: Durability,
        directories: &Directories,
    ) -> io::Result<()> {
        if durability == Durability::Full {
            self.file.sync_all()?;
        }
        match mode {
            PutMode::Create => self.create_name(target)?,
            PutMode::Overwrite => fs::rename(&self.path, target)?,
        }
        self.remove_on_drop = false;
        match durability {
            Durability::Full => directories.sync_parent(target),
            Durability::Later => Ok(()),
        }
    }

    fn create_name(&self, target: &Path) -> io::Result<()> {
        match fs::hard_link(&self.path, target) {
            Ok(()) => self.drop_name(),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.name_taken(target, error)
            }
            Err(error) if refuses_links(&error) => self.rename_to_new(target),
            Err(error) => Err(error),
        }
    }

    fn rename_to_new(&self, target: &Path) -> io::Result<()> {
        match renameat_with(CWD, &self.path, CWD, target, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::EXIST) => {
                self.name_taken(target, io::ErrorKind::AlreadyExists.into())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// What a taken name means: an NFS client repeats a link whose answer was lost, and meets its own.
    fn name_taken(&self, target: &Path, error: io::Error) -> io::Result<()> {
        let taken = fs::metadata(target)?;
        let own = self.file.metadata()?;
        if (taken.dev(), taken.ino()) == (own.dev(), own.ino()) {
            return self.drop_name();
        }
        if taken.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        // Whoever is told "it exists" may take the object for stored; its writer may have died
        // between the link and the directory's fsync.
        sync_parent(target)?;
        Err(error)
    }

    fn drop_name(&self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if self.remove_on_drop
            && let Err(error) = self.remove()
        {
            tracing::debug!(path = %self.path.display(), %error, "could not remove a temporary file");
        }
    }
}

/// Creates a directory that belongs to whom its parent belongs, for all that root may be who creates it.
fn make_directory(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::AlreadyExists.into());
    };
    let parent = open_directory(parent)?;
    mkdirat(&parent, name, Mode::from(DIRECTORY_MODE))?;
    // Whoever may write in the parent may have put something else there meanwhile.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = match openat(&parent, name, flags, Mode::empty()) {
        Ok(made) => File::from(made),
        // Pruned by a delete just then.
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    hand_over(&made, &parent, DIRECTORY_MODE)?;
    made.sync_all()
}

fn open_directory(path: &Path) -> io::Result<File> {
    let flags = OFlags::DIRECTORY.bits().cast_signed();
    File::options().read(true).custom_flags(flags).open(path)
}

/// Gives what root just created to the owner of the directory that it is in, and back to its owner what a umask took.
///
/// The owner of that very directory, wherever a link on the way may have led: who can put a link into the store gains
/// nothing that is not in a directory of their own.
fn hand_over(made: &File, folder: &File, rights: u32) -> io::Result<()> {
    let (own, above) = (made.metadata()?, folder.metadata()?);
    if own.mode() & rights != rights {
        made.set_permissions(Permissions::from_mode(rights))?;
    }
    if own.uid() == 0 && above.uid() != 0 {
        fchown(made, Some(above.uid()), Some(above.gid()))?;
    }
    Ok(())
}

fn is_race(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound)
}

/// vfat, exFAT and some FUSE and CIFS mounts have no hard links; EMLINK does not occur on a new file elsewhere.
fn refuses_links(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported | io::ErrorKind::TooManyLinks
    ) || error.raw_os_error() == Some(rustix::io::Errno::OPNOTSUPP.raw_os_error())
}

/// Makes the names in the file's directory durable.
pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), sync_directory)
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}
