//! The staged WAL and the sealed plan: recovery without network, credentials or environment.
//!
//! The stage is a directory beside the data directory that holds every WAL file of the plan as
//! PostgreSQL wants it, and `plan.json`, written last. The server's `restore_command` is answered from
//! it alone; what the plan does not name is absent.
//!
//! A stage belongs to one restore: the plan holds a random id, and the commands name the plan's SHA-256, the seal. A server
//! whose stage was made anew for another restore hears an error, never that a file is absent.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::Access;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use walhalla_postgres::wal::Mismatch;
use walhalla_postgres::wal::cluster::Cluster;
use walhalla_postgres::wal::page_header::{LONG_HEADER_BYTES, lies_within_a_record};
use walhalla_postgres::wal::segment_reader::{Extent, KnownCluster, ReadSegment, SegmentReader};
use walhalla_postgres::{SegmentName, WalFileName};

use super::Error;
use super::existing::broken_off;
use super::folder::{Folder, Kind, Owner, existing, is_temporary};
use super::plan::Plan;
use crate::durability::Durability;
use crate::failure::{Class, Failure as _};
use crate::pipeline::streams;
use crate::progress::Progress;
use crate::repository::{ArchivedFile, BackupEntry, ObjectError, Repository};
use crate::server;
use crate::spool;
use crate::threads::{lock, on_threads};
use crate::wal;
use crate::wal::fetcher::{Fetcher, NewFile};

/// The plan's name in the stage.
const PLAN: &str = "plan.json";

/// More than a plan of a million files has.
const LONGEST_PLAN_BYTES: u64 = 128 << 20;
/// Stages for data directories of one path that are looked at.
const MOST_STAGES: u32 = 100;
/// What says that a data directory is to recover, and what tells it how.
const SIGNALS: [&str; 2] = ["recovery.signal", "recovery.conf"];
const SETTINGS: [&str; 2] = ["postgresql.auto.conf", "recovery.conf"];

/// What the server's `restore_command` is answered from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SealedPlan {
    /// Random: no two restores have the same plan.
    pub id: String,
    /// The cluster.
    pub system_identifier: String,
    /// The data directory that was restored, where it was then.
    pub pgdata: PathBuf,
    /// The backup that was restored.
    pub backup: String,
    /// The target, in words.
    pub target: String,
    /// Each staged file and its SHA-256.
    pub files: BTreeMap<String, String>,
}

/// A plan that was sealed, as the server's commands name it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seal {
    /// The plan's path.
    pub plan: PathBuf,
    /// Its SHA-256.
    pub sha256: String,
}

/// Where the WAL of `pgdata`, an absolute path, is staged: beside it, or in `spool`.
pub fn directory(pgdata: &Path, spool: Option<&Path>) -> PathBuf {
    spool::place(pgdata, spool, "walhalla-wal")
}

/// A stage that a restore may take.
#[derive(Clone, Debug)]
pub(super) struct Choice {
    pub(super) path: PathBuf,
    /// The plan in it that was sealed for a directory which is not seen any more.
    replaced: Option<SealedPlan>,
}

/// The stage for a restore of `backup` into `pgdata`: `wanted`, or the one of the next number, as long as a stage holds WAL
/// that another data directory recovers from.
///
/// # Errors
/// [`Error::NoRoomForStage`] when all of them do.
pub(super) fn choose(wanted: &Path, pgdata: &Path, backup: &BackupEntry) -> Result<Choice, Error> {
    for number in 1..=MOST_STAGES {
        let path = numbered(wanted, number);
        let Some((plan, seal)) = sealed_in(&path) else {
            return Ok(Choice {
                path,
                replaced: None,
            });
        };
        let user = user_of(&plan, &seal, pgdata);
        let is_other_cluster = plan.system_identifier != backup.system_identifier.to_string();
        if user.is_none() && !is_other_cluster {
            let is_own = recovers_from(pgdata, &seal) || broken_off(pgdata).is_some();
            return Ok(Choice {
                path,
                replaced: (!is_own).then_some(plan),
            });
        }
        let user = user.unwrap_or_else(|| plan.pgdata.clone());
        tracing::warn!(
            "{} holds the WAL that {} is to recover from (backup {} to {}), and stays as it is; remove it if that directory \
             is gone",
            path.display(),
            user.display(),
            plan.backup,
            plan.target
        );
    }
    Err(Error::NoRoomForStage(wanted.to_owned()))
}

