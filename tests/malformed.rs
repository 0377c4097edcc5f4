//! Packets that nobody should send: none crashes the router, and each lands in exactly one counter with a name.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
};

use anyhow::{Context, Result, ensure};
use harness::{
    capture::Capture,
    client,
    cluster::{CLIENT, Cluster, Layout, VIP, vip},
    config::Service,
    netns::Namespace,
    packet::{Craft, ETHERNET, Frame, Mac, mac_of, show_mac},
    raw::RawSender,
    router::Router,
    wait::{self, PATIENCE},
    with_cluster,
};

/// Where the frames of a test come from: an address that takes part in nothing else.
fn stranger() -> SocketAddrV4 {
    SocketAddrV4::new(CLIENT, 31_337)
}

fn syn(cluster: &Cluster) -> Craft {
    Craft::syn(stranger(), vip(80)).between(mac_of(CLIENT), cluster.router_mac())
}

fn datagram(cluster: &Cluster, data: &[u8]) -> Craft {
    Craft::udp(stranger(), vip(53), data).between(mac_of(CLIENT), cluster.router_mac())
}

/// A router with a TCP and a UDP service, whose servers need not run.
fn start(cluster: &Cluster) -> Result<Router> {
    let udp = Service::udp("nat", vip(53)).server(cluster.endpoint(0, 53), 1);
    // Neighbours are found once, and believed for an hour: no ARP to be counted among the frames of a test.
    let router = cluster.start_router(&cluster.config().service(cluster.web()).service(udp))?;
    for twin in ["wan", "lan"] {
        cluster.router.sysctl(&format!("net/ipv4/neigh/{twin}/base_reachable_time_ms"), 3_600_000)?;
    }
    ensure!(client::get(&cluster.client, vip(80), 6)?.failed.is_empty());
    let believe = |machine: &Namespace, interface: &str, address: Ipv4Addr, mac: Mac, state: &str| {
        machine.ip(&format!("neigh replace {address} dev {interface} lladdr {} nud {state}", show_mac(mac)))
    };
    let layout = cluster.layout();
    believe(&cluster.router, "wan", CLIENT, mac_of(CLIENT), "reachable")?;
    for address in [VIP, layout.router()] {
        believe(&cluster.client, "eth0", address, cluster.router_mac(), "permanent")?;
    }
    for (index, server) in cluster.real_servers.iter().enumerate() {
        let address = layout.real_server(index);
        believe(&cluster.router, "lan", address, mac_of(address), "reachable")?;
        believe(server, "eth0", layout.gateway(), mac_of(layout.gateway()), "permanent")?;
        // Whatever arrives is swallowed: no answers among the frames of a test either.
        server.nft(
            "table netdev silent {\n\
             chain eth0 { type filter hook ingress device \"eth0\" priority 0; policy drop; }\n}\n",
        )?;
    }
    // Linux on the router may have something to say to the stranger; what it says is not received by the router.
    cluster
        .client
        .nft("table ip silent {\nchain output { type filter hook output priority 0; policy drop; }\n}\n")?;
    Ok(router)
}

/// Sends each frame alone, and returns which counter it moved; fails unless it was exactly one, by one.
fn fates(
    router: &Router,
    sender: &RawSender,
    frames: &[(String, Vec<u8>)],
) -> Result<BTreeMap<String, String>> {
    let mut fates = BTreeMap::new();
    let mut before = router.quiet()?;
    for (what, frame) in frames {
        sender.send(frame).with_context(|| what.clone())?;
        let after = wait::until(&format!("{what} is counted"), PATIENCE, || {
            let now = router.counters()?;
            ensure!(now.received() > before.received() && now.workers.iter().all(|worker| worker.accounts()));
            Ok(now)
        })?;
        ensure!(after.received() == before.received() + 1, "{what}: {before:?} became {after:?}");
        let old = before.fates();
        let moved: Vec<_> = after
            .fates()
            .into_iter()
            .filter(|(name, count)| *count != old.get(name).copied().unwrap_or(0))
            .collect();
        let [(name, count)] = &moved[..] else { anyhow::bail!("{what} moved {moved:?}") };
        ensure!(*count == old.get(name).copied().unwrap_or(0) + 1, "{what} moved {moved:?}");
        fates.insert(what.clone(), name.clone());
        before = after;
    }
    Ok(fates)
}

