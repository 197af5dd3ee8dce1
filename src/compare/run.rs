//! Obtains the results of a comparison: trains what is not trained yet, measures, appends a row to `results.jsonl`.

use super::direction::projected_on;
use super::extrapolate::extrapolated;
use super::grid::{PartOf, Run};
use super::inputs::{Contents, of_files, of_run};
use super::list::list;
use super::options::{CompareOptions, Paired};
use super::paired::Clusters;
use super::reported::Reported;
use super::results::{PICTURES, Results, Row, TABLE};
use super::worst::check_harm;
use crate::adapter::{self, Base};
use crate::config::Settings;
use crate::console::{log, progress_bar};
use crate::error::regex_problem;
use crate::eval::{Framing, Located, Outcome, Prepared, Suite, locate};
use crate::hub;
use crate::method::direction_file::Directions;
use crate::method::part::part_of;
use crate::method::project::{Choice, project};
use crate::model::ModelOptions;
use crate::outputs::Outputs;
use crate::stop::{self, Interrupted, Part, Place, Signal, StopRequest};
use crate::train::{self, Ending, EvalOptions, RunFlags, Tuning};
use crate::{ensure_valid, invalid};
use anyhow::{Context, Result};
use candle_core::{DType, Device};
use indicatif::HumanDuration;
use regex::Regex;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// How a comparison ended.
pub enum Finished {
    All,
    /// A signal came; the same command continues.
    Stopped(Signal),
}

/// Where a comparison comes from and what it writes beside its folder.
pub struct Files<'a> {
    /// The comparison itself.
    pub config: &'a Path,
    /// A page about it.
    pub html: Option<&'a Path>,
    /// Whether files that no comparison wrote may be replaced.
    pub overwrite: bool,
}

/// A run with its resolved settings.
struct Planned {
    run: Run,
    settings: Settings,
    /// What it trains on.
    data: Contents,
}

/// What a comparison needs besides its options.
pub struct Comparison<'a> {
    options: &'a CompareOptions,
    /// Of the suite.
    evaluations: Vec<Located>,
    /// The files that they read.
    measured_with: Contents,
    /// Which of them belong together, as `paired` says.
    clusters: Clusters,
    planned: Vec<Planned>,
    results: Results,
    /// The loaded model, which is the same in most runs.
    base: Option<(ModelOptions, Base)>,
    /// Evaluations by what is put around their prompts.
    prepared: BTreeMap<Framing, Prepared>,
}

impl<'a> Comparison<'a> {
    /// Reads the config of every run, the suite and the results so far; nothing is trained.
    ///
    /// # Errors
    /// Settings that a run refuses; a folder that holds something else, or is an input; results that belong to another
    /// comparison, or to other data.
    pub fn new(options: &'a CompareOptions, runs: Vec<Run>, files: &Files) -> Result<Self> {
        let suite = Suite::load(Path::new(&options.suite))?;
        let titles: Vec<String> = suite.eval.iter().map(crate::eval::Evaluation::title).collect();
        options.check_names(&titles)?;
        let dir = PathBuf::from(&options.dir);
        let evaluations = locate(suite.eval.clone())?;
        let mut contents = Contents::new();
        let measured_with = {
            let files = evaluations.iter().flat_map(Located::files).filter(|(_, path)| path.is_file());
            of_files(files.map(|(name, path)| (name, vec![path.to_path_buf()])), &mut contents)?
        };
        let clusters =
            options.paired.as_ref().map(|paired| clusters(paired, &evaluations)).transpose()?.unwrap_or_default();
        let planned = |run: Run| {
            let output = dir.join("runs").join(run.folder());
            let overrides: Vec<String> = run
                .overrides
                .iter()
                .cloned()
                .chain([format!("output.dir={:?}", output.display().to_string())])
                .collect();
            let mut settings = Settings::load(Path::new(&options.config), &overrides)
                .with_context(|| format!("method \"{}\"", run.case.method))?;
            // A comparison has a suite of its own.
            settings.eval = EvalOptions::default();
            let full = settings.train.method == Tuning::Full;
            let (method, lone) =
                (&run.case.method, run.threshold.is_none() && run.cut.is_none() && run.extrapolate.is_none());
            ensure_valid!(!full || lone, "method \"{method}\": train.method = \"full\" has no adapter to project");
            let data = of_run(&settings, &mut contents)?;
            Ok(Planned { run, settings, data })
        };
        let planned = runs.into_iter().map(planned).collect::<Result<Vec<_>>>()?;
        check_outputs(options, &suite, &planned, files)?;
        let results = Results::open(&dir, &suite, Path::new(&options.config))?;
        results.check(&contents)?;
        check_harm(options.worst.as_ref(), results.rows())?;
        let (base, prepared) = (None, BTreeMap::new());
        Ok(Self { options, evaluations, measured_with, clusters, planned, results, base, prepared })
    }

