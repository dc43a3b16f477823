"""Composite suspects: each component of a file or folder is named, with the registered model that explains it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from cli.main import run
from signatures.parts import components, places_of
from tests.architectures import architectures, clip, llava
from tests.small_models import disguised, low_rank_change, model, save

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tests.cli_support import Ran

    Program = Callable[..., Ran]
    Weights = dict[str, np.ndarray]

pytest_plugins = ["tests.cli_fixtures"]


def noise(seed: int, shapes: Mapping[str, tuple[int, ...]]) -> Weights:
    random = np.random.default_rng(seed)
    return {name: random.normal(0, 0.02, shape).astype(np.float32) for name, shape in shapes.items()}


def tower(seed: int, width: int = 48, layers: int = 2) -> Weights:
    """A small vision transformer, with the names inside a tower of CLIP's."""
    shapes: dict[str, tuple[int, ...]] = {"embeddings.patch_embedding.weight": (width, 3, 8, 8)}
    for layer in range(layers):
        block = f"encoder.layers.{layer}"
        shapes |= {f"{block}.self_attn.{word}_proj.weight": (width, width) for word in ("q", "k", "v", "out")}
        shapes |= {f"{block}.mlp.fc1.weight": (128, width), f"{block}.mlp.fc2.weight": (width, 128)}
    return noise(seed, shapes)


def under(prefix: str, held: Weights) -> Weights:
    return {f"{prefix}.{name}": value for name, value in held.items()}


VIT = tower(11)
LANGUAGE = model(1, 2)
CLIP = under("vision_model", tower(21)) | under("text_model", tower(22, 64, 3))
TUNED = low_rank_change(LANGUAGE, 5, 0.1)
PROJECTOR = under("multi_modal_projector", noise(31, {"linear_1.weight": (64, 48), "linear_2.weight": (64, 64)}))


def vision_language(vision: Weights, language: Weights) -> Weights:
    return under("vision_tower", vision) | under("language_model", language) | PROJECTOR


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    models = {"acme/vit": under("vision_model", VIT), "acme/llm": LANGUAGE, "acme/clip": CLIP}
    for name, held in models.items():
        path = save(held, folder / f"{name[5:]}.safetensors")
        assert run(["register", str(path), "--name", name, "--registry", str(folder / "registry"), "-q"]) == 0
    return folder / "registry"


def parts(report: dict[str, Any]) -> dict[str, tuple[str, str | None, bool]]:
    """By component: its kind, the model that explains it whole, if one does, and whether their contents are equal."""
    found = {}
    for part in report["parts"]:
        best = part["matches"][0] if part["matches"] else None
        assert best is None or best["coverage"] > 0.95
        found[part["name"]] = (part["kind"], best and best["model"], bool(best and best["identical"]))
    return found


def flat(ran: Ran) -> str:
    return " ".join(ran.out.split())


def test_tower_language_model_and_projector_have_findings_of_their_own(
    fp: Program, registry: Path, tmp_path: Path
) -> None:
    path = save(vision_language(VIT, TUNED), tmp_path / "vlm.safetensors")
    (report,) = fp("scan", path, "--format", "json", registry=registry).objects
    assert parts(report) == {
        "vision_tower": ("vision tower", "acme/vit", True),
        "language_model": ("language model", "acme/llm", False),
        "multi_modal_projector": ("projector", None, False),
    }
    assert sum(part["share"] for part in report["parts"]) == pytest.approx(1)
    assert {match["model"] for match in report["matches"]} == {"acme/vit", "acme/llm"}
    ran = fp("scan", path, registry=registry)
    assert "language_model shares weights with acme/llm; " in flat(ran)
    assert "vision_tower is that of acme/vit" in flat(ran)
    assert "nothing that is registered explains multi_modal_projector." in flat(ran)
    assert max(map(len, ran.out.splitlines()[1:])) <= 80


def test_the_tower_of_a_larger_model_is_named_and_no_more_than_possible(
    fp: Program, registry: Path, tmp_path: Path
) -> None:
    """Less than half of the suspect, and not all of the registered model: a component of both."""
    own = noise(41, {f"layers.{layer}.mlp.up_proj.weight": (900, 64) for layer in range(3)})
    path = save(vision_language(tower(21), own), tmp_path / "vlm.safetensors")
    (report,) = fp("scan", path, "--format", "json", registry=registry).objects
    assert report["verdict"] == "possible"
    assert [match["link"] for match in report["matches"]] == ["shared-component"]
    assert parts(report)["vision_tower"] == ("vision tower", "acme/clip", True)
    ran = fp("scan", path, registry=registry)
    assert "(all of its vision_tower)" in flat(ran)
    assert "vision_tower is the vision_model of acme/clip" in flat(ran)
    assert ran.status == 0


def test_names_lay_out_the_report_and_decide_nothing(fp: Program, registry: Path, tmp_path: Path) -> None:
    held = vision_language(VIT, TUNED)
    named = save(held, tmp_path / "named.safetensors")
    lying = save(
        {name.replace("vision_tower", "vae"): value for name, value in held.items()}, tmp_path / "l.safetensors"
    )
    nameless = save(disguised(held), tmp_path / "nameless.safetensors")
    reports = fp("scan", named, lying, nameless, "--format", "json", registry=registry).objects
    assert [report["verdict"] for report in reports] == ["match"] * 3
    for report in reports:
        assert {(one["model"], one["link"], one["confidence"]) for one in report["matches"]} == {
            ("acme/llm", "lineage", "certain"),
            ("acme/vit", "lineage", "certain"),
        }
    assert set(parts(reports[1])) == {"vae", "language_model", "multi_modal_projector"}
    assert reports[2]["parts"] == []


