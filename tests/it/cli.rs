//! The program `rds-iam`, run from a shell.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use diesel::connection::SimpleConnection;
use diesel_rds_iam::local::LocalRds;
use diesel_rds_iam::r2d2::ManageConnection;
use tempfile::TempDir;

use crate::support::{
    RDS_IAM, await_line, end_of, eventually, ignores_sigint, manager, minutes, output, output_of,
    send, start, with_no_settings, write_private,
};

/// Returns the command for a program in its own folder, without settings in its environment.
fn program(name: impl AsRef<Path>, folder: &TempDir) -> Command {
    let mut command = Command::new(name.as_ref());
    with_no_settings(&mut command).current_dir(folder.path());
    command
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn rds_iam(rds: &LocalRds, folder: &TempDir, arguments: &[&str]) -> Command {
    let mut command = program(RDS_IAM, folder);
    command.args(arguments).envs(rds.environment());
    command
}

/// The output and exit code of a program.
#[derive(Debug, PartialEq)]
struct Said {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// Runs a program until it ends. Prints its output, because tests/it/secrets.rs searches it.
fn run(command: &mut Command) -> Said {
    let said = run_unseen(command);
    eprint!("{}{}", said.stdout, said.stderr);
    said
}

/// As `run`, for output that contains a secret on purpose.
fn run_unseen(command: &mut Command) -> Said {
    let Output { status, stdout, stderr } = output(command);
    let [stdout, stderr] = [stdout, stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    Said { code: status.code(), stdout, stderr }
}

/// Without a log, for tests that compare the whole output: tests/it/secrets.rs sets RUST_LOG.
fn quiet(command: &mut Command) -> &mut Command {
    command.env_remove("RUST_LOG")
}

/// Returns the connection string without sslrootcert, which `environment()` sets too. A file .env
/// may name only a file of this user or root.
fn url_without_root(rds: &LocalRds) -> String {
    let url = rds.database_url();
    let (start, parameters) = url.split_once('?').unwrap();
    let others = parameters.split('&').filter(|it| !it.starts_with("sslrootcert="));
    format!("{start}?{}", others.collect::<Vec<_>>().join("&"))
}

mod exec {
    use super::*;

    #[test]
    fn psql_and_pg_dump_log_in_by_variables_and_by_url() {
        let (rds, folder) = (start(LocalRds::builder()), folder());
        manager(&rds).connect().unwrap().batch_execute("CREATE TABLE dumped (id INTEGER)").unwrap();
        let cases: [(&[&str], &str); 4] = [
            (&["psql", "-Atc", "SELECT current_user"], "app\n"),
            (&["sh", "-c", "psql -Atc 'SELECT current_user' \"$DATABASE_URL\""], "app\n"),
            (&["pg_dump", "--schema-only"], "CREATE TABLE public.dumped"),
            (
                &["sh", "-c", "pg_dump --schema-only \"$DATABASE_URL\""],
                "CREATE TABLE public.dumped",
            ),
        ];
        for (command, expected) in cases {
            for options in [
                vec!["exec", "--"],
                vec!["exec", "--refresh", "--"],
                vec!["exec", "--in-url", "--"],
            ] {
                let in_url = options.contains(&"--in-url");
                if in_url && command[0] != "sh" {
                    continue;
                }
                let said = run(rds_iam(&rds, &folder, &options).args(command));
                assert!(
                    said.code == Some(0) && said.stdout.contains(expected),
                    "{options:?} {command:?} {said:?}"
                );
                assert_eq!(
                    said.stderr.contains("DATABASE_URL contains the token"),
                    in_url,
                    "{said:?}"
                );
            }
        }
        assert!(rds.attempts().iter().all(|attempt| attempt.verdict.is_ok()));
    }

    #[test]
    fn keywords_of_this_crate_do_not_reach_the_program() {
        let (rds, folder) = (start(LocalRds::builder()), folder());
        let own = "&pool_max_size=3&pool_min_idle=1&pool_connection_timeout=4&max_lifetime=60\
                   &validate_after=0&leak_detection_threshold=30";
        let url = format!("--database-url={}{own}", rds.database_url());
        for options in [vec!["exec"], vec!["exec", "--refresh"], vec!["exec", "--in-url"]] {
            let script = "env | grep -e pool_ -e max_lifetime; psql -Atc 'SELECT 1' $DATABASE_URL";
            let mut command = rds_iam(&rds, &folder, &options);
            let said = run(command.args([&url, "--", "sh", "-c", script]));
            assert_eq!((said.code, said.stdout.as_str()), (Some(0), "1\n"), "{said:?}");
        }
    }

    #[test]
    fn arguments_streams_and_exit_codes_are_unchanged() {
        let (rds, folder) = (start(LocalRds::builder()), folder());
        for refresh in [&["exec", "--"][..], &["exec", "--refresh", "--"]] {
            let script = "cat; echo \"$1|$2\"; echo err >&2; exit 42";
            let mut command = rds_iam(&rds, &folder, refresh);
            command.args(["sh", "-c", script, "sh", "--in-url", "a b"]);
            let file = folder.path().join("input");
            fs::write(&file, "input\n").unwrap();
            let said = run(quiet(&mut command).stdin(fs::File::open(&file).unwrap()));
            let expected = Said {
                code: Some(42),
                stdout: "input\n--in-url|a b\n".into(),
                stderr: "err\n".into(),
            };
            assert_eq!(said, expected);
        }
    }

    #[test]
    fn overriding_variables_are_removed() {
        let (rds, folder) = (start(LocalRds::builder()), folder());
        let mut command = rds_iam(&rds, &folder, &["exec", "--", "sh", "-c", "env | cut -d= -f1"]);
        let said =
            run(command.env("PGPASSFILE", "/nonexistent").env("PGSERVICEFILE", "/nonexistent"));
        let names: Vec<&str> = said.stdout.lines().collect();
        for expected in
            ["PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGSSLMODE", "PGPASSWORD", "DATABASE_URL"]
        {
            assert!(names.contains(&expected), "{expected} in {names:?}");
        }
        assert!(!names.contains(&"PGPASSFILE") && !names.contains(&"PGSERVICEFILE"), "{names:?}");
    }

    #[test]
    fn exit_codes_are_those_of_env_if_the_command_cannot_run() {
        let (rds, folder) = (start(LocalRds::builder()), folder());
        let not_executable = folder.path().join("plain");
        fs::write(&not_executable, "").unwrap();
        let not_executable = not_executable.to_str().unwrap();
        for options in [&["exec", "--"][..], &["exec", "--refresh", "--"]] {
            for (command, code) in [("no-such-command", 127), (not_executable, 126)] {
                let said = run(quiet(&mut rds_iam(&rds, &folder, options)).arg(command));
                assert_eq!(said.code, Some(code), "{said:?}");
                assert!(
                    said.stderr.starts_with(&format!("rds-iam: cannot run {command}: ")),
                    "{said:?}"
                );
            }
        }
        let said = run(&mut rds_iam(&rds, &folder, &["exec", "--", "host=h password=swordfish"]));
        assert!(said.stderr.contains("cannot run a text with =: "), "{said:?}");
        assert!(!said.stderr.contains("swordfish"), "{said:?}");
        let said = run(&mut rds_iam(&rds, &folder, &["exec"]));
        assert_eq!(said.code, Some(2));
        assert!(said.stderr.contains("<COMMAND>"), "{said:?}");
    }

    #[test]
    fn without_a_login_the_command_does_not_run() {
        let (rds, folder) = (start(LocalRds::builder()), folder());
        let with = |url: Option<&str>| {
            let mut command = rds_iam(&rds, &folder, &["exec", "--", "echo", "ran"]);
            match url {
                Some(url) => command.env("DATABASE_URL", url),
                None => command.env_remove("DATABASE_URL"),
            };
            run(&mut command)
        };
        let cases = [
            (None, "names no host"),
            (Some(""), "DATABASE_URL is empty"),
            (Some("postgres://app:hunter2@localhost/app"), "remove the password"),
            (
                Some("postgres://app@localhost,localhost:1/app?region_name=us-east-1&port=1,2,3"),
                "lists of different lengths",
            ),
        ];
        for (url, expected) in cases {
            let said = with(url);
            assert_eq!((said.code, said.stdout.as_str()), (Some(125), ""), "{said:?}");
            assert!(said.stderr.contains(expected), "{said:?}");
        }
    }

    #[test]
    fn dot_env_is_read_after_the_environment() {
        let (rds, folder) = (start(LocalRds::builder()), folder());
        fs::write(
            folder.path().join(".env"),
            format!("DATABASE_URL='{}'\n", url_without_root(&rds)),
        )
        .unwrap();
        let psql = ["exec", "--", "psql", "-Atc", "SELECT current_user"];
        let said = run(rds_iam(&rds, &folder, &psql).env_remove("DATABASE_URL"));
        assert_eq!(said.stdout, "app\n", "{said:?}");
        // --database-url, then the environment, then the file.
        let said =
            run(rds_iam(&rds, &folder, &psql)
                .env("DATABASE_URL", "postgres://nobody@localhost:1/none"));
        assert!(said.stderr.contains("nobody") || said.stderr.contains("port 1"), "{said:?}");
        let url = rds.database_url();
        let psql = ["exec", "--database-url", &url, "--", "psql", "-Atc", "SELECT current_user"];
        let said =
            run(rds_iam(&rds, &folder, &psql)
                .env("DATABASE_URL", "postgres://nobody@localhost:1/none"));
        assert_eq!(said.stdout, "app\n", "{said:?}");
    }

    #[test]
    fn without_iam_the_url_is_passed_on_without_our_keywords() {
        let (rds, folder) = (start(LocalRds::builder()), folder());
        let script =
            "psql -Atc 'SELECT current_user' \"$DATABASE_URL\"; env | grep -c rds_iam_auth";
        let said = run(rds_iam(&rds, &folder, &["exec", "--", "sh", "-c", script])
            .env("DATABASE_URL", rds.password_url()));
        assert_eq!(said.stdout, format!("{}\n0\n", LocalRds::USER_WITH_PASSWORD), "{said:?}");
    }

    #[test]
    fn without_iam_the_connection_string_overrides_pg_variables() {
        // psql silently connected to the server that PG* variables name.
        let (rds, folder) = (start(LocalRds::builder()), folder());
        let mut command =
            rds_iam(&rds, &folder, &["exec", "--", "psql", "-Atc", "SELECT current_user"]);
        command
            .env("DATABASE_URL", rds.password_url())
            .env("PGUSER", "rdsadmin")
            .env("PGHOST", "/nonexistent");
        assert_eq!(run(&mut command).stdout, format!("{}\n", LocalRds::USER_WITH_PASSWORD));
    }

    #[test]
    fn a_syntax_error_in_dot_env_is_reported_without_the_line() {
        let (rds, folder) = (start(LocalRds::builder()), folder());
        fs::write(folder.path().join(".env"), "DATABASE_URL=hunter2 and more\n").unwrap();
        let said = run(rds_iam(&rds, &folder, &["exec", "--", "true"]).env_remove("DATABASE_URL"));
        assert_eq!(said.code, Some(1));
        assert!(
            said.stderr.contains("the line is not NAME=value") && !said.stderr.contains("hunter"),
            "the text is wrong or contains the line"
        );
    }

    #[test]
    fn dot_env_sets_connection_settings_only() {
        let (rds, folder) = (start(LocalRds::builder()), folder());
        let path = folder.path().join(".env");
        let text =
            format!("LD_PRELOAD=/x.so\nPGPASSWORD=p\nDATABASE_URL='{}'\n", url_without_root(&rds));
        fs::write(&path, text).unwrap();
        let script = ["exec", "--", "sh", "-c", "echo [$LD_PRELOAD]; psql -Atc 'SELECT 1'"];
        let said = run(rds_iam(&rds, &folder, &script).env_remove("DATABASE_URL"));
        assert_eq!(said.stdout, "[]\n1\n", "{said:?}");
        let read = format!("rds-iam: read DATABASE_URL from {}\n", path.display());
        assert!(said.stderr.contains(&read), "{said:?}");
    }

    #[test]
    fn dot_env_is_ignored_if_another_user_can_write_it() {
        use std::os::unix::fs::{PermissionsExt, chown};

        let (rds, folder) = (start(LocalRds::builder()), folder());
        let below = folder.path().join("below");
        fs::create_dir(&below).unwrap();
        let path = folder.path().join(".env");
        fs::write(&path, format!("DATABASE_URL='{}'\n", rds.database_url())).unwrap();
        let check = |reason: &str| {
            let mut command = rds_iam(&rds, &folder, &["exec", "--", "echo", "ran"]);
            let said = run(command.env_remove("DATABASE_URL").current_dir(&below));
            assert_eq!((said.code, said.stdout.as_str()), (Some(125), ""), "{reason}: {said:?}");
            let expected = format!("rds-iam: ignored {}: {reason}", path.display());
            assert!(said.stderr.contains(&expected), "{said:?}");
        };
        let mode = |path: &Path, mode| fs::set_permissions(path, PermissionsExt::from_mode(mode));
        mode(&path, 0o666).unwrap();
        check("it can be written by other users");
        mode(&path, 0o600).unwrap();
        mode(folder.path(), 0o1777).unwrap();
        check("its folder can be written by other users");
        mode(folder.path(), 0o700).unwrap();
        // Only root can give a file away.
        if chown(&path, Some(65534), None).is_ok() {
            check("it belongs to another user (uid 65534)");
        }
    }

    #[test]
    fn dot_env_cannot_weaken_tls() {
        let (rds, folder) = (start(LocalRds::builder()), folder());
        fs::write(folder.path().join("ca.pem"), "").unwrap();
        let own = format!("sslrootcert={}", folder.path().join("ca.pem").display());
        for setting in ["sslmode=require", "sslrootcert=ca.pem", &own] {
            let text = format!("DATABASE_URL='{}&{setting}'\n", url_without_root(&rds));
            fs::write(folder.path().join(".env"), text).unwrap();
            for arguments in [&["exec", "--", "echo", "ran"][..], &["token"], &["doctor"]] {
                let said = run(rds_iam(&rds, &folder, arguments).env_remove("DATABASE_URL"));
                assert_eq!((said.code, said.stdout.as_str()), (Some(1), ""), "{said:?}");
                assert!(said.stderr.contains("could send a token to another server"), "{said:?}");
            }
        }
    }

    #[test]
    fn a_database_that_programs_take_as_a_connection_string_is_refused() {
        let (rds, folder) = (start(LocalRds::builder()), folder());
        let text = "PGDATABASE='host=127.0.0.1 sslmode=disable'\n";
        fs::write(folder.path().join(".env"), text).unwrap();
        for (arguments, code) in [(&["exec", "--", "echo", "ran"][..], 125), (&["env"], 1)] {
            let mut command = rds_iam(&rds, &folder, arguments);
            command.env_remove("DATABASE_URL").env("PGHOST", "localhost").env("PGUSER", "app");
            let said = run(&mut command);
            assert_eq!((said.code, said.stdout.as_str()), (Some(code), ""), "{said:?}");
            assert!(said.stderr.contains("take it as a connection string"), "{said:?}");
        }
    }

    #[test]
    fn a_password_in_dot_env_does_not_override_the_passfile() {
        let (rds, folder) = (start(LocalRds::builder()), folder());
        fs::write(folder.path().join(".env"), "PGPASSWORD=hunter2\n").unwrap();
        let said = run(&mut rds_iam(
            &rds,
            &folder,
            &["exec", "--refresh", "--", "sh", "-c", "echo \"[$PGPASSWORD]\""],
        ));
        assert_eq!(said.stdout, "[]\n", "{said:?}");
    }

    #[test]
    fn an_unresolvable_host_is_left_out() {
        let (rds, folder) = (start(LocalRds::builder()), folder());
        let (port, roots) = (rds.port(), rds.ca_file().display());
        let url = format!(
            "host=nosuch.invalid,localhost port={port} user=app dbname=app region_name=us-east-1 \
             iam_host=localhost sslrootcert='{roots}'"
        );
        let psql = ["exec", "--", "psql", "-Atc", "SELECT current_user"];
        assert_eq!(run(rds_iam(&rds, &folder, &psql).env("DATABASE_URL", url)).stdout, "app\n");
    }

    #[test]
    fn ignored_signals_stay_ignored() {
        let (rds, folder) = (start(LocalRds::builder()), folder());
        let script = format!(
            "trap '' HUP; {RDS_IAM} exec --refresh -- sh -c 'kill -HUP $PPID; kill -HUP $$; echo \
             on'"
        );
        let said = run(program("sh", &folder).args(["-c", &script]).envs(rds.environment()));
        assert_eq!((said.code, said.stdout.as_str()), (Some(0), "on\n"), "{said:?}");
    }

    #[test]
    fn several_hosts_get_a_token_each() {
        let (down, up, folder) = (start(LocalRds::builder()), start(LocalRds::builder()), folder());
        up.add_key_pair(down.credentials().clone());
        let roots = folder.path().join("roots.pem");
        fs::write(&roots, [&down, &up].map(|rds| fs::read(rds.ca_file()).unwrap()).concat())
            .unwrap();
        let (a, b, roots) = (down.port(), up.port(), roots.display());
        let url = format!(
            "host=localhost,localhost port={a},{b} user=app dbname=app region_name=us-east-1 \
             sslrootcert='{roots}'"
        );
        let psql = "psql -Atc 'SELECT inet_server_port()' && psql -Atc 'SELECT \
                    inet_server_port()' \"$DATABASE_URL\"";
        let mut command = rds_iam(&down, &folder, &["exec", "--", "sh", "-c", psql]);
        assert_eq!(run(command.env("DATABASE_URL", &url)).stdout, format!("{a}\n{a}\n"));
        down.stop();
        assert_eq!(run(command.env("DATABASE_URL", &url)).stdout, format!("{b}\n{b}\n"));
        assert!(
            [&down, &up]
                .iter()
                .all(|rds| rds.attempts().iter().all(|attempt| attempt.verdict.is_ok()))
        );
        for (arguments, hint) in [
            (&["env"][..], "help: use rds-iam exec"),
            (&["token"], "help: name one host with --host"),
            (&["exec", "--in-url", "true"], "help: remove --in-url"),
        ] {
            let said = run(rds_iam(&down, &folder, arguments).env("DATABASE_URL", &url));
            assert!(said.code != Some(0) && said.stderr.contains(hint), "{said:?}");
        }
    }

    /// A command that logs in, waits for the test, and logs in again.
    const TWICE: &str = "
        psql -Atc 'SELECT 1'
        cp \"$PGPASSFILE\" before 2>/dev/null
        mkfifo ready go; echo > ready; read -r _ < go
        if [ \"$PGPASSFILE\" ]; then while cmp -s \"$PGPASSFILE\" before; do sleep 0.1; done; fi
        psql -Atc 'SELECT 2'";

    /// Runs `TWICE` with 16 minutes between the logins, on the clocks of the server and of the
    /// command.
    fn log_in_twice(options: &[&str]) -> (LocalRds, Said) {
        let (rds, folder) = (start(LocalRds::builder()), folder());
        let clock = folder.path().join("clock");
        fs::write(&clock, "+0").unwrap();
        let library =
            run(program("faketime", &folder).args(["-m", "2000-01-01", "printenv", "LD_PRELOAD"]))
                .stdout;
        let mut command = rds_iam(&rds, &folder, &["exec"]);
        command.args(options).args(["--", "sh", "-c", TWICE]);
        command.env("LD_PRELOAD", library.trim()).env("FAKETIME_TIMESTAMP_FILE", &clock);
        command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let [ready, go] = ["ready", "go"].map(|name| folder.path().join(name));
        eventually("the first login", || ready.exists() && go.exists());
        fs::read(&ready).unwrap();
        rds.clock().advance(minutes(16));
        fs::write(folder.path().join("clock.new"), "+16m").unwrap();
        fs::rename(folder.path().join("clock.new"), &clock).unwrap();
        fs::write(&go, "\n").unwrap();
        let output = output_of(child, minutes(5), "a command that logs in twice");
        let [stdout, stderr] =
            [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        eprint!("{stdout}{stderr}");
        (rds, Said { code: output.status.code(), stdout, stderr })
    }

    #[test]
    fn a_login_after_16_minutes_works_with_refresh() {
        let (rds, said) = log_in_twice(&["--refresh"]);
        assert_eq!((said.code, said.stdout.as_str()), (Some(0), "1\n2\n"), "{said:?}");
        assert!(rds.attempts().iter().all(|attempt| attempt.verdict.is_ok()));
    }

    #[test]
    fn a_login_after_16_minutes_fails_without_refresh() {
        let (_rds, said) = log_in_twice(&[]);
        assert_eq!((said.code, said.stdout.as_str()), (Some(2), "1\n"), "{said:?}");
        assert!(said.stderr.contains("authentication failed for user"), "{said:?}");
    }

    /// Starts a command that waits for a signal. Returns the folder of its passfile too.
    fn waiting(rds: &LocalRds, folder: &TempDir) -> (Child, PathBuf) {
        let script = "trap 'echo caught; exit 7' USR1; dirname \"$PGPASSFILE\"; while :; do \
                      sleep 0.05; done";
        let mut command = rds_iam(rds, folder, &["exec", "--refresh", "--", "sh", "-c", script]);
        let mut child =
            command.env("XDG_RUNTIME_DIR", folder.path()).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let folder = await_line("the command prints its folder", stdout, |line| Some(line.into()));
        (child, folder)
    }

    #[test]
    fn the_passfile_is_private_and_is_removed_after_a_signal() {
        use std::os::unix::fs::PermissionsExt;

        let (rds, folder) = (start(LocalRds::builder()), folder());
        for (signal, code, by) in [
            ("USR1", Some(7), None),
            ("TERM", None, Some(15)),
            ("INT", None, Some(2)),
            ("KILL", None, Some(9)),
        ] {
            if signal == "INT" && ignores_sigint() {
                eprintln!("SIGINT is ignored here (nohup), so it is not tested");
                continue;
            }
            let (mut child, private) = waiting(&rds, &folder);
            assert!(private.starts_with(folder.path()), "{private:?} is not in XDG_RUNTIME_DIR");
            let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!((mode(&private), mode(&private.join("passfile"))), (0o700, 0o600));
            send(signal, child.id());
            let status = end_of(&mut child, signal);
            assert_eq!((status.code(), status.signal()), (code, by), "{signal}");
            eventually("the removal of the passfile", || !private.exists());
        }
    }

    #[test]
    fn with_refresh_rds_iam_becomes_the_command() {
        // As a parent it dumped core with the AWS secret key, sent signals twice, left zombies as
        // PID 1, and left the passfile if a signal came early.
        let (rds, folder) = (start(LocalRds::builder()), folder());
        let script = "echo $$; ps -o pid= --ppid $$ | wc -l; ps -o comm= --ppid $$";
        let mut command = rds_iam(&rds, &folder, &["exec", "--refresh", "--", "sh", "-c", script]);
        let child = command.stdout(Stdio::piped()).spawn().unwrap();
        let pid = child.id();
        let stdout = String::from_utf8(output_of(child, minutes(5), script).stdout).unwrap();
        assert!(stdout.starts_with(&format!("{pid}\n")), "{pid}: {stdout}");
        assert!(!stdout.contains("rds-iam"), "the command has a child: {stdout}");
    }

    #[test]
    fn the_passfile_is_removed_if_the_command_does_not_exist() {
        let (rds, folder) = (start(LocalRds::builder()), folder());
        let mut command = rds_iam(&rds, &folder, &["exec", "--refresh", "--", "no-such-command"]);
        let said = run(command.env("XDG_RUNTIME_DIR", folder.path()));
        assert_eq!(said.code, Some(127), "{said:?}");
        eventually("the removal of the passfile", || {
            fs::read_dir(folder.path()).unwrap().next().is_none()
        });
    }

    #[test]
    fn a_passfile_for_another_user_is_reported() {
        let (rds, folder) = (start(LocalRds::builder()), folder());
        let script =
            ["exec", "--refresh", "--", "setpriv", "--reuid=65534", "--clear-groups", "true"];
        let said = run(rds_iam(&rds, &folder, &script).env("RUST_LOG", "warn"));
        assert!(said.stderr.contains("setpriv changes the user"), "{said:?}");
        let said = run(&mut rds_iam(&rds, &folder, &["exec", "--help"]));
        assert!(said.stdout.contains("gosu app rds-iam exec --refresh -- server"), "{said:?}");
    }

    /// A server that is reached by another name and port than those that tokens are signed for.
    fn behind_a_tunnel() -> LocalRds {
        start(LocalRds::builder().endpoint("db.example.com", 6543))
    }

    #[test]
    fn exec_inside_exec_signs_for_the_same_endpoint() {
        let (rds, folder) = (behind_a_tunnel(), folder());
        let psql = "psql -Atc 'SELECT current_user'";
        let scripts = [
            format!("{RDS_IAM} exec -- {RDS_IAM} exec -- {psql}"),
            format!("{RDS_IAM} exec --refresh -- {RDS_IAM} exec --refresh -- {psql}"),
            format!("eval \"$({RDS_IAM} env)\"; eval \"$({RDS_IAM} env)\"; {psql}"),
        ];
        for script in scripts {
            let mut command = program("sh", &folder);
            let environment =
                rds.environment().into_iter().filter(|(name, _)| *name != "AWS_REGION");
            let said = run(command.args(["-c", &script]).envs(environment));
            assert_eq!(said.stdout, "app\n", "{script}: {said:?}");
        }
        assert!(rds.attempts().iter().all(|attempt| attempt.verdict.is_ok()));
    }

    #[test]
    fn another_database_inside_exec_is_signed_for_its_own_endpoint() {
        let (tunnelled, other, folder) = (behind_a_tunnel(), start(LocalRds::builder()), folder());
        let url = other.database_url();
        let mut command = rds_iam(&tunnelled, &folder, &["exec", "--", RDS_IAM, "exec"]);
        command.args(["--database-url", &url, "--", "sh", "-c", "echo ${RDS_IAM_ENDPOINTS-unset}"]);
        let said = run(&mut command);
        let endpoint = format!("localhost:{}/us-east-1\n", other.port());
        assert_eq!(said.stdout, endpoint, "{said:?}");
    }

    #[test]
    fn a_connection_string_may_precede_the_command() {
        let (rds, folder) = (start(LocalRds::builder()), folder());
        let url = rds.database_url();
        let psql = ["psql", "-Atc", "SELECT current_user"];
        for separator in [&["--"][..], &[]] {
            let mut command = rds_iam(&rds, &folder, &["exec", &url]);
            let said = run(command.args(separator).args(psql).env_remove("DATABASE_URL"));
            assert_eq!(said.stdout, "app\n", "{said:?}");
        }
        let token = run_unseen(rds_iam(&rds, &folder, &["token", &url]).env_remove("DATABASE_URL"));
        assert!(token.stdout.contains("X-Amz-Signature="));
    }

    #[test]
    fn no_argument_with_a_password_is_printed() {
        let (rds, folder) = (start(LocalRds::builder()), folder());
        // Not the password that tests/it/secrets.rs searches for in arguments.
        let url = "postgres://app:swordfish@localhost/app";
        let option = format!("--iam-port={url}");
        let cases: [&[&str]; 9] = [
            &[url],
            &["doctor", url],
            &["env", url],
            &["token", url, url],
            &["exec", url],
            &["exec", url, "--refresh", "--", "true"],
            &["exec", url, "--", "true"],
            &["man", url],
            &["token", &option],
        ];
        for arguments in cases {
            let said = run_unseen(&mut rds_iam(&rds, &folder, arguments));
            assert!(said.code != Some(0), "{arguments:?}");
            let text = said.stdout + &said.stderr;
            assert!(!text.contains("swordfish"), "{:?}", arguments[0]);
        }
    }

    #[test]
    fn without_iam_a_service_is_resolved() {
        let (rds, folder) = (start(LocalRds::builder()), folder());
        let file = folder.path().join("services");
        let (port, user) = (rds.port(), LocalRds::USER_WITH_PASSWORD);
        fs::write(
            &file,
            format!("[laptop]\nhost=localhost\nport={port}\nuser={user}\ndbname=app\n"),
        )
        .unwrap();
        let script = "psql -Atc 'SELECT current_user' \"$DATABASE_URL\"";
        let mut command = rds_iam(&rds, &folder, &["exec", "--", "sh", "-c", script]);
        command.env("PGSERVICEFILE", &file).env("PGPASSWORD", rds.password());
        let url = "postgres:///?service=laptop&rds_iam_auth=false";
        let said = run(command.env("DATABASE_URL", url));
        assert_eq!(said.stdout, format!("{user}\n"), "{said:?}");
    }

    #[test]
    fn without_libpq_the_url_with_the_token_is_understood() {
        let (rds, folder) = (start(LocalRds::builder()), folder());
        let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/python/bin/python3");
        let script = "import asyncio, asyncpg, os\n\
            async def main():\n    \
                connection = await asyncpg.connect(os.environ['DATABASE_URL'])\n    \
                print(await connection.fetchval('SELECT current_user'))\n\
            asyncio.run(main())";
        // asyncpg must not read what libpq's variables say.
        let unset = "unset PGSSLMODE PGSSLROOTCERT PGPASSWORD; exec \"$@\"";
        let mut command =
            rds_iam(&rds, &folder, &["exec", "--in-url", "--", "sh", "-c", unset, "sh"]);
        let said = run(command.arg(python).args(["-c", script]));
        assert_eq!(said.stdout, "app\n", "{said:?}");
    }

    #[test]
    fn tokio_postgres_understands_the_url_with_the_token() {
        let rds = start(LocalRds::builder());
        // tokio-postgres knows no sslrootcert.
        let url = format!("{}&sslmode=require", url_without_root(&rds));
        let login = rds.manager_builder().build(url).unwrap().libpq_login().unwrap();
        let config: tokio_postgres::Config =
            login.database_url_with_token().unwrap().parse().expect("tokio-postgres parses it");
        let connector =
            native_tls::TlsConnector::builder().danger_accept_invalid_certs(true).build().unwrap();
        let connector = postgres_native_tls::MakeTlsConnector::new(connector);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let user: String = runtime.block_on(async {
            let (client, connection) = config.connect(connector).await.unwrap();
            tokio::spawn(connection);
            client.query_one("SELECT current_user::text", &[]).await.unwrap().get(0)
        });
        assert_eq!(user, "app");
    }
}

mod diesel_cli {
    use super::*;

    /// A folder with a migration, and a server.
    fn project() -> (LocalRds, TempDir) {
        let (rds, folder) = (start(LocalRds::builder()), folder());
        fs::write(folder.path().join("diesel.toml"), "[print_schema]\nfile = \"schema.rs\"\n")
            .unwrap();
        let migration = folder.path().join("migrations/2026-01-01-000000_create_notes");
        fs::create_dir_all(&migration).unwrap();
        fs::write(migration.join("up.sql"), "CREATE TABLE notes (id SERIAL PRIMARY KEY);\n")
            .unwrap();
        fs::write(migration.join("down.sql"), "DROP TABLE notes;\n").unwrap();
        (rds, folder)
    }

    /// Where `script/bootstrap tests` puts it.
    fn diesel() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("target/diesel/bin/diesel")
    }

    fn with_shim(rds: &LocalRds, folder: &TempDir, arguments: &[&str]) -> Said {
        run(quiet(&mut rds_iam(rds, folder, &["exec", "--"])).arg(diesel()).args(arguments))
    }

    /// With the token in the URL.
    fn without_shim(rds: &LocalRds, folder: &TempDir, arguments: &[&str]) -> Said {
        let login = manager(rds).libpq_login().unwrap();
        let mut command = program(diesel(), folder);
        run_unseen(
            quiet(&mut command)
                .args(arguments)
                .env("DATABASE_URL", login.database_url_with_token().unwrap()),
        )
    }

    /// A command of the diesel CLI, and a part of what it prints.
    const ALL: &[(&[&str], &str)] = &[
        (&["setup"], "Running migration 2026-01-01-000000_create_notes"),
        (&["migration", "list"], "[X] 2026-01-01-000000_create_notes"),
        (&["migration", "pending"], "false"),
        (&["migration", "redo"], "Rolling back migration 2026-01-01-000000_create_notes"),
        (&["migration", "revert"], "Rolling back migration 2026-01-01-000000_create_notes"),
        (&["migration", "run"], "Running migration 2026-01-01-000000_create_notes"),
        (&["print-schema"], "notes (id)"),
        (&["database", "reset"], "Dropping database: app"),
        (&["migration", "revert"], "Rolling back migration 2026-01-01-000000_create_notes"),
    ];

    #[test]
    fn has_the_same_output_and_effect_as_without_exec() {
        let ((rds, folder), (plain_rds, plain_folder)) = (project(), project());
        for (arguments, expected) in ALL {
            let said = with_shim(&rds, &folder, arguments);
            assert!(
                said.code == Some(0) && said.stdout.contains(expected),
                "{arguments:?}: {said:?}"
            );
            let plain = without_shim(&plain_rds, &plain_folder, arguments);
            let here = |said: Said, folder: &TempDir| Said {
                stdout: said.stdout.replace(folder.path().to_str().unwrap(), "HERE"),
                ..said
            };
            assert_eq!(here(said, &folder), here(plain, &plain_folder), "{arguments:?}");
        }
        assert!(rds.attempts().len() >= 2 * ALL.len());
        assert!(rds.attempts().iter().all(|attempt| attempt.verdict.is_ok()));
        let schema =
            |folder: &TempDir| fs::read_to_string(folder.path().join("schema.rs")).unwrap();
        assert_eq!(schema(&folder), schema(&plain_folder));
    }

    #[test]
    fn a_failing_migration_fails() {
        let ((rds, folder), (plain_rds, plain_folder)) = (project(), project());
        for folder in [&folder, &plain_folder] {
            let up = folder.path().join("migrations/2026-01-01-000000_create_notes/up.sql");
            fs::write(up, "CREATE TABLE notes (id nonsense);\n").unwrap();
        }
        let said = with_shim(&rds, &folder, &["migration", "run"]);
        assert!(
            said.code != Some(0) && said.stderr.contains("type \"nonsense\" does not exist"),
            "{said:?}"
        );
        let plain = without_shim(&plain_rds, &plain_folder, &["migration", "run"]);
        // The output contains times.
        let timeless = |said: Said| Said {
            stdout: said.stdout.replace(|c: char| c.is_ascii_digit(), "#"),
            ..said
        };
        assert_eq!(timeless(said), timeless(plain));
    }

    /// At an endpoint of Aurora DSQL.
    #[test]
    fn migrations_for_dsql_run_and_others_are_explained_before() {
        let (rds, folder) = (start(LocalRds::builder().dsql()), folder());
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/migrations_dsql");
        let dir = ["--migration-dir", examples.to_str().unwrap()];
        for (command, expected) in [
            ("run", "Running migration 2026-01-03-000002_create_ledger"),
            ("list", "[X] 2026-01-03-000002_create_ledger"),
            ("redo", "Rolling back migration 2026-01-03-000002_create_ledger"),
            ("revert", "Rolling back migration 2026-01-03-000002_create_ledger"),
        ] {
            let said = with_shim(&rds, &folder, &[&["migration", command][..], &dir].concat());
            assert!(said.code == Some(0) && said.stdout.contains(expected), "{command}: {said:?}");
        }
        let logins = rds.attempts().len();
        let migration = folder.path().join("migrations/2026-01-01-000000_x");
        fs::create_dir_all(&migration).unwrap();
        let cases = [
            (
                "CREATE TABLE a (id INT);\nCREATE TABLE b (id INT);",
                true,
                ":1: ",
                "one DDL statement",
            ),
            ("CREATE TABLE a (id INT);", false, ":1: ", "run_in_transaction = false"),
            ("-- a\nCREATE TABLE a (id SERIAL);", true, ":2: ", "BIGINT GENERATED BY DEFAULT"),
            ("SELECT 1;\nSAVEPOINT a;", true, ":2: ", "separate transactions"),
            ("CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS '';", true, ":1: ", "SQL"),
            ("CREATE INDEX a ON b (c)", true, ":1: ", "CREATE INDEX ASYNC"),
        ];
        for (up, is_alone, line, expected) in cases {
            fs::write(migration.join("up.sql"), up).unwrap();
            let metadata = format!("run_in_transaction = {}\n", !is_alone);
            fs::write(migration.join("metadata.toml"), metadata).unwrap();
            let said = with_shim(&rds, &folder, &["migration", "run"]);
            let at = format!("migrations/2026-01-01-000000_x/up.sql{line}");
            assert_eq!(said.code, Some(125), "{up}: {said:?}");
            assert!(said.stderr.contains(&at) && said.stderr.contains(expected), "{up}: {said:?}");
        }
        let said = with_shim(&rds, &folder, &["setup"]);
        assert!(said.code == Some(125) && said.stderr.contains("by hand"), "{said:?}");
        fs::create_dir(folder.path().join("migrations/00000000000000_diesel_initial_setup"))
            .unwrap();
        let initial = folder.path().join("migrations/00000000000000_diesel_initial_setup/up.sql");
        fs::write(initial, "SELECT 1").unwrap();
        let said = with_shim(&rds, &folder, &["migration", "run"]);
        assert!(said.code == Some(125) && said.stderr.contains("delete this folder"), "{said:?}");
        assert_eq!(rds.attempts().len(), logins, "nothing was dialled");
        let arguments = ["exec", "--unchecked", "--"];
        let said =
            run(rds_iam(&rds, &folder, &arguments).arg(diesel()).args(["migration", "list"]));
        assert_eq!(said.code, Some(0), "{said:?}");
        let other = run(rds_iam(&start(LocalRds::builder()), &folder, &["exec", "--"])
            .arg(diesel())
            .args(["migration", "list"]));
        assert_eq!(other.code, Some(0), "{other:?}");
    }

    #[test]
    fn prints_no_token_if_it_cannot_connect() {
        let (rds, folder) = project();
        rds.refuse_next(usize::MAX);
        let said = with_shim(&rds, &folder, &["migration", "run"]);
        assert!(
            said.code != Some(0) && said.stderr.contains("authentication failed for user"),
            "{said:?}"
        );
        assert!(!said.stderr.contains("X-Amz-Signature"), "it holds the token");
    }
}

mod env_and_token {
    use super::*;

    /// A user name with everything that a shell or a reader of .env could interpret.
    const HOSTILE: &str = "a`touch hit`$(touch hit)${HOME}\"\\ ;&|<>*?!#%~{}'‘x’";

    /// As HOSTILE, without what `--format dotenv` refuses.
    const HOSTILE_IN_DOTENV: &str = "a`touch hit`$(touch hit)$HOME\" ;&|<>*?!#%~{}‘x’";

    /// Prints PGUSER after `script` has read what `env` prints.
    fn read_by(reader: &str, format: &str, user: &str, script: &str) {
        let folder = folder();
        let mut command = program(RDS_IAM, &folder);
        command.args([
            "env",
            "--format",
            format,
            "postgres://h.example.com/d?region_name=eu-west-1",
        ]);
        command.env("PGUSER", user);
        command.env("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE").env("AWS_SECRET_ACCESS_KEY", "none");
        let printed = run_unseen(&mut command);
        assert_eq!(printed.code, Some(0), "{format}: {}", printed.stderr);
        write_private(&folder.path().join("printed"), printed.stdout);
        let said = run(program(reader, &folder).args(["-c", script]));
        assert_eq!(said.stdout, format!("{user}\n"), "{reader} {format}: {said:?}");
        assert!(!folder.path().join("hit").exists(), "{reader} ran a part of the value");
    }

    #[test]
    fn hostile_values_arrive_in_each_shell() {
        for shell in ["sh", "dash", "bash", "zsh"] {
            let script = "eval \"$(cat printed)\"; printf '%s\\n' \"$PGUSER\"";
            read_by(shell, "sh", HOSTILE, script);
            let script = "set -a; . ./printed; printf '%s\\n' \"$PGUSER\"";
            read_by(shell, "dotenv", HOSTILE_IN_DOTENV, script);
        }
        read_by("fish", "fish", HOSTILE, "source printed; printf '%s\\n' \"$PGUSER\"");
    }

    #[test]
    fn hostile_values_arrive_in_python_dotenv_and_plain_readers() {
        let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/python/bin/python3");
        let python = python.to_str().unwrap();
        let dotenv = "import dotenv; print(dotenv.dotenv_values('printed')['PGUSER'])";
        read_by(python, "dotenv", HOSTILE_IN_DOTENV, dotenv);
        // As docker reads it.
        let plain = "print(dict(l.rstrip('\\n').split('=', 1) for l in open('printed'))['PGUSER'])";
        read_by(python, "plain", HOSTILE, plain);
    }

    #[test]
    fn dotenv_refuses_what_its_readers_disagree_about() {
        let (rds, folder) = (start(LocalRds::builder()), folder());
        let mut command = rds_iam(&rds, &folder, &["env", "--format", "dotenv"]);
        let said = run(command.env("PGAPPNAME", "it's"));
        assert_eq!((said.code, said.stdout.as_str()), (Some(1), ""), "{said:?}");
        assert!(said.stderr.contains("help: use --format json"), "{said:?}");
    }

    #[test]
    fn github_masks_the_token_before_it_is_set() {
        let (rds, folder) = (start(LocalRds::builder()), folder());
        let file = folder.path().join("github");
        let mut command = rds_iam(&rds, &folder, &["env", "--format", "github"]);
        let said = run_unseen(command.env("GITHUB_ENV", &file));
        // As the runner decodes it.
        let token = said.stdout.trim_end().strip_prefix("::add-mask::").unwrap();
        let token = token.replace("%25", "%");
        assert!(!token.contains("%25") && token.contains("%2F"), "the token is not decoded once");
        let set = fs::read_to_string(&file).unwrap();
        assert!(set.contains(&format!("\nPGPASSWORD={token}\n")), "PGPASSWORD is not the token");
    }

    #[test]
    fn a_shell_evaluates_the_variables() {
        let (rds, folder) = (start(LocalRds::builder()), folder());
        let script = format!(
            "eval \"$({RDS_IAM} env)\" && psql -Atc 'SELECT current_user' && echo \
             \"${{PGPASSFILE-unset}}\""
        );
        let mut command = program("sh", &folder);
        let said = run(command
            .args(["-c", &script])
            .envs(rds.environment())
            .env("PGPASSFILE", "/nonexistent"));
        assert_eq!(said.stdout, "app\nunset\n", "{said:?}");
    }

    #[test]
    fn json_and_dotenv_say_the_same() {
        let (rds, folder) = (start(LocalRds::builder()), folder());
        let printed = |format: &str| {
            run_unseen(&mut rds_iam(&rds, &folder, &["env", "--format", format])).stdout
        };
        let json: serde_json::Value = serde_json::from_str(&printed("json")).unwrap();
        assert!(json["PGPASSWORD"].as_str().unwrap().contains("X-Amz-Signature="));
        fs::write(folder.path().join(".env"), printed("dotenv")).unwrap();
        let read: Vec<(String, String)> = dotenvy::from_path_iter(folder.path().join(".env"))
            .unwrap()
            .map(Result::unwrap)
            .collect();
        assert_eq!(read.len(), json.as_object().unwrap().len());
        for (name, value) in read.iter().filter(|(name, _)| name != "PGPASSWORD") {
            assert_eq!(json[name].as_str(), Some(value.as_str()), "{name}");
        }
    }

    #[test]
    fn only_the_token_is_printed() {
        let (rds, folder) = (start(LocalRds::builder()), folder());
        let port = rds.port().to_string();
        let named = [
            "token",
            "--host",
            "localhost",
            "--port",
            &port,
            "--user",
            "app",
            "--region",
            "us-east-1",
        ];
        for arguments in [&["token"][..], &named] {
            let said = run_unseen(rds_iam(&rds, &folder, arguments).env("RUST_LOG", "error"));
            assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
            let token = said.stdout.strip_suffix('\n').unwrap();
            crate::support::log_in(&rds, LocalRds::USER, token).unwrap();
        }
        let said = run(rds_iam(&rds, &folder, &["token"]).env("DATABASE_URL", rds.password_url()));
        assert!(said.code == Some(1) && said.stderr.contains("rds_iam_auth=false"), "{said:?}");
    }
}

mod local {
    use super::*;

    #[test]
    fn a_command_that_dumps_core_does_not_make_rds_iam_dump_core() {
        let folder = folder();
        let script = format!(
            "ulimit -c unlimited; exec {RDS_IAM} local -- sh -c 'ulimit -c 0; kill -SEGV $$'"
        );
        let status = output(program("sh", &folder).args(["-c", &script])).status;
        assert_eq!((status.signal(), status.core_dumped()), (Some(11), false));
    }

    #[test]
    fn with_dsql_it_speaks_the_dialect_of_dsql() {
        let folder = folder();
        let local = |command: &[&str]| {
            run(program(RDS_IAM, &folder).args(["local", "--dsql", "--"]).args(command))
        };
        let said = local(&["sh", "-c", "echo $DATABASE_URL"]);
        assert!(said.stdout.contains("&iam_host=") && said.stdout.contains(".dsql."), "{said:?}");
        let said = local(&[RDS_IAM, "exec", "--", "psql", "-c", "LISTEN a"]);
        assert!(said.stderr.contains("unsupported statement: Listen"), "{said:?}");
    }

    #[test]
    fn pg_variables_and_a_session_token_have_no_effect() {
        let folder = folder();
        let mut command = program(RDS_IAM, &folder);
        command.args(["local", "--", RDS_IAM, "exec", "--", "psql", "-Atc", "SELECT current_user"]);
        command.envs([
            ("AWS_SESSION_TOKEN", "x"),
            ("PGSERVICE", "none"),
            ("PGHOSTADDR", "192.0.2.1"),
        ]);
        let said = run(command.env("PGOPTIONS", "-c nonsense=1"));
        assert_eq!((said.code, said.stdout.as_str()), (Some(0), "app\n"), "{said:?}");
    }

    #[test]
    fn the_server_does_not_inherit_credentials() {
        let folder = folder();
        let script =
            "cat /proc/$(head -n 1 \"$(dirname \"$PGSSLROOTCERT\")/data/postmaster.pid\")/environ";
        let mut command = program(RDS_IAM, &folder);
        command.args(["local", "--", "sh", "-c", script]).env("AWS_SECRET_ACCESS_KEY", "hunter2");
        let environment = run_unseen(&mut command);
        assert!(environment.stdout.contains("PATH="), "{environment:?}");
        assert!(!environment.stdout.contains("AWS_"), "the server inherits AWS variables");
    }

    #[test]
    fn a_command_uses_the_stand_in_and_its_end_stops_it() {
        let folder = folder();
        let script = format!(
            "dirname \"$PGSSLROOTCERT\"; {RDS_IAM} exec -- psql -Atc 'SELECT current_user'; exit 3"
        );
        let said = run(program(RDS_IAM, &folder).args(["local", "--", "sh", "-c", &script]));
        let lines: Vec<&str> = said.stdout.lines().collect();
        let [private, "app"] = lines.as_slice() else { panic!("{said:?}") };
        assert_eq!(said.code, Some(3));
        assert!(!Path::new(private).exists());
    }

    #[test]
    fn the_printed_variables_work_and_ctrl_c_removes_all_files() {
        let folder = folder();
        let mut child =
            program(RDS_IAM, &folder).arg("local").stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let exports: Vec<String> = lines.take_while(|line| !line.starts_with('#')).collect();
        let script =
            format!("{}\n{RDS_IAM} exec -- psql -Atc 'SELECT current_user'", exports.join("\n"));
        assert_eq!(run(program("sh", &folder).args(["-c", &script])).stdout, "app\n");
        let root =
            exports.iter().find_map(|line| line.strip_prefix("export PGSSLROOTCERT='")).unwrap();
        let private = Path::new(root.trim_end_matches('\'')).parent().unwrap().to_owned();
        assert!(private.exists());
        let signal = if ignores_sigint() { "TERM" } else { "INT" };
        send(signal, child.id());
        assert!(end_of(&mut child, "rds-iam local after a signal").success());
        assert!(!private.exists());
    }
}
