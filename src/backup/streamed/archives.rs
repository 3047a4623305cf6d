//! From the tar archives that a server sends to the parts of a backup.

use std::borrow::Cow;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use bytes::{Buf as _, Bytes};
use tar::{Archive, EntryType};
use walhalla_postgres::catalogs::{Catalogs, is_map};
use walhalla_postgres::page::PageState;
use walhalla_postgres::{RelationFile, Version, control};
use walhalla_providers::transfer::Rate;

use super::super::extent::{self, Changed, Extent, Item};
use super::super::newest::Newest;
use super::super::pack::PageRules;
use super::super::parent::Unusable;
use super::super::parts::PART_SIZE_BYTES;
use super::basis::Basis;
use super::{Begun, ReplicatedServer};
use crate::backup::Error;
use crate::backup::request::Backup;
use crate::contents::Owner;
use crate::contents::assembly::Assembly;
use crate::contents::checksum::FileSums;
use crate::contents::delta_file::{Header, delta_name, is_taken_for_delta, whole_name};
use crate::contents::relations::{Relations, is_kept};
use crate::contents::tar_part::{PartWriter, failed};
use crate::paths::PathList;
use crate::progress::Progress;
use crate::repository::BackupId;
use crate::repository::entry::{CorruptBlock, LeftOut};
use crate::server;
use crate::server::data_directory::{Entry, Tablespace, is_data, is_left_out};
use crate::server::replication::base_backup::Piece;

/// `MAX_RATE_LOWER` and `MAX_RATE_UPPER` (basebackup.h), in kB/s.
const RATES: std::ops::RangeInclusive<u64> = 32..=1_048_576;
/// Longest file that is kept in memory: `tablespace_map` has a line for each tablespace.
const MOST_KEPT_BYTES: u64 = 16 << 20;

/// What the server sent, besides what is in the parts.
pub(super) struct Streamed {
    /// `backup_label`
    pub(super) label: String,
    /// `tablespace_map`; empty where there is none.
    pub(super) tablespace_map: String,
    /// `global/pg_control`
    pub(super) pg_control: Vec<u8>,
    /// Whose the data directory's files are.
    pub(super) owner: Owner,
    /// The files of relations.
    pub(super) relations: Relations,
    /// What the server left out.
    pub(super) left_out: Vec<LeftOut>,
    /// Blocks that are damaged.
    pub(super) corrupt_blocks: Vec<CorruptBlock>,
    /// The pages that were changed last.
    pub(super) newest: Newest,
}

fn place_of(tablespace: &Tablespace) -> PathBuf {
    Path::new("pg_tblspc").join(tablespace.oid.to_string())
}

/// What the server is asked for: its unit, and its bounds.
pub(super) fn kilobytes_a_second(rate: Rate) -> u32 {
    let kilobytes = rate.bytes_a_second() >> 10;
    let kilobytes = kilobytes.clamp(*RATES.start(), *RATES.end());
    u32::try_from(kilobytes).expect("it is below the upper bound")
}

