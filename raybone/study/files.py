"""A study's YAML: read with overrides, checked with a line for every problem, written again."""

from __future__ import annotations

import difflib
import errno
import math
import re
import reprlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from raybone.errors import WrongInput
from raybone.study.param import Param
from raybone.study.soundness import misfits
from raybone.study.space import complete as completed
from raybone.study.space import dimensions, rejected
from raybone.study.spec import ModelBlock, Study, blocks_of
from raybone.study.yaml12 import NO_YAML, Dumper, load_yaml

# Aliases let a few lines of YAML stand for more than any memory holds.
_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2
# What the values of a mapping are, for near names of an unknown key.
PARTS: dict[str, type[BaseModel]] = {"space": Param, "models": ModelBlock}
# How pydantic tells the kinds of a value apart, and what any of them is.
KINDS_OF_VALUE = ("float", "int", "str", "bool", "list[str]", "list[float]")
VALUE = "a finite number, text, true or false, or a list of numbers or of texts"
MUST = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "list_type": "a list",
    "tuple_type": "a list",
}


def read_study(
    path: Path | str,
    overrides: list[str] | None = None,
    complete: Callable[[dict[str, Any], str], dict[str, Any]] = lambda content, stem: content,
) -> Study:
    """Read a study YAML, with ``key=value`` overrides on dotted keys (values are YAML).

    Args:
        complete: fills in what the mapping leaves out, given the file's stem.
    Raises:
        WrongInput: every problem of the file, one line each.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise WrongInput(f"{path}: must be YAML in UTF-8, but is not; save it as that") from None
    except OSError as error:
        cure = "its permissions" if error.errno == errno.EACCES else "the path"
        raise WrongInput(
            f"{path}: must be a study's YAML file, but: {error.strerror}; check {cure}"
        ) from None
    content = parse_yaml(text, str(path))
    for item in overrides or []:
        _override(content, item)
    return parse_study(complete(content, path.stem), where=str(path))


def parse_yaml(text: str | bytes, where: str) -> dict[str, Any]:
    """The mapping that a study's text holds.

    Raises:
        WrongInput: it is no YAML, or no mapping.
    """
    try:
        content = load_yaml(text)
    except NO_YAML as error:
        raise WrongInput(
            f"{where}: must be YAML: {' '.join(str(error).split())}; mend that line"
        ) from None
    if not isinstance(content, dict):
        raise WrongInput(
            f"{where}: a study is a YAML mapping, got {type(content).__name__}; "
            "see `raybone example smoke`"
        )
    return content


def parse_study(content: dict[str, Any], where: str = "study") -> Study:
    """Check a study given as a mapping.

    Raises:
        WrongInput: every problem, one line each: where, the rule, what came, what to do.
    """
    try:
        return Study.model_validate(content)
    except ValidationError as error:
        raise WrongInput(*problems_of(error, where, Study)) from None


def write_study(study: Study) -> str:
    """The study as YAML text which ``read_study`` reads back to an equal study."""
    content = study.model_dump(mode="json", exclude_none=True)
    del content["model" if study.models else "models"]
    if not study.track:
        del content["track"]
    for block in content.get("models", {}).values():
        for key in [key for key, value in block.items() if not value]:
            del block[key]
    content["limits"] = {
        k: v for k, v in study.limits.model_dump().items() if v not in (math.inf, None)
    }
    return str(yaml.dump(content, Dumper=Dumper, sort_keys=False, allow_unicode=True))


def problems_of(error: ValidationError, where: str, model: type[BaseModel]) -> list[str]:
    """Flatten a pydantic error into one line a problem: where, the rule, what came, what to do."""
    lines: list[str] = []
    for item in error.errors():
        branch = [n for n, part in enumerate(item["loc"]) if part in KINDS_OF_VALUE]
        key = ".".join(str(part) for part in item["loc"][: branch[0] if branch else None])
        given = item.get("input")
        given = _SHORT.repr(given) if isinstance(given, dict | list) else repr(given)
        given = re.sub(r"//[^/\s]*@", "//...@", given)  # a name and password
        given = given if len(given) <= 60 else given[:57] + "..."
        place = f"{where}: {key}" if key else where
        if item["type"] == "extra_forbidden":
            names = _names_at(model, item["loc"][:-1])
            near = difflib.get_close_matches(str(item["loc"][-1]), names, n=1)
            lines.append(
                f"{place}: unknown key; "
                + (f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(names)}")
            )
        elif item["type"] == "missing":
            lines.append(f"{place}: is required but missing; add it")
        elif item["type"] == "value_error":
            for part in str(item["ctx"]["error"]).split("\n"):
                lines.append(
                    f"{where if part.startswith(('space.', 'search.')) else place}: {part}"
                )
        else:
            own = re.sub("^Input should", "must", item["msg"])
            kind = VALUE if branch else MUST.get(item["type"], "")
            rule = f"must be {kind}" if kind else f"{own[0].lower()}{own[1:]}"
            lines.append(f"{place}: {rule}, got {given}; change it")
    return list(dict.fromkeys(lines))


def configuration_of(study: Study, words: Sequence[str]) -> dict[str, Any]:
    """A whole configuration of a study's space from words such as ``lr0=0.003``.

    Raises:
        WrongInput: it is none, one line a reason.
    """
    content: dict[str, Any] = {}
    names = [word.partition("=")[0].strip() for word in words]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise WrongInput(f"{', '.join(twice)}: must be given once; leave the others out")
    for word in words:
        _override(content, word, "")
    if problems := misfits(study, content):
        raise WrongInput(*problems)
    ends = [completed(study, content, [unit] * dimensions(study)) for unit in (0.0, 1 - 1e-9)]
    if open_ := [k for k in {**ends[1], **ends[0]} if ends[0].get(k) != ends[1].get(k)]:
        raise WrongInput(f"{', '.join(open_)}: must be given, such as {open_[0]}=...")
    if rejected(study, ends[0]):
        raise WrongInput(
            f"{' '.join(words)}: a rule of search.reject is true of it; change a value"
        )
    return ends[0]


def _names_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The field names of the model found by walking ``location`` from ``model``."""
    for part in location:
        field = model.model_fields.get(str(part))
        kind = field.annotation if field else None
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            model = kind
        elif part in PARTS:
            model = PARTS[str(part)]
    return list(model.model_fields)


