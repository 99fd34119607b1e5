//! [`Evidence`]: what the steps so far found out. [`Symptom`]: how a step failed.

use std::fmt;
use std::net::IpAddr;

use crate::error::{LoginKind, Refusal, one_line};
use crate::login::{RegionFrom, Target};
use crate::token::{Endpoint, HostKind, HostName};

/// A text from outside: of a server, a certificate, the DNS. It can hold escape sequences of a
/// terminal, or the token that a server sends back, so it is displayed only as one clean line.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Untrusted(String);

impl Untrusted {
    pub(super) fn new(text: impl Into<String>) -> Untrusted {
        Untrusted(text.into())
    }

    pub(super) fn refusal(&self) -> Refusal {
        Refusal::of(&self.0)
    }

    pub(super) fn host_name(&self) -> Option<HostName> {
        HostName::parse(self.0.trim_end_matches('.')).ok()
    }

    pub(super) fn is_of_amazon(&self) -> bool {
        self.0.contains("Amazon")
    }
}

impl fmt::Display for Untrusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&one_line(&self.0))
    }
}

impl fmt::Debug for Untrusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How a step failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Symptom {
    /// The name has no address.
    NoAddress(Untrusted),
    /// The TCP connection was refused.
    TcpRefused(Untrusted),
    /// The TCP connection was not answered.
    NoRoute(Untrusted),
    /// TCP is accepted, and then nothing arrives.
    Silence,
    /// TCP is accepted, and then closed.
    ClosedBeforeTls(Untrusted),
    /// TLS is established, and the connection is closed when the token arrives.
    ClosedAtLogin(Untrusted),
    /// The server does not speak PostgreSQL.
    NotPostgres(Untrusted),
    /// PostgreSQL without TLS.
    NoTls,
    /// The file of root certificates cannot be used.
    RootFile { text: Untrusted, is_missing: bool },
    /// The certificate is not signed by any of the root certificates.
    UnknownAuthority { tls: Untrusted, roots: String, issuer: Option<Untrusted> },
    /// The certificate has expired, or is not valid yet.
    Expired { tls: Untrusted, is_early: bool },
    /// The certificate is for other names.
    WrongName { tls: Untrusted, name: String },
    /// A server or libpq said something.
    Refused { text: Untrusted, sqlstate: Option<Untrusted> },
}

impl Symptom {
    pub(super) fn refused(text: impl Into<String>) -> Symptom {
        Symptom::Refused { text: Untrusted::new(text), sqlstate: None }
    }
}

/// A plain sentence first. What OpenSSL says follows in brackets.
impl fmt::Display for Symptom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Symptom::Silence => f.write_str("the server accepts TCP but does not answer"),
            Symptom::NotPostgres(text) => write!(f, "the server does not speak PostgreSQL: {text}"),
            Symptom::NoTls => f.write_str("the server does not support TLS"),
            Symptom::UnknownAuthority { tls, .. } => {
                write!(f, "the server's certificate is not trusted ({tls})")
            }
            Symptom::Expired { tls, is_early: false } => {
                write!(f, "the server's certificate has expired ({tls})")
            }
            Symptom::Expired { tls, is_early: true } => {
                write!(f, "the server's certificate is not valid yet ({tls})")
            }
            Symptom::WrongName { tls, name } => {
                write!(f, "the server's certificate is not for {name} ({tls})")
            }
            Symptom::Refused { text, sqlstate: Some(sqlstate) } => {
                write!(f, "{text} (SQLSTATE {sqlstate})")
            }
            Symptom::NoAddress(text)
            | Symptom::TcpRefused(text)
            | Symptom::NoRoute(text)
            | Symptom::ClosedBeforeTls(text)
            | Symptom::ClosedAtLogin(text)
            | Symptom::RootFile { text, .. }
            | Symptom::Refused { text, .. } => write!(f, "{text}"),
        }
    }
}

/// What is known of a host and of the login there. It contains no secret.
#[derive(Debug, Clone)]
pub(super) struct Evidence {
    pub(super) user: String,
    /// The name that is dialled, or the address if there is no name.
    pub(super) host: String,
    pub(super) port: u16,
    /// What the token is signed for.
    pub(super) endpoint: Endpoint,
    pub(super) login: LoginKind,
    pub(super) region_from: RegionFrom,
    /// The AWS account of the credentials, if they contain it.
    pub(super) account: Option<String>,
    pub(super) addresses: Vec<IpAddr>,
    /// The names behind the dialled one: CNAMEs, then those in the server's certificate.
    pub(super) names: Vec<Untrusted>,
    /// In bytes.
    pub(super) token_length: usize,
    /// Why a `LocalRds` refused the token.
    pub(super) local_verdict: Option<Untrusted>,
}

