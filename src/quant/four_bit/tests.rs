use super::*;
use crate::checkpoint::Checkpoint;
use crate::ops::testing::random;
use crate::quant::Vector;
use crate::vectors::of_this_cpu;
use std::path::Path;

/// Cases made by bitsandbytes.
fn golden() -> (Checkpoint, Vec<String>) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/quant");
    let described = std::fs::read_to_string(dir.join("four_bit.json")).unwrap();
    let described: serde_json::Value = serde_json::from_str(&described).unwrap();
    let cases = described["cases"].as_array().unwrap().iter().map(|case| case.as_str().unwrap().to_string()).collect();
    (Checkpoint::open_file(&dir.join("four_bit.safetensors")).unwrap(), cases)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// The parts of a case as they are stored, and the number of its values.
fn stored(file: &Checkpoint, case: &str) -> (usize, Parts) {
    let read = |part: &str| file.read_f32(&format!("{case}.weight.{part}")).unwrap();
    let bytes = |part: &str| file.read_bytes(&format!("{case}.weight{part}")).unwrap();
    let state = file.names().find(|name| name.starts_with(&format!("{case}.weight.quant_state"))).unwrap();
    let state: serde_json::Value = serde_json::from_slice(&file.read_bytes(state).unwrap()).unwrap();
    let number = |key: &str| state[key].as_u64().unwrap() as usize;
    let scales = match state.get("nested_offset") {
        None => Scales::Plain(read("absmax")),
        Some(offset) => Scales::Nested(Nested {
            codes: bytes(".absmax"),
            table: read("nested_quant_map"),
            absmax: read("nested_absmax"),
            block: number("nested_blocksize"),
            offset: offset.as_f64().unwrap() as f32,
        }),
    };
    let rounding = match state["dtype"].as_str().unwrap() {
        "bfloat16" => Rounding::Bf16,
        "float16" => Rounding::F16,
        _ => Rounding::F32,
    };
    let length = file.info(&format!("{case}.source")).unwrap().elements();
    let table = read("quant_map").try_into().unwrap();
    (length, Parts { packed: bytes(""), block: number("blocksize"), table, scales, rounding })
}

#[test]
fn values_are_those_of_bitsandbytes() {
    let (file, cases) = golden();
    for case in cases {
        let (length, parts) = stored(&file, &case);
        let matrix = FourBit::new(length, parts).unwrap();
        let expected = file.read_f32(&format!("{case}.values")).unwrap();
        for arch in of_this_cpu() {
            // From anywhere, to anywhere.
            let parts = [(1, 1), (3, 40), (60, 9), (63, 2), (64, 64), (65, 130), (128, 256), (length - 7, 7)];
            for (start, count) in [(0, length)].into_iter().chain(parts) {
                let mut part = vec![0f32; count];
                matrix.widen_at(arch, start, &mut part);
                assert_eq!(bits(&part), bits(&expected[start..start + count]), "{case} from {start} with {arch:?}");
            }
        }
    }
}

#[test]
fn quantising_gives_the_bytes_of_bitsandbytes() {
    let (file, cases) = golden();
    for case in cases.iter().filter(|case| !case.contains("block_32")) {
        let kind = if case.starts_with("nf4") { Kind::Nf4 } else { Kind::Fp4 };
        let (length, expected) = stored(&file, case);
        let got = FourBit::quantise(kind, &file.read_f32(&format!("{case}.source")).unwrap()).unwrap();
        assert_eq!(got.packed(), expected.packed, "{case}");
        assert_eq!(bits(got.table()), bits(&expected.table), "{case}");
        let Scales::Nested(got) = got.scales() else { panic!("the scales are quantised") };
        match expected.scales {
            Scales::Nested(expected) => {
                // Summed in another order there.
                assert!((got.offset - expected.offset).abs() <= expected.offset * f32::EPSILON, "{case}");
                assert_eq!(got.codes, expected.codes, "{case}");
                let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 2.0 * f32::EPSILON * b.abs();
                assert!(got.table.iter().zip(&expected.table).all(near), "{case}");
                let close = |(a, b): (&f32, &f32)| (a - b).abs() <= expected.offset * f32::EPSILON;
                assert!(got.absmax.iter().zip(&expected.absmax).all(close), "{case}");
            }
            // What the quantised scales stand for is near what they were made of.
            Scales::Plain(expected) if !case.contains("adversarial") => {
                let largest = got.absmax.iter().fold(0f32, |a, b| a.max(*b));
                let of = Scales::Nested(got.clone());
                for (i, scale) in expected.iter().enumerate() {
                    assert!((of.get(i) - scale).abs() <= largest * 0.02, "{case}: {} for {scale}", of.get(i));
                }
            }
            Scales::Plain(_) => {}
        }
        assert!(length > 0);
    }
}

