//! [`ConnectionString`]: what the user wrote, in libpq's part and ours.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::time::Duration;

use super::checks::{check_at_signs, check_numbers, check_region};
use super::iam::{IamConninfo, has_default};
use super::keywords::Keywords;
use super::libpq::{self, Setting, Settings};
use super::redact::redacted;
use super::variables::untrimmed_variables;
use super::{c_string, host_of_uri, invalid, is_uri, malformed};
use crate::connection::role_check;
use crate::error::Error;

/// A connection string, completed by libpq's PG* variables and service file.
#[derive(Clone)]
pub(crate) struct ConnectionString {
    /// The part for libpq. `None` if only PG* variables are used.
    text: Option<CString>,
    /// The settings in `text`.
    explicit: BTreeMap<String, String>,
    pub(crate) keywords: Keywords,
}

/// Written out even if libpq has a default, so that the name signed for is the name dialled.
const PINNED: &[&str] = &["host", "port", "user", "dbname"];

/// The settings of a login without IAM (`rds_iam_auth=false`).
pub(crate) struct PasswordConninfo {
    pub(crate) string: ConnectionString,
    pub(crate) connect_timeout: Option<Duration>,
    /// As [`IamConninfo::tcp_user_timeout`]. Also `None` if a host is a unix socket.
    pub(crate) tcp_user_timeout: Option<u32>,
    /// The query whether the server still has the role of `target_session_attrs`.
    pub(crate) role_check: Option<&'static str>,
}

impl PasswordConninfo {
    /// Returns the string for one login. It has `gssencmode=disable` if nothing sets it: the
    /// Kerberos library aborts a program that ends while a thread is inside it.
    pub(crate) fn for_login(&self, tcp_user_timeout: Option<u32>) -> String {
        let has_gssencmode = self.string.is_set("service", "PGSERVICE")
            || self.string.is_set("gssencmode", "PGGSSENCMODE");
        let gssencmode = (!has_gssencmode).then(|| "gssencmode=disable".to_owned());
        let timeout = tcp_user_timeout.map(|it| format!("tcp_user_timeout={it}"));
        let mut text = self.string.text();
        for setting in gssencmode.into_iter().chain(timeout) {
            text.push(match () {
                () if !is_uri(&text) => ' ',
                () if text[host_of_uri(&text)..].contains('?') => '&',
                () => '?',
            });
            text.push_str(&setting);
        }
        text
    }
}

impl ConnectionString {
    /// Takes our own keywords out of `conninfo`. libpq must understand the rest.
    pub(crate) fn parse(conninfo: &str) -> Result<ConnectionString, Error> {
        let conninfo = trimmed(conninfo);
        if conninfo.is_empty() {
            return invalid("it is empty; set it to postgres://USER@HOST:5432/DATABASE");
        }
        c_string(conninfo)?;
        if let Some(cause) = malformed::cause(conninfo) {
            return invalid(cause);
        }
        check_at_signs(conninfo)?;
        let (rest, keywords) = Keywords::take_from(conninfo)?;
        let text = c_string(&rest)?;
        let explicit = libpq::parse(&text).map_err(|complaint| redacted(&complaint, conninfo))?;
        Ok(ConnectionString { text: Some(text), explicit, keywords })
    }

    /// Makes an empty string, which libpq's PG* variables complete.
    pub(crate) fn from_variables() -> ConnectionString {
        ConnectionString { text: None, explicit: BTreeMap::new(), keywords: Keywords::default() }
    }

    /// Whether the string names a service, or there is no string.
    pub(crate) fn needs_files_or_variables(&self) -> bool {
        self.text.is_none() || self.explicit.contains_key("service")
    }

    /// Whether the string itself contains a password.
    pub(crate) fn has_password(&self) -> bool {
        self.explicit.contains_key("password")
    }

    /// Returns the settings of a login without IAM.
    pub(crate) fn without_iam(&self) -> Result<PasswordConninfo, Error> {
        if self.keywords.load_balance_hosts.is_some() {
            return invalid(
                "this libpq is too old for load_balance_hosts; remove it, or update libpq to 16",
            );
        }
        let mut untrimmed = untrimmed_variables().into_iter();
        if let Some(variable) = untrimmed.find(|it| it.value.ends_with(['\n', '\r'])) {
            return invalid(format!("{} ends in a newline; remove it", variable.name));
        }
        let all = self.complete()?;
        check_numbers(&all)?;
        let value = |keyword: &str| all.get(keyword)?.value.as_deref();
        Ok(PasswordConninfo {
            string: self.clone(),
            connect_timeout: value("connect_timeout").and_then(seconds),
            tcp_user_timeout: all
                .get("tcp_user_timeout")
                .filter(|_| is_tcp(value("host").or(value("hostaddr")).unwrap_or_default()))
                .map(|it| milliseconds(it.value.as_deref().unwrap_or_default())),
            role_check: value("target_session_attrs").and_then(role_check),
        })
    }

