//! Reading a chain of backups back as the one backup that they make together.
//!
//! ```text
//! parts with files that are whole ─▶ each file ─▶ blocks of newer layers laid over it ─▶ Sink
//!                                                 read at random, by their index
//! ```
//!
//! A file of the result comes from the newest layer that holds it whole, its bottom, and from the `INCREMENTAL.*` files of
//! the layers above. Each of its blocks is read once, from the newest layer that holds it.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use walhalla_providers::Error as StoreError;

use super::checksum::{Checksum, Identity, Summing};
use super::delta_file::{Header, ReadError, delta_name, whole_name};
use super::index::{Index, PartIndex};
use super::manifest::{self, FileFacts};
use super::merged::{Layout, Merged, Run, Skip, Source};
use super::pieces::{PieceReader, Pieces};
use super::reader::{
    self, Contents, Error, FileError, FileHeader, Owner, PartProblem, Sink, Sum, Summed, Taken,
    head,
};
use super::relations::Relations;
use crate::paths::{Expected, PathList, PathMap, PathOrder};
use crate::pipeline::{BlockDigest, Frame};
use crate::repository::entry::StoredPart;
use crate::repository::{self, BackupEntry, BackupKind, ObjectError, Repository};
use crate::threads::lock;

/// Where PostgreSQL's label is.
const LABEL: &str = "backup_label";

/// A chain whose manifests were read.
pub struct Chain<'a> {
    /// The full backup first, the leaf last.
    layers: Vec<Layer<'a>>,
    /// Of the leaf; of a backup that is streamed alone they are not read, as it is restored without them.
    relations: Relations,
    /// Files of the leaf that are not wanted, and their lengths.
    left_out: PathList<u64>,
    /// Files of the result, each with the layer that is its bottom.
    result: Expected<u32>,
    /// What the files of the result of several backups are.
    made: Mutex<PathList<FileFacts>>,
}

/// How files are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A part after the other.
    Stream,
    /// Each as it is asked for.
    Random,
}

struct Layer<'a> {
    contents: Contents<'a>,
    /// Where files are read at random: of deltas, and of every layer with [`Access::Random`].
    pieces: Option<Pieces<'a>>,
    /// Its parts in which nothing is of the result, by their names.
    unneeded: Vec<String>,
}

/// A part that has to be read for the result.
#[derive(Clone, Copy, Debug)]
pub struct Task<'a> {
    layer: usize,
    /// The part.
    pub part: &'a StoredPart,
}

impl Task<'_> {
    /// Whether both are the same part.
    pub fn is(&self, other: &Self) -> bool {
        self.layer == other.layer && self.part.name == other.part.name
    }
}

