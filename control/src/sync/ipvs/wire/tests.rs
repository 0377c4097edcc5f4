//! Messages written by hand from the layout, and all others.

use proptest::prelude::*;

use super::*;

/// A connection by NAT: 198.51.100.7:40112 to 192.0.2.10:80, which is 10.0.0.11:8080, established, 900 s.
#[rustfmt::skip]
const CONNECTION: [u8; 36] = [
    0, 6, 0, 36,                 // IPv4, TCP, bytes
    0, 0, 0, 0,                  // flags
    0, 1,                        // ESTABLISHED
    0x9C, 0xB0, 0, 80, 0x1F, 0x90,
    0, 0, 0, 0,                  // no mark
    0, 0, 3, 0x84,               // 900 s
    198, 51, 100, 7,
    192, 0, 2, 10,
    10, 0, 0, 11,
];

/// The same as it is read.
pub fn connection() -> Entry {
    Entry {
        protocol: 6,
        flags: 0,
        state: 1,
        client: "198.51.100.7:40112".parse().unwrap(),
        service: "192.0.2.10:80".parse().unwrap(),
        server: "10.0.0.11:8080".parse().unwrap(),
        fwmark: 0,
        timeout: 900,
        is_adjusted: false,
    }
}

/// A message of version 1 of so many connections.
fn message(count: u8, connections: &[u8]) -> Vec<u8> {
    let bytes = (8 + connections.len()) as u16;
    [&[0, 5], &bytes.to_be_bytes()[..], &[count, 1, 0, 0], connections].concat()
}

/// The connection with options, and with its length changed so that it has them.
fn with_options(options: &[u8]) -> Vec<u8> {
    let mut entry = [&CONNECTION, options].concat();
    entry[3] += options.len() as u8;
    entry
}

fn told(connections: &[u8]) -> Option<Vec<Told>> {
    decode(&message(1, connections)).map(|message| message.told)
}

#[test]
fn a_message_by_hand() {
    let bytes = message(2, &[CONNECTION, CONNECTION].concat());
    assert_eq!(encode(5, &[connection(); 2]), bytes);
    assert_eq!(decode(&bytes), Some(Message { syncid: 5, told: vec![Told::V4(connection()); 2] }));
}

#[test]
fn a_message_of_version_0() {
    #[rustfmt::skip]
    let simple = [
        0, 17, 0x9C, 0xB0, 0, 53, 0, 53,
        198, 51, 100, 7, 192, 0, 2, 10, 10, 0, 0, 11,
        0, 3, 0, 0,              // direct routing
    ];
    let mut full = simple.to_vec();
    full[20] = 2; // sequence numbers one way
    full.extend([0; 23]);
    full.push(1);
    let bytes = [&[2, 5, 0, 4 + 24 + 48], &simple[..], &full].concat();
    let entry = Entry {
        protocol: 17,
        flags: 3,
        state: 0,
        service: "192.0.2.10:53".parse().unwrap(),
        server: "10.0.0.11:53".parse().unwrap(),
        timeout: 0,
        ..connection()
    };
    let adjusted = Entry { flags: 0x203, is_adjusted: true, ..entry };
    assert_eq!(decode(&bytes), Some(Message { syncid: 5, told: vec![Told::V4(entry), Told::V4(adjusted)] }));
    for length in 0..bytes.len() {
        assert_eq!(decode(&bytes[..length]), None, "its length is another");
    }
    assert_eq!(decode(&[2, 5, 0, 28].into_iter().chain(simple).collect::<Vec<_>>()), None, "one is missing");
}

#[test]
fn options_are_passed_over() {
    let nothing = [1, 24].into_iter().chain([0; 24]).collect::<Vec<u8>>();
    let mut delta = nothing.clone();
    delta[2 + 7] = 1;
    let mut first = nothing.clone();
    first[2 + 12] = 1;
    let engine = [2, 3, b'a', b'b', b'c', 3, 3, b's', b'i', b'p'];
    let adjusted = Told::V4(Entry { is_adjusted: true, ..connection() });
    let plain = Told::V4(connection());
    let cases = [
        (&nothing[..], plain),
        (&first, plain),
        (&delta, adjusted),
        (&engine, plain),
        (&[0x49, 1, 9], plain),
        (&[9, 1, 9], Told::UnknownOption),
    ];
    for (options, expected) in cases {
        assert_eq!(told(&with_options(options)), Some(vec![expected]), "{options:?}");
        // Filled up to a multiple of four bytes before another one.
        let mut two = with_options(options);
        two.resize(two.len().next_multiple_of(4), 0);
        two.extend(CONNECTION);
        assert_eq!(decode(&message(2, &two)).map(|m| m.told), Some(vec![expected, plain]), "{options:?}");
    }
    for wrong in [&[2][..], &[2, 0], &[2, 4, 1], &[2, 1, 7, 2, 1, 7], &[1, 1, 0], &[9, 9, 9]] {
        assert_eq!(told(&with_options(wrong)), None, "{wrong:?}");
    }
}

