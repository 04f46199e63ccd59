"""Texts out of noise: seeds, refreshes, given tokens, counts; with oracles where a denoiser should know the answer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import crocodil.model
from crocodil import CrocodilError
from crocodil.canvas import lay_out
from crocodil.denoiser.dit import Denoiser, DenoiserConfig
from crocodil.denoiser.weights import Denoisers, TrainedDenoiser
from crocodil.model import Model, load
from crocodil.sampler.demask import Step
from crocodil.synthesis import METHODS, Generated, Method, refreshes

FEW = {"nfe": 4, "latent_steps": 3, "refresh_steps": 2, "k": 2}


def trained(model: Model, conditional: bool, seed: int = 0, K: int = 4) -> TrainedDenoiser:
    """A denoiser of random weights, its output and cross-attention open."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = DenoiserConfig(K=K, D=model.D, width=16, layers=1, heads=2, conditional=conditional)
        denoiser = Denoiser(config)
        for name, parameter in denoiser.named_parameters():
            if name.startswith("write") or "cross_out" in name:
                nn.init.normal_(parameter)
    return TrainedDenoiser(denoiser.eval().requires_grad_(False), model.fingerprint, 0.2)


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Model:
    model = load(tiny_bundle, "cpu")
    model.__dict__["denoisers"] = Denoisers(trained(model, False), trained(model, True))
    return model


def with_denoisers(model: Model, denoisers: Denoisers) -> Model:
    other = Model(model.autoencoder, model.vocabulary, model.window, "other")
    other.__dict__["denoisers"] = denoisers
    return other


class Knows(nn.Module):
    """A denoiser that always predicts the same registers."""

    def __init__(self, z_KD: Tensor, conditional: bool = False) -> None:
        super().__init__()
        self.z_KD = z_KD
        K, D = z_KD.shape
        self.config = DenoiserConfig(K=K, D=D, width=8, layers=1, heads=1, conditional=conditional)
        self.parameters_in_all = 1
        self.conditions: list[Tensor] = []

    def forward(self, z_BKD: Tensor, s_BK: Tensor, condition_BMD: Tensor | None = None) -> Tensor:
        if condition_BMD is not None:
            self.conditions.append(condition_BMD)
        return self.z_KD.expand(len(z_BKD), -1, -1)


def texts(made: list[Generated]) -> list[str]:
    return [one.text for one in made]


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if not method.draws])
def test_a_seed_gives_its_text_whatever_batch_it_is_in(
    method: str, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**FEW, "method": method} | ({} if METHODS[method].guided else {"k": None})
    together = model.generate(5, seed=3, **options)
    assert [one.seed for one in together] == [3, 4, 5, 6, 7]
    assert len(set(texts(together))) > 1
    assert texts(together) == [model.generate(seed=seed, **options)[0].text for seed in range(3, 8)]
    for one in together:
        alone = model.generate(seed=one.seed, **options)[0]
        assert (one.nfe, one.nfe_paper) == (alone.nfe, alone.nfe_paper)
        if one.registers_kD is not None:
            assert torch.allclose(one.registers_kD, alone.registers_kD, atol=1e-4)
    monkeypatch.setattr(crocodil.model, "ROW_TOKENS", 64)
    assert texts(model.generate(5, seed=3, **options)) == texts(together)


def test_registers_known_by_an_oracle_are_what_is_decoded(model: Model) -> None:
    registers = model.encode("def area(side):\n")
    oracle = TrainedDenoiser(Knows(registers.values_WKD[0]), model.fingerprint, 0.2)  # type: ignore[arg-type]
    knowing = with_denoisers(model, Denoisers(unconditional=oracle))
    for k in (1, 4):
        made = knowing.generate(2, method="conthendisc", nfe=8, k=k, temperature=0.0, latent_steps=5)
        assert texts(made) == model.decode(registers.first(k), nfe=8) * 2
        assert torch.allclose(made[0].registers_kD, registers.values_WKD[0, :k], atol=1e-4)


