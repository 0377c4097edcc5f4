//! With a real Linux: each test in a network namespace of its own, on a thread of its own, so that nothing is left
//! behind. They need root.

use std::collections::HashSet;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use futures_util::FutureExt;
use nix::sched::{CloneFlags, unshare};
use tokio::time::timeout;

use super::*;

const MAC: [u8; 6] = [2, 0x52, 0x56, 0x53, 0, 1];
const PEER_MAC: [u8; 6] = [2, 0x52, 0x56, 0x53, 0, 2];
const OWN: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
const OWN6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
const PEER6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2));

/// Runs a test in a new namespace, or says loudly that it does not.
pub(crate) fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: this test makes a network namespace, which takes root");
        return;
    }
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// `ip` in the namespace of this thread.
fn sh(command: &str) {
    let status = Command::new("sh").args(["-c", command]).status().expect("run sh");
    assert!(status.success(), "{command}: {status}");
}

/// Waits until the mirror is as wanted, and says what kinds of changes it took.
async fn until(watcher: &mut Watcher, wanted: impl Fn(&Mirror) -> bool) -> Vec<Change> {
    let mut changes = Vec::new();
    while !wanted(watcher.mirror()) {
        let change = timeout(Duration::from_secs(10), watcher.changed()).await;
        let change = change.unwrap_or_else(|_| panic!("not as wanted: {:#?}", watcher.mirror()));
        changes.push(change.unwrap());
    }
    changes
}

async fn assert_quiet(watcher: &mut Watcher) {
    let change = timeout(Duration::from_millis(100), watcher.changed()).await;
    assert!(change.is_err(), "woken by {change:?}: {:#?}", watcher.mirror());
}

async fn wan(linux: &Linux) -> Twin {
    Twin::create(linux, "wan", MAC, 1400, true).await.unwrap()
}

/// Reads frames from the twin until one is wanted.
async fn frame(twin: &Twin, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut buffer = [0; 2048];
    let wait = async {
        loop {
            let length = twin.recv(&mut buffer).await.unwrap();
            if wanted(&buffer[..length]) {
                return buffer[..length].to_vec();
            }
        }
    };
    timeout(Duration::from_secs(10), wait).await.expect("the frame")
}

/// An ARP request (RFC 826) for this address.
fn is_arp_request(frame: &[u8], for_address: IpAddr) -> bool {
    let IpAddr::V4(for_address) = for_address else { return false };
    frame.len() >= 42
        && frame[12..22] == [8, 6, 0, 1, 8, 0, 6, 4, 0, 1]
        && frame[38..42] == for_address.octets()
}

fn arp_reply(request: &[u8], mac: [u8; 6]) -> Vec<u8> {
    let mut reply = request[..42].to_vec();
    reply[..6].copy_from_slice(&request[6..12]);
    reply[6..12].copy_from_slice(&mac);
    reply[21] = 2;
    reply[22..28].copy_from_slice(&mac);
    reply[28..32].copy_from_slice(&request[38..42]);
    reply[32..42].copy_from_slice(&request[22..32]);
    reply
}

#[test]
fn a_twin_that_has_got_another_mac_gets_its_own_back() {
    in_namespace(|| async {
        let mut watcher = Watcher::start().await.unwrap();
        let linux = watcher.handle();
        let twin = wan(&linux).await;
        let index = twin.ifindex();
        let has = |mac| move |m: &Mirror| m.links.get(&index).is_some_and(|link| link.mac == Some(mac));
        until(&mut watcher, has(MAC)).await;
        assert!(!linux.restore_mac(index, MAC).await.unwrap(), "it has it");
        for state in ["up", "down"] {
            sh(&format!("ip link set wan address 02:52:56:53:00:02 {state}"));
            assert!(until(&mut watcher, has(PEER_MAC)).await.contains(&Change::Other));
            assert!(linux.restore_mac(index, MAC).await.unwrap());
            until(&mut watcher, |m| {
                m.links[&index].mac == Some(MAC) && m.links[&index].up == (state == "up")
            })
            .await;
        }
    });
}

