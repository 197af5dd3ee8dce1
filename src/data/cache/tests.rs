use super::super::Place;
use super::super::samples::BLOCK_BYTES;
use super::*;

/// With a progress bar that nobody sees.
fn samples(
    place: &CacheFolder,
    made_of: &Value,
    make: impl FnOnce(&mut Sink) -> Result<Told>,
) -> Result<(Samples, Told)> {
    place.samples(made_of, &ProgressBar::hidden(), make)
}

fn open(path: &Path, made_of: &Value) -> Result<Option<(Samples, Told)>> {
    file::open(path, made_of, &ProgressBar::hidden())
}

fn folder(folder: &Path, is_named: bool) -> CacheFolder {
    CacheFolder { folder: folder.into(), from_bytes: 0, is_named, is_told: AtomicBool::new(false) }
}

fn names(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

fn sample(i: u32) -> (Example, Origin) {
    let ids: Vec<u32> = (0..500).map(|k| i * 7 + k).collect();
    let labels = ids.iter().map(|&id| i64::from(id)).collect();
    (Example { input_ids: ids, labels }, Origin { file: 0, place: Place::Line(i as usize) })
}

fn make(sink: &mut Sink) -> Result<Told> {
    make_some(3000, sink)
}

fn make_some(count: u32, sink: &mut Sink) -> Result<Told> {
    for (example, origin) in (0..count).map(sample) {
        sink(&example, origin)?;
    }
    let warning = Warning { file: Some(0), text: "odd".to_string(), fields: json!({"n": 1}) };
    Ok(Told { warnings: vec![warning], ..Told::default() })
}

fn never(_: &mut Sink) -> Result<Told> {
    anyhow::bail!("it is made again")
}

#[test]
fn what_was_made_is_read_again_unless_it_is_damaged_or_other() {
    let dir = tempfile::tempdir().unwrap();
    let place = folder(&dir.path().join("deep"), true);
    let made_of = json!({"files": ["abc"], "max_length": 9});
    let path = place.file(&made_of);
    let (made, told) = samples(&place, &made_of, make).unwrap();
    let (again, told_again) = samples(&place, &made_of, never).unwrap();
    assert_eq!((made.len(), again.len(), &told), (3000, 3000, &told_again));
    for i in [0, 1, 2999] {
        assert_eq!(made.read(i).unwrap(), again.read(i).unwrap());
    }
    let other = json!({"files": ["abc"], "max_length": 8});
    assert!(place.file(&other) != path);
    let error = open(&path, &other).unwrap_err().to_string();
    assert!(error.contains("other settings or data: max_length"), "{error}");
    let whole = std::fs::read(&path).unwrap();
    assert!(whole.len() > BLOCK_BYTES, "more than one block");
    for at in [3, 1000, BLOCK_BYTES + 7, whole.len() - 40, whole.len() - 3] {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        std::fs::write(&path, &damaged).unwrap();
        assert!(open(&path, &made_of).is_err(), "a flipped bit in byte {at}");
    }
    for length in [0, 10, 100, BLOCK_BYTES, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        let error = open(&path, &made_of).unwrap_err().to_string();
        assert!(error.contains("cut short"), "{length}: {error}");
    }
    assert!(format!("{:#}", samples(&place, &made_of, never).unwrap_err()).contains("it is made again"));
    samples(&place, &made_of, make).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), whole);
    assert_eq!(names(path.parent().unwrap()).len(), 1);
}

#[test]
fn of_several_that_need_the_same_one_makes_it() {
    let dir = tempfile::tempdir().unwrap();
    let (place, made_of) = (folder(dir.path(), true), json!({"files": 1}));
    let made = std::sync::atomic::AtomicUsize::new(0);
    let one = || {
        let slowly = |sink: &mut Sink| {
            made.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            std::thread::sleep(std::time::Duration::from_millis(300));
            make(sink)
        };
        samples(&place, &made_of, slowly).unwrap().0.len()
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3).map(|_| scope.spawn(one)).collect();
        assert!(threads.into_iter().all(|thread| thread.join().unwrap() == 3000));
    });
    assert_eq!(made.into_inner(), 1);
    assert_eq!(names(dir.path()).len(), 1);
}

