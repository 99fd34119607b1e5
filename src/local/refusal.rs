//! Why the server refused a token.

/// The reason why a token was refused. The client does not learn it, as on RDS.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The password does not have the form `HOST:PORT/?NAME=VALUE&...`.
    #[error("not a token")]
    NotAToken,
    /// A parameter is not percent-encoded as SigV4 requires.
    #[error("{parameter} is not percent-encoded as SigV4 requires")]
    #[non_exhaustive]
    Encoding {
        /// The name of the parameter.
        parameter: String,
    },
    /// A parameter occurs twice.
    #[error("{parameter} occurs twice")]
    #[non_exhaustive]
    Duplicate {
        /// The name of the parameter.
        parameter: String,
    },
    /// A parameter is missing.
    #[error("{parameter} is missing")]
    #[non_exhaustive]
    Missing {
        /// The name of the parameter.
        parameter: &'static str,
    },
    /// A parameter has a value that is not valid in a token.
    #[error("{parameter} has a wrong value")]
    #[non_exhaustive]
    Wrong {
        /// The name of the parameter.
        parameter: &'static str,
    },
    /// The token was signed for another host or port.
    #[error("signed for another endpoint")]
    Endpoint,
    /// The token was signed for another user.
    #[error("signed for another user")]
    User,
    /// The token was signed for another service.
    #[error("signed for another service")]
    Service,
    /// The token was signed for another region.
    #[error("signed for another region")]
    Region,
    /// The token was signed with a key pair that the server does not trust.
    #[error("signed with an unknown key pair")]
    UnknownKeyPair,
    /// The session token is not the one that belongs to the key pair.
    #[error("the session token does not belong to the key pair")]
    SessionToken,
    /// The signature does not match the request.
    #[error("wrong signature")]
    Signature,
    /// The lifetime of the token is over.
    #[error("the token has expired")]
    Expired,
    /// The key pair that signed the token has expired.
    #[error("the key pair has expired")]
    KeyPairExpired,
    /// The token was signed more than 5 minutes in the future.
    #[error("signed in the future")]
    Future,
    /// [`LocalRds::refuse_next`](super::LocalRds::refuse_next) requested the refusal.
    #[error("refused by LocalRds::refuse_next")]
    Asked,
}
