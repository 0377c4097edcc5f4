//! Everything that needs EAL, behind one: net_null and net_ring, no hugepages, no root, no hardware.
//!
//! EAL starts once in a process, on a thread that stays its main lcore. `cargo test` runs these as
//! threads of one process, `cargo nextest` as a process each; both find it through [`eal`].

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use dpdk::{Batch, Eal, Error, Lcore, Mbuf, Mempool, Port, Queues, Rss, Settings, Side, Started, clock};

const CACHE: u32 = 64;

/// As a router asks for it.
const RSS: Rss = Rss { side: Side::Source, key: Some(&[0x5a; dpdk::LONGEST_KEY]) };

/// `--no-shconf` and not `--in-memory`, which 22.11 refuses together with `--no-huge`. Nothing is
/// shared under the prefix then, so that all processes may have the same.
fn args() -> Vec<String> {
    let args = "--no-huge --no-shconf --no-pci --no-telemetry -m 64 --lcores 0@(0-1) --log-level=*:error \
                --file-prefix=rvs-test";
    args.split_whitespace().map(str::to_owned).collect()
}

/// EAL of this process, started by the first who asks.
fn eal() -> &'static Eal {
    static EAL: OnceLock<Eal> = OnceLock::new();
    EAL.get_or_init(|| Eal::init(&args()).expect("EAL starts without privileges or hardware"))
}

/// Devices and memory are shared: what probes, starts or makes pools takes its turn. (A pool that is too
/// large takes all there is before it gives up.)
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A pool of its own for each test, so that counts are exact.
fn pool(name: &str) -> &'static Mempool {
    let _turn = turn();
    Mempool::new(eal(), name, 1023, CACHE, dpdk::data_room(1500)).expect("a small pool")
}

/// Runs on a thread of its own, registered: the test's thread may be the main lcore, or not.
fn on_lcore<T: Send>(body: impl FnOnce(&Lcore) -> T + Send) -> T {
    eal();
    thread::scope(|scope| {
        scope.spawn(|| body(&Lcore::register().expect("EAL takes the thread"))).join().expect("no panic")
    })
}

fn settings(pool: &'static Mempool, queues: u16) -> Settings {
    Settings { queues, descriptors: 256, mtu: 1500, rss: Some(RSS), pool, mac: None, promiscuous: true }
}

fn start(device: &str, pool: &'static Mempool, queues: u16) -> (Port<Started>, Queues) {
    let _turn = turn();
    eal().probe(device).expect("the device exists");
    let name = device.split(',').next().expect("a name");
    Port::by_name(eal(), name).expect("it is a port").configure(settings(pool, queues)).expect("it starts")
}

fn packet(pool: &Mempool, lcore: &Lcore, bytes: &[u8]) -> Mbuf {
    let mut mbuf = pool.alloc(lcore).expect("the pool has one");
    mbuf.append(bytes.len()).expect("it has room").copy_from_slice(bytes);
    mbuf
}

#[test]
fn a_second_start_is_refused() {
    eal();
    assert!(matches!(Eal::init(&args()), Err(Error::AlreadyInitialised)));
}

