"""Cases, the check of every implementation against the float64 definition, and the timing of those that pass it.

A family file (`bench_<family>.py`) declares `Case`s; `run_case` does the rest, in this order:

1. the definition is computed in float64;
2. each implementation runs once and is compared with it; one that disagrees is reported and never timed;
3. the implementations are timed in one process, in rounds: each round runs every one of them once, in an order that
   rotates from round to round, so that a slow minute of the machine falls on all of them;
4. extra memory is measured, on a CPU in a fresh process per implementation.

The numbers are medians and quartiles of the rounds, and ratios of medians. On CUDA, events around the call are what is
timed, and the level-2 cache is overwritten before each run.
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterable

import memory
import torch
from machine import Roofs
from torch import Tensor

Inputs = dict[str, Tensor]

OURS, REFERENCE, PYTORCH, PUBLISHED = "ours", "reference", "pytorch", "published"

# An implementation whose first run takes longer than this is timed in fewer rounds; one far above, in that run only.
SLOW_SECONDS, VERY_SLOW_SECONDS = 2.0, 20.0
SLOW_ROUNDS = 3
# On a CPU a sample repeats the call until it has taken about this long.
SAMPLE_SECONDS = 0.02
CACHE_FLUSH_BYTES = 512 * 2**20


class BenchmarkError(Exception):
    """What stops a benchmark run, in one line."""


@dataclasses.dataclass(frozen=True)
class Implementation:
    """Ours, or something that computes the same.

    Attributes:
        name: for the table.
        group: "ours", "reference", "pytorch" or "published".
        run: inputs -> result; everything from the caller's tensors to the result is timed.
        left_out: why this one does not run in this case, or None.
    """

    name: str
    group: str
    run: Callable[[Inputs], Tensor]
    left_out: str | None = None


@dataclasses.dataclass(frozen=True)
class Work:
    """What a case cannot do without, counted by the family file.

    Attributes:
        flops: float32 additions and multiplications.
        bytes: moved between memory and processor.
        exps: exponentials.
        how: the count in words.
    """

    flops: float
    bytes: float
    exps: float
    how: str


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """When a result agrees with the float64 definition.

    Attributes:
        labels: smallest share of pixels whose label (the result, or its argmax over axis 0) is equal.
        error: largest |result - expected| / |expected| in the Euclidean norm; not asked of labels.
    """

    labels: float
    error: float


@dataclasses.dataclass(frozen=True)
class Case:
    """One problem at one size.

    Attributes:
        name: unique in its family.
        sizes: for the record.
        options: arguments of the operator, for the record.
        source: what the inputs are.
        inputs: makes them, on the device of the run; the same at each call.
        expected: inputs -> float64 scores [C, ...], by the definition.
        implementations: ours first.
        tolerance: of the check.
        work: the least that any implementation does.
    """

    name: str
    sizes: dict[str, int]
    options: dict[str, object]
    source: str
    inputs: Callable[[], Inputs]
    expected: Callable[[Inputs], Tensor]
    implementations: list[Implementation]
    tolerance: Tolerance
    work: Work


@dataclasses.dataclass
class Outcome:
    """What became of one implementation.

    Attributes:
        status: "ok", "left out", "disagrees" or "failed".
        reason: of any status but "ok".
        equal_labels: share of pixels.
        error: relative, in the Euclidean norm; None for labels.
        seconds: one per round.
        extra_mb: peak memory over the loaded inputs, result included; None if it was not measured.
        peak_mb: of the whole process (CUDA: extra and inputs).
        memory_method: how.
    """

    name: str
    group: str
    status: str = "ok"
    reason: str = ""
    equal_labels: float | None = None
    error: float | None = None
    seconds: list[float] = dataclasses.field(default_factory=list)
    extra_mb: float | None = None
    peak_mb: float | None = None
    memory_method: str = ""

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    def record(self, ours: float | None) -> dict[str, object]:
        """For the JSON file; `ours` is our median."""
        fields: dict[str, object] = {"name": self.name, "group": self.group, "status": self.status}
        if self.reason:
            fields["reason"] = self.reason
        if self.equal_labels is not None:
            fields["check"] = {"equal_labels": self.equal_labels, "relative_error": self.error}
        if self.seconds:
            first, third = quartiles(self.seconds)
            fields |= {"rounds": len(self.seconds), "median_s": self.median, "q1_s": first, "q3_s": third}
            fields["ratio"] = self.median / ours if ours else None
        if self.extra_mb is not None:
            fields |= {"extra_mb": self.extra_mb, "peak_mb": self.peak_mb}
        if self.memory_method:
            fields["memory_method"] = self.memory_method
        return fields


def quartiles(samples: list[float]) -> tuple[float, float]:
    """First and third quartile; of a single sample, that sample."""
    if len(samples) == 1:
        return samples[0], samples[0]
    first, _, third = statistics.quantiles(samples, n=4, method="inclusive")
    return first, third


def agreement(result: Tensor, expected: Tensor) -> tuple[float, float | None]:
    """How near a result comes to the definition.

    Args:
        result: [C, ...] scores, or [...] labels of any integer dtype.
        expected: [C, ...] float64 scores.

    Returns:
        Share of equal labels; relative error of scores, None for labels.
    """
    is_labels = not result.is_floating_point()
    shape = expected.shape[1:] if is_labels else expected.shape
    if result.shape != shape:
        raise BenchmarkError(f"expected a result of shape {list(shape)}, got {list(result.shape)}")
    labels = result if is_labels else result.argmax(0)
    share = (labels.to(torch.int64) == expected.argmax(0)).double().mean().item()
    if is_labels:
        return share, None
    # One class at a time: a float64 copy of all of them would be the largest array of the run.
    squares = sum((a.double() - b).square().sum().item() for a, b in zip(result, expected, strict=True))
    return share, math.sqrt(squares / max(expected.square().sum().item(), 1e-300))


def check(outcome: Outcome, result: Tensor, expected: Tensor, tolerance: Tolerance) -> None:
    """Writes the agreement into `outcome`, and "disagrees" where it is not enough."""
    outcome.equal_labels, outcome.error = agreement(result, expected)
    faults = []
    if not outcome.equal_labels >= tolerance.labels:
        faults.append(f"{outcome.equal_labels:.6f} of the labels are equal, expected {tolerance.labels}")
    if outcome.error is not None and not outcome.error <= tolerance.error:
        faults.append(f"relative error {outcome.error:.2g}, expected at most {tolerance.error:g}")
    if faults:
        outcome.status, outcome.reason = "disagrees", "; ".join(faults)


class Timer:
    """Times one call; see the module's docstring for what differs on CUDA."""

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._flush = torch.empty(CACHE_FLUSH_BYTES, dtype=torch.uint8, device=device) if self._cuda else None

    def first(self, run: Callable[[Inputs], Tensor], inputs: Inputs) -> tuple[Tensor, float]:
        """The result of a call, and its seconds with all set-up that a first call does."""
        start = time.perf_counter()
        result = run(inputs)
        if self._cuda:
            torch.cuda.synchronize()
        return result, time.perf_counter() - start

    def sample(self, run: Callable[[Inputs], Tensor], inputs: Inputs, repeats: int) -> float:
        """Seconds per call."""
        if self._cuda:
            self._flush.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run(inputs)
            end.record()
            torch.cuda.synchronize()
            return begin.elapsed_time(end) / 1000
        start = time.perf_counter()
        for _ in range(repeats):
            run(inputs)
        return (time.perf_counter() - start) / repeats


