//! The objects of a backup on their way into its folder.

use super::Error;
use super::contents::Owner;
use super::index::{Index, PartIndex};
use super::manifest::{Manifest, WalRange};
use super::newest::Newest;
use super::part::PartWriter;
use super::relations::Relations;
use crate::pipeline::{Pipeline, StoredObject};
use crate::postgres::{SystemIdentifier, Version};
use crate::repository::catalog::{CorruptBlock, StoredPart};
use crate::repository::{BackupId, Repository, layout};

/// Where a backup's objects go.
#[derive(Clone, Copy)]
pub(super) struct Folder<'a> {
    /// The cluster's part of the store.
    pub(super) repository: &'a Repository,
    /// Compresses and encrypts.
    pub(super) pipeline: &'a Pipeline,
    /// The backup.
    pub(super) id: &'a BackupId,
}

/// What went there.
#[derive(Default)]
pub(super) struct Packed {
    /// The files of all parts.
    pub(super) manifest: Manifest,
    /// Blocks that are damaged.
    pub(super) corrupt_blocks: Vec<CorruptBlock>,
    /// The pages that were changed last.
    pub(super) newest: Newest,
    /// Length of the files as they will be restored.
    pub(super) restored_bytes: u64,
    parts: Vec<(usize, StoredPart)>,
    indexed: Vec<(usize, PartIndex)>,
}

impl Folder<'_> {
    /// Begins the part `number`, from 1.
    pub(super) fn part(&self, number: usize, owner: Owner) -> Result<PartWriter, Error> {
        let name = layout::part_name(number, self.pipeline.packing());
        let object = self.repository.layout.backup_object(self.id, &name)?;
        Ok(PartWriter::new(self.pipeline.create(&object.key)?, owner))
    }

    /// Ends a part and takes it into `packed`; `lock` gives that when the part is stored.
    pub(super) fn finish<P: std::ops::DerefMut<Target = Packed>>(
        &self,
        mut part: PartWriter,
        number: usize,
        packed: impl FnOnce() -> P,
    ) -> Result<(), Error> {
        let files = std::mem::take(&mut part.files);
        let places = std::mem::take(&mut part.places);
        let restored_bytes = part.restored_bytes;
        let size_bytes = files.iter().map(|(_, facts)| facts.size_bytes).sum();
        let stored = part.finish()?;
        let mut packed = packed();
        packed.restored_bytes += restored_bytes;
        packed.manifest.files.extend(files);
        let name = layout::part_name(number, self.pipeline.packing());
        let part = stored_part(name.clone(), size_bytes, &stored);
        packed.parts.push((number, part));
        let index = PartIndex {
            name,
            frames: stored.frames,
            files: places,
        };
        packed.indexed.push((number, index));
        Ok(())
    }

    /// Stores the index of the parts.
    pub(super) fn index(&self, packed: &mut Packed) -> Result<StoredPart, Error> {
        let mut parts = std::mem::take(&mut packed.indexed);
        parts.sort_by_key(|(number, _)| *number);
        let index = Index {
            parts: parts.into_iter().map(|(_, part)| part).collect(),
        };
        let name = layout::index_name(self.pipeline.packing());
        self.list(self.pipeline, name, index.to_text().as_bytes())
    }

    /// Stores the manifest.
    pub(super) fn manifest(
        &self,
        manifest: &Manifest,
        version: Version,
        cluster: SystemIdentifier,
        range: WalRange,
    ) -> Result<StoredPart, Error> {
        let name = layout::manifest_name(self.pipeline.packing());
        let text = manifest.to_text(version, cluster, range);
        self.list(self.pipeline, name, text.as_bytes())
    }

    /// Stores the list of relation files, which anyone may read.
    pub(super) fn relations(&self, relations: &Relations) -> Result<StoredPart, Error> {
        let pipeline = self.pipeline.unencrypted().framed();
        let name = layout::relations_name(pipeline.packing());
        self.list(&pipeline, name, &relations.to_json())
    }

    fn list(&self, pipeline: &Pipeline, name: String, content: &[u8]) -> Result<StoredPart, Error> {
        let object = self.repository.layout.backup_object(self.id, &name)?;
        let mut writer = pipeline.create(&object.key)?;
        writer.append(content)?;
        Ok(stored_part(name, content.len() as u64, &writer.finish()?))
    }
}

impl Packed {
    /// Number of the next part, when those before it are done.
    pub(super) fn next_number(&self) -> usize {
        let numbers = self.parts.iter().map(|(number, _)| number + 1);
        numbers.max().unwrap_or(1)
    }

    /// The parts in order.
    pub(super) fn parts(&mut self) -> Vec<StoredPart> {
        self.parts.sort_by_key(|(number, _)| *number);
        self.parts.iter().map(|(_, part)| part.clone()).collect()
    }
}

fn stored_part(name: String, size_bytes: u64, stored: &StoredObject) -> StoredPart {
    StoredPart {
        name,
        size_bytes,
        stored_bytes: stored.stored_bytes,
        sha256: hex::encode(stored.sha256),
    }
}
