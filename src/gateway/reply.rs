//! Answers of our own. The only module that knows status codes and the service's error texts
//! (`service.md` of the documents).

use std::borrow::Cow;

use http::StatusCode;
use http::header::{self, HeaderName, HeaderValue};
use http::response::Parts;
use pingora::{ErrorType, OrErr};

use super::field::{Value, whole_seconds};
use crate::admission::history::Expired;
use crate::admission::totals::Full;
use crate::admission::{Call, Denied, Reject};
use crate::apps::AppPlan;
use crate::identity::token::TokenError;
use crate::limit::total::Kind;
use crate::limit::{Denial, Limit, Window};
use crate::payload::{Measure, Why};
use crate::route::pricing::{Cap, PriceError};
use crate::settings::AnswerForm;
use crate::spec::Ruleset;
use crate::spec::payload::{Answer, Refused};
use crate::text::{push_escaped, push_number};

/// An answer of our own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// `error`.
    pub error: Cow<'static, str>,
    /// `exception`.
    pub exception: Cow<'static, str>,
    /// `error_description`.
    pub description: Cow<'static, str>,
    /// The limit that was hit.
    pub limit: Option<String>,
    /// The app whose limit it is; only ever the caller's own.
    pub app: Option<String>,
    /// The figure of a limit of what a call may carry.
    pub most: Option<u64>,
    /// `Retry-After`, seconds. Never more than the window, which can be a fiftieth of it too
    /// little: see [`crate::limit::sliding`].
    pub retry_after: Option<u64>,
    /// `Allow`.
    pub allow: Option<String>,
    /// `Location`.
    pub location: Option<String>,
}

/// `error` of a token that is not accepted.
const BAD_TOKEN: &str = "auth_bad_access_token";

