"""Fetch the datasets and the recorded rationales of the studies from their public repositories.

`make data` writes them into data/, in the layout that `data_dir: data` and `rationales:
data/rationales/<dataset>/<teacher>.jsonl` read. What comes from where, and which checksums it has,
is in params/sources.json; `release.py` converts it.
"""

import hashlib
import http.client
import json
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from cotdistill.errors import DataError, disk_error
from cotdistill.files import atomic_write, file_lock, read_text, sha256
from cotdistill.paths import root
from cotdistill.release import convert_quarel, convert_questions, convert_rationales, write_lines

BASE_URL = "https://raw.githubusercontent.com"
CHUNK = 1 << 16
ATTEMPTS = 3  # a body that ends early is continued where it stopped, twice


class NotReachedError(DataError):
    """Report that the server of the files cannot be reached."""


@dataclass(frozen=True)
class Source:
    """One file of data/, and the public file that it is made of.

    name: its path below data/. n_bytes, digest, rows: of the public file (None where they are not
    known). our_digest, our_rows: of the converted one.
    """

    name: str
    repository: str
    commit: str
    path: str
    our_digest: str
    our_rows: int
    n_bytes: int | None = None
    digest: str | None = None
    rows: int | None = None

    @property
    def dataset(self) -> str:
        """The dataset that the file belongs to."""
        return self.name.removeprefix("rationales/").partition("/")[0]


def load_catalogue() -> dict:
    """Load params/sources.json."""
    return json.loads((root() / "params" / "sources.json").read_text(encoding="utf-8"))


def list_sources(catalogue: dict, only: list[str] | None = None) -> list[Source]:
    """List the files to fetch, questions before the rationales that explain them.

    only: names of datasets; None or empty: all. Raises DataError for an unknown name.
    """
    known = sorted(catalogue["licences"])
    unknown = [name for name in only or [] if name not in known]
    if unknown:
        raise DataError(f"--only {unknown[0]}: no such dataset; expected one of {', '.join(known)}")
    sources = [
        Source(
            name=name,
            repository=file["repository"],
            commit=catalogue["repositories"][file["repository"]]["commit"],
            path=file["source"],
            our_digest=file["ours_sha256"],
            our_rows=file["ours_rows"],
            n_bytes=file.get("bytes"),
            digest=file.get("sha256"),
            rows=file.get("rows"),
        )
        for name, file in catalogue["files"].items()
    ]
    chosen = [s for s in sources if not only or s.dataset in only]
    return sorted(chosen, key=lambda s: s.name.startswith("rationales/"))


def _append_missing(url: str, part: Path) -> int | None:
    """Append to `part` what it lacks of the file at `url`; return its whole size if that is said.

    A server that does not continue a file, or continues another one, is asked for all of it.
    """
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=60) as answer:
        said = answer.headers.get("Content-Range", "")
        continues = have and answer.status == 206 and said.startswith(f"bytes {have}-")
        length = answer.headers.get("Content-Length")
        with part.open("ab" if continues else "wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
    return int(length) + (have if continues else 0) if length else None


def _problem(url: str, error: Exception, remedy: str) -> DataError:
    """Turn what a download raised into one line."""
    if isinstance(error, urllib.error.HTTPError):
        return DataError(f"{url}: HTTP {error.code} ({error.reason}); expected the file: {remedy}")
    reason = getattr(error, "reason", None) or error
    return NotReachedError(f"{url}: cannot be reached ({reason}); expected a network: {remedy}")


def download(url: str, part: Path, n_bytes: int | None, remedy: str) -> None:
    """Download a file to `part`, going on where an earlier download ended.

    n_bytes: its size, where it is known. remedy: what the user can do, for the end of an error.
    Raises DataError for an error of the server or a body that ends early three times,
    NotReachedError where there is no connection.
    """
    part.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(ATTEMPTS):
        if n_bytes and part.is_file() and part.stat().st_size > n_bytes:
            part.unlink()  # of another version: start afresh
        if n_bytes and part.is_file() and part.stat().st_size == n_bytes:
            return
        try:
            expected = _append_missing(url, part)
        except urllib.error.HTTPError as error:
            if error.code != 416:
                raise _problem(url, error, remedy) from None
            part.unlink()  # 416: nothing comes after what we have, so that it is no beginning
        except urllib.error.URLError as error:
            raise _problem(url, error, remedy) from None
        except (http.client.HTTPException, OSError) as error:  # the connection broke
            if not part.is_file():
                raise _problem(url, error, remedy) from None
        else:
            if part.stat().st_size == (n_bytes or expected or part.stat().st_size):
                return
    size = part.stat().st_size if part.is_file() else 0
    raise DataError(
        f"{url}: the answer ended after {size:,} bytes{f' of {n_bytes:,}' if n_bytes else ''}; "
        "expected the whole file: run `make data` again, it goes on from there"
    )


def fetch_source(source: Source, folder: Path, base_url: str) -> bytes:
    """Return the content of a public file, from data/downloads/ or from the network.

    What was downloaded whole stays in data/downloads/<repository>/<path>; a user without a network
    may put it there. Raises DataError for a wrong checksum, and as `download` does.
    """
    place = folder / "downloads" / source.repository / source.path
    url = f"{base_url.rstrip('/')}/{source.repository}/{source.commit}/{source.path}"
    if place.is_file():
        if source.digest and sha256(place) != source.digest:
            raise DataError(
                f"{place}: SHA-256 {sha256(place)[:16]}…; expected {source.digest[:16]}…, the file "
                f"at commit {source.commit[:8]}: delete it and run `make data` again"
            )
        return place.read_bytes()
    part = place.with_name(f"{place.name}.part")
    remedy = (
        f"or put what github.com/{source.repository} has at commit {source.commit} as "
        f"{source.path} there: {place}; then run `make data` again (params/sources.json lists all "
        "files)"
    )
    was_there = part.is_file()
    download(url, part, source.n_bytes, remedy)
    if source.digest and was_there and sha256(part) != source.digest:
        part.unlink()  # an older part of something else: once more from its beginning
        download(url, part, source.n_bytes, remedy)
    if source.digest and sha256(part) != source.digest:
        digest = sha256(part)
        part.unlink()
        raise DataError(
            f"{url}: SHA-256 {digest[:16]}…; expected {source.digest[:16]}…: the file was changed "
            "or damaged, and nothing of it was kept"
        )
    os.replace(part, place)
    return place.read_bytes()


def _quarel_order(split: str) -> list[str]:
    """Read the digests of one split from params/quarel-order.txt."""
    words = (root() / "params" / "quarel-order.txt").read_text(encoding="utf-8").split()
    start = words.index(split) + 1
    rest = words[start:]
    return rest[: rest.index("test")] if split == "train" else rest


def _read_questions(path: Path) -> list[dict]:
    """Read converted training questions; raise DataError where they are not there yet."""
    text = read_text(path, "the training questions that the rationales explain: fetch them first")
    # Not splitlines: a text may hold U+2028
    return [json.loads(line) for line in text.split("\n") if line]


def convert_source(source: Source, content: bytes, folder: Path) -> bytes:
    """Convert a public file to ours, and check that it is what it should be.

    folder: data/, where the questions of a rationale file are already converted. Raises DataError
    for content of another form, another number of rows or another checksum.
    """
    parts = Path(source.name).with_suffix("").parts
    try:
        released = json.loads(content)
        if source.rows is not None and len(released) != source.rows:
            raise DataError(f"{source.path}: {len(released)} rows; expected {source.rows}")
        if source.dataset == "quarel":
            rows = convert_quarel(released, parts[1], _quarel_order(parts[1]))
        elif parts[0] == "rationales":
            questions = _read_questions(folder / source.dataset / "train.jsonl")
            rows = convert_rationales(released, source.dataset, questions)
        else:
            rows = convert_questions(released, source.dataset, parts[1])
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{source.path}: {type(error).__name__} ({error}); expected the form of commit "
            f"{source.commit[:8]} of {source.repository}"
        ) from None
    ours = write_lines(rows)
    digest = hashlib.sha256(ours).hexdigest()
    if len(rows) != source.our_rows or digest != source.our_digest:
        raise DataError(
            f"{source.name}: converted to {len(rows)} rows with SHA-256 {digest[:16]}…; expected "
            f"{source.our_rows} rows with {source.our_digest[:16]}…: nothing was written; it "
            f"was made of {folder / 'downloads' / source.repository / source.path}"
        )
    return ours


