//! How EAL starts and ends: once in a process, so each test runs in one of its own.

use std::process::Command;
use std::thread;

use dpdk::{Batch, Eal, Error, Lcore, Mempool, Port, Settings};

/// Runs `body` in a process of its own: this program again, with nothing but the test of this name.
fn in_own_process(test: &str, body: fn()) {
    const CHILD: &str = "RVS_TEST_CHILD";
    if std::env::var_os(CHILD).is_some() {
        return body();
    }
    let program = std::env::current_exe().expect("the test runs");
    let mut command = Command::new(program);
    let output =
        command.args(["--exact", "--nocapture", test]).env(CHILD, "1").output().expect("it runs again");
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("1 passed"), "no test is called {test}: {said}");
}

fn args(more: &[&str]) -> Vec<String> {
    let args =
        "--no-huge --no-shconf --no-pci --no-telemetry -m 64 --log-level=*:error --file-prefix=rvs-test";
    args.split_whitespace().chain(more.iter().copied()).map(str::to_owned).collect()
}

fn cpus_allowed() -> String {
    let status = std::fs::read_to_string("/proc/thread-self/status").expect("Linux");
    status.lines().find(|line| line.starts_with("Cpus_allowed:")).expect("a line of it").to_owned()
}

#[test]
fn what_eal_cannot_read_is_an_error_with_its_number() {
    in_own_process("what_eal_cannot_read_is_an_error_with_its_number", || {
        let error = Eal::init(&args(&["--frobnicate"])).expect_err("there is no such option");
        let message = error.to_string();
        assert!(message.starts_with("EAL did not start: Invalid argument (rte_errno 22); "), "{message}");
        assert!(message.ends_with(" --frobnicate"), "{message}");
        // EAL does not try twice, whatever became of the first time.
        assert!(matches!(Eal::init(&args(&[])), Err(Error::AlreadyInitialised)));
        assert!(matches!(Lcore::register(), Err(Error::NotRunning)));
    });
}

#[test]
fn words_that_are_left_over_are_an_error() {
    in_own_process("words_that_are_left_over_are_an_error", || {
        let error = Eal::init(&args(&["net_null0", "-l", "0", "--", "-x"])).expect_err("nobody takes them");
        assert_eq!(error.to_string(), "EAL does not know what to do with: net_null0 -x");
    });
}

#[test]
fn the_main_thread_stays_where_it_was() {
    in_own_process("the_main_thread_stays_where_it_was", || {
        let before = cpus_allowed();
        // One lcore on the first processor: EAL pins its caller to it.
        let eal = Eal::init(&args(&["-l", "0"])).expect("EAL starts");
        assert_eq!(cpus_allowed(), before);
        assert_eq!(thread::spawn(cpus_allowed).join().expect("no panic"), before);
        assert_eq!(eal.main_lcore().expect("we started it").id(), 0);
    });
}

#[test]
fn devices_given_as_arguments_are_there() {
    in_own_process("devices_given_as_arguments_are_there", || {
        let eal = Eal::init(&args(&["-l", "0", "--vdev=net_null7,size=100"])).expect("EAL starts");
        let ids = eal.ports();
        assert_eq!(ids.len(), 1);
        let port = Port::by_id(&eal, ids[0]).expect("nobody has it");
        assert_eq!((port.id(), port.name()), (ids[0], "net_null7"));
        assert!(matches!(Port::by_id(&eal, 31), Err(Error::NoPort(id)) if id == "31"));
        drop(port);
        Port::by_name(&eal, "net_null7").expect("it was given back");
    });
}

/// Who holds something of EAL keeps it running: the error says what.
fn refused(eal: Eal) -> String {
    eal.cleanup().expect_err("something is in use").to_string()
}

#[test]
fn nothing_left_ends_cleanly() {
    in_own_process("nothing_left_ends_cleanly", || {
        let eal = Eal::init(&args(&["-l", "0"])).expect("EAL starts");
        let pool = Mempool::new(&eal, "pool", 255, 32, dpdk::data_room(1500)).expect("a small pool");
        eal.probe("net_null0").expect("it exists");
        let settings =
            Settings { queues: 1, descriptors: 64, mtu: 1500, rss: None, pool, mac: None, promiscuous: true };
        let port = Port::by_name(&eal, "net_null0").expect("it is a port");
        let (port, mut queues) = port.configure(settings).expect("it starts");
        let lcore = eal.main_lcore().expect("we started it");
        let (rx, tx) = &mut queues[0];
        let mut batch = Batch::<32>::new();
        assert_eq!(rx.recv(&lcore, &mut batch), 32);
        assert_eq!(tx.send(&lcore, &mut batch), 32);
        drop((batch, queues, lcore));
        port.close().expect("no queue is left");
        eal.cleanup().expect("nothing is in use");

        assert_eq!((pool.available(), pool.in_use()), (255, 0));
        assert!(matches!(Lcore::register(), Err(Error::NotRunning)));
        assert!(matches!(Eal::init(&args(&[])), Err(Error::AlreadyInitialised)));
    });
}

