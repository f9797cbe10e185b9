"""One training step and one decode loop of a small decoder: layers of a zoo model's width, as PyTorch runs them eagerly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from simulator.measure.campaign import Case
from simulator.measure.kernels_torch import DTYPES
from simulator.specs import Catalog, Model


class Block(nn.Module):
    """A pre-norm layer: grouped-query attention and a gated MLP, without positions (they cost little)."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.heads = model.num_attention_heads
        self.kv_heads = model.num_key_value_heads or self.heads
        self.dim = model.head_dim or model.hidden_size // self.heads
        hidden, inner = model.hidden_size, model.intermediate_size
        self.attention_norm = nn.LayerNorm(hidden)
        self.qkv = nn.Linear(hidden, (self.heads + 2 * self.kv_heads) * self.dim, bias=False)
        self.output = nn.Linear(self.heads * self.dim, hidden, bias=False)
        self.mlp_norm = nn.LayerNorm(hidden)
        self.gate_up = nn.Linear(hidden, 2 * inner, bias=False)
        self.down = nn.Linear(inner, hidden, bias=False)

    def forward(
        self, x: torch.Tensor, cache: tuple[torch.Tensor, torch.Tensor] | None = None, position: int = 0
    ) -> torch.Tensor:
        """Return the layer's output; with a cache, the new positions are written at ``position`` first."""
        batch, length, _ = x.shape
        projected = self.qkv(self.attention_norm(x)).view(batch, length, -1, self.dim).transpose(1, 2)
        query, key, value = projected.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        if cache is not None:
            end = position + length
            cache[0][:, :, position:end], cache[1][:, :, position:end] = key, value
            key, value = cache[0][:, :, :end], cache[1][:, :, :end]
        grouped: dict[str, Any] = {"enable_gqa": True} if self.heads != self.kv_heads else {}
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=cache is None, **grouped)
        x = x + self.output(seen.transpose(1, 2).reshape(batch, length, -1))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, dim=-1)
        out: torch.Tensor = x + self.down(F.silu(gate) * up)
        return out


class Decoder(nn.Module):
    """Embedding, some layers and the output layer, which shares the embedding's weight where the model does."""

    def __init__(self, model: Model, layers: int, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, model.hidden_size)
        self.blocks = nn.ModuleList(Block(model) for _ in range(layers))
        self.norm = nn.LayerNorm(model.hidden_size)
        self.head = nn.Linear(model.hidden_size, vocabulary, bias=False)
        if model.tie_word_embeddings:
            self.head.weight = self.embedding.weight

    def forward(
        self, tokens: torch.Tensor, caches: list[Any] | None = None, position: int = 0
    ) -> torch.Tensor:
        """Return logits of every position."""
        x = self.embedding(tokens)
        for index, block in enumerate(self.blocks):
            x = block(x, caches[index] if caches is not None else None, position)
        logits: torch.Tensor = self.head(self.norm(x))
        return logits


def training_step(case: Case, device: torch.device, catalog: Catalog) -> Callable[[], Any]:
    """Return one step: forward, cross-entropy in fp32, backward, AdamW with states in the weights' format."""
    s = case.sizes
    model = catalog.model(s["model"])
    decoder = _decoder(model, case, device)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-4, fused=True)
    tokens = torch.randint(0, s["vocabulary"], (s["batch"], s["sequence"] + 1), device=device)

    def step() -> None:
        logits = decoder(tokens[:, :-1])
        F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def decode_loop(case: Case, device: torch.device, catalog: Catalog) -> Callable[[], Any]:
    """Return the greedy generation of some tokens after a context that the cache already holds."""
    s = case.sizes
    model = catalog.model(s["model"])
    decoder = _decoder(model, case, device).eval()
    first: Any = decoder.blocks[0]
    shape = (s["batch"], first.kv_heads, s["context"] + s["tokens"], first.dim)
    caches = [
        tuple(torch.randn(shape, dtype=DTYPES[case.format], device=device) for _ in range(2))
        for _ in range(s["layers"])
    ]
    start = torch.randint(0, s["vocabulary"], (s["batch"], 1), device=device)

    @torch.inference_mode()
    def loop() -> torch.Tensor:
        tokens = start
        for offset in range(s["tokens"]):
            tokens = decoder(tokens, caches, s["context"] + offset).argmax(dim=-1)
        return tokens

    return loop


def _decoder(model: Model, case: Case, device: torch.device) -> Decoder:
    with device:
        default = torch.get_default_dtype()
        torch.set_default_dtype(DTYPES[case.format])
        try:
            return Decoder(model, case.sizes["layers"], case.sizes["vocabulary"])
        finally:
            torch.set_default_dtype(default)
