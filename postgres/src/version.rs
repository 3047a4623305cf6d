//! Everything that differs between PostgreSQL versions: one table and the functions that read it.

use std::fmt;

use super::Error;

/// A supported major version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version(&'static Facts);

/// One row of the table.
#[derive(Debug, PartialEq, Eq)]
struct Facts {
    /// `PG_VERSION`'s text.
    name: &'static str,
    /// As in `server_version_num / 100`, so 9.6 is 906.
    number: u32,
    /// `XLOG_PAGE_MAGIC` (xlog_internal.h).
    wal_page_magic: u16,
    /// `PG_CONTROL_VERSION` (pg_control.h).
    control_version: u32,
    /// `CATALOG_VERSION_NO` (catversion.h): names a tablespace's folder.
    catalog_version: u32,
    /// Offsets in `pg_control`.
    control: ControlLayout,
}

/// Where `pg_control` keeps what is read from it (pg_control.h, `ControlFileData`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ControlLayout {
    /// Of `checkPointCopy`.
    pub(super) checkpoint: usize,
    /// Of `minRecoveryPoint`.
    pub(super) min_recovery_point: usize,
    /// Of `blcksz`, which `relseg_size` follows.
    pub(super) block_size: usize,
    /// Of `xlog_blcksz`; what follows it has not changed since 9.6, as far as `data_checksum_version`.
    pub(super) wal_block_size: usize,
    /// Of `crc`.
    pub(super) crc: usize,
}

/// 10, with `prevCheckPoint`.
const CONTROL_10: ControlLayout = ControlLayout {
    checkpoint: 48,
    min_recovery_point: 136,
    block_size: 216,
    wal_block_size: 224,
    crc: 288,
};
/// 9.6, without `mock_authentication_nonce`.
const CONTROL_9_6: ControlLayout = ControlLayout {
    crc: 256,
    ..CONTROL_10
};
/// 11, without it.
const CONTROL_11: ControlLayout = ControlLayout {
    checkpoint: 40,
    min_recovery_point: 128,
    block_size: 208,
    wal_block_size: 216,
    crc: 280,
};
/// 12 to 17, with a 64-bit `nextXid` and `max_wal_senders`.
const CONTROL_12: ControlLayout = ControlLayout {
    checkpoint: 40,
    min_recovery_point: 136,
    block_size: 216,
    wal_block_size: 224,
    crc: 288,
};
/// 18, with `default_char_signedness`.
const CONTROL_18: ControlLayout = ControlLayout {
    crc: 292,
    ..CONTROL_12
};
/// 19, with 64-bit offsets of multixacts, the length of SLRU segments and one number more before `default_char_signedness`.
const CONTROL_19: ControlLayout = ControlLayout {
    checkpoint: 40,
    min_recovery_point: 144,
    block_size: 224,
    wal_block_size: 236,
    crc: 308,
};

const TABLE: &[Facts] = &[
    row("9.6", 906, 0xD093, 960, 201_608_131, CONTROL_9_6),
    row("10", 1000, 0xD097, 1002, 201_707_211, CONTROL_10),
    row("11", 1100, 0xD098, 1100, 201_809_051, CONTROL_11),
    row("12", 1200, 0xD101, 1201, 201_909_212, CONTROL_12),
    row("13", 1300, 0xD106, 1300, 202_007_201, CONTROL_12),
    row("14", 1400, 0xD10D, 1300, 202_107_181, CONTROL_12),
    row("15", 1500, 0xD110, 1300, 202_209_061, CONTROL_12),
    row("16", 1600, 0xD113, 1300, 202_307_071, CONTROL_12),
    row("17", 1700, 0xD116, 1700, 202_406_281, CONTROL_12),
    row("18", 1800, 0xD118, 1800, 202_506_291, CONTROL_18),
    row("19", 1900, 0xD122, 1905, 202_610_061, CONTROL_19),
];

const fn row(
    name: &'static str,
    number: u32,
    wal_page_magic: u16,
    control_version: u32,
    catalog_version: u32,
    control: ControlLayout,
) -> Facts {
    Facts {
        name,
        number,
        wal_page_magic,
        control_version,
        catalog_version,
        control,
    }
}

impl Version {
    /// The version with this `pg_control_version` and `catalog_version_no`. Where one version alone has the former, it is that
    /// one whatever the latter is: a release candidate and the release may differ in it.
    pub fn of_control(control_version: u32, catalog_version: u32) -> Option<Self> {
        let mut rows = TABLE
            .iter()
            .filter(|row| row.control_version == control_version);
        let exact = rows
            .clone()
            .find(|row| row.catalog_version == catalog_version);
        match (exact, rows.next(), rows.next()) {
            (Some(row), ..) | (None, Some(row), None) => Some(Self(row)),
            _ => None,
        }
    }

