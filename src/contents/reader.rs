//! Reading a backup back: every part's files, each checked against the manifest.
//!
//! ```text
//! part ─▶ download ─▶ hash ─▶ decrypt ─▶ decompress ─▶ untar ─▶ Sink
//! ```
//!
//! Each file must be in the manifest, once, with the content that the manifest gives; each part must have the
//! digest that `backup.json` gives. What becomes of the files is the [`Sink`]'s: a restore writes them,
//! `verify` looks at their pages.

use std::io::{self, Read};
use std::path::{Component, Path};

use tar::{Archive, EntryType};

use super::checksum::{Checksum, Summing};
use super::index::Index;
use super::manifest::{FileFacts, Head, Manifest, WalRange};
use super::merged::Skip;
use crate::failure::{Advice, Class, Failure};
use crate::paths::{Expected, PathMap};
use crate::pipeline::{Content, SharedHash};
use crate::repository::entry::StoredPart;
use crate::repository::layout::Object;
use crate::repository::{self, BackupEntry, BackupId, ObjectError, Repository, Watched};

/// For stock tools; restoring makes the links itself.
const TABLESPACE_MAP: &str = "tablespace_map";

/// Why a backup's content is not what it must be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The object cannot be read.
    #[error(transparent)]
    Repository(#[from] repository::Error),
    /// A backup of an earlier version, whose files can only be read in order.
    #[error("backup {0} has no index")]
    NoIndex(BackupId),
}

impl From<ObjectError> for Error {
    fn from(error: ObjectError) -> Self {
        Self::Repository(error.into())
    }
}

impl Failure for Error {
    fn class(&self) -> Class {
        match self {
            Self::Repository(error) => error.class(),
            Self::NoIndex(_) => Class::Other,
        }
    }

    fn hint(&self) -> Option<Advice> {
        match self {
            Self::Repository(error) => error.hint(),
            Self::NoIndex(_) => None,
        }
    }
}

/// What is wrong with a part of a backup.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PartProblem {
    /// A file that the manifest does not know, or for the second time.
    #[error("it holds {0}, which does not belong there")]
    Unexpected(String),
    /// A file whose content is not the manifest's.
    #[error("the file {0} in it is not the one that was backed up")]
    Content(String),
    /// The stored bytes are not those of `backup.json`.
    #[error("its checksum is not the one in backup.json")]
    Digest,
    /// Files that no part held.
    #[error("the file {0} is in none of the parts")]
    Missing(String),
    /// Blocks of a file that no older backup of the chain holds.
    #[error("no backup that it stands on has the file {0} whole")]
    NoBottom(String),
}

/// What becomes of a backup's files.
pub trait Sink: Sync {
    /// What ends the reading.
    type Error: From<Error>;

    /// A directory, by its path below the data directory.
    fn directory(&self, path: &Path, header: FileHeader) -> Result<(), Self::Error>;

    /// A file, and what became of it.
    fn file(
        &self,
        path: &Path,
        header: FileHeader,
        content: &mut Summed,
    ) -> Result<Taken, FileError<Self::Error>>;

    /// Something in a part that is not as it must be; `Ok` goes on with what comes after it.
    fn problem(&self, error: Error) -> Result<(), Self::Error>;
}

/// What a [`Sink`] did with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It took the content, which must be the manifest's.
    Content,
    /// It passed the file over.
    Nothing,
}

/// What a part says of a file or directory besides its content.
#[derive(Clone, Copy, Debug)]
pub struct FileHeader {
    /// Its length.
    pub size_bytes: u64,
    /// Permission bits.
    pub mode: u32,
    /// Modification time, seconds since 1970.
    pub modified: i64,
    /// Whose it is.
    pub owner: Owner,
}

/// A user and a group, by their numbers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Owner {
    /// User id.
    pub user: u32,
    /// Group id.
    pub group: u32,
}

/// Length and checksum of a content.
pub type Sum = (u64, Checksum);

/// Why a file was not taken in.
pub enum FileError<E> {
    /// The part cannot be read on.
    Read(io::Error),
    /// The fault is the sink's.
    Sink(E),
}

impl<E> FileError<E> {
    /// The same failure to a sink with other errors.
    pub fn into_other<O: From<E>>(self) -> FileError<O> {
        match self {
            Self::Read(error) => FileError::Read(error),
            Self::Sink(error) => FileError::Sink(error.into()),
        }
    }
}

impl<E> From<E> for FileError<E> {
    fn from(error: E) -> Self {
        Self::Sink(error)
    }
}

/// A backup whose manifest was read.
pub struct Contents<'a> {
    repository: &'a Repository,
    /// The backup's entry.
    pub backup: &'a BackupEntry,
    /// Those of the manifest.
    files: Expected<FileFacts>,
}

impl<'a> Contents<'a> {
    /// Reads the backup's manifest.
    pub fn open(repository: &'a Repository, backup: &'a BackupEntry) -> Result<Self, Error> {
        let manifest = read_list(repository, backup, &backup.manifest, |text| {
            Manifest::read(text)
        })?;
        Ok(Self {
            repository,
            backup,
            files: manifest.files.into(),
        })
    }

