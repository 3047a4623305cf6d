//! The table of the settings. Whatever is known about one setting stands in its row, and nowhere else.
//!
//! ```text
//! file, variables, flags ─▶ sources ─▶ texts ─▶ parser of the row ─▶ Settings
//!                              ▲                      ▲
//!                              └──────── table ───────┴─▶ `walhalla config`, docs/settings.md (checked by a test)
//! ```

use std::path::PathBuf;
use std::time::Duration;

use walhalla_postgres::SystemIdentifier;
use walhalla_providers::transfer::{ConditionalWrites, Rate};

use super::parsers::{
    backlog, boolean, conditional_writes, count, days, deltas, duration, key_file, lock_mode, path,
    rate, segments, server_side_encryption, size, storage_class, system_identifier, text,
};
use super::policy::Policy;
use crate::pipeline::Compression;
use crate::repository::owed::MirrorMode;

/// One row: what users are told about a setting.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The key in the settings file and in `--set`.
    pub name: &'static str,
    /// The environment variable.
    pub variable: &'static str,
    /// What holds where the setting is not set.
    pub default: Unset,
    /// What the setting does, in plain sentences without markup.
    pub documentation: &'static str,
}

/// A row, and the parser that makes the value from the text.
pub(super) struct Setting<T> {
    pub(super) row: Row,
    pub(super) parse: fn(&str) -> Result<T, String>,
}

