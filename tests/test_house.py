"""The house: which room may import which, and that a checkout, a wheel and the type checker see all of them."""

import ast
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("psa", "models", "inference", "experiments")
COPIED = (*ROOMS, "pyproject.toml", "README.md", "LICENSE", "Makefile", "constraints.txt")
MAX_LINES = 300
# psa.load reaches up when it is called, and for the type of what it returns; __main__ is the command line.
ALLOWED = {("psa/__init__.py", "psa.inference.autoencoder"), ("psa/__main__.py", "psa.cli")}


def own_name(path: Path) -> list[str]:
    """The dotted name of a file of a room, in parts: models/scene.py is psa.models.scene."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    name = parts if parts[0] == "psa" else ["psa", *parts]
    return name[:-1] if name[-1] == "__init__" else name


FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
# Triton is an extra: what is written in its language can be imported only where it is.
KERNELS = [path for path in FILES if path.parent.name == "kernels" and path.name != "__init__.py"]
IMPORTED = FILES if importlib.util.find_spec("triton") else [path for path in FILES if path not in KERNELS]
MODULES = [".".join(own_name(path)) for path in IMPORTED]
IMPORT_ALL = f"""
import importlib, json, pkgutil, psa
left = {[".".join(own_name(path)) for path in FILES if path not in IMPORTED]}
names = [m.name for m in pkgutil.walk_packages(psa.__path__, "psa.") if m.name not in left]
print(json.dumps({{name: importlib.import_module(name).__file__ for name in ["psa", *names]}}))
"""


def copy_tree(to: Path) -> Path:
    """What a checkout holds, and nothing that was built in it."""
    to.mkdir(exist_ok=True)
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, to / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, to / name)
    return to


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH", "MAKEFLAGS")}
    command = [sys.executable, *arguments] if arguments[0] != "make" else list(arguments)
    return subprocess.run(command, cwd=cwd, env=kept | environment, capture_output=True, text=True, timeout=300)


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            yield node.module
            # `from psa import models` imports a room too.
            yield from (f"psa.{alias.name}" for alias in node.names if node.module == "psa")


def floor(module: str) -> int:
    """How high a module of psa's stands: psa 0, models 1, inference 2, experiments 3, the command line 4."""
    room = [*module.split("."), ""][1]
    return {"models": 1, "inference": 2, "experiments": 3, "cli": 4}.get(room, 0)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_data_flows_one_way(path):
    name = str(path.relative_to(ROOT))
    upward = {
        module
        for module in imported(path)
        if module.split(".")[0] == "psa"
        and floor(module) > floor(".".join(own_name(path)))
        and (name, module) not in ALLOWED
    }
    assert not upward, f"{name} imports upward: {upward}"


def test_importing_psa_imports_none_of_the_other_rooms(tmp_path):
    """psa.load reaches up only when it is called."""
    code = "import psa, sys; print([m for m in sys.modules if m.startswith('psa.') or m == 'torch'])"
    found = run("-c", code, cwd=copy_tree(tmp_path / "tree"))
    assert found.stdout.strip() == "[]", found.stderr


