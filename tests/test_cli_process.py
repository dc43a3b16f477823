"""The program as a process: pipes that close, signals, full disks, terminals, and what it costs to start."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli_support import Zoo

pytest_plugins = ["tests.cli_fixtures"]

PROGRAM = [sys.executable, "-m", "cli"]
HEAVY = ("numpy", "torch", "faiss", "scipy", "rich", "safetensors", "ml_dtypes")


def environment(zoo: Zoo, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FP_") and name != "NO_COLOR"}
    return {**kept, "FP_REGISTRY": str(zoo.registry), "OMP_NUM_THREADS": "1", **more}


def start(zoo: Zoo, *arguments: str, **streams: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*PROGRAM, *arguments], env=environment(zoo), stderr=subprocess.PIPE, **streams)


def ended(process: subprocess.Popen[bytes]) -> tuple[int, bytes]:
    _, err = process.communicate(timeout=60)
    return process.returncode, err


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 0),
        (["list"], 0),
        (["schema", "fp.scan/1"], 0),
        (["scan", "{tuned}", "--format", "json"], 1),
        (["scan", "{unrelated}"], 0),
        (["scan", "{unrelated}", "{unrelated}", "--format", "jsonl"], 3),
        (["compare", "{base}", "{tuned}"], 1),
        (["inspect", "{broken}", "{base}"], 2),
    ],
)
def test_a_reader_that_goes_away_is_no_error_and_hides_none(zoo: Zoo, arguments: list[str], status: int) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    paths = {name: getattr(zoo, name) for name in ("base", "tuned", "unrelated", "broken")}
    process = start(zoo, *(one.format(**paths) for one in arguments), stdout=writing)
    os.close(writing)
    code, err = ended(process)
    assert code == status
    assert err.count(b"\n") == (1 if status == 2 else 0), err


@pytest.mark.parametrize(("arguments", "status"), [(["list"], 2), (["--version"], 2), (["scan", "{tuned}"], 1)])
def test_a_full_disk_is_one_line_and_hides_no_match(zoo: Zoo, arguments: list[str], status: int) -> None:
    with open("/dev/full", "wb") as full:
        process = start(zoo, *(one.format(tuned=zoo.tuned) for one in arguments), stdout=full.fileno())
        code, err = ended(process)
    assert code == status
    assert err.startswith(b"fp: error: ")
    assert b"No space left" in err
    assert err.count(b"\n") == 1


def test_without_standard_output_a_command_says_so(zoo: Zoo) -> None:
    command = ["sh", "-c", 'exec "$@" >&-', "sh", *PROGRAM, "list"]
    done = subprocess.run(command, env=environment(zoo), stderr=subprocess.PIPE, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(b"fp: error: ")


def test_without_standard_error_the_result_is_the_same(zoo: Zoo) -> None:
    command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *PROGRAM, "scan", zoo.tuned, zoo.broken, "--format", "jsonl"]
    done = subprocess.run(command, env=environment(zoo), stdout=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert [json.loads(line)["verdict"] for line in done.stdout.splitlines()] == ["match", "error"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_scan_with_whole_output(zoo: Zoo, number: signal.Signals) -> None:
    process = start(zoo, "scan", "-", "--format", "json", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{zoo.tuned}\n".encode())
    process.stdin.flush()
    seen = b""
    while not seen.rstrip().endswith(b"}"):  # the first report is out; the program waits for more paths
        seen += os.read(process.stdout.fileno(), 1 << 16)
    process.send_signal(number)
    rest = process.stdout.read()
    code, err = ended(process)
    assert (code, err) == (130, b"fp: error: interrupted\n")
    assert [one["verdict"] for one in json.loads(seen + rest)] == ["match"]


def test_a_signal_leaves_the_old_file_and_no_other(zoo: Zoo, tmp_path: Path) -> None:
    output = tmp_path / "result.jsonl"
    output.write_text("old")
    arguments = ["scan", "-", "--format", "jsonl", "-o", str(output)]
    process = start(zoo, *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write(f"{zoo.absent}\n".encode())
    process.stdin.flush()
    assert process.stderr.readline().startswith(b"fp: error: ")  # it is at work
    assert len(os.listdir(tmp_path)) == 2
    process.send_signal(signal.SIGTERM)
    code, _ = ended(process)
    assert code == 130
    assert (output.read_text(), os.listdir(tmp_path)) == ("old", ["result.jsonl"])


INTERRUPTING = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
REFUSING = f"try:\n    {INTERRUPTING}\nexcept KeyboardInterrupt:\n    raise ImportError('torn') from None\n"


@pytest.mark.parametrize("program", [["-m", "cli"], ["-c", "from cli.start import main; main()"]])
@pytest.mark.parametrize(
    ("module", "text"),
    [("click", INTERRUPTING), ("numpy", INTERRUPTING), ("numpy", REFUSING), ("platformdirs", REFUSING)],
)
def test_an_interruption_of_the_imports_is_quiet(
    zoo: Zoo, tmp_path: Path, program: list[str], module: str, text: str
) -> None:
    (tmp_path / f"{module}.py").write_text(text)
    held = environment(zoo, PYTHONPATH=str(tmp_path))
    if module == "platformdirs":
        del held["FP_REGISTRY"]
    done = subprocess.run([sys.executable, *program, "scan", zoo.tuned], env=held, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"fp: error: interrupted\n")


def test_the_installed_program_begins_where_interruptions_are_quiet() -> None:
    with open("pyproject.toml", "rb") as file:
        assert tomllib.load(file)["project"]["scripts"] == {"fp": "cli.start:main"}


def test_results_are_out_before_the_next_path_is_known(zoo: Zoo) -> None:
    process = start(zoo, "scan", "-", "--format", "jsonl", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    for path, verdict in ((zoo.unrelated, "no-match"), (zoo.tuned, "match")):
        process.stdin.write(f"{path}\n".encode())
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["verdict"] == verdict
    process.stdin.close()
    process.stdin = None
    assert ended(process)[0] == 1


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["scan", "--help"], ["list"], ["list", "--format", "json"], ["schema"]]
)
def test_what_measures_nothing_imports_nothing_heavy(zoo: Zoo, arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from cli.main import run\n"
        f"assert run({arguments!r}) == 0\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "sys.stderr.write(' '.join(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(zoo), capture_output=True, check=True)
    assert done.stderr == b""


def on_terminal(zoo: Zoo, *arguments: str, **more: str) -> tuple[int, str]:
    """Run the program on a terminal of its own, and return its status and all that it showed."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, *arguments],
        env=environment(zoo, **{"TERM": "xterm-256color", **more}),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    shown = b""
    while select.select([ours], [], [], 60)[0]:
        try:
            piece = os.read(ours, 1 << 16)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(ours)
    return process.wait(60), shown.decode()


