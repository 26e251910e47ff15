"""A Llama of two layers with a byte-pair tokenizer of its own, made in memory."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from stage_bench import Bench
from tiny_lora import ALL_LINEAR, ROWS, randomise
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from privcode import stage_io
from privcode.specs import LoraSpec
from services.trainer.core.lora import add_adapter
from services.trainer.core.sequences import TokenSequence, make_sequence

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(inspect.getsource(textwrap).splitlines(keepends=True), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<|endoftext|>", bos_token="<|im_start|>", eos_token="<|im_end|>",
        pad_token="<|im_end|>", model_max_length=512, chat_template=CHAT_TEMPLATE,
    )  # fmt: skip


@pytest.fixture
def llama(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.2, tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        return LlamaForCausalLM(config).eval()


@pytest.fixture
def adapted(llama: LlamaForCausalLM) -> PeftModel:
    """Rank 2 on all seven modules, with an adapter that does something."""
    model = add_adapter(llama, LoraSpec(rank=2, alpha=4.0, target_modules=ALL_LINEAR), seed=0)
    randomise(model)
    return model


@pytest.fixture
def sequences(tokenizer: PreTrainedTokenizerFast) -> list[TokenSequence]:
    return [make_sequence(row, template="chat", tokenizer=tokenizer, seq_length=160) for row in ROWS]


@pytest.fixture
def model_folder(llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Callable[[str], Path]:
    """``model_folder(name)`` -> a models directory's folder with the model and its tokenizer."""

    def save(name: str) -> Path:
        folder = tmp_path / "models" / name
        llama.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def progress(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    monkeypatch.setattr(stage_io, "_emit", messages.append)
    return messages


@pytest.fixture
def bench(tmp_path: Path, model_folder: Callable[[str], Path], progress: list[dict[str, Any]]) -> Bench:  # noqa: ARG001
    return Bench(tmp_path, model_folder("tiny").parent)