/// Sends the frames; all must land under a name, and none may be sent on except those that `may_pass`.
fn refuse(frames: impl FnOnce(&Cluster) -> Vec<(String, Vec<u8>)>, may_pass: &[&str]) -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let router = start(cluster)?;
        let sender = RawSender::open(&cluster.client, "eth0")?;
        let fates = fates(&router, &sender, &frames(cluster))?;
        for (what, fate) in &fates {
            eprintln!("{what}: {fate}");
            let passed = fate == "forwarded";
            ensure!(!passed || may_pass.iter().any(|start| what.starts_with(start)), "{what} was sent on");
        }
        still_serves(cluster, &router)?;
        router.finish()
    })
}

/// After all that, real clients are served as before.
fn still_serves(cluster: &Cluster, router: &Router) -> Result<()> {
    cluster.client.nft("delete table ip silent\n")?;
    for server in &cluster.real_servers {
        server.nft("delete table netdev silent\n")?;
    }
    let served = client::get(&cluster.client, vip(80), 30)?;
    ensure!(served.counts()?.iter().sum::<u64>() == 30, "{served:?}");
    ensure!(!router.log().to_lowercase().contains("panic"), "{}", router.log());
    Ok(())
}

/// All beginnings of a frame, from a bare Ethernet header on; the whole frame is not one of them.
fn beginnings(name: &str, frame: &[u8]) -> Vec<(String, Vec<u8>)> {
    (ETHERNET..frame.len())
        .map(|length| (format!("{name} cut at {length}"), frame[..length].to_vec()))
        .collect()
}

#[test]
fn truncated_at_every_byte() -> Result<()> {
    refuse(
        |cluster| {
            let mut frames = beginnings("syn", &Craft { data: b"data".to_vec(), ..syn(cluster) }.build());
            frames.extend(beginnings("datagram", &datagram(cluster, b"data").build()));
            let options = Craft { options: vec![1; 8], ..syn(cluster) };
            frames.extend(beginnings("options", &options.build()));
            let ping = Craft::ping(CLIENT, VIP).between(mac_of(CLIENT), cluster.router_mac());
            frames.extend(beginnings("ping", &ping.build()));
            frames
        },
        &[],
    )
}

#[test]
fn bad_lengths() -> Result<()> {
    refuse(
        |cluster| {
            let mut frames = Vec::new();
            for total in [0, 1, 19, 20, 21, 39, 41, 60, 1500, 65535] {
                let craft = Craft { total_length: Some(total), ..syn(cluster) };
                frames.push((format!("syn with total length {total}"), craft.build()));
            }
            for header in (0..16).filter(|words| *words != 5) {
                let craft = Craft { version_and_length: Some(0x40 | header), ..syn(cluster) };
                frames.push((format!("syn with a header of {header} words"), craft.build()));
            }
            for version in (0..16).filter(|version| *version != 4) {
                let craft = Craft { version_and_length: Some(version << 4 | 5), ..syn(cluster) };
                frames.push((format!("version {version}"), craft.build()));
            }
            for offset in (0..16).filter(|offset| *offset != 5) {
                let craft = Craft { data_offset: Some(offset), ..syn(cluster) };
                frames.push((format!("syn with data offset {offset}"), craft.build()));
            }
            for length in [0, 1, 7, 13, 100, 65535] {
                let craft = Craft { udp_length: Some(length), ..datagram(cluster, b"data") };
                frames.push((format!("datagram with length {length}"), craft.build()));
            }
            frames
        },
        &[],
    )
}

#[test]
fn bad_checksums() -> Result<()> {
    refuse(
        |cluster| {
            let spoils = [1, 0x0100, 0x8000, 0xffff - 1];
            let headers = spoils.map(|spoil| {
                (format!("header {spoil}"), Craft { spoil_header: spoil, ..syn(cluster) }.build())
            });
            headers.into_iter().collect()
        },
        &[],
    )
}

#[test]
fn a_bad_transport_checksum_is_dropped_or_passed_on_as_bad_as_it_came() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let router = start(cluster)?;
        let sender = RawSender::open(&cluster.client, "eth0")?;
        let lan = Capture::start(&cluster.lan, "router", "ip")?;
        let frames = vec![
            ("syn".to_owned(), Craft { spoil_transport: 1, ..syn(cluster) }.build()),
            ("datagram".to_owned(), Craft { spoil_transport: 1, ..datagram(cluster, b"data") }.build()),
            ("good datagram".to_owned(), datagram(cluster, b"last").build()),
        ];
        let fates = fates(&router, &sender, &frames)?;
        ensure!(fates["good datagram"] == "forwarded", "{fates:?}");
        let passed = lan.finish("the good datagram", |frames| {
            frames.iter().filter_map(Frame::udp).any(|udp| udp.data() == b"last")
        })?;
        for frame in passed.iter().filter(|frame| frame.udp().is_none_or(|udp| udp.data() != b"last")) {
            let Some(ip) = frame.ipv4().filter(|ip| ip.source() == CLIENT) else { continue };
            ensure!(!ip.checksums_are_right(), "a bad checksum was made good: {frame:02x?}");
        }
        still_serves(cluster, &router)?;
        router.finish()
    })
}

