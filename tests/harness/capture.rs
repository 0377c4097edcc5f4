//! Packet capture by tcpdump, and a reader for the files that it writes.
//!
//! The DPDK socket driver sends past the point where captures on the same interface look (it bypasses the
//! queueing discipline), so what a router sent is captured at the other end of the wire: on the client, or on
//! the bridge's port towards the router.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use crate::{
    netns::Namespace,
    packet::Frame,
    process::Daemon,
    wait::{self, PATIENCE},
};

/// A running capture on one interface.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Daemon,
    file: PathBuf,
}

impl Capture {
    /// Starts capturing what passes `interface`, both directions, and waits until it does.
    pub fn start(namespace: &Namespace, interface: &str, filter: &str) -> Result<Capture> {
        let file = namespace.state().fresh_file(&format!("{}-{interface}", namespace.name()), "pcap");
        let name = file.file_stem().context("a file name")?.to_string_lossy().into_owned();
        // -Z root: the state directory is root's, and tcpdump would give that up.  64 MiB of kernel buffer
        // last for every packet of a test.
        let mut tcpdump = namespace
            .command("tcpdump")
            .words("-Z root -U -n -p -s 0 -B 65536 --immediate-mode --nano")
            .args(["-i", interface, "-w"])
            .arg(&file)
            .words(filter)
            .spawn(&format!("tcpdump-{name}"))?;
        wait::until("tcpdump listens", PATIENCE, || {
            tcpdump.check_running()?;
            ensure!(tcpdump.log().contains("listening on"), "it does not listen yet");
            Ok(())
        })?;
        Ok(Capture { tcpdump, file })
    }

    /// What has been captured so far.
    pub fn frames(&self) -> Result<Vec<Frame>> {
        read(&fs::read(&self.file)?)
    }

    /// Waits until what has been captured satisfies `enough`; returns it and ends the capture.
    ///
    /// Frames come in order: who asks for the last frame of an exchange has all that came before it.
    pub fn finish(mut self, what: &str, mut enough: impl FnMut(&[Frame]) -> bool) -> Result<Vec<Frame>> {
        let frames = wait::until(what, PATIENCE, || {
            self.tcpdump.check_running()?;
            let frames = self.frames()?;
            ensure!(enough(&frames), "not in the {} frames of {}", frames.len(), self.file.display());
            Ok(frames)
        })?;
        self.tcpdump.signal(Signal::SIGINT)?;
        self.tcpdump.wait(PATIENCE)?;
        let log = self.tcpdump.log();
        ensure!(log.contains("\n0 packets dropped by kernel"), "tcpdump missed packets: {log}");
        Ok(frames)
    }
}

/// Reads the frames of a pcap file; an unfinished last one is left out.
fn read(bytes: &[u8]) -> Result<Vec<Frame>> {
    let Some(magic) = bytes.get(..4) else { return Ok(vec![]) };
    let magic = u32::from_ne_bytes(magic.try_into()?);
    // Written on this machine, so in its byte order.
    let nanoseconds = match magic {
        0xa1b2_c3d4 => 1000,
        0xa1b2_3c4d => 1,
        _ => bail!("not a pcap file of this machine: magic {magic:08x}"),
    };
    let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let mut frames = Vec::new();
    let mut at = 24;
    while let (Some(seconds), Some(fraction), Some(length)) = (word(at), word(at + 4), word(at + 8)) {
        let Some(data) = bytes.get(at + 16..at + 16 + length as usize) else { break };
        let time = u64::from(seconds) * 1_000_000_000 + u64::from(fraction) * nanoseconds;
        frames.push(Frame { at: time, bytes: data.to_vec() });
        at += 16 + length as usize;
    }
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use super::read;

    #[test]
    fn a_file_is_read_up_to_its_unfinished_end() {
        let mut file = Vec::new();
        for word in [0xa1b2_3c4d_u32, 0, 0, 0, 262_144, 1] {
            file.extend(word.to_ne_bytes());
        }
        for length in [3_u32, 5] {
            for word in [1, 7, length, length] {
                file.extend(word.to_ne_bytes());
            }
            file.extend([9; 3]);
        }
        let frames = read(&file).unwrap();
        assert_eq!(frames.len(), 1);
        assert_eq!((frames[0].at, &frames[0].bytes[..]), (1_000_000_007, &[9; 3][..]));
        assert!(read(b"").unwrap().is_empty());
        assert!(read(b"noise").is_err());
    }
}
