//! [`QueryEffects`]: what the text of a query does to its connection.

/// What the text of a query does to the session.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct QueryEffects {
    /// Whether the last BEGIN or COMMIT in the text leaves a transaction open. `None` if there is
    /// neither.
    pub(super) open: Option<bool>,
    pub(super) begins: bool,
    is_single: bool,
    pub(super) copies: bool,
    pub(super) listens: bool,
    pub(super) deallocates: bool,
    pub(super) writes: bool,
    /// Whether it changes what the next user of the connection gets.
    pub(super) changes_session: bool,
}

impl QueryEffects {
    pub(super) fn of(text: &str) -> QueryEffects {
        let mut effects = QueryEffects::default();
        let mut count = 0;
        for statement in statements(text) {
            count += 1;
            match statement {
                Statement::Begin => (effects.open, effects.begins) = (Some(true), true),
                Statement::End if has_body(text) => {}
                Statement::End => effects.open = Some(false),
                Statement::Copy => effects.copies = true,
                Statement::Listen => {
                    (effects.listens, effects.changes_session) = (true, true);
                }
                Statement::Session => effects.changes_session = true,
                Statement::Deallocate => effects.deallocates = true,
                Statement::Write => effects.writes = true,
                Statement::Other => {}
            }
        }
        effects.is_single = count == 1;
        effects
    }

    /// Whether a transaction is open afterwards. If one of several statements failed, it is not
    /// known which of them were executed. A single COMMIT ends the transaction also if it fails.
    pub(super) fn leaves_open(self, was_open: bool, has_failed: bool) -> bool {
        match self.open {
            Some(open) if has_failed && !self.is_single => was_open || open || self.begins,
            Some(true) if has_failed => was_open,
            Some(open) => open,
            None => was_open,
        }
    }
}

/// What a statement does to the session, by its first words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Statement {
    /// BEGIN, START TRANSACTION, and a COMMIT or ROLLBACK AND CHAIN.
    Begin,
    /// COMMIT, END, ROLLBACK, ABORT, PREPARE TRANSACTION.
    End,
    Copy,
    Listen,
    /// DISCARD ALL, DEALLOCATE ALL: diesel's prepared statements may be gone.
    Deallocate,
    /// SET and what can contain one.
    Session,
    /// A statement that only a server that accepts writes can execute.
    Write,
    Other,
}

/// Returns the statements of a text. Semicolons in strings, quoted names and comments do not count.
fn statements(text: &str) -> impl Iterator<Item = Statement> {
    split(text).map(classify)
}

/// Splits a text at the semicolons that end a statement. What follows the last one is left out if
/// it is white space and comments.
pub(crate) fn split(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest.take()?;
        let end = if text.contains(';') { end_of_statement(text) } else { text.len() };
        rest = text.get(end + 1..).filter(|rest| !skip_comments(rest).is_empty());
        Some(&text[..end])
    })
}

/// Whether a function has a body of statements. The END of the body ends no transaction, and
/// looks like a COMMIT: at worst, a connection is closed that has no open transaction.
fn has_body(text: &str) -> bool {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").to_ascii_uppercase().contains("BEGIN ATOMIC")
}

fn classify(statement: &str) -> Statement {
    let mut words = Words(statement);
    let (first, second) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let is = |word: &str, expected: &str| word.eq_ignore_ascii_case(expected);
    let is_first = |expected: &[&str]| expected.iter().any(|expected| is(first, expected));
    match () {
        () if is(first, "BEGIN") || is(first, "START") && is(second, "TRANSACTION") => {
            Statement::Begin
        }
        () if is_first(&["COMMIT", "END", "ROLLBACK", "ABORT"]) => {
            end_of_transaction(Words(statement))
        }
        () if is(first, "PREPARE") && is(second, "TRANSACTION") => Statement::End,
        () if is(first, "COPY") => Statement::Copy,
        () if is(first, "LISTEN") => Statement::Listen,
        () if is(first, "DEALLOCATE") && may_be_of_diesel(statement) => Statement::Deallocate,
        () if is(first, "DISCARD") && is(second, "ALL") => Statement::Deallocate,
        () if is(first, "SET") => match second.to_ascii_uppercase().as_str() {
            "LOCAL" | "TRANSACTION" | "CONSTRAINTS" => Statement::Other,
            _ => Statement::Session,
        },
        () if is_first(&["RESET", "UNLISTEN", "DISCARD", "DECLARE", "DO", "CALL"]) => {
            Statement::Session
        }
        () if is_first(&["INSERT", "UPDATE", "DELETE", "MERGE", "CREATE", "ALTER", "DROP"]) => {
            Statement::Write
        }
        () => Statement::Other,
    }
}

