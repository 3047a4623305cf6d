//! The course of a restore.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::existing::{self, Existing};
use super::only::Only;
use super::plan::Plan;
use super::recovery::Settings;
use super::unpack::{Unpacker, sync_directory};
use super::{Error, stage};
use crate::backup::chain::{Access, Chain};
use crate::progress::{Progress, Show};
use crate::repository::{BackupEntry, Repository};

/// Room that a restore leaves for PostgreSQL's own WAL and temporary files.
const SPARE_BYTES: u64 = 64 << 20;

/// Where a backup goes, and how.
#[derive(Clone, Debug)]
pub struct Destination {
    /// The data directory to make.
    pub pgdata: PathBuf,
    /// New places of tablespaces, by OID.
    pub tablespaces: BTreeMap<u32, PathBuf>,
    /// What is done with files that are there.
    pub existing: Existing,
    /// The databases that are restored; all without.
    pub only: Option<Only>,
    /// Parts and segments that are fetched at a time.
    pub threads: usize,
    /// How progress is shown.
    pub show: Show,
}

/// Whom everything is given to when root restores: PostgreSQL does not run as root.
#[derive(Clone, Copy)]
struct Owner {
    user: u32,
    group: u32,
}

/// Puts the files of the last backup in `chain`, which stands on those before it, in place: a data directory that recovers
/// from its `backup_label`, without any WAL. Returns how many bytes of it were there already.
pub fn fetch_backup(
    repository: &Repository,
    chain: &[BackupEntry],
    to: &Destination,
) -> Result<u64, Error> {
    let Some(backup) = chain.last() else {
        return Ok(0);
    };
    let files = to.open(repository, chain)?;
    to.check(backup, &files, 0, None)?;
    let progress = Progress::new(to.show, "restoring", files.size_bytes());
    let unpacker = Unpacker::new(files, &to.pgdata, to.existing, &progress);
    to.prepare(repository, backup, &unpacker)?;
    unpacker.unpack(to.threads)?;
    to.finish(backup, None, &unpacker)?;
    progress.finish();
    Ok(unpacker.kept_bytes())
}

/// Carries out a plan: afterwards the server starts and recovers to the target. Returns how many bytes of the files were
/// there already.
///
/// `settings` makes the recovery settings from where the WAL is; `stage` is where it is staged, if it is.
pub fn restore(
    repository: &Repository,
    plan: &Plan,
    to: &Destination,
    stage: Option<&Path>,
    settings: impl FnOnce(Option<PathBuf>) -> Settings,
) -> Result<u64, Error> {
    let backup = &plan.backup;
    let staged_bytes = if stage.is_some() {
        plan.stage_bytes()
    } else {
        0
    };
    let files = to.open(repository, &plan.chain)?;
    to.check(backup, &files, staged_bytes, stage)?;
    let wal = plan.segments.iter().map(|(_, file)| file.stored_bytes);
    let wal_bytes: u64 = if stage.is_some() { wal.sum() } else { 0 };
    let progress = Progress::new(to.show, "restoring", files.size_bytes() + wal_bytes);
    let unpacker = Unpacker::new(files, &to.pgdata, to.existing, &progress);
    to.prepare(repository, backup, &unpacker)?;
    if let Some(stage) = stage {
        stage::prepare(stage)?;
    }
    unpacker.unpack(to.threads)?;
    let sealed = match stage {
        None => None,
        Some(stage) => Some(stage::fill(repository, plan, stage, to.threads, &progress)?),
    };
    settings(sealed).write(plan, &to.pgdata)?;
    to.finish(backup, stage, &unpacker)?;
    progress.finish();
    Ok(unpacker.kept_bytes())
}

impl Destination {
    fn tablespace<'a>(&'a self, backup: &'a BackupEntry, oid: u32) -> Option<&'a Path> {
        let original = || {
            backup
                .tablespaces
                .iter()
                .find(|tablespace| tablespace.oid == oid)
        };
        self.tablespaces
            .get(&oid)
            .map(PathBuf::as_path)
            .or_else(|| original().map(|found| found.location.as_path()))
    }

