//! An order in which things end that are done at the same time.

use std::sync::{Condvar, Mutex, PoisonError};

use crate::threads::lock;

/// Whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Order {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// How many have ended; that is the number of the next one.
    ended: usize,
    is_broken: bool,
}

/// What comes of the wait for one's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// All before have ended.
    Come,
    /// One of them failed.
    Never,
}

/// One's place in an order, if there is one. Given up without an end, it breaks the order.
pub(super) struct Place<'a> {
    order: Option<(&'a Order, usize)>,
}

impl<'a> Place<'a> {
    /// The place of this number.
    pub(super) fn of(order: Option<&'a Order>, number: usize) -> Self {
        let order = order.map(|order| (order, number));
        Self { order }
    }

    /// That of something which no order is about.
    pub(super) fn free() -> Self {
        Self { order: None }
    }

    /// Waits for one's turn.
    pub(super) fn wait(&self) -> Turn {
        match self.order {
            Some((order, number)) => order.wait_for(number),
            None => Turn::Come,
        }
    }

    /// Lets the next one end, once it is one's turn.
    pub(super) fn end(mut self) {
        if let Some((order, number)) = self.order
            && order.wait_for(number) == Turn::Come
        {
            order.ended(number);
            self.order = None;
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some((order, _)) = self.order {
            order.break_off();
        }
    }
}

impl Order {
    /// Waits until all before `number` have ended.
    pub(super) fn wait_for(&self, number: usize) -> Turn {
        let mut state = lock(&self.state);
        while state.ended < number && !state.is_broken {
            state = { self.changed.wait(state) }.unwrap_or_else(PoisonError::into_inner);
        }
        if state.is_broken {
            Turn::Never
        } else {
            Turn::Come
        }
    }

    /// Says that `number`, whose turn it is, has ended.
    pub(super) fn ended(&self, number: usize) {
        lock(&self.state).ended = number + 1;
        self.changed.notify_all();
    }

    /// Says that one failed, for which nobody needs to wait any more.
    fn break_off(&self) {
        lock(&self.state).is_broken = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn things_end_in_their_order_whoever_is_faster() {
        let (order, next, ended) = (Order::default(), AtomicUsize::new(0), Mutex::default());
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= 200 {
                            return;
                        }
                        if fastrand::bool() {
                            thread::yield_now();
                        }
                        assert_eq!(order.wait_for(number), Turn::Come);
                        lock::<Vec<usize>>(&ended).push(number);
                        order.ended(number);
                    }
                });
            }
        });
        assert!(lock(&ended).iter().copied().eq(0..200));
    }

    #[test]
    fn nobody_waits_for_one_that_failed() {
        let order = Order::default();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| order.wait_for(1));
            order.break_off();
            assert_eq!(waiting.join().unwrap(), Turn::Never);
        });
        assert_eq!(order.wait_for(0), Turn::Never);
    }
}
