"""All published numbers, a folded table for each chapter, and what recomputes them."""

import re
from functools import cache
from pathlib import Path

import nbformat
import yaml
from quoted import entry

from rrlib.lab import environment as host
from rrlib.lab.results import meets

ROOT = Path(__file__).resolve().parent.parent
PROFILES = ("full", "quick")
# The chapter that publishes a study, where the chapter's text does not say it as `Study("...")`.
ELSEWHERE = {"maze2d-use": "15_using_rewards", "maze2d-composed": "15_using_rewards"}
# Study and name -> how its interval was computed; the first that fits counts.
INTERVALS = (
    (r"locomotion-diffusers \w+\.data_\w+|locomotion-methods .*", "Student's, episodes"),
    (r"locomotion(-\w+)? .*", "bootstrap, episodes of one pair"),
    (r"image\S* \w+_seeds.*", "Student's, fits of the reward"),
    (r"image\S* (text|picture)\w*_auc.*", "bootstrap, prompts or scenes"),
    (r"image\S* (text|picture)_(accuracy|oracle).*|images \w*accuracy", "Newcombe's of two shares"),
    (r"image\S* (\w*fidelity\w*|steering_loses)", "Student's, prompts"),
    (r"(maze2d\S* goal_found\w*|maze2d-use \w+|image\S* .*)", "Wilson's"),
    (r"reward-as-reward pointmaze\..*", "Wilson's, balls of one agent"),
    (r"reward-as-reward .*", "Student's, episodes of one agent"),
    (r"(maze2d\S* logreg\w*|maze2d_choices .*)", "Student's"),
)
Results = dict[tuple[str, str], dict]


def chapters(found: Results) -> str:
    """One folded table for each chapter that has published, and one for all others."""
    stems = {study: chapter_of(study) for study, _ in found}
    parts = [
        _chapter(stem, {key: r for key, r in found.items() if stems[key[0]] == stem})
        for stem in sorted({stem for stem in stems.values() if stem})
    ]
    others = {key: result for key, result in found.items() if stems[key[0]] is None}
    if rows := _rows(others):
        parts.append(_folded("Results of no chapter", [_TABLE, *rows]))
    return "\n".join(parts)


def _chapter(stem: str, found: Results) -> str:
    lines = [f"{{doc}}`/notebooks/{stem}`; run again by", "", "```"]
    lines += [command(stem, profile) for profile in ("quick", "full")]
    lines += ["```", ""]
    for (study, profile), result in sorted(found.items()):
        other = stale(result)
        old = f"; **stale**, for today's profile has another {', '.join(other)}" if other else ""
        lines.append(f"- {plain(study)}, {plain(profile)}: {plain(origin(result))}{old}")
    rows = _rows(found)
    if not rows:
        return ""
    return f"({place(stem)})=\n" + _folded(title(stem), [*lines, "", _TABLE, *rows])


def place(stem: str) -> str:
    """The name under which other pages link to a chapter's table."""
    return f"numbers-of-{stem[:2]}"


def origin(result: dict) -> str:
    """The commit that made a result and its day, how long that took, and on what."""
    known = result["provenance"]
    commit, seconds = known.get("commit"), known.get("wall_seconds")
    when, hours = "commit not recorded", "hours not recorded"
    if isinstance(commit, str) and commit:
        day = host.commit_date(commit)
        when = f"commit {commit[:8]}{f' of {day}' if day else ''}"
    if isinstance(seconds, float):
        hours = f"{seconds / 3600:.1f} processor hours"
    return f"{when}, {hours}, on {known['device']}"


_TABLE = "| quantity | paper | full | quick | bar | interval |\n" + "|---" * 6 + "|"


def _rows(found: Results) -> list[str]:
    """One row for each entry with a label, all profiles in it."""
    lines = []
    for study in sorted({study for study, _ in found}):
        by_profile = {profile: r for (s, profile), r in found.items() if s == study}
        old = {profile for profile, r in by_profile.items() if stale(r)}
        names = {name for r in by_profile.values() for name in r["summary"]}
        for name in sorted(names):
            entries = {p: entry(r, name) for p, r in by_profile.items() if name in r["summary"]}
            label = next((e["label"] for e in reversed(entries.values()) if "label" in e), None)
            if label:
                lines.append(_row(study, name, label, entries, old))
    return lines