def test_only_the_kernels_need_triton():
    """Elsewhere it is imported inside functions, when a kernel is to run."""
    for path in set(FILES) - set(KERNELS):
        for node in ast.parse(path.read_text()).body:
            names = {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            names |= {str(node.module)} if isinstance(node, ast.ImportFrom) else set()
            assert not {name for name in names if name.startswith(("triton", "psa.inference.kernels"))}, path


@pytest.mark.parametrize("folder", [*ROOMS, "tests"])
def test_no_room_is_imported_bare(folder):
    bare = {
        (str(path.relative_to(ROOT)), module)
        for path in (ROOT / folder).rglob("*.py")
        for module in imported(path)
        if module.split(".")[0] in ("models", "inference", "experiments")
    }
    assert not bare


def test_the_packages_to_install_are_the_folders_with_an_init():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    inits = [path.parent.relative_to(ROOT).parts for room in ROOMS for path in (ROOT / room).rglob("__init__.py")]
    folders = {".".join(parts if parts[0] == "psa" else ("psa", *parts)) for parts in inits}
    assert sorted(settings["packages"]) == sorted(folders)
    assert settings["package-dir"] == {room if room == "psa" else f"psa.{room}": room for room in ROOMS}


def test_every_folder_of_modules_is_a_package():
    without = {path.parent for path in FILES if not (path.parent / "__init__.py").is_file()}
    assert not without


def test_no_module_is_longer_than_300_lines():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
    assert not {name: length for name, length in lengths.items() if length > MAX_LINES}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    tree = copy_tree(tmp_path_factory.mktemp("wheel") / "tree")
    out = tree.parent / "dist"
    built = run("-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-q", "-w", str(out), str(tree), cwd=tree)
    assert built.returncode == 0, built.stderr
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_holds_every_module_and_the_files_beside_them(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {path.relative_to(ROOT) for path in FILES}
    expected = {str(path if path.parts[0] == "psa" else Path("psa", path)) for path in modules}
    assert expected <= names
    assert {"psa/py.typed", "psa/report/report.html"} <= names
    assert not {name for name in names if name.split("/")[0] in ("models", "inference", "experiments", "tests")}


def test_an_installed_wheel_imports_whole_and_runs_from_another_folder(wheel, tmp_path):
    target, elsewhere = tmp_path / "target", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "models.py").write_text("raise ImportError('a file of the user')")
    (elsewhere / "models").mkdir()
    installed = run("-m", "pip", "install", "--no-deps", "-q", "--target", str(target), str(wheel), cwd=elsewhere)
    assert installed.returncode == 0, installed.stderr
    found = run("-c", IMPORT_ALL, cwd=elsewhere, PYTHONPATH=str(target))
    assert found.returncode == 0, found.stderr
    files = json.loads(found.stdout)
    assert len(files) == len(MODULES)
    assert all(Path(path).is_relative_to(target) for path in files.values())
    helped = run("-m", "psa", "--help", cwd=elsewhere, PYTHONPATH=str(target))
    assert helped.returncode == 0, helped.stderr
    assert "demo" in helped.stdout


def test_a_bare_checkout_imports_whole_and_runs_from_its_root(tmp_path):
    tree = copy_tree(tmp_path / "tree")
    code = f"import importlib, json; print(json.dumps([importlib.import_module(m).__file__ for m in {MODULES!r}]))"
    found = run("-c", code, cwd=tree)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout) == [str(tree / path.relative_to(ROOT)) for path in IMPORTED]
    helped = run("-m", "psa", "--help", cwd=tree)
    assert helped.returncode == 0, helped.stderr


def test_the_editable_install_imports_the_checkout(tmp_path):
    code = "from importlib.metadata import distribution as d; print(d('psa-slots').read_text('direct_url.json'))"
    origin = run("-c", code, cwd=tmp_path)  # from another folder: the checkout's own egg-info knows nothing of it
    if origin.returncode or not json.loads(origin.stdout).get("dir_info", {}).get("editable"):
        pytest.skip("psa is not installed editable here")
    code = "import psa.models, psa.inference, psa.experiments.bench.train as t; print(psa.models.__file__, t.__file__)"
    found = run("-c", code, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == [str(ROOT / "models/__init__.py"), str(ROOT / "experiments/bench/train.py")]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not here")
def test_type_checking_sees_all_four_rooms(tmp_path):
    tree = copy_tree(tmp_path / "tree")
    errors = ("psa/data/splits.py", "models/scene.py", "inference/em.py", "experiments/demo.py")
    planted = [tree / path for path in errors]
    for path in planted:
        path.write_text(path.read_text() + '\nPLANTED: int = "a word"\n')
    stamp = tree / ".installed"  # what the Makefile installs is here already
    stamp.touch()
    found = run("make", "types", f"INSTALLED={stamp}", f"BIN={Path(sys.executable).parent}", cwd=tree)
    assert found.returncode != 0
    caught = {line.split(":")[0] for line in found.stdout.splitlines() if 'expression has type "str"' in line}
    assert {(tree / path).resolve() for path in caught} == set(planted), found.stdout + found.stderr
