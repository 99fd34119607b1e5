//! Completions and manual pages, both generated from the definitions of the arguments.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::{Arguments, Failure, Outcome};

/// Print the completions for a shell
#[derive(Args)]
#[command(after_long_help = "Example:
  rds-iam completions bash > ~/.local/share/bash-completion/completions/rds-iam")]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(crate) fn run(self) -> Outcome {
        // clap_complete panics if standard output is closed.
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut Arguments::command(), "rds-iam", &mut text);
        // In bash, clap_complete 4.6 confuses the hyphen of the program's name with its separator.
        let text = String::from_utf8_lossy(&text).replace("rds__subcmd__iam", "rds__iam");
        io::stdout().write_all(text.as_bytes())?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Print the manual page of rds-iam or of a subcommand
#[derive(Args)]
#[command(after_long_help = "Example:
  rds-iam man exec > ~/.local/share/man/man1/rds-iam-exec.1")]
pub(crate) struct Man {
    /// The subcommand
    subcommand: Option<String>,
}

impl Man {
    pub(crate) fn run(self) -> Outcome {
        let mut all = Arguments::command();
        // Gives subcommands their full names.
        all.build();
        let command = match &self.subcommand {
            Some(name) => all.find_subcommand(name).cloned().ok_or_else(|| {
                let known: Vec<&str> = all
                    .get_subcommands()
                    .filter(|subcommand| !subcommand.is_hide_set())
                    .map(clap::Command::get_name)
                    .collect();
                Failure::new(
                    2,
                    format!("no such subcommand\nhelp: use one of {}", known.join(", ")),
                )
            })?,
            None => all,
        };
        let title = command.get_display_name().unwrap_or("rds-iam").to_uppercase();
        let mut text = Vec::new();
        let source = concat!("rds-iam ", env!("CARGO_PKG_VERSION"));
        let page = clap_mangen::Man::new(command).title(title).source(source);
        page.manual("rds-iam manual").render(&mut text)?;
        io::stdout().write_all(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}
