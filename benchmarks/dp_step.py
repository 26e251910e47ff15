"""What a private step costs: SmolLM2-135M, LoRA rank 16 on seven modules, float32, 16 rows x 256 tokens in
micro-batches of 4, all of it an optimizer step with noise.

``python benchmarks/dp_step.py time [ROUNDS]``   wall-clock ratios, paired within alternating rounds, medians
``python benchmarks/dp_step.py memory``          peak resident memory, each variant in a process of its own
``python benchmarks/dp_step.py mixed [ROUNDS]``  rows of real lengths against padding all to the cap of 1024 tokens
``python benchmarks/dp_step.py curve [PNG]``     time and memory against sequence length and micro-batch, plotted

``--answers SHARE`` sets how many of a row's 256 tokens are answer; default 0.44, the share in OSS-Instruct. The text is
the standard library's (a function and its docstring), cut around the place where the answer begins. ``mixed`` needs
../shared/data. fastDP takes part where it can be imported.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import torch
from peft import PeftModel
from stdlib_rows import stdlib_rows
from torch import Tensor
from transformers import AutoModelForCausalLM

from lm.models import load_tokenizer, resolve_model
from privcode.specs import LoraSpec
from services.trainer.core.engine import ClippingRule, PerExampleEngine
from services.trainer.core.engines import make_engine
from services.trainer.core.fused_elementwise import fuse_elementwise
from services.trainer.core.fused_lora import fuse
from services.trainer.core.lora import add_adapter, lora_layers, trainable
from services.trainer.core.noise import secret_gaussian
from services.trainer.core.privsa import per_example_loss
from services.trainer.core.sequences import Batch, Row, TokenSequence, collate, make_sequence, micro_batches
from services.trainer.core.teacher import CachedTeacher, InlineTeacher, Teacher

_MODEL: Final = "smollm2-135m-instruct"
_LORA: Final = LoraSpec(
    rank=16,
    alpha=32,
    target_modules=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
)
_ROWS: Final = 16
_LENGTH: Final = 256
_CAP: Final = 1024
_MICRO_BATCH: Final = 4
_RULE: Final = ClippingRule(max_grad_norm=1.0, style="flat")
_OSS_INSTRUCT: Final = (
    Path(__file__).parents[2] / "shared/data/magicoder_oss_instruct_1k/magicoder_oss_instruct_1k.jsonl"
)

Step = Callable[[Sequence[Batch]], None]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["time", "memory", "mixed", "curve", "peak"])
    parser.add_argument("argument", nargs="?")
    parser.add_argument("--answers", type=float, default=0.44)
    parser.add_argument("--length", type=int, default=_LENGTH)
    parser.add_argument("--micro-batch", type=int, default=_MICRO_BATCH)
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "privcode-benchmark-models")
    options = parser.parse_args()
    folder = resolve_model(_MODEL, models_dir=options.models)
    match options.what:
        case "time":
            batches = stdlib_batches(folder, answers=options.answers)
            result: object = time_ratios(folder, batches, rounds=int(options.argument or 5))
        case "memory":
            result = memory_ratios(answers=options.answers)
        case "mixed":
            result = mixed_lengths(folder, rounds=int(options.argument or 5))
        case "curve":
            result = curve(picture=Path(options.argument or "docs/images/dp-step-cost.png"))
        case "peak":
            batches = stdlib_batches(
                folder, answers=options.answers, length=options.length, micro_batch=options.micro_batch
            )
            result = peak(folder, batches, variant=options.argument)
    print(json.dumps(result, indent=2))


def time_ratios(folder: str, batches: Sequence[Batch], *, rounds: int) -> dict[str, object]:
    steps = {name: make(folder, batches) for name, make in VARIANTS.items() if _available(name)}
    seconds = _alternate({name: lambda step=step: step(batches) for name, step in steps.items()}, rounds=rounds)

    def ratio(over: str, under: str) -> float:
        return round(statistics.median(a / b for a, b in zip(seconds[over], seconds[under], strict=True)), 3)

    others = [name for name in ("fastdp", "opacus_hooks", "opacus_ghost") if name in steps]
    return {
        "rounds": rounds,
        "answer_share": round(_share(batches, "answer"), 3),
        "structure_share": round(_share(batches, "structure"), 3),
        "median_seconds": {name: round(statistics.median(values), 2) for name, values in seconds.items()},
        "native / plain peft": ratio("native", "plain"),
        "native / no privacy, same savings": ratio("native", "plain_saving"),
        "others / plain peft": {name: ratio(name, "plain") for name in others},
        "others / native": {name: ratio(name, "native") for name in others},
        "native with PrivSA inline / without": ratio("privsa_inline", "native"),
        "native with PrivSA cached / without": ratio("privsa_cached", "native"),
    }


def memory_ratios(*, answers: float) -> dict[str, object]:
    peaks = {name: _peak_in_child(name, "--answers", str(answers)) for name in VARIANTS if _available(name)}
    return {
        "peak_mib": peaks,
        "/ plain peft": {name: round(value / peaks["plain"], 3) for name, value in peaks.items()},
        "native / no privacy, same savings": round(peaks["native"] / peaks["plain_saving"], 3),
        "native with PrivSA inline / without": round(peaks["privsa_inline"] / peaks["native"], 3),
        "native with PrivSA cached / without": round(peaks["privsa_cached"] / peaks["native"], 3),
    }


def mixed_lengths(folder: str, *, rounds: int) -> dict[str, object]:
    """Rows a second of the native engine as it cuts a lot into micro-batches, and with every row padded to the cap in
    random order; another 64 rows in each round."""
    if not _OSS_INSTRUCT.exists():
        sys.exit(f"{_OSS_INSTRUCT} is missing: mixed lengths are measured on real rows")
    tokenizer = load_tokenizer(folder)
    lines = [json.loads(line) for line in _OSS_INSTRUCT.read_text(encoding="utf-8").splitlines()]
    random.Random(0).shuffle(lines)
    size = 64
    step = VARIANTS["native"](folder, [])
    ratios, padding = [], []
    for number in range(rounds):
        lot = [
            make_sequence(
                {"problem": line["instruction"], "solution": line["output"], "lang": "python"},
                template="chat",
                tokenizer=tokenizer,
                seq_length=_CAP,
            )
            for line in lines[number * size : (number + 1) * size]
        ]
        lot = [sequence for sequence in lot if bool(sequence.answer.any())]
        ours = _collated(micro_batches([[sequence] for sequence in lot], size=_MICRO_BATCH))
        rows = [Row(sequence=sequence, unit=unit, weight=1.0) for unit, sequence in enumerate(lot)]
        fixed = [_padded(batch) for batch in _collated([rows[i : i + _MICRO_BATCH] for i in range(0, len(rows), 4)])]
        times = {}
        for name in ("ours", "fixed") if number % 2 == 0 else ("fixed", "ours"):
            started = time.perf_counter()
            step(ours if name == "ours" else fixed)
            times[name] = time.perf_counter() - started
        ratios.append(times["fixed"] / times["ours"])
        tokens = sum(map(len, lot))
        padding.append(
            [sum(batch.token_ids.numel() for batch in batches) / tokens for batches in (ours, fixed)],
        )
    return {
        "rows_per_round": size,
        "rows a second / padding all to the cap": round(statistics.median(ratios), 3),
        "all rounds": [round(ratio, 3) for ratio in ratios],
        "padded tokens / real tokens": {
            "ours": round(statistics.median(pair[0] for pair in padding), 3),
            "cap": round(statistics.median(pair[1] for pair in padding), 3),
        },
    }


def curve(*, picture: Path) -> dict[str, object]:
    """Native step of one micro-batch: milliseconds a token and peak memory, each point in a process of its own."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    by_length = {
        length: _measured_in_child("--length", str(length), "--micro-batch", "4") for length in (128, 256, 512, 1024)
    }
    by_size = {size: _measured_in_child("--length", "256", "--micro-batch", str(size)) for size in (1, 2, 4, 8, 16)}
    figure, axes = pyplot.subplots(2, 2, figsize=(9, 6), layout="constrained")
    for column, (label, points) in enumerate((("tokens a row (4 rows)", by_length), ("rows (256 tokens)", by_size))):
        for line, (name, unit) in enumerate((("ms_per_token", "ms a token"), ("peak_mib", "peak memory, MiB"))):
            axis = axes[line][column]
            axis.plot(list(points), [point[name] for point in points.values()], marker="o")
            axis.set_xscale("log", base=2)
            axis.set_xticks(list(points), [str(x) for x in points])
            axis.set_ylim(bottom=0)
            axis.set_xlabel(label)
            axis.set_ylabel(unit)
            axis.grid(alpha=0.3)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)
    return {"by_length": by_length, "by_micro_batch": by_size, "picture": str(picture)}


