//! [`Tokens`]: the words and characters of one SQL statement.

use crate::connection::length_of_token;

/// A word, a string, a quoted name, or another character.
#[derive(Debug, Clone, Copy)]
pub(super) struct Token<'a> {
    pub(super) text: &'a str,
    /// Its place in the text of the statement, in bytes.
    pub(super) start: usize,
    /// How many parentheses are open.
    pub(super) depth: usize,
}

/// The tokens of one statement, without comments.
#[derive(Debug, Clone)]
pub(super) struct Tokens<'a> {
    pub(super) text: &'a str,
    list: Vec<Token<'a>>,
}

/// Splits a text into its statements. Empty statements are left out.
pub(super) fn statements(text: &str) -> Vec<Tokens<'_>> {
    let (mut statements, mut start, mut in_body) = (Vec::new(), 0, false);
    let mut list: Vec<Token<'_>> = Vec::new();
    for (place, token) in spans(text) {
        // The body of a function in standard SQL contains semicolons.
        in_body |= is(token, "ATOMIC") && list.last().is_some_and(|last| is(last.text, "BEGIN"));
        in_body &= !is(token, "END");
        if token == ";" && !in_body {
            statements.push(Tokens { text: &text[start..place], list: std::mem::take(&mut list) });
            start = place + 1;
            continue;
        }
        let depth = list.last().map_or(0, |last| last.depth + usize::from(last.text == "("));
        let depth = if token == ")" { depth.saturating_sub(1) } else { depth };
        list.push(Token { text: token, start: place - start, depth });
    }
    statements.push(Tokens { text: &text[start..], list });
    statements.retain(|statement| !statement.list.is_empty());
    statements
}

/// Returns the tokens with their places. Comments and white space are left out.
fn spans(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            let start = at;
            let first = text[start..].chars().next()?;
            let in_word = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
            at += if in_word(first) && first != '$' {
                text[start..].find(|c| !in_word(c)).unwrap_or(text.len() - start)
            } else {
                length_of_token(text, start).max(first.len_utf8())
            };
            at = at.min(text.len());
            let token = &text[start..at];
            let is_comment = token.starts_with("--") || token.starts_with("/*");
            if !is_comment && !first.is_whitespace() {
                return Some((start, token));
            }
        }
    })
}

fn is(token: &str, word: &str) -> bool {
    token.eq_ignore_ascii_case(word)
}

impl<'a> Tokens<'a> {
    /// Returns the token at `at` in upper case, or an empty text.
    pub(super) fn word(&self, at: usize) -> String {
        self.list.get(at).map(|token| token.text.to_ascii_uppercase()).unwrap_or_default()
    }

    pub(super) fn list(&self) -> &[Token<'a>] {
        &self.list
    }

    /// Whether these words, separated by spaces, are at `at`.
    pub(super) fn is_at(&self, at: usize, words: &str) -> bool {
        let mut tokens = self.list.iter().skip(at);
        words.split(' ').all(|word| tokens.next().is_some_and(|token| is(token.text, word)))
    }

    /// Returns where these words are first, from `from` on.
    pub(super) fn find(&self, from: usize, words: &str) -> Option<usize> {
        (from..self.list.len()).find(|at| self.is_at(*at, words))
    }

    /// Whether these words occur.
    pub(super) fn has(&self, words: &str) -> bool {
        self.find(0, words).is_some()
    }

    /// Whether this word occurs outside of parentheses.
    pub(super) fn has_outside(&self, word: &str) -> bool {
        self.list.iter().any(|token| token.depth == 0 && is(token.text, word))
    }

    /// Returns the first place from `from` on that is behind these words. `from`, if they are not
    /// there.
    pub(super) fn skip(&self, from: usize, words: &str) -> usize {
        if self.is_at(from, words) { from + words.split(' ').count() } else { from }
    }

    /// Returns the place behind a name, which can contain dots.
    pub(super) fn skip_name(&self, from: usize) -> usize {
        let mut at = from + 1;
        while self.is_at(at, ".") {
            at += 2;
        }
        at
    }

    /// Returns the parts of a list that begins at `from`, without its commas.
    pub(super) fn parts(&self, from: usize) -> Vec<Tokens<'a>> {
        let list = self.list.get(from..).unwrap_or_default();
        let depth = list.first().map_or(0, |token| token.depth);
        let end = list.iter().position(|token| token.depth < depth).unwrap_or(list.len());
        let parts = list[..end].split(|token| token.depth == depth && token.text == ",");
        parts.map(|part| Tokens { text: self.text, list: part.to_vec() }).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts(statement: &Tokens<'_>) -> Vec<String> {
        statement.list.iter().map(|token| token.text.to_owned()).collect()
    }

    #[test]
    fn statements_are_split_and_comments_left_out() {
        let text = "SELECT 'a;b', \"c;d\", $1 -- e;\n; ;/* f; */ INSERT INTO g VALUES ($$;$$)";
        let statements = statements(text);
        assert_eq!(statements.len(), 2);
        assert_eq!(texts(&statements[0]), ["SELECT", "'a;b'", ",", "\"c;d\"", ",", "$", "1"]);
        assert_eq!(texts(&statements[1]), ["INSERT", "INTO", "g", "VALUES", "(", "$$;$$", ")"]);
        assert_eq!(statements[1].text, "/* f; */ INSERT INTO g VALUES ($$;$$)");
    }

    #[test]
    fn the_body_of_a_function_is_not_split() {
        let text = "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END; SELECT 3";
        assert_eq!(statements(text).len(), 2);
    }

    #[test]
    fn depth_counts_open_parentheses() {
        let text = "a (b (c)) d";
        let depths: Vec<usize> = statements(text)[0].list.iter().map(|token| token.depth).collect();
        assert_eq!(depths, [0, 0, 1, 1, 2, 1, 0, 0]);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[-;()'\"$a-zE\\\\/*\n é]{0,40}") {
            for statement in statements(&text) {
                for token in statement.list() {
                    prop_assert_eq!(&statement.text[token.start..][..token.text.len()], token.text);
                }
            }
        }
    }
}
