//! Where taking and merging a backup end alike.
//!
//! ```text
//! tar parts ─▶ store, several at a time ─▶ index ─▶ relations ─▶ manifest ─▶ entry
//! ```
//!
//! Nothing here makes the backup visible: that is for who writes the entry ([`Repository::commit_backup`]).

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};
use std::mem::take;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use jiff::Timestamp;
use walhalla_postgres::timeline::Ancestor;
use walhalla_postgres::{Limits, Lsn, SegmentSize, SystemIdentifier, Version};
use walhalla_providers::ObjectKey;

use super::Owner;
use super::checksum::Checksum;
use super::index::{FilePlace, Index, PartIndex};
use super::manifest::{self, FileFacts, Head, WalRange};
use super::relations::Relations;
use super::tar_part::{PartWriter, WriteError, failed};
use crate::paths::{PathList, PathOrder};
use crate::pipeline::{Closed, Pipeline, StoredObject};
use crate::repository::entry::{ChangedBlocks, CorruptBlock, FORMAT, LeftOut, StoredPart};
use crate::repository::layout::{BackupObject, Key};
use crate::repository::marks::Permanence;
use crate::repository::{BackupEntry, BackupId, Repository};
use crate::server::data_directory::Tablespace;
use crate::threads::lock;

/// The objects of one backup on their way into its folder.
pub struct Assembly<'a> {
    repository: &'a Repository,
    pipeline: &'a Pipeline,
    id: BackupId,
    stored: Mutex<Stored>,
}

/// What of the backup is in the store.
#[derive(Default)]
struct Stored {
    restored_bytes: u64,
    /// By their numbers, which count from 1.
    parts: BTreeMap<usize, PackedPart>,
    /// Those of which the last bytes are on their way.
    closed: Vec<ClosedPart>,
}

/// A part that is in the store.
struct PackedPart {
    stored: StoredPart,
    index: PartIndex,
    /// The CRC-32C of each file of the index.
    checksums: Vec<u32>,
}

/// A part of which all is written, and not all is in the store yet.
struct ClosedPart {
    number: usize,
    files: PathList<FilePlace>,
    checksums: Vec<u32>,
    restored_bytes: u64,
    object: Closed,
}

impl ClosedPart {
    fn of(mut part: PartWriter, number: usize) -> Result<Self, WriteError> {
        Ok(Self {
            number,
            files: take(&mut part.places),
            checksums: take(&mut part.checksums),
            restored_bytes: part.restored_bytes,
            object: part.close()?,
        })
    }
}

impl PackedPart {
    /// What the manifest says of a file, by its position in the index.
    fn file(&self, position: usize) -> Option<(PathBuf, FileFacts)> {
        let (path, place) = (
            self.index.files.path(position)?,
            self.index.files.value(position)?,
        );
        let facts = FileFacts {
            size_bytes: place.size_bytes,
            modified: place.modified,
            checksum: Checksum::Crc32c(*self.checksums.get(position)?),
        };
        Some((path, facts))
    }
}

/// What a backup is, besides its objects.
#[derive(Clone)]
pub struct Facts {
    /// The cluster.
    pub system_identifier: SystemIdentifier,
    /// Timeline, start and stop.
    pub range: WalRange,
    /// Ancestors of the timeline, oldest first.
    pub history: Vec<Ancestor>,
    /// Of a delta: what it stands on.
    pub base: Option<Base>,
    /// The delta out of whose chain it was made.
    pub merged_from: Option<BackupId>,
    /// Whether a standby was backed up, if that is known.
    pub of_standby: Option<bool>,
    /// Where the record of its checkpoint is, if that is known.
    pub checkpoint_lsn: Option<Lsn>,
    /// Clocks of the server before the start and after the stop.
    pub times: (Timestamp, Timestamp),
    /// Of a standby's backup: when its last transaction ended, and where.
    pub replayed: (Option<Timestamp>, Option<Lsn>),
    /// `txid_current_snapshot()` just before the stop.
    pub stop_snapshot: String,
    /// Major version.
    pub postgres_version: Version,
    /// `server_version`.
    pub server_version: String,
    /// What the server that restores it must not be below.
    pub limits: Option<Limits>,
    /// Length of a WAL segment.
    pub wal_segment_size: SegmentSize,
    /// Length of a WAL page.
    pub wal_block_size: u32,
    /// Whether data pages carry checksums.
    pub data_checksums: bool,
    /// Blocks that were damaged in the data directory.
    pub corrupt_blocks: Vec<CorruptBlock>,
    /// Tablespaces outside the data directory.
    pub tablespaces: Vec<Tablespace>,
    /// What of the data directory is not in the backup.
    pub left_out: Vec<LeftOut>,
    /// Kept by every retention rule.
    pub permanent: bool,
    /// The user's label.
    pub label: Option<String>,
    /// The user's annotations.
    pub annotations: BTreeMap<String, String>,
}

