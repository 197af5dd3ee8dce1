//! All trained parameters in one launch, on a GPU whose kernels serve: AdamW's step and the squares of gradients. One launch
//! for each parameter would take longer to start than to compute.

#![allow(unsafe_code, reason = "GPU kernels")]

use super::gpu::{self, Arg, Launch, PARAMETERS};
use super::scalar::{Scalar, wide};
use super::traffic;
use anyhow::Result;
use candle_core::{DType, Device, Tensor};

/// Values of a block: CHUNK in gpu/parameters.cu.
const CHUNK: usize = 4096;
const BLOCK: usize = 256;
/// Kernels of f32 only; the other types' are the same.
const TYPE: DType = DType::F32;

/// A parameter and what moves it, all f32 and of one shape.
pub struct Moved<'a> {
    pub parameter: &'a Tensor,
    pub m: &'a Tensor,
    pub v: &'a Tensor,
    pub gradient: &'a Tensor,
    /// The learning rate over the first moment's bias.
    pub rate: f64,
    /// What weight decay leaves of the parameter.
    pub keep: f64,
}

/// What AdamW's step of every parameter has in common.
pub struct Step {
    pub betas: [f64; 2],
    /// Factor of the gradients.
    pub scale: f64,
    /// Root of the second moment's bias.
    pub root: f64,
    pub epsilon: f64,
}

/// Whether a kernel may serve parameters with such gradients.
pub fn serve(gradient: &Tensor) -> bool {
    PARAMETERS.serve_f32(&[gradient])
}

/// Moves all parameters and their moments in place. Returns false, and does nothing, where no kernel serves.
pub fn adamw(moved: &[Moved<'_>], step: &Step) -> Result<bool> {
    let tensors: Vec<&Tensor> = moved.iter().flat_map(|p| [p.parameter, p.m, p.v, p.gradient]).collect();
    if !PARAMETERS.serve_f32(&tensors) || !moved.iter().all(|p| same_shape(&[p.parameter, p.m, p.v, p.gradient])) {
        return Ok(false);
    }
    let mut rows = vec![];
    for p in moved {
        let written = [p.parameter, p.m, p.v].map(gpu::address::to_write);
        rows.push((written.into_iter().collect::<Result<Vec<u64>>>()?, p.gradient));
    }
    let tables = Tables::new(&rows)?;
    let rates: Vec<f32> = moved.iter().flat_map(|p| [p.rate as f32, p.keep as f32]).collect();
    let rates = Tensor::from_vec(rates, (moved.len(), 2), tables.chunks.device())?;
    let [beta1, beta2] = step.betas;
    let numbers = [beta1, 1.0 - beta1, beta2, 1.0 - beta2, step.scale, step.root, step.epsilon].map(Arg::Float);
    let tensors = [Arg::In(&tables.parameters), Arg::In(&rates), Arg::In(&tables.chunks)];
    // SAFETY: the tables have the addresses of tensors of f32 of one size each, which are held to the end of this call.
    unsafe { tables.launch("adamw").run(&[tensors.as_slice(), &numbers].concat())? };
    for p in moved {
        traffic::moved(&[p.parameter, p.m, p.v, p.gradient], &[p.parameter, p.m, p.v]);
    }
    Ok(true)
}

/// Σ g² over all of them, or none where no kernel serves.
pub fn square_sum(gradients: &[&Tensor]) -> Result<Option<Scalar>> {
    if !PARAMETERS.serve_f32(gradients) {
        return Ok(None);
    }
    let rows: Vec<(Vec<u64>, &Tensor)> = gradients.iter().map(|gradient| (vec![0; 3], *gradient)).collect();
    let tables = Tables::new(&rows)?;
    let chunks = tables.chunks.dim(0)?;
    // SAFETY: as above. The kernel writes the sum of every chunk.
    let sums = unsafe {
        let sums = gpu::unwritten(chunks, TYPE, tables.chunks.device())?;
        let arguments = [Arg::In(&tables.parameters), Arg::In(&tables.chunks), Arg::Out(&sums)];
        tables.launch("squares").run(&arguments)?;
        traffic::moved(gradients, &[]);
        sums
    };
    Ok(Some(Scalar::of(sums.to_dtype(wide(sums.device()))?.sum_all()?)?))
}

fn same_shape(tensors: &[&Tensor]) -> bool {
    tensors.windows(2).all(|pair| pair[0].dims() == pair[1].dims())
}

/// What a launch over several tensors reads on the device.
struct Tables {
    /// Addresses and number of values of each: `Parameter` in parameters.cu, as i64.
    parameters: Tensor,
    /// (number of the parameter, number of the chunk) of each block, u32.
    chunks: Tensor,
}

impl Tables {
    /// Of (three addresses, gradient) each.
    fn new(rows: &[(Vec<u64>, &Tensor)]) -> Result<Self> {
        let device = rows.first().map_or(&Device::Cpu, |(_, gradient)| gradient.device());
        let (mut addresses, mut counts) = (vec![], vec![]);
        for (written, gradient) in rows {
            let n = gradient.elem_count();
            let row = written.iter().copied().chain([gpu::address::of(gradient)?, n as u64]);
            addresses.extend(row.map(u64::cast_signed));
            counts.push(n.div_ceil(CHUNK));
        }
        let parameters = Tensor::from_vec(addresses, (rows.len(), 5), device)?;
        Ok(Self { parameters, chunks: gpu::chunks(&counts, device)? })
    }

    fn launch(&self, entry: &str) -> Launch {
        Launch::new(&PARAMETERS, entry, TYPE, [self.chunks.dims()[0], 1, 1], (BLOCK, 0))
    }
}
