//! `rds-iam doctor`: finds out why a login fails.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::Args;
use diesel_rds_iam::doctor::{Cause, Diagnosis, Fact, Report, Step, examine_with};
use serde_json::{Value, json};

use crate::Outcome;
use crate::database::Database;

/// Find out why a login fails, and what to do
///
/// Checks each step of a login: connection string, region, credentials, DNS, TCP, TLS, token,
/// login, and the session. Stops at the first problem. Each step takes at most 10 seconds. Shows no
/// secrets. Exits with 0 only if a login through libpq succeeds.
#[derive(Args)]
#[command(after_long_help = "Examples:
  rds-iam doctor
  rds-iam doctor --database-url postgres://app@db.abc123.eu-west-1.rds.amazonaws.com/app
  rds-iam doctor --json | jq '.steps[] | select(.ok | not)'")]
pub(crate) struct Doctor {
    /// Print one JSON object, for other programs
    #[arg(long)]
    json: bool,

    /// Show what each step found, and the help for each possible cause
    #[arg(short, long)]
    verbose: bool,

    #[command(flatten)]
    pub(crate) database: Database,
}

impl Doctor {
    pub(crate) fn run(self) -> Outcome {
        let style = Style { is_verbose: self.verbose, ..Style::of_stdout() };
        // A reader that has closed the pipe still gets the exit code.
        let mut on_step = |step: &Step| {
            if !self.json {
                let _ = io::stdout().write_all(style.step(step).as_bytes());
            }
        };
        let report = match self.database.manager() {
            Ok(manager) => examine_with(&manager, on_step),
            Err(error) => {
                let report = Report::without_manager(&error);
                report.steps.iter().for_each(&mut on_step);
                report
            }
        };
        if self.json {
            writeln!(io::stdout(), "{}", report_as_json(&report))?;
        } else {
            writeln!(io::stdout(), "{}", summary(&report))?;
        }
        io::stdout().flush()?;
        Ok(if report.can_log_in() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// In characters. The whole cause is above the last line.
const LONGEST_CAUSE: usize = 100;

/// The last line of the output.
fn summary(report: &Report) -> String {
    if report.can_log_in() {
        let user = report.user.as_deref().unwrap_or("the user");
        return match report.failures().count() {
            0 => format!("{user} can log in"),
            count => format!("{user} can log in, but not to all hosts ({count} failed)"),
        };
    }
    let problems: Vec<String> = report
        .failures()
        .map(|(step, diagnosis)| {
            let likely = if diagnosis.causes.len() > 1 { "likely " } else { "" };
            let cause = diagnosis.causes.first().map_or(&diagnosis.symptom, |it| &it.cause);
            let cause = match cause.char_indices().nth(LONGEST_CAUSE) {
                Some((end, _)) => format!("{}...", &cause[..end]),
                None => cause.clone(),
            };
            format!("{}: {likely}{cause}", step.name)
        })
        .collect();
    let plural = if problems.len() == 1 { "" } else { "s" };
    format!("{} problem{plural}: {}", problems.len(), problems.join("; "))
}

/// How steps are shown.
struct Style {
    is_verbose: bool,
    /// On a terminal without NO_COLOR.
    in_colour: bool,
}

const GREEN: &str = "32";
const RED: &str = "31";
const DIM: &str = "2";

impl Style {
    fn of_stdout() -> Style {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Style { is_verbose: false, in_colour: io::stdout().is_terminal() && !no_color }
    }

    /// One line if the step passed. A failure has the likeliest cause first.
    fn step(&self, step: &Step) -> String {
        let host = step.host.as_ref().map(|host| format!(" ({host})")).unwrap_or_default();
        let name = format!("{}{host}", step.name);
        let mut text = match &step.outcome {
            Ok(()) => {
                let took = format!("{:.1} ms", step.took.as_secs_f64() * 1000.0);
                format!("{} {name}  {}\n", self.paint(GREEN, "✓"), self.paint(DIM, &took))
            }
            Err(diagnosis) => {
                let symptom = self.paint(RED, &diagnosis.symptom);
                format!("{} {name}: {symptom}\n", self.paint(RED, "✗"))
            }
        };
        for Fact { name, value, .. } in step.facts.iter().filter(|_| self.is_verbose) {
            push(&mut text, &self.paint(DIM, &format!("{name}:")), value);
        }
        if let Err(diagnosis) = &step.outcome {
            self.causes(&mut text, diagnosis);
        }
        text
    }

    fn causes(&self, text: &mut String, Diagnosis { symptom, causes, .. }: &Diagnosis) {
        for (i, Cause { cause, check, help, .. }) in causes.iter().enumerate() {
            if cause != symptom {
                let label = match i {
                    0 if causes.len() == 1 => "cause:",
                    0 => "likely cause:",
                    _ => "other cause:",
                };
                push(text, &self.paint(RED, label), cause);
            }
            if i == 0 || self.is_verbose {
                push(text, &self.paint(GREEN, "help:"), help);
            }
            if let Some(check) = check {
                push(text, &self.paint(DIM, "check:"), check);
            }
        }
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.in_colour { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Further lines are indented, and otherwise as they are: to copy and paste.
fn push(to: &mut String, label: &str, text: &str) {
    let mut lines = text.lines();
    let _ = writeln!(to, "  {label} {}", lines.next().unwrap_or_default());
    lines.for_each(|line| {
        let _ = writeln!(to, "    {line}");
    });
}

fn report_as_json(report: &Report) -> Value {
    json!({
        "can_log_in": report.can_log_in(),
        "user": report.user,
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
    let cause = |it: &Cause| json!({ "cause": it.cause, "check": it.check, "help": it.help });
    let causes: Vec<Value> = diagnosis.causes.iter().map(cause).collect();
    json!({ "symptom": diagnosis.symptom, "causes": causes })
}