def planned_rounds(first_seconds: float, rounds: int) -> int:
    """Rounds still to run after a first run of that length; 0 means that the first run is the measurement."""
    if first_seconds > VERY_SLOW_SECONDS:
        return 0
    return min(rounds, SLOW_ROUNDS) if first_seconds > SLOW_SECONDS else rounds


def _one_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"


def _check_all(case: Case, inputs: Inputs, timer: Timer, say) -> tuple[list[Outcome], dict[str, float]]:
    """Step 1 and 2 of the module's docstring: outcomes, and the seconds of the first run of those that agree."""
    say("float64 definition")
    expected = case.expected(inputs)
    outcomes, first = [], {}
    for implementation in case.implementations:
        outcome = Outcome(implementation.name, implementation.group)
        outcomes.append(outcome)
        if implementation.left_out is not None:
            outcome.status, outcome.reason = "left out", implementation.left_out
            continue
        say(f"check {implementation.name}")
        try:
            result, seconds = timer.first(implementation.run, inputs)
            check(outcome, result, expected, case.tolerance)
        except (RuntimeError, MemoryError, ValueError, TypeError, BenchmarkError) as error:
            outcome.status, outcome.reason = "failed", _one_line(error)
            continue
        del result
        if outcome.status == "ok":
            first[outcome.name] = seconds
    return outcomes, first


