//! The `WALHALLA_*` variables of the environment. One that no setting has is refused, so that a misspelt
//! `WALHALLA_AGE_RECIPIENTS` lets nothing be stored unencrypted.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use super::table::{AGE_RECIPIENTS, ROWS, most_like};
use super::{Environment, Error};

const PREFIX: &str = "WALHALLA_";

/// Names the settings file, in which it can thus not stand.
pub(super) const FILE_VARIABLE: &str = "WALHALLA_CONFIG";

/// Variables that are no settings and may be there all the same, and why. One that ends in `_` stands for all that begin so.
const OF_OTHERS: [(&str, &str); 3] = [
    (
        "WALHALLA_TEST_",
        "whoever develops Walhalla has them in the shell; the tests and the scripts in tests/ read them",
    ),
    (
        "WALHALLA_CAMPAIGN_",
        "the Makefile sets them for tests/campaign",
    ),
    (
        "WALHALLA_COMMIT",
        "build.rs and docker/Dockerfile read it when the program is built",
    ),
];

/// What Kubernetes puts in front of the addresses that it gives to each container of a namespace (`enableServiceLinks`).
const ADDRESSES: [&str; 3] = ["tcp://", "udp://", "sctp://"];

/// The variables that count.
#[derive(Debug, Default)]
pub(super) struct Variables(BTreeMap<OsString, OsString>);

impl Variables {
    /// # Errors
    /// [`Error::UnknownVariable`], where the environment is read.
    pub(super) fn read(environment: Environment) -> Result<Self, Error> {
        match environment {
            Environment::Read => Self::among(std::env::vars_os()),
            Environment::Ignored => Ok(Self::default()),
        }
    }

