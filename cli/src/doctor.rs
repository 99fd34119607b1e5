//! `rds-iam doctor`: why a login fails.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::Args;
use diesel_rds_iam::doctor::{Cause, Diagnosis, Fact, Report, Step, examine_with};
use serde_json::{Value, json};

use crate::Outcome;
use crate::database::Database;

/// Tell why a login fails, and what to do
///
/// Walks the way of a login: connection string, region, credentials, DNS, TCP, TLS, token, login,
/// and what is found when in; and stops at what is wrong. Each step takes ten seconds at most.
/// Nothing secret is shown. Exits with 0 only when a login through libpq works.
#[derive(Args)]
#[command(after_long_help = "Examples:
  rds-iam doctor
  rds-iam doctor --database-url postgres://app@db.abc123.eu-west-1.rds.amazonaws.com/app
  rds-iam doctor --json | jq '.steps[] | select(.ok | not)'")]
pub(crate) struct Doctor {
    /// Print one JSON object, for other programs
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    pub(crate) database: Database,
}

impl Doctor {
    pub(crate) fn run(self) -> Outcome {
        let look = Look::of_stdout();
        // Who has stopped to read still gets the exit code.
        let mut tell = |step: &Step| {
            if !self.json {
                let _ = io::stdout().write_all(look.step(step).as_bytes());
            }
        };
        let report = match self.database.manager() {
            Ok(manager) => examine_with(&manager, tell),
            Err(error) => {
                let report = Report::without_manager(&error);
                report.steps.iter().for_each(&mut tell);
                report
            }
        };
        if self.json {
            writeln!(io::stdout(), "{}", report_as_json(&report))?;
        }
        io::stdout().flush()?;
        Ok(if report.lets_in() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// How it is shown: in colour on a terminal only, and not with NO_COLOR.
struct Look {
    in_colour: bool,
}

const GREEN: &str = "32";
const RED: &str = "31";
const DIM: &str = "2";

impl Look {
    fn of_stdout() -> Look {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Look { in_colour: io::stdout().is_terminal() && !no_color }
    }

    fn step(&self, step: &Step) -> String {
        let tick =
            if step.outcome.is_ok() { self.paint(GREEN, "✓") } else { self.paint(RED, "✗") };
        let host = step.host.as_ref().map(|host| format!(" of {host}")).unwrap_or_default();
        let took = self.paint(DIM, &format!("{:.1} ms", step.took.as_secs_f64() * 1000.0));
        let mut text = format!("{tick} {}{host}  {took}\n", step.name);
        for Fact { name, value, .. } in &step.facts {
            push(&mut text, "    ", &format!("{}: {value}", self.paint(DIM, name)));
        }
        if let Err(diagnosis) = &step.outcome {
            text.push_str(&self.diagnosis(diagnosis));
        }
        text
    }

    fn diagnosis(&self, diagnosis: &Diagnosis) -> String {
        let mut text = String::new();
        push(&mut text, "    ", &self.paint(RED, &diagnosis.symptom));
        if let [cause] = diagnosis.causes.as_slice() {
            if cause.cause != diagnosis.symptom {
                push(&mut text, "    ", &cause.cause);
            }
            return text + &self.cure(cause, "    ");
        }
        text.push_str("\n    What can be behind it, the likeliest first:\n");
        for (i, cause) in diagnosis.causes.iter().enumerate() {
            text.push('\n');
            push(&mut text, "    ", &format!("{}. {}", i + 1, cause.cause));
            text.push_str(&self.cure(cause, "       "));
        }
        text
    }

    fn cure(&self, Cause { decided_by, cure, .. }: &Cause, indent: &str) -> String {
        let mut text = String::new();
        if let Some(fact) = decided_by {
            push(&mut text, indent, &format!("{} {fact}", self.paint(DIM, "decided by:")));
        }
        push(&mut text, indent, &format!("{} {cure}", self.paint(GREEN, "cure:")));
        text
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.in_colour { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

fn push(to: &mut String, indent: &str, text: &str) {
    text.lines().for_each(|line| {
        let _ = writeln!(to, "{indent}{line}");
    });
}

fn report_as_json(report: &Report) -> Value {
    json!({
        "lets_in": report.lets_in(),
        "steps": report.steps.iter().map(step_as_json).collect::<Vec<_>>(),
    })
}

fn step_as_json(step: &Step) -> Value {
    let facts = step.facts.iter().map(|fact| json!({ "name": fact.name, "value": fact.value }));
    json!({
        "name": step.name,
        "host": step.host,
        "ok": step.outcome.is_ok(),
        "took_ms": step.took.as_secs_f64() * 1000.0,
        "facts": facts.collect::<Vec<_>>(),
        "diagnosis": step.outcome.as_ref().err().map(diagnosis_as_json),
    })
}

fn diagnosis_as_json(diagnosis: &Diagnosis) -> Value {
    let cause = |cause: &Cause| json!({ "cause": cause.cause, "decided_by": cause.decided_by, "cure": cause.cure });
    json!({ "symptom": diagnosis.symptom, "causes": diagnosis.causes.iter().map(cause).collect::<Vec<_>>() })
}
