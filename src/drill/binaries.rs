//! The programs of the PostgreSQL that a backup is of.

use std::path::{Path, PathBuf};
use std::process::Command;

use walhalla_postgres::Version;

use super::Error;

/// A directory with the server's programs.
#[derive(Clone, Debug)]
pub struct Binaries {
    directory: PathBuf,
}

impl Binaries {
    /// The programs of this version: in the directory that is `named`, or else in `PATH` and where packages put them.
    ///
    /// # Errors
    /// [`Error::NoServer`] with the directories that were looked at.
    pub fn find(version: Version, named: Option<&Path>) -> Result<Self, Error> {
        let looked = match named {
            Some(named) => vec![named.to_owned()],
            None => usual(version),
        };
        let fits = |directory: &&PathBuf| is_of(&directory.join("postgres"), version);
        match looked.iter().find(fits) {
            Some(directory) => Ok(Self {
                directory: directory.clone(),
            }),
            None => Err(Error::NoServer { version, looked }),
        }
    }

    /// The server.
    pub fn server(&self) -> PathBuf {
        self.directory.join("postgres")
    }

    /// A program, if it is there.
    pub fn program(&self, name: &str) -> Option<PathBuf> {
        let path = self.directory.join(name);
        path.is_file().then_some(path)
    }

    /// Whether a library that a setting names can be loaded here, as far as can be seen: in the package's directory of
    /// libraries, or under its own path.
    pub(super) fn has_library(&self, library: &str) -> bool {
        let name = library.strip_prefix("$libdir/").unwrap_or(library);
        let file = format!("{}.so", name.strip_suffix(".so").unwrap_or(name));
        let file = Path::new(&file);
        if file.is_absolute() {
            return file.is_file();
        }
        let places = self.library_places();
        places.iter().any(|place| place.join(file).is_file())
    }

    /// `pkglibdir`, as packages and builds have it beside their programs.
    fn library_places(&self) -> Vec<PathBuf> {
        let real = self.server().canonicalize();
        let real = real.unwrap_or_else(|_| self.server());
        let mut places: Vec<PathBuf> =
            { ["lib", "lib/postgresql", "lib64", "lib64/postgresql"].iter() }
                .filter_map(|name| Some(real.parent()?.parent()?.join(name)))
                .collect();
        if let Some(config) = self.program("pg_config")
            && let Ok(output) = Command::new(config).arg("--pkglibdir").output()
        {
            let text = String::from_utf8_lossy(&output.stdout);
            places.push(text.trim().into());
        }
        places
    }
}

/// `PATH`, then what Debian and the PostgreSQL project's RPM packages use.
fn usual(version: Version) -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let of_packages = [
        format!("/usr/lib/postgresql/{version}/bin"),
        format!("/usr/pgsql-{version}/bin"),
    ];
    let mut usual: Vec<PathBuf> = Vec::new();
    for directory in std::env::split_paths(&path).chain(of_packages.map(PathBuf::from)) {
        if directory.is_absolute() && !usual.contains(&directory) {
            usual.push(directory);
        }
    }
    usual
}

/// Whether this is a server of the version: `postgres (PostgreSQL) 17.2 (Debian 17.2-1)`.
fn is_of(server: &Path, version: Version) -> bool {
    if !server.is_file() {
        return false;
    }
    let Ok(output) = Command::new(server).arg("--version").output() else {
        return false;
    };
    let text = String::from_utf8_lossy(&output.stdout);
    is_version(&text, version)
}

fn is_version(text: &str, version: Version) -> bool {
    let number = text.split_whitespace().nth(2).unwrap_or_default();
    let digits = number.find(|letter: char| !letter.is_ascii_digit());
    let major = number.get(..digits.unwrap_or(number.len()));
    major.and_then(|major| major.parse().ok()) == Some(version.major())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_says_its_version_in_many_ways() {
        let version = Version::parse("17").unwrap();
        for (text, is) in [
            (
                "postgres (PostgreSQL) 17.2 (Debian 17.2-1.pgdg120+1)\n",
                true,
            ),
            ("postgres (PostgreSQL) 17beta3\n", true),
            ("postgres (PostgreSQL) 17devel\n", true),
            ("postgres (PostgreSQL) 16.6\n", false),
            ("postgres (PostgreSQL) 1.17\n", false),
            ("", false),
        ] {
            assert_eq!(is_version(text, version), is, "{text}");
        }
    }
}
