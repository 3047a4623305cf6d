//! Waiting for a condition, never for a time.

use std::time::{Duration, Instant};

/// Polls until the condition holds.
///
/// # Panics
/// When it does not hold within the limit, naming what was waited for.
pub fn eventually(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(
            start.elapsed() < limit,
            "waited {limit:?} in vain for: {what}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A moment in a span, from [`seed_chance`]'s seed.
pub fn random_moment_within(span: Duration) -> Duration {
    seed_chance();
    span.mul_f64(fastrand::f64())
}

/// Seeds this thread's random numbers with the seed that is printed and that `WALHALLA_TEST_SEED` repeats.
pub fn seed_chance() {
    static SEED: std::sync::Once = std::sync::Once::new();
    SEED.call_once(|| {
        let seed = std::env::var("WALHALLA_TEST_SEED")
            .map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
        fastrand::seed(seed);
        println!("by chance: WALHALLA_TEST_SEED={seed}");
    });
}
