//! What newer versions of libpq and PostgreSQL offer. With an older libpq such a keyword is an
//! error.

use std::fs;
use std::process::Command;

use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::Text;
use diesel_rds_iam::RdsConnectionManager;
use diesel_rds_iam::local::LocalRds;
use diesel_rds_iam::r2d2::ManageConnection;

use crate::support::{current_user, in_a_child, output, start, write_private};

/// Returns the major version of psql, which is that of the libpq beside it.
fn version_of_psql() -> u32 {
    let printed = output(Command::new("psql").arg("--version")).stdout;
    let text = String::from_utf8(printed).unwrap();
    text.split([' ', '.']).find_map(|word| word.parse().ok()).unwrap()
}

fn version_of(rds: &LocalRds) -> u32 {
    let query = "(current_setting('server_version_num')::int / 10000)::text";
    let version = diesel::select(sql::<Text>(query)).get_result(&mut rds.superuser().unwrap());
    version.map(|version: String| version.parse().unwrap()).unwrap()
}

/// Adds a setting that libpq knows since this version. Returns `None` if libpq is older.
fn manager_with(rds: &LocalRds, setting: &str, since: u32) -> Option<RdsConnectionManager> {
    match rds.manager_builder().build(rds.database_url() + "&" + setting) {
        Ok(manager) => Some(manager),
        Err(error) => {
            let text = error.to_string();
            assert!(version_of_psql() < since, "libpq {since} knows {setting}: {text}");
            assert!(text.contains("too old for"), "{text}");
            None
        }
    }
}

#[test]
fn direct_tls_logs_in_if_the_server_supports_it() {
    let rds = start(LocalRds::builder());
    let Some(manager) = manager_with(&rds, "sslnegotiation=direct", 17) else { return };
    if version_of(&rds) >= 17 {
        assert_eq!(current_user(&mut manager.connect().unwrap()), "app");
    } else {
        assert!(manager.connect().is_err());
    }
}

#[test]
fn the_protocol_version_of_libpq_18_logs_in_if_the_server_supports_it() {
    let rds = start(LocalRds::builder());
    let setting = "max_protocol_version=3.2&min_protocol_version=3.2";
    let Some(manager) = manager_with(&rds, setting, 18) else { return };
    if version_of(&rds) >= 18 {
        assert_eq!(current_user(&mut manager.connect().unwrap()), "app");
    } else {
        assert!(manager.connect().is_err());
    }
}

#[test]
fn a_key_log_is_written_only_if_the_connection_string_names_it() {
    let (rds, folder) = (start(LocalRds::builder()), tempfile::tempdir().unwrap());
    let [log, services] = ["log", "services"].map(|name| folder.path().join(name));
    let setting = format!("sslkeylogfile={}", log.display());
    let Some(manager) = manager_with(&rds, &setting, 18) else { return };
    assert_eq!(current_user(&mut manager.connect().unwrap()), "app");
    assert!(fs::read_to_string(&log).unwrap().contains("CLIENT_"));

    write_private(&services, format!("[logs]\n{setting}\n"));
    let services = services.display().to_string();
    let url = rds.database_url() + "&service=logs";
    in_a_child(
        "versions::a_key_log_of_a_service_file_is_refused",
        &[("DATABASE_URL", &url), ("PGSERVICEFILE", &services)],
    );
}

#[test]
#[ignore = "runs in its own process, with the environment of another test"]
fn a_key_log_of_a_service_file_is_refused() {
    let error = RdsConnectionManager::from_env().unwrap_err().to_string();
    assert!(error.contains("sslkeylogfile") && error.contains("remove it"), "{error}");
}

#[test]
fn the_roots_of_the_system_are_used_if_libpq_supports_it() {
    let rds = start(LocalRds::builder());
    let root = rds.ca_file().display().to_string();
    let url = rds.database_url().replace(&root, "system");
    assert!(url.contains("sslrootcert=system"), "{url}");
    let mut environment = rds.environment();
    environment.retain(|(name, _)| *name != "DATABASE_URL" && *name != "PGSSLROOTCERT");
    let supported = if version_of_psql() >= 16 { "yes" } else { "unknown" };
    environment.extend([
        ("DATABASE_URL", url),
        ("SSL_CERT_FILE", root),
        ("SUPPORTED", supported.to_owned()),
    ]);
    let environment: Vec<_> = environment.iter().map(|(name, it)| (*name, it.as_str())).collect();
    in_a_child("versions::with_the_roots_of_the_system", &environment);
}

#[test]
#[ignore = "runs in its own process, with the environment of another test"]
fn with_the_roots_of_the_system() {
    match RdsConnectionManager::from_env().unwrap().connect() {
        Ok(mut connection) => assert_eq!(current_user(&mut connection), "app"),
        Err(error) => {
            assert_eq!(std::env::var("SUPPORTED").unwrap(), "unknown", "{error}");
            // libpq 15 takes it as the name of a file.
            assert!(error.to_string().contains("\"system\" does not exist"), "{error}");
        }
    }
}
