//! What users do: ask for web pages, look up names, talk over sockets.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream, UdpSocket},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    netns::Namespace,
    process::Daemon,
    wait::{self, PATIENCE},
};

/// How long a single request may take; far above the second after which a lost SYN is sent again.
const REQUEST_LIMIT: u32 = 15;

/// What became of many requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    /// How many were answered by whom.
    pub by: BTreeMap<String, u64>,
    /// How many were not answered, and what curl said about them.
    pub failed: Vec<String>,
}

impl Answers {
    /// How many were answered.
    pub fn total(&self) -> u64 {
        self.by.values().sum()
    }

    /// How many this server answered.
    pub fn of(&self, server: &str) -> u64 {
        self.by.get(server).copied().unwrap_or(0)
    }

    /// The answers of rs1, rs2 and rs3; an error if any request failed.
    pub fn counts(&self) -> Result<[u64; 3]> {
        ensure!(self.failed.is_empty(), "{} requests failed: {:?}", self.failed.len(), self.failed);
        Ok(["rs1", "rs2", "rs3"].map(|server| self.of(server)))
    }

    fn add(&mut self, output: &str) {
        for line in output.lines().filter(|line| *line != "curl 0 200") {
            if line.starts_with("rs") {
                *self.by.entry(line.to_owned()).or_default() += 1;
            } else {
                self.failed.push(line.to_owned());
            }
        }
    }
}

/// Asks `address` for `/` so many times, one after the other, each over a connection of its own.
pub fn get(client: &Namespace, address: impl Into<SocketAddr>, count: u64) -> Result<Answers> {
    get_parallel(client, address, count, 1)
}

/// Asks `address` for `/` so many times, `parallel` at a time.
///
/// Every request prints the answer and a line `curl EXITCODE STATUS`; both must be there.
pub fn get_parallel(
    client: &Namespace,
    address: impl Into<SocketAddr>,
    count: u64,
    parallel: u32,
) -> Result<Answers> {
    // A curl process handles a few thousand transfers well, and tens of thousands badly.
    const PORTION: u64 = 2500;
    let address = address.into();
    let mut answers = Answers::default();
    let mut left = count;
    while left > 0 {
        let portion = left.min(PORTION);
        left -= portion;
        let mut curl = client.command("curl");
        if parallel > 1 {
            curl = curl.words("--parallel --parallel-immediate --parallel-max").arg(parallel.to_string());
        }
        let request = |number: u64| {
            format!(
                "url = \"http://{address}/?{number}\"\nlocal-port = {}\nmax-time = {REQUEST_LIMIT}\n\
                 write-out = \"curl %{{exitcode}} %{{http_code}}\\n\"\nsilent\nshow-error\nno-keepalive\ngloboff\n",
                next_port()
            )
        };
        let requests: Vec<String> = (0..portion).map(request).collect();
        let output = curl
            .args(["--config", "-"])
            .input(requests.join("next\n"))
            .limit(Duration::from_secs(300))
            .output()?;
        let before = answers.total() + answers.failed.len() as u64;
        answers.add(&output.stdout);
        let after = answers.total() + answers.failed.len() as u64;
        if after - before != portion {
            answers.failed.push(format!(
                "{portion} asked, {} accounted for: {}",
                after - before,
                output.stderr
            ));
        }
    }
    Ok(answers)
}

/// A port that this test has used for no request yet, below those that Linux chooses.
///
/// Linux may choose one twice within seconds. What it was used for before may still be in the router's table, which sees no end of a
/// connection with direct routing, and is then the server's that it was: no test could say how many requests each server gets.
fn next_port() -> u16 {
    static USED: AtomicU16 = AtomicU16::new(0);
    10_000 + USED.fetch_add(1, Ordering::Relaxed) % 20_000
}

/// Starts a download of the big file at a limited rate (`1m` = 1 MiB/s) into `NAME` in the state directory.
pub fn start_download(
    client: &Namespace,
    address: impl Into<SocketAddr>,
    rate: &str,
    name: &str,
) -> Result<Daemon> {
    let file = client.state().file(name);
    client
        .command("curl")
        .words("--silent --show-error --fail --max-time 120 --output")
        .arg(file)
        .arg("--globoff")
        .arg(format!("http://{}/big?rate={rate}", address.into()))
        .spawn(&format!("download-{name}"))
}