impl<'a> Chain<'a> {
    /// Reads the manifests of `backups`, the full one first, and finds the bottom of each file that `is_wanted`.
    ///
    /// With [`Access::Random`], [`Chain::file`] reads single files, where every backup has an index.
    ///
    /// # Errors
    /// The repository's, what is damaged, and a file that is whole in none of them.
    pub fn open(
        repository: &'a Repository,
        backups: &'a [BackupEntry],
        access: Access,
        is_wanted: &dyn Fn(&Path) -> bool,
    ) -> Result<Self, Error> {
        let is_alone = backups.len() == 1;
        let open = |backup: &'a BackupEntry| {
            let is_random = match access {
                Access::Random => !is_alone || backup.index.is_some(),
                Access::Stream => backup.kind == BackupKind::Delta,
            };
            let pieces = is_random.then(|| Pieces::open(repository, backup));
            Ok::<_, Error>(Layer {
                contents: Contents::open(repository, backup)?,
                pieces: pieces.transpose()?,
                unneeded: Vec::new(),
            })
        };
        let layers: Vec<Layer> = backups.iter().map(open).collect::<Result<_, _>>()?;
        let relations = match (backups.last(), layers.last()) {
            (Some(leaf), Some(layer)) if layer.pieces.is_some() => {
                Relations::read(repository, leaf)?
            }
            _ => None,
        };
        let mut chain = Self {
            layers,
            relations: relations.unwrap_or(Relations {
                block_size: 8192,
                ..Relations::default()
            }),
            left_out: PathList::default(),
            result: PathMap::default().into(),
            made: Mutex::default(),
        };
        chain.find_bottoms(is_wanted)?;
        if !is_alone {
            chain.find_unneeded(repository)?;
        }
        Ok(chain)
    }

    fn find_bottoms(&mut self, is_wanted: &dyn Fn(&Path) -> bool) -> Result<(), Error> {
        let Some((leaf, older)) = self.layers.split_last() else {
            return Ok(());
        };
        let (mut result, mut left_out) = (PathList::default(), PathList::default());
        for (name, facts) in leaf.contents.files().list().iter() {
            let changed = match leaf.contents.backup.kind {
                BackupKind::Delta => whole_name(&name),
                BackupKind::Full => None,
            };
            let is_whole = changed.is_none();
            let path = changed.unwrap_or(name);
            if !is_wanted(&path) {
                let whole = self.relations.size_bytes(&path).filter(|_| !is_whole);
                left_out.push(&path, whole.unwrap_or(facts.size_bytes));
                continue;
            }
            let layer = if is_whole {
                Some(older.len())
            } else {
                bottom(older, &path)
            };
            let no_bottom = || self.problem(PartProblem::NoBottom(path.display().to_string()));
            let layer = layer.ok_or_else(no_bottom)?;
            result.push(&path, u32::try_from(layer).unwrap_or(u32::MAX));
        }
        let twice = |path: PathBuf| PartProblem::Unexpected(path.display().to_string());
        let result = result
            .into_map()
            .map_err(|path| self.problem(twice(path)))?;
        self.left_out = left_out;
        self.result = result.into();
        Ok(())
    }

    /// Finds the parts that hold no bottom. The index of a layer that is streamed is forgotten after that: it is long.
    fn find_unneeded(&mut self, repository: &Repository) -> Result<(), Error> {
        let unneeded = self.layers.iter().enumerate().map(|(number, layer)| {
            if let Some(pieces) = &layer.pieces {
                return Ok(self.unneeded(number, pieces.index()));
            }
            let index = reader::read_index(repository, layer.contents.backup)?;
            Ok(self.unneeded(number, &index))
        });
        let unneeded = unneeded.collect::<Result<Vec<_>, Error>>()?;
        for (layer, unneeded) in self.layers.iter_mut().zip(unneeded) {
            layer.unneeded = unneeded;
        }
        Ok(())
    }

    fn unneeded(&self, number: usize, index: &Index) -> Vec<String> {
        let is_needed = |part: &PartIndex| {
            let mut files = part.files.iter();
            files.any(|(path, _)| self.bottom_of(&path) == Some(number))
        };
        let parts = index.parts.iter().filter(|part| !is_needed(part));
        parts.map(|part| part.name.clone()).collect()
    }

    /// The layer that is the bottom of a file of the result.
    fn bottom_of(&self, path: &Path) -> Option<usize> {
        self.result.map().get(path).map(|layer| *layer as usize)
    }

    fn problem(&self, problem: PartProblem) -> Error {
        let object = self
            .layers
            .last()
            .map_or_else(String::new, |leaf| leaf.contents.folder_url());
        ObjectError::damaged(object, problem).into()
    }

    /// Length of the result, as far as `backup.json` tells.
    pub fn size_bytes(&self) -> u64 {
        let all = self
            .layers
            .last()
            .map_or(0, |leaf| leaf.contents.backup.size_bytes);
        let left_out: u64 = self.left_out.values().sum();
        all.saturating_sub(left_out)
    }

    /// Files that are not wanted, and how long they are.
    pub fn left_out(&self) -> &PathList<u64> {
        &self.left_out
    }

    /// Every file of the result, without those that are not wanted.
    pub fn paths(&self) -> impl Iterator<Item = PathBuf> {
        self.result.map().list().iter().map(|(path, _)| path)
    }

    /// Whether a path is that of a file of the result.
    pub fn holds(&self, path: &Path) -> bool {
        self.result.map().contains(path)
    }

    /// The length of every file of the result, as far as the lists tell; without those that are not wanted.
    pub fn sizes(&self) -> impl Iterator<Item = (PathBuf, u64)> {
        let leaf = self.layers.last().map(|leaf| leaf.contents.files());
        self.paths().map(move |path| {
            let listed = leaf.and_then(|files| {
                let facts = files.get(&path).or_else(|| files.get(&delta_name(&path)));
                facts.map(|facts| facts.size_bytes)
            });
            let is_whole = leaf.is_some_and(|files| files.contains(&path));
            let whole = self.relations.size_bytes(&path).filter(|_| !is_whole);
            let size_bytes = whole.or(listed).unwrap_or(0);
            (path, size_bytes)
        })
    }

    /// The parts that hold something of the result, without the last one of the leaf: oldest layer first.
    pub fn tasks(&self) -> Vec<Task<'_>> {
        let mut tasks = Vec::new();
        for (index, layer) in self.layers.iter().enumerate() {
            let is_leaf = index + 1 == self.layers.len();
            let parts = &layer.contents.backup.parts;
            let parts = match parts.split_last() {
                Some((_, parts)) if is_leaf => parts,
                _ => parts,
            };
            let parts = parts.iter().enumerate().filter(|(number, part)| {
                // The first has the directories.
                is_leaf && *number == 0 || !layer.unneeded.contains(&part.name)
            });
            tasks.extend(parts.map(|(_, part)| Task { layer: index, part }));
        }
        tasks
    }

    /// The leaf's last part, with `backup_label` and `pg_control`.
    pub fn last_task(&self) -> Option<Task<'_>> {
        let leaf = self.layers.last()?;
        Some(Task {
            layer: self.layers.len() - 1,
            part: leaf.contents.backup.parts.last()?,
        })
    }

    /// Reads a part and gives `sink` each file of the result whose bottom is there.
    pub fn read<S: Sink>(&self, task: Task, sink: &S) -> Result<(), S::Error> {
        let Some(layer) = self.layers.get(task.layer) else {
            return Ok(());
        };
        let over = MergingSink {
            chain: self,
            index: task.layer,
            sink,
        };
        layer.contents.part(task.part, &over)
    }

    /// The files of the result that are read at random, without those that [`Chain::tasks`] has in the first and the last
    /// part of the leaf; `None` where a backup has no index.
    pub fn files(&self) -> Option<PathList<()>> {
        let (leaf, _) = self.layers.split_last()?;
        let ends = [
            leaf.contents.backup.parts.first(),
            leaf.contents.backup.parts.last(),
        ];
        let mut files = PathList::default();
        for (number, layer) in self.layers.iter().enumerate() {
            for part in &layer.pieces.as_ref()?.index().parts {
                let is_end = std::ptr::eq(layer, leaf)
                    && ends.iter().flatten().any(|end| end.name == part.name);
                let paths = part.files.iter().map(|(path, _)| path);
                let wanted = paths.filter(|path| !is_end && self.bottom_of(path) == Some(number));
                wanted.for_each(|path| files.push(&path, ()));
            }
        }
        Some(files)
    }

    /// The part with the directories, which is streamed whatever the access.
    pub fn first_task(&self) -> Option<Task<'_>> {
        let leaf = self.layers.last()?;
        Some(Task {
            layer: self.layers.len() - 1,
            part: leaf.contents.backup.parts.first()?,
        })
    }

    /// A file of the result, read at random; `None` for one that is not among [`Chain::files`], or came already.
    ///
    /// # Errors
    /// That a part of it cannot be read.
    pub fn file(&self, path: &Path) -> Result<Option<ChainFile<'_>>, Error> {
        let Some(index) = self.result.get(path).map(|layer| *layer as usize) else {
            return Ok(None);
        };
        let layer = self.layers.get(index);
        let Some((layer, pieces)) = layer.and_then(|layer| Some((layer, layer.pieces.as_ref()?)))
        else {
            return Ok(None);
        };
        let (Some(place), Some(bottom)) = (pieces.find(path), pieces.file(path)) else {
            return Ok(None);
        };
        let overlays = self.overlays(path, index);
        let overlays = overlays.map_err(|source| self.unreadable(path, source))?;
        let checksum = layer
            .contents
            .checksum(path)
            .filter(|_| overlays.is_empty());
        let whole = checksum.map(|checksum| Whole::of(checksum, place.xxh128));
        let block_size = self.relations.block_size;
        let content = Merged::new(overlays, bottom, place.size_bytes, block_size);
        Ok(Some(ChainFile {
            header: FileHeader {
                size_bytes: content.size_bytes(),
                mode: place.mode,
                modified: place.modified,
                owner: Owner::default(),
            },
            whole,
            known: known(content.layout(), &pieces.frames_within(path), block_size),
            content,
        }))
    }

    /// The error for a file whose content is not the manifest's.
    pub fn other_content(&self, path: &Path) -> Error {
        self.problem(PartProblem::Content(path.display().to_string()))
    }

    /// Why a file could not be read at random: what is wrong with an object, else with the file itself.
    pub fn unreadable(&self, path: &Path, source: io::Error) -> Error {
        let source = match source.downcast::<PartProblem>() {
            Ok(problem) => return self.problem(problem),
            Err(source) => source,
        };
        let source = match source.downcast::<StoreError>() {
            Ok(error) => return ObjectError::Store(error).into(),
            Err(source) => source,
        };
        match source.downcast::<repository::Error>() {
            Ok(error) => Error::Repository(error),
            Err(_) => self.other_content(path),
        }
    }

    /// A file of the result that did not come.
    pub fn missing(&self) -> Option<Error> {
        let path = self.result.missing()?;
        Some(self.problem(PartProblem::Missing(path.display().to_string())))
    }

    /// Writes the manifest of what was made, in PostgreSQL's form; that of a backup that stands alone is its own.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_manifest(&self, out: &mut dyn Write) -> io::Result<()> {
        let Some(leaf) = self.layers.last() else {
            return Ok(());
        };
        let head = head(leaf.contents.backup);
        if let [only] = self.layers.as_slice() {
            let files = only.contents.files().list().iter();
            return manifest::write(out, head, files.map(|(path, facts)| (path, facts.clone())));
        }
        // They came from several threads.
        let made = lock(&self.made);
        let order = PathOrder::of(&[&*made]);
        let file = |position| Some((made.path(position)?, made.value(position)?.clone()));
        let files = { order.iter() }.filter_map(|(_, position)| file(position));
        manifest::write(out, head, files)
    }

    /// The `INCREMENTAL.*` files of the layers above the bottom, the newest first.
    fn overlays(&self, path: &Path, bottom: usize) -> io::Result<Vec<(Header, PieceReader<'_>)>> {
        let name = delta_name(path);
        let above = self.layers.get(bottom + 1..).unwrap_or_default();
        let mut overlays = Vec::new();
        for layer in above.iter().rev() {
            let reader = layer.pieces.as_ref().and_then(|pieces| pieces.file(&name));
            let Some(mut reader) = reader else {
                let path = path.display().to_string();
                return Err(io::Error::other(PartProblem::NoBottom(path)));
            };
            let Relations {
                block_size,
                blocks_per_file,
                ..
            } = self.relations;
            let header = Header::read(&mut reader, block_size, blocks_per_file);
            let header = header.map_err(|error| match error {
                ReadError::Read(source) => source,
                ReadError::Malformed(_) => {
                    io::Error::other(PartProblem::Content(name.display().to_string()))
                }
            })?;
            overlays.push((header, reader));
        }
        Ok(overlays)
    }

    /// Takes note of what a file of the result was.
    pub fn record_file(&self, path: &Path, header: FileHeader, sum: Sum) {
        let comes = self.result.take(path).is_some();
        // A backup that stands alone has its manifest.
        if !comes || self.layers.len() == 1 {
            return;
        }
        let (size_bytes, checksum) = sum;
        let facts = FileFacts {
            size_bytes,
            modified: header.modified,
            checksum,
        };
        lock(&self.made).push(path, facts);
    }
}

