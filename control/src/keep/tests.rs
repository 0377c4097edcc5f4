//! One process after the other, on a directory and without EAL.

use std::collections::HashMap;
use std::net::SocketAddrV4;
use std::os::unix::fs::FileExt;

use dataplane::service::{Protocol, State};
use dataplane::snat::{Class, Snats};
use dataplane::table::{Client, DestId, FLAG_TENTATIVE, Inserted, Judge, LAYOUT, Word, Worth, write_mapped};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use proptest::prelude::*;

use super::directory::tests::on_tmpfs;
use super::*;
use crate::config;
use crate::ids::ServerKey;
use crate::services::Changes;

const WEB: &str = "tcp/192.0.2.10:80";

/// A configuration with these servers of one service, by the last number of their addresses. Those that are not there any
/// more drain.
fn config(keep: &Path, connections: usize, servers: &[u8]) -> Config {
    config_with(keep, connections, servers, "drain")
}

fn config_with(keep: &Path, connections: usize, servers: &[u8], on_remove: &str) -> Config {
    let servers: String =
        servers.iter().map(|n| format!("[[service.server]]\naddress = \"10.0.0.{n}\"\n")).collect();
    let text = format!(
        "[workers]\ncores = [0]\nidle = \"adaptive\"\n[table]\nconnections = {connections}\nkeep = \"{}\"\n\
         [[port]]\nname = \"wan\"\ndevice = \"net_null\"\n\
         [[service]]\naddress = \"192.0.2.10:80\"\nmode = \"nat\"\non_remove = \"{on_remove}\"\n{servers}",
        keep.display()
    );
    config::parse(Path::new("f"), text.into()).unwrap()
}

fn server(n: u8) -> ServerKey {
    ServerKey { address: format!("10.0.0.{n}:80").parse().unwrap(), mode: dataplane::service::Mode::Nat }
}

/// Starts, and enters all servers as the first snapshot does.
fn begin(config: &Config) -> Start {
    let mut services = Services::new(config.services.clone());
    let mut start = start(config, &services, claim(config).unwrap(), &[0]).unwrap();
    let members = start.ids.members().map(|member| (member.service, member.server));
    services.come_back(members, &Changes::default(), tokio::time::Instant::now());
    let mut servers = Vec::from_iter(services.members());
    servers.sort_by_key(|(_, server)| server.address);
    for (service, server) in servers {
        start.ids.enter(service).server(server, 1);
    }
    start.keep.as_mut().unwrap().record(&mut start.ids, &mut start.pools);
    start
}

impl Start {
    fn id(&mut self, n: u8) -> DestId {
        self.ids.enter(WEB.parse().unwrap()).server(server(n), 1).id
    }

    fn insert(&self, word: Word) {
        let hash = self.table.hash(word.client(), Protocol::Tcp);
        assert!(matches!(self.table.insert(hash, word, 0, &Keeper), Inserted::New(_)));
    }

    fn gauge(&self, n: u8) -> (u32, u32) {
        self.ids.service(&WEB.parse().unwrap()).unwrap().servers[&server(n)].gauge.get()
    }

    /// By client: who serves it, and in which state.
    fn connections(&self) -> HashMap<Client, (ServerKey, State)> {
        let members: HashMap<usize, ServerKey> =
            self.ids.members().map(|member| (member.id.index(), member.server)).collect();
        let words = self.table.words(0..self.table.buckets());
        words.map(|word| (word.client(), (members[&word.dest_number()], word.state()))).collect()
    }
}

struct Keeper;

impl Judge for Keeper {
    fn is_mine(&self, _: Word) -> bool {
        true
    }
    fn worth(&self, _: Word) -> Worth {
        Worth::Keep
    }
    fn removed(&self, _: Word) {}
}

fn client(n: u32) -> Client {
    Client::new(0xC633_6400 + n, 1000)
}

fn word(n: u32, id: DestId) -> Word {
    Word::new(client(n), id).with_state(if n.is_multiple_of(3) { State::FinWait } else { State::Established })
}

/// A directory with thirty connections of three servers.
fn thirty() -> (tempfile::TempDir, HashMap<Client, (ServerKey, State)>) {
    let parent = on_tmpfs();
    let connections = thirty_in(parent.path());
    (parent, connections)
}

