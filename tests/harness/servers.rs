//! Small servers for what nginx does not do: echo over TCP and UDP, and names.
//!
//! Threads of the test itself, with their sockets in a real server's namespace.  They end when dropped.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Result;

use crate::netns::Namespace;

/// How often a server looks whether it should end.
const TICK: Duration = Duration::from_millis(50);

/// A server thread.
#[derive(Debug)]
pub struct Server {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Answers every TCP connection with `greeting`, sends back what comes, closes when the client does.
    pub fn tcp_echo(namespace: &Namespace, address: impl Into<SocketAddr>, greeting: &str) -> Result<Server> {
        let greeting = greeting.as_bytes().to_vec();
        Server::tcp(namespace, address, move |mut stream| {
            let mut buffer = vec![0; 65536];
            let _ = stream.write_all(&greeting);
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                if stream.write_all(&buffer[..length]).is_err() {
                    break;
                }
            }
        })
    }

    /// Reads one byte of every TCP connection, answers with one byte, and closes first.
    pub fn tcp_one_byte(namespace: &Namespace, address: impl Into<SocketAddr>) -> Result<Server> {
        Server::tcp(namespace, address, |mut stream| {
            let mut byte = [0];
            if stream.read_exact(&mut byte).is_ok() {
                let _ = stream.write_all(&byte);
            }
        })
    }

    /// Sends back all that has come, once all has come.
    pub fn tcp_mirror(namespace: &Namespace, address: impl Into<SocketAddr>) -> Result<Server> {
        Server::tcp(namespace, address, |mut stream| {
            let mut all = Vec::new();
            if stream.read_to_end(&mut all).is_ok() {
                let _ = stream.write_all(&all);
            }
        })
    }

    /// Does this with every TCP connection, in a thread of its own.
    ///
    /// A read that brings nothing for a minute fails, so that no thread stays for ever.
    pub fn tcp(
        namespace: &Namespace,
        address: impl Into<SocketAddr>,
        serve: impl Fn(TcpStream) + Clone + Send + 'static,
    ) -> Result<Server> {
        let address = address.into();
        let listener = namespace.enter(|| Ok(TcpListener::bind(address)?))?;
        listener.set_nonblocking(true)?;
        Ok(Server::start(move |stop, served| {
            // Waiting in poll(2) and not in sleep: the tests measure how long an answer takes.
            let mut ready =
                [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(&listener), nix::poll::PollFlags::POLLIN)];
            while !stop.load(Ordering::Relaxed) {
                let _ = nix::poll::poll(&mut ready, TICK.as_millis() as u16);
                while let Ok((stream, _)) = listener.accept() {
                    served.fetch_add(1, Ordering::Relaxed);
                    let serve = serve.clone();
                    let _ = stream.set_nonblocking(false);
                    let _ = stream.set_nodelay(true);
                    // Bounds the life of the thread, should the client never come back.
                    let _ = stream.set_read_timeout(Some(Duration::from_secs(60)));
                    thread::spawn(move || serve(stream));
                }
            }
        }))
    }

    /// Sends every UDP datagram back.
    pub fn udp_echo(namespace: &Namespace, address: impl Into<SocketAddr>) -> Result<Server> {
        Server::udp(namespace, address, |request| Some(request.to_vec()))
    }

    /// Answers every UDP datagram with `name`.
    pub fn udp_name(namespace: &Namespace, address: impl Into<SocketAddr>, name: &str) -> Result<Server> {
        let name = name.as_bytes().to_vec();
        Server::udp(namespace, address, move |_| Some(name.clone()))
    }

    /// Answers every DNS question with one TXT record that says `name`.
    pub fn dns(namespace: &Namespace, address: impl Into<SocketAddr>, name: &str) -> Result<Server> {
        let name = name.to_owned();
        Server::udp(namespace, address, move |request| answer(request, &name))
    }

    fn udp(
        namespace: &Namespace,
        address: impl Into<SocketAddr>,
        respond: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + 'static,
    ) -> Result<Server> {
        let address = address.into();
        let socket = namespace.enter(|| Ok(UdpSocket::bind(address)?))?;
        socket.set_read_timeout(Some(TICK))?;
        Ok(Server::start(move |stop, served| {
            let mut buffer = [0; 65536];
            while !stop.load(Ordering::Relaxed) {
                match socket.recv_from(&mut buffer) {
                    Ok((length, client)) => {
                        served.fetch_add(1, Ordering::Relaxed);
                        if let Some(response) = respond(&buffer[..length]) {
                            let _ = socket.send_to(&response, client);
                        }
                    }
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                    // ICMP errors that come back to it: none of its business.
                    Err(_) => {}
                }
            }
        }))
    }

    fn start(body: impl FnOnce(&AtomicBool, &AtomicU64) + Send + 'static) -> Server {
        let stop = Arc::new(AtomicBool::new(false));
        let served = Arc::new(AtomicU64::new(0));
        let (its_stop, its_served) = (stop.clone(), served.clone());
        let thread = Some(thread::spawn(move || body(&its_stop, &its_served)));
        Server { stop, served, thread }
    }

    /// How many connections or datagrams it has served.
    pub fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The response to a query with one question (RFC 1035, 4.1).
fn answer(query: &[u8], text: &str) -> Option<Vec<u8>> {
    let question = query.get(12..)?;
    // The name is a list of labels up to an empty one; type and class follow.
    let mut end = 0;
    while *question.get(end)? != 0 {
        end += usize::from(question[end]) + 1;
    }
    let question = question.get(..end + 5)?;
    let mut response = query[..2].to_vec();
    // A response with authority, no error; one question, one answer.
    response.extend([0x84, 0, 0, 1, 0, 1, 0, 0, 0, 0]);
    response.extend(question);
    // The name of the question, TXT, IN, never to be remembered.
    response.extend([0xc0, 12, 0, 16, 0, 1, 0, 0, 0, 0]);
    response.extend((text.len() as u16 + 1).to_be_bytes());
    response.push(text.len() as u8);
    response.extend(text.as_bytes());
    Some(response)
}
