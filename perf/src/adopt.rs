//! `rvs-perf adopt`: how long a new process takes to take over a table of the one before it.
//!
//! The table is a file, as `[table] keep` has it, full of connections at half load. What is timed is what `rvs run` does
//! with it before its workers start: the file is mapped and each word looked at and counted; or, if the new table
//! is of another size, a new file is made and filled by hash. Page tables and zeros are included.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use dataplane::clock::Tick;
use dataplane::service::{Protocol, State};
use dataplane::table::{Census, Client, DestId, HashKey, Known, Table, Threads, Word};

use crate::cpu;
use crate::report::{Figure, Outputs, Promise, Report, progress};

/// What to measure.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// Connections in the table.
    #[arg(long, default_value_t = 10_000_000, value_parser = clap::value_parser!(u32).range(1000..))]
    connections: u32,
    /// Real servers that they are with.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    servers: u32,
    /// Threads; as many as there are cores if it is not said.
    #[arg(long)]
    threads: Option<usize>,
    /// Where the files are, on tmpfs or hugetlbfs.
    #[arg(long, default_value = "/dev/shm")]
    directory: PathBuf,
    /// Rounds.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    #[command(flatten)]
    outputs: Outputs,
}

const KEY: HashKey = HashKey { blind: 0x243F_6A88_85A3_08D3, factor: 0x1319_8A2E_0370_7345 };

/// Measures and reports.
pub fn run(arguments: &Arguments) -> Result<()> {
    let about = format!("a table of a process that has ended, in {}", arguments.directory.display());
    Report::new(about, measure(arguments)?).publish(&arguments.outputs)
}

/// Measures.
pub fn measure(arguments: &Arguments) -> Result<Vec<Figure>> {
    let Arguments { connections, servers, rounds, directory, .. } = arguments;
    let connections = *connections as usize;
    let threads = match arguments.threads {
        Some(threads) => threads,
        None => harness::cores().len(),
    };
    let cores = harness::cores();
    let begin = |number: usize| {
        if let Err(error) = cpu::pin(cores[number % cores.len()]) {
            eprintln!("rvs-perf: {error:#}");
        }
    };
    let threads = Threads { count: threads, begin: &begin };
    let known: Known = (1..=*servers).filter_map(DestId::new).map(|id| (id, Protocol::Tcp)).collect();
    let old = file(directory, connections)?;
    let placed = fill(&Table::in_file(&old, connections, KEY)?, *servers, connections as u32);

    let sizes = [("the same size", connections), ("twice the size", 2 * connections)];
    let mut figures = sizes.map(|(size, _)| {
        let labels = vec![
            ("adopt", format!("{connections} connections, {size}")),
            ("threads", threads.count.to_string()),
        ];
        let mut figure = Figure::new("ms", labels);
        figure.promise = (connections <= 10_000_000).then_some(Promise::AtMost(1000.0));
        figure
    });
    let bar = progress(rounds * figures.len());
    for _ in 0..*rounds {
        for ((size, connections_now), figure) in sizes.iter().zip(&mut figures) {
            bar.set_message(*size);
            let began = Instant::now();
            // The table that goes on is not given up within the time: nobody would.
            let (census, _table) = if *connections_now == connections {
                let table = Table::in_file(&old, connections, KEY)?;
                (table.inherit(&known, threads), table)
            } else {
                resized(&old, connections, *connections_now, directory, &known, threads)?
            };
            figure.samples.push(began.elapsed().as_secs_f64() * 1e3);
            ensure!(
                (census.kept, census.removed, census.no_room) == (placed, 0, 0),
                "{} of {placed} connections go on, {} found no room",
                census.kept,
                census.no_room
            );
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(figures.into())
}

fn resized(
    old: &File,
    from: usize,
    to: usize,
    directory: &Path,
    known: &Known,
    threads: Threads<'_>,
) -> Result<(Census, Table)> {
    let new = Table::in_file(&file(directory, to)?, to, KEY)?;
    let now = Tick(1);
    let census = new.fill_from(&Table::in_file(old, from, KEY)?, now, now, known, threads);
    Ok((census, new))
}

/// A file for a table, which goes when nobody has it any more.
fn file(directory: &Path, connections: usize) -> Result<File> {
    let path = directory.join(format!("rvs-perf-{}", std::process::id()));
    let file = File::options().read(true).write(true).create_new(true).open(&path);
    let file = file.with_context(|| format!("cannot make {}", path.display()))?;
    fs::remove_file(&path)?;
    // A multiple of any page that a file may have here.
    let length = Table::bytes(connections).next_multiple_of(2 << 20);
    file.set_len(length).with_context(|| format!("no room for {} MB", length >> 20))?;
    Ok(file)
}

/// Opens so many connections; how many found room at once, which is all but one in some ten million.
fn fill(table: &Table, servers: u32, connections: u32) -> u64 {
    let mut placed = 0;
    for n in 0..connections {
        let client = Client::new(0x0A00_0000 + n / 4, 1024 + (n % 4) as u16);
        let Some(id) = DestId::new(1 + n % servers) else { continue };
        let word = Word::new(client, id).with_state(State::Established).seen(Tick(1), false);
        let slot = table.vacancy(table.hash(client, Protocol::Tcp), client);
        placed += u64::from(slot.is_some_and(|slot| table.replace(slot, Word::EMPTY, word).is_ok()));
    }
    placed
}
