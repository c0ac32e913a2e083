//! The cache as a folder: what is kept, for how long, and who may read it.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use super::*;
use crate::full_disk;

const NUMBERS: usize = 10;

fn image(n: u8) -> Digest {
    Digest::of(&[n])
}

fn row(n: u8) -> Vec<f32> {
    (0..NUMBERS).map(|i| f32::from(n) + i as f32 / 16.0).collect()
}

fn open(folder: &Path, records: u64) -> PrefixCache {
    let bytes = record::bytes(NUMBERS, Precision::F32) as u64;
    PrefixCache::open(folder, records * bytes, Precision::F32).unwrap()
}

fn shelf(cache: &PrefixCache) -> Shelf<'_> {
    cache.shelf("key", "a backbone", NUMBERS, 1).unwrap()
}

fn put(shelf: &Shelf<'_>, n: u8) {
    shelf.put(&[image(n)], &mut [row(n)]);
}

/// As if the record of `n` had been used at second `n`.
fn age(shelf: &Shelf<'_>, n: u8) {
    let used = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::from(n));
    File::options().write(true).open(shelf.path(&image(n))).unwrap().set_modified(used).unwrap();
}

fn bytes_in(cache: &PrefixCache) -> u64 {
    cache.records().unwrap().iter().map(|record| record.bytes).sum()
}

#[test]
fn a_record_is_found_again_by_its_shelf_and_its_image_alone() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path(), 10);
    put(&shelf(&cache), 1);
    let other = open(folder.path(), 10);
    assert_eq!(shelf(&other).get(&image(1)), Some(row(1)));
    assert_eq!(shelf(&other).get(&image(2)), None);
    assert_eq!(other.shelf("other key", "another", NUMBERS, 1).unwrap().get(&image(1)), None);
    // The same numbers rounded are another shelf.
    let half = PrefixCache::open(folder.path(), 10_000, Precision::F16).unwrap();
    assert_eq!(shelf(&half).get(&image(1)), None);
}

#[test]
fn damage_is_computed_again_and_written_over() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path(), 10);
    let shelf = shelf(&cache);
    put(&shelf, 1);
    let path = shelf.path(&image(1));
    let whole = fs::read(&path).unwrap();
    let mut flipped = whole.clone();
    flipped[90] ^= 1;
    for damaged in [&whole[..40], &[], &flipped] {
        fs::write(&path, damaged).unwrap();
        assert_eq!(shelf.get(&image(1)), None);
        put(&shelf, 1);
        assert_eq!(fs::read(&path).unwrap(), whole);
    }
    assert_eq!(shelf.get(&image(1)), Some(row(1)));
}

#[test]
fn what_a_killed_process_left_is_no_record_and_goes() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path(), 2);
    let shelf = shelf(&cache);
    put(&shelf, 1);
    // Killed between the total and the record, with half of one in a temporary file.
    let temporary = shelf.path(&image(2)).with_extension(TEMPORARY);
    fs::write(&temporary, b"TRIBPFX1 half").unwrap();
    let record = fs::metadata(shelf.path(&image(1))).unwrap().len();
    fs::write(cache.folder.join(TOTAL), (2 * record).to_string()).unwrap();
    assert_eq!(shelf.get(&image(2)), None);
    put(&shelf, 3);
    assert!(!temporary.exists());
    assert_eq!(bytes_in(&cache), 2 * record);
    for n in [1, 3] {
        assert_eq!(shelf.get(&image(n)), Some(row(n)), "nothing was evicted for a wrong total");
    }
    // One in the way of the very same record.
    fs::write(&temporary, b"TRIBPFX1 half").unwrap();
    fs::write(cache.folder.join(TOTAL), "nonsense").unwrap();
    put(&shelf, 2);
    assert_eq!(shelf.get(&image(2)), Some(row(2)));
}

#[test]
fn the_record_unused_for_longest_makes_room_and_the_cap_holds() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path(), 4);
    let shelf = shelf(&cache);
    for n in 1..=4 {
        put(&shelf, n);
        age(&shelf, n);
    }
    // Reading is using.
    assert_eq!(shelf.get(&image(1)), Some(row(1)));
    put(&shelf, 5);
    let left: Vec<u8> = (1..=5).filter(|n| shelf.path(&image(*n)).exists()).collect();
    assert_eq!(left, [1, 4, 5], "2, and 3 for the next one");
    for n in 6..=60 {
        put(&shelf, n);
        assert!(bytes_in(&cache) <= cache.bytes_max);
        assert_eq!(shelf.get(&image(n)), Some(row(n)));
    }
}

#[test]
fn a_cap_below_what_is_asked_keeps_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path(), 4);
    assert!(cache.shelf("key", "a backbone", NUMBERS, 4).is_some());
    assert!(cache.shelf("key", "a backbone", NUMBERS, 5).is_none());
    // Halves: as many images again.
    let half = PrefixCache::open(folder.path(), cache.bytes_max, Precision::F16).unwrap();
    assert!(half.shelf("key", "a backbone", NUMBERS, 4).is_some());
}

