//! Two routers in this process that tell each other of connections, by the threads that do it in `rvs`.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use dataplane::changes::{Changes, is_shared};
use dataplane::table::{Table, Word};
use harness::wait;
use rvs::config::{self, Config};
use rvs::sync::session::VERSION;
use rvs::sync::{self, PeerStatus, Shared, Standing, Status, Synchroniser};

use crate::rig::Rig;

/// IP's and UDP's headers.
const HEADERS: u64 = 20 + 8;
/// More than ten million connections take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Forged calls, and how many of them come at once: no more than a socket holds.
const FORGED: u32 = 20_000;
const AT_ONCE: u32 = 1_000;

/// Two routers, and the threads by which they speak.
pub struct Pair {
    sides: [Side; 2],
    /// What the first router's worker notes.
    changes: Option<Arc<Changes>>,
}

/// A router, as its thread shows it.
struct Side {
    shared: Arc<Shared>,
    _thread: Synchroniser,
}

/// What has been spent so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    /// CPU time of each router's thread.
    pub cpu: [Duration; 2],
    /// Bytes of all IP packets between the two, acknowledgements included.
    pub bytes: u64,
}

impl Pair {
    /// Lets two routers speak, and waits until each knows what the other one knows.
    pub fn start(here: &Rig, there: &Rig) -> Result<Pair> {
        let [first, second] = addresses();
        let configs = [config(first, second)?, config(second, first)?];
        // Both can be reached before either calls.
        let sockets = [sync::bind(&configs[0])?, sync::bind(&configs[1])?];
        let [first, second] = sockets;
        let pair = Pair {
            sides: [Side::start(&configs[0], first, here)?, Side::start(&configs[1], second, there)?],
            changes: here.changes.clone(),
        };
        wait::until("both know the same", PATIENCE, || {
            for side in &pair.sides {
                ensure!(side.peer()?.standing == Standing::Together, "they are still speaking");
            }
            Ok(())
        })?;
        Ok(pair)
    }

    /// How long the first router's oldest news has been waiting for the second to confirm it.
    pub fn lag(&self) -> Result<Duration> {
        Ok(self.sides[0].peer()?.lag)
    }

    /// Changes that found no room in the ring.
    pub fn overflows(&self) -> u64 {
        self.sides[0].shared.status().overflows
    }

    /// Waits until all that the first router has to say has come.
    pub fn settle(&self) -> Result<()> {
        wait::until("all notes have been taken", PATIENCE, || {
            ensure!(self.changes.iter().all(|changes| changes.is_empty()), "some are left");
            Ok(())
        })?;
        // What the thread shows from now on knows of them. It takes time to show anything, so the next one is told by that.
        let shown = self.sides[0].shared.status().cpu;
        wait::until("all has been told", PATIENCE, || {
            let Status { cpu, peers, .. } = self.sides[0].shared.status();
            let &[PeerStatus { waiting, lag, .. }] = &peers[..] else { bail!("there is no peer") };
            ensure!(cpu > shown, "nothing has been shown since");
            ensure!(waiting == 0 && lag == Duration::ZERO, "{waiting} wait, for {lag:?}");
            Ok(())
        })
    }

    /// What has been spent.
    pub fn spent(&self) -> Result<Spent> {
        let mut spent = Spent::default();
        for (side, cpu) in self.sides.iter().zip(&mut spent.cpu) {
            *cpu = side.shared.status().cpu;
            let counts = side.peer()?.counts;
            spent.bytes += counts.sent_bytes + HEADERS * counts.sent;
        }
        Ok(spent)
    }
}

impl Side {
    fn start(config: &Config, socket: Option<UdpSocket>, rig: &Rig) -> Result<Side> {
        let (shared, table, snapshots) = (Arc::<Shared>::default(), rig.table.clone(), rig.subscribe());
        let changes = rig.changes.iter().cloned().collect();
        let thread = Synchroniser::start(config, socket, None, shared.clone(), table, snapshots, changes)?;
        Ok(Side { shared, _thread: thread })
    }

    fn peer(&self) -> Result<PeerStatus> {
        self.shared.status().peers.first().copied().context("the thread has not said anything yet")
    }
}

/// The CPU time that a router spends on a call of somebody who does not know the key and calls in the name of its peer.
pub fn forged_call(rig: &Rig) -> Result<Duration> {
    // The lower address calls.
    let [caller, called] = addresses();
    let forger = UdpSocket::bind(caller).context("cannot speak in the name of a peer")?;
    let config = config(called, caller)?;
    let side = Side::start(&config, sync::bind(&config)?, rig)?;
    let call = [&[1, VERSION][..], &[0x55; 82]].concat();
    let refused = |count: u32| {
        wait::until("forged calls are refused", PATIENCE, || {
            let forged = side.peer()?.counts.forged;
            ensure!(forged >= u64::from(count), "only {forged} are");
            Ok(())
        })
    };
    refused(0)?;
    let before = side.shared.status().cpu;
    for sent in (AT_ONCE..=FORGED).step_by(AT_ONCE as usize) {
        for _ in 0..AT_ONCE {
            forger.send_to(&call, called)?;
        }
        refused(sent)?;
    }
    Ok((side.shared.status().cpu - before) / FORGED)
}

/// Two of this machine alone, and of this process: another one may measure at the same time.
fn addresses() -> [SocketAddrV4; 2] {
    let [high, middle, low] = [16, 8, 0].map(|shift| (std::process::id() >> shift) as u8);
    [8848, 8849].map(|port| SocketAddrV4::new(Ipv4Addr::new(127, 128 | high & 63, middle, low), port))
}

/// What a router is told by its file.
fn config(own: SocketAddrV4, peer: SocketAddrV4) -> Result<Config> {
    let mut key = tempfile::NamedTempFile::new().context("cannot write a key")?;
    key.write_all("54".repeat(32).as_bytes())?;
    let text = format!(
        "[workers]\ncores = [1]\n[[port]]\nname = \"wan\"\ndevice = \"net_null0\"\n\
         [sync]\nlisten = \"192.0.2.1:8848\"\npeers = [\"192.0.2.2:8848\"]\nkey_file = {:?}\n",
        key.path()
    );
    let mut config = config::parse(Path::new("rvs.toml"), text.into_bytes())?;
    // Which a file may not say.
    let sync = config.sync.as_mut().context("there is a [sync]")?;
    (sync.listen, sync.peers) = (own.into(), vec![peer.into()]);
    Ok(config)
}

/// Of the connections of one table that peers should know, the share that the other has just so, in percent.
pub fn known(here: &Table, there: &Table) -> f64 {
    let shared = |table: &Table| {
        let words = table.words(0..table.buckets()).filter(|&word| is_shared(word));
        let mut words: Vec<_> = words.map(identity).collect();
        words.sort_unstable();
        words
    };
    let (ours, theirs) = (shared(here), shared(there));
    let known = ours.iter().filter(|word| theirs.binary_search(word).is_ok()).count();
    100.0 * known as f64 / ours.len().max(1) as f64
}

/// All of a connection but when it was seen.
fn identity(word: Word) -> (SocketAddrV4, usize, u8) {
    (word.client().socket(), word.dest_number(), word.state() as u8)
}
