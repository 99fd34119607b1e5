//! What a login leads to: the server, as it shows itself to who is in.

use std::time::{Duration, Instant, SystemTime};

use diesel::connection::SimpleConnection;
use diesel::sql_types::{Bool, Double, Nullable, Text};
use diesel::{PgConnection, QueryResult, RunQueryDsl};

use super::step::Fact;

/// One row.
type Row = (String, f64, Option<String>, bool, bool);

const QUERY: &str = "SELECT current_setting('server_version'), \
    extract(epoch FROM clock_timestamp())::float8, \
    (SELECT version || ', ' || cipher FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl), \
    EXISTS (SELECT FROM pg_roles WHERE rolname = 'rds_iam' AND pg_has_role(current_user, oid, 'member')), \
    NOT pg_is_in_recovery() AND NOT current_setting('default_transaction_read_only')::boolean";

pub(super) fn facts(connection: &mut PgConnection) -> QueryResult<Vec<Fact>> {
    let latency = latency(connection)?;
    let asked = SystemTime::now();
    let row = diesel::dsl::sql::<(Text, Double, Nullable<Text>, Bool, Bool)>(QUERY);
    let (version, clock, tls, has_role, is_read_write): Row = row.get_result(connection)?;
    let answered = SystemTime::now();
    let fact = |name, value: String| Fact { name, value };
    let yes_no = |is: bool| if is { "yes" } else { "no" }.to_owned();
    Ok(vec![
        fact("server", format!("PostgreSQL {version}")),
        fact("latency", format!("{:.2} ms", latency.as_secs_f64() * 1000.0)),
        fact("clock", difference(clock, asked, answered)),
        fact("TLS", tls.unwrap_or_else(|| "none".into())),
        fact("member of rds_iam", yes_no(has_role)),
        fact("takes writes", yes_no(is_read_write)),
    ])
}

/// The shortest of three round trips.
fn latency(connection: &mut PgConnection) -> QueryResult<Duration> {
    let mut shortest = Duration::MAX;
    for _ in 0..3 {
        let started = Instant::now();
        connection.batch_execute("SELECT 1")?;
        shortest = shortest.min(started.elapsed());
    }
    Ok(shortest)
}

/// How far this machine's clock is from the server's, in seconds; what lies within the query's own
/// time is none.
fn difference(server: f64, asked: SystemTime, answered: SystemTime) -> String {
    let seconds = |time: SystemTime| {
        time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
    };
    let (ahead, behind) = (seconds(asked) - server, server - seconds(answered));
    match () {
        () if ahead > 0.5 => format!("this machine is {ahead:.1} s ahead of the server"),
        () if behind > 0.5 => format!("this machine is {behind:.1} s behind the server"),
        () => "as the server's".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_ahead_or_behind() {
        let asked = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let answered = asked + Duration::from_secs(2);
        let cases = [
            (990.0, "10.0 s ahead"),
            (1012.0, "10.0 s behind"),
            (1001.0, "as the server's"),
            (1002.4, "as"),
        ];
        for (server, expected) in cases {
            let shown = difference(server, asked, answered);
            assert!(shown.contains(expected), "{server}: {shown}");
        }
    }
}
