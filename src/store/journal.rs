//! Totals in a file: what a memory store knows of them survives a restart and a crash.
//!
//! The file is text. After a first line that says what it is come batches: a line for each total
//! that changed, `<key> <total>`, and one that ends the batch, `. <lines> <digest>`. A batch is
//! synced before the next is written, so a crash can spoil the last one alone: that is left out,
//! and whatever else is wrong is a file that somebody has spoilt, which is refused. What has been
//! overtaken goes when the file is written anew, beside the old one and then in its place.
//!
//! Calls never wait for it: a thread writes what has changed, [`EVERY`] so often.
//!
//! One process writes it at a time. Another that has it open goes by what it said at its start until
//! the first has ended: then it reads it anew, and what its own calls have added and taken since
//! comes on top ([`MemoryStore::merge_totals`]).

use std::fs::{File, OpenOptions, rename};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hashbrown::HashMap;
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest as _, Sha256};

use super::memory::MemoryStore;
use crate::limit::CounterKey;
use crate::limit::total::Total;

/// How often changes are written: what a crash can lose.
pub const EVERY: Duration = Duration::from_millis(100);
/// Overtaken lines that do not matter yet.
const SPARE_LINES: usize = 10_000;
const HEAD: &str = "floodgate totals 1";
/// The one line of a last batch: the gateway has ended in order.
const END: &str = "end";

/// Why a file of totals cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// It cannot be read.
    #[error("cannot read {path}: {source}; correct plan_file, or the file's rights")]
    Read {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// It cannot be written.
    #[error("cannot write {path}: {source}; choose a place for plan_file that can be written")]
    Write {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// It is a device, a folder or the like: writing it anew would put a file in its place.
    #[error("{path} is no regular file; choose another plan_file")]
    NoFile {
        /// Which.
        path: String,
    },
    /// It is another file.
    #[error(
        "{path} is no file of totals: its first line is not {HEAD:?}; choose another plan_file"
    )]
    Foreign {
        /// Which.
        path: String,
    },
    /// Something is wrong in its middle.
    #[error(
        "{path}:{line}: the file of totals is spoilt: {why}; put back a good copy, or move it \
         away, start, and import or reconcile the totals (floodgate plan)"
    )]
    Spoilt {
        /// Which.
        path: String,
        /// Where.
        line: usize,
        /// What is wrong.
        why: &'static str,
    },
}

/// What a file said.
#[derive(Debug, Default, PartialEq, Eq)]
struct Read {
    totals: HashMap<CounterKey, Total>,
    /// Whether whoever wrote it ended in order.
    ended: bool,
}

impl Read {
    fn into_totals(self) -> impl Iterator<Item = (CounterKey, Total)> {
        let ended = self.ended;
        self.totals.into_iter().map(move |(key, mut total)| {
            // The last changes may be missing.
            total.approximate |= !ended;
            (key, total.at_rest())
        })
    }
}

/// A file of totals, open for writing, if no other process has it.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    lock: File,
    /// `None`: another process has it, or it must be written anew.
    file: Option<File>,
    is_ours: bool,
    /// Whether another process may have written it since it was read.
    is_unread: bool,
    lines: usize,
    /// What has been written into it.
    bytes: u64,
    /// Whether it is known that it cannot be written.
    failed: bool,
}

impl Journal {
    /// Reads the file, if there is one, into this store, which notes its changes from now on, and
    /// writes it anew.
    ///
    /// # Errors
    /// [`JournalError`]; nothing has been changed then.
    pub fn open(path: PathBuf, store: &MemoryStore) -> Result<Self, JournalError> {
        let shown = path.display().to_string();
        let write = |source| JournalError::Write {
            path: shown.clone(),
            source,
        };
        must_be_file(&path)?;
        // What a link names is written anew, not the link.
        let path = std::fs::canonicalize(&path).unwrap_or(path);
        let lock = beside(&path, "lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(lock)
            .map_err(write)?;
        let mut journal = Self {
            path,
            lock,
            file: None,
            is_ours: false,
            is_unread: false,
            lines: 0,
            bytes: 0,
            failed: false,
        };
        // Before it is read: nobody else is to write in between.
        let is_free = journal.is_free();
        let read = read(&journal.path)?.unwrap_or_default();
        store.restore_totals(read.into_totals());
        if is_free {
            journal.write_anew(store).map_err(write)?;
        } else {
            journal.is_unread = true;
            store.note_own_totals();
            tracing::warn!(
                file = %journal.path.display(),
                "another process has this file of totals: this one writes it when that has ended"
            );
        }
        Ok(journal)
    }

    /// Whether the file can be used, if there is one.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn check(path: &Path) -> Result<(), JournalError> {
        must_be_file(path)?;
        read(path).map(|_| ())
    }

