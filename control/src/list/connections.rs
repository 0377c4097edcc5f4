//! `ipvsadm -Lnc`, a line at a time: the table may have millions.

use std::io::{self, Write};

use crate::admin::api::Connection;

/// Writes what stands above the connections.
pub fn connections_header(out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "RVS connection entries")?;
    columns(out, ["pro", "expire", "state", "source", "virtual", "destination"])
}

/// Writes a connection.
pub fn connection(out: &mut impl Write, connection: &Connection) -> io::Result<()> {
    let protocol = connection.protocol.to_uppercase();
    let expire = format!("{:02}:{:02}", connection.expires / 60, connection.expires % 60);
    let [client, virtual_, mut server] =
        [connection.client, connection.virtual_, connection.server].map(|address| address.to_string());
    // As DPVS has it: who the server believes to talk to stands before it.
    if let Some(local) = connection.local {
        server = format!("{local} {server}");
    }
    columns(out, [&protocol, &expire, &connection.state, &client, &virtual_, &server])
}

fn columns(
    out: &mut impl Write,
    [protocol, expire, state, client, virtual_, server]: [&str; 6],
) -> io::Result<()> {
    writeln!(out, "{protocol:<3} {expire:<6} {state:<11} {client:<18} {virtual_:<18} {server}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections() {
        let entry =
            |protocol: &str, client: &str, virtual_: &str, server: &str, state: &str, expires| Connection {
                protocol: protocol.to_owned(),
                client: client.parse().unwrap(),
                virtual_: virtual_.parse().unwrap(),
                local: None,
                server: server.parse().unwrap(),
                state: state.to_owned(),
                expires,
            };
        let mut out = Vec::new();
        connections_header(&mut out).unwrap();
        for entry in [
            entry("tcp", "198.51.100.7:40112", "192.0.2.10:80", "10.0.0.1:80", "ESTABLISHED", 897),
            entry("tcp", "198.51.100.7:1", "192.0.2.10:443", "10.0.0.1:443", "NONE", 2),
            entry("udp", "198.51.100.9:5353", "192.0.2.10:53", "10.0.0.3:53", "UDP", 298),
            entry("tcp", "198.151.100.197:40112", "192.0.2.10:80", "10.0.0.1:80", "SYN_RECV", 2_678_400),
            entry("tcp", "[2001:db8:2::7]:40112", "[2001:db8::10]:80", "[2001:db8:1::1]:80", "TIME_WAIT", 9),
        ] {
            connection(&mut out, &entry).unwrap();
        }
        let of_fullnat = entry("udp", "198.51.100.9:5353", "192.0.2.10:53", "10.0.0.3:53", "UDP", 298);
        let of_fullnat = Connection { local: Some("10.0.0.100:2000".parse().unwrap()), ..of_fullnat };
        connection(&mut out, &of_fullnat).unwrap();
        let expected = "
RVS connection entries
pro expire state       source             virtual            destination
TCP 14:57  ESTABLISHED 198.51.100.7:40112 192.0.2.10:80      10.0.0.1:80
TCP 00:02  NONE        198.51.100.7:1     192.0.2.10:443     10.0.0.1:443
UDP 04:58  UDP         198.51.100.9:5353  192.0.2.10:53      10.0.0.3:53
TCP 44640:00 SYN_RECV    198.151.100.197:40112 192.0.2.10:80      10.0.0.1:80
TCP 00:09  TIME_WAIT   [2001:db8:2::7]:40112 [2001:db8::10]:80  [2001:db8:1::1]:80
UDP 04:58  UDP         198.51.100.9:5353  192.0.2.10:53      10.0.0.100:2000 10.0.0.3:53
";
        assert_eq!(String::from_utf8(out).unwrap(), &expected[1..]);
    }
}
