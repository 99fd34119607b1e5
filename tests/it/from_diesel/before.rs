use diesel::prelude::*;
use diesel::r2d2::{ConnectionManager, CustomizeConnection, Error, Pool, PooledConnection};

pub(crate) type DbPool = Pool<ConnectionManager<PgConnection>>;
pub(crate) type DbConnection = PooledConnection<ConnectionManager<PgConnection>>;

#[derive(Debug)]
struct Limits;

impl CustomizeConnection<PgConnection, Error> for Limits {
    fn on_acquire(&self, connection: &mut PgConnection) -> Result<(), Error> {
        let query = diesel::sql_query("SET statement_timeout = '5s'");
        query.execute(connection).map(drop).map_err(Error::QueryError)
    }
}

pub(crate) fn pool(url: &str) -> Result<DbPool, r2d2::Error> {
    let manager = ConnectionManager::<PgConnection>::new(url);
    Pool::builder().max_size(2).connection_customizer(Box::new(Limits)).build(manager)
}

pub(crate) fn connection(pool: &DbPool) -> Result<DbConnection, r2d2::Error> {
    pool.get()
}

pub(crate) fn answer(connection: &mut DbConnection) -> QueryResult<i32> {
    diesel::select(6.into_sql::<diesel::sql_types::Integer>() * 7).get_result(connection)
}
