use std::sync::Arc;

use super::*;
use crate::limit::total::{Change, Kind, TotalCharge};
use crate::limit::{Decision, Moment, Plan};
use crate::store::Store as _;
use crate::store::memory::MemoryOptions;

const NOW: Moment = Moment {
    mono_us: 1,
    unix_us: 1,
};

fn store() -> MemoryStore {
    MemoryStore::new(MemoryOptions::default())
}

fn add(store: &MemoryStore, key: u128, units: u32) {
    store.tell_totals(CounterKey(0), &[(CounterKey(key), Change::Add(units))], NOW);
}

fn lower(store: &MemoryStore, key: u128, units: u32) {
    let all = store.all_totals();
    let found = all.iter().find(|(known, _)| known.0 == key);
    let basis = found.map_or(0, |(_, total)| total.basis());
    tell(store, key, Change::Lower { units, basis });
}

fn count(store: &MemoryStore, key: u128) -> (u64, bool) {
    let all = store.all_totals();
    let found = all.iter().find(|(known, _)| known.0 == key);
    found.map_or((0, false), |(_, total)| (total.count, total.approximate))
}

/// A plan that takes so many of a total.
fn asking(key: u128, units: u32) -> Plan {
    Plan {
        totals: vec![TotalCharge {
            kind: Kind::Users,
            key: CounterKey(key),
            figure: u64::MAX,
            units,
            report: false,
            since_s: 0,
            whose: None,
            is_new: false,
            taken: None,
            over: false,
        }],
        ..Plan::default()
    }
}

fn opened(path: &Path) -> (MemoryStore, Journal) {
    let store = store();
    let journal = Journal::open(path.to_owned(), &store).unwrap();
    (store, journal)
}

fn end(journal: Journal, store: &MemoryStore) {
    journal.keep(store, &AtomicBool::new(true));
}

#[test]
fn totals_survive_an_end_in_order_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("totals");
    let (store, journal) = opened(&path);
    add(&store, 1, 5);
    add(&store, 2, 7);
    end(journal, &store);
    let (store, journal) = opened(&path);
    assert_eq!(
        (count(&store, 1), count(&store, 2)),
        ((5, false), (7, false))
    );
    lower(&store, 2, 7);
    end(journal, &store);
    let (store, _journal) = opened(&path);
    assert_eq!(
        (count(&store, 1), count(&store, 2)),
        ((5, false), (0, false))
    );
}

#[test]
fn calls_under_way_at_an_end_count_and_are_not_under_way_in_the_next_process() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("totals");
    let (store, journal) = opened(&path);
    let mut plan = asking(1, 5);
    assert!(matches!(
        store.decide_now(&mut plan, NOW),
        Decision::Admit { .. }
    ));
    end(journal, &store);
    let (store, _journal) = opened(&path);
    assert_eq!(count(&store, 1), (5, false));
    let set = Change::Set { count: 7, now_s: 9 };
    store.tell_totals(CounterKey(0), &[(CounterKey(1), set)], NOW);
    assert_eq!(count(&store, 1), (7, false));
}

#[test]
fn after_a_crash_the_last_write_is_there_and_every_total_in_doubt() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("totals");
    let (store, mut journal) = opened(&path);
    add(&store, 1, 5);
    journal.write(&store);
    add(&store, 1, 1);
    drop(journal);
    let (store, _journal) = opened(&path);
    assert_eq!(count(&store, 1), (5, true));
}

#[test]
fn a_batch_that_a_crash_has_cut_is_left_out_wherever_it_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("totals");
    let (store, mut journal) = opened(&path);
    add(&store, 1, 5);
    journal.write(&store);
    let before = std::fs::read(&path).unwrap().len();
    add(&store, 1, 1);
    add(&store, 2, 1);
    journal.write(&store);
    drop(journal);
    let whole = std::fs::read(&path).unwrap();
    for cut in before..whole.len() {
        let read = parse(&whole[..cut], "totals").unwrap();
        assert_eq!(read.totals[&CounterKey(1)].count, 5, "cut at {cut}");
        assert!(!read.ended && !read.totals.contains_key(&CounterKey(2)));
    }
    assert_eq!(
        parse(&whole, "totals").unwrap().totals[&CounterKey(1)].count,
        6
    );
}

