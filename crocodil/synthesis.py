"""Corridor 2: noise → registers → guided demasker → text (CRoCoDiL Alg. 2 and 3), as one schedule of refreshes.

Beside them, or instead of them, a latent at every masked token can guide (CADD Alg. 2).

The demasker writes a text step by step under registers z. A method says where the first z comes from and after which
fractions of the steps a new z is drawn, by the conditional denoiser, which looks at what has been written so far.

Shape letters: B texts, N window length, K registers, k of them in use, D register width.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor

from crocodil.cadd.sampler import Guess, LatentSpace, Reveal, sample
from crocodil.canvas import Canvas, Template, lay_out
from crocodil.clock import Clock
from crocodil.denoiser.schedule import add_noise, signal, times
from crocodil.denoiser.weights import TrainedDenoiser
from crocodil.errors import CrocodilError, require_number, require_whole
from crocodil.registers.geometry import normalise
from crocodil.sampler.ddim import ddim
from crocodil.sampler.demask import Step, check, demask

if TYPE_CHECKING:
    from crocodil.model import Model

NFE = 64
MOST_GUIDANCE = 1000
"""Far beyond any use; the prediction is nothing but the difference of two by then."""
K_IN_USE = 8
"""Registers that guide a synthesis unless told otherwise, as in the paper's experiments (App. G)."""
MOST_DRAWS = 1000
LATENT_STEPS, REFRESH_STEPS = 128, 32
"""DDIM steps from noise without and with a condition (App. E)."""


@dataclass(frozen=True)
class Method:
    """Where registers come from, and when they are drawn anew."""

    guided: bool = True
    """False is the unguided demasker."""
    refresh: tuple[float, ...] = ()
    """Fractions of the demasking steps after which registers are drawn anew, given the text so far."""
    every_step: bool = False
    """A refresh after every step, and a first draw from the conditional denoiser, as Alg. 3 is printed."""
    draws: int = 0
    """Chains of token latents, 0 for none."""
    remasking: str = "low_confidence"


METHODS = {
    "mdm": Method(guided=False),
    "conthendisc": Method(),
    "conwithindisc": Method(refresh=(0.5,)),
    "alg3": Method(every_step=True),
    "cadd": Method(guided=False, draws=1, remasking="ancestral"),
}


@dataclass(frozen=True, eq=False)
class Generated:
    """One text, and what it took. The three counts answer different questions and are never added."""

    text: str
    seed: int
    nfe: int
    """Demasker evaluations until the text was complete."""
    nfe_paper: float
    """The same, plus latent steps by the ratio of parameters, as the paper counts."""
    nfe_wall: float
    """The same, plus the time for registers in units of the measured time of a demasker evaluation."""
    seconds: float
    """Wall time of the batch that it was written in."""
    registers_kD: Tensor | None
    """The registers that guided it last, None for `mdm`."""


@dataclass(frozen=True)
class _Settings:
    method: Method
    nfe: int
    k: int
    latent_steps: int
    refresh_steps: int
    guidance: float
    block_size: int | None
    temperature: float
    remasking: str
    renoise: bool
    draws: int
    estimate: str
    stochastic: bool
    corrector: float

    @property
    def chained(self) -> bool:
        """Whether the sampler is CADD's chain (`cadd.sampler`), which masked diffusion without latents has too."""
        return is_chained(self.draws, self.corrector, self.remasking)