def _row(study: str, name: str, label: str, entries: dict[str, dict], old: set[str]) -> str:
    stem = chapter_of(study)
    same = stem is not None and "full" not in entries and alike(stem)
    said = {p: _value(e) + " (stale)" * (p in old) for p, e in entries.items()}
    ours = ["as quick" if same else said.get("full", "not measured")]
    ours += [said.get("quick", "not measured")]
    others = [f"{plain(p)} {value}" for p, value in said.items() if p not in PROFILES]
    ours[1] = "; ".join([ours[1], *others])
    paper = next((e["paper"] for e in entries.values() if "paper" in e), "")
    has = any("ci" in found for found in entries.values())
    kind = interval(f"{study} {name}") if has else ""
    return line([plain(label), _number(paper), *ours, _bar(entries), kind])


def _bar(entries: dict[str, dict]) -> str:
    """The bar, and which profiles miss it: their own, or another's where the file has none."""
    bars = [found["bar"] for found in entries.values() if "bar" in found]
    if not bars:
        return ""
    measured = {p: found for p, found in entries.items() if found["value"] is not None}
    missed = [
        plain(profile)
        for profile, found in measured.items()
        if not meets(found["value"], found.get("bar", bars[0]))
    ]
    verdict = f"**missed**: {', '.join(missed)}" if missed else "met"
    if not measured:
        verdict = "not measured"
    return f"{bars[0].replace('>=', '≥').replace('<=', '≤')} ({verdict})"


def _value(entry: dict) -> str:
    if entry["value"] is None:
        return "not measured"
    text = _number(entry["value"])
    if "ci" in entry:
        low, high = entry["ci"]
        text += f" ({_number(low)} to {_number(high)})"
    return text


def interval(where: str) -> str:
    """How the interval of "study name" was computed, in words."""
    kinds = (kind for pattern, kind in INTERVALS if re.fullmatch(pattern, where))
    return next(kinds, "as the chapter says")


def chapter_of(study: str) -> str | None:
    """The chapter that publishes a study."""
    return ELSEWHERE.get(study) or _by_study().get(study)


@cache
def _by_study() -> dict[str, str]:
    found = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        studies = re.findall(r'notebook\.Study\(\\"([^"\\]+)\\"', path.read_text(encoding="utf-8"))
        found |= dict.fromkeys(studies, path.stem)
    return found


@cache
def title(stem: str) -> str:
    """The number and the heading of a chapter."""
    cells = nbformat.read(ROOT / "notebooks" / f"{stem}.ipynb", as_version=4).cells
    return f"{stem[:2]} {cells[0].source.splitlines()[0].removeprefix('# ')}"


@cache
def parameters(stem: str, profile: str) -> dict:
    """What a profile of today gives a chapter."""
    path = ROOT / "workflow" / "profiles" / f"{profile}.yaml"
    if not path.exists():
        return {}
    return yaml.safe_load(path.read_text(encoding="utf-8")).get(stem) or {}


def alike(stem: str) -> bool:
    """Whether the full profile of a chapter is the quick one."""
    return not parameters(stem, "full")


def command(stem: str, profile: str) -> str:
    """What recomputes a chapter's numbers of a profile."""
    given = parameters(stem, profile) | {"results": f"results/{profile}"}
    told = " ".join(f"-p {name} {value}" for name, value in given.items())
    return f"papermill notebooks/{stem}.ipynb out.ipynb {told}"


def stale(result: dict) -> list[str]:
    """The parameters that today's profile sets otherwise than the result had them."""
    stem = chapter_of(result["study"])
    had = result["provenance"].get("parameters", {})
    if stem is None or not isinstance(had, dict):
        return []
    given = parameters(stem, result["profile"])
    return [name for name, value in given.items() if _flat(value) != _flat(had.get(name))]


def _flat(value: object) -> list[str]:
    return [_written(x) for x in (value if isinstance(value, list) else str(value).split(","))]


def _written(part: object) -> str:
    try:
        return f"{float(str(part)):g}"
    except ValueError:
        return str(part)


def _folded(heading: str, lines: list[str]) -> str:
    return "\n".join([f"::::{{admonition}} {heading}", ":class: dropdown", "", *lines, "::::", ""])


def line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def plain(text: str) -> str:
    """A text that Markdown shows letter by letter, as a cell of one line."""
    return re.sub(
        r"[\\`*_{}\[\]<>|#$~&]", lambda sign: f"&#{ord(sign[0])};", " ".join(text.split())
    )


def _number(value: float | str) -> str:
    if isinstance(value, str):
        return plain(value)
    try:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    except OverflowError:  # an integer of over 308 digits
        return f"10^{len(str(value)) - 1}"
