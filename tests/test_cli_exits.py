"""Exit statuses: of single reports, of several suspects, and of everything that can go wrong."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from cli.exits import Exit, of_report, strongest
from signatures.report import Confidence, Link, Verdict
from tests.cli_values import REPORTS, match, report

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli_support import Ran, Zoo

    Program = Callable[..., Ran]

pytest_plugins = ["tests.cli_fixtures"]


@pytest.mark.parametrize(("found", "wanted"), list(itertools.product(Confidence, Confidence)))
def test_a_match_counts_from_the_confidence_asked_for(found: Confidence, wanted: Confidence) -> None:
    status = of_report(report(match(confidence=found)), wanted)
    assert status is (Exit.MATCH if found.rank >= wanted.rank else Exit.OK)


@pytest.mark.parametrize("link", [Link.SIBLING, Link.SHARED_COMPONENT, Link.SAME_INITIALISATION])
def test_only_lineage_accuses(link: Link) -> None:
    assert of_report(report(match(link, Confidence.CERTAIN)), Confidence.POSSIBLE) is Exit.OK


@pytest.mark.parametrize(
    ("verdict", "status"),
    [(Verdict.NO_MATCH, Exit.OK), (Verdict.INCONCLUSIVE, Exit.INCONCLUSIVE), (Verdict.ERROR, Exit.ERROR)],
)
def test_without_a_match_the_verdict_decides(verdict: Verdict, status: Exit) -> None:
    assert of_report(report(verdict=verdict), Confidence.LIKELY) is status


@pytest.mark.parametrize(("name", "status"), [("unrelated", 3), ("base", 1)])
def test_a_download_that_was_broken_off_is_scanned_as_far_as_it_goes(
    name: str, status: int, fp: Program, zoo: Zoo, tmp_path: Path
) -> None:
    whole = Path(getattr(zoo, name)).read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-100])
    ran = fp("scan", str(tmp_path / "cut.safetensors"), "--format", "json", registry=zoo.registry)
    assert ran.status == status
    [report] = json.loads(ran.out)
    assert report["verdict"] in {"match", "inconclusive", "no-match"}
    assert any("cut off" in note for note in report["notes"])


@pytest.mark.parametrize("verdict", list(Verdict))
def test_no_verdict_hides_a_match(verdict: Verdict) -> None:
    assert of_report(replace(report(match()), verdict=verdict), Confidence.LIKELY) is Exit.MATCH


def test_a_suspect_that_was_not_read_whole_is_inconclusive_unless_it_matched() -> None:
    torn = {name: replace(one, suspect=replace(one.suspect, complete=False)) for name, one in REPORTS.items()}
    assert of_report(torn["none"], Confidence.LIKELY) is Exit.INCONCLUSIVE
    assert of_report(torn["shared"], Confidence.LIKELY) is Exit.INCONCLUSIVE
    assert of_report(torn["error"], Confidence.LIKELY) is Exit.ERROR
    assert of_report(torn["merge"], Confidence.LIKELY) is Exit.MATCH


def test_one_beats_two_beats_three_beats_zero() -> None:
    order = [Exit.MATCH, Exit.ERROR, Exit.INCONCLUSIVE, Exit.OK]
    for number in range(1, 5):
        for some in itertools.permutations(order, number):
            assert strongest(some) is min(some, key=order.index)
    assert strongest([]) is Exit.OK


def test_the_numbers_are_those_of_the_contract() -> None:
    assert [int(one) for one in (Exit.OK, Exit.MATCH, Exit.ERROR, Exit.INCONCLUSIVE, Exit.INTERRUPTED)] == [
        0, 1, 2, 3, 130,
    ]  # fmt: skip


def test_scans_end_with_the_strongest_status(fp: Program, zoo: Zoo) -> None:
    cases = [
        ([zoo.unrelated], 0),
        ([zoo.tuned], 1),
        ([zoo.absent], 2),
        ([zoo.broken], 2),
        ([zoo.unrelated, zoo.tuned, zoo.broken], 1),
        ([zoo.broken, zoo.unrelated], 2),
    ]
    for suspects, status in cases:
        ran = fp("scan", *suspects, "--format", "json", registry=zoo.registry)
        assert ran.status == status, suspects
        assert [one["suspect"]["path"] for one in ran.objects] == suspects


def test_a_part_of_the_suspect_that_matches_nothing_is_inconclusive(fp: Program, zoo: Zoo) -> None:
    ran = fp("scan", zoo.unrelated, "--include", "*mlp*", "--format", "json", registry=zoo.registry)
    assert ran.status == 3
    assert ran.objects[0]["verdict"] == "inconclusive"


def test_without_any_registered_model_a_scan_is_inconclusive(fp: Program, zoo: Zoo, empty_home: Path) -> None:
    ran = fp("scan", zoo.tuned)
    assert ran.status == 3
    assert "INCONCLUSIVE" in ran.out
    assert "the registry is empty" in ran.out
    assert not (empty_home / "data").exists()
    assert fp("scan", zoo.tuned, zoo.absent).status == 2


def test_a_registry_emptied_again_is_inconclusive_too(fp: Program, zoo: Zoo, tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    assert fp("register", zoo.base, "--name", "acme/base", registry=registry).status == 0
    assert fp("remove", "acme/base", "--yes", registry=registry).status == 0
    ran = fp("scan", zoo.base, "--format", "json", registry=registry)
    assert (ran.status, ran.objects[0]["verdict"]) == (3, "inconclusive")


def test_a_registry_that_was_named_and_does_not_exist_is_an_error(fp: Program, zoo: Zoo, tmp_path: Path) -> None:
    ran = fp("scan", zoo.tuned, "--registry", tmp_path / "typo")
    assert (ran.status, ran.out) == (2, "")
    assert "there is no registry" in ran.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["scan"],
        ["scan", "--nonsense", "x"],
        ["scan", "x", "--format", "xml"],
        ["scan", "x", "--top-k", "0"],
        ["register", "x", "--name", "a/b", "--depth", "auto"],
        ["scan", "x", "--depth", "deeper"],
        ["scan", "x", "--fail_on", "likely"],
        ["compare", "x"],
        ["register", "x"],
        ["register", "x", "--name", "../escape"],
        ["export", "-o", "x"],
        ["remove"],
        ["index", "nonsense"],
        ["schema", "fp.none/1"],
        ["show"],
        ["sketch", "x"],
    ],
)
def test_bad_usage_is_one_line_and_two(fp: Program, arguments: list[str], empty_home: Path) -> None:
    ran = fp(*arguments)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("fp: error: ")
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--version"], ["scan", "-h"], ["index", "--help"]])
def test_help_is_a_result(fp: Program, arguments: list[str]) -> None:
    ran = fp(*arguments)
    assert (ran.status, ran.err) == (0, "")
    assert "fp" in ran.out


@pytest.mark.parametrize("arguments", [[], ["index"]])
def test_no_command_is_bad_usage_and_shows_help(fp: Program, arguments: list[str]) -> None:
    ran = fp(*arguments)
    assert (ran.status, ran.out) == (2, "")
    assert "Commands:" in ran.err


def test_an_unexpected_failure_is_one_line_and_a_traceback_only_when_asked(
    fp: Program, monkeypatch: pytest.MonkeyPatch, zoo: Zoo
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("nobody\nexpected this")

    monkeypatch.setattr("signatures.registry.Registry.models", fail)
    ran = fp("list", registry=zoo.registry)
    assert ran.status == 2
    what = "unexpected ZeroDivisionError: nobody\\nexpected this"
    assert ran.err == f"fp: error: {what} (a defect of this program; -v shows where)\n"
    assert "Traceback" in fp("list", "-v", registry=zoo.registry).err


def test_a_defect_met_in_one_suspect_does_not_hide_the_others(
    fp: Program, monkeypatch: pytest.MonkeyPatch, zoo: Zoo
) -> None:
    import signatures.scan

    real = signatures.scan.scan_path

    def sometimes(registry: object, path: str, **rest: object) -> object:
        if path == zoo.unrelated:
            raise ZeroDivisionError("unexpected")
        return real(registry, path, **rest)

    monkeypatch.setattr("signatures.scan.scan_path", sometimes)
    ran = fp("scan", zoo.unrelated, zoo.tuned, "--format", "json", registry=zoo.registry)
    assert ran.status == 1
    assert [one["verdict"] for one in ran.objects] == ["error", "match"]
    assert "unexpected ZeroDivisionError" in ran.err
    assert fp("scan", zoo.unrelated, registry=zoo.registry).status == 2


def test_a_damaged_model_is_an_error_of_the_suspects_that_are_compared_with_it(
    fp: Program, monkeypatch: pytest.MonkeyPatch, zoo: Zoo, tmp_path: Path
) -> None:
    import signatures.identify

    registry = tmp_path / "registry"
    for name in ("base", "unrelated"):
        fp("register", getattr(zoo, name), "--name", f"acme/{name}", registry=registry)
    (shown,) = fp("show", "acme/unrelated", "--format", "json", registry=registry).objects
    (damaged,) = registry.glob(f"signatures/*/{shown['identity'][7:]}.fpsig")
    damaged.write_bytes(b"nothing")
    real = signatures.identify.find_candidates
    # Of a large registry most suspects are compared with a few models only.
    monkeypatch.setattr(signatures.identify, "find_candidates", lambda *given: real(*given)[:1])
    ran = fp("scan", zoo.unrelated, zoo.tuned, zoo.unrelated, "--format", "json", registry=registry)
    assert [one["verdict"] for one in ran.objects] == ["error", "match", "error"]
    assert ran.status == 1
    assert ran.err.count("\n") == 2
    for part in (zoo.unrelated, "acme/unrelated cannot be compared", str(damaged), "`fp remove acme/unrelated`"):
        assert part in ran.err
    assert fp("scan", zoo.unrelated, "--jobs", "2", registry=registry).status == 2


def test_a_broken_registry_is_an_error_after_the_results_before_it(
    fp: Program, monkeypatch: pytest.MonkeyPatch, zoo: Zoo
) -> None:
    import signatures.scan
    from fingerprint.errors import RegistryBrokenError

    real = signatures.scan.scan_path

    def breaks(registry: object, path: str, **rest: object) -> object:
        if path == zoo.unrelated:
            raise RegistryBrokenError("it broke")
        return real(registry, path, **rest)

    monkeypatch.setattr("signatures.scan.scan_path", breaks)
    ran = fp("scan", zoo.tuned, zoo.unrelated, zoo.tuned, "--format", "json", registry=zoo.registry)
    assert (ran.status, len(ran.objects)) == (1, 1)
    assert ran.err == "fp: error: it broke\n"
    assert fp("scan", zoo.unrelated, registry=zoo.registry).status == 2