def peak(folder: str, batches: Sequence[Batch], *, variant: str) -> dict[str, float]:
    """Peak resident memory of this process after two steps, and the second one's time."""
    step = VARIANTS[variant](folder, batches)
    step(batches)
    started = time.perf_counter()
    step(batches)
    tokens = sum(batch.token_ids.numel() for batch in batches)
    return {
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "ms_per_token": round(1000 * (time.perf_counter() - started) / tokens, 3),
    }


def _measured_in_child(*arguments: str, variant: str = "native") -> dict[str, float]:
    command = [sys.executable, __file__, "peak", variant, *arguments]
    measured: dict[str, float] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return measured


def _peak_in_child(variant: str, *arguments: str) -> float:
    return _measured_in_child(*arguments, variant=variant)["peak_mib"]


def _alternate(steps: Mapping[str, Callable[[], None]], *, rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for number in range(rounds):
        for name in list(steps) if number % 2 == 0 else reversed(list(steps)):
            started = time.perf_counter()
            steps[name]()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def _load(folder: str) -> PeftModel:
    return add_adapter(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), _LORA, seed=0)


def _plain(folder: str, _: Sequence[Batch]) -> Step:
    """As peft's and transformers' users train: labels, attention mask, the model's own loss."""
    model = _load(folder).train()
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=1e-6)

    def step(batches: Sequence[Batch]) -> None:
        for batch in batches:
            labels = batch.token_ids.where(batch.answer, -100)
            model(input_ids=batch.token_ids, attention_mask=_mask(batch), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _plain_saving(folder: str, _: Sequence[Batch]) -> Step:
    """No privacy, and all that the native engine saves: as our own ``boost`` stage trains."""
    model = _load(folder)
    for layer in lora_layers(model):
        fuse(layer, None)
    fuse_elementwise(model)
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=1e-6)

    def step(batches: Sequence[Batch]) -> None:
        for batch in batches:
            per_example_loss(model, batch, kl_weight=0.0).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _other(name: str) -> Callable[[str, Sequence[Batch]], Step]:
    """Another library's per-example gradients on the model as its users run it: logits of all positions."""

    def make(folder: str, _: Sequence[Batch]) -> Step:
        model = _load(folder)
        engine = make_engine(name, model)  # type: ignore[arg-type]

        def losses(batch: Batch) -> Tensor:
            logits = model(input_ids=batch.token_ids, attention_mask=_mask(batch), use_cache=False).logits
            labels = batch.token_ids.where(batch.answer, -100)[:, 1:]
            each = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels, reduction="none")
            return each.sum(dim=1) / batch.answer.sum(dim=1)

        return _private(engine, losses)

    return make


