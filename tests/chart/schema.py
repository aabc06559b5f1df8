"""The schema of the chart's values holds that of a recipe: `python -m tests.chart.schema` puts it in anew.

A reference in a schema starts at the root of its document, so the definitions of the recipe stand at the root, beside
the chart's own. Those have names that begin with a small letter, the recipe's begin with a capital. An empty recipe
stands for the chart's own.
"""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes/schema.json"
VALUES = ROOT / "helm/codeparrot/values.schema.json"


def with_recipe(values: dict[str, Any], recipe: dict[str, Any]) -> dict[str, Any]:
    """The schema of the values with this schema of a recipe in it, in the place of any other."""
    own = {name: schema for name, schema in values["$defs"].items() if name[0].islower()}
    inner = {key: value for key, value in recipe.items() if key != "$defs"}
    return {
        **values,
        "properties": {**values["properties"], "recipe": {"if": {"minProperties": 1}, "then": inner}},
        "$defs": {**own, **recipe["$defs"]},
    }


if __name__ == "__main__":
    schema = with_recipe(json.loads(VALUES.read_text()), json.loads(RECIPE.read_text()))
    VALUES.write_text(json.dumps(schema, indent=2) + "\n")
