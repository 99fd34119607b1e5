//! The example web over HTTP.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Integer, Text};
use diesel_rds_iam::local::LocalRds;

use crate::support::web::{Ended, Web, number, web};
use crate::support::{end_sessions, eventually, send, start};

/// Longer than any response takes.
const LIMIT: Duration = Duration::from_secs(20);

struct Reply {
    status: u16,
    headers: ureq::http::HeaderMap,
    body: String,
}

impl Reply {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .timeout_global(Some(LIMIT));
    config.build().into()
}

fn reply(answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Reply {
    let (head, mut body) = answer.unwrap().into_parts();
    Reply {
        status: head.status.as_u16(),
        headers: head.headers,
        body: body.read_to_string().unwrap(),
    }
}

/// Prints the response, so that the test in secrets.rs can search it.
fn get(web: &Web, path: &str) -> Reply {
    let reply = reply(agent().get(format!("{}{path}", web.url)).call());
    // Without the style sheet.
    eprintln!("{} {}", reply.status, reply.body.rsplit("</style>").next().unwrap());
    reply
}

fn post(web: &Web, path: &str, body: &[u8]) -> Reply {
    post_as(web, path, "application/x-www-form-urlencoded", body)
}

fn post_as(web: &Web, path: &str, content_type: &str, body: &[u8]) -> Reply {
    reply(agent().post(format!("{}{path}", web.url)).content_type(content_type).send(body))
}

fn add(web: &Web, text: &str) -> Reply {
    post(web, "/entries", format!("text={text}").as_bytes())
}

fn texts(rds: &LocalRds) -> Vec<String> {
    #[derive(QueryableByName)]
    struct Entry {
        #[diesel(sql_type = Text)]
        text: String,
    }
    let query = diesel::sql_query("SELECT text FROM entries ORDER BY id");
    query
        .load::<Entry>(&mut rds.superuser().unwrap())
        .unwrap()
        .into_iter()
        .map(|entry| entry.text)
        .collect()
}

/// Returns the number of sessions of the app that meet a condition.
fn sessions(superuser: &mut PgConnection, condition: &str) -> i64 {
    let query =
        format!("(SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND {condition})");
    diesel::select(diesel::dsl::sql::<BigInt>(&query)).get_result(superuser).unwrap()
}

const WAITS_FOR_LOCK: &str = "wait_event_type = 'Lock'";

/// Locks the table until the connection is dropped.
fn lock_entries(rds: &LocalRds) -> PgConnection {
    let mut superuser = rds.superuser().unwrap();
    superuser.batch_execute("BEGIN; LOCK TABLE entries").unwrap();
    superuser
}

#[test]
fn entries_are_added_listed_and_finished() {
    let rds = start(LocalRds::builder());
    let web = Web::on(&rds);
    assert!(get(&web, "/").body.contains("No entries yet."));
    let added = add(&web, "buy+milk");
    assert_eq!((added.status, added.header("location")), (303, Some("/")));
    assert!(get(&web, "/").body.contains("<span>buy milk</span>"));
    assert_eq!(get(&web, "/entries.json").body, r#"[{"id":1,"text":"buy milk","finished":false}]"#);
    // A second click changes nothing.
    for _ in 0..2 {
        let finished = post(&web, "/entries/1/finish", b"");
        assert_eq!((finished.status, finished.header("location")), (303, Some("/")));
        assert_eq!(
            get(&web, "/entries.json").body,
            r#"[{"id":1,"text":"buy milk","finished":true}]"#
        );
    }
    assert!(get(&web, "/").body.contains("<s>buy milk</s>"));
}

#[test]
fn the_newest_100_are_listed() {
    let rds = start(LocalRds::builder());
    let web = Web::on(&rds);
    let fill = |count: u8| {
        let query =
            format!("INSERT INTO entries (text) SELECT 'entry' FROM generate_series(1, {count})");
        rds.superuser().unwrap().batch_execute(&query).unwrap();
    };
    fill(99);
    assert!(!get(&web, "/").body.contains("The newest 100 entries are shown."));
    fill(2);
    let page = get(&web, "/").body;
    assert!(page.contains("The newest 100 entries are shown."));
    assert!(page.contains("/entries/101/finish") && page.contains("/entries/2/finish"));
    assert!(!page.contains("/entries/1/finish"));
}

#[test]
fn a_refused_text_stays_in_the_form_with_the_reason() {
    let rds = start(LocalRds::builder());
    let web = Web::on(&rds);
    let too_long = "ä".repeat(201);
    let cases = [
        ("".to_owned(), "", "Enter a text."),
        ("other=1".to_owned(), "", "Enter a text."),
        ("text=".to_owned(), "", "Enter a text."),
        ("text=+%20%09".to_owned(), "  \t", "Enter a text."),
        (format!("text={too_long}"), &too_long, "more than 200 characters"),
        ("text=a%00b".to_owned(), "a\0b", "control characters"),
        ("text=a%1b[2Jb".to_owned(), "a\x1b[2Jb", "control characters"),
        ("text=a%0ab".to_owned(), "a\nb", "control characters"),
        ("text=a%ff%feb".to_owned(), "a\u{fffd}\u{fffd}b", "not valid UTF-8"),
    ];
    for (body, kept, reason) in cases {
        let refused = post(&web, "/entries", body.as_bytes());
        assert_eq!(refused.status, 422, "{body}");
        assert!(refused.body.contains(reason), "{body}: {}", refused.body);
        assert!(refused.body.contains(&format!("value=\"{kept}\"")), "{body}: {}", refused.body);
    }
    assert_eq!(texts(&rds), [""; 0]);
    let long = "ä".repeat(200);
    assert_eq!(add(&web, &long).status, 303);
    assert_eq!(add(&web, "%20a%20").status, 303);
    assert_eq!(texts(&rds), [&long, "a"]);
}

#[test]
fn html_in_a_text_is_text() {
    let rds = start(LocalRds::builder());
    let web = Web::on(&rds);
    assert_eq!(add(&web, "<script>alert('%26')</script>\"").status, 303);
    let page = get(&web, "/").body;
    assert!(page.contains("&lt;script&gt;alert('&amp;')&lt;/script&gt;&quot;"), "{page}");
    let refused = add(&web, "%22><script>\x01");
    assert!(refused.body.contains("value=\"&quot;&gt;&lt;script&gt;\x01\""), "{}", refused.body);
    assert!(!page.contains("<script") && !refused.body.contains("<script"));
}

#[test]
fn invalid_bodies_are_refused() {
    let rds = start(LocalRds::builder());
    let web = Web::on(&rds);
    let body_of = |length: usize| format!("text={}", "a".repeat(length - 5));
    assert_eq!(post(&web, "/entries", body_of(16 * 1024).as_bytes()).status, 422);
    assert_eq!(post(&web, "/entries", body_of(16 * 1024 + 1).as_bytes()).status, 413);
    for content_type in ["application/json", "multipart/form-data; boundary=x", "text/plain", ""] {
        assert_eq!(
            post_as(&web, "/entries", content_type, b"text=a").status,
            415,
            "{content_type}"
        );
    }
    assert_eq!(post(&web, "/entries", b"text=a&text=b").status, 422);
    assert_eq!(texts(&rds), [""; 0]);
}

#[test]
fn a_body_that_is_cut_off_stores_nothing() {
    let rds = start(LocalRds::builder());
    let web = Web::on(&rds);
    let mut client = connect(&web).unwrap();
    client
        .write_all(
            b"POST /entries HTTP/1.1\r\nhost: a\r\ncontent-type: \
              application/x-www-form-urlencoded\r\ncontent-length: 20\r\n\r\ntext=half",
        )
        .unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(!answer.contains("303"), "{answer}");
    assert_eq!(add(&web, "whole").status, 303);
    assert_eq!(texts(&rds), ["whole"]);
}

#[test]
fn unknown_paths_and_ids_are_not_found() {
    let rds = start(LocalRds::builder());
    let web = Web::on(&rds);
    for id in [
        "1",
        "0",
        "-1",
        "one",
        "2147483647",
        "2147483648",
        "99999999999999999999",
        "%ff",
        "%00",
        "1;DROP",
    ] {
        assert_eq!(post(&web, &format!("/entries/{id}/finish"), b"").status, 404, "{id}");
    }
    for path in ["/nothing", "/entries/1", "/entries.json/", "//", "/..%2fCargo.toml"] {
        assert_eq!(get(&web, path).status, 404, "{path}");
    }
    assert_eq!(get(&web, "/entries").header("location"), Some("/"));
    assert_eq!(get(&web, "/entries/1/finish").status, 405);
    assert_eq!(post(&web, "/health", b"").status, 405);
}

#[test]
fn no_response_allows_scripts() {
    let rds = start(LocalRds::builder());
    let web = Web::on(&rds);
    for path in ["/", "/entries.json", "/status", "/health", "/metrics", "/nothing"] {
        let reply = get(&web, path);
        assert!(
            reply.header("content-security-policy").unwrap().starts_with("default-src 'none'; "),
            "{path}"
        );
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"), "{path}");
        assert!(!reply.body.contains("<script"), "{path}");
    }
}

/// Posts an entry from each of `clients` at the same time, and counts the responses. Returns the
/// texts that were acknowledged, and the responses of the others.
fn crowd(web: &Web, clients: usize, answered: &AtomicUsize) -> (BTreeSet<String>, Vec<Reply>) {
    thread::scope(|scope| {
        let client = |i| {
            let reply = add(web, &format!("entry-{i}"));
            answered.fetch_add(1, Ordering::SeqCst);
            (format!("entry-{i}"), reply)
        };
        let clients: Vec<_> = (0..clients).map(|i| scope.spawn(move || client(i))).collect();
        let answers = clients.into_iter().map(|client| client.join().unwrap());
        let (acknowledged, others): (Vec<_>, Vec<_>) =
            answers.partition(|(_, reply)| reply.status == 303);
        let texts = acknowledged.into_iter().map(|(text, _)| text);
        (texts.collect(), others.into_iter().map(|(_, reply)| reply).collect())
    })
}

fn assert_all_may_retry(others: &[Reply]) {
    for reply in others {
        assert_eq!((reply.status, reply.header("retry-after")), (503, Some("3")), "{}", reply.body);
    }
}

#[test]
fn each_of_500_parallel_clients_gets_a_response_and_no_entry_is_lost() {
    let rds = start(LocalRds::builder());
    let web = Web::on(&rds);
    let (acknowledged, others) = crowd(&web, 500, &AtomicUsize::new(0));
    eprintln!("{} entries, {} to be retried", acknowledged.len(), others.len());
    assert_all_may_retry(&others);
    assert!(acknowledged.len() >= 8, "{}", acknowledged.len());
    let stored = texts(&rds);
    assert_eq!(stored.len(), acknowledged.len());
    assert_eq!(stored.into_iter().collect::<BTreeSet<_>>(), acknowledged);
    assert_eq!(sessions(&mut rds.superuser().unwrap(), "true"), 8);
}

#[test]
fn while_the_database_is_blocked_clients_get_503_and_hold_no_thread() {
    let rds = start(LocalRds::builder());
    let web = Web::on(&rds);
    let (lock, answered) = (lock_entries(&rds), AtomicUsize::new(0));
    let (acknowledged, others) = thread::scope(|scope| {
        let clients = scope.spawn(|| crowd(&web, 500, &answered));
        let mut superuser = rds.superuser().unwrap();
        eventually("7 sessions wait for the lock", || {
            sessions(&mut superuser, WAITS_FOR_LOCK) == 7
        });
        assert_eq!(get(&web, "/health").body, "ok\n");
        let status = get(&web, "/status").body;
        assert_eq!((number(&status, "in use"), number(&status, "idle")), (Some(7), Some(1)));
        assert!(status.contains("longest in progress") && status.contains("average wait"));
        assert!(get(&web, "/metrics").body.contains("rds_iam_connections{state=\"in_use\"} 7\n"));
        assert_threads(&web);
        eventually("493 requests are answered", || answered.load(Ordering::SeqCst) == 493);
        drop(lock);
        clients.join().unwrap()
    });
    assert_eq!((acknowledged.len(), others.len()), (7, 493));
    assert_all_may_retry(&others);
    assert_eq!(texts(&rds).into_iter().collect::<BTreeSet<_>>(), acknowledged);
}

/// Asserts that there is not one thread per client. Expected are tokio's workers, r2d2's three,
/// those that hold a connection, and a few more.
fn assert_threads(web: &Web) {
    #[cfg(target_os = "linux")]
    {
        let threads = std::fs::read_dir(format!("/proc/{}/task", web.id())).unwrap().count();
        let most = thread::available_parallelism().unwrap().get() + 24;
        assert!(threads <= most, "{threads} threads");
    }
}

#[test]
fn an_outage_is_shown_by_health_status_and_json() {
    let rds = start(LocalRds::builder());
    let web = Web::on(&rds);
    let healthy = get(&web, "/health");
    assert_eq!((healthy.status, healthy.body.as_str()), (200, "ok\n"));

    rds.stop();
    let asked = Instant::now();
    let health = get(&web, "/health");
    assert!(asked.elapsed() < Duration::from_secs(6), "{:?}", asked.elapsed());
    assert_eq!(health.status, 503);
    assert!(health.body.contains("Connection refused"), "{}", health.body);
    assert!(
        health.body.contains("check host and port, and that the server is running"),
        "{}",
        health.body
    );
    assert_all_may_retry(&[get(&web, "/"), add(&web, "lost"), get(&web, "/entries.json")]);
    let json = get(&web, "/entries.json");
    assert_eq!(json.header("content-type"), Some("application/json"));
    let json: serde_json::Value = serde_json::from_str(&json.body).unwrap();
    assert!(json["error"].as_str().unwrap().contains("cannot be reached"), "{json}");
    let status = get(&web, "/status");
    assert_eq!(status.status, 200);
    assert_eq!(number(&status.body, "in use"), Some(0));
    assert!(status.body.contains("Connection refused"), "{}", status.body);
    // The outage comes before everything else, and each connection is shown once.
    let login = format!("Logins as user app at {} fail.", rds.endpoint());
    let place = |text: &str| status.body.find(text).unwrap_or_else(|| panic!("no {text}"));
    assert!(place("<h1>Status</h1>") < place("<h2>Outage: no connection</h2>"));
    assert!(place(&login) < place("<dt>in use</dt>"));
    for reply in [health, status] {
        assert!(
            !reply.body.contains(rds.credentials().secret_access_key())
                && !reply.body.contains("X-Amz-")
        );
    }

    rds.restart().unwrap();
    eventually("/health answers 200", || get(&web, "/health").status == 200);
    assert_eq!(add(&web, "back").status, 303);
    assert_eq!(texts(&rds), ["back"]);
    assert!(get(&web, "/status").body.contains("<h2>Connected</h2>"));
}

#[test]
fn an_outage_is_one_log_line_per_cause() {
    let rds = start(LocalRds::builder());
    let web = Web::on(&rds);
    rds.stop();
    for _ in 0..5 {
        assert_eq!(get(&web, "/").status, 503);
    }
    rds.restart().unwrap();
    eventually("the health check succeeds", || get(&web, "/health").status == 200);
    web.signal("TERM");
    let output = web.wait().output;
    let lines = output.lines().filter(|line| line.contains(" web::") && line.contains("WARN"));
    let lines: Vec<_> = lines.collect();
    assert!((1..=3).contains(&lines.len()), "{lines:#?}");
    assert!(lines[0].contains("Connection refused"), "{lines:#?}");
}

#[test]
fn a_login_that_fails_permanently_is_not_to_be_retried() {
    let rds = start(LocalRds::builder());
    let web = Web::on(&rds);
    rds.superuser().unwrap().batch_execute("ALTER ROLE app NOLOGIN").unwrap();
    end_sessions(&rds);
    let mut last = get(&web, "/");
    eventually("the page says that waiting does not help", || {
        last = get(&web, "/");
        last.status == 503 && last.header("retry-after").is_none()
    });
    assert!(last.body.contains("The login to the database fails."), "{}", last.body);
}

#[test]
fn a_restart_loses_no_acknowledged_entry() {
    let rds = start(LocalRds::builder());
    let web = Web::on(&rds);
    let restarted = AtomicBool::new(false);
    // Continues until an entry is acknowledged after the restart.
    let client = |name: usize| {
        let mut acknowledged = Vec::new();
        for i in 0.. {
            let (was_restarted, text) = (restarted.load(Ordering::SeqCst), format!("{name}-{i}"));
            let reply = add(&web, &text);
            if reply.status != 303 {
                assert_all_may_retry(&[reply]);
                continue;
            }
            acknowledged.push(text);
            if was_restarted {
                break;
            }
        }
        acknowledged
    };
    let acknowledged: Vec<String> = thread::scope(|scope| {
        let clients: Vec<_> = (0..16).map(|name| scope.spawn(move || client(name))).collect();
        eventually("more than 100 entries are stored", || texts(&rds).len() > 100);
        rds.restart().unwrap();
        restarted.store(true, Ordering::SeqCst);
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    let stored: BTreeSet<_> = texts(&rds).into_iter().collect();
    assert!(acknowledged.iter().all(|text| stored.contains(text)));
}

/// The backends of the app, stopped by a signal: each connection is open and silent.
struct Silent(Vec<i32>);

impl Silent {
    fn of(rds: &LocalRds) -> Silent {
        #[derive(QueryableByName)]
        struct Backend {
            #[diesel(sql_type = Integer)]
            pid: i32,
        }
        let query = diesel::sql_query("SELECT pid FROM pg_stat_activity WHERE usename = 'app'");
        let backends = query.load::<Backend>(&mut rds.superuser().unwrap()).unwrap();
        let silent = Silent(backends.into_iter().map(|backend| backend.pid).collect());
        silent.signal("STOP");
        silent
    }

    fn signal(&self, signal: &str) {
        self.0.iter().for_each(|pid| send(signal, pid.unsigned_abs()));
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        self.signal("CONT");
    }
}

#[test]
fn health_responds_in_time_while_the_database_is_silent() {
    let rds = start(LocalRds::builder());
    let web = Web::on(&rds);
    let silent = Silent::of(&rds);
    assert_eq!(silent.0.len(), 8);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let asked = Instant::now();
                let health = get(&web, "/health");
                assert_eq!(health.status, 503);
                assert!(
                    health.body.starts_with("the database did not answer within 3 s; "),
                    "{}",
                    health.body
                );
                assert!(asked.elapsed() < Duration::from_secs(6), "{:?}", asked.elapsed());
            });
        }
    });
    // The checks do not use up the pool.
    assert_eq!(number(&get(&web, "/status").body, "in use"), Some(1));
    drop(silent);
    eventually("/health answers 200", || get(&web, "/health").status == 200);
}

