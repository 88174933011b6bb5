"""`python -m benchmarks`: Manifold, its peers and the upstream itself at the same works.

    python -m benchmarks --quick
    python -m benchmarks --write docs/benchmarks.md

Everything runs on this machine on free ports and in a temporary folder. What is not installed is
left out; `python -m benchmarks.peers install` installs the peers. Prints each work's figures and
every bar. The exit status says nothing of the bars, only whether Manifold did all works without a
failure.
"""

import argparse
import datetime as dt
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from benchmarks import load, report, works
from benchmarks.bars import OURS
from benchmarks.gateways import GATEWAYS, Gateway, Setting
from benchmarks.load import FailedError
from benchmarks.processes import Upstream
from benchmarks.results import Results
from benchmarks.works import Bench, Scale, Work


def main() -> int:
    """Do what the command line asks for; 1 when Manifold has failed at something."""
    asked = _asked()
    # Whoever is asked to end still ends what he has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    scale = _scale(asked)
    chosen = _chosen(works.all_works(scale), asked.only)
    results = Results.load(asked.keep) if asked.keep else Results()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmarks-")))
        upstream = Upstream("upstream", folder)
        stack.callback(upstream.tree.kill)
        setting = Setting(
            folder, upstream, manifold=asked.manifold, keys=scale.keys, deep=scale.deep
        )
        gateways = _started(setting, asked.peers, stack)
        bench = Bench(setting, scale)
        for work in chosen:
            try:
                _do(work, bench, gateways, results)
            finally:
                bench.end_extra()
            if asked.keep:
                results.save(asked.keep)
    every = works.all_works(scale)
    print(report.text(results, every, load.tool()))
    if asked.write:
        for path in report.write(results, every, load.tool(), asked.write):
            print(f"wrote {path}")
    failed = [work.name for work in chosen if OURS in results.failed.get(work.name, {})]
    failed += [work.name for work in chosen if results.most(work.name, OURS, "failures")]
    return int(bool(failed))


def _asked() -> argparse.Namespace:
    names = [cls.name for cls in GATEWAYS]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Manifold beside its peers."
    )
    parser.add_argument("--quick", action="store_true", help="one short round, below two minutes")
    parser.add_argument("--smoke", action="store_true", help="seconds, to see that it all works")
    parser.add_argument("--rounds", type=int, help="rounds of each work  [3]")
    parser.add_argument("--seconds", type=float, help="how long each load lasts  [3]")
    parser.add_argument(
        "--only", nargs="+", metavar="WORK", help="works whose names begin with one of these"
    )
    parser.add_argument(
        "--peers", nargs="+", choices=names, metavar="NAME", help=f"gateways: {', '.join(names)}"
    )
    parser.add_argument(
        "--manifold",
        type=Path,
        default=Path(sys.executable).with_name("manifold"),
        help="the command of the Manifold that is measured  [this interpreter's]",
    )
    parser.add_argument(
        "--keep", type=Path, metavar="FILE", help="add to what earlier runs have kept here"
    )
    parser.add_argument(
        "--write", type=Path, metavar="PAGE.md", help="write a page, with charts beside it"
    )
    return parser.parse_args()


def _scale(asked: argparse.Namespace) -> Scale:
    scale = works.SMOKE if asked.smoke else works.QUICK if asked.quick else works.FULL
    if asked.rounds:
        scale = replace(scale, rounds=asked.rounds)
    if asked.seconds:
        scale = replace(scale, seconds=asked.seconds)
    return scale


def _chosen(every: Sequence[Work], only: Sequence[str] | None) -> list[Work]:
    if not only:
        return list(every)
    chosen = [work for work in every if work.name.startswith(tuple(only))]
    unknown = [name for name in only if not any(work.name.startswith(name) for work in every)]
    if unknown:
        names = ", ".join(work.name for work in every)
        raise SystemExit(f"no such work: {', '.join(unknown)}; there are: {names}")
    return chosen


def _started(setting: Setting, names: Sequence[str] | None, stack: ExitStack) -> list[Gateway]:
    """Every gateway that is asked for and installed, up and prepared."""
    gateways: list[Gateway] = []
    for cls in GATEWAYS:
        if names and cls.name not in names:
            continue
        if missing := cls.missing():
            print(f"left out: {missing}", file=sys.stderr)
            continue
        gateway = cls(setting)
        stack.callback(gateway.kill)
        gateway.launch()
        gateways.append(gateway)
    for gateway in gateways:
        gateway.wait_ready()
        gateway.prepare()
    print(f"measured: {', '.join(gateway.label for gateway in gateways)}", file=sys.stderr)
    return gateways


def _do(work: Work, bench: Bench, gateways: list[Gateway], results: Results) -> None:
    """All rounds of one work. Who fails at it is told of and left out of it."""
    able = [gateway for gateway in gateways if work.can(gateway)]
    if bench.scale.is_quick and work.is_long:
        able = [gateway for gateway in able if not gateway.is_slow]
    if not able:
        return
    day = dt.datetime.now(dt.UTC).date().isoformat()
    results.begin(work.name, {"title": work.title, "rounds": bench.scale.rounds, "day": day})
    print(f"{work.title} ...", end="", file=sys.stderr, flush=True)
    begun = time.monotonic()
    if work.gateways is not None:
        able = work.gateways(bench, able)
    for gateway in able:
        assert gateway.tree is not None  # noqa: S101  # it was started
        bench.before[gateway.name] = gateway.tree.rss_bytes()
    if work.prepare is not None:
        able = [gateway for gateway in able if _is_prepared(work, bench, gateway, results)]
    for number in range(bench.scale.rounds):
        # Who comes first is another one each time.
        turn = number % len(able) if able else 0
        for gateway in able[turn:] + able[:turn]:
            if gateway.name in results.failed[work.name]:
                continue
            try:
                results.add(work.name, gateway.name, work.measure(bench, gateway))
            except (FailedError, OSError, RuntimeError) as error:
                results.fail(work.name, gateway.name, str(error))
    print(f" {time.monotonic() - begun:.1f} s", file=sys.stderr)


def _is_prepared(work: Work, bench: Bench, gateway: Gateway, results: Results) -> bool:
    assert work.prepare is not None  # noqa: S101  # asked before
    try:
        work.prepare(bench, gateway)
    except (FailedError, OSError) as error:
        results.fail(work.name, gateway.name, str(error))
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
