//! A libpq connection string: parsed, defaulted, checked, rendered with a password.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::fmt;

use crate::libpq::{self, Complaint, Setting};
use crate::{Error, HostName};

/// A connection string as the user gave it, in libpq's part and ours.
#[derive(Clone)]
pub(crate) struct Given {
    /// What libpq gets to see; none when only PG* variables are used.
    text: Option<CString>,
    pub(crate) own: OwnKeys,
}

/// The keywords that are ours. libpq does not know them and never gets them.
#[derive(Clone, Default, Debug, PartialEq)]
pub(crate) struct OwnKeys {
    pub(crate) rds_iam_auth: Option<bool>,
    pub(crate) region_name: Option<String>,
    pub(crate) iam_host: Option<String>,
    pub(crate) iam_port: Option<u16>,
}

/// The settings of a connection that logs in with a token.
#[derive(Clone)]
pub(crate) struct IamConninfo {
    settings: BTreeMap<String, String>,
    /// Keywords whose values people must not see.
    secret: Vec<String>,
}

/// What is set where the user sets nothing, and why.
const DEFAULTS: &[(&str, &str)] = &[
    // A token is a password in clear text inside TLS: whoever ends the TLS can use it.
    ("sslmode", "verify-full"),
    // Seconds. libpq waits for ever; the kernel gives up on a silent host after two minutes.
    ("connect_timeout", "10"),
    // Milliseconds. Frees a query in flight to a host that has gone without a word.
    ("tcp_user_timeout", "15000"),
    // 10 + 3 * 5 seconds: an idle connection to a dead host ends within half a minute.
    ("keepalives_idle", "10"),
    ("keepalives_interval", "5"),
    ("keepalives_count", "3"),
    // Saves a round trip; RDS with IAM does not speak GSSAPI encryption.
    ("gssencmode", "disable"),
    // A server that asks for anything else than the token in TLS is not one that knows IAM (libpq 16).
    ("require_auth", "password"),
];

const NO_HOST: &str =
    "it names no host, and IAM authentication is for RDS over TCP; set host= or PGHOST to the RDS endpoint";

/// The longest name that PostgreSQL keeps, in bytes (NAMEDATALEN - 1).
pub(crate) const LONGEST_NAME: usize = 63;

impl Given {
    /// Takes our own keywords out of `conninfo`; the rest must be what libpq understands.
    pub(crate) fn parse(conninfo: &str) -> Result<Given, Error> {
        if conninfo.trim().is_empty() {
            return invalid("it is empty; give postgres://USER@HOST:5432/DATABASE");
        }
        if conninfo.contains('\0') {
            return invalid("it holds a NUL byte; remove it");
        }
        check_at_signs(conninfo)?;
        let (rest, own) = take_own_keys(conninfo)?;
        let text = c_string(&rest)?;
        libpq::parse(&text).map_err(|complaint| safe(&complaint, conninfo))?;
        Ok(Given { text: Some(text), own })
    }

    /// No string at all: what libpq's PG* variables say.
    pub(crate) fn from_variables() -> Given {
        Given { text: None, own: OwnKeys::default() }
    }

    /// The string for libpq as it came, less our own keywords: a login without IAM.
    pub(crate) fn without_iam(&self) -> Result<String, Error> {
        let all = libpq::complete(self.text.as_deref()).map_err(|complaint| safe(&complaint, &self.shown()))?;
        // libpq checks the port only when it dials, and then quotes it: half a password, if that was not encoded.
        check_ports(all["port"].value.as_deref().unwrap_or_default())?;
        Ok(self.shown())
    }

    fn shown(&self) -> String {
        self.text.as_deref().map_or("".into(), CStr::to_string_lossy).into_owned()
    }