fn numbered(wanted: &Path, number: u32) -> PathBuf {
    if number == 1 {
        return wanted.to_owned();
    }
    let mut name = wanted.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// The plan that is sealed in a stage, and its seal.
fn sealed_in(stage: &Path) -> Option<(SealedPlan, String)> {
    if stage.is_symlink() {
        return None;
    }
    let mut json = Vec::new();
    let file = Folder::open(stage, None)
        .ok()?
        .open_file(PLAN.as_ref())
        .ok()??;
    // It may be somebody else's.
    file.take(LONGEST_PLAN_BYTES).read_to_end(&mut json).ok()?;
    let plan = serde_json::from_slice(&json).ok()?;
    Some((plan, seal_of(&json)))
}

fn seal_of(json: &[u8]) -> String {
    hex::encode(Sha256::digest(json))
}

/// The data directory, but `own`, that is to recover from the plan of this seal: where the plan's was, or what lies beside
/// it or beside `own`, as it may have another name by now.
fn user_of(plan: &SealedPlan, seal: &str, own: &Path) -> Option<PathBuf> {
    let mut places: BTreeSet<PathBuf> = BTreeSet::from([plan.pgdata.clone()]);
    for above in [&plan.pgdata, own]
        .into_iter()
        .filter_map(|path| path.parent())
    {
        let entries = std::fs::read_dir(above).into_iter().flatten().flatten();
        places.extend(entries.map(|entry| entry.path()));
    }
    let own = std::fs::canonicalize(own).ok();
    let is_other = |place: &PathBuf| own.is_none() || std::fs::canonicalize(place).ok() != own;
    places
        .into_iter()
        .find(|place| is_other(place) && recovers_from(place, seal))
}

/// Whether a data directory's settings for its recovery name this seal.
fn recovers_from(pgdata: &Path, seal: &str) -> bool {
    let Ok(folder) = Folder::open(pgdata, None) else {
        return false;
    };
    let has = |name: &&str| folder.kind(name.as_ref()).ok().flatten() == Some(Kind::File);
    let names_seal = |name: &&str| {
        let text = folder
            .read(name.as_ref())
            .ok()
            .flatten()
            .unwrap_or_default();
        text.windows(seal.len()).any(|word| word == seal.as_bytes())
    };
    SIGNALS.iter().any(has) && SETTINGS.iter().any(names_seal)
}

/// A stage's directory, empty and locked: no other restore stages there meanwhile.
#[derive(Debug)]
pub(super) struct Stage {
    path: PathBuf,
    folder: Folder,
    owner: Option<Owner>,
    durability: Durability,
}

impl Stage {
    /// Makes the directory, or empties the one that is there. Until it is full it is closed to everybody but the user who
    /// restores: PostgreSQL's user, whose directory is above it, replaces nothing in it by a link.
    ///
    /// # Errors
    /// [`Error::NotAStage`] when something in it is not a stage's; [`Error::Restoring`].
    pub(super) fn prepare(
        choice: &Choice,
        owner: Option<Owner>,
        durability: Durability,
    ) -> Result<Self, Error> {
        let Choice { path, replaced } = choice;
        let own = owner.map(|_| Owner {
            user: rustix::process::geteuid().as_raw(),
            group: rustix::process::getegid().as_raw(),
        });
        let above = path.parent().unwrap_or(Path::new("/"));
        let name = Path::new(path.file_name().unwrap_or_default());
        let folder = Folder::make(above, own)?.make_inside(name)?;
        folder.lock()?;
        if let Some(own) = own {
            folder.take_for(own)?;
        }
        if let Some(plan) = replaced {
            tracing::warn!(
                "{} held the WAL of an earlier restore, of backup {} into {} to {}, which no data directory seen here recovers \
                 from; it is replaced. A directory of that restore that was moved elsewhere will not start: restore it again",
                path.display(),
                plan.backup,
                plan.pgdata.display(),
                plan.target
            );
        }
        empty(&folder)?;
        Ok(Self {
            path: path.to_owned(),
            folder,
            owner,
            durability,
        })
    }

    /// Downloads the plan's WAL for `pgdata`, several files at a time, and seals the plan.
    pub(super) fn fill(
        &self,
        repository: &Repository,
        plan: &Plan,
        pgdata: &Path,
        threads: usize,
        progress: &Progress,
    ) -> Result<Seal, Error> {
        let stage = self.folder.own_path();
        let durability = self.durability;
        let files = fetch(repository, plan, &stage, durability, threads, progress)?;
        let plan = SealedPlan {
            id: format!("{:032x}", fastrand::u128(..)),
            system_identifier: plan.backup.system_identifier.to_string(),
            pgdata: pgdata.to_owned(),
            backup: plan.backup.id.to_string(),
            target: plan.target.point.to_string(),
            files,
        };
        let sha256 = seal(&stage, durability, &plan)?;
        if let Some(owner) = self.owner {
            for name in self.folder.names("".as_ref())? {
                self.folder.give_file_to(name.as_ref(), owner)?;
            }
            self.folder.take_for(owner)?;
        }
        Ok(Seal {
            plan: self.path.join(PLAN),
            sha256,
        })
    }
}

/// Refuses a stage that cannot be made, that another restore fills, or that holds anything but what an earlier restore
/// staged.
///
/// # Errors
/// [`Error::NoStage`], [`Error::Restoring`] and [`Error::NotAStage`].
pub(super) fn must_be_free(
    stage: &Path,
    spool: Option<&Path>,
    owner: Option<Owner>,
) -> Result<(), Error> {
    let no_stage = |source: io::Error| Error::NoStage {
        path: stage.to_owned(),
        source,
    };
    if let Some(spool) = spool {
        // It may be a file system that is not mounted.
        std::fs::metadata(spool).map_err(no_stage)?;
    }
    let there = existing(stage);
    let rights = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
    rustix::fs::access(&there, rights).map_err(|errno| no_stage(errno.into()))?;
    if stage.symlink_metadata().is_err() {
        return Ok(());
    }
    if stage.is_symlink() {
        return Err(Error::NotAStage(stage.to_owned()));
    }
    let folder = Folder::open(stage, owner)?;
    // Whoever owns it could put other WAL there.
    let user = folder.stat()?.st_uid;
    let own = rustix::process::geteuid().as_raw();
    if user != own && Some(user) != owner.map(|owner| owner.user) {
        return Err(Error::OtherOwner {
            path: stage.to_owned(),
            user,
            wanted: own,
        });
    }
    folder.lock()?;
    staged_files(&folder).map(drop)
}

/// Removes the stage of the plan that was sealed so; a directory that holds anything else, or that a restore is filling, is
/// left as it is.
///
/// # Errors
/// [`Error::OtherSeal`] where another restore has it by now.
pub fn clear(seal: &Seal) -> Result<(), Error> {
    let stage = seal.plan.parent().unwrap_or(Path::new("/"));
    let folder = Folder::open(stage, None)?;
    folder.lock()?;
    read_sealed(seal)?;
    empty(&folder)?;
    std::fs::remove_dir(stage).map_err(Error::local("remove", stage))
}

fn empty(folder: &Folder) -> Result<(), Error> {
    // Before what it names: a stage that is half empty is not sealed.
    folder.remove(PLAN.as_ref())?;
    for name in staged_files(folder)? {
        folder.remove(name.as_ref())?;
    }
    Ok(())
}

fn staged_files(folder: &Folder) -> Result<Vec<OsString>, Error> {
    let names = folder.names("".as_ref())?;
    let is_ours = |name: &OsString| {
        let text = name.to_string_lossy();
        is_temporary(name) || text == PLAN || text.parse::<WalFileName>().is_ok()
    };
    if names.iter().all(is_ours) {
        Ok(names)
    } else {
        Err(Error::NotAStage(folder.path().to_owned()))
    }
}

/// Downloads the plan's WAL into `stage`; returns the SHA-256 of each file.
fn fetch(
    repository: &Repository,
    plan: &Plan,
    stage: &Path,
    durability: Durability,
    threads: usize,
    progress: &Progress,
) -> Result<BTreeMap<String, String>, Error> {
    let fetcher = Fetcher {
        repository,
        cluster: Some(cluster(plan)),
        ends_recovery: false,
    };
    let sealed = Mutex::new(BTreeMap::new());
    let put = |file: WalFileName,
               archived: &ArchivedFile,
               last: Option<ReadSegment>|
     -> Result<_, Error> {
        let path = stage.join(file.to_string());
        let history = plan.history.of(file.timeline());
        let create = || Ok::<_, Error>(NewFile::create(&path)?.with(durability));
        let target = create()?;
        let outcome = fetcher.fetch_archived(file, archived, &history, last.clone(), target);
        let check = match (outcome, archived.tail()) {
            // Since the plan was made the segment was archived, or its pieces became fewer.
            (Err(error), Some(tail)) if error.class() == Class::Inaccessible => {
                let now = wal::tail::by_now(repository, &history, tail.segment)?;
                let now = now.ok_or(error)?;
                fetcher.fetch_archived(file, &now, &history, last, create()?)?
            }
            (outcome, _) => outcome?,
        };
        lock(&sealed).insert(file.to_string(), digest(&path)?);
        if progress.add(archived.stored_bytes) {
            Ok(check)
        } else {
            Err(Error::BrokenOff)
        }
    };
    for (timeline, archived) in &plan.histories {
        put(WalFileName::History(*timeline), archived, None)?;
    }
    // A run of segments for each thread, each segment checked as the one after the one before it.
    let run_length = plan.segments.len().div_ceil(threads.max(1)).max(1);
    let runs: Vec<_> = plan.segments.chunks(run_length).collect();
    let next = AtomicUsize::new(0);
    on_threads(threads, progress, &|| {
        while let Some(run) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut last = None;
            for (name, archived) in *run {
                last = put(WalFileName::Segment(*name), archived, last)?;
            }
        }
        Ok::<(), Error>(())
    })?;
    for border in (run_length..plan.segments.len()).step_by(run_length) {
        check_border(repository, plan, stage, border)?;
    }
    Ok(std::mem::take(&mut *lock(&sealed)))
}

