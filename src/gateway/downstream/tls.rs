//! Certificates: by the name that a caller asks for (SNI), and read again when their files change.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::settings::{ClientCertificates, TlsSettings};

/// Protocols, the preferred one first.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct TlsError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it, and what to write.
    pub reason: String,
    /// Whether it could not be read at all.
    pub unreadable: bool,
}

impl TlsError {
    fn new(path: &Path, reason: impl fmt::Display) -> Self {
        Self {
            path: path.to_owned(),
            reason: reason.to_string(),
            unreadable: false,
        }
    }
}

/// What the files held when they were last read.
#[derive(Clone)]
struct Loaded {
    config: Arc<ServerConfig>,
    bytes: Vec<Vec<u8>>,
    expiry: Vec<(String, i64)>,
}

/// The certificates of all TLS listeners.
pub(crate) struct Certificates {
    settings: TlsSettings,
    loaded: RwLock<Loaded>,
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What is loaded holds keys.
        f.debug_struct("Certificates")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Certificates {
    /// Reads the files. Where all is as `previous` has it, callers' tickets stay good.
    pub(crate) fn load(settings: TlsSettings, previous: Option<&Self>) -> Result<Self, TlsError> {
        let bytes = read(&settings)?;
        let same = previous
            .filter(|previous| previous.settings == settings)
            .map(|previous| previous.loaded.read().clone())
            .filter(|loaded| loaded.bytes == bytes);
        let loaded = match same {
            Some(loaded) => loaded,
            None => build(&settings, bytes)?,
        };
        Ok(Self {
            settings,
            loaded: RwLock::new(loaded),
        })
    }

    /// For a handshake that begins now.
    pub(super) fn config(&self) -> Arc<ServerConfig> {
        self.loaded.read().config.clone()
    }

    /// Looks at the files again. Whether they had changed. Where they cannot be used, all stays
    /// as it was.
    pub(crate) fn reload(&self) -> Result<bool, TlsError> {
        let bytes = read(&self.settings)?;
        if self.loaded.read().bytes == bytes {
            return Ok(false);
        }
        let loaded = build(&self.settings, bytes)?;
        *self.loaded.write() = loaded;
        Ok(true)
    }

    /// When each certificate ends: its file, and Unix seconds.
    pub(crate) fn expiry(&self) -> Vec<(String, i64)> {
        self.loaded.read().expiry.clone()
    }
}

/// All files, in one order.
fn read(settings: &TlsSettings) -> Result<Vec<Vec<u8>>, TlsError> {
    let pairs = settings.pairs.iter().flat_map(|(cert, key)| [cert, key]);
    pairs
        .chain(&settings.client_ca)
        .map(|path| {
            std::fs::read(path).map_err(|error| TlsError {
                unreadable: true,
                ..TlsError::new(path, error)
            })
        })
        .collect()
}

fn build(settings: &TlsSettings, bytes: Vec<Vec<u8>>) -> Result<Loaded, TlsError> {
    let mut files = bytes.iter();
    let mut next = || files.next().map_or(&[][..], Vec::as_slice);
    let mut by_name = ByName::default();
    let mut expiry = Vec::new();
    for (cert_path, key_path) in &settings.pairs {
        let (cert, key) = (next(), next());
        let chain = certificates(cert_path, cert)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| {
            let reason = format!("no private key in it ({error}); write a PEM file that holds one");
            TlsError::new(key_path, reason)
        })?;
        let (names, until) = of_leaf(cert_path, &chain)?;
        let certified = CertifiedKey::from_der(chain, key, &ring::default_provider());
        let certified = certified.map_err(|error| {
            let reason = format!("not the key of {}: {error}", cert_path.display());
            TlsError::new(key_path, reason)
        })?;
        expiry.push((cert_path.display().to_string(), until));
        by_name.add(Arc::new(certified), names);
    }
    let provider = Arc::new(ring::default_provider());
    let first = settings
        .pairs
        .first()
        .map_or(Path::new(""), |(cert, _)| cert);
    let versions: &[_] = match settings.only_tls13 {
        true => &[&rustls::version::TLS13],
        false => &[&rustls::version::TLS13, &rustls::version::TLS12],
    };
    let config = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)
        .map_err(|error| TlsError::new(first, error))?;
    let config = match &settings.client_ca {
        None => config.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path, next())? {
                let added = roots.add(certificate);
                added.map_err(|error| TlsError::new(path, error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            let verifier = match settings.client_certificates {
                ClientCertificates::Optional => verifier.allow_unauthenticated(),
                ClientCertificates::Required => verifier,
            };
            let verifier = verifier.build();
            config.with_client_cert_verifier(verifier.map_err(|error| TlsError::new(path, error))?)
        }
    };
    let mut config = config.with_cert_resolver(Arc::new(by_name));
    config.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
    if let Ok(ticketer) = ring::Ticketer::new() {
        config.ticketer = ticketer;
    }
    Ok(Loaded {
        config: Arc::new(config),
        bytes,
        expiry,
    })
}

fn certificates(path: &Path, bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    let chain = chain.map_err(|error| TlsError::new(path, format!("not PEM: {error}")))?;
    match chain.is_empty() {
        true => Err(TlsError::new(
            path,
            "no certificate in it; write a PEM file of the chain, the server's own first",
        )),
        false => Ok(chain),
    }
}

/// The names that a chain's first certificate stands for, and when it ends (Unix seconds).
fn of_leaf(path: &Path, chain: &[CertificateDer<'_>]) -> Result<(Vec<String>, i64), TlsError> {
    let leaf = chain.first().map_or(&[][..], |leaf| leaf);
    let (_, leaf) = X509Certificate::from_der(leaf)
        .map_err(|error| TlsError::new(path, format!("not a certificate: {error}")))?;
    let mut names = Vec::new();
    if let Ok(Some(alternative)) = leaf.subject_alternative_name() {
        for name in &alternative.value.general_names {
            if let GeneralName::DNSName(name) = name {
                names.push(name.to_ascii_lowercase());
            }
        }
    }
    Ok((names, leaf.validity().not_after.timestamp()))
}

/// Certificates by name. A caller that asks for none, or for one that nobody has, gets the first.
#[derive(Debug, Default)]
struct ByName {
    first: Option<Arc<CertifiedKey>>,
    names: HashMap<String, Arc<CertifiedKey>>,
}

impl ByName {
    /// Of two certificates for one name, the earlier one counts.
    fn add(&mut self, certified: Arc<CertifiedKey>, names: Vec<String>) {
        for name in names {
            self.names.entry(name).or_insert_with(|| certified.clone());
        }
        self.first.get_or_insert(certified);
    }

    fn find(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        let name = name.to_ascii_lowercase();
        self.names.get(&name).or_else(|| {
            // `*` stands for one label.
            let (_, domain) = name.split_once('.')?;
            self.names.get(&format!("*.{domain}"))
        })
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let asked = hello.server_name().and_then(|name| self.find(name));
        asked.or(self.first.as_ref()).cloned()
    }
}
