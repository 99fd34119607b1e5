//! Aurora DSQL, as far as `LocalRds::builder().dsql()` is like it.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::dsl::sql;
use diesel::migration::{Migration, MigrationSource};
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::result::Error as QueryError;
use diesel::sql_types::BigInt;
use diesel_migrations::{EmbeddedMigrations, FileBasedMigrations, embed_migrations};
use diesel_rds_iam::dsql::{MigrationError, run_pending_migrations};
use diesel_rds_iam::local::LocalRds;
use diesel_rds_iam::r2d2::ManageConnection;
use diesel_rds_iam::{Endpoint, Error, RdsConnectionManager, TransactionError};
use tempfile::TempDir;

use crate::dialect_judge::Ministack;
use crate::examples::{logged, printed, run};
use crate::support::web::Web;
use crate::support::{eventually, example, manager, start};

const EXAMPLES: EmbeddedMigrations = embed_migrations!("examples/migrations_dsql");

fn dsql() -> LocalRds {
    start(LocalRds::builder().dsql())
}

/// Migrations from files, by name and SQL.
struct Files {
    folder: TempDir,
    read: FileBasedMigrations,
}

impl Files {
    fn new(files: &[(&str, &str)]) -> Files {
        let folder = tempfile::tempdir().unwrap();
        for (name, up) in files {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join("up.sql"), up).unwrap();
        }
        Files { read: FileBasedMigrations::from_path(folder.path()).unwrap(), folder }
    }

    fn rewrite(&self, name: &str, up: &str) {
        fs::write(self.folder.path().join(name).join("up.sql"), up).unwrap();
    }
}

impl MigrationSource<Pg> for &Files {
    fn migrations(&self) -> diesel::migration::Result<Vec<Box<dyn Migration<Pg>>>> {
        self.read.migrations()
    }
}

fn number(rds: &LocalRds, query: &str) -> i64 {
    sql::<BigInt>(&format!("SELECT ({query})::bigint"))
        .get_result(&mut rds.superuser().unwrap())
        .unwrap()
}

fn exists(rds: &LocalRds, table: &str) -> bool {
    number(rds, &format!("SELECT count(*) FROM pg_class WHERE relname = '{table}'")) > 0
}

const RECORDED: &str = "SELECT count(*) FROM __diesel_schema_migrations";
const EXPIRE: &str = "UPDATE __diesel_dsql_migrations SET expires_at = now()";

#[test]
fn migrations_run_once_and_their_indexes_are_complete() {
    let rds = dsql();
    let connection = &mut manager(&rds).connect().unwrap();
    let names = run_pending_migrations(connection, EXAMPLES).unwrap();
    assert_eq!(names.first().unwrap(), "2026-01-01-000000_create_notes");
    assert_eq!((names.len(), number(&rds, RECORDED)), (5, 5));
    let valid =
        "SELECT count(*) FROM pg_index WHERE indisvalid AND indexrelid = 'jobs_to_do'::regclass";
    assert_eq!(number(&rds, valid), 1);
    assert_eq!(run_pending_migrations(connection, EXAMPLES).unwrap(), Vec::<String>::new());
}

#[test]
fn migrations_run_on_ministack_too() {
    let ministack = Ministack::start();
    let url = format!("postgres://admin@127.0.0.1:{}/app?sslmode=disable", ministack.port);
    let connection = &mut PgConnection::establish(&url).unwrap();
    for expected in [5, 0] {
        assert_eq!(run_pending_migrations(connection, EXAMPLES).unwrap().len(), expected);
    }
    let files = Files::new(&[("2027-01-01-000000_x", "CREATE TABLE t (id SERIAL PRIMARY KEY)")]);
    let error = run_pending_migrations(connection, &files).unwrap_err().to_string();
    assert!(error.contains("statement 1 of 1") && error.contains("SERIAL"), "{error}");
}

#[test]
fn a_file_can_have_several_statements_here_and_on_postgresql() {
    let several = "CREATE TABLE a (id INT PRIMARY KEY, t TEXT DEFAULT ';'); -- ; \n\
                   CREATE TABLE b (id INT PRIMARY KEY);\n\
                   INSERT INTO a VALUES (1), (2);; /* ; */ UPDATE a SET t = $$;$$ WHERE id = 1;\n";
    let files = Files::new(&[("2026-01-01-000000_several", several)]);
    for rds in [dsql(), start(LocalRds::builder())] {
        let connection = &mut manager(&rds).connect().unwrap();
        assert_eq!(run_pending_migrations(connection, &files).unwrap().len(), 1);
        assert_eq!(number(&rds, "SELECT count(*) FROM a WHERE t = ';'"), 2);
        assert_eq!(number(&rds, RECORDED), 1);
    }
}

