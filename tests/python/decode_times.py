"""How long images of each kind take to decode: writes some of every kind into a temporary folder, lets `data inspect`
read them on one thread, and prints the table of docs/data.md.

    pip install -r tests/python/requirements.txt pillow==13.0.0 pydicom==3.0.2 nibabel==5.4.2 tifffile==2026.3.3 \
        imagecodecs==2026.3.6
    python tests/python/decode_times.py target/release/tributary-client
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import nibabel
import numpy
import pydicom
import pydicom.uid
import tifffile
from imagecodecs import jpeg2k_encode, jpeg8_encode
from PIL import Image
from pydicom.encaps import encapsulate

COUNT = 9
SIDES = (512, 1024, 2048)
RUNS = 3


def picture(side, seed, channels=3):
    """Smooth shapes under a little noise: neither flat nor noise alone, as tissue is."""
    draw = numpy.random.default_rng(seed)
    coarse = draw.integers(40, 215, (side // 32 + 1, side // 32 + 1, channels), dtype=numpy.uint8)
    coarse = coarse[..., 0] if channels == 1 else coarse
    smooth = numpy.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)).astype(int)
    return (smooth + draw.integers(-6, 7, smooth.shape)).clip(0, 255).astype(numpy.uint8)


def dicom(path, side, seed, syntax):
    grey = picture(side, seed, 1)
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    dataset.SOPClassUID, dataset.SOPInstanceUID = pydicom.uid.CTImageStorage, pydicom.uid.generate_uid()
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.PatientID, dataset.Modality = f"p{seed}", "CT"
    dataset.Rows = dataset.Columns = side
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.PixelRepresentation, dataset.RescaleIntercept, dataset.RescaleSlope = 0, -1024, 1
    dataset.WindowCenter, dataset.WindowWidth = 40, 400
    deep = grey.astype(numpy.uint16) * 8
    narrow = syntax == pydicom.uid.JPEGBaseline8Bit
    bits = 8 if narrow else 16
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    if narrow:
        dataset.PixelData = encapsulate([jpeg8_encode(grey, level=90)])
    elif syntax == pydicom.uid.JPEG2000Lossless:
        dataset.PixelData = encapsulate([jpeg2k_encode(deep, codecformat="j2k", reversible=True)])
    else:
        dataset.PixelData = deep.tobytes()
        if syntax == pydicom.uid.RLELossless:
            dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
            dataset.compress(syntax, encoding_plugin="pydicom")
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)


def slide(path, side):
    """A pyramid of JPEG tiles; `side` is that of the finest level."""
    finest = picture(side, 5)
    finest[..., 1] //= 2
    options = {"photometric": "rgb", "compression": "jpeg", "metadata": None, "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as tif:
        for step in (1, 4):
            level = numpy.ascontiguousarray(finest[::step, ::step])
            tif.write(level, tile=(256, 256), resolution=(20_000 / step,) * 2, subfiletype=int(step > 1), **options)


def save(kind, folder, side):
    """Writes `COUNT` images of one kind into `folder`; gives what `data inspect` reads."""
    syntaxes = {
        "DICOM, uncompressed": pydicom.uid.ExplicitVRLittleEndian,
        "DICOM, RLE": pydicom.uid.RLELossless,
        "DICOM, JPEG": pydicom.uid.JPEGBaseline8Bit,
        "DICOM, JPEG 2000": pydicom.uid.JPEG2000Lossless,
    }
    if kind == "npz":
        images = numpy.stack([picture(side, seed) for seed in range(COUNT)])
        numpy.savez_compressed(folder / "a.npz", train_images=images, train_labels=numpy.zeros((COUNT, 1), numpy.uint8))
        return folder / "a.npz"
    if kind == "NIfTI slice, gzip":
        volume = numpy.stack([picture(side, seed, 1).astype(numpy.int16) * 8 for seed in range(COUNT)], -1)
        nibabel.save(nibabel.Nifti1Image(volume, numpy.eye(4)), folder / "a.nii.gz")
        names = ["a.nii.gz"]
    elif kind == "slide, tile of 224 in JPEG":
        slide(folder / "a.tif", side)
        names = ["a.tif"]
    else:
        names = []
        for seed in range(COUNT):
            if kind in syntaxes:
                names.append(f"{seed}.dcm")
                dicom(folder / names[-1], side, seed, syntaxes[kind])
                continue
            ending = kind.split(",")[0].lower()
            names.append(f"{seed}.{ending}")
            options = {"jpeg": {"quality": 90}, "tiff": {"compression": "tiff_lzw"}}.get(ending, {})
            Image.fromarray(picture(side, seed)).save(folder / names[-1], **options)
    (folder / "labels.csv").write_text("file,patient,label\n" + "".join(f"{name},{name},0\n" for name in names))
    return folder


def main(client):
    kinds = [
        "PNG", "JPEG", "TIFF, LZW", "DICOM, uncompressed", "DICOM, RLE", "DICOM, JPEG", "DICOM, JPEG 2000",
        "NIfTI slice, gzip", "npz", "slide, tile of 224 in JPEG",
    ]
    print("| milliseconds an image, median | " + " | ".join(f"{side} px" for side in SIDES) + " |")
    print("|---|" + "--:|" * len(SIDES))
    for kind in kinds:
        cells = []
        for side in SIDES:
            with tempfile.TemporaryDirectory() as folder:
                source = save(kind, pathlib.Path(folder), side)
                command = [client, "--format", "json", "data", "inspect", str(source), "--classes", "0,1"]
                medians = []
                for _ in range(RUNS):
                    done = subprocess.run(
                        command, capture_output=True, text=True, env=os.environ | {"RAYON_NUM_THREADS": "1"}
                    )
                    assert done.returncode == 0, done.stdout + done.stderr
                    medians.append(json.loads(done.stdout)["data"]["decoding"]["median_ms"])
                cells.append(f"{min(medians):.1f}")
        print(f"| {kind} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
