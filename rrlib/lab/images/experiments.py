"""What a chapter about images asks for, made of its parameters."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import torch

from rrlib import training
from rrlib.errors import InputError, shown
from rrlib.images import pairs as image_pairs
from rrlib.images import pipelines
from rrlib.images.guided import Guided
from rrlib.images.miniature import weights as image_weights
from rrlib.images.pairs import Fit, ImageReward
from rrlib.images.prompts import check_prompts, read_prompts
from rrlib.images.safety import CONCEPT as HARM
from rrlib.images.safety import CONFIGURATIONS
from rrlib.lab import environment as host
from rrlib.lab import store
from rrlib.lab.images import evidence as image_evidence
from rrlib.lab.images.pools import (
    CONCEPT,
    Elsewhere,
    ImagePool,
    Model,
    PoolReward,
    PoolRival,
    Shipped,
)

CHANNELS = {True: (24, 48, 80), False: (32, 64, 128, 256)}  # of the reward: miniature, or Table 2
RATES = {True: 1e-3, False: 1e-4}
HELD_OUT = {True: 0.15, False: 0.1}
SHIPPED = host.CHECKOUT / "results/full"  # where the full profile leaves its rewards


@dataclass(frozen=True)
class World:
    """The models that a chapter is about.

    Attributes:
        base: the base's pipeline.
        expert: of another expert than the base under safe guidance; None for that.
        concept: what safe guidance turns from.
        miniature: whether it is the book's own, where the truth is known.
        given: prompts of a file; none, they are drawn.
    """

    base: Model
    expert: Model | None
    concept: str
    miniature: bool
    given: tuple[str, ...]

    def fresh(self, n: int, seed: int, use: str, without: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Prompts of one use, each once, none of those in `without`; of a file its first n.

        Raises:
            InputError: a file of fewer.
        """
        if self.miniature:
            seed = training.derived_seed(seed, use)
            return tuple(image_evidence.distinct_prompts(n, seed, without))
        if len(self.given) < n:
            raise InputError(
                f"n_prompts={n} is not allowed: at most the {len(self.given)} different ones of "
                "the file are."
            )
        return self.given[:n]


def world(chosen: SimpleNamespace) -> World:
    """The models of checked parameters; stops at once where they do not fit.

    Raises:
        InputError: no such pipeline, two that do not match, a prompt that cannot be used, float16
            on a CPU, or a model of your own without prompts or steps for its reward.
    """
    expert_id = getattr(chosen, "expert_id", "")
    # Each once: a prompt on both sides of the split would not be held out.
    given = tuple(dict.fromkeys(read_prompts(chosen.prompts) if chosen.prompts else ()))
    if not chosen.model_id:
        unused = {"prompts": "", "expert_id": "", "dtype": "float32"}
        for name, default in unused.items():
            value = getattr(chosen, name, default)
            if value != default:
                raise InputError(
                    f"{name}={value!r} is not allowed without a model_id: the book's own pipeline "
                    "has its own."
                )
        return World(Shipped(), None, chosen.concept or CONCEPT, True, ())
    if not given:
        raise InputError(
            f"model_id='{chosen.model_id}' is not allowed without prompts: a CSV file with a "
            "column 'prompt' is needed."
        )
    names = [chosen.model_id, *([expert_id] if expert_id else [])]
    dtype = getattr(torch, chosen.dtype)
    found = [pipelines.load_pipeline(name, chosen.device, dtype) for name in names]
    check_prompts(found[0], given, chosen.truncate)
    pipelines.check_pair(found[0], found[-1])
    models = [Elsewhere.of(*part, chosen.dtype) for part in zip(found, names, strict=True)]
    base, expert = models[0], models[1] if expert_id else None
    if base == expert:
        raise InputError(
            f"expert_id={shown(expert_id)} is not allowed: a pipeline of other weights or settings "
            "than the model_id's is needed."
        )
    return World(base, expert, chosen.concept or HARM, False, given)


def samplers(found: World, chosen: SimpleNamespace, names: tuple[str, ...]) -> dict[str, Guided]:
    """The base, and the safe sampler of each configuration, by name."""
    whole = store.obtain(found.base, chosen.device)
    options = (chosen.steps, chosen.guidance)
    made = {"base": Guided(whole, *options)}
    return made | {
        name: Guided(whole, *options, CONFIGURATIONS[name], found.concept) for name in names
    }


@dataclass(frozen=True)
class Study:
    """A reward and what it is judged by.

    Attributes:
        pool: comparisons of base and expert.
        judged: numbers of the pool's prompts that the reward has never seen.
        reward: what the expert prefers.
        seen: the prompts that it has seen, wherever it was fitted.
        made: recipes of what is kept of it.
    """

    pool: ImagePool
    judged: list[int]
    reward: ImageReward
    seen: tuple[str, ...]
    made: tuple[ImagePool | PoolReward | PoolRival, ...]