/// Whether a text has a word of a temporary table, or of a function that changes the session: a
/// SELECT can have both. A string or a name with such a word counts too, and costs a reset.
pub(super) fn mentions_session(text: &str) -> bool {
    const WORDS: &[&str] = &[
        "TEMP",
        "TEMPORARY",
        "PG_TEMP",
        "SET_CONFIG",
        "PG_ADVISORY_LOCK",
        "PG_ADVISORY_LOCK_SHARED",
        "PG_TRY_ADVISORY_LOCK",
        "PG_TRY_ADVISORY_LOCK_SHARED",
    ];
    let mut words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
    words.any(|word| WORDS.iter().any(|expected| word.eq_ignore_ascii_case(expected)))
}

/// Whether `DEALLOCATE [PREPARE] NAME` may name a statement of diesel: `ALL`, a name of diesel's
/// form, or a name in quotes.
fn may_be_of_diesel(deallocate: &str) -> bool {
    let name = Words(deallocate).skip(1).find(|word| !word.eq_ignore_ascii_case("PREPARE"));
    name.is_none_or(|name| name.eq_ignore_ascii_case("ALL") || name.starts_with("__diesel_stmt_"))
}

/// `ROLLBACK TO SAVEPOINT` and the two-phase `COMMIT PREPARED` end no transaction of this session.
/// `AND CHAIN` starts the next one.
fn end_of_transaction(words: Words<'_>) -> Statement {
    let words: Vec<String> = words.take(5).map(str::to_ascii_uppercase).collect();
    let has = |word: &str| words.iter().any(|other| other == word);
    if has("TO") || has("PREPARED") {
        Statement::Other
    } else if has("CHAIN") && !has("NO") {
        Statement::Begin
    } else {
        Statement::End
    }
}

/// The words of a statement, without its comments, up to the first other sign.
pub(crate) struct Words<'a>(pub(crate) &'a str);

impl<'a> Iterator for Words<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let text = skip_comments(self.0);
        let is_end = |c: char| !c.is_alphanumeric() && c != '_';
        let end = text.find(is_end).unwrap_or(text.len());
        self.0 = &text[end..];
        (end > 0).then(|| &text[..end])
    }
}

/// Returns the text after white space and comments.
pub(crate) fn skip_comments(mut text: &str) -> &str {
    loop {
        text = text.trim_start();
        if text.starts_with("--") {
            text = &text[text.find(['\n', '\r']).unwrap_or(text.len())..];
        } else if text.starts_with("/*") {
            text = &text[length_of_block_comment(text)..];
        } else {
            return text;
        }
    }
}

/// Block comments nest in PostgreSQL.
fn length_of_block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        if rest.starts_with(b"/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest.starts_with(b"*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    text.len()
}

/// Returns the place of the semicolon that ends the first statement, or the length of the text
/// (PostgreSQL, "Lexical Structure").
fn end_of_statement(text: &str) -> usize {
    let mut at = 0;
    while at < text.len() && text.as_bytes()[at] != b';' {
        at += length_of_token(text, at);
    }
    at.min(text.len())
}

/// Returns the length of the string, the quoted name or the comment at `at`, or 1.
pub(crate) fn length_of_token(text: &str, at: usize) -> usize {
    let (before, rest) = text.as_bytes().split_at(at);
    match rest[0] {
        b'\'' => length_of_string(rest, is_escape_string(before)),
        b'"' => length_of_string(rest, false),
        b'$' if !is_in_word(before) => length_of_dollar_string(rest),
        b'-' if rest.starts_with(b"--") => {
            rest.iter().position(|b| matches!(b, b'\n' | b'\r')).unwrap_or(rest.len())
        }
        b'/' if rest.starts_with(b"/*") => length_of_block_comment(&text[at..]),
        _ => 1,
    }
}

fn is_in_word(before: &[u8]) -> bool {
    before.last().is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_' || !b.is_ascii())
}

/// `E'...'` has backslash escapes.
fn is_escape_string(before: &[u8]) -> bool {
    matches!(before, [.., b'e' | b'E']) && !is_in_word(&before[..before.len() - 1])
}

