"""The JSON schema of a run file, in which settings that are plain dataclasses look like models."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import fields

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from tide_cache.config.settings import Setting


class RunFileSchema(GenerateJsonSchema):
    """Describes each field of a setting by the docstring below it, also inherited, and requires the tag of a union."""

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        """Return the schema of a model, which may have settings as fields."""
        found = super().model_schema(schema)
        for name, text in attribute_docstrings(schema["cls"]):
            if name in found["properties"]:
                found["properties"][name]["description"] = text
        return found

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> JsonSchemaValue:
        """Return the schema of a dataclass."""
        found = super().dataclass_schema(schema)
        setting = schema["cls"]
        if not issubclass(setting, Setting):
            return found
        properties = {field.name: found["properties"][field.name] for field in fields(setting)}
        for name, text in attribute_docstrings(setting):
            properties[name]["description"] = text
        if "kind" in properties:
            del properties["kind"]["default"]
            found["required"] = ["kind"]
        return found | {"properties": properties}


def attribute_docstrings(setting: type) -> Iterator[tuple[str, str]]:
    """Yield the docstrings of the fields of a class and its bases, each as one line."""
    for ancestor in reversed(setting.__mro__):
        if not issubclass(ancestor, Setting):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(ancestor))).body
        assert isinstance(tree, ast.ClassDef)
        for declared, below in zip(tree.body, tree.body[1:], strict=False):
            match declared, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    yield name, " ".join(text.split())
