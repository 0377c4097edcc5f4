//! Samples, filters, and what a session does when nobody takes them.

use std::net::SocketAddr;

use super::*;
use crate::counters::{Drop, Punt};
use crate::engine::BURST;
use crate::service::Protocol;
use crate::wire::made::Made;

const CLIENT: &str = "198.51.100.7:40112";
const VIP: &str = "192.0.2.10:80";
const SERVER: &str = "10.0.0.1:8080";

fn frame(protocol: Protocol, source: &str, destination: &str, length: u16) -> Vec<u8> {
    let [source, destination]: [SocketAddr; 2] = [source, destination].map(|text| text.parse().unwrap());
    Made { protocol, source, destination, flags: 2, ttl: 64, length }.frame(&[2; 6], &[4; 6])
}

/// A burst of requests that the engine has rewritten meanwhile, by turns forwarded and dropped; what was caught.
fn catch(session: &Arc<Session>, switch: &Arc<Switch>, bursts: usize) -> Vec<Sample> {
    let mut tap = Tap::new(switch.clone());
    for _ in 0..bursts {
        let mut burst: Vec<Vec<u8>> = (0..BURST).map(|_| frame(Protocol::Tcp, CLIENT, VIP, 400)).collect();
        let marked = tap.before(&burst);
        let verdicts = std::array::from_fn(|index| {
            if index % 2 == 1 {
                return Verdict::Drop(Drop::NoServer);
            }
            burst[index] = frame(Protocol::Tcp, CLIENT, SERVER, 400);
            Verdict::Forward(1)
        });
        if marked {
            tap.after(0, &burst, &verdicts, 7);
        }
    }
    std::iter::from_fn(|| session.pop()).collect()
}

fn captured(one_in: u32, filter: &str, bursts: usize) -> Vec<Sample> {
    let switch = Arc::<Switch>::default();
    let session = Arc::new(Session::new(one_in, filter.parse().unwrap()));
    assert!(switch.begin(session.clone()) && !switch.begin(session.clone()), "one at a time");
    let samples = catch(&session, &switch, bursts);
    switch.end();
    assert_eq!(catch(&session, &switch, 3).len(), 0, "it is off");
    assert!(!Session::is_in_use(&session));
    samples
}

#[test]
fn a_new_session_counts_anew() {
    let switch = Arc::<Switch>::default();
    let mut tap = Tap::new(switch.clone());
    let burst: Vec<Vec<u8>> = (0..BURST).map(|_| frame(Protocol::Tcp, CLIENT, VIP, 40)).collect();
    for (one_in, expected) in [(1_000_000, 1), (BURST as u32, 3), (1, 3 * BURST)] {
        let session = Arc::new(Session::new(one_in, Filter::default()));
        assert!(switch.begin(session.clone()));
        for _ in 0..3 {
            if tap.before(&burst) {
                tap.after(0, &burst, &[Verdict::Forward(0); BURST], 7);
            }
        }
        switch.end();
        assert_eq!(std::iter::from_fn(|| session.pop()).count(), expected, "one in {one_in}");
    }
}

#[test]
fn one_in_so_many_as_it_came_and_as_it_went() {
    for (one_in, expected) in [(1, 640), (3, 214), (64, 10), (100, 7), (1000, 1)] {
        let samples = captured(one_in, "", 10);
        assert_eq!(samples.len(), expected, "one in {one_in}");
        for sample in samples {
            let before = frame(Protocol::Tcp, CLIENT, VIP, 400);
            assert_eq!((sample.before(), sample.length), (before[..SNAP].to_vec(), 414));
            let after = if sample.verdict == Verdict::Forward(1) { SERVER } else { VIP };
            assert_eq!(sample.after(), &frame(Protocol::Tcp, CLIENT, after, 400)[..SNAP]);
        }
    }
}

#[test]
fn a_packet_in_another_one_is_shown_without_it_first() {
    for length in [40, 60, 90, 150, 200, 242, 400] {
        let switch = Arc::<Switch>::default();
        let session = Arc::new(Session::new(1, "host 10.0.0.1 and service 192.0.2.10:80".parse().unwrap()));
        switch.begin(session.clone());
        let mut tap = Tap::new(switch);
        let before = frame(Protocol::Udp, CLIENT, VIP, length);
        let outer = &frame(Protocol::Udp, CLIENT, SERVER, length)[..14 + 20];
        let after = [outer, &before[14..]].concat();
        let mut burst = [before.clone()];
        assert!(tap.before(&burst));
        burst[0] = after.clone();
        tap.after(0, &burst, &[Verdict::Forward(1); BURST], 7);
        let sample = session.pop().unwrap();
        assert_eq!((sample.length_before(), sample.length), (before.len() as u32, after.len() as u32));
        assert_eq!(sample.before(), before[..before.len().min(SNAP - 20)]);
        assert_eq!(sample.after(), &after[..after.len().min(SNAP)]);
    }
}

#[test]
fn nobody_takes_them() {
    let switch = Arc::<Switch>::default();
    let session = Arc::new(Session::new(1, Filter::default()));
    switch.begin(session.clone());
    assert_eq!(catch(&session, &switch, 100).len(), WAITING);
    assert_eq!(session.missed(), (100 * BURST - WAITING) as u64);
}

#[test]
fn filters() {
    for (filter, share) in [
        ("", 2),
        ("host 198.51.100.7", 2),
        ("host 192.0.2.10 and tcp", 2),
        ("host 10.0.0.1", 1),
        ("port 8080", 1),
        ("port 40112", 2),
        ("service 192.0.2.10:80", 2),
        ("service 192.0.2.10:81", 0),
        ("service 192.0.2.10:80 and dropped", 1),
        ("host 10.0.0.1 and dropped", 0),
        ("udp", 0),
        ("host 198.51.100.8", 0),
    ] {
        assert_eq!(captured(1, filter, 1).len(), share * BURST / 2, "{filter}");
    }
    let reply = |filter: &str| {
        let filter: Filter = filter.parse().unwrap();
        let (before, after) = (frame(Protocol::Udp, SERVER, CLIENT, 0), frame(Protocol::Udp, VIP, CLIENT, 0));
        let headers = filter::Headers::of(&before);
        filter.matches(headers, || filter::Headers::of(&after), Verdict::Punt(Punt::Unresolved))
    };
    assert!(reply("service 192.0.2.10:80 and host 10.0.0.1 and udp") && !reply("service 10.0.0.1:8080"));
    let six = frame(Protocol::Tcp, "[2001:db8:c::7]:40112", "[2001:db8::10]:80", 0);
    let request = |filter: &str| {
        let filter: Filter = filter.parse().unwrap();
        filter.matches(filter::Headers::of(&six), || None, Verdict::Drop(Drop::NoServer))
    };
    assert!(request("host 2001:db8:c::7 and port 80 and tcp and service [2001:db8::10]:80 and dropped"));
    assert!(!request("host 2001:db8:c::8") && !request("service [2001:db8::10]:81") && !request("udp"));
    for wrong in ["host", "host x", "tcp udp", "and tcp", "tcp and", "port 70000", "service 1.2.3.4", "dccp"]
    {
        let error = wrong.parse::<Filter>().unwrap_err();
        assert!(error.ends_with(filter::EXPECTED), "{wrong}: {error}");
    }
}
