"""The description of all paths, as OpenAPI has it: what requests have to bring, for tools that read it."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from pydantic.json_schema import models_json_schema

from .web.endpoints import Path

_REF = "#/components/schemas/{model}"


def describe(paths: Sequence[Path]) -> dict[str, Any]:
    """Return the description of ``paths``."""
    bodies = [path.body for path in paths if path.body is not None]
    names, schemas = models_json_schema([(body, "validation") for body in bodies], ref_template=_REF)
    found: dict[str, Any] = {}
    for path in paths:
        name = path.path.replace(":path}", "}")
        found.setdefault(name, {})[path.method.lower()] = _operation(path, names)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Penstock", "version": version("penstock")},
        "paths": found,
        "components": {"schemas": schemas.get("$defs", {}), "securitySchemes": {"key": _BEARER}},
        "security": [{}, {"key": []}],
    }


_PLAIN = str.maketrans("/{:", "___", "}")
_BEARER = {"type": "http", "scheme": "bearer"}


def _operation(path: Path, names: Mapping[Any, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "summary": (path.endpoint.__doc__ or "").strip(),
        "operationId": f"{path.method.lower()}{path.path.translate(_PLAIN)}",
        "responses": {"200": {"description": "The answer."}, "4XX": {"description": "The request is wrong."}},
    }
    if "{" in path.path:
        found["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
    if path.body is not None:
        schema = names[path.body, "validation"]
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return found
