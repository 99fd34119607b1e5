//! IAM database authentication for [diesel] on Amazon RDS and Aurora for PostgreSQL.
//!
//! With IAM authentication a database user has no password. The program signs a token with its AWS
//! credentials and sends the token as the password. The server checks it at login only, and it
//! expires after 15 minutes. A pool opens new connections as long as its program runs, so each
//! connection needs a new token. [`RdsConnectionManager`] signs one for each login:
//!
//! ```no_run
//! use diesel::prelude::*;
//! use diesel_rds_iam::RdsConnectionManager;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let url = "postgres://app@db.abc123.eu-west-1.rds.amazonaws.com/app";
//! let manager = RdsConnectionManager::new(url)?;
//! let pool = manager.build_pool(manager.pool_builder().max_size(8))?;
//! let mut connection = pool.get()?;
//! diesel::sql_query("SELECT 1").execute(&mut connection)?;
//! # Ok(())
//! # }
//! ```
//!
//! The URL needs a file of root certificates beside it: [install the root certificates](guide::tls)
//! shows the two lines. The database needs a user with the role `rds_iam` and an IAM policy: [set
//! up AWS and the database](guide::aws) has the steps.
//!
//! Connections are diesel's own [`PgConnection`](diesel::PgConnection), so queries stay as they
//! are. [Change from diesel's manager](guide::from_diesel) shows what changes in a program.
//!
//! # Contents
//!
//! | item | what it is |
//! |---|---|
//! | [`RdsConnectionManager`] | the connection manager; a [`Builder`] has further settings |
//! | [`Pool`] | r2d2's pool, with the cause if there is no connection |
//! | [`PerThread`] | one persistent connection per thread, as in Django |
//! | [`TransactionBuilder`] | transactions that are retried and whose outcome is known |
//! | [`Error`] | what failed and what to do |
//! | [`Stats`], [`Histogram`], [`PoolLog`] | figures of a manager, and the log of its pool |
//! | [`AuthToken`], [`presign`], [`Endpoint`] | the token by itself, signed without network access |
//! | [`LibpqLogin`] | the same login for psql, pg_dump and other programs on libpq |
//! | [`dsql`] | runs migrations on Aurora DSQL |
//! | `doctor` (feature `doctor`) | checks a login step by step and reports what is wrong |
//! | `local` (feature `local`) | a PostgreSQL on this machine that accepts IAM tokens, for tests |
//!
//! The [`guide`] has a chapter for each task:
//!
#![doc = include_str!("guide/contents.md")]
//! # Features
//!
//! | feature | default | what it adds |
//! |---|---|---|
//! | `credentials-process` | on | profiles with `credential_process`, a program that prints credentials |
//! | `credentials-login` | off | profiles of `aws login`, as people have on a laptop |
//! | `sso` | off | profiles of IAM Identity Center (`aws sso login`), as people have on a laptop |
//! | `doctor` | off | the module `doctor` |
//! | `local` | off | the module `local` |
//!
//! # Logging
//!
//! Log lines go through [`log`]:
//!
//! | level | what |
//! |---|---|
//! | error | a failed login or hook of a new connection, once per cause until a login succeeds; an error of your `CustomizeConnection` |
//! | warn | what works but not as intended: a weak `sslmode`, a refused host among several, a failed refresh of credentials; the first timeout or slow checkout of a pool; a connection that stays in use past `leak_detection_threshold`; a login that succeeds after failures, with their number |
//! | info | the settings of a new manager |
//! | debug | each login, each refresh of credentials, each closed connection |
//! | trace | each checkout and check-in of a pool |
//!
//! No log line of this crate contains a secret. But a default instrumentation that the program sets
//! with [`diesel::connection::set_default_instrumentation`] gets the connection string of each new
//! connection, token included. [Security](guide::security) lists everything that can see a token.
//!
//! [diesel]: https://diesel.rs
#![deny(missing_docs, unsafe_code)]
// docs.rs shows the feature of each item.
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod aws;
mod backoff;
mod builder;
mod connection;
mod conninfo;
mod credentials;
#[cfg(feature = "doctor")]
pub mod doctor;
pub mod dsql;
mod error;
// A fuzzed program sets the cfg for its dependencies too, so it is not part of the API.
#[cfg(all(fuzzing, feature = "local"))]
#[doc(hidden)]
pub mod fuzzing;
// Only rustdoc needs it. Its examples run on a LocalRds.
#[cfg(all(doc, any(feature = "local", not(doctest))))]
pub mod guide;
mod libpq_login;
#[cfg(feature = "local")]
pub mod local;
mod login;
mod manager;
mod pool;
mod stats;
mod token;

pub use aws::Credentials;
pub use r2d2;

pub use builder::Builder;
pub use conninfo::Topology;
pub use error::{Error, LoginFailure, Retirement};
pub use libpq_login::LibpqLogin;
pub use manager::RdsConnectionManager;
pub use pool::{
    PerThread, PerThreadConnection, Pool, PoolLog, TransactionBuilder, TransactionError,
};
pub use stats::{Histogram, Stats};
pub use token::{AuthToken, Endpoint, presign};

/// Makes doc tests of the README's examples.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
