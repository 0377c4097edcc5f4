//! What is known of a port that is open: what it can do, what is used of it, and its link.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use dpdk::{Error, Hashed, Link, Port, Side, Started, Terms};

use super::mac_text;
use crate::admin::api;

/// A port. Its link may change, and its device, if that is taken out and another one is put there.
#[derive(Debug)]
pub struct Known(Mutex<Facts>);

#[derive(Clone, Debug)]
struct Facts {
    device: api::Device,
    terms: Terms,
}

impl Known {
    /// Asks a port, which shows this MAC.
    pub(super) fn of(port: &Port<Started>, mac: [u8; 6]) -> Result<Known, Error> {
        let (info, terms) = (port.info()?, port.terms());
        let link = port.link().unwrap_or(Link { up: true, speed: None });
        let device = api::Device {
            name: port.name().to_owned(),
            driver: info.driver.clone(),
            mac: mac_text(mac),
            node: info.socket,
            mtu: terms.mtu,
            max_queues: info.max_rx_queues.min(info.max_tx_queues),
            rx_descriptors: terms.rx_descriptors,
            tx_descriptors: terms.tx_descriptors,
            hashed_side: match terms.side {
                Side::Both => "both",
                Side::Source => "source",
                Side::Destination => "destination",
            }
            .to_owned(),
            rss: info.rss_names().into_iter().map(str::to_owned).collect(),
            rx_offloads: info.rx_offload_names(),
            tx_offloads: info.tx_offload_names(),
            promiscuous: terms.promiscuous,
            link_up: link.up,
            link_speed: link.speed,
            trouble: None,
            members: Vec::new(),
        };
        Ok(Known::from(device, terms))
    }

    /// One without a device, at this address, which shows this MAC meanwhile.
    pub(super) fn absent(address: &str, mac: [u8; 6], mtu: u16) -> Known {
        let device = api::Device {
            name: address.to_owned(),
            driver: "no driver".to_owned(),
            mac: mac_text(mac),
            node: None,
            mtu,
            max_queues: 0,
            rx_descriptors: 0,
            tx_descriptors: 0,
            hashed_side: "both".to_owned(),
            rss: Vec::new(),
            rx_offloads: Vec::new(),
            tx_offloads: Vec::new(),
            promiscuous: None,
            link_up: false,
            link_speed: None,
            trouble: None,
            members: Vec::new(),
        };
        Known::from(device, Terms::default())
    }

    /// That of a port that nobody has.
    #[cfg(test)]
    pub(crate) fn made_up() -> Known {
        let known = Known::absent("net_null0", [2, 0, 0, 0, 0, 1], 1500);
        {
            let device = &mut known.facts().device;
            (device.driver, device.link_up) = ("net_null".to_owned(), true);
        }
        known
    }

    fn from(device: api::Device, terms: Terms) -> Known {
        Known(Mutex::new(Facts { device, terms }))
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// By what it spreads packets over its queues, if it does.
    pub fn hashed(&self) -> Option<Hashed> {
        self.facts().terms.hashed
    }

    /// As it is now.
    pub fn describe(&self) -> api::Device {
        self.facts().device.clone()
    }

    /// Whether it has a link, and what is wrong with it.
    pub(super) fn set(&self, link: Link, trouble: Option<&'static str>) {
        let device = &mut self.facts().device;
        (device.link_up, device.link_speed) = (link.up, link.speed);
        device.trouble = trouble.map(str::to_owned);
    }

    /// How its members are, if it is a bond.
    pub(super) fn set_members(&self, members: Vec<api::Member>) {
        self.facts().device.members = members;
    }

    /// It has another device.
    pub(super) fn replace(&self, other: Known) {
        *self.facts() = other.0.into_inner().unwrap_or_else(PoisonError::into_inner);
    }

    /// For the log: what it runs with, and what it was asked for where that is something else.
    pub(super) fn told(&self, descriptors: u16) -> impl fmt::Display + use<> {
        let Facts { device, terms } = self.facts().clone();
        fmt::from_fn(move |f| {
            write!(f, "{} {}", device.name, device.driver)?;
            match device.node {
                Some(node) => write!(f, " on node {node}, ")?,
                None => f.write_str(", ")?,
            }
            match terms.queues {
                1 => write!(f, "1 queue")?,
                queues => write!(f, "{queues} queues")?,
            }
            let (rx, tx) = (terms.rx_descriptors, terms.tx_descriptors);
            match rx == tx {
                true => write!(f, " of {rx} descriptors")?,
                false => write!(f, " of {rx} descriptors to receive and {tx} to send")?,
            }
            if (rx, tx) != (descriptors, descriptors) {
                write!(f, " (asked {descriptors})")?;
            }
            match (terms.hashed, terms.side) {
                _ if terms.queues == 1 => {}
                (None, _) => f.write_str(", packets spread in the device's own way")?,
                (Some(hashed), Side::Both) => write!(f, ", RSS by {hashed}")?,
                (Some(hashed), side) => write!(f, ", RSS by {hashed} of {side}")?,
            }
            if terms.relaid == Some(true) {
                f.write_str(" (over a table laid out anew)")?;
            }
            write!(f, ", MTU {}, MAC {}", terms.mtu, device.mac)?;
            if terms.promiscuous == Some(false) {
                f.write_str(", not promiscuous")?;
            }
            if terms.strips_vlan {
                f.write_str(", VLAN tags taken out")?;
            }
            write!(f, ", link {}", api::LinkText { up: device.link_up, speed: device.link_speed })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_tells_what_a_port_runs_with() {
        let known = Known::made_up();
        let change = |change: fn(&mut Facts)| change(&mut known.facts());
        change(|Facts { terms, .. }| {
            (terms.queues, terms.rx_descriptors, terms.tx_descriptors) = (1, 1024, 1024);
            terms.mtu = 1500;
        });
        let expected =
            "net_null0 net_null, 1 queue of 1024 descriptors, MTU 1500, MAC 02:00:00:00:00:01, link up";
        assert_eq!(known.told(1024).to_string(), expected);

        change(|Facts { terms, device }| {
            terms.hashed = Some(Hashed { addresses: true, tcp_ports: true, udp_ports: false });
            (terms.queues, terms.side, terms.relaid) = (2, Side::Source, Some(true));
            (terms.promiscuous, terms.strips_vlan, terms.tx_descriptors) = (Some(false), true, 512);
            (device.node, device.link_speed) = (Some(1), Some(10_000));
        });
        let expected = "net_null0 net_null on node 1, 2 queues of 1024 descriptors to receive and 512 to send (asked 2048), \
                        RSS by addresses, ports of TCP of the source (over a table laid out anew), MTU 1500, \
                        MAC 02:00:00:00:00:01, not promiscuous, VLAN tags taken out, link up 10 Gbit/s";
        assert_eq!(known.told(2048).to_string(), expected);

        change(|facts| facts.terms.hashed = None);
        assert!(known.told(2048).to_string().contains(", packets spread in the device's own way"));
    }
}
