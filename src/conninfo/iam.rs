//! [`IamConninfo`]: the settings of a login with a token.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::checks::check_iam;
use super::connection_string::{milliseconds, seconds};
use super::hosts::{self, Host};
use super::libpq::{self, Settings};
use super::{invalid, render};
use crate::connection::role_check;
use crate::error::Error;

/// The settings of a connection that logs in with a token.
#[derive(Clone)]
pub(crate) struct IamConninfo {
    settings: BTreeMap<String, String>,
    /// The hosts to dial, in the order of the string.
    pub(crate) hosts: Vec<Host>,
    /// Keywords that have our default, because the user did not set them.
    pub(crate) defaulted: Vec<&'static str>,
    /// `load_balance_hosts=random`: try the hosts, and the addresses of each, in random order. This
    /// crate does it, because each host gets its own token.
    pub(crate) is_balanced: bool,
    /// libpq 17 and newer.
    knows_direct_tls: bool,
    pub(crate) is_dsql: bool,
}

/// What is set if the user sets nothing, and why.
const DEFAULTS: &[(&str, &str)] = &[
    // A token is a password in clear text inside TLS: the end of the TLS connection can use it.
    ("sslmode", "verify-full"),
    // Seconds. libpq has no limit; the kernel gives up on a silent host after two minutes.
    ("connect_timeout", "10"),
    // Milliseconds. Ends a query to a host that vanished. Linux also counts the time in which the
    // server does not read, as in a COPY that waits for a lock, so it is longer than a short gap.
    ("tcp_user_timeout", "30000"),
    // 10 + 4 * 5 seconds, for systems without tcp_user_timeout. With it, Linux ignores the count.
    ("keepalives_idle", "10"),
    ("keepalives_interval", "5"),
    ("keepalives_count", "4"),
    // Saves a round trip: RDS with IAM has no GSSAPI encryption.
    ("gssencmode", "disable"),
    // A server that asks for anything but a password in TLS does not know IAM (libpq 16).
    ("require_auth", "password"),
];

/// Without effect for a login with a token: `service` is resolved already.
const DROPPED: &[&str] = &["service", "servicefile", "passfile", "password"];

impl IamConninfo {
    /// Adds our defaults to the settings that the user chose. `all` is what libpq made of them.
    pub(super) fn new(
        chosen: BTreeMap<String, String>,
        all: &Settings,
        load_balance_hosts: Option<String>,
    ) -> Result<IamConninfo, Error> {
        let mut settings = chosen;
        settings.retain(|keyword, _| !DROPPED.contains(&keyword.as_str()));
        let mut defaulted = Vec::new();
        for (keyword, value) in DEFAULTS.iter().filter(|(keyword, _)| all.contains_key(*keyword)) {
            if !settings.contains_key(*keyword) {
                settings.insert((*keyword).into(), (*value).into());
                defaulted.push(*keyword);
            }
        }
        if let Some(name) = program() {
            settings.entry("fallback_application_name".into()).or_insert(name);
        }
        let knows_direct_tls = all.contains_key("sslnegotiation");
        let is_balanced =
            is_balanced(load_balance_hosts.or(settings.remove("load_balance_hosts")))?;
        let list = |keyword: &str| settings.get(keyword).map(String::as_str).unwrap_or_default();
        let hosts = hosts::hosts(list("host"), list("hostaddr"), list("port"))?;
        check_iam(&settings)?;
        let is_dsql = false;
        Ok(IamConninfo { settings, hosts, defaulted, is_balanced, knows_direct_tls, is_dsql })
    }

    /// Adds the defaults for Aurora DSQL: its certificate is of a public authority.
    pub(crate) fn adapt_to_dsql(&mut self) {
        self.is_dsql = true;
        // libpq 16 and newer know both.
        let roots = match self.settings.contains_key("require_auth") {
            true => Some("system".to_owned()),
            false => openssl_probe::probe().cert_file.map(|file| file.display().to_string()),
        };
        let roots = roots.filter(|_| self.sslmode() == "verify-full");
        let direct = self.knows_direct_tls.then(|| "direct".to_owned());
        for (keyword, value) in [("sslrootcert", roots), ("sslnegotiation", direct)] {
            if let Some(value) = value.filter(|_| !self.settings.contains_key(keyword)) {
                self.settings.insert(keyword.into(), value);
                self.defaulted.push(keyword);
            }
        }
    }

