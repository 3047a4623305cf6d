//! How many bytes a second go up or come down, over all stores of a process.
//!
//! ```text
//! urgent   ─▶ one after the other ─┐
//! ordinary ─▶ one after the other ─┴▶ RateClock: n bytes use up n / rate of its time ─▶ send, or read on
//!             while no urgent one waits
//! ```
//!
//! A transfer pays with time that has passed: a body of any length is paid bit by bit, and sent when all of it is paid. What
//! nobody used is kept for [`MOST_SAVED`]. A clock begins with nothing saved, so that no process ever has sent more than its
//! rate allows since it began.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

/// Most time that is kept for later: a pause is made up for with a second's bytes at once, not with more.
pub const MOST_SAVED: Duration = Duration::from_secs(1);

/// Bytes a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(u64);

impl Rate {
    /// The least that is taken: a download below it would count as one that does not come.
    pub const FEWEST_BYTES_A_SECOND: u64 = 1 << 10;
    /// The most that is taken, beyond all that a line or disk can do.
    pub const MOST_BYTES_A_SECOND: u64 = 1 << 40;

    /// `None` where it is out of bounds.
    pub fn new(bytes_a_second: u64) -> Option<Self> {
        let bounds = Self::FEWEST_BYTES_A_SECOND..=Self::MOST_BYTES_A_SECOND;
        bounds
            .contains(&bytes_a_second)
            .then_some(Self(bytes_a_second))
    }

    /// Bytes a second.
    pub fn bytes_a_second(self) -> u64 {
        self.0
    }

    /// How long `bytes` take, not less.
    fn time_for(self, bytes: u64) -> Duration {
        let nanoseconds = (u128::from(bytes) * 1_000_000_000).div_ceil(u128::from(self.0));
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

/// Which transfers go first where several wait for a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// Somebody waits for it.
    Urgent,
    /// While nothing urgent waits.
    Ordinary,
}

/// What bytes pay with: the time that has passed and was not used up yet. It knows no clock of its own; times are told from
/// one beginning.
#[derive(Debug)]
pub struct RateClock {
    rate: Rate,
    used_until: Duration,
}

impl RateClock {
    /// A clock with nothing saved at its beginning, the time 0.
    pub fn new(rate: Rate) -> Self {
        Self {
            rate,
            used_until: Duration::ZERO,
        }
    }

    /// The time that `bytes` have to pay.
    pub fn price(&self, bytes: u64) -> Duration {
        self.rate.time_for(bytes)
    }

    /// Pays what can be paid of `due` at `now`. Returns what is left of it.
    pub fn pay(&mut self, now: Duration, due: Duration) -> Duration {
        self.used_until = self.used_until.max(now.saturating_sub(MOST_SAVED));
        let paid = due.min(now.saturating_sub(self.used_until));
        self.used_until += paid;
        due.saturating_sub(paid)
    }

    /// How long it takes from `now` until as much of `due` can be paid as is possible at a time.
    pub fn wait(&self, now: Duration, due: Duration) -> Duration {
        let until = self.used_until.saturating_add(due.min(MOST_SAVED));
        until.saturating_sub(now)
    }

    /// Takes `price` for what has come already: whoever is next waits for it.
    fn owe(&mut self, price: Duration) {
        self.used_until = self.used_until.saturating_add(price);
    }

    fn give_back(&mut self, paid: Duration) {
        self.used_until = self.used_until.saturating_sub(paid);
    }
}

/// The rates of a process, one for each direction; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Rates {
    pub(super) up: Option<Arc<Limiter>>,
    pub(super) down: Option<Arc<Limiter>>,
}

impl Rates {
    /// Rates of their own, counted from now; without one a direction is not limited.
    pub fn new(upload: Option<Rate>, download: Option<Rate>) -> Self {
        let limiter = |rate| Arc::new(Limiter::new(rate));
        Self {
            up: upload.map(limiter),
            down: download.map(limiter),
        }
    }
}

/// One direction's rate, and those who wait for it.
#[derive(Debug)]
pub(super) struct Limiter {
    clock: Mutex<RateClock>,
    begun: Instant,
    urgent: Line,
    ordinary: Line,
}

/// Transfers of one priority.
#[derive(Debug, Default)]
struct Line {
    /// Held by the one that is paid for.
    turn: tokio::sync::Mutex<()>,
    waiting: watch::Sender<usize>,
}

/// One that waits in a line, until this is dropped.
struct Waiting<'a>(&'a Line);

/// What was paid of a transfer. Given back when it is dropped before all is paid.
struct Payment<'a> {
    limiter: &'a Limiter,
    paid: Duration,
    due: Duration,
}

impl Limiter {
    pub(super) fn new(rate: Rate) -> Self {
        Self {
            clock: Mutex::new(RateClock::new(rate)),
            begun: Instant::now(),
            urgent: Line::default(),
            ordinary: Line::default(),
        }
    }

