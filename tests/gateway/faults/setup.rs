//! What the tests of faults begin with.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

use super::caller::Wire;
use crate::harness::Gateway;

/// A certificate for `localhost`, and whom it convinces.
pub(crate) fn certificate(dir: &std::path::Path) -> ([String; 2], Arc<ClientConfig>) {
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate().expect("a key");
    let ca = params.self_signed(&ca_key).expect("an authority");
    let issuer = Issuer::new(params, ca_key);
    let key = KeyPair::generate().expect("a key");
    let signed = CertificateParams::new(vec!["localhost".to_owned()])
        .expect("parameters")
        .signed_by(&key, &issuer)
        .expect("a certificate");
    let files = [
        ("server.crt", signed.pem()),
        ("server.key", key.serialize_pem()),
    ]
    .map(|(name, text)| {
        let path = dir.join(name);
        std::fs::write(&path, text).expect("a file");
        path.display().to_string()
    });
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).expect("an authority");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    (files, Arc::new(config))
}

/// The ways in, by name.
pub(crate) fn wires(gateway: &Gateway, tls: &Arc<ClientConfig>) -> Vec<(&'static str, Wire)> {
    let with = |protocol: &str| {
        let mut config = ClientConfig::clone(tls);
        config.alpn_protocols = vec![protocol.into()];
        Some(Arc::new(config))
    };
    let wire = |at: usize, http2, tls| Wire {
        addr: gateway.listeners[at],
        http2,
        tls,
    };
    vec![
        ("h1", wire(0, false, None)),
        ("h2", wire(0, true, None)),
        ("h1s", wire(1, false, with("http/1.1"))),
        ("h2s", wire(1, true, with("h2"))),
    ]
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
}

/// File descriptors of the gateway.
pub(crate) fn descriptors(gateway: &Gateway) -> usize {
    let path = format!("/proc/{}/fd", gateway.pid());
    std::fs::read_dir(path).expect("its descriptors").count()
}
