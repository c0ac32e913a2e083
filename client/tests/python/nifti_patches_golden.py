"""Patches of the small volumes of nifti_golden.py by nibabel and scipy: the oracle of
client/src/data/volume/patches.rs. Regenerate with

    pip install nibabel==5.4.2 numpy scipy==1.17.1
    python client/tests/python/nifti_patches_golden.py
"""

import itertools
import json
import pathlib

import nibabel
import numpy
from scipy.ndimage import map_coordinates

SIZE, STRIDE = 4.0, 2.5
folder = pathlib.Path(__file__).parent.parent / "fixtures" / "nifti"
golden = {}
for path in sorted(folder.glob("*.nii*")):
    canonical = nibabel.as_closest_canonical(nibabel.load(path))
    array = canonical.get_fdata().astype("float32").astype(float)
    zooms = numpy.array(canonical.header.get_zooms(), float)
    levels = (array - array.min()) / (array.max() - array.min()) * 255
    extent = zooms * array.shape
    starts = []
    for length in extent:
        if length <= SIZE:
            starts.append([(length - SIZE) / 2])
        else:
            whole = list(numpy.arange(0, length - SIZE - 1e-6, STRIDE))
            starts.append(whole + [length - SIZE])
    side = round(SIZE / zooms.min())
    steps = ((side - 1) / 2 - numpy.arange(side)) * SIZE / side
    patches = []
    for z, y, x in itertools.product(starts[2], starts[1], starts[0]):
        middle = numpy.array([x, y, z]) + SIZE / 2
        channels = []
        # Axial, coronal, sagittal: (across, down) of RAS+.
        for across, down in [(0, 1), (0, 2), (1, 2)]:
            place = numpy.broadcast_to(middle[:, None, None], (3, side, side)).copy()
            place[across] += steps[None, :]
            place[down] += steps[:, None]
            outside = ((place < -1e-6) | (place > extent[:, None, None] + 1e-6)).any(axis=0)
            found = map_coordinates(levels, place / zooms[:, None, None] - 0.5, order=1, mode="nearest")
            channels.append(numpy.where(outside, 0, found))
        patches.append(numpy.stack(channels))
    # Everything is compared through sums; the last patch pixel by pixel.
    golden[path.name] = {
        "count": len(patches),
        "means": [[round(float(c.mean()), 6) for c in patch] for patch in patches],
        "last": patches[-1].round(4).tolist(),
    }
(folder / "patches.json").write_text(json.dumps(golden) + "\n")