fn thirty_in(directory: &Path) -> HashMap<Client, (ServerKey, State)> {
    let mut first = begin(&config(directory, 2048, &[1, 2, 3]));
    assert_eq!(first.origin, Origin::New);
    for n in 0..30 {
        let id = first.id(1 + (n % 3) as u8);
        first.insert(word(n, id));
    }
    first.connections()
}

/// Does this with a file system of its own, which goes with its thread, or says loudly that it does not.
fn on(kind: &str, options: &str, test: impl FnOnce(&Path) + Send) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: this test mounts a file system, which takes root");
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let within = || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let nowhere = None::<&str>;
        mount(nowhere, "/", nowhere, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nowhere).unwrap();
        mount(Some(kind), place.path(), Some(kind), MsFlags::empty(), Some(options)).unwrap();
        test(place.path());
    };
    if let Err(panic) = std::thread::scope(|scope| scope.spawn(within).join()) {
        std::panic::resume_unwind(panic);
    }
}

fn counts(origin: &Origin) -> (u64, u64) {
    match origin {
        Origin::Adopted { kept, removed, .. } => (*kept, *removed),
        other => panic!("{other:?}"),
    }
}

#[test]
fn all_connections_go_on() {
    let (parent, before) = thirty();
    // The same again, larger, smaller.
    for connections in [2048, 2048, 10_000, 1024, 1024] {
        let next = begin(&config(parent.path(), connections, &[1, 2, 3]));
        assert_eq!(counts(&next.origin), (30, 0));
        assert_eq!(next.connections(), before);
        assert_eq!([1, 2, 3].map(|n| next.gauge(n)), [(0, 10), (10, 0), (10, 0)]);
        assert_eq!(next.table.slots(), 2 * connections);
        let keep = next.keep.unwrap();
        assert_eq!(keep.directory.names("").len(), 2, "one table and its index");
    }
}

#[test]
fn servers_that_come_and_go_between_the_two() {
    let (parent, mut before) = thirty();
    let mut next = begin(&config_with(parent.path(), 2048, &[4, 3, 1], "drop"));
    assert_eq!(counts(&next.origin), (20, 10));
    before.retain(|_, (serving, _)| *serving != server(2));
    assert_eq!(next.connections(), before);
    // The new one has the number of the one that has gone, and none of its connections.
    assert_eq!((next.id(4).index(), next.gauge(4)), (2, (0, 0)));
    drop(next);
    let mut last = begin(&config(parent.path(), 2048, &[1, 2, 3, 4]));
    assert_eq!((last.connections(), last.gauge(2)), (before, (0, 0)));
    assert_eq!(last.id(4).index(), 2);
}

#[test]
fn servers_that_have_gone_leave_with_the_connections_that_they_have() {
    let (parent, before) = thirty();
    let mut next = begin(&config(parent.path(), 2048, &[3, 1]));
    assert_eq!((counts(&next.origin), next.connections()), ((30, 0), before.clone()));
    assert_eq!((next.gauge(2), next.id(2).index()), ((10, 0), 2));
    // One that nobody has written into the file.
    let id = next.id(4);
    next.keep.as_mut().unwrap().record(&mut next.ids, &mut next.pools);
    next.insert(word(100, id));
    drop(next);
    // Still on its way out in the next process but one, of another size.
    let mut last = begin(&config(parent.path(), 1024, &[1]));
    assert_eq!((counts(&last.origin), last.connections().len()), ((31, 0), 31));
    assert_eq!([2, 3, 4].map(|n| last.gauge(n)), [(10, 0), (10, 0), (1, 0)]);
    // Whose connections have ended is nobody.
    let by = [last.id(2), last.id(4)];
    let ended = |word: Word| by.iter().any(|id| id.index() == word.dest_number());
    for (slot, word) in last.table.entries(0..last.table.buckets()).filter(|(_, word)| ended(*word)) {
        last.table.replace(slot, word, Word::EMPTY).unwrap();
    }
    drop(last);
    let mut after = begin(&config(parent.path(), 1024, &[1, 9]));
    assert_eq!((counts(&after.origin), after.ids.members().count()), ((20, 0), 3));
    assert_eq!(after.id(9).index(), 2, "its number is free");
}