def generate(
    model: Model,
    n: int = 1,
    *,
    method: str = "conwithindisc",
    nfe: int = NFE,
    length: int | None = None,
    min_length: int = 0,
    prompt: str | None = None,
    template: Template | None = None,
    k: int | None = None,
    refresh: Sequence[float] | None = None,
    latent_steps: int = LATENT_STEPS,
    refresh_steps: int = REFRESH_STEPS,
    guidance: float = 1.0,
    block_size: int | None = None,
    temperature: float = 1.0,
    remasking: str | None = None,
    renoise: bool = False,
    draws: int | None = None,
    estimate: str = "hard",
    stochastic: bool = True,
    corrector: float = 0.0,
    seed: int = 0,
    on_step: Callable[[Step], None] | None = None,
) -> list[Generated]:
    """Write n new texts.

    Args:
        method: `mdm` (no registers), `conthendisc` (Alg. 2), `conwithindisc` (Alg. 3 as its experiments were run: a
            refresh midway), `alg3` (as it is printed: a conditional start and a refresh after every step), `cadd` (no
            registers, a latent at every masked token).
        nfe: demasking steps of a text at most; one that reaches its end earlier takes fewer. Each costs one evaluation,
            with latents one for each draw.
        length: positions of a window, N; the model's window if left out.
        min_length: positions in which no text ends. With as many as `length`, every text fills its window.
        prompt: how the text begins.
        template: instead, given texts with numbers of tokens to write between them; the text ends with its last part.
        k: registers to use, the first ones; 8 if left out, as the paper, or all that the denoiser makes.
        refresh: fractions of the steps after which registers are drawn anew, instead of the method's.
        latent_steps: DDIM steps of a draw without a condition.
        refresh_steps: DDIM steps of a draw under the text so far.
        guidance: w of u + w (c − u), u the prediction without and c with the condition. 1 is the condition alone.
        block_size, temperature, remasking, renoise: see `sampler.demask`. At temperature 0 all texts of `mdm` are one.
            `ancestral` (as `cadd` does if left out) and `entropy` are CADD's, see `cadd.sampler`; with them, `nfe` may be
            more than there are positions, and there are no blocks.
        draws: chains of latents for each text, of a model that was trained with latents (train_cadd.py): 1 if left out,
            none for other models. 0 leaves the latents out, which such a model has not learned; with registers, both
            guide.
        estimate: what latents move towards: `hard` or `soft` (CADD Eq. 21), or the latent of a `drawn` token.
        stochastic: draw latents from their posterior, or move them straight.
        corrector: share of a step that is gone too far and taken back (`cadd.sampler`).
        seed: text i of the n is that of seed + i, whatever else is in its batch.
        on_step: called after every demasking step of every batch.

    Raises:
        CrocodilError: arguments out of range, or a denoiser that the model lacks; before anything is computed.
    """
    for name, value in {
        "n": n,
        "nfe": nfe,
        "latent_steps": latent_steps,
        "refresh_steps": refresh_steps,
    }.items():
        require_whole(name, value, 1)
    require_whole("seed", seed)
    require_number("guidance", guidance, 0, MOST_GUIDANCE)
    if block_size is not None:
        require_whole("block_size", block_size, 1)
    require_number("temperature", temperature, 0)
    chosen = find_method(method, refresh)
    require_whole("min_length", min_length, 0)
    canvas = lay_out(model.vocabulary, model.resolve_length(length), prompt, template, min_length)
    if draws is None:
        draws = usual_draws(model, method, chosen)
    require_whole("draws", draws, 0)
    if draws > MOST_DRAWS:
        raise CrocodilError(f"draws is {draws:,}; give at most {MOST_DRAWS:,}")
    require_number("corrector", corrector, 0)
    settings = _Settings(
        chosen, nfe, 0, latent_steps, refresh_steps,
        float(guidance), block_size, float(temperature), remasking or chosen.remasking, renoise,
        draws, estimate, stochastic, float(corrector),
    )  # fmt: skip
    steps = count_steps(nfe, canvas.slots, settings.chained)
    first, used = _denoisers(model, chosen, canvas, steps, guidance)
    settings = replace(settings, nfe=steps, k=_registers_in_use(model, k, used, method))
    _check_chain(model, settings)
    if guidance != 1 and len({_made(trained, settings.k) for trained in used}) > 1:
        raise CrocodilError(
            "guidance compares the predictions of two denoisers, and these make different numbers of registers: "
            "leave out guidance, or train both for as many"
        )
    if not settings.chained:
        check(
            torch.tensor([canvas.slots]),
            model.vocabulary.mask_id,
            settings.nfe,
            block_size,
            temperature,
            settings.remasking,
        )

    def draw(seeds: Sequence[int], x_BN: Tensor) -> tuple[Tensor, float]:
        assert first is not None
        noise_BkD = _noise(seeds, "registers", _made(first, settings.k), model.D)
        return _draw(model, first, noise_BkD, settings, x_BN, x_BN == model.vocabulary.mask_id)

    seeds = range(seed, seed + n)
    return _write_all(model, seeds, None if first is None else draw, settings, canvas, on_step)


