"""Checkpoints of llama.cpp: the same logits as `transformers` on the same numbers, and in one sentence what is no such file."""

import json
import struct
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import luban
from luban.cli import main
from luban.data import gguf, gguf_file, gguf_tokenizer, models
from luban.errors import BundleError, DataError, MissingExtra, Unsupported
from luban.huggingface import imported, opened
from tests import checkpoints
from tests.test_huggingface import gap

library = pytest.importorskip("gguf")
Storage = library.GGMLQuantizationType
CHATML = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LUBAN_CACHE", str(tmp_path / "cache"))


def side_by_side(w, heads):
    """As llama.cpp's converter stores queries and keys: the two of each rotary pair one after the other."""
    return w.reshape(heads, 2, len(w) // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def as_gguf(
    path, family="llama-groups", storage=Storage.Q8_0, leave=(), rename=(), tokens=None, folder=None, **changes
):
    """A tiny checkpoint as a GGUF file, its maps stored in half precision or, where rows allow it, as `storage`.

    Gives the network of `transformers` that has the numbers of the file. `changes`: values by name (None: left out).
    """
    import transformers

    folder = Path(folder or checkpoints.decoder(family))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    c, weights = theirs.config, theirs.state_dict()
    arch = "qwen2" if c.model_type == "qwen2" else "llama"
    heads = {"attn_q": c.num_attention_heads, "attn_k": c.num_key_value_heads} if arch == "llama" else {}
    writer = library.GGUFWriter(path, changes.pop("architecture", arch))
    values = {
        f"{arch}.context_length": 64, f"{arch}.embedding_length": c.hidden_size, f"{arch}.block_count": c.num_hidden_layers,
        f"{arch}.feed_forward_length": c.intermediate_size, f"{arch}.attention.head_count": c.num_attention_heads,
        f"{arch}.attention.head_count_kv": c.num_key_value_heads, f"{arch}.rope.freq_base": float(c.rope_parameters["rope_theta"]),
        f"{arch}.attention.layer_norm_rms_epsilon": float(c.rms_norm_eps),
    }  # fmt: skip
    for key, value in (values | {f"{arch}.{k.replace('__', '.')}": v for k, v in changes.items()}).items():
        if value is not None:
            add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
            add(key, value)
    add_tokens(writer, folder, **(tokens or {}))
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    names |= {} if c.tie_word_embeddings else {"output": "lm_head"}
    layer = {k: name for k, (name, _) in gguf.LAYER.items()}
    names |= {f"blk.{i}.{k}": f"model.layers.{i}.{v}" for i in range(c.num_hidden_layers) for k, v in layer.items()}
    for ours, name in names.items():
        for leaf in ("weight", "bias"):
            if f"{name}.{leaf}" not in weights or f"{ours}.{leaf}" in leave:
                continue
            w, of = weights[f"{name}.{leaf}"], heads.get(ours.split(".")[-1])
            stored, kind = (side_by_side(w.numpy(), of) if of else w.numpy()), Storage.F32
            if w.ndim == 2:
                kind = Storage.F16 if w.shape[1] % 32 else storage
                stored = library.quants.quantize(stored, kind)
                read = torch.tensor(library.quants.dequantize(stored, kind))
                w.copy_(read.view(of, -1, 2, w.shape[1]).transpose(1, 2).reshape(w.shape) if of else read)
            writer.add_tensor(dict(rename).get(f"{ours}.{leaf}", f"{ours}.{leaf}"), stored, raw_dtype=kind)
    if getattr(c, "rope_parameters", {}).get("rope_type") == "llama3":
        plain = c.rope_parameters["rope_theta"] ** -(torch.arange(0, 8, 2) / 8)
        writer.add_tensor(gguf.FACTORS, (plain / theirs.model.rotary_emb.inv_freq).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return theirs


def add_tokens(writer, folder, rules="gpt-2", kind="gpt2", template=CHATML):
    plain = json.loads((folder / "tokenizer.json").read_text())
    ids = dict(sorted(plain["model"]["vocab"].items(), key=lambda x: x[1]))
    control = {t["content"] for t in plain["added_tokens"]}
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(rules)
    writer.add_token_list(list(ids))
    writer.add_token_types([3 if t in control else 1 for t in ids])
    writer.add_token_merges([" ".join(m) for m in plain["model"]["merges"]])
    writer.add_bos_token_id(ids["<|endoftext|>"])
    writer.add_eos_token_id(ids["<|im_end|>"])
    writer.add_chat_template(template)


@pytest.fixture
def file(tmp_path):
    as_gguf(tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


# -- the same network --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "storage", [Storage.F32, Storage.F16, Storage.BF16, Storage.Q8_0, Storage.Q4_1], ids=lambda s: s.name
)
def test_logits_are_those_of_transformers(tmp_path, storage):
    theirs = as_gguf(tmp_path / "tiny.gguf", storage=storage)
    assert gap(str(tmp_path / "tiny.gguf"), theirs=theirs) <= 1e-4


@pytest.mark.parametrize("family", ["llama", "llama-biases", "mistral", "qwen2"])
def test_other_networks_of_the_family(tmp_path, family):
    theirs = as_gguf(tmp_path / "tiny.gguf", family)
    assert gap(str(tmp_path / "tiny.gguf"), theirs=theirs) <= 1e-4


def test_control_queries_and_keys_left_as_they_are_stored(tmp_path, monkeypatch):
    theirs = as_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setattr(gguf, "in_halves", lambda order, heads: order)
    assert gap(str(tmp_path / "tiny.gguf"), theirs=theirs) > 1e-2


def test_a_large_tensor_comes_in_pieces(tmp_path, monkeypatch):
    theirs = as_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setattr(gguf, "PIECE", 100)
    assert gap(str(tmp_path / "tiny.gguf"), theirs=theirs) <= 1e-4


def test_the_scaling_of_llama_3_is_recognised(tmp_path):
    rope = {"rope_type": "llama3", "rope_theta": 3e5, "factor": 32.0, **gguf.LLAMA3}
    folder = checkpoints.make_decoder("llama-3.1", tmp_path / "theirs", rope_parameters=rope)
    theirs = as_gguf(tmp_path / "tiny.gguf", folder=folder)
    assert gap(str(tmp_path / "tiny.gguf"), theirs=theirs) <= 1e-4
    made = json.loads((gguf.folder(tmp_path / "tiny.gguf") / "config.json").read_text())["rope_parameters"]
    assert made == pytest.approx(rope | {"factor": pytest.approx(32.0, rel=1e-5)})
    as_gguf(tmp_path / "other.gguf", "llama-3.1")  # another original window
    assert gguf.FACTORS in refused(tmp_path / "other.gguf", Unsupported, "family.differs")


def test_it_is_written_once_and_again_where_the_file_is_another(file, monkeypatch):
    first = gguf.folder(file)
    assert sorted(p.name for p in first.iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    with monkeypatch.context() as m:
        m.setattr(gguf, "_make", None)
        assert gguf.folder(file) == first
    as_gguf(file, storage=Storage.F16)
    assert gguf.folder(file) != first


# -- its tokenizer -----------------------------------------------------------------------------------------------------
TYPED = ["one two three", "  the film was  bad , not good 1234  x", "it's 3.14 then", "第一 é\n\n a", "a<|im_end|>b"]


@pytest.mark.parametrize("rules", ["gpt-2", "llama-bpe", "qwen2"])
def test_texts_are_cut_as_in_transformers(tmp_path, rules):
    import transformers

    as_gguf(tmp_path / "tiny.gguf", tokens={"rules": rules})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="tiny.gguf", local_files_only=True)
    mine = transformers.AutoTokenizer.from_pretrained(gguf.folder(tmp_path / "tiny.gguf"))
    for text in TYPED:
        ids = mine(text)["input_ids"]
        assert ids == [0] * (rules == "llama-bpe") + theirs(text, add_special_tokens=False)["input_ids"]
        assert mine.decode(ids, skip_special_tokens=True) == text.replace("<|im_end|>", "")


def test_smollm_cuts_each_digit_and_keeps_blanks_before_it_together(tmp_path):
    # `transformers` has no rules for `smollm` and takes those of GPT-2, which leave the last blank to the number
    from tokenizers import Tokenizer

    for rules, parts in (("smollm", ["x", "ĠĠ", "1", "2"]), ("gpt-2", ["x", "Ġ", "Ġ12"])):
        as_gguf(tmp_path / "tiny.gguf", tokens={"rules": rules})
        made = Tokenizer.from_file(str(gguf.folder(tmp_path / "tiny.gguf") / "tokenizer.json"))
        assert [part for part, _ in made.pre_tokenizer.pre_tokenize_str("x  12")] == parts


def test_pieces_of_sentencepiece(tmp_path):
    from tokenizers import Tokenizer

    words = ["▁", "t", "h", "e", "▁t", "he", "▁the", "s", "<", ">", "/", "</", "s>", "▁▁"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *words]
    values = {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": pieces, "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(i) for i in range(len(words))], "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(words),
    }  # fmt: skip
    made = Tokenizer.from_str(json.dumps(gguf_tokenizer.tokenizer(values, "x")))
    found = made.encode("the é</s>")
    assert found.tokens == [
        "<s>",
        "▁the",
        "▁",
        "<0xC3>",
        "<0xA9>",
        "</s>",
    ]  # typed control tokens are cut by the column
    bare = json.dumps(gguf_tokenizer.tokenizer(values, "x") | {"added_tokens": []})
    assert Tokenizer.from_str(bare).encode("the</s>", add_special_tokens=False).tokens == ["▁the", "</", "s>"]
    assert made.decode(found.ids) == "the é"


