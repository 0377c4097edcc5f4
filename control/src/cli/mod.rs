//! The command line of `rvs`: what can be typed, what it means, how it ends. A file a command.

mod capture;
mod change;
mod check;
mod completions;
mod doctor;
mod events;
mod explain;
mod fmt;
mod leave;
mod list;
mod man;
mod ports;
mod prove;
mod reload;
mod replay;
mod run;
mod schema;
mod setup;
mod sync;
mod top;
mod upgrade;

use std::ffi::OsString;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};

use crate::admin::api;
use crate::admin::client::Client;
use crate::admin::remote::{self, Remote};
use crate::as_user;
use crate::config::{ConfigErrors, DEFAULT_SOCKET};
use crate::cpu;

/// How every command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    /// Done.
    Ok = 0,
    /// The command was understood and could not be carried out.
    Failed = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  the operation failed
  2  the command line or the configuration is wrong";

const EXAMPLES: &str = "\
Examples:
  rvs check -c /etc/rvs/rvs.toml      does the file make sense, and on this machine?
  rvs doctor -c /etc/rvs/rvs.toml     is the machine as it should be for it?
  rvs ports -c /etc/rvs/rvs.toml      which NICs are there, and can DPDK have them?
  rvs setup -c /etc/rvs/rvs.toml      give it what the file names: NICs and hugepages; --undo takes them back
  rvs run -c /etc/rvs/rvs.toml        balance, in the foreground, logging to stderr
  rvs reload                          apply the edited file (as SIGHUP does)
  rvs reload --dry-run                what would that change?
  rvs drain tcp/192.0.2.10:80 10.0.0.11:8080 --deadline 10m
  rvs weight tcp/192.0.2.10:80 10.0.0.11:8080 3
  rvs diff                            what is running and the file does not say
  rvs list                            services and real servers, as ipvsadm -Ln shows them
  rvs list --stats                    connections, packets and bytes since the start
  rvs list -c | head                  connections
  rvs schema                          what an editor needs to complete and check the file
  rvs fmt /etc/rvs/rvs.toml           tidy the file up; --check only asks whether it is tidy
  rvs list --counters                 where every packet went, by worker and reason
  rvs events -f                       what happens: servers up and down, reloads, overload
  rvs list --url https://lb1:9443 --ca ca.pem --token-file lb1.token
                                      the same, and every command that asks, from another machine
  rvs upgrade                         become the program that is installed now; the process stays
  rvs sync                            peer routers: do they know our connections?
  rvs stop --graceful                 end it when its traffic has gone to other routers
  rvs top                             what passes, live: services, servers, workers, drops
  rvs explain --src 198.51.100.7:40112 --dst 192.0.2.10:80
                                      which real server would this client get, and why?
  rvs replay -c rvs.toml --in wan=x.pcap --expect lan=y.pcap
                                      what would this configuration do with these packets, and is it what it should?
  rvs capture host 198.51.100.7 -w x.pcapng
                                      what comes from and goes to this client, and what was dropped of it?
";

