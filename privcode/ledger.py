"""The privacy budget of a dataset: reserve, spend, release.

A job reserves its planned mechanism before anything is queued. What counts against the budget is the PLD composition
of all reserved and spent mechanisms of the dataset, each with its own (q, sigma, steps), at the budget's delta. The
dataset's row is locked while that is computed: of two submissions that don't fit together exactly one is accepted.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from privcode.accounting import epsilon_pld
from privcode.db.models import Dataset, LedgerEntry, new_id
from privcode.errors import BudgetExceeded, NotFound
from privcode.results import Mechanism, PrivacyPlan
from privcode.states import LedgerState, require_transition


@dataclass(frozen=True)
class Budget:
    """``epsilon_spent``: composition of what was spent; ``epsilon_committed``: of that and of what running jobs
    reserved; ``epsilon_left = epsilon - epsilon_committed``. All at ``delta``."""

    epsilon: float
    delta: float
    epsilon_spent: float
    epsilon_committed: float

    @property
    def epsilon_left(self) -> float:
        return max(0.0, self.epsilon - self.epsilon_committed)


def _mechanism(entry: LedgerEntry) -> Mechanism:
    return Mechanism(
        sample_rate=entry.sample_rate, noise_multiplier=entry.noise_multiplier, steps=entry.steps
    )  # fmt: skip


def entries(session: Session, *, dataset_id: str) -> list[LedgerEntry]:
    """All entries of a dataset, oldest first, released ones included."""
    query = select(LedgerEntry).where(LedgerEntry.dataset_id == dataset_id)
    return list(session.scalars(query.order_by(LedgerEntry.created_at, LedgerEntry.id)))


def _limits(dataset: Dataset) -> tuple[float, float]:
    if dataset.budget_epsilon is None or dataset.budget_delta is None:
        raise NotFound(f"dataset {dataset.id} is public: it has no privacy budget", code="no_budget")
    return dataset.budget_epsilon, dataset.budget_delta


def budget(session: Session, *, dataset: Dataset) -> Budget:
    """Raises :class:`NotFound` (``no_budget``) for a public dataset."""
    epsilon, delta = _limits(dataset)
    rows = entries(session, dataset_id=dataset.id)
    spent = [_mechanism(row) for row in rows if row.state == LedgerState.SPENT]
    reserved = [_mechanism(row) for row in rows if row.state == LedgerState.RESERVED]
    return Budget(
        epsilon=epsilon,
        delta=delta,
        epsilon_spent=epsilon_pld(spent, target_delta=delta),
        epsilon_committed=epsilon_pld(spent + reserved, target_delta=delta),
    )


def _lock(session: Session, dataset_id: str) -> Dataset:
    query = select(Dataset).where(Dataset.id == dataset_id).with_for_update(key_share=True)
    return session.scalars(query.execution_options(populate_existing=True)).one()


def require_fits(session: Session, *, dataset: Dataset, plan: PrivacyPlan, without_job: str | None = None) -> Budget:
    """The budget as it would be with ``plan`` added. Raises :class:`BudgetExceeded` if it does not fit.

    ``without_job``: leave this job's own entry out (it is being replaced).
    """
    epsilon, delta = _limits(dataset)
    if plan.target_delta > delta:
        raise BudgetExceeded(
            f"privacy.target_delta: {plan.target_delta} is above the dataset's delta budget {delta}",
            code="delta_exceeds_budget", field="privacy.target_delta", value=plan.target_delta,
        )  # fmt: skip
    live = [
        _mechanism(row)
        for row in entries(session, dataset_id=dataset.id)
        if row.state != LedgerState.RELEASED and row.job_id != without_job
    ]
    before = epsilon_pld(live, target_delta=delta)
    after = epsilon_pld([*live, plan.mechanism], target_delta=delta)
    if after > epsilon:
        raise BudgetExceeded(
            f"privacy.target_epsilon: {plan.target_epsilon} does not fit: dataset {dataset.id} has committed "
            f"{before:.4f} of its budget {epsilon} at delta {delta}, and this job would make it {after:.4f}",
            field="privacy.target_epsilon", value=plan.target_epsilon,
        )  # fmt: skip
    return Budget(epsilon=epsilon, delta=delta, epsilon_spent=before, epsilon_committed=after)


def reserve(session: Session, *, dataset_id: str, job_id: str, plan: PrivacyPlan) -> None:
    """Reserve ``plan`` for a job; holds the dataset's row lock until the caller commits.

    Raises :class:`BudgetExceeded`; then nothing was written.
    """
    dataset = _lock(session, dataset_id)
    require_fits(session, dataset=dataset, plan=plan)
    session.add(
        LedgerEntry(
            id=new_id("led"),
            dataset_id=dataset_id,
            job_id=job_id,
            sample_rate=plan.sample_rate,
            noise_multiplier=plan.noise_multiplier,
            steps=plan.steps,
            target_delta=plan.target_delta,
            state=LedgerState.RESERVED,
        )
    )
    session.flush()


def raise_reservation(session: Session, *, dataset_id: str, job_id: str, plan: PrivacyPlan, steps: int) -> int:
    """Reserve for ``steps`` in all, when a lost attempt makes a job repeat steps. Never lowers a reservation; returns
    how many steps are reserved.

    Raises :class:`BudgetExceeded` if the repeated steps don't fit any more; the reservation stays as it was.
    """
    dataset = _lock(session, dataset_id)
    entry = _entry(session, job_id)
    if steps > entry.steps:
        more = plan.model_copy(update={"steps": steps})
        require_fits(session, dataset=dataset, plan=more, without_job=job_id)
        entry.steps = steps
        session.flush()
    return entry.steps


def settle(session: Session, *, job_id: str, steps_taken: int) -> None:
    """Charge what was really taken; a job that took no step is charged nothing. Settling twice changes nothing."""
    dataset_id = session.scalars(select(LedgerEntry.dataset_id).where(LedgerEntry.job_id == job_id)).one_or_none()
    if dataset_id is None:
        return
    _lock(session, dataset_id)
    entry = _entry(session, job_id)
    if entry.state != LedgerState.RESERVED:
        return
    state = LedgerState.SPENT if steps_taken > 0 else LedgerState.RELEASED
    require_transition(LedgerState(entry.state), state)
    entry.state = state
    entry.steps = steps_taken
    entry.settled_at = func.now()
    session.flush()


def _entry(session: Session, job_id: str) -> LedgerEntry:
    query = select(LedgerEntry).where(LedgerEntry.job_id == job_id)
    return session.scalars(query.execution_options(populate_existing=True)).one()
