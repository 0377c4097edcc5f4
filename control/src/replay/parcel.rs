//! A packet on its way through the router, where it may have to wait, with what there is to say of it afterwards.

use dataplane::engine::Frame;
use dataplane::fib::PortIndex;

/// A packet on its way.
#[derive(Clone, Debug, Default)]
pub struct Parcel {
    /// Its number among all that came in, from 1.
    pub number: u64,
    /// When it came in, in nanoseconds since 1970.
    pub at: u64,
    /// Where it came in.
    pub port: PortIndex,
    /// As it came, if that is to be told.
    pub came: Vec<u8>,
    /// As it is.
    pub frame: Vec<u8>,
}

impl Frame for Parcel {
    fn bytes(&self) -> &[u8] {
        &self.frame
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.frame
    }

    fn advance(&mut self, count: usize) -> bool {
        self.frame.advance(count)
    }

    fn prepend(&mut self, count: usize) -> bool {
        self.frame.prepend(count)
    }
}
