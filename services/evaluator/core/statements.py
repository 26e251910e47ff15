"""What the figures of a run mean, in plain words and from the figures themselves."""

from __future__ import annotations

import math
from typing import Final

from privcode.results import BenchmarkScore, CanaryAudit, PrivacyReceipt, Rate, SamplerEvidence


def exact(value: float) -> str:
    """All digits of a figure that was given, so that it reads the same everywhere: ``3.1415``, ``4``, ``1e-5``."""
    return repr(value).removesuffix(".0").replace("e-0", "e-")


def round_up(value: float, *, digits: int = 4) -> str:
    """A spent epsilon: never shown smaller than it is."""
    factor = 10**digits
    # A step of the accountant's last bit is no reason to go up by a whole digit.
    return f"{math.ceil(value * factor - 1e-6) / factor:.{digits}f}".rstrip("0").removesuffix(".")


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def rate(figure: Rate) -> str:
    """``3 of 20 (15.0 %; 95 % interval 5.2 % to 36.0 %)``."""
    if figure.value is None:
        return "unknown: none could be counted"
    interval = f"95 % interval {percent(figure.low)} to {percent(figure.high)}"
    return f"{figure.successes} of {figure.n} ({percent(figure.value)}; {interval})"


def guarantee(receipt: PrivacyReceipt) -> str:
    epsilon, delta = round_up(receipt.epsilon_spent), exact(receipt.plan.target_delta)
    factor = f"{math.exp(receipt.epsilon_spent):,.1f}" if receipt.epsilon_spent < 20 else f"e^{epsilon}"
    return (
        f"Whether any one unit was in the data set or not changes the probability of whatever models and data this job "
        f"releases by at most a factor of {factor} (e to the power of epsilon = {epsilon}) and an added "
        f"delta = {delta}. The unit is {receipt.unit}. This holds whatever anyone does with them later on."
    )


def sampler(evidence: SamplerEvidence) -> str:
    """``1,000 test lots before training: 8.02 units on average (expected 8), ...``."""
    return (
        f"{evidence.test_lots:,} test lots before training: {evidence.mean_lot:.4g} units on average (expected "
        f"{evidence.expected_mean_lot:.4g}), variance {evidence.lot_variance:.4g} (expected "
        f"{evidence.expected_lot_variance:.4g}), p = {evidence.p_value:.2g}"
    )


def no_guarantee() -> str:
    return (
        "This job gives NO PRIVACY GUARANTEE. The model was fine-tuned on the private data without differential "
        "privacy: it may repeat any record word for word. Nothing of it may be released. It is an upper bound, "
        "to compare others with."
    )


def partial_guarantee(receipt: PrivacyReceipt) -> str:
    epsilon, delta = round_up(receipt.epsilon_spent), exact(receipt.plan.target_delta)
    return (
        "The guarantee of the training with differential privacy DOES NOT COVER the training before it: that one used "
        "the masked private data without privacy, and masking removes only what it recognises. So nothing of this job "
        f"may be released. For the second training alone epsilon = {epsilon} at delta = {delta} holds; the budget is "
        "charged for it."
    )


def no_filters() -> str:
    return (
        "Nothing was filtered: no candidate was executed, none was compared with its prompt. Every one with a complete "
        "code block was kept, whether it works or not."
    )


def signal_to_noise(receipt: PrivacyReceipt) -> str | None:
    """A warning where the noise is larger than the largest possible signal, else None."""
    if receipt.signal_to_noise >= 1:
        return None
    plan = receipt.plan
    return (
        f"The noise outweighs the signal: this run proves the machinery, not the utility. An expected batch of "
        f"{plan.expected_batch} against a noise multiplier of {plan.noise_multiplier:.3f} over "
        f"{receipt.trainable_parameters:,} trainable parameters is a ratio of {receipt.signal_to_noise:.3g}; at 1 the "
        f"noise is as large as the largest possible sum of clipped gradients. More data, larger batches or a "
        f"smaller adapter raise it."
    )


def execution_filter(*, time_limit_s: float) -> str:
    return (
        f"A candidate ran if its program ended with exit code 0 within {exact(time_limit_s)} s. Most candidates only "
        "define a function, and a function that nobody calls ends with exit code 0: the filter shows that the code "
        "parses and loads, not that it does what the problem asks."
    )


def comparison(*, base: BenchmarkScore, tuned: BenchmarkScore) -> str:
    """Whether the difference of two scores is more than chance; overlapping intervals are called within noise."""
    first, second = base.pass_at_1, tuned.pass_at_1
    if first.value is None or second.value is None:
        return "There is nothing to compare: the sandbox could not run the tasks."
    scores = f"Base {percent(first.value)}, tuned {percent(second.value)}"
    if first.low <= second.high and second.low <= first.high:
        return f"{scores}: the 95 % intervals overlap, so the difference is within noise."
    direction = "better" if second.value > first.value else "worse"
    return f"{scores}: the 95 % intervals do not overlap; the tuned model is {direction}."


NO_CANARIES: Final = (
    "No canaries were planted, so this run says nothing about leakage. A canary_rate of 1 or more plants them."
)


def canaries(audit: CanaryAudit, *, guaranteed: bool) -> str:
    """What the audit's rate says; ``guaranteed``: whether the accounting says anything about the audited models."""
    if not audit.injected:
        return NO_CANARIES
    return (
        f"{audit.leakage.successes} of {audit.leakage.n} planted canaries were found, each planted "
        f"{'once' if audit.canary_rate == 1 else f'{audit.canary_rate} times'} and asked for with {audit.prompts} "
        f"prompts of {audit.samples_per_prompt} samples per model. "
        f"So few canaries prove little: the true rate may be anything up to "
        f"{percent(audit.leakage.high)} (95 % interval). "
        + (
            "The guarantee rests on the accounting, not on this test."
            if guaranteed
            else "No guarantee stands behind it: what this test does not find may leak all the same."
        )
    )