#[test]
fn a_refused_statement_is_named_and_those_before_it_are_not_repeated() {
    const NAME: &str = "2026-01-01-000000_x";
    let rds = dsql();
    let connection = &mut manager(&rds).connect().unwrap();
    let cases = [
        ("CREATE TABLE u (id SERIAL PRIMARY KEY)", "serial"),
        ("CREATE TRIGGER x AFTER INSERT ON t EXECUTE FUNCTION f()", "TRIGGER"),
        ("CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ ; $$", "plpgsql"),
        ("TRUNCATE t", "Truncate"),
        ("INSERT INTO t SELECT generate_series(1, 3001)", "row limit exceeded"),
        ("INSERT INTO nowhere VALUES (1)", "does not exist"),
    ];
    let files = Files::new(&[(NAME, "")]);
    for (bad, expected) in cases {
        files.rewrite(NAME, &format!("CREATE TABLE t (id INT PRIMARY KEY);\n{bad};\nSELECT 1"));
        let error = run_pending_migrations(connection, &files).unwrap_err().to_string();
        let start = format!("migration {NAME}, statement 2 of 3 ({}", &bad[..8]);
        assert!(error.starts_with(&start) && error.contains(expected), "{error}");
        assert!(
            error.ends_with("correct it and run again: the statements before it are not repeated")
        );
        assert_eq!((number(&rds, RECORDED), number(&rds, "SELECT count(*) FROM t")), (0, 0));
    }
    files.rewrite(NAME, "CREATE TABLE t (id INT PRIMARY KEY);\nINSERT INTO t VALUES (7)");
    assert_eq!(run_pending_migrations(connection, &files).unwrap(), [NAME]);
    assert_eq!(number(&rds, "SELECT sum(id) FROM t"), 7);
}

#[test]
fn what_controls_transactions_is_refused_before_anything_runs() {
    let rds = dsql();
    let connection = &mut manager(&rds).connect().unwrap();
    for bad in ["BEGIN", "savepoint a", "COMMIT", "RELEASE a", "ROLLBACK TO a", "START TRANSACTION"]
    {
        let second = format!("CREATE TABLE b (id INT); {bad}; SELECT 1");
        let files = Files::new(&[
            ("2026-01-01-000000_good", "CREATE TABLE a (id INT PRIMARY KEY)"),
            ("2026-01-02-000000_bad", &second),
        ]);
        let error = run_pending_migrations(connection, &files).unwrap_err();
        assert!(matches!(error, MigrationError::Unusable(_)), "{error}");
        assert!(error.to_string().contains("2026-01-02-000000_bad, statement 2 of 3"), "{error}");
    }
    assert!(!exists(&rds, "a"));
}

#[test]
fn the_initial_setup_of_diesel_says_what_to_do() {
    let rds = dsql();
    let up = "CREATE OR REPLACE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ ; $$;";
    let files = Files::new(&[("00000000000000_diesel_initial_setup", up)]);
    let error = run_pending_migrations(&mut manager(&rds).connect().unwrap(), &files).unwrap_err();
    assert!(error.to_string().ends_with("there is no PL/pgSQL, and nothing needs it"), "{error}");
}

