"""How chapters are compared: cells may take their time, and a film's frames are not read."""

from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.option.nbval_sanitize_with = str(Path(__file__).with_name("nbval.cfg"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if hasattr(item, "output_timeout"):  # seconds; nbval has five, and no option for them
            item.output_timeout = 600  # a machine with other work is slow, not wrong
