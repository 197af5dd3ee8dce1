//! Where multimodal classes have their text model: its modules and tensors by the names that they have in a class of their own.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// The text model of a multimodal class.
const INSIDE: &str = "model.language_model.";
/// The same where the text model is a whole class with a head, as on most disks and in old adapters.
const OLDER: &str = "language_model.model.";
const OLDER_HEAD: &str = "language_model.lm_head.";
const HEAD: &str = "lm_head.";
const TEXT: &str = "model.";

/// What a tensor or module of a multimodal class's text model is called in the text model's own class, such as
/// `model.layers.0.mlp.up_proj` for `model.language_model.layers.0.mlp.up_proj`; `None` for all else, the head that keeps its
/// name excepted.
pub fn text_name(name: &str) -> Option<String> {
    let moved = |from: &str, to: &str| name.strip_prefix(from).map(|rest| format!("{to}{rest}"));
    let kept = || name.starts_with(HEAD).then(|| name.to_string());
    moved(INSIDE, TEXT).or_else(|| moved(OLDER, TEXT)).or_else(|| moved(OLDER_HEAD, HEAD)).or_else(kept)
}

/// For which class the names of modules are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Naming {
    /// The text model's own: `model.layers.N`.
    #[default]
    Text,
    /// The multimodal class: `model.language_model.layers.N`.
    Wrapper,
    /// The multimodal class before transformers 4.52, which is read only: `language_model.model.layers.N`.
    #[serde(skip)]
    OlderWrapper,
}

impl Naming {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Text, Self::Wrapper, Self::OlderWrapper];

    /// The layout of a module's or tensor's name: the text model's own if it is no multimodal class's.
    pub fn of(name: &str) -> Self {
        if name.starts_with(INSIDE) {
            Self::Wrapper
        } else if name.starts_with(OLDER) {
            Self::OlderWrapper
        } else {
            Self::Text
        }
    }

    /// The name in this layout of what the text model's own class calls `name`.
    pub fn name(self, name: &str) -> Cow<'_, str> {
        let inside = match self {
            Self::Text => return name.into(),
            Self::Wrapper => INSIDE,
            Self::OlderWrapper => OLDER,
        };
        name.strip_prefix(TEXT).map_or_else(|| name.into(), |rest| format!("{inside}{rest}").into())
    }
}

/// Whether a target is written with the names of a multimodal class.
pub(super) fn is_meant(target: &str) -> bool {
    target.contains("language_model")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_layouts_have_the_text_model_s_names() {
        let text = "model.layers.3.self_attn.q_proj";
        assert_eq!(Naming::Wrapper.name(text), "model.language_model.layers.3.self_attn.q_proj");
        assert_eq!(Naming::Text.name(text), text);
        for layout in [Naming::Wrapper, Naming::OlderWrapper] {
            let wrapped = layout.name(text);
            assert_eq!((text_name(&wrapped).as_deref(), Naming::of(&wrapped)), (Some(text), layout));
        }
        for head in ["lm_head.weight", "language_model.lm_head.weight"] {
            assert_eq!(text_name(head).as_deref(), Some("lm_head.weight"));
        }
        for other in ["model.vision_tower.encoder.layers.0.mlp.fc1", "vision_tower.x", "model.visual.x", text] {
            assert_eq!((text_name(other), Naming::of(other)), (None, Naming::Text));
        }
    }
}
