"""Masking of personal data and secrets in code, measured on a labelled set."""

from __future__ import annotations

import ast
import warnings
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privcode.canaries import CanaryKind, found_in, make_canaries
from services.trainer.core.masking import PiiMasker
from services.trainer.core.masking_spans import PiiKind
from tests.unit.trainer.pii_snippets import Snippet, held_out, snippets

MASKER = PiiMasker()
PLACEHOLDERS = {
    CanaryKind.EMAIL: "<EMAIL>",
    CanaryKind.NAME: "<NAME>",
    CanaryKind.IP_ADDRESS: "<IP_ADDRESS>",
    CanaryKind.PASSWORD: "<PASSWORD>",
    CanaryKind.USER_NAME: "<USER_NAME>",
}


def _parses(code: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True


def _expected(snippet: Snippet) -> str:
    code, last = "", 0
    for start, end, kind in snippet.labels:
        code, last = f"{code}{snippet.code[last:start]}<{kind}>", end
    return code + snippet.code[last:]


def _masked_labels(snippet: Snippet, masked: str) -> Counter[str]:
    """Of a snippet with n labels: those whose placeholder stands where it belongs and whose value is gone."""
    found: Counter[str] = Counter()
    place = last = 0
    for start, end, kind in snippet.labels:
        before = snippet.code[last:start][-6:]
        at = masked.find(f"{before}<{kind}>", place)
        if at >= 0 and snippet.code[start:end] not in masked:
            found[kind] += 1
            place = at + len(before)
        last = end
    return found


def test_recall_and_precision_of_each_kind_on_the_labelled_set() -> None:
    labelled = snippets()
    assert len(labelled) >= 100
    assert len({snippet.lang for snippet in labelled}) >= 10
    there, found, placed = Counter[str](), Counter[str](), Counter[str]()
    for snippet in labelled:
        result = MASKER.mask(snippet.code, lang=snippet.lang)
        there.update(kind for _, _, kind in snippet.labels)
        found.update(_masked_labels(snippet, result.text))
        placed.update(result.counts)
    assert set(there) == set(placed) == {kind.value for kind in PiiKind}
    recall = {kind: Fraction(found[kind], there[kind]) for kind in there}
    precision = {kind: Fraction(found[kind], placed[kind]) for kind in there}
    print({kind: f"recall {found[kind]}/{there[kind]}, precision {found[kind]}/{placed[kind]}" for kind in there})
    for kind in there:
        assert recall[kind] >= {"NAME": Fraction(4, 5)}.get(kind, Fraction(19, 20)), kind
        assert precision[kind] >= Fraction(19, 20), kind


@pytest.mark.parametrize("snippet", [s for s in snippets() if not s.labels], ids=lambda s: s.code[:30])
def test_look_alikes_are_left_alone(snippet: Snippet) -> None:
    assert MASKER.mask(snippet.code, lang=snippet.lang).text == snippet.code


def test_every_value_becomes_its_placeholder_and_nothing_else_changes() -> None:
    exact = sum(MASKER.mask(s.code, lang=s.lang).text == _expected(s) for s in snippets())
    assert exact >= len(snippets()) - 5  # names that only a model can find, and a password in a bare list
    assert sum(MASKER.mask(s.code, lang=s.lang).text == _expected(s) for s in held_out()) >= len(held_out()) - 1


@pytest.mark.parametrize("kind", CanaryKind)
def test_every_canary_is_masked(kind: CanaryKind) -> None:
    for seed in range(1500):
        (canary,) = (canary for canary in make_canaries(seed) if canary.kind is kind)
        result = MASKER.mask(canary.solution, lang="python")
        assert not found_in(canary, result.text), seed
        assert result.text == canary.solution.replace(canary.value, PLACEHOLDERS[kind]), seed
        assert sum(result.counts.values()) == 1


@pytest.mark.parametrize("snippet", [s for s in snippets() if s.lang == "python"], ids=lambda s: s.code[:30])
def test_python_still_parses(snippet: Snippet) -> None:
    if _parses(snippet.code):
        assert _parses(MASKER.mask(snippet.code, lang="python").text)


@pytest.mark.parametrize(
    ("lang", "code", "masked"),
    [
        ("python", "y = a@b.weight  # a@b.weight", "y = a@b.weight  # <EMAIL>"),
        ("kotlin", 'this@Main.finish("a@b.weight")', 'this@Main.finish("<EMAIL>")'),
        ("python", 's = "\\njane@firma.de\\t10.2.3.4"', 's = "\\n<EMAIL>\\t<IP_ADDRESS>"'),
        ("python", "password = 'ab\\'c1'", "password = '<PASSWORD>'"),
        ("python", 'password = ("abc1"\n  "def2")', 'password = ("<PASSWORD>"\n  "<PASSWORD>")'),
        ("python", "password = f'{a}x1'", "password = f'{a}x1'"),
        ("python", 'def get_user_and_password():\n  return "jdoe", "pa55"', None),
        ("rust", 'let password = r#"a"b1"#; f(\'"\', "x")', 'let password = r#"<PASSWORD>"#; f(\'"\', "x")'),
        ("go", "var password = `multi1`", "var password = `<PASSWORD>`"),
        ("cobol", "password: hunter2", "password: <PASSWORD>"),
        ("PYTHON", "password = 'hunter2'", "password = '<PASSWORD>'"),
        ("python", "k = '''-----BEGIN PRIVATE KEY-----\nMIIE'''\nx = 1", "k = '''<KEY>'''\nx = 1"),
        (
            "python",
            'k = ("-----BEGIN EC PRIVATE KEY-----\\n"\n "MIIE\\n"\n "-----END EC PRIVATE KEY-----")',
            'k = ("<KEY>"\n "<KEY>"\n "<KEY>")',
        ),
        ("python", "a = '::1 ::ffff:10.1.2.3 2001:db8::1'", "a = '::1 ::ffff:<IP_ADDRESS> <IP_ADDRESS>'"),
        ("python", "a = '10.1.2.256 1.2.3.4.5 10.01.2.3'", "a = '10.1.2.256 1.2.3.4.5 10.01.2.3'"),
        ("python", "token = 'jane@firma.de'", "token = '<EMAIL>'"),
        ("", "", ""),
    ],
)
def test_details(lang: str, code: str, masked: str | None) -> None:
    expected = masked if masked is not None else code.replace("jdoe", "<USER_NAME>").replace("pa55", "<PASSWORD>")
    assert MASKER.mask(code, lang=lang).text == expected


def test_counts_are_by_kind_and_hold_no_text() -> None:
    result = MASKER.mask('a = "x@firma.de y@firma.de 10.1.2.3"', lang="python")
    assert result.counts == {"EMAIL": 2, "NAME": 0, "IP_ADDRESS": 1, "KEY": 0, "PASSWORD": 0, "USER_NAME": 0}


PARTS = st.sampled_from(
    [
        *(part for snippet in snippets() for part in snippet.code.split() if snippet.labels),
        *("'", '"', '"""', "`", "\\", "#", "//", "/*", "*/", "@", ".", ":", "=", "://", "\n", " ", "<", ">", "é"),
        *(kind.placeholder for kind in PiiKind),
        *("password", "user", "return", "def get_user():", "-----BEGIN PRIVATE KEY-----", "10.1.2.3", "a@b.cc"),
    ]
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(PARTS, max_size=30).map("".join) | st.lists(PARTS, max_size=30).map(" ".join),
    st.sampled_from(["python", "java", "javascript", "php", "shell"]),
)
def test_masked_text_is_left_as_it_is(code: str, lang: str) -> None:
    once = MASKER.mask(code, lang=lang)
    again = MASKER.mask(once.text, lang=lang)
    assert again.text == once.text
    assert not any(again.counts.values())
    if lang == "python" and _parses(code):
        assert _parses(once.text)


@pytest.mark.parametrize(
    "unit",
    [
        "a", "@", "a@", "a.", "1.", "1:", "'''", "`", "/*", "\\", "a(", "a=", "a = ", "eyJ", "http://a:", "Jane ",
        "author ", "password=", "-----BEGIN PRIVATE KEY-----", "return ", "def a(", "export ", "--a ", " ", "\n",
        "<EMAIL>", "-", "Bearer ", "[::",
    ],
)  # fmt: skip
@pytest.mark.parametrize("lang", ["python", "java", "shell"])
def test_time_is_linear_in_hostile_text(unit: str, lang: str) -> None:
    # A quadratic pattern takes many minutes on this, and the test's own time limit ends it.
    text = unit * (200_000 // len(unit))
    assert MASKER.mask(text, lang=lang).text
