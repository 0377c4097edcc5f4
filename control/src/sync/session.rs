//! A conversation with a peer that nobody else can read, forge or play back: Noise `NNpsk0`.
//!
//! Both routers have the same 32 bytes. Each conversation begins with two messages that mix them with keys made for this
//! conversation only, so that what is recorded today is safe from whoever learns the bytes tomorrow, and what is recorded
//! of one conversation is nothing in another. Datagrams are numbered; the number is the cipher's nonce, and is taken once.
//!
//! ```text
//! call    1  version (1)  Noise's message: [the caller's mailbox (2)]  proof (32)
//! answer  2  version (1)  to (2)  Noise's message: [the callee's mailbox (2)]  proof (32)
//! data    4  to (2)  the number's end (2)  frames, enciphered
//! ```
//!
//! Many datagrams carry a connection or two, so their head is short. Of the number the last two bytes are sent, as in QUIC: the
//! receiver knows the rest, since it has heard of numbers near this one within the last seconds. Whoever changes them changes
//! the nonce, which the cipher notices. (3 was data up to version 2.)
//!
//! Noise knows only after a multiplication on a curve, some 50 us, that a message was forged. The proof is a MAC (HMAC-SHA256, with
//! a key made of the same 32 bytes) of all that stands before it, which takes one, and is looked at first.
//!
//! A mailbox is a number by which a router tells its conversations apart; it is written on what is sent to it.

use std::fmt;

use anyhow::{Context, Result};
use dataplane::table::HashKey;
use ring::hmac;
use snow::{Builder, HandshakeState, StatelessTransportState};

/// The version of all this. Another one is not understood, and said to be so.
pub const VERSION: u8 = 9;

/// Bytes of a datagram beside its frames: its head, and the cipher's tag.
pub const OVERHEAD: usize = HEAD + TAG;

const HEAD: usize = 1 + 2 + 2;
const TAG: usize = 16;
const NOISE: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";

const CALL: u8 = 1;
const ANSWER: u8 = 2;
const OLD_DATA: u8 = 3;
const DATA: u8 = 4;

/// What peers know and nobody else.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(pub [u8; 32]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(not shown)")
    }
}

impl Key {
    /// The key by which all peers give hosts their ports of source NAT.
    pub fn for_pools(&self) -> HashKey {
        let derived = self.derived(b"rvs snat pools");
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| derived.as_ref()[at + byte]));
        HashKey { blind: word(0), factor: word(8) }
    }

    /// Another one for this purpose, from which this one cannot be found.
    fn derived(&self, purpose: &[u8]) -> hmac::Tag {
        hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &self.0), purpose)
    }
}

/// Proves cheaply that who begins a conversation knows the key.
pub struct Proof(hmac::Key);

/// Bytes of a proof.
const PROOF: usize = 32;

impl Proof {
    /// By this key.
    pub fn new(key: &Key) -> Proof {
        // A key of its own, since Noise has the other one.
        Proof(hmac::Key::new(hmac::HMAC_SHA256, key.derived(b"rvs sync proof").as_ref()))
    }

    /// Adds it to a datagram.
    fn add(&self, datagram: &mut Vec<u8>) {
        let proof = hmac::sign(&self.0, datagram);
        datagram.extend(proof.as_ref());
    }

    /// What it was added to; `None` if it is wrong.
    fn take<'a>(&self, datagram: &'a [u8]) -> Option<&'a [u8]> {
        let (proven, proof) = datagram.split_at_checked(datagram.len().checked_sub(PROOF)?)?;
        hmac::verify(&self.0, proven, proof).ok()?;
        Some(proven)
    }
}

/// What has come, as far as can be told without the cipher.
#[derive(Debug, PartialEq, Eq)]
pub enum Letter<'a> {
    /// The beginning of a conversation, by somebody who knows the key, now or once.
    Call(&'a [u8]),
    /// An answer to one's own.
    Answer {
        /// The mailbox of the call.
        to: u16,
        /// Noise's message.
        message: &'a [u8],
    },
    /// Data.
    Data {
        /// The mailbox of the conversation.
        to: u16,
        /// The end of its number in the conversation.
        number: u16,
        /// Frames, enciphered.
        sealed: &'a [u8],
    },
    /// A call or an answer by somebody who does not know the key.
    Forged,
    /// Of another version.
    OtherVersion(u8),
    /// Nothing of ours.
    Nonsense,
}

