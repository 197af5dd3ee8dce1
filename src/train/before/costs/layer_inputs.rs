//! The inputs that layers have besides, as model/layer_inputs.rs has them: for all layers at once, before the blocks and after them.

use super::{Costs, F32, Part};

impl Costs<'_> {
    /// Of a micro-batch: once in each forward pass, and back if the model trains.
    pub(super) fn layer_inputs(&mut self) {
        let Some(of) = self.run.spec.layer_inputs else { return };
        for _ in 0..1 + self.references {
            self.layer_inputs_forward(of.size as f64);
        }
        if self.is_full() {
            self.layer_inputs_backward(of.size as f64);
        }
    }

    fn layer_inputs_forward(&mut self, size: f64) {
        let (n, w, h, width) = (self.n, self.w, self.hidden(), self.run.layer_input_width() as f64);
        self.product([n, width, h]);
        self.rows(Part::Rows, 2.0 * n * width * w); // scaled
        self.input_norm(size, 2.0);
        self.rows(Part::Rows, 2.0 * n * width * w); // rows of the embedding
        self.rows(Part::Rows, 2.0 * n * width * w); // scaled
        self.rows(Part::Rows, 3.0 * n * width * w); // the sum
        self.rows(Part::Rows, 2.0 * n * width * w); // scaled
        for _ in 0..self.run.spec.num_hidden_layers {
            self.rows(Part::Rows, 2.0 * n * size * w); // a layer's part
        }
    }

    fn layer_inputs_backward(&mut self, size: f64) {
        let (n, w, h, width) = (self.n, self.w, self.hidden(), self.run.layer_input_width() as f64);
        self.rows(Part::Rows, 2.0 * n * width * w); // put together
        self.rows(Part::Rows, 2.0 * n * width * w); // scaled
        self.rows(Part::Rows, n * width * (w + F32)); // for the embedding, widened and scaled
        self.input_norm(size, 5.0);
        self.rows(Part::Rows, 2.0 * n * width * w); // scaled
        self.product([n, h, width]);
        self.product([width, h, n]);
        self.rows(Part::Rows, 3.0 * n * h * w); // the sum of dx
    }

    /// The norm over each layer's values, which moves `tensors` of [n, all layers' values].
    fn input_norm(&mut self, size: f64, tensors: f64) {
        let (n, w, width) = (self.n, self.w, self.run.layer_input_width() as f64);
        self.rows(Part::Rows, tensors * n * width * w + (size + n * width / size) * F32);
    }
}
