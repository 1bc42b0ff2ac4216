"""Checkpoints of others in Luban's own Transformer: the same logits as `transformers`, nothing lost, nothing executed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import luban
from luban.cli import main
from luban.errors import BundleError, DataError, ExportMismatch, RequestError, Unsupported
from luban.huggingface import imported
from luban.nn import families
from luban.stages.export import to_huggingface
from tests import checkpoints, tiny

SAID = ["one two three four five six seven eight nine ten", "the film was bad, not good", "a"]


@torch.no_grad()
def gap(folder, size=False, theirs=None):
    """The largest difference between the logits of Luban on padded texts and of `transformers` on each alone (of the network
    `theirs`, where it is none of the folder); with `size` as a share of the largest logit.
    """
    import transformers

    bundle = imported(folder)
    theirs = theirs or transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    column, writer = bundle.columns["text"], bundle.network.writer
    texts = [column.prompt(t).tolist() for t in SAID]
    x = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
    mask = torch.zeros_like(x, dtype=torch.bool)
    for i, ids in enumerate(texts):
        x[i, : len(ids)], mask[i, : len(ids)] = torch.tensor(ids), True
    mine = writer.logits(None, x, mask)
    worst = 0.0
    for i, ids in enumerate(texts):
        expected = theirs(torch.tensor([ids])).logits[0]
        worst = max(worst, float((mine[i, : len(ids)] - expected).abs().max()))
    assert mine.abs().max() > 1  # there is something to get wrong
    return worst / float(mine.abs().max()) if size else worst


@pytest.mark.parametrize("family", [f for f in checkpoints.DECODERS if f not in checkpoints.FOREIGN])
def test_logits_are_those_of_transformers(family):
    assert gap(checkpoints.decoder(family)) <= 1e-4


def interleaved(x, turn):
    """Rotary positions with neighbours as pairs, as the first Llama release stored them."""
    a, b = x[..., 0::2], x[..., 1::2]
    cos, sin = turn[..., 0], turn[..., 1]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)


def changed(family, **changes):
    """A checkpoint's family read in a wrong way."""
    real = families.FAMILIES[family]
    settings = changes.pop("settings", {})
    return replace(real, settings=lambda c: {**real.settings(c), **settings}, **changes)


SWAPS = {"order": ("k_proj", "v_proj"), "gate": ("gate_proj", "up_proj")}


@pytest.mark.parametrize("fault", ["rotary", "order", "gate", "scaling", "epsilon"])
def test_control_a_fault_shows(fault, monkeypatch):
    if fault == "rotary":
        monkeypatch.setattr("luban.nn.transformer.turned", interleaved)
    elif fault in SWAPS:
        (a, b), real = SWAPS[fault], families._theirs
        swapped = lambda kind, ours: tuple(n.replace(a, "#").replace(b, a).replace("#", b) for n in real(kind, ours))  # noqa: E731
        monkeypatch.setattr(families, "_theirs", swapped)
    else:
        other = {"scaling": None} if fault == "scaling" else {"epsilon": 0.1}
        monkeypatch.setitem(families.FAMILIES, "llama", changed("llama", settings=other))
    # as many heads of keys as of values, so that an exchange keeps all shapes
    assert gap(checkpoints.decoder("llama-3.1" if fault == "scaling" else "llama-groups")) > 1e-2


def test_control_gpt2s_maps_are_stored_turned(monkeypatch):
    monkeypatch.setitem(families.FAMILIES, "gpt2", changed("gpt2", transposed=False))
    with pytest.raises(BundleError):
        gap(checkpoints.decoder("gpt2"))


# -- BERT ----------------------------------------------------------------------------------------------------------------
@torch.no_grad()
def masked_gap(folder, name=None):
    """The same of a BERT: logits of every position, or the states where it has nothing to guess with."""
    import transformers

    bundle = imported(folder)
    column, encoder, guess = bundle.columns["text"], bundle.network.encoders[0], bundle.network.fusion[0]
    kind = transformers.AutoModel if name else transformers.BertForMaskedLM
    theirs = kind.from_pretrained(folder, dtype=torch.float32).eval()
    x, mask = map(torch.as_tensor, column.collate(column.encode_all(SAID)))
    h = encoder(encoder.embed(x, mask), mask).x
    mine, worst = h if name else guess.logits(h), 0.0
    for i, real in enumerate(mask.sum(1).tolist()):
        worst = max(worst, float((mine[i, :real] - theirs(x[i : i + 1, :real])[0][0]).abs().max()))
    return worst


