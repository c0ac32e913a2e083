"""Writes ../fixtures/loss/*.json: losses, gradients and metrics of random inputs, by PyTorch 2 and
scikit-learn. Needs torch (CPU), numpy and scikit-learn.

    python client/tests/python/loss_fixtures.py
"""

import json
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import cohen_kappa_score, f1_score, mean_absolute_error

rng = np.random.default_rng(7)
out = pathlib.Path(__file__).parent.parent / "fixtures" / "loss"
out.mkdir(exist_ok=True)


def numbers(*shape, scale=1.5):
    """Exact in f32 and short in JSON."""
    return np.round(rng.normal(0, scale, shape) * 64) / 64


def slope(logits, of):
    x = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    loss = of(x)
    loss.backward()
    return {"logits": logits.ravel().tolist(), "value": loss.item(), "by_logit": x.grad.ravel().tolist()}


def continuation(x, grade):
    """Minus the log-likelihood of passing every grade below and not this one (CORN)."""
    passed = F.logsigmoid(x[:grade]).sum()
    stayed = F.logsigmoid(-x[grade]) if grade < len(x) else 0.0
    return -(passed + stayed)


def cox(x, time, event):
    """Breslow's partial likelihood, written as its definition."""
    terms = [torch.logsumexp(x[time >= time[i]], 0) - x[i] for i in range(len(x)) if event[i]]
    return torch.stack(terms).mean()


def dice_and_entropy(outputs, mask, classes, patches, cells, side, weights):
    grid = outputs.reshape(patches, patches, classes, cells, cells)
    grid = grid.permute(2, 0, 3, 1, 4).reshape(1, classes, patches * cells, patches * cells)
    logits = F.interpolate(grid, size=(side, side), mode="bilinear", align_corners=False)
    target = torch.tensor(mask)[None]
    marked = target != 255
    entropy = F.cross_entropy(logits, target, weight=weights, ignore_index=255, reduction="sum")
    p = logits.softmax(1)[0][:, marked[0]]
    y = F.one_hot(target[marked], classes).T.double()
    dice = (2 * (p * y).sum(1) + 1) / (p.sum(1) + y.sum(1) + 1)
    return entropy / marked.sum() + 1 - dice.mean()


cases = []
weights = [0.5, 2.0, 1.25]
for smoothing in [0.0, 0.2]:
    for label in range(3):
        cases.append({"task": "multi_class", "label": label, "smoothing": smoothing, "weights": weights}
                     | slope(numbers(3), lambda x: F.cross_entropy(
                         x, torch.tensor(label), weight=torch.tensor(weights, dtype=torch.float64),
                         label_smoothing=0.0, reduction="sum") if smoothing == 0.0 else
                         weights[label] * F.cross_entropy(x, torch.tensor(label), label_smoothing=smoothing)))
    for label in range(2):
        y = torch.tensor([label * (1 - smoothing) + smoothing / 2], dtype=torch.float64)
        cases.append({"task": "binary", "label": label, "smoothing": smoothing, "weights": weights[:2]}
                     | slope(numbers(1), lambda x: weights[label]
                             * F.binary_cross_entropy_with_logits(x, y)))
for label in range(4):
    cases.append({"task": "ordinal", "label": label, "smoothing": 0.0, "weights": [1.0] * 4}
                 | slope(numbers(3), lambda x: continuation(x, label)))

survival = []
for count in [5, 30]:
    time = rng.integers(1, count // 2 + 2, count).astype(float)
    event = rng.integers(0, 2, count)
    event[0] = 1
    fixture = slope(numbers(count), lambda x: cox(x, torch.tensor(time), event))
    risks = fixture["logits"]
    won = pairs = 0.0
    for i in range(count):
        for j in range(count):
            if event[i] and (time[i] < time[j] or (time[i] == time[j] and not event[j])):
                pairs += 1
                won += 1.0 if risks[i] > risks[j] else 0.5 if risks[i] == risks[j] else 0.0
    survival.append(fixture | {"time": time.tolist(), "event": event.tolist(), "concordance": won / pairs})

segmentation = []
for classes, patches, cells, side in [(2, 2, 1, 8), (3, 3, 2, 9)]:
    mask = rng.integers(0, classes, (side, side))
    mask[0, :3] = 255
    factor = torch.tensor(weights[:classes]).double()
    fixture = slope(numbers(patches * patches, classes, cells, cells),
                    lambda x: dice_and_entropy(x, mask, classes, patches, cells, side, factor))
    segmentation.append(fixture | {"classes": classes, "patches": patches, "cells": cells, "side": side,
                                   "mask": mask.ravel().tolist(), "weights": weights[:classes]})

truth, said = rng.integers(0, 5, 200), rng.integers(0, 5, 200)
said = np.where(rng.random(200) < 0.6, truth, said)
grades = {"truth": truth.tolist(), "said": said.tolist(),
          "kappa": cohen_kappa_score(truth, said, weights="quadratic"),
          "error": mean_absolute_error(truth, said),
          "dice": f1_score(truth, said, average=None).tolist()}

(out / "losses.json").write_text(json.dumps(
    {"cases": cases, "survival": survival, "segmentation": segmentation, "grades": grades}) + "\n")
