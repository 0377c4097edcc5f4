//! Certificates, keys, tokens and lists in a directory, for tests.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};

use crate::config::{Config, ConfigErrors, parse};

/// The token that may do everything.
pub(crate) const TOKEN: &str = "0123456789abcdef-full";
/// The token that may only look.
pub(crate) const READ_TOKEN: &str = "0123456789abcdef-read";

pub(super) const REST: &str = "[workers]\ncores = [1]\n[[port]]\nname = \"wan\"\ndevice = \"net_null\"\naddresses = [\"192.0.2.1/24\"]\n";

/// The files of an `[admin.tcp]`. Its CA signs as often as it is asked.
pub(crate) struct Files {
    directory: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Files {
    /// All files, with a certificate for `localhost` and 127.0.0.1.
    pub(crate) fn new() -> Files {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "RVS test CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let directory = tempfile::tempdir().unwrap();
        let ca = params.self_signed(&key).unwrap();
        let files = Files { directory, issuer: Issuer::new(params, key) };
        files.write("ca.pem", &ca.pem(), 0o644);
        files.write("admin.token", &format!("# everything\n{TOKEN}\n"), 0o640);
        files.write("read.token", READ_TOKEN, 0o600);
        files.write("sync.key", &"0123456789abcdef".repeat(4), 0o600);
        files.write("sources.list", "198.51.100.0/24\n", 0o644);
        files.write("scheduling.key", "0123456789abcdef", 0o600);
        files.write("quic.key", &"0123456789abcdef".repeat(2), 0o600);
        files.renew(2000, 3000);
        files
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, contents: &str, mode: u32) {
        fs::write(self.path(name), contents).unwrap();
        fs::set_permissions(self.path(name), Permissions::from_mode(mode)).unwrap();
    }

    /// Another certificate and key, valid from the first of one year to that of another.
    pub(crate) fn renew(&self, from: i32, to: i32) {
        let key = KeyPair::generate().unwrap();
        let names = ["localhost", "127.0.0.1"].map(str::to_owned);
        let mut params = CertificateParams::new(names).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(to, 1, 1));
        self.write("admin.crt", &params.signed_by(&key, &self.issuer).unwrap().pem(), 0o644);
        self.write("admin.key", &key.serialize_pem(), 0o600);
    }

    /// The table as an operator writes it, from the first line of a file on.
    pub(crate) fn table(&self, listen: &str) -> String {
        let file = |name| format!("{:?}", self.path(name).display().to_string());
        format!(
            "[admin.tcp]\nlisten = {listen:?}\ncertificate = {}\nkey = {}\ntoken_file = {}\nread_token_file = {}\n",
            file("admin.crt"),
            file("admin.key"),
            file("admin.token"),
            file("read.token"),
        )
    }

    /// What a file with this table means.
    pub(crate) fn read(&self, table: &str) -> Result<Config, ConfigErrors> {
        parse(std::path::Path::new("f"), format!("{table}{REST}").into())
    }
}
