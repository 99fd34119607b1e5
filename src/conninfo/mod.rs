//! A libpq connection string: parsed, defaulted, checked, rendered with a password.

mod hosts;
mod keywords;
pub(crate) mod libpq;
mod redact;

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::connection::IS_READ_WRITE;
use crate::error::Error;
use crate::token::HostName;
pub(crate) use hosts::{Host, one_or_one_for_each};
pub(crate) use keywords::OwnKeys;
use keywords::take_own_keys;
use libpq::Setting;
use redact::safe;

/// A connection string as the user gave it, in libpq's part and ours.
#[derive(Clone)]
pub(crate) struct Given {
    /// What libpq gets to see; none when only PG* variables are used.
    text: Option<CString>,
    /// What it sets.
    explicit: BTreeMap<String, String>,
    pub(crate) own: OwnKeys,
}

/// The settings of a connection that logs in with a token.
#[derive(Clone)]
pub(crate) struct IamConninfo {
    settings: BTreeMap<String, String>,
    hosts: Vec<Host>,
    /// Keywords that have our default, because the user did not set them.
    defaulted: Vec<&'static str>,
    /// `load_balance_hosts=random`, which is ours to do, as each host gets a token of its own.
    is_balanced: bool,
    /// Keywords whose values people must not see.
    secret: Vec<String>,
}

/// What is set where the user sets nothing, and why.
const DEFAULTS: &[(&str, &str)] = &[
    // A token is a password in clear text inside TLS: whoever ends the TLS can use it.
    ("sslmode", "verify-full"),
    // Seconds. libpq waits for ever; the kernel gives up on a silent host after two minutes.
    ("connect_timeout", "10"),
    // Milliseconds. Ends a query to a host that vanished. Linux also counts the time in which the
    // server does not read, as in a COPY that waits for a lock, so it is longer than a short gap.
    ("tcp_user_timeout", "30000"),
    // 10 + 4 * 5 seconds, for systems without tcp_user_timeout. With it, Linux ignores the count.
    ("keepalives_idle", "10"),
    ("keepalives_interval", "5"),
    ("keepalives_count", "4"),
    // Saves a round trip; RDS with IAM does not speak GSSAPI encryption.
    ("gssencmode", "disable"),
    // A server that asks for anything else than the token in TLS is not one that knows IAM (libpq
    // 16).
    ("require_auth", "password"),
];

const NO_HOST: &str = "it names no host, and IAM authentication is for RDS over TCP; set host= or PGHOST to the RDS endpoint";

/// The longest name that PostgreSQL keeps, in bytes (NAMEDATALEN - 1).
pub(crate) const LONGEST_NAME: usize = 63;

impl Given {
    /// Takes our own keywords out of `conninfo`; the rest must be what libpq understands.
    pub(crate) fn parse(conninfo: &str) -> Result<Given, Error> {
        if conninfo.trim().is_empty() {
            return invalid("it is empty; give postgres://USER@HOST:5432/DATABASE");
        }
        check_at_signs(conninfo)?;
        let (rest, own) = take_own_keys(conninfo)?;
        let text = c_string(&rest)?;
        let explicit = libpq::parse(&text).map_err(|complaint| safe(&complaint, conninfo))?;
        Ok(Given { text: Some(text), explicit, own })
    }

    /// No string at all: what libpq's PG* variables say.
    pub(crate) fn from_variables() -> Given {
        Given { text: None, explicit: BTreeMap::new(), own: OwnKeys::default() }
    }

    /// The string for libpq as it came, less our own keywords: a login without IAM. And its
    /// connect_timeout.
    pub(crate) fn without_iam(&self) -> Result<(String, Option<Duration>), Error> {
        if self.own.load_balance_hosts.is_some() {
            return invalid(
                "this libpq does not know load_balance_hosts (16 does), which only IAM can do without it; leave it out",
            );
        }
        let all = self.complete()?;
        // libpq checks the port only when it dials, and then quotes it: half a password, if that
        // was not encoded.
        check_ports(all["port"].value.as_deref().unwrap_or_default())?;
        Ok((self.shown(), all["connect_timeout"].value.as_deref().and_then(seconds)))
    }

    /// Whether the string names a service, or there is no string.
    pub(crate) fn needs_files_or_variables(&self) -> bool {
        self.text.is_none() || self.explicit.contains_key("service")
    }

    /// Whether the string itself contains a password.
    pub(crate) fn has_password(&self) -> bool {
        self.explicit.contains_key("password")
    }

    fn shown(&self) -> String {
        self.text.as_deref().map_or("".into(), CStr::to_string_lossy).into_owned()
    }

