//! A run whose device fails it.

use super::*;
use crate::model::Parameters;
use crate::train::defence::Defence;

/// Fails in a step as a GPU without memory does.
struct NoMemory {
    step: usize,
}

impl Defence for NoMemory {
    fn begin(&mut self, step: usize, _: &Parameters) -> Result<()> {
        anyhow::ensure!(step < self.step, "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")");
        Ok(())
    }
}

#[test]
fn when_memory_runs_out_the_state_before_is_kept() {
    let scratch = tempfile::tempdir().unwrap();
    for (failing, kept) in [(2, Some("step-2")), (0, None)] {
        let dir = scratch.path().join(failing.to_string());
        let out = format!("output.dir={}", dir.display());
        let settings = Settings::load(Path::new("configs/tiny.toml"), &[out]).unwrap();
        let output = OutputFolder::new(&settings);
        let start = start(&settings, &RunFlags::default(), &output).unwrap().unwrap();
        let mut prepared = prepare(&settings, &output, &start, &[]).unwrap();
        prepared.trained.trainer.defence = Box::new(NoMemory { step: failing });
        let _lock = output.lock(None).unwrap();
        let mut run = Run::begin(&settings, &output, &start, prepared).unwrap();
        let text = format!("{:#}", run.train().unwrap_err());
        for part in ["no memory left; the run was planned at ", "weights ", "train.batch_size = 1", "OUT_OF_MEMORY"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(text.starts_with(&format!("step {}: ", failing + 1)), "{text}");
        match kept {
            Some(step) => {
                let dir = dir.join("checkpoints").join(step);
                assert!(text.contains(&format!("kept in {}: go on with --resume", dir.display())), "{text}");
                assert!(dir.join("adapter_model.safetensors").is_file());
            }
            None => assert!(text.contains("no state was kept"), "{text}"),
        }
    }
}
