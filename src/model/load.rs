//! From a checkpoint's tensors to a [`Decoder`], with every missing or misshapen tensor in one error.

use super::attention::Attention;
use super::block::{Block, Feedforward};
use super::delta_net::DeltaNet;
use super::layer_inputs::{Intake, LayerInputs};
use super::linear::Linear;
use super::mixer::Mixer;
use super::mixture::Mixture;
use super::mlp::Mlp;
use super::norm::Norm;
use super::projection::Projection;
use super::qkv::Qkv;
use super::shared_expert::SharedExpert;
use super::{Decoder, DeltaNetSpec, Heads, LayerInputSpec, LayerSpec, ModelSpec, Parameters, Weights};
use crate::checkpoint::Checkpoint;
use crate::names::{
    ATTENTION, BLOCKS, DELTA_NET, DOWN, EMBEDDING, EXPERT_LINEARS, FINAL_NORM, HEAD, INTAKE_NORM, LAYER_EMBEDDING,
    LAYER_PROJECTION, LAYER_PROJECTION_NORM, LAYER_SCALE, ROUTER, in_block, in_expert, split_block,
};
use crate::ops::attention::Shape;
use crate::ops::rounded;
use crate::ops::weight::Weight;
use crate::quant::Quantiser;
use crate::{ensure_valid, invalid};
use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor, Var};
use indicatif::ProgressBar;

/// Reads tensors one by one, as trained variables or frozen ones.
struct Loader<'a> {
    spec: &'a ModelSpec,
    checkpoint: &'a Checkpoint,
    device: &'a Device,
    /// The compute type.
    dtype: DType,
    weights: Weights,
    parameters: Parameters,
    progress: &'a ProgressBar,
}

impl Decoder {
    /// Loads a decoder that computes in `dtype`, its weights as `weights` says.
    ///
    /// # Errors
    /// Tensors that are missing or whose shape is not what `config.json` implies, all listed in one message; values that
    /// cannot be quantised.
    pub fn load(
        spec: &ModelSpec,
        checkpoint: &Checkpoint,
        (device, dtype): (&Device, DType),
        weights: Weights,
        progress: &ProgressBar,
    ) -> Result<Self> {
        check_shapes(spec, checkpoint)?;
        progress.set_length(spec.num_hidden_layers as u64);
        let parameters = Parameters::new();
        let mut loader = Loader { spec, checkpoint, device, dtype, weights, parameters, progress };
        let embed_tokens = loader.weight(EMBEDDING)?;
        let layer_inputs = spec.layer_inputs.map(|of| loader.layer_inputs(of)).transpose()?;
        let blocks = (0..spec.num_hidden_layers).map(|layer| loader.block(layer)).collect::<Result<_>>()?;
        let norm = loader.norm(FINAL_NORM)?;
        let lm_head = if spec.tie_word_embeddings { None } else { Some(loader.weight(HEAD)?) };
        let (parameters, trains) = (loader.parameters, weights.train());
        Ok(Decoder { spec: spec.clone(), dtype, embed_tokens, layer_inputs, blocks, norm, lm_head, parameters, trains })
    }
}