def test_its_conversations_come_with_it(file):
    column = imported(str(file)).columns["text"]
    assert set(column.state["chat"]["roles"]) >= {"user", "assistant"}
    typed = column.prompt("<|im_start|>a").tolist()
    assert not set(typed) & set(column.state["silent"])


# -- the whole life ----------------------------------------------------------------------------------------------------
def test_it_is_imported_started_from_and_written_with(file, tmp_path):
    assert main(["import", str(file), "--out", str(tmp_path / "m"), "--column", "said"]) == 0
    model = luban.load(tmp_path / "m")
    text = model.generate("the film", tokens=5, temperature=0)
    assert text == opened(str(file)).generate("the film", tokens=5, temperature=0)
    lines = [{"text": f"the film was {'good' if i % 2 else 'bad'} {i}"} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
    recipe = {
        "luban": 1, "data": {"rows": str(tmp_path / "rows.jsonl")}, "outputs": {"text": "text"}, "size": "nano",
        "model": {"text": model.recipe.plain()["model"]["said"]}, "frame": {"pack": {"length": 16}},
        "stages": [{"start": {"source": str(file)}}, {"train": {"epochs": 1}}],
    }  # fmt: skip
    tuned = luban.train(recipe, out=tmp_path / "tuned", evaluate=False)
    assert tuned.columns["text"].state["tokenizer"] == model.columns["said"].state["tokenizer"]


def test_a_sample_model_may_be_a_gguf(file, monkeypatch):
    sample = replace(models.MODELS["SmolLM2-135M-Instruct"], files={file.name: gguf.files.digest(file)})
    monkeypatch.setitem(models.MODELS, sample.name, sample)
    monkeypatch.setattr(models, "_content", lambda sample, work: [(file.name, file.read_bytes())])
    assert opened(sample.name).columns["text"].state == imported(str(file)).columns["text"].state
    for of in ("about", "origin", "licence"):
        assert models.to_json(sample)[of]


# -- what is refused ---------------------------------------------------------------------------------------------------
def refused(path, error, id):
    with pytest.raises(error) as e:
        imported(str(path))
    assert e.value.id == id and len(str(e.value).splitlines()) == 1 and str(path) in str(e.value)
    kept = gguf.home() / "models" / gguf.FORMAT
    assert not kept.exists() or not [p for p in kept.iterdir() if p.name.startswith(".")]
    return str(e.value)


def test_what_is_no_gguf(tmp_path, file):
    (tmp_path / "text.gguf").write_text("once upon a time")
    refused(tmp_path / "text.gguf", DataError, "gguf.foreign")
    (tmp_path / "empty.gguf").write_bytes(b"")
    refused(tmp_path / "empty.gguf", DataError, "gguf.foreign")
    (tmp_path / "old.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 1, 0, 0))
    refused(tmp_path / "old.gguf", DataError, "gguf.version")
    assert "tiny.gguf" in refused(tmp_path / "tinny.gguf", DataError, "import.no_file")


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.3, 0.5, 0.9, 0.9999])
def test_a_file_that_is_cut_short(tmp_path, file, share):
    whole = file.read_bytes()
    (tmp_path / "short.gguf").write_bytes(whole[: max(5, int(len(whole) * share))])
    refused(tmp_path / "short.gguf", DataError, "gguf.short")


