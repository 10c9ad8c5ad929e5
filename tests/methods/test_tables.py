"""Tables in a terminal, with rich and without."""

import sys

from ovs_methods.cli.tables import print_table

ROWS = [["class", "lposs\nIoU"], ["traffic light", "7.50"], ["a name that is long " * 6, "100.00"]]


def test_every_row_is_one_line_in_a_file(capsys):
    print_table(ROWS)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines if "." in line] == ["7.50", "100.00"]
    assert len({len(line.rstrip()) for line in lines if "." in line}) == 1  # set to the right


def test_without_rich_columns_are_plain(capsys, monkeypatch):
    for name in ("rich", "rich.console", "rich.table", "rich.box"):
        monkeypatch.setitem(sys.modules, name, None)
    print_table(ROWS)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["class", "lposs", "IoU"]
    assert lines[1].split() == ["traffic", "light", "7.50"]
    assert len({len(line) for line in lines}) == 1
