"""Recipes of real domains: raw files in, one trained model, its figures beside simple baselines, and its card.

    python scripts/recipes.py ads --data ../shared/data          # or ecommerce, short_video, questions, movies
    python scripts/recipes.py all --data ../shared/data          # what `make recipes DATA=...` does

`--data` holds one folder per data set (see scripts/recipes/README.md). Where a set is not there, the recipe says where
it comes from, and the demo's ratings are trained on instead. A run is written to runs/recipes/NAME (model,
metrics.json), its card to model_cards/NAME.md and the figures the card quotes to model_cards/NAME.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Sequence
from pathlib import Path

from recipe_tables import SOURCES

HERE = Path(__file__).resolve().parent


def write_tables(name: str, data: Path, folder: Path) -> dict[str, str]:
    """Build a recipe's tables; returns {"interactions": path, ...}, paths that the recipe's own are replaced by."""
    source = SOURCES[name]
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for table, frame in source.build(data / source.folder).items():
        path = folder / f"{table}.parquet"
        frame.to_parquet(path, index=False)
        paths[table] = str(path)
    return paths


def run(name: str, data: Path, output: Path, cards: Path, settings: Sequence[str] = ()) -> None:
    """Tables, training, figures and card of one recipe.

    Args:
        settings: --set of `polyrec train`.
    """
    from polyrec.cli.main import main as polyrec

    begin, cpu = time.perf_counter(), _cpu_seconds()
    paths = write_tables(name, data, output / "data")
    flags = [f"{table}={path}" for table, path in paths.items() if table != "baselines"]
    flags += [f"output={output}", *settings]
    code = polyrec(["train", str(HERE / "recipes" / f"{name}.yaml"), *(x for flag in flags for x in ("--set", flag))])
    if code:
        raise SystemExit(code)
    from recipe_baselines import add_baselines

    add_baselines(output, Path(paths["baselines"]) if "baselines" in paths else None)
    further(name, output)
    from recipe_card import COST_NAME, write_card

    from polyrec.runs.transaction import put_file

    cost = {"cpu_seconds": round(_cpu_seconds() - cpu), "wall_seconds": round(time.perf_counter() - begin)}
    put_file(output / COST_NAME, json.dumps(cost) + "\n")
    print(f"card: {write_card(name, output, cards)}; {cost['cpu_seconds']} cpu-seconds in all")


def further(name: str, output: Path) -> None:
    """Figures that only this domain has, written beside metrics.json."""
    if name == "ads":
        import recipe_policy

        print(recipe_policy.format_policies(recipe_policy.evaluate(output)))


def _cpu_seconds() -> float:
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def demo(settings: Sequence[str]) -> None:
    """What somebody without the files can run."""
    import demo as script

    script.run(settings)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=[*SOURCES, "all"])
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data sets (default: %(default)s)")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/recipes"), help="folder of runs (default: %(default)s)"
    )
    parser.add_argument(
        "--cards", type=Path, default=Path("model_cards"), help="folder of cards (default: %(default)s)"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=int(os.environ.get("OMP_NUM_THREADS", "2")),
        help="(default: $OMP_NUM_THREADS, or 2)",
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in `polyrec train`")
    options = parser.parse_args(arguments)
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # different ones would wait for each other
        os.environ[variable] = str(options.threads)  # torch reads it when it is imported
    chosen = list(SOURCES) if options.recipe == "all" else [options.recipe]
    missing = [name for name in chosen if not SOURCES[name].found(options.data)]
    for name in missing:
        source = SOURCES[name]
        print(f"{name}: no {source.folder} in {options.data}. It is: {source.about}.")
    for name in chosen:
        if name not in missing:
            run(name, options.data, options.output / name, options.cards, options.set)
    if missing:
        print("Training on the demo's ratings instead.")
        demo(options.set)


if __name__ == "__main__":
    main()
