"""provider.json holds the provider's arguments, blocks and attributes of the resources that infra/ uses.

The provider's own schema cannot be asked for without the provider, but its typed bindings are on npm. After a
resource is added, or the provider's version raised:

    npm pack @cdktf/provider-google@16.12.1 && tar xzf cdktf-provider-google-16.12.1.tgz
    python infra/schema/extract.py package

16.12.1 are the bindings of provider 6.50.0. Only the Python standard library is used.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

INFRA = Path(__file__).parents[1]
OUTPUT = Path(__file__).with_name("provider.json")

_INTERFACE = re.compile(r"^export interface (\w+)(?: extends [\w.]+)? \{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
# A property, behind the comment that links to its argument: .../docs/resources/storage_bucket#force_destroy ...
_PROPERTY = re.compile(
    r"/\*\*(?P<comment>.*?)\*/\s+readonly \w+(?P<optional>\??): (?P<type>.*?);\n(?=\s*(?:/\*\*|$))", re.DOTALL
)
_ANCHOR = re.compile(r"/docs/(?:resources|data-sources)/\w+#(\w+) ")
_VERSION = re.compile(r"/hashicorp/google/([\d.]+)/docs/")
_GETTER = re.compile(r"^    get (\w+)\(\): ", re.MULTILINE)
_USED = re.compile(r'^(resource|data) "google_(\w+)"', re.MULTILINE)
# Written by the bindings for every resource, whatever the provider says of it.
_BINDINGS_OWN = {"cdktf_type", "fqn", "friendly_unique_id", "terraform_meta_arguments", "terraform_generator_metadata"}


def used(infra: Path) -> list[tuple[str, str]]:
    """Kind (resource or data) and type of each block of the provider's in the .tf files, sorted."""
    texts = (path.read_text(encoding="utf-8") for path in infra.rglob("*.tf"))
    return sorted({(kind, name) for text in texts for kind, name in _USED.findall(text)})


def describe(declarations: str, class_name: str) -> dict[str, Any]:
    """Arguments, blocks and readable attributes of one resource, from its declaration file."""
    interfaces = dict(_INTERFACE.findall(declarations))
    class_body = declarations.split(f"export declare class {class_name} extends", 1)[1]
    body = _block(interfaces, f"{class_name}Config")
    attributes = {_snake(name) for name in _GETTER.findall(class_body)}
    return body | {"attributes": sorted(n for n in attributes - _BINDINGS_OWN if not n.endswith("_input"))}


def _block(interfaces: dict[str, str], name: str) -> dict[str, Any]:
    arguments, blocks = {}, {}
    for found in _PROPERTY.finditer(interfaces[name]):
        anchor = _ANCHOR.search(found["comment"])
        if anchor is None:
            raise SystemExit(f"{name} has a property without a link to its argument: {found['comment']!r}")
        required, type_ = not found["optional"], found["type"].replace(" | cdktf.IResolvable", "")
        inner = type_.removesuffix("[]")
        if inner in interfaces:
            blocks[anchor[1]] = _block(interfaces, inner) | {"required": required, "many": type_.endswith("[]")}
        else:
            arguments[anchor[1]] = {"type": _type(type_), "required": required}
    return {"arguments": arguments, "blocks": blocks}


def _type(bound: str) -> str:
    bound = re.sub(r"\s+", " ", bound)
    element = re.fullmatch(r"\{ \[key: string\]: \(?(\w+).*; \}", bound)
    if element:
        return f"map of {_type(element[1])}"
    if bound.endswith("[]"):
        return f"list of {_type(bound[:-2].strip('()'))}"
    return {"boolean": "bool", "any": "any"}.get(bound.split(" |")[0], bound)


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower()


def extract(package: Path, infra: Path) -> dict[str, Any]:
    """The content of provider.json."""
    blocks: dict[str, dict[str, Any]] = {"resource": {}, "data": {}}
    versions = set()
    for kind, name in used(infra):
        parts = ["data", "google", *name.split("_")] if kind == "data" else name.split("_")
        path = package / "lib" / "-".join(parts) / "index.d.ts"
        declarations = path.read_text(encoding="utf-8")
        versions |= set(_VERSION.findall(declarations))
        blocks[kind][f"google_{name}"] = describe(declarations, "".join(part.capitalize() for part in parts))
    (version,) = versions
    return {"provider": "hashicorp/google", "version": version, **blocks}


def main() -> None:
    document = extract(Path(sys.argv[1]), INFRA)
    OUTPUT.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
