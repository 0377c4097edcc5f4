//! `[[service.quic_lb]]` and `quic_id`: servers that write into QUIC's connection ids which of them it is
//! (draft-ietf-quic-load-balancers).

use std::path::Path;

use dataplane::quic::{BYTES, CONFIGS, Config, NONCE, ServerId};
use dataplane::service::Protocol;

use super::check::narrow;
use super::raw::{Field, Section};
use super::{Server, file};

const KEY: &str = "the absolute path of a file with 32 hexadecimal digits, e.g. from `openssl rand -hex 16`, the servers' cid key";
const ID: &str = "the server's id in connection ids, in hexadecimal digits, e.g. \"ed793a\"";

/// The `quic_id` of a real server.
pub(super) fn server_id(server: &Section<'_>) -> Option<Option<ServerId>> {
    server.optional("quic_id", |field| field.parse(ID, str::parse))
}

/// The configurations of a service with these real servers, whose ids are as long as they are.
pub(super) fn read(
    service: &Section<'_>,
    protocol: Option<Protocol>,
    sections: &[Section<'_>],
    servers: &[Option<Server>],
) -> Option<Vec<Config>> {
    let Some(field) = service.get("quic_lb") else { return none(sections) };
    if protocol.is_some_and(|protocol| protocol != Protocol::Udp) {
        return field.error("QUIC goes over UDP; expected protocol = \"udp\"");
    }
    let length = length(sections, servers)?;
    if length.is_none() && servers.iter().all(Option::is_some) {
        return field.error("no server of the service has an id; expected quic_id for each");
    }
    let mut configs: Vec<Config> = Vec::new();
    for field in field.elements()? {
        let config = config(&field.section()?, length.unwrap_or(1))?;
        if configs.iter().any(|other| other.number == config.number) {
            let number = config.number;
            return field.error(format_args!("configuration {number} stands there twice; expected it once"));
        }
        configs.push(config);
    }
    Some(configs)
}

/// Without configurations ids are nothing.
fn none(servers: &[Section<'_>]) -> Option<Vec<Config>> {
    match servers.iter().find_map(|server| server.get("quic_id")) {
        None => Some(Vec::new()),
        Some(field) => field.error("has nothing to go with; expected a [[service.quic_lb]] as well"),
    }
}

/// How long the servers' ids are.
fn length(sections: &[Section<'_>], servers: &[Option<Server>]) -> Option<Option<usize>> {
    let mut first: Option<ServerId> = None;
    for (index, (section, server)) in sections.iter().zip(servers).enumerate() {
        let Some((id, field)) = server.and_then(|server| server.quic_id).zip(section.get("quic_id")) else {
            continue;
        };
        let length = first.get_or_insert(id).length();
        if id.length() != length {
            return field.error(format_args!(
                "{id} is {} bytes long and the first server's {length}; expected one length",
                id.length()
            ));
        }
        let mut others = servers[..index].iter().flatten();
        if let Some(other) = others.find(|other| other.quic_id == Some(id)) {
            let address = other.address;
            return field.error(format_args!("{id} is the id of {address}; expected another one"));
        }
    }
    Some(first.map(ServerId::length))
}

fn config(section: &Section<'_>, server_id: usize) -> Option<Config> {
    section.known(&["config", "nonce_length", "key_file"]);
    let number = section.or("config", 0, |field| narrow(field.integer(0..=CONFIGS as u64 - 1)));
    let most = BYTES.end() - server_id;
    let nonce = section
        .require("nonce_length", format_args!("{NONCE} to {most} bytes, as many as the servers use"))
        .and_then(|field: Field<'_>| field.integer(NONCE as u64..=most as u64));
    let key = section.optional("key_file", |field| field.parse(KEY, |typed| file::key(Path::new(typed))));
    Some(Config { number: number?, server_id, nonce: nonce? as usize, key: key? })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::config::tests::with;

    const SERVERS: &str = "server = [{ address = '10.0.0.11', quic_id = 'ed793a' }, { address = '10.0.0.12', \
         quic_id = 'ED793B' }, { address = '10.0.0.13' }]\n";

    fn read(service: &str) -> Result<crate::config::Service, String> {
        let config = with(&format!("[[service]]\naddress = '192.0.2.10:443'\nmode = 'dr'\n{service}"))?;
        Ok(config.services[0].clone())
    }

    #[test]
    fn configurations_are_as_long_as_the_servers_ids() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        fs::write(&path, "8f95f09245765f80256934e50c66207f\n").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        let service = read(&format!(
            "protocol = 'udp'\n{SERVERS}quic_lb = [{{ nonce_length = 4 }}, {{ config = 6, nonce_length = 13, \
             key_file = {path:?} }}]\n"
        ))
        .unwrap();
        let key = Some(0x8f95_f092_4576_5f80_2569_34e5_0c66_207f_u128.to_be_bytes());
        let plain = Config { number: 0, server_id: 3, nonce: 4, key: None };
        assert_eq!(service.quic_lb, [plain, Config { number: 6, server_id: 3, nonce: 13, key }]);
        let ids: Vec<_> =
            service.servers.iter().map(|server| server.quic_id.map(|id| id.to_string())).collect();
        assert_eq!(ids, [Some("ed793a".to_owned()), Some("ed793b".to_owned()), None]);
        assert!(!format!("{service:?}").contains("8f95"), "the key stays where it is");
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        let quic = "quic_lb = [{ nonce_length = 4 }]\n";
        let udp = "protocol = 'udp'\n";
        for (service, error) in [
            (format!("{SERVERS}{quic}"), "QUIC goes over UDP"),
            (format!("{udp}{SERVERS}"), "server[0].quic_id: has nothing to go with"),
            (
                format!("{udp}server = [{{ address = '10.0.0.11' }}]\n{quic}"),
                "no server of the service has an id",
            ),
            (
                format!("{udp}{}{quic}", SERVERS.replace("ED793B", "ED79")),
                "server[1].quic_id: ed79 is 2 bytes long and the first server's 3",
            ),
            (format!("{udp}{}{quic}", SERVERS.replace("793B", "793A")), "ed793a is the id of 10.0.0.11:443"),
            (format!("{udp}{}{quic}", SERVERS.replace("793B", "793")), "not 2 to 30 hexadecimal digits"),
            (
                format!("{udp}{SERVERS}quic_lb = [{{ nonce_length = 17 }}]\n"),
                "nonce_length: 17 is out of range; expected an integer from 4 to 16",
            ),
            (
                format!("{udp}{SERVERS}quic_lb = [{{ config = 7, nonce_length = 4 }}]\n"),
                "expected an integer from 0 to 6",
            ),
            (
                format!("{udp}{SERVERS}quic_lb = [{{ nonce_length = 4 }}, {{ nonce_length = 5 }}]\n"),
                "quic_lb[1]: configuration 0 stands there twice",
            ),
        ] {
            let found = read(&service).unwrap_err();
            assert!(found.contains(error), "{found}\n{error}");
        }
    }
}