impl Loader<'_> {
    /// A matrix that products read: as it is stored, if that is quantised. Embedding and head are widened for a GPU, which would
    /// otherwise widen them whole in every step.
    fn weight(&mut self, name: &str) -> Result<Weight> {
        let kept = self.device.is_cpu() || ![EMBEDDING, HEAD].contains(&name);
        if !self.weights.train()
            && kept
            && let Some(matrix) = self.checkpoint.quantised(name)?
        {
            return Weight::quantised(matrix, self.device);
        }
        let Some(format) = self.weights.format(name) else { return Ok(self.tensor(name)?.into()) };
        let shape = self.checkpoint.info(name).map(|info| info.shape.clone()).unwrap_or_default();
        let [rows, columns] = shape[..] else { bail!("{name} has shape {shape:?}; expected a matrix") };
        let quantising = || format!("quantising {name}");
        let mut quantiser = Quantiser::new(format, (rows, columns)).with_context(quantising)?;
        self.checkpoint.read_in_pieces(name, |values| quantiser.push(values)).with_context(quantising)?;
        let matrix = quantiser.finish().with_context(quantising)?;
        Weight::quantised(matrix, self.device)
    }

    fn tensor(&mut self, name: &str) -> Result<Tensor> {
        self.tensor_in(name, self.dtype)
    }

    fn tensor_in(&mut self, name: &str, dtype: DType) -> Result<Tensor> {
        let dtype = if self.weights.train() { DType::F32 } else { dtype };
        let tensor = self.checkpoint.tensor(name, dtype, self.device)?;
        if !self.weights.train() {
            return Ok(tensor);
        }
        let var = Var::from_tensor(&tensor)?;
        // Detached: the same storage, but candle records no tape for computations with it.
        let tensor = var.as_detached_tensor();
        self.parameters.insert(name.to_string(), var);
        Ok(tensor)
    }

    fn block(&mut self, layer: usize) -> Result<Block> {
        let spec = self.spec;
        let mut norm = |name: Option<&str>| name.map(|name| self.norm(&in_block(layer, name))).transpose();
        let (attention_norm, attention_post_norm) =
            (norm(spec.norms.before_attention)?, norm(spec.norms.after_attention)?);
        let (mlp_norm, mlp_post_norm) = (norm(spec.norms.before_mlp)?, norm(spec.norms.after_mlp)?);
        let block = Block {
            attention_norm,
            mixer: self.mixer(layer)?,
            attention_post_norm,
            mlp_norm,
            mlp: self.feedforward(layer)?,
            mlp_post_norm,
            intake: spec.layer_inputs.map(|_| self.intake(layer)).transpose()?,
            residual_scale: spec.residual_scale,
            layer_scale: self.layer_scale(layer)?,
        };
        self.progress.inc(1);
        Ok(block)
    }

    fn layer_inputs(&mut self, LayerInputSpec { size, .. }: LayerInputSpec) -> Result<LayerInputs> {
        let (module, trains) = (LAYER_PROJECTION.to_string(), self.weights.train());
        let weight = self.weight(&format!("{module}.weight"))?;
        Ok(LayerInputs {
            embedding: self.weight(LAYER_EMBEDDING)?,
            projection: Linear { module, weight, bias: None, lora: None, trains, watch: None },
            norm: self.norm(LAYER_PROJECTION_NORM)?,
            context_scale: (self.spec.hidden_size as f64).powf(-0.5),
            layers: self.spec.num_hidden_layers,
            size,
            dtype: self.dtype,
            trains,
        })
    }

    fn intake(&mut self, layer: usize) -> Result<Intake> {
        Ok(Intake {
            layer,
            gate: self.linear(layer, "per_layer_input_gate")?,
            projection: self.linear(layer, "per_layer_projection")?,
            norm: self.norm(&in_block(layer, INTAKE_NORM))?,
            activation: self.spec.activation,
        })
    }

    /// Rounded to the compute type, as in transformers.
    fn layer_scale(&self, layer: usize) -> Result<Option<f64>> {
        if !self.spec.layer_scale {
            return Ok(None);
        }
        let name = in_block(layer, LAYER_SCALE);
        let values = self.checkpoint.read_f32(&name)?;
        let scale = values.first().with_context(|| format!("{name} is empty"))?;
        Ok(Some(rounded(f64::from(*scale), self.dtype)))
    }

    fn mixer(&mut self, layer: usize) -> Result<Mixer> {
        Ok(match self.spec.delta_net_of(layer) {
            Some(of) => Mixer::DeltaNet(Box::new(self.delta_net(layer, of)?)),
            None => Mixer::Attention(Box::new(self.attention(layer)?)),
        })
    }

    fn delta_net(&mut self, layer: usize, of: DeltaNetSpec) -> Result<DeltaNet> {
        let module = in_block(layer, DELTA_NET);
        let mut linear = |name: &str| self.linear(layer, &format!("{DELTA_NET}.{name}"));
        let inputs = ["in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"].map(&mut linear);
        let [qkv, z, b, a] = inputs;
        let (inputs, out_proj) = (Projection::Separate([qkv?, z?, b?, a?]), linear("out_proj")?);
        let mut tensor = |name: &str| self.tensor_in(&format!("{module}.{name}"), DType::F32);
        Ok(DeltaNet {
            inputs,
            conv: tensor("conv1d.weight")?,
            a_log: tensor("A_log")?,
            dt_bias: tensor("dt_bias")?,
            norm: Norm { offset: false, ..self.norm(&format!("{module}.norm"))? },
            out_proj,
            heads: of.heads,
            trains: self.weights.train(),
            module,
        })
    }

    fn attention(&mut self, layer: usize) -> Result<Attention> {
        let spec = self.spec;
        let LayerSpec { window, rope, values_are_keys, keys_of, .. } = spec.layers[layer];
        let Heads { kv_heads, head_dim } = spec.heads(layer);
        let mut norm = |name: &str| self.norm(&in_block(layer, &format!("self_attn.{name}")));
        let has_keys = spec.has_keys(layer);
        let q_norm = spec.qk_norm.map(|_| norm("q_norm")).transpose()?;
        let k_norm = spec.qk_norm.filter(|_| has_keys).map(|_| norm("k_norm")).transpose()?;
        let (queries, keys) = spec.head_widths(layer);
        let mut linear = |name: &str| self.linear(layer, &format!("self_attn.{name}"));
        let qkv = if spec.fused_qkv {
            Qkv::Each(Projection::Fused { linear: linear("qkv_proj")?, widths: [queries, keys, keys] })
        } else if !has_keys {
            Qkv::Queries(linear("q_proj")?)
        } else if values_are_keys {
            Qkv::ValuesAreKeys(Projection::Separate([linear("q_proj")?, linear("k_proj")?]))
        } else {
            Qkv::Each(Projection::Separate([linear("q_proj")?, linear("k_proj")?, linear("v_proj")?]))
        };
        Ok(Attention {
            qkv,
            gated: spec.gated_attention,
            o_proj: self.linear(layer, "self_attn.o_proj")?,
            q_norm,
            k_norm,
            v_norm: if spec.value_norm { Some(self.plain_norm(head_dim)?) } else { None },
            keys_of: keys_of.unwrap_or(layer),
            shares: spec.shares_keys(layer),
            shape: Shape {
                heads: spec.num_attention_heads,
                kv_heads,
                head_dim,
                scale: spec.attention_scale,
                window,
                cap: spec.attention_softcap,
            },
            rope,
        })
    }

    fn feedforward(&mut self, layer: usize) -> Result<Feedforward> {
        let Some(experts) = self.spec.experts.filter(|_| self.spec.has_mixture(layer)) else {
            return Ok(Feedforward::Mlp(Box::new(self.mlp(layer)?)));
        };
        let module = in_block(layer, ROUTER);
        Ok(Feedforward::Mixture(Box::new(Mixture {
            router: self.tensor(&format!("{module}.weight"))?.into(),
            module,
            experts: (0..experts.count).map(|expert| self.expert(layer, expert)).collect::<Result<_>>()?,
            per_row: experts.per_token,
            normalised: experts.normalised,
            shared: experts.shared.map(|_| self.shared_expert(layer)).transpose()?,
            trains: self.weights.train(),
        })))
    }

    fn expert(&mut self, layer: usize, expert: usize) -> Result<Mlp> {
        let activation = self.spec.activation;
        let [gate, up, down] = EXPERT_LINEARS.map(|part| self.linear(layer, &in_expert(expert, part)));
        Ok(Mlp { gate_up: Projection::Separate([gate?, up?]), down_proj: down?, activation })
    }

    fn shared_expert(&mut self, layer: usize) -> Result<SharedExpert> {
        let activation = self.spec.activation;
        let [gate, up, down] = EXPERT_LINEARS.map(|part| self.linear(layer, &format!("mlp.shared_expert.{part}")));
        let expert = Mlp { gate_up: Projection::Separate([gate?, up?]), down_proj: down?, activation };
        Ok(SharedExpert { expert, gate: self.linear(layer, "mlp.shared_expert_gate")? })
    }

    fn mlp(&mut self, layer: usize) -> Result<Mlp> {
        let gate_up = if self.spec.fused_gate_up {
            let widths = [self.spec.mlp_size(layer); 2];
            Projection::Fused { linear: self.linear(layer, "mlp.gate_up_proj")?, widths }
        } else {
            Projection::Separate([self.linear(layer, "mlp.gate_proj")?, self.linear(layer, "mlp.up_proj")?])
        };
        Ok(Mlp { gate_up, down_proj: self.linear(layer, DOWN)?, activation: self.spec.activation })
    }

    fn linear(&mut self, layer: usize, linear: &str) -> Result<Linear> {
        let module = in_block(layer, linear);
        let weight = self.weight(&format!("{module}.weight"))?;
        let has_bias = self.spec.has_bias(linear);
        let bias = has_bias.then(|| self.tensor(&format!("{module}.bias"))).transpose()?;
        Ok(Linear { module, weight, bias, lora: None, trains: self.weights.train(), watch: None })
    }

    /// A norm over `size` values that has no weight.
    fn plain_norm(&self, size: usize) -> Result<Norm> {
        let weight = Tensor::ones(size, DType::F32, self.device)?;
        Ok(Norm { module: String::new(), weight, eps: self.spec.rms_norm_eps, offset: false, trains: false })
    }

    fn norm(&mut self, module: &str) -> Result<Norm> {
        let weight = self.tensor_in(&format!("{module}.weight"), DType::F32)?;
        let (eps, offset) = (self.spec.rms_norm_eps, self.spec.norm_offset);
        Ok(Norm { module: module.to_string(), weight, eps, offset, trains: self.weights.train() })
    }
}