/// A file of the result on its way in.
pub struct ChainFile<'a> {
    /// Its final length, and what its bottom says of it besides.
    pub header: FileHeader,
    /// What tells its content, where one backup alone holds it.
    pub whole: Option<Whole>,
    /// Stretches of which the index tells what they hold: offset, length and digest, ascending.
    pub known: Vec<(u64, u32, BlockDigest)>,
    /// Its content.
    pub content: Merged<PieceReader<'a>, PieceReader<'a>>,
}

/// What tells the content of a file that one backup holds whole.
#[derive(Clone, Debug)]
pub struct Whole {
    /// In the manifest.
    pub checksum: Checksum,
    /// By which a file that is there is known; a CRC alone is too short for that.
    pub identity: Option<Identity>,
}

impl Whole {
    fn of(checksum: Checksum, xxh128: Option<[u8; 16]>) -> Self {
        let identity = match (xxh128, &checksum) {
            (Some(hash), _) => Some(Identity::Xxh128(hash)),
            (None, Checksum::Sha256(hash)) => Some(Identity::Sha256(**hash)),
            (None, Checksum::Crc32c(_)) => None,
        };
        Self { checksum, identity }
    }
}

/// The frames of the bottom that no newer layer changes anything of.
fn known(
    layout: &Layout,
    frames: &[(u64, &Frame)],
    block_size: u32,
) -> Vec<(u64, u32, BlockDigest)> {
    let unit = u64::from(block_size.max(1));
    let mut runs = layout.runs().filter(|run| run.source == Source::Bottom);
    let bytes = |run: Run| {
        let begin = u64::from(run.first_block) * unit;
        begin..(begin + u64::from(run.blocks) * unit)
    };
    let mut run = runs.next().map(bytes);
    let mut known = Vec::new();
    for (at, frame) in frames {
        let end = at + u64::from(frame.content_bytes);
        while run.as_ref().is_some_and(|run| run.end < end) {
            run = runs.next().map(bytes);
        }
        if run.as_ref().is_some_and(|run| run.start <= *at) {
            known.push((*at, frame.content_bytes, frame.digest));
        }
    }
    known
}

