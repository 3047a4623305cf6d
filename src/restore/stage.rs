//! The staged WAL and the sealed plan: recovery without network, credentials or environment.
//!
//! The stage is a directory beside the data directory that holds every WAL file of the plan as
//! PostgreSQL wants it, and `plan.json`, written last. The server's `restore_command` is answered from
//! it alone; what the plan does not name is absent.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Error;
use super::plan::Plan;
use crate::pipeline::streams;
use crate::postgres::{History, WalFileName};
use crate::progress::Progress;
use crate::repository::{ArchivedFile, Repository};
use crate::threads::{lock, on_threads};
use crate::wal::fetcher::{Fetcher, NewFile};
use crate::wal::{self, pages::Cluster};

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
    let histories = plan
        .histories
        .iter()
        .map(|(timeline, file)| (WalFileName::History(*timeline), file));
    let segments = plan
        .segments
        .iter()
        .map(|(name, file)| (WalFileName::Segment(*name), file));
    let files = Mutex::new(histories.chain(segments));
    let sealed = Mutex::new(BTreeMap::new());
    let fetcher = Fetcher {
        repository,
        cluster: Some(cluster(plan)),
    };
    let worker = || -> Result<(), Error> {
        loop {
            let next = lock(&files).next();
            let Some((file, archived)) = next else {
                return Ok(());
            };
            let digest = stage_file(&fetcher, file, archived, &plan.history, stage)?;
            lock(&sealed).insert(file.to_string(), digest);
            if !progress.add(archived.stored_bytes) {
                return Err(Error::BrokenOff);
            }
        }
    };
    on_threads(threads, progress, &worker)?;
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

fn stage_file(
    fetcher: &Fetcher,
    file: WalFileName,
    archived: &ArchivedFile,
    history: &History,
    stage: &Path,
) -> Result<String, Error> {
    let path = stage.join(file.to_string());
    fetcher.fetch_archived(file, archived, &history.of(file.timeline()), &path)?;
    digest(&path)
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
