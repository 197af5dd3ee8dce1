//! The kernels on Apple's GPUs: texts that build.rs puts together and Metal compiles when they are first needed.

#![allow(unsafe_code, reason = "launches on a GPU")]

use super::call::{Call, Slot, suffix};
use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, MetalDevice, Storage, Tensor};
use candle_metal_kernels::metal::{Buffer, ComputePipeline};
use objc2_metal::{MTLCompileOptions, MTLComputePipelineState, MTLSize};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// The text of every source that Metal takes, by its name.
static TEXTS: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/gpu_metal.rs"));

/// Lanes of a warp, and most threads of a block: common.cuh.
const LANES: usize = 32;
const MAX_BLOCK: usize = 1024;

/// A source's kernels for one type, by name.
type Pipelines = HashMap<String, ComputePipeline>;
/// What became of compiling a source for a GPU and a type.
type Compiled = HashMap<(u64, &'static str, DType), Result<Pipelines, String>>;

/// Compiles all kernels of a source for one type, once per process, and gives them to `then`.
///
/// # Errors
/// What Metal says: bf16 before macOS 14, or a GPU that is not Apple's.
fn with_pipelines<R>(
    device: &MetalDevice,
    (source, dtype): (&'static str, DType),
    then: impl FnOnce(&Pipelines) -> Result<R>,
) -> Result<R> {
    static COMPILED: Mutex<Option<Compiled>> = Mutex::new(None);
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    let key = (device.metal_device().registry_id(), source, dtype);
    let compile = || compile(device, source, dtype).map_err(|error| format!("{error:#}"));
    match compiled.get_or_insert_default().entry(key).or_insert_with(compile) {
        Ok(pipelines) => then(pipelines),
        Err(error) => bail!("{error}"),
    }
}

/// Compiles a source's kernels for one type and looks for `entry`.
///
/// # Errors
/// What Metal says.
pub fn load(device: &MetalDevice, (source, entry): (&'static str, &str), dtype: DType) -> Result<()> {
    with_pipelines(device, (source, dtype), |pipelines| {
        ensure!(pipelines.contains_key(entry), "{source} has no kernel {entry}");
        Ok(())
    })
}

fn compile(device: &MetalDevice, source: &str, dtype: DType) -> Result<Pipelines> {
    let value = match suffix(dtype)? {
        "f32" => "float",
        "f16" => "half",
        _ => "bfloat",
    };
    let (_, text) = TEXTS.iter().find(|(of, _)| *of == source).with_context(|| format!("no text of {source}"))?;
    let options = MTLCompileOptions::new();
    // What is not finite must stay so. Newer systems have another call for it and still heed this one.
    #[allow(deprecated, reason = "its successor is not on every macOS")]
    options.setFastMathEnabled(false);
    let gpu = device.metal_device();
    let library = gpu.new_library_with_source(&format!("#define VALUE {value}\n{text}"), Some(&options))?;
    let mut pipelines = Pipelines::new();
    for name in text.lines().filter_map(|line| line.strip_prefix("KERNEL(")?.split(',').next()) {
        let pipeline = gpu.new_compute_pipeline_state_with_function(&library.get_function(name, None)?)?;
        let (lanes, threads) = (pipeline.as_ref().threadExecutionWidth(), pipeline.max_total_threads_per_threadgroup());
        ensure!(
            lanes == LANES && threads >= MAX_BLOCK,
            "the kernel {name} would run in blocks of up to {threads} threads and warps of {lanes}; expected {MAX_BLOCK} and {LANES}"
        );
        pipelines.insert(name.to_string(), pipeline);
    }
    Ok(pipelines)
}

/// A contiguous tensor's buffer, and where in it the first value is, in bytes.
fn buffer(x: &Tensor) -> Result<(Buffer, usize)> {
    let (storage, layout) = x.storage_and_layout();
    let (start, _) = layout.contiguous_offsets().context("a kernel was given a strided view")?;
    match &*storage {
        Storage::Metal(storage) => Ok((storage.buffer().clone(), start * x.dtype().size_in_bytes())),
        _ => bail!("a kernel on Metal was given a tensor of another device"),
    }
}

/// The buffer of an argument that is memory; `any` takes the place of a tensor that is not there.
fn memory(slot: Slot<'_>, any: &Tensor) -> Result<Option<(Buffer, usize)>> {
    Ok(match slot {
        Slot::Read(x) | Slot::Written(x) => Some(buffer(x)?),
        Slot::Missing => Some(buffer(any)?),
        Slot::Address(address) => bail!("memory at {address:#x} is no tensor, and cannot be bound on Metal"),
        Slot::Small(_) | Slot::Large(_) | Slot::Float(_) => None,
    })
}

/// Puts a kernel among the device's commands. candle orders them by the buffers that they read and write.
///
/// # Safety
/// As of [`super::Launch::run`].
pub unsafe fn run(device: &MetalDevice, call: &Call, slots: &[Slot<'_>], any: &Tensor) -> Result<()> {
    let pipeline = with_pipelines(device, (call.source, call.dtype), |pipelines| {
        pipelines.get(&call.entry).cloned().context("there is no such kernel")
    })?;
    ensure!(call.shared == 0, "no kernel on Metal has dynamic shared memory");
    let memory: Vec<_> = slots.iter().map(|slot| memory(*slot, any)).collect::<Result<_>>()?;
    let commands = device.command_encoder()?;
    let encoder = commands.as_ref();
    encoder.set_compute_pipeline_state(&pipeline);
    for (index, (slot, memory)) in slots.iter().zip(&memory).enumerate() {
        match (slot, memory) {
            (Slot::Written(_), Some((buffer, offset))) => encoder.set_output_buffer(index, Some(buffer), *offset),
            (_, Some((buffer, offset))) => encoder.set_input_buffer(index, Some(buffer), *offset),
            (Slot::Small(number), None) => encoder.set_bytes(index, number),
            (Slot::Large(number), None) => encoder.set_bytes(index, number),
            (Slot::Float(number), None) => encoder.set_bytes(index, number),
            (_, None) => {}
        }
    }
    let [width, height, depth] = call.grid;
    let block = MTLSize { width: call.block, height: 1, depth: 1 };
    encoder.dispatch_thread_groups(MTLSize { width, height, depth }, block);
    Ok(())
}
