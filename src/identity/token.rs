//! Agora's AccessToken2 (`007…`): what a token says, and whether a certificate of its app has
//! signed it. Any other token is opaque: its backend alone can tell.
//!
//! Input is bounded before anything is unpacked, and nothing here prints a token or a key.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};
use sha2::Sha256;

#[cfg(test)]
mod tests;

/// What every such token begins with.
const VERSION: &str = "007";
/// The longest token that is looked at, in characters. An app's takes 150.
pub const MAX_LENGTH: usize = 2048;
/// The most that one unpacks to, in bytes.
const MAX_CONTENT: usize = 4096;
/// How far the clock of who made a token may be ahead, in seconds.
pub const MAX_SKEW_S: u64 = 60;

/// The chat service's number.
const CHAT: u16 = 5;
/// The chat service's privilege of the app itself.
const APP: u16 = 2;

/// Why a token is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It does not begin like one.
    #[error("not an AccessToken2")]
    Other,
    /// It cannot be read: its coding, its compression, its fields, or its length.
    #[error("corrupt")]
    Corrupt,
    /// No certificate of the app has signed it.
    #[error("wrong signature")]
    Signature,
    /// There is no certificate to check it with.
    #[error("no certificate")]
    NoCertificate,
    /// It is for another app.
    #[error("for another app")]
    OtherApp,
    /// It is over, or its app privilege is.
    #[error("expired")]
    Expired,
    /// It was issued in the future.
    #[error("not valid yet")]
    NotYetValid,
    /// It is for other services.
    #[error("not for the chat service")]
    NoChat,
    /// It is a user's.
    #[error("without the app privilege")]
    NoAppPrivilege,
}

impl TokenError {
    /// For the log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Other => "token of another kind",
            Self::Corrupt => "token corrupt",
            Self::Signature => "token signature wrong",
            Self::NoCertificate => "token without certificate",
            Self::OtherApp => "token of another app",
            Self::Expired => "token expired",
            Self::NotYetValid => "token not yet valid",
            Self::NoChat => "token without chat service",
            Self::NoAppPrivilege => "token without app privilege",
        }
    }
}

/// What of a good token matters afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// When it ends, in seconds since the Unix epoch.
    pub expires_s: u64,
}

/// Whether a token says that it is an AccessToken2.
#[must_use]
pub fn is_access_token(token: &str) -> bool {
    token.starts_with(VERSION)
}

/// Checks a token for a call of an app's server at `now_s`, seconds since the Unix epoch:
/// `is_app` says whether an App ID is the app's, `certificates` are the app's.
///
/// REST calls need the app privilege: a token that names a user is none of theirs.
///
/// # Errors
/// [`TokenError`].
pub fn verify<'c>(
    token: &str,
    is_app: impl FnOnce(&str) -> bool,
    certificates: impl IntoIterator<Item = &'c str>,
    now_s: u64,
) -> Result<Verified, TokenError> {
    let content = unpack(token)?;
    let mut fields = Fields(&content);
    let signature = fields.string()?;
    let signed = fields.0;
    let app_id = fields.string()?;
    let issued_s = fields.u32()?;
    let lasts_s = fields.u32()?;
    let salt = fields.u32()?;
    if !std::str::from_utf8(app_id).is_ok_and(is_app) {
        return Err(TokenError::OtherApp);
    }
    // Each is tried, whichever fits.
    let (mut tried, mut fits) = (false, false);
    for certificate in certificates {
        tried = true;
        let key = mac(&issued_s.to_le_bytes(), certificate.as_bytes())?.finalize();
        let key = mac(&salt.to_le_bytes(), &key.into_bytes())?.finalize();
        // In constant time.
        fits |= mac(&key.into_bytes(), signed)?
            .verify_slice(signature)
            .is_ok();
    }
    if !tried {
        return Err(TokenError::NoCertificate);
    }
    if !fits {
        return Err(TokenError::Signature);
    }
    let issued_s = u64::from(issued_s);
    let expires_s = issued_s + u64::from(lasts_s);
    if issued_s > now_s.saturating_add(MAX_SKEW_S) {
        return Err(TokenError::NotYetValid);
    }
    if expires_s <= now_s {
        return Err(TokenError::Expired);
    }
    let privilege_s = issued_s + u64::from(app_privilege(&mut fields)?);
    if privilege_s <= now_s {
        return Err(TokenError::Expired);
    }
    Ok(Verified {
        expires_s: expires_s.min(privilege_s),
    })
}

/// How long the app privilege lasts, in seconds from the token's issue.
fn app_privilege(fields: &mut Fields<'_>) -> Result<u32, TokenError> {
    let mut refused = TokenError::NoChat;
    let mut lasts_s = None;
    for _ in 0..fields.u16()? {
        let service = fields.u16()?;
        let mut own_s = None;
        for _ in 0..fields.u16()? {
            let (privilege, seconds) = (fields.u16()?, fields.u32()?);
            if privilege == APP {
                own_s = Some(seconds);
            }
        }
        match service {
            // Channel and account.
            1 | 3 => {
                fields.string()?;
                fields.string()?;
            }
            // User.
            2 => {
                fields.string()?;
            }
            4 => {}
            CHAT => {
                refused = TokenError::NoAppPrivilege;
                let is_app = fields.string()?.is_empty();
                lasts_s = lasts_s.max(own_s.filter(|_| is_app));
            }
            // They are in the order of their numbers, and what is of a later one is not ours.
            _ => break,
        }
    }
    lasts_s.ok_or(refused)
}

fn mac(key: &[u8], message: &[u8]) -> Result<Hmac<Sha256>, TokenError> {
    // A key of any length will do: this cannot fail.
    let mut mac = Hmac::<Sha256>::new_from_slice(key).map_err(|_| TokenError::Corrupt)?;
    mac.update(message);
    Ok(mac)
}

/// What a token holds: its signature and what is signed.
fn unpack(token: &str) -> Result<Vec<u8>, TokenError> {
    let coded = token.strip_prefix(VERSION).ok_or(TokenError::Other)?;
    if token.len() > MAX_LENGTH {
        return Err(TokenError::Corrupt);
    }
    let packed = STANDARD.decode(coded).map_err(|_| TokenError::Corrupt)?;
    let mut content = vec![0; MAX_CONTENT];
    let mut state = Box::<DecompressorOxide>::default();
    let flags = inflate_flags::TINFL_FLAG_PARSE_ZLIB_HEADER
        | inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let (status, read, written) = decompress(&mut state, &packed, &mut content, 0, flags);
    // The bound is the buffer: what does not fit is not unpacked.
    if status != TINFLStatus::Done || read != packed.len() {
        return Err(TokenError::Corrupt);
    }
    content.truncate(written);
    Ok(content)
}

/// Fields in their order, little-endian.
struct Fields<'b>(&'b [u8]);

impl<'b> Fields<'b> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], TokenError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(TokenError::Corrupt)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u16(&mut self) -> Result<u16, TokenError> {
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, TokenError> {
        self.take().map(u32::from_le_bytes)
    }

    fn string(&mut self) -> Result<&'b [u8], TokenError> {
        let length = usize::from(self.u16()?);
        let (taken, rest) = self.0.split_at_checked(length).ok_or(TokenError::Corrupt)?;
        self.0 = rest;
        Ok(taken)
    }
}
