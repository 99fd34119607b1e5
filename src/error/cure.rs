//! What to do about a refused login, chosen by what is known of it.

use super::Refusal;

/// What is known of a login before it fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LoginContext {
    pub(crate) method: Method,
    pub(crate) endpoint: EndpointKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Token,
    /// `rds_iam_auth=false`.
    Password,
}

/// The kind of endpoint that a token is signed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndpointKind {
    Rds,
    Proxy,
    Dsql,
    /// A name that AWS did not assign, such as a CNAME or `localhost`.
    Other,
}

impl LoginContext {
    /// Returns what to do, as an instruction.
    pub(crate) fn cure(self, refusal: Refusal) -> &'static str {
        match refusal {
            Refusal::Token | Refusal::ProxyToken => self.refused_token(),
            Refusal::NoGrant => self.no_grant(),
            Refusal::NoEncryption => self.no_encryption(),
            Refusal::NoEntry => self.no_entry(),
            Refusal::Truncated => {
                "raise the pooler's limit for passwords to 64 KiB, or connect without the pooler"
            }
            Refusal::RootFileMissing => self.missing_root_file(),
            Refusal::RootFileUnusable => {
                "make the file readable for this user, and check that it contains PEM certificates"
            }
            Refusal::UnknownAuthority => self.unknown_authority(),
            Refusal::WrongName => self.wrong_name(),
            Refusal::NoTls => self.no_tls(),
            Refusal::ConnectionLimit => {
                "lower max_size of all programs together, or raise max_connections (RDS Proxy \
                 shares connections)"
            }
            Refusal::RoleLimit => {
                "lower max_size of all programs together, or raise the CONNECTION LIMIT of the \
                 role or database"
            }
            Refusal::LoginRate => "log in less often: keep connections in a pool",
            Refusal::NoPassword => {
                "add the password, or remove rds_iam_auth=false to log in with a token"
            }
            Refusal::OtherMethod => {
                "check the authentication method of this user in the server's pg_hba.conf"
            }
            Refusal::NoLogin => "run ALTER ROLE ... LOGIN for this user",
            Refusal::NoConnect => "run GRANT CONNECT ON DATABASE ... TO this user",
            Refusal::NoSuchName => "check the names of database and user",
            Refusal::BadSetting => "correct this setting in the connection string",
            Refusal::OtherRole => {
                "check target_session_attrs, and which of the servers is the writer"
            }
            Refusal::UnknownHost => "check the host name, and that this network's DNS knows it",
            Refusal::NoResolver => "retry: DNS did not answer; check the resolver of this machine",
            Refusal::Timeout => self.timeout(),
            Refusal::NoRoute => "check the route and the VPC from this network to the database",
            Refusal::Starting => "wait until the server is up; check its log if this continues",
            Refusal::TcpRefused => "check host and port, and that the server is running",
            Refusal::Closed => self.closed(),
            Refusal::Other => "check the server's log for the cause",
        }
    }

    fn refused_token(self) -> &'static str {
        match (self.method, self.endpoint) {
            (Method::Password, _) => {
                "remove rds_iam_auth=false to log in with a token, or run REVOKE rds_iam FROM \
                 this user"
            }
            (Method::Token, EndpointKind::Rds) => {
                "allow rds-db:connect for this user in the IAM policy of the AWS identity; \
                 `rds-iam doctor` checks the other causes"
            }
            (Method::Token, EndpointKind::Proxy) => {
                "allow rds-db:connect for this user on the proxy's prx- id in the IAM policy; \
                 `rds-iam doctor` checks the other causes"
            }
            (Method::Token, EndpointKind::Dsql) => {
                "allow dsql:DbConnect (dsql:DbConnectAdmin for admin) in the IAM policy, and run \
                 AWS IAM GRANT for this user"
            }
            (Method::Token, EndpointKind::Other) => {
                "set iam_host= and region_name= to the endpoint's own name and region, as the RDS \
                 console shows them; then allow rds-db:connect in the IAM policy"
            }
        }
    }

    fn no_grant(self) -> &'static str {
        match self.method {
            Method::Token => {
                "run GRANT rds_iam TO this user; check that the user exists and that IAM \
                 authentication is turned on"
            }
            Method::Password => {
                "check the password and the user; remove rds_iam_auth=false to log in with a token"
            }
        }
    }

    /// A login with a token always uses TLS.
    fn no_encryption(self) -> &'static str {
        match self.method {
            Method::Token => "connect to the RDS endpoint itself: something in between ends TLS",
            Method::Password => "set sslmode=verify-full",
        }
    }

    fn no_entry(self) -> &'static str {
        match self.endpoint {
            EndpointKind::Other => {
                "check that the server's pg_hba.conf admits this user to this database"
            }
            _ => {
                "retry for 30 seconds: an Aurora Serverless cluster says this while it resumes \
                 from auto-pause; RDS refuses replication connections always"
            }
        }
    }

    fn missing_root_file(self) -> &'static str {
        match self.endpoint {
            EndpointKind::Proxy | EndpointKind::Dsql => {
                "download AmazonRootCA1.pem from Amazon Trust Services and set sslrootcert= to \
                 its path"
            }
            _ => "download the RDS CA bundle (global-bundle.pem) and set sslrootcert= to its path",
        }
    }

    fn unknown_authority(self) -> &'static str {
        match self.endpoint {
            EndpointKind::Rds => "set sslrootcert= to the RDS CA bundle (global-bundle.pem)",
            EndpointKind::Proxy | EndpointKind::Dsql => {
                "set sslrootcert= to AmazonRootCA1.pem: this endpoint's certificate is not \
                 signed by the RDS CA bundle"
            }
            EndpointKind::Other => {
                "set sslrootcert= to the CA that signed the server's certificate (for RDS: \
                 global-bundle.pem)"
            }
        }
    }

    fn wrong_name(self) -> &'static str {
        match self.method {
            Method::Token => {
                "set iam_host= to the endpoint's name in the RDS console: the host is a CNAME, an \
                 address or a tunnel"
            }
            Method::Password => "connect by a name that the certificate contains",
        }
    }

    fn no_tls(self) -> &'static str {
        match self.method {
            Method::Token => "connect to the RDS endpoint itself: a token is sent only over TLS",
            Method::Password => "turn on TLS on the server, or set sslmode=disable",
        }
    }

    fn timeout(self) -> &'static str {
        match self.endpoint {
            EndpointKind::Rds => {
                "check the security group and the port; an Aurora Serverless cluster resumes \
                 from auto-pause within 30 seconds: retry, or set connect_timeout=30"
            }
            _ => "check the security group, the VPC and the port from this network",
        }
    }

    fn closed(self) -> &'static str {
        match self.endpoint {
            EndpointKind::Rds => {
                "retry: the server stops, fails over or resumes from auto-pause; check its log if \
                 this continues"
            }
            _ => "retry: the server, or something before it, closed the connection; check its log",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RDS: LoginContext = LoginContext { method: Method::Token, endpoint: EndpointKind::Rds };

    #[test]
    fn the_cure_depends_on_the_login_the_endpoint_and_the_sslmode() {
        let at = |endpoint| LoginContext { endpoint, ..RDS };
        let by_password = LoginContext { method: Method::Password, ..RDS };
        let cases = [
            (RDS, Refusal::Token, "rds-db:connect"),
            (at(EndpointKind::Proxy), Refusal::ProxyToken, "prx- id"),
            (at(EndpointKind::Dsql), Refusal::Token, "dsql:DbConnect"),
            (at(EndpointKind::Other), Refusal::Token, "iam_host="),
            (by_password, Refusal::Token, "REVOKE rds_iam"),
            (RDS, Refusal::NoGrant, "GRANT rds_iam"),
            (by_password, Refusal::NoGrant, "check the password"),
            (RDS, Refusal::UnknownAuthority, "global-bundle.pem"),
            (at(EndpointKind::Proxy), Refusal::UnknownAuthority, "AmazonRootCA1.pem"),
            (at(EndpointKind::Dsql), Refusal::RootFileMissing, "AmazonRootCA1.pem"),
            (RDS, Refusal::RootFileUnusable, "readable"),
            (RDS, Refusal::NoEntry, "auto-pause"),
            (at(EndpointKind::Other), Refusal::NoEntry, "pg_hba.conf"),
            (by_password, Refusal::NoEncryption, "sslmode=verify-full"),
            (RDS, Refusal::NoEncryption, "in between"),
            (RDS, Refusal::Timeout, "auto-pause"),
        ];
        for (context, refusal, expected) in cases {
            let cure = context.cure(refusal);
            assert!(cure.contains(expected), "{context:?} {refusal:?}: {cure}");
            assert!(cure.len() <= 170, "{} characters: {cure}", cure.len());
        }
    }
}
