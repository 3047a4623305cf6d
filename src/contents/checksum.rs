//! What tells whether a file's content is the one that was backed up.
//!
//! ```text
//! content ─▶ CRC-32C ─▶ manifest: whether a file came back as it was        (pg_verifybackup)
//!        └─▶ XXH3    ─▶ index: whether a file that is there is that file    (restore --delta)
//! ```
//!
//! Both find what happens by accident. Whoever wants to deceive can write a manifest, too; against that there is encryption.

use std::fmt;

use crc_fast::CrcAlgorithm::Crc32Iscsi;
use sha2::{Digest as _, Sha256};
use twox_hash::XxHash3_128;

/// A file's checksum in a manifest. There is one for each file: it takes 16 bytes, and the long hash more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// CRC-32C, PostgreSQL's own choice.
    Crc32c(u32),
    /// SHA-256, in manifests of earlier versions.
    Sha256(Box<[u8; 32]>),
}

/// A checksum in the making.
#[derive(Clone, Debug)]
pub enum Summing {
    /// CRC-32C.
    Crc32c(Crc32c),
    /// SHA-256.
    Sha256(Sha256),
}

/// A CRC-32C in the making.
#[derive(Clone, Debug)]
pub struct Crc32c(crc_fast::Digest);

/// What tells whether a file that is there is one of a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// XXH3, with 128 bits.
    Xxh128([u8; 16]),
    /// SHA-256, in manifests of earlier versions.
    Sha256([u8; 32]),
}

/// Both sums of a file on its way into a backup.
#[derive(Clone)]
pub struct FileSums {
    crc32c: Crc32c,
    xxh128: XxHash3_128,
}

impl Checksum {
    /// The algorithm's name in a manifest (checksum_helper.c, `pg_checksum_type_name`).
    pub fn algorithm(&self) -> &'static str {
        match self {
            Self::Crc32c(_) => "CRC32C",
            Self::Sha256(_) => "SHA256",
        }
    }

    /// The checksum that a manifest gives; `None` for another algorithm, and for one that is none.
    ///
    /// A CRC's bytes are in the order of the machine that made it, which is little-endian everywhere but on few
    /// (checksum_helper.c, `pg_checksum_final`).
    pub fn parse(algorithm: &str, digits: &str) -> Option<Self> {
        let bytes = hex::decode(digits).ok()?;
        match algorithm {
            "CRC32C" => Some(Self::Crc32c(u32::from_le_bytes(bytes.try_into().ok()?))),
            "SHA256" => Some(Self::Sha256(Box::new(bytes.try_into().ok()?))),
            _ => None,
        }
    }

    /// What makes a checksum that can be compared with this one.
    pub fn summing(&self) -> Summing {
        match self {
            Self::Crc32c(_) => Summing::default(),
            Self::Sha256(_) => Summing::Sha256(Sha256::new()),
        }
    }

    /// The checksum of a file in memory.
    pub fn of(content: &[u8]) -> Self {
        let mut crc = Crc32c::default();
        crc.update(content);
        Self::Crc32c(crc.value())
    }
}

/// Hexadecimal digits, as in a manifest.
impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&match self {
            Self::Crc32c(crc) => hex::encode(crc.to_le_bytes()),
            Self::Sha256(hash) => hex::encode(hash.as_slice()),
        })
    }
}

impl Default for Crc32c {
    fn default() -> Self {
        Self(crc_fast::Digest::new(Crc32Iscsi))
    }
}

impl Crc32c {
    /// Takes `bytes` in.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The CRC of all that was taken in.
    pub fn value(&self) -> u32 {
        u32::try_from(self.0.finalize()).expect("a CRC of 32 bits")
    }
}

impl Default for Summing {
    fn default() -> Self {
        Self::Crc32c(Crc32c::default())
    }
}

impl Summing {
    /// Takes `bytes` in.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Crc32c(crc) => crc.update(bytes),
            Self::Sha256(hash) => hash.update(bytes),
        }
    }

    /// The checksum of all that was taken in.
    pub fn checksum(&self) -> Checksum {
        match self {
            Self::Crc32c(crc) => Checksum::Crc32c(crc.value()),
            Self::Sha256(hash) => {
                Checksum::Sha256(Box::new(<[u8; 32]>::from(hash.clone().finalize())))
            }
        }
    }
}

impl Default for FileSums {
    fn default() -> Self {
        Self {
            crc32c: Crc32c::default(),
            xxh128: XxHash3_128::new(),
        }
    }
}

impl FileSums {
    /// Takes `bytes` in.
    pub fn update(&mut self, bytes: &[u8]) {
        self.crc32c.update(bytes);
        self.xxh128.write(bytes);
    }

    /// What stands in the manifest.
    pub fn crc32c(&self) -> u32 {
        self.crc32c.value()
    }

    /// What stands in the index.
    pub fn xxh128(&self) -> [u8; 16] {
        self.xxh128.finish_128().to_be_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `xxh128sum` prints it, and PostgreSQL's manifest has it.
    #[test]
    fn sums_are_those_of_other_programs() {
        let mut sums = FileSums::default();
        sums.update(b"wal");
        sums.update(b"halla\n");
        let checksum = Checksum::Crc32c(sums.crc32c());
        assert_eq!(checksum, Checksum::of(b"walhalla\n"));
        let oneshot = XxHash3_128::oneshot(b"walhalla\n");
        assert_eq!(sums.xxh128(), oneshot.to_be_bytes());
        // The check value of CRC-32C (RFC 3720, B.4), and XXH3's of nothing.
        assert_eq!(Checksum::of(b"123456789").to_string(), "839206e3");
        let empty = FileSums::default().xxh128();
        assert_eq!(hex::encode(empty), "99aa06d3014798d86001c324468d497f");
    }

    #[test]
    fn checksums_read_back_and_sum_alike() {
        let sha256 = Checksum::Sha256(Box::new(Sha256::digest(b"content").into()));
        for checksum in [Checksum::of(b"content"), sha256] {
            let read = Checksum::parse(checksum.algorithm(), &checksum.to_string());
            assert_eq!(read.as_ref(), Some(&checksum));
            let mut summing = checksum.summing();
            summing.update(b"con");
            summing.update(b"tent");
            assert_eq!(summing.checksum(), checksum);
        }
        assert_eq!(Checksum::parse("SHA512", "00"), None);
        assert_eq!(Checksum::parse("CRC32C", "00"), None);
    }
}
