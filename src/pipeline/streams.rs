//! Reading streams in whole buffers.

use std::io::{ErrorKind, Read, Result};

use sha2::{Digest, Sha256};
use twox_hash::XxHash3_128;

/// BLAKE3 hash of all that `input` holds.
pub fn blake3(input: &mut impl Read) -> Result<[u8; 32]> {
    let mut hash = blake3::Hasher::new();
    hash.update_reader(input)?;
    Ok(hash.finalize().into())
}

/// SHA-256 of all that `input` holds.
pub fn sha256(input: &mut impl Read) -> Result<[u8; 32]> {
    let mut hash = Sha256::new();
    each_chunk(input, |bytes| hash.update(bytes))?;
    Ok(hash.finalize().into())
}

/// XXH3 of all that `input` holds, with 128 bits.
pub fn xxh128(input: &mut impl Read) -> Result<[u8; 16]> {
    let mut hash = XxHash3_128::new();
    each_chunk(input, |bytes| hash.write(bytes))?;
    Ok(hash.finish_128().to_be_bytes())
}

fn each_chunk(input: &mut impl Read, mut take: impl FnMut(&[u8])) -> Result<()> {
    let mut buffer = vec![0; 1 << 18];
    loop {
        let bytes = read_full(input, &mut buffer)?;
        if bytes.is_empty() {
            return Ok(());
        }
        take(bytes);
    }
}

/// Reads until `buffer` is full or the input ends.
pub fn read_full<'a>(input: &mut impl Read, buffer: &'a mut [u8]) -> Result<&'a [u8]> {
    let mut filled = 0;
    while let Some(room) = buffer.get_mut(filled..).filter(|room| !room.is_empty()) {
        match input.read(room) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(buffer.get(..filled).unwrap_or_default())
}

/// BLAKE3 hash under `key` of all that `input` still holds.
///
/// # Errors
/// The input's.
pub fn keyed_digest(input: &mut impl Read, key: &[u8; 32]) -> Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update_reader(input)?;
    Ok(*hasher.finalize().as_bytes())
}
