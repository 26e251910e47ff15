"""Does ``OMP_WAIT_POLICY=PASSIVE`` in a stage's child help? Generation with SmolLM2-135M on all cores, alone and with
one other busy process, each with and without it, in alternating rounds. Prints tokens a second and ratios of medians.

``python benchmarks/wait_policy.py [ROUNDS]``
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lm.generator import SamplingParams
from lm.models import load_tokenizer, resolve_model
from lm.prompting import prompt_text
from lm.transformers_engine import TransformersGenerator

_PROMPTS = 16
_NEW_TOKENS = 32


def generate(folder: str) -> float:
    """Tokens a second in this process, the model's loading left out."""
    tokenizer = load_tokenizer(folder)
    generator = TransformersGenerator(folder, batch_size=_PROMPTS)
    problems = [f"Write a Python function that adds {number} to its argument." for number in range(_PROMPTS)]
    prompts = [prompt_text(problem, template="chat", tokenizer=tokenizer) for problem in problems]
    started = time.perf_counter()
    completions = generator.generate(prompts, params=SamplingParams(max_new_tokens=_NEW_TOKENS))
    return sum(one.tokens for (one,) in completions) / (time.perf_counter() - started)


def measure(folder: str, *, passive: bool) -> float:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    if passive:
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
    output = subprocess.run(
        [sys.executable, __file__, "--child", folder], env=environment, stdout=subprocess.PIPE, check=True
    ).stdout
    return float(output)


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as models:
        folder = resolve_model("smollm2-135m-instruct", models_dir=Path(models))
        result = {}
        for busy in (0, 1):
            others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
            try:
                pairs = [(measure(folder, passive=False), measure(folder, passive=True)) for _ in range(rounds)]
            finally:
                for other in others:
                    other.kill()
            spinning, passive = (statistics.median(values) for values in zip(*pairs, strict=True))
            result[f"{busy} other busy processes"] = {
                "spinning_tokens_per_s": round(spinning, 1),
                "passive_tokens_per_s": round(passive, 1),
                "ratio": round(passive / spinning, 2),
            }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(generate(sys.argv[2]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
