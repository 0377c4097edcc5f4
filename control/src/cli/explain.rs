//! `rvs explain`.

use std::io::{self, BufWriter, Write};
use std::net::SocketAddr;

use clap::Args;

use super::{Exit, SocketArg, block_on, pretty};
use crate::admin::explain::Question;
use crate::list;

#[derive(Debug, Args)]
pub(super) struct Explain {
    #[command(flatten)]
    socket: SocketArg,
    /// From whom
    #[arg(long, value_name = "ADDRESS:PORT")]
    src: SocketAddr,
    /// To whom: a service, or for a reply the client
    #[arg(long, value_name = "ADDRESS:PORT")]
    dst: SocketAddr,
    /// The protocol; to esp and ah, which go with the connection of IKE, the ports of --src and --dst are nothing
    #[arg(long, value_name = "PROTOCOL", default_value = "tcp", value_parser = ["tcp", "udp", "sctp", "esp", "ah"])]
    proto: String,
    /// TCP flags by their letters, FSRPAUEC, e.g. S, SA, A, FA; S if nothing is said
    #[arg(long, value_name = "FLAGS")]
    flags: Option<String>,
    /// The port that it comes in on; that which the source is reached through if nothing is said
    #[arg(long, value_name = "NAME")]
    port: Option<String>,
    /// Length of the IP packet; as short as can be if nothing is said
    #[arg(long, value_name = "BYTES")]
    length: Option<u16>,
    /// Which fragment of a datagram it is, if it is one: the first, which has the ports, or a later one; the ports of --src and
    /// --dst are nothing to that
    #[arg(long, value_name = "PIECE", value_parser = ["first", "later"])]
    fragment: Option<String>,
    /// The datagram's identification
    #[arg(long, value_name = "NUMBER", requires = "fragment")]
    id: Option<u32>,
    /// JSON, as the admin API has it
    #[arg(long)]
    json: bool,
}

impl Explain {
    pub(super) fn execute(self) -> anyhow::Result<Exit> {
        let Explain { socket, src, dst, proto, flags, port, length, fragment, id, json } = self;
        let (source, destination, protocol) = (src, dst, Some(proto));
        let question = Question { source, destination, protocol, flags, port, length, fragment, id };
        let explanation = block_on(async { socket.client().explain(&question).await })?;
        let mut out = BufWriter::new(io::stdout().lock());
        match json {
            true => pretty(&mut out, &explanation)?,
            false => list::explanation(&mut out, &explanation)?,
        }
        out.flush()?;
        Ok(Exit::Ok)
    }
}
