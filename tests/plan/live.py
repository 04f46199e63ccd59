"""What is measured against: bytes of tensors that are alive, and small networks and rows to measure on."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Qwen3Config, Qwen3Model

from crocodil.attention import Segments
from crocodil.autoencoder import Autoencoder, Batch
from crocodil.demasker.guided import GuideConfig, GuidedDemasker
from crocodil.demasker.llada import LLaDA, LLaDAConfig
from crocodil.demasker.masking import MaskedTexts
from crocodil.plan.rows import Row
from crocodil.registers.encoder import RegisterEncoder

ROWS, MASK, EOS, K = 500, 1, 2, 8


class Live(TorchDispatchMode):
    """Bytes of all storages that operators have made and that are still there, and the most there were.

    What a kernel takes and gives back by itself is not seen.
    """

    def __init__(self, resizing: bool = False) -> None:
        """
        Args:
            resizing: ask every storage for its size anew each time, because FSDP2 frees one by making it small.
        """
        super().__init__()
        self.peak = 0
        self._resizing = resizing
        self._storages: dict[int, weakref.ref[Any]] = {}
        self._sum = 0
        self._ignored: set[int] = set()

    @property
    def now(self) -> int:
        if not self._resizing:
            return self._sum
        found = (storage() for storage in list(self._storages.values()))
        return sum(storage.nbytes() for storage in found if storage is not None)

    def add(self, tensor: Tensor) -> None:
        """Count what was made before."""
        tensor = getattr(tensor, "_local_tensor", tensor)
        if tensor.device.type == "meta":
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages or key in self._ignored:
            return

        def gone(_: Any) -> None:
            del self._storages[key]
            self._sum -= size

        self._storages[key] = weakref.ref(storage, gone)
        self._sum += size

    def ignore(self, tensor: Tensor) -> None:
        """Never count it, as weights where activations are measured."""
        self._ignored.add(tensor.untyped_storage()._cdata)

    def restart(self) -> None:
        self.peak = self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        self.peak = max(self.peak, self.now)
        return out


def llada_config(width: int = 64, layers: int = 4, mlp: int = 192) -> LLaDAConfig:
    return LLaDAConfig(
        d_model=width, n_layers=layers, n_heads=4, n_kv_heads=4, mlp_hidden_size=mlp, vocab_size=ROWS,
        embedding_size=ROWS, max_sequence_length=4096, mask_token_id=MASK, eos_token_id=EOS, rope_theta=5e5,
    )  # fmt: skip


def encoder_config(width: int = 32, layers: int = 3, channels: int = 16, mlp: int = 96) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=ROWS, hidden_size=width, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
        head_dim=channels, intermediate_size=mlp, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )  # fmt: skip


def network(llada: LLaDAConfig, encoder: Qwen3Config) -> Autoencoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        registers = RegisterEncoder(Qwen3Model(encoder), K, EOS)
        demasker = GuidedDemasker(LLaDA(llada).initialise(), GuideConfig(K, registers.D)).initialise()
    return Autoencoder(registers, demasker).train()


def batch_of(lengths: Sequence[int], k: int, width: int) -> Batch:
    """Windows that their texts fill, masked all over, with k registers each and noise on them."""
    tokens = sum(lengths)
    ids = torch.randint(3, ROWS, (tokens,))
    texts = MaskedTexts(
        ids, torch.ones(tokens, dtype=torch.bool), torch.ones(len(lengths)), Segments.of(lengths), MASK
    )
    clean = [n - 2 for n in lengths]
    return Batch(
        texts,
        torch.randint(3, ROWS, (sum(clean),)),
        Segments.of(clean),
        (k,) * len(lengths),
        torch.randn(k * len(lengths), width),
    )


def row_of(lengths: Sequence[int], k: int) -> Row:
    """The same, as a plan sees it."""
    return Row(len(lengths), sum(lengths), k * len(lengths), len(lengths))