#[test]
fn a_twin_comes_as_asked_and_goes_when_dropped() {
    in_namespace(|| async {
        let mut watcher = Watcher::start().await.unwrap();
        let linux = watcher.handle();
        let twin = wan(&linux).await;
        let index = twin.ifindex();
        assert_eq!(linux.index_of("wan").await.unwrap(), Some(index));
        let expected = Link { name: "wan".into(), up: true, mac: Some(MAC), mtu: 1400 };
        until(&mut watcher, |m| m.links.get(&index) == Some(&expected)).await;
        drop(twin);
        let changes = until(&mut watcher, |m| !m.links.contains_key(&index)).await;
        assert_eq!(changes.last(), Some(&Change::Other));
        assert_eq!(linux.index_of("wan").await.unwrap(), None);
    });
}

#[test]
fn a_twin_is_inherited_with_all_that_is_on_it() {
    in_namespace(|| async {
        let mut watcher = Watcher::start().await.unwrap();
        let linux = watcher.handle();
        let twin = wan(&linux).await;
        let index = twin.ifindex();
        linux.add_address(index, OWN, 24).await.unwrap();
        linux.add_address(index, OWN6, 64).await.unwrap();
        sh("ip neighbour add 192.0.2.7 lladdr 02:00:00:00:00:07 nud reachable dev wan");
        // As an operator may have it who wants a default route by router advertisements.
        sh("echo 2 >/proc/sys/net/ipv6/conf/wan/accept_ra");
        let heirloom = twin.heirloom().unwrap();
        drop(twin);

        // As it was, and with another MTU; the neighbour is forgotten if the MAC is set.
        let twin = Twin::inherit(&linux, heirloom, "wan", MAC, 1400, true).await.unwrap();
        let heirloom = twin.heirloom().unwrap();
        drop(twin);
        let twin = Twin::inherit(&linux, heirloom, "wan", MAC, 1300, true).await.unwrap();
        assert_eq!(twin.ifindex(), index);
        let expected = Link { name: "wan".into(), up: true, mac: Some(MAC), mtu: 1300 };
        until(&mut watcher, |m| {
            m.links.get(&index) == Some(&expected)
                && m.addresses.is_superset(&[(index, OWN, 24), (index, OWN6, 64)].into())
                && m.neighbours.contains_key(&(index, IpAddr::from([192, 0, 2, 7])))
        })
        .await;
        sh("test $(cat /proc/sys/net/ipv6/conf/wan/accept_ra) = 2");
        // It still is one.
        linux.use_neighbour(index, PEER).await.unwrap();
        frame(&twin, |frame| is_arp_request(frame, PEER)).await;

        // One that is not there any more is made anew, under its own name.
        drop(twin);
        for ruin in ["ip link set wan name wan9", "ip link del wan"] {
            let twin = wan(&linux).await;
            let heirloom = twin.heirloom().unwrap();
            drop(twin);
            sh(ruin);
            let twin = Twin::inherit(&linux, heirloom, "wan", MAC, 1300, true).await.unwrap();
            assert_eq!(linux.index_of("wan").await.unwrap(), Some(twin.ifindex()), "{ruin}");
        }
    });
}

#[test]
fn a_name_that_is_taken_is_refused_with_the_remedy() {
    in_namespace(|| async {
        let linux = Linux::open().unwrap();
        let _twin = wan(&linux).await;
        sh("ip tuntap add persistent mode tap");
        for name in ["wan", "persistent", "lo"] {
            let error = Twin::create(&linux, name, MAC, 1500, true).await.err().unwrap().to_string();
            assert!(error.starts_with(&format!("interface {name} exists already")), "{error}");
            assert!(error.ends_with(&format!("ip link del {name}")), "{error}");
        }
    });
}

