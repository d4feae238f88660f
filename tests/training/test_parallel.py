"""How a step is cut up changes nothing; nor does killing the process, wherever it is."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import random_models as tiny
import torch
from pickled import Pickled
from safetensors.torch import load_file

from tnt.core.artifacts import write_text
from tnt.core.hashes import sha256_of
from tnt.training.checkpoints import last_checkpoint
from tnt.training.params import LoraParams, TrainParams
from tnt.training.run import train
from tnt.training.trainer import TargetedTrainer

MODELS = {"causal": tiny.llama, "encoder_decoder": tiny.t5}
BASE = {
    "epochs": 2,
    "batch_size": 5,
    "learning_rate": 0.01,
    "adam_epsilon": 1.0,  # Adam would make whole steps of round-off
    "schedule": "constant",
    "max_gradient_norm": 1e9,
    "max_divergence": 1e9,
}
DTYPES = {"float64": torch.float64, "float32": torch.float32}
BOUND = {"float64": 1e-10, "float32": 1e-5}


def uneven_rows():
    """Return 11 rows, so that the last step of an epoch has one; corrections among them."""
    masks = tiny.rows(11, flagged=[0, 4, 5, 9])
    masks[4] = replace(masks[4], kept_mask=[False] * len(masks[4].kept_mask))
    masks[7] = tiny.row(7, [5], [9])  # a token of prompt, a token of completion
    masks[8] = tiny.row(8, range(3, 33), range(20, 50), [0, 3])
    return [replace(m, source="corrected") if i in (2, 10) else m for i, m in enumerate(masks)]


# name -> (model, dtype, what differs from BASE)
KINDS = {
    f"{name}-{dtype}-{'-'.join(map(str, changes.values())) or 'plain'}": (name, dtype, changes)
    for name in MODELS
    for dtype, changes in (
        ("float64", {"cache_original": False}),
        ("float64", {"cache_original": False, "loss": "tnrr", "negative_weight": 3.0}),
        ("float32", {}),
        ("float32", {"cache_original": False, "loss": "ul"}),
    )
}
KINDS["lora-float64"] = (
    "causal", "float64", {"cache_original": False, "lora": LoraParams(rank=2)},
)  # fmt: skip
KINDS["lora-float32-cached"] = ("causal", "float32", {"lora": LoraParams(rank=2)})


def gradients(kind, folder, **changes):
    """Train for real; return the gradient of every step, the log, and the final weights."""
    name, dtype, settings = KINDS[kind]
    steps = []
    clip = TargetedTrainer._clip_grad_norm

    def record(trainer, model):
        named = trainer.model.named_parameters()
        steps.append({n: p.grad.clone() for n, p in named if p.grad is not None})
        return clip(trainer, model)

    TargetedTrainer._clip_grad_norm = record
    try:
        params = TrainParams(**{**BASE, **settings, **changes})
        model = MODELS[name]().to(DTYPES[dtype])
        found = train(model, uneven_rows(), params, workdir=folder / "run")
    finally:
        TargetedTrainer._clip_grad_norm = clip
    weights = {n: p.detach().clone() for n, p in found.model.named_parameters()}
    return steps, found.logs, weights


def largest_of(tensors):
    return max(float(x.abs().max()) for x in tensors.values())


def assert_same(found, expected, bound, largest):
    """Each tensor to a bound relative to the largest entry."""
    assert found.keys() == expected.keys()
    worst = max(float((found[n] - expected[n]).abs().max()) for n in expected)
    assert worst <= bound * largest, f"{worst:.2g}, where the largest entry is {largest:.2g}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a function that gives a kind's undivided run, which is made once."""
    made = {}

    def run(kind):
        if kind not in made:
            made[kind] = gradients(kind, tmp_path_factory.mktemp("whole"))
        return made[kind]

    return run


