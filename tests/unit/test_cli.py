from __future__ import annotations

import errno
import os
import resource
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from knapsack_rl import __version__, strategies
from knapsack_rl.cli import main


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert captured.out == ""
    return captured.err


def test_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert __version__ in capsys.readouterr().out


def test_refusals_are_one_block_on_stderr(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    said = refused(capsys, "train", "training.stepz=3", "seed=x", "--output", str(tmp_path / "runs"))
    assert said.splitlines() == [
        "knapsack-rl: the embedded demonstration is not a valid recipe:",
        "  seed: expected a valid integer, got 'x'.",
        "  training.stepz: unknown key. Did you mean training.steps?",
    ]
    assert not (tmp_path / "runs").exists()


def test_changes_may_stand_on_either_side_of_options(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["train", "name=before", "--dry-run", "training.steps=3", "--output", str(tmp_path), "seed=7"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "before, seed 7" in said
    assert "3 steps" in said


@pytest.mark.parametrize("engine", ["trl", "minimal"])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["training.prompts_per_step=1", "training.micro_batch_size=8"], "Raise training.prompts_per_step."),
        (["allocator.min_rollouts=8"], "Lower min_rollouts."),
        (["allocator.max_rollouts=8"], "Raise max_rollouts."),
        (["allocator.max_rollouts=8", "allocator.strategy=uniform"], None),
        ([], None),
    ],
)
def test_a_dry_run_tells_why_no_plan_can_differ(
    engine: str, changes: list[str], said: str | None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["train", "--engine", engine, "--dry-run", "--output", str(tmp_path), "evaluation.samples=4", *changes]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert ("\n         plans  " in printed) == (said is not None)
    assert said is None or said in printed


@pytest.mark.parametrize("engine", ["trl", "minimal"])
@pytest.mark.parametrize("strategy", strategies())
def test_a_dry_run_builds_every_strategy_with_every_trainer(
    engine: str, strategy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--engine", engine, "--dry-run", f"allocator.strategy={strategy}"]) == 0
    assert f"{strategy}, 2 to 128 rollouts" in capsys.readouterr().out


def test_an_unknown_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["train", "seed=1", "--fast"])
    assert left.value.code == 2
    assert "--fast" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trl.loss_typ=grpo", "trl.loss_typ: no field of TRL's GRPOConfig. Did you mean trl.loss_type?"),
        ("trl.loss_type=3", "trl.loss_type: expected str, got 3."),
        ("trl.learning_rate=1", "trl.learning_rate: set training.learning_rate instead."),
        ("trl.eval_strategy=steps", "trl.eval_strategy: cannot be set"),
        ("trl.remove_unused_columns=true", "trl.remove_unused_columns: cannot be set"),
        ("trl.auto_find_batch_size=true", "TRL's GRPOConfig refuses this recipe: auto_find_batch_size"),
    ],
)
def test_entries_for_trl_are_checked_against_its_configuration(
    override: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, "train", "--dry-run", override)


def test_rollouts_that_cannot_be_dealt_evenly_to_the_devices_are_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    said = refused(capsys, "train", "--dry-run")
    assert "micro_batch_size x 3 devices to divide the 512 rollouts" in said


