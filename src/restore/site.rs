//! Where a restore is to go, as it is found: looked at and locked before anything is written.

use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Access, StatVfs};
use walhalla_postgres::SystemIdentifier;

use super::Error;
use super::existing::{self, Existing};
use super::folder::{Folder, Kind, Owner, existing};
use super::occupant::{self, Occupant};
use super::places::{Naming, Place, Places, Role, is_own_file, tablespace_of};
use crate::contents::chain::Chain;
use crate::repository::BackupEntry;

/// What a restore takes of a file system.
#[derive(Clone, Debug)]
pub(super) struct Need {
    /// A path on it.
    pub(super) path: PathBuf,
    /// Room.
    pub(super) bytes: u64,
    /// Files.
    pub(super) files: u64,
}

/// The places as they are; those that are there are open and locked.
pub(super) struct Site {
    places: Vec<Spot>,
    owner: Option<Owner>,
    is_update: bool,
    wal_folder: &'static str,
    /// The cluster that is restored.
    cluster: SystemIdentifier,
}

struct Spot {
    place: Place,
    /// The directory itself, where it is there.
    found: Option<Folder>,
    /// Of a tablespace, the folder for this version, where it is there.
    version_folder: Option<Folder>,
}

impl Spot {
    /// The directory whose content is the restore's business, where it is there.
    fn content(&self) -> Option<&Folder> {
        match self.place.role {
            Role::Tablespace(_) => self.version_folder.as_ref(),
            Role::Data | Role::Wal => self.found.as_ref(),
        }
    }

    fn is_empty(&self) -> Result<bool, Error> {
        match self.content() {
            Some(folder) => Ok(folder.names("".as_ref())?.is_empty()),
            None => Ok(true),
        }
    }

    fn not_empty(&self, restored: SystemIdentifier) -> Error {
        let path = self.place.path.clone();
        let occupant = Occupant::of(&path, self.place.tablespace(), restored);
        Error::NotEmpty(path, Box::new(occupant))
    }
}

impl Site {
    /// Opens what is there of `places`, and keeps other restores out of it.
    ///
    /// # Errors
    /// [`Error::Restoring`] where another restore is at work.
    pub(super) fn look(
        places: &[Place],
        backup: &BackupEntry,
        existing_files: Existing,
    ) -> Result<Self, Error> {
        let data = places.iter().find(|place| place.role == Role::Data);
        let owner = data.map(|data| owner_of(&data.path)).transpose()?.flatten();
        let version_folder = PathBuf::from(backup.postgres_version.tablespace_folder());
        let mut spots = Vec::new();
        for place in places {
            let found = open_if_there(&place.path, owner)?;
            let version_folder = match (&found, place.role) {
                (Some(found), Role::Tablespace(_)) => found.inside(&version_folder)?,
                _ => None,
            };
            let spot = Spot {
                place: place.clone(),
                found,
                version_folder,
            };
            spot.content().map_or(Ok(()), Folder::lock)?;
            spots.push(spot);
        }
        let mut site = Self {
            places: spots,
            owner,
            is_update: false,
            wal_folder: backup.postgres_version.wal_folder(),
            cluster: backup.system_identifier,
        };
        site.is_update = existing_files == Existing::Update && !site.data()?.is_empty()?;
        Ok(site)
    }

    /// Whether a data directory with files in it is to be restored over.
    pub(super) fn is_update(&self) -> bool {
        self.is_update
    }

    /// Whom everything that root creates is given to: the owner of the data directory, or of what it will be made in.
    pub(super) fn owner(&self) -> Option<Owner> {
        self.owner
    }

    fn data(&self) -> Result<&Spot, Error> {
        let mut spots = self.places.iter();
        let data = spots.find(|spot| spot.place.role == Role::Data);
        data.ok_or_else(no_data)
    }

    /// Refuses places of which one is, or lies in, another.
    ///
    /// # Errors
    /// [`Error::SharedPlace`].
    pub(super) fn must_not_share(&self, stage: Option<&Path>) -> Result<(), Error> {
        let paths = self.places.iter().map(|spot| spot.place.path.as_path());
        let mut paths: Vec<(PathBuf, &Path)> = paths
            .chain(stage)
            .map(|path| (real_path(path), path))
            .collect();
        paths.sort_unstable();
        // Sorted, a directory comes right before what is inside it.
        let shared = paths
            .iter()
            .zip(paths.iter().skip(1))
            .find(|((outer, _), (inner, _))| inner.starts_with(outer));
        match shared {
            Some(((_, outer), (_, inner))) => {
                Err(Error::SharedPlace((*outer).to_owned(), (*inner).to_owned()))
            }
            None => Ok(()),
        }
    }

