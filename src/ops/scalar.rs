//! Numbers that a step reports: losses, norms, the penalty.
//!
//! Reading one from a GPU waits for everything before it, so there they stay on the device until all of a step's are
//! read in one copy. On the CPU they are read at once.

use super::has_cpu_kernels;
use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};

/// A number that is known, or still a tensor on its device.
#[derive(Clone, Debug)]
pub enum Scalar {
    Known(f64),
    /// `factor` times the tensor's only value.
    Pending {
        tensor: Tensor,
        factor: f64,
    },
}

/// The widest type of sums on a device: f64, which Metal lacks.
pub fn wide(device: &Device) -> DType {
    if device.is_metal() { DType::F32 } else { DType::F64 }
}

impl Scalar {
    /// The only value of `tensor`.
    pub fn of(tensor: Tensor) -> Result<Self> {
        anyhow::ensure!(tensor.elem_count() == 1, "a scalar of shape {:?}", tensor.shape());
        let pending = Self::Pending { tensor: tensor.detach(), factor: 1.0 };
        if Self::waits(pending.device()) { Ok(pending) } else { Ok(Self::Known(pending.read()?)) }
    }

    /// Whether numbers of this device are left there.
    pub fn waits(device: &Device) -> bool {
        !device.is_cpu() || !has_cpu_kernels()
    }

    fn device(&self) -> &Device {
        match self {
            Self::Known(_) => &Device::Cpu,
            Self::Pending { tensor, .. } => tensor.device(),
        }
    }

    pub fn times(self, by: f64) -> Self {
        match self {
            Self::Known(value) => Self::Known(value * by),
            Self::Pending { tensor, factor } => Self::Pending { tensor, factor: factor * by },
        }
    }

    /// The sum of two; if both are pending, they must be on the same device.
    pub fn plus(self, other: Self) -> Result<Self> {
        Ok(match (self, other) {
            (Self::Known(a), Self::Known(b)) => Self::Known(a + b),
            (Self::Pending { tensor, factor }, Self::Known(known))
            | (Self::Known(known), Self::Pending { tensor, factor }) => {
                Self::Pending { tensor: tensor.affine(factor, known)?, factor: 1.0 }
            }
            (Self::Pending { tensor: a, factor }, Self::Pending { tensor: b, factor: other }) => {
                let b = ((b * other)?.to_dtype(a.dtype())?).reshape(a.shape())?;
                Self::Pending { tensor: ((a * factor)? + b)?, factor: 1.0 }
            }
        })
    }

    /// The value; waits for the device. For several, [`Scalar::read_all`] waits once.
    pub fn read(&self) -> Result<f64> {
        Self::read_all(&[self]).map(|values| values[0])
    }

    /// The values, in one copy from their device.
    pub fn read_all(scalars: &[&Self]) -> Result<Vec<f64>> {
        let mut pending = vec![];
        for scalar in scalars {
            if let Self::Pending { tensor, .. } = scalar {
                pending.push(tensor.to_dtype(wide(tensor.device()))?.reshape(1)?);
            }
        }
        let mut read = match pending.as_slice() {
            [] => vec![],
            // f64 on the host: not every device has it.
            pending => Tensor::cat(pending, 0)?.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_vec1::<f64>()?,
        }
        .into_iter();
        let value = |scalar: &&Self| match scalar {
            Self::Known(value) => Ok(*value),
            Self::Pending { factor, .. } => Ok(read.next().context("one value for each")? * factor),
        };
        scalars.iter().map(value).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_and_pending_are_read_in_order() {
        let tensor = |value: f64, dtype| Tensor::new(&[[value]], &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        let pending = |value, dtype| Scalar::Pending { tensor: tensor(value, dtype), factor: 1.0 };
        let scalars = [
            Scalar::Known(1.0),
            pending(2.0, DType::F32).times(0.5).times(3.0),
            Scalar::Known(4.0).times(0.25),
            pending(1.0 + 1e-12, DType::F64),
        ];
        assert_eq!(Scalar::read_all(&scalars.each_ref()).unwrap(), [1.0, 3.0, 1.0, 1.0 + 1e-12]);
        let [known, half, _, _] = scalars;
        let sums = [known.clone().plus(half.clone()), half.clone().plus(known), half.clone().plus(half)];
        let read = sums.map(|sum| sum.unwrap().read().unwrap());
        assert_eq!(read, [4.0, 4.0, 6.0]);
        assert_eq!(Scalar::read_all(&[]).unwrap(), [0.0; 0]);
        assert_eq!(Scalar::of(tensor(7.0, DType::F32)).unwrap().read().unwrap(), 7.0);
        assert!(Scalar::of(Tensor::new(&[1f32, 2.0], &Device::Cpu).unwrap()).is_err());
    }

    /// Any other read from a device would make each step wait. The intended reads, by file: the scalars of a step;
    /// losses of single tokens, if a defence needs them; generated tokens; which experts a mixture's tokens go to, and the gradients
    /// of their weights; and before the first step: finite weights, the probe of gradients, what a defence starts with, and the
    /// ranks' parameters.
    #[test]
    fn nothing_else_in_a_step_is_read_from_its_device() {
        let read_on_purpose = [
            ("model/mixture.rs", 2),
            ("model/slots.rs", 1),
            ("ops/cross_entropy.rs", 1),
            ("ops/scalar.rs", 1),
            ("ops/sum.rs", 1),
            ("train/defence/activations.rs", 1),
            ("train/step/parallel.rs", 1),
            ("train/step/probe.rs", 1),
        ];
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut paths = vec![];
        let mut folders: Vec<_> =
            ["ops", "model", "optim", "train/step", "train/defence"].map(|room| root.join(room)).into();
        while let Some(folder) = folders.pop() {
            for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
                if path.is_dir() { folders.push(path) } else { paths.push(path) }
            }
        }
        paths.extend(["input", "penalty", "sign"].map(|name| root.join(format!("method/{name}.rs"))));
        let is_code = |path: &std::path::PathBuf| {
            path.extension().is_some_and(|e| e == "rs")
                && !path.to_str().unwrap().ends_with("tests.rs")
                && !path.ends_with("testing.rs")
        };
        let mut found = vec![];
        for path in paths.into_iter().filter(is_code) {
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
            let count =
                [".to_scalar", ".to_vec0", ".to_vec1", ".to_vec2", ".to_vec3"].map(|call| code.matches(call).count());
            let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_string();
            if count.iter().sum::<usize>() > 0 {
                found.push((name, count.iter().sum::<usize>()));
            }
        }
        found.sort();
        assert_eq!(found, read_on_purpose.map(|(name, count)| (name.to_string(), count)));
    }
}