#[test]
fn addresses_and_routes_are_followed() {
    in_namespace(|| async {
        let mut watcher = Watcher::start().await.unwrap();
        let linux = watcher.handle();
        let twin = wan(&linux).await;
        let index = twin.ifindex();
        assert!(linux.add_address(index, OWN, 24).await.unwrap());
        assert!(!linux.add_address(index, OWN, 24).await.unwrap());
        let route = |destination: [u8; 4], length, metric, gateway| Route {
            destination: IpAddr::from(destination),
            length,
            metric,
            ifindex: index,
            gateway,
        };
        let connected = route([192, 0, 2, 0], 24, 0, None);
        until(&mut watcher, |m| m.addresses.contains(&(index, OWN, 24)) && m.routes.contains(&connected))
            .await;
        assert_quiet(&mut watcher).await;

        // What ip knows to do with routes. Multipath: the first hop; blackholes and what cannot be followed lead
        // nowhere; other tables are not ours.
        sh("ip route add default via 192.0.2.2 metric 7; ip route add 198.51.100.0/24 dev wan;
            ip route add 203.0.113.0/24 via 10.9.9.9 dev wan onlink;
            ip route add 100.64.0.0/16 nexthop via 192.0.2.3 dev wan nexthop via 192.0.2.4 dev wan;
            ip route add blackhole 100.65.0.0/16; ip route add 100.66.0.0/16 dev wan table 77;
            ip route add 100.67.0.0/16 via inet6 fe80::2 dev wan");
        let default = route([0, 0, 0, 0], 0, 7, Some(PEER));
        let nowhere = |network| Route { ifindex: 0, ..route(network, 16, 0, None) };
        let expected = [
            default,
            connected,
            route([198, 51, 100, 0], 24, 0, None),
            route([203, 0, 113, 0], 24, 0, Some(IpAddr::from([10, 9, 9, 9]))),
            route([100, 64, 0, 0], 16, 0, Some(IpAddr::from([192, 0, 2, 3]))),
            nowhere([100, 65, 0, 0]),
            nowhere([100, 67, 0, 0]),
        ]
        .into();
        until(&mut watcher, |m| m.routes == expected).await;
        assert_quiet(&mut watcher).await;

        // Replaced, deleted.
        sh(
            "ip route replace 198.51.100.0/24 via 192.0.2.2; ip route del default; ip route del 203.0.113.0/24",
        );
        let replaced = route([198, 51, 100, 0], 24, 0, Some(PEER));
        until(&mut watcher, |m| m.routes.contains(&replaced) && m.routes.len() == 5).await;
        sh("ip route del blackhole 100.65.0.0/16");

        // The last address takes all routes with it, and Linux announces but a few of them.
        linux.remove_address(index, OWN, 24).await.unwrap();
        linux.remove_address(index, OWN, 24).await.unwrap();
        until(&mut watcher, |m| m.addresses.iter().all(|a| a.0 != index) && m.routes.is_empty()).await;
        // Nor those of a link that goes down.
        sh("ip addr add 192.0.2.1/24 dev wan; ip route add default via 192.0.2.2");
        until(&mut watcher, |m| m.routes.len() == 2).await;
        linux.set_link(index, false, None, None).await.unwrap();
        until(&mut watcher, |m| m.routes.is_empty() && !m.links[&index].up).await;
    });
}

#[test]
fn a_watcher_knows_what_was_there_before() {
    in_namespace(|| async {
        let linux = Linux::open().unwrap();
        let twin = wan(&linux).await;
        sh("ip addr add 192.0.2.1/24 dev wan; ip route add default via 192.0.2.2;
            ip neigh add 192.0.2.2 lladdr 02:52:56:53:00:02 dev wan");
        let mut watcher = Watcher::start().await.unwrap();
        let mirror = watcher.mirror();
        assert_eq!(mirror.links[&twin.ifindex()].name, "wan");
        assert_eq!(mirror.routes.len(), 2);
        assert_eq!(mirror.neighbours[&(twin.ifindex(), PEER)], PEER_MAC);
        // Events from before that came in during the dump change nothing.
        assert_quiet(&mut watcher).await;
    });
}

#[test]
fn a_neighbour_is_asked_for_learnt_and_lost() {
    in_namespace(|| async {
        let mut watcher = Watcher::start().await.unwrap();
        let linux = watcher.handle();
        let twin = wan(&linux).await;
        let key = (twin.ifindex(), PEER);
        linux.add_address(key.0, OWN, 24).await.unwrap();
        until(&mut watcher, |m| !m.routes.is_empty()).await;

        linux.use_neighbour(key.0, PEER).await.unwrap();
        let request = frame(&twin, |frame| is_arp_request(frame, PEER)).await;
        assert_eq!(request[..6], [0xff; 6]);
        assert_eq!(request[6..12], MAC);
        assert_quiet(&mut watcher).await;

        twin.try_send(&arp_reply(&request, PEER_MAC)).unwrap();
        let changes = until(&mut watcher, |m| m.neighbours.get(&key) == Some(&PEER_MAC)).await;
        assert_eq!(changes, [Change::Neighbours]);

        // States come and go; the MAC stays, and nobody is woken.
        sh("ip neigh change 192.0.2.2 dev wan nud stale");
        linux.use_neighbour(key.0, PEER).await.unwrap();
        sh("ip neigh change 192.0.2.2 dev wan nud reachable");
        assert_quiet(&mut watcher).await;
        // A gratuitous reply tells of another MAC.
        sh("echo 1 > /proc/sys/net/ipv4/conf/wan/arp_accept; ip neigh change 192.0.2.2 dev wan nud stale");
        tokio::time::sleep(Duration::from_millis(1100)).await; // neigh locktime: 1 s
        twin.try_send(&arp_reply(&request, MAC)).unwrap();
        until(&mut watcher, |m| m.neighbours.get(&key) == Some(&MAC)).await;

        sh("ip neigh del 192.0.2.2 dev wan");
        let changes = until(&mut watcher, |m| !m.neighbours.contains_key(&key)).await;
        assert_eq!(changes, [Change::Neighbours]);
    });
}

#[test]
fn a_permanent_neighbour_stays_one() {
    in_namespace(|| async {
        let linux = Linux::open().unwrap();
        let twin = wan(&linux).await;
        for (own, length, peer) in [(OWN, 24, PEER), (OWN6, 64, PEER6)] {
            linux.add_address(twin.ifindex(), own, length).await.unwrap();
            sh(&format!("ip neigh add {peer} lladdr 02:52:56:53:00:02 dev wan nud permanent"));
            linux.use_neighbour(twin.ifindex(), peer).await.unwrap();
            sh(&format!("ip neigh show {peer} dev wan | grep -q PERMANENT"));
        }
    });
}

#[test]
fn one_ip_command_is_one_change() {
    in_namespace(|| async {
        let mut watcher = Watcher::start().await.unwrap();
        let twin = wan(&watcher.handle()).await;
        until(&mut watcher, |m| m.links.contains_key(&twin.ifindex())).await;
        while timeout(Duration::from_millis(100), watcher.changed()).await.is_ok() {}
        // A new address: itself and a route; all is queued while this thread is in the shell.
        sh("ip addr add 192.0.2.1/24 dev wan; ip neigh add 192.0.2.2 lladdr 02:52:56:53:00:02 dev wan");
        let changes = until(&mut watcher, |m| !m.neighbours.is_empty()).await;
        assert_eq!(changes, [Change::Other]);
    });
}

#[test]
fn more_events_than_the_socket_holds() {
    in_namespace(|| async {
        let mut watcher = Watcher::start().await.unwrap();
        let twin = wan(&watcher.handle()).await;
        sh("ip addr add 10.0.0.1/8 dev wan");
        until(&mut watcher, |m| m.routes.len() == 1).await;
        // While this thread waits for the shell nobody reads the socket.
        sh("for i in $(seq 0 5999); do
              echo route add 10.$((64 + i / 256)).$((i % 256)).0/24 via 10.0.0.2
            done | ip -batch -");
        let changes = until(&mut watcher, |m| m.routes.len() == 6001).await;
        assert!(changes.iter().all(|change| *change == Change::Other), "{changes:?}");
        assert!(changes.len() < 100, "{} changes", changes.len());
        drop(twin);
        until(&mut watcher, |m| m.routes.is_empty()).await;
    });
}

#[test]
fn waiting_may_be_given_up_at_any_time() {
    in_namespace(|| async {
        let mut watcher = Watcher::start().await.unwrap();
        let twin = wan(&watcher.handle()).await;
        sh(
            "ip addr add 10.0.0.1/8 dev wan; ip addr add 192.0.2.1/24 dev wan; ip addr del 192.0.2.1/24 dev wan",
        );
        // Each wait is a single poll: not long enough for a dump, nor for the events to settle.
        let mut given_up = 0;
        while watcher.changed().now_or_never().is_none() {
            given_up += 1;
            assert!(given_up < 10_000);
            tokio::time::sleep(Duration::from_micros(300)).await;
        }
        assert!(given_up > 0);
        let ours = watcher.mirror().addresses.iter().filter(|a| a.0 == twin.ifindex()).count();
        assert_eq!(ours, 1);
        assert_quiet(&mut watcher).await;
    });
}

/// Nothing behind a port finishes what Linux leaves to a NIC.
#[test]
fn linux_finishes_checksums_and_segments_itself() {
    in_namespace(|| async {
        let linux = Linux::open().unwrap();
        let twin = wan(&linux).await;
        sh("ip addr add 192.0.2.1/24 dev wan; ip neigh add 192.0.2.2 lladdr 02:52:56:53:00:02 dev wan");
        let socket = UdpSocket::bind("192.0.2.1:5000").unwrap();
        socket.send_to(b"a datagram of odd length.", "192.0.2.2:9").unwrap();
        let is_udp = |frame: &[u8]| frame[12..14] == [8, 0] && frame[23] == 17;
        let datagram = frame(&twin, is_udp).await;
        assert_eq!(datagram[..12], [PEER_MAC, MAC].concat());
        assert_eq!(sum(&datagram[14..34], 0), 0xffff, "IPv4 header");
        assert_ne!(datagram[40..42], [0, 0], "a checksum there is");
        // RFC 768: addresses, protocol and length are summed with the datagram.
        let pseudo = 17 + (datagram.len() as u32 - 34);
        assert_eq!(sum(&datagram[26..], pseudo), 0xffff, "UDP");

        // A connection to a server that is not there shows only its SYN; its options tell the MSS of our MTU.
        let connect = tokio::net::TcpStream::connect("192.0.2.2:80");
        let is_syn = |frame: &[u8]| frame[12..14] == [8, 0] && frame[23] == 6 && frame[47] == 2;
        let syn = tokio::select! {
            syn = frame(&twin, is_syn) => syn,
            _ = connect => panic!("connected"),
        };
        assert_eq!(sum(&syn[26..], 6 + (syn.len() as u32 - 34)), 0xffff, "TCP");
        assert_eq!(syn[54..58], [2, 4, 5, 80], "MSS 1360");
        for feature in ["tcp-segmentation-offload", "tx-checksumming"] {
            let features = Command::new("ethtool").args(["-k", "wan"]).output();
            let Ok(features) = features else {
                eprintln!("SKIPPED: there is no ethtool to ask for {feature}");
                continue;
            };
            let features = String::from_utf8_lossy(&features.stdout).into_owned();
            assert!(features.contains(&format!("{feature}: off")), "{features}");
        }
    });
}

/// Ones' complement sum (RFC 1071), started with what is not in the bytes.
fn sum(bytes: &[u8], start: u32) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum: u32 = start + words.sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    ((folded & 0xffff) + (folded >> 16)) as u16
}

#[test]
fn errors_say_what_was_wanted() {
    in_namespace(|| async {
        let linux = Linux::open().unwrap();
        let nowhere = linux.add_address(4711, Ipv4Addr::LOCALHOST.into(), 8).await.unwrap_err();
        assert_eq!(format!("{nowhere:#}"), "add 127.0.0.1/8 to interface 4711: No such device (os error 19)");
        linux.remove_address(4711, Ipv4Addr::LOCALHOST.into(), 8).await.unwrap();
        assert!(linux.use_neighbour(4711, PEER).await.is_err());
        assert!(linux.set_link(4711, true, None, None).await.is_err());
    });
}

#[test]
fn by_which_interface_a_packet_would_leave() {
    in_namespace(async || {
        let linux = Linux::open().unwrap();
        assert_eq!(linux.way_to("198.51.100.7".parse().unwrap()).await.unwrap(), None);
        assert_eq!(linux.default_routes().await.unwrap(), HashSet::new());
        sh(
            "ip link set lo up && ip link add va type veth peer name vb && ip link set va up && ip link set vb up",
        );
        sh(
            "ip address add 192.0.2.1/24 dev va && ip address add 10.0.0.1/24 dev vb && ip address add 2001:db8::1/64 dev vb nodad",
        );
        let index = async |name| linux.index_of(name).await.unwrap().unwrap();
        let (a, b) = (index("va").await, index("vb").await);
        assert_eq!(linux.way_to("10.0.0.7".parse().unwrap()).await.unwrap(), Some(b));
        assert_eq!(linux.way_to("2001:db8::7".parse().unwrap()).await.unwrap(), Some(b));
        // Also of a table of its own, and of several ways.
        sh(
            "ip route add default via 10.0.0.2 table 7 && ip route add default nexthop via 192.0.2.2 nexthop via 10.0.0.2",
        );
        assert_eq!(linux.default_routes().await.unwrap(), HashSet::from([a, b]));
        sh("ip route del default && ip route flush table 7 && ip -6 route add default via 2001:db8::2");
        assert_eq!(linux.default_routes().await.unwrap(), HashSet::from([b]));
    });
}

/// The twin's link-local address, which is made from its MAC, and that of a router beside it.
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x52, 0x56ff, 0xfe53, 1);
const GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// A message of neighbour discovery as the peer would send it (RFC 4861), with its MAC as the option.
fn nd(kind: u8, source: IpAddr, destination: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let IpAddr::V6(source) = source else { unreachable!() };
    let [.., a, b, c, d] = destination.octets();
    let mac = if destination.is_multicast() { [0x33, 0x33, a, b, c, d] } else { MAC };
    // An advertisement has been asked for, and overrides (flags S and O).
    let (flags, option) = if kind == ADVERTISEMENT { (0x60, 2) } else { (0, 1) };
    let addresses = [source.octets(), destination.octets()].concat();
    let body = [&[kind, 0, 0, 0, flags, 0, 0, 0], &target.octets()[..], &[option, 1], &PEER_MAC].concat();
    let checksum = !sum(&[&addresses[..], &body].concat(), 58 + body.len() as u32);
    let header = [0x60, 0, 0, 0, 0, body.len() as u8, 58, 255];
    let mut frame = [&mac[..], &PEER_MAC, &[0x86, 0xdd], &header, &addresses, &body].concat();
    frame[56..58].copy_from_slice(&checksum.to_be_bytes());
    frame
}

/// The address that a solicitation for another one goes to (RFC 4291, section 2.7.1).
fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(0xff02_0000_0000_0000_0000_0001_ff00_0000 | address.to_bits() & 0xff_ffff)
}

