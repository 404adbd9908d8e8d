//! Sizes of bodies as they are written: `11MiB`, `64 KiB`, `2048`.

/// The largest size that can be written: 1 TiB.
const MOST: u64 = 1 << 40;

/// What the documents call a megabyte is not told apart from 1,000,000 bytes by its name.
pub(crate) const WRITE: &str = "not a size; write a whole number of bytes, KiB, MiB or GiB from 1 byte to 1024GiB, e.g. \"11MiB\" (10 MB of the documents are 10MiB)";

/// Bytes, if it is a size.
pub(crate) fn parse(text: &str) -> Option<u64> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '_')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim_start() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    let number: u64 = number.replace('_', "").parse().ok()?;
    let bytes = number.checked_mul(factor)?;
    (1..=MOST).contains(&bytes).then_some(bytes)
}

/// The same in the largest unit that leaves no rest.
#[cfg(feature = "gateway")]
pub(crate) fn show(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let whole = units
        .iter()
        .find(|(factor, _)| bytes > 0 && bytes.is_multiple_of(*factor));
    match whole {
        Some((factor, unit)) => format!("{} {unit}", bytes / factor),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_says_its_unit_or_is_bytes() {
        for (text, bytes) in [
            ("1", 1),
            ("2_048", 2048),
            ("7B", 7),
            ("64 KiB", 65_536),
            ("11MiB", 11_534_336),
            ("1024GiB", MOST),
        ] {
            assert_eq!(parse(text), Some(bytes), "{text}");
        }
        for text in [
            "",
            "0",
            "0MiB",
            "-1",
            "1.5MiB",
            "10MB",
            "10M",
            "10mib",
            "MiB",
            "_",
            "1025GiB",
            "99999999999999999999",
            "18446744073709551615GiB",
            "1 MiB ",
            " 1",
            "1e3",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[cfg(feature = "gateway")]
    #[test]
    fn a_size_is_shown_in_its_largest_whole_unit() {
        assert_eq!(show(11_534_336), "11 MiB");
        assert_eq!(show(65_536), "64 KiB");
        assert_eq!(show(1000), "1000 bytes");
        assert_eq!(show(0), "0 bytes");
    }
}
