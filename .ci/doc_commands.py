#!/usr/bin/env python3
"""Runs the documented commands as they are written, in a scratch consortium.

    python3 .ci/doc_commands.py PROGRAMS [--keep DIR] [--list]

PROGRAMS is the folder with all of the workspace's programs, target/debug. Every command
in a code block of README.md, CONTRIBUTING.md and docs/*.md must be run, or stand in ELSEWHERE with the
reason why not; even then its program, subcommands and flags must exist. Commands in running text and in
the comments of deploy/*.toml are checked for that too. Documents run in the order of DOCUMENTS, each
block in the order of the page. Python's standard library and git are all it needs.
"""

import argparse
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 180

# In this order; the others follow by name.
DOCUMENTS = ["README.md", "docs/audit.md", "docs/cache.md", "docs/recovery.md"]

# What stands for something of the reader's own, and what it is here. {port} is free, {root} the clone.
# The first group that fits a document is `*`, then its own.
PLACEHOLDERS = {
    "*": {
        "coordinator.example.org:8443": "127.0.0.1:{port}",
        "0.0.0.0:8443": "127.0.0.1:{port}",
        "backbone show FILE": "backbone show backbone.safetensors",
        "backbone verify FILE --digest sha256:...":
            "backbone verify backbone.safetensors --digest {digest}",
    },
    "docs/audit.md": {"site-a/witness.json": "alpha/witness.json"},
    "docs/cache.md": {"--config site.toml": "--config alpha/site.toml"},
    "docs/recovery.md": {
        "--identity operator": "--identity coord/operator",
        "site-a/witness-lost-131-leaves-ROOT.json": "alpha/witness-lost-*-leaves-*.json",
    },
    "docs/explain.md": {
        "--patients 400": "--patients 12",
        "deploy/backbone/backbone.safetensors": "backbone.safetensors",
    },
}

# What an outside machine, a checkpoint or a long time is needed for: not run, only its flags are read.
# The first entry whose document and beginning fit; "" fits a whole document.
ELSEWHERE = [
    ("README.md", "cargo demo -- --data digits.npz", "needs scikit-learn; its options are read by `--help`"),
    ("README.md", "cargo demo", "the step `the demo, as in the README`"),
    ("README.md", "cargo test", "the step `tests, as in the README`"),
    ("README.md", "python3 tests/python/digits_npz.py", "needs scikit-learn from PyPI"),
    ("CONTRIBUTING.md", "", "the steps `format`, `lint` and `tests` of .ci/run, and .ci/run itself"),
    ("docs/backbones.md", "tributary-client backbone import", "needs a published checkpoint; "
     "the step `we read what timm and transformers write` imports all kinds"),
    ("docs/backbones.md", "python tests/python/backbone_fixtures.py",
     "the step `we read what timm and transformers write`"),
    ("docs/explain.md", "--bag slide-17.svs", "needs a whole slide; client/tests/explain_cli.rs has bags"),
    ("docs/gpu.md", "", "needs a CUDA device and LibTorch"),
    ("docs/libtorch.md", "", "needs LibTorch from PyPI"),
    ("docs/security-testing.md", "", "runs for hours; tests/fuzz/tests/replay.rs replays the corpora"),
    ("docs/performance.md", "cargo", "takes minutes on an idle machine; its options are read by `--help`"),
]

# Programs that go on: a line that says they are ready. They are stopped at the end, the last one first.
GOES_ON = {
    "tributary-coordinator serve": "listening on",
    "tributary-client run": " connected",
}

# Set before the first command of a document: files that a reader of it has.
SCENES = {}

