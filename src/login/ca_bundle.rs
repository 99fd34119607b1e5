//! [`CaBundle`]: the root certificates for libpq, without those of other regions.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use openssl::nid::Nid;
use openssl::x509::X509;
use parking_lot::Mutex;
use rustix::fs::{MemfdFlags, memfd_create};

use crate::token::is_region;

/// A file of root certificates, as `sslrootcert` names it.
///
/// libpq reads and parses the file at each login. AWS' bundle for all regions costs ten times the
/// CPU of the login. So libpq gets a shorter file without the root certificates of other regions.
/// This can only remove trust.
pub(crate) struct CaBundle {
    file: PathBuf,
    regions: Vec<String>,
    last: Mutex<Option<(Stamp, Option<Arc<InMemory>>)>>,
}

/// Inode, size, and the time of the last change in seconds and nanoseconds.
type Stamp = (u64, u64, i64, i64);

/// A file in memory, and the path by which this process opens it. Nothing has to be removed when
/// the process ends.
type InMemory = (File, String);

impl CaBundle {
    pub(crate) fn new(file: impl Into<PathBuf>, regions: Vec<String>) -> CaBundle {
        CaBundle { file: file.into(), regions, last: Mutex::new(None) }
    }

    /// Returns the shorter file. It is made again when the original has changed. Returns `None` if
    /// there is nothing to leave out, or if the system cannot do this.
    pub(crate) fn trimmed(&self) -> Option<Arc<InMemory>> {
        let data = fs::metadata(&self.file).ok()?;
        let stamp = (data.ino(), data.size(), data.ctime(), data.ctime_nsec());
        let known = self.last.lock().clone().filter(|(known, _)| *known == stamp);
        let trimmed = match known {
            Some((_, trimmed)) => trimmed,
            // Not under the lock, because it logs. Two threads may do the same work once.
            None => {
                let trimmed = self.trim();
                *self.last.lock() = Some((stamp, trimmed.clone()));
                trimmed
            }
        };
        // A process that changed its user may not be allowed to open the file again.
        trimmed.filter(|in_memory| File::open(&in_memory.1).is_ok())
    }

    fn trim(&self) -> Option<Arc<InMemory>> {
        let kept = without_other_regions(&fs::read(&self.file).ok()?, &self.regions)?;
        match in_memory(&kept) {
            Ok(file) => Some(Arc::new(file)),
            Err(error) => {
                let file = self.file.display();
                log::debug!(
                    "{file} is used as it is, because no file in memory is possible: {error}"
                );
                None
            }
        }
    }
}

fn in_memory(pem: &[u8]) -> io::Result<InMemory> {
    let mut file = File::from(memfd_create("diesel-rds-iam-ca-bundle", MemfdFlags::CLOEXEC)?);
    file.write_all(pem)?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok((file, path))
}

/// Returns the certificates of these regions and those that name no region. Returns `None` if those
/// are all, or if the file contains anything else.
fn without_other_regions(pem: &[u8], regions: &[String]) -> Option<Vec<u8>> {
    let all = X509::stack_from_pem(pem).ok()?;
    let blocks = pem.windows(BEGIN.len()).filter(|window| *window == BEGIN).count();
    let is_ours = |root: &&X509| region_of(root).is_none_or(|region| regions.contains(&region));
    let kept: Vec<&X509> = all.iter().filter(is_ours).collect();
    if kept.len() == all.len() || blocks != all.len() || kept.is_empty() {
        return None;
    }
    let pem: Result<Vec<Vec<u8>>, _> = kept.into_iter().map(|root| root.to_pem()).collect();
    Some(pem.ok()?.concat())
}

const BEGIN: &[u8] = b"-----BEGIN ";

/// Returns the region in `Amazon RDS eu-west-1 Root CA RSA2048 G1`.
fn region_of(root: &X509) -> Option<String> {
    let entry = root.subject_name().entries_by_nid(Nid::COMMONNAME).next()?;
    let name = entry.data().to_string().ok()?;
    let region = name.strip_prefix("Amazon RDS ")?.split(' ').next()?;
    is_region(region).then(|| region.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of us-east-1, eu-west-1 twice, and three that name no region.
    const BUNDLE: &[u8] = include_bytes!("../../tests/data/roots.pem");

    fn names(pem: &[u8]) -> Vec<String> {
        let name = |root: &X509| {
            root.subject_name()
                .entries_by_nid(Nid::COMMONNAME)
                .next()
                .unwrap()
                .data()
                .to_string()
                .unwrap()
        };
        X509::stack_from_pem(pem).unwrap().iter().map(name).collect()
    }

    fn kept(pem: &[u8], regions: &[&str]) -> Option<Vec<String>> {
        let regions: Vec<String> = regions.iter().map(|region| (*region).to_owned()).collect();
        without_other_regions(pem, &regions).map(|kept| names(&kept))
    }

    #[test]
    fn root_certificates_of_other_regions_are_left_out() {
        let others = [
            "Amazon RDS Root 2019 CA",
            "Amazon Root CA 1",
            "Amazon RDS Preview us-east-2 Root CA RSA2048 G1",
        ];
        let of =
            |ours: &[&str]| Some([ours, &others].concat().into_iter().map(str::to_owned).collect());
        let american = "Amazon RDS us-east-1 Root CA RSA2048 G1";
        let irish = ["Amazon RDS eu-west-1 Root CA ECC384 G1", "Amazon RDS eu-west-1 2019 CA"];
        assert_eq!(kept(BUNDLE, &["us-east-1"]), of(&[american]));
        assert_eq!(kept(BUNDLE, &["eu-west-1"]), of(&irish));
        assert_eq!(kept(BUNDLE, &["ap-south-1"]), of(&[]));
        assert_eq!(kept(BUNDLE, &["eu-west-1", "us-east-1"]), None, "nothing to leave out");
    }

    #[test]
    fn a_file_with_anything_else_is_not_changed() {
        let first =
            &BUNDLE[..BUNDLE.windows(BEGIN.len()).skip(1).position(|it| it == BEGIN).unwrap() + 1];
        let cases: [(&str, Vec<u8>); 4] = [
            ("only roots of other regions", first.to_vec()),
            (
                "a revocation list",
                [BUNDLE, b"-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n"].concat(),
            ),
            ("cut off", BUNDLE[..BUNDLE.len() - 40].to_vec()),
            ("no certificate", b"nothing".to_vec()),
        ];
        for (what, pem) in cases {
            assert_eq!(kept(&pem, &["eu-west-1"]), None, "{what}");
        }
    }

    #[test]
    fn only_a_changed_file_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("roots.pem");
        let roots = CaBundle::new(&file, vec!["eu-west-1".into()]);
        assert!(roots.trimmed().is_none(), "the file does not exist");
        fs::write(&file, BUNDLE).unwrap();
        let first = roots.trimmed().unwrap();
        assert_eq!(names(&fs::read(&first.1).unwrap()).len(), 5);
        assert!(Arc::ptr_eq(&first, &roots.trimmed().unwrap()));
        fs::write(&file, [BUNDLE, BUNDLE].concat()).unwrap();
        let second = roots.trimmed().unwrap();
        assert_eq!(names(&fs::read(&second.1).unwrap()).len(), 10);
        assert_eq!(
            names(&fs::read(&first.1).unwrap()).len(),
            5,
            "a login in progress keeps its file"
        );
    }
}