@pytest.mark.parametrize(
    "after",
    [
        struct.pack("<QQ", 1 << 60, 0),
        struct.pack("<QQ", 0, 1 << 60),
        struct.pack("<QQQ", 0, 1, 1 << 62) + b"x" * 40,
        struct.pack("<QQQ", 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 0, 1 << 60) + b"x" * 40,
        struct.pack("<QQQ", 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 8, 1 << 60) + b"x" * 40,
    ],
    ids=["tensors", "values", "name", "numbers", "texts"],
)
def test_counts_that_no_file_has_are_not_walked(tmp_path, after):
    (tmp_path / "hostile.gguf").write_bytes(b"GGUF" + struct.pack("<I", 3) + after)
    refused(tmp_path / "hostile.gguf", DataError, "gguf.short")


def test_lists_of_lists_and_text_that_is_none(tmp_path):
    for after in (struct.pack("<IIQ", 9, 9, 1), struct.pack("<I", 77), struct.pack("<IQ", 8, 2) + b"\xff\xff"):
        plain = b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + after + b"\0" * 60
        (tmp_path / "odd.gguf").write_bytes(plain)
        refused(tmp_path / "odd.gguf", DataError, "gguf.bad_value")


def test_another_network_or_tokenizer(tmp_path):
    as_gguf(tmp_path / "a.gguf", architecture="lama")
    assert "Did you mean 'llama'?" in refused(tmp_path / "a.gguf", Unsupported, "gguf.architecture")
    as_gguf(tmp_path / "b.gguf", rope__scaling__type="yarn", expert_count=8)
    said = refused(tmp_path / "b.gguf", Unsupported, "family.differs")
    assert "yarn" in said and "expert_count: 8" in said
    as_gguf(tmp_path / "c.gguf", tokens={"kind": "bert"})
    assert "gpt2" in refused(tmp_path / "c.gguf", Unsupported, "gguf.tokenizer")
    as_gguf(tmp_path / "d.gguf", tokens={"rules": "smolm"})
    assert "smollm" in refused(tmp_path / "d.gguf", Unsupported, "gguf.rules")


