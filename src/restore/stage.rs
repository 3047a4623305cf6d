//! The staged WAL and the sealed plan: recovery without network, credentials or environment.
//!
//! The stage is a directory beside the data directory that holds every WAL file of the plan as
//! PostgreSQL wants it, and `plan.json`, written last. The server's `restore_command` is answered from
//! it alone; what the plan does not name is absent.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Error;
use super::plan::Plan;
use crate::pipeline::streams;
use crate::postgres::{SegmentName, WalFileName};
use crate::progress::Progress;
use crate::repository::{ArchivedFile, Repository};
use crate::threads::{lock, on_threads};
use crate::wal::fetcher::{Fetcher, NewFile};
use crate::wal::pages::{Cluster, Extent, LONG_HEADER_BYTES, SegmentCheck, lies_within_a_record};
use crate::wal::{self, Mismatch};

/// The plan's name in the stage.
const PLAN: &str = "plan.json";

/// What the server's `restore_command` is answered from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SealedPlan {
    /// The backup that was restored.
    pub backup: String,
    /// The target, in words.
    pub target: String,
    /// Each staged file and its SHA-256.
    pub files: BTreeMap<String, String>,
}

/// Where the WAL of `pgdata`, an absolute path, is staged: beside it, or in `spool` under a name that
/// is not another data directory's.
pub fn directory(pgdata: &Path, spool: Option<&Path>) -> PathBuf {
    let name = pgdata.file_name().unwrap_or_default().to_string_lossy();
    let Some(spool) = spool else {
        return pgdata.with_file_name(format!("{name}.walhalla-wal"));
    };
    let digest = hex::encode(Sha256::digest(pgdata.as_os_str().as_bytes()));
    spool.join(format!("{name}-{digest:.12}.walhalla-wal"))
}

/// Makes the stage's directory, empty.
///
/// # Errors
/// [`Error::NotEmpty`] when something in it is not a stage's.
pub fn prepare(stage: &Path) -> Result<(), Error> {
    if stage.exists() {
        clear(stage)?;
    }
    let created = DirBuilder::new().mode(0o700).create(stage);
    created.map_err(Error::local("create the directory", stage))?;
    // Beside the data directory or not: a plan that recovery cannot find stops it.
    stage.parent().map_or(Ok(()), super::unpack::sync_directory)
}

/// Refuses a directory that holds anything but what an earlier restore staged.
///
/// # Errors
/// [`Error::NotEmpty`].
pub fn must_be_free(stage: &Path) -> Result<(), Error> {
    if stage.exists() {
        staged_files(stage).map(drop)
    } else {
        Ok(())
    }
}

/// Removes a stage; a directory that holds anything else is left as it is.
pub fn clear(stage: &Path) -> Result<(), Error> {
    for path in staged_files(stage)? {
        std::fs::remove_file(&path).map_err(Error::local("remove", &path))?;
    }
    std::fs::remove_dir(stage).map_err(Error::local("remove", stage))
}

fn staged_files(stage: &Path) -> Result<Vec<PathBuf>, Error> {
    let listing = std::fs::read_dir(stage).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let entries = listing.map_err(Error::local("read", stage))?;
    let is_ours = |name: &str| {
        let name = name.strip_suffix(".walhalla.tmp").unwrap_or(name);
        name == PLAN || name.parse::<WalFileName>().is_ok()
    };
    if !entries
        .iter()
        .all(|entry| entry.file_name().to_str().is_some_and(is_ours))
    {
        return Err(Error::NotEmpty(stage.to_owned()));
    }
    Ok(entries.iter().map(std::fs::DirEntry::path).collect())
}

