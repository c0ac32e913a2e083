"""What pydicom makes of its own small test files: the oracle of client/tests/data_dicom.rs.

Copies the files it needs from the installed pydicom (MIT licence) to tests/fixtures/dicom and
writes golden.json beside them. Regenerate with

    pip install pydicom==3.0.2 numpy pillow pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg
    python client/tests/python/dicom_golden.py
"""

import json
import pathlib
import shutil

import numpy
import pydicom
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, convert_color_space

FILES = [
    "CT_small.dcm",
    "MR_small.dcm",
    "MR_small_bigendian.dcm",
    "MR_small_implicit.dcm",
    "MR_small_RLE.dcm",
    "MR_small_jp2klossless.dcm",
    "JPEG2000.dcm",
    "693_J2KI.dcm",
    "image_dfl.dcm",
    "mlut_18.dcm",
    "SC_rgb_rle_2frame.dcm",
    "SC_rgb_jpeg_dcmtk.dcm",
    "SC_rgb_dcmtk_+eb+cr.dcm",
    "SC_rgb_small_odd.dcm",
    "SC_rgb_rle.dcm",
]
# Refused here, with the reason in docs/data.md.
REFUSED = ["MR_small_jpeg_ls_lossless.dcm", "MR_truncated.dcm", "no_meta.dcm", "rtplan.dcm"]

source = pathlib.Path(pydicom.__file__).parent / "data" / "test_files"
target = pathlib.Path(__file__).parent.parent / "fixtures" / "dicom"
target.mkdir(exist_ok=True)
golden = {}
for name in FILES + REFUSED:
    if name == "no_meta.dcm" or not (source / name).exists():
        continue
    shutil.copyfile(source / name, target / name)
for name in [n for n in FILES if (source / n).exists()]:
    dataset = pydicom.dcmread(source / name)
    frames = int(dataset.get("NumberOfFrames", 1))
    array = dataset.pixel_array
    photometric = dataset.PhotometricInterpretation
    found = {"patient": str(dataset.get("PatientID", "")), "frames": frames}
    if dataset.SamplesPerPixel == 1:
        values = numpy.asarray(apply_modality_lut(array, dataset), dtype=numpy.float64)
        found["values"] = {
            "min": values.min(), "max": values.max(), "mean": float(values.mean()),
        }
        if "WindowCenter" in dataset or "VOILUTSequence" in dataset:
            shown = numpy.asarray(apply_voi_lut(apply_modality_lut(array, dataset), dataset), float)
            # pydicom keeps the range of the stored bits, after the rescale.
            if dataset.PixelRepresentation == 0:
                low, high = 0.0, float(2**dataset.BitsStored - 1)
            else:
                low, high = -float(2 ** (dataset.BitsStored - 1)), float(2 ** (dataset.BitsStored - 1) - 1)
            slope = float(dataset.get("RescaleSlope", 1))
            intercept = float(dataset.get("RescaleIntercept", 0))
            low, high = low * slope + intercept, high * slope + intercept
            levels = (shown - low) / (high - low) * 255
        elif dataset.BitsStored == 8:
            levels = values
        else:
            levels = (values - values.min()) / (values.max() - values.min()) * 255
        if photometric == "MONOCHROME1":
            levels = 255 - levels
    else:
        levels = array.astype(float)
    height, width = levels.shape[:2] if frames == 1 else levels.shape[1:3]
    first = levels if frames == 1 else levels[0]
    points = [(0, 0), (width // 2, height // 2), (width - 1, height - 1), (width // 3, height // 4)]
    found |= {
        "width": int(width),
        "height": int(height),
        "colour": bool(dataset.SamplesPerPixel == 3),
        "mean_level": float(first.mean()),
        "pixels": [
            {"x": x, "y": y, "level": numpy.atleast_1d(first[y, x]).tolist()} for x, y in points
        ],
    }
    golden[name] = found
(target / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")
(target / "README.md").write_text(
    "Test files of pydicom 3.0.2 (https://github.com/pydicom/pydicom, MIT licence), copied unchanged by\n"
    "`client/tests/python/dicom_golden.py`, which also wrote `golden.json`.\n"
)