#[test]
fn a_connection_that_was_being_made_is_not_one() {
    let (parent, before) = thirty();
    let mut next = begin(&config(parent.path(), 2048, &[1, 2, 3]));
    let id = next.id(1);
    next.insert(word(100, id).with_flags(FLAG_TENTATIVE));
    drop(next);
    let last = begin(&config(parent.path(), 2048, &[1, 2, 3]));
    assert_eq!(counts(&last.origin), (30, 1));
    assert_eq!(last.connections(), before);
}

/// Each with what is said of it; after that, all works as before.
#[test]
fn what_does_not_do_is_refused_and_begun_anew() {
    let edit = |change: &dyn Fn(String) -> String| {
        let change = |text: String| {
            let text = change(text);
            let (before, _) = text.rsplit_once("checksum").unwrap();
            let mut hasher = siphasher::sip::SipHasher13::new();
            hasher.write(before.as_bytes());
            format!("{before}checksum {:016x}\n", hasher.finish())
        };
        let (parent, _) = thirty();
        let path = parent.path().join(INDEX);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, change(text.trim_end_matches('\0').to_owned())).unwrap();
        parent
    };
    let (truncated, _) = thirty();
    for name in fs::read_dir(truncated.path()).unwrap().flatten().filter(|entry| entry.file_name() != INDEX) {
        fs::File::options().write(true).open(name.path()).unwrap().set_len(4096).unwrap();
    }
    let (overwritten, _) = thirty();
    fs::write(overwritten.path().join(INDEX), [0xFF; 8192]).unwrap();
    let (forgotten, _) = thirty();
    let index = fs::File::options().write(true).open(forgotten.path().join(INDEX)).unwrap();
    index.set_modified(std::time::SystemTime::now() - Duration::from_secs(3 * 3600)).unwrap();
    let this = boot().unwrap();
    let cases = [
        (forgotten, "it was in use 3h"),
        (truncated, "its table cannot be used: it has 4096 bytes; expected 1024 buckets of 64"),
        (overwritten, "the index is no text"),
        (edit(&|text| text.replace(&this, "another")), "it is of another boot of this machine"),
        (
            edit(&|text| text.replace(&format!("layout {LAYOUT}"), "layout 77")),
            "another build made it: its layout is 77; expected ",
        ),
        (edit(&|text| text.replace("table-", "/etc/table-")), "the index names no table"),
        (edit(&|text| text.replace("table table-", "table table-0")), "cannot open"),
    ];
    for (parent, expected) in cases {
        let next = begin(&config(parent.path(), 2048, &[1, 2, 3]));
        assert!(
            matches!(&next.origin, Origin::Refused(reason) if reason.contains(expected)),
            "{:?}",
            next.origin
        );
        assert!(next.connections().is_empty());
        let events = Events::default();
        next.origin.tell(&events);
        assert_eq!(events.tally().keys().collect::<Vec<_>>(), [&"table_refused"]);
        drop(next);
        assert_eq!(counts(&begin(&config(parent.path(), 2048, &[1, 2, 3])).origin), (0, 0));
    }
}

#[test]
fn stamps_of_a_clock_that_was_measured_otherwise_are_translated() {
    let (parent, before) = thirty();
    let mut first = begin(&config(parent.path(), 2048, &[1, 2, 3]));
    let mut keep = first.keep.take().unwrap();
    let table = keep.index.table.clone();
    (keep.index.tsc_per_tick, keep.is_written) = (keep.index.tsc_per_tick + 1, false);
    keep.record(&mut first.ids, &mut first.pools);
    drop((keep, first));
    let next = begin(&config(parent.path(), 2048, &[1, 2, 3]));
    assert_eq!((counts(&next.origin), next.connections()), ((30, 0), before));
    let index = next.keep.unwrap().index;
    assert_eq!(index.tsc_per_tick, Ticks::ours().per_tick());
    assert_ne!(
        index.table, table,
        "not where they are: who died in the middle would leave both kinds of stamps"
    );
}