#[test]
fn a_file_that_is_spoilt_in_its_middle_is_refused_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("totals");
    let (store, mut journal) = opened(&path);
    for _ in 0..3 {
        add(&store, 1, 5);
        journal.write(&store);
    }
    drop(journal);
    let good = std::fs::read_to_string(&path).unwrap();
    let spoilt = good.replacen(" 5 ", " 9 ", 1);
    assert_ne!(good, spoilt);
    std::fs::write(&path, &spoilt).unwrap();
    let error = Journal::open(path.clone(), &self::store()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("totals:3: "), "{text}");
    assert!(text.contains("floodgate plan"), "{text}");
    std::fs::write(&path, "[settings]\n").unwrap();
    let error = Journal::open(path.clone(), &self::store()).unwrap_err();
    assert!(matches!(error, JournalError::Foreign { .. }), "{error}");
    // What is no file would be one afterwards.
    let error = Journal::open(dir.path().to_owned(), &self::store()).unwrap_err();
    assert!(matches!(error, JournalError::NoFile { .. }), "{error}");
    assert!(error.to_string().contains("plan_file"), "{error}");
    let nowhere = dir.path().join("no/such/folder");
    let error = Journal::open(nowhere, &self::store()).unwrap_err();
    assert!(error.to_string().contains("plan_file"), "{error}");
}

#[test]
fn a_file_is_written_anew_before_it_grows_without_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("totals");
    let (store, mut journal) = opened(&path);
    journal.lines = SPARE_LINES;
    for _ in 0..4 {
        add(&store, 1, 1);
        journal.write(&store);
    }
    let lines = std::fs::read_to_string(&path).unwrap().lines().count();
    assert!(lines < 10, "{lines}");
    drop(journal);
    assert_eq!(count(&opened(&path).0, 1).0, 4);
}

#[test]
fn a_second_process_writes_when_the_first_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("totals");
    let (first, journal) = opened(&path);
    add(&first, 1, 5);
    let mut journal = journal;
    journal.write(&first);
    let (second, mut waiting) = opened(&path);
    assert_eq!(count(&second, 1).0, 5);
    add(&second, 2, 1);
    waiting.write(&second);
    assert!(!waiting.is_ours);
    end(journal, &first);
    waiting.write(&second);
    assert!(waiting.is_ours);
    end(waiting, &second);
    let (third, _journal) = opened(&path);
    assert_eq!(
        (count(&third, 1), count(&third, 2)),
        ((5, false), (1, false))
    );
}

fn tell(store: &MemoryStore, key: u128, change: Change) {
    store.tell_totals(CounterKey(0), &[(CounterKey(key), change)], NOW);
}

/// Two processes at one file: what the first does, and the second, while both have it; what the
/// second says when the first has ended, and what the file does when the second has, too.
fn both(first: impl FnOnce(&MemoryStore), second: impl FnOnce(&MemoryStore)) -> [(u64, bool); 2] {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("totals");
    let (old, mut journal) = opened(&path);
    tell(&old, 1, Change::Set { count: 3, now_s: 9 });
    journal.write(&old);
    let (new, mut waiting) = opened(&path);
    second(&new);
    waiting.write(&new);
    first(&old);
    end(journal, &old);
    waiting.write(&new);
    assert!(waiting.is_ours && !waiting.is_unread);
    let said = count(&new, 1);
    end(waiting, &new);
    [said, count(&opened(&path).0, 1)]
}

