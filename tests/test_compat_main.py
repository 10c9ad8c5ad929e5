"""`python -m ovs_kernels.compat`: somebody's script in a process of its own, as `python` would run it."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from crf_inputs import Lattice, bilateral_features, mean_field, normalized, position_features, potts

from ovs_kernels.compat import __main__ as command

# A script as people write it; nothing in it knows of us.
SEGMENT = """
import sys
import numpy as np
import pydensecrf.densecrf as dcrf
from pydensecrf.utils import unary_from_softmax

def refine(image, probabilities):
    height, width = image.shape[:2]
    d = dcrf.DenseCRF2D(width, height, len(probabilities))
    d.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(probabilities)))
    d.addPairwiseGaussian(sxy=3, compat=3, kernel=dcrf.DIAG_KERNEL, normalization=dcrf.NORMALIZE_SYMMETRIC)
    d.addPairwiseBilateral(sxy=20, srgb=13, rgbim=image, compat=10)
    return np.array(d.inference(3)).reshape(probabilities.shape)

if __name__ == "__main__":
    inputs = np.load(sys.argv[1])
    np.save(sys.argv[2], refine(inputs["image"], inputs["probabilities"]))
    print(sys.argv[3:], sys.path[0], __file__, "ovs_kernels.compat.__main__" in sys.modules)
    sys.exit(3)
"""

FAIL = """
import atexit, sys
def report():
    print(__name__, sys.modules["__main__"].report is report, Thing.__module__)
class Thing:
    pass
def inner():
    raise KeyError("in the script")
atexit.register(report)
print(sys.argv)
inner()
"""


def run(*arguments, cwd, module="ovs_kernels.compat"):
    options = ["-m", module] if module else []
    command = [sys.executable, *options, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300)


@pytest.fixture
def inputs(tmp_path):
    """Files of a picture and its probabilities, and what mean field makes of them."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)
    probabilities = rng.random((3, 6, 9)).astype(np.float32)
    probabilities /= probabilities.sum(0)
    np.savez(tmp_path / "inputs.npz", image=image, probabilities=probabilities)
    lattices = Lattice(position_features(6, 9, 3)), Lattice(bilateral_features(image.transpose(2, 0, 1), 20, 13))
    kernels = [normalized(lattice.matrix()) for lattice in lattices]
    energies = -np.log(probabilities.astype(np.float64)).reshape(3, -1).T
    return mean_field(energies, kernels, [potts(3, 3), potts(10, 3)], 3).T.reshape(3, 6, 9)


def test_a_script_runs_unchanged(tmp_path, inputs):
    (tmp_path / "work").mkdir()
    script = tmp_path / "work" / "segment.py"
    script.write_text(SEGMENT)
    # "--only" behind the script is the script's.
    result = run("--only", "pydensecrf", "work/segment.py", "inputs.npz", "out.npy", "--only", "--", "-m", cwd=tmp_path)
    assert result.returncode == 3, result.stderr
    assert result.stdout == f"{['--only', '--', '-m']} {script.parent} {script} False\n"
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), inputs, atol=1e-5)
    lines = result.stderr.splitlines()
    assert "ovs_kernels.compat: pydensecrf.densecrf -> ovs_kernels.compat.pydensecrf.densecrf" in lines
    assert len(lines) == len(set(lines)) == 4


def test_a_module_runs_unchanged(tmp_path, inputs):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "__init__.py").write_text("import pydensecrf.utils\n")
    (tmp_path / "work" / "segment.py").write_text(SEGMENT)
    result = run("-m", "work.segment", "inputs.npz", "out.npy", "-x", cwd=tmp_path)
    assert result.returncode == 3, result.stderr
    assert result.stdout == f"['-x'] {tmp_path} {tmp_path / 'work' / 'segment.py'} False\n"
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), inputs, atol=1e-5)
    assert "pydensecrf -> ovs_kernels.compat.pydensecrf" in result.stderr


POOL = """
import multiprocessing, sys
import numpy as np
import torch
import segment

def work(seed):
    found = np.load("inputs.npz")
    image, probabilities = (np.tile(found["image"], (40, 30, 1)), np.tile(found["probabilities"], (1, 40, 30)))
    return segment.refine(image, probabilities).sum().item(), torch.get_num_threads()

if __name__ == "__main__":
    torch.set_num_threads(2)
    torch.rand(1000, 1000).softmax(0)  # the threads that the children do not have
    own = work(0)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.map_async(work, range(4)).get(120)
    print(own[0], {total for total, _ in found}, {count for _, count in found})
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_forked_processes_have_one_thread(tmp_path, inputs):
    """As people call pydensecrf; with more threads than one, the children would wait for those of the parent."""
    (tmp_path / "segment.py").write_text(SEGMENT)
    (tmp_path / "pool.py").write_text(POOL)
    result = run("pool.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    total = result.stdout.split()[0]
    assert result.stdout == f"{total} {{{total}}} {{2}}\n"


LATE = """
import multiprocessing, sys
import torch

def work(seed):
    from ovs_kernels.compat.pydensecrf import densecrf
    made = densecrf.DenseCRF2D(90, 80, 3)
    made.setUnaryEnergy(torch.rand(3, 7200).numpy())
    made.addPairwiseGaussian(3, 3)
    return round(float(made.inference(2).sum())), torch.get_num_threads()