/// The newest layer of `older` with the whole file; those above must have blocks of it.
fn bottom(older: &[Layer], path: &Path) -> Option<usize> {
    let name = delta_name(path);
    for (number, layer) in older.iter().enumerate().rev() {
        if layer.contents.checksum(path).is_some() {
            return Some(number);
        }
        layer.contents.checksum(&name)?;
    }
    None
}

/// Lays newer layers over the files of one.
struct MergingSink<'a, S> {
    chain: &'a Chain<'a>,
    index: usize,
    sink: &'a S,
}

impl<S: Sink> Sink for MergingSink<'_, S> {
    type Error = S::Error;

    fn directory(&self, path: &Path, header: FileHeader) -> Result<(), S::Error> {
        // What an older layer had may be gone.
        if self.index + 1 == self.chain.layers.len() {
            self.sink.directory(path, header)
        } else {
            Ok(())
        }
    }

    fn file(
        &self,
        path: &Path,
        header: FileHeader,
        content: &mut Summed,
    ) -> Result<Taken, FileError<S::Error>> {
        if self.chain.bottom_of(path) != Some(self.index) {
            return Ok(Taken::Nothing);
        }
        if self.index + 1 == self.chain.layers.len() {
            if path == Path::new(LABEL) && self.index > 0 {
                return self.label(path, header, content);
            }
            return self.hand_over(path, header, content);
        }
        let overlays = self.chain.overlays(path, self.index);
        let unreadable = |source| FileError::Sink(self.chain.unreadable(path, source).into());
        let overlays = overlays.map_err(unreadable)?;
        // What it is, the part's digest tells.
        let bottom = Streamed(content.unsummed());
        let block_size = self.chain.relations.block_size;
        let mut merged = Merged::new(overlays, bottom, header.size_bytes, block_size);
        let header = FileHeader {
            size_bytes: merged.size_bytes(),
            ..header
        };
        let mut merged = Summed::new(&mut merged, Summing::default());
        self.hand_over(path, header, &mut merged)?;
        Ok(Taken::Nothing)
    }

    fn problem(&self, error: Error) -> Result<(), S::Error> {
        self.sink.problem(error)
    }
}

