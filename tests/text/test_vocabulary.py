from __future__ import annotations

import json
import random
import time

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from crocodil.errors import CrocodilError
from crocodil.text import vocabulary as module
from crocodil.text.vocabulary import Vocabulary, byte_alphabet, train_bpe

QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIFFICULT = [
    "",
    "\x00",
    "\ufeffdef f():\r\n\treturn 1\r\n",
    "e\u0301 versus \u00e9, \u1e9b\u0323",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7",
    "<|endoftext|><|startoftext|> <|mdm_mask|>x",
    "\u2028\u2029\x85\x0b\x0c\x1c\u00a0\u3000 \n \n",
    "\U0010ffff\uffff\ufffd",
    'if x:\n        return {"a": 1}\n\n\nclass A:\n\tpass',
    "Très bien, 日本語のテキスト、 Привет!",
]


@pytest.mark.parametrize("text", DIFFICULT)
def test_text_comes_back_byte_for_byte(vocabulary, text):
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids).encode() == text.encode()
    assert vocabulary.encode_batch([text, "x"])[0] == ids
    assert b"".join(vocabulary.token_bytes(id) for id in ids) == text.encode()


def test_special_strings_are_plain_text(vocabulary):
    specials = {vocabulary.bos_id, vocabulary.eos_id, vocabulary.mask_id}
    assert not specials & set(vocabulary.encode("a<|endoftext|>b<|mdm_mask|>c<|startoftext|>"))
    assert all(vocabulary.token_bytes(id) is None for id in specials)


def test_decode_stops_at_eos_and_drops_bos_and_mask(vocabulary):
    a, b = vocabulary.encode("a"), vocabulary.encode("b")
    ids = [vocabulary.bos_id, *a, vocabulary.mask_id, *b, vocabulary.eos_id, *a]
    assert vocabulary.decode(ids) == "ab"


def test_broken_utf8_decodes_to_replacement_characters(vocabulary):
    alone = {
        piece: id for id in range(vocabulary.size) if len(piece := vocabulary.token_bytes(id) or b"") == 1
    }
    assert vocabulary.decode([alone[b"\xf0"], *vocabulary.encode("x")]) == "\ufffdx"


@pytest.mark.parametrize("text", ["a\ud800b", "\udfff"])
def test_lone_surrogate_is_refused(vocabulary, text):
    with pytest.raises(CrocodilError, match="lone surrogate"):
        vocabulary.encode(text)


def test_no_string_is_refused(vocabulary):
    with pytest.raises(CrocodilError, match="bytes"):
        vocabulary.encode(b"x")


@pytest.mark.parametrize("id", [-1, 10**6])
def test_id_outside_the_table_is_refused(vocabulary, id):
    with pytest.raises(CrocodilError, match="outside"):
        vocabulary.decode([id])


def test_all_bytes_have_a_token_and_the_table_has_the_asked_size(vocabulary):
    singles = {vocabulary.token_bytes(id) for id in range(vocabulary.size)}
    assert {bytes([byte]) for byte in range(256)} <= singles
    assert vocabulary.size == 460
    assert dict(byte_alphabet()).keys() == set(pre_tokenizers.ByteLevel.alphabet())


def test_training_learns_indentation_and_single_digits(vocabulary):
    pieces = [vocabulary.token_bytes(id) for id in range(vocabulary.size)]
    assert any(piece and piece.endswith(b"\n        ") for piece in pieces)
    assert len(vocabulary.encode("1234")) == 4


def test_training_is_deterministic(python_source, prose):
    one = train_bpe([python_source] * 3, 300)
    assert one.fingerprint == train_bpe([python_source] * 3, 300).fingerprint
    assert one.fingerprint != train_bpe([prose] * 3, 300).fingerprint


def test_a_vocabulary_without_room_for_bytes_is_refused():
    with pytest.raises(CrocodilError, match="259"):
        train_bpe(["text"], 258)


def test_saved_vocabulary_is_the_same(vocabulary, python_source, tmp_path):
    vocabulary.save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        again = Vocabulary.load(path)
        assert again.fingerprint == vocabulary.fingerprint
        assert (again.bos_id, again.eos_id, again.mask_id, again.size) == (457, 458, 459, 460)
        assert again.encode(python_source) == vocabulary.encode(python_source)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


def test_transformers_opens_a_saved_vocabulary(vocabulary, python_source, tmp_path):
    transformers = pytest.importorskip("transformers")
    vocabulary.save(tmp_path)
    for loader in (transformers.AutoTokenizer, transformers.PreTrainedTokenizerFast):
        tokenizer = loader.from_pretrained(tmp_path)
        assert tokenizer(python_source).input_ids == vocabulary.encode(python_source)
        ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.mask_token_id)
        assert ids == (vocabulary.bos_id, vocabulary.eos_id, vocabulary.mask_id)


