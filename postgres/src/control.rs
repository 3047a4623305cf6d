//! `global/pg_control`.

use std::fmt;

use super::{Limits, Lsn, SegmentSize, SystemIdentifier, TimelineId, Version};

/// Where the control file stands below the data directory.
pub const PATH: &str = "global/pg_control";

/// What is needed of a cluster's control file; its CRC was right when it was read.
#[derive(Clone, Debug)]
pub struct ControlFile {
    /// The cluster's identity.
    pub system_identifier: SystemIdentifier,
    /// The cluster's version.
    pub version: Version,
    /// What the server was doing when it last wrote the file (`DBState`).
    pub state: u32,
    /// When the file was last written, in seconds since 1970.
    pub written: u64,
    /// Where the record of the latest checkpoint is.
    pub checkpoint_lsn: Lsn,
    /// Redo position of the latest checkpoint.
    pub checkpoint_redo: Lsn,
    /// Timeline of the latest checkpoint.
    pub timeline: TimelineId,
    /// How far a standby must replay to be consistent.
    pub min_recovery_point: Lsn,
    /// The timeline of that position; 0 where there is none.
    pub min_recovery_timeline: u32,
    /// What recovery must not be below.
    pub limits: Limits,
    /// Length of a data page.
    pub block_size_bytes: u32,
    /// Pages in one file of a relation (`RELSEG_SIZE`).
    pub blocks_per_file: u32,
    /// Length of a WAL page.
    pub wal_block_size_bytes: u32,
    /// Length of a WAL segment.
    pub segment_size: SegmentSize,
    /// Whether data pages carry checksums.
    pub data_checksums: bool,
    /// What the servers of the cluster know and nobody else.
    pub secret: Option<ClusterSecret>,
}

/// `mock_authentication_nonce`: random bytes that initdb makes, and that every copy of the cluster has. They are in no
/// object of a store that could be read without its identity.
#[derive(Clone)]
pub struct ClusterSecret([u8; 32]);

impl ClusterSecret {
    /// A key for one purpose, from which neither the secret nor a key for another one can be told.
    pub fn key(&self, purpose: &str, system_identifier: SystemIdentifier) -> [u8; 32] {
        let material = [&self.0[..], &system_identifier.0.to_le_bytes()].concat();
        blake3::derive_key(purpose, &material)
    }

    /// The secret with these bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterSecret(…)")
    }
}

/// What is wrong with a control file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlFileDamage {
    /// It ends before its fields do.
    Short,
    /// Its CRC does not fit its content.
    Crc,
    /// Its version numbers belong to no supported PostgreSQL.
    UnknownVersion {
        /// `pg_control_version`.
        control: u32,
        /// `catalog_version_no`.
        catalog: u32,
    },
    /// A field has a value that PostgreSQL does not allow.
    Field(&'static str),
}

impl ControlFile {
    /// Parses the file's bytes.
    ///
    /// # Errors
    /// The [`ControlFileDamage`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ControlFileDamage> {
        let u32_at = |offset| u32_at(bytes, offset).ok_or(ControlFileDamage::Short);
        let u64_at = |offset| Ok(u64::from(u32_at(offset)?) | u64::from(u32_at(offset + 4)?) << 32);
        let (control, catalog) = (u32_at(8)?, u32_at(12)?);
        let version = Version::of_control(control, catalog)
            .ok_or(ControlFileDamage::UnknownVersion { control, catalog })?;
        let layout = version.control_layout();
        // After `wal_level` and `wal_log_hints`, which follow the positions of a backup (pg_control.h).
        let mut at = layout.min_recovery_point + 40;
        let limits = Limits::read(version, || {
            at += 4;
            u32_at(at)
        })?;
        let content = bytes.get(..layout.crc).ok_or(ControlFileDamage::Short)?;
        if crc32c::crc32c(content) != u32_at(layout.crc)? {
            return Err(ControlFileDamage::Crc);
        }
        Ok(Self {
            system_identifier: SystemIdentifier(u64_at(0)?),
            version,
            state: u32_at(16)?,
            written: u64_at(24)?,
            checkpoint_lsn: Lsn(u64_at(32)?),
            checkpoint_redo: Lsn(u64_at(layout.checkpoint)?),
            timeline: TimelineId::new(u32_at(layout.checkpoint + 8)?)
                .ok_or(ControlFileDamage::Field("timeline"))?,
            min_recovery_point: Lsn(u64_at(layout.min_recovery_point)?),
            min_recovery_timeline: u32_at(layout.min_recovery_point + 8)?,
            limits,
            block_size_bytes: page_size(u32_at(layout.block_size)?)
                .ok_or(ControlFileDamage::Field("block size"))?,
            blocks_per_file: u32_at(layout.block_size + 4)?,
            wal_block_size_bytes: page_size(u32_at(layout.wal_block_size)?)
                .ok_or(ControlFileDamage::Field("WAL block size"))?,
            segment_size: SegmentSize::new(u64::from(u32_at(layout.wal_block_size + 4)?))
                .ok_or(ControlFileDamage::Field("WAL segment size"))?,
            // 1 is `PG_DATA_CHECKSUM_VERSION`: all pages have them.
            data_checksums: u32_at(layout.wal_block_size + 28)? == 1,
            secret: secret(bytes, version.secret_offset()),
        })
    }
}

/// `None` before 10, and of zeros, which pg_resetwal makes when it has to guess.
fn secret(bytes: &[u8], offset: Option<usize>) -> Option<ClusterSecret> {
    let secret = *bytes.get(offset?..)?.first_chunk::<32>()?;
    (secret != [0; 32]).then_some(ClusterSecret(secret))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes
        .get(offset..)?
        .first_chunk()
        .map(|chunk| u32::from_le_bytes(*chunk))
}

/// Block sizes are powers of two from 1 to 64 kB (pg_config.h, `BLCKSZ`, `XLOG_BLCKSZ`).
pub fn page_size(bytes: u32) -> Option<u32> {
    (bytes.is_power_of_two() && (1 << 10..=1 << 16).contains(&bytes)).then_some(bytes)
}

impl fmt::Display for ControlFileDamage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short => f.write_str("it is too short"),
            Self::Crc => f.write_str("its CRC does not match its content"),
            Self::UnknownVersion { control, catalog } => {
                write!(
                    f,
                    "version {control} with catalog {catalog} belongs to no supported PostgreSQL"
                )
            }
            Self::Field(field) => write!(f, "its {field} is impossible"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_or_strange_control_file_is_refused() {
        assert_eq!(
            ControlFile::parse(&[]).unwrap_err(),
            ControlFileDamage::Short
        );
        assert!(matches!(
            ControlFile::parse(&[7; 8192]).unwrap_err(),
            ControlFileDamage::UnknownVersion { .. }
        ));
        let mut bytes = vec![0; 8192];
        bytes[8..16].copy_from_slice(&[0xA4, 6, 0, 0, 0xE9, 0xAD, 5, 12]);
        assert!(ControlFile::parse(&bytes).is_err());
    }
}
