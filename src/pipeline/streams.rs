//! Reading streams in whole buffers.

use std::io::{ErrorKind, Read, Result};

/// Whether two readers hold the same bytes.
pub fn same_bytes(left: &mut impl Read, right: &mut impl Read) -> Result<bool> {
    let (mut of_left, mut of_right) = (vec![0; 1 << 18], vec![0; 1 << 18]);
    loop {
        let (left_bytes, right_bytes) = (
            read_full(left, &mut of_left)?,
            read_full(right, &mut of_right)?,
        );
        if left_bytes != right_bytes {
            return Ok(false);
        }
        if left_bytes.is_empty() {
            return Ok(true);
        }
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
