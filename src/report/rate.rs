//! A share in a sample, and how far the true share may be from it.

use serde::Serialize;
use std::fmt;

/// `count` of `total`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    pub count: usize,
    pub total: usize,
}

/// The standard normal distribution's 97.5 % point.
const Z: f64 = 1.959_963_984_540_054;

impl Rate {
    /// The rate of true values in `hits`.
    pub fn of(hits: impl IntoIterator<Item = bool>) -> Self {
        hits.into_iter()
            .fold(Self::default(), |rate, hit| Self { count: rate.count + usize::from(hit), total: rate.total + 1 })
    }

    /// The share, in [0, 1]; 0 if there is nothing.
    pub fn share(self) -> f64 {
        self.count as f64 / self.total.max(1) as f64
    }

    /// Wilson's 95 % interval of the share (Wilson 1927), valid for small samples and for shares near 0 or 1 too.
    pub fn interval(self) -> (f64, f64) {
        if self.total == 0 {
            return (0.0, 1.0);
        }
        let (n, p) = (self.total as f64, self.share());
        let scale = 1.0 / (1.0 + Z * Z / n);
        let centre = scale * (p + Z * Z / (2.0 * n));
        let half = scale * Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
        // At the ends, rounding may leave the share just outside the interval.
        ((centre - half).clamp(0.0, p), (centre + half).clamp(p, 1.0))
    }
}

/// `12.5 % (25/200, 8.6 to 17.8)`
impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (low, high) = self.interval();
        let percent = |share: f64| share * 100.0;
        let (share, low, high) = (percent(self.share()), percent(low), percent(high));
        write!(f, "{share:.1} % ({}/{}, {low:.1} to {high:.1})", self.count, self.total)
    }
}

impl Serialize for Rate {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Fields {
            rate: f64,
            count: usize,
            total: usize,
            low: f64,
            high: f64,
        }
        let (low, high) = self.interval();
        Fields { rate: self.share(), count: self.count, total: self.total, low, high }.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against statsmodels.stats.proportion.proportion_confint(method = "wilson"), statsmodels 0.15.0.
    #[test]
    fn intervals_are_wilson_s() {
        for (count, total, low, high) in [
            (0, 10, 0.0, 0.277_532_799_862_889_26),
            (10, 10, 0.722_467_200_137_110_6, 1.0),
            (25, 200, 0.086_119_744_757_126_47, 0.178_014_250_025_823_5),
            (1, 3, 0.061_491_944_720_396_26, 0.792_340_399_197_952_3),
        ] {
            let (l, h) = Rate { count, total }.interval();
            assert!((l - low).abs() < 1e-12 && (h - high).abs() < 1e-12, "{count}/{total}: {l} {h}");
        }
    }
}
