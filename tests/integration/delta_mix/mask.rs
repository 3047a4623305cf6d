//! What two copies of a page may differ in although nothing was lost: what changes without WAL, or is set otherwise when
//! WAL is replayed. It is what PostgreSQL leaves out when it checks its own replay (bufmask.c, and the `_mask` functions
//! of each access method: heap_mask, btree_mask, hash_mask, gin_mask, gist_mask, spg_mask, brin_mask, seq_mask).

/// How a relation's pages are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Heap,
    Btree,
    Hash,
    Gin,
    Gist,
    SpGist,
    Brin,
    Sequence,
}

pub const PAGE_BYTES: usize = 8192;
const HEADER: usize = 24;

/// A page whose differences matter, once masked.
#[derive(Clone)]
pub struct Page(Vec<u8>);

impl Kind {
    /// Of the name of an access method, or of `pg_class.relkind` where there is none.
    pub fn parse(name: &str) -> Self {
        match name {
            "heap" | "r" | "t" | "m" => Self::Heap,
            "btree" => Self::Btree,
            "hash" => Self::Hash,
            "gin" => Self::Gin,
            "gist" => Self::Gist,
            "spgist" => Self::SpGist,
            "brin" => Self::Brin,
            "S" => Self::Sequence,
            other => panic!("pages of {other:?} are not known"),
        }
    }
}

impl Page {
    pub fn new(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }

    /// Whether nothing was ever put on the page: all zeros, or made empty without WAL (hio.c,
    /// `RelationAddExtraBlocks`; brin_pageops.c, `brin_initialize_empty_new_buffer`).
    pub fn is_void(&self) -> bool {
        let is_new = self.0.iter().all(|byte| *byte == 0);
        let is_empty = self.lower() == HEADER && self.upper() == self.special();
        is_new || self.0[..8] == [0; 8] && is_empty
    }

    /// Whether it is a page of a BRIN index's range map that points nowhere.
    pub fn is_blank_range_map(&self) -> bool {
        const REVMAP: u16 = 0xF092;
        let special = self.special();
        let is_map = special + 8 == PAGE_BYTES && self.u16(special + 6) == REVMAP;
        is_map && self.0[HEADER..special].iter().all(|byte| *byte == 0)
    }

    /// PD_ALL_VISIBLE
    pub fn is_all_visible(&self) -> bool {
        self.u16(10) & 4 != 0
    }

    pub fn lsn(&self) -> u64 {
        u64::from(self.u32(0)) << 32 | u64::from(self.u32(4))
    }

    /// The page without what may differ.
    pub fn masked(mut self, kind: Kind, number: u32) -> Self {
        // LSN, checksum.
        self.0[..10].fill(0);
        // PD_HAS_FREE_LINES, PD_PAGE_FULL, PD_ALL_VISIBLE; pd_prune_xid.
        self.set_u16(10, self.u16(10) & !7);
        self.0[20..HEADER].fill(0);
        if !(HEADER..=self.upper()).contains(&self.lower()) || self.special() > PAGE_BYTES {
            return self;
        }
        match kind {
            Kind::Heap => self.mask_heap(number),
            Kind::Btree => self.mask_btree(),
            Kind::Hash => self.mask_hash(),
            Kind::Gin => self.mask_gin(),
            Kind::Gist => self.mask_gist(),
            Kind::SpGist => self.mask_spgist(number),
            Kind::Brin => self.mask_brin(),
            Kind::Sequence => self.mask_hole(),
        }
        self
    }

    /// Where two masked pages differ first.
    pub fn difference(&self, other: &Self) -> Option<usize> {
        let mut pairs = self.0.iter().zip(&other.0);
        pairs.position(|(one, other)| one != other)
    }

    /// Some bytes around a place, to be shown.
    pub fn around(&self, at: usize) -> String {
        let from = at.saturating_sub(4);
        hex::encode(&self.0[from..(from + 16).min(PAGE_BYTES)])
    }

    fn mask_heap(&mut self, number: u32) {
        self.mask_hole();
        for slot in 1..=self.slots() {
            let (at, flags, size_bytes) = self.item(slot);
            if flags == LP_NORMAL {
                self.mask_tuple(at, number, slot);
            }
            if size_bytes > 0 {
                let end = at + size_bytes;
                self.0[end..end.next_multiple_of(8)].fill(0);
            }
        }
    }

    fn mask_tuple(&mut self, at: usize, number: u32, slot: usize) {
        const XMIN_FROZEN: u16 = 0x0300;
        let infomask = self.u16(at + 20);
        // Of a frozen tuple only what is known of its deletion; else all of `HEAP_XACT_MASK`.
        let hints = if infomask & XMIN_FROZEN == XMIN_FROZEN {
            0x0C00
        } else {
            0xFFF0
        };
        self.set_u16(at + 20, infomask & !hints);
        // The command's number.
        self.0[at + 8..at + 12].fill(0);
        // A speculative tuple's token (itemptr.h, `SpecTokenOffsetNumber`).
        if self.u16(at + 16) == 0xFFFE {
            let [low_0, low_1, high_0, high_1] = number.to_le_bytes();
            self.0[at + 12..at + 16].copy_from_slice(&[high_0, high_1, low_0, low_1]);
            self.set_u16(at + 16, slot.try_into().unwrap());
        }
    }