#[test]
fn a_product_is_that_with_the_values() {
    let values: Vec<f32> = random(&[3000], 3).to_vec1().unwrap();
    let nested = FourBit::quantise(Kind::Nf4, &values).unwrap();
    let scales: Vec<f32> = (0..values.len().div_ceil(128)).map(|i| nested.scales().get(2 * i)).collect();
    let with = |rounding| {
        let (packed, scales) = (nested.packed().to_vec(), Scales::Plain(scales.clone()));
        FourBit::new(values.len(), Parts { packed, block: 128, table: Kind::Nf4.table(), scales, rounding }).unwrap()
    };
    for matrix in [&nested, &with(Rounding::F32), &with(Rounding::Bf16), &with(Rounding::F16)] {
        for (start, columns, rows) in
            [(0, 1, 1), (0, 64, 2), (0, 640, 1), (64, 100, 3), (64, 192, 3), (7, 333, 2), (10, 71, 2), (128, 1024, 2)]
        {
            let x: Vec<f32> = random(&[columns], 4).to_vec1().unwrap();
            let mut wide = vec![0f32; rows * columns];
            matrix.widen(start, &mut wide);
            // Of a part, and of a single value, the values are the same.
            let mut single = [0f32];
            for (i, value) in wide.iter().enumerate().step_by(5) {
                matrix.widen(start + i, &mut single);
                assert_eq!(single, [*value], "{start} {i}");
            }
            for arch in of_this_cpu() {
                let mut got = vec![0f32; rows];
                matrix.dots_at(arch, (start, columns), &Vector::new(&x), &mut got);
                for (got, row) in got.iter().zip(wide.chunks(columns)) {
                    let expected: f64 = row.iter().zip(&x).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                    let near = (f64::from(*got) - expected).abs() < 1e-5;
                    assert!(near, "{got} for {expected} ({start}, {columns}) with {arch:?}");
                }
            }
        }
    }
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let parts = |packed: usize, block: usize, scales: usize| Parts {
        packed: vec![0; packed],
        block,
        table: Kind::Nf4.table(),
        scales: Scales::Plain(vec![1.0; scales]),
        rounding: Rounding::F32,
    };
    let refusal = |parts| FourBit::new(130, parts).unwrap_err().to_string();
    assert!(FourBit::new(130, parts(65, 64, 3)).is_ok());
    assert!(refusal(parts(64, 64, 3)).contains("take 65"));
    assert!(refusal(parts(65, 64, 2)).contains("have 3"));
    assert!(refusal(parts(65, 0, 3)).contains("even number"));
    let mut damaged = parts(65, 64, 3);
    damaged.scales = Scales::Plain(vec![1.0, f32::NAN, 1.0]);
    assert!(refusal(damaged).contains("NaN"));
    let nested = |table: usize, absmax: usize| {
        let n = Nested { codes: vec![0; 3], table: vec![0.5; table], absmax: vec![1.0; absmax], block: 2, offset: 0.1 };
        Parts { scales: Scales::Nested(n), ..parts(65, 64, 3) }
    };
    assert!(FourBit::new(130, nested(256, 2)).is_ok());
    assert!(refusal(nested(255, 2)).contains("table of 256"));
    assert!(refusal(nested(256, 1)).contains("expected a table of 256 and 2"));
    assert!(FourBit::quantise(Kind::Nf4, &[1.0, f32::INFINITY]).unwrap_err().to_string().contains("infinite"));
}
