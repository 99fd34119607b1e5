//! `LocalRds` with replicas.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use diesel::connection::SimpleConnection;
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Double, Integer, Nullable, Text};
use diesel_rds_iam::local::{Condition, LocalRds, Refusal};
use diesel_rds_iam::r2d2::ManageConnection;
use diesel_rds_iam::{Endpoint, Error, presign};

use crate::support::{
    RDS_IAM, end_of, eventually, eventually_equal, in_a_child, last_verdict, send, soon, start,
    with_no_settings,
};

/// The names follow at once.
fn cluster(replicas: usize) -> LocalRds {
    start(LocalRds::builder().replicas(replicas).dns_lag(Duration::ZERO))
}

fn texts(connection: &mut PgConnection, query: &str) -> Vec<String> {
    sql::<Text>(query).load(connection).unwrap()
}

fn count(connection: &mut PgConnection) -> i64 {
    sql::<BigInt>("SELECT count(*) FROM kept").get_result(connection).unwrap()
}

fn is_writable(connection: &mut PgConnection) -> bool {
    sql::<Bool>("SELECT NOT pg_is_in_recovery()").get_result(connection).unwrap()
}

fn create_table(rds: &LocalRds) {
    let table = "CREATE TABLE kept (id serial PRIMARY KEY); ALTER TABLE kept OWNER TO app";
    rds.superuser().unwrap().batch_execute(table).unwrap();
}

fn insert(rds: &LocalRds) {
    rds.superuser().unwrap().batch_execute("INSERT INTO kept DEFAULT VALUES").unwrap();
}

fn connect_to(rds: &LocalRds, node: usize) -> PgConnection {
    rds.manager_builder().build(rds.node_url(node)).unwrap().connect().unwrap()
}

fn address(node: usize) -> IpAddr {
    [127, 0, 0, u8::try_from(node + 1).unwrap()].into()
}

fn condition(rds: &LocalRds, node: usize) -> Condition {
    rds.node_statuses().into_iter().find(|status| status.node == node).unwrap().condition
}

/// Waits until a node has this number of rows as a replica.
fn replica_has(rds: &LocalRds, node: usize, rows: i64) {
    eventually("the node runs", || condition(rds, node) == Condition::Running);
    eventually_equal("the replica's rows", rows, || count(&mut rds.superuser_of(node).unwrap()));
    assert!(!is_writable(&mut rds.superuser_of(node).unwrap()));
}

/// The processes of PostgreSQL of all nodes, and their watchdogs: those whose arguments or working
/// directory contain a folder of the cluster.
fn processes(folders: &BTreeSet<PathBuf>) -> usize {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let belongs = |path: &Path| {
        let folder = std::fs::read_link(path.join("cwd")).unwrap_or_default();
        folders.iter().any(|own| folder.starts_with(own))
    };
    entries.filter(|entry| belongs(&entry.path())).count()
}

/// The folders of the nodes, as the superuser knows them.
fn folders(rds: &LocalRds) -> BTreeSet<PathBuf> {
    let folder = |node| {
        let query = "SELECT current_setting('data_directory')";
        let data: String =
            sql::<Text>(query).get_result(&mut rds.superuser_of(node).unwrap()).unwrap();
        Path::new(&data).parent().unwrap().to_owned()
    };
    rds.nodes().into_iter().map(folder).collect()
}

#[test]
fn each_node_knows_all_nodes() {
    let rds = cluster(2);
    assert_eq!((rds.writer(), rds.nodes()), (0, vec![0, 1, 2]));
    for node in 0..3 {
        let mut connection = connect_to(&rds, node);
        assert_eq!(is_writable(&mut connection), node == 0);
        let own = texts(&mut connection, "SELECT aurora_db_instance_identifier()");
        assert_eq!(own, [format!("node-{}", node + 1)]);
        let query = "SELECT server_id || ' ' || (session_id = 'MASTER_SESSION_ID') || ' ' \
                     || coalesce(replica_lag_in_msec::text, 'none') || ' ' \
                     || (now() - last_update_timestamp < interval '1 s') \
                     FROM aurora_replica_status() ORDER BY 1";
        let expected = ["node-1 true none true", "node-2 false 0 true", "node-3 false 0 true"];
        assert_eq!(texts(&mut connection, query), expected);
        let query = format!(
            "SELECT id FROM rds_tools.show_topology('test') WHERE port = {} \
             AND endpoint = id || '.localrds.us-east-1.rds.amazonaws.com' ORDER BY 1",
            rds.port()
        );
        assert_eq!(texts(&mut connection, &query), ["node-1", "node-2", "node-3"]);
        let query = "SELECT aws_region || ' ' || count(*) FROM aurora_global_db_instance_status() \
                     GROUP BY aws_region";
        assert_eq!(texts(&mut connection, query), ["us-east-1 3"]);
        let query = "SELECT multi_az_db_cluster_source_dbi_resource_id FROM \
                     rds_tools.multi_az_db_cluster_source_dbi_resource_id()";
        assert_eq!(texts(&mut connection, query), ["node-1"]);
        assert_eq!(rds.attempts().last().unwrap().node, node);
    }
    // In a new database, too.
    connect_to(&rds, 0).batch_execute("CREATE DATABASE further").unwrap();
    let url = rds.node_url(0).replace("/app?", "/further?");
    let mut further = rds.manager_builder().build(url).unwrap().connect().unwrap();
    assert_eq!(texts(&mut further, "SELECT aurora_db_instance_identifier()"), ["node-1"]);
}

