"""Holds every .tf file of infra/ against the provider's schema, and the modules against each other.

    python infra/schema/check.py        prints what is wrong and exits 1, or nothing and exits 0

What `terraform validate` says needs the provider; this needs only provider.json, which extract.py wrote from it.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hcl2

INFRA = Path(__file__).parents[1]
SCHEMA = Path(__file__).with_name("provider.json")

Block = dict[str, Any]

_META = {"count", "for_each", "depends_on", "provider", "lifecycle"}
_MODULE_META = {"source", "count", "for_each", "depends_on", "providers"}
_LITERALS: dict[str, type | tuple[type, ...]] = {"bool": bool, "number": (int, float), "string": str}
_REFERENCE = re.compile(r"(?<![\w.\"-])(var|local|module|data\.google_\w+|google_\w+)\.(\w+)((?:\[[^\]]*\])?\.\w+)?")


@dataclass(frozen=True)
class Module:
    """The blocks of all .tf files of one folder."""

    path: Path
    blocks: dict[str, list[Block]]

    def named(self, kind: str) -> dict[str, Block]:
        """Blocks with one label, by it: variables, outputs, modules."""
        return {name: block for entry in self.blocks.get(kind, []) for name, block in _labelled(entry)}

    def typed(self, kind: str) -> Iterator[tuple[str, str, Block]]:
        """Blocks with two labels, behind them: resources and data."""
        for entry in self.blocks.get(kind, []):
            for type_, inner in _labelled(entry):
                for name, block in _labelled(inner):
                    yield type_, name, block

    @property
    def local_names(self) -> dict[str, Any]:
        return {name: value for entry in self.blocks.get("locals", []) for name, value in _labelled(entry)}

    def references(self) -> Iterator[tuple[str, str, str]]:
        """Each reference in an expression: what kind of thing, its name, and the attribute or ''."""
        for text in _texts(self.blocks):
            for kind, name, attribute in _REFERENCE.findall(text):
                yield kind, name, attribute.rpartition(".")[2]


def read_module(path: Path) -> Module:
    """The module in a folder. Raises ValueError naming the file that is not HCL."""
    blocks: dict[str, list[Block]] = {}
    for file in sorted(path.glob("*.tf")):
        try:
            document = _parsed(file.read_text(encoding="utf-8"))
        except Exception as error:
            raise ValueError(f"{file} cannot be parsed: {error}") from error
        for kind, entries in document.items():
            blocks.setdefault(kind, []).extend(entries)
    return Module(path, blocks)


@functools.cache
def _parsed(text: str) -> Block:
    document: Block = _plain(hcl2.loads(text))
    return document


def problems(infra: Path, schema: dict[str, Any]) -> list[str]:
    """One sentence for each thing that Terraform would refuse, or that nothing uses."""
    folders = sorted({path.parent for path in infra.rglob("*.tf")})
    found = []
    for module in map(read_module, folders):
        place = str(module.path.relative_to(infra))
        found += [f"{place}: {problem}" for problem in _module_problems(module, schema)]
    return found


def _module_problems(module: Module, schema: dict[str, Any]) -> Iterator[str]:
    yield from _pins(module, schema)
    for kind in ("resource", "data"):
        for type_, name, block in module.typed(kind):
            known = schema[kind].get(type_)
            if known is None:
                yield f"the {kind} {type_} is not in provider.json: run extract.py"
            else:
                yield from _block_problems(f"{type_}.{name}", block, known, _META)
    for name, call in module.named("module").items():
        yield from _call_problems(module, name, call)
    yield from _reference_problems(module, schema)


def _pins(module: Module, schema: dict[str, Any]) -> Iterator[str]:
    wanted = "~> " + schema["version"].rpartition(".")[0]
    for terraform in module.blocks.get("terraform", []):
        google = terraform.get("required_providers", [{}])[0].get("google", {})
        if google.get("source") == schema["provider"] and google.get("version") == wanted:
            return
    yield f"it does not pin {schema['provider']} to {wanted}"


def _block_problems(place: str, block: Block, known: dict[str, Any], meta: set[str]) -> Iterator[str]:
    arguments, blocks = known["arguments"], known["blocks"]
    content = dict(_nested(block))
    given = {name for name in block if not name.startswith("__") and name not in meta and name not in content}
    given -= {"dynamic"}
    for name in sorted(given - set(arguments)):
        yield f"{place} has no argument {name}"
    for name in sorted(set(content) - set(blocks) - meta):
        yield f"{place} has no block {name}"
    for name, facts in sorted({**arguments, **blocks}.items()):
        if facts["required"] and name not in given and name not in content:
            yield f"{place} needs {name}"
    for name in sorted(given & set(arguments)):
        if not _fits(block[name], arguments[name]["type"]):
            yield f"{place}: {name} must be a {arguments[name]['type']}, not {block[name]!r}"
    for name in sorted(set(content) & set(blocks)):
        bodies, is_dynamic = content[name]
        if len(bodies) > 1 and not is_dynamic and not blocks[name]["many"]:
            yield f"{place}: the block {name} can stand once"
        for body in bodies:
            yield from _block_problems(f"{place}: {name}", body, blocks[name], set())


def _nested(block: Block) -> Iterator[tuple[str, tuple[list[Block], bool]]]:
    """Nested blocks of a block, those of `dynamic` too."""
    for name, value in block.items():
        if name == "dynamic":
            for entry in value:
                for label, body in _labelled(entry):
                    yield label, (body["content"], True)
        elif isinstance(value, list) and value and all(isinstance(v, dict) and "__is_block__" in v for v in value):
            yield name, (value, False)


def _fits(value: Any, type_: str) -> bool:
    """Whether a literal has the type; an expression always may."""
    if value is None or (isinstance(value, str) and "${" in value):
        return True
    if type_.startswith("list of"):
        return isinstance(value, list)
    if type_.startswith("map of"):
        return isinstance(value, dict)
    expected = _LITERALS.get(type_, object)
    return isinstance(value, expected) and (type_ == "bool" or not isinstance(value, bool))


def _call_problems(module: Module, name: str, call: Block) -> Iterator[str]:
    target = (module.path / call.get("source", "")).resolve()
    if not list(target.glob("*.tf")):
        yield f"module {name}: its source {call.get('source')!r} holds no .tf file"
        return
    variables = read_module(target).named("variable")
    passed = {key for key in call if not key.startswith("__")} - _MODULE_META
    for key in sorted(passed - set(variables)):
        yield f"module {name} has no variable {key}"
    for key, variable in sorted(variables.items()):
        if "default" not in variable and key not in passed:
            yield f"module {name} needs the variable {key}"


def _reference_problems(module: Module, schema: dict[str, Any]) -> Iterator[str]:
    variables, calls = module.named("variable"), module.named("module")
    outputs = {
        name: read_module((module.path / call["source"]).resolve()).named("output") for name, call in calls.items()
    }
    made = {("" if kind == "resource" else "data.") + f"{type_}.{name}": schema[kind].get(type_)
            for kind in ("resource", "data") for type_, name, _ in module.typed(kind)}  # fmt: skip
    used: set[tuple[str, str]] = set()
    for kind, name, attribute in module.references():
        used.add((kind, name))
        match kind:
            case "var" if name not in variables:
                yield f"there is no variable {name}"
            case "local" if name not in module.local_names:
                yield f"there is no local {name}"
            case "module" if name not in calls:
                yield f"there is no module {name}"
            case "module" if attribute and attribute not in outputs[name]:
                yield f"module {name} has no output {attribute}"
            case "var" | "local" | "module":
                pass
            case _ if f"{kind}.{name}" not in made:
                yield f"there is no {kind}.{name}"
            case _ if attribute and not _readable(attribute, made[f"{kind}.{name}"]):
                yield f"{kind}.{name} has no attribute {attribute}"
    for name in sorted(variables):
        if ("var", name) not in used:
            yield f"nothing uses the variable {name}"
    for name in sorted(module.local_names):
        if ("local", name) not in used:
            yield f"nothing uses the local {name}"


def _readable(attribute: str, known: dict[str, Any] | None) -> bool:
    return known is None or attribute in {*known["attributes"], *known["arguments"], *known["blocks"]}


def _labelled(entry: Block) -> Iterator[tuple[str, Any]]:
    return ((name, value) for name, value in entry.items() if not name.startswith("__"))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            # A variable's validation names the variable itself, which is no use of it.
            if key != "validation":
                yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str):
        yield value


def _plain(value: Any) -> Any:
    """The parser's document without the quotes that it leaves around strings and labels."""
    if isinstance(value, dict):
        return {_unquoted(key): _plain(item) for key, item in value.items() if key != "__comments__"}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return _unquoted(value)


def _unquoted(value: Any) -> Any:
    is_quoted = isinstance(value, str) and len(value) > 1 and value[0] == value[-1] == '"'
    return value[1:-1] if is_quoted else value


def main() -> None:
    found = problems(INFRA, json.loads(SCHEMA.read_text(encoding="utf-8")))
    print("\n".join(found), end="\n" if found else "")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