    /// The settings for a login with a token: completed by libpq, checked, and with our defaults.
    pub(crate) fn with_iam(&self) -> Result<IamConninfo, Error> {
        let shown = self.shown();
        let explicit = match &self.text {
            Some(text) => libpq::parse(text).map_err(|complaint| safe(&complaint, &shown))?,
            None => BTreeMap::new(),
        };
        let all = libpq::complete(self.text.as_deref()).map_err(|complaint| safe(&complaint, &shown))?;
        if let Some(place) = self.place_of_password(&explicit, &all["password"]) {
            return invalid(format!(
                "{place} holds a password, but IAM authentication makes its own: remove the password, or set rds_iam_auth=false to log in with it"
            ));
        }
        let secret = all.iter().filter(|(_, setting)| setting.secret).map(|(keyword, _)| keyword.clone());
        let secret = secret.collect();
        let set = |keyword: &String, setting: &Setting| {
            explicit.contains_key(keyword)
                || setting.value != setting.compiled
                || setting.variable.as_ref().is_some_and(|name| std::env::var_os(name).is_some())
        };
        let mut settings: BTreeMap<String, String> = all
            .iter()
            .filter(|(keyword, setting)| PINNED.contains(&keyword.as_str()) || set(keyword, setting))
            .filter(|(keyword, _)| !DROPPED.contains(&keyword.as_str()))
            .filter_map(|(keyword, setting)| Some((keyword.clone(), setting.value.clone().filter(|v| !v.is_empty())?)))
            .collect();
        // libpq::complete puts its own value here, over that of a service file, too.
        settings.remove("gssencmode");
        let gssencmode = explicit.get("gssencmode").cloned().or_else(|| std::env::var("PGGSSENCMODE").ok());
        settings.extend(gssencmode.map(|value| ("gssencmode".into(), value)));
        for (keyword, value) in DEFAULTS {
            if all.contains_key(*keyword) {
                settings.entry((*keyword).into()).or_insert_with(|| (*value).into());
            }
        }
        if let Some(name) = program() {
            settings.entry("fallback_application_name".into()).or_insert(name);
        }
        let conninfo = IamConninfo { settings, secret };
        conninfo.check()?;
        Ok(conninfo)
    }
}

impl Given {
    /// Where a password is said that has no place beside IAM. PGPASSWORD is the string's only where there is none: in
    /// the environment of a program that has its own DATABASE_URL it is somebody else's.
    fn place_of_password(&self, explicit: &BTreeMap<String, String>, password: &Setting) -> Option<&'static str> {
        let set = |value: Option<&String>| value.is_some_and(|value| !value.is_empty());
        let in_environment = std::env::var_os("PGPASSWORD").is_some();
        if set(explicit.get("password")) {
            Some("it")
        } else if in_environment && self.text.is_some() {
            log::warn!("PGPASSWORD is set and not used: the connection string has no password, so IAM makes one");
            None
        } else if in_environment {
            Some("PGPASSWORD")
        } else {
            set(password.value.as_ref()).then_some("the service file")
        }
    }
}

/// Written out even where libpq would default them, so that the name signed for is the name dialled.
const PINNED: &[&str] = &["host", "port", "user", "dbname"];

/// Answered already (`service`), or without a meaning beside a token (`passfile`).
const DROPPED: &[&str] = &["service", "servicefile", "passfile", "password"];

impl IamConninfo {
    fn get(&self, keyword: &str) -> Option<&str> {
        self.settings.get(keyword).map(String::as_str)
    }

    /// The host to dial and, unless `iam_host` says otherwise, to sign for.
    pub(crate) fn host(&self) -> &str {
        self.get("host").unwrap_or_default()
    }

    /// The address to dial instead of resolving the host, where the user gave one.
    pub(crate) fn hostaddr(&self) -> Option<&str> {
        self.get("hostaddr")
    }

    pub(crate) fn port(&self) -> u16 {
        self.get("port").and_then(|port| port.parse().ok()).unwrap_or_default()
    }

    pub(crate) fn user(&self) -> &str {
        self.get("user").unwrap_or_default()
    }

