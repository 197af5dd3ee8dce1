//! What quantised weights take on a GPU, where each is widened whole for its product (ops/weight.rs).

use super::estimate::Estimate;
use crate::names::{in_block, split_block};
use crate::quant::Format;

const F32: usize = 4;

/// A widened weight, and what there is besides while it is made.
#[derive(Clone, Copy, Default)]
struct Widened {
    copy: usize,
    besides: usize,
}

impl Estimate<'_> {
    /// While a block computes: what is kept of the block whose linears take most, and the largest other copy, or what its making takes.
    pub(super) fn widened_bytes(&self) -> usize {
        let of_block = |layer: usize| -> usize {
            let kept = self.spec.block_linears(layer).filter(|linear| self.keeps_widened(layer, linear));
            let copies = kept.filter_map(|linear| {
                let (d_out, d_in) = self.spec.linear_shape(layer, linear)?;
                Some(self.widened(&format!("{}.weight", in_block(layer, linear)), &[d_out, d_in])?.copy)
            });
            copies.sum()
        };
        let kept: usize = (0..self.spec.num_hidden_layers).map(of_block).max().unwrap_or(0);
        kept + self.largest_widened(|name, Widened { copy, besides }| match module_in_block(name) {
            Some((layer, linear)) if self.keeps_widened(layer, linear) => besides,
            Some(_) => copy + besides,
            None => 0,
        })
    }

    /// In a pass that keeps nothing.
    pub(super) fn widened_once_bytes(&self) -> usize {
        self.largest_widened(|_, Widened { copy, besides }| copy + besides)
    }

    /// While the head computes.
    pub(super) fn widened_at_head_bytes(&self) -> usize {
        self.largest_widened(|name, Widened { copy, besides }| match module_in_block(name) {
            Some(_) => 0,
            None => copy + besides,
        })
    }

    /// Whether a block's second forward pass keeps this linear's widened weight for the backward pass.
    pub(super) fn keeps_widened(&self, layer: usize, linear: &str) -> bool {
        self.settings.train.gradient_checkpointing && self.spec.block_linears(layer).any(|own| own == linear)
    }

    /// The most that `bytes` makes of a quantised weight.
    fn largest_widened(&self, bytes: impl Fn(&str, Widened) -> usize) -> usize {
        let tensors = self.spec.tensors().into_iter();
        tensors.filter_map(|(name, shape)| Some(bytes(&name, self.widened(&name, &shape)?))).max().unwrap_or(0)
    }

    /// What a weight takes, if it is quantised and on a GPU.
    fn widened(&self, name: &str, shape: &[usize]) -> Option<Widened> {
        let (kernels, elements) = (self.gpu?, shape.iter().product::<usize>());
        self.quantised_bytes(name, shape)?;
        let by_kernel = match self.settings.model.compute().frozen().format(name) {
            // Of what a checkpoint may hold, not every type has a kernel.
            _ if self.quantised.contains_key(name) => false,
            Some(Format::FourBit(_)) => kernels.four_bit,
            Some(Format::Ggml(_)) => kernels.ggml,
            None => false,
        };
        Some(Widened { copy: elements * self.width(), besides: if by_kernel { 0 } else { elements * 2 * F32 } })
    }
}

/// The layer and the linear that a weight is of.
fn module_in_block(name: &str) -> Option<(usize, &str)> {
    name.strip_suffix(".weight").and_then(split_block)
}
