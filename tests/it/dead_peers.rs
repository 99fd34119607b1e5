//! A host that vanishes without closing its connections, as after a power failure: how long we wait
//! with our defaults.
//!
//! The server and the client each have a separate network.

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

/// A query that takes longer than the test.
const SLEEP: &str = "SELECT pg_sleep(120)";

/// Added to each bound for a busy machine.
const SLACK: u64 = 5;

#[test]
fn a_vanished_host_is_noticed_within_the_bounds_of_our_defaults() {
    in_a_network_of_its_own("dead_peers::a_host_vanishes", SERVER, &[]);
}

#[test]
#[ignore = "runs in a separate network that has the address of the server"]
fn a_host_vanishes() {
    let rds = start(LocalRds::builder().endpoint(NAME, 5432).region("eu-west-1"));
    let reached_at = format!("{SERVER}:{}", Proxy::to(rds.port()).port);
    let url = rds.database_url().replace(&format!("localhost:{}", rds.port()), &reached_at);
    let cable = Cable::lay();
    cable.across(|| run_clients(&rds, &url, &cable));
}

fn manager_that_peeks(rds: &LocalRds, url: &str) -> RdsConnectionManager {
    rds.manager_builder().validate_after(Duration::from_secs(3600)).build(url).unwrap()
}

fn run_clients(rds: &LocalRds, url: &str, cable: &Cable) {
    let manager = manager_that_peeks(rds, url);
    let pinging = || rds.manager_builder().validate_after(Duration::ZERO);
    let limited = pinging().build(url).unwrap();
    let mut pinged = limited.connect().unwrap();
    let pinging = pinging().ping_timeout(None).build(url).unwrap();
    let by_keepalives = rds.manager_builder().build(format!("{url}&tcp_user_timeout=0")).unwrap();

    let pool = pinging.pool_builder().max_size(1).build(pinging).unwrap();
    let (used, used_by_keepalives) = (manager.connect().unwrap(), by_keepalives.connect().unwrap());
    let in_flight = query("a query in flight", manager.connect().unwrap(), SLEEP);
    let in_flight_by_keepalives =
        query("a query in flight, with keepalives only", by_keepalives.connect().unwrap(), SLEEP);
    // Its own manager: the end of another connection would make it ping, and wait once more.
    let peeking = manager_that_peeks(rds, url);
    let mut idle = peeking.connect().unwrap();
    let idle_since = Instant::now();
    wait_until("the server works on both queries", || sleeping(&mut idle) == 2);
    wait_until("all that was sent is acknowledged", is_all_acknowledged);

    let cut = Instant::now();
    cable.cut();
    let sent = query("a query sent after the cut", used, "SELECT 1");
    let sent_by_keepalives =
        query("a query sent after the cut, with keepalives only", used_by_keepalives, "SELECT 1");
    let checkout = wait("a checkout that pings without a limit", move || {
        pool.get().map(drop).unwrap_err().to_string()
    });
    let ping =
        wait("a ping", move || limited.is_valid(&mut pinged).map(drop).unwrap_err().to_string());
    let another = manager.clone();
    let login = wait("a login", move || another.connect().map(drop).unwrap_err().to_string());
    let peek = Wait {
        begun: idle_since,
        ..wait("a peek at an idle connection", move || peek(&peeking, idle))
    };

    let gone = "Connection timed out";
    ping.ends(cut, 5..5 + SLACK, "no answer to a ping within 5.0s");
    login.ends(cut, 9..10 + SLACK, "timeout expired");
    sent.ends(cut, 29..30 + SLACK, gone);
    checkout.ends(cut, 29..30 + SLACK, gone);
    in_flight.ends(cut, 29..30 + SLACK, gone);
    peek.ends(cut, 29..30 + SLACK, gone);
    in_flight_by_keepalives.ends(cut, 29..30 + SLACK, gone);
    sent_by_keepalives.continues(Duration::from_secs(2));
}

#[test]
fn a_gap_of_10_seconds_ends_neither_a_query_nor_an_idle_connection() {
    in_a_network_of_its_own("dead_peers::a_gap", SERVER, &[]);
}

#[test]
#[ignore = "runs in a separate network that has the address of the server"]
fn a_gap() {
    let rds = start(LocalRds::builder().endpoint(NAME, 5432).region("eu-west-1"));
    // As RDS, whose server sends its first keepalive after 5 minutes.
    let proxy = Proxy::with_keepalive(rds.port(), Duration::from_secs(300));
    let reached_at = format!("{SERVER}:{}", proxy.port);
    let url = rds.database_url().replace(&format!("localhost:{}", rds.port()), &reached_at);
    let cable = Cable::lay();
    cable.across(|| {
        let manager = rds.manager_builder().build(&url).unwrap();
        let (mut busy, mut idle) = (manager.connect().unwrap(), manager.connect().unwrap());
        let query = thread::spawn(move || busy.batch_execute("SELECT pg_sleep(32)"));
        wait_until("the query is acknowledged", is_all_acknowledged);
        // The first keepalive is lost in the gap.
        thread::sleep(Duration::from_secs(5));
        cable.cut();
        thread::sleep(Duration::from_secs(10));
        cable.mend();
        query.join().unwrap().unwrap();
        idle.batch_execute("SELECT 1").unwrap();
    });
}