/// What a delta stands on.
#[derive(Clone)]
pub struct Base {
    /// The parent.
    pub parent: BackupId,
    /// The digest of the parent's manifest as it is stored.
    pub parent_manifest: String,
    /// What told which blocks changed since then.
    pub changed_blocks: ChangedBlocks,
}

impl<'a> Assembly<'a> {
    /// A backup of which nothing is stored yet, under an id that was claimed for it.
    pub fn new(repository: &'a Repository, pipeline: &'a Pipeline, id: BackupId) -> Self {
        Self {
            repository,
            pipeline,
            id,
            stored: Mutex::default(),
        }
    }

    /// The backup.
    pub fn id(&self) -> &BackupId {
        &self.id
    }

    /// Begins the part `number`, from 1.
    ///
    /// # Errors
    /// The store's.
    pub fn begin_part(&self, number: usize, owner: Owner) -> Result<PartWriter, WriteError> {
        let part = BackupObject::Part(number, self.pipeline.packing());
        let key = self.key(part);
        Ok(PartWriter::new(self.pipeline.create(&key)?, owner))
    }

    /// Ends the part `number`; after `Ok` it is in the store.
    ///
    /// # Errors
    /// The store's.
    pub fn end_part(&self, part: PartWriter, number: usize) -> Result<(), WriteError> {
        let part = ClosedPart::of(part, number)?;
        self.keep(part)
    }

    /// Ends the part `number`: its last bytes are on their way, and [`Assembly::settle`] or [`Assembly::finish`] waits for
    /// them. Each part that is closed so holds memory until then.
    ///
    /// # Errors
    /// The store's.
    pub fn close_part(&self, part: PartWriter, number: usize) -> Result<(), WriteError> {
        let part = ClosedPart::of(part, number)?;
        lock(&self.stored).closed.push(part);
        Ok(())
    }

    /// Waits until the parts that were closed are in the store.
    ///
    /// # Errors
    /// The store's.
    pub fn settle(&self) -> Result<(), WriteError> {
        let closed = take(&mut lock(&self.stored).closed);
        { closed.into_iter() }.try_for_each(|part| self.keep(part))
    }

    /// Waits until a part is in the store.
    fn keep(&self, part: ClosedPart) -> Result<(), WriteError> {
        let size_bytes = part.files.values().map(|place| place.size_bytes).sum();
        let object = part.object.wait()?;
        let name = BackupObject::Part(part.number, self.pipeline.packing()).to_string();
        let packed = PackedPart {
            stored: stored_part(name.clone(), size_bytes, &object),
            index: PartIndex {
                name,
                frames: object.frames,
                files: part.files,
            },
            checksums: part.checksums,
        };
        let mut stored = lock(&self.stored);
        stored.restored_bytes += part.restored_bytes;
        stored.parts.insert(part.number, packed);
        Ok(())
    }

    /// Number of the next part, when those before it are ended.
    pub fn next_number(&self) -> usize {
        let stored = lock(&self.stored);
        let closed = stored.closed.iter().map(|part| part.number);
        let last = stored.parts.keys().copied().chain(closed).max();
        last.map_or(1, |last| last + 1)
    }

    /// Stores what goes with the parts, and returns the backup's entry, which is not written yet. `relations` says which
    /// files of relations are among its files.
    ///
    /// # Errors
    /// The store's.
    pub fn finish(self, facts: Facts, relations: &Relations) -> Result<BackupEntry, WriteError> {
        let relations = self.store_relations(relations)?;
        self.settle()?;
        let Stored {
            restored_bytes,
            parts,
            ..
        } = take(&mut *lock(&self.stored));
        let parts: Vec<PackedPart> = parts.into_values().collect();
        let manifest = self.store_manifest(&parts, &facts)?;
        let parts = parts.into_iter().map(|part| (part.stored, part.index));
        let (parts, indexes): (Vec<_>, Vec<_>) = parts.unzip();
        let index = Index::of(indexes);
        let files = { index.parts.iter() }.map(|part| part.files.len() as u64);
        let files = files.sum();
        let index = self.store_index(&index)?;
        // Each goes on its way while the next one is written.
        let (relations, manifest, index) =
            (relations.stored()?, manifest.stored()?, index.stored()?);
        let kind = self.id.kind();
        let (parent, parent_manifest, changed_blocks) = match facts.base {
            Some(base) => (
                Some(base.parent),
                Some(base.parent_manifest),
                Some(base.changed_blocks),
            ),
            None => (None, None, None),
        };
        let mut entry = BackupEntry {
            format: FORMAT,
            id: self.id,
            kind,
            parent,
            parent_manifest,
            system_identifier: facts.system_identifier,
            timeline: facts.range.timeline,
            history: facts.history,
            start_lsn: facts.range.start,
            stop_lsn: facts.range.end,
            of_standby: facts.of_standby,
            checkpoint_lsn: facts.checkpoint_lsn,
            start_time: facts.times.0,
            stop_time: facts.times.1,
            replayed_time: facts.replayed.0,
            replayed_lsn: facts.replayed.1,
            stop_snapshot: facts.stop_snapshot,
            postgres_version: facts.postgres_version,
            server_version: facts.server_version,
            limits: facts.limits,
            wal_segment_size: facts.wal_segment_size,
            wal_block_size: facts.wal_block_size,
            data_checksums: facts.data_checksums,
            corrupt_blocks: facts.corrupt_blocks,
            size_bytes: restored_bytes,
            files,
            stored_bytes: 0,
            tablespaces: facts.tablespaces,
            left_out: facts.left_out,
            encrypted_to: self.pipeline.recipients().to_vec(),
            catalogs: parts.first().map(|part| part.name.clone()),
            parts,
            manifest,
            relations: Some(relations),
            index: Some(index),
            changed_blocks,
            merged_from: facts.merged_from,
            permanent: facts.permanent,
            label: facts.label,
            annotations: facts.annotations,
            walhalla_version: crate::VERSION.to_owned(),
        };
        entry.stored_bytes = entry.objects().map(|object| object.stored_bytes).sum();
        Ok(entry)
    }

