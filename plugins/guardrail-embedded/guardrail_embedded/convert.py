"""`python convert.py FILE.gguf TARGET`: unpacks a Llama-like GGUF file into a folder, atomically.

The whole is written beside TARGET and renamed. transformers does the dequantising; its progress bar on stderr is what
`weights` reads the progress from.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path


def convert(gguf: Path, target: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
        tokenizer.save_pretrained(made)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
        # save_pretrained refuses a model that came from GGUF, so the three files are written one by one.
        config = model.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        config.dtype = torch.bfloat16
        config.save_pretrained(made)
        tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
        tensors = {
            name: tensor.to(torch.bfloat16).contiguous()
            for name, tensor in model.state_dict().items()
            if name not in tied
        }
        save_file(tensors, made / "model.safetensors", metadata={"format": "pt"})
        made.chmod(0o755)
        _appear(made, target)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _appear(made: Path, target: Path) -> None:
    try:
        made.rename(target)
    except OSError:
        if not target.is_dir():  # else another process was first, and its folder is as good
            raise


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
