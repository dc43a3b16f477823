"""Lists of work: results come in order, whoever is killed; what is done is not done again."""

from __future__ import annotations

import json
import os
import pickle
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import closing
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from msgspec import convert
from msgspec.structs import replace

from cli.commands.scan import failed, scan_one
from cli.console import Console
from cli.measure import Measuring
from cli.tasks import MeasureTask, ScanTask, Sender
from cli.worklist import Entry
from fingerprint.errors import RegistryError, UsageError, WorkerLostError
from fingerprint.threads import processors, thread_count
from signatures.bulk.journal import Journal, state_of
from signatures.bulk.pinned import PinnedRegistry
from signatures.bulk.pool import Pool
from signatures.bulk.settings import VARIABLES
from signatures.bulk.work import ATTEMPTS, Alone, in_order
from signatures.options import ScanOptions
from signatures.registry import Registry
from signatures.report import Report
from signatures.signature import decode, read_signature
from tests.bulk_tasks import Dies, Forks, Squares, Threads, Waits

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.cli_support import Zoo

pytest_plugins = ["tests.cli_fixtures"]

PROGRAM = [sys.executable, "-m", "cli"]


class Backwards:
    """Finishes what was handed out last first."""

    def __init__(self) -> None:
        self.held: list[tuple[int, Any]] = []
        self.most = 0

    slots = 5

    def start(self, number: int, item: Any) -> None:
        self.held.append((number, item))
        self.most = max(self.most, len(self.held))

    def finished(self) -> tuple[int, Any]:
        number, item = self.held.pop()
        return number, f"did {item}"

    def close(self) -> None:
        self.held.clear()


class TestOrder:
    @pytest.mark.parametrize("window", [1, 2, 7, 100])
    def test_results_come_in_the_order_of_the_list(self, window: int) -> None:
        found = list(in_order(Backwards(), range(20), window=window))
        assert found == [(item, f"did {item}") for item in range(20)]

    def test_no_more_is_begun_than_the_window_holds(self) -> None:
        taken: list[int] = []

        def items() -> Iterator[int]:
            for item in range(30):
                taken.append(item)
                yield item

        for handed_on, _ in enumerate(in_order(Backwards(), items(), window=4), 1):
            assert len(taken) - handed_on <= 4

    def test_what_is_known_is_not_done_again_and_the_rest_is_told_at_once(self) -> None:
        workers, told = Backwards(), []
        known = {1: "knew 1", 3: "knew 3"}
        found = list(
            in_order(
                workers, range(5), window=9, known=known.get, done=lambda item, result: told.append((item, result))
            )
        )
        assert [result for _, result in found] == ["did 0", "knew 1", "did 2", "knew 3", "did 4"]
        assert sorted(told) == [(0, "did 0"), (2, "did 2"), (4, "did 4")]

    def test_one_process_alone_takes_an_item_when_the_one_before_was_handed_on(self) -> None:
        taken: list[int] = []
        items = (taken.append(item) or item for item in range(3))  # type: ignore[func-returns-value]
        for number, (_, (square, _)) in enumerate(in_order(Alone(Squares()), items, window=9)):
            assert (square, taken) == (number**2, list(range(number + 1)))


