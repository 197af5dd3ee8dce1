use super::*;
use crate::ops::linear;
use crate::ops::testing::{close, random};
use crate::ops::{cross_entropy, divergence, has_cpu_kernels};
use crate::quant::ggml::GgmlType;
use crate::quant::{Format, Kind};

const NF4: Format = Format::FourBit(Kind::Nf4);
/// With sizes whose rows are whole blocks and, where that may be, sizes whose rows start in the middle of one, at an odd value too.
const CASES: [(Format, usize, usize); 5] = [
    (NF4, 48, 128),
    (NF4, 50, 70),
    (NF4, 33, 65),
    (Format::Ggml(GgmlType::Q8_0), 48, 96),
    (Format::Ggml(GgmlType::Q4K), 49, 512),
];

/// A quantised weight of these sizes, and the tensor that it stands for.
fn quantised(format: Format, rows: usize, columns: usize) -> (Weight, Tensor) {
    let values: Vec<f32> = random(&[rows * columns], 5).to_vec1().unwrap();
    let matrix = format.quantise((rows, columns), &values).unwrap();
    let dense = Tensor::from_vec(matrix.widened(), (rows, columns), &Device::Cpu).unwrap();
    (Weight::quantised(matrix, &Device::Cpu).unwrap(), dense)
}

#[test]
fn products_are_those_with_the_dequantised_weight() {
    for (format, rows, columns) in CASES {
        let (weight, dense) = quantised(format, rows, columns);
        for n in [1, 3, 37] {
            let (x, dy) = (random(&[n, columns], 1), random(&[n, rows], 2));
            for dtype in [DType::F32, DType::BF16] {
                let (x, dy) = (x.to_dtype(dtype).unwrap(), dy.to_dtype(dtype).unwrap());
                let tolerance = if dtype == DType::F32 { 1e-6 } else { 1e-2 };
                let close = |a: Result<Tensor>, b: Result<Tensor>| close(&a.unwrap(), &b.unwrap(), tolerance);
                close(linear::forward(&x, &weight, None), linear::forward(&x, &dense, None));
                close(linear::forward_f32(&x, &weight), linear::forward_f32(&x, &dense));
                close(linear::backward_input(&dy, &weight), linear::backward_input(&dy, &dense));
                let (z, b) = (random(&[n, 4], 3).to_dtype(dtype).unwrap(), random(&[rows, 4], 4));
                let sum = linear::forward_sum(&[(&x, Operand::from(&weight)), (&z, (&b).into())], None);
                close(sum, linear::forward_sum(&[(&x, &dense), (&z, &b)], None));
                let [first, second] = linear::forward_each(&x, [(&weight, None), (&weight, None)]).unwrap();
                close(Ok(first), linear::forward(&x, &dense, None));
                close(Ok(second), linear::forward(&x, &dense, None));
            }
        }
    }
}

#[test]
fn rows_and_losses_are_those_of_the_dequantised_weight() {
    for (format, rows, columns) in CASES {
        let (weight, dense) = quantised(format, rows, columns);
        let ids = [7u32, 0, 7, 32];
        let expected = dense.index_select(&Tensor::new(&ids, &Device::Cpu).unwrap(), 0).unwrap();
        close(&weight.rows(&ids, DType::F32).unwrap(), &expected, 0.0);
        assert_eq!(weight.dims().unwrap(), (rows, columns));
        assert!(weight.is_finite().unwrap() && weight.tensor().is_err());
        let square = dense.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        assert!((weight.square_sum().unwrap() / f64::from(square) - 1.0).abs() < 1e-5);
        let h = random(&[4, columns], 8);
        let (loss, got) = cross_entropy::forward_backward(&h, &weight, &ids, 0.5, false, None).unwrap();
        let (expected_loss, expected) = cross_entropy::forward_backward(&h, &dense, &ids, 0.5, false, None).unwrap();
        assert!((loss - expected_loss).abs() < 1e-5);
        close(&got.hidden, &expected.hidden, 1e-6);
        let losses: f64 = cross_entropy::losses(&h, &weight, &ids, None).unwrap().iter().sum();
        assert!((losses - expected_loss).abs() < 1e-5);
        let moved = random(&[4, columns], 9);
        let (value, got) = divergence::forward_backward(&h, &moved, &weight, 0.5, None).unwrap();
        let (expected_value, expected) = divergence::forward_backward(&h, &moved, &dense, 0.5, None).unwrap();
        assert!((value.read().unwrap() / expected_value.read().unwrap() - 1.0).abs() < 1e-5);
        close(&got, &expected, 1e-5);
    }
    assert!(quantised(NF4, 4, 64).0.rows(&[4], DType::F32).is_err());
}

/// What runs on any device gives the same values as what the CPU's kernels read, to the bit.
#[test]
fn tensors_of_any_device_hold_the_same_values() {
    for (format, rows, columns) in CASES.into_iter().chain([(NF4, 3, 20_000)]) {
        let values: Vec<f32> = random(&[rows * columns], 6).to_vec1().unwrap();
        let matrix = format.quantise((rows, columns), &values).unwrap();
        let packed = Packed::on_device(&matrix, &Device::Cpu).unwrap();
        let got: Vec<f32> = packed.dense(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let differing = got.iter().zip(matrix.widened()).position(|(got, expected)| *got != expected);
        assert_eq!(differing.map(|i| (i, got[i], matrix.widened()[i])), None, "{format} {rows} x {columns}");
        let row: Vec<f32> = packed.rows(&[2]).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(row, matrix.widened()[2 * columns..3 * columns]);
        assert!(packed.host().is_none());
        let here = Packed::new(matrix, &Device::Cpu).unwrap();
        assert_eq!(here.host().is_some(), has_cpu_kernels());
    }
}

#[test]
fn a_widened_copy_serves_both_products_as_long_as_it_is_kept() {
    let values: Vec<f32> = random(&[48 * 128], 7).to_vec1().unwrap();
    let packed = Packed::on_device(&NF4.quantise((48, 128), &values).unwrap(), &Device::Cpu).unwrap();
    let (address, dense) =
        (|x: &Tensor| crate::ops::gpu::address::of(x).unwrap(), |dtype| packed.dense(dtype).unwrap());
    let weight = Weight::Packed(packed.clone());
    let (kept, first) = (Weight::keep_widened(std::iter::once(&weight)), dense(DType::BF16));
    assert_eq!(address(&first), address(&dense(DType::BF16)));
    // Another type is another copy.
    let wide = dense(DType::F32);
    assert!(wide.dtype() == DType::F32 && address(&wide) == address(&dense(DType::F32)));
    drop(kept);
    let again = dense(DType::F32);
    assert!(address(&wide) != address(&again));
    close(&wide, &again, 0.0);
}