impl Backup<'_> {
    /// Packs all that the server sends.
    pub(super) fn receive(
        &self,
        source: &mut ReplicatedServer,
        begun: &Begun,
    ) -> Result<Streamed, Error> {
        let total = begun.server.size_bytes.unwrap_or_default();
        let progress = Progress::new(self.options.show, "backing up", total);
        let own = Relations {
            block_size: self.control.block_size_bytes,
            blocks_per_file: self.control.blocks_per_file,
            ..Relations::default()
        };
        let kept = match &begun.basis {
            Basis::Full | Basis::Sent(_) => None,
            Basis::Kept(delta, changes) => {
                Some((&delta.parent, Changed::Blocks(Cow::Borrowed(changes))))
            }
        };
        let base =
            { kept.as_ref() }.map(|(parent, changed)| extent::Base::new(parent, &own, changed));
        let mut pieces = Pieces {
            next: || self.wait(source.connection.next_piece(self.control.version)),
            progress: &progress,
            data: Bytes::new(),
            state: State::Between,
            left_out: Vec::new(),
            failure: None,
        };
        let mut packer = Packer {
            assembly: &begun.assembly,
            sent: match &begun.basis {
                Basis::Full => Sent::All,
                Basis::Sent(delta) => Sent::Changes(&delta.parent.entry.id),
                Basis::Kept(delta, _) => Sent::AllForDelta(&delta.parent.entry.id),
            },
            version: self.control.version,
            rules: PageRules::new(self.control, begun.server.start),
            base: base.as_ref(),
            catalogs: Catalogs::default(),
            names: None,
            whole: None,
            blocks: None,
            numbers: 1,
            files: PathList::default(),
            seen: Seen::default(),
        };
        let mut tablespaces = begun.server.tablespaces.iter();
        while pieces.next_archive()? {
            let tablespace = tablespaces.next();
            let place = tablespace.map(place_of).unwrap_or_default();
            let outcome = packer.archive(&mut pieces, &place);
            if let Some(failure) = pieces.failure.take() {
                return Err(failure);
            }
            // The server sends at least the folder of its version, and nothing where that is gone
            // (basebackup.c, `sendTablespace`).
            if outcome? == 0
                && let Some(Tablespace { oid, location }) = tablespace
            {
                return Err(server::Error::NoTablespace {
                    oid: *oid,
                    link: place,
                    location: location.clone(),
                }
                .into());
            }
        }
        progress.finish();
        packer.finish(&own, pieces.left_out)
    }
}

/// What the server sends, an archive after the other.
struct Pieces<'a, N> {
    next: N,
    progress: &'a Progress,
    data: Bytes,
    state: State,
    left_out: Vec<LeftOut>,
    /// Why there is no more.
    failure: Option<Error>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The next piece begins an archive.
    Between,
    /// In an archive.
    Within,
    /// An archive has ended, and the next one has begun.
    Begun,
    /// All have ended.
    Ended,
}

impl<N: FnMut() -> Result<Piece, Error>> Pieces<'_, N> {
    /// Goes to the next archive; `false` after the last one.
    fn next_archive(&mut self) -> Result<bool, Error> {
        loop {
            match self.state {
                State::Ended => return Ok(false),
                State::Begun => {
                    self.state = State::Within;
                    return Ok(true);
                }
                // What follows the end of an archive in it means nothing.
                State::Between | State::Within => self.take()?,
            }
        }
    }

    fn take(&mut self) -> Result<(), Error> {
        match (self.next)()? {
            Piece::Archive => {
                self.state = State::Begun;
                self.data = Bytes::new();
            }
            Piece::Data(data) => {
                if !self.progress.add(data.len() as u64) {
                    return Err(Error::BrokenOff);
                }
                self.data = data;
            }
            Piece::End => self.state = State::Ended,
            // It is the cluster's own data, in the data directory or in a tablespace.
            Piece::LeftOut(path) if path.is_absolute() || is_data(&path) => {
                return Err(Error::NotSent(path));
            }
            Piece::LeftOut(path) => {
                let left_out = LeftOut {
                    path: path.to_string_lossy().into_owned(),
                    link_to: None,
                };
                tracing::warn!(
                    "{left_out}: it is neither file nor directory and is left out, as PostgreSQL does"
                );
                self.left_out.push(left_out);
            }
        }
        Ok(())
    }
}

impl<N: FnMut() -> Result<Piece, Error>> Read for Pieces<'_, N> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.data.is_empty() && self.state == State::Within {
            if let Err(error) = self.take() {
                self.failure = Some(error);
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
        }
        let count = self.data.len().min(buffer.len());
        self.data
            .copy_to_slice(buffer.get_mut(..count).unwrap_or_default());
        Ok(count)
    }
}

/// What is found on the way.
#[derive(Default)]
struct Seen {
    label: Option<String>,
    tablespace_map: String,
    pg_control: Option<(Vec<u8>, Owner)>,
    databases: Vec<(String, i64)>,
    corrupt_blocks: Vec<CorruptBlock>,
    newest: Newest,
}