#[test]
fn an_index_that_cannot_be_written_is_none() {
    let (parent, _) = thirty();
    let mut next = begin(&config(parent.path(), 2048, &[1, 2, 3]));
    // Nothing can be made where a directory is.
    let obstacle = parent.path().join("index.new");
    fs::create_dir(&obstacle).unwrap();
    next.id(4);
    let mut keep = next.keep.take().unwrap();
    keep.record(&mut next.ids, &mut next.pools);
    assert_eq!(keep.directory.read(INDEX).unwrap(), None);
    fs::remove_dir(&obstacle).unwrap();
    keep.record(&mut next.ids, &mut next.pools);
    let index = Index::parse(&keep.directory.read(INDEX).unwrap().unwrap()).unwrap();
    assert_eq!(index.members.len(), 4);
}

/// The first attempt to write it fails, for want of a page.
#[test]
fn an_index_that_has_no_room_beside_the_old_one_takes_its_place() {
    const PAGE: u64 = 4096;
    let bytes = Table::bytes(2048).next_multiple_of(PAGE) + PAGE;
    on("tmpfs", &format!("mode=0700,size={bytes}"), |path| {
        let before = thirty_in(path);
        let mut next = begin(&config(path, 2048, &[1, 2, 3]));
        assert_eq!((counts(&next.origin), next.connections()), ((30, 0), before.clone()));
        next.id(4);
        let mut keep = next.keep.take().unwrap();
        keep.record(&mut next.ids, &mut next.pools);
        assert!(keep.is_written && !keep.is_said);
        let index = Index::parse(&keep.directory.read(INDEX).unwrap().unwrap()).unwrap();
        assert_eq!((index.members.len(), keep.directory.names(INDEX)), (4, vec![INDEX.to_owned()]));
        drop((keep, next));
        assert_eq!(begin(&config(path, 2048, &[1, 2, 3])).connections(), before);
        // Nor is there room for a larger table beside the old one, which therefore stays.
        let last = begin(&config(path, 4096, &[1, 2, 3]));
        assert_eq!((last.table.slots(), last.connections()), (4096, before));
    });
}

/// Only those can whose ports are known.
#[test]
fn connections_of_full_nat_go_on_with_their_ports() {
    let parent = on_tmpfs();
    let text = format!(
        "[workers]\ncores = [0]\n[table]\nconnections = 2048\nkeep = \"{}\"\n\
         [[port]]\nname = \"wan\"\ndevice = \"net_null\"\n\
         [[service]]\naddress = \"192.0.2.10:80\"\nmode = \"fullnat\"\nfullnat = {{ local = [\"10.0.0.100\"] }}\n\
         [[service.server]]\naddress = \"10.0.0.1:80\"\n",
        parent.path().display()
    );
    let config = config::parse(Path::new("f"), text.into()).unwrap();
    let (slot, before, port) = {
        let mut first = begin(&config);
        let id = first.ids.members().next().unwrap().id;
        let before = word(1, id);
        first.insert(before);
        let local = first.ids.local("10.0.0.100".parse().unwrap()).unwrap();
        assert!(local.take(Protocol::Tcp, 4711, before.identity(), None));
        let hash = first.table.hash(before.client(), Protocol::Tcp);
        (first.table.find(hash, before.client(), &Keeper).unwrap().0, before, 4711)
    };
    let next = begin(&config);
    assert_eq!(counts(&next.origin), (1, 0));
    assert_eq!(next.table.local_of(slot, before.identity()).unwrap().port, port);
    let keep = next.keep.as_ref().unwrap();
    locals::remove_all(&keep.directory);
    drop(next);
    assert_eq!(counts(&begin(&config).origin), (0, 1));
}

