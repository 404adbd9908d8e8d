//! Listeners and certificates.

use super::{Reader, beside};
use crate::cli::layers::Mistake;
use crate::cli::value::{self, ValueError};
use crate::settings::{ClientCertificates, Https, Listen, TlsSettings};

/// What may follow from the listeners that there are.
pub(super) struct Secured {
    pub(super) tls: Option<TlsSettings>,
    pub(super) https: Https,
}

pub(super) fn secured(reader: &mut Reader, listen: &[Listen]) -> Option<Secured> {
    let has_tls = listen.iter().any(|listen| listen.tls);
    let certs = reader.many("tls_cert", |given| Ok(beside(given)));
    let keys = reader.many("tls_key", |given| Ok(beside(given)));
    let only_tls13 = reader.one("tls_min", |text| {
        value::choice(text, &[("1.2", false), ("1.3", true)])
    });
    let client_ca = reader.file("tls_client_ca");
    let client_certificates = reader.one("tls_client_auth", |text| {
        let known = [
            ("required", ClientCertificates::Required),
            ("optional", ClientCertificates::Optional),
        ];
        value::choice(text, &known)
    });
    let only = reader.one("https_only", |text| {
        let known = [("auto", has_tls), ("true", true), ("false", false)];
        value::choice(text, &known)
    });
    let redirect = reader.one("https_redirect", |text| match text {
        "off" => Ok(None),
        _ => value::number::<u16>(text, 1, 65_535).map(Some),
    });
    let hsts = reader.one("hsts", |text| match text {
        "off" => Ok(None),
        _ => value::long(text).map(Some),
    });

    let mut wrong = |key: &str, why: ValueError| {
        if let Some(given) = reader.given(key).pop() {
            reader.mistakes.push(Mistake::Value { given, why });
        }
    };
    match (has_tls, certs.is_empty()) {
        (true, true) => wrong("listen", ValueError::NoCertificate),
        (false, false) => wrong("tls_cert", ValueError::NoTlsListener),
        _ => {}
    }
    if !keys.is_empty() && keys.len() != certs.len() {
        let (certs, keys) = (certs.len(), keys.len());
        wrong("tls_key", ValueError::Pairs { certs, keys });
    }
    if client_ca.is_some() && !has_tls {
        wrong("tls_client_ca", ValueError::NoTlsListener);
    }
    let pairs: Vec<_> = certs
        .iter()
        .enumerate()
        .map(|(i, cert)| (cert.clone(), keys.get(i).unwrap_or(cert).clone()))
        .collect();
    let tls = TlsSettings {
        pairs,
        client_ca,
        client_certificates: client_certificates?,
        only_tls13: only_tls13?,
    };
    Some(Secured {
        tls: has_tls.then_some(tls),
        https: Https {
            only: only?,
            redirect: redirect?,
            hsts: hsts?,
        },
    })
}

/// A listener that believes nobody would refuse everybody.
pub(super) fn check_trust(reader: &mut Reader, listen: &[Listen]) {
    let is_needed = listen.iter().any(|listen| listen.proxy_protocol);
    if is_needed
        && reader.given("trusted_proxies").is_empty()
        && let Some(given) = reader.given("listen").pop()
    {
        let why = ValueError::NobodyTrusted;
        reader.mistakes.push(Mistake::Value { given, why });
    }
}
