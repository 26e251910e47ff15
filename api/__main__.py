"""``python -m api``: the gateway on uvicorn; settings come from the environment (``PRIVCODE_*``)."""

from __future__ import annotations

import argparse

import uvicorn

from api.app import create_app
from privcode.settings import Settings

parser = argparse.ArgumentParser(prog="python -m api")
parser.add_argument("--host", default="127.0.0.1")
parser.add_argument("--port", type=int, default=8000)
arguments = parser.parse_args()
uvicorn.run(
    create_app(Settings()),
    host=arguments.host,
    port=arguments.port,
    log_level="warning",
    timeout_graceful_shutdown=3,
)
