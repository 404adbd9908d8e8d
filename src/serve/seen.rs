//! Files, and what was in them when they were last read: whether they have changed since.
//!
//! They are asked about, not waited for: what swaps a symlink of a folder above (`..data`, as
//! Kubernetes does it), writes through another mount or replaces a file by renaming is seen all
//! the same, and nothing is lost that the kernel's notices might lose.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use sha2::{Digest as _, Sha256};

use crate::clock;
use crate::observe::reloads::ConfigHash;

/// A file that was written so short a time ago may be written again within the resolution of its
/// times.
const YOUNG_US: u64 = 2_000_000;

/// A hash of what is in a file; `None`: it cannot be read.
pub(super) type Content = Option<[u8; 32]>;

fn hash(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

fn content(path: &Path) -> Content {
    std::fs::read(path).ok().map(|bytes| hash(&bytes))
}

#[derive(Debug, Default)]
struct Noted {
    seen: BTreeMap<PathBuf, Content>,
    /// Of all that is no secret, in the order in which it was read.
    hasher: Sha256,
}

/// Reads files, and notes what was in them. Clones note in one place.
#[derive(Clone, Debug, Default)]
pub struct Files(Rc<RefCell<Noted>>);

impl Files {
    /// What is in a file.
    ///
    /// # Errors
    /// As [`std::fs::read_to_string`].
    pub fn read(&self, path: &Path) -> io::Result<String> {
        let text = self.read_secret(path)?;
        self.note_text(&text);
        Ok(text)
    }

    /// The same for one that holds a secret: nothing that is shown follows from it.
    ///
    /// # Errors
    /// As [`std::fs::read_to_string`].
    pub fn read_secret(&self, path: &Path) -> io::Result<String> {
        let bytes = std::fs::read(path);
        let seen = bytes.as_ref().ok().map(|bytes| hash(bytes));
        self.0.borrow_mut().seen.insert(path.to_owned(), seen);
        String::from_utf8(bytes?).map_err(|_| {
            // In the words of `read_to_string`.
            io::Error::new(
                io::ErrorKind::InvalidData,
                "stream did not contain valid UTF-8",
            )
        })
    }

    /// A text that is part of what was read, though it is in no file.
    pub fn note_text(&self, text: &str) {
        let length = u64::try_from(text.len()).unwrap_or(u64::MAX);
        let hasher = &mut self.0.borrow_mut().hasher;
        hasher.update(length.to_le_bytes());
        hasher.update(text);
    }

    /// Notes what is in a file that something else reads.
    pub(super) fn note(&self, path: &Path) {
        let seen = content(path);
        self.0.borrow_mut().seen.insert(path.to_owned(), seen);
    }

    /// Whether all of them hold what they held when they were read.
    pub(super) fn are_still_so(&self) -> bool {
        let noted = self.0.borrow();
        noted.seen.iter().all(|(path, seen)| content(path) == *seen)
    }

    /// All of them, and what was in them.
    pub(super) fn seen(&self) -> BTreeMap<PathBuf, Content> {
        self.0.borrow().seen.clone()
    }

    /// A hash of all that is no secret.
    #[must_use]
    pub fn hash(&self) -> ConfigHash {
        let digest: [u8; 32] = self.0.borrow().hasher.clone().finalize().into();
        let mut bits = [0; 8];
        bits[2..].copy_from_slice(&digest[..6]);
        ConfigHash(u64::from_be_bytes(bits))
    }
}

/// What tells a file from another, and from itself after a change, without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// The stamp of what a path leads to, if it is old enough to tell a change.
fn stamp(path: &Path) -> Option<Stamp> {
    let of = std::fs::metadata(path).ok()?;
    let newest = u64::try_from(of.mtime().max(of.ctime())).unwrap_or(0);
    let is_old = newest.saturating_mul(1_000_000).saturating_add(YOUNG_US) < clock::unix_us();
    is_old.then(|| Stamp {
        device: of.dev(),
        inode: of.ino(),
        size: of.size(),
        modified: (of.mtime(), of.mtime_nsec()),
        changed: (of.ctime(), of.ctime_nsec()),
    })
}

#[derive(Debug)]
struct Known {
    content: Content,
    /// With this content.
    stamp: Option<Stamp>,
}

/// Files to look at again and again.
#[derive(Debug, Default)]
pub(super) struct Watch {
    files: BTreeMap<PathBuf, Known>,
    /// A change that was seen at the last look, and may go on.
    unsettled: Option<BTreeMap<PathBuf, Content>>,
}

impl Watch {
    /// What was read, good or bad: only another content is a change from now on.
    pub(super) fn read(&mut self, files: BTreeMap<PathBuf, Content>) {
        let known = |(path, content)| {
            let stamp = None;
            (path, Known { content, stamp })
        };
        self.files = files.into_iter().map(known).collect();
        self.unsettled = None;
    }

    /// Whether there is a change that has not gone on since the last look: half a file is not
    /// taken for a whole one.
    pub(super) fn has_changed(&mut self) -> bool {
        let mut changes = BTreeMap::new();
        for (path, known) in &mut self.files {
            // Before it is read: a later change is seen at the next look.
            let stamp = stamp(path);
            if stamp.is_some() && stamp == known.stamp {
                continue;
            }
            let content = content(path);
            if content == known.content {
                known.stamp = stamp;
            } else {
                changes.insert(path.clone(), content);
            }
        }
        let is_settled = self.unsettled.as_ref() == Some(&changes);
        let has_changed = is_settled && !changes.is_empty();
        self.unsettled = Some(changes);
        has_changed
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn watch(paths: &[&Path]) -> Watch {
        let files = Files::default();
        for path in paths {
            files.note(path);
        }
        let mut watch = Watch::default();
        watch.read(files.seen());
        watch
    }

    #[test]
    fn a_change_is_told_when_it_has_settled_and_until_it_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.toml");
        fs::write(&path, "one").unwrap();
        let mut watch = watch(&[&path]);
        assert!(!watch.has_changed() && !watch.has_changed());
        // Of the same length, and within the resolution of the file's times.
        fs::write(&path, "two").unwrap();
        assert!(!watch.has_changed(), "it may go on");
        fs::write(&path, "tw").unwrap();
        assert!(!watch.has_changed(), "it went on");
        assert!(watch.has_changed() && watch.has_changed());
        let files = Files::default();
        assert_eq!(files.read(&path).unwrap(), "tw");
        assert!(files.are_still_so());
        watch.read(files.seen());
        assert!(!watch.has_changed() && !watch.has_changed());
    }

    #[test]
    fn a_file_that_is_written_again_as_it_was_has_not_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.toml");
        fs::write(&path, "one").unwrap();
        let mut watch = watch(&[&path]);
        fs::write(&path, "one").unwrap();
        assert!(!watch.has_changed() && !watch.has_changed());
    }

    #[test]
    fn a_symlink_that_is_swapped_above_a_file_is_a_change_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (folder, text) in [("..one", "one"), ("..two", "two")] {
            fs::create_dir(at(folder)).unwrap();
            fs::write(at(folder).join("a.toml"), text).unwrap();
        }
        symlink("..one", at("..data")).unwrap();
        symlink("..data/a.toml", at("a.toml")).unwrap();
        let mut watch = watch(&[&at("a.toml")]);
        symlink("..two", at("..tmp")).unwrap();
        fs::rename(at("..tmp"), at("..data")).unwrap();
        assert!(!watch.has_changed());
        assert!(watch.has_changed());
    }

    #[test]
    fn a_file_that_goes_and_one_that_comes_are_changes() {
        let dir = tempfile::tempdir().unwrap();
        let (goes, comes) = (dir.path().join("goes"), dir.path().join("comes"));
        fs::write(&goes, "").unwrap();
        let mut watch = watch(&[&goes, &comes]);
        assert!(!watch.has_changed());
        fs::remove_file(&goes).unwrap();
        assert!(!watch.has_changed() && watch.has_changed());
        fs::write(&goes, "").unwrap();
        fs::write(&comes, "").unwrap();
        assert!(!watch.has_changed() && watch.has_changed());
    }

    #[test]
    fn the_hash_is_of_what_is_read_and_not_of_secrets_or_paths() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let hash = |parts: [(&str, &str); 2], secret: &str| {
            let files = Files::default();
            for (name, text) in parts {
                fs::write(at(name), text).unwrap();
                files.read(&at(name)).unwrap();
            }
            fs::write(at("secret"), secret).unwrap();
            assert_eq!(files.read_secret(&at("secret")).unwrap(), secret);
            files.hash()
        };
        let first = hash([("one", "a"), ("two", "b")], "s");
        assert_eq!(first, hash([("two", "a"), ("one", "b")], "other"));
        assert_ne!(first, hash([("one", "ab"), ("two", "")], "s"));
        assert!(first.0 < 1 << 48);
    }
}
