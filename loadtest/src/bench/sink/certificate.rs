//! A certificate for a sink that speaks TLS, with an authority of its own: made for a benchmark, and gone with it.

use crate::{bench::BenchError, file_error::FileError};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};

/// Files of a certificate.
#[derive(Debug, Clone)]
pub struct CertificateFiles {
    /// The authority, for those who connect.
    pub authority: PathBuf,
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl CertificateFiles {
    /// Makes a certificate for names and addresses, and writes it into a directory.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn make(directory: &Path, names: &[String]) -> Result<Self, BenchError> {
        let unusable = |error: rcgen::Error| io::Error::other(error.to_string());
        let mut authority = CertificateParams::new(Vec::new()).map_err(unusable)?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // With the name that both have by default the certificate would seem to have signed itself.
        authority.distinguished_name.push(DnType::CommonName, "Floodway's benchmark");
        let authority_key = KeyPair::generate().map_err(unusable)?;
        let root = authority.self_signed(&authority_key).map_err(unusable)?;
        let issuer = Issuer::new(authority, authority_key);
        let key = KeyPair::generate().map_err(unusable)?;
        let leaf = CertificateParams::new(names).map_err(unusable)?;
        let leaf = leaf.signed_by(&key, &issuer).map_err(unusable)?;
        let files = Self {
            authority: directory.join("sink-authority.pem"),
            certificate: directory.join("sink-certificate.pem"),
            key: directory.join("sink-key.pem"),
        };
        for (path, text) in [
            (&files.authority, root.pem()),
            (&files.certificate, leaf.pem()),
            (&files.key, key.serialize_pem()),
        ] {
            fs::write(path, text).map_err(|reason| FileError::at(path, reason))?;
        }
        Ok(files)
    }

    /// Removes the files.
    pub fn remove(&self) {
        for path in [&self.authority, &self.certificate, &self.key] {
            // Nobody trusts the authority any more, so one that stays does no harm.
            let _ = fs::remove_file(path);
        }
    }
}

/// What accepts TLS with a certificate and its key.
///
/// # Errors
/// When a file cannot be read or does not hold what it should.
pub fn acceptor(certificate: &Path, key: &Path) -> Result<TlsAcceptor, FileError> {
    let at =
        |path| move |error: &dyn std::fmt::Display| FileError::at(path, io::Error::other(error.to_string()));
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| at(certificate)(&error))?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| at(key)(&error))?;
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| at(certificate)(&error))?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(|error| at(certificate)(&error))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
