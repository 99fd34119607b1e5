//! The file `.env`: connection settings only, and only from a file that no other user can write.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::{Failure, say};

/// libpq's variables for connection settings. Passwords, keys and the names of other files are not
/// among them.
const NAMES: [&str; 13] = [
    "DATABASE_URL",
    "PGHOST",
    "PGHOSTADDR",
    "PGPORT",
    "PGUSER",
    "PGDATABASE",
    "PGSSLMODE",
    "PGSSLROOTCERT",
    "PGAPPNAME",
    "PGCONNECT_TIMEOUT",
    "PGOPTIONS",
    "PGTARGETSESSIONATTRS",
    "PGLOADBALANCEHOSTS",
];

/// Keywords that could send a token to a server whose certificate the user does not trust, with the
/// only value that a file `.env` may give them.
const RESTRICTED: [(&str, &str); 6] = [
    ("sslmode", "verify-full"),
    // Delegates Kerberos credentials to the server.
    ("gssdelegation", "0"),
    // Also a trusted file outside of the folder: see `is_trusted_root`.
    ("sslrootcert", "system"),
    ("servicefile", ""),
    ("requiressl", ""),
    ("ssl", ""),
];

/// Keywords that no file `.env` may set: OpenSSL loads an engine, which is code, from a path in
/// `sslkey`, and libpq writes the secrets of TLS to the file `sslkeylogfile`.
const REFUSED: [&str; 2] = ["sslkey", "sslkeylogfile"];

/// Sets the connection settings of the nearest file `.env`. What the environment already contains
/// stays. Must be called before other threads start.
pub(crate) fn load() -> Result<(), Failure> {
    let Some(path) = std::env::current_dir().ok().and_then(|folder| find(&folder)) else {
        return Ok(());
    };
    let shown = path.display();
    let text = match read_trusted(&path) {
        Ok(text) => text,
        Err(reason) => {
            say(&format!("ignored {shown}: {reason}"));
            return Ok(());
        }
    };
    let lines = settings(&text, |name| std::env::var_os(name).is_some());
    for (name, line) in &lines {
        if let Err(reason) = check(name, line, path.parent()) {
            return Err(Failure::new(1, format!("{name} in {shown} {reason}")));
        }
    }
    if lines.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = lines.iter().map(|(name, _)| *name).collect();
    say(&format!("read {} from {shown}", names.join(", ")));
    let lines: Vec<&str> = lines.iter().map(|(_, line)| *line).collect();
    let loaded = dotenvy::from_read(lines.join("\n").as_bytes());
    loaded.map_err(|_| Failure::new(1, format!("cannot read {shown}")))
}

fn find(folder: &Path) -> Option<PathBuf> {
    folder.ancestors().map(|folder| folder.join(".env")).find(|path| path.is_file())
}

/// Reads the file if neither it nor its folder can be changed by another user.
fn read_trusted(path: &Path) -> Result<String, String> {
    let read = || -> io::Result<Result<String, String>> {
        let real = path.canonicalize()?;
        let mut file = File::open(&real)?;
        for folder in [path.parent(), real.parent()].into_iter().flatten() {
            if let Err(reason) = check_owner(&folder.metadata()?) {
                return Ok(Err(format!("its folder {reason}")));
            }
        }
        if let Err(reason) = check_owner(&file.metadata()?) {
            return Ok(Err(format!("it {reason}")));
        }
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        Ok(Ok(text))
    };
    read().unwrap_or_else(|error| Err(error.to_string()))
}

#[cfg(unix)]
fn check_owner(metadata: &std::fs::Metadata) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt;

    use rustix::process::{getegid, geteuid};

    let (user, mode) = (geteuid().as_raw(), metadata.mode());
    if metadata.uid() != user && metadata.uid() != 0 {
        return Err(format!("belongs to another user (uid {})", metadata.uid()));
    }
    // Many systems give each user a group of the same id, and files that this group can write.
    let is_own_group = metadata.gid() == user && getegid().as_raw() == user;
    if mode & 0o002 != 0 || mode & 0o020 != 0 && !is_own_group {
        return Err("can be written by other users".to_owned());
    }
    Ok(())
}