def test_a_refresh_looks_at_what_has_been_written(model: Model) -> None:
    """The second half of the steps is written under the refreshed registers, drawn given the text so far."""
    first, second = (model.encode(text).values_WKD[0] for text in ("x = 1\n", "for number in range(10):"))
    knows = Knows(second, conditional=True)
    denoisers = Denoisers(
        TrainedDenoiser(Knows(first), model.fingerprint, 0.2),  # type: ignore[arg-type]
        TrainedDenoiser(knows, model.fingerprint, 0.2),  # type: ignore[arg-type]
    )
    knowing = with_denoisers(model, denoisers)
    seen: list[Step] = []
    options = {"nfe": 8, "k": 4, "temperature": 0.0, "latent_steps": 2, "refresh_steps": 3}
    made = knowing.generate(method="conwithindisc", **options, on_step=seen.append)[0]
    plain = knowing.generate(method="conthendisc", **options, on_step=(unguided := []).append)[0]
    assert [step.ids_BN.tolist() for step in seen[:4]] == [step.ids_BN.tolist() for step in unguided[:4]]
    assert torch.allclose(made.registers_kD, second, atol=1e-4)
    assert torch.allclose(plain.registers_kD, first, atol=1e-4)
    assert len(knows.conditions) == 3
    expected = model.encode_partial(seen[3].ids_BN, seen[3].is_masked_BN, 4)
    assert torch.equal(knows.conditions[0], expected)


def test_no_refresh_is_conthendisc(model: Model) -> None:
    plain = model.generate(3, method="conthendisc", **FEW)
    for refresh in ([], [0.0]):
        assert texts(model.generate(3, method="conwithindisc", refresh=refresh, **FEW)) == texts(plain)
    assert texts(model.generate(3, method="conthendisc", refresh=[0.5], **FEW)) == texts(
        model.generate(3, method="conwithindisc", **FEW)
    )
    assert texts(model.generate(3, method="conwithindisc", **FEW)) != texts(plain)


@pytest.mark.parametrize(
    ("method", "nfe", "steps"),
    [
        (METHODS["conwithindisc"], 40, {20}),
        (METHODS["conwithindisc"], 2, {1}),
        (METHODS["conwithindisc"], 1, set()),
        (METHODS["conthendisc"], 40, set()),
        (METHODS["alg3"], 4, {1, 2, 3}),
        (Method(refresh=(0.01, 0.25, 0.99)), 8, {1, 2, 7}),
    ],
)
def test_a_refresh_comes_after_its_share_of_the_steps(method: Method, nfe: int, steps: set[int]) -> None:
    assert refreshes(method, nfe) == steps


def test_the_three_counts(model: Model) -> None:
    """`nfe_paper` adds latent steps by the ratio of parameters, guidance two networks for each."""
    demasker = sum(p.numel() for p in model.autoencoder.demasker.llada.parameters())
    first, second = model.denoisers.unconditional.parameters, model.denoisers.conditional.parameters
    assert second > first
    mdm = model.generate(method="mdm", nfe=4)[0]
    assert mdm.nfe <= 4 and mdm.nfe_paper == mdm.nfe == mdm.nfe_wall and mdm.registers_kD is None
    for method, guidance, latent in [
        ("conthendisc", 1.0, 3 * first),
        ("conwithindisc", 1.0, 3 * first + 2 * second),
        ("conwithindisc", 2.0, 3 * first + 2 * (first + second)),
        ("alg3", 1.0, 4 * 2 * second),
    ]:
        made = model.generate(method=method, guidance=guidance, **FEW, temperature=0.0)[0]
        if made.nfe == 4:  # no early end
            assert made.nfe_paper == pytest.approx(4 + latent / demasker)
        assert made.nfe_wall > made.nfe and made.seconds > 0


def test_guidance_goes_from_the_unconditional_prediction_beyond_the_conditional_one(model: Model) -> None:
    """w = 0 is the unconditional denoiser, w = 1 the conditional one; both on the conditional one's steps."""
    prompt = {"prompt": "x = ", "method": "conthendisc", "nfe": 2, "k": 4}
    free = model.generate(**prompt, guidance=0.0, refresh_steps=3)[0].registers_kD
    alone = with_denoisers(
        model,
        Denoisers(conditional=TrainedDenoiser(_AsConditional(model), model.fingerprint, 0.2)),  # type: ignore[arg-type]
    )
    assert torch.allclose(free, alone.generate(**prompt, refresh_steps=3)[0].registers_kD, atol=1e-5)
    conditional = model.generate(**prompt, guidance=1.0)[0].registers_kD
    assert not torch.allclose(free, conditional, atol=1e-2)
    near = model.generate(**prompt, guidance=1.0 + 1e-6)[0].registers_kD
    assert torch.allclose(conditional, near, atol=1e-3)