def fetch_file(source: Source, folder: Path, base_url: str) -> str:
    """Make one file of data/; return "there" where it was whole already, else "fetched".

    Raises DataError, also where a different file lies in its place: a user's own is not replaced.
    """
    path = folder / source.name
    if path.is_file():
        if sha256(path) == source.our_digest:
            return "there"
        raise DataError(
            f"{path}: another file is there (SHA-256 {sha256(path)[:16]}…); expected none, or that "
            f"with {source.our_digest[:16]}…: move it away, then run `make data` again"
        )
    content = convert_source(source, fetch_source(source, folder, base_url), folder)
    with atomic_write(path) as part:
        part.write_bytes(content)
    return "fetched"


def describe_licences(catalogue: dict, sources: list[Source]) -> str:
    """Say under which licence each dataset stands, and where its files come from."""
    lines = ["Data fetched by `make data`. The licences are their authors'; cite the papers.", ""]
    for dataset in sorted({source.dataset for source in sources}):
        lines.append(f"{dataset}: {catalogue['licences'][dataset]}")
    lines.append("")
    for name in sorted({source.repository for source in sources}):
        about = catalogue["repositories"][name]
        lines.append(
            f"github.com/{name} at commit {about['commit']}: {about['licence']}; {about['paper']}"
        )
        files = [source.name for source in sources if source.repository == name]
        lines += [f"  {file}" for file in files]
    return "\n".join(lines) + "\n"


def fetch_data(
    folder: Path, only: list[str] | None = None, base_url: str = BASE_URL, say=print
) -> None:
    """Fetch what is missing of data/, and say the licences.

    folder: where to put it. only: names of datasets (None: all). base_url: of a server with the
    paths of raw.githubusercontent.com. A file that cannot be made does not keep the others from
    being fetched, unless no server is reached. Raises DataError for the first problem, at the end.
    """
    catalogue = load_catalogue()
    sources, problems = list_sources(catalogue, only), []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with file_lock(folder / "data.lock", f"the folder {folder}", say):
            # The licences first: whoever has one file has the page that says whose it is
            with atomic_write(folder / "LICENCES.txt") as part:
                part.write_text(describe_licences(catalogue, list_sources(catalogue)), "utf-8")
            for source in sources:
                try:
                    say(f"{source.name}: {fetch_file(source, folder, base_url)}", flush=True)
                except NotReachedError:
                    raise
                except DataError as problem:
                    say(f"{source.name}: not fetched: {problem}")
                    problems.append(problem)
    except OSError as error:
        raise disk_error(error, folder) or error from None
    say(describe_licences(catalogue, sources), end="")
    wanted = only or list(catalogue["licences"])
    for name, why in catalogue["not_public"].items():
        if name.removeprefix("rationales/").partition("/")[0] in wanted:
            say(f"{name}: not fetched: {why}")
    if problems:
        more = f" ({len(problems)} of {len(sources)} files have a problem)"
        raise DataError(f"{problems[0]}{more if len(problems) > 1 else ''}")
