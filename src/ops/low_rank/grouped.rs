//! The penalty of all modules together, on a GPU whose kernels serve (gpu/penalty.cu): its values, and its gradients added to
//! the step's. Module by module these are some thirty launches each, of matrices that take no time to compute.
//!
//! Two products with U a module remain, which read nearly all that the penalty reads; the rest is four launches:
//! y = UᵀB; (c ∘ y, c' ∘ y) of all; U times that; parts of S = A Aᵀ and T = GᵀG; their sums and the values; the gradients.

#![allow(unsafe_code, reason = "GPU kernels")]

use super::Image;
use crate::ops::gpu::{self, Arg, Launch, PENALTY, unwritten};
use crate::ops::{linear, traffic};
use anyhow::Result;
use candle_core::{DType, Device, Tensor};

/// Values of a block of `penalty_weights`, and threads of any block: WEIGHED and MOST_THREADS in gpu/penalty.cu.
const WEIGHED: usize = 1024;
const BLOCK: usize = 256;
/// Columns of A or rows of B that a block has for each rank, and ranks from which on it has more: so the parts of all sums
/// stay below what the gradients take.
const PER_RANK: usize = 32;
const LEAST_RANK: usize = 8;
/// Kernels of f32 only; the other types' are the same.
const TYPE: DType = DType::F32;

/// A module's matrices, all in f32.
pub struct Adapted<'a> {
    /// A: [r, d_in]
    pub a: &'a Tensor,
    /// B: [d_out, r]
    pub b: &'a Tensor,
    /// U [d_out, k] and c [k, 1] of C = U diag(c) Uᵀ; none where C is 0, or does not count: then G and H are B itself.
    pub direction: Option<(&'a Tensor, &'a Tensor)>,
    /// Of ‖G A‖² in the value.
    pub weight: f64,
    /// The gradients of A and B so far.
    pub gradients: [&'a Tensor; 2],
}

impl Image {
    /// Factors of B and of U(...), and whether the second weights are c².
    fn numbers(self) -> (f64, f64, usize) {
        match self {
            Self::Rest => (1.0, -1.0, 0),
            Self::Aligned => (0.0, 1.0, 1),
        }
    }
}

/// Adds the gradients of weight ‖G A‖² of each module in place, and returns these values, [modules] in f64. None, and nothing
/// done, where no kernel serves.
///
/// # Errors
/// Matrices that do not fit together; a part of C where C is 0.
pub fn add(modules: &[Adapted<'_>], image: Image) -> Result<Option<Tensor>> {
    let tensors: Vec<&Tensor> = modules.iter().flat_map(Adapted::tensors).collect();
    if !PENALTY.serve_f32(&tensors) {
        return Ok(None);
    }
    modules.iter().try_for_each(|module| module.check(image))?;
    let mut rows = vec![];
    for module in modules {
        rows.push(Row::new(module)?);
    }
    let group = Group::new(modules, &mut rows)?;
    group.weigh(&mut rows, image)?;
    group.products(&rows, image).map(Some)
}

impl Adapted<'_> {
    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let direction = self.direction.into_iter().flat_map(|(basis, c)| [basis, c]);
        [self.a, self.b].into_iter().chain(self.gradients).chain(direction)
    }

    fn check(&self, image: Image) -> Result<()> {
        let ((r, _), (d_out, columns)) = (self.a.dims2()?, self.b.dims2()?);
        let [of_a, of_b] = self.gradients.map(Tensor::dims);
        let fits = r == columns && of_a == self.a.dims() && of_b == self.b.dims();
        let (is_there, fits_direction) = match self.direction {
            Some((basis, c)) => (true, basis.dim(0)? == d_out && c.elem_count() == basis.dim(1)?),
            None => (image == Image::Rest, true),
        };
        anyhow::ensure!(
            fits && is_there && fits_direction,
            "A {:?}, B {:?}, their gradients {of_a:?} and {of_b:?}, and the direction {:?} do not fit together",
            self.a.dims(),
            self.b.dims(),
            self.direction.map(|(basis, _)| basis.dims())
        );
        Ok(())
    }
}

/// `Penalised` in gpu/penalty.cu, and what holds its memory.
struct Row {
    /// y [k, r] and (c ∘ y, c' ∘ y) [k, 2 r], then U times that [d_out, 2 r].
    inner: Option<(Tensor, Tensor)>,
    images: Option<Tensor>,
    /// The first of its blocks, and how many are A's and B's.
    blocks: [u64; 3],
}

impl Row {
    fn new(module: &Adapted<'_>) -> Result<Self> {
        let inner = module.direction.map(|(basis, _)| {
            let (y, (k, r)) = (super::coordinates(basis, module.b)?, (basis.dim(1)?, module.b.dim(1)?));
            // SAFETY: `penalty_weights` writes all of it before U is multiplied with it.
            Ok::<_, anyhow::Error>((y, unsafe { unwritten((k, 2 * r), TYPE, basis.device())? }))
        });
        Ok(Self { inner: inner.transpose()?, images: None, blocks: [0; 3] })
    }

    fn numbers(&self, module: &Adapted<'_>) -> Result<Vec<i64>> {
        let address = |x: Option<&Tensor>| x.map_or(Ok(0), gpu::address::of);
        let ((rank, d_in), d_out) = (module.a.dims2()?, module.b.dim(0)?);
        let c = module.direction.map(|(_, c)| c);
        let (y, both) = (self.inner.as_ref().map(|(y, _)| y), self.inner.as_ref().map(|(_, both)| both));
        let mut row = vec![gpu::address::of(module.a)?, gpu::address::of(module.b)?, address(y)?, address(c)?];
        row.push(both.map_or(Ok(0), gpu::address::to_write)?);
        row.push(address(self.images.as_ref())?);
        for gradient in module.gradients {
            row.push(gpu::address::to_write(gradient)?);
        }
        row.extend([rank, d_in, d_out, c.map_or(0, Tensor::elem_count)].map(|number| number as u64));
        row.extend(self.blocks);
        row.push(module.weight.to_bits());
        Ok(row.into_iter().map(u64::cast_signed).collect())
    }
}

