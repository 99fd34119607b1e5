//! What a text is that was given as a connection string and is none.

use super::is_uri;

/// How such texts begin, in lower case, and what they are. The first match counts.
const BEGINNINGS: &[(&[&str], &str)] = &[
    (
        &["\"", "'", "`", "\u{2018}", "\u{201c}"],
        "it is in quotes; remove them, because docker --env-file and other readers of .env files \
         keep them",
    ),
    (&["{"], "it is JSON; make a URI, postgres://USER@HOST:5432/DATABASE, from its fields"),
    (&["$", "<", "%"], "it is a placeholder that was not replaced; set it to the URI itself"),
    (&["psql ", "psql\t"], "it is a psql command; keep only the URI in it, without quotes"),
    (&["jdbc:"], "it is a JDBC URL; write postgres://USER@HOST:5432/DATABASE"),
    (&["arn:"], "it is an ARN, not the secret that the ARN names; set it to that secret"),
    (
        &["postgres://", "postgresql://"],
        "its scheme is in upper case; write postgres:// in lower case",
    ),
    (&["postgres:", "postgresql:"], "its scheme lacks a slash; write postgres://"),
    (
        &["postgres+", "postgresql+"],
        "its scheme names a driver after a +, as SQLAlchemy's do; write postgresql://",
    ),
];

const ASSIGNMENT: &str =
    "it begins with the name of a variable; keep only the value after =, without quotes";

const NO_SCHEME: &str =
    "it has no scheme; write postgres://USER@HOST:5432/DATABASE, or pairs keyword=value";

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
    if matches!(first_word, "export" | "set" | "DATABASE_URL") && text.contains('=') {
        return Some(ASSIGNMENT);
    }
    let lower = text.to_ascii_lowercase();
    let begins = |all: &[&str]| all.iter().any(|beginning| lower.starts_with(beginning));
    if let Some((_, cause)) = BEGINNINGS.iter().find(|(all, _)| begins(all)) {
        return Some(cause);
    }
    match text.split_once(':') {
        Some((scheme, rest)) if is_scheme(scheme) && rest.starts_with("//") => {
            Some("its scheme is not PostgreSQL's; write postgres://USER@HOST:5432/DATABASE")
        }
        Some((scheme, _)) if is_scheme(scheme) => Some(NO_SCHEME),
        _ => {
            let authority = text.split(['=', ' ']).next().unwrap_or_default();
            authority.contains(['@', '/']).then_some(NO_SCHEME)
        }
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