#[test]
fn what_is_kept_is_counted_and_cleared() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(PrefixCache::look(folder.path()).unwrap(), []);
    assert_eq!(PrefixCache::clear(folder.path()).unwrap(), []);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "looking makes nothing");
    let cache = open(folder.path(), 10);
    put(&shelf(&cache), 1);
    put(&shelf(&cache), 2);
    let other = cache.shelf("other key", "another\u{1b}", NUMBERS, 1).unwrap();
    put(&other, 1);
    let found = PrefixCache::look(folder.path()).unwrap();
    let told: Vec<_> =
        found.iter().map(|s| (s.about.as_deref().unwrap(), s.records, s.bytes)).collect();
    let each = record::bytes(NUMBERS, Precision::F32) as u64;
    assert_eq!(told, [("a backbone", 2, 2 * each), ("another ", 1, each)]);
    // A file that is not the cache's, and a folder that is no shelf, stay.
    let (file, beside) = (other.folder.join("notes.txt"), cache.folder.join("mine"));
    fs::write(&file, b"mine").unwrap();
    fs::create_dir(&beside).unwrap();
    assert_eq!(PrefixCache::clear(folder.path()).unwrap(), found);
    assert_eq!(bytes_in(&cache), 0);
    assert!(file.exists() && beside.exists() && !shelf(&cache).folder.exists());
    // Who has it open goes on.
    put(&shelf(&cache), 3);
    assert_eq!(shelf(&cache).get(&image(3)), Some(row(3)));
    assert_eq!(fs::read_to_string(cache.folder.join(TOTAL)).unwrap(), each.to_string());
}

#[test]
fn clearing_beside_writers_breaks_no_record_and_no_count() {
    let folder = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let cache = open(folder.path(), 8);
            for turn in 0..120u8 {
                put(&shelf(&cache), turn % 16);
                let found = shelf(&cache).get(&image(turn % 16));
                assert!(found.is_none_or(|found| found == row(turn % 16)));
            }
        });
        while !writer.is_finished() {
            PrefixCache::clear(folder.path()).unwrap();
            PrefixCache::look(folder.path()).unwrap();
        }
    });
    let cache = open(folder.path(), 8);
    put(&shelf(&cache), 1);
    let _held = cache.lock().unwrap();
    let counted: u64 = fs::read_to_string(cache.folder.join(TOTAL)).unwrap().parse().unwrap();
    assert!(counted >= bytes_in(&cache) && counted <= cache.bytes_max);
}

#[test]
fn only_the_owner_may_look() {
    let folder = tempfile::tempdir().unwrap();
    let loose = folder.path().join(FOLDER);
    fs::create_dir(&loose).unwrap();
    fs::set_permissions(&loose, fs::Permissions::from_mode(0o755)).unwrap();
    let cache = open(folder.path(), 4);
    let shelf = shelf(&cache);
    put(&shelf, 1);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for folder in [&cache.folder, &shelf.folder] {
        assert_eq!(mode(folder), 0o700, "{}", folder.display());
    }
    let about = shelf.folder.join(ABOUT);
    for file in [shelf.path(&image(1)), about, cache.folder.join(TOTAL), cache.folder.join(LOCK)] {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
}

#[test]
fn a_disk_that_takes_nothing_loses_nothing_but_time() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path(), 4);
    let shelf = shelf(&cache);
    // A file where the shelf's folder should be.
    fs::write(&shelf.folder, b"in the way").unwrap();
    let mut rows = [row(1)];
    shelf.put(&[image(1)], &mut rows);
    assert_eq!(rows, [row(1)]);
    assert_eq!(shelf.get(&image(1)), None);
}

#[test]
fn several_writers_and_readers_see_whole_records_within_the_cap() {
    let folder = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for writer in 0..4u8 {
            let folder = folder.path();
            scope.spawn(move || {
                let cache = open(folder, 8);
                let shelf = shelf(&cache);
                for turn in 0..40u8 {
                    let n = (writer * 7 + turn * 3) % 16;
                    put(&shelf, n);
                    let found = shelf.get(&image(n));
                    assert!(found.is_none_or(|found| found == row(n)));
                    let _held = cache.lock().unwrap();
                    assert!(bytes_in(&cache) <= cache.bytes_max);
                }
            });
        }
    });
}

#[test]
fn a_full_disk_keeps_nothing_and_loses_nothing_until_there_is_room() {
    if !full_disk::is_simulated() {
        return full_disk::simulate_in_a_child(
            "trainer::cache::tests::a_full_disk_keeps_nothing_and_loses_nothing_until_there_is_room",
        );
    }
    let folder = tempfile::tempdir().unwrap();
    // More than a file may have.
    let numbers = 1000;
    let long = |n: u8| vec![f32::from(n); numbers];
    let cache = PrefixCache::open(folder.path(), 1 << 20, Precision::F32).unwrap();
    let shelf = cache.shelf("key", "a backbone", numbers, 1).unwrap();
    for n in [1, 2] {
        let mut rows = [long(n)];
        shelf.put(&[image(n)], &mut rows);
        assert_eq!(rows, [long(n)]);
        assert_eq!(shelf.get(&image(n)), None);
    }
    assert!(cache.told_broken.load(Ordering::Relaxed));
    let left = fs::read_dir(&shelf.folder).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = left.filter(|name| name != super::ABOUT).collect();
    assert!(left.is_empty(), "{left:?}");
    full_disk::make_room();
    shelf.put(&[image(1), image(2)], &mut [long(1), long(2)]);
    assert_eq!([1, 2].map(|n| shelf.get(&image(n))), [1, 2].map(|n| Some(long(n))));
}