    /// Returns when `bytes` may go. Of each priority the first who asks is the first who goes; dropped before, it costs
    /// nothing.
    pub(super) async fn wait_for_turn(&self, priority: Priority, bytes: usize) {
        if bytes == 0 {
            return;
        }
        let line = self.line(priority);
        let _waiting = Waiting::begin(line);
        let _turn = line.turn.lock().await;
        let mut payment = Payment::of(self, bytes);
        loop {
            self.let_others_go_first(priority).await;
            if payment.pay() {
                return;
            }
            sleep(payment.wait()).await;
        }
    }

    /// Takes what `bytes` cost that came already. It does not wait.
    pub(super) fn owe(&self, bytes: usize) {
        let mut clock = self.clock();
        let price = clock.price(bytes as u64);
        clock.owe(price);
    }

    /// Whether a transfer of this priority waits.
    pub(super) fn is_waited_for(&self, priority: Priority) -> bool {
        *self.line(priority).waiting.borrow() > 0
    }

    async fn let_others_go_first(&self, priority: Priority) {
        match priority {
            Priority::Urgent => {}
            Priority::Ordinary => {
                let mut waiting = self.urgent.waiting.subscribe();
                let nobody = waiting.wait_for(|waiting| *waiting == 0).await;
                nobody.expect("the sender is the limiter's own");
            }
        }
    }

    fn line(&self, priority: Priority) -> &Line {
        match priority {
            Priority::Urgent => &self.urgent,
            Priority::Ordinary => &self.ordinary,
        }
    }

    fn clock(&self) -> MutexGuard<'_, RateClock> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'a> Waiting<'a> {
    fn begin(line: &'a Line) -> Self {
        line.waiting.send_modify(|waiting| *waiting += 1);
        Self(line)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.send_modify(|waiting| *waiting -= 1);
    }
}

impl<'a> Payment<'a> {
    fn of(limiter: &'a Limiter, bytes: usize) -> Self {
        Self {
            limiter,
            paid: Duration::ZERO,
            due: limiter.clock().price(bytes as u64),
        }
    }

    /// Pays what can be paid now; whether that was all.
    fn pay(&mut self) -> bool {
        let now = self.limiter.begun.elapsed();
        let left = self.limiter.clock().pay(now, self.due);
        self.paid += self.due.saturating_sub(left);
        self.due = left;
        left.is_zero()
    }

    fn wait(&self) -> Duration {
        let now = self.limiter.begun.elapsed();
        self.limiter.clock().wait(now, self.due)
    }
}

