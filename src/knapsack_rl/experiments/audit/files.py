"""Which files a log consists of, and what their names and those of their folders say of steps."""

from __future__ import annotations

import glob
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from knapsack_rl.errors import InvalidInputError
from knapsack_rl.experiments.audit.readers import COMPRESSED, READERS, check_kind, suffix

_WORDS = "global_step|globalstep|step|iteration|iter|update|epoch"
_IN_NAME = re.compile(rf"(?:^|[_\-. ])(?:{_WORDS})[_\-= ]?(\d{{1,15}})(?!\d)", re.IGNORECASE)
_IN_FOLDER = re.compile(
    rf"(?:^|[_\-. ])(?:{_WORDS}|policy|version|round|checkpoint|v)[_\-= ]?(\d{{1,15}})(?!\d)", re.IGNORECASE
)
_NUMBERED = re.compile(r"(?:(?:completions|rollouts?|generations?|samples|batch)[_-]?)?(\d{1,15})", re.IGNORECASE)
_WANDB = re.compile(
    r"completions_(\d{1,15})_[0-9a-f]{8,}(?:\.table)?", re.IGNORECASE
)  # completions_STEP_HASH.table.json
_WRITERS = "rank|worker|node|gpu|device|process|proc|dp|host"
_SHARD = re.compile(rf"(?<![a-z])(?:{_WRITERS}|shard|part)[_\-]?\d+", re.IGNORECASE)
_WRITER = re.compile(rf"(?<![a-z])(?:{_WRITERS})[_\-]?\d+", re.IGNORECASE)
_EVALUATION = {"eval", "evals", "evaluation", "val", "valid", "validation", "test", "dev", "heldout"}
_ABOVE = 3  # folders above a file that are looked at


@dataclass(frozen=True)
class Found:
    """A file of a log.

    Attributes:
        path: where it is.
        argument: position of the argument that led to it.
        named: whether the argument was its very name, and not that of a folder or a pattern.
    """

    path: Path
    argument: int = 0
    named: bool = True


@dataclass(frozen=True)
class Numbers:
    """What the names of files say of steps.

    Attributes:
        steps: of each file, None where its name says nothing.
        source: "file names" or "folder names"; empty where there are no numbers.
    """

    steps: dict[Path, int]
    source: str = ""


@dataclass(frozen=True)
class Files:
    """The files of a log.

    Attributes:
        found: in the order in which they are read.
        remarks: sentences on how they were found.
        evaluations: files that were left out, since their names say that they are of an evaluation.
    """

    found: list[Found]
    remarks: tuple[str, ...] = ()
    evaluations: tuple[Path, ...] = ()

    @property
    def paths(self) -> list[Path]:
        """Where they are."""
        return [one.path for one in self.found]


def find_files(logs: Sequence[str | Path]) -> Files:
    """The files that `logs` name: files, folders and patterns, in the order given and inside folders by number.

    Of a folder that `knapsack-rl train` wrote, `allocations.parquet` is taken; of a folder that has a folder
    `completions`, that one, which is where TRL puts them; of a folder without logs those in its sub-folders. Where some
    files are called those of an evaluation and others are not, only the others are taken.

    Raises:
        InvalidInputError: nothing is there, or a file is of a kind that is not known.
    """
    found: dict[Path, Found] = {}
    remarks = []
    for argument, log in enumerate(logs):
        path = Path(log)
        if path.is_dir():
            files, remark = _of_folder(path)
            remarks += [remark] if remark else []
        elif path.is_file():
            files = [path]
        else:
            matches = sorted((Path(match) for match in glob.glob(str(log), recursive=True)), key=natural_order)
            files = [match for match in matches if match.is_file()]
            if not files:
                raise InvalidInputError(f"LOGS: {log} is no file, no folder, and no pattern that matches a file.")
        for file in files:
            check_kind(file)
            found.setdefault(file, Found(file, argument, named=file == path))
    everything = list(found.values())
    root = os.path.commonpath([one.path.absolute().parent for one in everything])
    evaluations = {one.path for one in everything if _is_evaluation(one.path.absolute().relative_to(root))}
    if len(evaluations) == len(everything):
        evaluations = set()
    kept = [one for one in everything if one.path not in evaluations]
    return Files(kept, tuple(remarks), tuple(sorted(evaluations, key=natural_order)))


def natural_order(path: Path) -> list[tuple[int, int, str]]:
    """Sorts 2.jsonl before 10.jsonl."""
    pieces = re.split(r"(\d+)", str(path))
    return [(1, int(piece), "") if piece.isdecimal() else (0, 0, piece) for piece in pieces]


def numbers(prompts: Mapping[Path, str | None]) -> Numbers:
    """The steps that the names of files, or of the folders that they are in, say.

    A number after a word such as step or iteration counts, in the file's name first; then one in a folder's name; then
    a file's name that is only a number. Where several folders hold files of one number, each with one and the same
    prompt, the numbers are the prompts', and the folders are the steps. A number that all files share is a step only
    if a word says so, or the name is nothing else.

    Args:
        prompts: of each file the prompt, if it holds but one.

    Raises:
        InvalidInputError: several folders hold files of the same number, and the folders' names say no step.
    """
    found = _numbers(prompts)
    if len(set(found.steps.values())) == 1 and not all(map(_says_step, found.steps)):
        return Numbers({})
    return found


def _says_step(path: Path) -> bool:
    """Whether the name of a file or folder calls its number a step, or the file's is nothing else."""
    names = (_stem(path), *(folder.name for folder in list(path.parents)[:_ABOVE]))
    return any(_step_in(name, _IN_NAME) is not None for name in names) or _without_shard(_stem(path)).isdecimal()