/// Reads the outside of a datagram.
pub fn read<'a>(proof: &Proof, datagram: &'a [u8]) -> Letter<'a> {
    match *datagram {
        [DATA, to, o, number, n, ref sealed @ ..] => {
            let [to, number] = [[to, o], [number, n]].map(u16::from_be_bytes);
            Letter::Data { to, number, sealed }
        }
        [CALL | ANSWER | OLD_DATA, version, ..] if version != VERSION => Letter::OtherVersion(version),
        [kind @ (CALL | ANSWER), ..] => match (kind, proof.take(datagram)) {
            (_, None) => Letter::Forged,
            (CALL, Some(&[_, _, ref message @ ..])) => Letter::Call(message),
            (_, Some(&[_, _, to, o, ref message @ ..])) => {
                Letter::Answer { to: u16::from_be_bytes([to, o]), message }
            }
            _ => Letter::Nonsense,
        },
        _ => Letter::Nonsense,
    }
}

/// A conversation that has been begun, and is not answered yet.
pub struct Call {
    noise: HandshakeState,
    /// Where answers go.
    pub mailbox: u16,
    /// What to send, again if need be.
    pub datagram: Vec<u8>,
}

impl Call {
    /// Begins one.
    pub fn new(key: &Key, proof: &Proof, mailbox: u16) -> Result<Call> {
        let mut noise = builder(key)?.build_initiator().context("cannot begin a conversation")?;
        let mut datagram = vec![CALL, VERSION];
        write(&mut noise, mailbox, &mut datagram)?;
        proof.add(&mut datagram);
        Ok(Call { noise, mailbox, datagram })
    }

    /// Takes the answer. If it is not the peer's, the call stands.
    pub fn answered(mut self: Box<Self>, message: &[u8]) -> Result<Session, Box<Call>> {
        // A message that cannot be read leaves Noise's state as it was.
        let Some(to) = read_mailbox(&mut self.noise, message) else { return Err(self) };
        let Call { noise, mailbox, .. } = *self;
        match noise.into_stateless_transport_mode() {
            Ok(noise) => Ok(Session::new(noise, mailbox, to)),
            Err(_) => unreachable!("both messages of the pattern have passed"),
        }
    }
}

/// Answers a call: the answer, and the conversation, which counts once the caller has said something in it. `None` if
/// the message is not one of Noise with this key.
pub fn answer(key: &Key, proof: &Proof, message: &[u8], mailbox: u16) -> Result<Option<(Vec<u8>, Session)>> {
    let mut noise = builder(key)?.build_responder().context("cannot answer a call")?;
    let Some(to) = read_mailbox(&mut noise, message) else { return Ok(None) };
    let mut datagram = vec![ANSWER, VERSION];
    datagram.extend(to.to_be_bytes());
    write(&mut noise, mailbox, &mut datagram)?;
    proof.add(&mut datagram);
    let noise = noise.into_stateless_transport_mode().context("cannot answer a call")?;
    Ok(Some((datagram, Session::new(noise, mailbox, to))))
}

fn builder(key: &Key) -> Result<Builder<'_>> {
    let params = NOISE.parse().context("Noise's parameters")?;
    let builder = Builder::new(params).prologue(b"rvs sync").and_then(|builder| builder.psk(0, &key.0));
    builder.context("cannot set up Noise")
}

fn write(noise: &mut HandshakeState, mailbox: u16, datagram: &mut Vec<u8>) -> Result<()> {
    let mut message = [0; 128];
    let written = noise.write_message(&mailbox.to_be_bytes(), &mut message);
    datagram.extend(&message[..written.context("cannot write a message of Noise")?]);
    Ok(())
}

fn read_mailbox(noise: &mut HandshakeState, message: &[u8]) -> Option<u16> {
    let mut payload = [0; 128];
    let length = noise.read_message(message, &mut payload).ok()?;
    payload[..length].try_into().ok().map(u16::from_be_bytes)
}

/// What became of a datagram that should be data.
#[derive(Debug, PartialEq, Eq)]
pub enum Opened {
    /// The datagram's number, and frames.
    Frames(u64, Vec<u8>),
    /// It has come before, or is so old that nobody can tell.
    Again,
    /// Not by the peer.
    Forged,
}

/// A conversation.
pub struct Session {
    noise: StatelessTransportState,
    /// What is written on datagrams to me.
    pub mailbox: u16,
    to: u16,
    next: u64,
    received: Window,
}

impl Session {
    fn new(noise: StatelessTransportState, mailbox: u16, to: u16) -> Session {
        Session { noise, mailbox, to, next: 0, received: Window::default() }
    }