#[test]
fn an_argument_with_a_zero_byte_is_refused_before_anything_starts() {
    let error = Eal::init(&["a\0b".to_owned()]).expect_err("no C string");
    assert_eq!(error.to_string(), r#""a\0b" contains a zero byte"#);
    eal();
}

#[test]
fn the_version_is_one_we_accept() {
    let version = Eal::version();
    assert!(version.starts_with("DPDK 2"), "{version}");
}

#[test]
fn starting_does_not_pin_the_thread() {
    // nextest: this process starts EAL here. cargo test: some thread did; all inherit from the first.
    let before = affinity();
    eal();
    assert_eq!(affinity(), before);
}

fn affinity() -> String {
    let status = std::fs::read_to_string("/proc/thread-self/status").expect("Linux");
    status.lines().find(|line| line.starts_with("Cpus_allowed:")).expect("a line of it").to_owned()
}

#[test]
fn only_the_thread_that_started_eal_is_the_main_lcore() {
    eal();
    let elsewhere = thread::spawn(|| eal().main_lcore().map(drop)).join().expect("no panic");
    assert!(matches!(elsewhere, Err(Error::NotMain)));
}

#[test]
fn a_thread_registers_once_at_a_time() {
    eal();
    thread::spawn(|| {
        let first = Lcore::register().expect("EAL takes the thread");
        assert!(matches!(Lcore::register(), Err(Error::Registered(id)) if id == first.id()));
        drop(first);
        Lcore::register().expect("it was given back");
    })
    .join()
    .expect("no panic");
}

#[test]
fn the_clock_counts_as_often_as_eal_says() {
    eal();
    // The counter is read inside of the longer time and outside of the shorter one, however long the
    // thread is kept waiting between two lines.
    let outer = Instant::now();
    let first = clock::tsc();
    let inner = Instant::now();
    thread::sleep(Duration::from_millis(50));
    let shorter = inner.elapsed().as_secs_f64();
    let counted = (clock::tsc() - first) as f64 / clock::tsc_hz() as f64;
    let longer = outer.elapsed().as_secs_f64();
    let error = 0.01 * longer;
    assert!(shorter - error < counted && counted < longer + error, "{shorter} < {counted} < {longer}");
}

#[test]
fn a_pool_counts_what_is_out_and_ends() {
    let pool = pool("counts");
    assert_eq!((pool.size(), pool.available(), pool.in_use()), (1023, 1023, 0));
    on_lcore(|lcore| {
        let one = pool.alloc(lcore).expect("the pool is full");
        assert_eq!(pool.in_use(), 1);
        drop(one);
        assert_eq!(pool.in_use(), 0);
        let all: Vec<Mbuf> = std::iter::from_fn(|| pool.alloc(lcore)).collect();
        assert_eq!(all.len(), 1023);
        assert!(pool.alloc(lcore).is_none());
    });
    assert_eq!(pool.available(), 1023);
}

#[test]
fn a_pool_that_does_not_fit_says_what_was_wanted() {
    let _turn = turn();
    let error = Mempool::new(eal(), "huge", 1 << 20, CACHE, 2176).expect_err("64 MB hold no 2 GB");
    assert_eq!(
        error.to_string(),
        r#"pool "huge" of 1048576 packets, 2176 bytes each: Cannot allocate memory (rte_errno 12)"#
    );
}

#[test]
fn a_packet_grows_at_both_ends_within_its_buffer() {
    let pool = pool("grows");
    on_lcore(|lcore| {
        let mut mbuf = packet(pool, lcore, b"payload");
        assert_eq!((mbuf.data(), mbuf.packet_len()), (&b"payload"[..], 7));
        assert!(mbuf.is_contiguous() && !mbuf.is_vlan_stripped());
        assert_eq!((mbuf.vlan_tci(), mbuf.rss_hash()), (None, None));

        mbuf.prepend(4).expect("there is headroom").copy_from_slice(b"head");
        assert_eq!(mbuf.data(), b"headpayload");
        assert!(mbuf.prepend(usize::from(dpdk::HEADROOM) - 3).is_none());
        mbuf.truncate(100);
        mbuf.truncate(6);
        assert_eq!((mbuf.data(), mbuf.packet_len()), (&b"headpa"[..], 6));

        let room = usize::from(pool.data_room() - dpdk::HEADROOM) - 2;
        assert!(mbuf.append(room + 1).is_none());
        assert!(mbuf.append(usize::MAX).is_none());
        mbuf.append(room).expect("exactly the room").fill(7);
        assert_eq!(mbuf.packet_len() as usize, room + 6);

        let mut copy = [0; 8];
        assert_eq!(mbuf.copy_to(&mut copy), 8);
        assert_eq!(&copy, b"headpa\x07\x07");
        assert_eq!(mbuf.copy_to(&mut []), 0);
    });
    assert_eq!(pool.in_use(), 0);
}

#[test]
fn a_batch_owns_what_is_in_it() {
    let pool = pool("batch");
    on_lcore(|lcore| {
        let mut batch = Batch::<4>::new();
        for byte in 0..4 {
            batch.push(packet(pool, lcore, &[byte])).expect("there is room");
        }
        let refused = batch.push(packet(pool, lcore, &[4])).expect_err("there is none");
        assert_eq!(refused.data(), [4]);
        drop(refused);
        assert!(batch.is_full());

        batch.as_mut_slice().reverse();
        batch.iter_mut().for_each(|mbuf| mbuf.data_mut()[0] += 10);
        assert_eq!(first_bytes(batch.as_slice()), [13, 12, 11, 10]);
        assert_eq!(batch.pop().expect("the last").data(), [10]);
        assert_eq!((batch.len(), pool.in_use()), (3, 3));
        batch.clear();
        assert!(batch.is_empty());
        assert_eq!(pool.in_use(), 0);

        batch.push(packet(pool, lcore, &[5])).expect("there is room");
        drop(batch);
        assert_eq!(pool.in_use(), 0);
    });
}

#[test]
fn a_batch_is_shared_out_by_value() {
    let pool = pool("drain");
    on_lcore(|lcore| {
        let mut all = Batch::<32>::new();
        assert!(pool.alloc_bulk(lcore, &mut all, 32));
        for (number, mbuf) in all.iter_mut().enumerate() {
            mbuf.append(1).expect("there is room")[0] = number as u8;
        }
        let mut outputs = [const { Batch::<32>::new() }; 2];
        for mbuf in all.drain() {
            let to = usize::from(mbuf.data()[0] % 2);
            outputs[to].push(mbuf).expect("as large as the input");
        }
        assert!(all.is_empty());
        assert_eq!(first_bytes(outputs[1].as_slice()), (1..32).step_by(2).collect::<Vec<u8>>());
        assert_eq!((outputs[0].len(), pool.in_use()), (16, 32));

        // What a drain leaves goes back.
        let mut drain = outputs[0].drain();
        assert_eq!(drain.len(), 16);
        let kept = drain.next().expect("sixteen");
        drop(drain);
        assert_eq!(pool.in_use(), 17);
        drop(kept);
    });
    assert_eq!(pool.in_use(), 0);
}

#[test]
fn bulk_allocation_is_all_or_nothing() {
    let pool = pool("bulk");
    on_lcore(|lcore| {
        let mut batch = Batch::<1024>::new();
        assert!(pool.alloc_bulk(lcore, &mut batch, 1000));
        assert!(!pool.alloc_bulk(lcore, &mut batch, 25), "the batch has room for 24");
        assert!(!pool.alloc_bulk(lcore, &mut batch, 24), "the pool has 23");
        assert_eq!((batch.len(), pool.in_use()), (1000, 1000));
        assert!(pool.alloc_bulk(lcore, &mut batch, 23));
    });
    assert_eq!(pool.in_use(), 0);
}

#[test]
fn what_a_worker_needs_moves_to_it() {
    fn moves<T: Send + 'static>() {}
    moves::<(dpdk::RxQueue, dpdk::TxQueue)>();
    moves::<(Batch<32>, Mbuf, &'static Mempool)>();
    moves::<(Port, Port<Started>, &'static Eal)>();
}

fn first_bytes(mbufs: &[Mbuf]) -> Vec<u8> {
    mbufs.iter().map(|mbuf| mbuf.data()[0]).collect()
}

#[test]
fn an_unknown_device_is_named() {
    let _turn = turn();
    let error = eal().probe("net_nonsense0,a=b").expect_err("there is no such driver");
    let expected = r#"device "net_nonsense0,a=b": no driver knows a device of this name"#;
    assert_eq!(error.to_string(), expected);
    let error = eal().probe("net_af_packet9,iface=rvs-nonsense").expect_err("there is no such interface");
    let message = error.to_string();
    assert!(message.starts_with(r#"device "net_af_packet9,iface=rvs-nonsense": "#), "{message}");
    assert!(message.contains(" (rte_errno "), "{message}");
    assert!(matches!(Port::by_name(eal(), "net_nonsense0"), Err(Error::NoPort(_))));
}

#[test]
fn null_makes_and_swallows_packets() {
    let pool = pool("null");
    let (port, mut queues) = start("net_null0,size=60", pool, 1);
    let (mut rx, mut tx) = queues.pop().expect("one pair");
    assert_eq!((rx.port(), rx.queue(), tx.port(), tx.queue()), (port.id(), 0, port.id(), 0));
    on_lcore(move |lcore| {
        let mut batch = Batch::<32>::new();
        batch.push(packet(pool, lcore, &[0; 60])).expect("there is room");
        assert_eq!(rx.recv(lcore, &mut batch), 31, "it fills the room that is left");
        assert_eq!(batch.len(), 32);
        assert_eq!(rx.recv(lcore, &mut batch), 0, "there is none");
        assert!(batch.iter().all(|mbuf| mbuf.packet_len() == 60));
        batch.iter().for_each(|mbuf| {
            mbuf.prefetch_header();
            mbuf.prefetch_data();
        });
        assert_eq!(tx.send(lcore, &mut batch), 32);
        assert!(batch.is_empty());
        assert_eq!(tx.send(lcore, &mut batch), 0);
    });
    let stats = port.stats().expect("it counts");
    assert_eq!((stats.rx_packets, stats.tx_packets, stats.tx_errors), (31, 32, 0));
    assert_eq!(pool.in_use(), 0);
    port.close().expect("no queue is left");
}

#[test]
fn a_device_says_what_it_spreads_packets_by() {
    let pool = pool("spread");
    // It claims to hash whatever there is.
    let (port, queues) = start("net_null1", pool, 2);
    let all = dpdk::Hashed { addresses: true, tcp_ports: true, udp_ports: true };
    assert_eq!(dpdk::Hashed::of(port.info().expect("it tells").rss), all);
    let terms = port.terms();
    assert_eq!(terms.hashed, Some(all));
    // It cannot be told which side to hash, begins with all entries at queue 0, and has no switch to be promiscuous.
    assert_eq!((terms.side, terms.relaid), (Side::Both, Some(true)));
    assert_eq!((terms.queues, terms.rx_descriptors, terms.mtu, terms.strips_vlan), (2, 256, 1500, false));
    let info = port.info().expect("it tells");
    assert_eq!(info.rss_names()[..3], ["ipv4", "ipv4-tcp", "ipv4-udp"]);
    assert_eq!((info.rx_offload_names(), info.tx_offload_names()), (Vec::new(), Vec::new()));
    assert_eq!(port.notice(), None);
    drop(queues);
    port.close().expect("no queue is left");
    // There is nothing to spread over.
    let (port, queues) = start("net_null2", pool, 1);
    assert_eq!(port.terms().hashed, None);
    drop(queues);
    port.close().expect("no queue is left");
}

#[test]
fn a_ring_gives_back_what_it_took_and_drops_what_it_cannot() {
    let pool = pool("ring");
    let (port, mut queues) = start("net_ring0", pool, 1);
    let info = port.info().expect("it tells");
    assert_eq!((info.driver.as_str(), info.rss), ("net_ring", 0));
    assert_eq!(port.mac().expect("it has one"), info.mac);
    assert_eq!(port.terms().hashed, None);
    let link = port.link().expect("it has one");
    assert!(link.up, "{link:?}");

    let (mut rx, mut tx) = queues.pop().expect("one pair");
    on_lcore(|lcore| {
        let mut batch = Batch::<8>::new();
        for byte in 0..8 {
            batch.push(packet(pool, lcore, &[byte; 60])).expect("there is room");
        }
        assert_eq!(tx.send(lcore, &mut batch), 8);
        assert_eq!(pool.in_use(), 8);
        let mut half = Batch::<5>::new();
        assert_eq!(rx.recv(lcore, &mut half), 5);
        assert_eq!(rx.recv(lcore, &mut batch), 3);
        assert_eq!(first_bytes(half.as_slice()), [0, 1, 2, 3, 4]);
        assert_eq!(first_bytes(batch.as_slice()), [5, 6, 7]);
        drop((half, batch));
        assert_eq!(pool.in_use(), 0);

        // The ring holds 1023 at most: the pool's last packets do not fit if one of another is in.
        let other = self::pool("ring-other");
        let mut burst = Batch::<32>::new();
        burst.push(packet(other, lcore, &[9])).expect("there is room");
        assert_eq!(tx.send(lcore, &mut burst), 1);
        let mut sent = 0;
        for _ in 0..1023 / 31 {
            assert!(pool.alloc_bulk(lcore, &mut burst, 31));
            sent += tx.send(lcore, &mut burst);
            assert!(burst.is_empty());
        }
        assert_eq!(sent, 1022);
        assert_eq!((pool.in_use(), other.in_use()), (1022, 1), "the one refused was freed");
        while rx.recv(lcore, &mut burst) > 0 {
            burst.clear();
        }
        assert_eq!((pool.in_use(), other.in_use()), (0, 0));
    });
}

#[test]
fn queues_move_to_their_workers_and_keep_the_port_running() {
    let pool = pool("workers");
    let (port, queues) = start("net_null1", pool, 2);
    assert_eq!(queues.len(), 2);
    let (say, heard) = mpsc::channel();
    let workers: Vec<_> = queues
        .into_iter()
        .map(|(mut rx, mut tx)| {
            let say = say.clone();
            thread::spawn(move || {
                let lcore = Lcore::register().expect("EAL takes the thread");
                let mut batch = Batch::<32>::new();
                let mut count = 0;
                for _ in 0..1000 {
                    rx.recv(&lcore, &mut batch);
                    count += tx.send(&lcore, &mut batch);
                }
                say.send((rx.queue(), count)).expect("somebody listens");
            })
        })
        .collect();
    let mut counts: Vec<_> = heard.iter().take(2).collect();
    counts.sort();
    assert_eq!(counts, [(0, 32_000), (1, 32_000)]);
    workers.into_iter().for_each(|worker| worker.join().expect("no panic"));
    assert_eq!(port.stats().expect("it counts").tx_packets, 64_000);
    assert_eq!(pool.in_use(), 0);
    let _turn = turn();
    let stopped = port.stop().expect("no queue is left");
    let (_port, again) = stopped.configure(settings(pool, 1)).expect("it starts again");
    assert_eq!(again.len(), 1);
}

#[test]
fn a_port_is_not_stopped_under_its_queues() {
    let pool = pool("lease");
    let (port, mut queues) = start("net_null2", pool, 1);
    let id = port.id();
    assert!(matches!(Port::by_name(eal(), "net_null2"), Err(Error::Claimed(name)) if name == "net_null2"));
    assert!(matches!(port.stop(), Err(Error::QueuesInUse(name)) if name == "net_null2"));
    assert!(eal().ports().contains(&id));
    let (mut rx, tx) = queues.pop().expect("one pair");
    drop(tx);
    on_lcore(move |lcore| assert_eq!(rx.recv(lcore, &mut Batch::<32>::new()), 32, "it runs on"));
    assert!(matches!(Port::by_name(eal(), "net_null2"), Err(Error::NoPort(_))), "the last queue closed it");
}

#[test]
fn what_a_device_cannot_have_is_refused_by_name() {
    let pool = pool("refused");
    let _turn = turn();
    eal().probe("net_null3").expect("the device exists");
    let refused = |change: &dyn Fn(&mut Settings)| {
        let port = Port::by_name(eal(), "net_null3").expect("nobody has it");
        let max = port.info().expect("it tells").max_rx_queues;
        let mut settings = settings(pool, 1);
        change(&mut settings);
        (port.configure(settings).map(drop).expect_err("refused").to_string(), max)
    };
    let (message, max) = refused(&|settings| settings.queues = 2000);
    assert_eq!(
        message,
        format!(
            "port \"net_null3\" has {max} receive and {max} transmit queues, but 2000 of each are wanted"
        )
    );
    assert_eq!(refused(&|settings| settings.queues = 0).0, "port \"net_null3\" is to have no queues");
    assert_eq!(
        refused(&|settings| settings.mtu = 9000).0,
        "port \"net_null3\": an MTU of 9000 needs 9150 bytes a packet, the pool has 2176"
    );
    assert_eq!(
        refused(&|settings| settings.mtu = 20).0,
        "port \"net_null3\" takes an MTU of 46 to 65535, not 20"
    );
    assert!(
        refused(&|settings| settings.mac = Some([1; 6]))
            .0
            .starts_with("port \"net_null3\": cannot change its MAC: ")
    );
}

#[test]
fn the_interrupt_thread_calls_a_function_and_answers() {
    let own = thread::current().id();
    let first = eal().on_interrupt_thread(|| thread::current().id()).expect("it answers");
    let second = eal().on_interrupt_thread(|| thread::current().id()).expect("it answers again");
    assert!(first == second && first != own);
}
