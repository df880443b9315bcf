"""Print the oldest versions that pyproject.toml allows, one pin a line, for `pip install -c`."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def pins(project: dict) -> list[str]:
    """`name==version` of every requirement of a [project] table that has a lower bound."""
    extras = project["optional-dependencies"]
    texts = [*project["dependencies"], *extras["book"], *extras["test"]]
    found = [re.match(r"([\w-]+)(?:\[\w+\])?[>=]=([\w.]+)", text) for text in texts]
    return [f"{match[1]}=={match[2]}" for match in found if match]


def main() -> None:
    print("\n".join(pins(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"])))


if __name__ == "__main__":
    main()
