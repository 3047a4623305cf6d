//! The course of a base backup.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::Error;
use super::contents::Owner;
use super::delta::{Delta, DeltaOptions};
use super::extent::{Base, Item, Since};
use super::folder::{Folder, Packed};
use super::manifest::WalRange;
use super::moved_databases::databases;
use super::newest::Newest;
use super::own_directory;
use super::own_history;
use super::own_wal;
use super::pack::{Packer, PageRules};
use super::parent::KEPT_CORRUPT_BLOCKS;
use super::parts::{self, Part};
use super::relations::Relations;
use crate::pipeline::Pipeline;
use crate::postgres::backup_label::{self, BackupLabel};
use crate::postgres::catalogs::{Catalogs, is_map};
use crate::postgres::data_directory::{self, Listing, Tablespace};
use crate::postgres::server::{Facts, Server, StoppedBackup};
use crate::postgres::{ControlFile, Lsn, TimelineId, WalFileName, control};
use crate::progress::{Progress, Show};
use crate::repository::catalog::{LeftOut, StoredPart};
use crate::repository::{BackupEntry, BackupId, BackupKind, Repository};
use crate::threads::{lock, on_threads};
use crate::wal::{self, archiver::Archiver};

/// How soon the archive is asked again whether a segment is there; each pause is twice the one before, up to the last.
const FIRST_ARCHIVE_POLL: Duration = Duration::from_millis(10);
const LAST_ARCHIVE_POLL: Duration = Duration::from_secs(1);
/// How long a failing archiver is given to succeed before a backup begins: it tries a file three times, a second apart.
const ARCHIVER_RECOVERS: Duration = Duration::from_secs(5);

/// How often a backup that waits says that the archiver fails.
const TOLD_AGAIN: Duration = Duration::from_mins(1);

/// What the user says of a backup.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Free text.
    pub label: Option<String>,
    /// Free pairs.
    pub annotations: BTreeMap<String, String>,
    /// Kept by every retention rule.
    pub permanent: bool,
    /// Whether it is to be a delta, and to what; a full backup without.
    pub delta: Option<DeltaOptions>,
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

/// What of a backup is in the store.
struct Stored {
    packed: Packed,
    index: StoredPart,
    relations: StoredPart,
    manifest: StoredPart,
    tablespaces: Vec<Tablespace>,
    left_out: Vec<LeftOut>,
}

