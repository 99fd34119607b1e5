//! The example web, over HTTP.

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
use crate::support::{eventually, send, start};

/// Longer than any answer takes.
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

/// Shows the answer, for the search for secrets.
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

/// How many sessions of the app there are of which this holds.
fn sessions(superuser: &mut PgConnection, condition: &str) -> i64 {
    let query =
        format!("(SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND {condition})");
    diesel::select(diesel::dsl::sql::<BigInt>(&query)).get_result(superuser).unwrap()
}

const WAITS_FOR_LOCK: &str = "wait_event_type = 'Lock'";

/// Nobody gets at the entries until the connection is dropped.
fn lock_entries(rds: &LocalRds) -> PgConnection {
    let mut superuser = rds.superuser().unwrap();
    superuser.batch_execute("BEGIN; LOCK TABLE entries").unwrap();
    superuser
}

#[test]
fn entries_are_added_listed_and_finished() {
    let rds = start(LocalRds::builder());
    let web = Web::on(&rds);
    assert!(get(&web, "/").body.contains("Nothing to do."));
    let added = add(&web, "buy+milk");
    assert_eq!((added.status, added.header("location")), (303, Some("/")));
    assert!(get(&web, "/").body.contains("<span>buy milk</span>"));
    assert_eq!(get(&web, "/entries.json").body, r#"[{"id":1,"text":"buy milk","finished":false}]"#);
    // Who clicks twice changes nothing.
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
fn the_newest_hundred_are_listed() {
    let rds = start(LocalRds::builder());
    let web = Web::on(&rds);
    let fill = |count: u8| {
        let query =
            format!("INSERT INTO entries (text) SELECT 'entry' FROM generate_series(1, {count})");
        rds.superuser().unwrap().batch_execute(&query).unwrap();
    };
    fill(99);
    assert!(!get(&web, "/").body.contains("These are the newest 100."));
    fill(2);
    let page = get(&web, "/").body;
    assert!(page.contains("These are the newest 100."));
    assert!(page.contains("/entries/101/finish") && page.contains("/entries/2/finish"));
    assert!(!page.contains("/entries/1/finish"));
}

#[test]
fn a_text_that_is_refused_is_kept_with_the_reason() {
    let rds = start(LocalRds::builder());
    let web = Web::on(&rds);
    let too_long = "ä".repeat(201);
    let cases = [
        ("".to_owned(), "", "Say what there is to do."),
        ("other=1".to_owned(), "", "Say what there is to do."),
        ("text=".to_owned(), "", "Say what there is to do."),
        ("text=+%20%09".to_owned(), "  \t", "Say what there is to do."),
        (format!("text={too_long}"), &too_long, "it has more than 200 characters."),
        ("text=a%00b".to_owned(), "a\0b", "control characters"),
        ("text=a%1b[2Jb".to_owned(), "a\x1b[2Jb", "control characters"),
        ("text=a%0ab".to_owned(), "a\nb", "control characters"),
        ("text=a%ff%feb".to_owned(), "a\u{fffd}\u{fffd}b", "That is not UTF-8."),
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
fn bodies_that_are_none() {
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
            b"POST /entries HTTP/1.1\r\nhost: a\r\ncontent-type: application/x-www-form-urlencoded\r\ncontent-length: 20\r\n\r\ntext=half",
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
fn what_is_not_there_is_not_found() {
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
fn no_answer_lets_scripts_run() {
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

/// Posts an entry from each of so many clients at once, and counts the answers as they come.
/// Returns the texts that were acknowledged, and the answers of the others.
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

fn assert_all_are_told_to_come_again(others: &[Reply]) {
    for reply in others {
        assert_eq!((reply.status, reply.header("retry-after")), (503, Some("3")), "{}", reply.body);
    }
}

#[test]
fn of_500_clients_at_once_each_is_answered_and_no_entry_is_lost() {
    let rds = start(LocalRds::builder());
    let web = Web::on(&rds);
    let (acknowledged, others) = crowd(&web, 500, &AtomicUsize::new(0));
    eprintln!("{} entries, {} told to come again", acknowledged.len(), others.len());
    assert_all_are_told_to_come_again(&others);
    assert!(acknowledged.len() >= 8, "{}", acknowledged.len());
    let stored = texts(&rds);
    assert_eq!(stored.len(), acknowledged.len());
    assert_eq!(stored.into_iter().collect::<BTreeSet<_>>(), acknowledged);
    assert_eq!(sessions(&mut rds.superuser().unwrap(), "true"), 8);
}

#[test]
fn while_the_database_is_stuck_clients_are_told_to_come_again_and_hold_no_thread() {
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
        assert!(get(&web, "/metrics").body.contains("rds_iam_connections{state=\"in_use\"} 7\n"));
        assert_threads(&web);
        eventually("493 requests are answered", || answered.load(Ordering::SeqCst) == 493);
        drop(lock);
        clients.join().unwrap()
    });
    assert_eq!((acknowledged.len(), others.len()), (7, 493));
    assert_all_are_told_to_come_again(&others);
    assert_eq!(texts(&rds).into_iter().collect::<BTreeSet<_>>(), acknowledged);
}

/// Workers of tokio, r2d2's three, those that hold a connection, and a few more: but not one for
/// each client.
fn assert_threads(web: &Web) {
    #[cfg(target_os = "linux")]
    {
        let threads = std::fs::read_dir(format!("/proc/{}/task", web.id())).unwrap().count();
        let most = thread::available_parallelism().unwrap().get() + 24;
        assert!(threads <= most, "{threads} threads");
    }
}

#[test]
fn health_tells_why_the_database_cannot_be_reached() {
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
    assert_all_are_told_to_come_again(&[
        get(&web, "/"),
        add(&web, "lost"),
        get(&web, "/entries.json"),
    ]);
    let status = get(&web, "/status");
    assert_eq!(status.status, 200);
    assert_eq!(number(&status.body, "in use"), Some(0));
    assert!(status.body.contains("Connection refused"), "{}", status.body);
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
}

#[test]
fn through_a_restart_no_acknowledged_entry_is_lost() {
    let rds = start(LocalRds::builder());
    let web = Web::on(&rds);
    let restarted = AtomicBool::new(false);
    // Goes on until an entry is acknowledged after the restart.
    let client = |name: usize| {
        let mut acknowledged = Vec::new();
        for i in 0.. {
            let (was_restarted, text) = (restarted.load(Ordering::SeqCst), format!("{name}-{i}"));
            let reply = add(&web, &text);
            if reply.status != 303 {
                assert_all_are_told_to_come_again(&[reply]);
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

/// The backends of the app, stopped by a signal: the server's end of each connection is there, and
/// silent.
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
fn health_answers_in_time_also_while_the_database_is_silent() {
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
                    health.body.starts_with("the database has not answered within 3 s; "),
                    "{}",
                    health.body
                );
                assert!(asked.elapsed() < Duration::from_secs(6), "{:?}", asked.elapsed());
            });
        }
    });
    // They do not use up the pool, and then tell of that.
    assert_eq!(number(&get(&web, "/status").body, "in use"), Some(1));
    drop(silent);
    eventually("/health answers 200", || get(&web, "/health").status == 200);
}

#[test]
fn status_tells_what_becomes_of_connections() {
    let rds = start(LocalRds::builder());
    let web = Web::start(web().envs(rds.environment()).env("MAX_LIFETIME", "3"));
    let status = get(&web, "/status").body;
    let numbers = ["in use", "idle", "at most"].map(|name| number(&status, name));
    assert_eq!(numbers, [Some(0), Some(8), Some(8)]);
    assert_eq!(number(&status, "logins"), Some(rds.attempts().len() as u64));
    assert_eq!(status.matches("class=\"idle\"").count(), 8);
    assert!(
        status.contains(
            "<desc id=\"picture-desc\">0 in use, 8 idle. Each ends in the last tenth of 0:03 min."
        ),
        "{status}"
    );
    assert!(
        status.contains("ends in here, at 0:03 min")
            && status.contains("None: the last login was a success.")
    );
    assert!(status.contains("<meta http-equiv=\"refresh\" content=\"2\">"));

    // A checkout tries the connections in turn, and retires those that are too old.
    eventually("a connection reaches its max_lifetime", || {
        assert_eq!(get(&web, "/").status, 200);
        number(&get(&web, "/status").body, "it is past its max_lifetime") > Some(0)
    });

    // Of those above each may be too old by now, and is not looked at.
    let web = Web::on(&rds);
    rds.restart().unwrap();
    eventually("/health answers 200", || get(&web, "/health").status == 200);
    let status = get(&web, "/status").body;
    assert!(number(&status, "the server has closed it") > Some(0));
    assert_eq!(number(&status, "refreshes"), Some(1));
    assert!(number(&status, "logins") > Some(9));
}

#[test]
fn metrics_are_as_prometheus_reads_them() {
    let rds = start(LocalRds::builder());
    let web = Web::on(&rds);
    let metrics = get(&web, "/metrics");
    assert_eq!(metrics.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let samples = samples(&metrics.body);
    let value = |name: &str| samples.iter().find(|(sample, _)| sample == name).unwrap().1;
    assert_eq!(value("rds_iam_logins_total"), rds.attempts().len() as u64);
    assert_eq!(value("rds_iam_failed_logins_total{cause=\"refused_token\"}"), 0);
    // The connection that ran the migrations.
    assert_eq!(value("rds_iam_retirements_total{reason=\"released\"}"), 1);
    assert_eq!(value("rds_iam_connections{state=\"idle\"}"), 8);
    assert_eq!(value("rds_iam_connections{state=\"in_use\"}"), 0);
    assert_eq!(value("rds_iam_max_connections"), 8);
}

/// Reads the text format 0.0.4 as strictly as its text allows: HELP, TYPE and samples of one family
/// after the other.
fn samples(text: &str) -> Vec<(String, u64)> {
    let is_name =
        |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    let (mut samples, mut families) = (Vec::new(), BTreeSet::new());
    assert!(text.ends_with('\n'));
    for family in text.split("# HELP ").skip(1) {
        let mut lines = family.lines();
        let (name, help) = lines.next().unwrap().split_once(' ').unwrap();
        assert!(is_name(name) && !help.is_empty() && families.insert(name), "{family}");
        let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
        assert_eq!(lines.next().unwrap(), format!("# TYPE {name} {kind}"));
        let before = samples.len();
        for line in lines {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            let labels = sample.strip_prefix(name).unwrap();
            let label = labels.strip_prefix('{').and_then(|labels| labels.strip_suffix("\"}"));
            let label = label.and_then(|label| label.split_once("=\""));
            assert!(
                labels.is_empty()
                    || label.is_some_and(|(name, value)| is_name(name) && is_name(value)),
                "{line}"
            );
            samples.push((sample.to_owned(), value.parse().unwrap()));
        }
        assert!(samples.len() > before, "{family}");
    }
    let distinct: BTreeSet<_> = samples.iter().map(|(sample, _)| sample).collect();
    assert_eq!(distinct.len(), samples.len());
    samples
}

#[test]
fn two_replicas_start_at_once_and_one_of_them_migrates() {
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
fn after_a_signal_requests_in_hand_are_answered_and_no_others() {
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

/// A client that says what it likes. It does not wait for ever.
fn connect(web: &Web) -> std::io::Result<TcpStream> {
    let client = TcpStream::connect(web.url.strip_prefix("http://").unwrap())?;
    client.set_read_timeout(Some(LIMIT))?;
    Ok(client)
}

/// Sends these bytes, and returns what comes until the server closes the connection, and after how
/// many seconds.
fn say(web: &Web, bytes: &[u8]) -> (String, f64) {
    let mut client = connect(web).unwrap();
    let begun = Instant::now();
    client.write_all(bytes).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    (answer, begun.elapsed().as_secs_f64())
}

#[test]
fn a_request_ends_after_ten_seconds_whoever_is_silent() {
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
}

#[test]
fn after_a_signal_nobody_is_waited_for_longer_than_twelve_seconds() {
    let rds = start(LocalRds::builder());
    let web = Web::on(&rds);
    let mut client = connect(&web).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nhost: ").unwrap();
    // Until then it may not have read the half.
    (0..3).for_each(|_| assert_eq!(get(&web, "/health").status, 200));
    let signalled = Instant::now();
    web.signal("TERM");
    assert_eq!(web.wait().status.code(), Some(0));
    let took = signalled.elapsed().as_secs_f64();
    assert!((12.0..18.0).contains(&took), "{took} s");
}

#[test]
fn after_a_signal_an_idle_connection_is_not_waited_for() {
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
fn with_nothing_set_it_has_a_local_rds_and_leaves_nothing_behind() {
    let web = Web::start(&mut web());
    assert_eq!(add(&web, "hello").status, 303);
    assert_eq!(get(&web, "/entries.json").body, r#"[{"id":1,"text":"hello","finished":false}]"#);
    web.signal("TERM");
    let Ended { status, output } = web.wait();
    assert_eq!(status.code(), Some(0));
    let port =
        output.split_once("a local RDS listens on port ").unwrap().1.split_once(',').unwrap().0;
    TcpStream::connect(format!("127.0.0.1:{port}")).unwrap_err();
}

#[test]
fn settings_that_are_none_are_told() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let cases = [
        ("LISTEN", taken.as_str(), "Address already in use"),
        ("LISTEN", "here", "invalid socket address"),
        ("LISTEN", "127.0.0.1:65536", "invalid port value"),
        ("LISTEN", "", "cannot listen on LISTEN="),
        ("MAX_LIFETIME", "0", "MAX_LIFETIME=0: give it seconds"),
        ("MAX_LIFETIME", "-1", "MAX_LIFETIME=-1: give it seconds"),
        ("MAX_LIFETIME", "14 min", "MAX_LIFETIME=14 min: give it seconds"),
        ("MAX_LIFETIME", "4294967296", "MAX_LIFETIME=4294967296: give it seconds"),
        ("DATABASE_URL", "postgres://app:hunter2@localhost/app", "a password"),
    ];
    for (name, value, expected) in cases {
        let Ended { status, output } = Web::run(web().env(name, value));
        assert_eq!(status.code(), Some(1), "{name}={value}");
        assert!(output.contains("web: ") && output.contains(expected), "{output}");
    }
}

#[test]
fn the_least_and_the_longest_max_lifetime_do() {
    let rds = start(LocalRds::builder());
    for seconds in ["1", "4294967295"] {
        let web = Web::start(web().envs(rds.environment()).env("MAX_LIFETIME", seconds));
        assert_eq!(get(&web, "/status").status, 200);
        assert_eq!(get(&web, "/health").body, "ok\n");
    }
}
