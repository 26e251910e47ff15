"""The sandboxes that ``--sandbox`` chooses from."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Final

from privcode.errors import SandboxUnavailable
from privcode.sandbox import Sandbox
from services.sandbox.core.bubblewrap import Bubblewrap
from services.sandbox.core.interpreter import running_interpreter
from services.sandbox.core.zygote import Zygote
from services.sandbox.runner.app import Batch
from services.sandbox.runner.privileges import reachable_interpreter

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A sandbox, ready to execute. ``facts``: what /healthz tells of it."""

    sandbox: Sandbox
    batch: Batch
    facts: Mapping[str, str | int | bool]


def _bubblewrap(_: argparse.Namespace) -> Backend:
    return _one_for_all(*_make_bubblewrap())


def _zygote(_: argparse.Namespace) -> Backend:
    bubblewrap, facts = _make_bubblewrap()
    return _one_for_all(Zygote(bubblewrap=bubblewrap), facts)


def _docker(arguments: argparse.Namespace) -> Backend:
    if arguments.docker_image is None:
        raise SandboxUnavailable("--sandbox docker needs --docker-image")
    try:
        import docker
    except ImportError as error:
        raise SandboxUnavailable("--sandbox docker needs the package docker: pip install docker") from error
    from services.sandbox.core.docker import DockerSandbox

    sandbox = DockerSandbox(
        connect=docker.from_env,
        image=arguments.docker_image,
        runtime=arguments.docker_runtime,
        concurrency=arguments.concurrency,
    )
    return Backend(sandbox=sandbox, batch=sandbox.batch, facts={"docker_image": arguments.docker_image})


BACKENDS: Final[Mapping[str, Callable[[argparse.Namespace], Backend]]] = {
    "bubblewrap": _bubblewrap,
    "docker": _docker,
    "zygote": _zygote,
}


def _make_bubblewrap() -> tuple[Bubblewrap, Mapping[str, str | bool]]:
    sandbox = Bubblewrap(interpreter=reachable_interpreter(running_interpreter()))
    if not sandbox.disables_userns:
        log.warning("bwrap --disable-userns does not work here; the system call filter alone forbids user namespaces")
    return sandbox, {"disables_userns": sandbox.disables_userns, "cgroups": sandbox.cgroups or "none"}


def _one_for_all(sandbox: Sandbox, facts: Mapping[str, str | bool]) -> Backend:
    return Backend(sandbox=sandbox, batch=lambda: nullcontext(sandbox.run), facts=facts)
