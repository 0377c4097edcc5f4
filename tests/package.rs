//! The Debian package: installed, upgraded, removed and purged by dpkg, on a copy of this machine that is thrown away.

use std::{collections::BTreeSet, fs};

use anyhow::{Result, ensure};
use harness::{
    client,
    cluster::{Layout, vip},
    config::{Config, Service},
    image::{self, Image},
    netns::Namespace,
    process::{Command, Output},
    servers::Server,
    state::State,
    wait::{self, PATIENCE},
    with_cluster,
};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A machine without a cluster around it.
fn machine() -> Result<Option<(State, Image)>> {
    if !harness::privileged()? {
        return Ok(None);
    }
    let state = State::unique()?;
    let namespace = Namespace::create(&state, "machine")?;
    let image = Image::new(&namespace)?;
    Ok(Some((state, image)))
}

/// What is there of the package, or of what it has made; but not the pages that `man` keeps, once it has shown them.
fn traces(image: &Image) -> Result<BTreeSet<String>> {
    let is_trace = |path: &String| path.contains("rvs") && !path.starts_with("/var/cache/man/");
    Ok(image.changed()?.into_iter().filter(is_trace).collect())
}

fn dpkg(image: &Image, words: &str) -> Result<Output> {
    image.command("dpkg").words(words).output()
}

#[test]
fn it_comes_and_goes() -> Result<()> {
    let Some((state, image)) = machine()? else { return Ok(()) };
    let package = image::package(&state, VERSION)?;
    ensure!(package.ends_with(format!("rvs_{VERSION}_amd64.deb")), "{}", package.display());
    let said = image.install(&package)?.success()?;
    ensure!(said.contains("Setting up rvs"), "{said}");

    // All is there, with the group.
    ensure!(dpkg(&image, "--verify rvs")?.success()?.is_empty());
    let listed = dpkg(&image, "--listfiles rvs")?.success()?;
    for path in [
        "/usr/sbin/rvs",
        "/usr/share/rvs/rvs.toml",
        "/usr/lib/sysusers.d/rvs.conf",
        "/usr/share/bash-completion/completions/rvs",
        "/usr/share/zsh/vendor-completions/_rvs",
        "/usr/share/fish/vendor_completions.d/rvs.fish",
        "/usr/share/doc/rvs/copyright",
        "/usr/share/doc/rvs/examples/nat.toml",
        "/usr/share/doc/rvs/examples/pair/rvs-1.toml",
    ] {
        ensure!(listed.lines().any(|line| line == path), "{path} is missing:\n{listed}");
    }
    for file in
        ["systemd/system/rvs.service", "systemd/system/rvs-setup.service", "udev/rules.d/60-rvs.rules"]
    {
        ensure!(listed.lines().any(|line| line.ends_with(&format!("lib/{file}"))), "{listed}");
    }
    ensure!(image.command("getent").words("group rvs").run()?.starts_with("rvs:"));

    // They can be read, and used.
    ensure!(image.command("rvs").arg("--version").run()?.starts_with(&format!("rvs {VERSION}")));
    for (page, expected) in [("rvs", "EXAMPLES"), ("rvs-upgrade", "EXIT STATUS"), ("rvs-list", "SYNOPSIS")] {
        let page = image.command("man").arg(page).env("LC_ALL", "C.UTF-8").run()?;
        ensure!(page.contains(expected), "{page}");
    }
    let completion = ". /usr/share/bash-completion/completions/rvs && complete -p rvs";
    ensure!(image.command("bash").args(["-c", completion]).run()?.contains("rvs"));

    // The example is right, and does nothing as it is: neither by itself, nor when somebody starts it all the same.
    let checked = image.command("rvs").words("check --no-machine -c /etc/rvs/rvs.toml").run()?;
    ensure!(checked.contains(": ok ("), "{checked}");
    let started = image.command("rvs").words("run -c /etc/rvs/rvs.toml").output()?;
    ensure!(started.code() == Some(2) && started.stderr.contains("ffff:ff:1f.6"), "{started:?}");
    let asked = image.systemctl();
    ensure!(!asked.contains("start") && !asked.contains("enable "), "{asked}");
    let enabled = traces(&image)?.into_iter().find(|path| path.contains(".wants/"));
    ensure!(enabled.is_none(), "{enabled:?}");

    // A configuration outlives its removal, as Debian has it, and is there for the next installation. No other version of the
    // example will ask what is to become of it.
    let file = image.file("/etc/rvs/rvs.toml");
    let example = fs::read_to_string(image.file("/usr/share/rvs/rvs.toml"))?;
    ensure!(fs::read_to_string(&file)? == example);
    let edited = example + "# edited\n";
    fs::write(&file, &edited)?;
    dpkg(&image, "--remove rvs")?.success()?;
    ensure!(fs::read_to_string(&file)? == edited);
    ensure!(!image.file("/usr/sbin/rvs").exists());
    image.install(&package)?.success()?;
    ensure!(fs::read_to_string(&file)? == edited);

    // Nor is anything left of what operators and RVS put beside it.
    fs::write(image.file("/etc/rvs/sync.key"), "secret")?;
    fs::create_dir_all(image.file("/var/lib/rvs"))?;
    fs::write(image.file("/var/lib/rvs/something"), "")?;
    dpkg(&image, "--purge rvs")?.success()?;
    let left = traces(&image)?;
    ensure!(left.is_empty(), "{left:#?}");
    image.install(&package)?.success()?;
    drop(image);
    state.remove()
}