/// Ends a thread of a scope also if the test fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn a_planned_failover_keeps_all_rows_and_the_old_writer_comes_back_as_a_reader() {
    let rds = cluster(2);
    create_table(&rds);
    let manager = rds.manager().unwrap();
    let ended = AtomicBool::new(false);
    let acknowledged = std::thread::scope(|scope| {
        let writes = scope.spawn(|| {
            let mut rows = Vec::new();
            while !ended.load(Ordering::SeqCst) {
                let Ok(mut connection) = manager.connect() else { continue };
                let query = "INSERT INTO kept DEFAULT VALUES RETURNING id";
                while !ended.load(Ordering::SeqCst) {
                    match sql::<Integer>(query).get_result::<i32>(&mut connection) {
                        Ok(row) => rows.push(row),
                        Err(_) => break,
                    }
                }
            }
            rows
        });
        let _end = End(&ended);
        // Two in a row: the second waits until the first has ended completely.
        for writer in [1, 2] {
            let before = count(&mut rds.superuser().unwrap());
            soon("rows are written", || count(&mut rds.superuser().unwrap()) > before + 10);
            rds.failover(writer).unwrap();
            assert_eq!(rds.writer(), writer);
            assert!(is_writable(&mut rds.superuser().unwrap()));
        }
        let before = count(&mut rds.superuser().unwrap());
        eventually("rows are written", || count(&mut rds.superuser().unwrap()) > before + 10);
        ended.store(true, Ordering::SeqCst);
        writes.join().unwrap()
    });
    let mut superuser = rds.superuser().unwrap();
    let rows: Vec<i32> = sql::<Integer>("SELECT id FROM kept").load(&mut superuser).unwrap();
    let rows: BTreeSet<i32> = rows.into_iter().collect();
    let lost: Vec<_> = acknowledged.iter().filter(|row| !rows.contains(row)).collect();
    assert!(lost.is_empty() && acknowledged.len() > 30, "{lost:?} of {acknowledged:?}");
    for node in [0, 1] {
        replica_has(&rds, node, rows.len().try_into().unwrap());
    }
}

#[test]
fn a_killed_writer_loses_no_row_and_rejoins() {
    let rds = cluster(2);
    create_table(&rds);
    insert(&rds);
    rds.kill(0).unwrap();
    assert!(TcpStream::connect((address(0), rds.port())).is_err());
    assert_eq!((rds.writer(), condition(&rds, 0)), (0, Condition::Killed));
    rds.failover(0).unwrap_err();
    rds.failover(1).unwrap();
    assert_eq!(count(&mut rds.superuser().unwrap()), 1);
    insert(&rds);
    let query = "SELECT server_id FROM aurora_replica_status() \
                 WHERE last_update_timestamp < now() - interval '1 ms'";
    assert_eq!(texts(&mut rds.superuser_of(2).unwrap(), query), ["node-1"]);
    rds.rejoin(0).unwrap();
    replica_has(&rds, 0, 2);
    replica_has(&rds, 2, 2);
    // The writer itself is started again as the writer.
    rds.rejoin(1).unwrap_err();
    rds.kill(1).unwrap();
    rds.rejoin(1).unwrap();
    insert(&rds);
    replica_has(&rds, 0, 3);
}

#[test]
fn without_replicas_that_run_the_writer_does_not_wait_for_one() {
    let rds = cluster(2);
    create_table(&rds);
    rds.kill(1).unwrap();
    insert(&rds);
    rds.freeze(2).unwrap();
    insert(&rds);
    rds.rejoin(1).unwrap();
    rds.thaw(2).unwrap();
    replica_has(&rds, 1, 2);
    replica_has(&rds, 2, 2);
    // A frozen replica does not block the shutdown of the writer.
    rds.freeze(2).unwrap();
    let started = Instant::now();
    rds.failover(1).unwrap();
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    insert(&rds);
    rds.thaw(2).unwrap();
    replica_has(&rds, 2, 3);
    replica_has(&rds, 0, 3);
}

