"""Strict schemas of what is no part of Kubernetes itself: the fields that are used here, as their
makers' definitions have them. Any other field is a mistake, or belongs here."""

STRING = {"type": "string", "minLength": 1}
DURATION = {"type": "string", "pattern": "^([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?$", "minLength": 2}
PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", "maxLength": 253}


def record(required=(), **fields):
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(required),
        "properties": fields,
    }


def several(of, least=1):
    return {"type": "array", "items": of, "minItems": least}


def kind(api_version, name, spec):
    metadata = record(["name"], name=NAME, namespace=NAME, labels=STRINGS, annotations=STRINGS)
    schema = record(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion={"const": api_version},
        kind={"const": name},
        metadata=metadata,
        spec=spec,
    )
    return (api_version, name), schema


SELECTOR = record(matchLabels=STRINGS)
ENDPOINT = record(
    ["port"],
    port=STRING,
    path=STRING,
    interval=DURATION,
    scrapeTimeout=DURATION,
    scheme={"enum": ["http", "https"]},
    authorization=record(
        type=STRING, credentials=record(["key"], name=NAME, key=STRING, optional={"type": "boolean"})
    ),
)
RULE = record(
    ["expr"],
    alert=STRING,
    record=STRING,
    expr={"type": ["string", "integer"]},
    labels=STRINGS,
    annotations=STRINGS,
    keep_firing_for=DURATION,
    **{"for": DURATION},
)
PARENT = record(["name"], name=NAME, namespace=NAME, sectionName=NAME, port=PORT)
BACKEND = record(["name", "port"], name=NAME, namespace=NAME, port=PORT, weight={"type": "integer", "minimum": 0})
PATH = record(["type", "value"], type={"enum": ["Exact", "PathPrefix"]}, value=STRING)
HEADERS = several(record(["name", "value"], name=STRING, value=STRING))
FILTER = record(
    ["type"],
    type={"enum": ["RequestHeaderModifier", "RequestRedirect"]},
    requestRedirect=record(
        scheme={"enum": ["http", "https"]}, port=PORT, statusCode={"enum": [301, 302, 303, 307, 308]}
    ),
    requestHeaderModifier=record(set=HEADERS, add=HEADERS, remove=several(STRING)),
)
ISSUER_REF = record(["name"], name=NAME, kind={"enum": ["Issuer", "ClusterIssuer"]}, group=STRING)
ISSUER = record(
    selfSigned=record(),
    ca=record(["secretName"], secretName=NAME),
    acme=record(
        ["server", "privateKeySecretRef", "solvers"],
        server={"type": "string", "format": "uri"},
        email=STRING,
        privateKeySecretRef=record(["name"], name=NAME),
        solvers=several({"type": "object"}),
    ),
)

SCHEMAS = dict(
    [
        kind(
            "monitoring.coreos.com/v1",
            "PodMonitor",
            record(["selector", "podMetricsEndpoints"], selector=SELECTOR, podMetricsEndpoints=several(ENDPOINT)),
        ),
        kind(
            "monitoring.coreos.com/v1",
            "ServiceMonitor",
            record(["selector", "endpoints"], selector=SELECTOR, endpoints=several(ENDPOINT)),
        ),
        kind(
            "monitoring.coreos.com/v1",
            "PrometheusRule",
            record(
                ["groups"],
                groups=several(record(["name", "rules"], name=STRING, interval=DURATION, rules=several(RULE))),
            ),
        ),
        kind(
            "gateway.networking.k8s.io/v1",
            "Gateway",
            record(
                ["gatewayClassName", "listeners"],
                gatewayClassName=NAME,
                listeners=several(
                    record(
                        ["name", "port", "protocol"],
                        name=NAME,
                        port=PORT,
                        protocol={"enum": ["HTTP", "HTTPS", "TLS", "TCP", "UDP"]},
                        hostname=STRING,
                        tls=record(
                            mode={"enum": ["Terminate", "Passthrough"]},
                            certificateRefs=several(record(["name"], name=NAME, kind=STRING, group={"type": "string"})),
                        ),
                        allowedRoutes=record(
                            namespaces=record(**{"from": {"enum": ["All", "Same", "Selector"]}})
                        ),
                    )
                ),
            ),
        ),
        kind(
            "gateway.networking.k8s.io/v1",
            "HTTPRoute",
            record(
                ["parentRefs", "rules"],
                parentRefs=several(PARENT),
                hostnames=several(STRING),
                rules=several(
                    record(
                        matches=several(record(path=PATH)),
                        filters=several(FILTER),
                        backendRefs=several(BACKEND),
                        timeouts=record(request=DURATION, backendRequest=DURATION),
                    )
                ),
            ),
        ),
        kind("cert-manager.io/v1", "Issuer", ISSUER),
        kind("cert-manager.io/v1", "ClusterIssuer", ISSUER),
        kind(
            "cert-manager.io/v1",
            "Certificate",
            record(
                ["secretName", "issuerRef", "dnsNames"],
                secretName=NAME,
                dnsNames=several(STRING),
                duration=DURATION,
                renewBefore=DURATION,
                privateKey=record(
                    algorithm={"enum": ["RSA", "ECDSA", "Ed25519"]},
                    size={"type": "integer"},
                    rotationPolicy={"enum": ["Never", "Always"]},
                ),
                issuerRef=ISSUER_REF,
                isCA={"type": "boolean"},
                commonName=STRING,
            ),
        ),
    ]
)
