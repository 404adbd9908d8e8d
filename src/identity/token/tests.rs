//! Tokens that Agora's own package has made, tokens made here, and tokens that are broken.

use miniz_oxide::deflate::compress_to_vec_zlib;
use proptest::prelude::*;

use super::*;

const APP_ID: &str = "970CA35de60c44645bbae8a215061b33";
const CERTIFICATE: &str = "5CFd2fd1755d40ecb72977518be15d3b";
const ISSUED: u32 = 1_800_000_000;

/// Made by `tests/data/agora-tokens.js`.
const FROM_AGORA: &str = include_str!("../../../tests/data/agora-tokens.json");

/// What is signed, before it is.
struct Info {
    app_id: Vec<u8>,
    issued: u32,
    lasts: u32,
    salt: u32,
    count: u16,
    services: Vec<u8>,
}

impl Info {
    /// An app's, for an hour.
    fn app() -> Self {
        Self {
            app_id: APP_ID.into(),
            issued: ISSUED,
            lasts: 3600,
            salt: 7,
            count: 1,
            services: service(CHAT, &[(APP, 3600)], &[b""]),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = string(&self.app_id);
        for number in [self.issued, self.lasts, self.salt] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(self.count.to_le_bytes());
        bytes.extend(&self.services);
        bytes
    }

    fn signature(&self, certificate: &str) -> Vec<u8> {
        let mac = |key: &[u8], message: &[u8]| {
            let mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
            mac.chain_update(message).finalize().into_bytes()
        };
        let key = mac(&self.issued.to_le_bytes(), certificate.as_bytes());
        let key = mac(&self.salt.to_le_bytes(), &key);
        mac(&key, &self.bytes()).to_vec()
    }

    fn content(&self) -> Vec<u8> {
        let mut content = string(&self.signature(CERTIFICATE));
        content.extend(self.bytes());
        content
    }

    fn token(&self) -> String {
        packed(&self.content())
    }
}

fn string(bytes: &[u8]) -> Vec<u8> {
    let mut string = u16::try_from(bytes.len()).unwrap().to_le_bytes().to_vec();
    string.extend(bytes);
    string
}

fn service(kind: u16, privileges: &[(u16, u32)], strings: &[&[u8]]) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend(u16::try_from(privileges.len()).unwrap().to_le_bytes());
    for (privilege, lasts) in privileges {
        bytes.extend(privilege.to_le_bytes());
        bytes.extend(lasts.to_le_bytes());
    }
    strings.iter().for_each(|text| bytes.extend(string(text)));
    bytes
}

fn packed(content: &[u8]) -> String {
    coded(&compress_to_vec_zlib(content, 6))
}

fn coded(packed: &[u8]) -> String {
    format!("007{}", STANDARD.encode(packed))
}

fn check(token: &str, after_s: i64) -> Result<Verified, TokenError> {
    let now_s = u64::try_from(i64::from(ISSUED) + after_s).unwrap();
    let is_app = |id: &str| id.eq_ignore_ascii_case(APP_ID);
    verify(token, is_app, [CERTIFICATE], now_s)
}

const GOOD: Result<Verified, TokenError> = Ok(Verified {
    expires_s: ISSUED as u64 + 3600,
});

#[test]
fn tokens_of_agoras_own_package_are_read_as_they_were_meant() {
    let file: serde_json::Value = serde_json::from_str(FROM_AGORA).unwrap();
    assert_eq!(
        (&file["app"], &file["certificate"], &file["issued"]),
        (&APP_ID.into(), &CERTIFICATE.into(), &ISSUED.into())
    );
    let tokens = file["tokens"].as_array().unwrap();
    assert!(tokens.len() >= 16);
    for case in tokens {
        let token = case["token"].as_str().unwrap();
        let result = match check(token, case["at"].as_i64().unwrap()) {
            Ok(_) => "good".to_owned(),
            Err(error) => error.to_string(),
        };
        assert_eq!(result, case["result"], "{}", case["name"]);
    }
}