def vary(
    model: Model,
    text: str,
    strength: float = 0.5,
    n: int = 1,
    *,
    nfe: int = NFE,
    k: int | None = None,
    latent_steps: int = LATENT_STEPS,
    temperature: float = 0.0,
    truncate: bool = False,
    seed: int = 0,
    on_step: Callable[[Step], None] | None = None,
) -> list[Generated]:
    """Write n texts near a given one: its registers are noised to level s = strength, denoised, and decoded.

    Args:
        strength: 0 gives the text back as the autoencoder does, 1 keeps nothing of it.
        k: registers to use; all that the unconditional denoiser makes if left out.
        latent_steps: DDIM steps from s = 1; a smaller strength takes its share of them.
        temperature, nfe, seed, on_step: see `generate`.

    Raises:
        CrocodilError: no text, one that does not fit, a strength outside 0…1, or no unconditional denoiser.
    """
    for name, value in {"n": n, "nfe": nfe, "latent_steps": latent_steps}.items():
        require_whole(name, value, 1)
    require_whole("seed", seed)
    require_number("temperature", temperature, 0)
    require_number("strength", strength, 0)
    if strength > 1:
        raise CrocodilError(
            f"strength = {strength}: give a noise level from 0 (the text itself) to 1 (nothing of it)"
        )
    if not isinstance(text, str):
        raise CrocodilError(f"vary takes one text, not {type(text).__name__}")
    trained = model.denoisers.unconditional
    if trained is None:
        raise _lacks(model, "unconditional")
    k = trained.config.K if k is None else k
    settings = _Settings(
        METHODS["conthendisc"], min(nfe, model.window), _registers_in_use(model, k, [trained], "vary"),
        max(1, math.ceil(latent_steps * strength)), 1, 1.0, None, float(temperature), "low_confidence", False,
        0, "hard", True, 0.0,
    )  # fmt: skip
    made = _made(trained, settings.k)
    encoded_kD = model.encode(text, made, truncate=truncate).values_WKD[0]

    def draw(seeds: Sequence[int], x_BN: Tensor) -> tuple[Tensor, float]:
        z_BkD = encoded_kD.expand(len(seeds), -1, -1)
        if strength == 0:
            return z_BkD[:, : settings.k], 0.0
        s_Bk = times(torch.full((len(seeds),), float(strength)), trained.offsets_K[:made])
        noisy_BkD = add_noise(z_BkD, s_Bk, _noise(seeds, "registers", made, model.D))
        return _draw(model, trained, noisy_BkD, settings, start=float(strength))

    canvas = lay_out(model.vocabulary, model.window)
    return _write_all(model, range(seed, seed + n), draw, settings, canvas, on_step)


def _write_all(
    model: Model,
    seeds: Sequence[int],
    draw: Callable[[Sequence[int], Tensor], tuple[Tensor, float]] | None,
    settings: _Settings,
    canvas: Canvas,
    on_step: Callable[[Step], None] | None,
) -> list[Generated]:
    """Write a text for each seed, batch by batch.

    Args:
        draw: the first registers (B, k, D) of these seeds on these windows (B, N), and their price in demasker
            evaluations by parameters; None without registers.
    """
    out: list[Generated] = []
    size = model.texts_per_batch(canvas.length)
    for start in range(0, len(seeds), size):
        batch = seeds[start : start + size]
        x_BN = canvas.ids_N.to(model.device).repeat(len(batch), 1)
        clock = Clock(model.device)
        z_BkD, cost = None, 0.0
        if draw is not None:
            with clock.latent():
                z_BkD, cost = draw(batch, x_BN)
        out += _write(model, batch, x_BN, z_BkD, cost, settings, canvas, clock, on_step)
    return out