def assert_same_run(kind, found, expected):
    bound = BOUND[KINDS[kind][1]]
    (steps, logs, weights), (expected_steps, expected_logs, expected_weights) = found, expected
    assert len(steps) == len(expected_steps) > 0
    # In float32 the steps after the first start from weights that differ by round-off, and what the
    # kept tokens ask for there is round-off too: only a gross fault would show.
    of_run = max(map(largest_of, expected_steps))
    assert of_run > 0
    for i, (step, other) in enumerate(zip(steps, expected_steps, strict=True)):
        if i == 0 or bound < 1e-6:
            assert_same(step, other, bound, largest_of(other))
        else:
            assert_same(step, other, 1e-3, of_run)
    assert_same(weights, expected_weights, bound, largest_of(expected_weights))
    for log, other in zip(logs, expected_logs, strict=True):
        for name in ("loss", "negative_loss", "kept_loss", "corrected_loss", "negative_mass"):
            assert getattr(log, name) == pytest.approx(getattr(other, name), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("micro_batch_size", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_have_the_gradient_of_the_whole_batch(
    tmp_path, whole, kind, micro_batch_size
):
    found = gradients(kind, tmp_path, micro_batch_size=micro_batch_size)
    assert_same_run(kind, found, whole(kind))


BY_TWO = (
    "causal-float64-False", "encoder_decoder-float64-False-tnrr-3.0", "causal-float32-plain",
    "encoder_decoder-float32-plain", "lora-float64",
)  # fmt: skip
CUTS = (None, 1)
"""Micro-batch sizes of two processes; with None one has 3 rows of 5, the other 2, or 1 and none."""


@pytest.fixture(scope="module")
def by_two(tmp_path_factory):
    """Return what each of two processes found, of every kind and cut; they share the folders."""
    folder = tmp_path_factory.mktemp("by two")
    launch(folder, *BY_TWO)
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in (0, 1)]


def launch(folder, *arguments):
    """Run this file in two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_addr", "127.0.0.1", "--master_port", str(port)]
    here = Path(__file__)
    paths = os.pathsep.join([str(here.parents[1]), str(here.parents[2])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(
        [*command, str(here), str(folder), *arguments],
        env=environment, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch_size", CUTS)
@pytest.mark.parametrize("kind", BY_TWO)
def test_two_processes_have_the_gradient_of_one(by_two, whole, kind, micro_batch_size):
    for found in by_two:
        assert_same_run(kind, found[kind, micro_batch_size], whole(kind))


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch_size", CUTS)
@pytest.mark.parametrize("kind", BY_TWO)
def test_two_processes_end_in_the_same_bytes_as_each_other(by_two, kind, micro_batch_size):
    (_, _, one), (_, _, other) = (found[kind, micro_batch_size] for found in by_two)
    assert [n for n in one if not torch.equal(one[n], other[n])] == []


# -- killed

KILLED = {
    "plain": ("causal", {}),
    "uncached encoder-decoder with dropout": (
        "encoder_decoder", {"cache_original": False, "dropout": True},
    ),
    "lora": ("causal", {"lora": LoraParams(rank=2)}),
}  # fmt: skip
# Where a process kills itself: (what it is about to do or has done, the how-manieth time).
POINTS = {
    "before the original is written": ("tnt.training.originals.save_file", "before", 1),
    "before the original has its name": ("tnt.training.originals.save_file", "after", 1),
    "before the first step": ("tnt.training.trainer.TargetedTrainer._clip_grad_norm", "before", 1),
    "before a checkpoint": ("transformers.Trainer._save_checkpoint", "before", 2),
    "before the weights": ("transformers.Trainer._save", "before", 2),
    "after the weights": ("transformers.Trainer._save", "after", 2),
    "before the optimizer": ("transformers.Trainer._save_optimizer_and_scheduler", "before", 2),
    "before the random state": ("transformers.Trainer._save_rng_state", "before", 2),
    "before the trainer's state": ("transformers.TrainerState.save_to_json", "before", 2),
    "after the trainer's state": ("transformers.TrainerState.save_to_json", "after", 2),
    "before old checkpoints go": ("shutil.rmtree", "before", 1),
    "amid old checkpoints": ("os.rmdir", "before", 1),
    "after the last checkpoint": ("tnt.training.run.scale_update", "before", 1),
}
DIFFERENT = ("before the first step", "before the random state", "after the last checkpoint")
"""Points at which the other kinds are killed, too."""
AT_RANDOM = 3
BY_TWO_KILLED = {"encoder-decoder with dropout": ("encoder_decoder", {"dropout": True})}


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Return what each run came to: one that was left alone, and those that were killed."""
    folder = tmp_path_factory.mktemp("killed")
    paths = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, __file__, "kill", str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads((folder / "results.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KILLED)
def test_run_killed_at_any_point_ends_in_the_same_bytes(killed, kind):
    expected = killed[kind]["whole"]
    assert "error" not in expected
    wrong = {
        point: [name for name in expected if found.get(name) != expected[name]] or found
        for point, found in killed[kind].items()
        if {**found, "kills": 0} != {**expected, "kills": 0}
    }
    assert wrong == {}


@pytest.mark.slow
def test_processes_were_killed(killed):
    assert {*POINTS} < {*killed["plain"]}
    for found in killed.values():
        assert [point for point in POINTS if point in found and found[point]["kills"] != 1] == []
        assert {*DIFFERENT} < {*found}
        assert sum(found[f"at random {i}"]["kills"] for i in range(AT_RANDOM)) > AT_RANDOM / 2


@pytest.mark.slow
def test_two_processes_one_of_which_is_killed_end_in_the_same_bytes(tmp_path):
    """With dropout, of which each process has its own."""
    [kind] = BY_TWO_KILLED
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    launch(tmp_path / "whole", "resume", kind, "0")
    with pytest.raises(AssertionError):
        launch(tmp_path / "killed", "resume", kind, "9")
    assert not (tmp_path / "killed" / "outcome.json").exists()
    launch(tmp_path / "killed", "resume", kind, "0")
    whole, again = (
        json.loads((tmp_path / name / "outcome.json").read_text()) for name in ("whole", "killed")
    )
    assert again["weights"] == whole["weights"]
    assert again["log"] == whole["log"]
    assert again["original"] == whole["original"]


# -- a damaged checkpoint


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


DAMAGES = {
    f"{what} {name}": (name, how)
    for what, how in {
        "half of": cut,
        "nothing in": lambda path: path.write_bytes(b""),
        "no": lambda path: path.unlink(),
        "another bit in": flip,
    }.items()
    for name in (
        "model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json",
    )
    if (what, name) != ("no", "rng_state.pth")  # it changes nothing without dropout
}  # fmt: skip
DAMAGES |= {
    f"{text} as the trainer's state": (
        "trainer_state.json", lambda path, text=text: path.write_text(text),
    )
    for text in ("[]", "{}", "null", '{"global_step": "x"}', '{"global_step": 6}')
}  # fmt: skip


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """Return a folder with a run that stopped at step 7 of 10, and what the whole run came to."""
    folder = tmp_path_factory.mktemp("interrupted")
    expected = outcome_of(folder / "whole")
    clip = TargetedTrainer._clip_grad_norm

    def stop(trainer, model):
        if trainer.state.global_step == 7:
            raise KeyboardInterrupt
        return clip(trainer, model)

    TargetedTrainer._clip_grad_norm = stop
    try:
        with pytest.raises(KeyboardInterrupt):
            outcome_of(folder / "part")
    finally:
        TargetedTrainer._clip_grad_norm = clip
    return folder / "part", expected


def outcome_of(folder):
    settings = {**BASE, "batch_size": 4, "epochs": 5, "learning_rate": 1e-2, "adam_epsilon": 1e-8}
    masks = tiny.rows(8, flagged=[1, 2])
    found = train(tiny.llama(), masks, TrainParams(**settings), workdir=folder / "run")
    return {n: w.clone() for n, w in found.model.state_dict().items()}, found.logs


@pytest.mark.parametrize(("name", "damage"), [(None, None), *DAMAGES.values()],
                         ids=["whole", *DAMAGES])  # fmt: skip
def test_damaged_checkpoint_is_passed_over_and_never_used(tmp_path, interrupted, name, damage):
    folder, (expected, expected_logs) = interrupted
    shutil.copytree(folder, tmp_path / "part")
    if damage:
        damage(Path(last_checkpoint(tmp_path / "part/run")) / name)
    found, logs = outcome_of(tmp_path / "part")
    assert [n for n in expected if not torch.equal(found[n], expected[n])] == []
    assert logs == expected_logs


def test_a_pickle_in_a_checkpoint_never_runs(tmp_path, interrupted):
    shutil.copytree(interrupted[0], tmp_path / "part")
    checkpoint = Path(last_checkpoint(tmp_path / "part/run"))
    (checkpoint / "optimizer.pt").write_bytes(pickle.dumps(Pickled(tmp_path / "ran")))
    write_text(sha256_of(checkpoint), checkpoint.with_suffix(".sha256"))
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        outcome_of(tmp_path / "part")
    assert not (tmp_path / "ran").exists()


# -- rows of all shapes


def silent(mask):
    """A completion whose last tokens carry no loss, and its first neither."""
    kept = [i == 1 for i in range(len(mask.completion_ids))]
    return replace(mask, negative_mask=[False] * len(kept), kept_mask=kept)


SHAPES = {
    "one token of prompt and of completion each": [
        tiny.row(i, [5 + i], [9 + i], [0] if i == 1 else []) for i in range(7)
    ],
    "all negative": [tiny.row(i, [5, 6 + i], [9 + i, 4], [0, 1]) for i in range(7)],
    "all corrections": [replace(m, source="corrected") for m in tiny.rows(7)],
    "hardly any loss": [silent(m) for m in tiny.rows(7)],
    "rows without any": [
        replace(m, kept_mask=[False] * len(m.kept_mask)) if i % 3 else m
        for i, m in enumerate(tiny.rows(7, flagged=[0, 1]))
    ],
    "very long beside very short": [
        tiny.row(i, range(3, 33) if i % 2 else [5], range(30, 60) if i % 2 else [7], [0])
        for i in range(7)
    ],
    "one row": tiny.rows(1, flagged=[0]),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", MODELS)
def test_rows_of_any_shape_have_the_same_gradient_in_any_passes(tmp_path, name, shape):
    def steps_of(**changes):
        steps = []
        params = TrainParams(**{**BASE, "cache_original": False, "loss": "tnrll", **changes})

        def record(trainer, model):
            named = trainer.model.named_parameters()
            steps.append({n: p.grad.clone() for n, p in named if p.grad is not None})
            return clip(trainer, model)

        clip = TargetedTrainer._clip_grad_norm
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(TargetedTrainer, "_clip_grad_norm", record)
            workdir = tmp_path / f"a folder {params.micro_batch_size}" / "run"
            train(MODELS[name]().double(), SHAPES[shape], params, workdir=workdir)
        return steps

    parts = steps_of(micro_batch_size=2)
    for step, other in zip(parts, steps_of(), strict=True):
        assert_same(step, other, 1e-10, largest_of(other))


def _outcome(kind, folder):
    """Train; write down hashes of what came out."""
    name, changes = {**KILLED, **BY_TWO_KILLED}[kind]
    settings = {**BASE, "learning_rate": 1e-2, "adam_epsilon": 1e-8, "epochs": 5, **changes}
    found = train(MODELS[name](), uneven_rows(), TrainParams(**settings), workdir=folder / "run")
    digest = hashlib.sha256()
    for weight_name, weight in found.model.state_dict().items():
        digest.update(weight_name.encode() + weight.contiguous().numpy().tobytes())
    files = sorted(folder.glob("original-*"))
    kept = {path.name: load_file(path)["hidden"].numpy().tobytes() for path in files}
    originals = {name: hashlib.sha256(hidden).hexdigest() for name, hidden in kept.items()}
    outcome = {"weights": digest.hexdigest(), "log": repr(found.logs), "original": originals}
    if os.environ.get("RANK", "0") == "0":
        (folder / "outcome.json").write_text(json.dumps(outcome))


def _attempt(kind, folder, prepare, *, after=None):
    """Run in a forked process, which may be killed; return whether it was."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            prepare()
            _outcome(kind, folder)
            status = 0
        except Exception as error:
            (folder / "outcome.json").write_text(json.dumps({"error": repr(error)}))
        finally:
            os._exit(status)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def _kill_at(target, when, times):
    """Let this process kill itself the given time that it comes by."""
    import pkgutil

    owner, _, name = target.rpartition(".")
    owner = pkgutil.resolve_name(owner)
    original, seen = getattr(owner, name), []

    def wrapped(*arguments, **keywords):
        seen.append(1)
        if len(seen) == times and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        found = original(*arguments, **keywords)
        if len(seen) == times:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(owner, name, wrapped)


def _kill(folder):
    import transformers  # noqa: F401

    results = {}
    generator = random.Random(0)
    for kind in KILLED:
        of_kind = results[kind] = {}

        def place(name, kind=kind):
            path = folder / kind / name
            path.mkdir(parents=True)
            return path

        def end(name, path, kills, of_kind=of_kind):
            of_kind[name] = {**json.loads((path / "outcome.json").read_text()), "kills": kills}
            shutil.rmtree(path)

        path, start = place("whole"), time.monotonic()
        _attempt(kind, path, lambda: None)
        duration = time.monotonic() - start
        end("whole", path, 0)
        for point in POINTS if kind == "plain" else DIFFERENT:
            path = place(point)
            kills = _attempt(kind, path, lambda point=point: _kill_at(*POINTS[point]))
            if not (path / "outcome.json").exists():
                _attempt(kind, path, lambda: None)
            end(point, path, int(kills))
        for i in range(AT_RANDOM):
            path, kills = place(f"at random {i}"), 0
            for _ in range(3):
                if not (path / "outcome.json").exists():
                    delay = generator.uniform(0.05, 1) * duration / 2
                    kills += _attempt(kind, path, lambda: None, after=delay)
            if not (path / "outcome.json").exists():
                _attempt(kind, path, lambda: None)
            end(f"at random {i}", path, kills)
    (folder / "results.json").write_text(json.dumps(results))


def _share(folder, *kinds):
    results = {
        (kind, cut): gradients(kind, folder / f"{kind} {cut}", micro_batch_size=cut)
        for kind in kinds
        for cut in CUTS
    }
    (folder / f"{os.environ['RANK']}.pickle").write_bytes(pickle.dumps(results))


if __name__ == "__main__":
    if sys.argv[1] == "kill":
        _kill(Path(sys.argv[2]))
    elif sys.argv[2] == "resume":
        kind, step = sys.argv[3], int(sys.argv[4])
        if step and os.environ["RANK"] == "1":
            _kill_at("tnt.training.trainer.TargetedTrainer._clip_grad_norm", "before", step)
        _outcome(kind, Path(sys.argv[1]))
    else:
        _share(Path(sys.argv[1]), *sys.argv[2:])
