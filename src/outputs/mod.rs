//! Where a command may write: the one rule for every output of every command, asked before any work begins.
//!
//! An output that is an input, or lies in an input folder, is refused, whatever links lead to it; so is one that exists,
//! unless the user said `--overwrite`. No two outputs may be one file, since the later would replace the earlier. Pipes and devices hold nothing that could be lost: they are left out.

mod places;

use crate::checkpoint::{check_writable, check_writable_file, is_stream};
use crate::error::joined;
use crate::{ensure_valid, invalid};
use anyhow::{Context, Result};
use places::{actual, identity, leads_to, lies_in, matching, same_file_in};
use std::path::{Path, PathBuf};

/// What a command reads and what it is going to write.
pub struct Outputs {
    overwrite: bool,
    inputs: Vec<Place>,
    outputs: Vec<(Place, Kind)>,
}

/// A path, and the argument or key that names it.
struct Place {
    name: &'static str,
    path: PathBuf,
}

impl Place {
    fn all<P: AsRef<Path>>(name: &'static str, paths: impl IntoIterator<Item = P>) -> impl Iterator<Item = Self> {
        paths.into_iter().map(move |path| Self { name, path: path.as_ref().to_path_buf() })
    }
}

#[derive(Clone, Copy)]
enum Kind {
    File,
    /// Replaced as a whole; an earlier one is known by this file in it.
    Folder(&'static str),
    /// A new or empty folder that is filled; to overwrite is to replace the files that have the same names.
    Filled,
    /// A folder whose writer knows what it may hold, and keeps the rest.
    Kept,
    /// Removed before there is a new one, whatever it is.
    Removed,
}

impl Outputs {
    /// `overwrite`: whether the user wants what exists to be replaced.
    pub fn new(overwrite: bool) -> Self {
        Self { overwrite, inputs: vec![], outputs: vec![] }
    }

    /// Files and folders that are read, or patterns for them. Hub ids may be among them: what is not on disk under that
    /// name is passed over.
    pub fn reads<P: AsRef<Path>>(mut self, name: &'static str, paths: impl IntoIterator<Item = P>) -> Self {
        self.inputs.extend(Place::all(name, paths.into_iter().flat_map(|path| matching(path.as_ref()))));
        self
    }

    /// Files to be written.
    pub fn file<P: AsRef<Path>>(mut self, name: &'static str, paths: impl IntoIterator<Item = P>) -> Self {
        self.outputs.extend(Place::all(name, paths).map(|place| (place, Kind::File)));
        self
    }

    /// A folder to be written with [`crate::checkpoint::replace`]. `mark`: a file that every such folder has.
    pub fn folder(mut self, name: &'static str, path: &Path, mark: &'static str) -> Self {
        self.outputs.extend(Place::all(name, [path]).map(|place| (place, Kind::Folder(mark))));
        self
    }

    /// A folder to be filled with files of its writer's, which with `--overwrite` may hold earlier ones and others.
    pub fn filled(mut self, name: &'static str, path: &Path) -> Self {
        self.outputs.extend(Place::all(name, [path]).map(|place| (place, Kind::Filled)));
        self
    }

    /// A folder whose writer checks for itself what is there, such as a run's: it may hold inputs, but not lie in one.
    pub fn kept(mut self, name: &'static str, path: &Path) -> Self {
        self.outputs.extend(Place::all(name, [path]).map(|place| (place, Kind::Kept)));
        self
    }

    /// Files and folders that are removed when the writing begins: they may not hold inputs either.
    pub fn removed<P: AsRef<Path>>(mut self, name: &'static str, paths: impl IntoIterator<Item = P>) -> Self {
        self.outputs.extend(Place::all(name, paths).map(|place| (place, Kind::Removed)));
        self
    }

    /// Checks all outputs.
    ///
    /// # Errors
    /// Every output that the rule refuses, or that cannot be written, in one message.
    pub fn check(&self) -> Result<()> {
        let check = |(output, kind): &(Place, Kind)| self.check_one(output, *kind).with_context(|| output.name).err();
        let errors: Vec<anyhow::Error> = self.outputs.iter().filter_map(check).chain(self.shared()).collect();
        if errors.is_empty() { Ok(()) } else { Err(joined("the outputs cannot be written", errors)) }
    }

