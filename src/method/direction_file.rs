//! The direction file: for each targeted module the truncated factors of C = V Vᵀ / ‖V‖_F ≈ U diag(c) Uᵀ.
//!
//! safetensors, f32, keyed by module path:
//!
//! ```text
//! <module>.basis        [d_out, k]   U, orthonormal columns, eigenvalue-descending
//! <module>.eigenvalues  [k]          c; σ_i = sqrt(c_i ‖V‖_F)
//! <module>.right_basis  [d_in, k]    V's right singular vectors: V ≈ U diag(σ) right_basisᵀ
//! <module>.v_norm       [1]          ‖V‖_F
//! <module>.residual     [1]          an upper bound on ‖C − U diag(c) Uᵀ‖₂
//! <module>.sketches     [2, 1024]    of the aligned and the unaligned weight; files of older versions have none
//! ```
//!
//! Metadata: `format`, `version`, `tool`; `aligned` and `unaligned` as JSON [`Identity`]; `target_modules` (JSON list);
//! `tolerance` or `rank`; `module_hashes`, a JSON map from module to the hash of its aligned weight, so that a run
//! that targets only some of the file's modules can check just those. A module with V = 0 has k = 0.

use super::likeness::Pair;
use super::spectral::{Direction, Keep, column_squares};
use crate::checkpoint::sketch;
use crate::checkpoint::{Checkpoint, StreamWriter, all_finite};
use crate::error::path_hint;
use crate::names::sort_naturally;
use crate::ops::with_f32;
use crate::{ensure_valid, invalid};
use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

const FORMAT: &str = "asft-direction";
const VERSION: &str = "1";
const PARTS: [&str; 5] = ["basis", "eigenvalues", "right_basis", "v_norm", "residual"];
const SKETCHES: &str = "sketches";
/// How far a basis column's norm may be from 1 before the file counts as damaged.
const UNIT_NORM_SLACK: f64 = 1e-3;

/// Appends a module's tensors, R among them, to a direction file.
pub fn write(direction: &Direction, module: &str, writer: &mut StreamWriter) -> Result<()> {
    let mut matrix = |part: &str, matrix: &Tensor| -> Result<()> {
        with_f32([matrix], |[values]| writer.add_f32(&format!("{module}.{part}"), matrix.dims(), values))?
    };
    matrix("basis", &direction.basis)?;
    matrix("right_basis", direction.right()?)?;
    writer.add_f32(&format!("{module}.eigenvalues"), &[direction.rank()], &direction.eigenvalues)?;
    writer.add_f32(&format!("{module}.v_norm"), &[1], &[direction.v_norm])?;
    writer.add_f32(&format!("{module}.residual"), &[1], &[direction.residual])
}

/// Appends the sketches of a module's two weights.
pub fn write_sketches(pair: &Pair, module: &str, writer: &mut StreamWriter) -> Result<()> {
    let both = [&pair.aligned[..], &pair.unaligned].concat();
    writer.add_f32(&format!("{module}.{SKETCHES}"), &[2, sketch::LENGTH], &both)
}

/// The checkpoint behind one side of V.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Hub id or folder.
    pub id: String,
    /// Commit, for a model from the hub.
    pub revision: Option<String>,
    /// [`combined_hash`](crate::checkpoint::combined_hash) of the targeted weights.
    pub hash: String,
}

/// The file's metadata.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    pub aligned: Identity,
    pub unaligned: Identity,
    /// The modules in the file, in natural order.
    pub modules: Vec<String>,
    /// `tolerance` or `rank`, and its value.
    pub kept: (String, String),
    /// Module to the hash of its aligned weight.
    pub module_hashes: BTreeMap<String, String>,
}

impl Header {
    pub fn to_metadata(&self) -> Result<BTreeMap<String, String>> {
        Ok(BTreeMap::from([
            ("format".to_string(), FORMAT.to_string()),
            ("version".to_string(), VERSION.to_string()),
            ("tool".to_string(), concat!("asft ", env!("CARGO_PKG_VERSION")).to_string()),
            ("aligned".to_string(), serde_json::to_string(&self.aligned)?),
            ("unaligned".to_string(), serde_json::to_string(&self.unaligned)?),
            ("target_modules".to_string(), serde_json::to_string(&self.modules)?),
            self.kept.clone(),
            ("module_hashes".to_string(), serde_json::to_string(&self.module_hashes)?),
        ]))
    }

