"""Which weights become codes of which format.

A recipe is a list of rules; the first whose pattern matches a weight's canonical name decides. In
a TOML file:

    name = "mine"
    [[rules]]
    match = "vision.layers.*.mlp.*.weight"     # shell patterns over canonical names
    bits = 8
    [[rules]]
    match = "expert.layers.*"
    bits = 4
    group_size = 64

What no rule matches, or a rule with bits = 16 does, stays as the source has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from smolvla_edge.codes import CodeFormat, may_be_codes, stacked_with
from smolvla_edge.config import ModelConfig
from smolvla_edge.errors import QuantizationError
from smolvla_edge.names import expected_tensors
from smolvla_edge.presets import EXACT

KEPT = 16  # bits of a weight that stays as it is


@dataclass(frozen=True)
class Rule:
    """Weights whose canonical name matches; format None keeps them."""

    match: str
    format: CodeFormat | None


@dataclass(frozen=True)
class Recipe:
    name: str
    rules: tuple[Rule, ...]

    def formats(self, model: ModelConfig) -> dict[str, CodeFormat]:
        """Canonical name -> format of every weight that becomes codes.

        The keys and values of cross-attention layers stay as they are whatever the rules say: all
        denoise steps read them. Raises QuantizationError for a recipe that asks for nothing, or
        for different formats of weights that are computed together.
        """
        layers = model.cross_expert_layers()
        cross = {f"expert.layers.{layer}.attn.{part}.weight" for layer in layers for part in "kv"}
        found: dict[str, CodeFormat] = {}
        together: dict[str, tuple[str, CodeFormat | None]] = {}
        for name, spec in expected_tensors(model).items():
            if spec.dead or name in cross or not may_be_codes(name, spec.shape):
                continue
            rule = next((rule for rule in self.rules if fnmatchcase(name, rule.match)), None)
            form = None if rule is None else rule.format
            if not may_be_codes(name, spec.shape, form):
                raise QuantizationError(
                    f"recipe {self.name}: {name} is a table: expected 8 bits or 16, got "
                    f"{'' if form is None else form.bits}"
                )
            other, theirs = together.setdefault(stacked_with(name, layers), (name, form))
            if theirs != form:
                raise QuantizationError(
                    f"recipe {self.name}: {other} and {name} are computed together: expected one "
                    "format for both"
                )
            if form is not None:
                found[name] = form
        if not found:
            raise QuantizationError(f"recipe {self.name} matches no weight of this policy")
        return found


def _recipe(name: str, *, table: CodeFormat | None = None, **formats: CodeFormat) -> Recipe:
    rules = [Rule(f"{part}.layers.*", form) for part, form in formats.items()]
    return Recipe(name, (*rules, Rule("text.embed.weight", table)))


RECIPES = {
    recipe.name: recipe
    for recipe in (
        _recipe("balanced", vision=CodeFormat(8), text=CodeFormat(8), expert=CodeFormat(4, 64)),
        _recipe(
            "small",
            vision=CodeFormat(4, 64),
            text=CodeFormat(8),
            expert=CodeFormat(4, 64),
            table=CodeFormat(8),
        ),
        _recipe("int8", vision=CodeFormat(8), text=CodeFormat(8), expert=CodeFormat(8)),
    )
}


def find_recipe(name_or_file: str) -> Recipe:
    """A shipped recipe by its name, or one from a TOML file. Raises QuantizationError."""
    if name_or_file in RECIPES:
        return RECIPES[name_or_file]
    path = Path(name_or_file)
    if path.suffix != ".toml" or not path.is_file():
        raise QuantizationError(
            f"recipe: expected {', '.join(RECIPES)} or a .toml file, got {name_or_file!r}"
        )
    return parse_recipe(_read_toml(path), str(path))


def parse_recipe(raw: Mapping[str, Any], where: str) -> Recipe:
    rules = raw.get("rules")
    if raw.keys() - {"name", "rules"} or not isinstance(rules, list) or not rules:
        raise QuantizationError(f"{where}: expected name and [[rules]], got {sorted(raw)}")
    parsed = []
    for item in rules:
        keys = set(item) if isinstance(item, dict) else set()
        if not {"match", "bits"} <= keys <= {"match", "bits", "group_size"}:
            raise QuantizationError(
                f"{where}: a rule: expected match, bits and perhaps group_size, got {item!r:.200}"
            )
        if not isinstance(item["match"], str):
            raise QuantizationError(f"{where}: match: expected text, got {item['match']!r:.80}")
        kept = item["bits"] == KEPT
        form = None if kept else CodeFormat(item["bits"], item.get("group_size"))
        parsed.append(Rule(item["match"], form))
    name = raw.get("name", Path(where).stem)
    if not isinstance(name, str) or name in ("", EXACT):
        raise QuantizationError(f"{where}: name: expected text other than {EXACT!r}, got {name!r}")
    return Recipe(name, tuple(parsed))


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        import tomllib
    except ImportError:  # Python 3.10
        import tomli as tomllib  # type: ignore[no-redef,import-not-found]
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except (OSError, ValueError, RecursionError) as cause:  # TOMLDecodeError is a ValueError
        raise QuantizationError(f"{path}: expected a TOML file: {cause}") from cause
