"""Trials: the same from the same seed however they are run, never lost, never mixed."""

from __future__ import annotations

import json
import math

import pytest
from needs import needs

with needs("optuna", "pyarrow", "PIL"):
    import optuna
    from tune_helpers import space

from smolvla_edge.errors import BackendError, InputError
from smolvla_edge.tune import search as search_module
from smolvla_edge.tune.search import BATCH, STALE_S, Search
from smolvla_edge.tune.storage import (
    check_names,
    default_storage,
    is_shared,
    open_storage,
    study_of,
)


def judge(plan):
    """A made-up price: fewer steps are cheaper and worse."""
    cached = plan.cache.threshold if plan.cache else 0.0
    left_out = sum(len(getattr(plan.skip, part)) for part in ("vision", "vlm", "expert"))
    error = 1 / plan.steps + cached + 0.1 * left_out + (plan.stop or 0)
    return error, plan.steps * (1 - 0.1 * left_out) * (0.5 if plan.cache else 1)


def memory(name="one"):
    return study_of(optuna.storages.InMemoryStorage(), name, {"bundle": name})


def in_order(evaluate):
    """One plan after the other, in this process."""
    return lambda plans: map(evaluate, plans)


def searched(count, evaluate=judge, seed=0, study=None, **options):
    found = Search(study or memory(), space(), 10, seed, **options)
    found.run(count, in_order(evaluate))
    return found.trials()


@pytest.fixture(scope="module")
def straight():
    return searched(3 * BATCH)


def counting(calls, dies_after=math.inf):
    def evaluate(plan):
        if len(calls) >= dies_after:
            raise KeyboardInterrupt
        calls.append(plan)
        return judge(plan)

    return evaluate


def test_the_seed_decides(straight):
    assert searched(3 * BATCH) == straight
    assert searched(3 * BATCH, seed=1) != straight
    assert [one.number for one in straight] == list(range(3 * BATCH))
    first = [space().plan(params) for params in space().first()]
    assert [one.plan for one in straight][: len(first)] == first


def test_the_order_in_which_results_come_does_not_matter(straight):
    """As from several processes: all of a batch are judged before the first is handed on."""
    study = memory()
    found = Search(study, space(), 10, 0)
    found.run(3 * BATCH, lambda plans: iter([judge(plan) for plan in reversed(plans)][::-1]))
    assert found.trials() == straight


def test_whole_batches(straight):
    assert searched(2 * BATCH + 1) == straight
    assert searched(1) == straight[:BATCH]


@pytest.mark.parametrize("dies_after", [0, 5, BATCH, BATCH + 3])
def test_an_interrupted_search_goes_on_as_if_nothing_had_happened(straight, dies_after):
    study, calls = memory(), []
    with pytest.raises(KeyboardInterrupt):
        searched(3 * BATCH, counting(calls, dies_after), study=study)
    assert searched(3 * BATCH, counting(calls), study=study) == straight
    assert len(calls) == len({repr(one.plan) for one in straight})  # nothing is judged twice


def test_killed_while_asking(straight, monkeypatch):
    """Half a batch was asked, and a plan was queued that nobody asked for."""
    study = memory()
    asked = []

    def dying(seed):
        if len(asked) == 5:
            raise KeyboardInterrupt
        asked.append(seed)
        return real(seed)

    real = search_module.sampler
    monkeypatch.setattr(search_module, "sampler", dying)
    with pytest.raises(KeyboardInterrupt):
        searched(3 * BATCH, study=study)
    study.enqueue_trial(space().first()[5])
    monkeypatch.setattr(search_module, "sampler", real)
    assert searched(3 * BATCH, study=study) == straight


def test_a_trial_without_its_numbers_is_given_up():
    study = memory()
    study.ask()
    found = searched(BATCH, study=study)
    assert [one.number for one in found] == list(range(1, BATCH))
    assert study.trials[0].state == optuna.trial.TrialState.FAIL


def test_plans_that_are_the_same_are_judged_once():
    calls = []
    narrow = space(knobs=("steps",), steps=(1, 3), order=())
    found = Search(memory(), narrow, 10, 0)
    found.run(BATCH, in_order(counting(calls)))
    assert len(found.trials()) == BATCH and len(calls) == 3


