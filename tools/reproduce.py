"""Runs the rows of a published table one after another; prints expected beside obtained.

    python tools/reproduce.py --list
    python tools/reproduce.py table3 --only resnest50 --dry-run -- --rec-train train.rec \\
        --rec-val val.rec
    python tools/reproduce.py cifar1 --seeds 0,1,2 -- --data cifar10
    python tools/reproduce.py table5 -np 8 -- --device gpu --root coco \\
        --backbone-weights runs/imagenet/{backbone}

What follows -- goes to every recipe; {backbone} in it becomes the row's own. Finished rows are
skipped, interrupted ones go on, and a row that fails does not keep the next from being tried; what
a recipe refuses (exit code 2) and a stop end the table. Each runs under
gluon_resnest.engine.supervise. docs/reproduce.md has the tables.
"""
import argparse
import shlex
import sys

from gluon_resnest.errors import UserError, exit_on_user_error, nearest
from gluon_resnest.reproduction import running
from gluon_resnest.reproduction.page import TABLES, number
from gluon_resnest.reproduction.results import differences, metrics_of, read_run
from gluon_resnest.reproduction.rows import TITLES

# Words for a recipe that this tool says itself, or that let it end without a row's number.
NOT_HERE = ("--model", "--seed", "--workdir", "--eval-only", "--smoke", "--plan", "--test-io",
            "--help", "-h")


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="?", metavar="TABLE", help="name, as --list shows them")
    parser.add_argument("--list", action="store_true", help="print the tables, or the rows of one")
    parser.add_argument("--only", action="append", default=[], metavar="ROW",
                        help="this row, or all that a pattern such as '*resnest50*' matches; may "
                        "be given again")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
    parser.add_argument("--workdir", default="runs", metavar="DIR",
                        help="folder of all run directories (default: %(default)s)")
    parser.add_argument("--seeds", metavar="K,...", help="train each row with each of these seeds "
                        "(default: the recipe's own)")
    parser.add_argument("-np", "--workers", type=int, default=1, metavar="N",
                        help="Horovod workers of each run (default: %(default)s)")
    words = sys.argv[1:] if argv is None else list(argv)
    cut = words.index("--") if "--" in words else len(words)
    return parser.parse_args(words[:cut]), words[cut + 1:]


def table_named(name, tables):
    """Returns the Table of a name."""
    names = {table.name: table for table in tables}
    if name not in names:
        raise UserError(f"there is no table {name!r}"
                        f"{nearest(name, names) or '; known are ' + ', '.join(names)}")
    return names[name]


def show(tables):
    """Prints tables, or the rows of a single one."""
    if len(tables) > 1:
        for table in tables:
            print(f"{table.name:12} {len(table.rows):3} rows  {table.title}")
        return
    for row in tables[0].rows:
        print(f"{row.name:32} {expected(row):40} {running.why_not(row)}".rstrip())


def expected(row):
    """Returns the published numbers of a row."""
    return ", ".join(f"{TITLES[name]} {number(name, value)}" for name, value in row.expected)


def obtained(row, run):
    """Returns what a `Run` says of the numbers of a row, and in what it is not the row's."""
    words = []
    for name in metrics_of(row, run):
        value = run.result["measured"].get(name, run.result.get(name))
        if value is not None:
            words.append(f"{TITLES[name]} "
                         f"{number(name, value / 1e6 if name == 'parameters' else value)}")
    others = differences(run, row)
    return ", ".join(words) + (f", with another {', '.join(others)}" if others else "")


def seeds_of(text):
    """Returns the seeds of "0,1", or [None] for the recipe's own."""
    words = text.split(",") if text else [None]
    if text and not all(word.isdecimal() for word in words):
        raise UserError(f"--seeds must be whole numbers with commas between, got {text!r}")
    return [word and int(word) for word in words]


def reproduce(table, flags, extra):
    """Runs, or prints, the rows; returns the exit code."""
    failed, shown = [], set()
    seeds = seeds_of(flags.seeds)
    check(table, flags, seeds, extra)
    for row in table.select(flags.only):
        reason = running.why_not(row)
        if reason:
            print(f"{row.name}: not run: {reason}")
            for seed in seeds if row.server else ():
                print("    " + "\n    ".join(running.by_hand(
                    row, table.data_of(row), flags.workdir, extra=extra, seed=seed,
                    workers=flags.workers)))
            continue
        for seed in seeds:
            steps = running.steps_of(row, flags.workdir, seed=seed, extra=extra)
            if flags.dry_run:
                show_commands(steps, flags.workers, shown)
                continue
            code = perform(steps, flags.workers)
            if code in running.FINAL:
                return code
            label = row.name + (f", seed {seed}" if seed is not None else "")
            if code:
                print(f"{label}: failed with exit code {code}", flush=True)
                failed.append(label)
            else:
                print(f"{label}: expected {expected(row) or 'nothing'}; obtained "
                      f"{obtained(row, read_run(steps[-1].directory))}", flush=True)
    if failed:
        print(f"{len(failed)} failed: {'; '.join(failed)}")
    return 1 if failed else 0


def check(table, flags, seeds, extra):
    """Raises UserError for the first row that cannot begin, before any does."""
    for row in table.select(flags.only):
        for seed in seeds if not running.why_not(row) else ():
            for step in running.steps_of(row, flags.workdir, seed=seed, extra=extra):
                running.check(step, table.data_of(row))


def show_commands(steps, workers, shown):
    """Prints the command of each step that is not in the set `shown`, and adds it there."""
    for step in steps:
        line = ("# finished: " if step.done else "") + shlex.join(
            running.process_words(step, workers, dry=True))
        if line not in shown:
            print(line)
            shown.add(line)


def perform(steps, workers):
    """Runs the steps that are not done; returns 0 or the exit code of the one that failed."""
    if steps[-1].done:
        print(f"{steps[-1].directory}: finished before", flush=True)
        return 0
    for step in steps:
        if not step.done:
            print(f"{step.directory}: running", flush=True)
            code = running.run(step, workers=workers)
            if code:
                return code
    return 0


def main(argv=None, tables=TABLES):
    flags, extra = parse(argv)
    with exit_on_user_error():
        if flags.list:
            show([table_named(flags.table, tables)] if flags.table else tables)
            return
        if not flags.table:
            raise UserError("give the name of a table, or --list to see them")
        if flags.workers < 1:
            raise UserError(f"-np must be at least 1, got {flags.workers}")
        refused = [word for word in extra if word.partition("=")[0] in NOT_HERE]
        if refused:
            raise UserError(f"{refused[0]} cannot follow --: what does goes to every recipe, and "
                            "each must make the number of its row; leave it out, or run the "
                            "recipe by itself")
        sys.exit(reproduce(table_named(flags.table, tables), flags, extra))


if __name__ == "__main__":
    main()