def test_spare_rows_and_given_ids_survive_saving(vocabulary, tmp_path):
    wide = Vocabulary(vocabulary.tokenizer, mask_id=470, size=480)
    wide.save(tmp_path)
    again = Vocabulary.load(tmp_path)
    assert (again.mask_id, again.size) == (470, 480)
    assert again.token_bytes(475) is None
    assert wide.fingerprint != vocabulary.fingerprint


def test_names_in_the_configuration_win_and_may_be_objects(vocabulary, tmp_path):
    tokenizer = Tokenizer.from_str(vocabulary.tokenizer.to_str())
    tokenizer.add_special_tokens(["<hole>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = {"mask_token": {"content": "<hole>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = Vocabulary.load(tmp_path)
    assert loaded.mask_id == 460
    assert loaded.eos_id == vocabulary.eos_id
    assert Vocabulary.load(tmp_path, mask_id=459).mask_id == 459


def without_mask(vocabulary: Vocabulary) -> Tokenizer:
    state = json.loads(vocabulary.tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if "mask" not in token["content"]]
    return Tokenizer.from_str(json.dumps(state))


def test_missing_mask_says_how_to_mend(vocabulary, tmp_path):
    without_mask(vocabulary).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CrocodilError, match="has no mask token; name it as mask_token .* or give mask_id"):
        Vocabulary.load(tmp_path)
    assert Vocabulary.load(tmp_path, mask_id=459).mask_id == 459


def test_a_plain_token_is_no_mask(vocabulary):
    with pytest.raises(CrocodilError, match="plain token"):
        Vocabulary(vocabulary.tokenizer, mask_id=3)


def test_shared_special_ids_and_small_tables_are_refused(vocabulary):
    with pytest.raises(CrocodilError, match="three ids"):
        Vocabulary(vocabulary.tokenizer, mask_id=vocabulary.eos_id)
    with pytest.raises(CrocodilError, match="459 rows"):
        Vocabulary(vocabulary.tokenizer, size=459)


def test_bad_files_are_refused_in_one_line(tmp_path):
    with pytest.raises(CrocodilError, match="does not exist"):
        Vocabulary.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CrocodilError, match="cannot be read") as caught:
        Vocabulary.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{",
        "[" * 10**5,
        *(
            json.dumps({key: value})
            for key, value in [
                ("crocodil", None),
                ("crocodil", []),
                ("crocodil", {"bos_id": "x"}),
                ("crocodil", {"size": "x"}),
                ("crocodil", {"size": 2048.0}),
                ("bos_token", 5),
                ("bos_token", {}),
                ("mask_token", {"content": 5}),
            ]
        ),
    ],
    ids=lambda content: content[:40],
)
def test_a_bad_configuration_is_refused_by_its_own_name(vocabulary, tmp_path, content):
    vocabulary.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(CrocodilError, match="tokenizer_config.json cannot be read") as caught:
        Vocabulary.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_other_kinds_of_tokenizers_are_refused():
    with pytest.raises(CrocodilError, match="byte-level BPE"):
        Vocabulary(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(CrocodilError, match="byte-level BPE"):
        Vocabulary(Tokenizer(models.BPE({"a": 0, "b": 1}, [])))


def test_normaliser_template_and_added_tokens_do_not_touch_the_text(vocabulary):
    tokenizer = Tokenizer.from_str(vocabulary.tokenizer.to_str())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([AddedToken("<tool>", lstrip=True, rstrip=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        "$A <|endoftext|>", None, [("<|endoftext|>", 458)]
    )
    loaded = Vocabulary(tokenizer)
    for text in [*DIFFICULT, "a <tool> b"]:
        assert loaded.decode(loaded.encode(text)) == text
    assert loaded.token_bytes(460) == b"<tool>"


def with_pattern(vocabulary: Vocabulary, pattern: str) -> Vocabulary:
    tokenizer = Tokenizer.from_str(vocabulary.tokenizer.to_str())
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    return Vocabulary(tokenizer)


@pytest.mark.parametrize("pattern", [module.CODE_PATTERN, QWEN_PATTERN])
def test_limit_gives_the_beginning_of_the_whole(vocabulary, pattern, monkeypatch):
    monkeypatch.setattr(module, "LOOKAHEAD", 64)
    loaded = with_pattern(vocabulary, pattern)
    draw = random.Random(0)
    for _ in range(300):
        runs = draw.choices(
            [" ", "\n", "\r\n", "\t", "a", "sh", "):", "日", "é", "1", "😀", "'s", "return"], k=60
        )
        text = "".join(run * draw.choice([1, 1, 1, 2, 5, 40]) for run in runs)
        whole = loaded.encode(text)
        for limit in (0, 1, 7, draw.randrange(200), 10**6):
            assert loaded.encode(text, limit) == whole[:limit]


@pytest.mark.parametrize(
    "unit",
    [" ", "\n", "a", "=", "日本", "def f(x):\n    return x\n\n", "x = [\n    1,\n]\n", "\n" + " " * 3000],
)
def test_limit_bounds_the_work(vocabulary, unit):
    text = unit * (10**7 // len(unit))
    start = time.process_time()
    assert len(vocabulary.encode(text, 4096)) == 4096
    assert time.process_time() - start < 3
