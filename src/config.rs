//! Settings: a TOML file, environment variables that win over it, and flags that win over both.
//!
//! One table names every key; values are text until they are checked.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use walhalla_providers::transfer::{
    AzureSettings, ConditionalWrites, GcsSettings, ObjectLock, S3Settings, StoreSettings,
};

use crate::pipeline::encryption::{RecipientError, is_secret};
use crate::pipeline::{Compression, Identities, Recipients};

/// The file that is read when none is named.
pub const DEFAULT_FILE: &str = "/etc/walhalla/walhalla.toml";

/// How many deltas may stand on one full backup, unless the settings say otherwise.
const DELTA_MAX_CHAIN: usize = 6;

/// One setting.
struct Key {
    name: &'static str,
    variable: &'static str,
}

const fn key(name: &'static str, variable: &'static str) -> Key {
    Key { name, variable }
}

/// Every setting.
const KEYS: [Key; 26] = [
    key("store", "WALHALLA_STORE"),
    key("compression", "WALHALLA_COMPRESSION"),
    key("age_recipients", "WALHALLA_AGE_RECIPIENTS"),
    key("age_recipients_file", "WALHALLA_AGE_RECIPIENTS_FILE"),
    key("age_identity_file", "WALHALLA_AGE_IDENTITY_FILE"),
    key("upload_concurrency", "WALHALLA_UPLOAD_CONCURRENCY"),
    key("download_concurrency", "WALHALLA_DOWNLOAD_CONCURRENCY"),
    key("spool_dir", "WALHALLA_SPOOL_DIR"),
    key("socket", "WALHALLA_SOCKET"),
    key("archive_timeout", "WALHALLA_ARCHIVE_TIMEOUT"),
    key("retry_timeout", "WALHALLA_RETRY_TIMEOUT"),
    key("delta_max_chain", "WALHALLA_DELTA_MAX_CHAIN"),
    key("ca_file", "WALHALLA_CA_FILE"),
    key("s3_force_path_style", "WALHALLA_S3_FORCE_PATH_STYLE"),
    key("s3_part_size", "WALHALLA_S3_PART_SIZE"),
    key("s3_sse", "WALHALLA_S3_SSE"),
    key("s3_sse_kms_key_id", "WALHALLA_S3_SSE_KMS_KEY_ID"),
    key("s3_storage_class", "WALHALLA_S3_STORAGE_CLASS"),
    key("s3_object_lock_mode", "WALHALLA_S3_OBJECT_LOCK_MODE"),
    key("s3_object_lock_days", "WALHALLA_S3_OBJECT_LOCK_DAYS"),
    key("s3_requester_pays", "WALHALLA_S3_REQUESTER_PAYS"),
    key("s3_conditional_writes", "WALHALLA_S3_CONDITIONAL_WRITES"),
    key("s3_checksums", "WALHALLA_S3_CHECKSUMS"),
    key("gcs_kms_key", "WALHALLA_GCS_KMS_KEY"),
    key("gcs_storage_class", "WALHALLA_GCS_STORAGE_CLASS"),
    key("azure_access_tier", "WALHALLA_AZURE_ACCESS_TIER"),
];

/// Those with which a store is read.
const READ_WITH: [&str; 7] = [
    "download_concurrency",
    "retry_timeout",
    "ca_file",
    "s3_force_path_style",
    "s3_requester_pays",
    "s3_conditional_writes",
    "s3_checksums",
];

/// What the command line says of settings.
#[derive(Clone, Copy, Debug)]
pub struct Flags<'a> {
    /// `--config`
    pub file: Option<&'a Path>,
    /// `--store`
    pub store: Option<&'a str>,
    /// `--set`
    pub set: &'a [(String, String)],
    /// Whether variables count.
    pub environment: Environment,
}

/// What is made of WALHALLA_* variables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Environment {
    /// They win over the file.
    Read,
    /// Nothing: who wrote the command line said all that counts.
    Ignored,
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A flag of the command line.
    Flag,
    /// An environment variable.
    Variable(&'static str),
    /// The settings file.
    File(PathBuf),
    /// Nowhere.
    Default,
}

/// A setting's text and origin.
#[derive(Clone, Debug)]
pub struct Value {
    /// The key in the file.
    pub key: &'static str,
    /// The value; `None` where there is no default.
    pub text: Option<String>,
    /// Where it came from.
    pub origin: Origin,
}

