"""Prompt, tokenizer and pictures are those of the published checkpoint, on a tokenizer of Llama's kind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import import_protobuf

from sim_eval.core.errors import SimEvalError
from sim_eval.core.types import EpisodeKey, Observation
from sim_eval.policies.policy import PolicyRequest
from sim_eval.policies.spatialvla.checkpoint import SpatialVLAPolicy, load_checkpoint, save_checkpoint
from sim_eval.policies.spatialvla.configuration_spatialvla import ExpertConfig
from sim_eval.policies.spatialvla.modeling_llava3d import IMAGE_TOKEN
from sim_eval.policies.spatialvla.pretrained import from_llava3d
from sim_eval.policies.spatialvla.pretrained_processing import check_pictures, llava3d_processor
from sim_eval.policies.spatialvla.processing_spatialvla import SpatialVLAProcessor

GOLDEN = Path(__file__).parent / "golden" / "llava3d" / "square"
PROMPT = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the human's questions. USER: <image>\n{instruction} ASSISTANT:"
)
INSTRUCTIONS = ("lift the red cube", " two  spaces", "schiebe den Würfel \N{ROBOT FACE}", "")
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SPECIAL = ["<unk>", "<s>", "</s>"]
PARTS = (
    "{{ bos_token }}{% for message in messages %}{% for part in message.content if part.type == 'image' %}[<image>]"
    "{% endfor %}{% for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %}{% endfor %}:"
)
Build: TypeAlias = Callable[[Path], SpatialVLAProcessor]


@pytest.fixture(scope="module")
def llama() -> Tokenizer:
    """BPE over the pieces of a sentence, bytes for what it has not seen, BOS before every text."""
    model = models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIAL + BYTES, show_progress=False)
    tokenizer.train_from_iterator([PROMPT.replace("\n", " "), *INSTRUCTIONS[:2]], trainer)
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = data["added_tokens"][: len(SPECIAL)]
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


@pytest.fixture
def published(tmp_path: Path, llama: Tokenizer) -> Path:
    """A LLaVA-3D with a tokenizer.json."""
    folder = Path(shutil.copytree(GOLDEN, tmp_path / "llava3d"))
    llama.save(str(folder / "tokenizer.json"))
    configure(folder, add_bos_token=True, add_eos_token=False)
    return folder


@pytest.fixture
def build(processor: SpatialVLAProcessor) -> Build:
    def make(folder: Path) -> SpatialVLAProcessor:
        config = from_llava3d(folder, "deep_llama", from_scratch=True, expert_config=ExpertConfig(width=8, mlp=8))
        return llava3d_processor(folder, processor.spec, processor.stats, config.network)

    return make


def configure(folder: Path, **settings: object) -> None:
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    settings = {**names, "tokenizer_class": "LlamaTokenizer", "legacy": False, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_sentencepiece(folder: Path, llama: Tokenizer) -> None:
    """The same pieces as a ``tokenizer.model``, which is what LLaVA's trainer leaves."""
    proto = import_protobuf().ModelProto()
    proto.trainer_spec.model_type, proto.trainer_spec.byte_fallback = 2, True  # BPE
    proto.normalizer_spec.add_dummy_prefix, proto.normalizer_spec.remove_extra_whitespaces = True, False
    for number, piece in enumerate(sorted(llama.get_vocab(), key=llama.token_to_id)):
        kind = {"<unk>": 2, "<s>": 3, "</s>": 3}.get(piece, 6 if piece in BYTES else 1)
        proto.pieces.add(piece=piece, type=kind, score=-float(max(0, number - len(SPECIAL + BYTES))))
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString())