# What has happened before a command, by its document and beginning: shell lines, `stop PROGRAM ...` for one of
# those that go on, `wait PROGRAM ... | WORDS` for a line of it since the last wait.
BEFORE = {
    ("docs/recovery.md", "tributary-coordinator backup"): ["rm -f coord.backup"],
    # Leaves that the backup does not have and the site has seen, and then the database is gone.
    ("docs/recovery.md", "tributary-coordinator restore --config"): [
        "sed s/rehearsal-1/rehearsal-2/ coord/rehearsal.toml > again.toml",
        "tributary run start again.toml", "tributary run wait rehearsal-2",
        "wait tributary-client run | rehearsal-2",
        "stop tributary-coordinator serve", "rm -f coord/tributary.db*"],
    # The two ways to say it begin at the same point.
    ("docs/recovery.md", "tributary-coordinator recover --config coord/coordinator.toml --operator"): [
        "cp -a coord coord.before"],
    ("docs/recovery.md", "tributary-coordinator recover --config coord/coordinator.toml --out"): [
        "rm -rf coord", "mv coord.before coord"],
    ("docs/recovery.md", "tributary-client recovery show"): ["wait tributary-client run | restored from a backup"],
    ("docs/recovery.md", "tributary-client enroll"): ["rm alpha.kit", "tributary site invite alpha --out alpha.kit --replace"],
    ("docs/recovery.md", "tributary audit verify"): [
        "wait tributary-client run | follows the history", "rm consortium.export", "tributary audit export --out consortium.export"],
}

# What the reader's editor does, by the file's name: pairs of a pattern and its replacement.
EDITS = {
    "site.toml": [(r'path = "images"', 'path = "{scratch}/images"'),
                  (r'path = "backbone.safetensors"', 'path = "{scratch}/backbone.safetensors"')],
    "policy.toml": [(r"(?ms)^backbones = \[.*?^\]", 'backbones = "any"')],
    # Written by `run new`: one round of a few steps.
    "nodule.toml": [(r"(?m)^count = \d+", "count = 1"), (r"(?m)^warmup_steps = \d+", "warmup_steps = 0")],
    "run.toml": [(r"(?m)^name = .*", 'name = "chest-nodule-1"'), (r"(?m)^count = \d+", "count = 1"),
                 (r"(?m)^warmup_steps = \d+", "warmup_steps = 1"), (r"(\[quorum\][^[]*?\nsites = )\d+", r"\g<1>1")],
}

PROGRAMS = ("tributary", "tributary-client", "tributary-coordinator")
WORDS = PROGRAMS + ("cargo", "python", "python3", "pip", "gcc", "cd", "echo", "export", "kill", "cp", "mkdir",
                    "$EDITOR", "sha256sum", ".ci/run")
SAYS_COMMAND = re.compile(r"^(?:[A-Z_]+=\S+ +)*(?P<word>\S+)")


class Wrong(Exception):
    """What is wrong with a documented command."""


def documents():
    names = ["README.md", "CONTRIBUTING.md"]
    names += sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))
    return [name for name in DOCUMENTS if name in names] + [name for name in names if name not in DOCUMENTS]


def is_command(line):
    found = SAYS_COMMAND.match(line)
    word = found.group("word") if found else ""
    return word in WORDS or word.startswith(("target/", "D/bin/")) or bool(re.match(r"^[A-Z]=\$\(", line))


def blocks(text):
    """Code blocks that may hold commands: lists of (line number, line)."""
    fenced, block, before = None, [], ""
    for number, line in enumerate(text.split("\n"), 1):
        fence = re.match(r"^```(\w*)", line)
        if fence:
            if fenced is not None and fenced in ("", "sh", "bash", "shell", "console"):
                yield block
            fenced = fence.group(1) if fenced is None else None
            block = []
        elif fenced is not None:
            block.append((number, line))
        elif line.startswith("    ") and (block or not before.strip()):
            block.append((number, line[4:]))
        elif block and line.strip():
            yield block
            block = []
        before = line
    if block:
        yield block


def commands(name):
    """(line number, command) of a document, continued lines joined, comments and prompts cut off."""
    for block in blocks((ROOT / name).read_text()):
        prompted = any(line.startswith("$ ") for _, line in block)
        some = prompted or any(is_command(line) for _, line in block)
        joined, start = "", 0
        for number, line in block:
            if prompted and not joined and not line.startswith("$ "):
                continue
            start = start if joined else number
            joined += line.removeprefix("$ ") if prompted else line
            if joined.endswith("\\"):
                joined = joined[:-1]
                continue
            command = re.sub(r"(^|\s+)#.*$", "", joined).strip()
            joined = ""
            if command and some:
                if not is_command(command):
                    raise Wrong(f"{name}:{start}: neither a command nor a comment: {command}")
                yield start, " ".join(command.split())


