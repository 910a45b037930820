"""Ray's TorchTrainer with fewer processes, as a search starts hundreds of runs and each waits for
its processes.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.logging.logging import SessionFileHandler

# A process for Ray Data, which is not used here, and one that gives placement groups back only
# where a dashboard runs, and has the hub do so at its place.
NEEDLESS = (DatasetsCallback, PlacementGroupCleanerCallback)
_BUILDING = threading.Lock()


class Trainer(TorchTrainer):
    """One Ray Train run whose controller works in the process that calls ``fit``.

    Of the six processes that ``TorchTrainer.fit`` starts for one worker, the worker and its barrier
    are left. Ray does not promise these three methods, but its version is pinned, and tests of
    whole studies go through them.

    Args:
        placed: called with the id of the run's placement group before anything is in it; whoever
            outlives this process has to remove the group.
    """

    def __init__(self, *arguments: Any, placed: Callable[[str], None], **given: Any) -> None:
        super().__init__(*arguments, **given)
        self._placed = placed

    def _create_default_callbacks(self) -> list[Any]:
        return [c for c in super()._create_default_callbacks() if not isinstance(c, NEEDLESS)]

    def _initialize_and_run_controller(self, **given: Any) -> Any:
        placed = self._placed

        class Workers(WorkerGroup):
            def _create_placement_group(self, *arguments: Any) -> Any:
                handle = super()._create_placement_group(*arguments)
                placed(handle.placement_group.id.hex())
                return handle

        class Controller(TrainController):
            worker_group_cls = Workers

        async def run() -> Any:
            controller = built(Controller, **given)
            await controller.run()
            return controller.get_result()

        return asyncio.run(run())


def built(kind: type[TrainController], **given: Any) -> TrainController:
    """A controller, of which a process builds one after the other.

    Each sets up Ray Train's logging anew: that holds logging's own lock and waits for those of the
    handlers that it replaces, while a handler that another thread logs through for the first time
    is held and waits for logging's own, to open its file. The files are therefore opened here,
    before anybody logs.
    """
    with _BUILDING:
        controller = kind(**given)
        for handler in logging.getLogger("ray.train").handlers:
            if isinstance(handler, SessionFileHandler):
                handler.get_log_file_path()
    return controller
