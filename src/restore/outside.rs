//! What replay makes outside the data directory: tablespaces that were created after the backup began.
//!
//! Replay makes such a tablespace at the place that its record names, the original's, in every version: a link in
//! `pg_tblspc` that is there already is replaced (tablespace.c, `create_tablespace_directories`), and up to 14 what is in
//! the place is removed. A place that is missing ends recovery. So each place must be there, empty and the server's before
//! it starts; or missing, so that it can become a link to the directory that `--tablespace-map` names.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Error;
use super::folder::{Folder, Owner, existing};
use super::plan::{NewTablespace, Plan};
use super::site::real_path;

/// What is in a tablespace's place that nobody minds.
const OF_FILE_SYSTEM: &str = "lost+found";

/// Places that replay will use, and what is to be made of them.
#[derive(Debug, Default)]
pub struct Outside {
    links: Vec<Link>,
    /// Every directory that replay will write into, by the tablespace.
    written: Vec<(NewTablespace, PathBuf)>,
    /// Whom what is made belongs to, when root restores.
    owner: Option<Owner>,
}

/// A place that becomes a link.
#[derive(Debug)]
struct Link {
    place: PathBuf,
    to: PathBuf,
}

/// Why replay cannot use a place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It is in use, or was.
    #[error(
        "there are files in it: replay would write among them, and a server that uses them would lose them"
    )]
    NotEmpty,
    /// It is not there.
    #[error("it does not exist here: the server would stop in the middle of replay")]
    Missing,
    /// It is something else.
    #[error("it is no directory")]
    NoDirectory,
    /// The server could not use it.
    #[error("it does not belong to the user that the server runs as")]
    NotOwned,
    /// `--tablespace-map` names another directory.
    #[error("it is there, so that replay would use it and not {}", .0.display())]
    NotMapped(PathBuf),
    /// Something else of the restored cluster goes there.
    #[error(
        "its files would go where other files of this restore go, in {}: replay would remove them",
        .0.display()
    )]
    Shared(PathBuf),
    /// The directory that `--tablespace-map` names.
    #[error("there are files in {}, which is to stand for it", .0.display())]
    MapNotEmpty(PathBuf),
}

impl Outside {
    /// Looks at the places of the tablespaces that `plan` makes again, which `map` gives other directories. Writes nothing.
    ///
    /// # Errors
    /// [`Error::ReplayPlace`] for one that replay cannot use without harm.
    pub fn check(plan: &Plan, pgdata: &Path, map: &BTreeMap<u32, PathBuf>) -> Result<Self, Error> {
        let owner = owner_of(pgdata)?;
        let mut outside = Self {
            links: Vec::new(),
            written: Vec::new(),
            owner: owner
                .filter(|_| rustix::process::geteuid().is_root())
                .map(|(user, group)| Owner { user, group }),
        };
        for tablespace in &plan.new_tablespaces {
            let place = PathBuf::from(OsStr::from_bytes(tablespace.location.as_bytes()));
            if place.as_os_str().is_empty() || is_restored(plan, &place, map) {
                continue;
            }
            let mapped = map.get(&tablespace.oid).map(PathBuf::as_path);
            let unfit = match mapped {
                None => unused(&place, owner)?,
                Some(to) => outside.mapped(&place, to)?,
            };
            if let Some(unfit) = unfit {
                return Err(Error::ReplayPlace {
                    tablespace: Box::new(tablespace.clone()),
                    unfit,
                });
            }
            outside.must_be_the_only_one_in(tablespace, mapped.unwrap_or(&place))?;
            let written = mapped.into_iter().chain([place.as_path()]);
            let written = written.map(|path| (tablespace.clone(), path.to_owned()));
            outside.written.extend(written);
        }
        Ok(outside)
    }

    /// Refuses a directory that stands for the places of two tablespaces. The original may have had both at one place, one
    /// after the other; at two places it never had their files in one directory.
    fn must_be_the_only_one_in(
        &self,
        tablespace: &NewTablespace,
        path: &Path,
    ) -> Result<(), Error> {
        let others = self
            .written
            .iter()
            .filter(|(other, _)| other.location != tablespace.location);
        let real = real_path(path);
        match { others }.find(|(_, other)| real_path(other) == real) {
            Some((_, other)) => Err(shared(tablespace, other)),
            None => Ok(()),
        }
    }

    /// Refuses a place of replay that is, holds or lies in one of `places`, the directories that the restore itself uses:
    /// replay would take the restored files for what is left of an earlier attempt, and remove them (dbcommands.c,
    /// `dbase_redo`; tablespace.c, `create_tablespace_directories`). A tablespace's own place is no other's: it was created
    /// while the backup ran, and is in it.
    ///
    /// # Errors
    /// [`Error::ReplayPlace`].
    pub(super) fn must_not_share<'p>(
        &self,
        places: impl IntoIterator<Item = (Option<u32>, &'p Path)>,
    ) -> Result<(), Error> {
        let places: Vec<_> = places
            .into_iter()
            .map(|(oid, place)| (oid, real_path(place), place))
            .collect();
        for (tablespace, path) in &self.written {
            let real = real_path(path);
            let overlaps = |(oid, place, _): &&(Option<u32>, PathBuf, &Path)| {
                *oid != Some(tablespace.oid)
                    && (place.starts_with(&real) || real.starts_with(place))
            };
            if let Some((_, _, place)) = places.iter().find(overlaps) {
                return Err(shared(tablespace, place));
            }
        }
        Ok(())
    }

