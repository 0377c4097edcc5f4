//! FTP (RFC 959, 2428; docs/operating.md): which data connections a control connection brings, and the one line that names an address.

use std::net::{IpAddr, SocketAddr};

use dataplane::service::{Helper, Protocol};

use super::connections::Connection;
use super::persistence::network;
use super::{Frame, Model};
use crate::packet::{ACK, Packet, RST, SYN};
use crate::tcp::{self, State};
use crate::world::{self, Flow, Leaving, Service};

/// Of control connections at the server,
const CONTROL: u16 = 21;
/// of data connections that the server opens,
const DATA: u16 = 20;
/// and the first of those that the client opens.
const FIRST_PASSIVE: u16 = 1024;
/// A line is no longer, but for its end.
const LONGEST: usize = 128;

/// Whether a connection to this port is a data connection, or none at all.
pub(super) fn is_of_data(service: &Service, port: u16) -> bool {
    service.helper == Some(Helper::Ftp) && port != CONTROL
}

impl Model {
    /// The server that a client's data connection to this port is with.
    pub(super) fn controlled(&self, frame: &Frame<'_>, number: usize, flow: Flow) -> Option<usize> {
        let server = self.control(frame, number, flow.client.ip())?;
        let its = &self.services[number].servers[server];
        let serves = its.up && its.leaving != Some(Leaving::Resetting);
        (serves && flow.destination.port() >= FIRST_PASSIVE).then_some(server)
    }

    /// The server that a client has or has had an established connection with, as long as it comes back there.
    fn control(&self, frame: &Frame<'_>, number: usize, client: IpAddr) -> Option<usize> {
        let network = network(client, self.services[number].persistence?.prefix);
        let template = self.templates.iter().find(|one| one.service == number && one.network == network)?;
        (template.is_confirmed && self.is_there(frame, template)).then_some(template.server)
    }

    /// A data connection that a server opens, if it has a control connection with that client.
    pub(super) fn begin_active(
        &mut self,
        frame: &Frame<'_>,
        endpoint: SocketAddr,
        client: SocketAddr,
    ) -> Option<(usize, usize, Flow)> {
        let packet = &frame.packet;
        let opens = Protocol::from_number(packet.protocol) == Some(Protocol::Tcp)
            && endpoint.port() == DATA
            && packet.flags() & (SYN | ACK | RST) == SYN;
        if !opens {
            return None;
        }
        let (number, server) = (0..self.services.len()).find_map(|number| {
            let service = &self.services[number];
            let server = self.control(frame, number, client.ip())?;
            let is_its = service.translates(server) && world::server_at(service, server, DATA) == endpoint;
            (service.helper == Some(Helper::Ftp) && is_its).then_some((number, server))
        })?;
        let service = &self.services[number];
        let destination = world::virtual_at(service, &service.faces[0], DATA);
        let flow = Flow { protocol: Protocol::Tcp, client, destination };
        let state = tcp::next(tcp::Seen::FromServer, State::None, packet.flags());
        self.note_template(frame, number, client.ip(), server);
        self.count_connection(number, server);
        self.enter(Connection::new(flow, number, server, state, self.now));
        Some((number, server, flow))
    }

    /// A client has an established connection with a server, which makes data connections its right.
    pub(super) fn confirm(&mut self, index: usize) {
        let Connection { service, server, flow, .. } = self.connections[index];
        let Some(persistence) = self.services[service].persistence else { return };
        let network = network(flow.client.ip(), persistence.prefix);
        let mut its = self.templates.iter_mut().filter(|one| one.service == service && one.server == server);
        if let Some(template) = its.find(|one| one.network == network) {
            template.is_confirmed = true;
        }
    }

    /// What a server says on a control connection is said of the virtual address.
    pub(super) fn announce(&mut self, packet: &mut Packet, number: usize, virtual_address: IpAddr) {
        let is_said = self.services[number].helper == Some(Helper::Ftp)
            && packet.source_port() == CONTROL
            && packet.fragment.is_none();
        let (IpAddr::V4(server), IpAddr::V4(instead), true) = (packet.source, virtual_address, is_said)
        else {
            return;
        };
        let comma = |address: std::net::Ipv4Addr| address.to_string().replace('.', ",");
        let line = String::from_utf8_lossy(packet.data()).into_owned();
        match replaced(&line, &comma(server), &comma(instead)) {
            Some(line) => packet.set_data(line.as_bytes()),
            None if line.starts_with("227 ") && address_in(&line) != Some(comma(instead)) => {
                self.unchanged_replies += 1;
            }
            None => {}
        }
    }
}

/// The address in a reply 227 that is one whole line: what is in its first bracket before the last two of six numbers.
fn address_in(line: &str) -> Option<String> {
    let prose = line.strip_suffix("\r\n")?;
    let is_one = prose.starts_with("227 ") && prose.len() <= LONGEST && !prose.contains(['\r', '\n']);
    let (_, behind) = prose.split_once('(').filter(|_| is_one)?;
    let (numbers, _) = behind.split_once(')')?;
    let numbers: Vec<&str> = numbers.split(',').collect();
    let is_number = |text: &&str| {
        (1..=3).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_digit())
            && text.parse::<u8>().is_ok()
    };
    let six = numbers.len() == 6 && numbers.iter().all(is_number);
    // Leading zeros are left out.
    let plain = |text: &&str| text.parse::<u8>().expect("it is one").to_string();
    six.then(|| numbers[..4].iter().map(plain).collect::<Vec<String>>().join(","))
}

/// The line with another address, and so much prose less or so many blanks more that it stays as long as it is; none if it does not name the
/// server, or there is no room.
fn replaced(line: &str, server: &str, instead: &str) -> Option<String> {
    if address_in(line)? != server {
        return None;
    }
    let open = line.find('(')?;
    let (fourth, _) = line[open..].match_indices(',').nth(3)?;
    let comma = open + fourth;
    let start = comma.checked_sub(instead.len() + 1).filter(|&start| start >= "227 ".len())?;
    let prose = &line[..start.min(open)];
    let blanks = " ".repeat(start.saturating_sub(open));
    Some(format!("{prose}{blanks}({instead}{}", &line[comma..]))
}