    pub(crate) fn sslmode(&self) -> &str {
        self.get("sslmode").unwrap_or_default()
    }

    /// The query that tells whether the server still is what `target_session_attrs` wants; none where any will do.
    pub(crate) fn role_check(&self) -> Option<&'static str> {
        match self.get("target_session_attrs")? {
            "read-write" => Some(
                "SELECT NOT pg_is_in_recovery() AND NOT current_setting('default_transaction_read_only')::boolean AS fits",
            ),
            "primary" => Some("SELECT NOT pg_is_in_recovery() AS fits"),
            _ => None,
        }
    }

    /// The string for libpq, with a password and with what else holds for this one connection.
    pub(crate) fn with_password(&self, password: &str, for_this: &[(&str, &str)]) -> String {
        let mut settings: BTreeMap<&str, &str> = self.settings.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        settings.insert("password", password);
        settings.extend(for_this.iter().copied());
        render(settings)
    }

    fn check(&self) -> Result<(), Error> {
        self.check_one_host()?;
        self.check_host()?;
        self.check_tls()?;
        let user = self.user();
        match user.len() {
            0 => invalid("it names no user; give user= the database user that has the role rds_iam"),
            1..=LONGEST_NAME => Ok(()),
            length => invalid(format!(
                "the user name has {length} bytes, and PostgreSQL keeps {LONGEST_NAME}; give the name of the role as it is in pg_roles"
            )),
        }
    }

    fn check_one_host(&self) -> Result<(), Error> {
        let several = ["host", "hostaddr", "port"].into_iter().find(|k| self.get(k).is_some_and(|v| v.contains(',')));
        match several {
            Some(keyword) => invalid(format!(
                "{keyword} names several hosts, which is not supported yet: an IAM token is for one host; name one"
            )),
            None => Ok(()),
        }
    }

    fn check_host(&self) -> Result<(), Error> {
        check_ports(self.get("port").unwrap_or_default())?;
        match self.host() {
            // The name to sign for, and to check, can still come from iam_host.
            "" if self.hostaddr().is_some() => Ok(()),
            "" => invalid(NO_HOST),
            host if host.starts_with(['/', '@']) => invalid(
                "the host is a unix socket, and IAM authentication is for RDS over TCP; name the RDS endpoint, or set rds_iam_auth=false",
            ),
            _ => Ok(()),
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

/// Key/value form, every value quoted (libpq, "Keyword/Value Connection Strings").
pub(crate) fn render(settings: BTreeMap<&str, &str>) -> String {
    let quote = |value: &str| value.replace('\\', r"\\").replace('\'', r"\'");
    let pairs = settings.into_iter().map(|(keyword, value)| format!("{keyword}='{}'", quote(value)));
    pairs.collect::<Vec<_>>().join(" ")
}

/// The program's name, for pg_stat_activity where no application_name is set.
fn program() -> Option<String> {
    let path = std::env::current_exe().ok()?;
    Some(path.file_stem()?.to_string_lossy().into_owned())
}

/// Cuts our own keywords out of a connection string, which libpq would refuse. Values are unquoted by libpq.
fn take_own_keys(text: &str) -> Result<(String, OwnKeys), Error> {
    let (rest, pairs) = if is_uri(text) { cut_uri(text) } else { cut_key_value(text) };
    let mut own = OwnKeys::default();
    for (keyword, raw) in pairs {
        let carrier = if is_uri(text) { "postgresql:///?application_name=" } else { "application_name=" };
        let carried = c_string(&format!("{carrier}{raw}"))?;
        let about_ours = |Complaint(message)| safe(&Complaint(message.replace("application_name", keyword)), text);
        let parsed = libpq::parse(&carried).map_err(about_ours)?;
        let value = parsed.get("application_name").map(String::as_str).unwrap_or_default();
        own.set(keyword, value)?;
    }
    Ok((rest, own))
}

impl OwnKeys {
    const ALL: [&'static str; 4] = ["rds_iam_auth", "region_name", "iam_host", "iam_port"];

    /// These keys, and the others where these say nothing.
    pub(crate) fn or(self, others: OwnKeys) -> OwnKeys {
        OwnKeys {
            rds_iam_auth: self.rds_iam_auth.or(others.rds_iam_auth),
            region_name: self.region_name.or(others.region_name),
            iam_host: self.iam_host.or(others.iam_host),
            iam_port: self.iam_port.or(others.iam_port),
        }
    }

    fn set(&mut self, keyword: &str, value: &str) -> Result<(), Error> {
        let some = (!value.is_empty()).then(|| value.to_owned());
        match keyword {
            "rds_iam_auth" => self.rds_iam_auth = Some(parse_bool(value)?),
            "region_name" => self.region_name = some,
            "iam_host" => self.iam_host = some,
            _ => self.iam_port = some.map(|port| parse_port(&port)).transpose()?,
        }
        Ok(())
    }
}

fn parse_bool(value: &str) -> Result<bool, Error> {
    match value.to_ascii_lowercase().as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => invalid("rds_iam_auth is neither true nor false; say rds_iam_auth=true or rds_iam_auth=false"),
    }
}

fn parse_port(value: &str) -> Result<u16, Error> {
    match value.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => invalid("iam_port is not a number from 1 to 65535; give the port of the real endpoint, as 5432"),
    }
}

/// What libpq takes for a URI; anything else is key/value.
fn is_uri(text: &str) -> bool {
    text.starts_with("postgresql://") || text.starts_with("postgres://")
}

/// Where the host begins. As in libpq: an '@' before the first '/' ends user and password, which may hold a '?'.
fn host_of_uri(text: &str) -> usize {
    let authority = text.find("://").map_or(0, |i| i + 3);
    match text[authority..].find(['@', '/']) {
        Some(i) if text[authority + i..].starts_with('@') => authority + i + 1,
        _ => authority,
    }
}

/// The URI without our parameters, and those with their raw values.
fn cut_uri(text: &str) -> (String, Vec<(&str, &str)>) {
    let host = host_of_uri(text);
    let Some(query) = text[host..].find('?').map(|i| host + i) else {
        return (text.to_owned(), Vec::new());
    };
    let is_own = |pair: &&str| pair.split_once('=').is_some_and(|(keyword, _)| OwnKeys::ALL.contains(&keyword));
    let (own, others): (Vec<&str>, Vec<&str>) = text[query + 1..].split('&').partition(is_own);
    let separator = if others.is_empty() { "" } else { "?" };
    let rest = format!("{}{separator}{}", &text[..query], others.join("&"));
    (rest, own.into_iter().filter_map(|pair| pair.split_once('=')).collect())
}

/// The key/value string without our settings, and those with their raw values.
fn cut_key_value(text: &str) -> (String, Vec<(&str, &str)>) {
    let (mut rest, mut own) = (String::new(), Vec::new());
    let mut input = text;
    while let Some((keyword, after)) = input.split_once('=') {
        let value_start = after.len() - after.trim_start_matches(is_space).len();
        let value_end = value_start + value_length(&after[value_start..]);
        let setting_length = input.len() - after.len() + value_end;
        match OwnKeys::ALL.into_iter().find(|own| *own == keyword.trim_matches(is_space)) {
            Some(keyword) => own.push((keyword, &after[value_start..value_end])),
            None => rest.push_str(&input[..setting_length]),
        }
        // After a closing quote the next keyword needs no space, which the two around us may.
        rest.push_str(if OwnKeys::ALL.contains(&keyword.trim_matches(is_space)) { " " } else { "" });
        input = &input[setting_length..];
    }
    rest.push_str(input);
    (rest, own)
}

/// How long the value at the start of `text` is, quotes included, by libpq's rules.
fn value_length(text: &str) -> usize {
    let quoted = text.starts_with('\'');
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(usize::from(quoted)) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '\'' if quoted => return at + 1,
            _ if !quoted && is_space(c) => return at,
            _ => {}
        }
    }
    text.len()
}

