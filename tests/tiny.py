"""A language model small enough to be made by a test run, and taught to play every part of the recipe.

It answers any prompt with one short Python function that runs, and as a describer it describes that function in the
form that the validator asks for. So a whole job can be shown to work without a download and within seconds.

Each token of its answers follows from the token before it alone. That is learned quickly, and holds for prompts of
any length, after the small changes that a job's training makes, and at temperature 0.8.
"""

from __future__ import annotations

import argparse
import inspect
import random
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lm.prompting import answer_text, prompt_text
from services.validator.core.describe import Program, describe_prompt

SOLUTION: Final = "def same(value):\n    return value"
DESCRIPTION: Final = " writing a Python function that returns its argument. [END]**"
CONTEXT: Final = 4096

_VOCABULARY: Final = 1024
_STEPS: Final = 90
_BATCH: Final = 6
_CHAT_TEMPLATE: Final = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_tiny_llama(folder: Path) -> None:
    """Make, teach and save the model with its tokenizer; the same weights each time on one machine."""
    text = inspect.getsource(argparse) + inspect.getsource(textwrap)
    tokenizer = _tokenizer(text)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=2,  # heads of 32, the least that vLLM runs
                num_key_value_heads=1,
                max_position_embeddings=CONTEXT,
                tie_word_embeddings=True,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        _teach(model, tokenizer, text)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer(text: str) -> PreTrainedTokenizerFast:
    # Special tokens and their roles as in SmolLM2: one token both ends and pads.
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # The answers' words often enough that each becomes one token, and the fences' lines as tokens of their own.
    backend.train_from_iterator([text, *[SOLUTION, DESCRIPTION] * 1000], trainer)
    backend.add_tokens([AddedToken("```python\n", normalized=False), AddedToken("\n```", normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<|endoftext|>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        model_max_length=CONTEXT,
        chat_template=_CHAT_TEMPLATE,
    )


def _teach(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=_STEPS)
    lessons = _lessons(tokenizer, text)
    for _ in range(_STEPS):
        pairs = [next(lessons) for _ in range(_BATCH)]
        ids = [torch.tensor(prompt + answer) for prompt, answer in pairs]
        labels = [torch.tensor([-100] * len(prompt) + answer) for prompt, answer in pairs]
        batch = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=tokenizer.pad_token_id)
        targets = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)
        loss = model(input_ids=batch, labels=targets, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def _lessons(tokenizer: PreTrainedTokenizerFast, text: str) -> Iterator[tuple[list[int], list[int]]]:
    """Prompts of every kind and many lengths around arbitrary text, each with the tokens of its answer."""
    draw = random.Random(0)
    while True:
        length = draw.choice((20, 50, 100, 400))
        start = draw.randrange(len(text) - length)
        piece = text[start : start + length]
        for template in ("qa", "chat"):
            yield _lesson(
                tokenizer,
                prompt_text(piece, template=template, tokenizer=tokenizer),
                answer_text(SOLUTION, lang="python", template=template),
            )
        program = Program(language="python", code=piece)
        yield _lesson(tokenizer, describe_prompt(program, tokenizer=tokenizer), DESCRIPTION)


def _lesson(tokenizer: PreTrainedTokenizerFast, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    asked, answered = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (prompt, answer))
    return asked, [*answered, tokenizer.eos_token_id]