#[test]
fn a_frozen_writer_continues_as_a_second_writer_until_it_rejoins() {
    let rds = cluster(2);
    create_table(&rds);
    let mut session = connect_to(&rds, 0);
    rds.freeze(0).unwrap();
    // Its kernel accepts the connection.
    TcpStream::connect((address(0), rds.port())).unwrap();
    rds.failover(2).unwrap();
    insert(&rds);
    rds.thaw(0).unwrap();
    assert!(is_writable(&mut session));
    let second = "SET synchronous_commit = local; INSERT INTO kept VALUES (1000)";
    session.batch_execute(second).unwrap();
    assert_eq!(texts(&mut session, "SELECT id::text FROM kept"), ["1000"]);
    let writer = "SELECT server_id FROM aurora_replica_status() \
                  WHERE session_id = 'MASTER_SESSION_ID'";
    assert_eq!(texts(&mut session, writer), ["node-3"]);
    rds.rejoin(0).unwrap();
    session.batch_execute("SELECT 1").unwrap_err();
    for node in [0, 1] {
        replica_has(&rds, node, 1);
    }
    rds.freeze(1).unwrap();
    rds.freeze(1).unwrap_err();
    rds.rejoin(1).unwrap();
    replica_has(&rds, 1, 1);
}

#[test]
fn the_names_follow_after_the_lag() {
    let lag = Duration::from_secs(2);
    let rds = start(LocalRds::builder().replicas(1).dns_lag(lag));
    let [cluster, reader, node] = ["local.cluster", "local.cluster-ro", "node-1."].map(|name| {
        let separator = if name.ends_with('.') { "" } else { "-" };
        format!("{name}{separator}localrds.us-east-1.rds.amazonaws.com")
    });
    let seen = || [&cluster, &reader, &node].map(|name| rds.resolve(name).unwrap());
    let hosts = || std::fs::read_to_string(rds.hosts_file()).unwrap();
    let line = |node, name| format!("{} {name}\n", address(node));
    let old = [0, 1, 0].map(|node| vec![address(node)]);
    let new = [1, 0, 0].map(|node| vec![address(node)]);
    assert_eq!(seen(), old);
    assert!(hosts().contains(&line(0, &cluster)) && hosts().contains(&line(1, &reader)));
    let before = Instant::now();
    rds.failover(1).unwrap();
    let promoted = Instant::now();
    let last = seen();
    // A slow machine may have passed the end of the lag already.
    assert!(last == old || before.elapsed() >= lag, "{last:?}");
    eventually_equal("the names", new, seen);
    assert!(before.elapsed() >= lag && promoted.elapsed() < lag + Duration::from_secs(10));
    soon("the file follows", || hosts().contains(&line(1, &cluster)));
    soon("the file follows", || hosts().contains(&line(0, &reader)));
    assert!(rds.resolve("node-3.localrds.us-east-1.rds.amazonaws.com").is_err());
    assert_eq!(rds.resolve("localhost").unwrap(), [address(0)]);
    let mut writer = rds.manager_builder().build(rds.cluster_url()).unwrap().connect().unwrap();
    assert!(is_writable(&mut writer));
    let mut reader = rds.manager_builder().build(rds.reader_url()).unwrap().connect().unwrap();
    assert!(!is_writable(&mut reader));
}

#[test]
fn replicas_are_added_and_removed() {
    let rds = cluster(1);
    create_table(&rds);
    insert(&rds);
    assert_eq!(rds.add_replica().unwrap(), 2);
    replica_has(&rds, 2, 1);
    let name = "node-3.localrds.us-east-1.rds.amazonaws.com";
    assert_eq!(rds.resolve(name).unwrap(), [address(2)]);
    connect_to(&rds, 2);
    rds.remove(0).unwrap_err();
    rds.failover(2).unwrap();
    rds.remove(0).unwrap();
    assert_eq!((rds.writer(), rds.nodes()), (2, vec![1, 2]));
    assert!(rds.resolve("node-1.localrds.us-east-1.rds.amazonaws.com").is_err());
    assert!(TcpStream::connect((address(0), rds.port())).is_err());
    let nodes = "SELECT server_id FROM aurora_replica_status() ORDER BY 1";
    assert_eq!(texts(&mut rds.superuser().unwrap(), nodes), ["node-2", "node-3"]);
    rds.remove(1).unwrap();
    insert(&rds);
    let reader = rds.resolve("local.cluster-ro-localrds.us-east-1.rds.amazonaws.com");
    assert_eq!(reader.unwrap(), [address(2)], "the writer, because there is no reader");
    assert_eq!(rds.add_replica().unwrap(), 3, "numbers are not used again");
    replica_has(&rds, 3, 2);
}

