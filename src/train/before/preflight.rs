//! Everything that can be found wrong before any weight is loaded, in one message.
//!
//! The settings are valid by now; here they are checked against the disk, the model, the tokenizer, the samples and the
//! direction.

use super::disk::check_disk;
use super::given_direction::{check_not_flat, open_direction};
use super::inputs::{Inputs, Sources, check_ranks, evaluations, model_place};
use super::memory::{MemoryPlan, Room};
use super::model_files::{files_hash, source};
use super::problems::{Problems, START};
use super::resume::Start;
use crate::adapter::{self, Adapter, BaseIdentity, ModuleSize};
use crate::checkpoint::{Checkpoint, check_writable, is_gguf};
use crate::config::Settings;
use crate::console::log;
use crate::data::Dataset;
use crate::device;
use crate::ensure_valid;
use crate::error::listing;
use crate::eval::{Located, Prepared as Suite};
use crate::hub::{self, Resolved};
use crate::method::direction::{self, DirectionRequest};
use crate::method::direction_file::Directions;
use crate::method::spectral::Keep;
use crate::model::{DeviceKind, ModelSpec};
use crate::names::{Naming, Targets};
use crate::ops::gpu::Serving;
use crate::ranks::Ranks;
use crate::report::{RunRecord, hash_file};
use crate::train::folder::origin::Origin;
use crate::train::folder::output::{OutputFolder, direction_path};
use crate::train::options::Tuning;
use anyhow::{Context, Result};
use candle_core::Device;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A run whose inputs exist and fit together.
pub struct Ready {
    pub base: Resolved,
    pub spec: ModelSpec,
    pub checkpoint: Checkpoint,
    pub device: Device,
    /// The modules with a penalty.
    pub targets: Vec<String>,
    /// As it is before step 1; `None` in full tuning.
    pub adapter: Option<Adapter>,
    pub inputs: Inputs,
    /// The evaluations of `[eval]`, if there are any.
    pub suite: Option<Suite>,
    pub memory: MemoryPlan,
    pub direction: Direction,
    pub record: RunRecord,
}

/// Where the direction comes from.
pub enum Direction {
    NotNeeded,
    /// A file that fits.
    Open(Directions),
    /// To be computed, from comparable models.
    Compute(DirectionRequest),
}

/// Finds and checks all inputs of a run.
pub fn preflight(settings: &Settings, output: &OutputFolder, start: &Start) -> Result<Ready> {
    let record = RunRecord::start(Ranks::here().size());
    let mut check = Preflight { settings, start, problems: Problems::default(), record };
    check.problems.note(check_writable(output.dir()).context("output.dir"));
    let origin = start.saved().map(|saved| &saved.origin);
    let kept_direction = origin.filter(|origin| is_kept(settings, origin)).map(|_| direction_path(settings));
    let (sources, unaligned, evaluations) =
        Ranks::here().one_first_on_each_machine(|| check.sources(kept_direction.is_some()));
    let model = check.model(&sources);
    let inputs = model.as_ref().and_then(|model| check.inputs(&sources, model));
    let suite = model.as_ref().and_then(|model| check.suite(&evaluations, sources.base.as_ref()?, model));
    let direction = model
        .as_ref()
        .and_then(|model| check.direction(sources.base.as_ref()?, unaligned.as_ref(), model, kept_direction));
    if let Some(model) = &model {
        let room = check_disk(settings, output, &model.checkpoint, model.adapter.as_ref());
        check.problems.note(room);
    }
    let memory = model.as_ref().zip(inputs.as_ref()).and_then(|(model, inputs)| check.memory(model, inputs));
    let Preflight { problems, mut record, .. } = check;
    let (Some(base), Some(model), Some(inputs), Some(memory), Some(direction), true) =
        (sources.base, model, inputs, memory, direction, problems.0.is_empty())
    else {
        return Err(problems.into_error(START));
    };
    // Read again at every start, `--resume` included. Size, times and inode of the files would not do: they can stay
    // the same when a copy keeps times, a clock is set back or a network disk answers from its cache, and run.json and
    // the check of a resumed run are only as good as this hash. It costs one read, which loading the model then finds
    // in the page cache.
    if !settings.data.template_variables.is_empty() {
        record.template_variables(serde_json::to_value(&settings.data.template_variables)?);
    }
    record.input("aligned", &source(&base), model.checkpoint.content_hash(model.checkpoint.names())?);
    record.input("model_files", &source(&base), files_hash(&base)?);
    if let Some(dir) = settings.lora.init_adapter.as_ref().filter(|_| start.saved().is_none()) {
        record.input("init_adapter", dir, adapter::content_hash(Path::new(dir))?);
    }
    let template = Path::new(&settings.data.template);
    if template.is_file() {
        record.input("template", &settings.data.template, hash_file(template)?);
    }
    let Model { spec, checkpoint, device, targets, adapter } = model;
    record.device(device::name(&device));
    Ok(Ready { base, spec, checkpoint, device, targets, adapter, inputs, suite, memory, direction, record })
}

