"""One thread per worker, a worker per core, the same random examples in every run, and which tests are ``smoke``."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported, here and in the processes that tests start
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"  # a name that is no folder is an error at once, wherever the tests run
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = os.devnull  # every HTTP client reads the certificates of the machine; none here speaks TLS
os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported: what commands write to standard error is tested

import pytest
import torch
from hypothesis import HealthCheck, settings

import warm
from warm import Shell

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported: without a GPU its kernels run on the CPU
settings.register_profile(
    "unmask", deadline=None, derandomize=True, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("unmask")

MOST_WORKERS = 16  # each takes up to 1.5 GB
PIECES = {"test_blocks.py", "test_infill.py", "test_matrix.py", "test_structured_grid.py"}  # whose tests name a policy


def pytest_xdist_auto_num_workers() -> int:
    """One worker for each core that this process may use."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        cores = os.cpu_count() or 1
    return min(cores, MOST_WORKERS)


@pytest.fixture(scope="module")
def many_tiles() -> Iterator[None]:
    """Rectangles so cheap that the small rows of tests are split among several, too."""
    from unmask.core import rows

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "_TILE_COST", {False: 2.0, True: 2.0})
        yield


def pytest_runtest_setup() -> None:
    """Denormals are kept: training runs flush them in their whole process, and hypothesis draws no floats then."""
    torch.set_flush_denormal(False)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """``smoke``: the first case of every test that is not ``slow``. Files in pieces come last: no worker then waits
    long for another.
    """
    tested = set()
    for item in items:
        function = item.nodeid.partition("[")[0]
        if function not in tested and not item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.smoke)
        tested.add(function)
    items.sort(key=lambda item: item.path.name in PIECES)


def group(test: str) -> str:
    """What runs in one process, since it shares models and results: a file, or the tests of one policy in it."""
    file, _, name = test.partition("::")
    policy = re.search(r"\[(\w+)", name) if Path(file).name in PIECES else None
    return f"{file} {policy[1]}" if policy else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """``--dist loadgroup`` by :func:`group`; xdist's own does nothing with pytest 9.2."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group(nodeid)

    config.option.loadscopereorder = False  # as sorted above
    return Groups(config, log) if config.getoption("dist") == "loadgroup" else None


@pytest.fixture(scope="session")
def shell() -> Shell:
    """Runs shell scripts in which ``unmask`` is the command line, without the time that importing it takes."""
    return warm.shell()


def pytest_collection_finish() -> None:
    """What collecting has made stays: no later search for garbage goes through it."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """The process of :mod:`warm` ends with the tests."""
    warm.WARM.end()