    fn mapped(&mut self, place: &Path, to: &Path) -> Result<Option<Unfit>, Error> {
        if !is_free(to)? {
            return Ok(Some(Unfit::MapNotEmpty(to.to_owned())));
        }
        match place.symlink_metadata() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                if !self.may_make(place)? {
                    return Ok(Some(Unfit::NotOwned));
                }
                self.links.push(Link {
                    place: place.to_owned(),
                    to: to.to_owned(),
                });
                Ok(None)
            }
            Err(error) => Err(Error::local("look at", place)(error)),
            // Made by an earlier restore.
            Ok(metadata)
                if metadata.is_symlink()
                    && std::fs::read_link(place).ok().as_deref() == Some(to) =>
            {
                self.links.push(Link {
                    place: place.to_owned(),
                    to: to.to_owned(),
                });
                Ok(None)
            }
            Ok(_) => Ok(Some(Unfit::NotMapped(to.to_owned()))),
        }
    }

    /// Makes the directories that `--tablespace-map` names, and links to them in the places that replay uses.
    ///
    /// # Errors
    /// [`Error::Local`].
    pub fn prepare(&self) -> Result<(), Error> {
        for Link { place, to } in &self.links {
            Folder::make(to, self.owner)?;
            let (Some(above), Some(name)) = (place.parent(), place.file_name()) else {
                continue;
            };
            let above = Folder::make(above, self.owner)?;
            if above.kind(name.as_ref())?.is_none() {
                above.link(to, name.as_ref())?;
            }
        }
        Ok(())
    }

    /// Whether the server's user could make `place`, which only the archive names: root makes nothing that they could not.
    fn may_make(&self, place: &Path) -> Result<bool, Error> {
        let Some(owner) = self.owner else {
            return Ok(true);
        };
        let there = Folder::open(&existing(place), None)?;
        Ok(place.is_absolute() && there.stat()?.st_uid == owner.user)
    }
}

fn shared(tablespace: &NewTablespace, place: &Path) -> Error {
    Error::ReplayPlace {
        tablespace: Box::new(tablespace.clone()),
        unfit: Unfit::Shared(place.to_owned()),
    }
}

/// Whether the restore itself makes a tablespace of the backup in this place: it was created while the backup ran.
fn is_restored(plan: &Plan, place: &Path, map: &BTreeMap<u32, PathBuf>) -> bool {
    let mut known = plan.backup.tablespaces.iter();
    known.any(|known| known.location == place && !map.contains_key(&known.oid))
}

/// Of `map`, the tablespaces that are not the backup's own but that replay makes.
pub fn of_replay(plan: &Plan, map: &BTreeMap<u32, PathBuf>) -> BTreeMap<u32, PathBuf> {
    let is_new = |oid: &u32| plan.new_tablespaces.iter().any(|new| new.oid == *oid);
    let is_own = |oid: &u32| plan.backup.tablespaces.iter().any(|own| own.oid == *oid);
    let all = map.iter().filter(|(oid, _)| is_new(oid) && !is_own(oid));
    all.map(|(oid, to)| (*oid, to.clone())).collect()
}

/// How a place that replay will use is unfit for it.
fn unused(place: &Path, owner: Option<(u32, u32)>) -> Result<Option<Unfit>, Error> {
    let metadata = match place.metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Some(Unfit::Missing));
        }
        Err(error) => return Err(Error::local("look at", place)(error)),
    };
    if !metadata.is_dir() {
        return Ok(Some(Unfit::NoDirectory));
    }
    if owner.is_some_and(|(user, _)| user != 0 && user != metadata.uid()) {
        return Ok(Some(Unfit::NotOwned));
    }
    Ok((!is_free(place)?).then_some(Unfit::NotEmpty))
}

/// Whether a directory is empty, or not there.
fn is_free(path: &Path) -> Result<bool, Error> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(Error::local("read", path)(error)),
    };
    for entry in entries {
        let entry = entry.map_err(Error::local("read", path))?;
        if entry.file_name() != OF_FILE_SYSTEM {
            return Ok(false);
        }
    }
    Ok(true)
}

/// User and group of the data directory, or of what it will be made in: the server's.
fn owner_of(pgdata: &Path) -> Result<Option<(u32, u32)>, Error> {
    let Some(existing) = pgdata.ancestors().find(|above| above.exists()) else {
        return Ok(None);
    };
    if !rustix::process::geteuid().is_root() {
        let own = rustix::process::geteuid().as_raw();
        return Ok(Some((own, rustix::process::getegid().as_raw())));
    }
    let metadata = existing
        .metadata()
        .map_err(Error::local("look at", existing))?;
    Ok(Some((metadata.uid(), metadata.gid())))
}

impl Unfit {
    /// What can be done about a place that replay cannot use for `tablespace`.
    pub fn hint(&self, tablespace: &NewTablespace) -> String {
        let (oid, place, lsn) = (tablespace.oid, &tablespace.location, tablespace.lsn);
        let before = format!("choose a target before {lsn}, where the tablespace was created");
        match self {
            Self::NotEmpty | Self::NotMapped(_) => format!(
                "replay creates the tablespace at the original's path whatever the restore does: restore on another host or \
                 in a container, where {place} is empty or missing, or {before}; nothing was written"
            ),
            Self::Missing => format!(
                "create it, empty and owned by the server's user; or --tablespace-map {oid}=DIR makes it a link to DIR; or \
                 {before}; nothing was written"
            ),
            Self::NoDirectory | Self::NotOwned => format!(
                "make it an empty directory that the server's user owns, or {before}; nothing was written"
            ),
            Self::Shared(_) => format!(
                "give each a directory of its own with --tablespace-map, neither of them inside of the other (where {place} is \
                 there, replay creates tablespace {oid} in it: map the other one), or {before}; nothing was written"
            ),
            Self::MapNotEmpty(_) => {
                format!(
                    "name an empty or new directory with --tablespace-map {oid}=DIR; nothing was written"
                )
            }
        }
    }
}
