//! The `Content-Type` of a multipart body.

/// The longest boundary (RFC 2046), in characters.
const MAX_BOUNDARY: usize = 70;

/// The boundary that a `Content-Type` names; `None`: it is not `multipart/form-data`, and all of
/// it is the file, to whoever finds parts in it too. An error: its parts cannot be told.
pub(in crate::payload) fn boundary(content_type: &[u8]) -> Option<Result<Vec<u8>, ()>> {
    let text = String::from_utf8_lossy(content_type);
    let (kind, parameters) = text.split_once(';').unwrap_or((&text, ""));
    let is_form_data = kind.trim().eq_ignore_ascii_case("multipart/form-data");
    is_form_data.then(|| one_of(parameters).ok_or(()))
}

/// The one boundary of these parameters.
fn one_of(parameters: &str) -> Option<Vec<u8>> {
    let mut found = None;
    // What is quoted has none of these marks, or it is refused.
    for parameter in parameters.split(';').map(str::trim) {
        if parameter.is_empty() {
            continue;
        }
        let (name, value) = parameter.split_once('=')?;
        let quoted = value
            .strip_prefix('"')
            .and_then(|rest| rest.strip_suffix('"'));
        if !name.eq_ignore_ascii_case("boundary") {
            let has_end = |text: &str| text.contains(['"', '\\', ',']);
            // `boundary*` is one too (RFC 2231), and some look for the word wherever it stands.
            let is_other = parameter.to_ascii_lowercase().contains("boundary");
            if is_other || has_end(name) || has_end(quoted.unwrap_or(value)) {
                return None;
            }
            continue;
        }
        let is_plain = |b: u8| match b {
            // Comments and the ends of lists to some, where they are not quoted.
            b' ' | b'(' | b')' => quoted.is_some(),
            b => b.is_ascii_alphanumeric() || b"'+_-./:=?".contains(&b),
        };
        let value = quoted.unwrap_or(value);
        let is_sane = (1..=MAX_BOUNDARY).contains(&value.len())
            && value.bytes().all(is_plain)
            && value.trim() == value
            && !value.to_ascii_lowercase().contains("boundary=");
        // Of two, one backend reads the first and another the last.
        if !is_sane || found.replace(value.as_bytes().to_vec()).is_some() {
            return None;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(parameters: &str) -> Option<Result<String, ()>> {
        let boundary = boundary(format!("multipart/form-data{parameters}").as_bytes())?;
        Some(boundary.map(|bytes| String::from_utf8(bytes).unwrap()))
    }

    #[test]
    fn a_boundary_is_named_once_and_in_one_way() {
        let longest = "b".repeat(70);
        for (good, boundary) in [
            ("; boundary=b", "b"),
            (";boundary=\"b\"", "b"),
            (" ; Boundary=b ;", "b"),
            (
                "; boundary=----WebKitFormBoundaryAB12",
                "----WebKitFormBoundaryAB12",
            ),
            ("; boundary=\"==b==\"; charset=\"utf-8\"", "==b=="),
            ("; charset=utf-8; boundary=a=b", "a=b"),
            ("; boundary=\"a (b)\"", "a (b)"),
            (&format!("; boundary={longest}"), &longest),
        ] {
            assert_eq!(of(good), Some(Ok(boundary.to_owned())), "{good}");
        }
        for bad in [
            "",
            ";",
            "; boundary",
            "; boundary=",
            "; boundary=\"\"",
            "; boundary =b",
            "; boundary= b",
            "; boundary=a; boundary=b",
            "; boundary=a; boundary=a",
            "; boundary=a; BOUNDARY=b",
            "; boundary*=utf-8''a",
            "; boundary=a; boundary*=b",
            "; boundary=a; boundary*0=b",
            "; boundary*0=a; boundary*1=b",
            "; boundaryX=b; boundary=a",
            "; xboundary=b; boundary=a",
            "; boundary; boundary=a",
            "; x=boundary; boundary=a",
            "; boundary=aboundary=b",
            "; x=\"; boundary=b\"; boundary=a",
            "; x=\"a\\\"; boundary=b; y=\"; boundary=c",
            "; x=\"; boundary=b; y=\"",
            "; boundary=\"a",
            "; boundary=a\"",
            "; boundary=\"a\\b\"",
            "; boundary=\"a\\\"b\"",
            "; boundary=\"a\"b",
            "; boundary=\" a\"",
            "; boundary=\"a \"",
            "; boundary=a b",
            "; boundary=a(b)",
            "; boundary=a,b",
            "; boundary=\"a,b\"",
            "; x=y, boundary=b; boundary=a",
            "; boundary=a\u{e4}",
            "; boundary=a\tb",
            &format!("; boundary={longest}b"),
        ] {
            assert_eq!(of(bad), Some(Err(())), "{bad}");
        }
    }

    #[test]
    fn any_other_type_is_a_file() {
        for other in [
            &b"image/png"[..],
            b"multipart/mixed; boundary=a",
            b"multipart/form-data, x; boundary=a",
            b"text/plain; multipart/form-data; boundary=a",
            b"",
            b"\xff",
        ] {
            assert_eq!(boundary(other), None);
        }
        assert_eq!(
            boundary(b" MULTIPART/Form-Data ;boundary=a"),
            Some(Ok(b"a".to_vec()))
        );
    }
}
