//! Blocks that several readers want: each is fetched once while it is kept.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::{Condvar, Mutex, PoisonError};

use bytes::Bytes;

use crate::threads::lock;

/// Blocks that are kept for whoever needs them next, those of the least recent use first let go.
const CACHED_FRAMES: usize = 32;

/// Blocks in memory, and which are on their way.
#[derive(Default)]
pub(super) struct Cache {
    state: Mutex<State>,
    arrived: Condvar,
}

/// A part's number and a frame's in it.
type Place = (usize, usize);

#[derive(Default)]
struct State {
    /// Each block, and when it was used last.
    blocks: HashMap<Place, (Bytes, u64)>,
    on_their_way: HashSet<Place>,
    uses: u64,
}

pub(super) enum Found<'a> {
    /// It is there.
    Block(Bytes),
    /// The caller is to fetch these.
    Loading(Loading<'a>),
}

/// Frames that one reader fetches and others wait for until this is dropped.
pub(super) struct Loading<'a> {
    cache: &'a Cache,
    part: usize,
    pub(super) frames: Range<usize>,
}

impl Cache {
    /// The block of the first of `frames`, as soon as whoever fetches it has it. If nobody does, the caller is to fetch
    /// it, and with it those that follow up to the next one that is there or on its way.
    pub(super) fn find(&self, part: usize, frames: Range<usize>) -> Found<'_> {
        let first = (part, frames.start);
        let mut state = lock(&self.state);
        while state.on_their_way.contains(&first) {
            let woken = self.arrived.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
        if let Some(block) = state.used(first) {
            return Found::Block(block);
        }
        let wanted = frames
            .clone()
            .take_while(|frame| state.lacks((part, *frame)));
        let frames = frames.start..frames.start + wanted.count();
        let places = frames.clone().map(|frame| (part, frame));
        state.on_their_way.extend(places);
        Found::Loading(Loading {
            cache: self,
            part,
            frames,
        })
    }
}

impl State {
    fn used(&mut self, place: Place) -> Option<Bytes> {
        self.uses += 1;
        let (block, last_use) = self.blocks.get_mut(&place)?;
        *last_use = self.uses;
        Some(block.clone())
    }

    fn lacks(&self, place: Place) -> bool {
        !self.blocks.contains_key(&place) && !self.on_their_way.contains(&place)
    }

    fn insert(&mut self, place: Place, block: Bytes) {
        self.uses += 1;
        self.blocks.insert(place, (block, self.uses));
        if self.blocks.len() > CACHED_FRAMES {
            let least = self
                .blocks
                .iter()
                .min_by_key(|(_, (_, last_use))| *last_use);
            if let Some(place) = least.map(|(place, _)| *place) {
                self.blocks.remove(&place);
            }
        }
    }
}

impl Loading<'_> {
    /// Keeps what was fetched, from the first frame on.
    pub(super) fn cache_blocks(&self, blocks: &[Bytes]) {
        let mut state = lock(&self.cache.state);
        for (frame, block) in self.frames.clone().zip(blocks) {
            state.insert((self.part, frame), block.clone());
        }
    }
}

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.cache.state);
        for frame in self.frames.clone() {
            state.on_their_way.remove(&(self.part, frame));
        }
        self.cache.arrived.notify_all();
    }
}

#[cfg(test)]
impl Cache {
    /// What is kept, in order.
    pub(super) fn places(&self) -> Vec<Place> {
        let mut places: Vec<Place> = lock(&self.state).blocks.keys().copied().collect();
        places.sort_unstable();
        places
    }
}
