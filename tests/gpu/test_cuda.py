"""What only a CUDA device can show: the same mathematics there as on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from transformers import AutoModelForCausalLM

from lm.generator import SamplingParams
from lm.models import load_tokenizer
from lm.transformers_engine import TransformersGenerator
from privcode.specs import LoraSpec, PerExampleEngineName
from services.trainer.core.engine import ClippingRule
from services.trainer.core.engines import make_engine
from services.trainer.core.lora import add_adapter
from services.trainer.core.noise import secret_gaussian
from services.trainer.core.privsa import per_example_loss
from services.trainer.core.sequences import collate, make_sequence, micro_batches

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]

ROWS = [
    {"problem": f"Multiply by {n}.", "solution": f"def f(x):\n    if x:\n        return x * {n}\n", "lang": "python"}
    for n in range(6)
]


def _clipped_sum(folder: Path, device: torch.device, *, engine_name: PerExampleEngineName) -> list[torch.Tensor]:
    lora = LoraSpec(rank=4, alpha=8, target_modules=("q_proj", "v_proj", "down_proj"))
    model = add_adapter(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device), lora, seed=0)
    engine = make_engine(engine_name, model)
    tokenizer = load_tokenizer(folder)
    rows = [make_sequence(row, template="chat", tokenizer=tokenizer, seq_length=128) for row in ROWS]
    rule = ClippingRule(max_grad_norm=0.1, style="flat")
    for part in micro_batches([[row] for row in rows], size=3):
        engine.accumulate(per_example_loss(model, collate(part, device=device), kl_weight=1.0), rule=rule)
    return [total.cpu() for total in engine.take_sum()]


@pytest.mark.parametrize("engine_name", get_args(PerExampleEngineName))
def test_the_clipped_sum_is_that_of_the_cpu(tiny_llama: Path, engine_name: PerExampleEngineName) -> None:
    if engine_name == "fastdp":
        pytest.importorskip("fastDP", reason="fastDP is not installed (services/trainer/requirements-gpu.txt)")
    on_cpu = _clipped_sum(tiny_llama, torch.device("cpu"), engine_name=engine_name)
    on_gpu = _clipped_sum(tiny_llama, torch.device("cuda"), engine_name=engine_name)
    for expected, found in zip(on_cpu, on_gpu, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_noise_lands_on_the_device() -> None:
    noise = secret_gaussian(torch.zeros(100_000, device="cuda"), std=2.0)
    assert noise.device.type == "cuda"
    assert abs(float(noise.std()) - 2.0) < 0.05


def test_greedy_generation_repeats_itself(tiny_llama: Path) -> None:
    generator = TransformersGenerator(tiny_llama, batch_size=2)
    params = SamplingParams(max_new_tokens=16)
    prompts = ["Question: add\n\nAnswer:", "Question: multiply two numbers\n\nAnswer:", "Question: x\n\nAnswer:"]
    assert generator.generate(prompts, params=params) == generator.generate(prompts, params=params)
