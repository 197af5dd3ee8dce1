#!/usr/bin/env python3
"""Sends a run's metrics to a tracker while it trains: python scripts/follow_metrics.py RUN_DIR --to wandb|mlflow|trackio

Reads RUN_DIR/metrics.jsonl as it grows, and ends when the run has (its run.json is written last). A run.json that is there before is
an earlier run's: the run that replaces or resumes that one is waited for. --once sends what is there and ends. A run that crashed writes
no run.json, and is followed on, for it may be resumed, until this is interrupted. Names are those of TensorBoard's files: train/loss, train/penalty, eval/loss, eval/<evaluation>. The settings in config.toml become
the tracker's config. A run that is resumed goes on from its checkpoint: rows that were sent before are not sent again. Needs the
tracker's package and Python 3.11; where it sends to is the tracker's own setting (`wandb login`, MLFLOW_TRACKING_URI, and so on).
"""

import argparse
import json
import sys
import time
from pathlib import Path

SECONDS = 2.0


def scalars(row):
    """A row's numbers by name; what is no number, such as null for NaN, is left out."""
    if "evaluations" in row:
        return dict(pair for evaluation in row["evaluations"] for pair in readings(evaluation))
    prefix = "eval" if "eval_loss" in row else "train"
    numbers = {key.removeprefix("eval_"): value for key, value in row.items() if key != "step" and type(value) in (int, float)}
    return {f"{prefix}/{key}": value for key, value in numbers.items()}


def readings(evaluation):
    """The measured values of one evaluation, the main one under its name; counts are the same at every step."""
    shown = {key: value.get("rate") if isinstance(value, dict) else value for key, value in evaluation.items()}
    shown = [(key, value) for key, value in shown.items() if isinstance(value, float)]
    for place, (key, value) in enumerate(shown):
        yield f"eval/{evaluation['name']}" + (f": {key.replace('_', ' ')}" if place else ""), value


def flat(settings, prefix=""):
    """Nested settings as one level: train.batch_size and so on."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


class Mlflow:
    """MLflow with the three calls of the other trackers."""

    def init(self, project, name, config):
        import mlflow

        self.mlflow = mlflow
        mlflow.set_experiment(project)
        mlflow.start_run(run_name=name)
        mlflow.log_params({key: str(value)[:500] for key, value in config.items()})

    def log(self, numbers, step):
        # MLflow allows no other signs in a name.
        allowed = {"".join(c if c.isalnum() or c in "_-. /" else "-" for c in name): value for name, value in numbers.items()}
        self.mlflow.log_metrics(allowed, step=step)

    def finish(self):
        self.mlflow.end_run()


def tracker(name):
    return Mlflow() if name == "mlflow" else __import__(name)


def rows(file):
    """The rows so far; the last line may be half written."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def record(run):
    """When the run ended, or None: its run.json is written last, and removed as the run is replaced or resumed."""
    file = run / "run.json"
    return file.stat().st_mtime_ns if file.exists() else None


def wait_for(run):
    """Waits until a run has begun; returns the end of the run before, if there was one."""
    before = record(run)
    if before is not None:
        print(f"{run} has a run that ended (run.json): waiting for the next one there; --once sends this one", file=sys.stderr)
    while not (run / "config.toml").exists() or before is not None and record(run) == before:
        time.sleep(SECONDS)
    if before is not None:
        # run.json goes first; a moment later all files are those of the new run.
        time.sleep(SECONDS)
    return before


def follow(run, to, once=False, before=None):
    """Sends rows until the run ends with another run.json than that of `before`; returns how many."""
    sent = set()
    while True:
        last = once or record(run) not in (None, before)
        for row in rows(run / "metrics.jsonl"):
            # A resumed run cuts the file back and writes the same steps again.
            kind = (row["step"], "eval_loss" in row, "evaluations" in row)
            if kind not in sent and (numbers := scalars(row)):
                to.log(numbers, step=row["step"])
            sent.add(kind)
        if last:
            return len(sent)
        time.sleep(SECONDS)


def settings(run):
    """The run's settings, on one level."""
    try:
        import tomllib
    except ImportError:
        sys.exit(f"follow_metrics.py: reading config.toml needs Python 3.11 or later; this is {sys.version.split()[0]}")
    return dict(flat(tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))))


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    arguments.add_argument("run", type=Path, metavar="RUN_DIR", help="the run's output folder, which need not exist yet")
    arguments.add_argument("--to", choices=("wandb", "mlflow", "trackio"), required=True)
    arguments.add_argument("--project", default="asft", help="project or experiment there (default: asft)")
    arguments.add_argument("--once", action="store_true", help="send what is there and end")
    given = arguments.parse_args()
    if given.once and not (given.run / "config.toml").exists():
        arguments.error(f"{given.run} is no run: it has no config.toml")
    before = None if given.once else wait_for(given.run)
    to = tracker(given.to)
    to.init(project=given.project, name=given.run.name, config=settings(given.run))
    try:
        count = follow(given.run, to, given.once, before)
    finally:
        to.finish()
    print(f"sent {count} rows of {given.run} to {given.to}")


if __name__ == "__main__":
    main()
