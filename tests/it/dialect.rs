//! `LocalRds::builder().dsql()`: logins, prepared statements, and the limits of Aurora DSQL. Which
//! statements it refuses is compared in `dialect_judge`.

use std::time::SystemTime;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::result::DatabaseErrorKind as Kind;
use diesel::result::Error as QueryError;
use diesel::sql_types::{BigInt, Bool, Integer, Text};
use diesel_rds_iam::local::{LocalRds, Refusal};
use diesel_rds_iam::r2d2::ManageConnection;

use crate::support::{
    current_user, end_sessions, last_verdict, log_in, minutes, soon, start, token_of,
};

fn dialect() -> LocalRds {
    start(LocalRds::builder().dsql())
}

fn connect(rds: &LocalRds) -> PgConnection {
    rds.manager().unwrap().connect().unwrap()
}

/// Returns the server's text.
fn refusal<T>(outcome: QueryResult<T>) -> String {
    match outcome {
        Ok(_) => panic!("accepted"),
        Err(error) => error.to_string(),
    }
}

#[derive(QueryableByName)]
struct Job {
    #[diesel(sql_type = Text)]
    job_id: String,
}

#[derive(QueryableByName)]
struct Outcome {
    #[diesel(sql_type = Bool)]
    succeeded: bool,
}

fn count(connection: &mut PgConnection, table: &str) -> i64 {
    diesel::dsl::sql::<BigInt>(&format!("SELECT count(*) FROM {table}"))
        .get_result(connection)
        .unwrap()
}

#[test]
fn the_endpoint_and_the_tokens_are_those_of_dsql() {
    let rds = start(LocalRds::builder().region("eu-west-1").dsql());
    let endpoint = rds.endpoint();
    assert!(endpoint.host().ends_with(".dsql.eu-west-1.on.aws"), "{endpoint}");
    assert_eq!(endpoint.port(), rds.port());
    let token = token_of(&rds, SystemTime::now());
    assert!(token.contains(".on.aws/?Action=DbConnect&") && token.contains("%2Fdsql%2F"));
    assert_eq!(current_user(&mut connect(&rds)), LocalRds::USER);
    let admin = rds.manager_builder().build(rds.database_url_for("admin")).unwrap();
    assert_eq!(current_user(&mut admin.connect().unwrap()), "admin");
    // The tokens of admin have another action.
    assert!(log_in(&rds, "admin", &token).is_err());
    let verdict = last_verdict(&rds);
    assert!(matches!(verdict, Err(Refusal::Wrong { parameter: "Action", .. })), "{verdict:?}");
    assert!(log_in(&rds, LocalRds::USER_WITHOUT_GRANT, &token).is_err());
    assert!(log_in(&rds, LocalRds::USER_WITH_PASSWORD, rds.password()).is_ok());
}

#[test]
fn a_login_without_tls_is_refused() {
    let rds = dialect();
    let url = format!("host=localhost port={} user=app dbname=app", rds.port());
    for mode in ["disable", "allow"] {
        let login = PgConnection::establish(&format!("{url} sslmode={mode} password=x"));
        let text = login.err().expect("refused").to_string();
        assert!(text.contains("no encryption") || mode == "allow", "{text}");
    }
    assert_eq!(rds.attempts().len(), 1, "only `allow` tries TLS");
}

#[test]
fn prepared_statements_are_refused_as_well() {
    let rds = dialect();
    let mut connection = connect(&rds);
    connection.batch_execute("CREATE TABLE notes (id int PRIMARY KEY)").unwrap();
    let execute =
        |connection: &mut PgConnection, text: &str| diesel::sql_query(text).execute(connection);
    let text = refusal(execute(&mut connection, "TRUNCATE notes"));
    assert_eq!(text, "unsupported statement: Truncate");
    let insert = diesel::sql_query("INSERT INTO notes VALUES ($1)").bind::<Integer, _>(1);
    insert.execute(&mut connection).unwrap();

    // The statement is in diesel's cache, so it is only executed, not prepared, behind the DDL.
    let outcome = connection.transaction(|connection| {
        execute(connection, "CREATE TABLE other (id int)")?;
        diesel::sql_query("INSERT INTO notes VALUES ($1)").bind::<Integer, _>(2).execute(connection)
    });
    assert_eq!(refusal(outcome), "ddl and dml are not supported in the same transaction");
    assert_eq!(count(&mut connection, "notes"), 1);

    let outcome = connection.transaction(|connection| {
        execute(connection, "CREATE TABLE other (id int)")?;
        execute(connection, "CREATE TABLE another (id int)")
    });
    assert_eq!(refusal(outcome), "multiple ddl statements not supported in a transaction");
    execute(&mut connection, "CREATE TABLE other (id int)").unwrap();
}