    /// Whether the string has this keyword, or the environment its variable.
    fn is_set(&self, keyword: &str, variable: &str) -> bool {
        self.explicit.contains_key(keyword) || std::env::var_os(variable).is_some()
    }

    /// Returns the string as it came, without our keywords.
    pub(crate) fn text(&self) -> String {
        self.text.as_deref().map_or("".into(), CStr::to_string_lossy).into_owned()
    }

    /// Returns the value of each of libpq's keywords.
    fn complete(&self) -> Result<Settings, Error> {
        let untrimmed = untrimmed_variables();
        // A service file wins over variables, but not over what we hand to libpq.
        if let Some(variable) = untrimmed.first()
            && self.is_set("service", "PGSERVICE")
        {
            return invalid(format!("{} ends in white space; remove it", variable.name));
        }
        let trimmed = untrimmed.iter().map(|it| (it.keyword.as_str(), it.value.trim_end()));
        // libpq takes dbname=... as a connection string, and checks no database's name.
        let (dbname, others): (Vec<_>, Vec<_>) = trimmed.partition(|it| it.0 == "dbname");
        let variables = others.into_iter().filter_map(|(keyword, value)| {
            Some((CString::new(keyword).ok()?, CString::new(value).ok()?))
        });
        let variables: Vec<(CString, CString)> = variables.collect();
        let mut all = libpq::complete(self.text.as_deref(), &variables)
            .map_err(|complaint| redacted(&complaint, &self.text()))?;
        if let Some((_, dbname)) = dbname.first()
            && !self.explicit.contains_key("dbname")
            && let Some(setting) = all.get_mut("dbname")
        {
            setting.value = Some((*dbname).to_owned());
        }
        Ok(all)
    }

    /// Returns the settings for a login with a token: completed by libpq, checked, and with our
    /// defaults.
    pub(crate) fn with_iam(&self) -> Result<IamConninfo, Error> {
        let all = self.complete()?;
        self.refuse_password(&all["password"])?;
        self.refuse_hidden_key_log(&all)?;
        check_numbers(&all)?;
        check_region(self.keywords.region_name.as_deref().unwrap_or_default())?;
        let chosen = self.chosen_of(&all);
        let conninfo = IamConninfo::new(chosen, &all, self.keywords.load_balance_hosts.clone())?;
        if !self.names_a_user() {
            log::warn!(
                "the connection string names no user: this logs in as {:?}, the user of this \
                 process; add USER@ or set PGUSER",
                conninfo.user()
            );
        }
        Ok(conninfo)
    }

    /// libpq falls back to the user of the process. A service file can name another one.
    fn names_a_user(&self) -> bool {
        let is_explicit = |keyword| self.explicit.contains_key(keyword);
        let is_set = |variable| std::env::var_os(variable).is_some_and(|value| !value.is_empty());
        is_explicit("user") || is_explicit("service") || is_set("PGUSER") || is_set("PGSERVICE")
    }

    /// Returns what the user chose in the string, in variables or in a service file.
    pub(crate) fn chosen_settings(&self) -> Result<BTreeMap<String, String>, Error> {
        let mut settings = self.chosen_of(&self.complete()?);
        settings.remove("service");
        settings.remove("servicefile");
        Ok(settings)
    }

    fn chosen_of(&self, all: &Settings) -> BTreeMap<String, String> {
        let chosen = all.iter().filter_map(|(keyword, setting)| {
            Some((keyword.clone(), self.chosen(keyword, setting)?))
        });
        chosen.collect()
    }

    fn chosen(&self, keyword: &str, setting: &Setting) -> Option<String> {
        let by_variable = setting.variable.as_ref().and_then(|name| std::env::var(name).ok());
        // libpq::complete replaces its value, also that of a service file.
        if keyword == "gssencmode" {
            let explicit = self.explicit.get(keyword).cloned();
            return explicit.or_else(|| Some(by_variable?.trim_end().to_owned()));
        }
        // libpq 16 and newer write this default into the settings, and have no compiled value.
        let filled_in = (keyword == "sslcertmode").then_some("allow");
        let is_chosen = PINNED.contains(&keyword)
            || self.explicit.contains_key(keyword)
            || setting.value.as_deref() != setting.compiled.as_deref().or(filled_in)
            || by_variable.is_some();
        // An explicit empty value keeps libpq from reading the variable.
        let may_be_empty = self.explicit.contains_key(keyword)
            && !PINNED.contains(&keyword)
            && !has_default(keyword);
        setting.value.clone().filter(|value| is_chosen && (may_be_empty || !value.is_empty()))
    }

