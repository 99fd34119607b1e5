//! IAM database authentication for diesel.
#![deny(unsafe_code)]

mod conninfo;
mod credentials;
mod endpoint;
mod error;
mod https;
mod libpq;
#[cfg(feature = "local")]
pub mod local;
mod manager;
mod token;

pub use aws_credential_types::Credentials;
pub use endpoint::{Endpoint, HostKind, HostName};
pub use error::Error;
pub use manager::{Builder, RdsConnectionManager};
pub use r2d2;
pub use token::{AuthToken, presign};
