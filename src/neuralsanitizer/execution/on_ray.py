"""Shards on a Ray cluster. The only module that imports ray."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, TypeVar

import torch

from neuralsanitizer.errors import MissingExtraError, UsageError
from neuralsanitizer.execution.allocator import keep_freed_memory
from neuralsanitizer.execution.executors import Executor, Lost, portable
from neuralsanitizer.execution.progress import Progress

try:
    import ray
except ImportError as error:
    raise MissingExtraError("ray", "ray", "the executor ray") from error

__all__ = ["RayExecutor"]

S = TypeVar("S")
R = TypeVar("R")


class RayExecutor(Executor):
    """Tasks of one core each. The job, with all weights and images, goes into the object store once a :meth:`map`.

    Where this process is connected to a cluster already, that one is used, and outlives the executor.

    Args:
        workers: Shards at work at once; by default as many as the cluster has cores.
        address: Of a running cluster; by default one is started on this machine, whatever other clusters there are, and
            stopped with the executor.

    Raises:
        UsageError: Fewer than one worker, no cluster at the address, or none can be started.
    """

    name: ClassVar[str] = "ray"

    def __init__(self, workers: int | None = None, address: str | None = None) -> None:
        if workers is not None and workers < 1:
            raise UsageError(f"at least one worker is needed, got {workers}")
        self._started = not ray.is_initialized()
        if self._started:
            local = {} if address else {"num_cpus": workers, "include_dashboard": False}
            try:
                # Without "local", Ray would join the cluster of RAY_ADDRESS, or the last one started on this machine.
                ray.init(address=address or "local", configure_logging=False, log_to_driver=False, **local)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise UsageError(_no_cluster(address, error)) from error
        self.workers = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))

    def map(self, job: Callable[[S], R], shards: Sequence[S], progress: Progress) -> Iterator[tuple[S, R | Lost]]:
        """Work on shards, as many at once as there are workers."""
        stored = ray.put(job)
        waiting, at_work = deque((number, 1) for number in range(len(shards))), dict[Any, tuple[int, int]]()
        try:
            while waiting or at_work:
                while waiting and len(at_work) < self.workers:
                    number, attempt = waiting.popleft()
                    at_work[_REMOTE.remote(stored, shards[number])] = (number, attempt)
                done, _ = ray.wait(list(at_work), num_returns=1)
                number, attempt = at_work.pop(done[0])
                try:
                    # Arrays of the object store cannot be written to, and torch warns of those.
                    result: R | Lost = copy.deepcopy(ray.get(done[0]))
                except ray.exceptions.RayError as error:
                    if isinstance(error, ray.exceptions.RayTaskError):  # the job's own error
                        raise error.cause from error
                    # A crash, a node that is gone with what it had, too little memory: all of them may pass.
                    result = Lost(f"a worker died ({type(error).__name__})")
                    if attempt < _ATTEMPTS:
                        progress.note(f"{result.reason}: its part is tried again")
                        waiting.appendleft((number, attempt + 1))
                        continue
                yield shards[number], result
        finally:
            for task in at_work:
                ray.cancel(task, force=True)

    def close(self) -> None:
        """Stop the cluster, if it was started here."""
        if self._started:
            ray.shutdown()


_ATTEMPTS = 2


def _no_cluster(address: str | None, error: Exception) -> str:
    if address is None:
        return f"Ray cannot start a cluster on this machine ({error}): choose --executor processes"
    return (
        f"no Ray cluster answers at {address} ({error}): give the host:port that `ray start --head` printed, or leave "
        "--ray-address out to have a cluster started here"
    )


def _work(job: Callable[[Any], Any], shard: object) -> object:
    keep_freed_memory()
    torch.set_num_threads(1)
    try:
        return job(shard)
    except Exception as error:  # noqa: BLE001 - it is raised again where the work was asked for
        raise portable(error) from None


_REMOTE = ray.remote(num_cpus=1, max_retries=0)(_work)
