//! What a predecessor has put on the twins, and what of that is to stay.

use std::collections::HashSet;
use std::net::IpAddr;

use super::OldTwin;
use crate::compile::PortLink;
use crate::config::Config;
use crate::net::Linux;

/// Takes ports' addresses away that this configuration does not have any more. The virtual addresses that the predecessor
/// has put there, each with its interface, are from now on ours: who knows which are wanted takes the others away.
pub async fn take_over(
    twins: &[OldTwin],
    config: &Config,
    links: &[PortLink],
    linux: &Linux,
) -> HashSet<(u32, IpAddr)> {
    let mut placed = HashSet::new();
    for (port, link) in config.ports.iter().zip(links) {
        let Some(old) = twins.iter().find(|twin| twin.name == port.name) else { continue };
        let is_ours = |&(address, length): &(IpAddr, u8)| {
            port.addresses.iter().any(|prefix| (prefix.address, prefix.length) == (address, length))
        };
        for &(address, length) in old.addresses.iter().filter(|address| !is_ours(address)) {
            if let Err(error) = linux.remove_address(link.ifindex, address, length).await {
                let error = format!("{error:#}");
                tracing::error!(%address, error, "an address that is not configured any more is still on its twin");
            }
        }
        placed.extend(old.placed.iter().map(|&address| (link.ifindex, address)));
    }
    placed
}
