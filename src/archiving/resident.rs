//! The archiver of a process that stays: the segment that the server waits for comes first, then what is ready after it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use walhalla_postgres::SegmentName;

use crate::threads::lock;

/// What became of a segment.
pub type Outcome<E> = Result<(), E>;

/// How the segments of one data directory are pushed.
pub trait Push<E>: Send + Sync + 'static {
    /// Pushes the segment for which the server waits.
    fn push_asked(&self, segment: SegmentName) -> Outcome<E>;
    /// Pushes a segment for which the server's call is still to come.
    fn push_ahead(&self, segment: SegmentName) -> Outcome<E>;
    /// The segments that the server has marked ready, in order.
    fn ready(&self) -> Vec<SegmentName>;
}

/// Archives the segments of one data directory on threads of its own.
pub struct Resident<E> {
    shared: Arc<Shared<E>>,
}

struct Shared<E> {
    work: Box<dyn Push<E>>,
    state: Mutex<State<E>>,
    changed: Condvar,
}

struct State<E> {
    asked: VecDeque<Asked<E>>,
    /// What is ready and was not begun. Nothing after a failure, until the server asks again.
    ahead: VecDeque<SegmentName>,
    /// What was pushed ahead, for which the call is still to come.
    done: BTreeSet<SegmentName>,
    /// What is on its way, and who waits for it.
    going: BTreeMap<SegmentName, Vec<Sender<Outcome<E>>>>,
    has_ended: bool,
}

struct Asked<E> {
    segment: SegmentName,
    reply: Sender<Outcome<E>>,
}

/// What a thread does next.
enum Job<E> {
    Asked(Asked<E>),
    Ahead(SegmentName),
}

