//! `rvs replay`.

use std::io::{self, BufWriter};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::Args;

use super::{Exit, complain};
use crate::config::{self, value};
use crate::replay::network::Given;
use crate::replay::router::Down;
use crate::replay::{self, Order, PortFile};

/// What follows the help.
pub(super) const AFTER_HELP: &str = "\
Examples:
  rvs replay -c rvs.toml --in wan=requests.pcap --in lan=replies.pcap
  rvs replay -c rvs.toml --in wan=requests.pcap --expect lan=rewritten.pcap --summary
  rvs replay -c rvs.toml --in wan=requests.pcap --down 10.0.0.11 --json | jq -r .server

Exit codes:
  0  done, and what left the ports is what was expected
  1  it is not, or the operation failed
  2  the command line or the configuration is wrong";

#[derive(Debug, Args)]
pub(super) struct Replay {
    /// The configuration, as for rvs run
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// A capture (pcap or pcapng) of what comes in on a port; several are merged by the packets' times
    #[arg(long = "in", value_name = "PORT=FILE", value_parser = port_file, required = true)]
    inputs: Vec<PortFile>,
    /// A capture of what should leave a port; differences are told
    #[arg(long = "expect", value_name = "PORT=FILE", value_parser = port_file)]
    expected: Vec<PortFile>,
    /// Where to write what leaves a port, as pcap
    #[arg(long = "out", value_name = "PORT=FILE", value_parser = port_file)]
    outputs: Vec<PortFile>,
    /// The MAC of a port; without it that of the configuration, or else 02:00:00:00:00:N for the port number N
    #[arg(long = "mac", value_name = "PORT=MAC", value_parser = port_mac)]
    macs: Vec<(String, [u8; 6])>,
    /// What `ip -j route` prints, or `ip -j -6 route`; without it the ports' networks, and a gateway on the first port
    #[arg(long, value_name = "FILE")]
    routes: Vec<PathBuf>,
    /// What `ip -j neigh` prints; without it every neighbour is known, A.B.C.D as 02:00:A:B:C:D
    #[arg(long, value_name = "FILE")]
    neighbours: Vec<PathBuf>,
    /// A real server that is down; all others are up
    #[arg(long, value_name = "ADDRESS[:PORT]", value_parser = down)]
    down: Vec<Down>,
    /// Of the connection table's hash
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    seed: u64,
    /// JSON, a line a packet
    #[arg(long)]
    json: bool,
    /// Only counters, and differences
    #[arg(long)]
    summary: bool,
}

impl Replay {
    pub(super) fn execute(self) -> anyhow::Result<Exit> {
        let config = config::load(&self.config)?;
        let Replay { inputs, expected, outputs, macs, routes, neighbours, down, seed, json, summary, .. } =
            self;
        let given = Given { macs, routes, neighbours };
        let order = Order { inputs, expected, outputs, given, down, seed, json, summary };
        let end = replay::run(&config, &order, &mut BufWriter::new(io::stdout().lock()))?;
        end.hints.iter().for_each(|hint| complain(format_args!("rvs: {hint}")));
        Ok(if end.agrees { Exit::Ok } else { Exit::Failed })
    }
}

fn port_file(typed: &str) -> Result<PortFile, String> {
    let (port, path) = of_port(typed, "PORT=FILE, e.g. wan=requests.pcap")?;
    Ok((port, path.into()))
}

fn port_mac(typed: &str) -> Result<(String, [u8; 6]), String> {
    let (port, mac) = of_port(typed, "PORT=MAC, e.g. wan=02:00:00:00:00:01")?;
    let mac = value::mac(mac).map_err(|error| format!("{error}; expected {}", value::MAC))?;
    Ok((port, mac))
}

fn of_port<'a>(typed: &'a str, expected: &str) -> Result<(String, &'a str), String> {
    match typed.split_once('=') {
        Some((port, value)) if !port.is_empty() && !value.is_empty() => Ok((port.to_owned(), value)),
        _ => Err(format!("expected {expected}")),
    }
}

fn down(typed: &str) -> Result<Down, String> {
    let whole = typed.parse().map(|address: IpAddr| Down { address, port: None });
    let at_port = || typed.parse().map(|at: SocketAddr| Down { address: at.ip(), port: Some(at.port()) });
    whole.or_else(|_| at_port()).map_err(|_| {
        "expected ADDRESS or ADDRESS:PORT of a real server, e.g. 10.0.0.11:8080 or [2001:db8::11]:8080"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_of_either_family_are_down() {
        let of = |typed| down(typed).map(|down| down.to_string());
        for typed in ["10.0.0.11", "10.0.0.11:8080", "2001:db8::11", "[2001:db8::11]:8080"] {
            assert_eq!(of(typed), Ok(typed.to_owned()));
        }
        for typed in ["", "10.0.0", "10.0.0.11:", "10.0.0.11:65536", "[2001:db8::11]"] {
            assert!(of(typed).is_err_and(|error| error.starts_with("expected ADDRESS")), "{typed}");
        }
    }
}
