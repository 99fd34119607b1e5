//! The types of AWS' own crates that stand in this crate's signatures.
//!
//! A program that names them from here needs no dependency on those crates.

pub use aws_credential_types::Credentials;
pub use aws_credential_types::provider::error::CredentialsError;
pub use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
pub use aws_smithy_async::time::TimeSource;
