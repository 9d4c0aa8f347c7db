"""A verb that is killed at any moment leaves nothing half, and the same command goes on to the very same files."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from verbs import contents, differences
from workplace import Workplace

KILLS = {"prepare": 18, "distill": 28, "pretrain": 16, "finetune": 18, "evaluate": 12, "export": 8}
"""Verb → number of kills in the long part: 100 in all."""

QUICK = 5
"""Kills in the quick part."""


class Campaign:
    """Kills a verb again and again, and compares what it leaves in the end with what an uninterrupted run left."""

    def __init__(self, workplace: Workplace, verb: str, place: Path, rng: random.Random) -> None:
        self.workplace, self.verb, self.place, self.rng = workplace, verb, place, rng
        self.whole = workplace.whole(verb)
        self.work = workplace.works[verb]
        self.kills = 0

    def at_random_moments(self, kills: int) -> None:
        """Kill the verb at random moments; each output is killed up to three times before it may be finished."""
        while self.kills < kills:
            folder, ended = self._new_folder(), False
            for _ in range(min(self.rng.randint(1, 3), kills - self.kills)):
                child = self.workplace.server.start(self.work.argv(folder), self.workplace.log, self._cache(folder))
                moment = self.rng.uniform(0, self.workplace.seconds[self.verb])
                time.sleep(max(0.0, child.started + moment - time.monotonic()))
                child.kill()
                ended = not self._was_killed(child.wait(), folder)
                if ended or self._is_complete(folder):
                    break
            self._finish(folder, ended)

    def at_changes(self, numbers: list[int]) -> None:
        """Kill the verb before changes of the file system of these numbers, each time with a new output."""
        for number in numbers:
            folder = self._new_folder()
            argv, cache = self.work.argv(folder), self._cache(folder)
            status = self.workplace.server.start(argv, self.workplace.log, cache, kill_at=number).wait()
            assert self._was_killed(status, folder), f"there is no change {number}"
            self._finish(folder)

    def _new_folder(self) -> Path:
        folder = self.place / f"{self.verb}-{self.kills}"
        for old in (folder, Path(self._cache(folder)["POTSTILL_CACHE"])):
            shutil.rmtree(old, ignore_errors=True)
        return folder

    def _cache(self, folder: Path) -> dict[str, str]:
        return self.workplace.cache(folder)

    def _was_killed(self, status: int, folder: Path) -> bool:
        assert status in (0, -signal.SIGKILL), self.workplace.tail()
        self.work.check(folder, self.whole)
        self.kills += status != 0
        return status != 0

    def _is_complete(self, folder: Path) -> bool:
        """Return whether the verb was killed between its last file and its end."""
        return folder.is_dir() and differences(contents(folder), contents(self.whole)) == []

    def _finish(self, folder: Path, ended: bool = False) -> None:
        complete = ended or self._is_complete(folder)
        status = 0 if ended else self.workplace.run(self.verb, folder)
        # A verb without checkpoints then refuses to write over what is complete.
        assert status == 0 or (complete and "is not empty" in self.workplace.tail()), self.workplace.tail()
        self.work.check(folder, self.whole)
        assert differences(contents(folder), contents(self.whole)) == [], folder
        left = [path.name for path in folder.parent.glob(f".{folder.name}.*")]
        assert not left, left
        shutil.rmtree(folder)


@pytest.mark.slow
def test_quick_kills_before_changes_of_the_file_system(workplace: Workplace, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    campaign = Campaign(workplace, "distill", tmp_path, rng)
    # The last changes write the output; those before them the last checkpoint.
    changes = workplace.changes["distill"]
    campaign.at_changes(sorted(rng.sample(range(changes), QUICK - 2) + rng.sample(range(changes - 40, changes), 2)))
    assert campaign.kills == QUICK


@pytest.mark.faults
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("verb", KILLS)
def test_kills_at_random_moments(workplace: Workplace, tmp_path: Path, verb: str, fault_seed: int) -> None:
    started = time.monotonic()
    campaign = Campaign(workplace, verb, tmp_path, random.Random(f"{fault_seed} {verb}"))
    campaign.at_random_moments(KILLS[verb])
    assert campaign.kills == KILLS[verb]
    print(f"{verb}: {campaign.kills} of {KILLS[verb]} kills survived in {time.monotonic() - started:.0f} s")


@pytest.mark.faults
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("verb", [verb for verb in KILLS if verb != "export"])
def test_kills_before_changes_of_the_file_system(
    workplace: Workplace, tmp_path: Path, verb: str, fault_seed: int
) -> None:
    rng = random.Random(f"changes {fault_seed} {verb}")
    campaign = Campaign(workplace, verb, tmp_path, rng)
    changes = workplace.changes[verb]
    most = changes if os.environ.get("FAULT_CHANGES") == "all" else 12
    campaign.at_changes(sorted(rng.sample(range(changes), min(changes, most))))
    print(f"{verb}: {campaign.kills} kills before one of {changes} changes of the file system survived")
