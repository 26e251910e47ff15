"""``python -m privcode.ingest``: the child of :func:`privcode.ingest.ingest_in_child`."""

import sys

from privcode.ingest.child import run_child

if __name__ == "__main__":
    run_child(sys.stdin.buffer, sys.stdout.buffer)
