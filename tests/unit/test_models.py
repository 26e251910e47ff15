"""Model references: known names, folders of the models directory, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from privcode.errors import InvalidInput
from privcode.models import CATALOGUE, known_models, model_info
from privcode.specs import LoraSpec

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "intermediate_size": 20,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}


def put(models_dir: Path, name: str, config: object) -> None:
    folder = models_dir / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))


def lora(*modules: str, rank: int = 1) -> LoraSpec:
    return LoraSpec.model_validate({"rank": rank, "alpha": 1, "target_modules": modules})


def test_the_catalogue_is_found_by_name(tmp_path: Path) -> None:
    for name in CATALOGUE:
        assert model_info(name, models_dir=tmp_path).reference == name


def test_a_local_folder_is_a_model_with_its_own_shape(tmp_path: Path) -> None:
    put(tmp_path, "tiny", CONFIG)
    put(tmp_path, "encoder", {**CONFIG, "architectures": ["BertModel"]})
    info = model_info("local/tiny", models_dir=tmp_path)
    assert (info.source, info.kind) == ("local", "causal")
    assert info.shape is not None
    assert info.shape.num_key_value_heads == 2
    assert model_info("local/encoder", models_dir=tmp_path).kind == "encoder"
    assert [info.reference for info in known_models(tmp_path)[len(CATALOGUE) :]] == ["local/encoder", "local/tiny"]


@pytest.mark.parametrize(
    "reference",
    ["", "gpt-4", "smollm2-135m-instruct ", "local/", "local/none", "local/../outside", "local/.hidden", "local/a/b",
     "local/not-json", "local/a-list", "local/no-shape", "local//etc", "/etc", "outside"],
)  # fmt: skip
def test_any_other_reference_is_refused(tmp_path: Path, reference: str) -> None:
    models_dir = tmp_path / "models"
    for name in ("../outside", ".hidden", "a/b"):
        put(models_dir, name, CONFIG)
    put(models_dir, "not-json", "{")
    put(models_dir, "a-list", [CONFIG])
    put(models_dir, "no-shape", {"architectures": ["LlamaForCausalLM"]})
    with pytest.raises(InvalidInput) as caught:
        model_info(reference, models_dir=models_dir, field="boost.model")
    assert (caught.value.code, caught.value.field, caught.value.value) == ("unknown_model", "boost.model", reference)
    assert len(known_models(models_dir)) == len(CATALOGUE)


def test_without_a_models_directory_there_is_the_catalogue(tmp_path: Path) -> None:
    assert known_models(tmp_path / "none") == list(CATALOGUE.values())


@pytest.mark.parametrize(
    ("modules", "rank", "parameters"),
    [
        # Two layers, hidden 8, head width 2: q 8 -> 8, k and v 8 -> 4, gate and up 8 -> 20, down 20 -> 8.
        (("q_proj",), 1, 2 * (8 + 8)),
        (("k_proj",), 1, 2 * (8 + 4)),
        (("v_proj",), 3, 2 * 3 * (8 + 4)),
        (("o_proj",), 1, 2 * (8 + 8)),
        (("gate_proj", "up_proj", "down_proj"), 2, 2 * 2 * 3 * 28),
    ],
)
def test_lora_parameters_are_counted(tmp_path: Path, modules: tuple[str, ...], rank: int, parameters: int) -> None:
    put(tmp_path, "tiny", CONFIG)
    shape = model_info("local/tiny", models_dir=tmp_path).shape
    assert shape is not None
    assert shape.lora_parameters(lora(*modules, rank=rank)) == parameters


def test_a_head_width_of_its_own_counts() -> None:
    gemma = CATALOGUE["google/codegemma-7b"].shape
    assert gemma is not None
    assert gemma.lora_parameters(lora("q_proj")) == 28 * (3072 + 16 * 256)


def test_the_demo_adapter_has_57600_parameters() -> None:
    shape = CATALOGUE["smollm2-135m-instruct"].shape
    assert shape is not None
    assert shape.lora_parameters(lora("q_proj", "v_proj")) == 30 * ((576 + 576) + (576 + 192)) == 57_600