#[test]
fn status_counts_closed_connections_by_reason() {
    let rds = start(LocalRds::builder());
    let web = Web::start(web().envs(rds.environment()).env("MAX_LIFETIME", "3"));
    let status = get(&web, "/status").body;
    let numbers = ["in use", "idle", "maximum"].map(|name| number(&status, name));
    assert_eq!(numbers, [Some(0), Some(8), Some(8)]);
    assert_eq!(number(&status, "logins"), Some(rds.attempts().len() as u64));
    assert_eq!(status.matches("class=\"idle\"").count(), 8);
    assert!(
        status.contains(
            "<desc id=\"picture-desc\">0 in use, 8 idle. Each is closed in the last tenth of \
             0:03 min."
        ),
        "{status}"
    );
    assert!(
        status.contains("closed by 0:03 min") && status.contains("<h2>Connected</h2>"),
        "{status}"
    );
    assert!(status.contains("<meta http-equiv=\"refresh\" content=\"2\">"));

    // A checkout tests the connections in turn, and retires those that are too old.
    eventually("a connection reaches its max_lifetime", || {
        assert_eq!(get(&web, "/").status, 200);
        number(&get(&web, "/status").body, "it is older than max_lifetime") > Some(0)
    });

    // A new app, because all connections of the first one may be too old by now.
    let web = Web::on(&rds);
    rds.restart().unwrap();
    eventually("/health answers 200", || get(&web, "/health").status == 200);
    let status = get(&web, "/status").body;
    assert!(number(&status, "the server closed it") > Some(0));
    assert_eq!(number(&status, "refreshes"), Some(1));
    assert!(number(&status, "logins") > Some(9));
}

