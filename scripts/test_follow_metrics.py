#!/usr/bin/env python3
"""scripts/follow_metrics.py with a tracker that only remembers: python3 scripts/test_follow_metrics.py"""

import contextlib
import io
import json
import sys
import tempfile
import threading
from pathlib import Path

import follow_metrics

LOSS = {"step": 1, "loss": 2.5, "penalty": None, "tokens": 7}
VALIDATION = {"step": 1, "eval_loss": 3.0, "eval_tokens": 9}
RATES = {"harmful_score": {"count": 1, "total": 4, "rate": 0.25}, "told": {"count": 0, "total": 4, "rate": 0.0}}
SUITE = {"step": 1, "evaluations": [{"name": "harm", "metric": "refusal", **RATES, "samples": 4}]}


class Fake:
    def __init__(self):
        self.logged = []

    def log(self, numbers, step):
        self.logged.append((step, numbers))


def text(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_names_are_those_of_tensorboard():
    assert follow_metrics.scalars(LOSS) == {"train/loss": 2.5, "train/tokens": 7}
    assert follow_metrics.scalars(VALIDATION) == {"eval/loss": 3.0, "eval/tokens": 9}
    assert follow_metrics.scalars(SUITE) == {"eval/harm": 0.25, "eval/harm: told": 0.0}
    assert dict(follow_metrics.flat({"train": {"seed": 1}, "a": [2]})) == {"train.seed": 1, "a": [2]}


def test_a_run_is_followed_to_its_end(scratch):
    run, fake = scratch / "run", Fake()
    run.mkdir()
    follower = threading.Thread(target=follow_metrics.follow, args=(run, fake))
    follower.start()
    later = [{"step": step, "loss": 1.0} for step in (2, 3)]
    # A half line, a resumed run that was cut back to step 1, and the end.
    for content in (text(LOSS)[:9], text(LOSS, VALIDATION, SUITE, later[0]), text(LOSS), text(LOSS, VALIDATION, SUITE, *later)):
        (run / "metrics.jsonl").write_text(content)
        follower.join(0.1)
        assert follower.is_alive()
    (run / "run.json").write_text("{}")
    follower.join(5)
    assert not follower.is_alive()
    steps = [(step, sorted(numbers)[0]) for step, numbers in fake.logged]
    assert steps == [(1, "train/loss"), (1, "eval/loss"), (1, "eval/harm"), (2, "train/loss"), (3, "train/loss")], steps


def test_a_run_that_ended_before_is_not_the_one_to_follow(scratch):
    run, fake, before = scratch / "again", Fake(), []
    run.mkdir()
    files = {"config.toml": "", "metrics.jsonl": text(LOSS), "run.json": "{}"}
    for name, content in files.items():
        (run / name).write_text(content)
    # What is there at the start is all that --once asks for.
    assert follow_metrics.follow(run, fake, once=True) == 1 and len(fake.logged) == 1
    waiter = threading.Thread(target=lambda: before.append(follow_metrics.wait_for(run)))
    with contextlib.redirect_stderr(io.StringIO()) as told:
        waiter.start()
        waiter.join(0.1)
        assert waiter.is_alive()
        # The order in which asft --overwrite does it.
        (run / "run.json").unlink()
        (run / "metrics.jsonl").write_text("")
        waiter.join(5)
    assert not waiter.is_alive() and "--once" in told.getvalue()
    follower = threading.Thread(target=follow_metrics.follow, args=(run, fake, False, *before))
    follower.start()
    (run / "metrics.jsonl").write_text(text(VALIDATION))
    follower.join(0.1)
    assert follower.is_alive()
    (run / "run.json").write_text("{}")
    follower.join(5)
    assert not follower.is_alive()
    assert [sorted(numbers)[0] for _, numbers in fake.logged] == ["train/loss", "eval/loss"], fake.logged


def test_an_older_python_is_told(scratch):
    sys.modules["tomllib"] = None
    try:
        follow_metrics.settings(scratch)
    except SystemExit as error:
        assert "3.11" in str(error), error
    else:
        raise AssertionError("no tomllib, and no word of it")


if __name__ == "__main__":
    follow_metrics.SECONDS = 0.01
    test_names_are_those_of_tensorboard()
    with tempfile.TemporaryDirectory() as folder:
        test_a_run_is_followed_to_its_end(Path(folder))
        test_a_run_that_ended_before_is_not_the_one_to_follow(Path(folder))
        test_an_older_python_is_told(Path(folder))
    print("follow_metrics.py: names, a run that is resumed and ends, and one that replaces another")