    /// Enciphers frames; the datagram and its number. No more than a datagram holds.
    pub fn seal(&mut self, frames: &[u8]) -> Result<(u64, Vec<u8>)> {
        let number = self.next;
        let mut datagram = vec![0; OVERHEAD + frames.len()];
        datagram[0] = DATA;
        datagram[1..3].copy_from_slice(&self.to.to_be_bytes());
        datagram[3..HEAD].copy_from_slice(&(number as u16).to_be_bytes());
        self.noise.write_message(number, frames, &mut datagram[HEAD..]).context("cannot encipher")?;
        self.next += 1;
        Ok((number, datagram))
    }

    /// Deciphers a datagram, of whose number this is the end.
    pub fn open(&mut self, number: u16, sealed: &[u8]) -> Opened {
        let number = self.received.nearest(number);
        if !self.received.is_new(number) {
            return Opened::Again;
        }
        let mut frames = vec![0; sealed.len()];
        match self.noise.read_message(number, sealed, &mut frames) {
            Ok(length) => {
                self.received.note(number);
                frames.truncate(length);
                Opened::Frames(number, frames)
            }
            Err(_) => Opened::Forged,
        }
    }

    /// The largest number that has come, and which of the 128 before it, among which those before the first count.
    pub fn received(&self) -> Option<(u64, u128)> {
        let largest = self.received.next.checked_sub(1)?;
        let before = (1..=128).map(|back| largest.checked_sub(back).is_none_or(|n| self.received.has(n)));
        let before = before.enumerate().fold(0, |bits, (bit, has)| bits | u128::from(has) << bit);
        Some((largest, before))
    }
}

/// Numbers behind the largest for which it is known whether they have come.
const WINDOW: u64 = 4096;

/// Which numbers have come.
#[derive(Debug)]
struct Window {
    /// One more than the largest.
    next: u64,
    /// A bit a number, modulo the window.
    bits: [u64; (WINDOW / 64) as usize],
}

impl Default for Window {
    fn default() -> Self {
        Window { next: 0, bits: [0; (WINDOW / 64) as usize] }
    }
}

impl Window {
    /// The number with this end that is nearest to the next one.
    fn nearest(&self, end: u16) -> u64 {
        let ahead = end.wrapping_sub(self.next as u16) as i16;
        self.next.saturating_add_signed(ahead.into())
    }

    fn has(&self, number: u64) -> bool {
        self.bits[(number % WINDOW / 64) as usize] >> (number % 64) & 1 == 1
    }

    fn is_new(&self, number: u64) -> bool {
        number >= self.next || self.next - number <= WINDOW && !self.has(number)
    }

    fn note(&mut self, number: u64) {
        if number >= self.next {
            // What falls out of the window makes room for what has been passed over.
            if number - self.next >= WINDOW {
                self.bits.fill(0);
            } else {
                (self.next..number).for_each(|n| self.set(n, false));
            }
            self.next = number + 1;
        }
        self.set(number, true);
    }

