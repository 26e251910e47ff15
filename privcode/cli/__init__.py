"""The command line: ``privcode up``, ``submit``, ``jobs``, ``demo`` and the rest."""

from privcode.cli.commands import app

__all__ = ["app"]