def ids(processor: SpatialVLAProcessor, observe: Callable[[int], Observation], instruction: str) -> list[int]:
    made = processor([replace(observe(0), instruction=instruction)])
    assert made.attention_mask.all()
    found: list[int] = made.input_ids[0].tolist()
    return found


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
def test_ids_are_llavas_piece_by_piece(
    published: Path, build: Build, observe: Callable[[int], Observation], instruction: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(published)
    first, second = (tokenizer(piece).input_ids for piece in PROMPT.format(instruction=instruction).split("<image>"))
    assert first[0] == second[0] == tokenizer.bos_token_id == 1
    found = ids(build(published), observe, instruction)
    assert found == [*first, IMAGE_TOKEN, *second[1:]]
    assert found.count(1) == 1
    assert tokenizer.convert_ids_to_tokens(second[1:3]) == ["▁", "<0x0A>"], "the second piece has a prefix of its own"


def test_a_bare_sentencepiece_model_gives_the_same_ids(
    published: Path, build: Build, observe: Callable[[int], Observation], llama: Tokenizer
) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    expected = [ids(build(published), observe, instruction) for instruction in INSTRUCTIONS]
    write_sentencepiece(published, llama)
    configure(published)
    assert [ids(build(published), observe, instruction) for instruction in INSTRUCTIONS] == expected
    original = sentencepiece.SentencePieceProcessor(str(published / "tokenizer.model"))
    for instruction, found in zip(INSTRUCTIONS, expected, strict=True):
        first, second = (original.encode(piece) for piece in PROMPT.format(instruction=instruction).split("<image>"))
        assert found == [1, *first, IMAGE_TOKEN, *second]


def test_prompt_and_pictures_are_the_published_ones(published: Path, build: Build) -> None:
    made = build(published)
    assert made.prompt == PROMPT
    assert made.config.vision.image_size == 112


@pytest.mark.parametrize("place", ["chat_template.jinja", "processor_config.json", "tokenizer_config.json"])
def test_a_template_of_the_checkpoints_own_is_asked_first(published: Path, build: Build, place: str) -> None:
    if place == "chat_template.jinja":
        (published / place).write_text(PARTS)
    elif place == "processor_config.json":
        (published / place).write_text(json.dumps({"chat_template": PARTS}))
    else:
        configure(published, chat_template=PARTS)
    assert build(published).prompt == "[<image>]{instruction}:"


@pytest.mark.parametrize("template", ["{{ messages[0].content.nothing.at_all }}", "{% if", "no picture"])
def test_a_template_that_makes_no_prompt_is_refused(published: Path, build: Build, template: str) -> None:
    (published / "chat_template.jinja").write_text(template)
    with pytest.raises(SimEvalError, match="chat template makes no prompt") as caught:
        build(published)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_no_tokenizer_and_a_damaged_one_are_named(published: Path, build: Build, content: str | None) -> None:
    (published / "tokenizer.json").unlink()
    if content is not None:
        (published / "tokenizer.json").write_text(content)
    with pytest.raises(SimEvalError, match="holds no tokenizer" if content is None else "cannot be read") as caught:
        build(published)
    assert "\n" not in str(caught.value)


def test_padding_that_a_tokenizer_was_saved_with_is_not_kept(
    published: Path, build: Build, observe: Callable[[int], Observation], llama: Tokenizer
) -> None:
    expected = ids(build(published), observe, INSTRUCTIONS[0])
    padded = Tokenizer.from_str(llama.to_str())
    padded.enable_padding(length=300)
    padded.enable_truncation(4)
    padded.save(str(published / "tokenizer.json"))
    assert ids(build(published), observe, INSTRUCTIONS[0]) == expected


def test_the_policys_folder_keeps_words_and_prompt(
    published: Path, processor: SpatialVLAProcessor, observe: Callable[[int], Observation], tmp_path: Path
) -> None:
    model = from_llava3d(published, "deep_llama")
    made = llava3d_processor(published, processor.spec, processor.stats, model.network)
    save_checkpoint(tmp_path / "policy", model, made)
    loaded = load_checkpoint(tmp_path / "policy", "cpu")
    assert loaded.processor.prompt == PROMPT
    for instruction in INSTRUCTIONS:
        assert ids(loaded.processor, observe, instruction) == ids(made, observe, instruction)
    request = PolicyRequest(observe(0), EpisodeKey("robosuite/Lift", "test", 0), 0, made.action)
    before, after = (
        policy.predict([request])[0].actions for policy in (SpatialVLAPolicy(model, made, torch.device("cpu")), loaded)
    )
    assert (before == after).all()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"crop_size": 336, "size": 336}, "size 336 instead of 112"),
        ({"size": {"height": 112, "width": 112}}, "size "),
        ({"image_mean": [0.5, 0.5, 0.5]}, "image_mean"),
        ({"image_std": [0.5, 0.5, 0.5]}, "image_std"),
        ({"resample": 2}, "resample 2 instead of 3"),
        ({"do_center_crop": False}, "do_center_crop"),
        ({"rescale_factor": 1.0}, "rescale_factor"),
    ],
)
def test_pictures_that_are_not_clips_are_refused(
    published: Path, build: Build, change: dict[str, object], told: str
) -> None:
    file = published / "vision_tower" / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(SimEvalError, match=told) as caught:
        build(published)
    assert str(file) in str(caught.value)


def test_openais_own_settings_are_read(tmp_path: Path) -> None:
    file = tmp_path / "preprocessor_config.json"
    with pytest.raises(SimEvalError, match="cannot be read"):
        check_pictures(file, 336)
    settings: dict[str, object] = {
        "crop_size": 336,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": 336,
    }
    file.write_text(json.dumps(settings))
    check_pictures(file, 336)
    file.write_text("{}")
    with pytest.raises(SimEvalError, match="size 224 instead of 336"):
        check_pictures(file, 336)


def test_a_checkpoint_that_names_no_tower_is_refused(published: Path, build: Build) -> None:
    config = json.loads((published / "config.json").read_text())
    del config["mm_vision_tower"]
    (published / "config.json").write_text(json.dumps(config))
    with pytest.raises(SimEvalError, match=r"config\.json lacks mm_vision_tower"):
        build(published)
