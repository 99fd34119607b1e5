//! [`LibpqLogin`]: what another program on libpq needs to log in as we do.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::SystemTime;

use crate::conninfo::{Given, libpq};
use crate::error::Error;
use crate::login::{Hostaddr, Iam, Login, Target};
use crate::manager::RdsConnectionManager;
use crate::token::{AuthToken, encode};

/// What another program on libpq needs to log in as [`connect`](r2d2::ManageConnection::connect)
/// does: psql, pg_dump, the diesel CLI. Made by [`RdsConnectionManager::libpq_login`], which signs
/// a token for each host.
///
/// ```no_run
/// use std::process::Command;
/// use diesel_rds_iam::RdsConnectionManager;
///
/// let login = RdsConnectionManager::from_env()?.libpq_login()?;
/// let mut pg_dump = Command::new("pg_dump");
/// pg_dump.envs(login.variables());
/// if let Some(token) = login.token() {
///     pg_dump.env("PGPASSWORD", token.as_str());
/// }
/// pg_dump.status()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct LibpqLogin {
    /// Keyword and value, in libpq's order of lists.
    settings: BTreeMap<String, String>,
    /// With `rds_iam_auth=false`: the string, with a password of its own.
    given: Option<String>,
    /// One for each host of the connection string; none with `rds_iam_auth=false`.
    tokens: Vec<(Host, AuthToken)>,
}

/// As libpq finds it in a passfile.
#[derive(Debug, PartialEq)]
struct Host {
    name: String,
    port: u16,
}

impl RdsConnectionManager {
    /// What another program on libpq needs to log in now. Each host gets a token of its own; names
    /// that stand for other endpoints (`iam_host`) are resolved.
    ///
    /// # Errors
    /// As [`token`](Self::token), and [`Error::Resolve`]. With `rds_iam_auth=false` there is
    /// nothing to sign, and the connection string is handed on, less our own keywords.
    pub fn libpq_login(&self) -> Result<LibpqLogin, Error> {
        match &*self.login {
            Login::Iam(iam) => LibpqLogin::new(iam),
            Login::Password(password) => LibpqLogin::without_iam(&password.conninfo),
        }
    }
}

impl LibpqLogin {
    fn new(iam: &Iam) -> Result<LibpqLogin, Error> {
        let (mut places, mut tokens, mut unresolved) = (Vec::new(), Vec::new(), None);
        for target in iam.targets_in_order() {
            match places_of(target, iam.conninfo.is_balanced()) {
                Ok(of_this) => {
                    places.extend(of_this);
                    let host =
                        Host { name: target.endpoint.host().to_owned(), port: target.host.port };
                    tokens.push((host, iam.token_for(&target.endpoint)?));
                }
                Err(error) => {
                    log::debug!("a host is left out: {error}");
                    unresolved = Some(error);
                }
            }
        }
        if let (Some(error), true) = (unresolved, tokens.is_empty()) {
            return Err(error);
        }
        let mut settings = iam.conninfo.for_others();
        for (i, keyword) in PLACE.into_iter().enumerate() {
            let list: Vec<&str> = places.iter().map(|place| place[i].as_str()).collect();
            settings.insert(keyword.into(), list.join(","));
        }
        settings.retain(|keyword, list| keyword != "hostaddr" || list.chars().any(|c| c != ','));
        Ok(LibpqLogin { settings, given: None, tokens })
    }

    fn without_iam(given: &str) -> Result<LibpqLogin, Error> {
        let mut settings = Given::parse(given)?.chosen_settings()?;
        settings.retain(|_, value| !value.is_empty());
        Ok(LibpqLogin { settings, given: Some(given.to_owned()), tokens: Vec::new() })
    }

    /// A `DATABASE_URL` without a password and without our own keywords.
    pub fn database_url(&self) -> String {
        self.url(None)
    }

    /// A `DATABASE_URL` that holds the token, percent-encoded: for programs that ask for no
    /// password elsewhere. Whoever prints it shows the token. None with several hosts, for a URL
    /// has one password for all, and with `rds_iam_auth=false`.
    pub fn database_url_with_token(&self) -> Option<String> {
        self.token().map(|token| self.url(Some(token.as_str())))
    }

    /// The token, to be handed over as `PGPASSWORD`. None with several hosts, each of which wants
    /// its own ([`passfile`](Self::passfile)), and with `rds_iam_auth=false`.
    pub fn token(&self) -> Option<&AuthToken> {
        match self.tokens.as_slice() {
            [(_, token)] => Some(token),
            _ => None,
        }
    }

    /// The lines of a passfile (libpq, "The Password File") for all hosts: to be handed over as
    /// `PGPASSFILE`, where `PGPASSWORD` is not set. libpq wants it to be readable by its owner
    /// only.
    pub fn passfile(&self) -> String {
        self.tokens
            .iter()
            .map(|(host, token)| passfile_line(&host.name, host.port, token.as_str()))
            .collect()
    }

