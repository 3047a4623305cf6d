//! The course of a restore.

use std::collections::{BTreeMap, HashMap};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread;

use super::Error;
use super::chosen_databases::ChosenDatabases;
use super::existing::{self, Aside, Existing};
use super::leading_out;
use super::outside::Outside;
use super::places::{Naming, Place, Places, Role};
use super::plan::Plan;
use super::recovery::Settings;
use super::site::{self, Need, Site};
use super::stage::{self, Seal};
use super::unpack::Unpacker;
use crate::contents::chain::{Access, Chain};
use crate::durability::Durability;
use crate::progress::{Progress, Show};
use crate::repository::deletions::Guarded;
use crate::repository::{BackupEntry, Repository};

/// Room that a restore leaves for PostgreSQL's own WAL and temporary files.
const SPARE_BYTES: u64 = 64 << 20;
/// Files that a restore and a starting server make besides those of the backup.
const SPARE_FILES: u64 = 100;

/// Where a backup goes, and how.
#[derive(Clone, Debug)]
pub struct Destination {
    /// The data directory to make.
    pub pgdata: PathBuf,
    /// Places of tablespaces that the user named, by OID.
    pub tablespaces: BTreeMap<u32, PathBuf>,
    /// Where the WAL folder is to be, if not in the data directory.
    pub wal: Option<PathBuf>,
    /// Where WAL is staged, and moved out of the way, instead of beside the data directory.
    pub spool: Option<PathBuf>,
    /// What is done with files that are there.
    pub existing: Existing,
    /// Whether the restore waits for the disk.
    pub durability: Durability,
    /// The databases that are restored; all without.
    pub only: Option<ChosenDatabases>,
    /// What the restore itself reads, which it must not remove.
    pub needed: Vec<PathBuf>,
    /// Parts and segments that are fetched at a time.
    pub threads: usize,
    /// How progress is shown.
    pub show: Show,
}

/// Puts `files`, which are those of `backup`, in place: a data directory that recovers from its `backup_label`, without any
/// WAL. Returns how many bytes of it were there already.
pub fn fetch_backup(
    repository: &Repository,
    backup: &BackupEntry,
    files: Chain,
    to: &Destination,
) -> Result<u64, Error> {
    let ready = to.check(repository, backup, &files, None, &Outside::default());
    let ready = ready.map_err(Error::before_writing)?;
    let progress = Progress::new(to.show, "restoring", files.size_bytes());
    let places = to.prepare(backup, ready, &files)?;
    let unpacker = Unpacker::new(files, &places, to.existing, &progress);
    unpacker.unpack(to.threads)?;
    finish(&places, &unpacker)?;
    progress.finish();
    Ok(unpacker.kept_bytes())
}

/// Carries out a plan with the `files` of its backup: afterwards the server starts and recovers to the target. Returns how many
/// bytes of the files were there already.
///
/// `settings` makes the recovery settings from where the WAL is; `stage` is where it is staged, if it is and no other
/// directory's WAL is there; `outside` are the places of tablespaces that replay will make.
pub fn restore(
    repository: &Repository,
    plan: &Plan,
    files: Chain,
    to: &Destination,
    stage: Option<&Path>,
    outside: &Outside,
    settings: impl FnOnce(Option<Seal>) -> Settings,
) -> Result<u64, Error> {
    let backup = &plan.backup;
    let stage = stage.map(|wanted| stage::choose(wanted, &to.pgdata, backup));
    let stage = stage.transpose()?;
    let staged = stage.as_ref().map(|stage| Need {
        path: stage.path.clone(),
        bytes: plan.stage_bytes(),
        files: plan.staged_files(),
    });
    let ready = to.check(repository, backup, &files, staged, outside);
    let ready = ready.map_err(Error::before_writing)?;
    let wal = plan.segments.iter().map(|(_, file)| file.stored_bytes);
    let wal_bytes: u64 = if stage.is_some() { wal.sum() } else { 0 };
    let progress = Progress::new(to.show, "restoring", files.size_bytes() + wal_bytes);
    let places = to.prepare(backup, ready, &files)?;
    let owner = places.data.owner();
    let stage = stage.map(|choice| stage::Stage::prepare(&choice, owner, to.durability));
    let stage = stage.transpose()?;
    let unpacker = Unpacker::new(files, &places, to.existing, &progress);
    unpacker.unpack(to.threads)?;
    let sealed = stage
        .as_ref()
        .map(|stage| stage.fill(repository, plan, &to.pgdata, to.threads, &progress));
    outside.prepare()?;
    leading_out::comment_out_data_directory(&places.data)?;
    settings(sealed.transpose()?).write(plan, &places.data, unpacker.file_mode()?)?;
    finish(&places, &unpacker)?;
    progress.finish();
    Ok(unpacker.kept_bytes())
}

