//! `[service.tunnel]`: how packets get to the real servers of a service whose mode is `tunnel`, as the options `--tun-*` of ipvsadm say it.

use dataplane::service::Mode;
use dataplane::snapshot::{MssClamp, TunnelSpec};
use dataplane::wire::tunnel::Encapsulation;

use super::check::{narrow, one_of};
use super::raw::{Field, Section};
use super::{Server, value};

/// The port of GUE (IANA).
const GUE_PORT: u16 = 6080;

const ENCAPSULATIONS: [&str; 3] = ["ipip", "gue", "gre"];

/// The tunnel of a service with this mode; of a mode without, the one that nobody asks for.
pub(super) fn read(service: &Section<'_>, mode: Option<Mode>) -> Option<TunnelSpec> {
    service.or("tunnel", TunnelSpec::default(), |field| match mode {
        Some(mode @ (Mode::Nat | Mode::Dr | Mode::Fullnat)) => {
            field.error(format_args!("the mode is {mode}; expected mode = \"tunnel\", or no such table"))
        }
        Some(Mode::Tunnel) | None => tunnel(&field.section()?),
    })
}

fn tunnel(section: &Section<'_>) -> Option<TunnelSpec> {
    section.known(&["encapsulation", "port", "checksum", "source", "mss_clamp"]);
    let encapsulation = section.or("encapsulation", "ipip", |field| {
        let named = |typed: &str| ENCAPSULATIONS.into_iter().find(|name| *name == typed);
        one_of("encapsulation", &ENCAPSULATIONS, named, &field)
    });
    let port = section.optional("port", |field| match encapsulation {
        Some(other @ ("ipip" | "gre")) => {
            field.error(format_args!("{other} has no port; expected encapsulation = \"gue\", or no port"))
        }
        _ => narrow(field.integer(1..=65535)),
    });
    let checksum = section.or("checksum", false, |field| match (field.boolean()?, encapsulation) {
        (true, Some("ipip")) => field.error("ipip has no checksum; expected false, or \"gue\" or \"gre\""),
        (checksum, _) => Some(checksum),
    });
    let source =
        section.optional("source", |field| field.parse("an address, e.g. \"10.0.0.1\"", value::address));
    let mss_clamp = section.or("mss_clamp", None, |field| mss_clamp(&field));
    let (port, checksum) = (port?, checksum?);
    Some(TunnelSpec {
        encapsulation: match encapsulation? {
            "gue" => Encapsulation::Gue { port: port.unwrap_or(GUE_PORT), checksum },
            "gre" => Encapsulation::Gre { checksum },
            _ => Encapsulation::Ipip,
        },
        source: source?,
        mss_clamp: mss_clamp?,
    })
}

/// Refuses a source of a family that no real server has: no packet would ever be from it.
pub(super) fn has_source_of_use(
    service: &Section<'_>,
    tunnel: &TunnelSpec,
    servers: &[Option<Server>],
) -> bool {
    let Some(source) = tunnel.source else { return true };
    let is_of_use = |server: &Server| server.address.is_ipv4() == source.is_ipv4();
    let is_good = servers.is_empty() || servers.iter().any(|server| server.as_ref().is_none_or(is_of_use));
    if !is_good && let Some(field) = service.section("tunnel").and_then(|section| section.get("source")) {
        field.error::<()>(format_args!(
            "no real server's address is of the family of {source}; expected an address of theirs, or none, for the router's own"
        ));
    }
    is_good
}