#[test]
fn what_a_process_has_done_that_ended_is_not_overwritten_by_one_that_began_before() {
    let import = Change::Set {
        count: 10,
        now_s: 20,
    };
    let done = |store: &MemoryStore| {
        tell(store, 1, import);
        add(store, 1, 5);
    };
    // Only the first has done something, only the second, both.
    assert_eq!(both(done, |_| ()), [(15, false); 2]);
    assert_eq!(both(|_| (), done), [(15, false); 2]);
    assert_eq!(both(done, |new| add(new, 1, 2)), [(17, true); 2]);
    let less = |new: &MemoryStore| lower(new, 1, 1);
    assert_eq!(both(done, less), [(14, true); 2]);
    let and_back = |new: &MemoryStore| {
        add(new, 1, 2);
        lower(new, 1, 2);
    };
    assert_eq!(both(done, and_back), [(15, false); 2]);
    // What was checked last holds.
    let later = |new: &MemoryStore| {
        add(new, 1, 9);
        let set = Change::Set {
            count: 30,
            now_s: 40,
        };
        tell(new, 1, set);
        add(new, 1, 1);
    };
    assert_eq!(both(done, later), [(31, true); 2]);
    assert_eq!(both(later, done), [(36, true); 2]);
    assert_eq!(both(|old| add(old, 1, 4), later), [(35, true); 2]);
    assert_eq!(both(|old| lower(old, 1, 1), later), [(31, true); 2]);
    let doubted = |new: &MemoryStore| tell(new, 1, Change::Doubt);
    assert_eq!(both(|_| (), doubted), [(3, true); 2]);
}

#[test]
fn a_call_under_way_when_another_process_ends_is_settled_by_what_it_took() {
    let mut plan = asking(1, 5);
    let settled = both(
        |old| {
            let import = Change::Set {
                count: 10,
                now_s: 20,
            };
            tell(old, 1, import);
        },
        |new| {
            new.decide_now(&mut plan, NOW);
        },
    );
    assert_eq!(settled, [(15, true); 2]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("totals");
    let (old, journal) = opened(&path);
    let (new, mut waiting) = opened(&path);
    new.decide_now(&mut plan, NOW);
    let round = plan.totals[0].taken.unwrap();
    add(&old, 1, 7);
    end(journal, &old);
    waiting.write(&new);
    assert_eq!(count(&new, 1), (12, true));
    tell(&new, 1, Change::Keep { units: 3, round });
    tell(&new, 1, Change::GiveBack { units: 2, round });
    assert_eq!(count(&new, 1), (10, true));
}

#[test]
fn a_file_that_another_process_has_left_spoilt_is_kept_until_somebody_mends_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("totals");
    let (old, mut journal) = opened(&path);
    add(&old, 1, 5);
    journal.write(&old);
    let (new, mut waiting) = opened(&path);
    add(&new, 1, 1);
    end(journal, &old);
    let good = std::fs::read(&path).unwrap();
    std::fs::write(&path, "something else\n").unwrap();
    waiting.write(&new);
    waiting.write(&new);
    assert!(waiting.failed);
    assert_eq!(std::fs::read(&path).unwrap(), b"something else\n");
    std::fs::write(&path, good).unwrap();
    waiting.write(&new);
    assert!(!waiting.failed);
    assert_eq!(count(&new, 1), (6, false));
}

#[test]
fn what_could_not_be_written_is_written_when_it_can() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("totals");
    let (store, mut journal) = opened(&path);
    // A folder in the way of the new file.
    std::fs::create_dir(beside(&path, "new")).unwrap();
    journal.file = None;
    add(&store, 1, 3);
    journal.write(&store);
    assert!(journal.failed);
    std::fs::remove_dir(beside(&path, "new")).unwrap();
    journal.write(&store);
    assert!(!journal.failed);
    drop(journal);
    assert_eq!(count(&opened(&path).0, 1).0, 3);
}