#[test]
fn a_token_of_a_third_implementation_is_good() {
    // Python's hmac and zlib, from the description of the form alone.
    let token = "007eJxTYKj7vi0n4inntdKj7z1PTHgiZvjtRINhpnTJ1cwJ+kc+ax1VYLA0N3B2NDZNSTUzSDYxMTMxTUpKTLVINDI0NTAzTDI2ZrjkmS3Ax8DgUFHLyMjAysDIwMQA4jMwAAAClR0z";
    assert_eq!(check(token, 0), GOOD);
    assert_eq!(check(&Info::app().token(), 0), GOOD);
}

#[test]
fn a_token_is_good_from_a_minute_before_its_issue_to_its_end() {
    let token = Info::app().token();
    for (after_s, result) in [
        (-61, Err(TokenError::NotYetValid)),
        (-60, GOOD),
        (3599, GOOD),
        (3600, Err(TokenError::Expired)),
        (1_000_000_000, Err(TokenError::Expired)),
    ] {
        assert_eq!(check(&token, after_s), result, "{after_s}");
    }
    let endless = Info {
        lasts: u32::MAX,
        services: service(CHAT, &[(APP, u32::MAX)], &[b""]),
        ..Info::app()
    };
    assert!(check(&endless.token(), 1_000_000_000).is_ok());
}

#[test]
fn a_privilege_ends_by_its_own_time() {
    let short = |seconds| Info {
        services: service(CHAT, &[(1, 3600), (APP, seconds)], &[b""]),
        ..Info::app()
    };
    assert_eq!(
        check(&short(60).token(), 59),
        Ok(Verified {
            expires_s: u64::from(ISSUED) + 60
        })
    );
    assert_eq!(check(&short(60).token(), 60), Err(TokenError::Expired));
    assert_eq!(check(&short(90_000).token(), 0), GOOD);
}

#[test]
fn a_users_token_is_no_apps_whatever_it_may() {
    for privileges in [&[(1, 3600)][..], &[(APP, 3600)], &[(1, 3600), (APP, 3600)]] {
        let user = Info {
            services: service(CHAT, privileges, &[b"alice"]),
            ..Info::app()
        };
        assert_eq!(check(&user.token(), 0), Err(TokenError::NoAppPrivilege));
    }
    let none = Info {
        services: service(CHAT, &[], &[b""]),
        ..Info::app()
    };
    assert_eq!(check(&none.token(), 0), Err(TokenError::NoAppPrivilege));
}

#[test]
fn an_app_token_is_for_its_app_alone() {
    let token = Info::app().token();
    let now_s = u64::from(ISSUED);
    let check = |is_app: fn(&str) -> bool, certificates: &[&str]| {
        verify(&token, is_app, certificates.iter().copied(), now_s)
    };
    let other = "00000000000000000000000000000000";
    assert_eq!(check(|_| false, &[CERTIFICATE]), Err(TokenError::OtherApp));
    assert_eq!(check(|_| true, &[other]), Err(TokenError::Signature));
    assert_eq!(check(|_| true, &[]), Err(TokenError::NoCertificate));
    // While a certificate is being changed, there are two.
    assert_eq!(check(|_| true, &[other, CERTIFICATE]), GOOD);
    assert_eq!(check(|_| true, &[CERTIFICATE, other]), GOOD);
    assert_eq!(check(|id| id == APP_ID, &[CERTIFICATE]), GOOD);
}

#[test]
fn no_byte_of_what_is_signed_or_of_the_signature_can_be_changed() {
    let content = Info::app().content();
    for at in 0..content.len() {
        for change in 1..=255 {
            let mut changed = content.clone();
            changed[at] ^= change;
            assert!(check(&packed(&changed), 0).is_err(), "{at} ^ {change}");
        }
    }
    for length in 0..content.len() {
        assert!(check(&packed(&content[..length]), 0).is_err(), "{length}");
    }
    let mut longer = content.clone();
    longer.push(0);
    assert_eq!(check(&packed(&longer), 0), Err(TokenError::Signature));
}

