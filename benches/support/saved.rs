//! What a benchmark measured, as JSON, where `--save DIR` is given: DIR/NAME.json with the machine and a row for each line printed.

use super::Limits;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Mutex;

static ROWS: Mutex<Vec<Value>> = Mutex::new(vec![]);
static GROUP: Mutex<Option<String>> = Mutex::new(None);
static LIMITS: Mutex<Value> = Mutex::new(Value::Null);

/// Vector instructions that matrix products choose by, these or another library's.
const FEATURES: [&str; 6] = ["avx2", "fma", "avx512f", "avx512dq", "avx512_vnni", "amx_bf16"];

/// What the rows to come are about, where names repeat.
pub fn group(name: &str) {
    *GROUP.lock().expect("no benchmark panics while it holds this") = Some(name.to_string());
}

/// Adds a row, an object.
pub fn row(mut row: Value) {
    if let Some(group) = GROUP.lock().expect("as above").as_ref() {
        row["group"] = json!(group);
    }
    ROWS.lock().expect("as above").push(row);
}

pub fn limits(limits: &Limits) {
    let found = json!({"gemm_flops_per_second": limits.gemm, "copy_bytes_per_second": limits.copy});
    *LIMITS.lock().expect("as above") = found;
}

/// The folder after `--save`.
///
/// # Errors
/// No folder after it.
pub fn folder() -> Result<Option<PathBuf>> {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--save");
    match (arguments.next(), arguments.next()) {
        (None, _) => Ok(None),
        (_, Some(dir)) => Ok(Some(dir.into())),
        (Some(_), None) => bail!("--save needs a folder: cargo bench -- --save DIR"),
    }
}

/// Writes the file of this benchmark.
pub fn write(dir: &std::path::Path) -> Result<()> {
    let (cpu, features) = machine();
    let content = json!({
        "benchmark": env!("CARGO_CRATE_NAME"),
        "asft": env!("CARGO_PKG_VERSION"),
        "cpu": cpu,
        "features": features,
        "threads": rayon::current_num_threads(),
        "limits": *LIMITS.lock().expect("as above"),
        "rows": *ROWS.lock().expect("as above"),
    });
    std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let path = dir.join(concat!(env!("CARGO_CRATE_NAME"), ".json"));
    std::fs::write(&path, format!("{content:#}\n")).with_context(|| path.display().to_string())?;
    println!("\nsaved {}", path.display());
    Ok(())
}

/// The CPU's name, and those of [`FEATURES`] that it has, as Linux lists them; elsewhere its architecture alone.
fn machine() -> (String, Vec<&'static str>) {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let value = |key: &str| {
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_string())
    };
    let word = |key: &str| value(key).unwrap_or_default();
    let name =
        value("model name").map(|name| format!("{name}, family {}, model {}", word("cpu family"), word("model\t")));
    let flags = word("flags");
    let has = |feature: &&str| flags.split_whitespace().any(|flag| flag == *feature);
    (name.unwrap_or_else(|| std::env::consts::ARCH.to_string()), FEATURES.into_iter().filter(has).collect())
}
