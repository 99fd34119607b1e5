//! The guide: one chapter for each task.
//!
//! Each chapter starts with what you want to do, gives the steps, and ends with what can go wrong.
//! The reference is on the [crate's own page](crate) and on the items that it lists.
//!
#![doc = include_str!("contents.md")]
//! The names in the examples stand for your own names:
//!
//! - `db` is an instance, and `db.abc123.eu-west-1.rds.amazonaws.com` its endpoint.
//! - `app` is the database and its user.
//! - `111122223333` is your account, and `444455556666` another one.
//!
//! The tests run each block of Rust, `sh` and `sql` as it is printed here, on a
//! [stand-in for RDS](testing) and a mock of AWS. Blocks that need the real RDS, and files for
//! Docker, Kubernetes, GitHub and Terraform, are checked for their syntax only.

#[doc = include_str!("aws.md")]
pub mod aws {}

#[doc = include_str!("tls.md")]
pub mod tls {}

#[doc = include_str!("connection_strings.md")]
pub mod connection_strings {}

#[doc = include_str!("credentials.md")]
pub mod credentials {}

// Both sides of its diff are compiled and run by tests/it/guide.
#[doc = include_str!("from_diesel.md")]
pub mod from_diesel {}

#[doc = include_str!("pools.md")]
pub mod pools {}

#[doc = include_str!("per_thread.md")]
pub mod per_thread {}

#[doc = include_str!("choosing.md")]
pub mod choosing {}

#[doc = include_str!("transactions.md")]
pub mod transactions {}

// Its examples are tests in tests/frameworks: actix-web and Rocket turn on the feature log of
// tracing, and with it the log of the AWS SDK, so they are no dependencies of this package.
#[cfg_attr(not(doctest), doc = include_str!("async_frameworks.md"))]
pub mod async_frameworks {}

#[doc = include_str!("connections.md")]
pub mod connections {}

#[doc = include_str!("errors.md")]
pub mod errors {}

#[doc = include_str!("hosts.md")]
pub mod hosts {}

#[doc = include_str!("failover.md")]
pub mod failover {}

#[doc = include_str!("rds_proxy.md")]
pub mod rds_proxy {}

#[doc = include_str!("dsql.md")]
pub mod dsql {}

#[doc = include_str!("accounts.md")]
pub mod accounts {}

#[doc = include_str!("tunnels.md")]
pub mod tunnels {}

#[doc = include_str!("migrations.md")]
pub mod migrations {}

#[doc = include_str!("local_development.md")]
pub mod local_development {}

#[doc = include_str!("testing.md")]
pub mod testing {}

#[doc = include_str!("from_pgx.md")]
pub mod from_pgx {}

#[doc = include_str!("from_hikari.md")]
pub mod from_hikari {}

#[doc = include_str!("from_django.md")]
pub mod from_django {}

#[doc = include_str!("limits.md")]
pub mod limits {}

// tests/it/faults reads its bounds from the tables.
#[doc = include_str!("faults.md")]
pub mod faults {}

#[doc = include_str!("security.md")]
pub mod security {}

#[doc = include_str!("tested.md")]
pub mod tested {}