def mentions():
    """(place, command) of inline code and of the samples' comments: their flags are read."""
    for path in [ROOT / name for name in documents()] + sorted((ROOT / "deploy").glob("*.toml")):
        text = path.read_text()
        found = re.findall(r"`([^`\n]+)`", text)
        if path.suffix == ".toml":
            comments = "\n".join(line for line in text.split("\n") if line.startswith("#"))
            found += re.findall(r"(?m)(?:^# |: |=\S+ )(tributary[-a-z]* .+)$", comments)
        for code in found:
            if code.split()[0] in PROGRAMS and len(code.split()) > 1:
                yield str(path.relative_to(ROOT)), code


class Help:
    """What `--help` of the programs and their subcommands says."""

    def __init__(self, environment):
        self.environment, self.known = environment, {}

    def of(self, words):
        if words not in self.known:
            told = subprocess.run([*words, "--help"], capture_output=True, text=True, env=self.environment)
            self.known[words] = told.stdout if told.returncode == 0 else None
        return self.known[words]

    def check(self, command):
        """Program, subcommands and flags of a command exist."""
        words = command.replace("[", " ").replace("]", " ").replace("|", " ").split()
        while words and "=" in words[0]:
            words.pop(0)
        program, at = Path(words[0]).name, 1
        if program not in PROGRAMS:
            return
        path = (program,)
        while at < len(words):
            listed = re.findall(r"(?m)^  ([a-z][a-z-]+)(?:  |$)", self.of(path) or "")
            aliases = re.findall(r"\[aliases?: ([a-z, ]+)\]", self.of(path) or "")
            if words[at].startswith("--") and words[at] in ("--identity", "--format") and at + 2 < len(words):
                at += 2  # A global option before the subcommand.
            elif words[at] in listed or words[at] in ", ".join(aliases).split(", "):
                path, at = (*path, words[at]), at + 1
            elif listed and re.fullmatch(r"[a-z][a-z-]+", words[at]) and "Commands:" in self.of(path):
                raise Wrong(f"`{words[at]}` is no command of `{' '.join(path)}`")
            else:
                break
        told = self.of(path)
        for flag in re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", " ".join(words[at:])):
            if not re.search(rf"(?m)^ +(?:-\w, )?{flag}\b(?!-)|^ +{flag},", told):
                raise Wrong(f"`{' '.join(path)}` has no option {flag}")


