"""Whether encoders that lean on others' weights or libraries can be built at all, found out before data are prepared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from luban import registry
from luban.data import models
from luban.errors import MissingExtra, Problem, RequestError
from luban.nn.vision.backbone import Backbone
from luban.nn.vision.weights import fitting
from luban.part import Part


def mistakes(part: Part, column: Any, place: str, fetch: bool = True) -> Iterator[Problem]:
    """What stops this encoder of an unfitted column: a library that cannot load, a name it does not know, weights of another network.

    Built without memory; weights that are not on this machine are fetched, as training would, or passed over (`fetch` False). Where the column learns its
    size from the pictures, weights that depend on it (`Backbone.sized`) are left to training. Raises WorkError where weights cannot be had.
    """
    try:
        with torch.device("meta"):
            settings = {k: v for k, v in part.settings.items() if v is not None}
            encoder = registry.find("encoders", part.type)([column.supposed()], **settings)
        for net in encoder.modules():
            if isinstance(net, Backbone) and net.published and not (net.sized and column.side == "auto"):
                folder = None if fetch else models.here(net.published[0])
                if fetch or folder:
                    fitting(net.named, *net.published, folder)
    except (RequestError, MissingExtra) as e:
        yield from (p.at(place) for p in e.problems)
