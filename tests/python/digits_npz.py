"""Writes scikit-learn's bundled digits (1,797 real 8x8 scans) as a MedMNIST-layout .npz file.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install scikit-learn
    /tmp/venv/bin/python tests/python/digits_npz.py digits.npz
    cargo demo -- --data digits.npz
"""

import sys

import numpy as np
from sklearn.datasets import load_digits

digits = load_digits()
images = np.round(digits.images * (255 / 16)).astype(np.uint8)
labels = digits.target.astype(np.uint8)[:, None]
cut = {"train": slice(0, 1257), "val": slice(1257, 1437), "test": slice(1437, None)}
np.savez_compressed(
    sys.argv[1],
    **{f"{name}_images": images[part] for name, part in cut.items()},
    **{f"{name}_labels": labels[part] for name, part in cut.items()},
)
