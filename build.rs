//! Compiles the GPU kernels of src/ops/gpu: with nvcc to PTX for the feature `cuda`, with the C++ compiler for the tests'
//! feature `shim`. For `metal` it puts together the texts that Metal compiles at run time. Other builds have no kernels.
//!
//! PTX is for compute capability 8.0 and is translated by the driver, for newer GPUs too. nvcc is found as `NVCC`, in
//! `CUDA_HOME`, `CUDA_PATH` or `CUDA_ROOT`, on the path, or in /usr/local/cuda, as candle's own kernels find it.

#[path = "src/ops/gpu/sources.rs"]
mod sources;

use sources::SOURCES;
use std::env;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

const KERNELS: &str = "src/ops/gpu";
/// Suffixes, and the types in CUDA C.
const TYPES: [(&str, &str); 3] = [("f32", "float"), ("bf16", "__nv_bfloat16"), ("f16", "__half")];
const ARCHITECTURE: &str = "compute_80";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let has = |feature: &str| env::var_os(format!("CARGO_FEATURE_{feature}")).is_some();
    if has("CUDA") || has("METAL") || has("SHIM") {
        println!("cargo::rerun-if-changed={KERNELS}");
    }
    if has("CUDA") {
        compile_ptx();
    }
    if has("METAL") || has("SHIM") {
        write_metal();
    }
    #[cfg(feature = "shim")]
    compile_shim();
}

/// Compiles the kernels for the CPU, in CUDA's words and in Metal's.
#[cfg(feature = "shim")]
fn compile_shim() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let includes = SOURCES.map(|(source, _)| format!("#include \"../{source}.cu\"\n")).concat();
    std::fs::write(out.join("kernels.inc"), includes).expect("OUT_DIR can be written to");
    let metal = on_metal().map(|source| {
        let text = std::fs::read_to_string(out.join(format!("{source}.metal"))).expect("write_metal came first");
        let names = text.lines().filter_map(|line| line.strip_prefix("KERNEL(")?.split(',').next());
        let register =
            |name| format!("static const shim::Registered registered_{name}(TYPE_NAME, \"{name}\", &{name}, 4);\n");
        let registered: String = names.map(register).collect();
        format!("namespace {source}_metal {{\n#include \"{source}.metal\"\n{registered}}}\n")
    });
    std::fs::write(out.join("metal_kernels.inc"), metal.collect::<String>()).expect("OUT_DIR can be written to");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .flag_if_supported("-ftls-model=initial-exec")
        .flag_if_supported("-ffp-contract=off")
        .warnings(false)
        .include(format!("{KERNELS}/shim"))
        .include(out)
        .files(["shim", "metal"].map(|name| format!("{KERNELS}/shim/{name}.cpp")))
        .compile("asft_shim");
}

/// Writes the PTX of every source and type, and `gpu_ptx.rs`: a list of their names and texts.
fn compile_ptx() {
    let (nvcc, out) = (nvcc(), PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")));
    for variable in ["NVCC", "CUDA_HOME", "CUDA_PATH", "CUDA_ROOT", "NVCC_APPEND_FLAGS"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let names = SOURCES.iter().flat_map(|(source, _)| TYPES.map(|(suffix, value)| (*source, suffix, value)));
    let running: Vec<_> = names.map(|name| (name, start(&nvcc, name, &out))).collect();
    let mut names = vec![];
    for ((source, suffix, _), mut compiler) in running {
        let ended = compiler.wait().expect("nvcc was started");
        assert!(ended.success(), "nvcc cannot compile {KERNELS}/{source}.cu for {suffix}");
        names.push(format!("{source}_{suffix}"));
    }
    write_list(&out, "ptx", &names);
}

/// The sources that Metal's compiler takes.
fn on_metal() -> impl Iterator<Item = &'static str> {
    SOURCES.into_iter().filter_map(|(source, on_metal)| on_metal.then_some(source))
}

/// Writes the text of every source that Metal takes, in one file each, and `gpu_metal.rs`: a list of them.
fn write_metal() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let read = |name: &str| std::fs::read_to_string(Path::new(KERNELS).join(name)).expect("a source can be read");
    let common = read("metal.h") + &read("common.cuh");
    for source in on_metal() {
        let text = common.clone() + &read(&format!("{source}.cu"));
        let is_whole = |line: &&str| !line.starts_with("#include \"") && !line.starts_with("#pragma once");
        let text: Vec<&str> = text.lines().filter(is_whole).collect();
        std::fs::write(out.join(format!("{source}.metal")), text.join("\n") + "\n").expect("OUT_DIR can be written to");
    }
    write_list(&out, "metal", &on_metal().map(String::from).collect::<Vec<_>>());
}

/// Writes `gpu_<extension>.rs`: names, and the texts of their files.
fn write_list(out: &Path, extension: &str, names: &[String]) {
    let mut list = String::from("&[");
    for name in names {
        let path = out.join(format!("{name}.{extension}"));
        write!(list, "({name:?}, include_str!({path:?})),").expect("a string grows");
    }
    list.push(']');
    std::fs::write(out.join(format!("gpu_{extension}.rs")), list).expect("OUT_DIR can be written to");
}

fn start(nvcc: &Path, (source, suffix, value): (&str, &str, &str), out: &Path) -> std::process::Child {
    Command::new(nvcc)
        .args(["-ptx", "-O3", "-std=c++17", "-arch", ARCHITECTURE, "-D", &format!("VALUE={value}"), "-o"])
        .arg(out.join(format!("{source}_{suffix}.ptx")))
        .arg(format!("{KERNELS}/{source}.cu"))
        .spawn()
        .unwrap_or_else(|error| panic!("{} cannot be started: {error}; set CUDA_HOME", nvcc.display()))
}

fn nvcc() -> PathBuf {
    let homes = ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    let path = env::var_os("PATH").unwrap_or_default();
    let in_homes = homes.map(|home| home.join("bin"));
    let folders = in_homes.chain(env::split_paths(&path)).chain([PathBuf::from("/usr/local/cuda/bin")]);
    let found = folders.map(|folder| folder.join("nvcc")).find(|nvcc| nvcc.is_file());
    env::var_os("NVCC").map(PathBuf::from).or(found).unwrap_or_else(|| PathBuf::from("nvcc"))
}
