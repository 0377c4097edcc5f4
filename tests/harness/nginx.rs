//! Real servers' web server: nginx with a configuration of its own, apart from any that the machine runs.

use std::{
    fs,
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use crate::{
    cluster::Cluster,
    netns::Namespace,
    process::Daemon,
    wait::{self, PATIENCE},
};

/// Length of the file that `/big` serves.
pub const BIG: usize = 8 << 20;

/// A running nginx on a real server.  One process, no master: what is killed is all there is.
#[derive(Debug)]
pub struct Nginx {
    name: String,
    namespace: Namespace,
    directory: PathBuf,
    /// Where it answers when it is ready.
    port: u16,
    daemon: Option<Daemon>,
}

impl Nginx {
    /// Starts the usual one on the `index`th real server, and waits until it answers there.
    ///
    /// `/` answers with the server's name, `/big?rate=1m` with [`BIG`] bytes at a limited rate.  It listens on 80 and
    /// 8080.
    pub fn start(cluster: &Cluster, index: usize) -> Result<Nginx> {
        Nginx::start_usual(cluster, &cluster.real_servers[index], &format!("rs{}", index + 1))
    }

    /// Starts the usual one on the router itself, as `rs0`.
    pub fn start_on_router(cluster: &Cluster) -> Result<Nginx> {
        Nginx::start_usual(cluster, &cluster.router, "rs0")
    }

    fn start_usual(cluster: &Cluster, namespace: &Namespace, name: &str) -> Result<Nginx> {
        let big = cluster.state().file("big");
        if !big.exists() {
            fs::write(&big, big_file())?;
        }
        Nginx::start_in(cluster, namespace, name, 8080, &usual_site(name, &big))
    }

    /// Starts one with these `server` blocks, which listen on `port` among others, and a name of its own.
    ///
    /// Their files they have in [`Nginx::directory_of`] this name.
    pub fn start_with(
        cluster: &Cluster,
        index: usize,
        name: &str,
        port: u16,
        servers: &str,
    ) -> Result<Nginx> {
        Nginx::start_in(cluster, &cluster.real_servers[index], name, port, servers)
    }

    fn start_in(
        cluster: &Cluster,
        namespace: &Namespace,
        name: &str,
        port: u16,
        servers: &str,
    ) -> Result<Nginx> {
        let directory = Nginx::directory_of(cluster, name)?;
        fs::create_dir_all(directory.join("tmp"))?;
        fs::write(directory.join("nginx.conf"), configuration(&directory, servers))?;
        let (name, namespace) = (name.to_owned(), namespace.clone());
        let mut nginx = Nginx { name, namespace, directory, port, daemon: None };
        nginx.start_again()?;
        Ok(nginx)
    }

    /// The directory of the nginx of this name, also before it is started.
    pub fn directory_of(cluster: &Cluster, name: &str) -> Result<PathBuf> {
        let directory = cluster.state().file(name);
        fs::create_dir_all(&directory)?;
        Ok(directory)
    }

    /// Starts it after it was killed.
    pub fn start_again(&mut self) -> Result<()> {
        let directory = &self.directory;
        let mut daemon = self
            .namespace
            .command("nginx")
            .args(["-c".into(), directory.join("nginx.conf"), "-p".into(), directory.clone()])
            .args(["-e".into(), directory.join("error")])
            .spawn(&format!("nginx-{}", self.name))?;
        wait::until("nginx answers", PATIENCE, || {
            daemon.check_running()?;
            self.namespace.enter(|| Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).map(drop)?))
        })?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Its name: `rs1`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Kills it as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        self.daemon.take().context("it does not run")?.kill()
    }

    /// The addresses of the clients whose requests it has answered, in order.
    pub fn clients(&self) -> Result<Vec<String>> {
        let log = fs::read_to_string(self.directory.join("access"))?;
        Ok(log.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
    }

    /// The access log, as it is.
    pub fn access_log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.directory.join("access"))?)
    }

    /// Waits until it has logged `count` requests or more.
    pub fn wait_logged(&self, count: usize) -> Result<Vec<String>> {
        wait::until("requests are logged", PATIENCE, || {
            let clients = self.clients()?;
            ensure!(clients.len() >= count, "{} of {count}", clients.len());
            Ok(clients)
        })
    }
}

/// What `/big` serves: no two of its blocks are equal, so that nothing can be lost or moved unseen.
pub fn big_file() -> Vec<u8> {
    (0..BIG as u32 / 4).flat_map(|word| word.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect()
}

fn configuration(directory: &Path, servers: &str) -> String {
    let directory = directory.display();
    format!(
        r#"
daemon off;
master_process off;
user root;
pid {directory}/pid;
error_log {directory}/error notice;
worker_rlimit_nofile 65536;
events {{ worker_connections 16384; }}
http {{
    log_format rvs '$remote_addr $remote_port $server_addr:$server_port $status $body_bytes_sent "$request"';
    access_log {directory}/access rvs;
    client_body_temp_path {directory}/tmp;
    proxy_temp_path {directory}/tmp;
    fastcgi_temp_path {directory}/tmp;
    uwsgi_temp_path {directory}/tmp;
    scgi_temp_path {directory}/tmp;
    default_type text/plain;
    # Every request is a connection of its own, which is what the tests count.
    keepalive_timeout 0;
{servers}
}}
"#
    )
}

fn usual_site(name: &str, big: &Path) -> String {
    let big = big.display();
    format!(
        r#"    server {{
        # A socket for each family, so that clients of IPv4 are logged as they are.
        listen 80 backlog=4096;
        listen 8080 backlog=4096;
        listen [::]:80 backlog=4096;
        listen [::]:8080 backlog=4096;
        location / {{ return 200 "{name}\n"; }}
        location = /big {{ alias {big}; limit_rate $arg_rate; }}
    }}"#
    )
}
