use super::*;
use crate::ops::attention::Layout;
use crate::ops::testing::{Case, close, random};
use candle_core::{D, Var};

const SHAPE: Shape = Shape { key_heads: 2, value_heads: 4, key_dim: 3, value_dim: 5 };

/// Position by position, from the recurrence, in any type; sequences of these lengths.
fn recurrent(inputs: &[Tensor], shape: Shape, lengths: &[usize]) -> candle_core::Result<Tensor> {
    let [mixed, decay, beta] = inputs else { panic!() };
    let Shape { key_heads, value_heads, key_dim, value_dim } = shape;
    let (keys, times) = (key_heads * key_dim, value_heads / key_heads);
    let head = |start: usize, scale: f64| {
        let x = mixed.narrow(1, start, keys)?.reshape(((), key_heads, key_dim))?;
        let length = (x.sqr()?.sum_keepdim(D::Minus1)? + 1e-6)?.sqrt()?;
        let x = (x.broadcast_div(&length)? * scale)?.reshape(((), key_heads, 1, key_dim))?;
        x.broadcast_as((mixed.dim(0)?, key_heads, times, key_dim))?.reshape(((), value_heads, key_dim))
    };
    let (q, k) = (head(0, (key_dim as f64).powf(-0.5))?, head(keys, 1.0)?);
    let v = mixed.narrow(1, 2 * keys, value_heads * value_dim)?.reshape(((), value_heads, value_dim))?;
    let (mut start, mut rows) = (0, vec![]);
    for &length in lengths {
        let mut state = Tensor::zeros((value_heads, key_dim, value_dim), mixed.dtype(), mixed.device())?;
        for t in start..start + length {
            let of_head = |x: &Tensor| x.get(t)?.reshape((value_heads, 1, 1));
            let (k, v, q) = (k.get(t)?.unsqueeze(2)?, v.get(t)?.unsqueeze(1)?, q.get(t)?.unsqueeze(2)?);
            state = state.broadcast_mul(&of_head(decay)?.exp()?)?;
            let seen = state.broadcast_mul(&k)?.sum_keepdim(1)?;
            let u = (v - seen)?.broadcast_mul(&of_head(beta)?)?;
            state = (state + k.broadcast_mul(&u)?)?;
            rows.push(state.broadcast_mul(&q)?.sum(1)?.reshape(value_heads * value_dim)?);
        }
        start += length;
    }
    Tensor::stack(&rows, 0)
}

/// mixed, g and β of so many rows; the decays are mild, so that far positions matter.
fn inputs(rows: usize, shape: Shape, seed: u64) -> [Tensor; 3] {
    let mixed = random(&[rows, shape.mixed_width()], seed);
    let decay = ((random(&[rows, shape.value_heads], seed + 1) - 1.0).unwrap() * 0.1).unwrap();
    let beta = ((random(&[rows, shape.value_heads], seed + 2) + 1.0).unwrap() * 0.5).unwrap();
    [mixed, decay, beta]
}

/// A transposed view is not contiguous, which sends it down the generic path.
fn strided(x: &Tensor) -> Tensor {
    x.t().unwrap().contiguous().unwrap().t().unwrap()
}

fn both_bodies(inputs: &[Tensor; 3]) -> [[Tensor; 3]; 2] {
    [inputs.clone(), [strided(&inputs[0]), inputs[1].clone(), inputs[2].clone()]]
}

#[test]
fn short_sequences_match_the_recurrence_and_finite_differences() {
    let lengths = [5, 1, 3];
    let layout = Layout::new(&lengths);
    let all = inputs(9, SHAPE, 1);
    let dy = random(&[9, SHAPE.value_width()], 7);
    for own in both_bodies(&all) {
        let (y, _, saved) = forward(own.each_ref(), SHAPE, &layout, None).unwrap();
        close(&y, &recurrent(&all, SHAPE, &lengths).unwrap(), 1e-6);
        let gradients = backward(&saved, &dy, SHAPE, &layout).unwrap();
        let function = move |v: &[Tensor]| recurrent(v, SHAPE, &lengths);
        Case::new(all.to_vec(), dy.clone(), function).check(&gradients.each_ref(), 2e-5);
    }
}

