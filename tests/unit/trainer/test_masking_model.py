"""The token classification model of the masker: a BERT of one layer, taught here with the labels of StarPII."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

from privcode.errors import InvalidInput
from services.trainer.core.masking import PiiMasker
from services.trainer.core.masking_model import PiiTagger

KINDS = ("AMBIGUOUS", "EMAIL", "IP_ADDRESS", "KEY", "NAME", "PASSWORD", "USERNAME")
LABELS = ["O", *(f"{position}-{kind}" for kind in KINDS for position in "BI")]
CHUNK = 32
# A value is a B- and an I- token; every other word is O.
VALUES = {
    "NAME": "Zsofia Adebisi",
    "PASSWORD": "xkcd horse",
    "USERNAME": "wyrm lord",
    "AMBIGUOUS": "maybe perhaps",
    "KEY": "qqq www",
}
OTHERS = ["x", "y", "the", "sat", "with", "meeting", "return", "=", "(", ")", '"', "#", ".", ",", "\n", "[UNK]"]


def _save_tokenizer(folder: Path, words: list[str]) -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    # As a byte-level tokenizer does: the space belongs to the word after it.
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\w+| ?[^\w\s]|\s"), behavior="isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]"
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def _save_model(folder: Path, *, labels: list[str], taught: bool = True) -> Path:
    tokens = [word for value in VALUES.values() for word in value.split()] + [
        word for word in OTHERS if word != "[UNK]"
    ]
    tokenizer = _save_tokenizer(folder, [form for token in tokens for form in (token, f" {token}")])
    number = {label: index for index, label in enumerate(labels)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertForTokenClassification(
            BertConfig(
                vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                intermediate_size=32, max_position_embeddings=CHUNK, num_labels=len(labels),
                id2label=dict(enumerate(labels)), label2id=number, hidden_dropout_prob=0.0,
                initializer_range=0.02 if taught else 1.0,
            )
        )  # fmt: skip
        if taught:
            _teach(model, tokenizer, number)
    model.save_pretrained(folder)
    return folder


def _teach(model: BertForTokenClassification, tokenizer: PreTrainedTokenizerFast, number: dict[str, int]) -> None:
    label_of = {
        word: number[f"{position}-{kind}"]
        for kind, value in VALUES.items()
        for position, word in zip("BI", value.split(), strict=True)
    }
    draw = random.Random(0)
    vocabulary = {token_id: token for token, token_id in tokenizer.get_vocab().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        token_ids = [draw.randrange(len(vocabulary)) for _ in range(CHUNK)]
        labels = [label_of.get(vocabulary[token_id].strip(), 0) for token_id in token_ids]
        loss = model(input_ids=torch.tensor([token_ids]), labels=torch.tensor([labels])).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save_model(tmp_path_factory.mktemp("starpii"), labels=LABELS)


@pytest.fixture(scope="module")
def masker(folder: Path) -> PiiMasker:
    return PiiMasker(model=folder)


@pytest.fixture(scope="module")
def wild_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights: it marks anything."""
    return _save_model(tmp_path_factory.mktemp("wild"), labels=LABELS, taught=False)


@pytest.fixture(scope="module")
def wild(wild_folder: Path) -> PiiMasker:
    return PiiMasker(model=wild_folder)


@pytest.mark.parametrize(
    ("code", "masked"),
    [
        ("# x with Zsofia Adebisi sat", "# x with <NAME> sat"),
        ('x = "the xkcd horse sat"', 'x = "the <PASSWORD> sat"'),
        ("# wyrm lord, qqq www", "# <USER_NAME>, <KEY>"),
        ('x = "Zsofia Adebisi"', 'x = "<NAME>"'),
        ("# maybe perhaps", "# maybe perhaps"),  # AMBIGUOUS
        ("Zsofia = x # the meeting", "Zsofia = x # the meeting"),  # a variable: the code would not parse
        ("# Zsofia Adebisi a.b@firma.de", "# <NAME> <EMAIL>"),  # with the rules
        ("# Zsofia Adebisi\n# xkcd horse", "# <NAME>\n# <PASSWORD>"),
        ("", ""),
    ],
)
def test_what_the_model_marks_is_masked_in_literals_and_comments(masker: PiiMasker, code: str, masked: str) -> None:
    assert masker.mask(code, lang="python").text == masked


def test_rules_alone_do_not_find_it() -> None:
    assert PiiMasker().mask("# x with Zsofia Adebisi sat", lang="python").text == "# x with Zsofia Adebisi sat"


@pytest.mark.parametrize("offset", range(CHUNK))
def test_long_texts_go_through_in_chunks(masker: PiiMasker, offset: int) -> None:
    code = "# " + " ".join(["x"] * offset + [*["the"] * 11, "Zsofia Adebisi", *["sat"] * 12] * 8)
    result = masker.mask(code, lang="python")
    assert result.text == code.replace("Zsofia Adebisi", "<NAME>")
    assert result.counts["NAME"] == 8


def test_a_token_takes_the_class_of_the_chunk_that_sees_most_around_it(wild_folder: Path) -> None:
    draw = random.Random(0)
    words = [draw.choice(["x", "y", "the", "sat", "qqq"]) for _ in range(80)]
    text = " ".join(words)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(wild_folder)
    model = BertForTokenClassification.from_pretrained(wild_folder).eval()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(words)
    best: dict[int, tuple[int, str]] = {}
    for start in range(0, len(ids), CHUNK - CHUNK // 4):
        chunk = ids[start : start + CHUNK]
        with torch.no_grad():
            classes = model(input_ids=torch.tensor([chunk])).logits[0].argmax(-1).tolist()
        for rank, number in enumerate(classes):
            context = min(rank, len(chunk) - 1 - rank)
            if context >= best.get(start + rank, (-1, ""))[0]:
                best[start + rank] = (context, LABELS[number][2:])
        if start + CHUNK >= len(ids):
            break
    kinds = [best[place][1].replace("USERNAME", "USER_NAME").replace("AMBIGUOUS", "") for place in range(len(ids))]
    assert len(set(kinds)) > 2
    marked = [""] * len(text)
    for span in PiiTagger(wild_folder).find(text):
        marked[span.start : span.end] = [span.kind.value] * (span.end - span.start)
    starts = [sum(len(word) + 1 for word in words[:place]) for place in range(len(words))]
    assert [marked[start] for start in starts] == kinds


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([*OTHERS, *(w for v in VALUES.values() for w in v.split()), "<NAME>"]), max_size=60))
def test_masked_text_is_left_as_it_is_whatever_the_model_says(wild: PiiMasker, words: list[str]) -> None:
    once = wild.mask(" ".join(words), lang="text")
    assert wild.mask(once.text, lang="text").text == once.text


def test_a_model_that_marks_no_personal_data_is_refused(tmp_path: Path) -> None:
    folder = _save_model(tmp_path / "sentiment", labels=["POSITIVE", "NEGATIVE"], taught=False)
    with pytest.raises(InvalidInput, match="sentiment") as refused:
        PiiMasker(model=folder)
    assert refused.value.code == "not_a_pii_model"