impl<S: Sink> MergingSink<'_, S> {
    /// Gives the sink a file of the result, and notes what it was.
    fn hand_over(
        &self,
        path: &Path,
        header: FileHeader,
        content: &mut Summed,
    ) -> Result<Taken, FileError<S::Error>> {
        let taken = self.sink.file(path, header, content)?;
        if taken == Taken::Content {
            let sum = content.finish().map_err(FileError::Read)?;
            self.chain.record_file(path, header, sum);
        }
        Ok(taken)
    }

    /// The label of the whole that the delta is part of.
    fn label(
        &self,
        path: &Path,
        header: FileHeader,
        content: &mut Summed,
    ) -> Result<Taken, FileError<S::Error>> {
        let mut text = String::new();
        content.read_to_string(&mut text).map_err(FileError::Read)?;
        let whole = walhalla_postgres::backup_label::of_whole(&text);
        let header = FileHeader {
            size_bytes: whole.len() as u64,
            ..header
        };
        let mut whole = whole.as_bytes();
        let mut whole = Summed::new(&mut whole, Summing::default());
        self.hand_over(path, header, &mut whole)?;
        Ok(Taken::Content)
    }
}

impl Skip for PieceReader<'_> {
    fn skip(&mut self, count: u64) -> io::Result<()> {
        PieceReader::skip(self, count);
        Ok(())
    }
}

/// A content that can only be read on: what is passed over is read too.
struct Streamed<'a>(&'a mut dyn Read);

impl Read for Streamed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Skip for Streamed<'_> {}