def test_where_names_say_nothing_the_report_says_so(fp: Program, registry: Path, tmp_path: Path) -> None:
    own = noise(41, {f"layers.{layer}.mlp.up_proj.weight": (900, 64) for layer in range(3)})
    path = save(disguised(vision_language(tower(21), own)), tmp_path / "nameless.safetensors")
    assert "tell no components apart" in flat(fp("scan", path, registry=registry))


def test_every_folder_of_a_pipeline_is_a_component(fp: Program, registry: Path, tmp_path: Path) -> None:
    folders = {"text_encoder": TUNED, "image_encoder": VIT, "odd_one": noise(51, {"a.weight": (64, 64)})}
    for name, held in folders.items():
        (tmp_path / name).mkdir()
        save(held, tmp_path / name / "model.safetensors")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "Pipeline"}))
    (tmp_path / "text_encoder" / "config.json").write_text(json.dumps({"_name_or_path": "acme/llm"}))
    (report,) = fp("scan", tmp_path, "--format", "json", registry=registry).objects
    assert parts(report) == {
        "image_encoder": ("image encoder", "acme/vit", True),
        "odd_one": ("", None, False),
        "text_encoder": ("text encoder", "acme/llm", False),
    }
    (claim,) = report["claims"]["checked"]
    assert (claim["part"], claim["registered"], claim["standing"]) == ("text_encoder", "acme/llm", "confirmed")


def test_head_and_dense_module_of_an_encoder_are_apart_from_it(fp: Program, registry: Path, tmp_path: Path) -> None:
    save(TUNED, tmp_path / "model.safetensors")
    (tmp_path / "2_Dense").mkdir()
    save(noise(61, {"linear.weight": (64, 64)}), tmp_path / "2_Dense" / "model.safetensors")
    (tmp_path / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "2_Dense"}]))
    (report,) = fp("scan", tmp_path, "--format", "json", registry=registry).objects
    assert parts(report) == {
        "": ("", "acme/llm", False),
        "lm_head": ("output head", "acme/llm", False),
        "2_Dense": ("head", None, False),
    }
    assert [part["words"] for part in report["parts"] if not part["name"]] == [["model"]]
    assert "the rest (model) shares weights with acme/llm" in flat(fp("scan", tmp_path, registry=registry))


def test_parts_are_listed_where_nothing_matches_and_of_a_signature(fp: Program, registry: Path, tmp_path: Path) -> None:
    path = save(vision_language(tower(71), model(72, 2)), tmp_path / "vlm.safetensors")
    assert fp("sketch", path, "-o", tmp_path / "vlm.fpsig", "-q").status == 0
    reports = fp("scan", path, tmp_path / "vlm.fpsig", "--format", "json", registry=registry).objects
    for report in reports:
        assert report["verdict"] == "no-match"
        assert parts(report)["vision_tower"] == ("vision tower", None, False)


def test_a_model_with_and_without_gates_is_registered_whole_and_found_part_by_part(fp: Program, tmp_path: Path) -> None:
    """Towers mostly have MLPs without a gate beside a language model's with one: one signature holds both."""
    path = save(vision_language(VIT, LANGUAGE), tmp_path / "vlm.safetensors")
    assert fp("register", path, "--name", "acme/vlm", registry=tmp_path / "registry").status == 0
    suspect = save(vision_language(tower(81), TUNED), tmp_path / "suspect.safetensors")
    (report,) = fp("scan", suspect, "--format", "json", registry=tmp_path / "registry").objects
    found = {part["name"]: [one["registered"] for one in part["matches"]] for part in report["parts"]}
    assert found == {
        "vision_tower": [],
        "language_model": ["language_model"],
        "multi_modal_projector": ["multi_modal_projector"],
    }


def test_a_model_of_one_kind_has_no_parts() -> None:
    composite = {name for name, shapes in architectures() if set(places_of(list(shapes)).values()) != {("", "")}}
    assert composite == {
        "bert-base", "minilm-l6", "bert-small", "distilbert", "vit-b16", "timm-vit-b16", "clip-b32", "siglip-base",
        "llama-4-scout", "llava",
    }  # fmt: skip


def test_parts_of_known_composites() -> None:
    assert set(places_of(list(llava())).values()) == {
        ("vision_tower", "vision tower"),
        ("multi_modal_projector", "projector"),
        ("language_model", "language model"),
        ("lm_head", "output head"),
    }
    assert {("text_model", "text encoder"), ("vision_model", "vision tower")} <= set(places_of(list(clip())).values())
    pipeline = ["transformer.blocks.0.w", "text_encoder.layers.0.w", "text_encoder_2.layers.0.w", "vae.decoder.w"]
    assert [kind for _, kind in places_of(pipeline).values()] == ["denoiser", *["text encoder"] * 2, "autoencoder"]
    assert set(places_of(["transformer.h.0.w", "transformer.wte.w", "lm_head.w"]).values()) == {("", "")}
    wrapped = places_of(["model.visual.blocks.0.w", "model.language_model.layers.0.w", "lm_head.w"])
    assert [place for place, _ in wrapped.values()] == ["model.visual", "model.language_model", "lm_head"]


def test_words_of_components_stand_for_one_kind_each() -> None:
    free = [word for one in components() if one.beside is None for word in one.names]
    assert len(free) == len(set(free))
    assert all(one.kind and one.names for one in components())
