//! Dividing a data directory's files among tar parts.

use super::extent::{Extent, Item};

/// Files of about this length go into one part; a longer file has one of its own.
pub(super) const PART_SIZE_BYTES: u64 = 256 << 20;

/// Files that are packed into one tar file.
#[derive(Debug, Default)]
pub(super) struct Part {
    pub(super) files: Vec<Item>,
    pub(super) size_bytes: u64,
}

impl Part {
    /// A part of these files.
    pub(super) fn of(files: Vec<Item>) -> Self {
        Self {
            size_bytes: files.iter().map(|file| file.read_bytes).sum(),
            files,
        }
    }
}

/// Divides `files` into parts, the largest first, so that all workers end at about the same time.
///
/// Whole files and blocks of files are in different parts: a restore streams the first, and picks from the others.
pub(super) fn divide(files: Vec<Item>) -> Vec<Part> {
    let (whole, blocks): (Vec<_>, Vec<_>) = files
        .into_iter()
        .partition(|file| file.extent == Extent::Whole);
    let mut parts = by_size(whole);
    parts.extend(by_size(blocks));
    parts.sort_by_key(|part| std::cmp::Reverse(part.size_bytes));
    parts
}

fn by_size(files: Vec<Item>) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut open = Part::default();
    for file in files {
        if file.read_bytes >= PART_SIZE_BYTES {
            parts.push(Part::of(vec![file]));
            continue;
        }
        if open.size_bytes + file.read_bytes > PART_SIZE_BYTES {
            parts.push(std::mem::take(&mut open));
        }
        open.size_bytes += file.read_bytes;
        open.files.push(file);
    }
    if !open.files.is_empty() {
        parts.push(open);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::data_directory::Entry;

    fn file(size_bytes: u64) -> Item {
        Item::whole(Entry {
            path: size_bytes.to_string().into(),
            size_bytes,
            mode: 0o600,
            modified: 0,
            relation: None,
        })
    }

    #[test]
    fn every_file_is_in_one_part_and_large_parts_come_first() {
        let sizes = [
            1,
            PART_SIZE_BYTES * 4,
            5,
            PART_SIZE_BYTES - 6,
            7,
            PART_SIZE_BYTES,
        ];
        let parts = divide(sizes.into_iter().map(file).collect());
        let mut found: Vec<u64> = parts
            .iter()
            .flat_map(|part| part.files.iter().map(|file| file.read_bytes))
            .collect();
        found.sort_unstable();
        let mut wanted = sizes.to_vec();
        wanted.sort_unstable();
        assert_eq!(found, wanted);
        assert!(
            parts
                .windows(2)
                .all(|pair| pair[0].size_bytes >= pair[1].size_bytes)
        );
        assert!(
            parts
                .iter()
                .all(|part| part.files.len() == 1 || part.size_bytes <= PART_SIZE_BYTES)
        );
    }
}
