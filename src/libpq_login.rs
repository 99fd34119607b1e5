//! [`LibpqLogin`]: the settings and tokens for another program on libpq.

use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

use crate::conninfo::{ConnectionString, libpq};
use crate::error::Error;
use crate::login::{ENDPOINTS, Iam, Login, to_hand_on};
use crate::manager::RdsConnectionManager;
use crate::token::{AuthToken, encode};

/// The settings and tokens with which another program on libpq can log in: psql, pg_dump, the
/// diesel CLI. Made by [`RdsConnectionManager::libpq_login`].
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
#[derive(Clone)]
pub struct LibpqLogin {
    /// Keyword and value. With several hosts, the values of `host`, `hostaddr` and `port` are
    /// lists.
    settings: BTreeMap<String, String>,
    /// Keywords in `settings` that the user did not set.
    defaulted: Vec<&'static str>,
    /// Host and port as libpq looks them up in a passfile, for each host of the connection string.
    /// Empty with `rds_iam_auth=false`.
    tokens: Vec<(String, u16, AuthToken)>,
    /// The value of `RDS_IAM_ENDPOINTS`.
    endpoints: Option<String>,
    /// With `rds_iam_auth=false`: the URL with the user's own password, if it has one.
    password_url: Option<String>,
}

impl RdsConnectionManager {
    /// Returns what another program on libpq needs to log in now, with a new token for each host.
    ///
    /// Resolves the host names that stand for another endpoint (`iam_host`). With
    /// `rds_iam_auth=false` nothing is signed, and the connection string is passed on without our
    /// own keywords.
    ///
    /// # Errors
    /// As [`token`](Self::token). Also [`Error::Resolve`] if no host name can be resolved.
    pub fn libpq_login(&self) -> Result<LibpqLogin, Error> {
        match &*self.login {
            Login::Iam(iam) => LibpqLogin::new(iam),
            Login::Password(password) => LibpqLogin::without_iam(&password.string),
        }
    }
}

impl LibpqLogin {
    fn new(iam: &Iam) -> Result<LibpqLogin, Error> {
        let (mut names, mut hostaddrs, mut ports) = (Vec::new(), Vec::new(), Vec::new());
        let (mut tokens, mut unresolved) = (Vec::new(), None);
        for target in iam.targets_in_order() {
            let addresses = match target.addresses(iam.conninfo.is_balanced, iam.resolver.as_ref())
            {
                Ok(addresses) => addresses,
                Err(error) => {
                    log::debug!("host {} left out: {error}", target.host);
                    unresolved = Some(error);
                    continue;
                }
            };
            let (name, port) = (target.endpoint.host(), target.host.port);
            for address in addresses {
                names.push(name);
                hostaddrs.push(address);
                ports.push(port.to_string());
            }
            tokens.push((name.to_owned(), port, iam.token_for(&target.endpoint)?));
        }
        if let (Some(error), true) = (unresolved, tokens.is_empty()) {
            return Err(error);
        }
        let mut settings = iam.conninfo.for_others();
        settings.insert("host".into(), names.join(","));
        settings.insert("port".into(), ports.join(","));
        settings.remove("hostaddr");
        if hostaddrs.iter().any(|address| !address.is_empty()) {
            settings.insert("hostaddr".into(), hostaddrs.join(","));
        }
        Ok(LibpqLogin {
            settings,
            defaulted: iam.conninfo.defaulted.clone(),
            tokens,
            endpoints: to_hand_on(iam.targets.iter()),
            password_url: None,
        })
    }

    fn without_iam(string: &ConnectionString) -> Result<LibpqLogin, Error> {
        let mut settings = string.chosen_settings()?;
        settings.retain(|_, value| !value.is_empty());
        let url = if string.needs_files_or_variables() {
            // The service file and the variables may be out of reach of the other program. A
            // password from there stays outside of the URL.
            let mut in_url = settings.clone();
            let password = in_url.remove("password").filter(|_| string.has_password());
            url(&in_url, password.as_deref())
        } else {
            string.text()
        };
        Ok(LibpqLogin {
            settings,
            defaulted: Vec::new(),
            tokens: Vec::new(),
            endpoints: None,
            password_url: Some(url),
        })
    }

