//! `asft project`

use super::print;
use crate::adapter::{self, projected_card};
use crate::checkpoint::replace;
use crate::cli::ProjectArgs;
use crate::console::log;
use crate::ensure_valid;
use crate::method::direction_file::Directions;
use crate::method::project::{Choice, Projection, project};
use crate::outputs::Outputs;
use anyhow::Result;
use candle_core::Device;
use serde_json::json;

pub fn run(args: ProjectArgs) -> Result<()> {
    let threshold = args.threshold;
    ensure_valid!((-1.0..=1.0).contains(&threshold), "--threshold should be a cosine, -1 to 1, got {threshold}");
    ensure_valid!(args.layers != Some(0), "--layers should be at least 1");
    let read = Outputs::new(args.overwrite).reads("--adapter", [&args.adapter]).reads("--direction", [&args.direction]);
    read.folder("--out", &args.out, adapter::ADAPTER_CONFIG).check()?;
    let directions = Directions::open(&args.direction)?;
    let adapter = adapter::load_among(&args.adapter, directions.modules(), &Device::Cpu)?;
    directions.check_adapter(&args.adapter, &adapter)?;
    let choice = args.layers.map_or(Choice::Threshold(threshold), Choice::Lowest);
    let (projected, outcome) = project(&adapter, &directions, choice)?;
    let names: Vec<&str> = outcome.modules.iter().filter(|m| m.projected).map(|m| m.module.as_str()).collect();
    let rule = match choice {
        Choice::Threshold(threshold) => format!("cos(C ΔW, ΔW) at most {threshold}"),
        Choice::Lowest(count) => format!("the {count} lowest cos(C ΔW, ΔW)"),
    };
    let rows = [
        ("projected", format!("{} of {} modules", names.len(), outcome.modules.len())),
        ("rule", rule),
        ("aligned model", directions.header().aligned.id.clone()),
        ("unaligned model", directions.header().unaligned.id.clone()),
        ("projected modules", if names.is_empty() { "none".into() } else { names.join(", ") }),
    ];
    let card = projected_card(&projected, &rows);
    replace(&args.out, |out| adapter::save_changed(&projected, &args.adapter, &card, out))?;
    if args.json {
        let report = json!({
            "out": args.out,
            "threshold": args.layers.is_none().then_some(threshold),
            "layers": args.layers,
            "projected": outcome.projected(),
            "undecided": undecided(choice, &outcome),
            "residual": outcome.worst_residual(),
            "modules": outcome.modules,
        });
        return print(&format!("{}\n", serde_json::to_string_pretty(&report)?));
    }
    print(&outcome.to_string())?;
    let (projected, all, residual) = (outcome.projected(), outcome.modules.len(), outcome.worst_residual());
    let text = format!("projected {projected} of {all} modules -> {}", args.out.display());
    log::info(&text, json!({"projected": projected, "modules": all, "out": args.out}));
    let undecided = undecided(choice, &outcome).unwrap_or(0);
    let open = match undecided {
        0 => String::new(),
        open => format!(
            "; {open} cosines are within their bound of the threshold (a smaller `asft direction --tolerance` decides)"
        ),
    };
    let text =
        format!("the direction file leaves out a part of C: |C B - (its C) B| is at most {residual:.1e} |B|{open}");
    log::info(&text, json!({"residual": residual, "undecided": undecided}));
    Ok(())
}

fn undecided(choice: Choice, outcome: &Projection) -> Option<usize> {
    match choice {
        Choice::Threshold(threshold) => Some(outcome.undecided(threshold)),
        Choice::Lowest(_) => None,
    }
}
