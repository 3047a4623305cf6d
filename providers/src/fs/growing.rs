//! A file that its one writer makes longer.

use std::fs::File;
use std::io;

use super::{kind_of, write_at};
use crate::{Error, ErrorKind, GrowingObject, Operation, Result};

/// How far the file is filled with zeros ahead. What is written over them changes no length, so that `fdatasync` writes the
/// bytes and nothing of the file system's own: two thirds of the time on ext4 (decision 0059).
const AHEAD_BYTES: u64 = 1 << 20;

/// See [`GrowingObject`].
#[derive(Debug)]
pub(super) struct Growing {
    file: File,
    object: String,
    length: u64,
    zeros_until: u64,
    /// After an error of `fdatasync` the next one would say nothing of the bytes that were lost.
    has_failed: bool,
}

impl Growing {
    /// An empty one.
    pub(super) fn new(file: File, object: String) -> Self {
        Self {
            file,
            object,
            length: 0,
            zeros_until: 0,
            has_failed: false,
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let end = self.length + bytes.len() as u64;
        if end > self.zeros_until {
            let until = end.next_multiple_of(AHEAD_BYTES);
            let zeros = vec![0; usize::try_from(until - end).unwrap_or(0)];
            write_at(&self.file, &zeros, end)?;
            self.zeros_until = until;
        }
        write_at(&self.file, bytes, self.length)?;
        self.file.sync_data()?;
        self.length = end;
        Ok(())
    }

    fn error(&self, kind: ErrorKind) -> Error {
        Error::new(Operation::Put, &self.object, kind)
    }
}

impl GrowingObject for Growing {
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        if self.has_failed {
            return Err(self.error(ErrorKind::Invalid));
        }
        self.write(bytes).map_err(|error| {
            self.has_failed = true;
            self.error(kind_of(&error)).with_source(error)
        })
    }

    fn finish(self: Box<Self>) {
        let cut = self.file.set_len(self.length);
        if let Err(error) = cut.and_then(|()| self.file.sync_all()) {
            tracing::debug!(object = %self.object, %error, "the zeros at the end stay");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::FsStore;
    use crate::{ObjectKey, ObjectStore};

    #[tokio::test]
    async fn what_was_added_is_there_and_zeros_follow_it_until_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let store = FsStore::open(dir.path()).unwrap();
        let key = ObjectKey::new("a/b/c").unwrap();
        let mut object = store.grow(&key).await.unwrap().unwrap();
        let (mut all, path) = (Vec::new(), dir.path().join("a/b/c"));
        for length in [1_usize, 1000, 1 << 20, 5, 3 << 20] {
            let bytes = vec![length.to_le_bytes()[0] | 1; length];
            object.append(&bytes).unwrap();
            all.extend(bytes);
            let stored = std::fs::read(&path).unwrap();
            let (begin, rest) = stored.split_at(all.len());
            assert_eq!(begin, all);
            assert!(rest.iter().all(|byte| *byte == 0));
        }
        let taken = store.grow(&key).await.unwrap_err();
        assert_eq!(taken.kind, ErrorKind::AlreadyExists);
        object.finish();
        assert_eq!(std::fs::read(&path).unwrap(), all);
    }
}
