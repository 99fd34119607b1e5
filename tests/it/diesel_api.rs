//! All of diesel works on a pooled connection, as with diesel's manager.

use std::io::Read;

use diesel::prelude::*;
use diesel::sql_types::Text;
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use diesel_rds_iam::RdsConnectionManager;
use diesel_rds_iam::local::LocalRds;
use diesel_rds_iam::r2d2::{Pool, PooledConnection};

use crate::support::{manager, start};

#[path = "../../examples/schema.rs"]
mod schema;
use schema::notes;

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("examples/migrations");

type Pooled = PooledConnection<RdsConnectionManager>;

fn with_connection(test: impl FnOnce(&mut Pooled)) {
    let rds = start(LocalRds::builder());
    let manager = manager(&rds);
    let pool: Pool<RdsConnectionManager> =
        manager.pool_builder().max_size(1).build(manager).unwrap();
    let mut connection = pool.get().unwrap();
    connection.run_pending_migrations(MIGRATIONS).unwrap();
    test(&mut connection);
}

fn add(connection: &mut Pooled, text: &str) {
    diesel::insert_into(notes::table).values(notes::text.eq(text)).execute(connection).unwrap();
}

fn texts(connection: &mut Pooled) -> Vec<String> {
    notes::table.order(notes::id).select(notes::text).load(connection).unwrap()
}

#[test]
fn queries() {
    with_connection(|connection| {
        add(connection, "one");
        diesel::update(notes::table).set(notes::text.eq("two")).execute(connection).unwrap();
        assert_eq!(texts(connection), ["two"]);
        diesel::delete(notes::table).execute(connection).unwrap();
        assert!(texts(connection).is_empty());
    });
}

#[test]
fn transactions() {
    with_connection(|connection| {
        let rolled_back = connection.transaction(|connection| {
            add(connection, "lost");
            Err::<(), _>(diesel::result::Error::RollbackTransaction)
        });
        assert!(rolled_back.is_err());
        connection
            .transaction(|connection| {
                add(connection, "kept");
                diesel::QueryResult::Ok(())
            })
            .unwrap();
        connection
            .build_transaction()
            .serializable()
            .run(|connection| {
                assert_eq!(texts_of(connection), ["kept"]);
                diesel::QueryResult::Ok(())
            })
            .unwrap();
    });
}

fn texts_of(connection: &mut PgConnection) -> Vec<String> {
    notes::table.select(notes::text).load(connection).unwrap()
}

#[test]
fn test_transaction() {
    with_connection(|connection| {
        connection.test_transaction::<_, diesel::result::Error, _>(|connection| {
            add(connection, "for this test only");
            assert_eq!(texts(connection).len(), 1);
            Ok(())
        });
        assert!(texts(connection).is_empty());
    });
}

#[test]
fn migrations() {
    with_connection(|connection| {
        assert!(!connection.has_pending_migration(MIGRATIONS).unwrap());
        let reverted = connection.revert_all_migrations(MIGRATIONS).unwrap().len();
        assert_eq!(connection.run_pending_migrations(MIGRATIONS).unwrap().len(), reverted);
        assert!(reverted > 0);
    });
}

#[derive(Insertable)]
#[diesel(table_name = notes, treat_none_as_default_value = false)]
struct NewNote {
    text: &'static str,
}

/// Needs `&mut *`: diesel implements COPY for `PgConnection` and for the pool of its own manager
/// only.
#[test]
fn copy_in_and_out() {
    with_connection(|connection| {
        let rows = vec![NewNote { text: "one" }, NewNote { text: "two" }];
        let copied = diesel::copy_from(notes::table)
            .from_insertable(&rows)
            .execute(&mut **connection)
            .unwrap();
        assert_eq!(copied, 2);
        let mut out = String::new();
        diesel::copy_to(notes::table)
            .load_raw(&mut **connection)
            .unwrap()
            .read_to_string(&mut out)
            .unwrap();
        assert!(out.contains("\tone\t") && out.contains("\ttwo\t"), "{out:?}");
    });
}

#[test]
fn listen_and_notify() {
    with_connection(|connection| {
        diesel::sql_query("LISTEN notes").execute(connection).unwrap();
        diesel::sql_query("NOTIFY notes, 'hello'").execute(connection).unwrap();
        let notifications: Vec<_> =
            connection.notifications_iter().collect::<Result<_, _>>().unwrap();
        assert_eq!(notifications[0].payload, "hello");
    });
}

#[test]
fn raw_sql_over_tls() {
    #[derive(QueryableByName)]
    struct Tls {
        #[diesel(sql_type = Text)]
        version: String,
    }
    with_connection(|connection| {
        let query = "SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        let tls: Tls = diesel::sql_query(query).get_result(connection).unwrap();
        assert!(tls.version.starts_with("TLSv1."), "{}", tls.version);
    });
}
