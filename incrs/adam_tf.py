"""AdamTF: Adam as TensorFlow 1 computes it, with epsilon outside of the bias correction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class AdamTF(torch.optim.Adam):
    """Adam with w -= lr sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps) in step t.

    That is the formula before section 2.1 of Kingma and Ba (ICLR 2015), with their "epsilon hat"; the
    published numbers of ASMG were made with it. torch's Adam adds eps to the corrected sqrt(v), which
    differs where gradients are as small as eps. The arguments are torch.optim.Adam's.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make a step; return what the closure, called first, returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        given = [group["eps"] for group in self.param_groups]
        try:
            for group in self.param_groups:
                steps = [self.state[p]["step"] for p in group["params"] if self.state.get(p)]
                t = 1 + (float(max(steps)) if steps else 0.0)
                # In torch's Adam this eps is eps hat: all parameters of a group are in the same step.
                group["eps"] /= (1 - group["betas"][1] ** t) ** 0.5
            super().step()
        finally:
            for group, eps in zip(self.param_groups, given, strict=True):
                group["eps"] = eps
        return loss