    /// Refuses files that nothing shows to be this cluster's, or that somebody uses.
    pub(super) fn check_contents(&self, backup: &BackupEntry) -> Result<(), Error> {
        let data = self.data()?;
        if self.is_update {
            existing::prove(&data.place.path, backup)?;
            self.check_wal_link(data)?;
        } else if !data.is_empty()? {
            return Err(data.not_empty(self.cluster));
        }
        for spot in &self.places {
            match spot.place.role {
                Role::Data => {}
                Role::Tablespace(oid) => self.check_tablespace(spot, oid, data, backup)?,
                Role::Wal => self.check_wal(spot, data)?,
            }
        }
        self.must_not_be_used()?;
        // Before what a mount hides is taken for a part of the directory.
        if self.is_update {
            let folders = self.places.iter().filter_map(Spot::content);
            { folders }.try_for_each(Folder::must_be_of_one_piece)?;
        }
        Ok(())
    }

    /// Refuses directories that a running server uses, whatever their files say.
    fn must_not_be_used(&self) -> Result<(), Error> {
        for spot in &self.places {
            if let Some(server) = occupant::running_in(&spot.place.path) {
                return Err(Error::InUse(spot.place.path.clone(), server));
            }
        }
        Ok(())
    }

    fn check_tablespace(
        &self,
        spot: &Spot,
        oid: u32,
        data: &Spot,
        backup: &BackupEntry,
    ) -> Result<(), Error> {
        let is_linked =
            self.is_update && existing::leads_to(&data.place.path, oid, &spot.place.path);
        if spot.place.naming == Naming::ByBackup {
            self.must_be_the_owners(spot, oid)?;
            if backup.of_standby == Some(true) && !is_linked {
                return Err(Error::StandbysTablespace {
                    backup: backup.id.clone(),
                    tablespace: oid,
                    place: spot.place.path.clone(),
                });
            }
        }
        if spot.is_empty()? {
            return Ok(());
        }
        let is_proven = match (&spot.version_folder, &data.found) {
            (Some(folder), Some(data)) if self.is_update => {
                existing::is_proven_tablespace(folder, data, backup)?
            }
            _ => false,
        };
        match (is_proven, is_linked, spot.place.naming) {
            (true, ..) | (false, true, Naming::ByUser) => Ok(()),
            (false, true, Naming::ByBackup) => Err(Error::UnprovenTablespace {
                tablespace: oid,
                place: spot.place.path.clone(),
            }),
            (false, false, _) => Err(spot.not_empty(self.cluster)),
        }
    }

    /// Root does in a place that only the backup names what the server's user could do there, and no more.
    fn must_be_the_owners(&self, spot: &Spot, oid: u32) -> Result<(), Error> {
        let path = &spot.place.path;
        let Some(owner) = self.owner else {
            return Ok(());
        };
        let stat = match &spot.found {
            Some(found) => found.stat()?,
            None => Folder::open(&existing(path), None)?.stat()?,
        };
        // What is root's is most of the host.
        if path.is_absolute() && stat.st_uid == owner.user && owner.user != 0 {
            return Ok(());
        }
        Err(Error::NotTheOwners {
            tablespace: oid,
            place: path.clone(),
            user: owner.user,
        })
    }

    fn check_wal(&self, spot: &Spot, data: &Spot) -> Result<(), Error> {
        let link = data.place.path.join(self.wal_folder);
        let is_linked = self.is_update
            && std::fs::read_link(link).is_ok_and(|target| target == spot.place.path);
        if is_linked || spot.is_empty()? {
            Ok(())
        } else {
            Err(spot.not_empty(self.cluster))
        }
    }

    /// A link for the WAL folder does not show whose the WAL is that it leads to: a copy of a data directory has it, too.
    fn check_wal_link(&self, data: &Spot) -> Result<(), Error> {
        let Some(folder) = &data.found else {
            return Ok(());
        };
        let link = Path::new(self.wal_folder);
        if folder.kind(link)? != Some(Kind::Link)
            || self.places.iter().any(|spot| spot.place.role == Role::Wal)
        {
            return Ok(());
        }
        let target = folder.read_link(link)?.unwrap_or_default();
        Err(Error::WalIsALink(data.place.path.join(link), target))
    }

    /// The WAL folder that is to be gone over.
    pub(super) fn wal_that_is_there(&self) -> Result<Option<Folder>, Error> {
        if !self.is_update {
            return Ok(None);
        }
        let inside = match &self.data()?.found {
            Some(data) => data.inside(self.wal_folder.as_ref())?,
            None => None,
        };
        let mut spots = self.places.iter();
        match (inside, spots.find(|spot| spot.place.role == Role::Wal)) {
            (None, Some(Spot { found, .. })) => found.as_ref().map(Folder::again).transpose(),
            (inside, _) => Ok(inside),
        }
    }

