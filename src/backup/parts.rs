//! Dividing a data directory's files among tar parts.

/// Files of about this length go into one part; a longer file has one of its own.
pub(super) const PART_SIZE_BYTES: u64 = 256 << 20;

/// A file on its way into a part.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    /// Its position in the listing.
    pub(super) position: u32,
    /// How much is read of it, in bytes.
    pub(super) read_bytes: u64,
    /// Whether all of it is stored.
    pub(super) is_whole: bool,
}

/// Files that are packed into one tar file, by their positions in the listing.
#[derive(Debug, Default)]
pub(super) struct Part {
    pub(super) files: Vec<u32>,
    pub(super) size_bytes: u64,
}

impl Part {
    /// Adds a file.
    pub(super) fn add(&mut self, file: Share) {
        self.files.push(file.position);
        self.size_bytes += file.read_bytes;
    }
}

/// Divides `files` into parts, the largest first, so that all workers end at about the same time.
///
/// Whole files and blocks of files are in different parts: a restore streams the first, and picks from the others.
pub(super) fn divide(files: impl Iterator<Item = Share>) -> Vec<Part> {
    let (mut parts, mut whole, mut blocks) = (Vec::new(), Part::default(), Part::default());
    for file in files {
        let open = if file.is_whole {
            &mut whole
        } else {
            &mut blocks
        };
        if file.read_bytes >= PART_SIZE_BYTES {
            let mut own = Part::default();
            own.add(file);
            parts.push(own);
            continue;
        }
        if open.size_bytes + file.read_bytes > PART_SIZE_BYTES {
            parts.push(std::mem::take(open));
        }
        open.add(file);
    }
    parts.extend(
        [whole, blocks]
            .into_iter()
            .filter(|part| !part.files.is_empty()),
    );
    parts.sort_by_key(|part| std::cmp::Reverse(part.size_bytes));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let share = |(position, read_bytes)| Share {
            position,
            read_bytes,
            is_whole: position % 2 == 0,
        };
        let parts = divide((0..).zip(sizes).map(share));
        let files = parts.iter().flat_map(|part| part.files.iter().copied());
        let mut found: Vec<u32> = files.collect();
        found.sort_unstable();
        assert_eq!(found, [0, 1, 2, 3, 4, 5]);
        assert!(
            parts
                .windows(2)
                .all(|pair| pair[0].size_bytes >= pair[1].size_bytes)
        );
        for part in &parts {
            assert!(part.files.len() == 1 || part.size_bytes <= PART_SIZE_BYTES);
            let kinds = part.files.iter().map(|position| position % 2);
            assert_eq!(kinds.clone().min(), kinds.max(), "{part:?}");
        }
    }
}