impl Reply {
    fn new(
        status: u16,
        error: &'static str,
        exception: &'static str,
        description: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            status,
            error: error.into(),
            exception: exception.into(),
            description: description.into(),
            limit: None,
            app: None,
            most: None,
            retry_after: None,
            allow: None,
            location: None,
        }
    }

    /// The service's answer for a call over this limit.
    #[must_use]
    pub fn denied(limit: &Limit, denied: &Denied, app: Option<&str>) -> Self {
        let call_rate = || {
            Self::new(
                429,
                "reach_limit",
                "RateLimitException",
                "This request has reached api limit",
            )
        };
        // The broadcast answers are those of the day limits; any shorter window is a call rate.
        let is_day = matches!(limit.window, Window::Day(_));
        let mut reply = match limit.denial {
            Denial::CallRate => call_rate(),
            Denial::BroadcastUsers | Denial::BroadcastRooms if !is_day => call_rate(),
            Denial::MessageCount => Self::new(
                403,
                "message_send_error",
                "MessageSendException",
                "message send reach limit",
            ),
            Denial::BroadcastUsers => Self::new(
                403,
                "forbidden_op",
                "ForbiddenOpException",
                "online user broadcast limit exceeded",
            ),
            Denial::BroadcastRooms => Self::new(
                403,
                "forbidden_op",
                "ForbiddenOpException",
                "chatroom broadcast limit exceeded",
            ),
            Denial::Push => Self::new(403, "LimitException", "LimitException", "limit request"),
        };
        reply.limit = Some(limit.name.clone().into());
        reply.app = app.map(str::to_owned);
        reply.retry_after = denied.retry_after.map(whole_seconds);
        reply
    }

    /// The service's answer for a call that a total of the app has no room for. Of attributes its
    /// words are not known.
    #[must_use]
    pub fn full(full: &Full, plan: Option<AppPlan>, app: &str) -> Self {
        let exceed = |description: String| {
            Self::new(403, "exceed_limit", "ExceedLimitException", description)
        };
        let whose = full.whose.as_deref().unwrap_or_default();
        let mut reply = match full.kind {
            Kind::Users => Self::new(
                429,
                "resource_limited",
                "ResourceLimitedException",
                format!(
                    "You have exceeded the limit of the {} edition. Please upgrade to higher edition.",
                    plan.map_or("current", AppPlan::as_str)
                ),
            ),
            Kind::Groups => exceed(format!("appKey:{app} has create too many groups!")),
            Kind::Chatrooms => exceed(format!("appKey:{app} has create too many chatrooms!")),
            Kind::JoinedGroups => exceed(format!("user {whose} has joined too many groups!")),
            Kind::JoinedChatrooms => exceed(format!("user {whose} has joined too many chatrooms!")),
            Kind::GroupMembers => exceed("members size is greater than max user size !".to_owned()),
            Kind::Friends => exceed("user contact number exceed limit".to_owned()),
            Kind::UserAttributes => exceed(format!("appKey:{app} user attributes exceed limit")),
        };
        reply.limit = Some(full.kind.limit_name().to_owned());
        reply.app = Some(app.to_owned());
        reply
    }

    /// The service's answer for a call that is bad, unknown or unauthenticated. `target` is the
    /// call's path.
    #[must_use]
    pub fn rejected(reject: &Reject, target: &str) -> Self {
        match reject {
            Reject::Path(error) => Self::new(
                400,
                "illegal_argument",
                "IllegalArgumentException",
                error.to_string(),
            ),
            Reject::NotFound | Reject::UnknownApp => Self::new(
                404,
                "organization_application_not_found",
                "OrganizationApplicationNotFoundException",
                format!("Could not find application for org/app from URI: {target}"),
            ),
            Reject::Suspended => forbidden("This app is suspended."),
            Reject::Address => forbidden("This app may not be called from this address."),
            Reject::MethodNotAllowed { allow } => {
                let mut reply = Self::new(
                    405,
                    "method_not_allowed",
                    "HttpRequestMethodNotSupportedException",
                    format!("This path allows: {allow}"),
                );
                reply.allow = Some(allow.clone());
                reply
            }
            Reject::Unauthenticated => Self::new(
                401,
                "unauthorized",
                "UnauthorizedException",
                "Unable to authenticate",
            ),
            Reject::Token(error) => bad_token(match error {
                TokenError::Corrupt | TokenError::Signature => {
                    "Unable to authenticate due to corrupt access token"
                }
                TokenError::Expired => "Unable to authenticate due to expired access token",
                _ => "Unable to authenticate",
            }),
            Reject::TokenRefused => bad_token("Unable to authenticate"),
            Reject::Expired(expired) => not_kept(expired),
            Reject::Payload(refused) => carries_too_much(refused),
            Reject::Body(PriceError::Empty { field }) => {
                message_error(400, format!("param {field} can't be empty"))
            }
            Reject::Body(PriceError::Malformed) => Self::malformed_body(),
            Reject::Body(PriceError::TooMany(Cap { max, field })) => message_error(
                400,
                format!("params {field}'s size can't exceed limit {max}"),
            ),
            Reject::Body(PriceError::TooManyNames(Cap { max, field })) => Self::new(
                400,
                "illegal_argument",
                "IllegalArgumentException",
                format!("params {field}'s size can't exceed limit {max}"),
            ),
        }
    }

    /// A body that is not what the endpoint documents.
    #[must_use]
    pub fn malformed_body() -> Self {
        Self::new(
            400,
            "invalid_request_body",
            "InvalidRequestBodyException",
            "Request body is invalid. Please check body is correct.",
        )
    }

    /// A counted body over the size that is read.
    #[must_use]
    pub fn body_too_large() -> Self {
        message_error(400, "message is too large")
    }

    /// A body over the size that is read before the decision: of a message, or of another call.
    #[must_use]
    pub fn too_large_to_read(rules: &Ruleset, call: &Call) -> Self {
        match call.has_message(rules) {
            true => Self::body_too_large(),
            false => Self::file_too_large(),
        }
    }

    /// A body over the size of its route.
    #[must_use]
    pub fn file_too_large() -> Self {
        Self::new(
            413,
            "file exceeding maximum limit",
            "FileExceedingMaximumLimitException",
            "the file size exceeds the maximum limit.",
        )
    }

    /// A body that did not arrive in time.
    #[must_use]
    pub fn body_timeout() -> Self {
        Self::new(
            408,
            "request_timeout",
            "RequestTimeoutException",
            "The request body did not arrive in time.",
        )
    }

    /// A head that did not arrive in time.
    #[must_use]
    pub fn head_timeout() -> Self {
        Self::new(
            408,
            "request_timeout",
            "RequestTimeoutException",
            "The request did not arrive in time.",
        )
    }

    /// A head that is larger than is read.
    #[must_use]
    pub fn head_too_large() -> Self {
        Self::new(
            431,
            "request_header_fields_too_large",
            "RequestHeaderFieldsTooLargeException",
            "The request's header fields are too large or too many.",
        )
    }

    /// A target that is longer than is read.
    #[must_use]
    pub fn target_too_long() -> Self {
        Self::new(
            414,
            "uri_too_long",
            "UriTooLongException",
            "The request's target is too long.",
        )
    }

    /// A call in the clear where HTTPS is asked for.
    #[must_use]
    pub fn https_only() -> Self {
        Self::new(
            403,
            "forbidden_op",
            "ForbiddenOpException",
            "This service is reached over HTTPS only.",
        )
    }

    /// A call in the clear that is sent to HTTPS.
    #[must_use]
    pub fn to_https(location: String) -> Self {
        let mut reply = Self::new(
            308,
            "moved_permanently",
            "MovedPermanentlyException",
            "This service is reached over HTTPS only.",
        );
        reply.location = Some(location);
        reply
    }

    /// A counted body in a coding that cannot be counted.
    #[must_use]
    pub fn unsupported_encoding() -> Self {
        Self::new(
            415,
            "unsupported_media_type",
            "UnsupportedMediaTypeException",
            "This endpoint's bodies are looked into: it accepts no Content-Encoding, one Content-Type, and UTF-8.",
        )
    }

    /// An `Expect` that nobody here can meet.
    #[must_use]
    pub fn expectation_failed() -> Self {
        Self::new(
            417,
            "expectation_failed",
            "ExpectationFailedException",
            "Expect allows 100-continue alone.",
        )
    }

    /// The shield's answer.
    #[must_use]
    pub fn shielded() -> Self {
        let mut reply = Self::new(
            429,
            "reach_limit",
            "RateLimitException",
            "This request has reached api limit",
        );
        reply.retry_after = Some(1);
        reply
    }

    /// Protecting ourselves.
    #[must_use]
    pub fn shed(why: &'static str) -> Self {
        let mut reply = Self::new(
            503,
            "service_unavailable",
            "ServiceUnavailableException",
            why,
        );
        reply.retry_after = Some(1);
        reply
    }

    /// The upstream had the call, and broke off.
    #[must_use]
    pub fn broken_off() -> Self {
        let mut reply = Self::bad_gateway();
        reply.description = "The upstream closed the connection before it had answered.".into();
        reply
    }

    /// The upstream could not be reached.
    #[must_use]
    pub fn bad_gateway() -> Self {
        Self::new(
            502,
            "bad_gateway",
            "BadGatewayException",
            "The upstream could not be reached.",
        )
    }

    /// The upstream did not answer in time.
    #[must_use]
    pub fn gateway_timeout() -> Self {
        Self::new(
            504,
            "gateway_timeout",
            "GatewayTimeoutException",
            "The upstream did not answer in time.",
        )
    }

    /// Plain HTTP where TLS is spoken.
    #[must_use]
    pub fn plain_http() -> Self {
        let mut reply = Self::bad_request();
        reply.description = "A plain HTTP request was sent to an HTTPS port.".into();
        reply
    }

    /// A call for a tunnel.
    #[must_use]
    pub fn no_tunnel() -> Self {
        let mut reply = Self::new(
            405,
            "method_not_allowed",
            "HttpRequestMethodNotSupportedException",
            "There is no tunnel here: CONNECT is not served.",
        );
        reply.allow = Some("DELETE, GET, HEAD, OPTIONS, POST, PUT".to_owned());
        reply
    }

    /// A request that pingora refused.
    #[must_use]
    pub fn bad_request() -> Self {
        Self::new(
            400,
            "illegal_argument",
            "IllegalArgumentException",
            "The request is malformed.",
        )
    }

    /// A fault of ours.
    #[must_use]
    pub fn internal() -> Self {
        Self::new(
            500,
            "internal_error",
            "InternalException",
            "The gateway failed to handle this request.",
        )
    }

    /// The body's media type.
    #[must_use]
    pub fn content_type(form: AnswerForm) -> &'static str {
        match form {
            AnswerForm::Native => "application/json",
            AnswerForm::Problem => "application/problem+json",
        }
    }

    /// The head, but for the fields that every answer carries.
    ///
    /// # Errors
    /// When the status is none.
    pub fn head(&self, form: AnswerForm, length: usize) -> pingora::Result<Parts> {
        let (mut head, ()) = http::Response::new(()).into_parts();
        head.status = StatusCode::from_u16(self.status)
            .or_err(ErrorType::InvalidHTTPHeader, "invalid status")?;
        head.headers.reserve(10);
        self.fields(form, length, |name, value| {
            head.headers.insert(name, value.into());
        });
        Ok(head)
    }

    /// The head's fields, each once.
    pub(super) fn fields(
        &self,
        form: AnswerForm,
        length: usize,
        mut put: impl FnMut(HeaderName, Value<'_>),
    ) {
        let kind = HeaderValue::from_static(Self::content_type(form));
        put(header::CONTENT_TYPE, Value::Field(&kind));
        put(header::CONTENT_LENGTH, Value::Number(length as u64));
        if let Some(seconds) = self.retry_after {
            put(header::RETRY_AFTER, Value::Number(seconds));
        }
        let field = |text: &Option<String>| text.as_deref()?.parse::<HeaderValue>().ok();
        if let Some(allow) = field(&self.allow) {
            put(header::ALLOW, Value::Field(&allow));
        }
        if let Some(location) = field(&self.location) {
            put(header::LOCATION, Value::Field(&location));
        }
        if self.status == 401 {
            // RFC 6750, 3.1.
            let challenge = match &*self.error {
                BAD_TOKEN => "Bearer error=\"invalid_token\"",
                _ => "Bearer",
            };
            let challenge = HeaderValue::from_static(challenge);
            put(header::WWW_AUTHENTICATE, Value::Field(&challenge));
        }
    }

    /// The body. `timestamp` in Unix milliseconds, `duration` in milliseconds.
    #[must_use]
    pub fn body(&self, form: AnswerForm, timestamp: u64, duration: u64) -> Vec<u8> {
        // One allocation for the usual answer.
        let mut json = Vec::with_capacity(384);
        match form {
            AnswerForm::Native => {
                text(&mut json, b"{\"error\":\"", &self.error);
                text(&mut json, b",\"exception\":\"", &self.exception);
                number(&mut json, b",\"timestamp\":", timestamp);
                number(&mut json, b",\"duration\":", duration);
                text(&mut json, b",\"error_description\":\"", &self.description);
            }
            AnswerForm::Problem => {
                let title = StatusCode::from_u16(self.status)
                    .ok()
                    .and_then(|status| status.canonical_reason());
                text(&mut json, b"{\"type\":\"", "about:blank");
                text(&mut json, b",\"title\":\"", title.unwrap_or("Error"));
                number(&mut json, b",\"status\":", self.status.into());
                text(&mut json, b",\"detail\":\"", &self.description);
                text(&mut json, b",\"error\":\"", &self.error);
                number(&mut json, b",\"timestamp\":", timestamp);
            }
        }
        if let Some(limit) = &self.limit {
            text(&mut json, b",\"limit\":\"", limit);
        }
        if let Some(app) = &self.app {
            text(&mut json, b",\"app\":\"", app);
        }
        if let Some(most) = self.most {
            number(&mut json, b",\"max\":", most);
        }
        json.push(b'}');
        json
    }
}