    /// Refuses places that cannot be written to.
    pub(super) fn check_rights(&self) -> Result<(), Error> {
        for spot in &self.places {
            let path = &spot.place.path;
            let is_dangling = path.symlink_metadata().is_ok() && !path.exists();
            if is_dangling {
                return Err(Error::LeadsNowhere(path.clone()));
            }
            if spot.place.role == Role::Data {
                must_have_a_folder(path)?;
            }
            must_be_writable(path)?;
            if let Some(folder) = &spot.found {
                self.must_be_owned(spot, folder)?;
            }
        }
        if self.owner.is_some_and(|owner| owner.user == 0) {
            tracing::warn!(
                "everything will belong to root, as {} does, and PostgreSQL does not run as root: give the directory to \
                 its user first",
                existing(&self.data()?.place.path).display()
            );
        }
        Ok(())
    }

    /// PostgreSQL refuses a data directory of another user, and only the owner can set its mode. Who owns another place could
    /// put something else there.
    fn must_be_owned(&self, spot: &Spot, folder: &Folder) -> Result<(), Error> {
        let own = rustix::process::geteuid().as_raw();
        let wanted = self.owner.map_or(own, |owner| owner.user);
        let user = folder.stat()?.st_uid;
        if user == wanted {
            return Ok(());
        }
        Err(Error::OtherOwner {
            path: spot.place.path.clone(),
            user,
            wanted,
        })
    }

    /// Refuses to go over directories that hold what the restore needs itself.
    ///
    /// # Errors
    /// [`Error::Needed`].
    pub(super) fn must_not_hold(&self, needed: &[PathBuf]) -> Result<(), Error> {
        if !self.is_update {
            return Ok(());
        }
        for spot in self.places.iter().filter(|spot| spot.found.is_some()) {
            let place = real_path(&spot.place.path);
            let inside = |path: &&PathBuf| real_path(path).starts_with(&place);
            if let Some(path) = needed.iter().find(inside) {
                return Err(Error::Needed(path.clone(), place));
            }
        }
        Ok(())
    }

    /// Says which directories with files in them are about to be gone over.
    pub(super) fn name_what_is_swept(&self) {
        if !self.is_update {
            return;
        }
        for spot in &self.places {
            let Some(folder) = spot.content().filter(|_| !spot.is_empty().unwrap_or(true)) else {
                continue;
            };
            tracing::warn!(
                "what the backup does not have is removed from {}, and the rest is brought to what the backup has",
                folder.path().display()
            );
        }
    }

    /// Makes what is missing, and locks what was not there before: it must be empty, as nothing was.
    pub(super) fn make(self, backup: &BackupEntry) -> Result<Places, Error> {
        let version_folder = PathBuf::from(backup.postgres_version.tablespace_folder());
        let (mut data, mut wal, mut tablespaces) = (None, None, BTreeMap::new());
        for spot in self.places {
            let Spot { place, found, .. } = spot;
            let folder = match found {
                Some(found) => found,
                None => fresh(Folder::make(&place.path, self.owner)?, self.cluster)?,
            };
            match place.role {
                Role::Data => data = Some(folder),
                Role::Wal => wal = Some((place.path, folder)),
                Role::Tablespace(oid) => {
                    let inside = match spot.version_folder {
                        Some(found) => found,
                        None => fresh(folder.make_inside(&version_folder)?, self.cluster)?,
                    };
                    tablespaces.insert(oid, (place.path, inside));
                }
            }
        }
        let data = data.ok_or_else(no_data)?;
        Ok(Places::new(backup, data, wal, tablespaces))
    }
}

/// A directory that was not there a moment ago, locked.
fn fresh(folder: Folder, restored: SystemIdentifier) -> Result<Folder, Error> {
    folder.lock()?;
    if folder.names("".as_ref())?.is_empty() {
        return Ok(folder);
    }
    let path = folder.path().to_owned();
    let occupant = Occupant::of(&path, None, restored);
    Err(Error::NotEmpty(path, Box::new(occupant)))
}

/// Every list of places has a data directory.
fn no_data() -> Error {
    Error::local("find", "the data directory")(std::io::ErrorKind::NotFound.into())
}

/// The path without links in it.
pub(super) fn real_path(path: &Path) -> PathBuf {
    let there = existing(path);
    let below = path.strip_prefix(&there).unwrap_or(Path::new(""));
    let real = std::fs::canonicalize(&there).unwrap_or(there);
    if below.as_os_str().is_empty() {
        real
    } else {
        real.join(below)
    }
}

