"""`terraform validate` and `terraform plan` accept each environment, with a stand-in for Google's provider.

    python infra/schema/validate.py [dev test prod]

The stand-in speaks Terraform's plugin protocol and has the real provider's arguments, from provider.json, but does
nothing: what it shows is that the modules fit each other and the schema, and that a plan of an empty project can be
computed. Where the provider can be had, the workflow asks the real one. Needs terraform and the package tf.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import msgpack
from tf.gen import tfplugin_pb2 as pb
from tf.gen import tfplugin_pb2_grpc as rpc

INFRA = Path(__file__).parents[1]
ADDRESS = "registry.terraform.io/hashicorp/google"
BARE: dict[str, Any] = {"project_id": "my-project", "bucket_name": "my-bucket"}
FULL: dict[str, Any] = {
    "operators": ["user:ann@example.com"],
    "source_datasets": ["sales"],
    "metric_table": None,
    "extra_apis": ["compute.googleapis.com"],
    "labels": {"team": "growth"},
    "kms_key_name": "projects/keys/locations/us-central1/keyRings/data/cryptoKeys/segwatch",
    "budget": {"billing_account": "000000-000000-000000", "monthly_amount": 50},
}
_UNKNOWN = msgpack.ExtType(0, b"\0")


def _type(text: str) -> bytes:
    kind, _, element = text.partition(" of ")
    return json.dumps([kind, json.loads(_type(element))] if element else "dynamic" if kind == "any" else kind).encode()


def _block(known: dict[str, Any]) -> pb.Schema.Block:
    # An optional argument may be filled in by Google: optional and computed.
    attributes = {
        name: pb.Schema.Attribute(
            name=name,
            type=_type(facts["type"]),
            required=facts["required"],
            optional=not facts["required"],
            computed=not facts["required"],
        )
        for name, facts in known["arguments"].items()
    }
    for name in set(known.get("attributes", ())) - set(attributes) - set(known["blocks"]):
        attributes[name] = pb.Schema.Attribute(name=name, type=b'"string"', computed=True)
    nested = [
        pb.Schema.NestedBlock(
            type_name=name,
            block=_block(facts),
            nesting=pb.Schema.NestedBlock.NestingMode.LIST,
            min_items=int(facts["required"]),
            max_items=0 if facts["many"] else 1,
        )
        for name, facts in known["blocks"].items()
    ]
    return pb.Schema.Block(attributes=list(attributes.values()), block_types=nested)


class StandIn(rpc.ProviderServicer):
    """Has the provider's schema, agrees to every configuration, and plans what is asked for."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self._schema = schema

    def GetMetadata(self, request, context):  # noqa: ARG002
        return pb.GetMetadata.Response(
            resources=[pb.GetMetadata.ResourceMetadata(type_name=name) for name in self._schema["resource"]],
            data_sources=[pb.GetMetadata.DataSourceMetadata(type_name=name) for name in self._schema["data"]],
        )

    def GetProviderSchema(self, request, context):  # noqa: ARG002
        texts = {name: {"type": "string", "required": False} for name in ("project", "region", "billing_project")}
        own = {"arguments": texts | {"user_project_override": {"type": "bool", "required": False}}, "blocks": {}}
        return pb.GetProviderSchema.Response(
            provider=pb.Schema(block=_block(own)),
            resource_schemas={name: pb.Schema(block=_block(b)) for name, b in self._schema["resource"].items()},
            data_source_schemas={name: pb.Schema(block=_block(b)) for name, b in self._schema["data"].items()},
        )

    def ValidateProviderConfig(self, request, context):  # noqa: ARG002
        return pb.ValidateProviderConfig.Response()

    def ValidateResourceConfig(self, request, context):  # noqa: ARG002
        return pb.ValidateResourceConfig.Response()

    def ValidateDataResourceConfig(self, request, context):  # noqa: ARG002
        return pb.ValidateDataResourceConfig.Response()

    def ConfigureProvider(self, request, context):  # noqa: ARG002
        return pb.ConfigureProvider.Response()

    def PlanResourceChange(self, request, context):  # noqa: ARG002
        proposed = msgpack.unpackb(request.proposed_new_state.msgpack, ext_hook=msgpack.ExtType)
        return pb.PlanResourceChange.Response(
            planned_state=_filled(proposed, self._schema["resource"][request.type_name])
        )

    def ReadDataSource(self, request, context):  # noqa: ARG002
        asked = msgpack.unpackb(request.config.msgpack, ext_hook=msgpack.ExtType)
        return pb.ReadDataSource.Response(state=_filled(asked, self._schema["data"][request.type_name], "1"))

    def StopProvider(self, request, context):  # noqa: ARG002
        return pb.StopProvider.Response()


def _filled(values: Any, known: dict[str, Any], filling: Any = _UNKNOWN) -> pb.DynamicValue:
    """The state with its absent texts filled in, as Google would: unknown before they are made."""
    texts = {name for name, facts in known["arguments"].items() if facts["type"] == "string"}
    texts |= set(known.get("attributes", ())) - set(known["arguments"]) - set(known["blocks"])
    filled = {n: filling if v is None and n in texts else v for n, v in values.items()}
    return pb.DynamicValue(msgpack=msgpack.packb(filled))


def _terraform(folder: Path, environment: dict[str, str], *arguments: str) -> str:
    said = subprocess.run(
        ["terraform", f"-chdir={folder}", *arguments, "-no-color"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if said.returncode:
        raise SystemExit(f"terraform {arguments[0]} of {folder.name} failed:\n{said.stdout}{said.stderr}")
    return said.stdout


def check(env: str, reattach: str, work: Path) -> list[str]:
    """What plans of an empty project add, bare and with every option. Exits where Terraform refuses."""
    folder = work / "infra" / "envs" / env
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    environment |= {"TF_REATTACH_PROVIDERS": reattach, "CHECKPOINT_DISABLE": "1"}
    # A state of no length in place of the bucket's.
    (folder / "state_override.tf").write_text('terraform {\n  backend "local" {}\n}\n', encoding="utf-8")
    _terraform(folder, environment, "init", "-input=false")
    _terraform(folder, environment, "validate")
    plans = []
    for variables in (BARE, BARE | FULL):
        (folder / "check.tfvars.json").write_text(json.dumps(variables), encoding="utf-8")
        said = _terraform(folder, environment, "plan", "-input=false", "-var-file=check.tfvars.json")
        plans += [line for line in said.splitlines() if line.startswith("Plan:")]
    return plans


def main() -> None:
    schema = json.loads(Path(__file__).with_name("provider.json").read_text(encoding="utf-8"))
    server = grpc.server(futures.ThreadPoolExecutor(4))
    rpc.add_ProviderServicer_to_server(StandIn(schema), server)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        schemas = Path("src", "segwatch", "data")
        shutil.copytree(INFRA.parent / schemas, work / schemas)
        shutil.copytree(INFRA, work / "infra", ignore=shutil.ignore_patterns(".terraform*", "*.tfvars"))
        server.add_insecure_port(f"unix://{work}/provider")
        server.start()
        address = {"Network": "unix", "String": f"{work}/provider"}
        facts = {"Protocol": "grpc", "ProtocolVersion": 6, "Pid": os.getpid(), "Test": True, "Addr": address}
        try:
            for env in sys.argv[1:] or ["dev", "test", "prod"]:
                print(env, *check(env, json.dumps({ADDRESS: facts}), work), sep="\n  ")
        finally:
            server.stop(grace=0)


if __name__ == "__main__":
    main()
