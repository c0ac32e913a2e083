"""Trains every kind of adapter with `tributary-client`, takes it to Python and back, compares what both say.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install -r tests/python/requirements.txt
    /tmp/venv/bin/python tests/python/export_parity.py target/debug/tributary-client

Each case: `data synth` and `train` on a tiny backbone, `evaluate --predictions` for what we say of every image,
`export`, and the same images through the real library:

- peft on transformers' ViT (LoRA, rsLoRA, DoRA, last blocks, a head alone): `PeftModel.from_pretrained`, then
  `save_pretrained` and `import-adapter`, which must give the adapter's own bytes (DoRA: its values to 1e-6);
- timm (`create_model("local-dir:..")` and `load_state_dict(strict=True)`) for what merges under a linear head;
- the exported tributary_timm.py for everything else.
"""

import csv
import hashlib
import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import peft
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

import peft_parity
from adaptation_fixtures import BACKBONES, FIXTURES

# Of a probability; what one picture is said differs from the next by a hundredth and more.
TOLERANCE = 1e-5
CLASSES = {
    "multi_class": ["none", "mild", "severe"],
    "segmentation": ["background", "disc"],
}
LORA = 'rank = 3\nalpha = 6.0\ntargets = "all_linear"\n'

# Name: backbone, `[adapter]`, `[head]`, more tables, task.
CASES = {
    "lora": ("plain", LORA, "", "", "multi_class"),
    "rslora": ("plain", LORA + 'scaling = "rslora"\n', "", "", "multi_class"),
    "dora": ("plain", LORA + "dora = true\n", "", "", "multi_class"),
    "lora-last": ("plain", LORA + "last_blocks = 1\n", "", "", "multi_class"),
    "head-only": ("plain", 'kind = "head_only"\n', "", "", "multi_class"),
    "dora-mean": ("mean", LORA + "dora = true\n", "", "", "multi_class"),
    "bitfit": ("plain", 'kind = "bitfit"\n', "", "", "multi_class"),
    "last-blocks": ("mean", 'kind = "last_blocks"\nlast_blocks = 1\n', "", "", "multi_class"),
    "full": ("mean", 'kind = "full"\n', "", "", "multi_class"),
    "full-rich": ("rich", 'kind = "full"\n', "", "", "multi_class"),
    "houlsby": ("rich", 'kind = "houlsby"\nbottleneck = 4\n', "", "", "multi_class"),
    "adaptformer": ("mean", 'kind = "adaptformer"\nbottleneck = 4\n', "", "", "multi_class"),
    "prompts": ("rich", 'kind = "prompts"\nprompts = 3\n', "", "", "multi_class"),
    "prompts-deep": ("mean", 'kind = "prompts"\nprompts = 3\ndeep = true\n', "", "", "multi_class"),
    "mlp-head": ("plain", LORA, 'kind = "mlp"\nhidden = 5\n', "", "multi_class"),
    "attention-pool": ("rich", LORA, 'kind = "attention_pool"\n', "", "multi_class"),
    "bags": ("plain", LORA, "", "[bags]\nattention_width = 4\n", "multi_class"),
    "segmentation": ("plain", LORA, "", '[task.decoder]\nkind = "convolutional"\nchannels = 4\n', "segmentation"),
}
PEFT = {"lora", "rslora", "dora", "lora-last", "head-only"}
TIMM_ALONE = PEFT | {"dora-mean", "bitfit", "last-blocks", "full"}


def manifest(case: str) -> str:
    backbone, adapter, head, more, task = CASES[case]
    digest = hashlib.sha256((FIXTURES / f"{backbone}.backbone.safetensors").read_bytes()).hexdigest()
    shape = "\n".join(f"{key} = {json.dumps(value)}" for key, value in BACKBONES[backbone].items())
    of_task = more if more.startswith("[task") else ""
    return f"""
schema_version = 1
name = "parity"
[task]
kind = "{task}"
classes = {json.dumps(CLASSES[task])}
{of_task}
[backbone]
digest = "sha256:{digest}"
mean = [0.4, 0.3, 0.2]
std = [0.2, 0.3, 0.25]
[backbone.architecture]
{shape}
[adapter]
{adapter}
{"[head]" if head else ""}
{head}
{"" if of_task else more}
[training]
epochs = 4
batch_size = 8
learning_rate = 0.003
holdout = 0.25
seed = 3
[rounds]
count = 1
round_deadline_s = 60
stall_timeout_s = 60
[quorum]
sites = 1
"""


