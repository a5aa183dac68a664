"""The JSON schema of a run file: settings that are plain dataclasses look there as models do."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import fields

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from tide_cache.config.settings import Setting


class RunFileSchema(GenerateJsonSchema):
    """Describes each field of a setting by what stands below it, inherited or not, and demands the tag of a union."""

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> JsonSchemaValue:
        """Return the schema of a dataclass."""
        found = super().dataclass_schema(schema)
        setting = schema["cls"]
        if not issubclass(setting, Setting):
            return found
        texts = dict(attribute_docstrings(setting))
        properties = {field.name: found["properties"][field.name] for field in fields(setting)}
        for name, value in properties.items():
            if name in texts:
                value["description"] = texts[name]
        if "kind" in properties:
            del properties["kind"]["default"]
            found["required"] = ["kind"]
        return found | {"properties": properties}


def attribute_docstrings(setting: type) -> Iterator[tuple[str, str]]:
    """Give what stands below the fields of a class and of those it inherits from, each as one line."""
    for ancestor in reversed(setting.__mro__):
        if not issubclass(ancestor, Setting):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(ancestor))).body
        assert isinstance(tree, ast.ClassDef)
        for declared, below in zip(tree.body, tree.body[1:], strict=False):
            match declared, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    yield name, " ".join(text.split())