#[test]
fn lintian_finds_nothing() -> Result<()> {
    if !harness::privileged()? {
        return Ok(());
    }
    let state = State::unique()?;
    let package = image::package(&state, VERSION)?;
    let found = Command::new(&state, "lintian")
        .words("--allow-root --fail-on error,warning --tag-display-limit 0")
        .arg(package.with_extension("changes"))
        .output()?;
    ensure!(found.status.success() && found.stdout.is_empty(), "{found:?}");
    state.remove()
}

#[test]
fn an_upgrade_keeps_connections_and_removing_it_ends_them() -> Result<()> {
    with_cluster(Layout::TwoArmed, |cluster| {
        let server = cluster.endpoint(0, 7000);
        let _echo = Server::tcp_echo(&cluster.real_servers[0], server, "")?;
        let image = Image::new(&cluster.router)?;
        let first = image::package(cluster.state(), VERSION)?;
        let second = image::package(cluster.state(), &format!("{VERSION}+next"))?;

        image.install(&first)?.success()?;
        let mut config = Config::for_layout(cluster.layout(), "/run/rvs/rvs.sock".to_owned())
            .service(Service::tcp("nat", vip(7000)).server(server, 1));
        config.keep = Some("/run/rvs/table".to_owned());
        let file = image.file("/etc/rvs/rvs.toml");
        fs::write(&file, config.to_string())?;
        // By its path, as the unit does.
        let mut rvs = image.command("/usr/sbin/rvs").words("run -c /etc/rvs/rvs.toml").spawn("rvs")?;
        wait::until("rvs answers", PATIENCE, || {
            rvs.check_running()?;
            image.command("rvs").arg("list").run().map(drop)
        })?;
        let program = fs::read_link(format!("/proc/{}/exe", rvs.pid()))?;
        ensure!(program.ends_with("usr/sbin/rvs"), "{}", program.display());
        let is_replaced = |rvs: &harness::process::Daemon| -> Result<bool> {
            let program = fs::read_link(format!("/proc/{}/exe", rvs.pid()))?;
            Ok(program.to_string_lossy().ends_with("(deleted)"))
        };
        let mut stream = client::connect(&cluster.client, vip(7000))?;
        client::echo(&mut stream, b"before")?;

        let said = image.install(&second)?.success()?;
        ensure!(said.contains(&format!("rvs {VERSION} has taken over from {VERSION}")), "{said}");
        ensure!(!is_replaced(&rvs)?, "the process is still the old program");
        client::echo(&mut stream, b"after")?;
        let asked = image.systemctl();
        ensure!(asked.contains("daemon-reload") && !asked.contains("stop"), "{asked}");

        // Going back, with a file that no program would accept: all stays as it was, and it is said how to go on.
        fs::write(&file, "[worker]\n")?;
        let refused = image.install(&first)?;
        ensure!(refused.status.success(), "{refused:?}");
        for expected in ["worker", "goes on, for the reason above", "systemctl restart rvs"] {
            ensure!(refused.stderr.contains(expected), "{refused:?}");
        }
        ensure!(is_replaced(&rvs)?, "the process has become the refused program");
        client::echo(&mut stream, b"as before")?;
        fs::write(&file, config.to_string())?;
        image.command("rvs").arg("upgrade").run()?;
        ensure!(!is_replaced(&rvs)?);
        client::echo(&mut stream, b"as it was said")?;

        dpkg(&image, "--purge rvs")?.success()?;
        ensure!(image.systemctl().contains("stop rvs.service"), "{}", image.systemctl());
        let ended = rvs.wait(PATIENCE)?;
        ensure!(ended.success(), "{ended}\n{}", rvs.log());
        for gone in ["/run/rvs", "/etc/rvs"] {
            ensure!(!image.file(gone).exists(), "{gone} is left");
        }
        Ok(())
    })
}