    fn set(&mut self, number: u64, has: bool) {
        let word = &mut self.bits[(number % WINDOW / 64) as usize];
        *word = *word & !(1 << (number % 64)) | u64::from(has) << (number % 64);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    const KEY: Key = Key([7; 32]);

    fn message(datagram: &[u8]) -> &[u8] {
        match read(&Proof::new(&KEY), datagram) {
            Letter::Call(message) | Letter::Answer { message, .. } => message,
            other => panic!("{other:?}"),
        }
    }

    /// A call, the answer, and the callee's conversation.
    fn called() -> (Box<Call>, Vec<u8>, Session) {
        let proof = Proof::new(&KEY);
        let call = Box::new(Call::new(&KEY, &proof, 1).unwrap());
        let (reply, theirs) = answer(&KEY, &proof, message(&call.datagram), 2).unwrap().unwrap();
        (call, reply, theirs)
    }

    fn pair() -> (Session, Session) {
        let (call, reply, theirs) = called();
        assert!(matches!(read(&Proof::new(&KEY), &reply), Letter::Answer { to: 1, .. }));
        (call.answered(message(&reply)).ok().unwrap(), theirs)
    }

    fn open(session: &mut Session, datagram: &[u8]) -> Opened {
        match read(&Proof::new(&KEY), datagram) {
            Letter::Data { to, number, sealed } if to == session.mailbox => session.open(number, sealed),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn both_ways_in_any_order_and_each_once() {
        let (mut a, mut b) = pair();
        let [first, second, third] = [b"one", b"two", b"six"].map(|text| a.seal(text).unwrap().1);
        assert_eq!(open(&mut b, &third), Opened::Frames(2, b"six".to_vec()));
        assert_eq!(open(&mut b, &first), Opened::Frames(0, b"one".to_vec()));
        assert_eq!(b.received(), Some((2, !0b01)));
        assert_eq!(open(&mut b, &first), Opened::Again);
        assert_eq!(open(&mut b, &second), Opened::Frames(1, b"two".to_vec()));
        let (number, back) = b.seal(b"back").unwrap();
        assert_eq!(number, 0);
        assert_eq!(open(&mut a, &back), Opened::Frames(0, b"back".to_vec()));
    }

    #[test]
    fn what_is_changed_on_the_way_is_forged_and_does_not_take_a_number() {
        let (mut a, mut b) = pair();
        let (_, sealed) = a.seal(b"hello").unwrap();
        for at in HEAD - 2..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(open(&mut b, &changed), Opened::Forged, "byte {at}");
        }
        assert_eq!(open(&mut b, &sealed), Opened::Frames(0, b"hello".to_vec()));
    }

    #[test]
    fn numbers_go_on_beyond_what_is_sent_of_them() {
        let (mut a, mut b) = pair();
        let mut old = None;
        // Of many that are lost in a row the next one is still the nearest.
        for number in (0..200_000).step_by(30_000).flat_map(|first| [first, first + 1]) {
            a.next = number;
            let (_, datagram) = a.seal(b"hello").unwrap();
            assert_eq!(open(&mut b, &datagram), Opened::Frames(number, b"hello".to_vec()));
            assert_eq!(open(&mut b, &datagram), Opened::Again);
            old.get_or_insert(datagram);
        }
        // By its end it could be a later one.
        assert_eq!(open(&mut b, &old.unwrap()), Opened::Forged);
    }

    #[test]
    fn another_key_another_conversation_and_another_version_are_nothing() {
        let (other, proof) = (Key([8; 32]), Proof::new(&KEY));
        let call = Call::new(&other, &Proof::new(&other), 1).unwrap();
        assert_eq!(read(&proof, &call.datagram), Letter::Forged);
        // Noise itself would not have it either.
        let call = Call::new(&other, &proof, 1).unwrap();
        assert!(answer(&KEY, &proof, message(&call.datagram), 2).unwrap().is_none());
        let (mut a, _) = pair();
        let (_, mut b) = pair();
        let (_, sealed) = a.seal(b"hello").unwrap();
        assert_eq!(open(&mut b, &sealed), Opened::Forged);
        for kind in [CALL, ANSWER, OLD_DATA] {
            assert_eq!(read(&proof, &[kind, 2, 0, 0]), Letter::OtherVersion(2));
        }
        assert_eq!(read(&proof, &[OLD_DATA, VERSION, 0, 0]), Letter::Nonsense);
    }

    #[test]
    fn a_call_or_an_answer_of_which_a_byte_is_changed_does_not_reach_noise() {
        let (call, reply, _) = called();
        for datagram in [call.datagram.clone(), reply] {
            for at in 2..datagram.len() {
                let mut changed = datagram.clone();
                changed[at] ^= 1;
                assert_eq!(read(&Proof::new(&KEY), &changed), Letter::Forged, "byte {at}");
            }
            assert_eq!(read(&Proof::new(&KEY), &datagram[..datagram.len() - 1]), Letter::Forged);
        }
    }

    #[test]
    fn a_forged_answer_leaves_the_call_standing() {
        let (call, reply, mut theirs) = called();
        let mut forged = message(&reply).to_vec();
        forged[40] ^= 1;
        let call = call.answered(&forged).err().unwrap();
        let call = call.answered(&[]).err().unwrap();
        let mut ours = call.answered(message(&reply)).ok().unwrap();
        let (_, sealed) = ours.seal(b"hello").unwrap();
        assert_eq!(open(&mut theirs, &sealed), Opened::Frames(0, b"hello".to_vec()));
    }

    proptest! {
        #[test]
        fn a_window_is_a_set_that_forgets(numbers in prop::collection::vec(0u64..20_000, 0..400)) {
            let (mut window, mut model, mut largest) = (Window::default(), HashSet::new(), 0);
            for number in numbers {
                let within = number + WINDOW > largest;
                prop_assert_eq!(window.is_new(number), within && !model.contains(&number));
                if window.is_new(number) {
                    window.note(number);
                    model.insert(number);
                    largest = largest.max(number);
                }
            }
        }

        #[test]
        fn any_bytes_are_some_letter(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let proof = Proof::new(&KEY);
            read(&proof, &bytes);
            prop_assert!(answer(&KEY, &proof, &bytes, 2).unwrap().is_none());
        }
    }
}