/// The settings, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where backups and WAL go.
    pub store: Option<String>,
    /// How new objects are compressed.
    pub compression: Compression,
    /// What opens encrypted objects.
    pub identities: Identities,
    /// Requests and parts that go up at a time.
    pub upload_concurrency: usize,
    /// Requests and parts that come down at a time.
    pub download_concurrency: usize,
    /// Where WAL is staged instead of beside the data directory.
    pub spool_dir: Option<PathBuf>,
    /// How long a backup waits for each WAL segment to arrive.
    pub archive_timeout: Duration,
    /// How long a failing request is tried again.
    pub retry_timeout: Duration,
    /// How many deltas may stand on one full backup, one on the other; with 0 there are none.
    pub delta_max_chain: usize,
    /// How the cloud stores are used.
    pub stores: StoreSettings,
    /// The settings file, if one was read.
    pub file: Option<PathBuf>,
    /// Every setting as it was found, for `walhalla config`.
    pub values: Vec<Value>,
}

/// What can be wrong with settings.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("could not read the settings file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The file is no TOML.
    #[error("{} is not valid TOML", path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A key that does not exist.
    #[error("{} has the unknown key {key:?}", path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The key that is most like it.
        nearest: &'static str,
    },
    /// A value that does not fit its key.
    #[error("the setting {key} ({origin}) is not valid: {problem}")]
    InvalidValue {
        /// The key.
        key: &'static str,
        /// Where the value came from.
        origin: Origin,
        /// What is wrong with it.
        problem: String,
    },
    /// No store.
    #[error("no store is set")]
    NoStore,
}

impl Settings {
    /// Reads and checks the settings.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn load(flags: &Flags) -> Result<Self, Error> {
        let variable = || match flags.environment {
            Environment::Read => std::env::var_os("WALHALLA_CONFIG").map(PathBuf::from),
            Environment::Ignored => None,
        };
        let named = flags.file.map(Path::to_owned).or_else(variable);
        let path = named.or_else(|| Some(PathBuf::from(DEFAULT_FILE)).filter(|path| path.exists()));
        let table = path
            .as_deref()
            .map(read_file)
            .transpose()?
            .unwrap_or_default();
        let mut values: Vec<Value> = KEYS
            .iter()
            .map(|key| find(key, &table, path.as_deref(), flags.environment))
            .collect::<Result<_, _>>()?;
        let store = flags.store.map(|store| ("store", store));
        let set = flags
            .set
            .iter()
            .map(|(key, text)| (key.as_str(), text.as_str()));
        for (key, text) in set.chain(store) {
            let value = values.iter_mut().find(|value| value.key == key);
            let value = value.ok_or_else(|| Error::UnknownKey {
                path: "--set".into(),
                nearest: nearest(key),
                key: key.to_owned(),
            })?;
            value.text = Some(text.to_owned());
            value.origin = Origin::Flag;
        }
        Self::resolve(values, path)
    }

    fn resolve(values: Vec<Value>, file: Option<PathBuf>) -> Result<Self, Error> {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let resolver = Resolver(&values);
        Ok(Self {
            store: resolver.text("store"),
            compression: resolver
                .parsed("compression", str::parse)?
                .unwrap_or_default(),
            identities: Identities::new(resolver.key_file("age_identity_file")?.as_deref()),
            upload_concurrency: resolver
                .parsed("upload_concurrency", count)?
                .unwrap_or(cores.clamp(2, 16)),
            download_concurrency: resolver
                .parsed("download_concurrency", count)?
                .unwrap_or(cores.clamp(2, 16)),
            spool_dir: resolver.text("spool_dir").map(PathBuf::from),
            archive_timeout: resolver
                .parsed("archive_timeout", duration)?
                .unwrap_or(Duration::from_mins(1)),
            retry_timeout: resolver
                .parsed("retry_timeout", duration)?
                .unwrap_or(Duration::from_mins(5)),
            delta_max_chain: resolver
                .parsed("delta_max_chain", deltas)?
                .unwrap_or(DELTA_MAX_CHAIN),
            stores: resolver.stores()?,
            file,
            values,
        })
    }

    /// To whom new objects are encrypted; to nobody without. Read when something is to be stored: where one restores,
    /// a recipients file or a plugin may be missing.
    ///
    /// # Errors
    /// [`Error::InvalidValue`].
    pub fn recipients(&self) -> Result<Option<Recipients>, Error> {
        Resolver(&self.values).recipients()
    }

    /// The store's URL.
    ///
    /// # Errors
    /// [`Error::NoStore`].
    pub fn store(&self) -> Result<&str, Error> {
        self.store.as_deref().ok_or(Error::NoStore)
    }

    /// Settings that a server's `restore_command` must be told, as they are not in the file: what makes it read the store as
    /// this process does. Neither keys nor the files that hold them.
    pub fn beside_the_file(&self) -> Vec<(String, String)> {
        let is_told = |value: &&Value| {
            READ_WITH.contains(&value.key)
                && matches!(value.origin, Origin::Variable(_) | Origin::Flag)
        };
        let told = self.values.iter().filter(is_told);
        told.filter_map(|value| Some((value.key.to_owned(), value.text.clone()?)))
            .collect()
    }

    /// The settings file, and the files that settings name: what this program reads besides the store.
    pub fn files(&self) -> Vec<PathBuf> {
        let named = self
            .values
            .iter()
            .filter(|value| value.key.ends_with("_file"));
        let named = named.filter_map(|value| value.text.as_ref().map(PathBuf::from));
        self.file.iter().cloned().chain(named).collect()
    }

    /// Whether the identity came from a variable, which a server's `restore_command` does not have.
    pub fn identity_beside_file(&self) -> bool {
        self.beside_file("age_identity_file").is_some()
    }

    fn beside_file(&self, key: &str) -> Option<String> {
        let value = self.values.iter().find(|value| value.key == key)?;
        if matches!(value.origin, Origin::File(_)) {
            None
        } else {
            value.text.clone()
        }
    }
}