#[test]
fn metrics_are_in_the_format_of_prometheus() {
    let rds = start(LocalRds::builder());
    let web = Web::on(&rds);
    let metrics = get(&web, "/metrics");
    assert_eq!(metrics.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let samples = samples(&metrics.body);
    let value = |name: &str| samples.iter().find(|(sample, _)| sample == name).unwrap().1;
    let logins = rds.attempts().len() as f64;
    assert_eq!(value("rds_iam_logins_total"), logins);
    assert_eq!(value("rds_iam_failed_logins_total{cause=\"refused_token\"}"), 0.0);
    // The connection that ran the migrations.
    assert_eq!(value("rds_iam_retirements_total{reason=\"released\"}"), 1.0);
    assert_eq!(value("rds_iam_connections{state=\"idle\"}"), 8.0);
    assert_eq!(value("rds_iam_connections{state=\"in_use\"}"), 0.0);
    assert_eq!(value("rds_iam_max_connections"), 8.0);
    assert_eq!(value("rds_iam_login_duration_seconds_count"), logins);
    assert_eq!(value("rds_iam_login_duration_seconds_bucket{le=\"+Inf\"}"), logins);
    assert!(value("rds_iam_login_duration_seconds_sum") > 0.001);
    let waits = ["_bucket{le=\"0.001\"}", "_count"]
        .map(|it| value(&format!("rds_iam_checkout_wait_seconds{it}")));
    assert!(waits[0] <= waits[1], "{waits:?}");
    let now = ["waiting_threads", "longest_checkout_seconds", "last_outage_seconds"];
    assert_eq!(now.map(|name| value(&format!("rds_iam_{name}"))), [0.0; 3]);
}

/// Parses the text format 0.0.4 strictly: HELP, TYPE and samples, family by family.
fn samples(text: &str) -> Vec<(String, f64)> {
    let is_name =
        |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    let (mut samples, mut families) = (Vec::new(), BTreeSet::new());
    assert!(text.ends_with('\n'));
    for family in text.split("# HELP ").skip(1) {
        let mut lines = family.lines();
        let (name, help) = lines.next().unwrap().split_once(' ').unwrap();
        assert!(is_name(name) && !help.is_empty() && families.insert(name), "{family}");
        let kind = match name {
            _ if name.ends_with("_total") => "counter",
            _ if family.contains("_bucket") => "histogram",
            _ => "gauge",
        };
        assert_eq!(lines.next().unwrap(), format!("# TYPE {name} {kind}"));
        let before = samples.len();
        for line in lines {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            let rest = sample.strip_prefix(name).unwrap();
            let labels = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| rest.strip_prefix(suffix).filter(|_| kind == "histogram"))
                .unwrap_or(rest);
            let label = labels.strip_prefix('{').and_then(|labels| labels.strip_suffix("\"}"));
            let label = label.and_then(|label| label.split_once("=\""));
            let is_value =
                |name, value| is_name(value) || name == "le" && value.parse::<f64>().is_ok();
            assert!(
                labels.is_empty()
                    || label.is_some_and(|(name, value)| is_name(name) && is_value(name, value)),
                "{line}"
            );
            samples.push((sample.to_owned(), value.parse().unwrap()));
        }
        assert!(samples.len() > before, "{family}");
        if kind == "histogram" {
            let (counts, [_, count]) = samples[before..].split_last_chunk::<2>().unwrap();
            assert!(counts.is_sorted_by(|(_, a), (_, b)| a <= b), "{family}");
            assert_eq!(counts.last().unwrap().1, count.1, "{family}");
        }
    }
    let distinct: BTreeSet<_> = samples.iter().map(|(sample, _)| sample).collect();
    assert_eq!(distinct.len(), samples.len());
    samples
}