def client(program: str, *arguments) -> dict:
    done = subprocess.run([program, *map(str, arguments), "--format", "json"], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, arguments))}: {done.stdout}{done.stderr}")
    return json.loads(done.stdout)["data"]


def draw(program: str, folder: pathlib.Path) -> None:
    """Fundus pictures; beside their classes bags of three and masks of a bright disc."""
    client(program, "data", "synth", "--modality", "fundus", "--sites", 1, "--patients", 24, "--images-per-patient", 3,
           "--size", 16, "--seed", 5, "--out", folder / "synth")
    plain = folder / "synth" / "site-1"
    rows = list(csv.DictReader((plain / "labels.csv").open()))
    bags, masks = folder / "with-bags", folder / "with-masks"
    for other, column in ((bags, "bag"), (masks, "mask")):
        (other / "images").mkdir(parents=True)
        lines = [f"file,patient,{'label,' if column == 'bag' else ''}{column}"]
        for number, row in enumerate(rows):
            pixels = np.array(Image.open(plain / row["file"]))
            y, x = np.mgrid[:16, :16]
            disc = (y - 4 - number % 8) ** 2 + (x - 4 - number % 7) ** 2 < 12
            if column == "mask":
                pixels[disc] = 255
                mask = row["file"].replace(".png", "-mask.png")
                Image.fromarray(disc.astype(np.uint8)).save(other / mask)
                lines.append(f"{row['file']},{row['patient']},{mask}")
            else:
                lines.append(f"{row['file']},{row['patient']},{row['label']},slide-{row['patient']}")
            Image.fromarray(pixels).save(other / row["file"])
        (other / "labels.csv").write_text("\n".join(lines) + "\n")


def rows_said(path: pathlib.Path) -> list:
    """For each row of predictions its key and its numbers."""
    with path.open() as file:
        reader = csv.reader(file)
        header = next(reader)
        numbers = [at for at, name in enumerate(header) if "(" in name]
        return [(dict(zip(header, row)), [float(row[at]) for at in numbers]) for row in reader]


def images(data: pathlib.Path, case: str, row: dict) -> torch.Tensor:
    """A row's pictures, normalised: one, or a bag's."""
    files = [row["case"]]
    if case == "bags":
        table = csv.DictReader((data / "labels.csv").open())
        files = [line["file"] for line in table if line["bag"] == row["bag"]]
    pixels = np.stack([np.array(Image.open(data / file).convert("RGB")) for file in files])
    scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor([0.4, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.25])
    return (scaled - mean.view(3, 1, 1)) / std.view(3, 1, 1)


def apart(model, data: pathlib.Path, case: str, said: list) -> float:
    """The largest difference of a probability, or of a class's share of the pixels."""
    worst = 0.0
    for row, ours in said:
        with torch.no_grad():
            logits = model(images(data, case, row))[0]
        theirs = logits.softmax(0)
        if logits.dim() == 3:
            classes = logits.argmax(0)
            theirs = torch.stack([(classes == c).float().mean() for c in range(len(ours))])
        worst = max(worst, (theirs - torch.tensor(ours)).abs().max().item())
    return worst


