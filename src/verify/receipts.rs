//! What was found sound, and when: a file that lets the next run read only what is new or long unread.
//!
//! Each line is a JSON object about one stored object, added as soon as that object was read to its end, so that a run
//! that was killed is taken up where it was. The file is this host's: in the store it would prove nothing to
//! who distrusts the store.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use jiff::{SignedDuration, Timestamp};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::failure::{Advice, Failure};
use crate::pipeline::StoredDigest;
use crate::threads::lock;
use crate::wal::fetcher::NewFile;

/// Why a file of receipts cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system's reason.
    #[error("could not {doing} the receipts in {}", path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// Another run writes to it.
    #[error("another verification is using the receipts in {}", .0.display())]
    InUse(PathBuf),
    /// A file of something else, which must not be written to.
    #[error("{} is no file of receipts (line {line})", path.display())]
    NotReceipts {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
}

impl Failure for Error {
    fn hint(&self) -> Option<Advice> {
        match self {
            Self::NotReceipts { .. } => {
                Some("name a new file with --receipts, or the one that an earlier run made".into())
            }
            Self::File { .. } | Self::InUse(_) => None,
        }
    }
}

/// How far an object was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Depth {
    /// Its stored bytes have the digest that is known of them.
    Stored,
    /// Everything in it.
    Content,
}

/// An object was sound.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Receipt {
    /// Its URL.
    pub object: String,
    /// Length of its stored bytes.
    pub stored_bytes: u64,
    /// When the store received it: an object of another time is another one.
    pub modified: Timestamp,
    /// Of the stored bytes.
    #[serde(flatten)]
    pub digest: StoredDigest,
    /// How far it was looked at.
    pub depth: Depth,
    /// Files of the manifest that were in it.
    pub files: u64,
    /// When.
    pub verified: Timestamp,
}

/// A file of receipts, in use by this process alone.
#[derive(Debug)]
pub struct Receipts {
    path: PathBuf,
    file: Mutex<File>,
    known: Mutex<HashMap<String, Receipt>>,
    /// Older ones do not count.
    oldest: Timestamp,
}

impl Receipts {
    /// Opens or makes the file; receipts older than `max_age` do not count any more.
    ///
    /// # Errors
    /// [`Error`]. A last line that was cut short is passed over.
    pub fn open(path: &Path, max_age: SignedDuration) -> Result<Self, Error> {
        let failed = |doing| {
            let path = path.to_owned();
            move |source| Error::File {
                doing,
                path,
                source,
            }
        };
        let mut options = OpenOptions::new();
        let options = options.read(true).append(true).create(true).mode(0o600);
        let mut file = options.open(path).map_err(failed("open"))?;
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(Error::InUse(path.to_owned()));
        }
        let (mut known, mut unread) = (HashMap::new(), Vec::new());
        for (index, line) in BufReader::new(&file).split(b'\n').enumerate() {
            let line = line.map_err(failed("read"))?;
            match serde_json::from_slice::<Receipt>(&line) {
                Ok(receipt) => _ = known.insert(receipt.object.clone(), receipt),
                Err(_) if is_remnant(&line) => {}
                Err(_) => unread.push(index + 1),
            }
        }
        match unread.first() {
            Some(line) if known.is_empty() => {
                return Err(Error::NotReceipts {
                    path: path.to_owned(),
                    line: *line,
                });
            }
            Some(line) => tracing::warn!(
                "line {line} of {} is no receipt and is passed over",
                path.display()
            ),
            None => {}
        }
        // What a killed run wrote last may have no end.
        file.write_all(b"\n").map_err(failed("write"))?;
        let now = Timestamp::now();
        Ok(Self {
            path: path.to_owned(),
            file: Mutex::new(file),
            known: Mutex::new(known),
            oldest: now.checked_sub(max_age).unwrap_or(Timestamp::MIN),
        })
    }

    /// The receipt that makes reading the object unnecessary.
    pub fn valid(
        &self,
        object: &str,
        stored_bytes: u64,
        modified: Timestamp,
        depth: Depth,
    ) -> Option<Receipt> {
        let known = lock(&self.known);
        let is_valid = |receipt: &&Receipt| {
            receipt.stored_bytes == stored_bytes
                && receipt.modified == modified
                && receipt.depth >= depth
                && receipt.verified >= self.oldest
        };
        known.get(object).filter(is_valid).cloned()
    }

    /// What an earlier run found of the object, however long ago.
    pub fn earlier(&self, object: &str, modified: Timestamp) -> Option<Receipt> {
        let known = lock(&self.known);
        let is_same = |receipt: &&Receipt| receipt.modified == modified;
        known.get(object).filter(is_same).cloned()
    }

    /// The URLs of all objects that have one, however old.
    pub fn urls(&self) -> Vec<String> {
        lock(&self.known).keys().cloned().collect()
    }

    /// Forgets objects whose URL begins with `folder` and that are not `present`; returns their URLs.
    pub fn forget_absent(&self, folder: &str, present: &HashSet<String>) -> Vec<String> {
        let mut known = lock(&self.known);
        let is_absent = |url: &&String| url.starts_with(folder) && !present.contains(*url);
        let mut absent: Vec<String> = known.keys().filter(is_absent).cloned().collect();
        absent.sort();
        for url in &absent {
            known.remove(url);
        }
        absent
    }

    /// Adds a receipt.
    pub fn add(&self, receipt: Receipt) -> Result<(), Error> {
        let mut line = serde_json::to_vec(&receipt).expect("a receipt is text and numbers");
        line.push(b'\n');
        lock(&self.file)
            .write_all(&line)
            .map_err(|source| self.failed("write", source))?;
        lock(&self.known).insert(receipt.object.clone(), receipt);
        Ok(())
    }

    /// Makes the file durable with one line for each object.
    pub fn finish(self) -> Result<(), Error> {
        let known = lock(&self.known);
        let mut receipts: Vec<&Receipt> = known.values().collect();
        receipts.sort_by(|a, b| a.object.cmp(&b.object));
        let mut text = Vec::new();
        for receipt in receipts {
            serde_json::to_writer(&mut text, receipt).expect("a receipt is text and numbers");
            text.push(b'\n');
        }
        let written = NewFile::create(&self.path).and_then(|mut file| {
            file.write(&text)?;
            file.finish()
        });
        written.map_err(|error| self.failed("write", std::io::Error::other(error)))
    }

    fn failed(&self, doing: &'static str, source: std::io::Error) -> Error {
        Error::File {
            doing,
            path: self.path.clone(),
            source,
        }
    }
}

