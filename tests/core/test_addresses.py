"""Nothing secret of an address is shown: neither in a commit nor in a library's error."""

from __future__ import annotations

import pytest

from tnt.core.addresses import shown, told, without_secrets

SHOWN = {
    "https://me:secret@host/f.jsonl": "https://host/f.jsonl",
    "https://me:s3@secret@host/f.jsonl": "https://host/f.jsonl",
    "https://me:a/secret@host/f.jsonl": "https://host/f.jsonl",
    "https://me:a@b/secret@host/in/f.jsonl?secret": "https://host/.../f.jsonl",
    "https://me:a#secret@host/f.jsonl": "https://...",
    "https://me:a?secret@host/f.jsonl": "https://...",
    "https://secret@host/f.jsonl": "https://host/f.jsonl",
    "https://secret/secret@host/f.jsonl": "https://.../f.jsonl",
    "https://host:81/f.jsonl?token=secret": "https://host:81/f.jsonl",
    "https://host/f.jsonl?secret": "https://host/f.jsonl",
    "HTTPS://host/f?SECRET": "HTTPS://host/f",
    "https://host/f.jsonl?a=1/2&sig=secret": "https://host/f.jsonl",
    "https://host/f.jsonl?sig=secret@b/c": "https://...",
    "https://host/f.jsonl#access_token=secret": "https://host/f.jsonl",
    "https://host/f.jsonl;sig=secret": "https://host/f.jsonl",
    "https://host/t/secret/f.jsonl": "https://host/.../f.jsonl",
    "s3://KEY:SECRET/x@bucket/f.jsonl": "s3://bucket/f.jsonl",
    "sftp://bob:se/cret@host/in/f.jsonl": "sftp://host/.../f.jsonl",
    "simplecache::https://me:secret@host/f.gz": "simplecache::https://host/f.gz",
    "zip://in.csv::https://me:secret@host/f.zip": "zip://host/f.zip",
    "hf://datasets/org/name@main/f.jsonl": "hf://.../f.jsonl",
    "file:///home/me/f.jsonl": "file:///.../f.jsonl",
    "s3://bucket/f-*.jsonl": "s3://bucket/f-*.jsonl",
}


@pytest.mark.parametrize("address", SHOWN)
def test_scheme_host_and_last_name_are_all_that_is_kept(address):
    assert shown(address) == SHOWN[address]
    assert "secret" not in shown(address).lower()


def test_a_path_on_disk_stays_as_it_is():
    for path in ("in/a?.csv", "/srv/me@work/a;b#c.csv"):
        assert shown(path) == path


def test_a_place_without_a_secret_is_told_whole():
    assert without_secrets("s3://models/2026/r1") == "s3://models/2026/r1"
    assert without_secrets("s3://KEY:SECRET@models/2026/r1") == "s3://models/.../r1"


@pytest.mark.parametrize(
    ("said", "expected"),
    {
        "404, url='https://host/in/f.jsonl?sig=secret'": "404, url='https://host/.../f.jsonl'",
        "https://me:p%40secret@host/in/f.jsonl: gone": "https://host/.../f.jsonl: gone",
        "no host 'secret@host'": None,
        "no file in/f.jsonl": "no file in/f.jsonl",
    }.items(),
)
def test_an_error_of_a_library_is_told_without_what_is_secret(said, expected):
    assert told(said, "https://me:p%40secret@host/in/f.jsonl") == expected
