"""Validates values of requests against the schemas of the OpenAPI document. Pure; the
only user of jsonschema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import islice
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match

from dlpool import jsontext
from dlpool.errors import UsageError
from dlpool.web.schemas import Schema

MAX_ERRORS = 10  # that are compared; one of them is reported


def validate(schema: Schema, value: Any, what: str = "the body") -> None:
    """Raise UsageError if ``value`` does not match ``schema``. The error contains the
    reason and the place in ``value``."""
    _check_counts(schema, value, what)
    found = islice(_validator(json.dumps(schema)).iter_errors(value), MAX_ERRORS)
    error = best_match(
        [min(errors, key=lambda one: len(one.path))] if (errors := list(found)) else []
    )
    if error is not None:
        raise UsageError(_describe(error, what))


def parse_body(data: bytes) -> Any:
    """Parse a JSON body. Raises UsageError. A body with too many values or levels is
    rejected before it is parsed."""
    try:
        jsontext.check_bounds(data)
    except ValueError as error:
        raise UsageError(f"the body is not accepted: {error}") from error
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise UsageError("the body is not JSON in UTF-8") from error


def parse_query(
    declared: Mapping[str, Schema], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the query parameters, converted to their declared types, and the defaults
    of absent parameters.

    Raises UsageError for unknown, repeated and invalid parameters.
    """
    found = {
        name: schema["default"]
        for name, schema in declared.items()
        if "default" in schema
    }
    for name, text in given.items():
        if name not in declared:
            raise UsageError(
                f"unknown option {name[:80]!r}: expected "
                f"{', '.join(declared) or 'none'}"
            )
        if not isinstance(text, str):
            raise UsageError(f"{name} is given more than once")
        is_number = declared[name].get("type") == "integer" and re.fullmatch(
            r"-?[0-9]{1,15}", text, re.ASCII
        )
        found[name] = int(text) if is_number else text
        validate(declared[name], found[name], name)
    return found


def _check_counts(schema: Schema, value: Any, what: str) -> None:
    """Raise UsageError if ``value`` or a nested property has too many members.

    Called before the members are validated.
    """
    most = schema.get("maxItems" if isinstance(value, list) else "maxProperties")
    if most is not None and isinstance(value, list | dict) and len(value) > most:
        raise UsageError(f"{what} is longer than {most}")
    if isinstance(value, dict):
        known = schema.get("properties", {})
        if (
            schema.get("additionalProperties") is False
            and len(value) > len(known) + MAX_ERRORS
        ):
            unknown = next(name for name in value if name not in known)
            raise UsageError(f"unknown field {unknown[:80]!r} in {what}")
        for name, one in known.items():
            if name in value:
                _check_counts(one, value[name], name)


@cache
def _validator(schema: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads(schema))


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _describe(error: ValidationError, what: str) -> str:
    """Return why validation failed, and where, without the invalid value, which may be
    long or secret."""
    place = "".join(
        f"[{step}]" if isinstance(step, int) else f".{step}"
        for step in error.absolute_path
    )[:200]
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
        "type": f"not of type {wanted}",
        "enum": f"none of {', '.join(map(str, wanted))}" if _is_list(wanted) else "",
        "minimum": f"below {wanted}",
        "maximum": f"above {wanted}",
        "minItems": "empty",
        "minLength": "empty",
        "maxItems": f"longer than {wanted}",
        "maxLength": f"longer than {wanted} characters",
        "pattern": "not in the format of the API document",
    }
    return (
        f"{place} is "
        f"{texts.get(str(error.validator)) or 'not as described in the API document'}"
    )


def _schemas(error: ValidationError) -> Iterator[Mapping[str, Any]]:
    """Yield the schemas with ``pattern`` or ``anyOf`` that the value does not match.

    Starts at the schema of ``error``, and continues with the enclosing schemas of the
    same value.
    """
    found: Any = error
    while found is not None and found.absolute_path == error.absolute_path:
        if isinstance(found.schema, dict) and found.validator in ("pattern", "anyOf"):
            yield found.schema
        found = found.parent


def _is_list(value: object) -> bool:
    return isinstance(value, list)