struct Resolver<'a>(&'a [Value]);

impl Resolver<'_> {
    fn text(&self, key: &str) -> Option<String> {
        self.0.iter().find(|value| value.key == key)?.text.clone()
    }

    fn parsed<T>(
        &self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, Error> {
        let Some(value) = self.0.iter().find(|value| value.key == key) else {
            return Ok(None);
        };
        let invalid = |problem| Error::InvalidValue {
            key,
            origin: value.origin.clone(),
            problem,
        };
        value
            .text
            .as_deref()
            .map(|text| parse(text).map_err(invalid))
            .transpose()
    }

    fn stores(&self) -> Result<StoreSettings, Error> {
        Ok(StoreSettings {
            ca_file: self.text("ca_file").map(PathBuf::from),
            s3: self.s3()?,
            gcs: GcsSettings {
                kms_key: self.text("gcs_kms_key"),
                storage_class: self.text("gcs_storage_class"),
            },
            azure: AzureSettings {
                access_tier: self.text("azure_access_tier"),
            },
        })
    }

    fn s3(&self) -> Result<S3Settings, Error> {
        let encryption = |text: &str| one_of(text, &["AES256", "aws:kms", "aws:kms:dsse"]);
        let encryption = self.parsed("s3_sse", encryption)?;
        let for_kms = |text: &str| match encryption.as_deref() {
            Some("aws:kms" | "aws:kms:dsse") => Ok(text.to_owned()),
            _ => Err("it needs s3_sse = \"aws:kms\" or \"aws:kms:dsse\"".to_owned()),
        };
        Ok(S3Settings {
            force_path_style: self.parsed("s3_force_path_style", boolean)?,
            part_size_bytes: self.parsed("s3_part_size", size)?,
            kms_key_id: self.parsed("s3_sse_kms_key_id", for_kms)?,
            storage_class: self.parsed("s3_storage_class", storage_class)?,
            object_lock: self.object_lock()?,
            requester_pays: self
                .parsed("s3_requester_pays", boolean)?
                .unwrap_or_default(),
            conditional_writes: self.parsed("s3_conditional_writes", conditional_writes)?,
            checksums: self.parsed("s3_checksums", boolean)?,
            encryption,
            // The commands know the directory.
            probe_memory: None,
        })
    }

    fn object_lock(&self) -> Result<Option<ObjectLock>, Error> {
        let mode = |text: &str| one_of(text, &["GOVERNANCE", "COMPLIANCE"]);
        let mode = self.parsed("s3_object_lock_mode", mode)?;
        let days = self.parsed("s3_object_lock_days", days)?;
        let half = |key, other| {
            let alone = |_: &str| Err::<(), _>(format!("it needs {other} beside it"));
            self.parsed(key, alone).map(|_| None)
        };
        match (mode, days) {
            (Some(mode), Some(days)) => Ok(Some(ObjectLock { mode, days })),
            (None, None) => Ok(None),
            (Some(_), None) => half("s3_object_lock_mode", "s3_object_lock_days"),
            (None, Some(_)) => half("s3_object_lock_days", "s3_object_lock_mode"),
        }
    }

    fn recipients(&self) -> Result<Option<Recipients>, Error> {
        let file = self.key_file("age_recipients_file")?;
        // An empty variable, of which elsewhere nothing is made, may be a key that was not found.
        let is_empty = std::env::var_os("WALHALLA_AGE_RECIPIENTS").is_some_and(|it| it.is_empty());
        let list = self
            .text("age_recipients")
            .or_else(|| is_empty.then(String::new));
        Recipients::load(list.as_deref(), file.as_deref()).map_err(|error| {
            let key = match error {
                RecipientError::Read { .. }
                | RecipientError::NoneInFile(_)
                | RecipientError::UnknownLine { .. } => "age_recipients_file",
                _ if list.is_none() => "age_recipients_file",
                _ => "age_recipients",
            };
            let value = self.0.iter().find(|value| value.key == key);
            Error::InvalidValue {
                key,
                origin: value.map_or(Origin::Default, |value| value.origin.clone()),
                problem: error.to_string(),
            }
        })
    }

    /// The path of a file of keys, in whose place one easily puts the key itself.
    fn key_file(&self, key: &'static str) -> Result<Option<PathBuf>, Error> {
        let path = |text: &str| {
            if is_secret(text) {
                Err("it is the path of a file, and a secret key stands there; put the key into a file of its own, mode 600".to_owned())
            } else {
                Ok(PathBuf::from(text))
            }
        };
        self.parsed(key, path)
    }
}

