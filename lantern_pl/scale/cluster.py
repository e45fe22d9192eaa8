"""Workers of a Ray cluster, that Ray Data feeds: each item's outcome comes back once, whatever becomes of workers."""

import logging
import os
import pickle
import signal
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from lantern_pl.errors import UserError
from lantern_pl.scale.settings import RaySettings
from lantern_pl.scale.worker import Work, begin, do, do_async, once, sent, value_of

ROUND_ITEMS, ROUND_BYTES = 4096, 128 << 20
"""What goes through Ray Data at once: at most so many items, of so many bytes together in the object store."""
FRUITLESS = 3
"""After so many rounds in a row that nothing came back from, workers are taken to die of what they're asked."""

Take = Callable[[], tuple[str, Any] | None]
"""The next item with its key, which no other has; None where there is none at the moment."""


@contextmanager
def connected(settings: RaySettings) -> Iterator["Cluster"]:
    """A cluster that was joined, or started for as long as this lasts. A connection that is there already is used.

    Raises UserError where ray isn't installed, and where there is no cluster or no room in it for a worker.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # of what Ray itself says on stderr
    if settings.address is None:
        # What is started is for this machine: Ray listens on its loopback address alone, as it does on other systems.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError(f"engine: ray needs {error.name}: pip install 'lantern-pl[ray]'") from None
    _quiet(ray)
    if ray.is_initialized():
        yield Cluster(ray, settings)
        return
    # Ray puts sockets there, whose paths are at most 107 bytes.
    place = None if len(tempfile.gettempdir()) < 30 else "/tmp"
    with tempfile.TemporaryDirectory(prefix="ray-", dir=place, ignore_cleanup_errors=True) as folder:
        _connect(ray, settings, folder)
        try:
            yield Cluster(ray, settings)
        finally:
            ray.shutdown()


def _connect(ray: ModuleType, settings: RaySettings, folder: str) -> None:
    """Join or start. `folder` is for the logs and the spilled objects of what is started, which go with it."""
    options: dict[str, Any] = {"address": settings.address, "log_to_driver": False, "logging_level": logging.CRITICAL}
    if settings.address is None:
        options |= {"address": "local", "include_dashboard": False, "_temp_dir": folder}
        if settings.workers is not None:  # which may be more than there are processors: they wait for a server
            options["num_cpus"] = max(os.cpu_count() or 1, -int(-settings.workers * settings.cpus_per_worker // 1))
    in_main_thread = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(**options)
    except (OSError, ValueError, RuntimeError) as error:
        where = "started on this machine" if settings.address is None else f"joined at {settings.address!r}"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"A Ray cluster couldn't be {where}: {reason}") from None
    finally:
        for number, handler in handlers.items() if in_main_thread else ():
            signal.signal(number, handler)  # Ray puts its own in place, which would end the run in its own way


def _quiet(ray: ModuleType) -> None:
    """Leave out what Ray says: each lost task with a traceback. What is lost is asked again, and what fails is raised."""
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
    warnings.filterwarnings("ignore", message=".*minimum number of concurrent actors.*")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # A lost task isn't the end: its item comes with the next round.
    context.max_errored_blocks = -1


class Cluster:
    """The workers of a connected cluster.

    Args:
        ray: the module.
        settings: what each worker takes, and how many there are.

    Raises UserError where no machine of the cluster has room for a worker.
    """

    def __init__(self, ray: ModuleType, settings: RaySettings) -> None:
        self.ray = ray
        self.settings = settings
        self._needs = {"num_cpus": settings.cpus_per_worker, "num_gpus": settings.gpus_per_worker}
        room = sum(self._room_on(node["Resources"]) for node in ray.nodes() if node["Alive"])
        if not room:
            raise UserError(
                f"No machine of the Ray cluster has room for a worker of ray.cpus_per_worker {settings.cpus_per_worker:g} "
                f"and ray.gpus_per_worker {settings.gpus_per_worker:g}: give less, or join another cluster."
            )
        self.workers = min(room, settings.workers or room)

    def _room_on(self, resources: dict[str, float]) -> int:
        """How many workers a machine has room for."""
        wanted = {"CPU": self._needs["num_cpus"], "GPU": self._needs["num_gpus"]}
        return min(int(resources.get(name, 0) / count + 1e-9) for name, count in wanted.items() if count)

    def once(self, make: Callable[[], Any]) -> Any:
        """What a function returns that a worker runs. Raises UserError where it does, or has failed."""

        task = self.ray.remote(**self._needs, max_retries=FRUITLESS)(once)
        try:
            return value_of(self.ray.get(task.remote(sent(make, self.settings.env))))
        except self.ray.exceptions.RayError as error:
            raise self._lost(1) from error

    def results(
        self,
        make: Callable[[], Work],
        take: Take,
        at_once: int | None = None,
        go_on: Callable[[], bool] = lambda: True,
    ) -> Iterator[tuple[str, Any]]:
        """The outcome of each item with its key, in the order in which they come.

        An item whose worker is lost is done again by another one, until it has an outcome; `take` is asked between what
        is then under way, so what it gives may depend on what came back. Raises UserError where a worker says so, and
        where workers do nothing but die.

        Args:
            make: makes in each worker what does the items.
            take: gives them.
            at_once: how many of them a worker does at the same time, where it's a coroutine function that does them.
            go_on: asked before each round, when nothing is under way; false ends it, whatever is left.
        """
        content = self.ray.put(sent(make, self.settings.env))
        waiting: dict[str, bytes] = {}
        fruitless = 0
        while go_on():
            size = sum(map(len, waiting.values()))
            while len(waiting) < ROUND_ITEMS and size < ROUND_BYTES and (taken := take()):
                waiting[taken[0]] = pickle.dumps(taken[1])
                size += len(waiting[taken[0]])
            if not waiting:
                return
            before = len(waiting)
            for key, said in self._round(content, waiting, at_once):
                if waiting.pop(key, None) is not None:
                    yield key, value_of(said)
            fruitless = fruitless + 1 if len(waiting) == before else 0
            if fruitless == FRUITLESS:
                raise self._lost(before)

    def _round(self, content: Any, items: dict[str, bytes], at_once: int | None) -> Iterator[tuple[str, bytes]]:
        """What comes back of the items. One that a worker is lost with doesn't."""
        data = self.ray.data
        # Pickles end with a full stop: of bytes that end with zeros numpy, which Ray Data hands over, forgets these.
        rows = [{"key": key, "item": item} for key, item in items.items()]
        calls = at_once or 1
        workers = min(self.workers, -(-len(rows) // calls))
        pool = data.ActorPoolStrategy(
            min_size=1,
            max_size=workers,
            initial_size=workers,
            max_tasks_in_flight_per_actor=calls,
            max_concurrent_calls_per_actor=calls,
        )
        done = data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _DoesOne if at_once is None else _DoesSeveral,
            batch_size=1,
            compute=pool,
            fn_constructor_args=([content],),  # in a list: Ray Data shall not look at it
            **self._needs,
            # Lost workers are replaced, and what they had in hand isn't repeated behind our back.
            max_restarts=-1,
            max_task_retries=0,
        )
        try:
            for bundle in done.iter_internal_ref_bundles():
                for block in bundle.block_refs:
                    for row in self._rows(block):
                        yield row["key"], row["said"]
        except self.ray.exceptions.RayError:
            return  # as when no worker has begun: the next round tries again

    def _rows(self, block: Any) -> list[dict[str, Any]]:
        try:
            return list(self.ray.get(block).to_pylist())
        except self.ray.exceptions.RayError:  # it was lost with its machine
            return []

    def _lost(self, items: int) -> UserError:
        return UserError(
            f"Workers have ended {FRUITLESS} times without an answer, with {items} items left: killed, or out of memory? "
            "What was done before stays: the same command goes on from there. Fewer ray.workers, or a smaller batch_size, "
            "leave each of them more memory."
        )


class _DoesOne:
    """What Ray Data makes in each worker's process."""

    def __init__(self, content: list[Any]) -> None:
        import ray

        self.work = begin(ray.get(content[0]))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"key": batch["key"], "said": [do(self.work, batch["item"][0])]}


class _DoesSeveral(_DoesOne):
    """Likewise, in one event loop."""

    async def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        return {"key": batch["key"], "said": [await do_async(self.work, batch["item"][0])]}
