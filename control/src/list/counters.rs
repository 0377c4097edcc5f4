//! What the workers count: a column a worker, and their sum.
//!
//! Every packet that came in stands under exactly one line of forwarded, punted, dropped and waiting; so the reader
//! sees at once where packets went, and `received` is there to check the sum.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use super::title;
use crate::admin::api::{Counters, Worker};

/// Columns of a line's name.
const NAME: usize = 26;

/// Columns of a number: 2^64 has 20 digits, but 10^14 packets take a core some months.
const NUMBER: usize = 16;

/// Writes the counters.
pub fn counters(out: &mut impl Write, counters: &Counters) -> io::Result<()> {
    let workers = &counters.workers;
    let (slots, used) = (counters.table.slots, counters.table.connections);
    writeln!(out, "{}", title(&counters.table))?;
    writeln!(out, "Generation {}, {used} of {slots} table entries in use", counters.generation)?;
    if counters.mappings > 0 {
        writeln!(out, "{} mappings of source NAT", counters.mappings)?;
    }
    writeln!(out)?;

    let names = workers.iter().map(|worker| format!("{} (core {})", worker.index, worker.core));
    line(out, "Worker", names.chain(["all".to_owned()]))?;
    let sum = |out: &mut _, name: &str, get: &dyn Fn(&Worker) -> u64| numbers(out, name, workers, get);
    sum(out, "polls", &|worker| worker.polls)?;
    sum(out, "  empty", &|worker| worker.empty_polls)?;
    sum(out, "  bursts", &|worker| worker.bursts)?;
    sum(out, "received", &|worker| worker.received)?;
    sum(out, "  forwarded", &|worker| worker.forwarded)?;
    sum(out, "    routed", &|worker| worker.routed)?;
    reasons(out, "  punted", workers, |worker| &worker.punted)?;
    reasons(out, "  dropped", workers, |worker| &worker.dropped)?;
    sum(out, "  waiting fragments", &|worker| worker.waiting)?;
    sum(out, "fragments that had to wait", &|worker| worker.held)?;
    // Nobody else has FTP.
    if workers.iter().any(|worker| worker.ftp_unchanged > 0) {
        sum(out, "FTP replies left unchanged", &|worker| worker.ftp_unchanged)?;
    }
    sum(out, "injected by Linux", &|worker| worker.injected)?;
    sum(out, "  not taken by the port", &|worker| worker.inject_dropped)?;
    sum(out, "connections", &|worker| worker.connections)?;
    sum(out, "packets in", &|worker| worker.packets_in)?;
    sum(out, "packets out", &|worker| worker.packets_out)?;
    sum(out, "bytes in", &|worker| worker.bytes_in)?;
    sum(out, "bytes out", &|worker| worker.bytes_out)?;
    sum(out, "bytes routed", &|worker| worker.routed_bytes)
}

/// A sum, and below it what it consists of; reasons that never occurred are left out.
fn reasons(
    out: &mut impl Write,
    name: &str,
    workers: &[Worker],
    get: impl Fn(&Worker) -> &BTreeMap<String, u64>,
) -> io::Result<()> {
    numbers(out, name, workers, &|worker| get(worker).values().sum())?;
    let occurred = |(reason, count): (&'_ String, &u64)| (*count > 0).then(|| reason.clone());
    let reasons: BTreeSet<String> = workers.iter().flat_map(&get).filter_map(occurred).collect();
    for reason in reasons {
        let count = |worker: &Worker| get(worker).get(&reason).copied().unwrap_or(0);
        numbers(out, &format!("    {reason}"), workers, &count)?;
    }
    Ok(())
}

fn numbers(
    out: &mut impl Write,
    name: &str,
    workers: &[Worker],
    get: &dyn Fn(&Worker) -> u64,
) -> io::Result<()> {
    let total = workers.iter().map(get).fold(0, u64::wrapping_add);
    line(out, name, workers.iter().map(get).chain([total]).map(|number| number.to_string()))
}

fn line(out: &mut impl Write, name: &str, columns: impl Iterator<Item = String>) -> io::Result<()> {
    write!(out, "{name:<NAME$}")?;
    for column in columns {
        write!(out, " {column:>NUMBER$}")?;
    }
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::api::Table;

    #[test]
    fn two_workers() {
        let reasons = |list: &[(&str, u64)]| list.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect();
        let one = Worker {
            index: 0,
            core: 1,
            polls: 1000,
            empty_polls: 990,
            bursts: 10,
            received: 61,
            forwarded: 50,
            punted: reasons(&[("arp", 4), ("no_service", 1)]),
            dropped: reasons(&[("bad_checksum", 5), ("ttl", 0)]),
            waiting: 1,
            held: 3,
            ftp_unchanged: 2,
            routed: 4,
            routed_bytes: 400,
            injected: 7,
            ..Worker::default()
        };
        let two =
            Worker { index: 1, core: 3, received: 2, punted: reasons(&[("arp", 2)]), ..Worker::default() };
        let given = Counters {
            generation: 3,
            table: Table { slots: 4096, connections: 12 },
            mappings: 9,
            workers: vec![one, two],
            ports: Vec::new(),
        };
        let mut out = Vec::new();
        counters(&mut out, &given).unwrap();
        let expected = "
Generation 3, 12 of 4096 table entries in use
9 mappings of source NAT

Worker                           0 (core 1)       1 (core 3)              all
polls                                  1000                0             1000
  empty                                 990                0              990
  bursts                                 10                0               10
received                                 61                2               63
  forwarded                              50                0               50
    routed                                4                0                4
  punted                                  5                2                7
    arp                                   4                2                6
    no_service                            1                0                1
  dropped                                 5                0                5
    bad_checksum                          5                0                5
  waiting fragments                       1                0                1
fragments that had to wait                3                0                3
FTP replies left unchanged                2                0                2
injected by Linux                         7                0                7
  not taken by the port                   0                0                0
connections                               0                0                0
packets in                                0                0                0
packets out                               0                0                0
bytes in                                  0                0                0
bytes out                                 0                0                0
bytes routed                            400                0              400
";
        assert!(String::from_utf8(out).unwrap().ends_with(expected));
    }
}