/// A member of a JSON object: what stands before its text, the text, the closing quote.
fn text(json: &mut Vec<u8>, before: &[u8], value: &str) {
    json.extend_from_slice(before);
    push_escaped(json, value);
    json.push(b'"');
}

/// A member of a JSON object that is a number.
fn number(json: &mut Vec<u8>, before: &[u8], value: u64) {
    json.extend_from_slice(before);
    push_number(json, value);
}

/// The service's own words for an hour that it does not keep. Its own status is 400, which is that
/// of a mistake too.
fn not_kept(expired: &Expired) -> Reply {
    let answer = &expired.answer;
    let text = answer.description.as_deref().unwrap_or(
        "illegal arguments: appkey: {app}, time: {time}, maybe chat message history is expired or unstored",
    );
    let time = expired.hour.to_string();
    let mut description = String::with_capacity(text.len() + expired.app.len());
    let mut rest = text;
    // What has been put in is not searched.
    while let Some((before, after)) = rest.split_once('{') {
        description.push_str(before);
        rest = if let Some(after) = after.strip_prefix("app}") {
            description.push_str(&expired.app);
            after
        } else if let Some(after) = after.strip_prefix("time}") {
            description.push_str(&time);
            after
        } else {
            description.push('{');
            after
        };
    }
    description.push_str(rest);
    let mut reply = Reply::new(
        answer.status.unwrap_or(404),
        "illegal_argument",
        "java.lang.IllegalArgumentException",
        description,
    );
    if let Some(error) = &answer.error {
        reply.error = error.to_string().into();
    }
    if let Some(exception) = &answer.exception {
        reply.exception = exception.to_string().into();
    }
    reply
}

