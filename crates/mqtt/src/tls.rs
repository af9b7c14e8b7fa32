//! TLS: files into a client configuration, failures into words.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{
    self, AlertDescription, CertificateError, ClientConfig, InconsistentKeys, RootCertStore,
};

use crate::options::TlsFiles;

/// What is wrong with a TLS file. Each message names the file and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}; check the path and its permissions", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file holds no certificate.
    #[error("{} holds no PEM certificate; it needs a `BEGIN CERTIFICATE` section", path.display())]
    NotACertificate {
        /// The file.
        path: PathBuf,
    },
    /// The file holds no private key that we can use.
    #[error(
        "{} holds no PEM private key; it needs an unencrypted `BEGIN PRIVATE KEY` section \
         (for an encrypted one: openssl pkey -in KEY -out PLAIN)",
        path.display()
    )]
    NotAKey {
        /// The file.
        path: PathBuf,
    },
    /// Certificate and key belong to different pairs.
    #[error(
        "the key {} does not belong to the certificate {}; give the pair that was issued together",
        key.display(), certificate.display()
    )]
    KeyMismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// A certificate without its key or a key without its certificate.
    #[error("a client certificate needs both files: the certificate and its key")]
    Incomplete,
    /// No CA file was given and the system trusts none.
    #[error("this system has no trusted certificate authorities; name the broker's CA file")]
    NoAuthorities,
    /// The cryptographic library refuses the material.
    #[error("cannot use {}: {source}", path.display())]
    Unusable {
        /// The file at fault, as far as can be told.
        path: PathBuf,
        /// What the library said.
        source: rustls::Error,
    },
}

/// Why a TLS connection to the broker failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TlsFault {
    /// The broker's certificate is for another host.
    #[error(
        "the broker's certificate is not valid for the host name {host}; \
         connect by a name that stands in the certificate"
    )]
    WrongHostName {
        /// The name we connected to.
        host: String,
    },
    /// Nobody we trust signed the broker's certificate.
    #[error(
        "the broker's certificate is signed by an unknown authority; \
         give the CA file that signed it"
    )]
    UnknownIssuer,
    /// The broker's certificate is expired or not yet valid.
    #[error("the broker's certificate is expired or not yet valid; renew it or set the clock")]
    Expired,
    /// The broker's certificate is refused for another reason.
    #[error("the broker's certificate was refused: {detail}")]
    BadCertificate {
        /// What the library said.
        detail: String,
    },
    /// The broker refused our certificate or wants one.
    #[error(
        "the broker refused our client certificate ({alert}); \
         give a certificate and key signed by the authority that the broker trusts"
    )]
    RefusedByBroker {
        /// The TLS alert.
        alert: String,
    },
    /// The other side does not speak TLS, or no version of it that we do.
    #[error("the TLS handshake failed: {detail}; check that the port is the broker's TLS port")]
    Handshake {
        /// What the library said.
        detail: String,
    },
}

/// Reads the files and checks them against each other.
pub(crate) fn client_config(files: &TlsFiles) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|source| TlsError::Unusable {
            path: PathBuf::new(),
            source,
        })?
        .with_root_certificates(authorities(files.ca.as_deref())?);
    let config = match (&files.certificate, &files.key) {
        (None, None) => builder.with_no_client_auth(),
        (Some(certificate), Some(key)) => builder
            .with_client_auth_cert(certificates(certificate)?, private_key(key)?)
            .map_err(|error| pair_error(certificate, key, error))?,
        _ => return Err(TlsError::Incomplete),
    };
    Ok(Arc::new(config))
}

/// The TLS failure inside an I/O error, if that is what it is.
pub(crate) fn fault(error: &io::Error, host: &str) -> Option<TlsFault> {
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    Some(match error {
        rustls::Error::InvalidCertificate(certificate) => certificate_fault(certificate, host),
        rustls::Error::AlertReceived(alert) if is_about_our_certificate(*alert) => {
            TlsFault::RefusedByBroker {
                alert: format!("{alert:?}"),
            }
        }
        other => TlsFault::Handshake {
            detail: other.to_string(),
        },
    })
}

