"""Accept the code of all recipes as it is: write `tests/recipe_code.json`.

    python workflow/recipe_code.py

An artefact's key holds its recipe's `code_version`, not its code (`rrlib/lab/store.py` says why).
So that nobody forgets to raise it, `tests/test_recipe_code.py` compares a digest of each recipe's
code with the one that was accepted last. The digest is of the syntax trees of all that a recipe
reaches by name inside rrlib, without docstrings, annotations and messages, and the same in every
Python.
This script only parses: it imports nothing of rrlib.
"""

import ast
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ACCEPTED = ROOT / "tests" / "recipe_code.json"
COMMAND = "python workflow/recipe_code.py"
# They keep what is made and do not shape it.
KEEPERS = {
    "lab.store",
    "lab.meters",
    "lab.keys",
    "lab.environment",
    "disk",
    "tensor_files",
    "errors",
}
# What a Python's parser adds, or leaves out, without a change of meaning.
UNIMPORTANT = {"type_params", "type_comment", "kind", "ctx", "type_ignores"}
ANNOTATIONS = {"annotation", "returns"}

Definitions = dict[str, list[ast.stmt]]


@dataclass
class Room:
    """A module: what it defines at its top level, and what its names are imported from."""

    definitions: Definitions = field(default_factory=dict)
    imported: dict[str, tuple[str, str | None]] = field(default_factory=dict)


def parsed(package: Path) -> dict[str, Room]:
    """The modules of a package, by full name."""
    trees = {}
    for path in sorted(package.rglob("*.py")):
        parts = [*path.relative_to(package.parent).with_suffix("").parts]
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        trees[name] = ast.parse(path.read_text(encoding="utf-8"))
    rooms = {}
    for name, tree in trees.items():
        room = rooms[name] = Room()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module in trees:
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    target = (full, None) if full in trees else (node.module, alias.name)
                    room.imported[alias.asname or alias.name] = target
        for statement in tree.body:
            for defined in _names(statement):
                room.definitions.setdefault(defined, []).append(statement)
    return rooms


def _names(statement: ast.stmt) -> set[str]:
    """What a statement at the top level defines, or changes."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return set()
    changed = [statement] if isinstance(statement, ast.Expr) else []  # as `TABLE.update(...)` does
    for node in ast.walk(statement):
        changed += getattr(node, "targets", [])  # as `TABLE["a"] = 1` does
    found = {n.id for place in changed for n in ast.walk(place) if isinstance(n, ast.Name)}
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
    return found


def recipes(rooms: Mapping[str, Room]) -> dict[str, tuple[str, ast.ClassDef]]:
    """Module and class of every recipe: a class with `make` and `load`, of a folder and a device.

    Raises ValueError if two have one name, which is all that a store knows them by.
    """
    found: dict[str, tuple[str, ast.ClassDef]] = {}
    for module, room in rooms.items():
        for name, statements in room.definitions.items():
            for one in statements:
                if _is_recipe(rooms, module, one):
                    if name in found:
                        raise ValueError(f"two recipes are called {name}")
                    found[name] = module, one
    return found


def _is_recipe(rooms: Mapping[str, Room], module: str, statement: ast.stmt) -> bool:
    if not isinstance(statement, ast.ClassDef):
        return False
    methods = _methods(rooms, module, statement)
    wanted = ["self", "folder", "device"]
    return methods.get("make") == methods.get("load") == wanted


def _methods(rooms: Mapping[str, Room], module: str, one: ast.ClassDef) -> dict[str, list[str]]:
    """Arguments of a class's methods, those of the classes that it inherits from included."""
    found: dict[str, list[str]] = {}
    for home, parent in reversed([*_parents(rooms, module, one)]):
        found |= _methods(rooms, home, parent)
    own = (part for part in one.body if isinstance(part, ast.FunctionDef))
    return found | {part.name: [argument.arg for argument in part.args.args] for part in own}


def _parents(
    rooms: Mapping[str, Room], module: str, one: ast.ClassDef
) -> Iterator[tuple[str, ast.ClassDef]]:
    """Classes of this package that a class inherits from, each with its module."""
    for base in one.bases:
        home, name = _named(rooms, module, base) or (module, None)
        for statement in rooms[home].definitions.get(name, []):
            if isinstance(statement, ast.ClassDef):
                yield home, statement


def version(rooms: Mapping[str, Room], module: str, recipe: ast.ClassDef) -> int:
    """Its `code_version`, or that of what it inherits from; 1 without one."""
    for part in recipe.body:
        if isinstance(part, ast.AnnAssign) and ast.unparse(part.target) == "code_version":
            return ast.literal_eval(part.value)
    for parent in _parents(rooms, module, recipe):
        return version(rooms, *parent)
    return 1


def digests(package: Path = ROOT / "rrlib") -> dict[str, dict[str, int | str]]:
    """`version` and `code` of every recipe, by name."""
    rooms = parsed(package)
    found = {}
    for name, (module, recipe) in sorted(recipes(rooms).items()):
        seen: dict[str, list] = {}
        _collect(rooms, module, name, seen)
        text = json.dumps(seen, sort_keys=True)
        code = hashlib.sha256(text.encode()).hexdigest()[:16]
        found[name] = {"version": version(rooms, module, recipe), "code": code}
    return found