#[test]
fn what_contradicts_itself_is_no_message() {
    let good = message(1, &CONNECTION);
    for (at, byte, what) in [
        (0, 1, "version 0 of another length"),
        (3, 43, "a length that is not its own"),
        (4, 2, "two connections, of which one is there"),
        (4, 0, "no connection, and bytes behind it"),
        (5, 2, "a version that nobody has"),
        (6, 1, "what is to be zero"),
        (8, 2, "a kind that nobody has"),
        (10, 0x10, "a version of the connection"),
        (11, 35, "a connection that is too short"),
        (11, 40, "one that is longer than the message"),
    ] {
        let mut wrong = good.clone();
        wrong[at] = byte;
        assert_eq!(decode(&wrong), None, "{what}");
    }
    assert_eq!(decode(&message(0, &[])).unwrap().told, []);
    assert_eq!(decode(&[]), None);
    assert_eq!(decode(&[0, 5, 0, 4]), None);
}

#[test]
fn ipv6_is_known_but_not_read() {
    let mut entry = [0; 72];
    (entry[0], entry[1], entry[3]) = (1, 6, 72);
    assert_eq!(told(&entry), Some(vec![Told::V6]));
    entry[3] = 71;
    assert_eq!(told(&entry[..71]), None);
}

#[test]
fn a_message_is_no_longer_than_it_may_be() {
    assert_eq!(room(44), 1);
    assert_eq!(room(1472), 40);
    assert_eq!(encode(0, &vec![connection(); room(1472)]).len(), 1448);
    let most = vec![connection(); room(65_507)];
    assert_eq!(most.len(), 255);
    assert_eq!(decode(&encode(0, &most)).unwrap().told.len(), 255);
}

fn entry() -> impl Strategy<Value = Entry> {
    let socket = || any::<(u32, u16)>().prop_map(|(ip, port)| SocketAddrV4::new(ip.into(), port));
    (any::<(u8, u32, u16, u32, u32)>(), socket(), socket(), socket()).prop_map(
        |((protocol, flags, state, fwmark, timeout), client, service, server)| Entry {
            protocol,
            flags,
            state,
            client,
            service,
            server,
            fwmark,
            timeout,
            is_adjusted: false,
        },
    )
}

proptest! {
    #[test]
    fn what_is_written_is_read(syncid: u8, entries in prop::collection::vec(entry(), 0..=255)) {
        let told = entries.iter().copied().map(Told::V4).collect();
        prop_assert_eq!(decode(&encode(syncid, &entries)), Some(Message { syncid, told }));
    }

    /// Bytes that say their own length, since others are refused at once.
    #[test]
    fn any_bytes_are_read_to_an_end(mut bytes in prop::collection::vec(any::<u8>(), 0..300), like_v1: bool) {
        let length = (bytes.len() as u16).to_be_bytes();
        if let Some(place) = bytes.get_mut(2..4) {
            place.copy_from_slice(&length);
        }
        if like_v1 && let [zero, _, _, _, _, version, a, b, kind, _, size, ..] = &mut bytes[..] {
            (*zero, *version, *a, *b, *size) = (0, 1, 0, 0, 0);
            *kind &= 1;
        }
        if let Some(message) = decode(&bytes) {
            prop_assert!(message.told.len() * V0 <= bytes.len());
        }
    }

    #[test]
    fn a_damaged_message_is_read_to_an_end(
        entries in prop::collection::vec(entry(), 1..5),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = encode(7, &entries);
        for (at, byte) in damage {
            *at.get_mut(&mut bytes) = byte;
        }
        let _ = decode(&bytes);
    }
}
