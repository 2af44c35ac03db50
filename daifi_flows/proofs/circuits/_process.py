"""The processes that run ezkl: one for each job that compiles or proves, and a few that stay to
verify, because starting one costs more than a verification."""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from daifi_flows.errors import ProofError
from daifi_flows.proofs.circuits._settings import Limits

__all__ = ["WorkerError", "ask", "run_job"]

_VERIFYING: Final = Limits(seconds=30.0, memory_bytes=4 << 30)
_MAX_ANSWER: Final = 256 << 20
_PASSED: Final = ("PATH", "TMPDIR", "RAYON_NUM_THREADS")
_KEPT: Final = 2
"""Idle verifiers kept, about 45 MB each."""


class WorkerError(ProofError):
    """The worker process crashed, or spent its time or memory: nothing is known about a proof."""


class _Worker:
    """One process with its pipes. Not shared between threads."""

    def __init__(self, limits: Limits) -> None:
        cpu_seconds = int(limits.seconds * (os.cpu_count() or 1)) + 1
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-I",
                str(Path(__file__).with_name("_worker.py")),
                str(limits.memory_bytes),
                str(cpu_seconds),
            ],
            env={k: os.environ[k] for k in _PASSED if k in os.environ} | {"HOME": "/nonexistent"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a group of its own, to end as a whole
        )
        self.timed_out = False

    def ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """The answer to one request.

        Raises:
            WorkerError: none came in time; the process was ended.
            ProofError: ezkl refused.
        """
        try:
            line = self._exchange(json.dumps(request).encode() + b"\n", seconds, request["do"])
            answer: dict[str, Any] = json.loads(line)
        except BaseException:
            self.end()
            raise
        if not answer["ok"]:
            raise ProofError(f"ezkl cannot {request['do']} this circuit: {answer['error']}")
        return answer

    def _exchange(self, line: bytes, seconds: float, do: str) -> bytes:
        until = time.monotonic() + seconds
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        writable, readable = stdin.fileno(), stdout.fileno()
        os.set_blocking(writable, False)
        answer = bytearray()
        unsent = memoryview(line)
        poll = select.poll()
        poll.register(readable, select.POLLIN)
        poll.register(writable, select.POLLOUT)
        while not answer.endswith(b"\n"):
            left = until - time.monotonic()
            ready = dict(poll.poll(max(left, 0.0) * 1000))
            if left <= 0 or not ready:
                self.timed_out = True
                raise WorkerError(f"zk {do} took longer than {seconds:g} s and was ended")
            if writable in ready:
                try:
                    unsent = unsent[os.write(writable, unsent[: 1 << 16]) :]
                except BrokenPipeError:
                    unsent = unsent[:0]  # it died: the other pipe says so
                if not unsent:
                    poll.unregister(writable)
            if readable in ready:
                chunk = os.read(readable, 1 << 20)
                if not chunk or len(answer) > _MAX_ANSWER:
                    raise WorkerError(self._epitaph(do))
                answer += chunk
        return bytes(answer)

    def _epitaph(self, do: str) -> str:
        try:
            status = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return f"the zk {do} process stopped answering"
        if status in {3, -signal.SIGABRT}:
            return f"the zk {do} process ran out of memory or disk, or aborted (status {status})"
        return f"the zk {do} process died (status {status})"

    @property
    def alive(self) -> bool:
        """Whether it can take a request."""
        return self._process.poll() is None

    def end(self) -> None:
        """End the process and all it started. Idempotent."""
        if self._process.poll() is None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):  # what was not sent cannot be flushed any more
                    pipe.close()


def run_job(request: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """One job in a process of its own, which is gone when this returns.

    Raises:
        WorkerError: it died, or spent its time or memory.
        ProofError: ezkl refused.
    """
    worker = _Worker(limits)
    try:
        return worker.ask(request, limits.seconds)
    finally:
        worker.end()


_idle: list[_Worker] = []
_idle_guard = threading.Lock()


def ask(request: Mapping[str, Any]) -> dict[str, Any]:
    """A short job (a verification) in a process that stays for the next one.

    Raises:
        WorkerError: it died or took too long; the next call gets a fresh process.
        ProofError: ezkl refused.
    """
    with _idle_guard:
        worker = _idle.pop() if _idle else None
    if worker is not None:
        try:
            return _ask(worker, request)
        except WorkerError:  # it may have died while it was idle
            if worker.timed_out:
                raise
    return _ask(_Worker(_VERIFYING), request)


def _ask(worker: _Worker, request: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return worker.ask(request, _VERIFYING.seconds)
    finally:
        with _idle_guard:
            keep = worker.alive and len(_idle) < _KEPT
            if keep:
                _idle.append(worker)
        if not keep:
            worker.end()


def _end_all() -> None:
    with _idle_guard:
        workers, _idle[:] = list(_idle), []
    for worker in workers:
        worker.end()


def _forget() -> None:
    """In a forked child: the processes are the parent's."""
    global _idle_guard  # noqa: PLW0603 (the parent may have held it while forking)
    _idle_guard = threading.Lock()
    _idle.clear()


atexit.register(_end_all)
os.register_at_fork(after_in_child=_forget)
