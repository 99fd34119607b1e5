//! The table.

use std::thread;
use std::time::Duration;

use crate::bench::Language::{self, Python, Rust};
use crate::bench::{Bench, Peer, Running, Way};
use crate::measures::LATER;
use crate::median;

#[rustfmt::skip]
const PEERS: [Peer; 14] = [
    Peer { name: "this crate, `Pool`", packages: &[], side: "ours", language: Rust },
    Peer { name: "this crate, `PerThread`", packages: &[], side: "ours-per-thread", language: Rust },
    Peer { name: "the same, tested", packages: &[], side: "ours-per-thread-tested", language: Rust },
    Peer { name: "diesel's manager, r2d2", packages: &["diesel", "r2d2"], side: "diesel", language: Rust },
    Peer { name: "the same, untested", packages: &[], side: "diesel-untested", language: Rust },
    Peer { name: "the same, tested, a new pool for each token", packages: &[], side: "diesel-renewed", language: Rust },
    Peer { name: "postgres, r2d2_postgres", packages: &["postgres", "r2d2_postgres"], side: "postgres", language: Rust },
    Peer { name: "deadpool-postgres, Fast", packages: &["deadpool-postgres"], side: "deadpool-fast", language: Rust },
    Peer { name: "the same, Verified", packages: &[], side: "deadpool-verified", language: Rust },
    Peer { name: "diesel-async, bb8", packages: &["diesel-async", "bb8"], side: "diesel-async", language: Rust },
    Peer { name: "sqlx, a new token now and then", packages: &["sqlx"], side: "sqlx", language: Rust },
    Peer { name: "Django", packages: &["Django", "psycopg"], side: "django", language: Python },
    Peer { name: "the same, `CONN_HEALTH_CHECKS`", packages: &[], side: "django-health-checks", language: Python },
    Peer { name: "SQLAlchemy, pre-ping", packages: &["SQLAlchemy"], side: "sqlalchemy", language: Python },
];

/// How many of them are this crate's. The first is what the others are compared with.
const OURS: usize = 3;

