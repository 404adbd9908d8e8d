//! The head of a part: which field it is.

use crate::payload::text::Hash;

/// The most fields of a head.
const MAX_FIELDS: usize = 16;

/// The name that a part's head gives it, with its last blank line; inside, `None`: it gives none.
/// `None`: it could be read in two ways.
pub(super) fn read(head: &[u8]) -> Option<Option<Hash>> {
    let text = head.strip_suffix(b"\r\n").unwrap_or(head);
    let mut name = None;
    let mut seen: Vec<Vec<u8>> = Vec::new();
    for line in text.split_inclusive(|b| *b == b'\n') {
        // A break of half a line is one to some; so is nothing to others, and a zero the end.
        let line = line.strip_suffix(b"\r\n")?;
        let is_text = |b: &u8| *b >= b' ' && *b != 0x7F || *b == b'\t';
        let at = line.iter().position(|b| *b == b':')?;
        let (field, value) = (line.get(..at)?, line.get(at + 1..)?.trim_ascii());
        // A fold begins with a blank, a delimiter with dashes, and a name ends at its colon.
        let is_named = field.first().is_some_and(u8::is_ascii_alphanumeric)
            && field
                .iter()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        let field = field.to_ascii_lowercase();
        if !is_named
            || !line.iter().all(is_text)
            || seen.len() == MAX_FIELDS
            || seen.contains(&field)
        {
            return None;
        }
        let is_sane = match field.as_slice() {
            b"content-disposition" => {
                name = Some(disposition(value)?);
                true
            }
            // What is decoded has another length, and what has parts of its own other names.
            b"content-transfer-encoding" => [&b"7bit"[..], b"8bit", b"binary"]
                .iter()
                .any(|plain| value.eq_ignore_ascii_case(plain)),
            b"content-type" => !begins(value, b"multipart/"),
            _ => true,
        };
        if !is_sane {
            return None;
        }
        seen.push(field);
    }
    Some(name)
}

fn begins(value: &[u8], start: &[u8]) -> bool {
    let begin = value.get(..start.len());
    begin.is_some_and(|begin| begin.eq_ignore_ascii_case(start))
}

/// The name of `form-data; name="…"`. Without one it is nobody's, and `None`.
fn disposition(value: &[u8]) -> Option<Hash> {
    const KIND: &[u8] = b"form-data";
    let mut rest = value.get(KIND.len()..).filter(|_| begins(value, KIND))?;
    let mut seen: Vec<Vec<u8>> = Vec::new();
    let mut name = None;
    loop {
        rest = rest.trim_ascii_start();
        if rest.is_empty() {
            return name;
        }
        rest = rest.strip_prefix(b";")?.trim_ascii_start();
        if rest.is_empty() {
            return name;
        }
        let at = rest.iter().position(|b| *b == b'=')?;
        let parameter = rest.get(..at)?.to_ascii_lowercase();
        let (value, after) = value_of(rest.get(at + 1..)?)?;
        rest = after;
        // `name*0` is another name to who knows it. What a file is called has no part in its length,
        // and .NET writes `filename*` beside the other, though RFC 7578 has none.
        let is_plain = !parameter.is_empty() && parameter.iter().all(u8::is_ascii_alphanumeric);
        let is_known = is_plain || parameter == b"filename*";
        if !is_known || seen.contains(&parameter) || seen.len() == MAX_FIELDS {
            return None;
        }
        if parameter == b"name" {
            if value.contains(&b'\\') {
                return None;
            }
            let mut hash = Hash::default();
            hash.push(&value.to_ascii_lowercase());
            name = Some(hash);
        }
        seen.push(parameter);
    }
}

