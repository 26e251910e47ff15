from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.trainer.core.structure import structural_spans

GOLDEN = {
    "every kind": (
        "class Stack:\n"
        "    @property\n"
        "    def top(self):\n"
        "        for item in self:  # first\n"
        "            if item:\n"
        "                return item\n"
        "            elif not item:\n"
        "                pass\n"
        "            else:\n"
        "                pass\n"
        "        while True:\n"
        "            x = [i for i in y if i]\n"
        "\n"
        "async def go():\n"
        "    async for a in b: pass\n",
        [
            "class Stack:",
            "def top(self):",
            "for item in self:  # first",
            "if item:",
            "elif not item:",
            "while True:",
            "async def go():",
            "async for a in b: pass",
        ],
    ),
    "a header over two lines": ("def f(a,\n      b):\n    pass", ["def f(a,"]),
    "columns are characters": ("ä = 'ö'; ß = 1\nif ä:\n  é = 'ü'\n  if é: pass", ["if ä:", "if é: pass"]),
    "after a wide character on its line": ("if 'é': x = 1\nelse:\n if x: pass", ["if 'é': x = 1", "if x: pass"]),
    "windows and old mac line ends": ("if a:\r\n  if b:\r    c = 1\r\n", ["if a:", "if b:"]),
    "form feed is no line end": ("x = 1\n\x0cif x:\n  pass", ["if x:"]),
    "no structure": ("x = 1", []),
    "unparsable": ("def f(:\n", []),
    "null byte": ("if x:\n  \0", []),
    "nested too deep": ("(" * 5000 + ")" * 5000, []),
    "empty": ("", []),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_header_lines(name: str) -> None:
    code, headers = GOLDEN[name]
    assert [code[start:end] for start, end in structural_spans(code, lang="python")] == headers


def test_other_languages_have_none_yet() -> None:
    assert structural_spans("if (x) { y(); }", lang="java") == []
    assert structural_spans("if x:\n  pass", lang="rust") == []


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=st.sampled_from("if x:\n\r\té;defclass() ="), max_size=40))
def test_spans_lie_within_the_code_on_one_line(text: str) -> None:
    code = f"if x:\n  pass\n{text}"
    for start, end in structural_spans(code, lang="python"):
        assert 0 <= start < end <= len(code)
        assert not set("\r\n") & set(code[start:end])
