use super::groups::Group;
use super::*;
use crate::ops::testing::{Case, close, random};
use candle_core::{DType, Device, Var};

const SHAPE: Shape = Shape { heads: 4, kv_heads: 2, head_dim: 6, scale: 0.4, window: None, cap: None };

/// Every combination of window and cap.
fn shapes(window: usize) -> [Shape; 4] {
    [(None, None), (Some(window), None), (None, Some(2.0)), (Some(window), Some(2.0))].map(|(window, cap)| Shape {
        window,
        cap,
        ..SHAPE
    })
}

/// q, k, v, dy for a layout.
fn inputs(layout: &Layout) -> [Tensor; 4] {
    let (queries, keys) = (SHAPE.heads * SHAPE.head_dim, SHAPE.kv_heads * SHAPE.head_dim);
    let rows_q = layout.spans.iter().map(|span| span.q_len).sum();
    let rows_k = layout.spans.iter().map(|span| span.k_len).sum();
    let large = |t: Tensor| (t * 3.0).unwrap();
    [
        large(random(&[rows_q, queries], 1)),
        large(random(&[rows_k, keys], 2)),
        random(&[rows_k, keys], 3),
        random(&[rows_q, queries], 4),
    ]
}

/// The textbook form: every head's own full matrix of scores, span by span.
fn naive(v: &[Tensor], shape: Shape, layout: &Layout) -> candle_core::Result<Tensor> {
    let group = shape.heads / shape.kv_heads;
    let mut rows = vec![];
    for span in &layout.spans {
        let (tq, tk) = (span.q_len, span.k_len);
        let allowed = |i: usize, j: usize| {
            let position = i + tk - tq;
            j <= position && shape.window.is_none_or(|window| j + window > position)
        };
        let mask: Vec<f64> = (0..tq * tk).map(|at| if allowed(at / tk, at % tk) { 0.0 } else { -1e30 }).collect();
        let mask = Tensor::from_vec(mask, (tq, tk), v[0].device())?.to_dtype(v[0].dtype())?;
        let mut heads = vec![];
        for h in 0..shape.heads {
            let part = |x: &Tensor, start: usize, t: usize, h: usize| {
                x.narrow(0, start, t)?.narrow(1, h * shape.head_dim, shape.head_dim)?.contiguous()
            };
            let q = part(&v[0], span.q_start, tq, h)?;
            let k = part(&v[1], span.k_start, tk, h / group)?;
            let value = part(&v[2], span.k_start, tk, h / group)?;
            let scores = (q.matmul(&k.t()?.contiguous()?)? * shape.scale)?;
            let scores = match shape.cap {
                Some(cap) => ((scores / cap)?.tanh()? * cap)?,
                None => scores,
            };
            heads.push(candle_nn::ops::softmax(&(scores + &mask)?, 1)?.matmul(&value)?);
        }
        rows.push(Tensor::cat(&heads, 1)?);
    }
    Tensor::cat(&rows, 0)
}

#[test]
fn matches_autograd_and_finite_differences() {
    for shape in shapes(3) {
        let layout = Layout::new(&[5, 1, 4]);
        let [q, k, v, dy] = inputs(&layout);
        let (y, saved) = forward(&q, &k, &v, shape, &layout).unwrap();
        let (dq, dk, dv) = backward(&saved, &dy, shape, &layout).unwrap();
        let vars = [&q, &k, &v].map(|x| Var::from_tensor(x).unwrap());
        let tensors: Vec<Tensor> = vars.iter().map(|x| x.as_tensor().clone()).collect();
        let oracle = naive(&tensors, shape, &layout).unwrap();
        close(&y, &oracle, 1e-6);
        let grads = (oracle * &dy).unwrap().sum_all().unwrap().backward().unwrap();
        for (var, got) in vars.iter().zip([&dq, &dk, &dv]) {
            close(got, grads.get(var).unwrap(), 1e-5);
        }
        let case = Case::new(vec![q, k, v], dy, move |v| naive(v, shape, &layout));
        case.check(&[&dq, &dk, &dv], 2e-5);
    }
}

#[test]
fn kernel_equals_generic_over_several_tiles() {
    let layouts = [vec![150], vec![64, 64], vec![3, 70, 129], vec![1, 1, 5]].map(|lengths| Layout::new(&lengths));
    let cached = |new, cached| Layout::cached(vec![Span { q_start: 0, q_len: new, k_start: 0, k_len: cached + new }]);
    for layout in layouts.into_iter().chain([cached(1, 76), cached(3, 67)]) {
        for shape in shapes(50) {
            let [q, k, v, dy] = inputs(&layout);
            let (slow, kept) = generic::forward(&q, &k, &v, shape, &layout).unwrap();
            let (fast, lse) = kernel::forward(&q, &k, &v, shape, &layout).unwrap();
            close(&fast, &slow, 2e-6);
            let (q, k, v) = (q.clone(), k.clone(), v.clone());
            let saved = Saved { q, k, v, output: slow, softmax: Softmax::LogSumExp(vec![]) };
            let slow = generic::backward(&saved, &kept, &dy, shape, &layout).unwrap();
            let fast = kernel::backward(&saved, &lse, &dy, shape, &layout).unwrap();
            close(&fast.0, &slow.0, 5e-6);
            close(&fast.1, &slow.1, 5e-6);
            close(&fast.2, &slow.2, 5e-6);
        }
    }
}

