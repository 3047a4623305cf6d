//! The course of a base backup.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::Error;
use super::index::{Index, PartIndex};
use super::manifest::{Manifest, WalRange};
use super::pack::{Owner, PageRules, PartWriter};
use super::parts::{self, Part};
use crate::pipeline::{Packing, Pipeline, StoredObject};
use crate::postgres::backup_label::BackupLabel;
use crate::postgres::catalogs::{Catalogs, is_map};
use crate::postgres::data_directory::{self, Entry, Listing};
use crate::postgres::server::{Facts, Server, StoppedBackup};
use crate::postgres::{ControlFile, Lsn, TimelineId, WalFileName, control};
use crate::progress::{Progress, Show};
use crate::repository::catalog::{CorruptBlock, FORMAT, StoredPart};
use crate::repository::{BackupEntry, BackupId, BackupKind, Repository, layout};
use crate::threads::{lock, on_threads};
use crate::wal::{self, archiver::Archiver};

/// Corrupt blocks that are kept in the entry; a file that is corrupt throughout has no more to tell.
const KEPT_CORRUPT_BLOCKS: usize = 1000;
/// How soon the archive is asked again whether a segment is there; each pause is twice the one before, up to the last.
const FIRST_ARCHIVE_POLL: Duration = Duration::from_millis(10);
const LAST_ARCHIVE_POLL: Duration = Duration::from_secs(1);

/// What the user says of a backup.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Free text.
    pub label: Option<String>,
    /// Free pairs.
    pub annotations: BTreeMap<String, String>,
    /// Kept by every retention rule.
    pub permanent: bool,
    /// How long a missing WAL segment is waited for, from the last one that arrived.
    pub archive_timeout: Duration,
    /// Files that are packed at a time.
    pub threads: usize,
    /// How progress is shown.
    pub show: Show,
}

/// Where a backup comes from and goes to.
pub struct Backup<'a> {
    /// The data directory.
    pub pgdata: &'a Path,
    /// Its control file.
    pub control: &'a ControlFile,
    /// Where it goes.
    pub repository: &'a Repository,
    /// Compresses and encrypts it.
    pub pipeline: &'a Pipeline,
    /// What the user says of it.
    pub options: Options,
}

/// What the workers found and made.
#[derive(Default)]
struct Packed {
    manifest: Manifest,
    corrupt_blocks: Vec<CorruptBlock>,
    parts: Vec<(usize, StoredPart)>,
    /// What the index says of each part.
    indexed: Vec<(usize, PartIndex)>,
    /// The index, once it is stored.
    index: Option<StoredPart>,
    /// Name of the part with the catalogs that name relations.
    catalogs: Option<String>,
}

