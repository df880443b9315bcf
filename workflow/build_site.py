"""Put the book's sources together and build its HTML, warnings as errors.

    build_site.py --notebooks FOLDER --work FOLDER --html FOLDER [--results FOLDER]...

The sources are this checkout's pages, the executed chapters in --notebooks, the first page's
picture, film and tables and those of *Speed*, made from results/full and chapter 06, and the
scoreboard, made from the JSON files under each --results; they meet in --work, so that nothing is
written between them.
"""

import argparse
import shutil
import sys
from pathlib import Path

import headline
import nbformat
import scoreboard
import yaml
from bench import page as speed
from normalise import written
from picture import draw, film
from watch import run

from rrlib.lab.results import read as read_results

ROOT = Path(__file__).resolve().parent.parent


def pages(toc: dict) -> list[str]:
    """Every page that a _toc.yml names, in order, without suffix."""
    found = [toc[key] for key in ("root", "file") if key in toc]
    for key in ("parts", "chapters", "sections"):
        for entry in toc.get(key, []):
            found += pages(entry)
    return found


def configured(config: dict) -> dict:
    """What _config.yml says, with all that the address of a repository turns on, if it has one.

    That is a link to the repository, one to its issues, and on every chapter's page buttons that
    open it on Binder and on Colab.
    """
    if not config["repository"]["url"]:
        return config
    html = {"use_repository_button": True, "use_issues_button": True}
    launch = {
        "binderhub_url": "https://mybinder.org",
        "colab_url": "https://colab.research.google.com",
    }
    return config | {
        "html": config["html"] | html,
        "launch_buttons": config["launch_buttons"] | launch,
    }


CLOUD = """## Run a chapter in the cloud

The rocket above a chapter opens it on Binder, where `environment.yml` is installed, or on Colab,
where two lines have to be run first:

```
!git clone {url} book && pip install -q -e book
%cd book
```
"""


def cloud(config: dict) -> str:
    """How to run a chapter on other people's machines; nothing without a repository's address."""
    url = config["repository"]["url"]
    return CLOUD.format(url=url) if url else ""


def assemble(site: Path, notebooks: Path, results: list[Path]) -> None:
    """Fill the folder `site` with all that Jupyter Book needs.

    Raises FileNotFoundError for a page of the table of contents that does not exist.
    """
    shutil.rmtree(site, ignore_errors=True)
    shutil.copytree(ROOT / "book", site / "book", ignore=shutil.ignore_patterns("_generated"))
    shutil.copy(ROOT / "_toc.yml", site / "_toc.yml")
    config = configured(yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8")))
    (site / "_config.yml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    files = [path for folder in results for path in sorted(folder.glob("**/*.json"))]
    generated = site / "book" / "_generated"
    generated.mkdir()
    draw(generated / "relative-reward.svg")
    measured = read_results(ROOT / "results" / "full" / "benchmark.json")
    speed.draw(measured, generated / "benchmark.svg")
    shown = film(notebooks / "06_maze_rewards.ipynb", generated / "film.webp")
    for name, text in {
        "film": f"```{{figure}} _generated/film.webp\n{shown}```\n",
        "headline": headline.table(),
        "first": headline.table(first=True),
        "scoreboard": scoreboard.page(scoreboard.read(files)),
        "cloud": cloud(config),
        "benchmark": speed.tables(measured),
    }.items():
        (generated / f"{name}.md").write_text(text, encoding="utf-8")
    (site / "notebooks").mkdir()
    for page in pages(yaml.safe_load((site / "_toc.yml").read_text(encoding="utf-8"))):
        if page.startswith("notebooks/"):
            source = notebooks / f"{Path(page).name}.ipynb"
            copied = written(nbformat.read(source, as_version=4))
            (site / "notebooks" / source.name).write_text(copied, encoding="utf-8")
        elif not (site / f"{page}.md").exists():
            raise FileNotFoundError(f"_toc.yml names {page}, and {page}.md does not exist")


def build(site: Path, html: Path) -> None:
    """Build the folder `html` from `site`; stops with the end of the log if that fails."""
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(site)]
    command += ["-W", "-n", "--keep-going", "--all"]
    log = site.with_suffix(".log")
    print(f"book: building (its output goes to {log})", flush=True)
    with log.open("w", encoding="utf-8") as stream:
        code = run(command, stream)
    lines = log.read_text(encoding="utf-8").splitlines()
    built = site / "_build" / "html"
    # Jupyter Book 2 would end with 0 and no page.
    if code or not (built / "index.html").exists():
        said = [line for line in lines if "WARNING" in line or "ERROR" in line] or lines[-20:]
        sys.exit("\n".join([*said, f"the book was not built; the whole log is {log}"]))
    shutil.rmtree(html, ignore_errors=True)
    html.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(built, html)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--notebooks", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--html", type=Path, required=True)
    parser.add_argument("--results", type=Path, action="append", default=[])
    args = parser.parse_args()
    site = args.work.resolve() / "site"
    assemble(site, args.notebooks, args.results)
    build(site, args.html)
    print(f"book: built from {args.notebooks}", flush=True)


if __name__ == "__main__":
    main()
