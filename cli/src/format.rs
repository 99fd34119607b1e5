//! Assignments of variables, as each reader of them expects.

use clap::ValueEnum;

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub(crate) enum Format {
    /// For eval in sh, bash, dash, zsh
    Sh,
    /// For source in fish
    Fish,
    /// For Invoke-Expression in PowerShell
    #[value(name = "powershell", alias = "power-shell")]
    PowerShell,
    /// A file .env for dotenvy, python-dotenv and shells: quotes only what a shell needs quoted
    Dotenv,
    /// NAME=value without quotes, for docker --env-file, kubectl --from-env-file, GitLab
    #[value(alias = "docker")]
    Plain,
    /// In a step of GitHub Actions: masks the token in the log, appends to the file GITHUB_ENV
    Github,
    /// One JSON object, for other programs
    Json,
}

/// A value that a format cannot express.
#[derive(Debug, PartialEq)]
pub(crate) struct Inexpressible(pub(crate) String);

type Assignment = Result<String, Inexpressible>;

impl Format {
    /// Returns the text that removes some variables and sets others.
    pub(crate) fn assignments(
        self,
        variables: &[(String, String)],
        removed: &[&str],
    ) -> Result<String, Inexpressible> {
        if self == Format::Json {
            let all: serde_json::Map<String, serde_json::Value> = variables
                .iter()
                .map(|(name, value)| (name.clone(), value.as_str().into()))
                .collect();
            return Ok(serde_json::Value::from(all).to_string());
        }
        let removals = removed.iter().filter_map(|name| self.removal(name)).map(Ok);
        let assignments = variables.iter().map(|(name, value)| self.assignment(name, value));
        Ok(removals.chain(assignments).collect::<Result<Vec<_>, _>>()?.join("\n"))
    }

    pub(crate) fn assignment(self, name: &str, value: &str) -> Assignment {
        Ok(match self {
            Format::Fish => {
                format!("set -gx {name} '{}'", value.replace('\\', r"\\").replace('\'', r"\'"))
            }
            Format::PowerShell => format!("$env:{name} = '{}'", doubled_quotes(value)),
            Format::Dotenv => return dotenv(name, value),
            Format::Plain | Format::Github if value.contains(['\n', '\r']) => {
                return Err(Inexpressible(format!("{name} contains a line break")));
            }
            Format::Plain | Format::Github => format!("{name}={value}"),
            Format::Sh | Format::Json => {
                format!("export {name}='{}'", value.replace('\'', r"'\''"))
            }
        })
    }

    fn removal(self, name: &str) -> Option<String> {
        match self {
            Format::Sh => Some(format!("unset {name}")),
            Format::Fish => Some(format!("set -e {name}")),
            Format::PowerShell => {
                Some(format!("Remove-Item Env:{name} -ErrorAction SilentlyContinue"))
            }
            Format::Dotenv | Format::Plain | Format::Github | Format::Json => None,
        }
    }
}

/// PowerShell ends a string at any of these.
fn doubled_quotes(value: &str) -> String {
    let is_quote = |c: char| c == '\'' || ('\u{2018}'..='\u{201B}').contains(&c);
    value.chars().flat_map(|c| std::iter::repeat_n(c, if is_quote(c) { 2 } else { 1 })).collect()
}

/// Refuses what dotenvy, python-dotenv and a shell read differently: quotes, backslashes at the
/// end or before another one, `${`.
fn dotenv(name: &str, value: &str) -> Assignment {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-.,/:@%+".contains(c);
    if !value.is_empty() && value.chars().all(is_plain) {
        return Ok(format!("{name}={value}"));
    }
    let differs = value.contains(['\'', '\n', '\r'])
        || value.contains("${")
        || value.contains(r"\\")
        || value.ends_with('\\');
    if differs {
        let text = "contains what readers of .env read differently: ', \\, ${ or a line break";
        return Err(Inexpressible(format!("{name} {text}")));
    }
    Ok(format!("{name}='{value}'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_quoted_as_each_reader_expects() {
        let cases = [
            (Format::Sh, r"export N='a'\''b\$c'"),
            (Format::Fish, r"set -gx N 'a\'b\\$c'"),
            (Format::PowerShell, r"$env:N = 'a''b\$c'"),
            (Format::Plain, r"N=a'b\$c"),
            (Format::Github, r"N=a'b\$c"),
        ];
        for (format, expected) in cases {
            assert_eq!(format.assignment("N", r"a'b\$c").unwrap(), expected);
        }
        let json = Format::Json.assignments(&[("N".into(), r"a'b\$c".into())], &[]);
        assert_eq!(json.unwrap(), r#"{"N":"a'b\\$c"}"#);
        assert_eq!(
            Format::Sh.assignments(&[("N".into(), "v".into())], &["PGSERVICE"]).unwrap(),
            "unset PGSERVICE\nexport N='v'"
        );
    }

    #[test]
    fn powershell_gets_all_its_quotes_doubled() {
        assert_eq!(
            Format::PowerShell.assignment("N", "a‘b’c‚d‛e`$(x)").unwrap(),
            "$env:N = 'a‘‘b’’c‚‚d‛‛e`$(x)'"
        );
    }

    #[test]
    fn dotenv_quotes_only_what_a_shell_needs_quoted() {
        assert_eq!(Format::Dotenv.assignment("N", "h.example.com:1").unwrap(), "N=h.example.com:1");
        assert_eq!(Format::Dotenv.assignment("N", "a`b`$c").unwrap(), "N='a`b`$c'");
        for value in ["a'b", r"a\\b", r"a\", "a${b}", "a\nb"] {
            assert!(Format::Dotenv.assignment("N", value).is_err(), "{value:?}");
        }
        assert!(Format::Plain.assignment("N", "a\nB=c").is_err());
    }
}
