#!/usr/bin/env python3
"""Checks an exported bundle of a Landbridge audit log: python3 verify.py [--key VKEY] [--witness VKEY ...]

It needs Python 3.9 and the package `cryptography` (for Ed25519), and nothing of Landbridge. What it does, in this order:

    1. reads the log's key, from --key, or from log/log.vkey: then you must compare it with the key that the site has published
    2. checks that log/checkpoint is signed with this key: it names the number of entries and the root of their tree
    3. computes the root from the tree's hashes in log/tile/0, and compares it with the one that is signed; where entries were
       pruned, as a log does with what is older than it has to keep, one hash in log/tile/1 stands for 256 of them
    4. computes the hash of every entry in log/tile/entries, and compares it with the hash in the tree
    5. checks that every entry says that it is of this log, and at its place in it; and if some were pruned, that one says so
    6. checks that every line of entries.jsonl is one of these entries
    7. checks the cosignatures of the witnesses that you name

Formats: https://c2sp.org/tlog-tiles, https://c2sp.org/tlog-checkpoint, https://c2sp.org/signed-note, RFC 6962 (2.1).
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

HERE = Path(__file__).resolve().parent
WIDTH = 256  # entries to a bundle, hashes to a tile


class WrongError(Exception):
    """What is wrong, in a sentence."""


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def root_of(hashes: list[bytes]) -> bytes:
    """RFC 6962, 2.1: split at the largest power of two below the number of hashes."""
    if not hashes:
        return sha256(b"")
    if len(hashes) == 1:
        return hashes[0]
    half = 1 << ((len(hashes) - 1).bit_length() - 1)
    return sha256(b"\x01" + root_of(hashes[:half]) + root_of(hashes[half:]))


class Key:
    """A key as <name>+<id>+<base64 of type and key>; type 1 signs notes, type 4 cosigns checkpoints."""

    def __init__(self, text: str) -> None:
        self.name, key_id, encoded = text.strip().split("+", 2)
        raw = base64.b64decode(encoded, validate=True)
        self.type, self.public = raw[0], raw[1:]
        self.id = sha256(self.name.encode() + b"\n" + raw)[:4]
        if key_id != self.id.hex():
            raise WrongError(f"the key {text} was not copied whole")
        if self.type == 6:
            raise WrongError("a key of ML-DSA-44 is for `landbridge audit verify`: give the witness's Ed25519 key")

    def has_signed(self, text: str, signatures: list[str]) -> bool:
        """Whether this key has signed the note; a signature in its name that is wrong is forged."""
        for line in signatures:
            dash, name, encoded = line.split(" ")
            raw = base64.b64decode(encoded, validate=True)
            if dash != "—" or name != self.name or raw[:4] != self.id:
                continue
            signature, message = raw[4:], text.encode()
            if self.type == 4:
                time = int.from_bytes(signature[:8], "big")
                signature, message = signature[8:], f"cosignature/v1\ntime {time}\n{text}".encode()
            try:
                Ed25519PublicKey.from_public_bytes(self.public).verify(signature, message)
            except InvalidSignature:
                raise WrongError(f"a signature of {self.name} is forged, or what it signs was changed") from None
            return True
        return False


def read_note(path: Path) -> tuple[str, list[str]]:
    """The text of a signed note, and its signature lines."""
    text, _, signatures = path.read_text(encoding="utf-8").rpartition("\n\n")
    return text + "\n", signatures.splitlines()


def tiles(kind: str, size: int) -> Iterator[tuple[int, int, Path]]:
    """Where the hashes ("0") or the bundles ("entries") of a log stand: number of the first entry, how many, and the file."""
    for first in range(0, size, WIDTH):
        number, width = first // WIDTH, min(WIDTH, size - first)
        name = f"{number % 1000:03}"
        while number >= 1000:
            number //= 1000
            name = f"x{number % 1000:03}/{name}"
        yield first, width, HERE / "log" / "tile" / kind / (name if width == WIDTH else f"{name}.p/{width}")


def entries_of(bundle: bytes) -> list[bytes]:
    """The entries of a bundle: each has its length in two bytes before it."""
    entries, at = [], 0
    while at < len(bundle):
        end = at + 2 + int.from_bytes(bundle[at : at + 2], "big")
        entries.append(bundle[at + 2 : end])
        at = end
    return entries


def check_checkpoint(key: Key) -> tuple[int, bytes]:
    """Steps 1 and 2: the size and the root that the site has signed."""
    text, signatures = read_note(HERE / "log" / "checkpoint")
    origin, size, root = text.splitlines()
    if origin != key.name or not key.has_signed(text, signatures):
        raise WrongError(f"the checkpoint is not signed by {key.name}")
    print(f"checkpoint   {origin}: {size} entries, signed with the key {key.id.hex()}")
    return int(size), base64.b64decode(root, validate=True)


def root_of_first(size: int, tree: list[list[bytes] | bytes]) -> bytes:
    """The root of the first entries: of the roots of whole tiles, and of what there is of the last one."""
    roots = []
    for number in range(-(-size // WIDTH)):
        tile, wanted = tree[number], size - number * WIDTH
        if isinstance(tile, bytes) and wanted < WIDTH:
            raise WrongError(f"what was cosigned, {size} entries, ends among those that were pruned")
        roots.append(tile if isinstance(tile, bytes) else root_of(tile[:wanted]))
    return root_of(roots)


def check_tree(size: int, root: bytes) -> list[list[bytes] | bytes]:
    """Step 3: the hashes of all entries, tile by tile; of a tile that was pruned, only its root."""
    tree: list[list[bytes] | bytes] = []
    above = [path for _, _, path in tiles("1", size // WIDTH)]
    for first, width, path in tiles("0", size):
        if path.exists() or width < WIDTH:
            raw = path.read_bytes()
            if len(raw) != 32 * width:
                raise WrongError(f"{path.relative_to(HERE)} has not {width} hashes")
            tree.append([raw[at : at + 32] for at in range(0, len(raw), 32)])
        else:
            upper, number = divmod(first // WIDTH, WIDTH)
            tree.append(above[upper].read_bytes()[32 * number : 32 * number + 32])
    if root_of_first(size, tree) != root:
        raise WrongError("the hashes in log/tile/0 do not lead to the root that is signed")
    print(f"tree         the hashes of {size} entries lead to the signed root")
    return tree


def check_entries(origin: str, size: int, tree: list[list[bytes] | bytes]) -> set[bytes]:
    """Steps 4 and 5: the entries that this export holds."""
    held, pruned = set(), 0
    for first, width, path in tiles("entries", size):
        if not path.exists():
            continue  # not part of this export
        entries, hashes = entries_of(path.read_bytes()), tree[first // WIDTH]
        if len(entries) != width or isinstance(hashes, bytes):
            raise WrongError(f"{path.relative_to(HERE)} has {len(entries)} entries, not {width}, or no hashes")
        for index, entry in enumerate(entries, first):
            if sha256(b"\x00" + entry) != hashes[index - first]:
                raise WrongError(f"entry {index} is not the one that was recorded")
            said = json.loads(entry)
            if (said["origin"], said["sequence"]) != (origin, index):
                raise WrongError(f"entry {index} says that it is entry {said['sequence']} of {said['origin']}")
            if said["event"] == "log.pruned":
                pruned = max(pruned, said["seen"]["pruned"]["minimum"])
            held.add(entry)
    for number, tile in enumerate(tree):
        if isinstance(tile, bytes) and (number + 1) * WIDTH > pruned:
            raise WrongError(
                f"the hashes from entry {number * WIDTH} on are missing, and no entry here says that they were pruned"
            )
    print(
        f"entries      {len(held)} are those that were recorded"
        + (f"; those below {pruned} were pruned" if pruned else "")
    )
    return held


def check_export(held: set[bytes]) -> None:
    """Step 6."""
    lines = (HERE / "entries.jsonl").read_bytes().split(b"\n")[:-1]
    for line in lines:
        if line not in held:
            raise WrongError(f"a line of entries.jsonl was never recorded: {line[:120]!r}")
    print(f"export       {len(lines)} lines of entries.jsonl are among them")


def check_witness(witness: Key, key: Key, tree: list[list[bytes] | bytes]) -> None:
    """Step 7."""
    for path in (HERE / "log" / "checkpoint", HERE / "log" / "cosigned"):
        if not path.exists():
            continue
        text, signatures = read_note(path)
        _, size, root = text.splitlines()
        if key.has_signed(text, signatures) and witness.has_signed(text, signatures):
            if root_of_first(int(size), tree) != base64.b64decode(root):
                raise WrongError(f"{witness.name} has cosigned another history")
            print(f"witness      {witness.name} has cosigned the first {size} entries")
            return
    raise WrongError(f"{witness.name} has cosigned nothing of this log")


def main() -> int:
    parser = argparse.ArgumentParser(description="Check an exported bundle of a Landbridge audit log.")
    parser.add_argument("--key", help="the log's key, as the site has published it")
    parser.add_argument("--witness", action="append", default=[], help="the key of a witness that must have cosigned")
    given = parser.parse_args()
    try:
        key = Key(given.key or (HERE / "log" / "log.vkey").read_text())
        size, root = check_checkpoint(key)
        tree = check_tree(size, root)
        check_export(check_entries(key.name, size, tree))
        for witness in given.witness:
            check_witness(Key(witness), key, tree)
    except (WrongError, OSError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        print(f"NOT TO BE TRUSTED: {error}")
        return 1
    print("All checks pass: this is what the site has signed.")
    if not given.key:
        print("The key was taken from log/log.vkey: compare it with the one that the site has published.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