/// What a run that was killed, or a power failure, leaves of a line.
fn is_remnant(line: &[u8]) -> bool {
    const BEGIN: &[u8] = b"{\"object\":";
    line.iter().all(|byte| *byte == 0) || line.starts_with(BEGIN) || BEGIN.starts_with(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receipt(object: &str) -> Receipt {
        Receipt {
            object: object.to_owned(),
            stored_bytes: 7,
            modified: Timestamp::UNIX_EPOCH,
            digest: StoredDigest::of(b""),
            depth: Depth::Content,
            files: 1,
            verified: Timestamp::now(),
        }
    }

    fn open(path: &Path) -> Result<Receipts, Error> {
        Receipts::open(path, SignedDuration::from_hours(1))
    }

    #[test]
    fn a_receipt_counts_for_the_same_object_at_the_same_depth_until_it_is_too_old() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("receipts");
        let receipts = open(&path).unwrap();
        receipts.add(receipt("a")).unwrap();
        let old = Timestamp::now() - SignedDuration::from_hours(2);
        receipts
            .add(Receipt {
                verified: old,
                ..receipt("old")
            })
            .unwrap();
        receipts.finish().unwrap();
        let receipts = open(&path).unwrap();
        let valid = |object, bytes, modified| {
            receipts
                .valid(object, bytes, modified, Depth::Content)
                .is_some()
        };
        assert!(valid("a", 7, Timestamp::UNIX_EPOCH));
        assert!(!valid("a", 8, Timestamp::UNIX_EPOCH));
        assert!(!valid("a", 7, Timestamp::now()));
        assert!(!valid("b", 7, Timestamp::UNIX_EPOCH));
        assert!(!valid("old", 7, Timestamp::UNIX_EPOCH));
        assert!(receipts.earlier("old", Timestamp::UNIX_EPOCH).is_some());
    }

    #[test]
    fn a_run_that_was_killed_while_it_wrote_leaves_a_file_that_can_be_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("receipts");
        let receipts = open(&path).unwrap();
        receipts.add(receipt("a")).unwrap();
        receipts.add(receipt("b")).unwrap();
        drop(receipts);
        let text = std::fs::read(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 9]).unwrap();
        let receipts = open(&path).unwrap();
        receipts.add(receipt("c")).unwrap();
        drop(receipts);
        let receipts = open(&path).unwrap();
        let known: Vec<_> = ["a", "b", "c"]
            .map(|object| receipts.earlier(object, Timestamp::UNIX_EPOCH).is_some())
            .into();
        assert_eq!(known, [true, false, true]);
    }

    #[test]
    fn another_file_and_a_file_in_use_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("receipts");
        std::fs::write(&path, "store = \"file:///x\"\n").unwrap();
        assert!(matches!(
            open(&path),
            Err(Error::NotReceipts { line: 1, .. })
        ));
        std::fs::write(&path, "").unwrap();
        let _first = open(&path).unwrap();
        assert!(matches!(open(&path), Err(Error::InUse(_))));
    }
}
