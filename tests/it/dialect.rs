//! `LocalRds::builder().dsql()`: the login, and the limits of Aurora DSQL. Which statements it
//! refuses is compared with others in `dialect_judge`.

use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::result::DatabaseErrorKind as Kind;
use diesel::result::Error as QueryError;
use diesel::sql_types::{BigInt, Bool, Text};
use diesel_rds_iam::local::{LocalRds, Refusal};
use diesel_rds_iam::r2d2::ManageConnection;

use crate::support::{eventually, last_verdict, log_in, refused, start, token_of};

fn dialect() -> LocalRds {
    start(LocalRds::builder().dsql())
}

fn connect(rds: &LocalRds) -> PgConnection {
    rds.manager().unwrap().connect().unwrap()
}

fn rejection(connection: &mut PgConnection, sql: &str) -> String {
    match connection.batch_execute(sql) {
        Ok(()) => panic!("accepted: {sql}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn the_endpoint_and_the_tokens_are_those_of_dsql() {
    let rds = start(LocalRds::builder().region("eu-west-1").dsql());
    assert!(rds.endpoint().host().ends_with(".dsql.eu-west-1.on.aws"), "{}", rds.endpoint());
    let token = token_of(&rds, std::time::SystemTime::now());
    assert!(token.contains(".on.aws/?Action=DbConnect&") && token.contains("%2Fdsql%2F"));
    connect(&rds);
    let admin = rds.manager_builder().build(rds.database_url_for("admin")).unwrap();
    admin.connect().unwrap();
    // A token for users is not one for the admin.
    log_in(&rds, "admin", &token).unwrap_err();
    assert_eq!(last_verdict(&rds), Err(Refusal::Wrong { parameter: "Action" }));
    log_in(&rds, LocalRds::USER_WITHOUT_GRANT, "x").unwrap_err();
    log_in(&rds, LocalRds::USER_WITH_PASSWORD, rds.password()).unwrap();
}
