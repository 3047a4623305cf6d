//! A tar part on its way to the store.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

use super::checksum::FileSums;
use super::index::FilePlace;
use super::reader::{FileError, FileHeader, Owner};
use crate::paths::PathList;
use crate::pipeline::{self, Closed, ObjectWriter};
use crate::server::data_directory::Entry;

/// tar's unit (POSIX ustar).
const TAR_BLOCK_BYTES: u64 = 512;

/// Why an object of a backup was not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Writing to the store failed.
    #[error(transparent)]
    Pipeline(#[from] pipeline::Error),
    /// A file could not be put into a tar part.
    #[error("could not pack {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// A tar part.
pub struct PartWriter {
    tar: Builder<ObjectWriter>,
    /// Whose what comes next is.
    pub owner: Owner,
    /// Where each file is that was packed.
    pub places: PathList<FilePlace>,
    /// The CRC-32C of each of them.
    pub checksums: Vec<u32>,
    /// The file that was begun and not ended.
    open: Option<(PathBuf, FilePlace)>,
    /// Length of the files as they will be restored.
    pub restored_bytes: u64,
}

impl Owner {
    fn header(self, kind: EntryType, size_bytes: u64, mode: u32, modified: i64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size_bytes);
        header.set_mode(mode);
        header.set_mtime(u64::try_from(modified).unwrap_or(0));
        header.set_uid(u64::from(self.user));
        header.set_gid(u64::from(self.group));
        header
    }
}

impl PartWriter {
    /// An empty part.
    pub fn new(object: ObjectWriter, owner: Owner) -> Self {
        Self {
            tar: Builder::new(object),
            owner,
            places: PathList::default(),
            checksums: Vec::new(),
            open: None,
            restored_bytes: 0,
        }
    }

    /// Adds a directory, without its content.
    pub fn directory(&mut self, entry: &Entry) -> Result<(), WriteError> {
        self.folder(&entry.path, entry.mode, entry.modified)
    }

    /// The same by its path and mode.
    pub fn folder(&mut self, path: &Path, mode: u32, modified: i64) -> Result<(), WriteError> {
        let mut header = self.owner.header(EntryType::Directory, 0, mode, modified);
        self.tar
            .append_data(&mut header, path, io::empty())
            .map_err(|error| failed(path, error))
    }

    /// Begins a file; its content goes to [`PartWriter::object`], then [`PartWriter::end`].
    pub fn begin(
        &mut self,
        path: &Path,
        size_bytes: u64,
        mode: u32,
        modified: i64,
    ) -> Result<(), WriteError> {
        self.header(path, size_bytes, mode, modified)?;
        let place = FilePlace {
            offset: self.tar.get_ref().position(),
            size_bytes,
            mode,
            modified,
            xxh128: None,
        };
        self.open = Some((path.to_owned(), place));
        Ok(())
    }

    fn header(
        &mut self,
        path: &Path,
        size_bytes: u64,
        mode: u32,
        modified: i64,
    ) -> Result<(), WriteError> {
        let mut header = self
            .owner
            .header(EntryType::Regular, size_bytes, mode, modified);
        self.tar
            .append_data(&mut header, path, io::empty())
            .map_err(|error| failed(path, error))
    }

    /// Where a file's content goes.
    pub fn object(&mut self) -> &mut ObjectWriter {
        self.tar.get_mut()
    }

    /// Ends the file that was begun last.
    pub fn end(&mut self, sums: &FileSums) -> Result<(), WriteError> {
        let Some((path, mut place)) = self.open.take() else {
            return Ok(());
        };
        place.xxh128 = Some(sums.xxh128());
        self.places.push(&path, place);
        self.checksums.push(sums.crc32c());
        self.pad(place.size_bytes)
            .map_err(|error| failed(&path, error))
    }

    /// Adds a file whose content is being read from elsewhere.
    pub fn stream(
        &mut self,
        path: &Path,
        header: FileHeader,
        content: &mut dyn Read,
    ) -> Result<(), FileError<WriteError>> {
        self.begin(path, header.size_bytes, header.mode, header.modified)?;
        let (mut sums, mut left) = (FileSums::default(), header.size_bytes);
        while left > 0 {
            let room = self.object().room().map_err(|error| failed(path, error))?;
            let count = room.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let room = room.get_mut(..count).unwrap_or_default();
            let count = content.read(room).map_err(FileError::Read)?;
            if count == 0 {
                return Err(FileError::Read(io::ErrorKind::UnexpectedEof.into()));
            }
            sums.update(room.get(..count).unwrap_or_default());
            self.object().fill(count);
            left -= count as u64;
        }
        self.end(&sums)?;
        self.restored_bytes += header.size_bytes;
        Ok(())
    }

    /// Adds a file from memory.
    pub fn bytes(&mut self, path: &str, bytes: &[u8], modified: i64) -> Result<(), WriteError> {
        let size_bytes = bytes.len() as u64;
        self.begin(Path::new(path), size_bytes, 0o600, modified)?;
        self.object().append(bytes)?;
        self.restored_bytes += size_bytes;
        let mut sums = FileSums::default();
        sums.update(bytes);
        self.end(&sums)
    }

    /// Adds a file for stock tools, which is neither in the manifest nor in the index.
    pub fn unlisted(&mut self, path: &str, bytes: &[u8], modified: i64) -> Result<(), WriteError> {
        let size_bytes = bytes.len() as u64;
        self.header(Path::new(path), size_bytes, 0o600, modified)?;
        self.object().append(bytes)?;
        self.pad(size_bytes)
            .map_err(|error| failed(Path::new(path), error))
    }

    /// Ends the tar file. Its last bytes are on their way to the store afterwards.
    pub fn close(self) -> Result<Closed, WriteError> {
        let object = self
            .tar
            .into_inner()
            .map_err(|error| failed(Path::new("the tar part"), error))?;
        Ok(object.close()?)
    }

    fn pad(&mut self, size_bytes: u64) -> io::Result<()> {
        let rest = size_bytes.next_multiple_of(TAR_BLOCK_BYTES) - size_bytes;
        let zeros = [0; 512];
        let padding = usize::try_from(rest)
            .ok()
            .and_then(|rest| zeros.get(..rest))
            .unwrap_or_default();
        self.tar.get_mut().write_all(padding)
    }
}

/// The pipeline's error, which came through [`io::Write`], or a path that tar cannot hold.
pub fn failed(path: &Path, error: io::Error) -> WriteError {
    match error.downcast::<pipeline::Error>() {
        Ok(error) => WriteError::Pipeline(error),
        Err(source) => WriteError::File {
            path: path.to_owned(),
            source,
        },
    }
}