    /// What holds for each of libpq's keywords.
    fn complete(&self) -> Result<libpq::Settings, Error> {
        libpq::complete(self.text.as_deref()).map_err(|complaint| safe(&complaint, &self.shown()))
    }

    /// The settings for a login with a token: completed by libpq, checked, and with our defaults.
    pub(crate) fn with_iam(&self) -> Result<IamConninfo, Error> {
        let all = self.complete()?;
        self.refuse_password(&all["password"])?;
        let mut settings = self.chosen_of(&all);
        DROPPED.iter().for_each(|keyword| {
            settings.remove(*keyword);
        });
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
        let secret = all
            .into_iter()
            .filter(|(_, setting)| setting.secret)
            .map(|(keyword, _)| keyword)
            .collect();
        let is_balanced = self.is_balanced(settings.remove("load_balance_hosts"))?;
        let list = |keyword: &str| settings.get(keyword).map(String::as_str).unwrap_or_default();
        let hosts = hosts::hosts(list("host"), list("hostaddr"), list("port"))?;
        let conninfo = IamConninfo { settings, hosts, defaulted, is_balanced, secret };
        conninfo.check()?;
        Ok(conninfo)
    }

    /// `known` is what a libpq that knows the keyword says (16 and newer).
    fn is_balanced(&self, known: Option<String>) -> Result<bool, Error> {
        let set = self
            .own
            .load_balance_hosts
            .clone()
            .or(known)
            .or_else(|| std::env::var("PGLOADBALANCEHOSTS").ok());
        match set.as_deref() {
            None | Some("" | "disable") => Ok(false),
            Some("random") => Ok(true),
            Some(_) => invalid("load_balance_hosts is neither disable nor random; say one of them"),
        }
    }

    /// What the user chose, in the string, variables or a service file.
    pub(crate) fn chosen_settings(&self) -> Result<BTreeMap<String, String>, Error> {
        let mut settings = self.chosen_of(&self.complete()?);
        settings.remove("service");
        settings.remove("servicefile");
        Ok(settings)
    }

    fn chosen_of(&self, all: &libpq::Settings) -> BTreeMap<String, String> {
        let chosen = all.iter().filter_map(|(keyword, setting)| {
            Some((keyword.clone(), self.chosen(keyword, setting)?))
        });
        chosen.collect()
    }

    /// What the user chose for a keyword, in the string, a variable or a service file.
    fn chosen(&self, keyword: &str, setting: &Setting) -> Option<String> {
        let by_variable = || setting.variable.as_ref().and_then(|name| std::env::var(name).ok());
        // libpq::complete puts its own value here, over that of a service file, too.
        if keyword == "gssencmode" {
            return self.explicit.get(keyword).cloned().or_else(by_variable);
        }
        let is_chosen = PINNED.contains(&keyword)
            || self.explicit.contains_key(keyword)
            || setting.value != setting.compiled
            || by_variable().is_some();
        // Explicitly empty keeps libpq from taking a variable.
        let may_be_empty = self.explicit.contains_key(keyword)
            && !PINNED.contains(&keyword)
            && !has_default(keyword);
        setting.value.clone().filter(|value| is_chosen && (may_be_empty || !value.is_empty()))
    }

    /// A password has no place beside IAM. PGPASSWORD counts only where there is no string: in the
    /// environment of a program that has its own DATABASE_URL it is somebody else's.
    fn refuse_password(&self, password: &Setting) -> Result<(), Error> {
        let set = |value: Option<&String>| value.is_some_and(|value| !value.is_empty());
        let in_environment = std::env::var_os("PGPASSWORD").is_some();
        let place = if set(self.explicit.get("password")) {
            "it"
        } else if in_environment && self.text.is_some() {
            log::warn!(
                "PGPASSWORD is set and not used: the connection string has no password, so IAM makes one"
            );
            return Ok(());
        } else if in_environment {
            "PGPASSWORD"
        } else if set(password.value.as_ref()) {
            "the service file"
        } else {
            return Ok(());
        };
        invalid(format!(
            "{place} holds a password, but IAM authentication makes its own: remove the password, or set rds_iam_auth=false to log in with it"
        ))
    }
}

/// Written out even where libpq would default them, so that the name signed for is the name
/// dialled.
const PINNED: &[&str] = &["host", "port", "user", "dbname"];

/// Answered already (`service`), or without a meaning beside a token (`passfile`).
const DROPPED: &[&str] = &["service", "servicefile", "passfile", "password"];

impl IamConninfo {
    fn get(&self, keyword: &str) -> Option<&str> {
        self.settings.get(keyword).map(String::as_str)
    }