    /// The results so far of what is planned.
    pub fn reported(&self) -> Reported {
        Reported::new(self.results.rows(), self.planned.iter().map(|planned| &planned.run))
    }

    /// Which records of each evaluation belong together.
    pub fn clusters(&self) -> &Clusters {
        &self.clusters
    }

    /// The runs, and which of them have a result, for people.
    pub fn list(&self) -> String {
        let runs = self.planned.iter().map(|planned| &planned.run);
        self.count() + "\n" + &list(runs.map(|run| (run, self.results.has(&run.key()))))
    }

    /// How many runs there are, and how many of them are done.
    fn count(&self) -> String {
        let all = self.planned.len();
        match all - self.missing().len() {
            done if done == all => format!("{all} runs, all done"),
            done => format!("{all} runs, {done} done, {} to go", all - done),
        }
    }

    /// The places of runs without a result.
    fn missing(&self) -> Vec<usize> {
        (0..self.planned.len()).filter(|&i| !self.results.has(&self.planned[i].run.key())).collect()
    }

    /// Obtains every missing result. A run that fails is reported in its row and skipped.
    ///
    /// # Errors
    /// Models or samples that cannot be read; results that cannot be written.
    pub fn run(&mut self) -> Result<Finished> {
        let _lock = self.results.lock()?;
        StopRequest::listen(log::notice)?;
        let _part = Part::begin();
        stop::at(Place::After { what: "what is under way", otherwise: "at once" });
        stop::leaves("the same command goes on");
        match self.run_all() {
            Err(error) => match error.downcast_ref::<Interrupted>() {
                Some(Interrupted(signal)) => Ok(Finished::Stopped(*signal)),
                None => Err(error),
            },
            finished => finished,
        }
    }

    fn run_all(&mut self) -> Result<Finished> {
        let missing = self.missing();
        log::info(&self.count(), json!({"runs": self.planned.len(), "missing": missing.len()}));
        self.measure_references()?;
        check_harm(self.options.worst.as_ref(), self.results.rows())?;
        let (progress, start) = (progress_bar(missing.len(), "comparing"), Instant::now());
        for (done, i) in missing.iter().copied().enumerate() {
            let began = Instant::now();
            let case = &self.planned[i].run.case;
            let title = [case.title(), case.sweep_title()].join(", ").trim_end_matches(", ").to_string();
            progress.set_message(title.clone());
            let row = match self.result(i) {
                Ok(Ok(row)) => row,
                Ok(Err(signal)) => return Ok(Finished::Stopped(signal)),
                Err(error) if error.is::<std::io::Error>() || error.is::<Interrupted>() => return Err(error),
                Err(error) => Row::failed(&self.planned[i].run, format!("{error:#}")),
            };
            let text = row.error.clone().unwrap_or_else(|| row.text());
            self.results.append(row)?;
            progress.inc(1);
            let seed = self.planned[i].run.seed;
            let (done, of, seconds) = (done + 1, missing.len(), began.elapsed().as_secs_f64());
            let left = match of - done {
                0 => String::new(),
                left => format!("; about {} to go", HumanDuration(start.elapsed() / done as u32 * left as u32)),
            };
            log::info(
                &format!("{done}/{of} {title}, seed {seed}: {text} ({seconds:.0} s{left})"),
                json!({"run": done, "runs": of, "case": title, "seed": seed, "seconds": seconds}),
            );
        }
        progress.finish_and_clear();
        Ok(Finished::All)
    }

