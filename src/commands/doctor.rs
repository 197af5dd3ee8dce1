//! `asft doctor`

use super::print;
use crate::cli::DoctorArgs;
use crate::console::{Table, progress_bar};
use crate::device;
use crate::doctor::{self, Depth, Finding, Rates, Subject};
use crate::model::Dtype;
use crate::train::three_steps;
use crate::version::VERSION;
use anyhow::{Result, ensure};
use candle_core::DType;
use indicatif::HumanBytes;
use serde::Serialize;
use std::time::Instant;

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    asft: String,
    device: &'static str,
    dtype: &'static str,
    ok: bool,
    faults: usize,
    checks: Vec<Finding>,
    rates: Rates,
    seconds: f64,
}

pub fn run(args: DoctorArgs) -> Result<()> {
    let began = Instant::now();
    let device = args.device.open()?;
    let dtype: DType = args.dtype.unwrap_or(if device.is_cpu() { Dtype::F32 } else { Dtype::Bf16 }).into();
    let subject = Subject::new(&device, dtype, Depth::Full);
    let progress = progress_bar(doctor::checks().len() + 2, "checking");
    let mut findings = doctor::examine(&subject, |check| {
        progress.set_message(check.name);
        progress.inc(1);
    });
    findings.push(three_steps(&device, dtype));
    progress.inc(1);
    let rates = doctor::measure(&device, dtype)?;
    progress.finish_and_clear();
    let faults: Vec<String> = findings.iter().filter(|finding| !finding.ok).map(Finding::fault).collect();
    let report = Report {
        asft: VERSION.clone(),
        device: device::name(&device),
        dtype: dtype.as_str(),
        ok: faults.is_empty(),
        faults: faults.len(),
        checks: findings,
        rates,
        seconds: began.elapsed().as_secs_f64(),
    };
    print(&if args.json { format!("{}\n", serde_json::to_string_pretty(&report)?) } else { report.text() })?;
    let (count, place) = (report.checks.len(), format!("on {} in {}", report.device, report.dtype));
    ensure!(
        report.ok,
        "{} of {count} checks failed {place}: {}; do not train there: please report what --json prints, with the device \
         and its driver",
        faults.len(),
        faults.join(", ")
    );
    Ok(())
}

impl Report {
    fn text(&self) -> String {
        let mut table = Table::new(["check", "worst error", "allowed", ""]);
        for finding in &self.checks {
            let error = match (&finding.failure, finding.error_epsilons) {
                (Some(_), _) => "failed".to_string(),
                (None, None) => "not finite".to_string(),
                (None, Some(error)) => format!("{error:.2} ε"),
            };
            let verdict = if finding.ok { "ok" } else { "wrong" };
            let check = format!("{:<15} {}", finding.name, finding.what);
            table.push([check, error, format!("{} ε", finding.allowed_epsilons), verdict.to_string()]);
        }
        let Rates { memory, copy_bytes_per_second, gemm_flops_per_second } = self.rates;
        let memory = memory.map_or("memory unknown".to_string(), |memory| {
            format!("{} of {} free", HumanBytes(memory.available as u64), HumanBytes(memory.limit as u64))
        });
        let verdict = match self.faults {
            0 => format!("all {} checks hold", self.checks.len()),
            faults => format!("{faults} of {} checks failed", self.checks.len()),
        };
        format!(
            "{}\n{memory}; copies at {:.1} GB/s, products at {:.3} TFLOP/s\n{} in {}: {verdict}\n",
            table.on_screen(),
            copy_bytes_per_second / 1e9,
            gemm_flops_per_second / 1e12,
            self.device,
            self.dtype
        )
    }
}