    /// The version of a `PG_VERSION` file's text.
    ///
    /// # Errors
    /// [`Error::UnsupportedVersion`] for one that is not in the table.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let row = TABLE.iter().find(|row| row.name == text.trim());
        row.map(Self)
            .ok_or_else(|| Error::UnsupportedVersion(text.trim().to_owned()))
    }

    /// The version of a server's `server_version_num`, 90603 or 170002.
    pub fn of_server(server_version_num: u32) -> Result<Self, Error> {
        let number = if server_version_num < 100_000 {
            server_version_num / 100
        } else {
            server_version_num / 10_000 * 100
        };
        let row = TABLE.iter().find(|row| row.number == number);
        row.map(Self)
            .ok_or_else(|| Error::UnsupportedVersion(server_version_num.to_string()))
    }

    /// The version of a server's `server_version`: `9.6.24`, `17.11 (Debian 17.11-1)`, `19rc1`.
    pub fn of_server_text(server_version: &str) -> Result<Self, Error> {
        let mut numbers = server_version.split(|letter: char| !letter.is_ascii_digit());
        let mut next = || numbers.next().and_then(|number| number.parse::<u32>().ok());
        let major = next().unwrap_or_default();
        let number = if major < 10 {
            major * 100 + next().unwrap_or_default()
        } else {
            major.saturating_mul(100)
        };
        let row = TABLE.iter().find(|row| row.number == number);
        row.map(Self)
            .ok_or_else(|| Error::UnsupportedVersion(server_version.to_owned()))
    }

    /// The version whose WAL pages begin with `magic`.
    pub fn of_wal_page(magic: u16) -> Option<Self> {
        TABLE
            .iter()
            .find(|row| row.wal_page_magic == magic)
            .map(Self)
    }

    /// The first two bytes of each WAL page.
    pub fn wal_page_magic(self) -> u16 {
        self.0.wal_page_magic
    }

    /// The folder inside a tablespace that belongs to this version (relpath.h, `TABLESPACE_VERSION_DIRECTORY`).
    pub fn tablespace_folder(self) -> String {
        format!("PG_{}_{}", self.0.name, self.0.catalog_version)
    }

    /// What [`Version::tablespace_folder`] begins with, whatever the catalog's number is.
    pub fn tablespace_folder_prefix(self) -> String {
        format!("PG_{}_", self.0.name)
    }

    /// Where the WAL is below the data directory.
    pub fn wal_folder(self) -> &'static str {
        if self.0.number >= 1000 {
            "pg_wal"
        } else {
            "pg_xlog"
        }
    }

    /// The number of the major version: 17.
    pub fn major(self) -> u32 {
        self.0.number / 100
    }

    /// Whether recovery is asked for by `recovery.signal` and ordinary settings, not `recovery.conf`.
    pub fn has_recovery_signal(self) -> bool {
        self.0.number >= 1200
    }

    /// Whether recovery stops at an LSN (`recovery_target_lsn`).
    pub fn has_lsn_target(self) -> bool {
        self.0.number >= 1000
    }

    /// Whether a server in recovery can be read where nothing is set (`hot_standby`).
    pub fn is_hot_standby_by_default(self) -> bool {
        self.0.number >= 1000
    }

    /// Whether functions are called by `wal` and `lsn`, not by `xlog` and `location`, and roles like `pg_monitor` are there.
    pub fn has_wal_names(self) -> bool {
        self.0.number >= 1000
    }

    /// The function that ends a pause of recovery.
    pub fn replay_resume(self) -> &'static str {
        if self.has_wal_names() {
            "pg_wal_replay_resume()"
        } else {
            "pg_xlog_replay_resume()"
        }
    }

    /// The function that switches to a new segment.
    pub fn segment_switch(self) -> &'static str {
        if self.has_wal_names() {
            "pg_switch_wal()"
        } else {
            "pg_switch_xlog()"
        }
    }

    /// What `max_locks_per_transaction` is where nothing is set (guc_tables.c).
    pub fn default_locks_per_transaction(self) -> u32 {
        if self.0.number >= 1900 { 128 } else { 64 }
    }

    /// Whether there is the setting `ignore_invalid_pages`.
    pub fn can_ignore_invalid_pages(self) -> bool {
        self.0.number >= 1300
    }

    /// Whether a backup begins with `pg_backup_start` rather than `pg_start_backup`.
    pub fn has_backup_start(self) -> bool {
        self.0.number >= 1500
    }

    /// Whether `pg_stop_backup` takes `wait_for_archive`.
    pub fn can_skip_archive_wait(self) -> bool {
        self.0.number >= 1000
    }

    /// Whether `backup_manifest` carries the system identifier, as version 2 of its format does.
    pub fn has_manifest_version_2(self) -> bool {
        self.0.number >= 1700
    }

    /// Whether the server keeps WAL summaries below `pg_wal`.
    pub fn has_wal_summaries(self) -> bool {
        self.0.number >= 1700
    }

    /// Length of an `xl_xact_stats_item` (xact.h), which 15 brought and 18 made longer.
    pub fn dropped_stats_bytes(self) -> usize {
        if self.0.number >= 1800 { 16 } else { 12 }
    }

    /// Where `xl_parameter_change` (xlog_internal.h) has `wal_level`: 12 added `max_wal_senders` before it.
    pub fn wal_level_offset(self) -> usize {
        if self.limits_wal_senders() { 20 } else { 16 }
    }

    /// Whether a `restore_command` is cut off after 1,023 bytes (`MAXPGPATH`; `RestoreArchivedFile` to 12).
    pub fn cuts_commands(self) -> bool {
        self.0.number < 1300
    }

    /// Whether a session for replication tells where a slot is (`READ_REPLICATION_SLOT`, from 15).
    pub fn tells_slots(self) -> bool {
        self.0.number >= 1500
    }

    /// Whether options of `BASE_BACKUP` stand in parentheses, and all archives come as one copy.
    pub fn has_base_backup_options(self) -> bool {
        self.0.number >= 1500
    }

    /// Whether a replication slot may end with its session.
    pub fn has_temporary_slots(self) -> bool {
        self.0.number >= 1000
    }

    /// Whether sessions for replication take `SHOW`.
    pub fn shows_settings_to_replication(self) -> bool {
        self.0.number >= 1000
    }

    /// Whether recovery looks at `max_wal_senders`.
    pub fn limits_wal_senders(self) -> bool {
        self.0.number >= 1200
    }

    /// Whether catalogs have their OIDs in a column, not in the header of each row.
    pub fn has_oid_columns(self) -> bool {
        self.0.number >= 1200
    }

    /// Whether `pg_class` has `relallfrozen`.
    pub fn has_all_frozen_column(self) -> bool {
        self.0.number >= 1800
    }

    /// Where `CheckPoint` (pg_control.h) has the lower half of `nextXid`; 19 has `logicalDecodingEnabled` before it.
    pub fn checkpoint_next_xid_offset(self) -> usize {
        if self.0.number >= 1900 { 32 } else { 24 }
    }

    /// Where `CheckPoint` (pg_control.h) has its time.
    pub fn checkpoint_time_offset(self) -> usize {
        match self.0.number {
            ..1200 => 56,
            1200..1900 => 64,
            1900.. => 72,
        }
    }

    /// `XLOG_DBASE_DROP` (dbcommands_xlog.h).
    pub fn database_drop(self) -> u8 {
        if self.0.number >= 1500 { 0x20 } else { 0x10 }
    }

    /// Whether one record tells of a dropped database's files in all tablespaces (`xl_dbase_drop_rec`).
    pub fn drops_database_at_once(self) -> bool {
        self.0.number >= 1300
    }

    /// The flags of an image that is compressed: `BKPIMAGE_IS_COMPRESSED`, from 15 on one of
    /// `BKPIMAGE_COMPRESS_PGLZ`, `_LZ4` and `_ZSTD` (xlogrecord.h).
    pub fn compressed_image_flags(self) -> u8 {
        if self.0.number >= 1500 { 0x1C } else { 0x02 }
    }

    /// Where `pg_control` has `mock_authentication_nonce`, from 10 on: after `data_checksum_version`, in 18 after
    /// `default_char_signedness`, in 19 after both and one number more.
    pub(super) fn secret_offset(self) -> Option<usize> {
        let after = match self.0.number {
            ..1000 => return None,
            1000..1800 => 32,
            1800..1900 => 33,
            1900.. => 37,
        };
        Some(self.0.control.wal_block_size + after)
    }

    pub(super) fn control_layout(self) -> ControlLayout {
        self.0.control
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name)
    }
}

impl serde::Serialize for Version {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Version {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}
