//! A sequence through the data path and through the model, and where they differ.

use std::collections::{BTreeMap, BTreeSet};

use dataplane::counters::Punt;
use dataplane::engine::Verdict;
use dataplane::service::{Helper, Mode, Protocol};

use crate::model::{Fate, Model, Observed};
use crate::roster;
use crate::sequence::{Sent, Sequence, Step, Which};
use crate::subject::{Subject, Taken};
use crate::tunnel;
use crate::wires::Wires;
use crate::world::{Limit, Server, Service};

/// How often packets of services of a kind have had a fate, by their names: to see that sequences meet what they should.
pub type Tally = BTreeMap<(&'static str, &'static str), u64>;

/// Both take the sequence; the first thing that differs, in words.
pub fn compare(sequence: &Sequence, tally: &mut Tally) -> Result<(), String> {
    let mut services = sequence.services.clone();
    let (mut subject, mut model) = (Subject::new(sequence), Model::new(sequence));
    let mut now = 1 << 20;
    for (index, step) in sequence.steps.iter().enumerate() {
        let known = |flow| model.known(now, flow);
        let packet = match step {
            Step::Packet(sent) => Some((Some(sent.service), sent.frame(&services, known))),
            Step::Error(error) => Some((Some(error.about.service), error.frame(&services, known))),
            Step::Secured(secured) => {
                Some((Some(secured.service(&services)), secured.frame(&services, known)))
            }
            Step::Transfer(transfer) => {
                Some((Some(transfer.service(&services)), transfer.frame(&services, known)))
            }
            Step::Passing(passing) => {
                Some((None, passing.frame(|class, inside| subject.mapping(now, class, inside))))
            }
            _ => None,
        };
        let flow = |sent: &Sent| sent.flow(&services[sent.service % services.len()]);
        let flow = match step {
            Step::Packet(sent) => Some(flow(sent)),
            Step::Error(error) => Some(flow(&error.about)),
            _ => None,
        };
        let is_clear =
            |port: u16, frame: &[u8]| flow.is_none_or(|flow| !model.is_unclear(now, flow, (port, frame)));
        if let Some((service, (port, frame))) = packet.filter(|(_, (port, frame))| is_clear(*port, frame)) {
            let (wire, on_wire) = sequence.wires.sent(port, &frame, step.tagged());
            let (port, frame) = sequence.wires.arrives(wire, &on_wire);
            let service = service.map(|service| service % services.len());
            // A packet of no service may be one of any.
            if (0..services.len())
                .any(|its| service.is_none_or(|one| one == its) && model.has_stale_beside(now, its))
            {
                subject.sweep(now);
                model.sweep(now);
            }
            let templates = subject.templates(now);
            let ends = model.inside_ends(&frame);
            let before = subject.mappings(now, &ends);
            let Taken { port: came_in, verdict, left, begun } = subject.take(now, wire, &on_wire);
            let locals = subject.locals(now);
            let mapped = (before, subject.mappings(now, &ends));
            let expected = model.take(now, port, &frame, &Observed { begun, templates, locals, mapped });
            let actual = fate(verdict, &frame, left);
            let kinds = service.map(|service| kinds(&services[service]));
            let of_snat = (service.is_none() && sequence.snat.is_some()).then_some("snat");
            let of_vlan = (sequence.wires != Wires::PLAIN).then_some("tagged network");
            for kind in kinds.into_iter().flatten().chain(of_snat).chain(of_vlan) {
                *tally.entry((kind, name(&expected))).or_default() += 1;
            }
            if verdict == Verdict::Hold {
                subject.hold(now, port, &frame);
            }
            if came_in != port {
                return Err(format!("step {index}, {step:?}: it comes in on port {port}, not {came_in}"));
            }
            if let Fate::Forward(port, bytes) | Fate::Route(port, bytes) = &actual
                && subject.leaves(*port, bytes) != sequence.wires.leaves(*port, bytes)
            {
                return Err(format!("step {index}, {step:?}: its tag is another on leaving by port {port}"));
            }
            if actual != expected {
                return Err(format!(
                    "step {index}, {step:?}:\nthe model expects {}\nthe data path  has  {}\nof the frame       {}",
                    shown(&expected),
                    shown(&actual),
                    hex(&frame)
                ));
            }
        }
        let changed = match step {
            Step::Packet(_) | Step::Error(_) | Step::Passing(_) | Step::Secured(_) | Step::Transfer(_) => {
                Vec::new()
            }
            Step::Wait(ticks) => {
                now += ticks;
                Vec::new()
            }
            Step::Sweep => {
                subject.sweep(now);
                model.sweep(now);
                Vec::new()
            }
            &Step::Toggle(which) => edit(&mut services, which, |server| server.up = !server.up),
            // Flows of datagrams do not wait for a server that is removed.
            &Step::Remove((service, _), _) if services[service % services.len()].has(Protocol::Udp) => {
                Vec::new()
            }
            &Step::Remove(which, leaving) => edit(&mut services, which, |server| server.leaving = leaving),
            &Step::Neighbour(which) => {
                edit(&mut services, which, |server| server.is_known = !server.is_known)
            }
            &Step::Weight(which, weight) => edit(&mut services, which, |server| server.weight = weight),
            &Step::Move(service) => {
                let place = services[service % services.len()].faces[0].place;
                let faces = services.iter_mut().flat_map(|service| &mut service.faces);
                faces.filter(|face| face.place == place).for_each(|face| face.live = !face.live);
                (0..services.len()).collect()
            }
            &Step::Track(service) => {
                let number = service % services.len();
                let service = &mut services[number];
                service.is_at_risk = !service.is_at_risk && service.may_be_at_risk();
                vec![number]
            }
        };
        let moved = services.iter_mut().enumerate().filter_map(|(number, service)| {
            let before = service.rosters.clone();
            roster::settle(service, now);
            (service.rosters != before).then_some(number)
        });
        let changed: BTreeSet<usize> = changed.into_iter().chain(moved).collect();
        let mapped = subject.mappings(now, &model.inside_ends(&[]));
        let mut expected: Vec<String> = model.settle(now, &mapped).iter().map(shown).collect();
        let mut actual: Vec<String> =
            subject.settle(now).into_iter().map(|(verdict, left)| shown(&settled(verdict, left))).collect();
        // Those that have waited go in whatever order.
        expected.sort();
        actual.sort();
        if actual != expected {
            return Err(format!(
                "fragments that have waited, after step {index}:\nthe model expects {expected:?}\nthe data path  has  {actual:?}"
            ));
        }
        for number in changed {
            subject.change(number, &services[number]);
            model.change(number, &services[number]);
        }
    }
    let actual = subject.seen(now, &model.inside_ends(&[]));
    let expected = model.seen(now, &actual.templates, &actual.mappings);
    if actual != expected {
        return Err(format!("at the end:\nthe model expects {expected:?}\nthe data path  has  {actual:?}"));
    }
    Ok(())
}