#[test]
fn of_2_replicas_that_start_together_one_migrates() {
    let rds = start(LocalRds::builder());
    let replica = || Web::start(web().envs(rds.environment()).env("RUST_LOG", "info"));
    let outputs = thread::scope(|scope| {
        let replicas =
            [scope.spawn(replica), scope.spawn(replica)].map(|replica| replica.join().unwrap());
        replicas.map(|web| {
            assert_eq!(add(&web, "hello").status, 303);
            web.signal("TERM");
            web.wait().output
        })
    });
    let outputs_with = |text| outputs.iter().filter(|output| output.contains(text)).count();
    assert_eq!((outputs_with("migrations run: 0"), outputs_with("migrations run: ")), (1, 2));
    assert_eq!(texts(&rds), ["hello", "hello"]);
}

#[test]
fn after_a_signal_open_requests_finish_and_new_ones_are_refused() {
    for signal in ["TERM", "INT"] {
        let rds = start(LocalRds::builder());
        let web = Web::on(&rds);
        let (lock, mut superuser) = (lock_entries(&rds), rds.superuser().unwrap());
        thread::scope(|scope| {
            let request = scope.spawn(|| add(&web, "in hand"));
            eventually("1 session waits for the lock", || {
                sessions(&mut superuser, WAITS_FOR_LOCK) == 1
            });
            web.signal(signal);
            eventually("the program stops listening", || connect(&web).is_err());
            drop(lock);
            assert_eq!(request.join().unwrap().status, 303);
        });
        assert_eq!(web.wait().status.code(), Some(0));
        assert_eq!(texts(&rds), ["in hand"]);
    }
}