/// Also beside a table of another size. How old they are, a process without EAL cannot say: it has no clock.
#[test]
fn mappings_of_source_nat_are_found_beside_the_table() {
    let parent = on_tmpfs();
    let text = format!(
        "[workers]\ncores = [0]\n[table]\nconnections = 2048\nkeep = \"{}\"\n\
         [[port]]\nname = \"wan\"\ndevice = \"net_null\"\n\
         [[snat]]\ninside = [\"10.0.0.0/24\"]\noutside = [\"192.0.2.50\"]\n",
        parent.path().display()
    );
    let config = config::parse(Path::new("f"), text.into()).unwrap();
    let services = Services::new(Vec::new());
    let (before, ends) = {
        let first = begin(&config);
        let inside = Client::new(0x0A00_0005, 4000);
        let left = Snats::new(first.pools.snats()).leaves(now(), Class::Udp, inside, 0, 0);
        let (mapping, _) = left.unwrap();
        (first.pools.kept(), (inside.socket(), SocketAddrV4::new(mapping.address.into(), mapping.port)))
    };
    for connections in [2048, 20_000] {
        let directory = Arc::new(Directory::open(parent.path()).unwrap());
        let threads = Threads { count: 1, begin: &|_| {} };
        let found = adopt(&directory, connections, &services, threads).unwrap().unwrap();
        let mappings: Vec<_> = found.mappings.iter().map(|told| (told.inside, told.outside)).collect();
        assert_eq!((mappings, &found.index.pools), (vec![ends], &before));
    }

    let files = |start: &Start| start.keep.as_ref().unwrap().directory.names("snat-");
    let next = begin(&config);
    let [kept] = &next.pools.kept()[..] else { panic!("one pool") };
    assert_eq!((kept.key, &kept.addresses), (before[0].key, &before[0].addresses));
    assert_eq!((files(&next), kept.file == before[0].file), (vec![kept.file.clone()], false));

    // What cannot be understood goes.
    drop(next);
    fs::write(parent.path().join(INDEX), "damaged").unwrap();
    let refused = begin(&config);
    let [other] = &refused.pools.kept()[..] else { panic!("one pool") };
    assert!(matches!(refused.origin, Origin::Refused(_)) && other.key != before[0].key);
    assert_eq!(files(&refused), std::slice::from_ref(&other.file));

    let without = start(&config, &services, None, &[0]).unwrap();
    assert_eq!((without.pools.snats().len(), without.pools.kept()), (1, vec![]));
}

#[test]
fn hugetlbfs_does_as_well() {
    // Two tables and two indices.
    const NEEDED: u32 = 4;
    let free = fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    if free.ok().and_then(|free| free.trim().parse::<u32>().ok()).is_none_or(|free| free < NEEDED) {
        eprintln!("SKIPPED: this test takes {NEEDED} free hugepages of 2 MB");
        return;
    }
    on("hugetlbfs", "pagesize=2M,mode=0700", |path| {
        let before = thirty_in(path);
        for connections in [2048, 20_000, 1024] {
            let next = begin(&config(path, connections, &[1, 2, 3]));
            assert_eq!((counts(&next.origin), next.connections()), ((30, 0), before.clone()));
        }
        let index = fs::File::options().read(true).write(true).open(path.join(INDEX)).unwrap();
        write_mapped(&index, b"RVS connection table\nlayout 1\nboot 1").unwrap();
        let next = begin(&config(path, 2048, &[1, 2, 3]));
        assert_eq!(next.origin, Origin::Refused("the index is damaged: its checksum is wrong".to_owned()));
        assert!(next.connections().is_empty());
    });
}

#[derive(Clone, Debug)]
enum Operation {
    Insert(u32, u8),
    /// As a worker that is stopped in the middle.
    InsertHalf(u32, u8),
    Remove(u32),
    ChangeState(u32, u8),
    AddServer(u8),
    RemoveServer(u8),
    /// Without the file.
    AddLive(u8),
    /// Dies, and is followed by a process with a table of this size.
    Die(usize),
}