/// RVS balances TCP and UDP connections over real servers, in user space (DPDK).
#[derive(Debug, Parser)]
#[command(name = "rvs", version, after_help = format!("{EXAMPLES}\n{EXIT_CODES}"), max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run in the foreground until SIGTERM or SIGINT; SIGHUP reloads
    #[command(after_help = EXIT_CODES)]
    Run(run::Run),
    /// Read and check a configuration without acting on it
    #[command(after_help = EXIT_CODES)]
    Check(check::Check),
    /// Say what on this machine keeps rvs from starting or from being fast, and what to do about it
    #[command(after_help = doctor::EXIT_CODES)]
    Doctor(doctor::Doctor),
    /// List the NICs of this machine: driver, NUMA node, link, IOMMU group, whether DPDK can have them, and why not
    #[command(after_help = EXIT_CODES)]
    Ports(ports::Ports),
    /// Prepare this machine for a configuration: take its NICs from Linux for DPDK, and reserve hugepages
    ///
    /// Each step is printed as one would type it. Only what is missing is done; when something speaks against it, nothing
    /// is. A boot undoes all of it.
    #[command(after_help = setup::EXIT_CODES)]
    Setup(setup::Setup),
    /// Have the running rvs read its configuration again
    ///
    /// The new configuration is checked first. If it is refused, the old one stays in force.
    #[command(after_help = EXIT_CODES)]
    Reload(reload::Reload),
    /// Have the running rvs become another program, e.g. a newer version of itself
    ///
    /// The new program is tried first, with the configuration file as it is now; if it refuses, nothing changes. The
    /// process, the twins and all that is on them stay. Also what SIGUSR2 does, without options.
    #[command(after_help = EXIT_CODES)]
    Upgrade(upgrade::Upgrade),
    /// Say whether this program could take over from a running rvs
    #[command(hide = true, after_help = EXIT_CODES)]
    Prove(prove::Prove),
    /// Give a server no new connections; it keeps those that it has
    #[command(after_help = EXIT_CODES)]
    Drain(change::Drain),
    /// Give a drained or disabled server connections again
    #[command(alias = "enable", after_help = EXIT_CODES)]
    Undrain(change::Undrain),
    /// Take a server out at once, with its connections
    #[command(after_help = EXIT_CODES)]
    Disable(change::Disable),
    /// Change the weight of a server
    #[command(after_help = EXIT_CODES)]
    Weight(change::Weight),
    /// Add a service or a server
    #[command(subcommand, after_help = EXIT_CODES)]
    Add(change::Add),
    /// Remove a service or a server
    #[command(subcommand, after_help = EXIT_CODES)]
    Remove(change::Remove),
    /// Forget connections
    #[command(after_help = EXIT_CODES)]
    Flush(change::Flush),
    /// Show what is running and the file does not say
    #[command(after_help = EXIT_CODES)]
    Diff(change::Diff),
    /// Write what is running into the file
    #[command(after_help = EXIT_CODES)]
    Save(change::Save),
    /// Take this router, or one virtual address, out of service; what comes all the same is forwarded
    ///
    /// The addresses leave the twins, so that a routing daemon withdraws them; where keepalived places them, `rvs sync
    /// --ready` says no, so that it gives them away.
    #[command(after_help = EXIT_CODES)]
    Withdraw(leave::Withdraw),
    /// Put this router, or one virtual address, back into service
    #[command(after_help = EXIT_CODES)]
    Announce(leave::Announce),
    /// End the running rvs, at once or when its traffic has left, and wait until it has ended
    #[command(after_help = EXIT_CODES)]
    Stop(leave::Stop),
    /// Show services, connections and counters of the running rvs
    #[command(after_help = EXIT_CODES)]
    List(list::List),
    /// Print a JSON Schema of the configuration, for editors
    ///
    /// Put it beside the configuration and name it in the first line of that, `#:schema rvs.schema.json`: editors that
    /// know taplo (Even Better TOML in VS Code, and others) then complete, explain and check what is typed.
    #[command(after_help = EXIT_CODES)]
    Schema(schema::Schema),
    /// Format configurations in place, as they are best read; comments and order stay
    #[command(after_help = fmt::EXIT_CODES)]
    Fmt(fmt::Fmt),
    /// Write the manual pages
    #[command(after_help = EXIT_CODES)]
    Man(man::Man),
    /// Print a script that completes commands and options
    ///
    /// For bash, put it into /usr/share/bash-completion/completions/rvs; for zsh, as _rvs into a directory of $fpath;
    /// for fish, into ~/.config/fish/completions/rvs.fish.
    #[command(after_help = EXIT_CODES)]
    Completions(completions::Completions),
    /// Show how things stand with peer routers and with directors of Linux, which are told of connections
    #[command(after_help = EXIT_CODES)]
    Sync(sync::Sync),
    /// Show what has happened to the running rvs, and what happens
    #[command(after_help = EXIT_CODES)]
    Events(events::Events),
    /// Watch services, real servers, workers and drops live
    #[command(after_help = EXIT_CODES)]
    Top(top::Top),
    /// Say what would become of a packet now, and why; nothing is sent and nothing changes
    #[command(after_help = EXIT_CODES)]
    Explain(explain::Explain),
    /// Say what becomes of captured packets under a configuration, and compare it with what should
    ///
    /// The packet path of rvs run, fed from files: no privileges, NIC, hugepages or running rvs. Time is the packets'; the same
    /// files give the same result.
    #[command(after_help = replay::AFTER_HELP)]
    Replay(replay::Replay),
    /// Write packets to a file as they come and as they go, with what became of them, for Wireshark or tcpdump
    ///
    /// A packet that is forwarded is there twice, before and after it was rewritten. Comments tell the verdict. Of
    /// each 256 bytes are written at the most. One capture at a time.
    #[command(after_help = EXIT_CODES)]
    Capture(capture::Capture),
}