impl Backup<'_> {
    /// Takes the backup. After `Ok` it is in the catalog, and everything that restoring it takes is in the store.
    ///
    /// # Errors
    /// Whatever stopped it; the catalog does not show it then, and the server has left backup mode.
    pub fn take(&self) -> Result<BackupEntry, Error> {
        data_directory::check_tablespaces(self.pgdata)?;
        let mut server = self.wait(Server::connect(self.pgdata))?;
        let facts = self.check_server(&mut server)?;
        let label = own_history::label(self.options.label.as_deref(), facts.now);
        let start_lsn = self.wait(server.start_backup(&label))?;
        let first = self.check_directory(&mut server, start_lsn)?;
        if facts.in_recovery {
            // What would fail after the copy is told before.
            must_be_on(first.timeline, &first)?;
        }
        let listing = data_directory::walk(self.pgdata, self.control.version)?;
        let delta = self.delta(start_lsn, &listing)?;
        let kind = match delta {
            Some(_) => BackupKind::Delta,
            None => BackupKind::Full,
        };
        let id = self.repository.claim_backup_id(facts.now, kind)?;
        tracing::info!(
            "backup {id} of PostgreSQL {} in {} begins",
            facts.version_text,
            self.pgdata.display()
        );
        let left_out: Vec<LeftOut> = listing
            .left_out
            .iter()
            .map(|path| self.left_out(path))
            .collect();
        for left_out in &left_out {
            tracing::warn!(
                "{left_out}: it is neither file nor directory and is left out, as PostgreSQL does"
            );
        }
        let tablespaces = listing.tablespaces.clone();
        let databases = databases(&listing.directories);
        let mut relations = Relations::of(&listing, self.control);
        let folder = Folder {
            repository: self.repository,
            pipeline: self.pipeline,
            id: &id,
        };
        let mut packed = self.pack(
            folder,
            listing,
            &relations,
            delta.as_ref(),
            &facts,
            start_lsn,
        )?;
        let (packed_control, pg_control) = ControlFile::read_bytes(self.pgdata)?;
        let stopped = self.wait(server.stop_backup())?;
        let label = BackupLabel::parse(&stopped.label)?;
        let last = self.check_directory(&mut server, label.start_lsn)?;
        if label.of_standby == Some(true) {
            must_be_on(label.timeline, &last)?;
        }
        // What was on disk before had its WAL on disk, or replayed, before.
        let wal_end = self.wait(server.wal_end())?.max(stopped.stop_lsn);
        check_pages(&label, &packed.newest, &packed_control, wal_end)?;
        let mut from_the_future = packed.newest.beyond(wal_end);
        packed.corrupt_blocks.append(&mut from_the_future);
        self.pack_last(folder, &mut packed, &pg_control, &stopped, delta.as_ref())?;
        let index = folder.index(&mut packed)?;
        let range = WalRange {
            timeline: label.timeline,
            start: label.start_lsn,
            end: stopped.stop_lsn,
        };
        relations.keep(&packed.manifest, kind);
        let relations = folder.relations(&relations)?;
        let (version, cluster) = (self.control.version, self.control.system_identifier);
        let manifest = folder.manifest(&packed.manifest, version, cluster, range)?;
        self.archive_histories(range.timeline)?;
        self.wait_for_wal(&mut server, range)?;
        self.wait(async {
            server.close().await;
            Ok::<_, Error>(())
        })?;
        let stored = Stored {
            packed,
            index,
            relations,
            manifest,
            tablespaces,
            left_out,
        };
        let mut entry = self.entry(id, &facts, &stopped, range, stored, delta)?;
        (entry.of_standby, entry.checkpoint_lsn) = (label.of_standby, label.checkpoint_lsn);
        let wal_folder = self.pgdata.join(version.wal_folder());
        if let Some((lsn, time)) = own_wal::check(&self.archiver(), &wal_folder, &entry)? {
            (entry.replayed_lsn, entry.replayed_time) = (Some(lsn), Some(time));
        }
        self.check_databases(&databases, &entry)?;
        self.repository.commit_backup(&entry)?;
        Ok(entry)
    }

    fn left_out(&self, path: &Path) -> LeftOut {
        let target = std::fs::read_link(self.pgdata.join(path)).ok();
        LeftOut {
            path: path.to_string_lossy().into_owned(),
            link_to: target.map(|target| target.to_string_lossy().into_owned()),
        }
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
        self.check_archiver(server)?;
        Ok(facts)
    }

    /// Sees that the archiver does not fail. A file that it is no longer to archive was settled otherwise.
    fn check_archiver(&self, server: &mut Server) -> Result<(), Error> {
        let folder = self.pgdata.join(self.control.version.wal_folder());
        let began = Instant::now();
        loop {
            let state = self.wait(server.archiver_state())?;
            let Some(file) = state.failing else {
                return Ok(());
            };
            let mark = folder.join("archive_status").join(format!("{file}.ready"));
            if !mark.exists() {
                return Ok(());
            }
            if began.elapsed() > ARCHIVER_RECOVERS {
                let tried = state.failed_at.unwrap_or_default();
                return Err(Error::ArchiverFails { file, tried });
            }
            std::thread::sleep(LAST_ARCHIVE_POLL);
        }
    }

    /// Sees that the directory is the server's.
    fn check_directory(&self, server: &mut Server, begin: Lsn) -> Result<ControlFile, Error> {
        own_directory::check(self.pgdata, begin, || self.wait(server.own_control()))
    }

    /// Packs all parts but the last, several at a time. The first error stops every worker.
    fn pack(
        &self,
        folder: Folder,
        listing: Listing,
        relations: &Relations,
        delta: Option<&Delta>,
        facts: &Facts,
        begin: Lsn,
    ) -> Result<Packed, Error> {
        let base = delta.map(|delta| Base::new(&delta.parent, relations, &delta.changed));
        let since = Since {
            lsn: delta.map_or(Lsn::ZERO, |delta| delta.parent.entry.start_lsn),
            // `pg_checksums` switches them off and on again only while no server runs.
            checksums: self.control.data_checksums
                && delta.is_none_or(|delta| facts.started < delta.parent.entry.start_time),
        };
        let directories = listing.directories;
        let parts = self.parts(listing.files, base.as_ref());
        let total = parts.iter().map(|part| part.size_bytes).sum();
        let progress = Progress::new(self.options.show, "backing up", total);
        let (next, packed) = (AtomicUsize::new(0), Mutex::new(Packed::default()));
        let owner = Owner::of(self.pgdata)?;
        let worker = || -> Result<(), Error> {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(Part { files, .. }) = parts.get(index) else {
                    return Ok(());
                };
                let part = folder.part(index + 1, owner)?;
                let mut files_in = Packer::new(part, PageRules::new(self.control, begin), since);
                if index == 0 {
                    let mut directories = directories.iter();
                    directories.try_for_each(|directory| files_in.part.directory(directory))?;
                }
                files.iter().try_for_each(|file| {
                    files_in.item(self.pgdata, file, &|bytes| progress.add(bytes))
                })?;
                {
                    let mut packed = lock(&packed);
                    packed.corrupt_blocks.append(&mut files_in.corrupt_blocks);
                    packed.newest.append(std::mem::take(&mut files_in.newest));
                }
                folder.finish(files_in.part, index + 1, || lock(&packed))?;
            }
        };
        let outcome = on_threads(self.options.threads, &progress, &worker);
        progress.finish();
        outcome?;
        let packed = std::mem::take(&mut *lock(&packed));
        Ok(packed)
    }

    /// Divides files among parts. The first has the directories, and the catalogs that name relations, always whole.
    fn parts(&self, files: Vec<data_directory::Entry>, base: Option<&Base>) -> Vec<Part> {
        let mut catalogs = Catalogs::default();
        for file in files.iter().filter(|file| is_map(&file.path)) {
            if let Ok(bytes) = std::fs::read(self.pgdata.join(&file.path)) {
                catalogs.map(&file.path, &bytes);
            }
        }
        let gives_names =
            |file: &data_directory::Entry| is_map(&file.path) || catalogs.of(&file.path).is_some();
        let (first, others): (Vec<_>, Vec<_>) = files.into_iter().partition(gives_names);
        let others = others.into_iter().map(|file| match base {
            Some(base) => base.item(file),
            None => Item::whole(file),
        });
        let mut parts = vec![Part::of(first.into_iter().map(Item::whole).collect())];
        parts.extend(parts::divide(others.collect()));
        parts
    }

    /// The last part: what must not be in place before everything else is.
    fn pack_last(
        &self,
        folder: Folder,
        packed: &mut Packed,
        pg_control: &[u8],
        stopped: &StoppedBackup,
        delta: Option<&Delta>,
    ) -> Result<(), Error> {
        let label = match delta {
            Some(Delta { parent, .. }) => {
                let (start, timeline) = (parent.entry.start_lsn, parent.entry.timeline);
                backup_label::of_delta(&stopped.label, start, timeline)
            }
            None => stopped.label.clone(),
        };
        let (number, now) = (packed.next_number(), stopped.time.as_second());
        let mut part = folder.part(number, Owner::of(self.pgdata)?)?;
        part.bytes("backup_label", label.as_bytes(), now)?;
        if !stopped.tablespace_map.is_empty() {
            // Restoring makes the links itself.
            part.unlisted("tablespace_map", stopped.tablespace_map.as_bytes(), now)?;
        }
        part.bytes(control::PATH, pg_control, now)?;
        folder.finish(part, number, || packed)
    }

    fn archiver(&self) -> Archiver<'_> {
        Archiver {
            repository: self.repository,
            pipeline: self.pipeline,
            control: self.control,
            in_recovery: false,
        }
    }

    /// Archives the histories of the backup's timeline and its ancestors, which an archive that was
    /// begun on this timeline does not have and recovery asks for.
    fn archive_histories(&self, timeline: TimelineId) -> Result<(), Error> {
        let folder = self.pgdata.join(self.control.version.wal_folder());
        let archiver = self.archiver();
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
        let mut told = None;
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
                let is_told = told.is_some_and(|told: Instant| told.elapsed() < TOLD_AGAIN);
                if let Some(file) = state.failing.as_ref().filter(|_| !is_told) {
                    told = Some(Instant::now());
                    let limit = self
                        .options
                        .archive_timeout
                        .saturating_sub(arrived.elapsed());
                    tracing::warn!(
                        "the server's archiver fails on {file}, and last tried it at {}; the server's log has the reason. \
                         The backup is copied, and waits for its WAL for {} s more",
                        state.failed_at.as_deref().unwrap_or_default(),
                        limit.as_secs()
                    );
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

    fn entry(
        &self,
        id: BackupId,
        facts: &Facts,
        stopped: &StoppedBackup,
        range: WalRange,
        stored: Stored,
        delta: Option<Delta>,
    ) -> Result<BackupEntry, Error> {
        let wal_folder = self.pgdata.join(self.control.version.wal_folder());
        let history =
            wal::history_beside(self.repository, &wal_folder.join("any"), range.timeline)?;
        let Stored {
            mut packed,
            index,
            relations,
            manifest,
            tablespaces,
            left_out,
        } = stored;
        let mut corrupt_blocks = std::mem::take(&mut packed.corrupt_blocks);
        corrupt_blocks.truncate(KEPT_CORRUPT_BLOCKS);
        let parts = packed.parts();
        let (parent, parent_manifest, changed_blocks) = match delta {
            Some(Delta { parent, told, .. }) => {
                let BackupEntry { id, manifest, .. } = parent.entry;
                (Some(id), Some(manifest.sha256), Some(told))
            }
            None => (None, None, None),
        };
        let kind = id.kind();
        let mut entry = BackupEntry {
            format: kind.format(),
            id,
            kind,
            parent,
            parent_manifest,
            system_identifier: self.control.system_identifier,
            timeline: range.timeline,
            history: history.ancestors,
            start_lsn: range.start,
            stop_lsn: range.end,
            of_standby: None,
            checkpoint_lsn: None,
            start_time: facts.now,
            stop_time: stopped.time,
            replayed_time: stopped.replayed_time,
            replayed_lsn: None,
            stop_snapshot: stopped.snapshot.clone(),
            postgres_version: self.control.version,
            server_version: facts.version_text.clone(),
            limits: Some(self.control.limits),
            wal_segment_size: self.control.segment_size,
            wal_block_size: self.control.wal_block_size_bytes,
            data_checksums: self.control.data_checksums,
            corrupt_blocks,
            size_bytes: packed.restored_bytes,
            files: packed.manifest.files.len() as u64,
            stored_bytes: 0,
            tablespaces,
            left_out,
            encrypted_to: self.pipeline.recipients().to_vec(),
            catalogs: parts.first().map(|part| part.name.clone()),
            parts,
            manifest,
            relations: Some(relations),
            changed_blocks,
            merged_from: None,
            index: Some(index),
            permanent: self.options.permanent,
            label: self.options.label.clone(),
            annotations: self.options.annotations.clone(),
            walhalla_version: crate::VERSION.to_owned(),
        };
        entry.stored_bytes = entry.objects().map(|object| object.stored_bytes).sum();
        Ok(entry)
    }
}

/// A standby's data ends on the timeline of its control file; its backup has one timeline only.
fn must_be_on(begin: TimelineId, standby: &ControlFile) -> Result<(), Error> {
    let (begin, end) = (begin.number(), standby.min_recovery_timeline);
    if end != begin {
        return Err(Error::TimelineSwitch { begin, end });
    }
    Ok(())
}

/// A standby's backup is consistent at the end that the control file in it names; PostgreSQL may have written pages that are
/// newer.
fn check_pages(
    label: &BackupLabel,
    newest: &Newest,
    control: &ControlFile,
    wal_end: Lsn,
) -> Result<(), Error> {
    let end = control.min_recovery_point;
    match newest.between(end, wal_end) {
        Some((page, path, block)) if label.of_standby == Some(true) => Err(Error::PageAfterEnd {
            path: path.to_owned(),
            block,
            page,
            end,
        }),
        _ => Ok(()),
    }
}
