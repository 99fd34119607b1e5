//! A private folder, and the programs that run in it under the account that owns it.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::failed;
use crate::error::Error;

/// PostgreSQL's limit for the path of a socket, in bytes; macOS' is four less.
const LONGEST_SOCKET: usize = 103;

/// A private folder, and the account that owns it: PostgreSQL does not run as root.
pub(super) struct Folder {
    folder: TempDir,
    account: Option<(u32, u32)>,
}

impl Folder {
    pub(super) fn create() -> Result<Folder, Error> {
        let mut builder = tempfile::Builder::new();
        let private = builder.prefix("local-rds-").permissions(Permissions::from_mode(0o700));
        let folder = private.tempdir().map_err(failed("no temporary folder"))?;
        let owner = fs::metadata(folder.path()).map_err(failed("no temporary folder"))?.uid();
        let account = if owner == 0 { Some(unprivileged()?) } else { None };
        let folder = Folder { folder, account };
        folder.check_socket()?;
        folder.hand_over(folder.path())?;
        Ok(folder)
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The superuser comes over a unix socket in this folder.
    fn check_socket(&self) -> Result<(), Error> {
        let socket = self.path().join(".s.PGSQL.65535");
        let path = socket.as_os_str().as_encoded_bytes();
        // libpq takes a comma for the end of a host's name.
        if path.len() <= LONGEST_SOCKET && !path.contains(&b',') {
            return Ok(());
        }
        let step = "the temporary folder's path is too long for a unix socket, or holds a comma; set TMPDIR to another";
        Err(failed(step)(self.path().display().to_string()))
    }

    fn hand_over(&self, path: &Path) -> Result<(), Error> {
        let Some((user, group)) = self.account else { return Ok(()) };
        chown(path, Some(user), Some(group)).map_err(failed(format!(
            "cannot hand {} over to the server's account; run as another user than root",
            path.display()
        )))
    }

    /// Writes a file that only the owner can read.
    pub(super) fn write(&self, name: &str, contents: &[u8]) -> Result<PathBuf, Error> {
        let path = self.path().join(name);
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(&path);
        file.and_then(|mut file| file.write_all(contents))
            .map_err(failed(format!("cannot write {}", path.display())))?;
        self.hand_over(&path)?;
        Ok(path)
    }

    /// A program as the owner of the folder.
    pub(super) fn run(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = quiet(program);
        command.current_dir(self.path());
        if let Some((user, group)) = self.account {
            command.uid(user).gid(group);
        }
        command
    }
}

/// A program apart from our terminal and its Ctrl-C, and from our environment: its PG* variables
/// are for another server, and its AWS credentials are nobody else's.
pub(super) fn quiet(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let kept = ["PATH", "TMPDIR", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"];
    let kept = kept.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
    command.env_clear().envs(kept).env("LC_ALL", "C");
    command
}

/// An account for a server that root starts.
fn unprivileged() -> Result<(u32, u32), Error> {
    let number = |option: &str, name: &str| {
        let output = Command::new("id").args([option, name]).output().ok()?;
        String::from_utf8_lossy(&output.stdout).trim().parse().ok()
    };
    let account = ["postgres", "nobody"]
        .into_iter()
        .find_map(|name| Some((number("-u", name)?, number("-g", name)?)));
    account.ok_or_else(|| {
        failed("PostgreSQL does not run as root")(
            "there is neither an account postgres nor nobody; create one",
        )
    })
}
