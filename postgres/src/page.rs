//! Data pages: their checksum and LSN (checksum_impl.h, bufpage.h).

use fearless_simd::{Level, Simd as _, dispatch};

use super::Lsn;

/// Parallel sums in PostgreSQL's checksum (`N_SUMS`).
const SUMS: usize = 32;
const FNV_PRIME: u32 = 16_777_619;
/// `checksumBaseOffsets`.
const BASE_OFFSETS: [u32; SUMS] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

/// What a data page's header and checksum say of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageState {
    /// The page was last changed before the backup began, and nothing in it is wrong.
    Sound,
    /// The page was changed since the backup began, so WAL replay restores it whatever it holds now.
    Changed {
        /// The page's LSN. One that lies beyond the backup's end shows that the page is damaged after all.
        lsn: Lsn,
        /// Whether the checksum fits, too; one that does not may come of a write that was under way.
        fits: bool,
    },
    /// Torn by a write that is under way, or damaged.
    Damaged,
}

/// What a page's LSN and checksum are judged by.
#[derive(Clone, Copy, Debug)]
pub struct Judge {
    /// Where the backup began.
    pub begin: Lsn,
    /// Whether the cluster's pages have checksums.
    pub checksums: bool,
}

impl Judge {
    /// Judges `page`, block `block` of its relation fork.
    ///
    /// A page without content is all zeros (bufpage.c, `PageIsVerified`). That the checksum does not matter on a page that
    /// was changed since the backup began follows basebackup.c, `verify_page_checksum`.
    pub fn state(self, page: &[u8], block: u32) -> PageState {
        if is_new(page) {
            let is_empty = page.iter().all(|byte| *byte == 0);
            return if is_empty {
                PageState::Sound
            } else {
                PageState::Damaged
            };
        }
        let fits = !self.checksums || field(page, 8) == Some(checksum(page, block));
        let lsn = lsn(page);
        if lsn >= self.begin {
            PageState::Changed { lsn, fits }
        } else if fits && has_header(page) {
            PageState::Sound
        } else {
            PageState::Damaged
        }
    }
}

/// Whether the header's fields can be a page's (bufpage.c, `PageIsVerified`).
fn has_header(page: &[u8]) -> bool {
    /// `PD_VALID_FLAG_BITS`.
    const FLAGS: u16 = 0x0007;
    let [flags, lower, upper, special] = [10, 12, 14, 16].map(|at| field(page, at).unwrap_or(0));
    flags & !FLAGS == 0 && lower <= upper && upper <= special && usize::from(special) <= page.len()
}

/// Whether a page holds nothing yet (bufpage.h, `PageIsNew`: `pd_upper` is 0).
pub fn is_new(page: &[u8]) -> bool {
    field(page, 14) == Some(0)
}

/// Whether a heap page says that all its rows are visible to all (`PD_ALL_VISIBLE`). Without checksums and
/// `wal_log_hints` that is set without a new LSN (visibilitymap.c, `visibilitymap_set`).
pub fn is_all_visible(page: &[u8]) -> bool {
    const PD_ALL_VISIBLE: u16 = 0x0004;
    field(page, 10).is_none_or(|flags| flags & PD_ALL_VISIBLE != 0)
}

/// `pd_lsn`: the end of the last record that changed the page, high half first.
pub fn lsn(page: &[u8]) -> Lsn {
    let half = |offset| {
        page.get(offset..)
            .and_then(<[u8]>::first_chunk)
            .map_or(0, |b| u64::from(u32::from_le_bytes(*b)))
    };
    Lsn(half(0) << 32 | half(4))
}

/// `pg_checksum_page`: over the page with `pd_checksum` taken as 0, mixed with the block's number, never 0.
///
/// PostgreSQL made its algorithm for the wide registers of newer processors: it is compiled for several of them, and the one at
/// hand is asked what it has.
pub fn checksum(page: &[u8], block: u32) -> u16 {
    let folded = dispatch!(Level::new(), simd => simd.vectorize(#[inline(always)] || fold(page)));
    u16::try_from((folded ^ block) % 65_535 + 1)
        .expect("a remainder of 65535 and 1 more fit 16 bits")
}

/// `pg_checksum_block`
#[expect(
    clippy::inline_always,
    reason = "what is not inlined is compiled for the least of all processors"
)]
#[inline(always)]
fn fold(page: &[u8]) -> u32 {
    let mut sums = BASE_OFFSETS;
    let (rows, _) = page.as_chunks::<{ SUMS * 4 }>();
    let mut rows = rows.iter();
    if let Some(first) = rows.next() {
        let mut header = *first;
        if let Some(stored) = header.get_mut(8..10) {
            stored.fill(0);
        }
        mix(&mut sums, &header);
    }
    rows.for_each(|row| mix(&mut sums, row));
    mix(&mut sums, &[0; SUMS * 4]);
    mix(&mut sums, &[0; SUMS * 4]);
    sums.iter().fold(0, |folded, sum| folded ^ sum)
}

#[expect(clippy::inline_always, reason = "as above")]
#[inline(always)]
fn mix(sums: &mut [u32; SUMS], row: &[u8; SUMS * 4]) {
    let (values, _) = row.as_chunks::<4>();
    for (sum, value) in sums.iter_mut().zip(values) {
        let mixed = *sum ^ u32::from_le_bytes(*value);
        *sum = mixed.wrapping_mul(FNV_PRIME) ^ (mixed >> 17);
    }
}

fn field(page: &[u8], offset: usize) -> Option<u16> {
    page.get(offset..)?
        .first_chunk()
        .map(|bytes| u16::from_le_bytes(*bytes))
}
