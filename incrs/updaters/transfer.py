"""The transfer networks of SML: new weights from previous and updated ones (Zhang et al., SIGIR 2020)."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from incrs.models.base import Backbone
from incrs.updaters.base import Weights
from incrs.updaters.learner import Known, Needed

EPSILON = 1e-15
"""Keeps the norm of Eq. 4 from being zero."""
BLOCK = 1 << 14
"""Whole tables are transferred in blocks of so many rows."""
NOTHING = (torch.empty(0), torch.empty(0))
ROWS = ("previous", "updated", "product")
"""What the three rows of Eq. 4 are."""

Pieces = Mapping[str, Tensor]
"""Networks' parameters: `first` (G, n1, 3), `second` (G, n2, n1), `hidden` (G, inputs, h), `hidden_bias`
(G, h), `out` (G, h, d), `out_bias` (G, d); a layer that a variant does without is missing."""


def normed(previous: Tensor) -> Tensor:
    """Return vectors (G, n, d) divided by their lengths, as Eq. 4 has them in the product."""
    return previous / (previous.norm(dim=2, keepdim=True) + EPSILON)


def transfer(previous: Tensor, unit: Tensor, updated: Tensor, pieces: Pieces) -> Tensor:
    """Return Eq. 4 to 7 for vectors of G networks: each (G, n, d) -> (G, n, d).  unit: `normed(previous)`."""
    x = torch.stack([previous, updated, unit * updated], 1)  # (G, 3, n, d)
    for name in ("first", "second"):
        if name in pieces:
            x = F.gelu(pieces[name] @ x.flatten(2)).unflatten(2, updated.shape[1:])
    z = x.transpose(1, 2).flatten(2)  # (G, n, filters * d)
    if "hidden" in pieces:
        z = F.gelu(torch.baddbmm(pieces["hidden_bias"].unsqueeze(1), z, pieces["hidden"]))
    return torch.baddbmm(pieces["out_bias"].unsqueeze(1), z, pieces["out"])


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


class Transfer(nn.Module):
    """f of Eq. 4 to 7: a network for each parameter that is transferred, applied to all its vectors.

    weights: `<parameter>/<piece>` -> a network's piece, without G.
    residual: adds the updated weights to what the networks return.
    """

    def __init__(self, weights: Weights, residual: bool):
        super().__init__()
        self.residual = residual
        keys = sorted(weights)  # an optimizer's state goes by the order, which no file keeps
        self.parts = nn.ParameterList(nn.Parameter(weights[key].detach().clone()) for key in keys)
        self.weights = dict(zip(keys, self.parts, strict=True))
        self.networks: dict[str, dict[str, Tensor]] = {}
        for key, piece in self.weights.items():
            name, _, part = key.rpartition("/")
            self.networks.setdefault(name, {})[part] = piece
        self.kinds = {
            name: tuple((part, *piece.shape) for part, piece in sorted(network.items()))
            for name, network in self.networks.items()
        }
        self._joined: dict[tuple[str, ...], dict[str, Tensor]] = {}
        self._before: dict[tuple[str, ...], tuple[list[Tensor], tuple[Tensor, Tensor]]] = {}

    def forward(self, known: Known, needed: Needed | None = None) -> list[dict[str, Tensor]]:
        """Return the new weights, one dict in a list.  known: name -> (previous, updated), equal shapes.

        Tables come with any rows; the rest whole. What no network belongs to stays as updated.
        """
        made = {name: some[1] for name, some in known.items()}
        vectors = {name: self.vectors(name, made[name]) for name in self.own(known)}
        with torch.autocast(self.parts[0].device.type, enabled=False):
            for names in self.alike(vectors):
                sizes = tuple(vectors[name].shape[0] for name in names)
                places = Places.of(sizes, self.parts[0].device)
                previous = self.before(names, [known[name][0] for name in names], places)
                updated = places.padded([vectors[name] for name in names])
                found = transfer(*previous, updated, self.joined(names))
                found = found + updated if self.residual else found
                for name, x in zip(names, places.parted(found), strict=True):
                    made[name] = x.view_as(made[name])
        return [made]

    def before(
        self, names: Sequence[str], previous: list[Tensor], places: Places
    ) -> tuple[Tensor, Tensor]:
        """Return previous weights, and normed, side by side; remembered while they are the same ones."""
        key = tuple(names)
        held, found = self._before.get(key, ([], NOTHING))
        if not held or any(map(operator.is_not, held, previous)):
            some = [self.vectors(n, w) for n, w in zip(names, previous, strict=True)]
            joined = places.padded(some)
            found = (joined, normed(joined))
            self._before[key] = (previous, found)
        return found

    def own(self, known: Known) -> list[str]:
        """Return which of these names a network belongs to."""
        return [name for name in known if name in self.networks]

    def vectors(self, name: str, weight: Tensor) -> Tensor:
        """Return a parameter as the vectors (n, d) that its network takes."""
        width = self.networks[name]["out_bias"].shape[0]
        return weight if weight.shape[1:] == (width,) else weight.reshape(-1, width)

    def alike(self, vectors: Mapping[str, Tensor]) -> list[list[str]]:
        """Return the names, in one list those of equal networks and of like many vectors."""
        lists: dict[tuple[object, ...], list[str]] = {}
        for name, own in vectors.items():
            size = max(3, (own.shape[0].bit_length() + 1) // 2)
            lists.setdefault((self.kinds[name], size), []).append(name)
        return list(lists.values())

    def joined(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Return the pieces of these networks side by side; remembered while they are held fixed."""
        key = tuple(names)
        if key in self._joined:
            return self._joined[key]
        some = [self.networks[name] for name in names]
        pieces = {part: torch.stack([one[part] for one in some]) for part in some[0]}
        if not any(piece.requires_grad for piece in pieces.values()):
            self._joined[key] = pieces
        return pieces

    @torch.no_grad()
    def whole(self, known: Known) -> dict[str, Tensor]:
        """Return the new weights of whole parameters, in blocks of vectors."""
        made = {name: some[1] for name, some in known.items()}
        for name in self.own(known):
            blocks = zip(*(self.vectors(name, x).split(BLOCK) for x in known[name]), strict=True)
            parts = [self({name: block})[0][name] for block in blocks]
            made[name] = torch.cat(parts).view_as(known[name][1])
        return made


