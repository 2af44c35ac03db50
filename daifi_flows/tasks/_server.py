"""Brings Prefect up beside other slow starts, so that the first flow run does not wait for it."""

from __future__ import annotations

from concurrent.futures import Future
from threading import Thread

from daifi_flows.errors import ConfigError

__all__ = ["start_prefect"]


def start_prefect() -> Future[str]:
    """Connect to the Prefect API in a thread; the result is its URL.

    With ``PREFECT_API_URL`` set, that server is asked for its health. Without it, Prefect's
    temporary server is started: import, migrations and start take seconds that can pass while Ray
    starts. Wait for the result before the first flow run: until then a second caller would find
    a server that is not ready.

    Raises:
        ConfigError: (from the result) the server does not answer.

    Example::

        prefect = start_prefect()
        with Fabric.local() as fabric:
            prefect.result()
            asyncio.run(research_agent("What is a seat?"))
    """
    future: Future[str] = Future()

    def connect() -> None:
        try:
            future.set_result(_connect())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=connect, name="start-prefect", daemon=True).start()
    return future


def _connect() -> str:
    from prefect.client.orchestration import get_client

    try:
        with get_client(sync_client=True) as client:
            url = str(client.api_url)
            failure = client.api_healthcheck()
    except (RuntimeError, ValueError, OSError) as error:
        raise ConfigError(
            f"Prefect's server cannot be started or reached: {error}. Check PREFECT_API_URL, "
            "or unset it to use a temporary server."
        ) from error
    if failure is not None:
        raise ConfigError(
            f"the Prefect server at {url} does not answer ({failure}): check PREFECT_API_URL, "
            "or unset it to use a temporary server"
        )
    return url