/// What holds where a setting is not set.
#[derive(Clone, Copy, Debug)]
pub enum Unset {
    /// Nothing takes its place.
    Nothing,
    /// The same as if this text were written.
    Text(&'static str),
    /// A text that depends on this machine, and its description.
    Computed(&'static str, fn() -> String),
    /// There is no value. What is described holds, and the store or the command decides it.
    Otherwise(&'static str),
}

impl Unset {
    /// The text that is parsed where nothing is set, if there is one.
    pub fn text(&self) -> Option<String> {
        match self {
            Self::Nothing | Self::Otherwise(_) => None,
            Self::Text(text) => Some((*text).to_owned()),
            Self::Computed(_, compute) => Some(compute()),
        }
    }

    /// The default in words, as the documentation has it.
    pub fn described(&self) -> &'static str {
        match self {
            Self::Nothing => "none",
            Self::Text(text) => text,
            Self::Computed(described, _) | Self::Otherwise(described) => described,
        }
    }
}

macro_rules! settings {
    ($($id:ident: $kind:ty = $name:literal, $variable:literal, $parse:expr, $default:expr, $documentation:literal;)+) => {
        $(pub(super) const $id: Setting<$kind> = Setting {
            row: Row {
                name: $name,
                variable: $variable,
                default: $default,
                documentation: $documentation,
            },
            parse: $parse,
        };)+

        /// Every setting, in the order in which users see them.
        pub static ROWS: &[Row] = &[$($id.row),+];
    };
}

use Unset::{Computed, Nothing, Otherwise, Text};

settings! {
    STORE: String = "store", "WALHALLA_STORE", text, Nothing,
        "The URL of the store: file:///path, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix.";
    CLUSTER: SystemIdentifier = "cluster", "WALHALLA_CLUSTER", system_identifier, Nothing,
        "The system identifier of the cluster that is meant where a store holds several, and no data directory tells.";
    COMPRESSION: Compression = "compression", "WALHALLA_COMPRESSION", str::parse, Text("lz4"),
        "The compression of new objects: lz4, zstd (level 1), zstd:LEVEL (1 to 22) or none. Reading needs no setting.";
    AGE_RECIPIENTS: String = "age_recipients", "WALHALLA_AGE_RECIPIENTS", text, Nothing,
        "The recipients to whom new objects are encrypted: a list, in the variable separated by spaces or commas.";
    AGE_RECIPIENTS_FILE: PathBuf = "age_recipients_file", "WALHALLA_AGE_RECIPIENTS_FILE", key_file, Nothing,
        "A file of further recipients, one a line, as age -R reads it.";
    AGE_IDENTITY_FILE: PathBuf = "age_identity_file", "WALHALLA_AGE_IDENTITY_FILE", key_file, Nothing,
        "A file of identities, one a line, or one SSH private key. It is read when the first encrypted object is opened.";
    UPLOAD_CONCURRENCY: usize = "upload_concurrency", "WALHALLA_UPLOAD_CONCURRENCY", count, Computed("the number of cores, 2 to 16", requests_for_cores),
        "How many requests and parts are sent at a time, 1 to 256.";
    DOWNLOAD_CONCURRENCY: usize = "download_concurrency", "WALHALLA_DOWNLOAD_CONCURRENCY", count, Computed("the number of cores, 2 to 16", requests_for_cores),
        "How many parts and segments a restore fetches at a time, 1 to 256.";
    UPLOAD_RATE: Rate = "upload_rate", "WALHALLA_UPLOAD_RATE", rate, Nothing,
        "How many bytes a second each process sends to the store, 1KiB to 1TiB.";
    DOWNLOAD_RATE: Rate = "download_rate", "WALHALLA_DOWNLOAD_RATE", rate, Nothing,
        "How many bytes a second each process fetches from the store, 1KiB to 1TiB.";
    READ_RATE: Rate = "read_rate", "WALHALLA_READ_RATE", rate, Nothing,
        "How many bytes a second backup-push reads from the data directory, 1KiB to 1TiB.";
    PREFETCH_SEGMENTS: usize = "prefetch_segments", "WALHALLA_PREFETCH_SEGMENTS", segments, Text("16"),
        "How many segments wal-fetch fetches ahead at most, 0 to 256, and no more than 1 GiB of them. With 0 it fetches none ahead.";
    MAX_BACKLOG: u64 = "max_backlog", "WALHALLA_MAX_BACKLOG", backlog, Nothing,
        "How many bytes of WAL may wait for the archive, from 16MiB on. Above it wal-push drops segments while the store does not take them.";
    SPOOL_DIR: PathBuf = "spool_dir", "WALHALLA_SPOOL_DIR", path, Otherwise("beside the data directory"),
        "The directory in which restore stages WAL, and in which wal-push and wal-fetch keep what they did ahead. It must exist.";
    SOCKET: PathBuf = "socket", "WALHALLA_SOCKET", path, Text("/run/walhalla/walhalla.sock"),
        "The Unix socket of the daemon. wal-push and wal-fetch use the daemon if one listens there.";
    ARCHIVE_TIMEOUT: Duration = "archive_timeout", "WALHALLA_ARCHIVE_TIMEOUT", duration, Text("60s"),
        "How long backup-push waits for WAL while nothing arrives.";
    RETRY_TIMEOUT: Duration = "retry_timeout", "WALHALLA_RETRY_TIMEOUT", duration, Text("5min"),
        "How long a failing request is tried again.";
    DELTA_MAX_CHAIN: usize = "delta_max_chain", "WALHALLA_DELTA_MAX_CHAIN", deltas, Text("6"),
        "How many deltas may stand on one full backup, one on the other, 0 to 1000. With 0 no delta is taken.";
    RETENTION: Policy = "retention", "WALHALLA_RETENTION", str::parse, Nothing,
        "What walhalla delete keeps: a number of backups, full to count full ones, days=N, daily=N, weekly=N, monthly=N.";
    MIRROR: String = "mirror", "WALHALLA_MIRROR", text, Nothing,
        "The URL of a second store, which gets all that the first one gets.";
    MIRROR_MODE: MirrorMode = "mirror_mode", "WALHALLA_MIRROR_MODE", str::parse, Text("both"),
        "When WAL and backups count as archived: both: when both stores have them; owed: when the first has them, and it is recorded that the second is owed them.";
    MIRROR_CONFIG: PathBuf = "mirror_config", "WALHALLA_MIRROR_CONFIG", path, Otherwise("the settings of the first store"),
        "A file with settings of the second store: its credentials, its region, its storage class.";
    CA_FILE: PathBuf = "ca_file", "WALHALLA_CA_FILE", path, Nothing,
        "A file of certificates in PEM form. Walhalla trusts them beside those of the system when it connects to a store.";
    S3_FORCE_PATH_STYLE: bool = "s3_force_path_style", "WALHALLA_S3_FORCE_PATH_STYLE", boolean, Otherwise("true when an endpoint is set"),
        "Whether requests name the bucket in the path, not in the name of the host.";
    S3_PART_SIZE: usize = "s3_part_size", "WALHALLA_S3_PART_SIZE", size, Text("8MiB"),
        "The length of each part of an upload, 5 MiB to 5 GiB.";
    S3_SSE: String = "s3_sse", "WALHALLA_S3_SSE", server_side_encryption, Otherwise("the bucket's"),
        "The server-side encryption of new objects: AES256, aws:kms or aws:kms:dsse.";
    S3_SSE_KMS_KEY_ID: String = "s3_sse_kms_key_id", "WALHALLA_S3_SSE_KMS_KEY_ID", text, Otherwise("the bucket's"),
        "The KMS key for aws:kms and aws:kms:dsse.";
    S3_STORAGE_CLASS: String = "s3_storage_class", "WALHALLA_S3_STORAGE_CLASS", storage_class, Otherwise("STANDARD"),
        "The storage class of new objects; not GLACIER or DEEP_ARCHIVE.";
    S3_OBJECT_LOCK_MODE: String = "s3_object_lock_mode", "WALHALLA_S3_OBJECT_LOCK_MODE", lock_mode, Otherwise("the bucket's"),
        "The object lock of new objects: GOVERNANCE or COMPLIANCE. It needs s3_object_lock_days.";
    S3_OBJECT_LOCK_DAYS: u32 = "s3_object_lock_days", "WALHALLA_S3_OBJECT_LOCK_DAYS", days, Otherwise("the bucket's"),
        "For how many days new objects are locked. It needs s3_object_lock_mode.";
    S3_PROFILE: String = "s3_profile", "WALHALLA_S3_PROFILE", text, Otherwise("the AWS settings"),
        "The AWS profile with the credentials, the region and the endpoint of the store. AWS variables then do not count.";
    S3_REQUESTER_PAYS: bool = "s3_requester_pays", "WALHALLA_S3_REQUESTER_PAYS", boolean, Text("false"),
        "Whether the requester pays, not the owner of the bucket.";
    S3_CONDITIONAL_WRITES: ConditionalWrites = "s3_conditional_writes", "WALHALLA_S3_CONDITIONAL_WRITES", conditional_writes, Otherwise("trust on AWS, probe when an endpoint is set"),
        "How far Walhalla relies on the If-None-Match of the server: probe, trust or off.";
    S3_CHECKSUMS: bool = "s3_checksums", "WALHALLA_S3_CHECKSUMS", boolean, Otherwise("true, unless the AWS settings say when_required"),
        "Whether each body has a CRC-32, which the server compares.";
    S3_SIGN_BODIES: bool = "s3_sign_bodies", "WALHALLA_S3_SIGN_BODIES", boolean, Otherwise("false over TLS, else true"),
        "Whether a request's signature is one of its body, too, which takes a SHA-256 of it.";
    GCS_KMS_KEY: String = "gcs_kms_key", "WALHALLA_GCS_KMS_KEY", text, Otherwise("the bucket's"),
        "The Cloud KMS key for new objects, projects/…/cryptoKeys/….";
    GCS_STORAGE_CLASS: String = "gcs_storage_class", "WALHALLA_GCS_STORAGE_CLASS", text, Otherwise("the bucket's"),
        "The storage class of new objects: STANDARD, NEARLINE, COLDLINE or ARCHIVE.";
    AZURE_ACCESS_TIER: String = "azure_access_tier", "WALHALLA_AZURE_ACCESS_TIER", text, Otherwise("the account's"),
        "The access tier of new blobs: Hot, Cool or Cold.";
}

/// The row of this name.
pub fn row(name: &str) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.name == name)
}