/// isspace() of the C locale.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\x0b' | '\x0c' | '\r')
}

fn c_string(text: &str) -> Result<CString, Error> {
    CString::new(text).or_else(|_| invalid("it holds a NUL byte; remove it"))
}

/// Refuses a URI whose user or password holds an '@' or a '/' as it is: libpq would take half of it for the host or
/// the database, dial that, and print it.
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
    invalid("the port is not a number from 1 to 65535; RDS for PostgreSQL listens on 5432 by default")
}

pub(crate) fn invalid<T>(reason: impl Into<String>) -> Result<T, Error> {
    Err(Error::Conninfo(reason.into()))
}

/// libpq's complaint, with its cure, and without what it quotes where that can be part of a password.
fn safe(Complaint(message): &Complaint, conninfo: &str) -> Error {
    let message = message.trim_end();
    // What stands where a keyword should can be anything: the second half of a password with a space in it.
    let hide_all = message.starts_with(NO_EQUALS_SIGN) || may_hold_secret(conninfo);
    let parts = message.split('"').enumerate();
    let shown = parts.map(|(i, part)| match i % 2 {
        0 => part.to_owned(),
        _ if hide_all || !is_word(part) => "\"***\"".to_owned(),
        _ => format!("\"{part}\""),
    });
    Error::Conninfo(format!("libpq says: {}; {}", shown.collect::<String>(), cure(message, conninfo)))
}