    /// Refuses a log of TLS keys (libpq 18) that the string does not name: who has the log and the
    /// packets has the token.
    fn refuse_hidden_key_log(&self, all: &Settings) -> Result<(), Error> {
        let file = all.get("sslkeylogfile").and_then(|setting| setting.value.as_deref());
        if file.unwrap_or_default().is_empty() || self.explicit.contains_key("sslkeylogfile") {
            return Ok(());
        }
        invalid(
            "a service file or a variable sets sslkeylogfile: the keys that encrypt the token \
             would be written to a file; remove it, or set it in the connection string itself",
        )
    }

    /// Refuses a password beside IAM. PGPASSWORD counts only without a string: beside a
    /// DATABASE_URL it is often meant for another server.
    fn refuse_password(&self, password: &Setting) -> Result<(), Error> {
        let is_set = |value: Option<&String>| value.is_some_and(|value| !value.is_empty());
        let in_environment = std::env::var_os("PGPASSWORD").is_some();
        let place = if is_set(self.explicit.get("password")) {
            "it"
        } else if in_environment && self.text.is_some() {
            log::warn!(
                "PGPASSWORD is ignored: the connection string has no password, so it logs in by IAM"
            );
            return Ok(());
        } else if in_environment {
            "PGPASSWORD"
        } else if is_set(password.value.as_ref()) {
            "the service file"
        } else {
            return Ok(());
        };
        invalid(format!(
            "{place} contains a password, but IAM makes its own; remove the password, or set \
             rds_iam_auth=false to log in with it"
        ))
    }
}

/// Removes what surrounds a string that comes from a file or a secret store: a byte order mark, and
/// white space. libpq itself skips white space after pairs, where it can be a part of a value.
fn trimmed(conninfo: &str) -> &str {
    let start = conninfo.trim_start_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
    if is_uri(start) { start.trim_ascii_end() } else { start }
}

/// Reads libpq's time in seconds, of which zero and less means no limit.
pub(super) fn seconds(text: &str) -> Option<Duration> {
    text.trim().parse().ok().filter(|seconds| *seconds > 0).map(Duration::from_secs)
}

/// Reads libpq's time in milliseconds, of which zero and less means the system's own.
pub(super) fn milliseconds(text: &str) -> u32 {
    text.trim().parse().unwrap_or_default()
}