#[test]
fn a_lag_is_reported_and_real_and_does_not_block_the_writer() {
    let rds = cluster(1);
    create_table(&rds);
    replica_has(&rds, 1, 0);
    rds.set_replica_lag(0, Duration::from_secs(1)).unwrap_err();
    rds.set_replica_lag(1, Duration::from_secs(3600)).unwrap();
    soon("the delay is set", || {
        let delay = "SELECT current_setting('recovery_min_apply_delay')";
        texts(&mut rds.superuser_of(1).unwrap(), delay) == ["1h"]
    });
    let lag = "SELECT replica_lag_in_msec FROM aurora_replica_status() ORDER BY server_id";
    let lag: Vec<Option<f64>> =
        sql::<Nullable<Double>>(lag).load(&mut rds.superuser_of(1).unwrap()).unwrap();
    assert_eq!(lag, [None, Some(3_600_000.0)]);
    insert(&rds);
    assert_eq!(count(&mut rds.superuser_of(1).unwrap()), 0);
    rds.failover(1).unwrap();
    assert_eq!(count(&mut rds.superuser().unwrap()), 1);
    replica_has(&rds, 0, 1);
}

#[test]
fn a_node_accepts_tokens_for_its_own_the_cluster_and_the_reader_endpoint() {
    let rds = cluster(1);
    let with_token_for = |host: &str| {
        let suffix = "localrds.us-east-1.rds.amazonaws.com";
        let endpoint = Endpoint::new(&format!("{host}{suffix}"), rds.port(), "us-east-1").unwrap();
        let now = std::time::SystemTime::now();
        let token = presign(&endpoint, LocalRds::USER, rds.credentials(), now).unwrap();
        let (port, root) = (rds.port(), rds.ca_file().display());
        let login = PgConnection::establish(&format!(
            "host=node-2.{suffix} hostaddr=127.0.0.2 port={port} user=app dbname=app \
             sslmode=verify-full sslrootcert='{root}' password='{}'",
            token.as_str()
        ));
        assert_eq!(login.is_ok(), last_verdict(&rds).is_ok());
        last_verdict(&rds)
    };
    for accepted in ["node-2.", "local.cluster-", "local.cluster-ro-"] {
        assert_eq!(with_token_for(accepted), Ok(()), "{accepted}");
    }
    for refused in ["node-1.", "other.cluster-"] {
        assert_eq!(with_token_for(refused), Err(Refusal::Endpoint), "{refused}");
    }
    assert_eq!(with_token_for("node-2."), Ok(()));
    rds.refuse_next(1);
    assert_eq!(with_token_for("node-2."), Err(Refusal::Asked));
}

#[test]
fn psql_finds_the_writer_without_dns() {
    let rds = cluster(1);
    rds.failover(1).unwrap();
    let url = rds.password_url().replace("&rds_iam_auth=false", "");
    let query = "SELECT aurora_db_instance_identifier()";
    let psql = Command::new("psql").args(["-Atc", query, "-d"]).arg(url).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&psql.stdout), "node-2\n", "{psql:?}");
}

#[test]
fn stop_restart_and_rotation_are_for_all_nodes() {
    let rds = cluster(1);
    create_table(&rds);
    rds.stop();
    for node in [0, 1] {
        assert!(TcpStream::connect((address(node), rds.port())).is_err());
        assert_eq!(condition(&rds, node), Condition::Stopped);
    }
    rds.rotate_certificate().unwrap_err();
    rds.restart().unwrap();
    insert(&rds);
    replica_has(&rds, 1, 1);
    for refused in [rds.demote(), rds.promote()] {
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("call failover"), "{error}");
    }
    let authority = rds.rotate_certificate().unwrap();
    let manager = |node| rds.manager_builder().build(rds.node_url(node)).unwrap();
    assert!([0, 1].iter().all(|node| manager(*node).connect().is_err()));
    std::fs::write(rds.ca_file(), authority).unwrap();
    assert!([0, 1].iter().all(|node| manager(*node).connect().is_ok()));
}

