"""The transfer networks of SML: new weights from previous and updated ones (Zhang et al., SIGIR 2020)."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Size, Tensor, nn

from incrs.models.base import Backbone
from incrs.updaters.base import Weights
from incrs.updaters.learner import Known
from incrs.updaters.packs import Packs
from incrs.updaters.renumbering import Needed

EPSILON = 1e-15
"""Keeps the norm of Eq. 4 from being zero."""
BLOCK = 1 << 11
"""Whole tables are transferred in blocks of so many rows, which stay in the cache."""
MINIMUM = 8
"""Packs of vectors have at least so many places."""
ROWS = ("previous", "updated", "product")
"""What the three rows of Eq. 4 are."""

Pieces = Mapping[str, Tensor]
"""Networks' parameters: `first` (G, n1, 3), `second` (G, n2, n1), `hidden` (G, inputs, h), `hidden_bias`
(G, h), `out` (G, h, d), `out_bias` (G, d); a layer that a variant does without is missing."""


def normed(previous: Tensor) -> Tensor:
    """Return vectors (G, d, n) divided by their lengths, as Eq. 4 has them in the product."""
    length = (previous * previous).sum(1, keepdim=True).sqrt()  # in a quarter of `norm`'s time
    return previous / (length + EPSILON)


def transfer(previous: Tensor, unit: Tensor, updated: Tensor, pieces: Pieces) -> Tensor:
    """Return Eq. 4 to 7 for n vectors of each of G networks: (G, d, n).  unit: `normed(previous)`."""
    x = torch.stack([previous, updated, unit * updated], 1).flatten(2)  # (G, 3, d * n)
    for name in ("first", "second"):
        if name in pieces:
            x = F.gelu(pieces[name] @ x)
    z = x.view(len(x), -1, updated.shape[2])  # (G, filters * d, n)
    if "hidden" in pieces:
        z = F.gelu(torch.baddbmm(pieces["hidden_bias"].unsqueeze(2), pieces["hidden"].mT, z))
    return torch.baddbmm(pieces["out_bias"].unsqueeze(2), pieces["out"].mT, z)


class Shape(NamedTuple):
    """Of a transfer network.

    width: d, the numbers of a vector.  filters: n1 and n2; none: without convolutions.
    hidden: of the layer of Eq. 6; 0: without it.
    """

    width: int
    filters: tuple[int, ...]
    hidden: int

    def drawn(self, random: torch.Generator) -> dict[str, Tensor]:
        """Draw a network: everything uniform within 1 / sqrt(inputs), as PyTorch's layers are."""

        def uniform(inputs: int, *shape: int) -> Tensor:
            return (2 * torch.rand(shape, generator=random) - 1) * inputs**-0.5

        channels, pieces = len(ROWS), {}
        for name, count in zip(("first", "second"), self.filters, strict=False):
            pieces[name] = uniform(channels, count, channels)
            channels = count
        inputs = channels * self.width
        if self.hidden:
            pieces["hidden"] = uniform(inputs, inputs, self.hidden)
            pieces["hidden_bias"] = uniform(inputs, self.hidden)
            inputs = self.hidden
        pieces["out"] = uniform(inputs, inputs, self.width)
        pieces["out_bias"] = uniform(inputs, self.width)
        return pieces


def widths(backbone: Backbone, dense: str) -> dict[str, int]:
    """Return the numbers in a vector of each parameter that is transferred.

    A vector is a table's row; of the others, by `dense`: `rows`, a row along the last dimension,
    `tensor`, all of it, or `none`: they are not transferred.
    """
    tables = backbone.tables()
    found = {}
    for name, weight in backbone.named_parameters():
        if name in tables:
            found[name] = weight[0].numel()
        elif dense != "none":
            found[name] = weight.shape[-1] if dense == "rows" and weight.ndim else weight.numel()
    return found


class Kind(NamedTuple):
    """Parameters of the backbone whose networks have the same shapes.

    pieces: what a network consists of, and its shape.
    """

    names: tuple[str, ...]
    pieces: tuple[tuple[str, Size], ...]

    @property
    def width(self) -> int:
        """The numbers of a vector."""
        return dict(self.pieces)["out_bias"][0]

    def parted(self, networks: Tensor) -> dict[str, Tensor]:
        """Return networks (G, numbers) as their pieces (G, ...)."""
        parts = networks.split([shape.numel() for _, shape in self.pieces], 1)
        named = zip(self.pieces, parts, strict=True)
        return {piece: part.unflatten(1, shape) for (piece, shape), part in named}

    def vectors(self, weight: Tensor) -> Tensor:
        """Return a parameter as the vectors (n, width) that its network takes."""
        return weight if weight.shape[1:] == (self.width,) else weight.reshape(-1, self.width)


