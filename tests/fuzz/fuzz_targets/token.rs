//! AccessToken2: nothing verifies that the app's certificate has not signed, and what it has
//! signed is read as a reader of its own reads it.
#![no_main]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use floodgate::identity::token::{MAX_LENGTH, MAX_SKEW_S, TokenError, Verified, verify};
use hmac::{Hmac, KeyInit as _, Mac as _};
use libfuzzer_sys::fuzz_target;
use miniz_oxide::deflate::compress_to_vec_zlib;
use miniz_oxide::inflate::decompress_to_vec_zlib_with_limit;
use sha2::Sha256;

const APP_ID: &str = "970CA35de60c44645bbae8a215061b33";
const CERTIFICATE: &str = "5CFd2fd1755d40ecb72977518be15d3b";
/// Nobody has signed anything with this one.
const OTHER: &str = "00000000000000000000000000000000";
const ISSUED: u32 = 1_800_000_000;
/// Made by Agora's own package, as those of `tests/data/agora-tokens.json`.
const GOOD: &str = "007eJxTYKj7vi0n4inntdKj7z1PTHgiZvjtRINhpnTJ1cwJ+kc+ax1VYLA0N3B2NDZNSTUzSDYxMTMxTUpKTLVINDI0NTAzTDI2ZrjkmS3Ax8DgUFHLyMjAysDIwMQA4jMwAAAClR0z";

fuzz_target!(|data: &[u8]| {
    let Some((choice, rest)) = data.split_first() else {
        return;
    };
    match choice % 3 {
        0 => any_text(rest),
        1 => mutated(rest),
        _ => signed(rest),
    }
});

fn check(token: &str, now_s: u64) -> Result<Verified, TokenError> {
    let is_app = |id: &str| id.eq_ignore_ascii_case(APP_ID);
    assert!(verify(token, is_app, [OTHER], now_s).is_err());
    let none = verify(token, is_app, [], now_s);
    assert!(none.is_err());
    let strict = verify(token, |_| false, [CERTIFICATE], now_s);
    assert!(strict.is_err());
    let both = verify(token, is_app, [OTHER, CERTIFICATE], now_s);
    assert_eq!(both, verify(token, is_app, [CERTIFICATE], now_s));
    both
}

/// Any text: what verifies says byte for byte what a token that was issued says.
fn any_text(data: &[u8]) {
    let Ok(token) = std::str::from_utf8(data) else {
        return;
    };
    let is_good = check(token, u64::from(ISSUED)).is_ok();
    assert!(!is_good || token.len() <= MAX_LENGTH);
    if is_good {
        let issued = include_str!("../../data/agora-tokens.json");
        let issued: serde_json::Value = serde_json::from_str(issued).expect("JSON");
        let content = content(token).expect("it was read");
        let mut tokens = issued["tokens"].as_array().expect("a list").iter();
        let is_issued = tokens.any(|case| {
            let token = case["token"].as_str().expect("a text");
            self::content(token).is_some_and(|known| known == content)
        });
        assert!(is_issued, "nobody has issued {token}");
    }
}

fn content(token: &str) -> Option<Vec<u8>> {
    let packed = STANDARD.decode(token.strip_prefix("007")?).ok()?;
    decompress_to_vec_zlib_with_limit(&packed, 1 << 16).ok()
}

/// A good token's content with bytes of it changed, cut, or added.
fn mutated(data: &[u8]) {
    let good = content(GOOD).expect("it is good");
    let mut content = good.clone();
    for change in data.chunks(3).take(64) {
        let at = usize::from(change[0]) % content.len().max(1);
        let with = change.get(2).copied().unwrap_or_default();
        match change.get(1).copied().unwrap_or_default() % 4 {
            0 => content.truncate(at),
            1 => content.insert(at, with),
            2 if at < content.len() => drop(content.remove(at)),
            _ => content.get_mut(at).into_iter().for_each(|b| *b ^= with),
        }
    }
    let checked = check(&packed(&content), u64::from(ISSUED));
    let whole = Ok(Verified {
        expires_s: u64::from(ISSUED) + 3600,
    });
    match content == good {
        true => assert_eq!(checked, whole),
        false => assert!(checked.is_err(), "{content:?}"),
    }
}

fn packed(content: &[u8]) -> String {
    format!("007{}", STANDARD.encode(compress_to_vec_zlib(content, 6)))
}

/// Services that the certificate has signed, whatever they are: read as here.
fn signed(data: &[u8]) {
    let Some((numbers, services)) = data.split_first_chunk::<16>() else {
        return;
    };
    let number = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| numbers[at + i]));
    let (issued, lasts, salt, now) = (number(0), number(4), number(8), number(12));
    let mut signed = string(APP_ID.as_bytes());
    for number in [issued, lasts, salt] {
        signed.extend(number.to_le_bytes());
    }
    signed.extend(services);
    let mac = |key: &[u8], message: &[u8]| {
        let mac = Hmac::<Sha256>::new_from_slice(key).expect("any key will do");
        mac.chain_update(message).finalize().into_bytes()
    };
    let key = mac(&issued.to_le_bytes(), CERTIFICATE.as_bytes());
    let key = mac(&salt.to_le_bytes(), &key);
    let mut content = string(&mac(&key, &signed));
    content.extend(&signed);
    let token = packed(&content);
    let checked = check(&token, u64::from(now));
    if token.len() > MAX_LENGTH || content.len() > 4096 {
        assert_eq!(checked, Err(TokenError::Corrupt));
        return;
    }
    let (issued, now) = (u64::from(issued), u64::from(now));
    let ends = issued + u64::from(lasts);
    let expected = if issued > now + MAX_SKEW_S {
        Err(TokenError::NotYetValid)
    } else if ends <= now {
        Err(TokenError::Expired)
    } else {
        privilege(services).and_then(|lasts| match issued + u64::from(lasts) {
            over if over <= now => Err(TokenError::Expired),
            privilege => Ok(Verified {
                expires_s: ends.min(privilege),
            }),
        })
    };
    assert_eq!(checked, expected);
}

fn string(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).expect("short");
    [&length.to_le_bytes(), bytes].concat()
}

/// How long the app privilege of the chat service lasts.
fn privilege(services: &[u8]) -> Result<u32, TokenError> {
    let mut at = 0;
    let mut take = |n: usize| {
        at += n;
        services.get(at - n..at).ok_or(TokenError::Corrupt)
    };
    let small = |bytes: &[u8]| usize::from(bytes[0]) + 256 * usize::from(bytes[1]);
    let (mut has_chat, mut longest) = (false, None);
    for _ in 0..small(take(2)?) {
        let kind = small(take(2)?);
        let mut own = None;
        for _ in 0..small(take(2)?) {
            let entry = take(6)?;
            if small(entry) == 2 {
                own = Some(u32::from_le_bytes([entry[2], entry[3], entry[4], entry[5]]));
            }
        }
        let texts = match kind {
            1 | 3 => 2,
            2 | 5 => 1,
            4 => 0,
            _ => break,
        };
        let mut is_user = false;
        for _ in 0..texts {
            let length = small(take(2)?);
            take(length)?;
            is_user = length > 0;
        }
        has_chat |= kind == 5;
        if kind == 5 && !is_user {
            longest = longest.max(own);
        }
    }
    match (longest, has_chat) {
        (Some(lasts), _) => Ok(lasts),
        (None, true) => Err(TokenError::NoAppPrivilege),
        (None, false) => Err(TokenError::NoChat),
    }
}