/// Whether the direction computed by the run to resume is still there, unchanged and from the same model.
fn is_kept(settings: &Settings, origin: &Origin) -> bool {
    let unaligned = settings.model.unaligned.as_deref();
    let same_model = origin.settings.get("model.unaligned").and_then(|value| value.as_str()) == unaligned;
    let hash = origin.inputs.get("model.unaligned");
    same_model && hash.is_some() && hash_file(&direction_path(settings)).ok().as_ref() == hash
}

/// The base model as far as its headers tell, and what of it is to train.
struct Model {
    spec: ModelSpec,
    checkpoint: Checkpoint,
    device: Device,
    targets: Vec<String>,
    adapter: Option<Adapter>,
}

struct Preflight<'a> {
    settings: &'a Settings,
    start: &'a Start,
    problems: Problems,
    record: RunRecord,
}

impl Preflight<'_> {
    /// Everything that a run reads, fetched if necessary, before anything is loaded: a mistake in the last should not
    /// be found after hours of downloading the first. Includes the unaligned model if a direction is to be computed.
    fn sources(&mut self, kept_direction: bool) -> (Sources, Option<Resolved>, Vec<Located>) {
        let Settings { asft, model, .. } = self.settings;
        let sources = Sources::find(self.settings, hub::resolve, &mut self.problems);
        let computed = self.settings.uses_direction() && asft.direction.is_none() && !kept_direction;
        let unaligned = model.unaligned.as_ref().filter(|_| computed);
        let find = |id: &String| model_place(id, "model.unaligned", hub::resolve, &mut self.problems);
        let unaligned = unaligned.and_then(find);
        (sources, unaligned, evaluations(self.settings, &mut self.problems))
    }

    fn model(&mut self, sources: &Sources) -> Option<Model> {
        let base = sources.base.as_ref()?;
        let spec = sources.spec(&mut self.problems)?;
        let model = self.open_model(base, spec);
        self.problems.note(model)
    }

    fn open_model(&self, base: &Resolved, spec: ModelSpec) -> Result<Model> {
        ensure_valid!(
            self.settings.train.method == Tuning::Lora || !is_gguf(&base.place),
            "train.method = \"full\" writes the model's folder with other weights, and {} is a GGUF file; name the folder or \
             hub id as model.aligned",
            base.place.display()
        );
        ensure_valid!(
            self.settings.export.layout != Some(Naming::Wrapper) || spec.has_wrapper(),
            "export.layout = \"wrapper\": no multimodal class has a {} as its text model; leave the key out",
            spec.model_type
        );
        let checkpoint = Checkpoint::open(&base.place)?;
        let targets = self.settings.lora.targets(&spec).context("lora")?;
        let device = self.settings.model.device.open_for(self.settings.model.dtype.into())?;
        if self.settings.model.device == DeviceKind::Auto {
            let name = device::name(&device);
            log::info(&format!("device = \"auto\": computing on {name}"), json!({"device": name}));
        }
        let mut model = Model { spec, checkpoint, device, targets, adapter: None };
        if self.settings.train.method == Tuning::Lora {
            let adapter = self.initial_adapter(&model, base)?;
            if let Some(warning) = adapter.portability().filter(|_| !self.settings.export.fold_scale) {
                log::warn(&format!("{warning}, or set export.fold_scale = true"), Value::Null);
            }
            model.targets = adapter.modules.keys().cloned().collect();
            model.adapter = Some(adapter);
        }
        Ok(model)
    }

    /// A fresh adapter on the targets, or the one to continue, with this run's dropout.
    fn initial_adapter(&self, model: &Model, base: &Resolved) -> Result<Adapter> {
        let (options, seed) = (&self.settings.lora, self.settings.train.seed);
        let load = |dir: &Path| adapter::load_for(dir, &model.spec, &model.device);
        let mut adapter = match (self.start.saved(), &options.init_adapter) {
            (Some(saved), _) => load(&saved.dir)?,
            (None, Some(dir)) => {
                let text =
                    format!("continuing {dir}: rank, alpha and target modules are that adapter's, not the config's");
                log::info(&text, json!({"init_adapter": dir}));
                let adapter = load(Path::new(dir)).context("lora.init_adapter")?;
                BaseIdentity::check(Path::new(dir), &adapter, &model.checkpoint).context("lora.init_adapter")?;
                adapter
            }
            (None, None) => {
                let sizes = options.sizes(&model.targets).context("lora")?;
                check_shapes(&model.spec, &model.checkpoint, &sizes)?;
                check_ranks(&model.spec, &sizes)?;
                let modules = adapter::fresh_modules(&model.spec, &sizes, seed, &model.device)?;
                Adapter {
                    modules,
                    use_rslora: options.use_rslora,
                    dropout: 0.0,
                    base: None,
                    revision: None,
                    layout: Naming::Text,
                }
            }
        };
        adapter.dropout = options.dropout;
        adapter.base = Some(base.id.clone().unwrap_or_else(|| self.settings.model.aligned.clone()));
        adapter.revision = base.revision.clone();
        adapter.layout = if model.spec.wrapped { Naming::Wrapper } else { Naming::Text };
        Ok(adapter)
    }

    /// Reads all samples and logs their counts.
    fn inputs(&mut self, sources: &Sources, model: &Model) -> Option<Inputs> {
        let inputs = sources.read(self.settings, &model.spec, &mut self.problems)?;
        let files = sources.data.as_ref()?;
        let own = sources.own.iter().map(|(own, file)| (own.name.to_string(), file));
        let validation = files.validation.iter().map(|file| ("validation".to_string(), file));
        let listed = self.settings.data.sources();
        let train = listed.iter().zip(&files.sources).map(|(listed, file)| (listed.name(), file));
        for (name, file) in own.chain(validation).chain(train) {
            let hash = self.problems.note(file.hash().map(str::to_string))?;
            self.record.input(&name, &file.data.source, hash);
        }
        let Inputs { train, validation, own, .. } = &inputs;
        if let (Some((wanted, file)), Some(set)) = (&sources.own, own) {
            say_counts(wanted.name, &file.data.source, set);
        }
        let source = match files.sources.as_slice() {
            [only] => only.data.source.clone(),
            _ => train.path.display().to_string(),
        };
        say_counts("train", &source, train);
        self.record.samples("train", train.len());
        for taken in &train.sources {
            let fields = json!({"source": taken.path, "samples": taken.drawn, "available": taken.available});
            log::info(&format!("train: {taken}"), fields);
        }
        if let Some(validation) = validation {
            self.record.samples("validation", validation.len());
            say_counts("validation", files.validation.as_ref().map_or(&source, |file| &file.data.source), validation);
        }
        let context = model.spec.context();
        let beyond = train.lengths().filter(|&length| length > context).count();
        if beyond > 0 {
            let text = format!(
                "{beyond} training samples are longer than the model's context of {context}; data.max_length cuts them"
            );
            log::warn(&text, json!({"samples": beyond, "context": context}));
        }
        Some(inputs)
    }

    /// Reads the samples that the model is measured on, and what else that takes but the weights.
    fn suite(&mut self, evaluations: &[Located], base: &Resolved, model: &Model) -> Option<Suite> {
        let file = self.settings.eval.suite.as_ref().filter(|_| !evaluations.is_empty())?;
        let place = (&model.device, self.settings.model.dtype.into());
        let prepared = Suite::new(evaluations, base, &model.spec, place).context("eval.suite");
        let prepared = self.problems.note(prepared)?;
        self.record.input("suite", file, self.problems.note(hash_file(Path::new(file)))?);
        for (i, (source, path)) in evaluations.iter().map(Located::samples).enumerate() {
            self.record.input(&format!("suite-{}", i + 1), source, self.problems.note(hash_file(path))?);
        }
        Some(prepared)
    }

    /// Checks that the device has enough memory, as far as can be told before anything is loaded.
    fn memory(&mut self, model: &Model, inputs: &Inputs) -> Option<MemoryPlan> {
        let on_cpu = model.device.is_cpu();
        let plan = MemoryPlan::new(
            self.settings,
            &model.spec,
            &model.targets,
            &model.checkpoint.quantised_bytes(),
            inputs,
            (!on_cpu).then(|| Serving::on(&model.device)),
        );
        let plan = self.problems.note(plan)?;
        // Each rank has a GPU of its own.
        let sharing = if on_cpu { Ranks::here().local_size() } else { 1 };
        if let Some(memory) = device::memory(&model.device) {
            match self.problems.note(plan.check(memory.shared_by(sharing))) {
                Some(Room::Tight(text, fields)) => log::warn(&text, fields),
                Some(Room::Enough(text, fields)) => log::debug(&text, fields),
                None => {}
            }
        }
        Some(plan)
    }

    /// The direction file, checked against the targets and the aligned weights, or what to compute it from.
    fn direction(
        &mut self,
        base: &Resolved,
        unaligned: Option<&Resolved>,
        model: &Model,
        kept: Option<PathBuf>,
    ) -> Option<Direction> {
        let options = &self.settings.asft;
        if !self.settings.uses_direction() {
            return Some(Direction::NotNeeded);
        }
        if options.direction.is_some() && self.settings.model.unaligned.is_some() {
            log::info("asft.direction is given: model.unaligned is not read", Value::Null);
        }
        let file = options.direction.as_ref().map(PathBuf::from).or(kept);
        let found = match (file, unaligned) {
            (Some(path), _) => open_direction(&path, &model.targets, &model.spec, &model.checkpoint, &mut self.record)
                .and_then(|directions| check_not_flat(self.settings, &directions, &model.targets).map(|()| directions))
                .map(Direction::Open),
            (None, Some(unaligned)) => {
                let request = DirectionRequest {
                    aligned: base.clone(),
                    unaligned: unaligned.clone(),
                    targets: Targets::List(model.targets.clone()),
                    keep: Keep::Tolerance(options.tolerance),
                    allow_missing: false,
                    allow_equal: !self.settings.penalises_by_direction(),
                    allow_quantised: false,
                    out: direction_path(self.settings),
                };
                direction::check(&request).map(|()| Direction::Compute(request))
            }
            // The unaligned model was not found, which is already among the problems.
            (None, None) => return None,
        };
        self.problems.note(found)
    }
}

fn say_counts(name: &str, source: &str, set: &Dataset) {
    let counts = set.counts;
    let fields = json!({"source": source, "samples": set.len(), "tokens": counts.tokens});
    log::info(&format!("{name}: {source}: {counts}"), fields);
}

/// Checks, before anything is allocated, that the targets have the sizes that config.json says.
fn check_shapes(spec: &ModelSpec, checkpoint: &Checkpoint, sizes: &BTreeMap<String, ModuleSize>) -> Result<()> {
    let mut problems = vec![];
    for module in sizes.keys() {
        let name = format!("{module}.weight");
        let expected = adapter::module_shape(spec, module).map_or(vec![], |(d_out, d_in)| vec![d_out, d_in]);
        match checkpoint.info(&name) {
            Some(info) if info.shape == expected => {}
            Some(info) => problems.push(format!("{name} has shape {:?}, expected {expected:?}", info.shape)),
            None => problems.push(format!("{name} is missing")),
        }
    }
    ensure_valid!(problems.is_empty(), "the weights do not fit config.json: {}", listing(&problems, 12));
    Ok(())
}
