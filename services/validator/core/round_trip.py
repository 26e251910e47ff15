"""Stage 5 (method.md): which candidates' code, described by a model, comes back to the problem it was written for."""

from __future__ import annotations

from collections.abc import Sequence

from privcode.code_blocks import first_code_block
from privcode.results import Candidate, ExecutedCandidate, Outcome, ScoredCandidate, SyntheticPair


def passed(candidates: Sequence[ExecutedCandidate]) -> list[ExecutedCandidate]:
    """The candidates that ran to the end."""
    return [candidate for candidate in candidates if candidate.outcome is Outcome.PASSED]


def judge(
    candidates: Sequence[ExecutedCandidate], *, descriptions: Sequence[str | None], f1: Sequence[float], tau: float
) -> list[ScoredCandidate]:
    """One verdict per candidate: kept if its F1 is at least ``tau``. ``f1`` has a score for each description that
    is not None, in order."""
    scores = iter(f1)
    verdicts = []
    for candidate, description in zip(candidates, descriptions, strict=True):
        score = next(scores) if description is not None else None
        kept = score is not None and score >= tau
        verdicts.append(
            ScoredCandidate(
                id=candidate.id,
                problem=candidate.problem,
                code=candidate.code,
                description=description,
                f1=score,
                kept=kept,
                reason="kept" if kept else "no_description" if score is None else "below_tau",
            )
        )
    return verdicts


def synthetic_pairs(
    candidates: Sequence[ExecutedCandidate], *, verdicts: Sequence[ScoredCandidate]
) -> list[SyntheticPair]:
    """The rows of the released data set: the candidates that are kept."""
    return [
        SyntheticPair(problem=candidate.problem, solution=candidate.code, lang=candidate.language)
        for candidate, verdict in zip(candidates, verdicts, strict=True)
        if verdict.kept
    ]


def unfiltered_pairs(candidates: Sequence[Candidate]) -> list[SyntheticPair]:
    """What is kept where nothing is filtered: the first code block of each candidate that has one, run or not."""
    blocks = [(candidate, first_code_block(candidate.completion)) for candidate in candidates]
    return [
        SyntheticPair(problem=candidate.problem, solution=block.code, lang=block.language)
        for candidate, block in blocks
        if block is not None
    ]
