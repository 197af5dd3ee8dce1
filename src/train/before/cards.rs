//! NVIDIA's cards in numbers, for predictions: rates from the vendor's data sheets, none of them measured.
//!
//! Memory is what `nvidia-smi` shows as the total on such a card in logs that users have published, as delivered: less than a sheet's
//! number, as the driver keeps a part, and error correction takes a sixteenth of GDDR6 where it is on (A10, A40, L4, L40, L40S; on
//! an RTX A6000 or RTX 6000 Ada it is off until its owner turns it on, which leaves about 46,000 MiB).
//!
//! Matrix units multiply bf16 and f16 at one rate where they sum in f32, as all products here do; sheets that quote twice as
//! much mean matrices of which half is zero or, for GeForce, sums in f16. f32 is that of the ordinary units, since no product here
//! is rounded to TF32.

/// One card.
#[derive(Debug, PartialEq)]
pub struct Card {
    /// What `--gpu` calls it.
    pub name: &'static str,
    /// Others: the driver's, without "NVIDIA" and "GeForce", where it is not the same.
    aliases: &'static [&'static str],
    /// Dense products of bf16 or f16, summed in f32.
    pub half_flops: f64,
    pub f32_flops: f64,
    pub bytes_per_second: f64,
    /// In MiB, as the driver shows it.
    memory_mib: usize,
    /// Where the rates stand.
    pub source: &'static str,
}

#[rustfmt::skip]
static CARDS: &[Card] = &[
    card("b200", &[], [2250.0, 75.0, 8.000], 183359, "HGX B200 data sheet, an eighth of it"),
    card("h200", &[], [989.0, 67.0, 4.800], 143771, "H200 data sheet, SXM"),
    card("h200-nvl", &[], [835.0, 60.0, 4.800], 143771, "H200 data sheet, NVL"),
    card("h100", &["H100 80GB HBM3", "H100 SXM"], [989.0, 67.0, 3.350], 81559, "H100 data sheet, SXM"),
    card("h100-nvl", &[], [835.0, 60.0, 3.900], 95830, "H100 data sheet, NVL"),
    card("h100-pcie", &[], [756.0, 51.0, 2.000], 81559, "H100 data sheet of 2022, PCIe"),
    card("a100", &["A100-SXM4-80GB", "A100 SXM"], [312.0, 19.5, 2.039], 81920, "A100 data sheet, 80 GB SXM"),
    card("a100-pcie", &["A100 80GB PCIe"], [312.0, 19.5, 1.935], 81920, "A100 data sheet, 80 GB PCIe"),
    card("a100-40", &["A100-SXM4-40GB", "A100-PCIE-40GB"], [312.0, 19.5, 1.555], 40960, "A100 data sheet of 2020, 40 GB"),
    card("l40s", &[], [362.0, 91.6, 0.864], 46068, "L40S data sheet"),
    card("l40", &[], [181.0, 90.5, 0.864], 46068, "L40 data sheet"),
    card("l4", &[], [121.0, 30.3, 0.300], 23034, "L4 data sheet"),
    card("a40", &[], [149.7, 37.4, 0.696], 46068, "A40 data sheet"),
    card("a10", &[], [125.0, 31.2, 0.600], 23028, "A10 data sheet"),
    card("a10g", &[], [70.0, 35.0, 0.600], 23028, "Amazon's description of G5 instances"),
    card("rtx6000-ada", &["RTX 6000 Ada Generation"], [364.0, 91.1, 0.960], 49140, "Ada architecture paper"),
    card("a6000", &["RTX A6000"], [154.8, 38.7, 0.768], 49140, "GA102 architecture paper"),
    card("rtx5090", &["5090"], [209.5, 104.8, 1.792], 32607, "RTX Blackwell architecture paper"),
    card("rtx4090", &["4090"], [165.2, 82.6, 1.008], 24564, "Ada architecture paper"),
    card("rtx4080", &["4080"], [97.5, 48.7, 0.717], 16376, "Ada architecture paper"),
    card("rtx3090", &["3090"], [71.0, 35.6, 0.936], 24576, "GA102 architecture paper"),
];