class Scratch:
    """The folder, the environment and the running programs of the documented commands."""

    def __init__(self, folder, programs):
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        editor = folder / "editor"
        editor.write_text(f"#!/bin/sh\nexec {sys.executable} {__file__} --edit {folder} \"$@\"\n")
        editor.chmod(0o755)
        kept = {key: value for key, value in os.environ.items()
                if not key.startswith("TRIBUTARY") and not key.lower().endswith("_proxy")}
        self.environment = {**kept, "PATH": f"{programs}:{kept['PATH']}", "EDITOR": str(editor)}
        self.running = []

    def quietly(self, command, where=None):
        """A command of a scene."""
        done = subprocess.run(command, shell=True, cwd=where or self.folder, env=self.environment,
                              capture_output=True, text=True, timeout=PATIENCE_S)
        if done.returncode:
            raise Wrong(f"the scene's `{command}`: {done.stderr.strip()}")

    def run(self, command, where):
        """Runs a command to its end, or to the line that says it is ready."""
        if command.startswith("export "):
            name, value = command.removeprefix("export ").split("=", 1)
            self.environment[name] = value
            return
        ready = next((line for begin, line in GOES_ON.items() if command.startswith(begin)), None)
        cwd = ROOT if command.split()[0] in ("cargo", "python", "python3") else where
        if ready is None:
            done = subprocess.run(command, shell=True, cwd=cwd, env=self.environment, capture_output=True,
                                  text=True, timeout=PATIENCE_S)
            if done.returncode:
                raise Wrong(f"exit code {done.returncode}: {(done.stderr or done.stdout).strip()[-2000:]}")
            return
        process = subprocess.Popen(["exec " + command], shell=True, cwd=cwd, env=self.environment, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
        self.running.append((command, process, Told(process.stdout)))
        self.running[-1][2].wait(ready)

    def happen(self, what, where):
        """One line of BEFORE."""
        verb, _, rest = what.partition(" ")
        if verb == "wait":
            begin, words = rest.split(" | ")
            next(told for command, _, told in self.running if command.startswith(begin)).wait(words)
        elif verb == "stop":
            for entry in [entry for entry in self.running if entry[0].startswith(rest)]:
                self.end(entry)
        else:
            self.quietly(what, where)

    def end(self, entry):
        self.running.remove(entry)
        entry[1].send_signal(signal.SIGTERM)
        entry[1].wait(PATIENCE_S)

    def stop(self):
        for entry in reversed(self.running[:]):
            self.end(entry)


class Told:
    """The lines of a running program, waited for one after the other."""

    def __init__(self, source):
        self.lines, self.at, self.changed, self.closed = [], 0, threading.Condition(), False
        threading.Thread(target=self.follow, args=(source,), daemon=True).start()

    def follow(self, source):
        for line in source:
            with self.changed:
                self.lines.append(line)
                self.changed.notify_all()
        with self.changed:
            self.closed = True
            self.changed.notify_all()

    def wait(self, words):
        """Returns once a line after the last one found has the words."""
        deadline = time.monotonic() + PATIENCE_S
        with self.changed:
            while True:
                while self.at < len(self.lines):
                    self.at += 1
                    if words in self.lines[self.at - 1]:
                        return
                if self.closed or not self.changed.wait(deadline - time.monotonic()):
                    raise Wrong(f"no line with `{words}`: {''.join(self.lines)[-2000:]}")


def scene(*names):
    def remember(prepare):
        SCENES.update({name: prepare for name in names})
        return prepare
    return remember


def with_backbone(scratch, where):
    for name in ("backbone.safetensors", "backbone.json"):
        shutil.copy(ROOT / "deploy/backbone" / name, where / name)


def manifest(scratch, classes, name="chest-nodule-1"):
    """deploy/run.toml for the backbone of the repository and one short round."""
    text = (ROOT / "deploy/run.toml").read_text()
    shown = subprocess.run(["tributary-client", "backbone", "show", str(ROOT / "deploy/backbone/backbone.safetensors")],
                           env=scratch.environment, capture_output=True, text=True, check=True).stdout
    scratch.digest = re.search(r"sha256:\w+", shown).group()
    pairs = [(r"sha256:0+", scratch.digest), (r"mean = \[0.5\]", "mean = [0.5, 0.5, 0.5]"),
             (r"std = \[0.25\]", "std = [0.5, 0.5, 0.5]"), ("\nchannels = 1", "\nchannels = 3"),
             (r'classes = \[.*\]', f"classes = {classes}".replace("'", '"')),
             (r'name = ".*"', f'name = "{name}"'), ("warmup_steps = 20", "warmup_steps = 1"),
             (r"(?ms)^\[cohort\].*?^$", ""), ("count = 10", "count = 1"), (r"\nsites = 2", "\nsites = 1")]
    for pattern, new in pairs:
        text = re.sub(pattern, new, text, count=1)
    return text


@scene("README.md")
def readme(scratch, where):
    with_backbone(scratch, where)
    (where / "run.toml").write_text(manifest(scratch, ["clear", "nodule"]))
    scratch.quietly("tributary-client data synth --modality chest-xray --sites 1 --patients 12 --out drawn")
    (where / "drawn/site-1").rename(where / "images")


@scene("docs/backbones.md")
def backbones(scratch, where):
    with_backbone(scratch, where)
    manifest(scratch, ["clear", "nodule"])


@scene("docs/explain.md", "docs/python.md")
def explain(scratch, where):
    with_backbone(scratch, where)
    drawn = "tributary-client data synth --modality fundus --sites 1 --patients 12 --out drawn"
    scratch.quietly(drawn, where)
    images = where / "drawn/site-1"
    labels = images / "labels.csv"
    rows = labels.read_text().splitlines()
    for row, name in zip(rows[1:], ["a.png", "b.png"]):
        old = row.split(",")[0]
        (images / old).rename(images / name)
        labels.write_text(labels.read_text().replace(old, name))
    images.rename(where / "images")
    classes = sorted({row.split(",")[2] for row in rows[1:]})
    (where / "run.toml").write_text(manifest(scratch, classes).replace('kind = "binary"', 'kind = "multi_class"'))
    shutil.copy(where / "run.toml", where / "fundus.toml")
    scratch.quietly("tributary-client train --run run.toml --backbone backbone.safetensors --data images "
                    "--out adapter.bin", where)


# Commands of README.md that the second site runs too, with `beta` in place of `alpha`.
BOTH_SITES = ("tributary-client enroll alpha.kit", "$EDITOR alpha/", "tributary-client run ")
# Documents about the consortium of README.md are run in its folder.
IN_CONSORTIUM = ("README.md", "docs/audit.md", "docs/cache.md", "docs/recovery.md")


def edit(scratch, files):
    for file in map(Path, files):
        text = file.read_text()
        for pattern, new in EDITS[file.name]:
            text, count = re.subn(pattern, new.replace("{scratch}", scratch), text, count=1)
            if not count:
                sys.exit(f"{file}: nothing to edit fits {pattern}")
        file.write_text(text)


def elsewhere(name, command):
    for document, begin, reason in ELSEWHERE:
        if document == name and (command.startswith(begin) or f" {begin}" in command):
            return reason
    return None


def options_are_read(command, scratch):
    """Of a launcher that would take long: its options parse, as cargo's alias passes them on."""
    launcher = re.match(r"cargo (demo|federation-bench|trainer-bench)\b(.*)", command)
    if launcher:
        name, options = launcher.groups()
        if f'{name} = "run -p tributary-deploy --bin {name} --"' not in (ROOT / ".cargo/config.toml").read_text():
            raise Wrong(f".cargo/config.toml has no alias {name} that ends in `--`")
        scratch.run(f"{name}{options} --help", ROOT)


def check(name, scratch, helps, failures):
    run = 0
    where = scratch.folder
    if name not in IN_CONSORTIUM:
        where = scratch.folder / Path(name).stem
        where.mkdir()
    if name in SCENES:
        SCENES[name](scratch, where)
    for number, written in commands(name):
        place, began = f"{name}:{number}", time.monotonic()
        try:
            helps.check(written)
            reason = elsewhere(name, written)
            if reason is not None:
                options_are_read(written, scratch)
                print(f"  left out  {place}: {written}  ({reason})", flush=True)
                continue
            command = re.sub(r" \[[^]]*\]", "", written)
            for group in ("*", name):
                for old, new in PLACEHOLDERS.get(group, {}).items():
                    new = new.replace("{port}", str(scratch.port)).replace("{digest}", getattr(scratch, "digest", ""))
                    command = command.replace(old, new)
            for (document, begin), happened in BEFORE.items():
                if document == name and command.startswith(begin):
                    for what in happened:
                        scratch.happen(what, where)
            scratch.run(command, where)
            if name == "README.md" and command.startswith(BOTH_SITES):
                scratch.run(command.replace("alpha", "beta"), where)
            run += 1
            print(f"  {time.monotonic() - began:6.1f} s  {place}: {written}", flush=True)
        except (Wrong, subprocess.TimeoutExpired) as wrong:
            failures.append(f"{place}: {written}\n    {wrong}")
            print(f"  WRONG     {place}: {written}\n    {wrong}", flush=True)
    return run


def main():
    if sys.argv[1:2] == ["--edit"]:
        return edit(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("programs", type=Path, help="the folder with the programs")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="an empty folder for everything, kept")
    parser.add_argument("--list", action="store_true", help="print the commands and run none")
    arguments = parser.parse_args()
    if arguments.list:
        for name in documents():
            for number, command in commands(name):
                print(f"{name}:{number}: {elsewhere(name, command) and '(left out) ' or ''}{command}")
        return None
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="tributary-docs-"))
    folder.mkdir(parents=True, exist_ok=True)
    scratch = Scratch(folder.resolve(), arguments.programs.resolve())
    helps, failures, run = Help(scratch.environment), [], 0
    try:
        for name in documents():
            run += check(name, scratch, helps, failures)
    finally:
        scratch.stop()
        if arguments.keep is None:
            shutil.rmtree(folder)
    read = 0
    for place, code in mentions():
        try:
            helps.check(code)
            read += 1
        except Wrong as wrong:
            failures.append(f"{place}: `{code}`\n    {wrong}")
    print(f"{run} documented commands were run, {read} in running text were read, {len(failures)} are wrong.")
    if failures:
        sys.exit("\n".join(["These documented commands do not hold:", *failures]))
    return None


if __name__ == "__main__":
    main()