class Places(NamedTuple):
    """Where the vectors of several networks lie when they are padded to the longest.

    sizes: how many vectors each has.  whole: (G * longest,) which of all vectors lies there, one behind
    the other and a vector of zeros last.  parts: where each of them went.  Both None where none is padded.
    """

    sizes: tuple[int, ...]
    whole: Tensor | None
    parts: Tensor | None

    @staticmethod
    @lru_cache(maxsize=256)
    def of(sizes: tuple[int, ...], device: torch.device) -> Places:
        """Return the places of so many vectors of each network."""
        longest = max(sizes)
        if min(sizes) == longest:
            return Places(sizes, None, None)
        counts, place = torch.tensor(sizes)[:, None], torch.arange(longest)
        whole = torch.where(place < counts, counts.cumsum(0) - counts + place, sum(sizes))
        parts = (place < counts).flatten().nonzero().flatten()
        return Places(sizes, whole.flatten().to(device), parts.to(device))

    def padded(self, vectors: Sequence[Tensor]) -> Tensor:
        """Return vectors, each (n, d), side by side: (G, longest, d)."""
        if self.whole is None:
            return torch.stack(list(vectors)) if len(vectors) > 1 else vectors[0].unsqueeze(0)
        rows = torch.cat([*vectors, vectors[0].new_zeros(1, vectors[0].shape[1])])
        return rows.index_select(0, self.whole).view(len(vectors), -1, rows.shape[1])

    def parted(self, padded: Tensor) -> Sequence[Tensor]:
        """Return each network's vectors (n, d) of what `padded` made."""
        if self.parts is None:
            return padded.unbind()
        return padded.flatten(0, 1).index_select(0, self.parts).split(self.sizes)