def test_bert_guesses_as_in_transformers(monkeypatch):
    folder = checkpoints.folder("bert")
    assert masked_gap(folder) <= 1e-4
    monkeypatch.setattr(families, "TYPES", "none")  # control: what tells two texts apart is left out
    with pytest.raises(BundleError):
        masked_gap(folder)
    monkeypatch.setattr(families, "BESIDE", (*families.BESIDE, "bert.embeddings.token_type"))
    assert masked_gap(folder) > 1e-3


# -- the real ones ---------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_minilm_reads_as_in_transformers():
    from luban.data.models import found

    assert masked_gap(str(found("all-MiniLM-L6-v2")), "encoder") <= 1e-4


@pytest.mark.slow
@pytest.mark.timeout(1800)  # 93 MB are fetched, and a busy machine writes slowly
def test_smollm_writes_as_in_transformers():
    """SmolLM2-135M-Instruct: 4-bit weights of a GGUF file, beside what `transformers` itself makes of that file."""
    import transformers
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    from luban.data.models import MODELS, cache, found

    name = "SmolLM2-135M-Instruct"
    folder = found(name)
    file = cache() / "models" / name / next(iter(MODELS[name].files))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    weights = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=theirs)["tensors"]
    missing, extra = theirs.load_state_dict({k: torch.as_tensor(t) for k, t in weights.items()}, strict=False)
    assert missing == ["lm_head.weight"] and not extra  # tied
    assert gap(name, size=True, theirs=theirs) <= 1e-5  # logits of about 30: the same sums of float32 in another order
    bundle, prompt = imported(name), "The capital of France is"
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    ids = tokenizer(prompt, return_tensors="pt")
    whole = theirs.generate(**ids, max_new_tokens=12, do_sample=False)[0]
    text = tokenizer.decode(whole[ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert bundle.generate(prompt, tokens=12, temperature=0) == text
    assert text.startswith(" Paris")


# -- what is refused -----------------------------------------------------------------------------------------------------
@pytest.fixture
def copy(tmp_path):
    return Path(shutil.copytree(checkpoints.decoder("llama-groups"), tmp_path / "copy"))


def edit(folder, file="config.json", **changes):
    plain = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(plain | changes))


def refused(folder, error, id):
    with pytest.raises(error) as e:
        imported(str(folder))
    assert e.value.id == id and len(str(e.value).splitlines()) == 1
    return str(e.value)


def test_weights_that_lack_or_are_too_many_are_named(copy):
    weights = load_file(copy / "model.safetensors")
    weights["model.layers.7.self_attn.q_proj.weight"] = weights.pop("model.layers.1.self_attn.k_proj.weight")
    weights["model.norm.weight"] = torch.zeros(5)
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(BundleError) as e:
        imported(str(copy))
    assert [p.id for p in e.value.problems] == ["import.lacking", "import.extra", "import.shape"]
    for name in ("layers.1.self_attn.k_proj", "layers.7.self_attn.q_proj", "model.norm.weight"):
        assert name in str(e.value)


def test_what_is_not_quite_ours_is_refused(copy):
    edit(copy, hidden_act="relu", head_dim=16)
    said = refused(copy, Unsupported, "family.differs")
    assert "hidden_act: relu" in said and "head_dim: 16" in said
    edit(copy, model_type="vit")
    assert "gpt2" in refused(copy, Unsupported, "family.unknown")


@pytest.mark.parametrize("value", [0, -4, "32", 10**40, True, None])
def test_a_size_that_is_none(copy, value):
    edit(copy, hidden_size=value)
    refused(copy, BundleError, "family.bad_count")


def test_a_config_that_asks_for_all_memory_is_refused_before_it_is_taken(copy):
    edit(copy, num_hidden_layers=3, hidden_size=1 << 20, intermediate_size=1 << 24, head_dim=1 << 18)
    with pytest.raises(BundleError) as e:
        imported(str(copy))
    assert "import.shape" in {p.id for p in e.value.problems}


def test_a_tokenizer_of_another_model_is_refused(copy):
    edit(copy, vocab_size=100)
    refused(copy, DataError, "model.tokens_differ")


def test_ids_without_a_token_are_told(copy, capsys):
    """The network of the fixture has 310 ids. Its whole tokenizer has a few less; one that was cut has many less."""
    imported(str(copy))
    assert "310 ids" in capsys.readouterr().err
    plain = json.loads((copy / "tokenizer.json").read_text())
    size = len(plain["model"]["vocab"])
    edit(copy, "config.json", vocab_size=size)
    weights = load_file(copy / "model.safetensors")
    cut = {k: t[:size].clone() if t.shape[0] == 310 else t for k, t in weights.items()}
    save_file(cut, copy / "model.safetensors", {"format": "pt"})
    imported(str(copy))
    assert "tokenizer" not in capsys.readouterr().err  # as many as there are


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_a_text_that_ends_with_no_token_is_refused(copy, file):
    edit(copy, file, eos_token_id=309)
    edit(copy, "tokenizer_config.json", eos_token=None)
    assert "309" in refused(copy, DataError, "model.no_such_token")
    edit(copy, file, eos_token_id=99_999)  # beyond the network: it can never be written
    imported(str(copy))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(copy, value):
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"][3] = value
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    assert "model.norm.weight" in refused(copy, BundleError, "import.not_finite")


def test_no_pickle_is_opened(copy):
    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    torch.save(weights, copy / "pytorch_model.bin")
    assert "pytorch_model.bin" in refused(copy, RequestError, "model.no_safetensors")


def test_weights_in_several_files(copy):
    weights = load_file(copy / "model.safetensors")
    names = sorted(weights)
    parts = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for file, inside in parts.items():
        save_file({n: weights[n] for n in inside}, copy / file)
    (copy / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {n: f for f, inside in parts.items() for n in inside}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert gap(str(copy)) <= 1e-4
    (copy / "b.safetensors").unlink()
    refused(copy, BundleError, "bundle.file_missing")


def test_control_tokens_that_a_user_types_are_plain_text():
    column = imported(checkpoints.decoder("llama")).columns["text"]
    typed = column.prompt("<|im_start|>a<|endoftext|>").tolist()
    assert not set(typed) & set(column.state["silent"]) and len(column.state["silent"]) == 3
    assert (
        column.encode("a<|endoftext|>").tolist()[-1] == column.end
        and column.end not in column.encode("a<|endoftext|>")[:-1]
    )
    assert column.text([*typed, column.end, 5]) == "<|im_start|>a<|endoftext|>"


# -- the whole life --------------------------------------------------------------------------------------------------------
def test_an_imported_model_lives_as_any_other(tmp_path, capsys):
    assert main(["import", checkpoints.decoder("llama-groups"), "--out", str(tmp_path / "m"), "--column", "said"]) == 0
    lines = [{"said": f"the film was {'good' if i % 2 else 'bad'} {i}"} for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
    model = luban.load(tmp_path / "m")
    text = model.generate("the film", tokens=5, temperature=0)
    assert text == model.generate("the film", tokens=5, temperature=0)
    before = model.evaluate(str(tmp_path / "rows.jsonl"), baselines=False).numbers["outputs"]["said"]["metrics"]
    recipe = {
        "luban": 1, "data": {"rows": str(tmp_path / "rows.jsonl")}, "outputs": {"said": "text"}, "size": "nano",
        "model": model.recipe.plain()["model"], "frame": {"pack": {"length": 16}},
        "stages": [{"start": {"source": str(tmp_path / "m")}}, {"train": {"epochs": 2, "lora": {}}}],
    }  # fmt: skip
    tuned = luban.train(recipe, out=tmp_path / "tuned", evaluate=False)
    after = luban.load(tmp_path / "tuned").evaluate(str(tmp_path / "rows.jsonl"), baselines=False).numbers
    assert after["outputs"]["said"]["metrics"]["perplexity"]["value"] < before["perplexity"]["value"]
    assert tuned.columns["said"].state["tokenizer"] == model.columns["said"].state["tokenizer"]
    assert model.compress(quantize="int8").generate("the film", tokens=5, temperature=0)


# -- and back ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", ["gpt2", "llama-3.1", "llama-biases", "qwen2", "bert"])
def test_a_checkpoint_goes_out_as_it_came_in(family, tmp_path):
    folder = checkpoints.folder(family) if family == "bert" else checkpoints.decoder(family)
    imported(folder).export("huggingface", out=tmp_path / "back")
    given, back = (load_file(Path(f) / "model.safetensors") for f in (folder, tmp_path / "back"))
    same = [k for k in given if k in back and "embeddings" not in k]
    assert len(same) > 10 and all(torch.equal(given[k], back[k]) for k in same)
    assert (masked_gap if family == "bert" else gap)(str(tmp_path / "back")) <= 1e-4  # and it comes in again


def test_a_gpt_without_biases_goes_out_with_zeros():
    from transformers import GPT2Config, GPT2LMHeadModel

    from tests.writing import network

    net = network("gpt", bias=False)
    mine = to_huggingface._weights(net)
    assert not [n for n in mine if n.endswith("bias")]
    shape = replace(net.writer.layers.shape, hidden=64)
    theirs = GPT2LMHeadModel(GPT2Config(**families.GPT2.config(shape), vocab_size=net.writer.embedding.num_embeddings))
    missing, extra = theirs.load_state_dict(families.written(families.GPT2, mine, shape), strict=False)
    assert not extra and missing == ["lm_head.weight"]  # tied
    ids = torch.randint(0, 20, (2, 9))
    with torch.no_grad():
        gap = net.writer.logits(None, ids, torch.ones_like(ids, dtype=torch.bool)) - theirs.eval()(ids).logits
    assert gap.abs().max() <= 1e-4


@pytest.mark.parametrize("kind", ["plain", "int8"])
def test_a_model_trained_here_is_opened_by_transformers(kind, tmp_path):
    import transformers

    model = luban.load(tiny.writer(tmp_path))
    if kind == "int8":
        model = replace(model, recipe=replace(model.recipe, data={})).compress(quantize="int8")
    out = model.export("huggingface", out=tmp_path / "out")
    assert sorted(p.name for p in out.iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    given = tokenizer("good bad", return_tensors="pt")
    assert given["input_ids"][0].tolist() == model.columns["review"].prompt("good bad").tolist()
    ids = theirs.generate(given["input_ids"], max_new_tokens=4, do_sample=False)[0, given["input_ids"].shape[1] :]
    assert tokenizer.decode(ids, skip_special_tokens=True) == model.generate("good bad", tokens=4, temperature=0)


def test_control_an_export_that_answers_otherwise_is_not_written(tmp_path, monkeypatch):
    model, real = luban.load(tiny.writer(tmp_path)), families.written
    turned = lambda *a: {k: -t if "v_proj" in k else t for k, t in real(*a).items()}  # noqa: E731
    monkeypatch.setattr(families, "written", turned)
    with pytest.raises(ExportMismatch) as e:
        model.export("huggingface", out=tmp_path / "out")
    assert e.value.id == "export.other_logits" and not (tmp_path / "out").exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".out")]
    monkeypatch.setattr(families, "written", real)
    monkeypatch.setattr(
        to_huggingface, "_begun", lambda token, i, behind: None
    )  # a text begins without its first token
    with pytest.raises(ExportMismatch) as e:
        model.export("huggingface", out=tmp_path / "out")
    assert e.value.id == "export.other_ids"


def test_an_export_is_asked_for_what_it_cannot_do(tmp_path):
    with pytest.raises(Unsupported) as e:
        tiny.model().export("huggingface", out=tmp_path / "out")
    assert e.value.id == "export.no_family"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(RequestError) as e:
        luban.load(tiny.writer(tmp_path)).export("huggingface", out=tmp_path / "mine")
    assert "thesis.txt" in str(e.value) and (tmp_path / "mine" / "thesis.txt").exists()
    assert main(["export", str(tmp_path / "writer"), "--to", "huggingface", "--out", str(tmp_path / "cli")]) == 0