    /// An error for every output that leads to where an earlier one does.
    fn shared(&self) -> impl Iterator<Item = anyhow::Error> {
        let written = self.outputs.iter().filter(|(output, _)| !is_stream(&actual(&output.path)));
        let written: Vec<(&Place, PathBuf)> = written.map(|(output, _)| (output, leads_to(&output.path))).collect();
        let same = (0..written.len()).filter_map(|i| {
            let (output, place) = written.get(i)?;
            let (earlier, _) = written.get(..i)?.iter().find(|(_, other)| other == place)?;
            let (shown, other) = (output.path.display(), format!("{} {}", earlier.name, earlier.path.display()));
            Some(invalid!("{shown} is written twice, also as {other}; give another path").context(output.name))
        });
        same.collect::<Vec<_>>().into_iter()
    }

    fn check_one(&self, output: &Place, kind: Kind) -> Result<()> {
        let path = &actual(&output.path);
        if is_stream(path) && matches!(kind, Kind::File) {
            return Ok(());
        }
        self.inputs.iter().try_for_each(|input| check_against(path, kind, input))?;
        match kind {
            Kind::File => {
                check_writable_file(path)?;
                let is_free = self.overwrite || path.symlink_metadata().is_err();
                ensure_valid!(is_free, "{} exists; replace it with --overwrite, or give another path", path.display());
                Ok(())
            }
            Kind::Folder(mark) => {
                check_writable(path)?;
                self.check_folder(path, Some(mark))
            }
            Kind::Filled => {
                check_writable(path)?;
                self.check_folder(path, None)
            }
            Kind::Kept | Kind::Removed => Ok(()),
        }
    }

    /// Checks that a folder may be written: it is new or empty, or what it holds may be replaced. If that means the whole
    /// folder, it has to be an earlier one of its kind, with the file `mark`.
    fn check_folder(&self, path: &Path, mark: Option<&str>) -> Result<()> {
        let shown = path.display();
        let reading = |e| invalid!("cannot read {shown}: {e}");
        if path.symlink_metadata().is_err() {
            return Ok(());
        }
        let entries =
            std::fs::read_dir(path).map_err(reading)?.collect::<std::io::Result<Vec<_>>>().map_err(reading)?;
        if entries.is_empty() {
            return Ok(());
        }
        ensure_valid!(
            self.overwrite,
            "{shown} is a folder that is not empty; replace it with --overwrite, or give another path"
        );
        let Some(mark) = mark else { return Ok(()) };
        let has_folders = entries.iter().any(|entry| entry.path().is_dir());
        ensure_valid!(
            path.join(mark).is_file() && !has_folders,
            "{shown} is replaced by --overwrite only if it is an earlier output: with {mark}, and without folders in it; \
             give another path"
        );
        Ok(())
    }
}

/// Refuses an output that is the input, lies in it, or would take its place with the folder that it is in.
fn check_against(output: &Path, kind: Kind, input: &Place) -> Result<()> {
    let Some(read) = identity(&input.path) else { return Ok(()) };
    let (shown, other) = (output.display(), format!("{} {}", input.name, input.path.display()));
    let written = identity(output);
    ensure_valid!(written != Some(read), "{shown} is an input, {other}; give another path");
    if input.path.is_dir() {
        ensure_valid!(!lies_in(output, read), "{shown} lies in an input folder, {other}; give a path outside of it");
        let same = output.is_file().then(|| same_file_in(&input.path, output)).flatten();
        if let Some(same) = same {
            return Err(invalid!("{shown} is the same file as the input {}; give another path", same.display()));
        }
    }
    let is_replaced = output.is_dir() && !matches!(kind, Kind::Kept);
    let is_around = is_replaced && written.is_some_and(|written| lies_in(&input.path, written));
    ensure_valid!(!is_around, "{shown} holds an input, {other}; give another path");
    Ok(())
}

#[cfg(test)]
mod tests;
