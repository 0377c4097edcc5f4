//! `rvs capture`.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use super::{Exit, SocketArg, block_on, complain};
use crate::admin::capture::Question;

#[derive(Debug, Args)]
pub(super) struct Capture {
    #[command(flatten)]
    socket: SocketArg,
    /// Which packets: host A, port P, tcp, udp, sctp, service V:P, dropped, joined by "and"; all if nothing is said
    #[arg(value_name = "FILTER")]
    filter: Vec<String>,
    /// Where to, in pcapng; - is stdout
    #[arg(short, long, value_name = "FILE")]
    write: PathBuf,
    /// End after so many packets; a million if nothing is said
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Look at one packet in N of each worker; 1/1000 if neither this nor a filter is there, else 1/1, which on a
    /// busy router costs (8 ns a packet)
    #[arg(long, value_name = "1/N", value_parser = one_in)]
    rate: Option<u32>,
    /// End after so many seconds; 60 if nothing is said
    #[arg(long, value_name = "S")]
    seconds: Option<u32>,
}

fn one_in(typed: &str) -> Result<u32, String> {
    let n = typed.strip_prefix("1/").unwrap_or(typed).parse().ok().filter(|&n| n > 0);
    n.ok_or_else(|| "expected 1/N, e.g. 1/1000".to_owned())
}

impl Capture {
    pub(super) fn execute(self) -> anyhow::Result<Exit> {
        let Capture { socket, filter, write, count, rate, seconds } = self;
        let question = Question { filter: filter.join(" "), one_in: rate, count, seconds };
        // The file is made when the first piece is there: a question that is refused leaves none.
        let mut out: Option<Box<dyn Write>> = None;
        let mut bytes = 0;
        block_on(socket.client().capture(&question, |piece| {
            let out = match &mut out {
                Some(out) => out,
                None => out.insert(open(&write)?),
            };
            bytes += piece.len();
            // At once, since the capture may be ended by Ctrl-C.
            out.write_all(piece).and_then(|()| out.flush())
        }))?;
        if write != Path::new("-") {
            complain(format_args!("{}: {bytes} bytes", write.display()));
        }
        Ok(Exit::Ok)
    }
}

fn open(path: &Path) -> io::Result<Box<dyn Write>> {
    if path == Path::new("-") {
        return Ok(Box::new(io::stdout()));
    }
    match File::create(path) {
        Ok(file) => Ok(Box::new(file)),
        Err(error) => Err(io::Error::new(error.kind(), format!("cannot write {}: {error}", path.display()))),
    }
}
