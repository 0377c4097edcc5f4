//! Every way we know to get a check by HTTP, TLS or gRPC wrong, with the whole message that it earns.

use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;

use super::fixture::{kind, read};
use crate::config::{CheckKind, Trust};

/// One line without its place, as all of these stand in `service[0].check`: the key and the message.
#[track_caller]
fn assert_message(check: &str, expected: &str) {
    let errors = read(check).expect_err(check);
    let shown: Vec<String> = errors.iter().map(|error| format!("{error:#}")).collect();
    let [message] = &shown[..] else { panic!("{check}: {shown:?}") };
    let (place, message) = message.split_once(": service[0].check.").unwrap_or(("", message));
    assert!(place.starts_with("f:1"), "{check}: {place}: {message}");
    assert_eq!(message, expected, "{check}");
}

#[test]
fn an_error_has_its_place() {
    let errors = read("kind = \"http\"\nstatus = [200, 600]\nbody = \"(ab\"").unwrap_err().to_string();
    let expected = r#"
f:12:16: service[0].check.status[1]: 600 is out of range; expected an integer from 100 to 599
   12 | status = [200, 600]
      |                ^^^
f:13:8: service[0].check.body: "(ab" is wrong: unclosed group; expected a regular expression, e.g. "status: (ok|fine)"
   13 | body = "(ab"
      |        ^^^^^"#;
    assert_eq!(errors, expected.trim_start());
}

#[test]
fn requests() {
    for (keys, message) in [
        ("method = \"get\"", "method: unknown method \"get\"; expected one of GET, HEAD, POST, OPTIONS"),
        (
            "path = \"health\"",
            "path: \"health\" does not begin with '/'; expected a path that begins with '/', its special \
             characters as %XX, e.g. \"/health?full=1\"",
        ),
        (
            "path = \"/a b\"",
            "path: \"/a b\" contains ' '; expected a path that begins with '/', its special characters as %XX, \
             e.g. \"/health?full=1\"",
        ),
        (
            "path = \"/#top\"",
            "path: \"/#top\" contains '#'; expected a path that begins with '/', its special characters as %XX, \
             e.g. \"/health?full=1\"",
        ),
        (
            "path = \"/ä\"",
            "path: \"/ä\" contains 'ä'; expected a path that begins with '/', its special characters as %XX, \
             e.g. \"/health?full=1\"",
        ),
        (
            "path = \"/<\"",
            "path: \"/<\" is no path; expected a path that begins with '/', its special characters as %XX, \
             e.g. \"/health?full=1\"",
        ),
        (
            "host = \"http://www\"",
            "host: \"http://www\" is no host; expected a name or an address, with or without a port, e.g. \
             \"www.example.com\"",
        ),
        ("headers = \"X: y\"", "headers: is a string; expected a table [service.check.headers]"),
        ("headers = { X = 1 }", "headers.X: is an integer; expected a value in printable ASCII"),
        (
            "headers = { X = \"a\\r\\nb\" }",
            "headers.X: \"a\\r\\nb\" cannot be sent; expected a value in printable ASCII",
        ),
        (
            "headers = { \"X y\" = \"z\" }",
            "headers.X y: \"X y\" is no name of a header; expected e.g. X-Checked-By",
        ),
        (
            "headers = { Host = \"www\" }",
            "headers.Host: header Host is a key of its own; expected host = \"...\" beside headers",
        ),
        (
            "headers = { Content-Length = \"1\" }",
            "headers.Content-Length: header content-length is always set by the check; expected another",
        ),
        (
            "headers = { x-a = \"1\", X-A = \"2\" }",
            "headers.x-a: header x-a stands there twice; expected it once",
        ),
        (
            "sni = \"www\"",
            "sni: unknown key; expected one of kind, address, port, interval, timeout, rise, fall, jitter, start, \
             method, path, host, headers, status, body, body_not",
        ),
    ] {
        assert_message(&format!("kind = \"http\"\n{keys}"), message);
    }
    for host in ["", "a..b", "a@www", "www:", "www:99999", "www:x", "www/x", "-a", "a b", "1.2.3.4.5", "[::1"]
    {
        let errors = read(&format!("kind = \"http\"\nhost = \"{host}\"")).expect_err(host).to_string();
        assert!(errors.contains("is no host; expected"), "{host}: {errors}");
    }
    for host in ["www", "www.example.com", "w_w", "10.0.0.1", "www:8080", "10.0.0.1:1", "[::1]", "[::1]:80"] {
        let CheckKind::Http(http) = kind(&format!("kind = \"http\"\nhost = \"{host}\"")) else { panic!() };
        assert_eq!(http.host.as_ref().unwrap().as_str(), host);
    }
}