def _native(kind: str | None) -> Callable[[str, Sequence[Batch]], Step]:
    def make(folder: str, batches: Sequence[Batch]) -> Step:
        model = _load(folder)
        engine = make_engine("native", model)
        teacher: Teacher = InlineTeacher(model)
        if kind == "cached":
            sequences = [sequence for batch in batches for sequence in batch.sequences]
            file = Path(tempfile.mkdtemp()) / "teacher"
            teacher = CachedTeacher(InlineTeacher(model), sequences=sequences, width=576, file=file)
        weight = 0.0 if kind is None else 1.0
        return _private(engine, lambda batch: per_example_loss(model, batch, kl_weight=weight, teacher=teacher))

    return make


def _private(engine: PerExampleEngine, losses: Callable[[Batch], Tensor]) -> Step:
    optimizer = torch.optim.AdamW(engine.parameters, lr=1e-6)

    def step(batches: Sequence[Batch]) -> None:
        for batch in batches:
            engine.accumulate(losses(batch), rule=_RULE, units=batch.units)
        for parameter, total in zip(engine.parameters, engine.take_sum(), strict=True):
            parameter.grad = (total + secret_gaussian(total, std=1.0)) / _ROWS
        optimizer.step()
        optimizer.zero_grad()

    return step


VARIANTS: Final[Mapping[str, Callable[[str, Sequence[Batch]], Step]]] = {
    "plain": _plain,
    "plain_saving": _plain_saving,
    "native": _native(None),
    "privsa_inline": _native("inline"),
    "privsa_cached": _native("cached"),
    "fastdp": _other("fastdp"),
    "opacus_hooks": _other("opacus_hooks"),
    "opacus_ghost": _other("opacus_ghost"),
}


