//! The endpoints that `rds-iam exec` hands on in `RDS_IAM_ENDPOINTS`.

use super::target::Target;
use crate::token::{Endpoint, HostName};

/// `HOST:PORT/REGION`, separated by commas. libpq's variables cannot contain the port and the
/// region to sign for.
pub(crate) const ENDPOINTS: &str = "RDS_IAM_ENDPOINTS";

/// Returns the endpoint of this name that a parent `rds-iam` signed for.
pub(super) fn inherited(name: &HostName) -> Option<Endpoint> {
    find(&std::env::var(ENDPOINTS).ok()?, name)
}

fn find(list: &str, name: &HostName) -> Option<Endpoint> {
    list.split(',').find_map(|item| {
        let (host_and_port, region) = item.split_once('/')?;
        let (host, port) = host_and_port.rsplit_once(':')?;
        let endpoint = Endpoint::new(host, port.parse().ok()?, region).ok()?;
        (endpoint.name() == name).then_some(endpoint)
    })
}

/// Returns the value of [`ENDPOINTS`] for these targets: the endpoints that the host name and the
/// dialled port do not determine. `None` if there are none.
pub(crate) fn to_hand_on<'a>(targets: impl Iterator<Item = &'a Target>) -> Option<String> {
    let mut items: Vec<String> = targets
        .filter(|target| {
            let Target { host, endpoint, .. } = target;
            host.port != endpoint.port() || endpoint.name().region() != Some(endpoint.region())
        })
        .map(|Target { endpoint, .. }| format!("{endpoint}/{}", endpoint.region()))
        .collect();
    items.dedup();
    (!items.is_empty()).then(|| items.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_found_by_its_name() {
        let list = "nonsense,a.example.com:1/eu-west-1,b.example.com:2/us-east-1";
        let found = |name: &str| find(list, &HostName::parse(name).unwrap());
        let b = found("b.example.com").unwrap();
        assert_eq!((b.port(), b.region()), (2, "us-east-1"));
        assert!(found("c.example.com").is_none());
    }
}
