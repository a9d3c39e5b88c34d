"""Rollout logs as a stream of batches; bad rows and files are counted and left out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np

from knapsack_rl.errors import InvalidInputError
from knapsack_rl.experiments.audit import prompts, readers
from knapsack_rl.experiments.audit.asked import Asked
from knapsack_rl.experiments.audit.columns import Columns, understand
from knapsack_rl.experiments.audit.files import Files, Found, Numbers, numbers, shard, writer
from knapsack_rl.experiments.audit.readers import DAMAGE, Look, Part, Problems
from knapsack_rl.experiments.audit.readers.base import first_line
from knapsack_rl.experiments.audit.rows import Batch, Rows
from knapsack_rl.experiments.audit.shapes import value
from knapsack_rl.experiments.audit.times import Seen, choose
from knapsack_rl.experiments.audit.values import encoded, joined

_FEW = 20  # values of a column that are kept
_PARTS = 32  # of a file that tell whether prompts come again: a million rows


@dataclass(frozen=True)
class _Understood:
    """A file whose columns are known."""

    found: Found
    look: Look
    columns: Columns
    steps_from: str
    step: int | None


@dataclass
class Reading:
    """A log while it is read; complete once `batches` is exhausted.

    Attributes:
        files: of the log.
        asked: columns that the user named.
        pooled: whether all rows of a prompt are one group, whatever the steps are.
        columns: how files were understood, and the first file of each kind.
        rows: seen so far, good or bad.
        steps_from: the "column", the "file names", the "folder names" or the "order" of rows, or "one group" if
            `pooled`; empty until something is read.
        left_out: by column, its values of which rows were left out.
        kept: by column, the other values.
        runs: by column that tells runs apart, its values.
        alike: files whose names say that they are shards, and that hold the same rows; empty where these count once.
    """

    files: Files
    asked: Asked
    pooled: bool = False
    problems: Problems = field(default_factory=Problems)
    columns: dict[Columns, str] = field(default_factory=dict)
    rows: int = 0
    steps_from: str = ""
    left_out: dict[str, list[str]] = field(default_factory=dict)
    kept: dict[str, list[str]] = field(default_factory=dict)
    runs: dict[str, list[str]] = field(default_factory=dict)
    alike: tuple[Path, ...] = ()

    def batches(self) -> Iterator[Batch]:
        """All good rows.

        Raises:
            InvalidInputError: a file has none of the columns that are needed, has two of one name, or its steps come
                from elsewhere than those of the other files. Of files that were not named but found, one must be
                understood.
        """
        for path in self.files.evaluations:
            self.problems.note("files of an evaluation, by their names", str(path))
        understood = self._same_steps(self._understood())
        understood = self._each_shard_once(understood)
        self._choose_values(understood)
        for position, one in enumerate(understood):
            for part in self._parts(one, one.columns.needed()):
                self.rows += len(np.unique(part.rows))
                yield self._batch(one, part, position)

    def _understood(self) -> list[_Understood]:
        known: dict[tuple[object, ...], Columns] = {}
        read: list[tuple[Found, Look, Columns]] = []
        only: dict[Path, str | None] = {}
        refusal: InvalidInputError | None = None
        for found in self.files.found:
            path = found.path
            try:
                look = readers.look(path, self.asked.given())
            except DAMAGE as error:
                self.problems.note("files that cannot be read", f"{path}: {first_line(error)}")
                continue
            if not look.names:
                self.problems.note("files without rows", str(path))
                continue
            signature = (*look.names, "|", *sorted(look.numeric), *look.shapes)
            try:
                if signature not in known:
                    known[signature] = understand(str(path), look, self.asked)
                    self.columns.setdefault(known[signature], str(path))
            except InvalidInputError as error:
                if found.named:
                    raise
                self.problems.note("files that are no rollout log", str(path))
                refusal = refusal or error
                continue
            only[path] = _only_prompt(look, known[signature])
            read.append((found, replace(look, rows=[]), known[signature]))
        if refusal is not None and not self.columns:
            raise refusal
        return self._with_steps(self._with_time(read), only)

    def _with_time(self, read: list[tuple[Found, Look, Columns]]) -> list[tuple[Found, Look, Columns]]:
        """The files, with the column of steps chosen where all rows have to tell which it is."""
        if self.pooled:
            return read
        chosen: dict[Columns, Columns] = {}
        for columns in dict.fromkeys(one for *_, one in read if one.perhaps_step):
            seen = Seen(columns.perhaps_step)
            for found, look, of_file in read:
                if of_file == columns:
                    names = [*columns.perhaps_step, *columns.identity.ids, *columns.identity.texts]
                    for part in self._parts(_Understood(found, look, columns, "", None), names, Problems()):
                        keys = (encoded(part.columns[name]).row_keys() for name in names[len(seen.names) :])
                        seen.add([part.columns[name] for name in seen.names], joined(list(keys)))
            chosen[columns] = columns.at(choose(seen))
        self.columns = {chosen.get(columns, columns): file for columns, file in self.columns.items()}
        return [(found, look, chosen.get(columns, columns)) for found, look, columns in read]

    def _with_steps(self, read: list[tuple[Found, Look, Columns]], only: dict[Path, str | None]) -> list[_Understood]:
        """Where the steps of each file come from; `only` is the prompt of files that hold but one."""
        if self.pooled:
            return [_Understood(*one, "one group", 0) for one in read]
        nameless = [one for one in read if one[2].step is None]
        named = numbers({found.path: only[found.path] for found, *_ in nameless})
        if len(set(named.steps.values())) == 1 and self._come_again(nameless):
            named = Numbers({})
        understood = []
        for found, look, columns in read:
            step = None if columns.step is not None else named.steps.get(found.path)
            source = "column" if columns.step is not None else "order" if step is None else named.source
            understood.append(_Understood(found, look, columns, source, step))
        return understood

    def _come_again(self, read: list[tuple[Found, Look, Columns]]) -> bool:
        """Whether prompts come again in a file, in rows that stand together: a file of several steps.

        In a step whose rows are in no order, prompts come again too, but mostly a row at a time.
        """
        prompts, lengths = 0, [np.empty(0, dtype=np.int64)]
        for found, look, columns in read:
            names = [*columns.identity.ids, *columns.identity.texts]
            parts = self._parts(_Understood(found, look, columns, "", None), names, Problems())
            keys = [
                joined([encoded(part.columns[name]).row_keys() for name in names]) for part in islice(parts, _PARTS)
            ]
            if keys:
                whole = np.concatenate(keys)
                starts = np.flatnonzero(np.append(True, whole[1:] != whole[:-1]))
                lengths.append(np.diff(starts, append=len(whole)))
                prompts += len(np.unique(whole))
        runs = np.concatenate(lengths)
        return len(runs) > prompts and float(np.median(runs)) > 1.0

    def _same_steps(self, files: list[_Understood]) -> list[_Understood]:
        """The files whose steps come from where those of most files come from.

        Raises:
            InvalidInputError: there is no such majority, or one of the others was named.
        """
        sources = Counter(one.steps_from for one in files)
        if not sources:
            return files
        (self.steps_from, most), *others = sources.most_common()
        odd = [one for one in files if one.steps_from != self.steps_from]
        if odd and (any(one.found.named for one in files) or most == others[0][1]):
            first, other = next(one for one in files if one.steps_from != odd[0].steps_from), odd[0]
            raise InvalidInputError(
                f"LOGS: {other.found.path} takes its steps from the {other.steps_from}, {first.found.path} from the "
                f"{first.steps_from}; expected the same of all. Audit them apart, or name the column with --step "
                "COLUMN."
            )
        for one in odd:
            self.problems.note(f"files whose steps come from the {one.steps_from}", str(one.found.path))
        kept = [one for one in files if one.steps_from == self.steps_from]
        used = {one.columns for one in kept}
        self.columns = {columns: file for columns, file in self.columns.items() if columns in used}
        return kept

    def _each_shard_once(self, files: list[_Understood]) -> list[_Understood]:
        """The files without shards that hold what another one holds, as where every rank writes the whole batch.

        Parts of groups whose rollouts all did alike look the same too. So there must be lengths, completions or a group
        with several rewards, which parts would share by chance only; otherwise both count, and it is said.
        """
        shards: dict[str, list[_Understood]] = {}
        for one in files:
            shards.setdefault(shard(one.found.path), []).append(one)
        if len(shards) < 2 or "" in shards:
            return files
        starts = {label: self._content(own[:1], only_first=True) for label, own in shards.items()}
        often = Counter(starts.values())
        kept: dict[tuple[bytes, bool], Path] = {}
        left_out = set()
        for label, own in shards.items():
            if often[starts[label]] == 1:
                continue
            content = self._content(own)
            first = kept.setdefault(content, own[0].found.path)
            if first == own[0].found.path:
                continue
            if not content[1]:
                self.alike = (first, own[0].found.path)
                continue
            left_out |= {one.found.path for one in own}
            for one in own:
                self.problems.note("files of a shard with the very rows of another", str(one.found.path))
        return [one for one in files if one.found.path not in left_out]

    def _content(self, files: list[_Understood], only_first: bool = False) -> tuple[bytes, bool]:
        """What only files with the same rows in the same order share, and whether anything varies in groups."""
        digest, varied = hashlib.blake2b(), any(one.columns.completion or one.columns.length for one in files)
        for one in files:
            columns = one.columns
            keys = (*columns.identity.ids, *columns.identity.texts)
            rewards = (*columns.trained, *columns.success)
            digest.update(repr((one.step, columns.needed())).encode())
            for part in islice(self._parts(one, columns.needed(), Problems()), 1 if only_first else None):
                rows = {name: encoded(part.columns[name]).row_keys() for name in columns.needed()}
                for held in rows.values():
                    digest.update(held.tobytes())
                if rewards:
                    same = np.diff(joined([rows[name] for name in keys])) == 0
                    varied = varied or bool((same & (np.diff(rows[rewards[0]]) != 0)).any())
        return digest.digest(), varied

    def _choose_values(self, files: list[_Understood]) -> None:
        """Which rows count, where a column tells training from evaluation, or several gradings of one response."""
        seen: dict[str, dict[str, None]] = {}
        for one in files:
            names = [name for name in (one.columns.split, one.columns.grading) if name is not None]
            if not names:
                continue
            for part in self._parts(one, names, Problems()):
                for name in names:
                    seen.setdefault(name, {}).update(dict.fromkeys(encoded(part.columns[name]).values))
        for columns in self.columns:
            if columns.split is not None and columns.split in seen:
                values = list(seen[columns.split])
                evaluation = [word for word in values if prompts.is_evaluation(columns.split, word)]
                if 0 < len(evaluation) < len(values):
                    self.left_out[columns.split] = evaluation
                    self.kept[columns.split] = [word for word in values if word not in evaluation]
            if columns.grading is not None and columns.grading in seen:
                self.kept[columns.grading], self.left_out[columns.grading] = (
                    list(seen[columns.grading])[:1],
                    list(seen[columns.grading])[1:],
                )

    def _parts(self, one: _Understood, needed: list[str], problems: Problems | None = None) -> Iterator[Part]:
        """The rows of a file; what breaks off is counted."""
        path = one.found.path
        parts = readers.parts(path, one.look, needed, problems or self.problems)
        while True:
            try:
                part = next(parts, None)
            except DAMAGE as error:
                (problems or self.problems).note("files that break off", f"{path}: {first_line(error)}")
                return
            if part is None:
                return
            if len(part.rows):
                yield part

    def _batch(self, file: _Understood, part: Part, position: int) -> Batch:
        """The good rows of what was read at once."""
        rows = Rows(file.columns, part, file.found.path, self.problems)
        rows.leave_out(self.left_out)
        for name in file.columns.identity.runs:
            values = self.runs.setdefault(name, [])
            values += [one for one in rows.values(name) if one not in values][: _FEW - len(values)]
        batch = rows.batch(file.step, with_steps=not self.pooled)
        return replace(
            batch,
            argument=file.found.argument,
            file=position,
            path=file.found.path,
            writer=writer(file.found.path),
            timed=batch.step is not None and not self.pooled,
        )


def _only_prompt(look: Look, columns: Columns) -> str | None:
    """The prompt of all first rows, if they have but one."""
    names = (*columns.identity.ids, *columns.identity.texts)
    prompts = {repr([value(row, name) for name in names]) for row in look.rows}
    return prompts.pop() if len(prompts) == 1 else None