impl ModelSpec {
    /// Name and shape of every tensor that the decoder reads.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let mut tensors = vec![(EMBEDDING.to_string(), vec![self.vocab_size, self.hidden_size])];
        if let Some(LayerInputSpec { vocab_size, size }) = self.layer_inputs {
            let all = self.num_hidden_layers * size;
            tensors.push((LAYER_EMBEDDING.to_string(), vec![vocab_size, all]));
            tensors.push((format!("{LAYER_PROJECTION}.weight"), vec![all, self.hidden_size]));
            tensors.push((format!("{LAYER_PROJECTION_NORM}.weight"), vec![size]));
        }
        for module in self.linear_modules() {
            let (layer, linear) = split_block(&module).unwrap_or_default();
            let (d_out, d_in) = self.linear_shape(layer, linear).unwrap_or_default();
            tensors.push((format!("{module}.weight"), vec![d_out, d_in]));
            if self.has_bias(linear) {
                tensors.push((format!("{module}.bias"), vec![d_out]));
            }
        }
        for layer in 0..self.num_hidden_layers {
            for matrix in self.mixture_matrices(layer) {
                let (d_out, d_in) = self.linear_shape(layer, &matrix).unwrap_or_default();
                tensors.push((format!("{}.weight", in_block(layer, &matrix)), vec![d_out, d_in]));
            }
            let others = self.other_tensors(layer).into_iter();
            tensors.extend(others.map(|(name, shape)| (in_block(layer, &name), shape)));
        }
        tensors.push((format!("{FINAL_NORM}.weight"), vec![self.hidden_size]));
        if !self.tie_word_embeddings {
            tensors.push((HEAD.to_string(), vec![self.vocab_size, self.hidden_size]));
        }
        tensors
    }
}

