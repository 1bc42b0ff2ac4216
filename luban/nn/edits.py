"""Changes to a built network, by name and with JSON arguments, replayed after build and before the weights are loaded.

An edit is a function `(network, **arguments) -> network` in the registry `edits`. It changes which modules and
parameters there are; the weights come afterwards from `model.safetensors`, so an edit must not need them when replayed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from luban import registry


def replay(network: nn.Module, edits: Sequence[dict[str, Any]]) -> nn.Module:
    """Apply recorded edits `{"edit": name, **arguments}` in order. Raises RecipeError for an unknown name."""
    for edit in edits:
        arguments = {k: v for k, v in edit.items() if k != "edit"}
        network = registry.find("edits", edit["edit"])(network, **arguments)
    return network