/// Which running rvs is asked. What is typed counts more than the environment.
#[derive(Debug, Args)]
struct SocketArg {
    /// The admin socket of the running rvs; without this and --url that of RVS_URL, or else /run/rvs/rvs.sock
    #[arg(short, long, value_name = "SOCKET", conflicts_with_all = ["url", "ca", "token_file"])]
    socket: Option<PathBuf>,
    /// An rvs on another machine, by its admin.tcp.listen: https://HOST:PORT
    #[arg(long, value_name = "URL", value_parser = remote::check_url, help_heading = REMOTE)]
    url: Option<String>,
    /// The certificate of the CA that has signed that of --url, in PEM; without this RVS_CA, or else all that this machine trusts
    #[arg(long, value_name = "FILE", help_heading = REMOTE)]
    ca: Option<PathBuf>,
    /// A file with a token that --url knows; without this RVS_TOKEN_FILE
    #[arg(long, value_name = "FILE", help_heading = REMOTE)]
    token_file: Option<PathBuf>,
}

const REMOTE: &str = "On another machine";

impl SocketArg {
    fn client(&self) -> Client {
        self.client_with(|name| std::env::var_os(name).filter(|value| !value.is_empty()))
    }

    fn client_with(&self, environment: impl Fn(&str) -> Option<OsString>) -> Client {
        let of =
            |typed: &Option<PathBuf>, name| typed.clone().or_else(|| environment(name).map(PathBuf::from));
        let url =
            || self.url.clone().or_else(|| Some(environment("RVS_URL")?.to_string_lossy().into_owned()));
        match (&self.socket, url()) {
            (None, Some(url)) => Client::remote(Remote {
                url,
                ca: of(&self.ca, "RVS_CA"),
                token_file: of(&self.token_file, "RVS_TOKEN_FILE"),
            }),
            (Some(socket), _) => Client::new(socket),
            (None, None) => Client::new(Path::new(DEFAULT_SOCKET)),
        }
    }
}

/// Does what the command line says.
pub fn main() -> ExitCode {
    // The running rvs has started it, on this CPU.
    if let Some(failed) = as_user::main(std::env::args_os().skip(1)) {
        return failed;
    }
    let lacks = cpu::lacks();
    if !lacks.is_empty() {
        let lacks = lacks.join(", ");
        complain(format_args!(
            "rvs: this CPU lacks {lacks}; rvs needs x86-64-v3 (Intel Haswell, AMD Zen or newer)"
        ));
        return ExitCode::from(Exit::Failed as u8);
    }
    let exit = match Cli::try_parse() {
        Ok(cli) => finish(execute(cli.command)),
        Err(error) => {
            // Nobody may be reading; the exit code says it all the same.
            let _ = error.print();
            if error.use_stderr() { Exit::Usage } else { Exit::Ok }
        }
    };
    ExitCode::from(exit as u8)
}

fn execute(command: Command) -> anyhow::Result<Exit> {
    match command {
        Command::Run(command) => command.execute(),
        Command::Check(command) => command.execute(),
        Command::Doctor(command) => command.execute(),
        Command::Ports(command) => command.execute(),
        Command::Setup(command) => command.execute(),
        Command::Reload(command) => command.execute(),
        Command::Upgrade(command) => command.execute(),
        Command::Prove(command) => command.execute(),
        Command::List(command) => command.execute(),
        Command::Schema(command) => command.execute(),
        Command::Fmt(command) => command.execute(),
        Command::Man(command) => command.execute(),
        Command::Completions(command) => command.execute(),
        Command::Drain(command) => command.execute(),
        Command::Undrain(command) => command.execute(),
        Command::Disable(command) => command.execute(),
        Command::Weight(command) => command.execute(),
        Command::Add(command) => command.execute(),
        Command::Remove(command) => command.execute(),
        Command::Flush(command) => command.execute(),
        Command::Diff(command) => command.execute(),
        Command::Save(command) => command.execute(),
        Command::Withdraw(command) => command.execute(),
        Command::Announce(command) => command.execute(),
        Command::Stop(command) => command.execute(),
        Command::Sync(command) => command.execute(),
        Command::Events(command) => command.execute(),
        Command::Top(command) => command.execute(),
        Command::Explain(command) => command.execute(),
        Command::Replay(command) => command.execute(),
        Command::Capture(command) => command.execute(),
    }
}