/// A parameter's value, quoted or not, and what comes after it.
fn value_of(text: &[u8]) -> Option<(&[u8], &[u8])> {
    if let Some(inside) = text.strip_prefix(b"\"") {
        let end = inside.iter().position(|b| *b == b'"')?;
        let (value, after) = inside.split_at(end);
        // An escaped quote is the value's end to some.
        return (!value.ends_with(b"\\")).then(|| (value, after.get(1..).unwrap_or_default()));
    }
    let is_token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'+-.^_`|~[]".contains(b);
    let end = text.iter().position(|b| !is_token(b)).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_in_one_way_or_not_at_all() {
        const PLAIN: &str = "Content-Disposition: form-data; name=\"file\"";
        for good in [
            String::new(),
            format!("{PLAIN}\r\n"),
            format!("{PLAIN}; filename=\"a;b=c.bin\"\r\nContent-Type: image/png\r\n"),
            format!("content-type: text/plain; charset=utf-8\r\n{PLAIN};\r\n"),
            format!("{PLAIN}; filename=\"中文 C:\\a.png\"\r\n"),
            format!("{PLAIN}; filename=\"\"\r\nContent-Length: 7\r\n"),
            format!("{PLAIN}; filename=\"=?utf-8?B?5Lit?=\"; filename*=utf-8''%E4%B8%AD\r\n"),
            format!("{PLAIN}\r\nContent-Transfer-Encoding: Binary\r\nX-A: \r\n"),
            "Content-Disposition:FORM-DATA;NAME=file;FileName=a.png\r\n".to_owned(),
            "Content-Type: image/png\r\n".to_owned(),
        ] {
            let name = read(format!("{good}\r\n").as_bytes());
            let has_name = name.map(|name| name.is_some());
            let is_named = good.to_ascii_lowercase().contains("disposition");
            assert_eq!(has_name, Some(is_named), "{good}");
        }
        for bad in [
            "Content-Disposition: form-data; name=\"a\"\n",
            "Content-Disposition: form-data; name=\"a\"\rX: y\r\n",
            "Content-Disposition: form-data;\r\n name=\"a\"\r\n",
            "X: y\r\n\tz\r\n",
            "Content-Disposition : form-data; name=\"a\"\r\n",
            " Content-Disposition: form-data; name=\"a\"\r\n",
            "Content-Disposition: form-data; name=\"a\0\"\r\n",
            "--b: c\r\n",
            "nothing\r\n",
            ": x\r\n",
            "Content-Disposition: form-data; name=\"a\"\r\ncontent-disposition: form-data; name=\"b\"\r\n",
            "Content-Type: a/b\r\nContent-Type: a/c\r\n",
            "Content-Transfer-Encoding: base64\r\n",
            "Content-Transfer-Encoding: quoted-printable\r\n",
            "Content-Type: Multipart/mixed; boundary=x\r\n",
            "Content-Disposition: attachment; name=\"a\"\r\n",
            "Content-Disposition: form-data2; name=\"a\"\r\n",
            "Content-Disposition: form-data\r\n",
            "Content-Disposition: form-data; filename=\"a\"\r\n",
            "Content-Disposition: form-data; name=\"a\"; name=\"b\"\r\n",
            "Content-Disposition: form-data; name=\"a\"; NAME=a\r\n",
            "Content-Disposition: form-data; name=\"a\"; filename=a; filename=b\r\n",
            "Content-Disposition: form-data; name*=utf-8''a\r\n",
            "Content-Disposition: form-data; name*0=a\r\n",
            "Content-Disposition: form-data; name=\"a\"; filename*=utf-8''b; filename*=utf-8''b\r\n",
            "Content-Disposition: form-data; name=\"a\"; filename*0=b\r\n",
            "Content-Disposition: form-data; name=\"a\\\"; x=\"\r\n",
            "Content-Disposition: form-data; name=\"a\\b\"\r\n",
            "Content-Disposition: form-data; name=\"a\"; filename=\"a\\\"; name=\"\r\n",
            "Content-Disposition: form-data; name=\"a\r\n",
            "Content-Disposition: form-data; name=\"a\"b\r\n",
            "Content-Disposition: form-data; name=a b\r\n",
            "Content-Disposition: form-data; name =a\r\n",
            "Content-Disposition: form-data; name=\r\n",
            "Content-Disposition: form-data, name=a\r\n",
            "Content-Disposition: form-data; =a; name=a\r\n",
        ] {
            assert!(read(format!("{bad}\r\n").as_bytes()).is_none(), "{bad}");
        }
        let many: String = (0..17).map(|n| format!("X-{n}: y\r\n")).collect();
        assert!(read(format!("{many}\r\n").as_bytes()).is_none());
    }

    #[test]
    fn a_name_is_the_same_in_any_spelling() {
        let of = |name: &str| {
            let head = format!("Content-Disposition: form-data; name={name}\r\n\r\n");
            format!("{:?}", read(head.as_bytes()).flatten())
        };
        assert_eq!(of("\"file\""), of("file"));
        assert_eq!(of("\"file\""), of("\"FILE\""));
        assert_ne!(of("\"file\""), of("\"files\""));
    }
}