class TestPool:
    def test_processes_share_the_work_and_are_gone_afterwards(self) -> None:
        with closing(Pool(Squares(), 2)) as pool:
            found = list(in_order(pool, range(30), window=9))
            pids = pool.pids
        assert [square for _, (square, _) in found] == [item**2 for item in range(30)]
        assert {pid for _, (_, pid) in found} <= set(pids)
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)

    def test_an_item_whose_worker_is_killed_is_tried_again_and_given_up_in_the_end(self, tmp_path: Path) -> None:
        with closing(Pool(Dies(str(tmp_path)), 2)) as pool:
            items = [1, 1 - ATTEMPTS, 2, -99, 3]
            found = [result for _, result in in_order(pool, items, window=9)]
        assert found[:3] == ["done 1", f"done {1 - ATTEMPTS}", "done 2"]
        assert found[3] == "lost -99: its worker process was killed (signal 9: out of memory?), 3 times"
        assert found[4] == "done 3"
        assert len(list(tmp_path.glob("-99.*"))) == ATTEMPTS

    def test_an_idle_worker_that_was_killed_is_replaced(self) -> None:
        with closing(Pool(Squares(), 1)) as pool:
            pool.start(0, 3)
            _, (_, first) = pool.finished()
            os.kill(first, signal.SIGKILL)
            wait_for_end(first)
            pool.start(1, 4)
            number, (square, second) = pool.finished()
        assert (number, square) == (1, 16)
        assert second != first

    def test_a_defect_ends_the_list(self) -> None:
        with closing(Pool(Squares(), 1)) as pool:
            pool.start(0, "no number")  # type: ignore[arg-type]
            with pytest.raises(TypeError):
                pool.finished()

    @pytest.mark.parametrize(("wanted", "threads"), [("", max(1, processors() // 2)), ("7", 7)])
    def test_the_processors_are_shared_out_unless_the_environment_says_otherwise(
        self, wanted: str, threads: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FP_THREADS", wanted)
        with closing(Pool(Threads(), 2)) as pool:
            pool.start(0, 0)
            _, found = pool.finished()
        assert set(found) == {str(threads)}

    def test_a_program_that_cannot_be_started_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "executable", "/nowhere/python")
        with closing(Pool(Squares(), 1)) as pool, pytest.raises(WorkerLostError, match="cannot be started"):
            pool.start(0, 1)

    def test_idle_workers_end_with_a_parent_that_is_killed(self) -> None:
        code = (
            "from signatures.bulk.pool import Pool; from tests.bulk_tasks import Squares, tell;"
            "pool = Pool(Squares(), 1); pool.start(0, 1); pool.finished(); tell(pool.pids[0]); input()"
        )
        ends_with_parent(code, 1)

    @pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")
    def test_workers_may_fork(self) -> None:
        with closing(Pool(Forks(), 1)) as pool:
            pool.start(0, 0)
            assert pool.finished() == (0, True)

    @pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")
    def test_workers_at_work_and_what_they_forked_end_with_a_parent_that_is_killed(self) -> None:
        code = (
            "from signatures.bulk.pool import Pool; from tests.bulk_tasks import Forks;"
            "pool = Pool(Forks(), 1); pool.start(0, 1); pool.finished()"
        )
        ends_with_parent(code, 3)

    @pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")
    def test_what_a_worker_forked_ends_with_it_so_that_its_item_can_be_given_up(self) -> None:
        code = (
            "from signatures.bulk.pool import Pool; from tests.bulk_tasks import Forks;"
            "pool = Pool(Forks(), 1); pool.start(0, 2); print(pool.finished()); pool.close()"
        )
        ran = subprocess.run(
            [sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE, timeout=60, check=True
        )
        assert ran.stdout == b"(0, True)\n"

    def test_where_the_system_cannot_end_a_worker_with_its_parent_a_thread_does(self) -> None:
        code = "from signatures.bulk import worker; worker._to_be_killed_with_parent = lambda: None; worker.main()"
        worker = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
        )
        assert worker.stdin is not None
        assert worker.stderr is not None
        with closing(Connection(os.dup(worker.stdin.fileno()), readable=False)) as requests:
            requests.send(Waits())
            requests.send(0)
            assert worker.stderr.readline() == b"waits\n"
        worker.stdin.close()
        assert worker.wait(60) == 0
        worker.stderr.close()


def ends_with_parent(code: str, count: int) -> None:
    """Run the program ``code``, have ``count`` processes tell their numbers, kill it, and see that they end too."""
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    )
    assert parent.stderr is not None
    processes = [os.pidfd_open(int(parent.stderr.readline())) for _ in range(count)]
    parent.kill()
    parent.wait()
    for process in processes:
        assert select.select([process], [], [], 60)[0]
        os.close(process)
    parent.communicate()


def wait_for_end(pid: int) -> None:
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FP_")}
    return {**kept, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1", **more}


def test_the_number_of_threads_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, wanted in (("3", 3), ("0", processors()), ("many", processors()), ("", processors())):
        monkeypatch.setenv("FP_THREADS", value)
        assert thread_count() == wanted


class TestJournal:
    @pytest.fixture
    def item(self, tmp_path: Path) -> str:
        (tmp_path / "item").write_text("weights")
        return str(tmp_path / "item")

    def test_what_is_done_is_known_to_the_next_run(self, tmp_path: Path, item: str) -> None:
        for expected in (None, {"n": 1}):
            with Journal.open(str(tmp_path / "j"), {"task": "a"}) as journal:
                assert journal.result(item) == expected
                assert journal.result(item, "another name") is None
                assert journal.result(item) == expected
                journal.add(item, {"n": 1})

    def test_other_settings_and_changed_files_are_done_again(self, tmp_path: Path, item: str) -> None:
        with Journal.open(str(tmp_path / "j"), {"task": "a"}) as journal:
            journal.result(item)
            journal.add(item, 1)
        with Journal.open(str(tmp_path / "j"), {"task": "b"}) as journal:
            assert journal.result(item) is None
        with Journal.open(str(tmp_path / "j"), {"task": "a"}) as journal:
            assert journal.result(item) == 1
            os.utime(item, ns=(1, 1))
            assert journal.result(item) is None

    def test_a_line_that_was_cut_short_is_dropped(self, tmp_path: Path, item: str) -> None:
        path = tmp_path / "j"
        with Journal.open(str(path), {}) as journal:
            journal.result(item)
            journal.add(item, 1)
            journal.add(item, 2, "b")
        whole = path.read_bytes()
        for length in [*range(0, len(whole), 7), *(at + 1 for at, byte in enumerate(whole) if byte == 10)]:
            path.write_bytes(whole[:length])
            with Journal.open(str(path), {}) as journal:
                lines = whole[:length].count(b"\n")
                assert (journal.result(item), journal.result(item, "b")) == (
                    1 if lines > 1 else None,
                    2 if lines > 2 else None,
                )
                journal.add(item, 3, "c")
            with Journal.open(str(path), {}) as journal:
                assert journal.result(item, "c") == 3

    @pytest.mark.parametrize("text", ["something else\n", '{"schema": "fp.scan/1"}\n', "no line break"])
    def test_another_file_is_refused_and_stays_as_it_is(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "j").write_text(text)
        with pytest.raises(UsageError, match="no journal"):
            Journal.open(str(tmp_path / "j"), {})
        assert (tmp_path / "j").read_text() == text

    def test_two_runs_do_not_share_one(self, tmp_path: Path) -> None:
        with Journal.open(str(tmp_path / "j"), {}), pytest.raises(UsageError, match="another run"):
            Journal.open(str(tmp_path / "j"), {})

    def test_a_change_of_any_file_of_a_checkpoint_counts(self, tmp_path: Path) -> None:
        (tmp_path / "sub").mkdir()
        for name in ("model.json", "sub/shard", "shard"):
            (tmp_path / name).write_text("1")
        folder, index = str(tmp_path), str(tmp_path / "model.json")
        before = state_of(folder), state_of(index)
        os.utime(tmp_path / "sub" / "shard", ns=(1, 1))
        assert (state_of(folder) == before[0], state_of(index) == before[1]) == (False, True)
        os.utime(tmp_path / "shard", ns=(1, 1))
        assert state_of(index) != before[1]
        assert state_of(str(tmp_path / "absent")) is None
        assert state_of("https://host/model") is not None


def lines(text: str | bytes) -> list[dict[str, Any]]:
    """Objects of JSON lines without what measures time."""
    found = [json.loads(line) for line in text.splitlines()]
    for one in found:
        one.pop("seconds", None)
        for entry in (one.get("model") or {}).get("registrations", ()):
            entry.pop("registered")
    return found


class TestScan:
    def paths(self, zoo: Zoo) -> list[str]:
        return [zoo.tuned, zoo.part, zoo.broken, zoo.unrelated, zoo.sibling, zoo.absent]

    def test_a_report_survives_the_journal(self, fp, zoo: Zoo) -> None:
        ran = fp("scan", zoo.tuned, zoo.sibling, "--base", "acme/base", "--format", "jsonl", registry=zoo.registry)
        for line in ran.out.splitlines():
            assert json.loads(json.dumps(convert(json.loads(line), Report).to_json())) == json.loads(line)

    def test_a_pool_gives_what_one_process_gives_even_if_a_worker_is_killed(self, fp, zoo: Zoo) -> None:
        command = ["scan", *self.paths(zoo), "--format", "jsonl"]
        alone = fp(*command, registry=zoo.registry)
        process = subprocess.Popen(
            [*PROGRAM, *command, "--jobs", "2"],
            env=environment(FP_REGISTRY=str(zoo.registry)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,  # what a buffer holds beyond the first line ``communicate`` would not see
        )
        assert process.stdout is not None
        first = process.stdout.readline()
        with open(f"/proc/{process.pid}/task/{process.pid}/children") as children:
            workers = [int(pid) for pid in children.read().split()]
        os.kill(workers[0], signal.SIGKILL)
        rest, err = process.communicate(timeout=120)
        assert lines(first + rest) == lines(alone.out)
        assert process.returncode == alone.status == 1
        assert err.decode() == alone.err

    def test_an_interrupted_run_goes_on_where_it_stopped(self, fp, zoo: Zoo, tmp_path: Path) -> None:
        journal = tmp_path / "journal"
        command = ["scan", *self.paths(zoo), "--format", "jsonl", "--resume", str(journal)]
        process = subprocess.Popen(
            [*PROGRAM, *command, "--jobs", "2"],
            env=environment(FP_REGISTRY=str(zoo.registry)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 130
        assert err.decode().splitlines()[-1] == "fp: error: interrupted"
        kept = journal.read_bytes()
        assert kept.count(b"\n") >= 2
        resumed = fp(*command, registry=zoo.registry)
        assert journal.read_bytes().startswith(kept)
        assert lines(resumed.out) == lines(fp(*command[:-2], registry=zoo.registry).out)
        done = [json.loads(line)["path"] for line in journal.read_text().splitlines()[1:]]
        assert sorted(done) == sorted({zoo.tuned, zoo.part, zoo.unrelated, zoo.sibling})  # each once, no errors
        assert resumed.status == 1

    def test_a_changed_registry_makes_a_journal_worthless(self, fp, zoo: Zoo, tmp_path: Path) -> None:
        registry = tmp_path / "registry"
        fp("register", zoo.base, "--name", "acme/base", registry=registry)
        command = ["scan", zoo.tuned, "--format", "jsonl", "--resume", str(tmp_path / "journal")]
        first = fp(*command, registry=registry)
        fp("register", zoo.base, "--name", "acme/alias", registry=registry)
        assert lines(first.out)[0]["matches"][0]["aliases"] == []
        assert lines(fp(*command, registry=registry).out)[0]["matches"][0]["aliases"] == ["acme/alias"]

    def test_a_journal_of_another_engine_or_device_is_of_other_work(
        self, fp, zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        command = ["scan", zoo.tuned, "--resume", tmp_path / "journal"]
        fp(*command, registry=zoo.registry)
        scanned: list[str] = []

        def scan(_: object, path: str, *__: object) -> Report:
            scanned.append(path)
            return failed(path, "scanned again")

        monkeypatch.setattr("cli.commands.scan.scan_one", scan)
        for environment, again in (
            ({}, False),
            ({"FP_INDEX": "local", "FP_DEVICE": "cpu"}, False),
            ({"FP_INDEX": "http://host:1?index=HNSW"}, True),
            ({"FP_DEVICE": "mps"}, True),
        ):
            scanned.clear()
            fp(*command, registry=zoo.registry, environment=environment)
            assert scanned == ([zoo.tuned] if again else [])

    def test_what_was_compared_with_a_model_that_came_and_went_is_scanned_again(
        self, fp, zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        registry = tmp_path / "registry"
        fp("register", zoo.base, "--name", "acme/base", registry=registry)
        fp("sketch", zoo.unrelated, "-o", tmp_path / "guest.fpsig")

        def scan(opened: Registry, path: str, *rest: Any) -> Report:
            if path == zoo.tuned:
                return scan_one(opened, path, *rest)
            opened.register(read_signature(tmp_path / "guest.fpsig"), name="guest/model")
            report = scan_one(opened, path, *rest)
            opened.remove("guest/model")
            return report

        command = ["scan", zoo.tuned, zoo.unrelated, "--format", "jsonl", "--resume", tmp_path / "journal"]
        with monkeypatch.context() as patch:
            patch.setattr("cli.commands.scan.scan_one", scan)
            ran = lines(fp(*command, registry=registry).out)
        assert [match["model"] for match in ran[1]["matches"]] == ["guest/model"]
        kept = (tmp_path / "journal").read_text()
        assert zoo.tuned in kept
        assert "guest/model" not in kept
        assert lines(fp(*command, registry=registry).out)[1]["verdict"] == "no-match"

    def test_what_does_not_fit_together_is_refused(self, fp, zoo: Zoo, tmp_path: Path) -> None:
        for options in (
            ("--executor", "none", "--jobs", "2"),
            ("--resume", zoo.tuned),
            ("--resume", str(tmp_path / "absent" / "journal")),
            ("-o", str(tmp_path / "o"), "--jobs", "0"),
        ):
            assert fp("scan", zoo.tuned, *options, registry=zoo.registry).status == 2


class TestSettings:
    """What a worker on another machine must not take from its own environment."""

    OURS: ClassVar = {"FP_INDEX": "nonsense://", "FP_INDEX_TOKEN": "of the run", "FP_DEVICE": "cpu"}

    def task(self, zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> ScanTask:
        """As a run with ``OURS`` hands it out; the environment is as before afterwards."""
        with monkeypatch.context() as patch:
            for name in VARIABLES:
                patch.delenv(name, raising=False)
            for name, value in self.OURS.items():
                patch.setenv(name, value)
            return ScanTask(Sender.here(Console()), pinned(zoo.registry), ScanOptions(), None)

    def test_they_travel_with_the_task(self, zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
        code = (
            "import os, pickle, sys; task = pickle.load(sys.stdin.buffer); answer = task.do(sys.argv[1]);"
            "print(answer.value.error); print(*(os.environ.get(name) for name in sys.argv[2:]), sep='\\n')"
        )
        ran = subprocess.run(
            [sys.executable, "-c", code, zoo.tuned, *self.OURS, "HF_TOKEN"],
            input=pickle.dumps(self.task(zoo, monkeypatch)),
            env=environment(HF_TOKEN="of the node", FP_DEVICE="nonsense"),
            stdout=subprocess.PIPE,
            check=True,
        )
        error, *found = ran.stdout.decode().splitlines()
        assert "FP_INDEX=nonsense://" in error
        assert found == [*self.OURS.values(), "None"]

    def test_secrets_among_them_are_not_shown(self, zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
        assert "of the run" not in repr(self.task(zoo, monkeypatch))


def pinned(folder: Path) -> PinnedRegistry:
    with Registry.open(folder, create=False) as registry:
        return PinnedRegistry.of(registry)


class TestPinnedRegistry:
    """Another folder stands for the same folder on another machine: what lies there is another file."""

    @pytest.fixture
    def original(self, fp, zoo: Zoo, tmp_path: Path) -> Path:
        fp("register", zoo.base, "--name", "acme/base", registry=tmp_path / "original")
        return tmp_path / "original"

    def test_the_same_database_may_be_added_to_meanwhile(self, fp, zoo: Zoo, original: Path) -> None:
        begun = pinned(original)
        with begun.opened() as registry:
            fp("register", zoo.unrelated, "--name", "acme/new", registry=original)
            begun.require_current(registry)
        with begun.opened() as registry:
            assert registry.count() == 2

    def test_a_copy_serves_until_it_is_changed(self, fp, zoo: Zoo, original: Path, tmp_path: Path) -> None:
        copy = shutil.copytree(original, tmp_path / "copy")
        begun = replace(pinned(original), folder=str(copy))
        with begun.opened() as registry:
            begun.require_current(registry)
            fp("register", zoo.unrelated, "--name", "acme/new", registry=copy)
            with pytest.raises(RegistryError, match="copy the folder anew"):
                begun.require_current(registry)

    @pytest.mark.parametrize(
        "changes",
        [
            pytest.param(["register {unrelated} --name acme/new"], id="a model more"),
            pytest.param(["register {base} --name acme/new"], id="a name more"),
            pytest.param(["remove acme/base --yes", "register {base} --name acme/base"], id="removed and back"),
        ],
    )
    def test_a_copy_of_another_state_is_refused(
        self, fp, zoo: Zoo, original: Path, tmp_path: Path, changes: list[str]
    ) -> None:
        copy = shutil.copytree(original, tmp_path / "copy")
        for change in changes:
            assert fp(*change.format(unrelated=zoo.unrelated, base=zoo.base).split(), registry=original).status == 0
        with pytest.raises(RegistryError, match=f"{copy} on .*copy the folder anew"):
            replace(pinned(original), folder=str(copy)).opened()

    def test_another_registry_is_refused_though_it_holds_the_same(
        self, fp, zoo: Zoo, original: Path, tmp_path: Path
    ) -> None:
        fp("register", zoo.base, "--name", "acme/base", registry=tmp_path / "other")
        with pytest.raises(RegistryError, match="another registry"):
            replace(pinned(original), folder=str(tmp_path / "other")).opened()

    def test_a_machine_without_it_is_named(self, original: Path, tmp_path: Path) -> None:
        with pytest.raises(RegistryError, match=f"^on {re.escape(socket.gethostname())}: .*no registry"):
            replace(pinned(original), folder=str(tmp_path / "absent")).opened()

    def test_what_a_worker_refuses_ends_the_run_with_one_error(
        self, fp, zoo: Zoo, original: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wrong = pinned(original)
        monkeypatch.setattr(PinnedRegistry, "of", lambda _: replace(wrong, folder=str(zoo.registry)))
        ran = fp("scan", zoo.tuned, zoo.unrelated, "--jobs", "2", "--format", "jsonl", registry=original)
        assert (ran.status, ran.out) == (2, "")
        assert ran.err.startswith(f"fp: error: {zoo.registry} on ")
        assert ran.err.count("\n") == 1

    def test_vectors_on_a_server_are_brought_along_before_others_search(
        self, fp, zoo: Zoo, original: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By one process: two machines would not see each other's lock."""

        def fail(_: Registry) -> None:
            raise RegistryError("brought along")

        monkeypatch.setattr(Registry, "catch_up_index", fail)
        away = {"FP_INDEX": "http://127.0.0.1:9"}
        ran = fp("scan", zoo.tuned, zoo.unrelated, "--jobs", "2", registry=original, environment=away)
        assert (ran.status, ran.err) == (2, "fp: error: brought along\n")

    def test_an_index_catches_up(self, original: Path) -> None:
        for kind in ("index", "slices"):
            shutil.rmtree(original / kind)
        with Registry.open(original) as registry:
            assert not registry.index_status().current
            registry.catch_up_index()
            assert registry.index_status().current


class TestRegister:
    def test_several_models_are_registered_in_order_and_one_error_stops_none(
        self, fp, zoo: Zoo, tmp_path: Path
    ) -> None:
        command = ["register", zoo.base, zoo.broken, zoo.tuned, zoo.base, "--name", "acme/{stem}", "--format", "json"]
        ran = fp(*command, "--owner", "Acme", registry=tmp_path)
        assert [(one["action"], one["registered_as"], one["registry"]["models"]) for one in ran.objects] == [
            ("new", "acme/base", 1),
            ("error", "acme/broken", 1),
            ("new", "acme/tuned", 2),
            ("unchanged", "acme/base", 2),
        ]
        assert ran.status == 2
        assert zoo.broken in ran.err
        assert ran.objects[2]["model"]["registrations"][0]["owner"] == "Acme"

    @pytest.mark.parametrize("kind", ["tsv", "jsonl"])
    def test_a_table_says_what_each_model_is(self, fp, zoo: Zoo, tmp_path: Path, kind: str) -> None:
        rows = [
            {"path": zoo.base, "name": "public/base", "license": "MIT"},
            {"path": zoo.tuned, "base": "public/base", "license": ""},
            {"path": zoo.part, "name": "not a name"},
        ]
        columns = ("path", "name", "base", "license")
        text = "\n".join(
            [json.dumps(row) for row in rows]
            if kind == "jsonl"
            else ["\t".join(columns), *("\t".join(row.get(one, "") for one in columns) for row in rows)]
        )
        (tmp_path / "list").write_text(text)
        command = [
            "register",
            "--list",
            tmp_path / "list",
            "--name",
            "x/{stem}",
            "--license",
            "own",
            "--format",
            "json",
        ]
        ran = fp(*command, registry=tmp_path / "registry")
        assert ran.status == 2
        assert "not a name" in ran.err
        assert "not registered: siblings" not in ran.err
        said = [one["model"]["registrations"][0] for one in ran.objects[:2]]
        assert [(one["name"], one["base"], one["license"]) for one in said] == [
            ("public/base", None, "MIT"),
            ("x/tuned", "public/base", "own"),
        ]

    @pytest.mark.parametrize(
        ("text", "complaint"),
        [
            ("path\tcolour\nx\tred\n", "none of path, name"),
            ("x\ty\n", "neither a JSON object"),
            ('{"path": 3}\n', "no text"),
            ('{"name": "a/b"}\n', "no path"),
            ('{"path": "x"}\n', "no name"),
            ("path\tname\na\tb\tc\n", "3 columns"),
            ('{"path": "x", "name": "a/b"}\n[1]\n', "no JSON object"),
        ],
    )
    def test_a_table_that_cannot_be_read_is_refused_before_anything_is_done(
        self, fp, tmp_path: Path, text: str, complaint: str
    ) -> None:
        (tmp_path / "list").write_text(text)
        ran = fp("register", "--list", tmp_path / "list", registry=tmp_path / "registry")
        assert ran.status == 2
        assert complaint in ran.err
        assert ran.out == ""

    def test_names_are_needed_for_all(self, fp, zoo: Zoo, tmp_path: Path) -> None:
        for options in (
            (zoo.base, zoo.tuned, "--name", "acme/same"),
            (zoo.base, zoo.tuned, "--name", "acme/{number}"),
            (zoo.base,),
            (),
            (zoo.base, "--list", zoo.base, "--name", "a/{stem}"),
        ):
            assert fp("register", *options, registry=tmp_path).status == 2

    def test_a_run_that_goes_on_says_what_the_whole_one_would_have_said(self, fp, zoo: Zoo, tmp_path: Path) -> None:
        """The journal is cut after each of its lines, and the registry is as it was then or one registration later."""
        journal = tmp_path / "journal"
        command = ["register", zoo.base, zoo.tuned, "--name", "acme/{stem}", "--format", "jsonl", "--resume", journal]
        whole = fp(*command, registry=tmp_path / "registry")
        assert whole.status == 0
        written = journal.read_bytes().splitlines(keepends=True)
        assert len(written) == 5
        for kept in range(1, len(written) + 1):
            journal.write_bytes(b"".join(written[:kept]))
            if kept in {2, 4}:  # "about to be registered": the registration itself was done
                assert lines(fp(*command, registry=tmp_path / "registry").out)[kept // 2 - 1] == lines(whole.out)[
                    kept // 2 - 1
                ] | {"registry": {"path": str(tmp_path / "registry"), "models": 2}}
        assert fp(*command, registry=tmp_path / "registry").out == whole.out

    def test_what_was_removed_since_is_registered_again(self, fp, zoo: Zoo, tmp_path: Path) -> None:
        command = ["register", zoo.base, "--name", "a/b", "--format", "jsonl", "--resume", tmp_path / "journal"]
        fp(*command, registry=tmp_path / "registry")
        fp("remove", "a/b", "--yes", registry=tmp_path / "registry")
        assert lines(fp(*command, registry=tmp_path / "registry").out)[0]["action"] == "new"

    def test_a_journal_of_other_labels_or_without_replacement_is_of_other_work(
        self, fp, zoo: Zoo, tmp_path: Path
    ) -> None:
        journal, registry = tmp_path / "journal", tmp_path / "registry"
        command = ["register", zoo.base, "--name", "a/b", "--resume", journal]
        fp(*command, registry=registry)
        for more in ([], ["--replace"], ["--owner", "Acme"], ["--note", "again"]):
            before = journal.read_bytes()
            assert fp(*command, *more, registry=registry).status == 0
            assert (journal.read_bytes() == before) is (more == [])

    def test_a_name_that_cannot_be_registered_is_not_measured(
        self, fp, zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        measured = []
        monkeypatch.setattr("cli.measure.signature_of", lambda path, *_: measured.append(path))
        (tmp_path / "list").write_text(f"path\tname\n{zoo.base}\tno name\n")
        ran = fp("register", "--list", tmp_path / "list", "--format", "jsonl", registry=tmp_path / "registry")
        assert ran.status == 2
        assert "no name" in ran.err
        assert measured == []

    @pytest.mark.parametrize("more", [(), ("--resume", "journal")])
    def test_a_registration_that_fails_makes_no_registry(
        self, fp, zoo: Zoo, tmp_path: Path, more: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert fp("register", zoo.broken, "--name", "a/b", *more, registry=tmp_path / "registry").status == 2
        assert not (tmp_path / "registry").exists()
        assert fp("register", zoo.base, "--name", "a/b", *more, registry=tmp_path / "registry").status == 0
        assert fp("register", zoo.broken, "--name", "a/c", *more, registry=tmp_path / "registry").status == 2
        assert fp("show", "a/b", registry=tmp_path / "registry").status == 0

    def test_workers_measure_what_one_process_measures(self, zoo: Zoo) -> None:
        task = pickle.loads(pickle.dumps(MeasureTask(Sender.here(Console()), Measuring("full"))))
        good, bad = (task.do(Entry(path, "a/b")) for path in (zoo.base, zoo.broken))
        assert decode(good.value.data).identity == decode(task.do(Entry(zoo.base, "a/b")).value.data).identity
        assert zoo.broken in bad.value.error
        assert "out of memory" in task.lost(Entry("x", "a/b"), "out of memory").value.error
