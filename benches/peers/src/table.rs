//! Runs all measurements and prints the table.

use std::thread;
use std::time::Duration;

use crate::bench::Language::{self, Python, Rust};
use crate::bench::{Bench, Peer, Route, Running};
use crate::measures::LATER;
use crate::median;

#[rustfmt::skip]
const PEERS: [Peer; 14] = [
    rust("ours", "this crate, `Pool`", &[]),
    rust("ours-per-thread-untested", "this crate, `PerThread`, untested", &[]),
    rust("ours-per-thread", "this crate, `PerThread`", &[]),
    rust("diesel", "diesel's manager, r2d2", &["diesel", "r2d2"]),
    rust("diesel-untested", "diesel's manager, untested", &[]),
    rust("diesel-renewed", "diesel's manager, a new pool for each token", &[]),
    rust("postgres", "postgres, r2d2_postgres", &["postgres", "r2d2_postgres"]),
    rust("deadpool-fast", "deadpool-postgres, Fast", &["deadpool-postgres"]),
    rust("deadpool-verified", "deadpool-postgres, Verified", &[]),
    rust("diesel-async", "diesel-async, bb8", &["diesel-async", "bb8"]),
    rust("sqlx", "sqlx, a new token at intervals", &["sqlx"]),
    python("django", "Django", &["Django", "psycopg"]),
    python("django-health-checks", "Django, `CONN_HEALTH_CHECKS`", &[]),
    python("sqlalchemy", "SQLAlchemy, pre-ping", &["SQLAlchemy"]),
];

/// The number of sides of this crate. The others are compared with the first one.
const OURS: usize = 3;

type Packages = &'static [&'static str];

const fn rust(side: &'static str, name: &'static str, packages: Packages) -> Peer {
    Peer { name, packages, side, language: Rust }
}

const fn python(side: &'static str, name: &'static str, packages: Packages) -> Peer {
    Peer { name, packages, side, language: Python }
}

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
    let [near, far] =
        [Route::Near, Route::Far].map(|route| medians(&bench, rounds, "checkout", route));
    let logins = medians(&bench, rounds, "login", Route::Far);
    let restarts = medians(&bench, rounds, "restart", Route::Near);
    let oldest =
        start_all(&bench, "oldest").into_iter().map(|running| running.result().parse().unwrap());
    let oldest: Vec<f64> = oldest.collect();
    let (seconds, texts): (Vec<f64>, Vec<String>) = refused(&bench).into_iter().unzip();
    [
        ratios("checkout, µs", &near[0]),
        ratios("checkout, 1 ms away, µs", &far[0]),
        ratios("login, 1 ms away, CPU ms", &logins[0]),
        ratios("login, 1 ms away, ms", &logins[1]),
        numbers("restart: failed operations", &restarts[0]),
        numbers("restart: recovered after, s", &restarts[1]),
        numbers("greatest age at a lifetime of 3 s, s", &oldest),
        Column("login 16 minutes later", later(&bench)),
        numbers("wrong key: error after, s", &seconds),
        Column("wrong key: error text", once(&texts)),
    ]
}

/// Returns the median of each number in a result, for each side. Each round measures all sides, in
/// a random order.
fn medians(bench: &Bench, rounds: usize, measure: &str, route: Route) -> Vec<Vec<f64>> {
    eprintln!("{measure}: {rounds} rounds");
    let mut order: Vec<usize> = (0..PEERS.len()).collect();
    let mut samples = vec![Vec::new(); PEERS.len()];
    for _ in 0..rounds {
        fastrand::shuffle(&mut order);
        order
            .iter()
            .for_each(|&side| samples[side].push(sample(bench, &PEERS[side], measure, route)));
    }
    let of = |index: usize, samples: &Vec<Vec<f64>>| {
        median(samples.iter().map(|numbers| numbers[index]).collect())
    };
    (0..samples[0][0].len())
        .map(|index| samples.iter().map(|samples| of(index, samples)).collect())
        .collect()
}

fn sample(bench: &Bench, peer: &Peer, measure: &str, route: Route) -> Vec<f64> {
    let mut running = bench.measure(peer, measure, route);
    if measure == "restart" {
        running.wait_until_ready();
        bench.rds.restart().unwrap();
        running.resume();
    }
    let result = running.result();
    result.split(' ').map(|number| number.parse().expect(&result)).collect()
}

fn refused(bench: &Bench) -> Vec<(f64, String)> {
    eprintln!("refused: all, at intervals");
    bench.rds.refuse_next(usize::MAX);
    // Starts one side after the other, so that sides that fail at once do not compete for the CPU.
    // Sides that wait for half a minute wait at the same time.
    let start = |peer| {
        let running = bench.measure(peer, "refused", Route::Near);
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

/// Restarts the server after the first tokens have expired. This is the last measurement, because
/// the clock cannot go back.
fn later(bench: &Bench) -> Vec<String> {
    let mut running = start_all(bench, "later");
    running.iter_mut().for_each(Running::wait_until_ready);
    bench.rds.clock().advance(LATER);
    bench.rds.restart().unwrap();
    running.iter_mut().for_each(Running::resume);
    let verdict =
        |result: String| if result.ends_with(" works") { "works" } else { "no login" }.to_owned();
    running.into_iter().map(|running| verdict(running.result())).collect()
}

/// Starts a measurement of all sides at the same time, for results in seconds and for texts.
fn start_all(bench: &Bench, measure: &str) -> Vec<Running> {
    eprintln!("{measure}: all at the same time");
    PEERS.iter().map(|peer| bench.measure(peer, measure, Route::Near)).collect()
}

/// Replaces a text that repeats the one above.
fn once(texts: &[String]) -> Vec<String> {
    let is_repeated = |side: usize| side > 0 && texts[side] == texts[side - 1];
    let text = |side: usize| {
        if is_repeated(side) { "the same as above".to_owned() } else { texts[side].clone() }
    };
    (0..texts.len()).map(text).collect()
}

/// Adds the ratio to the figure of our pool.
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

/// Marks a figure in bold if it is better than that of our pool by a tenth or more.
fn marked(side: usize, values: &[f64]) -> String {
    let number = short(values[side]);
    if side >= OURS && values[side] < 0.9 * values[0] { format!("**{number}**") } else { number }
}

/// Formats a number with three digits.
fn short(number: f64) -> String {
    match number {
        _ if number.fract() == 0.0 || number >= 100.0 => format!("{number:.0}"),
        10.0.. => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}

/// Returns the name with the pinned versions.
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
    let (_, rest) = pins.split_once(&before).expect("the version is not pinned");
    rest.split(after).next().unwrap()
}