def _write(
    model: Model,
    seeds: Sequence[int],
    x_BN: Tensor,
    z_BkD: Tensor | None,
    cost: float,
    settings: _Settings,
    canvas: Canvas,
    clock: Clock,
    on_step: Callable[[Step], None] | None,
) -> list[Generated]:
    """Demask a batch under registers that are drawn anew where the method says so.

    Args:
        cost: of the first registers, in demasker evaluations by the ratio of parameters.
    """
    vocabulary, rows_V = model.vocabulary, model.vocabulary.size
    refresh_at = refreshes(settings.method, settings.nfe)
    costs_B = torch.full((len(seeds),), cost, dtype=torch.float64)
    z_BkD = None if z_BkD is None else z_BkD.to(model.device)

    def predict(ids_BN: Tensor, rows_BN: Tensor, latents_BNE: Tensor | None = None, t: float = 1.0) -> Tensor:
        with clock.evaluation():
            if latents_BNE is None:
                logits_RV = model.demasker.logits(ids_BN, rows_BN, z_BkD)
            else:
                assert model.augmented is not None
                logits_RV = model.augmented.logits(ids_BN, rows_BN, z_BkD, latents_BNE, t)
        # spare rows of a padded table stand for nothing, so they are never predicted
        logits_RV = logits_RV[:, :rows_V]
        inside_R = rows_BN.nonzero()[:, 1] < canvas.no_end_before
        logits_RV[inside_R, vocabulary.eos_id] = -math.inf
        return logits_RV

    def refresh(step: Step) -> None:
        nonlocal z_BkD
        if on_step is not None:
            on_step(step)
        # with renoise, what is written may be masked again
        alive_B = step.is_masked_BN.any(dim=1) | (settings.renoise or settings.corrector > 0)
        if step.number not in refresh_at or not bool(alive_B.any()):
            return
        conditional = model.denoisers.conditional
        assert conditional is not None and z_BkD is not None
        noise_BkD = _noise(seeds, f"refresh {step.number}", _made(conditional, settings.k), model.D)
        with clock.latent():
            drawn_BkD, more = _draw(model, conditional, noise_BkD, settings, step.ids_BN, step.is_masked_BN)
        # a text that is complete keeps what it was written under, as if it were alone
        z_BkD = torch.where(alive_B[:, None, None], drawn_BkD, z_BkD)
        costs_B[alive_B.cpu()] += more

    generators = [_stream(seed, "demasking") for seed in seeds]
    if settings.chained:
        result = sample(
            predict,
            x_BN,
            vocabulary.mask_id,
            steps=settings.nfe,
            generators=generators,
            latents=_latents(model, settings),
            reveal=settings.remasking,  # type: ignore[arg-type]
            temperature=settings.temperature,
            corrector=settings.corrector,
            on_step=refresh,
        )
    else:
        result = demask(
            predict,
            x_BN,
            vocabulary.mask_id,
            nfe=settings.nfe,
            block_size=settings.block_size,
            temperature=settings.temperature,
            remasking=settings.remasking,  # type: ignore[arg-type]
            renoise=settings.renoise,
            eos_id=None if settings.renoise else vocabulary.eos_id,
            generator=generators,
            on_step=refresh,
        )
    nfe_B = ((result.steps.amax(dim=1) + 1) * max(1, settings.draws)).tolist()
    seconds, latent = clock.seconds, clock.latent_seconds / clock.per_evaluation
    return [
        Generated(
            vocabulary.decode(ids), seed, nfe, nfe + paper, nfe + latent, seconds,
            None if z_BkD is None else z_BkD[row].float().cpu(),
        )
        for row, (seed, ids, nfe, paper) in enumerate(
            zip(seeds, result.ids.tolist(), nfe_B, costs_B.tolist(), strict=True)
        )
    ]  # fmt: skip


