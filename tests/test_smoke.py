"""What `make smoke` makes small, and what it leaves as the profiles have it."""

import nbformat
import pytest
import smoke
import yaml

KEPT = ("size", "horizon", "batch", "guidance", "executed", "level", "configuration", "dtype")


@pytest.fixture(scope="module")
def planned() -> dict[tuple[str, str], dict]:
    return smoke.runs(smoke.PROFILES, [])


def given(profile: str) -> dict[str, dict]:
    path = smoke.ROOT / "workflow" / "profiles" / f"{profile}.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.lengthy
def test_every_chapter_of_both_profiles_is_run(planned):
    for profile in smoke.PROFILES:
        for chapter, parameters in given(profile).items():
            wanted = smoke.capped(chapter, smoke.defaults(chapter) | parameters)
            assert wanted in [p for (_, c), p in planned.items() if c == chapter]


@pytest.mark.lengthy
def test_sizes_are_the_profiles(planned):
    for (profile, chapter), parameters in planned.items():
        whole = smoke.defaults(chapter) | given(profile)[chapter]
        assert parameters.keys() == whole.keys()
        for name in KEPT:
            assert parameters.get(name) == whole.get(name)
        assert parameters["device"] == "cpu"


def test_work_is_what_is_taken_away(planned):
    for parameters in planned.values():
        for name, value in parameters.items():
            if name.endswith("_steps") and name != "robot_steps":
                assert value <= 2
            if name in ("n_seeds", "rounds", "particles", "search"):
                assert value <= 2


def test_a_chapter_of_other_sizes_is_run_once_for_each(planned):
    profiles = [profile for profile, chapter in planned if chapter == "06_maze_rewards"]
    assert profiles == ["full", "paper"]
    assert [profile for profile, chapter in planned if chapter == "01_ornstein_uhlenbeck"] == [
        "full"
    ]


def test_lists_are_cut_and_numbers_only_lowered():
    before = {"maze": "open,umaze,medium", "transitions": "10000,1000000", "reward_steps": 1}
    after = smoke.capped("08_small_data", before)
    assert after == {"maze": "open", "transitions": "10000", "reward_steps": 1}
    assert smoke.capped("10_locomotion_data", {"steps": 1000})["steps"] == 10
    assert smoke.capped("13_safe_sampler", {"truncate": True}) == {"truncate": True}


def test_defaults_are_those_of_the_notebook():
    found = smoke.defaults("08_small_data")
    path = smoke.ROOT / "notebooks" / "08_small_data.ipynb"
    cells = nbformat.read(path, as_version=4).cells
    (cell,) = (c for c in cells if "parameters" in c.metadata.get("tags", []))
    namespace: dict = {}
    exec(cell.source, namespace)
    assert found == {name: namespace[name] for name in found} and len(found) > 5
