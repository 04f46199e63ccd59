"""The register encoder h: a text becomes K ordered registers (CRoCoDiL §4.1, App. C).

A Qwen3-Embedding backbone, causal as released, reads `tokens, EOS, r_1 … r_{K-1}` with K−1 learned suffix
embeddings. Register 1 is the final hidden state at EOS, the summary that Qwen3-Embedding itself returns; register
j+1 is the state at r_j. Because the backbone is causal, asking for fewer registers leaves the first ones as they were.

Shape letters: B texts, T packed positions, K registers, D register width.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn
from transformers import AttentionInterface, Qwen3Config, Qwen3Model

from crocodil.attention import Segments, attend
from crocodil.errors import CrocodilError
from crocodil.recompute import RECOMPUTE
from crocodil.registers.geometry import check_count, normalise

Scale = Literal["sqrt_d", "layer_norm"]
ATTENTION = "crocodil_packed"


def _packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    segments: Segments | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface over `attend`; queries (B, H, T, C), result (B, T, H, C)."""
    swap = lambda x: x.transpose(1, 2)  # noqa: E731
    return attend(swap(query), swap(key), swap(value), segments, causal=True), None


AttentionInterface.register(ATTENTION, _packed_attention)


class RegisterEncoder(nn.Module):
    """h: token ids to registers of norm √D.

    Args:
        backbone: a Qwen3 model without head; its table must hold the demasker's ids (see `text.transplant`).
        K: number of registers, a power of two.
        eos_id: the id whose state is the summary register.
        scale: `sqrt_d` brings every register to norm √D (the paper); `layer_norm` is the ablation of App. C, a
            LayerNorm with learned affine parameters.
        suffix_from: RoPE position of r_1 whatever the text's length, so that "the i-th token" is at one distance from
            a register, as it is for the demasker, which counts from the front. It may lie inside a long text: order
            in the row, not position, says who sees whom. None: straight after EOS, as released. EOS, and so the
            summary register, stands after the text either way.
    """

    def __init__(
        self,
        backbone: Qwen3Model,
        K: int,
        eos_id: int,
        scale: Scale = "sqrt_d",
        suffix_from: int | None = None,
    ) -> None:
        super().__init__()
        if set(backbone.config.layer_types) != {"full_attention"}:
            raise CrocodilError(
                "the encoder's backbone has sliding windows, which crocodil does not; give one without"
            )
        self.backbone = backbone
        self.K = check_count(K)
        self.D = int(backbone.config.hidden_size)
        self.eos_id = eos_id
        self.scale = scale
        self.suffix_from = suffix_from
        backbone.set_attn_implementation(ATTENTION)
        # the row of EOS is an input like any other: as "padding" it would begin at zero and never be trained
        backbone.embed_tokens.padding_idx = None
        table = backbone.embed_tokens.weight
        self.suffix = nn.Parameter(torch.empty(K - 1, self.D, device=table.device, dtype=table.dtype))
        self.norm = nn.LayerNorm(self.D) if scale == "layer_norm" else None
        if not table.is_meta:
            nn.init.normal_(self.suffix, std=float(table.detach().float().pow(2).mean().sqrt()))

    def forward(
        self,
        ids_T: torch.Tensor,
        segments: Segments,
        k: Sequence[int],
        *,
        is_masked_T: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Registers of B packed texts, the first k_b of each, end to end: (Σ k, D).

        Args:
            ids_T: clean token ids of all texts, without BOS and tail (or whole windows when part is masked).
            segments: where each text ends.
            k: registers wanted of each text, 1 ≤ k ≤ K. (A text that exposes none is still encoded with k = 1 by
                its caller where an engine wants every parameter in the graph.)
            is_masked_T: positions that nobody may see. They are left out of the row; what stays keeps its position,
                and EOS and r_j stand where they would stand without masking.
        """
        lengths = segments.lengths
        if len(k) != len(lengths):
            raise CrocodilError(f"k names {len(k)} texts, the batch has {len(lengths)}")
        if min(k, default=1) < 1 or max(k, default=1) > self.K:
            raise CrocodilError(f"k must be between 1 and K = {self.K}, not {min(k)}…{max(k)}")
        device = ids_T.device
        eos_row, first_suffix = len(ids_T), len(ids_T) + 1
        index, positions, packed, registers = [], [], [], []
        at = start = 0
        for n, wanted in zip(lengths, k, strict=True):
            seen = torch.arange(n)
            if is_masked_T is not None:
                seen = seen[~is_masked_T[start : start + n].cpu()]
            index += [start + seen, torch.tensor([eos_row]), first_suffix + torch.arange(wanted - 1)]
            suffix_at = n + 1 if self.suffix_from is None else self.suffix_from
            positions += [seen, torch.tensor([n]), suffix_at + torch.arange(wanted - 1)]
            packed.append(len(seen) + wanted)
            registers.append(at + len(seen) + torch.arange(wanted))
            at += packed[-1]
            start += n
        # one gather from (tokens, EOS, suffix), so every parameter stays in the graph whatever k is
        tokens = self.backbone.embed_tokens(torch.cat([ids_T, ids_T.new_tensor([self.eos_id])]))
        pool = torch.cat([tokens, self.suffix.to(tokens.dtype)])
        out = self.backbone(
            inputs_embeds=pool[torch.cat(index).to(device)][None],
            position_ids=torch.cat(positions).to(device)[None],
            segments=Segments.of(packed, device),
            use_cache=False,
        ).last_hidden_state[0]
        return self.rescale(out[torch.cat(registers).to(device)])

    @torch.no_grad()
    def grow(self, K: int) -> None:
        """Write K registers instead of fewer. The first ones stay as they are; a new suffix embedding begins as the
        mean of the old ones, because what tells registers apart is mostly where they stand.

        Raises:
            CrocodilError: K is no power of two, or not more than there are; or one register has no suffix to learn from.
        """
        if check_count(K) <= self.K or self.K == 1:
            raise CrocodilError(
                f"an encoder of {self.K} registers does not grow to {K}; give a larger power of two"
            )
        new = self.suffix.mean(dim=0, keepdim=True).expand(K - self.K, -1)
        self.suffix = nn.Parameter(torch.cat([self.suffix, new]))
        self.K = K

    def rescale(self, z: torch.Tensor) -> torch.Tensor:
        """Final hidden states (…, D) to registers."""
        if self.norm is not None:
            return self.norm(z)
        return normalise(z)

    def recompute(self) -> None:
        """Keep one activation a layer, and compute the others again in backward; in training mode only."""
        self.backbone.gradient_checkpointing_enable(dict(RECOMPUTE))

    def fingerprint(self, vocabulary: str) -> str:
        """16 hex digits over every weight and setting that registers depend on.

        Args:
            vocabulary: the fingerprint of what gives it ids.
        """
        digest = hashlib.blake2b(vocabulary.encode(), digest_size=8)
        config = self.backbone.config
        rope = [config.rope_parameters.get(key) for key in ("rope_type", "rope_theta", "factor")]
        # what changes registers and is in no weight
        digest.update(repr([rope, config.hidden_act, config.rms_norm_eps, self.suffix_from]).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @property
    def register_norm(self) -> float:
        """√D, the norm of a register."""
        return math.sqrt(self.D)


def fresh_encoder(
    rows: int,
    K: int,
    eos_id: int,
    scale: Scale = "sqrt_d",
    *,
    hidden_size: int,
    num_hidden_layers: int,
    num_attention_heads: int,
    num_key_value_heads: int,
    intermediate_size: int,
    rope_theta: float,
) -> RegisterEncoder:
    """A randomly initialised Qwen3 of these sizes over a table of `rows` ids."""
    config = Qwen3Config(
        vocab_size=rows,
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        num_key_value_heads=num_key_value_heads,
        head_dim=hidden_size // num_attention_heads,
        intermediate_size=intermediate_size,
        rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
        initializer_range=hidden_size**-0.5,  # 0.02, the default, is meant for widths near 2500
        tie_word_embeddings=True,
        bos_token_id=eos_id,
        eos_token_id=eos_id,
    )
    return RegisterEncoder(Qwen3Model(config), K, eos_id, scale)
