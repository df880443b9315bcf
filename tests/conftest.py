"""Every test sees the settings of `rrlib.host` and an artefact folder of its own."""

import pytest

# First of all: it sets what torch and the linear algebra libraries read when they are loaded.
import rrlib.host  # noqa: F401


@pytest.fixture(autouse=True, scope="session")
def _own_store(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RRLIB_STORE", str(tmp_path_factory.mktemp("store")))
        yield
