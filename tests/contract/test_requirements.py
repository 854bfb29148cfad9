"""requirements.txt pins what requirements.in asks for and all that this brings, at the versions that are installed.

Other packages in the environment do not matter: a developer may install what they like. Libraries that only the CUDA build of
torch brings are left to torch, because other builds have none of them.
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LINES = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
PINS = [line for line in LINES if line and not line.startswith("#")]
BROUGHT_BY_CUDA_TORCH = ("nvidia-", "cuda-", "triton")


def requirements(text: str) -> list[Requirement]:
    """The requirements of a file, one per line, without its comments."""
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines())
    return [Requirement(line) for line in lines if line]


def direct() -> list[Requirement]:
    return requirements((ROOT / "requirements.in").read_text(encoding="utf-8"))


def pins() -> dict[str, str]:
    """Version by package, of the pins that apply to this platform and Python."""
    return {canonicalize_name(pin.name): str(pin.specifier)[2:] for pin in requirements("\n".join(PINS)) if applies(pin)}


def applies(requirement: Requirement, extra: str = "") -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def installed(name: str) -> str | None:
    """The version without its build (`2.13.0+cpu` is `2.13.0`), or None."""
    found = list(metadata.distributions(name=name))
    return found[0].version.partition("+")[0] if found else None


def asked_by(name: str) -> list[str]:
    """What an installed package requires, by its metadata; nothing of one that is not installed."""
    return (metadata.requires(name) or []) if installed(name) else []


def brought(asked: list[Requirement], asked_by=asked_by) -> set[str]:
    """Names of the requirements and of all that they require, with the extras that are asked for and no others."""
    found: set[tuple[str, str]] = set()
    waiting = [each for each in asked if applies(each)]
    while waiting:
        each = waiting.pop()
        new = {(canonicalize_name(each.name), extra) for extra in ("", *each.extras)} - found
        found |= new
        for name, extra in new:
            required = [Requirement(line) for line in asked_by(name) if not line.startswith(BROUGHT_BY_CUDA_TORCH)]
            waiting += [requirement for requirement in required if applies(requirement, extra)]
    return {name for name, _ in found}


# ---- The files of the repository ------------------------------------------------------------------------------------


def test_requirements_every_line_is_an_exact_pin(subtests) -> None:
    assert len(PINS) > 20
    for line in PINS:
        with subtests.test(line=line):
            assert re.fullmatch(r"[a-z0-9._-]+==[0-9][A-Za-z0-9.]*( ; .+)?", line)


def test_requirements_direct_ones_have_a_pin_that_suits_them(subtests) -> None:
    pinned, asked = pins(), [requirement for requirement in direct() if applies(requirement)]
    assert len(asked) > 5
    for requirement in asked:
        with subtests.test(requirement=str(requirement)):
            assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)])


def test_requirements_are_installed_at_their_pins_with_all_that_they_bring(subtests) -> None:
    pinned = pins()
    for name in sorted(brought(direct())):
        with subtests.test(package=name):
            assert installed(name) is not None and installed(name) == pinned.get(name)


def test_requirements_pin_nothing_that_nobody_asks_for() -> None:
    assert pins().keys() - brought(direct()) == set()


def test_requirements_leave_cuda_libraries_to_torch() -> None:
    assert [line for line in PINS if line.startswith(BROUGHT_BY_CUDA_TORCH)] == []


# ---- By hand --------------------------------------------------------------------------------------------------------


def test_requirements_are_read_without_comments() -> None:
    text = "# Heading\n\ntorch==2.0  # trains: see issue#3\n  dvc[s3]>=3 ; python_version > '3'\t# stages\n"
    first, second = requirements(text)
    assert (first.name, str(first.specifier), first.marker) == ("torch", "==2.0", None)
    assert (second.name, second.extras, str(second.specifier)) == ("dvc", {"s3"}, ">=3") and second.marker


def test_requirements_bring_what_markers_and_extras_ask_for() -> None:
    """In a circle, through an extra that is asked for, and not: another extra, another platform, a library of CUDA."""
    packages = {
        "a": ["B_b[fast]>=1", "no; extra == 'other'", "no; sys_platform == 'none'", "nvidia-no"],
        "b-b": ["a", "c; extra == 'fast'", "no; extra == 'slow'"],
        "c": ["d; python_version >= '3'"],
        "d": [],
    }
    assert brought(requirements("a\nno; sys_platform == 'none'"), packages.__getitem__) == {"a", "b-b", "c", "d"}


def test_requirements_know_what_is_installed() -> None:
    assert re.match(r"\d+\.\d+", installed("pytest")) and any(line.startswith("pluggy") for line in asked_by("pytest"))
    assert installed("a-package-that-is-none") is None and asked_by("a-package-that-is-none") == []
