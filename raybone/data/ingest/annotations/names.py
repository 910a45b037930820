"""Which scan an annotation means: by the name that it says, else by its own name; never by a guess.

Names are paths below SOURCE with forward slashes. What an annotation says was often written on
another machine: with backslashes, a drive, folders that are not here, another case, another form of
the same letters (NFC, NFD), or percent signs; each of these is tried only where stricter reading
finds nothing.
"""

from __future__ import annotations

import contextlib
import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from urllib.parse import unquote

# From strict to lenient: the first form under which a scan is found decides.
FORMS: tuple[Callable[[str], str], ...] = (
    str,
    lambda name: unicodedata.normalize("NFC", name),
    lambda name: unicodedata.normalize("NFC", name).casefold(),
    lambda name: unicodedata.normalize("NFC", unquote(name)).casefold(),
)
Form = Callable[[str], str]


class Ambiguous(Exception):
    """An annotation fits several scans alike; ``names`` are theirs."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self.names = sorted(names)


class Names:
    """The names of all scans of a source, to be looked up.

    Args:
        scans: names of the files that may be scans.
        is_scan: whether a file really is one; asked only where several fit.
    """

    def __init__(
        self, scans: Iterable[str], is_scan: Callable[[str], bool] = lambda name: True
    ) -> None:
        self.is_scan, self.scans = is_scan, set(scans)
        self._folders = {
            FORMS[-1](p) for scan in self.scans for p in PurePosixPath(scan).parent.parts
        }
        self._homes = {posixpath.dirname(scan) for scan in self.scans}
        self._by_name: list[dict[str, list[str]]] = [defaultdict(list) for _ in FORMS]
        self._by_stem: list[dict[str, list[str]]] = [defaultdict(list) for _ in FORMS]
        for scan in sorted(self.scans):
            name = posixpath.basename(scan)
            for form, by_name, by_stem in zip(FORMS, self._by_name, self._by_stem):
                by_name[form(name)].append(scan)
                by_stem[form(split_suffix(name)[0])].append(scan)

    def said(self, text: str, note: str) -> str | None:
        """The scan that an annotation file says it is for: by its name, then by its stem, as
        pictures of DICOM files.

        Args:
            text: what the annotation says: a name or a path, of this machine or another.
            note: the annotation file's own name.
        Raises:
            Ambiguous: several scans fit alike.
        """
        parts = _parts(text)
        if not parts:
            return None
        exact = posixpath.normpath(posixpath.join(posixpath.dirname(note), text.replace("\\", "/")))
        if exact in self.scans:
            return exact
        for tables, last in (
            (self._by_name, parts[-1]),
            (self._by_stem, split_suffix(parts[-1])[0]),
        ):
            for name in _spellings(last):
                for table, form in zip(tables, FORMS):
                    fit = [
                        n
                        for n in table.get(form(name), ())
                        if self._near(n, note) and self._fits(n, parts[:-1])
                    ]
                    if fit:
                        return self._one(_closest(fit, parts[:-1], note, form))
        return None

    def like(self, note: str) -> str | None:
        """The scan that an annotation file of this name belongs to: in its folder, or in a tree
        that mirrors its own.

        Raises:
            Ambiguous: several scans fit alike.
        """
        home, stem = posixpath.dirname(note), split_suffix(posixpath.basename(note))[0]
        for by_name, by_stem, form in zip(self._by_name, self._by_stem, FORMS):
            fit = {*by_name.get(form(stem), ()), *by_stem.get(form(stem), ())}
            beside = {n for n in fit if posixpath.dirname(n) == home}
            # Where scans lie beside it, it is for one of them.
            fit = (
                beside if beside or home in self._homes else {n for n in fit if self._near(n, note)}
            )
            if fit:
                return self._one(_deepest(sorted(fit), PurePosixPath(home).parts, form))
        return None

    def _near(self, scan: str, note: str) -> bool:
        """Whether a scan lies where an annotation file may mean it: beside it, below it, or in a
        tree like its own.

        Annotations/ant/0001.xml may mean JPEGImages/ant/0001.jpg, but nothing in JPEGImages/post.
        """
        own, home = (PurePosixPath(posixpath.dirname(n)).parts for n in (scan, note))
        if own[: len(home)] == home:
            return True
        if posixpath.dirname(note) in self._homes:
            return False
        shared = len(posixpath.commonprefix([own, home]))
        left = home[shared:]
        while left and len(own) > shared and left[-1] == own[-1]:
            left, own = left[:-1], own[:-1]
        return len(left) <= 1

    def _fits(self, scan: str, folders: Sequence[str]) -> bool:
        """Whether the folder that was said is the scan's, as far as both have one and the source
        has such a folder.
        """
        own = PurePosixPath(scan).parent.name
        return (
            not (own and folders)
            or FORMS[-1](own) == FORMS[-1](folders[-1])
            or FORMS[-1](folders[-1]) not in self._folders
        )

    def _one(self, names: Sequence[str]) -> str:
        if len(names) > 1:
            names = [n for n in names if self.is_scan(n)] or names
        if len(names) > 1:
            raise Ambiguous(names)
        return names[0]


def split_suffix(name: str) -> tuple[str, str]:
    """A name without its suffix, and the suffix in small letters; .nii.gz is one."""
    suffix = ".nii.gz" if name.lower().endswith(".nii.gz") else PurePosixPath(name).suffix
    return name[: len(name) - len(suffix)], suffix.lower()


def _parts(text: str) -> list[str]:
    """The folders and the name of a path of any system, or of a URL, without what leads to its
    start.
    """
    path = text.strip().replace("\\", "/")
    if "://" in path:
        path = path.partition("://")[2].partition("/")[2].partition("?")[0]
    path = re.sub(r"^[A-Za-z]:", "", path)
    return [p for p in path.split("/") if p not in ("", ".", "..")]


def _spellings(name: str) -> Iterator[str]:
    """A name, and how it looks in an archive that was packed on a Chinese, Japanese or Korean
    Windows.
    """
    yield name
    for encoding in () if name.isascii() else ("gb18030", "shift_jis", "euc_kr", "big5"):
        with contextlib.suppress(UnicodeEncodeError):
            yield name.encode(encoding).decode("cp437")


def _closest(names: Sequence[str], folders: Sequence[str], note: str, form: Form) -> Sequence[str]:
    """Of scans of one name: those whose folders agree best with what was said, then those closest
    to the annotation.
    """
    names = _deepest(names, folders, form)
    home = posixpath.dirname(note)
    # Of exports with a part for training and one for validation, each part's file names its folder.
    words = {form(w) for w in re.split(r"[\W_]+", split_suffix(posixpath.basename(note))[0])}
    for fits in (
        [n for n in names if posixpath.dirname(n) == home],
        [n for n in names if form(PurePosixPath(n).parent.name) in words],
        _deepest(names, PurePosixPath(home).parts, form),
    ):
        if len(fits) == 1:
            return fits
    return names


def _deepest(names: Sequence[str], folders: Sequence[str], form: Form) -> list[str]:
    """The names whose folders agree with these on the longest way up."""
    wanted = [form(p) for p in reversed(folders)]
    depth_of = {}
    for name in names:
        own = [form(p) for p in reversed(PurePosixPath(name).parent.parts)]
        depth_of[name] = next(
            (i for i, (a, b) in enumerate(zip(own, wanted)) if a != b), min(len(own), len(wanted))
        )
    most = max(depth_of.values())
    return [n for n in names if depth_of[n] == most]