    /// The models of the pair themselves, once.
    fn measure_references(&mut self) -> Result<()> {
        let model = self.planned.first().map(|planned| planned.settings.model.clone());
        let Some(model) = model else { return Ok(()) };
        let pair = [("aligned model", Some(model.aligned.clone())), ("unaligned model", model.unaligned.clone())];
        for (name, id) in pair {
            let Some(id) = id.filter(|_| !self.results.has(name)) else { continue };
            let outcomes =
                self.measure(&ModelOptions { aligned: id, ..model.clone() }, &Change::Nothing, &Framing::default())?;
            let row = Row::reference(name, &outcomes, self.measured_with.clone());
            log::info(&format!("{name}: {}", row.text()), json!({"model": name}));
            self.results.append(row)?;
        }
        Ok(())
    }

    /// Trains and measures a run, or returns the signal that came.
    fn result(&mut self, i: usize) -> Result<std::result::Result<Row, Signal>> {
        let Planned { run, settings, data } = &self.planned[i];
        let dir = Path::new(&self.options.dir);
        let (run, mut settings, mut data) = (run.clone(), settings.clone(), data.clone());
        data.extend(self.measured_with.clone());
        if let Some(extrapolate) = run.extrapolate {
            settings.model.aligned = extrapolated(&settings, extrapolate, dir)?;
        }
        let flags = RunFlags { resume: true, ..Default::default() };
        let adapter = match log::within(|| train::run(&settings, &flags))? {
            Ending::Finished(outcome) => outcome.result,
            Ending::AlreadyFinished(result) => result,
            Ending::Stopped { signal, .. } => return Ok(Err(signal)),
        };
        let change = match (run.threshold, run.cut, settings.train.method) {
            (Some(threshold), ..) => Change::Projected(adapter, projected_on(&settings, dir)?, threshold),
            (None, Some(part), _) => Change::Cut(adapter, projected_on(&settings, dir)?, part),
            (None, None, Tuning::Lora) => Change::Adapter(adapter),
            (None, None, Tuning::Full) => Change::Model(adapter),
        };
        let outcomes = self.measure(&settings.model, &change, &run.framing)?;
        Ok(Ok(Row::new(&run, &outcomes, Path::new(&settings.output.dir), data)))
    }

    /// Measures the aligned model of `options` with a change.
    fn measure(&mut self, options: &ModelOptions, change: &Change, framing: &Framing) -> Result<Vec<Outcome>> {
        let id = if let Change::Model(dir) = change { dir.display().to_string() } else { options.aligned.clone() };
        let wanted = ModelOptions { aligned: id, unaligned: None, ..options.clone() };
        let dtype = DType::from(wanted.dtype);
        if self.base.as_ref().is_none_or(|(loaded, _)| *loaded != wanted) {
            // The previous one is dropped first: two need not fit into memory.
            self.base = None;
            let found = hub::resolve(&wanted.aligned, false).context("model.aligned")?;
            let found = found.with_tokenizer(wanted.tokenizer.as_deref(), false).context("model.tokenizer")?;
            self.base = Some((wanted.clone(), Base::load(found, &wanted.compute(), &[])?));
        }
        let (_, base) = self.base.as_mut().context("no model is loaded")?;
        // Directions are read on the host, and projected in f64, which not every device has; the base moves what comes of it.
        match change {
            Change::Nothing | Change::Model(_) => base.put(None)?,
            Change::Adapter(dir) => base.put(Some(dir))?,
            Change::Projected(dir, direction, threshold) => {
                let loaded = adapter::load_for(dir, base.model.spec(), &Device::Cpu)?;
                let directions = Directions::open(direction)?;
                let (projected, _) = project(&loaded, &directions, Choice::Threshold(*threshold))?;
                base.put_loaded(&projected)?;
            }
            Change::Cut(dir, direction, PartOf { part, energy, random }) => {
                let loaded = adapter::load_for(dir, base.model.spec(), &Device::Cpu)?;
                let cut = part_of(&loaded, &Directions::open(direction)?, *part, (*energy, *random))?;
                base.put_loaded(&cut)?;
            }
        }
        if !self.prepared.contains_key(framing) {
            let located: Vec<Located> =
                self.evaluations.iter().cloned().map(|located| located.framed(framing)).collect();
            let compute = (&base.model.device().clone(), dtype);
            let prepared = Prepared::new(&located, &base.found, base.model.spec(), compute)?;
            self.prepared.insert(framing.clone(), prepared);
        }
        // Each framing has judges of its own, which need not fit into memory together.
        let others = self.prepared.iter_mut().filter(|(other, _)| *other != framing);
        others.for_each(|(_, prepared)| prepared.unload_judges());
        let prepared = self.prepared.get(framing).context("the evaluations are not prepared")?;
        prepared.measure(&base.model, self.options.batch_size)
    }
}

