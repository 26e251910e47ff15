from __future__ import annotations

import pytest
from finished_job import Finished, finished_job


@pytest.fixture
def finished() -> Finished:
    return finished_job()
