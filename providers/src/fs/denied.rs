//! What to say when the system denies a file: whose it is, and who asked.

use std::fmt;
use std::fs;
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
        let (Some((way, metadata)), Ok(own)) = (found.last(), fs::metadata("/proc/self")) else {
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
