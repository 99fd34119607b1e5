//! The targets of a connection string, and the region of each.

use super::inherited::inherited;
use super::target::{RegionFrom, Target};
use crate::conninfo::{Host, IamConninfo, Keywords, invalid, one_or_one_for_each, signed_host};
use crate::credentials::{configured_region, profile_name, unreadable_files};
use crate::error::Error;
use crate::token::{Endpoint, HostKind, HostName, is_region};

/// Returns the hosts to dial, each with the endpoint to sign for: the host's own name, or the one
/// that `iam_host` has for it.
pub(crate) fn targets(
    conninfo: &IamConninfo,
    keywords: &Keywords,
    profile: Option<&str>,
) -> Result<Vec<Target>, Error> {
    let hosts = conninfo.hosts();
    let iam_hosts = match keywords.iam_host.as_deref() {
        Some(list) => {
            one_or_one_for_each("iam_host", list, hosts.len())?.into_iter().map(Some).collect()
        }
        None => vec![None; hosts.len()],
    };
    let targets = hosts.iter().zip(iam_hosts);
    targets.map(|(host, iam_host)| target(conninfo, keywords, profile, host, iam_host)).collect()
}

fn target(
    conninfo: &IamConninfo,
    keywords: &Keywords,
    profile: Option<&str>,
    host: &Host,
    iam_host: Option<&str>,
) -> Result<Target, Error> {
    if iam_host == Some("") {
        return invalid("iam_host has an empty item; name an endpoint there, or remove the comma");
    }
    let name = signed_host(iam_host.unwrap_or(&host.name))?;
    let inherited = inherited(&name);
    let inherited_region = || inherited.as_ref().map(|endpoint| endpoint.region().to_owned());
    let region = keywords.region_name.clone().or_else(inherited_region);
    let (region, region_from) = region_for(&name, region, profile)?;
    let inherited_port = inherited.as_ref().map(Endpoint::port);
    let port = keywords.iam_port.or(inherited_port).unwrap_or(host.port);
    let endpoint = Endpoint::new(name.as_str(), port, &region)?;
    Ok(Target { user: conninfo.user().to_owned(), host: host.clone(), endpoint, region_from })
}

/// Returns the region: the setting, else the one in the host name, else that of the AWS
/// configuration. Never a guess.
fn region_for(
    name: &HostName,
    setting: Option<String>,
    profile: Option<&str>,
) -> Result<(String, RegionFrom), Error> {
    match (setting, name.region()) {
        (Some(region), Some(in_name)) if region != in_name => {
            let name = name.as_str();
            log::warn!("region_name={region} is used to sign, but {name} is in {in_name}");
            Ok((region, RegionFrom::Setting))
        }
        (Some(region), _) => Ok((region, RegionFrom::Setting)),
        (None, Some(in_name)) => Ok((in_name.to_owned(), RegionFrom::HostName)),
        // AWS_REGION is the region of this program. The writer of a global database can be
        // elsewhere.
        (None, None) if name.kind() == HostKind::GlobalWriter => Err(Error::Region {
            host: name.as_str().to_owned(),
            reason: "the name of a global database contains no region, and its writer can move"
                .into(),
        }),
        (None, None) => Ok((region_of_configuration(name, profile)?, RegionFrom::Configuration)),
    }
}

fn region_of_configuration(name: &HostName, profile: Option<&str>) -> Result<String, Error> {
    let host = name.as_str().to_owned();
    match configured_region(profile) {
        Some(region) if is_region(&region) => Ok(region),
        Some(region) => {
            let reason = format!(
                "AWS_REGION or the AWS profile says {region:?}, which is not of the form eu-west-1"
            );
            Err(Error::Region { host, reason })
        }
        None => {
            let mut reasons = vec![format!(
                "the host name contains none, and neither AWS_REGION nor the AWS profile {:?} \
                 names one",
                profile_name(profile)
            )];
            reasons.extend(unreadable_files());
            Err(Error::Region { host, reason: reasons.join("; ") })
        }
    }
}
