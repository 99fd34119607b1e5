//! [`Session`]: what the proxy changes in the messages of one connection.
//!
//! A refused statement is replaced by a statement that PostgreSQL refuses. So PostgreSQL sends the
//! error in the right order and aborts the transaction. The error is then replaced by DSQL's.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::statement::{Kind, Plan, Refusal, kind, plan};
use super::tokens::{Tokens, statements};
use super::wire::{field, push, push_error, string};

/// The start of the text that a refused statement casts to a number.
const REFUSED: &str = "LocalRds refuses ";
/// The start of the INFO with the tag of a job (sys.sql).
const TAG: &str = "LocalRds: ";
/// The starts of the tags of statements that change the catalog.
const DDL_TAGS: [&[u8]; 3] = [b"CREATE ", b"ALTER ", b"DROP "];
/// The name of the prepared statement that is refused instead of an execution.
const REFUSED_NAME: &[u8] = b"local_rds_refused";

/// The state of one connection.
#[derive(Default)]
pub(super) struct Session {
    transaction: Transaction,
    /// The kinds of the prepared statements and portals, by name.
    statements: HashMap<Vec<u8>, Kind>,
    portals: HashMap<Vec<u8>, Kind>,
    /// How often PostgreSQL will still report that it is ready.
    pending: usize,
    /// The tag of a job that has just run.
    tag: Option<String>,
    /// How often DDL was committed on the server.
    catalog: Arc<AtomicU64>,
    /// Whether DDL has run that is not committed.
    has_changed: bool,
}

/// What the statements so far mean for the next one.
#[derive(Default)]
struct Transaction {
    /// Whether BEGIN started it.
    is_explicit: bool,
    has_ddl: bool,
    has_dml: bool,
    /// The count of `catalog` at BEGIN.
    catalog: Option<u64>,
}

impl Transaction {
    fn admit(&mut self, kind: Kind) -> Result<(), Refusal> {
        let message = match kind {
            Kind::Ddl if self.has_ddl => "multiple ddl statements not supported in a transaction",
            Kind::Ddl if self.has_dml => "ddl and dml are not supported in the same transaction",
            Kind::Dml if self.has_ddl => "ddl and dml are not supported in the same transaction",
            _ => {
                match kind {
                    Kind::Begin => self.is_explicit = true,
                    Kind::End => *self = Transaction::default(),
                    Kind::Ddl => self.has_ddl = true,
                    Kind::Dml => self.has_dml = true,
                    Kind::Other => {}
                }
                return Ok(());
            }
        };
        Err(Refusal { code: "0A000", message: message.into() })
    }

    /// The end of a Query or of a pipeline ends a transaction without BEGIN.
    fn end_implicit(&mut self) {
        if !self.is_explicit {
            *self = Transaction::default();
        }
    }
}

impl Session {
    pub(super) fn new(catalog: Arc<AtomicU64>) -> Session {
        Session { catalog, ..Session::default() }
    }

    /// Whether PostgreSQL has answered everything, and no transaction is open.
    pub(super) fn is_idle(&self) -> bool {
        self.pending == 0 && !self.transaction.is_explicit
    }

    /// Appends what PostgreSQL gets for a message of the client.
    pub(super) fn on_request(&mut self, message: &[u8], to: &mut Vec<u8>) {
        let body = &message[5..];
        match message[0] {
            b'Q' => {
                self.pending += 1;
                match self.rewrite(&String::from_utf8_lossy(string(body).0)) {
                    Some(text) => push(to, b'Q', &[text.as_bytes(), b"\0"]),
                    None => to.extend(message),
                }
                self.transaction.end_implicit();
            }
            b'P' => self.parse(message, to),
            b'B' => {
                let (portal, rest) = string(body);
                let kind = self.statements.get(string(rest).0).copied().unwrap_or_default();
                self.portals.insert(portal.to_vec(), kind);
                to.extend(message);
            }
            b'E' => {
                let kind = self.portals.get(string(body).0).copied().unwrap_or_default();
                if let Err(refusal) = self.transaction.admit(kind) {
                    push_parse(to, REFUSED_NAME, &refused(&refusal), &[0, 0]);
                }
                to.extend(message);
            }
            b'C' => {
                let (what, name) = body.split_first().unwrap_or((&0, &[]));
                let kinds = if *what == b'S' { &mut self.statements } else { &mut self.portals };
                kinds.remove(string(name).0);
                to.extend(message);
            }
            b'S' | b'F' => {
                self.pending += 1;
                self.transaction.end_implicit();
                to.extend(message);
            }
            _ => to.extend(message),
        }
    }

