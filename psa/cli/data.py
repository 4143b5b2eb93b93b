"""``psa data list``, ``inspect``, ``make`` and ``convert``."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from psa.cli.common import JsonOption, SetOption, print_json, progress_bar, result_console, write_line
from psa.data import ObjectRange, convert, open_dataset
from psa.data.catalogue import READERS, find_reader
from psa.data.conversion import Conversion
from psa.data.description import MapDataset
from psa.data.inspection import inspect_items, spread_indices
from psa.data.named import DATASETS
from psa.data.splits import SPLITS
from psa.errors import ConfigError, PsaError, Stopped
from psa.inference.config import override
from psa.report.contact_sheet import contact_sheet_png
from psa.report.files import save
from psa.report.point_sheet import point_sheet_png

PICTURES = 32  # on a contact sheet
LABELS_SHOWN = 24

data = typer.Typer(
    name="data", help="Data sets: what there is, what is in them, one file of them.", no_args_is_help=True
)

SourceArgument = Annotated[str, typer.Argument(help="A folder or file, or a generator's name.", metavar="PATH|NAME")]
SizeOption = Annotated[str | None, typer.Option(help="Side of the images in pixels, or HEIGHTxWIDTH; resizes.")]
CropOption = Annotated[str | None, typer.Option(help="none, or center: the middle of the aspect ratio of --size.")]
OwnOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Another option of the data set, as on docs/data.md; repeatable."),
]


@data.command("list")
def list_data(json: JsonOption = False) -> None:
    """Generators by name, and the layouts of folders and files that can be read."""
    named = [(name, source.about) for name, source in DATASETS.items()]
    layouts = [reader.layout.partition(": ")[::2] for reader in READERS if reader.layout]
    if json:
        generators = [{"name": name, "about": about} for name, about in named]
        print_json({"generators": generators, "layouts": [{"layout": name, "about": of} for name, of in layouts]})
        return
    for title, rows in (("generators", named), ("layouts, by path", layouts)):
        table = Table(title=title, title_justify="left", box=box.SIMPLE, show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, about in rows:
            table.add_row(name, about)
        result_console.print(table)


@data.command("inspect")
def inspect(
    source: SourceArgument,
    split: Annotated[str, typer.Option(help="train, val, test, or all of a folder or file.")] = "train",
    n: Annotated[int, typer.Option("-n", min=1, help="Items that are read for the figures, evenly spread.")] = 200,
    everything: Annotated[bool, typer.Option("--all", help="Read every item of the split.")] = False,
    out: Annotated[Path | None, typer.Option(help="A PNG of scenes with their masks, or of points.")] = None,
    size: SizeOption = None,
    crop: CropOption = None,
    settings: OwnOption = None,
    json: JsonOption = False,
) -> None:
    """What a data set holds: layout, splits, sizes, values, labels, objects, factors. Figures say of how many items."""
    if out is not None and out.suffix.lower() != ".png":
        raise ConfigError(f"--out {out}: expected a file ending in .png")
    options = _options(size, crop, settings)
    dataset = open_dataset(source, split, **options)
    indices = spread_indices(len(dataset), None if everything else n)
    with progress_bar() as bar:
        figures = inspect_items(dataset, indices, _watch(bar, f"reading {source}"))
    if out is not None:
        _write_sheet(dataset, [indices[i] for i in spread_indices(len(indices), PICTURES)], out)
    info = dataset.info
    record = {
        "source": source,
        "layout": _layout(source),
        "name": info.name,
        "kind": info.kind,
        "size": info.size,
        "background_labels": info.background_labels,
        "num_slots": info.num_slots,
        "splits": _count_splits(source, split, len(dataset), options),
        "split": split,
        "items_read": len(indices),
        **figures,
        "out": out,
    }
    if json:
        print_json(record)
        return
    _print(record)


@data.command("make")
def make(
    name: Annotated[str, typer.Argument(help="A generator, as psa data list gives it.", metavar="NAME")],
    out: Annotated[Path | None, typer.Option(help="The HDF5 file to write; left out, NAME.h5.")] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Training scenes; val and test have a tenth as many.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the scenes.")] = 0,
    settings: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Write a generator's scenes to one HDF5 file with train, val and test.

    The scenes are those that the generator makes by itself. What is interrupted goes on with the same command.
    """
    if name not in DATASETS:
        raise ConfigError(f"{name}: expected a generator, one of {', '.join(DATASETS)}")
    few = {"num_scenes": max(1, n // 10)}
    conversion = Conversion(
        name,
        options=override({}, settings or []) | {"seed": seed},
        split_options={"train": {"num_scenes": n}, "val": few, "test": few},
    )
    _convert(conversion, out or Path(f"{name}.h5"), json)


@data.command("convert")
def convert_data(
    source: SourceArgument,
    out: Annotated[Path, typer.Option(help="The HDF5 file to write; there may be none of its name.")],
    split: Annotated[
        list[str] | None, typer.Option(help="Only this split; repeatable. all: every scene, without splits.")
    ] = None,
    size: SizeOption = None,
    crop: CropOption = None,
    min_objects: Annotated[int | None, typer.Option(min=0, help="Keep scenes with as many objects or more.")] = None,
    max_objects: Annotated[int | None, typer.Option(min=0, help="Keep scenes with as many objects or fewer.")] = None,
    settings: OwnOption = None,
    json: JsonOption = False,
) -> None:
    """Write scenes to one HDF5 file that trains and opens fastest; splits stay what they were.

    Scenes go to FILE.part until all are there. What is interrupted goes on with the same command.
    """
    objects = ObjectRange(min_objects, max_objects)
    splits = tuple(split or SPLITS[:3])
    _convert(Conversion(source, splits, _options(size, crop, settings), objects=objects), out, json)


def _convert(conversion: Conversion, out: Path, json: bool) -> None:
    try:
        with progress_bar() as bar:
            kept = convert(conversion, out, _watch(bar, f"writing {out}"))
    except KeyboardInterrupt:
        raise Stopped(f"interrupted; {out}.part holds what is done, and the same command goes on with it") from None
    result = {"out": str(out), "source": conversion.source, "scenes": sum(kept.values()), "splits": kept}
    result["bytes"] = out.stat().st_size
    if json:
        print_json(result)
        return
    write_line(f"{out}: {_listed(kept)} scenes, {out.stat().st_size / 1e6:.1f} MB")


def _options(size: str | None, crop: str | None, settings: list[str] | None) -> dict[str, Any]:
    """Options of ``open_dataset``."""
    options: dict[str, Any] = override({}, settings or [])
    if size is not None:
        if not re.fullmatch(r"[0-9]{1,6}(x[0-9]{1,6})?", size):
            raise ConfigError(f"--size {size}: expected a number of pixels, or HEIGHTxWIDTH as in 48x64")
        sides = [int(side) for side in size.split("x")]
        options["size"] = sides[0] if len(sides) == 1 else tuple(sides)
    return options | ({} if crop is None else {"crop": crop})


def _watch(bar: Any, description: str) -> Callable[[int, int], object]:
    """What moves a bar."""
    task = bar.add_task(description, total=None, figures="")
    return lambda done, total: bar.update(task, completed=done, total=total)


def _layout(source: str) -> str:
    if source in DATASETS:
        return f"generator: {DATASETS[source].about}"
    reader = find_reader(Path(source))
    assert reader is not None  # it was opened
    return reader.layout


def _count_splits(source: str, split: str, count: int, options: Mapping[str, Any]) -> dict[str, int | None]:
    """Items of each split that a folder or file has; None for those it has not. Of a generator, those looked at."""
    counts: dict[str, int | None] = {split: count}
    for other in () if source in DATASETS else SPLITS:
        if other == split:
            continue
        try:
            counts[other] = len(open_dataset(source, other, **options))
        except PsaError:
            counts[other] = None
    return {name: counts[name] for name in SPLITS if name in counts}


def _write_sheet(dataset: MapDataset[Any], indices: list[int], out: Path) -> None:
    items: list[Any] = [dataset[index] for index in indices]
    if dataset.info.kind == "points":
        png = point_sheet_png(items)
    else:
        masks = [scene.mask for scene in items if scene.mask is not None]
        png = contact_sheet_png([scene.image for scene in items], masks or None, dataset.info.background_labels)
    try:
        save(out, png)
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error.strerror})") from None


