"""The whole search: bundles and recorded frames in, measured plans and a choice out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolvla_edge.compress.evidence import ActionError, check_alike
from smolvla_edge.compress.skip import Influence, LayerInfluence, rank_layers
from smolvla_edge.errors import InputError
from smolvla_edge.eval.runner import fingerprint
from smolvla_edge.plan import Plan
from smolvla_edge.plan_words import write_words
from smolvla_edge.source import Source, open_source
from smolvla_edge.tune.finalists import Candidate, Finalist, time_all
from smolvla_edge.tune.front import Budget, Choice, choose, non_dominated, thinned
from smolvla_edge.tune.judge import exact_actions
from smolvla_edge.tune.search import BATCH, Search, Trial
from smolvla_edge.tune.space import Space, find_knobs
from smolvla_edge.tune.storage import check_names, is_shared, open_storage, study_of
from smolvla_edge.tune.streams import Stream, Streams, read_streams
from smolvla_edge.tune.workers import Bench, Workers
from smolvla_edge.version import __version__

Report = Callable[[str, int, int], None]

MOST_MEASURED = 16
_RANKED_ON = 16  # frames on which layers are left out one by one
_RANKING = "ranking"


@dataclass(frozen=True)
class Request:
    """What is asked of a search; tune --help says what each means."""

    bundles: tuple[str, ...]
    frames: Path
    storage: str
    budget: Budget
    trials: int = 96
    streams: int = 24
    calls: int = 60
    seed: int = 0
    workers: int = 1
    threads: int | None = None
    reference: str | None = None
    only: tuple[str, ...] | None = None
    rename: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Tuned:
    """What came out. trials: of each bundle. finalists: the first is the exact plan of the first
    bundle. error: of the chosen plan on the frames of the search. ran: backend, isa, threads."""

    request: Request
    sources: tuple[Source, ...]
    reference: Source
    streams: Streams
    rows: int
    space: Space
    influence: Influence | None
    trials: tuple[tuple[Trial, ...], ...]
    finalists: tuple[Finalist, ...]
    choice: Choice
    error: ActionError
    ran: Mapping[str, Any]

    @property
    def chosen(self) -> Finalist:
        return self.finalists[self.choice.number]

    def words(self, finalist: Finalist) -> str:
        """Its plan, as it can be typed."""
        source = self.sources[finalist.candidate.source]
        return write_words(finalist.plan, source.model.num_steps)


def tune(request: Request, report: Report = lambda what, done, total: None) -> Tuned:
    """Search, measure, choose. Raises InputError for bundles that are not alike, a bundle named
    twice, and a storage of something else; and what loading, reading and predicting raise."""
    find_knobs(request.only)
    sources = tuple(open_source(path) for path in request.bundles)
    reference = sources[0] if request.reference is None else open_source(request.reference)
    rows = _check(sources, reference)
    names = [fingerprint(path) for path in request.bundles]
    if len(set(names)) < len(names):
        raise InputError("expected different bundles, got one of them twice")
    with open_storage(request.storage) as storage:
        check_names(storage, names)
        streams = read_streams(
            request.frames, reference.contract, rows, request.streams,
            rename=request.rename, progress=partial(report, "reading frames"),
        )  # fmt: skip
        identity = {
            "smolvla_edge": __version__,
            "reference": fingerprint(request.reference or request.bundles[0]),
            "frames": streams.digest(),
            "seed": request.seed,
            "batch": BATCH,
            "knobs": list(find_knobs(request.only)),
        }
        studies = [study_of(storage, name, {**identity, "bundle": name}) for name in names]
        exact = exact_actions(
            reference, (*streams.search, *streams.held_out), request.seed, rows,
            threads=request.threads, progress=partial(report, "the exact policy in float32"),
        )  # fmt: skip
        count = sum(map(len, streams.search))
        influence = _influence(studies[0], sources[0], streams, request, report)
        ranking = {} if influence is None else {p: influence.order(p) for p in influence.parts}
        space = Space.of(reference.model, rows, ranking, request.only)
        trials = []
        for number, (path, study) in enumerate(zip(request.bundles, studies, strict=True)):
            search = Search(study, space, reference.model.num_steps, request.seed,
                            shared=is_shared(request.storage))  # fmt: skip
            bench = Bench(path, streams.search, exact[:count], request.seed)
            with Workers(bench, request.workers, request.threads, search.alive) as workers:
                what = f"searching, bundle {number + 1} of {len(studies)}"
                search.run(request.trials, workers.evaluate, partial(report, what))
            trials.append(tuple(search.trials()))
    candidates = candidates_of(trials, sources, request.budget)
    finalists, ran = _measure(request, sources, candidates, streams.held_out, exact[count:], report)
    choice = choose(finalists, request.budget)
    report("the chosen plan once more", 0, 1)
    chosen = finalists[choice.number]
    path = request.bundles[chosen.candidate.source]
    bench = Bench(path, streams.search, exact[:count], request.seed)
    error = bench.judge(request.threads)(chosen.plan).error
    report("the chosen plan once more", 1, 1)
    return Tuned(
        request, sources, reference, streams, rows, space, influence, tuple(trials),
        tuple(finalists), choice, error, ran,
    )  # fmt: skip


def candidates_of(
    trials: Sequence[Sequence[Trial]], sources: Sequence[Source], budget: Budget
) -> list[Candidate]:
    """The exact plan of every bundle, then the best of each bundle's trials: at most
    MOST_MEASURED, an equal share of each bundle, because their counts of work do not compare."""
    found = [
        Candidate(number, Plan.exact(source.model.num_steps))
        for number, source in enumerate(sources)
    ]
    share = max(1, (MOST_MEASURED - len(found)) // len(sources))
    for number, mine in enumerate(trials):
        best = [mine[i] for i in non_dominated([(t.work, t.error) for t in mine])]
        points = [(t.work, t.error) for t in best]
        for i in thinned(points, share, budget.action_error):
            found.append(Candidate(number, best[i].plan, best[i].error, best[i].work))
    return found


def _check(sources: Sequence[Source], reference: Source) -> int:
    """The actions that all of them execute of a chunk. Raises InputError."""
    rows = reference.contract.n_action_steps
    for source in sources:
        check_alike(source, reference)
        if source.contract.n_action_steps != rows:
            raise InputError(
                f"expected policies that execute the same number of actions of a chunk, got "
                f"{source.contract.n_action_steps} and {rows}"
            )
    return rows


def _influence(
    study: Any, source: Source, streams: Streams, request: Request, report: Report
) -> Influence | None:
    """Which layers matter, measured once a search and then kept with its trials; None when none may
    be left out."""
    if not any(knob.startswith("skip.") for knob in find_knobs(request.only)):
        return None
    kept = study.user_attrs.get(_RANKING)
    if kept is None:
        kept = rank_layers(
            source, streams.observations(_RANKED_ON),
            seed=request.seed, threads=request.threads, progress=report,
        ).to_json()  # fmt: skip
        study.set_user_attr(_RANKING, kept)
    parts = {
        part: tuple(LayerInfluence(part, **layer) for layer in layers)
        for part, layers in kept["parts"].items()
    }
    return Influence(parts)


def _measure(
    request: Request,
    sources: Sequence[Source],
    candidates: Sequence[Candidate],
    streams: tuple[Stream, ...],
    exact: NDArray[np.float32],
    report: Report,
) -> tuple[list[Finalist], Mapping[str, Any]]:
    errors: dict[int, ActionError] = {}
    for number, path in enumerate(request.bundles):  # one bundle in memory at a time
        judge = Bench(path, streams, exact, request.seed).judge(request.threads)
        for i, one in enumerate(candidates):
            if one.source == number:
                report("the finalists on held-out frames", len(errors), len(candidates))
                errors[i] = judge(one.plan).error
    latencies, ran = time_all(
        sources, candidates, streams, request.calls, request.seed,
        threads=request.threads, progress=partial(report, "timing the finalists in turn"),
    )  # fmt: skip
    base = latencies[0].median_ms
    return [
        Finalist(one, errors[i], latencies[i], base / latencies[i].median_ms)
        for i, one in enumerate(candidates)
    ], ran