def _keys(content: dict[str, Any], key: str, item: str) -> list[str]:
    """The parts of a dotted key; the name of a model, which may hold dots, is one of them."""
    head, _, rest = key.partition(".")
    if head != "models" or not rest:
        return key.split(".")
    blocks = content["models"] = blocks_of(content.get("models") or {})
    listed = [n for n in blocks if isinstance(n, str)] if isinstance(blocks, dict) else []
    names = sorted(listed, key=len, reverse=True)
    for name in names:
        if rest == name:
            return [head, name]
        if rest.startswith(f"{name}."):
            if isinstance(blocks[name], dict):
                blocks[name] = dict(blocks[name])
            return [head, name, *rest.removeprefix(f"{name}.").split(".")]
    if any(f".{part}." in f".{rest}." for part in ModelBlock.model_fields):
        raise WrongInput(
            f"--set {item}: must be of a model that the study lists, which are "
            f"{', '.join(names) or 'none'}; list it under models first"
        )
    return [head, rest]


def _override(content: dict[str, Any], item: str, option: str = "--set ") -> None:
    key, sep, text = item.partition("=")
    if not sep or not key.strip():
        such = "search.trials=8" if option else "lr0=0.003"
        raise WrongInput(f"{option}{item}: must be key=value, such as {such}")
    *path, last = _keys(content, key.strip(), item)
    node = content
    for part in path:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise WrongInput(
                f"{option}{item}: {part!r} holds a value, not a mapping; set {part} itself"
            )
    try:
        node[last] = load_yaml(text)
    except NO_YAML:
        raise WrongInput(f"{option}{item}: {text!r} must be a YAML value; quote it") from None
