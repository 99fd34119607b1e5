//! Completions and the manual page, both made from the arguments' definitions.

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
    shell: Shell,
}

impl Completions {
    pub(crate) fn run(self) -> Outcome {
        // Not straight to standard output: it would panic when that is closed.
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut Arguments::command(), "rds-iam", &mut text);
        // clap_complete 4.6 takes the hyphen of our name for two different things in bash.
        let text = String::from_utf8_lossy(&text).replace("rds__subcmd__iam", "rds__iam");
        io::stdout().write_all(text.as_bytes())?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Print the manual page, or that of a subcommand
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
            Some(name) => {
                let found = all.find_subcommand(name).cloned();
                found.ok_or_else(|| {
                    Failure::new(2, format!("there is no subcommand {name}; see rds-iam help"))
                })?
            }
            None => all,
        };
        let mut text = Vec::new();
        clap_mangen::Man::new(command).render(&mut text)?;
        io::stdout().write_all(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}
