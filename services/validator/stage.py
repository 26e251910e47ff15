"""Child process of the validator worker: ``python -m services.validator.stage FOLDER`` runs ``round_trip`` or
``collect``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from lm.engine import make_generator
from lm.models import load_tokenizer, resolve_model
from privcode.results import Candidate, ExecutedCandidate
from privcode.specs import RoundTripSpec
from privcode.stage_io import Stage, run_child
from services.validator.core.describe import Program, describe
from services.validator.core.round_trip import judge, passed, synthetic_pairs, unfiltered_pairs


def run_round_trip(stage: Stage) -> None:
    """``executed`` -> ``scored`` and ``synthetic``. Progress counts each candidate twice: described, scored.

    Without a candidate that ran, no model is loaded and both outputs are empty.
    """
    torch.set_num_threads(stage.environment.threads)
    candidates = passed(stage.read_models("executed", ExecutedCandidate))
    total = 2 * len(candidates)
    stage.progress(0, total)
    descriptions = _describe(stage, candidates, total=total) if candidates else []
    f1 = _score(stage, candidates, descriptions=descriptions, total=total) if any(descriptions) else []
    stage.progress(total, total)

    verdicts = judge(candidates, descriptions=descriptions, f1=f1, tau=stage.spec.section(RoundTripSpec).tau)
    stage.write_rows("scored", verdicts)
    stage.write_rows("synthetic", synthetic_pairs(candidates, verdicts=verdicts))
    reasons = Counter(verdict.reason for verdict in verdicts)
    stage.metric("described", len(f1))
    stage.metric("kept", reasons["kept"])
    stage.metric("below_tau", reasons["below_tau"])
    stage.metric("no_description", reasons["no_description"])


def run_collect(stage: Stage) -> None:
    """``candidates`` -> ``synthetic`` without a filter: each one with a code block. Progress counts candidates."""
    candidates = stage.read_models("candidates", Candidate)
    pairs = unfiltered_pairs(candidates)
    stage.write_rows("synthetic", pairs)
    stage.progress(len(candidates), len(candidates))
    stage.metric("kept", len(pairs))
    stage.metric("no_code", len(candidates) - len(pairs))


def _describe(stage: Stage, candidates: Sequence[ExecutedCandidate], *, total: int) -> list[str | None]:
    spec, runtime = stage.spec.section(RoundTripSpec), stage.spec.runtime
    describer = resolve_model(spec.describer, models_dir=Path(stage.environment.models_dir))
    return describe(
        [Program(language=candidate.language, code=candidate.code) for candidate in candidates],
        spec=spec,
        tokenizer=load_tokenizer(describer),
        generator=make_generator(describer, engine=runtime.engine, batch_size=runtime.generate_batch),
        on_done=lambda done: stage.progress(done, total),
    )


def _score(
    stage: Stage, candidates: Sequence[ExecutedCandidate], *, descriptions: Sequence[str | None], total: int
) -> list[float]:
    # Imported only here: it is slow, and a job may come without anything to score.
    from services.validator.core.score import BertScorer

    described = [
        (description, candidate.problem)
        for description, candidate in zip(descriptions, candidates, strict=True)
        if description is not None
    ]
    scorer = BertScorer(
        resolve_model(stage.spec.section(RoundTripSpec).scorer, models_dir=Path(stage.environment.models_dir)),
    )
    return scorer.f1(
        [description for description, _ in described],
        [problem for _, problem in described],
        on_done=lambda done: stage.progress(len(candidates) + done, total),
    )


if __name__ == "__main__":
    run_child({"round_trip": run_round_trip, "collect": run_collect})
