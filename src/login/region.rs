//! The targets of a connection string, and the region of each.

use super::inherited::inherited;
use super::target::{RegionFrom, Target};
use crate::conninfo::{IamConninfo, Keywords, invalid, one_or_one_for_each, signed_host};
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
    let hosts = &conninfo.hosts;
    let names = match &keywords.iam_host {
        Some(list) => one_or_one_for_each("iam_host", list, hosts.len())?,
        None => hosts.iter().map(|host| host.name.as_str()).collect(),
    };
    if keywords.iam_host.is_some() && names.contains(&"") {
        return invalid("iam_host has an empty item; name an endpoint there, or remove the comma");
    }
    let mut targets = Vec::new();
    for (host, name) in hosts.iter().zip(names) {
        let name = signed_host(name)?;
        let inherited = inherited(&name);
        let inherited_region = inherited.as_ref().map(|endpoint| endpoint.region().to_owned());
        let setting = keywords.region_name.clone().or(inherited_region);
        let (region, region_from) = region_for(&name, setting, profile)?;
        let inherited_port = inherited.as_ref().map(Endpoint::port);
        let port = keywords.iam_port.or(inherited_port).unwrap_or(host.port);
        let endpoint = Endpoint::new(name.as_str(), port, &region)?;
        let user = conninfo.user().to_owned();
        targets.push(Target { user, host: host.clone(), endpoint, region_from });
    }
    Ok(targets)
}

/// Returns the region: the setting, else the one in the host name, else that of the AWS
/// configuration. Never a guess.
fn region_for(
    name: &HostName,
    setting: Option<String>,
    profile: Option<&str>,
) -> Result<(String, RegionFrom), Error> {
    let host = name.as_str().to_owned();
    if let Some(region) = setting {
        if let Some(in_name) = name.region().filter(|in_name| *in_name != region) {
            log::warn!("region_name={region} is used to sign, but {host} is in {in_name}");
        }
        return Ok((region, RegionFrom::Setting));
    }
    if let Some(region) = name.region() {
        return Ok((region.to_owned(), RegionFrom::HostName));
    }
    let reason = match configured_region(profile) {
        // AWS_REGION is the region of this program. The writer of a global database can be
        // elsewhere.
        _ if name.kind() == HostKind::GlobalWriter => {
            "the name of a global database contains no region, and its writer can move".to_owned()
        }
        Some(region) if is_region(&region) => return Ok((region, RegionFrom::Configuration)),
        Some(region) => format!(
            "AWS_REGION or the AWS profile says {region:?}, which is not of the form eu-west-1"
        ),
        None => {
            let none = format!(
                "the host name contains none, and neither AWS_REGION nor the AWS profile {:?} \
                 names one",
                profile_name(profile)
            );
            [vec![none], unreadable_files()].concat().join("; ")
        }
    };
    Err(Error::Region { host, reason })
}
