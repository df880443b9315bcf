"""Files of every kind, damaged: noticed, and made again unasked where they can be."""

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import digests
import small_files
import small_recipes
from judged import ended, same
from mutations import DAMAGES
from test_shards import OPTIONS, PAIR, PROMPTS

from rrlib import disk, load_reward, load_rewards
from rrlib.images import comparisons
from rrlib.images.miniature import weights as miniature
from rrlib.lab import results, store, toys
from rrlib.lab.agents import evidence as agents
from rrlib.lab.agents.cloning import ClonedPolicy
from rrlib.lab.agents.recipes import StepDiffuser, StepDiscriminator, StepPool, StepReward
from rrlib.lab.images.pools import Shipped
from rrlib.lab.locomotion import files as locomotion_files
from rrlib.lab.locomotion.recipes import LocomotionData, LocomotionFile
from rrlib.lab.mazes.recipes import MazeFile
from rrlib.locomotion import actors, robots
from rrlib.plans import trajectories
from rrlib.tensor_files import read_tensors

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Victim:
    """One kind of file.

    Attributes:
        place: of the file.
        use: whoever wants it; what it is worth, to be compared.
        again: where it is, whole, once it was made again unasked; None if nobody can in passing.
        names: of which a sentence must have one, besides the file's.
    """

    place: Path
    use: Callable[[], Any]
    again: Path | None = None
    names: tuple[str, ...] = ()


class Found(NamedTuple):
    """What came of one kind's trials."""

    kind: str
    again: bool
    trials: int
    noticed: int
    mended: int
    faults: list[str]


def run(folder: Path, seed: int, most: int = 4) -> list[Found]:
    """The four damages of every kind of file (or fewer of them)."""
    found = []
    for name, victim in victims(folder):
        draw = random.Random(f"{seed}/{name}")
        damages = draw.sample(sorted(DAMAGES), most)
        found.append(_trials(name, victim, damages, draw))
    return found


def _trials(name: str, victim: Victim, damages: list[str], draw: random.Random) -> Found:
    whole, counts, faults = victim.place.read_bytes(), Counter[str](), []
    names = (victim.place.name, *victim.names)
    right = ended(victim.use, names)
    assert right.kind == "value" and not right.said, f"{name}: the good file is {right.said}"
    for damage in damages:
        content = DAMAGES[damage](whole, draw)
        victim.place.unlink()
        if content is not None:
            victim.place.write_bytes(content)
        end = ended(victim.use, names)
        again = victim.again is not None and _is_as_it_was(victim.again, whole)
        mended = same(end.value, right.value) and again  # what is replaced need not be spoken of
        noticed = mended or end.kind == "refused"
        counts["noticed"] += noticed
        counts["mended"] += mended
        if not noticed or (victim.again and not mended):
            faults.append(f"{name}, {damage}: {end.kind} {end.said}")
        if not (mended and victim.again == victim.place):
            victim.place.write_bytes(whole)
        for left in victim.place.parent.glob(".*.damaged*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    return Found(
        name, victim.again is not None, len(damages), counts["noticed"], counts["mended"], faults
    )


def _is_as_it_was(place: Path, whole: bytes) -> bool:
    """The same bytes; of a manifest, which tells when it was made, the same sums."""
    if not place.exists():
        return False
    if place.name != store.MANIFEST:
        return place.read_bytes() == whole
    before = place.with_name(".before.json")
    before.write_bytes(whole)
    same_sums = disk.read_json(before)["sha256"] == disk.read_json(place)["sha256"]
    before.unlink()
    return same_sums


def victims(folder: Path) -> Iterator[tuple[str, Victim]]:
    """Every kind of file that the project writes or ships, with whoever reads it."""
    yield from _artefacts(folder)
    yield from _unfinished(folder)
    yield from _copied(folder)
    yield from _shipped(folder)
    yield from _published(folder)


def _artefacts(folder: Path) -> Iterator[tuple[str, Victim]]:
    """Both files of each kind of artefact, and what else is in it."""
    for name, recipe in _recipes(folder).items():
        use = partial(_obtained, recipe)
        use()
        place = store.folder(recipe)
        data = [path for path in sorted(place.rglob("*")) if path.is_file()]
        first = next(path for path in data if path.name != store.MANIFEST)
        for path in dict.fromkeys([first, data[-1], place / store.MANIFEST]):
            yield f"artefact, {name}: {path.name}", Victim(path, use, path)


def _obtained(recipe: Any) -> str:
    return digests.of(store.obtain(recipe))


