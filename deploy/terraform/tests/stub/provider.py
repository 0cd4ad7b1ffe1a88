"""A provider that accepts what DigitalOcean's does (schema.json) and does nothing: behind it `terraform validate` finds a misspelt
argument, and `terraform test` has a schema for `mock_provider`, where the real provider cannot be downloaded.

It refuses to make, read or change anything: a test that forgot its mock fails, and touches no account.
"""

import json
from pathlib import Path

from tf import runner, schema
from tf.iface import DataSource, Provider, Resource
from tf.types import TfType

SCHEMA = json.loads(Path(__file__).with_name("schema.json").read_text())
PREFIX = "digitalocean_"


class Type(TfType):
    """A type as Terraform writes it: "string", ["set", "number"]."""

    def __init__(self, written):
        self.written = written

    def encode(self, value):
        return value

    def decode(self, value):
        return value

    def tf_type(self):
        return json.dumps(self.written).encode()


class Nested(schema.NestedBlock):
    """A block within a block. The library has sets alone."""

    def __init__(self, name, written):
        inner = schema.Block(*members(written["block"]))
        super().__init__(name, schema.NestMode.Set, inner, written.get("min", 0), written.get("max", 0))
        self.written = written["nesting"]

    def to_pb(self):
        message = super().to_pb()
        message.nesting = type(message).NestingMode.Value(self.written.upper())
        return message

    def encode(self, value):
        return value

    def decode(self, value):
        return value

    def semantically_equal(self, a_decoded, b_decoded):
        return a_decoded == b_decoded


def members(block):
    """The attributes and blocks of a block of schema.json."""
    attributes = [
        schema.Attribute(name, Type(written["type"]), **dict.fromkeys(written["mode"].split("+"), True))
        for name, written in block["attributes"].items()
    ]
    return attributes, [Nested(name, written) for name, written in block.get("blocks", {}).items()]


def whole(block):
    attributes, blocks = members(block)
    return schema.Schema(attributes=attributes, block_types=blocks, version=0)


class Refusing(Resource):
    """What every resource is: known, and not to be had."""

    NAME = ""
    BLOCK = {}

    def __init__(self, provider):
        self.provider = provider

    @classmethod
    def get_name(cls):
        return cls.NAME

    @classmethod
    def get_schema(cls):
        return whole(cls.BLOCK)

    def _refuse(self, context):
        context.diagnostics.add_error(
            "This is no cloud", f"{context.type_name}: the stub provider makes nothing; the test lacks a mock_provider")

    def create(self, ctx, planned):
        self._refuse(ctx)

    def read(self, ctx, current):
        self._refuse(ctx)

    def update(self, ctx, current, planned):
        self._refuse(ctx)

    def delete(self, ctx, current):
        self._refuse(ctx)


class Stub(Provider):
    def get_model_prefix(self):
        return PREFIX

    def full_name(self):
        return "registry.terraform.io/digitalocean/digitalocean"

    def get_provider_schema(self, diags):
        return whole(SCHEMA["provider"])

    def validate_config(self, diags, config):
        pass

    def configure_provider(self, diags, config):
        pass

    def get_data_sources(self) -> list[type[DataSource]]:
        return []

    def get_resources(self):
        return [
            type("Resource_" + name, (Refusing,), {"NAME": name.removeprefix(PREFIX), "BLOCK": block})
            for name, block in SCHEMA["resources"].items()
        ]


if __name__ == "__main__":
    runner.run_provider(Stub())