    fn among(all: impl Iterator<Item = (OsString, OsString)>) -> Result<Self, Error> {
        let is_ours = |name: &OsStr| name.as_encoded_bytes().starts_with(PREFIX.as_bytes());
        let ours: BTreeMap<_, _> = all
            .filter(|(name, value)| is_ours(name) && counts(name, value))
            .collect();
        let unknown = ours
            .iter()
            .map(|(name, value)| (name.to_string_lossy(), value))
            .find(|(name, value)| !is_known(name) && !is_of_others(name, value));
        match unknown {
            None => Ok(Self(ours)),
            Some((name, _)) => Err(Error::UnknownVariable {
                nearest: most_like(&name, known()).unwrap_or(FILE_VARIABLE),
                name: name.into_owned(),
            }),
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&OsStr> {
        self.0.get(OsStr::new(name)).map(OsString::as_os_str)
    }
}

/// Whether a variable counts as set. An empty one does not, with one exception: an empty list of recipients may be the
/// output of a command that failed, as in `WALHALLA_AGE_RECIPIENTS=$(cat FILE)`, and would let objects be stored unencrypted.
fn counts(name: &OsStr, value: &OsStr) -> bool {
    !value.is_empty() || name == AGE_RECIPIENTS.row.variable
}

fn known() -> impl Iterator<Item = &'static str> {
    ROWS.iter().map(|row| row.variable).chain([FILE_VARIABLE])
}

fn is_known(name: &str) -> bool {
    known().any(|known| known == name)
}

fn is_of_others(name: &str, value: &OsStr) -> bool {
    let is_meant = |(other, _why): &(&str, &str)| {
        name == *other || (other.ends_with('_') && name.starts_with(other))
    };
    OF_OTHERS.iter().any(is_meant) || is_service_link(name, value)
}

/// Whether Kubernetes describes a service with the variable, such as one named `walhalla` or `walhalla-metrics`. A service
/// that is made in the namespace must not stop the archiving.
fn is_service_link(name: &str, value: &OsStr) -> bool {
    let is_address = || {
        let value = value.to_string_lossy();
        ADDRESSES.iter().any(|begin| value.starts_with(begin))
    };
    let has_port_number = || {
        name.split("_PORT_")
            .skip(1)
            .any(|rest| rest.starts_with(|letter: char| letter.is_ascii_digit()))
    };
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || (name.ends_with("_PORT") && is_address())
        || has_port_number()
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    fn among(variables: &[(&str, &str)]) -> Result<Variables, Error> {
        let variables = variables
            .iter()
            .map(|(name, value)| (name.into(), value.into()));
        Variables::among(variables)
    }

    #[test]
    fn an_unknown_variable_is_an_error_that_names_the_nearest_one() {
        for (wrong, expected) in [
            ("WALHALLA_AGE_RECIPENTS", "WALHALLA_AGE_RECIPIENTS"),
            ("WALHALLA_COMPRESION", "WALHALLA_COMPRESSION"),
            ("WALHALLA_CONFIG_FILE", "WALHALLA_CONFIG"),
            ("WALHALLA_SOTRE", "WALHALLA_STORE"),
        ] {
            let error = among(&[("WALHALLA_STORE", "file:///x"), (wrong, "secret")]).unwrap_err();
            let Error::UnknownVariable { name, nearest } = &error else {
                panic!("{error}");
            };
            assert_eq!((name.as_str(), *nearest), (wrong, expected));
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn an_empty_variable_counts_as_not_set() {
        let empty = [("WALHALLA_STORE", ""), ("WALHALLA_SOTRE", "")];
        let variables = among(&empty).unwrap();
        assert!(variables.get("WALHALLA_STORE").is_none());
    }

    #[test]
    fn services_of_kubernetes_stop_nothing() {
        among(&[
            ("WALHALLA_SERVICE_HOST", "10.0.0.7"),
            ("WALHALLA_SERVICE_PORT", "9187"),
            ("WALHALLA_SERVICE_PORT_HTTP", "9187"),
            ("WALHALLA_PORT", "tcp://10.0.0.7:9187"),
            ("WALHALLA_PORT_9187_TCP", "tcp://10.0.0.7:9187"),
            ("WALHALLA_PORT_9187_TCP_PROTO", "tcp"),
            ("WALHALLA_PORT_9187_TCP_PORT", "9187"),
            ("WALHALLA_PORT_9187_TCP_ADDR", "10.0.0.7"),
            ("WALHALLA_METRICS_SERVICE_HOST", "10.0.0.8"),
        ])
        .unwrap();
        among(&[("WALHALLA_PORT", "9187")]).unwrap_err();
    }

    #[test]
    fn no_setting_looks_like_a_variable_of_others() {
        for name in known() {
            assert!(!is_of_others(name, OsStr::new("tcp://x")), "{name}");
        }
    }

    /// Examples of the book and of tests.
    const MISSPELT: [&str; 3] = [
        "WALHALLA_AGE_RECIPENTS",
        "WALHALLA_AGE_RECIPIENT",
        "WALHALLA_SOTRE",
    ];

    /// What the project's own scripts, tests and build say must be a setting or an exception.
    #[test]
    fn every_variable_that_the_project_names_is_known() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut left: Vec<PathBuf> = ["tests", "docker", "providers", "examples", "docs"]
            .map(|folder| root.join(folder))
            .into();
        left.extend(["build.rs", "Makefile", "README.md"].map(|file| root.join(file)));
        let mut names = 0;
        while let Some(path) = left.pop() {
            if path.is_dir() {
                let entries = std::fs::read_dir(path).unwrap();
                left.extend(entries.map(|entry| entry.unwrap().path()));
                continue;
            }
            let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
            for (at, _) in text.match_indices(PREFIX) {
                let is_name =
                    |letter: char| letter.is_ascii_uppercase() || "_0123456789".contains(letter);
                let name = text[at..].split(|letter| !is_name(letter)).next().unwrap();
                let is_known = is_known(name) || is_of_others(name, OsStr::new(""));
                let is_wrong_on_purpose = name == PREFIX || MISSPELT.contains(&name);
                assert!(
                    is_known || is_wrong_on_purpose,
                    "{name} in {}",
                    path.display()
                );
                names += usize::from(is_known);
            }
        }
        assert!(names > 50, "only {names} were found");
    }
}