    fn tablespace_places<'a>(
        &'a self,
        backup: &'a BackupEntry,
    ) -> impl Iterator<Item = (u32, &'a Path)> {
        backup
            .tablespaces
            .iter()
            .filter_map(|known| Some((known.oid, self.tablespace(backup, known.oid)?)))
    }

    /// The files that go there.
    fn open<'a>(
        &self,
        repository: &'a Repository,
        chain: &'a [BackupEntry],
    ) -> Result<Chain<'a>, Error> {
        let access = match self.existing {
            Existing::Refuse => Access::Stream,
            Existing::Update => Access::Random,
        };
        let is_wanted = |path: &Path| self.only.as_ref().is_none_or(|only| only.has(path));
        Ok(Chain::open(repository, chain, access, &is_wanted)?)
    }

    /// Refuses what cannot end well, before anything is written.
    fn check(
        &self,
        backup: &BackupEntry,
        files: &Chain,
        staged_bytes: u64,
        stage: Option<&Path>,
    ) -> Result<(), Error> {
        let known = |oid: &u32| {
            backup
                .tablespaces
                .iter()
                .any(|tablespace| tablespace.oid == *oid)
        };
        if let Some(oid) = self.tablespaces.keys().find(|oid| !known(oid)) {
            return Err(Error::NoSuchTablespace(*oid));
        }
        let is_update = self.existing == Existing::Update && !is_empty(&self.pgdata)?;
        if is_update {
            existing::prove(&self.pgdata, backup)?;
        } else {
            must_be_empty(&self.pgdata)?;
        }
        let mut places: Vec<&Path> = self
            .tablespace_places(backup)
            .map(|(_, place)| place)
            .collect();
        places.push(&self.pgdata);
        places.extend(stage);
        places.sort_unstable();
        // Sorted, a directory comes right before what is inside it.
        if let Some((outer, inner)) = places
            .iter()
            .zip(places.iter().skip(1))
            .find(|(a, b)| b.starts_with(a))
        {
            return Err(Error::SharedPlace((*outer).to_owned(), (*inner).to_owned()));
        }
        for (oid, place) in self.tablespace_places(backup) {
            if !is_update || !existing::leads_to(&self.pgdata, oid, place) {
                must_be_empty(&place.join(backup.postgres_version.tablespace_folder()))?;
            }
        }
        // How the files divide among tablespaces is not known before they are unpacked.
        let on_one_device = self
            .tablespace_places(backup)
            .all(|(_, place)| device(place) == device(&self.pgdata));
        let files_bytes = if on_one_device && !is_update {
            files.size_bytes()
        } else {
            0
        };
        let beside = stage.is_some_and(|stage| device(stage) == device(&self.pgdata));
        let staged_beside = if beside { staged_bytes } else { 0 };
        must_have_room(&self.pgdata, files_bytes + staged_beside + SPARE_BYTES)?;
        let Some(stage) = stage else { return Ok(()) };
        stage::must_be_free(stage)?;
        must_have_room(stage, staged_bytes)
    }

    /// Makes the data directory and the tablespaces' places and links; of one that is there, takes away what is not of the
    /// backup. It cannot be started from here on.
    fn prepare(
        &self,
        repository: &Repository,
        backup: &BackupEntry,
        files: &Unpacker,
    ) -> Result<(), Error> {
        let owner = self.owner()?;
        create_private(&self.pgdata, owner)?;
        std::fs::set_permissions(&self.pgdata, Permissions::from_mode(0o700))
            .map_err(Error::local("set the mode of", &self.pgdata))?;
        existing::leave_proof(&self.pgdata, backup)?;
        if self.existing == Existing::Update {
            let aside = existing::disable(&self.pgdata, backup, repository)?;
            if let (Some(aside), Some(owner)) = (aside, owner) {
                give(&aside, owner)?;
            }
            let places = self.tablespace_places(backup);
            let places = places.map(|(oid, place)| (oid, place.to_owned())).collect();
            let removed = existing::remove_others(&self.pgdata, backup, &files.paths(), &places)?;
            tracing::debug!("{removed} files that the backup does not have were removed");
        }
        let links = self.pgdata.join("pg_tblspc");
        for (oid, place) in self.tablespace_places(backup) {
            create_private(&links, owner)?;
            create_private(place, owner)?;
            if existing::leads_to(&self.pgdata, oid, place) {
                continue;
            }
            let link = links.join(oid.to_string());
            std::os::unix::fs::symlink(place, &link)
                .map_err(Error::local("create the link", &link))?;
            sync_directory(&links)?;
        }
        Ok(())
    }

    /// Run by root: the owner of the data directory, or of what it will be made in.
    fn owner(&self) -> Result<Option<Owner>, Error> {
        let Some(existing) =
            existing(&self.pgdata).filter(|_| rustix::process::geteuid().is_root())
        else {
            return Ok(None);
        };
        let metadata = std::fs::metadata(existing).map_err(Error::local("look at", existing))?;
        Ok(Some(Owner {
            user: metadata.uid(),
            group: metadata.gid(),
        }))
    }

    /// Puts in place what makes the directory one that starts.
    fn finish(
        &self,
        backup: &BackupEntry,
        stage: Option<&Path>,
        files: &Unpacker,
    ) -> Result<(), Error> {
        self.hand_over(backup, stage)?;
        files.finish()?;
        existing::take_proof_away(&self.pgdata)?;
        self.hand_over(backup, stage)
    }

    fn hand_over(&self, backup: &BackupEntry, stage: Option<&Path>) -> Result<(), Error> {
        let Some(owner) = self.owner()? else {
            return Ok(());
        };
        let places = self.tablespace_places(backup).map(|(_, place)| place);
        // The WAL may be elsewhere, by a link.
        let wal = self.pgdata.join(backup.postgres_version.wal_folder());
        let wal = std::fs::canonicalize(&wal)
            .ok()
            .filter(|_| wal.is_symlink());
        let mut all = std::iter::once(self.pgdata.as_path())
            .chain(places)
            .chain(wal.as_deref())
            .chain(stage);
        all.try_for_each(|place| give(place, owner))
    }
}