if __name__ == "__main__":
    torch.set_num_threads(2)
    torch.rand(1000, 1000).softmax(0)
    with multiprocessing.get_context(sys.argv[1]).Pool(1) as pool:
        print(pool.map_async(work, [0]).get(60)[0], "ovs_kernels" in sys.modules)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_imported_in_a_process_of_a_pool(tmp_path, start_method):
    """The parent has had threads and does not know of us."""
    (tmp_path / "late.py").write_text(LATE)
    result = run("late.py", start_method, cwd=tmp_path, module=None)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("(7200, ")
    assert result.stdout.endswith("False\n")


def test_patch_in_a_process(tmp_path, inputs):
    """The call and the context manager in the middle of somebody's program."""
    (tmp_path / "segment.py").write_text(SEGMENT)
    program = (
        "import numpy as np, ovs_kernels\n"
        "with ovs_kernels.compat.patch('pydensecrf') as handle:\n"
        "    import segment, pydensecrf\n"
        "found = np.load('inputs.npz')\n"
        "np.save('out.npy', segment.refine(found['image'], found['probabilities']))\n"
        "print(len(handle.replaced), handle.active)\n"
        "try:\n"
        "    import pydensecrf.utils\n"
        "    print(pydensecrf.utils.__name__)\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    result = run("-c", program, cwd=tmp_path, module=None)
    assert result.returncode == 0, result.stderr
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), inputs, atol=1e-5)
    assert result.stdout.splitlines()[0] == "4 False"
    assert result.stdout.splitlines()[1] in ("No module named 'pydensecrf'", "pydensecrf.utils")
    assert result.stderr == ""  # a library is silent


def test_tracebacks_and_what_stays_until_the_end(tmp_path):
    (tmp_path / "fail.py").write_text(FAIL)
    plain, ours = (run("fail.py", "a", cwd=tmp_path, module=module) for module in (None, "ovs_kernels.compat"))
    assert (ours.returncode, ours.stdout) == (plain.returncode, plain.stdout)
    assert "in inner\n" in plain.stderr
    kept = [line for line in ours.stderr.splitlines(True) if not line.startswith("ovs_kernels.compat: ")]
    assert "".join(kept) == plain.stderr


def test_a_folder_runs_as_python_runs_it(tmp_path):
    (tmp_path / "tool").mkdir()
    (tmp_path / "tool" / "__main__.py").write_text("import sys, side\nprint(sys.argv, sys.path[0], side.__file__)\n")
    (tmp_path / "tool" / "side.py").touch()
    (tmp_path / "side.py").write_text("raise AssertionError\n")
    plain, ours = (run("tool", "a", cwd=tmp_path, module=module) for module in (None, "ovs_kernels.compat"))
    assert plain.stdout
    assert (ours.returncode, ours.stdout) == (0, plain.stdout)


def test_modules_that_are_not_there(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_package").mkdir()
    (tmp_path / "broken_package" / "__init__.py").write_text("import nowhere\n")
    with pytest.raises(ModuleNotFoundError, match="No module named 'nowhere'"):
        command._run_module("broken_package.tool")
    for name in ("nowhere", "nowhere.at_all", "json.nowhere"):
        with pytest.raises(SystemExit) as raised:
            command._run_module(name)
        assert raised.value.code == 1
        assert capsys.readouterr().err == f"compat: -m: expected a module that can be imported, got {name}\n"
    with pytest.raises(SystemExit) as raised:
        command._run_folder(str(tmp_path))
    assert raised.value.code == 1
    assert "expected a file, or a folder or archive with __main__.py, got" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_an_interrupt_ends_it_as_python_is_ended(tmp_path):
    lines = (
        "import os, signal",
        "signal.signal(signal.SIGINT, signal.default_int_handler)",
        "os.kill(os.getpid(), signal.SIGINT)",
    )
    (tmp_path / "stop.py").write_text("\n".join(lines))
    assert run("stop.py", cwd=tmp_path).returncode == -signal.SIGINT


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere.py"], 2, "compat: script: expected a file that can be read, got nowhere.py (No such file or direc"),
        (["--only", "cython,pamr", "script.py"], 2, "compat: --only: expected "),
        (["--only=pamr,pamr", "script.py"], 2, "compat: --only: expected each drop-in once, got 'pamr' twice"),
        ([], 2, "the following arguments are required: SCRIPT"),
        (["--onl", "pamr", "script.py"], 2, "error: "),
        (["--help"], 0, ""),
    ],
)
def test_errors_come_before_anything_is_replaced(tmp_path, monkeypatch, capsys, arguments, code, message):
    (tmp_path / "script.py").write_text("raise AssertionError\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["compat", *arguments])
    before = dict(sys.modules), list(sys.meta_path)
    logger = command.LOGGER
    state = (list(logger.handlers), logger.level, logger.propagate)
    try:
        with pytest.raises(SystemExit) as raised:
            command.main()
    finally:
        logger.handlers, level, logger.propagate = state
        logger.setLevel(level)
    assert raised.value.code == code
    assert message in capsys.readouterr().err
    assert (dict(sys.modules), list(sys.meta_path)) == before
