//! `rds-iam local`: a local stand-in for RDS.

use std::ffi::OsString;

use clap::Args;

/// Start a local stand-in for RDS: a PostgreSQL that requires IAM tokens
///
/// With a command, runs it with the stand-in's DATABASE_URL, key pair and CA certificate in its
/// environment, and stops the stand-in when the command ends. Without a command, prints the
/// variables to export, and runs until Ctrl-C. Needs PostgreSQL's server programs on this machine.
/// Removes all its files at the end.
///
/// With --replicas it is a cluster: one writer, and replicas with streaming replication.
///
/// With --dsql it is a stand-in for Aurora DSQL: the host name and the tokens are those of DSQL,
/// and it refuses statements that DSQL refuses.
#[derive(Args)]
#[command(after_long_help = "Users of the database app:
  app            logs in with a token
  without_grant  lacks the role rds_iam: each login fails
  with_password  logs in with a password

With --replicas, all nodes listen on the same port: node-1 on 127.0.0.1, node-2 on 127.0.0.2.
DATABASE_URL lists all nodes with their addresses. RDS_IAM_LOCAL_CLUSTER_URL has the endpoint of
the cluster, whose name is in the file that RDS_IAM_LOCAL_HOSTS names, in the format of /etc/hosts.
Without a command, rds-iam reads commands on standard input while it runs:
  status           prints each node: name, address, condition, role
  failover [NODE]  makes NODE, or the first replica that runs, the writer
  kill NODE        kills all processes of NODE
  freeze NODE      stops all processes of NODE: its port still accepts connections
  thaw NODE        continues a frozen NODE
  rejoin NODE      makes a killed, frozen or former writer NODE a replica
NODE is a name such as node-2.

RDS_IAM_LOCAL_VERDICT names the file from which rds-iam doctor reads why a token was refused.

Examples:
  rds-iam local
  rds-iam local -- rds-iam exec -- diesel migration run
  rds-iam local --replicas 2
  rds-iam local --dsql -- rds-iam exec -- psql
  rds-iam local -- cargo test")]
pub(crate) struct Local {
    /// Speak the dialect of Aurora DSQL
    #[arg(long)]
    dsql: bool,
    /// Start a cluster with this number of replicas, at most 15 (only on Linux)
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "dsql")]
    replicas: usize,
    /// How long the names of the cluster lead to the old nodes after a failover
    #[arg(long, value_name = "SECONDS", default_value_t = 30, requires = "replicas")]
    dns_lag: u32,
    /// The command and its arguments
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[cfg(not(feature = "local"))]
impl Local {
    pub(crate) fn run(self) -> crate::Outcome {
        let _ = (self.command, self.dsql, self.replicas, self.dns_lag);
        let text = "this rds-iam was built without the feature local\n\
                    help: cargo install rds-iam --features local";
        Err(crate::Failure::new(1, text))
    }
}

#[cfg(feature = "local")]
mod with_local {
    use std::ffi::OsString;
    use std::io::{self, Write};
    use std::os::unix::process::CommandExt;
    use std::process::{Command, ExitCode};
    use std::sync::Arc;
    use std::time::Duration;

    use diesel_rds_iam::local::LocalRds;

    use super::Local;
    use crate::cluster;
    use crate::format::Format;
    use crate::{Failure, Outcome, child, exec};

    impl Local {
        pub(crate) fn run(self) -> Outcome {
            without_pg_variables()?;
            // Before the server starts: a signal that ends this process must not leave the server.
            let mut signals = child::catch()?;
            let dns_lag = Duration::from_secs(self.dns_lag.into());
            let builder = LocalRds::builder().replicas(self.replicas).dns_lag(dns_lag);
            let rds = if self.dsql { builder.dsql() } else { builder }.start()?;
            let Some((program, arguments)) = self.command.split_first() else {
                let name = if self.dsql { "Aurora DSQL" } else { "RDS" };
                let hint = format!("# Paste these lines into another shell. The local {name} runs");
                writeln!(io::stdout(), "{}\n{hint} until Ctrl-C.", exports(&rds))?;
                let rds = Arc::new(rds);
                if self.replicas > 0 {
                    writeln!(io::stdout(), "# Commands on standard input: {}", cluster::COMMANDS)?;
                    cluster::read_commands(&rds);
                }
                signals.forever().next();
                return Ok(ExitCode::SUCCESS);
            };
            let mut command = Command::new(program);
            command.args(arguments).envs(rds.environment());
            let ended = child::run_with(&mut command, signals);
            // Before exit_code: the signal that ended the command ends this process too.
            drop(rds);
            ended.map_err(|error| exec::not_run(&command, &error)).map(child::Ended::exit_code)
        }
    }

    /// Starts this program again without PG* variables, which are for another PostgreSQL.
    fn without_pg_variables() -> Result<(), Failure> {
        let is_pg = |name: &OsString| name.as_encoded_bytes().starts_with(b"PG");
        let names: Vec<OsString> =
            std::env::vars_os().map(|(name, _)| name).filter(is_pg).collect();
        if names.is_empty() {
            return Ok(());
        }
        let mut again = Command::new(std::env::current_exe()?);
        again.args(std::env::args_os().skip(1));
        names.iter().for_each(|name| {
            again.env_remove(name);
        });
        Err(Failure::from(again.exec()))
    }

    fn exports(rds: &LocalRds) -> String {
        let variables = rds.environment().into_iter();
        let export = |(name, value): (&str, String)| Format::Sh.assignment(name, &value).ok();
        variables.filter_map(export).collect::<Vec<String>>().join("\n")
    }
}
