"""The package as it is installed: silent, free of CUDA contexts, and with its layers kept apart."""

import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import pytest

import ovs_kernels

ROOT = Path(__file__).resolve().parent.parent
CORE = sorted(p for p in (ROOT / "csrc").rglob("*") if p.suffix in {".h", ".cuh", ".cpp", ".cu"})
BINDINGS = [p for p in CORE if p.is_relative_to(ROOT / "csrc" / "bindings")]
KERNELS = [p for p in CORE if p not in BINDINGS]
# OVS_DEBUG_SYNC, the one thing that waits, is in device.cuh.
KERNELS_BUT_DEVICE = [p for p in KERNELS if p.name != "device.cuh"]
PACKAGE = sorted((ROOT / "ovs_kernels").rglob("*.py"))


def run_python(code_or_flag: str, *args: str, **environment: str) -> subprocess.CompletedProcess:
    """A fresh interpreter with warnings as errors, outside of the source tree."""
    command = [sys.executable, "-W", "error", code_or_flag, *args]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OVS_KERNELS_", "PYTHON"))}
    return subprocess.run(command, capture_output=True, text=True, cwd="/", env={**clean, **environment}, timeout=300)


def succeed(result: subprocess.CompletedProcess) -> str:
    assert result.returncode == 0, result.stderr
    return result.stdout


# What is tested


def test_the_installed_package_is_the_one_tested():
    distribution = metadata.distribution("ovs-kernels")
    if distribution.read_text("direct_url.json") and "editable" in distribution.read_text("direct_url.json"):
        pytest.skip("an editable installation is the source tree")
    installed = Path(distribution.locate_file("ovs_kernels/__init__.py")).resolve()
    assert Path(ovs_kernels.__file__).resolve() == installed
    assert installed.is_relative_to(Path(sysconfig.get_path("platlib")).resolve())
    assert installed.parent != ROOT / "ovs_kernels"


def test_the_source_tree_is_not_on_the_path():
    assert ROOT not in {Path(entry or os.curdir).resolve() for entry in sys.path}


def test_the_methods_are_installed_beside_it():
    methods = Path(importlib.util.find_spec("ovs_methods").origin).resolve()
    assert methods.parent.parent == Path(ovs_kernels.__file__).resolve().parent.parent
    (script,) = metadata.entry_points(group="console_scripts", name="ovs")
    assert script.value == "ovs_methods.cli:main"


def test_the_wheel_carries_no_tests_and_no_sources():
    installed = [str(path) for path in metadata.files("ovs-kernels")]
    assert any(path.startswith("ovs_kernels/_C.") for path in installed)
    assert "ovs_kernels/py.typed" in installed
    assert "ovs_kernels/_C.pyi" in installed
    unwanted = re.compile(r"^(tests|benchmarks|csrc|docs)/|emulat|\.(cu|cuh|cpp|h)$")
    assert [path for path in installed if unwanted.search(path)] == []


def test_versions_agree():
    assert ovs_kernels.__version__ == metadata.version("ovs-kernels")
    assert ovs_kernels._native.build_info()["version"] == metadata.version("ovs-kernels")


# Import


def test_import_is_silent():
    result = run_python("-c", "import ovs_kernels")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_import_loads_no_compiled_code_and_starts_no_cuda():
    out = succeed(
        run_python(
            "-c",
            "import sys, torch, ovs_kernels\n"
            "print('ovs_kernels._C' in sys.modules, torch.cuda.is_initialized(), 'cupy' in sys.modules)",
        )
    )
    assert out.split() == ["False", "False", "False"]


def test_works_without_a_driver():
    """No device is visible, as without a driver: questions are answered, CPU tensors are served."""
    out = succeed(
        run_python(
            "-c",
            "import torch, ovs_kernels\n"
            "from ovs_kernels import _native\n"
            "print(_native.load_error(), _native.cuda_available())\n"
            "result = ovs_kernels.lp_pixels(torch.rand(2, 5, 6), torch.rand(3, 5, 6), window=3)\n"
            "print(tuple(result.shape), torch.cuda.is_initialized())",
            CUDA_VISIBLE_DEVICES="",
        )
    )
    assert out.splitlines() == ["None False", "(2, 5, 6) False"]


def test_shares_the_openmp_runtime_of_torch():
    if not ovs_kernels._native.build_info()["openmp"] or not Path("/proc/self/maps").exists():
        pytest.skip("built without OpenMP, or no /proc to look at")
    out = succeed(
        run_python(
            "-c",
            "from ovs_kernels import _native\n"
            "assert _native.build_info()\n"
            "maps = open('/proc/self/maps').read().splitlines()\n"
            "print(len({line.split()[-1] for line in maps if 'gomp' in line or 'libomp' in line}))",
        )
    )
    assert out.strip() == "1"


# Switches and the report

CALL = (
    "import torch, ovs_kernels\n"
    "from ovs_kernels import _native\n"
    "torch.manual_seed(0)\n"
    "scores, image = torch.rand(2, 7, 9, dtype=torch.float64), torch.rand(3, 7, 9, dtype=torch.float64)\n"
    "result = ovs_kernels.lp_pixels(scores, image, window=5, tau=0.1)\n"
    "reference = ovs_kernels.reference.pixels\n"
    "print(_native.module() is None, float(result.sum()))\n"
)


def test_the_reference_can_be_forced():
    native = succeed(run_python("-c", CALL)).split()
    forced = succeed(run_python("-c", CALL, OVS_KERNELS_REFERENCE="1")).split()
    assert [native[0], forced[0]] == ["False", "True"]
    assert float(native[1]) == pytest.approx(float(forced[1]), rel=1e-9)


