//! The table of the settings. Whatever is known about one setting stands in its row, and nowhere else.
//!
//! ```text
//! file, variables, flags ─▶ sources ─▶ texts ─▶ parser of the row ─▶ Settings
//!                              ▲                      ▲
//!                              └──────── table ───────┴─▶ `walhalla config`, docs/settings.md (written by a test)
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
    /// What the setting does, in Markdown.
    documentation: &'static str,
    /// What the book adds, in Markdown.
    further: &'static str,
}

impl Row {
    /// What the setting does, without markup.
    pub fn documentation(&self) -> String {
        without_markup(self.documentation)
    }

    /// What the book says of the setting, in Markdown whose links are those of `docs/settings.md`.
    pub fn page(&self) -> String {
        format!("{} {}", self.documentation, self.further)
            .trim_end()
            .to_owned()
    }
}

/// Without code marks, and with the text of a link in its place.
fn without_markup(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, link)) = rest.split_once("](") {
        plain.push_str(before);
        rest = link.split_once(')').map_or("", |(_, after)| after);
    }
    plain.push_str(rest);
    plain.replace(['`', '['], "")
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
    ($($id:ident: $kind:ty = $name:literal, $variable:literal, $parse:expr, $default:expr, $documentation:literal $(, $further:literal)?;)+) => {
        $(pub(super) const $id: Setting<$kind> = Setting {
            row: Row {
                name: $name,
                variable: $variable,
                default: $default,
                documentation: $documentation,
                further: concat!($($further)?),
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
        "The URL of the store: `file:///path`, `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`.",
        "Write `?` as `%3F` and `#` as `%23`.";
    CLUSTER: SystemIdentifier = "cluster", "WALHALLA_CLUSTER", system_identifier, Nothing,
        "The system identifier of the cluster. It is needed if the store holds several clusters and the command gets no data directory.",
        "After `pg_upgrade`, a store holds two: see [Retention](retention.md#after-pg_upgrade).";
    COMPRESSION: Compression = "compression", "WALHALLA_COMPRESSION", str::parse, Text("lz4"),
        "How new objects are compressed: `lz4`, `zstd` (level 1), `zstd:LEVEL` (1 to 22) or `none`. To read objects, this setting is not needed.";
    AGE_RECIPIENTS: String = "age_recipients", "WALHALLA_AGE_RECIPIENTS", text, Nothing,
        "To whom new objects are [encrypted](encryption.md): a list of recipients. In the variable, spaces or commas separate them.",
        "An SSH key is two words. In an item of the list, what follows them is a comment. In the variable, a third word is a comment if it has an `@`. An empty list is an error, and so is an [empty variable](#variables-that-are-not-settings): to store without encryption, leave the setting out.";
    AGE_RECIPIENTS_FILE: PathBuf = "age_recipients_file", "WALHALLA_AGE_RECIPIENTS_FILE", key_file, Nothing,
        "A file of further recipients, one on each line, as `age -R` reads it.";
    AGE_IDENTITY_FILE: PathBuf = "age_identity_file", "WALHALLA_AGE_IDENTITY_FILE", key_file, Nothing,
        "A file of identities, one on each line, or one SSH private key. Walhalla reads it when it opens the first encrypted object.";
    UPLOAD_CONCURRENCY: usize = "upload_concurrency", "WALHALLA_UPLOAD_CONCURRENCY", count, Computed("the number of cores, 2 to 16", requests_for_cores),
        "How many requests and parts are sent at the same time, 1 to 256.";
    DOWNLOAD_CONCURRENCY: usize = "download_concurrency", "WALHALLA_DOWNLOAD_CONCURRENCY", count, Computed("the number of cores, 2 to 16", requests_for_cores),
        "How many parts and segments a restore fetches at the same time, 1 to 256.";
    UPLOAD_RATE: Rate = "upload_rate", "WALHALLA_UPLOAD_RATE", rate, Nothing,
        "How many bytes a second each process may send to the store, 1KiB to 1TiB.",
        "See [rate limits](#rate-limits).";
    DOWNLOAD_RATE: Rate = "download_rate", "WALHALLA_DOWNLOAD_RATE", rate, Nothing,
        "How many bytes a second each process may fetch from the store, 1KiB to 1TiB.",
        "See [rate limits](#rate-limits).";
    READ_RATE: Rate = "read_rate", "WALHALLA_READ_RATE", rate, Nothing,
        "How many bytes a second `backup-push` may read from the data directory, 1KiB to 1TiB.",
        "See [rate limits](#rate-limits).";
    PREFETCH_SEGMENTS: usize = "prefetch_segments", "WALHALLA_PREFETCH_SEGMENTS", segments, Text("16"),
        "How many segments `wal-fetch` fetches ahead at most, 0 to 256, and never more than 1 GiB of them. With 0 it fetches nothing ahead.";
    MAX_BACKLOG: u64 = "max_backlog", "WALHALLA_MAX_BACKLOG", backlog, Nothing,
        "How many bytes of WAL may wait for the archive, 16MiB or more. Above this, `wal-push` drops segments as long as the store does not take them.",
        "Without this setting, no segment is ever dropped. Read [a bound for the backlog](max-backlog.md) before you set it.";
    SPOOL_DIR: PathBuf = "spool_dir", "WALHALLA_SPOOL_DIR", path, Otherwise("beside the data directory"),
        "The directory in which `restore` stages WAL, and in which `wal-push` and `wal-fetch` keep what they did ahead. It must exist.",
        "The WAL lies there in a private directory, whose name has the name of the data directory and a hash of its path. [`wal-receive`](wal-receive.md) keeps there the segment that it is receiving, and needs this setting. If an S3 server turns out to refuse to create an object twice, Walhalla notes that for a day, there or beside the data directory, so that not every `wal-push` has to try it.";
    SOCKET: PathBuf = "socket", "WALHALLA_SOCKET", path, Text("/run/walhalla/walhalla.sock"),
        "The Unix socket of the daemon. `wal-push` and `wal-fetch` use the [daemon](daemon.md) if one listens there.";
    ARCHIVE_TIMEOUT: Duration = "archive_timeout", "WALHALLA_ARCHIVE_TIMEOUT", duration, Text("60s"),
        "How long `backup-push` waits for WAL if nothing arrives.",
        "The time starts again with each segment of the backup and with each file that the server archives.";
    RETRY_TIMEOUT: Duration = "retry_timeout", "WALHALLA_RETRY_TIMEOUT", duration, Text("5min"),
        "How long Walhalla repeats a request that fails.",
        "A request with a body gets more time: as long as the body takes at 64 KiB a second, but at most twice the setting. A download fails when it is this much behind a rate of 1 KiB a second. One attempt without an answer is given up after a third of the setting, but after 60 s at the latest. `wal-push`, and `wal-fetch` for a standby, give up after [60 s](postgresql-conf.md#a-store-that-is-away) at most, because the server calls them again.";
    DELTA_MAX_CHAIN: usize = "delta_max_chain", "WALHALLA_DELTA_MAX_CHAIN", deltas, Text("6"),
        "How many deltas may follow one full backup in a chain, 0 to 1000. With `0`, every backup is a full one.";
    RETENTION: Policy = "retention", "WALHALLA_RETENTION", str::parse, Nothing,
        "What `walhalla delete` keeps: a number of backups, `full` to count only full ones, `days=N`, `daily=N`, `weekly=N`, `monthly=N`.",
        "[Retention](retention.md) describes what each rule keeps.";
    MIRROR: String = "mirror", "WALHALLA_MIRROR", text, Nothing,
        "The URL of a second store, which gets everything that the first one gets.",
        "See [Two stores at once](mirror.md).";
    MIRROR_MODE: MirrorMode = "mirror_mode", "WALHALLA_MIRROR_MODE", str::parse, Text("both"),
        "When WAL and backups count as archived. With `both`: when both stores have them. With `owed`: when the first store has them, and it is recorded that the second one does not have them yet.";
    MIRROR_CONFIG: PathBuf = "mirror_config", "WALHALLA_MIRROR_CONFIG", path, Otherwise("the settings of the first store"),
        "A file with settings of the second store: its credentials, its region, its storage class.";
    CA_FILE: PathBuf = "ca_file", "WALHALLA_CA_FILE", path, Nothing,
        "A file of certificates in PEM form. When Walhalla connects to a store, it trusts them as well as those of the system.",
        "Google Cloud Storage needs [another setting](stores/gcs.md#certificates-of-your-own).";
    S3_FORCE_PATH_STYLE: bool = "s3_force_path_style", "WALHALLA_S3_FORCE_PATH_STYLE", boolean, Otherwise("true when an endpoint is set"),
        "Whether requests name the bucket in the path instead of in the host name.";
    S3_PART_SIZE: usize = "s3_part_size", "WALHALLA_S3_PART_SIZE", size, Text("8MiB"),
        "The length of each part of an upload, 5 MiB to 5 GiB.",
        "An object has at most 10,000 parts. A longer part takes more [memory](architecture.md#memory).";
    S3_SSE: String = "s3_sse", "WALHALLA_S3_SSE", server_side_encryption, Otherwise("the bucket's"),
        "The [server-side encryption](stores/s3.md#encryption-class-lock-payer) of new objects: `AES256`, `aws:kms` or `aws:kms:dsse`.";
    S3_SSE_KMS_KEY_ID: String = "s3_sse_kms_key_id", "WALHALLA_S3_SSE_KMS_KEY_ID", text, Otherwise("the bucket's"),
        "The KMS key for `aws:kms` and `aws:kms:dsse`.";
    S3_STORAGE_CLASS: String = "s3_storage_class", "WALHALLA_S3_STORAGE_CLASS", storage_class, Otherwise("STANDARD"),
        "The storage class of new objects. `GLACIER` and `DEEP_ARCHIVE` are not possible.";
    S3_OBJECT_LOCK_MODE: String = "s3_object_lock_mode", "WALHALLA_S3_OBJECT_LOCK_MODE", lock_mode, Otherwise("the bucket's"),
        "The object lock of new objects: `GOVERNANCE` or `COMPLIANCE`. It needs `s3_object_lock_days`.";
    S3_OBJECT_LOCK_DAYS: u32 = "s3_object_lock_days", "WALHALLA_S3_OBJECT_LOCK_DAYS", days, Otherwise("the bucket's"),
        "For how many days new objects are locked. It needs `s3_object_lock_mode`.";
    S3_PROFILE: String = "s3_profile", "WALHALLA_S3_PROFILE", text, Otherwise("the AWS settings"),
        "The AWS profile with the credentials, the region and the endpoint of the store. With this setting, Walhalla ignores the AWS variables.",
        "Set it in the file of `--to-config`, and a [copy](copies.md) reaches a second account.";
    S3_REQUESTER_PAYS: bool = "s3_requester_pays", "WALHALLA_S3_REQUESTER_PAYS", boolean, Text("false"),
        "Whether the requester pays instead of the owner of the bucket.";
    S3_CONDITIONAL_WRITES: ConditionalWrites = "s3_conditional_writes", "WALHALLA_S3_CONDITIONAL_WRITES", conditional_writes, Otherwise("trust on AWS, probe when an endpoint is set"),
        "Whether Walhalla [relies](stores/s3.md#servers-that-lack-something) on the server's `If-None-Match`: `trust` (yes), `probe` (if a trial shows that it works) or `off` (no).";
    S3_CHECKSUMS: bool = "s3_checksums", "WALHALLA_S3_CHECKSUMS", boolean, Otherwise("true, unless the AWS settings say when_required"),
        "Whether each body is sent with a CRC-32, which the server compares.";
    S3_SIGN_BODIES: bool = "s3_sign_bodies", "WALHALLA_S3_SIGN_BODIES", boolean, Otherwise("false over TLS, else true"),
        "Whether the signature of a request covers its body. That takes a SHA-256 of each body.";
    GCS_KMS_KEY: String = "gcs_kms_key", "WALHALLA_GCS_KMS_KEY", text, Otherwise("the bucket's"),
        "The Cloud KMS key for new objects: `projects/…/cryptoKeys/…`.";
    GCS_STORAGE_CLASS: String = "gcs_storage_class", "WALHALLA_GCS_STORAGE_CLASS", text, Otherwise("the bucket's"),
        "The [storage class](stores/gcs.md#encryption-keys-and-storage-classes) of new objects: `STANDARD`, `NEARLINE`, `COLDLINE` or `ARCHIVE`.";
    AZURE_ACCESS_TIER: String = "azure_access_tier", "WALHALLA_AZURE_ACCESS_TIER", text, Otherwise("the account's"),
        "The access tier of new blobs: `Hot`, `Cool` or `Cold`.";
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

    #[test]
    fn markup_is_left_out() {
        let text = "Not `GLACIER`: see [the `S3` page](stores/s3.md#class), [more](b.md).";
        let expected = "Not GLACIER: see the S3 page, more.";
        assert_eq!(without_markup(text), expected);
    }

    #[test]
    fn a_variable_is_the_name_in_capitals() {
        for row in ROWS {
            let expected = format!("WALHALLA_{}", row.name.to_uppercase());
            assert_eq!(row.variable, expected);
        }
    }
}
