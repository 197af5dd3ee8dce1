//! The final norm, the head and the loss.

use super::{Cost, Costs, F32, Part, Unit};
use crate::names::HEAD;
use crate::ops::cross_entropy::chunk_rows;

impl Costs<'_> {
    /// The final norm, and the head with the loss, a chunk of label tokens at a time.
    pub(super) fn head(&mut self) {
        let (h, m, w) = (self.hidden(), self.mean.label_tokens, self.w);
        let (vocab, passes) = (self.run.spec.vocab_size, self.references);
        let chunks = (m / chunk_rows(vocab, m.ceil() as usize, false) as f64).ceil().max(1.0);
        let (rows, values) = (m / chunks, m / chunks * vocab as f64);
        let product = Cost {
            part: Part::Head,
            unit: Unit::Products,
            launches: chunks,
            flops: 2.0 * values * h,
            bytes: (rows * h + vocab as f64 * h + values) * w,
        };
        let logits = Cost { bytes: product.bytes + values * (F32 - w), ..product };
        let losses = Cost { unit: Unit::Memory, flops: 0.0, bytes: values * (2.0 * F32 + w), ..product };
        self.found.extend([logits, losses, product]);
        for _ in 0..passes {
            self.found.extend([logits, losses]);
        }
        if self.is_full() {
            self.found.push(product);
        } else if let Some(bytes) = self.run.quantised_bytes(HEAD, &[vocab, self.run.spec.hidden_size]) {
            // Widened once for all chunks.
            let bytes = bytes as f64 + vocab as f64 * h * w;
            let launches = (1 + passes) as f64;
            self.found.push(Cost { unit: Unit::Memory, launches, flops: 0.0, bytes, ..product });
        }
        // The rows with labels selected, normed, put together, and back; the gradient of all rows.
        for tensors in [2.0, 2.0, 2.0, 3.0] {
            self.rows(Part::Head, tensors * m * h * w);
        }
        self.rows(Part::Head, self.n * h * w);
        self.rows(Part::Head, (m + 2.0 * self.n) * h * w);
    }
}
