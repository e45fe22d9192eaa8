"""A real Ray cluster on this machine: three nodes, each of a raylet and an object store of its own, of one CPU each."""

import os
from collections.abc import Iterator
from typing import Any

# Read when ray is imported: everything listens on the loopback address alone.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"

import pytest
from support import REPOSITORY

SMALL = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}


def start_cluster() -> Any:
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        # Workers have the environment that their node was started in: they import the teachers of tests/ too.
        patch.setenv("PYTHONPATH", os.pathsep.join(str(REPOSITORY / folder) for folder in ("tests", ".", "kernels")))
        started = Cluster(initialize_head=True, head_node_args=SMALL)
        for _ in range(2):
            started.add_node(**SMALL)
    return started


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """For tests that take nothing away from it."""
    started = start_cluster()
    yield started
    started.shutdown()


@pytest.fixture
def own_cluster() -> Iterator[Any]:
    """To be harmed."""
    started = start_cluster()
    yield started
    started.shutdown()