/// A message of neighbour discovery to this address about that one.
fn is_nd(frame: &[u8], kind: u8, destination: Ipv6Addr, target: Ipv6Addr) -> bool {
    frame.len() >= 78
        && frame[12..14] == [0x86, 0xdd]
        && frame[20..22] == [58, 255]
        && frame[38..54] == destination.octets()
        && frame[54] == kind
        && frame[62..78] == target.octets()
}

fn v6(address: IpAddr) -> Ipv6Addr {
    let IpAddr::V6(address) = address else { unreachable!() };
    address
}

#[test]
fn a_twin_does_ipv6_as_a_routers_interface() {
    in_namespace(|| async {
        sh(
            "cd /proc/sys/net/ipv6/conf/default; echo 1 >addr_gen_mode; echo 2 >accept_ra; echo 2 >accept_dad",
        );
        let mut watcher = Watcher::start().await.unwrap();
        let linux = watcher.handle();
        let twin = wan(&linux).await;
        let index = twin.ifindex();
        sh("cd /proc/sys/net/ipv6/conf/wan; test $(cat accept_ra) = 0 -a $(cat accept_dad) = 0");
        sh("test $(cat /proc/sys/net/ipv6/conf/default/accept_ra) = 2");

        // It is answered for; a virtual one is announced, too.
        assert!(linux.add_address(index, OWN6, 64).await.unwrap());
        assert!(!linux.add_address(index, OWN6, 64).await.unwrap());
        let own = v6(OWN6);
        let question = nd(SOLICITATION, PEER6, solicited_node(own), own);
        // As often as it takes: Linux listens to the group of such questions a moment later.
        let ask = async {
            while twin.try_send(&question).is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            _ = frame(&twin, |frame| is_nd(frame, ADVERTISEMENT, v6(PEER6), own)) => {}
            () = ask => panic!("the twin is gone"),
        }
        assert!(linux.add_virtual_address(index, PEER6).await.unwrap());
        let announced = frame(&twin, |frame| is_nd(frame, ADVERTISEMENT, ALL_NODES, v6(PEER6))).await;
        assert_eq!(announced[78..86], [&[2, 1], &MAC[..]].concat(), "with its MAC");
        linux.remove_address(index, PEER6, 128).await.unwrap();
        let held = |m: &Mirror| m.addresses.contains(&(index, OWN6, 64));
        until(&mut watcher, held).await;
        // Whoever asks Linux is told the same; and link-local ones concern nobody.
        assert!(linux.addresses().await.unwrap().contains(&(index, OWN6, 64)));
        assert!(watcher.mirror().addresses.iter().all(|&(_, address, _)| address != LINK_LOCAL));
        sh(&format!("ip -6 address show dev wan scope link | grep -q {LINK_LOCAL}/64"));

        // It stays on one that goes down, as one of IPv4 does.
        sh("ip link set wan down; ip link set wan up; ip -6 address show dev wan | grep -q 2001:db8::1/64");
        linux.remove_address(index, OWN6, 64).await.unwrap();
        linux.remove_address(index, OWN6, 64).await.unwrap();
        until(&mut watcher, |m| !held(m)).await;
    });
}