fn read_file(path: &Path) -> Result<BTreeMap<String, toml::Value>, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })?;
    let table: BTreeMap<String, toml::Value> = toml::from_str(&text).map_err(|mut source| {
        // The message shows the line, and a secret key may stand in it.
        if is_secret(&text) {
            source.set_input(None);
        }
        Error::Toml {
            path: path.to_owned(),
            source: Box::new(source),
        }
    })?;
    match table
        .keys()
        .find(|name| KEYS.iter().all(|key| key.name != *name))
    {
        None => Ok(table),
        Some(unknown) => Err(Error::UnknownKey {
            path: path.to_owned(),
            nearest: nearest(unknown),
            key: unknown.clone(),
        }),
    }
}

fn nearest(unknown: &str) -> &'static str {
    let likeness = |key: &&Key| strsim::jaro_winkler(key.name, unknown);
    let best = KEYS
        .iter()
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    best.map_or("store", |key| key.name)
}

fn find(
    key: &Key,
    table: &BTreeMap<String, toml::Value>,
    path: Option<&Path>,
    environment: Environment,
) -> Result<Value, Error> {
    let variable = std::env::var_os(key.variable);
    if let Some(text) = variable.filter(|text| environment == Environment::Read && !text.is_empty())
    {
        let origin = Origin::Variable(key.variable);
        return match text.into_string() {
            Ok(text) => Ok(Value {
                key: key.name,
                text: Some(text),
                origin,
            }),
            Err(bytes) => Err(Error::InvalidValue {
                key: key.name,
                origin,
                problem: format!(
                    "\"{}\" is not UTF-8",
                    bytes.as_encoded_bytes().escape_ascii()
                ),
            }),
        };
    }
    let in_file = table.get(key.name).map(text_of);
    Ok(match (in_file, path) {
        (Some(text), Some(path)) => Value {
            key: key.name,
            text: Some(text),
            origin: Origin::File(path.to_owned()),
        },
        _ => Value {
            key: key.name,
            text: None,
            origin: Origin::Default,
        },
    })
}

/// A list becomes lines, one for each item.
fn text_of(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Array(items) => {
            let lines = items
                .iter()
                .flat_map(|item| [text_of(item), "\n".to_owned()]);
            lines.collect()
        }
        other => other.to_string(),
    }
}

