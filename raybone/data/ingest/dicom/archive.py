"""Sources that may be an archive: DICOMweb's library is loaded where it is asked for alone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from raybone.errors import WrongInput

SCHEME = "dicomweb:"


@contextlib.contextmanager
def source_of(
    source: str | os.PathLike[str],
    modality: str | None,
    dataset: Path,
    progress: Callable[[int, int], None],
) -> Iterator[Path]:
    """The folder or file of a source; an archive fills one for the time of the block.

    Raises:
        WrongInput: of an archive, as ``fetched`` has it; or the dataset is there already.
        MachineFault: the archive does not answer.
    """
    place = os.fspath(source)
    if not place.startswith(SCHEME):
        yield Path(place)
        return
    if os.path.lexists(dataset):
        raise WrongInput(f"DATASET {dataset}: must not exist yet; choose another name")
    with web("prepare").fetched(place, modality, dataset, progress) as folder:
        yield folder


def web(verb: str) -> Any:
    """What speaks DICOMweb, where its library is installed.

    Raises:
        WrongInput: it is not.
    """
    try:
        from raybone.data.ingest.dicom import web
    except ImportError as error:
        raise WrongInput(
            f"{verb}: DICOMweb needs a package that is not installed ({error.name}); "
            "pip install 'raybone[dicomweb]'"
        ) from None
    return web
