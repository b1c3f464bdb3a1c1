"""Find images and data sets in folders, buckets and on the Hub, fetch their files, and store results."""

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from ..files import FORMATS, RAW_SUFFIXES, ImageFileError, copy_file, printable, readable_suffixes
from .denoising import first_line


@dataclass
class Storage:
    """
    A folder, or what stands for one: any URL that fsspec knows, such as `s3://bucket/folder`.

    Files have names below it, with `/` between folders.
    """

    url: str

    @cached_property
    def _place(self) -> tuple[Any, str]:
        fs, root = fsspec.url_to_fs(self.url)
        return fs, os.path.realpath(root) if "file" in fs.protocol else root

    def __getstate__(self):
        # a file system belongs to the process that made it; a relative folder becomes an absolute one
        return {"url": self.fs.unstrip_protocol(self.root)}

    @property
    def fs(self):
        return self._place[0]

    @property
    def root(self) -> str:
        return self._place[1].rstrip("/")

    @property
    def is_local(self) -> bool:
        return "file" in self.fs.protocol

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    @property
    def address(self) -> str:
        return self.fs.unstrip_protocol(self.root) + "/"

    @cached_property
    def names(self) -> list[str]:
        """
        All files but hidden ones, sorted, as they were found first. A bucket tells a thousand with each request.

        Raises:
            `OSError`: If the place cannot be listed.
            `ValueError`: If it is a file.
        """
        try:
            found = self.fs.find(self.root, detail=True)
        except Exception as error:  # of many classes: each kind of storage has its own
            raise OSError(f"{printable(self.url)} cannot be listed: {first_line(error)}") from error
        # s3fs tells of the folder itself, as if it were its only file, if the first object is stored meanwhile
        paths = [path for path, about in found.items() if about.get("type") != "directory"]
        if paths == [self.root]:
            raise ValueError(f"{printable(self.url)} is a file; give the folder that it is in.")
        names = (path.removeprefix(f"{self.root}/") for path in paths)
        return sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))

    def names_outside(self, other: "Storage") -> list[str]:
        """
        Leave out files that lie in another place, which may be a folder of this one.

        Raises:
            `ValueError`: If it is this one.
        """
        if other.address == self.address:
            raise ValueError(f"the results need another place than {printable(self.url)}, where the images are.")
        if not other.address.startswith(self.address):
            return self.names
        folder = other.address.removeprefix(self.address)
        return [name for name in self.names if not name.startswith(folder)]

    def exists(self, name: str) -> bool:
        return self.fs.exists(self.path(name))

    def fetch(self, name: str, folder: Path) -> Path:
        """Copy a file into a folder."""
        copy = folder / PurePosixPath(name).name
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self.fs.get_file(self.path(name), str(copy))
        except FileNotFoundError as error:  # which says no more than the path
            raise FileNotFoundError(f"{printable(name)} does not exist.") from error
        return copy

    def store(self, file: Path, name: str) -> None:
        """Store a copy of a file under its name whole or not at all."""
        if self.is_local:
            target = Path(self.path(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            copy_file(file, target)
        else:
            # buckets show an object when it is complete
            self.fs.put_file(str(file), self.path(name))


def possible_results(name: str) -> list[str]:
    """Return the names that the result of an image may have: that of HEIC also depends on its pixels."""
    path = PurePosixPath(name)
    suffixes = [path.suffix]
    if path.suffix.lower() in RAW_SUFFIXES:
        suffixes = [".tif"]
    elif FORMATS[path.suffix.lower()] == "heic":
        suffixes = [".jpg", ".png"]
    return [str(path.with_suffix(suffix)) for suffix in suffixes]


def missing_images(source: Storage, target: Storage) -> list[list[str]]:
    """
    Compare the images of a place with the results in another.

    Returns:
        For each image without a result its name, and those of the XMP files beside it.

    Raises:
        `FileNotFoundError`: If there is no image.
        `ValueError`: If two images would have the same result.
    """
    names, suffixes = source.names_outside(target), readable_suffixes()
    images = [name for name in names if PurePosixPath(name).suffix.lower() in suffixes]
    if not images:
        raise FileNotFoundError(f"{printable(source.url)} does not exist, or holds no image and no Parquet file.")
    image_of: dict[str, str] = {}
    for name in images:
        for result in possible_results(name):
            if other := image_of.get(result):
                raise ValueError(f"{printable(other)} and {printable(name)} would both become {printable(result)}.")
            image_of[result] = name
    done = {image_of.get(name) for name in target.names}
    files = set(names)
    missing = []
    for name in images:
        if name not in done:
            stem = PurePosixPath(name).with_suffix("")
            sidecars = {f"{stem}.xmp", f"{stem}.XMP", f"{name}.xmp", f"{name}.XMP"} & files
            missing.append([name, *sorted(sidecars)])
    return missing


@dataclass
class FileJob:
    """An image file, with the XMP files beside it, and the place for its result."""

    names: list[str]  # the image's first
    source: Storage
    target: Storage

    @property
    def name(self) -> str:
        return self.names[0]

    def is_done(self) -> bool:
        return any(map(self.target.exists, possible_results(self.name)))

    def fetch(self, folder: Path) -> Path:
        return [self.source.fetch(name, folder) for name in self.names][0]

    def store(self, result: Path) -> None:
        # the image last: once it is there, nothing is missing
        for file in sorted(result.parent.iterdir(), key=lambda file: file == result):
            self.target.store(file, str(PurePosixPath(self.name).with_name(file.name)))


@dataclass
class CellJob:
    """An image in a table, and the place for its result."""

    name: str
    cell: Any  # {"bytes": ..., "path": ...} as the datasets library stores images, or the bytes alone
    result: dict | None = None

    def is_done(self) -> bool:
        return self.result is not None

    def fetch(self, folder: Path) -> Path:
        cell = self.cell if isinstance(self.cell, dict) else {"bytes": self.cell}
        if not cell["bytes"]:
            raise ImageFileError(f"{printable(self.name)} holds no image.")
        folder.mkdir(parents=True)
        copy = folder / (PurePosixPath(cell.get("path") or "").name or "image")
        copy.write_bytes(cell["bytes"])
        return copy

    def store(self, result: Path) -> None:
        self.result = {"bytes": result.read_bytes(), "path": result.name}


@dataclass
class RowGroup:
    """A row group of a Parquet file, whose result is a file of its own: that is whole or not there."""

    name: str
    index: int

    @property
    def result(self) -> str:
        return f"{self.name.removesuffix('.parquet')}-{self.index:05d}.parquet"

    def read(self, source: Storage) -> pa.Table:
        with source.fs.open(source.path(self.name)) as file:
            return pq.ParquetFile(file).read_row_group(self.index)

    def jobs(self, table: pa.Table, column: str) -> list[CellJob]:
        """Return a job for each row."""
        return [CellJob(f"{self.name}#{self.index}.{i}", cell) for i, cell in enumerate(table[column].to_pylist())]

    def store(self, table: pa.Table, column: str, jobs: list[CellJob], target: Storage) -> None:
        """Store the table with the results in a new column, which is empty where there is none."""
        features = datasets.Features.from_arrow_schema(table.schema)
        features[f"{column}_denoised"] = datasets.Image()
        # the metadata tells the datasets library which columns are images
        schema = features.arrow_schema
        results = pa.array([job.result for job in jobs], schema.field(f"{column}_denoised").type)
        table = table.append_column(f"{column}_denoised", results).replace_schema_metadata(schema.metadata)
        with tempfile.TemporaryDirectory() as folder:
            pq.write_table(table, Path(folder, "part.parquet"))
            target.store(Path(folder, "part.parquet"), self.result)


def _holds_images(kind: pa.DataType) -> bool:
    """Whether the cells are bytes, or what the datasets library makes of images."""
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def missing_row_groups(source: Storage, target: Storage, column: str) -> tuple[list[RowGroup] | None, int]:
    """
    Compare the Parquet files of a place with the results in another.

    Returns:
        The row groups without a result, `None` if there is no Parquet file at all; and the number of their rows.

    Raises:
        `ValueError`: If a file is no Parquet file, has no such column of images, or has that of the results.
    """
    files = [name for name in source.names_outside(target) if name.endswith(".parquet")]
    if not files:
        return None, 0
    done = set(target.names)
    missing, num_rows = [], 0

    def rows_of_groups(name: str) -> list[int]:
        try:
            with source.fs.open(source.path(name)) as file:
                metadata = pq.read_metadata(file)
        except Exception as error:  # of many classes: each kind of storage has its own
            raise ValueError(f"{printable(name)} cannot be read: {first_line(error)}") from error
        schema = metadata.schema.to_arrow_schema()
        if column not in schema.names:
            raise ValueError(f"{printable(name)} has no column {column}, but {', '.join(schema.names)}.")
        if f"{column}_denoised" in schema.names:
            raise ValueError(f"{printable(name)} has a column {column}_denoised already; choose files without it.")
        if not _holds_images(schema.field(column).type):
            kind = schema.field(column).type
            raise ValueError(f"The column {column} of {printable(name)} does not hold images, but {kind}.")
        return [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]

    with ThreadPoolExecutor(16) as pool:
        for name, sizes in zip(files, pool.map(rows_of_groups, files), strict=True):
            for i, size in enumerate(sizes):
                group = RowGroup(name, i)
                if group.result not in done:
                    missing.append(group)
                    num_rows += size
    return missing, num_rows
