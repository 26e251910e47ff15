"""The budget: nobody can spend more than there is, whatever the timing."""

from __future__ import annotations

import threading
from functools import reduce
from types import SimpleNamespace

import pytest
from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

from privcode import jobs, ledger, submission
from privcode.accounting import epsilon_pld
from privcode.artifacts import ArtifactStore
from privcode.db.models import Dataset, Job
from privcode.db.session import SessionFactory, transaction
from privcode.errors import BudgetExceeded
from privcode.ledger import Budget
from privcode.results import PrivacyPlan
from privcode.settings import Settings


def _submit(sessions: SessionFactory, tenant: SimpleNamespace, settings: Settings, **over: object) -> Job:
    with transaction(sessions) as session:
        job, _ = submission.submit(
            session,
            tenant_id=tenant.id,
            request={**tenant.request, **over},
            models_dir=settings.models_dir,
            store=ArtifactStore(settings.artifacts_dir),
        )
        return job


def _budget(sessions: SessionFactory, tenant: SimpleNamespace) -> Budget:
    with transaction(sessions) as session:
        return ledger.budget(session, dataset=session.get_one(Dataset, tenant.dataset))


def test_a_job_reserves_its_epsilon(sessions: SessionFactory, tenant: SimpleNamespace, settings: Settings) -> None:
    _submit(sessions, tenant, settings, privacy={"target_epsilon": 2.0})
    left = _budget(sessions, tenant)
    assert left.epsilon_spent == 0
    assert 1.9 < left.epsilon_committed <= 2.0


def test_composition_is_less_than_the_sum_of_the_parts(
    sessions: SessionFactory, tenant: SimpleNamespace, settings: Settings
) -> None:
    for _ in range(2):
        _submit(sessions, tenant, settings, privacy={"target_epsilon": 2.0})
    assert 2.0 < _budget(sessions, tenant).epsilon_committed < 4.0


def test_jobs_of_different_kinds_are_composed_as_one_mechanism_each(
    sessions: SessionFactory, tenant: SimpleNamespace, settings: Settings
) -> None:
    asked: list[dict[str, float]] = [
        {"target_epsilon": 1.0, "expected_batch": 16, "steps": 4},
        {"target_epsilon": 0.5, "expected_batch": 200, "steps": 50},
        {"target_epsilon": 2.0, "expected_batch": 64, "steps": 20},
    ]
    plans = [PrivacyPlan.model_validate(_submit(sessions, tenant, settings, privacy=privacy).plan) for privacy in asked]
    assert len({plan.sample_rate for plan in plans}) == len({plan.noise_multiplier for plan in plans}) == 3
    committed = _budget(sessions, tenant).epsilon_committed
    assert committed == epsilon_pld([plan.mechanism for plan in plans], target_delta=1e-5)
    assert committed == epsilon_pld([plan.mechanism for plan in reversed(plans)], target_delta=1e-5)
    assert 2.0 <= committed < 3.5
    # Without the ledger's accountant.
    distributions = [
        from_gaussian_mechanism(
            plan.noise_multiplier, sampling_prob=plan.sample_rate, value_discretization_interval=2e-4
        ).self_compose(plan.steps)
        for plan in plans
    ]
    direct = reduce(lambda one, other: one.compose(other), distributions).get_epsilon_for_delta(1e-5)
    assert committed == pytest.approx(direct, rel=0.01)


def test_what_does_not_fit_is_refused_and_leaves_nothing(
    sessions: SessionFactory, tenant: SimpleNamespace, settings: Settings
) -> None:
    with pytest.raises(BudgetExceeded, match=r"4\.5"):
        _submit(sessions, tenant, settings, privacy={"target_epsilon": 4.5})
    with transaction(sessions) as session:
        assert session.query(Job).count() == 0
    assert _budget(sessions, tenant).epsilon_committed == 0


def test_a_larger_delta_than_the_budget_is_refused(
    sessions: SessionFactory, tenant: SimpleNamespace, settings: Settings
) -> None:
    with pytest.raises(BudgetExceeded) as refused:
        _submit(sessions, tenant, settings, privacy={"target_epsilon": 1.0, "target_delta": 2e-5})
    assert (refused.value.code, refused.value.field) == ("delta_exceeds_budget", "privacy.target_delta")


@pytest.mark.parametrize("_", range(3))
def test_of_two_jobs_that_do_not_fit_together_exactly_one_is_accepted(
    sessions: SessionFactory, tenant: SimpleNamespace, settings: Settings, _: int
) -> None:
    start = threading.Barrier(4)
    outcomes: list[str] = []

    def submit() -> None:
        start.wait()
        try:
            _submit(sessions, tenant, settings, privacy={"target_epsilon": 3.9})
            outcomes.append("accepted")
        except BudgetExceeded:
            outcomes.append("refused")

    threads = [threading.Thread(target=submit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["accepted", "refused", "refused", "refused"]
    assert _budget(sessions, tenant).epsilon_committed <= 4.0


def test_a_job_is_charged_the_steps_it_took(
    sessions: SessionFactory, tenant: SimpleNamespace, settings: Settings
) -> None:
    job = _submit(sessions, tenant, settings, privacy={"target_epsilon": 3.0, "steps": 10})
    reserved = _budget(sessions, tenant).epsilon_committed
    with transaction(sessions) as session:
        ledger.settle(session, job_id=job.id, steps_taken=3)
    after = _budget(sessions, tenant)
    assert 0 < after.epsilon_spent < reserved
    assert after.epsilon_spent == after.epsilon_committed
    with transaction(sessions) as session:
        ledger.settle(session, job_id=job.id, steps_taken=0)
    assert _budget(sessions, tenant) == after, "settling twice changes nothing"


def test_a_job_without_a_step_is_charged_nothing(
    sessions: SessionFactory, tenant: SimpleNamespace, settings: Settings
) -> None:
    job = _submit(sessions, tenant, settings)
    with transaction(sessions) as session:
        jobs.request_cancel(session, job.id)
    assert _budget(sessions, tenant).epsilon_committed == 0
    _submit(sessions, tenant, settings)


def test_repeated_steps_need_budget_of_their_own(
    sessions: SessionFactory, tenant: SimpleNamespace, settings: Settings
) -> None:
    job = _submit(sessions, tenant, settings, privacy={"target_epsilon": 3.0, "steps": 10})
    plan = PrivacyPlan.model_validate(job.plan)

    def repeat(steps: int) -> None:
        with transaction(sessions) as session:
            ledger.raise_reservation(session, dataset_id=tenant.dataset, job_id=job.id, plan=plan, steps=steps)

    before = _budget(sessions, tenant).epsilon_committed
    repeat(5)
    assert _budget(sessions, tenant).epsilon_committed == before, "a reservation is never lowered"
    repeat(12)
    raised = _budget(sessions, tenant).epsilon_committed
    assert before < raised <= 4.0
    with pytest.raises(BudgetExceeded):
        repeat(1000)
    assert _budget(sessions, tenant).epsilon_committed == raised