/// Also from beside a virtual address that is more like theirs, which would have the answer.
#[test]
fn linux_sends_from_its_own_address_and_not_from_a_virtual_one() {
    in_namespace(|| async {
        let linux = Linux::open().unwrap();
        let twin = wan(&linux).await;
        for (own, length, virtual_address, server) in [
            ("192.0.2.1", 24, "192.0.2.10", "192.0.2.11:9"),
            ("2001:db8::1", 64, "2001:db8::10", "[2001:db8::11]:9"),
        ] {
            let (own, virtual_address) = (own.parse().unwrap(), virtual_address.parse().unwrap());
            linux.add_address(twin.ifindex(), own, length).await.unwrap();
            assert!(linux.add_virtual_address(twin.ifindex(), virtual_address).await.unwrap());
            assert!(!linux.add_virtual_address(twin.ifindex(), virtual_address).await.unwrap());
            let held = linux.addresses().await.unwrap();
            assert!(held.contains(&(twin.ifindex(), virtual_address, alone(virtual_address))), "{held:?}");
            let any = if own.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any).unwrap();
            socket.connect(server).unwrap();
            assert_eq!(socket.local_addr().unwrap().ip(), own);
        }
    });
}

#[test]
fn a_machine_without_ipv6_says_so_of_the_address() {
    in_namespace(|| async {
        let linux = Linux::open().unwrap();
        sh("echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6");
        let twin = wan(&linux).await;
        assert!(linux.add_address(twin.ifindex(), OWN, 24).await.unwrap());
        let refused = linux.add_address(twin.ifindex(), OWN6, 64).await.unwrap_err();
        let expected = format!(
            "add 2001:db8::1/64 to interface {}: IPv6 is switched off on the twin; expected sysctl \
             net.ipv6.conf.default.disable_ipv6 = 0 before rvs starts, or no IPv6 address",
            twin.ifindex()
        );
        assert_eq!(format!("{refused:#}"), expected);
        linux.remove_address(twin.ifindex(), OWN6, 64).await.unwrap();
    });
}