/// Says what went wrong, in the one place where a command ends.
fn finish(result: anyhow::Result<Exit>) -> Exit {
    let error = match result {
        Ok(exit) => return exit,
        Err(error) => error,
    };
    if let Some(errors) = error.downcast_ref::<ConfigErrors>() {
        complain(format_args!("{errors}"));
        return Exit::Usage;
    }
    // `rvs list -c | head`: whoever read us has seen enough.
    // Errors of the admin socket carry a context, so that this is one of our own output.
    if error.chain().len() == 1
        && error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
    {
        return Exit::Ok;
    }
    complain(format_args!("rvs: {error:#}"));
    Exit::Failed
}

/// To stderr, unless nobody reads it.
fn complain(message: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{message}");
}

fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start the runtime")?.block_on(future)
}

fn pretty(out: &mut impl Write, value: &impl serde::Serialize) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    writeln!(out)
}

/// A diff, a line a change.
fn changes(out: &mut impl Write, changes: &[api::Change]) -> io::Result<()> {
    changes.iter().try_for_each(|change| writeln!(out, "{change}"))
}

fn counted(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_has_examples_and_exit_codes() {
        let help = Cli::command().render_long_help().to_string();
        assert!(
            help.contains("rvs list -c | head") && help.contains("2  the command line or the configuration")
        );
    }

    #[test]
    fn every_example_can_be_typed() {
        for line in EXAMPLES.lines().filter_map(|line| line.trim().strip_prefix("rvs ")) {
            let words = line.split("  ").next().unwrap_or_default().split(" | ").next().unwrap_or_default();
            let words = ["rvs"].into_iter().chain(words.split_whitespace());
            Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn what_cannot_be_combined() {
        for line in
            ["list -c --stats", "list --stats --rate", "list --counters --rate", "run", "check", "list x"]
        {
            let words = ["rvs"].into_iter().chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_err(), "{line}");
        }
        for line in ["list -nc", "list -n --stats --exact", "list --json -c", "list -s /tmp/s --rate -n"] {
            let words = ["rvs"].into_iter().chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_ok(), "{line}");
        }
    }

    #[test]
    fn which_rvs_is_asked() {
        #[derive(Debug, Parser)]
        struct Only {
            #[command(flatten)]
            socket: SocketArg,
        }
        let typed = |line: &str| Only::try_parse_from(["rvs"].into_iter().chain(line.split_whitespace()));
        let shown = |line: &str, url: Option<&str>| {
            let environment = |name: &str| url.filter(|_| name == "RVS_URL").map(OsString::from);
            typed(line).map(|only| only.socket.client_with(environment).shown())
        };
        for (line, url, expected) in [
            ("", None, DEFAULT_SOCKET),
            ("-s /tmp/s", None, "/tmp/s"),
            ("--url https://a:1", None, "https://a:1"),
            ("", Some("https://b:2"), "https://b:2"),
            ("--url https://a:1", Some("https://b:2"), "https://a:1"),
            ("-s /tmp/s", Some("https://b:2"), "/tmp/s"),
            ("--ca x --token-file y", Some("https://b:2"), "https://b:2"),
        ] {
            assert_eq!(shown(line, url).unwrap(), expected, "{line} {url:?}");
        }
        for line in ["-s /tmp/s --url https://a:1", "-s /tmp/s --ca x", "--url http://a:1", "--url a"] {
            assert!(typed(line).is_err(), "{line}");
        }
    }

    #[test]
    fn how_a_command_ends() {
        let refused = config::load(std::path::Path::new("/")).unwrap_err();
        assert_eq!(finish(Err(refused.into())), Exit::Usage);
        assert_eq!(finish(Err(io::Error::from(ErrorKind::BrokenPipe).into())), Exit::Ok);
        assert_eq!(finish(Err(anyhow::anyhow!("no luck"))), Exit::Failed);
        assert_eq!(finish(Ok(Exit::Ok)), Exit::Ok);
    }
}