@pytest.mark.parametrize("changes", [{"block_count": 4_000_000_000}, {"block_count": 10**6}, {"attention__head_count": 0}, {"context_length": None}, {"feed_forward_length": "x"}, {"attention__layer_norm_rms_epsilon": float("nan")}], ids=str)  # fmt: skip
def test_a_size_that_is_none(tmp_path, changes):
    as_gguf(tmp_path / "tiny.gguf", **changes)
    refused(tmp_path / "tiny.gguf", DataError, "gguf.bad_value")


def test_tensors_that_lack_are_too_many_or_of_another_shape_are_named(tmp_path):
    as_gguf(tmp_path / "a.gguf", leave=["blk.1.attn_k.weight"])
    assert "blk.1.attn_k.weight" in refused(tmp_path / "a.gguf", BundleError, "import.lacking")
    as_gguf(tmp_path / "b.gguf", rename={"blk.1.attn_k.weight": "blk.1.attn_x.weight"}, feed_forward_length=41)
    with pytest.raises(BundleError) as e:
        imported(str(tmp_path / "b.gguf"))
    assert {p.id for p in e.value.problems} == {"import.lacking", "import.extra", "import.shape"}
    assert all(p.place == str(tmp_path / "b.gguf") for p in e.value.problems)


def test_a_storage_that_nobody_reads(file):
    for kind in (99, int(Storage.Q8_K)):
        with pytest.raises(Unsupported) as e:
            gguf._stored(file, "output.weight", gguf_file.Place(kind, (2, 256), 0), 0)
        assert e.value.id == "gguf.storage" and "output.weight" in str(e.value)


def test_without_the_library_the_way_out_is_said(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtra, match=r"luban\[gguf\]"):
        imported(str(file))


def test_the_head_is_what_the_library_reads(file):
    theirs, mine = library.GGUFReader(file), gguf_file.read(file)
    assert {t.name: (int(t.data_offset), int(t.tensor_type)) for t in theirs.tensors} == {
        n: (p.start, p.kind) for n, p in mine.tensors.items()
    }
    assert mine.values == {k: f.contents() for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert np.array_equal(theirs.tensors[0].shape[::-1], mine.tensors[theirs.tensors[0].name].shape)
