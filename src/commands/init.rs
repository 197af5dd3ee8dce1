//! `asft init`

use super::print;
use crate::checkpoint::{is_gguf, write_atomic};
use crate::cli::InitArgs;
use crate::config::suggest;
use crate::console::log;
use crate::data::recognise;
use crate::hub::{self, Split};
use crate::method::direction_file::Directions;
use crate::model::ModelSpec;
use crate::outputs::Outputs;
use crate::{ensure_valid, invalid, sandbox};
use anyhow::{Context, Result};
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};

pub fn run(args: InitArgs) -> Result<()> {
    if let Some(dir) = &args.sandbox {
        return write_sandbox(dir, args.overwrite);
    }
    let model = args.model.ok_or_else(|| invalid!("no model is given; name one, or give --sandbox DIR"))?;
    let name = suggest::short_name(&model);
    let out = args.out.unwrap_or_else(|| PathBuf::from(format!("{name}.toml")));
    let to_stdout = out == Path::new("-");
    if !to_stdout {
        let read = Outputs::new(args.overwrite).reads("MODEL", [&model]).reads("--unaligned", &args.unaligned);
        let read = read.reads("--tokenizer", &args.tokenizer);
        let read = read.reads("--direction", &args.direction).reads("--data", &args.data);
        read.file("--out", [&out]).check()?;
    }
    let base = hub::resolve_without_weights(&model, false)?;
    let base = base.with_tokenizer(args.tokenizer.as_deref(), false).context("--tokenizer")?;
    if is_gguf(base.tokenizer_place()) {
        base.load_tokenizer()?;
    }
    let given = given(args.unaligned, args.direction.as_deref(), args.data, &base.place)?;
    let given = suggest::Given { tokenizer: args.tokenizer, ..given };
    let suggestion = suggest::for_model(&model, &base, given)?;
    let text = suggestion.to_toml()?;
    if to_stdout {
        return print(&text);
    }
    write_atomic(&out, |file| Ok(file.write_all(text.as_bytes())?))?;
    log::info(&format!("wrote {}", out.display()), json!({"config": out}));
    for (key, what) in suggestion.to_do() {
        log::info(&what, json!({"set": key}));
    }
    Ok(())
}

/// Writes the sandbox, and says what to do in it.
fn write_sandbox(dir: &Path, overwrite: bool) -> Result<()> {
    Outputs::new(overwrite).filled("--sandbox", dir).check()?;
    let (count, shown) = (sandbox::write(dir)?, dir.display());
    // No argument holds a NUL, the only thing that cannot be quoted.
    let enter = shlex::try_join(["cd", &*dir.to_string_lossy()]).unwrap_or_default();
    let first = format!("{enter} && asft train --config {}", sandbox::CONFIG);
    log::info(&format!("wrote {count} files to {shown}; next: {first}"), json!({"files": count, "dir": dir}));
    Ok(())
}

/// What the user says about the run, as far as it is on this machine checked.
fn given(
    unaligned: Option<String>,
    direction: Option<&Path>,
    data: Option<String>,
    aligned: &Path,
) -> Result<suggest::Given> {
    if let Some(unaligned) = unaligned.as_deref() {
        let other = hub::resolve_without_weights(unaligned, false).context("--unaligned")?.place;
        let same = other.canonicalize().is_ok_and(|other| aligned.canonicalize().is_ok_and(|dir| dir == other));
        ensure_valid!(!same, "--unaligned is the model itself; expected the model that it was tuned from");
        ModelSpec::load(&other).context("--unaligned")?;
    }
    if let Some(direction) = direction {
        Directions::open(direction).context("--direction")?;
    }
    let format = match data.as_deref().filter(|name| hub::is_local(name)) {
        Some(name) => {
            let files = hub::resolve_dataset(name, Split::Train, true).context("--data")?.paths;
            files.first().map(|first| recognise(first).context("--data")).transpose()?
        }
        None => None,
    };
    let direction = direction.map(|path| path.display().to_string());
    Ok(suggest::Given { unaligned, direction, data, format, ..Default::default() })
}
