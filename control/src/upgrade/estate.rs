//! What a program leaves to the one that it becomes: a text, and descriptors.
//!
//! ```text
//!   standard input: a socket with one message
//!     descriptors: [ memory file with the text | one for each item of the text ... ]
//! ```
//!
//! Who reads a message gets its descriptors as its own, closed at the next exec. To hand them on by their numbers would
//! be less, but then each program that is started meanwhile has them as well, and a twin lives as long as one does.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek};
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};

use super::Gap;
use crate::addresses::Orders;
use crate::admin::api;
use crate::health::Known;
use crate::services::Changes;

/// The form of the text. A program understands one. (Those of form 2 know addresses of IPv4 only, and have not set up their twins
/// for IPv6.)
pub const FORM: u32 = 3;

/// Has the number of the process whose standard input is an estate, so that programs that it starts are not meant.
pub const VARIABLE: &str = "RVS_ESTATE";

/// Descriptors that Linux takes in a message (`SCM_MAX_FD`).
const MOST: usize = 253;

/// All but the descriptors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Estate {
    /// What the upgrade is called.
    pub id: String,
    /// The version that hands over.
    pub from: String,
    /// How the program that hands over was called.
    pub program: PathBuf,
    /// How long nothing has been forwarded so far.
    pub gap: Gap,
    /// What the old program knew.
    pub knowledge: Knowledge,
    /// What the old program had on its twins.
    pub twins: Vec<OldTwin>,
    /// Why the program that was to take over could not be started.
    pub error: Option<String>,
}

impl From<Estate> for api::Upgrade {
    fn from(estate: Estate) -> api::Upgrade {
        let Estate { id, from, gap, error, .. } = estate;
        let to = env!("CARGO_PKG_VERSION").to_owned();
        api::Upgrade { id, from, to, gap_us: gap.microseconds(), stages: gap.stages(), error }
    }
}

/// What a director knows and its successor could not find again at once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Knowledge {
    /// Whether it knows what its peers know, as far as it has any.
    pub is_ready: bool,
    /// What an operator has taken out of service.
    pub orders: Orders,
    /// Which servers are up, and which are not. Without it those that begin as down would have no new connection until they
    /// have been checked, and their addresses would be withdrawn meanwhile.
    pub checks: Vec<Known>,
    /// What was changed live.
    pub changes: Changes,
}

/// What a program had on a twin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OldTwin {
    /// The name of its port.
    pub name: String,
    /// The port's addresses, with their prefix lengths.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Virtual addresses that RVS has put there.
    pub placed: Vec<IpAddr>,
}

/// What a descriptor is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Item {
    /// The admin socket, listening.
    Socket,
    /// `admin.tcp`, listening.
    Remote,
    /// The twin of the port of this name.
    Twin(String),
    /// The program that hands over, whatever is by now where it was started from.
    Program,
}

#[derive(Serialize, Deserialize)]
struct Text {
    form: u32,
    items: Vec<Item>,
    estate: Estate,
}

/// What has been left to this program.
#[derive(Debug)]
pub struct Inheritance {
    /// All but the descriptors.
    pub estate: Estate,
    items: Vec<(Item, OwnedFd)>,
}

impl Inheritance {
    /// Takes what a predecessor has left on standard input, if there is one. What cannot be understood is left alone, said,
    /// and closed.
    pub fn take() -> Option<Inheritance> {
        let heir = std::env::var(VARIABLE).ok()?;
        if heir != std::process::id().to_string() {
            return None;
        }
        let taken = receive(io::stdin().as_fd());
        // Whatever was not taken goes with the socket.
        let empty = File::open("/dev/null").and_then(|null| Ok(rustix::stdio::dup2_stdin(&null)?));
        if let Err(error) = empty {
            tracing::warn!(%error, "standard input stays what it is");
        }
        taken
            .inspect_err(|error| {
                let error = format!("{error:#}");
                tracing::error!(error, "cannot take what the old program has left; starting afresh");
            })
            .ok()
    }

    /// The descriptor of an item, once.
    pub fn item(&mut self, wanted: &Item) -> Option<OwnedFd> {
        let place = self.items.iter().position(|(item, _)| item == wanted)?;
        Some(self.items.swap_remove(place).1)
    }

    /// All items once more.
    pub(super) fn copies(&self) -> io::Result<Vec<(Item, OwnedFd)>> {
        self.items.iter().map(|(item, descriptor)| Ok((item.clone(), descriptor.try_clone()?))).collect()
    }

    /// What was wanted has been taken, and the rest goes, as twins of ports that are not configured any more. To be called
    /// before this program starts others: those of the old one have ended with it, and are waited for here, since
    /// nobody else knows of them.
    pub fn settle(self) -> Estate {
        while let Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) =
            waitpid(None, Some(WaitPidFlag::WNOHANG))
        {}
        self.estate
    }
}

