#!/usr/bin/env python3
"""Checks what is in a wheel: the package, the methods and the licence, and nothing that belongs to tests.

Usage: scripts/check_wheel.py WHEEL
"""

import argparse
import re
import sys
import zipfile
from pathlib import Path

EXPECTED = (
    r"ovs_kernels/__init__\.py",
    r"ovs_kernels/_C\.[^/]*so",
    r"ovs_kernels/_C\.pyi",
    r"ovs_kernels/py\.typed",
    r"ovs_methods/cli/__init__\.py",
    r"ovs_methods/data/paper_numbers\.json",
    r".*\.dist-info/.*LICENSE",
)
ALLOWED = re.compile(
    r"(ovs_kernels|ovs_methods)/[\w/]+\.(py|pyi)|ovs_kernels/(py\.typed|_C\.[^/]*so)|ovs_methods/data/\w+\.json|[^/]+\.dist-info/.+"
)
MAX_MEGABYTES = 20


def problems(wheel: Path) -> list[str]:
    """What is wrong with the wheel, one line each."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
    found = [f"missing: {p}" for p in EXPECTED if not any(re.fullmatch(p, name) for name in names)]
    found += [f"does not belong there: {name}" for name in names if not ALLOWED.fullmatch(name)]
    found += [f"belongs to the tests: {name}" for name in names if "emulat" in name or "/tests/" in name]
    if wheel.stat().st_size > MAX_MEGABYTES * 2**20:
        found.append(f"larger than {MAX_MEGABYTES} MB")
    return found


def main() -> int:
    """Prints the problems; the exit status says whether there are any."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    wheel = parser.parse_args().wheel
    found = problems(wheel)
    for problem in found:
        print(f"{wheel.name}: {problem}", file=sys.stderr)
    if not found:
        print(f"{wheel.name}: {wheel.stat().st_size / 2**20:.1f} MB, complete")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
