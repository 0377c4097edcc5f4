use super::fixture::{Files, READ_TOKEN, TOKEN};
use super::*;
use crate::config::Config;

const LISTEN: &str = "192.0.2.1:9443";

fn good(files: &Files) -> AdminTcp {
    files.read(&files.table(LISTEN)).unwrap_or_else(|errors| panic!("{errors}")).admin.tcp.unwrap()
}

/// The headline of the only error, the directory of the files left out.
#[track_caller]
fn wrong(files: &Files, table: &str) -> String {
    let errors = files.read(table).expect_err(table);
    assert_eq!(errors.iter().count(), 1, "{errors}");
    format!("{errors:#}").replace(&files.path("").display().to_string(), "/d/")
}

#[test]
fn a_table_with_everything() {
    let files = Files::new();
    let tcp = good(&files);
    assert_eq!(tcp.listen.to_string(), LISTEN);
    assert_eq!(tcp.tokens.access(TOKEN.as_bytes()), Some(Access::Full));
    assert_eq!(tcp.tokens.access(READ_TOKEN.as_bytes()), Some(Access::Read));
    for unknown in ["", "0123456789abcdef", &TOKEN[1..], &format!("{TOKEN} "), &TOKEN.to_uppercase()] {
        assert_eq!(tcp.tokens.access(unknown.as_bytes()), None, "{unknown}");
    }
    assert_eq!(tcp.identity.flaw(Duration::ZERO), None);
    let shown = format!("{tcp:?}");
    assert!(!shown.contains("0123"), "{shown}");
}

#[test]
fn only_looking_is_optional_and_several_tokens_count() {
    let files = Files::new();
    files.write("admin.token", &format!("\n# old\n{TOKEN}\r\n  # new\n\n{TOKEN}-2"), 0o400);
    let table = files.table(LISTEN);
    let table = &table[..table.find("read_token_file").unwrap()];
    let tcp = files.read(table).unwrap().admin.tcp.unwrap();
    for token in [TOKEN.to_owned(), format!("{TOKEN}-2")] {
        assert_eq!(tcp.tokens.access(token.as_bytes()), Some(Access::Full), "{token}");
    }
    assert_eq!(tcp.tokens.access(READ_TOKEN.as_bytes()), None);
}

#[test]
fn addresses() {
    let files = Files::new();
    for listen in ["0.0.0.0:9443", "127.0.0.1:1", "[::]:9443", "[2001:db8::1]:65535"] {
        let tcp = files.read(&files.table(listen)).unwrap().admin.tcp.unwrap();
        assert_eq!(tcp.listen.to_string(), listen);
    }
    for (listen, what) in [
        ("9443", "\"9443\" is no address with a port"),
        ("localhost:9443", "\"localhost:9443\" is no address with a port"),
        ("192.0.2.1", "\"192.0.2.1\" is no address with a port"),
        ("192.0.2.1:0", "port 0 is out of range"),
        ("192.0.2.1:65536", "\"192.0.2.1:65536\" is no address with a port"),
        ("224.0.0.1:9443", "224.0.0.1 is a multicast address"),
    ] {
        let expected = format!("f:2:10: admin.tcp.listen: {what}; expected {}", super::LISTEN);
        assert_eq!(wrong(&files, &files.table(listen)), expected);
    }
}

#[test]
fn what_must_be_there() {
    let files = Files::new();
    let errors = files.read("[admin.tcp]\n").unwrap_err();
    let keys: Vec<&str> = errors.iter().map(|error| error.key.as_str()).collect();
    assert_eq!(keys, ["listen", "certificate", "key", "token_file"].map(|key| format!("admin.tcp.{key}")));
    assert!(errors.iter().all(|error| error.message.starts_with("missing; expected ")), "{errors}");
    let message = wrong(&files, &format!("{}tls = false\n", files.table(LISTEN)));
    assert!(message.starts_with("f:7:1: admin.tcp.tls: unknown key; expected one of listen, "), "{message}");
}

