#!/usr/bin/env python3
"""Checks that no object file of an instruction-set level can leak code into the rest of the module.

The CPU kernels are compiled several times, for x86-64-v2, -v3 and -v4. Where two object files define the
same inline function or template (a weak symbol), the linker keeps one of them, possibly the one with AVX-512
instructions, and a processor without AVX-512 dies there. So every weak symbol of such an object must belong
to the level's own namespace (`ovs::v3`), and no object may run code when the module is loaded.

    scripts/check_isa_symbols.py build/cp311-cp311-linux_x86_64
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

LEVEL_FOLDER = re.compile(r"_isa_(v\d)\.dir$")
WEAK_TYPES = "WwVvu"

# Data without instructions: names and descriptions of types, and the pointer to the exception handler.
HARMLESS = re.compile(r"^(_ZTI|_ZTS|DW\.ref\.)")

# Code that the dynamic linker runs when it loads the module.
STARTUP = re.compile(r"^(_GLOBAL__sub_I_|__cxx_global_var_init)")


def level_objects(build: Path) -> Iterator[tuple[str, Path]]:
    """The object files of all levels below a build folder, each with its level."""
    for path in sorted(build.rglob("*.o")):
        for folder in path.parents:
            if match := LEVEL_FOLDER.search(folder.name):
                yield match[1], path
                break


def defined_symbols(path: Path) -> list[tuple[str, str]]:
    """(type letter, mangled name) of every symbol that an object file defines, local ones included."""
    listing = subprocess.run(
        ["nm", "--defined-only", "--format=posix", str(path)], capture_output=True, text=True, check=True
    ).stdout
    return [(line.split()[1], line.split()[0]) for line in listing.splitlines() if line.strip()]


def problems(level: str, symbols: list[tuple[str, str]]) -> list[str]:
    """What is wrong with the symbols of an object file of this level, one line each."""
    own = f"3ovs{len(level)}{level}"  # `ovs::v3` as the compiler mangles it
    found = []
    for kind, name in symbols:
        if STARTUP.match(name):
            found.append(f"{name}: runs when the module is loaded (a global with a constructor)")
        elif kind in WEAK_TYPES and own not in name and not HARMLESS.match(name):
            found.append(f"{name}: weak and outside of ovs::{level}")
        elif kind == "T" and own not in name:
            found.append(f"{name}: outside of ovs::{level}")
    return found


def main() -> int:
    """Prints the problems; the exit status says whether there are any."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build", type=Path, help="build folder")
    build = parser.parse_args().build
    objects = list(level_objects(build))
    if not objects:
        print(f"{build}: expected object files of instruction-set levels, got none", file=sys.stderr)
        return 1
    failed = False
    for level, path in objects:
        for problem in problems(level, defined_symbols(path)):
            print(f"{path}: {problem}", file=sys.stderr)
            failed = True
    if not failed:
        print(f"{len(objects)} object files of {len({level for level, _ in objects})} levels: no shared code")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