/// What the server sends, and the parent of a delta.
#[derive(Clone, Copy)]
enum Sent<'a> {
    All,
    Changes(&'a BackupId),
    AllForDelta(&'a BackupId),
}

struct Packer<'a> {
    assembly: &'a Assembly<'a>,
    sent: Sent<'a>,
    version: Version,
    rules: PageRules,
    /// What a delta of which this host keeps the changed blocks stands on.
    base: Option<&'a extent::Base<'a>>,
    catalogs: Catalogs,
    /// The first part: the directories, and what gives names to relations.
    names: Option<Open>,
    /// A part of whole files.
    whole: Option<Open>,
    /// A part of blocks of files.
    blocks: Option<Open>,
    /// The number of the next part.
    numbers: usize,
    files: PathList<u32>,
    seen: Seen,
}

/// A part that more may be put into.
struct Open {
    number: usize,
    part: PartWriter,
    size_bytes: u64,
}

/// Which part a file goes into.
#[derive(Clone, Copy)]
enum Into {
    Names,
    Whole,
    Blocks,
}

impl Packer<'_> {
    /// Packs an archive, whose files are below `place` in the data directory; returns how many entries it has.
    fn archive(&mut self, archive: &mut dyn Read, place: &Path) -> Result<u64, Error> {
        let mut archive = Archive::new(archive);
        let mut entries = 0;
        for entry in archive.entries().map_err(Error::SentArchive)? {
            let mut entry = entry.map_err(Error::SentArchive)?;
            entries += 1;
            let path = place.join(entry.path().map_err(Error::SentArchive)?);
            if !is_inside(&path) {
                let strange = format!("it names {}", path.display());
                return Err(Error::SentArchive(io::Error::other(strange)));
            }
            let header = entry.header();
            let number = |field: io::Result<u64>| {
                let number = field.map_err(Error::SentArchive)?;
                Ok::<_, Error>(u32::try_from(number).unwrap_or_default())
            };
            let owner = Owner {
                user: number(header.uid())?,
                group: number(header.gid())?,
            };
            let file = Entry {
                relation: RelationFile::of_path(&path),
                size_bytes: header.size().map_err(Error::SentArchive)?,
                mode: header.mode().map_err(Error::SentArchive)? & 0o7777,
                modified: i64::try_from(header.mtime().map_err(Error::SentArchive)?)
                    .unwrap_or_default(),
                path,
            };
            match header.entry_type() {
                EntryType::Directory => self.directory(&file, owner)?,
                EntryType::Regular => self.file(file, owner, &mut entry)?,
                // Links to tablespaces, which the list of them tells.
                _ => {}
            }
        }
        Ok(entries)
    }

    fn directory(&mut self, directory: &Entry, owner: Owner) -> Result<(), Error> {
        if is_left_out(&directory.path, self.version) {
            return Ok(());
        }
        let part = self.open(Into::Names, 0, owner)?;
        Ok(part.part.directory(directory)?)
    }

    fn file(&mut self, file: Entry, owner: Owner, content: &mut dyn Read) -> Result<(), Error> {
        let name = file.path.to_str().unwrap_or_default();
        match name {
            "backup_label" => self.seen.label = Some(text(&file, content)?),
            "tablespace_map" => self.seen.tablespace_map = text(&file, content)?,
            control::PATH => self.seen.pg_control = Some((bytes(&file, content)?, owner)),
            _ if is_left_out(&file.path, self.version) => {}
            _ if is_map(&file.path) => {
                let map = bytes(&file, content)?;
                self.catalogs.map(&file.path, &map);
                self.whole(&file, owner, &mut map.as_slice(), Into::Names)?;
            }
            _ if self.catalogs.of(&file.path).is_some() => {
                self.whole(&file, owner, content, Into::Names)?;
            }
            _ => self.some_or_all(file, owner, content)?,
        }
        Ok(())
    }

    /// A file of which the server may have sent the changed blocks, or of which only they are kept.
    fn some_or_all(
        &mut self,
        file: Entry,
        owner: Owner,
        content: &mut dyn Read,
    ) -> Result<(), Error> {
        // A name that changed blocks have is one like others in a full backup, and is in no delta's way but its own.
        match (self.sent, whole_name(&file.path)) {
            (Sent::Changes(_), Some(whole)) => {
                return self.changed(&file, &whole, owner, content);
            }
            (Sent::Changes(parent) | Sent::AllForDelta(parent), _)
                if is_taken_for_delta(&file.path) =>
            {
                return Err(Error::Parent {
                    id: parent.clone(),
                    reason: Unusable::Named(file.path),
                });
            }
            _ => {}
        }
        let item = Item::of(file, self.base);
        match &item.extent {
            Extent::Blocks { runs, length } => {
                self.kept(&item.entry, runs, *length, owner, content)
            }
            Extent::Whole | Extent::Newer { .. } => {
                self.whole(&item.entry, owner, content, Into::Whole)
            }
        }
    }

    fn whole(
        &mut self,
        file: &Entry,
        owner: Owner,
        content: &mut dyn Read,
        into: Into,
    ) -> Result<(), Error> {
        self.note(file, file.size_bytes);
        let rules = self.rules;
        let part = self.open(into, file.size_bytes, owner)?;
        part.begin(&file.path, file.size_bytes, file)?;
        let mut check = Check::of(file.relation, rules, &file.path);
        let mut sums = FileSums::default();
        pass(
            part,
            content,
            0..file.size_bytes,
            &mut check,
            &mut sums,
            |block| block,
        )?;
        part.end(&sums, file.size_bytes)?;
        self.checked(check);
        Ok(())
    }

    /// Keeps blocks of a file of which all comes.
    fn kept(
        &mut self,
        file: &Entry,
        runs: &[Range<u32>],
        length: u32,
        owner: Owner,
        content: &mut dyn Read,
    ) -> Result<(), Error> {
        self.note(file, file.size_bytes);
        let header = Header {
            truncation_block_length: length,
            blocks: runs.iter().cloned().flatten().collect(),
        };
        let rules = self.rules;
        let page = rules.block_size_bytes as u64;
        let part = self.begin_blocks(file, &header, owner)?;
        let mut check = Check::of(file.relation, rules, &file.path);
        let mut sums = sums_of(&header, rules);
        let mut at = 0;
        for run in runs {
            skip(content, (u64::from(run.start) - at) * page)?;
            let blocks = u64::from(run.start) * page..u64::from(run.end) * page;
            pass(part, content, blocks, &mut check, &mut sums, |block| block)?;
            at = u64::from(run.end);
        }
        skip(content, u64::from(length) * page - at * page)?;
        part.end(&sums, u64::from(length) * page)?;
        self.checked(check);
        Ok(())
    }

    /// Takes a file of changed blocks as the server sent it.
    fn changed(
        &mut self,
        file: &Entry,
        whole: &Path,
        owner: Owner,
        content: &mut dyn Read,
    ) -> Result<(), Error> {
        let rules = self.rules;
        let page = rules.block_size_bytes as u64;
        let header = Header::read(content, block_size(rules), rules.blocks_per_file)
            .map_err(|error| Error::SentArchive(io::Error::other(error)))?;
        let file = Entry {
            path: whole.to_owned(),
            relation: RelationFile::of_path(whole),
            ..*file
        };
        let result_bytes = u64::from(header.result_blocks()) * page;
        self.note(&file, result_bytes);
        let part = self.begin_blocks(&file, &header, owner)?;
        let mut check = Check::of(file.relation, rules, &file.path);
        let mut sums = sums_of(&header, rules);
        let bytes = 0..header.blocks.len() as u64 * page;
        let number = |index: u32| {
            let index = usize::try_from(index).unwrap_or(usize::MAX);
            header.blocks.get(index).copied().unwrap_or_default()
        };
        pass(part, content, bytes, &mut check, &mut sums, number)?;
        part.end(&sums, result_bytes)?;
        self.checked(check);
        Ok(())
    }

    fn begin_blocks(
        &mut self,
        file: &Entry,
        header: &Header,
        owner: Owner,
    ) -> Result<&mut Open, Error> {
        let block_size = block_size(self.rules);
        let size_bytes = header.file_bytes(block_size);
        let part = self.open(Into::Blocks, size_bytes, owner)?;
        part.begin(&delta_name(&file.path), size_bytes, file)?;
        part.part.object().append(&header.to_bytes(block_size))?;
        Ok(part)
    }

    /// Takes note of a file that will have this length.
    fn note(&mut self, file: &Entry, size_bytes: u64) {
        let Some(name) = file.path.to_str() else {
            return;
        };
        if let Some(folder) = name.strip_suffix("/PG_VERSION") {
            self.seen.databases.push((folder.to_owned(), file.modified));
        }
        if file.relation.is_some_and(is_kept) {
            let blocks = size_bytes / u64::from(block_size(self.rules).max(1));
            let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
            self.files.push(&file.path, blocks);
        }
    }

    fn checked(&mut self, check: Check) {
        self.seen.corrupt_blocks.extend(check.corrupt_blocks);
        self.seen.newest.append(check.newest);
    }

    /// The part for what comes next, so long: one that has room for it.
    fn open(&mut self, into: Into, size_bytes: u64, owner: Owner) -> Result<&mut Open, Error> {
        let place = match into {
            Into::Names => &mut self.names,
            Into::Whole => &mut self.whole,
            Into::Blocks => &mut self.blocks,
        };
        let is_full = |open: &Open| {
            open.size_bytes > 0 && open.size_bytes.saturating_add(size_bytes) > PART_SIZE_BYTES
        };
        let may_be_full = !matches!(into, Into::Names);
        if let Some(full) = place.take_if(|open| may_be_full && is_full(open)) {
            // One part at a time may be on its way without more being put into it.
            self.assembly.settle()?;
            self.assembly.close_part(full.part, full.number)?;
        }
        if place.is_none() {
            // The first part has the catalogs, whichever file comes first.
            let number = match into {
                Into::Names => 1,
                Into::Whole | Into::Blocks => {
                    self.numbers += 1;
                    self.numbers
                }
            };
            *place = Some(Open {
                number,
                part: self.assembly.begin_part(number, owner)?,
                size_bytes: 0,
            });
        }
        let open = place.as_mut().expect("it was opened");
        open.size_bytes += size_bytes;
        open.part.owner = owner;
        Ok(open)
    }

    fn finish(self, own: &Relations, left_out: Vec<LeftOut>) -> Result<Streamed, Error> {
        let parts = [self.names, self.whole, self.blocks];
        for open in parts.into_iter().flatten() {
            self.assembly.close_part(open.part, open.number)?;
        }
        let (pg_control, owner) = self
            .seen
            .pg_control
            .ok_or(Error::SentWithout(control::PATH))?;
        Ok(Streamed {
            label: self.seen.label.ok_or(Error::SentWithout("backup_label"))?,
            tablespace_map: self.seen.tablespace_map,
            pg_control,
            owner,
            relations: Relations {
                databases: self.seen.databases.into_iter().collect(),
                files: self.files.into_map().map_err(|path| {
                    let twice = format!("it has {} twice", path.display());
                    Error::SentArchive(io::Error::other(twice))
                })?,
                ..own.clone()
            },
            left_out,
            corrupt_blocks: self.seen.corrupt_blocks,
            newest: self.seen.newest,
        })
    }
}