/// Which records of each evaluation belong together.
///
/// # Errors
/// A pattern that is no regular expression; records that cannot be read; none that has the field, or that the pattern matches.
fn clusters(paired: &Paired, evaluations: &[Located]) -> Result<Clusters> {
    let pattern = paired.cluster_pattern.as_deref().map(|pattern| {
        let problem = |e| invalid!("paired.cluster_pattern is no regular expression: {}", regex_problem(&e));
        Regex::new(pattern).map_err(problem)
    });
    let (field, pattern) = (paired.cluster.as_deref(), pattern.transpose()?);
    let found =
        evaluations.iter().map(|located| located.clusters(field, pattern.as_ref())).collect::<Result<Vec<_>>>()?;
    let named = found.iter().flatten().any(|clusters| clusters.named > 0);
    ensure_valid!(
        field.is_none() || named,
        "paired.cluster is \"{}\"{}, but no record of the suite's evaluations has it",
        field.unwrap_or_default(),
        if pattern.is_some() { " with a match of paired.cluster_pattern" } else { "" }
    );
    Ok(found.into_iter().flatten().map(|clusters| (clusters.title, clusters.of_records)).collect())
}

/// Refuses a folder that is or lies in an input, or whose files of the same names are not of a comparison; and a page in the
/// place of one of the folder's own files or among those of its runs.
fn check_outputs(options: &CompareOptions, suite: &Suite, planned: &[Planned], files: &Files) -> Result<()> {
    let dir = Path::new(&options.dir);
    let read = || {
        let read = Outputs::new(files.overwrite).reads("config", [&options.config]).reads("suite", [&options.suite]);
        let read = read.reads("--config", [files.config]);
        let read = suite.eval.iter().fold(read, |read, evaluation| evaluation.declare_inputs(read));
        planned.iter().fold(read, |read, planned| planned.settings.declare_inputs(read)).kept("dir", dir)
    };
    let pictures = PICTURES.iter().flat_map(|name| [format!("{name}.svg"), format!("{name}.png")]);
    let own: Vec<PathBuf> = pictures.chain([TABLE.to_string()]).map(|name| dir.join(name)).collect();
    let results = Results::file(dir);
    let page = read().reads("dir", [dir.join("runs"), dir.join("models")]);
    let page = own.iter().chain([&results]).fold(page, |page, path| page.kept("dir", path));
    page.file("--html", files.html).check()?;
    if Results::are_in(dir) {
        return Ok(());
    }
    read().file("dir", own).check()
}

/// What is changed of a model before it is measured.
enum Change {
    Nothing,
    Adapter(PathBuf),
    /// An adapter, a direction and Safe LoRA's threshold.
    Projected(PathBuf, PathBuf, f64),
    /// An adapter, a direction and the part of the update that is left.
    Cut(PathBuf, PathBuf, PartOf),
    /// Another model in its place.
    Model(PathBuf),
}