    /// What the manifest says of each file.
    pub fn files(&self) -> &PathMap<FileFacts> {
        self.files.map()
    }

    /// Reads `part` to its end.
    pub fn part<S: Sink>(&self, part: &StoredPart, sink: &S) -> Result<(), S::Error> {
        let mut reader = PartReader::open(self.repository, self.backup, part)?;
        let url = self.repository.url(&reader.object.key);
        match self.entries(&url, &mut reader.content, sink) {
            Ok(()) => {}
            Err(FileError::Read(source)) => return Err(reader.damaged(source).into()),
            Err(FileError::Sink(error)) => return Err(error),
        }
        Ok(reader.finish(part).map(drop)?)
    }

    fn entries<S: Sink>(
        &self,
        object: &str,
        input: &mut impl Read,
        sink: &S,
    ) -> Result<(), FileError<S::Error>> {
        let problem = |problem| {
            let damaged = ObjectError::damaged(object.to_owned(), problem);
            sink.problem(damaged.into())
        };
        let mut archive = Archive::new(input);
        for entry in archive.entries().map_err(FileError::Read)? {
            let mut entry = entry.map_err(FileError::Read)?;
            let path = entry.path().map_err(FileError::Read)?.into_owned();
            let header = FileHeader {
                size_bytes: entry.size(),
                mode: entry.header().mode().map_err(FileError::Read)? & 0o777,
                modified: i64::try_from(entry.header().mtime().map_err(FileError::Read)?)
                    .unwrap_or(0),
                owner: owner(entry.header()).map_err(FileError::Read)?,
            };
            let name = || path.display().to_string();
            let is_inside = path
                .components()
                .all(|part| matches!(part, Component::Normal(_)));
            match entry.header().entry_type() {
                EntryType::Directory if is_inside => sink.directory(&path, header)?,
                EntryType::Regular if path == Path::new(TABLESPACE_MAP) => {}
                EntryType::Regular if is_inside => {
                    let Some(facts) = self.files.take(&path) else {
                        problem(PartProblem::Unexpected(name()))?;
                        continue;
                    };
                    let mut content = Summed::new(&mut entry, facts.checksum.summing());
                    if sink.file(&path, header, &mut content)? == Taken::Nothing {
                        continue;
                    }
                    let sum = content.finish().map_err(FileError::Read)?;
                    if (sum.0, &sum.1) != (facts.size_bytes, &facts.checksum) {
                        problem(PartProblem::Content(name()))?;
                    }
                }
                _ => problem(PartProblem::Unexpected(name()))?,
            }
        }
        Ok(())
    }

    /// A file of the manifest that none of the parts read so far held.
    pub fn missing(&self) -> Option<Error> {
        let path = self.files.missing()?;
        let problem = PartProblem::Missing(path.display().to_string());
        Some(ObjectError::damaged(self.folder_url(), problem).into())
    }

    /// The checksum of a file.
    pub(super) fn checksum(&self, path: &Path) -> Option<Checksum> {
        self.files().get(path).map(|facts| facts.checksum.clone())
    }

    /// URL of the backup's folder.
    pub(super) fn folder_url(&self) -> String {
        let folder = self.repository.layout().backup_folder(&self.backup.id);
        format!("{}/{folder}", self.repository.store_url())
    }
}

/// The backup's index, which is that of the parts in its entry.
///
/// # Errors
/// [`Error::NoIndex`] for a backup of an earlier version.
pub fn read_index(repository: &Repository, backup: &BackupEntry) -> Result<Index, Error> {
    let part = backup.index.as_ref();
    let part = part.ok_or_else(|| Error::NoIndex(backup.id.clone()))?;
    read_list(repository, backup, part, |text| {
        let index = Index::read(text)?;
        index.fits(&backup.parts).map(|()| index)
    })
}

/// The text of a backup's manifest, as PostgreSQL writes one.
///
/// # Errors
/// As [`read_index`].
pub fn read_manifest(repository: &Repository, backup: &BackupEntry) -> Result<Vec<u8>, Error> {
    read_list(repository, backup, &backup.manifest, |text| {
        let mut bytes = Vec::new();
        text.read_to_end(&mut bytes).map(|_| bytes)
    })
}

fn owner(header: &tar::Header) -> io::Result<Owner> {
    let number = |id: u64| u32::try_from(id).unwrap_or(0);
    Ok(Owner {
        user: number(header.uid()?),
        group: number(header.gid()?),
    })
}

/// Reads an object of a backup as it is stored and compares its digest: what can be known without the identity.
pub fn check_stored(
    repository: &Repository,
    backup: &BackupEntry,
    part: &StoredPart,
) -> Result<(), Error> {
    let object = object_of(repository, backup, part)?;
    let (mut reader, hash) = repository.open_stored(&object, part.digest.hash())?;
    io::copy(&mut reader, &mut io::sink())
        .map_err(|source| repository.damaged(&object.key, source))?;
    same_digest(repository, &object, &hash, part)
}

