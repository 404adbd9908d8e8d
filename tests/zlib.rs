//! pingora's gzip over the zlib of `src/libz-ng-sys`: a fresh machine builds it, and it is right.
#![allow(missing_docs, clippy::expect_used, reason = "tests")]

/// What `[patch.crates-io]` is for: unused, cargo only warns, and cmake is back.
#[test]
fn the_build_asks_for_no_cmake() {
    let lock = include_str!("../Cargo.lock");
    assert!(lock.contains("\nname = \"libz-ng-sys\"\n"), "mend this");
    assert!(!lock.contains("\nname = \"cmake\"\n"));
}

#[cfg(feature = "gateway")]
mod gzip {
    use miniz_oxide::inflate::decompress_to_vec;
    use pingora::protocols::http::compression::{Algorithm, Encode};
    use proptest::prelude::*;

    type Coder = Box<dyn Encode + Send + Sync>;

    fn compressor(level: u32) -> Coder {
        Algorithm::Gzip.compressor(level).expect("a compressor")
    }

    fn decompressor() -> Coder {
        Algorithm::Gzip.decompressor(true).expect("a decompressor")
    }

    /// In pieces, as a body comes.
    fn through(mut coder: Coder, bytes: &[u8], piece: usize) -> pingora::Result<Vec<u8>> {
        let mut made = Vec::new();
        for bytes in bytes.chunks(piece) {
            made.extend_from_slice(&coder.encode(bytes, false)?);
        }
        made.extend_from_slice(&coder.encode(&[], true)?);
        Ok(made)
    }

    /// By Python's gzip: `b"a limit is never exceeded; " * 40`.
    const PACKED: [u8; 58] = [
        0x1f, 0x8b, 0x08, 0x00, 0x00, 0x00, 0x00, 0x00, 0x02, 0x03, 0x4b, 0x54, 0xc8, 0xc9, 0xcc,
        0xcd, 0x2c, 0x51, 0xc8, 0x2c, 0x56, 0xc8, 0x4b, 0x2d, 0x4b, 0x2d, 0x52, 0x48, 0xad, 0x48,
        0x4e, 0x4d, 0x4d, 0x49, 0x4d, 0xb1, 0x56, 0x48, 0x1c, 0x95, 0x1a, 0x95, 0x1a, 0x95, 0x1a,
        0x95, 0xc2, 0x26, 0x05, 0x00, 0x22, 0xe0, 0xf9, 0xc8, 0x38, 0x04, 0x00, 0x00,
    ];

    #[test]
    fn what_others_packed_is_unpacked() {
        let plain = b"a limit is never exceeded; ".repeat(40);
        for piece in [1, 7, PACKED.len()] {
            assert_eq!(
                through(decompressor(), &PACKED, piece).expect("gzip"),
                plain
            );
        }
    }

    #[test]
    fn what_is_broken_is_an_error() {
        for at in [0, 20, PACKED.len() - 8] {
            let mut broken = PACKED;
            broken[at] ^= 0xff;
            assert!(through(decompressor(), &broken, 7).is_err(), "{at}");
        }
        assert!(through(decompressor(), &PACKED[..40], 7).is_err(), "cut");
    }

    proptest! {
        #[test]
        fn what_it_packs_comes_back(
            words in prop::collection::vec(0_u8..8, 0..100_000),
            noise in prop::collection::vec(any::<u8>(), 0..5_000),
            level in 1_u32..=9,
            piece in 1_usize..70_000,
        ) {
            let plain = [words, noise].concat();
            let packed = through(compressor(level), &plain, piece).expect("gzip");
            // A head of 10 bytes, a sum and a length of 4: another's inflate between them.
            let body = packed.get(10..packed.len() - 8).expect("a body");
            prop_assert_eq!(&decompress_to_vec(body).expect("deflate"), &plain);
            prop_assert_eq!(&through(decompressor(), &packed, piece).expect("gzip"), &plain);
        }
    }
}