fn operation() -> impl Strategy<Value = Operation> {
    let size = prop::sample::select(vec![1024, 1500, 2048]);
    prop_oneof![
        6 => (0..100u32, 1..5u8).prop_map(|(n, server)| Operation::Insert(n, server)),
        1 => (100..120u32, 1..5u8).prop_map(|(n, server)| Operation::InsertHalf(n, server)),
        2 => (0..100u32).prop_map(Operation::Remove),
        2 => (0..100u32, 0..12u8).prop_map(|(n, state)| Operation::ChangeState(n, state)),
        1 => (1..5u8).prop_map(Operation::AddServer),
        1 => (1..5u8).prop_map(Operation::RemoveServer),
        1 => (1..5u8).prop_map(Operation::AddLive),
        2 => size.prop_map(Operation::Die),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Against a plain map, with deaths at any moment between two operations. Servers of the file come and go when a process
    /// does, others are added live and are gone then; both drain, or are dropped.
    #[test]
    fn agrees_with_a_hash_map_over_deaths(
        operations in prop::collection::vec(operation(), 0..120),
        drains in any::<bool>(),
    ) {
        let parent = on_tmpfs();
        let mut servers: BTreeSet<u8> = [1, 2].into();
        let settle = |servers: &BTreeSet<u8>, connections| {
            let servers = Vec::from_iter(servers.iter().copied());
            begin(&config_with(parent.path(), connections, &servers, if drains { "drain" } else { "drop" }))
        };
        let mut model: HashMap<Client, (ServerKey, State)> = HashMap::new();
        let mut running = settle(&servers, 1024);
        // What the process that runs was started with.
        let mut serving = servers.clone();
        let find = |running: &Start, n: u32| {
            let hash = running.table.hash(client(n), Protocol::Tcp);
            running.table.find(hash, client(n), &Keeper)
        };
        for operation in operations {
            match operation {
                Operation::Insert(n, by) if serving.contains(&by) && !model.contains_key(&client(n)) => {
                    let id = running.id(by);
                    running.insert(word(n, id));
                    model.insert(client(n), (server(by), word(n, id).state()));
                }
                Operation::InsertHalf(n, by) if serving.contains(&by) => {
                    let id = running.id(by);
                    let hash = running.table.hash(client(n), Protocol::Tcp);
                    if let Some(slot) = running.table.vacancy(hash, client(n)) {
                        running.table.replace(slot, Word::EMPTY, word(n, id).with_flags(FLAG_TENTATIVE)).unwrap();
                    }
                }
                Operation::Remove(n) => {
                    if let Some((slot, old)) = find(&running, n) {
                        running.table.replace(slot, old, Word::EMPTY).unwrap();
                    }
                    model.remove(&client(n));
                }
                Operation::ChangeState(n, state) => {
                    let state = State::from_number(state).unwrap();
                    if let Some((slot, old)) = find(&running, n) {
                        running.table.replace(slot, old, old.with_state(state)).unwrap();
                        model.entry(client(n)).and_modify(|(_, known)| *known = state);
                    }
                }
                Operation::AddServer(n) => drop(servers.insert(n)),
                Operation::RemoveServer(n) => drop(servers.remove(&n)),
                Operation::AddLive(n) => {
                    running.id(n);
                    running.keep.as_mut().unwrap().record(&mut running.ids, &mut running.pools);
                    serving.insert(n);
                }
                Operation::Die(connections) => {
                    drop(running);
                    running = settle(&servers, connections);
                    serving = servers.clone();
                    model.retain(|_, (by, _)| drains || servers.iter().any(|&n| server(n) == *by));
                    prop_assert_eq!(counts(&running.origin).0, model.len() as u64);
                    let mut gauges: HashMap<ServerKey, (u32, u32)> = HashMap::new();
                    for (by, state) in model.values() {
                        let (active, inactive) = gauges.entry(*by).or_default();
                        *if state.is_active() { active } else { inactive } += 1;
                    }
                    for member in running.ids.members() {
                        let gauge = running.ids.service(&member.service).unwrap().servers[&member.server].gauge.get();
                        prop_assert_eq!(gauge, gauges.remove(&member.server).unwrap_or_default());
                    }
                    prop_assert!(gauges.is_empty(), "{:?}", gauges);
                }
                _ => {}
            }
            prop_assert_eq!(&running.connections(), &model);
        }
    }
}

/// Not a rule, but worth to know: a word that is damaged is a word, and no more than its connection is lost.
#[test]
fn damage_to_words_is_borne() {
    let (parent, _) = thirty();
    let table =
        fs::read_dir(parent.path()).unwrap().flatten().find(|entry| entry.file_name() != INDEX).unwrap();
    let file = fs::File::options().write(true).open(table.path()).unwrap();
    file.write_all_at(&[0xFF; 4096], 0).unwrap();
    let next = begin(&config(parent.path(), 2048, &[1, 2, 3]));
    let (kept, removed) = counts(&next.origin);
    assert!(kept <= 30 && removed == 256, "{:?}", next.origin);
}
