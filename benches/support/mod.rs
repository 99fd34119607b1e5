//! Functions that the benches share.
#![allow(dead_code, reason = "each bench uses some of them")]

pub(crate) mod relay;

use std::path::Path;
use std::time::Instant;

/// Returns the median sample of each side.
///
/// Each round samples all sides, so that a change in the speed of the machine affects all of them.
/// The order is random, because each side leaves caches and heap in another state for the next. It
/// is the same order in all threads.
pub(crate) fn in_alternation<const SIDES: usize>(
    rounds: usize,
    mut sides: [&mut dyn FnMut() -> f64; SIDES],
) -> [f64; SIDES] {
    let mut random = fastrand::Rng::with_seed(0);
    let mut order: [usize; SIDES] = std::array::from_fn(|side| side);
    let mut samples = [(); SIDES].map(|()| Vec::with_capacity(rounds));
    for _ in 0..rounds {
        random.shuffle(&mut order);
        order.iter().for_each(|&side| samples[side].push(sides[side]()));
    }
    samples.map(median)
}

pub(crate) fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

/// Returns the microseconds of one call, in wall time.
pub(crate) fn microseconds(calls: u32, mut call: impl FnMut()) -> f64 {
    let started = Instant::now();
    (0..calls).for_each(|_| call());
    started.elapsed().as_secs_f64() * 1e6 / f64::from(calls)
}

/// Returns the connection string of a LocalRds, for libpq and for our manager.
pub(crate) fn conninfo(port: u16, root: &Path) -> String {
    let root = root.display();
    format!(
        "host=localhost port={port} user=app dbname=app sslmode=verify-full sslrootcert='{root}'"
    )
}
