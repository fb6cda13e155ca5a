//! The sealed file: a header, a key of its own sealed by the key-encryption key, then the contents in pieces, each sealed for
//! its number and for whether it is the last. So a piece that is altered, moved, left out or cut off does not open, and the
//! file is read and written with little memory however large it is.

use std::io::{self, Read, Write};

use zeroize::Zeroizing;

use super::BackupError;
use crate::{
    app::KEK_CHECK,
    crypto::{Kek, SealingKey, seal::KEY_LEN},
    ids::random_bytes,
};

/// First line of every version; what follows is the version's number and a line feed.
const MAGIC: &[u8] = b"cryptvol-identity-backup ";
const VERSION: &[u8] = b"1\n";
/// Contents of one piece, in bytes; few in tests, which open some thousand files.
const PIECE: usize = if cfg!(test) { 1 << 10 } else { 1 << 20 };
/// What sealing adds to a piece, and more.
const OVERHEAD: usize = 256;
const MORE: u8 = 0;
const LAST: u8 = 1;

/// Seals all of `plain` into `out`. `check` is the record of the database that says which key-encryption key seals. How many
/// bytes of contents there were.
pub(super) fn write(
    kek: &Kek,
    check: &[u8],
    mut plain: impl Read,
    out: &mut dyn Write,
) -> Result<u64, BackupError> {
    let id = hex::encode(random_bytes::<16>());
    let key = Zeroizing::new(random_bytes::<KEY_LEN>());
    let wrapped = kek.seal_like((&[KEK_CHECK], check), &["backup", &id], key.as_slice())?;
    let sealing = SealingKey::new(&key);
    out.write_all(MAGIC).map_err(BackupError::Write)?;
    out.write_all(VERSION).map_err(BackupError::Write)?;
    out.write_all(id.as_bytes()).map_err(BackupError::Write)?;
    put(out, &wrapped)?;
    let mut total = 0_u64;
    let mut piece = fill(&mut plain)?;
    for number in 0_u64.. {
        // One is read ahead, to know which is the last.
        let next = fill(&mut plain)?;
        let kind = if next.is_empty() { LAST } else { MORE };
        let sealed = sealing.seal(&place(&id, &number.to_string(), kind), &piece)?;
        out.write_all(&[kind]).map_err(BackupError::Write)?;
        put(out, &sealed)?;
        total += piece.len() as u64;
        if kind == LAST {
            break;
        }
        piece = next;
    }
    out.flush().map_err(BackupError::Write)?;
    Ok(total)
}

/// Opens all of `from` into `out`. What was written is worth nothing unless this succeeds.
pub(super) fn read(
    kek: &Kek,
    from: &mut dyn Read,
    out: &mut dyn Write,
) -> Result<u64, BackupError> {
    let mut magic = vec![0; MAGIC.len()];
    // Too short even for this: something else.
    from.read_exact(&mut magic)
        .map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => BackupError::NotABackup,
            _ => BackupError::Read(error),
        })?;
    if magic != MAGIC {
        return Err(BackupError::NotABackup);
    }
    let mut version = [0; VERSION.len()];
    exact(from, &mut version)?;
    if version != *VERSION {
        return Err(BackupError::Newer);
    }
    let mut id = [0; 32];
    exact(from, &mut id)?;
    let id = std::str::from_utf8(&id).map_err(|_| BackupError::Altered)?;
    let wrapped = take(from, OVERHEAD)?;
    let key = kek
        .open(&["backup", id], &wrapped)
        .map_err(|_| BackupError::WrongKey)?;
    let sealing = SealingKey::from_slice(&key).map_err(|_| BackupError::Altered)?;
    let mut total = 0;
    for number in 0_u64.. {
        let mut kind = [0];
        exact(from, &mut kind)?;
        if kind[0] != MORE && kind[0] != LAST {
            return Err(BackupError::Altered);
        }
        let sealed = take(from, PIECE + OVERHEAD)?;
        let plain = sealing
            .open(&place(id, &number.to_string(), kind[0]), &sealed)
            .map_err(|_| BackupError::Altered)?;
        out.write_all(&plain).map_err(BackupError::Stage)?;
        total += plain.len() as u64;
        if kind[0] == LAST {
            break;
        }
    }
    // Whatever follows the last piece was not written by us.
    match from.read(&mut [0]) {
        Ok(0) => Ok(total),
        Ok(_) => Err(BackupError::Altered),
        Err(error) => Err(BackupError::Read(error)),
    }
}

fn place<'a>(id: &'a str, number: &'a str, kind: u8) -> [&'a str; 4] {
    let kind = if kind == LAST { "last" } else { "more" };
    ["backup", id, number, kind]
}

/// The next piece of the contents, shorter only at the end.
fn fill(from: &mut impl Read) -> Result<Zeroizing<Vec<u8>>, BackupError> {
    let mut piece = Zeroizing::new(Vec::with_capacity(PIECE));
    from.take(PIECE as u64)
        .read_to_end(&mut piece)
        .map_err(BackupError::Stage)?;
    Ok(piece)
}

