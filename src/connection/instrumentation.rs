//! How diesel reports the queries of a connection to its [`Record`].

use diesel::connection::{Instrumentation, InstrumentationEvent};

use super::{Moment, Record};

impl Instrumentation for Record {
    fn on_connection_event(&mut self, event: InstrumentationEvent<'_>) {
        match &event {
            InstrumentationEvent::StartQuery { query, .. } => {
                let effects = self.query_types.effects(*query);
                self.query_started(effects);
            }
            InstrumentationEvent::CacheQuery { .. } => self.query_types.statement_cached(),
            InstrumentationEvent::FinishQuery { error, .. } => {
                self.query_finished(*error, Moment::now());
            }
            InstrumentationEvent::BeginTransaction { .. } => {
                self.in_transaction = true;
                self.is_begun_by_diesel = true;
            }
            InstrumentationEvent::CommitTransaction { depth, .. }
            | InstrumentationEvent::RollbackTransaction { depth, .. } => {
                self.is_ending_transaction = depth.get() == 1;
            }
            _ => {}
        }
        if let Some(wrapped) = &mut self.wrapped {
            wrapped.on_connection_event(event);
        }
    }
}
