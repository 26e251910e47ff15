"""One contract for all engines of per-example gradients, against plain peft and one backward pass an example.

fastDP comes from Git and not from a package index: its cases run where ``fastDP`` can be imported.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, get_args

import pytest
import torch
from engine_cases import (
    KL_WEIGHT,
    MODELS,
    POISON,
    Precision,
    clipped,
    distance,
    example_gradients,
    flat_sum,
    half_clipped,
    losses_of,
    make_batch,
    make_model,
)
from peft import PeftModel
from torch import Tensor, nn

from privcode.errors import StageFailed
from privcode.specs import Clipping, PerExampleEngineName
from services.trainer.core import engines as engines_module
from services.trainer.core.engine import ClippingRule
from services.trainer.core.engines import make_engine
from services.trainer.core.privsa import per_example_loss
from services.trainer.core.sequences import Row, collate

pytestmark = [
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),
    pytest.mark.filterwarnings("ignore:Using a non-full backward hook"),
]

ENGINES = get_args(PerExampleEngineName)


@pytest.fixture(params=ENGINES)
def engine_name(request: pytest.FixtureRequest) -> PerExampleEngineName:
    if request.param == "fastdp" and find_spec("fastDP") is None:
        pytest.skip("fastDP is not installed (services/trainer/requirements-gpu.txt): ITS ENGINE IS NOT TESTED")
    return request.param


@pytest.mark.parametrize("style", ["flat", "automatic"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("kind", MODELS)
def test_sum_is_that_of_single_examples(
    engine_name: PerExampleEngineName, kind: str, checkpointing: bool, dropout: float, style: Clipping
) -> None:
    batch = make_batch()
    gradients = example_gradients(kind, dropout=dropout)
    rule = half_clipped(gradients, style=style)
    model = make_model(kind, dropout=dropout, checkpointing=checkpointing)
    engine = make_engine(engine_name, model)
    counts = engine.accumulate(losses_of(model, batch), rule=rule, units=batch.units)
    assert distance(flat_sum(engine, model), clipped(gradients, rule=rule)) < 1e-5
    assert counts.clipped == 2
    assert counts.non_finite == 0
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("style", ["flat", "automatic"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("precision", ["autocast", "bfloat16 base"])
@pytest.mark.parametrize("kind", MODELS)
def test_sum_is_as_near_as_bfloat16_allows(
    engine_name: PerExampleEngineName,
    kind: str,
    precision: Precision,
    checkpointing: bool,
    dropout: float,
    style: Clipping,
) -> None:
    """Plain peft in bfloat16 has an error of its own against float32. An engine rounds elsewhere, but not worse: it
    may be 1.5 times as far from float32. Its masks are those of float32: dropout is drawn on the adapter's input,
    which peft casts to float32 first."""
    if engine_name == "opacus_ghost":
        pytest.skip("refuses it: test_ghost_clipping_refuses_less_than_float32")
    gradients = example_gradients(kind, dropout=dropout)
    rule = half_clipped(gradients, style=style)
    truth = clipped(gradients, rule=rule)
    unavoidable = distance(clipped(example_gradients(kind, dropout=dropout, precision=precision), rule=rule), truth)
    assert 1e-4 < unavoidable < 0.1  # bfloat16 is on, and this still is the same function
    model = make_model(kind, dropout=dropout, checkpointing=checkpointing, precision=precision)
    engine = make_engine(engine_name, model)
    engine.accumulate(losses_of(model, make_batch(), precision=precision), rule=rule)
    assert distance(flat_sum(engine, model), truth) < 1.5 * unavoidable


@pytest.mark.parametrize("precision", get_args(Precision))
def test_no_example_has_more_than_its_bound(engine_name: PerExampleEngineName, precision: Precision) -> None:
    if precision != "float32" and engine_name == "opacus_ghost":
        pytest.skip("refuses it: test_ghost_clipping_refuses_less_than_float32")
    model = make_model(precision=precision)
    engine = make_engine(engine_name, model)
    rule = ClippingRule(max_grad_norm=0.01, style="flat")
    for seed in range(5):
        engine.accumulate(losses_of(model, make_batch((12,), seed=seed), precision=precision), rule=rule)
        assert float(flat_sum(engine, model).norm()) <= 0.01 * (1 + 1e-5)


def test_ghost_clipping_refuses_less_than_float32() -> None:
    model = make_model()
    make_engine("opacus_ghost", model)
    with pytest.raises(StageFailed, match="autocast") as refused:
        losses_of(model, make_batch(), precision="autocast")
    assert refused.value.code == "unsupported_option"
    with pytest.raises(StageFailed, match="bfloat16") as refused:
        make_engine("opacus_ghost", make_model(precision="bfloat16 base"))
    assert refused.value.code == "unsupported_option"
    assert refused.value.field == "runtime.per_example_engine"


def test_sums_add_up_and_start_again_from_zero(engine_name: PerExampleEngineName) -> None:
    model = make_model()
    engine = make_engine(engine_name, model)
    lots = [(15, 6, 11), (4, 20), (9,)]
    rule = ClippingRule(max_grad_norm=1.0, style="flat")
    expected = sum(clipped(example_gradients(lengths=lot), rule=rule) for lot in lots)
    for _ in range(2):
        for lot in lots:
            engine.accumulate(losses_of(model, make_batch(lot)), rule=rule)
        assert distance(flat_sum(engine, model), expected) < 1e-5
    assert not flat_sum(engine, model).any()


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_an_engine_draws_no_random_number_of_its_own(engine_name: PerExampleEngineName, checkpointing: bool) -> None:
    """Noise is the loop's; and the next masks are those that they would be with any other engine."""
    model = make_model(dropout=0.3, checkpointing=checkpointing)
    engine = make_engine(engine_name, model)
    losses = losses_of(model, make_batch())
    before = torch.get_rng_state()
    engine.accumulate(losses, rule=ClippingRule(max_grad_norm=1.0, style="flat"))
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_is_drawn_where_gradients_are_on_and_nowhere_else(engine_name: PerExampleEngineName) -> None:
    model = make_model(dropout=0.3)
    make_engine(engine_name, model)
    batch = make_batch()
    drawn = losses_of(model, batch)
    torch.manual_seed(8)
    assert not torch.allclose(drawn, per_example_loss(model, batch, kl_weight=KL_WEIGHT))
    with torch.no_grad():
        quiet = losses_of(model, batch)
        torch.testing.assert_close(quiet, losses_of(make_model(), batch))


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_an_example_whose_loss_is_not_finite_adds_zero(
    engine_name: PerExampleEngineName, bad: float, checkpointing: bool
) -> None:
    batch = make_batch()
    gradients = example_gradients()
    rule = half_clipped(gradients)
    model = make_model(checkpointing=checkpointing)
    engine = make_engine(engine_name, model)
    factors = torch.tensor([1.0, bad, 1.0, 1.0, 1.0])
    counts = engine.accumulate(losses_of(model, batch) * factors, rule=rule)
    assert counts.non_finite == 1
    rest = gradients[[0, 2, 3, 4]]
    assert distance(flat_sum(engine, model), clipped(rest, rule=rule)) < 1e-5
    engine.accumulate(losses_of(model, batch), rule=rule)  # and nothing of it is left
    assert distance(flat_sum(engine, model), clipped(gradients, rule=rule)) < 1e-5


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_example_that_overflows_inside_the_model_adds_zero(engine_name: PerExampleEngineName, bad: float) -> None:
    batch = make_batch()
    gradients = example_gradients()
    rule = half_clipped(gradients)
    batch.token_ids[2, 4] = POISON
    model = make_model()

    def poison(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output.masked_fill((inputs[0] == POISON)[..., None], bad)

    model.get_base_model().model.embed_tokens.register_forward_hook(poison)
    engine = make_engine(engine_name, model)
    counts = engine.accumulate(losses_of(model, batch), rule=rule)
    assert counts.non_finite == 1
    assert distance(flat_sum(engine, model), clipped(gradients[[0, 1, 3, 4]], rule=rule)) < 1e-5


class _Fails(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_ctx: Any, *_gradients: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("as on a GPU")


@contextmanager
def failing(model: PeftModel, *, when: str) -> Iterator[None]:
    """Out of memory between the two layers, on the way down or on the way back."""

    def fail(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if when == "forward":
            raise torch.OutOfMemoryError("as on a GPU")
        return _Fails.apply(output)

    handle = model.get_base_model().model.layers[0].register_forward_hook(fail)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("when", ["forward", "backward"])
def test_a_failed_call_leaves_no_trace(engine_name: PerExampleEngineName, when: str, checkpointing: bool) -> None:
    rule = ClippingRule(max_grad_norm=1.0, style="flat")
    before, halves = (8, 12), [(15, 6), (9,)]
    expected = sum(clipped(example_gradients(lengths=lot), rule=rule) for lot in [before, *halves])
    model = make_model(checkpointing=checkpointing)
    engine = make_engine(engine_name, model)
    engine.accumulate(losses_of(model, make_batch(before)), rule=rule)
    with failing(model, when=when), pytest.raises(torch.OutOfMemoryError):
        engine.accumulate(losses_of(model, make_batch()), rule=rule)
    for half in halves:
        engine.accumulate(losses_of(model, make_batch(half)), rule=rule)
    assert distance(flat_sum(engine, model), expected) < 1e-5


def live_tensors() -> int:
    gc.collect()
    return sum(type(thing) in (Tensor, nn.Parameter) for thing in gc.get_objects())


@pytest.mark.parametrize("fails", [False, True], ids=["good", "failed"])
def test_a_call_holds_on_to_nothing_of_its_rows(engine_name: PerExampleEngineName, fails: bool) -> None:
    rule = ClippingRule(max_grad_norm=1.0, style="flat")
    model = make_model()
    engine = make_engine(engine_name, model)
    engine.accumulate(losses_of(model, make_batch()), rule=rule)
    before = live_tensors()
    if fails:
        with failing(model, when="backward"), pytest.raises(torch.OutOfMemoryError):
            engine.accumulate(losses_of(model, make_batch()), rule=rule)
    else:
        engine.accumulate(losses_of(model, make_batch()), rule=rule)
    assert live_tensors() == before


def test_losses_of_an_earlier_pass_are_right_or_refused(engine_name: PerExampleEngineName) -> None:
    model = make_model()
    engine = make_engine(engine_name, model)
    rule = ClippingRule(max_grad_norm=1.0, style="flat")
    earlier = losses_of(model, make_batch())
    losses_of(model, make_batch(seed=1))
    if engine_name == "native":
        engine.accumulate(earlier, rule=rule)
    else:
        with pytest.raises(StageFailed) as refused:
            engine.accumulate(earlier, rule=rule)
        assert refused.value.code == "unsupported_layer"
        engine.accumulate(losses_of(model, make_batch()), rule=rule)
    assert distance(flat_sum(engine, model), clipped(example_gradients(), rule=rule)) < 1e-5


def test_a_layer_that_the_losses_do_not_reach_is_refused(engine_name: PerExampleEngineName) -> None:
    model = make_model()
    model.get_base_model().model.layers[1].forward = lambda hidden_states, **_: hidden_states
    engine = make_engine(engine_name, model)
    with pytest.raises(StageFailed) as refused:
        engine.accumulate(losses_of(model, make_batch()), rule=ClippingRule(max_grad_norm=1.0, style="flat"))
    assert refused.value.code == "unsupported_layer"
    assert not flat_sum(engine, model).any()


@pytest.mark.parametrize(("units", "unfinished"), [([0, 0, 1, 2, 3], False), ([0, 1, 2, 3, 4], True), (None, True)])
def test_rows_of_one_unit_are_joined_or_refused(
    engine_name: PerExampleEngineName, units: list[int] | None, unfinished: bool
) -> None:
    batch = make_batch()
    gradients = example_gradients()
    rule = half_clipped(gradients)
    model = make_model()
    engine = make_engine(engine_name, model)
    numbers = None if units is None else torch.tensor(units)
    if engine_name != "native":
        with pytest.raises(StageFailed) as refused:
            engine.accumulate(losses_of(model, batch), rule=rule, units=numbers, unfinished=unfinished)
        assert refused.value.code == "unsupported_units"
        assert not flat_sum(engine, model).any()
        return
    engine.accumulate(losses_of(model, batch), rule=rule, units=numbers, unfinished=unfinished)
    expected = gradients.clone()
    if unfinished:  # the last unit's second record is the same once more
        again = collate([Row(sequence=batch.sequences[-1], unit=4, weight=1.0)], device=torch.device("cpu"))
        engine.accumulate(losses_of(model, again), rule=rule, units=None if units is None else again.units)
        expected[-1] *= 2
    else:
        expected = torch.cat([expected[:1] + expected[1:2], expected[2:]])
    assert distance(flat_sum(engine, model), clipped(expected, rule=rule)) < 1e-5


def _train_a_norm(model: PeftModel) -> None:
    model.get_base_model().model.norm.weight.requires_grad_(True)


def _add_batch_norm(model: PeftModel) -> None:
    model.get_base_model().model.extra = nn.BatchNorm1d(4).requires_grad_(False)


@pytest.mark.parametrize("change", [_train_a_norm, _add_batch_norm])
def test_what_is_no_plain_adapter_is_refused(
    engine_name: PerExampleEngineName, change: Callable[[PeftModel], None]
) -> None:
    model = make_model()
    change(model)
    with pytest.raises(StageFailed) as refused:
        make_engine(engine_name, model)
    assert refused.value.code == "unsupported_layer"


@pytest.mark.parametrize("name", [name for name in ENGINES if name != "native"])
def test_an_engine_without_its_package_is_refused_by_name(
    name: PerExampleEngineName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines_module, "find_spec", lambda _package: None)
    with pytest.raises(StageFailed, match=name) as refused:
        make_engine(name, make_model())
    assert refused.value.code == "engine_unavailable"
    assert (refused.value.field, refused.value.value) == ("runtime.per_example_engine", name)
