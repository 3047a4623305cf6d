//! Which segments are to be fetched ahead: decided from what the server asked for, without a store or a clock.

use std::collections::BTreeSet;

use walhalla_postgres::{SegmentName, SegmentNo, SegmentSize};

/// Segments after the one that the server asked for last.
#[derive(Debug)]
pub struct Window {
    size: SegmentSize,
    wanted: Option<SegmentName>,
    /// How many segments are fetched ahead.
    width: usize,
    most: usize,
    /// What is on its way.
    coming: BTreeSet<SegmentName>,
    /// What was fetched.
    done: BTreeSet<SegmentName>,
    /// The first segment that could not be fetched. It is asked for again after the server has asked for another one.
    end: Option<SegmentName>,
}

impl Window {
    /// One that begins with `width` segments and grows to `most`.
    pub fn new(size: SegmentSize, width: usize, most: usize) -> Self {
        Self {
            size,
            wanted: None,
            width: width.clamp(1, most.max(1)),
            most,
            coming: BTreeSet::new(),
            done: BTreeSet::new(),
            end: None,
        }
    }

    /// Takes up which segment the server asks for. One that has not come yet shows that replay is faster than what is
    /// fetched: the window gets twice as wide.
    pub fn want(&mut self, segment: SegmentName) {
        if self.wanted == Some(segment) {
            return;
        }
        let follows = self.wanted.and_then(|before| self.after(before, 1)) == Some(segment);
        if follows && !self.done.contains(&segment) {
            self.width = self.width.saturating_mul(2).min(self.most);
        }
        self.wanted = Some(segment);
        self.end = None;
        let numbers = self.numbers();
        let size = self.size;
        self.done.retain(|segment| is_in(*segment, size, numbers));
    }

    /// The next segment to fetch, which counts as on its way from now on.
    pub fn take_next(&mut self) -> Option<SegmentName> {
        let end = self.end;
        let next = self
            .segments()
            .skip(1)
            .find(|segment| !self.coming.contains(segment) && !self.done.contains(segment))?;
        if end.is_some_and(|end| next >= end) {
            return None;
        }
        self.coming.insert(next);
        Some(next)
    }

    /// Takes up that a segment has come.
    pub fn came(&mut self, segment: SegmentName) {
        self.coming.remove(&segment);
        self.done.insert(segment);
    }

    /// Takes up that a segment cannot be fetched now.
    pub fn failed(&mut self, segment: SegmentName) {
        self.coming.remove(&segment);
        let is_first = self.end.is_none_or(|end| segment < end);
        if is_first && self.holds(segment) {
            self.end = Some(segment);
        }
    }

    /// Whether a segment may stay in the spool: the server asks for it, or is to do so soon. The timeline says nothing of that:
    /// up to 12 a server asks for each segment on the newest timeline first.
    pub fn holds(&self, segment: SegmentName) -> bool {
        is_in(segment, self.size, self.numbers())
    }

    /// The first and the last number of the window.
    fn numbers(&self) -> Option<(u64, u64)> {
        let first = self.wanted?.number(self.size)?.0;
        Some((first, first.saturating_add(self.width as u64)))
    }

    /// The segment that the server asked for, and those after it.
    fn segments(&self) -> impl Iterator<Item = SegmentName> + use<> {
        let (size, width) = (self.size, self.width);
        let begin = self
            .wanted
            .and_then(|name| Some((name.timeline, name.number(size)?)));
        begin
            .into_iter()
            .flat_map(move |(timeline, SegmentNo(first))| {
                let numbers = (0..=width as u64).map(move |step| first.saturating_add(step));
                numbers.map(move |number| SegmentNo(number).on(timeline, size))
            })
    }

    fn after(&self, segment: SegmentName, steps: u64) -> Option<SegmentName> {
        let number = segment.number(self.size)?;
        let number = SegmentNo(number.0.saturating_add(steps));
        Some(number.on(segment.timeline, self.size))
    }
}

fn is_in(segment: SegmentName, size: SegmentSize, numbers: Option<(u64, u64)>) -> bool {
    let number = segment.number(size).map(|number| number.0);
    let held = number.zip(numbers);
    held.is_some_and(|(number, (first, last))| (first..=last).contains(&number))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: SegmentSize = SegmentSize::DEFAULT;

    fn segment(timeline: u32, number: u64) -> SegmentName {
        format!("{timeline:08X}{:08X}{:08X}", number / 256, number % 256)
            .parse()
            .unwrap()
    }

    fn taken(window: &mut Window) -> Vec<SegmentName> {
        std::iter::from_fn(|| window.take_next()).collect()
    }

    #[test]
    fn the_segments_after_the_wanted_one_are_fetched_once_each() {
        let mut window = Window::new(SIZE, 3, 8);
        assert_eq!(taken(&mut window), []);
        window.want(segment(1, 254));
        let next = [segment(1, 255), segment(1, 256), segment(1, 257)];
        assert_eq!(taken(&mut window), next);
        assert_eq!(taken(&mut window), []);
        for segment in next {
            window.came(segment);
        }
        window.want(segment(1, 255));
        assert_eq!(taken(&mut window), [segment(1, 258)]);
        assert!(!window.holds(segment(1, 254)));
        assert!(window.holds(segment(1, 255)) && window.holds(segment(1, 258)));
        assert!(!window.holds(segment(1, 259)));
    }

    #[test]
    fn a_segment_that_has_not_come_in_time_widens_the_window_to_its_bound() {
        let mut window = Window::new(SIZE, 2, 5);
        window.want(segment(1, 1));
        assert_eq!(taken(&mut window).len(), 2);
        window.want(segment(1, 2));
        assert!(window.holds(segment(1, 6)) && !window.holds(segment(1, 7)));
        window.want(segment(1, 3));
        assert!(window.holds(segment(1, 8)) && !window.holds(segment(1, 9)));
    }

    #[test]
    fn a_jump_and_another_timeline_move_the_window_and_do_not_widen_it() {
        let mut window = Window::new(SIZE, 2, 8);
        window.want(segment(1, 1));
        window.want(segment(1, 90));
        assert_eq!(taken(&mut window), [segment(1, 91), segment(1, 92)]);
        window.want(segment(2, 90));
        assert_eq!(taken(&mut window), [segment(2, 91), segment(2, 92)]);
        // The server may come back to the older timeline.
        assert!(window.holds(segment(1, 91)));
        window.want(segment(1, 90));
        assert_eq!(taken(&mut window), []);
    }

    #[test]
    fn behind_what_is_not_there_nothing_is_asked_for_until_the_server_goes_on() {
        let mut window = Window::new(SIZE, 3, 8);
        window.want(segment(1, 1));
        assert_eq!(window.take_next(), Some(segment(1, 2)));
        assert_eq!(window.take_next(), Some(segment(1, 3)));
        window.failed(segment(1, 3));
        window.came(segment(1, 2));
        assert_eq!(window.take_next(), None);
        window.want(segment(1, 1));
        assert_eq!(window.take_next(), None);
        window.want(segment(1, 2));
        assert_eq!(window.take_next(), Some(segment(1, 3)));
    }

    #[test]
    fn a_failure_behind_the_window_is_forgotten() {
        let mut window = Window::new(SIZE, 2, 8);
        window.want(segment(1, 1));
        let late = window.take_next().unwrap();
        window.want(segment(1, 50));
        window.failed(late);
        assert_eq!(taken(&mut window).len(), 2);
    }
}