impl<E: Send + Clone + 'static> Resident<E> {
    /// Starts `threads`.
    pub fn start(threads: usize, work: impl Push<E>) -> Self {
        let shared = Arc::new(Shared {
            work: Box::new(work),
            state: Mutex::new(State {
                asked: VecDeque::new(),
                ahead: VecDeque::new(),
                done: BTreeSet::new(),
                going: BTreeMap::new(),
                has_ended: false,
            }),
            changed: Condvar::new(),
        });
        for _ in 0..threads.max(1) {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.work());
        }
        Self { shared }
    }

    /// Pushes the segment for which the server waits, and goes on with what is ready. `None` where all has ended.
    pub fn push(&self, segment: SegmentName) -> Option<Outcome<E>> {
        let receiver = self.ask(segment)?;
        receiver.recv().ok()
    }

    fn ask(&self, segment: SegmentName) -> Option<Receiver<Outcome<E>>> {
        let ready = self.shared.work.ready();
        let mut state = lock(&self.shared.state);
        if state.has_ended {
            return None;
        }
        state.refill(ready, segment);
        let (reply, receiver) = channel();
        // What goes up ahead is waited for.
        match state.going.get_mut(&segment) {
            Some(waiting) => waiting.push(reply),
            None => state.asked.push_back(Asked { segment, reply }),
        }
        drop(state);
        self.shared.changed.notify_all();
        Some(receiver)
    }

    /// Begins nothing more.
    pub fn stop(&self) {
        let mut state = lock(&self.shared.state);
        state.has_ended = true;
        state.asked.clear();
        state.ahead.clear();
        self.shared.changed.notify_all();
    }

    /// The same, and waits for what is on its way, but not longer than `most`.
    pub fn end(&self, most: Duration) {
        let begun = Instant::now();
        self.stop();
        let mut state = lock(&self.shared.state);
        while !state.going.is_empty() && begun.elapsed() < most {
            let left = most.saturating_sub(begun.elapsed());
            let waited = self.shared.changed.wait_timeout(state, left);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl<E: Send + Clone + 'static> State<E> {
    /// Takes up what is ready now, in its order.
    fn refill(&mut self, ready: Vec<SegmentName>, asked: SegmentName) {
        let known: BTreeSet<SegmentName> = ready.iter().copied().collect();
        self.done.retain(|segment| known.contains(segment));
        self.done.remove(&asked);
        let is_new = |segment: &SegmentName| {
            *segment != asked && !self.done.contains(segment) && !self.going.contains_key(segment)
        };
        self.ahead = ready.into_iter().filter(is_new).collect();
    }

    fn next(&mut self) -> Option<Job<E>> {
        if let Some(asked) = self.asked.pop_front() {
            let waiting = self.going.entry(asked.segment).or_default();
            waiting.push(asked.reply.clone());
            return Some(Job::Asked(asked));
        }
        let segment = self.ahead.pop_front()?;
        self.going.insert(segment, Vec::new());
        Some(Job::Ahead(segment))
    }
}

impl<E: Send + Clone + 'static> Shared<E> {
    fn work(&self) {
        while let Some(job) = self.wait_for_job() {
            match job {
                Job::Asked(Asked { segment, .. }) => {
                    let outcome = self.work.push_asked(segment);
                    let mut state = lock(&self.state);
                    for reply in state.going.remove(&segment).unwrap_or_default() {
                        // Whoever asked may have gone.
                        drop(reply.send(outcome.clone()));
                    }
                }
                Job::Ahead(segment) => {
                    let outcome = self.work.push_ahead(segment);
                    self.finish_ahead(segment, &outcome);
                }
            }
            self.changed.notify_all();
        }
    }

    /// Takes up what became of a segment that nobody had asked for when it was begun.
    fn finish_ahead(&self, segment: SegmentName, outcome: &Outcome<E>) {
        let mut state = lock(&self.state);
        let waiting = state.going.remove(&segment).unwrap_or_default();
        if outcome.is_err() {
            state.ahead.clear();
            // For a segment that was asked for, more may be tried, and the reason is told.
            let again = waiting.into_iter().map(|reply| Asked { segment, reply });
            state.asked.extend(again);
            return;
        }
        if waiting.is_empty() {
            state.done.insert(segment);
        }
        for reply in waiting {
            drop(reply.send(Ok(())));
        }
    }

    fn wait_for_job(&self) -> Option<Job<E>> {
        let mut state: MutexGuard<State<E>> = lock(&self.state);
        loop {
            if state.has_ended {
                return None;
            }
            if let Some(job) = state.next() {
                return Some(job);
            }
            state = { self.changed.wait(state) }.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl<E> Drop for Resident<E> {
    fn drop(&mut self) {
        lock(&self.shared.state).has_ended = true;
        self.shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// A server's segments, and which of them can be pushed.
    #[derive(Clone, Default)]
    struct Server(Arc<Site>);

    #[derive(Default)]
    struct Site {
        ready: Mutex<Vec<SegmentName>>,
        pushed: Mutex<Vec<(&'static str, SegmentName)>>,
        fails_ahead: AtomicBool,
    }

    impl Push<String> for Server {
        fn push_asked(&self, segment: SegmentName) -> Outcome<String> {
            lock(&self.0.pushed).push(("asked", segment));
            if segment == number(9) {
                return Err("nine".to_owned());
            }
            Ok(())
        }

        fn push_ahead(&self, segment: SegmentName) -> Outcome<String> {
            if self.0.fails_ahead.load(Ordering::Relaxed) {
                return Err("ahead".to_owned());
            }
            lock(&self.0.pushed).push(("ahead", segment));
            Ok(())
        }

        fn ready(&self) -> Vec<SegmentName> {
            lock(&self.0.ready).clone()
        }
    }

    fn number(number: u32) -> SegmentName {
        format!("0000000100000000{number:08X}").parse().unwrap()
    }

    fn wait_until(what: impl Fn() -> bool) {
        for _ in 0..2000 {
            if what() {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        panic!("it did not happen");
    }

    #[test]
    fn what_is_asked_for_is_pushed_and_then_what_is_ready_once_each() {
        let server = Server::default();
        *lock(&server.0.ready) = (1..=5).map(number).collect();
        let resident = Resident::start(2, server.clone());
        assert_eq!(resident.push(number(1)), Some(Ok(())));
        wait_until(|| lock(&server.0.pushed).len() == 5);
        let mut pushed = lock(&server.0.pushed).clone();
        pushed.sort_by_key(|(_, segment)| *segment);
        assert_eq!(pushed[0], ("asked", number(1)));
        assert_eq!(pushed[1..], [2, 3, 4, 5].map(|at| ("ahead", number(at))));
        resident.end(Duration::from_secs(5));
        assert_eq!(resident.push(number(6)), None);
    }

    #[test]
    fn a_failure_ahead_ends_the_batch_and_the_segments_own_call_tells_it() {
        let server = Server::default();
        server.0.fails_ahead.store(true, Ordering::Relaxed);
        *lock(&server.0.ready) = (1..=9).map(number).collect();
        let resident = Resident::start(1, server.clone());
        assert_eq!(resident.push(number(1)), Some(Ok(())));
        assert_eq!(resident.push(number(9)), Some(Err("nine".to_owned())));
        assert_eq!(resident.push(number(2)), Some(Ok(())));
        let pushed = lock(&server.0.pushed).clone();
        assert_eq!(pushed, [1, 9, 2].map(|at| ("asked", number(at))));
    }

    #[test]
    fn many_calls_for_one_segment_all_hear_of_it() {
        let server = Server::default();
        let resident = Arc::new(Resident::start(3, server));
        let calls: Vec<_> = (0..16)
            .map(|at| {
                let resident = Arc::clone(&resident);
                thread::spawn(move || resident.push(number(at % 3)))
            })
            .collect();
        for call in calls {
            assert_eq!(call.join().unwrap(), Some(Ok(())));
        }
    }
}
