"""The committed stubs are what protoc makes of protos/, and every symbol there is explained."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
from grpc_tools import protoc

SOURCE = Path(__file__).parents[2]
PROTOS = sorted((SOURCE / "protos").glob("*.proto"))


def test_committed_stubs_are_up_to_date(tmp_path: Path) -> None:
    status = protoc.main(
        [
            "protoc",
            f"-Ifoldserve/serving/pb={SOURCE / 'protos'}",
            f"-I{Path(protoc.__file__).parent / '_proto'}",
            f"--python_out={tmp_path}",
            f"--pyi_out={tmp_path}",
            f"--grpc_python_out={tmp_path}",
            *map(str, PROTOS),
        ]
    )
    assert status == 0
    generated = sorted((tmp_path / "foldserve" / "serving" / "pb").iterdir())
    assert len(generated) == 3 * len(PROTOS)
    for file in generated:
        assert (SOURCE / "serving" / "pb" / file.name).read_text() == file.read_text(), (
            f"{file.name} is out of date: run `make proto`"
        )


@pytest.mark.parametrize("proto", PROTOS, ids=lambda path: path.name)
def test_every_symbol_has_a_comment(proto: Path) -> None:
    lines = proto.read_text().splitlines()
    symbol = re.compile(r"\s*(service|rpc|message|enum|oneof|repeated|map<|\w+ \w+ = \d+;)")
    bare = [
        line.strip()
        for before, line in pairwise(lines)
        if symbol.match(line) and not before.strip().startswith("//")
    ]
    assert bare == []
