//! Files and folders that appear complete or not at all: written under a temporary name beside the final one, synced,
//! renamed. Pipes and devices are written to as they are.

use crate::{ensure_valid, invalid};
use anyhow::{Context, Result};
use std::fs::{File, OpenOptions, Permissions};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Prefix of our temporary files and folders until they are renamed.
pub const STAGED: &str = ".asft-";

/// The folder that `path` is or will be in.
pub(super) fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The innermost existing folder of `path`, itself included.
pub fn existing(path: &Path) -> &Path {
    path.ancestors().find(|place| place.exists()).unwrap_or(Path::new("."))
}

/// Checks that files can be created in the folder `dir`, which need not exist yet; leaves nothing behind. Called before
/// long work whose result goes there.
pub fn check_writable(dir: &Path) -> Result<()> {
    let place = existing(dir);
    ensure_valid!(place.is_dir(), "cannot write in {}: {} is not a folder", dir.display(), place.display());
    tempfile::tempfile_in(place).map_err(|e| invalid!("cannot write in {}: {e}", dir.display()))?;
    Ok(())
}

/// How many links are followed, as in Linux.
const LINKS: usize = 40;

/// Whether `path` is written to as it goes, and not replaced: a pipe, a device, or a descriptor of this process
/// (`/dev/stdout`), which may be a file to which it is redirected.
pub fn is_stream(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir()) || descriptor(path).is_some()
}

/// The last part of a path that leads, perhaps through links, to a descriptor: `stdout`, `stderr` or a number.
fn descriptor(path: &Path) -> Option<String> {
    let mut path = path.to_path_buf();
    for _ in 0..LINKS {
        let (folder, name) = (path.parent()?.to_path_buf(), path.file_name()?.to_str()?.to_string());
        let is_standard = folder == Path::new("/dev") && matches!(name.as_str(), "stdout" | "stderr");
        if is_standard || matches!(folder.to_str(), Some("/dev/fd" | "/proc/self/fd")) {
            return Some(name);
        }
        path = folder.join(std::fs::read_link(&path).ok()?);
    }
    None
}

/// A stream, to write to.
fn open_stream(path: &Path) -> Result<File> {
    Ok(match descriptor(path).as_deref() {
        // Duplicates: a file opened anew would be written from its start again by what is printed later.
        Some("stdout" | "1") => std::io::stdout().as_fd().try_clone_to_owned()?.into(),
        Some("stderr" | "2") => std::io::stderr().as_fd().try_clone_to_owned()?.into(),
        _ => OpenOptions::new().append(true).open(path)?,
    })
}

/// [`check_writable`] for the file `path`.
pub fn check_writable_file(path: &Path) -> Result<()> {
    if is_stream(path) {
        return Ok(());
    }
    ensure_valid!(!path.is_dir(), "cannot write {}: it is a folder; give the name of a file", path.display());
    check_writable(parent(path))
}

/// Writes a file under a temporary name beside `path`, syncs it and renames it into place. What is no file, such as a
/// pipe, is written to instead.
pub fn write_atomic(path: &Path, write: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let parent = parent(path);
    let written = || format!("writing {}", path.display());
    if is_stream(path) {
        return open_stream(path).and_then(|mut stream| write(&mut stream)).with_context(written);
    }
    std::fs::create_dir_all(parent).with_context(written)?;
    let mut temporary =
        tempfile::Builder::new().prefix(STAGED).permissions(mode()).tempfile_in(parent).with_context(written)?;
    write(temporary.as_file_mut()).with_context(written)?;
    temporary.as_file().sync_all().with_context(written)?;
    temporary.persist(path).with_context(written)?;
    Ok(())
}

/// Ordinary file permissions: temporary files are private by default, finished output should not be.
pub fn mode() -> Permissions {
    Permissions::from_mode(0o644)
}

/// Removes what a killed process left unfinished in `dir`.
pub fn remove_staged(dir: &Path) -> Result<()> {
    let reading = || format!("reading {}", dir.display());
    for entry in std::fs::read_dir(dir).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(STAGED)) {
            let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            removed.with_context(|| format!("removing {}", path.display()))?;
        }
    }
    Ok(())
}

/// A temporary folder beside `out`, which must not exist yet.
pub fn stage(out: &Path) -> Result<tempfile::TempDir> {
    ensure_valid!(!out.exists(), "{} already exists; choose another output folder", out.display());
    let parent = parent(out);
    check_writable(parent)?;
    std::fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    tempfile::Builder::new()
        .prefix(STAGED)
        .tempdir_in(parent)
        .with_context(|| format!("writing in {}", parent.display()))
}

/// Gives a finished staging folder its name. Its files must have been synced; the folders are synced here, so after a
/// crash there is either nothing of that name or all of it.
pub fn publish(staging: tempfile::TempDir, out: &Path) -> Result<()> {
    // Temporary folders are private to the user; the finished one should have ordinary permissions.
    std::fs::set_permissions(staging.path(), Permissions::from_mode(0o755))?;
    sync_dir(staging.path())?;
    std::fs::rename(staging.path(), out).with_context(|| format!("moving the finished folder to {}", out.display()))?;
    let renamed: PathBuf = staging.keep();
    sync_dir(renamed.parent().unwrap_or(Path::new(".")))
}

/// Has `write` make the folder `out`, which it gets a free name for, and puts it in the place of an earlier one. If it
/// fails, the earlier one stays.
pub fn replace(out: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let Ok(place) = std::fs::canonicalize(out) else { return write(out) };
    let writing = || format!("replacing {}", out.display());
    let aside = tempfile::Builder::new().prefix(STAGED).tempdir_in(parent(&place)).with_context(writing)?;
    let (new, old) = (aside.path().join("new"), aside.path().join("old"));
    write(&new)?;
    std::fs::rename(&place, &old).with_context(writing)?;
    if let Err(error) = std::fs::rename(&new, &place) {
        std::fs::rename(&old, &place).with_context(writing)?;
        return Err(error).with_context(writing);
    }
    sync_dir(parent(&place))
}

/// Makes the names in a folder as durable as the files' contents.
pub fn sync_dir(dir: &Path) -> Result<()> {
    let syncing = || format!("syncing {}", dir.display());
    std::fs::File::open(dir).with_context(syncing)?.sync_all().with_context(syncing)
}
