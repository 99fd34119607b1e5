//! Why a login fails, and what to do (feature `doctor`).
//!
//! [`examine`] walks the way of a login step by step, each with a limit of ten seconds, and stops
//! at what is wrong:
//!
//! ```no_run
//! use diesel_rds_iam::{RdsConnectionManager, doctor};
//!
//! let manager = RdsConnectionManager::new("postgres://app@db.abc123.eu-west-1.rds.amazonaws.com/app")?;
//! let report = doctor::examine(&manager);
//! if let Some((step, diagnosis)) = report.first_failure() {
//!     eprintln!("{}: {diagnosis}", step.name);
//! }
//! # Ok::<(), diesel_rds_iam::Error>(())
//! ```
//!
//! # The steps
//!
//! | step | what it finds out |
//! |---|---|
//! | `connection string` | that it can be used, and what it says with all defaults |
//! | `region` | the region, and what told it |
//! | `credentials` | their source, masked key id, end, and account where it is known |
//! | `DNS` | the addresses; for a name that is not RDS' own, the CNAMEs behind it |
//! | `TCP` | which address answers |
//! | `TLS` | the server's certificates (on Linux), and whether native-tls trusts them by `sslrootcert` |
//! | `token` | its length, its end, what it is signed for |
//! | `login` | whether tokio-postgres gets in, else the server's text and SQLSTATE |
//! | `libpq` | whether libpq gets in, as diesel uses it, with all hosts and `target_session_attrs` |
//! | `session` | the server's version and clock, TLS, the role rds_iam, latency, whether it takes writes |
//!
//! `DNS` to `login` are taken for each host, up to the first of them that fails there. A token is
//! sent to a server whose certificate has passed only, as far as `sslmode` asks for that. With
//! `rds_iam_auth=false` there are `connection string`, `libpq` and `session`.
//!
//! # What is told apart
//!
//! RDS refuses each token with the same words, "PAM authentication failed for user". What was
//! signed and dialled tells some of the causes apart; the others come as candidates, the likeliest
//! first, each with the fact that decides. The tests are those of `tests/it/doctor.rs`, and of
//! `diagnose` what cannot be staged.
//!
//! | what is wrong | told apart | test |
//! |---|---|---|
//! | token cut or wrongly encoded on its way | cannot be: the token is made here and handed to libpq whole | `a_string_without_a_manager_has_a_report_too` (a token in a URL) |
//! | token older than 15 minutes | cannot be: each login signs anew | |
//! | identity lacks rds-db:connect | candidate, the first where nothing else shows | `a_key_pair_that_is_not_trusted_gets_the_statement_to_paste` |
//! | more than 200 new logins a second; instance short of memory; a reboot | candidate | `a_refusal_now_and_then_is_a_candidate` |
//! | credentials ended, by their own word | yes | `credentials_that_have_ended_are_told_before_anything_is_dialled` |
//! | credentials revoked, or ended before that | candidate | `credentials_that_end_earlier_than_they_say_are_a_candidate` |
//! | wrong region | yes, where the host name tells it; else candidate | `a_wrong_region_is_named_first`, `diagnose` |
//! | signed for a CNAME | yes, where the DNS or the certificate holds the RDS name; else candidate | `a_cname_is_cured_by_the_name_in_the_certificate`, `names` |
//! | CNAME resolved too far (`ec2-...`) | candidate, the first | `diagnose` |
//! | signed for the near end of a tunnel | yes, where the certificate holds the RDS name; else candidate, the first | `a_tunnel_needs_the_endpoints_own_name_and_port` |
//! | `sslmode=prefer` and its like | yes, nothing is dialled | `a_string_without_a_manager_has_a_report_too` |
//! | server without TLS; "no pg_hba.conf entry" | yes | `a_server_without_tls_is_told`, `diagnose` |
//! | root certificates missing | yes | `a_missing_or_empty_root_file_says_where_to_get_one` |
//! | another authority | yes, where Amazon issued the certificate (Linux); else candidate beside a TLS proxy | `another_authority_is_named`, `diagnose` |
//! | certificate has ended, or begins later | yes (Linux); whether it is the clock is a candidate | `a_certificate_of_another_time_is_told` |
//! | certificate of another name | yes, where it holds an RDS name | `a_wrong_name_is_cured_by_the_name_in_the_certificate` |
//! | another password (`rds_iam_auth=false`), or no such user | candidates: the server says the same | `a_login_by_password_is_told_too` |
//! | password login gone, by rds_iam or a role that has it | yes; which of the two: candidates in one cure | `a_password_that_rds_iam_took_away_is_told` |
//! | user lacks rds_iam, or does not exist, or IAM is off | candidates: the server says the same | `a_missing_grant_is_to_be_run` |
//! | a pooler cuts the token | yes, where it says so; else candidate | `what_rds_proxy_and_poolers_say_has_its_cure` |
//! | RDS Proxy's refusals | by their words | `what_rds_proxy_and_poolers_say_has_its_cure` |
//! | policy on an ECS execution role | yes | `no_credentials_in_an_ecs_task_are_the_task_roles_matter` |
//! | identity of another account | candidate | `a_key_pair_that_is_not_trusted_gets_the_statement_to_paste` |
//! | clock off | candidate: no AWS service is asked | `a_clock_that_is_off_is_a_candidate_with_the_fact_that_decides` |
//! | no DNS entry | yes; whether misspelt or private: candidates | `a_name_without_an_address_is_told` |
//! | no way there (security group, VPC, firewall) | candidates, by whether the addresses are private | `a_network_without_a_way_there_is_told`, `diagnose` |
//! | nobody listens | yes | `a_closed_port_is_told` |
//! | TCP, and then silence or a hang-up | candidates | `a_server_that_never_answers_is_left`, `a_server_that_hangs_up_is_told` |
//! | not PostgreSQL | yes | `a_server_that_is_not_postgresql_is_told` |
//! | no such database; too many connections | yes | `an_unknown_database_is_told`, `too_many_connections_are_told` |

#[cfg_attr(not(target_os = "linux"), path = "certificates_elsewhere.rs")]
mod certificates;
mod checks;
mod diagnose;
mod diagnosis;
mod dns;
mod evidence;
mod examination;
mod login;
mod policy;
mod report;
mod session;
mod step;
mod symptom;
mod timeout;
mod tls;

pub use diagnosis::{Cause, Diagnosis};
pub use report::Report;
pub use step::{Fact, Step};

use crate::manager::RdsConnectionManager;
use examination::Examination;

/// The step that decides.
const LIBPQ: &str = "libpq";

/// Walks the way of a login, and stops at what is wrong.
///
/// It logs in twice for each host that works, and does not wait for a [pause](crate::Error::Paused)
/// of the manager's. It blocks, for ten seconds a step at most, and can be called inside of async
/// code as outside.
pub fn examine(manager: &RdsConnectionManager) -> Report {
    examine_with(manager, |_| {})
}

/// As [`examine`], and hands each step over as soon as it is done: for people who wait.
pub fn examine_with(manager: &RdsConnectionManager, mut tell: impl FnMut(&Step)) -> Report {
    let mut walk = Examination { report: Report { steps: Vec::new() }, tell: &mut tell };
    walk.through(&manager.login);
    walk.report
}
