"""Writes ../fixtures/data/{plain,packed}.npz: tiny archives as numpy itself saves them.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install numpy==2.4.6
    /tmp/venv/bin/python client/tests/python/npz_fixture.py

Image i of a split is filled with the level 10 * i (+ 100 for `val`, + 200 for `test`), so that a
wrong order is visible.
"""

import pathlib

import numpy as np

out = pathlib.Path(__file__).parent.parent / "fixtures" / "data"


def images(start, count, shape):
    levels = (start + 10 * np.arange(count)).astype(np.uint8)
    return np.broadcast_to(levels.reshape(-1, *[1] * len(shape)), (count, *shape)).copy()


grey = {
    "train_images": images(0, 4, (8, 6)),
    "train_labels": np.array([[0], [1], [2], [1]], np.uint8),
    "val_images": images(100, 2, (8, 6)),
    "val_labels": np.array([[2], [0]], np.uint8),
    "test_images": images(200, 3, (8, 6)),
    "test_labels": np.array([[0], [1], [1]], np.uint8),
}
np.savez(out / "plain.npz", **grey)

colour = images(0, 3, (8, 6, 3))
colour[1] = [255, 0, 0]
np.savez_compressed(
    out / "packed.npz",
    train_images=colour,
    train_labels=np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]], np.int64),
    train_patients=np.array(["anna", "bé", "anna"]),
)
