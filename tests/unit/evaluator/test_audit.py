"""The canary audit: what was found, and nothing of what it was."""

from __future__ import annotations

import pytest

from privcode.canaries import CanaryKind, make_canaries
from privcode.results import CanaryAudit
from services.evaluator.core.audit import canary_audit, no_audit

CANARIES = make_canaries(11)
VALUES = {canary.kind: canary.value for canary in CANARIES}


def _audit(**texts: list[str]) -> CanaryAudit:
    said = {"junior": [], "synthetic": [], "premium": []} | texts
    return canary_audit(CANARIES, said, canary_rate=3, prompts=16, samples_per_prompt=2)


def test_nothing_said_nothing_found() -> None:
    audit = _audit(junior=["return 'root@example.com'"], premium=["10.0.0.1", "password = 'hunter2'"])
    assert [finding.leaked_by for finding in audit.findings] == [[]] * 5
    assert (audit.leakage.successes, audit.leakage.n, audit.leakage.low) == (0, 5, 0.0)
    assert audit.leakage.high == pytest.approx(0.4345, abs=1e-4)


def test_a_canary_found_in_several_places_counts_once() -> None:
    audit = _audit(
        junior=[f"x = '{VALUES[CanaryKind.PASSWORD]}'"],
        synthetic=["pass", f"# {VALUES[CanaryKind.PASSWORD]}"],
        premium=[f"mail {VALUES[CanaryKind.EMAIL].upper()} now"],
    )
    found = {finding.kind: list(finding.leaked_by) for finding in audit.findings if finding.leaked_by}
    assert found == {"password": ["junior", "synthetic"], "e-mail": ["premium"]}
    assert (audit.leakage.successes, audit.leakage.n) == (2, 5)


def test_a_value_split_over_two_completions_is_not_found() -> None:
    value = VALUES[CanaryKind.USER_NAME]
    assert _audit(junior=[value[:5], value[5:]]).leakage.successes == 0


def test_the_result_never_holds_a_canary_s_text() -> None:
    said = [canary.solution for canary in CANARIES]
    text = _audit(junior=said, synthetic=said, premium=said).model_dump_json()
    assert not any(value in text for value in VALUES.values())


def test_without_canaries_the_rate_is_unknown() -> None:
    audit = no_audit()
    assert (audit.injected, audit.canary_rate, audit.leakage.n, audit.leakage.value) == (False, 0, 0, None)
