//! A client of one gateway: one request after the other, each on a connection of its own.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ::http::Request;
use ::http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, RETRY_AFTER};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::PlanError;

/// For one request and its answer.
const TIMEOUT: Duration = Duration::from_secs(60);
/// The largest answer.
const MAX_ANSWER: usize = 16 * 1024 * 1024;

/// Where somebody listens.
#[derive(Clone)]
pub(super) struct Target {
    host: String,
    port: u16,
    tls: Option<Arc<ClientConfig>>,
}

impl Target {
    /// In the clear.
    pub(super) fn plain(addr: SocketAddr) -> Self {
        Self {
            host: addr.ip().to_string(),
            port: addr.port(),
            tls: None,
        }
    }

    /// `http://host:port` or `https://host:port`; `ca`: what vouches for the latter.
    pub(super) fn parse(text: &str, ca: Option<&Path>) -> Result<Self, PlanError> {
        let wrong = || {
            PlanError::argument(format!(
                "{text:?} is no gateway; write http://host:port or https://host:port"
            ))
        };
        let uri: ::http::Uri = text.parse().map_err(|_| wrong())?;
        let is_root = matches!(uri.path(), "" | "/") && uri.query().is_none();
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(wrong()),
        };
        let host = uri.host().filter(|_| is_root).ok_or_else(wrong)?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        Ok(Self {
            host: host.to_owned(),
            port: uri.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            tls: tls.then(|| config(ca)).transpose()?,
        })
    }

    fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

fn config(ca: Option<&Path>) -> Result<Arc<ClientConfig>, PlanError> {
    let path = ca.ok_or_else(|| {
        PlanError::argument("over https, write --gateway-ca FILE: what vouches for the gateway")
    })?;
    let wrong = |why: String| PlanError::argument(format!("{}: {why}", path.display()));
    let pem = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|_| wrong("no list of certificates".to_owned()))?;
        let added = roots.add(certificate);
        added.map_err(|_| wrong("a certificate in it cannot be read".to_owned()))?;
    }
    if roots.is_empty() {
        return Err(wrong("there is no certificate in it".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|why| PlanError::argument(why.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// An answer.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) retry_after: Option<u64>,
    body: Bytes,
}

impl Answer {
    pub(super) fn json(&self, path: &str) -> Result<Value, PlanError> {
        serde_json::from_slice(&self.body).map_err(|why| PlanError::Listing {
            path: path.to_owned(),
            why: format!("the answer is no JSON: {why}"),
        })
    }
}

/// Who asks.
pub(super) struct Client {
    target: Target,
    whom: String,
}

impl Client {
    pub(super) fn new(target: Target, whom: &str) -> Self {
        let whom = format!("{whom} {}", target.authority());
        Self { target, whom }
    }

    /// What an answer that is none says.
    pub(super) fn refused(&self, asked: &str, answer: &Answer) -> PlanError {
        let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let said = ["error_description", "error"]
            .into_iter()
            .find_map(|key| body[key].as_str());
        PlanError::Refused {
            whom: self.whom.clone(),
            asked: asked.to_owned(),
            status: answer.status,
            why: said.unwrap_or("nothing that can be read").to_owned(),
        }
    }

    pub(super) async fn send(
        &self,
        method: &str,
        path: &str,
        token: Option<&str>,
        body: String,
    ) -> Result<Answer, PlanError> {
        let unreachable = |why: String| PlanError::Unreachable {
            whom: self.whom.clone(),
            why,
        };
        match tokio::time::timeout(TIMEOUT, self.exchange(method, path, token, body)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(why)) => Err(unreachable(why)),
            Err(_) => Err(unreachable("no answer in a minute".to_owned())),
        }
    }

    async fn exchange(
        &self,
        method: &str,
        path: &str,
        token: Option<&str>,
        body: String,
    ) -> Result<Answer, String> {
        let Target { host, port, tls } = &self.target;
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, self.target.authority());
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(Full::new(Bytes::from(body)))
            .map_err(|why| why.to_string())?;
        let stream = TcpStream::connect((host.as_str(), *port))
            .await
            .map_err(|why| why.to_string())?;
        let answer = match tls {
            None => over(TokioIo::new(stream), request).await?,
            Some(config) => {
                let name = ServerName::try_from(host.clone()).map_err(|why| why.to_string())?;
                let connector = TlsConnector::from(config.clone());
                let stream = connector.connect(name, stream).await;
                over(
                    TokioIo::new(stream.map_err(|why| why.to_string())?),
                    request,
                )
                .await?
            }
        };
        Ok(answer)
    }
}

async fn over<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Answer, String>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(stream)
        .await
        .map_err(|why| why.to_string())?;
    tokio::spawn(connection);
    let response = sender
        .send_request(request)
        .await
        .map_err(|why| why.to_string())?;
    let status = response.status().as_u16();
    let retry_after = response.headers().get(RETRY_AFTER);
    let retry_after = retry_after.and_then(|value| value.to_str().ok()?.parse().ok());
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect();
    Ok(Answer {
        status,
        retry_after,
        body: body.await.map_err(|why| why.to_string())?.to_bytes(),
    })
}

/// Percent-encoded, for a path's segment or a query's value.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            true => out.push(char::from(byte)),
            false => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
