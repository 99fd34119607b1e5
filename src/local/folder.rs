//! The temporary folder of one server, and commands that run in it under the server's account.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, fchown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::{NamedTempFile, TempDir};

use super::{failed, failed_with_cure};
use crate::error::Error;

/// PostgreSQL's limit for the path of a socket, in bytes. On macOS it is 4 bytes less.
const LONGEST_SOCKET: usize = 103;

/// The folder of one server. As root, the server runs under `account` because PostgreSQL refuses
/// to run as root.
///
/// The folder itself always belongs to the user of this process, and only its subfolders `data`
/// and `run` belong to the account. The account can therefore not replace a file that this process
/// writes by path. This process never writes by path into `data` or `run`.
pub(super) struct Folder {
    folder: TempDir,
    account: Option<(u32, u32)>,
}

impl Folder {
    pub(super) fn create() -> Result<Folder, Error> {
        let created = failed("cannot create a temporary folder");
        let folder = tempfile::Builder::new().prefix("local-rds-").tempdir().map_err(created)?;
        let owner = fs::metadata(folder.path())
            .map_err(failed("cannot read the owner of the temporary folder"))?
            .uid();
        let account = if owner == 0 { Some(unprivileged_account()?) } else { None };
        let folder = Folder { folder, account };
        folder.check_socket()?;
        folder
            .create_subfolders()
            .map_err(failed("cannot create the folders of the server's account"))?;
        Ok(folder)
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The folder of the cluster.
    pub(super) fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    /// The folder of the unix socket, through which the superuser logs in.
    pub(super) fn run(&self) -> PathBuf {
        self.path().join("run")
    }

    fn check_socket(&self) -> Result<(), Error> {
        let socket = self.run().join(".s.PGSQL.65535");
        let path = socket.as_os_str().as_encoded_bytes();
        // libpq separates host names by commas.
        if path.len() <= LONGEST_SOCKET && !path.contains(&b',') {
            return Ok(());
        }
        Err(failed_with_cure(
            "no unix socket can be created in the temporary folder",
            "set TMPDIR to a folder with a short path without commas",
        )(self.path().display().to_string()))
    }

    fn create_subfolders(&self) -> io::Result<()> {
        // The account must be able to enter the folder, but not to change it.
        let mode = if self.account.is_some() { 0o711 } else { 0o700 };
        fs::set_permissions(self.path(), Permissions::from_mode(mode))?;
        for subfolder in [self.data(), self.run()] {
            DirBuilder::new().mode(0o700).create(&subfolder)?;
            self.hand_over(&File::open(&subfolder)?)?;
        }
        Ok(())
    }

    fn hand_over(&self, file: &File) -> io::Result<()> {
        let Some((user, group)) = self.account else { return Ok(()) };
        fchown(file, Some(user), Some(group))
    }

    /// Writes a file that only its owner can read, and that belongs to this process's user.
    pub(super) fn write(&self, name: &str, contents: &[u8]) -> Result<PathBuf, Error> {
        self.replace(name, contents, false)
    }

    /// Writes a file that only its owner can read, and that belongs to the server's account.
    pub(super) fn write_for_server(&self, name: &str, contents: &[u8]) -> Result<PathBuf, Error> {
        self.replace(name, contents, true)
    }

    /// Replaces the file. The account can write to an existing file that belongs to it.
    fn replace(&self, name: &str, contents: &[u8], for_server: bool) -> Result<PathBuf, Error> {
        let path = self.path().join(name);
        let write = || {
            let mut file = NamedTempFile::new_in(self.path())?;
            file.write_all(contents)?;
            if for_server {
                self.hand_over(file.as_file())?;
            }
            file.persist(&path)?;
            Ok(())
        };
        write().map_err(|error: io::Error| {
            failed(format!("cannot write {}", path.display()))(error)
        })?;
        Ok(path)
    }

    /// Returns a command that runs in this folder under the server's account.
    pub(super) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = detached(program);
        command.current_dir(self.path());
        if let Some((user, group)) = self.account {
            command.uid(user).gid(group);
        }
        command
    }
}

/// Returns a command in its own process group, so that Ctrl-C does not reach it.
///
/// It inherits no other variables: PG* variables are for other servers, and AWS credentials must
/// not reach PostgreSQL.
pub(super) fn detached(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let inherited = ["PATH", "TMPDIR", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"]
        .into_iter()
        .filter_map(|name| Some((name, std::env::var_os(name)?)));
    command.env_clear().envs(inherited).env("LC_ALL", "C");
    command
}

/// Returns user id and group id of the account for a server that root starts.
fn unprivileged_account() -> Result<(u32, u32), Error> {
    for name in ["postgres", "nobody"] {
        if let (Some(user), Some(group)) = (id_of("-u", name)?, id_of("-g", name)?) {
            return Ok((user, group));
        }
    }
    let cure = "create the account postgres, or run this program as another user";
    let failed = failed_with_cure("PostgreSQL does not run as root", cure);
    Err(failed("neither the account postgres nor nobody exists"))
}

/// Returns a number of an account, or `None` if there is no such account.
fn id_of(option: &str, name: &str) -> Result<Option<u32>, Error> {
    let output = Command::new("id").args([option, name]).output();
    let output = output.map_err(failed_with_cure("cannot run `id`", "correct PATH"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().parse().ok())
}
