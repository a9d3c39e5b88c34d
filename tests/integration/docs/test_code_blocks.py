"""Every code block of the README and the documentation does what its page says; `blocks` has the rules."""

from __future__ import annotations

import ast
import doctest
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import stand_ins
from blocks import ROOT, Block, blocks, blocks_of, pages

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
SHELL = ("bash", "sh", "console")
EVEN_AT_FIRST = ("uniform", "cautious")
OPTIONAL = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.optional-dependencies]")[2]
EXTRAS = set(re.findall(r"^([\w-]+) = \[", OPTIONAL.partition("\n[")[0], flags=re.MULTILINE))


def python_pages() -> list[str]:
    return [page for page in pages() if any(block.language == "python" for block in blocks(page))]


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with what a reader has: the files of a checkout, and the logs and directories of small runs."""
    pytest.importorskip("pandas", reason="needs the extra 'train'")
    pytest.importorskip("torch", reason="needs the extra 'train'")
    folder = tmp_path_factory.mktemp("reader")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        stand_ins.leave_repository(folder, ROOT)
        stand_ins.leave_logs(folder)
        stand_ins.leave_runs(folder)
        yield folder


@pytest.mark.parametrize("page", python_pages())
def test_the_python_of_a_page_runs_from_top_to_bottom(page: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    if "knapsack_rl.trl" in (ROOT / page).read_text(encoding="utf-8"):
        trl = pytest.importorskip("trl", reason="needs the extra 'trl'")
        for name in ("GRPOConfig", "RLOOConfig"):  # put back what a setup changes
            monkeypatch.setattr(trl, name, getattr(trl, name))
    monkeypatch.setitem(sys.modules, "__page__", ModuleType("__page__"))  # where dataclasses look for their module
    namespace: dict[str, Any] = {"__name__": "__page__", "monkeypatch": monkeypatch}
    printed = StringIO()
    on_page = list(blocks(page))
    if all(block.language != "setup" for block in on_page):
        exec(stand_ins.SETUPS.get(page, ""), namespace)
    for block in on_page:
        if block.is_output:
            said, printed = printed.getvalue(), StringIO()
            assert doctest.OutputChecker().check_output(block.code, said, FLAGS), f"{page}:{block.line}\n{said}"
        elif block.language in ("python", "setup") and not block.why_not:
            with redirect_stdout(printed):
                run(block, namespace)
    trainer = namespace.get("trainer")
    if trainer is not None and type(trainer).__name__ == "KnapsackGRPOTrainer":
        uneven = len(set(trainer.last_step.plan.rollouts.tolist())) > 1
        as_said = trainer.allocator.strategy not in EVEN_AT_FIRST
        assert uneven == as_said, "the page's trainer made other plans than it says"


def run(block: Block, namespace: dict[str, Any]) -> None:
    """Execute a block, or check a session with prompts in it."""
    if not block.code.startswith(">>>"):
        source = "\n" * (block.line - 1) + block.code
        exec(compile(source, str(ROOT / block.page), "exec"), namespace)
        return
    session = doctest.DocTestParser().get_doctest(block.code, namespace, block.page, block.page, block.line)
    heard = StringIO()
    failed = doctest.DocTestRunner(optionflags=FLAGS).run(session, out=heard.write, clear_globs=False).failed
    assert not failed, heard.getvalue()
    namespace.update(session.globs)


def commands() -> list[tuple[Block, list[str], str]]:
    """Every command of every shell block: the block, its words, and what it is expected to print ("" for anything)."""
    found = []
    for block in blocks_of(*SHELL):
        if block.why_not:
            continue
        code = block.runs_as or block.code
        if block.language == "console":
            for session in re.split(r"^\$ ", code, flags=re.MULTILINE)[1:]:
                line, _, output = session.partition("\n")
                found += [(block, words, output) for words in simple_commands(line)]
        else:
            for line in code.replace("\\\n", " ").splitlines():
                found += [(block, words, "") for words in simple_commands(line)]
    return found


PLACEHOLDERS = {"NAME": "adaptive", "STRATEGY": "knapsack", "SEED": "1"}
"""What a reader puts in place of a word in capitals."""


def simple_commands(line: str) -> Iterator[list[str]]:
    """The words of each command of a line; without assignments, the path to an environment, and where output goes."""
    words: list[str] = []
    for placeholder, word in PLACEHOLDERS.items():
        line = re.sub(rf"(?<![A-Z_]){placeholder}(?![A-Z_])", word, line)
    for word in [*shlex.split(re.sub(r"\s>>?\s+\S+", "", line), comments=True), "&&"]:
        if word in ("&&", "|", ";"):
            while words and re.fullmatch(r"\w+=\S*", words[0]):
                words = words[1:]
            if words:
                yield [words[0].rpartition("bin/")[2], *words[1:]]
            words = []
        else:
            words.append(word)


def name_of(command: tuple[Block, list[str], str]) -> str:
    return f"{command[0].page}:{shlex.join(command[1])[:60]}"


DONE: set[tuple[str, ...]] = set()
OURS = [command for command in commands() if "knapsack-rl" in command[1][:1] or "knapsack_rl.cli" in command[1]]
OTHERS = [command for command in commands() if command not in OURS]


@pytest.mark.parametrize("command", OURS, ids=name_of)
def test_our_commands_are_understood_and_run(
    command: tuple[Block, list[str], str],
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from knapsack_rl import cli

    _, words, expected = command
    monkeypatch.chdir(place)
    start = words.index("knapsack_rl.cli") if "knapsack_rl.cli" in words else 0
    given = words[start + 1 :]
    if {"--help", "--version", "--print-completion"} & set(given):
        with pytest.raises(SystemExit, match=r"^0$"):
            cli.main(given)
        return
    cheap = cheaper(given, tmp_path)
    if cheap is None:
        cli._parser().parse_known_args(given)
        return
    if not expected and tuple(given) in DONE:
        return  # the same on another page
    DONE.add(tuple(given))
    code = cli.main(cheap)
    out, err = capsys.readouterr()
    if "which is not installed" in err or "is not installed" in err:
        pytest.skip(err)
    if expected:
        assert doctest.OutputChecker().check_output(expected, out + err, FLAGS), out + err
    else:
        assert code == 0, err


def cheaper(given: list[str], folder: Path) -> list[str] | None:
    """A command that does the same in little time; None where reading it has to do."""
    if given[0] in ("train", "compare"):
        return [*given, *([] if "--dry-run" in given else ["--dry-run"]), "--output", str(folder)]
    if given[0] == "simulate":
        small = [] if "--theory" in given else ["--world", "small", "--steps", "4", "--seed", "0"]
        if "--world" in given:
            from knapsack_rl.experiments.simulate.worlds import WORLDS

            named = given[given.index("--world") + 1 :]
            named = named[: next((at for at, word in enumerate(named) if word.startswith("--")), len(named))]
            assert set(named) <= {*WORLDS, "all"}
        return [*given, *small, "--output", str(folder)]
    if given[0] == "audit":
        return [*given, "--output", str(folder)]
    if given[0] == "report":
        return [*given, *([] if "--output" in given else ["--output", str(folder / "page.html")])]
    return None


@pytest.mark.parametrize("command", OTHERS, ids=name_of)
def test_other_commands_name_files_options_and_extras_that_exist(command: tuple[Block, list[str], str]) -> None:
    words = command[1]
    for word in words[1:]:
        if re.fullmatch(r"[\w.-]+(/[\w.*?-]+)*\.(py|sh|txt|yaml|yml|toml|md)", word) and not word.startswith("runs/"):
            assert list(ROOT.glob(word)), f"{word} is no file of the repository"
        for extras in re.findall(r"^(?:\.|knapsack-rl|\S*\.whl)\[(.*)\]$", word):
            assert set(extras.split(",")) <= EXTRAS, word
    scripts = [word for word in words if word.endswith(".py") and word.startswith(("benchmarks/", "examples/"))]
    if words[0].startswith("python") and scripts:
        folder = (ROOT / scripts[0]).parent
        literals = {
            node.value
            for path in folder.glob("*.py")
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant)
        }
        assert {word for word in words if word.startswith("--")} <= literals, "an option that the script does not have"


@pytest.mark.parametrize("block", blocks_of("yaml"), ids=lambda block: f"{block.page}:{block.line}")
def test_recipes_and_comparisons_on_pages_are_valid(block: Block, tmp_path: Path) -> None:
    pytest.importorskip("pydantic", reason="needs the extra 'train'")
    yaml = pytest.importorskip("yaml")
    from knapsack_rl.experiments.compare import comparison
    from knapsack_rl.experiments.recipe import recipe_file

    if block.why_not:
        pytest.skip(block.why_not)
    content = yaml.safe_load(block.code) or {}  # a comment for editors
    folder = tmp_path / "recipes" / "comparisons"
    folder.mkdir(parents=True)
    demonstration = ROOT / "src/knapsack_rl/experiments/recipe/demo.yaml"
    base = yaml.safe_load(demonstration.read_text(encoding="utf-8"))
    (folder.parent / "demo.yaml").write_text(yaml.safe_dump(base), encoding="utf-8")
    file = folder / "page.yaml"
    if "arms" in content:
        file.write_text(block.code, encoding="utf-8")
        comparison.read(file, [])
        return
    assert set(content) <= {"name", "seed", "trainer", "task", "model", "allocator", "training", "evaluation"} | {
        "engine",
        "trl",
        "verl",
    }, "neither a comparison nor a part of a recipe"
    if content.get("task", {}).get("kind") in ("math", "reasoning-gym", "word-problems"):
        base["model"] = {"kind": "pretrained", "path": "a-model"}
    file.write_text(yaml.safe_dump(base | content), encoding="utf-8")
    recipe_file.read(file)


def test_blocks_that_are_not_run_say_why(record_property: Any) -> None:
    reasons = {f"{block.page}:{block.line}": block.why_not for block in blocks_of("python", *SHELL, "yaml")}
    for where, reason in reasons.items():
        if reason:
            record_property(where, reason)
            assert re.search("GPU|cluster|verl|network|publish|account", reason), f"{where}: {reason}"


@pytest.mark.parametrize("page", pages())
def test_tests_that_a_page_names_exist(page: str) -> None:
    for name, test in re.findall(r"\b(tests/[\w/]+\.py)(?:::(\w+))?", (ROOT / page).read_text(encoding="utf-8")):
        assert (ROOT / name).is_file(), name
        assert f"def {test}" in (ROOT / name).read_text(encoding="utf-8"), f"{name}::{test}"


def test_every_page_is_read_as_it_was_written() -> None:
    for page in pages():
        text = (ROOT / page).read_text(encoding="utf-8")
        fences = len(re.findall(r"^ *```", text, flags=re.MULTILINE))
        assert fences == 2 * sum(block.language != "setup" for block in blocks(page)), page