@pytest.mark.parametrize("jobs", ["0", "-1"])
def test_a_comparison_needs_at_least_one_process(jobs: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"--jobs: expected 1 or more, got {jobs}." in refused(capsys, "compare", "--jobs", jobs, "--dry-run")


def test_a_comparison_that_cannot_be_is_refused_before_anything_is_made(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    said = refused(capsys, "compare", "seads=[1]", "seeds=[]", "--output", str(tmp_path / "runs"))
    assert "  seeds: expected" in said
    said = refused(capsys, "compare", "training.stepz=1", "--output", str(tmp_path / "runs"))
    assert "training.stepz: unknown key. Did you mean training.steps?" in said
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_a_comparison_tells_what_it_would_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["compare", "seeds=[4, 5]", "--output", str(tmp_path / "runs"), "--dry-run", "equal=tokens"]
    assert main(words) == 0
    said = capsys.readouterr().out
    for part in ("demo-comparison", "uniform, adaptive", "tokens", "4, 5", "12 runs", "then  4 runs"):
        assert part in said
    assert list(tmp_path.iterdir()) == []


def test_a_report_of_something_else_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert str(tmp_path) in refused(capsys, "report", str(tmp_path / "nothing"))


@pytest.mark.parametrize("words", ["--help", "train --help", "compare --help", "audit --help", "schema --help"])
def test_help_imports_nothing_but_numpy_and_the_standard_library(words: str) -> None:
    program = (
        "import sys, numpy; before = set(sys.modules)\n"
        "from knapsack_rl.cli import main\n"
        f"try: main({words.split()})\n"
        "except SystemExit as left: assert left.code == 0\n"
        "loaded = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "sys.exit(sorted(loaded - sys.stdlib_module_names - {'knapsack_rl', 'numpy'}) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ")


@pytest.fixture
def bash_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit) as left:
        main(["--print-completion", "bash"])
    assert left.value.code == 0
    script = tmp_path / "completion.bash"
    script.write_text(capsys.readouterr().out, encoding="utf-8")
    return script


def completions(script: Path, *words: str) -> list[str]:
    """What bash offers for the last of `words`."""
    typed = " ".join(map(shlex.quote, words))
    program = (
        f"source {script}; COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; "
        "registered=$(complete -p knapsack-rl); registered=${registered#*-F }; ${registered%% *}; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    bash = subprocess.run(["bash", "-c", program], check=True, capture_output=True, text=True, cwd=script.parent)
    return bash.stdout.split()


def test_bash_completes_commands_options_and_recipes(bash_script: Path) -> None:
    subprocess.run(["bash", "-n", bash_script], check=True)
    everything = {"train", "compare", "audit", "simulate", "report", "schema"}
    assert everything <= set(completions(bash_script, "knapsack-rl", ""))
    assert completions(bash_script, "knapsack-rl", "tr") == ["train"]
    assert completions(bash_script, "knapsack-rl", "train", "--dry") == ["--dry-run"]
    (bash_script.parent / "mine.yaml").touch()
    assert "mine.yaml" in completions(bash_script, "knapsack-rl", "train", "mi")


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_have_a_script_that_names_the_commands(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit):
        main(["--print-completion", shell])
    script = capsys.readouterr().out
    assert all(name in script for name in ("knapsack-rl", "train", "compare", "audit", "simulate", "report", "schema"))


def test_completion_without_its_library_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert "pip install 'knapsack-rl[report]'" in refused(capsys, "--print-completion", "bash")


def test_a_recipe_is_checked_before_torch_is_imported() -> None:
    program = (
        "import sys; from knapsack_rl.cli import main; code = main(['train', 'stepz=1']); "
        "sys.exit(code == 2 and 'torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ, capture_output=True)


LONG = "x" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", LONG],
        ["train", f"/{LONG}/{LONG}.yaml"],
        ["compare", f"{LONG}.yaml"],
        ["audit", LONG],
        ["audit", f"{LONG}*.jsonl"],
        ["report", LONG],
        ["schema", "--output", LONG],
        ["schema", "--output", "/dev/full"],
        ["schema", "--output", "/nowhere/at/all"],
        ["schema", "--output", "/tmp"],
        ["simulate", "--theory", "--output", LONG],
    ],
    ids=lambda arguments: " ".join(arguments)[:30],
)
def test_names_that_no_file_can_have_are_refused_in_a_sentence(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused(capsys, *arguments).startswith("knapsack-rl: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "cp1252"])
def test_recipes_in_other_encodings_are_refused_by_their_name(
    encoding: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "r.yaml").write_text("name: caf\xe9", encoding=encoding)
    assert f"cannot read {tmp_path / 'r.yaml'}" in refused(capsys, "train", str(tmp_path / "r.yaml"))


def test_a_working_directory_that_is_gone_is_said(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert "No such file or directory. Check the path" in refused(capsys, "schema")


def test_a_limit_on_the_size_of_files_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        said = refused(capsys, "schema", "--output", str(tmp_path / "s.json"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "s.json: File too large" in said
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_has_enough_is_no_error() -> None:
    reader = "import sys; from knapsack_rl.cli import main; sys.stdout.flush(); sys.exit(main(['schema']))"
    process = subprocess.Popen([sys.executable, "-c", reader], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate()
    assert (process.returncode, err) == (128 + signal.SIGPIPE, b"")


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr("knapsack_rl.cli._schema", broken)
    with pytest.raises(OSError, match="Bad file descriptor"):
        main(["schema"])


def test_what_a_terminal_would_obey_is_shown_instead(capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "report", "\x1b[31mrun\x07\udcff")
    assert "\N{REPLACEMENT CHARACTER}[31mrun\N{REPLACEMENT CHARACTER}" in said
    assert not set(said) & set("\x1b\x07\udcff")
