//! Qwen3.5 once more, as simply as it can be written, position by position and in f64: an oracle for the golden model, in which what is
//! inside of the kernels can be switched off.

use crate::support::goldens::*;
use crate::support::tensors::{max_difference, to_vec};
use candle_core::{DType, Device};
use std::collections::BTreeMap;

const CASE: &str = "qwen3_5_text";

/// A row for each position.
type Rows = Vec<Vec<f64>>;

/// What the golden has to notice.
#[derive(Clone, Copy)]
struct Features {
    /// silu after the convolution
    silu: bool,
    /// The lengths of queries and keys
    query_norm: bool,
    key_norm: bool,
    /// 1 / √Dk of queries
    scale: bool,
    /// Reading the state before what it writes is known
    correction: bool,
}

const ALL: Features = Features { silu: true, query_norm: true, key_norm: true, scale: true, correction: true };

struct Naive {
    tensors: BTreeMap<String, (Vec<usize>, Vec<f64>)>,
    features: Features,
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn silu(x: f64) -> f64 {
    x * sigmoid(x)
}

fn added(a: &Rows, b: &Rows) -> Rows {
    a.iter().zip(b).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a + b).collect()).collect()
}

fn inner(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

impl Naive {
    fn new(features: Features) -> Self {
        let stored = base_checkpoint(CASE);
        let read = |name: &str| {
            let tensor = stored.tensor(name, DType::F32, &Device::Cpu).unwrap();
            (name.to_string(), (tensor.dims().to_vec(), to_vec(&tensor)))
        };
        Self { tensors: stored.names().map(read).collect(), features }
    }

    fn values(&self, name: &str) -> &[f64] {
        &self.tensors[name].1
    }

    fn linear(&self, x: &Rows, name: &str) -> Rows {
        let (shape, weight) = &self.tensors[&format!("{name}.weight")];
        let bias = self.tensors.get(&format!("{name}.bias")).map(|(_, bias)| bias);
        let output = |row: &Vec<f64>, o: usize| {
            inner(row, &weight[o * shape[1]..][..shape[1]]) + bias.map_or(0.0, |bias| bias[o])
        };
        x.iter().map(|row| (0..shape[0]).map(|o| output(row, o)).collect()).collect()
    }

    fn normed(&self, row: &[f64], name: &str, offset: f64) -> Vec<f64> {
        let mean = inner(row, row) / row.len() as f64;
        let factor = 1.0 / (mean + spec(CASE).rms_norm_eps).sqrt();
        row.iter().zip(self.values(&format!("{name}.weight"))).map(|(x, w)| x * factor * (offset + w)).collect()
    }

    fn norm(&self, x: &Rows, name: &str) -> Rows {
        x.iter().map(|row| self.normed(row, name, 1.0)).collect()
    }

    /// p_t = Σ_j w_j ∘ x_{t−K+1+j}, then silu
    fn convolved(&self, x: &Rows, name: &str) -> Rows {
        let (shape, weight) = &self.tensors[name];
        let (channels, width) = (shape[0], shape[2]);
        let at = |t: usize, c: usize| -> f64 {
            let terms = (0..width).filter_map(|j| Some(weight[c * width + j] * x[(t + j).checked_sub(width - 1)?][c]));
            terms.sum()
        };
        let finish = |p: f64| if self.features.silu { silu(p) } else { p };
        (0..x.len()).map(|t| (0..channels).map(|c| finish(at(t, c))).collect()).collect()
    }

    /// The gated delta rule from its recurrence, then the norm of each head times silu(z).
    fn delta_net(&self, h: &Rows, module: &str) -> Rows {
        let part = |name: &str| format!("{module}.{name}");
        let of = spec(CASE).delta_net.unwrap().heads;
        let (dk, dv, keys) = (of.key_dim, of.value_dim, of.key_heads * of.key_dim);
        let mixed = self.convolved(&self.linear(h, &part("in_proj_qkv")), &part("conv1d.weight"));
        let [z, b, a] = ["in_proj_z", "in_proj_b", "in_proj_a"].map(|name| self.linear(h, &part(name)));
        let (a_log, bias) = (self.values(&part("A_log")), self.values(&part("dt_bias")));
        let unit = |x: &[f64], on: bool| -> Vec<f64> {
            let length = if on { (inner(x, x) + 1e-6).sqrt() } else { 1.0 };
            x.iter().map(|x| x / length).collect()
        };
        let mut inside = vec![vec![]; h.len()];
        for head in 0..of.value_heads {
            let (key_head, mut state) = (head / of.group(), vec![vec![0f64; dv]; dk]);
            for t in 0..h.len() {
                let q = unit(&mixed[t][key_head * dk..][..dk], self.features.query_norm);
                let k = unit(&mixed[t][keys + key_head * dk..][..dk], self.features.key_norm);
                let scale = if self.features.scale { (dk as f64).powf(-0.5) } else { 1.0 };
                let decay = (-a_log[head].exp() * (a[t][head] + bias[head]).exp().ln_1p()).exp();
                state.iter_mut().flatten().for_each(|s| *s *= decay);
                let read = |x: &[f64], state: &Rows, c: usize| (0..dk).map(|r| x[r] * state[r][c]).sum::<f64>();
                let seen: Vec<f64> = (0..dv).map(|c| read(&k, &state, c)).collect();
                for c in 0..dv {
                    let taken = if self.features.correction { seen[c] } else { 0.0 };
                    let u = sigmoid(b[t][head]) * (mixed[t][2 * keys + head * dv + c] - taken);
                    (0..dk).for_each(|r| state[r][c] += k[r] * u);
                }
                let o: Vec<f64> = (0..dv).map(|c| scale * read(&q, &state, c)).collect();
                let o = self.normed(&o, &part("norm"), 0.0);
                inside[t].extend(o.iter().zip(&z[t][head * dv..]).map(|(o, z)| o * silu(*z)));
            }
        }
        self.linear(&inside, &part("out_proj"))
    }

    /// A part of a head rotated by its position t, in halves.
    fn rotated(x: &[f64], t: usize) -> Vec<f64> {
        let spec = spec(CASE);
        let half = (spec.ropes[0].partial * x.len() as f64) as usize / 2;
        let mut y = x.to_vec();
        for i in 0..half {
            let angle = t as f64 / spec.ropes[0].theta.powf(i as f64 / half as f64);
            (y[i], y[i + half]) =
                (x[i] * angle.cos() - x[i + half] * angle.sin(), x[i + half] * angle.cos() + x[i] * angle.sin());
        }
        y
    }

    fn attention(&self, h: &Rows, module: &str) -> Rows {
        let (spec, part) = (spec(CASE), |name: &str| format!("{module}.{name}"));
        let (d, group) = (spec.head_dim, spec.num_attention_heads / spec.num_key_value_heads);
        let [q, k, v] = ["q_proj", "k_proj", "v_proj"].map(|name| self.linear(h, &part(name)));
        let turned = |x: &[f64], name: &str, t: usize| Self::rotated(&self.normed(x, &part(name), 1.0), t);
        let mut inside = vec![vec![]; h.len()];
        for head in 0..spec.num_attention_heads {
            let key_head = head / group;
            for t in 0..h.len() {
                let query = turned(&q[t][2 * head * d..][..d], "q_norm", t);
                let score =
                    |s: usize| inner(&query, &turned(&k[s][key_head * d..][..d], "k_norm", s)) * (d as f64).powf(-0.5);
                let weights: Vec<f64> = (0..=t).map(|s| score(s).exp()).collect();
                let total: f64 = weights.iter().sum();
                let o = (0..d).map(|c| {
                    let seen: f64 = weights.iter().zip(&v).map(|(w, v)| w * v[key_head * d + c]).sum();
                    seen / total * sigmoid(q[t][(2 * head + 1) * d + c])
                });
                inside[t].extend(o);
            }
        }
        self.linear(&inside, &part("o_proj"))
    }

    fn mlp(&self, h: &Rows, module: &str) -> Rows {
        let [gate, up] = ["gate_proj", "up_proj"].map(|name| self.linear(h, &format!("{module}.{name}")));
        let inner = gate.iter().zip(&up).map(|(g, u)| g.iter().zip(u).map(|(g, u)| silu(*g) * u).collect());
        self.linear(&inner.collect(), &format!("{module}.down_proj"))
    }

    /// Logits of a sequence, row after row.
    fn logits(&self, ids: &[u32]) -> Vec<f64> {
        let spec = spec(CASE);
        let embedding = self.values("model.embed_tokens.weight");
        let hidden = spec.hidden_size;
        let mut x: Rows = ids.iter().map(|&id| embedding[id as usize * hidden..][..hidden].to_vec()).collect();
        for (number, layer) in spec.layers.iter().enumerate() {
            let part = |name: &str| format!("model.layers.{number}.{name}");
            let h = self.norm(&x, &part("input_layernorm"));
            let mixed = match layer.delta_net {
                true => self.delta_net(&h, &part("linear_attn")),
                false => self.attention(&h, &part("self_attn")),
            };
            x = added(&x, &mixed);
            x = added(&x, &self.mlp(&self.norm(&x, &part("post_attention_layernorm")), &part("mlp")));
        }
        self.linear(&self.norm(&x, "model.norm"), "lm_head").concat()
    }
}

/// Largest difference from PyTorch's logits.
fn distance(features: Features) -> f64 {
    let (model, batch) = (Naive::new(features), GoldenBatch::load(CASE));
    let logits: Vec<f64> = batch.examples().iter().flat_map(|example| model.logits(&example.input_ids)).collect();
    max_difference(&logits, &batch.live(&Golden::expected(CASE).values("base.logits"), spec(CASE).vocab_size))
}

#[test]
fn the_naive_model_is_the_golden_one_and_each_of_its_features_shows() {
    let all = distance(ALL);
    assert!(all <= 1e-4, "{all}");
    for (feature, off) in [
        ("silu after the convolution", Features { silu: false, ..ALL }),
        ("the norm of queries", Features { query_norm: false, ..ALL }),
        ("the norm of keys", Features { key_norm: false, ..ALL }),
        ("the scale of queries", Features { scale: false, ..ALL }),
        ("what the state holds already", Features { correction: false, ..ALL }),
    ] {
        let found = distance(off);
        assert!(found > 1e-2 || found.is_nan(), "without {feature}: {found}");
    }
}

/// The decoder and the naive model, beside the golden's rounding of f32.
#[test]
fn the_decoder_is_the_naive_model() {
    let (model, naive, batch) = (base(CASE, false), Naive::new(ALL), GoldenBatch::load(CASE));
    for example in batch.examples() {
        let got = to_vec(&model.logits(&example.input_ids, &[example.input_ids.len()]).unwrap());
        let difference = max_difference(&got, &naive.logits(&example.input_ids));
        assert!(difference <= 1e-4, "{difference}");
    }
}
