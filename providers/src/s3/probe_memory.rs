//! What the last probe of a server found, for the next process: PostgreSQL starts one for each segment.
//!
//! A file per store in a directory of the user's, which is made where it is missing, with the store's URL and endpoint in
//! its name's hash and in its content. It counts for a day, and only when it belongs to the user that reads it. What cannot
//! be read or written costs one request, and is no error.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How long a server is relied on after it was seen to refuse a second create.
const VALID: Duration = Duration::from_hours(24);

/// Longest content that is read.
const MOST_BYTES: u64 = 4096;

/// Where it is remembered that one server keeps the condition of a create.
#[derive(Clone, Debug)]
pub(super) struct ProbeMemory {
    path: PathBuf,
    content: String,
}

impl ProbeMemory {
    /// Of the store at `url` on the server at `endpoint`, in `directory`.
    pub(super) fn new(directory: &Path, endpoint: &str, url: &str) -> Self {
        let content = format!("{endpoint}\n{url}\n");
        // Two stores whose hashes are the same forget each other, no more: the content is compared.
        let mut hash = DefaultHasher::new();
        content.hash(&mut hash);
        let hash = hash.finish();
        Self {
            path: directory.join(format!("walhalla-probed-{hash:016x}")),
            content,
        }
    }

    /// Whether a process of this user saw within the last day that the server refuses a second create.
    pub(super) fn holds(&self) -> bool {
        let Ok(metadata) = std::fs::symlink_metadata(&self.path) else {
            return false;
        };
        let age = metadata
            .modified()
            .map(|time| SystemTime::now().duration_since(time));
        metadata.is_file()
            && metadata.uid() == rustix::process::geteuid().as_raw()
            && metadata.len() <= MOST_BYTES
            && age.is_ok_and(|age| age.is_ok_and(|age| age < VALID))
            && std::fs::read_to_string(&self.path).is_ok_and(|known| known == self.content)
    }

    /// Notes that the server was seen to do so now.
    pub(super) fn note(&self) {
        if let Err(error) = self.write() {
            tracing::debug!("{} is not written: {error}", self.path.display());
        }
    }

    fn write(&self) -> std::io::Result<()> {
        // What holds both was named by the user.
        let directories = self.path.ancestors().skip(1).take(2);
        let directories: Vec<&Path> = directories.collect();
        for directory in directories.into_iter().rev() {
            let made = std::fs::DirBuilder::new().mode(0o700).create(directory);
            match made {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(error);
                }
                _ => {}
            }
        }
        let temporary = self
            .path
            .with_extension(format!("{:016x}", fastrand::u64(..)));
        let mut options = std::fs::OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        let written = file.write_all(self.content.as_bytes());
        let renamed = written.and_then(|()| std::fs::rename(&temporary, &self.path));
        if renamed.is_err() {
            drop(std::fs::remove_file(&temporary));
        }
        renamed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_remembered_for_a_day_and_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("spool/probed");
        let memory = |endpoint: &str| ProbeMemory::new(&place, endpoint, "s3://b/p");
        let one = memory("http://one");
        assert!(!one.holds());
        one.note();
        one.note();
        assert!(one.holds());
        assert!(!memory("http://other").holds());
        assert_eq!(std::fs::read_dir(&place).unwrap().count(), 1);

        let yesterday = SystemTime::now() - VALID - Duration::from_secs(1);
        let file = std::fs::File::options()
            .write(true)
            .open(&one.path)
            .unwrap();
        file.set_modified(yesterday).unwrap();
        assert!(!one.holds());
        one.note();
        assert!(one.holds());
        std::fs::write(&one.path, "http://other\ns3://b/p\n").unwrap();
        assert!(!one.holds());
    }
}
