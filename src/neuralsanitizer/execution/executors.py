"""Where the shards of a scan are worked on: here, in other processes, or on a Ray cluster.

A job is a callable that takes a shard; it is handed to every worker once. Workers give back what they computed, and the
caller keeps it. A shard whose worker dies is tried once more, on another worker; if that dies too, the shard is lost,
and the caller is told. An error that the job raises is no death: it ends the work. One that cannot travel between
processes comes out as a RuntimeError with its traceback.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any, ClassVar, TypeVar

import torch

from neuralsanitizer.errors import UsageError
from neuralsanitizer.execution.allocator import keep_freed_memory
from neuralsanitizer.execution.progress import Progress

__all__ = ["EXECUTORS", "Executor", "LocalExecutor", "Lost", "ProcessExecutor", "executor_named", "portable"]

S = TypeVar("S")
R = TypeVar("R")

EXECUTORS = ("local", "processes", "ray")
"""Names of all executors."""


@dataclass(frozen=True)
class Lost:
    """A shard that no worker survived.

    Attributes:
        reason: What became of the last one.
    """

    reason: str


class Executor(ABC):
    """Base of all executors."""

    name: ClassVar[str]
    """As on the command line."""
    in_process: ClassVar[bool] = False
    """Whether jobs may speak to the caller's own objects: then they tell their progress themselves."""
    workers: int = 1
    """How many shards are worked on at once."""

    @abstractmethod
    def map(self, job: Callable[[S], R], shards: Sequence[S], progress: Progress) -> Iterator[tuple[S, R | Lost]]:
        """Work on shards, and yield each with its result as it is done, in any order.

        Args:
            job: What to do; other processes get a copy of it, so it must not rely on what it changes.
            shards: What to do it to.
            progress: Told of workers that died.

        Raises:
            Exception: Whatever the job raised.
        """

    def close(self) -> None:  # noqa: B027 - most have nothing to let go
        """Let workers go."""


class LocalExecutor(Executor):
    """One shard after the other, in this process."""

    name: ClassVar[str] = "local"
    in_process: ClassVar[bool] = True

    def map(
        self,
        job: Callable[[S], R],
        shards: Sequence[S],
        progress: Progress,  # noqa: ARG002 - no worker dies alone here
    ) -> Iterator[tuple[S, R | Lost]]:
        """Work on shards in their order."""
        for shard in shards:
            yield shard, job(shard)


class ProcessExecutor(Executor):
    """Processes on this machine, each with one thread.

    On Linux they are forks, so the job may hold a network whose code only this process knows; elsewhere it is pickled.

    Args:
        workers: How many; by default one a core.

    Raises:
        UsageError: Fewer than one.
    """

    name: ClassVar[str] = "processes"

    def __init__(self, workers: int | None = None) -> None:
        if workers is not None and workers < 1:
            raise UsageError(f"at least one worker is needed, got {workers}")
        self.workers = workers or _cores()

    def map(self, job: Callable[[S], R], shards: Sequence[S], progress: Progress) -> Iterator[tuple[S, R | Lost]]:
        """Work on shards, as many at once as there are workers."""
        waiting = deque((number, 1) for number in range(len(shards)))
        workers: list[_Worker] = []
        try:
            while waiting or any(w.busy for w in workers):
                while waiting and len(workers) < self.workers:
                    workers.append(_Worker(job, workers))
                for worker in (w for w in workers if not w.busy):
                    if waiting:
                        number, attempt = waiting.popleft()
                        worker.give(number, attempt, shards[number])
                ready = wait([w.connection for w in workers if w.busy])
                for worker in [w for w in workers if w.connection in ready]:
                    number, attempt = worker.task
                    answer = worker.answer()
                    if isinstance(answer, Lost):
                        workers.remove(worker)
                        if attempt < _ATTEMPTS:
                            progress.note(f"{answer.reason}: its part is tried again")
                            waiting.appendleft((number, attempt + 1))
                            continue
                    yield shards[number], answer
        finally:
            for worker in workers:
                worker.stop()


_ATTEMPTS = 2


