//! PostgreSQL 17's `INCREMENTAL.*` files (reconstruct.c, basebackup_incremental.c).

use std::path::{Path, PathBuf};

const MAGIC: u32 = 0xD3AE_1F0D;
/// What the names of such files begin with.
const PREFIX: &str = "INCREMENTAL.";

/// The header of an `INCREMENTAL.*` file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Blocks below this one that the file does not hold are the older backup's.
    pub truncation_block_length: u32,
    /// The blocks that it holds, ascending.
    pub blocks: Vec<u32>,
}

impl Header {
    /// As it is stored.
    pub fn to_bytes(&self, block_size: u32) -> Vec<u8> {
        let count = u32::try_from(self.blocks.len()).unwrap_or(u32::MAX);
        let mut bytes = Vec::new();
        for number in [MAGIC, count, self.truncation_block_length]
            .iter()
            .chain(&self.blocks)
        {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        if count > 0 {
            bytes.resize(
                bytes
                    .len()
                    .next_multiple_of(usize::try_from(block_size).unwrap_or(8192)),
                0,
            );
        }
        bytes
    }
}

/// `base/5/INCREMENTAL.16384` for `base/5/16384`.
pub fn delta_name(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(PREFIX);
    name.push(path.file_name().unwrap_or_default());
    path.with_file_name(name)
}
