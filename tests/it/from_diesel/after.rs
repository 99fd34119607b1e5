use diesel::prelude::*;
use diesel_rds_iam::r2d2::{CustomizeConnection, PooledConnection};
use diesel_rds_iam::{Error, Pool, RdsConnectionManager};

pub(crate) type DbPool = Pool;
pub(crate) type DbConnection = PooledConnection<RdsConnectionManager>;

#[derive(Debug)]
struct Limits;

impl CustomizeConnection<PgConnection, Error> for Limits {
    fn on_acquire(&self, connection: &mut PgConnection) -> Result<(), Error> {
        let query = diesel::sql_query("SET statement_timeout = '5s'");
        query.execute(connection).map(drop).map_err(Error::Query)
    }
}

pub(crate) fn pool(url: &str) -> Result<DbPool, Error> {
    let manager = RdsConnectionManager::new(url)?;
    manager.build_pool(manager.pool_builder().max_size(2).connection_customizer(Box::new(Limits)))
}

pub(crate) fn connection(pool: &DbPool) -> Result<DbConnection, Error> {
    pool.get()
}

pub(crate) fn answer(connection: &mut DbConnection) -> QueryResult<i32> {
    diesel::select(6.into_sql::<diesel::sql_types::Integer>() * 7).get_result(connection)
}
