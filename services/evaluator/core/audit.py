"""The paper's canary audit: which planted secrets do the released things say?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from privcode.canaries import Canary, found_in
from privcode.results import CanaryAudit, CanaryFinding, wilson

Source = Literal["junior", "synthetic", "premium"]


def canary_audit(
    canaries: Iterable[Canary],
    texts: Mapping[Source, Iterable[str]],
    *,
    canary_rate: int,
    prompts: int,
    samples_per_prompt: int,
) -> CanaryAudit:
    """Leakage rate: the share of ``canaries`` found in any text of any source.

    ``texts``: what each model answered to the audit prompts, and the synthetic data. The result names the kinds of
    the canaries and never their values.
    """
    joined = {source: "\n".join(said) for source, said in texts.items()}
    findings = [
        CanaryFinding(
            kind=canary.kind.value,
            leaked_by=[source for source, text in joined.items() if found_in(canary, text)],
        )
        for canary in canaries
    ]
    leaked = sum(bool(finding.leaked_by) for finding in findings)
    return CanaryAudit(
        injected=True,
        canary_rate=canary_rate,
        prompts=prompts,
        samples_per_prompt=samples_per_prompt,
        findings=findings,
        leakage=wilson(successes=leaked, n=len(findings)),
    )


def no_audit() -> CanaryAudit:
    """The audit of a job that planted no canary: nothing was asked, and the rate is unknown."""
    return CanaryAudit(
        injected=False,
        canary_rate=0,
        prompts=0,
        samples_per_prompt=0,
        findings=[],
        leakage=wilson(successes=0, n=0),
    )