/// The statements wait for a lock. Then the connection is lost, and the server does not notice it.
#[test]
#[cfg(target_os = "linux")]
fn a_connection_lost_in_a_statement_repeats_and_loses_nothing() {
    use crate::support::proxy::Proxy;

    const NAME: &str = "2026-01-01-000000_x";
    let cases = [
        // DDL: the server executes it, and the harness does not get the answer.
        (
            "ALTER TABLE t ADD COLUMN b INT",
            "t",
            "SELECT count(*) FROM pg_attribute WHERE attname = 'b'",
        ),
        ("DROP TABLE t", "t", "SELECT 1 - count(*) FROM pg_class WHERE relname = 't'"),
        // Not DDL: the server rolls it back.
        ("UPDATE t SET n = n + 1", "t", "SELECT n FROM t"),
    ];
    for (statement, table, is_done) in cases {
        let rds = dsql();
        let direct = &mut manager(&rds).connect().unwrap();
        direct.batch_execute("CREATE TABLE t (n INT PRIMARY KEY)").unwrap();
        direct.batch_execute("INSERT INTO t VALUES (0)").unwrap();
        let proxy = Proxy::at("127.0.0.1", rds.port(), Duration::from_secs(60));
        let url =
            rds.database_url().replace(&format!(":{}", rds.port()), &format!(":{}", proxy.port));
        let url = format!("{url}&iam_port={}", rds.port());
        let mut connection = rds.manager_builder().build(url).unwrap().connect().unwrap();
        let files = Files::new(&[(NAME, statement)]);
        let mut superuser = rds.superuser().unwrap();
        superuser.batch_execute(&format!("BEGIN; LOCK TABLE {table} IN SHARE MODE")).unwrap();
        let error = thread::scope(|scope| {
            let running = scope.spawn(|| run_pending_migrations(&mut connection, &files));
            let waits = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' \
                         AND wait_event_type = 'Lock'";
            eventually("the statement waits for the lock", || number(&rds, waits) == 1);
            proxy.cut();
            running.join().unwrap().unwrap_err()
        });
        assert!(error.to_string().ends_with("run again: the progress is recorded"), "{error}");
        superuser.batch_execute("COMMIT").unwrap();
        let sessions = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'";
        eventually("the session of the lost connection ends", || number(&rds, sessions) == 1);
        assert_eq!(
            number(&rds, is_done),
            i64::from(!statement.starts_with("UPDATE")),
            "{statement}"
        );
        superuser.batch_execute(EXPIRE).unwrap();
        assert_eq!(run_pending_migrations(direct, &files).unwrap(), [NAME], "{statement}");
        assert_eq!((number(&rds, is_done), number(&rds, RECORDED)), (1, 1), "{statement}");
    }
}

/// Sets the journal to a statement that was sent, with an unknown outcome.
fn interrupt(rds: &LocalRds, version: &str, statement: &str) {
    let update = format!(
        "DELETE FROM __diesel_schema_migrations; UPDATE __diesel_dsql_migrations SET \
         version = '{version}', executed = 0, is_started = true, \
         digest = encode(sha256(convert_to('{statement}', 'UTF8') || '\\x00'::bytea), 'hex')"
    );
    rds.superuser().unwrap().batch_execute(&update).unwrap();
}

#[test]
fn an_interrupted_migration_continues_only_if_it_is_the_same_and_its_outcome_is_clear() {
    const NAME: &str = "2026-01-01-000000_x";
    let rds = dsql();
    let connection = &mut manager(&rds).connect().unwrap();
    let files = Files::new(&[(NAME, "CREATE TABLE t (n INT PRIMARY KEY)")]);
    run_pending_migrations(connection, &files).unwrap();

    interrupt(&rds, "20260101000000", "CREATE TABLE t (n INT PRIMARY KEY)");
    files.rewrite(NAME, "CREATE TABLE t (n BIGINT PRIMARY KEY)");
    let error = run_pending_migrations(connection, &files).unwrap_err();
    assert!(matches!(error, MigrationError::Unusable(_)), "{error}");
    files.rewrite(NAME, "CREATE TABLE t (n INT PRIMARY KEY)");
    assert_eq!(run_pending_migrations(connection, &files).unwrap(), [NAME]);

    // Executed, but the second time it says something else than "already exists".
    connection.batch_execute("ALTER TABLE t RENAME TO u").unwrap();
    interrupt(&rds, "20260101000000", "ALTER TABLE t RENAME TO u");
    files.rewrite(NAME, "ALTER TABLE t RENAME TO u");
    let error = run_pending_migrations(connection, &files).unwrap_err();
    assert!(matches!(error, MigrationError::Unknown { .. }), "{error}");
    let text = error.to_string();
    let (_, keep) = text.split_once("keep it: ").unwrap();
    connection.batch_execute(keep).unwrap();
    assert_eq!(run_pending_migrations(connection, &files).unwrap(), [NAME]);
}

