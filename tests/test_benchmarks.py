"""The benchmark programs: a real run of `run.py`, and a harness that believes nobody who is wrong."""

import contextlib
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ovs_kernels import _native

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
PEERS = {
    "PyTorch stencil",
    "PyTorch stencil in bands of rows",
    "PyTorch block bands, bmm",
    "PyTorch sparse CSR",
    "published (SciPy)",
    "reference, float32",
}


@contextlib.contextmanager
def benchmarks_on_path():
    """The modules of benchmarks/ import each other by name, as they do when run.py is the program."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def harness():
    with benchmarks_on_path():
        yield importlib.import_module("harness")


@pytest.fixture(scope="module")
def roofs(harness):
    return importlib.import_module("machine").Roofs(read_gb_s=10.0, matmul_gflop_s=100.0, exp_g_s=1.0)


@pytest.fixture(scope="module")
def bench_pixels(harness):
    return importlib.import_module("bench_pixels")


def run_program(*arguments, cwd, **environment):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OVS_KERNELS_")}
    command = [sys.executable, str(BENCHMARKS / "run.py"), *arguments]
    environment = {**clean, **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=300)


needs_module = pytest.mark.skipif(not _native.isa_levels(), reason="the compiled module is missing")


# A real run


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    """One run of the quick case of one family: the process and its document."""
    folder = tmp_path_factory.mktemp("benchmarks")
    level = _native.isa_levels()[0]
    arguments = ["--cases", "quick", "--device", "cpu", "--threads", "1", "--rounds", "2", "--json", "quick.json"]
    arguments += ["--family", "pixels"]
    arguments += ["--isa", level] if level in ("v2", "v3", "v4") else []
    done = run_program(*arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done, json.loads((folder / "quick.json").read_text()), level


@needs_module
def test_the_document_says_where_it_was_measured(quick_run):
    _, document, level = quick_run
    machine, roofs = document["machine"], document["roofs"]
    assert document["command"].startswith("python benchmarks/run.py --cases quick --device cpu")
    assert document["device"] == "cpu"
    assert document["cases_selected"] == "quick"
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=BENCHMARKS, capture_output=True, text=True, check=False)
    assert document["commit"] == (head.stdout.strip() if head.returncode == 0 else "unknown")
    assert (document["dirty"] is None) == (head.returncode != 0)
    assert machine["threads"] == 1
    assert machine["isa"] == level
    assert machine["torch"] == torch.__version__
    assert machine["cpu"]
    assert machine["cores"] >= machine["usable_cores"] >= 1
    assert all(roofs[key] > 0 for key in ("read_gb_s", "matmul_gflop_s", "exp_g_s"))


@needs_module
def test_every_peer_ran_and_agreed(quick_run):
    (record,) = quick_run[1]["cases"]
    entries = {entry["name"]: entry for entry in record["implementations"]}
    assert set(entries) == {"ovs_kernels", *PEERS}
    for name, entry in entries.items():
        assert entry["status"] == "ok", (name, entry)
        assert entry["check"]["equal_labels"] >= record["tolerance"]["labels"]
        assert entry["check"]["relative_error"] <= record["tolerance"]["error"]


@needs_module
def test_times_ratios_and_roofs_are_consistent(quick_run):
    document = quick_run[1]
    (record,) = document["cases"]
    entries = {entry["name"]: entry for entry in record["implementations"]}
    ours = entries["ovs_kernels"]
    for entry in entries.values():
        assert entry["rounds"] == 2
        assert 0 < entry["q1_s"] <= entry["median_s"] <= entry["q3_s"]
        assert entry["ratio"] == pytest.approx(entry["median_s"] / ours["median_s"])
    fastest = min((e for e in entries.values() if e["group"] == "pytorch"), key=lambda entry: entry["median_s"])
    assert record["ratios"]["pytorch"] == {"best": fastest["name"], "ratio": fastest["ratio"]}
    assert record["ratios"]["published"]["ratio"] == entries["published (SciPy)"]["ratio"]
    work, roofs = record["work"], document["roofs"]
    floor = max(
        work["flops"] / roofs["matmul_gflop_s"], work["bytes"] / roofs["read_gb_s"], work["exps"] / roofs["exp_g_s"]
    )
    assert record["floor"]["seconds"] == pytest.approx(floor / 1e9)
    assert record["share_of_roof"] == pytest.approx(record["floor"]["seconds"] / ours["median_s"])


@needs_module
def test_memory_holds_at_least_the_result(quick_run):
    (record,) = quick_run[1]["cases"]
    ours = record["implementations"][0]
    sizes = record["sizes"]
    result_mb = 4 * sizes["C"] * sizes["H"] * sizes["W"] / 1e6
    assert ours["memory_method"]
    assert result_mb <= ours["extra_mb"] <= 100
    assert ours["peak_mb"] > ours["extra_mb"]


@needs_module
def test_the_table_shows_what_the_document_says(quick_run):
    done, document, _ = quick_run
    assert done.stderr == ""
    for entry in document["cases"][0]["implementations"]:
        (line,) = (line for line in done.stdout.splitlines() if entry["name"] in map(str.strip, line.split("|")))
        assert f"{entry['ratio']:.2f}x" in line
        assert f"{100 * entry['check']['equal_labels']:.4f}%" in line
    assert done.stdout.endswith("wrote quick.json\n")


@needs_module
@pytest.mark.parametrize(
    "family",
    [
        "adaptive",
        "affinity",
        "attention",
        "compat",
        "crf",
        "graph",
        "markov",
        "metrics",
        "pamr",
        "pnp",
        "propagate",
        "templates",
        "transport",
        "upsample",
        "windows",
    ],
)
def test_every_family_agrees_with_its_peers(family, tmp_path):
    arguments = ["--cases", "quick", "--family", family, "--threads", "1", "--rounds", "1", "--json", "quick.json"]
    done = run_program(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    records = json.loads((tmp_path / "quick.json").read_text())["cases"]
    assert records
    for record in records:
        entries = {entry["name"]: entry for entry in record["implementations"]}
        assert entries["ovs_kernels"]["status"] == "ok"
        assert sum(entry["status"] == "ok" for entry in entries.values()) >= 2, record["name"]
        for entry in entries.values():
            assert entry["status"] in ("ok", "left out"), entry


# Bad options


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
        (["--family", "nothing"], "argument --family: invalid choice: 'nothing'"),
        (["--cases", "some"], "argument --cases: invalid choice: 'some'"),
        (["--threads", "0"], "argument --threads: expected an integer >= 1, got 0"),
        (["--rounds", "two"], "argument --rounds: expected an integer >= 1, got two"),
        (["--isa", "v9"], "argument --isa: invalid choice: 'v9'"),
        (["--json", "none/here.json"], "--json: no folder none"),
        (["--json", "."], "--json: . is a folder"),
        (["--cases", "quick", "--record"], "--record: expected the full cases, all of them"),
        (["--cases", "quick", "--case", "9x9"], "--case: no case has '9x9' in its name"),
        (["--nothing"], "unrecognized arguments: --nothing"),
    ],
)
def test_a_bad_option_gives_one_line(arguments, words, tmp_path):
    done = run_program(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"benchmarks/run.py: {words}")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_gives_one_line(tmp_path):
    done = run_program("--device", "cuda", "--cases", "quick", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "benchmarks/run.py: --device cuda: torch sees no CUDA device\n"


def test_without_the_compiled_module_nothing_is_timed(tmp_path):
    done = run_program("--cases", "quick", cwd=tmp_path, OVS_KERNELS_REFERENCE="1")
    assert done.returncode == 2
    assert done.stderr.startswith("benchmarks/run.py: the compiled module cannot be used: ")
    assert done.stderr.count("\n") == 1


# The harness


def doubling_case(harness, peer, labels=0.9999, error=1e-5):
    """2 x for ours, and a peer that is given: 3 classes on 20 x 20 pixels."""
    scores = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(3))
    return harness.Case(
        name="doubling",
        sizes={"C": 3, "H": 20, "W": 20},
        options={},
        source="random",
        inputs=lambda: {"scores": scores},
        expected=lambda inputs: 2 * inputs["scores"].double(),
        implementations=[
            harness.Implementation("doubler", harness.OURS, lambda inputs: 2 * inputs["scores"]),
            harness.Implementation("peer", harness.PYTORCH, peer),
            harness.Implementation("absent", harness.PUBLISHED, peer, left_out="would take a year"),
        ],
        tolerance=harness.Tolerance(labels, error),
        work=harness.Work(flops=1200, bytes=9600, exps=0, how="one product per number"),
    )


def outcome_of(harness, roofs, peer, **tolerance):
    case = doubling_case(harness, peer, **tolerance)
    record = harness.run_case(case, "toy", rounds=3, roofs=roofs, wanted=None, say=lambda text: None)
    return record, record["implementations"][1]


def test_a_right_peer_is_timed(harness, roofs):
    record, peer = outcome_of(harness, roofs, lambda inputs: inputs["scores"] + inputs["scores"])
    assert peer["status"] == "ok"
    assert peer["rounds"] == 3
    assert peer["check"] == {"equal_labels": 1.0, "relative_error": 0.0}
    assert record["ratios"]["pytorch"]["best"] == "peer"
    assert record["floor"] == {"seconds": pytest.approx(9600 / 10e9), "bound": "read"}
    assert harness.failures(record) == []


def test_a_peer_with_wrong_numbers_is_not_timed(harness, roofs):
    record, peer = outcome_of(harness, roofs, lambda inputs: 2.001 * inputs["scores"])
    assert peer["status"] == "disagrees"
    assert peer["reason"] == "relative error 0.0005, expected at most 1e-05"
    assert "median_s" not in peer
    assert "pytorch" not in record["ratios"]
    assert harness.failures(record) == [f"toy, doubling: peer disagrees: {peer['reason']}"]


def test_a_peer_with_wrong_labels_is_not_timed(harness, roofs):
    def peer(inputs):
        labels = inputs["scores"].argmax(0)
        labels[4, 5] = (labels[4, 5] + 1) % 3
        return labels

    record, entry = outcome_of(harness, roofs, peer)
    assert entry["status"] == "disagrees"
    assert entry["check"] == {"equal_labels": 399 / 400, "relative_error": None}
    assert entry["reason"] == "0.997500 of the labels are equal, expected 0.9999"
    assert len(harness.failures(record)) == 1
    assert outcome_of(harness, roofs, peer, labels=0.99)[1]["status"] == "ok"


def test_a_peer_full_of_nan_is_not_timed(harness, roofs):
    _, peer = outcome_of(harness, roofs, lambda inputs: inputs["scores"] * float("nan"))
    assert peer["status"] == "disagrees"
    assert "median_s" not in peer


@pytest.mark.parametrize("result", [torch.zeros(20, 20, 3), torch.zeros(20, 19, dtype=torch.int64)])
def test_a_peer_of_another_shape_fails(harness, roofs, result):
    _, peer = outcome_of(harness, roofs, lambda inputs: result)
    assert peer["status"] == "failed"
    assert f"got {list(result.shape)}" in peer["reason"]


def test_a_peer_that_raises_does_not_stop_the_run(harness, roofs):
    def peer(inputs):
        raise RuntimeError("out of memory\nand more")

    record, entry = outcome_of(harness, roofs, peer)
    assert entry["status"] == "failed"
    assert entry["reason"] == "RuntimeError: out of memory"
    assert record["implementations"][0]["status"] == "ok"
    assert harness.failures(record) == []


def test_ours_is_checked_like_everybody(harness, roofs):
    case = doubling_case(harness, lambda inputs: 2 * inputs["scores"])
    case.implementations[0] = harness.Implementation("wrong", harness.OURS, lambda inputs: 3 * inputs["scores"])
    record = harness.run_case(case, "toy", rounds=1, roofs=roofs, wanted=None, say=lambda text: None)
    assert record["share_of_roof"] is None
    assert record["ratios"] == {}
    assert len(harness.failures(record)) == 1


def test_what_is_left_out_says_why(harness, roofs):
    record, _ = outcome_of(harness, roofs, lambda inputs: 2 * inputs["scores"])
    absent = {"name": "absent", "group": "published", "status": "left out", "reason": "would take a year"}
    assert record["implementations"][2] == absent


def test_slow_implementations_get_fewer_rounds(harness):
    assert harness.planned_rounds(0.1, 7) == 7
    assert harness.planned_rounds(5.0, 7) == 3
    assert harness.planned_rounds(5.0, 2) == 2
    assert harness.planned_rounds(100.0, 7) == 0


def test_quartiles(harness):
    assert harness.quartiles([5.0]) == (5.0, 5.0)
    assert harness.quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == (2.0, 4.0)


# The family file and its peers


def test_links_are_counted(bench_pixels):
    height, width, radius = 9, 15, bench_pixels.WINDOW // 2
    pixels = [(y, x) for y in range(height) for x in range(width)]
    counted = sum(max(abs(y - v), abs(x - u)) <= radius for y, x in pixels for v, u in pixels) - len(pixels)
    assert bench_pixels.count_links(height, width) == counted


def test_full_cases_leave_out_what_does_not_fit(bench_pixels):
    reasons = {
        (case.name, implementation.name): implementation.left_out
        for case in bench_pixels.cases("full", torch.device("cpu"))
        for implementation in case.implementations
        if implementation.left_out
    }
    assert set(reasons) == {
        ("448x597 C=150 official", "published (SciPy)"),
        ("448x597 C=150 official labels", "published (SciPy)"),
        ("1024x2048 C=19 official", "PyTorch sparse CSR"),
        ("1024x2048 C=19 official", "published (SciPy)"),
        ("448x597 C=21 exact", "published (SciPy)"),
    }
    for (case, _), reason in reasons.items():
        words, number = ("GB", 6) if "1024x2048" in case else ("s", 60)
        needed, unit = re.fullmatch(r"would (?:need|take) about (\d+) (GB|s)", reason).groups()
        assert unit == words
        assert int(needed) > number


@pytest.mark.parametrize("mode", ["official", "exact"])
@pytest.mark.parametrize("size", [(19, 30, 3), (14, 13, 40)])
def test_every_implementation_agrees_at_sizes_off_the_grid(
    bench_pixels, harness, roofs, monkeypatch, num_threads, size, mode
):
    num_threads(1)  # the sizes are too small for more
    labels = [False, True]
    monkeypatch.setattr(bench_pixels, "FULL", [(*size, mode, wanted) for wanted in labels])
    for case in bench_pixels.cases("full", torch.device("cpu")):
        record = harness.run_case(case, "pixels", rounds=1, roofs=roofs, wanted=None, say=lambda text: None)
        statuses = {entry["name"]: entry.get("reason", entry["status"]) for entry in record["implementations"]}
        assert statuses == dict.fromkeys(["ovs_kernels", *sorted(PEERS)], "ok")
