"""Masking of personal data and secrets in code, before the first training of the ``jft`` recipe (arXiv 2512.05459).

Masking is best effort and gives no guarantee. Rules find what has a form of its own (e-mail and IP addresses, keys) or
stands under a telling name (``password = "..."``, ``def get_owner(): return "..."``, ``@author``). A person's name in
free text is found only if its given name is a frequent one; a password in a list without a name is not found at all. A
token classification model finds more of these, and makes mistakes of its own. That is why what ``jft`` makes of masked
data is as private as the data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from services.trainer.core.masking_model import PiiTagger
from services.trainer.core.masking_named import find_named
from services.trainer.core.masking_patterns import find_keys, find_patterns
from services.trainer.core.masking_spans import PiiKind, Span, maskable, replace
from services.trainer.core.masking_syntax import Source, parse_source


@dataclass(frozen=True, kw_only=True)
class MaskedText:
    """``text`` with placeholders such as ``<EMAIL>``, and the number of placeholders put in, for every kind."""

    text: str
    counts: Mapping[str, int]


class PiiMasker:
    """Rules, and in addition a token classification model such as StarPII where its folder is given.

    Kept on purpose: loopback, unspecified and net mask addresses, version numbers, accounts that belong to nobody
    (``root``, ``admin``), stand-ins (``YOUR_API_KEY``, ``<token>``, ``${SECRET}``), ``git@host:`` remotes. Masked on
    purpose: private and documentation addresses, ``example.com``.

    Raises :class:`privcode.errors.InvalidInput` (``not_a_pii_model``) for a model without fast tokenizer or without a
    label that means one of :class:`PiiKind`.
    """

    def __init__(self, *, model: Path | None = None) -> None:
        self._tagger = PiiTagger(model) if model is not None else None

    def mask(self, code: str, *, lang: str) -> MaskedText:
        """Replace what is found by placeholders. In program code only literals and comments are changed, so that it
        still parses. The same text gives the same result, and a masked text is left as it is.
        """
        counts: Counter[PiiKind] = Counter(dict.fromkeys(PiiKind, 0))
        # A placeholder may set free what a neighbour hid. Each round masks at least one more character, so it ends.
        while spans := maskable(code, self._find(source := parse_source(code, lang=lang)), within=source.within):
            code, found = replace(code, spans)
            counts.update(found)
        return MaskedText(text=code, counts={kind.value: counts[kind] for kind in PiiKind})

    def _find(self, source: Source) -> Iterator[Span]:
        yield from find_keys(source)
        yield from find_named(source)
        yield from find_patterns(source)
        if self._tagger is not None:
            yield from self._tagger.find(source.code)
