"""Source and wheel build from a copy of the tree, and the wheel works in an environment that never saw the tree."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tide_cache import __version__

ROOT = Path(__file__).resolve().parent.parent
BUILT_FROM = ["pyproject.toml", "README.md", "LICENSE", "tide_cache", "cli"]
PACKAGES = {"tide_cache": "tide_cache", "cli": "tide_cache_cli"}


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """The folder with both distributions; the wheel is built from the unpacked source distribution."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in BUILT_FROM:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tree / name)
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, tree], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def wheel(dist):
    (path,) = dist.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def elsewhere(wheel, tmp_path_factory):
    """A new environment with the wheel; other packages are found where they are, the tree is not."""
    folder = tmp_path_factory.mktemp("elsewhere")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    options = ["--quiet", "--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", *options, wheel], check=True)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    # A path in a .pth file is searched, and .pth files in it are not: the editable install of the tree stays unseen.
    (site / "others.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    return folder


def run(elsewhere, *arguments, cwd=None):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [elsewhere / "venv" / "bin" / arguments[0], *arguments[1:]]
    return subprocess.run(command, cwd=cwd or elsewhere, env=environment, capture_output=True, text=True)


def test_the_wheel_holds_every_file_of_the_packages_and_no_other(wheel):
    expected = {
        f"{package}/{path.relative_to(ROOT / folder)}"
        for folder, package in PACKAGES.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert "tide_cache/py.typed" in found
    assert found == expected


def test_the_source_distribution_holds_what_the_wheel_is_built_from(dist):
    (path,) = dist.glob("*.tar.gz")
    assert path.name == f"tide_cache-{__version__}.tar.gz"
    with tarfile.open(path) as archive:
        found = {Path(*Path(name).parts[1:]).as_posix() for name in archive.getnames()}
    assert {"pyproject.toml", "LICENSE", "tide_cache/py.typed", "cli/main.py"} <= found


def test_the_installed_command_runs_without_the_tree(elsewhere):
    where = run(
        elsewhere, "python", "-c", "import tide_cache, tide_cache_cli as c; print(tide_cache.__file__, c.__file__)"
    )
    assert where.stdout.count(str(elsewhere)) == 2, where.stderr
    assert run(elsewhere, "tide-cache", "--version").stdout == f"tide-cache {__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"], ["doctor", "--json"], ["schema", "--out", "s"]])
def test_an_empty_folder_is_enough(elsewhere, tmp_path, arguments):
    """Nothing of the repository is needed: no example, no schema, no constraints."""
    done = run(elsewhere, "tide-cache", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert str(ROOT) not in done.stdout + done.stderr
    if arguments[0] == "schema":
        written, expected = (
            {path.name: path.read_text() for path in f.iterdir()} for f in (tmp_path / "s", ROOT / "schemas")
        )
        assert written == expected