/// Several chunks, the last not whole, packed: against the recurrence in f64, with candle's tape.
#[test]
fn long_sequences_match_the_recurrence() {
    let lengths = [150, 64, 3];
    let (layout, rows) = (Layout::new(&lengths), lengths.iter().sum());
    let all = inputs(rows, SHAPE, 11);
    let dy = random(&[rows, SHAPE.value_width()], 17);
    let wide = all.each_ref().map(|x| Var::from_tensor(&x.to_dtype(DType::F64).unwrap()).unwrap());
    let views = wide.each_ref().map(|var| var.as_tensor().clone());
    let exact = recurrent(&views, SHAPE, &lengths).unwrap();
    let tape = (&exact * dy.to_dtype(DType::F64).unwrap()).unwrap().sum_all().unwrap().backward().unwrap();
    for own in both_bodies(&all) {
        let (y, _, saved) = forward(own.each_ref(), SHAPE, &layout, None).unwrap();
        close(&y, &exact, 2e-6);
        for (got, var) in backward(&saved, &dy, SHAPE, &layout).unwrap().iter().zip(&wide) {
            close(got, tape.get(var).unwrap(), 1e-5);
        }
    }
}

/// The hardest case of the triangular system: every key the same, everything written, nothing forgotten.
#[test]
fn equal_keys_that_overwrite_one_another_lose_no_digits() {
    let rows = 130;
    let row = random(&[1, SHAPE.mixed_width()], 21);
    let nearly = (random(&[rows, SHAPE.mixed_width()], 22) * 1e-3).unwrap();
    let mixed = row.broadcast_add(&nearly);
    let ones = Tensor::ones((rows, SHAPE.value_heads), DType::F32, row.device()).unwrap();
    let all = [mixed.unwrap(), (&ones * -1e-4).unwrap(), ones];
    let wide = all.each_ref().map(|x| x.to_dtype(DType::F64).unwrap());
    let exact = recurrent(&wide, SHAPE, &[rows]).unwrap();
    for own in both_bodies(&all) {
        let y = forward(own.each_ref(), SHAPE, &Layout::new(&[rows]), None).unwrap().0;
        close(&y, &exact, 1e-5);
    }
}

/// Strong decays, of which no power may be infinite or 0 · ∞.
#[test]
fn what_is_forgotten_at_once_stays_finite() {
    let mut all = inputs(100, SHAPE, 31);
    all[1] = (&all[1] * 1e4).unwrap();
    let layout = Layout::new(&[100]);
    let dy = random(&[100, SHAPE.value_width()], 32);
    let results = both_bodies(&all).map(|own| {
        let (y, _, saved) = forward(own.each_ref(), SHAPE, &layout, None).unwrap();
        let [mixed, decay, beta] = backward(&saved, &dy, SHAPE, &layout).unwrap();
        assert!(decay.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().is_finite());
        [y, mixed, beta]
    });
    for (fast, slow) in results[0].iter().zip(&results[1]) {
        close(fast, slow, 1e-5);
    }
}

#[test]
fn pieces_with_the_state_before_them_are_the_whole() {
    let (length, all) = (90, inputs(180, SHAPE, 41));
    let (whole, _, _) = forward(all.each_ref(), SHAPE, &Layout::new(&[length; 2]), None).unwrap();
    for generic in [false, true] {
        let (mut before, mut done) = (None, 0);
        for count in [70, 1, 1, 18] {
            let rows = |x: &Tensor| {
                let parts = [done, length + done].map(|start| x.narrow(0, start, count).unwrap());
                Tensor::cat(&parts, 0).unwrap()
            };
            let mut piece = all.each_ref().map(rows);
            if generic {
                piece[0] = strided(&piece[0]);
            }
            let layout = Layout::new(&[count; 2]);
            let (y, after, _) = forward(piece.each_ref(), SHAPE, &layout, before.as_ref()).unwrap();
            for (number, start) in [done, length + done].into_iter().enumerate() {
                let got = y.narrow(0, number * count, count).unwrap();
                close(&got, &whole.narrow(0, start, count).unwrap(), 1e-5);
            }
            (before, done) = (Some(after), done + count);
        }
    }
}