/// What the launches have in common.
struct Group<'a> {
    modules: &'a [Adapted<'a>],
    device: &'a Device,
    /// The largest rank, and columns or rows of a block.
    most: usize,
    chunk: usize,
    /// (module, 0 for A and 1 for B, number of its part) of each block, u32.
    blocks: Tensor,
}

impl<'a> Group<'a> {
    fn new(modules: &'a [Adapted<'a>], rows: &mut [Row]) -> Result<Self> {
        let device = modules.first().map_or(&Device::Cpu, |module| module.a.device());
        let ranks: Vec<usize> = modules.iter().map(|module| module.a.dim(0)).collect::<candle_core::Result<_>>()?;
        let most = ranks.into_iter().max().unwrap_or(0);
        let chunk = PER_RANK * most.max(LEAST_RANK);
        let (mut parts, mut count) = (vec![], 0);
        for (module, row) in modules.iter().zip(rows) {
            let of = [module.a.dim(1)?, module.b.dim(0)?].map(|length| length.div_ceil(chunk));
            row.blocks = [count, of[0] as u64, of[1] as u64];
            count += (of[0] + of[1]) as u64;
            parts.extend(of);
        }
        let blocks = gpu::kept("penalty_blocks", &parts, device, |parts| {
            let of_matrix =
                |(number, &parts): (usize, &usize)| (0..parts).flat_map(move |part| [number / 2, number % 2, part]);
            (parts.iter().enumerate().flat_map(of_matrix).collect(), 3)
        })?;
        Ok(Self { modules, device, most, chunk, blocks })
    }

    fn table(&self, rows: &[Row]) -> Result<Tensor> {
        let numbers = rows.iter().zip(self.modules).map(|(row, module)| row.numbers(module));
        let numbers: Vec<i64> = numbers.collect::<Result<Vec<_>>>()?.concat();
        Ok(Tensor::from_vec(numbers, (rows.len(), ()), self.device)?)
    }

    /// (c ∘ y, c' ∘ y) of all modules, and U times each.
    fn weigh(&self, rows: &mut [Row], image: Image) -> Result<()> {
        let values = |row: &Row| row.inner.as_ref().map_or(0, |(y, _)| y.elem_count().div_ceil(WEIGHED));
        let counts: Vec<usize> = rows.iter().map(values).collect();
        let count = counts.iter().sum();
        if count == 0 {
            return Ok(());
        }
        let (table, chunks) = (self.table(rows)?, gpu::chunks(&counts, self.device)?);
        let launch = Launch::new(&PENALTY, "penalty_weights", TYPE, [count, 1, 1], (BLOCK, 0));
        // SAFETY: the table has the addresses of tensors of f32 in the sizes that `check` has compared, which `rows` and the modules
        // hold to the end of the step.
        unsafe { launch.run(&[Arg::In(&table), Arg::In(&chunks), Arg::Small(image.numbers().2)])? };
        for (row, module) in rows.iter_mut().zip(self.modules) {
            if let (Some((y, both)), Some((basis, c))) = (&row.inner, module.direction) {
                traffic::moved(&[y, c], &[both]);
                row.images = Some(linear::backward_input(basis, both)?);
            }
        }
        Ok(())
    }

    /// The values, once the gradients are added.
    fn products(&self, rows: &[Row], image: Image) -> Result<Tensor> {
        let (table, (keep, sign, _)) = (self.table(rows)?, image.numbers());
        let (blocks, modules) = (self.blocks.dim(0)?, self.modules.len());
        let launch = |entry, blocks| Launch::new(&PENALTY, entry, TYPE, [blocks, 1, 1], (BLOCK, 0));
        let numbers = [Arg::Small(self.most), Arg::Small(self.chunk), Arg::Float(keep), Arg::Float(sign)];
        let square = (self.most, self.most);
        // SAFETY: as in `weigh`. Each kernel writes those values of its results that the next one reads.
        let values = unsafe {
            let parts = unwritten((blocks, square.0, square.1), DType::F64, self.device)?;
            let sums = unwritten((modules, 2, square.0, square.1), DType::F64, self.device)?;
            let values = unwritten(modules, DType::F64, self.device)?;
            let places = [Arg::In(&table), Arg::In(&self.blocks)];
            let with = |tensor| [places.as_slice(), &[tensor], &numbers].concat();
            launch("penalty_sums", blocks).run(&with(Arg::Out(&parts)))?;
            launch("penalty_values", modules).run(&[
                Arg::In(&table),
                Arg::In(&parts),
                Arg::Out(&sums),
                Arg::Out(&values),
                Arg::Small(self.most),
            ])?;
            launch("penalty_gradients", blocks).run(&with(Arg::In(&sums)))?;
            values
        };
        for (row, module) in rows.iter().zip(self.modules) {
            let images: Vec<&Tensor> = row.images.iter().chain((image == Image::Rest).then_some(module.b)).collect();
            traffic::moved(&[module.a], &[]);
            traffic::moved(&images, &[]);
            traffic::moved(&[&images[..], &[module.a], &module.gradients[..]].concat(), &module.gradients);
        }
        Ok(values)
    }
}