/// Opens a TCP connection for a raw request, with a limit on reads.
fn connect(web: &Web) -> std::io::Result<TcpStream> {
    let client = TcpStream::connect(web.url.strip_prefix("http://").unwrap())?;
    client.set_read_timeout(Some(LIMIT))?;
    Ok(client)
}

/// Sends these bytes. Returns the response until the server closes the connection, and the time in
/// seconds.
fn say(web: &Web, bytes: &[u8]) -> (String, f64) {
    let mut client = connect(web).unwrap();
    let begun = Instant::now();
    client.write_all(bytes).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    (answer, begun.elapsed().as_secs_f64())
}

#[test]
fn a_request_ends_after_10_seconds_if_database_or_client_is_silent() {
    let rds = start(LocalRds::builder());
    let web = Web::on(&rds);
    let _lock = lock_entries(&rds);
    let stuck_query = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let half_a_body =
        b"POST /entries HTTP/1.1\r\nhost: a\r\ncontent-type: application/x-www-form-urlencoded\r\n\
        connection: close\r\ncontent-length: 20\r\n\r\ntext=half";
    thread::scope(|scope| {
        let clients =
            [stuck_query.as_slice(), half_a_body].map(|bytes| scope.spawn(|| say(&web, bytes)));
        for client in clients {
            let (answer, took) = client.join().unwrap();
            assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
            assert!((10.0..15.0).contains(&took), "{took} s");
        }
    });
    web.signal("TERM");
    let output = web.wait().output;
    let left = "pool closed before all connections were checked in (1 still in use)";
    assert!(output.contains(left), "{output}");
}