fn cluster(plan: &Plan) -> Cluster {
    Cluster {
        system_identifier: plan.backup.system_identifier,
        version: plan.backup.postgres_version,
        segment_size: plan.backup.wal_segment_size,
        page_size_bytes: plan.backup.wal_block_size,
    }
}

/// Checks the record that runs into the plan's segment number `border`: reads from the staged segment in which it
/// begins to the one in which it ends.
fn check_border(
    repository: &Repository,
    plan: &Plan,
    stage: &Path,
    border: usize,
) -> Result<(), Error> {
    let staged = |name: &SegmentName| stage.join(name.to_string());
    let is_whole_record = |(name, _): &&(SegmentName, ArchivedFile)| {
        let mut page = [0; LONG_HEADER_BYTES];
        let read = File::open(staged(name)).and_then(|mut file| file.read_exact(&mut page));
        read.is_ok() && lies_within_a_record(&page)
    };
    let (before, after) = plan.segments.split_at_checked(border).unwrap_or_default();
    let back = before.iter().rev().take_while(is_whole_record).count() + 1;
    let on = after.iter().take_while(is_whole_record).count() + 1;
    let last_before = before.iter().skip(before.len().saturating_sub(back));
    let known = KnownCluster::Whole(cluster(plan));
    let mut last: Option<ReadSegment> = None;
    for (name, archived) in last_before.chain(after.iter().take(on)) {
        let reader = SegmentReader::begin(known, &plan.history, *name, Extent::Whole, last.take());
        let read = match reader {
            Ok(reader) => check_staged(reader, &staged(name))?,
            Err(mismatch) => Err(mismatch),
        };
        last = Some(read.map_err(|mismatch| {
            wal::Error::from(ObjectError::WalMismatch {
                object: repository.url(&archived.object().key),
                file: WalFileName::Segment(*name),
                mismatch,
            })
        })?);
    }
    Ok(())
}

