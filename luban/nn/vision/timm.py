"""Any other image network by its name in timm, where that library is installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from torch import Tensor, nn

from luban.errors import RequestError, need, problem
from luban.nn.vision.backbone import Backbone
from luban.settings import Weights

EXTRA = "timm"


class Timm(Backbone):
    """Use for an image network that has no name here but one in the library `timm`: `name: mobilenetv3_small_100`. Instead: `resnet`,
    `efficientnet`.

    Weights come from a file (`weights`, .safetensors or .pth, or a name on the hub), never by the library's own download.
    grid (B, C, H, W) -> Tokens (B, H'W', D).
    """

    needs = EXTRA
    short = "name"
    sized = True

    def __init__(
        self,
        columns: Sequence[Any],
        *,
        name: str,
        pooling: Literal["mean", "max", "attention"] = "mean",
        weights: Annotated[str, Weights()] | None = None,
    ):
        library, place = need("timm", EXTRA), columns[0].name
        known = library.list_models()
        if name.split(".")[0] not in known:
            raise RequestError(problem("vision.timm_unknown", place=place, name=name, allowed=known))
        super().__init__(
            columns, lambda channels: Net(library, name, channels, columns[0].hw), weights=weights, pooling=pooling
        )


class Net(nn.Module):
    """The network without its last layers. Files of weights have its names without `inner.`."""

    def __init__(self, library: Any, name: str, channels: int, side: tuple[int, int]):
        super().__init__()
        given = {"pretrained": False, "in_chans": channels, "num_classes": 0}
        try:
            self.inner = library.create_model(name, **given, img_size=side)  # those that learn positions need it
        except TypeError:
            self.inner = library.create_model(name, **given)

    def maps(self, x: Tensor) -> list[Tensor]:
        h = self.inner.forward_features(x)
        if h.ndim == 3:  # (B, class tokens + patches, D)
            grid = self.inner.patch_embed.grid_size
            h = h[:, -grid[0] * grid[1] :].transpose(1, 2).unflatten(2, grid)
        elif h.shape[1] != self.inner.num_features:  # channels last
            h = h.permute(0, 3, 1, 2)
        return [h]
