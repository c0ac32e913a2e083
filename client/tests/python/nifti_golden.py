"""Small volumes in every habit of storage, and what nibabel makes of them: the oracle of
client/src/data/volume.rs. Regenerate with

    pip install nibabel==5.4.2 numpy
    python client/tests/python/nifti_golden.py
"""

import json
import pathlib

import nibabel
import numpy

target = pathlib.Path(__file__).parent.parent / "fixtures" / "nifti"
target.mkdir(exist_ok=True)
rng = numpy.random.default_rng(5)
shape = (7, 6, 5)


def save(name, array, affine, slope=None, sform=1, qform=1, big_endian=False):
    kind = nibabel.Nifti1Header(endianness=">") if big_endian else None
    image = nibabel.Nifti1Image(array, affine, header=kind)
    image.header.set_data_dtype(array.dtype)
    image.set_sform(affine, code=sform)
    image.set_qform(affine, code=qform)
    if slope:
        image.header.set_slope_inter(*slope)
    image.to_filename(target / name)


def scaled(axes):
    affine = numpy.eye(4)
    affine[:3, :3] = numpy.array(axes, float)
    affine[:3, 3] = [-10, 5, 3]
    return affine


angle = numpy.deg2rad(17)
oblique = [
    [1.5 * numpy.cos(angle), -0.8 * numpy.sin(angle), 0],
    [1.5 * numpy.sin(angle), 0.8 * numpy.cos(angle), 0],
    [0, 0, -3],
]
values = lambda kind: rng.integers(0, 120, shape).astype(kind)
save("ras.nii", values("int16"), scaled([[1, 0, 0], [0, 2, 0], [0, 0, 3]]))
save("lps.nii.gz", values("uint8"), scaled([[-1, 0, 0], [0, -2, 0], [0, 0, 3]]))
save("pir_big.nii.gz", values("int16"), scaled([[0, 0, 1.5], [-0.5, 0, 0], [0, 2, 0]]), big_endian=True)
save("oblique_float.nii.gz", rng.normal(0, 40, shape).astype("float32"), scaled(oblique))
save("qform_only.nii.gz", values("uint16"), scaled(oblique), sform=0)
save("slope.nii.gz", values("int16"), scaled([[1, 0, 0], [0, 0, -2], [0, 3, 0]]), slope=(2.5, -1024))

golden = {}
for path in sorted(target.glob("*.nii*")):
    canonical = nibabel.as_closest_canonical(nibabel.load(path))
    array = canonical.get_fdata()
    low, high = array.min(), array.max()
    levels = (array - low) / (high - low) * 255 if high > low else array * 0
    x, y, z = (n // 2 for n in array.shape)
    golden[path.name] = {
        "shape": list(array.shape),
        "spacing_mm": [float(mm) for mm in canonical.header.get_zooms()],
        "min": float(low),
        "max": float(high),
        "percentiles": [float(v) for v in numpy.percentile(array.astype("float32"), [0.5, 99.5])],
        # As radiologists look: both picture axes run against RAS+.
        "axial": levels[::-1, ::-1, z].T.tolist(),
        "coronal": levels[::-1, y, ::-1].T.tolist(),
        "sagittal": levels[x, ::-1, ::-1].T.tolist(),
    }
(target / "golden.json").write_text(json.dumps(golden) + "\n")