#[test]
fn a_nested_transaction_is_refused() {
    let rds = dialect();
    let outcome = connect(&rds).transaction(|connection| {
        connection.transaction(|connection| diesel::sql_query("SELECT 1").execute(connection))
    });
    assert_eq!(refusal(outcome), "unsupported transaction statement: SAVEPOINT");
}

#[test]
fn an_index_is_built_by_a_job() {
    let rds = dialect();
    let mut connection = connect(&rds);
    connection.batch_execute("CREATE TABLE notes (id int, text text)").unwrap();
    let create = diesel::sql_query("CREATE INDEX ASYNC by_text ON notes (text)");
    let job: Job = create.get_result(&mut connection).unwrap();
    let wait = |connection: &mut PgConnection, job: &Job| {
        let call = format!("CALL sys.wait_for_job('{}')", job.job_id);
        diesel::sql_query(call).get_result::<Outcome>(connection).unwrap().succeeded
    };
    assert!(wait(&mut connection, &job));
    let indexes = count(&mut connection, "pg_indexes WHERE indexname = 'by_text'");
    assert_eq!(indexes, 1);

    connection.batch_execute("INSERT INTO notes VALUES (1, 'twice'), (2, 'twice')").unwrap();
    let create = diesel::sql_query("CREATE UNIQUE INDEX ASYNC twice ON notes (text)");
    let job: Job = create.get_result(&mut connection).unwrap();
    assert!(!wait(&mut connection, &job));
    let failed = format!("sys.jobs WHERE job_id = '{}' AND status = 'failed'", job.job_id);
    assert_eq!(count(&mut connection, &failed), 1);
}

#[test]
fn rows_and_bytes_of_a_transaction_are_limited() {
    let rds = dialect();
    let mut connection = connect(&rds);
    connection.batch_execute("CREATE TABLE many (id int, text text)").unwrap();
    let insert = |connection: &mut PgConnection, rows: i32| {
        diesel::sql_query("INSERT INTO many SELECT n, '' FROM generate_series(1, $1) AS n")
            .bind::<Integer, _>(rows)
            .execute(connection)
    };
    insert(&mut connection, 3000).unwrap();
    assert_eq!(refusal(insert(&mut connection, 3001)), "transaction row limit exceeded");
    let outcome = connection.transaction(|connection| {
        diesel::sql_query("DELETE FROM many WHERE id <= 1500").execute(connection)?;
        insert(connection, 1500)?;
        diesel::sql_query("UPDATE many SET text = 'x' WHERE id = 2000").execute(connection)
    });
    assert_eq!(refusal(outcome), "transaction row limit exceeded");
    assert_eq!(count(&mut connection, "many"), 3000);

    let mut insert_bytes = |bytes: usize| {
        let text = "x".repeat(bytes);
        diesel::sql_query("INSERT INTO many VALUES (1, $1)")
            .bind::<Text, _>(text)
            .execute(&mut connection)
    };
    insert_bytes(10 * 1024 * 1024 - 100).unwrap();
    let text = refusal(insert_bytes(10 * 1024 * 1024));
    assert_eq!(text, "transaction size limit 10mb exceeded");
}

#[test]
fn the_superuser_is_not_limited() {
    let rds = dialect();
    connect(&rds).batch_execute("CREATE TABLE many (id int)").unwrap();
    let setup = "INSERT INTO many SELECT generate_series(1, 3001); TRUNCATE many";
    rds.superuser().unwrap().batch_execute(setup).unwrap();
}

#[test]
fn a_conflict_has_the_code_of_dsql() {
    let rds = dialect();
    let (mut first, mut second) = (connect(&rds), connect(&rds));
    first.batch_execute("CREATE TABLE counter (n int)").unwrap();
    first.batch_execute("INSERT INTO counter VALUES (0)").unwrap();
    let outcome = first.transaction(|first| {
        assert_eq!(count(first, "counter"), 1);
        second.batch_execute("UPDATE counter SET n = n + 1").unwrap();
        diesel::sql_query("UPDATE counter SET n = n + 1").execute(first)
    });
    let Err(QueryError::DatabaseError(Kind::SerializationFailure, information)) = outcome else {
        panic!("{outcome:?}");
    };
    assert!(information.message().contains("(OC000)"), "{}", information.message());
}

