//! The launches of the penalty, apart from those of a step.

use super::through_kernels;
use asft::method::{AsftOptions, Direction, Keep, Operator, Penalty, Together};
use asft::ops::traffic::Traffic;
use candle_core::{Device, Tensor};

/// The penalty of 28 layers' q and v by a direction, all together and module by module.
#[test]
fn the_penalty_of_all_modules_takes_few_launches() {
    let _alone = through_kernels();
    let (cpu, options) = (&Device::Cpu, AsftOptions::default());
    let random = |rows: usize, columns: usize| Tensor::randn(0f32, 0.1, (rows, columns), cpu).unwrap();
    let penalty = Penalty::new(&options).unwrap();
    let module = |(d_out, d_in)| {
        // So large that C has eigenvalues above 0.5: where it has none, a module apart takes two launches less.
        let v = (random(d_out, d_in) * 4.0).unwrap();
        let direction = Direction::of(&v, Keep::Rank(6)).unwrap();
        let operator = Operator::new(&options, &direction, cpu).unwrap();
        (operator, [random(8, d_in), random(d_out, 8)], [random(8, d_in), random(d_out, 8)])
    };
    let modules: Vec<_> = (0..28).flat_map(|_| [(56, 56), (8, 56)]).map(module).collect();
    let start = Traffic::so_far();
    let together = modules.iter().map(|(operator, [a, b], [of_a, of_b])| Together {
        operator: Some(operator),
        a,
        b,
        scale: 4.0,
        gradients: [of_a, of_b],
    });
    let values = penalty.lora_together(&together.collect::<Vec<_>>()).unwrap().expect("kernels serve");
    let together = Traffic::so_far().since(start);
    let start = Traffic::so_far();
    let mut sum = 0.0;
    for (operator, [a, b], _) in &modules {
        sum += penalty.lora(Some(operator), a, b, 4.0).unwrap().value.read().unwrap();
    }
    let apart = Traffic::so_far().since(start);
    let got = values.sum_all().unwrap().to_scalar::<f64>().unwrap();
    assert!((got / sum - 1.0).abs() < 1e-6, "{got} {sum}");
    println!(
        "{} launches and {} bytes together, {} and {} apart",
        together.launches,
        together.bytes(),
        apart.launches,
        apart.bytes()
    );
    assert_eq!(together.launches, 2 * 56 + 4);
    assert!(apart.launches >= 56 * 20, "{} launches apart", apart.launches);
}
