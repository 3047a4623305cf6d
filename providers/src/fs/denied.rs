//! What to say when the system denies a file: whose it is, and who asked.

use std::fmt;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A file or directory that this process may not use.
#[derive(Debug, thiserror::Error)]
#[error("{} belongs to {owner} (mode {mode:04o}), and this command runs as {user}", path.display())]
pub(super) struct Denied {
    path: PathBuf,
    owner: User,
    mode: u32,
    user: User,
    #[source]
    source: io::Error,
}

/// A user by number, and by name where the host knows one.
#[derive(Debug)]
struct User {
    number: u32,
    name: Option<String>,
}

impl Denied {
    /// What stands in the way of `path`: the last file or directory on it that can be looked at. The system's error alone
    /// where nothing can be.
    pub(super) fn at(path: &Path, source: io::Error) -> Result<Self, io::Error> {
        let mut ways: Vec<&Path> = path.ancestors().collect();
        ways.reverse();
        let found = ways
            .into_iter()
            .map_while(|way| Some((way, fs::metadata(way).ok()?)));
        match found.last() {
            Some((way, metadata)) => Self::by(way, &metadata, source),
            None => Err(source),
        }
    }

    /// The same of a listing of `root`: the first directory that cannot be listed, at the root or right below it. That of a
    /// whole store shows it there as a rule, as one user made all of it.
    pub(super) fn below(root: &Path, source: io::Error) -> Result<Self, io::Error> {
        let is_denied = |path: &Path| {
            let listed = fs::read_dir(path);
            listed.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
        };
        if is_denied(root) {
            return Self::at(root, source);
        }
        let entries = fs::read_dir(root).into_iter().flatten().flatten();
        let denied = { entries.map(|entry| entry.path()) }.find(|path| is_denied(path));
        Self::at(denied.as_deref().unwrap_or(root), source)
    }

    fn by(way: &Path, metadata: &Metadata, source: io::Error) -> Result<Self, io::Error> {
        let Ok(own) = fs::metadata("/proc/self") else {
            return Err(source);
        };
        Ok(Self {
            path: way.to_owned(),
            owner: User::of(metadata.uid()),
            mode: metadata.mode() & 0o7777,
            user: User::of(own.uid()),
            source,
        })
    }
}

impl User {
    fn of(number: u32) -> Self {
        let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let name = users.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)?.parse() == Ok(number)).then(|| name.to_owned())
        });
        Self { number, name }
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name} (user id {})", self.number),
            None => write!(f, "user id {}", self.number),
        }
    }
}
