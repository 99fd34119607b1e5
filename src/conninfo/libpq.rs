//! What libpq knows of connection strings. The only module with unsafe code.
#![expect(unsafe_code, reason = "libpq is a C library; pq-sys declares it as it is")]

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char};
use std::ptr;

use pq_sys::{
    PQconnectStartParams, PQconninfo, PQconninfoFree, PQconninfoOption, PQconninfoParse,
    PQerrorMessage, PQfinish, PQfreemem,
};

/// One keyword of libpq, with the value that holds for it.
#[derive(Clone)]
pub(crate) struct Setting {
    pub(crate) value: Option<String>,
    /// The value built into libpq.
    pub(crate) compiled: Option<String>,
    /// The environment variable that libpq reads for it.
    pub(crate) variable: Option<String>,
    /// libpq's own judgement: "password field - hide value".
    pub(crate) secret: bool,
}

/// libpq's settings by keyword.
pub(crate) type Settings = BTreeMap<String, Setting>;

/// What libpq says of a string; it may quote any part of that string, secrets included.
pub(crate) struct Complaint(pub(crate) String);

/// Parses `conninfo` (URI or key/value) and returns only what it sets.
pub(crate) fn parse(conninfo: &CStr) -> Result<BTreeMap<String, String>, Complaint> {
    let mut message = ptr::null_mut();
    // SAFETY: `conninfo` ends in NUL and lives through the call; `message` is a valid place for a
    // pointer.
    let options = unsafe { PQconninfoParse(conninfo.as_ptr(), &raw mut message) };
    let settings = take(options);
    if message.is_null() {
        let given = |(keyword, setting): (String, Setting)| Some((keyword, setting.value?));
        return Ok(settings.into_iter().filter_map(given).collect());
    }
    let complaint = copy(message).unwrap_or_default();
    // SAFETY: PQconninfoParse allocated the message for us, and nothing points to it any more.
    unsafe { PQfreemem(message.cast()) };
    Err(Complaint(complaint))
}

/// Completes `conninfo` (NULL: nothing given) as libpq does at the start of a connection, from a
/// service file, PG* variables and its own defaults, and checks the values.
///
/// PQconndefaults would do but for a service that the string names, for which no other function
/// answers. So a connection is begun with a `gssencmode` that libpq must refuse before it dials.
pub(crate) fn complete(conninfo: Option<&CStr>) -> Result<Settings, Complaint> {
    const REFUSED: &CStr = c"none of libpq's";
    let keywords = [c"dbname".as_ptr(), c"gssencmode".as_ptr(), ptr::null()];
    let values = [conninfo.unwrap_or(c"").as_ptr(), REFUSED.as_ptr(), ptr::null()];
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

/// Copies libpq's array of options and frees it. NULL is an empty array.
fn take(options: *mut PQconninfoOption) -> Settings {
    let mut settings = Settings::new();
    if options.is_null() {
        return settings;
    }
    let mut next = options;
    // SAFETY: the array is libpq's; the entry after its last has a null keyword.
    while let Some((keyword, option)) =
        unsafe { next.as_ref() }.and_then(|o| Some((copy(o.keyword)?, o)))
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

/// Copies a string of libpq's. NULL is none.
fn copy(text: *const c_char) -> Option<String> {
    // SAFETY: libpq's strings end in NUL and are not changed while we copy.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completes_without_dialling() {
        // 192.0.2.1 is for documentation only: nobody answers there, so a dial would not come back
        // at once.
        let settings =
            complete(Some(c"host=192.0.2.1 user=u dbname=d")).ok().expect("libpq refuses");
        assert_eq!(settings["host"].value.as_deref(), Some("192.0.2.1"));
        assert_eq!(settings["port"].value.as_deref(), Some("5432"));
        assert!(settings["password"].secret);
        assert!(!settings["host"].secret);
    }

    #[test]
    fn complains_in_libpqs_words() {
        let Complaint(text) = parse(c"hostt=a").unwrap_err();
        assert!(text.contains("invalid connection option"), "{text}");
        let Complaint(text) = complete(Some(c"host=a sslmode=never")).err().expect("refused");
        assert!(text.contains("invalid sslmode value"), "{text}");
        let Complaint(text) = complete(Some(c"service=no_such_service")).err().expect("refused");
        assert!(text.contains("no_such_service"), "{text}");
    }
}
