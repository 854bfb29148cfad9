"""Settings for all tests: threads, property tests, and the shelf where the workers of pytest-xdist share what is slow to build.

Property tests try the same examples on every run, so that a red run can be run again: 100 each, 20 under `make test`
(--hypothesis-profile=quick). For other examples each time: python -m pytest --hypothesis-profile=search
"""

import os

# One thread per worker, and no thread that spins while the other worker computes. OpenMP reads both variables once, when torch
# loads. Models in tests are too small to gain from a second thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402
from support import shelf  # noqa: E402

QUICK = 20
COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}  # both would judge the machine, not the code
settings.register_profile("fixed", derandomize=True, **COMMON)
settings.register_profile("quick", derandomize=True, max_examples=QUICK, **COMMON)
settings.register_profile("search", **COMMON)
settings.load_profile("fixed")


@pytest.fixture(scope="session", autouse=True)
def shared(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Names the shelf: the workers' temporary folders share one parent folder."""
    base = tmp_path_factory.getbasetemp()
    shelf.FOLDER = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shelf"
    shelf.FOLDER.mkdir(exist_ok=True)
