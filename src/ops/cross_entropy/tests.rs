use super::*;
use crate::ops::testing::{Case, close, random};
use candle_core::{Device, Var};

const TARGETS: [u32; 5] = [3, 0, 10, 3, 7];

fn inputs() -> (Tensor, Tensor) {
    ((random(&[5, 6], 1) * 3.0).unwrap(), random(&[11, 6], 2))
}

#[test]
fn matches_autograd_and_finite_differences() {
    for cap in [None, Some(2.5)] {
        let (h, w) = inputs();
        let (loss, grads) = forward_backward(&h, &w, &TARGETS, 0.3, true, cap).unwrap();
        assert!((forward(&h, &w, &TARGETS, cap).unwrap() - loss).abs() < 1e-9);
        let (vh, vw) = (Var::from_tensor(&h).unwrap(), Var::from_tensor(&w).unwrap());
        let capped = move |logits: Tensor| match cap {
            Some(cap) => (logits / cap)?.tanh()? * cap,
            None => Ok(logits),
        };
        let logits = capped(vh.matmul(&vw.t().unwrap()).unwrap()).unwrap();
        let targets = Tensor::new(&TARGETS, &Device::Cpu).unwrap();
        let oracle = (candle_nn::loss::cross_entropy(&logits, &targets).unwrap() * 5.0).unwrap();
        let value = f64::from(oracle.to_scalar::<f32>().unwrap());
        assert!((loss - value).abs() < 1e-5 * value, "{loss} {value}");
        let tape = (oracle * 0.3).unwrap().backward().unwrap();
        close(&grads.hidden, tape.get(&vh).unwrap(), 1e-5);
        close(grads.head.as_ref().unwrap(), tape.get(&vw).unwrap(), 1e-5);
        let dy = Tensor::new(0.3f64, &Device::Cpu).unwrap();
        let case = Case::new(vec![h, w], dy, move |v| {
            let log_p = candle_nn::ops::log_softmax(&capped(v[0].matmul(&v[1].t()?)?)?, 1)?;
            log_p.gather(&targets.unsqueeze(1)?, 1)?.sum_all()?.neg()
        });
        case.check(&[&grads.hidden, grads.head.as_ref().unwrap()], 1e-5);
    }
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let (h, w) = inputs();
    let many = [0; 900];
    for (w, targets) in
        [(&w, &TARGETS[..4]), (&w, &many), (&w.narrow(1, 0, 5).unwrap().contiguous().unwrap(), &TARGETS)]
    {
        assert!(losses(&h, w, targets, None).is_err());
        assert!(losses_backward(&h, w, targets, 1.0, true, None).is_err());
    }
}

#[test]
fn kernel_equals_generic_over_several_chunks() {
    // A vocabulary so large that five rows take more than one chunk.
    let vocab = CHUNK_ELEMENTS / 2 - 3;
    let (h, w) = (random(&[5, 2], 3), random(&[vocab, 2], 4));
    for cap in [None, Some(1.5)] {
        let (slow, slow_grads) = generic(&h, &w, &TARGETS, 2.0, true, cap).unwrap();
        let slow = slow.read().unwrap();
        let (fast, fast_grads) = kernel(&h, (&w).into(), &TARGETS, Some((2.0, true)), cap).unwrap();
        let fast_grads = fast_grads.unwrap();
        assert_eq!((slow.len(), fast.len()), (5, 5));
        assert!(slow.iter().zip(&fast).all(|(slow, fast)| (slow - fast).abs() < 1e-5 * slow));
        close(&fast_grads.hidden, &slow_grads.hidden, 1e-4);
        close(&fast_grads.head.unwrap(), &slow_grads.head.unwrap(), 1e-5);
    }
}

/// Qwen2's head and the labels of a micro-batch of 8 × 512: what is read again for each chunk is 1 GB.
#[test]
fn a_gpu_reads_the_head_a_few_times_only() {
    let chunks = |on_cpu| 4096usize.div_ceil(chunk_rows(152_064, 4096, on_cpu));
    assert_eq!((chunks(true), chunks(false)), (38, 10));
    assert_eq!(chunk_rows(1 << 30, 5, false), 1);
    assert_eq!(chunk_rows(97, 5, false), 5);
}