impl fmt::Display for RegionFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RegionFrom::Setting => "region_name",
            RegionFrom::HostName => "the host name",
            RegionFrom::Configuration => "AWS_REGION or the AWS profile",
        })
    }
}

impl Evidence {
    pub(super) fn new(target: &Target) -> Evidence {
        Evidence {
            user: target.user.clone(),
            host: target.host.dialled().to_owned(),
            port: target.host.port,
            endpoint: target.endpoint.clone(),
            login: target.login(),
            region_from: target.region_from,
            account: None,
            addresses: Vec::new(),
            names: Vec::new(),
            token_length: 0,
            local_verdict: None,
        }
    }

    /// Reads the verdict of the `LocalRds` whose environment this process has.
    pub(super) fn with_local_verdict(&self) -> Evidence {
        let file = std::env::var_os("RDS_IAM_LOCAL_VERDICT").filter(|file| !file.is_empty());
        let text = file.and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
        let local_verdict = (!text.is_empty()).then(|| Untrusted::new(text));
        Evidence { local_verdict, ..self.clone() }
    }

    /// Returns what the endpoint's name says about it.
    pub(super) fn kind(&self) -> HostKind {
        self.endpoint.name().kind()
    }

    /// Whether the token is signed for a name that AWS assigned.
    pub(super) fn is_aws_name(&self) -> bool {
        self.kind() != HostKind::Other
    }

    /// Returns the endpoint's first label, which identifies the instance, the cluster or the proxy.
    pub(super) fn identifier(&self) -> &str {
        self.endpoint.host().split('.').next().unwrap_or_default()
    }

    /// Returns the names of RDS endpoints behind the dialled name, without the one signed for.
    pub(super) fn endpoints_behind(&self) -> Vec<String> {
        let mut behind: Vec<String> = Vec::new();
        for name in self.names.iter().filter_map(Untrusted::host_name) {
            let is_other = name.as_str() != self.endpoint.host();
            if is_other
                && name.kind() != HostKind::Other
                && !behind.iter().any(|it| it == name.as_str())
            {
                behind.push(name.as_str().to_owned());
            }
        }
        behind
    }

    /// Returns the region in the endpoint's name if the token is signed for another one.
    pub(super) fn other_region(&self) -> Option<String> {
        self.endpoint
            .name()
            .region()
            .filter(|region| *region != self.endpoint.region())
            .map(str::to_owned)
    }

    /// Whether the host is this machine, as with a tunnel or a port forward.
    pub(super) fn is_on_this_machine(&self) -> bool {
        !self.addresses.is_empty() && self.addresses.iter().all(IpAddr::is_loopback)
    }

    /// Whether only the VPC, and networks connected to it, can reach the addresses.
    pub(super) fn is_private(&self) -> bool {
        let is_private = |address: &IpAddr| match address {
            IpAddr::V4(address) => address.is_private(),
            IpAddr::V6(address) => address.is_unique_local(),
        };
        !self.addresses.is_empty() && self.addresses.iter().all(is_private)
    }
}

#[cfg(test)]
impl Evidence {
    /// A correct login, dialled by the endpoint's own name.
    pub(super) fn of_host(host: &str) -> Evidence {
        let name = HostName::parse(host).unwrap();
        let region = name.region().unwrap_or("eu-west-1").to_owned();
        let is_aws_name = name.kind() != HostKind::Other;
        Evidence {
            user: "app".into(),
            host: host.into(),
            port: 5432,
            endpoint: Endpoint::new(host, 5432, &region).unwrap(),
            login: if is_aws_name { LoginKind::Rds } else { LoginKind::Other },
            region_from: RegionFrom::HostName,
            account: None,
            addresses: Vec::new(),
            names: Vec::new(),
            token_length: 400,
            local_verdict: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_from_outside_is_displayed_without_escapes_and_tokens() {
        let raw = "FATAL:\n\u{1b}[2J db/?Action=connect&X-Amz-Signature=ab";
        let symptoms = [
            Symptom::refused(raw),
            Symptom::NotPostgres(Untrusted::new(raw)),
            Symptom::Refused { text: Untrusted::new("x"), sqlstate: Some(Untrusted::new(raw)) },
        ];
        for symptom in symptoms {
            for shown in [symptom.to_string(), format!("{symptom:?}")] {
                assert!(shown.contains("[2J ***"), "{shown}");
                assert!(!shown.contains(['\u{1b}', '\n']), "{shown}");
            }
        }
    }
}