/// Longest manifest, index or list of relations that is read: that of some ten million files.
const LIST_LIMIT_BYTES: u64 = 2 << 30;

/// What `parse` makes of an object that is no tar file, and has the digest of `backup.json`. Its text is not kept.
pub(super) fn read_list<T, E: std::error::Error + Send + Sync + 'static>(
    repository: &Repository,
    backup: &BackupEntry,
    part: &StoredPart,
    parse: impl FnOnce(&mut dyn Read) -> Result<T, E>,
) -> Result<T, Error> {
    if part.size_bytes > LIST_LIMIT_BYTES {
        let object = object_of(repository, backup, part)?;
        let finding = "backup.json gives it a length that no such object has";
        let most = format!("more than {LIST_LIMIT_BYTES} bytes");
        return Err(repository.unfit(&object.key, finding, most).into());
    }
    let mut reader = PartReader::open(repository, backup, part)?;
    let mut text = Failing {
        content: reader.content.by_ref().take(part.size_bytes),
        failure: None,
    };
    let parsed = parse(&mut text);
    if let Some(source) = text.failure {
        return Err(reader.damaged(source));
    }
    // A damaged object is told by its digest, whatever its text says.
    let object = reader.finish(part)?;
    parsed.map_err(|reason| ObjectError::damaged(repository.url(&object.key), reason).into())
}

/// A content that keeps the error with which it fails, whatever its reader makes of it.
struct Failing<R> {
    content: R,
    failure: Option<io::Error>,
}

impl<R: Read> Read for Failing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.content.read(buffer).map_err(|error| {
            let kind = error.kind();
            if kind != io::ErrorKind::Interrupted {
                self.failure = Some(error);
            }
            kind.into()
        })
    }
}

/// What a manifest of the backup begins and ends with.
pub(super) fn head(backup: &BackupEntry) -> Head {
    Head {
        version: backup.postgres_version,
        cluster: backup.system_identifier,
        wal: WalRange {
            timeline: backup.timeline,
            start: backup.start_lsn,
            end: backup.stop_lsn,
        },
    }
}

pub(super) fn object_of(
    repository: &Repository,
    backup: &BackupEntry,
    part: &StoredPart,
) -> Result<Object, repository::Error> {
    Ok(repository.layout().backup_object(&backup.id, &part.name)?)
}

fn same_digest(
    repository: &Repository,
    object: &Object,
    hash: &SharedHash,
    part: &StoredPart,
) -> Result<(), Error> {
    if hash.digest() == part.digest {
        return Ok(());
    }
    let url = repository.url(&object.key);
    Err(ObjectError::damaged(url, PartProblem::Digest).into())
}

/// A content whose checksum is taken as it is read, of what is skipped too.
pub struct Summed<'a> {
    content: &'a mut dyn Read,
    summing: Summing,
    size_bytes: u64,
}

impl<'a> Summed<'a> {
    /// `content`, of which nothing was read yet.
    pub fn new(content: &'a mut dyn Read, summing: Summing) -> Self {
        Self {
            content,
            summing,
            size_bytes: 0,
        }
    }

    /// The content without its checksum.
    pub fn unsummed(&mut self) -> &mut dyn Read {
        self.content
    }

    /// Reads what is left.
    ///
    /// # Errors
    /// Those of the content.
    pub fn finish(&mut self) -> io::Result<Sum> {
        self.skip(u64::MAX)?;
        Ok((self.size_bytes, self.summing.checksum()))
    }
}

impl Read for Summed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.content.read(buffer)?;
        self.summing.update(buffer.get(..count).unwrap_or_default());
        self.size_bytes += count as u64;
        Ok(count)
    }
}

impl Skip for Summed<'_> {
    fn skip(&mut self, count: u64) -> io::Result<()> {
        io::copy(&mut self.by_ref().take(count), &mut io::sink()).map(drop)
    }
}

/// An object of a backup on its way in.
struct PartReader<'a> {
    repository: &'a Repository,
    object: Object,
    content: Content,
    hash: SharedHash,
}

impl<'a> PartReader<'a> {
    fn open(
        repository: &'a Repository,
        backup: &BackupEntry,
        part: &StoredPart,
    ) -> Result<Self, Error> {
        let object = object_of(repository, backup, part)?;
        let Watched { content, hash, .. } = repository.open_watched(&object, part.digest.hash())?;
        Ok(Self {
            repository,
            object,
            content,
            hash,
        })
    }

    fn damaged(&self, source: io::Error) -> Error {
        self.repository.damaged(&self.object.key, source).into()
    }

    /// Reads to the end and checks the whole.
    fn finish(mut self, part: &StoredPart) -> Result<Object, Error> {
        io::copy(&mut self.content, &mut io::sink()).map_err(|source| self.damaged(source))?;
        same_digest(self.repository, &self.object, &self.hash, part)?;
        Ok(self.object)
    }
}