/// A socket from which [`Inheritance::take`] takes this.
pub(super) fn leave(estate: &Estate, items: &[(Item, OwnedFd)]) -> Result<OwnedFd> {
    ensure!(items.len() < MOST, "{} descriptors; expected fewer than {MOST}", items.len());
    let names = items.iter().map(|(item, _)| item.clone()).collect();
    let text = Text { form: FORM, items: names, estate: estate.clone() };
    let mut file = File::from(memfd_create("rvs-estate", MemfdFlags::CLOEXEC).context("memfd_create")?);
    serde_json::to_writer(&mut file, &text).context("cannot write into memory")?;
    file.rewind()?;

    let descriptors: Vec<BorrowedFd<'_>> =
        std::iter::once(file.as_fd()).chain(items.iter().map(|(_, item)| item.as_fd())).collect();
    let (kind, flags) = (SocketType::DGRAM, SocketFlags::CLOEXEC);
    let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, flags, None).context("socketpair")?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    ensure!(control.push(SendAncillaryMessage::ScmRights(&descriptors)), "too many descriptors");
    sendmsg(&ours, &[IoSlice::new(b"e")], &mut control, SendFlags::empty()).context("sendmsg")?;
    Ok(theirs)
}

fn receive(socket: BorrowedFd<'_>) -> Result<Inheritance> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, flags).context("recvmsg")?;
    let rights = |message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    };
    let mut descriptors: Vec<OwnedFd> = control.drain().filter_map(rights).flatten().collect();
    if descriptors.is_empty() {
        bail!("there are no descriptors");
    }
    let mut text = Vec::new();
    File::from(descriptors.remove(0)).read_to_end(&mut text).context("cannot read the text")?;
    let Text { form, items, estate } = serde_json::from_slice(&text).context("cannot understand the text")?;
    ensure!(form == FORM && items.len() == descriptors.len(), "it is of form {form}; expected {FORM}");
    Ok(Inheritance { estate, items: items.into_iter().zip(descriptors).collect() })
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::Ipv4Addr;

    use super::*;

    fn estate() -> Estate {
        Estate {
            id: "7".into(),
            from: "0.1.0".into(),
            program: "/usr/local/sbin/rvs".into(),
            gap: Gap::begin(),
            knowledge: Knowledge { is_ready: true, ..Knowledge::default() },
            twins: vec![OldTwin {
                name: "wan".into(),
                addresses: vec![([192, 0, 2, 1].into(), 24), ("2001:db8::1".parse().unwrap(), 64)],
                placed: vec![[192, 0, 2, 10].into(), "2001:db8::10".parse().unwrap()],
            }],
            error: None,
        }
    }

    #[test]
    fn what_is_left_is_what_is_taken() {
        let (mut reader, writer) = io::pipe().unwrap();
        let (_other, socket) = io::pipe().unwrap();
        let items = [(Item::Socket, OwnedFd::from(socket)), (Item::Twin("wan".into()), writer.into())];
        let left = leave(&estate(), &items).unwrap();
        drop(items);
        let mut taken = receive(left.as_fd()).unwrap();
        assert_eq!(taken.estate.twins, estate().twins);
        assert!(taken.item(&Item::Remote).is_none());
        let mut pipe = File::from(taken.item(&Item::Twin("wan".into())).unwrap());
        assert!(taken.item(&Item::Twin("wan".into())).is_none(), "once");
        pipe.write_all(b"through").unwrap();
        drop(pipe);
        let mut read = String::new();
        reader.read_to_string(&mut read).unwrap();
        assert_eq!(read, "through");
        assert!(receive(left.as_fd()).is_err(), "there is nothing more");
    }

    /// Linux closes what nobody takes.
    #[test]
    fn what_nobody_takes_ends() {
        let (mut reader, writer) = io::pipe().unwrap();
        let left = leave(&estate(), &[(Item::Remote, writer.into())]).unwrap();
        drop(left);
        assert_eq!(reader.read(&mut [0]).unwrap(), 0, "the end of the pipe");
    }

    #[test]
    fn many_twins_and_many_addresses_fit() {
        let (_reader, writer) = io::pipe().unwrap();
        let item = |n: usize| (Item::Twin(format!("port{n}")), writer.try_clone().unwrap().into());
        let items: Vec<_> = (0..MOST - 1).map(item).collect();
        let mut many = estate();
        many.twins[0].placed = (0..100_000).map(|bits| Ipv4Addr::from_bits(bits).into()).collect();
        let left = leave(&many, &items).unwrap();
        let taken = receive(left.as_fd()).unwrap();
        assert_eq!((taken.estate, taken.items.len()), (many, MOST - 1));
    }
}