/// So many bytes to a [`Server::tcp_mirror`](crate::servers::Server::tcp_mirror) and back.
pub fn there_and_back(client: &Namespace, address: impl Into<SocketAddr>, length: usize) -> Result<()> {
    let message: Vec<u8> = (0..length as u32).map(|n| (n.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect();
    let mut stream = connect(client, address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&message)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("nothing comes back")?;
    ensure!(answer == message, "{} of {length} bytes came back", answer.len());
    Ok(())
}

/// A connected TCP socket of the client, with limited patience. Why it is none is connect(2)'s own word: `TcpStream::connect_timeout` asks for
/// it after poll(2), and may find none ("no error set after POLLHUP").
pub fn connect(client: &Namespace, address: impl Into<SocketAddr>) -> Result<TcpStream> {
    let address = address.into();
    client.enter(|| {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_tcp_nodelay(true)?;
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        socket.set_write_timeout(Some(Duration::from_secs(10)))?;
        socket.connect(&address.into()).with_context(|| format!("connecting to {address}"))?;
        Ok(TcpStream::from(socket))
    })
}

/// A TCP socket that is bound to a port of its own choosing, not yet connected.
pub fn bound(address: impl Into<SocketAddr>) -> Result<Socket> {
    let address = address.into();
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    socket.set_write_timeout(Some(Duration::from_secs(10)))?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// A connection from an address and port of the client (0 for one of its own choosing) to a server that says its name of three letters and
/// then what it hears, and the name.
pub fn named(client: &Namespace, from: SocketAddr, to: SocketAddr) -> Result<(TcpStream, String)> {
    let mut stream = client.enter(|| {
        let socket = bound(from)?;
        socket.connect(&to.into()).with_context(|| format!("connecting to {to}"))?;
        Ok(TcpStream::from(socket))
    })?;
    let mut name = [0; 3];
    stream.read_exact(&mut name).with_context(|| format!("from {to}"))?;
    echo(&mut stream, b"there and back")?;
    Ok((stream, String::from_utf8_lossy(&name).into_owned()))
}

/// A UDP socket from an address of the client to a server that says what it hears, and which has done so: whoever is on the way knows
/// now who is where.
pub fn heard(
    client: &Namespace,
    from: impl Into<SocketAddr>,
    to: impl Into<SocketAddr>,
) -> Result<UdpSocket> {
    let from = from.into();
    let socket = client.enter(|| Ok(UdpSocket::bind(from)?))?;
    socket.connect(to.into())?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    wait::until("the first echo", PATIENCE, || {
        socket.send(b"first")?;
        Ok(socket.recv(&mut [0; 16])?)
    })?;
    // An answer to one that was sent twice is none to what follows.
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    while socket.recv(&mut [0; 16]).is_ok() {}
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Sends `message` and waits until it has come back as it was.
pub fn echo(stream: &mut TcpStream, message: &[u8]) -> Result<()> {
    stream.write_all(message)?;
    let mut answer = vec![0; message.len()];
    stream.read_exact(&mut answer).context("no echo")?;
    ensure!(answer == message, "another echo: {answer:?}");
    Ok(())
}

/// Ends a connection in both directions, and waits for the other side to do the same.
pub fn close(mut stream: TcpStream) -> Result<()> {
    stream.shutdown(Shutdown::Write)?;
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest)?;
    ensure!(rest.is_empty(), "unexpected data at the end: {rest:?}");
    Ok(())
}

/// Sends an ICMP echo request and waits for its reply: one attempt a second, as ping does, at most five.
pub fn ping(client: &Namespace, address: Ipv4Addr) -> Result<()> {
    client.enter(|| {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        let craft = crate::packet::Craft::ping(Ipv4Addr::UNSPECIFIED, address).build();
        let request = &craft[crate::packet::ETHERNET + 20..];
        for _ in 0..5 {
            socket.send_to(request, &SocketAddr::from((address, 0)).into())?;
            let mut buffer = [0; 2048];
            while let Ok(length) = (&socket).read(&mut buffer) {
                let Some(ip) = crate::packet::Ipv4::parse(&buffer[..length]) else { continue };
                // Echo reply with our identifier, sequence number and data.
                if ip.source() == address && ip.payload()[0] == 0 && ip.payload()[4..] == request[4..] {
                    return Ok(());
                }
            }
        }
        bail!("{address} does not answer ping")
    })
}

/// Asks a name server on `address` for a TXT record by dig, once, from this port; the text. Left to itself dig takes a
/// random port, and of thirty two are the same once in sixty times: one connection less.
pub fn dig(client: &Namespace, port: u16, address: impl Into<SocketAddr>) -> Result<String> {
    let address = address.into();
    let any = if address.is_ipv4() { "0.0.0.0" } else { "::" };
    let output = client
        .command("dig")
        .args(["-b".into(), format!("{any}#{port}")])
        .args([format!("@{}", address.ip()), "-p".into(), address.port().to_string()])
        .words("+tries=1 +time=5 +short +noedns whoami.rvs.test TXT")
        .run()?;
    let text = output.trim().trim_matches('"').to_owned();
    ensure!(text.starts_with("rs"), "dig said: {output}");
    Ok(text)
}
