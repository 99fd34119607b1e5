//! What to do about a refused login, chosen by what is known of it.

use super::Refusal;

/// How a login is done: with a token for this kind of endpoint, or with a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LoginKind {
    Rds,
    Proxy,
    Dsql,
    /// A token for a name that AWS did not assign, such as a CNAME or `localhost`.
    Other,
    /// `rds_iam_auth=false`.
    Password,
}

impl LoginKind {
    /// Returns what to do, as an instruction.
    pub(crate) fn cure(self, refusal: Refusal) -> &'static str {
        use LoginKind::{Dsql, Password, Proxy, Rds};
        use Refusal::*;
        match (refusal, self) {
            (Token | ProxyToken, Password) => {
                "remove rds_iam_auth=false to log in with a token, or run REVOKE rds_iam FROM \
                 this user"
            }
            (Token | ProxyToken, Rds) => {
                "allow rds-db:connect for this user in the IAM policy of the AWS identity; \
                 `rds-iam doctor` checks the other causes"
            }
            (Token | ProxyToken, Proxy) => {
                "allow rds-db:connect for this user on the proxy's prx- id in the IAM policy; \
                 `rds-iam doctor` checks the other causes"
            }
            (Token | ProxyToken, Dsql) => {
                "allow dsql:DbConnect (dsql:DbConnectAdmin for admin) in the IAM policy, and run \
                 AWS IAM GRANT for this user"
            }
            (Token | ProxyToken, LoginKind::Other) => {
                "set iam_host=, iam_port= and region_name= to those of the endpoint in the RDS \
                 console; then allow rds-db:connect in the IAM policy"
            }
            (NoGrant, Password) => {
                "check the password and the user; remove rds_iam_auth=false to log in with a token"
            }
            (NoGrant, _) => {
                "run GRANT rds_iam TO this user; check that the user exists and that IAM \
                 authentication is turned on"
            }
            (NoEncryption, Password) => "set sslmode=verify-full",
            // A login with a token always uses TLS.
            (NoEncryption, _) => {
                "connect to the RDS endpoint itself: something in between ends TLS"
            }
            (NoEntry, LoginKind::Other | Password) => {
                "check that the server's pg_hba.conf admits this user to this database"
            }
            (NoEntry, _) => {
                "retry for 30 seconds: an Aurora Serverless cluster says this while it resumes \
                 from auto-pause; RDS refuses replication connections always"
            }
            (Truncated, _) => {
                "raise the pooler's limit for passwords to 64 KiB, or connect without the pooler"
            }
            (RootFileMissing, Proxy | Dsql) => {
                "download AmazonRootCA1.pem from Amazon Trust Services and set sslrootcert= to \
                 its path"
            }
            (RootFileMissing, _) => {
                "download the RDS CA bundle (global-bundle.pem) and set sslrootcert= to its path"
            }
            (RootFileUnusable, _) => {
                "make the file readable for this user, and check that it contains PEM certificates"
            }
            (UnknownAuthority, Rds) => "set sslrootcert= to the RDS CA bundle (global-bundle.pem)",
            (UnknownAuthority, Proxy | Dsql) => {
                "set sslrootcert= to AmazonRootCA1.pem: this endpoint's certificate is not \
                 signed by the RDS CA bundle"
            }
            (UnknownAuthority, _) => {
                "set sslrootcert= to the CA that signed the server's certificate (for RDS: \
                 global-bundle.pem)"
            }
            (WrongName, Password) => "connect by a name that the certificate contains",
            (WrongName, _) => {
                "set iam_host= to the endpoint's name in the RDS console: the host is a CNAME, an \
                 address or a tunnel"
            }
            (NoTls, Password) => "turn on TLS on the server, or set sslmode=disable",
            (NoTls, _) => "connect to the RDS endpoint itself: a token is sent only over TLS",
            (ConnectionLimit, _) => {
                "lower max_size of all programs together, or raise max_connections (RDS Proxy \
                 shares connections)"
            }
            (RoleLimit, _) => {
                "lower max_size of all programs together, or raise the CONNECTION LIMIT of the \
                 role or database"
            }
            (LoginRate, _) => "log in less often: keep connections in a pool",
            (NoPassword, _) => {
                "add the password, or remove rds_iam_auth=false to log in with a token"
            }
            (OtherMethod, _) => {
                "check the authentication method of this user in the server's pg_hba.conf"
            }
            (NoLogin, _) => "run ALTER ROLE ... LOGIN for this user",
            (NoConnect, _) => "run GRANT CONNECT ON DATABASE ... TO this user",
            (NoSuchName, _) => "check the names of database and user",
            (BadSetting, _) => "correct this setting in the connection string",
            (OtherRole, _) => "check target_session_attrs, and which of the servers is the writer",
            (UnknownHost, _) => "check the host name, and that this network's DNS knows it",
            (NoResolver, _) => "retry: DNS did not answer; check the resolver of this machine",
            (Timeout, Rds) => {
                "check the security group and the port; an Aurora Serverless cluster resumes \
                 from auto-pause within 30 seconds: retry, or set connect_timeout=30"
            }
            (Timeout, _) => "check the security group, the VPC and the port from this network",
            (NoRoute, _) => "check the route and the VPC from this network to the database",
            (Starting, _) => "wait until the server is up; check its log if this continues",
            (TcpRefused, _) => "check host and port, and that the server is running",
            (Closed, Rds) => {
                "retry: the server stops, fails over or resumes from auto-pause; check its log if \
                 this continues"
            }
            (Closed, _) => {
                "retry: the server, or something before it, closed the connection; check its log"
            }
            (Other, _) => "check the server's log for the cause",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cure_depends_on_the_login_the_endpoint_and_the_sslmode() {
        use LoginKind::{Dsql, Other, Password, Proxy, Rds};
        let cases = [
            (Rds, Refusal::Token, "rds-db:connect"),
            (Proxy, Refusal::ProxyToken, "prx- id"),
            (Dsql, Refusal::Token, "dsql:DbConnect"),
            (Other, Refusal::Token, "iam_host="),
            (Password, Refusal::Token, "REVOKE rds_iam"),
            (Rds, Refusal::NoGrant, "GRANT rds_iam"),
            (Password, Refusal::NoGrant, "check the password"),
            (Rds, Refusal::UnknownAuthority, "global-bundle.pem"),
            (Proxy, Refusal::UnknownAuthority, "AmazonRootCA1.pem"),
            (Dsql, Refusal::RootFileMissing, "AmazonRootCA1.pem"),
            (Rds, Refusal::RootFileUnusable, "readable"),
            (Rds, Refusal::NoEntry, "auto-pause"),
            (Other, Refusal::NoEntry, "pg_hba.conf"),
            (Password, Refusal::NoEncryption, "sslmode=verify-full"),
            (Rds, Refusal::NoEncryption, "in between"),
            (Rds, Refusal::Timeout, "auto-pause"),
        ];
        for (kind, refusal, expected) in cases {
            let cure = kind.cure(refusal);
            assert!(cure.contains(expected), "{kind:?} {refusal:?}: {cure}");
            assert!(cure.len() <= 170, "{} characters: {cure}", cure.len());
        }
    }
}