    /// Writes what changes in this store until it is told to stop.
    pub fn keep(mut self, store: &MemoryStore, stop: &AtomicBool) {
        while !stop.load(Ordering::Acquire) {
            std::thread::sleep(EVERY);
            self.write(store);
        }
        self.write(store);
        if self.is_ours && !self.is_unread && !self.failed {
            self.note(|journal| journal.append(&[END.to_owned()]));
        }
        if self.is_unread && store.has_own_totals() {
            let file = self.path.display();
            tracing::error!(%file, "what this process has counted is lost: another has the file of totals");
        }
    }

    fn write(&mut self, store: &MemoryStore) {
        if store.totals_are_away() {
            // Whoever has them writes them.
            self.file = None;
            self.is_ours = self.is_ours && flock(&self.lock, FlockOperation::Unlock).is_err();
            self.is_unread |= !self.is_ours;
            return;
        }
        if !self.is_free() {
            return;
        }
        if self.is_unread {
            return self.note(|journal| journal.take_over(store));
        }
        if self.is_displaced() || self.lines > SPARE_LINES + 2 * store.count_totals() {
            return self.note(|journal| journal.write_anew(store));
        }
        let changed = store.changed_totals();
        if !changed.is_empty() {
            let lines: Vec<String> = changed.iter().map(line).collect();
            self.note(|journal| journal.append(&lines));
        }
    }

    /// Whether the file has to be written anew: there is none, or not what was written.
    fn is_displaced(&mut self) -> bool {
        let Some(file) = &self.file else {
            return true;
        };
        let which = |known: std::fs::Metadata| (known.dev(), known.ino(), known.len());
        let ours = file.metadata().map(which);
        let there = std::fs::metadata(&self.path).map(which);
        let is_displaced = match (ours, there) {
            (Ok(ours), Ok(there)) => ours != there || ours.2 != self.bytes,
            _ => true,
        };
        if is_displaced {
            let file = self.path.display();
            tracing::warn!(%file, "somebody else has changed the file of totals: it is written anew");
            self.file = None;
        }
        is_displaced
    }

    /// Takes in what another process has written, and writes both.
    fn take_over(&mut self, store: &MemoryStore) -> io::Result<()> {
        let read = read(&self.path).map_err(io::Error::other)?;
        store.merge_totals(read.map(Read::into_totals));
        self.is_unread = false;
        self.write_anew(store)
    }

    /// Whether nobody else writes the file; from then on nobody else can.
    fn is_free(&mut self) -> bool {
        self.is_ours =
            self.is_ours || flock(&self.lock, FlockOperation::NonBlockingLockExclusive).is_ok();
        self.is_ours
    }

    /// Says once that the file cannot be written, and once that it can again.
    fn note(&mut self, work: impl FnOnce(&mut Self) -> io::Result<()>) {
        match work(self) {
            Ok(()) if self.failed => {
                tracing::info!(file = %self.path.display(), "totals are written again");
                self.failed = false;
            }
            Ok(()) => (),
            Err(error) => {
                // What was half written is replaced as a whole.
                self.file = None;
                if !std::mem::replace(&mut self.failed, true) {
                    let file = self.path.display();
                    tracing::error!(%error, %file, "totals cannot be written: a restart would lose them");
                }
            }
        }
    }

    fn append(&mut self, lines: &[String]) -> io::Result<()> {
        let Some(file) = &mut self.file else {
            return Err(io::Error::other("the file is not open"));
        };
        let text = batch(lines);
        file.write_all(text.as_bytes())?;
        file.sync_data()?;
        self.lines += lines.len();
        self.bytes += text.len() as u64;
        Ok(())
    }

    /// Writes all totals into a new file, and puts it in the place of the old one.
    fn write_anew(&mut self, store: &MemoryStore) -> io::Result<()> {
        self.file = None;
        let new = beside(&self.path, "new");
        let mut file = File::create(&new)?;
        let lines: Vec<String> = store.all_totals().iter().map(line).collect();
        let text = format!("{HEAD}\n{}", batch(&lines));
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        rename(&new, &self.path)?;
        let folder = self.path.parent().filter(|path| *path != Path::new(""));
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
        self.file = Some(file);
        self.lines = lines.len();
        self.bytes = text.len() as u64;
        Ok(())
    }
}

