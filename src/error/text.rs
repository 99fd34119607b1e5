//! Texts for people: errors and times in one line, without control characters and tokens.

use std::error::Error;
use std::fmt;
use std::time::SystemTime;

use aws_credential_types::provider::error::CredentialsError;
use aws_smithy_types::date_time::{DateTime, Format};

/// The maximum length of a text from outside, in characters.
const LONGEST_TEXT: usize = 1000;

/// Renders a text from outside as one line. Such a text can hold anything: escape sequences of a
/// terminal, or a token that the server sends back.
pub(crate) fn one_line(text: &(impl fmt::Display + ?Sized)) -> String {
    let text = text.to_string();
    let shown = |word: &str| match word.contains("X-Amz-") {
        true => "***".to_owned(),
        false => word.chars().filter(|c| !is_invisible(*c)).collect(),
    };
    cut(text.split_whitespace().map(shown).collect::<Vec<_>>().join(" "), LONGEST_TEXT)
}

/// Control characters, and those that change the direction or the place of others.
fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Renders the texts of an error and of its sources, each once.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = one_line(error);
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = one_line(cause);
        if !text.contains(&cause_text) && !cause.is::<CredentialsError>() {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    cut(text, LONGEST_TEXT)
}

/// libpq adds advice in a second line. One of them would turn the certificate checks off.
const HINTS: &[&str] = &["Either provide the file", "Is the server running"];

/// Renders libpq's text as one line, without its advice: the cure of this crate follows.
pub(super) fn without_hints(error: &dyn Error) -> String {
    let text = error.to_string();
    let is_hint = |line: &&str| HINTS.iter().any(|hint| line.trim_start().starts_with(hint));
    let lines: Vec<&str> = text.lines().filter(|line| !is_hint(line)).collect();
    one_line(&lines.join(" "))
}

/// Renders a credentials error without the SDK's general words at its start.
pub(crate) fn causes(error: &CredentialsError) -> String {
    error.source().map_or_else(|| chain(error), chain)
}

/// Keeps the first `longest` characters.
pub(crate) fn cut(mut text: String, longest: usize) -> String {
    if let Some((end, _)) = text.char_indices().nth(longest) {
        text.replace_range(end.., "...");
    }
    text
}

/// Renders a time as `2026-01-31T12:00:00Z`.
pub(crate) fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let time = DateTime::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
    time.fmt(Format::DateTime).unwrap_or_else(|_| "an unknown time".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_from_outside_has_no_escapes_no_token_and_an_end() {
        let cases = [
            ("FATAL: a\n\tb \u{1b}[2Jc\u{202e}", "FATAL: a b [2Jc"),
            ("sent a host:1/?Action=connect&X-Amz-Signature=ab back", "sent a *** back"),
        ];
        for (text, expected) in cases {
            assert_eq!(one_line(text), expected);
        }
        assert_eq!(one_line(&"x".repeat(2000)).chars().count(), LONGEST_TEXT + 3);
    }
}