diesel::table! {
    copied (id) {
        id -> Integer,
    }
}

#[test]
fn a_copy_that_the_server_does_not_read_for_25_seconds_continues() {
    const ROWS: usize = 2_000_000;
    let rds = start(LocalRds::builder());
    let manager = rds.manager_builder().build(rds.database_url()).unwrap();
    let mut connection = manager.connect().unwrap();
    connection.batch_execute("CREATE TABLE copied (id INTEGER PRIMARY KEY)").unwrap();
    let mut other = manager.connect().unwrap();
    // COPY waits for the row of this session before it reads more.
    other.batch_execute("BEGIN; INSERT INTO copied VALUES (0)").unwrap();
    let copy = thread::spawn(move || {
        let rows = (0..ROWS).map(|id| format!("{id}\n")).collect::<String>();
        diesel::copy_from(copied::table)
            .from_raw_data(copied::table, |copy| {
                copy.write_all(rows.as_bytes()).unwrap();
                QueryResult::Ok(())
            })
            .execute(&mut connection)
    });
    wait_until("COPY waits for the lock", || {
        let query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        diesel::dsl::sql::<BigInt>(query).get_result::<i64>(&mut other).unwrap() == 1
    });
    thread::sleep(Duration::from_secs(25));
    other.batch_execute("ROLLBACK").unwrap();
    assert_eq!(copy.join().unwrap().unwrap(), ROWS);
}

/// An operation that waits for the server in a separate thread. The thread sends the error.
struct Wait {
    whose: &'static str,
    begun: Instant,
    end: Receiver<(Instant, String)>,
}

fn wait(whose: &'static str, error: impl FnOnce() -> String + Send + 'static) -> Wait {
    let (begun, (sender, end)) = (Instant::now(), channel());
    thread::spawn(move || {
        let error = error();
        // The receiver is gone if the test has failed.
        let _ = sender.send((Instant::now(), error));
    });
    Wait { whose, begun, end }
}

fn query(whose: &'static str, mut connection: PgConnection, sql: &'static str) -> Wait {
    wait(whose, move || connection.batch_execute(sql).unwrap_err().to_string())
}

impl Wait {
    /// Asserts that the operation failed no earlier than the start of the range after its begin,
    /// and no later than the end of the range after the cut.
    fn ends(self, cut: Instant, seconds: Range<u64>, expected: &str) {
        let [soonest, latest] = [seconds.start, seconds.end].map(Duration::from_secs);
        let whose = self.whose;
        let (end, error) = match self.end.recv_timeout(latest.saturating_sub(cut.elapsed())) {
            Ok(end) => end,
            Err(missing) => {
                panic!("{whose}: no error {:?} after the cut: {missing}", cut.elapsed())
            }
        };
        let (waited, after_cut) = (end - self.begun, end - cut);
        let shown = format!("{whose}: after {waited:.1?}, {after_cut:.1?} after the cut: {error}");
        eprintln!("{shown}");
        assert!(waited >= soonest && after_cut <= latest && error.contains(expected), "{shown}");
    }

    fn continues(self, time: Duration) {
        let end = self.end.recv_timeout(time);
        assert_eq!(end.unwrap_err(), RecvTimeoutError::Timeout, "{}", self.whose);
        eprintln!("{}: continues after {:.1?}", self.whose, self.begun.elapsed());
    }
}

/// Peeks at the socket of an idle connection until it is found dead.
fn peek(manager: &RdsConnectionManager, mut idle: PgConnection) -> String {
    loop {
        match manager.is_valid(&mut idle) {
            Err(error) => return error.to_string(),
            // There is no event to wait for.
            Ok(()) => thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Returns the number of long queries in flight.
fn sleeping(connection: &mut PgConnection) -> i64 {
    let query = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE query = '{SLEEP}' AND state = 'active'"
    );
    diesel::dsl::sql::<BigInt>(&query).get_result(connection).unwrap()
}

/// Returns whether all data sent in this network is acknowledged: keepalives begin only then.
fn is_all_acknowledged() -> bool {
    let sockets = fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
    let mut queues =
        sockets.lines().skip(1).map(|socket| socket.split_whitespace().nth(4).unwrap());
    queues.all(|sent_and_received| sent_and_received.starts_with("00000000:"))
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(10), "waited 10 s until {what}");
    }
}
