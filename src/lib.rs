//! IAM database authentication for [diesel] on Amazon RDS and Aurora for PostgreSQL.
//!
//! With IAM authentication a database user has no password. It logs in by a token instead, which is
//! signed on this machine with AWS credentials, counts only at login, and dies after 15 minutes. A
//! pool opens connections for as long as its program runs, so each of them needs a token of its
//! own. [`RdsConnectionManager`] does just that:
//!
//! ```no_run
//! use diesel::prelude::*;
//! use diesel_rds_iam::RdsConnectionManager;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let manager = RdsConnectionManager::new("postgres://app@db.abc123.eu-west-1.rds.amazonaws.com/app")?;
//! let pool = manager.build_pool(manager.pool_builder().max_size(8))?;
//! let mut connection = pool.get()?;
//! let one: i32 = diesel::select(diesel::dsl::sql::<diesel::sql_types::Integer>("1")).get_result(&mut connection)?;
//! # Ok(())
//! # }
//! ```
//!
//! Its connections are diesel's own [`PgConnection`](diesel::PgConnection), so all of diesel works
//! on them. (COPY wants `&mut *connection`: diesel implements it for the connection itself and for
//! its own manager's pool only.)
//!
//! # Contents
//!
//! The [`guide`] tells what to do, a chapter for each task: [`aws`](guide::aws),
//! [`tls`](guide::tls), [`pools`](guide::pools), [`per_thread`](guide::per_thread),
//! [`choosing`](guide::choosing), [`async_frameworks`](guide::async_frameworks),
//! [`migrations`](guide::migrations), [`rds_proxy`](guide::rds_proxy),
//! [`failover`](guide::failover), [`accounts`](guide::accounts), [`tunnels`](guide::tunnels),
//! [`local_development`](guide::local_development), [`testing`](guide::testing),
//! [`from_pgx`](guide::from_pgx), [`from_django`](guide::from_django), [`limits`](guide::limits),
//! [`security`](guide::security). This page is the reference:
//!
//! - [`RdsConnectionManager`], the manager, and its [`Builder`] for what a connection string cannot
//!   say;
//! - [`Pool`], r2d2's pool, which tells each waiter why there is no connection;
//! - [`PerThread`], Django's persistent connection per thread, on the same manager;
//! - [`Endpoint`], what a token is signed for,
//! - [`LibpqLogin`], what another program on libpq needs to log in as we do;
//! - [`AuthToken`] and [`presign`], the token by itself: pure and local;
//! - [`Stats`], what a manager has counted, and [`PoolLog`], what its pool has to say;
//! - [`Error`], which names the step that failed, and what to do;
//! - `doctor` (feature `doctor`), which tells why a login fails, step by step;
//! - `local` (feature `local`), a PostgreSQL on this machine that asks for IAM tokens: for tests
//!   and laptops.
//!
//! # Connection strings
//!
//! A connection string is libpq's, as URI or as key/value. What it leaves out comes from libpq's
//! `PG*` variables and service files, then from this table, then from libpq's own defaults:
//!
//! | keyword | default | why |
//! |---|---|---|
//! | `sslmode` | `verify-full` | a token is a password in clear text inside TLS |
//! | `connect_timeout` | 10 s | libpq waits for ever |
//! | `tcp_user_timeout` | 15,000 ms | a query to a host that has gone ends |
//! | `keepalives_idle`, `_interval`, `_count` | 10 s, 5 s, 3 | an idle connection to such a host ends |
//! | `gssencmode` | `disable` | saves a round trip |
//! | `require_auth` | `password` | only a server that wants a token gets one (libpq 16 and newer) |
//! | `fallback_application_name` | the program's name | shows in `pg_stat_activity` |
//!
//! Four keywords are ours, and libpq never sees them. The [`Builder`] has a setter for each, which
//! wins:
//!
//! | keyword | default | meaning |
//! |---|---|---|
//! | `rds_iam_auth` | `true` | with `false`, the string goes to libpq as it is: a login by password, on a laptop |
//! | `region_name` | from the host name, then AWS_REGION, then the profile | the region to sign for |
//! | `iam_host` | the host | the name to sign for and to expect in the certificate, when another one is dialled; of several hosts all have the same, or each its own in a list |
//! | `iam_port` | the port | the port to sign for, when another one is dialled |
//!
//! A URL without a password means IAM. A password together with IAM is an error, and so is an
//! `sslmode` that could send the token in clear text (`disable`, `allow`, `prefer`).
//!
//! A password in the environment (PGPASSWORD) is left unused, with a warning, beside a connection
//! string without one.
//!
//! # Several hosts
//!
//! `host=a,b` and `port=...` are libpq's lists. The hosts are tried in their order, or with
//! `load_balance_hosts=random` in a random one (with every libpq, though it knows this keyword from
//! version 16 on only), each with a token of its own, until one is what `target_session_attrs` asks
//! for: `any`, `read-write`, `read-only`, `primary`, `standby`, or `prefer-standby`, which goes
//! round a second time if there is no standby. A host that refuses its token is passed over, too,
//! with a warning; libpq, which has one password for all, would stop there. When all have failed,
//! [`Error::Hosts`] names each with its cause. Each host has the region that its name tells; the
//! credentials are asked for in that of the first.
//!
//! # When there is no connection
//!
//! r2d2 tries on until connection_timeout has passed, and then tells one waiter the cause. Here
//! [`build_pool`](RdsConnectionManager::build_pool) connects once before it builds the pool, and
//! fails with the cause; and its [`Pool`] tells each waiter the last cause. A pool built by r2d2's
//! own builder works, too, in r2d2's way; [`last_error`](RdsConnectionManager::last_error) has the
//! cause.
//!
//! While nobody listens at the server's port, or the server says that it starts up or shuts down,
//! [`connect`](r2d2::ManageConnection::connect) tries again every 100 ms, and while a server is not
//! what `target_session_attrs` wants, every second; for `connect_timeout` and at most 10 seconds.
//! So a pool is back when the server is, where r2d2's own pauses grow to half its
//! connection_timeout. After a refusal that waiting does not mend (no role rds_iam, a bad
//! certificate, an unknown database) the next attempts are paused, for 1 second, 2, 4, 8 and then
//! always 10, as refused logins count against the server's limits: in a pause `connect` fails with
//! the same cause and does not dial. From the fifth failure of another kind in a row they are
//! paused for 100 ms. A success ends that, and so does a failure of another kind. What each fault
//! costs was [measured](guide::faults).
//!
//! # Credentials
//!
//! They come from AWS configuration, as for every AWS SDK: environment, profile (with
//! `credential_process`, `role_arn` and SSO), web identity (EKS), container (ECS, EKS Pod
//! Identity), instance metadata; or from a [`profile`](Builder::profile), a role
//! ([`assume_role`](Builder::assume_role)) or a [provider](Builder::credentials_provider) given to
//! the builder. Nothing of this is read from a URL.
//!
//! Signing a token takes microseconds, but asking for credentials can take a network call, so they
//! are cached. One thread of ours asks, for all managers of the process; it starts with the first
//! connection and ends with the last manager. Callers wait for it only when there is nothing usable
//! or when the server has refused a token, [`credentials_timeout`](Builder::credentials_timeout) at
//! most: refreshes come in the background, five minutes before the end (or a quarter of a shorter
//! life), and while they fail the old pair serves on. Wall time decides what has ended. A refused
//! pair is refreshed, for it may have been rotated, and a new one is tried once; if it is still the
//! same, the source is left alone for a second, doubled each time up to a minute. Managers of the
//! same settings in the same region share a cache.
//!
//! [`connect`](r2d2::ManageConnection::connect) and [`token`](RdsConnectionManager::token) block,
//! as all of diesel does, but no async runtime around them is entered or dropped: they work inside
//! of tokio as outside.
//!
//! # The life of a connection
//!
//! A token counts only at login, so open connections outlive it. They end by age:
//! [`max_lifetime`](Builder::max_lifetime) is 14 minutes less up to a tenth, and holds for busy
//! connections too, at their check-in and checkout (r2d2 by itself looks at idle ones only). One
//! that the server has closed, or that was left in a transaction begun through diesel, is not given
//! out again. After a COPY, after any error but a violated constraint outside of a transaction, and
//! after more than [`validate_after`](Builder::validate_after) of idleness, a checkout asks the
//! server; and once after another connection was found closed, for a server that restarts closes
//! all. Otherwise it makes no round trip, and just looks at the socket: one that the server is
//! about to close can slip through, as it can right after an answer. After a read-only error, and
//! always with `target_session_attrs=read-write` or `primary`, it also asks whether the server
//! still is the primary, and retires a connection to one that is not.
//!
//! A host that vanishes without a word, as one that loses its power, is noticed by these defaults
//! within 15 seconds: by a query in flight, by one that is sent into the silence, by a checkout
//! that asks, and on an idle connection. A login notices within 10, for each address. (Measured on
//! Linux with a cut cable: 15.2 to 15.6 seconds, and 10.0. By keepalives alone a query in flight
//! ends after 25 seconds, and one that is sent into the silence goes on until the kernel gives up,
//! after a quarter of an hour.) r2d2 does not count a checkout's question as connection_timeout.
//!
//! What is known of a connection is kept in its
//! [`Instrumentation`](diesel::connection::Instrumentation), around the default one, which is made
//! a second time for it: the first hears of connecting, the second of queries. A connection that
//! you give one of your own is asked about at each checkout; in a pool r2d2's reaper ends it. Where
//! a query says LISTEN, the connection is asked about from then on, too, for the look at the socket
//! would take its notifications; a LISTEN that only the server sees, inside of a function, is not
//! known of, and a notification can be lost.
//!
//! # Root certificates
//!
//! libpq reads and parses `sslrootcert` at each connect. AWS's bundle for all regions holds more
//! than a hundred certificates, and costs ten times the CPU of the login itself. So, on Linux,
//! libpq gets a file in memory that lacks the roots named for other regions (`Amazon RDS eu-west-1
//! Root CA RSA2048 G1`) than those of the hosts; it is made anew when the original changes. A file
//! that holds none of those, or anything else than certificates, is used as it is.
//!
//! # Aurora DSQL
//!
//! A host `CLUSTER.dsql.REGION.on.aws` gets DSQL tokens: `DbConnectAdmin` for the user `admin`,
//! `DbConnect` for all others. DSQL ends each connection after 60 minutes; the pool's 14 minutes
//! are within that.
//!
//! # Features
//!
//! - `credentials-process` (on by default): programs that print credentials, named in a profile;
//! - `sso`: profiles of IAM Identity Center (`aws sso login`), as on a laptop;
//! - `doctor`: the diagnosis of a login that fails;
//! - `local`: the stand-in for RDS;
//! - `cli`: the program `rds-iam`, which lends its login to the diesel CLI, psql, and whatever is
//!   built on libpq. It includes `sso` and `doctor`.
//!
//! # Logging
//!
//! Through [`log`]: *error* for a login that failed, *warn* for what works but not as meant, *info*
//! for the settings of a new manager, *debug* for each connect, refresh of credentials and
//! retirement, *trace* for each checkout of a pool ([`PoolLog`]). No level shows a secret. Mind
//! diesel's own instrumentation: a default one set by
//! [`diesel::connection::set_default_instrumentation`] is handed the connection string of each new
//! connection, token included. Who else can see one, [`guide::security`] tells.
#![deny(missing_docs, unsafe_code)]
// docs.rs says of each item which feature it is of.
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod aws;
mod builder;
mod connection;
mod conninfo;
mod credentials;
#[cfg(feature = "doctor")]
pub mod doctor;
mod error;
// Who fuzzes a program of his own sets the cfg for us, too.
#[cfg(all(fuzzing, feature = "local"))]
#[doc(hidden)]
pub mod fuzzing;
// Text, of which no program has need. Its examples run on a LocalRds.
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
pub use error::{Error, LoginFailure, Retirement};
pub use libpq_login::LibpqLogin;
pub use manager::RdsConnectionManager;
pub use pool::{PerThread, PerThreadConnection, Pool, PoolLog};
pub use stats::Stats;
pub use token::{AuthToken, Endpoint, presign};

/// The README's examples are tests, too.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