#[test]
fn answers() {
    for (keys, message) in [
        ("status = 200", "status: is an integer; expected an array"),
        ("status = []", "status: is empty; expected at least one status, e.g. [200]"),
        ("status = [99]", "status[0]: 99 is out of range; expected an integer from 100 to 599"),
        (
            "status = [true]",
            "status[0]: is a boolean; expected a status from 100 to 599, or several, e.g. \"200-299\"",
        ),
        (
            "status = [200, \"2xx\"]",
            "status[1]: \"2xx\" is no status; expected a status from 100 to 599, or several, e.g. \"200-299\"",
        ),
        (
            "status = [\"200-700\"]",
            "status[0]: \"200-700\" is no status; expected a status from 100 to 599, or several, e.g. \"200-299\"",
        ),
        (
            "status = [\"299-200\"]",
            "status[0]: \"299-200\" ends before it begins; expected a status from 100 to 599, or several, e.g. \
             \"200-299\"",
        ),
        ("body = 1", "body: is an integer; expected a regular expression, e.g. \"status: (ok|fine)\""),
        (
            "body = \"\"",
            "body: \"\" matches whatever comes; expected a regular expression, e.g. \"status: (ok|fine)\"",
        ),
        (
            "body_not = \"(?=a)\"",
            "body_not: \"(?=a)\" is wrong: look-around, including look-ahead and look-behind, is not supported; \
             expected a regular expression, e.g. \"status: (ok|fine)\"",
        ),
        (
            r"body = '\w{1000}'",
            "body: \"\\\\w{1000}\" is wrong: needs more than 1024 KiB; expected a regular expression, e.g. \
             \"status: (ok|fine)\"",
        ),
        (
            "method = \"HEAD\"\nbody = \"x\"",
            "body: an answer to HEAD has no body; expected method = \"GET\", or no such key",
        ),
    ] {
        assert_message(&format!("kind = \"http\"\n{keys}"), message);
    }
}

#[test]
fn http_has_defaults() {
    let CheckKind::Http(http) = kind("kind = \"http\"") else { panic!() };
    assert_eq!((http.method.as_str(), http.path.as_str(), &http.host), ("GET", "/", &None));
    assert_eq!((http.headers.len(), &http.body, &http.body_not), (0, &None, &None));
    assert_eq!(http.status.to_string(), "200-299");
    assert!(http.status.contains(200) && http.status.contains(299));
    assert!(!http.status.contains(199) && !http.status.contains(300));
}

/// A directory with `ca.pem`.
fn directory() -> (TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ca.pem").display().to_string();
    std::fs::write(&path, certificate()).unwrap();
    (directory, path)
}

fn certificate() -> String {
    CertificateParams::default().self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
}

#[test]
fn whom_tls_asks_for() {
    let (_directory, ca) = directory();
    for (keys, expected) in [
        ("kind = \"tls\"", None),
        ("kind = \"tls\"\nsni = \"www.example.com\"", Some("www.example.com")),
        ("kind = \"tls\"\nsni = \"10.0.0.1\"", Some("10.0.0.1")),
        ("kind = \"https\"\nhost = \"www.example.com:8443\"", Some("www.example.com")),
        ("kind = \"https\"\nhost = \"a.example\"\nsni = \"b.example\"", Some("b.example")),
        ("kind = \"https\"\nhost = \"10.0.0.1\"", None),
        ("kind = \"https\"\nhost = \"[::1]\"", None),
        ("kind = \"grpc\"\ntls = true\nhost = \"a.example\"", Some("a.example")),
    ] {
        for trust in [format!("ca = {ca:?}"), "skip_verify = true".to_owned()] {
            let tls = match kind(&format!("{keys}\n{trust}")) {
                CheckKind::Tls(tls) | CheckKind::Https(_, tls) => tls,
                CheckKind::Grpc(grpc) => grpc.tls.clone().unwrap(),
                other => panic!("{other:?}"),
            };
            assert_eq!(tls.name.map(|name| name.to_str().into_owned()).as_deref(), expected, "{keys}");
            assert_eq!(tls.trust == Trust::Anyone, trust.starts_with("skip"), "{keys}\n{trust}");
        }
    }
    let CheckKind::Grpc(grpc) = kind("kind = \"grpc\"") else { panic!() };
    assert_eq!((grpc.service.as_str(), &grpc.host, &grpc.tls), ("", &None, &None));
}

