//! The model card (README.md) of an exported adapter.

use super::Adapter;
use std::fmt::Write;

/// Markdown with the front matter that hubs read. `objective` says after a colon what the adapter was trained for,
/// `settings` are (name, value) rows for the table.
pub fn model_card(adapter: &Adapter, objective: &str, settings: &[(&str, String)]) -> String {
    let base = adapter.base.as_deref().unwrap_or("unknown");
    let mut card = format!(
        "---\nlibrary_name: peft\nbase_model: {}\npipeline_tag: text-generation\ntags:\n- lora\n- asft\n---\n\n",
        serde_json::Value::from(base)
    );
    let _infallible = write!(
        card,
        "# LoRA adapter for {base}\n\nTrained by asft {}: {objective}.\n\n| setting | value |\n| --- | --- |\n",
        env!("CARGO_PKG_VERSION")
    );
    for (name, value) in settings {
        let _infallible = writeln!(card, "| {name} | {} |", value.replace('|', "\\|"));
    }
    card.push_str(
        "\nLoad it with PEFT:\n\n```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n",
    );
    let _infallible = write!(
        card,
        "model = AutoModelForCausalLM.from_pretrained({base:?})\nmodel = PeftModel.from_pretrained(model, \"this \
         folder\")\n```\n"
    );
    if adapter.use_rslora {
        card.push_str("\nThe adapter uses rsLoRA scaling (lora_alpha / √r), which llama.cpp's converter ignores.\n");
    }
    card
}