fn must_be_file(path: &Path) -> Result<(), JournalError> {
    match std::fs::metadata(path).is_ok_and(|known| !known.is_file()) {
        true => Err(JournalError::NoFile {
            path: path.display().to_string(),
        }),
        false => Ok(()),
    }
}

/// What the file says; `None`: there is none.
fn read(path: &Path) -> Result<Option<Read>, JournalError> {
    let shown = path.display().to_string();
    match std::fs::read(path) {
        Ok(bytes) if bytes.is_empty() => {
            // It was made so by somebody else: a file of ours is never empty.
            tracing::warn!(file = %shown, "the file of totals is empty: all totals begin anew");
            Ok(None)
        }
        Ok(bytes) => parse(&bytes, &shown).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(JournalError::Read {
            path: shown,
            source,
        }),
    }
}

/// The path with this behind it.
fn beside(path: &Path, extension: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(extension);
    PathBuf::from(name)
}

fn line((key, total): &(CounterKey, Total)) -> String {
    // Whoever reads it has no calls under way yet.
    format!("{:032x} {}", key.0, total.at_rest().to_text())
}

fn batch(lines: &[String]) -> String {
    let mut text = String::new();
    for line in lines {
        text.push_str(line);
        text.push('\n');
    }
    let end = format!(". {} {}\n", lines.len(), digest(text.as_bytes()));
    text.push_str(&end);
    text
}

fn digest(bytes: &[u8]) -> String {
    let digest: [u8; 32] = Sha256::digest(bytes).into();
    digest[..8].iter().map(|b| format!("{b:02x}")).collect()
}

fn parse(bytes: &[u8], path: &str) -> Result<Read, JournalError> {
    let spoilt = |line, why| JournalError::Spoilt {
        path: path.to_owned(),
        line,
        why,
    };
    if bytes.is_empty() {
        return Ok(Read {
            ended: true,
            ..Read::default()
        });
    }
    let mut lines = bytes.split_inclusive(|b| *b == b'\n').zip(1..);
    let head = lines.next().map(|(line, _)| line.trim_ascii_end());
    if head != Some(HEAD.as_bytes()) {
        return Err(JournalError::Foreign {
            path: path.to_owned(),
        });
    }
    let mut read = Read::default();
    // The batch at hand: its bytes, and the number of its first line.
    let (mut start, mut at) = (HEAD.len() + 1, HEAD.len() + 1);
    let (mut first, mut count) = (2, 0);
    // Of a batch that does not fit its last line.
    let mut bad: Option<usize> = None;
    for (text, number) in lines {
        let is_end = text.starts_with(b". ");
        if is_end {
            let batch = bytes.get(start..at).unwrap_or_default();
            let is_good = text == format!(". {count} {}\n", digest(batch)).as_bytes();
            match bad {
                // A crash spoils the last batch alone.
                Some(line) => {
                    return Err(spoilt(line, "a batch of lines is not as it was written"));
                }
                None if is_good => {
                    read.ended = false;
                    apply(batch, &mut read).map_err(|nth| {
                        spoilt(
                            first + nth,
                            "this is no total; did another version write it?",
                        )
                    })?;
                }
                None => bad = Some(first),
            }
            (start, first, count) = (at + text.len(), number + 1, 0);
        } else {
            count += 1;
        }
        at += text.len();
    }
    read.ended &= bad.is_none() && count == 0;
    Ok(read)
}

/// Takes in a good batch; the place of a line that is none.
fn apply(batch: &[u8], read: &mut Read) -> Result<(), usize> {
    let text = std::str::from_utf8(batch).map_err(|_| 0_usize)?;
    for (nth, line) in text.lines().enumerate() {
        if line == END {
            read.ended = true;
            continue;
        }
        let (key, total) = line.split_once(' ').ok_or(nth)?;
        let key = u128::from_str_radix(key, 16).map_err(|_| nth)?;
        let total = Total::of_text(total).ok_or(nth)?;
        match total.is_nothing() {
            true => read.totals.remove(&CounterKey(key)),
            false => read.totals.insert(CounterKey(key), total),
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests;