class TestShared:
    def test_what_a_living_machine_does_is_left_to_it(self):
        study, now = memory(), [1000.0]
        other = Search(study, space(), 10, 0, shared=True)
        other.alive(lambda: now[0])
        theirs = other._ask(0)
        mine = Search(study, space(), 10, 0, shared=True)
        now[0] += STALE_S - 1
        mine.run(BATCH, in_order(judge), clock=lambda: now[0])
        assert theirs[0] not in [one.number for one in mine.trials()]
        now[0] += 2  # silent for too long: its trial is run
        mine.run(BATCH, in_order(judge), clock=lambda: now[0])
        assert len(mine.trials()) == BATCH
        study.tell(theirs[0], [1.0, 1.0], skip_if_finished=True)  # it wakes up after all

    def test_machines_do_not_draw_the_same(self):
        draws = []
        for _ in range(2):
            study = memory()
            found = Search(study, space(), 10, 0, shared=True)
            found.run(2 * BATCH, in_order(judge))
            draws.append([one.plan for one in found.trials()])
        assert draws[0] != draws[1]


class TestStorage:
    # One knob: every number that is drawn is written to the disk by itself.
    @pytest.mark.parametrize("kind", ["{}", "sqlite:///{}"])
    def test_trials_are_kept(self, tmp_path, kind):
        place = kind.format(tmp_path / "trials")
        narrow, calls = space(knobs=("steps",), order=()), []
        for dies_after in (3, math.inf):
            with open_storage(place) as storage:
                study = study_of(storage, "one", {"bundle": "one"})
                found = Search(study, narrow, 10, 0)
                try:
                    found.run(BATCH, in_order(counting(calls, dies_after)))
                except KeyboardInterrupt:
                    continue
                assert len(found.trials()) == BATCH
        assert len(calls) == len(set(map(repr, calls)))

    def test_half_a_line_is_forgotten(self, tmp_path):
        file = tmp_path / "trials"
        with open_storage(str(file)) as storage:
            study = study_of(storage, "one", {"bundle": "one"})
            study.set_user_attr("last", 1)
        whole = file.read_bytes()
        file.write_bytes(whole + b'{"op_code": 2, "us')
        with open_storage(str(file)) as storage:
            assert study_of(storage, "one", {"bundle": "one"}).user_attrs["last"] == 1
            assert file.read_bytes().startswith(whole)
        assert all(json.loads(line) for line in file.read_text().splitlines())

    def test_trials_are_never_mixed(self, tmp_path):
        place = str(tmp_path / "trials")
        with open_storage(place) as storage:
            study_of(storage, "one", {"seed": 0, "frames": "aa"})
        with open_storage(place) as storage:
            study_of(storage, "one", {"seed": 0, "frames": "aa"})
            with pytest.raises(InputError, match=r"another search \(frames: 'aa', now 'bb'"):
                study_of(storage, "one", {"seed": 0, "frames": "bb"})
            check_names(storage, ["one", "two"])
            with pytest.raises(InputError, match=r"trials of other bundles \(one"):
                check_names(storage, ["two"])

    def test_a_study_of_somebody_elses_is_refused(self, tmp_path):
        with open_storage(str(tmp_path / "trials")) as storage:
            study = optuna.create_study(
                study_name="one", storage=storage, directions=["minimize"] * 2
            )
            study.add_trial(optuna.trial.create_trial(values=[1, 1]))
            with pytest.raises(InputError, match="another search"):
                study_of(storage, "one", {"seed": 0})

    def test_one_search_at_a_time(self, tmp_path):
        place = str(tmp_path / "trials")
        with (
            open_storage(place),
            pytest.raises(InputError, match="another search is using it"),
            open_storage(place),
        ):
            pass

    def test_places_that_are_none(self, tmp_path):
        for place, words in (
            (tmp_path / "missing" / "trials", "does not exist"),
            (tmp_path, "cannot be written"),
        ):
            with pytest.raises(InputError, match=words), open_storage(str(place)):
                pass
        for text in ("no journal\n", "half a line", '{"a": 1}\n'):
            (tmp_path / "text").write_text(text)
            with (
                pytest.raises(InputError, match="expected a journal"),
                open_storage(str(tmp_path / "text")),
            ):
                pass
            assert (tmp_path / "text").read_text() == text

    def test_names(self, tmp_path):
        assert default_storage(tmp_path / "b") == tmp_path / "b.tune.journal"
        assert is_shared("postgresql://host/db") and not is_shared("sqlite:///file")


def test_a_dead_process_is_said(tmp_path):
    from smolvla_edge.tune.workers import Bench, Workers

    bench = Bench(str(tmp_path / "no policy"), (), None, 0)  # its initializer fails
    with Workers(bench, 2, None, lambda: None) as workers, pytest.raises(BackendError) as caught:
        list(workers.evaluate([space().plan({})]))
    assert "The same command goes on" in str(caught.value)