/// Refuses a backup that names files which lie in no place of the restored cluster.
///
/// # Errors
/// [`Error::StrangePath`].
pub(super) fn check_paths(files: &Chain, backup: &BackupEntry) -> Result<(), Error> {
    let version_folder = backup.postgres_version.tablespace_folder();
    let has_place = |oid| backup.tablespaces.iter().any(|known| known.oid == oid);
    let is_usual = |path: &Path| {
        let is_inside = path
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        let below = tablespace_of(path).filter(|oid| has_place(*oid));
        let is_in_version_folder = below.is_none()
            || path
                .iter()
                .nth(2)
                .is_some_and(|part| *part == *version_folder);
        let has_name = below.is_none() || path.iter().count() > 3;
        is_inside && is_in_version_folder && has_name && !is_own_file(path)
    };
    let left_out = files.left_out().iter().map(|(path, _)| path);
    match files.paths().chain(left_out).find(|path| !is_usual(path)) {
        Some(path) => Err(Error::StrangePath(path)),
        None => Ok(()),
    }
}

/// Refuses a path of which more is missing than its last part: a misspelt one would be created.
///
/// # Errors
/// [`Error::NoFolder`].
fn must_have_a_folder(path: &Path) -> Result<(), Error> {
    let folder = path.parent().filter(|it| !it.as_os_str().is_empty());
    // What cannot be looked at is not missing.
    let is_missing = |path: &Path| matches!(path.try_exists(), Ok(false));
    let Some(folder) = folder.filter(|folder| is_missing(folder)) else {
        return Ok(());
    };
    let missing = folder.ancestors().take_while(|above| is_missing(above));
    let first = missing.filter(|it| !it.as_os_str().is_empty()).last();
    Err(Error::NoFolder(first.unwrap_or(folder).to_owned()))
}

/// Refuses a path below which nothing can be created.
///
/// # Errors
/// [`Error::NoRight`].
pub(super) fn must_be_writable(path: &Path) -> Result<(), Error> {
    let there = existing(path);
    let rights = Access::WRITE_OK | Access::EXEC_OK;
    rustix::fs::access(&there, rights).map_err(|errno| Error::NoRight {
        path: there.clone(),
        source: errno.into(),
    })
}

/// Refuses what has not room enough: what is on one file system is summed up.
///
/// # Errors
/// [`Error::NoRoom`] and [`Error::NoInodes`].
pub(super) fn must_have_room(needs: impl Iterator<Item = Need>) -> Result<(), Error> {
    let mut on_devices: HashMap<u64, Need> = HashMap::new();
    for need in needs {
        let there = existing(&need.path);
        let stat = rustix::fs::stat(&there)
            .map_err(|errno| Error::local("look at", &there)(errno.into()))?;
        let sum = on_devices.entry(stat.st_dev).or_insert(Need {
            path: there,
            bytes: 0,
            files: 0,
        });
        sum.bytes += need.bytes;
        sum.files += need.files;
    }
    let sorted: BTreeMap<PathBuf, Need> = on_devices
        .into_values()
        .map(|need| (need.path.clone(), need))
        .collect();
    sorted.into_values().try_for_each(|need| {
        let facts = rustix::fs::statvfs(&need.path)
            .map_err(|errno| Error::local("look at", &need.path)(errno.into()))?;
        fits(need, &facts)
    })
}

fn fits(need: Need, facts: &StatVfs) -> Result<(), Error> {
    let available_bytes = facts.f_bavail.saturating_mul(facts.f_frsize);
    if available_bytes < need.bytes {
        return Err(Error::NoRoom {
            path: need.path,
            available_bytes,
            needed_bytes: need.bytes,
        });
    }
    // File systems that do not count files say that they have none.
    if facts.f_files > 0 && facts.f_favail < need.files {
        return Err(Error::NoInodes {
            path: need.path,
            available: facts.f_favail,
            needed: need.files,
        });
    }
    Ok(())
}

fn open_if_there(path: &Path, owner: Option<Owner>) -> Result<Option<Folder>, Error> {
    if path.exists() {
        Folder::open(path, owner).map(Some)
    } else {
        Ok(None)
    }
}

/// Run by root: the owner of the data directory, or of what it will be made in.
fn owner_of(pgdata: &Path) -> Result<Option<Owner>, Error> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let stat = Folder::open(&existing(pgdata), None)?.stat()?;
    Ok(Some(Owner {
        user: stat.st_uid,
        group: stat.st_gid,
    }))
}
