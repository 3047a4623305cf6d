//! What tells whether stored bytes, or a block of content, are those that were written.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use twox_hash::XxHash3_128;

/// A hash of all stored bytes of an object. As JSON it is a member with the hash's name and hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoredDigest {
    /// BLAKE3.
    #[serde(with = "hex")]
    Blake3([u8; 32]),
    /// SHA-256, in backups of earlier versions.
    #[serde(with = "hex")]
    Sha256([u8; 32]),
}

/// What tells a block of content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockDigest {
    /// XXH3 with 128 bits, in the order in which `xxh128sum` prints it.
    Xxh128([u8; 16]),
    /// The first half of the BLAKE3 hash, in indexes of earlier versions.
    Blake3([u8; 16]),
}

impl BlockDigest {
    /// That of `block`.
    pub fn of(block: &[u8]) -> Self {
        Self::Xxh128(XxHash3_128::oneshot(block).to_be_bytes())
    }

    /// Whether it is that of `block`.
    pub fn is_of(self, block: &[u8]) -> bool {
        match self {
            Self::Xxh128(_) => Self::of(block) == self,
            Self::Blake3(digest) => blake3::hash(block).as_bytes().starts_with(&digest),
        }
    }

    /// Its bytes.
    pub fn bytes(self) -> [u8; 16] {
        let (Self::Xxh128(bytes) | Self::Blake3(bytes)) = self;
        bytes
    }
}

/// A hash of stored bytes in the making.
#[derive(Clone)]
pub enum StoredHash {
    /// BLAKE3.
    Blake3(Box<blake3::Hasher>),
    /// SHA-256.
    Sha256(Sha256),
}

impl StoredDigest {
    /// The BLAKE3 hash of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self::Blake3(blake3::hash(bytes).into())
    }

    /// Its digits.
    pub fn to_hex(self) -> String {
        let (Self::Blake3(bytes) | Self::Sha256(bytes)) = self;
        hex::encode(bytes)
    }

    /// The hash by which another digest can be compared with this one.
    pub fn hash(self) -> StoredHash {
        match self {
            Self::Blake3(_) => StoredHash::default(),
            Self::Sha256(_) => StoredHash::Sha256(Sha256::new()),
        }
    }
}

impl Default for StoredHash {
    fn default() -> Self {
        Self::Blake3(Box::default())
    }
}

impl StoredHash {
    /// Takes `bytes` in.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Blake3(hash) => _ = hash.update(bytes),
            Self::Sha256(hash) => hash.update(bytes),
        }
    }

    /// The hash of all that was taken in.
    pub fn digest(&self) -> StoredDigest {
        match self {
            Self::Blake3(hash) => StoredDigest::Blake3(hash.finalize().into()),
            Self::Sha256(hash) => StoredDigest::Sha256(hash.clone().finalize().into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_told_by_its_own_hash() {
        let xxh128 = BlockDigest::of(b"");
        assert_eq!(
            hex::encode(xxh128.bytes()),
            "99aa06d3014798d86001c324468d497f"
        );
        let blake3 = *blake3::hash(b"").as_bytes().first_chunk().unwrap();
        for digest in [xxh128, BlockDigest::Blake3(blake3)] {
            assert!(digest.is_of(b"") && !digest.is_of(b"a"), "{digest:?}");
        }
        assert!(!BlockDigest::Xxh128(blake3).is_of(b""));
    }

    #[test]
    fn digests_read_back_and_are_compared_by_their_own_hash() {
        let sha256 = StoredDigest::Sha256(Sha256::digest(b"bytes").into());
        for digest in [StoredDigest::of(b"bytes"), sha256] {
            let json = serde_json::to_string(&digest).unwrap();
            assert_eq!(serde_json::from_str::<StoredDigest>(&json).unwrap(), digest);
            assert!(json.contains(&digest.to_hex()), "{json}");
            let mut hash = digest.hash();
            hash.update(b"by");
            hash.update(b"tes");
            assert_eq!(hash.digest(), digest);
            hash.update(b"!");
            assert_ne!(hash.digest(), digest);
        }
    }
}
