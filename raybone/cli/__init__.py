"""The command line: one function a verb, no logic of its own.

Exit codes: 0 done, 1 failed while running, 2 wrong input; of a search, 128 and its number after a
signal.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn

from raybone import __version__
from raybone.cli import clusters, data, results, study
from raybone.cli.arguments import OneLine, add_verb, call
from raybone.errors import MachineFault, RunFailed, WrongInput
from raybone.private import hear_signals
from raybone.results.terminal import say

# What to do about an error of the system.
MEND = {
    errno.ENOSPC: "free space or choose another place",
    errno.EDQUOT: "free space or choose another place",
    errno.EROFS: "it is read-only: choose another place",
    errno.EACCES: "check its permissions",
    errno.EPERM: "check its permissions",
    errno.ENOENT: "check the path",
    errno.EISDIR: "give a file",
    errno.ENOTDIR: "give a folder",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOMEM: "free memory, or use less at once",
}

VERBS = (
    study.demo,
    data.phantom,
    data.prepare,
    data.inspect,
    data.models,
    study.example,
    data.schema,
    data.init,
    study.preview,
    study.search,
    clusters.manifests,
    clusters.slurm,
    clusters.submit,
    study.simulate,
    study.watch,
    study.logs,
    study.add,
    study.stop,
    results.leaderboard,
    results.track,
    results.compare,
    results.report,
    results.checklist,
    results.refit,
    results.predict,
    results.evaluate,
    results.burden,
    data.export,
    data.forget,
)


def run(arguments: Sequence[str] | None = None) -> NoReturn:
    """``main`` as a process; after a signal it waits for no thread that is left."""
    code = main(arguments)
    if code < 128 or threading.active_count() == 1:
        sys.exit(code)
    sys.stdout.flush()
    os._exit(code)


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line; ``verb`` of what it parses is the verb's function."""
    top = OneLine(
        prog="raybone",
        description="Cross-validated hyper-parameter search for bone-metastasis models.",
    )
    top.add_argument("--version", action="version", version=f"raybone {__version__}")
    verbs = top.add_subparsers(title="verbs", required=True, metavar="VERB")
    for verb in VERBS:
        add_verb(verbs, verb)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    name, heard = "", hear_signals()
    try:
        top = parser()
        if "_ARGCOMPLETE" in os.environ:  # a shell asks what a half-written command may become
            import argcomplete

            argcomplete.autocomplete(top)
        options, unknown = top.parse_known_args(arguments)
        name = options.verb.__name__
        if unknown:
            given = f"{name}: {' '.join(unknown)}: is unknown"
            raise WrongInput(f"{given}; see `raybone {name} --help`")
        return call(options.verb, options) or 0
    except WrongInput as error:
        return _failed(2, *error.problems)
    except (RunFailed, MachineFault) as error:
        return _failed(1, str(error))
    except OSError as error:
        if isinstance(error, BrokenPipeError) and name in ("logs", "watch"):
            return 0  # the reader of a pipe, such as head, has had enough
        file = f"{error.filename}: " if error.filename else ""
        mend = MEND.get(error.errno or 0, "look there, then try again")
        return _failed(1, f"{file}{error.strerror or error}; {mend}")
    except (KeyboardInterrupt, Exception) as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which takes seconds to import
            return _failed(
                1,
                "the GPU has no room beside what others do on it; wait for them, or set "
                "CUDA_VISIBLE_DEVICES= to use the processor",
            )
        # After a signal, libraries in C may raise another error of their own.
        if not heard and not isinstance(error, KeyboardInterrupt):
            raise
        resumes = name in ("search", "demo", "forget")
        rest = "the same command resumes it" if resumes else "nothing is left of it"
        rest = "what was told is kept" if name == "track" else rest
        evicted = 128 + (heard or [signal.SIGINT])[0]
        code = evicted if name in ("search", "demo") else 1
        return _failed(code, f"interrupted; {rest}")


def _failed(code: int, *problems: str) -> int:
    """Print each problem on a line of its own; returns the exit code."""
    for problem in problems:
        say(f"raybone: {' '.join(problem.splitlines())}", file=sys.stderr)
    return code
