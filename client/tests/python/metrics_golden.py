"""Writes ../fixtures/data/metrics.json: predictions and what scikit-learn 1.9.1 says of them.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install scikit-learn==1.9.1
    /tmp/venv/bin/python client/tests/python/metrics_golden.py
"""

import json
import pathlib

import numpy as np
import sklearn
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

rng = np.random.default_rng(20)


def rows(matrix):
    return [[float(str(v)) for v in row] for row in matrix]


def float32(matrix, decimals):
    """What Rust will read: f32 values, rounded so that ties occur."""
    return np.round(matrix, decimals).astype(np.float32)


cases = []
for count, decimals in [(20, 1), (200, 2), (501, 6)]:
    truth = rng.integers(0, 2, count)
    scores = float32(np.clip(rng.normal(0.4 + 0.2 * truth, 0.2), 0, 1), decimals)
    cases.append({
        "kind": "binary",
        "probabilities": rows(scores[:, None]),
        "labels": truth.tolist(),
        "macro_auroc": roc_auc_score(truth, scores),
        "balanced_accuracy": balanced_accuracy_score(truth, scores >= 0.5),
    })
for count, classes in [(30, 3), (400, 5)]:
    truth = np.concatenate([np.arange(classes), rng.integers(0, classes, count - classes)])
    logits = rng.normal(0, 1, (count, classes)) + 1.2 * np.eye(classes)[truth]
    scores = float32(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), 6)
    one_hot = np.eye(classes)[truth]
    cases.append({
        "kind": "multi_class",
        "probabilities": rows(scores),
        "labels": truth.tolist(),
        "macro_auroc": roc_auc_score(one_hot, scores, average="macro"),
        "balanced_accuracy": balanced_accuracy_score(truth, scores.argmax(1)),
    })
for count, classes in [(40, 2), (300, 4)]:
    truth = rng.integers(0, 2, (count, classes))
    truth[0], truth[1] = 0, 1
    scores = float32(np.clip(rng.normal(0.4 + 0.2 * truth, 0.25), 0, 1), 2)
    cases.append({
        "kind": "multi_label",
        "probabilities": rows(scores),
        "labels": truth.tolist(),
        "macro_auroc": roc_auc_score(truth, scores, average="macro"),
        "balanced_accuracy": float(np.mean([
            balanced_accuracy_score(truth[:, c], scores[:, c] >= 0.5) for c in range(classes)
        ])),
    })

out = pathlib.Path(__file__).parent.parent / "fixtures" / "data" / "metrics.json"
out.write_text(json.dumps({"sklearn": sklearn.__version__, "cases": cases}) + "\n")
