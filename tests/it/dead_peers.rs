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
    sent.ends(silence, 29..30 + SLACK, gone);
    checkout.ends(silence, 29..30 + SLACK, gone);
    in_flight.ends(silence, 29..30 + SLACK, gone);
    look.ends(silence, 29..30 + SLACK, gone);
    in_flight_without.ends(silence, 29..30 + SLACK, gone);
    sent_without.goes_on(Duration::from_secs(2));
}

#[test]
fn a_gap_of_10_seconds_ends_neither_a_query_nor_an_idle_connection() {
    in_a_network_of_its_own("dead_peers::a_gap", SERVER, &[]);
}

#[test]
#[ignore = "runs in a network of its own, which has the server's address"]
fn a_gap() {
    let rds = start(LocalRds::builder().endpoint(NAME, 5432).region("eu-west-1"));
    let reached_at = format!("{SERVER}:{}", Proxy::to(rds.port()).port);
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
fn a_copy_that_the_server_does_not_read_for_25_seconds_goes_on() {
    const ROWS: usize = 2_000_000;
    let rds = start(LocalRds::builder());
    let manager = rds.manager_builder().build(rds.database_url()).unwrap();
    let mut connection = manager.connect().unwrap();
    connection.batch_execute("CREATE TABLE copied (id INTEGER PRIMARY KEY)").unwrap();
    let mut other = manager.connect().unwrap();
    // COPY waits for this session's row before it reads on.
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