class _Worker:
    """A process, and what it is at work on."""

    def __init__(self, job: Callable[[Any], Any], others: Sequence[_Worker]) -> None:
        context = mp.get_context("fork") if _FORKS else mp.get_context("spawn")
        self.connection, theirs = context.Pipe()
        # A fork inherits our ends of all pipes. It closes them: a pipe is to end with the worker that it leads to.
        inherited = [w.connection for w in (*others, self)] if _FORKS else []
        self.process = context.Process(target=_serve, args=(job, theirs, inherited, os.getpid()), daemon=True)
        self.process.start()
        theirs.close()
        self.task: tuple[int, int] = (-1, 0)
        self.busy = False

    def give(self, number: int, attempt: int, shard: object) -> None:
        """Hand it a shard, by number, the how-many-eth time."""
        self.task, self.busy = (number, attempt), True
        try:
            self.connection.send(shard)
        except OSError:
            return  # it died while it was idle: the answer says so

    def answer(self) -> Any:  # noqa: ANN401 - whatever the job gives
        """What it answered; it raises what the job raised, and is lost if the process is gone."""
        self.busy = False
        try:
            kind, value = self.connection.recv()
        except (EOFError, OSError):
            self.process.join(_GRACE)
            code = self.process.exitcode
            how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
            self.stop()
            return Lost(f"a worker died ({how})")
        if kind == "failed":
            raise value
        return value

    def stop(self) -> None:
        """End the process."""
        self.connection.close()
        if self.process.is_alive():
            self.process.terminate()
            self.process.join(_GRACE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


_FORKS = sys.platform == "linux"
_GRACE = 5.0  # seconds that a process gets to end


def _serve(job: Callable[[Any], Any], connection: Connection, inherited: Sequence[Connection], parent: int) -> None:
    """What a worker does: shards, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops its workers itself
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in inherited:
        other.close()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    keep_freed_memory()
    torch.set_num_threads(1)  # and a fork must not touch its parent's pool of threads
    while True:
        try:
            shard = connection.recv()
        except (EOFError, OSError):
            return
        try:
            answer = ForkingPickler.dumps(("done", job(shard)))
        except Exception as error:  # noqa: BLE001 - it is raised again where the work was asked for
            answer = ForkingPickler.dumps(("failed", portable(error)))
        connection.send_bytes(answer)


def portable(error: Exception) -> Exception:
    """The error as another process can get it: itself, or what it says, if it does not come out of pickle as it was."""
    try:
        copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
        if type(copy) is type(error) and str(copy) == str(error):
            return error
    except Exception:  # noqa: BLE001, S110 - whatever its class does there, it cannot travel
        pass
    return RuntimeError("".join(traceback.format_exception(error)).rstrip())


def _end_with(parent: int) -> None:
    """End this process when the one that started it is gone, in the middle of a shard too."""
    while os.getppid() == parent:
        time.sleep(_LOOK)
    os._exit(1)


_LOOK = 1.0  # seconds


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def executor_named(name: str, *, workers: int | None = None, address: str | None = None) -> Executor:
    """The executor that a name stands for.

    Args:
        name: One of :data:`EXECUTORS`.
        workers: How many processes; of ``ray``, how many shards at once (by default as many as the cluster has cores).
        address: Of a Ray cluster; by default one is started on this machine.

    Raises:
        UsageError: There is no such executor, or it cannot have that.
        MissingExtraError: ``ray`` is not installed.
    """
    if name not in EXECUTORS:
        raise UsageError(f"unknown executor {name!r}: choose one of {', '.join(EXECUTORS)}")
    if address is not None and name != "ray":
        raise UsageError(f"a Ray address is for the executor ray, not for {name}")
    if workers is not None and name == "local":
        raise UsageError("the executor local is one process: choose processes or ray for several")
    if name == "ray":
        from neuralsanitizer.execution.on_ray import RayExecutor  # noqa: PLC0415 - heavy, and an extra

        return RayExecutor(workers, address)
    return LocalExecutor() if name == "local" else ProcessExecutor(workers)
