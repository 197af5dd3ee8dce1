use super::*;
use crate::ops::attention::Layout;
use crate::ops::testing::{Case, close, random};

const LENGTHS: [usize; 3] = [2, 7, 1];

/// From the definition, in any type: whole sequences, nothing before them.
fn textbook(x: &Tensor, weight: &Tensor, lengths: &[usize]) -> candle_core::Result<Tensor> {
    let (channels, width) = weight.dims2()?;
    let (mut start, mut rows) = (0, vec![]);
    for &length in lengths {
        for t in 0..length {
            let mut p = Tensor::zeros(channels, x.dtype(), x.device())?;
            for j in (0..width).filter(|j| t + j + 1 >= width) {
                p = (p + (x.get(start + t + j + 1 - width)? * weight.narrow(1, j, 1)?.flatten_all()?)?)?;
            }
            rows.push((&p / (p.neg()?.exp()? + 1.0)?)?);
        }
        start += length;
    }
    Tensor::stack(&rows, 0)
}

/// A transposed view is not contiguous, which sends it down the generic path.
fn strided(x: &Tensor) -> Tensor {
    x.t().unwrap().contiguous().unwrap().t().unwrap()
}

#[test]
fn both_bodies_match_the_definition_and_finite_differences() {
    let (layout, rows) = (Layout::new(&LENGTHS), LENGTHS.iter().sum());
    let (x, weight, dy) = (random(&[rows, 5], 1), random(&[5, 4], 2), random(&[rows, 5], 3));
    let expected = textbook(&x, &weight, &LENGTHS).unwrap();
    for x in [x.clone(), strided(&x)] {
        let (y, saved) = forward(&x, &weight, &layout, None).unwrap();
        close(&y, &expected, 1e-6);
        let (dx, dw) = backward(&saved, &weight, &dy, &layout, true).unwrap();
        let function = |v: &[Tensor]| textbook(&v[0], &v[1], &LENGTHS);
        Case::new(vec![x, weight.clone()], dy.clone(), function).check(&[&dx, &dw.unwrap()], 1e-5);
    }
}

#[test]
fn many_channels_and_half_precision() {
    let (lengths, channels) = ([5usize, 3], 300);
    let layout = Layout::new(&lengths);
    let (x, weight, dy) = (random(&[8, channels], 4), random(&[channels, 3], 5), random(&[8, channels], 6));
    let half = |x: &Tensor| x.to_dtype(DType::BF16).unwrap();
    for (x, dy, tolerance) in [(x.clone(), dy.clone(), 1e-6), (half(&x), half(&dy), 1e-2)] {
        let both = [x.clone(), strided(&x)].map(|x| {
            let (y, saved) = forward(&x, &weight, &layout, None).unwrap();
            let (dx, dw) = backward(&saved, &weight, &dy, &layout, true).unwrap();
            (y, dx, dw.unwrap())
        });
        let [(y, dx, dw), (slow_y, slow_dx, slow_dw)] = &both;
        assert!(y.dtype() == x.dtype() && dx.dtype() == x.dtype() && dw.dtype() == DType::F32);
        close(y, slow_y, tolerance);
        close(dx, slow_dx, tolerance);
        close(dw, slow_dw, tolerance);
    }
}

/// Rows one by one or in pieces, with the rows before them, are the whole sequences.
#[test]
fn pieces_with_what_came_before_are_the_whole() {
    let (x, weight) = (random(&[14, 6], 7), random(&[6, 4], 8));
    let whole = forward(&x, &weight, &Layout::new(&[7, 7]), None).unwrap().0;
    for make in [Tensor::clone, strided] {
        let mut before: Option<Tensor> = None;
        let mut done = 0;
        for length in [2, 1, 1, 3] {
            let rows = [done, 7 + done].map(|start| x.narrow(0, start, length).unwrap());
            let piece = make(&Tensor::cat(&rows, 0).unwrap());
            let layout = Layout::new(&[length, length]);
            let y = forward(&piece, &weight, &layout, before.as_ref()).unwrap().0;
            for (number, start) in [done, 7 + done].into_iter().enumerate() {
                let got = y.narrow(0, number * length, length).unwrap();
                close(&got, &whole.narrow(0, start, length).unwrap(), 1e-6);
            }
            before = Some(ends(&piece, 4, &layout.spans, before.as_ref()).unwrap());
            done += length;
        }
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let (x, weight, layout) = (random(&[4, 6], 1), random(&[6, 4], 2), Layout::new(&[4]));
    assert!(forward(&x, &random(&[5, 4], 2), &layout, None).is_err());
    assert!(forward(&x, &weight, &Layout::new(&[3]), None).is_err());
    assert!(forward(&x, &weight, &layout, Some(&random(&[2, 6], 3))).is_err());
    let saved = forward(&x, &weight, &layout, None).unwrap().1;
    assert!(backward(&saved, &weight, &random(&[3, 6], 4), &layout, true).is_err());
}

/// Windows and channels that fill no pack, sequences shorter than a window, in every type.
#[cfg(feature = "shim")]
#[test]
fn the_gpus_kernels_equal_the_other_bodies() {
    use crate::ops::gpu::tests::check;
    for (channels, width, lengths) in
        [(1, 1, vec![1]), (5, 4, vec![2, 7, 1]), (264, 3, vec![40, 3]), (17, 6, vec![4, 9])]
    {
        let (layout, rows) = (Layout::new(&lengths), lengths.iter().sum());
        let weight = random(&[channels, width], 2);
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let [x, dy] = [1, 3].map(|seed| random(&[rows, channels], seed).to_dtype(dtype).unwrap());
            check(("causal convolution", channels, width, dtype), || {
                let (y, saved) = forward(&x, &weight, &layout, None).unwrap();
                let (dx, dw) = backward(&saved, &weight, &dy, &layout, true).unwrap();
                // A sum in f32 of what is rounded to the type elsewhere.
                let (alone, none) = backward(&saved, &weight, &dy, &layout, false).unwrap();
                assert!(none.is_none());
                vec![y, dx, dw.unwrap(), alone]
            });
        }
    }
}
