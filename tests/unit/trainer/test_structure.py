from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privcode.languages import LANGUAGES
from services.trainer.core import grammars
from services.trainer.core.grammars import SYNTAX, Syntax
from services.trainer.core.structure import structural_spans
from tests.unit.trainer.structure_samples import CODE, MARK, MARKED, expected_spans

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


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("lang", LANGUAGES)
def test_every_kind_of_header(lang: str, line_end: str) -> None:
    marked = MARKED[lang].replace("\n", line_end)
    assert structural_spans(marked.replace(MARK, ""), lang=lang) == expected_spans(marked)


def test_every_language_of_a_dataset_has_its_syntax() -> None:
    assert {"python", *SYNTAX} == set(LANGUAGES) == set(CODE)


@pytest.mark.parametrize("lang", sorted(SYNTAX))
def test_a_sample_shows_every_pattern_of_its_language(lang: str) -> None:
    for header in SYNTAX[lang].headers:
        fewer = Syntax(grammars=SYNTAX[lang].grammars, headers=tuple(h for h in SYNTAX[lang].headers if h != header))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(grammars, "SYNTAX", {lang: fewer})
            points = grammars.header_points(CODE[lang], lang=lang)
        assert points, f"{lang} does not parse"
        assert len(points) < MARKED[lang].count(MARK), f"no header of {lang} needs {header}"


@pytest.mark.parametrize(
    ("alias", "lang"),
    [("py", "python"), ("js", "javascript"), ("ts", "typescript"), ("c++", "cpp"), ("rs", "rust"), ("bash", "shell"),
     ("sh", "shell"), ("c#", "csharp"), ("cs", "csharp"), ("Java", "java"), ("Swift", "swift")],
)  # fmt: skip
def test_other_names_of_a_language(alias: str, lang: str) -> None:
    assert structural_spans(CODE[lang], lang=alias) == structural_spans(CODE[lang], lang=lang) != []


@pytest.mark.parametrize("lang", ["", "text", "go", "console"])
def test_an_unknown_language_has_no_structure(lang: str) -> None:
    assert structural_spans(CODE["javascript"], lang=lang) == []


@pytest.mark.parametrize("lang", LANGUAGES)
def test_code_with_an_error_has_no_structure(lang: str) -> None:
    assert structural_spans(f"{CODE[lang]}\n)\n", lang=lang) == []


def headers(code: str, *, lang: str) -> list[str]:
    return [code[start:end] for start, end in structural_spans(code, lang=lang)]


def test_php_with_and_without_its_opening_tag() -> None:
    assert headers("<?php\nif ($é) { }\n", lang="php") == ["if ($é) { }"]
    assert headers("if ($é) { echo '<?php'; }", lang="php") == ["if ($é) { echo '<?php'; }"]
    page = "<p>é if (x) {</p>\n<?php if ($x): ?><b>é</b><?php endif; ?>\n"
    assert headers(page, lang="php") == ["if ($x): ?><b>é</b><?php endif; ?>"]


def test_typescript_with_markup() -> None:
    code = "function é(): Node {\n  return <p>if (x) {'{'}</p>;\n}\n"
    assert headers(code, lang="typescript") == ["function é(): Node {"]


def test_characters_of_every_width_and_a_lone_surrogate() -> None:
    code = "/* aéあ😀\ud800 */ if (x) { /* 😀 */ while (y) { } }"
    assert headers(code, lang="java") == [code[code.index("if") :], code[code.index("while") :]]


HOSTILE = {
    "nested": ("{" * 20_000, "java"),
    "nested and closed": ("if (x) {" * 5000 + "}" * 5000, "javascript"),
    "null bytes": ("\0" * 1000, "cpp"),
    "comments that never close": ("=>/*else " * 5000, "cpp"),
    "a here-document at every token": ("<" * 40_000, "shell"),
    "operators that begin and end comments": ("*/ <<" * 3000, "swift"),
    "raw strings that never close": ('r##"' * 10_000, "rust"),
    "too large": ("if (x) { }\n" * 5000, "cpp"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_code_is_given_up(name: str) -> None:
    code, lang = HOSTILE[name]
    spans = structural_spans(code, lang=lang)
    assert spans == ([(8 * n, len(code)) for n in range(5000)] if name == "nested and closed" else [])
    assert structural_spans(CODE[lang], lang=lang) == expected_spans(MARKED[lang])  # the parser starts afresh


def fragments(lang: str) -> st.SearchStrategy[str]:
    """The sample with something put in and something cut out."""
    code = CODE[lang]
    noise = st.text(alphabet=st.sampled_from("if (x){}:;\"'`/*#<>\n\r\té😀\0\ud800\ufeff"), max_size=8)
    return st.builds(
        lambda start, size, inserted: code[:start] + inserted + code[start + size :],
        st.integers(0, len(code)), st.integers(0, 20), noise,
    )  # fmt: skip


@pytest.mark.parametrize("lang", LANGUAGES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_spans_lie_within_the_code_on_one_line(lang: str, data: st.DataObject) -> None:
    code = data.draw(fragments(lang))
    spans = structural_spans(code, lang=lang)
    assert spans == sorted(set(spans))
    for start, end in spans:
        assert 0 <= start < end <= len(code)
        assert not set("\r\n") & set(code[start:end])
        assert end == len(code) or code[end] in "\r\n"
        assert not code[start].isspace()
