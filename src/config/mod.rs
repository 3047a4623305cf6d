//! Settings: a TOML file, environment variables that win over it, and flags that win over both.
//!
//! The table in `table` says all that is known about each setting; values are text until the parser of their row has read
//! them. A key or a `WALHALLA_*` variable that the table lacks is an error.

mod credentials;
mod parsers;
pub mod policy;
mod sources;
mod table;
mod variables;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use walhalla_postgres::SystemIdentifier;
use walhalla_providers::transfer::{
    AzureSettings, GcsSettings, ObjectLock, Rate, S3Settings, StoreSettings,
};

use crate::failure::{Advice, Class, Failure};
use crate::pipeline::encryption::RecipientError;
use crate::pipeline::{Compression, Identities, Recipients};
use crate::repository::owed::MirrorMode;

pub use credentials::{Credentials, Part, Source, State};
use policy::Policy;
use table::Setting;
pub use table::{ROWS, Row, Unset, row};
use variables::Variables;

/// The file that is read when none is named.
pub const DEFAULT_FILE: &str = "/etc/walhalla/walhalla.toml";

/// Those with which a store is read.
const READ_WITH: [&str; 11] = [
    table::MIRROR.row.name,
    table::MIRROR_CONFIG.row.name,
    table::DOWNLOAD_CONCURRENCY.row.name,
    table::DOWNLOAD_RATE.row.name,
    table::RETRY_TIMEOUT.row.name,
    table::CA_FILE.row.name,
    table::S3_FORCE_PATH_STYLE.row.name,
    table::S3_PROFILE.row.name,
    table::S3_REQUESTER_PAYS.row.name,
    table::S3_CONDITIONAL_WRITES.row.name,
    table::S3_CHECKSUMS.row.name,
];

/// What the command line says of settings.
#[derive(Clone, Copy, Debug)]
pub struct Flags<'a> {
    /// `--config`
    pub file: Option<&'a Path>,
    /// `--store`
    pub store: Option<&'a str>,
    /// `--upload-rate`
    pub upload_rate: Option<&'a str>,
    /// `--download-rate`
    pub download_rate: Option<&'a str>,
    /// `--read-rate`
    pub read_rate: Option<&'a str>,
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

/// Variables that say which store is meant, as the libraries of the stores read them.
const STORE_VARIABLES: [&str; 7] = [
    "AWS_CONFIG_FILE",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_PROFILE",
    "AZURE_STORAGE_ACCOUNT",
    "AZURE_STORAGE_CONNECTION_STRING",
    "STORAGE_EMULATOR_HOST",
];
/// Settings that say neither which store is meant nor what objects in it look like.
const NOT_OF_THE_STORE: [&str; 15] = [
    table::CLUSTER.row.name,
    table::AGE_IDENTITY_FILE.row.name,
    table::UPLOAD_CONCURRENCY.row.name,
    table::DOWNLOAD_CONCURRENCY.row.name,
    table::PREFETCH_SEGMENTS.row.name,
    table::SPOOL_DIR.row.name,
    table::SOCKET.row.name,
    table::ARCHIVE_TIMEOUT.row.name,
    table::RETRY_TIMEOUT.row.name,
    table::DELTA_MAX_CHAIN.row.name,
    table::UPLOAD_RATE.row.name,
    table::DOWNLOAD_RATE.row.name,
    table::READ_RATE.row.name,
    table::MAX_BACKLOG.row.name,
    table::RETENTION.row.name,
];
/// What [`Settings::store_identity`] is derived for (BLAKE3's context).
const IDENTITY_PURPOSE: &str = "walhalla 2026-11-29 identity of a store in receipts";

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

