//! Measures pools and persistent connections of other libraries on the same server, in one table.
//!
//!     benches/peers/run
//!
//! Each side is measured in a separate process: this program with arguments, or python/peers.py. It
//! prints "ready" when the server may be changed, continues after a line on its standard input, and
//! prints its result in one line.

#[path = "../../support/relay.rs"]
mod relay;

mod bench;
mod measures;
mod sides;
mod table;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [] => table::print(5),
        [rounds] => table::print(rounds.parse().expect("the argument is not a number of rounds")),
        [side, measure, ..] => println!("{}", measures::of(side, measure)),
    }
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}
