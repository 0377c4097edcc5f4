//! Writes the running state into the text of the file: comments, order and layout of everything else stay.

use std::str::FromStr;

use anyhow::{Context, Result};
use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, value};

use super::live::{server_of, service_of};
use crate::config::{Server, ServerState, Service};
use crate::ids::ServiceKey;

/// The text with the differences between what it says (`file`) and what is running written into it. Services that are
/// new bring the text that they were added with (`texts`).
pub fn save(
    text: &str,
    file: &[Service],
    running: &[Service],
    texts: impl Fn(ServiceKey) -> Option<String>,
) -> Result<String> {
    let mut document = DocumentMut::from_str(text).context("the file is not TOML any more")?;
    let tables = tables(document.as_table_mut(), "service");
    // The tables stand in the order of `file`, which was read from this text. Backwards, so that indices hold.
    for (index, was) in file.iter().enumerate().rev() {
        match service_of(running, ServiceKey::of(was)) {
            // One with a text has been removed and added again, with other settings perhaps.
            Some(_) if texts(ServiceKey::of(was)).is_some() => drop(tables.remove(index)),
            None => drop(tables.remove(index)),
            Some(now) => {
                let table = tables.get_mut(index).context("the file has fewer services than it had")?;
                servers(table, was, now)?;
            }
        }
    }
    let is_added = |key| service_of(file, key).is_none() || texts(key).is_some();
    for (key, service) in running.iter().map(|service| (ServiceKey::of(service), service)) {
        if !is_added(key) {
            continue;
        }
        let text = texts(key).with_context(|| format!("{key} has no text to be saved by"))?;
        let mut added = DocumentMut::from_str(&text).context("the text of an added service")?;
        for table in self::tables(added.as_table_mut(), "service").iter() {
            let mut table = table.clone();
            // What was changed of its servers since.
            let was = crate::config::parse_services(&text)?;
            let was = service_of(&was, key).context("the text of an added service")?;
            servers(&mut table, was, service)?;
            at_the_end(&mut table);
            tables.push(table);
        }
    }
    Ok(document.to_string())
}

fn servers(service: &mut Table, was: &Service, now: &Service) -> Result<()> {
    if was.servers == now.servers {
        return Ok(());
    }
    let tables = tables(service, "server");
    for (index, old) in was.servers.iter().enumerate().rev() {
        match server_of(now, old.address) {
            None => drop(tables.remove(index)),
            Some(new) => {
                let table = tables.get_mut(index).context("the file has fewer servers than it had")?;
                settings(table, Some(old), new);
            }
        }
    }
    for new in now.servers.iter().filter(|server| server_of(was, server.address).is_none()) {
        let mut table = Table::new();
        // In a service of all ports there is none.
        table["address"] = match new.address.port() {
            0 => value(new.address.ip().to_string()),
            _ => value(new.address.to_string()),
        };
        settings(&mut table, None, new);
        tables.push(table);
    }
    Ok(())
}

/// Writes what differs from before, or for a new server from the defaults.
fn settings(table: &mut Table, old: Option<&Server>, new: &Server) {
    if old.map_or(1, |old| old.weight) != new.weight {
        set(table, "weight", value(i64::from(new.weight)));
    }
    if old.map_or(ServerState::Enabled, |old| old.state) != new.state {
        set(table, "state", value(new.state.name()));
    }
}

/// With what stands around the old value, as a comment at its line.
fn set(table: &mut Table, key: &str, mut item: Item) {
    let decor = table.get(key).and_then(Item::as_value).map(|old| old.decor().clone());
    if let (Some(new), Some(decor)) = (item.as_value_mut(), decor) {
        *new.decor_mut() = decor;
    }
    table[key] = item;
}

/// Makes a table forget where it stood in its own text.
fn at_the_end(table: &mut Table) {
    table.set_position(None);
    for (_, item) in table.iter_mut() {
        if let Some(table) = item.as_table_mut() {
            at_the_end(table);
        }
        if let Some(tables) = item.as_array_of_tables_mut() {
            tables.iter_mut().for_each(at_the_end);
        }
    }
}

/// The array of tables under this key, made if there is none. Written as `server = [{...}]`, it becomes tables with
/// headers.
fn tables<'t>(table: &'t mut Table, key: &str) -> &'t mut ArrayOfTables {
    if !table.get(key).is_some_and(Item::is_array_of_tables) {
        let old = table.remove(key).unwrap_or_default();
        table.insert(key, Item::ArrayOfTables(old.into_array_of_tables().unwrap_or_default()));
    }
    table[key].as_array_of_tables_mut().expect("it was made one")
}

