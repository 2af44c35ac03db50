"""One Ray, one Prefect server and one fabric for the tests that share them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# A slow machine is no failure: benchmarks measure time, tests do not.
settings.register_profile("daifi", deadline=None)
settings.load_profile("daifi")

# Set before Ray's workers start: they inherit it.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))


@pytest.fixture(scope="session")
def prefect_api() -> Iterator[None]:
    """Prefect's temporary server with a database of its own: one a session, because Prefect's
    workers for events and logs live as long as the process and stay with the first server."""
    from prefect.testing.utilities import prefect_test_harness

    with pytest.MonkeyPatch.context() as patch:
        # Telemetry writes to the database while the server starts, and can find it locked.
        patch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
        with prefect_test_harness(server_startup_timeout=120):
            yield


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Ray on this machine, started once a session."""
    import ray

    mine = not ray.is_initialized()
    if mine:
        ray.init(
            address="local",
            num_cpus=8,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=512 * 1024 * 1024,
        )
    yield
    if mine:
        ray.shutdown()


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool], str], None]:
    """Wait until something outside this process has happened."""

    def wait(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
            time.sleep(0.1)

    return wait


@pytest.fixture(scope="session")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder whose caches (circuits, converted models) the session shares."""
    return tmp_path_factory.mktemp("home")
