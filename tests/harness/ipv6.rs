//! IPv6 beside the IPv4 of a cluster: the same machines and wires, with an address of the other family each.
//!
//! ```text
//!   client 2001:db8:2::100    router 2001:db8:2::1    VIP 2001:db8:2::10
//!   real servers   two-armed: 2001:db8:a::11 .. 13 behind 2001:db8:a::1     one-armed: 2001:db8:2::11 .. 13
//! ```

use std::net::{Ipv6Addr, SocketAddr};

use anyhow::Result;

use crate::{
    cluster::{Cluster, Layout},
    config::{Config, Service},
    netns::Namespace,
};

/// The virtual address of every layout.
pub const VIP: Ipv6Addr = on_the_wan(0x10);
/// The client's address.
pub const CLIENT: Ipv6Addr = on_the_wan(0x100);
/// The router's address towards the clients.
pub const ROUTER: Ipv6Addr = on_the_wan(1);

const fn on_the_wan(host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, host)
}

const fn on_the_lan(host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0xa, 0, 0, 0, 0, host)
}

/// The router's address towards the real servers.
pub fn gateway(layout: Layout) -> Ipv6Addr {
    match layout {
        Layout::TwoArmed => on_the_lan(1),
        Layout::OneArmed => ROUTER,
    }
}

/// The address of the `index`th real server.
pub fn real_server(layout: Layout, index: usize) -> Ipv6Addr {
    let host = 0x11 + index as u16;
    match layout {
        Layout::TwoArmed => on_the_lan(host),
        Layout::OneArmed => on_the_wan(host),
    }
}

/// A port of the virtual address.
pub fn vip(port: u16) -> SocketAddr {
    (VIP, port).into()
}

/// A port of the `index`th real server.
pub fn endpoint(cluster: &Cluster, index: usize, port: u16) -> SocketAddr {
    (real_server(cluster.layout(), index), port).into()
}

/// A service on this port of the virtual address without servers: of `protocol`, in the layout's mode, in turn.
pub fn service(cluster: &Cluster, protocol: &'static str, port: u16) -> Service {
    Service { protocol, ..Service::tcp(cluster.layout().mode(), vip(port)) }.scheduler("rr")
}

/// As [`service`], with the three real servers on this port of theirs.
pub fn balanced(cluster: &Cluster, protocol: &'static str, port: u16, server_port: u16) -> Service {
    (0..cluster.real_servers.len()).fold(service(cluster, protocol, port), |service, index| {
        service.server(endpoint(cluster, index, server_port), 1)
    })
}

/// The web service: port 80 of the virtual address, the three nginx behind it.
pub fn web(cluster: &Cluster) -> Service {
    balanced(cluster, "tcp", 80, cluster.layout().http_port())
}

/// As [`Cluster::config`], with IPv6 on the ports.
pub fn config(cluster: &Cluster) -> Config {
    let mut config = cluster.config();
    for (port, address) in config.ports.iter_mut().zip([ROUTER, gateway(cluster.layout())]) {
        port.addresses.push(format!("{address}/64"));
    }
    config
}

/// Runs the body of a test on a cluster with addresses of both families.
pub fn with_cluster(layout: Layout, body: impl FnOnce(&Cluster) -> Result<()>) -> Result<()> {
    crate::with_cluster(layout, |cluster| {
        give_addresses(cluster)?;
        body(cluster)
    })
}

fn give_addresses(cluster: &Cluster) -> Result<()> {
    let Cluster { client, router, real_servers, .. } = cluster;
    let layout = cluster.layout();
    switch_on(client, "eth0")?;
    client.ip(&format!("address add {CLIENT}/64 dev eth0 nodad"))?;
    for (index, server) in real_servers.iter().enumerate() {
        switch_on(server, "eth0")?;
        if layout == Layout::OneArmed {
            // Linux answers neighbour solicitations on an interface for this interface's addresses only: no word to
            // the others about what `lo` has.
            server.ip(&format!("address add {VIP}/128 dev lo nodad"))?;
        }
        let address = real_server(layout, index);
        let gateway = gateway(layout);
        server.ip(&format!("address add {address}/64 dev eth0 nodad\nroute add default via {gateway}"))?;
    }
    // The twins, which are not there yet; the raw wires stay without.
    router.sysctl("net/ipv6/conf/lo/disable_ipv6", 0)?;
    router.sysctl("net/ipv6/conf/default/disable_ipv6", 0)?;
    router.sysctl("net/ipv6/conf/all/forwarding", 1)
}

/// Switches IPv6 on: of a machine's own accord it says nothing, neither to routers nor about duplicates.
pub fn switch_on(machine: &Namespace, interface: &str) -> Result<()> {
    machine.sysctl("net/ipv6/conf/lo/disable_ipv6", 0)?;
    for (key, value) in
        [("accept_dad", 0), ("accept_ra", 0), ("router_solicitations", 0), ("disable_ipv6", 0)]
    {
        machine.sysctl(&format!("net/ipv6/conf/{interface}/{key}"), value)?;
    }
    Ok(())
}
