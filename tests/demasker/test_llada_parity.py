"""Our LLaDA gives the logits of the official implementation, and of a Llama without a causal mask."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from crocodil.demasker.llada import LLaDA, LLaDAConfig
from crocodil.demasker.weights import load_llada

FIXTURES = sorted((Path(__file__).parents[1] / "fixtures" / "llada").iterdir())
CASES = (
    "plain",
    "one_token",
    "full_length",
    "left_pad",
    "right_pad",
    "bias4d",
    "registers",
    "registers_right_pad",
)


def run(model: LLaDA, reference: dict[str, torch.Tensor], case: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a case and the positions that are real: padded queries carry no promise."""
    ids = reference[f"{case}/in/input_ids"]
    attend = reference.get(f"{case}/in/attention_mask", torch.ones_like(ids))
    bias = reference.get(f"{case}/in/attention_bias")
    registers = reference.get(f"{case}/in/_registers")
    embeddings = model.embed(ids)
    if registers is not None:
        embeddings = torch.cat([registers.to(embeddings.dtype), embeddings], dim=1)
        attend = torch.cat([attend.new_ones(registers.shape[:2]), attend], dim=1)
    inputs = {"ids": ids} if registers is None else {"embeddings": embeddings}
    visible = {"attend": attend} if bias is None else {"attention_bias": bias.bool()}
    with torch.no_grad():
        return model(**inputs, **visible), attend.bool()


def bfloat16_distance(model: LLaDA, folder: Path) -> float:
    """Distance from the official bfloat16 logits, in units of those logits' own rounding error (rms)."""
    reference = load_file(folder / "reference.safetensors")
    ours, theirs = 0.0, 0.0
    for case in CASES:
        logits, real = run(model, reference, case)
        low, high = reference[f"{case}/bfloat16"].float()[real], reference[f"{case}/float32"][real]
        ours += float((logits.float()[real] - low).pow(2).sum())
        theirs += float((low - high).pow(2).sum())
    return (ours / theirs) ** 0.5


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("folder", FIXTURES, ids=lambda folder: folder.name)
def test_float32_logits_are_the_official_ones(folder: Path, case: str) -> None:
    reference = load_file(folder / "reference.safetensors")
    logits, real = run(load_llada(folder, dtype=torch.float32), reference, case)
    # 2e-5 is reached; summation order leaves no more open than 2e-4
    assert (logits - reference[f"{case}/float32"])[real].abs().max() < 1e-4


def test_every_fixture_and_case_is_tried() -> None:
    assert len(FIXTURES) == 4
    for folder in FIXTURES:
        assert tuple(json.loads((folder / "reference.json").read_text())["cases"]) == CASES


@pytest.mark.parametrize("folder", FIXTURES, ids=lambda folder: folder.name)
def test_bfloat16_logits_differ_by_less_than_half_of_their_own_rounding(folder: Path) -> None:
    # not equal: the order of sums inside a 16-bit product depends on the processor; 0.2 to 0.4 is reached
    assert bfloat16_distance(load_llada(folder, dtype=torch.bfloat16), folder) < 0.5


@pytest.mark.parametrize("folder", FIXTURES, ids=lambda folder: folder.name)
def test_that_bound_notices_a_rotation_in_bfloat16(folder: Path) -> None:
    model = load_llada(folder, dtype=torch.bfloat16)
    for block in model.model.transformer.blocks:
        block.config = dataclasses.replace(block.config, rope_full_precision=False)
    assert bfloat16_distance(model, folder) > 0.5


@pytest.mark.parametrize("folder", FIXTURES, ids=lambda folder: folder.name)
def test_hidden_states_are_the_official_ones(folder: Path) -> None:
    reference = load_file(folder / "reference.safetensors")
    model = load_llada(folder, dtype=torch.float32)
    ids = reference["plain/in/input_ids"]
    states = [model.embed(ids)]
    for block in model.model.transformer.blocks:
        block.register_forward_hook(lambda module, inputs, output: states.append(output))
    with torch.no_grad():
        final = model.hidden(ids)
    # the official list is the input of every block, then the final norm
    wanted = [reference[f"hidden/{i}"] for i in range(model.config.n_layers + 1)]
    for ours, theirs in zip([*states[: model.config.n_layers], final], wanted, strict=True):
        assert (ours - theirs).abs().max() < 1e-4


def test_the_head_on_a_few_rows_gives_the_same_logits() -> None:
    folder = FIXTURES[0]
    reference = load_file(folder / "reference.safetensors")
    model = load_llada(folder, dtype=torch.float32)
    ids = reference["plain/in/input_ids"]
    rows = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.4
    with torch.no_grad():
        torch.testing.assert_close(model.head(model.hidden(ids)[rows]), model(ids)[rows], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("tied", [False, True])
def test_it_is_a_llama_that_sees_everything(heads: int, kv_heads: int, tied: bool) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LLaDAConfig(
        d_model=48,
        n_layers=2,
        n_heads=heads,
        n_kv_heads=kv_heads,
        mlp_hidden_size=80,
        vocab_size=90,
        embedding_size=96,
        max_sequence_length=64,
        mask_token_id=89,
        eos_token_id=88,
        rope_theta=500_000.0,
        weight_tying=tied,
    )
    model = LLaDA(config).initialise(torch.Generator().manual_seed(0))
    llama = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            intermediate_size=80,
            vocab_size=96,
            max_position_embeddings=64,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
            tie_word_embeddings=tied,
        )
    ).eval()
    names = {
        "attn_norm": "input_layernorm",
        "ff_norm": "post_attention_layernorm",
        "q_proj": "self_attn.q_proj",
        "k_proj": "self_attn.k_proj",
        "v_proj": "self_attn.v_proj",
        "attn_out": "self_attn.o_proj",
        "ff_proj": "mlp.gate_proj",
        "up_proj": "mlp.up_proj",
        "ff_out": "mlp.down_proj",
    }
    core = model.model.transformer
    state = {
        f"model.layers.{i}.{theirs}.weight": getattr(block, ours).weight
        for i, block in enumerate(core.blocks)
        for ours, theirs in names.items()
    }
    state |= {"model.embed_tokens.weight": core.wte.weight, "model.norm.weight": core.ln_f.weight}
    state["lm_head.weight"] = model.head_weight
    llama.load_state_dict(state)

    ids = torch.randint(0, 96, (2, 21), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = llama(ids, attention_mask=torch.zeros(2, 1, 21, 21)).logits
        logits = model(ids)
    assert wanted.std() > 0.5
    assert (logits - wanted).abs().max() < 1e-5
