"""A machine with other work is slow, not wrong: cells may take their time to hand over outputs."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if hasattr(item, "output_timeout"):  # seconds; nbval has five, and no option for them
            item.output_timeout = 600
