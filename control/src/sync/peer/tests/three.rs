//! Three routers, each a peer of both others.

use super::*;

const PAIRS: [(usize, usize); 6] = [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)];

struct Mesh {
    now: Duration,
    routers: [Router; 3],
    /// By whose it is and whom it speaks to.
    peers: BTreeMap<(usize, usize), Peer>,
}

impl Mesh {
    fn new() -> Mesh {
        let peer = |(from, to)| ((from, to), Mesh::peer(from, to));
        Mesh {
            now: Duration::from_secs(1),
            routers: [1, 1000, 2000].map(Router::new),
            peers: PAIRS.into_iter().map(peer).collect(),
        }
    }

    fn peer(from: usize, to: usize) -> Peer {
        Peer::new(Key([9; 32]), from < to, 100 * from as u16)
    }

    fn change(&mut self, router: usize, slot: usize, dest: u32, state: State) {
        self.routers[router].set(slot, dest, state);
        for (_, peer) in self.peers.iter_mut().filter(|((from, _), _)| *from == router) {
            peer.note(self.now, Slot::from_number(slot as u32));
        }
    }

    /// Lets all speak; between those for whom it is `cut` nothing passes.
    fn run(&mut self, time: Duration, cut: impl Fn(usize, usize) -> bool) {
        let until = self.now + time;
        while self.now < until {
            self.now += 2 * MS;
            for (from, to) in PAIRS {
                let sender = self.peers.get_mut(&(from, to)).unwrap();
                let store = &self.routers[from];
                let sent: Vec<_> = std::iter::from_fn(|| sender.send(self.now, store).unwrap()).collect();
                let receiver = self.peers.get_mut(&(to, from)).unwrap();
                for datagram in sent.iter().filter(|_| !cut(from, to)) {
                    receiver.receive(self.now, datagram, &mut self.routers[to]).unwrap();
                }
            }
        }
    }

    fn assert_all_know(&self, connections: usize) {
        assert!(self.peers.values().all(|peer| peer.standing() == Standing::Together));
        let [first, second, third] = [0, 1, 2].map(|router: usize| self.routers[router].known());
        assert_eq!(first.len(), connections);
        assert!(first == second && second == third);
    }
}

#[test]
fn three_know_what_each_of_them_carries_and_one_that_starts_anew_learns_it() {
    let mut mesh = Mesh::new();
    mesh.run(50 * MS, |_, _| false);
    for slot in 0..60 {
        mesh.change(slot % 3, slot, slot as u32 % 5, State::Established);
    }
    mesh.run(50 * MS, |_, _| false);
    mesh.assert_all_know(60);
    // What is told is not told on as a change.
    assert!(mesh.peers.values().all(|peer| peer.counts().connections_sent < 60));

    mesh.routers[1] = Router::new(500);
    for other in [0, 2] {
        mesh.peers.insert((1, other), Mesh::peer(1, other));
    }
    mesh.run(AWAY_AFTER + Duration::from_secs(1), |_, _| false);
    mesh.assert_all_know(60);
}

#[test]
fn what_two_cannot_tell_each_other_comes_by_the_third_within_one_pass_of_healing() {
    let mut mesh = Mesh::new();
    mesh.run(50 * MS, |_, _| false);
    let cut = |from, to| from + to == 1;
    for slot in 0..30 {
        mesh.change(0, slot, 1, State::Established);
    }
    mesh.run(HEAL + Duration::from_secs(1), cut);
    assert_eq!(mesh.peers[&(0, 1)].standing(), Standing::Away);
    assert_eq!(mesh.routers[1].known(), mesh.routers[0].known());
    mesh.run(AWAY_AFTER + Duration::from_secs(1), |_, _| false);
    mesh.assert_all_know(30);
}