def _numbers(prompts: Mapping[Path, str | None]) -> Numbers:
    paths = list(prompts)
    in_name = {path: _step_in(_stem(path), _IN_NAME) for path in paths}
    plain = {path: _plain_number(_stem(path)) for path in paths}
    folders = {path: _folder_step(path) for path in paths}
    if (known := _all(in_name)) is not None:
        return _of_names(known, prompts)
    known = _all(folders)
    if known is not None and (len(set(known.values())) > 1 or _all(plain) is None):
        return Numbers(known, "folder names")
    if (known := _all(plain)) is not None:
        return _of_names(known, prompts)
    known = _all({path: _folder_step(path, bare=True) for path in paths})
    if known is not None and len(set(known.values())) > 1:
        return Numbers(known, "folder names")
    some = {path: step for path in paths for step in (in_name[path], plain[path]) if step is not None}
    return Numbers(some, "file names" if some else "")


def _all(steps: dict[Path, int | None]) -> dict[Path, int] | None:
    """The steps, if every file has one."""
    known = {path: step for path, step in steps.items() if step is not None}
    return known if len(known) == len(steps) else None


def _of_names(steps: dict[Path, int], prompts: Mapping[Path, str | None]) -> Numbers:
    """Steps from files' names, unless several folders hold the same."""
    clash = _clash(steps)
    if not clash:
        return Numbers(steps, "file names")
    of_folders = _all({path: _folder_step(path, bare=True) for path in steps})
    of_number = {step: {prompts[path] for path in steps if steps[path] == step} for step in set(steps.values())}
    are_prompts = all(len(held) == 1 and None not in held for held in of_number.values())
    if of_folders is None or not are_prompts:
        raise InvalidInputError(clash)
    return Numbers(of_folders, "folder names")


def _clash(steps: dict[Path, int]) -> str:
    """Why equal numbers in several folders cannot be steps; empty where there are none."""
    places = defaultdict(set)
    for path, step in steps.items():
        places[step].add(_without_shards(path.parent))
    twice = next((step for step, folders in places.items() if len(folders) > 1), None)
    if twice is None:
        return ""
    one, other, *_ = sorted(map(str, places[twice]))
    return (
        f"LOGS: {one} and {other} both hold a file of the number {twice}, so that the numbers in file names are no "
        "steps of one run. If the folders are several runs, audit them apart; if they are steps, name them step_N."
    )


def _without_shards(folder: Path) -> Path:
    """The folder with those left out that hold a part of every step, such as rank0."""
    return Path(*(part for part in folder.parts if not _SHARD.fullmatch(part)))


def are_shards(paths: Sequence[Path]) -> bool:
    """Whether the names of files, or of their folders, say that each holds a part of every step."""
    return all(map(shard, paths))


def in_one_place(paths: Sequence[Path]) -> bool:
    """Whether all files are in one folder, but for folders that hold a part of every step."""
    return len({_without_shards(path.parent.absolute()) for path in paths}) == 1


def writer(path: Path) -> str:
    """Which of several writers at the same time a file is of, such as "rank0"; empty where no name says so."""
    return "/".join(_WRITER.findall(f"{path.parent.name}/{path.name}")).lower()


def shard(path: Path) -> str:
    """Which part of every step a file holds, such as "rank0" or "part-1"; empty where no name says so."""
    return "/".join(_SHARD.findall(f"{path.parent.name}/{path.name}")).lower()


def _without_shard(stem: str) -> str:
    """A name without the part of it that says which shard it is."""
    return _SHARD.sub("", stem).strip("_-. ")


def _folder_step(path: Path, bare: bool = False) -> int | None:
    """The step in the name of the nearest folder that has one; with `bare` also in names that are only a number."""
    for folder in list(path.parents)[:_ABOVE]:
        step = _step_in(folder.name, _IN_FOLDER)
        if step is None and bare and folder.name.isdecimal():
            step = int(folder.name)
        if step is not None:
            return step
    return None


def _plain_number(stem: str) -> int | None:
    match = _NUMBERED.fullmatch(_without_shard(stem)) or _WANDB.fullmatch(stem)
    return None if match is None else int(match[1])


def _step_in(name: str, pattern: re.Pattern[str]) -> int | None:
    match = pattern.search(name)
    return None if match is None else int(match[1])


def _stem(path: Path) -> str:
    """The name without its endings."""
    name = path.name.removesuffix(path.suffix) if path.suffix.lower() in COMPRESSED else path.name
    return Path(name).stem


def _is_evaluation(path: Path) -> bool:
    """Whether the name of a file, or of a folder below the one of all files, says so."""
    words = re.split(r"[_\-./ ]+", f"{path.parent.as_posix()} {_stem(path)}".lower())
    return not _EVALUATION.isdisjoint(words)


def _of_folder(folder: Path) -> tuple[list[Path], str]:
    """The logs in a folder, and a sentence if they lie deeper."""
    for inside in ("allocations.parquet", "completions"):
        if (folder / inside).exists():
            folder = folder / inside
            break
    if folder.is_file():
        return [folder], ""
    files = [path for path in folder.iterdir() if path.is_file() and suffix(path) in READERS]
    if files:
        return sorted(files, key=natural_order), ""
    deeper = [path for path in folder.rglob("*") if path.is_file() and suffix(path) in READERS]
    if not deeper:
        raise InvalidInputError(
            f"LOGS: {folder} holds no {', '.join(READERS)} file, and neither do its sub-folders. Give the folder that "
            "the rollouts were written to, such as TRL's OUTPUT_DIR/completions or verl's trainer.rollout_data_dir."
        )
    said = f"{folder} holds no log itself: its sub-folders hold {len(deeper):,} such files, which were read."
    return sorted(deeper, key=natural_order), said