#[test]
fn groups_are_as_large_as_their_scores_allow() {
    let groups = |lengths: &[usize], limit| {
        let layout = Layout::new(lengths);
        let groups = Group::all(&layout.spans, 2, limit, &Device::Cpu).unwrap();
        groups.iter().map(Group::sequences).collect::<Vec<_>>()
    };
    // Lengths count as multiples of 8.
    assert_eq!(groups(&[4, 4, 4], 2 * 2 * 64), [2, 1]);
    assert_eq!(groups(&[1, 5, 2, 9], 2 * 3 * 64), [3, 1]);
    assert_eq!(groups(&[8, 9], 1), [1, 1, 1]);
    let (first, second) =
        (Span { q_start: 0, q_len: 1, k_start: 0, k_len: 5 }, Span { q_start: 1, q_len: 1, k_start: 5, k_len: 3 });
    assert_eq!(Group::all(&[first, second], 2, 1000, &Device::Cpu).unwrap().len(), 2);
}

/// Sequences too long for one tensor of scores, block by block of their queries.
#[test]
fn a_sequence_in_several_blocks_is_as_in_one() {
    let cached = Layout::cached(vec![Span { q_start: 0, q_len: 30, k_start: 0, k_len: 71 }]);
    for (layout, limit, blocks) in
        [(Layout::new(&[5, 100, 41]), 4 * 1000, 13), (Layout::new(&[83]), 1, 11), (cached, 4 * 71 * 10, 4)]
    {
        for shape in shapes(20) {
            let [q, k, v, dy] = inputs(&layout);
            let mut split = Layout::cached(layout.spans.clone());
            split.max_scores = limit;
            assert_eq!(split.groups(shape.heads, &Device::Cpu).unwrap().len(), blocks);
            let (expected, kept) = generic::forward(&q, &k, &v, shape, &layout).unwrap();
            let (got, split_kept) = generic::forward(&q, &k, &v, shape, &split).unwrap();
            close(&got, &expected, 1e-6);
            let largest = split_kept.iter().map(|(p, _)| p.elem_count()).max().unwrap();
            assert!(largest <= limit.max(4 * 8 * 83), "{largest}");
            let (q, k, v) = (q.clone(), k.clone(), v.clone());
            let saved = Saved { q, k, v, output: expected, softmax: Softmax::Groups(vec![]) };
            let expected = generic::backward(&saved, &kept, &dy, shape, &layout).unwrap();
            let got = generic::backward(&saved, &split_kept, &dy, shape, &split).unwrap();
            for (got, expected) in [(&got.0, &expected.0), (&got.1, &expected.1), (&got.2, &expected.2)] {
                close(got, expected, 2e-6);
            }
        }
    }
}

/// A GPU's matrix units want rows of a multiple of eight; what is added for them changes nothing.
#[test]
fn odd_lengths_are_padded_and_the_padding_is_not_seen() {
    for lengths in [vec![9], vec![1], vec![16, 15, 3]] {
        let layout = Layout::new(&lengths);
        let groups = layout.groups(SHAPE.heads, &Device::Cpu).unwrap();
        assert!(groups.iter().all(|group| group.lengths.0 % 8 == 0 && group.lengths.1 % 8 == 0));
        for shape in shapes(5) {
            let [q, k, v, dy] = inputs(&layout);
            let (y, kept) = generic::forward(&q, &k, &v, shape, &layout).unwrap();
            let exact = naive(&[q.clone(), k.clone(), v.clone()], shape, &layout).unwrap();
            assert_eq!(y.dims(), q.dims());
            close(&y, &exact, 1e-6);
            let saved = Saved { q, k, v, output: y, softmax: Softmax::Groups(vec![]) };
            let (_, lse) = kernel::forward(&saved.q, &saved.k, &saved.v, shape, &layout).unwrap();
            let got = generic::backward(&saved, &kept, &dy, shape, &layout).unwrap();
            let expected = kernel::backward(&saved, &lse, &dy, shape, &layout).unwrap();
            for (got, expected) in [(&got.0, &expected.0), (&got.1, &expected.1), (&got.2, &expected.2)] {
                assert_eq!(got.dims(), expected.dims());
                close(got, expected, 5e-6);
            }
        }
    }
}

