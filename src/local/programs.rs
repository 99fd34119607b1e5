//! Finds PostgreSQL's server programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::failed_with_cure;
use crate::error::Error;

/// Returns the folder of initdb and postgres: on PATH, from pg_config, or where Debian installs
/// them (the newest version first).
pub(super) fn find() -> Result<PathBuf, Error> {
    find_in(candidates())
}

/// Returns the program pg_basebackup for the server programs in a folder.
pub(super) fn pg_basebackup(bin: &Path) -> Result<PathBuf, Error> {
    // The folder may contain links to the programs.
    let linked = bin.join("postgres").canonicalize().ok();
    let folders = [Some(bin.to_owned()), linked.and_then(|it| it.parent().map(Path::to_owned))];
    let programs = folders.into_iter().flatten().map(|folder| folder.join("pg_basebackup"));
    programs.into_iter().find(|program| program.is_file()).ok_or_else(|| {
        failed_with_cure(
            "the program pg_basebackup is missing",
            "install PostgreSQL's client programs of the same version",
        )(format!("it is not beside {}", bin.join("postgres").display()))
    })
}

fn candidates() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    if let Ok(output) = Command::new("pg_config").arg("--bindir").output() {
        folders.push(String::from_utf8_lossy(&output.stdout).trim().into());
    }
    let mut versions = entries("/usr/lib/postgresql");
    versions.sort_by_key(|path| std::cmp::Reverse(version(path)));
    folders.extend(versions.into_iter().map(|path| path.join("bin")));
    folders
}

/// Returns the first folder that contains both programs.
fn find_in(candidates: Vec<PathBuf>) -> Result<PathBuf, Error> {
    let complete = |folder: &PathBuf| {
        ["initdb", "postgres"].iter().all(|program| folder.join(program).is_file())
    };
    candidates.into_iter().find(complete).ok_or_else(|| {
        failed_with_cure(
            "PostgreSQL's server programs are missing",
            "install them: apt install postgresql, dnf install postgresql-server, or \
             brew install postgresql",
        )("initdb and postgres are not on PATH")
    })
}

fn entries(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

fn version(path: &Path) -> u32 {
    path.file_name().and_then(|name| name.to_str()?.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_folder_with_both_programs_is_used_and_without_one_the_error_names_packages() {
        let (with_one, with_both) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (folder, program) in
            [(&with_one, "initdb"), (&with_both, "initdb"), (&with_both, "postgres")]
        {
            fs::write(folder.path().join(program), "").unwrap();
        }
        let [one, both] = [&with_one, &with_both].map(|folder| folder.path().to_owned());
        assert_eq!(find_in(vec![one.clone(), both.clone()]).unwrap(), both);
        let error = find_in(vec![one]).unwrap_err().to_string();
        assert!(
            error.contains(
                "apt install postgresql, dnf install postgresql-server, or brew install postgresql"
            ),
            "{error}"
        );
        assert!(error.len() <= 240, "{error}");
    }
}
