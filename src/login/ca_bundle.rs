//! The root certificates for libpq, less those of other regions.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use openssl::nid::Nid;
use openssl::x509::X509;
use parking_lot::Mutex;
use rustix::fs::{MemfdFlags, memfd_create};

use crate::token::is_region;

/// A file of root certificates, as `sslrootcert` names it.
///
/// libpq reads and parses the file at each connect, and AWS' bundle for all regions costs ten times
/// the CPU of the login. So libpq gets a shorter one, in which the roots of other regions are
/// missing. That can only take trust away.
pub(crate) struct Roots {
    file: PathBuf,
    regions: Vec<String>,
    last: Mutex<Option<(Stamp, Option<Arc<Trimmed>>)>>,
}

/// Tells one state of a file from another.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Stamp {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

/// A file in memory: nothing to remove when the process ends, however it does.
#[derive(Debug)]
pub(crate) struct Trimmed {
    _file: File,
    path: String,
}

impl Roots {
    pub(crate) fn new(file: impl Into<PathBuf>, regions: Vec<String>) -> Roots {
        Roots { file: file.into(), regions, last: Mutex::new(None) }
    }

    /// The shorter file, made anew when the original has changed; none where there is nothing to
    /// leave out, or where this system cannot do it: then the original serves.
    pub(crate) fn trimmed(&self) -> Option<Arc<Trimmed>> {
        let stamp = Stamp::of(&self.file).ok()?;
        let mut last = self.last.lock();
        let trimmed = match &*last {
            Some((known, trimmed)) if *known == stamp => trimmed.clone(),
            _ => {
                let trimmed = self.trim();
                *last = Some((stamp, trimmed.clone()));
                trimmed
            }
        };
        // A process that has changed its user may not open it any more.
        trimmed.filter(|trimmed| File::open(trimmed.path()).is_ok())
    }

    fn trim(&self) -> Option<Arc<Trimmed>> {
        let kept = without_other_regions(&fs::read(&self.file).ok()?, &self.regions)?;
        match Trimmed::new(&kept) {
            Ok(trimmed) => Some(Arc::new(trimmed)),
            Err(error) => {
                log::debug!(
                    "{} is used as it is, for there is no file in memory: {error}",
                    self.file.display()
                );
                None
            }
        }
    }
}

impl Stamp {
    fn of(file: &Path) -> io::Result<Stamp> {
        let data = fs::metadata(file)?;
        Ok(Stamp {
            inode: data.ino(),
            size: data.size(),
            changed: (data.ctime(), data.ctime_nsec()),
        })
    }
}

impl Trimmed {
    fn new(pem: &[u8]) -> io::Result<Trimmed> {
        let mut file = File::from(memfd_create("diesel-rds-iam-roots", MemfdFlags::CLOEXEC)?);
        file.write_all(pem)?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        Ok(Trimmed { _file: file, path })
    }

    /// What this process finds it by.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }
}

/// The certificates of these regions and those that name none; none where that is all, or where the
/// file holds anything else.
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

/// The region in `Amazon RDS eu-west-1 Root CA RSA2048 G1`.
fn region_of(root: &X509) -> Option<String> {
    let name =
        root.subject_name().entries_by_nid(Nid::COMMONNAME).next()?.data().to_string().ok()?;
    let region = name.strip_prefix("Amazon RDS ")?.split(' ').next()?;
    is_region(region).then(|| region.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of us-east-1, eu-west-1 twice, and three that name no region.
    const ROOTS: &[u8] = include_bytes!("../../tests/data/roots.pem");

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
    fn roots_of_other_regions_are_left_out() {
        let others = [
            "Amazon RDS Root 2019 CA",
            "Amazon Root CA 1",
            "Amazon RDS Preview us-east-2 Root CA RSA2048 G1",
        ];
        let of =
            |ours: &[&str]| Some([ours, &others].concat().into_iter().map(str::to_owned).collect());
        let american = "Amazon RDS us-east-1 Root CA RSA2048 G1";
        let irish = ["Amazon RDS eu-west-1 Root CA ECC384 G1", "Amazon RDS eu-west-1 2019 CA"];
        assert_eq!(kept(ROOTS, &["us-east-1"]), of(&[american]));
        assert_eq!(kept(ROOTS, &["eu-west-1"]), of(&irish));
        assert_eq!(kept(ROOTS, &["ap-south-1"]), of(&[]));
        assert_eq!(kept(ROOTS, &["eu-west-1", "us-east-1"]), None, "nothing to leave out");
    }

    #[test]
    fn what_is_not_a_bundle_of_roots_stays_as_it_is() {
        let first =
            &ROOTS[..ROOTS.windows(BEGIN.len()).skip(1).position(|it| it == BEGIN).unwrap() + 1];
        let cases: [(&str, Vec<u8>); 4] = [
            ("only roots of other regions", first.to_vec()),
            (
                "a revocation list",
                [ROOTS, b"-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n"].concat(),
            ),
            ("cut off", ROOTS[..ROOTS.len() - 40].to_vec()),
            ("no certificate", b"nothing".to_vec()),
        ];
        for (what, pem) in cases {
            assert_eq!(kept(&pem, &["eu-west-1"]), None, "{what}");
        }
    }

    #[test]
    fn a_changed_file_is_read_anew_and_an_unchanged_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("roots.pem");
        let roots = Roots::new(&file, vec!["eu-west-1".into()]);
        assert!(roots.trimmed().is_none(), "there is none");
        fs::write(&file, ROOTS).unwrap();
        let first = roots.trimmed().unwrap();
        assert_eq!(names(&fs::read(first.path()).unwrap()).len(), 5);
        assert!(Arc::ptr_eq(&first, &roots.trimmed().unwrap()));
        fs::write(&file, [ROOTS, ROOTS].concat()).unwrap();
        let second = roots.trimmed().unwrap();
        assert_eq!(names(&fs::read(second.path()).unwrap()).len(), 10);
        assert_eq!(
            names(&fs::read(first.path()).unwrap()).len(),
            5,
            "a login under way keeps its own"
        );
    }
}