/// Numbers: 10¹² FLOP/s in half precision and in f32, 10¹² bytes a second; MiB.
const fn card(
    name: &'static str,
    aliases: &'static [&'static str],
    [half, single, bandwidth]: [f64; 3],
    memory_mib: usize,
    source: &'static str,
) -> Card {
    let (half_flops, f32_flops, bytes_per_second) = (half * 1e12, single * 1e12, bandwidth * 1e12);
    Card { name, aliases, half_flops, f32_flops, bytes_per_second, memory_mib, source }
}

/// Share of a card's memory that a run can use: what an allocator loses between blocks is not in the plan. Assumed.
const USABLE_SHARE: f64 = 0.95;

impl Card {
    /// The card of this name, which may be the one that `nvidia-smi` shows; case, spaces and dashes do not count.
    ///
    /// # Errors
    /// A name that no card has; the message has those that there are.
    pub fn named(name: &str) -> Result<&'static Self, String> {
        let wanted = plain(name);
        let is_it = |card: &&Self| [card.name].iter().chain(card.aliases).any(|name| plain(name) == wanted);
        CARDS.iter().find(is_it).ok_or_else(|| {
            let known: Vec<&str> = CARDS.iter().map(|card| card.name).collect();
            format!("no figures of such a card; there are those of {}", known.join(", "))
        })
    }

    /// Bytes of memory that a run can use.
    pub fn usable_bytes(&self) -> usize {
        ((self.memory_mib << 20) as f64 * USABLE_SHARE) as usize
    }
}

/// A name's letters and digits, without the vendor's and the series'.
fn plain(name: &str) -> String {
    let letters: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
    let letters = letters.to_ascii_lowercase();
    let letters = letters.strip_prefix("nvidia").unwrap_or(&letters);
    letters.strip_prefix("geforce").unwrap_or(letters).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_card_is_found_by_any_of_its_names() {
        for (name, card) in [
            ("h100", "h100"),
            ("NVIDIA H100 80GB HBM3", "h100"),
            ("NVIDIA H100 NVL", "h100-nvl"),
            ("NVIDIA A100-SXM4-40GB", "a100-40"),
            ("NVIDIA GeForce RTX 4090", "rtx4090"),
            ("rtx-4090", "rtx4090"),
            ("4090", "rtx4090"),
            ("NVIDIA L4", "l4"),
        ] {
            assert_eq!(Card::named(name).unwrap().name, card);
        }
        // Cards of other speeds are not taken for those.
        for name in ["h1000", "NVIDIA GeForce RTX 4090 Laptop GPU", "rtx3090 ti", "", "nvidia"] {
            assert!(Card::named(name).unwrap_err().contains("h100, h100-nvl"), "{name}");
        }
        let names = CARDS.iter().flat_map(|card| [card.name].into_iter().chain(card.aliases.iter().copied()));
        let mut seen = BTreeSet::new();
        assert!(names.into_iter().all(|name| seen.insert(plain(name))), "two cards of one name: {seen:?}");
    }

    #[test]
    fn sheets_agree_in_their_order() {
        for card in CARDS {
            assert!(card.half_flops > card.f32_flops && card.f32_flops > card.bytes_per_second, "{}", card.name);
            assert!((card.usable_bytes() >> 20) < card.memory_mib, "{}", card.name);
        }
    }

    #[test]
    fn error_correction_takes_its_part_of_memory() {
        let usable = |name: &str| Card::named(name).unwrap().usable_bytes() as f64 / f64::from(1 << 30);
        for (name, nominal) in [("l40s", 48.0), ("a40", 48.0), ("l4", 24.0), ("a10", 24.0), ("a10g", 24.0)] {
            assert!(usable(name) < nominal * 15.0 / 16.0 * 0.95, "{name}: {}", usable(name));
        }
        assert!(usable("a6000") > 45.0 && usable("h100") < 80.0 * 0.95);
    }
}
