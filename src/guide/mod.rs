//! The guide: what to do, step by step, a chapter for each task.
//!
//! Each chapter begins with what you want, gives the steps, and ends with what can go wrong. The
//! reference is the [crate's own page](crate), and the items that it names.
//!
//! | chapter | what you want |
//! |---|---|
//! | [`aws`] | a database that lets your program in by IAM |
//! | [`tls`] | the CA bundle in its place, and what each error about it means |
//! | [`pools`] | a pool of the right size, that survives an outage and tells how it is |
//! | [`per_thread`] | one persistent connection per thread, as Django keeps them |
//! | [`choosing`] | to choose between the two |
//! | [`async_frameworks`] | a pool under actix-web, axum or Rocket |
//! | [`migrations`] | migrations in CI, in Kubernetes, and by your own program |
//! | [`rds_proxy`] | to go through RDS Proxy |
//! | [`failover`] | to follow the writer, with Aurora and with several hosts |
//! | [`faults`] | to know what an outage costs, by kind |
//! | [`accounts`] | a database in another AWS account |
//! | [`tunnels`] | to reach the database through SSH, Session Manager, kubectl, or by a CNAME |
//! | [`local_development`] | the same program on a laptop |
//! | [`testing`] | to test your own code, outages included |
//! | [`from_pgx`] | to find what you know from pgx |
//! | [`from_django`] | to find what you know from Django |
//! | [`limits`] | to know the numbers |
//! | [`security`] | to know who can see a token |
//!
//! The names in the examples stand for your own: the instance `db`, its endpoint
//! `db.abc123.eu-west-1.rds.amazonaws.com`, the user and database `app`, the accounts
//! `111122223333` (yours) and `444455556666` (another). What stands in a block of Rust, `sh` or
//! `sql` is run by the tests, as it is printed here, on a [stand-in for RDS](testing) and a mock of
//! AWS. What needs the real one, and files for Docker, Kubernetes, GitHub and Terraform, are
//! checked for their form.

#[doc = include_str!("aws.md")]
pub mod aws {}

#[doc = include_str!("tls.md")]
pub mod tls {}

#[doc = include_str!("pools.md")]
pub mod pools {}

#[doc = include_str!("per_thread.md")]
pub mod per_thread {}

#[doc = include_str!("choosing.md")]
pub mod choosing {}

// Its examples are tests in tests/frameworks, for actix-web and rocket are no dependencies of ours:
// they turn on the feature log of tracing, and with it the log of the AWS SDK.
#[cfg_attr(not(doctest), doc = include_str!("async_frameworks.md"))]
pub mod async_frameworks {}

#[doc = include_str!("migrations.md")]
pub mod migrations {}

#[doc = include_str!("rds_proxy.md")]
pub mod rds_proxy {}

#[doc = include_str!("failover.md")]
pub mod failover {}

// Its bounds are those of the tests: tests/it/faults reads them here.
#[doc = include_str!("faults.md")]
pub mod faults {}

#[doc = include_str!("accounts.md")]
pub mod accounts {}

#[doc = include_str!("tunnels.md")]
pub mod tunnels {}

#[doc = include_str!("local_development.md")]
pub mod local_development {}

#[doc = include_str!("testing.md")]
pub mod testing {}

#[doc = include_str!("from_pgx.md")]
pub mod from_pgx {}

#[doc = include_str!("from_django.md")]
pub mod from_django {}

#[doc = include_str!("limits.md")]
pub mod limits {}

#[doc = include_str!("security.md")]
pub mod security {}