#[test]
fn after_a_signal_an_incomplete_request_is_aborted_after_12_seconds() {
    let rds = start(LocalRds::builder());
    let web = Web::on(&rds);
    let mut client = connect(&web).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nhost: ").unwrap();
    // Now the server has read the incomplete request.
    (0..3).for_each(|_| assert_eq!(get(&web, "/health").status, 200));
    let signalled = Instant::now();
    web.signal("TERM");
    assert_eq!(web.wait().status.code(), Some(0));
    let took = signalled.elapsed().as_secs_f64();
    assert!((12.0..18.0).contains(&took), "{took} s");
}

#[test]
fn after_a_signal_idle_connections_do_not_delay_the_end() {
    let rds = start(LocalRds::builder());
    let web = Web::on(&rds);
    let agent = agent();
    assert_eq!(reply(agent.get(format!("{}/health", web.url)).call()).status, 200);
    let _unused = connect(&web).unwrap();
    let signalled = Instant::now();
    web.signal("TERM");
    assert_eq!(web.wait().status.code(), Some(0));
    assert!(signalled.elapsed() < Duration::from_secs(5), "{:?}", signalled.elapsed());
}

#[test]
fn without_settings_it_runs_on_a_local_rds_that_stops_with_it() {
    let web = Web::start(&mut web());
    assert_eq!(add(&web, "hello").status, 303);
    assert_eq!(get(&web, "/entries.json").body, r#"[{"id":1,"text":"hello","finished":false}]"#);
    web.signal("TERM");
    let Ended { status, output } = web.wait();
    assert_eq!(status.code(), Some(0));
    let port = output.split_once("a local RDS on port ").unwrap().1.split_once(',').unwrap().0;
    TcpStream::connect(format!("127.0.0.1:{port}")).unwrap_err();
}

#[test]
fn invalid_settings_are_reported() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let cases = [
        ("LISTEN", taken.as_str(), "Address already in use"),
        ("LISTEN", "here", "invalid socket address"),
        ("LISTEN", "127.0.0.1:65536", "invalid port value"),
        ("LISTEN", "", "cannot listen on LISTEN="),
        ("MAX_LIFETIME", "0", "MAX_LIFETIME=0: expected a number of seconds"),
        ("MAX_LIFETIME", "-1", "MAX_LIFETIME=-1: expected a number of seconds"),
        ("MAX_LIFETIME", "14 min", "MAX_LIFETIME=14 min: expected a number of seconds"),
        ("MAX_LIFETIME", "4294967296", "MAX_LIFETIME=4294967296: expected a number of seconds"),
        ("DATABASE_URL", "postgres://app:hunter2@localhost/app", "a password"),
    ];
    for (name, value, expected) in cases {
        let Ended { status, output } = Web::run(web().env(name, value));
        assert_eq!(status.code(), Some(1), "{name}={value}");
        assert!(output.contains("web: ") && output.contains(expected), "{output}");
    }
}

#[test]
fn the_shortest_and_the_longest_max_lifetime_work() {
    let rds = start(LocalRds::builder());
    for seconds in ["1", "4294967295"] {
        let web = Web::start(web().envs(rds.environment()).env("MAX_LIFETIME", seconds));
        assert_eq!(get(&web, "/status").status, 200);
        assert_eq!(get(&web, "/health").body, "ok\n");
    }
}