impl ModelSpec {
    /// Whether a tensor is of keys or values in a layer that sees an earlier layer's: stored by some, used by none.
    pub fn is_replaced(&self, name: &str) -> bool {
        let parts = ["k_proj", "v_proj", "k_norm", "v_norm"].map(|part| format!("{ATTENTION}.{part}."));
        split_block(name)
            .is_some_and(|(layer, rest)| !self.has_keys(layer) && parts.iter().any(|part| rest.starts_with(part)))
    }
}

fn check_shapes(spec: &ModelSpec, checkpoint: &Checkpoint) -> Result<()> {
    ensure_valid!(
        !spec.wrapped || checkpoint.is_wrapped(),
        "the weights do not fit config.json: it is of a multimodal class, and no tensor is in model.language_model or \
         language_model.model; the text model alone has the config that stands in text_config"
    );
    let mut problems = vec![];
    for (name, expected) in spec.tensors() {
        match checkpoint.info(&name) {
            None if name == HEAD => problems.push(format!(
                "{name} is missing, and config.json says tie_word_embeddings = false (set it to true if the output \
                 head is the embedding)"
            )),
            None => problems.push(format!("{name} is missing")),
            Some(info) if info.shape != expected => {
                problems.push(format!("{name} has shape {:?}, expected {expected:?}", info.shape))
            }
            Some(_) => {}
        }
    }
    // A bias or norm that the spec does not have would be silently left out of the maths.
    let known: std::collections::HashSet<String> = spec.tensors().into_iter().map(|(name, _)| name).collect();
    let stray = checkpoint
        .names()
        .filter(|name| name.starts_with(BLOCKS) && !known.contains(*name))
        .filter(|name| !spec.is_replaced(name))
        // Old Llama checkpoints store the rotary table as a buffer.
        .filter(|name| !name.ends_with("rotary_emb.inv_freq"));
    problems.extend(stray.map(|name| format!("{name} is not part of a {} with this config.json", spec.model_type)));
    if problems.is_empty() {
        return Ok(());
    }
    Err(invalid!("the weights do not fit config.json: {}", crate::error::listing(&problems, 12)))
}