/// Whether a directory has nothing in it, or is not there.
fn is_empty(path: &Path) -> Result<bool, Error> {
    match std::fs::read_dir(path).map(|mut entries| entries.next().is_none()) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        found => found.map_err(Error::local("read", path)),
    }
}

fn must_be_empty(path: &Path) -> Result<(), Error> {
    if is_empty(path)? {
        Ok(())
    } else {
        Err(Error::NotEmpty(path.to_owned()))
    }
}

fn must_have_room(path: &Path, needed_bytes: u64) -> Result<(), Error> {
    let Some(existing) = existing(path) else {
        return Ok(());
    };
    let stat = rustix::fs::statvfs(existing)
        .map_err(|errno| Error::local("look at", existing)(errno.into()))?;
    let available_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
    if available_bytes >= needed_bytes {
        return Ok(());
    }
    Err(Error::NoRoom {
        path: existing.to_owned(),
        available_bytes,
        needed_bytes,
    })
}

fn existing(path: &Path) -> Option<&Path> {
    path.ancestors()
        .map(|above| {
            if above.as_os_str().is_empty() {
                Path::new(".")
            } else {
                above
            }
        })
        .find(|above| above.exists())
}

fn device(path: &Path) -> Option<u64> {
    existing(path)
        .and_then(|path| path.metadata().ok())
        .map(|metadata| metadata.dev())
}

/// Makes a directory and what is missing above it.
fn create_private(path: &Path, owner: Option<Owner>) -> Result<(), Error> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(above) = path.parent() {
        create_private(above, owner)?;
    }
    let created = DirBuilder::new().mode(0o700).create(path);
    created.map_err(Error::local("create the directory", path))?;
    owner.map_or(Ok(()), |owner| give(path, owner))
}

/// Changes the owner of a directory and all in it, without following links.
fn give(path: &Path, owner: Owner) -> Result<(), Error> {
    let given = std::os::unix::fs::lchown(path, Some(owner.user), Some(owner.group));
    given.map_err(Error::local("change the owner of", path))?;
    if path.is_symlink() || !path.is_dir() {
        return Ok(());
    }
    for entry in std::fs::read_dir(path).map_err(Error::local("read", path))? {
        give(&entry.map_err(Error::local("read", path))?.path(), owner)?;
    }
    Ok(())
}