#[test]
fn options_expired_packets_and_other_protocols() -> Result<()> {
    refuse(
        |cluster| {
            let mut frames = Vec::new();
            // No operation, end of list, record route, timestamp, loose and strict source route, and nonsense
            // lengths (RFC 791, 3.1).
            let options: [(&str, Vec<u8>); 8] = [
                ("options of no operation", vec![1, 1, 1, 1]),
                ("options that end", vec![0, 0, 0, 0]),
                ("options that record the route", vec![7, 7, 4, 0, 0, 0, 0, 0]),
                ("options that ask the time", vec![68, 8, 5, 0, 0, 0, 0, 0]),
                ("options with a loose route", vec![131, 7, 4, 10, 0, 0, 11, 0]),
                ("options with a strict route", vec![137, 7, 4, 10, 0, 0, 11, 0]),
                ("options of length 0", vec![7, 0, 0, 0]),
                ("options longer than the header", vec![7, 255, 4, 0]),
            ];
            for (what, options) in options {
                frames.push((what.to_owned(), Craft { options, ..syn(cluster) }.build()));
            }
            for ttl in [0, 1] {
                frames.push((format!("time to live {ttl}"), Craft { ttl, ..syn(cluster) }.build()));
            }
            for protocol in [0, 2, 41, 47, 50, 132, 255] {
                let craft = Craft { protocol, data: vec![9; 40], ..syn(cluster) };
                frames.push((format!("protocol {protocol}"), craft.build()));
            }
            frames
        },
        // Options may be passed on unread, as a router that need not act on them may.
        &["options"],
    )
}

#[test]
fn fragments() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let router = start(cluster)?;
        let sender = RawSender::open(&cluster.client, "eth0")?;
        let before = router.quiet()?;
        // Whole, in two parts, both orders; then parts that overlap, miss, and reach beyond the end of the world.
        // The socket driver has Linux put fragments together, so one or two packets may come of two parts, or none
        // of what does not fit together: whatever comes is counted under a name.
        let parts: [&[(u16, usize)]; 6] = [
            &[(0x2000, 64), (0x0008, 64)],
            &[(0x0008, 64), (0x2000, 64)],
            &[(0x2000, 64), (0x2004, 64), (0x0010, 8)],
            &[(0x2008, 64), (0x0020, 64)],
            &[(0x1fff, 64)],
            &[(0x2001, 3), (0x0000, 1400)],
        ];
        for parts in parts {
            for (fragment, length) in parts {
                let craft = Craft { fragment: *fragment, ..datagram(cluster, &vec![7; *length]) };
                sender.send(&craft.build())?;
            }
        }
        sender.send(&datagram(cluster, b"behind them").build())?;
        wait::until("what came behind them is counted", PATIENCE, || {
            let now = router.counters()?;
            ensure!(
                now.received() > before.received() && now.fates()["forwarded"] > before.fates()["forwarded"]
            );
            Ok(())
        })?;
        still_serves(cluster, &router)?;
        router.finish()
    })
}

#[test]
fn strange_flags_and_addresses() -> Result<()> {
    refuse(
        |cluster| {
            let mut frames: Vec<_> = (0..=255_u8)
                .map(|flags| {
                    // A port for each, so that none belongs to the connection of another.
                    let source = SocketAddrV4::new(CLIENT, 20_000 + u16::from(flags));
                    (
                        format!("flags {flags:02x}"),
                        Craft { flags, source: source.into(), ..syn(cluster) }.build(),
                    )
                })
                .collect();
            for source in [
                "0.0.0.0:1",
                "127.0.0.1:80",
                "192.0.2.10:80",
                "192.0.2.255:9",
                "224.0.0.1:9",
                "255.255.255.255:9",
            ] {
                let source = source.parse().expect("an address");
                frames.push((format!("from {source}"), Craft { source, ..syn(cluster) }.build()));
            }
            for destination in
                ["0.0.0.0:80", "127.0.0.1:80", "224.0.0.1:80", "255.255.255.255:80", "192.0.2.10:0"]
            {
                let destination = destination.parse().expect("an address");
                frames.push((format!("to {destination}"), Craft { destination, ..syn(cluster) }.build()));
            }
            frames.push((
                "from port 0".into(),
                Craft { source: SocketAddrV4::new(CLIENT, 0).into(), ..syn(cluster) }.build(),
            ));
            frames.push((
                "from a group MAC".into(),
                syn(cluster).between([1; 6], cluster.router_mac()).build(),
            ));
            frames
                .push(("to everybody's MAC".into(), syn(cluster).between(mac_of(CLIENT), [0xff; 6]).build()));
            frames.push((
                "to another MAC".into(),
                syn(cluster).between(mac_of(CLIENT), [2, 9, 9, 9, 9, 9]).build(),
            ));
            frames
        },
        &["flags", "from "],
    )
}