#[test]
fn routes_of_ipv6_are_followed() {
    in_namespace(|| async {
        let mut watcher = Watcher::start().await.unwrap();
        let linux = watcher.handle();
        let twin = wan(&linux).await;
        let index = twin.ifindex();
        linux.add_address(index, OWN6, 64).await.unwrap();
        let route = |destination: &str, length, metric, gateway: Option<Ipv6Addr>| Route {
            destination: destination.parse().unwrap(),
            length,
            metric,
            ifindex: index,
            gateway: gateway.map(IpAddr::V6),
        };
        let connected = route("2001:db8::", 64, 256, None);
        until(&mut watcher, |m| m.routes == [connected].into()).await;
        assert_quiet(&mut watcher).await;

        let (other, third) = (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2), v6(PEER6));
        sh("ip -6 route add default via fe80::1 dev wan;
            ip -6 route add 2001:db8:1::/48 nexthop via fe80::1 dev wan nexthop via fe80::2 dev wan;
            ip -6 route add blackhole 2001:db8:2::/48; ip -6 route add 2001:db8:3::/48 dev wan table 77;
            ip -6 route add 2001:db8:4::/48 via 2001:db8::2");
        let default = route("::", 0, 1024, Some(GATEWAY));
        let hops = [GATEWAY, other].map(|gateway| route("2001:db8:1::", 48, 1024, Some(gateway)));
        let nowhere = Route { ifindex: 0, ..route("2001:db8:2::", 48, 1024, None) };
        let by_third = route("2001:db8:4::", 48, 1024, Some(third));
        let expected = [connected, default, hops[0], hops[1], nowhere, by_third].into();
        until(&mut watcher, |m| m.routes == expected).await;
        assert_quiet(&mut watcher).await;

        // One next hop of two; a route that is replaced, and the rest.
        sh("ip -6 route del 2001:db8:1::/48 via fe80::1 dev wan; ip -6 route replace default via fe80::2 dev wan;
            ip -6 route del blackhole 2001:db8:2::/48; ip -6 route del 2001:db8:4::/48");
        let replaced = route("::", 0, 1024, Some(other));
        let expected = [connected, replaced, hops[1]].into();
        until(&mut watcher, |m| m.routes == expected).await;
        // As a flock, of which one is left, and by a flock.
        sh("ip -6 route replace default nexthop via fe80::1 dev wan nexthop via fe80::2 dev wan");
        until(&mut watcher, |m| m.routes.contains(&default) && m.routes.contains(&replaced)).await;
        sh("ip -6 route replace default via fe80::1 dev wan");
        let expected = [connected, default, hops[1]].into();
        until(&mut watcher, |m| m.routes == expected).await;
        assert_eq!(Watcher::start().await.unwrap().mirror().routes, expected, "as a dump has it");

        sh("ip link set wan down");
        until(&mut watcher, |m| m.routes.is_empty()).await;
    });
}

#[test]
fn a_gateway_of_ipv6_is_asked_for_learnt_and_lost() {
    in_namespace(|| async {
        let mut watcher = Watcher::start().await.unwrap();
        let linux = watcher.handle();
        let twin = wan(&linux).await;
        let key = (twin.ifindex(), IpAddr::V6(GATEWAY));
        // Without any address but the link-local one.
        until(&mut watcher, |m| m.links.contains_key(&key.0)).await;
        linux.use_neighbour(key.0, key.1).await.unwrap();
        let question = |frame: &[u8]| is_nd(frame, SOLICITATION, solicited_node(GATEWAY), GATEWAY);
        let asked = frame(&twin, question).await;
        assert_eq!(asked[22..38], LINK_LOCAL.octets());
        twin.try_send(&nd(ADVERTISEMENT, key.1, LINK_LOCAL, GATEWAY)).unwrap();
        let changes = until(&mut watcher, |m| m.neighbours.get(&key) == Some(&PEER_MAC)).await;
        assert_eq!(changes.last(), Some(&Change::Neighbours));
        // In use, and known to a mirror that starts now; groups are no neighbours.
        linux.use_neighbour(key.0, key.1).await.unwrap();
        assert_quiet(&mut watcher).await;
        let known = Watcher::start().await.unwrap().mirror().neighbours.clone();
        assert_eq!(known, [(key, PEER_MAC)].into());
        sh("ip neigh del fe80::1 dev wan");
        until(&mut watcher, |m| !m.neighbours.contains_key(&key)).await;
    });
}
