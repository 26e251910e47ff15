from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from lm.models import load_tokenizer
from lm.prompting import answer_code_span, answer_text, prompt_text
from privcode.errors import StageFailed
from privcode.specs import PromptTemplate

SOLUTION = "def f():\n    return 1"


@pytest.fixture
def tokenizer(tiny_llama: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(tiny_llama)


def test_qa_is_the_papers_text(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = prompt_text("Add.", template="qa", tokenizer=tokenizer)
    assert prompt == "Question: Add.\n\nAnswer:"
    text = prompt + answer_text(SOLUTION, lang="python", template="qa")
    assert text == f"Question: Add.\n\nAnswer: ```python\n{SOLUTION}\n```"


def test_qa_begins_with_the_token_that_the_tokenizer_itself_would_add(tokenizer: PreTrainedTokenizerBase) -> None:
    from tokenizers.processors import TemplateProcessing

    start = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{start[0]} $A", special_tokens=[start])
    prompt = prompt_text("Add.", template="qa", tokenizer=tokenizer)
    once = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert once == tokenizer("Question: Add.\n\nAnswer:")["input_ids"]
    assert once.count(tokenizer.bos_token_id) == 1


def test_chat_is_the_models_own_template_with_the_answer_open(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = prompt_text("Add.", template="chat", tokenizer=tokenizer)
    assert prompt == "<|im_start|>user\nAdd.<|im_end|>\n<|im_start|>assistant\n"
    assert answer_text(SOLUTION, lang="python", template="chat") == f"```python\n{SOLUTION}\n```"


def test_chat_without_a_template_is_an_error(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = None
    with pytest.raises(StageFailed) as caught:
        prompt_text("Add.", template="chat", tokenizer=tokenizer)
    assert caught.value.code == "no_chat_template"


@pytest.mark.parametrize("template", ["qa", "chat"])
@pytest.mark.parametrize("solution", [SOLUTION, "", "python", "```\n```"])
def test_the_code_span_is_the_solution(template: PromptTemplate, solution: str) -> None:
    start, end = answer_code_span(solution, lang="python", template=template)
    assert answer_text(solution, lang="python", template=template)[start:end] == solution
    assert end == len(answer_text(solution, lang="python", template=template)) - len("\n```")
