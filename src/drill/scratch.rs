//! The directory in which everything of a drill is.
//!
//! ```text
//! walhalla-drill-1f3a90c2/        0700, the server's; its socket is in it
//!   data/                         the restored data directory; its WAL is staged beside it
//!   tablespaces/16390/            the place of a tablespace
//!   postgresql.conf, pg_hba.conf, pg_ident.conf, server.log
//! ```

use std::fs::File;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Error;
use super::account::Account;

/// Longest path of a Unix socket (`sun_path` in sys/un.h, less the end).
const MOST_SOCKET_BYTES: usize = 107;
/// The name of the server's socket and its lock file (pqcomm.h, `UNIXSOCK_PATH`), with the slash.
const SOCKET: &str = "/.s.PGSQL.5432";
/// How often the removal is tried: the server's last processes may still write.
const MOST_ATTEMPTS: u32 = 10;

/// What becomes of the directory in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Afterwards {
    /// It is removed.
    Remove,
    /// It stays.
    Keep,
}

/// A drill's directory. It is removed with all that is in it when this is dropped, unless it is to be kept.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    afterwards: Afterwards,
}

impl Scratch {
    /// Makes a new directory in `within`, which must be there.
    ///
    /// # Errors
    /// [`Error::LongSocketPath`]; [`Error::Local`].
    pub fn make(within: &Path, account: &Account, afterwards: Afterwards) -> Result<Self, Error> {
        let within = { within.canonicalize() }.map_err(Error::local("find", within))?;
        let path = within.join(format!("walhalla-drill-{:08x}", fastrand::u32(..)));
        if path.as_os_str().as_bytes().len() + SOCKET.len() > MOST_SOCKET_BYTES {
            return Err(Error::LongSocketPath(path));
        }
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.map_err(Error::local("create", &path))?;
        let scratch = Self { path, afterwards };
        account.own(&scratch.path)?;
        let tablespaces = scratch.path.join("tablespaces");
        let made = std::fs::DirBuilder::new().mode(0o700).create(&tablespaces);
        made.map_err(Error::local("create", &tablespaces))?;
        account.own(&tablespaces)?;
        Ok(scratch)
    }

    /// The directory, in which the server's socket is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The restored data directory.
    pub fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    /// The place of a tablespace.
    pub fn tablespace(&self, oid: u32) -> PathBuf {
        self.path.join("tablespaces").join(oid.to_string())
    }

    /// Where a file of the drill is.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Makes a file that the server's user may write to. The directory is that user's, so that root follows no link there:
    /// a name that is taken is an error.
    pub(super) fn create(&self, name: &str, account: &Account) -> Result<(PathBuf, File), Error> {
        let path = self.file(name);
        let mut new = File::options();
        new.append(true).create_new(true).mode(0o600);
        let file = new.open(&path).map_err(Error::local("create", &path))?;
        account.own_file(&file, &path)?;
        Ok((path, file))
    }

    /// Writes a file that the server's user reads.
    pub(super) fn write(
        &self,
        name: &str,
        text: impl AsRef<[u8]>,
        account: &Account,
    ) -> Result<(), Error> {
        let (path, mut file) = self.create(name, account)?;
        let written = file.write_all(text.as_ref());
        written.map_err(Error::local("write", path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.afterwards == Afterwards::Keep {
            return;
        }
        let mut attempt = 0;
        while let Err(error) = std::fs::remove_dir_all(&self.path) {
            attempt += 1;
            if error.kind() == std::io::ErrorKind::NotFound {
                return;
            }
            if attempt == MOST_ATTEMPTS {
                let path = self.path.display();
                tracing::warn!("{path} could not be removed: {error}; remove it by hand");
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}