impl Backup<'_> {
    /// Takes the backup. After `Ok` it is in the catalog, and everything that restoring it takes is in the store.
    ///
    /// # Errors
    /// Whatever stopped it; the catalog does not show it then, and the server has left backup mode.
    pub fn take(&self) -> Result<BackupEntry, Error> {
        let mut server = self.wait(Server::connect(self.pgdata))?;
        let facts = self.check_server(&mut server)?;
        let id = self
            .repository
            .free_backup_id(facts.now, BackupKind::Full)?;
        tracing::info!(
            "backup {id} of PostgreSQL {} in {} begins",
            facts.version_text,
            self.pgdata.display()
        );
        let label = self
            .options
            .label
            .clone()
            .unwrap_or_else(|| format!("walhalla {id}"));
        let start_lsn = self.wait(server.start_backup(&label))?;
        let listing = data_directory::walk(self.pgdata, self.control.version)?;
        for path in &listing.left_out {
            tracing::warn!(
                "{} is neither file nor directory and is left out, as PostgreSQL does",
                path.display()
            );
        }
        let tablespaces = listing.tablespaces.clone();
        let mut packed = self.pack(&id, listing, start_lsn)?;
        let (_, pg_control) = ControlFile::read_bytes(self.pgdata)?;
        let stopped = self.wait(server.stop_backup())?;
        let label = BackupLabel::parse(&stopped.label)?;
        self.pack_last(&id, &mut packed, &pg_control, &stopped)?;
        self.store_index(&id, &mut packed)?;
        let range = WalRange {
            timeline: label.timeline,
            start: label.start_lsn,
            end: stopped.stop_lsn,
        };
        let manifest = self.store_manifest(&id, &packed.manifest, range)?;
        self.archive_histories(range.timeline)?;
        self.wait_for_wal(&mut server, range)?;
        self.wait(async {
            server.close().await;
            Ok::<_, Error>(())
        })?;
        let entry = self.entry(id, &facts, &stopped, range, packed, manifest, tablespaces)?;
        self.repository.commit_backup(&entry)?;
        Ok(entry)
    }

    fn wait<T, E: Into<Error>>(
        &self,
        future: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Error> {
        self.repository.runtime.block_on(future).map_err(Into::into)
    }

    fn check_server(&self, server: &mut Server) -> Result<Facts, Error> {
        let facts = self.wait(server.facts())?;
        if facts.system_identifier != self.control.system_identifier {
            return Err(Error::OtherCluster {
                server: facts.system_identifier,
                directory: self.control.system_identifier,
                pgdata: self.pgdata.to_owned(),
            });
        }
        if !self.wait(server.runs_in(self.pgdata))? {
            return Err(Error::OtherServer(self.pgdata.to_owned()));
        }
        // What a standby replays is archived by its primary.
        if facts.in_recovery {
            return Ok(facts);
        }
        if facts.archive_mode == "off" {
            return Err(Error::NotArchiving("archive_mode is off"));
        }
        if facts.archiver.trim().is_empty() {
            return Err(Error::NotArchiving("archive_command is empty"));
        }
        Ok(facts)
    }

    /// Packs all parts but the last, several at a time. The first error stops every worker.
    fn pack(&self, id: &BackupId, listing: Listing, begin: Lsn) -> Result<Packed, Error> {
        let total = listing.files.iter().map(|file| file.size_bytes).sum();
        let progress = Progress::new(self.options.show, "backing up", total);
        let directories = listing.directories;
        let parts = self.parts(listing.files);
        let (next, packed) = (AtomicUsize::new(0), Mutex::new(Packed::default()));
        let worker = || -> Result<(), Error> {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(Part { files, .. }) = parts.get(index) else {
                    return Ok(());
                };
                let mut part = self.part(id, index + 1, begin)?;
                if index == 0 {
                    directories
                        .iter()
                        .try_for_each(|directory| part.directory(directory))?;
                }
                files.iter().try_for_each(|file| {
                    part.file(self.pgdata, file, &|bytes| progress.add(bytes))
                })?;
                finish_part(part, index + 1, self.pipeline.packing(), &packed)?;
            }
        };
        let outcome = on_threads(self.options.threads, &progress, &worker);
        progress.finish();
        outcome?;
        let mut packed = std::mem::take(&mut *lock(&packed));
        packed.parts.sort_by_key(|(number, _)| *number);
        packed.catalogs = packed.parts.last().map(|(_, part)| part.name.clone());
        Ok(packed)
    }

    /// Divides files among parts; the catalogs that name relations have the last one.
    fn parts(&self, files: Vec<Entry>) -> Vec<Part> {
        let mut catalogs = Catalogs::default();
        for file in files.iter().filter(|file| is_map(&file.path)) {
            if let Ok(bytes) = std::fs::read(self.pgdata.join(&file.path)) {
                catalogs.map(&file.path, &bytes);
            }
        }
        let gives_names = |file: &Entry| is_map(&file.path) || catalogs.of(&file.path).is_some();
        let (first, others): (Vec<_>, Vec<_>) = files.into_iter().partition(gives_names);
        let mut parts = parts::divide(others);
        parts.push(Part::of(first));
        parts
    }

    fn part(&self, id: &BackupId, number: usize, begin: Lsn) -> Result<PartWriter, Error> {
        let name = layout::part_name(number, self.pipeline.packing());
        let object = self.repository.layout.backup_object(id, &name)?;
        let rules = PageRules::new(self.control, begin);
        Ok(PartWriter::new(
            self.pipeline.create(&object.key)?,
            rules,
            Owner::of(self.pgdata)?,
        ))
    }

    /// The last part: what must not be in place before everything else is.
    fn pack_last(
        &self,
        id: &BackupId,
        packed: &mut Packed,
        pg_control: &[u8],
        stopped: &StoppedBackup,
    ) -> Result<(), Error> {
        let number = packed.parts.last().map_or(1, |(number, _)| number + 1);
        let now = stopped.time.as_second();
        let mut part = self.part(id, number, Lsn::ZERO)?;
        part.bytes("backup_label", stopped.label.as_bytes(), now, true)?;
        if !stopped.tablespace_map.is_empty() {
            // Restoring makes the links itself, so the file is for stock tools and not in the manifest.
            part.bytes(
                "tablespace_map",
                stopped.tablespace_map.as_bytes(),
                now,
                false,
            )?;
        }
        part.bytes(control::PATH, pg_control, now, true)?;
        let all = Mutex::new(std::mem::take(packed));
        finish_part(part, number, self.pipeline.packing(), &all)?;
        *packed = std::mem::take(&mut *lock(&all));
        Ok(())
    }

    fn store_index(&self, id: &BackupId, packed: &mut Packed) -> Result<(), Error> {
        let mut parts = std::mem::take(&mut packed.indexed);
        parts.sort_by_key(|(number, _)| *number);
        let index = Index {
            parts: parts.into_iter().map(|(_, part)| part).collect(),
        };
        let name = layout::index_name(self.pipeline.packing());
        packed.index = Some(self.store_text(id, name, &index.to_text())?);
        Ok(())
    }

    fn store_manifest(
        &self,
        id: &BackupId,
        manifest: &Manifest,
        range: WalRange,
    ) -> Result<StoredPart, Error> {
        let name = layout::manifest_name(self.pipeline.packing());
        let text = manifest.to_text(self.control.version, self.control.system_identifier, range);
        self.store_text(id, name, &text)
    }

    fn store_text(&self, id: &BackupId, name: String, text: &str) -> Result<StoredPart, Error> {
        let object = self.repository.layout.backup_object(id, &name)?;
        let mut writer = self.pipeline.create(&object.key)?;
        writer.append(text.as_bytes())?;
        Ok(stored_part(name, text.len() as u64, &writer.finish()?))
    }

    /// Archives the histories of the backup's timeline and its ancestors, which an archive that was
    /// begun on this timeline does not have and recovery asks for.
    fn archive_histories(&self, timeline: TimelineId) -> Result<(), Error> {
        let folder = self.pgdata.join(self.control.version.wal_folder());
        let archiver = Archiver {
            repository: self.repository,
            pipeline: self.pipeline,
            control: self.control,
        };
        let history = wal::history_beside(self.repository, &folder.join("any"), timeline)?;
        for (timeline, ..) in history.spans() {
            let file = WalFileName::History(timeline);
            let path = folder.join(file.to_string());
            if path.exists() {
                archiver.push(&path, file)?;
            }
        }
        Ok(())
    }

    /// Waits until every segment that makes the backup consistent is in the archive.
    fn wait_for_wal(&self, server: &mut Server, range: WalRange) -> Result<(), Error> {
        let size = self.control.segment_size;
        let (first, last) = (size.segment_of(range.start), size.segment_before(range.end));
        // A long backlog is no standstill: whatever the archiver archives counts.
        let (mut arrived, mut archived) = (Instant::now(), 0);
        for number in first.0..=last.0 {
            let segment = crate::postgres::SegmentNo(number).on(range.timeline, size);
            let mut pause = FIRST_ARCHIVE_POLL;
            while self
                .repository
                .find_wal(WalFileName::Segment(segment))?
                .is_none()
            {
                if pause == FIRST_ARCHIVE_POLL {
                    tracing::info!("waiting for WAL segment {segment} to arrive in the archive");
                }
                let state = self.wait(server.archiver_state())?;
                if state.archived != archived {
                    (archived, arrived) = (state.archived, Instant::now());
                }
                if arrived.elapsed() > self.options.archive_timeout {
                    let seconds = self.options.archive_timeout.as_secs();
                    return Err(Error::WalMissing {
                        segment,
                        seconds,
                        failing: state.failing,
                    });
                }
                std::thread::sleep(pause);
                pause = (pause * 2).min(LAST_ARCHIVE_POLL);
            }
            arrived = Instant::now();
        }
        Ok(())
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the entry is the sum of everything the backup came to know"
    )]
    fn entry(
        &self,
        id: BackupId,
        facts: &Facts,
        stopped: &StoppedBackup,
        range: WalRange,
        packed: Packed,
        manifest: StoredPart,
        tablespaces: Vec<data_directory::Tablespace>,
    ) -> Result<BackupEntry, Error> {
        let wal_folder = self.pgdata.join(self.control.version.wal_folder());
        let history =
            wal::history_beside(self.repository, &wal_folder.join("any"), range.timeline)?;
        let mut corrupt_blocks = packed.corrupt_blocks;
        corrupt_blocks.truncate(KEPT_CORRUPT_BLOCKS);
        let catalogs = packed.catalogs;
        let parts: Vec<StoredPart> = packed.parts.into_iter().map(|(_, part)| part).collect();
        Ok(BackupEntry {
            format: FORMAT,
            id,
            kind: BackupKind::Full,
            parent: None,
            system_identifier: self.control.system_identifier,
            timeline: range.timeline,
            history: history.ancestors,
            start_lsn: range.start,
            stop_lsn: range.end,
            start_time: facts.now,
            stop_time: stopped.time,
            stop_snapshot: stopped.snapshot.clone(),
            postgres_version: self.control.version,
            server_version: facts.version_text.clone(),
            wal_segment_size: self.control.segment_size,
            wal_block_size: self.control.wal_block_size_bytes,
            data_checksums: self.control.data_checksums,
            corrupt_blocks,
            size_bytes: packed
                .manifest
                .files
                .values()
                .map(|file| file.size_bytes)
                .sum(),
            files: packed.manifest.files.len() as u64,
            stored_bytes: parts
                .iter()
                .chain([&manifest])
                .chain(&packed.index)
                .map(|part| part.stored_bytes)
                .sum(),
            tablespaces,
            encrypted_to: self.pipeline.recipients().to_vec(),
            parts,
            catalogs,
            manifest,
            index: packed.index,
            permanent: self.options.permanent,
            label: self.options.label.clone(),
            annotations: self.options.annotations.clone(),
            walhalla_version: crate::VERSION.to_owned(),
        })
    }
}

fn finish_part(
    mut part: PartWriter,
    number: usize,
    packing: Packing,
    packed: &Mutex<Packed>,
) -> Result<(), Error> {
    let files = std::mem::take(&mut part.files);
    let places = std::mem::take(&mut part.places);
    let mut corrupt_blocks = std::mem::take(&mut part.corrupt_blocks);
    let size_bytes = files.iter().map(|(_, facts)| facts.size_bytes).sum();
    let stored = part.finish()?;
    let mut packed = lock(packed);
    packed.manifest.files.extend(files);
    packed.corrupt_blocks.append(&mut corrupt_blocks);
    let name = layout::part_name(number, packing);
    packed
        .parts
        .push((number, stored_part(name.clone(), size_bytes, &stored)));
    let index = PartIndex {
        name,
        frames: stored.frames,
        files: places,
    };
    packed.indexed.push((number, index));
    Ok(())
}

fn stored_part(name: String, size_bytes: u64, stored: &StoredObject) -> StoredPart {
    StoredPart {
        name,
        size_bytes,
        stored_bytes: stored.stored_bytes,
        sha256: hex::encode(stored.sha256),
    }
}
