"""Checks an OpenAPI document, given on standard input, by implementations that aren't ours: the document against the
specification, and each example against the schema it stands beside. Prints what is wrong; exits 1 when anything is.
"""

import json
import sys

from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

DOCUMENT = "urn:description"


def examples(node, pointer=""):
    """Every example in the document, with the pointers to it and to its schema."""
    if isinstance(node, list):
        for index, item in enumerate(node):
            yield from examples(item, f"{pointer}/{index}")
    if not isinstance(node, dict):
        return
    if "schema" in node:
        schema = f"{pointer}/schema"
        if "example" in node:
            yield f"{pointer}/example", schema, node["example"]
        for name, example in node.get("examples", {}).items():
            yield f"{pointer}/examples/{name}", schema, example["value"]
    for name, item in node.items():
        if name not in ("example", "examples"):
            step = name.replace("~", "~0").replace("/", "~1").replace("{", "%7B").replace("}", "%7D")
            yield from examples(item, f"{pointer}/{step}")


def main() -> int:
    document = json.load(sys.stdin)
    faults = [f"specification: {error.message}" for error in OpenAPIV31SpecValidator(document).iter_errors()]
    resource = Resource.from_contents(document, default_specification=DRAFT202012)
    registry = Registry().with_resource(DOCUMENT, resource)
    count = 0
    for place, schema, value in examples(document):
        count += 1
        validator = Draft202012Validator(
            {"$ref": f"{DOCUMENT}#{schema}"}, registry=registry, format_checker=Draft202012Validator.FORMAT_CHECKER
        )
        faults += [f"{place}: {error.message}" for error in validator.iter_errors(value)]
    print("\n".join(faults) if faults else f"{count} examples are as their schemas say")
    return 1 if faults or count == 0 else 0


sys.exit(main())