    /// Returns what replaces a statement that its transaction refuses.
    fn admit(&mut self, statement: &Tokens<'_>) -> Result<(), String> {
        let catalog = self.catalog.load(Ordering::SeqCst);
        let is_commit = ["COMMIT", "END"].iter().any(|word| statement.is_at(0, word));
        let is_stale = self.transaction.catalog.is_some_and(|seen| seen != catalog);
        let kind = kind(statement);
        self.transaction.admit(kind).map_err(|refusal| refused(&refusal))?;
        match kind {
            Kind::Begin => self.transaction.catalog = Some(catalog),
            // The error of a COMMIT ends the transaction.
            Kind::End if is_commit && is_stale => {
                let message =
                    "schema has been updated by another transaction, please retry: (OC001)".into();
                let refusal = Refusal { code: "40001", message };
                return Err(format!("ROLLBACK; {}", refused(&refusal)));
            }
            _ => {}
        }
        Ok(())
    }

    /// Returns `None` if the text of a Query stays as it is.
    fn rewrite(&mut self, text: &str) -> Option<String> {
        let mut is_changed = false;
        let mut change = |statement: &Tokens<'_>| {
            let replaced = match plan(statement) {
                Plan::Refuse(refusal) => Some(refused(&refusal)),
                plan => match (self.admit(statement), plan) {
                    (Err(text), _) | (Ok(()), Plan::Replace(text)) => Some(text),
                    (Ok(()), _) => None,
                },
            };
            is_changed |= replaced.is_some();
            replaced.unwrap_or_else(|| statement.text.to_owned())
        };
        let texts: Vec<String> = statements(text).iter().map(&mut change).collect();
        // A line comment can be at the end of a statement.
        is_changed.then(|| texts.join("\n;"))
    }

    fn parse(&mut self, message: &[u8], to: &mut Vec<u8>) {
        let (name, rest) = string(&message[5..]);
        let (text, parameters) = string(rest);
        let text = String::from_utf8_lossy(text);
        let statements = statements(&text);
        // PostgreSQL refuses several statements here.
        let statement = statements.first().filter(|_| statements.len() == 1);
        self.statements.insert(name.to_vec(), statement.map(kind).unwrap_or_default());
        match statement.map_or(Plan::Forward, plan) {
            Plan::Forward => to.extend(message),
            Plan::Replace(text) => push_parse(to, name, &text, parameters),
            Plan::Refuse(refusal) => push_parse(to, REFUSED_NAME, &refused(&refusal), &[0, 0]),
        }
    }

    /// Appends what the client gets for a message of PostgreSQL.
    pub(super) fn on_answer(&mut self, message: &[u8], to: &mut Vec<u8>) {
        let body = &message[5..];
        match message[0] {
            b'Z' => {
                self.pending = self.pending.saturating_sub(1);
                if body == b"I" && std::mem::take(&mut self.has_changed) {
                    self.catalog.fetch_add(1, Ordering::SeqCst);
                }
                match body {
                    // PostgreSQL has not seen all requests that `transaction` takes into account.
                    _ if self.pending > 0 => {}
                    b"I" => self.transaction = Transaction::default(),
                    _ => self.transaction.is_explicit = true,
                }
                to.extend(message);
            }
            b'C' => {
                let tag = self.tag.take().map(|tag| tag.into_bytes());
                let tag = tag.as_deref().unwrap_or(string(body).0);
                self.has_changed |= DDL_TAGS.iter().any(|start| tag.starts_with(start));
                self.has_changed &= tag != b"ROLLBACK";
                push(to, b'C', &[tag, b"\0"]);
            }
            b'N' => match field(body, b'M').strip_prefix(TAG) {
                Some(tag) => self.tag = Some(tag.to_owned()),
                None => to.extend(message),
            },
            b'E' => {
                self.has_changed = false;
                match error_of_dsql(body) {
                    Some((code, text)) => push_error(to, "ERROR", &code, &text),
                    None => to.extend(message),
                }
            }
            _ => to.extend(message),
        }
    }
}

