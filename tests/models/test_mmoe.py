from __future__ import annotations

from incrs.models.mmoe import MMoE
from tests.models.toy import (
    SCHEMA,
    agrees,
    doubled,
    numpy_weights,
    relu,
    roughen,
    row_input,
    rows,
    softmax,
)


def test_agrees_with_the_formula_expert_by_expert():
    model = roughen(MMoE(SCHEMA, 0, 4, experts=3, width=5, tower=(4, 2)))
    batch = doubled(rows(SCHEMA, 20))
    w = numpy_weights(model)
    logits, means, mixtures = [], [], []
    for i in range(20):
        s, x = int(batch.scenario[i]), row_input(w, SCHEMA, batch, i)
        experts = []
        for e in range(3):
            part = slice(5 * e, 5 * e + 5)
            experts.append(
                relu(w["shared.experts.weight"][part] @ x + w["shared.experts.bias"][part])
            )
        gate = softmax(w["specific.gate.weight"][s] @ x + w["specific.gate.bias"][s])
        mixture = sum(g * expert for g, expert in zip(gate, experts, strict=True))
        h = mixture
        for layer in range(2):
            name = f"specific.tower.hidden.{layer}"
            h = relu(w[f"{name}.weight"][s] @ h + w[f"{name}.bias"][s])
        logit = w["specific.tower.logit.weight"][s] @ h + w["specific.tower.logit.bias"][s]
        logits.append(logit[0])
        means.append(sum(experts) / 3)
        mixtures.append(mixture)
    agrees(model(batch, representations=True), logits, means, mixtures)