fn certificate_fault(error: &CertificateError, host: &str) -> TlsFault {
    match error {
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            TlsFault::WrongHostName {
                host: host.to_owned(),
            }
        }
        CertificateError::UnknownIssuer => TlsFault::UnknownIssuer,
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => TlsFault::Expired,
        // A CA of the same name but another key.
        CertificateError::BadSignature => TlsFault::UnknownIssuer,
        other => TlsFault::BadCertificate {
            detail: other.to_string(),
        },
    }
}

/// OpenSSL answers a missing certificate with `handshake_failure` under TLS 1.2.
fn is_about_our_certificate(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::HandshakeFailure
    )
}

fn authorities(ca: Option<&Path>) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    let Some(path) = ca else {
        store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return if store.is_empty() {
            Err(TlsError::NoAuthorities)
        } else {
            Ok(store)
        };
    };
    for certificate in certificates(path)? {
        store
            .add(certificate)
            .map_err(|source| TlsError::Unusable {
                path: path.to_owned(),
                source,
            })?;
    }
    Ok(store)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let not_a_certificate = || TlsError::NotACertificate {
        path: path.to_owned(),
    };
    let pem = read(path)?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, pem::Error>>()
        .map_err(|_| not_a_certificate())?;
    if certificates.is_empty() {
        return Err(not_a_certificate());
    }
    Ok(certificates)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|_| TlsError::NotAKey {
        path: path.to_owned(),
    })
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Unreadable {
        path: path.to_owned(),
        source,
    })
}

fn pair_error(certificate: &Path, key: &Path, error: rustls::Error) -> TlsError {
    match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => TlsError::KeyMismatch {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
        },
        rustls::Error::InvalidCertificate(_) => TlsError::NotACertificate {
            path: certificate.to_owned(),
        },
        source => TlsError::Unusable {
            path: key.to_owned(),
            source,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use testkit::Certificates;

    #[test]
    fn each_bad_file_is_named_with_what_is_wrong_with_it() {
        let dir = testkit::temp_dir();
        let certificates = Certificates::generate(dir.path());
        let (good, other) = (certificates.client("good"), certificates.client("other"));
        let text = dir.path().join("notes.txt");
        std::fs::write(&text, "not PEM").unwrap();
        let files = |ca: &Path, certificate: &Path, key: &Path| TlsFiles {
            ca: Some(ca.to_owned()),
            certificate: Some(certificate.to_owned()),
            key: Some(key.to_owned()),
        };
        let missing = dir.path().join("missing.pem");
        let (ca, pair) = (&certificates.ca, (&good.certificate, &good.key));
        assert!(client_config(&files(ca, pair.0, pair.1)).is_ok());
        let table = [
            (
                files(&missing, pair.0, pair.1),
                "missing.pem",
                "check the path",
            ),
            (
                files(&text, pair.0, pair.1),
                "notes.txt",
                "BEGIN CERTIFICATE",
            ),
            (files(ca, &text, pair.1), "notes.txt", "BEGIN CERTIFICATE"),
            (files(ca, pair.0, &text), "notes.txt", "BEGIN PRIVATE KEY"),
            (files(ca, pair.0, pair.0), "good.pem", "BEGIN PRIVATE KEY"),
            (
                files(ca, pair.0, &other.key),
                "other.key.pem",
                "does not belong",
            ),
            (
                files(ca, pair.1, pair.1),
                "good.key.pem",
                "BEGIN CERTIFICATE",
            ),
            (
                files(dir.path(), pair.0, pair.1),
                "cannot read",
                "check the path",
            ),
        ];
        for (files, file, advice) in table {
            let message = client_config(&files).unwrap_err().to_string();
            assert!(
                message.contains(file) && message.contains(advice),
                "{message}"
            );
        }
        let half = TlsFiles {
            certificate: Some(good.certificate.clone()),
            ca: Some(ca.clone()),
            key: None,
        };
        assert!(matches!(client_config(&half), Err(TlsError::Incomplete)));
    }
}
