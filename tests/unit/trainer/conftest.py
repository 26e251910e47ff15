"""A Llama of two layers with a byte-pair tokenizer of its own, made in memory."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from privcode.specs import LoraSpec
from services.trainer.core.lora import add_adapter, trainable
from services.trainer.core.sequences import TokenSequence, make_sequence

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

ROWS = [
    {
        "problem": "Add two numbers.",
        "solution": "def add(a, b):\n    return a + b\n",
        "lang": "python",
    },
    {
        "problem": "Sum of the even numbers of a list, zero where there is none.",
        "solution": "def even(xs):\n    n = 0\n    for x in xs:\n        if x % 2 == 0:\n            n += x\n",
        "lang": "python",
    },
    {"problem": "Say hello.", "solution": "print('hello')", "lang": "python"},
    {
        "problem": "A counter.",
        "solution": "class Counter:\n    n = 0\n\n    def up(self):\n        self.n += 1\n",
        "lang": "python",
    },
    {"problem": "Wait.", "solution": "while busy():\n    pass", "lang": "python"},
]


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


def randomise(model: PeftModel, *, seed: int = 1, std: float = 0.2) -> None:
    """Give the adapter an effect: B begins as zero, and then A has no gradient."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


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