/// A sequence's numbers do not depend on what else is in the batch, nor on the number of threads: to the bit.
#[test]
fn a_sequence_alone_is_the_same_to_the_bit() {
    let lengths = [33, 100];
    let all = inputs(133, SHAPE, 51);
    let dy = random(&[133, SHAPE.value_width()], 52);
    let run = |all: &[Tensor; 3], dy: &Tensor, lengths: &[usize]| {
        let layout = Layout::new(lengths);
        let (y, after, saved) = forward(all.each_ref(), SHAPE, &layout, None).unwrap();
        let [mixed, decay, beta] = backward(&saved, dy, SHAPE, &layout).unwrap();
        let bits = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        ([y, mixed, decay, beta].map(|x| x.narrow(0, x.dims()[0] - 100, 100).unwrap()).map(|x| bits(&x)), bits(&after))
    };
    let (together, _) = run(&all, &dy, &lengths);
    let last = |x: &Tensor| x.narrow(0, 33, 100).unwrap().contiguous().unwrap();
    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let (alone, _) = one_thread.install(|| run(&all.each_ref().map(last), &last(&dy), &[100]));
    assert!(together == alone);
}

#[test]
fn half_precision_is_rounded_once() {
    let all = inputs(70, SHAPE, 61);
    let half = all[0].to_dtype(DType::BF16).unwrap();
    let dy = random(&[70, SHAPE.value_width()], 62).to_dtype(DType::BF16).unwrap();
    let layout = Layout::new(&[70]);
    let wide = [half.to_dtype(DType::F32).unwrap(), all[1].clone(), all[2].clone()];
    let (exact, _, saved) = forward(wide.each_ref(), SHAPE, &layout, None).unwrap();
    let gradients = backward(&saved, &dy.to_dtype(DType::F32).unwrap(), SHAPE, &layout).unwrap();
    for mixed in [half.clone(), strided(&half)] {
        let (y, _, saved) = forward([&mixed, &all[1], &all[2]], SHAPE, &layout, None).unwrap();
        assert!(y.dtype() == DType::BF16);
        close(&y, &exact, 4e-3);
        for (got, exact) in backward(&saved, &dy, SHAPE, &layout).unwrap().iter().zip(&gradients) {
            close(got, exact, 4e-3);
        }
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let all = inputs(4, SHAPE, 71);
    let layout = Layout::new(&[4]);
    let (_, after, saved) = forward(all.each_ref(), SHAPE, &layout, None).unwrap();
    for shape in [Shape { key_heads: 3, ..SHAPE }, Shape { value_dim: 0, ..SHAPE }, Shape { key_dim: 4, ..SHAPE }] {
        assert!(forward(all.each_ref(), shape, &layout, None).is_err());
    }
    assert!(forward(all.each_ref(), SHAPE, &Layout::new(&[3]), None).is_err());
    let wrong = after.narrow(1, 0, 3).unwrap();
    assert!(forward(all.each_ref(), SHAPE, &layout, Some(&wrong)).is_err());
    assert!(backward(&saved, &random(&[4, 3], 1), SHAPE, &layout).is_err());
    let (_, _, going_on) = forward(all.each_ref(), SHAPE, &layout, Some(&after)).unwrap();
    assert!(backward(&going_on, &random(&[4, SHAPE.value_width()], 1), SHAPE, &layout).is_err());
}
