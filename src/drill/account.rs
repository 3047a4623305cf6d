//! As whom PostgreSQL runs, which refuses to run as root.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use super::Error;

/// The user that PostgreSQL runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Account {
    /// The one who runs the drill.
    Own,
    /// Another one, as root runs the drill.
    Other {
        /// Its name.
        name: String,
        /// Its number.
        user: u32,
        /// The number of its group.
        group: u32,
    },
}

/// Whom root takes on where nobody else is named: the user of every packaged PostgreSQL.
const DEFAULT: &str = "postgres";

impl Account {
    /// The user that is `named`, or who runs this; root takes on `postgres`.
    ///
    /// # Errors
    /// [`Error::NoUser`], [`Error::UserIsRoot`]; [`Error::OtherUser`] for a name where root does not run this.
    pub fn choose(named: Option<&str>) -> Result<Self, Error> {
        if !rustix::process::geteuid().is_root() {
            return match named {
                Some(name) if number("-u", name)? != rustix::process::geteuid().as_raw() => {
                    Err(Error::OtherUser(name.to_owned()))
                }
                _ => Ok(Self::Own),
            };
        }
        let name = named.unwrap_or(DEFAULT).to_owned();
        let (user, group) = (number("-u", &name)?, number("-g", &name)?);
        if user == 0 {
            return Err(Error::UserIsRoot(name));
        }
        Ok(Self::Other { name, user, group })
    }

    /// The program, to be run as this user.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        if let Self::Other { user, group, .. } = self {
            // The standard library drops root's other groups, too.
            command.gid(*group).uid(*user);
        }
        command
    }

    /// Gives a file or directory to this user.
    pub(super) fn own(&self, path: &Path) -> Result<(), Error> {
        match self {
            Self::Own => Ok(()),
            Self::Other { user, group, .. } => {
                std::os::unix::fs::chown(path, Some(*user), Some(*group))
                    .map_err(Error::local("change the owner of", path))
            }
        }
    }

    /// Gives an open file to this user.
    pub(super) fn own_file(&self, file: &File, path: &Path) -> Result<(), Error> {
        match self {
            Self::Own => Ok(()),
            Self::Other { user, group, .. } => {
                std::os::unix::fs::fchown(file, Some(*user), Some(*group))
                    .map_err(Error::local("change the owner of", path))
            }
        }
    }

    /// The user's name, where it is known.
    pub fn name(&self) -> Option<String> {
        match self {
            Self::Own => whoami::username().ok(),
            Self::Other { name, .. } => Some(name.clone()),
        }
    }
}

/// The number that `id` tells of a user: it knows all that the system's name services know.
fn number(flag: &str, name: &str) -> Result<u32, Error> {
    let output = Command::new("id").args([flag, "--", name]).output();
    let output = output.map_err(Error::local("run", "id"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let number = text.trim().parse().ok().filter(|_| output.status.success());
    number.ok_or_else(|| Error::NoUser(name.to_owned()))
}
