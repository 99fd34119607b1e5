//! [`Options`]: how a transaction is begun.

/// How a transaction is begun. What is not set is up to the server.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Options {
    /// Empty, or the clause of BEGIN.
    pub(super) isolation_level: &'static str,
    pub(super) is_read_only: bool,
    pub(super) is_deferrable: bool,
}

impl Options {
    pub(super) fn begin(&self) -> String {
        let read_only = if self.is_read_only { " READ ONLY" } else { "" };
        let deferrable = if self.is_deferrable { " DEFERRABLE" } else { "" };
        format!("BEGIN{}{read_only}{deferrable}", self.isolation_level)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_option_is_in_the_statement() {
        assert_eq!(Options::default().begin(), "BEGIN");
        let all = Options {
            isolation_level: " ISOLATION LEVEL SERIALIZABLE",
            is_read_only: true,
            is_deferrable: true,
        };
        assert_eq!(all.begin(), "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE");
    }
}