/// What the check found, and has locked.
pub(super) struct Ready {
    pub(super) site: Site,
    /// WAL files that exist nowhere else.
    pub(super) only_here: Vec<PathBuf>,
}

impl Destination {
    /// Every directory that is to hold files of the cluster: the data directory last.
    ///
    /// # Errors
    /// [`Error::NoSuchTablespace`], and [`Error::SharedPlace`] for a tablespace that is in the backup twice.
    pub(super) fn places(&self, backup: &BackupEntry) -> Result<Vec<Place>, Error> {
        let mut known: HashMap<u32, &Path> = HashMap::new();
        for tablespace in &backup.tablespaces {
            if let Some(other) = known.insert(tablespace.oid, &tablespace.location) {
                let shared = (other.to_owned(), tablespace.location.clone());
                return Err(Error::SharedPlace(shared.0, shared.1));
            }
        }
        if let Some(oid) = self.tablespaces.keys().find(|oid| !known.contains_key(oid)) {
            return Err(Error::NoSuchTablespace(*oid));
        }
        let mut places: Vec<Place> = known
            .into_iter()
            .map(|(oid, original)| match self.tablespaces.get(&oid) {
                Some(named) => (Role::Tablespace(oid), named.clone(), Naming::ByUser),
                None => (Role::Tablespace(oid), original.to_owned(), Naming::ByBackup),
            })
            .chain(
                self.wal
                    .clone()
                    .map(|path| (Role::Wal, path, Naming::ByUser)),
            )
            .map(|(role, path, naming)| Place { role, path, naming })
            .collect();
        places.sort_by(|a, b| a.path.cmp(&b.path));
        places.push(Place {
            role: Role::Data,
            path: self.pgdata.clone(),
            naming: Naming::ByUser,
        });
        Ok(places)
    }

