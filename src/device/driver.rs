//! The CUDA driver, loaded when a GPU is asked for.
//!
//! candle is linked against `libcuda.so.1`, which comes with the driver and not with the toolkit: where it is missing,
//! the loader would not even start the program. So the driver functions that candle calls are defined here, each a jump
//! through [`TABLE`], and the linker does not need `libcuda.so.1`. Until [`load`] has filled the table, and for what an
//! older driver lacks, they return an error, as all of them return a `CUresult`. The calling convention leaves the
//! arguments where they are, so one jump serves every signature. `scripts/check_cuda_build.sh` checks that the list is
//! complete.

#![allow(unsafe_code, reason = "functions that are found by name at run time")]

use crate::console::log;
use anyhow::{Result, bail};
use candle_core::cuda_backend::cudarc::driver::{CudaContext, result, sys};
use serde_json::Value;
use std::ffi::{CStr, c_int, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

/// The name under which every driver installs itself.
const LIBRARY: &CStr = c"libcuda.so.1";

/// `CUDA_ERROR_STUB_LIBRARY`: "the CUDA driver that the application has loaded is a stub library".
const STUB_LIBRARY: c_int = 34;

extern "C" fn missing() -> c_int {
    STUB_LIBRARY
}

/// Finds the driver and its functions, once.
///
/// # Errors
/// A machine without the driver.
pub fn load() -> Result<()> {
    static LOADED: OnceLock<bool> = OnceLock::new();
    let loaded = LOADED.get_or_init(|| {
        // SAFETY: the driver's own library, whose initialisers any CUDA program runs.
        let library = unsafe { libc::dlopen(LIBRARY.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if library.is_null() {
            return false;
        }
        for (entry, name) in TABLE.iter().zip(NAMES) {
            // SAFETY: an open library and a string with its NUL.
            let found = unsafe { libc::dlsym(library, name.as_ptr()) };
            if !found.is_null() {
                entry.store(found, Ordering::Release);
            }
        }
        true
    });
    if !loaded {
        bail!("the NVIDIA driver is not installed on this machine ({} was not found)", LIBRARY.to_string_lossy());
    }
    Ok(())
}

/// Keeps memory that tensors no longer need in the process. By default the driver takes it back whenever the host waits
/// for the device, which is at every step's end, and the next step has to ask for all of it anew. Does nothing where
/// memory is not allocated from a pool.
pub fn keep_freed_memory(context: &CudaContext) {
    if !context.has_async_alloc() {
        return;
    }
    let mut threshold = u64::MAX;
    // SAFETY: an open device's own pool, and a threshold of the type that the attribute has.
    let set = unsafe {
        result::device::get_mem_pool(context.cu_device()).and_then(|pool| {
            let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
            result::mem_pool::set_attribute(pool, attribute, (&raw mut threshold).cast())
        })
    };
    if let Err(error) = set {
        log::debug(&format!("the driver does not keep freed memory: {error}"), Value::Null);
    }
}

macro_rules! functions {
    ($($name:ident)*) => {
        #[allow(non_camel_case_types, clippy::enum_variant_names, reason = "the driver's names")]
        enum Index { $($name),* }

        const NAMES: &[&CStr] = &[$(
            // SAFETY: a literal that ends with its only NUL.
            unsafe { CStr::from_bytes_with_nul_unchecked(concat!(stringify!($name), "\0").as_bytes()) }
        ),*];

        static TABLE: [AtomicPtr<c_void>; NAMES.len()] =
            [const { AtomicPtr::new(missing as extern "C" fn() -> c_int as *mut c_void) }; NAMES.len()];

        $(
            // SAFETY: no other definition has the name, as candle only declares it.
            #[unsafe(no_mangle)]
            #[unsafe(naked)]
            extern "C" fn $name() {
                #[cfg(target_arch = "x86_64")]
                std::arch::naked_asm!(
                    "jmp qword ptr [rip + {table} + {offset}]",
                    table = sym TABLE,
                    offset = const Index::$name as usize * size_of::<usize>(),
                );
                #[cfg(target_arch = "aarch64")]
                std::arch::naked_asm!(
                    "adrp x16, {table}",
                    "add x16, x16, :lo12:{table}",
                    "ldr x16, [x16, {offset}]",
                    "br x16",
                    table = sym TABLE,
                    offset = const Index::$name as usize * size_of::<usize>(),
                );
            }
        )*
    };
}

// What cudarc's safe layer calls. A function missing here would be linked from libcuda.so.1.
functions! {
    cuCtxCreate_v4 cuCtxDestroy_v2 cuCtxGetCacheConfig cuCtxGetCurrent cuCtxGetLimit cuCtxGetStreamPriorityRange
    cuCtxSetCacheConfig cuCtxSetCurrent cuCtxSetFlags cuCtxSetLimit cuCtxSynchronize cuDestroyExternalMemory
    cuDeviceGet cuDeviceGetAttribute cuDeviceGetCount cuDeviceGetDefaultMemPool cuDeviceGetMemPool cuDeviceGetName
    cuDeviceGetUuid_v2 cuDevicePrimaryCtxRelease_v2 cuDevicePrimaryCtxRetain cuDeviceSetMemPool cuDeviceTotalMem_v2
    cuEventCreate cuEventDestroy_v2 cuEventElapsedTime_v2 cuEventQuery cuEventRecord cuEventSynchronize
    cuExternalMemoryGetMappedBuffer cuFuncGetAttribute cuFuncSetAttribute cuFuncSetCacheConfig cuGetErrorName
    cuGetErrorString cuGraphDestroy cuGraphExecDestroy cuGraphInstantiateWithFlags cuGraphLaunch cuGraphUpload
    cuImportExternalMemory cuInit cuLaunchCooperativeKernel cuLaunchHostFunc cuLaunchKernel cuMemAdvise_v2
    cuMemAllocAsync cuMemAllocFromPoolAsync cuMemAllocManaged cuMemAlloc_v2 cuMemFreeAsync cuMemFreeHost
    cuMemFree_v2 cuMemGetInfo_v2 cuMemHostAlloc cuMemPoolCreate cuMemPoolDestroy cuMemPoolGetAttribute
    cuMemPoolSetAttribute cuMemPoolTrimTo cuMemPrefetchAsync_v2 cuMemcpyDtoDAsync_v2 cuMemcpyDtoD_v2
    cuMemcpyDtoHAsync_v2 cuMemcpyDtoH_v2 cuMemcpyHtoDAsync_v2 cuMemcpyHtoD_v2 cuMemcpyPeerAsync cuMemsetD8Async
    cuMemsetD8_v2 cuModuleGetFunction cuModuleGetGlobal_v2 cuModuleLoad cuModuleLoadData cuModuleUnload
    cuOccupancyAvailableDynamicSMemPerBlock cuOccupancyMaxActiveBlocksPerMultiprocessor
    cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags cuOccupancyMaxActiveClusters
    cuOccupancyMaxPotentialBlockSize cuOccupancyMaxPotentialBlockSizeWithFlags cuOccupancyMaxPotentialClusterSize
    cuProfilerStart cuProfilerStop cuStreamAttachMemAsync cuStreamBeginCapture_v2 cuStreamCreate
    cuStreamCreateWithPriority cuStreamDestroy_v2 cuStreamEndCapture cuStreamIsCapturing cuStreamSynchronize
    cuStreamWaitEvent
}