    /// Returns a `DATABASE_URL` without a password and without our own keywords.
    ///
    /// With `rds_iam_auth=false` it contains the password of the connection string, if that has
    /// one.
    pub fn database_url(&self) -> String {
        self.password_url.clone().unwrap_or_else(|| url(&self.settings, None))
    }

    /// Returns a `DATABASE_URL` that contains the token, for programs that read no password
    /// elsewhere. A program that prints the URL shows the token.
    ///
    /// It contains the settings of the user and `sslmode`, but not our other defaults, because
    /// programs without libpq know few of its keywords.
    ///
    /// Returns `None` with several hosts, because a URL has one password for all of them, and with
    /// `rds_iam_auth=false`.
    pub fn database_url_with_token(&self) -> Option<String> {
        let token = self.token()?;
        let mut settings = self.settings.clone();
        settings.retain(|keyword, _| {
            keyword == "sslmode" || !self.defaulted.contains(&keyword.as_str())
        });
        Some(url(&settings, Some(token.as_str())))
    }

    /// Returns the token, for `PGPASSWORD`.
    ///
    /// Returns `None` with several hosts, because each needs its own token
    /// ([`passfile`](Self::passfile)), and with `rds_iam_auth=false`.
    pub fn token(&self) -> Option<&AuthToken> {
        match self.tokens.as_slice() {
            [(_, _, token)] => Some(token),
            _ => None,
        }
    }

    /// Returns the content of a passfile (libpq, "The Password File") for all hosts.
    ///
    /// Name the file in `PGPASSFILE` and leave `PGPASSWORD` empty. libpq ignores a file that others
    /// than its owner can read.
    pub fn passfile(&self) -> String {
        let lines = self.tokens.iter();
        lines.map(|(host, port, token)| passfile_line(host, *port, token.as_str())).collect()
    }

    /// Returns when the first of the tokens expires. Returns `None` with `rds_iam_auth=false`.
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.tokens.iter().map(|(_, _, token)| token.expires_at()).min()
    }

    /// Returns `DATABASE_URL` and libpq's PG* variables for all settings that have one.
    ///
    /// A tunnel, or a host name without a region, adds `RDS_IAM_ENDPOINTS`. With it, a program of
    /// this crate signs for the same endpoint: `HOST:PORT/REGION`, separated by commas, are the
    /// defaults of `iam_port` and `region_name` for these hosts.
    ///
    /// The variables contain no secret. Exception: with `rds_iam_auth=false` they contain the
    /// user's own password.
    pub fn variables(&self) -> Vec<(String, String)> {
        let mut variables = vec![("DATABASE_URL".to_owned(), self.database_url())];
        let known = libpq::keywords();
        let variable = |keyword: &String| known.get(keyword)?.variable.clone();
        let set = self.settings.iter();
        variables
            .extend(set.filter_map(|(keyword, value)| Some((variable(keyword)?, value.clone()))));
        variables.extend(self.endpoints.clone().map(|list| (ENDPOINTS.to_owned(), list)));
        variables
    }

    /// Returns the names of variables that would override ours. Remove them from the environment of
    /// the other program, then set [`variables`](Self::variables), which contain their settings.
    pub fn overruling_variables() -> &'static [&'static str] {
        &["PGSERVICE", "PGSERVICEFILE", "PGHOSTADDR", "PGPASSWORD", "PGPASSFILE", ENDPOINTS]
    }
}

/// Returns the line of a passfile for all databases and users of a host.
pub(crate) fn passfile_line(host: &str, port: u16, password: &str) -> String {
    let escape = |text: &str| text.replace('\\', r"\\").replace(':', r"\:");
    format!("{}:{port}:*:*:{}\n", escape(host), escape(password))
}

/// Returns a URL of these settings. A list of hosts, a socket's folder and an IPv6 address become
/// parameters, because other parsers than libpq's fail on them before the path.
fn url(settings: &BTreeMap<String, String>, password: Option<&str>) -> String {
    let get = |keyword: &str| settings.get(keyword).map(String::as_str).unwrap_or_default();
    let mut authority = String::new();
    let mut in_authority = vec!["dbname"];
    if !get("host").contains([',', '/', ':']) {
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
    let separator = if parameters.is_empty() { "" } else { "?" };
    format!("postgres://{authority}/{}{separator}{}", encode(get("dbname")), parameters.join("&"))
}

/// Shows the tokens redacted, and no settings.
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

    /// Returns the settings that libpq reads from the URL.
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
