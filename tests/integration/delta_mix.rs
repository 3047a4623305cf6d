//! A backup restores what was there, whatever it is a delta of and whatever happened between.
//!
//! ```text
//! seed ─▶ Life: work ─▶ backup ─▶ work ─▶ restart, promote, go back ─▶ backup ─▶ … ─▶ stop
//!          │ workload        full, delta, delta of delta, with load                    │
//!          ▼                                                                           ▼
//!        Journal                          Judge: each backup to its end, some to moments; dumps, amcheck, pages
//! ```
//!
//! Each round prints its seed: `WALHALLA_TEST_SEED` plays it again, as the first of `WALHALLA_TEST_DELTA_ROUNDS`. What
//! clients do while a backup reads is the same then, but not when.

mod life;
mod load;
mod mask;
mod model;
mod pages;
mod restores;
mod sessions;
mod state;
mod workload;

use std::time::Instant;

use self::life::Life;
use self::restores::Judge;

const ROUNDS: usize = 1;

fn rounds(version: u32) {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let rounds =
        number("WALHALLA_TEST_DELTA_ROUNDS").map_or(ROUNDS, |rounds| rounds.try_into().unwrap());
    // The few rounds of every day are the same ones: what fails there was broken since. The many of a night are new.
    let is_nightly = number("WALHALLA_TEST_DELTA_ROUNDS").is_some();
    let mut seed = match number("WALHALLA_TEST_SEED") {
        Some(seed) => seed,
        None if is_nightly => fastrand::u64(..),
        None => u64::from(version),
    };
    for round in 1..=rounds {
        let title = format!(
            "round {round} of {rounds} on {version}: WALHALLA_TEST_SEED={seed} WALHALLA_TEST_DELTA_ROUNDS=1 repeats it"
        );
        println!("{title}");
        let begun = Instant::now();
        let score = play(version, title, seed);
        println!("  {score}; {:.0} s", begun.elapsed().as_secs_f32());
        seed = fastrand::Rng::with_seed(seed).u64(..);
    }
}

fn play(version: u32, title: String, seed: u64) -> String {
    let mut life = Life::begin(version, title, seed);
    life.back_up_fully();
    let steps = life.rng.u32(3..6);
    let promotion = life.rng.u32(..2 * steps);
    let return_to_earlier = life.rng.u32(..2 * steps);
    for step in 0..steps {
        life.work();
        // After a return its target is still in the settings, at which a standby would wait.
        if step == promotion && life.left.is_none() {
            life.promote();
        } else if life.rng.u32(..3) == 0 {
            life.restart();
        }
        if step == return_to_earlier || life.rng.u32(..2) == 0 {
            life.hold_still();
        }
        life.back_up_somehow();
        if step == return_to_earlier {
            life.go_back();
            life.refuse_parents_left_behind();
        }
    }
    life.work();
    life.hold_still();
    life.work();
    Judge::of(life).judge()
}

#[test]
fn delta_backups_restore_what_was_there_on_9_6() {
    rounds(9);
}

#[test]
fn delta_backups_restore_what_was_there_on_10() {
    rounds(10);
}

#[test]
fn delta_backups_restore_what_was_there_on_13() {
    rounds(13);
}

#[test]
fn delta_backups_restore_what_was_there_on_15() {
    rounds(15);
}

#[test]
fn delta_backups_restore_what_was_there_on_17() {
    rounds(17);
}

#[test]
fn delta_backups_restore_what_was_there_on_18() {
    rounds(18);
}

#[test]
fn delta_backups_restore_what_was_there_on_19() {
    rounds(19);
}
