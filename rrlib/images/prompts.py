"""Prompts: of a file, and as the tokenizers of a pipeline know them."""

import csv
import errno
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from rrlib.disk import reason
from rrlib.errors import InputError, shown
from rrlib.images.kinds.choice import kind_of
from rrlib.images.kinds.stable_diffusion import inverted


def read_prompts(path: str | Path) -> list[str]:
    """The column `prompt` of a CSV file, as I2P has it; each prompt is kept to the letter.

    Raises:
        InputError: there is no such file, it is no CSV file in UTF-8, has not one column `prompt`,
            no row, a row of more or fewer fields than columns, or an empty prompt.
    """
    rows = list(_rows(path))
    columns = rows[0][1] if rows else []
    if columns.count("prompt") != 1:
        raise InputError(
            f"prompts='{path}' with the columns {shown(columns)} is not allowed: a column "
            "'prompt' is needed."
        )
    if len(rows) == 1:
        raise InputError(f"prompts='{path}' holds no prompt: at least one row is needed.")
    place = columns.index("prompt")
    for line, row in rows[1:]:
        if len(row) != len(columns):
            raise InputError(
                f"prompts='{path}': the row that ends in line {line} has {len(row)} fields for "
                f"{len(columns)} columns: a prompt with a comma needs quotes around it."
            )
        if not row[place].strip():
            raise InputError(
                f"prompts='{path}': the prompt that ends in line {line} is empty: every row needs "
                "one."
            )
    return [row[place] for _, row in rows[1:]]


def _rows(path: str | Path) -> Iterator[tuple[int, list[str]]]:
    """The number of its last line and the fields of each row of a CSV file that is not blank."""
    needed = "a CSV file in UTF-8 with a column 'prompt' is needed"
    try:
        if not Path(path).is_file():
            raise FileNotFoundError(errno.ENOENT, "")
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(
            f"prompts={shown(str(path), 200)} is not allowed: {needed} ({reason(error)})."
        ) from None
    start = 0  # of the last row that began
    try:
        text = content.decode("utf-8-sig")
        if "\0" in text:
            line = text[: text.index("\0")].count("\n") + 1
            raise InputError(f"prompts='{path}': line {line} holds a NUL: {needed}.")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        for row in reader:
            if row:
                yield reader.line_num, row
            start = reader.line_num
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(f"prompts='{path}': line {line} is not in UTF-8: {needed}.") from None
    except csv.Error as error:
        raise InputError(
            f"prompts='{path}': the row that begins in line {start + 1} cannot be read "
            f"({reason(error)}): {needed}."
        ) from None


def check_prompts(
    pipeline: DiffusionPipeline, prompts: Sequence[str] | int, truncate: bool = False
) -> list[str]:
    """Texts that the tokenizers know and take whole; of a pipeline without, as many empty ones.

    Args:
        pipeline: its tokenizers are used.
        prompts: at least one, each a text with no letter or sign that is unknown to the tokenizer;
            of a pipeline that takes no text, the number of images.
        truncate: a longer text than the tokenizers take is allowed, too.

    Raises:
        InputError: they are not.
    """
    tokenizers = kind_of(pipeline).tokenizers
    if not tokenizers:
        return [""] * _count(prompts)
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        raise InputError(f"prompts={shown(prompts)} is not allowed: a list of texts is needed.")
    if not prompts:
        raise InputError("prompts=[] is not allowed: at least one prompt is needed.")
    for prompt in prompts:
        if not isinstance(prompt, str) or not prompt.strip():
            raise InputError(f"prompt={shown(prompt)} is not allowed: a text is needed.")
        _check_tokens(pipeline, tokenizers, prompt, truncate)
    return list(prompts)


def _count(images: object) -> int:
    """Of images of a pipeline that takes no text; so many empty texts are the same."""
    blank = isinstance(images, list | tuple) and not any(images)
    count = len(images) if blank else images  # type: ignore[arg-type]
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise InputError(
            f"prompts={shown(images)} is not allowed: the pipeline takes no text, so the number of "
            "images, at least 1, is needed."
        )
    return count


def _check_tokens(
    pipeline: DiffusionPipeline, tokenizers: Sequence[Any], prompt: str, truncate: bool
) -> None:
    """Raise InputError unless a text is known to all tokenizers, and one of them takes it whole."""
    room = []
    for tokenizer in tokenizers:
        # The tokenizer itself would warn of what is an error here.
        text = inverted(pipeline, [prompt], tokenizer)[0]
        tokens = tokenizer(text, truncation=False, verbose=False).input_ids
        room.append((tokenizer.model_max_length - len(tokens), len(tokens)))
        # What a small vocabulary lacks becomes the token of the end, and the text another.
        if {tokenizer.unk_token_id, tokenizer.eos_token_id} & set(tokens[1:-1]):
            raise InputError(
                f"prompt={shown(prompt)} is not allowed: letters and signs of the tokenizer's "
                "vocabulary are needed."
            )
    most, used = max(room)
    if most < 0 and not truncate:
        raise InputError(
            f"prompt={shown(prompt)} of {used} tokens is not allowed: at most {used + most} "
            "are (truncate=True cuts it)."
        )