#[test]
fn several_programs_at_once_run_each_statement_once() {
    let files = Files::new(&[
        ("2026-01-01-000000_a", "CREATE TABLE a (n INT PRIMARY KEY); INSERT INTO a VALUES (1)"),
        ("2026-01-02-000000_b", "UPDATE a SET n = n + 1; UPDATE a SET n = n + 1"),
    ]);
    for rds in [dsql(), start(LocalRds::builder())] {
        let mut counts: Vec<usize> = thread::scope(|scope| {
            let migrate = || {
                run_pending_migrations(&mut manager(&rds).connect().unwrap(), &files).unwrap().len()
            };
            let all: Vec<_> = (0..4).map(|_| scope.spawn(migrate)).collect();
            all.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        counts.sort_unstable();
        assert_eq!((counts, number(&rds, "SELECT n FROM a")), (vec![0, 0, 0, 2], 3));
    }
}

#[test]
fn a_killed_program_blocks_others_until_its_lease_ends() {
    let rds = dsql();
    let connection = &mut manager(&rds).connect().unwrap();
    let files = Files::new(&[]);
    run_pending_migrations(connection, &files).unwrap();
    let take =
        "UPDATE __diesel_dsql_migrations SET holder = 'x', expires_at = now() + interval '3 s'";
    rds.superuser().unwrap().batch_execute(take).unwrap();
    let taken = Instant::now();
    run_pending_migrations(connection, &files).unwrap();
    assert!(taken.elapsed() >= Duration::from_secs(2), "{:?}", taken.elapsed());
    let free = "SELECT count(*) FROM __diesel_dsql_migrations WHERE holder IS NULL";
    assert_eq!(number(&rds, free), 1);
}

#[test]
fn a_failed_index_job_is_reported_and_can_run_again() {
    const NAME: &str = "2026-01-01-000000_x";
    let rds = dsql();
    let connection = &mut manager(&rds).connect().unwrap();
    let up = "CREATE TABLE t (id INT PRIMARY KEY, n INT); INSERT INTO t VALUES (1, 1), (2, 1); \
              CREATE UNIQUE INDEX ASYNC t_n ON t (n)";
    let files = Files::new(&[(NAME, up)]);
    let error = run_pending_migrations(connection, &files).unwrap_err();
    assert!(matches!(error, MigrationError::Job { .. }), "{error}");
    assert!(error.to_string().contains("statement 3 of 3"), "{error}");
    connection.batch_execute("DROP INDEX IF EXISTS t_n").unwrap();
    connection.batch_execute("UPDATE t SET n = 2 WHERE id = 2").unwrap();
    assert_eq!(run_pending_migrations(connection, &files).unwrap(), [NAME]);
}

#[test]
fn a_transaction_of_3001_rows_and_a_savepoint_are_errors_that_leave_nothing() {
    let rds = dsql();
    let manager = manager(&rds);
    let pool = manager.build_pool(manager.pool_builder().max_size(2)).unwrap();
    pool.get().unwrap().batch_execute("CREATE TABLE t (n INT PRIMARY KEY)").unwrap();
    let insert = |rows: i32| {
        pool.transaction(move |connection| {
            diesel::sql_query(format!("INSERT INTO t SELECT generate_series(1, {rows})"))
                .execute(connection)
        })
    };
    let error: TransactionError<QueryError> = insert(3001).unwrap_err();
    assert!(error.to_string().contains("row limit exceeded"), "{error}");
    let error = pool
        .transaction(|connection| {
            diesel::sql_query("INSERT INTO t VALUES (0)").execute(connection)?;
            connection.transaction(|_| QueryResult::Ok(()))
        })
        .unwrap_err();
    assert!(error.to_string().contains("SAVEPOINT"), "{error}");
    assert_eq!(number(&rds, "SELECT count(*) FROM t"), 0);
    assert_eq!(insert(3000).unwrap(), 3000);
}

#[test]
fn a_conflict_at_commit_is_retried() {
    let rds = dsql();
    let manager = manager(&rds);
    let pool = manager.build_pool(manager.pool_builder().max_size(2)).unwrap();
    let other = &mut *pool.get().unwrap();
    other.batch_execute("CREATE TABLE t (id INT PRIMARY KEY, n INT)").unwrap();
    other.batch_execute("INSERT INTO t VALUES (1, 0)").unwrap();
    let mut attempts = 0;
    let n: i64 = pool
        .transaction(|connection| {
            attempts += 1;
            let n: i64 = sql::<BigInt>("SELECT n::bigint FROM t").get_result(connection)?;
            if attempts == 1 {
                other.batch_execute("UPDATE t SET n = 10")?;
            }
            diesel::sql_query(format!("UPDATE t SET n = {}", n + 1)).execute(connection)?;
            QueryResult::Ok(n + 1)
        })
        .unwrap();
    assert_eq!((n, attempts, number(&rds, "SELECT n FROM t")), (11, 2, 11));
}

#[test]
fn a_lifetime_of_60_minutes_is_refused_for_dsql_only() {
    let build = |host: &str, minutes: Option<u64>| {
        let lifetime = minutes.map(|minutes| Duration::from_secs(60 * minutes));
        let url = format!("postgres://app@{host}/app");
        RdsConnectionManager::builder().max_lifetime(lifetime).build(url)
    };
    let cluster = "abc.dsql.us-east-1.on.aws";
    for minutes in [Some(60), Some(61), None] {
        let error = build(cluster, minutes).unwrap_err();
        assert!(matches!(error, Error::Config(_)), "{error}");
        assert!(error.to_string().contains("ends each connection after 60 minutes"), "{error}");
        assert!(build("db.abc.us-east-1.rds.amazonaws.com", minutes).is_ok());
    }
    assert!(build(cluster, Some(59)).unwrap().endpoints().all(Endpoint::is_dsql));
}

#[test]
fn the_default_roots_are_those_of_the_system() {
    let settings = |url: &str| format!("{:?}", RdsConnectionManager::new(url).unwrap());
    let cluster = "postgres://app@abc.dsql.us-east-1.on.aws/postgres";
    let shown = settings(cluster);
    assert!(
        shown.contains("sslrootcert='/etc/ssl/certs/") || shown.contains("sslrootcert='system'"),
        "{shown}"
    );
    assert!(settings(&format!("{cluster}?sslrootcert=/x.pem")).contains("sslrootcert='/x.pem'"));
    assert!(
        !settings("postgres://app@db.abc.us-east-1.rds.amazonaws.com/app").contains("sslrootcert")
    );
}

#[test]
fn the_example_migrate_and_web_run_on_it() {
    let rds = dsql();
    for (migrated, last) in [(5, "2026-01-03-000002_create_ledger"), (0, "")] {
        let output = run(example("migrate").envs(rds.environment()));
        assert!(output.status.success(), "{}", logged(&output));
        let end = format!("the schema is up to date; migrations run: {migrated}\n");
        assert!(printed(&output).ends_with(&end), "{}", printed(&output));
        assert!(printed(&output).contains(last), "{}", printed(&output));
    }
    let web = Web::on(&rds);
    let add = ureq::post(format!("{}/entries", web.url)).send_form([("text", "on DSQL")]).unwrap();
    assert_eq!(add.status(), 200);
    let shown = ureq::get(format!("{}/entries.json", web.url)).call().unwrap();
    let shown = shown.into_body().read_to_string().unwrap();
    assert!(shown.contains("on DSQL"), "{shown}");
    let health = ureq::get(format!("{}/health", web.url)).call().unwrap();
    assert_eq!(health.into_body().read_to_string().unwrap(), "ok\n");
}

#[test]
fn the_example_worker_polls_and_runs_each_job_once() {
    let rds = dsql();
    let good: Vec<String> =
        (1..=10).map(|account| format!(r#"{{"account": {account}, "amount": 3}}"#)).collect();
    let mut enqueue = example("worker");
    enqueue.envs(rds.environment()).arg("enqueue").args(&good).arg("broken");
    let output = run(&mut enqueue);
    assert!(output.status.success(), "{}", logged(&output));
    let output = run(example("worker").envs(rds.environment()).arg("--until-empty"));
    assert!(output.status.success(), "{}", logged(&output));
    let said = printed(&output);
    assert!(
        said.starts_with("Aurora DSQL has no LISTEN: the workers poll each second\n"),
        "{said}"
    );
    assert_eq!(number(&rds, "SELECT count(DISTINCT account) * 100 + count(*) FROM ledger"), 1010);
    assert_eq!(number(&rds, "SELECT count(*) FROM jobs WHERE died_at IS NOT NULL"), 1);
}