def test_a_terminal_gets_colours_and_progress(zoo: Zoo) -> None:
    status, shown = on_terminal(zoo, "scan", zoo.tuned)
    assert status == 1
    assert "\x1b[31m" in shown
    assert "tuned.safetensors" in shown.split("MATCH")[0]
    assert "/s" in shown


@pytest.mark.parametrize("more", [{"NO_COLOR": "1"}, {"FP_SCAN_NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_colours_can_be_refused(zoo: Zoo, more: dict[str, str]) -> None:
    _, shown = on_terminal(zoo, "scan", zoo.tuned, **more)
    assert "MATCH" in shown
    assert "\x1b[3" not in shown
    assert "\x1b[1m" not in shown


def test_a_dumb_terminal_and_a_quiet_run_get_no_progress(zoo: Zoo) -> None:
    for shown in (on_terminal(zoo, "scan", zoo.tuned, TERM="dumb")[1], on_terminal(zoo, "scan", "-q", zoo.tuned)[1]):
        assert "MATCH" in shown
        assert "/s" not in shown


def test_an_error_is_said_once_on_a_terminal(zoo: Zoo) -> None:
    status, shown = on_terminal(zoo, "scan", zoo.absent, NO_COLOR="1")
    assert status == 2
    assert " ".join(shown.split()).count("no such file or folder") == 1
    assert "ERROR" in shown


def test_an_error_is_said_on_standard_error_and_its_verdict_in_the_text(zoo: Zoo) -> None:
    held = environment(zoo, PYTHONIOENCODING="utf-8")
    done = subprocess.run([*PROGRAM, "scan", zoo.broken], env=held, capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"fp: error: {zoo.broken}".encode())
    assert done.stderr.count(b"\n") == 1
    assert done.stdout.decode().splitlines() == [zoo.broken, "✗ ERROR"]


def test_a_terminal_is_asked_before_anything_is_removed(zoo: Zoo) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, "remove", "acme/base"], env=environment(zoo), stdin=theirs, stdout=theirs, stderr=subprocess.PIPE
    )
    os.close(theirs)
    os.write(ours, b"n\n")
    code, err = ended(process)
    os.close(ours)
    assert code == 0
    assert b"Remove acme/base?" in err
    assert b"nothing was removed" in err


def test_output_that_cannot_show_symbols_does_without(zoo: Zoo) -> None:
    done = subprocess.run(
        [*PROGRAM, "scan", zoo.tuned],
        env=environment(zoo, PYTHONIOENCODING="ascii"),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    assert b"[!] MATCH" in done.stdout
    assert done.stdout.isascii()


def test_the_shell_completes_commands_options_and_registered_names(zoo: Zoo) -> None:
    def completed(words: str) -> list[str]:
        more = {"_FP_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        command = [sys.executable, "-c", "from cli.start import main; main()"]
        done = subprocess.run(command, env=environment(zoo, **more), capture_output=True, check=True)
        return done.stdout.decode().split()

    assert "plain,scan" in completed("fp s")
    assert completed("fp scan --fail-on ") == ["plain,possible", "plain,likely", "plain,certain"]
    assert completed("fp show ACME/") == ["plain,acme/alias", "plain,acme/base"]
    assert completed("fp scan x") == ["file,x"]