def study(found: World, chosen: SimpleNamespace, kind: str, number: int = 0) -> Study:
    """The reward of one kind, fitted now or the one that comes with the book.

    Args:
        found: the models.
        chosen: checked parameters of chapter 14; `reward_steps` of 0 takes the book's reward, and
            draws prompts that it has not seen.
        kind: "safe" (or the given expert's), "unlevelled" (the same, fitted with no level), its
            "rival", or "style" (the miniature's fine-tune).
        number: of the fit, from 0: others of the same comparisons differ in the prompts that are
            held out, in their first weights and in their batches.
    """
    styled = kind == "style"
    group = kind if styled else "safe"  # the rival is judged by the reward's images
    count = chosen.style_prompts if styled else chosen.n_prompts
    pool = ImagePool(
        found.base,
        (),
        Shipped(image_weights.TUNED) if styled else found.expert,
        None if styled or found.expert else chosen.configuration,
        found.concept,
        chosen.steps,
        chosen.guidance,
        min(chosen.batch, count),
        chosen.seed,
        chosen.truncate,
    )
    if chosen.reward_steps:
        pool = replace(pool, prompts=found.fresh(count, chosen.seed, "prompts"))
        own = found.miniature
        level = 0.0 if kind in ("unlevelled", "rival") else chosen.level
        options = (chosen.reward_steps, 64, RATES[own], chosen.seed + number, level)
        fit = Fit(HELD_OUT[own], CHANNELS[own], *options)
        recipe = (PoolRival if kind == "rival" else PoolReward)(pool, fit)
        reward = store.obtain(recipe, chosen.device)
        names = ("configuration", "steps", "guidance")
        told = {name: getattr(chosen, name) for name in names}
        told |= {"prompts": count, "prompts_seed": chosen.seed, "level": fit.level}
        expert_id = getattr(chosen, "expert_id", "")
        named = models(kind, chosen.configuration, chosen.model_id, expert_id)
        told |= {"models": named}
        reward = ImageReward(reward.reward, {**reward.about, **told})
        judged = list(reward.about["held_out"])
        return Study(pool, judged, reward, pool.prompts, (pool, recipe))
    reward = shipped(kind)
    seen = found.fresh(reward.about["prompts"], reward.about["prompts_seed"], "prompts")
    pool = replace(pool, prompts=found.fresh(count, chosen.seed, f"{group} judged", seen))
    return Study(pool, list(range(count)), reward, seen, (pool,))


def models(kind: str, configuration: str, model_id: str, expert_id: str) -> dict[str, str]:
    """What a shipped reward says of the samplers that it comes from.

    Args:
        kind: see `study`.
        configuration: of safe guidance.
        model_id, expert_id: of the chapter; empty for the miniature, and for safe guidance.
    """
    base = model_id or "rrlib.images.miniature"
    if kind == "style":
        return {"base": base, "expert": f"{base}, fine-tuned on hollow shapes"}
    return {"base": base, "expert": expert_id or f"{base}, safe guidance '{configuration}'"}


def check(found: World, chosen: SimpleNamespace) -> None:
    """Stop at once where chapter 14 cannot go on.

    Raises:
        InputError: no steps for the reward of other models than the book's, or a setting that the
            book's reward was not fitted with, or more prompts than there are.
    """
    if chosen.reward_steps:
        found.fresh(chosen.n_prompts, chosen.seed, "prompts")
        image_pairs.split(chosen.n_prompts, HELD_OUT[found.miniature], chosen.seed)
        return
    if not found.miniature:
        raise InputError(
            f"reward_steps=0 is not allowed with model_id='{chosen.model_id}': an integer of at "
            "least 1 is needed, for the book's rewards are the miniature's."
        )
    if chosen.n_seeds > 1:
        raise InputError(
            f"n_seeds={chosen.n_seeds} is not allowed with reward_steps=0: 1 is needed, for one "
            "reward of each kind comes with the book."
        )
    about = shipped("safe").about
    for name in ("configuration", "steps", "guidance"):
        value, wanted = getattr(chosen, name), about[name]
        if value != wanted:
            raise InputError(
                f"{name}={value!r} is not allowed with reward_steps=0: {wanted!r}, as the book's "
                "reward was fitted with, is needed."
            )


def seed(chosen: SimpleNamespace, use: str) -> int:
    """Of the noise of one use."""
    return training.derived_seed(chosen.seed, f"noise, {use}")


def shipped(kind: str) -> ImageReward:
    """A reward that comes with the book.

    Raises:
        InputError: the book's results are not there.
    """
    path = SHIPPED / f"images-{kind}.safetensors"
    if not path.exists():
        raise InputError(
            f"reward_steps=0 is not allowed where '{path}' is not there: a checkout of the book, "
            "with its results/full, or an integer of at least 1 is needed."
        )
    return image_pairs.load(path)
