//! Tagged networks (IEEE 802.1Q): ports of their own on one wire.
//!
//! A network is a port for everything that thinks in ports: routes, neighbours, twins, the engine. Only whoever receives and sends
//! knows of tags: a frame's tag is taken out as it comes in, and the frame goes on as one of the network's port; what leaves by such a
//! port is tagged last of all. So the engine meets untagged frames alone, and a port that carries no networks is asked nothing.
//!
//! Networks are numbered behind the ports with devices. A tag of priority only (VLAN 0) means the port itself. A network that nobody
//! knows, and a service tag (802.1ad), stay as they came, and are Linux' on the port's twin.

use crate::engine::Frame;
use crate::fib::PortIndex;
use crate::wire::ethernet;

/// The bits of a tag that say which network; the others are the frame's priority, which is not looked at.
const ID: u16 = 0x0FFF;

/// A network on a port's wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag {
    /// The port with the device.
    pub port: PortIndex,
    /// VLAN identifier, 1 to 4094.
    pub id: u16,
}

/// All networks of a router.
#[derive(Clone, Debug, Default)]
pub struct Vlans {
    /// How many ports with devices there are.
    ports: usize,
    /// Behind the ports with devices.
    tags: Vec<Tag>,
    /// The same in order, each with its port.
    found: Vec<(Tag, PortIndex)>,
}

impl Vlans {
    /// These networks on so many ports with devices.
    pub fn new(ports: usize, tags: impl IntoIterator<Item = Tag>) -> Self {
        let tags: Vec<Tag> = tags.into_iter().collect();
        let index = |place: usize| (ports + place) as PortIndex;
        let mut found: Vec<_> = tags.iter().enumerate().map(|(place, &tag)| (tag, index(place))).collect();
        found.sort_unstable();
        Vlans { ports, tags, found }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.tags.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tags.is_empty()
    }

    /// Whether networks are on this port's wire.
    pub fn are_on(&self, port: PortIndex) -> bool {
        self.tags.iter().any(|tag| tag.port == port)
    }

    /// The tag of what leaves by this port, if it is a network.
    pub fn tag(&self, port: PortIndex) -> Option<Tag> {
        self.tags.get(usize::from(port).checked_sub(self.ports)?).copied()
    }

    /// The port that a frame from this wire has come in on; its tag is gone, unless it is of no network that is known.
    pub fn receive(&self, wire: PortIndex, frame: &mut impl Frame) -> PortIndex {
        let is_stripped = frame.is_vlan_stripped();
        let tag = if is_stripped { frame.vlan() } else { ethernet::tag(frame.bytes()) };
        let Some(id) = tag.map(|tag| tag & ID) else { return wire };
        let port = match id {
            0 => Some(wire),
            id => self.port(Tag { port: wire, id }),
        };
        let Some(port) = port else { return wire };
        let is_out = if is_stripped { frame.take_vlan().is_some() } else { untag(frame) };
        if is_out { port } else { wire }
    }

    fn port(&self, tag: Tag) -> Option<PortIndex> {
        let place = self.found.binary_search_by_key(&tag, |&(tag, _)| tag).ok()?;
        Some(self.found[place].1)
    }
}

fn untag(frame: &mut impl Frame) -> bool {
    frame.bytes_mut().copy_within(ethernet::ADDRESSES, ethernet::TAG);
    frame.advance(ethernet::TAG)
}

/// Puts a tag into a frame; false, and it stays as it is, if there is no room in front of it.
pub fn put(frame: &mut impl Frame, id: u16) -> bool {
    if !frame.prepend(ethernet::TAG) {
        return false;
    }
    let bytes = frame.bytes_mut();
    bytes.copy_within(ethernet::TAG..ethernet::TAG + ethernet::ADDRESSES.end, 0);
    ethernet::write_tag(bytes, id);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIRE: PortIndex = 1;

    fn vlans() -> Vlans {
        Vlans::new(2, [Tag { port: WIRE, id: 200 }, Tag { port: 0, id: 100 }, Tag { port: WIRE, id: 100 }])
    }

    fn frame(rest: &[u8]) -> Vec<u8> {
        [&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], rest].concat()
    }

    #[test]
    fn a_tag_goes_and_comes_back() {
        let plain = frame(&[0x08, 0x00, 0x45, 0, 0, 20]);
        // The priority is nobody's business.
        let mut tagged = frame(&[0x81, 0x00, 0xE0, 100, 0x08, 0x00, 0x45, 0, 0, 20]);
        assert_eq!(vlans().receive(WIRE, &mut tagged), 4);
        assert_eq!(tagged, plain);
        assert!(put(&mut tagged, vlans().tag(4).unwrap().id));
        assert_eq!(tagged, frame(&[0x81, 0x00, 0, 100, 0x08, 0x00, 0x45, 0, 0, 20]));
        assert_eq!(
            [0, 1, 2, 3, 4, 5].map(|port| vlans().tag(port).map(|tag| tag.id)),
            [None, None, Some(200), Some(100), Some(100), None]
        );
    }

    #[test]
    fn a_network_is_one_of_its_wire() {
        let received = |wire, rest: &[u8]| {
            let mut frame = frame(rest);
            let length = frame.len();
            (vlans().receive(wire, &mut frame), length - frame.len())
        };
        let tagged = |id: u8| [0x81, 0x00, 0, id, 0x08, 0x00, 0x45, 0];
        assert_eq!(received(0, &tagged(100)), (3, 4));
        assert_eq!(received(0, &tagged(200)), (0, 0), "of no network that is on this wire");
        assert_eq!(received(WIRE, &tagged(200)), (2, 4));
        assert_eq!(received(WIRE, &tagged(0)), (WIRE, 4), "a priority only");
        assert_eq!(received(WIRE, &[0x88, 0xA8, 0, 200, 0x81, 0x00, 0, 200]), (WIRE, 0), "a service tag");
        assert_eq!(received(WIRE, &tagged(200)[..5]).1 + received(WIRE, &tagged(200)[..3]).1, 0, "cut off");
    }

    #[test]
    fn what_carries_no_network_is_asked_nothing() {
        assert_eq!([0, 1, 2].map(|port| vlans().are_on(port)), [true, true, false]);
        assert!(!Vlans::default().are_on(0) && Vlans::default().is_empty());
    }
}