    /// How much of C was kept.
    ///
    /// # Errors
    /// A value that is not a number.
    pub fn keep(&self) -> Result<Keep> {
        let (key, value) = (self.kept.0.as_str(), &self.kept.1);
        let keep = match key {
            "rank" => value.parse().ok().map(Keep::Rank),
            _ => value.parse().ok().map(Keep::Tolerance),
        };
        keep.ok_or_else(|| invalid!("the direction file's metadata `{key}` is \"{value}\", expected a number"))
    }

    fn from_metadata(metadata: &HashMap<String, String>, path: &Path) -> Result<Self> {
        let file = path.display();
        let field = |key: &str| metadata.get(key).map(String::as_str);
        ensure_valid!(
            field("format") == Some(FORMAT),
            "{file} is not a direction file: its metadata has {}, expected `format` = \"{FORMAT}\"",
            field("format").map_or("no `format`".to_string(), |format| format!("`format` = \"{format}\""))
        );
        ensure_valid!(
            field("version") == Some(VERSION),
            "{file} has direction format version {}; this program reads version {VERSION}",
            field("version").unwrap_or("none")
        );
        let kept = ["tolerance", "rank"].into_iter().find_map(|key| Some((key.to_string(), field(key)?.to_string())));
        Ok(Self {
            aligned: json_field(metadata, "aligned", path)?,
            unaligned: json_field(metadata, "unaligned", path)?,
            modules: json_field(metadata, "target_modules", path)?,
            kept: kept.ok_or_else(|| invalid!("{file}: metadata has neither `tolerance` nor `rank`"))?,
            module_hashes: json_field(metadata, "module_hashes", path)?,
        })
    }
}

fn json_field<T: serde::de::DeserializeOwned>(metadata: &HashMap<String, String>, key: &str, path: &Path) -> Result<T> {
    let text = metadata.get(key).ok_or_else(|| invalid!("{}: metadata `{key}` is missing", path.display()))?;
    serde_json::from_str(text).map_err(|e| invalid!("{}: metadata `{key}` is malformed: {e}", path.display()))
}

/// An open, validated direction file.
pub struct Directions {
    path: PathBuf,
    file: Checkpoint,
    header: Header,
}

