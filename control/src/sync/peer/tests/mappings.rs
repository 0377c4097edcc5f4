//! Mappings of source NAT, among connections.

use super::*;

#[test]
fn a_peer_that_joins_hears_of_all_and_then_of_each_change() {
    let mut wire = Wire::new();
    for port in 0..10 {
        wire.routers[0].map(port, State::Established);
        wire.routers[0].set(port.into(), 1, State::Established);
    }
    wire.routers[1].map(15, State::Udp);
    wire.run(Duration::from_secs(3));
    assert_eq!(wire.standings(), [Standing::Together; 2]);
    assert_eq!(wire.routers[0].mappings, wire.routers[1].mappings);
    assert_eq!((wire.routers[0].mappings.len(), wire.routers[1].known().len()), (11, 10));

    for port in [0, 12] {
        let slot = wire.routers[0].map(port, State::Close);
        wire.peers[0].note(wire.now, slot);
    }
    wire.run(Duration::from_secs(3));
    assert_eq!(wire.routers[1].mappings[&0].state, State::Close);
    assert_eq!(wire.routers[0].mappings, wire.routers[1].mappings);
    assert_eq!(wire.peers.each_ref().map(|peer| peer.counts().not_understood), [0, 0]);
}

#[test]
fn a_mapping_that_is_no_more_is_not_told() {
    let mut wire = Wire::new();
    wire.run(Duration::from_secs(1));
    let slot = wire.routers[0].map(3, State::Established);
    wire.peers[0].note(wire.now, slot);
    wire.routers[0].mappings.clear();
    wire.run(Duration::from_secs(1));
    assert!(wire.routers[1].mappings.is_empty());
}