fn check_staged(
    mut reader: SegmentReader,
    path: &Path,
) -> Result<Result<ReadSegment, Mismatch>, Error> {
    let mut file = File::open(path).map_err(Error::local("open", path))?;
    let mut buffer = vec![0; 1 << 18];
    loop {
        let bytes = streams::read_full(&mut file, &mut buffer);
        let bytes = bytes.map_err(Error::local("read", path))?;
        if bytes.is_empty() {
            return Ok(reader.finish());
        }
        if let Err(mismatch) = reader.feed(bytes, |_, _| {}) {
            return Ok(Err(mismatch));
        }
    }
}

fn digest(path: &Path) -> Result<String, Error> {
    let mut file = File::open(path).map_err(Error::local("open", path))?;
    let digest = streams::sha256(&mut file).map_err(Error::local("read", path))?;
    Ok(hex::encode(digest))
}

fn seal(stage: &Path, durability: Durability, plan: &SealedPlan) -> Result<String, Error> {
    let json = serde_json::to_vec_pretty(plan).expect("a sealed plan is text");
    let mut file = NewFile::create(&stage.join(PLAN))?.with(durability);
    file.write(&json)?;
    file.finish()?;
    Ok(seal_of(&json))
}

/// The plan, if it is the one that was sealed so.
fn read_sealed(seal: &Seal) -> Result<SealedPlan, Error> {
    let path = &seal.plan;
    let json = std::fs::read(path).map_err(|source| Error::NoSealedPlan {
        path: path.clone(),
        source,
    })?;
    if seal_of(&json) != seal.sha256 {
        return Err(Error::OtherSeal(path.clone()));
    }
    serde_json::from_slice(&json).map_err(|source| Error::SealedPlan {
        path: path.clone(),
        source,
    })
}

/// Answers the server's request for `name` from the plan that was sealed so: puts the file at `path`.
///
/// # Errors
/// [`wal::Error::NotStaged`] for what the plan does not name; [`Error::OtherSeal`] when it is another restore's by now;
/// [`Error::Staged`] when a staged file is not what was staged.
pub fn serve(seal: &Seal, name: &str, path: &Path) -> Result<(), Error> {
    let plan = read_sealed(seal)?;
    let plan_path = &seal.plan;
    let file: WalFileName = name.parse().map_err(server::Error::from)?;
    let Some(expected) = plan.files.get(name) else {
        return Err(wal::Error::NotStaged(file).into());
    };
    let staged = plan_path.with_file_name(name);
    // The same file is hashed and copied, whatever has its name by then.
    let mut source = File::open(&staged).map_err(Error::local("open", &staged))?;
    let found = streams::sha256(&mut source).map_err(Error::local("read", &staged))?;
    if hex::encode(found) != *expected {
        return Err(Error::Staged(staged));
    }
    source.rewind().map_err(Error::local("read", &staged))?;
    let mut target = NewFile::create(path)?;
    target.copy(&mut source)?;
    Ok(target.finish()?)
}
