"""Every test sees the settings of `rrlib.lab.environment` and an artefact folder of its own."""

import shutil
import subprocess

import pytest

# First of all: it sets what torch and the linear algebra libraries read when they are loaded.
import rrlib.lab.environment  # noqa: F401


@pytest.fixture(autouse=True, scope="session")
def _own_store(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RRLIB_STORE", str(tmp_path_factory.mktemp("store")))
        yield


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(place)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)