/// The service's own words where they are known; which limit it was stands beside them.
fn carries_too_much(refused: &Refused) -> Reply {
    let Refused { place, found, .. } = refused;
    let argument = |description: String| {
        Reply::new(
            400,
            "illegal_argument",
            "IllegalArgumentException",
            description,
        )
    };
    let mut reply = match (refused.why, refused.answer, refused.most) {
        (Why::Character, ..) | (_, _, None) => argument(format!(
            "param {place} may have the characters {} alone",
            refused.allow.as_deref().unwrap_or_default()
        )),
        (Why::TooMuch, Answer::Message, _) => message_error(400, "message is too large"),
        (Why::TooMuch, Answer::File, _) => Reply::file_too_large(),
        (Why::TooMuch, Answer::Users, Some(most)) => argument(format!(
            "Request body array size[{found}] had almost reached or been greater than the upper range value[{most}]"
        )),
        (Why::TooMuch, Answer::Friends, Some(most)) => {
            argument(format!("request user over flow limit:{most}."))
        }
        (Why::TooMuch, Answer::Argument, Some(most)) => argument(match refused.measure {
            Measure::Entries => format!("params {place}'s size can't exceed limit {most}"),
            measure => {
                let unit = if measure == Measure::Characters {
                    "characters"
                } else {
                    "bytes"
                };
                format!("param {place}'s length can't exceed limit {most} {unit}")
            }
        }),
    };
    reply.limit = Some(refused.name.to_string());
    reply.most = refused.most;
    reply
}

fn bad_token(description: &'static str) -> Reply {
    Reply::new(401, BAD_TOKEN, "AuthBadAccessTokenException", description)
}

fn forbidden(description: &'static str) -> Reply {
    Reply::new(403, "forbidden_op", "ForbiddenOpException", description)
}

fn message_error(status: u16, description: impl Into<Cow<'static, str>>) -> Reply {
    Reply::new(
        status,
        "message_send_error",
        "MessageSendException",
        description,
    )
}