    fn key(&self, object: BackupObject) -> ObjectKey {
        let key = Key::Backup(self.id.clone(), object);
        self.repository.layout().key(&key)
    }

    fn store_index(&self, index: &Index) -> Result<List, WriteError> {
        let list = BackupObject::Index(self.pipeline.packing());
        self.store_list(self.pipeline, list, |text| Ok(index.write(text)?))
    }

    fn store_manifest(&self, parts: &[PackedPart], facts: &Facts) -> Result<List, WriteError> {
        let list = BackupObject::Manifest(self.pipeline.packing());
        let head = Head {
            version: facts.postgres_version,
            cluster: facts.system_identifier,
            wal: facts.range,
        };
        let lists: Vec<_> = parts.iter().map(|part| &part.index.files).collect();
        let order = PathOrder::of(&lists);
        let files = { order.iter() }.filter_map(|(part, file)| parts.get(part)?.file(file));
        self.store_list(self.pipeline, list, |text| {
            manifest::write(text, head, files)
        })
    }

    /// Anyone may read it.
    fn store_relations(&self, relations: &Relations) -> Result<List, WriteError> {
        let pipeline = self.pipeline.unencrypted().framed();
        let list = BackupObject::Relations(pipeline.packing());
        self.store_list(&pipeline, list, |text| relations.write(text))
    }

    /// Sends what `write` writes to the store, as it is written.
    fn store_list(
        &self,
        pipeline: &Pipeline,
        list: BackupObject,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<List, WriteError> {
        let name = list.to_string();
        let broken_off = |error| failed(Path::new(&name), error);
        let mut text = BufWriter::new(pipeline.create(&self.key(list))?);
        write(&mut text).map_err(broken_off)?;
        let object = text
            .into_inner()
            .map_err(|error| broken_off(error.into_error()))?;
        let size_bytes = object.position();
        let object = object.close()?;
        Ok(List {
            name,
            size_bytes,
            object,
        })
    }
}

/// A list that is on its way to the store.
struct List {
    name: String,
    size_bytes: u64,
    object: Closed,
}

impl List {
    /// Waits until it is there.
    fn stored(self) -> Result<StoredPart, WriteError> {
        Ok(stored_part(
            self.name,
            self.size_bytes,
            &self.object.wait()?,
        ))
    }
}

impl Facts {
    /// What a full backup is that stands for the same as `leaf`, the last of a chain.
    pub fn merged_from(leaf: &BackupEntry, permanence: Permanence) -> Self {
        Self {
            system_identifier: leaf.system_identifier,
            range: WalRange {
                timeline: leaf.timeline,
                start: leaf.start_lsn,
                end: leaf.stop_lsn,
            },
            history: leaf.history.clone(),
            base: None,
            merged_from: Some(leaf.id.clone()),
            of_standby: leaf.of_standby,
            checkpoint_lsn: leaf.checkpoint_lsn,
            times: (leaf.start_time, leaf.stop_time),
            replayed: (leaf.replayed_time, leaf.replayed_lsn),
            stop_snapshot: leaf.stop_snapshot.clone(),
            postgres_version: leaf.postgres_version,
            server_version: leaf.server_version.clone(),
            limits: leaf.limits,
            wal_segment_size: leaf.wal_segment_size,
            wal_block_size: leaf.wal_block_size,
            data_checksums: leaf.data_checksums,
            corrupt_blocks: leaf.corrupt_blocks.clone(),
            tablespaces: leaf.tablespaces.clone(),
            left_out: leaf.left_out.clone(),
            permanent: permanence == Permanence::Permanent,
            label: leaf.label.clone(),
            annotations: leaf.annotations.clone(),
        }
    }
}

fn stored_part(name: String, size_bytes: u64, stored: &StoredObject) -> StoredPart {
    StoredPart {
        name,
        size_bytes,
        stored_bytes: stored.stored_bytes,
        digest: stored
            .digest
            .expect("objects of Pipeline::create are hashed"),
    }
}