/// The name that is most like an unknown one.
pub(super) fn nearest(unknown: &str) -> &'static str {
    most_like(unknown, ROWS.iter().map(|row| row.name)).unwrap_or(STORE.row.name)
}

/// The candidate that is most like `unknown`.
pub(super) fn most_like(
    unknown: &str,
    candidates: impl Iterator<Item = &'static str>,
) -> Option<&'static str> {
    let likeness = |candidate: &&str| strsim::jaro_winkler(candidate, unknown);
    candidates.max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
}

fn requests_for_cores() -> String {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    cores.clamp(2, 16).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of each table row on the page whose first cell is a key, the cells.
    fn rows_of_the_page() -> Vec<Vec<String>> {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/settings.md");
        let page = std::fs::read_to_string(page).unwrap();
        let rows = page.lines().filter(|line| line.starts_with("| `"));
        rows.map(|line| {
            let cells = line.trim().trim_matches('|').split(" | ");
            cells.map(|cell| without_markup(cell.trim())).collect()
        })
        .filter(|cells: &Vec<String>| cells[1].starts_with("WALHALLA_"))
        .collect()
    }

    /// Without code marks, and with the text of a link in its place.
    fn without_markup(cell: &str) -> String {
        let mut plain = String::new();
        let mut rest = cell;
        while let Some(end) = rest.find("](") {
            plain.push_str(&rest[..end]);
            let after = &rest[end..];
            rest = &after[after.find(')').unwrap() + 1..];
        }
        plain.push_str(rest);
        plain.replace(['`', '['], "")
    }

    #[test]
    fn the_page_has_each_setting_with_its_variable_default_and_documentation_and_no_other() {
        let page = rows_of_the_page();
        let names: Vec<&str> = page.iter().map(|cells| cells[0].as_str()).collect();
        let known: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
        assert_eq!(
            names, known,
            "settings of docs/settings.md and of the table"
        );
        for (cells, row) in page.iter().zip(ROWS) {
            let [name, variable, default, documentation] = &cells[..] else {
                panic!("not four cells: {cells:?}");
            };
            assert_eq!(variable.split(' ').next(), Some(row.variable), "{name}");
            assert_eq!(default, row.default.described(), "{name}");
            assert!(
                documentation.starts_with(row.documentation),
                "{name}: {documentation:?} does not begin with {:?}",
                row.documentation
            );
        }
    }

    #[test]
    fn a_variable_is_the_name_in_capitals() {
        for row in ROWS {
            let expected = format!("WALHALLA_{}", row.name.to_uppercase());
            assert_eq!(row.variable, expected);
        }
    }
}
