"""What the commands are called with, and what is said when they cannot go on."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

from rrlib import __version__
from rrlib.errors import DataWarning, InputError

FAILED, INTERRUPTED = 2, 130  # exit codes; argparse, too, ends with 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit code: 0, or 2 after one sentence on stderr.

    Args:
        arguments: after the program's name; None takes the process's own.
    """
    given = parser().parse_args(arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("always", DataWarning)
        warnings.showwarning = _show  # type: ignore[assignment]
        try:
            import_module(f"rrlib.command_line.{given.command}").run(given)
        except InputError as error:
            print(f"rrlib: {error}", file=sys.stderr)
            return FAILED
        except MemoryError:
            print("rrlib: this needs more memory than there is.", file=sys.stderr)
            return FAILED
        except BrokenPipeError:  # whoever read our output has read enough
            sys.stderr.close()
            return FAILED
        except KeyboardInterrupt:
            print("rrlib: interrupted.", file=sys.stderr)
            return INTERRUPTED
    return 0


def parser() -> argparse.ArgumentParser:
    """What `rrlib` is called with."""
    made = argparse.ArgumentParser(
        "rrlib",
        description="Relative rewards of two diffusion models: extract them, score with them.",
    )
    made.add_argument("--version", action="version", version=__version__)
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")

    score = commands.add_parser(
        "score", help="what a reward says of trajectories, plans or images, as CSV"
    )
    score.add_argument(
        "file",
        help="trajectories (HDF5 of D4RL, Minari or robomimic; OGBench's npz; a Minari id), plans "
        "[N, H, D] in their own units (npy; npz, HDF5 or safetensors under the key 'plans'), or a "
        "folder of pictures",
    )
    score.add_argument("--reward", required=True, metavar="FILE[:NAME]", help="a reward's file")
    score.add_argument("--out", help="CSV file, which appears whole or not at all; else stdout")
    score.add_argument("--per-step", action="store_true", help="a row for each step")
    score.add_argument("--stride", type=int, default=1, help="steps from a window to the next (1)")
    score.add_argument("--pipeline", help="folder of the pipeline whose VAE encodes pictures")
    _add_data_options(score)

    info = commands.add_parser("info", help="what is in a file of rewards or of data")
    info.add_argument("file", metavar="FILE[:NAME]", help="of rewards, trajectories or plans")
    _add_data_options(info)

    extract = commands.add_parser("extract", help="the reward of two saved models")
    for side in ("base", "expert"):
        extract.add_argument(
            side,
            help="folder of a text-to-image pipeline, or of a diffusers network with scheduler",
        )
    extract.add_argument("--out", required=True, help="the reward's file")
    extract.add_argument("--prompts", help="CSV file with a column 'prompt', of pipelines")
    extract.add_argument(
        "--data", nargs=2, metavar=("BASE", "EXPERT"), help="trajectories or plans of both planners"
    )
    extract.add_argument("--layout", help="JSON file, as PlanLayout.about has it, of planners")
    extract.add_argument(
        "--horizon", type=int, help="steps of a plan, of planners without --layout"
    )
    extract.add_argument("--window", type=int, help="steps that a planners' reward sees at once")
    extract.add_argument(
        "--n",
        type=int,
        default=20_000,
        help="comparisons, of planners (20000); images of each of two pipelines without prompts",
    )
    extract.add_argument("--steps", type=int, default=3_000, help="of the reward's fit (3000)")
    extract.add_argument("--batch", type=int, default=8, help="prompts at a time (8)")
    extract.add_argument("--work", help="folder of a pipelines' comparisons, to go on from")
    extract.add_argument("--seed", type=int, default=0)
    extract.add_argument("--device", default="cpu")
    return made


def _add_data_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--observation-keys", default="", help="of a dictionary of observations, by commas"
    )
    command.add_argument(
        "--filter-key", default="", help="a list of robomimic's mask, such as train"
    )


def _show(message: Warning | str, category: type[Warning], *_place: object) -> None:
    """One line for what is said of data; of other warnings nothing, for they are not the user's."""
    if issubclass(category, DataWarning):
        print(f"rrlib: {message}", file=sys.stderr)
