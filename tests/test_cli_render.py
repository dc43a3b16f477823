"""Every kind of result in every format: one suite for all, then what each format promises."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from cli.console import Console, Look
from cli.render.csv import CsvRenderer
from cli.render.index import INDEX_VIEW, IndexState
from cli.render.inspection import InspectedTensor, Inspection, inspection_view
from cli.render.json import JsonLinesRenderer, JsonRenderer
from cli.render.models import model_view
from cli.render.registration import REGISTRATION_VIEW, Registered, Step
from cli.render.report import report_view
from cli.render.report_text import report_text
from cli.render.signature import SHOWN_VIEW, Shown
from cli.schemas import schema_names
from signatures.report import COMPARE_SCHEMA, KeyedCheck, Link, Verdict
from signatures.signature import sign
from tests.cli_support import validate, weights
from tests.cli_values import CHECKED, HOSTILE, RECORD, REPORTS, STATUS, match, report

if TYPE_CHECKING:
    from cli.render.view import Renderer, View


def _shown() -> Shown:
    from safetensors.numpy import save

    from fingerprint.assemble import fingerprint
    from fingerprint.checkpoint import Checkpoint
    from fingerprint.readers.safetensors import open_safetensors
    from fingerprint.source import MemorySource

    contents = open_safetensors(MemorySource(save(weights(1), {"note": "a claim"})))
    checkpoint = Checkpoint("model", "safetensors", (), contents.tensors, (), {HOSTILE[:20]: HOSTILE})
    signature = sign(fingerprint(checkpoint, workers=1))
    return Shown.of(replace(RECORD, identity=signature.identity), signature)


INSPECTION = Inspection(
    path=HOSTILE,
    kind="checkpoint",
    format="safetensors",
    files=((HOSTILE, 12),),
    bytes=12,
    complete=False,
    dtypes={"BF16": 6, "I8": 100},
    parameters=106,
    stored_tensors=2,
    tensors=(
        InspectedTensor(HOSTILE, "BF16", (2, 3), "gate", 0, 3, oriented=False),
        InspectedTensor("scalar", "I8", (), "buffer", None, None, oriented=True),
    ),
    family=None,
    width=3,
    mlps=0,
    quantisation="100 of 106",
    findings=(("code", HOSTILE),),
    notes=(HOSTILE,),
    claims={HOSTILE: HOSTILE},
)


@dataclass(frozen=True)
class Kind:
    """A kind of result: its view, values of it, and the name of its schema."""

    name: str
    view: View[Any]
    values: tuple[Any, ...]


KINDS = [
    Kind("scan", report_view(), tuple(REPORTS.values())),
    Kind("compare", report_view(COMPARE_SCHEMA), (REPORTS["lineage"],)),
    Kind("list", model_view(), (RECORD, RECORD)),
    Kind(
        "register",
        REGISTRATION_VIEW,
        (
            *(Registered(step, HOSTILE, "acme/alias", RECORD, HOSTILE, 3) for step in Step if step is not Step.ERROR),
            Registered(Step.ERROR, HOSTILE, "acme/alias", None, HOSTILE, 3, HOSTILE),
        ),
    ),
    Kind(
        "index",
        INDEX_VIEW,
        (
            IndexState("status", STATUS),
            IndexState("build", replace(STATUS, missing=(), superfluous=())),
            IndexState("status", replace(STATUS, outgrown=True)),
            IndexState("check", STATUS, (HOSTILE, "another"), CHECKED),
        ),
    ),
    Kind("inspect", inspection_view(tensors=False), (INSPECTION, replace(INSPECTION, kind="signature", tensors=()))),
    Kind("inspect --tensors", inspection_view(tensors=True), (INSPECTION,)),
    Kind("show", SHOWN_VIEW, (_shown(),)),
]
by_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
LOOKS = {
    "pipe": Look(),
    "terminal": Look(width=80, colour=True, symbols=True, details=True),
    "narrow": Look(width=40, symbols=True),
}


def rendered(renderer: Renderer[Any], values: tuple[Any, ...]) -> str:
    return "".join([renderer.begin(), *(renderer.value(value) for value in values), renderer.end()])


def renderers(view: View[Any]) -> dict[str, Renderer[Any]]:
    made: dict[str, Renderer[Any]] = {
        "json": JsonRenderer(view),
        "jsonl": JsonLinesRenderer(view),
        "csv": CsvRenderer(view),
    }
    return made | {f"text {name}": view.to_text(look) for name, look in LOOKS.items()}


@by_kind
@pytest.mark.parametrize("format_", list(renderers(report_view())))
def test_every_format_shows_every_kind_as_clean_text(kind: Kind, format_: str) -> None:
    text = rendered(renderers(kind.view)[format_], kind.values)
    text.encode()
    assert text.endswith("\n")
    colours = "\x1b" if format_ == "text terminal" else ""
    assert {one for one in text if not one.isprintable()} <= {"\n", *colours}


@by_kind
@pytest.mark.parametrize("format_", list(renderers(report_view())))
def test_a_document_without_values_is_whole(kind: Kind, format_: str) -> None:
    text = rendered(renderers(kind.view)[format_], ())
    if format_ == "json":
        assert json.loads(text) == []
    elif format_ == "csv":
        assert text == ",".join(kind.view.columns) + "\n"
    else:
        assert text == ""


@by_kind
def test_json_objects_follow_the_schema_that_they_name(kind: Kind) -> None:
    whole = json.loads(rendered(JsonRenderer(kind.view), kind.values))
    lines = [json.loads(line) for line in rendered(JsonLinesRenderer(kind.view), kind.values).splitlines()]
    assert whole == lines
    assert len(whole) == len(kind.values)
    for one in whole:
        validate(one)


def test_every_schema_is_that_of_some_result() -> None:
    named = {one["schema"] for kind in KINDS for one in map(kind.view.to_object, kind.values)}
    assert named == set(schema_names())


@by_kind
def test_csv_has_a_cell_for_each_column_and_no_formulas(kind: Kind) -> None:
    header, *rows = csv.reader(io.StringIO(rendered(CsvRenderer(kind.view), kind.values)))
    assert tuple(header) == kind.view.columns
    assert len(rows) >= len(kind.values)
    for row in rows:
        assert len(row) == len(header)
        for cell in row:
            if cell[:1] in set("=+-@|%"):
                float(cell)


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind.name != "inspect --tensors"], ids=lambda kind: kind.name
)
@pytest.mark.parametrize("width", [80, 60])
def test_text_keeps_to_the_width(kind: Kind, width: int) -> None:
    values = tuple(value for value in kind.values if value is not REPORTS["hostile"])
    lines = rendered(kind.view.to_text(Look(width=width, symbols=True)), values).splitlines()
    long = [line for line in lines if len(line) > width and " " in line.strip()]
    assert not [line for line in long if "sha256:" not in line and HOSTILE[:10] not in line]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_become_null(value: float) -> None:
    odd = report(replace(match(), similarity=value))
    assert json.loads(rendered(JsonRenderer(report_view()), (odd,)))[0]["matches"][0]["similarity"] is None


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_a_list_misses_columns_rather_than_parts_of_names(width: int) -> None:
    name = "acme/" + "a" * 40
    records = tuple(replace(RECORD, registrations=(replace(entry, name=name),)) for entry in RECORD.registrations)
    head, *rows, total = rendered(model_view().to_text(Look(width=width)), records).splitlines()
    assert [row.split()[0] for row in rows] == [name, name]
    assert total == "2 models"
    assert width < 60 or all(len(line) <= width for line in (head, *rows))
    assert ("Tensors" in head) == (width == 100)


def test_csv_has_a_row_a_match_or_one_for_the_suspect() -> None:
    rows = list(csv.DictReader(io.StringIO(rendered(CsvRenderer(report_view()), (REPORTS["merge"], REPORTS["none"])))))
    assert [row["model"] for row in rows] == ["acme/base-7b", "other/model", "acme/base-7b", ""]
    assert [row["verdict"] for row in rows] == ["match"] * 3 + ["no-match"]
    assert float(rows[0]["log10_p"]) == -312.4
    assert {row["keyed"] for row in rows} == {""}


def test_csv_says_what_the_key_says_of_each_model() -> None:
    checks = (
        KeyedCheck("acme/base-7b", "sha256:1", "k", confirmed=True, log10_p=-40.0, test="sketch", matched=True),
        KeyedCheck("other/model", "sha256:2", "k", confirmed=False, log10_p=-0.5, test="sketch", matched=False),
    )
    report = replace(REPORTS["none"], keyed=checks)
    [row] = csv.DictReader(io.StringIO(rendered(CsvRenderer(report_view()), (report,))))
    assert row["keyed"] == "acme/base-7b confirmed (log10 p -40.0); other/model not confirmed (log10 p -0.5)"


@pytest.mark.parametrize(
    ("name", "phrases"),
    [
        ("lineage", ["■ MATCH  acme/base-7b: fine-tuned, certain", "10^-312", "ancestor that is not registered"]),
        ("likely", ["fine-tuned, likely", "Not certain in spite of that p"]),
        ("possible", ["▲ POSSIBLE  acme/base-7b: fine-tuned", "may correspond", "about 1 in 13 thousand"]),
        ("sibling", ["sibling (no accusation)", "public/base explains that", "No accusation."]),
        ("shared", ["only a shared component", "No copy of the whole model", "layer 4 mlp", "2 more with -v"]),
        ("seed", ["only the same initialisation", "two labs can use one seed"]),
        ("merge", ["0.70 acme/base-7b + 0.30 other/model", "1% is left", "layer 0-3: 1.0 acme/base-7b", "other/model"]),
        ("none", ["✓ NO MATCH", "not registered were not looked for", "Would be found", "gauge: rotated"]),
        ("nothing-registered", ["? INCONCLUSIVE", "the registry is empty"]),
        ("inconclusive", ["? INCONCLUSIVE", "clears nothing"]),
        ("error", ["✗ ERROR"]),
        ("claims", ["names no base, but shares weights with", "6 more with -v"]),
        ("parts", ["vision_tower is that of acme/base-7b; 62% of", "nothing that is registered explains the rest"]),
    ],
)
def test_text_says_what_an_analyst_must_know(name: str, phrases: list[str]) -> None:
    words = " ".join(report_text(REPORTS[name], Look(symbols=True)).split())
    for phrase in phrases:
        assert " ".join(phrase.split()) in words


def test_the_verdict_comes_first_and_does_not_rest_on_colour_alone() -> None:
    for one in REPORTS.values():
        word = one.verdict.value.replace("-", " ").upper()
        head = report_text(one, Look()).splitlines()[1].partition(word)[0]
        assert head.startswith("[")
        assert head.isascii()
        assert word in report_text(one, Look(colour=True)).splitlines()[1].partition("\x1b[0m")[0]


def test_only_an_accusation_is_red() -> None:
    red = {name for name, one in REPORTS.items() if "\x1b[31m" in report_text(one, Look(colour=True))}
    assert red == {"lineage", "likely", "merge", "hostile", "error", "claims"}


def test_more_details_show_all_parts_and_all_matches() -> None:
    text = report_text(REPORTS["merge"], Look(details=True))
    assert text.count("How sure") == 3
    assert "layer 6 mlp" in text
    assert "cosine 0.99" in text


def test_one_model_is_not_several() -> None:
    assert "the one registered model" in report_text(report(verdict=Verdict.NO_MATCH, models=1), Look())


def test_a_comparison_says_what_was_compared_with_what() -> None:
    for verdict in (Verdict.NO_MATCH, Verdict.INCONCLUSIVE):
        text = " ".join(report_text(report(verdict=verdict, models=1), Look(), against="ours.safetensors").split())
        assert text.startswith("uploads/model.safetensors ")
        assert text.count("ours.safetensors") == 2
        assert "registered model" not in text
    assert "against ours.safetensors in" in report_text(report(match(), models=1), Look(), against="ours.safetensors")


@pytest.mark.parametrize("name", ["llama", "acme/llama-A", "model.layers.0.mlp"])
def test_names_are_written_as_they_are(name: str) -> None:
    found = match(Link.SIBLING) if "model." not in name else match(Link.SHARED_COMPONENT)
    explained = report(replace(found, explained_by=name if "model." not in name else None, note=f"{name} explains it"))
    assert f" {name} explains it." in report_text(explained, Look(width=100))
    assert "A common ancestor" in report_text(report(match()), Look(width=100))


def test_an_error_is_left_to_standard_error() -> None:
    lines = report_text(replace(REPORTS["error"], notes=()), Look()).splitlines()
    assert lines == ["uploads/model.safetensors", "[x] ERROR"]


def test_a_model_without_layers_has_no_number_of_them() -> None:
    (shown,) = (kind.values[0] for kind in KINDS if kind.name == "show")
    held = shown.signature.fingerprint
    bare = replace(held, tensors=tuple(replace(tensor, layer=None) for tensor in held.tensors))
    text = rendered(SHOWN_VIEW.to_text(Look()), (replace(shown, signature=replace(shown.signature, fingerprint=bare)),))
    assert "2 layers; safetensors" in rendered(SHOWN_VIEW.to_text(Look()), (shown,))
    assert "layers" not in text
    assert "  safetensors," in text


def test_a_console_without_standard_error_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    import sys

    sys.stderr.close()
    Console().error("nobody reads this")


def test_an_index_that_has_outgrown_its_lists_is_told_to_be_built_anew() -> None:
    for outgrown in (False, True):
        text = INDEX_VIEW.to_text(Look()).value(IndexState("status", replace(STATUS, missing=(), outgrown=outgrown)))
        assert ("fp index build" in text) is outgrown
