//! What the benches share.
#![allow(dead_code, reason = "each bench uses its part")]

pub(crate) mod relay;

use std::path::Path;
use std::time::Instant;

/// The median sample of each side. All sides take their turn in each round, so that a change in the
/// machine's pace meets all of them; in an order of chance, for each leaves its traces in caches
/// and heap to the next. It is the same order in all threads that do this.
pub(crate) fn in_alternation<const SIDES: usize>(
    rounds: usize,
    mut sides: [&mut dyn FnMut() -> f64; SIDES],
) -> [f64; SIDES] {
    let mut chance = fastrand::Rng::with_seed(0);
    let mut order: [usize; SIDES] = std::array::from_fn(|side| side);
    let mut samples = [(); SIDES].map(|()| Vec::with_capacity(rounds));
    for _ in 0..rounds {
        chance.shuffle(&mut order);
        order.iter().for_each(|&side| samples[side].push(sides[side]()));
    }
    samples.map(median)
}

pub(crate) fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

/// Microseconds of one call, by the clock on the wall.
pub(crate) fn microseconds(calls: u32, mut call: impl FnMut()) -> f64 {
    let started = Instant::now();
    (0..calls).for_each(|_| call());
    started.elapsed().as_secs_f64() * 1e6 / f64::from(calls)
}

/// How to reach a LocalRds, for libpq as for our manager.
pub(crate) fn conninfo(port: u16, root: &Path) -> String {
    let root = root.display();
    format!(
        "host=localhost port={port} user=app dbname=app sslmode=verify-full sslrootcert='{root}'"
    )
}