def _latents(model: Model, settings: _Settings) -> LatentSpace | None:
    """What the chain has to know of the model's latents; None where they are left out."""
    if settings.draws == 0 or model.augmented is None or model.augmented.latents is None:
        return None
    return LatentSpace(
        model.augmented.clean_table(),
        model.augmented.latents.config.schedule,
        settings.draws,
        settings.estimate,  # type: ignore[arg-type]
        settings.stochastic,
    )


def usual_draws(model: Model, method: str, chosen: Method) -> int:
    """A demasker that was trained with latents is shown them, and one that was not has none."""
    if chosen.draws or model.augmented is None:
        return chosen.draws
    if method == "mdm":
        raise CrocodilError(
            f"{model.name} was trained with token latents, and mdm shows it none: take cadd, the baseline bundled/mdm, "
            "or draws=0 to see what it writes without"
        )
    return 1


def _check_chain(model: Model, settings: _Settings) -> None:
    """Refuse what CADD's sampler, or a model without latents, cannot do."""
    if settings.draws and model.augmented is None:
        raise CrocodilError(
            f"{model.name} was not trained with token latents, which cadd and draws ask for: train one with "
            "recipes/train_cadd.py, or take bundled/cadd"
        )
    if settings.estimate not in get_args(Guess):
        raise CrocodilError(f"estimate = {settings.estimate!r}: choose one of {', '.join(get_args(Guess))}")
    if not settings.chained:
        return
    if settings.remasking not in get_args(Reveal):
        raise CrocodilError(
            f"remasking = {settings.remasking!r}: choose one of {', '.join(get_args(Reveal))}"
        )
    if settings.block_size is not None or settings.renoise:
        raise CrocodilError(
            "block_size and renoise belong to LLaDA's sampler: leave them out with latents, a corrector, or remasking "
            "that is ancestral or by entropy"
        )


def _draw(
    model: Model,
    trained: TrainedDenoiser,
    noisy_BkD: Tensor,
    settings: _Settings,
    ids_BN: Tensor | None = None,
    is_masked_BN: Tensor | None = None,
    start: float = 1.0,
) -> tuple[Tensor, float]:
    """Registers (B, k, D) of norm √D out of noise, and their price in demasker evaluations by parameters."""
    made = noisy_BkD.shape[1]
    steps, paid = settings.latent_steps, trained.parameters
    denoise: Callable[[Tensor, Tensor], Tensor] = trained.denoiser
    if trained.config.conditional:
        assert ids_BN is not None and is_masked_BN is not None
        condition_BkD = model.encode_partial(ids_BN, is_masked_BN, made)
        steps, w, other = settings.refresh_steps, settings.guidance, model.denoisers.unconditional
        if w == 1:
            denoise = lambda z, s: trained.denoiser(z, s, condition_BkD)  # noqa: E731
        else:
            assert other is not None
            paid += other.parameters

            def denoise(z: Tensor, s: Tensor) -> Tensor:
                u = other.denoiser(z, s)
                return u + w * (trained.denoiser(z, s, condition_BkD) - u)

    offsets_k = trained.offsets_K[:made]
    noisy_BkD = noisy_BkD.to(model.device)
    registers_BkD = ddim(denoise, noisy_BkD, signal, offsets_k, steps=steps, start=start).registers_BKD
    if not bool(registers_BkD.isfinite().all()):
        raise CrocodilError(
            "the denoiser gave registers that are infinite or not a number: check its weights"
        )
    ratio = paid / sum(p.numel() for p in model.demasker.llada.parameters())
    return normalise(registers_BkD)[:, : settings.k], steps * ratio