fn put(out: &mut dyn Write, bytes: &[u8]) -> Result<(), BackupError> {
    let length = u32::try_from(bytes.len()).map_err(|_| BackupError::Altered)?;
    out.write_all(&length.to_be_bytes())
        .and_then(|()| out.write_all(bytes))
        .map_err(BackupError::Write)
}

fn take(from: &mut dyn Read, most: usize) -> Result<Vec<u8>, BackupError> {
    let mut length = [0; 4];
    exact(from, &mut length)?;
    let length = usize::try_from(u32::from_be_bytes(length)).map_err(|_| BackupError::Altered)?;
    if length > most {
        return Err(BackupError::Altered);
    }
    let mut bytes = vec![0; length];
    exact(from, &mut bytes)?;
    Ok(bytes)
}

fn exact(from: &mut dyn Read, bytes: &mut [u8]) -> Result<(), BackupError> {
    from.read_exact(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => BackupError::Truncated,
        _ => BackupError::Read(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTENTS: usize = 2 * PIECE + 17;

    fn sealed(kek: &Kek, contents: &[u8]) -> Vec<u8> {
        let check = kek.seal_newest(&[KEK_CHECK], b"check").unwrap();
        let mut out = Vec::new();
        let total = write(kek, &check, contents, &mut out).unwrap();
        assert_eq!(total, contents.len() as u64);
        out
    }

    fn opened(kek: &Kek, mut file: &[u8]) -> Result<Vec<u8>, BackupError> {
        let mut out = Vec::new();
        read(kek, &mut file, &mut out).map(|_| out)
    }

    fn contents() -> Vec<u8> {
        (0..CONTENTS).map(|n| (n % 251) as u8).collect()
    }

    #[test]
    fn what_was_sealed_opens() {
        let kek = Kek::from_bytes(&[9; 32]);
        for length in [0, 1, PIECE - 1, PIECE, PIECE + 1, CONTENTS] {
            let contents = &contents()[..length];
            let file = sealed(&kek, contents);
            assert!(opened(&kek, &file).unwrap() == contents, "{length}");
            if length > 100 {
                assert!(!file.windows(64).any(|some| some == &contents[..64]));
            }
        }
    }

    #[test]
    fn another_key_does_not_open_it() {
        let file = sealed(&Kek::from_bytes(&[9; 32]), b"contents");
        let error = opened(&Kek::from_bytes(&[8; 32]), &file).unwrap_err();
        assert!(matches!(error, BackupError::WrongKey), "{error}");
    }

    #[test]
    fn a_file_that_was_cut_anywhere_is_refused() {
        let kek = Kek::from_bytes(&[9; 32]);
        let file = sealed(&kek, &contents());
        for cut in 0..file.len() {
            match opened(&kek, &file[..cut]) {
                Err(BackupError::Truncated) => {}
                Err(BackupError::NotABackup) if cut < MAGIC.len() => {}
                other => panic!("cut at {cut}: {:?}", other.map(|all| all.len())),
            }
        }
    }

    #[test]
    fn a_file_that_was_altered_anywhere_is_refused() {
        let kek = Kek::from_bytes(&[9; 32]);
        let file = sealed(&kek, &contents());
        for at in 0..file.len() {
            let mut altered = file.clone();
            altered[at] ^= 0x20;
            assert!(opened(&kek, &altered).is_err(), "altered at {at}");
        }
        let longer = [file.as_slice(), b"x"].concat();
        assert!(matches!(opened(&kek, &longer), Err(BackupError::Altered)));
    }

    #[test]
    fn pieces_cannot_be_moved_left_out_or_taken_from_another_file() {
        let kek = Kek::from_bytes(&[9; 32]);
        let (file, other) = (sealed(&kek, &contents()), sealed(&kek, &contents()));
        let start = |file: &[u8]| {
            let at = MAGIC.len() + VERSION.len() + 32;
            let length = u32::from_be_bytes(file[at..at + 4].try_into().unwrap());
            at + 4 + length as usize
        };
        let begin = start(&file);
        let first = u32::from_be_bytes(file[begin + 1..begin + 5].try_into().unwrap());
        let size = 5 + first as usize;
        let (one, two) = (
            &file[begin..begin + size],
            &file[begin + size..begin + 2 * size],
        );
        let (head, tail) = (&file[..begin], &file[begin + 2 * size..]);
        for (name, pieces) in [
            ("whole", [head, one, two, tail]),
            ("exchanged", [head, two, one, tail]),
            ("left out", [head, one, b"", tail]),
            (
                "another's",
                [head, one, &other[begin + size..begin + 2 * size], tail],
            ),
        ] {
            let result = opened(&kek, &pieces.concat());
            assert_eq!(result.is_ok(), name == "whole", "{name}");
        }
    }

    #[test]
    fn other_files_and_newer_ones_are_told_apart() {
        let kek = Kek::from_bytes(&[9; 32]);
        for other in [&b""[..], b"SQLite format 3\0", &[0; 5000]] {
            assert!(matches!(opened(&kek, other), Err(BackupError::NotABackup)));
        }
        let newer = [MAGIC, b"2\n", &[0; 100]].concat();
        assert!(matches!(opened(&kek, &newer), Err(BackupError::Newer)));
    }
}
