//! libpq's functions for connection strings.
#![expect(unsafe_code, reason = "libpq is a C library; pq-sys declares it as it is")]

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char};
use std::ptr;

use pq_sys::{
    PQconnectStartParams, PQconninfo, PQconninfoFree, PQconninfoOption, PQconninfoParse,
    PQerrorMessage, PQfinish, PQfreemem, PQlibVersion,
};

use crate::error::Error;

/// The value of one of libpq's keywords.
#[derive(Clone)]
pub(crate) struct Setting {
    pub(crate) value: Option<String>,
    /// The value built into libpq.
    pub(crate) compiled: Option<String>,
    /// The environment variable that libpq reads for it.
    pub(crate) variable: Option<String>,
    /// libpq's mark "password field - hide value".
    pub(crate) secret: bool,
}

/// libpq's settings by keyword.
pub(crate) type Settings = BTreeMap<String, Setting>;

/// libpq's message about a string. It can quote any part of that string, also a secret.
pub(crate) struct Complaint(pub(crate) String);

/// Refuses a libpq without a setting or a function that a login needs.
pub(crate) fn check_version() -> Result<(), Error> {
    // SAFETY: the function has no preconditions.
    check(unsafe { PQlibVersion() })
}

fn check(version: i32) -> Result<(), Error> {
    if version >= 140_000 {
        return Ok(());
    }
    Err(Error::Config(format!(
        "this program runs with libpq {}; install libpq 14 or newer (package libpq5, or libpq), or \
         build it with the feature bundled",
        version / 10_000
    )))
}

/// Parses `conninfo` (URI or key/value) and returns only what it sets.
pub(crate) fn parse(conninfo: &CStr) -> Result<BTreeMap<String, String>, Complaint> {
    let set = |(keyword, setting): (String, Setting)| Some((keyword, setting.value?));
    Ok(parse_all(conninfo)?.into_iter().filter_map(set).collect())
}

/// Returns all keywords that this libpq knows, without values.
pub(crate) fn keywords() -> Settings {
    parse_all(c"").unwrap_or_default()
}

fn parse_all(conninfo: &CStr) -> Result<Settings, Complaint> {
    let mut message = ptr::null_mut();
    // SAFETY: `conninfo` ends in NUL and lives through the call; `message` is a valid place for a
    // pointer.
    let options = unsafe { PQconninfoParse(conninfo.as_ptr(), &raw mut message) };
    let settings = take(options);
    if message.is_null() {
        return Ok(settings);
    }
    let complaint = copy(message).unwrap_or_default();
    // SAFETY: PQconninfoParse allocated the message for us, and nothing points to it any more.
    unsafe { PQfreemem(message.cast()) };
    Err(Complaint(complaint))
}

/// Completes `conninfo` as libpq does at the start of a connection: by the service file, by PG*
/// variables and by its own defaults. libpq checks the values. `variables` replace the PG*
/// variables of these keywords, except for `dbname`; `conninfo` wins over both.
///
/// PQconndefaults does not resolve the service that a string names, and no other function does. So
/// this starts a connection with a `gssencmode` that libpq must refuse before it dials.
pub(crate) fn complete(
    conninfo: Option<&CStr>,
    variables: &[(CString, CString)],
) -> Result<Settings, Complaint> {
    const REFUSED: &CStr = c"none of libpq's";
    let (mut keywords, mut values) = (Vec::new(), Vec::new());
    let last = [(c"dbname", conninfo.unwrap_or(c"")), (c"gssencmode", REFUSED)];
    let variables = variables.iter().map(|(keyword, value)| (keyword.as_ref(), value.as_ref()));
    for (keyword, value) in variables.chain(last) {
        keywords.push(keyword.as_ptr());
        values.push(value.as_ptr());
    }
    keywords.push(ptr::null());
    values.push(ptr::null());
    // SAFETY: both arrays end in NULL, hold strings that end in NUL, and live through the call.
    let conn = unsafe { PQconnectStartParams(keywords.as_ptr(), values.as_ptr(), 1) };
    // SAFETY: PQerrorMessage and PQconninfo accept what PQconnectStartParams returned, NULL
    // included; the message is copied before PQfinish frees it.
    let (message, settings) = unsafe { (copy(PQerrorMessage(conn)), take(PQconninfo(conn))) };
    // SAFETY: `conn` is not used again.
    unsafe { PQfinish(conn) };
    match message {
        Some(text) if text.contains("invalid gssencmode value") => Ok(settings),
        Some(text) => Err(Complaint(text)),
        None => Err(Complaint("out of memory".into())),
    }
}

/// Copies libpq's array of options and frees it. Returns an empty map for NULL.
fn take(options: *mut PQconninfoOption) -> Settings {
    let mut settings = Settings::new();
    if options.is_null() {
        return settings;
    }
    let mut next = options;
    // SAFETY: the array is libpq's; the entry after its last has a null keyword.
    while let Some(option) = unsafe { next.as_ref() }
        && let Some(keyword) = copy(option.keyword)
    {
        let setting = Setting {
            value: copy(option.val),
            compiled: copy(option.compiled),
            variable: copy(option.envvar),
            secret: copy(option.dispchar).is_some_and(|how| how == "*"),
        };
        settings.insert(keyword, setting);
        // SAFETY: this entry was not the last, so there is one after it.
        next = unsafe { next.add(1) };
    }
    // SAFETY: the array came from libpq, and all of it has been copied.
    unsafe { PQconninfoFree(options) };
    settings
}

/// Copies a string of libpq. Returns `None` for NULL.
fn copy(text: *const c_char) -> Option<String> {
    // SAFETY: libpq's strings end in NUL and are not changed while we copy.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completes_without_dialling() {
        // 192.0.2.1 is reserved for documentation: no host answers there, so a dial would wait.
        let settings =
            complete(Some(c"host=192.0.2.1 user=u dbname=d"), &[]).ok().expect("libpq refuses");
        assert_eq!(settings["host"].value.as_deref(), Some("192.0.2.1"));
        assert_eq!(settings["port"].value.as_deref(), Some("5432"));
        assert!(settings["password"].secret);
        assert!(!settings["host"].secret);
    }

    #[test]
    fn a_libpq_older_than_14_is_refused_with_a_package_and_a_feature() {
        assert!(check(140_000).is_ok() && check_version().is_ok());
        let error = check(130_016).unwrap_err().to_string();
        for part in ["libpq 13;", "libpq5", "bundled"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn returns_libpqs_words() {
        let Complaint(text) = parse(c"hostt=a").unwrap_err();
        assert!(text.contains("invalid connection option"), "{text}");
        let Complaint(text) = complete(Some(c"host=a sslmode=never"), &[]).err().expect("refused");
        assert!(text.contains("invalid sslmode value"), "{text}");
        let Complaint(text) =
            complete(Some(c"service=no_such_service"), &[]).err().expect("refused");
        assert!(text.contains("no_such_service"), "{text}");
    }

    #[test]
    fn a_replaced_variable_counts_less_than_the_string() {
        let variables = [(c"port", c"1"), (c"user", c"of_variable")]
            .map(|(keyword, value)| (keyword.to_owned(), value.to_owned()));
        let settings = complete(Some(c"host=192.0.2.1 user=u"), &variables).ok().unwrap();
        let value = |keyword: &str| settings[keyword].value.as_deref();
        assert_eq!(value("port"), Some("1"));
        assert_eq!(value("user"), Some("u"));
    }
}