#[test]
fn no_change_of_a_token_says_anything_else() {
    let token = Info::app().token();
    for at in 0..token.len() {
        for byte in 0..128_u8 {
            let mut changed = token.clone().into_bytes();
            changed[at] = byte;
            let changed = String::from_utf8(changed).unwrap();
            // Compression can spell the same content in several ways; it is the content that is
            // signed.
            if let Ok(claims) = check(&changed, 0) {
                assert_eq!(Ok(claims), GOOD);
                assert_eq!(unpack(&changed), unpack(&token));
            }
        }
        assert!(check(&token[..at], 0).is_err(), "{at}");
    }
}

#[test]
fn what_is_no_token_is_told_apart_from_a_corrupt_one() {
    for other in ["", "00", "006abc", "YWMtabc", "bad", "007é"] {
        let expected = match other.starts_with("007") {
            true => TokenError::Corrupt,
            false => TokenError::Other,
        };
        assert_eq!(check(other, 0), Err(expected), "{other}");
    }
    let good = compress_to_vec_zlib(&Info::app().content(), 6);
    let mut longer = good.clone();
    longer.push(0);
    for (what, packed) in [
        ("nothing", &[][..]),
        ("more than its content", &longer),
        ("no zlib", &Info::app().content()),
        ("half of it", &good[..good.len() / 2]),
        ("no checksum", &good[..good.len() - 4]),
    ] {
        assert_eq!(check(&coded(packed), 0), Err(TokenError::Corrupt), "{what}");
    }
    assert_eq!(
        check(&packed(b""), 0),
        Err(TokenError::Corrupt),
        "no fields"
    );
}

#[test]
fn a_small_token_that_unpacks_to_much_is_corrupt() {
    let mut content = Info::app().content();
    content.resize(MAX_CONTENT, 0);
    assert_eq!(
        check(&packed(&content), 0),
        Err(TokenError::Signature),
        "read"
    );
    content.push(0);
    assert_eq!(check(&packed(&content), 0), Err(TokenError::Corrupt));
    let bomb = packed(&vec![0; 1_000_000]);
    assert!(bomb.len() < MAX_LENGTH, "{}", bomb.len());
    assert_eq!(check(&bomb, 0), Err(TokenError::Corrupt));
    let long = format!("007{}", "A".repeat(MAX_LENGTH));
    assert_eq!(check(&long, 0), Err(TokenError::Corrupt));
}

#[test]
fn signed_nonsense_is_corrupt() {
    let with = |count, services: Vec<u8>| Info {
        count,
        services,
        ..Info::app()
    };
    let mut many = CHAT.to_le_bytes().to_vec();
    many.extend(u16::MAX.to_le_bytes());
    for info in [
        with(1, Vec::new()),
        with(2, service(CHAT, &[(APP, 3600)], &[b""])),
        with(1, service(CHAT, &[(APP, 3600)], &[])),
        with(1, many),
    ] {
        assert_eq!(check(&info.token(), 0), Err(TokenError::Corrupt));
    }
    let none = with(0, Vec::new());
    assert_eq!(check(&none.token(), 0), Err(TokenError::NoChat));
    // What is of a service that nobody here knows ends the list.
    let unknown = with(2, service(99, &[], &[]));
    assert_eq!(check(&unknown.token(), 0), Err(TokenError::NoChat));
    let empty = Info {
        app_id: vec![0xFF],
        ..Info::app()
    };
    assert_eq!(check(&empty.token(), 0), Err(TokenError::OtherApp));
}

#[test]
fn no_error_says_what_the_token_was() {
    for error in [TokenError::Signature, TokenError::Corrupt] {
        let printed = format!("{error} {error:?} {}", error.as_str());
        assert!(!printed.contains(APP_ID) && !printed.contains(CERTIFICATE));
    }
}

proptest! {
    #[test]
    fn no_text_is_read_but_a_token(text in "(007)?[ -~]{0,300}") {
        prop_assert!(check(&text, 0).is_err());
    }

    #[test]
    fn no_content_is_read_but_what_is_signed(content in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(check(&packed(&content), 0).is_err());
    }
}