/// Whether libpq connects over TCP, whichever of these hosts it takes.
fn is_tcp(hosts: &str) -> bool {
    hosts.split(',').all(|host| !host.is_empty() && !host.starts_with(['/', '@']))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::render;
    use super::*;

    /// Returns what a manager gives to libpq, parsed by libpq.
    fn for_libpq(conninfo: &str) -> BTreeMap<String, String> {
        let settings =
            ConnectionString::parse(conninfo).and_then(|string| string.with_iam()).unwrap();
        libpq::parse(&c_string(&settings.with_password("TOKEN", &[])).unwrap()).ok().unwrap()
    }

    #[test]
    fn both_forms_mean_the_same() {
        let uri = "postgresql://a%20b@db.example.com:6432/the%20db?connect_timeout=3&\
                   options=-c%20geqo%3Doff";
        let pairs = "host=db.example.com port = 6432 user='a b' dbname=the\\ db \
                     connect_timeout=3 options='-c geqo=off'";
        assert_eq!(for_libpq(uri), for_libpq(pairs));
        assert_eq!(for_libpq(uri)["dbname"], "the db");
    }

    #[test]
    fn defaults_apply_only_if_nothing_is_set() {
        let plain = for_libpq("postgres://app@db.example.com/app");
        let set = for_libpq(
            "postgres://app@db.example.com/app?sslmode=require&connect_timeout=0&\
             tcp_user_timeout=1&gssencmode=prefer",
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
    fn what_libpq_fills_in_is_not_chosen() {
        let string = ConnectionString::parse("postgres://app@db.example.com/app").unwrap();
        let chosen = string.chosen_settings().unwrap();
        assert_eq!(
            chosen.keys().collect::<Vec<_>>(),
            ["dbname", "host", "passfile", "port", "user"]
        );
    }

    #[test]
    fn require_auth_is_set_if_libpq_knows_it() {
        let known = libpq::complete(None, &[]).ok().unwrap().contains_key("require_auth");
        assert_eq!(
            for_libpq("postgres://app@db.example.com/app").contains_key("require_auth"),
            known
        );
    }

    #[test]
    fn the_program_names_itself_by_default() {
        let named = for_libpq("host=db.example.com user=app application_name=mine");
        assert_eq!(named["application_name"], "mine");
        let program = &for_libpq("host=db.example.com user=app")["fallback_application_name"];
        assert!(program.starts_with("diesel_rds_iam"), "{program}");
    }

    #[test]
    fn display_shows_no_secrets() {
        let string =
            ConnectionString::parse("host=db.example.com user=app sslkey=/k sslpassword=hunter2")
                .unwrap();
        let shown = string.with_iam().unwrap().to_string();
        assert!(shown.contains("sslkey='/k'") && shown.contains("sslpassword='***'"), "{shown}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn without_iam_the_string_stays_as_it_came_without_our_keywords() {
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
            ("pool_max_size=2 rds_iam_auth=false max_lifetime=60 host=h", "    host=h"),
            ("\u{feff} postgres://h/d?rds_iam_auth=false\r\n", "postgres://h/d"),
            ("host=h user=a\\  rds_iam_auth=false user=a\\ ", "host=h user=a\\   user=a\\ "),
        ];
        for (conninfo, rest) in cases {
            let string = ConnectionString::parse(conninfo).unwrap();
            assert_eq!(string.keywords.rds_iam_auth, Some(false));
            let conninfo = string.without_iam().unwrap();
            assert_eq!(string.text(), rest);
            let parsed = libpq::parse(&c_string(&conninfo.for_login(None)).unwrap()).ok().unwrap();
            assert_eq!(parsed["gssencmode"], "disable", "{rest}");
            assert_eq!(parsed.len(), string.explicit.len() + 1, "{rest}");
        }
    }

    #[test]
    fn the_last_of_equal_keywords_counts() {
        for conninfo in ["iam_host=a iam_host=b", "postgres:///?iam_host=a&iam_host=b"] {
            assert_eq!(
                ConnectionString::parse(conninfo).unwrap().keywords.iam_host.as_deref(),
                Some("b")
            );
        }
    }

    fn text() -> impl Strategy<Value = String> {
        any::<String>().prop_map(|text| text.replace('\0', ""))
    }

    /// Writes a setting as key/value, in one of several ways.
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

    /// Writes a setting as a parameter of a URI, in one of several ways. (Without a '/', an '@'
    /// ends the user's name, also after a '?'.)
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
        fn what_we_render_libpq_reads_back(
            user in text(),
            password in text(),
            options in text(),
            host in text(),
        ) {
            let settings =
                [("host", &host), ("options", &options), ("password", &password), ("user", &user)];
            let rendered = render(settings.iter().map(|(k, v)| (*k, v.as_str())).collect());
            let parsed = libpq::parse(&c_string(&rendered).unwrap()).ok().unwrap();
            let expected = settings.iter().map(|(k, v)| (k.to_string(), v.to_string()));
            prop_assert_eq!(parsed, expected.collect());
        }

        #[test]
        fn libpq_reads_the_rest_as_if_our_keywords_were_absent(
            theirs in proptest::collection::vec(
                (prop_oneof!["user", "options", "service"], text(), any::<u8>()),
                1..4,
            ),
            (region, iam_host, style) in (text(), text(), any::<u8>()),
            place in any::<proptest::sample::Index>(),
            uri in proptest::option::of(
                prop_oneof!["", "h", "u%40:p%3F@h:1,[::1]:2/d%20d", "u:p?@h", "/d"],
            ),
        ) {
            let write = if uri.is_some() { parameter } else { setting };
            let whole = |pieces: &[String]| match &uri {
                Some(start) => format!("postgres://{start}?{}", pieces.join("&")),
                None => pieces.join(" "),
            };
            let written = theirs.iter().map(|(keyword, value, way)| write(keyword, value, *way));
            let mut pieces: Vec<String> = written.collect();
            let expected = libpq::parse(&c_string(&whole(&pieces)).unwrap()).ok().unwrap();
            pieces.insert(place.index(pieces.len() + 1), write("region_name", &region, style));
            pieces.insert(place.index(pieces.len() + 1), write("iam_host", &iam_host, !style));
            let string = ConnectionString::parse(&whole(&pieces)).unwrap();
            prop_assert_eq!(string.explicit, expected);
            let some = |value: String| (!value.is_empty()).then_some(value);
            let keywords = string.keywords;
            prop_assert_eq!(keywords.region_name, some(region));
            prop_assert_eq!(keywords.iam_host, some(iam_host));
        }

        #[test]
        fn no_string_makes_us_panic(conninfo in any::<String>()) {
            let _ = ConnectionString::parse(&conninfo).and_then(|string| string.with_iam());
        }
    }
}