/// `true` or a number. Less than what every host takes without being asked (RFC 9293, 3.7.1) helps nobody.
fn mss_clamp(field: &Field<'_>) -> Option<Option<MssClamp>> {
    if field.is_integer() {
        return Some(Some(MssClamp::To(narrow(field.integer(536..=8960))?)));
    }
    Some(field.boolean()?.then_some(MssClamp::Fit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::with;

    fn read(tunnel: &str, mode: &str) -> Result<TunnelSpec, String> {
        let service = format!("[[service]]\naddress = '192.0.2.10:80'\nmode = {mode:?}\n{tunnel}");
        let config = with(&service)?;
        Ok(config.services[0].tunnel)
    }

    #[test]
    fn what_is_left_out() {
        assert_eq!(read("", "tunnel"), Ok(TunnelSpec::default()));
        assert_eq!(TunnelSpec::default().encapsulation, Encapsulation::Ipip);
        let encapsulation = |text| read(text, "tunnel").unwrap().encapsulation;
        assert_eq!(
            encapsulation("tunnel = { encapsulation = \"gue\" }"),
            Encapsulation::Gue { port: 6080, checksum: false }
        );
        assert_eq!(
            encapsulation("tunnel = { encapsulation = \"gre\" }"),
            Encapsulation::Gre { checksum: false }
        );
    }

    #[test]
    fn all_of_it() {
        let text = "[service.tunnel]\nencapsulation = \"gue\"\nport = 5555\nchecksum = true\nsource = \"10.0.0.1\"\nmss_clamp = 1300";
        let expected = TunnelSpec {
            encapsulation: Encapsulation::Gue { port: 5555, checksum: true },
            source: Some([10, 0, 0, 1].into()),
            mss_clamp: Some(MssClamp::To(1300)),
        };
        assert_eq!(read(text, "tunnel"), Ok(expected));
        let clamp = |text| read(text, "tunnel").unwrap().mss_clamp;
        assert_eq!(clamp("tunnel = { mss_clamp = true }"), Some(MssClamp::Fit));
        assert_eq!(clamp("tunnel = { mss_clamp = false }"), None);
    }

    /// Elsewhere they may not ([`value::server_family`]).
    #[test]
    fn servers_of_both_families() {
        let servers =
            "[[service.server]]\naddress = \"10.0.0.11\"\n[[service.server]]\naddress = \"2001:db8::11\"";
        let sorry = "sorry_server = \"[2001:db8::99]:80\"";
        for source in ["10.0.0.1", "2001:db8::1"] {
            let text = format!("tunnel = {{ source = {source:?} }}\n{sorry}\n{servers}");
            assert_eq!(read(&text, "tunnel").unwrap().source, Some(source.parse().unwrap()));
        }
        let ipvs_sync = format!("{servers}\n[ipvs_sync]\nrole = \"master\"\ninterface = \"eth2\"");
        let error = read(&ipvs_sync, "tunnel").unwrap_err();
        assert!(error.contains("2001:db8::11 is not of the service's family"), "{error}");
        let error = read(servers, "dr").unwrap_err();
        assert!(error.contains("2001:db8::11 is an IPv6 address; expected an IPv4 address"), "{error}");
        let error = read(sorry, "dr").unwrap_err();
        assert!(error.contains("2001:db8::99 is an IPv6 address; expected an IPv4 address"), "{error}");
    }

    #[test]
    fn what_does_not_belong_together() {
        for (tunnel, mode, expected) in [
            ("tunnel = {}", "nat", "the mode is nat; expected mode = \"tunnel\", or no such table"),
            (
                "tunnel = { port = 6080 }",
                "tunnel",
                "ipip has no port; expected encapsulation = \"gue\", or no port",
            ),
            ("tunnel = { encapsulation = \"gre\", port = 1 }", "tunnel", "gre has no port"),
            ("tunnel = { checksum = true }", "tunnel", "ipip has no checksum"),
            ("tunnel = { encapsulation = \"vxlan\" }", "tunnel", "expected one of ipip, gue, gre"),
            (
                "tunnel = { encapsulation = \"gue\", port = 0 }",
                "tunnel",
                "expected an integer from 1 to 65535",
            ),
            ("tunnel = { source = \"10.0.0.1:80\" }", "tunnel", "10.0.0.1 stands there with a port"),
            (
                "tunnel = { source = \"192.0.2.10\" }",
                "tunnel",
                "tunnel.source: 192.0.2.10 is a virtual address; expected an address of this router for itself",
            ),
            (
                "tunnel = { source = \"192.0.2.20\" }\n[[service]]\naddress = \"192.0.2.20:80\"\nmode = \"dr\"",
                "tunnel",
                "192.0.2.20 is a virtual address",
            ),
            (
                "tunnel = { source = \"2001:db8::1\" }\n[[service.server]]\naddress = \"10.0.0.11\"",
                "tunnel",
                "tunnel.source: no real server's address is of the family of 2001:db8::1; expected an address of theirs",
            ),
            ("tunnel = { mss_clamp = 100 }", "tunnel", "expected an integer from 536 to 8960"),
            ("tunnel = { mss_clamp = \"fit\" }", "tunnel", "expected true or false"),
            ("[[service.server]]\naddress = \"10.0.0.11:81\"", "tunnel", "a tunnel cannot change the port"),
            ("sorry_server = \"10.0.0.11:81\"", "tunnel", "port 81 is not the service's"),
        ] {
            let error = read(tunnel, mode).unwrap_err();
            assert!(error.contains(expected), "{tunnel}: {error}");
        }
    }
}
