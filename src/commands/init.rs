//! `asft init`

use super::print;
use crate::checkpoint::{check_writable_file, write_atomic};
use crate::cli::InitArgs;
use crate::config::suggest;
use crate::console::log;
use crate::ensure_valid;
use crate::hub;
use anyhow::Result;
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};

pub fn run(args: InitArgs) -> Result<()> {
    let name = suggest::short_name(&args.model);
    let out = args.out.unwrap_or_else(|| PathBuf::from(format!("{name}.toml")));
    let to_stdout = out == Path::new("-");
    if !to_stdout {
        ensure_valid!(!out.exists(), "{} exists and is left as it is; choose another file with --out", out.display());
        check_writable_file(&out)?;
    }
    let base = hub::resolve_without_weights(&args.model, false)?;
    let suggestion = suggest::for_model(&args.model, &base.dir)?;
    let text = suggestion.to_toml()?;
    if to_stdout {
        return print(&text);
    }
    write_atomic(&out, |file| Ok(file.write_all(text.as_bytes())?))?;
    log::info(&format!("wrote {}", out.display()), json!({"config": out}));
    let missing = suggestion.to_do();
    log::info(&format!("before training, set {}", missing.join(" and ")), json!({"set": missing}));
    Ok(())
}
