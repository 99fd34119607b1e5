//! [`QueryTypes`]: the types of queries whose texts need no rendering.

use std::collections::HashMap;
use std::fmt::{self, Write};
use std::hash::{Hash, Hasher};

use diesel::connection::DebugQuery;

use super::statement::{QueryEffects, mentions_session};

/// diesel renders a query a second time for its instrumentation, which costs as much as sending it.
/// A type of diesel's query builder always has the same effects, so it is rendered only until it is
/// recognized.
#[derive(Default)]
pub(super) struct QueryTypes {
    known: HashMap<usize, QueryEffects>,
    /// The type of the current query. It is known if diesel caches the statement.
    candidate: Option<(usize, QueryEffects)>,
    /// Expressions inside of a query can change the session, so each one is rendered.
    reads_all: bool,
}

impl QueryTypes {
    pub(super) fn reading_all(reads_all: bool) -> QueryTypes {
        QueryTypes { reads_all, ..QueryTypes::default() }
    }

    /// Returns what the text of a query does to its connection.
    pub(super) fn effects(&mut self, query: &dyn DebugQuery) -> QueryEffects {
        self.candidate = None;
        let of_type = type_of(query);
        if let Some(effects) = self.known.get(&of_type) {
            return *effects;
        }
        let text = Text::of(query);
        let mut effects = QueryEffects::of(&text.sql);
        if self.reads_all {
            effects.changes_session |= mentions_session(&text.sql);
            return effects;
        }
        match text.origin() {
            Origin::Builder => {
                self.known.insert(of_type, effects);
            }
            Origin::BuilderIfCached => self.candidate = Some((of_type, effects)),
            Origin::Unknown => {}
        }
        effects
    }

    /// diesel caches the statement of the current query. It never caches one with raw SQL.
    pub(super) fn statement_cached(&mut self) {
        self.known.extend(self.candidate.take());
    }
}

/// Identifies the code that renders a query: the address of its vtable. Types that share it are
/// rendered by the same code. A type can have several.
fn type_of(query: &dyn DebugQuery) -> usize {
    /// Keeps the last number. The hash of a pointer is its address, then its metadata.
    struct Last(usize);

    impl Hasher for Last {
        fn write(&mut self, _: &[u8]) {}

        fn write_usize(&mut self, number: usize) {
            self.0 = number;
        }

        fn finish(&self) -> u64 {
            self.0 as u64
        }
    }

    let mut last = Last(0);
    std::ptr::from_ref(query).hash(&mut last);
    last.0
}

/// What wrote a text.
#[derive(Debug, PartialEq)]
enum Origin {
    /// diesel's query builder.
    Builder,
    /// The same, if diesel caches the statement.
    BuilderIfCached,
    Unknown,
}

/// The text of a query up to its binds, which are data and can be megabytes.
struct Text {
    sql: String,
    /// `None` before the binds begin.
    has_binds: Option<bool>,
}

impl Text {
    fn of(query: &dyn DebugQuery) -> Text {
        let mut text = Text { sql: String::new(), has_binds: None };
        // The error of `Text` ends the rendering before the binds. Another error means that diesel
        // cannot build the query, which the caller sees.
        let _ = write!(text, "{query}");
        text
    }

    /// A statement with binds is no BEGIN, LISTEN or SET, because these accept none. Raw SQL with a
    /// number of binds that can change is the remaining case. It rarely has the builder's quotes.
    fn origin(&self) -> Origin {
        let starts_with = |keyword: &&str| self.sql.starts_with(keyword);
        let is_quoted = ["SELECT \"", "INSERT INTO \"", "UPDATE \"", "DELETE FROM \""];
        let is_quoted = is_quoted.iter().any(starts_with);
        // An insert of no rows is rendered as SELECT 1.
        let is_select = starts_with(&"SELECT ") && !starts_with(&"SELECT 1 ");
        match self.has_binds {
            Some(true) if is_quoted => Origin::Builder,
            _ if is_quoted || is_select => Origin::BuilderIfCached,
            _ => Origin::Unknown,
        }
    }
}