/// A heading, and a cell for each side.
struct Column(&'static str, Vec<String>);

pub(crate) fn print(rounds: usize) {
    let columns = columns(rounds);
    println!("| | {} |", columns.iter().map(|column| column.0).collect::<Vec<_>>().join(" | "));
    println!("|{}", "---|".repeat(columns.len() + 1));
    for (side, peer) in PEERS.iter().enumerate() {
        let cells: Vec<_> = columns.iter().map(|column| column.1[side].as_str()).collect();
        println!("| {} | {} |", name(peer), cells.join(" | "));
    }
}

fn columns(rounds: usize) -> [Column; 10] {
    let bench = Bench::start();
    let [near, far] = [Way::Near, Way::Far].map(|way| medians(&bench, rounds, "checkout", way));
    let logins = medians(&bench, rounds, "login", Way::Far);
    let restarts = medians(&bench, rounds, "restart", Way::Near);
    let oldest =
        start_all(&bench, "oldest").into_iter().map(|running| running.result().parse().unwrap());
    let oldest: Vec<f64> = oldest.collect();
    let (seconds, texts): (Vec<f64>, Vec<String>) = refused(&bench).into_iter().unzip();
    [
        ratios("checkout, µs", &near[0]),
        ratios("1 ms away, µs", &far[0]),
        ratios("login 1 ms away, CPU ms", &logins[0]),
        ratios("the same, ms", &logins[1]),
        numbers("restart: failed", &restarts[0]),
        numbers("served again after, s", &restarts[1]),
        numbers("oldest, of 3 s", &oldest),
        Column("16 minutes later", later(&bench)),
        numbers("a wrong key: told after, s", &seconds),
        Column("told what", once(&texts)),
    ]
}

/// Of each number in a result, of each side. All sides take their turn in each round, in an order
/// of chance.
fn medians(bench: &Bench, rounds: usize, measure: &str, way: Way) -> Vec<Vec<f64>> {
    eprintln!("{measure}: {rounds} rounds");
    let mut order: Vec<usize> = (0..PEERS.len()).collect();
    let mut samples = vec![Vec::new(); PEERS.len()];
    for _ in 0..rounds {
        fastrand::shuffle(&mut order);
        order
            .iter()
            .for_each(|&side| samples[side].push(sample(bench, &PEERS[side], measure, way)));
    }
    let of = |index: usize, samples: &Vec<Vec<f64>>| {
        median(samples.iter().map(|numbers| numbers[index]).collect())
    };
    (0..samples[0][0].len())
        .map(|index| samples.iter().map(|samples| of(index, samples)).collect())
        .collect()
}

fn sample(bench: &Bench, peer: &Peer, measure: &str, way: Way) -> Vec<f64> {
    let mut running = bench.measure(peer, measure, way);
    if measure == "restart" {
        running.ready();
        bench.rds.restart().unwrap();
        running.go_on();
    }
    let result = running.result();
    result.split(' ').map(|number| number.parse().expect(&result)).collect()
}

fn refused(bench: &Bench) -> Vec<(f64, String)> {
    eprintln!("refused: one after the other");
    bench.rds.refuse_next(usize::MAX);
    // Those that tell at once are not to wait for the processor, and those that wait half a minute
    // wait together.
    let start = |peer| {
        let running = bench.measure(peer, "refused", Way::Near);
        thread::sleep(Duration::from_millis(1500));
        running
    };
    let running: Vec<Running> = PEERS.iter().map(start).collect();
    let results: Vec<String> = running.into_iter().map(Running::result).collect();
    bench.rds.refuse_next(0);
    let split = |result: String| {
        let (seconds, text) = result.split_once(' ').unwrap();
        (seconds.parse().unwrap(), text.to_owned())
    };
    results.into_iter().map(split).collect()
}

/// A server restarts when the tokens of the start are dead. The last measure: its clock does not go
/// back.
fn later(bench: &Bench) -> Vec<String> {
    let mut running = start_all(bench, "later");
    running.iter_mut().for_each(Running::ready);
    bench.rds.clock().advance(LATER);
    bench.rds.restart().unwrap();
    running.iter_mut().for_each(Running::go_on);
    let verdict =
        |result: String| if result.ends_with(" works") { "works" } else { "no login" }.to_owned();
    running.into_iter().map(|running| verdict(running.result())).collect()
}

/// For what is a matter of seconds, or of a text.
fn start_all(bench: &Bench, measure: &str) -> Vec<Running> {
    eprintln!("{measure}: all at once");
    PEERS.iter().map(|peer| bench.measure(peer, measure, Way::Near)).collect()
}

/// A long text is not said twice.
fn once(texts: &[String]) -> Vec<String> {
    let is_told = |side: usize| side > 0 && texts[side] == texts[side - 1];
    let text =
        |side: usize| if is_told(side) { "the same".to_owned() } else { texts[side].clone() };
    (0..texts.len()).map(text).collect()
}

/// With how many times it is of our pool's.
fn ratios(heading: &'static str, values: &[f64]) -> Column {
    let cell = |(side, value): (usize, &f64)| match side {
        0 => short(*value),
        _ => format!("{} ({}x)", marked(side, values), short(value / values[0])),
    };
    Column(heading, values.iter().enumerate().map(cell).collect())
}

fn numbers(heading: &'static str, values: &[f64]) -> Column {
    Column(heading, (0..values.len()).map(|side| marked(side, values)).collect())
}

/// Bold where a peer is ahead of our pool by a tenth or more.
fn marked(side: usize, values: &[f64]) -> String {
    let number = short(values[side]);
    if side >= OURS && values[side] < 0.9 * values[0] { format!("**{number}**") } else { number }
}

/// Three digits.
fn short(number: f64) -> String {
    match number {
        _ if number.fract() == 0.0 || number >= 100.0 => format!("{number:.0}"),
        10.0.. => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}

/// With the versions that are pinned.
fn name(peer: &Peer) -> String {
    let version = |package: &&str| format!("{package} {}", version(package, peer.language));
    match peer.packages {
        [] => peer.name.to_owned(),
        packages => format!(
            "{} ({})",
            peer.name,
            packages.iter().map(version).collect::<Vec<_>>().join(", ")
        ),
    }
}

fn version(package: &str, language: Language) -> &'static str {
    let (pins, before, after) = match language {
        Rust => (include_str!("../Cargo.lock"), format!("name = \"{package}\"\nversion = \""), '"'),
        Python => (include_str!("../python/requirements.txt"), format!("{package}=="), '\n'),
    };
    let (_, rest) = pins.split_once(&before).expect("a pinned version");
    rest.split(after).next().unwrap()
}