/// Returns a statement that PostgreSQL refuses, with the refusal in its answer.
fn refused(refusal: &Refusal) -> String {
    let text = format!("{REFUSED}{} {}", refusal.code, refusal.message).replace('\'', "''");
    format!("SELECT '{text}'::pg_catalog.int4")
}

fn push_parse(to: &mut Vec<u8>, name: &[u8], text: &str, parameters: &[u8]) {
    push(to, b'P', &[name, b"\0", text.as_bytes(), b"\0", parameters]);
}

/// Returns SQLSTATE and text of DSQL's error instead of PostgreSQL's.
fn error_of_dsql(error: &[u8]) -> Option<(String, String)> {
    let (code, text) = (field(error, b'C'), field(error, b'M'));
    if let Some((_, refusal)) = text.split_once(REFUSED) {
        let (code, text) = refusal.strip_suffix('"')?.split_once(' ')?;
        return Some((code.to_owned(), text.to_owned()));
    }
    // A conflict, or a deadlock. DSQL does not lock, and reports both as a conflict.
    matches!(code.as_str(), "40001" | "40P01")
        .then(|| ("40001".into(), "change conflicts with another transaction (OC000)".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, body: &[&[u8]]) -> Vec<u8> {
        let mut message = Vec::new();
        push(&mut message, kind, body);
        message
    }

    fn query(session: &mut Session, text: &str) -> String {
        let mut sent = Vec::new();
        session.on_request(&message(b'Q', &[text.as_bytes(), b"\0"]), &mut sent);
        String::from_utf8_lossy(string(&sent[5..]).0).into_owned()
    }

    fn ready(session: &mut Session, status: u8) {
        let mut received = Vec::new();
        session.on_answer(&message(b'Z', &[&[status]]), &mut received);
        assert_eq!(received, message(b'Z', &[&[status]]));
    }

    /// Prepares, binds and executes a statement without a name.
    fn execute(session: &mut Session, text: &str) -> Vec<u8> {
        let mut sent = Vec::new();
        session.on_request(&message(b'P', &[b"\0", text.as_bytes(), b"\0\0\0"]), &mut sent);
        session.on_request(&message(b'B', &[b"\0\0\0\0\0\0\0\0"]), &mut sent);
        session.on_request(&message(b'E', &[b"\0\0\0\0\0"]), &mut sent);
        sent
    }

    fn is_refused(sent: &[u8]) -> bool {
        String::from_utf8_lossy(sent).contains(REFUSED)
    }

    fn sync(session: &mut Session) {
        session.on_request(&message(b'S', &[]), &mut Vec::new());
    }

    const DDL: &str = "CREATE TABLE t (id int)";
    const DML: &str = "INSERT INTO t VALUES (1)";

    #[test]
    fn what_is_allowed_is_not_changed() {
        let session = &mut Session::default();
        for text in ["", ";", "SELECT 1;; -- a\n", "it's wrong", "BEGIN; INSERT INTO t VALUES (1)"]
        {
            assert_eq!(query(session, text), text);
        }
    }

    #[test]
    fn only_the_refused_statement_of_a_query_is_replaced() {
        let sent = query(&mut Session::default(), "BEGIN; SELECT 1 -- one\n; TRUNCATE t; COMMIT");
        let refused = "SELECT 'LocalRds refuses 0A000 unsupported statement: Truncate'";
        let expected = format!("BEGIN\n; SELECT 1 -- one\n\n;{refused}::pg_catalog.int4\n; COMMIT");
        assert_eq!(sent, expected);
    }

    #[test]
    fn postgresqls_answer_to_a_refused_statement_becomes_dsqls() {
        let refusal = Refusal { code: "42704", message: "type \"it's\" does not exist".into() };
        assert_eq!(
            refused(&refusal),
            "SELECT 'LocalRds refuses 42704 type \"it''s\" does not exist'::pg_catalog.int4"
        );
        let (mut error, mut received) = (Vec::new(), Vec::new());
        let text = "invalid input syntax for type integer: \
                    \"LocalRds refuses 42704 type \"it's\" does not exist\"";
        push_error(&mut error, "ERROR", "22P02", text);
        Session::default().on_answer(&error, &mut received);
        let fields = |kind| field(&received[5..], kind);
        assert_eq!((fields(b'C'), fields(b'M')), ("42704".into(), refusal.message));
    }

    #[test]
    fn a_deadlock_becomes_a_conflict_and_other_errors_stay() {
        for (code, expected) in [("40P01", "40001"), ("40001", "40001"), ("23505", "23505")] {
            let (mut error, mut received) = (Vec::new(), Vec::new());
            push_error(&mut error, "ERROR", code, "text");
            Session::default().on_answer(&error, &mut received);
            assert_eq!(field(&received[5..], b'C'), expected);
            assert_eq!(received == error, code == expected && code == "23505");
        }
    }

    #[test]
    fn the_tag_of_a_job_replaces_that_of_its_query() {
        let session = &mut Session::default();
        let mut received = Vec::new();
        session.on_answer(&message(b'N', &[b"MLocalRds: CREATE INDEX\0\0"]), &mut received);
        session.on_answer(&message(b'C', &[b"SELECT 1\0"]), &mut received);
        assert_eq!(received, message(b'C', &[b"CREATE INDEX\0"]));
        let other = [message(b'N', &[b"Mother\0\0"]), message(b'C', &[b"SELECT 1\0"])];
        let mut received = Vec::new();
        other.iter().for_each(|message| session.on_answer(message, &mut received));
        assert_eq!(received, other.concat());
    }

    #[test]
    fn ddl_is_alone_in_its_transaction() {
        let cases = [
            (&[DDL, DDL][..], true),
            (&[DDL, DML], true),
            (&[DML, DDL], true),
            (&["WITH a AS (DELETE FROM t RETURNING id) SELECT * FROM a", DDL], true),
            (&[DML, DML], false),
            (&[DDL, "SELECT 1"], false),
            (&["SELECT id FROM t FOR UPDATE", DDL], false),
            (&[DDL, "COMMIT", "BEGIN", DML], false),
            (&[DDL, "ROLLBACK", "BEGIN", DDL], false),
        ];
        for (statements, expected) in cases {
            let text = format!("BEGIN; {}", statements.join("; "));
            assert_eq!(query(&mut Session::default(), &text).contains(REFUSED), expected, "{text}");
            // The same with an answer between the statements, and without BEGIN.
            let session = &mut Session::default();
            query(session, "BEGIN");
            ready(session, b'T');
            let answers = statements.iter().map(|text| {
                let sent = query(session, text);
                ready(session, if *text == "COMMIT" || *text == "ROLLBACK" { b'I' } else { b'T' });
                sent
            });
            let is_refused = answers.collect::<String>().contains(REFUSED);
            assert_eq!(is_refused, expected, "{text}");
        }
    }

    #[test]
    fn statements_without_begin_are_transactions_of_their_own() {
        let session = &mut Session::default();
        for text in [DDL, DDL, DML, DDL] {
            assert_eq!(query(session, text), text);
        }
        for text in [DDL, DML, DDL] {
            assert!(!is_refused(&execute(session, text)), "{text}");
            sync(session);
        }
        assert!(!is_refused(&execute(session, DDL)));
        assert!(is_refused(&execute(session, DML)), "no Sync is between them");
    }

    #[test]
    fn the_transaction_follows_what_postgresql_reports() {
        let session = &mut Session::default();
        assert!(session.is_idle());
        query(session, "BEGIN");
        assert!(!session.is_idle());
        // The BEGIN failed.
        ready(session, b'I');
        assert!(session.is_idle());
        // A function, for example, has begun one.
        query(session, "CALL p()");
        ready(session, b'T');
        assert!(!session.is_idle());
        // The answer to the first of two queries says nothing about the second.
        query(session, "COMMIT");
        query(session, "BEGIN");
        ready(session, b'I');
        assert!(!session.is_idle());
    }
}