/// A doubled quote inside is two strings in a row for this purpose.
fn length_of_string(text: &[u8], has_escapes: bool) -> usize {
    let quote = text[0];
    let mut at = 1;
    while at < text.len() {
        match text[at] {
            b'\\' if has_escapes => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    text.len()
}

/// `$$...$$` or `$tag$...$tag$`. Another dollar sign, as in `$1`, is a single character.
fn length_of_dollar_string(text: &[u8]) -> usize {
    let is_of_tag = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_' || !b.is_ascii();
    let tag = 1 + text[1..].iter().take_while(|b| is_of_tag(b)).count();
    if text.get(tag) != Some(&b'$') || text[1].is_ascii_digit() {
        return 1;
    }
    let delimiter = &text[..=tag];
    let body = &text[delimiter.len()..];
    let end = body.windows(delimiter.len()).position(|window| window == delimiter);
    end.map_or(text.len(), |end| 2 * delimiter.len() + end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(text: &str) -> Vec<Statement> {
        statements(text).collect()
    }

    #[test]
    fn the_first_words_decide() {
        use Statement::*;
        let cases: &[(&str, Statement)] = &[
            ("BEGIN", Begin),
            ("  begin isolation level serializable", Begin),
            ("/* a */ START TRANSACTION", Begin),
            ("/* a /* b */ c */-- d\nbegin", Begin),
            ("-- a\rbegin", Begin),
            ("start_it()", Other),
            ("COMMIT", End),
            ("COMMIT AND CHAIN", Begin),
            ("ROLLBACK AND NO CHAIN", End),
            ("ROLLBACK TO SAVEPOINT a", Other),
            ("rollback work to a", Other),
            ("COMMIT PREPARED 'a'", Other),
            ("PREPARE TRANSACTION 'a'", End),
            ("PREPARE a AS SELECT 1", Other),
            ("END", End),
            ("ABORT", End),
            ("COPY t FROM STDIN", Copy),
            ("LISTEN jobs", Listen),
            ("NOTIFY jobs", Other),
            ("DISCARD ALL", Deallocate),
            ("DISCARD TEMP", Session),
            ("DISCARD PLANS", Session),
            ("SET search_path = a", Session),
            ("set session authorization a", Session),
            ("SET LOCAL search_path = a", Other),
            ("SET TRANSACTION READ ONLY", Other),
            ("SET CONSTRAINTS ALL DEFERRED", Other),
            ("RESET ROLE", Session),
            ("DO $$ BEGIN END $$", Session),
            ("SETTINGS", Other),
            ("DEALLOCATE ALL", Deallocate),
            ("deallocate prepare all", Deallocate),
            ("DEALLOCATE __diesel_stmt_1", Deallocate),
            ("DEALLOCATE \"__diesel_stmt_1\"", Deallocate),
            ("DEALLOCATE PREPARE mine", Other),
            ("DEALLOCATE mine", Other),
            ("INSERT INTO t VALUES ($1)", Write),
            ("SELECT listener_id, copy, begin FROM t", Other),
            ("", Other),
        ];
        for (text, expected) in cases {
            assert_eq!(of(text), [*expected], "{text}");
        }
    }

    #[test]
    fn only_a_semicolon_of_sql_itself_ends_a_statement() {
        use Statement::*;
        let cases: &[(&str, &[Statement])] = &[
            ("SET x = 1; listen jobs", &[Session, Listen]),
            ("BEGIN; SELECT 1; COMMIT;", &[Begin, Other, End]),
            ("SELECT 1; -- BEGIN\n", &[Other]),
            ("SELECT '; BEGIN'", &[Other]),
            ("SELECT 'it''s; BEGIN'", &[Other]),
            (r"SELECT E'\'; BEGIN'", &[Other]),
            (r"SELECT '\'; BEGIN", &[Other, Begin]),
            (r"SELECT date'\'; BEGIN", &[Other, Begin]),
            ("SELECT \"a;b\"; BEGIN", &[Other, Begin]),
            ("DO $$ begin; commit; end $$; BEGIN", &[Session, Begin]),
            ("DO $a$ ; $$ ; $a$; BEGIN", &[Session, Begin]),
            ("SELECT $1; BEGIN", &[Other, Begin]),
            ("SELECT a$b$; BEGIN", &[Other, Begin]),
            ("SELECT 1 /* ; /* ; */ ; */; BEGIN", &[Other, Begin]),
            ("SELECT 1 -- ; BEGIN", &[Other]),
            ("SELECT 1 -- a\r; BEGIN", &[Other, Begin]),
        ];
        for (text, expected) in cases {
            assert_eq!(of(text), *expected, "{text}");
        }
    }

    #[test]
    fn words_that_change_the_session_are_found_inside_of_a_statement() {
        let cases = [
            ("SELECT 1 INTO TEMP t", true),
            ("create local temporary table t ()", true),
            ("CREATE TABLE pg_temp.t ()", true),
            ("WITH a AS (SELECT pg_catalog.set_config($1, $2, false)) SELECT 1", true),
            ("SELECT pg_try_advisory_lock(1)", true),
            ("SELECT pg_advisory_xact_lock(1)", false),
            ("SELECT temperature, \"template\" FROM t", false),
            ("", false),
        ];
        for (text, expected) in cases {
            assert_eq!(mentions_session(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[-;'\"$a-zE\\\\/*\n é]{0,40}") {
            let _ = of(&text);
        }
    }
}