#[cfg(not(unix))]
fn check_owner(_: &std::fs::Metadata) -> Result<(), String> {
    Ok(())
}

/// Returns the lines that set one of [`NAMES`] that is not set yet.
fn settings(text: &str, is_set: impl Fn(&str) -> bool) -> Vec<(&'static str, &str)> {
    let setting = |line| {
        let (name, _) = assignment(line)?;
        let name = NAMES.into_iter().find(|known| *known == name)?;
        (!is_set(name)).then_some((name, line))
    };
    text.lines().filter_map(setting).collect()
}

fn assignment(line: &str) -> Option<(&str, &str)> {
    let line = line.trim_start();
    let rest = line.strip_prefix("export").filter(|rest| rest.starts_with([' ', '\t']));
    let (name, value) = rest.unwrap_or(line).split_once('=')?;
    Some((name.trim(), value.trim()))
}

fn check(name: &str, line: &str, folder: Option<&Path>) -> Result<(), String> {
    if assignment(line).is_some_and(|(_, value)| substitutes(value)) {
        // Such a line could send any variable to a server, as part of a name.
        return Err("contains a variable\nhelp: write its value, or write $ as \\$".to_owned());
    }
    // dotenvy's error contains the line, which may contain a password.
    let parsed = dotenvy::from_read_iter(line.as_bytes()).next();
    let Some(Ok((_, value))) = parsed else {
        return Err("cannot be read: the line is not NAME=value\nhelp: quote its value".to_owned());
    };
    let is_restricted = |keyword: &str, value: &str| {
        RESTRICTED.iter().any(|(known, allowed)| *known == keyword && *allowed != value)
            && !(keyword == "sslrootcert" && is_trusted_root(Path::new(value), folder))
    };
    let keywords = match name {
        "DATABASE_URL" => keywords(&value),
        "PGSSLMODE" => vec![("sslmode", value)],
        "PGSSLROOTCERT" => vec![("sslrootcert", value)],
        _ => Vec::new(),
    };
    if let Some((keyword, _)) = keywords.iter().find(|(it, _)| REFUSED.contains(it)) {
        return Err(format!(
            "sets {keyword}, which can run code or write files\nhelp: set it in the environment"
        ));
    }
    // Without IAM there is no token to protect.
    let mut auth = keywords.iter().filter(|(keyword, _)| *keyword == "rds_iam_auth").peekable();
    if auth.peek().is_some() && auth.all(|(_, value)| value.eq_ignore_ascii_case("false")) {
        return Ok(());
    }
    match keywords.iter().find(|(keyword, value)| is_restricted(keyword, value)) {
        Some((keyword, _)) => Err(format!(
            "sets {keyword}, which could send a token to another server\nhelp: set it in the \
             environment; a file .env may set sslmode=verify-full only"
        )),
        None => Ok(()),
    }
}

/// Whether the certificates cannot come with the file `.env`, as in a cloned repository, nor from
/// another user.
fn is_trusted_root(file: &Path, folder: Option<&Path>) -> bool {
    let real = |path: &Path| path.canonicalize().ok();
    let (Some(file), Some(folder)) = (real(file).filter(|_| file.is_absolute()), folder) else {
        return false;
    };
    let is_outside = real(folder).is_some_and(|folder| !file.starts_with(folder));
    is_outside && file.metadata().is_ok_and(|metadata| check_owner(&metadata).is_ok())
}

/// Whether dotenvy replaces a `$` in this value.
fn substitutes(value: &str) -> bool {
    let (mut is_single_quoted, mut is_double_quoted, mut is_escaped) = (false, false, false);
    for c in value.chars() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\'' if !is_double_quoted => is_single_quoted = !is_single_quoted,
            _ if is_single_quoted => {}
            '"' => is_double_quoted = !is_double_quoted,
            '\\' => is_escaped = true,
            '$' => return true,
            _ => {}
        }
    }
    false
}

