//! Copying backups: parents first, and of each its entry last.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufWriter, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use walhalla_providers::{ErrorKind, PutMode};

use super::order::Place;
use super::sending::{Sending, Sent, broken_off, stored_digest};
use super::{Count, Error};
use crate::contents::index::Index;
use crate::contents::read_index;
use crate::pipeline::{Frame, ObjectWriter, Pipeline};
use crate::repository::entry::StoredPart;
use crate::repository::layout::{BackupObject, Key, Object, RunId};
use crate::repository::leases::Needs;
use crate::repository::{self, BackupEntry, BackupId, Repository};
use crate::threads::{lock, on_threads};

/// How backups are copied.
pub(super) struct BackupCopy<'a> {
    pub(super) sending: Sending<'a>,
    /// Packs them anew.
    pub(super) pipeline: Option<&'a Pipeline>,
    pub(super) threads: usize,
}

impl BackupCopy<'_> {
    /// Copies those of `backups`, each after its parent, that are not among `there`.
    pub(super) fn run(
        &self,
        backups: &[BackupEntry],
        there: &mut BTreeMap<BackupId, BackupEntry>,
    ) -> Result<Count, Error> {
        let mut count = Count::default();
        for backup in backups {
            if let Some(known) = there.get(&backup.id) {
                same(backup, known, self.sending.copy)?;
                count.there += 1;
                continue;
            }
            let parent = backup.parent.as_ref().and_then(|parent| there.get(parent));
            let copied = self.copy(backup, parent)?;
            count.add(copied.stored_bytes);
            tracing::info!("backup {} is copied", backup.id);
            there.insert(copied.id.clone(), copied);
        }
        Ok(count)
    }

    fn copy(
        &self,
        backup: &BackupEntry,
        parent: Option<&BackupEntry>,
    ) -> Result<BackupEntry, Error> {
        let Sending { source, copy, .. } = self.sending;
        let parents = parent.map(|parent| parent.id.clone()).into_iter();
        let needs = Needs {
            makes: Some(backup.id.clone()),
            ..Needs::of("copy", parents.collect(), Vec::new())
        };
        let lease = copy.guard_as(RunId::random(), &needs)?.lease;
        let key = copy.layout().backup_json(&backup.id);
        let (entry, text) = match self.pipeline {
            None => {
                self.as_it_is(backup, parent)?;
                (backup.clone(), source.read_small(&key)?)
            }
            Some(pipeline) => {
                let entry = self.repacked(backup, parent, pipeline)?;
                let text = entry.to_text().map_err(|source| {
                    let unfit = copy.unfit(&key, "it cannot be written", source);
                    Error::Repository(unfit)
                })?;
                (entry, text.into())
            }
        };
        if lease.as_ref().is_some_and(|lease| !lease.has_held()) {
            return Err(Error::LeaseLost);
        }
        match copy.session().put(&key, text, PutMode::Create) {
            Err(error) if error.kind == ErrorKind::AlreadyExists => {}
            put => put?,
        }
        Ok(entry)
    }

    /// Sends the objects of a backup.
    fn as_it_is(&self, backup: &BackupEntry, parent: Option<&BackupEntry>) -> Result<(), Error> {
        let manifest = backup.parent_manifest.as_ref().zip(parent);
        if let Some((known, parent)) = manifest
            && *known != parent.manifest.digest.to_hex()
        {
            return Err(Error::ParentRepacked {
                backup: backup.id.clone(),
                parent: parent.id.clone(),
            });
        }
        let there = lengths(self.sending.copy, &backup.id)?;
        let objects: Vec<&StoredPart> = backup.objects().collect();
        self.each(&objects, |part| {
            let object = self.object(backup, part)?;
            self.send(&object, part, there.get(&part.name).copied())
        })
    }

    /// Sends an object of a backup, of which an earlier run may have left something `there`.
    fn send(&self, object: &Object, part: &StoredPart, there: Option<u64>) -> Result<(), Error> {
        let Sending {
            source,
            copy,
            progress,
        } = self.sending;
        if there.is_some() {
            if stored_digest(copy, &object.key, part.digest.hash())? == part.digest {
                progress.add(part.stored_bytes);
                return Ok(());
            }
            copy.remove(std::slice::from_ref(&object.key))?;
        }
        match self
            .sending
            .as_it_is(object, part.digest.hash(), Place(None))?
        {
            Sent::Now { digest, .. } if digest != part.digest => {
                copy.remove(std::slice::from_ref(&object.key))?;
                Err(Error::NotAsEntered {
                    object: source.url(&object.key),
                })
            }
            Sent::Now { digest, .. } => self.sending.read_back(object, digest),
            Sent::Before => self.sending.read_back(object, part.digest),
            Sent::Stopped => Ok(()),
        }
    }

    /// Sends the content of a backup's objects, packed anew; returns its entry in the copy.
    fn repacked(
        &self,
        backup: &BackupEntry,
        parent: Option<&BackupEntry>,
        pipeline: &Pipeline,
    ) -> Result<BackupEntry, Error> {
        let Sending { source, copy, .. } = self.sending;
        // Packed again, an object may have other bytes.
        let left = copy
            .session()
            .list(&copy.layout().backup_folder(&backup.id), None)?;
        let left: Vec<_> = left.into_iter().map(|info| info.key).collect();
        copy.remove(&left)?;
        let index = match &backup.index {
            Some(_) => Some(read_index(source, backup)?),
            None => None,
        };
        let done: Mutex<HashMap<String, (StoredPart, Vec<Frame>)>> = Mutex::default();
        let parts: Vec<&StoredPart> = backup.parts.iter().collect();
        self.each(&parts, |part| {
            let object = self.object(backup, part)?;
            if let Some(repacked) = self.repack(&object, part, pipeline)? {
                lock(&done).insert(part.name.clone(), repacked);
            }
            Ok(())
        })?;
        let mut done = done.into_inner().unwrap_or_default();
        let mut parts = Vec::new();
        let mut frames = Vec::new();
        for part in &backup.parts {
            let (stored, of_part) = done.remove(&part.name).ok_or(Error::BrokenOff)?;
            parts.push(stored);
            frames.push(of_part);
        }
        let position = |name: &String| backup.parts.iter().position(|part| part.name == *name);
        let catalogs = backup.catalogs.as_ref().and_then(position);
        let list = |list: &StoredPart, pipeline: &Pipeline| -> Result<StoredPart, Error> {
            let object = self.object(backup, list)?;
            let repacked = self.repack(&object, list, pipeline)?;
            repacked.map(|(list, _)| list).ok_or(Error::BrokenOff)
        };
        let relations = backup.relations.as_ref();
        // Anyone may read it.
        let open = pipeline.unencrypted().framed();
        let relations = relations.map(|relations| list(relations, &open));
        let index = index.map(|index| self.index(backup, index, &parts, frames, pipeline));
        let mut entry = BackupEntry {
            parent_manifest: parent.map(|parent| parent.manifest.digest.to_hex()),
            encrypted_to: pipeline.recipients().to_vec(),
            catalogs: catalogs
                .and_then(|position| parts.get(position))
                .map(|part| part.name.clone()),
            manifest: list(&backup.manifest, pipeline)?,
            relations: relations.transpose()?,
            index: index.transpose()?,
            parts,
            ..backup.clone()
        };
        entry.stored_bytes = entry.objects().map(|object| object.stored_bytes).sum();
        Ok(entry)
    }

    /// Sends an object's content, packed anew; `None` where another thread failed.
    fn repack(
        &self,
        object: &Object,
        part: &StoredPart,
        pipeline: &Pipeline,
    ) -> Result<Option<(StoredPart, Vec<Frame>)>, Error> {
        let Sending {
            source,
            copy,
            progress,
        } = self.sending;
        let (target, name) = renamed(copy, object, pipeline)?;
        let mut writer = pipeline.create(&target.key)?;
        let digest = self
            .sending
            .repack(object, part.digest.hash(), &mut writer)?;
        if digest != part.digest {
            writer.discard();
            return Err(Error::NotAsEntered {
                object: source.url(&object.key),
            });
        }
        let sent = self.finish(&target, name, part.size_bytes, writer)?;
        Ok(progress.add(part.stored_bytes).then_some(sent))
    }

    fn finish(
        &self,
        target: &Object,
        name: String,
        size_bytes: u64,
        writer: ObjectWriter,
    ) -> Result<(StoredPart, Vec<Frame>), Error> {
        let stored = writer.finish()?;
        let digest = stored
            .digest
            .expect("objects of Pipeline::create are hashed");
        self.sending.read_back(target, digest)?;
        let part = StoredPart {
            name,
            size_bytes,
            stored_bytes: stored.stored_bytes,
            digest,
        };
        Ok((part, stored.frames))
    }

    /// Writes the index of parts that were packed anew.
    fn index(
        &self,
        backup: &BackupEntry,
        mut index: Index,
        parts: &[StoredPart],
        frames: Vec<Vec<Frame>>,
        pipeline: &Pipeline,
    ) -> Result<StoredPart, Error> {
        let copy = self.sending.copy;
        let new = parts.iter().zip(frames);
        for (indexed, (part, frames)) in index.parts.iter_mut().zip(new) {
            (indexed.name, indexed.frames) = (part.name.clone(), frames);
        }
        let list = BackupObject::Index(pipeline.packing());
        let target = Object {
            key: copy.layout().key(&Key::Backup(backup.id.clone(), list)),
            packing: pipeline.packing(),
        };
        let mut text = BufWriter::new(pipeline.create(&target.key)?);
        let written = index.write(&mut text).map_err(std::io::Error::from);
        written.and_then(|()| text.flush()).map_err(broken_off)?;
        let (writer, _) = text.into_parts();
        let size_bytes = writer.position();
        let (list, _) = self.finish(&target, list.to_string(), size_bytes, writer)?;
        Ok(list)
    }

    fn object(&self, backup: &BackupEntry, part: &StoredPart) -> Result<Object, Error> {
        let layout = self.sending.source.layout();
        let object = layout.backup_object(&backup.id, &part.name);
        Ok(object.map_err(repository::Error::from)?)
    }

    /// Does something with each of some objects, several at a time.
    fn each(
        &self,
        objects: &[&StoredPart],
        work: impl Fn(&StoredPart) -> Result<(), Error> + Sync,
    ) -> Result<(), Error> {
        let next = AtomicUsize::new(0);
        let worker = || {
            while let Some(part) = objects.get(next.fetch_add(1, Ordering::Relaxed)) {
                work(part)?;
            }
            Ok(())
        };
        on_threads(self.threads, self.sending.progress, &worker)
    }
}