impl Open {
    fn begin(&mut self, path: &Path, size_bytes: u64, file: &Entry) -> Result<(), Error> {
        Ok(self
            .part
            .begin(path, size_bytes, file.mode, file.modified)?)
    }

    fn end(&mut self, sums: &FileSums, restored_bytes: u64) -> Result<(), Error> {
        self.part.end(sums)?;
        self.part.restored_bytes += restored_bytes;
        Ok(())
    }
}

/// Checks pages as they pass. A page that was torn by a write cannot be read again here: the server does so itself before it
/// sends one, from 11 on.
struct Check<'a> {
    rules: PageRules,
    path: &'a Path,
    first_block: Option<u32>,
    corrupt_blocks: Vec<CorruptBlock>,
    newest: Newest,
}

impl<'a> Check<'a> {
    fn of(relation: Option<RelationFile>, rules: PageRules, path: &'a Path) -> Self {
        Self {
            rules,
            path,
            first_block: relation.map(|file| file.segment.wrapping_mul(rules.blocks_per_file)),
            corrupt_blocks: Vec::new(),
            newest: Newest::default(),
        }
    }

    /// A page, which is block `block` of its file.
    fn page(&mut self, page: &[u8], block: u32) {
        let Some(first_block) = self.first_block else {
            return;
        };
        let number = first_block.wrapping_add(block);
        match self.rules.judge.state(page, number) {
            PageState::Sound => {}
            PageState::Changed { lsn, .. } => self.newest.note(lsn, self.path, block),
            PageState::Damaged => self.corrupt_blocks.push(CorruptBlock {
                file: self.path.display().to_string(),
                block,
            }),
        }
    }
}