impl Origin {
    /// Which kind of origin it is: `flag`, `variable`, `file` or `default`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Flag => "flag",
            Self::Variable(_) => "variable",
            Self::File(_) => "file",
            Self::Default => "default",
        }
    }
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
    /// The cluster that is meant where nothing else tells.
    pub cluster: Option<SystemIdentifier>,
    /// How new objects are compressed.
    pub compression: Compression,
    /// What opens encrypted objects.
    pub identities: Identities,
    /// Requests and parts that go up at a time.
    pub upload_concurrency: usize,
    /// Requests and parts that come down at a time.
    pub download_concurrency: usize,
    /// How many bytes a second go up.
    pub upload_rate: Option<Rate>,
    /// How many bytes a second come down.
    pub download_rate: Option<Rate>,
    /// How many bytes a second are read from a data directory.
    pub read_rate: Option<Rate>,
    /// How many bytes of WAL may wait before segments are dropped.
    pub max_backlog_bytes: Option<u64>,
    /// How many segments are fetched ahead at most.
    pub prefetch_segments: usize,
    /// Where WAL is staged, and the spool is, instead of beside the data directory.
    pub spool_dir: Option<PathBuf>,
    /// The daemon's Unix socket.
    pub socket: PathBuf,
    /// How long a backup waits for each WAL segment to arrive.
    pub archive_timeout: Duration,
    /// How long a failing request is tried again.
    pub retry_timeout: Duration,
    /// How many deltas may stand on one full backup, one on the other; with 0 there are none.
    pub delta_max_chain: usize,
    /// What a deletion keeps.
    pub retention: Option<Policy>,
    /// The URL of a second store.
    pub mirror: Option<String>,
    /// When something counts as archived that both are to have.
    pub mirror_mode: MirrorMode,
    /// The settings file of the second store.
    pub mirror_config: Option<PathBuf>,
    /// How the cloud stores are used.
    pub stores: StoreSettings,
    /// The settings file, if one was read.
    pub file: Option<PathBuf>,
    /// What named the settings file; [`Origin::Default`] where [`DEFAULT_FILE`] was looked for.
    pub file_origin: Origin,
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
    /// A variable that no setting has.
    #[error("the environment variable {name} is not a setting")]
    UnknownVariable {
        /// The variable.
        name: String,
        /// The variable that is most like it.
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
    /// Both stores are one.
    #[error("the setting mirror names the store itself: {0}")]
    MirrorOfItself(String),
    /// No policy.
    #[error("nothing was deleted: no rule says what is to be kept")]
    NoRetention,
    /// A policy on the command line that is none.
    #[error("{0}")]
    Retention(String),
    /// A flag with a value that is none.
    #[error("{flag} {value:?}: {problem}")]
    Flag {
        /// The flag.
        flag: &'static str,
        /// What was written.
        value: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl Failure for Error {
    fn class(&self) -> Class {
        Class::Usage
    }

    fn hint(&self) -> Option<Advice> {
        Some(match self {
            Self::NoStore => "set `store` in the settings file, WALHALLA_STORE, or --store file:///path, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix".into(),
            Self::UnknownKey { nearest, .. } => format!("did you mean `{nearest}`?").into(),
            Self::UnknownVariable { name, nearest } => format!(
                "did you mean {nearest}? If {name} is not meant for Walhalla, unset it or give it another name"
            )
            .into(),
            Self::MirrorOfItself(_) => "name another store, or another prefix, in `mirror`".into(),
            Self::InvalidValue { .. } => {
                "`walhalla config` lists the settings and where they come from".into()
            }
            Self::NoRetention => "set `retention`, for example to 'days=14 monthly=12', or say it: walhalla delete retain days=14 monthly=12".into(),
            Self::Retention(_) => "`walhalla delete retain --help` shows the rules".into(),
            Self::Read { .. } | Self::Toml { .. } | Self::Flag { .. } => return None,
        })
    }
}

impl Settings {
    /// Reads and checks the settings.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn load(flags: &Flags) -> Result<Self, Error> {
        let variables = Variables::read(flags.environment)?;
        let (path, file_origin) = sources::file_to_read(flags, &variables);
        // A file that somebody named must be there, and one that may be there must be readable: reading it fails otherwise.
        let is_read = file_origin != Origin::Default || path.try_exists().unwrap_or(true);
        let file = Some(path).filter(|_| is_read);
        let values = sources::values(flags, &variables, file.as_deref())?;
        Ok(Self {
            file_origin,
            ..Self::resolve(values, file)?
        })
    }

    fn resolve(values: Vec<Value>, file: Option<PathBuf>) -> Result<Self, Error> {
        let resolver = Resolver(&values);
        Ok(Self {
            store: resolver.optional(&table::STORE)?,
            cluster: resolver.optional(&table::CLUSTER)?,
            compression: resolver.defaulted(&table::COMPRESSION)?,
            identities: Identities::new(resolver.optional(&table::AGE_IDENTITY_FILE)?.as_deref()),
            upload_concurrency: resolver.defaulted(&table::UPLOAD_CONCURRENCY)?,
            download_concurrency: resolver.defaulted(&table::DOWNLOAD_CONCURRENCY)?,
            upload_rate: resolver.optional(&table::UPLOAD_RATE)?,
            download_rate: resolver.optional(&table::DOWNLOAD_RATE)?,
            read_rate: resolver.optional(&table::READ_RATE)?,
            max_backlog_bytes: resolver.optional(&table::MAX_BACKLOG)?,
            prefetch_segments: resolver.defaulted(&table::PREFETCH_SEGMENTS)?,
            spool_dir: resolver.optional(&table::SPOOL_DIR)?,
            socket: resolver.defaulted(&table::SOCKET)?,
            archive_timeout: resolver.defaulted(&table::ARCHIVE_TIMEOUT)?,
            retry_timeout: resolver.defaulted(&table::RETRY_TIMEOUT)?,
            delta_max_chain: resolver.defaulted(&table::DELTA_MAX_CHAIN)?,
            retention: resolver.optional(&table::RETENTION)?,
            mirror: resolver.optional(&table::MIRROR)?,
            mirror_mode: resolver.defaulted(&table::MIRROR_MODE)?,
            mirror_config: resolver.optional(&table::MIRROR_CONFIG)?,
            stores: resolver.stores()?,
            file,
            file_origin: Origin::Default,
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

    /// Whether anything is set that says how objects are packed.
    pub fn say_how_to_pack(&self) -> bool {
        let packing = [
            table::COMPRESSION.row.name,
            table::AGE_RECIPIENTS.row.name,
            table::AGE_RECIPIENTS_FILE.row.name,
        ];
        let mut set = { self.values.iter() }
            .filter(|value| !matches!(value.origin, Origin::Default) && value.text.is_some());
        set.any(|value| packing.contains(&value.key))
    }

    /// The store's URL.
    ///
    /// # Errors
    /// [`Error::NoStore`].
    pub fn store(&self) -> Result<&str, Error> {
        self.store.as_deref().ok_or(Error::NoStore)
    }

    /// A digest of all that says which store is meant and what objects in it look like, without credentials: what was done
    /// under other settings may have been done to another store.
    pub fn store_identity(&self) -> String {
        let variables = STORE_VARIABLES.map(|name| (name, std::env::var_os(name)));
        let values = self.values.iter();
        let settings: Vec<_> = values
            .filter(|value| !NOT_OF_THE_STORE.contains(&value.key))
            .map(|value| (value.key, &value.text))
            .collect();
        let mut text = format!("{settings:?}{variables:?}");
        // What a store was is another store.
        text.extend(self.stores.as_of.map(|time| time.to_string()));
        hex::encode(blake3::derive_key(IDENTITY_PURPOSE, text.as_bytes()))
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
        let mirror_config = table::MIRROR_CONFIG.row.name;
        let named = self
            .values
            .iter()
            .filter(|value| value.key.ends_with("_file") || value.key == mirror_config);
        let named = named.filter_map(|value| value.text.as_ref().map(PathBuf::from));
        self.file.iter().cloned().chain(named).collect()
    }

    /// Whether the identity came from a variable, which a server's `restore_command` does not have.
    pub fn identity_beside_file(&self) -> bool {
        self.beside_file(table::AGE_IDENTITY_FILE.row.name)
            .is_some()
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
    /// The value of a setting; where it is not set, its default, if there is one.
    fn optional<T>(&self, setting: &Setting<T>) -> Result<Option<T>, Error> {
        let value = self.value(setting.row.name);
        let text = value.and_then(|value| value.text.clone());
        let text = text.or_else(|| setting.row.default.text());
        text.map(|text| (setting.parse)(&text))
            .transpose()
            .map_err(|problem| self.invalid(setting, problem))
    }

    /// The same for a setting that always has a value.
    fn defaulted<T>(&self, setting: &Setting<T>) -> Result<T, Error> {
        let value = self.optional(setting)?;
        Ok(value.expect("its default in the table is a text, as each load shows"))
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.0.iter().find(|value| value.key == key)
    }

    fn invalid<T>(&self, setting: &Setting<T>, problem: impl Into<String>) -> Error {
        let value = self.value(setting.row.name);
        Error::InvalidValue {
            key: setting.row.name,
            origin: value.map_or(Origin::Default, |value| value.origin.clone()),
            problem: problem.into(),
        }
    }

    fn stores(&self) -> Result<StoreSettings, Error> {
        Ok(StoreSettings {
            ca_file: self.optional(&table::CA_FILE)?,
            s3: self.s3()?,
            gcs: GcsSettings {
                kms_key: self.optional(&table::GCS_KMS_KEY)?,
                storage_class: self.optional(&table::GCS_STORAGE_CLASS)?,
            },
            azure: AzureSettings {
                access_tier: self.optional(&table::AZURE_ACCESS_TIER)?,
            },
            as_of: None,
        })
    }

    fn s3(&self) -> Result<S3Settings, Error> {
        let encryption = self.optional(&table::S3_SSE)?;
        let kms_key_id = self.optional(&table::S3_SSE_KMS_KEY_ID)?;
        let is_kms = matches!(encryption.as_deref(), Some("aws:kms" | "aws:kms:dsse"));
        if kms_key_id.is_some() && !is_kms {
            let problem = "it needs s3_sse = \"aws:kms\" or \"aws:kms:dsse\"";
            return Err(self.invalid(&table::S3_SSE_KMS_KEY_ID, problem));
        }
        Ok(S3Settings {
            force_path_style: self.optional(&table::S3_FORCE_PATH_STYLE)?,
            part_size_bytes: self.optional(&table::S3_PART_SIZE)?,
            encryption,
            kms_key_id,
            storage_class: self.optional(&table::S3_STORAGE_CLASS)?,
            object_lock: self.object_lock()?,
            profile: self.optional(&table::S3_PROFILE)?,
            requester_pays: self.defaulted(&table::S3_REQUESTER_PAYS)?,
            conditional_writes: self.optional(&table::S3_CONDITIONAL_WRITES)?,
            checksums: self.optional(&table::S3_CHECKSUMS)?,
            sign_bodies: self.optional(&table::S3_SIGN_BODIES)?,
            // The commands know the directory.
            probe_memory: None,
        })
    }

    fn object_lock(&self) -> Result<Option<ObjectLock>, Error> {
        let mode = self.optional(&table::S3_OBJECT_LOCK_MODE)?;
        let days = self.optional(&table::S3_OBJECT_LOCK_DAYS)?;
        match (mode, days) {
            (Some(mode), Some(days)) => Ok(Some(ObjectLock { mode, days })),
            (None, None) => Ok(None),
            (Some(_), None) => Err(self.invalid(
                &table::S3_OBJECT_LOCK_MODE,
                "it needs s3_object_lock_days beside it",
            )),
            (None, Some(_)) => Err(self.invalid(
                &table::S3_OBJECT_LOCK_DAYS,
                "it needs s3_object_lock_mode beside it",
            )),
        }
    }

    fn recipients(&self) -> Result<Option<Recipients>, Error> {
        let file = self.optional(&table::AGE_RECIPIENTS_FILE)?;
        let list = self.optional(&table::AGE_RECIPIENTS)?;
        Recipients::load(list.as_deref(), file.as_deref()).map_err(|error| {
            let problem = error.to_string();
            match error {
                RecipientError::Read { .. }
                | RecipientError::NoneInFile(_)
                | RecipientError::UnknownLine { .. } => {
                    self.invalid(&table::AGE_RECIPIENTS_FILE, problem)
                }
                _ if list.is_none() => self.invalid(&table::AGE_RECIPIENTS_FILE, problem),
                _ => self.invalid(&table::AGE_RECIPIENTS, problem),
            }
        })
    }
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
    use super::parsers::{duration, size};
    use super::table::nearest;
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
    fn a_rate_is_a_size_within_bounds_and_has_no_default() {
        for key in ["upload_rate", "download_rate", "read_rate"] {
            let rates = |text| {
                let settings = resolved(key, text)?;
                Ok([
                    settings.upload_rate,
                    settings.download_rate,
                    settings.read_rate,
                ])
            };
            let bytes = |text| {
                let rates: Result<_, Error> = rates(text);
                let set: Vec<_> = rates.unwrap().into_iter().flatten().collect();
                set
            };
            let rate = |bytes| vec![Rate::new(bytes).unwrap()];
            assert_eq!(bytes("10MiB"), rate(10 << 20), "{key}");
            assert_eq!(bytes("500kB"), rate(500 << 10), "{key}");
            assert_eq!(bytes("123456"), rate(123_456), "{key}");
            assert_eq!(bytes("1TiB"), rate(1 << 40), "{key}");
            for wrong in ["0", "0MiB", "-1", "1023", "2TiB", "fast", "10MiB/s", ""] {
                let error = rates(wrong).unwrap_err().to_string();
                assert!(error.contains(key), "{error}");
            }
        }
        let none = Settings::resolve(vec![], None).unwrap();
        assert_eq!(none.upload_rate.or(none.download_rate), None);
        assert_eq!(none.read_rate, None);
    }

    #[test]
    fn a_server_that_asks_the_store_itself_is_told_the_download_rate() {
        let told = |key| resolved(key, "1MiB").unwrap().beside_the_file();
        let pair = ("download_rate".to_owned(), "1MiB".to_owned());
        assert_eq!(told("download_rate"), [pair]);
        assert_eq!(told("upload_rate"), []);
        assert_eq!(told("read_rate"), []);
    }

    #[test]
    fn receipts_hold_whatever_the_rate() {
        let set = resolved("upload_rate", "1MiB").unwrap();
        let other = resolved("upload_rate", "2MiB").unwrap();
        assert_eq!(set.store_identity(), other.store_identity());
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