fn count(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| (1..=256).contains(count));
    count.ok_or_else(|| format!("{text:?} is no number from 1 to 256"))
}

/// A restore reads from every backup of a chain at the same time, so that it cannot be of any length.
fn deltas(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| *count <= 1000);
    count.ok_or_else(|| format!("{text:?} is no number from 0 to 1000"))
}

fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" | "on" | "1" | "yes" => Ok(true),
        "false" | "off" | "0" | "no" => Ok(false),
        _ => Err(format!("{text:?} is neither true nor false")),
    }
}

fn one_of(text: &str, known: &[&str]) -> Result<String, String> {
    if known.contains(&text) {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is none of {}", known.join(", ")))
    }
}

fn days(text: &str) -> Result<u32, String> {
    // S3 takes no more than a hundred years.
    let days = text.parse().ok().filter(|days| (1..=36_500).contains(days));
    days.ok_or_else(|| format!("{text:?} is no number of days from 1 to 36500"))
}

/// A class whose objects can be read at once.
fn storage_class(text: &str) -> Result<String, String> {
    match text {
        "GLACIER" | "DEEP_ARCHIVE" => Err(format!(
            "objects of the class {text} cannot be read before they are restored; GLACIER_IR can"
        )),
        _ => Ok(text.to_owned()),
    }
}

fn conditional_writes(text: &str) -> Result<ConditionalWrites, String> {
    match text {
        "probe" => Ok(ConditionalWrites::Probe),
        "trust" => Ok(ConditionalWrites::Trust),
        "off" => Ok(ConditionalWrites::Off),
        _ => Err(format!("{text:?} is none of probe, trust, off")),
    }
}

/// Seconds, or a number with its unit: `90`, `90s`, `5min`, `1h`.
fn duration(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().map(Duration::from_secs);
    let friendly = || {
        text.parse::<jiff::SignedDuration>()
            .ok()
            .and_then(|duration| duration.try_into().ok())
    };
    seconds
        .or_else(friendly)
        .ok_or_else(|| format!("{text:?} is no length of time (90s and 5min are)"))
}

/// Bytes, or a number with its unit: `8MiB`.
fn size(text: &str) -> Result<usize, String> {
    let units = [
        ("GiB", 30),
        ("MiB", 20),
        ("KiB", 10),
        ("GB", 30),
        ("MB", 20),
        ("kB", 10),
        ("", 0),
    ];
    let parsed = units.iter().find_map(|(unit, shift)| {
        let number: usize = text.strip_suffix(unit)?.trim().parse().ok()?;
        number.checked_mul(1 << shift)
    });
    parsed.ok_or_else(|| format!("{text:?} is no size (8MiB is one)"))
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("flag"),
            Self::Variable(name) => f.write_str(name),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_answered_with_the_nearest_known_one() {
        assert_eq!(nearest("compresion"), "compression");
        assert_eq!(nearest("upload_concurency"), "upload_concurrency");
        assert_eq!(nearest("sotre"), "store");
    }

    fn resolved(key: &'static str, text: &str) -> Result<Settings, Error> {
        let value = Value {
            key,
            text: Some(text.to_owned()),
            origin: Origin::Flag,
        };
        Settings::resolve(vec![value], None)
    }

    #[test]
    fn a_chain_has_up_to_six_deltas_unless_the_settings_say_otherwise() {
        let length = |text| resolved("delta_max_chain", text).map(|it| it.delta_max_chain);
        assert_eq!(Settings::resolve(vec![], None).unwrap().delta_max_chain, 6);
        assert_eq!(length("0").unwrap(), 0);
        assert_eq!(length("30").unwrap(), 30);
        for wrong in ["-1", "many", "1.5", "1001"] {
            let error = length(wrong).unwrap_err().to_string();
            assert!(
                error.contains("delta_max_chain") && error.contains(wrong),
                "{error}"
            );
        }
    }

    #[test]
    fn lengths_of_time_and_sizes_have_units() {
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("5min"), Ok(Duration::from_mins(5)));
        assert!(duration("soon").is_err());
        assert_eq!(size("8MiB"), Ok(8 << 20));
        assert!(size("8 parsecs").is_err());
    }
}