/// Half-precision inputs are the same as their widened values, rounded once.
#[test]
fn half_precision_is_f32_rounded() {
    let layout = Layout::new(&[30, 80]);
    let wide = inputs(&layout).map(|x| x.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap());
    let half = wide.clone().map(|x| x.to_dtype(DType::BF16).unwrap());
    let (y, _) = kernel::forward(&half[0], &half[1], &half[2], SHAPE, &layout).unwrap();
    let (exact, _) = kernel::forward(&wide[0], &wide[1], &wide[2], SHAPE, &layout).unwrap();
    assert_eq!(y.dtype(), DType::BF16);
    close(&y, &exact.to_dtype(DType::BF16).unwrap(), 1e-4);
}

/// The kernel reads and writes rows where the layout says: a layout that does not fit the tensors is refused.
#[test]
fn a_layout_of_other_tensors_is_refused() {
    let (fits, longer) = (Layout::new(&[4, 3]), Layout::new(&[4, 300]));
    let [q, k, v, dy] = inputs(&fits);
    let heads = |heads, kv_heads| Shape { heads, kv_heads, ..SHAPE };
    let span = |q_start, q_len, k_start, k_len| Span { q_start, q_len, k_start, k_len };
    for (shape, layout) in [
        (SHAPE, Layout::new(&[4, 2])),
        (SHAPE, Layout::cached(vec![span(0, 7, 0, 8)])),
        (SHAPE, Layout::cached(vec![span(0, 7, 1, 7)])),
        (SHAPE, Layout::cached(vec![span(0, 7, 0, 6)])),
        (SHAPE, Layout::cached(vec![span(0, 7, 0, 7), span(0, 7, 0, 7)])),
        (SHAPE, Layout::cached(vec![span(0, 7, 2, usize::MAX)])),
        (heads(4, 3), Layout::new(&[7])),
        (heads(4, 0), Layout::new(&[7])),
        (heads(4, 4), Layout::new(&[7])),
        (heads(8, 2), Layout::new(&[7])),
        // Twice this is twice the heads' own size, less 2⁶⁴.
        (Shape { head_dim: SHAPE.head_dim + (1 << 63), ..SHAPE }, Layout::new(&[7])),
        (Shape { window: Some(0), ..SHAPE }, Layout::new(&[7])),
        (SHAPE, longer),
    ] {
        assert!(forward(&q, &k, &v, shape, &layout).is_err(), "{shape:?} {:?}", layout.spans);
    }
    let (_, saved) = forward(&q, &k, &v, SHAPE, &fits).unwrap();
    let backward = |dy: &Tensor, layout: &Layout| backward(&saved, dy, SHAPE, layout);
    assert!(backward(&dy, &fits).is_ok());
    assert!(backward(&dy.narrow(0, 0, 6).unwrap(), &fits).is_err());
    assert!(backward(&dy, &Layout::new(&[7, 1])).is_err());
    // Two spans may read the same keys, but both would add to their gradient.
    assert!(backward(&dy, &Layout::cached(vec![span(0, 4, 0, 4), span(4, 3, 3, 4)])).is_err());
}

#[test]
fn nothing_is_seen_across_sequences() {
    let (whole, first) = (Layout::new(&[20, 30]), Layout::new(&[20]));
    let [q, k, v, _] = inputs(&whole);
    let (y, _) = forward(&q, &k, &v, SHAPE, &whole).unwrap();
    let part = |x: &Tensor| x.narrow(0, 0, 20).unwrap();
    let (alone, _) = forward(&part(&q), &part(&k), &part(&v), SHAPE, &first).unwrap();
    close(&part(&y), &alone, 1e-7);
}

/// Of a cache with room for more, in half precision: what is seen is copied, and the answer is that of the widened whole.
#[test]
fn few_rows_of_a_large_cache_are_seen_where_they_are() {
    let span = |q_start, q_len, k_start, k_len| Span { q_start, q_len, k_start, k_len };
    let layout = Layout::cached(vec![span(0, 1, 90, 7), span(1, 3, 10, 5), span(4, 1, 200, 1)]);
    let (queries, keys) = (SHAPE.heads * SHAPE.head_dim, SHAPE.kv_heads * SHAPE.head_dim);
    let half = |rows, width, seed| random(&[rows, width], seed).to_dtype(DType::BF16).unwrap();
    let (q, k, v) = (half(5, queries, 1), half(201, keys, 2), half(201, keys, 3));
    let [wide_q, wide_k, wide_v] = [&q, &k, &v].map(|x| x.to_dtype(DType::F32).unwrap());
    for shape in shapes(3) {
        let (found, _) = forward(&q, &k, &v, shape, &layout).unwrap();
        let (expected, _) = forward(&wide_q, &wide_k, &wide_v, shape, &layout).unwrap();
        close(&found.to_dtype(DType::F32).unwrap(), &expected, 1e-2);
    }
}
