//! A synthetic port's packets: which flows come in which order.

use dpdk::Mbuf;
use dpdk::synthetic::Source;

use crate::frame::Frames;

/// Which way packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// From clients to servers.
    In,
    /// From servers to clients.
    Out,
}

/// Which ways the packets of a source go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ways {
    /// All of them one way.
    All(Way),
    /// Every other one back.
    Both,
}

/// In which order the flows of packets come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// One after the other: the table's lines are still met at random, since they are found by a hash.
    Sequential,
    /// Each packet any of the flows.
    Random,
    /// Some flows send much more than others (Zipf's law, exponent 1).
    Zipf,
}

/// Makes packets.
pub struct Packets {
    frames: Frames,
    flows: u32,
    ways: Ways,
    order: Order,
    share: Share,
    next: u32,
    random: u64,
    zipf: Option<Box<Zipf>>,
}

/// Every `count`-th flow.
#[derive(Clone, Copy)]
struct Share {
    index: u32,
    count: u32,
}

impl Share {
    const ALL: Share = Share { index: 0, count: 1 };
}

impl Packets {
    /// Packets of the first `flows` flows.
    pub fn new(frames: Frames, flows: u32, ways: Ways, order: Order, seed: u64) -> Self {
        let zipf = (order == Order::Zipf).then(|| Box::new(Zipf::new(flows)));
        let random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x9E37_79B9_7F4A_7C15;
        Packets { frames, flows, ways, order, share: Share::ALL, next: 0, random, zipf }
    }

    /// Only every `count`-th flow, beginning with number `index`.
    pub fn share(self, index: u32, count: u32) -> Self {
        let flows = (self.flows / count).max(1);
        let zipf = self.zipf.map(|_| Box::new(Zipf::new(flows)));
        Packets { flows, share: Share { index, count }, zipf, ..self }
    }

    #[inline]
    fn number(&mut self) -> u32 {
        match self.order {
            Order::Sequential => {
                let number = self.next;
                self.next = if number + 1 == self.flows { 0 } else { number + 1 };
                number
            }
            Order::Random => ((self.draw() * u64::from(self.flows)) >> 32) as u32,
            Order::Zipf => {
                let drawn = self.draw();
                self.zipf.as_ref().map_or(0, |zipf| zipf.rank(drawn as u32))
            }
        }
    }

    /// 32 random bits: the upper half of a linear congruence, which costs a multiplication.
    #[inline]
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
        self.random >> 32
    }
}

impl Source for Packets {
    fn frame_length(&self) -> u16 {
        self.frames.size
    }

    #[inline]
    fn fill(&mut self, burst: &mut [Mbuf]) {
        for (index, mbuf) in burst.iter_mut().enumerate() {
            let number = self.number();
            let flow = self.frames.flow(number * self.share.count + self.share.index);
            let way = match self.ways {
                Ways::All(way) => way,
                Ways::Both if index % 2 == 0 => Way::In,
                Ways::Both => Way::Out,
            };
            if let Some(headers) = mbuf.data_mut().first_chunk_mut() {
                self.frames.write(way, flow, headers);
            }
        }
    }
}

/// How many connections later the next packet of one comes: not in the same burst.
const APART: u32 = 64;

/// Makes the packets by which connections are opened: in turn a client's SYN, the ACK of a connection begun somewhat
/// before, and a server's packet of one before that.
pub struct Handshakes {
    syn: Frames,
    ack: Frames,
    number: u32,
    step: u32,
}

impl Handshakes {
    /// Of flow 0, 1 and so on.
    pub fn new(syn: Frames, ack: Frames) -> Self {
        Handshakes { syn, ack, number: 0, step: 0 }
    }
}

impl Source for Handshakes {
    fn frame_length(&self) -> u16 {
        self.syn.size
    }

    #[inline]
    fn fill(&mut self, burst: &mut [Mbuf]) {
        for mbuf in burst {
            // The first have nobody before them; their SYN comes again.
            let (frames, way, number) = match (self.step, self.number.checked_sub(self.step * APART)) {
                (1, Some(number)) => (&self.ack, Way::In, number),
                (2, Some(number)) => (&self.ack, Way::Out, number),
                _ => (&self.syn, Way::In, self.number),
            };
            if let Some(headers) = mbuf.data_mut().first_chunk_mut() {
                frames.write(way, frames.flow(number), headers);
            }
            self.step = (self.step + 1) % 3;
            self.number += u32::from(self.step == 0);
        }
    }
}

/// Ranks by Zipf's law with exponent 1, which is (but for rounding) the integer part of `flows ^ u` for an even
/// `u`: a shift and a look-up in a table of mantissas.
struct Zipf {
    /// log2 of the number of flows, in units of 2^-24.
    scale: u64,
    last: u32,
    /// 2^(i/256), in units of 2^-24.
    mantissas: [u32; 256],
}

impl Zipf {
    fn new(flows: u32) -> Self {
        let scale = (f64::from(flows.max(2)).log2() * f64::from(1 << 24)) as u64;
        let mantissa = |i| ((i as f64 / 256.0).exp2() * f64::from(1 << 24)) as u32;
        Zipf { scale, last: flows - 1, mantissas: std::array::from_fn(mantissa) }
    }

    #[inline]
    fn rank(&self, drawn: u32) -> u32 {
        let exponent = (u64::from(drawn) * self.scale) >> 32; // units of 2^-24
        let mantissa = u64::from(self.mantissas[(exponent >> 16) as usize & 0xFF]);
        let power = (mantissa << (exponent >> 24)) >> 24;
        (power as u32 - 1).min(self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zipf_gives_every_doubling_of_rank_the_same_share() {
        let zipf = Zipf::new(1 << 16);
        let mut shares = [0u32; 16];
        for n in 0..1u32 << 20 {
            let rank = zipf.rank(n << 12);
            assert!(rank < 1 << 16);
            shares[(rank + 1).ilog2().min(15) as usize] += 1;
        }
        let expected = (1 << 20) / 16;
        assert!(shares.iter().all(|&share| share.abs_diff(expected) < expected / 20), "{shares:?}");
    }
}
