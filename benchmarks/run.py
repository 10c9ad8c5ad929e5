"""Runs the benchmarks: checks every implementation, times those that agree, prints tables, writes JSON.

    python benchmarks/run.py                                   every family and case, on the CPU
    python benchmarks/run.py --family pixels --cases quick     one small case
    python benchmarks/run.py --family pixels --record          into benchmarks/results/cpu/pixels.json
    python benchmarks/run.py --device cuda --json gpu.json

Exit status: 0, 1 when an implementation disagrees with the definition or ours fails, 2 for a wrong option.
"""

import argparse
import datetime
import os
import sys
import time
from pathlib import Path

import families

ISA_LEVELS = ("v2", "v3", "v4")
RESULTS = Path(__file__).resolve().parent / "results"


class Parser(argparse.ArgumentParser):
    """Errors in one line."""

    def error(self, message: str):
        """Says what is wrong and leaves."""
        self.exit(2, f"benchmarks/run.py: {message}\n")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer >= 1, got {text}")
    return int(text)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options, checked as far as that goes without loading the library."""
    parser = Parser(prog="benchmarks/run.py", description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--family", choices=("all", *families.names()), default="all")
    parser.add_argument("--cases", choices=("quick", "full"), default="full")
    parser.add_argument("--case", metavar="TEXT", help="only the case of this name, or those that contain it")
    parser.add_argument("--rounds", type=_positive, metavar="N", help="timed rounds at most (default 7, quick 3)")
    parser.add_argument("--threads", type=_positive, metavar="N", help="CPU threads (default: torch's)")
    parser.add_argument("--isa", choices=ISA_LEVELS, help="instruction-set level (default: the best one)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here")
    parser.add_argument("--record", action="store_true", help="write them to benchmarks/results/DEVICE/FAMILY.json")
    options = parser.parse_args(arguments)
    if options.json is not None and not options.json.parent.is_dir():
        parser.error(f"--json: no folder {options.json.parent}")
    if options.json is not None and options.json.is_dir():
        parser.error(f"--json: {options.json} is a folder")
    if options.rounds is None:
        options.rounds = 3 if options.cases == "quick" else 7
    if options.record and (options.cases != "full" or options.case is not None):
        parser.error("--record: expected the full cases, all of them")
    return options


def prepare(options: argparse.Namespace):
    """Loads torch and the library with the settings asked for; the device, or one line and exit status 2."""
    if options.isa is not None:
        os.environ["OVS_KERNELS_ISA"] = options.isa  # before the library is loaded
    try:
        import torch

        from ovs_kernels import _native
    except ImportError as error:
        _leave(f"{error}; install the package first (make bench does)")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.device == "cuda" and not torch.cuda.is_available():
        _leave("--device cuda: torch sees no CUDA device")
    if options.device == "cuda" and not _native.cuda_available():
        _leave("--device cuda: this build of ovs_kernels has no CUDA kernels")
    if _native.module() is None:
        _leave(f"the compiled module cannot be used: {_native.load_error() or 'OVS_KERNELS_REFERENCE is set'}")
    try:
        _native.isa()
    except RuntimeError as error:
        _leave(f"--isa: {error}")
    return torch.device(options.device, 0) if options.device == "cuda" else torch.device("cpu")


def _leave(message: str):
    sys.stderr.write(f"benchmarks/run.py: {message}\n")
    raise SystemExit(2)


def progress(prefix: str):
    """A function that shows what is being done, on a terminal; silent elsewhere."""
    if not sys.stderr.isatty():
        return lambda text: None

    def say(text: str) -> None:
        shown = f"{prefix}: {text}" if text else ""
        sys.stderr.write(f"\r\x1b[K{shown[:118]}")
        sys.stderr.flush()

    return say


def selected(cases: list, text: str | None) -> list:
    """The case of that name, else those with `text` in their name; all without a `text`."""
    if text is None:
        return cases
    return [case for case in cases if case.name == text] or [case for case in cases if text in case.name]


def run_families(options: argparse.Namespace, device) -> dict:
    """The document: machine, roofs and the record of each case. Prints a table after each."""
    import harness
    import machine
    import memory
    import report

    quick = options.cases == "quick"
    document = {
        "command": machine.command_line(),
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **machine.commit(),
        "device": options.device,
        "cases_selected": options.cases,
        "machine": machine.describe(device),
    }
    progress("machine")("measuring its roofs")
    roofs = machine.measure_roofs(device, quick)
    document |= {"roofs": vars(roofs), "cases": []}
    progress("")("")
    print(report.machine_text(document))
    start = time.perf_counter()
    for family in families.names() if options.family == "all" else [options.family]:
        wanted = memory.Request(family, options.cases, device, only_ours=quick)
        for case in selected(families.load(family).cases(options.cases, device), options.case):
            say = progress(f"{family} {case.name}")
            record = harness.run_case(case, family, rounds=options.rounds, roofs=roofs, wanted=wanted, say=say)
            say("")
            document["cases"].append(record)
            print(report.case_text(record), flush=True)
    document["seconds"] = time.perf_counter() - start
    return document


def write(options: argparse.Namespace, document: dict) -> None:
    """The files asked for; each is named on stdout."""
    import report

    if options.json is not None:
        report.write_json(document, options.json)
        print(f"wrote {options.json}")
    if not options.record:
        return
    folder = RESULTS / options.device
    folder.mkdir(parents=True, exist_ok=True)
    for family in {record["family"]: None for record in document["cases"]}:
        mine = [record for record in document["cases"] if record["family"] == family]
        path = folder / f"{family}{'_' + options.isa if options.isa else ''}.json"
        report.write_json({**document, "cases": mine}, path)
        print(f"wrote {path.relative_to(RESULTS.parent.parent)}")


def main(arguments: list[str]) -> int:
    """The command."""
    options = parse(arguments)
    device = prepare(options)
    import harness

    document = run_families(options, device)
    if not document["cases"]:
        _leave(f"--case: no case has {options.case!r} in its name")
    write(options, document)
    faults = [fault for record in document["cases"] for fault in harness.failures(record)]
    for fault in faults:
        sys.stderr.write(f"benchmarks/run.py: {fault}\n")
    return 1 if faults else 0


if __name__ == "__main__":
    try:
        raise SystemExit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        raise SystemExit("\nbenchmarks/run.py: interrupted") from None