#[test]
fn a_transaction_during_ddl_fails_at_commit() {
    let rds = dialect();
    let (mut first, mut second) = (connect(&rds), connect(&rds));
    first.batch_execute("CREATE TABLE counter (n int)").unwrap();
    let mut add = |ddl: &str| {
        first.transaction(|first| {
            second.batch_execute(ddl).unwrap();
            diesel::sql_query("INSERT INTO counter VALUES (1)").execute(first)
        })
    };
    let outcome = add("CREATE TABLE other (n int)");
    let Err(QueryError::DatabaseError(Kind::SerializationFailure, information)) = outcome else {
        panic!("{outcome:?}");
    };
    assert!(information.message().contains("(OC001)"), "{}", information.message());
    add("BEGIN; CREATE TABLE another (n int); ROLLBACK").unwrap();
    assert_eq!(count(&mut first, "counter"), 1);
}

#[test]
fn the_admin_gives_a_role_the_right_to_log_in() {
    let rds = dialect();
    let admin = rds.manager_builder().build(rds.database_url_for("admin")).unwrap();
    let mut admin = admin.connect().unwrap();
    let arn = "arn:aws:iam::111122223333:role/worker";
    // A new manager, because one waits after a failed login.
    let log_in = || rds.manager_builder().build(rds.database_url_for("worker")).unwrap().connect();
    admin.batch_execute("CREATE ROLE worker WITH LOGIN").unwrap();
    assert!(log_in().is_err());
    admin.batch_execute(&format!("AWS IAM GRANT worker TO '{arn}'")).unwrap();
    assert_eq!(current_user(&mut log_in().unwrap()), "worker");
    admin.batch_execute(&format!("AWS IAM REVOKE worker FROM '{arn}'")).unwrap();
    assert!(log_in().is_err());
}

#[test]
fn a_connection_ends_after_60_minutes() {
    let rds = dialect();
    let (mut idle, mut busy) = (connect(&rds), connect(&rds));
    let is_alive = |connection: &mut PgConnection| connection.batch_execute("SELECT 1").is_ok();
    busy.batch_execute("BEGIN").unwrap();
    rds.clock().advance(minutes(59));
    assert!(is_alive(&mut idle) && is_alive(&mut busy));
    rds.clock().advance(minutes(1));
    soon("the idle connection ends", || !is_alive(&mut idle));
    assert!(is_alive(&mut busy), "an open transaction has 5 more minutes");
    rds.clock().advance(minutes(5));
    soon("the busy connection ends", || !is_alive(&mut busy));
    assert!(is_alive(&mut connect(&rds)));
}

#[test]
fn restarts_and_ended_sessions_reach_the_client() {
    let rds = dialect();
    let mut connection = connect(&rds);
    end_sessions(&rds);
    assert!(connection.batch_execute("SELECT 1").is_err());
    rds.stop();
    assert!(rds.manager().unwrap().connect().is_err());
    rds.restart().unwrap();
    connect(&rds);
}

#[test]
fn a_rotated_certificate_is_used_for_new_connections() {
    let rds = dialect();
    let mut before = connect(&rds);
    let authority = rds.rotate_certificate().unwrap();
    assert!(rds.manager().unwrap().connect().is_err());
    std::fs::write(rds.ca_file(), authority).unwrap();
    connect(&rds);
    before.batch_execute("SELECT 1").unwrap();
}

#[test]
fn a_running_statement_can_be_cancelled() {
    let rds = dialect();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let outcome = runtime.block_on(async {
        let connector =
            native_tls::TlsConnector::builder().danger_accept_invalid_certs(true).build().unwrap();
        let tls = postgres_native_tls::MakeTlsConnector::new(connector);
        let mut config = tokio_postgres::Config::new();
        config.host("localhost").port(rds.port()).user(LocalRds::USER).dbname(LocalRds::DATABASE);
        config.password(token_of(&rds, SystemTime::now()));
        let (client, connection) = config.connect(tls.clone()).await.unwrap();
        tokio::spawn(connection);
        let cancel = client.cancel_token();
        let sleep = tokio::spawn(async move { client.simple_query("SELECT pg_sleep(60)").await });
        let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        let mut superuser = rds.superuser().unwrap();
        soon("the statement runs", || {
            diesel::dsl::sql::<BigInt>(sleeping).get_result::<i64>(&mut superuser).unwrap() == 1
        });
        cancel.cancel_query(tls).await.unwrap();
        sleep.await.unwrap().map(|_| ())
    });
    let code = outcome.unwrap_err().code().cloned();
    assert_eq!(code, Some(tokio_postgres::error::SqlState::QUERY_CANCELED));
}

#[test]
fn an_endpoint_of_the_user_is_kept() {
    let host = "abc123.dsql-fnh4.us-east-2.on.aws";
    let rds = start(LocalRds::builder().endpoint(host, 5432).region("us-east-2").dsql());
    assert_eq!(rds.endpoint().host(), host);
    connect(&rds);
    // The user `admin` exists already.
    assert!(LocalRds::builder().dsql().iam_user("admin").start().is_err());
}
