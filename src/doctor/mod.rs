//! Finds out why a login fails, and what to do (feature `doctor`).
//!
//! [`examine`] checks the steps of a login one by one, each with a timeout of 10 seconds. It stops
//! at the first problem:
//!
//! ```no_run
//! use diesel_rds_iam::{RdsConnectionManager, doctor};
//!
//! let url = "postgres://app@db.abc123.eu-west-1.rds.amazonaws.com/app";
//! let report = doctor::examine(&RdsConnectionManager::new(url)?);
//! if let Some((step, diagnosis)) = report.first_failure() {
//!     eprintln!("{}: {diagnosis}", step.name);
//! }
//! # Ok::<(), diesel_rds_iam::Error>(())
//! ```
//!
//! # Steps
//!
//! | step | what it checks |
//! |---|---|
//! | `connection string` | its settings, with all defaults |
//! | `region` | the region, and where it comes from |
//! | `credentials` | their source, masked key id, expiry, and account if it is known |
//! | `DNS` | the addresses; for a name that AWS did not assign, the CNAMEs behind it |
//! | `TCP` | which address accepts a connection |
//! | `TLS` | the server's certificates (on Linux), and whether `sslrootcert` trusts them |
//! | `token` | its length, its expiry, and what it is signed for |
//! | `login` | whether tokio-postgres can log in; if not, the server's text and SQLSTATE |
//! | `libpq` | whether libpq can log in, with all hosts and `target_session_attrs` |
//! | `session` | server version, clock, TLS, role `rds_iam`, latency, whether it accepts writes |
//!
//! The steps from `DNS` to `login` are repeated for each host. They end with the first that fails.
//! With `rds_iam_auth=false` there are only `connection string`, `libpq` and `session`.
//!
//! A token is sent only to a server whose certificate passes the checks of `sslmode`. There is no
//! step `login` if a setting is in force that only libpq applies, such as `sslcrl`, `sslcert` or
//! `ssl_min_protocol_version`: libpq can refuse a server that passes all checks here.
//!
//! # Problems that it recognizes
//!
//! RDS has one text for all refused tokens: "PAM authentication failed for user". What was signed
//! and dialled decides between some causes. The others are *candidates*: the report lists them, the
//! likeliest first, each with a way to check it. The list below names the test of each case. Tests
//! are in `tests/it/doctor.rs`, or in `diagnose.rs` if a case cannot be staged.
//!
//! Certain:
//!
//! - `sslmode=prefer` or weaker, or a token in the connection string:
//!   `a_connection_string_without_a_manager_has_a_report`
//! - expired credentials, by their own expiry: `expired_credentials_are_reported_before_dialling`
//! - a policy on an ECS execution role: `missing_credentials_in_an_ecs_task_need_a_task_role`
//! - a wrong region, if the host name contains the right one: `a_wrong_region_is_the_first_cause`
//! - signed for a CNAME or a tunnel, if the DNS or the certificate contains the RDS name:
//!   `a_cname_is_fixed_by_the_name_in_the_certificate`
//! - a certificate for another name, if it contains an RDS name:
//!   `a_wrong_name_is_fixed_by_the_name_in_the_certificate`
//! - missing root certificates: `a_missing_or_empty_root_file_is_reported_with_a_download`
//! - another authority, if Amazon issued the certificate (Linux): `another_authority_is_reported`
//! - a server without TLS: `a_server_without_tls_is_reported`
//! - not PostgreSQL: `a_server_that_is_not_postgresql_is_reported`
//! - a refused TCP connection: `a_closed_port_is_reported`
//! - an unknown database or too many connections: `an_unknown_database_is_reported`,
//!   `too_many_connections_are_reported`
//! - a user with a password and the role `rds_iam`: `a_password_disabled_by_rds_iam_is_reported`
//! - texts of RDS Proxy and poolers: `texts_of_rds_proxy_and_poolers_are_recognized`
//!
//! Candidates:
//!
//! - no `rds-db:connect`, another account, revoked credentials:
//!   `an_unknown_key_pair_gets_the_policy_statement`
//! - a wrong clock: `a_wrong_clock_is_a_candidate`
//! - more than 200 new logins per second: `an_occasional_refusal_is_a_candidate`
//! - the local end of a tunnel, a CNAME, a region from the configuration, a pooler:
//!   `a_tunnel_needs_the_endpoints_own_name_and_port`, `diagnose`
//! - no role `rds_iam`, no such user, or IAM not turned on: `a_missing_grant_is_reported`
//! - a wrong password: `a_failed_password_login_is_reported`
//! - an expired certificate (Linux), or a wrong clock: `an_expired_certificate_is_reported`
//! - a name without an address: `a_name_without_an_address_is_reported`
//! - no route, a security group, a firewall: `a_network_without_a_route_is_reported`, `diagnose`
//! - silence or a closed connection after TCP: `a_silent_server_is_reported`,
//!   `a_server_that_closes_the_connection_is_reported`

mod checks;
mod diagnose;
mod diagnosis;
mod evidence;
mod examination;
mod network;
mod prescription;
mod tls;

pub use diagnosis::{Cause, Diagnosis, Fact, Report, Step};

use crate::manager::RdsConnectionManager;
use examination::Examination;

/// The step that decides whether a login works.
const LIBPQ: &str = "libpq";

/// Checks each step of a login and stops at the first problem.
///
/// Logs in twice for each host that works. Ignores a [back-off](crate::Error::Paused) of the
/// manager. Blocks for at most 10 seconds per step, and can be called inside of async code.
pub fn examine(manager: &RdsConnectionManager) -> Report {
    examine_with(manager, |_| {})
}

/// Does the same as [`examine`], and calls `on_step` with each step as soon as it has ended.
pub fn examine_with(manager: &RdsConnectionManager, mut on_step: impl FnMut(&Step)) -> Report {
    Examination::run(&manager.login, &mut on_step)
}