impl Drop for Payment<'_> {
    fn drop(&mut self) {
        if !self.due.is_zero() {
            self.limiter.clock().give_back(self.paid);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::future::join_all;
    use tokio::time::timeout;

    use super::*;

    const KIB: usize = 1 << 10;

    fn limiter(bytes_a_second: usize) -> Arc<Limiter> {
        let rate = Rate::new(bytes_a_second as u64).unwrap();
        Arc::new(Limiter::new(rate))
    }

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    /// How long it takes at 100 KiB a second.
    fn least(bytes: usize) -> Duration {
        let bytes = u32::try_from(bytes).unwrap();
        Duration::from_secs(1) * bytes / (100 << 10)
    }

    /// Waits for a turn in a task of its own, which has asked for it when this returns. The task answers when it had it.
    async fn ask(
        limiter: &Arc<Limiter>,
        priority: Priority,
        bytes: usize,
    ) -> tokio::task::JoinHandle<Instant> {
        let limiter = Arc::clone(limiter);
        let asked = tokio::spawn(async move {
            limiter.wait_for_turn(priority, bytes).await;
            Instant::now()
        });
        tokio::task::yield_now().await;
        asked
    }

    #[test]
    fn a_rate_has_bounds() {
        for wrong in [0, 1, 1023, (1 << 40) + 1, u64::MAX] {
            assert_eq!(Rate::new(wrong), None, "{wrong}");
        }
        for right in [1 << 10, 1 << 20, 1 << 40] {
            assert!(Rate::new(right).is_some(), "{right}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_average_is_the_rate_whatever_the_bodies() {
        let (limiter, begun) = (limiter(100 * KIB), Instant::now());
        let lengths = [1, 10, 3 * KIB, 64 * KIB, 500 * KIB, 7, 2000 * KIB];
        let mut sent = 0;
        for round in 0..50 {
            let bytes = lengths[round % lengths.len()];
            limiter.wait_for_turn(Priority::Ordinary, bytes).await;
            sent += bytes;
            let elapsed = begun.elapsed();
            assert!(elapsed >= least(sent), "{sent} after {elapsed:?}");
        }
        // A timer counts in milliseconds, and what it is late is made up for.
        assert!(begun.elapsed() <= least(sent) + Duration::from_millis(10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_is_made_up_for_with_a_seconds_bytes_at_most() {
        let limiter = limiter(100 * KIB);
        sleep(Duration::from_mins(10)).await;
        let begun = Instant::now();
        limiter.wait_for_turn(Priority::Ordinary, 100 * KIB).await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
        limiter.wait_for_turn(Priority::Ordinary, 100 * KIB).await;
        assert!(begun.elapsed() >= Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_longer_than_a_second_goes_when_all_of_it_is_paid() {
        let (limiter, begun) = (limiter(KIB), Instant::now());
        limiter.wait_for_turn(Priority::Ordinary, 3600 * KIB).await;
        let elapsed = begun.elapsed();
        assert!(elapsed >= Duration::from_hours(1), "{elapsed:?}");
        assert!(elapsed <= Duration::from_mins(61), "{elapsed:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_first_goes_first() {
        let limiter = limiter(100 * KIB);
        let mut asked = Vec::new();
        for waiter in 0..200 {
            let bytes = if waiter % 2 == 0 { 300 * KIB } else { 1 };
            asked.push(ask(&limiter, Priority::Ordinary, bytes).await);
        }
        let times: Vec<Instant> = join_all(asked)
            .await
            .into_iter()
            .map(Result::unwrap)
            .collect();
        assert!(times.is_sorted(), "{times:?}");
        assert!(!limiter.is_waited_for(Priority::Ordinary));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_urgent_goes_before_all_that_waits_and_is_not_paid() {
        let (limiter, begun) = (limiter(100 * KIB), Instant::now());
        let mut ordinary = Vec::new();
        for _ in 0..5 {
            ordinary.push(ask(&limiter, Priority::Ordinary, 1000 * KIB).await);
        }
        sleep(seconds(2.5)).await;
        let mut urgent = Vec::new();
        for _ in 0..3 {
            urgent.push(ask(&limiter, Priority::Urgent, 400 * KIB).await);
        }
        assert!(limiter.is_waited_for(Priority::Urgent));
        let mut last_urgent = begun;
        for urgent in urgent {
            last_urgent = urgent.await.unwrap();
        }
        // Three of four seconds each, after what the ordinary one had paid already.
        let took = last_urgent - begun;
        assert!(took >= seconds(14.0), "{took:?}");
        assert!(took <= seconds(15.1), "{took:?}");
        for ordinary in ordinary {
            let time = ordinary.await.unwrap();
            assert!(time > last_urgent);
        }
        assert!(begun.elapsed() >= seconds(62.0));
        assert!(begun.elapsed() <= seconds(62.1));
    }

    #[tokio::test(start_paused = true)]
    async fn who_stops_waiting_costs_nothing() {
        let (limiter, begun) = (limiter(100 * KIB), Instant::now());
        for priority in [Priority::Ordinary, Priority::Urgent] {
            let long = limiter.wait_for_turn(priority, 1000 * KIB);
            timeout(seconds(0.4), long).await.unwrap_err();
        }
        // 0.8 s have passed, and nothing was sent.
        limiter.wait_for_turn(Priority::Ordinary, 100 * KIB).await;
        assert!(begun.elapsed() >= seconds(1.0));
        assert!(begun.elapsed() <= seconds(1.01), "{:?}", begun.elapsed());
        assert!(!limiter.is_waited_for(Priority::Urgent));
    }

    #[tokio::test(start_paused = true)]
    async fn who_stops_waiting_in_the_middle_holds_nobody_up() {
        let (limiter, begun) = (limiter(100 * KIB), Instant::now());
        let first = ask(&limiter, Priority::Ordinary, 100 * KIB).await;
        let urgent = ask(&limiter, Priority::Urgent, 1000 * KIB).await;
        let second = ask(&limiter, Priority::Ordinary, 900 * KIB).await;
        let third = ask(&limiter, Priority::Ordinary, 100 * KIB).await;
        sleep(seconds(0.5)).await;
        urgent.abort();
        second.abort();
        first.await.unwrap();
        third.await.unwrap();
        assert!(begun.elapsed() >= seconds(2.0));
        assert!(begun.elapsed() <= seconds(2.01), "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn what_came_already_is_paid_by_those_who_come_after() {
        let (limiter, begun) = (limiter(100 * KIB), Instant::now());
        limiter.owe(1000 * KIB);
        assert_eq!(begun.elapsed(), Duration::ZERO);
        let mut next = pin!(limiter.wait_for_turn(Priority::Urgent, 1));
        timeout(seconds(10.0), &mut next).await.unwrap_err();
        next.await;
        assert!(begun.elapsed() <= seconds(10.01), "{:?}", begun.elapsed());
    }
}