#[test]
fn a_device_that_was_let_go_of_can_be_had_again() {
    in_own_process("a_device_that_was_let_go_of_can_be_had_again", || {
        let eal = Eal::init(&args(&["-l", "0", "--vdev=net_null0"])).expect("EAL starts");
        let pool = Mempool::new(&eal, "pool", 1023, 32, dpdk::data_room(1500)).expect("a small pool");
        let prober = eal.prober();
        let settings = || Settings {
            queues: 2,
            descriptors: 64,
            mtu: 1500,
            rss: None,
            pool,
            mac: None,
            promiscuous: true,
        };
        let port = Port::by_name(&eal, "net_null0").expect("it is a port");
        let (mut port, mut queues) = port.configure(settings()).expect("it starts");
        for _ in 0..3 {
            drop(queues);
            port.release().expect("no queue is left");
            assert_eq!(eal.ports(), []);
            assert!(matches!(Port::by_name(&eal, "net_null0"), Err(Error::NoPort(_))));
            // One that cannot be started is let go of, and no obstacle.
            let none = Settings { queues: 0, ..settings() };
            assert!(matches!(prober.open("net_null0", "net_null0", none), Err(Error::NoQueues(_))));
            assert_eq!(eal.ports(), []);
            // Drivers take their time, so it may be any thread.
            let (once, again) = (settings(), settings());
            let opened = thread::spawn(move || prober.open("net_null0", "net_null0", once)).join();
            (port, queues) = opened.expect("no panic").expect("it is there again");
            assert!(prober.open("net_null0", "net_null0", again).is_err(), "it is taken");
        }
        drop(queues);
        port.release().expect("no queue is left");
        eal.cleanup().expect("nothing is in use");
        assert!(matches!(prober.open("net_null0", "net_null0", settings()), Err(Error::NotRunning)));
    });
}

#[test]
fn a_pair_that_leads_nowhere_takes_packets_and_has_none() {
    in_own_process("a_pair_that_leads_nowhere_takes_packets_and_has_none", || {
        let eal = Eal::init(&args(&["-l", "0"])).expect("EAL starts");
        let pool = Mempool::new(&eal, "pool", 255, 32, dpdk::data_room(1500)).expect("a small pool");
        let lcore = eal.main_lcore().expect("we started it");
        let (mut rx, mut tx) = dpdk::unconnected();
        let mut batch = Batch::<32>::new();
        assert_eq!(rx.recv(&lcore, &mut batch), 0);
        batch.push(pool.alloc(&lcore).expect("the pool is full")).expect("it is empty");
        assert_eq!((tx.send(&lcore, &mut batch), batch.len(), pool.in_use()), (0, 0, 0));
    });
}

#[test]
fn a_packet_in_use_keeps_eal_running() {
    in_own_process("a_packet_in_use_keeps_eal_running", || {
        let eal = Eal::init(&args(&["-l", "0"])).expect("EAL starts");
        let pool = Mempool::new(&eal, "pool", 255, 32, dpdk::data_room(1500)).expect("a small pool");
        let lcore = eal.main_lcore().expect("we started it");
        let mbuf = pool.alloc(&lcore).expect("the pool is full");
        drop(lcore);
        assert_eq!(refused(eal), r#"EAL cannot be cleaned up: 1 packets of pool "pool" are in use"#);
        assert_eq!(mbuf.data(), []);
    });
}

#[test]
fn a_port_or_a_thread_in_use_keeps_eal_running() {
    in_own_process("a_port_or_a_thread_in_use_keeps_eal_running", || {
        let eal = Eal::init(&args(&["-l", "0", "--vdev=net_null0"])).expect("EAL starts");
        let port = Port::by_name(&eal, "net_null0").expect("it is a port");
        assert_eq!(refused(eal), "EAL cannot be cleaned up: 1 ports are in use");
        drop(port);
        thread::spawn(|| drop(Lcore::register().expect("EAL runs on"))).join().expect("no panic");
    });
}