#[test]
fn invalid_settings_are_refused_and_a_single_server_has_no_operations_on_nodes() {
    for builder in [
        LocalRds::builder().replicas(1).dsql(),
        LocalRds::builder().replicas(1).endpoint("db.example.com", 5432),
        LocalRds::builder().replicas(16),
    ] {
        let error = builder.start().unwrap_err();
        assert!(matches!(error, Error::Config(_)), "{error}");
    }
    let rds = start(LocalRds::builder());
    assert_eq!((rds.writer(), rds.nodes(), rds.node_statuses()), (0, vec![0], vec![]));
    let error = rds.failover(0).unwrap_err().to_string();
    assert!(error.contains("replicas"), "{error}");
    assert_eq!(rds.resolve("localhost").unwrap(), [address(0)]);
    assert!(rds.resolve("node-1.localrds.us-east-1.rds.amazonaws.com").is_err());
    assert_eq!(rds.cluster_url(), rds.database_url());
    assert_eq!(rds.hosts_file(), Path::new("/etc/hosts"));
    assert!(rds.superuser_of(0).is_ok() && rds.superuser_of(1).is_err());
}

#[test]
fn nothing_is_left_after_a_drop_also_of_frozen_nodes() {
    let rds = cluster(2);
    let (folders, own) = (folders(&rds), rds.ca_file().parent().unwrap().to_owned());
    assert!(processes(&folders) > 10);
    rds.freeze(0).unwrap();
    rds.freeze(2).unwrap();
    drop(rds);
    // The processes of a killed node are not children of this process.
    soon("all processes end", || processes(&folders) == 0);
    assert!(!own.exists() && folders.iter().all(|folder| !folder.exists()));
}

#[test]
fn nothing_is_left_after_the_end_of_the_process_also_of_frozen_nodes() {
    let note = tempfile::NamedTempFile::new().unwrap();
    in_a_child("cluster::leaks", &[("NOTE", note.path().to_str().unwrap())]);
    let text = std::fs::read_to_string(note.path()).unwrap();
    let folders: BTreeSet<PathBuf> = text.lines().map(PathBuf::from).collect();
    assert_eq!(folders.len(), 3);
    eventually("the folders are removed", || folders.iter().all(|folder| !folder.exists()));
    eventually("all processes end", || processes(&folders) == 0);
}

#[test]
#[ignore = "runs in a child process, which ends without a drop of the cluster"]
fn leaks() {
    let rds = cluster(1);
    let mut folders = folders(&rds);
    folders.insert(rds.ca_file().parent().unwrap().to_owned());
    let lines: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
    std::fs::write(std::env::var("NOTE").unwrap(), lines.join("\n")).unwrap();
    rds.freeze(0).unwrap();
    std::mem::forget(rds);
}

#[test]
fn the_program_changes_the_cluster_by_commands_on_standard_input() {
    let mut command = Command::new(RDS_IAM);
    with_no_settings(&mut command).args(["local", "--replicas", "1", "--dns-lag", "0"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (mut input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    // A child that answers nothing is ended, and the lines end.
    let (id, (answered, all_answers)) = (child.id(), std::sync::mpsc::channel::<()>());
    std::thread::spawn(move || {
        let timeout = Err(std::sync::mpsc::RecvTimeoutError::Timeout);
        if all_answers.recv_timeout(Duration::from_secs(120)) == timeout {
            send("TERM", id);
        }
    });
    let mut lines = BufReader::new(output).lines().map(Result::unwrap);
    let exports: Vec<String> =
        lines.by_ref().take_while(|line| line.starts_with("export ")).collect();
    for variable in ["DATABASE_URL", "RDS_IAM_LOCAL_CLUSTER_URL", "RDS_IAM_LOCAL_HOSTS"] {
        let export = format!("export {variable}=");
        assert!(exports.iter().any(|line| line.starts_with(&export)), "{variable}: {exports:?}");
    }
    for (command, answer) in [
        ("status", "node-1 127.0.0.1 running writer"),
        ("failover", "node-2 is the writer"),
        ("kill node-2", "node-2 is killed"),
        ("status", "node-1 127.0.0.1 running replica"),
        ("failover node-1", "node-1 is the writer"),
        ("rejoin node-2", "node-2 is a replica"),
        ("freeze node-2", "node-2 is frozen"),
        ("thaw node-2", "node-2 is running"),
        ("thaw node-2", "error: "),
        ("kill node-9", "error: there is no node node-9"),
        ("kill", "error: unknown command: kill"),
        ("reboot", "error: unknown command: reboot"),
    ] {
        writeln!(input, "{command}").unwrap();
        let answered = lines.find(|line| line.starts_with(answer) || line.starts_with("error"));
        assert!(answered.as_ref().is_some_and(|it| it.starts_with(answer)), "{answered:?}");
    }
    drop(answered);
    send("TERM", child.id());
    assert!(end_of(&mut child, "rds-iam local after a signal").success());
}