/// A keyword, or one of the words that are the values of some: nothing else is shown.
fn is_word(text: &str) -> bool {
    text.len() <= 32 && text.bytes().all(|b| b.is_ascii_alphabetic() || b"_-=".contains(&b))
}

const UNKNOWN_KEYWORD: &str =
    "check its spelling against libpq's parameter key words and ours: rds_iam_auth, region_name, iam_host, iam_port";

const NO_EQUALS_SIGN: &str = "missing \"=\"";

fn cure(message: &str, conninfo: &str) -> &'static str {
    const CURES: &[(&str, &str)] = &[
        (
            NO_EQUALS_SIGN,
            "write a URI, postgres://USER@HOST:5432/DATABASE, or pairs keyword=value, with values that hold spaces in single quotes",
        ),
        ("invalid connection option", UNKNOWN_KEYWORD),
        ("invalid URI query parameter", UNKNOWN_KEYWORD),
        ("percent-encoded", "write a % that stands for itself as %25"),
        ("of service", "check PGSERVICE, PGSERVICEFILE and ~/.pg_service.conf"),
    ];
    if conninfo.contains("X-Amz-") {
        return "it holds a token; leave that out, for each connection signs its own";
    }
    CURES
        .iter()
        .find(|(symptom, _)| message.contains(symptom))
        .map_or("see \"Connection Strings\" in libpq's documentation", |(_, cure)| cure)
}

/// A password, or a token where it does not belong.
fn may_hold_secret(conninfo: &str) -> bool {
    let authority = conninfo.split_once("://").map_or("", |(_, rest)| rest);
    authority.contains('@') && authority.contains(':') || conninfo.contains("pass") || conninfo.contains("X-Amz-")
}

