//! `Authorization`: which bearer token a call has.

const SCHEME: &[u8] = b"bearer ";

/// The bearer token in these lines of `Authorization`, in the characters that one has (RFC 6750,
/// 2.1). A call that names two has none: nor has one with quotes or a list, of which another
/// server might take a part.
#[must_use]
pub fn bearer<'v>(mut lines: impl Iterator<Item = &'v [u8]>) -> Option<&'v str> {
    let (Some(line), None) = (lines.next(), lines.next()) else {
        return None;
    };
    let (scheme, token) = line.split_at_checked(SCHEME.len())?;
    let token = std::str::from_utf8(token).ok()?.trim_matches(' ');
    (scheme.eq_ignore_ascii_case(SCHEME) && is_token(token)).then_some(token)
}

/// Letters, digits and `-._~+/`, and then `=`.
fn is_token(token: &str) -> bool {
    let text = token.trim_end_matches('=');
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~+/".contains(&b);
    !text.is_empty() && text.bytes().all(is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of<'v>(lines: &[&'v str]) -> Option<&'v str> {
        bearer(lines.iter().map(|line| line.as_bytes()))
    }

    #[test]
    fn a_token_is_one_word_of_its_characters() {
        for (good, token) in [
            ("Bearer t", "t"),
            ("bEARER YWMt-._~+/9==", "YWMt-._~+/9=="),
            ("bearer   t  ", "t"),
        ] {
            assert_eq!(of(&[good]), Some(token), "{good}");
        }
        for bad in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer  ",
            "Bearer =",
            " Bearer t",
            "Bearer\tt",
            "Bearer \tt",
            "Bearer t u",
            "Bearer t,u",
            "Bearer t, Bearer u",
            "Bearer \"t\"",
            "Bearer t=u",
            "Bearer t;",
            "Bearer \u{e9}",
            "Bearert",
            "Basic t",
            "B\u{e9}arer t",
        ] {
            assert_eq!(of(&[bad]), None, "{bad}");
        }
    }

    #[test]
    fn of_two_lines_there_is_no_token() {
        assert_eq!(of(&[]), None);
        assert_eq!(of(&["Bearer t", "Bearer t"]), None);
        assert_eq!(of(&["Bearer t", ""]), None);
    }
}
