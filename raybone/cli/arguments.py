"""From a function to its command line: the signature says names, types and defaults, the docstring
says the rest.
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin

from raybone.errors import WrongInput

# What the Args of a docstring say of one argument: name, metavar, meaning.
ENTRY = re.compile(r"^    (\w+)(?: (\S+))?:((?: .+)?(?:\n {8}.+)*)$", re.MULTILINE)


class OneLine(argparse.ArgumentParser):
    """A parser to which wrong arguments are wrong input: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Raise ``WrongInput`` instead of printing argparse's usage text."""
        verb = self.prog.removeprefix("raybone").strip()
        where = f"{verb}: " if verb else ""
        raise WrongInput(f"{where}{message.removeprefix('argument ')}; see `{self.prog} --help`")


class OutFile(str):
    """A file to be written, on this machine or at a URL."""

    def __new__(cls, text: str) -> OutFile:
        """Refuse a folder, and a file in a folder that is not there."""
        path = Path(text)
        if "://" not in text and (not text or path.is_dir() or not path.parent.is_dir()):
            raise argparse.ArgumentTypeError(
                f"must be a file in a folder that is there, got {text!r}; choose another"
            )
        return super().__new__(cls, text)


def add_verb(verbs: Any, verb: Callable[..., Any]) -> None:
    """Add a verb to a command line.

    Args:
        verbs: what ``add_subparsers`` returned.
        verb: a function whose docstring is the help. Its first paragraph says what the verb does.
    """
    text = (inspect.getdoc(verb) or "").partition("\n\n")[0]
    parser = verbs.add_parser(verb.__name__, help=text, description=text)
    parser.set_defaults(verb=verb)
    add_arguments(parser, verb)


def add_arguments(parser: argparse.ArgumentParser, verb: Callable[..., Any]) -> None:
    """Add the arguments of a verb to its parser.

    Positional parameters are positional arguments, keyword-only ones are options. A bool is a flag;
    a Sequence takes one word or more, and an option of it may be repeated. A parameter whose type
    is a dataclass stands for the fields of that.

    Args:
        verb: a function or dataclass. Below Args its docstring has a line such as
            ``key FILE: meaning`` for an argument; the metavar may be left out.
    """
    entries = {name: words for name, *words in ENTRY.findall(inspect.getdoc(verb) or "")}
    for name, parameter in inspect.signature(verb, eval_str=True).parameters.items():
        kind, required = parameter.annotation, parameter.default is parameter.empty
        if _is_record(kind):
            add_arguments(parser, kind)
            continue
        metavar, meaning = entries.get(name, ("", ""))
        words: dict[str, Any] = {"help": " ".join(meaning.split())}
        if kind is bool:
            words["action"] = "store_true"
        else:
            # The type is the first of a union with None, and that of a sequence's words.
            words |= {"metavar": metavar or name.upper(), "type": (*get_args(kind), kind)[0]}
        if get_origin(kind) is Sequence:
            words |= {"nargs": "+", "action": "extend", "default": []}
        elif not required:
            words["default"] = parameter.default
        if parameter.kind is parameter.KEYWORD_ONLY:
            words["required"], name = required, f"--{name.replace('_', '-')}"
        elif not required:
            words["nargs"] = "?"
        parser.add_argument(name, **words)


def call(verb: Callable[..., Any], options: argparse.Namespace) -> Any:
    """Call a verb with what was parsed; returns what it returns."""
    parameters = inspect.signature(verb, eval_str=True).parameters
    return verb(
        **{
            name: call(parameter.annotation, options)
            if _is_record(parameter.annotation)
            else getattr(options, name)
            for name, parameter in parameters.items()
        }
    )


def _is_record(kind: object) -> bool:
    return is_dataclass(kind)