#[test]
fn tls_and_grpc() {
    let (_directory, ca) = directory();
    let stray = "has no meaning without TLS; expected tls = true, or no such key";
    for (keys, message) in [
        (
            "kind = \"tls\"\nsni = \"a b\"\nskip_verify = true",
            "sni: \"a b\" is no name; expected a name or an address, e.g. \"www.example.com\"",
        ),
        (
            &*format!("kind = \"https\"\nskip_verify = true\nca = {ca:?}"),
            "skip_verify: who is not verified needs no ca; expected false, or no key ca",
        ),
        ("kind = \"https\"\nskip_verify = 1", "skip_verify: is an integer; expected true or false"),
        (
            "kind = \"tls\"\npath = \"/\"\nskip_verify = true",
            "path: unknown key; expected one of kind, address, port, interval, timeout, rise, fall, jitter, start, \
             sni, ca, skip_verify",
        ),
        ("kind = \"grpc\"\nskip_verify = true", &*format!("skip_verify: {stray}")),
        ("kind = \"grpc\"\ntls = false\nsni = \"www\"", &*format!("sni: {stray}")),
        (&*format!("kind = \"grpc\"\nca = {ca:?}"), &*format!("ca: {stray}")),
        ("kind = \"grpc\"\ntls = 1", "tls: is an integer; expected true or false"),
        (
            "kind = \"grpc\"\nservice = \"a\\nb\"",
            "service: \"a\\nb\" has a control character; expected the name of a service of at most 255 bytes, e.g. \
             \"shop.Cart\"",
        ),
        (
            &*format!("kind = \"grpc\"\nservice = \"{}\"", "x".repeat(256)),
            "service: has 256 bytes; expected the name of a service of at most 255 bytes, e.g. \"shop.Cart\"",
        ),
    ] {
        assert_message(keys, message);
    }
}

#[test]
fn files_of_certificates() {
    let (directory, ca) = directory();
    let good = certificate();
    let expected = "expected the absolute path of a PEM file with certificates of CAs";
    let key = KeyPair::generate().unwrap().serialize_pem();
    let no_x509 = "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n";
    let garbled = good.replacen("MII", "M!!", 1);
    for (contents, message) in [
        (String::new(), "has no certificate"),
        (key, "has no certificate"),
        ("hello\n".to_owned(), "has no certificate"),
        (format!("{good}{no_x509}"), "has a certificate 2 that cannot be read"),
        (garbled, "is garbled at its certificate 1"),
        (format!("{good}{}", &good[..100]), "is garbled at its certificate 2"),
        ("x".repeat((4 << 20) + 1), "cannot be read: it is larger than 4 MB"),
    ] {
        std::fs::write(&ca, contents).unwrap();
        assert_message(&format!("kind = \"tls\"\nca = {ca:?}"), &format!("ca: {ca:?} {message}; {expected}"));
    }
    let missing = directory.path().join("missing.pem").display().to_string();
    let pipe = directory.path().join("pipe").display().to_string();
    nix::unistd::mkfifo(std::path::Path::new(&pipe), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let here = directory.path().display().to_string();
    for (path, message) in [
        (missing.as_str(), "cannot be read: No such file or directory (os error 2)"),
        (&pipe, "cannot be read: it is no regular file"),
        (&here, "cannot be read: it is no regular file"),
        ("ca.pem", "is not an absolute path"),
        ("", "is not an absolute path"),
    ] {
        assert_message(
            &format!("kind = \"tls\"\nca = {path:?}"),
            &format!("ca: {path:?} {message}; {expected}"),
        );
    }
}

#[test]
fn a_renewed_file_is_another_check() {
    let (_directory, ca) = directory();
    let keys = format!("kind = \"tls\"\nca = {ca:?}");
    let first = kind(&keys);
    assert_eq!(first, kind(&keys));
    let old = std::fs::read_to_string(&ca).unwrap();
    std::fs::write(&ca, certificate()).unwrap();
    assert_ne!(first, kind(&keys));
    std::fs::write(&ca, old).unwrap();
    assert_eq!(first, kind(&keys));
}
