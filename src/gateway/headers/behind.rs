//! Which of a caller's fields go no further.

/// Fields of one hop (RFC 9110, 7.6.1). pingora frames the body anew.
const OF_THIS_HOP: &[&str] = &[
    "connection",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Fields by which a backend could read another path, method or host than the one that was
/// matched.
/// Not even from a trusted proxy: many pass on what their callers send.
const OTHER_READINGS: &[&str] = &[
    "base-url",
    "http-method",
    "http-method-override",
    "http-url",
    "method-override",
    "path-info",
    "path-translated",
    "proxy",
    "proxy-host",
    "proxy-url",
    "query-string",
    "redirect-url",
    "request-method",
    "request-uri",
    "script-name",
    "script-url",
    "unencoded-url",
    "url-override",
    "x-accel-internal",
    "x-accel-mapping",
    "x-accel-redirect",
    "x-backend-host",
    "x-destination-url",
    "x-envoy-internal",
    "x-envoy-original-dst-host",
    "x-envoy-original-method",
    "x-envoy-original-path",
    "x-forwarded-method",
    "x-forwarded-original-url",
    "x-forwarded-path",
    "x-forwarded-prefix",
    "x-forwarded-uri",
    "x-forwarded-url",
    "x-host",
    "x-http-destinationurl",
    "x-http-host-override",
    "x-http-method",
    "x-http-method-override",
    "x-http-path-override",
    "x-http-query-string",
    "x-http-url-override",
    "x-lighttpd-send-file",
    "x-method",
    "x-method-override",
    "x-ms-original-url",
    "x-original-host",
    "x-original-method",
    "x-original-path",
    "x-original-request-uri",
    "x-original-scheme",
    "x-original-uri",
    "x-original-url",
    "x-override-method",
    "x-override-url",
    "x-path",
    "x-path-info",
    "x-proxy-host",
    "x-proxy-url",
    "x-request-method",
    "x-request-path",
    "x-request-uri",
    "x-request-url",
    "x-rest-method",
    "x-rewrite-path",
    "x-rewrite-uri",
    "x-rewrite-url",
    "x-rewritten-url",
    "x-script-name",
    "x-sendfile",
    "x-sendfile-type",
    "x-target-uri",
    "x-tunnel-method",
    "x-uri",
    "x-url",
    "x-url-scheme",
    "x-waws-unencoded-url",
];

/// Fields that name a caller beside those that are set here.
const OTHER_CALLERS: &[&str] = &[
    "akamai-client-ip",
    "ali-cdn-real-ip",
    "auth-user",
    "cdn-real-ip",
    "cdn-src-ip",
    "cf-connecting-ip",
    "cf-connecting-ipv6",
    "cf-pseudo-ipv4",
    "client-address",
    "client-ip",
    "do-connecting-ip",
    "eo-client-ip",
    "eo-connecting-ip",
    "fastly-client-ip",
    "fly-client-ip",
    "forwarded-for",
    "http-cf-connecting-ip",
    "http-client-ip",
    "http-forwarded",
    "http-forwarded-for",
    "http-x-forwarded",
    "http-x-forwarded-for",
    "http-x-real-ip",
    "proxy-client-ip",
    "real-ip",
    "remote-addr",
    "remote-host",
    "remote-ident",
    "remote-ip",
    "remote-port",
    "remote-user",
    "source-ip",
    "ssl-client-cert",
    "ssl-client-verify",
    "true-client-ip",
    "wl-proxy-client-ip",
    "x-amzn-client-ip",
    "x-appengine-remote-addr",
    "x-appengine-user-ip",
    "x-authenticated-user",
    "x-aws-client-ip",
    "x-azure-clientip",
    "x-azure-socketip",
    "x-client-address",
    "x-client-cert",
    "x-client-dn",
    "x-client-ip",
    "x-clientip",
    "x-cluster-client-ip",
    "x-cluster-clientip",
    "x-envoy-external-address",
    "x-forward",
    "x-forward-for",
    "x-forwarded",
    "x-forwarded-client-cert",
    "x-forwarded-for-original",
    "x-forwarded-user",
    "x-forwarder-for",
    "x-from-ip",
    "x-ip",
    "x-ip-trail",
    "x-nf-client-connection-ip",
    "x-nginx-real-ip",
    "x-original-for",
    "x-original-forwarded-for",
    "x-original-ip",
    "x-original-remote-addr",
    "x-originally-forwarded-for",
    "x-originating-client-ip",
    "x-originating-ip",
    "x-proxyuser-ip",
    "x-real-client-ip",
    "x-real-user-ip",
    "x-realip",
    "x-remote-addr",
    "x-remote-host",
    "x-remote-ip",
    "x-remote-user",
    "x-sina-proxyuser",
    "x-source-ip",
    "x-ssl-client-cert",
    "x-ssl-client-s-dn",
    "x-ssl-client-verify",
    "x-true-client-ip",
    "x-true-ip",
    "x-user-ip",
    "x-vercel-forwarded-for",
    "x-yahoo-client-ip",
];

/// Fields of the call itself, or set here: no second spelling of theirs goes upstream.
const ONE_SPELLING: &[&str] = &["authorization", "host", "x-real-ip", "x-request-id"];

/// By first letter, the lengths of the names above, as bits: the usual names are told from them
/// without comparing.
static LENGTHS: [u64; 256] = lengths(&[OF_THIS_HOP, OTHER_READINGS, OTHER_CALLERS]);

const fn lengths(lists: &[&[&str]]) -> [u64; 256] {
    let mut lengths = [0; 256];
    let mut list = 0;
    while list < lists.len() {
        let mut at = 0;
        while at < lists[list].len() {
            let name = lists[list][at].as_bytes();
            lengths[name[0] as usize] |= 1 << name.len();
            at += 1;
        }
        list += 1;
    }
    lengths
}

/// Whether a name is in one of the lists above.
fn is_listed(name: &str) -> bool {
    let first = name.as_bytes().first().copied().unwrap_or_default();
    let lengths = LENGTHS[usize::from(first)];
    u32::try_from(name.len()).is_ok_and(|length| lengths.checked_shr(length).unwrap_or(0) & 1 == 1)
        && [OF_THIS_HOP, OTHER_READINGS, OTHER_CALLERS]
            .iter()
            .any(|list| list.contains(&name))
}

/// Whether a field of the caller's goes no further.
pub(super) fn stays_behind(name: &str, trusted: bool) -> bool {
    // A trusted proxy's host and port are believed.
    let listed = |name: &str| is_listed(name) || !trusted && name.starts_with("x-forwarded-");
    let bytes = name.as_bytes();
    if bytes
        .iter()
        .all(|b| b.is_ascii_alphanumeric() || *b == b'-')
    {
        return listed(name);
    }
    // A backend of the CGI kind reads `X_Original_URL` as `X-Original-URL`.
    let folded: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    listed(&folded)
        || ONE_SPELLING.contains(&&*folded)
        || ["content-", "x-forwarded-"]
            .iter()
            .any(|start| folded.starts_with(start))
}

#[cfg(test)]
mod tests;
