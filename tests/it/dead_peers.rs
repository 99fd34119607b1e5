//! A host that vanishes without a word, as one that loses its power: how long we wait for it by our
//! defaults.
//!
//! The server and the client each have a network of their own.

use std::fs;
use std::ops::Range;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel_rds_iam::RdsConnectionManager;
use diesel_rds_iam::local::LocalRds;
use diesel_rds_iam::r2d2::ManageConnection;

use crate::support::network::{Cable, SERVER};
use crate::support::proxy::Proxy;
use crate::support::{in_a_network_of_its_own, start};

const NAME: &str = "db.abc123.eu-west-1.rds.amazonaws.com";

/// A query that outlasts the test.
const SLEEP: &str = "SELECT pg_sleep(120)";

/// For what a busy machine adds to a bound.
const SLACK: u64 = 5;

#[test]
fn a_host_that_vanished_is_noticed_within_the_bounds_of_our_defaults() {
    in_a_network_of_its_own("dead_peers::a_host_that_vanishes", SERVER, &[]);
}

#[test]
#[ignore = "runs in a network of its own, which has the server's address"]
fn a_host_that_vanishes() {
    let rds = start(LocalRds::builder().endpoint(NAME, 5432).region("eu-west-1"));
    let reached_at = format!("{SERVER}:{}", Proxy::to(rds.port()).port);
    let url = rds.database_url().replace(&format!("localhost:{}", rds.port()), &reached_at);
    let cable = Cable::lay();
    cable.across(|| the_clients_side(&rds, &url, &cable));
}

fn the_clients_side(rds: &LocalRds, url: &str, cable: &Cable) {
    let manager =
        rds.manager_builder().validate_after(Duration::from_secs(3600)).build(url).unwrap();
    let asking = rds.manager_builder().validate_after(Duration::ZERO).build(url).unwrap();
    let without = rds.manager_builder().build(format!("{url}&tcp_user_timeout=0")).unwrap();

    let pool = asking.pool_builder().max_size(1).build(asking).unwrap();
    let (used, used_without) = (manager.connect().unwrap(), without.connect().unwrap());
    let in_flight = ask("a query in flight", manager.connect().unwrap(), SLEEP);
    let in_flight_without =
        ask("a query in flight, by keepalives alone", without.connect().unwrap(), SLEEP);
    let mut idle = manager.connect().unwrap();
    let idle_since = Instant::now();
    wait_until("the server works on both queries", || sleeping(&mut idle) == 2);
    wait_until("all that was sent is acknowledged", is_all_acknowledged);

    let silence = Instant::now();
    cable.cut();
    let sent = ask("a query sent into the silence", used, "SELECT 1");
    let sent_without =
        ask("a query sent into the silence, by keepalives alone", used_without, "SELECT 1");
    let checkout =
        wait("a checkout that asks", move || pool.get().map(drop).unwrap_err().to_string());
    let another = manager.clone();
    let login = wait("a login", move || another.connect().map(drop).unwrap_err().to_string());
    let look = Wait {
        begun: idle_since,
        ..wait("a look at an idle connection", move || look(&manager, idle))
    };

    let gone = "Connection timed out";
    login.ends(silence, 9..10 + SLACK, "timeout expired");
    sent.ends(silence, 14..15 + SLACK, gone);
    checkout.ends(silence, 14..15 + SLACK, gone);
    in_flight.ends(silence, 14..25 + SLACK, gone);
    look.ends(silence, 14..25 + SLACK, gone);
    in_flight_without.ends(silence, 24..25 + SLACK, gone);
    sent_without.goes_on(Duration::from_secs(2));
}

/// One that waits for the server, in a thread of its own, which tells how that ends.
struct Wait {
    whose: &'static str,
    begun: Instant,
    end: Receiver<(Instant, String)>,
}

fn wait(whose: &'static str, error: impl FnOnce() -> String + Send + 'static) -> Wait {
    let (begun, (sender, end)) = (Instant::now(), channel());
    thread::spawn(move || {
        let error = error();
        // Nobody listens any more if the test has failed.
        let _ = sender.send((Instant::now(), error));
    });
    Wait { whose, begun, end }
}

fn ask(whose: &'static str, mut connection: PgConnection, query: &'static str) -> Wait {
    wait(whose, move || connection.batch_execute(query).unwrap_err().to_string())
}

impl Wait {
    /// Not sooner after its begin, and not later after the begin of the silence, than so many
    /// seconds.
    fn ends(self, silence: Instant, seconds: Range<u64>, expected: &str) {
        let [soonest, latest] = [seconds.start, seconds.end].map(Duration::from_secs);
        let whose = self.whose;
        let (end, error) = match self.end.recv_timeout(latest.saturating_sub(silence.elapsed())) {
            Ok(end) => end,
            Err(missing) => panic!(
                "{whose}: no error {:?} after the silence began: {missing}",
                silence.elapsed()
            ),
        };
        let (waited, silent) = (end - self.begun, end - silence);
        let shown = format!("{whose}: after {waited:.1?}, {silent:.1?} of them silent: {error}");
        eprintln!("{shown}");
        assert!(waited >= soonest && silent <= latest && error.contains(expected), "{shown}");
    }

    fn goes_on(self, time: Duration) {
        let end = self.end.recv_timeout(time);
        assert_eq!(end.unwrap_err(), RecvTimeoutError::Timeout, "{}", self.whose);
        eprintln!("{}: goes on after {:.1?}", self.whose, self.begun.elapsed());
    }
}

/// Looks at the socket of an idle connection again and again, until it is seen to be dead.
fn look(manager: &RdsConnectionManager, mut idle: PgConnection) -> String {
    loop {
        match manager.is_valid(&mut idle) {
            Err(error) => return error.to_string(),
            // Nothing tells of the moment.
            Ok(()) => thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// How many queries are in flight to outlast the test.
fn sleeping(connection: &mut PgConnection) -> i64 {
    let query = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE query = '{SLEEP}' AND state = 'active'"
    );
    diesel::dsl::sql::<BigInt>(&query).get_result(connection).unwrap()
}

/// Whether no socket of this network has something on its way: keepalives begin only then.
fn is_all_acknowledged() -> bool {
    let sockets = fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
    let mut queues =
        sockets.lines().skip(1).map(|socket| socket.split_whitespace().nth(4).unwrap());
    queues.all(|sent_and_received| sent_and_received.starts_with("00000000:"))
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(10), "not yet: {what}");
    }
}
