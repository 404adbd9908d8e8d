//! Certificates that vouch for the upstreams of one pool.

use std::path::Path;
use std::sync::Arc;

use pingora::protocols::tls::CaType;
use pingora::utils::tls::{WrappedX509, parse_x509};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The certificates, and a number that tells them from others.
pub(super) fn load(path: &Path) -> Result<(Arc<CaType>, u64), String> {
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    let mut roots = rustls::RootCertStore::empty();
    let mut all = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(&bytes) {
        let certificate = certificate.map_err(|_| "not a list of certificates".to_owned())?;
        // pingora takes both for granted.
        let is_good = X509Certificate::from_der(&certificate).is_ok();
        let bad = || "a certificate in it cannot be read".to_owned();
        if !is_good {
            return Err(bad());
        }
        roots.add(certificate.clone()).map_err(|_| bad())?;
        all.push(WrappedX509::new(certificate.to_vec(), parse_x509));
    }
    match all.is_empty() {
        true => Err("there is no certificate in it".to_owned()),
        false => Ok((all.into(), super::choice::hash(&bytes))),
    }
}