/// Passes bytes of a file on, which are at these places of what comes or, of changed blocks, of what follows the header.
/// `number` tells which block of the file a page is.
fn pass(
    open: &mut Open,
    content: &mut dyn Read,
    bytes: Range<u64>,
    check: &mut Check,
    sums: &mut FileSums,
    number: impl Fn(u32) -> u32,
) -> Result<(), Error> {
    let page = check.rules.block_size_bytes;
    let object = open.part.object();
    let mut at = bytes.start;
    while at < bytes.end {
        let broken = |error| Error::from(failed(check.path, error));
        object.reserve(page).map_err(broken)?;
        let room = object.room().map_err(broken)?;
        let whole_pages = room.len() / page * page;
        let count = whole_pages.min(usize::try_from(bytes.end - at).unwrap_or(usize::MAX));
        let chunk = room.get_mut(..count).unwrap_or_default();
        content.read_exact(chunk).map_err(Error::SentArchive)?;
        sums.update(chunk);
        let first = u32::try_from(at / page as u64).unwrap_or(u32::MAX);
        for (index, page) in (first..).zip(chunk.chunks_exact(page)) {
            check.page(page, number(index));
        }
        object.fill(count);
        at += count as u64;
    }
    Ok(())
}

fn sums_of(header: &Header, rules: PageRules) -> FileSums {
    let mut sums = FileSums::default();
    sums.update(&header.to_bytes(block_size(rules)));
    sums
}

