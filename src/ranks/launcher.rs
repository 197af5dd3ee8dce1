//! What launchers say in the environment of the processes that they start.
//!
//! | launcher | rank | size of the job |
//! | --- | --- | --- |
//! | Open MPI's `mpirun` | `OMPI_COMM_WORLD_RANK` | `OMPI_COMM_WORLD_SIZE` |
//! | Hydra (the `mpirun` of MPICH and Intel MPI), `srun --mpi=pmi2` | `PMI_RANK` | `PMI_SIZE` |
//! | PMIx (`srun --mpi=pmix`, `prterun`, Open MPI's `mpirun` once more) | `PMIX_RANK` | none |
//!
//! PMIx gives the size only to those who speak its protocol; `srun` says in `SLURM_STEP_NUM_TASKS` how many processes
//! its step has. Slurm's variables alone do not mean one job: `srun` without an MPI plugin starts programs that need
//! not belong together, and in a batch script `SLURM_NTASKS` is set before anything is started.

/// Any of these tells a process that it was started as part of a job.
const RANKS: [&str; 3] = ["OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"];
/// So do these, which give the number of processes in the job.
const SIZES: [&str; 2] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"];
/// The number of processes of the innermost `srun`, which may belong to an outer job: used if nothing nearer gives the
/// size.
const STEP_SIZE: &str = "SLURM_STEP_NUM_TASKS";

/// A process's place in its launcher's job, as far as the launcher says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub rank: Option<usize>,
    pub size: Option<usize>,
}

/// This process's place; `None` if no launcher started it.
pub fn place() -> Option<Place> {
    place_in(|name| Some(std::env::var_os(name)?.to_string_lossy().into_owned()))
}

/// As [`place`], in an environment where `value` gives a variable's value.
fn place_in(value: impl Fn(&str) -> Option<String>) -> Option<Place> {
    if !RANKS.iter().chain(&SIZES).any(|name| value(name).is_some()) {
        return None;
    }
    let largest = |names: &[&str]| names.iter().filter_map(|name| value(name)?.parse().ok()).max();
    Some(Place { rank: largest(&RANKS), size: largest(&SIZES).or_else(|| largest(&[STEP_SIZE])) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(variables: &[(&str, &str)]) -> Option<(Option<usize>, Option<usize>)> {
        let value = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_string());
        place_in(value).map(|Place { rank, size }| (rank, size))
    }

    #[test]
    fn each_launcher_tells_the_place_in_its_way() {
        let open_mpi = [("OMPI_COMM_WORLD_RANK", "2"), ("OMPI_COMM_WORLD_SIZE", "4"), ("PMIX_RANK", "2")];
        assert_eq!(place(&open_mpi), Some((Some(2), Some(4))));
        assert_eq!(place(&[("PMI_RANK", "0"), ("PMI_SIZE", "3")]), Some((Some(0), Some(3))));
        assert_eq!(place(&[("PMIX_RANK", "1"), ("SLURM_STEP_NUM_TASKS", "4")]), Some((Some(1), Some(4))));
        assert_eq!(place(&[("PMIX_RANK", "1")]), Some((Some(1), None)));
        assert_eq!(place(&[("PMI_SIZE", "4")]), Some((None, Some(4))));
    }

    #[test]
    fn slurm_without_mpi_is_no_launcher_of_one_job() {
        assert_eq!(place(&[]), None);
        // A batch script, and programs side by side.
        assert_eq!(place(&[("SLURM_NTASKS", "4"), ("SLURM_PROCID", "0")]), None);
        assert_eq!(place(&[("SLURM_STEP_NUM_TASKS", "4"), ("SLURM_PROCID", "3")]), None);
    }

    #[test]
    fn the_nearest_launcher_knows_the_size() {
        // mpirun -n 1 on a machine where srun has started mpirun's daemons.
        let nested = [("OMPI_COMM_WORLD_SIZE", "1"), ("PMIX_RANK", "0"), ("SLURM_STEP_NUM_TASKS", "2")];
        assert_eq!(place(&nested), Some((Some(0), Some(1))));
        assert_eq!(place(&[("PMIX_RANK", "?"), ("SLURM_STEP_NUM_TASKS", "")]), Some((None, None)));
    }
}
