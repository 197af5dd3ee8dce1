//! What a landscape says of the safety basin: the expected protected length along each kind of direction.

use super::landscape::{Curve, Landscape};
use super::protected::{Protected, Sides};
use crate::console::Table;
use crate::method::perturb::Axis;

/// Which sides of a curve count.
type Pick = fn(&Sides) -> Vec<Protected>;

/// A direction as people call it, and the protected length of each measure of harm along it: along V and towards the second
/// model by side, of random directions the mean of both sides and all repeats.
pub fn lengths(landscape: &Landscape) -> Vec<(String, Vec<Option<Protected>>)> {
    let harms = landscape.harms();
    let of = |axis: Axis, pick: Pick| -> Option<Vec<Option<Protected>>> {
        let curves: Vec<&Curve> = landscape.curves.iter().filter(|curve| curve.ray.axis == axis).collect();
        (!curves.is_empty()).then(|| {
            let sides =
                |harm: &usize| curves.iter().filter_map(|curve| *curve.protected.get(*harm)?).collect::<Vec<_>>();
            let mean = |harm| Protected::mean(&sides(harm).iter().flat_map(pick).collect::<Vec<_>>());
            harms.iter().map(mean).collect()
        })
    };
    let negative = |sides: &Sides| vec![sides.negative];
    let positive = |sides: &Sides| vec![sides.positive];
    let both = |sides: &Sides| vec![sides.negative, sides.positive];
    let kinds: [(&str, Axis, Pick); 6] = [
        ("against V", Axis::Aligned, negative),
        ("along V", Axis::Aligned, positive),
        ("towards harm", Axis::Harm, positive),
        ("away from harm", Axis::Harm, negative),
        ("orthogonal to V", Axis::Orthogonal, both),
        ("random", Axis::Random, both),
    ];
    kinds.into_iter().filter_map(|(name, axis, pick)| Some((name.to_string(), of(axis, pick)?))).collect()
}

/// The lengths as a table, a row for each direction; `None` if no measure is one of harm.
pub fn table(landscape: &Landscape) -> Option<Table> {
    let harms = landscape.harms();
    let names = harms.iter().filter_map(|&i| Some(landscape.quantities.get(i)?.name.clone()));
    let mut table = Table::new(["expected protected length".to_string()].into_iter().chain(names));
    for (name, lengths) in lengths(landscape) {
        let cell = |length: Option<Protected>| length.map_or("-".to_string(), |length| length.text());
        table.push([name].into_iter().chain(lengths.into_iter().map(cell)));
    }
    (!harms.is_empty()).then_some(table)
}
