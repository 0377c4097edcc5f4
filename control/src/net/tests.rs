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
    Twin::create(linux, "wan", MAC, 1400).await.unwrap()
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
        sh("ip neighbour add 192.0.2.7 lladdr 02:00:00:00:00:07 nud reachable dev wan");
        let heirloom = twin.heirloom().unwrap();
        drop(twin);

        // As it was, and with another MTU; the neighbour is forgotten if the MAC is set.
        let twin = Twin::inherit(&linux, heirloom, "wan", MAC, 1400).await.unwrap();
        let heirloom = twin.heirloom().unwrap();
        drop(twin);
        let twin = Twin::inherit(&linux, heirloom, "wan", MAC, 1300).await.unwrap();
        assert_eq!(twin.ifindex(), index);
        let expected = Link { name: "wan".into(), up: true, mac: Some(MAC), mtu: 1300 };
        until(&mut watcher, |m| {
            m.links.get(&index) == Some(&expected)
                && m.addresses.contains(&(index, OWN, 24))
                && m.neighbours.contains_key(&(index, IpAddr::from([192, 0, 2, 7])))
        })
        .await;
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
            let twin = Twin::inherit(&linux, heirloom, "wan", MAC, 1300).await.unwrap();
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
            let error = Twin::create(&linux, name, MAC, 1500).await.err().unwrap().to_string();
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
        linux.add_address(twin.ifindex(), OWN, 24).await.unwrap();
        sh("ip neigh add 192.0.2.2 lladdr 02:52:56:53:00:02 dev wan nud permanent");
        linux.use_neighbour(twin.ifindex(), PEER).await.unwrap();
        sh("ip neigh show dev wan | grep -q PERMANENT");
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