def _recipes(folder: Path) -> dict[str, Any]:
    found = small_recipes.recipes()
    maze, robot = found["maze base"].data, found["robot base"].data
    files = {}
    for name, data in (("maze", maze), ("hopper", robot)):
        files[name] = folder / f"{name}.hdf5"
        trajectories.write_hdf5(files[name], store.obtain(data))
    fit = {"steps": 3, "batch": 4}
    steps = [StepDiffuser(d, (maze,), hidden=8, **fit) for d in (maze, replace(maze, seed=9))]
    toy = [
        toys.ToyDiffuser(side, samples=20, channels=(8, 8), **fit) for side in ("base", "expert")
    ]
    return found | {
        "maze data": maze,
        "maze file": MazeFile.at("umaze", str(files["maze"])),
        "robot data": robot,
        "robot file": LocomotionFile.at("hopper", str(files["hopper"])),
        "medium data": LocomotionData("hopper", "medium", 300),
        "step base": steps[0],
        "step reward": StepReward(StepPool(*steps, plans=20), hidden=(8,), **fit),
        "step rival": StepDiscriminator(*steps, hidden=(8,), **fit),
        "cloned policy": ClonedPolicy(robot, hidden=8, **fit),
        "toy base": toy[0],
        "toy reward": toys.ToyReward(*toy, pool=30, **fit),
        "image weights": Shipped(miniature.TUNED),
    }


def _unfinished(folder: Path) -> Iterator[tuple[str, Victim]]:
    """What a run that was killed left: checkpoints, shards and their record."""
    path, train = small_files.checkpoint(folder / "network.safetensors")
    yield "checkpoint", Victim(path, train, path)
    runs = small_files.shards(folder / "shards")

    def generate() -> list[bytes]:
        list(comparisons.generate(runs, *PAIR, PROMPTS, **OPTIONS))
        return [file.read_bytes() for file in sorted(runs.iterdir()) if file.name[0] != "."]

    for name in ("shard-00001.safetensors", "comparisons.json"):
        yield f"comparisons: {name}", Victim(runs / name, generate, runs / name)


def _copied(folder: Path) -> Iterator[tuple[str, Victim]]:
    """Artefacts that come with the book, wanted in an empty store."""
    recipe = _recipes(folder)["toy base"]
    use = partial(_obtained, recipe)
    use()
    source = folder / "shipped" / store.folder(recipe).relative_to(store.root())
    shutil.copytree(store.folder(recipe), source)

    def unpacked() -> str:
        before, store.SHIPPED = store.SHIPPED, folder / "shipped"
        shutil.rmtree(store.folder(recipe))
        try:
            return use()
        finally:
            store.SHIPPED = before

    for path in sorted(source.iterdir()):
        made = store.folder(recipe) / path.name
        yield f"shipped diffuser: {path.name}", Victim(path, unpacked, made)


def _shipped(folder: Path) -> Iterator[tuple[str, Victim]]:
    """What nobody can make again in passing: policies, agents, the miniature, the full rewards."""
    actors.POLICIES = Path(shutil.copytree(actors.POLICIES, folder / "policies"))
    teachers = Path(shutil.copytree(agents.POLICIES, folder / "agents"))
    mini = Path(shutil.copytree(miniature.FOLDER, folder / "miniature"))
    hopper = robots.load("hopper")

    def policy() -> Any:
        return digests.of(actors.load_policies(hopper)), actors.card(hopper)

    def agent() -> str:
        return digests.of(agents.load_agent("hopper", "extracted", teachers))

    def pipeline() -> str:
        return digests.of(miniature.load(miniature.TUNED, folder=mini))

    for path in sorted(actors.POLICIES.glob("hopper.*")):
        yield f"policies: {path.name}", Victim(path, policy, None, ("hopper",))
    for path in sorted(teachers.glob("hopper-extracted.*")):
        yield f"agent: {path.name}", Victim(path, agent, None, ("hopper-extracted",))
    unet = "pipeline/unet/diffusion_pytorch_model.safetensors"
    for name in ("card.json", "hollow.safetensors", unet):
        yield f"miniature: {name}", Victim(mini / name, pipeline)
    for name, read in {
        "maze2d-rewards": load_rewards,
        "maze2d-step-rewards": load_rewards,
        "maze2d-maps": read_tensors,
        "images-safe": load_reward,
        "locomotion-models": locomotion_files.read,
    }.items():
        path = Path(shutil.copy(ROOT / f"results/full/{name}.safetensors", folder))
        yield f"full result: {path.name}", Victim(path, lambda r=read, p=path: digests.of(r(p)))


def _published(folder: Path) -> Iterator[tuple[str, Victim]]:
    """What a chapter or a user keeps: a reward, a study's numbers."""
    path = small_files.rewards(folder / "mine.safetensors")
    yield "a user's reward", Victim(path, lambda: digests.of(load_rewards(path)))
    study = small_files.result(folder / "published")
    yield "a study's numbers", Victim(study, lambda: results.read(study))