def test_guidance_between_denoisers_that_do_not_fit_is_refused(model: Model) -> None:
    unequal = with_denoisers(model, Denoisers(trained(model, False, K=4), trained(model, True, K=2)))
    with pytest.raises(CrocodilError, match="different numbers of registers"):
        unequal.generate(guidance=2.0, **FEW)
    assert unequal.generate(**FEW)
    # a denoiser that is not asked sets no limit
    assert unequal.vary("x = 1\n", 0.3, nfe=4, latent_steps=2)[0].registers_kD.shape[0] == 4
    assert unequal.generate(method="conthendisc", **{**FEW, "k": 4})
    with pytest.raises(CrocodilError, match="at most 2"):
        unequal.generate(**{**FEW, "k": 4})


class _AsConditional(nn.Module):
    """The unconditional denoiser, deaf to its condition."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.inner = model.denoisers.unconditional.denoiser
        self.config = model.denoisers.conditional.config
        self.parameters_in_all = 1

    def forward(self, z_BKD: Tensor, s_BK: Tensor, condition_BMD: Tensor) -> Tensor:
        return self.inner(z_BKD, s_BK)


def test_a_prompt_stays_and_its_registers_are_conditional(model: Model) -> None:
    made = model.generate(3, prompt="def area", method="conthendisc", **FEW)
    assert all(text.startswith("def area") for text in texts(made))
    knows = Knows(model.encode("x").values_WKD[0], conditional=True)
    only = with_denoisers(model, Denoisers(conditional=TrainedDenoiser(knows, model.fingerprint, 0.2)))  # type: ignore[arg-type]
    only.generate(prompt="def area", method="conthendisc", **FEW)
    assert len(knows.conditions) == FEW["refresh_steps"]
    with pytest.raises(CrocodilError, match="no unconditional denoiser"):
        only.generate(method="conthendisc", **FEW)


@pytest.mark.parametrize("method", ["mdm", "conthendisc", "conwithindisc"])
def test_a_template_is_filled_in_and_ends_where_it_ends(method: str, model: Model) -> None:
    options = {**FEW, "method": method} | ({} if METHODS[method].guided else {"k": None})
    for seed in range(6):
        text = model.generate(template=["def f(x):\n", 3, "\n", 2, "return x\n"], seed=seed, **options)[
            0
        ].text
        assert text.startswith("def f(x):\n") and text.endswith("return x\n")


def test_no_text_ends_within_min_length(model: Model) -> None:
    vocabulary = model.vocabulary
    seen: list[Step] = []
    made = model.generate(3, method="mdm", nfe=8, min_length=model.window, on_step=seen.append)
    assert not (seen[-1].ids_BN == vocabulary.eos_id).any() and all(one.nfe == 8 for one in made)
    assert lay_out(vocabulary, 6, prompt="x", min_length=4).no_end_before == 4
    assert lay_out(vocabulary, 6, template=[1, "x"], min_length=5).no_end_before == 1 + len(
        vocabulary.encode("x")
    )


def test_a_canvas_says_what_is_given(model: Model) -> None:
    vocabulary = model.vocabulary
    bos, eos, mask = vocabulary.bos_id, vocabulary.eos_id, vocabulary.mask_id
    x = vocabulary.encode("x")
    assert lay_out(vocabulary, 4).ids_N.tolist() == [mask] * 4
    prompt = lay_out(vocabulary, 6, prompt="x")
    assert prompt.ids_N.tolist() == [bos, *x, *[mask] * (5 - len(x))]
    assert prompt.last_given == len(x) and prompt.slots == 5 - len(x)
    canvas = lay_out(vocabulary, 8, template=[2, "x"])
    assert canvas.ids_N.tolist() == [bos, mask, mask, *x, *[eos] * (5 - len(x))]
    assert canvas.slots == 2 and canvas.last_given == 2 + len(x)


def test_vary_goes_from_the_text_itself_to_nothing_of_it(model: Model) -> None:
    text = "def area(side):\n"
    options = {"nfe": 4, "latent_steps": 3}
    same = model.vary(text, 0.0, n=2, **options)
    assert texts(same) == model.decode(model.encode(text, 4), nfe=4) * 2
    away = model.vary(text, 1.0, n=2, seed=5, **options)
    assert texts(away) == texts(model.vary("x = 1\n", 1.0, n=2, seed=5, **options))
    assert away[0].registers_kD.norm(dim=-1) == pytest.approx(model.D**0.5, rel=1e-4)
    steps = [model.vary(text, strength, **options)[0] for strength in (0.1, 1.0)]
    assert steps[0].nfe_paper - steps[0].nfe < steps[1].nfe_paper - steps[1].nfe


def test_hidden_tokens_have_no_influence_on_partial_registers(model: Model) -> None:
    window = torch.tensor([[model.vocabulary.bos_id, *range(5, 15), *[model.vocabulary.eos_id] * 5]])
    hidden = torch.zeros(window.shape, dtype=torch.bool)
    hidden[0, 3:7] = True
    other = window.masked_fill(hidden, model.vocabulary.mask_id)
    assert torch.equal(model.encode_partial(window, hidden, 4), model.encode_partial(other, hidden, 4))
    nothing = torch.zeros_like(hidden)
    assert not torch.equal(model.encode_partial(window, hidden, 4), model.encode_partial(window, nothing, 4))
    everything = torch.ones_like(hidden)
    assert torch.equal(
        model.encode_partial(window, everything, 4), model.encode_partial(window + 1, everything, 4)
    )
    # batch and k change nothing either
    two = model.encode_partial(window.repeat(2, 1), torch.cat([hidden, nothing]), 4)
    assert torch.allclose(two[:1], model.encode_partial(window, hidden, 4), atol=2e-5)
    assert torch.allclose(two[:1, :2], model.encode_partial(window, hidden, 2), atol=2e-5)
    # with nothing hidden, it is the encoding of the window as a text
    whole = model.encode_ids([window[0, 1:].tolist()], 4)
    assert torch.allclose(whole, model.encode_partial(window, nothing, 4), atol=2e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n must be a whole number from 1"),
        ({"nfe": 0}, "nfe"),
        ({"nfe": 2.5}, "nfe"),
        ({"seed": "a"}, "seed"),
        ({"method": "magic"}, "choose one of mdm, conthendisc"),
        ({"length": 10**9}, "length"),
        ({"min_length": -1}, "min_length"),
        ({"k": 5}, "at most 4"),
        ({"k": 0}, "k must be"),
        ({"method": "mdm", "k": 2}, "mdm uses no registers"),
        ({"method": "mdm", "refresh": [0.5]}, "refresh"),
        ({"method": "alg3", "refresh": [0.5]}, "refresh"),
        ({"refresh": [1.0]}, "below 1"),
        ({"refresh": "x"}, "fractions"),
        ({"guidance": -1}, "guidance"),
        ({"guidance": float("nan")}, "guidance"),
        ({"temperature": float("inf")}, "temperature"),
        ({"prompt": "x", "template": ["x", 1]}, "one of them"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": "x = 1\n" * 40}, "no room"),
        ({"template": "x"}, "template is a list"),
        ({"template": ["x"]}, "template is a list"),
        ({"template": ["x", 0]}, "template is a list"),
        ({"template": ["x", 400]}, "no room"),
        ({"template": ["x", 10**12]}, "no room"),
        ({"block_size": 10, "nfe": 2}, "blocks"),
        ({"n": 10**30}, "n must be"),
        ({"latent_steps": 10**16}, "latent_steps"),
        ({"guidance": 10**400}, "guidance"),
        ({"guidance": 1e20}, "guidance"),
        ({"temperature": 10**400}, "temperature"),
        ({"refresh": [10**400]}, "fractions"),
        ({"method": ["mdm"]}, "choose one"),
        ({"block_size": 2.5}, "block_size"),
        ({"block_size": "8"}, "block_size"),
        ({"remasking": "best"}, "remasking"),
        ({"block_size": 0}, "block_size"),
    ],
)
def test_bad_arguments_are_one_line(
    options: dict[str, object], message: str, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is computed."""
    for computes in ("ddim", "demask"):
        monkeypatch.setattr(f"crocodil.synthesis.{computes}", None)
    with pytest.raises(CrocodilError, match=message) as refused:
        model.generate(**{"nfe": 2, "latent_steps": 1, "refresh_steps": 1} | options)  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)


def test_what_a_model_lacks_is_said_before_anything_is_computed(model: Model) -> None:
    bare = with_denoisers(model, Denoisers())
    assert bare.generate(method="mdm", nfe=2)
    for call in (
        lambda: bare.generate(nfe=2),
        lambda: bare.vary("x"),
        lambda: with_denoisers(model, Denoisers(model.denoisers.unconditional)).generate(nfe=2),
        lambda: with_denoisers(model, Denoisers(None, model.denoisers.conditional)).vary("x"),
    ):
        with pytest.raises(CrocodilError, match=r"has no (un)?conditional denoiser: train one"):
            call()
    with pytest.raises(CrocodilError, match="strength"):
        model.vary("x", 1.5)
    with pytest.raises(CrocodilError, match="one text"):
        model.vary(["x"])  # type: ignore[arg-type]