/// Each bad file is an error of the key that names it.
#[test]
fn files_that_cannot_be_used() {
    let good = Files::new();
    let read = |name| std::fs::read_to_string(good.path(name)).unwrap();
    let (certificate, key, ca) = (read("admin.crt"), read("admin.key"), read("ca.pem"));
    let certificate_key = (3, 15, "certificate", CERTIFICATE);
    let (key_key, token_key) = ((4, 7, "key", KEY), (5, 14, "token_file", token::EXPECTED));
    let read_key = (6, 19, "read_token_file", token::EXPECTED);
    for (at, name, contents, mode, what) in [
        (certificate_key, "admin.crt", "", 0o644, "has no certificate"),
        (certificate_key, "admin.crt", &key, 0o644, "has no certificate"),
        (certificate_key, "admin.crt", &certificate[..200], 0o644, "is garbled at its certificate 1"),
        (
            certificate_key,
            "admin.crt",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            0o644,
            "has a certificate first that clients refuse (BadEncoding)",
        ),
        (
            certificate_key,
            "admin.crt",
            &ca,
            0o644,
            "has the certificate of a CA (CA:TRUE) first, which many clients refuse",
        ),
        (key_key, "admin.key", &key, 0o644, "is open to everybody (mode 0644; `chmod o=` mends it)"),
        (key_key, "admin.key", &key, 0o602, "is open to everybody (mode 0602; `chmod o=` mends it)"),
        (
            key_key,
            "admin.key",
            &certificate,
            0o600,
            "has no private key that can be read (PKCS#8, PKCS#1 or SEC1, without a passphrase)",
        ),
        (
            key_key,
            "admin.key",
            &rcgen::KeyPair::generate().unwrap().serialize_pem(),
            0o600,
            "does not fit the certificate",
        ),
        (token_key, "admin.token", TOKEN, 0o644, "is open to everybody (mode 0644; `chmod o=` mends it)"),
        (token_key, "admin.token", "# none\n\n", 0o600, "has no token"),
        (token_key, "admin.token", "\nshort\n", 0o600, "has a token of 5 characters in line 2"),
        (token_key, "admin.token", "0123456789 abcdef", 0o600, "has other characters in line 1"),
        (token_key, "admin.token", &"x".repeat(513), 0o600, "has a token of 513 characters in line 1"),
        (read_key, "read.token", "short", 0o600, "has a token of 5 characters in line 1"),
        (read_key, "read.token", TOKEN, 0o600, "has a token of token_file, which may do everything"),
    ] {
        let files = Files::new();
        let others: &[&str] = if name == "admin.crt" { &[] } else { &["admin.crt"] };
        // The pair that fits, but for what is bad.
        others.iter().for_each(|other| files.write(other, &read(other), 0o644));
        if name != "admin.key" {
            files.write("admin.key", &key, 0o600);
        }
        files.write(name, contents, mode);
        let (line, column, key, expected) = at;
        let expected =
            format!("f:{line}:{column}: admin.tcp.{key}: \"/d/{name}\" {what}; expected {expected}");
        assert_eq!(wrong(&files, &files.table(LISTEN)), expected);
    }
}

#[test]
fn a_file_that_is_not_there_and_one_that_is_nowhere() {
    let files = Files::new();
    std::fs::remove_file(files.path("admin.token")).unwrap();
    let expected = "\"/d/admin.token\" cannot be read: No such file or directory (os error 2); expected ";
    assert!(wrong(&files, &files.table(LISTEN)).contains(expected));
    files.write("admin.token", TOKEN, 0o600);
    let table = files.table(LISTEN).replace(&files.path("admin.key").display().to_string(), "admin.key");
    assert!(
        wrong(&files, &table).contains(": admin.tcp.key: \"admin.key\" is not an absolute path; expected ")
    );
}

/// Time alone makes a configuration neither good nor bad.
#[test]
fn an_expired_certificate_is_read() {
    let files = Files::new();
    for (from, to, flaw) in [(2000, 2001, "has expired"), (2990, 3000, "is not valid yet")] {
        files.renew(from, to);
        assert_eq!(good(&files).identity.flaw(Duration::ZERO), Some(flaw));
    }
}

#[test]
fn not_where_a_service_takes_everything() {
    let files = Files::new();
    let service = |address, protocol| {
        format!("\n[[service]]\naddress = \"{address}\"\nmode = \"nat\"\nprotocol = \"{protocol}\"\n")
    };
    let table = |service: String| files.table(LISTEN) + super::fixture::REST + &service;
    let read = |text: String| crate::config::parse(Path::new("f"), text.into());
    for apart in [service("192.0.2.1:9444", "tcp"), service("192.0.2.10:9443", "tcp")] {
        read(table(apart)).unwrap();
    }
    read(table(service("192.0.2.1:9443", "udp"))).unwrap();
    let message = format!("{:#}", read(table(service(LISTEN, "tcp"))).unwrap_err());
    let expected = "f:2:10: admin.tcp.listen: 192.0.2.1:9443 is a service's, which takes all that is sent there; \
                    expected another port, or another address";
    assert_eq!(message, expected);
}

#[test]
fn what_a_reload_may_change() {
    let files = Files::new();
    let read = |table: &str| -> Config { files.read(table).unwrap() };
    let running = read(&files.table(LISTEN));
    files.renew(2000, 3001);
    files.write("admin.token", "another-token-0123456789", 0o600);
    let renewed = read(&files.table(LISTEN));
    assert_eq!(running.needs_restart(&renewed), None);
    assert!(running.admin.tcp != renewed.admin.tcp);
    assert!(running.admin.tcp.as_ref().unwrap().identity != renewed.admin.tcp.as_ref().unwrap().identity);
    assert_eq!(
        running.needs_restart(&read(&files.table("192.0.2.1:9444"))).as_deref(),
        Some("admin.tcp.listen")
    );
    assert_eq!(running.needs_restart(&read("")).as_deref(), Some("admin.tcp"));
    assert_eq!(read("").needs_restart(&running).as_deref(), Some("admin.tcp"));
}