#[test]
fn runts_and_unknown_ethertypes() -> Result<()> {
    refuse(
        |cluster| {
            let mut frames = Vec::new();
            for ethertype in
                [0, 1, 46, 0x05dc, 0x0600, 0x0806, 0x0800, 0x86dd, 0x8100, 0x88a8, 0x88cc, 0xffff]
            {
                let header = Craft { ethertype, ..syn(cluster) }.build()[..ETHERNET].to_vec();
                // Linux swallows a tag that is cut off before packet sockets see it.
                let tagged = ethertype == 0x8100 || ethertype == 0x88a8;
                for length in
                    [0, 1, 4, 8, 20, 27, 45, 46].into_iter().filter(|length| !tagged || *length >= 8)
                {
                    let mut frame = header.clone();
                    frame.resize(ETHERNET + length, 0);
                    frames.push((format!("ethertype {ethertype:04x} with {length} zeros"), frame));
                }
            }
            frames
        },
        &[],
    )
}

#[test]
fn jumbo() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let router = start(cluster)?;
        // The wire carries more than the port's 1500 bytes.
        cluster.client.ip("link set eth0 mtu 9000")?;
        cluster.router.ip("link set wan0 mtu 9000")?;
        let sender = RawSender::open(&cluster.client, "eth0")?;
        let frames: Vec<_> = [1481, 1600, 1900, 2000, 2100, 4000, 8900]
            .into_iter()
            .flat_map(|data| {
                [
                    (format!("a datagram of {data}"), datagram(cluster, &vec![5; data]).build()),
                    (format!("a segment of {data}"), Craft { data: vec![5; data], ..syn(cluster) }.build()),
                ]
            })
            .collect();
        let fates = fates(&router, &sender, &frames)?;
        eprintln!("{fates:#?}");
        // Passing it on under the name of a success would be a lie: the next wire does not carry it.
        ensure!(fates.values().all(|fate| fate != "forwarded"), "{fates:?}");
        still_serves(cluster, &router)?;
        router.finish()
    })
}

#[test]
fn noise_of_every_length_to_both_ports() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let _nginx = cluster.start_web()?;
        let router = start(cluster)?;
        let senders =
            [RawSender::open(&cluster.client, "eth0")?, RawSender::open(&cluster.real_servers[0], "eth0")?];
        let macs = [cluster.router_mac(), mac_of(cluster.layout().gateway())];
        let mut state = 1_u64;
        for round in 0..4000_usize {
            for (sender, mac) in senders.iter().zip(macs) {
                // A sound beginning of growing length, then noise (xorshift64).
                let whole = Craft { data: vec![0; 60], ..syn(cluster) }.between(mac_of(CLIENT), mac).build();
                let mut frame = whole[..ETHERNET + round % 48].to_vec();
                frame.resize_with(ETHERNET + 1 + round % 150, || {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state as u8
                });
                sender.send(&frame)?;
                // A burst is never larger than the driver's ring, and behind it comes a datagram that counts.
                if round % 100 == 99 {
                    sender.send(&datagram(cluster, b"mark").between(mac_of(CLIENT), mac).build())?;
                }
            }
            if round % 100 == 99 {
                let marks = (round as u64 + 1) / 100 * 2;
                wait::until("the marks behind the noise are counted", PATIENCE, || {
                    let services = router.services()?;
                    let marked: u64 = services.iter().map(|service| service.stats.packets_in).sum();
                    let marked = marked - services[0].stats.packets_in;
                    ensure!(marked == marks, "{marked} of {marks}");
                    Ok(())
                })?;
            }
        }
        router.assert_accounts()?;
        still_serves(cluster, &router)?;
        router.finish()
    })
}
