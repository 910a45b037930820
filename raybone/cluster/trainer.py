"""Ray's TorchTrainer with fewer processes, as a search starts hundreds of runs and each waits for its processes."""

from __future__ import annotations

import asyncio
from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller import TrainController

# A process for Ray Data, which is not used here, and one that gives placement groups back only where a dashboard runs,
# and has the hub do so at its place.
NEEDLESS = (DatasetsCallback, PlacementGroupCleanerCallback)


class Trainer(TorchTrainer):
    """One Ray Train run whose controller works in the process that calls ``fit``.

    Of the six processes that ``TorchTrainer.fit`` starts for one worker, the worker and its barrier are left. Ray does
    not promise these two methods, but its version is pinned, and tests of whole studies go through them.
    """

    def _create_default_callbacks(self) -> list[Any]:
        return [c for c in super()._create_default_callbacks() if not isinstance(c, NEEDLESS)]

    def _initialize_and_run_controller(self, **given: Any) -> Any:
        async def run() -> Any:
            controller = TrainController(**given)
            await controller.run()
            return controller.get_result()

        return asyncio.run(run())