    /// The hosts to dial, in the order of the string.
    pub(crate) fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// Whether hosts, and the addresses of each, are to be tried in random order.
    pub(crate) fn is_balanced(&self) -> bool {
        self.is_balanced
    }

    pub(crate) fn target_session_attrs(&self) -> &str {
        self.get("target_session_attrs").unwrap_or("any")
    }

    /// How long one host may take; none: for ever.
    pub(crate) fn connect_timeout(&self) -> Option<Duration> {
        seconds(self.get("connect_timeout")?)
    }

    /// The file of root certificates: the one that is set, or where libpq looks for one; none: the
    /// system's.
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

    /// The query that tells whether the server still is what `target_session_attrs` wants; none
    /// where any will do.
    pub(crate) fn role_check(&self) -> Option<&'static str> {
        match self.get("target_session_attrs")? {
            "read-write" => Some(IS_READ_WRITE),
            "primary" => Some("SELECT NOT pg_is_in_recovery() AS fits"),
            _ => None,
        }
    }

    /// The settings for a program of another name.
    pub(crate) fn for_others(&self) -> BTreeMap<String, String> {
        let mut settings = self.settings.clone();
        if settings.get("fallback_application_name") == program().as_ref() {
            settings.remove("fallback_application_name");
        }
        settings
    }

    /// Returns the keywords that the user did not set.
    pub(crate) fn defaulted(&self) -> &[&'static str] {
        &self.defaulted
    }

    /// The string for libpq, with a password and with what else holds for this one connection.
    pub(crate) fn with_password(&self, password: &str, for_this: &[(&str, &str)]) -> String {
        let mut settings: BTreeMap<&str, &str> =
            self.settings.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        settings.insert("password", password);
        settings.extend(for_this.iter().copied());
        render(settings)
    }

    fn check(&self) -> Result<(), Error> {
        self.check_tls()?;
        let user = self.user();
        match user.len() {
            0 => {
                invalid("it names no user; give user= the database user that has the role rds_iam")
            }
            1..=LONGEST_NAME => Ok(()),
            length => invalid(format!(
                "the user name has {length} bytes, and PostgreSQL keeps {LONGEST_NAME}; give the name of the role as it is in pg_roles"
            )),
        }
    }

    fn check_tls(&self) -> Result<(), Error> {
        match self.sslmode() {
            mode @ ("disable" | "allow" | "prefer") => invalid(format!(
                "sslmode={mode} can send the token in clear text; use sslmode=verify-full with sslrootcert= the RDS CA bundle"
            )),
            _ => Ok(()),
        }
    }
}

/// For people: without secrets, as key/value.
impl fmt::Display for IamConninfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.settings.iter().map(|(keyword, value)| {
            let hidden = self.secret.contains(keyword);
            (keyword.as_str(), if hidden { "***" } else { value.as_str() })
        });
        f.write_str(&render(shown.collect()))
    }
}

/// Libpq's time in seconds, where zero and less is for ever.
fn seconds(text: &str) -> Option<Duration> {
    text.trim().parse().ok().filter(|seconds| *seconds > 0).map(Duration::from_secs)
}

fn has_default(keyword: &str) -> bool {
    DEFAULTS.iter().any(|(known, _)| *known == keyword)
}

/// Key/value form, every value quoted (libpq, "Keyword/Value Connection Strings").
pub(crate) fn render(settings: BTreeMap<&str, &str>) -> String {
    let quote = |value: &str| value.replace('\\', r"\\").replace('\'', r"\'");
    let pairs =
        settings.into_iter().map(|(keyword, value)| format!("{keyword}='{}'", quote(value)));
    pairs.collect::<Vec<_>>().join(" ")
}

/// The program's name, for pg_stat_activity where no application_name is set.
fn program() -> Option<String> {
    let path = std::env::current_exe().ok()?;
    Some(path.file_stem()?.to_string_lossy().into_owned())
}

/// What libpq takes for a URI; anything else is key/value.
fn is_uri(text: &str) -> bool {
    text.starts_with("postgresql://") || text.starts_with("postgres://")
}

/// Where the host begins. As in libpq: an '@' before the first '/' ends user and password, which
/// may hold a '?'.
fn host_of_uri(text: &str) -> usize {
    let authority = text.find("://").map_or(0, |i| i + 3);
    match text[authority..].find(['@', '/']) {
        Some(i) if text[authority + i..].starts_with('@') => authority + i + 1,
        _ => authority,
    }
}

fn c_string(text: &str) -> Result<CString, Error> {
    CString::new(text).or_else(|_| invalid("it holds a NUL byte; remove it"))
}