fn block_size(rules: PageRules) -> u32 {
    u32::try_from(rules.block_size_bytes).expect("it was a number of 32 bits")
}

fn skip(content: &mut dyn Read, bytes: u64) -> Result<(), Error> {
    let skipped = io::copy(&mut content.take(bytes), &mut io::sink());
    match skipped.map_err(Error::SentArchive)? {
        skipped if skipped == bytes => Ok(()),
        _ => Err(Error::SentArchive(io::ErrorKind::UnexpectedEof.into())),
    }
}

fn bytes(file: &Entry, content: &mut dyn Read) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let mut content = content.take(MOST_KEPT_BYTES);
    content
        .read_to_end(&mut bytes)
        .map_err(Error::SentArchive)?;
    if bytes.len() as u64 == file.size_bytes {
        Ok(bytes)
    } else {
        let strange = format!("{} is of a strange length", file.path.display());
        Err(Error::SentArchive(io::Error::other(strange)))
    }
}

fn text(file: &Entry, content: &mut dyn Read) -> Result<String, Error> {
    let bytes = bytes(file, content)?;
    String::from_utf8(bytes).map_err(|error| Error::SentArchive(io::Error::other(error)))
}

/// Whether a path leads nowhere else than into the data directory.
fn is_inside(path: &Path) -> bool {
    let mut parts = path.components();
    parts.all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_leads_out_of_the_data_directory_is_known() {
        assert!(is_inside(Path::new("base/5/16384")));
        assert!(!is_inside(Path::new("/etc/passwd")));
        assert!(!is_inside(Path::new("base/../../x")));
    }

    #[test]
    fn the_server_is_asked_for_a_rate_that_it_takes() {
        let asked = |bytes| kilobytes_a_second(Rate::new(bytes).unwrap());
        assert_eq!(asked(1 << 10), 32);
        assert_eq!(asked(50 << 20), 50 << 10);
        assert_eq!(asked(1 << 40), 1_048_576);
    }
}