def _time_all(case: Case, inputs: Inputs, timer: Timer, outcomes: list[Outcome], first, rounds: int, say) -> None:
    """Step 3: fills `seconds` of the outcomes that are "ok"."""
    runs = {implementation.name: implementation.run for implementation in case.implementations}
    left, repeats = {}, {}
    for outcome in (outcome for outcome in outcomes if outcome.status == "ok"):
        left[outcome.name] = planned_rounds(first[outcome.name], rounds)
        if left[outcome.name] == 0:
            outcome.seconds.append(first[outcome.name])
            continue
        say(f"warm up {outcome.name}")
        warm = timer.sample(runs[outcome.name], inputs, 1) if first[outcome.name] < SLOW_SECONDS else SLOW_SECONDS
        repeats[outcome.name] = max(1, math.ceil(SAMPLE_SECONDS / max(warm, 1e-6)))
    for number in range(rounds):
        order = outcomes[number % len(outcomes) :] + outcomes[: number % len(outcomes)]
        for outcome in order:
            if left.get(outcome.name, 0) > number:
                say(f"round {number + 1}/{rounds} {outcome.name}")
                outcome.seconds.append(timer.sample(runs[outcome.name], inputs, repeats[outcome.name]))


def _measure_memory(case: Case, inputs: Inputs, outcomes: list[Outcome], wanted: memory.Request, say) -> None:
    """Step 4, for ours and, unless the run is a quick one, for every implementation that is not very slow."""
    runs = {implementation.name: implementation.run for implementation in case.implementations}
    for outcome in outcomes:
        if outcome.status != "ok":
            continue
        if outcome.group != OURS and (wanted.only_ours or outcome.median > VERY_SLOW_SECONDS):
            continue
        say(f"memory of {outcome.name}")
        if wanted.device.type == "cuda":
            inputs_bytes = sum(tensor.nbytes for tensor in inputs.values())
            measured = memory.on_cuda(lambda name=outcome.name: runs[name](inputs), inputs_bytes)
        else:
            measured = memory.in_fresh_process(wanted, case.name, outcome.name)
        outcome.extra_mb, outcome.peak_mb, outcome.memory_method = measured


def _best(outcomes: Iterable[Outcome], group: str) -> Outcome | None:
    timed = [outcome for outcome in outcomes if outcome.group == group and outcome.seconds]
    return min(timed, key=lambda outcome: outcome.median, default=None)


def run_case(case: Case, family: str, *, rounds: int, roofs: Roofs, wanted: memory.Request | None, say) -> dict:
    """Checks, times and measures one case.

    Args:
        case: the case.
        family: its family.
        rounds: at most.
        roofs: of this machine.
        wanted: how to measure memory; None leaves it out.
        say: function str -> None, told what is being done.

    Returns:
        The record for the JSON file.
    """
    start = time.perf_counter()
    inputs = case.inputs()
    timer = Timer(next(iter(inputs.values())).device)
    with torch.inference_mode():
        outcomes, first = _check_all(case, inputs, timer, say)
        _time_all(case, inputs, timer, outcomes, first, rounds, say)
        if wanted is not None:
            _measure_memory(case, inputs, outcomes, wanted, say)
    ours = _best(outcomes, OURS)
    ratios = {}
    for group in (PYTORCH, PUBLISHED, REFERENCE):
        best = _best(outcomes, group)
        if ours is not None and best is not None:
            ratios[group] = {"best": best.name, "ratio": best.median / ours.median}
    floor = roofs.floor(case.work.flops, case.work.bytes, case.work.exps)
    return {
        "family": family,
        "name": case.name,
        "sizes": case.sizes,
        "options": case.options,
        "source": case.source,
        "tolerance": dataclasses.asdict(case.tolerance),
        "work": dataclasses.asdict(case.work),
        "floor": floor,
        "share_of_roof": floor["seconds"] / ours.median if ours is not None else None,
        "ratios": ratios,
        "implementations": [outcome.record(ours.median if ours else None) for outcome in outcomes],
        "seconds": time.perf_counter() - start,
    }


def failures(record: dict) -> list[str]:
    """What makes a case's record unusable: ours without a time, or anybody who disagrees."""
    return [
        f"{record['family']}, {record['name']}: {entry['name']} {entry['status']}: {entry['reason']}"
        for entry in record["implementations"]
        if entry["status"] == "disagrees" or (entry["group"] == OURS and entry["status"] != "ok")
    ]