def _available(name: str) -> bool:
    return name != "fastdp" or find_spec("fastDP") is not None


def _mask(batch: Batch) -> Tensor:
    lengths = torch.tensor([len(sequence) for sequence in batch.sequences])
    return (torch.arange(batch.token_ids.shape[1]) < lengths[:, None]).long()


def _share(batches: Sequence[Batch], mask: str) -> float:
    return statistics.mean(float(getattr(batch, mask).float().mean()) for batch in batches)


def _collated(parts: Sequence[Sequence[Row]]) -> list[Batch]:
    return [collate(rows, device=torch.device("cpu")) for rows in parts]


def _padded(batch: Batch) -> Batch:
    def pad(tensor: Tensor) -> Tensor:
        return torch.nn.functional.pad(tensor, (0, _CAP - tensor.shape[1]))

    return Batch(
        sequences=batch.sequences, token_ids=pad(batch.token_ids), answer=pad(batch.answer),
        structure=pad(batch.structure), units=batch.units, weights=batch.weights,
    )  # fmt: skip


def stdlib_batches(
    folder: str, *, answers: float, length: int = _LENGTH, micro_batch: int = _MICRO_BATCH
) -> list[Batch]:
    """16 rows (one micro-batch where another length or size is asked for) of exactly ``length`` tokens."""
    tokenizer = load_tokenizer(folder)
    answer = round(answers * length)
    rows = _ROWS if (length, micro_batch) == (_LENGTH, _MICRO_BATCH) else micro_batch
    cut = []
    for row in stdlib_rows("private", max_problem_chars=100_000, max_solution_chars=100_000):
        whole = make_sequence(row, template="chat", tokenizer=tokenizer, seq_length=8192)
        first = int(whole.answer.int().argmax())
        if first >= length - answer and len(whole) - first >= answer:
            own = slice(first - (length - answer), first + answer)
            cut.append(
                TokenSequence(token_ids=whole.token_ids[own], answer=whole.answer[own], structure=whole.structure[own])
            )
        if len(cut) == rows:
            break
    assert len(cut) == rows, f"only {len(cut)} functions are long enough"
    return _collated(micro_batches([[sequence] for sequence in cut], size=micro_batch))


if __name__ == "__main__":
    main()
