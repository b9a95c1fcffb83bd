"""Values from requests against the schemas that the API's document shows. Pure; the only user of jsonschema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match

from dlpool.errors import UsageError
from dlpool.web.schemas import Schema


def check(schema: Schema, value: Any, what: str = "the body") -> None:
    """Raise UsageError, which says in a sentence what is wrong and where, unless ``value`` is as ``schema`` says."""
    error = best_match(_validator(json.dumps(schema)).iter_errors(value))
    if error is not None:
        raise UsageError(_sentence(error, what))


def parse_body(data: bytes) -> Any:
    """The JSON of a body. Raises UsageError."""
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise UsageError("the body is not JSON in UTF-8") from error


def parse_query(declared: Mapping[str, Schema], given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a request, each of its type. Raises UsageError for unknown, repeated and wrong ones."""
    found = {name: schema["default"] for name, schema in declared.items() if "default" in schema}
    for name, text in given.items():
        if name not in declared:
            raise UsageError(f"unknown option {name[:80]!r}; known are {', '.join(declared) or 'none here'}")
        if not isinstance(text, str):
            raise UsageError(f"{name} is given more than once")
        is_number = declared[name].get("type") == "integer" and re.fullmatch(r"-?[0-9]{1,15}", text, re.ASCII)
        found[name] = int(text) if is_number else text
        check(declared[name], found[name], name)
    return found


@cache
def _validator(schema: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads(schema))


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _sentence(error: ValidationError, what: str) -> str:
    """What is wrong, without the value itself, which may be long or secret."""
    place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.absolute_path)[:200]
    place = place.lstrip(".") or what
    value: Any = error.instance
    wanted: Any = error.validator_value
    schema: Any = error.schema
    if error.validator == "required":
        missing = next(name for name in wanted if name not in value)
        return f"{missing} is missing in {place}"
    if error.validator == "additionalProperties":
        unknown = sorted(set(value) - set(schema["properties"]))
        return f"unknown field {unknown[0][:80]!r} in {place}"
    says = next((found for found in _schemas(error) if "x-says" in found), None)
    if says is not None:
        return f"{place} is {says['x-says']}"
    texts = {
        "type": f"not of type {wanted}", "enum": f"none of {', '.join(map(str, wanted))}" if _is_list(wanted) else "",
        "minimum": f"below {wanted}", "maximum": f"above {wanted}", "minItems": "empty", "minLength": "empty",
        "maxItems": f"longer than {wanted}", "maxLength": f"longer than {wanted} characters",
        "pattern": "not of the form that the document of the API names",
    }  # fmt: skip
    return f"{place} is {texts.get(str(error.validator)) or 'not as the document of the API says'}"


def _schemas(error: ValidationError) -> Iterator[Mapping[str, Any]]:
    """The schema that is broken, and that of the choice which it is a part of; each about the same value."""
    found: Any = error
    while found is not None and found.absolute_path == error.absolute_path:
        if isinstance(found.schema, dict) and found.validator in ("pattern", "anyOf"):
            yield found.schema
        found = found.parent


def _is_list(value: object) -> bool:
    return isinstance(value, list)
