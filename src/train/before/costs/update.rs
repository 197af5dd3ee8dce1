//! What a step does once, whatever its micro-batches: the penalty and the optimizer.

use super::{Costs, F32, Part};
use crate::method::Penalize;

impl Costs<'_> {
    /// As method/penalty.rs and ops/low_rank/grouped.rs have it, once a step.
    pub(super) fn penalty(&mut self) {
        let asft = &self.run.settings.asft;
        if !asft.is_active() {
            return;
        }
        let (part, by_direction) = (Part::Penalty, asft.needs_direction());
        let by_rows = asft.penalize == Penalize::Input;
        // Eigenvalues of C are small, so that M is applied twice at once; a projector's are 1.
        let once = by_rows || (asft.penalize != Penalize::Aligned && asft.projector.has_spectrum());
        let modules: Vec<_> = self.run.sized_targets().collect();
        // Values moved by the launches for all modules together: the weights of y, the parts of S and T, and the gradients.
        let mut together = [0.0; 3];
        for ((d_out, d_in), rank) in modules {
            let (k, d_out, d_in, r) = (d_out.min(d_in) as f64, d_out as f64, d_in as f64, rank as f64);
            if self.is_full() {
                // Uᵀ x and U y, and what is left of x.
                for _ in 0..usize::from(by_direction) + usize::from(by_direction && !once) {
                    self.wide_product(part, [k, d_in, d_out]);
                    self.wide_product(part, [d_out, d_in, k]);
                    self.rows(part, 3.0 * d_out * d_in * F32);
                }
                self.rows(part, 6.0 * d_out * d_in * F32);
                continue;
            }
            let (of_a, of_b, mut images) = (r * d_in, r * d_out, r * d_out);
            if by_direction {
                let (side, width) = if by_rows { (d_in, r) } else { (d_out, 2.0 * r) };
                self.wide_product(part, [k, r, side]);
                self.wide_product(part, [side, width, k]);
                together[0] += 3.0 * k * r + k;
                images += 2.0 * of_b;
            }
            together[1] += of_a + images;
            together[2] += of_a + images + 2.0 * (of_a + of_b);
        }
        for values in together.into_iter().filter(|values| *values > 0.0) {
            self.rows(part, values * F32);
        }
        if together[2] > 0.0 {
            self.rows(part, 0.0); // the values, of r × r sums
        }
    }

    pub(super) fn optimizer(&mut self) {
        let values = self.run.trained_elements() as f64;
        self.rows(Part::Optimizer, values * F32);
        self.rows(Part::Optimizer, 7.0 * values * F32);
    }
}
