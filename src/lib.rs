//! asft fine-tunes language models without losing their safety (AsFT, arXiv 2506.08473): a penalty holds every weight
//! update near the direction from the unaligned base to the aligned model.
//!
//! The program is one way to use it; this is the library below. The direction, its operator and the penalty of one matrix:
//!
//! ```
//! use asft::method::{AsftOptions, Direction, Keep, Operator, Penalty};
//! use candle_core::{Device, Tensor};
//!
//! # fn main() -> anyhow::Result<()> {
//! let (d_out, d_in, rank) = (64, 48, 4);
//! let cpu = &Device::Cpu;
//! let aligned = Tensor::randn(0f32, 0.1, (d_out, d_in), cpu)?;
//! let unaligned = (&aligned - Tensor::randn(0f32, 0.02, (d_out, d_in), cpu)?)?;
//! let (a, b) = (Tensor::randn(0f32, 0.1, (rank, d_in), cpu)?, Tensor::randn(0f32, 0.1, (d_out, rank), cpu)?);
//!
//! let options = AsftOptions { lambda: 0.5.into(), ..Default::default() };
//! let direction = Direction::of(&(aligned - unaligned)?, Keep::Tolerance(1e-3))?; // V ≈ U diag(σ) Rᵀ
//! let operator = Operator::new(&options, &direction, cpu)?; // C = V Vᵀ / ‖V‖_F, never formed
//! let term = Penalty::new(&options)?.lora(Some(&operator), &a, &b, 1.0)?; // λ ‖(I − C) B A‖_F²
//! assert!(term.value.read()? > 0.0);
//! assert_eq!((term.grad_a.dims(), term.grad_b.dims()), (a.dims(), b.dims()));
//! # Ok(())
//! # }
//! ```
//!
//! The same beside the formula taken literally is `examples/penalty.rs`; a whole run is [`train::run`] with
//! [`config::Settings`]. Signatures may change between minor versions.
//!
//! # The rooms
//!
//! From the top down; a room imports from those below it only (`scripts/check_layers.py`). `docs/architecture.md` says
//! more, and how to add a model family, an operation, a defence or an evaluation.
//!
//! | room | what happens there |
//! | --- | --- |
//! | [`commands`] | one file per command: load, call, write |
//! | [`cli`] | arguments as typed |
//! | [`compare`] | defences side by side: runs, results, their summary |
//! | [`serve`] | a model and its adapters over HTTP |
//! | [`train`] | a run: before its first step, the step, the defence, the output folder, and the loop |
//! | [`config`] | TOML and `--set` overrides to validated settings |
//! | [`plot`] | pictures of landscapes, updates and comparisons |
//! | [`eval`] | loss, accuracy, refusals, judges, and the landscape around a model |
//! | [`method`] | AsFT itself: direction, penalty, shares of an update, Safe LoRA's projection |
//! | [`adapter`] | LoRA adapters in memory, as PEFT folders, merged |
//! | [`data`] | records to token ids and labels, batches |
//! | [`doctor`] | whether a device computes rightly what training rests on |
//! | [`optim`] | AdamW and its schedule |
//! | [`model`] | `config.json` to a decoder; forward, and backward without a tape |
//! | [`ops`] | primitives, forward and backward: a generic body and CPU kernels |
//! | [`hub`] | models and datasets of the Hugging Face hub, fetched and kept |
//! | [`device`] | what this build can compute on |
//! | [`report`] | what a run leaves: metrics, run record, TensorBoard events, the page |
//! | [`tokenizer`] | text to token ids and back |
//! | [`sandbox`] | the toy pair of the first run, as part of the program |
//! | [`outputs`] | whether what a command writes may go where it is to go |
//! | [`checkpoint`] | safetensors, GGUF files and model folders, read and written |
//! | [`names`] | module paths, tensor names, the order within a block, `target_modules` |
//! | [`quant`] | weights in blocks: a few bits for each value |
//! | [`toml_reader`] | any TOML that a user writes: all problems at once, nearest key, schema |
//! | [`console`] | messages, progress bars, tables |
//! | [`ticks`] | ticks and ranges of charts |
//! | [`stop`] | SIGINT and SIGTERM |
//! | [`ranks`] | processes that train as one |
//! | [`untrusted`] | limits on the work that strangers' input can cause |
//! | [`vectors`] | loops with the widest vectors of the CPU |
//! | [`memory`], [`version`], [`error`] | memory in use; what this build is; exit codes and hints |

// Allowed again in files of ops/ only, for a reason each (tests/it/memory_safety.rs).
#![deny(unsafe_code)]

pub mod adapter;
pub mod checkpoint;
pub mod cli;
pub mod commands;
pub mod compare;
pub mod config;
pub mod console;
pub mod data;
pub mod device;
pub mod doctor;
pub mod error;
pub mod eval;
pub mod hub;
pub mod memory;
pub mod method;
pub mod model;
pub mod names;
pub mod ops;
pub mod optim;
pub mod outputs;
pub mod plot;
pub mod quant;
pub mod ranks;
pub mod report;
pub mod sandbox;
pub mod serve;
pub mod stop;
pub mod ticks;
pub mod tokenizer;
pub mod toml_reader;
pub mod train;
pub mod untrusted;
pub mod vectors;
pub mod version;