def by_timm(exported: pathlib.Path, case: str):
    """The exported directory as timm, or the module beside it, loads it."""
    if case in TIMM_ALONE:
        model = timm.create_model(f"local-dir:{exported}", pretrained=True).eval()
        fresh = timm.create_model(f"local-dir:{exported}", pretrained=False)
        fresh.load_state_dict(load_file(exported / "model.safetensors"), strict=True)
        assert list(model.pretrained_cfg["mean"]) == [0.4, 0.3, 0.2]
        return model
    try:
        timm.create_model(f"local-dir:{exported}", pretrained=True)
    except RuntimeError as error:
        assert "load_with_tributary_timm" in str(error), error
    else:
        sys.exit(f"{case}: timm alone builds another model and does not say so")
    spec = importlib.util.spec_from_file_location("exported_module", exported / "tributary_timm.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load(exported)


def floats(adapter: pathlib.Path) -> np.ndarray:
    """The values of canonical bytes: after 8 bytes of magic, a length and a header of that length."""
    content = adapter.read_bytes()
    header = 12 + int.from_bytes(content[8:12], "little")
    return np.frombuffer(content[header:], "<f4")


def through_peft(program: str, folder: pathlib.Path, case: str, data: pathlib.Path, said: list) -> float:
    """Loads and saves with peft and reads that back; also from PyTorch's own format."""
    run, adapter = folder / "run.toml", folder / "adapter.bin"
    backbone = FIXTURES / f"{CASES[case][0]}.backbone.safetensors"
    beside = ["--backbone", backbone] if case == "dora" else []
    client(program, "export", "--run", run, "--adapter", adapter, *beside, "--out", folder / "peft")
    table = {"backbone": {"architecture": BACKBONES[CASES[case][0]]}}
    table["task"] = {"kind": "multi_class", "classes": CLASSES["multi_class"]}
    model = peft.PeftModel.from_pretrained(peft_parity.base_model(table, backbone), folder / "peft").eval()
    worst = apart(lambda x: model(pixel_values=x).logits, data, case, said)
    for safe in (True, False):
        saved, read = folder / f"saved-{safe}", folder / f"read-{safe}.bin"
        model.save_pretrained(saved, safe_serialization=safe)
        client(program, "import-adapter", saved, "--run", run, *beside, "--out", read)
        difference = np.abs(floats(read) - floats(adapter)).max()
        if read.read_bytes() != adapter.read_bytes() and (case != "dora" or difference > 1e-6):
            sys.exit(f"{case}: what peft saved differs from what it was given by {difference:.1e}")
    return worst


def main() -> None:
    program = str(pathlib.Path(sys.argv[1]).resolve())
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        draw(program, scratch)
        for case, (backbone, *_) in CASES.items():
            folder = scratch / case
            folder.mkdir()
            data = {"bags": scratch / "with-bags", "segmentation": scratch / "with-masks"}.get(case, scratch / "synth" / "site-1")
            (folder / "run.toml").write_text(manifest(case))
            common = ["--run", folder / "run.toml", "--backbone", FIXTURES / f"{backbone}.backbone.safetensors"]
            adapter, table = folder / "adapter.bin", folder / "predictions.csv"
            client(program, "train", *common, "--data", data, "--out", adapter)
            client(program, "evaluate", *common, "--adapter", adapter, "--data", data, "--split", "all",
                   "--predictions", table)
            client(program, "export", *common, "--adapter", adapter, "--as", "timm", "--out", folder / "timm")
            said = rows_said(table)
            spread = np.array([numbers for _, numbers in said]).std(0).max()
            if spread < 0.004:
                sys.exit(f"{case}: every picture is said the same of: nothing is compared")
            worst = {"timm": apart(by_timm(folder / "timm", case), data, case, said)}
            if case in PEFT:
                worst["peft"] = through_peft(program, folder, case, data, said)
            text = ", ".join(f"{library} within {difference:.1e}" for library, difference in worst.items())
            print(f"{case:<15} {len(said)} rows, deviation {spread:.2f}: {text}")
            if max(worst.values()) > TOLERANCE:
                sys.exit(f"{case}: Python says something else")
    print(f"torch {torch.__version__}, peft {peft.__version__}, timm {timm.__version__}")


if __name__ == "__main__":
    main()
