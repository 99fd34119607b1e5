//! Reads the arguments, and hides connection strings in clap's complaints.

use std::io::{self, Write};

use clap::Parser;

use crate::Arguments;

pub(crate) fn parse() -> Arguments {
    Arguments::try_parse().unwrap_or_else(|error| {
        let shown = error.render().to_string();
        let hidden =
            hidden(&shown, std::env::args_os().skip(1).map(|it| it.to_string_lossy().into()));
        if !error.use_stderr() || hidden == shown {
            error.exit();
        }
        let _ = io::stderr().write_all(hidden.as_bytes());
        std::process::exit(error.exit_code())
    })
}

/// Replaces arguments that look like a connection string: it may contain a password.
fn hidden(text: &str, arguments: impl Iterator<Item = String>) -> String {
    let mut hidden = text.to_owned();
    for argument in arguments {
        let value = match argument.split_once('=') {
            Some((name, value)) if name.starts_with('-') => value,
            _ => &argument,
        };
        if value.contains("://") || value.contains("password") {
            hidden = hidden.replace(value, "***");
        }
    }
    hidden
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_string_is_hidden_in_any_position() {
        let url = "postgres://app:hunter2@h/d";
        let arguments = ["exec".to_owned(), url.to_owned(), format!("--iam-port={url}")];
        let text = format!("unexpected argument '{url}' found; invalid value '{url}' in exec");
        assert_eq!(
            hidden(&text, arguments.into_iter()),
            "unexpected argument '***' found; invalid value '***' in exec"
        );
    }
}