/// Refuses a URI whose user or password holds an '@' or a '/' as it is: libpq would take half of it
/// for the host or the database, dial that, and print it.
fn check_at_signs(conninfo: &str) -> Result<(), Error> {
    if !is_uri(conninfo) {
        return Ok(());
    }
    let host = &conninfo[host_of_uri(conninfo)..];
    let before_query = host.split('?').next().unwrap_or_default();
    if before_query.contains('@') {
        return invalid(
            "an '@' stands in or after the host; percent-encode user and password (@ is %40, / is %2F, : is %3A)",
        );
    }
    Ok(())
}

fn check_ports(ports: &str) -> Result<(), Error> {
    let fits = |port: &str| port.is_empty() || port.parse::<u16>().is_ok_and(|port| port > 0);
    if ports.split(',').all(fits) {
        return Ok(());
    }
    invalid(
        "the port is not a number from 1 to 65535; RDS for PostgreSQL listens on 5432 by default",
    )
}

pub(crate) fn invalid<T>(reason: impl Into<String>) -> Result<T, Error> {
    Err(Error::Conninfo(reason.into()))
}

/// The name that a token is signed for must be a name: RDS knows itself by no address.
pub(crate) fn signed_host(host: &str) -> Result<HostName, Error> {
    if host.is_empty() {
        return invalid(NO_HOST);
    }
    if host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok() {
        return invalid(
            "the host is an IP address, and a token is signed for a name; set iam_host= to the RDS endpoint",
        );
    }
    HostName::parse(host)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a manager would give to libpq, parsed by libpq.
    fn for_libpq(conninfo: &str) -> BTreeMap<String, String> {
        let settings = Given::parse(conninfo).and_then(|given| given.with_iam()).unwrap();
        libpq::parse(&c_string(&settings.with_password("TOKEN", &[])).unwrap()).ok().unwrap()
    }

    #[test]
    fn both_forms_mean_the_same() {
        let uri = "postgresql://a%20b@db.example.com:6432/the%20db?connect_timeout=3&options=-c%20geqo%3Doff";
        let pairs = r"host=db.example.com port = 6432 user='a b' dbname=the\ db connect_timeout=3 options='-c geqo=off'";
        assert_eq!(for_libpq(uri), for_libpq(pairs));
        assert_eq!(for_libpq(uri)["dbname"], "the db");
    }

    #[test]
    fn defaults_hold_only_where_nothing_is_set() {
        let plain = for_libpq("postgres://app@db.example.com/app");
        let set = for_libpq(
            "postgres://app@db.example.com/app?sslmode=require&connect_timeout=0&tcp_user_timeout=1&gssencmode=prefer",
        );
        let cases = [
            ("sslmode", "verify-full", "require"),
            ("connect_timeout", "10", "0"),
            ("tcp_user_timeout", "30000", "1"),
            ("gssencmode", "disable", "prefer"),
            ("keepalives_idle", "10", "10"),
            ("port", "5432", "5432"),
            ("password", "TOKEN", "TOKEN"),
        ];
        for (keyword, default, when_set) in cases {
            assert_eq!(plain[keyword], default, "{keyword}");
            assert_eq!(set[keyword], when_set, "{keyword}");
        }
    }

    #[test]
    fn require_auth_is_set_where_libpq_knows_it() {
        let known = libpq::complete(None).ok().unwrap().contains_key("require_auth");
        assert_eq!(
            for_libpq("postgres://app@db.example.com/app").contains_key("require_auth"),
            known
        );
    }

    #[test]
    fn the_program_names_itself_unless_told_otherwise() {
        let named = for_libpq("host=db.example.com user=app application_name=mine");
        assert_eq!(named["application_name"], "mine");
        let program = &for_libpq("host=db.example.com user=app")["fallback_application_name"];
        assert!(program.starts_with("diesel_rds_iam"), "{program}");
    }

    #[test]
    fn people_see_no_secrets() {
        let given =
            Given::parse("host=db.example.com user=app sslkey=/k sslpassword=hunter2").unwrap();
        let shown = given.with_iam().unwrap().to_string();
        assert!(shown.contains("sslkey='/k'") && shown.contains("sslpassword='***'"), "{shown}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn without_iam_the_string_stays_as_it_came_less_our_keys() {
        let cases = [
            ("postgres://u:p%3F@h/d?rds_iam_auth=false", "postgres://u:p%3F@h/d"),
            (
                "postgres://u:p?@h/d?sslmode=disable&rds_iam_auth=false",
                "postgres://u:p?@h/d?sslmode=disable",
            ),
            ("postgres://h?rds_iam_auth=false&connect_timeout=1", "postgres://h?connect_timeout=1"),
            ("host=h rds_iam_auth = 'false'  user='a\\'b=c'", "host=h   user='a\\'b=c'"),
            ("host=h rds_iam_auth='false'user=u", "host=h user=u"),
            ("region_name=x iam_host=y iam_port=1 rds_iam_auth=FALSE", "    "),
        ];
        for (conninfo, rest) in cases {
            let given = Given::parse(conninfo).unwrap();
            assert_eq!(given.own.rds_iam_auth, Some(false));
            assert_eq!(given.without_iam().unwrap().0, rest, "{conninfo}");
        }
    }

    #[test]
    fn of_a_key_said_twice_the_last_holds() {
        for conninfo in ["iam_host=a iam_host=b", "postgres:///?iam_host=a&iam_host=b"] {
            assert_eq!(Given::parse(conninfo).unwrap().own.iam_host.as_deref(), Some("b"));
        }
    }

    fn text() -> impl Strategy<Value = String> {
        any::<String>().prop_map(|text| text.replace('\0', ""))
    }

    /// One of the ways to write it as key/value.
    fn setting(keyword: &str, value: &str, style: u8) -> String {
        let is_quoted = style & 1 == 0 || value.is_empty();
        let (escape_all, equals) =
            (style & 2 == 0, ["=", " = ", "\t=", "=\n"][usize::from(style >> 6)]);
        let escape = |c: char| match c {
            '\'' | '\\' => format!("\\{c}"),
            _ if escape_all || !is_quoted && c.is_ascii_whitespace() || c == '\x0b' => {
                format!("\\{c}")
            }
            _ => c.into(),
        };
        let value: String = value.chars().map(escape).collect();
        let quote = if is_quoted { "'" } else { "" };
        format!("{keyword}{equals}{quote}{value}{quote}")
    }

    /// One of the ways to write it in a URI. (An '@' ends the user's name, even after a '?', where
    /// there is no '/'.)
    fn parameter(keyword: &str, value: &str, style: u8) -> String {
        let is_encoded =
            |byte: u8| style & 1 == 0 || b"%&=@".contains(&byte) || byte.is_ascii_whitespace();
        let value = value.bytes().flat_map(|byte| match byte {
            _ if is_encoded(byte) && style & 2 == 0 => format!("%{byte:02x}").into_bytes(),
            _ if is_encoded(byte) => format!("%{byte:02X}").into_bytes(),
            _ => vec![byte],
        });
        format!("{keyword}={}", String::from_utf8(value.collect()).unwrap())
    }

    proptest! {
        #[test]
        fn what_we_render_libpq_reads_back(user in text(), password in text(), options in text(), host in text()) {
            let settings = [("host", &host), ("options", &options), ("password", &password), ("user", &user)];
            let rendered = render(settings.iter().map(|(keyword, value)| (*keyword, value.as_str())).collect());
            let parsed = libpq::parse(&c_string(&rendered).unwrap()).ok().unwrap();
            prop_assert_eq!(parsed, settings.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect());
        }

        #[test]
        fn libpq_reads_the_rest_as_if_our_keys_had_never_been_there(
            theirs in proptest::collection::vec((prop_oneof!["user", "options", "service"], text(), any::<u8>()), 1..4),
            (region, iam_host, style) in (text(), text(), any::<u8>()),
            place in any::<proptest::sample::Index>(),
            uri in proptest::option::of(prop_oneof!["", "h", "u%40:p%3F@h:1,[::1]:2/d%20d", "u:p?@h", "/d"]),
        ) {
            let write = if uri.is_some() { parameter } else { setting };
            let whole = |pieces: &[String]| match &uri {
                Some(start) => format!("postgres://{start}?{}", pieces.join("&")),
                None => pieces.join(" "),
            };
            let mut pieces: Vec<String> = theirs.iter().map(|(keyword, value, style)| write(keyword, value, *style)).collect();
            let expected = libpq::parse(&c_string(&whole(&pieces)).unwrap()).ok().unwrap();
            pieces.insert(place.index(pieces.len() + 1), write("region_name", &region, style));
            pieces.insert(place.index(pieces.len() + 1), write("iam_host", &iam_host, !style));
            let given = Given::parse(&whole(&pieces)).unwrap();
            prop_assert_eq!(given.explicit, expected);
            let some = |value: String| (!value.is_empty()).then_some(value);
            prop_assert_eq!((given.own.region_name, given.own.iam_host), (some(region), some(iam_host)));
        }

        #[test]
        fn no_string_makes_us_panic(conninfo in any::<String>()) {
            let _ = Given::parse(&conninfo).and_then(|given| given.with_iam());
        }
    }
}