impl fmt::Write for Text {
    fn write_str(&mut self, piece: &str) -> fmt::Result {
        match (self.has_binds, piece) {
            (None, " -- binds: ") if !self.sql.is_empty() => self.has_binds = Some(false),
            (None, _) => self.sql.push_str(piece),
            (Some(_), "[") => {}
            (Some(_), first) => {
                self.has_binds = Some(first != "]");
                return Err(fmt::Error);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use diesel::pg::Pg;
    use diesel::prelude::*;
    use diesel::sql_types::{Bool, Integer};
    use diesel::{debug_query, sql_query};
    use proptest::prelude::*;

    use super::*;

    diesel::table! {
        items (id) {
            id -> Integer,
            name -> Text,
        }
    }

    fn origin(query: &dyn DebugQuery) -> Origin {
        Text::of(query).origin()
    }

    #[test]
    fn the_text_of_a_query_ends_before_its_binds() {
        let query = sql_query("INSERT INTO t VALUES ($1)").bind::<Integer, _>(1);
        let text = Text::of(&debug_query::<Pg, _>(&query));
        assert_eq!((text.sql.as_str(), text.has_binds), ("INSERT INTO t VALUES ($1)", Some(true)));
        let text = Text::of(&debug_query::<Pg, _>(&sql_query("LISTEN jobs")));
        assert_eq!((text.sql.as_str(), text.has_binds), ("LISTEN jobs", Some(false)));
        // A text of a user that looks like the separator.
        let text = Text::of(&debug_query::<Pg, _>(&sql_query(" -- binds: ")));
        assert_eq!((text.sql.as_str(), text.has_binds), (" -- binds: ", Some(false)));
    }

    #[test]
    fn a_type_is_identified_wherever_its_value_is() {
        let (one, other) = (items::table.find(1), items::table.find(2));
        let (one, other) = (debug_query::<Pg, _>(&one), debug_query::<Pg, _>(&other));
        assert_eq!(type_of(&one), type_of(&other));
        let raw = sql_query("BEGIN");
        assert_ne!(type_of(&one), type_of(&debug_query::<Pg, _>(&raw)));
    }

    #[test]
    fn queries_of_the_builder_are_recognized() {
        let rows: Vec<_> =
            (0..3).map(|i| (items::id.eq(i), items::name.eq(format!("; BEGIN {i}")))).collect();
        let inserts = diesel::insert_into(items::table).values(&rows);
        let update = diesel::update(items::table.find(1)).set(items::name.eq("LISTEN"));
        let delete = diesel::delete(items::table.filter(items::id.eq_any([1, 2])));
        let select = items::table.find(1);
        assert_eq!(origin(&debug_query::<Pg, _>(&inserts)), Origin::Builder);
        assert_eq!(origin(&debug_query::<Pg, _>(&update)), Origin::Builder);
        assert_eq!(origin(&debug_query::<Pg, _>(&delete)), Origin::Builder);
        assert_eq!(origin(&debug_query::<Pg, _>(&select)), Origin::Builder);
        let all = items::table.select(items::id);
        assert_eq!(origin(&debug_query::<Pg, _>(&all)), Origin::BuilderIfCached);
        let count = items::table.count();
        assert_eq!(origin(&debug_query::<Pg, _>(&count)), Origin::BuilderIfCached);
        let no_rows = diesel::insert_into(items::table).values(&rows[..0]);
        assert_eq!(origin(&debug_query::<Pg, _>(&no_rows)), Origin::Unknown);
    }

    #[test]
    fn a_recognized_type_is_not_rendered_again_and_keeps_its_effects() {
        let mut types = QueryTypes::default();
        let insert = diesel::insert_into(items::table).values(items::id.eq(1));
        for known in [1, 1] {
            assert!(types.effects(&debug_query::<Pg, _>(&insert)).writes);
            assert_eq!(types.known.len(), known);
        }
        let all = items::table.select(items::id);
        for known in [1, 2] {
            assert!(!types.effects(&debug_query::<Pg, _>(&all)).writes);
            assert_eq!(types.known.len(), known, "before diesel caches it, and after");
            types.statement_cached();
        }
    }

    #[test]
    fn the_cached_statement_of_a_known_type_makes_no_other_type_known() {
        let mut types = QueryTypes::default();
        let boxed = |id| items::table.into_boxed::<Pg>().filter(items::id.eq(id));
        types.effects(&debug_query::<Pg, _>(&boxed(1)));
        types.effects(&debug_query::<Pg, _>(&sql_query("SELECT 1, 2")));
        types.effects(&debug_query::<Pg, _>(&boxed(2)));
        // As for another text of the boxed query.
        types.statement_cached();
        assert_eq!(types.known.len(), 1);
        let begin = types.effects(&debug_query::<Pg, _>(&sql_query("BEGIN")));
        assert_eq!(begin.open, Some(true));
    }

    #[test]
    fn each_text_is_searched_if_the_session_is_reset() {
        let mut types = QueryTypes::reading_all(true);
        let lock = items::table.filter(diesel::dsl::sql::<Bool>("pg_advisory_lock($1) IS NULL"));
        for _ in 0..2 {
            assert!(!types.effects(&debug_query::<Pg, _>(&items::table.find(1))).changes_session);
            assert!(types.effects(&debug_query::<Pg, _>(&lock)).changes_session);
            types.statement_cached();
        }
    }

    proptest! {
        /// Whatever came before: each text of `sql_query` is read.
        #[test]
        fn raw_sql_is_always_read(before in "(SELECT|INSERT INTO) \"?[a-z]{1,8}\"?.{0,20}") {
            let mut types = QueryTypes::default();
            types.effects(&debug_query::<Pg, _>(&sql_query(before)));
            for (text, open) in [("BEGIN", true), ("SELECT 1; BEGIN", true), ("COMMIT", false)] {
                let effects = types.effects(&debug_query::<Pg, _>(&sql_query(text)));
                prop_assert_eq!(effects.open, Some(open));
            }
            let listen = types.effects(&debug_query::<Pg, _>(&sql_query("/* a */ LISTEN jobs")));
            prop_assert!(listen.listens);
        }
    }
}
