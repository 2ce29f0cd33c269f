"""What reaches somebody who installs the wheel."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


@pytest.mark.parametrize(
    ("folder", "inside"),
    [
        ("src/svc_infra", "svc_infra"),
        ("migrations", "svc_infra/_migrations"),
        ("config", "svc_infra/_config"),
    ],
)
def test_the_wheel_carries_code_migrations_and_settings(
    wheel: zipfile.ZipFile, folder: str, inside: str
) -> None:
    ours = {
        f"{inside}/{path.relative_to(ROOT / folder).as_posix()}"
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.name != ".gitkeep"
    }
    assert ours - set(wheel.namelist()) == set()


def test_the_wheel_carries_the_type_marker_the_licence_and_the_command(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert "svc_infra/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    (entry_points,) = [name for name in names if name.endswith("entry_points.txt")]
    assert "svc-worker = svc_infra.cli:main" in wheel.read(entry_points).decode()


def test_the_wheel_carries_nothing_else_at_its_top(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/", 1)[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"svc_infra"}