/// Changes a server; the answer is its service's number.
fn edit(services: &mut [Service], (service, server): Which, change: impl FnOnce(&mut Server)) -> Vec<usize> {
    let number = service % services.len();
    let servers = &mut services[number].servers;
    let server = server % servers.len();
    change(&mut servers[server]);
    vec![number]
}

/// What a service is, in the words of [`Tally`]: its mode, and what is special about it.
fn kinds(service: &Service) -> impl Iterator<Item = &'static str> {
    let is_across = service.servers.iter().any(|server| server.is_across);
    let special = [
        (service.has(Protocol::Sctp), "sctp"),
        (service.is_of_all_ports() && !service.is_marked, "all_ports"),
        (service.is_marked, "mark"),
        (service.faces.iter().any(|face| face.incoming.is_some()), "in"),
        (service.helper == Some(Helper::Ipsec), "ipsec"),
        (service.helper == Some(Helper::Ftp), "ftp"),
        (service.proxy, "proxy"),
        (matches!(service.limit, Some(Limit::HalfOpen { .. })), "gate"),
        (service.rosters.is_some(), "at_risk"),
        (!service.quic.is_empty(), "quic"),
        (service.mode == Mode::Tunnel && service.is_six, "tunnel of six"),
        (is_across, "tunnel across"),
        (service.has_here(), "here"),
    ];
    let special = special.into_iter().filter(|&(is_so, _)| is_so).map(|(_, name)| name);
    [service.mode.name()].into_iter().chain(special)
}

/// What the data path has done, in the model's words.
fn fate(verdict: Verdict, frame: &[u8], left: Vec<u8>) -> Fate {
    match verdict {
        Verdict::Route(port) => Fate::Route(port, left),
        Verdict::Forward(port) => {
            let (header, packet) = left.split_at(14);
            tunnel::without_choice(packet)
                .map_or_else(Fate::Drop, |packet| Fate::Forward(port, [header, &packet].concat()))
        }
        Verdict::Punt(Punt::Unresolved) => {
            tunnel::without_choice(&left[14..]).map_or_else(Fate::Drop, Fate::Unresolved)
        }
        Verdict::Punt(Punt::ToFragment) => {
            tunnel::without_choice(&left[14..]).map_or_else(Fate::Drop, Fate::ToFragment)
        }
        Verdict::Punt(_) if left != frame => Fate::Drop("punted, but not as it came"),
        Verdict::Punt(why) => Fate::Punt(why.name()),
        Verdict::Drop(why) => Fate::Drop(why.name()),
        Verdict::Hold => Fate::Hold,
    }
}

/// The same of a fragment that has waited.
fn settled(verdict: Verdict, left: Vec<u8>) -> Fate {
    fate(verdict, &left.clone(), left)
}

fn name(fate: &Fate) -> &'static str {
    match fate {
        Fate::Forward(..) => "forward",
        Fate::Route(..) => "route",
        Fate::ToFragment(_) => Punt::ToFragment.name(),
        Fate::Unresolved(_) => Punt::Unresolved.name(),
        Fate::Punt(why) | Fate::Drop(why) => why,
        Fate::Hold => "hold",
    }
}

fn shown(fate: &Fate) -> String {
    match fate {
        Fate::Forward(port, bytes) => format!("forward {port} {}", hex(bytes)),
        Fate::Route(port, bytes) => format!("route {port} {}", hex(bytes)),
        Fate::ToFragment(bytes) => format!("to fragment {}", hex(bytes)),
        Fate::Unresolved(bytes) => format!("unresolved {}", hex(bytes)),
        Fate::Punt(why) => format!("punt {why}"),
        Fate::Drop(why) => format!("drop {why}"),
        Fate::Hold => "hold".to_owned(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().take(120).map(|byte| format!("{byte:02x}")).collect()
}