/// Where an object of a backup is, and its name, when it is packed by `pipeline`.
fn renamed(
    copy: &Repository,
    object: &Object,
    pipeline: &Pipeline,
) -> Result<(Object, String), Error> {
    let packing = pipeline.packing();
    let layout = copy.layout();
    let Key::Backup(id, known) = layout.parse(&object.key) else {
        let unknown = copy.unknown(
            &object.key,
            "object of a backup",
            "its name is none of this version's",
        );
        return Err(unknown.into());
    };
    let known = match known {
        BackupObject::Entry => BackupObject::Entry,
        BackupObject::Manifest(_) => BackupObject::Manifest(packing),
        BackupObject::Index(_) => BackupObject::Index(packing),
        BackupObject::Relations(_) => BackupObject::Relations(packing),
        BackupObject::Part(number, _) => BackupObject::Part(number, packing),
    };
    let key = layout.key(&Key::Backup(id, known));
    Ok((Object { key, packing }, known.to_string()))
}

/// The lengths of what is in a backup's folder, by names.
fn lengths(copy: &Repository, id: &BackupId) -> Result<HashMap<String, u64>, Error> {
    let found = copy
        .session()
        .list(&copy.layout().backup_folder(id), None)?;
    let named = found.into_iter().filter_map(|info| {
        let (_, name) = copy.layout().in_backup_folder(&info.key)?;
        Some((name.to_owned(), info.size_bytes))
    });
    Ok(named.collect())
}

/// That the copy has the same backup under the id: a name is no proof.
fn same(backup: &BackupEntry, known: &BackupEntry, copy: &Repository) -> Result<(), Error> {
    let told = |entry: &BackupEntry| {
        let times = (entry.start_time, entry.stop_time);
        (entry.timeline, entry.start_lsn, entry.stop_lsn, times)
    };
    if told(backup) == told(known) && backup.files == known.files {
        return Ok(());
    }
    Err(Error::OtherBackup {
        id: backup.id.clone(),
        copy: copy.store_url().to_owned(),
    })
}