/// Downloads the plan's WAL into `stage`, several files at a time, and seals the plan; returns the sealed plan's path.
pub fn fill(
    repository: &Repository,
    plan: &Plan,
    stage: &Path,
    threads: usize,
    progress: &Progress,
) -> Result<PathBuf, Error> {
    let fetcher = Fetcher {
        repository,
        cluster: Some(cluster(plan)),
    };
    let sealed = Mutex::new(BTreeMap::new());
    let put = |file: WalFileName, archived: &ArchivedFile, last| -> Result<_, Error> {
        let path = stage.join(file.to_string());
        let history = plan.history.of(file.timeline());
        let check = fetcher.fetch_archived(file, archived, &history, last, &path)?;
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
    let files = std::mem::take(&mut *lock(&sealed));
    seal(
        stage,
        &SealedPlan {
            backup: plan.backup.id.to_string(),
            target: plan.target.point.to_string(),
            files,
        },
    )
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
    let mut check: Option<SegmentCheck> = None;
    for (name, archived) in last_before.chain(after.iter().take(on)) {
        let history = plan.history.of(name.timeline);
        let cluster = cluster(plan);
        let checked = check.take().map_or_else(
            || {
                let size_bytes = cluster.segment_size.bytes();
                SegmentCheck::new(cluster, history.clone(), *name, size_bytes, Extent::Whole)
            },
            |last| last.followed_by(history.clone(), *name),
        );
        let checked = match checked {
            Ok(next) => check_staged(next, &staged(name))?,
            Err(mismatch) => Err(mismatch),
        };
        check = Some(checked.map_err(|mismatch| wal::Error::Mismatch {
            place: repository.url(&archived.object.key),
            file: WalFileName::Segment(*name),
            mismatch,
        })?);
    }
    Ok(())
}

fn check_staged(
    mut check: SegmentCheck,
    path: &Path,
) -> Result<Result<SegmentCheck, Mismatch>, Error> {
    let mut file = File::open(path).map_err(Error::local("open", path))?;
    let mut buffer = vec![0; 1 << 18];
    loop {
        let pages = streams::read_full(&mut file, &mut buffer);
        let pages = pages.map_err(Error::local("read", path))?;
        if pages.is_empty() {
            return Ok(Ok(check));
        }
        if let Err(mismatch) = check.pages(pages) {
            return Ok(Err(mismatch));
        }
    }
}

fn digest(path: &Path) -> Result<String, Error> {
    let mut file = File::open(path).map_err(Error::local("open", path))?;
    let digest = streams::sha256(&mut file).map_err(Error::local("read", path))?;
    Ok(hex::encode(digest))
}

fn seal(stage: &Path, plan: &SealedPlan) -> Result<PathBuf, Error> {
    let path = stage.join(PLAN);
    let json = serde_json::to_vec_pretty(plan).expect("a sealed plan is text");
    let mut file = NewFile::create(&path)?;
    file.write(&json)?;
    file.finish()?;
    Ok(path)
}

/// Answers the server's request for `name` from the sealed plan at `plan_path`: puts the file at `path`.
///
/// # Errors
/// [`wal::Error::NotArchived`] for what the plan does not name; [`Error::Staged`] when a staged file
/// is not what was staged.
pub fn serve(plan_path: &Path, name: &str, path: &Path) -> Result<(), Error> {
    let json = std::fs::read(plan_path).map_err(Error::local("read", plan_path))?;
    let plan: SealedPlan = serde_json::from_slice(&json).map_err(|source| Error::SealedPlan {
        path: plan_path.to_owned(),
        source,
    })?;
    let file: WalFileName = name.parse()?;
    let Some(expected) = plan.files.get(name) else {
        return Err(wal::Error::NotArchived {
            file,
            archive: plan_path.display().to_string(),
        }
        .into());
    };
    let staged = plan_path.with_file_name(name);
    if digest(&staged)? != *expected {
        return Err(Error::Staged(staged));
    }
    let mut source = File::open(&staged).map_err(Error::local("open", &staged))?;
    let mut target = NewFile::create(path)?;
    target.copy(&mut source)?;
    Ok(target.finish()?)
}
