//! Frames for the engine without DPDK.

use dataplane::engine::Frame;

/// A frame that can be used again for as long a packet.
pub trait Slot: Frame {
    /// A frame with this packet.
    fn new(template: &[u8]) -> Self;
    /// The same, with this packet of the same length.
    fn refill(&mut self, template: &[u8]);
}

impl Slot for Vec<u8> {
    fn new(template: &[u8]) -> Self {
        template.to_vec()
    }

    #[inline(always)]
    fn refill(&mut self, template: &[u8]) {
        self.copy_from_slice(template);
    }
}

/// A short frame with room in front, as there is in a packet buffer of DPDK.
pub struct Roomy {
    memory: [u8; 256],
    from: usize,
    to: usize,
}

impl Roomy {
    const HEADROOM: usize = 128;
}

impl Slot for Roomy {
    fn new(template: &[u8]) -> Self {
        let mut frame = Roomy { memory: [0; 256], from: 0, to: Self::HEADROOM + template.len() };
        frame.refill(template);
        frame
    }

    #[inline(always)]
    fn refill(&mut self, template: &[u8]) {
        self.from = Self::HEADROOM;
        self.memory[self.from..self.to].copy_from_slice(template);
    }
}

impl Frame for Roomy {
    fn bytes(&self) -> &[u8] {
        &self.memory[self.from..self.to]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.from..self.to]
    }

    fn advance(&mut self, count: usize) -> bool {
        let is_long = count <= self.to - self.from;
        self.from += if is_long { count } else { 0 };
        is_long
    }

    fn prepend(&mut self, count: usize) -> bool {
        let is_room = count <= self.from;
        self.from -= if is_room { count } else { 0 };
        is_room
    }
}
