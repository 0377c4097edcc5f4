//! Neighbour discovery: Linux does for IPv6 on the twins what it does by ARP for IPv4, and RVS hears who else does.

use anyhow::{Result, ensure};
use harness::{
    capture::Capture,
    cluster::{CLIENT, Layout},
    netns::Namespace,
    packet::{Frame, mac_of, show_mac},
    router::Router,
    wait::{self, PATIENCE},
    with_cluster,
};

const ROUTER: &str = "2001:db8::1";
const VIP: &str = "2001:db8::10";
/// To whom an address is announced (ff02::1).
const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const ADVERTISEMENT: u8 = 136;

/// Who announces this address, by the source of the frame.
fn announcers<'a>(frames: &'a [Frame], address: &str) -> Vec<&'a Frame> {
    let address: std::net::Ipv6Addr = address.parse().unwrap_or(std::net::Ipv6Addr::UNSPECIFIED);
    let announces = |frame: &&Frame| {
        frame.bytes.get(38..78).is_some_and(|body| {
            body[..16] == ALL_NODES && body[16] == ADVERTISEMENT && body[24..] == address.octets()
        })
    };
    frames.iter().filter(announces).collect()
}

fn ping(client: &Namespace, address: &str) -> Result<()> {
    client.command("ping").words("-6 -c 1 -w 10").arg(address).run().map(drop)
}

fn has(router: &Namespace, address: &str) -> Result<bool> {
    Ok(router.command("ip").words("-6 address show dev wan").run()?.contains(&format!(" {address} ")))
}

#[test]
fn addresses_are_answered_for_announced_withdrawn_and_contested() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let client = &cluster.client;
        client.sysctl("net/ipv6/conf/eth0/disable_ipv6", 0)?;
        client.sysctl("net/ipv6/conf/eth0/accept_dad", 0)?;
        client.sysctl("net/ipv6/conf/eth0/ndisc_notify", 1)?;
        client.ip("address add 2001:db8::100/64 dev eth0")?;
        // Of what is made from here on.
        cluster.router.sysctl("net/ipv6/conf/default/disable_ipv6", 0)?;

        let config = cluster.config();
        let text = config.to_string().replace("192.0.2.1/24\"", &format!("192.0.2.1/24\", \"{ROUTER}/64\""));
        let service = format!("\n[[service]]\naddress = \"[{VIP}]:80\"\nmode = \"nat\"\n");
        let wire = Capture::start(client, "eth0", "icmp6")?;
        let router = Router::start_text(cluster, &(text + &service), &config)?;
        ping(client, ROUTER)?;
        ping(client, VIP)?;
        let frames = wire.finish("it is announced", |frames| !announcers(frames, VIP).is_empty())?;
        let mut macs = announcers(&frames, VIP).into_iter().map(Frame::source_mac);
        ensure!(macs.all(|mac| mac == cluster.router_mac()), "by somebody else");
        ensure!(
            has(&cluster.router, &format!("{ROUTER}/64"))? && has(&cluster.router, &format!("{VIP}/128"))?
        );

        // Out of service and back.
        router.rvs(&format!("withdraw {VIP}")).run()?;
        ensure!(!has(&cluster.router, &format!("{VIP}/128"))?, "it is still there");
        let wire = Capture::start(client, "eth0", "icmp6")?;
        router.rvs(&format!("announce {VIP}")).run()?;
        wire.finish("it is announced again", |frames| !announcers(frames, VIP).is_empty())?;

        // Another machine takes it.
        let rival = show_mac(mac_of(CLIENT));
        client.ip(&format!("address add {VIP}/128 dev eth0"))?;
        wait::until("the rival is named", PATIENCE, || {
            let log = router.log();
            ensure!(log.contains("is held by another machine as well") && log.contains(&rival), "{log}");
            Ok(())
        })?;
        router.finish()
    })
}

/// What a machine lacks is said before anything is made.
#[test]
fn a_machine_without_ipv6_is_told_what_to_do() -> Result<()> {
    with_cluster(Layout::OneArmed, |cluster| {
        let config = cluster.config();
        let text = config.to_string().replace("192.0.2.1/24", &format!("{ROUTER}/64"));
        let refused = Router::start_text(cluster, &text, &config).expect_err("IPv6 is off in its namespace");
        let refused = format!("{refused:#}");
        let expected = "port[0].addresses[0]: IPv6 is switched off on the twin; expected sysctl \
                        net.ipv6.conf.default.disable_ipv6 = 0";
        ensure!(refused.contains(expected), "{refused}");
        Ok(())
    })
}
