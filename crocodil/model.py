"""A loaded model: texts to registers and back.

Shape letters: B texts, W windows of all texts together, N window length, K registers, D register width.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from crocodil.attention import Segments
from crocodil.autoencoder import Autoencoder
from crocodil.bundle import DTYPES, open_augmented, resolve
from crocodil.cadd.demasker import AugmentedDemasker
from crocodil.cadd.latents import TokenLatents
from crocodil.demasker.unguided import UnguidedDemasker
from crocodil.denoiser.weights import Denoisers, open_denoisers
from crocodil.errors import CrocodilError
from crocodil.registers.registers import Registers
from crocodil.sampler.demask import Step, demask
from crocodil.text.vocabulary import Vocabulary
from crocodil.text.windows import split_text

if TYPE_CHECKING:
    from crocodil.synthesis import Generated

NFE = 16
ROW_TOKENS = 8192
"""Packed tokens that the encoder reads at a time, and text positions that the demasker writes at a time."""


class Model:
    """Encoder, demasker and vocabulary that belong together. `load` makes one.

    Args:
        module: with registers, or a demasker without.
        window: longest window in tokens that the model was trained with; a text, BOS and EOS must fit in it.
        own_denoisers: folders of denoisers of its registers, loaded when they are first asked for.
        given_denoisers: others, each in place of the model's own of its kind.
        latents: those that the demasker was trained with (CADD), if any.

    Attributes:
        demasker: it alone, without latents.
        augmented: the same with its latents, None where it has none.
    """

    def __init__(
        self,
        module: Autoencoder | UnguidedDemasker,
        vocabulary: Vocabulary,
        window: int,
        name: str = "model",
        own_denoisers: Sequence[Path] = (),
        given_denoisers: Sequence[Path] = (),
        latents: TokenLatents | None = None,
    ) -> None:
        module.eval().requires_grad_(False)
        self._autoencoder = module if isinstance(module, Autoencoder) else None
        self.demasker = module.demasker if isinstance(module, Autoencoder) else module
        self.augmented = None
        if latents is not None:
            self.augmented = AugmentedDemasker(self.demasker, latents).eval().requires_grad_(False)
        self.vocabulary = vocabulary
        self.window = window
        self.name = name
        self.own_denoisers, self.given_denoisers = tuple(own_denoisers), tuple(given_denoisers)

    @property
    def autoencoder(self) -> Autoencoder:
        """Encoder and demasker.

        Raises:
            CrocodilError: the model has no registers.
        """
        if self._autoencoder is None:
            raise CrocodilError(
                f"{self.name} is a demasker without registers, so it only generates; train_demasker.py makes an "
                "autoencoder of it"
            )
        return self._autoencoder

    @property
    def K(self) -> int:
        """Registers a window at most; 0 for a model without registers."""
        return self._autoencoder.encoder.K if self._autoencoder is not None else 0

    @property
    def D(self) -> int:
        """Width of a register; 0 for a model without registers."""
        return self._autoencoder.encoder.D if self._autoencoder is not None else 0

    @property
    def device(self) -> torch.device:
        return self.demasker.llada.head_weight.device

    @cached_property
    def denoisers(self) -> Denoisers:
        """What makes registers out of noise."""
        found = open_denoisers(self.given_denoisers, self.fingerprint, self.device)
        if found.unconditional is None or found.conditional is None:
            own = open_denoisers(self.own_denoisers, self.fingerprint, self.device)
            found = Denoisers(found.unconditional or own.unconditional, found.conditional or own.conditional)
        return found

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over every weight and setting of the encoder and the vocabulary: whose registers these are."""
        if self._autoencoder is None:
            return hashlib.blake2b(self.vocabulary.fingerprint.encode(), digest_size=8).hexdigest()
        return self._autoencoder.encoder.fingerprint(self.vocabulary.fingerprint)

    @torch.no_grad()
    def encode(
        self, texts: str | Sequence[str], k: int | None = None, *, truncate: bool = False, split: bool = False
    ) -> Registers:
        """Write texts into registers.

        Args:
            texts: one text or several.
            k: registers of each window, 1 … K; K if left out. Fewer are the first of more.
            truncate: cut a text that is longer than the window.
            split: encode a text that is longer than the window piece by piece.

        Returns:
            Registers (W, k, D) of norm √D.

        Raises:
            CrocodilError: not a text, lone surrogates, k out of range, or a text that does not fit.
        """
        k = self.autoencoder.encoder.K if k is None else k
        if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= self.K:
            raise CrocodilError(
                f"k must be a whole number between 1 and {self.K}, the registers of this model, not {k!r}"
            )
        if truncate and split:
            raise CrocodilError("truncate cuts a long text, split encodes all of it in pieces: choose one")
        pieces = [self._pieces(text, truncate, split) for text in _several(texts)]
        flat = [ids for text in pieces for ids in text]
        return Registers(self.encode_ids(flat, k), tuple(map(len, pieces)), self.fingerprint)

    @torch.no_grad()
    def encode_ids(self, windows: Sequence[Sequence[int]], k: int) -> torch.Tensor:
        """Registers (W, k, D), float32 on the CPU, of texts given as token ids without BOS and EOS."""
        out = torch.empty(len(windows), k, self.D)
        for row in _rows([len(ids) + k for ids in windows], ROW_TOKENS):
            ids_T = torch.tensor([i for w in row for i in windows[w]], dtype=torch.long, device=self.device)
            segments = Segments.of([len(windows[w]) for w in row], self.device)
            z = self.autoencoder.encoder(ids_T, segments, [k] * len(row))
            out[row] = z.float().cpu().unflatten(0, (len(row), k))
        return out

    @torch.no_grad()
    def encode_partial(self, ids_BN: torch.Tensor, is_masked_BN: torch.Tensor, k: int) -> torch.Tensor:
        """Registers (B, k, D), float32 on the model's device, of windows that are known in part: h(x^(r)).

        The whole window is read, tail included, so that nothing tells how long the text is; only BOS is left out, as
        in every text the encoder was trained on. EOS and the suffix stand behind the window.

        Args:
            ids_BN: windows `BOS text EOS EOS…`; what is masked may hold anything.
            is_masked_BN: positions that nobody may see.
        """
        B, N = ids_BN.shape
        z = self.autoencoder.encoder(
            ids_BN[:, 1:].flatten(),
            Segments.of([N - 1] * B, ids_BN.device),
            [k] * B,
            is_masked_T=is_masked_BN[:, 1:].flatten(),
        )
        return z.float().unflatten(0, (B, k))

    @torch.no_grad()
    def decode(
        self,
        registers: Registers,
        *,
        nfe: int = NFE,
        block_size: int | None = None,
        length: int | None = None,
        temperature: float = 0.0,
        remasking: str = "low_confidence",
        renoise: bool = False,
        seed: int = 0,
        on_step: Callable[[Step], None] | None = None,
    ) -> list[str]:
        """Write registers back into text (Alg. 6).

        Args:
            registers: of this model's encoder, with any number k ≤ K of registers.
            nfe: demasker evaluations for each window, over all its blocks.
            block_size: positions written before the next block begins; the whole window if left out.
            length: positions of a window, N; the model's window if left out. Text ends at the first EOS.
            temperature: 0 takes the likeliest token, more draws.
            remasking: `low_confidence` reveals the surest tokens first, `random` any.
            renoise: mask the whole estimate anew at every step, as Alg. 6 is printed.
            seed: of the draws. A window's stream depends on it and on the window's place in its text alone, so a text
                comes out the same whatever it is decoded with.
            on_step: called after every step of every batch of windows.

        Raises:
            CrocodilError: registers of another encoder, NaN, or arguments out of range; before anything is computed.
        """
        values = self._check(registers)
        length = self.resolve_length(length)
        if not isinstance(temperature, int | float) or not 0 <= temperature < math.inf:
            raise CrocodilError(f"temperature = {temperature!r}: it must be 0 or a positive number")
        for name, value in {
            "nfe": nfe,
            "seed": seed,
            "block_size": length if block_size is None else block_size,
        }.items():
            if not isinstance(value, int) or isinstance(value, bool):
                raise CrocodilError(f"{name} must be a whole number, not {value!r}")
        rows_V = self.vocabulary.size
        places = [place for windows in registers.windows for place in range(windows)]
        pieces: list[str] = []
        size = self.texts_per_batch(length)
        for start in range(0, len(values), size):
            z_BKD = values[start : start + size].to(self.device)
            # spare rows of a padded table stand for nothing, so they are never predicted
            predict = lambda ids, rows, z=z_BKD: self.demasker.logits(ids, rows, z)[:, :rows_V]  # noqa: E731
            result = demask(
                predict,
                torch.full((len(z_BKD), length), self.vocabulary.mask_id, device=self.device),
                self.vocabulary.mask_id,
                nfe=nfe,
                block_size=block_size,
                temperature=temperature,
                remasking=remasking,  # type: ignore[arg-type]
                renoise=renoise,
                generator=[
                    torch.Generator().manual_seed((seed * 1_000_003 + place) % 2**63)
                    for place in places[start : start + len(z_BKD)]
                ],
                on_step=on_step,
            )
            pieces += [self.vocabulary.decode(ids) for ids in result.ids.tolist()]
        texts, at = [], 0
        for windows in registers.windows:
            texts.append("".join(pieces[at : at + windows]))
            at += windows
        return texts

    def autoencode(
        self, texts: str | Sequence[str], k: int | None = None, *, truncate: bool = False, **decoding: object
    ) -> list[str]:
        """Encode and decode; a text longer than the window goes piece by piece, or is cut with `truncate`."""
        return self.decode(self.encode(texts, k, truncate=truncate, split=not truncate), **decoding)  # type: ignore[arg-type]

    def interpolate(
        self,
        a: str,
        b: str,
        alphas: Iterable[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
        k: int | None = None,
        *,
        truncate: bool = False,
        split: bool = False,
        **decoding: object,
    ) -> list[str]:
        """Texts on the way from a to b: registers mixed, renormalised, decoded (App. D, Fig. 8).

        Long texts as in `encode`; with `split`, both must take as many windows.
        """
        if not isinstance(a, str) or not isinstance(b, str):
            raise CrocodilError("interpolate goes from one text to another: give two strings")
        try:
            steps = [float(alpha) for alpha in alphas]
        except (TypeError, ValueError):
            raise CrocodilError(f"alphas must be several numbers, as (0, 0.5, 1), not {alphas!r}") from None
        first, second = (self.encode(text, k, truncate=truncate, split=split) for text in (a, b))
        return [self.decode(first.mix(second, alpha), **decoding)[0] for alpha in steps]  # type: ignore[arg-type]

    def generate(self, n: int = 1, **options: Any) -> list[Generated]:
        """New texts out of noise (Alg. 2, 3); see `crocodil.synthesis.generate`."""
        from crocodil.synthesis import generate

        return generate(self, n, **options)

    def vary(self, text: str, strength: float = 0.5, n: int = 1, **options: Any) -> list[Generated]:
        """Texts near a given one; see `crocodil.synthesis.vary`."""
        from crocodil.synthesis import vary

        return vary(self, text, strength, n, **options)

    def resolve_length(self, length: int | None) -> int:
        """Positions of a window, the model's if left out.

        Raises:
            CrocodilError: more than the demasker can hold, or no whole number.
        """
        longest = self.demasker.llada.config.max_sequence_length
        length = self.window if length is None else length
        if not isinstance(length, int) or isinstance(length, bool) or not 1 <= length <= longest:
            raise CrocodilError(f"length must be a whole number between 1 and {longest}, not {length!r}")
        return length

    def texts_per_batch(self, length: int) -> int:
        """Windows of `length` positions that the demasker writes at a time."""
        return max(1, ROW_TOKENS // length)

    def _pieces(self, text: str, truncate: bool, split: bool) -> list[list[int]]:
        """Ids of the windows of one text."""
        if split:
            return split_text(text, self.vocabulary, self.window)
        fits = self.window - 2
        ids = self.vocabulary.encode(text, limit=fits + 1)
        if len(ids) > fits and not truncate:
            raise CrocodilError(
                f"a text of {len(text):,} characters is longer than the window of {self.window} tokens ({fits} of text); "
                "pass truncate=True to cut it or split=True to encode it in pieces"
            )
        return [ids[:fits]]

    def _check(self, registers: Registers) -> torch.Tensor:
        if not isinstance(registers, Registers):
            raise CrocodilError(
                f"decode wants Registers, as encode gives them, not {type(registers).__name__}"
            )
        if registers.encoder != self.fingerprint:
            raise CrocodilError(
                f"these registers were written by another encoder ({registers.encoder}) than this model's "
                f"({self.fingerprint}); decode them with the model that encoded them"
            )
        if registers.D != self.D:
            raise CrocodilError(f"registers have width {registers.D}, this model's are {self.D} wide")
        if not 1 <= registers.k <= self.K:
            raise CrocodilError(f"registers have k = {registers.k}, this model takes 1 to {self.K}")
        return registers.values_WKD.float()


def load(
    path_or_repo: str | Path = "bundled",
    device: str | torch.device | None = None,
    denoisers: Sequence[str | Path] = (),
    adapters: str | Path | None = None,
    dtype: str | None = None,
) -> Model:
    """Load a model: `bundled` (the nano model that comes with the package), a folder, or a hub id.

    A demasker without registers, an export of train_base.py or train_cadd.py or a LLaDA checkpoint with its tokenizer, is
    a model too: it generates, and neither encodes nor decodes.

    Args:
        path_or_repo: `bundled/cadd` is the bundled demasker with latents; a hub id may name a branch, a tag or a commit:
            `org/name@REVISION`.
        device: a GPU where there is one, if left out.
        denoisers: exports of train_denoiser.py, each in place of the one of its kind in the model's own `denoiser/`.
        adapters: a folder or hub id of LoRA adapters that were trained on this model; they are merged into it.
        dtype: of the weights in memory, `float32` (if left out), `bfloat16` or `float16`. Registers are float32 with
            any, and the fingerprint is that of the weights on disk.

    Raises:
        CrocodilError: the model is missing, damaged, or its parts do not belong together.
    """
    if not isinstance(path_or_repo, str | Path):
        raise CrocodilError(f"a model is a name or a folder, not {path_or_repo!r}")
    if adapters is not None and not isinstance(adapters, str | Path):
        raise CrocodilError(f"adapters are one name or folder, not {adapters!r}")
    if dtype is not None and dtype not in DTYPES:
        raise CrocodilError(f"dtype = {dtype!r}: it is one of {', '.join(DTYPES)}")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise CrocodilError(
            f"no device {device!r} here ({str(error).splitlines()[0]}); leave it out"
        ) from None
    if isinstance(denoisers, str | Path):
        raise CrocodilError(f"denoisers is a list of folders, as [{str(denoisers)!r}], not one name")
    wanted = DTYPES[dtype or "float32"]
    if adapters is None:
        folder = resolve(path_or_repo)
        opened = open_augmented(folder, wanted, device)
        vocabulary, window, latents = opened.vocabulary, opened.window, opened.demasker.latents
        module: Autoencoder | UnguidedDemasker
        if opened.autoencoder is not None:
            module = opened.autoencoder
        else:
            assert isinstance(opened.demasker.host, UnguidedDemasker)
            module = opened.demasker.host
    else:
        from crocodil.adapters import load_adapted

        module, vocabulary, found = load_adapted(adapters, path_or_repo, device=device, dtype=wanted)
        # another encoder than the base's, so the base's denoisers are none of its own
        folder, window, latents = found.folder, found.index.window, None
    own, given = sorted((folder / "denoiser").glob("[!.]*/")), [Path(name) for name in denoisers]
    model = Model(module, vocabulary, window, str(path_or_repo), own, given, latents)
    if wanted != torch.float32 and isinstance(module, Autoencoder):
        _ = model.fingerprint  # before the encoder is rounded: registers are whose they were
        for parameter in module.encoder.parameters():  # and not its rotary angles
            parameter.data = parameter.data.to(wanted)
    return model


def _several(texts: str | Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, bytes) or not isinstance(texts, Iterable):
        raise CrocodilError(f"texts must be a string or a list of strings, not {type(texts).__name__}")
    return list(texts)


def _rows(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Texts of like length together, at most `capacity` tokens a row (more only where one text alone has more)."""
    rows: list[list[int]] = []
    room = 0
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if not rows or lengths[index] > room:
            rows.append([])
            room = capacity
        rows[-1].append(index)
        room -= lengths[index]
    return rows