#[test]
fn small_data_are_kept_where_a_folder_is_named() {
    let run = Path::new("runs/x");
    let place = |cache: &Cache| CacheFolder::new(cache, run);
    assert!(place(&Cache::Use(false)).is_none());
    let beside = place(&Cache::Use(true)).unwrap();
    assert!(beside.is_for(WORTH_KEEPING) && !beside.is_for(1000));
    assert!(beside.file(&json!({})).starts_with("runs/asft-cache"));
    assert!(place(&Cache::Folder("a".into())).unwrap().is_for(1));
}

#[test]
fn what_a_killed_process_left_is_begun_anew_and_failures_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (place, made_of) = (folder(dir.path(), true), json!({"files": 1}));
    let partial = place.file(&made_of).with_extension("partial");
    std::fs::write(&partial, vec![7; BLOCK_BYTES * 3]).unwrap();
    assert!(samples(&place, &made_of, never).unwrap_err().to_string().contains("made again"));
    assert_eq!(names(dir.path()), [""; 0]);
    std::fs::write(&partial, vec![7; BLOCK_BYTES * 3]).unwrap();
    samples(&place, &made_of, make).unwrap();
    assert_eq!(names(dir.path()), [place.file(&made_of).file_name().unwrap().to_str().unwrap()]);
    assert_eq!(samples(&place, &made_of, never).unwrap().0.len(), 3000);
}

#[test]
fn without_a_folder_samples_stay_in_memory_unless_one_was_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let (beneath, made_of) = (file.join("deeper"), json!({}));
    let place = folder(&beneath, false);
    let (kept, told) = samples(&place, &made_of, make).unwrap();
    assert!(kept.len() == 3000 && kept.read(2999).is_ok() && told.warnings.len() == 1);
    assert!(kept.resident_bytes() > 3000 * 500 * 4 && place.is_told.into_inner());
    let error = samples(&folder(&beneath, true), &made_of, never).unwrap_err();
    assert_eq!(crate::error::exit_code(&error), 2);
    let text = format!("{error:#}");
    assert!(text.contains("data.cache: cannot write") && text.contains("data.cache = false"), "{text}");
}

#[test]
fn a_file_that_cannot_be_written_costs_no_sample() {
    let dir = tempfile::tempdir().unwrap();
    let (place, named, made_of) = (folder(dir.path(), false), folder(dir.path(), true), json!({}));
    let path = place.file(&made_of);
    // Few samples are written at the end, many on the way.
    for count in [10, 3000] {
        let unwritable = || {
            let mut partial = Partial::begin(&path).unwrap();
            partial.file = std::fs::File::open(path.with_extension("partial")).unwrap();
            partial
        };
        let (kept, _) = place.make(&path, &made_of, &unwritable(), |sink| make_some(count, sink)).unwrap();
        assert_eq!(kept.len(), count as usize);
        assert!((0..count).all(|i| kept.read(i as usize).unwrap() == sample(i)));
        let refused = named.make(&path, &made_of, &unwritable(), |sink| make_some(count, sink)).unwrap_err();
        assert!(format!("{refused:#}").contains("cannot write "), "{refused:#}");
    }
    assert_eq!(names(dir.path()), [""; 0]);
}

#[test]
fn files_that_were_not_used_for_long_are_known() {
    let dir = tempfile::tempdir().unwrap();
    let (place, made_of) = (folder(dir.path(), true), json!({"files": 1}));
    samples(&place, &made_of, make).unwrap();
    let path = place.file(&made_of);
    let age = |path: &Path| {
        let (file, long_ago) = (std::fs::File::open(path).unwrap(), OLD + Duration::from_secs(60));
        file.set_modified(std::time::SystemTime::now() - long_ago).unwrap();
    };
    std::fs::write(dir.path().join("notes.samples"), "").unwrap();
    std::fs::write(path.with_extension("partial"), "left").unwrap();
    assert_eq!(place.old(), (vec![], 0));
    for name in names(dir.path()) {
        age(&dir.path().join(name));
    }
    let (old, bytes) = place.old();
    assert_eq!((old.len(), bytes), (2, path.metadata().unwrap().len() + 4), "{old:?}");
    // Use counts.
    samples(&place, &made_of, never).unwrap();
    assert_eq!(place.old().0, [path.with_extension("partial").file_name().unwrap().to_str().unwrap()]);
    // One that was begun where there are no locks, under a name of its own.
    let stem = path.file_stem().unwrap().to_str().unwrap();
    let own = dir.path().join(format!("{stem}xY3zQ9.partial"));
    std::fs::write(&own, "left").unwrap();
    age(&own);
    assert_eq!(place.old().0.len(), 2);
}
