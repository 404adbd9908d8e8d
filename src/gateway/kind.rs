//! What a body says that it is. It is priced as JSON in UTF-8: where `Content-Type` may make a
//! backend read something else of the same bytes, it goes no further.

use http::header::{self, HeaderMap, HeaderValue};

/// Whether there are two types, or a `charset` of other characters than UTF-8's: in UTF-7,
/// `+ACI-` is a quotation mark.
pub(super) fn has_other_characters(fields: &HeaderMap) -> bool {
    let mut types = fields.get_all(header::CONTENT_TYPE).iter();
    let Some(value) = types.next() else {
        return false;
    };
    let Ok(text) = std::str::from_utf8(value.as_bytes()) else {
        return true;
    };
    // A quoted parameter may hold the mark between two: then it is cut, and its rest is looked at.
    let mut parts = text.split([';', ',']);
    // Some look for the word anywhere.
    let says = |text: &str| text.to_ascii_lowercase().contains("charset");
    types.next().is_some()
        || parts.next().is_some_and(says)
        || parts.any(|parameter| {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            // `charset*` is one too (RFC 2231).
            let is_plain = name.trim().eq_ignore_ascii_case("charset") && is_utf8(value);
            says(parameter) && !is_plain
        })
}

fn is_utf8(charset: &str) -> bool {
    let charset = charset.trim().trim_matches(['"', '\'']);
    ["utf-8", "utf8", "us-ascii"]
        .iter()
        .any(|known| charset.eq_ignore_ascii_case(known))
}

/// Whether this is sent as a form, as `curl -d` does with everything.
pub(super) fn is_form(fields: &HeaderMap) -> bool {
    const FORM: &[u8] = b"application/x-www-form-urlencoded";
    fields
        .get(header::CONTENT_TYPE)
        .map(HeaderValue::as_bytes)
        .and_then(|value| value.trim_ascii_start().get(..FORM.len()))
        .is_some_and(|start| start.eq_ignore_ascii_case(FORM))
}

/// Whether JSON that is sent as a form has, for a reader of forms, fields of its own: the first
/// begins with the JSON's brace, and further ones after these marks.
pub(super) fn has_fields_of_a_form(fields: &HeaderMap, body: &[u8]) -> bool {
    body.iter().any(|b| matches!(b, b'&' | b';')) && is_form(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(types: &[&str]) -> HeaderMap {
        let value = |text: &&str| HeaderValue::from_bytes(text.as_bytes()).unwrap();
        let fields = types.iter().map(|text| (header::CONTENT_TYPE, value(text)));
        fields.collect()
    }

    #[test]
    fn only_the_characters_of_utf_8_are_read() {
        for good in [
            "application/json",
            "application/json; charset=utf-8",
            "application/json;CharSet=\"UTF-8\"; x=y",
            "text/plain; charset=us-ascii",
            "",
        ] {
            assert!(!has_other_characters(&of(&[good])), "{good}");
        }
        assert!(!has_other_characters(&of(&[])));
        for bad in [
            "application/json; charset=utf-7",
            "application/json; charset=\"UTF-7\"",
            "application/json ; charset = utf-16",
            "application/json; charset",
            "application/json; xcharset=utf-7",
            "application/json; x=charset=utf-7",
            "application/json charset=utf-16",
            "application/jsoncharset=utf-16",
            "application/json; charset=utf-8 charset=utf-7",
            "application/json; charset*=utf-8''utf-7",
            "application/json; charset=utf-8; charset=utf-7",
            "application/json, application/json; charset=utf-7",
            "application/json; x=\"a;charset=utf-7\"",
            "application/\u{e9}; charset=latin1",
        ] {
            assert!(has_other_characters(&of(&[bad])), "{bad}");
        }
        assert!(has_other_characters(&of(&[
            "application/json",
            "text/plain"
        ])));
    }

    #[test]
    fn a_form_has_fields_of_its_own_after_its_marks() {
        let form = of(&["Application/X-WWW-form-urlencoded; charset=utf-8"]);
        let json = of(&["application/json"]);
        let (plain, two) = (br#"{"to":["u"]}"#, br#"{"to":["u"],"x":"&to=u0&y="}"#);
        assert!(!has_fields_of_a_form(&form, plain));
        assert!(has_fields_of_a_form(&form, two));
        assert!(has_fields_of_a_form(&form, br#"{"x":";to=u"}"#));
        assert!(!has_fields_of_a_form(&json, two));
    }
}
