//! What a text is that was given as a connection string and is none.

use super::is_uri;

/// Returns what `text` is instead of a connection string, and what to do. The answer contains no
/// part of `text`.
///
/// Returns `None` for a URI and for what begins with `keyword=`: libpq itself knows what is wrong
/// with those.
pub(super) fn cause(text: &str) -> Option<&'static str> {
    if is_uri(text) {
        return None;
    }
    let (first_word, rest) = split_word(text);
    if let Some(value) = rest.trim_start().strip_prefix('=') {
        let holds_uri = is_uri(value.trim_start_matches([' ', '"', '\'']));
        return (!first_word.is_empty() && holds_uri).then_some(ASSIGNMENT);
    }
    if matches!(first_word, "export" | "set" | "DATABASE_URL") && text.contains("=") {
        return Some(ASSIGNMENT);
    }
    if first_word == "psql" && rest.starts_with(char::is_whitespace) {
        return Some("it is a psql command; keep only the URI in it, without quotes");
    }
    match text.chars().next()? {
        '"' | '\'' | '`' | '\u{2018}' | '\u{201c}' => Some(
            "it is in quotes; remove them, because docker --env-file and other readers of .env \
             files keep them",
        ),
        '{' => Some("it is JSON; make a URI, postgres://USER@HOST:5432/DATABASE, from its fields"),
        '$' | '<' | '%' => {
            Some("it is a placeholder that was not replaced; set it to the URI itself")
        }
        _ => scheme_cause(text),
    }
}

const ASSIGNMENT: &str =
    "it begins with the name of a variable; keep only the value after =, without quotes";

const NO_SCHEME: &str =
    "it has no scheme; write postgres://USER@HOST:5432/DATABASE, or pairs keyword=value";

fn scheme_cause(text: &str) -> Option<&'static str> {
    let Some((scheme, _)) = text.split_once(':').filter(|(scheme, _)| is_scheme(scheme)) else {
        let authority = text.split(['=', ' ']).next().unwrap_or_default();
        return authority.contains(['@', '/']).then_some(NO_SCHEME);
    };
    let lower = scheme.to_ascii_lowercase();
    let is_postgres = |name: &str| matches!(name, "postgres" | "postgresql");
    match lower.as_str() {
        "jdbc" => Some("it is a JDBC URL; write postgres://USER@HOST:5432/DATABASE"),
        "arn" => Some("it is an ARN, not the secret that the ARN names; set it to that secret"),
        name if is_postgres(name) && name != scheme => {
            Some("its scheme is in upper case; write postgres:// in lower case")
        }
        name if is_postgres(name) => Some("its scheme lacks a slash; write postgres://"),
        name if name.split_once('+').is_some_and(|(first, _)| is_postgres(first)) => {
            Some("its scheme names a driver after a +, as SQLAlchemy's do; write postgresql://")
        }
        _ if text.contains("://") => {
            Some("its scheme is not PostgreSQL's; write postgres://USER@HOST:5432/DATABASE")
        }
        _ => Some(NO_SCHEME),
    }
}

fn split_word(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
    text.split_at(end)
}

fn is_scheme(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-._".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_the_text_is() {
        let cases = [
            ("\"postgres://app@h/app\"", "it is in quotes"),
            ("'postgres://app@h/app'", "it is in quotes"),
            ("\"postgres://app@h/app", "it is in quotes"),
            ("psql postgres://app@h/app", "it is a psql command"),
            ("psql 'host=h user=app'", "it is a psql command"),
            ("jdbc:postgresql://h/app", "it is a JDBC URL"),
            ("JDBC:postgresql://h/app?user=app", "it is a JDBC URL"),
            ("postgresql+asyncpg://app@h/app", "names a driver"),
            ("postgres+psycopg2://app@h/app?a=b", "names a driver"),
            ("POSTGRES://app@h/app", "upper case"),
            ("PostgreSQL://app@h/app?sslmode=require", "upper case"),
            ("postgres:/app@h/app", "lacks a slash"),
            ("postgresql:app@h/app?a=b", "lacks a slash"),
            ("mysql://app@h/app", "is not PostgreSQL's"),
            ("https://h/app?a=b", "is not PostgreSQL's"),
            ("app:hunter2@h/app?sslmode=require", "has no scheme"),
            ("app@h/app", "has no scheme"),
            ("h:5432/app", "has no scheme"),
            ("//app@h/app", "has no scheme"),
            ("DATABASE_URL=postgres://app@h/app", "the name of a variable"),
            ("DATABASE_URL=\"postgres://app@h/app\"", "the name of a variable"),
            ("export DATABASE_URL=postgres://app@h/app", "the name of a variable"),
            ("{\"username\":\"app\",\"password\":\"hunter2\"}", "it is JSON"),
            ("${DATABASE_URL}", "a placeholder"),
            ("arn:aws:secretsmanager:eu-west-1:111122223333:secret:db", "it is an ARN"),
        ];
        for (text, expected) in cases {
            let cause = cause(text).unwrap_or_default();
            assert!(cause.contains(expected), "{text}: {cause}");
        }
    }

    #[test]
    fn leaves_to_libpq_what_libpq_knows() {
        for text in [
            "postgres://app@h/app",
            "postgresql://h",
            "host=h",
            "host = h",
            "hostt=h",
            "RDS_IAM_AUTH=false host=h",
            "hunter2",
            "password='a:b@c'",
        ] {
            assert_eq!(cause(text), None, "{text}");
        }
    }
}
