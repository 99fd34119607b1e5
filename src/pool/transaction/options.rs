//! [`Options`]: how a transaction is begun.

/// How a transaction is begun. What is not set is up to the server.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Options {
    pub(super) isolation_level: Option<&'static str>,
    pub(super) is_read_only: bool,
    pub(super) is_deferrable: bool,
}

impl Options {
    pub(super) fn begin(&self) -> String {
        let mut text = String::from("BEGIN");
        if let Some(level) = self.isolation_level {
            text.push_str(" ISOLATION LEVEL ");
            text.push_str(level);
        }
        if self.is_read_only {
            text.push_str(" READ ONLY");
        }
        if self.is_deferrable {
            text.push_str(" DEFERRABLE");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_option_is_in_the_statement() {
        assert_eq!(Options::default().begin(), "BEGIN");
        let all = Options {
            isolation_level: Some("SERIALIZABLE"),
            is_read_only: true,
            is_deferrable: true,
        };
        assert_eq!(all.begin(), "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE");
    }
}