def test_an_unknown_level_is_refused():
    result = run_python("-c", CALL, OVS_KERNELS_ISA="v9")
    assert result.returncode != 0
    assert "OVS_KERNELS_ISA: expected one of" in result.stderr
    assert "got v9" in result.stderr


def test_report_names_versions_build_devices_and_operators():
    out = succeed(run_python("-m", "ovs_kernels"))
    for section in ("Versions", "Build", "Machine", "Operators"):
        assert re.search(rf"^{section}$", out, re.MULTILINE)
    assert re.search(rf"^  ovs_kernels +{re.escape(ovs_kernels.__version__)}$", out, re.MULTILINE)
    assert re.search(r"^  compiled module +\S+, Release, \S+ [\d.]+", out, re.MULTILINE)
    assert re.search(r"^  lp_pixels +cpu: native; cuda: ", out, re.MULTILINE)
    level = re.search(r"^  CPU level used +(\S+)$", out, re.MULTILINE)[1]
    assert level == ovs_kernels._native.isa_levels()[-1]


def test_report_survives_a_wrong_setting():
    out = succeed(run_python("-m", "ovs_kernels", OVS_KERNELS_ISA="v9", OVS_KERNELS_REFERENCE="1"))
    assert "expected one of" in out
    assert re.search(r"^  lp_pixels +cpu: reference; ", out, re.MULTILINE)


# The law of the layers: which file may know what


def offending(files, pattern):
    """`file:line: text` of every match outside of comments."""
    found = []
    for path in files:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            code = re.sub(r"(//|#(?!\s*(include|define|if|pragma))).*", "", line)
            if re.search(pattern, code):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    return found


def test_there_are_files_to_look_at():
    assert len(KERNELS) > 10
    assert len(BINDINGS) >= 2
    assert len(PACKAGE) > 5


@pytest.mark.parametrize(
    ("files", "pattern"),
    [
        pytest.param(KERNELS, r'#\s*include\s*[<"](Python\.h|pybind11|torch|ATen|c10|bindings/)', id="core includes"),
        pytest.param(KERNELS, r"\bcuda(Malloc|Free)\w*\s*\(", id="core allocates on the device"),
        pytest.param(KERNELS_BUT_DEVICE, r"\bcuda(Device|Stream|Event)Synchronize\s*\(", id="core waits"),
        pytest.param(KERNELS, r"\b(getenv|setenv)\s*\(", id="core reads the environment"),
        pytest.param(KERNELS, r"\bcudaStream(Legacy|PerThread|Default)\b", id="core chooses a stream"),
        pytest.param(KERNELS, r"__activemask\s*\(", id="core guesses which lanes are active"),
        pytest.param(BINDINGS, r'#\s*include\s*[<"](torch|ATen|c10|cuda|.*\.cuh)', id="bindings include"),
        pytest.param(BINDINGS, r"<<<|__global__|\bfor\s*\(|\bwhile\s*\(", id="bindings do work"),
        pytest.param(PACKAGE, r"\b(empty|zeros)_like\((?!.*memory_format=)", id="outputs with inherited strides"),
        pytest.param(PACKAGE, r"\bcustom_op\b", id="slow operator registration"),
        pytest.param(PACKAGE, r"\bexcept Exception\b|\bexcept:", id="errors swallowed"),
        pytest.param(PACKAGE, r"\bovs_methods\b", id="kernels import methods"),
    ],
)
def test_layer(files, pattern):
    assert offending(files, pattern) == []


def test_launches_go_through_one_header():
    elsewhere = [p for p in KERNELS if p.name != "launch.cuh"]
    assert offending(elsewhere, r"<<<|\b__shared__\b") == []


def test_only_native_knows_the_compiled_module():
    elsewhere = [p for p in PACKAGE if p.name != "_native.py"]
    assert offending(elsewhere, r"ovs_kernels\._C\b|import _C\b|from \.+_C\b") == []


def test_public_functions_touch_no_pointers():
    public = [p for p in PACKAGE if p.parent.name == "ovs_kernels" and not p.name.startswith("_")]
    assert offending(public, r"data_ptr\s*\(|current_stream") == []


def test_the_reference_imports_nothing_of_ours():
    reference = [p for p in PACKAGE if p.parent.name == "reference" and p.name != "__init__.py"]
    assert offending(reference, r"^\s*(from\s+\.|from\s+ovs_kernels|import\s+ovs_kernels)") == []


# The build


def test_the_build_requires_neither_torch_nor_a_network():
    pyproject = (ROOT / "pyproject.toml").read_text()
    (requires,) = re.findall(r"^requires = \[(.*)\]$", pyproject, re.MULTILINE)
    names = re.findall(r'"([A-Za-z0-9-]+)', requires)
    assert sorted(names) == ["pybind11", "scikit-build-core"]
    cmake = [ROOT / "CMakeLists.txt", *(ROOT / "cmake").glob("*.cmake")]
    assert (
        offending(cmake, r"FetchContent|ExternalProject|file\(DOWNLOAD|march=native|fast-math|find_package\(Torch")
        == []
    )


def test_constraints_are_exact():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert len(pins) > 20
    assert [line for line in pins if not re.fullmatch(r"[A-Za-z0-9_.-]+==[\w.]+", line)] == []
    assert "torch==2.13.0" in pins


def test_hooks_use_the_versions_of_ci():
    pins = set((ROOT / "constraints.txt").read_text().splitlines())
    hooks = re.findall(r"additional_dependencies: \[(.*)\]", (ROOT / ".pre-commit-config.yaml").read_text())
    assert len(hooks) == 3
    assert set(hooks) <= pins