    /// When the first of the tokens ends; none with `rds_iam_auth=false`.
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.tokens.iter().map(|(_, token)| token.expires_at()).min()
    }

    /// `DATABASE_URL`, and libpq's PG* variables for all settings that have one. No secret is among
    /// them, unless `rds_iam_auth=false` left a password in the connection string.
    pub fn variables(&self) -> Vec<(String, String)> {
        let mut variables = vec![("DATABASE_URL".to_owned(), self.database_url())];
        if let Ok(known) = libpq::complete(None) {
            let variable = |keyword: &String| known.get(keyword)?.variable.clone();
            let set = self.settings.iter();
            variables.extend(
                set.filter_map(|(keyword, value)| Some((variable(keyword)?, value.clone()))),
            );
        }
        variables
    }

    /// The variables that would overrule ours, to be removed from the environment. (libpq has read
    /// what they say.)
    pub fn overruling_variables() -> &'static [&'static str] {
        &["PGSERVICE", "PGSERVICEFILE", "PGHOSTADDR", "PGPASSWORD", "PGPASSFILE"]
    }

    fn url(&self, password: Option<&str>) -> String {
        self.given.clone().unwrap_or_else(|| url(&self.settings, password))
    }
}

/// For all databases and users.
pub(crate) fn passfile_line(host: &str, port: u16, password: &str) -> String {
    let escape = |text: &str| text.replace('\\', r"\\").replace(':', r"\:");
    format!("{}:{port}:*:*:{}\n", escape(host), escape(password))
}

/// libpq's keywords for where to dial; each takes a list.
const PLACE: [&str; 3] = ["host", "hostaddr", "port"];

/// What libpq is to dial for one host, address by address where the name stands for another
/// endpoint.
fn places_of(target: &Target, is_balanced: bool) -> Result<Vec<[String; 3]>, Error> {
    let (name, port) = (target.endpoint.host(), target.host.port.to_string());
    let addresses = match target.hostaddr(is_balanced)? {
        Hostaddr::Resolved(addresses) => addresses.iter().map(IpAddr::to_string).collect(),
        other => vec![other.to_string()],
    };
    Ok(addresses.into_iter().map(|address| [name.to_owned(), address, port.clone()]).collect())
}

/// One host stands where everybody looks for it. Several stand among the parameters, where libpq
/// finds them and others do not stumble.
fn url(settings: &BTreeMap<String, String>, password: Option<&str>) -> String {
    let get = |keyword: &str| settings.get(keyword).map(String::as_str).unwrap_or_default();
    let mut authority = String::new();
    let mut in_authority = vec!["dbname"];
    if !get("host").contains(',') {
        let password =
            password.map(|password| format!(":{}", encode(password))).unwrap_or_default();
        authority = format!("{}{password}@{}:{}", encode(get("user")), get("host"), get("port"));
        in_authority.extend(["user", "host", "port"]);
    }
    let others = settings.iter().filter(|(keyword, _)| !in_authority.contains(&keyword.as_str()));
    let mut parameters: Vec<String> =
        others.map(|(keyword, value)| format!("{keyword}={}", encode(value))).collect();
    if authority.is_empty() {
        parameters.extend(password.map(|password| format!("password={}", encode(password))));
    }
    format!("postgres://{authority}/{}?{}", encode(get("dbname")), parameters.join("&"))
}

/// How it will log in, without secrets.
impl fmt::Debug for LibpqLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LibpqLogin").field("tokens", &self.tokens).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(keyword, value)| ((*keyword).to_owned(), (*value).to_owned())).collect()
    }

    /// What libpq reads out of the URL, as `keyword=value` in their order.
    fn read_back(url: &str) -> BTreeMap<String, String> {
        let text = std::ffi::CString::new(url).unwrap();
        libpq::parse(&text).ok().expect("libpq reads it")
    }

    #[test]
    fn libpq_reads_the_urls_back() {
        let one = settings(&[
            ("host", "h"),
            ("port", "1"),
            ("user", "a@/ü"),
            ("dbname", "d d"),
            ("options", "-c x=y&z"),
        ]);
        let several = settings(&[
            ("host", "h,i"),
            ("port", "1,2"),
            ("user", "a"),
            ("dbname", "d"),
            ("hostaddr", ",::1"),
        ]);
        for (settings, start) in
            [(one, "postgres://a%40%2F%C3%BC@h:1/d%20d?"), (several, "postgres:///d?")]
        {
            let plain = url(&settings, None);
            assert!(plain.starts_with(start), "{plain}");
            assert_eq!(read_back(&plain), settings);
            let mut with_token = settings.clone();
            with_token.insert("password".into(), "h:1/?A=b&c=%2F".into());
            assert_eq!(read_back(&url(&settings, Some("h:1/?A=b&c=%2F"))), with_token);
        }
    }

    #[test]
    fn a_passfile_has_a_line_for_each_host_with_its_colons_escaped() {
        let manager = RdsConnectionManager::builder()
            .credentials_provider(crate::Credentials::new(
                "AKIDEXAMPLE",
                "secret",
                None,
                None,
                "test",
            ))
            .build("host=a.example.com,b.example.com port=1,2 user=app region_name=eu-west-1")
            .unwrap();
        let login = manager.libpq_login().unwrap();
        let passfile = login.passfile();
        let lines: Vec<&str> = passfile.lines().collect();
        for (line, start) in
            lines.iter().zip([r"a.example.com:1:*:*:a.example.com\:1/?A", r"b.example.com:2:*:*:b"])
        {
            assert!(line.starts_with(start), "{}", &line[..40]);
        }
        assert!(login.token().is_none() && login.database_url_with_token().is_none());
        assert!(!format!("{login:?}").contains("Signature"));
    }
}