impl Directions {
    /// Opens a direction file and checks everything in it: format, names, shapes, values.
    pub fn open(path: &Path) -> Result<Self> {
        ensure_valid!(path.is_file(), "direction file {} does not exist{}", path.display(), path_hint(path));
        let file = Checkpoint::open_file(path)?;
        let mut header = Header::from_metadata(file.metadata(), path)?;
        sort_naturally(&mut header.modules);
        let directions = Self { path: path.to_path_buf(), file, header };
        let problems: Vec<String> = directions
            .header
            .modules
            .iter()
            .filter_map(|module| directions.check_module(module).err())
            .map(|error| format!("{error:#}"))
            .collect();
        ensure_valid!(
            problems.is_empty(),
            "direction file {} is damaged ({} problems):\n  {}",
            path.display(),
            problems.len(),
            problems[..problems.len().min(20)].join("\n  ")
        );
        Ok(directions)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The file's modules, in natural order.
    pub fn modules(&self) -> &[String] {
        &self.header.modules
    }

    /// (d_out, d_in, k) of a module.
    pub fn shape(&self, module: &str) -> Option<(usize, usize, usize)> {
        let basis = self.file.info(&format!("{module}.basis"))?;
        let right = self.file.info(&format!("{module}.right_basis"))?;
        Some((*basis.shape.first()?, *right.shape.first()?, *basis.shape.get(1)?))
    }

    /// The modules with (d_out, d_in), in natural order.
    pub fn shapes(&self) -> Vec<(String, (usize, usize))> {
        let shape = |name: &String| self.shape(name).map(|(d_out, d_in, _)| (name.clone(), (d_out, d_in)));
        self.modules().iter().filter_map(shape).collect()
    }

    /// A module's direction.
    pub fn read(&self, module: &str) -> Result<Direction> {
        let (_, d_in, k) = self.known(module)?;
        let right = Tensor::from_vec(self.part(module, "right_basis")?, (d_in, k), &Device::Cpu)?;
        Ok(Direction { right: Some(right), ..self.read_without_right(module)? })
    }

    /// A module's direction without R, which is half of its bytes and matters only where V's sign does.
    pub fn read_without_right(&self, module: &str) -> Result<Direction> {
        let (d_out, d_in, k) = self.known(module)?;
        Ok(Direction {
            shape: (d_out, d_in),
            basis: Tensor::from_vec(self.part(module, "basis")?, (d_out, k), &Device::Cpu)?,
            right: None,
            eigenvalues: self.part(module, "eigenvalues")?,
            v_norm: self.v_norm(module)?,
            residual: self.part(module, "residual")?[0],
        })
    }

    /// ‖V‖_F of a module.
    pub fn v_norm(&self, module: &str) -> Result<f32> {
        Ok(self.part(module, "v_norm")?[0])
    }

    /// The sketches of a module's two weights, if the file has them.
    ///
    /// # Errors
    /// A tensor of another shape.
    pub fn sketches(&self, module: &str) -> Result<Option<Pair>> {
        let name = format!("{module}.{SKETCHES}");
        let Some(info) = self.file.info(&name) else { return Ok(None) };
        let file = self.path.display();
        ensure_valid!(info.shape == [2, sketch::LENGTH], "direction file {file}: {name} has shape {:?}", info.shape);
        let mut aligned = self.file.read_f32(&name)?;
        let unaligned = aligned.split_off(sketch::LENGTH);
        Ok(Some(Pair { aligned, unaligned }))
    }

    fn part(&self, module: &str, part: &str) -> Result<Vec<f32>> {
        self.known(module)?;
        self.file.read_f32(&format!("{module}.{part}"))
    }

    fn known(&self, module: &str) -> Result<(usize, usize, usize)> {
        self.shape(module).ok_or_else(|| invalid!("{} holds no module {module}", self.path.display()))
    }

    fn check_module(&self, module: &str) -> Result<()> {
        for part in PARTS {
            let present = self.file.info(&format!("{module}.{part}")).is_some();
            ensure_valid!(present, "{module} has no tensor `{part}`");
        }
        let (d_out, d_in, k) = self.known(module)?;
        let expected: [&[usize]; 5] = [&[d_out, k], &[k], &[d_in, k], &[1], &[1]];
        for (part, expected) in PARTS.iter().zip(expected) {
            let name = format!("{module}.{part}");
            let shape = self.file.info(&name).map(|info| info.shape.clone()).unwrap_or_default();
            ensure_valid!(shape == expected, "{module} `{part}` has shape {shape:?}, expected {expected:?}");
            let values = self.file.read_f32(&name)?;
            ensure_valid!(all_finite(&values), "{module} `{part}` holds a non-finite value");
            match *part {
                "eigenvalues" => {
                    let ordered = values.windows(2).all(|pair| pair[0] >= pair[1]) && values.iter().all(|c| *c > 0.0);
                    ensure_valid!(ordered, "{module} `eigenvalues` are not positive and descending");
                }
                "basis" => check_unit_columns(&values, k).with_context(|| format!("{module} `basis`"))?,
                "v_norm" | "residual" => {
                    ensure_valid!(values.iter().all(|v| *v >= 0.0), "{module} `{part}` is negative")
                }
                _ => {}
            }
        }
        let hashed = self.header.module_hashes.contains_key(module);
        ensure_valid!(hashed, "{module} has no entry in the metadata `module_hashes`");
        Ok(())
    }
}

fn check_unit_columns(values: &[f32], k: usize) -> Result<()> {
    let unit = column_squares(values, k).iter().all(|sum| (sum.sqrt() - 1.0).abs() <= UNIT_NORM_SLACK);
    ensure_valid!(unit, "has columns that are not of unit length");
    Ok(())
}