#[test]
fn a_file_that_somebody_removes_empties_or_replaces_is_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("totals");
    let (store, mut journal) = opened(&path);
    add(&store, 1, 3);
    journal.write(&store);
    let said = std::fs::read(&path).unwrap();
    let is_whole = || parse(&std::fs::read(&path).unwrap(), "").map(|read| read.totals.len());
    std::fs::remove_file(&path).unwrap();
    journal.write(&store);
    assert_eq!(is_whole().ok(), Some(1), "removed");
    std::fs::write(&path, "").unwrap();
    journal.write(&store);
    assert_eq!(is_whole().ok(), Some(1), "emptied");
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, said).unwrap();
    add(&store, 2, 4);
    journal.write(&store);
    assert_eq!(is_whole().ok(), Some(2), "replaced");
    end(journal, &store);
    assert_eq!(count(&opened(&path).0, 2), (4, false));
}

#[test]
fn a_link_stays_one() {
    let dir = tempfile::tempdir().unwrap();
    let [path, link] = ["totals", "link"].map(|name| dir.path().join(name));
    drop(opened(&path));
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let (store, mut journal) = opened(&link);
    add(&store, 1, 3);
    journal.write(&store);
    drop(journal);
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(count(&opened(&path).0, 1).0, 3);
}

#[test]
fn what_cannot_be_used_is_known_without_touching_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("totals");
    Journal::check(&path).unwrap();
    assert!(!path.exists());
    assert!(matches!(
        Journal::check(dir.path()),
        Err(JournalError::NoFile { .. })
    ));
    std::fs::write(&path, "something else\n").unwrap();
    assert!(matches!(
        Journal::check(&path),
        Err(JournalError::Foreign { .. })
    ));
    end(
        Journal::open(dir.path().join("new"), &store()).unwrap(),
        &store(),
    );
    Journal::check(&dir.path().join("new")).unwrap();
}

#[test]
fn calls_go_on_while_the_file_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("totals");
    let (store, journal) = opened(&path);
    let (store, stop) = (Arc::new(store), Arc::new(AtomicBool::new(false)));
    let writer = {
        let (store, stop) = (store.clone(), stop.clone());
        std::thread::spawn(move || journal.keep(&store, &stop))
    };
    for _ in 0..10_000 {
        add(&store, 1, 1);
    }
    stop.store(true, Ordering::Release);
    writer.join().unwrap();
    assert_eq!(count(&opened(&path).0, 1), (10_000, false));
}

#[test]
fn a_process_that_takes_over_writes_what_it_was_given_and_nothing_is_in_doubt() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("totals");
    let (old, mut journal) = opened(&path);
    add(&old, 1, 5);
    journal.write(&old);
    add(&old, 2, 1);
    let (new, mut waiting) = opened(&path);
    let moved = old.move_out(|piece| {
        new.move_in(piece);
        Ok::<_, ()>(())
    });
    assert_eq!(moved, Ok(()));
    let late = [(CounterKey(1), Change::Add(1))];
    assert_eq!(old.change_here(&late), None, "the other process has them");
    assert!(new.change_here(&late).is_some());
    waiting.write(&new);
    assert!(!waiting.is_ours, "not before the old one has let go");
    journal.write(&old);
    waiting.write(&new);
    assert!(waiting.is_ours && !journal.is_ours);
    end(journal, &old);
    end(waiting, &new);
    let (third, _journal) = opened(&path);
    assert_eq!(
        (count(&third, 1), count(&third, 2)),
        ((6, false), (1, false))
    );
}

#[test]
fn totals_that_come_back_are_written_here_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("totals");
    let (old, mut journal) = opened(&path);
    add(&old, 1, 5);
    assert_eq!(old.move_out(|_| Ok::<_, ()>(())), Ok(()));
    journal.write(&old);
    old.come_back();
    add(&old, 1, 1);
    journal.write(&old);
    end(journal, &old);
    let (third, _journal) = opened(&path);
    assert_eq!(
        count(&third, 1),
        (6, true),
        "what the other has changed is not known"
    );
}
