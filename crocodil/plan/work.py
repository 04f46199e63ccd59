"""FLOPs of an optimiser step, by `metrics.cost`: what the MFU counts, and what is computed."""

from __future__ import annotations

from dataclasses import dataclass

from crocodil.metrics.cost import demasker_flops, encoder_flops
from crocodil.plan.networks import Networks
from crocodil.plan.rows import BOUNDARIES, register_counts, windows


@dataclass(frozen=True)
class Forward:
    """FLOPs of one forward."""

    demasker_maps: float = 0.0
    demasker_attention: float = 0.0
    head: float = 0.0
    encoder_maps: float = 0.0
    encoder_attention: float = 0.0

    @property
    def total(self) -> float:
        return (
            self.demasker_maps
            + self.demasker_attention
            + self.head
            + self.encoder_maps
            + self.encoder_attention
        )


def forward(of: Networks, mean_length: float | None = None) -> Forward:
    """Of all texts of a step, as expected: windows and numbers of registers are independent draws, and what a text
    costs is added up. Texts are taken to fill their windows."""
    config, llada, encoder = of.config, of.llada, of.encoder
    counts = register_counts(config.K, config.corruption.nested_dropout)
    masked = masked_share(config.corruption.masking.all_mask, config.corruption.masking.t_min)
    demasker = attention = head = register = register_attention = 0.0
    queries = encoder.num_attention_heads * encoder.head_dim
    for n, share in windows(config, mean_length):
        length = round(n)
        for k, chance in counts.items():
            texts = config.batch_size * share * chance
            prefix = k + BOUNDARIES if k else 0
            clean = length - BOUNDARIES + max(k, 1)
            pairs = 4.0 * llada.n_layers * llada.d_model * (length + prefix) ** 2
            causal = 2.0 * encoder.num_hidden_layers * queries * clean**2
            demasker += texts * (demasker_flops(llada, [length], [prefix], 0) - pairs)
            attention += texts * pairs
            head += texts * 2.0 * llada.d_model * llada.embedding_size * masked * length
            register += texts * (encoder_flops(encoder, [length - BOUNDARIES], [max(k, 1)]) - causal)
            register_attention += texts * causal
    return Forward(demasker, attention, head, register, register_attention)


def masked_share(all_mask: float, t_min: float) -> float:
    """Mean of t: 1 with probability `all_mask`, else uniform from t_min to 1."""
    return all_mask + (1 - all_mask) * (1 + t_min) / 2


def model_flops(one: Forward) -> float:
    """What MFU counts: three forwards, whatever is frozen or computed again."""
    return 3 * one.total


def computed_flops(one: Forward, llada_learns: bool, encoder_learns: bool, recompute: bool) -> float:
    """What is computed. A map costs one forward, another for the gradient of its input and, where it learns, a third;
    attention has no weights and costs two more; layers cost once more to be recomputed. The head never is."""
    again = int(recompute)
    return (
        (2 + llada_learns + again) * one.demasker_maps
        + (2 + encoder_learns + again) * one.encoder_maps
        + (3 + again) * (one.demasker_attention + one.encoder_attention)
        + (2 + llada_learns) * one.head
    )
