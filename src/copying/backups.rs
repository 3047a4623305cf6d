//! Copying backups: parents first, and of each its entry last.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{BufWriter, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use walhalla_providers::{ErrorKind, ObjectKey, PutMode};

use super::order::Place;
use super::sending::{Sending, Sent, broken_off};
use super::{Count, Error};
use crate::contents::index::Index;
use crate::contents::read_index;
use crate::output;
use crate::pipeline::{self, Frame, ObjectWriter, Pipeline};
use crate::repository::entry::{FORMAT, StoredPart};
use crate::repository::layout::{BackupObject, Key, Object, RunId};
use crate::repository::leases::{Lease, Needs};
use crate::repository::{self, BackupEntry, BackupId, Repository};
use crate::threads::{lock, on_threads};

/// How backups are copied.
#[derive(Clone, Copy)]
pub(super) struct BackupCopy<'a> {
    pub(super) sending: Sending<'a>,
    pub(super) threads: usize,
    /// Backups of which something was said later in the source than in the copy.
    pub(super) unmarked: &'a BTreeSet<BackupId>,
    /// Which must hold when a backup comes to exist.
    pub(super) leases: &'a [Lease],
}

impl BackupCopy<'_> {
    /// Copies those of `backups`, each after its parent, that are not among `there`. A damaged one is told, and left out with
    /// those that stand on it.
    pub(super) fn run(
        &self,
        backups: &[BackupEntry],
        there: &mut BTreeMap<BackupId, BackupEntry>,
    ) -> Result<Count, Error> {
        let mut count = Count::default();
        let mut left_out: BTreeSet<&BackupId> = BTreeSet::new();
        for backup in backups {
            if backup
                .parent
                .as_ref()
                .is_some_and(|parent| left_out.contains(parent))
            {
                tracing::error!("backup {} is not copied, as its parent is not", backup.id);
                left_out.insert(&backup.id);
                count.left_out += 1;
                continue;
            }
            if let Some(known) = there.get(&backup.id) {
                same(backup, known, self.sending.copy)?;
                self.mark(&backup.id)?;
                count.there += 1;
                continue;
            }
            let parent = backup.parent.as_ref().and_then(|parent| there.get(parent));
            // What stops one does not stop the others.
            let progress = self.sending.progress.anew();
            let sending = Sending {
                progress: &progress,
                ..self.sending
            };
            match (BackupCopy { sending, ..*self }).copy(backup, parent) {
                Ok(copied) => {
                    count.add(copied.stored_bytes);
                    tracing::info!("backup {} is copied", backup.id);
                    there.insert(copied.id.clone(), copied);
                }
                Err(error) if error.is_of_the_source() => {
                    tracing::error!(
                        "backup {} is not copied: {}",
                        backup.id,
                        output::chain(&error)
                    );
                    left_out.insert(&backup.id);
                    count.left_out += 1;
                }
                Err(error) => return Err(error),
            }
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
        let run = RunId::random();
        let lease = copy.guard_as(run, &needs)?.lease;
        if let Some(known) = self.made_meanwhile(backup)? {
            return Ok(known);
        }
        let key = copy.layout().backup_json(&backup.id);
        let (entry, text) = match self.sending.pipeline {
            None => {
                self.as_it_is(backup, parent, run)?;
                let text = source.read_small(&key)?;
                let entry = BackupEntry::parse(&text).map_err(|source| {
                    copy.unfit(
                        &key,
                        "it is no backup entry that this version reads",
                        source,
                    )
                })?;
                (entry, text)
            }
            Some(pipeline) => {
                self.clear(&backup.id, run)?;
                let entry = self.repacked(backup, parent, pipeline)?;
                let text = entry
                    .to_text()
                    .map_err(|source| copy.unfit(&key, "it cannot be written", source))?;
                (entry, text.into())
            }
        };
        self.mark(&backup.id)?;
        let leases = lease.iter().chain(self.leases);
        if leases.into_iter().any(|lease| !lease.has_held()) {
            return Err(Error::LeaseLost);
        }
        match copy.session().put(&key, text, PutMode::Create) {
            Err(error) if error.kind == ErrorKind::AlreadyExists => {
                let known = self.made_meanwhile(backup)?;
                known.ok_or_else(|| Error::MadeByAnother(backup.id.clone()))
            }
            put => Ok(put.map(|()| entry)?),
        }
    }

    /// What was said of a backup holds for its copy, too.
    fn mark(&self, id: &BackupId) -> Result<(), Error> {
        if self.unmarked.contains(id) {
            self.sending.source.copy_marks(id, self.sending.copy)?;
        }
        Ok(())
    }

    /// The backup, if another run made it since the copy was looked at.
    fn made_meanwhile(&self, backup: &BackupEntry) -> Result<Option<BackupEntry>, Error> {
        let copy = self.sending.copy;
        let known = copy.backup_if_there(&backup.id)?;
        known
            .iter()
            .try_for_each(|known| same(backup, known, copy))?;
        Ok(known)
    }

    /// Removes what a run that has died left of a backup. `run` is that of this one's lease.
    fn remove(&self, id: &BackupId, run: RunId, left: &[ObjectKey]) -> Result<(), Error> {
        if left.is_empty() {
            return Ok(());
        }
        let copy = self.sending.copy;
        let now = copy.lease_time(run).unwrap_or_else(|_| Timestamp::now());
        let held = copy.leases(now)?.held;
        let mut others = held.into_iter().filter(|lease| lease.run != run);
        if others.any(|lease| lease.needs.makes.as_ref() == Some(id)) {
            return Err(Error::MadeByAnother(id.clone()));
        }
        Ok(copy.remove(left)?)
    }

    /// Removes all that was left of a backup: packed again, an object may have other bytes.
    fn clear(&self, id: &BackupId, run: RunId) -> Result<(), Error> {
        let left: Vec<ObjectKey> = self.left(id)?.into_values().collect();
        self.remove(id, run, &left)
    }

    /// Sends the objects of a backup.
    fn as_it_is(
        &self,
        backup: &BackupEntry,
        parent: Option<&BackupEntry>,
        run: RunId,
    ) -> Result<(), Error> {
        let manifest = backup.parent_manifest.as_ref().zip(parent);
        if let Some((known, parent)) = manifest
            && *known != parent.manifest.digest.to_hex()
        {
            return Err(Error::ParentRepacked {
                backup: backup.id.clone(),
                parent: parent.id.clone(),
            });
        }
        let objects: Vec<&StoredPart> = backup.objects().collect();
        let is_known = |name: &str| objects.iter().any(|part| part.name == name);
        let left = self.left(&backup.id)?;
        // Of a run that packed it otherwise, or was cut.
        let foreign = left.iter().filter(|(name, _)| !is_known(name));
        let unfit: Mutex<Vec<ObjectKey>> =
            Mutex::new(foreign.map(|(_, key)| key.clone()).collect());
        self.each(&objects, |part| {
            if let Some(key) = left.get(&part.name)
                && self.sending.copy.stored_digest(key, part.digest.hash())? != Some(part.digest)
            {
                lock(&unfit).push(key.clone());
            }
            Ok(())
        })?;
        let unfit = unfit.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.remove(&backup.id, run, &unfit)?;
        self.each(&objects, |part| match left.get(&part.name) {
            Some(key) if !unfit.contains(key) => {
                self.sending.progress.add(part.stored_bytes);
                Ok(())
            }
            Some(_) | None => self.send(&backup.id, &self.object(backup, part)?, part),
        })
    }

    /// What earlier runs left of a backup that has no entry: names and keys.
    fn left(&self, id: &BackupId) -> Result<BTreeMap<String, ObjectKey>, Error> {
        let copy = self.sending.copy;
        let layout = copy.layout();
        let found = copy.session().list(&layout.backup_folder(id), None)?;
        let entry = layout.backup_json(id);
        let left = found.into_iter().filter(|info| info.key != entry);
        let named = left.filter_map(|info| {
            let name = layout.in_backup_folder(&info.key)?.1.to_owned();
            Some((name, info.key))
        });
        Ok(named.collect())
    }

    /// Sends an object of a backup.
    fn send(&self, id: &BackupId, object: &Object, part: &StoredPart) -> Result<(), Error> {
        let Sending { source, copy, .. } = self.sending;
        let sent = self
            .sending
            .as_it_is(object, part.digest.hash(), &Place::free())?;
        match sent {
            Sent::Now { digest, .. } if digest != part.digest => {
                self.sending.take_back(&object.key);
                Err(Error::NotAsEntered {
                    object: source.url(&object.key),
                })
            }
            Sent::Now { digest, .. } => self.sending.read_back(object, digest),
            Sent::Before => match copy.stored_digest(&object.key, part.digest.hash())? {
                digest if digest == Some(part.digest) => Ok(()),
                _ => Err(Error::MadeByAnother(id.clone())),
            },
            Sent::Stopped => Err(Error::BrokenOff),
        }
    }

    /// Sends the content of a backup's objects, packed anew; returns its entry in the copy.
    fn repacked(
        &self,
        backup: &BackupEntry,
        parent: Option<&BackupEntry>,
        pipeline: &Pipeline,
    ) -> Result<BackupEntry, Error> {
        let source = self.sending.source;
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
        let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
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
            format: FORMAT,
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
            ..
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
        let stored = match writer.finish() {
            Err(pipeline::Error::Store(error)) if error.kind == ErrorKind::AlreadyExists => {
                let id = self.sending.copy.layout().in_backup_folder(&target.key);
                return Err(id.map_or(error.into(), |(id, _)| Error::MadeByAnother(id)));
            }
            finished => finished?,
        };
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