def find_method(name: str, refresh: Sequence[float] | None = None) -> Method:
    """A method by its name, with other refreshes where they are given.

    Raises:
        CrocodilError: no such method, fractions outside 0…1, or a method that has no refreshes to choose.
    """
    name = name.lower() if isinstance(name, str) else repr(name)
    if name not in METHODS:
        raise CrocodilError(f"no method {name!r}: choose one of {', '.join(METHODS)}")
    method = METHODS[name]
    if refresh is None:
        return method
    if not method.guided or method.every_step:
        raise CrocodilError(f"refresh belongs to conthendisc and conwithindisc; {name} has none to choose")
    try:
        fractions = tuple(sorted({float(alpha) for alpha in refresh}))
    except (TypeError, ValueError, OverflowError):
        raise CrocodilError(f"refresh must be several fractions, as (0.25, 0.5), not {refresh!r}") from None
    if fractions and not (0 <= fractions[0] and fractions[-1] < 1):
        raise CrocodilError(
            f"refresh after fractions from 0 (none) to below 1 of the steps, not {list(fractions)}"
        )
    # no step is done at fraction 0, so there is nothing to look at: the paper's @0 is no refresh
    return Method(refresh=tuple(alpha for alpha in fractions if alpha > 0))


def is_chained(draws: int, corrector: float, remasking: str | None) -> bool:
    """Whether these ask for CADD's chain; LLaDA's sampler has none of them."""
    return draws > 0 or corrector > 0 or remasking in ("ancestral", "entropy")


def count_steps(nfe: int, slots: int, chained: bool) -> int:
    """Steps that will be taken: CADD's chain takes as many as it is told to, LLaDA's sampler at most one for each
    position to be written."""
    return nfe if chained else min(nfe, slots)


def refreshes(method: Method, nfe: int) -> set[int]:
    """Numbers of steps done after which registers are drawn anew; never after the last."""
    if method.every_step:
        return set(range(1, nfe))
    return {min(max(round(alpha * nfe), 1), nfe - 1) for alpha in method.refresh} - {0}


def _denoisers(
    model: Model, method: Method, canvas: Canvas, nfe: int, guidance: float
) -> tuple[TrainedDenoiser | None, list[TrainedDenoiser]]:
    """Whose the first registers are, and all that will be asked; given tokens want the one that looks at them
    (Alg. 3, App. H).

    Raises:
        CrocodilError: one that the model lacks.
    """
    if not method.guided:
        return None, []
    first = "conditional" if method.every_step or canvas.last_given >= 0 else "unconditional"
    kinds = {first} | ({"conditional"} if refreshes(method, nfe) else set())
    if guidance != 1 and "conditional" in kinds:
        kinds.add("unconditional")
    found: dict[str, TrainedDenoiser] = {}
    for kind in sorted(kinds):
        trained = getattr(model.denoisers, kind)
        if trained is None:
            raise _lacks(model, kind)
        found[kind] = trained
    return found[first], list(found.values())


def _lacks(model: Model, kind: str) -> CrocodilError:
    return CrocodilError(
        f"{model.name} has no {kind} denoiser: train one with recipes/train_denoiser.py and name its export, as "
        'crocodil.load(model, denoisers=["runs/denoiser/export"]) or --denoiser runs/denoiser/export'
    )


def _registers_in_use(model: Model, k: int | None, used: Sequence[TrainedDenoiser], method: str) -> int:
    """Registers that the demasker sees, at most those that the denoisers make."""
    most = min((trained.config.K for trained in used), default=model.K)
    if k is None:
        return min(K_IN_USE, most)
    if not used:
        raise CrocodilError(f"{method} uses no registers: leave out k, or choose another method")
    require_whole("k", k, 1)
    if k > most:
        raise CrocodilError(
            f"k must be at most {most}, the registers that the denoisers in use make, not {k}"
        )
    return k


def _made(trained: TrainedDenoiser, k: int) -> int:
    """Registers that have to be made to use k."""
    return k if trained.any_k else trained.config.K


def _noise(seeds: Sequence[int], purpose: str, k: int, D: int) -> Tensor:
    """(B, k, D) normal numbers, each text's from its own seed."""
    return torch.stack([torch.randn(k, D, generator=_stream(seed, purpose)) for seed in seeds])


def _stream(seed: int, purpose: str) -> torch.Generator:
    """A generator for one purpose of one text, whatever batch the text is in."""
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
