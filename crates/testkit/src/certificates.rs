//! A certificate authority for one test: a server, clients by name, and the two classic mistakes.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose,
};

/// The PEM files of one certificate and its private key.
#[derive(Clone, Debug)]
pub struct KeyPair {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key, PKCS#8.
    pub key: PathBuf,
}

/// PEM files of a small public key infrastructure, written once into a directory.
pub struct Certificates {
    dir: PathBuf,
    authority: Authority,
    /// The authority that signed `server`, `wrong_host` and every [`Certificates::client`].
    pub ca: PathBuf,
    /// For `localhost`, `127.0.0.1` and `::1`.
    pub server: KeyPair,
    /// Signed by `ca` for `wrong.example` only: a client of `localhost` must refuse it.
    pub wrong_host: KeyPair,
    /// Another authority, which signed nothing but `wrong_client`.
    pub wrong_ca: PathBuf,
    /// A client certificate that a broker trusting `ca` must refuse.
    pub wrong_client: KeyPair,
}

impl Certificates {
    /// Generates everything into `dir`, which must outlive the brokers that read it.
    ///
    /// # Panics
    ///
    /// If `dir` is not writable.
    pub fn generate(dir: impl AsRef<Path>) -> Self {
        let dir = dir.as_ref().to_owned();
        let authority = Authority::new("raft-over-mqtt test CA");
        let wrong = Authority::new("some other CA");
        Self {
            ca: write(&dir, "ca.pem", &authority.pem),
            server: authority.server(&dir, "server", &["localhost", "127.0.0.1", "::1"]),
            wrong_host: authority.server(&dir, "wrong-host", &["wrong.example"]),
            wrong_ca: write(&dir, "wrong-ca.pem", &wrong.pem),
            wrong_client: wrong.client(&dir, "wrong-client"),
            authority,
            dir,
        }
    }

    /// A client certificate with the common name `name`, signed by `ca`.
    pub fn client(&self, name: &str) -> KeyPair {
        self.authority.client(&self.dir, name)
    }
}

struct Authority {
    issuer: Issuer<'static, rcgen::KeyPair>,
    pem: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = params(name, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = rcgen::KeyPair::generate().expect("generate a key");
        let pem = params.self_signed(&key).expect("sign the authority").pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    fn server(&self, dir: &Path, file: &str, hosts: &[&str]) -> KeyPair {
        self.issue(
            dir,
            file,
            params(hosts[0], hosts),
            ExtendedKeyUsagePurpose::ServerAuth,
        )
    }

    fn client(&self, dir: &Path, name: &str) -> KeyPair {
        self.issue(
            dir,
            name,
            params(name, &[]),
            ExtendedKeyUsagePurpose::ClientAuth,
        )
    }

    fn issue(
        &self,
        dir: &Path,
        file: &str,
        mut params: CertificateParams,
        usage: ExtendedKeyUsagePurpose,
    ) -> KeyPair {
        params.extended_key_usages = vec![usage];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = rcgen::KeyPair::generate().expect("generate a key");
        let certificate = params
            .signed_by(&key, &self.issuer)
            .expect("sign a certificate");
        KeyPair {
            certificate: write(dir, &format!("{file}.pem"), &certificate.pem()),
            key: write(dir, &format!("{file}.key.pem"), &key.serialize_pem()),
        }
    }
}

fn params(common_name: &str, hosts: &[&str]) -> CertificateParams {
    let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let mut params = CertificateParams::new(hosts).expect("valid host names");
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params
}

fn write(dir: &Path, file: &str, text: &str) -> PathBuf {
    let path = dir.join(file);
    fs::write(&path, text).unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
    path
}