/// A service's text, for [`save`], from the keys that somebody gave: `[[service]]` and its settings.
pub fn text_of(service: &serde_json::Value) -> Result<String> {
    let root = serde_json::json!({ "service": [service] });
    toml::to_string(&root).context("a service's settings, as in the file")
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"# My router.
[workers]
cores = [0]          # one is enough

[[port]]
name = "wan"
device = "net_null0"

[[service]]
address = "192.0.2.10:80"   # web
mode = "nat"

[[service.server]]
address = "10.0.0.11:8080"
weight = 2           # the big one

[[service.server]]
address = "10.0.0.12:8080"

# Names.
[[service]]
address = "192.0.2.10:53"
protocol = "udp"
mode = "nat"
server = [{ address = "10.0.0.11:53" }]
"#;

    const NEW: &str = "[[service]]\naddress = '192.0.2.20:443'\nmode = 'dr'\n";

    fn services(text: &str) -> Vec<Service> {
        crate::config::parse(std::path::Path::new("f"), text.into()).unwrap().services
    }

    /// Saves what `change` makes of the file's services; the text says what it should.
    fn saved(change: impl FnOnce(&mut Vec<Service>)) -> String {
        let file = services(FILE);
        let mut running = file.clone();
        change(&mut running);
        let texts = |key: ServiceKey| (key.address.port() == 443).then(|| NEW.to_owned());
        let text = save(FILE, &file, &running, texts).unwrap();
        assert_eq!(services(&text), running, "{text}");
        text
    }

    #[test]
    fn a_service_that_was_added_live_keeps_its_ports() {
        let settings = serde_json::json!({
            "address": "192.0.2.20:0", "mode": "nat", "ports": [21, "10000-20000"]
        });
        let (file, text) = (services(FILE), text_of(&settings).unwrap());
        let added = crate::config::parse_services(&text).unwrap().remove(0);
        let running = [file.clone(), vec![added]].concat();
        let text = save(FILE, &file, &running, |key| (key.address.port() == 0).then(|| text.clone()));
        let saved = services(&text.unwrap());
        assert_eq!(saved, running);
        assert_eq!(saved[2].ports, [21..=21, 10_000..=20_000]);
    }

    #[test]
    fn nothing_changes_nothing() {
        assert_eq!(saved(|_| ()), FILE);
    }

    #[test]
    fn a_weight_keeps_its_comment() {
        let text = saved(|services| services[0].servers[0].weight = 5);
        assert_eq!(text, FILE.replace("weight = 2 ", "weight = 5 "));
    }

    #[test]
    fn states_servers_and_services() {
        let text = saved(|services| {
            services[0].servers[1].state = ServerState::Drained;
            let new =
                Server { address: "10.0.0.13:8080".parse().unwrap(), weight: 4, ..services[0].servers[1] };
            services[0].servers.push(Server { state: ServerState::Enabled, ..new });
            services[0].servers.remove(0);
        });
        assert!(
            text.contains("state = \"drained\"") && text.contains("# web") && !text.contains("the big one")
        );
        let text = saved(|services| drop(services.remove(0)));
        assert!(text.contains("# My router.") && !text.contains("192.0.2.10:80"));
        let text = saved(|services| {
            let mut new = crate::config::parse_services(NEW).unwrap();
            let added = Server { weight: 7, ..services[0].servers[0] };
            new[0].servers.push(Server { address: "10.0.0.11:443".parse().unwrap(), check: false, ..added });
            services.append(&mut new);
        });
        assert!(text.contains("192.0.2.20:443") && text.contains("weight = 7"), "{text}");
    }

    #[test]
    fn servers_of_ipv6() {
        let text = |weight| {
            format!(
                "[workers]\ncores = [1]\n[[port]]\nname = \"p\"\ndevice = \"net_null\"\n\
                [[service]]\naddress = \"[2001:db8::10]:80\"\nmode = \"nat\"\n\
                [[service.server]]\naddress = \"2001:db8:1::11\"\nweight = {weight}\n"
            )
        };
        let file = services(&text(1));
        let mut running = file.clone();
        running[0].servers[0].weight = 4;
        assert_eq!(save(&text(1), &file, &running, |_| None).unwrap(), text(4));
        let added =
            Server { address: "[2001:db8:1::12]:8080".parse().unwrap(), weight: 1, ..file[0].servers[0] };
        running[0].servers.push(added);
        let saved = save(&text(1), &file, &running, |_| None).unwrap();
        assert!(saved.contains("address = \"[2001:db8:1::12]:8080\""), "{saved}");
        assert_eq!(services(&saved), running);
    }

    #[test]
    fn servers_in_one_line() {
        let text = saved(|services| services[1].servers[0].weight = 9);
        assert!(text.contains("# Names."), "{text}");
    }
}
