"""Lists through Ray, on this machine: the same results as without it, whoever is killed."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from cli.console import Console
from cli.tasks import ScanTask, Sender
from fingerprint.errors import RegistryError, UsageError
from signatures.bulk.ray_workers import RayWorkers
from signatures.bulk.work import ATTEMPTS, in_order
from signatures.options import ScanOptions
from tests.bulk_tasks import Dies, Squares
from tests.test_bulk import lines, pinned

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli_support import Zoo

pytest_plugins = ["tests.cli_fixtures"]


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(UsageError, match=r"weightprint\[ray\]"):
        RayWorkers(Squares(), 1)


@pytest.mark.engines
def test_an_item_whose_worker_is_killed_is_tried_again_and_given_up_in_the_end(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with closing(RayWorkers(Dies(str(tmp_path)), 2)) as workers:
        found = [result for _, result in in_order(workers, [1, 1 - ATTEMPTS, 2, -99, 3], window=9)]
    assert found[:3] == ["done 1", f"done {1 - ATTEMPTS}", "done 2"]
    assert found[3].startswith("lost -99: its worker in Ray was lost")
    assert found[4] == "done 3"
    assert len(list(tmp_path.glob("-99.*"))) == ATTEMPTS
    assert capfd.readouterr() == ("", "")  # Ray itself says nothing: standard output is for results


@pytest.mark.engines
def test_a_defect_ends_the_list() -> None:
    with closing(RayWorkers(Squares(), 1)) as workers:
        workers.start(0, "no number")  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            workers.finished()


@pytest.mark.engines
def test_lists_come_out_as_without_ray(fp, zoo: Zoo, tmp_path: Path) -> None:
    command = ["scan", zoo.tuned, zoo.part, zoo.broken, zoo.unrelated, "--format", "jsonl"]
    alone = fp(*command, registry=zoo.registry)
    through = fp(*command, "--executor", "ray", "--jobs", "2", registry=zoo.registry)
    assert lines(through.out) == lines(alone.out)
    assert (through.status, through.err) == (alone.status, alone.err)
    command = ["register", zoo.base, zoo.broken, zoo.tuned, "--name", "acme/{stem}", "--format", "jsonl"]
    (one, alone), (two, through) = (
        (tmp_path / name, fp(*command, *more, registry=tmp_path / name))
        for name, more in (("one", ()), ("two", ("--executor", "ray")))
    )
    assert through.out.count("\n") == 3
    assert lines(through.out.replace(str(two), str(one))) == lines(alone.out)


@pytest.mark.engines
def test_settings_of_the_run_count_and_not_those_of_the_workers(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("FP_INDEX", "nonsense://")
        task = ScanTask(Sender.here(Console()), pinned(zoo.registry), ScanOptions(), None)
    monkeypatch.delenv("FP_INDEX", raising=False)  # what the workers begin with
    with closing(RayWorkers(task, 1)) as workers:
        workers.start(0, zoo.tuned)
        _, answer = workers.finished()
    assert "FP_INDEX=nonsense://" in answer.value.error


@pytest.mark.engines
def test_a_registry_that_is_another_one_where_the_workers_are_ends_the_list(fp, zoo: Zoo, tmp_path: Path) -> None:
    fp("register", zoo.base, "--name", "acme/base", registry=tmp_path)
    task = ScanTask(Sender.here(Console()), replace(pinned(zoo.registry), folder=str(tmp_path)), ScanOptions(), None)
    with closing(RayWorkers(task, 1)) as workers:
        workers.start(0, zoo.tuned)
        with pytest.raises(RegistryError, match="another registry"):
            workers.finished()


@pytest.mark.engines
def test_a_cluster_that_is_not_there_is_an_error(fp, zoo: Zoo) -> None:
    away = {"RAY_ADDRESS": "127.0.0.1:9"}
    ran = fp("scan", zoo.tuned, "--executor", "ray", registry=zoo.registry, environment=away)
    assert ran.status == 2
    assert "Ray cannot be started or reached" in ran.err
