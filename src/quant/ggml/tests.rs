use super::*;
use crate::checkpoint::Checkpoint;
use crate::quant::Vector;
use crate::vectors::of_this_cpu;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand_distr::{Distribution, StandardNormal};
use std::path::Path;

/// What gguf-py makes of random and extreme blocks: tests/fixtures/make/ggml.py.
fn goldens() -> Checkpoint {
    Checkpoint::open_file(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ggml/blocks.safetensors"))
        .unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn every_type_is_widened_to_the_bits_of_the_reference() {
    let goldens = goldens();
    for kind in GgmlType::ALL {
        let blocks = goldens.read_bytes(&format!("{}.blocks", kind.name())).unwrap();
        let expected = goldens.read_f32(&format!("{}.values", kind.name())).unwrap();
        assert_eq!(blocks.len() / kind.block_bytes(), expected.len() / kind.block_len(), "{kind:?}");
        assert!(kind.is_finite(&blocks), "{kind:?}");
        // From an odd address too.
        for shift in 0..2 {
            let moved = [&[0; 1][..shift], &blocks].concat();
            let mut values = vec![f32::NAN; expected.len()];
            kind.widen(&moved[shift..], &mut values);
            assert_eq!(bits(&values), bits(&expected), "{kind:?}");
        }
    }
}

/// Random and extreme blocks as rows of one, two and all of them, whatever instructions the CPU has.
#[test]
fn products_are_those_with_the_values() {
    let goldens = goldens();
    for kind in GgmlType::ALL.into_iter().filter(|kind| kind.is_quantised()) {
        let blocks = goldens.read_bytes(&format!("{}.blocks", kind.name())).unwrap();
        let values = goldens.read_f32(&format!("{}.values", kind.name())).unwrap();
        let mut random = SmallRng::seed_from_u64(5);
        let x: Vec<f32> = (0..values.len()).map(|_| StandardNormal.sample(&mut random)).collect();
        for columns in [kind.block_len(), 2 * kind.block_len(), values.len()] {
            let (rows, bytes) = (values.len() / columns, columns / kind.block_len() * kind.block_bytes());
            let (blocks, x) = (&blocks[..rows * bytes], &x[..columns]);
            for arch in of_this_cpu() {
                let mut got = vec![f32::NAN; rows];
                kind.dots_at(arch, blocks, &Vector::new(x), &mut got);
                for (got, row) in got.iter().zip(values.chunks(columns)) {
                    // Of values with a minimum, the two products that are subtracted may be larger than the values.
                    let largest = row.iter().fold(0f32, |a, b| a.max(b.abs()));
                    let size: f64 = x.iter().map(|x| f64::from(x.abs() * largest)).sum();
                    let expected: f64 = row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                    let near = (f64::from(*got) - expected).abs() <= 1e-6 * size;
                    assert!(near, "{kind:?}, {columns} columns with {arch:?}: {got} for {expected}");
                }
            }
        }
    }
}

#[test]
fn codes_and_sizes_are_those_of_the_format() {
    for kind in GgmlType::ALL {
        assert_eq!(GgmlType::from_code(kind.code()), Some(kind));
        let candle = kind.in_candle();
        assert_eq!((candle.block_size(), candle.type_size()), (kind.block_len(), kind.block_bytes()), "{kind:?}");
    }
    // Q4_2, which is gone; Q8_1, which no file holds; MXFP4.
    assert!([4, 9, 39, u32::MAX].iter().all(|&code| GgmlType::from_code(code).is_none()));
}

#[test]
fn infinite_and_undefined_values_are_seen() {
    let goldens = goldens();
    for kind in GgmlType::ALL {
        let blocks = goldens.read_bytes(&format!("{}.blocks", kind.name())).unwrap();
        let mut seen = 0;
        for at in 0..kind.block_bytes() - 1 {
            let mut blocks = blocks.clone();
            // An infinity, whatever the type.
            let last = blocks.len() - kind.block_bytes() + at;
            blocks[last..last + 2].copy_from_slice(&[0x80, if kind.is_quantised() { 0x7c } else { 0x7f }]);
            let mut values = vec![0f32; blocks.len() / kind.block_bytes() * kind.block_len()];
            kind.widen(&blocks, &mut values);
            assert_eq!(values.iter().all(|v| v.is_finite()), kind.is_finite(&blocks), "{kind:?} at {at}");
            seen += usize::from(!kind.is_finite(&blocks));
        }
        assert!(seen > 0, "{kind:?}");
    }
}

#[test]
fn q8_0_is_quantised_to_the_bytes_of_the_reference() {
    let goldens = goldens();
    let quantised = GgmlType::Q8_0.quantise(&goldens.read_f32("Q8_0.source").unwrap()).unwrap();
    assert_eq!(quantised, goldens.read_bytes("Q8_0.quantised").unwrap());
}

#[test]
fn q4_k_is_near_what_it_was() {
    // More than one thread's share.
    let values: Vec<f32> = (0..2 * CHUNK + 512).map(|i| (i as f32 * 0.731).sin() * (i as f32 * 1e-3).cos()).collect();
    let mut back = vec![0f32; values.len()];
    GgmlType::Q4K.widen(&GgmlType::Q4K.quantise(&values).unwrap(), &mut back);
    let square = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v * v)).sum::<f64>().sqrt();
    let error = square(&mut values.iter().zip(&back).map(|(a, b)| a - b)) / square(&mut values.iter().copied());
    assert!(error < 0.05, "{error}");
}

#[test]
fn the_error_of_quantising_is_half_of_what_is_allowed() {
    let mut random = SmallRng::seed_from_u64(3);
    let values: Vec<f32> = (0..1 << 16).map(|_| StandardNormal.sample(&mut random)).collect();
    for kind in GgmlType::ALL.into_iter().filter(|kind| kind.is_quantised()) {
        let mut back = vec![0f32; values.len()];
        kind.widen(&kind.quantise(&values).unwrap(), &mut back);
        let square = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v * v)).sum::<f64>().sqrt();
        let error = square(&mut values.iter().zip(&back).map(|(a, b)| a - b)) / square(&mut values.iter().copied());
        let worst = kind.worst_error().unwrap();
        assert!((0.2..0.55).contains(&(error / worst)), "{kind:?}: {error} of {worst}");
    }
}

#[test]
fn what_is_not_whole_blocks_or_not_finite_is_refused() {
    let error = GgmlType::Q4K.quantise(&[1.0; 128]).unwrap_err().to_string();
    assert!(error.contains("128 values") && error.contains("256"), "{error}");
    for bad in [f32::NAN, f32::INFINITY] {
        assert!(GgmlType::Q8_0.quantise(&[bad; 32]).unwrap_err().to_string().contains("infinite or NaN"));
    }
}
