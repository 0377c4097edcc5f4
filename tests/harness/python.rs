//! Real servers that Debian has as Python libraries: a mail sink (aiosmtpd) and gRPC.
//!
//! What they are to do wrong, a test tells them by [`Flags`]; which there are stands in `python/`.

use std::net::{SocketAddrV4, TcpStream};
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::{
    cluster::Cluster,
    flags::Flags,
    netns::Namespace,
    process::{Command, Daemon},
    state::State,
    wait::{self, PATIENCE},
};

/// Debian's, which has Debian's libraries; another one may come first in the path.
pub const PYTHON: &str = "/usr/bin/python3";

/// Writes a program to where a cluster's files are, beside what gives it devices of its own; gives its path.
pub(crate) fn with_devices(state: &State, name: &str, program: &str) -> Result<PathBuf> {
    std::fs::write(state.file("tuntap.py"), include_str!("python/tuntap.py"))?;
    let path = state.file(name);
    std::fs::write(&path, program)?;
    Ok(path)
}

/// A running server.
#[derive(Debug)]
pub struct PythonServer {
    name: &'static str,
    namespace: Namespace,
    address: SocketAddrV4,
    daemon: Option<Daemon>,
    /// By which it is told how to behave.
    pub flags: Flags,
}

impl PythonServer {
    /// Starts a mail server that keeps no mail on the `index`th real server, and waits until it answers.
    pub fn mail(cluster: &Cluster, index: usize) -> Result<PythonServer> {
        PythonServer::start(cluster, index, "mail", 25)
    }

    /// Starts a gRPC server with a health service on the `index`th real server, and waits until it answers.
    pub fn grpc(cluster: &Cluster, index: usize) -> Result<PythonServer> {
        PythonServer::start(cluster, index, "health", 50051)
    }

    fn start(cluster: &Cluster, index: usize, name: &'static str, port: u16) -> Result<PythonServer> {
        let flags = Flags::new(cluster.state().file(name))?;
        flags.write("mail.py", include_str!("python/mail.py"))?;
        flags.write("health.py", include_str!("python/health.py"))?;
        let namespace = cluster.real_servers[index].clone();
        let address = cluster.endpoint(index, port);
        let mut server = PythonServer { name, namespace, address, daemon: None, flags };
        server.start_again()?;
        Ok(server)
    }

    /// Starts it after it was killed.
    pub fn start_again(&mut self) -> Result<()> {
        let mut daemon = self.command().spawn(self.name)?;
        wait::until("the server answers", PATIENCE, || {
            daemon.check_running()?;
            self.namespace.enter(|| Ok(TcpStream::connect(self.address).map(drop)?))
        })?;
        self.daemon = Some(daemon);
        Ok(())
    }

    fn command(&self) -> Command {
        let (address, directory) = (self.address.to_string(), self.flags.directory());
        let python = self.namespace.command(PYTHON);
        match self.name {
            "mail" => python
                .args(["-m", "aiosmtpd", "--nosetuid", "--listen", &address, "--class", "mail.MoodySink"])
                .arg(directory)
                .env("PYTHONPATH", &directory.to_string_lossy()),
            _ => python.arg(directory.join("health.py")).arg(address).arg(directory),
        }
    }

    /// Kills it as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        self.daemon.take().context("it does not run")?.kill()
    }
}
