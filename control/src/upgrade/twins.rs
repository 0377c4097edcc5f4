//! What a predecessor has put on the twins, and what of that is to stay.

use std::collections::HashSet;
use std::net::IpAddr;

use super::OldTwin;
use crate::compile::PortLink;
use crate::config::Config;
use crate::net::{Linux, alone};

/// Takes ports' addresses away that this configuration does not have any more, and virtual ones that are a port's by now: of IPv6
/// Linux has an address once, whatever its length. The other virtual addresses that the predecessor has put there, each with its
/// interface, are from now on ours: who knows which are wanted takes the others away.
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
        let is_own = |address: &&IpAddr| port.addresses.iter().any(|prefix| prefix.address == **address);
        let (own, virtual_): (Vec<&IpAddr>, Vec<&IpAddr>) = old.placed.iter().partition(is_own);
        let former = old.addresses.iter().copied().filter(|address| !is_ours(address));
        for (address, length) in former.chain(own.into_iter().map(|&address| (address, alone(address)))) {
            if let Err(error) = linux.remove_address(link.ifindex, address, length).await {
                let error = format!("{error:#}");
                tracing::error!(%address, length, error, "an address that is not configured any more is still on its twin");
            }
        }
        placed.extend(virtual_.into_iter().map(|&address| (link.ifindex, address)));
    }
    placed
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::net::Twin;
    use crate::net::tests::in_namespace;
    use crate::ports::Known;

    #[test]
    fn what_was_virtual_and_is_the_ports_own_makes_way() {
        in_namespace(|| async {
            let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
            let mac = [2, 0, 0, 0, 0, 1];
            let linux = Linux::open().unwrap();
            let twin = Twin::create(&linux, "wan", mac, 1500, true).await.unwrap();
            let ifindex = twin.ifindex();
            let (former, now_own, stays) = (ip("2001:db8::1"), ip("2001:db8::10"), ip("2001:db8::11"));
            linux.add_address(ifindex, former, 64).await.unwrap();
            for address in [now_own, stays] {
                linux.add_virtual_address(ifindex, address).await.unwrap();
            }
            let text = "[workers]\ncores = [1]\n[[port]]\nname = 'wan'\ndevice = 'net_null'\n\
                        addresses = ['2001:db8::10/64']\n";
            let config = crate::config::parse(Path::new("f"), text.into()).unwrap();
            let links = [PortLink { ifindex, mac, mtu: 1500, device: Arc::new(Known::made_up()) }];
            let old =
                OldTwin { name: "wan".into(), addresses: vec![(former, 64)], placed: vec![now_own, stays] };
            let ours = take_over(&[old], &config, &links, &linux).await;
            assert_eq!(ours, [(ifindex, stays)].into());
            let held = linux.addresses().await.unwrap();
            assert!(held.contains(&(ifindex, stays, 128)), "{held:?}");
            assert!(!held.iter().any(|&(_, address, _)| address == former), "{held:?}");
            assert!(linux.add_address(ifindex, now_own, 64).await.unwrap(), "nothing is in its way");
        });
    }
}