def _collect(
    rooms: Mapping[str, Room], module: str, name: str, seen: dict[str, list], typed: bool = False
) -> None:
    """Put the code that a name reaches into `seen`; of a name of a type, no more than its class."""
    full = f"{module}.{name}"
    known = {full, f"type {full}"} if typed else {full}
    if known & {*seen} or module.partition(".")[2] in KEEPERS:
        return
    if name not in rooms[module].definitions:
        if name in rooms[module].imported:  # passed on
            target, attribute = rooms[module].imported[name]
            if attribute:
                _collect(rooms, target, attribute, seen, typed)
        return
    statements = rooms[module].definitions[name]
    typed = typed and not any(isinstance(one, ast.ClassDef) for one in statements)
    # Another type of the same values makes the same.
    seen[f"type {full}" if typed else full] = [] if typed else [plain(one) for one in statements]
    for statement in statements:
        called = _called(statement)
        for node, annotates in _walk(statement, typed):
            found = _named(rooms, module, node)
            if found is None:
                continue
            # A recipe among the fields brings its own version into the key.
            defined = rooms[found[0]].definitions.get(found[1], [])
            is_recipe = any(_is_recipe(rooms, found[0], one) for one in defined)
            if not is_recipe or id(node) in called:
                _collect(rooms, *found, seen, annotates)


def _named(rooms: Mapping[str, Room], module: str, node: ast.AST) -> tuple[str, str] | None:
    """Module and name of what a node names of this package."""
    room = rooms[module]
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        target, attribute = room.imported.get(node.value.id, (None, None))
        return (target, node.attr) if target and attribute is None else None
    if isinstance(node, ast.Name):
        if node.id in room.definitions:
            return module, node.id
        target, attribute = room.imported.get(node.id, (None, None))
        return (target, attribute) if target and attribute else None
    return None


def _called(statement: ast.stmt) -> set[int]:
    """Nodes that name what functions call, or ask something of, and what a class inherits."""
    found = {id(base) for base in getattr(statement, "bases", [])}
    for function in ast.walk(statement):
        if isinstance(function, ast.FunctionDef):
            for node in (node for part in function.body for node in ast.walk(part)):
                if isinstance(node, ast.Call):
                    found.add(id(node.func))
                elif isinstance(node, ast.Attribute):
                    found.add(id(node.value))
    return found


def _walk(node: ast.AST, annotates: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """All nodes but those of messages, and whether they are of an annotation."""
    yield node, annotates
    for name, value in ast.iter_fields(_without_message(node)):
        typed = annotates or name in ANNOTATIONS
        for part in value if isinstance(value, list) else [value]:
            if not isinstance(part, ast.AST):
                continue
            text = getattr(part, "value", None)
            if name in ANNOTATIONS and isinstance(text, str):
                part = ast.parse(text, mode="eval").body
            yield from _walk(part, typed)


def _without_message(node: ast.AST) -> ast.AST:
    """The same but for what it tells a person."""
    if isinstance(node, ast.Raise) and node.exc is not None:
        raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        return ast.Raise(raised, None)
    if isinstance(node, ast.Assert):
        return ast.Assert(node.test, None)
    return node


def plain(node: ast.AST) -> list:
    """A syntax tree as JSON has it, without docstrings, annotations, messages and places."""
    node = _without_message(node)
    found: list = [type(node).__name__]
    for name, value in ast.iter_fields(node):
        if name in UNIMPORTANT or name in ANNOTATIONS:
            continue
        if name == "body" and isinstance(value, list):
            value = [part for part in value if not _is_text(part) and not _is_version(part)]
        if isinstance(value, list):
            value = [plain(part) if isinstance(part, ast.AST) else part for part in value]
            value = _joined(value) if isinstance(node, ast.JoinedStr) else value
        elif isinstance(value, ast.AST):
            value = plain(value)
        elif not (value is None or isinstance(value, str | int | float | bool)):
            value = repr(value)  # bytes, complex numbers and ...
        if value not in (None, []):
            found.append([name, value])
    return found


def _is_text(node: ast.AST) -> bool:
    """A docstring, or a text that does nothing."""
    return isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str)


def _is_version(node: ast.AST) -> bool:
    return isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "code_version"


def _joined(parts: list) -> list:
    """Pieces of an f-string with neighbouring texts as one: parsers cut them differently."""
    found: list = []
    for part in parts:
        if found and part[0] == found[-1][0] == "Constant":
            found[-1] = ["Constant", ["value", found[-1][1][1] + part[1][1]]]
        else:
            found.append(part)
    return found


def complaints(accepted: Mapping[str, Mapping], found: Mapping[str, Mapping]) -> list[str]:
    """One sentence for each recipe whose code is not what was accepted."""
    said = []
    for name in sorted({*accepted, *found}):
        before, now = accepted.get(name), found.get(name)
        if before is None or now is None:
            change = "new" if before is None else "gone"
            said.append(f"recipe {name} is {change}: say so with `{COMMAND}`")
        elif now["version"] != before["version"]:
            said.append(
                f"code_version of {name} is {now['version']}, {before['version']} was accepted: "
                f"say so with `{COMMAND}`"
            )
        elif now["code"] != before["code"]:
            said.append(
                f"code of {name} changed since version {before['version']}: raise its "
                f"code_version, or, if what it makes is the same, accept it with `{COMMAND}`"
            )
    return said


def main() -> None:
    accepted = json.loads(ACCEPTED.read_text(encoding="utf-8")) if ACCEPTED.exists() else {}
    found = digests()
    for line in complaints(accepted, found):
        print(line.partition(":")[0])
    ACCEPTED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"accepted: {ACCEPTED.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
