"""Who is one patient: what ids, issuers, names and birth dates say together, and where they leave
it in doubt.

An id is not compared as text alone. One that several issuers give is a patient an issuer, one that
stands for nobody is none, and patients who may be one person are kept together in a fold, but are
not made one.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from raybone.data.near_duplicates import joined

# What anonymisers, consoles and tables write where they know nobody, in small letters and without
# signs.
NOBODY = re.compile(
    r"|anon(ym|ymus)?|(anonymi[sz]ed|anonymous|unknown|test|no|un(defined|specified|named))(patient|person|name|id)?|unk|"
    r"none|null|nil|na|nan|not(available|known|set|applicable)|missing|empty|blank|patient(id|name)?|demo|dummy|sample|"
    r"default|removed|deleted|deidentified|redacted|hidden|withheld|x{3,}|匿名|未知|无|無|不明|不详"
)
# What may be an id, but often is a console's default: zeros, one digit throughout, digits in order.
DEFAULT = re.compile(r"0+|(\d)\1{3,}|0?12345(6(7(89?)?)?)?0?")
NO_BIRTH = ("00000000", "00010101", "11111111", "18000101", "19000101", "99991231")
MOST_IDS = 5  # a name and birth date that more ids share are placeholders, too
PLACEHOLDER = "scan whose patient id is a placeholder: counts as one without id"
NAMES = "scan of a patient id with several names or birth dates: counts as one patient"
ISSUERS = "scan of a patient id that several issuers give: counts as one patient an issuer"
NO_ISSUER = "scan without issuer of a patient id that several issuers give: may be of any of them"
SPELLING = (
    "scan whose patient id is another one but for case, blanks, zeros or signs: may be one person"
)
SEVERAL = "scan whose name and birth date stand with another patient id: may be one person"
STUDY = "scan of a study that stands with two patient ids: may be one person"
COMMON = (
    f"scan whose name and birth date stand with over {MOST_IDS} patient ids: taken for placeholders"
)


class Claim(NamedTuple):
    """Whose a scan says it is, as its source has it; ``header`` when a DICOM header says so, and no
    table.
    """

    id: str = ""
    issuer: str = ""
    name: str = ""
    birth: str = ""
    study: str = ""
    header: bool = False


@dataclass
class Persons:
    """What claims come to.

    identities: for each claim the text that is its patient's alone, empty where nobody is named.
    doubts: rule -> places of the claims that it was applied to. together: places of claims whose
    patients may be one person.
    """

    identities: list[str] = field(default_factory=list)
    doubts: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    together: list[tuple[int, int]] = field(default_factory=list)


def persons_of(claims: Sequence[Claim]) -> Persons:
    """Tell the patients of all scans of a dataset apart."""
    found, names, births = (
        Persons(),
        [_names(c.name) for c in claims],
        [_birth(c.birth) for c in claims],
    )
    who = [[f"{name}:{birth}" for name in many if birth] for many, birth in zip(names, births)]
    ids = _ids(claims, names)
    found.doubts[PLACEHOLDER] += [n for n, c in enumerate(claims) if c.id and not ids[n]]
    several = _issuers(found, claims, ids)
    for known, claim, keys in zip(ids, claims, who):
        issuer = _plain(claim.issuer) if known in several else ""
        found.identities.append((f"{issuer}:{known}" if issuer else known) or "".join(keys[:1]))
    studies = _by([c.study] for c in claims)
    for places in studies.values():
        named = {found.identities[n] for n in places} - {""}
        if (
            len(named) == 1
        ):  # a study is of one patient (PS3.3 A.1.2), whom not all of its objects need to name
            for n in places:
                found.identities[n] = min(named)
    for places in _by([identity] for identity in found.identities).values():
        if len({births[n] for n in places} - {""}) > 1 or _kinds(names[n] for n in places) > 1:
            found.doubts[NAMES] += places
    spelled = _by([_squeezed(known)] for known in ids).values()
    _doubt(
        found,
        SPELLING,
        [places for places in spelled if len({ids[n] for n in places}) > 1],
        len(claims),
    )
    _doubt(found, SEVERAL, _by(who).values(), MOST_IDS, COMMON)
    _doubt(found, STUDY, studies.values(), 2)
    found.doubts = {rule: sorted(set(places)) for rule, places in found.doubts.items() if places}
    return found


def anonymous(name: str) -> bool:
    """Whether an id or a name is a placeholder that names no patient."""
    return NOBODY.fullmatch(_plain(name)) is not None


def meanings(name: str) -> list[str]:
    """The identities that a person may mean by a text: an id, ISSUER:ID, or NAME:BIRTH of a patient
    without an id.
    """
    first, _, last = name.rpartition(":")
    return [
        name,
        f"{_plain(first)}:{last}",
        *(f"{known}:{_birth(last)}" for known in _names(first)),
    ]


def _ids(claims: Sequence[Claim], names: Sequence[list[str]]) -> list[str]:
    """The id of each claim, empty where it is a placeholder."""
    ids = ["" if anonymous(c.id) else c.id for c in claims]
    by_id, studies = _by([known] for known in ids), {c.study or n for n, c in enumerate(claims)}
    widths = Counter(len(known) for known in by_id if known.isdecimal())
    for known, places in by_id.items():
        kinds = _kinds(names[n] for n in places)
        # Zeros beside other numbers of as many digits are the first of them.
        unlikely = kinds > 1 or (not known.strip("0") and widths[len(known)] < 2)
        default = unlikely and DEFAULT.fullmatch(known) and all(claims[n].header for n in places)
        most = len({claims[n].study or n for n in places}) > len(studies) / 2
        if default or (kinds > 2 and most):
            for n in places:
                ids[n] = ""
    return ids


def _issuers(found: Persons, claims: Sequence[Claim], ids: Sequence[str]) -> set[str]:
    """Ids that several issuers give."""
    several = set()
    for known, places in _by([known] for known in ids).items():
        given = {_plain(claims[n].issuer) for n in places}
        if len(given - {""}) > 1:
            several.add(known)
            found.doubts[ISSUERS] += [n for n in places if _plain(claims[n].issuer)]
            found.doubts[NO_ISSUER] += [n for n in places if not _plain(claims[n].issuer)]
            found.together += zip(places, places[1:]) if "" in given else ()
    return several


def _doubt(
    found: Persons, rule: str, groups: Iterable[list[int]], most: int, beyond: str = ""
) -> None:
    """Keep the patients of each group of claims together, unless there are more than a person may
    have ids.
    """
    for places in groups:
        named = len({found.identities[n] for n in places} - {""})
        if 1 < named <= most:
            found.doubts[rule] += places
            found.together += zip(places, places[1:])
        elif named > most and beyond:
            found.doubts[beyond] += places


def _by(keys: Iterable[Sequence[str]]) -> dict[str, list[int]]:
    """Places that have a key, by key."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, many in enumerate(keys):
        for key in filter(None, many):
            places[key].append(place)
    return dict(places)


def _kinds(names: Iterable[list[str]]) -> int:
    """How many persons names are of: in any writing that two of them share they are of one."""
    known = [many for many in names if many]
    return len(
        set(
            joined(
                {w for many in known for w in many},
                [pair for many in known for pair in zip(many, many[1:])],
            ).values()
        )
    )


def _names(name: str) -> list[str]:
    """Family and given name in each writing, alphabetic, ideographic and phonetic (PS3.5 6.2.1),
    without signs.
    """
    plain = (_plain("".join(group.split("^")[:2])) for group in name.split("="))
    return list(dict.fromkeys(n for n in plain if not anonymous(n)))


def _birth(date: str) -> str:
    digits = re.sub(r"\D", "", date)
    return digits if len(digits) == 8 and digits not in NO_BIRTH else ""


def _squeezed(known: str) -> str:
    """An id without what exporters and typists change: case, blanks, signs and leading zeros."""
    return _plain(re.sub(r"(?<!\d)0+(?=\d)", "", known))


def _plain(text: str) -> str:
    """Small letters and digits, without accents, blanks, signs and control characters."""
    return re.sub(r"[\W_\u0300-\u036f]+", "", unicodedata.normalize("NFKD", text).casefold())
