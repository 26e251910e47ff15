"""The engine of per-example gradients that ``runtime.per_example_engine`` names."""

from __future__ import annotations

from importlib.util import find_spec

from peft import PeftModel

from privcode.errors import StageFailed
from privcode.specs import PerExampleEngineName
from services.trainer.core.engine import PerExampleEngine
from services.trainer.core.native_engine import NativeEngine


def make_engine(name: PerExampleEngineName, model: PeftModel) -> PerExampleEngine:
    """Take ``model`` over for good, by the engine ``name``.

    Raises :class:`StageFailed`: ``engine_unavailable`` if the engine's package is not installed, and what the engine's
    own constructor raises.
    """
    # Imported here: Opacus and fastDP are slow to import, and fastDP is installed in the GPU image only.
    match name:
        case "native":
            return NativeEngine(model)
        case "opacus_hooks":
            _require("opacus", name)
            from services.trainer.core.opacus_engines import OpacusHooksEngine

            return OpacusHooksEngine(model)
        case "opacus_ghost":
            _require("opacus", name)
            from services.trainer.core.opacus_engines import OpacusGhostEngine

            return OpacusGhostEngine(model)
        case "fastdp":
            _require("fastDP", name)
            from services.trainer.core.fastdp_engine import FastDPEngine

            return FastDPEngine(model)


def _require(package: str, name: PerExampleEngineName) -> None:
    if find_spec(package) is None:
        raise StageFailed(
            f"runtime.per_example_engine is {name}, and the package {package} is not installed",
            code="engine_unavailable",
            field="runtime.per_example_engine",
            value=name,
        )