    /// The files that go there.
    pub(super) fn open<'a>(
        &self,
        repository: &'a Repository,
        chain: &'a [BackupEntry],
    ) -> Result<Chain<'a>, Error> {
        let access = match self.existing {
            Existing::Refuse => Access::Stream,
            Existing::Update => Access::Random,
        };
        let is_wanted = |path: &Path| self.only.as_ref().is_none_or(|only| only.has(path));
        let chain = Chain::open(repository, chain, access, &is_wanted).map_err(Error::from);
        chain.map_err(Error::before_writing)
    }

    /// Reads the lists of the backups in `chain` while `guard` takes its lease: both wait for the store. What a deletion takes
    /// is told as that, and not as an object that is not there.
    ///
    /// # Errors
    /// Those of `guard` and of [`Chain::open`].
    pub fn open_guarded<'a>(
        &self,
        repository: &'a Repository,
        chain: &'a [BackupEntry],
        guard: impl FnOnce() -> Result<Guarded, Error>,
    ) -> Result<(Chain<'a>, Guarded), Error> {
        thread::scope(|scope| {
            let opening = scope.spawn(|| self.open(repository, chain));
            let guarded = guard();
            let files = opening.join().unwrap_or_else(|panic| resume_unwind(panic));
            let guarded = guarded?;
            Ok((files?, guarded))
        })
    }

    /// Refuses what cannot end well, before anything is written.
    pub(super) fn check(
        &self,
        repository: &Repository,
        backup: &BackupEntry,
        files: &Chain,
        staged: Option<Need>,
        outside: &Outside,
    ) -> Result<Ready, Error> {
        let places = self.places(backup)?;
        let stage = staged.as_ref().map(|staged| staged.path.clone());
        let site = Site::look(&places, backup, self.existing)?;
        site::check_paths(files, backup)?;
        site.must_not_share(stage.as_deref())?;
        let aside = self.aside().folder(1);
        let own = places
            .iter()
            .map(|place| (place.tablespace(), place.path.as_path()));
        let beside = stage.as_deref().into_iter().chain([aside.as_path()]);
        outside.must_not_share(own.chain(beside.map(|path| (None, path))))?;
        site.check_contents(backup)?;
        site.check_rights()?;
        site.must_not_hold(&self.needed)?;
        let only_here = match site.wal_that_is_there()? {
            Some(wal) => existing::only_here(&wal, backup, repository)?,
            None => Vec::new(),
        };
        if !only_here.is_empty() {
            site::must_be_writable(&self.aside().within)?;
        }
        let needs = if site.is_update() {
            // How much there will be in the end is known; how much on the way is not.
            vec![Need {
                path: self.pgdata.clone(),
                bytes: SPARE_BYTES,
                files: SPARE_FILES,
            }]
        } else {
            self.needs(&places, files)
        };
        site::must_have_room(needs.into_iter().chain(staged))?;
        if let Some(stage) = stage {
            stage::must_be_free(&stage, self.spool.as_deref(), site.owner())?;
        }
        Ok(Ready { site, only_here })
    }

    /// What the files take, in each place.
    pub(super) fn needs(&self, places: &[Place], files: &Chain) -> Vec<Need> {
        let mut of_place: BTreeMap<Option<u32>, (u64, u64)> = BTreeMap::new();
        for (path, size_bytes) in files.sizes() {
            let of = of_place
                .entry(super::places::tablespace_of(&path))
                .or_default();
            *of = (of.0 + size_bytes, of.1 + 1);
        }
        let in_places = places.iter().filter_map(|place| match place.role {
            Role::Tablespace(oid) => of_place
                .remove(&Some(oid))
                .map(|needed| (place.path.clone(), needed)),
            Role::Data | Role::Wal => None,
        });
        let mut needs: Vec<_> = in_places.collect();
        let rest = of_place.into_values();
        let rest = rest.fold((SPARE_BYTES, SPARE_FILES), |sum, of| {
            (sum.0 + of.0, sum.1 + of.1)
        });
        needs.push((self.pgdata.clone(), rest));
        let need = |(path, (bytes, files))| Need { path, bytes, files };
        needs.into_iter().map(need).collect()
    }

    /// Where WAL that is nowhere else is moved to: on the file system of the WAL, if it has a directory of its own.
    fn aside(&self) -> Aside {
        let from = self.wal.as_ref().unwrap_or(&self.pgdata);
        let from = site::real_path(from);
        let name = from.file_name().unwrap_or_default();
        let beside = from.parent().unwrap_or(Path::new("/")).to_owned();
        Aside {
            within: self.spool.clone().unwrap_or(beside),
            name: name.to_string_lossy().into_owned(),
        }
    }

    /// Makes the data directory and the tablespaces' places and links; of one that is there, takes away what is not of the
    /// backup. It cannot be started from here on.
    ///
    /// All of this is durable, whatever is chosen for the files that follow: that a directory which is overwritten cannot be
    /// started, whose it is, and WAL that was moved out of the way and is nowhere else.
    fn prepare(&self, backup: &BackupEntry, ready: Ready, files: &Chain) -> Result<Places, Error> {
        let Ready { site, only_here } = ready;
        site.name_what_is_swept();
        if site.is_update() {
            // Comparing the WAL took a while, and a server that was started since is seen by its postmaster.pid.
            existing::prove(&self.pgdata, backup)?;
        }
        let aside = self.aside();
        let places = site.make(backup)?;
        places.data.set_directory_mode("".as_ref(), 0o700)?;
        existing::leave_proof(&places, backup)?;
        if self.existing == Existing::Update {
            existing::disable(&places.data)?;
            let inside = places.data.inside(places.wal_folder().as_ref())?;
            let elsewhere = places.wal().map(|(_, wal)| wal.again()).transpose()?;
            let wal = inside.or(elsewhere);
            if let Some(wal) = wal {
                existing::move_aside(&wal, &only_here, &aside)?;
            }
            let removed = existing::remove_others(&places, files)?;
            tracing::debug!("{removed} files that the backup does not have were removed");
        }
        places.link()?;
        Ok(places.with(self.durability))
    }
}

/// Puts in place what makes the directory one that starts.
fn finish(places: &Places, files: &Unpacker) -> Result<(), Error> {
    files.finish()?;
    existing::take_proof_away(places)
}
