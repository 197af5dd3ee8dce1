//! The model card (README.md) of an exported adapter.

use super::Adapter;
use crate::checkpoint::is_gguf_name;
use crate::names::Naming;
use std::fmt::Write;

/// Markdown with the front matter that hubs read. `objective`, printed after a colon, says what the adapter was trained
/// for; `settings` are (name, value) rows of the table.
pub fn model_card(adapter: &Adapter, objective: &str, settings: &[(&str, String)]) -> String {
    card(adapter, &format!("Trained by asft {}: {objective}.", env!("CARGO_PKG_VERSION")), settings)
}

/// The card of an adapter that was projected after training.
pub fn projected_card(adapter: &Adapter, settings: &[(&str, String)]) -> String {
    let text = format!(
        "Projected by asft {} with [Safe LoRA](https://arxiv.org/abs/2405.16833): on the modules chosen, lora_B \
         was replaced by C lora_B, with C = V Vᵀ / ‖V‖ and V the difference between the aligned model and its base.",
        env!("CARGO_PKG_VERSION")
    );
    card(adapter, &text, settings)
}

fn card(adapter: &Adapter, text: &str, settings: &[(&str, String)]) -> String {
    let base = adapter.base.as_deref().unwrap_or("unknown");
    let mut card = format!(
        "---\nlibrary_name: peft\nbase_model: {}\npipeline_tag: text-generation\ntags:\n- lora\n- asft\n---\n\n",
        serde_json::Value::from(of_model(base).0)
    );
    let _infallible = write!(card, "# LoRA adapter for {base}\n\n{text}\n\n| setting | value |\n| --- | --- |\n");
    for (name, value) in settings {
        let _infallible = writeln!(card, "| {name} | {} |", value.replace('|', "\\|"));
    }
    let class = match adapter.layout {
        Naming::Text => "AutoModelForCausalLM",
        Naming::Wrapper | Naming::OlderWrapper => "AutoModelForImageTextToText",
    };
    let source = match of_model(base) {
        (place, Some(file)) => format!("{place:?}, gguf_file={file:?}"),
        (place, None) => format!("{place:?}"),
    };
    let _infallible = write!(
        card,
        "\nLoad it with PEFT:\n\n```python\nfrom peft import PeftModel\nfrom transformers import {class}\n\n\
         model = {class}.from_pretrained({source})\nmodel = PeftModel.from_pretrained(model, \"this folder\")\n```\n"
    );
    if adapter.layout != Naming::Text {
        card.push_str(
            "\nIt adapts the text model of a multimodal class, by that class's names; loaded into the text model's own class it \
             does nothing. asft reads it for either.\n",
        );
    }
    if adapter.use_rslora {
        card.push_str("\nThe adapter uses rsLoRA scaling (lora_alpha / √r), which llama.cpp's converter ignores.\n");
    }
    if let Some(warning) = adapter.portability() {
        let _infallible = write!(card, "\nNote: {warning}.\n");
    }
    card
}

/// The repository or folder of a base, and its GGUF file there, if it is one.
fn of_model(base: &str) -> (&str, Option<&str>) {
    let parts = base.split_once(':').or_else(|| base.rsplit_once('/')).filter(|(_, file)| is_gguf_name(file));
    parts.map_or((base, None), |(place, file)| (place, Some(file)))
}
