"""Reads the demo's JSON line and fails unless the whole mission happened; looks at the modes of the files in argv[1]."""

import json
import os
import sys

line = sys.stdin.readline()
print(line.strip())
result = json.loads(line)
assert result["status"] == "ok", result
data = result["data"]
assert data["state"] == "completed", data["state"]
assert data["audit"]["verified"] is True, data["audit"]
assert data["wall_s"] < 240, f"the demo took {data['wall_s']} s"
auroc = data["auroc"]
assert set(auroc) == {"head_only_local", "lora_local", "lora_federated", "lora_pooled"}
# What was learned is measured, not promised; an adapter at chance level is a defect.
assert all(value > 0.7 for value in auroc.values()), auroc
for name in ("adapter_config.json", "adapter_model.safetensors"):
    path = os.path.join(data["adapter_dir"], name)
    assert os.path.getsize(path) > 0, path
# Everything that the demo wrote is its owner's alone.
root = sys.argv[1]
paths = [os.path.join(folder, name) for folder, folders, files in os.walk(root) for name in folders + files]
assert len(paths) > 100, f"{root} holds {len(paths)} paths"
exposed = [path for path in [root, *paths] if os.lstat(path).st_mode & 0o077 and not os.path.islink(path)]
assert not exposed, f"{len(exposed)} of {len(paths)} paths can be used by others: {exposed[:20]}"