def _listed(counts: Mapping[str, int | None]) -> str:
    return ", ".join(f"{name} {'none' if count is None else count}" for name, count in counts.items())


def _print(record: Mapping[str, Any]) -> None:
    total = record["splits"][record["split"]]
    of = "all" if record["items_read"] == total else f"{record['items_read']} evenly spread of"
    low, high = record["value_range"] or (None, None)
    write_line(f"{record['source']}: {record['layout']}")
    write_line(f"splits: {_listed(record['splits'])}")
    write_line(f"figures of {of} {total} items of {record['split']}")
    write_line(f"sizes: {_listed(record['sizes'])}; values {low:g} to {high:g}")
    background = ", ".join(map(str, record["background_labels"])) or "none"
    write_line(
        f"described as {record['name']}: background labels {background}; slots {record['num_slots'] or 'unknown'}"
    )
    _print_labels(record)
    if record["objects"]:
        _print_table("objects", ("objects", "items"), record["objects"].items())
    rows = [
        (name, ", ".join(found["shapes"]), _listed_range(found["range"]), found["unit"] or "")
        for name, found in record["factors"].items()
    ]
    if rows:
        _print_table("factors", ("factor", "type and shape", "range", "unit"), rows)
    if record["out"] is not None:
        write_line(f"the picture is {record['out']}")


def _print_labels(record: Mapping[str, Any]) -> None:
    if record["labels"] is None:
        write_line("no masks" if record["kind"] == "scenes" else "no labels")
        return
    shown = record["labels"][:LABELS_SHOWN]
    total = sum(row["pixels"] for row in record["labels"])
    rows = [
        (f"{row['label']}{' background' if 'background' in row else ''}", f"{row['pixels'] / total:.2%}", row["images"])
        for row in shown
    ]
    _print_table("labels", ("label", "share", "items"), rows)
    if len(shown) < len(record["labels"]):
        write_line(f"and {len(record['labels']) - len(shown)} labels more (--json lists all)")


def _print_table(title: str, headings: tuple[str, ...], rows: Any) -> None:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*map(str, row))
    result_console.print(table)


def _listed_range(found: list[float] | None) -> str:
    return "" if found is None else f"{found[0]:.4g} to {found[1]:.4g}"
