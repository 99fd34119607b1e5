#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a panic is how it fails")]
//! One binary for all that needs a server. It fails where PostgreSQL is missing.

mod bad_input;
mod browser;
mod cli;
mod close;
#[cfg(target_os = "linux")]
mod cluster;
mod credentials;
#[cfg(target_os = "linux")]
mod dead_peers;
mod dialect;
mod dialect_judge;
mod diesel_api;
mod doctor;
mod doctor_program;
mod dsql;
mod environment;
mod examples;
mod exit;
#[cfg(target_os = "linux")]
mod failover;
#[cfg(target_os = "linux")]
mod faults;
mod guide;
mod hooks;
mod hostile_logins;
mod hosts;
mod left_behind;
mod local_rds;
mod login;
#[cfg(target_os = "linux")]
mod memory;
mod migrate;
mod oracles;
mod outage;
mod per_thread;
mod pool;
mod reports;
mod reset;
mod review;
mod secrets;
mod session;
#[cfg(target_os = "linux")]
mod socket;
mod sources;
mod stats;
mod support;
#[cfg(target_os = "linux")]
mod transaction;
#[cfg(target_os = "linux")]
mod versions;
mod web;
mod worker;
