"""Streaming compression of tiny random networks: exact at full rank, within the bytes, resumed to the same bytes."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from lowrank_core.commands import cli
from lowrank_core.compression.correct import Corrector
from lowrank_core.compression.factors import FactorStore
from lowrank_core.errors import InvalidData, InvalidFile, InvalidModel, InvalidPlan, InvalidSearch, InvalidSettings
from lowrank_core.layers.data import Dataset
from lowrank_core.networks.profile import weight_at
from lowrank_core.plans.correction import Correction
from lowrank_core.plans.cost import plan_cost
from lowrank_core.plans.plan import Choice, RankPlan
from lowrank_core.store.kinds import EXPORTED
from lowrank_core.streaming.compress import compress_folder, compressing, look
from lowrank_core.streaming.request import CompressedFolder, Request
from lowrank_core.streaming.skeleton import is_linear, skeleton_of
from lowrank_core.streaming.windows import windows_of
from lowrank_core.workspace import Workspace
from tests.zoo import TimesTransposed

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WORDS = 90
SETTINGS = {"tokens": 16, "windows": 24, "device": "cpu"}


def tiny(kind: str) -> nn.Module:
    """A random network of two blocks, its norms and biases random as well."""
    torch.manual_seed(0)
    small = {"vocab_size": WORDS + 5, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    wide = {"hidden_size": 24, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 4}
    if kind == "llama":
        config = transformers.LlamaConfig(**small, **wide, num_key_value_heads=2, max_position_embeddings=64)
        model = transformers.LlamaForCausalLM(config)
    elif kind == "gpt2":
        config = transformers.GPT2Config(**small, n_embd=24, n_layer=2, n_head=4, n_positions=64)
        model = transformers.GPT2LMHeadModel(config)
    elif kind == "bloom":  # its blocks hand on their attention, which nobody takes
        model = transformers.BloomForCausalLM(transformers.BloomConfig(**small, hidden_size=24, n_layer=2, n_head=4))
    elif kind == "falcon":  # its layers write their product out, and its masks hold positions
        config = transformers.FalconConfig(
            **small, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, alibi=True
        )
        model = transformers.FalconForCausalLM(config)
    elif kind == "neox":  # its head has another name in files
        config = transformers.GPTNeoXConfig(**small, **wide, max_position_embeddings=64)
        model = transformers.GPTNeoXForCausalLM(config)
    elif kind == "mixtral":  # its experts are joined when it is loaded
        config = transformers.MixtralConfig(**small, **wide, num_key_value_heads=2, num_local_experts=2)
        model = transformers.MixtralForCausalLM(config)
    elif kind == "deberta":  # its blocks answer with two, of which one is none
        config = transformers.DebertaV2Config(vocab_size=WORDS + 5, **wide, relative_attention=True)
        model = transformers.DebertaV2ForMaskedLM(config)
    elif kind == "xlnet":
        config = transformers.XLNetConfig(vocab_size=WORDS + 5, d_model=24, n_layer=2, n_head=4, d_inner=56)
        model = transformers.XLNetLMHeadModel(config)
    else:
        config = transformers.BertConfig(**small, **wide, max_position_embeddings=64)
        model = transformers.BertForMaskedLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif "embed" not in name and "wte" not in name:
                parameter.mul_(8)
    return model.eval()


def folder_of(path: Path, model: nn.Module, kind: str) -> Path:
    """The network with a tokenizer that knows its words, in several shards."""
    names = ["[UNK]", "[CLS]", "[SEP]", "[MASK]", "[PAD]", *(f"w{number}" for number in range(WORDS))]
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="[UNK]")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"} if kind in ("bert", "deberta") else {}
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", **special).save_pretrained(path)
    model.save_pretrained(path, max_shard_size="30kB")
    return path


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """(folder, text) of a kind of network, made once."""
    root, made = tmp_path_factory.mktemp("streaming"), {}
    numbers = torch.rand(1200, generator=torch.Generator().manual_seed(1)).square().mul(WORDS).long()
    text = root / "text.txt"
    text.write_text(" ".join(f"w{number}" for number in numbers.tolist()))

    def of(kind: str) -> tuple[Path, Path]:
        if kind not in made:
            made[kind] = folder_of(root / kind, tiny(kind), kind)
        return made[kind], text

    return of


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def loaded(folder: Path) -> nn.Module:
    """As a person loads it; nothing of it is missing, left over or of another shape."""
    import lowrank_hf  # noqa: F401

    kind = getattr(transformers, json.loads((folder / "config.json").read_text())["architectures"][0])
    model, about = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(about.values()), about
    return model.eval()


def answers(model: nn.Module) -> torch.Tensor:
    tokens = torch.randint(5, WORDS, (3, 16), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return model(input_ids=tokens).logits


def whole(folder: Path, share: float) -> RankPlan:
    """Each Linear layer in the blocks, at that share of its full rank."""
    found = skeleton_of(folder)
    profile = Workspace.open(str(folder)).profile
    names = [name for block in found.blocks for name in found.linear(block)]
    ranks = {name: min(profile.layer(name).spec.weight_shape) for name in names}
    return RankPlan.of(
        profile.fingerprint, {name: Choice("svd", (max(1, int(share * rank)),)) for name, rank in ranks.items()}
    )


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "bloom", "falcon", "neox", "deberta"])
def test_at_full_rank_a_network_answers_as_before(kind, given, tmp_path):
    folder, text = given(kind)
    answer = compress_folder(folder, text, out=tmp_path / "out", plan=whole(folder, 1.0), **SETTINGS)
    exact, ours = answers(loaded(folder)), answers(loaded(answer.path))
    assert float((ours - exact).norm() / exact.norm()) < 2e-4
    assert not (tmp_path / ".out.work").exists()
    if kind in ("bert", "deberta"):
        assert answer.score.metric.startswith("cosine similarity of hidden states")
        assert answer.score.value == pytest.approx(1.0, abs=1e-6)
    else:
        assert answer.score.metric == "perplexity"
        assert answer.score.value == pytest.approx(answer.score.dense, rel=1e-4)


@pytest.mark.parametrize(("words_each", "documents"), [(16, 40), (160, 4)])
def test_an_interval_is_over_paragraphs_of_which_windows_are_parts(words_each, documents, given, tmp_path):
    """Windows of one paragraph are alike: forty windows of four paragraphs tell as much as four."""
    folder, text = given("llama")
    words = [word for word in text.read_text().split() if len(word) == 3][:640]  # so that letters tell places exactly
    parts = [words[at : at + words_each] for at in range(0, len(words), words_each)]
    (tmp_path / "held.txt").write_text("\n\n".join(map(" ".join, parts)))
    settings = {**SETTINGS, "held_out": tmp_path / "held.txt", "tokens": 16}
    score = compress_folder(folder, text, out=tmp_path / "out", plan=whole(folder, 0.5), **settings).score
    assert (score.documents, score.samples) == (documents, 40)
    assert (score.drop_low is None) == (documents < 30)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_a_budget_of_bytes_is_kept_exactly_and_the_folder_opens_again(kind, given, tmp_path):
    folder, text = given(kind)
    before = look(Request(folder, text, tmp_path / "out", bytes_share=0.8, **SETTINGS))
    answer = compress_folder(folder, text, out=tmp_path / "out", bytes_share=0.8, **SETTINGS)
    assert EXPORTED["hf"](answer.path)
    model = loaded(answer.path)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    assert size == answer.bytes <= before.bytes == int(0.8 * answer.dense_bytes)
    assert answer.bytes > 0.97 * before.bytes
    assert answer.dense_bytes == sum(p.numel() * p.element_size() for p in loaded(folder).parameters())
    opened, dense = Workspace.open(str(answer.path)), Workspace.open(str(folder))
    assert plan_cost(opened.profile).bytes == answer.bytes
    assert answer.plan.fingerprint == dense.profile.fingerprint
    assert plan_cost(dense.profile, answer.plan).bytes == answer.bytes
    kept = json.loads((answer.path / "plan.json").read_text())
    assert RankPlan.from_json(json.dumps(kept)) == answer.plan
    assert kept["correction"]["kind"] == "thorough"


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_factors_are_those_of_the_correction_in_memory(kind, given, tmp_path):
    """The same ranks, windows and ridge, by the corrector that holds the whole network."""
    folder, text = given(kind)
    plan = whole(folder, 0.4)
    answer = compress_folder(folder, text, out=tmp_path / "out", plan=plan, **SETTINGS)
    streamed = loaded(answer.path).requires_grad_(False)
    dense = Workspace.open(str(folder))
    tokens = windows_of(skeleton_of(folder), Request(folder, text, tmp_path / "out", **SETTINGS)).fit
    data = Dataset({"input_ids": tokens})
    corrector = Corrector(
        dense.model, dense.profile, FactorStore(dense.model, dense.profile), lambda: data, drawn=lambda *_: data
    )
    overlay = corrector(plan, Correction("thorough", samples=len(tokens)))
    for name, _ in plan.choices:
        ours = streamed.get_submodule(name)
        first, last = (overlay[f"{name}.{part}.weight"] for part in (0, 1))
        exact = last @ first
        size = weight_at(dense.model, dense.profile.layer(name)).detach().norm()
        assert float((ours[1].weight @ ours[0].weight - exact).norm() / size) < 1e-3, name
        if f"{name}.1.bias" in overlay:
            torch.testing.assert_close(ours[1].bias, overlay[f"{name}.1.bias"], atol=5e-3, rtol=5e-3)


class Killed(BaseException):
    """What nothing tidies up after."""


def test_a_killed_run_goes_on_to_the_same_bytes(given, tmp_path, monkeypatch):
    """Ended in the middle of parts, twice in each phase; what is half written stays behind as a kill leaves it."""
    folder, text = given("gpt2")
    undisturbed = compress_folder(folder, text, out=tmp_path / "whole", bytes_share=0.85, **SETTINGS)
    ends = iter(["looking for ranks: block 2", "fitting factors: block 1", "fitting factors: block 2", "scoring"])
    end, seen = next(ends), []

    def report(progress):
        seen.append(progress.words)
        if progress.words.startswith(end):
            (tmp_path / ".out.work" / ".dense-00001.f32.0badc0de.tmp").write_bytes(b"half")
            raise Killed

    again = []
    for _ in range(4):
        with pytest.raises(Killed):
            compress_folder(folder, text, out=tmp_path / "out", bytes_share=0.85, report=report, **SETTINGS)
        again.append([*seen])
        seen.clear()
        end = next(ends, "")
    assert not any(words.startswith("looking for ranks: block 1") for words in again[1])
    assert not any(words.startswith(("looking", "fitting factors: block 1")) for words in again[3])
    before = look(Request(folder, text, tmp_path / "out", bytes_share=0.85, **SETTINGS))
    assert before.blocks_done == before.blocks == 2
    with pytest.raises(InvalidFile, match=r"holds the work of another request \(bytes differ\); remove it"):
        look(Request(folder, text, tmp_path / "out", bytes_share=0.9, **SETTINGS))
    resumed = compress_folder(folder, text, out=tmp_path / "out", bytes_share=0.85, **SETTINGS)
    assert files_in(resumed.path) == files_in(undisturbed.path)
    assert resumed.score == undisturbed.score


def test_a_full_disk_says_so_and_what_was_done_is_kept(given, tmp_path, monkeypatch):
    folder, text = given("llama")
    request = Request(folder, text, tmp_path / "out", bytes_share=0.85, **SETTINGS)
    real, blocks = Path.open, []

    def full(path, mode="r", *args, **kwargs):
        if "w" in mode and path.name.startswith(".given-00002"):
            raise OSError(28, "No space left on device", str(path))
        return real(path, mode, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(InvalidFile, match="could not be written: No space left on device"):
            blocks.extend(step for step in compressing(request) if step.phase == "fitting")
    assert len(blocks) == 1
    assert look(request).blocks_done == 1
    *_, last = compressing(request)
    assert isinstance(last.answer, CompressedFolder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    with pytest.raises(InvalidFile, match=r"has 1\.000 kB free, but .* are needed"):
        look(replace(request, out=tmp_path / "other"))


def changed(folder: Path, tmp_path: Path, change: Callable[[Path], object]) -> Path:
    copy = tmp_path / "changed"
    shutil.copytree(folder, copy)
    change(copy)
    return copy


def edited(**values: object) -> Callable[[Path], object]:
    """A change of config.json."""

    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | values))

    return change


def cut_short(folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-8])


def of_another_index(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    listed["weight_map"]["model.layers.9.mlp.up_proj.weight"] = next(iter(listed["weight_map"].values()))
    index.write_text(json.dumps(listed))


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda f: sorted(f.glob("*.safetensors"))[0].unlink(), InvalidFile, "which is missing; download it"),
        (cut_short, InvalidFile, "is damaged: its tensors take"),
        (of_another_index, InvalidFile, "holds no 'model.layers.9.mlp.up_proj.weight'"),
        (lambda f: [p.unlink() for p in f.glob("tokenizer*")], InvalidData, "tokenizer"),
        (edited(auto_map={"AutoModel": "code.Net"}), InvalidModel, "needs code of its own, which is not run"),
        (edited(architectures=["Nobody"]), InvalidModel, "has no model 'Nobody'"),
        (edited(architectures=["AlbertForMaskedLM"], model_type="albert"), InvalidModel, "cannot be built|do not fit"),
        (edited(num_hidden_layers=4), InvalidModel, "would be random"),
        (edited(intermediate_size=64), InvalidModel, "by config.json, but"),
        (edited(quantization_config={"quant_method": "gptq"}), InvalidModel, r"is quantised \(gptq\)"),
        (lambda f: (f / "config.json").unlink(), InvalidModel, "is no folder of save_pretrained"),
    ],
)
def test_a_folder_that_cannot_be_streamed_is_refused_in_one_line(change, error, said, given, tmp_path):
    folder, text = given("llama")
    with pytest.raises(error, match=said) as refused:
        look(Request(changed(folder, tmp_path, change), text, tmp_path / "out", **SETTINGS))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "said"),
    [("mixtral", "joined or cut when MixtralForCausalLM is loaded"), ("xlnet", "not .windows, tokens, width.")],
)
def test_a_network_that_does_not_run_block_by_block_is_refused_in_one_line(kind, said, given, tmp_path):
    folder, text = given(kind)
    with pytest.raises(InvalidModel, match=said) as refused:
        compress_folder(folder, text, out=tmp_path / "out", bytes_share=0.85, **SETTINGS)
    assert "\n" not in str(refused.value)


class Doubles(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class Scales(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 4)
        self.scale = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * super().forward(x)


class AsksForMore(nn.Linear):
    def forward(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + other


def test_a_class_that_is_derived_from_linear_counts_where_it_answers_as_one():
    assert is_linear(TimesTransposed(4, 3))
    assert not any(map(is_linear, (Doubles(4, 4), Scales(), AsksForMore(4, 4), nn.Bilinear(4, 4, 4), nn.ReLU())))


@pytest.mark.parametrize("value", [float("nan"), 1e36])
def test_weights_that_are_not_finite_are_named(value, given, tmp_path):
    from safetensors.torch import load_file, save_file

    folder, text = given("llama")

    def spoil(copy: Path) -> None:
        for shard in copy.glob("*.safetensors"):
            state = load_file(shard)
            for name in state.keys() & {"model.layers.0.mlp.up_proj.weight"}:
                state[name][0, 0] = value
            save_file(state, shard, metadata={"format": "pt"})

    with pytest.raises(InvalidData, match=r"layer 'model\.layers\.0\.mlp\..*_proj': .* is NaN or infinite"):
        compress_folder(changed(folder, tmp_path, spoil), text, out=tmp_path / "out", bytes_share=0.85, **SETTINGS)


def test_a_network_without_blocks_is_refused(given, tmp_path):
    _, text = given("bert")
    config = transformers.AlbertConfig(
        vocab_size=WORDS + 5, embedding_size=8, hidden_size=16, num_attention_heads=2, intermediate_size=16
    )
    shared = folder_of(tmp_path / "albert", transformers.AlbertForMaskedLM(config), "bert")
    with pytest.raises(InvalidModel, match="no list of like blocks"):
        look(Request(shared, text, tmp_path / "out", **SETTINGS))


def test_what_is_asked_is_checked_before_any_work(given, tmp_path):
    folder, text = given("llama")
    good = Request(folder, text, tmp_path / "out", **SETTINGS)
    (tmp_path / "short.txt").write_text("w1 w2 w3")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xfa")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("a person's")
    other = RankPlan.of("sha256:0", {"model.layers.0.mlp.up_proj": Choice("svd", (2,))})
    head = RankPlan.of(Workspace.open(str(folder)).profile.fingerprint, {"lm_head": Choice("svd", (2,))})
    for request, error, said in (
        (replace(good, bytes_share=1.5), InvalidSettings, "must be a share above 0 and at most 1, but is 1.5"),
        (replace(good, bytes_share=0.0), InvalidSettings, "must be a share above 0"),
        (replace(good, bytes_share=0.05), InvalidSearch, "cannot be reached: with every rank 1"),
        (replace(good, bytes_share=None), InvalidSettings, "give one of them"),
        (replace(good, text=tmp_path / "short.txt"), InvalidData, "is too short: it gives 0 windows of 16 tokens"),
        (replace(good, text=tmp_path / "bytes.txt"), InvalidData, "is no text of UTF-8"),
        (replace(good, held_out=tmp_path / "short.txt"), InvalidData, "--held-out .* is too short"),
        (replace(good, out=tmp_path / "full"), InvalidFile, "is there and holds something else"),
        (replace(good, out=folder), InvalidFile, "is there and holds something else|folder that is read"),
        (replace(good, out=tmp_path / "no" / "where"), InvalidFile, "there is no folder"),
        (replace(good, work=tmp_path / "full"), InvalidFile, "holds something else than the work of a compression"),
        (replace(good, out=folder / "out"), InvalidFile, "is the folder that is read, or in it"),
        (replace(good, work=folder / "work"), InvalidFile, "--work .* is the folder that is read, or in it"),
        (replace(good, work=tmp_path / "out"), InvalidFile, "lie in each other"),
        (replace(good, work=tmp_path), InvalidFile, "lie in each other"),
        (replace(good, held_out=text), InvalidData, "holds the same as --text"),
        (replace(good, text=tmp_path / "pipe"), InvalidData, "no file that can be read twice"),
        (replace(good, device="tpu"), InvalidSettings, "must be cpu or cuda"),
        (replace(good, bytes_share=None, plan=other), InvalidPlan, "was made for the model sha256:0"),
        (replace(good, bytes_share=None, plan=head), InvalidPlan, "outside of the blocks"),
    ):
        with pytest.raises(error, match=said) as refused:
            next(compressing(request))
        assert "\n" not in str(refused.value)
        shutil.rmtree(tmp_path / ".out.work", ignore_errors=True)


def test_the_command_compresses_and_says_what_it_did(given, tmp_path):
    from click.testing import CliRunner

    folder, text = given("llama")
    given_so = ["compress", str(folder), "--text", str(text), "--out", str(tmp_path / "out"), "--tokens", "16"]
    said = CliRunner().invoke(cli, [*given_so, "--windows", "8", "--bytes", "0.9", "--json"])
    assert said.exit_code == 0, said.output
    answer = json.loads(said.stdout)
    assert answer["bytes"] <= 0.9 * answer["dense_bytes"]
    assert answer["score"]["metric"] == "perplexity"
    assert "at most" in said.stderr
    assert "of memory" in said.stderr
    assert loaded(tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("a person's")
    kept = CliRunner().invoke(cli, [*given_so[:-3], str(tmp_path / "mine"), "--tokens", "16"])
    assert kept.exit_code == 1
    assert "so it is not overwritten" in kept.stderr
    assert files_in(tmp_path / "mine") == {"file": b"a person's"}
    refused = CliRunner().invoke(cli, [*given_so, "--bytes", "2"])
    assert refused.exit_code == 1
    assert refused.stderr.strip().splitlines()[-1].startswith("Error: --bytes must be a share")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_device_the_factors_are_those_of_the_cpu(given, tmp_path):
    folder, text = given("llama")
    plan = whole(folder, 0.5)
    both = [
        compress_folder(folder, text, out=tmp_path / device, plan=plan, **SETTINGS | {"device": device})
        for device in ("cpu", "cuda")
    ]
    one, two = (answers(loaded(each.path)) for each in both)
    assert float((one - two).norm() / one.norm()) < 1e-3
    assert both[1].score.value == pytest.approx(both[0].score.value, rel=1e-3)