/// The name that a token is signed for must be a name: RDS knows itself by no address.
pub(crate) fn check_signed_host(host: &str) -> Result<(), Error> {
    if host.is_empty() {
        return invalid(NO_HOST);
    }
    if host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok() {
        return invalid(
            "the host is an IP address, and a token is signed for a name; set iam_host= to the RDS endpoint",
        );
    }
    HostName::parse(host).map(|_| ())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::token::encode;

    /// What a manager would give to libpq, parsed by libpq.
    fn for_libpq(conninfo: &str) -> BTreeMap<String, String> {
        let settings = Given::parse(conninfo).and_then(|given| given.with_iam()).unwrap();
        libpq::parse(&c_string(&settings.with_password("TOKEN", &[])).unwrap()).ok().unwrap()
    }

    #[test]
    fn both_forms_mean_the_same() {
        let uri = "postgresql://a%20b@db.example.com:6432/the%20db?connect_timeout=3&options=-c%20geqo%3Doff";
        let pairs =
            r"host=db.example.com port = 6432 user='a b' dbname=the\ db connect_timeout=3 options='-c geqo=off'";
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
            ("tcp_user_timeout", "15000", "1"),
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
        assert_eq!(for_libpq("postgres://app@db.example.com/app").contains_key("require_auth"), known);
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
        let given = Given::parse("host=db.example.com user=app sslkey=/k sslpassword=hunter2").unwrap();
        let shown = given.with_iam().unwrap().to_string();
        assert!(shown.contains("sslkey='/k'") && shown.contains("sslpassword='***'"), "{shown}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn without_iam_the_string_stays_as_it_came_less_our_keys() {
        let cases = [
            ("postgres://u:p%3F@h/d?rds_iam_auth=false", "postgres://u:p%3F@h/d"),
            ("postgres://u:p?@h/d?sslmode=disable&rds_iam_auth=false", "postgres://u:p?@h/d?sslmode=disable"),
            ("postgres://h?rds_iam_auth=false&connect_timeout=1", "postgres://h?connect_timeout=1"),
            ("host=h rds_iam_auth = 'false'  user='a\\'b=c'", "host=h   user='a\\'b=c'"),
            ("host=h rds_iam_auth='false'user=u", "host=h user=u"),
            ("region_name=x iam_host=y iam_port=1 rds_iam_auth=FALSE", "    "),
        ];
        for (conninfo, rest) in cases {
            let given = Given::parse(conninfo).unwrap();
            assert_eq!(given.own.rds_iam_auth, Some(false));
            assert_eq!(given.without_iam().unwrap(), rest, "{conninfo}");
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

    proptest! {
        #[test]
        fn what_we_render_libpq_reads_back(user in text(), password in text(), options in text(), host in text()) {
            let settings = [("host", &host), ("options", &options), ("password", &password), ("user", &user)];
            let rendered = render(settings.iter().map(|(keyword, value)| (*keyword, value.as_str())).collect());
            let parsed = libpq::parse(&c_string(&rendered).unwrap()).ok().unwrap();
            prop_assert_eq!(parsed, settings.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect());
        }

        #[test]
        fn our_keys_come_out_of_any_company(values in proptest::collection::vec(text(), 4), first in any::<bool>()) {
            let own = [("region_name", values[0].as_str()), ("iam_host", &values[1])];
            let others = [("user", values[2].as_str()), ("options", &values[3])];
            let all: Vec<(&str, &str)> =
                if first { own.iter().chain(&others).copied().collect() } else { others.iter().chain(&own).copied().collect() };
            let pairs: Vec<String> = all.iter().map(|pair| render([*pair].into())).collect();
            let query: Vec<String> = all.iter().map(|(keyword, value)| format!("{keyword}={}", encode(value))).collect();
            for conninfo in [pairs.join(" "), format!("postgresql:///?{}", query.join("&"))] {
                let given = Given::parse(&conninfo).unwrap();
                let some = |value: &str| (!value.is_empty()).then(|| value.to_owned());
                prop_assert_eq!(given.own.region_name, some(&values[0]));
                prop_assert_eq!(given.own.iam_host, some(&values[1]));
                let parsed = libpq::parse(given.text.as_ref().unwrap()).ok().unwrap();
                prop_assert_eq!(&parsed["user"], &values[2]);
                prop_assert_eq!(&parsed["options"], &values[3]);
            }
        }

        #[test]
        fn no_string_makes_us_panic(conninfo in any::<String>()) {
            let _ = Given::parse(&conninfo).and_then(|given| given.with_iam());
        }
    }
}
