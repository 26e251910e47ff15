"""Where DP fine-tuning starts to learn: SmolLM2-135M on this Python's standard library.

``python benchmarks/choosing_epsilon.py run [--epsilon 4 …]``   one private run; prints a JSON line
``python benchmarks/choosing_epsilon.py study RESULTS``         the study, two runs at a time, appended to RESULTS
``python benchmarks/choosing_epsilon.py plot RESULTS PNG``      a picture and a table of them

Three quarters of the library are the private records, and modules of the other quarter the held-out public rows, whose
mean loss is taken before and after. The loop, the sampler, the noise and the accountant are the service's own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import torch
from peft import PeftModel
from stdlib_rows import stdlib_rows

from lm.models import load_model, load_tokenizer, resolve_model
from privcode.accounting import make_plan, signal_to_noise
from privcode.specs import LoraSpec, PrivacySpec, PrivSASpec, SanitizeSpec
from services.trainer.core.checkpoint import CheckpointFile, StepCounter
from services.trainer.core.dp_sgd import train
from services.trainer.core.engines import make_engine
from services.trainer.core.lora import add_adapter
from services.trainer.core.noise import secret_gaussian
from services.trainer.core.privsa import per_example_loss
from services.trainer.core.sampler import PoissonSampler
from services.trainer.core.sequences import TokenSequence, collate, make_sequence, micro_batches

_MODEL: Final = "smollm2-135m-instruct"
_SEQ_LENGTH: Final = 128
_HELD_OUT: Final = 96
_MODULES: Final = {
    "qv": ("q_proj", "v_proj"),
    "all": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}

# Each differs from the first in what it names.
_BASE: Final[dict[str, Any]] = {
    "modules": "qv", "rank": 1, "batch": 128, "steps": 12, "learning-rate": 5e-3, "epsilon": 4.0, "privsa": "off",
}  # fmt: skip
_STUDY: Final[tuple[dict[str, Any], ...]] = (
    {},
    {"modules": "all", "rank": 16, "batch": 32, "learning-rate": 1e-3},
    {"batch": 32},
    {"modules": "all", "rank": 16, "learning-rate": 1e-3},
    {"epsilon": 1.0},
    {"epsilon": 8.0},
    {"epsilon": 100.0},
    {"learning-rate": 1e-3},
    {"rank": 4},
    {"privsa": "exponential"},
    {"batch": 256, "steps": 6},
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["run", "study", "plot"])
    parser.add_argument("paths", nargs="*", type=Path)
    for name, value in _BASE.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "privcode-benchmark-models")
    options = parser.parse_args()
    if options.what == "run":
        print(json.dumps(run(options)))
    elif options.what == "study":
        study(*options.paths)
    else:
        plot(*options.paths)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """A private run as the ``sanitize`` stage does it."""
    folder = resolve_model(_MODEL, models_dir=options.models)
    private, held_out = _sequences(folder)
    privacy = PrivacySpec(
        target_epsilon=options.epsilon, target_delta=1e-5, expected_batch=options.batch, steps=options.steps
    )
    plan = make_plan(privacy, records=len(private))
    spec = SanitizeSpec(
        model=_MODEL,
        lora=LoraSpec(rank=options.rank, alpha=2.0 * options.rank, target_modules=_MODULES[options.modules]),
        privsa=PrivSASpec(schedule=options.privsa),
        learning_rate=options.learning_rate,
        weight_decay=0.0,
        seq_length=_SEQ_LENGTH,
    )
    model = add_adapter(load_model(folder), spec.lora, seed=0)
    engine = make_engine("native", model)
    before = _loss(model, held_out)
    started = time.process_time()
    with tempfile.TemporaryDirectory() as work:
        train(
            model,
            [[sequence] for sequence in private],
            plan=plan,
            spec=spec,
            engine=engine,
            sampler=PoissonSampler(units=plan.units, sample_rate=plan.sample_rate, seed=None),
            noise=secret_gaussian,
            counter=StepCounter(Path(work)),
            checkpoints=CheckpointFile(Path(work), run="study"),
            checkpoint_every=plan.steps,
            micro_batch=8,
            on_step=lambda _: None,
        )
    parameters = sum(parameter.numel() for parameter in engine.parameters)
    return {
        **{name.replace("-", "_"): getattr(options, name.replace("-", "_")) for name in _BASE},
        "records": plan.records,
        "noise_multiplier": round(plan.noise_multiplier, 3),
        "trainable_parameters": parameters,
        "signal_to_noise": round(
            signal_to_noise(
                expected_batch=options.batch,
                noise_multiplier=plan.noise_multiplier,
                trainable_parameters=parameters,
            ),
            3,
        ),
        "loss_before": round(before, 4),
        "loss_after": round(_loss(model, held_out), 4),
        "cpu_seconds": round(time.process_time() - started),
    }


def study(results: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def one(change: dict[str, Any]) -> None:
        arguments = [f"--{name}={value}" for name, value in change.items()]
        command = [sys.executable, __file__, "run", *arguments]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
        with results.open("ab") as file:
            file.write(done.stdout)

    with ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(one, _STUDY))


def plot(results: Path, picture: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    runs = sorted(map(json.loads, results.read_text().splitlines()), key=lambda run: run["signal_to_noise"])
    print("| modules | rank | parameters | batch | steps | rate | PrivSA | epsilon | noise | signal to noise | loss |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    figure, axis = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for one in runs:
        print(
            "| {modules} | {rank} | {trainable_parameters:,} | {batch} | {steps} | {learning_rate} | {privsa} | "
            "{epsilon:g} | {noise_multiplier} | {signal_to_noise} | {loss_before} → {loss_after} |".format(**one)
        )
        axis.plot(
            one["signal_to_noise"], one["loss_after"], "o", color="tab:blue" if one["epsilon"] < 50 else "tab:gray"
        )
        axis.annotate(
            f"{one['modules']} r{one['rank']}, B {one['batch']}, ε {one['epsilon']:g}, {one['learning_rate']:g}",
            (one["signal_to_noise"], one["loss_after"]), textcoords="offset points", xytext=(4, 4), fontsize=7,
        )  # fmt: skip
    axis.axhline(runs[0]["loss_before"], color="black", linewidth=0.8, linestyle="--", label="before training")
    axis.set_xscale("log")
    axis.set_xlabel("signal to noise: expected batch / (noise multiplier · √parameters)")
    axis.set_ylabel("held-out public loss")
    axis.legend()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)


def _sequences(folder: str) -> tuple[list[TokenSequence], list[TokenSequence]]:
    """Private and held-out sequences that fit whole."""
    tokenizer = load_tokenizer(folder)
    found = []
    for visibility in ("private", "public"):
        rows = stdlib_rows(visibility, max_problem_chars=300, max_solution_chars=400)
        made = [make_sequence(row, template="chat", tokenizer=tokenizer, seq_length=_SEQ_LENGTH + 1) for row in rows]
        found.append([sequence for sequence in made if len(sequence) <= _SEQ_LENGTH])
    private, public = found
    return private, public[:: max(1, len(public) // _HELD_OUT)][:_HELD_OUT]


@torch.no_grad()
def _loss(model: PeftModel, sequences: list[TokenSequence]) -> float:
    """Mean over the sequences of the mean cross-entropy of an answer token, in nats."""
    losses: list[float] = []
    for rows in micro_batches([[sequence] for sequence in sequences], size=8):
        losses += per_example_loss(model, collate(rows, device=torch.device("cpu")), kl_weight=0.0).tolist()
    return statistics.mean(losses)


if __name__ == "__main__":
    main()
