"""Prompt templates: one text for training and for synthesis, so that the model is asked as it was taught.

A training sequence is ``prompt_text + answer_text + tokenizer.eos_token``, tokenised with
``add_special_tokens=False``: the text has its special tokens. The ``qa`` template is the paper's
``Question: {problem}\\n\\nAnswer: {solution}`` (arXiv 2512.05459). The space after ``Answer:`` belongs to the answer,
because the usual byte-level BPE vocabularies join it to the first word of what follows.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from privcode.errors import StageFailed
from privcode.specs import PromptTemplate


def prompt_text(problem: str, *, template: PromptTemplate, tokenizer: PreTrainedTokenizerBase) -> str:
    """Everything up to where the answer begins, special tokens included.

    Raises :class:`StageFailed` (``no_chat_template``) for ``chat`` with a tokenizer that has no chat template.
    """
    if template == "qa":
        return f"{_opening_token(tokenizer)}Question: {problem}\n\nAnswer:"
    require_chat_template(tokenizer)
    text: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": problem}], tokenize=False, add_generation_prompt=True
    )
    return text


def _opening_token(tokenizer: PreTrainedTokenizerBase) -> str:
    # Llama, Gemma and DeepSeek texts begin with a token of their own, Qwen and SmolLM2 texts don't, whatever
    # ``bos_token`` says: what counts is what the tokenizer itself puts there.
    return tokenizer.bos_token if tokenizer.bos_token_id in tokenizer("")["input_ids"] else ""


def require_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise :class:`StageFailed` (``no_chat_template``) unless the tokenizer can write a conversation."""
    if not tokenizer.chat_template:
        raise StageFailed(
            "the model's tokenizer has no chat template; use prompt_template 'qa' or an instruct model",
            code="no_chat_template",
        )


def answer_text(solution: str, *, lang: str, template: PromptTemplate) -> str:
    """The solution as a fenced code block, as it follows :func:`prompt_text` with the same template."""
    return f"{_opening(lang=lang, template=template)}{solution}\n```"


def answer_code_span(solution: str, *, lang: str, template: PromptTemplate) -> tuple[int, int]:
    """Start and end, in characters, of the solution within its :func:`answer_text`."""
    start = len(_opening(lang=lang, template=template))
    return start, start + len(solution)


def _opening(*, lang: str, template: PromptTemplate) -> str:
    return f"{' ' if template == 'qa' else ''}```{lang}\n"


def prompt_ids(
    prompts: Sequence[str], *, tokenizer: PreTrainedTokenizerBase, context: int, max_new_tokens: int
) -> list[list[int]]:
    """Token ids of complete prompts; no special token is added.

    Raises :class:`StageFailed` (``prompt_too_long``) if a prompt and ``max_new_tokens`` together exceed ``context``
    tokens, and ``empty_prompt`` for a prompt without any.
    """
    encoded: list[list[int]] = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    for index, ids in enumerate(encoded):
        if not ids:
            raise StageFailed(f"prompt {index} is empty", code="empty_prompt")
        if len(ids) + max_new_tokens > context:
            raise StageFailed(
                f"prompt {index} has {len(ids)} tokens; with max_new_tokens {max_new_tokens} that exceeds the model's "
                f"context of {context}",
                code="prompt_too_long",
            )
    return encoded
