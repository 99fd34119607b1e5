//! The measurements of a side, in its process. python/peers.py has the same.

use std::io;
use std::sync::{Barrier, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use diesel_rds_iam::local::Clock;
use rustix::time::{ClockId, clock_gettime};

use crate::median;
use crate::sides::{Settings, Side, start};

const SAMPLES: usize = 200;
const LOGINS: usize = 20;
const THREADS: usize = 8;
const NUMBER: &str = "SELECT 1::float8";
const WORK: &str = "SELECT 1::float8 FROM pg_sleep(0.001)";
/// Returns the age of the connection in seconds.
const AGE: &str = "SELECT extract(epoch FROM now() - backend_start)::float8
    FROM pg_stat_get_activity(pg_backend_pid()), pg_sleep(0.1)";
pub(crate) const LIFETIME: Duration = Duration::from_secs(3);
/// Longer than 30 seconds, the interval of the reapers of r2d2 and bb8.
const LOAD: Duration = Duration::from_secs(35);
pub(crate) const LATER: Duration = Duration::from_secs(16 * 60);

/// Returns the result of a measurement, in one line.
pub(crate) fn of(side: &str, measure: &str) -> String {
    let settings = settings(measure);
    let (started, clock) = (Instant::now(), settings.clock.clone());
    let side = match start(side, settings) {
        Ok(side) => side,
        Err(text) => return after(started, &text),
    };
    let side = &*side;
    match measure {
        "checkout" => checkout(side),
        "login" => login(side),
        "restart" => restart(side),
        "oldest" => oldest(side),
        "refused" => {
            after(started, &side.query(NUMBER).expect_err("the server accepted a wrong key"))
        }
        "later" => later(side, &clock),
        _ => panic!("unknown measurement: {measure}"),
    }
}

fn settings(measure: &str) -> Settings {
    let mut settings = Settings {
        connections: 10,
        max_lifetime: Duration::from_secs(14 * 60),
        renewal: Duration::from_secs(10 * 60),
        clock: Clock::default(),
    };
    match measure {
        // No other connections, which would be made during the measurement.
        "checkout" | "login" => settings.connections = 1,
        "oldest" => (settings.max_lifetime, settings.renewal) = (LIFETIME, LIFETIME),
        // After the restart, not during it.
        "later" => settings.renewal = Duration::from_secs(15),
        _ => {}
    }
    settings
}

fn after(started: Instant, text: &str) -> String {
    format!("{:.2} {text}", started.elapsed().as_secs_f64())
}

fn checkout(side: &dyn Side) -> String {
    let sample = || {
        side.query(NUMBER).unwrap();
        side.checkout()
    };
    let samples: Vec<f64> = (0..SAMPLES).map(|_| sample()).collect();
    median(samples).to_string()
}

/// Returns milliseconds of CPU time of this process, and of wall time.
fn login(side: &dyn Side) -> String {
    let cpu = || {
        let spent = clock_gettime(ClockId::ProcessCPUTime);
        spent.tv_sec as f64 * 1e3 + spent.tv_nsec as f64 / 1e6
    };
    side.query(NUMBER).unwrap();
    let sample = || {
        let (cpu_before, started) = (cpu(), Instant::now());
        let _connection = side.login();
        (cpu() - cpu_before, started.elapsed().as_secs_f64() * 1e3)
    };
    let (of_cpu, of_wall) = (0..LOGINS).map(|_| sample()).unzip();
    format!("{} {}", median(of_cpu), median(of_wall))
}

/// Returns the failed operations, and the seconds from the end of the restart until all threads
/// have succeeded.
fn restart(side: &dyn Side) -> String {
    let ready = Barrier::new(THREADS + 1);
    let end_of_restart = OnceLock::new();
    let thread = || {
        side.query(WORK).unwrap();
        ready.wait();
        let mut failed = 0;
        loop {
            match (side.query(WORK), end_of_restart.get()) {
                (Ok(_), Some(end)) => return (failed, Instant::elapsed(end).as_secs_f64()),
                (Ok(_), None) => {}
                (Err(_), _) => failed += 1,
            }
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(thread)).collect();
        ready.wait();
        wait_for_server();
        end_of_restart.set(Instant::now()).unwrap();
        let outcomes = threads.into_iter().map(|thread| thread.join().unwrap());
        let (failed, recovery) =
            outcomes.fold((0, 0.0), |all, one| (all.0 + one.0, one.1.max(all.1)));
        format!("{failed} {recovery}")
    })
}

/// Returns the greatest age of a connection under load, in seconds.
fn oldest(side: &dyn Side) -> String {
    let started = Instant::now();
    let thread = || {
        let mut oldest: f64 = 0.0;
        while started.elapsed() < LOAD {
            oldest = oldest.max(side.query(AGE).unwrap());
        }
        oldest
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(thread)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).fold(0.0, f64::max).to_string()
    })
}

/// Returns the seconds until a query succeeds after the first tokens have expired and the server
/// has restarted, or the error.
fn later(side: &dyn Side, clock: &Clock) -> String {
    side.query(NUMBER).unwrap();
    wait_for_server();
    clock.advance(LATER);
    let started = Instant::now();
    loop {
        match side.query(NUMBER) {
            Ok(_) => return after(started, "works"),
            Err(text) if started.elapsed() > Duration::from_secs(35) => {
                return after(started, &text);
            }
            Err(_) => {}
        }
    }
}

/// Waits until the parent process has changed the server.
fn wait_for_server() {
    println!("ready");
    io::stdin().read_line(&mut String::new()).unwrap();
}