/// Returns the restricted and refused keywords and `rds_iam_auth` in a connection string, with all
/// values that they could have.
fn keywords(text: &str) -> Vec<(&'static str, String)> {
    let known = || {
        let restricted = RESTRICTED.iter().map(|(keyword, _)| *keyword);
        restricted.chain(REFUSED).chain(["rds_iam_auth"])
    };
    let parameter = |piece: &str| {
        let (keyword, value) = piece.split_once('=')?;
        let keyword = percent_decoded(keyword);
        Some((known().find(|known| *known == keyword)?, percent_decoded(value)))
    };
    let mut found: Vec<_> = text.split(['?', '&']).filter_map(parameter).collect();
    if !text.to_ascii_lowercase().starts_with("postgres") {
        for keyword in known() {
            found.extend(values_of(text, keyword).into_iter().map(|value| (keyword, value)));
        }
    }
    found
}

/// Returns all values of `keyword` in a connection string in key/value form. A keyword inside of
/// another value counts too.
fn values_of(text: &str, keyword: &str) -> Vec<String> {
    let value = |(at, _): (usize, &str)| {
        let value = text[at + keyword.len()..].trim_start().strip_prefix('=')?.trim_start();
        let end = |c: char| c.is_whitespace() || c == '\'';
        Some(value.trim_start_matches('\'').split(end).next().unwrap_or_default().to_owned())
    };
    text.match_indices(keyword).filter_map(value).collect()
}

fn percent_decoded(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&byte, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let decoded = hex.filter(|_| byte == b'%').and_then(|hex| u8::from_str_radix(hex, 16).ok());
        bytes.push(decoded.unwrap_or(byte));
        rest = if decoded.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_connection_settings_are_taken() {
        let text = "LD_PRELOAD=x\n export DATABASE_URL = 'u'\nPGPASSWORD=p\nPGHOST=h\nPGUSER=set\n";
        let taken = settings(text, |name| name == "PGUSER");
        let names: Vec<&str> = taken.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["DATABASE_URL", "PGHOST"]);
    }

    #[test]
    fn settings_that_weaken_tls_are_refused() {
        let refused = [
            "DATABASE_URL=postgres://a@h/d?sslmode=require",
            "DATABASE_URL=postgres://a@h/d?sslmode=verify-full&sslmode=require",
            "DATABASE_URL=postgres://a@h/d?ssl%6Dode=require",
            "DATABASE_URL=postgres://a@h/d?ssl%6dode=requir%65",
            "DATABASE_URL=\"host=h sslmode = 'require'\"",
            "DATABASE_URL='host=h sslrootcert=ca.pem'",
            "DATABASE_URL=postgres://a@h/d?ssl=true",
            "DATABASE_URL='service=x servicefile=x'",
            "DATABASE_URL=postgres://a@h/d?rds_iam_auth=false&sslmode=require&rds_iam_auth=true",
            "DATABASE_URL='postgres://a@h/d?sslcert=c&sslkey=/proc/self/cwd/x.so:x'",
            "DATABASE_URL='postgres://a:p@h/d?rds_iam_auth=false&sslke%79=x.so:x'",
            "DATABASE_URL=\"host=h user=a sslkey = '/a b.so:x'\"",
            "DATABASE_URL='host=h sslkeylogfile=x'",
            "DATABASE_URL=postgres://a@h/d?gssdelegation=1",
            "PGSSLMODE=require",
            "PGSSLROOTCERT='ca.pem'",
            "DATABASE_URL=postgres://a@h/$AWS_SECRET_ACCESS_KEY",
            "PGOPTIONS=\"${HOME}\"",
        ];
        for line in refused {
            assert!(check(assignment(line).unwrap().0, line, None).is_err(), "{line}");
        }
        let taken = [
            "DATABASE_URL=postgres://a@h/d",
            "DATABASE_URL='postgres://a@h/d?sslmode=verify-full&sslrootcert=system'",
            "DATABASE_URL=postgres://a:p@h/d?rds_iam_auth=false&sslmode=disable",
            "DATABASE_URL='postgres://a:p$w@h/d?rds_iam_auth=false'",
            "PGSSLMODE=verify-full",
        ];
        for line in taken {
            assert_eq!(check(assignment(line).unwrap().0, line, None), Ok(()), "{line}");
        }
    }
}