    fn mask_btree(&mut self) {
        const LEAF: u16 = 1;
        const DELETED: u16 = 1 << 2;
        const SPLIT_END_AND_GARBAGE: u16 = 1 << 5 | 1 << 6;
        self.mask_hole();
        let flags_at = self.special() + 12;
        let mut flags = self.u16(flags_at);
        if flags & DELETED != 0 {
            self.mask_content();
            // Replay by 10 forgets that a deleted page was a leaf.
            flags &= !LEAF;
        } else if flags & LEAF != 0 {
            self.mask_item_flags();
        }
        self.set_u16(flags_at, flags & !SPLIT_END_AND_GARBAGE);
        // The vacuum cycle.
        self.set_u16(flags_at + 2, 0);
    }

    fn mask_hash(&mut self) {
        const PAGE_TYPE: u16 = 0xF;
        const OVERFLOW_OR_BUCKET: u16 = 3;
        const HAS_DEAD_TUPLES: u16 = 1 << 7;
        self.mask_hole();
        let flags_at = self.special() + 12;
        let flags = self.u16(flags_at);
        let is_unused = flags & PAGE_TYPE == 0;
        if is_unused {
            self.mask_content();
        } else if flags & OVERFLOW_OR_BUCKET != 0 {
            self.mask_item_flags();
        }
        self.set_u16(flags_at, flags & !HAS_DEAD_TUPLES);
    }

    fn mask_gin(&mut self) {
        const DELETED: u16 = 1 << 2;
        let special = self.special();
        if self.u16(special + 6) & DELETED != 0 {
            // Its link to the right, and how many items it has: replay begins the page anew.
            self.mask_content();
            self.0[special..special + 6].fill(0);
        } else if self.lower() > HEADER {
            self.mask_hole();
        }
    }

    fn mask_gist(&mut self) {
        const LEAF: u16 = 1;
        const FOLLOW_RIGHT: u16 = 1 << 3;
        const HAS_GARBAGE: u16 = 1 << 4;
        self.mask_hole();
        let special = self.special();
        // The NSN is a kind of LSN.
        self.0[special..special + 8].fill(0);
        let flags = self.u16(special + 12);
        if flags & LEAF != 0 {
            self.mask_item_flags();
        }
        self.set_u16(special + 12, flags & !HAS_GARBAGE | FOLLOW_RIGHT);
    }

    fn mask_spgist(&mut self, number: u32) {
        if number == 0 {
            // The pages last used, which are never in the WAL (spgutils.c, `SpGistUpdateMetaPage`).
            self.0[HEADER + 4..].fill(0);
        } else {
            // Also of an empty page, in whose hole the item pointers of removed placeholders are left.
            self.mask_hole();
        }
    }

    fn mask_brin(&mut self) {
        const META: u16 = 0xF091;
        const REGULAR: u16 = 0xF093;
        let special = self.special();
        let kind = self.u16(special + 6);
        if kind == REGULAR || kind == META && self.lower() > HEADER {
            self.mask_hole();
        }
        // BRIN_EVACUATE_PAGE
        self.set_u16(special + 4, self.u16(special + 4) & !1);
    }

    fn mask_hole(&mut self) {
        let (lower, upper) = (self.lower(), self.upper());
        self.0[lower..upper].fill(0);
    }

    fn mask_content(&mut self) {
        let special = self.special();
        self.0[12..16].fill(0);
        self.0[HEADER..special].fill(0);
    }

    fn mask_item_flags(&mut self) {
        for slot in 1..=self.slots() {
            let at = HEADER + 4 * (slot - 1);
            let item = self.u32(at);
            if item >> 15 & 3 != 0 {
                self.0[at..at + 4].copy_from_slice(&(item & !(3 << 15)).to_le_bytes());
            }
        }
    }

    fn slots(&self) -> usize {
        (self.lower() - HEADER) / 4
    }

    /// Place, flags and size of an item.
    fn item(&self, slot: usize) -> (usize, u32, usize) {
        let item = self.u32(HEADER + 4 * (slot - 1));
        let [place, size_bytes] = [item & 0x7FFF, item >> 17];
        (place as usize, item >> 15 & 3, size_bytes as usize)
    }

    fn lower(&self) -> usize {
        self.u16(12).into()
    }

    fn upper(&self) -> usize {
        self.u16(14).into()
    }

    fn special(&self) -> usize {
        self.u16(16).into()
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.0[at..at + 4].try_into().unwrap())
    }

    fn set_u16(&mut self, at: usize, value: u16) {
        self.0[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
}

const LP_NORMAL: u32 = 1;