    /// Sets the role to look for, if the user did not choose it.
    pub(crate) fn default_role(&mut self, role: &'static str) {
        let keyword = "target_session_attrs";
        if !self.settings.contains_key(keyword) {
            self.settings.insert(keyword.into(), role.into());
            self.defaulted.push(keyword);
        }
    }

    fn get(&self, keyword: &str) -> Option<&str> {
        self.settings.get(keyword).map(String::as_str)
    }

    pub(crate) fn target_session_attrs(&self) -> &str {
        self.get("target_session_attrs").unwrap_or("any")
    }

    /// The time limit for one host. `None` is no limit.
    pub(crate) fn connect_timeout(&self) -> Option<Duration> {
        seconds(self.get("connect_timeout")?)
    }

    /// In milliseconds, of which 0 is the system's own timeout. `None` if this libpq does not know
    /// the keyword.
    pub(crate) fn tcp_user_timeout(&self) -> Option<u32> {
        Some(milliseconds(self.get("tcp_user_timeout")?))
    }

    /// The file of root certificates: as set, or libpq's default. `None` for those of the system.
    pub(crate) fn sslrootcert(&self) -> Option<PathBuf> {
        match self.get("sslrootcert") {
            Some("system") => None,
            Some(file) => Some(file.into()),
            None => Some(std::env::home_dir()?.join(".postgresql/root.crt")),
        }
    }

    pub(crate) fn user(&self) -> &str {
        self.get("user").unwrap_or_default()
    }

    /// libpq's default is the user's name.
    #[cfg(feature = "doctor")]
    pub(crate) fn dbname(&self) -> &str {
        self.get("dbname").unwrap_or_else(|| self.user())
    }

    pub(crate) fn sslmode(&self) -> &str {
        self.get("sslmode").unwrap_or_default()
    }

    /// Returns the query whether the server still has the role of `target_session_attrs`.
    pub(crate) fn role_check(&self) -> Option<&'static str> {
        role_check(self.target_session_attrs())
    }

    /// Returns the settings for another program.
    pub(crate) fn for_others(&self) -> BTreeMap<String, String> {
        let mut settings = self.settings.clone();
        if settings.get("fallback_application_name") == program().as_ref() {
            settings.remove("fallback_application_name");
        }
        settings
    }

    /// Renders the string for libpq, with a password and the settings of this one connection.
    pub(crate) fn with_password(&self, password: &str, for_this: &[(&str, &str)]) -> String {
        let mut settings: BTreeMap<&str, &str> =
            self.settings.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        settings.insert("password", password);
        settings.extend(for_this.iter().copied());
        render(settings)
    }
}

/// Shows the settings as key/value, without secrets.
impl fmt::Display for IamConninfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = libpq::keywords();
        let shown = self.settings.iter().map(|(keyword, value)| {
            let is_shown = known.get(keyword).is_some_and(|setting| !setting.secret);
            (keyword.as_str(), if is_shown { value.as_str() } else { "***" })
        });
        f.write_str(&render(shown.collect()))
    }
}

pub(super) fn has_default(keyword: &str) -> bool {
    DEFAULTS.iter().any(|(known, _)| *known == keyword)
}

/// libpq before 16 does not read the variable.
fn is_balanced(set: Option<String>) -> Result<bool, Error> {
    let set = set.or_else(|| std::env::var("PGLOADBALANCEHOSTS").ok());
    match set.as_deref().map(str::trim_end) {
        None | Some("" | "disable") => Ok(false),
        Some("random") => Ok(true),
        Some(_) => invalid("load_balance_hosts must be \"disable\" or \"random\""),
    }
}

/// The program's name, which pg_stat_activity shows if no `application_name` is set.
fn program() -> Option<String> {
    let path = std::env::current_exe().ok()?;
    Some(path.file_stem()?.to_string_lossy().into_owned())
}
