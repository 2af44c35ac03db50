"""Screenshots of a flow run in the Prefect UI, taken with headless Chromium.

    python scripts/screenshot_ui.py FLOW_RUN_ID OUT_DIR [--api http://127.0.0.1:4200/api]

Writes ``flow-run.png`` (graph, task runs, logs), ``artifacts.png`` (the server's latest artifacts)
and one ``KEY.png`` for each artifact of the run (cards, provenance graph). Needs Debian's
``chromium`` (or another Chromium given by ``--chromium``) and the run's Prefect server.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
)


def screenshot(chromium: str, url: str, path: Path, size: str, wait_ms: int) -> None:
    """One page to one PNG.

    Raises:
        SystemExit: Chromium failed or wrote nothing.
    """
    with tempfile.TemporaryDirectory(prefix="chromium-") as profile:
        command = [
            chromium,
            *FLAGS,
            f"--user-data-dir={profile}",
            f"--window-size={size}",
            f"--virtual-time-budget={wait_ms}",
            f"--screenshot={path}",
            url,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0 or not path.is_file():
        raise SystemExit(f"chromium could not take {url}: {done.stderr[-500:]}")


def artifacts_of(api: str, flow_run_id: str) -> list[dict[str, Any]]:
    """The run's artifacts, oldest first."""
    body = {"artifacts": {"flow_run_id": {"any_": [flow_run_id]}}, "sort": "CREATED_DESC"}
    try:
        answer = httpx.post(f"{api}/artifacts/filter", json=body, timeout=30).raise_for_status()
        return list(reversed(answer.json()))
    except (httpx.HTTPError, ValueError) as error:
        raise SystemExit(f"the Prefect server at {api} does not answer: {error}") from error


def main() -> None:
    """Parse the command line and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("flow_run_id")
    parser.add_argument("out", type=Path)
    default_api = os.environ.get("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    parser.add_argument("--api", default=default_api)
    parser.add_argument("--chromium", default=shutil.which("chromium") or "chromium")
    parser.add_argument("--ui", choices=("v1", "v2"), default="v1", help="Prefect UI version")
    parser.add_argument("--size", default="1400,1000", help="width,height in pixels")
    parser.add_argument("--wait-ms", type=int, default=15_000, help="virtual time for loading")
    options = parser.parse_args()
    if shutil.which(options.chromium) is None:
        raise SystemExit("chromium is not installed: apt-get install chromium")
    api = options.api.rstrip("/")
    base = api.removesuffix("/api") + ("/v2" if options.ui == "v2" else "")
    run_url = f"{base}/runs/flow-run/{options.flow_run_id}"
    options.out.mkdir(parents=True, exist_ok=True)
    pages = {"flow-run": run_url, "artifacts": f"{base}/artifacts"}
    for artifact in artifacts_of(api, options.flow_run_id):
        pages[artifact["key"]] = f"{base}/artifacts/artifact/{artifact['id']}"
    for name, url in pages.items():
        path = options.out / f"{name}.png"
        screenshot(options.chromium, url, path, options.size, options.wait_ms)
        print(path, file=sys.stderr)


if __name__ == "__main__":
    main()
