//! Where training samples come from: one source or several, each with how much of it is taken.

pub mod options;

use super::options::DataOptions;
use options::{Format, Source};

/// A source of training samples, and where the settings name it.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    pub key: Key,
    /// Among those of its key, from 1.
    pub item: usize,
    /// Whether its key lists others.
    pub is_alone: bool,
    pub source: Source,
}

/// The keys that name sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    Train,
    /// An older spelling of more sources in `data.train`. From these, no validation samples are held out.
    Mix,
}

impl Key {
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "data.train",
            Self::Mix => "data.mix",
        }
    }
}

impl Listed {
    pub fn all(key: Key, sources: Vec<Source>) -> impl Iterator<Item = Self> {
        let is_alone = sources.len() == 1;
        sources.into_iter().enumerate().map(move |(i, source)| Self { key, item: i + 1, is_alone, source })
    }

    /// Its name in run.json.
    pub fn name(&self) -> String {
        match self.key {
            Key::Train if self.is_alone => "train".to_string(),
            Key::Train => format!("train-{}", self.item),
            Key::Mix => format!("mix-{}", self.item),
        }
    }

    /// Where it is named, for messages.
    pub fn place(&self) -> String {
        let key = self.key.name();
        if self.is_alone { key.to_string() } else { format!("{key}, item {}", self.item) }
    }

    /// Whether its samples are the task itself, of which validation samples can be held out, and not drawn from what is
    /// mixed in.
    pub fn is_task(&self) -> bool {
        self.key == Key::Train && self.source.is_whole()
    }
}

/// What is wrong with the sources of a run, each with its format.
pub fn source_problems(sources: &[(Format, Listed)]) -> Vec<String> {
    let own = |(format, listed): &(Format, Listed)| {
        let problem = listed.source.problem(*format)?;
        Some(format!("{} {problem}", listed.place()))
    };
    let mut found: Vec<String> = sources.iter().filter_map(own).collect();
    let shares = || sources.iter().filter_map(|(_, listed)| listed.source.share);
    let sum: f64 = shares().sum();
    if !found.is_empty() {
        return found;
    }
    if !sources.is_empty() && shares().count() == sources.len() {
        found.push(
            "`data.train`: every source has a `share`, so that none says how many samples there are: leave it out where \
             all samples are taken, or give a `count`"
                .to_string(),
        );
    } else if sum >= 1.0 {
        found.push(format!(
            "the shares of `data.train` and `data.mix` add up to {sum}, which leaves nothing for the others"
        ));
    }
    found
}

impl DataOptions {
    /// Every source of training samples, in order: those of `train`, then those of `mix`.
    pub fn sources(&self) -> Vec<Listed> {
        Listed::all(Key::Train, self.train.all()).chain(Listed::all(Key::Mix, self.mix.clone())).collect()
    }

    /// The layout of a source's records.
    pub fn format_of(&self, source: &Source) -> Format {
        source.format.unwrap_or(self.format)
    }

    /// The settings by which a source is read.
    pub fn of_source(&self, listed: &Listed) -> Self {
        let source = &listed.source;
        let inherits = source.columns.is_empty() && source.format.is_none();
        let columns = if inherits { &self.columns } else { &source.columns }.clone();
        let max_samples = self.max_samples.filter(|_| listed.is_task());
        Self { format: self.format_of(source), columns, max_samples, ..self.clone() }
    }

    /// Whether all samples are token ids already.
    pub fn is_tokenized(&self) -> bool {
        let is = |format: Format| format == Format::Tokenized;
        is(self.format) && self.sources().iter().all(|listed| is(self.format_of(&listed.source)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use options::Sources;

    fn share(share: f64) -> Source {
        Source { path: "a".into(), share: Some(share), ..Source::default() }
    }

    fn problem(mixes: &[Source], format: Format) -> String {
        let train = Listed::all(Key::Train, Sources::from("t").all());
        let listed: Vec<Listed> = train.chain(Listed::all(Key::Mix, mixes.to_vec())).collect();
        source_problems(&listed.into_iter().map(|listed| (format, listed)).collect::<Vec<_>>()).join("\n")
    }

    #[test]
    fn contradictions_are_named() {
        let of = |mixes: &[Source]| problem(mixes, Format::Alpaca);
        assert_eq!(of(&[share(0.5), share(0.4)]), "");
        assert!(of(&[share(0.5), share(0.5)]).contains("add up to 1"));
        assert!(of(&[share(1.5)]).contains("data.mix has the share 1.5"));
        assert!(of(&[Source { count: Some(1), ..share(0.5) }]).contains("both"));
        assert!(of(&[share(0.1), Source::default()]).contains("data.mix, item 2 needs a `path`"));
        assert!(of(&[Source { share: None, count: Some(0), ..share(0.1) }]).contains("count 0"));
        let prefixed = Source { prefix: "x".into(), ..share(0.1) };
        assert!(problem(std::slice::from_ref(&prefixed), Format::Text).contains("has none of these"));
        assert_eq!(problem(&[prefixed], Format::Chat), "");
        let with_system = Source { system: "x".into(), ..share(0.1) };
        assert!(problem(std::slice::from_ref(&with_system), Format::PromptCompletion).contains("no conversations"));
        assert_eq!(problem(&[with_system], Format::Sharegpt), "");
        let only = |source: Source| {
            Listed::all(Key::Train, vec![source]).map(|listed| (Format::Chat, listed)).collect::<Vec<_>>()
        };
        assert!(source_problems(&only(share(0.5)))[0].contains("none says how many samples there are"));
        assert_eq!(source_problems(&only(Source { count: Some(3), share: None, ..share(0.1) })), [""; 0]);
    }
}
