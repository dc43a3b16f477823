"""Workers that are tasks of Ray: on this machine, or on those of the cluster that ``RAY_ADDRESS`` names."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from pathlib import Path
from typing import Any, Final, Generic

from fingerprint.errors import UsageError, WorkerLostError
from fingerprint.threads import VARIABLE, processors, wanted_threads
from signatures.bulk.work import ATTEMPTS, Item, Result, Task

_ROOT: Final = Path(__file__).resolve().parents[2]
_SECONDS: Final = 10.0
_log = logging.getLogger(__name__)


class RayWorkers(Generic[Item, Result]):
    """Hands items to Ray, ``jobs`` at once (default: as many as the cluster has processors).

    Ray is started on this machine unless ``RAY_ADDRESS`` names a cluster. An item whose worker or machine is lost is
    tried again elsewhere; that is counted here, as in a pool, and not left to Ray. Raises ``UsageError`` if Ray is not
    installed, ``WorkerLostError`` if it cannot be started or reached.
    """

    def __init__(self, task: Task[Item, Result], jobs: int | None) -> None:
        self._ray = _imported()
        self._task = task
        try:
            _require_reachable()
            self._begin(jobs)
            total = int(self._ray.cluster_resources().get("CPU", 1)) or 1
        except (Exception, SystemExit) as error:
            self.close()
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise WorkerLostError(f"Ray cannot be started or reached: {reason}") from error
        self._jobs = jobs or total
        share = max(1, total // self._jobs) if _is_local() else 1
        self._work = self._ray.remote(num_cpus=share, max_retries=0)(_done)
        self._threads = wanted_threads() or share
        self._shared = self._ray.put(task)
        self._under_way: dict[Any, int] = {}
        self._items: dict[int, tuple[Item, int]] = {}

    @property
    def slots(self) -> int:
        """See ``Workers.slots``."""
        return self._jobs

    def start(self, number: int, item: Item) -> None:
        """See ``Workers.start``."""
        self._items[number] = item, 1
        self._hand_out(number)

    def finished(self) -> tuple[int, Result]:
        """See ``Workers.finished``."""
        from ray.exceptions import RayError, RayTaskError

        while True:
            (ready, *_), _ = self._ray.wait(list(self._under_way), num_returns=1)
            number = self._under_way.pop(ready)
            item, tried = self._items[number]
            try:
                good, value = self._ray.get(ready)
            except RayTaskError as error:
                raise WorkerLostError(f"a worker of Ray cannot work: {_last_line(error)}") from error
            except RayError as error:
                _log.info("a worker of Ray was lost: %s", error)
                if tried < ATTEMPTS:
                    self._items[number] = item, tried + 1
                    self._hand_out(number)
                    continue
                value, good = self._task.lost(item, f"its worker in Ray was lost ({_kind(error)}), {tried} times"), True
            del self._items[number]
            if not good:
                raise value
            return number, value

    def close(self) -> None:
        """See ``Workers.close``."""
        with contextlib.suppress(Exception):
            for reference in getattr(self, "_under_way", {}):
                self._ray.cancel(reference, force=True)
        self._ray.shutdown()

    def _begin(self, jobs: int | None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if _is_local():
            count = max(processors(), jobs or 1)
            options |= {"address": "local", "num_cpus": count, "include_dashboard": False}
        # Ray lets workers import from the folder that it is started in: that must be ours, not one with suspects.
        with contextlib.chdir(_ROOT):
            try:
                self._ray.init(**options)
            except Exception:
                if not _is_local():
                    raise
                self._ray.shutdown()  # on a busy machine the 30 seconds that Ray grants itself may be too short
                self._ray.init(**options)

    def _hand_out(self, number: int) -> None:
        reference = self._work.remote(self._shared, self._items[number][0], self._threads)
        self._under_way[reference] = number


def _done(task: Any, item: Any, threads: int) -> tuple[bool, Any]:
    """Runs in a worker: whether there is a result, and the result or the exception."""
    os.environ[VARIABLE] = str(threads)
    try:
        return True, task.do(item)
    except Exception as error:  # noqa: BLE001 - it is raised again where the list is
        return False, error


def _address() -> str:
    return os.environ.get("RAY_ADDRESS", "")


def _is_local() -> bool:
    return _address() in {"", "local"}


def _require_reachable() -> None:
    """Raise ``OSError`` if nothing listens at ``RAY_ADDRESS``: Ray itself tries for minutes, and ends the process."""
    host, _, port = _address().removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS):
            pass


def _imported() -> Any:
    # Ray reads this when it is imported. It would tell on standard output, among the results, of each worker lost.
    os.environ |= {"RAY_DEDUP_LOGS": "1", "RAY_DEDUP_LOGS_SKIP_REGEX": "."}
    try:
        import ray
    except ImportError as error:
        raise UsageError(
            "--executor ray needs Ray, which is not installed: pip install 'weightprint[ray]' "
            "(--executor pool works without it)"
        ) from error
    return ray


def _kind(error: BaseException) -> str:
    return type(error).__name__.removesuffix("Error")


def _last_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1][:300]