class Transfer(nn.Module):
    """f of Eq. 4 to 7: a network for each parameter that is transferred, applied to all its vectors.

    weights: `<parameter>/<piece>` -> a network's piece, without G. Networks of one `Kind` are trained
    as one parameter.
    residual: adds the updated weights to what the networks return.
    """

    def __init__(self, weights: Weights, residual: bool):
        super().__init__()
        self.residual = residual
        networks: dict[str, dict[str, Tensor]] = {}
        for key in sorted(weights):  # an optimizer's state goes by the order, which no file keeps
            name, _, piece = key.rpartition("/")
            networks.setdefault(name, {})[piece] = weights[key].detach()
        alike: dict[tuple[tuple[str, Size], ...], list[str]] = {}
        for name, own in networks.items():
            alike.setdefault(tuple((p, x.shape) for p, x in own.items()), []).append(name)
        self.kinds = [Kind(tuple(names), pieces) for pieces, names in alike.items()]
        self.parts = nn.ParameterList(
            torch.stack(
                [torch.cat([x.flatten() for x in networks[n].values()]) for n in kind.names]
            )
            for kind in self.kinds
        )
        self._before: dict[tuple[str, ...], tuple[list[Tensor], tuple[Tensor, Tensor]]] = {}

    @property
    def weights(self) -> dict[str, Tensor]:
        """What the networks are now, as they were given."""
        return {
            f"{name}/{piece}": own
            for kind, part in zip(self.kinds, self.parts, strict=True)
            for piece, joined in kind.parted(part).items()
            for name, own in zip(kind.names, joined, strict=True)
        }

    def forward(self, known: Known, needed: Needed | None = None) -> list[dict[str, Tensor]]:
        """Return the new weights, one dict in a list.  known: name -> (previous, updated), equal shapes.

        Tables come with any rows; the rest whole. What no network belongs to stays as updated.
        """
        made = {name: some[1] for name, some in known.items()}
        with torch.autocast(self.parts[0].device.type, enabled=False):
            for kind, part in zip(self.kinds, self.parts, strict=True):
                numbers = [g for g, name in enumerate(kind.names) if name in known]
                if numbers:
                    names = [kind.names[g] for g in numbers]
                    networks = part if len(names) == len(part) else part[numbers]
                    found = self.of_kind(kind, networks, {name: known[name] for name in names})
                    for name, x in zip(names, found, strict=True):
                        made[name] = x.view_as(made[name])
        return [made]

    def of_kind(self, kind: Kind, networks: Tensor, known: Known) -> Sequence[Tensor]:
        """Return the new vectors (n, width) of each of these parameters."""
        vectors = [kind.vectors(updated) for _, updated in known.values()]
        counts = [len(own) for own in vectors]
        packs = Packs.of(tuple(counts), MINIMUM) if len(counts) > 1 else None
        previous = self.before(kind, {name: some[0] for name, some in known.items()}, packs)
        updated = lined_up(vectors, packs)
        if packs is not None:
            networks = networks.index_select(0, packs.owners.to(networks.device))
        found = transfer(*previous, updated, kind.parted(networks))
        found = (found + updated if self.residual else found).mT
        return (
            [found[0].contiguous()]
            if packs is None
            else packs.unpacked(found[None])[0].split(counts)
        )

    def before(
        self, kind: Kind, known: Mapping[str, Tensor], packs: Packs | None
    ) -> tuple[Tensor, Tensor]:
        """Return previous weights lined up, and normed; remembered while they are the same ones."""
        previous = list(known.values())
        held, found = self._before.get(tuple(known), ([], None))
        if found is None or any(map(operator.is_not, held, previous)):
            joined = lined_up([kind.vectors(weight) for weight in previous], packs)
            found = (joined, normed(joined))
            self._before[tuple(known)] = (previous, found)
        return found

    @torch.no_grad()
    def whole(self, known: Known) -> dict[str, Tensor]:
        """Return the new weights of whole parameters, in blocks of vectors."""
        own = {name: kind for kind in self.kinds for name in kind.names if name in known}
        large = {n: k for n, k in own.items() if known[n][1].numel() > BLOCK // 4 * k.width}
        (made,) = self({name: some for name, some in known.items() if name not in large})
        for name, kind in large.items():
            blocks = zip(*(kind.vectors(x).split(BLOCK) for x in known[name]), strict=True)
            parts = [self({name: block})[0][name] for block in blocks]
            made[name] = torch.cat(parts).view_as(known[name][1])
        return {name: made[name] for name in known}


def lined_up(vectors: Sequence[Tensor], packs: Packs | None) -> Tensor:
    """Return vectors, each (n, width), as (G, width, places); None: they are of one network."""
    x = vectors[0][None] if packs is None else packs.packed(torch.cat(list(vectors))[None])[0]
    return x.mT.contiguous()
